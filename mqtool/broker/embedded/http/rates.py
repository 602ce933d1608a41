"""How fast counters grow: what the management API calls rates.

Like RabbitMQ, the broker samples its counters whether anybody asks or not, so the first request has rates too.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from weakref import WeakKeyDictionary

_SECONDS = 2.5


class Counting(Protocol):
    """The traffic of a queue, an exchange, a channel."""

    def counts(self) -> dict[str, int]:
        """Return its counters by RabbitMQ's names."""


class Sample:
    """The last two values of some counters; a rate is the growth since the earlier one."""

    __slots__ = ("earlier", "earlier_at", "later", "later_at")

    def __init__(self, counts: Mapping[str, int], now: float) -> None:
        self.earlier = self.later = dict(counts)
        self.earlier_at = self.later_at = now

    def renew(self, counts: Mapping[str, int], now: float) -> None:
        """Take the counters' present values."""
        self.earlier, self.earlier_at = self.later, self.later_at
        self.later, self.later_at = dict(counts), now

    def rate(self, name: str, count: int, now: float) -> float:
        """Return the growth of a counter per second."""
        seconds = now - self.earlier_at
        return round((count - self.earlier.get(name, 0)) / seconds, 1) if seconds >= 1 else 0.0


class Rates:
    """Samples of counters, taken on the running event loop.

    Args:
        counting: returns everything to sample.
    """

    def __init__(self, counting: Callable[[], Iterable[Counting]]) -> None:
        self._counting = counting
        self._samples: WeakKeyDictionary[Counting, Sample] = WeakKeyDictionary()
        asyncio.get_running_loop().call_later(_SECONDS, self._look)

    def of(self, counting: Counting) -> dict[str, int | dict[str, float]]:
        """Return counters with their rates, as in `message_stats`."""
        now, sample = time.monotonic(), self._samples.get(counting)
        stats: dict[str, int | dict[str, float]] = {}
        for name, count in counting.counts().items():
            stats[name] = count
            stats[f"{name}_details"] = {"rate": sample.rate(name, count, now) if sample else 0.0}
        return stats

    def total(self, counting: Iterable[Counting]) -> dict[str, int | dict[str, float]]:
        """Return the sums of counters and rates."""
        counts: dict[str, int] = {}
        rates: dict[str, float] = {}
        for each in counting:
            for name, value in self.of(each).items():
                if isinstance(value, dict):
                    rates[name] = rates.get(name, 0.0) + value["rate"]
                else:
                    counts[name] = counts.get(name, 0) + value
        return {**counts, **{name: {"rate": round(rate, 1)} for name, rate in rates.items()}}

    def _look(self) -> None:
        now = time.monotonic()
        for counting in self._counting():
            sample = self._samples.get(counting)
            if sample is None:
                self._samples[counting] = Sample(counting.counts(), now)
            else:
                sample.renew(counting.counts(), now)
        asyncio.get_running_loop().call_later(_SECONDS, self._look)
