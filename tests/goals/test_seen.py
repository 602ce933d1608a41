"""What `try` concludes from RabbitMQ's firehose and statistics, which do not tell what happens to a single message."""

from typing import Any

from mqtool.plays.goals import GOALS
from mqtool.plays.goals.seen import Seen

_DETAILS: dict[str, Any] = {"exchange": "logs", "routing_key": "", "body": "hi"}


def _delivered(seen: Seen, *, redelivered: bool = False) -> None:
    how = {"queue": "q", "consumer": None, "connection": "there", "redelivered": redelivered}
    seen.take({"kind": "event", "what": "taken", "t": 2, "details": _DETAILS, **how})


def _seen() -> Seen:
    """A message was published to the queue 'q', and delivered."""
    seen = Seen()
    published = {"what": "published", "t": 1, "message": 1, "from": {"connection": "here"}, "details": _DETAILS}
    seen.take({"kind": "event", **published})
    seen.take({"kind": "event", "what": "routed", "t": 1, "message": 1, "queue": "q"})
    _delivered(seen)
    return seen


def _look(seen: Seen, *, unacked: int, acknowledged: int = 0, times: int = 1) -> None:
    for _ in range(times):
        seen.take({"kind": "moved", "queues": {"q": [0, unacked, 1]}, "settled": {"q": [acknowledged, 0]}})


def test_a_message_is_received_once_rabbitmq_counts_its_acknowledgement() -> None:
    """`tutorial try` counts a message as received once RabbitMQ's queue counters show its acknowledgement."""
    seen = _seen()
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0, acknowledged=1)
    assert seen.messages[0].receivers == ["there"]


def test_a_message_whose_counters_rabbitmq_has_lost_is_received_if_its_queue_stays_empty() -> None:
    """If RabbitMQ has dropped the counters of a consumer that ended at once, a message counts as received when
    `tutorial try` has found its queue empty eight times.
    """
    seen = _seen()
    _look(seen, unacked=0, times=7)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == ["there"]


def test_a_message_that_its_receiver_holds_is_not_received() -> None:
    """A message that a consumer holds unacknowledged never counts as received, however long the consumer holds it."""
    seen = _seen()
    _look(seen, unacked=1, times=30)
    assert seen.messages[0].receivers == []


def test_a_redelivered_message_needs_an_empty_queue_for_as_long_as_the_first_delivery() -> None:
    """After a redelivery, `tutorial try` counts anew how often it has found the queue empty, because RabbitMQ's
    statistics are late.
    """
    seen = _seen()
    _look(seen, unacked=0, times=7)
    _delivered(seen, redelivered=True)
    _look(seen, unacked=0, times=7)
    assert seen.messages[0].receivers == []


def test_a_message_held_by_a_new_exchange_is_not_due() -> None:
    """`tutorial try` does not say that nobody has received a delayed message while the exchange that holds it back is
    so new that no topology has it, but says so if the next topology has no such exchange.
    """
    (goal,) = GOALS["delayed-messages"]
    seen = Seen()
    published = {"what": "published", "t": 1, "message": 1, "from": {"connection": "here"}, "details": _DETAILS}
    seen.take({"kind": "event", **published})
    seen.take({"kind": "event", "what": "delayed", "t": 1, "message": 1, "exchange": "later", "copy": 1, "until": 9000})
    assert [each for mistake in goal.mistakes if (each := mistake(seen))] == []
    seen.take({"kind": "topology", "queues": [], "exchanges": [], "links": [], "consumers": []})
    assert [each for mistake in goal.mistakes if (each := mistake(seen))] == [
        "'hi' was sent. Nobody has received it yet."
    ]
