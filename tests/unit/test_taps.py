"""Taps: what is kept for a slow reader, and what must not be bound to."""

from typing import Any

import pytest

from mqtool.amqp.subscription import Buffer
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.taps import to_exchange


def lot(*bodies: str) -> list[Delivery]:
    return [Delivery(body.encode(), "", "", "", False, {}, 0) for body in bodies]


def test_a_buffer_drops_the_oldest_and_counts() -> None:
    """All but the latest that fit; what was taken does not count, and a lot larger than the limit is kept."""
    buffer = Buffer(3)
    buffer.put(lot("1", "2"))
    assert buffer.get_nowait() == lot("1", "2")
    for bodies in (["3", "4"], ["5", "6"], ["7"]):
        buffer.put(lot(*bodies))
    assert buffer.dropped == 2
    assert buffer.get_nowait() == lot("5", "6")
    buffer.put(lot("8", "9", "10", "11"))
    assert buffer.dropped == 3
    assert buffer.get_nowait() == lot("8", "9", "10", "11")
    assert buffer.empty()


def test_a_tap_takes_no_share() -> None:
    """An exchange that divides messages among its queues is not bound to."""

    class Api:
        def get(self, _path: str) -> dict[str, Any]:
            return {"type": "x-consistent-hash", "arguments": {}}

    with pytest.raises(UsageError, match="a tap would take some"):
        to_exchange(Api, "/", "shards", ["1"], {})  # type: ignore[arg-type]
