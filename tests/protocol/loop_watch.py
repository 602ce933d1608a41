"""Measures how long a turn (one iteration) of an embedded broker's event loop takes."""

import asyncio
import gc
import threading
import time

from mqtool.broker.embedded import EmbeddedBroker

#: The limit for one turn, during which other clients wait, in seconds of CPU time. On an idle machine, a turn should
#: take at most half of this: other programs that compete for the CPU's caches can double the CPU time.
LIMIT = 0.5

_EVERY = 0.002
#: The loop is idle after ten turns in a row that each used less CPU time than this, in seconds.
_LITTLE, _IDLE_TURNS = 0.001, 10


class LoopWatch:
    """Measures the longest turn of a broker's event loop, in seconds of CPU time.

    Unlike the time that a second client waits, this does not depend on how busy the machine is. Objects that exist
    before a measurement are frozen (gc.freeze), because garbage collection during a turn would search them, too.
    `broker serve` freezes such objects after its first long collection.
    """

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._last = self.longest = 0.0
        self._idle_turns = 0
        self._is_idle = threading.Event()
        gc.collect()
        gc.freeze()
        broker.under_test(lambda _: self._look())

    def _look(self) -> None:
        self._count()
        asyncio.get_running_loop().call_later(_EVERY, self._look)

    def _count(self) -> None:
        """Record the CPU time since the last call, which counts as one turn."""
        now = time.thread_time()
        if self._last:
            used = now - self._last
            self.longest = max(self.longest, used)
            self._idle_turns = self._idle_turns + 1 if used < _LITTLE else 0
            if self._idle_turns >= _IDLE_TURNS:
                self._is_idle.set()
        self._last = now

    def settle(self, seconds: float) -> bool:
        """Wait until the broker has nothing to do. Return False if it is still busy after this many seconds."""

        def begin() -> None:
            self._idle_turns = 0
            self._is_idle.clear()

        self._broker.under_test(lambda _: begin())
        return self._is_idle.wait(seconds)

    def take(self) -> float:
        """Return the longest turn since the last call. A test calls this before it measures."""
        # Wait for the current turn, and count it now. Otherwise, it would be part of the next measurement.
        self._broker.under_test(lambda _: self._count())
        gc.freeze()
        longest, self.longest = self.longest, 0.0
        return longest

    def check(self, what: str = "a turn") -> None:
        """Fail if any turn since the last check took too long."""
        longest = self.take()
        assert longest < LIMIT, f"{what} took {longest:.3f} s of CPU time"
