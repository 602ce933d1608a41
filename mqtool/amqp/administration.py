"""Inspect, close, delete, purge, unbind: requests that are not repeated after a reconnection."""

from typing import NamedTuple

from mqtool.amqp import declaring
from mqtool.amqp.channel import Channel
from mqtool.errors import NotFound
from mqtool.topology import Binding, Exchange, Queue


class Depth(NamedTuple):
    """How full a queue is: ready messages, and consumers."""

    ready: int
    consumers: int


def depth(channel: Channel, queue: str) -> Depth:
    """Ask how full a queue is.

    Raises:
        NotFound: the queue does not exist.
    """
    told = channel.ask(declaring.declaration(Queue(queue), passive=True)).method
    return Depth(int(told.message_count), int(told.consumer_count))


def exists(channel: Channel, thing: Exchange | Queue) -> bool:
    """Whether the broker has an exchange or a queue of this name."""
    try:
        channel.ask(declaring.declaration(thing, passive=True))
    except NotFound:
        return False
    return True


def delete_queue(channel: Channel, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
    """Delete a queue; return how many ready messages went with it. Safe to repeat.

    Raises:
        BadData: if_unused and it has consumers, or if_empty and it has messages.
    """
    answer = channel.ask(
        lambda pika, done: pika.queue_delete(name, if_unused=if_unused, if_empty=if_empty, callback=done)
    )
    return int(answer.method.message_count)


def purge(channel: Channel, queue: str) -> int:
    """Remove the ready messages of a queue; return how many there were.

    Raises:
        NotFound: the queue does not exist.
    """
    return int(channel.ask(lambda pika, done: pika.queue_purge(queue, callback=done)).method.message_count)


def close(channel: Channel) -> None:
    """Close a channel, with its consumers: what was not acknowledged returns to its queue."""

    def leave() -> None:  # after the acknowledgements
        left = channel.link.requests.leave()
        if left is not None and left.is_open:
            left.close()

    channel.connection.io.run(leave)


def delete_exchange(channel: Channel, name: str, *, if_unused: bool = False) -> None:
    """Delete an exchange. Safe to repeat.

    Raises:
        BadData: if_unused and it has bindings.
        AccessRefused: it is one of the broker's own.
    """
    channel.ask(lambda pika, done: pika.exchange_delete(name, if_unused=if_unused, callback=done))


def bind(channel: Channel, binding: Binding) -> None:
    """Have an exchange route to a queue, or to another exchange. Safe to repeat.

    Raises:
        NotFound: one of the two ends does not exist.
    """
    channel.ask(declaring.bind(binding))


def unbind(channel: Channel, binding: Binding) -> None:
    """Remove a binding, matched by key and arguments. Safe to repeat.

    Raises:
        NotFound: one of the two ends does not exist.
    """
    channel.ask(declaring.bind(binding, verb="unbind"))
