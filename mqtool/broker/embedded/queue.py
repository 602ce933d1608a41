"""Queues: what waits, who consumes, and when a message's time is over. They know no frames and no sockets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from mqtool.broker.embedded.backlog import Backlog, Entry, PriorityBacklog, QuorumBacklog
from mqtool.broker.embedded.clock import Clock, Timer
from mqtool.broker.embedded.consumers import Consumer, Consumers
from mqtool.broker.embedded.exchange import Binding
from mqtool.broker.embedded.message import Message
from mqtool.broker.embedded.options import Options
from mqtool.routing.field_table import Table

MAX_PRIORITY = 255

# What an entry costs beside its body: 294 bytes of resident memory among a million on CPython 3.11, and a reserve.
ENTRY_OVERHEAD = 330


class Ledger(Protocol):
    """Where a queue writes down what has to outlive the process, and what it costs in memory."""

    def added(self, queue: "Queue", entry: Entry) -> None:
        """A persistent message came into a durable queue; sets the entry's row."""

    def removed(self, entry: Entry) -> None:
        """A message that has a row left its queue for good."""

    def delivering(self, queue: "Queue") -> None:
        """A client is about to see a message of a durable queue for the first time since the start."""

    def grew(self, size: int) -> None:
        """This many bytes more (or less) are held in queues."""


DeadLetter = Callable[["Queue", Message, str], None]


