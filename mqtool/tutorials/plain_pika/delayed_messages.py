"""Delayed messages: messages are sent now and received later.

python delayed.py receive
python delayed.py send 5000 Good morning!       the delay in milliseconds
"""

import os
import sys

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("send", "receive"):
    sys.exit(__doc__)


def connect(exchange_type, arguments):
    connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
    channel = connection.channel()
    channel.exchange_declare("delay_exchange", exchange_type, durable=True, arguments=arguments)
    channel.queue_declare("delay_queue", durable=True)
    channel.queue_bind("delay_queue", "delay_exchange", routing_key="delay_queue")
    return connection, channel


try:
    connection, channel = connect("x-delayed-message", {"x-delayed-type": "direct"})
    has_plugin = True
except (pika.exceptions.ConnectionClosedByBroker, pika.exceptions.ChannelClosedByBroker):
    connection, channel = connect("direct", {})
    has_plugin = False


def send():
    delay = int(words[0]) if words else 5000
    message = " ".join(words[1:]) or "Hello World!"
    properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    if has_plugin:
        # The exchange holds the message for this many milliseconds.
        properties.headers = {"x-delay": delay}
        channel.basic_publish("delay_exchange", "delay_queue", message, properties)
    else:
        # The message expires in a queue without consumers, and the broker dead-letters it to the exchange.
        wait_queue = f"delay_queue.wait.{delay}"
        arguments = {
            "x-message-ttl": delay,
            "x-dead-letter-exchange": "delay_exchange",
            "x-dead-letter-routing-key": "delay_queue",
            "x-expires": delay + 60_000,
        }
        channel.queue_declare(wait_queue, durable=True, arguments=arguments)
        channel.basic_publish("", wait_queue, message, properties)
    print(f" [x] Sent '{message}'")


def on_message(channel, method, properties, body):
    print(f" [x] Received {body.decode()}")


def receive():
    channel.basic_consume("delay_queue", on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


try:
    send() if role == "send" else receive()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
