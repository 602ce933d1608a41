"""Where an AMQP consumer of a stream resumes, with plain clocks."""

import pytest

from mqtool import offsets
from mqtool.offsets import FIRST, LAST, NEXT, Offset, Start, StreamPosition


class Clocks:
    """The two clocks: one that stands still while the machine is asleep, and one that can be set."""

    def __init__(self) -> None:
        self.awake, self.wall = 100.0, 1_000_000.0

    def monotonic(self) -> float:
        return self.awake

    def time(self) -> float:
        return self.wall


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(offsets, "time", clocks)
    return clocks


@pytest.mark.parametrize("offset", [NEXT, LAST, None], ids=["next", "last", "default"])
def test_a_consumer_that_has_received_nothing_resumes_at_an_age(clocks: Clocks, offset: Offset | None) -> None:
    """A consumer that started at `next` or `last`, and has not received a message, resumes 5 s before its first
    subscription, whether the machine was asleep or its clock was set back in the meantime. The user is told.
    """
    notices: list[str] = []
    position = StreamPosition("s", offset, notices.append)
    assert (position.start(), notices) == (offset, [])
    clocks.awake += 2.1
    clocks.wall -= 3600
    assert position.start() == "8s"
    clocks.wall += 3600 + 7200
    assert position.start() == "7205s"
    expected = (
        "no message of stream 's' had arrived: reading the messages of the last {} s, 5 s more than this consumer"
    )
    assert notices == [f"{expected.format(age)} is old" for age in ("8", "7,205")]
    position.advance(41)
    assert position.start() == Offset(Start.OFFSET, 42)


@pytest.mark.parametrize("offset", [FIRST, Offset(Start.OFFSET, 7), Offset(Start.TIMESTAMP, 7)])
def test_a_consumer_at_any_other_offset_resumes_there(clocks: Clocks, offset: Offset) -> None:
    """A consumer that started at any other offset, and has not received a message, resumes at this offset."""
    position = StreamPosition("s", offset)
    assert position.start() == offset
    clocks.awake += 60
    assert position.start() == offset
