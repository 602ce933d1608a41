"""The checks of `doctor`: problems with queues, from two snapshots, and exchanges that route nowhere or in cycles."""

from collections.abc import Callable, Collection, Container, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple, TypeVar

from mqtool import management
from mqtool.address import hide_passwords
from mqtool.delays import is_wait_queue
from mqtool.errors import AccessRefused, NotFound
from mqtool.inspection import upgrade
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.findings import Finding
from mqtool.inspection.routes import Router
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.management.overflow import holds_dead_letters, rejects_beyond
from mqtool.spelling import counted, pasteable
from mqtool.topology import Binding, Exchange, Queue

Node = TypeVar("Node", bound=Hashable)

_EXCHANGE_COLUMNS = ("name", "vhost", "type", "arguments", "policy", "message_stats.publish_in")
#: The maximum number of expired messages' paths to follow, which limits the search if there are very many bindings.
_WAYS = 100_000
#: The maximum number of virtual hosts to name.
_NAMED = 3
#: Prefix of the names of queues that `bench` declares.
_OF_BENCH = "mqtool-bench-"
#: In the names of queues that hold a queue's messages while its settings are changed.
_OF_CONVERSION = ".mqtool-convert"
_BINDING_COLUMNS = ("source", "vhost", "destination", "destination_type", "routing_key", "arguments")


def _how_to_declare(exchange: str, vhost: str) -> str:
    return f"{pasteable('exchange declare', exchange, 'fanout', vhost=vhost)}, and bind a queue to it"


