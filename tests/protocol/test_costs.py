"""The largest frames and requests that a client may send do not hold up other clients."""

from datetime import date
from itertools import islice
from pathlib import Path

import pytest

from tests.brokers import large
from tests.protocol.costs import WIRES, World, measure

#: Of the frames and requests in memory and with a data directory, every Nth is measured, and different ones each day.
#: `make siege` draws from all of them.
EVERY = (9, 45)


@large
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("is_stored", [False, True], ids=["in memory", "with a data directory"])
@pytest.mark.parametrize("wire", WIRES)
def test_no_frame_or_request_holds_up_other_clients_for_half_a_second(
    wire: str, tmp_path: Path, *, is_stored: bool
) -> None:
    """However large a client's frame or request is, the embedded broker never uses more than 0.5 s of CPU time before
    it serves other clients.
    """
    with World("4.3", tmp_path / "data" if is_stored else None) as world:
        every = EVERY[is_stored]
        costs = islice(WIRES[wire](), date.today().toordinal() % every, None, every)
        assert measure(costs, world) == []
