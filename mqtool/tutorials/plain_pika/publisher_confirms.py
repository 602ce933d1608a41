"""Publisher confirms: knowing that the broker has taken a message, three ways, and what each costs.

python confirms.py 50000
"""

import os
import sys
import time

import pika

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
PARAMETERS = pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost"))


def individually():
    """A blocking channel in confirm mode waits for each message's confirm before it returns."""
    connection = pika.BlockingConnection(PARAMETERS)
    channel = connection.channel()
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.confirm_delivery()
    for number in range(COUNT):
        channel.basic_publish(exchange="", routing_key=queue, body=str(number))
    connection.close()


class Publisher:
    """Publishes without waiting, and handles the confirms as they come.

    At most `window` messages are unconfirmed. In batches: the next are published when all of the last are confirmed.
    """

    def __init__(self, window, in_batches):
        self.window = window
        self.in_batches = in_batches
        self.published = 0
        self.unconfirmed = set()
        self.refused = 0
        self.connection = pika.SelectConnection(PARAMETERS, on_open_callback=self.on_connection)
        self.connection.ioloop.start()

    def on_connection(self, connection):
        connection.channel(on_open_callback=self.on_channel)

    def on_channel(self, channel):
        self.channel = channel
        channel.queue_declare(queue="", exclusive=True, callback=self.on_queue)

    def on_queue(self, frame):
        self.queue = frame.method.queue
        self.channel.confirm_delivery(self.on_answer, callback=lambda frame: self.publish())

    def publish(self):
        while self.published < COUNT and len(self.unconfirmed) < self.window:
            self.channel.basic_publish(exchange="", routing_key=self.queue, body=str(self.published))
            self.published += 1
            self.unconfirmed.add(self.published)  # the broker counts from 1, as we do

    def on_answer(self, frame):
        tag = frame.method.delivery_tag
        answered = {each for each in self.unconfirmed if each <= tag} if frame.method.multiple else {tag}
        self.unconfirmed -= answered
        if isinstance(frame.method, pika.spec.Basic.Nack):
            self.refused += len(answered)
        if self.published == COUNT and not self.unconfirmed:
            self.connection.add_on_close_callback(lambda connection, reason: connection.ioloop.stop())
            self.connection.close()
        elif not (self.in_batches and self.unconfirmed):
            self.publish()


def in_batches():
    return Publisher(window=100, in_batches=True).refused


def asynchronously():
    return Publisher(window=5_000, in_batches=False).refused


for way, says in (
    (individually, "individually in"),
    (in_batches, "in batch in"),
    (asynchronously, "and handled confirms asynchronously in"),
):
    started = time.perf_counter()
    refused = way()
    print(f"Published {COUNT:,} messages {says} {(time.perf_counter() - started) * 1000:,.0f} ms")
    if refused:
        sys.exit(f"the broker refused {refused:,} of them")
