"""`topology`: read a virtual host's publishers, exchanges, bindings, queues and consumers from the management API.

    publishers ──> exchange ── keys ──> queue ──> consumers
                       └────── keys ──> exchange

A broker may have tens of thousands of bindings, too many to show. So a Wiring object contains the first few bindings of
each exchange, and the number of remaining ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mqtool import management
from mqtool.errors import NotFound
from mqtool.inspection import definitions
from mqtool.management import Management, exchange_path
from mqtool.management.api_client import Json
from mqtool.topology import Binding, Exchange

#: The maximum number of exchanges whose publishers are looked up. Each takes one request.
_ASKED = 100
_KEYS = 5

_COUNTERS = ("message_stats.publish", "message_stats.publish_details.rate",
             "message_stats.deliver_get", "message_stats.deliver_get_details.rate",
             "message_stats.ack", "message_stats.deliver_no_ack", "message_stats.get_no_ack")  # fmt: skip
QUEUE_COLUMNS = ("name", "type", "arguments", "policy", "messages_ready", "messages_unacknowledged")
CONSUMER_COLUMNS = (
    *("consumer_tag", "queue.name", "prefetch_count", "ack_required"),
    *("channel_details.name", "channel_details.connection_name", "channel_details.user"),
)


@dataclass(frozen=True, slots=True)
class Counter:
    """One of the broker's counters, and its rate per second."""

    count: int = 0
    rate: float = 0.0


@dataclass(slots=True)
class WiredLink:
    """The bindings from one exchange to one destination: the first few bindings, and the number of the others."""

    destination: str
    to_exchange: bool
    bindings: list[Binding] = field(default_factory=list)
    more: int = 0


@dataclass(frozen=True, slots=True)
class WiredPublisher:
    """A channel that publishes. `channel` is its name."""

    channel: str
    user: str
    published: Counter


@dataclass(frozen=True, slots=True)
class WiredConsumer:
    """A consumer, with its user and the name of its channel ("" for an AMQP 1.0 link or a stream subscription)."""

    tag: str
    channel: str
    user: str
    prefetch: int
    acknowledges: bool
    connection: str = ""


@dataclass(slots=True)
class WiredNode:
    """An exchange with the destinations to show (`links`); `more` is the number of other bindings."""

    exchange: Exchange
    published: Counter = Counter()
    publishers: list[WiredPublisher] = field(default_factory=list)
    links: dict[tuple[str, bool], WiredLink] = field(default_factory=dict)
    more: int = 0

    def add(self, binding: Binding, keep: int | None) -> bool:
        """Add a binding, or only count it if there are `keep` destinations; return True if it was added."""
        place = (binding.destination, binding.to_exchange)
        link = self.links.get(place)
        if link is None:
            if keep is not None and len(self.links) >= keep:
                self.more += 1
                return False
            link = self.links[place] = WiredLink(*place)
        if keep is not None and len(link.bindings) >= _KEYS:
            link.more += 1
        else:
            link.bindings.append(binding)
        return True


@dataclass(slots=True)
class QueueState:
    """A queue with its depth, consumers and, if requested, rates and counts.

    `acknowledged` is the number of deliveries that consumers have acknowledged, and `automatic` of those that needed no
    acknowledgement.
    """

    name: str
    type: str
    ready: int
    unacked: int
    arguments: Mapping[str, Any]
    consumers: int = 0
    published: Counter = Counter()
    delivered: Counter = Counter()
    acknowledged: int = 0
    automatic: int = 0


@dataclass(slots=True)
class Wiring:
    """A virtual host as a graph.

    Attributes:
        exchanges: exchanges by name, the default exchange last; predeclared exchanges only if they are used.
        queues: the queues to which one of the exchanges routes, by name.
        consumers: the first few consumers of each queue, by the queue's name.
        publishers: publishing channels whose exchange is not known.
    """

    vhost: str
    exchanges: dict[str, WiredNode]
    queues: dict[str, QueueState] = field(default_factory=dict)
    consumers: dict[str, list[WiredConsumer]] = field(default_factory=dict)
    publishers: list[WiredPublisher] = field(default_factory=list)


