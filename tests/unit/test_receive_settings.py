"""The time limits of a command that receives messages."""

import pytest

from mqtool.amqp.receive_settings import Receiving
from mqtool.errors import TimedOut


@pytest.mark.parametrize(
    ("receiving", "lasted", "silent", "left"),
    [
        (Receiving(), 5, 3, None),
        (Receiving(timeout=10), 4, 3, 6),
        (Receiving(idle_timeout=10), 4, 3, 7),
        (Receiving(timeout=10, idle_timeout=10), 4, 3, 6),
        (Receiving(timeout=10, idle_timeout=5), 4, 3, 2),
        (Receiving(idle_timeout=5), 9, 5, 0),
        (Receiving(idle_timeout=5), 9, 6, 0),
        (Receiving(idle_timeout=0), 9, 0, 0),
        (Receiving(count=3, idle_timeout=5), 9, 4, 1),
    ],
)
def test_receiving_ends_at_the_earlier_of_its_time_limits(
    receiving: Receiving, lasted: float, silent: float, left: float | None
) -> None:
    """A command receives messages until the earlier of its timeout, which counts from the start, and its idle timeout,
    which counts from the last message. If the idle timeout passes first, and no `--count` is given, receiving ends
    without an error.
    """
    assert receiving.left(2, lasted, silent) == left


@pytest.mark.parametrize(
    ("receiving", "error"),
    [
        (Receiving(timeout=9.5), "timed out after 9.5 s, with 2,000 received"),
        (Receiving(timeout=9.5, idle_timeout=5, count=3000), "timed out after 9.5 s, with 2,000 received"),
        (Receiving(timeout=10, idle_timeout=5.0, count=3000), "no message for 5 s: 2,000 of 3,000 received"),
        (Receiving(idle_timeout=4.5, count=3000), "no message for 4.5 s: 2,000 of 3,000 received"),
    ],
)
def test_an_idle_timeout_is_an_error_only_if_fewer_messages_than_count_were_received(
    receiving: Receiving, error: str
) -> None:
    """If a command's idle timeout passes, TimedOut is raised only if fewer messages than `--count` have been
    received. If its total timeout passes, TimedOut is raised in any case. The error says how many messages were
    received.
    """
    with pytest.raises(TimedOut) as timed_out:
        receiving.left(2000, lasted=9.5, silent=5.0)
    assert str(timed_out.value) == error
