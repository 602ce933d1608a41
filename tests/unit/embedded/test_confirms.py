"""Publisher confirms: each publish gets one ack or nack."""

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame

from mqtool.broker.embedded.wire.incoming_publishes import Confirms


def settle(data: bytes, open_ones: dict[int, bool]) -> None:
    """Read confirms as a client does; each must be for an open publish, and of the right kind."""
    while data:
        size, channel, method = frame.unmarshal(data)
        data = data[size:]
        assert channel == 7
        acked = isinstance(method, commands.Basic.Ack)
        numbers = [number for number in open_ones if number <= method.delivery_tag] if method.multiple else []
        for number in numbers or [method.delivery_tag]:
            assert open_ones.pop(number) is acked


@given(steps=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 3)), max_size=50))
def test_each_publish_gets_one_ack_or_nack(steps: list[tuple[bool, bool, bool, int]]) -> None:
    """The embedded broker answers each accepted message with exactly one ack and each rejected message with exactly
    one nack, no matter when messages are synced to disk.
    """
    confirms = Confirms()
    open_ones: dict[int, bool] = {}
    on_their_way, group = 0, 1
    for number, (accepted, stored, take, commits) in enumerate(steps, 1):
        on_their_way += confirms.published_one(accepted=accepted, group=group if stored else 0)
        open_ones[number] = accepted
        # A group is being written, so the next publish is in another group. Some groups may be on disk by now.
        group += commits > 0
        for _ in range(min(commits - 1, on_their_way)):
            confirms.committed_group()
            on_their_way -= 1
        if take:
            settle(confirms.take(7)[0], open_ones)
            assert len(confirms) == len(open_ones)
    for _ in range(on_their_way):
        confirms.committed_group()
    settle(confirms.take(7)[0], open_ones)
    assert not open_ones
    assert confirms.take(7)[0] == b""
