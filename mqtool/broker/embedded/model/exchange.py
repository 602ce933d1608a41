"""Exchanges and their bindings, and the messages that x-delayed-message exchanges hold back."""

from base64 import urlsafe_b64encode
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol
from urllib.parse import quote_plus

from mqtool import routing
from mqtool.broker.embedded.model.amqp_errors import INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, MessageProperties
from mqtool.broker.embedded.model.applied_policies import NOTHING, Applied
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.clock import Clock, Timetable
from mqtool.broker.embedded.model.erlang_terms import hash_of_table
from mqtool.broker.embedded.model.footprint import of_binding, of_message
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.one_queue_tables import ConsistentHashTable, ModulusTable, RandomTable, hash_input
from mqtool.broker.embedded.model.profile import Profile
from mqtool.codecs.field_tables import Int32, Int64, Table, Value
from mqtool.routing import TABLES, FanoutTable, HeadersTable, RoutingTable, TopicTable, canonical

DELAYED, LOCAL_RANDOM = "x-delayed-message", "x-local-random"
#: Types of plugins that ship with RabbitMQ.
CONSISTENT_HASH, MODULUS_HASH, RANDOM = "x-consistent-hash", "x-modulus-hash", "x-random"
RECENT_HISTORY = "x-recent-history"
TYPES = (*TABLES, DELAYED, LOCAL_RANDOM, CONSISTENT_HASH, MODULUS_HASH, RANDOM, RECENT_HISTORY)
#: The argument with the number of messages that an x-recent-history exchange keeps, and its default.
HISTORY_LENGTH, _USUAL_LENGTH = "x-recent-history-length", 20

#: The predeclared exchanges of a virtual host (section 3.1.3 of AMQP 0-9-1), except TRACE_EXCHANGE, and their types.
PREDECLARED = {
    "": "direct",
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}

TRACE_EXCHANGE = "amq.rabbitmq.trace"


def types_of(profile: Profile) -> list[str]:
    """Return the exchange types that this version of RabbitMQ supports."""
    missing = {DELAYED: not profile.delayed_exchanges, LOCAL_RANDOM: not profile.local_random}
    return [kind for kind in TYPES if not missing.get(kind)]


#: The properties that a `hash-property` argument may name.
HASHED_PROPERTIES = ("correlation_id", "message_id", "timestamp")
_TABLES: Mapping[str, type] = {
    **TABLES,
    LOCAL_RANDOM: RandomTable,
    RANDOM: RandomTable,
    MODULUS_HASH: ModulusTable,
    CONSISTENT_HASH: ConsistentHashTable,
    RECENT_HISTORY: FanoutTable,
}

#: The words of a message's routing keys are compared at most this many times with words of topic bindings. Only long
#: keys, and thousands of bindings with `*` or another `#` after a `#`, need more. RabbitMQ has no such limit.
MOST_STEPS = 200_000


class BrokerDestination(Protocol):
    """The destination of a binding: a queue or an exchange.

    Attributes:
        destination_type: `queue` or `exchange`.
        inbound: the bindings to this destination.
    """

    destination_type: ClassVar[str]
    name: str
    inbound: "set[BrokerBinding]"

    @property
    def stored(self) -> bool:
        """True if the destination survives a restart."""


@dataclass(frozen=True, eq=False)
class BrokerBinding:
    """A binding from an exchange to a queue or another exchange."""

    source: "BrokerExchange"
    destination: BrokerDestination
    routing_key: str
    arguments: Table

    @property
    def stored(self) -> bool:
        """True if the binding survives a restart, that is, if its source and its destination both do."""
        return self.source.durable and self.destination.stored

    @property
    def footprint(self) -> int:
        """The memory that the binding takes, in bytes."""
        return of_binding(self.source.routed_as, self.routing_key, self.arguments)

    @cached_property
    def properties_key(self) -> str:
        """The `properties_key` of the management API: the routing key and a hash of the arguments, as in RabbitMQ."""
        key = quote_plus(self.routing_key.encode(errors="surrogateescape")).replace("~", "%7E")
        if not self.arguments:
            return key or "~"
        return f"{key}~{urlsafe_b64encode(hash_of_table(self.arguments)).rstrip(b'=').decode()}"


