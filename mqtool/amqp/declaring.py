"""Exchanges, queues and bindings as requests to the broker."""

from collections.abc import Callable
from typing import Any

from pika.channel import Channel as PikaChannel

from mqtool.errors import UsageError
from mqtool.topology import Binding, Exchange, Queue

#: Sends a method, and has its answer come to a callback.
Request = Callable[[PikaChannel, Callable[[Any], None]], Any]


def declaration(thing: Exchange | Queue, *, passive: bool = False) -> Request:
    """queue.declare or exchange.declare.

    Args:
        passive: only check that it exists.

    Raises:
        UsageError: RabbitMQ would drop the line break from its name, and pika would wait for the full name forever;
            or the name is not UTF-8, and the management API would list nothing any more.
    """
    check_utf_8(thing.name)
    if "\n" in thing.name or "\r" in thing.name:
        raise UsageError(f"the name {thing.name!r} contains a line break", "names must be on one line")
    settings: dict[str, Any] = {"passive": passive, "durable": thing.durable, "auto_delete": thing.auto_delete}
    settings["arguments"] = dict(thing.arguments)
    if isinstance(thing, Queue):
        exclusive = thing.exclusive
        return lambda pika, done: pika.queue_declare(thing.name, exclusive=exclusive, callback=done, **settings)
    internal = thing.internal
    return lambda pika, done: pika.exchange_declare(
        thing.name, thing.type, internal=internal, callback=done, **settings
    )


def check_utf_8(name: str) -> None:
    """Check a name that a user has typed; those that come from elsewhere may have any bytes.

    Raises:
        UsageError: it is not valid UTF-8.
    """
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError(f"the name {name!r} is not valid UTF-8", "only a message's body may be any bytes")


def bind(binding: Binding, *, verb: str = "bind") -> Request:
    """queue.bind or exchange.bind; with another verb, queue.unbind or exchange.unbind."""
    what, *ends = ("exchange", "destination", "source") if binding.to_exchange else ("queue", "queue", "exchange")
    arguments = {
        **dict(zip(ends, (binding.destination, binding.source), strict=True)),
        "routing_key": binding.routing_key,
        "arguments": dict(binding.arguments),
    }
    return lambda pika, done: getattr(pika, f"{what}_{verb}")(**arguments, callback=done)
