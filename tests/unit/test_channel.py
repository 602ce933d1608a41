"""Channel: topology, consumers, basic.get and acknowledgements, with a scripted broker."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pika import exceptions, spec

from mqtool import silence
from mqtool.amqp import Receiving, pika_errors
from mqtool.amqp.administration import declare_request
from mqtool.amqp.channel import Channel
from mqtool.amqp.connection import _drop_replies
from mqtool.amqp.reopening_channel import ChannelListener
from mqtool.errors import (
    AccessRefused,
    DeclaredDifferently,
    MqtoolError,
    NotConfirmed,
    NotFound,
    StoppedWaiting,
    Unavailable,
)
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


@pytest.mark.parametrize("passive", [False, True])
def test_the_reply_to_a_declaration_may_bear_another_name(broker: ScriptedBroker, *, passive: bool) -> None:
    """RabbitMQ's sharding plugin replies to a declaration of a sharded exchange's name with the name of a shard. The
    channel takes this as the reply, and its next requests are answered, too.
    """
    broker.shards["shx"] = "sharding: shx - rabbit@host - 0"
    channel = broker.channel()
    for name in ("shx", "q"):
        assert channel.ask(declare_request(Queue(name), passive=passive)).method.queue == broker.shards.get(name, name)


def test_a_channel_repeats_its_declarations_after_a_reconnection(broker: ScriptedBroker) -> None:
    """After a reconnection, a channel repeats its declarations of exchanges, queues and bindings in the same order,
    except those made with remember=False. If the broker generates the name of a queue, declare() returns the queue
    with this name. After a reconnection, the broker generates a new name, under which the channel binds the queue
    again.
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


def test_an_existing_queue_with_other_properties_or_arguments_is_used_with_a_notice(broker: ScriptedBroker) -> None:
    """If mqtool declares a queue that already exists with other properties or arguments, it prints a notice and uses
    the existing queue. After a reconnection, mqtool only checks that the queue exists, and prints no second notice.
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
def test_a_strict_declaration_fails_if_the_queue_has_other_properties_or_arguments(
    broker: ScriptedBroker, *, strict: bool
) -> None:
    """If a queue exists with other properties or arguments, declaring it raises DeclaredDifferently on a channel that
    was opened with strict=True, and on any channel if the caller passes exactly=True. The failed declaration is not
    repeated after a reconnection.
    """
    channel = broker.channel(strict=strict)
    broker.refused = {spec.Queue.Declare: DIFFERENT}
    with pytest.raises(DeclaredDifferently):
        channel.declare(Queue("q", durable=True), exactly=not strict)
    broker.methods.clear()
    reconnect(channel)
    assert names(broker.methods) == ["Channel.Open"]
    assert broker.notices == []


def test_after_accept_settings_a_queue_is_only_checked_for_existence(broker: ScriptedBroker) -> None:
    """After the caller has called accept_settings() for a queue, declare() only checks that the queue exists,
    whatever its properties and arguments are. Other queues are declared as usual.
    """
    channel = broker.channel()
    channel.accept_settings(Queue("q"))
    channel.declare(Queue("q", durable=True))
    channel.declare(Queue("other"))
    assert [method.passive for method in broker.of(spec.Queue.Declare)] == [True, False]


def test_after_accept_settings_a_queue_that_was_deleted_is_declared(broker: ScriptedBroker) -> None:
    """After the caller has called accept_settings() for a queue, declare() normally only checks that the queue
    exists. If the queue has been deleted, however, declare() declares it, and the channel declares it again after a
    reconnection.
    """
    channel = broker.channel()
    channel.accept_settings(Queue("q"))
    broker.refused = {spec.Queue.Declare: MISSING}
    broker.before = {spec.Channel.Open: broker.refused.clear}
    channel.declare(Queue("q", durable=True))
    reconnect(channel)
    assert [method.passive for method in broker.of(spec.Queue.Declare)] == [True, False, False]


def test_the_depth_of_a_queue_is_its_number_of_ready_messages(broker: ScriptedBroker) -> None:
    """Channel.depth_of() returns the number of ready messages in a queue. If the queue does not exist, depth_of()
    raises NotFound and does not create the queue. The broker then closes the channel, so depth_of() opens the channel
    again.
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


