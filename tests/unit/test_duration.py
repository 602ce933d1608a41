"""Durations such as 300ms, 5s or 1h30m, and RabbitMQ's intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.duration import compact_duration, parse_duration, parse_interval

SECOND, DAY = 1000, 86_400_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("5s", 5),
        ("0s", 0),
        ("2m", 120),
        ("1h30m", 5400),
        ("1d", 86400),
        ("1.5s", 1.5),
        ("1m30s500ms", 90.5),
    ],
)
def test_a_duration_is_a_sum_of_numbers_with_units(text: str, seconds: float) -> None:
    """A duration such as 1h30m is the sum of its numbers, each with a unit from milliseconds to days."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0ms"), (0.0004, "0ms"), (0.0006, "1ms"), (0.25, "250ms"), (0.999, "999ms"), (1, "1s")),
        *((59.999, "59s999ms"), (60, "1m"), (90.5, "1m30s500ms"), (3599, "59m59s"), (3600, "1h"), (5400, "1h30m")),
        *(
            (86_399, "23h59m59s"),
            (86_400, "1d"),
            (2 * 86_400 + 3_600 + 60 + 1.001, "2d1h1m1s1ms"),
            (10**8, "1157d9h46m40s"),
        ),
    ],
)
def test_a_duration_is_shown_in_the_largest_units(seconds: float, text: str) -> None:
    """mqtool shows durations in the largest units that fit, rounded to milliseconds, and without parts that are 0."""
    assert compact_duration(seconds) == text


@given(st.integers(0, 10**12))
def test_a_duration_that_mqtool_shows_can_be_entered(milliseconds: int) -> None:
    """A duration that mqtool has written, for example in NDJSON, can be used as input with the same meaning."""
    assert parse_duration(compact_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    "text", ["", " ", "5", "s", "-5s", "+5s", "5 s", "5s ", "5sec", "5S", ".5s", "5,5s", "1e3s", "5s,2m", "soon"]
)
def test_text_that_is_not_a_duration_is_refused(text: str) -> None:
    """Text that is not a duration, such as a number without a unit, raises a ValueError that shows valid examples."""
    with pytest.raises(ValueError, match="is not a duration such as 300ms, 5s, 2m or 1h30m"):
        parse_duration(text)


@given(st.lists(st.tuples(st.integers(0, 7000), st.sampled_from(["ms", "s", "m", "h", "d"])), min_size=1, max_size=5))
def test_the_parts_of_a_duration_are_added(parts: list[tuple[int, str]]) -> None:
    """The parts of a duration are added up, however many there are and whatever their order, even if a unit occurs
    twice.
    """
    together = parse_duration("".join(f"{number}{unit}" for number, unit in parts))
    assert together == pytest.approx(sum(parse_duration(f"{number}{unit}") for number, unit in parts))


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1s", SECOND),
        ("2m", 120 * SECOND),
        ("3h", 10_800 * SECOND),
        ("7D", 7 * DAY),
        ("1M", 30 * DAY),
        ("1Y", 365 * DAY),
        ("007s", 7 * SECOND),
        (f"{10**17}s", 10**17 * SECOND),
        (f"{10**18 - 1}s", (10**18 - 1) * SECOND),
        (f"{'9' * 5000}s", 10**18 * SECOND),
        *((wrong, None) for wrong in ("", "0s", "5", "s", "5x", "5d", "-5s", "1.5h", " 5s", "5s5s")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_interval_is_a_positive_integer_and_a_unit(text: str, milliseconds: int | None) -> None:
    """An interval, such as a stream's x-max-age, consists of a positive integer and a unit: Y, M, D, h, m or s. Any
    other text is not an interval. A month has 30 days, and a year has 365. A number above 10^18 counts as 10^18.
    """
    assert parse_interval(text) == milliseconds
