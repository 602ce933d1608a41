"""Hello World, over AMQP 1.0: one program sends a message to a queue, and another receives it from the queue.

    send ──(sender)──> /queues/hello ──(receiver)──> receive

Messages flow over links; each link connects a program to an address. AMQP 1.0 has no commands to declare queues, so
RabbitMQ accepts declarations as requests on another pair of links. The broker reports an outcome for each message:
accepted, rejected, or released if no queue receives it. The receiver grants credit, and reports the outcome of each
delivery. AMQP 0-9-1 clients can use the same queue; there, the default exchange and a routing key replace the address.

https://www.rabbitmq.com/tutorials/tutorial-one-go-amqp10
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.amqp10 import LinkSession, queue_address
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Queue


def send(session: LinkSession, queue: Queue, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Send messages to a queue; yield each one's receipt once the broker has reported its outcome.

    Args:
        messages: None in the input means that there is no message yet, for example while the user is typing.
    """
    queue = session.declare(queue)
    return session.sender(queue_address(queue.name)).send(messages)


def receive(session: LinkSession, queue: Queue, receiving: Receiving = STREAMING) -> Iterator[Delivery]:
    """Receive from a queue. Asking for the next message accepts the last one.

    Args:
        receiving: the credit to give, and when to stop; STREAMING never stops.
    """
    queue = session.declare(queue)
    return session.receiver(queue_address(queue.name), receiving).deliveries()
