"""One acknowledgement may stand for several deliveries, but never for one that is still in hand."""

import random
from collections.abc import Callable, Sequence

import pytest

from mqtool.amqp.publisher import AcknowledgedTags, Acknowledgements
from mqtool.message import Delivery


@pytest.mark.parametrize("seed", range(5))
def test_what_is_acknowledged_is_what_was_to_be(seed: int) -> None:
    """As a broker understands it, which refuses a tag that it does not wait for."""
    chance, tags = random.Random(seed), AcknowledgedTags()
    unacknowledged, in_hand = set(range(1, 3000)), [*range(1, 3000)]
    stays = chance.choice(in_hand)
    in_hand.remove(stays)
    while in_hand:
        lot = [in_hand.pop(chance.randrange(min(len(in_hand), 20))) for _ in range(min(len(in_hand), 5))]
        expected = unacknowledged - {*lot}
        for tag, multiple in tags.acknowledge(lot):
            assert tag in unacknowledged
            unacknowledged -= {*range(1, tag + 1)} if multiple else {tag}
        assert unacknowledged == expected
    assert unacknowledged == {stays}


def test_those_handled_in_order_take_one_acknowledgement() -> None:
    """A quorum queue writes each down."""
    tags = AcknowledgedTags()
    assert [*tags.acknowledge([1])] == [(1, False)]
    assert [*tags.acknowledge([2, 3, 4])] == [(4, True)]
    assert [*tags.acknowledge([6, 7])] == [(6, False), (7, False)]
    assert [*tags.acknowledge([5, 8])] == [(8, True)]


class Loop:
    """The part of an I/O thread that acknowledgements need, run by hand."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []

    def run(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run_later(self, _seconds: float, callback: Callable[[], None]) -> None:
        self.later.append(callback)


def test_those_that_more_follow_leave_together() -> None:
    """With the first that none follows; or a moment later, or when the connection is closed, if that does not come."""
    loop, sent = Loop(), list[list[int]]()

    def send(deliveries: Sequence[Delivery]) -> None:
        sent.append([delivery.delivery_tag for delivery in deliveries])

    acks = Acknowledgements(loop, send)  # type: ignore[arg-type]
    first, second, third, fourth, fifth = (Delivery(b"", "", "", "q", False, {}, tag) for tag in range(1, 6))
    acks.add([first], more_follow=True)
    acks.add([second], more_follow=True)
    assert not loop.soon
    assert len(loop.later) == 1
    acks.add([third])
    loop.soon.pop()()
    assert sent == [[1, 2, 3]]
    acks.add([fourth], more_follow=True)
    loop.later.pop()()
    assert sent[1:] == [[4]]
    acks.add([fifth], more_follow=True)
    acks.flush()
    loop.soon.pop()()
    assert sent[2:] == [[5]]