@dataclass(eq=False)
class Queue:
    """A queue of a virtual host.

    Attributes:
        owner: the connection that an exclusive queue belongs to, None for a shared queue.
        kind: `classic` or `quorum`.
        stored: whether it outlives the process, and its persistent messages with it.
        key: the number by which the storage knows it.
        unacked: how many messages are with consumers, not acknowledged.
    """

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

    def __post_init__(self) -> None:
        self.options = Options.of(self.arguments)
        self.kind = str(self.arguments.get("x-queue-type", "classic"))
        self.inbound: set[Binding] = set()
        self.unacked = 0
        self.unacked_bytes = 0
        self.deleted = False
        self.consumers = Consumers(single_active=self.options.single_active)
        self._backlog = self._new_backlog()
        self._position = 0
        self._expiring = False
        self._expiry_timer: Timer | None = None
        self._expiry_at = 0
        self._unused_timer: Timer | None = None
        # An exclusive queue is gone with its connection, and so with the process.
        self.stored = self.durable and self.owner is None
        self._delivered = not self.stored
        self.published = 0
        self.delivered = 0
        self.acknowledged = 0
        self.redelivered = 0
        self.delivered_no_ack = 0
        self.got_no_ack = 0
        self.touch()

    def _new_backlog(self) -> Backlog:
        if self.kind == "quorum":
            return QuorumBacklog()
        if self.options.max_priority is not None:
            return PriorityBacklog(self.options.max_priority)
        return Backlog()

    def __len__(self) -> int:
        """How many messages are ready."""
        return len(self._backlog)

    def counts(self) -> dict[str, int]:
        """What it has taken in and handed out so far, by RabbitMQ's names."""
        return {
            "publish": self.published,
            "deliver_get": self.delivered,
            "deliver_no_ack": self.delivered_no_ack,
            "get_no_ack": self.got_no_ack,
            "ack": self.acknowledged,
            "redeliver": self.redelivered,
        }

    # An empty queue is still a queue.
    def __bool__(self) -> bool:
        return True

    @property
    def ready_bytes(self) -> int:
        """The sizes of the ready messages' bodies together."""
        return self._backlog.body_bytes

    def ready(self) -> Iterable[Entry]:
        """The messages that are ready, in order."""
        return self._backlog

    def publish(self, message: Message) -> tuple[bool, int]:
        """Take a message in.

        Returns:
            Whether it was accepted (a full queue with an overflow policy of `reject-publish` refuses), and the row
            under which it is being stored, 0 if it is not.
        """
        options = self.options
        self.published += 1
        if options.overflow != "drop-head" and self._would_overflow(message):
            if options.overflow == "reject-publish-dlx":
                self.dead_letter(self, message, "maxlen")
            return False, 0
        self._position += 1
        entry = Entry(message, self._position, self._expiry(message))
        self.ledger.grew(len(message.body) + ENTRY_OVERHEAD)
        if self.stored and (message.persistent or self.kind == "quorum"):
            self.ledger.added(self, entry)
        row = entry.row
        backlog = self._backlog
        if not len(backlog):
            # The commonest case of all: somebody is waiting for this message.
            consumer = self.consumers.next_ready()
            if consumer is not None:
                self._hand_over(consumer, entry)
                return True, row
        if entry.expires_at is not None:
            self._expiring = True
        backlog.append(entry)
        self.pump()
        self._drop_head()
        return True, row

    def restore(self, entry: Entry) -> None:
        """Put in a message that was stored before a restart; called in order of position."""
        self._position = max(self._position, entry.position)
        self._expiring = self._expiring or entry.expires_at is not None
        self.ledger.grew(len(entry.message.body) + ENTRY_OVERHEAD)
        self._backlog.append(entry)
        self._arm_expiry()

    def _expiry(self, message: Message) -> int | None:
        ttl = self.options.message_ttl
        own = message.properties.expiration
        if own is not None:
            ttl = int(own) if ttl is None else min(ttl, int(own))
        return None if ttl is None else self.clock.now() + ttl

    def _would_overflow(self, message: Message) -> bool:
        length, size = self.options.max_length, self.options.max_length_bytes
        backlog = self._backlog
        return (length is not None and len(backlog) + 1 > length) or (
            size is not None and backlog.body_bytes + len(message.body) > size
        )

    def _drop_head(self) -> None:
        length, size = self.options.max_length, self.options.max_length_bytes
        if length is None and size is None:
            return
        backlog = self._backlog
        while len(backlog) and (
            (length is not None and len(backlog) > length) or (size is not None and backlog.body_bytes > size)
        ):
            self._bury(backlog.take(), "maxlen")
        if self._expiring:
            self._arm_expiry()

    def _bury(self, entry: Entry, reason: str) -> None:
        """Forget a message, and dead-letter it if the queue says where to."""
        if self.options.dead_letter_exchange is not None:
            self.dead_letter(self, entry.message, reason)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self.ledger.grew(-len(entry.message.body) - ENTRY_OVERHEAD)
        if entry.row:
            self.ledger.removed(entry)

    def pump(self) -> None:
        """Give ready messages to consumers that are ready for them."""
        backlog, consumers = self._backlog, self.consumers
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
        self.delivered += 1
        if entry.redelivered:
            self.redelivered += 1
        if not self._delivered:
            self._delivered = True
            self.ledger.delivering(self)
        if consumer.no_ack:
            self.delivered_no_ack += 1
            consumer.take(entry)
            self._forget(entry)
            return
        self.unacked += 1
        self.unacked_bytes += len(entry.message.body)
        consumer.take(entry)

    def get(self, *, no_ack: bool) -> Entry | None:
        """Take the next message for basic.get; None if there is none."""
        self.touch()
        if self._expiring:
            self._drop_expired()
        if not len(self._backlog):
            return None
        entry = self._backlog.take()
        if self._expiring:
            self._arm_expiry()
        self.delivered += 1
        if not self._delivered:
            self._delivered = True
            self.ledger.delivering(self)
        if no_ack:
            self.got_no_ack += 1
            self._forget(entry)
        else:
            self.unacked += 1
            self.unacked_bytes += len(entry.message.body)
        return entry

    def _settled(self, entry: Entry) -> None:
        self.unacked -= 1
        self.unacked_bytes -= len(entry.message.body)

    def acknowledge(self, entry: Entry) -> None:
        """A consumer is done with a message."""
        self._settled(entry)
        self.acknowledged += 1
        self._forget(entry)

    def reject(self, entry: Entry) -> None:
        """A consumer does not want a message, and nobody else shall have it."""
        self._settled(entry)
        if self.deleted:
            self._forget(entry)
        else:
            self._bury(entry, "rejected")

    def requeue(self, entries: Iterable[Entry], *, lost: bool = False) -> None:
        """Put messages back that consumers had and did not acknowledge; `lost` if the consumer went without a word."""
        for entry in entries:
            self._settled(entry)
            entry.redelivered = True
            self._expiring = self._expiring or entry.expires_at is not None
            if self.deleted:
                self._forget(entry)
                continue
            if self.kind == "quorum":
                entry.delivery_count += 1
                limit = self.options.delivery_limit
                if limit is not None and entry.delivery_count > limit:
                    self._bury(entry, "delivery_limit")
                    continue
                if limit is None and not lost:
                    # Without a limit RabbitMQ 3.10 treats what a client gives back as if it were new.
                    self._backlog.append(entry)
                    continue
            self._backlog.put_back(entry)
        if not self.deleted:
            self.pump()
            self._drop_head()

    def _drop_expired(self) -> None:
        """Bury what has outlived its time at the head; further back it stays until it gets there."""
        backlog = self._backlog
        now = self.clock.now()
        while len(backlog):
            expires_at = backlog.head().expires_at
            if expires_at is None or expires_at > now:
                return
            self._bury(backlog.take(), "expired")
        self._expiring = False

    def _arm_expiry(self) -> None:
        """Come back when the message at the head expires."""
        expires_at = self._backlog.head().expires_at if len(self._backlog) else None
        if expires_at is None:
            return
        if self._expiry_timer is not None:
            if self._expiry_at <= expires_at:
                return
            self._expiry_timer.cancel()
        self._expiry_at = expires_at
        self._expiry_timer = self.clock.call_later(max(expires_at - self.clock.now(), 0), self._expiry_due)

    def _expiry_due(self) -> None:
        self._expiry_timer = None
        if not self.deleted:
            self.pump()
            self._arm_expiry()

    def add_consumer(self, consumer: Consumer) -> None:
        """Let a consumer have messages; call `pump` once it has been told that it is one."""
        self.consumers.add(consumer)
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None

    def remove_consumer(self, consumer: Consumer) -> None:
        """A consumer goes; an auto-delete queue goes with its last one."""
        if not self.consumers.remove(consumer):
            return
        self.touch()
        if self.auto_delete and not len(self.consumers):
            self.when_unused(self)
        elif not self.deleted:
            self.pump()

    def touch(self) -> None:
        """It has been used: `x-expires` counts from now."""
        expires = self.options.expires
        if expires is None:
            return
        if self._unused_timer is not None:
            self._unused_timer.cancel()
        self._unused_timer = None if len(self.consumers) else self.clock.call_later(expires, self._unused_for_long)

    def _unused_for_long(self) -> None:
        if not self.deleted and not len(self.consumers):
            self.when_unused(self)

    def purge(self) -> int:
        """Drop what is ready; returns how many messages that were."""
        count = len(self._backlog)
        while len(self._backlog):
            self._forget(self._backlog.take())
        return count

    def delete(self) -> int:
        """Drop everything and cancel the consumers; returns how many messages were ready."""
        self.deleted = True
        count = self.purge()
        for timer in (self._expiry_timer, self._unused_timer):
            if timer is not None:
                timer.cancel()
        for consumer in self.consumers.clear():
            consumer.cancelled()
        return count
