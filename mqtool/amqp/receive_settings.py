"""How to consume, and when to stop (Receiving); a buffer for slow callers (Buffer)."""

import queue as queues
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from mqtool.errors import TimedOut
from mqtool.message import Delivery

if TYPE_CHECKING:  # only consumers need it
    from mqtool.offsets import Offset

#: The default prefetch: enough for full speed.
PREFETCH = 1000
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
    offset: "Offset | None" = None
    before_acknowledging: Callable[[], None] = _do_nothing

    def left(self, taken: int, lasted: float, silent: float) -> float | None:
        """Return the seconds until the next time limit; None if there is none, 0 to stop after the idle timeout.

        Args:
            taken: the number of deliveries so far.
            lasted: seconds since the start.
            silent: seconds since the last delivery.

        Raises:
            TimedOut: the timeout has passed, or the idle timeout has and `count` was not reached.
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
