"""Hello World, over AMQP 1.0: one program sends, another receives, and a queue in between keeps the message.

python hello.py receive
python hello.py send Good morning!
"""

import os
import sys
import threading
from urllib.parse import unquote, urlsplit

from rabbitmq_amqp_python_client import Connection, ConnectionParameters, Message, OutcomeState, QueueType

role, *words = sys.argv[1:] or [""]
if role not in ("send", "receive"):
    sys.exit(__doc__)

url = urlsplit(os.environ.get("AMQP_URL", "amqp://localhost"))
place = {"host": url.hostname or "localhost", "port": url.port or 5672, "virtual_host": unquote(url.path[1:]) or "/"}
login = {"user": url.username or "guest", "password": url.password or "guest"}
connection = Connection(ConnectionParameters(**place, **login))
# Both sides declare the queue, so either may start first.
connection.management().queue("hello").type(QueueType.QUORUM).declare()


def send():
    message = " ".join(words) or "Hello World!"
    # A link to the address /queues/hello.
    publisher = connection.publisher_builder().queue("hello").build()
    outcome = publisher.publish(Message(message)).outcome
    if outcome.state is not OutcomeState.ACCEPTED:
        sys.exit(f"the broker did not accept it: {outcome.state.value}")
    print(f" [x] Sent '{message}'")


def on_message(context, message):
    print(f" [x] Received {message.body_as_string()}")
    context.accept()


def receive():
    connection.consumer_builder().queue("hello").message_handler(on_message).build()
    print(" [*] Waiting for messages. To exit press CTRL+C")
    threading.Event().wait()


try:
    send() if role == "send" else receive()
except KeyboardInterrupt:
    pass
connection.close()
