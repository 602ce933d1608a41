"""Hello World: one sends, one receives, and a queue in between.

    python hello.py receive
    python hello.py send Good morning!
"""

import os
import sys

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()

# Both sides declare the queue, so either may start first.
channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})


def send(*words):
    message = " ".join(words) or "Hello World!"
    # No exchange named: the default one routes to the queue whose name is the routing key.
    channel.basic_publish(exchange="", routing_key="hello", body=message)
    print(f" [x] Sent '{message}'")


def receive():
    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode()}")

    channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


try:
    {"send": send, "receive": receive}[sys.argv[1]](*sys.argv[2:])
except KeyboardInterrupt:
    print()
connection.close()
