"""Hello World: one program sends, another receives, and a queue in between keeps the message.

python hello.py receive
python hello.py send Good morning!
"""

import os
import sys

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("send", "receive"):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
# Both sides declare the queue, so either may start first.
channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})


def send():
    message = " ".join(words) or "Hello World!"
    # No exchange: the default one routes to the queue named by the routing key.
    channel.basic_publish(exchange="", routing_key="hello", body=message)
    print(f" [x] Sent '{message}'")


def on_message(channel, method, properties, body):
    print(f" [x] Received {body.decode()}")


def receive():
    channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


try:
    send() if role == "send" else receive()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
