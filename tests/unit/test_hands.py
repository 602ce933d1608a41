"""How many deliveries a worker has in advance, and handles one after another."""

from typing import Any

import pytest

from mqtool.work.hands import Pace


class Advance:
    """A channel that keeps what it was asked for last."""

    extra = 0

    def take_in_advance(self, extra: int) -> None:
        self.extra = extra


def paced(seconds: float, hands: int = 1) -> tuple[Any, Advance]:
    channel = Advance()
    pace: Any = Pace(channel, hands)  # type: ignore[arg-type]
    for _ in range(20):
        assert (pace.lot, channel.extra) == (1, 0)
        pace.took(seconds)
    return pace, channel


@pytest.mark.parametrize(("seconds", "lot"), [(0.0005, 50), (0.002, 25), (0.019, 2)])
def test_a_lot_takes_about_as_long_whatever_each_takes(seconds: float, lot: int) -> None:
    """So that none waits long in it while another hand is idle, and Ctrl-C is soon heeded."""
    pace, channel = paced(seconds, hands=3)
    assert (pace.lot, channel.extra) == (lot, 6 * lot)


def test_a_lot_shrinks_with_what_takes_longer_and_one_that_takes_long_is_the_last() -> None:
    """The round trip to the broker matters no longer; after a while of quick ones it does again."""
    pace, channel = paced(0.001)
    pace.took(0.35, 50)
    assert (1 < pace.lot < 50, channel.extra) == (True, 100)
    pace.took(0.5, 50)
    assert (pace.lot, channel.extra) == (1, 0)
    for _ in range(20):
        pace.took(0.001)
    assert pace.lot == 50


def test_a_thousand_hands_ask_for_no_more_than_a_prefetch_can_say() -> None:
    """AMQP has 16 bits for it."""
    assert paced(0.001, hands=1000)[1].extra < 1 << 16
