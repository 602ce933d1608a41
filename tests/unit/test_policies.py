"""Consuming policies: how many messages a consumer prefetches, and when it acknowledges them."""

from mqtool.amqp.consume_policies import CallerSettles, Cautious, ConsumePolicy, ExactCount, Step, Streaming, policy_for
from mqtool.amqp.receive_settings import PREFETCH, Receiving
from mqtool.message import Delivery

SOON, LATER = 0.01, 1.0


def delivery(tag: int = 1, times: int = 0) -> Delivery:
    return Delivery(b"", "", "q", "q", times > 0, {"headers": {"x-delivery-count": times}}, tag)


def handle(policy: ConsumePolicy, tags: range, now: float = SOON) -> list[int]:
    """Take and finish deliveries; return the tags up to which was acknowledged."""
    acknowledged = []
    for tag in tags:
        policy.taken(delivery(tag))
        if policy.done(delivery(tag), now) and (newest := policy.release()) is not None:
            acknowledged.append(newest.delivery_tag)
    return acknowledged


def test_the_options_decide_how_a_command_consumes() -> None:
    """Which of the four consuming policies a command uses depends on its count, prefetch and acknowledgements, and on
    whether the queue has a delivery limit.
    """
    assert type(policy_for(Receiving(), limits_deliveries=False)) is Streaming
    assert type(policy_for(Receiving(), limits_deliveries=True)) is Cautious
    assert type(policy_for(Receiving(prefetch=10), limits_deliveries=True)) is Streaming
    assert type(policy_for(Receiving(auto_ack=True), limits_deliveries=True)) is Streaming
    assert type(policy_for(Receiving(count=3, auto_ack=True), limits_deliveries=True)) is ExactCount
    assert type(policy_for(Receiving(count=3, acknowledge=False), limits_deliveries=True)) is CallerSettles


def test_automatic_acknowledgement_is_left_to_the_broker_unless_there_is_a_count() -> None:
    """With automatic acknowledgement, the broker acknowledges deliveries. If there is also a count, mqtool acknowledges
    each message instead, because the prefetch does not limit automatically acknowledged deliveries.
    """
    for receiving, auto_ack in (
        (Receiving(auto_ack=True), True),
        (Receiving(auto_ack=True, acknowledge=False), True),
        (Receiving(auto_ack=True, count=3), False),
        (Receiving(auto_ack=True, count=3, acknowledge=False), False),
    ):
        assert policy_for(receiving, limits_deliveries=False).auto_ack is auto_ack


def test_a_consumer_without_a_count_acknowledges_a_quarter_of_the_prefetch_at_a_time() -> None:
    """A consumer without a count acknowledges after each quarter of its prefetch, or earlier if the last
    acknowledgement is too long ago.
    """
    policy = Streaming(40)
    assert handle(policy, range(1, 26)) == [10, 20]
    assert policy.done(delivery(26), LATER)
    assert policy.release() == delivery(26)
    assert policy.release() is None


def test_a_consumer_with_a_prefetch_of_one_acknowledges_each_delivery() -> None:
    """A consumer with a prefetch of 1 acknowledges each delivery, since the next delivery arrives only after that."""
    assert handle(Streaming(1), range(1, 4)) == [1, 2, 3]


def test_often_requeued_messages_are_prefetched_one_by_one() -> None:
    """A consumer prefetches messages that were requeued 15 times or more one by one, and uses the full prefetch again
    from the first other message on.
    """
    policy = Cautious()
    assert (policy.prefetch, policy.taken(delivery(1, times=15)), policy.prefetch) == (1, Step.GO_ON, 1)
    assert (policy.taken(delivery(2, times=14)), policy.prefetch) == (Step.RESUBSCRIBE, PREFETCH)
    assert policy.taken(delivery(3)) is Step.GO_ON


def test_with_a_small_count_messages_are_prefetched_one_by_one() -> None:
    """With a small count, messages are prefetched one by one, and the consumer is cancelled before the last one is
    acknowledged, so no further message is delivered.
    """
    policy = ExactCount(3)
    assert policy.prefetch == 1
    assert handle(policy, range(1, 3)) == [1, 2]
    assert policy.taken(delivery(3)) is Step.CANCEL


def test_a_large_count_withholds_the_acknowledgements_that_would_bring_too_many() -> None:
    """With a count of 300 and a prefetch of 250, a consumer acknowledges the first 50 messages at once and the others
    only at the end, so that no 301st message is delivered.
    """
    policy = ExactCount(300)
    assert policy.prefetch == 250
    assert handle(policy, range(1, 300))[-1] == 50
    assert policy.withholds
    assert policy.release() is None
    assert policy.taken(delivery(300)) is Step.CANCEL
    policy.done(delivery(300), LATER)
    assert policy.release() == delivery(300)


