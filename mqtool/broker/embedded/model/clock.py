"""Clocks and timers for queues. Changes to the system time do not affect them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush, nsmallest
from itertools import count
from typing import Generic, Protocol, TypeVar

#: The longest timer of an alarm, in milliseconds. While the machine sleeps, timers stop but the clock does not, so an
#: alarm that is due later than this checks the clock at this interval.
_LONGEST_TIMER = 60_000

#: The system's monotonic clock; where available, one that keeps running while the machine sleeps.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

#: How many seconds a piece of long work may take before others are served.
TURN_SECONDS = 0.01

#: Once clients have been served for this many seconds in one iteration of the loop, the others wait for their turns.
_ITERATION_SECONDS = 0.05

#: Serving a client for less than this is not counted, because counting takes as long as handling a small message.
_SHORT_SECONDS = 0.0002

Item = TypeVar("Item")


class Timer(Protocol):
    """A scheduled call, which can be cancelled."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Provides the time and timers. Tests can replace it."""

    def now(self) -> int:
        """Return milliseconds since 1970, unaffected by changes to the system time."""

    def wall(self) -> int:
        """Return the current system time in milliseconds since 1970."""

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Call a function after this many milliseconds, unless the timer is cancelled."""

    def elapsed(self) -> float:
        """Return seconds since an arbitrary moment, to measure how long a piece of work has taken."""

    @property
    def is_late(self) -> bool:
        """True if clients have been served for long in this iteration of the event loop: what is new must wait."""

    def spend(self, seconds: float) -> None:
        """Add the time for which a client has been served in this iteration of the event loop."""

    def take_turn(self, what: Callable[[], object]) -> None:
        """Call a function in a later iteration of the event loop, after the functions that are waiting already.

        Long work is done in slices, each in a turn of its own, so that other clients are served in between.
        """


class LoopClock:
    """The system's clock, and timers on the running event loop."""

    elapsed = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._offset = time.time_ns() - time.clock_gettime_ns(_STEADY)
        self._waiting: deque[Callable[[], object]] = deque()
        self._has_turns = False
        self._spent = 0.0

    def now(self) -> int:
        return (time.clock_gettime_ns(_STEADY) + self._offset) // 1_000_000

    def wall(self) -> int:
        return time.time_ns() // 1_000_000

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        return self._loop.call_later(milliseconds / 1000, what)

    @property
    def is_late(self) -> bool:
        return self._spent > _ITERATION_SECONDS

    def spend(self, seconds: float) -> None:
        if seconds > _SHORT_SECONDS:
            if not self._spent:
                self._loop.call_soon(self._end_iteration)
            self._spent += seconds

    def _end_iteration(self) -> None:
        self._spent = 0.0

    def take_turn(self, what: Callable[[], object]) -> None:
        self._waiting.append(what)
        self._plan_turns()

    def _plan_turns(self) -> None:
        if not self._has_turns:
            self._has_turns = True
            self._loop.call_soon(self._next_turns)

    def _next_turns(self) -> None:
        # One long turn, or several short ones, in each iteration of the loop: between them, it reads from all sockets.
        # Those who have waited for their turn are not late, even if the iteration before this one was long.
        self._has_turns, self._spent = False, 0.0
        until = self.elapsed() + TURN_SECONDS
        try:
            for _ in range(len(self._waiting)):
                self._waiting.popleft()()
                if self.elapsed() > until:
                    break
        finally:
            if self._waiting:
                self._plan_turns()