def look(
    api: Management, vhost: str, *, keep: int | None = None, only: Collection[str] = (), rates: bool = False
) -> Wiring:
    """Read a virtual host's wiring from the management API.

    Args:
        keep: the maximum number of destinations of each exchange, and of consumers of each queue; None for all.
        only: include only these exchanges, and the exchanges and queues to which they route; empty for all. (If all
            are included, the default exchange is shown with only the queues that are bound to no other exchange.)
        rates: include the queues' rates, which take the broker longest to compute.
    """
    exchanges = exchanges_of(api, vhost, only)
    wiring = Wiring(
        vhost, {name: WiredNode(exchange) for name, exchange in sorted(exchanges.items(), key=_default_last)}
    )
    bound: set[str] = set()
    for binding in definitions.bindings(api, vhost, *(exchanges if only else ())):
        if binding.source in exchanges:  # else the exchange was declared after the list was read
            wiring.exchanges[binding.source].add(binding, keep)
        if not binding.to_exchange:
            bound.add(binding.destination)
    links = [link for node in wiring.exchanges.values() for link in node.links.values()]
    shown = {link.destination for link in links if not link.to_exchange}
    default = None if only else wiring.exchanges.get("")
    arguments_of = definitions.queue_arguments(api, vhost)
    columns = (*QUEUE_COLUMNS, *_COUNTERS) if rates else QUEUE_COLUMNS
    for view in management.queues(api, vhost, columns) if rates else management.counted_queues(api, vhost, columns):
        name = view["name"]
        if default is not None and name not in bound and default.add(Binding("", name, name), keep):
            shown.add(name)
        if name in shown:
            wiring.queues[name] = queue_of(view, arguments_of(view))
    for consumer in management.consumers(api, vhost, CONSUMER_COLUMNS):
        queue = wiring.queues.get(consumer["queue"]["name"])
        if queue is not None:
            queue.consumers += 1
            if keep is None or queue.consumers <= keep:
                wiring.consumers.setdefault(queue.name, []).append(consumer_of(consumer))
    add_publishers(api, wiring)
    wiring.exchanges = {name: node for name, node in wiring.exchanges.items() if name in only or _is_used(node)}
    return wiring


def _default_last(item: tuple[str, Exchange]) -> tuple[bool, str]:
    return not item[0], item[0]


def exchanges_of(api: Management, vhost: str, only: Collection[str]) -> dict[str, Exchange]:
    """Return the exchanges named in `only`, and those to which they route; if `only` is empty, all exchanges."""
    exchanges = {exchange.name: exchange for exchange in definitions.exchanges(api, vhost)}
    if not only:
        return exchanges
    found: dict[str, Exchange] = {}
    todo = list(only)
    while todo:
        name = todo.pop()
        if name in only and name not in exchanges:
            raise NotFound(f"exchange {name!r} does not exist")
        if name in exchanges and name not in found:
            found[name] = exchanges[name]
            todo += {binding.destination for binding in definitions.bindings(api, vhost, name) if binding.to_exchange}
            if isinstance(alternate := exchanges[name].arguments.get("alternate-exchange"), str):
                todo.append(alternate)
    return found


def _is_used(node: WiredNode) -> bool:
    """False if the exchange is predeclared, and nothing is bound to it or published to it."""
    predeclared = not node.exchange.name or node.exchange.name.startswith("amq.")
    return not predeclared or bool(node.links or node.publishers or node.published.count)


def add_publishers(api: Management, wiring: Wiring) -> None:
    """Add the message counts and the publishers of each exchange."""
    columns = ("name", "message_stats.publish_in", "message_stats.publish_in_details.rate")
    for view in management.exchanges(api, wiring.vhost, columns):
        if view["name"] in wiring.exchanges:
            wiring.exchanges[view["name"]].published = _counter(view.get("message_stats"), "publish_in")
    busy = [name for name, node in wiring.exchanges.items() if node.published.count][:_ASKED]
    told = set()
    for name in busy:
        for entry in api.get(exchange_path(wiring.vhost, name)).get("incoming") or ():
            if not (details := entry["channel_details"]):  # an empty list, if the channel has been closed meanwhile
                continue
            told.add(details["name"])
            publisher = WiredPublisher(
                details["name"], details.get("user", ""), _counter(entry.get("stats"), "publish")
            )
            wiring.exchanges[name].publishers.append(publisher)
    per_channel = ("name", "user", "message_stats.publish", "message_stats.publish_details.rate")
    for channel in management.channels(api, wiring.vhost, per_channel) if busy else ():
        published = _counter(channel.get("message_stats"), "publish")
        if published.count and channel["name"] not in told:
            wiring.publishers.append(WiredPublisher(channel["name"], channel["user"], published))


def _counter(stats: Mapping[str, Any] | None, name: str) -> Counter:
    stats = stats or {}
    return Counter(stats.get(name) or 0, (stats.get(f"{name}_details") or {}).get("rate") or 0.0)


def queue_of(view: Json, arguments: Mapping[str, Any]) -> QueueState:
    """Convert the management API's description of a queue. `arguments` includes those that policies add."""
    stats = view.get("message_stats")
    ready, unacked = view.get("messages_ready", 0), view.get("messages_unacknowledged", 0)
    published, delivered = _counter(stats, "publish"), _counter(stats, "deliver_get")
    acknowledged, *automatic = (_counter(stats, name).count for name in ("ack", "deliver_no_ack", "get_no_ack"))
    counts = published, delivered, acknowledged, sum(automatic)
    return QueueState(view["name"], view.get("type", ""), ready, unacked, arguments, 0, *counts)


def consumer_of(view: Json) -> WiredConsumer:
    """Convert the management API's description of a consumer."""
    details = view.get("channel_details") or {}
    channel, user = details.get("name", ""), details.get("user", "")
    acknowledges, connection = view.get("ack_required", True), details.get("connection_name", "")
    return WiredConsumer(view["consumer_tag"], channel, user, view.get("prefetch_count", 0), acknowledges, connection)
