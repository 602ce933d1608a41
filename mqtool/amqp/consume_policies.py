"""How a consumer takes deliveries: its limits, its buffer, and when it acknowledges."""

import queue as queues
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from mqtool.errors import TimedOut
from mqtool.message import Delivery
from mqtool.offsets import Offset

#: Octets of bodies that are kept at most, so that a few large messages do not fill the memory.
_MAX_SIZE = 128 << 20


class Buffer:
    """Keeps deliveries until they are taken, in lots. Beyond a limit it drops the oldest lots, and counts them.

    One thread puts lots in and another takes them out. Each changes numbers of its own only, so no lock is needed.

    Attributes:
        dropped: how many deliveries were dropped.

    Args:
        limit: how many deliveries to keep, besides the latest lot.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self.limit = limit
        self._lots: queues.SimpleQueue[list[Delivery] | None] = queues.SimpleQueue()
        self._in = self._in_size = 0
        self._out = self._out_size = self._dropped_size = 0

    def put(self, lot: list[Delivery] | None) -> None:
        """Add a lot; None wakes whoever waits for one."""
        if lot is not None:
            self._in += len(lot)
            self._in_size += _size(lot)
        self._lots.put(lot)
        while self._lots.qsize() > 1 and self._is_full:
            try:
                oldest = self._lots.get_nowait()
            except queues.Empty:  # the other thread has just taken it
                return
            if oldest is None:
                self._lots.put(None)
            else:
                self.dropped += len(oldest)
                self._dropped_size += _size(oldest)

    @property
    def _is_full(self) -> bool:
        kept, size = self._in - self._out - self.dropped, self._in_size - self._out_size - self._dropped_size
        return kept > self.limit or size > _MAX_SIZE

    def get(self, timeout: float | None = None) -> list[Delivery] | None:
        """The oldest lot.

        Raises:
            queue.Empty: there is none in time.
        """
        return self._taken(self._lots.get(timeout=timeout))

    def get_nowait(self) -> list[Delivery] | None:
        """The same, without waiting."""
        return self._taken(self._lots.get_nowait())

    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._lots.empty()

    def _taken(self, lot: list[Delivery] | None) -> list[Delivery] | None:
        if lot is not None:
            self._out += len(lot)
            self._out_size += _size(lot)
        return lot


def _size(lot: list[Delivery]) -> int:
    return sum(len(delivery.body) for delivery in lot)


#: Unacknowledged deliveries by default: enough to stream at full speed.
PREFETCH = 1000
#: Above this count, deliveries one by one would be slow. How many are then acknowledged before the last has come.
_MANY, _EARLY = 250, 50
#: Seconds for which an acknowledgement may wait for others, to be sent with them as one, while deliveries come fast.
_ACK_TOGETHER = 0.05
#: From RabbitMQ 4.0 on, a quorum queue drops what has come back 20 times, even if it was only prefetched. From this
#: count on, a message is taken one by one, although it then comes back behind the others.
_OFTEN = 15


def _do_nothing() -> None:
    """There is no output to write."""


class Receiving(NamedTuple):
    """How to consume, and when to stop.

    Attributes:
        prefetch: deliveries that may be unacknowledged at a time; 0 for no limit.
        auto_ack: the broker counts a delivery as acknowledged once it is sent; what we hold is lost with us.
        acknowledge: False leaves it to the caller to acknowledge each delivery, from any thread and in any order; or
            not to, to see what happens then.
        count: stop after this many deliveries; exactly as many are taken from the queue.
        idle_timeout: seconds without a delivery. Fewer than count by then is a time-out, else a normal end.
        timeout: seconds in total, after which consuming has timed out.
        buffer: where deliveries that are acknowledged on delivery wait for the caller; None for one without a limit.
            With one, those that wait are dropped at the end: nobody asked for all of them.
        offset: of a stream, where to start; None leaves it to the broker, which starts at what comes next.
        before_acknowledging: called before deliveries are acknowledged, and when no more have arrived: a caller that
            collects its output writes it then. What it raises leaves the deliveries unacknowledged.
    """

    prefetch: int = PREFETCH
    auto_ack: bool = False
    acknowledge: bool = True
    count: int | None = None  # type: ignore[assignment]  # in place of a method of tuples
    idle_timeout: float | None = None
    timeout: float | None = None
    buffer: Buffer | None = None
    offset: Offset | None = None
    before_acknowledging: Callable[[], None] = _do_nothing

    def left(self, taken: int, lasted: float, silent: float) -> float | None:
        """Seconds until a limit; None if there is none, 0 if there has been silence for long enough.

        Args:
            taken: deliveries so far.
            lasted, silent: seconds in total, and without a delivery.

        Raises:
            TimedOut: a time limit has passed.
        """
        if self.timeout is not None and lasted >= self.timeout:
            raise TimedOut(f"timed out after {self.timeout:g} s, with {taken:,} received")
        if self.idle_timeout is not None and silent >= self.idle_timeout:
            if self.count is not None:
                raise TimedOut(f"nothing came for {self.idle_timeout:g} s, with {taken:,} of {self.count:,} received")
            return 0.0
        rest = [self.timeout - lasted] if self.timeout is not None else []
        rest += [self.idle_timeout - silent] if self.idle_timeout is not None else []
        return min(rest, default=None)


STREAMING = Receiving()


class Step(Enum):
    """What to do with the subscription: basic.consume and basic.cancel."""

    GO_ON = auto()
    CANCEL = auto()
    RESUBSCRIBE = auto()  # if the policy wants more then: more may come until the broker has cancelled


class Policy:
    """Decides how to consume. This one never acknowledges, and goes on forever.

    Attributes:
        prefetch: for the next subscription.
        auto_ack: likewise.
        acknowledges: whether it, and not the caller or the broker, says when to acknowledge.
    """

    acknowledges = False

    def __init__(self, prefetch: int, *, auto_ack: bool = False) -> None:
        self.prefetch = prefetch
        self.auto_ack = auto_ack

    def opened(self) -> None:
        """The channel is another one: whatever was in hand comes again."""

    def taken(self, delivery: Delivery) -> Step:  # noqa: ARG002
        """The caller takes a delivery."""
        return Step.GO_ON

    def done(self, delivery: Delivery, now: float) -> bool:  # noqa: ARG002
        """The caller asks for the next delivery; return whether to acknowledge now what release() returns."""
        return False

    def acknowledged(self, tag: int, received: int, *, is_current: bool) -> Step:  # noqa: ARG002
        """The caller acknowledges a delivery.

        Args:
            tag: the delivery's.
            received: deliveries since the channel was opened.
            is_current: it was one of them.
        """
        return Step.GO_ON

    def wants_more(self, received: int, through: int) -> bool:  # noqa: ARG002
        """Whether to subscribe again after a cancellation; asked once, before that.

        Args:
            received: deliveries since the channel was opened.
            through: the tag of the last of them.
        """
        return True

    def release(self, *, leaving: bool = False) -> Delivery | None:  # noqa: ARG002
        """The delivery up to which to acknowledge, if that may be done now.

        Args:
            leaving: no more deliveries will be taken.
        """
        return None

    @property
    def withholds(self) -> bool:
        """Whether acknowledgements wait although release() was called."""
        return False

    def silence(self) -> Step:
        """Acknowledgements are withheld, and nothing more comes for now."""
        return Step.GO_ON


def policy_for(receiving: Receiving, *, limits_deliveries: bool, is_stream: bool = False) -> Policy:
    """Choose a policy.

    Args:
        limits_deliveries: the queue drops messages that were delivered too often.
        is_stream: what is delivered stays in the queue, so it does not matter how much is.
    """
    if not receiving.acknowledge:
        return CallerSettles(receiving)
    if is_stream:
        return Streaming(receiving.prefetch, auto_ack=receiving.auto_ack)
    if receiving.buffer is not None:
        return Streaming(receiving.prefetch, auto_ack=True)
    if receiving.count is not None:
        return ExactCount(receiving.count, receiving.prefetch)
    if limits_deliveries and not receiving.auto_ack and receiving.prefetch == PREFETCH:
        return Cautious()
    return Streaming(receiving.prefetch, auto_ack=receiving.auto_ack)


class Streaming(Policy):
    """As many deliveries as the prefetch at a time. One acknowledgement is sent for a group of them."""

    def __init__(self, prefetch: int = PREFETCH, *, auto_ack: bool = False) -> None:
        super().__init__(prefetch, auto_ack=auto_ack)
        self.acknowledges = not auto_ack
        self._group = prefetch
        self._newest: Delivery | None = None
        self._waiting = 0
        self._last_ack = 0.0

    def done(self, delivery: Delivery, now: float) -> bool:
        self._newest = delivery
        self._waiting += 1
        is_due = self._waiting * 4 >= self._group > 0 or now - self._last_ack > _ACK_TOGETHER
        if is_due:
            self._last_ack = now
        return is_due

    def release(self, *, leaving: bool = False) -> Delivery | None:  # noqa: ARG002
        newest, self._newest, self._waiting = self._newest, None, 0
        return newest


class Cautious(Streaming):
    """One delivery at a time, until one has not come back often; then streaming."""

    def __init__(self) -> None:
        super().__init__()
        self.prefetch = 1

    def taken(self, delivery: Delivery) -> Step:
        if self.prefetch == 1 and delivery.headers.get("x-delivery-count", 0) < _OFTEN:
            self.prefetch = PREFETCH
            return Step.RESUBSCRIBE
        return Step.GO_ON


class ExactCount(Streaming):
    """Exactly N deliveries, one by one or, where that would be slow, with a wide prefetch.

    Then the last acknowledgements are withheld: they would make room for deliveries beyond the count. No prefetch
    limits what is acknowledged automatically, so auto_ack is off here.
    """

    def __init__(self, count: int, prefetch: int = PREFETCH) -> None:
        is_wide = (prefetch or PREFETCH) >= PREFETCH and count > _MANY
        super().__init__(min(prefetch or PREFETCH, count - _EARLY) if is_wide else 1)
        self._left = count
        self._may_ack = count - self.prefetch
        self._is_cancelled = False

    def taken(self, delivery: Delivery) -> Step:  # noqa: ARG002
        self._left -= 1
        if self._left:
            return Step.GO_ON
        self._is_cancelled = True  # before the last acknowledgement makes room for another
        return Step.CANCEL

    def done(self, delivery: Delivery, now: float) -> bool:
        return super().done(delivery, now) or self._waiting == self._may_ack

    def release(self, *, leaving: bool = False) -> Delivery | None:
        if self.prefetch != 1 and not self._is_cancelled and not leaving:
            if self._waiting > self._may_ack:
                return None
            self._may_ack -= self._waiting
        return super().release()

    @property
    def withholds(self) -> bool:
        return self._newest is not None

    def silence(self) -> Step:
        """Acknowledge what is withheld, and go on one by one."""
        self.prefetch = self._group = 1
        return Step.RESUBSCRIBE


class CallerSettles(Policy):
    """The caller acknowledges. With a count, the broker never sends more: the last few come one by one."""

    def __init__(self, receiving: Receiving) -> None:
        count, prefetch = receiving.count, receiving.prefetch
        if count is not None:  # nothing may make room for more, so the count itself can be the limit
            prefetch = min(prefetch or count, count)
        super().__init__(prefetch, auto_ack=receiving.auto_ack and count is None)
        self._count = self._limit = count  # the limit is what is left of it for this opening of the channel
        self._left = count
        self._acknowledged = 0
        self._most = prefetch  # deliveries of this opening that the broker may have sent
        self._through = 0  # the last one to an earlier subscription: acknowledging those makes no room

    def opened(self) -> None:
        if self._count is not None:
            self._limit = self._count - self._acknowledged
        self._most, self._through = self.prefetch, 0

    def taken(self, delivery: Delivery) -> Step:  # noqa: ARG002
        if self._left is None:
            return Step.GO_ON
        self._left -= 1
        return Step.GO_ON if self._left else Step.CANCEL

    def acknowledged(self, tag: int, received: int, *, is_current: bool) -> Step:
        self._acknowledged += is_current
        if self._limit is None:
            return Step.GO_ON
        if received >= self._limit:
            return Step.CANCEL
        if is_current and tag > self._through:
            if self._most == self._limit:
                return Step.RESUBSCRIBE
            self._most += 1
        return Step.GO_ON

    def wants_more(self, received: int, through: int) -> bool:
        if self._limit is None:
            return True
        missing = self._limit - received
        # All of it, at first. Where that does not come at once, each acknowledgement would ask anew.
        self.prefetch = max(1, missing // 2) if self._through else missing
        self._through = through
        self._most = received + self.prefetch
        return missing > 0
