"""Exchanges, queues and bindings as the requests that declare them."""

from collections.abc import Callable
from typing import Any

from pika.channel import Channel as PikaChannel

from mqtool.errors import UsageError
from mqtool.topology import Binding, Exchange, Queue

#: Sends a method, and has its answer come to a callback.
Request = Callable[[PikaChannel, Callable[[Any], None]], Any]


def declaration(thing: Exchange | Queue, passive: bool) -> Request:
    """queue.declare or exchange.declare.

    Args:
        passive: only look whether it is there.

    Raises:
        UsageError: RabbitMQ would take something out of its name, and pika would wait for an answer to the full one.
    """
    if "\n" in thing.name or "\r" in thing.name:
        raise UsageError(f"{thing.name!r} has a line break, and no name can have one", "write it in one line")
    arguments = dict(thing.arguments)
    if isinstance(thing, Queue):
        return lambda pika, done: pika.queue_declare(
            thing.name,
            passive=passive,
            durable=thing.durable,
            exclusive=thing.exclusive,
            auto_delete=thing.auto_delete,
            arguments=arguments,
            callback=done,
        )
    return lambda pika, done: pika.exchange_declare(
        thing.name,
        thing.type,
        passive=passive,
        durable=thing.durable,
        auto_delete=thing.auto_delete,
        internal=thing.internal,
        arguments=arguments,
        callback=done,
    )


def binding(of: Binding) -> Request:
    """queue.bind or exchange.bind."""
    if of.to_exchange:
        return lambda pika, done: pika.exchange_bind(
            of.queue, of.exchange, of.routing_key, arguments=dict(of.arguments), callback=done
        )
    return lambda pika, done: pika.queue_bind(
        of.queue, of.exchange, of.routing_key, arguments=dict(of.arguments), callback=done
    )
