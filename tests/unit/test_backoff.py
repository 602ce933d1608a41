"""Backoff: how long a client waits before it reconnects."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from mqtool.duration import Backoff


@given(st.integers(0, 2**32), st.floats(0.01, 5), st.floats(1, 4), st.floats(5, 60))
def test_reconnection_delays_grow_up_to_the_maximum(seed: int, first: float, factor: float, longest: float) -> None:
    """The delays between reconnection attempts grow by a constant factor up to the maximum. Each delay is shortened by
    a random amount of up to half of its length.
    """
    import random

    random.seed(seed)
    expected = first
    for delay in islice(Backoff(first, factor, longest).delays(), 20):
        assert expected / 2 <= delay <= expected <= longest
        expected = min(expected * factor, longest)


def test_the_number_of_reconnection_attempts_is_limited() -> None:
    """A client with a limit of four reconnection attempts waits before each of the four. A client with a limit of 0
    does not wait or reconnect, and a client without a limit never stops trying.
    """
    assert len(list(Backoff(attempts=4).delays())) == 4
    assert list(Backoff(attempts=0).delays()) == []
    assert len(list(islice(Backoff().delays(), 500))) == 500


def test_first_reconnection_delays_are_random() -> None:
    """If 100 clients lose their connections at the same time, almost all of their first reconnection delays differ, so
    that the clients do not all reconnect at the same time.
    """
    assert len({next(Backoff().delays()) for _ in range(100)}) > 90