class ExchangeDeclaration(NamedTuple):
    """The properties of an exchange in a declaration. They may be invalid."""

    name: str
    kind: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: Table


@dataclass(eq=False)
class BrokerExchange:
    """An exchange of a virtual host.

    Attributes:
        kind: one of TYPES.
        key: the number of the exchange in the data directory; 0 if the exchange is not stored there.
        routed_as: the type that determines the routing: `kind`, or `x-delayed-type` for x-delayed-message.
        policy: the policies that apply.
        alternate: the name of the alternate exchange, if any, which gets the messages that no binding matches.
        history: the last messages of an x-recent-history exchange, which each new binding gets; None for other types.
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
        # A routing table can contain values of any type; here they are queues and exchanges.
        self._table: RoutingTable[Any] = _TABLES[self.routed_as]()
        if isinstance(self._table, TopicTable):
            self._table.most_steps = MOST_STEPS
        self._bindings: dict[tuple[object, str, bytes], BrokerBinding] = {}
        self.apply(NOTHING)
        self.inbound: set[BrokerBinding] = set()
        self.history: deque[BrokerMessage] | None = deque() if self.routed_as == RECENT_HISTORY else None
        self.published_in = 0

    def apply(self, policy: Applied) -> None:
        """Apply these policies in place of the previous ones."""
        self.policy = policy
        alternate = self.arguments.get("alternate-exchange", policy.definition.get("alternate-exchange"))
        self.alternate: str | None = alternate if isinstance(alternate, str) else None

    def follow(self, profile: Profile) -> None:
        """Make a headers exchange compare values in the way that this version of RabbitMQ does."""
        if isinstance(self._table, HeadersTable):
            self._table.strict_numbers = profile.strict_numbers

    def counts(self) -> dict[str, int]:
        """Return how many messages were published to the exchange, under the management API's name `publish_in`."""
        return {"publish_in": self.published_in}

    @property
    def stored(self) -> bool:
        return self.durable

    @property
    def delayed(self) -> bool:
        """True for an x-delayed-message exchange, which holds messages back for their `x-delay`."""
        return self.kind == DELAYED

    def remember(self, message: BrokerMessage, ledger: Ledger) -> None:
        """Add a message to the history, and count its memory, unless its publisher does not want that."""
        assert self.history is not None
        if message.headers.get("x-recent-history-no-store") is not True:
            ledger.hold_bytes(of_message(message))
            self.history.append(message)
            if len(self.history) > int(str(self.arguments.get(HISTORY_LENGTH, _USUAL_LENGTH))):
                ledger.hold_bytes(-of_message(self.history.popleft()))

    def forget_history(self, ledger: Ledger) -> None:
        """Stop counting the memory of the history, because the exchange is deleted."""
        ledger.hold_bytes(-sum(of_message(message) for message in self.history or ()))
        self.history = None

    @property
    def bindings(self) -> Iterator[BrokerBinding]:
        """The bindings from this exchange, oldest first."""
        return iter(self._bindings.values())

    @property
    def in_use(self) -> bool:
        """True if the exchange has any bindings to queues or other exchanges."""
        return bool(self._bindings)

    def find(self, destination: BrokerDestination, routing_key: str, arguments: Table) -> BrokerBinding | None:
        """Return the binding with this destination, key and arguments, or None."""
        return self._bindings.get((destination, routing_key, canonical(arguments)))

    def add(self, binding: BrokerBinding) -> None:
        """Add a binding, which must not exist yet."""
        self._bindings[binding.destination, binding.routing_key, canonical(binding.arguments)] = binding
        self._table.add(binding.routing_key, binding.arguments, binding.destination)
        binding.destination.inbound.add(binding)

    def remove(self, binding: BrokerBinding) -> bool:
        """Remove a binding; return False if it does not exist."""
        if self._bindings.pop((binding.destination, binding.routing_key, canonical(binding.arguments)), None) is None:
            return False
        self._table.remove(binding.routing_key, binding.arguments, binding.destination)
        binding.destination.inbound.discard(binding)
        return True

    def match(
        self, routing_keys: Collection[str], headers: dict[str, Value], properties: MessageProperties | None = None
    ) -> Collection[Any]:
        """Return the queues and exchanges that the exchange routes a message to, without duplicates.

        The properties are those that the arguments of an x-consistent-hash exchange may name. Some destinations may be
        missing if `steps` is above MOST_STEPS afterwards.
        """
        if self.routed_as == CONSISTENT_HASH:
            if (header := self.arguments.get("hash-header")) is not None:
                routing_keys = [hash_input(headers.get(str(header)))]
            elif (name := self.arguments.get("hash-property")) is not None:
                routing_keys = [hash_input(getattr(properties, str(name), None))]
        return self._table.match_any(routing_keys, headers)

    @property
    def steps(self) -> int:
        """How many comparisons with words the last match() took in a topic exchange; 0 in others."""
        return self._table.steps if isinstance(self._table, TopicTable) else 0