class Alarm:
    """A timer that can be set again.

    Args:
        clock: the source of the time and of timers.
        what: called each time the alarm goes off.
    """

    def __init__(self, clock: Clock, what: Callable[[], object]) -> None:
        self._clock = clock
        self._what = what
        self._timer: Timer | None = None
        self._due = 0

    def set(self, due: int) -> None:
        """Set the alarm to this time (milliseconds since 1970), replacing any time set before."""
        self.cancel()
        self._due = due
        wait = min(max(due - self._clock.now(), 0), _LONGEST_TIMER)
        self._timer = self._clock.call_later(wait, self._ring)

    def set_by(self, due: int) -> None:
        """Set the alarm to this time, unless it is already set to an earlier one."""
        if self._timer is None or due < self._due:
            self.set(due)

    def cancel(self) -> None:
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
    """Items that become due at different times, with one timer for the earliest.

    Args:
        clock: the source of the time and of timers.
        due: called with each item once it is due; returns steps if it takes long. Items due at the same time are passed
            in the order they were added. Many items are passed in several turns.
        done: called at the end of each of these turns.
    """

    def __init__(
        self, clock: Clock, due: Callable[[Item], Iterator[None] | None], done: Callable[[], object] = lambda: None
    ) -> None:
        self._clock = clock
        self._when_due = due
        self._when_done = done
        self._steps: Iterator[None] | None = None
        self._heap: list[tuple[int, int, Item]] = []
        self._alarm = Alarm(clock, self._ring)
        self._numbers = count()
        self._waits = False

    def __len__(self) -> int:
        """Return the number of items that have not been passed yet."""
        return len(self._heap)

    def add(self, due: int, item: Item) -> None:
        """Add an item that is due at this time (milliseconds since 1970)."""
        heappush(self._heap, (due, next(self._numbers), item))
        self._alarm.set_by(due)

    def first(self, count: int) -> list[Item]:
        """Return the `count` items that are due first, in order."""
        return [item for _, _, item in nsmallest(count, self._heap)]

    def clear(self) -> list[Item]:
        """Remove all items and return them."""
        self._alarm.cancel()
        heap, self._heap = self._heap, []
        return [item for _, _, item in heap]

    def _ring(self) -> None:
        if not self._waits:
            self._pass_due()

    def _next_turn(self) -> None:
        self._waits = False
        self._pass_due()

    def _pass_due(self) -> None:
        """Pass the items that are due, in as many turns as necessary."""
        now, ends = self._clock.now(), self._clock.elapsed() + TURN_SECONDS
        while not self._waits and (self._steps is not None or (self._heap and self._heap[0][0] <= now)):
            if self._steps is None:
                self._steps = self._when_due(heappop(self._heap)[2])
            self._steps = rest_of(self._steps)
            if self._clock.elapsed() > ends:
                self._waits = True
                self._clock.take_turn(self._next_turn)
        if self._heap and not self._waits:
            self._alarm.set_by(self._heap[0][0])
        self._when_done()


def rest_of(steps: Iterator[None] | None) -> Iterator[None] | None:
    """Take one step; return the steps if there are more."""
    if steps is not None:
        for _ in steps:
            return steps
    return None


class TurnQueue(Generic[Item]):
    """Handles items one after another: at once as long as that is quick, and the others in later turns.

    If handling an item adds others, these are handled after it, so that calls do not nest.

    Args:
        handle: called with each item, in the order in which they were added; returns steps if it takes long.
    """

    def __init__(self, clock: Clock, handle: Callable[[Item], Iterator[None] | None]) -> None:
        self._clock = clock
        self._handle = handle
        self._steps: Iterator[None] | None = None
        self._waiting: deque[Item] = deque()
        self._is_busy = self._has_turn = False
        self._turn_ends = 0.0

    def add(self, item: Item) -> None:
        """Handle an item as soon as those before it have been handled."""
        self._waiting.append(item)
        if self._is_busy:
            return
        # Until the next turn, everything that is handled counts towards the same 10 ms.
        if not self._has_turn:
            self._begin_turn()
        if len(self._waiting) == 1 and self._clock.elapsed() <= self._turn_ends:
            self._work()

    def _begin_turn(self) -> None:
        self._turn_ends = self._clock.elapsed() + TURN_SECONDS
        self._has_turn = True
        self._clock.take_turn(self._next_turn)

    def _next_turn(self) -> None:
        self._has_turn = False
        if (self._waiting or self._steps is not None) and not self._is_busy:
            self._begin_turn()
            self._work()

    def _work(self) -> None:
        self._is_busy = True
        try:
            while self._waiting or self._steps is not None:
                if self._steps is None:
                    self._steps = self._handle(self._waiting.popleft())
                self._steps = rest_of(self._steps)
                if self._clock.elapsed() > self._turn_ends:
                    return
        finally:
            self._is_busy = False

    def finish(self, until: float) -> int:
        """Handle the items now, because the broker is about to stop; return how many are left.

        Args:
            until: when to give up, as Clock.elapsed() measures it: handling an item can add others without end.
        """
        self._turn_ends = until
        self._work()
        left = len(self._waiting) + (self._steps is not None)
        self._steps = None
        self._waiting.clear()  # else they would be handled in later turns, when the broker has stopped
        return left
