"""Durations such as 300ms, 5s or 1h30m."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.duration import parse_duration


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
    "text", ["", " ", "5", "s", "-5s", "+5s", "5 s", "5s ", "5sec", "5S", ".5s", "5,5s", "1e3s", "5s,2m", "soon"]
)
def test_text_that_is_not_a_duration_is_refused(text: str) -> None:
    """Text that is not a duration, such as a number without a unit, raises a ValueError that shows valid examples."""
    with pytest.raises(ValueError, match="is not a duration such as 300ms, 5s, 2m or 1h30m"):
        parse_duration(text)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"])), min_size=1, max_size=5))
def test_the_parts_of_a_duration_are_added(parts: list[tuple[int, str]]) -> None:
    """The parts of a duration are added up, however many there are and whatever their order, even if a unit occurs
    twice.
    """
    together = parse_duration("".join(f"{number}{unit}" for number, unit in parts))
    assert together == pytest.approx(sum(parse_duration(f"{number}{unit}") for number, unit in parts))
