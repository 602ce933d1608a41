"""How long a client that lost its connection waits."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from mqtool.duration import Backoff


@given(st.integers(0, 2**32), st.floats(0.01, 5), st.floats(1, 4), st.floats(5, 60))
def test_waits_grow_up_to_the_longest(seed: int, first: float, factor: float, longest: float) -> None:
    """Each wait is between half of the exponential value and all of it, and none exceeds the longest."""
    import random

    random.seed(seed)
    expected = first
    for delay in islice(Backoff(first, factor, longest).delays(), 20):
        assert expected / 2 <= delay <= expected <= longest
        expected = min(expected * factor, longest)


def test_attempts_end() -> None:
    """After so many there is no further wait; without a number there always is."""
    assert len(list(Backoff(attempts=4).delays())) == 4
    assert list(Backoff(attempts=0).delays()) == []
    assert len(list(islice(Backoff().delays(), 500))) == 500


def test_a_hundred_clients_do_not_come_back_together() -> None:
    """Their first waits differ."""
    assert len({next(Backoff().delays()) for _ in range(100)}) > 90
