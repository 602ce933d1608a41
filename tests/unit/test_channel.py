"""Channel: topology, consumers, basic.get and acknowledgements, with a broker that does what the test says."""

from collections.abc import Iterator
from typing import Any

import pytest
from pika import spec

from mqtool.amqp import Receiving
from mqtool.amqp.administration import declare_request
from mqtool.amqp.channel import Channel
from mqtool.amqp.reopening_channel import ChannelListener
from mqtool.errors import AccessRefused, DeclaredDifferently, NotConfirmed, NotFound, Unavailable
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST
from mqtool.topology import Exchange, Queue
from tests.unit.scripted_broker import ScriptedBroker, scripted_broker

DIFFERENT = 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/'"
MISSING = 404, "NOT_FOUND - no queue 'q' in vhost '/'"


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker() as broker:
        yield broker


def reconnect(channel: Channel) -> None:
    channel.reopening.lost()
    channel.reopening.open(connection_is_new=True)


def delivery(channel: Channel, tag: int) -> Delivery:
    return Delivery(b"", "", "q", "q", False, {}, tag, channel.reopening.requests.epoch)


def names(methods: list[Any]) -> list[str]:
    return [method.NAME for method in methods]


def test_what_a_channel_declares_is_declared_again_after_a_reconnection(broker: ScriptedBroker) -> None:
    """Exchanges, queues and bindings are declared again after a reconnection, in the same order, but not those that the
    caller does not want to keep. A queue that the broker has named is returned with its name.
    """
    channel = broker.channel()
    exchange = channel.declare(Exchange("x", "topic"))
    queue = channel.declare(Queue("", exclusive=True))
    assert (exchange, queue) == (Exchange("x", "topic"), Queue("amq.gen-1", exclusive=True))
    channel.bind(queue, exchange, "key", {"n": 1})
    channel.bind(exchange, Exchange("y"))
    channel.declare(Queue("temporary"), remember=False)
    channel.bind(queue, Exchange("z"), remember=False)
    first = broker.methods[1:]
    assert names(first) == [
        "Exchange.Declare", "Queue.Declare", "Queue.Bind", "Exchange.Bind", "Queue.Declare", "Queue.Bind",
    ]  # fmt: skip
    bound, exchange_bound = first[2:4]
    assert (bound.queue, bound.exchange, bound.routing_key, bound.arguments) == ("amq.gen-1", "x", "key", {"n": 1})
    assert (exchange_bound.destination, exchange_bound.source) == ("x", "y")
    assert (exchange_bound.routing_key, exchange_bound.arguments) == ("", {})
    broker.methods.clear()
    reconnect(channel)
    assert names(broker.methods) == ["Channel.Open", "Exchange.Declare", "Queue.Declare", "Queue.Bind", "Exchange.Bind"]
    assert broker.methods[2].queue == ""
    assert broker.methods[3].queue == "amq.gen-2"
    assert broker.notices == []


def test_a_queue_with_other_settings_is_used_as_it_is(broker: ScriptedBroker) -> None:
    """If a queue exists with other settings, a channel uses it as it is, with a notice, and only checks that it exists
    from then on.
    """
    channel = broker.channel()
    broker.refused = {spec.Queue.Declare: DIFFERENT}
    original = broker._answer

    def answer(method: Any, number: int) -> None:
        if getattr(method, "passive", False):
            broker.refused = {}
        original(method, number)

    broker._answer = answer  # type: ignore[method-assign]
    assert channel.declare(Queue("q", durable=True)) == Queue("q", durable=True)
    [notice] = broker.notices
    assert notice.startswith("using the one that is there: ")
    reconnect(channel)
    assert [method.passive for method in broker.of(spec.Queue.Declare)] == [False, True, True]
    assert len(broker.notices) == 1


