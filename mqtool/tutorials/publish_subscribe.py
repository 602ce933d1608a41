"""Publish/subscribe: every receiver gets every message.

                       ┌──> [amq.gen-1] ──> receive-log
    emit-log ──> (logs)┤
                       └──> [amq.gen-2] ──> receive-log

The publisher knows only the exchange. Each receiver binds a queue of its own to it: named by the broker, exclusive, and
gone when the receiver is. A fanout exchange copies each message to all queues bound to it; with none, it drops it.

https://www.rabbitmq.com/tutorials/tutorial-three-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Channel, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(channel: Channel, exchange: Exchange, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish messages to all queues bound to the exchange; yield each one's receipt.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange)


def receive(
    channel: Channel, exchange: Exchange, queue: Queue = PRIVATE_QUEUE, receiving: Receiving = STREAMING
) -> Iterator[Delivery]:
    """Take every message published from now on.

    Raises:
        Unavailable: the queue has vanished.
    """
    channel.declare(exchange)
    queue = channel.declare(queue)
    channel.bind(queue, exchange)
    return channel.consume(queue, receiving)
