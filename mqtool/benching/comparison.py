"""Compares two series of runs: medians, their spread, and a ratio with its confidence interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev, variance
from typing import Any

#: The 97.5% quantiles of Student's t distribution for 1, 2, 3, … degrees of freedom; beyond that, the normal one.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.960
#: The measures to compare: name, path in a result's JSON, and whether more is better.
MEASURES = (
    ("confirmed/s", ("rates", "confirmed"), True),
    ("received/s", ("rates", "received"), True),
    ("confirm p50 ms", ("confirm", "p50"), False),
    ("confirm p99 ms", ("confirm", "p99"), False),
    ("deliver p50 ms", ("deliver", "p50"), False),
    ("deliver p99 ms", ("deliver", "p99"), False),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of two series of runs, A and B, by one measure.

    Attributes:
        name: the name of the measure.
        more_is_better: False for latencies.
        a, b: the values measured in the runs.
        paired: True if the runs were interleaved, so that a[n] and b[n] were measured under the same conditions.
    """

    name: str
    more_is_better: bool
    a: Sequence[float]
    b: Sequence[float]
    paired: bool

    @property
    def medians(self) -> tuple[float, float]:
        """The medians of A and of B."""
        return median(self.a), median(self.b)

    @property
    def ratio(self) -> float:
        """A divided by B, as the geometric mean of the ratios."""
        return math.exp(self._mean)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the ratio; None if there are too few runs."""
        error = self._error()
        return None if error is None else (math.exp(self._mean - error), math.exp(self._mean + error))

    @property
    def differs(self) -> bool:
        """True if the runs show a difference."""
        return (interval := self.interval) is not None and not interval[0] <= 1 <= interval[1]

    @property
    def _mean(self) -> float:
        return fmean(map(math.log, self.a)) - fmean(map(math.log, self.b))

    def _error(self) -> float | None:
        """Half the width of the log ratio's confidence interval: Student's t for paired runs, Welch's for others."""
        a, b = [*map(math.log, self.a)], [*map(math.log, self.b)]
        if min(len(a), len(b)) < 2:
            return None
        if self.paired:
            differences = [one - other for one, other in zip(a, b, strict=True)]
            return _t(len(a) - 1) * stdev(differences) / math.sqrt(len(a))
        parts = [(variance(each) / len(each), len(each) - 1) for each in (a, b)]
        total = sum(part for part, _ in parts)
        if total == 0:
            return 0.0
        freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)
        return _t(int(freedom)) * math.sqrt(total)

    def verdict(self, names: tuple[str, str]) -> str:
        """Return the comparison's outcome as a phrase."""
        if (interval := self.interval) is None:
            return f"{self.ratio:.2f} ×, from too few runs to tell"
        low, high = interval
        span = f"{low:.2f} to {high:.2f}"
        if not self.differs:
            return f"no difference that these runs can show (ratio {span})"
        better = names[0] if (self.ratio > 1) is self.more_is_better else names[1]
        return f"{self.ratio:.2f} × ({span}): {better} is better"


def _t(degrees: int) -> float:
    return _T[degrees - 1] if degrees <= len(_T) else _NORMAL


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], *, paired: bool) -> list[Comparison]:
    """Compare the results of runs, given as JSON objects. Leaves out what was not measured."""
    found = []
    for name, (group, key), more_is_better in MEASURES:
        values = [[float(run[group][key]) for run in runs] for runs in (a, b)]
        if all(value > 0 for each in values for value in each):
            found.append(Comparison(name, more_is_better, values[0], values[1], paired))
    return found
