"""An event loop whose clock jumps to the next timer. It can drop everything that a killed broker had scheduled."""

import asyncio
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

from mqtool.broker.embedded.model.clock import LoopClock
from tests.simulation.judge import Violation

#: The run of the broker that a callback belongs to; 0 for clients and faults.
RUN: ContextVar[int] = ContextVar("RUN", default=0)

#: The time at which each simulation starts, in milliseconds since 1970.
EPOCH = 1_700_000_000_000

#: If the event loop makes more turns (iterations) than this without waiting for a timer, the broker never becomes idle.
_MOST_TURNS = 20_000

#: The longest time, on the broker's clock, between two checks of how long its work takes.
_SLOWEST_STEP_SECONDS = 0.05


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in a fixed order. Waiting for a timer takes no time, and there are no sockets and threads.

    Attributes:
        turns: the number of its turns (iterations).
        jumped: by how many milliseconds the time of day has been changed.
    """

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # BaseEventLoop calls its select()
        self.turns = self.jumped = self._turns_now = 0

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """Let the clock jump to the next timer."""
        self.turns += 1
        if timeout is None:
            raise RuntimeError("nothing is scheduled: something waits forever")
        self._turns_now += 1
        if self._turns_now > _MOST_TURNS:
            raise Violation("the broker becomes idle", f"{_MOST_TURNS} turns of the event loop took no time")
        if timeout > 0:
            self._turns_now = 0
            self._now = max(self._now, self._scheduled[0]._when)
        return []

    def _process_events(self, event_list: list[object]) -> None:
        """Do nothing: there are no sockets."""

    def _write_to_self(self) -> None:
        """Do nothing: there are no threads to wake the loop from."""

    def kill(self, run: int) -> None:
        """Drop all callbacks and timers of one run of the broker."""
        for handle in [*self._ready, *self._scheduled]:
            if handle._context.get(RUN, 0) == run:
                handle.cancel()


def context_of(run: int) -> Context:
    """Return a context in which everything that is scheduled belongs to a run of the broker."""
    context = copy_context()
    context.run(RUN.set, run)
    return context


class VirtualClock(LoopClock):
    """The broker's clock. The time of day can jump without affecting timers. A seed determines how long work takes."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        super().__init__()
        self._virtual = loop
        self._random = random
        self._worked = 0.0

    def now(self) -> int:
        return EPOCH + int(self._virtual.time() * 1000)

    def wall(self) -> int:
        return self.now() + self._virtual.jumped

    def elapsed(self) -> float:
        self._worked += self._random.random() ** 8 * _SLOWEST_STEP_SECONDS
        return self._worked
