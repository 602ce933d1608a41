"""Looking at, deleting, emptying, binding: requests to the broker that no journal remembers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mqtool.amqp import declaring
from mqtool.amqp.channel import Channel
from mqtool.errors import NotFound
from mqtool.topology import Exchange, Queue


@dataclass(frozen=True, slots=True)
class Depth:
    """What AMQP alone tells of a queue: how many messages are ready, and how many consumers it has."""

    ready: int
    consumers: int


def depth(channel: Channel, queue: str) -> Depth:
    """How full a queue is.

    Raises:
        NotFound: there is no such queue.
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
    """Delete a queue; return how many ready messages went with it. One that is not there is no error.

    Raises:
        BadData: it has consumers, or messages, and was not to be deleted then.
    """
    answer = channel.ask(
        lambda pika, done: pika.queue_delete(name, if_unused=if_unused, if_empty=if_empty, callback=done)
    )
    return int(answer.method.message_count)


def purge(channel: Channel, queue: str) -> int:
    """Remove the ready messages of a queue; return how many there were.

    Raises:
        NotFound: there is no such queue.
    """
    return int(channel.ask(lambda pika, done: pika.queue_purge(queue, callback=done)).method.message_count)


def delete_exchange(channel: Channel, name: str, *, if_unused: bool = False) -> None:
    """Delete an exchange. One that is not there is no error.

    Raises:
        BadData: it has bindings, and was not to be deleted then.
        AccessRefused: it is one of the broker's own.
    """
    channel.ask(lambda pika, done: pika.exchange_delete(name, if_unused=if_unused, callback=done))


def bind(
    channel: Channel, source: str, destination: Exchange | Queue, routing_key: str, arguments: Mapping[str, Any]
) -> None:
    """Have an exchange route to a queue, or to another exchange.

    Raises:
        NotFound: one of them does not exist.
    """
    settings: dict[str, Any] = {"routing_key": routing_key, "arguments": dict(arguments)}
    if isinstance(destination, Queue):
        channel.ask(lambda pika, done: pika.queue_bind(destination.name, source, callback=done, **settings))
    else:
        channel.ask(lambda pika, done: pika.exchange_bind(destination.name, source, callback=done, **settings))


def unbind(
    channel: Channel, source: str, destination: Exchange | Queue, routing_key: str, arguments: Mapping[str, Any]
) -> None:
    """Take a binding away. One that is not there is no error.

    Raises:
        NotFound: one of the two ends does not exist.
    """
    settings: dict[str, Any] = {"routing_key": routing_key, "arguments": dict(arguments)}
    if isinstance(destination, Queue):
        channel.ask(lambda pika, done: pika.queue_unbind(destination.name, source, callback=done, **settings))
    else:
        channel.ask(lambda pika, done: pika.exchange_unbind(destination.name, source, callback=done, **settings))
