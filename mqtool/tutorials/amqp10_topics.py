"""Topics, over AMQP 1.0: receivers choose messages by pattern.

                                                 ┌─ kern.* ─────> receive-log
    emit-log ──> /exchanges/topic_logs/kern.info ┤
                                                 └─ *.critical ─> receive-log

Patterns are the same as with AMQP 0-9-1, since exchanges and bindings belong to the broker, not to a protocol. In a
binding key, `*` matches exactly one word, even an empty one, and `#` matches any number of words, even none. The
annotations x-exchange and x-routing-key of a delivery contain its exchange and routing key.

https://www.rabbitmq.com/tutorials/tutorial-five-go-amqp10
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.amqp10 import LinkSession, exchange_address, queue_address
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(
    session: LinkSession, exchange: Exchange, routing_key: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    """Send messages; yield each one's receipt. None in the input means no message yet.

    Args:
        routing_key: words separated by dots, for messages without a routing key of their own.
    """
    session.declare(exchange)
    return session.sender(exchange_address(exchange.name, routing_key)).send(messages)


def receive(
    session: LinkSession,
    exchange: Exchange,
    patterns: Iterable[str],
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Receive the messages whose routing key matches one of the patterns, each of which needs a binding."""
    session.declare(exchange)
    queue = session.declare(queue)
    for pattern in patterns:
        session.bind(queue, exchange, pattern)
    return session.receiver(queue_address(queue.name), receiving).deliveries()
