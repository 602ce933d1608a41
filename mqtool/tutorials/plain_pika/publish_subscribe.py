"""Publish/subscribe: every receiver gets every message.

python logs.py receive                      in two terminals
python logs.py emit warning: it is late
"""

import os
import sys

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("emit", "receive"):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="logs", exchange_type="fanout")


def emit():
    message = " ".join(words) or "info: Hello World!"
    # A fanout exchange copies the message to every queue bound to it; if none is, the message is dropped.
    channel.basic_publish(exchange="logs", routing_key="", body=message)
    print(f" [x] Sent {message}")


def on_message(channel, method, properties, body):
    print(f" [x] {body.decode()}")


def receive():
    # A private queue: the broker generates its name, and deletes the queue when the receiver disconnects.
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.queue_bind(queue=queue, exchange="logs")
    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


try:
    emit() if role == "emit" else receive()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
