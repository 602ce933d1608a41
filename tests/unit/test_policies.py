"""Consuming policies: how many messages a consumer prefetches, and when it acknowledges them."""

from math import inf
from typing import Any, cast

import pytest

from mqtool.amqp.consume_policies import (
    ASSUMED_LIMIT,
    CallerSettles,
    ConsumePolicy,
    ExactCount,
    Step,
    Streaming,
    policy_for,
)
from mqtool.amqp.receive_settings import PREFETCH, Receiving
from mqtool.message import Delivery

SOON, LATER = 0.01, 1.0


def delivery(tag: int = 1, times: int = 0) -> Delivery:
    return Delivery(b"", "", "q", "q", times > 0, {"headers": {"x-delivery-count": times}}, tag)


def handle(policy: ConsumePolicy, tags: range, now: float = SOON) -> list[int]:
    """Take and finish deliveries; return the delivery tags of the acknowledgements."""
    acknowledged = []
    for tag in tags:
        policy.taken(delivery(tag))
        if policy.done(delivery(tag), now) and (newest := policy.release()) is not None:
            acknowledged.append(newest.delivery_tag)
    return acknowledged


def test_a_consumers_initial_prefetch_depends_on_its_options_and_the_queues_delivery_limit() -> None:
    """A consumer's initial prefetch is the value of `--prefetch`, by default 1,000. On a queue with a delivery limit,
    the default is 1, unless `--auto-ack` is given. With `--count 3` on such a queue, the initial prefetch is 1, or 3 in
    a command that sends its own acknowledgements, such as `worker`. In either case, the consumer is cancelled when it
    has received the third message.
    """
    for receiving, limit, expected in (
        (Receiving(), inf, (PREFETCH, True, [])),
        (Receiving(), 20, (1, True, [])),
        (Receiving(prefetch=10), 20, (10, True, [])),
        (Receiving(auto_ack=True), 20, (PREFETCH, False, [])),
        (Receiving(count=3, auto_ack=True), 20, (1, True, [3])),
        (Receiving(count=3, acknowledge=False), 20, (3, False, [3])),
    ):
        policy = policy_for(receiving, delivery_limit=limit)
        prefetch = policy.prefetch
        cancelled_at = [tag for tag in range(1, 5) if policy.taken(delivery(tag)) is Step.CANCEL]
        assert (prefetch, policy.acknowledges, cancelled_at) == expected


def test_automatic_acknowledgement_is_left_to_the_broker_unless_the_number_of_messages_is_limited() -> None:
    """With `--auto-ack`, the broker considers deliveries acknowledged when it sends them. If `--count` is also given,
    mqtool acknowledges each message instead, because the prefetch does not limit automatically acknowledged
    deliveries.
    """
    for receiving, auto_ack in (
        (Receiving(auto_ack=True), True),
        (Receiving(auto_ack=True, acknowledge=False), True),
        (Receiving(auto_ack=True, count=3), False),
        (Receiving(auto_ack=True, count=3, acknowledge=False), False),
    ):
        assert policy_for(receiving, delivery_limit=inf).auto_ack is auto_ack


def test_a_consumer_without_a_message_limit_acknowledges_a_quarter_of_the_prefetch_at_a_time() -> None:
    """A consumer without `--count` sends an acknowledgement when it has handled a quarter of its prefetch, or earlier
    if its last acknowledgement was sent more than 50 ms ago.
    """
    policy = Streaming(40)
    assert handle(policy, range(1, 26)) == [10, 20]
    assert policy.done(delivery(26), LATER)
    assert policy.release() == delivery(26)
    assert policy.release() is None


def test_a_consumer_with_a_prefetch_of_one_acknowledges_each_delivery_immediately() -> None:
    """With a prefetch of 1, mqtool's consumer acknowledges each delivery immediately, instead of several together,
    because the broker sends the next message only after the acknowledgement.
    """
    assert handle(Streaming(1), range(1, 4)) == [1, 2, 3]


def test_messages_are_prefetched_one_by_one_until_one_arrives_that_was_rarely_requeued() -> None:
    """Each time a prefetched message is requeued, it comes closer to its queue's delivery limit. A consumer of a
    queue with this limit therefore starts with a prefetch of 1. It changes to its full prefetch when it receives a
    message that was requeued fewer times than three quarters of the limit (rounded down). If the limit is not known,
    the consumer does so when it receives a message that was never requeued.
    """
    for limit, often in (20, 15), (4, 3), (3, 2), (ASSUMED_LIMIT, 1):
        policy = policy_for(Receiving(), delivery_limit=limit)
        assert (policy.prefetch, policy.taken(delivery(1, times=often)), policy.prefetch) == (1, Step.GO_ON, 1)
        assert (policy.taken(delivery(2, times=often - 1)), policy.prefetch) == (Step.RESUBSCRIBE, PREFETCH)
        assert policy.taken(delivery(3)) is Step.GO_ON
    for limit in 1, 0:
        policy = policy_for(Receiving(), delivery_limit=limit)
        assert (policy.taken(delivery(1)), policy.prefetch) == (Step.GO_ON, 1)


