"""Queues: what is ready, who consumes, and when messages expire. They know no frames and no sockets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, NamedTuple

from mqtool.broker.embedded.model.amqp_message import Message
from mqtool.broker.embedded.model.applied_policies import NOTHING, Applied
from mqtool.broker.embedded.model.backlog import Entry, new_backlog
from mqtool.broker.embedded.model.clock import Alarm, Clock
from mqtool.broker.embedded.model.consumers import Consumer, Consumers, Traffic
from mqtool.broker.embedded.model.exchange import Link
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Profile
from mqtool.broker.embedded.model.queue_arguments import Options
from mqtool.broker.embedded.model.retries import Retries
from mqtool.codecs.field_tables import Table

Settled = Callable[[bool], object]
"""Called once a dead letter has been published again: whether a queue took it."""


class Why(Enum):
    """Why a message comes back: basic.nack and basic.recover, basic.reject, or the end of a channel."""

    RETURNED, REJECTED, LOST = range(3)


DeadLetter = Callable[["Queue", Message, str, Settled], None]

RETRY_DEAD_LETTERS = 180_000
"""After how many milliseconds what nobody took is published again, where dead-lettering is at least once."""


class QueueDeclaration(NamedTuple):
    """A queue as somebody declares it, which may not be valid.

    Attributes:
        owner: the connection that it is exclusive to; None for a shared queue.
        server_named: whether the broker has chosen the name.
    """

    name: str
    arguments: Table
    durable: bool = True
    auto_delete: bool = False
    owner: object | None = None
    server_named: bool = False


@dataclass(eq=False)
class Queue:
    """A queue of a virtual host.

    Attributes:
        dead_letter, when_unused: called when a message dies here, and when the queue is to be deleted.
        owner: the connection that an exclusive queue belongs to, None for a shared queue.
        key: its number in the storage.
        kind: `classic` or `quorum`.
        stored: whether it survives a restart, and its persistent messages with it.
        policy: the policies that apply.
        backlog: the ready messages.
        dead_letters: what has died here and no queue has taken yet, and why it died; after a restart it is ready again.
        unacked, unacked_bytes: the messages with consumers, not acknowledged, and the size of their bodies.
    """

    destination_type: ClassVar[str] = "queue"

    name: str
    vhost: str
    clock: Clock
    ledger: Ledger
    dead_letter: DeadLetter
    when_unused: Callable[["Queue"], object]
    durable: bool = False
    auto_delete: bool = False
    owner: object | None = None
    arguments: Table = field(default_factory=dict)
    key: int = 0
    profile: Profile = PROFILES[DEFAULT]

    def __post_init__(self) -> None:
        self.options = Options.of(self.arguments, profile=self.profile)
        self.policy = NOTHING
        self.kind = str(self.arguments.get("x-queue-type", "classic"))
        self.inbound: set[Link] = set()
        self.unacked = 0
        self.unacked_bytes = 0
        self.deleted = False
        self.consumers = Consumers(single_active=self.options.single_active)
        self.backlog = new_backlog(self.ledger, self.kind, self.options.max_priority, self.profile.quorum_priorities)
        self.traffic = Traffic()
        self._limited = self.options.limited
        self._expiring = False
        self._expiry = Alarm(self.clock, self._expiry_due)
        self.dead_letters: list[tuple[Entry, str]] = []
        self._retry = Alarm(self.clock, self._retry_dead_letters)
        self._retries = Retries(self.clock, self.backlog, lambda: self.requeue(()))
        self._unused = Alarm(self.clock, lambda: self.when_unused(self))
        # An exclusive queue goes with its connection, and so with the process.
        self.stored = self.durable and self.owner is None
        self._delivered = not self.stored

    def __len__(self) -> int:
        """The number of ready messages."""
        return len(self.backlog)

    # An empty queue is still a queue.
    def __bool__(self) -> bool:
        return True

    # -- messages in

    def publish(self, message: Message) -> tuple[bool, bool]:
        """Take a message in.

        Returns:
            Whether it was accepted (a full queue with an overflow policy of `reject-publish` refuses), and whether it
            is being stored.
        """
        options, backlog = self.options, self.backlog
        self.traffic.published += 1
        if options.overflow != "drop-head" and options.exceeded(
            len(backlog) + 1, backlog.body_bytes + len(message.body)
        ):
            if options.overflow == "reject-publish-dlx":
                self.dead_letter(self, message, "maxlen", _forget)
            return False, False
        ttl = options.time_to_live(message.properties.expiration)
        entry = self.ledger.enter(message, None if ttl is None else self.clock.now() + ttl)
        if self.stored and (message.persistent or self.kind == "quorum"):
            self.ledger.added(self.key, entry)
        # The entry is forgotten, and its row with it, if a consumer takes it without acknowledging.
        stored = entry.row != 0
        has_consumers = len(self.consumers) > 0
        if has_consumers and not len(backlog):
            # The commonest case of all: somebody is waiting for this message.
            consumer = self.consumers.next_ready()
            if consumer is not None:
                self._hand_over(consumer, entry)
                return True, stored
        if ttl is not None:
            self._expiring = True
        backlog.append(entry)
        if self._expiring or has_consumers:
            self.pump()
        if self._limited or self._expiring:
            self._drop_head()
        return True, stored

    def restore(self, entry: Entry) -> None:
        """Put in a message that was stored before a restart; call it in order of position."""
        self._expiring = self._expiring or entry.expires_at is not None
        self.ledger.hold(entry)
        self.backlog.append(entry)
        if self._expiring:
            self._arm_expiry()

    def apply(self, policy: Applied) -> None:
        """Have a policy apply, and none that did so before: at once, but for the time to live of what is here."""
        if policy == self.policy:
            return
        self.policy = policy
        expires, self.options = self.options.expires, Options.of(self.arguments, policy.definition, self.profile)
        self._limited = self.options.limited
        if self.options.expires != expires:
            self._unused.cancel()
            self.touch()
        self._drop_head()

    def _drop_head(self) -> None:
        backlog = self.backlog
        if self.options.overflow == "drop-head":
            while len(backlog) and self.options.exceeded(len(backlog), backlog.body_bytes):
                self._bury(backlog.take(), "maxlen")
        if self._expiring:
            self._arm_expiry()

    def _bury(self, entry: Entry, reason: str) -> None:
        """Drop a message, and dead-letter it if the queue says where to."""
        if self.options.at_least_once:
            self.dead_letter(self, entry.message, reason, lambda taken: self._buried(entry, reason, taken=taken))
            return
        if self.options.dead_letter_exchange is not None:
            self.dead_letter(self, entry.message, reason, _forget)
        self.ledger.drop(entry)

    def _buried(self, entry: Entry, reason: str, *, taken: bool) -> None:
        """Drop a dead letter that a queue took; keep one that none did, to try again later."""
        if taken or self.deleted:
            self.ledger.drop(entry)
            return
        self.dead_letters.append((entry, reason))
        self._retry.set_by(self.clock.now() + RETRY_DEAD_LETTERS)

    def _retry_dead_letters(self) -> None:
        waiting, self.dead_letters = self.dead_letters, []
        for entry, reason in waiting:
            self._bury(entry, reason)

    # -- messages out

    def pump(self) -> None:
        """Deliver ready messages to consumers that are ready for them."""
        backlog, consumers = self.backlog, self.consumers
        while True:
            if self._expiring:
                self._drop_expired()
            if not len(backlog):
                return
            consumer = consumers.next_ready()
            if consumer is None:
                if self._expiring:
                    self._arm_expiry()
                return
            self._hand_over(consumer, backlog.take())

    def _hand_over(self, consumer: Consumer, entry: Entry) -> None:
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

    def get(self, *, no_ack: bool) -> Entry | None:
        """Take the next message for basic.get; None if the queue is empty."""
        self.touch()
        if self._expiring:
            self._drop_expired()
        if not len(self.backlog):
            return None
        entry = self.backlog.take()
        if self._expiring:
            self._arm_expiry()
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

    def _settled(self, entry: Entry) -> None:
        self.unacked -= 1
        self.unacked_bytes -= len(entry.message.body)

    def acknowledge(self, entry: Entry) -> None:
        """Drop a message that a consumer has processed."""
        self.unacked -= 1
        self.unacked_bytes -= len(entry.message.body)
        self.traffic.acknowledged += 1
        self.ledger.drop(entry)

    def reject(self, entry: Entry) -> None:
        """Drop or dead-letter a message that a consumer rejected."""
        self._settled(entry)
        if self.deleted:
            self.ledger.drop(entry)
        else:
            self._bury(entry, "rejected")

    def requeue(self, entries: Iterable[Entry], why: Why = Why.RETURNED) -> None:
        """Put back messages that were not acknowledged."""
        for entry in entries:
            self._settled(entry)
            entry.redelivered = True
            self._expiring = self._expiring or entry.expires_at is not None
            if self.deleted:
                self.ledger.drop(entry)
                continue
            if self.kind == "quorum":
                entry.acquired_count += 1
                failed = why is not Why.RETURNED or self.profile.nack_counts
                entry.delivery_count += failed
                limit = self.options.delivery_limit
                if limit is not None and entry.delivery_count > limit:
                    self._bury(entry, "delivery_limit")
                    continue
                retry = self.options.retry
                if retry is not None and (delay := retry.delay(entry, failed=failed)) is not None:
                    self._retries.hold(entry, delay)
                    continue
                if limit is None and why is not Why.LOST and self.profile.unlimited_last:
                    # Without a limit RabbitMQ up to 4.2 treats what a client returns as if it were new.
                    self.backlog.append(entry)
                    continue
            self.backlog.put_back(entry)
        if not self.deleted:
            self.pump()
            self._drop_head()

    # -- time

    def _drop_expired(self) -> None:
        """Bury expired messages at the head; further back they stay until they get there."""
        backlog = self.backlog
        now = self.clock.now()
        while len(backlog):
            expires_at = backlog.head().expires_at
            if expires_at is None or expires_at > now:
                return
            self._bury(backlog.take(), "expired")
        self._expiring = False

    def _arm_expiry(self) -> None:
        """Come back when the message at the head expires."""
        expires_at = self.backlog.head().expires_at if len(self.backlog) else None
        if expires_at is not None:
            self._expiry.set_by(expires_at)

    def _expiry_due(self) -> None:
        if not self.deleted:
            self.pump()
            self._arm_expiry()

    def touch(self) -> None:
        """Count `x-expires` from now on."""
        expires = self.options.expires
        if expires is None or self.deleted:
            return
        if len(self.consumers):
            self._unused.cancel()
        else:
            self._unused.set(self.clock.now() + expires)

    # -- consumers

    def add_consumer(self, consumer: Consumer) -> None:
        """Add a consumer; call `pump` once the client knows that it consumes."""
        self.consumers.add(consumer)
        self._unused.cancel()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Remove a consumer; an auto-delete queue goes with its last one."""
        if not self.consumers.remove(consumer):
            return
        self.touch()
        if self.auto_delete and not len(self.consumers):
            self.when_unused(self)
        elif not self.deleted:
            self.pump()

    # -- the end

    def purge(self) -> int:
        """Drop the ready messages and return their number."""
        waiting_here = [*self.backlog.clear(), *self._retries.clear()]
        for waiting in waiting_here:
            if isinstance(waiting, int):
                self.ledger.drop_paged_out(waiting)
            else:
                self.ledger.drop(waiting)
        return len(waiting_here)

    def delete(self) -> int:
        """Drop everything and cancel the consumers; returns the number of ready messages."""
        self.deleted = True
        count = self.purge()
        self._expiry.cancel()
        self._unused.cancel()
        self._retry.cancel()
        for entry, _ in self.dead_letters:
            self.ledger.drop(entry)
        self.dead_letters.clear()
        for consumer in self.consumers.clear():
            consumer.cancelled()
        return count


def _forget(taken: bool) -> None:
    """Dead-lettering is at most once: what no queue takes is lost."""
