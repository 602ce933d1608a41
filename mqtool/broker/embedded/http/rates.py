"""How fast counters grow: what the management API calls rates.

Like RabbitMQ, the broker looks at its counters now and then, whether anybody asks or not; so the first question gets an
answer at once.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from mqtool.broker.embedded.broker import Broker

_SECONDS = 2.5


class Counting(Protocol):
    """A queue, an exchange, a channel."""

    def counts(self) -> dict[str, int]:
        """What it has counted since it came to be, by RabbitMQ's names."""


class Sample:
    """Counters at a moment, and at the one before; a rate is the growth since the earlier of them."""

    __slots__ = ("earlier", "earlier_at", "later", "later_at")

    def __init__(self, counts: Mapping[str, int], now: float) -> None:
        self.earlier = self.later = dict(counts)
        self.earlier_at = self.later_at = now

    def renew(self, counts: Mapping[str, int], now: float) -> None:
        """Take what the counters say now."""
        self.earlier, self.earlier_at = self.later, self.later_at
        self.later, self.later_at = dict(counts), now

    def rate(self, name: str, count: int, now: float) -> float:
        """Per second."""
        seconds = now - self.earlier_at
        return round((count - self.earlier.get(name, 0)) / seconds, 1) if seconds >= 1 else 0.0


class Rates:
    """Samples of everything in a broker that counts.

    Args:
        broker: whose counters to look at, from now on, on the running event loop.
    """

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._samples: WeakKeyDictionary[Counting, Sample] = WeakKeyDictionary()
        asyncio.get_running_loop().call_later(_SECONDS, self._look)

    def of(self, counting: Counting) -> dict[str, int | dict[str, float]]:
        """The counters of something, each with its rate, as `message_stats` has them."""
        now, sample = time.monotonic(), self._samples.get(counting)
        stats: dict[str, int | dict[str, float]] = {}
        for name, count in counting.counts().items():
            stats[name] = count
            stats[f"{name}_details"] = {"rate": sample.rate(name, count, now) if sample else 0.0}
        return stats

    def total(self, counting: Iterable[Counting]) -> dict[str, int | dict[str, float]]:
        """The counters of several things, added up."""
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

    def _counting(self) -> Iterator[Counting]:
        for vhost in self._broker.vhosts.values():
            yield from vhost.queues.values()
            yield from vhost.exchanges.values()
        for connection in self._broker.opened():
            yield from connection.channels.values()
