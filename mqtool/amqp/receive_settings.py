"""How to consume, and when to stop (Receiving)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from mqtool.errors import TimedOut

if TYPE_CHECKING:  # only consumers need them
    from mqtool.amqp.subscription import Buffer
    from mqtool.offsets import Offset

#: The default prefetch: enough for full speed.
PREFETCH = 1000


def _do_nothing() -> None:
    """Do nothing: the default of Receiving.before_acknowledging."""


def _never() -> bool:
    return False


class Receiving(NamedTuple):
    """How to consume, and when to stop.

    Attributes:
        prefetch: the maximum number of unacknowledged deliveries; 0 for no limit.
        auto_ack: the broker treats a delivery as acknowledged once it is sent. Deliveries that were not printed are
            lost if the process dies.
        acknowledge: False if the caller acknowledges deliveries itself, from any thread and in any order, or not at
            all.
        count: stop after this many deliveries. No more are taken from the queue.
        idle_timeout: seconds without a delivery after which to stop, not counting time without a connection; this is an
            error if `count` was not reached.
        timeout: seconds in total, after which TimedOut is raised.
        buffer: a limited buffer for a slow caller (with auto_ack); None for an unlimited one. When consuming ends, the
            deliveries left in it are dropped.
        offset: where to start in a stream; None starts with messages published from now on.
        delivery_limit: how many times the queue requeues a message before it drops it, infinity for no limit; None to
            go by the queue's declaration.
        before_acknowledging: called before deliveries are acknowledged, and when no more have arrived, so that a caller
            can write the output it has collected. If it raises an error, the deliveries stay unacknowledged.
        is_output_full: called after each delivery. If it returns True, the deliveries are acknowledged now, so that
            none whose output was written stays unacknowledged when a later write fails.
        is_finished: called when all deliveries that have arrived are handled. If it returns True, stop consuming.
        after_reopening: called with the queue's name, by the thread that consumes, after the channel was reopened. A
            private queue has another name then.
    """

    prefetch: int = PREFETCH
    auto_ack: bool = False
    acknowledge: bool = True
    count: int | None = None  # type: ignore[assignment]  # replaces a method of tuple
    idle_timeout: float | None = None
    timeout: float | None = None
    buffer: "Buffer | None" = None
    offset: "Offset | None" = None
    delivery_limit: float | None = None
    before_acknowledging: Callable[[], None] = _do_nothing
    is_output_full: Callable[[], bool] = _never
    is_finished: Callable[[], bool] = _never
    after_reopening: Callable[[str], None] | None = None

    def left(self, taken: int, lasted: float, silent: float) -> float | None:
        """Return the seconds until the next time limit; None if there is none, 0 to stop after the idle timeout.

        Args:
            taken: the number of deliveries so far.
            lasted: seconds since the start.
            silent: seconds since the last delivery.

        Raises:
            TimedOut: the timeout has passed, or the idle timeout has and `count` was not reached.
        """
        if self.is_over(lasted):
            raise self.timed_out(taken)
        if self.idle_timeout is not None and silent >= self.idle_timeout:
            if self.count is not None:
                raise TimedOut(f"no message for {self.idle_timeout:g} s: {taken:,} of {self.count:,} received")
            return 0.0
        rest = [self.timeout - lasted] if self.timeout is not None else []
        rest += [self.idle_timeout - silent] if self.idle_timeout is not None else []
        return min(rest, default=None)

    def is_over(self, lasted: float) -> bool:
        """True if the timeout has passed, `lasted` seconds after the start."""
        return self.timeout is not None and lasted >= self.timeout

    def timed_out(self, taken: int) -> TimedOut:
        """Return the error for a timeout that has passed; `taken` is the number of deliveries so far."""
        return TimedOut(f"timed out after {self.timeout:g} s, with {taken:,} received")


STREAMING = Receiving()