@dataclass
class Paths:
    """The exchanges, bindings and queues of one virtual host that can form dead ends and cycles.

    Attributes:
        exchanges: all exchanges, as the management API describes them, by name.
        policies: the definition of each policy, by the policy's name.
        expiring: queues with a message TTL and a dead-letter exchange, whose messages leave even without a consumer.
        bound: the names of exchanges that have bindings.
        bindings: bindings between exchanges, and those of the dead-letter exchanges of expiring queues.
    """

    vhost: str
    exchanges: dict[str, Json] = field(default_factory=dict)
    policies: dict[str, Json] = field(default_factory=dict)
    expiring: list[Queue] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    bindings: list[Binding] = field(default_factory=list)

    def findings(self) -> Iterator[Finding]:
        yield from self._published_to_nobody()
        yield from self._alternates()
        yield from self._circles_of_exchanges()
        yield from self._circles_of_queues()

    def _alternate(self, exchange: Json) -> str | None:
        set_by_policy = self.policies.get(exchange.get("policy") or "", {})
        name = {**set_by_policy, **(exchange.get("arguments") or {})}.get("alternate-exchange")
        return name if isinstance(name, str) else None

    def _published_to_nobody(self) -> Iterator[Finding]:
        for name, exchange in self.exchanges.items():
            published = (exchange.get("message_stats") or {}).get("publish_in")
            # The user may not see the policy, which may set an alternate exchange.
            hidden = bool(exchange.get("policy")) and exchange["policy"] not in self.policies
            if name and published and name not in self.bound and not hidden and self._alternate(exchange) is None:
                what = f"has no bindings: messages published to it now are lost ({published:,} published so far)"
                hint = "bind a queue to it, or publish with --mandatory to see it"
                yield Finding.of("exchange", exchange, "leads-nowhere", what, hint)

    def _alternates(self) -> Iterator[Finding]:
        for exchange in self.exchanges.values():
            alternate = self._alternate(exchange)
            if not alternate:
                continue
            to = self.exchanges.get(alternate)
            if to is None:
                what, hint = "does not exist", _how_to_declare(alternate, self.vhost)
            elif alternate not in self.bound and self._alternate(to) is None:
                what, hint = "has no bindings", pasteable("exchange bind", alternate, "QUEUE", vhost=self.vhost)
            else:
                continue
            what = f"has the alternate exchange {alternate!r}, which {what}: what it cannot route is lost"
            yield Finding.of("exchange", exchange, "alternate-exchange", what, hint)

    def _circles_of_exchanges(self) -> Iterator[Finding]:
        leads: dict[str, list[str]] = {}
        for binding in self.bindings:
            if binding.to_exchange:
                leads.setdefault(binding.source, []).append(binding.destination)
        seen: set[frozenset[str]] = set()
        for circle in _circles(leads):
            if frozenset(circle) not in seen:  # two bindings may have the same destination
                seen.add(frozenset(circle))
                way = " → ".join(map(repr, circle))
                what = f"is bound to itself in a circle, {way}: what one receives may reach the queues of all"
                hint = f"{pasteable('exchange unbind', *circle[:2], 'KEY', vhost=self.vhost)}, unless it is meant"
                yield Finding("exchange-cycle", f"exchange {circle[0]!r}", what, hint, self.vhost)

    def _circles_of_queues(self) -> Iterator[Finding]:
        seen: set[frozenset[str]] = set()
        for circle in _circles(self._expiries()):
            names = sorted({place.queue for place in circle})
            if frozenset(names) not in seen:  # messages with other keys may take the same path
                seen.add(frozenset(names))
                through = "" if len(names) == 1 else f" by way of {', '.join(map(repr, names[1:]))}"
                what = f"gets its expired messages back{through}: RabbitMQ drops those that nobody rejected on the way"
                hint = "let one of the queues on the way dead-letter to another exchange, or have no message TTL"
                yield Finding("dead-letter-cycle", f"queue {names[0]!r}", what, hint, self.vhost)

    def _expiries(self) -> dict["_Place", list["_Place"]]:
        """Return the queues that expired messages go to, for each queue and each routing key of its messages."""
        # Alternate exchanges are left out: not all of their bindings are known.
        exchanges = [
            Exchange(name, view["type"], arguments={**(view.get("arguments") or {}), "alternate-exchange": None})
            for name, view in self.exchanges.items()
        ]
        router = Router(Definitions.of(exchanges, (), self.bindings))

        @cache
        def reached(exchange: str, key: str) -> Collection[str]:
            if not exchange:
                return [key]
            return router.route(exchange, key, near_misses=0).queues if exchange in self.exchanges else ()

        queues = {queue.name: queue.arguments for queue in self.expiring}
        todo = [_Place(name, name) for name in queues]
        todo += [_Place(bound.destination, bound.routing_key) for bound in self.bindings if not bound.to_exchange]
        leads: dict[_Place, list[_Place]] = {}
        ways = 0
        while todo and ways < _WAYS:
            place = todo.pop()
            if place.queue in queues and place not in leads:
                arguments = queues[place.queue]
                key = str(arguments.get("x-dead-letter-routing-key", place.key))
                to = reached(str(arguments["x-dead-letter-exchange"]), key)
                leads[place] = [_Place(name, key) for name in to if name in queues]
                todo += leads[place]
                ways += len(leads[place])
        return leads


class _Place(NamedTuple):
    """A queue, and the routing key of a message in it."""

    queue: str
    key: str


def _circles(leads: Mapping[Node, Iterable[Node]]) -> Iterator[list[Node]]:
    """Yield cycles in a graph, each as a list of nodes that starts and ends with the same node.

    Finds at least one cycle in each group of nodes that can reach each other; finding all could take exponential time.
    """
    done: set[Node] = set()
    closing: set[Node] = set()
    for start in leads:
        path = {} if start in done else {start: iter(leads[start])}
        while path:
            node, rest = next(reversed(path.items()))
            for step in rest:
                if step in path and node not in closing:
                    closing.add(node)
                    nodes = list(path)
                    yield [*nodes[nodes.index(step) :], step]
                elif step not in path and step not in done:
                    path[step] = iter(leads.get(step, ()))
                    break
            else:
                done.add(node)
                del path[node]


def expires(queue: Json) -> bool:
    """True if the queue dead-letters messages that expire: it has a message TTL and a dead-letter exchange."""
    return {"x-dead-letter-exchange", "x-message-ttl"} <= management.effective_arguments(queue).keys()


