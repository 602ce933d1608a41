"""How to consume: limits (Receiving), a buffer for slow callers (Buffer), and policies for when to acknowledge.

    Streaming       up to `prefetch` deliveries at a time; acknowledgements are grouped
    Cautious        one by one at first, where the broker drops messages that were redelivered too often
    ExactCount      exactly N deliveries: the broker never sends more
    CallerSettles   the caller acknowledges, from any thread and in any order

A policy does no I/O: the consumer reports events to the policy, and takes the step that the policy returns.
"""

import queue as queues
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from mqtool.errors import TimedOut
from mqtool.message import Delivery
from mqtool.offsets import Offset

#: The maximum total size of the bodies in a buffer, in bytes.
_MAX_SIZE = 128 << 20


class Buffer:
    """A queue of batches of deliveries, for a caller that may be slow. Above a limit, the oldest batches are dropped.

    One thread puts batches in and another gets them. Each thread changes only its own counters, so there is no lock.

    Attributes:
        dropped: the number of deliveries dropped.

    Args:
        limit: the number of deliveries to keep. The latest batch is always kept.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self.limit = limit
        self._batches: queues.SimpleQueue[list[Delivery] | None] = queues.SimpleQueue()
        self._in = self._in_size = 0
        self._out = self._out_size = self._dropped_size = 0

    def put(self, batch: list[Delivery] | None) -> None:
        """Add a batch. None wakes up a waiting get(), which then returns None."""
        if batch is not None:
            self._in += len(batch)
            self._in_size += _size(batch)
        self._batches.put(batch)
        while self._batches.qsize() > 1 and self._is_full:
            try:
                oldest = self._batches.get_nowait()
            except queues.Empty:  # the other thread was faster
                return
            if oldest is None:
                self._batches.put(None)
            else:
                self.dropped += len(oldest)
                self._dropped_size += _size(oldest)

    @property
    def _is_full(self) -> bool:
        kept, size = self._in - self._out - self.dropped, self._in_size - self._out_size - self._dropped_size
        return kept > self.limit or size > _MAX_SIZE

    def get(self, timeout: float | None = None) -> list[Delivery] | None:
        """Return and remove the oldest batch.

        Raises:
            queue.Empty: none arrived within the timeout, in seconds.
        """
        return self._taken(self._batches.get(timeout=timeout))

    def get_nowait(self) -> list[Delivery] | None:
        """Return and remove the oldest batch, without waiting. Raises queue.Empty if there is none."""
        return self._taken(self._batches.get_nowait())

    def empty(self) -> bool:
        """True if there is no batch."""
        return self._batches.empty()

    def _taken(self, batch: list[Delivery] | None) -> list[Delivery] | None:
        if batch is not None:
            self._out += len(batch)
            self._out_size += _size(batch)
        return batch


def _size(batch: list[Delivery]) -> int:
    return sum(len(delivery.body) for delivery in batch)


#: The default prefetch: enough for full speed.
PREFETCH = 1000
#: Up to a count of _MANY, deliveries are taken one by one. Above it, the prefetch is the count minus _EARLY.
_MANY, _EARLY = 250, 50
#: Seconds that an acknowledgement may wait for others, to be sent as one basic.ack.
_ACK_TOGETHER = 0.05
#: From RabbitMQ 4.0 on, a quorum queue drops messages that were returned 20 times, even if they were only prefetched.
#: Messages that were returned this often are taken one by one.
_OFTEN = 15


def _do_nothing() -> None:
    """Do nothing: the default of Receiving.before_acknowledging."""


class Receiving(NamedTuple):
    """How to consume, and when to stop.

    Attributes:
        prefetch: the maximum number of unacknowledged deliveries; 0 for no limit.
        auto_ack: the broker treats a delivery as acknowledged once it is sent. Deliveries that were not printed are
            lost if the process dies.
        acknowledge: False if the caller acknowledges deliveries itself, from any thread and in any order, or not at
            all.
        count: stop after this many deliveries. No more are taken from the queue.
        idle_timeout: seconds without a delivery after which to stop; this is an error if `count` was not reached.
        timeout: seconds in total, after which TimedOut is raised.
        buffer: a limited buffer for a slow caller (with auto_ack); None for an unlimited one. When consuming ends, the
            deliveries left in it are dropped.
        offset: where to start in a stream; None starts with messages published from now on.
        before_acknowledging: called before deliveries are acknowledged, and when no more have arrived, so that a caller
            can write the output it has collected. If it raises an error, the deliveries stay unacknowledged.
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
        """Return the seconds until the next time limit; None if there is none, 0 to stop after the idle timeout.

        Args:
            taken: the number of deliveries so far.
            lasted: seconds since the start.
            silent: seconds since the last delivery.

        Raises:
            TimedOut: the timeout has passed, or the idle timeout before `count` deliveries.
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
    """What a consumer must do with its subscription."""

    GO_ON = auto()
    CANCEL = auto()
    RESUBSCRIBE = auto()  # cancel; then consume again, if the policy still wants more


class Policy:
    """Decides how to consume. This base class never acknowledges, and never stops.

    Attributes:
        prefetch, auto_ack: for the next basic.consume.
        acknowledges: True if the policy decides when to acknowledge, not the caller or the broker.
    """

    acknowledges = False

    def __init__(self, prefetch: int, *, auto_ack: bool = False) -> None:
        self.prefetch = prefetch
        self.auto_ack = auto_ack

    def opened(self) -> None:
        """Called when the channel was reopened; the broker redelivers unacknowledged deliveries."""

    def taken(self, delivery: Delivery) -> Step:  # noqa: ARG002
        """Called before a delivery is yielded. Return what to do with the subscription."""
        return Step.GO_ON

    def done(self, delivery: Delivery, now: float) -> bool:  # noqa: ARG002
        """Called when the caller is done with a delivery. Return True to call release() and acknowledge now."""
        return False

    def acknowledged(self, tag: int, received: int, *, is_current: bool) -> Step:  # noqa: ARG002
        """Called when the caller acknowledges a delivery.

        Args:
            tag: the delivery tag.
            received: the number of deliveries since the channel was opened.
            is_current: True if the delivery arrived since the channel was opened.
        """
        return Step.GO_ON

    def wants_more(self, received: int, through: int) -> bool:  # noqa: ARG002
        """Return True to consume again. Called after Step.RESUBSCRIBE has cancelled the subscription.

        Args:
            received: the number of deliveries since the channel was opened.
            through: the delivery tag of the latest delivery.
        """
        return True

    def release(self, *, leaving: bool = False) -> Delivery | None:  # noqa: ARG002
        """Return the delivery up to which to acknowledge now; None to acknowledge nothing.

        Args:
            leaving: the consumer is about to end.
        """
        return None

    @property
    def withholds(self) -> bool:
        """True if acknowledgements are being held back."""
        return False

    def silence(self) -> Step:
        """Called when no delivery has arrived for a while, and acknowledgements are held back."""
        return Step.GO_ON


def policy_for(receiving: Receiving, *, limits_deliveries: bool, is_stream: bool = False) -> Policy:
    """Choose a policy.

    Args:
        limits_deliveries: True if the queue drops messages that were delivered too often.
        is_stream: True for a stream, whose messages stay, so that prefetching more than the count does no harm.
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
    """Takes up to `prefetch` deliveries at a time; one basic.ack acknowledges a group of deliveries."""

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
    """Takes one delivery at a time until one arrives that was not requeued often; then works like Streaming."""

    def __init__(self) -> None:
        super().__init__()
        self.prefetch = 1

    def taken(self, delivery: Delivery) -> Step:
        if self.prefetch == 1 and delivery.headers.get("x-delivery-count", 0) < _OFTEN:
            self.prefetch = PREFETCH
            return Step.RESUBSCRIBE
        return Step.GO_ON