def test_an_empty_queue_releases_withheld_acknowledgements() -> None:
    """If the queue becomes empty before a consumer with a count has that many messages, the withheld acknowledgements
    are sent, and further messages are prefetched one by one.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.silence() is Step.RESUBSCRIBE
    assert policy.prefetch == 1
    assert policy.release() == delivery(100)
    assert not policy.withholds
    assert handle(policy, range(101, 103)) == [101, 102]


def test_stopping_before_a_large_count_acknowledges_what_was_taken() -> None:
    """If the caller stops a consumer before the count is reached, the withheld acknowledgements of all messages taken
    so far are sent.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.release(leaving=True) == delivery(100)


def acknowledge(policy: CallerSettles, *received: int, first: int = 1) -> list[Step]:
    """Acknowledge deliveries, whose tags count up from `first`; `received` says how many have come each time."""
    return [policy.acknowledged(tag, count, is_current=True) for tag, count in enumerate(received, first)]


def test_a_caller_who_acknowledges_never_gets_more_than_the_count() -> None:
    """A caller who acknowledges messages never gets more messages than the count, whenever the caller acknowledges
    them.
    """
    policy = CallerSettles(Receiving(count=5, prefetch=2, acknowledge=False))
    assert policy.prefetch == 2
    assert acknowledge(policy, 3, 4, 5) == [Step.GO_ON, Step.GO_ON, Step.CANCEL]

    policy = CallerSettles(Receiving(count=5, prefetch=2, acknowledge=False))
    assert acknowledge(policy, 2, 3, 4, 4) == [Step.GO_ON, Step.GO_ON, Step.GO_ON, Step.RESUBSCRIBE]
    assert policy.wants_more(4, through=4)
    assert policy.prefetch == 1
    assert not policy.wants_more(5, through=5), "one more came while the broker was cancelling"


def test_the_last_missing_messages_are_prefetched_together() -> None:
    """When fewer messages are missing for the count than are prefetched, the consumer subscribes again: first with a
    prefetch of the missing number, and later with half of the missing number.
    """
    policy = CallerSettles(Receiving(count=20, prefetch=8, acknowledge=False))
    assert acknowledge(policy, *range(8, 20)) == [Step.GO_ON] * 12
    assert acknowledge(policy, 12, first=13) == [Step.RESUBSCRIBE]
    assert policy.wants_more(12, through=15), "some came after the cancellation, and went back"
    assert policy.prefetch == 8
    assert acknowledge(policy, 14, 14, first=14) == [Step.GO_ON] * 2
    assert acknowledge(policy, 14, first=16) == [Step.RESUBSCRIBE]
    assert policy.wants_more(14, through=17)
    assert policy.prefetch == 3
    assert acknowledge(policy, 17, 18, 19, first=18) == [Step.GO_ON] * 3
    assert acknowledge(policy, 20, first=21) == [Step.CANCEL]


def test_after_a_lost_channel_unacknowledged_messages_count_again() -> None:
    """If a channel is lost, only messages that were acknowledged before count towards the count; an acknowledgement for
    the lost channel that comes later does not.
    """
    policy = CallerSettles(Receiving(count=3, prefetch=1, acknowledge=False))
    policy.acknowledged(1, 1, is_current=True)
    policy.opened()
    policy.acknowledged(2, 0, is_current=False)
    assert policy.acknowledged(1, 1, is_current=True) is Step.GO_ON
    assert policy.acknowledged(2, 2, is_current=True) is Step.CANCEL


def test_without_a_count_consuming_continues_after_each_acknowledgement() -> None:
    """If the caller acknowledges messages and there is no count, the consumer continues after each acknowledgement, and
    mqtool itself acknowledges nothing.
    """
    policy = CallerSettles(Receiving(prefetch=0, acknowledge=False))
    assert (policy.prefetch, policy.acknowledges) == (0, False)
    assert {policy.acknowledged(number, number, is_current=True) for number in range(9)} == {Step.GO_ON}


def test_a_count_that_a_publisher_has_forged_does_not_stop_a_consumer() -> None:
    """A first delivery whose x-delivery-count is high or not a number, and a redelivery whose count is not a number,
    count as messages that were never requeued.
    """
    for redelivered, count in (False, 1000), (False, "x"), (True, "x"), (True, None):
        forged = Delivery(b"", "", "q", "q", redelivered, {"headers": {"x-delivery-count": count}}, 1)
        assert Cautious().taken(forged) is Step.RESUBSCRIBE
