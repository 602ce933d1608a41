"""Routing, over AMQP 1.0: receivers choose messages by severity.

                                             ┌─ error ────────────────> disk
    emit-log ─> /exchanges/direct_logs/error ┤
                                             └─ info, warning, error ─> screen

An address may contain a routing key after the exchange, both percent-encoded. A link has one address, so a sender needs
a link for each severity, or one link without an address, on which each message has its address in the property "to".

https://www.rabbitmq.com/tutorials/tutorial-four-go-amqp10
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.amqp10 import LinkSession, exchange_address, queue_address
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(
    session: LinkSession, exchange: Exchange, severity: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    """Send messages; yield each one's receipt. None in the input means no message yet.

    Args:
        severity: the routing key for messages without a routing key of their own.
    """
    session.declare(exchange)
    return session.sender(exchange_address(exchange.name, severity)).send(messages)


def receive(
    session: LinkSession,
    exchange: Exchange,
    severities: Iterable[str],
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Receive the messages with these severities, each of which needs a binding."""
    session.declare(exchange)
    queue = session.declare(queue)
    for severity in severities:
        session.bind(queue, exchange, severity)
    return session.receiver(queue_address(queue.name), receiving).deliveries()
