"""Hello World: one sends, one receives, and a queue in between keeps the message until it is fetched.

    send ──> [hello] ──> receive

The publisher names no exchange: the default exchange routes to the queue whose name is the routing key. Both sides
declare the queue, so either may start first; declaring what is there already changes nothing.

https://www.rabbitmq.com/tutorials/tutorial-one-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Channel, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Queue


def send(channel: Channel, queue: Queue, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish messages to a queue; yield each one's receipt once the broker has answered for it.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    queue = channel.declare(queue)
    return channel.publish(messages, routing_key=queue.name)


def receive(channel: Channel, queue: Queue, receiving: Receiving = STREAMING) -> Iterator[Delivery]:
    """Take messages from a queue; each is acknowledged when the next is asked for.

    Raises:
        Unavailable: the queue has vanished.
    """
    queue = channel.declare(queue)
    return channel.consume(queue, receiving)