@pytest.mark.parametrize("strict", [True, False])
def test_a_queue_with_other_settings_is_an_error_if_the_caller_wants_it_exactly(
    broker: ScriptedBroker, *, strict: bool
) -> None:
    """If a queue exists with other settings, declaring it is an error if the channel is strict, or if the caller wants
    exactly these settings. It is not declared again after a reconnection.
    """
    channel = broker.channel(strict=strict)
    broker.refused = {spec.Queue.Declare: DIFFERENT}
    with pytest.raises(DeclaredDifferently):
        channel.declare(Queue("q", durable=True), exactly=not strict)
    broker.methods.clear()
    reconnect(channel)
    assert names(broker.methods) == ["Channel.Open"]
    assert broker.notices == []


def test_accepted_settings_need_no_notice(broker: ScriptedBroker) -> None:
    """If the caller accepts any settings of a queue, declaring it only checks that the queue exists."""
    channel = broker.channel()
    channel.accept_settings(Queue("q"))
    channel.declare(Queue("q", durable=True))
    channel.declare(Queue("other"))
    assert [method.passive for method in broker.of(spec.Queue.Declare)] == [True, False]


def test_the_depth_of_a_queue_is_its_number_of_ready_messages(broker: ScriptedBroker) -> None:
    """The depth of a queue is its number of ready messages. If the queue does not exist, NotFound is raised, and the
    queue is not created; the channel is opened again.
    """
    channel = broker.channel()
    broker.depth = 17
    assert channel.depth_of("q") == 17
    broker.refused = {spec.Queue.Declare: MISSING}
    with pytest.raises(NotFound, match="no queue 'q'"):
        channel.depth_of("q")
    assert [(method.queue, method.passive) for method in broker.of(spec.Queue.Declare)] == [("q", True)] * 2
    assert channel.is_open
    assert not channel.refused


def test_a_request_that_is_not_answered_in_time_is_not_confirmed(broker: ScriptedBroker) -> None:
    """If the caller waits for a reply for a limited time, a missing reply raises NotConfirmed."""
    channel = broker.channel()
    broker.silent = {spec.Queue.Declare, spec.Basic.Get}
    with pytest.raises(NotConfirmed, match=r"the broker did not reply within 0\.01 s"):
        channel.ask(declare_request(Queue("q")), within=0.01)
    with pytest.raises(NotConfirmed, match=r"the broker did not reply within 0\.02 s"):
        channel.get("q", within=0.02)


def test_a_channel_that_the_broker_closes_for_good_is_refused(broker: ScriptedBroker) -> None:
    """If the broker closes a channel because of an error that reopening does not mend, requests raise the error."""
    channel = broker.channel()
    assert (channel.is_open, channel.refused) == (True, False)
    broker.send(spec.Channel.Close(403, "ACCESS_REFUSED - access to queue 'q' refused", 60, 20))
    assert (channel.is_open, channel.refused) == (False, True)
    with pytest.raises(AccessRefused):
        channel.depth_of("q")