def test_a_request_that_is_not_answered_in_time_raises_not_confirmed(broker: ScriptedBroker) -> None:
    """If the caller sets a time limit for a request, and the broker does not reply in time, the request raises
    NotConfirmed.
    """
    channel = broker.channel()
    broker.silent = {spec.Queue.Declare, spec.Basic.Get}
    with pytest.raises(NotConfirmed, match=r"the broker did not reply within 0\.01 s"):
        channel.ask(declare_request(Queue("q")), within=0.01)
    with pytest.raises(NotConfirmed, match=r"the broker did not reply within 0\.02 s"):
        channel.get("q", within=0.02)


def test_a_channel_that_the_broker_closes_with_access_refused_stays_closed(broker: ScriptedBroker) -> None:
    """If the broker closes a channel with ACCESS_REFUSED, the channel is not opened again, because the broker would
    close it again. Further requests raise AccessRefused.
    """
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
def test_the_caller_of_publish_can_override_the_channels_mandatory_setting(
    broker: ScriptedBroker, *, of_channel: bool, given: bool | None, expected: bool
) -> None:
    """publish() sends messages with the Channel object's setting `mandatory`, unless the caller passes another value to
    publish().
    """
    [*broker.channel(mandatory=of_channel).publish([Message(b"")], mandatory=given)]
    [(method, _)] = broker.published
    assert method.mandatory is expected


def test_the_callers_exchange_and_routing_key_apply_to_messages_without_their_own(broker: ScriptedBroker) -> None:
    """publish() uses the caller's exchange and routing key for messages that have none of their own. If the caller
    passes none, these messages are published to the default exchange. A message without a delivery mode of its own is
    persistent only if the caller passes persistent=True.
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


def test_a_channel_counts_and_lists_its_unconfirmed_messages(broker: ScriptedBroker) -> None:
    """Channel.in_flight is the number of messages that the broker has not confirmed, and Channel.unconfirmed lists
    these messages.
    """
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


def test_a_delivery_is_acknowledged_when_the_caller_asks_for_the_next_one(broker: ScriptedBroker) -> None:
    """Channel.consume() immediately starts a consumer with the caller's prefetch. When the caller asks for the next
    delivery, the channel acknowledges the previous one, unless the caller has already done so. After a reconnection,
    the channel starts the consumer again, and does not acknowledge deliveries of the lost connection.
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
    """Consecutive deliveries that the caller acknowledges together share one basic.ack with `multiple`, unless an
    earlier delivery is unacknowledged. All acknowledgements are sent in one write. Deliveries from an earlier
    connection are not acknowledged.
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
        ({"x-queue-type": "quorum", "x-delivery-limit": -1}, "RabbitMQ 4.0.5", False),
        ({"x-queue-type": "classic", "x-delivery-limit": 5}, "RabbitMQ 4.0.5", False),
        ({}, "RabbitMQ 4.0.5", False),
        ({"x-queue-type": "quorum"}, "LavinMQ 2.0", False),
    ],
)
def test_a_consumer_of_a_queue_with_a_delivery_limit_starts_with_a_prefetch_of_1(
    broker: ScriptedBroker, arguments: dict[str, Any], version: str, *, one_by_one: bool
) -> None:
    """A consumer of a quorum queue with a delivery limit starts with a prefetch of 1, because each requeue of a message
    that was prefetched but not handled would count towards the limit. Other consumers start with a prefetch of 1,000.
    On RabbitMQ 4.0 or later, mqtool assumes a limit unless the queue's arguments disable it. On earlier versions, it
    assumes a limit only if the arguments set one.
    """
    broker.broker = version
    broker.channel().consume(Queue("q", arguments=arguments))
    assert [each.prefetch_count for each in broker.of(spec.Basic.Qos)] == [1 if one_by_one else 1000]


def test_a_consumer_with_an_offset_has_its_full_prefetch_even_for_a_single_message(broker: ScriptedBroker) -> None:
    """A consumer that is to receive a single message has a prefetch of 1. If it reads a stream, or starts at an
    offset that the caller passes, its prefetch is 1,000 instead: messages that are delivered but not used stay in a
    stream anyway.
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


def test_a_consumer_of_a_queue_ignores_the_offsets_of_messages_from_a_stream(broker: ScriptedBroker) -> None:
    """A message that was copied from a stream to a queue still has the header `x-stream-offset`. After a reconnection,
    a consumer of a stream continues after the offset in this header of the last message that it received. A consumer of
    a queue ignores the header, and starts again without an offset.
    """
    channel = broker.channel()
    stream = Queue("s", arguments={"x-queue-type": "stream"})
    consumers = []
    for queue in (Queue("q"), stream):
        consumers.append(channel.consume(queue, Receiving(timeout=20)))
        broker.deliver(consumer_tag(broker), 1, Message(b"1", properties={"headers": {"x-stream-offset": 7}}))
        assert next(consumers[-1]).headers == {"x-stream-offset": 7}
    broker.methods.clear()
    reconnect(channel)
    assert [(each.queue, each.arguments) for each in broker.of(spec.Basic.Consume)] == [
        ("q", {}), ("s", {"x-stream-offset": 8}),
    ]  # fmt: skip


