"""Time for queues: a clock that nobody can set back, alarms, and items that wait for a time."""

import asyncio
import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

#: The longest time, in milliseconds, until an alarm compares its time with the clock again. Timers stand still while
#: the machine sleeps, and the clock does not.
_LONGEST_TIMER = 60_000

#: A clock of the system that goes on while the machine sleeps, where there is one.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Item = TypeVar("Item")


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Do not make the call."""


class Clock(Protocol):
    """The time, which tests can replace."""

    def now(self) -> int:
        """Return milliseconds since 1970, without the steps in which the system's clock is set."""

    def wall(self) -> int:
        """Return milliseconds since 1970, as the system's clock shows them now."""

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Schedule a call."""


class LoopClock:
    """The system's time, and timers on the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._offset = time.time_ns() - time.clock_gettime_ns(_STEADY)

    def now(self) -> int:
        """Return milliseconds since 1970, without the steps in which the system's clock was set since the start."""
        return (time.clock_gettime_ns(_STEADY) + self._offset) // 1_000_000

    def wall(self) -> int:
        """Return milliseconds since 1970, as the system's clock shows them now."""
        return time.time_ns() // 1_000_000

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Schedule a call on the loop."""
        return self._loop.call_later(milliseconds / 1000, what)


class Alarm:
    """A timer that can be set again.

    Args:
        clock: the clock that it goes by.
        what: called each time the alarm goes off.
    """

    def __init__(self, clock: Clock, what: Callable[[], object]) -> None:
        self._clock = clock
        self._what = what
        self._timer: Timer | None = None
        self._due = 0

    def set(self, due: int) -> None:
        """Go off at this time (milliseconds since 1970), and not at the time set before."""
        self.cancel()
        self._due = due
        wait = min(max(due - self._clock.now(), 0), _LONGEST_TIMER)
        self._timer = self._clock.call_later(wait, self._ring)

    def set_by(self, due: int) -> None:
        """Go off at this time at the latest."""
        if self._timer is None or due < self._due:
            self.set(due)

    def cancel(self) -> None:
        """Do not go off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._due > self._clock.now():
            self.set(self._due)
        else:
            self._what()


class Timetable(Generic[Item]):
    """Items that wait, each for a time of its own, with one timer for the first.

    Args:
        clock: the clock that it goes by.
        due: called with each item whose time has come. Of two with the same time, the one added first goes first.
        done: called when all items that were due are gone.
    """

    def __init__(self, clock: Clock, due: Callable[[Item], object], done: Callable[[], object] = lambda: None) -> None:
        self._clock = clock
        self._when_due = due
        self._when_done = done
        self._heap: list[tuple[int, int, Item]] = []
        self._alarm = Alarm(clock, self._ring)
        self._turn = 0

    def add(self, due: int, item: Item) -> None:
        """Let an item wait until a time (milliseconds since 1970)."""
        self._turn += 1
        heappush(self._heap, (due, self._turn, item))
        self._alarm.set_by(due)

    def clear(self) -> list[Item]:
        """Remove all items, and return them."""
        self._alarm.cancel()
        heap, self._heap = self._heap, []
        return [item for _, _, item in heap]

    def _ring(self) -> None:
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now:
            self._when_due(heappop(self._heap)[2])
        if self._heap:
            self._alarm.set_by(self._heap[0][0])
        self._when_done()
