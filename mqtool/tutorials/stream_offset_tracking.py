"""Offset tracking: the broker stores a reader's offset, so that the reader can continue from there.

    send ──> [0|1|2| … |98|99] ──> receive
                     └ subscriber_1: 42

A reader stores, under its name, the offset of the last message that it has handled. It does this only now and then,
because each stored offset is written to the stream. After a crash, a few messages are read twice, but none is
skipped. The last message of each run is a marker, at which the reader stops.

https://www.rabbitmq.com/tutorials/tutorial-two-python-stream
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.offsets import FIRST, Offset, Start
from mqtool.streams import StreamChannel
from mqtool.topology import Stream

#: Number of messages in a run, and between two stored offsets.
MESSAGES, EVERY = 100, 10


def send(channel: StreamChannel, stream: Stream, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Append messages to the stream; yield each one's receipt once the broker has confirmed it."""
    stream = channel.declare(stream)
    return channel.publish(messages, stream)


def next_offset(channel: StreamChannel, stream: Stream, name: str) -> Offset:
    """Where the reader with this name continues: after its stored offset, or at the first message of the stream."""
    stored = channel.stored_offset(stream.name, name)
    return FIRST if stored is None else Offset(Start.OFFSET, stored + 1)


def receive(
    channel: StreamChannel, stream: Stream, name: str, offset: Offset, receiving: Receiving = STREAMING
) -> Iterator[Delivery]:
    """Read up to the marker. Store the offset of every tenth message, and of the marker, once it has been handled."""
    for number, delivery in enumerate(channel.consume(stream, offset, receiving)):
        yield delivery
        # Stored only now: if the caller failed, the next run would skip the message.
        if number % EVERY == 0 or is_marker(delivery):
            channel.store_offset(stream.name, name, delivery.delivery_tag)
        if is_marker(delivery):
            return


def is_marker(delivery: Delivery) -> bool:
    """True for the last message of a run."""
    return b"marker" in delivery.body