def test_consuming_from_a_missing_queue_raises_not_found(broker: ScriptedBroker) -> None:
    """If a queue does not exist, consuming from it raises NotFound, and the consumer is not started again after a
    reconnection.
    """
    channel = broker.channel()
    broker.refused = {spec.Basic.Consume: MISSING}
    with pytest.raises(NotFound, match="no queue 'q'"):
        channel.consume(Queue("q"))
    assert channel.is_open
    broker.refused = {}
    broker.methods.clear()
    reconnect(channel)
    assert names(broker.methods) == ["Channel.Open"]
    channel.stop()
    assert channel._consumers == []


def test_a_consumer_that_has_ended_gets_no_events_of_its_channel(broker: ScriptedBroker) -> None:
    """A channel passes its events, such as a reconnection, to a consumer only until this consumer ends."""
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
    """Channel.stop() ends the channel's consumers, and consumers that are started later end immediately.
    Channel.stop() also tells the connection that the command must stop.
    """
    channel = broker.channel()
    assert (channel.stopping, broker.must_stop) == (False, False)
    deliveries = channel.consume(Queue("q"), Receiving(timeout=20))
    channel.stop()
    assert (channel.stopping, broker.must_stop) == (True, True)
    assert [*deliveries] == []
    assert [*channel.consume(Queue("q"), Receiving(timeout=20))] == []


@pytest.mark.parametrize("acknowledges", ["consumer", "caller"])
def test_work_is_acknowledged_even_if_the_broker_does_not_reply_to_a_stopped_consumer(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch, acknowledges: str
) -> None:
    """A command that has been told to stop sends basic.cancel before it acknowledges the message that it has handled.
    If the broker does not reply to basic.cancel in time, the command still acknowledges the message, and says that
    the broker may redeliver it.
    """
    monkeypatch.setattr(silence, "LAST_PATIENCE", 0.0)
    channel = broker.channel()
    broker.silent = {spec.Basic.Cancel}
    deliveries = channel.consume(Queue("q"), Receiving(acknowledge=acknowledges == "consumer", timeout=20))
    broker.deliver(consumer_tag(broker), 1, Message(b"1"))
    delivery = next(deliveries)
    channel.stop()
    if acknowledges == "caller":
        channel.acknowledge(delivery)
    assert [*deliveries] == []
    channel.closing()
    assert len(broker.of(spec.Basic.Cancel)) == 1
    assert broker.acks == [(1, acknowledges == "consumer")]
    assert broker.notices == ["stopped: the broker does not reply; it may redeliver messages"]


@pytest.mark.parametrize("unanswered", [spec.Basic.Cancel, spec.Basic.Qos])
def test_work_is_acknowledged_if_the_command_is_stopped_while_it_limits_its_deliveries(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch, unanswered: type
) -> None:
    """To limit the number of messages that a command receives, mqtool may cancel the consumer before it acknowledges a
    message, and then consume again with a smaller prefetch. If the command is told to stop in the meantime, and the
    broker does not reply, mqtool does not consume again, but still acknowledges the message.
    """
    monkeypatch.setattr(silence, "LAST_PATIENCE", 0.0)
    channel = broker.channel()
    deliveries = channel.consume(Queue("q"), Receiving(count=3, acknowledge=False, timeout=20))
    broker.silent, broker.before = {unanswered}, {unanswered: channel.stop}
    broker.deliver(consumer_tag(broker), 1, Message(b"1"), Message(b"2"))
    first, second = next(deliveries), next(deliveries)
    channel.acknowledge(second)
    channel.acknowledge(first)
    channel.closing()
    assert (len(broker.of(spec.Basic.Cancel)), len(broker.of(spec.Basic.Consume))) == (1, 1)
    assert sorted(tag for tag, _ in broker.acks) == [1, 2]


def test_channel_get_does_not_acknowledge_the_message(broker: ScriptedBroker) -> None:
    """Channel.get() returns a message of the queue without acknowledging it, or None if the queue is empty."""
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