def dead_end_findings(
    api: Management, vhost: str | None, policies: Iterable[Json], expiring: Iterable[Json]
) -> Iterator[Finding]:
    """Find dead ends and cycles in one virtual host, or in all if `vhost` is None.

    Args:
        policies: the policies that the user may list.
        expiring: the queues for which expires() is true.
    """
    of_vhost: dict[str, Paths] = {}
    for exchange in management.exchanges(api, vhost, _EXCHANGE_COLUMNS):
        of_vhost.setdefault(exchange["vhost"], Paths(exchange["vhost"])).exchanges[exchange["name"]] = exchange
    for policy in policies:
        if policy["vhost"] in of_vhost:
            of_vhost[policy["vhost"]].policies[policy["name"]] = policy.get("definition") or {}
    wanted: set[tuple[str, str]] = set()
    for queue in expiring:
        if queue["vhost"] in of_vhost:
            arguments = management.effective_arguments(queue)
            of_vhost[queue["vhost"]].expiring.append(Queue(queue["name"], arguments=arguments))
            wanted.add((queue["vhost"], arguments["x-dead-letter-exchange"]))
    for view in management.bindings(api, vhost, _BINDING_COLUMNS):
        paths, source = of_vhost.get(view["vhost"]), view["source"]
        if not source or paths is None:
            continue
        paths.bound.add(source)
        to_exchange = view["destination_type"] == "exchange"
        if to_exchange or (view["vhost"], source) in wanted:
            arguments = view.get("arguments") or {}
            paths.bindings.append(Binding(source, view["destination"], view["routing_key"], arguments, to_exchange))
    for paths in of_vhost.values():
        yield from paths.findings()


#: The columns that the queue checks need.
COLUMNS = (
    "name", "vhost", "type", "durable", "exclusive", "arguments", "effective_policy_definition", "consumers",
    "messages", "messages_ready", "messages_unacknowledged", "message_bytes", "message_stats",
)  # fmt: skip
#: Statistics are at most this many seconds old.
_LATE = 10.0


def has_no_consumer(queue: Json) -> bool:
    """True if a queue has messages and no consumer, and is not a stream, a dead-letter queue or a wait queue."""
    if queue.get("type") == "stream" or queue["name"].endswith(".dlq"):
        return False
    return not expires(queue) and not queue.get("consumers") and bool(queue.get("messages_ready"))


def forgets_to_acknowledge(queue: Json, earlier: Json | None = None) -> bool:
    """True if the queue's consumers seem never to acknowledge.

    Args:
        earlier: a snapshot of the queue from a few seconds ago. Without it, any acknowledgement makes this False.
    """
    unacked, acks = queue.get("messages_unacknowledged") or 0, _count(queue, "ack")
    # One unacknowledged delivery per consumer may be a long task.
    has_many = unacked > (queue.get("consumers") or 0)
    if earlier is None:
        return has_many and acks == 0
    grows = unacked > (earlier.get("messages_unacknowledged") or 0)
    return acks == _count(earlier, "ack") and unacked > 0 and (has_many or grows)


def stands_still(queue: Json, earlier: Json | None = None) -> bool:
    """True if messages wait, and each consumer has a delivery but neither acknowledges it nor receives another.

    The cause is a long task, or a consumer with a prefetch limit that forgets to acknowledge; the two look the same.

    Args:
        earlier: a snapshot of the queue from a few seconds ago. Without it, any acknowledgement makes this False.
    """
    consumers = queue.get("consumers") or 0
    if (queue.get("arguments") or {}).get("x-single-active-consumer"):
        consumers = min(consumers, 1)
    if queue.get("type") == "stream" or not _is_full(queue, consumers) or _moves(queue):
        return False
    if earlier is None:
        return _count(queue, "ack") == 0
    if any(_count(queue, name) != _count(earlier, name) for name in ("ack", "deliver_get")):
        return False
    # messages_ready is updated more often than the other counts.
    shorter = queue["messages_ready"] < (earlier.get("messages_ready") or 0)
    return not shorter and _is_full(earlier, consumers) and not _moves(earlier)


