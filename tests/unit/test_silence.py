"""How long a command that must stop still waits for a broker that does not reply."""

from types import SimpleNamespace

import pytest

from mqtool import silence
from mqtool.errors import StoppedWaiting
from mqtool.silence import Silence


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only the test advances."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_command_that_must_stop_waits_8_s_for_a_reply_and_then_1_s_for_each_further_one(
    clock: SimpleNamespace,
) -> None:
    """A command that must stop waits up to 8 s for a reply, and then raises StoppedWaiting. After that, it waits only
    1 s for each further reply, until the broker has replied once.
    """
    quiet = Silence()
    assert quiet.has_given_up is False

    def wait() -> None:
        for _ in quiet.until(lambda: False, lambda: True):
            clock.now += 0.5

    def waited() -> float:
        began = clock.now
        with pytest.raises(StoppedWaiting, match=r"^stopped: the broker does not reply$"):
            wait()
        return float(clock.now - began)

    assert [waited() for _ in range(3)] == [8.5, 1.5, 1.5]
    assert quiet.has_given_up is True
    assert [*quiet.until(lambda: True, lambda: True)] == []
    assert quiet.has_given_up is False
    assert waited() == 8.5


def test_a_command_waits_for_a_reply_without_a_limit_until_it_must_stop(clock: SimpleNamespace) -> None:
    """A command waits for a reply as long as it takes. If it must stop in the meantime, its 8 s begin then."""
    waiting = Silence().until(lambda: False, lambda: clock.now >= 600)
    while clock.now < 608:
        next(waiting)
        clock.now += 4
    assert next(waiting) == 608
    clock.now += 0.5
    with pytest.raises(StoppedWaiting):
        next(waiting)


def test_a_broker_is_silent_once_it_has_sent_nothing_for_8_s(clock: SimpleNamespace) -> None:
    """While a command asks again and again, the broker counts as silent once it has sent nothing for more than 8 s.
    The 8 s begin anew if something is received, or if the command has not asked for more than a second.
    """
    quiet = Silence()

    def lasts(seconds: float, received: float = 0.0) -> bool:
        clock.now += seconds
        return quiet.lasts(received)

    assert [lasts(1.0) for _ in range(9)] == [False] * 9
    assert lasts(0.5) is True
    assert lasts(1.5) is False
    assert [lasts(1.0) for _ in range(8)] == [False] * 8
    assert lasts(0.5) is True
    assert lasts(0.5, received=1.0) is False
    assert [lasts(1.0, received=1.0) for _ in range(8)] == [False] * 8
    assert lasts(0.5, received=1.0) is True
