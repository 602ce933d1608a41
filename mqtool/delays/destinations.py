"""The destinations of delayed messages, and functions for both ways of delaying messages."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from mqtool.amqp import Channel, administration
from mqtool.errors import AccessRefused, BadData, DeclaredDifferently, NotFound
from mqtool.message import COPIES, Message
from mqtool.topology import DEFAULT_EXCHANGE, Exchange, Queue

#: AMQP's limit for names, in bytes.
_LONGEST_NAME = 255
#: Prints a warning for the user.
Warn = Callable[[str], None]


@dataclass
class Destination:
    """The destination of due messages that do not specify an exchange or a routing key themselves.

    Attributes:
        to: the exchange or queue that the command declares.
        leads_to: the queue bound to an exchange of type x-delayed-message, if the command declares this queue.
        is_declared: True if the command declares `to`; with --exchange, `send` does not.
        is_classic: True if the queue is known to be a classic queue; None until look() is called.
    """

    to: Exchange | Queue = DEFAULT_EXCHANGE
    leads_to: Queue | None = None
    is_declared: bool = True
    is_classic: bool | None = None

    @property
    def queue(self) -> Queue | None:
        """The queue in which messages arrive, if known."""
        return self.to if isinstance(self.to, Queue) else self.leads_to

    def look(self, channel: Channel) -> None:
        """Set `is_classic`. Asks the broker on the first call only."""
        if self.is_classic is None:
            self.is_classic = self.queue is not None and _is_classic(channel, self.queue)

    def of(self, message: Message) -> Exchange | Queue:
        """Return a message's destination: its exchange or, for the default exchange, the queue of its routing key.

        Raises:
            BadData: the destination is a queue, and the message has a CC or BCC header.
        """
        ours = self.to.name if isinstance(self.to, Exchange) else ""
        exchange = ours if message.exchange is None else message.exchange
        if exchange:
            return self.to if exchange == ours else Exchange(exchange, durable=True)
        if not (message.properties.get("headers") or {}).keys().isdisjoint(COPIES):
            raise BadData(
                "a message to a queue cannot be delayed if it has a header CC or BCC",
                "send it to each queue separately",
            )
        ours = self.to.name if isinstance(self.to, Queue) else ""
        name = ours if message.routing_key is None else message.routing_key
        return self.to if isinstance(self.to, Queue) and ours == name else Queue(name)

    def may_lead_to_quorum_queue(self, target: Exchange | Queue) -> bool:
        """True if messages for a target may arrive in a quorum queue.

        False for a non-durable exchange, since its bindings, even to a quorum queue, do not survive a restart.
        """
        if target is not self.to:
            return True
        return target.durable if isinstance(target, Exchange) else not self.is_classic


def _is_classic(channel: Channel, queue: Queue) -> bool:
    """Declare a queue; return True if it is certainly a classic queue.

    AMQP has no query for a queue's type, but the broker rejects a declaration with another type.
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
    # A queue declared without a type has the default type of its virtual host.
    try:
        as_quorum = {**queue.arguments, "x-queue-type": "quorum"}
        asking.declare(queue._replace(arguments=as_quorum), remember=False, exactly=True)
    except DeclaredDifferently:
        return True
    return False


class DelayPlace(NamedTuple):
    """Where to publish a message, and with which properties. A routing key of None keeps the message's own.

    Attributes:
        queues: the wait queues of the message.
        milliseconds: how long it waits in them.
        since: when the youngest of them was first declared (time.monotonic()).
    """

    exchange: str
    routing_key: str | None
    properties: dict[str, Any]
    queues: tuple[str, ...] = ()
    milliseconds: int = 0
    since: float = 0.0


def expect(channel: Channel, target: Exchange | Queue) -> None:
    """Check that a destination exists. Uses a new channel, because the broker closes it if there is an error.

    Raises:
        NotFound: the destination does not exist.
    """
    asking = channel.connection.channel()
    administration.expect(asking, target)
    asking.close()


def is_there(channel: Channel, thing: Exchange | Queue) -> bool:
    """Return True if the broker has an exchange or a queue of this name."""
    try:
        expect(channel, thing)
    except NotFound:
        return False
    return True


def name_for(target: Exchange | Queue, suffix: str) -> str:
    """Return the name of a helper queue or exchange for a target, prefixed if the target's name starts with "amq."."""
    return derived_name(f"mqtool.{target.name}" if target.name.startswith("amq.") else target.name, suffix)


def derived_name(name: str, suffix: str) -> str:
    """Return NAME.SUFFIX. If that is longer than AMQP's 255 bytes, NAME is cut, and a checksum of it is added."""
    data = name.encode("utf-8", "surrogateescape")
    room = _LONGEST_NAME - len(suffix) - 1
    if len(data) <= room:
        return f"{name}.{suffix}"
    mark = blake2b(data, digest_size=8).hexdigest()
    return f"{data[: room - len(mark) - 1].decode('utf-8', 'ignore')}~{mark}.{suffix}"
