"""Topics: receivers choose by pattern.

                             ┌─ kern.* ─────> [amq.gen-1] ──> receive-log
    emit-log ──> (topic_logs)┤
                             └─ *.critical ─> [amq.gen-2] ──> receive-log

A topic exchange splits routing key and binding key into words at the dots. In a binding key `*` stands for exactly one
word, which may be empty, and `#` for any number of words, also none. So `#` alone gets everything, as from a fanout
exchange, and a key without either behaves as with a direct one. A message that two bindings match comes only once.

https://www.rabbitmq.com/tutorials/tutorial-five-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Channel, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(
    channel: Channel, exchange: Exchange, routing_key: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    """Publish messages under a key of words and dots, except those that name their own; yield each one's receipt.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange, routing_key=routing_key)


def receive(
    channel: Channel,
    exchange: Exchange,
    patterns: Iterable[str],
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Take the messages whose routing key matches one of the patterns.

    Raises:
        Unavailable: the queue has vanished.
    """
    channel.declare(exchange)
    queue = channel.declare(queue)
    for pattern in patterns:
        channel.bind(queue, exchange, pattern)
    return channel.consume(queue, receiving)
