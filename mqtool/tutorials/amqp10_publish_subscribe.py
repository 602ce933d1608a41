"""Publish/subscribe, over AMQP 1.0: every receiver gets every message.

                              ┌──> /queues/… ──> receive-log
    emit-log ──> /exchanges/logs
                              └──> /queues/… ──> receive-log

A sender's address may be an exchange; a receiver's is always a queue. Each receiver declares its own queue, and binds
it to the exchange. Over AMQP 1.0, the broker does not choose queue names, so the client makes up a random one. The
queue is exclusive: the broker deletes it when the connection closes. If no queue is bound to the exchange, the outcome
of a message is "released".

https://www.rabbitmq.com/tutorials/tutorial-three-go-amqp10
"""

from collections.abc import Iterable, Iterator

from mqtool.amqp import STREAMING, Receiving
from mqtool.amqp10 import LinkSession, exchange_address, queue_address
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(session: LinkSession, exchange: Exchange, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Send messages to an exchange; yield each one's receipt. None in the input means no message yet."""
    session.declare(exchange)
    return session.sender(exchange_address(exchange.name)).send(messages)


def receive(
    session: LinkSession, exchange: Exchange, queue: Queue = PRIVATE_QUEUE, receiving: Receiving = STREAMING
) -> Iterator[Delivery]:
    """Receive every message published from now on; PRIVATE_QUEUE is a new queue for this receiver only."""
    session.declare(exchange)
    queue = session.declare(queue)
    session.bind(queue, exchange)
    return session.receiver(queue_address(queue.name), receiving).deliveries()
