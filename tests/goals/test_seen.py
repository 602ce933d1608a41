"""What `tutorial try` concludes from the firehose and statistics of RabbitMQ, which do not show what happens to each
message.
"""

from typing import Any

import pytest

from mqtool.plays.goals import GOALS
from mqtool.plays.goals.seen import Seen

_DETAILS: dict[str, Any] = {"exchange": "logs", "routing_key": "", "body": "hi"}


def _delivered(seen: Seen, queue: str, *, redelivered: bool = False) -> None:
    how = {"queue": queue, "consumer": None, "connection": "there", "redelivered": redelivered}
    seen.take({"kind": "event", "what": "taken", "t": 2, "details": _DETAILS, **how})


def _seen(queue: str = "q") -> Seen:
    """Return what `tutorial try` has seen after a message was published to a queue, and delivered."""
    seen = Seen()
    published = {"what": "published", "t": 1, "message": 1, "from": {"connection": "here"}, "details": _DETAILS}
    seen.take({"kind": "event", **published})
    seen.take({"kind": "event", "what": "routed", "t": 1, "message": 1, "queue": queue})
    _delivered(seen, queue)
    return seen


def _look(seen: Seen, *, unacked: int, acknowledged: int = 0, times: int = 1) -> None:
    [queue] = {copy.queue for message in seen.messages for copy in message.copies}
    for _ in range(times):
        seen.take({"kind": "moved", "queues": {queue: [0, unacked, 1]}, "settled": {queue: [acknowledged, 0]}})


def test_a_message_counts_as_received_once_rabbitmq_counts_its_acknowledgement() -> None:
    """RabbitMQ's firehose does not copy acknowledgements. `tutorial try` therefore counts a delivered message as
    received only once the counters of its queue include an acknowledgement.
    """
    seen = _seen()
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0, acknowledged=1)
    assert seen.messages[0].receivers == ["there"]


def test_a_message_whose_consumer_ended_quickly_counts_as_received_if_its_queue_stays_empty() -> None:
    """If a consumer ends so quickly that RabbitMQ never counts its acknowledgement, `tutorial try` reads the queue's
    counters repeatedly. Once it has found the queue empty eight times, it counts the message as received.
    """
    seen = _seen()
    _look(seen, unacked=0, times=7)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == ["there"]


def test_a_goal_is_reached_if_the_program_ended_before_rabbitmq_counted_its_acknowledgement() -> None:
    """For the goal 'other-settings' of `tutorial try`, the learner's program must receive and acknowledge an invoice.
    If the program ends so quickly that RabbitMQ never counts its acknowledgement, the goal is reached once `tutorial
    try` has found the queue empty eight times.
    """
    goal = next(each for each in GOALS["repair"] if each.name == "other-settings")
    seen = _seen("invoices")
    declared = {"name": "invoices", "arguments": {"x-max-length": 100}}
    seen.take({"kind": "topology", "queues": [declared], "exchanges": [], "links": [], "consumers": []})
    _look(seen, unacked=0, times=7)
    seen.milliseconds = 10_000
    assert goal.reached(seen) == ""
    _look(seen, unacked=0)
    assert goal.reached(seen).startswith("'hi' was received")


def test_an_unacknowledged_message_does_not_count_as_received() -> None:
    """`tutorial try` does not count a message as received while the message is unacknowledged, no matter how long it
    stays unacknowledged.
    """
    seen = _seen()
    _look(seen, unacked=1, times=30)
    assert seen.messages[0].receivers == []


def test_after_a_redelivery_a_queue_must_be_found_empty_eight_more_times() -> None:
    """If RabbitMQ does not count a consumer's acknowledgement, `tutorial try` counts the delivered message as
    received once it has found the queue empty eight times. If the message is redelivered before that, `tutorial try`
    must find the queue empty eight more times.
    """
    seen = _seen()
    _look(seen, unacked=0, times=7)
    _delivered(seen, "q", redelivered=True)
    _look(seen, unacked=0, times=7)
    assert seen.messages[0].receivers == []
    _look(seen, unacked=0)
    assert seen.messages[0].receivers == ["there"]


def test_tutorial_try_does_not_say_that_nobody_has_received_a_message_that_is_still_delayed() -> None:
    """While an exchange delays a message, `tutorial try` does not report that nobody has received the message. If the
    exchange is deleted, and the delayed message with it, `tutorial try` reports that nobody has received the message.
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


def test_a_receiver_that_starts_a_second_consumer_on_its_channel_is_one_receiver() -> None:
    """`receive -c 3` can cancel its consumer and start another one with a new consumer tag, to avoid prefetching more
    messages than it is to receive. `tutorial try` does not count the new consumer as a second receiver.
    """
    goal = next(each for each in GOALS["hello-world"] if each.name == "at-once")
    seen = Seen()
    seen.take({"kind": "topology", "queues": [{"name": "hello"}], "exchanges": [], "links": [], "consumers": []})
    for number, consumer in enumerate(["1.1.1.1:1 -> 1.1.1.1:5672 (1)/a", *["1.1.1.1:1 -> 1.1.1.1:5672 (1)/b"] * 2]):
        about = {"queue": "hello", "copy": number, "message": number, "t": number}
        details = {"exchange": "", "routing_key": "hello", "body": f"message {number}"}
        for event in (
            {"what": "published", "from": {"connection": "sender"}},
            {"what": "routed"},
            {"what": "delivered", "consumer": consumer, "no_ack": False},
            {"what": "acknowledged"},
        ):
            seen.take({"kind": "event", "details": details, **about, **event})
    assert [mistake(seen) for mistake in goal.mistakes if "shared" in mistake(seen)] == []
    assert "receiver 1 was waiting" in goal.reached(seen)


@pytest.mark.parametrize(("milliseconds", "is_reached"), [(700, True), (1500, False)])
def test_a_receiver_counts_as_waiting_even_if_a_busy_broker_delivers_late(milliseconds: int, is_reached: bool) -> None:
    """For the goal "at-once", a receiver must already be waiting when three messages are sent. `tutorial try` assumes
    that the receiver was waiting if the messages were delivered within one second, because a busy broker may deliver
    late. If the delivery took longer, `tutorial try` reports that the messages had to wait.
    """
    goal = next(each for each in GOALS["hello-world"] if each.name == "at-once")
    seen, details = Seen(), {"exchange": "", "routing_key": "hello"}
    seen.take({"kind": "topology", "queues": [{"name": "hello"}], "exchanges": [], "links": [], "consumers": []})
    for number in (1, 2, 3):
        about = {"queue": "hello", "details": {**details, "body": f"message {number}"}, "message": number}
        published = {"what": "published", "t": number, "from": {"connection": "sender"}}
        delivered = {"what": "taken", "t": number + milliseconds, "connection": "receiver", "consumer": None}
        for event in (published, {"what": "routed", "t": number}, {**delivered, "no_ack": True, "redelivered": False}):
            seen.take({"kind": "event", **about, **event})
    assert bool(goal.reached(seen)) is is_reached
    waited = [each for mistake in goal.mistakes if "had to wait" in (each := mistake(seen))]
    assert bool(waited) is not is_reached
