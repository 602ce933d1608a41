"""Hello World: one sends, one receives, and a queue in between keeps the message until it is fetched.

python hello.py receive
python hello.py send Good morning!
"""

import os
import sys

import pika


def send(channel, words):
    message = " ".join(words) or "Hello World!"
    # No exchange: the default one routes to the queue whose name is the routing key.
    channel.basic_publish(exchange="", routing_key="hello", body=message)
    print(f" [x] Sent '{message}'")


def receive(channel, words):
    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode()}")

    channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


ROLES = {"send": send, "receive": receive}
if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
# Both sides declare the queue, so either may start first.
channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})
try:
    ROLES[sys.argv[1]](channel, sys.argv[2:])
except KeyboardInterrupt:
    pass
connection.close()
