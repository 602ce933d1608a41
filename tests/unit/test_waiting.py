"""How `receive` finds out a queue's delivery limit before it prefetches messages."""

from math import inf

import pytest

from mqtool.amqp import Receiving
from mqtool.amqp.consume_policies import ASSUMED_LIMIT, PREFETCH, policy_for
from mqtool.cli.pipe import waiting
from mqtool.message import Delivery
from mqtool.work.peeking import How, PeekKind

UNKNOWN = "because the delivery limit of 'jobs' is unknown"


@pytest.mark.parametrize(
    ("kind", "limit", "notice"),
    [
        (PeekKind(How.CONSUME), inf, ""),
        (PeekKind(How.GET), inf, ""),
        (PeekKind(How.IN_TURN, 20), 20, ""),
        (PeekKind(How.IN_TURN, is_single=True), inf, ""),
        (PeekKind(How.IN_TURN, 20, is_single=True), 0, ""),
        (PeekKind(How.IN_TURN, 20, is_certain=False), ASSUMED_LIMIT, ""),
        (PeekKind(How.IN_TURN, 1, is_certain=False), 1, ""),
        (PeekKind(How.IN_TURN, 20, is_single=True, is_certain=False), 0, UNKNOWN),
        (PeekKind(How.GET, is_certain=False), 0, UNKNOWN),
    ],
    ids=str,
)
def test_receive_assumes_a_low_delivery_limit_if_the_user_cannot_see_the_actual_limit(
    kind: PeekKind, limit: float, notice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a policy that the user cannot see could lower a queue's delivery limit, `receive` assumes a limit of 2, or
    the visible limit if that is lower. With a limit of 2, it takes messages one at a time until one arrives that was
    never requeued. If `receive` also cannot replace its consumer, as on a queue with a single active consumer, it
    takes all messages one at a time, and a notice says that the delivery limit is unknown.
    """
    monkeypatch.setattr(waiting, "kind_of", lambda *_: kind)
    assert waiting.delivery_limit(None, None, "jobs", requeues=False) == limit  # type: ignore[arg-type]
    policy = policy_for(Receiving(), delivery_limit=limit)
    policy.taken(Delivery(b"", "", "jobs", "jobs", redelivered=False, properties={}, delivery_tag=1))
    assert policy.prefetch == (1 if limit < 2 else PREFETCH)
    told = capsys.readouterr().err
    assert notice in told if notice else not told
