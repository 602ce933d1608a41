"""Publish/subscribe: every receiver gets every message.

python logs.py receive                      in two terminals
python logs.py emit warning: it is late
"""

import os
import sys

import pika


def emit(channel, words):
    message = " ".join(words) or "info: Hello World!"
    # A fanout exchange copies the message to all queues bound to it; with none, it drops it.
    channel.basic_publish(exchange="logs", routing_key="", body=message)
    print(f" [x] Sent {message}")


def receive(channel, words):
    # A queue of our own: the broker names it, and it is gone when we are.
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.queue_bind(queue=queue, exchange="logs")

    def on_message(channel, method, properties, body):
        print(f" [x] {body.decode()}")

    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


ROLES = {"emit": emit, "receive": receive}
if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="logs", exchange_type="fanout")
try:
    ROLES[sys.argv[1]](channel, sys.argv[2:])
except KeyboardInterrupt:
    pass
connection.close()
