"""Routing: receivers choose messages by severity.

                              ┌─ error ────────────────> [amq.gen-1] ─> disk
    emit-log ──> (direct_logs)┤
                              └─ info, warning, error ─> [amq.gen-2] ─> screen

A direct exchange routes a message to the queues whose binding key equals its routing key. A queue may have several
bindings, and several queues may have the same one.

https://www.rabbitmq.com/tutorials/tutorial-four-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(
    channel: AmqpChannel, exchange: Exchange, severity: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    """Publish messages; yield each one's receipt. None in the input means no message yet.

    Args:
        severity: the routing key for messages without a routing key of their own.
    """
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange, routing_key=severity)


def receive(
    channel: AmqpChannel,
    exchange: Exchange,
    severities: Iterable[str],
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Consume the messages with these severities, each of which needs a binding."""
    channel.declare(exchange)
    queue = channel.declare(queue)
    for severity in severities:
        channel.bind(queue, exchange, severity)
    return channel.consume(queue, receiving)
