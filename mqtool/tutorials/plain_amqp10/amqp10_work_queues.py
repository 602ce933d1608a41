"""Work queues, over AMQP 1.0: tasks are shared among workers, and each task is done by one of them.

python tasks.py worker                      in two terminals
python tasks.py new-task A long task...     each dot is a second of work
"""

import os
import sys
import threading
import time
from urllib.parse import unquote, urlsplit

from rabbitmq_amqp_python_client import Connection, ConnectionParameters, Header, Message, OutcomeState, QueueType

role, *words = sys.argv[1:] or [""]
if role not in ("new-task", "worker"):
    sys.exit(__doc__)

url = urlsplit(os.environ.get("AMQP_URL", "amqp://localhost"))
place = {"host": url.hostname or "localhost", "port": url.port or 5672, "virtual_host": unquote(url.path[1:]) or "/"}
login = {"user": url.username or "guest", "password": url.password or "guest"}
connection = Connection(ConnectionParameters(**place, **login))
connection.management().queue("task_queue").type(QueueType.QUORUM).declare()


def new_task():
    message = " ".join(words) or "Hello World!"
    publisher = connection.publisher_builder().queue("task_queue").build()
    # To keep tasks from getting lost: a durable message in a durable queue.
    outcome = publisher.publish(Message(message, header=Header(durable=True))).outcome
    if outcome.state is not OutcomeState.ACCEPTED:
        sys.exit(f"the broker did not accept it: {outcome.state.value}")
    print(f" [x] Sent {message}")


def on_task(context, message):
    body = message.body_as_string()
    print(f" [x] Received {body}")
    time.sleep(body.count("."))
    print(" [x] Done")
    # Only now: if this worker dies earlier, the broker sends the task to another one.
    context.accept()


def worker():
    # A busy worker gets no more tasks: the next one goes to an idle worker.
    connection.consumer_builder().queue("task_queue").initial_credits(1).message_handler(on_task).build()
    print(" [*] Waiting for messages. To exit press CTRL+C")
    threading.Event().wait()


try:
    new_task() if role == "new-task" else worker()
except KeyboardInterrupt:
    pass
connection.close()
