"""What the ways to hold messages back have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mqtool.amqp import Channel, administration
from mqtool.errors import AccessRefused, BadData, DeclaredDifferently
from mqtool.message import Message
from mqtool.topology import DEFAULT_EXCHANGE, DELAYED, Exchange, Queue

#: Tells the user what they should look at.
Warn = Callable[[str], None]


@dataclass
class Destination:
    """Where messages go when they are due, unless they name an exchange or a routing key themselves.

    Attributes:
        to: as the command declares it.
        leads_to: the queue behind an exchange of type x-delayed-message, if the command declares that, too.
        is_classic: whether the queue is surely a classic one; None if nobody has looked yet.
    """

    to: Exchange | Queue = DEFAULT_EXCHANGE
    leads_to: Queue | None = None
    is_classic: bool | None = None

    @property
    def queue(self) -> Queue | None:
        """The queue that messages end in, if it is known."""
        return self.to if isinstance(self.to, Queue) else self.leads_to

    @property
    def is_delayed_exchange(self) -> bool:
        """Whether messages are for an exchange that delays by itself."""
        return isinstance(self.to, Exchange) and self.to.type == DELAYED

    def look(self, channel: Channel) -> None:
        """Look once at what the broker has: a queue that exists is used as it is, whatever the command declares."""
        if self.is_classic is None:
            self.is_classic = self.queue is not None and _is_classic(channel, self.queue)

    def of(self, message: Message) -> Exchange | Queue:
        """The exchange that a message is for, or the queue if that is the default exchange.

        Raises:
            BadData: copies of the message would go elsewhere.
        """
        ours = self.to.name if isinstance(self.to, Exchange) else ""
        exchange = ours if message.exchange is None else message.exchange
        if exchange:
            return self.to if exchange == ours else Exchange(exchange, durable=True)
        if {"CC", "BCC"} & (message.properties.get("headers") or {}).keys():
            raise BadData(
                "a message to a queue cannot be delayed if it has a header CC or BCC",
                "send it to each queue separately",
            )
        ours = self.to.name if isinstance(self.to, Queue) else ""
        name = ours if message.routing_key is None else message.routing_key
        return self.to if isinstance(self.to, Queue) and ours == name else Queue(name)

    def may_lead_to_quorum_queue(self, target: Exchange | Queue) -> bool:
        """Whether what is published to a target may end in a quorum queue: one that we did not declare may be one.

        What an exchange that is not durable leads to, a restart loses anyway.
        """
        if target is not self.to:
            return True
        return target.durable if isinstance(target, Exchange) else not self.is_classic


def _is_classic(channel: Channel, queue: Queue) -> bool:
    """Declare a queue; return whether it is surely a classic one.

    AMQP does not tell the type of a queue, but a broker refuses a declaration with another type. It does so on a
    channel of its own, since it closes the channel.
    """
    if queue.arguments.get("x-queue-type", "classic") != "classic":
        return False
    if queue.exclusive:
        return True
    asking = channel.connection.channel()
    try:
        asking.declare(queue, remember=False, exactly=True)
    except (AccessRefused, DeclaredDifferently):
        return False
    if not queue.durable or "x-queue-type" in queue.arguments:
        return True
    # Without a type, it has the default of its vhost.
    try:
        as_quorum = {**queue.arguments, "x-queue-type": "quorum"}
        asking.declare(queue._replace(arguments=as_quorum), remember=False, exactly=True)
    except DeclaredDifferently:
        return True
    return False


class Place(NamedTuple):
    """Where to publish a message that has to wait; the routing key None is its own."""

    exchange: str
    routing_key: str | None


class Way(Protocol):
    """A way to hold messages back."""

    def place(self, message: Message, milliseconds: int) -> Place:
        """Where the message can wait this long; declare what is missing.

        Raises:
            BadData: this way cannot do it.
        """

    def properties(self, message: Message, milliseconds: int) -> dict[str, Any]:
        """The message's properties, with those that make it wait."""


def expect(channel: Channel, target: Exchange | Queue) -> None:
    """Check that a destination exists, so that no message waits in vain.

    It asks on a channel of its own, since a broker answers no by closing the channel.

    Raises:
        NotFound: it does not exist.
    """
    asking = channel.connection.channel()
    administration.expect(asking, target)
    asking.close()


def name_for(target: Exchange | Queue, suffix: str) -> str:
    """The name of what leads to an exchange or a queue; names that start with "amq." are reserved."""
    return f"mqtool.{target.name}.{suffix}" if target.name.startswith("amq.") else f"{target.name}.{suffix}"
