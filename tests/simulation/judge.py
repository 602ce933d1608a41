"""The model: what each message's publisher was told, what each consumer got, and what must therefore be true."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from mqtool.codecs.field_tables import Table

#: The longest that the broker may keep an acknowledgement in memory before it is on disk, in seconds.
_UNHURRIED_SECONDS = 1.0

#: The longest that a write may be in transit, in seconds, if its connection does not stall.
_TRANSIT_SECONDS = 0.1

#: The broker counts in whole milliseconds.
_MILLISECOND = 0.001

#: The delivery limit of quorum queues since RabbitMQ 4.0.
_DEFAULT_LIMIT = 20


class Violation(Exception):
    """The broker broke a rule. The first argument names the rule, the second says what happened."""

    @property
    def rule(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Kind:
    """A kind of queue, and what may happen to its messages.

    Attributes:
        arguments: the arguments of queue.declare.
        reasons: why messages may be dead-lettered, besides `rejected`.
        ttl: the time to live of its messages in seconds, if any.
        is_ordered: True if messages are delivered in the order in which they were published.
        has_dlx: True if dead letters go to the queue `dead`.
        stream: True for a stream.
        retention: True if a stream deletes its oldest segments.
        max_length: the number of ready messages that is never exceeded.
    """

    arguments: Table = field(default_factory=dict)
    reasons: frozenset[str] = frozenset()
    ttl: float | None = None
    is_ordered: bool = True
    has_dlx: bool = False
    stream: bool = False
    retention: bool = False
    max_length: int | None = None
    single_active: bool = False
    delivery_limit: int | None = None
    priorities: int | None = None

    @property
    def refuses(self) -> bool:
        """True if the queue rejects messages when it is full."""
        return str(self.arguments.get("x-overflow", "")).startswith("reject-publish")

    @property
    def refuses_get(self) -> bool:
        """True if basic.get is refused."""
        return self.single_active and self.arguments.get("x-queue-type") == "quorum"


@dataclass
class Sent:
    """A published message.

    Attributes:
        publisher: the connection on which it was published.
        queues: the queues that it is routed to.
        outcome: `confirmed`, `refused`, `returned`, or None if the publisher does not know.
        known_at: when the publisher was told.
        delay: for how many seconds an x-delayed-message exchange holds it back.
    """

    number: int
    publisher: str
    queues: tuple[str, ...]
    at: float
    persistent: bool = True
    priority: int = 0
    outcome: str | None = None
    known_at: float | None = None
    delay: float = 0.0


@dataclass
class Copy:
    """What happened to a message in one queue, as the clients know it.

    Attributes:
        times: how many times it was delivered.
        unmarked: how many of these deliveries were not marked as redelivered.
        returned: how many times a client has requeued it so that every version of RabbitMQ counts a delivery attempt.
        delivered_at: when it was last delivered.
        settled: `acked`, `rejected` or `requeued`: what was last sent for it.
        known_at: the time from which it is certain that the broker has received this.
    """

    times: int = 0
    returned: int = 0
    unmarked: int = 0
    delivered_at: float = 0.0
    settled: str | None = None
    known_at: float | None = None
    by: str = ""


class Judge:
    """Collects what clients see. Raises Violation as soon as a rule is broken.

    Args:
        now: returns the virtual time in seconds.
        kinds: the queues by name.

    Attributes:
        sent: the published messages by number.
        copies: what happened to each message in each queue.
        kills, restarts: when the broker was killed, and whether by a power cut; when it was killed or stopped.
        starts: when the broker had started.
        disk_faults: when syncs began to fail and, if they have ended, when that was.
        unsure: the queues with consumers in automatic acknowledgement mode: messages may be lost on the way to them.
        emptied: the queues that an administrator has purged, deleted or limited.
        deleted: the queues that an administrator has deleted. After a fault, they may not have been declared again.
        cut_off: the clients whose connections were cut without the broker noticing, so that it still sends to them.
        consumers: by queue, the clients that certainly consume.
        earlier: by queue and consumer, the clients that consumed before it.
        stored_offsets: by stream and reader, the offsets that it has stored, each with the connection, and the time
            from which it is certain that the broker has received it.
    """

    def __init__(self, now: Any, kinds: dict[str, Kind]) -> None:
        self._now = now
        self.kinds = kinds
        self.sent: dict[int, Sent] = {}
        self.copies: defaultdict[tuple[str, int], Copy] = defaultdict(Copy)
        self._late: set[tuple[str, int, str]] = set()
        self._last: dict[tuple[str, str, str], int] = {}
        self.kills: list[tuple[float, bool]] = []
        self.restarts: list[float] = []
        self.starts: list[float] = []
        self.disk_faults: list[list[float]] = []
        self.unsure: set[str] = set()
        self.emptied: set[str] = set()
        self.deleted: set[str] = set()
        self.cut_off: set[str] = set()
        self.consumers: defaultdict[str, set[Any]] = defaultdict(set)
        self.earlier: dict[tuple[str, str], set[Any]] = {}
        self.stream_contents: dict[tuple[str, int], int] = {}
        self.stored_offsets: defaultdict[tuple[str, str], dict[int, tuple[float | None, str]]] = defaultdict(dict)
        self.history: list[tuple[float, str, str]] = []
        self.digest = sha256()
        self.failed: Violation | None = None

    def note(self, who: str, what: str) -> None:
        """Add a line to the history."""
        line = self._now(), who, what
        self.history.append(line)
        self.digest.update(repr(line).encode())

    def fail(self, rule: str, what: str) -> None:
        """Record the first violation, and raise it."""
        self.note("JUDGE", f"{rule}: {what}")
        if self.failed is None:
            self.failed = Violation(rule, what)
        raise self.failed

    def started(self) -> None:
        """Note that the broker is up, with a disk that works."""
        self.starts.append(self._now())
        for fault in self.disk_faults:
            fault[1:] = [min([self._now(), *fault[1:]])]

    # -- publishers

    def published(self, publisher: str, queues: Iterable[str], **given: Any) -> Sent:
        sent = Sent(len(self.sent) + 1, publisher, tuple(queues), self._now(), **given)
        self.sent[sent.number] = sent
        return sent

    def outcome(self, sent: Sent, outcome: str) -> None:
        """Note what a publisher was told about a message."""
        if sent.outcome is not None and not (sent.outcome == "returned" and outcome == "confirmed"):
            self.fail("each message gets one outcome", f"message {sent.number}: {sent.outcome}, then {outcome}")
        if outcome == "returned" and sent.queues and not self.emptied & set(sent.queues):
            self.fail("only unroutable messages are returned", f"message {sent.number} for {sent.queues} was returned")
        if outcome == "refused" and not any(self.kinds[name].refuses for name in sent.queues):
            self.fail("only full queues refuse messages", f"message {sent.number} for {sent.queues}")
        if outcome == "confirmed" and sent.outcome == "returned":
            return
        sent.outcome, sent.known_at = outcome, self._now()
        if outcome == "confirmed" and self._is_stored(sent):
            started = min((fault[0] for fault in self.disk_faults if len(fault) == 1), default=math.inf)
            if sent.at > started:
                self.fail(
                    "nothing is confirmed before it is on disk",
                    f"message {sent.number} was published at {sent.at:.3f}, and syncs fail since {started:.3f}",
                )

    def _is_stored(self, sent: Sent) -> bool:
        return any(
            self.kinds[name].stream or sent.persistent or self.kinds[name].arguments.get("x-queue-type") == "quorum"
            for name in sent.queues
            if name not in self.deleted
        )

    # -- consumers

    def delivered(  # noqa: C901 - one rule after another
        self, queue: str, number: int, consumer: str, *, redelivered: bool | None, is_given_back: bool = False
    ) -> None:
        """Note that a consumer received a message; with `is_given_back`, after it had requeued all its messages."""
        sent = self.sent.get(number)
        where = f"message {number} from queue {queue}, by {consumer}"
        if sent is None:
            return self.fail("no message is invented", where)
        kind = self.kinds[queue]
        if queue == "dead":
            return None
        if queue not in sent.queues:
            return self.fail("messages are routed by their bindings", f"{where}; it was for {sent.queues}")
        if sent.outcome == "refused" and len(sent.queues) == 1:
            return self.fail("a refused message is in no queue", where)
        if is_given_back:  # another consumer may have got it, and settled it, before this one
            return None
        if self._now() < sent.at + sent.delay - _MILLISECOND:
            return self.fail(
                "a delayed message is not early", f"{where}, {self._now() - sent.at:.3f} s after its publish"
            )
        copy = self.copies[queue, number]
        # Deliveries on different connections may arrive in another order, so the first one may be marked.
        copy.unmarked += redelivered is False
        if copy.unmarked > 1:
            if not self._may_be_unmarked(sent, copy):
                return self.fail("nothing comes twice without `redelivered`", where)
            copy.unmarked = 1
        is_stopping = bool(self.restarts) and self.restarts[-1] > self._now() - 1
        # A broker that stops closes one connection after another, and its last deliveries arrive in any order.
        is_late = is_stopping and copy.known_at is not None and copy.known_at >= self.restarts[-1]
        if copy.settled == "acked" and self._is_certain(copy) and not is_late:
            return self.fail("an acknowledged message does not come back", f"{where}; {copy.by} acknowledged it")
        if kind.delivery_limit is not None and copy.returned > kind.delivery_limit + len(self.restarts) * 20:
            return self.fail("the delivery limit holds", f"{where}, after it was returned {copy.returned} times")
        if (
            kind.single_active
            and not is_stopping
            and (earlier := self.earlier.get((queue, consumer), set()) & self.consumers[queue])
        ):
            return self.fail("one consumer is active", f"{where}; first was {min(each.name for each in earlier)}")
        if kind.is_ordered and not sent.delay and redelivered is False:
            key = queue, consumer, sent.publisher
            if self._last.get(key, 0) > number:
                return self.fail("a queue is delivered in order", f"{where}, after {self._last[key]}")
            self._last[key] = number
        copy.times += 1
        if copy.times > 1 and redelivered is False and not self._may_be_unmarked(sent, copy):
            # This message was sent first, but another connection was faster. The broker does not wait for an outcome.
            self._late.add((queue, number, consumer.partition("/")[0]))
            return None
        copy.delivered_at = self._now()
        copy.settled = None
        return None

    def left_over(self, queue: str, number: int, *, redelivered: bool) -> None:
        """Note that a message was still in a queue at the end."""
        copy = self.copies[queue, number]
        if copy.times and not redelivered and not self._may_be_unmarked(self.sent[number], copy):
            self.fail("nothing comes twice without `redelivered`", f"message {number}, still in queue {queue}")

    def settled(self, queue: str, number: int, how: str, by: str, *, known: bool = False, counts: bool = False) -> None:
        """Note that a consumer has settled a message; `counts` if a requeue counts towards the delivery limit."""
        if queue == "dead" or (queue, number, by) in self._late:
            return
        copy = self.copies[queue, number]
        copy.returned += how == "requeued" and counts
        copy.settled, copy.by, copy.known_at = how, by, self._now() if known else None

    def known(self, by: str) -> None:
        """Note that the broker has answered a consumer, so it has received everything that the consumer sent."""
        for copy in self.copies.values():
            if copy.by == by and copy.known_at is None:
                copy.known_at = self._now()

    def _may_be_unmarked(self, sent: Sent, copy: Copy) -> bool:
        """True if a message may be delivered again without `redelivered`.

        As in RabbitMQ, an x-delayed-message exchange first publishes a message, and then deletes it. If the broker is
        killed in between, the message is published to the queue again.
        """
        sent_at = copy.delivered_at - _TRANSIT_SECONDS  # what was in transit arrives even after the broker was killed
        return self._was_cut(sent_at) or (sent.delay > 0 and not self._is_kept(sent_at))

    def _was_cut(self, since: float) -> bool:
        """Return True if the broker may have forgotten that it sent a message at the time `since`."""
        cuts = [at for at, power in self.kills if power and at >= since]
        return bool(cuts) or bool(self.disk_faults and self.kills)

    def _is_certain(self, copy: Copy) -> bool:
        """True if the broker has received what a consumer sent for a message, and cannot have forgotten it."""
        return self._is_kept(copy.known_at)

    def _is_kept(self, since: float | None) -> bool:
        """True if no kill can have made the broker forget what it had received by this time."""
        if since is None:
            return False
        faults = [each for each in self.disk_faults if len(each) == 1 or each[1] > since - 1]
        return not any(at >= since and (faults or at < since + _UNHURRIED_SECONDS) for at, _ in self.kills)

    # -- streams

    def in_stream(self, stream: str, offset: int, number: int) -> None:
        """Note which message a reader found at an offset. Until the stream is deleted, this message must not change."""
        before = self.stream_contents.setdefault((stream, offset), number)
        if before != number and stream not in self.emptied:
            self.fail("an offset has one message", f"stream {stream}, offset {offset}: message {before}, now {number}")

    def offset_stored(self, stream: str, reader: str, offset: int, by: str) -> None:
        """Note that a reader has sent its offset on a connection. The broker does not reply to this."""
        self.stored_offsets[stream, reader][offset] = None, by

    def offset_found(self, stream: str, reader: str, offset: int | None, by: str) -> None:
        """Note which offset the broker has for a reader, after everything that was sent earlier on this connection."""
        stored, kind = self.stored_offsets[stream, reader], self.kinds[stream]
        where = f"reader {reader} of stream {stream}: {offset}"
        if stream in self.emptied:
            return
        if offset is not None and offset not in stored:
            self.fail("no offset is invented", f"{where}, but it stored {list(stored)}")
        kept = max((each for each, (since, at) in stored.items() if at == by or self._is_kept(since)), default=None)
        if kept is not None and not kind.retention and (offset is None or offset < kept):
            self.fail("stored offsets are kept", f"{where}, but it stored {kept}")
        if offset is not None:
            stored[offset] = self._now(), by

    # -- the end

    def check(self, left: dict[str, list[tuple[int, Table, bool]]]) -> None:
        """Judge what is left in the queues at the end, after all faults.

        Args:
            left: the messages by queue, each with its number, its headers, and whether it is redelivered.
        """
        dead = self._dead_letters(left.get("dead", []))
        for name, kind in self.kinds.items():
            if name == "dead" or name not in left:
                continue
            numbers = [number for number, _, _ in left[name]]
            twice = sorted(
                number
                for number, count in Counter(numbers).items()
                if count > 1 + (self._cut_releases(self.sent[number]) if kind.stream else 0)
            )
            if twice:
                self.fail("nothing is in a queue twice", f"queue {name}: messages {twice}")
            if kind.max_length is not None and len(numbers) > kind.max_length:
                self.fail("a queue keeps its limits", f"queue {name} has {len(numbers)} messages")
            if kind.ttl is not None and numbers:
                self.fail("messages expire in time", f"queue {name} still has {numbers}")
            present = set(numbers)
            for sent in self.sent.values():
                if name in sent.queues:
                    if kind.stream:
                        self._check_in_stream(name, kind, sent, numbers, present)
                    else:
                        self._check_copy(name, kind, sent, present, dead)

    def _cut_releases(self, sent: Sent) -> int:
        """Return how many times the broker may have been killed while it released a delayed message to a stream.

        Each kill may have left the message both in the stream and in the exchange, which then releases it again.
        """
        if not sent.delay:
            return 0
        first, last = sent.at + sent.delay, math.inf if sent.known_at is None else sent.known_at + sent.delay
        cut = 0
        for at, _ in self.kills:
            # A release ends when it is on disk. Groups wait for each other while the disk fails.
            since = at - _UNHURRIED_SECONDS
            for begun, *ended in reversed(self.disk_faults):
                if begun <= at and (not ended or ended[0] >= since):
                    since = min(since, begun - _UNHURRIED_SECONDS)
            again = (start for start in self.starts if start >= first)
            cut += (first <= at and last >= since) or any(since <= start <= at for start in again)
        return cut

    def _dead_letters(self, messages: list[tuple[int, Table, bool]]) -> dict[tuple[str, int], str]:
        found: dict[tuple[str, int], str] = {}
        for number, headers, _ in messages:
            deaths: Any = headers.get("x-death") or [{}]
            queue, reason, count = deaths[0].get("queue"), deaths[0].get("reason"), deaths[0].get("count")
            if queue not in self.kinds or number not in self.sent or queue not in self.sent[number].queues:
                self.fail("no dead letter is invented", f"message {number} of queue {queue}")
            if (queue, number) in found:
                self.fail("a queue dead-letters a message only once", f"message {number} of queue {queue}")
            if len(deaths) != 1 or count != 1:
                self.fail("x-death has one entry with count 1", f"message {number} of queue {queue}: {deaths}")
            self._check_reason(queue, number, reason)
            found[queue, number] = reason
        return found

    def _check_reason(self, queue: str, number: int, reason: str) -> None:
        kind, copy = self.kinds[queue], self.copies[queue, number]
        if reason == "rejected":
            right = copy.settled == "rejected" or bool(self.unsure)
        elif reason == "delivery_limit":
            # A client that was cut off has seen none of the deliveries that count.
            right = kind.delivery_limit is not None and (copy.times > 0 or bool(self.cut_off))
        else:
            # When a classic queue starts, its limits apply before its overflow behaviour.
            is_full = queue in self.emptied or (kind.refuses and bool(self.restarts))
            right = reason in kind.reasons or (reason == "maxlen" and is_full)
        if not right:
            self.fail("dead letters have the right reason", f"message {number} of queue {queue}: {reason}")

    def _check_copy(
        self, name: str, kind: Kind, sent: Sent, present: set[int], dead: dict[tuple[str, int], str]
    ) -> None:
        number, copy = sent.number, self.copies[name, sent.number]
        where = f"message {number} ({sent.outcome}, by {sent.publisher}) of queue {name}"
        is_dead = (name, number) in dead
        if number in present:
            if sent.outcome == "refused" and len(sent.queues) == 1:
                self.fail("a refused message is in no queue", where)
            if copy.settled in ("acked", "rejected") and self._is_certain(copy):
                self.fail("a settled message leaves its queue", f"{where}: {copy.settled} by {copy.by}")
            if is_dead and not self.kills:
                self.fail("a dead letter leaves its queue", where)
            return
        if sent.outcome != "confirmed" or is_dead or copy.settled == "acked" or name in self.unsure | self.emptied:
            return
        if copy.settled == "rejected" and not kind.has_dlx:
            return
        if kind.arguments.get("x-queue-type") == "quorum" and not kind.has_dlx and copy.returned > _DEFAULT_LIMIT:
            return
        if sent.delay and kind.refuses:  # the exchange confirmed it before the queue could refuse it
            return
        # Only a persistent message survives in the classic queue `dead`, and in an x-delayed-message exchange.
        is_kept = kind.arguments.get("x-queue-type") == "quorum" and not kind.has_dlx and not sent.delay
        is_durable = sent.persistent or is_kept
        if not is_durable and any(at >= sent.at for at in self.restarts):
            return
        self.fail("nothing confirmed is lost", f"{where}; its last settlement: {copy.settled} by {copy.by or 'nobody'}")

    def _check_in_stream(self, name: str, kind: Kind, sent: Sent, numbers: list[int], present: set[int]) -> None:
        if sent.outcome != "confirmed" or sent.number in present or name in self.emptied:
            return
        if kind.retention:
            # Only the oldest messages may be gone. A delayed one may have been older than later ones.
            in_order = [self.sent[number] for number in present if not self.sent[number].delay]
            if sent.delay or not any(
                each.publisher == sent.publisher and each.number < sent.number for each in in_order
            ):
                return
        self.fail("nothing confirmed is lost", f"message {sent.number} (by {sent.publisher}) of stream {name}")
