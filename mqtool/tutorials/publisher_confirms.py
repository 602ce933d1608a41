"""Publisher confirms: knowing that the broker has taken a message, three ways, and what each costs.

    individually     publish, wait, publish, wait, …    a round trip for each
    in batches       publish × 100, wait for all, …     one for a hundred
    asynchronously   publish, publish, publish, …       no waiting: confirms
                           ack 1, ack 2-7, …            come when they come

The broker confirms a message when it is safe: routed to a queue, and there on disk, on most replicas, or consumed. It
may confirm many with one answer, and out of order; whoever does not wait must remember what is unconfirmed.

https://www.rabbitmq.com/tutorials/tutorial-seven-java
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from mqtool.amqp import Channel
from mqtool.message import Message, Receipt
from mqtool.topology import Queue


def individually(channel: Channel, queue: Queue, messages: Iterable[Message]) -> Iterator[Receipt]:
    """Wait for each message's confirm before the next is published.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    return channel.publish(messages, routing_key=queue.name, window=1)


def in_batches(channel: Channel, queue: Queue, messages: Iterable[Message], size: int = 100) -> Iterator[Receipt]:
    """Publish so many messages, then wait for the confirms of them all.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    source = iter(messages)
    while batch := list(islice(source, size)):
        yield from channel.publish(batch, routing_key=queue.name)


def asynchronously(channel: Channel, queue: Queue, messages: Iterable[Message]) -> Iterator[Receipt]:
    """Publish on and on; the confirms are handled as they come.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    return channel.publish(messages, routing_key=queue.name)
