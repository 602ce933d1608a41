"""Hello World: one program sends a message, another receives it, and a queue holds the message until it is consumed.

    send ──> [hello] ──> receive

The publisher names no exchange: the default exchange routes a message to the queue named by its routing key. Both sides
declare the queue, so either may start first; declaring a queue that exists changes nothing.

https://www.rabbitmq.com/tutorials/tutorial-one-python
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Queue


def send(channel: AmqpChannel, queue: Queue, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish messages to a queue; yield each one's receipt once the broker has confirmed it.

    Args:
        messages: None in the input means that there is no message yet, for example while the user is typing.
    """
    queue = channel.declare(queue)
    return channel.publish(messages, routing_key=queue.name)


def receive(channel: AmqpChannel, queue: Queue, receiving: Receiving = STREAMING) -> Iterator[Delivery]:
    """Consume from a queue. Asking for the next message acknowledges the previous one.

    Args:
        receiving: the prefetch, and when to stop; STREAMING never stops.
    """
    queue = channel.declare(queue)
    return channel.consume(queue, receiving)
