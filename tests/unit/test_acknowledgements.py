"""One acknowledgement may cover several deliveries, but never one that is still being handled."""

import random
from collections.abc import Callable, Sequence

import pytest

from mqtool.amqp.publisher import AcknowledgedTags, Acknowledgements
from mqtool.message import Delivery


@pytest.mark.parametrize("seed", range(5))
def test_exactly_the_handled_deliveries_are_acknowledged(seed: int) -> None:
    """In whatever order a consumer handles deliveries, mqtool acknowledges each handled delivery exactly once, and does
    not acknowledge a delivery that has not been handled.
    """
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


def test_deliveries_handled_in_order_share_one_acknowledgement() -> None:
    """Handled deliveries share one acknowledgement (with `multiple`) if all earlier deliveries have been handled,
    too. While an earlier delivery is unhandled, each handled delivery gets its own acknowledgement.
    """
    tags = AcknowledgedTags()
    assert [*tags.acknowledge([1])] == [(1, False)]
    assert [*tags.acknowledge([2, 3, 4])] == [(4, True)]
    assert [*tags.acknowledge([6, 7])] == [(6, False), (7, False)]
    assert [*tags.acknowledge([5, 8])] == [(8, True)]


def test_deliveries_handled_before_an_earlier_one_are_acknowledged_without_multiple() -> None:
    """If a consumer handles the second and third deliveries before the first one, it acknowledges these two without
    `multiple`, so that the broker can still redeliver the first one.
    """
    tags = AcknowledgedTags()
    assert [*tags.acknowledge([2, 3])] == [(2, False), (3, False)]
    assert [*tags.acknowledge([1])] == [(1, False)]


def test_deliveries_share_an_acknowledgement_again_after_one_was_handled_early() -> None:
    """If delivery 1,002 is handled before delivery 1,001, each of these two gets its own acknowledgement. Later
    deliveries can share an acknowledgement again.
    """
    tags = AcknowledgedTags()
    for tag in range(1, 1001):
        assert [*tags.acknowledge([tag])] == [(tag, False)]
    assert [*tags.acknowledge([1002])] == [(1002, False)]
    assert [*tags.acknowledge([1001])] == [(1001, False)]
    assert [*tags.acknowledge([1003, 1004])] == [(1004, True)]


class Loop:
    """The part of an I/O thread that acknowledgements need, run by hand."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []

    def run(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback))


def test_acknowledgements_are_sent_together() -> None:
    """The acknowledgements of deliveries that arrived together are sent together: once the last of these deliveries is
    acknowledged, or 2 ms after the first acknowledgement, whichever is earlier. flush(), which mqtool calls before it
    closes a channel, sends pending acknowledgements without waiting for others.
    """
    loop, sent = Loop(), list[list[int]]()

    def send(deliveries: Sequence[Delivery]) -> None:
        sent.append([delivery.delivery_tag for delivery in deliveries])

    acks = Acknowledgements(loop, send)  # type: ignore[arg-type]
    first, second, third, fourth, fifth = (Delivery(b"", "", "", "q", False, {}, tag) for tag in range(1, 6))
    acks.add([first], more_follow=True)
    acks.add([second], more_follow=True)
    assert not loop.soon
    assert [seconds for seconds, _ in loop.later] == [0.002]
    acks.add([third])
    loop.soon.pop()()
    assert sent == [[1, 2, 3]]
    acks.add([fourth], more_follow=True)
    loop.later.pop()[1]()
    assert sent[1:] == [[4]]
    acks.add([fifth], more_follow=True)
    acks.flush()
    loop.soon.pop()()
    assert sent[2:] == [[5]]


def test_each_acknowledgement_is_sent_once() -> None:
    """If an acknowledgement is added before earlier ones have been sent, all of them are sent together. Each is sent
    once, however often flush() is called. If no acknowledgement is pending, nothing is sent.
    """
    loop, sent = Loop(), list[list[int]]()
    acks = Acknowledgements(loop, lambda lot: sent.append([each.delivery_tag for each in lot]))  # type: ignore[arg-type]
    first, second, third = (Delivery(b"", "", "", "q", False, {}, tag) for tag in range(1, 4))
    acks.flush()
    acks.add([])
    assert loop.soon == []
    acks.add([first])
    acks.flush()
    acks.add([second], more_follow=True)
    acks.add([third])
    assert (len(loop.soon), loop.later) == (1, [])
    loop.soon.pop()()
    assert sent == [[1, 2, 3]]
    acks.flush()
    assert loop.soon == []
    acks.add([first])
    loop.soon.pop()()
    assert sent[1:] == [[1]]
