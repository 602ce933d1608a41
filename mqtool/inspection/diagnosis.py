"""Problems of a broker, found by looking twice: what matters is what does not move."""

from collections.abc import Callable, Iterator
from functools import partial

from mqtool import management
from mqtool.inspection import dead_ends, upgrade
from mqtool.inspection.finding import Finding
from mqtool.inspection.listing import counted
from mqtool.management import Management
from mqtool.management.client import Json

#: What is asked of each queue.
COLUMNS = (
    "name", "vhost", "type", "durable", "exclusive", "arguments", "effective_policy_definition", "consumers",
    "messages", "messages_ready", "messages_unacknowledged", "message_stats",
)  # fmt: skip
#: Seconds by which statistics may be late.
_LATE = 10.0


def has_no_consumer(queue: Json) -> bool:
    """Whether it holds messages and has no consumer; queues of dead letters and retries are meant to."""
    if queue.get("type") == "stream" or queue["name"].endswith(".dlq"):
        return False
    return not dead_ends.expires(queue) and not queue.get("consumers") and bool(queue.get("messages_ready"))


def forgets_to_acknowledge(queue: Json, earlier: Json | None = None) -> bool:
    """Whether its consumers seem never to acknowledge.

    Args:
        earlier: the same queue some seconds before; without it, only a queue that never had an ack is found.
    """
    unacked, acks = queue.get("messages_unacknowledged") or 0, _count(queue, "ack")
    # One in hand each may just be a long task.
    has_many = unacked > (queue.get("consumers") or 0)
    if earlier is None:
        return has_many and acks == 0
    grows = unacked > (earlier.get("messages_unacknowledged") or 0)
    return acks == _count(earlier, "ack") and unacked > 0 and (has_many or grows)