def test_with_a_high_count_a_queue_with_a_delivery_limit_is_first_read_one_by_one() -> None:
    """On a queue with a delivery limit of 2, a consumer of `receive --count 400` has a prefetch of 1 until it
    receives a message that was never requeued. It then raises its prefetch, and holds back acknowledgements, so that
    the broker delivers no 401st message. If no more than 250 messages are still to be received at that time, the
    prefetch stays 1.
    """
    policy = policy_for(Receiving(count=400), delivery_limit=2)
    assert (policy.prefetch, policy.taken(delivery(1, times=1)), policy.prefetch) == (1, Step.GO_ON, 1)
    policy.done(delivery(1), SOON)
    assert policy.release() == delivery(1)
    assert (policy.taken(delivery(2)), policy.prefetch) == (Step.RESUBSCRIBE, 348)
    policy.done(delivery(2), SOON)
    assert handle(policy, range(3, 400)) == [52]  # the new consumer gets 348 messages, and 50 more
    assert policy.taken(delivery(400)) is Step.CANCEL
    few = policy_for(Receiving(count=251), delivery_limit=2)
    assert (few.taken(delivery(1)), few.prefetch) == (Step.GO_ON, 1)


def test_with_a_low_message_limit_messages_are_prefetched_one_by_one() -> None:
    """With `--count 3`, a consumer has a prefetch of 1, and is cancelled before it acknowledges the last message, so
    that the broker delivers no further message.
    """
    policy = ExactCount(3)
    assert policy.prefetch == 1
    assert handle(policy, range(1, 3)) == [1, 2]
    assert policy.taken(delivery(3)) is Step.CANCEL


def test_with_a_high_message_limit_acknowledgements_are_held_back_until_the_last_message() -> None:
    """With `--count 300`, a consumer has a prefetch of 250. It acknowledges the first 50 messages as they are handled,
    and the others only at the end, so that the broker delivers no 301st message.
    """
    policy = ExactCount(300)
    assert policy.prefetch == 250
    assert handle(policy, range(1, 300))[-1] == 50
    assert policy.withholds
    assert policy.release() is None
    assert policy.taken(delivery(300)) is Step.CANCEL
    policy.done(delivery(300), LATER)
    assert policy.release() == delivery(300)


def test_acknowledgements_that_are_held_back_are_sent_when_the_queue_is_empty() -> None:
    """With `--count 300`, a consumer of a command such as `receive` holds back its last acknowledgements, so that the
    broker sends no 301st message. If no more messages arrive for a while, because the queue is empty, the consumer
    sends these acknowledgements, and continues with a prefetch of 1.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.silence() is Step.RESUBSCRIBE
    assert policy.prefetch == 1
    assert policy.release() == delivery(100)
    assert not policy.withholds
    assert handle(policy, range(101, 103)) == [101, 102]


def test_a_consumer_stopped_early_acknowledges_all_messages_that_it_has_handled() -> None:
    """If a consumer with `--count 300`, which acknowledges several messages at a time, is stopped after it has handled
    100 messages, it acknowledges all 100.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.release(leaving=True) == delivery(100)


