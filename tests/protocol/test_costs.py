"""The largest legal frames and requests of one client do not make the others wait, and the broker finishes them."""

from itertools import islice
from pathlib import Path

import pytest

from tests.brokers import IN_CI
from tests.protocol.costs import WIRES, World, measure
from tests.protocol.loop_watch import LIMIT

#: Outside CI, every so-many-th cost is measured.
EVERY = 1 if IN_CI else 25


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("is_stored", [False, True], ids=["in memory", "with a data directory"])
@pytest.mark.parametrize("wire", WIRES)
def test_the_largest_that_a_client_can_send(wire: str, tmp_path: Path, *, is_stored: bool) -> None:
    """No frame or request, however large, keeps the event loop long: on a busy machine, the limit is doubled."""
    with World("4.3", tmp_path / "data" if is_stored else None) as world:
        assert measure(islice(WIRES[wire](), 0, None, EVERY), world, 2 * LIMIT) == []
