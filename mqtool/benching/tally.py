"""What a run counts: every message by its number, using little memory, and histograms of latencies."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

#: Message numbers per chunk, and how many chunks behind the newest one are still expected to fill up.
_CHUNK, _OPEN_CHUNKS = 4096, 256
_FULL = (1 << _CHUNK) - 1
#: Consecutive message numbers: the first one, their count, and whether the messages were redelivered.
NumberRun = tuple[int, int, bool]
#: How many leading bits of a latency in microseconds are kept, enough for three significant digits.
_BITS = 11
#: The maximum number of different latencies to keep with all their digits.
_MOST_FRESH = 10_000
#: Compensates for floating-point errors when a percentile of a count is computed.
_ROUNDING = 1e-9
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Numbers:
    """A set of message numbers. Uses little memory if the numbers have few gaps."""

    def __init__(self) -> None:
        #: The chunks that are not full. Chunks below _through that are missing here are full.
        self._chunks: dict[int, int] = {}
        self._through = 0
        self._newest = 0

    def add(self, first: int, count: int) -> int:
        """Add consecutive numbers; return how many of them were new."""
        added, end = 0, first + count
        while first < end:
            chunk, offset = divmod(first, _CHUNK)
            size = min(_CHUNK - offset, end - first)
            before = self._chunk(chunk)
            after = before | ((1 << size) - 1) << offset
            added += after.bit_count() - before.bit_count()
            self._keep(chunk, after)
            first += size
        return added

    def missing_from(self, other: "Numbers") -> int:
        """Return the number of elements of this set that are missing from the other one."""
        both_full = min(self._through, other._through)
        chunks = {*range(both_full, self._newest + 1), *self._chunks, *other._chunks}
        return sum((self._chunk(chunk) & ~other._chunk(chunk)).bit_count() for chunk in chunks)

    def _chunk(self, chunk: int) -> int:
        return self._chunks.get(chunk, _FULL if chunk < self._through else 0)

    def _keep(self, chunk: int, bits: int) -> None:
        self._newest = max(self._newest, chunk)
        if chunk < self._through and bits == _FULL:
            self._chunks.pop(chunk, None)
            return
        self._chunks[chunk] = bits
        while self._chunks.get(self._through) == _FULL or self._newest - self._through > _OPEN_CHUNKS:
            if self._chunks.setdefault(self._through, 0) == _FULL:
                del self._chunks[self._through]
            self._through += 1


class Tally:
    """What became of each message of a run.

    Attributes:
        confirmed, received: the messages that were confirmed, and those that arrived, each counted once.
        duplicated: deliveries of messages that had arrived before.
        redelivered: deliveries that the broker marked as redelivered.
        out_of_order: messages that arrived at a consumer after a later message from the same publisher, and are neither
            redelivered nor duplicates.

    Args:
        each_gets_all: True if every consumer gets all messages, as with a stream.
    """

    def __init__(self, *, each_gets_all: bool = False) -> None:
        self.confirmed = self.received = self.duplicated = self.redelivered = self.out_of_order = 0
        self._each_gets_all = each_gets_all
        self._confirmed: dict[int, Numbers] = defaultdict(Numbers)
        self._received: dict[tuple[int, int], Numbers] = defaultdict(Numbers)
        self._highest: dict[tuple[int, int], int] = defaultdict(lambda: -1)

    def confirm(self, publisher: int, runs: Iterable[Sequence[int]]) -> None:
        """Count messages from a publisher as confirmed."""
        for first, count in runs:
            self.confirmed += self._confirmed[publisher].add(first, count)

    def receive(self, consumer: int, publisher: int, runs: Iterable[NumberRun]) -> None:
        """Count messages from a publisher that a consumer has received, in the order of their arrival."""
        numbers = self._received[self._group(consumer), publisher]
        highest = self._highest[consumer, publisher]
        for first, count, redelivered in runs:
            late = max(0, min(count, highest + 1 - first))
            new_late = numbers.add(first, late) if late else 0
            new = numbers.add(first + late, count - late) if count > late else 0
            self.received += new + new_late
            self.duplicated += count - new - new_late
            if redelivered:
                self.redelivered += count
            else:
                self.out_of_order += new_late
            highest = max(highest, first + count - 1)
        self._highest[consumer, publisher] = highest

    def lost(self, consumers: int) -> int:
        """Return how many confirmed messages have not arrived; if each consumer gets all, summed over consumers."""
        groups = range(consumers) if self._each_gets_all else [self._group(0)]
        return sum(
            numbers.missing_from(self._received[group, publisher])
            for group in groups
            for publisher, numbers in self._confirmed.items()
        )

    def _group(self, consumer: int) -> int:
        return consumer if self._each_gets_all else -1


def add_to_runs(runs: list[list[int]], number: int, redelivered: int) -> None:
    """Append a message to one publisher's runs of consecutive numbers."""
    if runs and (last := runs[-1])[0] + last[1] == number and last[2] == redelivered:
        last[1] += 1
    else:
        runs.append([number, 1, redelivered])


class Latencies:
    """A histogram of latencies, which can be merged with others and sent to another process.

    Like an HDR histogram, it keeps three significant digits: values that share their first eleven bits are counted
    together. Its size therefore depends on the range of latencies, not on their number. (The library hdrhistogram needs
    setuptools, which would slow down the start of every command.)

    Args:
        pairs: a histogram to copy, as returned by pairs().
    """

    def __init__(self, pairs: Iterable[Sequence[int]] = ()) -> None:
        self._counts: Counter[int] = Counter()
        self._fresh: Counter[int] = Counter()  # in microseconds, with all digits
        self.merge(pairs)

    def record(self, nanoseconds: Iterable[int]) -> None:
        """Record latencies."""
        self._fresh.update([each // 1000 for each in nanoseconds])
        if len(self._fresh) > _MOST_FRESH:
            self._sort_in()

    def merge(self, pairs: Iterable[Sequence[int]]) -> None:
        """Add another histogram, as returned by pairs()."""
        for value, count in pairs:
            self._counts[_rounded(value)] += count

    def pairs(self) -> list[tuple[int, int]]:
        """Return the latencies in microseconds, in ascending order, each with its count."""
        self._sort_in()
        return sorted(self._counts.items())

    @property
    def count(self) -> int:
        """The number of latencies recorded."""
        return self._counts.total() + self._fresh.total()

    def at(self, percentile: float) -> float:
        """Return the latency at a percentile, in seconds; 0 if there are none. The percentile 100 is the maximum."""
        pairs, so_far = self.pairs(), 0
        wanted = max(1, math.ceil(self.count * percentile / 100 - _ROUNDING))
        for value, count in pairs:
            so_far += count
            if so_far >= wanted:
                return value / 1e6
        return 0.0

    def bars(self, edges: Sequence[float]) -> list[int]:
        """Return the number of latencies between each edge and the next. Edges are in seconds."""
        pairs = self.pairs()
        return [sum(count for value, count in pairs if low <= value / 1e6 < high) for low, high in pairwise(edges)]

    def curve(self) -> list[tuple[float, float]]:
        """Return pairs of percentile and latency in seconds, one for each recorded value."""
        total, so_far, points = max(1, self.count), 0, []
        for value, count in self.pairs():
            so_far += count
            points.append((100 * so_far / total, value / 1e6))
        return points

    def _sort_in(self) -> None:
        fresh, self._fresh = self._fresh, Counter()
        self.merge(fresh.items())


def _rounded(value: int) -> int:
    """Return the largest value with the same leading bits."""
    rest = max(0, value.bit_length() - _BITS)
    return value | ((1 << rest) - 1)