def stands_still(queue: Json, earlier: Json | None = None) -> bool:
    """Whether messages wait, and each consumer has one that it neither acknowledges nor gets another after.

    That is a long task, or a consumer with a prefetch limit that forgets to acknowledge: a broker cannot tell which.

    Args:
        earlier: the same queue some seconds before; without it, only a queue that never had an ack is found.
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
    shorter = queue["messages_ready"] < (earlier.get("messages_ready") or 0)  # it is counted more often than the others
    return not shorter and _is_full(earlier, consumers) and not _moves(earlier)


def _is_full(queue: Json, consumers: int) -> bool:
    """Whether messages wait although each consumer has one."""
    return bool(queue.get("messages_ready")) and (queue.get("messages_unacknowledged") or 0) >= consumers > 0


def _moves(queue: Json) -> bool:
    """Whether its statistics, which are renewed every five seconds, show a delivery or an ack lately."""
    return any(rate(queue, name) > 0 for name in ("ack", "deliver_get"))


def rate(view: Json, name: str) -> float:
    """How fast a counter of a queue, or of a broker, grows: in 1/s."""
    return float(((view.get("message_stats") or {}).get(f"{name}_details") or {}).get("rate") or 0.0)


def dropped(queue: Json) -> int:
    """How many messages were published to it and are neither acknowledged nor there."""
    settled = sum(_count(queue, name) for name in ("ack", "deliver_no_ack", "get_no_ack"))
    return max(0, _count(queue, "publish") - settled - (queue.get("messages") or 0))


def _count(queue: Json, name: str) -> int:
    return int((queue.get("message_stats") or {}).get(name) or 0)


def findings(api: Management, vhost: str | None, wait: Callable[[], object]) -> Iterator[Finding]:
    """Find the problems of a vhost, or of all of them.

    Args:
        wait: called between the two looks.

    Raises: as Management.get does.
    """
    before = {(queue["vhost"], queue["name"]): queue for queue in management.queues(api, vhost, COLUMNS)}
    wait()
    names = {(each["vhost"], each["name"]) for each in management.exchanges(api, vhost, ("vhost", "name"))}
    expiring: list[Json] = []
    for queue in management.queues(api, vhost, COLUMNS):
        yield from _of_queue(queue, before.get((queue["vhost"], queue["name"])), names)
        yield from upgrade.transient(queue)
        if dead_ends.expires(queue):
            expiring.append(queue)
    policies = upgrade.visible_policies(api, vhost)
    yield from dead_ends.findings(api, vhost, policies, expiring)
    for policy in policies:
        yield from upgrade.mirrored(policy)


def _of_queue(queue: Json, earlier: Json | None, exchanges: set[tuple[str, str]]) -> Iterator[Finding]:
    finding = partial(Finding.of, "queue", queue)
    if has_no_consumer(queue):
        what = f"has {counted(queue['messages_ready'])} and no consumer"
        yield finding("no-consumer", what, "start one, or delete the queue if nobody needs it")
    if earlier is not None and forgets_to_acknowledge(queue, earlier):
        what = f"has {counted(queue['messages_unacknowledged'])} unacknowledged, and no consumer acknowledges any"
        hint = "does a consumer forget basic.ack? It gets no more, and all of these again when it restarts"
        yield finding("no-acks", what, hint)
    elif earlier is not None and stands_still(queue, earlier):
        waiting = counted(queue["messages_ready"])
        what = f"has {waiting} waiting, and nothing moves: a long task, or a forgotten basic.ack"
        hint = "look at its consumers: each has a delivery, and acknowledged nothing between the two looks"
        yield finding("stands-still", what, hint)
    arguments = management.effective_arguments(queue)
    if queue.get("type") == "stream" and arguments.keys().isdisjoint({"x-max-length-bytes", "x-max-age"}):
        what = "is a stream without max-length-bytes and max-age: it keeps all until the disk is full"
        yield finding("stream-limit", what, "set a policy: mqtool policy set --help")
    exchange = arguments.get("x-dead-letter-exchange")
    if exchange is not None and (queue["vhost"], exchange) not in exchanges:
        what = f"has the dead-letter exchange {exchange!r}, which does not exist: its dead letters are lost"
        yield finding(
            "dead-letter-exchange", what, f"mqtool exchange declare {exchange} fanout, and bind a queue to it"
        )
    elif exchange is None and earlier is not None and queue.get("type") != "stream":
        gone = min(dropped(queue), dropped(earlier))
        # The counters of what is published and what is there are not of the same moment.
        if gone > rate(queue, "publish") * _LATE:
            what = f"has lost {counted(gone)}: rejected, expired or purged, without a dead-letter exchange"
            hint = "declare it with --dead-letter-exchange, or set a policy with dead-letter-exchange"
            yield finding("no-dead-letter-exchange", what, hint)


def of_firehose(api: Management, vhost: str | None) -> Iterator[Finding]:
    """Find virtual hosts with the firehose on: it is meant for a short while, and may have been forgotten."""
    for view in management.vhosts(api, ("name", "tracing")):
        if view.get("tracing") and vhost in (None, view["name"]):
            what = "has the firehose on: the broker copies each message, whether or not somebody looks"
            hint = "unless somebody does: mqtool tap --firehose-off"
            yield Finding("firehose", f"vhost {view['name']!r}", what, hint)


#: What a node may tell of itself, and what that means.
_OF_NODES = (
    ("mem_alarm", "alarm", "has a memory alarm: publishers are blocked", "consume what is queued, or add memory"),
    ("disk_free_alarm", "alarm", "has a disk alarm: publishers are blocked", "make room on its disk"),
    (
        "partitions",
        "partition",
        "does not see other nodes of the cluster",
        "see https://www.rabbitmq.com/docs/partitions",
    ),
)


def of_nodes(api: Management) -> Iterator[Finding]:
    """Find alarms and problems of the cluster. Needs the tag 'monitoring'."""
    for node in management.nodes(api):
        thing = f"node {node['name']}"
        if not node.get("running", True):
            hint = "start it; quorum queues need a majority of their nodes"
            yield Finding("node-down", thing, "is not running", hint)
        for key, check, what, hint in _OF_NODES:
            if node.get(key):
                yield Finding(check, thing, what, hint)
