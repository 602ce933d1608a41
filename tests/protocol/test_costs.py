"""The largest legal frames and requests of one client do not make the others wait, and the broker finishes them."""

from pathlib import Path

import pytest

from tests.brokers import IN_CI
from tests.protocol.costs import WIRES, World, measure

#: Outside CI, every so-many-th cost is measured.
EVERY = 1 if IN_CI else 12


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("like", ["3.10", "4.3"] if IN_CI else ["4.3"])
def test_the_largest_that_a_client_can_send(wire: str, like: str, tmp_path: Path) -> None:
    """No frame or request, however large, keeps the event loop for longer than the limit of 0.25 s.

    Once more, if one has: garbage from the cost before may have to be freed meanwhile.
    """
    with World(like, tmp_path if like == "3.10" else None) as world:
        slow = [
            cost for number, cost in enumerate(WIRES[wire]()) if number % EVERY == 0 and world.longest_turn(cost) > 0.25
        ]
        assert measure(slow, world) == []
