"""`route`: explain where a message would go according to the broker's rules, without publishing it.

    exchange ── bindings ──> queues                         each queue once, however many paths lead to it
        │   └── bindings ──> exchanges ── and so on         each exchange once, so that cycles end
        └── nothing matched ──> alternate exchange

Bindings are matched with the routing tables of `mqtool.routing`, which are tested against RabbitMQ.
This module does no I/O. https://www.rabbitmq.com/docs/exchanges, /docs/e2e, /docs/ae, /docs/dlx
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mqtool.errors import BadData
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.near_misses import NearMiss, nearest
from mqtool.message import COPIES
from mqtool.routing import TABLES, FanoutTable, RoutingTable, delay_of
from mqtool.topology import DELAYED, Binding, Exchange

#: How an exchange of a type that sends each message to only one of its queues chooses it.
CHOOSING = {
    "x-local-random": "at random, among those on the node of the publisher",
    "x-random": "at random",
    "x-modulus-hash": "by a hash of the routing key",
    "x-consistent-hash": "by a hash, in proportion to the binding keys",
}
#: The routing tables of all types whose routes are known.
_TABLES: Mapping[str, Callable[[], RoutingTable[int]]] = {
    **TABLES,
    **dict.fromkeys(("x-recent-history", *CHOOSING), FanoutTable),
}


@dataclass(frozen=True, slots=True)
class Hop:
    """A step of a message's path. `binding` is None for steps from the default exchange or to an alternate exchange."""

    source: str
    destination: str
    to_exchange: bool
    binding: Binding | None = None


#: The hops from the exchange to which a message is published, to a queue.
Way = tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class DeadLetterRoutes:
    """The exchange and queues that a message reaches if a queue dead-letters it.

    Attributes:
        exchange, routing_key: those with which the dead letter is published.
        queues: the queues that receive the dead letter; None if the exchange does not exist. If None or empty, the
            message is lost.
        circular: True if further dead-lettering can bring the message back to this queue. RabbitMQ then drops the
            message, unless a consumer has rejected it on the way: https://www.rabbitmq.com/docs/dlx
        unknown: exchanges on the path whose type mqtool cannot route: other queues may receive the dead letter, too.
    """

    queue: str
    exchange: str
    routing_key: str
    queues: Sequence[str] | None
    circular: bool = False
    unknown: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class QueueRoute:
    """The queues that receive a message if it is published, and the explanation.

    Attributes:
        queues: each queue that receives the message, with all paths to the queue.
        near_misses: bindings of the exchanges on the path that did not match, the nearest first.
        dead_letters: for each queue with a dead-letter exchange, among `queues` and the queues reached from those.
        delay: how long an x-delayed-message exchange delays the message before routing it, in milliseconds.
        unknown: exchanges on the path whose type mqtool cannot route; only the broker can.
        one_of: exchanges on the path that choose one of their queues; `queues` contains all of these.
    """

    exchange: str
    routing_key: str
    headers: Mapping[str, Any]
    queues: Mapping[str, tuple[Way, ...]]
    near_misses: Sequence[NearMiss] = ()
    dead_letters: Sequence[DeadLetterRoutes] = ()
    delay: int = 0
    unknown: Sequence[str] = ()
    one_of: Sequence[str] = ()


@dataclass
class _Progress:
    """The state of a search for routes: the exchanges and queues that a message has reached, with the paths."""

    keys: list[str]
    headers: Mapping[str, Any]
    came: dict[str, Way] = field(default_factory=dict)
    queues: dict[str, list[Way]] = field(default_factory=dict)
    matched: set[Binding] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    one_of: list[str] = field(default_factory=list)


