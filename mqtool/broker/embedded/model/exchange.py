"""Exchanges: a type, and links to queues and to other exchanges."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, ClassVar, NamedTuple, Protocol
from urllib.parse import quote_plus

from mqtool import routing
from mqtool.broker.embedded.model.amqp_errors import INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.amqp_message import Message
from mqtool.broker.embedded.model.applied_policies import NOTHING, Applied
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.clock import Alarm, Clock
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import Profile
from mqtool.codecs.field_tables import Int32, Int64, Table, Value
from mqtool.routing import TABLES, HeadersTable, RoutingTable, canonical

DELAYED = "x-delayed-message"
TYPES = (*TABLES, DELAYED)

PREDECLARED = {
    "": "direct",
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}
"""The exchanges that every virtual host has, with their types (section 3.1.3); RabbitMQ adds `amq.rabbitmq.trace`."""

TRACE_EXCHANGE = "amq.rabbitmq.trace"


def types_of(profile: Profile) -> list[str]:
    """Return the types of exchanges that this version of RabbitMQ can have."""
    return [kind for kind in TYPES if kind != DELAYED or profile.delayed_exchanges]


class Destination(Protocol):
    """What a binding leads to: a queue or an exchange.

    Attributes:
        destination_type: `queue` or `exchange`.
        inbound: the links that lead to it.
    """

    destination_type: ClassVar[str]
    name: str
    inbound: "set[Link]"

    @property
    def stored(self) -> bool:
        """Whether it survives a restart."""


@dataclass(frozen=True, eq=False)
class Link:
    """A binding in force: from an exchange to what it leads to."""

    source: "Exchange"
    destination: Destination
    routing_key: str
    arguments: Table

    @property
    def stored(self) -> bool:
        """Whether it survives a restart: both its ends must."""
        return self.source.durable and self.destination.stored

    @property
    def properties_key(self) -> str:
        """What the management API calls one of several bindings between the same two."""
        key = quote_plus(self.routing_key.encode(errors="surrogateescape")).replace("~", "%7E")
        if not self.arguments:
            return key or "~"
        return f"{key}~{_short_hash(canonical(self.arguments))}"


def _short_hash(data: bytes) -> str:
    from base64 import urlsafe_b64encode
    from hashlib import md5

    return urlsafe_b64encode(md5(data, usedforsecurity=False).digest()).rstrip(b"=").decode()


class ExchangeDeclaration(NamedTuple):
    """An exchange as somebody declares it, which may not be valid."""

    name: str
    kind: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: Table


@dataclass(eq=False)
class Exchange:
    """An exchange of a virtual host.

    Attributes:
        kind: one of TYPES.
        key: its number in the storage; 0 while it is only in memory.
        routed_as: its type, or the one inside an x-delayed-message exchange.
        policy: the policy that applies.
        alternate: the name of the exchange that takes what no binding here matches; None for none.
    """

    destination_type: ClassVar[str] = "exchange"

    name: str
    kind: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Table = field(default_factory=dict)
    predeclared: bool = False
    key: int = 0

    def __post_init__(self) -> None:
        self.routed_as = str(self.arguments["x-delayed-type"]) if self.delayed else self.kind
        # Any: the tables are generic in what they hold; here queues and exchanges.
        self._table: RoutingTable[Any] = TABLES[self.routed_as]()
        self._links: dict[tuple[object, str, bytes], Link] = {}
        self.apply(NOTHING)
        self.inbound: set[Link] = set()
        self.published_in = 0

    def apply(self, policy: Applied) -> None:
        """Have a policy apply, and none that did so before."""
        self.policy = policy
        alternate = self.arguments.get("alternate-exchange", policy.definition.get("alternate-exchange"))
        self.alternate: str | None = alternate if isinstance(alternate, str) else None

    def follow(self, profile: Profile) -> None:
        """Compare headers as this version of RabbitMQ does."""
        if isinstance(self._table, HeadersTable):
            self._table.strict_numbers = profile.strict_numbers

    def counts(self) -> dict[str, int]:
        """Return the number of messages published to it."""
        return {"publish_in": self.published_in}

    @property
    def stored(self) -> bool:
        """Whether it survives a restart."""
        return self.durable

    @property
    def delayed(self) -> bool:
        """Whether it delays messages by their `x-delay` header."""
        return self.kind == DELAYED

    @property
    def links(self) -> Iterator[Link]:
        """The bindings that start here, oldest first."""
        return iter(self._links.values())

    @property
    def in_use(self) -> bool:
        """Whether any binding starts here."""
        return bool(self._links)

    def find(self, destination: Destination, routing_key: str, arguments: Table) -> Link | None:
        """Return the binding with this key and these arguments; None if there is none."""
        return self._links.get((destination, routing_key, canonical(arguments)))

    def add(self, link: Link) -> None:
        """Add a binding unlike all others here."""
        self._links[link.destination, link.routing_key, canonical(link.arguments)] = link
        self._table.add(link.routing_key, link.arguments, link.destination)
        link.destination.inbound.add(link)

    def remove(self, link: Link) -> bool:
        """Remove a binding; False if it was not there."""
        if self._links.pop((link.destination, link.routing_key, canonical(link.arguments)), None) is None:
            return False
        self._table.remove(link.routing_key, link.arguments, link.destination)
        link.destination.inbound.discard(link)
        return True

    def match(self, routing_key: str, headers: dict[str, Value]) -> Collection[Any]:
        """Return the queues and exchanges that a message goes to, each once."""
        return self._table.match(routing_key, headers)


def delay_of(message: Message) -> int:
    """Return the number of milliseconds to hold a message back; 0 for none.

    Raises:
        ConnectionException: 541, as the plugin fails at what it cannot convert.
    """
    try:
        return routing.delay_of(message.headers.get("x-delay"))
    except ValueError:
        raise ConnectionException(INTERNAL_ERROR) from None


def over(message: Message, milliseconds: int) -> Message:
    """Return the message with a negative delay: it is over."""
    kind = Int32 if milliseconds <= 2**31 else Int64
    return message.replace(headers={**message.headers, "x-delay": kind(-milliseconds)})


class Delayed:
    """The delayed messages of a virtual host, in order of their time; one timer, for the first.

    They are for whatever exchange has the name when they are due.

    Args:
        release: is given the name of the exchange, and the message.
    """

    def __init__(self, clock: Clock, release: Callable[[str, Entry], None]) -> None:
        self._release = release
        self._heap: list[tuple[int, int, str, Entry]] = []
        self._clock = clock
        self._alarm = Alarm(clock, self._due)
        self._turn = 0
        self._counts: Counter[str] = Counter()

    def count(self, exchange: str) -> int:
        """Return the number of messages that wait for an exchange."""
        return self._counts[exchange]

    def hold(self, exchange: str, entry: Entry) -> None:
        """Hold a message until its `expires_at`; of two with the same time the first to come goes first."""
        assert entry.expires_at is not None
        self._turn += 1
        self._counts[exchange] += 1
        heappush(self._heap, (entry.expires_at, self._turn, exchange, entry))
        self._alarm.set_by(entry.expires_at)

    def _due(self) -> None:
        now = self._clock.now()
        while self._heap:
            due, _, exchange, entry = self._heap[0]
            if due > now:
                self._alarm.set(due)
                return
            heappop(self._heap)
            self._counts[exchange] -= 1
            self._release(exchange, entry)

    def clear(self) -> list[Entry]:
        """Drop all messages without releasing them."""
        entries = [entry for _, _, _, entry in self._heap]
        self._heap.clear()
        self._counts.clear()
        self._alarm.cancel()
        return entries


def save_exchange(ledger: Ledger, vhost: str, exchange: Exchange) -> None:
    """Store a new durable exchange; gives it its key."""
    exchange.key = ledger.new_key()
    ledger.save(
        "exchange",
        f"{vhost}\0{exchange.name}",
        {
            "vhost": vhost,
            "name": exchange.name,
            "kind": exchange.kind,
            "auto_delete": exchange.auto_delete,
            "internal": exchange.internal,
            "arguments": exchange.arguments,
            "key": exchange.key,
        },
    )


def forget_exchange(ledger: Ledger, vhost: str, exchange: Exchange) -> None:
    """Delete a durable exchange."""
    ledger.forget("exchange", f"{vhost}\0{exchange.name}")


def save_link(ledger: Ledger, vhost: str, link: Link) -> None:
    """Store a new binding between durable things."""
    ledger.save(
        "binding",
        _link_key(vhost, link),
        {
            "vhost": vhost,
            "source": link.source.name,
            "destination": link.destination.name,
            "to_queue": link.destination.destination_type == "queue",
            "routing_key": link.routing_key,
            "arguments": link.arguments,
        },
    )


def forget_link(ledger: Ledger, vhost: str, link: Link) -> None:
    """Delete a binding between durable things."""
    ledger.forget("binding", _link_key(vhost, link))


def _link_key(vhost: str, link: Link) -> str:
    names = (vhost, link.source.name, link.destination.destination_type, link.destination.name, link.routing_key)
    return "\0".join((*names, canonical(link.arguments).hex()))
