"""`bench compare`: medians, ratios, confidence intervals, and the verdict about two series of runs."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from mqtool.benching.comparison import MEASURES, Comparison, compare


def of_logs(a: Sequence[float], b: Sequence[float], *, paired: bool, more_is_better: bool = True) -> Comparison:
    """Compare series whose values have these natural logarithms."""
    return Comparison("x", more_is_better, [*map(math.exp, a)], [*map(math.exp, b)], paired)


@pytest.mark.parametrize(
    ("a", "b", "paired", "mean", "error"),
    [
        ([1, 2, 3], [0, 1, 2], False, 1, 2.776 * math.sqrt(2 / 3)),  # Welch: 4 degrees of freedom
        ([0, 2], [0, 1, 2], False, 0, 12.706 * math.sqrt(4 / 3)),  # Welch: 1.7 degrees of freedom, rounded down
        ([1, 1], [0, 0], False, 1, 0),
        ([1, 2, 4], [0, 1, 2], True, 4 / 3, 4.303 * math.sqrt(1 / 3) / math.sqrt(3)),
        ([1, 2], [0, 1], True, 1, 0),
        ([-1, 1] * 15 + [0], [0] * 31, True, 0, 2.042 * 1 / math.sqrt(31)),  # 30 degrees of freedom
        ([-1, 1] * 16, [0] * 32, True, 0, 1.960 * math.sqrt(32 / 31) / math.sqrt(32)),  # the normal distribution
    ],
)
def test_the_ratio_of_two_series_has_a_95_percent_confidence_interval(
    a: list[float], b: list[float], mean: float, error: float, *, paired: bool
) -> None:
    """`bench compare` shows the ratio of two series of runs: the geometric mean of one series' results, divided by the
    geometric mean of the other series' results. It also shows a 95% confidence interval. If the runs of the two series
    alternated, the interval comes from Student's t distribution for pairs of runs; otherwise, it comes from Welch's
    test.
    """
    comparison = of_logs(a, b, paired=paired)
    assert comparison.ratio == pytest.approx(math.exp(mean))
    assert comparison.interval == pytest.approx((math.exp(mean - error), math.exp(mean + error)))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("a", "b"), [([1], [0]), ([1, 2], [0]), ([1], [0, 1])])
def test_a_single_run_has_no_confidence_interval(a: list[float], b: list[float], *, paired: bool) -> None:
    """If one of the two series that `bench compare` compares consists of a single run, the command shows the ratio of
    the results without a confidence interval, and says that there are too few runs.
    """
    comparison = of_logs(a, b, paired=paired)
    assert comparison.interval is None
    assert not comparison.differs
    assert comparison.verdict(("A", "B")) == f"{comparison.ratio:.2f} ×, from too few runs to tell"


def test_the_median_of_each_series_is_shown() -> None:
    """`bench compare` shows the median of each of the two series of runs."""
    assert Comparison("x", True, [5.0, 1.0, 2.0], [4.0, 8.0], True).medians == (2.0, 6.0)


@pytest.mark.parametrize(
    ("a", "b", "more_is_better", "verdict"),
    [
        ([8.0, 8.0], [4.0, 4.0], True, "2.00 × (2.00 to 2.00): A is better"),
        ([8.0, 8.0], [4.0, 4.0], False, "2.00 × (2.00 to 2.00): B is better"),
        ([4.0, 4.0], [8.0, 8.0], True, "0.50 × (0.50 to 0.50): B is better"),
        ([4.0, 4.0], [8.0, 8.0], False, "0.50 × (0.50 to 0.50): A is better"),
        ([4.0, 4.0], [4.0, 4.0], True, "no difference that these runs can show (ratio 1.00 to 1.00)"),
        ([4.0, 4.0, 8.0], [4.0, 8.0, 4.0], True, "no difference that these runs can show (ratio 0.18 to 5.60)"),
    ],
)
def test_the_verdict_names_the_better_series_if_the_runs_show_a_difference(
    a: list[float], b: list[float], verdict: str, *, more_is_better: bool
) -> None:
    """The verdict of `bench compare` says which of the two series is better: the one with the higher throughput or the
    lower latency. If the confidence interval of the ratio contains 1, the verdict names neither.
    """
    comparison = Comparison("x", more_is_better, a, b, True)
    assert comparison.verdict(("A", "B")) == verdict
    assert comparison.differs is ("better" in verdict)


def run(**more: float) -> dict[str, Any]:
    """A result as JSON, in which each measure has a value of its own."""
    values: dict[str, Any] = {"rates": {}, "confirm": {}, "deliver": {}}
    for number, (name, (group, key), _) in enumerate(MEASURES, 1):
        values[group][key] = more.get(name, number)
    return values


def test_each_measure_of_two_series_is_compared() -> None:
    """`bench compare` compares the rates of confirmed and received messages of two series of runs, and the 50th and
    99th percentiles of the latencies of confirms and deliveries. Higher rates and lower latencies are better.
    """
    found = compare([run(), run()], [run()], paired=False)
    assert [(each.name, each.more_is_better, each.a, each.b, each.paired) for each in found] == [
        ("confirmed/s", True, [1, 1], [1], False),
        ("received/s", True, [2, 2], [2], False),
        ("confirm p50 ms", False, [3, 3], [3], False),
        ("confirm p99 ms", False, [4, 4], [4], False),
        ("deliver p50 ms", False, [5, 5], [5], False),
        ("deliver p99 ms", False, [6, 6], [6], False),
    ]
    assert all(each.paired for each in compare([run()], [run()], paired=True))


def test_a_measure_that_is_0_in_one_of_the_runs_is_left_out() -> None:
    """`bench compare` leaves out a measure that is 0 in one of the runs, such as the latency of deliveries in a run
    without consumers.
    """
    found = compare([run(), run(**{"deliver p99 ms": 0})], [run(), run(**{"confirmed/s": 0})], paired=True)
    assert [each.name for each in found] == ["received/s", "confirm p50 ms", "confirm p99 ms", "deliver p50 ms"]
