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
    """A command's options for count, prefetch and acknowledgement, together with the queue's delivery limit, decide how
    the command consumes: with a full prefetch, message by message, up to an exact number, or with acknowledgements by
    the caller.
    """
    assert type(policy_for(Receiving(), limits_deliveries=False)) is Streaming
    assert type(policy_for(Receiving(), limits_deliveries=True)) is Cautious
    assert type(policy_for(Receiving(prefetch=10), limits_deliveries=True)) is Streaming
    assert type(policy_for(Receiving(auto_ack=True), limits_deliveries=True)) is Streaming
    assert type(policy_for(Receiving(count=3, auto_ack=True), limits_deliveries=True)) is ExactCount
    assert type(policy_for(Receiving(count=3, acknowledge=False), limits_deliveries=True)) is CallerSettles


def test_automatic_acknowledgement_is_left_to_the_broker_unless_there_is_a_count() -> None:
    """With `--auto-ack`, the broker acknowledges deliveries by itself. If a count is given as well, mqtool acknowledges
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
    """A consumer without a count sends an acknowledgement after each quarter of its prefetch, or earlier if its last
    acknowledgement was too long ago.
    """
    policy = Streaming(40)
    assert handle(policy, range(1, 26)) == [10, 20]
    assert policy.done(delivery(26), LATER)
    assert policy.release() == delivery(26)
    assert policy.release() is None


def test_a_consumer_with_a_prefetch_of_one_acknowledges_each_delivery() -> None:
    """A consumer with a prefetch of 1 acknowledges each delivery, because the broker sends the next one only after the
    acknowledgement.
    """
    assert handle(Streaming(1), range(1, 4)) == [1, 2, 3]


def test_often_requeued_messages_are_prefetched_one_by_one() -> None:
    """While messages have been requeued 15 times or more, a consumer prefetches them one by one. From the first message
    that was requeued less often, it uses the full prefetch again.
    """
    policy = Cautious()
    assert (policy.prefetch, policy.taken(delivery(1, times=15)), policy.prefetch) == (1, Step.GO_ON, 1)
    assert (policy.taken(delivery(2, times=14)), policy.prefetch) == (Step.RESUBSCRIBE, PREFETCH)
    assert policy.taken(delivery(3)) is Step.GO_ON


def test_with_a_small_count_messages_are_prefetched_one_by_one() -> None:
    """With a small count, a consumer prefetches messages one by one, and cancels its subscription before it
    acknowledges the last one, so that the broker delivers no further message.
    """
    policy = ExactCount(3)
    assert policy.prefetch == 1
    assert handle(policy, range(1, 3)) == [1, 2]
    assert policy.taken(delivery(3)) is Step.CANCEL


def test_with_a_large_count_acknowledgements_are_withheld_so_that_no_surplus_message_arrives() -> None:
    """With a count of 300 and a prefetch of 250, a consumer acknowledges the first 50 messages as they are handled and
    the others only at the end, so that the broker delivers no 301st message.
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
    """If the queue becomes empty before a consumer has reached its count, the consumer sends the acknowledgements that
    it has withheld, and prefetches further messages one by one.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.silence() is Step.RESUBSCRIBE
    assert policy.prefetch == 1
    assert policy.release() == delivery(100)
    assert not policy.withholds
    assert handle(policy, range(101, 103)) == [101, 102]


def test_a_consumer_stopped_early_acknowledges_all_messages_that_it_has_handled() -> None:
    """If a consumer of 300 messages, which acknowledges them in groups, is stopped after 100 messages, it acknowledges
    all 100.
    """
    policy = ExactCount(300)
    handle(policy, range(1, 101))
    assert policy.release(leaving=True) == delivery(100)


def acknowledge(policy: CallerSettles, *received: int, first: int = 1) -> list[Step]:
    """Acknowledge deliveries, whose tags count up from `first`; `received` says how many have come each time."""
    return [policy.acknowledged(tag, count, is_current=True) for tag, count in enumerate(received, first)]


def test_a_caller_that_acknowledges_never_gets_more_messages_than_the_count() -> None:
    """If the caller acknowledges the messages itself, it never gets more messages than the count, however late it
    acknowledges them.
    """
    policy = CallerSettles(Receiving(count=5, prefetch=2, acknowledge=False))
    assert policy.prefetch == 2
    assert acknowledge(policy, 3, 4, 5) == [Step.GO_ON, Step.GO_ON, Step.CANCEL]

    policy = CallerSettles(Receiving(count=5, prefetch=2, acknowledge=False))
    assert acknowledge(policy, 2, 3, 4, 4) == [Step.GO_ON, Step.GO_ON, Step.GO_ON, Step.RESUBSCRIBE]
    assert policy.wants_more(4, through=4)
    assert policy.prefetch == 1
    assert not policy.wants_more(5, through=5), "one more message arrived while the broker cancelled the consumer"


def test_the_last_missing_messages_are_prefetched_together() -> None:
    """Once a consumer needs fewer messages to reach its count than it prefetches, it subscribes again with a prefetch
    of the number that is missing, and the next time with half of the number that is then missing.
    """
    policy = CallerSettles(Receiving(count=20, prefetch=8, acknowledge=False))
    assert acknowledge(policy, *range(8, 20)) == [Step.GO_ON] * 12
    assert acknowledge(policy, 12, first=13) == [Step.RESUBSCRIBE]
    assert policy.wants_more(12, through=15), "some messages arrived after the cancellation, and were requeued"
    assert policy.prefetch == 8
    assert acknowledge(policy, 14, 14, first=14) == [Step.GO_ON] * 2
    assert acknowledge(policy, 14, first=16) == [Step.RESUBSCRIBE]
    assert policy.wants_more(14, through=17)
    assert policy.prefetch == 3
    assert acknowledge(policy, 17, 18, 19, first=18) == [Step.GO_ON] * 3
    assert acknowledge(policy, 20, first=21) == [Step.CANCEL]


def test_messages_that_were_unacknowledged_when_the_channel_was_lost_count_again() -> None:
    """If a channel is lost, only messages that were acknowledged on it count towards the consumer's count. An
    acknowledgement that comes after the loss does not count.
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


def test_a_forged_delivery_count_does_not_make_a_consumer_slow() -> None:
    """If x-delivery-count is not a number, or is set on a first delivery, a publisher has forged it. The message then
    counts as never requeued, so the consumer uses its full prefetch.
    """
    for redelivered, count in (False, 1000), (False, "x"), (True, "x"), (True, None):
        forged = Delivery(b"", "", "q", "q", redelivered, {"headers": {"x-delivery-count": count}}, 1)
        assert Cautious().taken(forged) is Step.RESUBSCRIBE
