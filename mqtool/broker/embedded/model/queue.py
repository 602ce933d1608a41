"""Classic and quorum queues: ready messages, consumers, expiry, requeueing and rejection."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import chain
from typing import ClassVar

from mqtool.broker.embedded.model.amqp_errors import RESOURCE_LOCKED, ChannelException
from mqtool.broker.embedded.model.amqp_message import PERSISTENT, BrokerMessage
from mqtool.broker.embedded.model.applied_policies import NOTHING, Applied
from mqtool.broker.embedded.model.backlog import BacklogEntry, new_backlog
from mqtool.broker.embedded.model.clock import TURN_SECONDS, Alarm, Clock, Timetable
from mqtool.broker.embedded.model.consumers import Consumers, QueueConsumer, Traffic, Watcher
from mqtool.broker.embedded.model.exchange import BrokerBinding
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Profile
from mqtool.broker.embedded.model.queue_arguments import Options
from mqtool.broker.embedded.model.throttled_publishers import ThrottledPublishers
from mqtool.codecs.field_tables import Table, Value

#: The delay, in milliseconds, before a dead letter that no queue accepted is published again (at-least-once strategy).
RETRY_DEAD_LETTERS = 180_000

#: The maximum number of messages that expire at once. The others expire in later turns of the event loop.
_EXPIRED_AT_ONCE = 25

#: The maximum number of messages that are put back into the queue, or dropped, at once. Later turns handle the others.
_AT_ONCE = 20


class Why(Enum):
    """The reason for requeueing a message.

    RETURNED: basic.nack or basic.recover. REJECTED: basic.reject. FAILED: a failed delivery in AMQP 1.0, which classic
    queues count too in some versions. CLOSED: the end of a channel or session, or of a connection that its client has
    closed. LOST: the end of a connection otherwise. TIMED_OUT: a delivery not settled in time. RELEASED: an AMQP 1.0
    release. DETACHED: the end of an AMQP 1.0 link.
    """

    RETURNED, REJECTED, FAILED, CLOSED, LOST, TIMED_OUT, RELEASED, DETACHED = range(8)

    @property
    def is_end(self) -> bool:
        """True if a channel, session or connection ended."""
        return self in (Why.CLOSED, Why.LOST)


class Outcome(Enum):
    """The outcome of dead-lettering: a queue accepted the message, no queue did, or publishing it failed."""

    TAKEN, NOT_TAKEN, FAILED = range(3)


class RequeueLine:
    """Messages that are being requeued, and those published meanwhile, in order.

    As long as any are `waiting`, the queue delivers none: so they keep their order if they are put back in turns.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[deque[BacklogEntry], Why | None, int | None]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[BacklogEntry]:
        """Yield the messages in line, in order."""
        for entries, why, _ in self.waiting:
            for entry in entries:
                entry.redelivered = entry.redelivered or why is not None
                yield entry

    def add(self, entries: Collection[BacklogEntry], why: Why | None = None, not_before: int | None = None) -> None:
        """Add messages with the arguments of requeue(). `why` is None if they are new."""
        self._count += len(entries)
        if why is None and self.waiting and self.waiting[-1][1] is None:
            self.waiting[-1][0].extend(entries)
        else:
            self.waiting.append((deque(entries), why, not_before))

    def take(self) -> tuple[list[BacklogEntry], Why | None, int | None]:
        """Remove a few messages."""
        entries, why, not_before = self.waiting[0]
        taken = [entries.popleft() for _ in range(min(_AT_ONCE, len(entries)))]
        self._count -= len(taken)
        if not entries:
            self.waiting.popleft()
        return taken, why, not_before


Settled = Callable[[Outcome], object]
DeadLetter = Callable[["BrokerQueue", BrokerMessage, str, int, Settled], None]