def test_replies_to_several_waiting_requests_are_sent_in_one_write(broker: ScriptedBroker) -> None:
    """While further requests are waiting, an RPC server's channel holds its replies back for up to 2 ms. Once the
    server has answered all waiting requests, the channel sends the replies in one write, with one acknowledgement for
    all requests. If the server answers a request a second time, the channel does not acknowledge the request again.
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


def test_a_request_that_needs_no_reply_is_acknowledged_after_the_replies_to_earlier_requests(
    broker: ScriptedBroker,
) -> None:
    """An RPC server's channel can delay replies to send several in one write. If the server handles a later request
    without a reply, the channel first publishes the delayed replies, and then acknowledges this request. Each request
    is acknowledged once, and after its reply, if any.
    """
    channel = broker.channel()
    requests = channel.consume(Queue("q"), Receiving(timeout=20))
    tag = consumer_tag(broker)
    for number in (1, 2, 3):
        broker.deliver(tag, number, Message(b"%d" % number))
    channel.answer(next(requests), Message(b"", "reply-to"))
    next(requests)
    assert (broker.published, broker.acks) == ([], [])
    next(requests)
    assert broker.writes[-2:] == [["Basic.Publish", "Basic.Ack"], ["Basic.Ack"]]
    assert broker.acks == [(1, False), (2, True)]


def test_the_caller_can_wait_for_the_confirms_of_rpc_replies(broker: ScriptedBroker) -> None:
    """If the caller has published replies to RPC requests on a channel, Channel.wait_for_confirms() returns once the
    broker has confirmed all of them. It raises NotConfirmed if a confirm does not arrive in time, or the channel's
    error if the channel is closed for good.
    """
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


def test_waiting_for_confirms_fails_if_unconfirmed_rpc_replies_were_dropped(broker: ScriptedBroker) -> None:
    """If the broker closes the connection with an internal error, the channel drops its unconfirmed RPC replies,
    because they may have caused the error. After the reconnection, it does not publish them again, and
    Channel.wait_for_confirms() raises NotConfirmed. If the caller has stopped the channel in the meantime,
    wait_for_confirms() returns without an error instead.
    """
    broker.confirms = False
    channel = broker.channel()
    channel.answer(delivery(channel, 1), Message(b"", "reply-to"))
    assert _drop_replies([channel, broker.channel()])
    assert not _drop_replies([channel])
    reconnect(channel)
    assert len(broker.published) == 1
    with pytest.raises(NotConfirmed, match="closed the connection with 1 message unconfirmed"):
        channel.wait_for_confirms()
    channel.stop()
    channel.wait_for_confirms()


def test_a_channel_sends_pending_acknowledgements_before_it_is_closed(broker: ScriptedBroker) -> None:
    """Before a channel is closed, it sends the acknowledgements that are pending, so that the broker does not requeue
    deliveries that the caller has acknowledged. Closing the channel again has no effect.
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


def test_a_stopped_consumer_is_cancelled_before_its_last_delivery_is_acknowledged(broker: ScriptedBroker) -> None:
    """If a consumer has been stopped, and the caller acknowledges its last delivery, mqtool sends basic.cancel before
    basic.ack, so that the broker does not deliver another message.
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


class Told(ChannelListener):
    """A listener that records the events of a channel, and whether the channel was ready at each of them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.events: list[Any] = []

    def _told(self, *event: Any) -> None:
        self.events.append((*event, self.channel.reopening.is_ready))

    def opened(self, *, connection_is_new: bool) -> None:
        self._told("opened", connection_is_new)

    def paused(self) -> None:
        self._told("paused")

    def cancelled(self, tag: str) -> None:
        self._told("cancelled", tag)

    def failed(self, failure: MqtoolError) -> None:
        self._told("failed", str(failure))


def test_a_channel_informs_its_publishers_and_consumers_of_its_events(broker: ScriptedBroker) -> None:
    """A channel informs its publishers and consumers when the connection is lost, when the channel is open again (and
    whether the connection is new), and when the broker has cancelled a consumer. If the channel is closed for good,
    it informs them once. It does not inform publishers and consumers that have ended.
    """
    channel = broker.channel()
    listener, ended = Told(channel), Told(channel)
    for each in (listener, ended):
        channel.reopening.listen(each)
    for _ in range(2):
        channel.reopening.forget(ended)
    reconnect(channel)
    channel.reopening.open()
    broker.send(spec.Basic.Cancel("ours", True))
    broker.refused = {spec.Queue.Declare: MISSING}
    with pytest.raises(NotFound):
        channel.reopening.checked(declare_request(Queue("q"), passive=True))
    for reason in ("gone", "gone again"):
        channel.reopening.fail(Unavailable(reason))
    assert listener.events == [
        ("paused", False), ("opened", True, False), ("cancelled", "ours", True), ("opened", False, False),
        ("failed", "gone", True),
    ]  # fmt: skip
    assert ended.events == []


