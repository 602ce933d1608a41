"""Publish/subscribe: every receiver gets every message.

                       ┌──> [amq.gen-1] ──> receive-log
    emit-log ──> (logs)┤
                       └──> [amq.gen-2] ──> receive-log

The publisher knows only the exchange. Each receiver binds its own queue to the exchange. The broker chooses the
queue's name, and deletes the queue when the receiver disconnects. A fanout exchange copies each message to every queue
that is bound to it. If no queue is bound, the message is dropped.

https://www.rabbitmq.com/tutorials/tutorial-three-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(channel: AmqpChannel, exchange: Exchange, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish messages to an exchange; yield each one's receipt. None in the input means no message yet."""
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange)


def receive(
    channel: AmqpChannel, exchange: Exchange, queue: Queue = PRIVATE_QUEUE, receiving: Receiving = STREAMING
) -> Iterator[Delivery]:
    """Consume every message published from now on; PRIVATE_QUEUE is a new queue for this receiver only."""
    channel.declare(exchange)
    queue = channel.declare(queue)
    channel.bind(queue, exchange)
    return channel.consume(queue, receiving)