def _is_full(queue: Json, consumers: int) -> bool:
    """True if messages wait, and there is at least one unacknowledged message per consumer."""
    return bool(queue.get("messages_ready")) and (queue.get("messages_unacknowledged") or 0) >= consumers > 0


def _moves(queue: Json) -> bool:
    """True if the queue's statistics, updated every five seconds, show a recent delivery or acknowledgement."""
    return any(rate(queue, name) > 0 for name in ("ack", "deliver_get"))


def rate(view: Json, name: str) -> float:
    """Return the rate per second of one of a queue's or broker's counters."""
    return float(((view.get("message_stats") or {}).get(f"{name}_details") or {}).get("rate") or 0.0)


def dropped(queue: Json) -> int:
    """Return the number of messages that were published to a queue and not acknowledged, but are no longer in it."""
    settled = sum(_count(queue, name) for name in ("ack", "deliver_no_ack", "get_no_ack"))
    return max(0, _count(queue, "publish") - settled - (queue.get("messages") or 0))


def _count(queue: Json, name: str) -> int:
    return int((queue.get("message_stats") or {}).get(name) or 0)


def findings(api: Management, vhost: str | None, wait: Callable[[], object]) -> Iterator[Finding]:
    """Find the problems in one virtual host, or in all. Calls `wait` between the two snapshots of the queues."""
    before = {(queue["vhost"], queue["name"]): queue for queue in management.queues(api, vhost, COLUMNS)}
    wait()
    names = {(each["vhost"], each["name"]) for each in management.exchanges(api, vhost, ("vhost", "name"))}
    queues = [*management.queues(api, vhost, COLUMNS)]
    present = {(queue["vhost"], queue["name"]) for queue in queues}
    expiring: list[Json] = []
    is_transient_accepted = upgrade.running(api) >= upgrade.ACCEPTS_TRANSIENT
    for queue in queues:
        yield from _without_dead_letter_queue(queue, present)
        yield from surplus(queue)
        yield from _of_queue(queue, before.get((queue["vhost"], queue["name"])), names)
        if not is_transient_accepted:
            yield from upgrade.transient(queue)
        if expires(queue):
            expiring.append(queue)
    policies = upgrade.visible_policies(api, vhost)
    yield from dead_end_findings(api, vhost, policies, expiring)
    for policy in policies:
        yield from upgrade.mirrored(policy)


def _without_dead_letter_queue(queue: Json, queues: Collection[tuple[str, str]]) -> Iterator[Finding]:
    """Find a queue that dead-letters through the default exchange to a queue that does not exist.

    Args:
        queues: the virtual host and the name of each queue.
    """
    arguments = management.effective_arguments(queue)
    key = arguments.get("x-dead-letter-routing-key")
    if arguments.get("x-dead-letter-exchange") == "" and isinstance(key, str) and (queue["vhost"], key) not in queues:
        what = f"dead-letters to the queue {key!r}, which does not exist: {_fate(queue)}"
        hint = pasteable("queue declare", key, vhost=queue["vhost"])
        yield Finding.of("queue", queue, "dead-letter-exchange", what, hint)


def _fate(queue: Json) -> str:
    return "it holds its dead letters" if holds_dead_letters(queue) else "its dead letters are lost"


def surplus(queue: Json) -> Iterator[Finding]:
    """Find a classic queue that rejects messages and has more than its limit: RabbitMQ applies it at a restart."""
    if queue.get("type") != "classic" or not queue.get("durable") or queue.get("exclusive"):
        return
    arguments, policies = queue.get("arguments") or {}, [queue.get("effective_policy_definition") or {}]
    deed = "drops the surplus when it restarts"
    if "x-dead-letter-exchange" in management.effective_arguments(queue):
        deed = "dead-letters the surplus when it restarts, but quorum queues may not get it"
    for name, held, unit in (("max-length", "messages", "message"), ("max-length-bytes", "message_bytes", "byte")):
        # Unacknowledged messages do not count towards the limit, but are ready again after a restart.
        limit, there = rejects_beyond("classic", arguments, policies, name), queue.get(held) or 0
        if limit is not None and there > limit:
            what = f"has {counted(there, unit)}, and {name} is {limit:,}: RabbitMQ {deed}"
            hint = "before a restart, receive or move the surplus, or raise the limit"
            yield Finding.of("queue", queue, "surplus", what, hint)
            return