def test_a_request_that_loses_its_connection_is_repeated(broker: ScriptedBroker) -> None:
    """If the connection is lost while a request waits for the broker's reply, the channel repeats the request on the
    next connection.
    """
    channel = broker.channel()
    made: list[int] = []

    def request() -> int:
        made.append(channel.reopening.requests.epoch)
        if len(made) == 1:
            reconnect(channel)
            raise exceptions.ConnectionClosed(0, "lost")
        return 7

    assert channel.reopening.retrying(request) == 7
    assert len(made) == 2
    assert made[0] < made[1]


def test_requests_of_a_command_that_was_told_to_stop_do_not_wait_if_the_connection_is_lost(
    broker: ScriptedBroker,
) -> None:
    """If a command has been told to stop, and its connection is lost, a request does not wait for the broker's reply,
    or for the channel to be opened again. It raises StoppedWaiting, whose text says that the connection is lost.
    """
    channel = broker.channel()
    broker.hopeless = "the connection is lost"
    broker.silent = {spec.Queue.Declare}
    with pytest.raises(StoppedWaiting):
        channel.declare(Queue("q"))
    channel.reopening.lost()
    with pytest.raises(StoppedWaiting, match=r"^stopped: the connection is lost$"):
        channel.reopening.retrying(lambda: None)


TIMED_OUT = 406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1000 ms."


def test_a_channel_that_the_broker_closes_for_a_consumer_timeout_is_opened_again(broker: ScriptedBroker) -> None:
    """If the broker closes a channel because a delivery was not acknowledged within the consumer timeout, mqtool
    opens the channel again. One notice gives the reason for the close, and another says that the channel is open
    again. On a connection without automatic reconnection, the channel stays closed.
    """
    channel, is_open_again = broker.channel(), threading.Event()
    listener = Told(channel)
    channel.reopening.listen(listener)

    def notice(text: str) -> None:
        broker.notices.append(text)
        daemons.append(threading.current_thread().daemon)
        if len(broker.notices) == 2:
            is_open_again.set()

    daemons: list[bool] = []
    broker.notice = notice
    broker.send(spec.Channel.Close(*TIMED_OUT, 0, 0))
    assert is_open_again.wait(20)
    failure = pika_errors.closed_by_broker(exceptions.ChannelClosedByBroker(*TIMED_OUT))
    hint = f" ({failure.hint})" if failure.hint else ""
    assert broker.notices == [f"the broker closed the channel: {failure}{hint}", "opened the channel again"]
    assert listener.events == [("paused", False), ("opened", False, False)]
    assert daemons == [True, True]  # a daemon thread does not keep a command from ending
    assert (channel.is_open, channel.refused) == (True, False)
    broker.comes_back = False
    broker.send(spec.Channel.Close(*TIMED_OUT, 0, 0))
    assert (channel.is_open, channel.refused) == (False, True)
    assert listener.events[2:] == [("failed", str(failure), False)]


def test_a_channel_that_cannot_be_set_up_again_after_a_refusal_is_closed_for_good(broker: ScriptedBroker) -> None:
    """After the broker has refused a request on a channel, mqtool opens the channel again and repeats its
    declarations. If the broker also refuses one of these declarations, the channel is closed for good, and its
    consumers raise the broker's error.
    """
    channel = broker.channel()
    channel.declare(Exchange("x", "topic"))
    deliveries, listener = channel.consume(Queue("q"), Receiving(timeout=20)), Told(channel)
    channel.reopening.listen(listener)
    broker.refused = {spec.Exchange.Declare: (403, "ACCESS_REFUSED - no"), spec.Queue.Declare: MISSING}
    with pytest.raises(AccessRefused):
        channel.reopening.checked(declare_request(Queue("q"), passive=True))
    assert [event for event, *_ in listener.events] == ["failed"]
    with pytest.raises(AccessRefused) as failed:
        next(deliveries)
    assert failed.value is channel.reopening.failure
    assert str(failed.value) == listener.events[0][1]