@dataclass(eq=False)
class BrokerQueue:
    """A classic or quorum queue of a virtual host.

    Attributes:
        dead_letter: called with each message to dead-letter, if there is a dead-letter exchange; the reason; the number
            of failed deliveries that the dead letter carries; and what to call with the outcome.
        work_soon: calls work_some() until nothing is left: at once as long as that is quick, then in turns.
        when_unused: called when the queue must be deleted, because of auto-delete or `x-expires`.
        owner: the connection that an exclusive queue belongs to; None for a shared queue.
        key: the number of the queue in the data directory.
        kind: `classic`, `quorum` or `stream`.
        stored: True if the queue and its persistent messages survive a restart. An exclusive queue never does.
        policy, watcher: the policies that apply, and the observer set by VirtualHost.watch(), if any.
        backlog, line: the ready messages, and those that will be in the backlog soon.
        dead_letters: dead-lettered messages that no queue has accepted yet, with the reasons. Only used with the
            strategy at-least-once. After a restart, they are ready messages again.
        due: the consumers of a stream that will get messages in later turns, although they can take them now.
        publishers: functions that detach the AMQP 1.0 links that publish to the queue. Called when it is deleted.
        trimming: True while a classic queue drops the messages beyond its limits, whatever its overflow behaviour.
        unacked, unacked_bytes: the number of unacknowledged messages, and the size of their bodies. While a message is
            in line, it counts as ready, and its body as unacknowledged.
        delayed_bytes: the size of the bodies of messages that wait for a delayed retry.
    """

    destination_type: ClassVar[str] = "queue"

    name: str
    vhost: str
    clock: Clock
    ledger: Ledger
    dead_letter: DeadLetter
    work_soon: Callable[["BrokerQueue"], object]
    when_unused: Callable[["BrokerQueue"], object]
    durable: bool = False
    auto_delete: bool = False
    owner: object | None = None
    arguments: Table = field(default_factory=dict)
    key: int = 0
    profile: Profile = PROFILES[DEFAULT]

    def __post_init__(self) -> None:
        self.options = Options.of(self.arguments, profile=self.profile)
        self.policy = NOTHING
        self.watcher: Watcher | None = None
        self.kind = str(self.arguments.get("x-queue-type", "classic"))
        self.inbound: set[BrokerBinding] = set()
        self.publishers: set[Callable[[], object]] = set()
        self.unacked = 0
        self.unacked_bytes = 0
        self.deleted = False
        self.consumers = Consumers(
            single_active=self.options.single_active,
            by_age=self.kind == "quorum" and self.profile.quorum_priorities == "none",
            takes_over=self.kind == "quorum" and self.profile.quorum_priorities != "none",
            unacked=lambda: self.unacked,
        )
        self.backlog = new_backlog(self.ledger, self.kind, self.options.max_priority, self.profile.quorum_priorities)
        self.due: Collection[QueueConsumer] = ()
        self.traffic = Traffic()
        self.line = RequeueLine()
        self._leaving: deque[BacklogEntry | int] = deque()
        self._limited = self.options.limited
        self._expiring = self._dropping = self.trimming = False
        self._expiry = Alarm(self.clock, self.pump)
        self.dead_letters: list[tuple[BacklogEntry, str]] = []
        self._retry = Alarm(self.clock, self._retry_dead_letters)
        self._retries: Timetable[BacklogEntry] = Timetable(self.clock, self._end_delay, lambda: self.requeue(()))
        self.delayed_bytes = 0
        self._unused = Alarm(self.clock, lambda: self.when_unused(self))
        self.stored = self.durable and self.owner is None
        self._delivered = not self.stored

    @cached_property
    def throttled(self) -> ThrottledPublishers:
        """The publishers that must stop, because a quorum queue is full."""
        return ThrottledPublishers()

    def __len__(self) -> int:
        """Return the number of ready messages."""
        return len(self.backlog) + len(self.line)

    def __bool__(self) -> bool:
        return True  # even if the queue is empty

    @property
    def delayed(self) -> int:
        """The number of messages that wait for a delayed retry."""
        return len(self._retries)

    @property
    def dead_letter_bytes(self) -> int:
        """The size of the bodies of the dead letters that no queue has accepted yet."""
        return sum(len(entry.message.body) for entry, _ in self.dead_letters)

    def load(self) -> tuple[int, int]:
        """The number and the size of the messages that count towards the limits: also delayed ones and dead letters."""
        size = self.backlog.body_bytes + self.delayed_bytes + (self.dead_letter_bytes if self.dead_letters else 0)
        return len(self) + len(self._retries) + len(self.dead_letters), size

    def exceeds(self, more: int = 0, more_bytes: int = 0) -> bool:
        """True if the queue would be over its limits with more messages."""
        messages, size = self.load()
        return self.options.exceeded(messages + more, size + more_bytes)

    def publish(self, message: BrokerMessage, publisher: object = None, deliveries: int = 0) -> tuple[bool, bool]:
        """Add a message, unless the queue is full and rejects it.

        Args:
            message: the message.
            publisher: the channel, session or queue that publishes it; None for one that publishes nothing else.
            deliveries: the number of failed deliveries, from the queue that has dead-lettered the message.

        Returns:
            True if the queue accepted the message, and True if the message is being written to disk.
        """
        options, backlog = self.options, self.backlog
        self.traffic.published += 1
        if options.overflow != "drop-head" and _refuses(self, message, publisher):
            return False, False
        properties = message.header.properties
        ttl = options.message_ttl if properties.expiration is None else options.time_to_live(properties.expiration)
        entry = self.ledger.enter(message, None if ttl is None else self.clock.now() + ttl)
        if self.watcher is not None and id(message) in self.watcher.publishing:
            self.watcher.entered(self, message, entry.position)
        if deliveries:
            entry.carry(deliveries)
        if self.stored and (properties.delivery_mode == PERSISTENT or self.kind == "quorum"):
            self.ledger.added(self.key, entry)
        # Read the row now: delivery to a consumer with automatic acknowledgement deletes the message.
        stored = entry.row != 0
        if self.line.waiting:
            self.line.add([entry])
            backlog.body_bytes += len(message.body)
            return True, stored
        if self.consumers.all and not len(backlog):
            # Hot path: if a consumer is waiting, the message bypasses the backlog. If other messages are waiting, no
            # consumer can take any: each one that can again is passed to feed().
            consumer = self.consumers.next_ready()
            if consumer is not None:
                self._deliver(consumer, entry)
                return True, stored
        self._expiring = self._expiring or ttl is not None
        backlog.append(entry)
        if self._expiring:
            self.pump()
        if self._limited or self._expiring:
            self._drop_surplus()
        return True, stored

    def restore(self, entry: BacklogEntry) -> None:
        """Add a message recovered from disk. Messages must be added in order of position."""
        latest = entry.expires_at
        ttl = None if latest is None else self.options.time_to_live(entry.message.properties.expiration)
        if latest is not None and (ttl is None or latest > self.clock.now() + ttl):
            # The clock was ahead when the message was published, or a policy has changed since. The message stays no
            # longer than the queue's arguments and the message itself say.
            declared = Options.of(self.arguments, profile=self.profile)
            ttl = declared.time_to_live(entry.message.properties.expiration)
            entry.expires_at = latest if ttl is None else min(latest, self.clock.now() + ttl)
        self._expiring = self._expiring or entry.expires_at is not None
        self.ledger.hold(entry)
        self.backlog.append(entry)
        if self._expiring:
            self._arm_expiry()

    def apply(self, policy: Applied) -> None:
        """Apply these policies in place of the previous ones. Messages already in the queue keep their time to live."""
        if policy == self.policy:
            return
        self.policy = policy
        before, self.options = self.options, Options.of(self.arguments, policy.definition, self.profile)
        self._limited = self.options.limited
        # RabbitMQ applies new limits to a classic queue before a new overflow behaviour.
        self.trimming |= self.kind == "classic" and before.overflow == "drop-head"
        if self.options.expires != before.expires:
            self._unused.cancel()
            self.touch()
        self._drop_surplus()

    def _throttle(self) -> None:
        """Tell the publishers of a quorum queue with overflow `reject-publish` whether to stop or to go on."""
        if self._limited and self.kind == "quorum" and self.options.overflow == "reject-publish":
            self.throttled.update(self.options, *self.load())

    def _drop_surplus(self) -> None:
        """Dead-letter or drop messages from the head while the queue is over its limits (overflow `drop-head`).

        After apply(), a classic queue does so with a new overflow behaviour, too. If there are many, because a policy
        has set a limit, this takes several turns. The publishers of a queue that rejects messages are told instead.
        """

        def go_on() -> None:
            self._dropping = False
            self._drop_surplus()

        if self.line.waiting:
            return
        backlog, most = self.backlog, _EXPIRED_AT_ONCE
        if self.trimming or self.options.overflow == "drop-head":
            while len(backlog) and self.exceeds():
                if not most:
                    if not self._dropping:
                        self._dropping = True
                        self.clock.take_turn(go_on)
                    break
                self._dead_letter(backlog.take(), "maxlen")
                most -= 1
            else:
                self.trimming = False
        self._throttle()
        if self._expiring:
            self._arm_expiry()

    def _dead_letter(self, entry: BacklogEntry, reason: str) -> None:
        """Dead-letter a message, or drop it if there is no dead-letter exchange."""

        def settle(outcome: Outcome) -> None:
            if outcome is Outcome.FAILED and not self.deleted:
                self.ledger.set_aside(entry)
            elif outcome is Outcome.TAKEN or self.deleted or not self.options.at_least_once:
                self.ledger.drop(entry)
            else:
                self.dead_letters.append((entry, reason))
                self._retry.set_by(self.clock.now() + RETRY_DEAD_LETTERS)

        if self.watcher is not None and entry.position in self.watcher.shown:
            self.watcher.ended(self, entry, reason, self.options.dead_letter_exchange)
        if self.options.dead_letter_exchange is None:
            self.ledger.drop(entry)
        else:
            carried = 0 if self.profile.nack_counts else entry.delivery_count
            self.dead_letter(self, entry.message, reason, carried, settle)

    def _retry_dead_letters(self) -> None:
        waiting, self.dead_letters = self.dead_letters, []
        for entry, reason in waiting:
            self._dead_letter(entry, reason)

    def pump(self) -> None:
        """Remove expired messages, and deliver ready ones to the consumers that can take them."""
        if self.line.waiting:
            return
        backlog, next_ready = self.backlog, self.consumers.next_ready
        while len(backlog):
            if self._expiring and (self.drop_expired() or not len(backlog)):
                break
            consumer = next_ready()
            if consumer is None:
                break
            self._deliver(consumer, backlog.take())
        if self._expiring:
            self._arm_expiry()
        if self._limited:
            self._throttle()

    def _deliver(self, consumer: QueueConsumer, entry: BacklogEntry) -> None:
        traffic = self.traffic
        traffic.delivered += 1
        if entry.redelivered:
            traffic.redelivered += 1
        if not self._delivered:
            self._delivered = True
            self.ledger.delivering(self.key)
        if consumer.no_ack:
            traffic.delivered_no_ack += 1
            consumer.take(entry)
            self.ledger.drop(entry)
            return
        self.unacked += 1
        self.unacked_bytes += len(entry.message.body)
        consumer.take(entry)

    def get(self, *, no_ack: bool) -> BacklogEntry | None:
        """Remove and return the next message for basic.get; None if the queue is empty.

        If many messages have expired, this takes long, unless drop_expired() has been called in steps before.

        Raises:
            ChannelException: 405, it is a quorum queue with a single active consumer.
        """
        if self.kind == "quorum" and self.options.single_active:
            kind = '<<"quorum">>' if self.profile.tells_active else "quorum"
            raise ChannelException(
                RESOURCE_LOCKED,
                f"cannot obtain access to locked queue '{self.name}' in vhost '{self.vhost}'. basic.get operations are "
                f"not supported by {kind} queues with single active consumer",
            )
        self.touch()
        while self.drop_expired():
            pass
        if not len(self.backlog):
            return None
        entry = self.backlog.take()
        if self._expiring:
            if self.kind == "classic":
                self.drop_expired()  # they are no longer in get-ok's count
            self._arm_expiry()
        if self._limited:
            self._throttle()
        if self.watcher is not None and entry.position in self.watcher.shown:
            self.watcher.delivered(self, entry, None, no_ack=no_ack)
        self.traffic.delivered += 1
        if not self._delivered:
            self._delivered = True
            self.ledger.delivering(self.key)
        if no_ack:
            self.traffic.got_no_ack += 1
            self.ledger.drop(entry)
        else:
            self.traffic.got += 1
            self.unacked += 1
            self.unacked_bytes += len(entry.message.body)
        return entry

    def in_exclusive_use(self, *, wanted: bool = False) -> bool:
        """Return True if a new consumer is refused because it, or another one, is exclusive: only by a classic queue.

        Args:
            wanted: True if the new consumer is exclusive. A queue with a single active consumer refuses it, too.
        """
        is_shared = self.options.single_active or bool(len(self.consumers))
        return self.kind == "classic" and (self.consumers.exclusive or (wanted and is_shared))

    def acknowledge(self, entry: BacklogEntry) -> None:
        self.unacked -= 1
        self.unacked_bytes -= len(entry.message.body)
        self.traffic.acknowledged += 1
        self.ledger.drop(entry)
        if self.watcher is not None and entry.position in self.watcher.shown:
            self.watcher.acknowledged(self, entry)
        if self.consumers.is_fading:
            self.pump()

    def reject(self, entry: BacklogEntry, *, failed: bool = False) -> None:
        """Dead-letter or drop a message that was rejected without requeueing.

        Args:
            failed: True if the delivery counts as failed. From RabbitMQ 4.3 on, the dead letter carries the count.
        """
        entry.delivery_count += failed
        self.unacked -= 1
        self.unacked_bytes -= len(entry.message.body)
        if self.deleted:
            self.ledger.drop(entry)
        else:
            self._dead_letter(entry, "rejected")
        if self.consumers.is_fading:
            self.pump()

    def requeue(
        self, entries: Collection[BacklogEntry], why: Why = Why.RETURNED, not_before: int | None = None
    ) -> None:
        """Requeue unacknowledged messages, and mark them as redelivered. If the queue is deleted, drop them instead.

        If there are many, this takes several turns, but they count as ready at once.

        Args:
            not_before: when a quorum queue may deliver the messages again, in milliseconds since 1970 (system time).
                Takes precedence over `x-delayed-retry-type`. Has an effect from RabbitMQ 4.3 on.
        """
        self.unacked -= len(entries)
        # A deleted queue drops what it gets back: nothing counts against its delivery limit any more.
        self.line.add(entries, Why.RELEASED if self.deleted else why, not_before)
        self.work_soon(self)

    def work_some(self) -> bool:
        """Put a few messages from the line back, or drop a few that were purged. Return True if there are more."""
        if self.line.waiting:
            entries, why, not_before = self.line.take()
            for entry in entries:
                self._expiring = self._expiring or entry.expires_at is not None
                self._put_back(entry, why, not_before)
            if not (self.line.waiting or self.deleted):
                # A classic queue drops what exceeds its limits before it delivers, a quorum queue afterwards.
                steps = self.pump, self._drop_surplus
                for step in reversed(steps) if self.kind == "classic" else steps:
                    step()
        else:
            for _ in range(min(_AT_ONCE, len(self._leaving))):
                self.ledger.drop_purged(self._leaving.popleft())
        return bool(self.line.waiting or self._leaving)

    def _put_back(self, entry: BacklogEntry, why: Why | None, not_before: int | None) -> None:
        if why is None:
            self.backlog.body_bytes -= len(entry.message.body)
        else:
            self.unacked_bytes -= len(entry.message.body)
            entry.redelivered = True
            if self.watcher is not None and entry.position in self.watcher.shown:
                self.watcher.requeued(self, entry, why.name.lower())
        if self.kind == "quorum" and why is not None:
            self._requeue_in_quorum(entry, why, not_before)
        elif self.deleted:
            self.ledger.drop(entry)
        elif why is None:
            self.backlog.append(entry)
        else:
            failed = why is Why.FAILED and self.profile.counts_failures
            entry.delivery_count += failed or (_fails(why) and not self.profile.nack_counts)
            self.backlog.put_back(entry)

    def _requeue_in_quorum(self, entry: BacklogEntry, why: Why, not_before: int | None) -> None:
        """Requeue a message, now or after a delay; dead-letter it if it has exceeded the limit, even if deleted."""
        entry.acquired_count += 1
        failed = _fails(why) or (why is Why.RETURNED and self.profile.nack_counts)
        entry.delivery_count += failed
        limit = self.options.delivery_limit
        if limit is not None and entry.delivery_count > limit:
            self._dead_letter(entry, "delivery_limit")
        elif self.deleted:
            self.ledger.drop(entry)
        elif (delay := _delay(self, entry, not_before, failed=failed)) is not None:
            self.delayed_bytes += len(entry.message.body)
            self._retries.add(self.clock.now() + delay, entry)
        elif limit is None and not why.is_end and self.profile.unlimited_last:
            # Without a delivery limit, RabbitMQ up to 4.2 puts messages that a client requeues behind all others.
            self.backlog.append(entry)
        else:
            self.backlog.put_back(entry)

    def _end_delay(self, entry: BacklogEntry) -> None:
        self.delayed_bytes -= len(entry.message.body)
        self.backlog.put_back(entry)

    def drop_expired(self) -> bool:
        """Dead-letter or drop a few of the expired messages: those that no other message keeps from expiring. Return
        True if there are more of them.

        As long as requeued messages have to be put back, put some of them back instead, and return True.
        """
        if self.line.waiting:
            self.work_some()
            return True
        if not self._expiring:
            return False
        backlog, now = self.backlog, self.clock.now()
        for _ in range(_EXPIRED_AT_ONCE):
            if not len(backlog):
                self._expiring = False
                return False
            expires_at = backlog.next_expiry()
            if expires_at is None or expires_at > now:
                return False
            self._dead_letter(backlog.take_expiring(), "expired")
        return True

    def _arm_expiry(self) -> None:
        """Set the alarm for the next message that expires, or for the next turn if it has expired."""
        expires_at = self.backlog.next_expiry()
        if expires_at is not None:
            self._expiry.set_by(expires_at)

    def touch(self) -> None:
        """Restart the timer that deletes an unused queue (`x-expires`), or stop it if there are consumers."""
        expires = self.options.expires
        if expires is None or self.deleted:
            return
        if len(self.consumers):
            self._unused.cancel()
        else:
            self._unused.set(self.clock.now() + expires)

    def add_consumer(self, consumer: QueueConsumer) -> None:
        """Add a consumer. The caller must call `pump` after sending basic.consume-ok."""
        self.consumers.add(consumer)
        self._unused.cancel()
        if self.watcher is not None:
            self.watcher.changed()

    def remove_consumer(self, consumer: QueueConsumer) -> None:
        """Remove a consumer. An auto-delete queue is deleted with its last consumer."""
        if consumer not in self.consumers.all:
            return
        has_new_active = self.consumers.remove(consumer)
        if self.watcher is not None:
            self.watcher.changed()
        self.touch()
        if self.auto_delete and not len(self.consumers):
            self.when_unused(self)
        elif has_new_active and not self.deleted:
            # Later, because what the former one held may be about to be requeued, and comes first.
            self.clock.take_turn(self.pump)

    def purge(self) -> int:
        """Drop the messages that are ready or wait for a delayed retry; return how many there were.

        From RabbitMQ 4.3 on, dead letters that no queue has accepted yet are among them.

        If there are many, this takes several turns, but they are no longer in the queue. Messages in line are put back
        at once before, which takes long, unless work_some() has been called in steps.
        """
        if not self.deleted:
            put_back_all(self)
        dropped = [*self.backlog.clear(), *self._retries.clear()]
        self.delayed_bytes = 0
        if self.profile.purges_dead_letters or self.deleted:
            dropped += [entry for entry, _ in self.dead_letters]
            self.dead_letters.clear()
        self._leaving.extend(dropped)
        self._throttle()
        self.work_soon(self)
        if self.watcher is not None:
            self.watcher.emptied(self)
        return len(dropped)

    def delete(self) -> int:
        """Drop the messages and cancel the consumers. Returns the number of messages that were ready.

        If there are many messages, this takes several turns.
        """
        self.deleted = True
        count = len(self)
        self.purge()
        self._expiry.cancel()
        self._unused.cancel()
        self._retry.cancel()
        cancel_links(self)
        return count