class ExactCount(Streaming):
    """Takes exactly N deliveries: one by one for small counts, otherwise with a large prefetch.

    With a large prefetch, the last acknowledgements are held back, so that the broker does not send more than N.
    auto_ack is off, because it disables the prefetch limit.
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
        self._is_cancelled = True  # before the last acknowledgement lets the broker send another
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
        """Acknowledge the deliveries held back, and continue one by one."""
        self.prefetch = self._group = 1
        return Step.RESUBSCRIBE


class CallerSettles(Policy):
    """Lets the caller acknowledge. With a count, lowers the prefetch towards the end, so that no more are sent."""

    def __init__(self, receiving: Receiving) -> None:
        count, prefetch = receiving.count, receiving.prefetch
        if count is not None:  # the prefetch itself can be the limit
            prefetch = min(prefetch or count, count)
        super().__init__(prefetch, auto_ack=receiving.auto_ack and count is None)
        self._count = self._limit = count  # the limit: the rest of the count when the channel was last opened
        self._left = count
        self._acknowledged = 0
        self._most = prefetch  # deliveries that the broker may have sent since the channel was opened
        self._through = 0  # the last tag of an earlier subscription: acknowledging those brings no more deliveries

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
        # Half of what is missing, the second time: else each acknowledgement would subscribe again.
        self.prefetch = max(1, missing // 2) if self._through else missing
        self._through = through
        self._most = received + self.prefetch
        return missing > 0
