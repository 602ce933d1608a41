"""The consumers of a queue, its message counts, and the interface of a watcher of message events."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from operator import neg
from typing import Any, Protocol

from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.profile import Profile
from mqtool.codecs.field_tables import Int64, Table


class QueueConsumer(Protocol):
    """A consumer, as its queue sees it.

    Attributes:
        queue: the BrokerQueue.
        selector: for an AMQP 1.0 consumer of a stream, returns True for the Sections of each message that the consumer
            is to get. None for an AMQP 0-9-1 consumer.
    """

    tag: str
    queue: Any
    priority: int
    exclusive: bool
    no_ack: bool
    arguments: Table
    selector: Callable[[Any], bool] | None

    @property
    def client(self) -> object:
        """The connection that the consumer belongs to."""

    def ready(self) -> bool:
        """Return True if the consumer can take a message now. If not, it must be passed to feed() once it can."""

    def take(self, entry: BacklogEntry) -> None:
        """Deliver a message to the consumer."""

    def cancelled(self) -> None:
        """Notify the consumer that the queue was deleted."""

    def demoted(self) -> None:
        """Notify the consumer that another one of higher priority has become the single active one."""


def delivery_counts(entry: BacklogEntry, profile: Profile) -> Table:
    """Return the headers or annotations that tell a consumer how often a quorum queue delivered a message before."""
    counts: Table = {}
    if entry.delivery_count or profile.nack_counts:
        counts["x-delivery-count"] = Int64(entry.delivery_count)
    if not profile.nack_counts:
        counts["x-acquired-count"] = Int64(entry.acquired_count)
    return counts


class _ByPriority:
    """Consumers by descending priority; those of equal priority in the order in which they were added.

    In an OrderedDict, unlike in a list, deque or dict, each operation used here takes the same time for any size.
    """

    def __init__(self) -> None:
        self._of: dict[int, OrderedDict[QueueConsumer, None]] = {}
        self._descending: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._descending)

    def add(self, consumer: QueueConsumer) -> None:
        """Add a consumer. No effect if it is there."""
        priority = consumer.priority
        if priority not in self._of:
            self._of[priority] = OrderedDict()
            insort(self._descending, priority, key=neg)
        self._of[priority].setdefault(consumer)

    def discard(self, consumer: QueueConsumer) -> None:
        """Remove a consumer, if it is there."""
        priority = consumer.priority
        turns = self._of.get(priority)
        if turns is not None:
            turns.pop(consumer, None)
            if not turns:
                del self._of[priority]
                del self._descending[bisect_left(self._descending, -priority, key=neg)]

    def first(self) -> QueueConsumer:
        return next(iter(self._of[self._descending[0]]))

    def move_to_end(self, consumer: QueueConsumer) -> None:
        """Let the others of its priority come first."""
        self._of[consumer.priority].move_to_end(consumer)


class Consumers:
    """The consumers of a queue. Those of higher priority (`x-priority`) come first; equal ones take turns.

    A consumer that could not take a message is not asked again until wake(): otherwise, thousands of busy consumers
    would cost as many questions for each message.

    Args:
        single_active: True if only one consumer gets messages. The first one does until it is removed; then the oldest
            one of the highest priority.
        by_age: True if the oldest one follows, whatever its priority, as in quorum queues up to RabbitMQ 3.13.
        takes_over: True if a new consumer of higher priority becomes the single active one as soon as no message is
            unacknowledged, as in quorum queues since RabbitMQ 4.0. Until then, no consumer gets messages.
        unacked: returns how many messages of the queue are unacknowledged.

    Attributes:
        all: the consumers in the order in which they were added. Only for reading.
        active: the single active consumer, if any.
        is_fading: True while the single active consumer gets no more messages, because another one will take over.
    """

    def __init__(
        self, *, single_active: bool, by_age: bool = False, takes_over: bool = False, unacked: Callable[[], int]
    ) -> None:
        self._single_active = single_active
        self._by_age = by_age
        self._takes_over = single_active and takes_over
        self._unacked = unacked
        self.all: OrderedDict[QueueConsumer, None] = OrderedDict()
        self._awake = _ByPriority()
        self._candidates = _ByPriority()
        self.active: QueueConsumer | None = None
        self.is_fading = False
        # The one consumer that gets all messages, if any. Asking it alone is the hot path.
        self._only: QueueConsumer | None = None

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[QueueConsumer]:
        return iter(self.all)

    @property
    def exclusive(self) -> bool:
        """True if any consumer is exclusive. It is then the only one in a classic queue."""
        return bool(self.all) and next(iter(self.all)).exclusive

    def is_active(self, consumer: QueueConsumer) -> bool:
        """Return True if a consumer may get messages. If the queue has a single active consumer, no other one may."""
        return not self._single_active or consumer is self.active

    def add(self, consumer: QueueConsumer) -> None:
        self.all[consumer] = None
        self.wake(consumer)
        if self._single_active:
            self._candidates.add(consumer)
            if self.active is None:
                self.active = consumer
        self._choose_only()

    def _choose_only(self) -> None:
        self._only = next(iter(self.all)) if len(self.all) == 1 else self.active
        active = self.active
        self.is_fading = self._takes_over and active is not None and self._candidates.first().priority > active.priority

    def _successor(self) -> QueueConsumer | None:
        if self._by_age:
            return next(iter(self.all), None)
        return self._candidates.first() if self._candidates else None

    def wake(self, consumer: QueueConsumer) -> None:
        """Ask a consumer again from now on: it can take messages. No effect if it does not consume from this queue."""
        if consumer in self.all:
            self._awake.add(consumer)

    def pop_awake(self) -> QueueConsumer | None:
        """Return a consumer that may be able to take a message, and do not return it again until wake()."""
        if not self._awake:
            return None
        consumer = self._awake.first()
        self._awake.discard(consumer)
        return consumer

    def remove(self, consumer: QueueConsumer) -> bool:
        """Remove a consumer. Returns True if another one has become the single active one."""
        self.all.pop(consumer, None)
        self._awake.discard(consumer)
        self._candidates.discard(consumer)
        is_other = self.active is consumer and bool(self.all)
        if self.active is consumer:
            self.active = self._successor()
        self._choose_only()
        if is_other and self.active is not None:
            self.active.ready()  # a consumer that has become the active one may tell its client
        return is_other

    def clear(self) -> list[QueueConsumer]:
        """Remove all consumers and return them."""
        gone = [*self.all]
        self.all.clear()
        self._awake, self._candidates = _ByPriority(), _ByPriority()
        self.active = self._only = None
        self.is_fading = False
        return gone

    def next_ready(self) -> QueueConsumer | None:
        """Choose the consumer for the next message, in turn; return None if no consumer can take one now."""
        if self.is_fading:
            self._hand_over()
        only = self._only
        if only is not None:
            return only if not self.is_fading and only.ready() else None
        awake = self._awake
        while awake:
            consumer = awake.first()
            if consumer.ready():
                awake.move_to_end(consumer)
                return consumer
            awake.discard(consumer)
        return None

    def _hand_over(self) -> None:
        """Make the consumer of the highest priority the active one, unless messages are unacknowledged."""
        if not self._unacked() and self.active is not None:
            former, self.active = self.active, self._candidates.first()
            self._choose_only()
            former.demoted()


@dataclass(eq=False)
class Traffic:
    """How many messages were published to a queue, delivered from it, redelivered and acknowledged.

    Attributes:
        delivered: all deliveries, including those that the other attributes count.
        delivered_no_ack: deliveries to consumers with automatic acknowledgement.
        got, got_no_ack: deliveries in response to basic.get, with manual and with automatic acknowledgement.
    """

    published: int = 0
    delivered: int = 0
    acknowledged: int = 0
    redelivered: int = 0
    delivered_no_ack: int = 0
    got: int = 0
    got_no_ack: int = 0

    def add(self, other: "Traffic") -> None:
        """Add the counts of another queue."""
        for name in self.__dict__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def counts(self) -> dict[str, int]:
        """Return the counts under their field names in the management API."""
        return {
            "publish": self.published,
            "deliver_get": self.delivered,
            "deliver": self.delivered - self.delivered_no_ack - self.got - self.got_no_ack,
            "get": self.got,
            "deliver_no_ack": self.delivered_no_ack,
            "get_no_ack": self.got_no_ack,
            "ack": self.acknowledged,
            "redeliver": self.redelivered,
        }


class Watcher(Protocol):
    """An observer, such as a live display, of what happens to messages in a virtual host.

    A watcher changes nothing. Queues and exchanges are of type Any here, because their modules import this one.

    Attributes:
        shown: the messages that the watcher shows, by position; see Entry.
        publishing: the latest messages that the watcher shows, by id().
        skipped: the addresses whose new messages are not shown for the moment, so published() need not be called.
    """

    shown: dict[int, Any]
    publishing: dict[int, Any]
    skipped: set[bytes]

    def published(self, routing: Any) -> None:
        """Handle a message that is about to be added to the queues it is routed to, and decide whether to show it."""

    def unroutable(self, message: BrokerMessage, *, returned: bool) -> None:
        """Handle an unroutable message."""

    def refused(self, queue: Any, message: BrokerMessage) -> None:
        """Handle a published message that a full queue has refused."""

    def entered(self, queue: Any, message: BrokerMessage, position: int) -> None:
        """Handle a published message that a queue has accepted."""

    def confirmed(self, channel: Any, settled: range, nacked: Collection[int]) -> None:
        """Handle confirms that were sent for publishes of a channel, which are numbered from 1.

        Args:
            settled: the publishes that were confirmed or nacked.
            nacked: those of them that were nacked, with a frame each; one frame confirms all others.
        """

    def delivered(self, queue: Any, entry: BacklogEntry, consumer: QueueConsumer | None, *, no_ack: bool) -> None:
        """Handle a delivery; `consumer` is None for basic.get."""

    def acknowledged(self, queue: Any, entry: BacklogEntry) -> None:
        """Handle an acknowledgement."""

    def requeued(self, queue: Any, entry: BacklogEntry, why: str) -> None:
        """Handle a requeued message; `why` is the name of a member of queue.Why in lower case."""

    def ended(self, queue: Any, entry: BacklogEntry, reason: str, exchange: str | None) -> None:
        """Handle a message that is dead-lettered to an exchange, or dropped if there is none."""

    def emptied(self, queue: Any) -> None:
        """Handle a queue that was purged or deleted: all its ready messages are gone."""

    def delayed(self, exchange: Any, entry: BacklogEntry) -> None:
        """Handle a message that an x-delayed-message exchange holds back."""

    def streamed(self, source: object, stream: str, messages: Iterator[tuple[int, BrokerMessage]]) -> None:
        """Handle messages, each with its offset, that are appended with the stream protocol."""

    def read(self, stream: str, offsets: range, consumer: str, client: object) -> None:
        """Handle messages that are sent to a consumer of the stream protocol; `client` is its connection."""

    def stored(self, stream: str, name: str, offset: int, client: object) -> None:
        """Handle the offset that a client stores for a named reader of a stream."""

    def replied(self, source: object, message: BrokerMessage, to: object) -> None:
        """Handle a direct reply from one channel to another."""

    def unknown_exchange(self, source: object, message: BrokerMessage) -> None:
        """Handle a message that was published to an exchange that does not exist."""

    def unknown_address(self, source: object, address: str) -> None:
        """Handle an AMQP 1.0 client that asks to publish to a queue or exchange that does not exist."""

    def changed(self) -> None:
        """Handle a new or deleted exchange, queue, binding or consumer."""
