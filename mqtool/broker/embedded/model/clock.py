"""Time as queues see it."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Do not make the call."""


class Clock(Protocol):
    """The time, which tests can replace."""

    def now(self) -> int:
        """Return milliseconds since 1970."""

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Schedule a call."""


class Alarm:
    """One timer that can be set again.

    Args:
        clock: whose time counts.
        what: called each time it goes off.
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
        self._timer = self._clock.call_later(max(due - self._clock.now(), 0), self._ring)

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
        self._what()


class LoopClock:
    """Wall-clock time, and timers on the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Schedule a call on the loop."""
        return self._loop.call_later(milliseconds / 1000, what)