def _of_queue(queue: Json, earlier: Json | None, exchanges: set[tuple[str, str]]) -> Iterator[Finding]:
    finding = partial(Finding.of, "queue", queue)
    if queue["name"].startswith(_OF_BENCH) and not queue.get("consumers"):
        what = "was left behind by a bench that was killed, unless one is running"
        yield finding("left-over", what, pasteable("queue delete", queue["name"], vhost=queue["vhost"]))
        return
    name, is_holding, _ = queue["name"].partition(_OF_CONVERSION)
    if is_holding and has_no_consumer(queue):
        what = f"has {counted(queue['messages_ready'])} of {name!r}, whose conversion has not ended"
        yield finding("left-over", what, "continue it with 'mqtool queue convert --resume', or undo it with --undo")
        return
    if has_no_consumer(queue):
        what = f"has {counted(queue['messages_ready'])} and no consumer"
        yield finding("no-consumer", what, "start a consumer, or delete the queue if nobody needs it")
    if earlier is not None and forgets_to_acknowledge(queue, earlier):
        what = f"has {counted(queue['messages_unacknowledged'])} unacknowledged, and no consumer acknowledges any"
        hint = "does a consumer forget basic.ack? It gets no more, and all of these again when it restarts"
        yield finding("no-acks", what, hint)
    elif earlier is not None and stands_still(queue, earlier):
        waiting = counted(queue["messages_ready"])
        what = f"has {waiting} waiting, and nothing moves: a long task, or a forgotten basic.ack"
        hint = "look at its consumers: each holds a delivery, and none acknowledged anything between the two samples"
        yield finding("stands-still", what, hint)
    arguments = management.effective_arguments(queue)
    if queue.get("type") == "stream" and arguments.keys().isdisjoint({"x-max-length-bytes", "x-max-age"}):
        what = "is a stream without max-length-bytes and max-age: it keeps all until the disk is full"
        yield finding("stream-limit", what, "set a policy: mqtool policy set --help")
    exchange = arguments.get("x-dead-letter-exchange")
    if exchange is not None and (queue["vhost"], exchange) not in exchanges:
        what = f"has the dead-letter exchange {exchange!r}, which does not exist: {_fate(queue)}"
        yield finding("dead-letter-exchange", what, _how_to_declare(exchange, queue["vhost"]))
    elif (
        exchange is None and earlier is not None and queue.get("type") != "stream" and not is_wait_queue(queue["name"])
    ):
        gone = min(dropped(queue), dropped(earlier))
        # The broker updates the counters at different times.
        if gone > rate(queue, "publish") * _LATE:
            yield finding("no-dead-letter-exchange", *_lost(gone, arguments))


def _lost(gone: int, arguments: Json) -> tuple[str, str]:
    """Say that messages of a queue without a dead-letter exchange are gone, and what to do.

    The broker does not count how many were purged.
    """
    hint = "declare it with --dead-letter-exchange, or set a policy with dead-letter-exchange"
    if str(arguments.get("x-overflow")).startswith("reject-publish"):
        what = f"has lost {counted(gone)}, or refused them because it was full"
        return what, f"refused messages are not lost: their publishers get a nack; for others, {hint}"
    what = f"has no dead-letter exchange, and may have lost {counted(gone)}"
    return f"{what}: they were rejected, expired, dropped or purged", hint


def hidden_queues(api: Management) -> str | None:
    """Say in which virtual hosts the user may not see the queues; None if there seem to be none."""
    if not any(management.vhosts(api, ("name",))):
        return f"user {api.user!r} has no permissions in any virtual host"
    if not (names := management.hidden_vhosts(api)):
        return None
    others = f" and {counted(len(names) - _NAMED, 'other')}" if len(names) > _NAMED else ""
    return f"user {api.user!r} has no permissions in vhost {', '.join(map(repr, names[:_NAMED]))}{others}"