def delay_of(message: BrokerMessage) -> int:
    """Return the delay of a message in milliseconds. Raises ConnectionException 541 if `x-delay` is not a number."""
    try:
        return routing.delay_of(message.headers.get("x-delay"))
    except ValueError:  # the delayed message plugin fails in the same way
        raise ConnectionException(INTERNAL_ERROR) from None


def abs_delay_of(message: BrokerMessage) -> int:
    """Return the delay of a message that is held back, in milliseconds; `x-delay` may have been negated already."""
    value = message.headers.get("x-delay")
    return abs(value) if isinstance(value, int) else delay_of(message)


def negate_delay(message: BrokerMessage, milliseconds: int) -> BrokerMessage:
    """Return a copy of a message with its `x-delay` negated, as the delayed message plugin does on release."""
    kind = Int32 if milliseconds <= 2**31 else Int64
    return message.replace(headers={**message.headers, "x-delay": kind(-milliseconds)})


class DelayedMessages:
    """The messages that the x-delayed-message exchanges of a virtual host hold back.

    They are held by the name of their exchange, so they are released even if it was deleted and declared again.

    Args:
        release: called with the name of the exchange and a message when the message is due; publishes it in steps.
    """

    def __init__(self, clock: Clock, release: Callable[[str, BacklogEntry], Iterator[None]]) -> None:
        self._release = release
        self._waiting: Timetable[tuple[str, BacklogEntry]] = Timetable(clock, self._due)
        self._counts: Counter[str] = Counter()

    def count(self, exchange: str) -> int:
        """Return the number of messages held back for an exchange."""
        return self._counts[exchange]

    def hold(self, exchange: str, entry: BacklogEntry) -> None:
        """Hold a message back until `entry.expires_at`."""
        assert entry.expires_at is not None
        self._counts[exchange] += 1
        self._waiting.add(entry.expires_at, (exchange, entry))

    def first(self, count: int) -> list[tuple[str, BacklogEntry]]:
        """Return the `count` messages that are due first, each with the name of its exchange."""
        return self._waiting.first(count)

    def _due(self, item: tuple[str, BacklogEntry]) -> Iterator[None]:
        exchange, entry = item
        self._counts[exchange] -= 1
        if not self._counts[exchange]:
            del self._counts[exchange]  # it may have been deleted
        return self._release(exchange, entry)

    def clear(self) -> list[BacklogEntry]:
        """Remove all messages and return them."""
        self._counts.clear()
        return [entry for _, entry in self._waiting.clear()]


def save_exchange(ledger: Ledger, vhost: str, exchange: BrokerExchange) -> None:
    """Store a new durable exchange, and set `exchange.key`."""
    exchange.key = ledger.new_key()
    ledger.save(
        "exchange",
        (vhost, exchange.name),
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


def save_binding(ledger: Ledger, vhost: str, binding: BrokerBinding) -> None:
    """Store a new binding."""
    ledger.save(
        "binding",
        binding_names(vhost, binding),
        {
            "vhost": vhost,
            "source": binding.source.name,
            "destination": binding.destination.name,
            "to_queue": binding.destination.destination_type == "queue",
            "routing_key": binding.routing_key,
            "arguments": binding.arguments,
        },
    )


def binding_names(vhost: str, binding: BrokerBinding) -> tuple[str | bytes, ...]:
    """Return the names that identify a binding in the ledger."""
    destination = binding.destination
    names = (vhost, binding.source.name, destination.destination_type, destination.name, binding.routing_key)
    return (*names, canonical(binding.arguments))