def _refuses(queue: BrokerQueue, message: BrokerMessage, publisher: object) -> bool:
    """Return True if a queue is full. Dead-letter the message if overflow is `reject-publish-dlx`.

    A full quorum queue takes dead letters, unless their queue waits until they are accepted (at-least-once).
    """
    if queue.kind == "quorum":
        if publisher is not None:
            return queue.throttled.refuses(publisher, queue.options, *queue.load())
        return queue.exceeds() and not message.is_dead
    is_full = queue.exceeds(1, len(message.body))
    if is_full and queue.options.overflow == "reject-publish-dlx":
        queue.dead_letter(queue, message, "maxlen", 0, lambda _: None)
    return is_full


def enforce_limits(queue: BrokerQueue) -> None:
    """Dead-letter or drop the messages beyond a queue's limits: in a classic queue, whatever its overflow behaviour.

    As in RabbitMQ when it starts: messages that were unacknowledged are ready again, and count towards the limits.
    """
    queue.trimming = queue.options.limited and queue.kind == "classic"
    queue.requeue(())


def in_memory(queue: BrokerQueue) -> Iterator[BacklogEntry]:
    """Yield the ready messages that are not paged out, in no particular order."""
    return chain(queue.backlog.in_memory(), queue.line)


def put_back_all(queue: BrokerQueue) -> None:
    """Move all messages from the line to the backlog now."""
    while queue.line.waiting:
        queue.work_some()