class Router:
    """Explains the routes of messages in one virtual host. Caches routing tables between messages."""

    def __init__(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self._tables: dict[str, RoutingTable[int]] = {}

    def route(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any] | None = None, *, near_misses: int = 5
    ) -> QueueRoute:
        """Explain where a message goes if it is published.

        Args:
            headers: the message's headers as Python values. CC and BCC, if they are lists, are additional routing keys.
            near_misses: the maximum number of near misses to report.

        Raises:
            KeyError: there is no such exchange.
            BadData: the value of the header x-delay is not valid.
        """
        found = self._follow(exchange, routing_key, headers or {})
        return QueueRoute(
            exchange,
            routing_key,
            found.headers,
            {queue: tuple(ways) for queue, ways in sorted(found.queues.items())},
            nearest(self._missed(found), found.keys, found.headers, near_misses) if near_misses else (),
            self._dead_letters(found),
            _delay(self.definitions.exchanges[exchange], found.headers),
            found.unknown,
            found.one_of,
        )

    def _follow(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> _Progress:
        definitions = self.definitions
        if exchange not in definitions.exchanges:
            raise KeyError(exchange)
        found = _Progress([routing_key, *_carbon_copies(headers)], headers)
        found.came[exchange] = ()
        todo = [exchange]
        for name in todo:  # the loop appends to it
            way, at = found.came[name], definitions.exchanges[name]
            hops = self._hops(at, found)
            for hop in hops:
                if not hop.to_exchange:
                    found.queues.setdefault(hop.destination, []).append((*way, hop))
                elif hop.destination not in found.came and hop.destination in definitions.exchanges:
                    found.came[hop.destination] = (*way, hop)
                    todo.append(hop.destination)
        return found

    def _hops(self, exchange: Exchange, found: _Progress) -> list[Hop]:
        """Return a hop for each destination to which one exchange routes a message."""
        name = exchange.name
        if not name:
            return [Hop("", key, False) for key in dict.fromkeys(found.keys) if key in self.definitions.queues]
        if (routed_as := routing_type(exchange)) not in _TABLES:
            found.unknown.append(name)
            return []
        bindings = self.definitions.bindings.get(name, ())
        if name not in self._tables:
            self._tables[name] = _TABLES[routed_as]()
            for number, binding in enumerate(bindings):
                self._tables[name].add(binding.routing_key, binding.arguments, number)
        numbers = {number for key in found.keys for number in self._tables[name].match(key, found.headers)}
        matched = [bindings[number] for number in sorted(numbers)]
        found.matched.update(matched)
        if routed_as in CHOOSING and len(matched) > 1:
            found.one_of.append(name)
        alternate = exchange.arguments.get("alternate-exchange")
        if not matched and isinstance(alternate, str):
            return [Hop(name, alternate, True)]
        return [Hop(name, binding.destination, binding.to_exchange, binding) for binding in matched]

    def _missed(self, found: _Progress) -> Iterator[tuple[str, Binding]]:
        """Yield (exchange type, binding) for each binding that did not match and whose destination was not reached."""
        for name in found.came:
            bindings: Iterable[Binding] = self.definitions.bindings.get(name, ())
            if not name and found.queues.keys().isdisjoint(found.keys):
                bindings = (Binding("", queue, queue) for queue in self.definitions.queues)
            routed_as = routing_type(self.definitions.exchanges[name])
            for binding in bindings if routed_as in TABLES else ():
                reached: Container[str] = found.came if binding.to_exchange else found.queues
                if binding not in found.matched and binding.destination not in reached:
                    yield routed_as, binding

    def _dead_letters(self, found: _Progress) -> list[DeadLetterRoutes]:
        """Follow a dead-lettered message from queue to queue. Visits each queue once per routing key."""
        dead: dict[tuple[str, str], DeadLetterRoutes] = {}
        todo = [(queue, found) for queue in sorted(found.queues)]
        for queue, message in todo:  # the loop appends to it
            arguments = self.definitions.queues[queue].arguments if queue in self.definitions.queues else {}
            exchange, key = arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key")
            headers = {name: value for name, value in message.headers.items() if name != "BCC"}
            if key is not None:  # this key replaces all of the message's keys
                headers.pop("CC", None)
            key = str(message.keys[0] if key is None else key)
            if not isinstance(exchange, str) or (queue, key) in dead:
                continue
            if exchange not in self.definitions.exchanges:
                dead[queue, key] = DeadLetterRoutes(queue, exchange, key, None)
                continue
            further = self._follow(exchange, key, headers)
            dead[queue, key] = DeadLetterRoutes(queue, exchange, key, sorted(further.queues), unknown=further.unknown)
            todo += [(after, further) for after in sorted(further.queues)]
        return [replace(death, circular=_comes_back(death.queue, dead.values())) for death in dead.values()]


def _comes_back(queue: str, dead: Iterable[DeadLetterRoutes]) -> bool:
    """True if dead-lettering alone can bring a message back to this queue."""
    leads: dict[str, set[str]] = {}
    for death in dead:
        leads.setdefault(death.queue, set()).update(death.queues or ())
    seen: set[str] = set()
    todo = [*leads.get(queue, ())]
    while todo:
        after = todo.pop()
        if after not in seen:
            seen.add(after)
            todo += leads.get(after, ())
    return queue in seen


def routing_type(exchange: Exchange) -> str:
    """Return the type that determines how an exchange routes: for x-delayed-message, its argument x-delayed-type."""
    return str(exchange.arguments.get("x-delayed-type")) if exchange.type == DELAYED else exchange.type


def _carbon_copies(headers: Mapping[str, Any]) -> list[str]:
    """Return the routing keys in the headers CC and BCC. https://www.rabbitmq.com/docs/sender-selected"""
    lists = [headers[name] for name in COPIES if isinstance(headers.get(name), list)]
    return [key for keys in lists for key in keys if isinstance(key, str)]


def _delay(exchange: Exchange, headers: Mapping[str, Any]) -> int:
    if exchange.type != DELAYED:
        return 0
    try:
        return delay_of(headers.get("x-delay"))
    except ValueError as error:
        raise BadData(str(error), "RabbitMQ closes the connection over it (541); x-delay:=300 is a number") from None
