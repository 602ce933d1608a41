"""Hello World, in a stream: a stream keeps messages after they are read, so that every reader can read all of them.

    send-stream ──> [0|1|2|3| hello-python-stream ──> receive-stream
                     └ messages stay, numbered by their offset

A queue removes a message once it is acknowledged. A stream keeps it until the stream is longer than its settings allow,
so each reader chooses where to start: at the first message that is left, at the next to arrive, or in between. Both
sides create the stream, so either may start first. RabbitMQ has a separate protocol for streams, on port 5552.

https://www.rabbitmq.com/tutorials/tutorial-one-python-stream
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.offsets import FIRST, Offset
from mqtool.streams import StreamChannel
from mqtool.topology import Stream


def send(channel: StreamChannel, stream: Stream, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Append messages to a stream; yield each one's receipt once the broker has confirmed it.

    Args:
        messages: None in the input means that there is no message yet, for example while the user is typing.
    """
    stream = channel.declare(stream)
    return channel.publish(messages, stream)


def receive(
    channel: StreamChannel,
    stream: Stream,
    offset: Offset = FIRST,
    receiving: Receiving = STREAMING,
    track: str | None = None,
) -> Iterator[Delivery]:
    """Read a stream. Nothing is acknowledged, since nothing is removed.

    Args:
        offset: where to start.
        receiving: when to stop; STREAMING never stops.
        track: store the offset on the broker under this name, and continue from there the next time.
    """
    stream = channel.declare(stream)
    return channel.consume(stream, offset, receiving, track)