@pytest.mark.parametrize(
    ("of_channel", "given", "expected"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_messages_are_mandatory_as_the_channel_or_the_caller_says(
    broker: ScriptedBroker, *, of_channel: bool, given: bool | None, expected: bool
) -> None:
    """Messages have the flag `mandatory` if the channel has it, unless the caller says otherwise."""
    [*broker.channel(mandatory=of_channel).publish([Message(b"")], mandatory=given)]
    [(method, _)] = broker.published
    assert method.mandatory is expected


def test_messages_go_to_the_exchange_and_routing_key_of_the_caller(broker: ScriptedBroker) -> None:
    """Messages go to the caller's exchange, by default the default exchange, with the caller's routing key, unless they
    have their own. They are persistent only if the caller says so.
    """
    channel = broker.channel()
    assert channel.addressed(Message(b"0")) == Message(b"0", "", "")
    own = Message(b"2", "own-key", "own", {"delivery_mode": 1})
    [*channel.publish([Message(b"1"), own], exchange=Exchange("x"), routing_key="k", persistent=True)]
    assert channel.addressed(Message(b"3")) == Message(b"3", "k", "x")
    assert channel.addressed(own) == own
    [*channel.publish([Message(b"4")])]
    assert channel.addressed(Message(b"3")) == Message(b"3", "", "")
    assert [message for _, message in broker.published] == [
        Message(b"1", "k", "x", {"delivery_mode": 2}), own, Message(b"4", "", ""),
    ]  # fmt: skip


def test_unconfirmed_messages_are_known(broker: ScriptedBroker) -> None:
    """A channel knows how many messages, and which, the broker has not confirmed."""
    broker.confirms = False
    channel = broker.channel()

    def source() -> Iterator[Message | None]:
        for number in range(3):
            yield Message(b"%d" % number)
        broker.io.run_due()
        broker.send(spec.Basic.Ack(1))
        assert channel.in_flight == 2
        yield None

    receipts = channel.publish(source(), routing_key="k")
    assert next(receipts).message.body == b"0"
    assert channel.unconfirmed == [Message(b"1", "k", ""), Message(b"2", "k", "")]
    receipts.close()


def consumer_tag(broker: ScriptedBroker) -> str:
    return str(broker.of(spec.Basic.Consume)[-1].consumer_tag)


def test_a_delivery_is_acknowledged_when_the_caller_asks_for_the_next(broker: ScriptedBroker) -> None:
    """A consumer starts at once, with its prefetch. It acknowledges a delivery when the caller asks for the next one,
    unless the caller has acknowledged it. It consumes again after a reconnection.
    """
    channel = broker.channel()
    deliveries = channel.consume(Queue("q"), Receiving(prefetch=2, timeout=20))
    [qos], [consume] = broker.of(spec.Basic.Qos), broker.of(spec.Basic.Consume)
    assert (qos.prefetch_count, consume.queue, consume.no_ack) == (2, "q", False)
    broker.deliver(consumer_tag(broker), 1, Message(b"1"), Message(b"2"))
    first = next(deliveries)
    assert (first.body, broker.acks) == (b"1", [])
    assert channel.is_current(first)
    second = next(deliveries)
    assert (second.body, broker.acks) == (b"2", [(1, True)])
    channel.acknowledge(second)
    channel.acknowledge(second, first)
    assert broker.acks == [(1, True), (2, False)]
    reconnect(channel)
    assert not channel.is_current(first)
    assert len(broker.of(spec.Basic.Consume)) == 2
    broker.deliver(consumer_tag(broker), 1, Message(b"3"))
    third = next(deliveries)
    assert (third.body, third.delivery_tag, third.epoch) == (b"3", 1, 2)
    assert broker.acks == [(1, True), (2, False)]
    deliveries.close()
    reconnect(channel)
    assert len(broker.of(spec.Basic.Consume)) == 2


def test_deliveries_acknowledged_together_share_one_acknowledgement(broker: ScriptedBroker) -> None:
    """Deliveries that the caller acknowledges together share one basic.ack, with `multiple`, in one write. Whoever
    acknowledges deliveries of an earlier connection sends nothing.
    """
    channel = broker.channel()
    lot = [delivery(channel, tag) for tag in (1, 2, 4)]
    channel.acknowledge(*lot)
    assert broker.acks == [(2, True), (4, False)]
    assert broker.writes[-1] == ["Basic.Ack", "Basic.Ack"]
    assert all(each.settled for each in lot)
    assert broker.has_progressed
    late = delivery(channel, 3)
    channel.reopening.lost()
    assert not channel.is_current(late)
    broker.has_progressed = False
    reconnect(channel)
    channel.acknowledge(late)
    assert late.settled
    assert not broker.has_progressed
    channel.acknowledge(delivery(channel, 2), delivery(channel, 3))
    assert broker.acks[2:] == [(2, False), (3, False)]  # the first delivery of this connection is still unacknowledged


@pytest.mark.parametrize(
    ("arguments", "version", "one_by_one"),
    [
        ({"x-queue-type": "quorum"}, "RabbitMQ 4.0.5", True),
        ({"x-queue-type": "quorum"}, "RabbitMQ 3.13.7", False),
        ({"x-queue-type": "quorum", "x-delivery-limit": 5}, "RabbitMQ 3.13.7", True),
        ({"x-queue-type": "classic", "x-delivery-limit": 5}, "RabbitMQ 4.0.5", False),
        ({}, "RabbitMQ 4.0.5", False),
        ({"x-queue-type": "quorum"}, "LavinMQ 2.0", False),
    ],
)
def test_a_queue_that_limits_deliveries_delivers_one_message_at_first(
    broker: ScriptedBroker, arguments: dict[str, Any], version: str, *, one_by_one: bool
) -> None:
    """A quorum queue drops messages that were delivered too often: always from RabbitMQ 4.0 on, and if it has a
    delivery limit before. A consumer of such a queue takes one message at first. Other consumers prefetch 1,000.
    """
    broker.broker = version
    broker.channel().consume(Queue("q", arguments=arguments))
    assert [each.prefetch_count for each in broker.of(spec.Basic.Qos)] == [1 if one_by_one else 1000]


def test_a_stream_is_consumed_from_an_offset(broker: ScriptedBroker) -> None:
    """A stream is consumed from the caller's offset, or with the broker's default. Its messages stay in it, so a limit
    of messages does not limit the prefetch.
    """
    channel = broker.channel()
    stream = Queue("q", durable=True, arguments={"x-queue-type": "stream"})
    for queue, receiving in (
        (stream, Receiving(offset=FIRST, count=1)),
        (stream, Receiving(count=1)),
        (Queue("q"), Receiving(offset=FIRST, count=1)),
        (Queue("q"), Receiving(count=1)),
    ):
        channel.consume(queue, receiving)
    assert [each.arguments for each in broker.of(spec.Basic.Consume)] == [
        {"x-stream-offset": "first"}, {}, {"x-stream-offset": "first"}, {},
    ]  # fmt: skip
    assert [each.prefetch_count for each in broker.of(spec.Basic.Qos)] == [1000, 1000, 1000, 1]


def test_a_consumer_of_a_missing_queue_is_an_error(broker: ScriptedBroker) -> None:
    """If the queue does not exist, consuming raises NotFound, and the consumer is not started again after a
    reconnection.
    """
    channel = broker.channel()
    broker.refused = {spec.Basic.Consume: MISSING}
    with pytest.raises(NotFound, match="no queue 'q'"):
        channel.consume(Queue("q"))
    broker.refused = {}
    broker.methods.clear()
    reconnect(channel)
    assert names(broker.methods) == ["Channel.Open"]
    channel.stop()
    assert channel._consumers == []


def test_a_consumer_that_has_ended_is_told_nothing(broker: ScriptedBroker) -> None:
    """A channel passes its events to a consumer only until the consumer ends."""
    channel = broker.channel()
    assert channel.cluster == "cluster"
    before, during, after = (list[ChannelListener]() for _ in range(3))
    channel.reopening.tell(before.append)
    deliveries = channel.consume(Queue("q"), Receiving(count=1, timeout=20))
    channel.reopening.tell(during.append)
    broker.deliver(consumer_tag(broker), 1, Message(b"1"))
    assert len([*deliveries]) == 1
    channel.reopening.tell(after.append)
    assert (before, len(during)) == (after, len(before) + 1)


def test_stopping_a_channel_ends_its_consumers(broker: ScriptedBroker) -> None:
    """When a channel is stopped, its consumers end, those that are started later, too, and its connection no longer
    waits for a broker that cannot reply.
    """
    channel = broker.channel()
    assert (channel.stopping, broker.stopping) == (False, False)
    deliveries = channel.consume(Queue("q"), Receiving(timeout=20))
    channel.stop()
    assert (channel.stopping, broker.stopping) == (True, True)
    assert [*deliveries] == []
    assert [*channel.consume(Queue("q"), Receiving(timeout=20))] == []


def test_an_empty_queue_has_no_message_to_get(broker: ScriptedBroker) -> None:
    """basic.get returns a message, unacknowledged, or None if the queue is empty."""
    channel = broker.channel()
    assert channel.get("q") is None
    broker.got = spec.Basic.GetOk(3, True, "x", "k", 5), Message(b"body", properties={"app_id": "a"}, message_id="id")
    got = channel.get("q")
    assert got is not None
    assert (got.body, got.exchange, got.routing_key, got.queue) == (b"body", "x", "k", "q")
    assert (got.redelivered, got.delivery_tag, got.epoch, got.settled) == (True, 3, 1, False)
    assert (got.message_id, got.properties["app_id"]) == ("id", "a")
    assert [(each.queue, each.no_ack) for each in broker.of(spec.Basic.Get)] == [("q", False)] * 2
    channel.acknowledge(got)
    assert broker.acks == [(3, False)]


def test_an_answer_waits_for_others_if_more_requests_have_arrived(broker: ScriptedBroker) -> None:
    """If more deliveries have arrived, the reply to one waits two milliseconds for those to others, and all are sent in
    one write. A delivery that the consumer has handed out is acknowledged once.
    """
    channel = broker.channel()
    requests = channel.consume(Queue("q"), Receiving(acknowledge=False, timeout=20))
    tag = consumer_tag(broker)
    for number in (1, 2, 3):
        broker.deliver(tag, number, Message(b"%d" % number))
    for number, request in zip(range(1, 4), requests, strict=False):
        channel.answer(request, Message(request.body, "reply-to"))
        assert request.settled
        if number < 3:
            assert broker.published == []
            assert [seconds for seconds, _ in broker.io.later] == [0.002]
    assert broker.writes[-1] == ["Basic.Publish"] * 3 + ["Basic.Ack"]
    assert broker.acks == [(3, True)]
    channel.answer(request, Message(b"again", "reply-to"))
    assert broker.acks == [(3, True)]


def test_the_caller_can_wait_for_the_confirms_of_replies(broker: ScriptedBroker) -> None:
    """Waiting for confirms ends when the broker has confirmed all replies, and fails if it does not in time."""
    broker.confirms = False
    channel = broker.channel(confirm_timeout=0.01)
    channel.answer(delivery(channel, 1), Message(b"", "reply-to"))
    with pytest.raises(NotConfirmed, match=r"did not confirm 1 message within 0\.01 s"):
        channel.wait_for_confirms()
    broker.send(spec.Basic.Ack(1))
    channel.wait_for_confirms()
    channel.answer(delivery(channel, 2), Message(b"", "reply-to"))
    channel.reopening.fail(Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        channel.wait_for_confirms()


def test_closing_a_channel_requeues_unacknowledged_deliveries(broker: ScriptedBroker) -> None:
    """A channel that is closed sends pending acknowledgements first. The broker requeues the other deliveries. Closing
    it again changes nothing.
    """
    channel = broker.channel()
    requests = channel.consume(Queue("q"), Receiving(acknowledge=False, timeout=20))
    broker.deliver(consumer_tag(broker), 1, Message(b"1"))
    broker.deliver(consumer_tag(broker), 2, Message(b"2"))
    channel.answer(next(requests), Message(b"", "reply-to"))
    assert broker.acks == []
    channel.reopening.tell(lambda listener: listener.closing())
    assert broker.acks == [(1, False)]
    assert channel.is_open
    channel.close()
    channel.close()
    assert len(broker.of(spec.Channel.Close)) == 1
    assert not channel.is_open


def test_a_consumer_stops_before_an_acknowledgement_lets_the_broker_send_more(broker: ScriptedBroker) -> None:
    """If the caller acknowledges the last delivery that a stopped consumer has received, basic.cancel is sent first, so
    that the broker sends no other message.
    """
    channel = broker.channel()
    deliveries = channel.consume(Queue("q"), Receiving(acknowledge=False, prefetch=1, timeout=20))
    broker.deliver(consumer_tag(broker), 1, Message(b"1"))
    last = next(deliveries)
    channel.stop()
    channel.acknowledge(last)
    assert [write for write in broker.writes if write in (["Basic.Cancel"], ["Basic.Ack"])] == [
        ["Basic.Cancel"], ["Basic.Ack"],
    ]  # fmt: skip
