"""Exchanges: a type, and bindings to queues and to other exchanges."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from mqtool.routing.field_table import Table, Value
from mqtool.routing.tables import TABLES, RoutingTable, canonical

if TYPE_CHECKING:
    from mqtool.broker.embedded.queue import Queue

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


@dataclass(frozen=True, eq=False)
class Binding:
    """A rule at a source exchange that leads to a destination."""

    source: "Exchange"
    destination: "Queue | Exchange"
    routing_key: str
    arguments: Table

    @property
    def properties_key(self) -> str:
        """The name by which the management API tells apart bindings between the same two."""
        key = quote_plus(self.routing_key.encode(errors="surrogateescape")).replace("~", "%7E")
        if not self.arguments:
            return key or "~"
        return f"{key}~{_short_hash(canonical(self.arguments))}"


def _short_hash(data: bytes) -> str:
    from base64 import urlsafe_b64encode
    from hashlib import md5

    return urlsafe_b64encode(md5(data, usedforsecurity=False).digest()).rstrip(b"=").decode()


@dataclass(eq=False)
class Exchange:
    """An exchange of a virtual host.

    Attributes:
        kind: one of TYPES.
        key: the number by which the storage knows it; 0 while it is only in memory.
        alternate: the exchange that takes what no binding here matches, by name; None when there is none.
    """

    name: str
    kind: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Table = field(default_factory=dict)
    predeclared: bool = False
    key: int = 0

    def __post_init__(self) -> None:
        routed_as = str(self.arguments["x-delayed-type"]) if self.delayed else self.kind
        # Any: the tables are generic in what they hold; here queues and exchanges.
        self._table: RoutingTable[Any] = TABLES[routed_as]()
        self._bindings: dict[tuple[object, str, bytes], Binding] = {}
        alternate = self.arguments.get("alternate-exchange")
        self.alternate: str | None = alternate if isinstance(alternate, str) else None
        self.inbound: set[Binding] = set()
        self.published_in = 0

    def counts(self) -> dict[str, int]:
        """What was published to it so far."""
        return {"publish_in": self.published_in}

    @property
    def delayed(self) -> bool:
        """Whether it holds messages back for as long as their `x-delay` header says."""
        return self.kind == DELAYED

    @property
    def bindings(self) -> Iterator[Binding]:
        """The bindings of which this is the source, oldest first."""
        return iter(self._bindings.values())

    @property
    def in_use(self) -> bool:
        """Whether it has bindings."""
        return bool(self._bindings)

    def bind(self, destination: "Queue | Exchange", routing_key: str, arguments: Table) -> Binding | None:
        """Add a binding; None if there is one like it already."""
        identity = (destination, routing_key, canonical(arguments))
        if identity in self._bindings:
            return None
        binding = Binding(self, destination, routing_key, arguments)
        self._bindings[identity] = binding
        self._table.add(routing_key, arguments, destination)
        destination.inbound.add(binding)
        return binding

    def unbind(self, destination: "Queue | Exchange", routing_key: str, arguments: Table) -> Binding | None:
        """Take a binding away; None if there is none like it."""
        binding = self._bindings.pop((destination, routing_key, canonical(arguments)), None)
        if binding is not None:
            self._table.remove(routing_key, arguments, destination)
            destination.inbound.discard(binding)
        return binding

    def match(self, routing_key: str, headers: dict[str, Value]) -> Collection["Queue | Exchange"]:
        """The queues and exchanges that the bindings lead a message to, each once."""
        return self._table.match(routing_key, headers)
