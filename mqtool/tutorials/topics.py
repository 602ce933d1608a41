"""Topics: receivers choose messages by pattern.

                             ┌─ kern.* ─────> [amq.gen-1] ──> receive-log
    emit-log ──> (topic_logs)┤
                             └─ *.critical ─> [amq.gen-2] ──> receive-log

A topic exchange splits routing keys and binding keys into words at the dots. In a binding key `*` matches exactly one
word, even an empty one, and `#` matches any number of words, even none. So a binding with `#` alone gets everything, as
from a fanout exchange, and a key without `*` and `#` works as in a direct exchange. A message that matches two bindings
of a queue arrives once.

https://www.rabbitmq.com/tutorials/tutorial-five-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(
    channel: AmqpChannel, exchange: Exchange, routing_key: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    """Publish messages; yield each one's receipt. None in the input means no message yet.

    Args:
        routing_key: words separated by dots, for messages without a routing key of their own.
    """
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange, routing_key=routing_key)


def receive(
    channel: AmqpChannel,
    exchange: Exchange,
    patterns: Iterable[str],
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Consume the messages whose routing key matches one of the patterns, each of which needs a binding."""
    channel.declare(exchange)
    queue = channel.declare(queue)
    for pattern in patterns:
        channel.bind(queue, exchange, pattern)
    return channel.consume(queue, receiving)
