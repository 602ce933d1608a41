"""One acknowledgement may stand for several deliveries, but never for one that is still in hand."""

import random

import pytest

from mqtool.amqp.acknowledgements import Tags


@pytest.mark.parametrize("seed", range(5))
def test_what_is_acknowledged_is_what_was_to_be(seed: int) -> None:
    """As a broker understands it, which refuses a tag that it does not wait for."""
    chance, tags = random.Random(seed), Tags()
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
    tags = Tags()
    assert [*tags.acknowledge([1])] == [(1, False)]
    assert [*tags.acknowledge([2, 3, 4])] == [(4, True)]
    assert [*tags.acknowledge([6, 7])] == [(6, False), (7, False)]
    assert [*tags.acknowledge([5, 8])] == [(8, True)]