def test_only_messages_whose_output_was_written_are_acknowledged_when_a_write_has_failed() -> None:
    """A message is acknowledged only once its output has been written. If a write fails, the consumer, before it ends,
    sends the acknowledgements still pending for messages whose output was written earlier, and acknowledges no later
    message.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.release() is None
    handle(policy, range(101, 103))
    assert policy.release(leaving=True, is_written=False) == delivery(100)
    assert policy.release(leaving=True, is_written=False) is None
    policy = Streaming(40)
    policy.done(delivery(1), SOON)
    assert policy.release(is_written=False) is None


def acknowledge(policy: CallerSettles, *received: int, first: int = 1) -> list[Step]:
    """Acknowledge deliveries, whose tags count up from `first`; `received` says how many have arrived each time."""
    return [policy.acknowledged(tag, count, is_current=True) for tag, count in enumerate(received, first)]


def test_a_command_with_manual_acknowledgements_never_receives_more_messages_than_its_limit() -> None:
    """A command that uses manual acknowledgements, such as `worker`, never receives more messages than `--count`
    allows, however late the acknowledgements are.
    """
    policy = CallerSettles(Receiving(count=5, prefetch=2, acknowledge=False))
    assert policy.prefetch == 2
    assert acknowledge(policy, 3, 4, 5) == [Step.GO_ON, Step.GO_ON, Step.CANCEL]

    policy = CallerSettles(Receiving(count=5, prefetch=2, acknowledge=False))
    assert acknowledge(policy, 2, 3, 4, 4) == [Step.GO_ON, Step.GO_ON, Step.GO_ON, Step.RESUBSCRIBE]
    assert policy.wants_more(4, through=4)
    assert policy.prefetch == 1
    assert not policy.wants_more(5, through=5), "one more message arrived while the broker cancelled the consumer"


def test_a_consumer_that_nears_its_count_is_replaced_by_one_that_prefetches_the_remaining_messages() -> None:
    """If a command with manual acknowledgements, such as `worker`, has a prefetch of 8 and `--count 20`, mqtool
    cancels the consumer before an acknowledgement that would let the broker send a 21st message. mqtool then starts a
    consumer whose prefetch is the number of remaining messages: 5 after 15 messages. When this happens again, the
    prefetch of the next consumer is only half of the number of remaining messages, so that mqtool need not replace
    this consumer after each acknowledgement.
    """
    policy = CallerSettles(Receiving(count=20, prefetch=8, acknowledge=False))
    assert acknowledge(policy, *range(8, 15), *[15] * 5) == [Step.GO_ON] * 12
    assert acknowledge(policy, 15, first=13) == [Step.RESUBSCRIBE]
    assert policy.wants_more(15, through=16), "one message arrived after the cancellation, and was requeued"
    assert policy.prefetch == 5
    assert acknowledge(policy, 15, 16, first=14) == [Step.GO_ON] * 2
    assert acknowledge(policy, 16, first=17) == [Step.RESUBSCRIBE]
    assert policy.wants_more(16, through=19)
    assert policy.prefetch == 2
    assert acknowledge(policy, 17, 18, first=20) == [Step.GO_ON] * 2
    assert acknowledge(policy, 20, first=22) == [Step.CANCEL]


def test_messages_that_were_unacknowledged_when_the_channel_was_lost_do_not_count() -> None:
    """If a command with manual acknowledgements, such as `worker`, loses its channel, messages that were
    unacknowledged at that time do not count towards `--count`, because the broker redelivers them. Acknowledging one
    of these messages later does not make it count.
    """
    policy = CallerSettles(Receiving(count=3, prefetch=1, acknowledge=False))
    policy.acknowledged(1, 1, is_current=True)
    policy.opened()
    policy.acknowledged(2, 0, is_current=False)
    assert policy.acknowledged(1, 1, is_current=True) is Step.GO_ON
    assert policy.acknowledged(2, 2, is_current=True) is Step.CANCEL


def test_without_count_no_acknowledgement_ends_a_consumer_with_manual_acknowledgements() -> None:
    """If a command with manual acknowledgements, such as `worker`, runs without `--count`, no acknowledgement makes
    mqtool cancel or replace the command's consumer. The consumer sends no acknowledgements itself.
    """
    policy = CallerSettles(Receiving(prefetch=0, acknowledge=False))
    assert (policy.prefetch, policy.acknowledges) == (0, False)
    assert {policy.acknowledged(number, number, is_current=True) for number in range(9)} == {Step.GO_ON}


def test_a_forged_delivery_count_does_not_make_a_consumer_slow() -> None:
    """A consumer of a queue with a delivery limit receives one message at a time until one arrives that has been
    requeued only a few times, and then uses its full prefetch. If x-delivery-count is not a number, or is set on a
    first delivery, a publisher has forged it, and mqtool treats the message as one that was never requeued.
    """
    for redelivered, count in (False, 1000), (False, "x"), (True, "x"), (True, None):
        forged = Delivery(b"", "", "q", "q", redelivered, {"headers": {"x-delivery-count": count}}, 1)
        assert policy_for(Receiving(), delivery_limit=2).taken(forged) is Step.RESUBSCRIBE


@pytest.mark.parametrize(
    ("receiving", "is_stream", "expected"),
    [
        (Receiving(prefetch=7), False, (Streaming, 7, False, True)),
        (Receiving(prefetch=7, auto_ack=True), False, (Streaming, 7, True, False)),
        (Receiving(prefetch=7), True, (Streaming, 7, False, True)),
        (Receiving(prefetch=7, auto_ack=True, count=3), True, (Streaming, 7, True, False)),
        (Receiving(prefetch=7, buffer=cast(Any, object())), False, (Streaming, 7, True, False)),
        (Receiving(count=250), False, (ExactCount, 1, False, True)),
        (Receiving(count=251), False, (ExactCount, 201, False, True)),
        (Receiving(count=1000), False, (ExactCount, 950, False, True)),
        (Receiving(count=2000, prefetch=0), False, (ExactCount, PREFETCH, False, True)),
        (Receiving(count=2000, prefetch=1500), False, (ExactCount, 1500, False, True)),
        (Receiving(count=2000, prefetch=999), False, (ExactCount, 1, False, True)),
        (Receiving(count=3, prefetch=7, acknowledge=False), False, (CallerSettles, 3, False, False)),
        (Receiving(prefetch=7, acknowledge=False), True, (CallerSettles, 7, False, False)),
    ],
)
def test_the_options_determine_the_prefetch_and_whether_the_consumer_sends_acknowledgements(
    receiving: Receiving, expected: tuple[object, ...], *, is_stream: bool
) -> None:
    """Without `--count`, or on a stream, a consumer's prefetch is the value of `--prefetch`, by default 1,000. With
    `--count N` on any other queue, the prefetch in a command that sends its own acknowledgements, such as `worker`, is
    the lower of `--prefetch` and N. In any other command, it is the lower of `--prefetch` and N - 50, but 1 if N is at
    most 250 or `--prefetch` is between 1 and 999. The consumer sends the acknowledgements unless the command does so,
    or the broker acknowledges messages automatically.
    """
    policy = policy_for(receiving, delivery_limit=inf, is_stream=is_stream)
    assert (type(policy), policy.prefetch, policy.auto_ack, policy.acknowledges) == expected
    assert not policy.withholds


def test_acknowledgements_within_50_ms_are_sent_together() -> None:
    """A consumer acknowledges a delivery immediately if it sent its last acknowledgement more than 50 ms ago.
    Otherwise, it acknowledges the delivery later, together with others. This is also true of a consumer with an
    unlimited prefetch.
    """
    for prefetch in (0, 1000):
        assert handle(Streaming(prefetch), range(1, 50), 0.05) == []
        policy = Streaming(prefetch)
        assert policy.done(delivery(1), LATER)
        assert not policy.done(delivery(2), LATER + 0.04)
        assert policy.done(delivery(3), LATER + 0.06)


def test_a_consumer_with_manual_acknowledgements_is_cancelled_once_count_messages_have_arrived() -> None:
    """In a command with manual acknowledgements, such as `worker`, mqtool cancels the consumer when it has received
    the number of messages given with `--count`. Without `--count`, mqtool does not cancel the consumer.
    """
    policy = CallerSettles(Receiving(count=3, acknowledge=False))
    assert [policy.taken(delivery(tag)) for tag in (1, 2, 3)] == [Step.GO_ON, Step.GO_ON, Step.CANCEL]
    endless = CallerSettles(Receiving(acknowledge=False))
    assert {endless.taken(delivery(tag)) for tag in range(1, 9)} == {Step.GO_ON}
    assert endless.wants_more(8, through=8)
    endless.opened()
    assert endless.prefetch == PREFETCH


def test_after_a_lost_channel_a_consumer_still_receives_no_more_messages_than_count_allows() -> None:
    """In a command with manual acknowledgements, such as `worker`, a consumer whose channel was lost and reopened still
    receives no more messages than `--count` allows. Before an acknowledgement would let the broker send one message too
    many, mqtool replaces the consumer with one that has a smaller prefetch. When all messages have arrived, mqtool
    cancels the consumer.
    """
    policy = CallerSettles(Receiving(count=7, prefetch=2, acknowledge=False))
    assert acknowledge(policy, 2, 3) == [Step.GO_ON] * 2
    policy.opened()
    assert acknowledge(policy, 2, 3, 4, 4) == [Step.GO_ON, Step.GO_ON, Step.GO_ON, Step.RESUBSCRIBE]
    policy = CallerSettles(Receiving(count=7, prefetch=2, acknowledge=False))
    assert acknowledge(policy, 2, 3) == [Step.GO_ON] * 2
    policy.opened()
    assert acknowledge(policy, 4, 5) == [Step.GO_ON, Step.CANCEL]


def test_each_later_replacement_of_a_consumer_prefetches_half_of_the_remaining_messages() -> None:
    """In a command with manual acknowledgements, such as `worker`, mqtool replaces the consumer before an
    acknowledgement would let the broker send more messages than `--count` allows. The prefetch of the first new
    consumer is the number of messages that are still to be received. The prefetch of each later one is half of this
    number, rounded down, but at least 1.
    """
    policy = CallerSettles(Receiving(count=20, prefetch=8, acknowledge=False))
    prefetched = []
    for received in (12, 15, 18, 19):
        assert policy.wants_more(received, through=received)
        prefetched.append(policy.prefetch)
    assert prefetched == [8, 2, 1, 1]
    assert all(isinstance(each, int) for each in prefetched)
