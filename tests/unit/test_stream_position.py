"""Where an AMQP consumer of a stream resumes after a reconnection, with fake clocks."""

import pytest

from mqtool import offsets
from mqtool.offsets import FIRST, LAST, NEXT, Offset, Start, StreamPosition


class Clocks:
    """A fake `time`: monotonic() may stand still while the machine is asleep, and time() may be set back."""

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
def test_a_stream_consumer_that_has_received_nothing_resumes_5_s_before_its_start(
    clocks: Clocks, offset: Offset | None
) -> None:
    """If a stream consumer that started at `next`, at `last` or without an offset reconnects before it has received a
    message, it resumes 5 s before the time of its first subscription. It computes this time correctly even if the
    machine slept or its clock was set back after the subscription. A notice says how far back the consumer reads.
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
def test_a_stream_consumer_that_started_at_first_a_number_or_a_time_resumes_there(
    clocks: Clocks, offset: Offset
) -> None:
    """If a stream consumer that started at `first`, at an offset or at a timestamp reconnects before it has received a
    message, it resumes where it started.
    """
    position = StreamPosition("s", offset)
    assert position.start() == offset
    clocks.awake += 60
    assert position.start() == offset
