"""Super streams: an exchange, and the streams that are its partitions.

https://www.rabbitmq.com/docs/streams#super-streams
"""

from collections.abc import Sequence

import mmh3

from mqtool.amqp import Channel
from mqtool.errors import DeclaredDifferently
from mqtool.topology import Exchange, Queue, Stream

#: Of the hash; other clients have the same, so that a key leads to the same partition.
_SEED = 104_729


def is_super_stream(name: str, streams: Sequence[str]) -> bool:
    """Whether an exchange that leads to streams is a super stream, by their names: the protocol does not say."""
    return bool(streams) and all(stream.startswith(f"{name}-") for stream in streams)


def place_of(key: str, partitions: int) -> int:
    """The place of the partition that a key leads to: as in RabbitMQ's clients for Java, Go, .NET and Node.js."""
    return mmh3.hash(key.encode("utf-8", "surrogateescape"), _SEED, signed=False) % partitions


def create(channel: Channel, stream: Stream) -> None:
    """Create a super stream over AMQP 0-9-1, as `rabbitmq-streams add_super_stream` does: all versions take that.

    Raises:
        DeclaredDifferently: there is an exchange of that name that is something else, or a queue of a partition's.
    """
    exchange = Exchange(stream.name, durable=True, arguments={"x-super-stream": True})
    arguments = {"x-queue-type": "stream", **{f"x-{name}": value for name, value in stream.arguments.items()}}
    # If one of them is something else, there must not be an exchange that looks like a smaller super stream.
    queues = [_partition(channel, Queue(name, durable=True, arguments=arguments)) for name in stream.partitions]
    channel.declare(exchange)
    for order, queue in enumerate(queues):
        channel.bind(queue, exchange, str(order), {"x-stream-partition-order": order})


def _partition(channel: Channel, queue: Queue) -> Queue:
    try:
        return channel.declare(queue, exactly=True)
    except DeclaredDifferently as error:
        raise DeclaredDifferently(
            f"queue {queue.name!r} cannot be a partition: {error}",
            "choose another name with -q, or delete it: mqtool queue delete",
        ) from error