def _fails(why: Why) -> bool:
    """True if a delivery that is requeued for this reason counts as failed in all versions."""
    return why.is_end or why in (Why.REJECTED, Why.FAILED)


def _delay(queue: BrokerQueue, entry: BacklogEntry, not_before: int | None, *, failed: bool) -> int | None:
    """Return the delay of a requeued message in milliseconds; None to requeue it immediately."""
    if queue.profile.delayed_retry and not_before is not None and not_before > (now := queue.clock.wall()):
        return not_before - now
    retry = queue.options.retry
    return None if retry is None else retry.delay(entry.delivery_count, failed=failed)


def feed(consumers: Iterable[QueueConsumer]) -> None:
    """Deliver to consumers that may be able to take messages again."""
    queues: dict[BrokerQueue, None] = {}
    for consumer in consumers:
        queue: BrokerQueue = consumer.queue
        queue.consumers.wake(consumer)
        queues[queue] = None
    for queue in queues:
        if not queue.deleted:
            queue.pump()


def cancel_links(queue: BrokerQueue) -> None:
    """Cancel the consumers of a deleted queue, and detach the AMQP 1.0 links that publish to it: if many, in turns."""
    consumers, publishers = queue.consumers.clear(), [*queue.publishers]

    def go_on() -> None:
        until = queue.clock.elapsed() + TURN_SECONDS
        while consumers or publishers:
            if consumers:
                consumers.pop().cancelled()
            elif (tell := publishers.pop()) in queue.publishers:
                tell()
            if queue.clock.elapsed() > until:
                queue.clock.take_turn(go_on)
                return

    consumers.reverse()
    go_on()


def consumer_timeout(queue: BrokerQueue, arguments: Table, default: float) -> float | None:
    """Return how long a consumer may leave a message unacknowledged, in seconds; None for any time.

    Args:
        arguments: the consumer's.
        default: the broker's consumer timeout, in seconds.
    """
    limit: Value = queue.options.consumer_timeout
    if queue.profile.consumer_timeouts == "quorum":
        if queue.kind != "quorum":
            return None
        limit = arguments.get("x-consumer-timeout", limit)
    return limit / 1000 if isinstance(limit, int) else default
