"""Routing: receivers choose by severity.

                              ┌─ error ────────────────> [amq.gen-1] ─> disk
    emit-log ──> (direct_logs)┤
                              └─ info, warning, error ─> [amq.gen-2] ─> screen

A direct exchange compares the message's routing key with each binding's key, and routes where they are equal. A queue
may have several bindings, and several queues the same one.

https://www.rabbitmq.com/tutorials/tutorial-four-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Channel, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(channel: Channel, exchange: Exchange, severity: str, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish messages with a severity, except those that name a routing key; yield each one's receipt.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange, routing_key=severity)


def receive(
    channel: Channel,
    exchange: Exchange,
    severities: Iterable[str],
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Take the messages of some severities.

    Raises:
        Unavailable: the queue has vanished.
    """
    channel.declare(exchange)
    queue = channel.declare(queue)
    for severity in severities:
        channel.bind(queue, exchange, severity)
    return channel.consume(queue, receiving)
