"""Topics, over AMQP 1.0: receivers choose messages by pattern.

python logs.py receive 'kern.*' '*.critical'
python logs.py emit kern.critical A critical kernel error
"""

import os
import sys
import threading
from urllib.parse import unquote, urlsplit

from rabbitmq_amqp_python_client import Connection, ConnectionParameters, ExchangeType, Message, OutcomeState

role, *words = sys.argv[1:] or [""]
if role not in ("emit", "receive"):
    sys.exit(__doc__)

url = urlsplit(os.environ.get("AMQP_URL", "amqp://localhost"))
place = {"host": url.hostname or "localhost", "port": url.port or 5672, "virtual_host": unquote(url.path[1:]) or "/"}
login = {"user": url.username or "guest", "password": url.password or "guest"}
connection = Connection(ConnectionParameters(**place, **login))
management = connection.management()
management.exchange("topic_logs").type(ExchangeType.TOPIC).declare()


def emit():
    key, message = (words or ["anonymous.info"])[0], " ".join(words[1:]) or "Hello World!"
    publisher = connection.publisher_builder().exchange("topic_logs").key(key).build()
    outcome = publisher.publish(Message(message)).outcome
    if outcome.state is OutcomeState.REJECTED:  # released only means that no queue is bound now
        sys.exit("a queue rejected it")
    print(f" [x] Sent {key}:{message}")


def on_log(context, message):
    key = message.message_annotations.value["x-routing-key"]
    print(f" [x] {key}:{message.body_as_string()}")
    context.accept()


def receive():
    # This receiver's own queue, which the broker deletes when the connection closes.
    queue = management.queue().exclusive().declare().name
    for key in words or sys.exit(__doc__):
        management.bind(source="topic_logs", destination=queue, binding_key=key)
    connection.consumer_builder().queue(queue).message_handler(on_log).build()
    print(" [*] Waiting for logs. To exit press CTRL+C")
    threading.Event().wait()


try:
    emit() if role == "emit" else receive()
except KeyboardInterrupt:
    pass
connection.close()
