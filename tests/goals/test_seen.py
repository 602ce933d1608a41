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
    """`tutorial try` counts a message as received once RabbitMQ's queue counters show an acknowledgement for the
    message.
    """
    seen = _seen()
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0, acknowledged=1)
    assert seen.messages[0].receivers == ["there"]


def test_a_message_without_counters_counts_as_received_if_its_queue_stays_empty() -> None:
    """If RabbitMQ has dropped the counters of a consumer that ended at once, `tutorial try` counts the delivered
    message as received after finding the queue empty eight times.
    """
    seen = _seen()
    _look(seen, unacked=0, times=7)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == ["there"]


def test_an_unacknowledged_message_does_not_count_as_received() -> None:
    """`tutorial try` does not count a message as received while a consumer holds the message unacknowledged, however
    long that is.
    """
    seen = _seen()
    _look(seen, unacked=1, times=30)
    assert seen.messages[0].receivers == []


def test_after_a_redelivery_empty_queues_are_counted_from_zero() -> None:
    """After a message is redelivered, `tutorial try` counts from zero how often it has found the queue empty, so that
    the message does not count as received too early.
    """
    seen = _seen()
    _look(seen, unacked=0, times=7)
    _delivered(seen, redelivered=True)
    _look(seen, unacked=0, times=7)
    assert seen.messages[0].receivers == []


def test_a_message_that_a_new_exchange_delays_is_not_called_unreceived() -> None:
    """`tutorial try` does not say that nobody has received a message that a new exchange delays. If the next topology
    does not list that exchange, `tutorial try` says so.
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
