"""Publisher confirms: publishers handle confirms individually, in batches, or asynchronously.

python confirms.py 50000
"""

import os
import sys
import time

import pika

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
PARAMETERS = pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost"))


def individually():
    connection = pika.BlockingConnection(PARAMETERS)
    channel = connection.channel()
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    channel.confirm_delivery()  # from here on, basic_publish() waits for the confirm
    for number in range(COUNT):
        channel.basic_publish(exchange="", routing_key=queue, body=str(number))
    connection.close()


class Publisher:  # publishes while fewer than `window` messages are outstanding; in batches, while none is
    def __init__(self, window, in_batches):
        self.window, self.in_batches, self.published = window, in_batches, 0
        self.outstanding = {}  # bodies by sequence number, which starts at 1
        self.connection = pika.SelectConnection(
            PARAMETERS, self.on_connection, on_close_callback=lambda connection, _: connection.ioloop.stop()
        )
        self.connection.ioloop.start()

    def on_connection(self, connection):
        self.channel = connection.channel(on_open_callback=self.on_channel)

    def on_channel(self, channel):
        channel.queue_declare(queue="", exclusive=True, callback=self.on_queue)

    def on_queue(self, frame):
        self.queue = frame.method.queue
        self.channel.confirm_delivery(self.on_answer, callback=lambda frame: self.publish())

    def publish(self):
        while self.published < COUNT and len(self.outstanding) < self.window:
            self.published += 1
            self.outstanding[self.published] = str(self.published)
            self.channel.basic_publish(exchange="", routing_key=self.queue, body=str(self.published))

    def on_answer(self, frame):
        if isinstance(frame.method, pika.spec.Basic.Nack):
            sys.exit(f"the broker refused message {frame.method.delivery_tag}")
        last = frame.method.delivery_tag
        for sequence in range(next(iter(self.outstanding)) if frame.method.multiple else last, last + 1):
            self.outstanding.pop(sequence, None)
        if self.published == COUNT and not self.outstanding:
            self.connection.close()
        elif not (self.in_batches and self.outstanding):
            self.publish()


for says, publish in (
    ("individually in", individually),
    ("in batch in", lambda: Publisher(window=100, in_batches=True)),
    ("and handled confirms asynchronously in", lambda: Publisher(window=5_000, in_batches=False)),
):
    started = time.perf_counter()
    publish()
    print(f"Published {COUNT:,} messages {says} {(time.perf_counter() - started) * 1000:,.0f} ms")
