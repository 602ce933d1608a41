"""What the ways to hold messages back have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mqtool.amqp import Channel
from mqtool.errors import BadData
from mqtool.message import Message
from mqtool.topology import DEFAULT_EXCHANGE, Exchange, Queue

#: Headers that have a message copied to further queues.
_COPIES = ("CC", "BCC")

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages go when they are due, as far as they do not say so themselves.

    Attributes:
        exchange: as the command declares it, or finds it; the default exchange for a queue.
        queue: as the command declares it, None for an exchange.
        routing_key: None is each message's own, or the queue's name.
    """

    exchange: Exchange = DEFAULT_EXCHANGE
    queue: Queue | None = None
    routing_key: str | None = None


class Place(NamedTuple):
    """Where to publish a message that shall wait; the routing key None is its own."""

    exchange: str
    routing_key: str | None


class Way(Protocol):
    """A way to hold messages back."""

    def place(self, message: Message, milliseconds: int) -> Place:
        """Where the message can wait for so long; declare what is not there yet.

        Raises:
            BadData: this way cannot do it.
        """

    def properties(self, message: Message, milliseconds: int) -> dict[str, Any]:
        """The message's properties, with what has it wait."""


class Expecting:
    """Makes sure that what a message is for is there: no message shall wait to find out that it leads nowhere.

    It asks on a channel of its own, since a broker answers no by closing the channel.
    """

    def __init__(self, channel: Channel) -> None:
        self._connection = channel.connection
        self._channel: Channel | None = None

    def expect(self, exchange: str, queue: str) -> None:
        """Make sure of an exchange, or, where that is the default one, of a queue.

        Raises:
            Unavailable: it is not there.
        """
        if self._channel is None:
            self._channel = self._connection.channel()
        if exchange:
            self._channel.expect(Exchange(exchange))
        else:
            self._channel.depth_of(queue)


def name_for(to: str, suffix: str) -> str:
    """The name of what leads to an exchange or a queue; names that start with "amq." are the broker's own."""
    return f"mqtool.{to}.{suffix}" if to.startswith("amq.") else f"{to}.{suffix}"


def addressed(message: Message, destination: Destination) -> tuple[str, str]:
    """The exchange and the routing key of a message; the key only matters for the default exchange.

    Raises:
        BadData: copies of it would go elsewhere.
    """
    to = destination.exchange.name if message.exchange is None else message.exchange
    key = message.routing_key
    if key is None:
        key = destination.routing_key or (destination.queue.name if destination.queue else "")
    if not to and any(copies in (message.properties.get("headers") or {}) for copies in _COPIES):
        raise BadData("a message with a header CC or BCC cannot be delayed on its way to a queue", "send it to each")
    return to, key
