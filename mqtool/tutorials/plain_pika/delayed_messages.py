"""Delayed messages: sent now, received later.

python delayed.py receive
python delayed.py send 5000 Good morning!       the delay in milliseconds
"""

import os
import sys

import pika

PARAMETERS = pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost"))
PERSISTENT = pika.DeliveryMode.Persistent


def connect():
    """A connection, a channel with all declared, and whether the broker has the plugin with the exchange type."""
    connection = pika.BlockingConnection(PARAMETERS)
    channel = connection.channel()
    plugin = True
    try:
        declare(channel, "x-delayed-message", {"x-delayed-type": "direct"})
    except (pika.exceptions.ConnectionClosedByBroker, pika.exceptions.ChannelClosedByBroker):
        plugin = False
        if connection.is_open:
            connection.close()
        connection = pika.BlockingConnection(PARAMETERS)
        channel = connection.channel()
        declare(channel, "direct", {})
    return connection, channel, plugin


def declare(channel, exchange_type, arguments):
    channel.exchange_declare("delay_exchange", exchange_type, durable=True, arguments=arguments)
    channel.queue_declare("delay_queue", durable=True)
    channel.queue_bind("delay_queue", "delay_exchange", routing_key="delay_queue")


def send(words):
    delay = int(words[0]) if words else 5000
    message = " ".join(words[1:]) or "Hello World!"
    connection, channel, plugin = connect()
    if plugin:
        # The exchange holds the message back for so many milliseconds.
        properties = pika.BasicProperties(headers={"x-delay": delay}, delivery_mode=PERSISTENT)
        channel.basic_publish("delay_exchange", "delay_queue", message, properties)
    else:
        # A queue that nobody consumes from does, one for each delay: what expires in it goes on to the exchange.
        wait_queue = f"delay_queue.wait.{delay}"
        arguments = {
            "x-message-ttl": delay,
            "x-dead-letter-exchange": "delay_exchange",
            "x-dead-letter-routing-key": "delay_queue",
            "x-expires": delay + 60_000,
        }
        channel.queue_declare(wait_queue, durable=True, arguments=arguments)
        channel.basic_publish("", wait_queue, message, pika.BasicProperties(delivery_mode=PERSISTENT))
    print(f" [x] Sent '{message}'")
    connection.close()


def receive(words):
    connection, channel, _ = connect()

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode()}")

    channel.basic_consume("delay_queue", on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    try:
        channel.start_consuming()
    except KeyboardInterrupt:
        connection.close()


ROLES = {"send": send, "receive": receive}
if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
    sys.exit(__doc__)
ROLES[sys.argv[1]](sys.argv[2:])
