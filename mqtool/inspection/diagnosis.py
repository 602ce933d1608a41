"""Problems of a broker, found by looking twice: what matters is what does not move."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mqtool import management
from mqtool.errors import AccessRefused
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


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem.

    Attributes:
        check: the name of the check that found it.
        thing: what it is about, such as "queue 'jobs'".
        what: what is wrong; continues a sentence that starts with the thing.
        hint: what to do.
    """

    check: str
    thing: str
    what: str
    hint: str
    vhost: str | None = None


def has_no_consumer(queue: Json) -> bool:
    """Whether it holds messages and has no consumer; queues of dead letters and retries are meant to."""
    if queue.get("type") == "stream" or queue["name"].endswith(".dlq"):
        return False
    arguments = management.effective_arguments(queue)
    waits = _either(arguments, "message-ttl") is not None and _either(arguments, "dead-letter-exchange") is not None
    return not waits and not queue.get("consumers") and bool(queue.get("messages_ready"))


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


def dropped(queue: Json) -> int:
    """How many messages were published to it and are neither acknowledged nor there."""
    settled = sum(_count(queue, name) for name in ("ack", "deliver_no_ack", "get_no_ack"))
    return max(0, _count(queue, "publish") - settled - (queue.get("messages") or 0))


def _count(queue: Json, name: str) -> int:
    return int((queue.get("message_stats") or {}).get(name) or 0)


def _either(arguments: Json, name: str) -> Any:
    """An argument, or the policy's value for it."""
    return arguments.get(f"x-{name}", arguments.get(name))


def findings(api: Management, vhost: str | None, wait: Callable[[], object]) -> Iterator[Finding]:
    """Find the problems of a vhost, or of all of them.

    Args:
        wait: called between the two looks.

    Raises: as Management.get does.
    """
    before = {(queue["vhost"], queue["name"]): queue for queue in management.queues(api, vhost, COLUMNS)}
    wait()
    names = {(each["vhost"], each["name"]) for each in management.exchanges(api, vhost, ("vhost", "name"))}
    for queue in management.queues(api, vhost, COLUMNS):
        yield from _of_queue(queue, before.get((queue["vhost"], queue["name"])), names)
    yield from _of_exchanges(api, vhost)
    yield from _of_policies(api, vhost)


def _of_queue(queue: Json, earlier: Json | None, exchanges: set[tuple[str, str]]) -> Iterator[Finding]:
    def finding(check: str, what: str, hint: str) -> Finding:
        return Finding(check, f"queue {queue['name']!r}", what, hint, queue["vhost"])

    if has_no_consumer(queue):
        yield finding(
            "no-consumer",
            f"has {counted(queue['messages_ready'])} and no consumer",
            "start one, or delete the queue if nobody needs it",
        )
    if earlier is not None and forgets_to_acknowledge(queue, earlier):
        yield finding(
            "no-acks",
            f"has {counted(queue['messages_unacknowledged'])} unacknowledged, and no consumer acknowledges any",
            "does a consumer forget basic.ack? It gets no more, and all of these again when it restarts",
        )
    if not queue.get("durable") and not queue.get("exclusive"):
        yield finding(
            "transient",
            "is transient and not exclusive, which RabbitMQ 4.3 refuses",
            "declare it durable, or exclusive to its consumer",
        )
    yield from _of_dead_letters(queue, earlier, exchanges, finding)


def _of_dead_letters(
    queue: Json, earlier: Json | None, exchanges: set[tuple[str, str]], finding: Callable[[str, str, str], Finding]
) -> Iterator[Finding]:
    exchange = _either(management.effective_arguments(queue), "dead-letter-exchange")
    if exchange is not None:
        if (queue["vhost"], exchange) not in exchanges:
            yield finding(
                "dead-letter-exchange",
                f"has the dead-letter exchange {exchange!r}, which does not exist: its dead letters are lost",
                f"mqtool exchange declare {exchange} fanout, and bind a queue to it",
            )
        return
    if earlier is None or queue.get("type") == "stream":
        return
    gone = min(dropped(queue), dropped(earlier))
    rate = ((queue.get("message_stats") or {}).get("publish_details") or {}).get("rate") or 0.0
    if gone > rate * _LATE:  # the counters of what is published and what is there are not of the same moment
        yield finding(
            "no-dead-letter-exchange",
            f"has lost {counted(gone)}: rejected, expired or purged, without a dead-letter exchange",
            "declare it with --dead-letter-exchange, or set a policy with dead-letter-exchange",
        )


def _of_exchanges(api: Management, vhost: str | None) -> Iterator[Finding]:
    """Exchanges that receive messages and have no bindings."""
    columns = ("name", "vhost", "type", "arguments", "policy", "message_stats.publish_in")
    published = [
        exchange
        for exchange in management.exchanges(api, vhost, columns)
        if exchange["name"] and (exchange.get("message_stats") or {}).get("publish_in") and not _has_alternate(exchange)
    ]
    if not published:
        return
    bound = {(each["vhost"], each["source"]) for each in management.bindings(api, vhost, ("vhost", "source"))}
    for exchange in published:
        if (exchange["vhost"], exchange["name"]) not in bound:
            count = counted(exchange["message_stats"]["publish_in"])
            yield Finding(
                "leads-nowhere",
                f"exchange {exchange['name']!r}",
                f"has received {count} and has no bindings: they are lost",
                "bind a queue to it, or publish with --mandatory to see it",
                exchange["vhost"],
            )


def _has_alternate(exchange: Json) -> bool:
    return "alternate-exchange" in (exchange.get("arguments") or {}) or bool(exchange.get("policy"))


def _of_policies(api: Management, vhost: str | None) -> Iterator[Finding]:
    try:
        policies: Sequence[Any] = [*management.policies(api, vhost)]
    except AccessRefused:  # they need a tag of their own
        return
    for policy in policies:
        if any(key.startswith("ha-") for key in policy.get("definition") or {}):
            yield Finding(
                "mirrored",
                f"policy {policy['name']!r}",
                "mirrors classic queues (ha-*), which RabbitMQ 4.0 no longer supports",
                "use quorum queues, and delete the policy",
                policy.get("vhost"),
            )


def of_nodes(api: Management) -> Iterator[Finding]:
    """Find alarms and problems of the cluster. Needs the tag 'monitoring'."""
    for node in management.nodes(api):
        thing = f"node {node['name']}"
        if not node.get("running", True):
            yield Finding(
                "node-down", thing, "is not running", "start it; quorum queues need a majority of their nodes"
            )
        if node.get("mem_alarm"):
            yield Finding(
                "alarm", thing, "has a memory alarm: publishers are blocked", "consume what is queued, or add memory"
            )
        if node.get("disk_free_alarm"):
            yield Finding("alarm", thing, "has a disk alarm: publishers are blocked", "make room on its disk")
        if node.get("partitions"):
            yield Finding(
                "partition",
                thing,
                "does not see other nodes of the cluster",
                "see https://www.rabbitmq.com/docs/partitions",
            )