def of_firehose(api: Management, vhost: str | None) -> Iterator[Finding]:
    """Report virtual hosts where the firehose is on, because somebody may have forgotten to switch it off."""
    for view in management.vhosts(api, ("name", "tracing")):
        if view.get("tracing") and vhost in (None, view["name"]):
            what = "has the firehose on: the broker copies each message, whether or not somebody looks"
            hint = "unless somebody does: mqtool tap --firehose-off"
            yield Finding("firehose", f"vhost {view['name']!r}", what, hint)


#: The reason that a link to another broker has stopped may be an Erlang term with a login, or very long.
_SECRET, _LONGEST_REASON = "amqp_params", 200


def starting_shovels(api: Management, vhost: str | None) -> set[tuple[str, str]]:
    """Return the virtual hosts and names of shovels that are not connected to both ends yet."""
    with suppress(NotFound, AccessRefused):  # of_links() says who may not see them
        return {(each["vhost"], each["name"]) for each in management.shovels(api, vhost) if _is_starting(each)}
    return set()


def _is_starting(shovel: Json) -> bool:
    return shovel.get("state") == "starting"


def of_links(api: Management, vhost: str | None, starting: Container[tuple[str, str]]) -> Iterator[Finding]:
    """Find terminated shovels, shovels that cannot connect, and federation links that do not work.

    Args:
        starting: the result of starting_shovels() a while ago. RabbitMQ says no more of a shovel that cannot connect.

    Raises:
        AccessRefused: the user lacks the tag 'monitoring'.
    """
    with suppress(NotFound):  # the plugin is not enabled
        for shovel in management.shovels(api, vhost):
            hangs = _is_starting(shovel) and (shovel["vhost"], shovel["name"]) in starting
            if hangs or shovel.get("state") == "terminated":
                what = f"is terminated{_reason(shovel.get('reason'))}"
                what = "is still starting: it has not connected to both ends" if hangs else what
                hint = "check the URIs, the users and the queues at both ends; 'mqtool list shovels' shows all shovels"
                yield Finding("shovel", f"shovel {shovel['name']!r}", what, hint, shovel.get("vhost"))
    with suppress(NotFound):
        for link in management.federation_links(api, vhost):
            if link.get("status") == "error":
                of = f"{link['type']} {link.get(link['type'])!r}"
                what = f"does not work{_reason(link.get('error'))}"
                hint = "check the URI and the user of the upstream; 'mqtool list federation' shows all links"
                thing = f"federation link of {of} to upstream {link.get('upstream')!r}"
                yield Finding("federation-link", thing, what, hint, link.get("vhost"))


def _reason(said: object) -> str:
    text = hide_passwords(" ".join(str(said or "").split())).strip('"')
    if not text or _SECRET in text:
        return ""
    return f": {text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + '…'}"


#: Fields of a node that report a problem, each with the check, the finding and the hint.
_OF_NODES = (
    ("mem_alarm", "alarm", "has a memory alarm: publishers are blocked", "consume what is queued, or add memory"),
    ("disk_free_alarm", "alarm", "has a disk alarm: publishers are blocked", "make room on its disk"),
    ("partitions", "partition", "cannot see some nodes of the cluster", "see https://www.rabbitmq.com/docs/partitions"),
)


def of_nodes(api: Management) -> Iterator[Finding]:
    """Report alarms and problems in the cluster.

    Raises:
        AccessRefused: the user lacks the tag 'monitoring'.
    """
    for node in management.nodes(api):
        thing = f"node {node['name']}"
        if not node.get("running", True):
            hint = "start it; quorum queues need a majority of their nodes"
            yield Finding("node-down", thing, "is not running", hint)
        for key, check, what, hint in _OF_NODES:
            if node.get(key):
                yield Finding(check, thing, what, hint)
