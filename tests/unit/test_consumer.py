"""Consumer: when it ends, and what it acknowledges and requeues, with a scripted broker."""

import queue as queues
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from pika import spec

from mqtool.amqp import Receiving, consumer, pika_private, subscription
from mqtool.amqp.channel import Channel
from mqtool.amqp.subscription import Buffer
from mqtool.errors import InternalError, TimedOut, Unavailable
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST
from mqtool.topology import Queue
from tests.unit.scripted_broker import ScriptedBroker, scripted_broker

Q = Queue("q")


class Clock:
    """The clock of a consumer, which advances only while the consumer waits for deliveries.

    Attributes:
        now: the time in seconds.
        events: what happens while the consumer waits, and when, in order.
        waits: the longest time that each wait may take.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[tuple[float, Callable[[], object]]] = []
        self.waits: list[float] = []

    def monotonic(self) -> float:
        assert self.now < 1000, "the consumer never ends"
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        self.waits.append(seconds)
        until = round(self.now + seconds, 6)
        while not is_over() and self.events and self.events[0][0] <= until:
            self.now, event = self.events.pop(0)
            event()
        if not is_over():
            self.now = until


class Inbox(queues.SimpleQueue[Any]):
    """The queue between the I/O thread and the consumer's caller, where waiting takes no time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ARG002
        assert timeout is not None, "a signal handler of Python would never run"
        self._clock.wait(timeout, lambda: not self.empty())
        return super().get_nowait()


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker() as broker:
        yield broker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(consumer, "time", clock)
    monkeypatch.setattr(consumer, "queues", SimpleNamespace(SimpleQueue=lambda: Inbox(clock), Empty=queues.Empty))
    return clock


def reconnect(channel: Channel) -> None:
    channel.reopening.lost()
    channel.reopening.open(connection_is_new=True)


def deliver(broker: ScriptedBroker, *tags: int) -> None:
    """Deliver messages to the latest consumer; the body of each is its delivery tag."""
    for tag in tags:
        broker.deliver(broker.of(spec.Basic.Consume)[-1].consumer_tag, tag, Message(b"%d" % tag))


def tags(deliveries: Iterable[Delivery]) -> list[int]:
    return [delivery.delivery_tag for delivery in deliveries]


def prefetches(broker: ScriptedBroker) -> list[int]:
    """The prefetch of each consumer that was started."""
    return [method.prefetch_count for method in broker.of(spec.Basic.Qos)]


def test_a_consumer_ends_after_its_idle_timeout(broker: ScriptedBroker, clock: Clock) -> None:
    """A consumer ends once no delivery has arrived for the duration of its idle timeout. Time without a connection
    does not count towards the timeout. While the consumer waits for a delivery, mqtool handles a signal within 0.1 s.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(idle_timeout=5.25))
    clock.events = [
        (103, lambda: deliver(broker, 1)),
        (106, channel.reopening.lost),
        (150, lambda: channel.reopening.open(connection_is_new=True)),
    ]
    assert tags([next(deliveries)]) == [1]
    assert clock.now == 103
    assert tags(deliveries) == []
    assert clock.now == pytest.approx(155.25, abs=0.11)
    assert max(clock.waits) == 0.1
    assert [*channel.consume(Q, Receiving(idle_timeout=0.25))] == []
    assert [round(wait, 6) for wait in clock.waits[-3:]] == [0.1, 0.1, 0.05]


@pytest.mark.parametrize(
    ("limits", "words", "ends"),
    [
        ({"timeout": 7}, r"^timed out after 7 s, with 2 received$", 107),
        ({"timeout": 7, "idle_timeout": 4}, r"^timed out after 7 s, with 2 received$", 107),
        ({"idle_timeout": 4}, r"^no message for 4 s: 2 of 3 received$", 110),
    ],
)
@pytest.mark.parametrize("acknowledge", [True, False])
def test_a_consumer_whose_time_limit_passes_raises_timed_out(
    broker: ScriptedBroker, clock: Clock, limits: dict[str, Any], words: str, ends: float, *, acknowledge: bool
) -> None:
    """If a consumer that is to receive three messages has received only two when its time limit or its idle timeout
    passes, it raises TimedOut. The error says how many messages were received. With manual acknowledgements, the
    consumer is cancelled, so that the broker delivers no more.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(count=3, acknowledge=acknowledge, **limits))
    clock.events = [(103, lambda: deliver(broker, 1)), (106, lambda: deliver(broker, 2))]
    assert tags(islice(deliveries, 2)) == [1, 2]
    with pytest.raises(TimedOut, match=words):
        next(deliveries)
    assert clock.now == ends
    assert broker.acks == ([(1, True), (2, True)] if acknowledge else [])
    assert len(broker.of(spec.Basic.Cancel)) == (not acknowledge)


@pytest.mark.parametrize(("auto_ack", "taken"), [(False, 1), (True, 3)])
def test_a_consumer_times_out_although_messages_have_arrived(
    broker: ScriptedBroker, clock: Clock, *, auto_ack: bool, taken: int
) -> None:
    """If a consumer's time limit passes while deliveries wait for the caller, the consumer raises TimedOut, and does
    not yield these deliveries. The exception is a consumer with auto_ack: since the broker no longer has the messages,
    the consumer is cancelled and yields them before it raises TimedOut.
    """
    deliveries = broker.channel().consume(Q, Receiving(timeout=7, auto_ack=auto_ack))
    deliver(broker, 1, 2, 3)
    found = tags([next(deliveries)])
    clock.now += 8
    with pytest.raises(TimedOut, match=f"^timed out after 7 s, with {taken} received$"):
        found += (each.delivery_tag for each in deliveries)
    assert found == [1, 2, 3][:taken]
    assert len(broker.of(spec.Basic.Cancel)) == auto_ack


@pytest.mark.parametrize("acknowledge", [True, False])
def test_a_consumer_with_a_limit_is_cancelled_before_it_acknowledges_the_last_message(
    broker: ScriptedBroker, clock: Clock, *, acknowledge: bool
) -> None:
    """A consumer that is to receive three messages ends after the third one. Before the third message can be
    acknowledged, the consumer is cancelled, so that the broker delivers no fourth.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(count=3, acknowledge=acknowledge))
    deliver(broker, 1, 2, 3)
    assert tags(islice(deliveries, 2)) == [1, 2]
    assert broker.of(spec.Basic.Cancel) == []
    third = next(deliveries)
    assert len(broker.of(spec.Basic.Cancel)) == 1
    assert broker.acks == ([(1, True), (2, True)] if acknowledge else [])
    assert tags(deliveries) == []
    assert broker.acks == ([(1, True), (2, True), (3, True)] if acknowledge else [])
    assert third.settled is acknowledge
    assert clock.waits == []


def test_acknowledgements_that_a_consumer_holds_back_are_sent_after_two_seconds(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """A consumer that is to receive 300 messages holds back the latest acknowledgements, so that the broker delivers no
    more than 300. If no delivery arrives for two seconds, the consumer sends these acknowledgements, and continues with
    a prefetch of 1.
    """
    deliveries = broker.channel().consume(Q, Receiving(count=300))
    deliver(broker, *range(1, 61))
    assert tags(islice(deliveries, 60)) == [*range(1, 61)]
    sent: list[int] = []
    clock.events = [(at, lambda: sent.append(len(broker.acks))) for at in (101.95, 102.15)]
    clock.events.append((103, lambda: deliver(broker, 61)))
    assert tags([next(deliveries)]) == [61]
    assert sent == [2, 3]
    assert broker.acks == [(1, True), (50, True), (60, True)]
    assert prefetches(broker) == [250, 1]
    deliveries.close()
    assert broker.acks[-1] == (60, True)


def test_a_consumer_that_is_closed_early_acknowledges_all_yielded_messages_but_the_last(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """A consumer that is to receive 300 messages holds back its latest acknowledgements, so that the broker delivers
    no more than 300. If the caller closes the consumer early, the consumer acknowledges all messages that it has
    yielded, except the last one, which the caller may not have finished handling.
    """
    deliveries = broker.channel().consume(Q, Receiving(count=300))
    deliver(broker, *range(1, 62))
    assert tags(islice(deliveries, 61)) == [*range(1, 62)]
    assert clock.waits == []
    deliveries.close()
    assert broker.acks == [(1, True), (50, True), (60, True)]


def test_a_consumer_of_a_queue_with_a_delivery_limit_starts_with_a_prefetch_of_1(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """A consumer of a quorum queue with a delivery limit starts with a prefetch of 1, since the queue drops messages
    that are requeued too often. Once the consumer has received a message that was never or rarely requeued, it
    continues with its full prefetch.
    """
    deliveries = broker.channel().consume(Queue("q", arguments={"x-queue-type": "quorum"}))
    deliver(broker, 1)
    assert tags([next(deliveries)]) == [1]
    assert prefetches(broker) == [1, 1000]
    assert clock.waits == []


def test_a_consumer_with_manual_acknowledgements_never_receives_more_than_its_message_limit(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """A consumer with manual acknowledgements, a limit of 7 messages and a prefetch of 3 never lets the broker
    deliver an eighth message. Once fewer messages remain than the prefetch allows, mqtool cancels the consumer, and
    starts another one with the number of remaining messages as its prefetch.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(count=7, prefetch=3, acknowledge=False))
    for tag in range(1, 5):
        deliver(broker, tag)
        channel.acknowledge(next(deliveries))
    assert prefetches(broker) == [3]
    for tag in (5, 6):
        deliver(broker, tag)
        channel.acknowledge(next(deliveries))
    assert prefetches(broker) == [3, 2, 1]
    deliver(broker, 7)
    assert tags(deliveries) == [7]
    assert len(broker.of(spec.Basic.Cancel)) == 3
    assert clock.waits == []


def test_acknowledgements_of_messages_from_a_lost_connection_are_not_sent(broker: ScriptedBroker, clock: Clock) -> None:
    """If the connection is lost before the caller acknowledges a message, the broker requeues this message. A late
    acknowledgement of the message is therefore not sent. A consumer with a message limit does not count this message
    as acknowledged.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(count=5, prefetch=3, acknowledge=False))
    deliver(broker, 1, 2, 3)
    late = [*islice(deliveries, 2)]
    reconnect(channel)
    channel.acknowledge(*late)
    deliver(broker, 1, 2, 3)
    channel.acknowledge(next(deliveries))
    deliver(broker, 4)
    channel.acknowledge(next(deliveries))
    assert prefetches(broker) == [3, 3]
    assert broker.of(spec.Basic.Cancel) == []
    assert broker.acks == [(1, False), (2, False)]
    assert clock.waits == []


@pytest.mark.parametrize(
    ("receiving", "is_yielded"),
    [(Receiving(), False), (Receiving(auto_ack=True), True), (Receiving(auto_ack=True, buffer=Buffer(9)), False)],
    ids=["acknowledged", "auto-ack", "auto-ack with a buffer"],
)
def test_a_stopped_consumer_yields_the_deliveries_that_have_arrived_only_with_auto_ack(
    broker: ScriptedBroker, clock: Clock, receiving: Receiving, *, is_yielded: bool
) -> None:
    """When a consumer is stopped, it does not yield the deliveries that have arrived, and leaves them unacknowledged,
    so that the broker requeues them. A consumer with auto_ack does yield them, because the broker has already deleted
    these messages. The exception is a consumer with a buffer: a buffer may drop messages anyway, so these are not
    yielded.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, receiving)
    deliver(broker, 1, 2, 3)
    assert tags([next(deliveries)]) == [1]
    channel.stop()
    assert tags(deliveries) == ([2, 3] if is_yielded else [])
    assert broker.acks == ([] if receiving.auto_ack else [(1, True)])
    assert clock.waits == []


def test_a_stopped_consumer_ends_although_messages_keep_arriving(broker: ScriptedBroker, clock: Clock) -> None:
    """If a consumer with auto_ack is stopped while messages keep arriving, it is cancelled, yields the deliveries that
    arrive before the broker has cancelled it, and ends.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(auto_ack=True))
    deliver(broker, 1, 2)
    next(deliveries)
    channel.stop()
    deliver(broker, 3, 4)
    broker.before[spec.Basic.Cancel] = lambda: deliver(broker, 5, 6)
    assert tags([next(deliveries)]) == [2]
    assert tags(deliveries) == [3, 4, 5, 6]
    assert len(broker.of(spec.Basic.Cancel)) == 1
    assert clock.waits == []


def test_a_stopped_consumer_with_auto_ack_ends_even_if_the_broker_does_not_reply_to_basic_cancel(
    broker: ScriptedBroker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a consumer with auto_ack is stopped, and the broker does not reply to its basic.cancel in time, the consumer
    yields the deliveries that have arrived, and ends.
    """
    monkeypatch.setattr(subscription, "_PATIENCE", 0.01)
    broker.silent = {spec.Basic.Cancel}
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(auto_ack=True))
    deliver(broker, 1, 2)
    next(deliveries)
    channel.stop()
    assert tags(deliveries) == [2]
    assert len(broker.of(spec.Basic.Cancel)) == 1


def test_deliveries_from_a_lost_connection_are_dropped_if_the_broker_delivers_them_again(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """After a reconnection, a consumer does not yield deliveries that arrived on the lost connection, since the broker
    delivers these messages again. It does yield them if the broker no longer has the messages: with auto_ack, or if the
    queue was exclusive and therefore deleted with the connection.
    """
    for queue, receiving, expected in (
        (Q, Receiving(), [3]),
        (Q, Receiving(auto_ack=True), [1, 2, 3]),
        (Queue("q", exclusive=True), Receiving(), [1, 2, 3]),
    ):
        channel = broker.channel()
        deliveries = channel.consume(queue, receiving)
        deliver(broker, 1, 2)
        reconnect(channel)
        deliver(broker, 3)
        assert tags(islice(deliveries, len(expected))) == expected
        channel.close()
    assert clock.waits == []


@pytest.mark.parametrize(("exclusive", "is_new", "said"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_a_notice_says_that_messages_of_an_exclusive_queue_are_lost_with_the_connection(
    broker: ScriptedBroker, exclusive: bool, is_new: bool, said: int
) -> None:
    """If a connection is lost, the broker deletes a consumer's exclusive queue. After the reconnection, a notice says
    that messages of this queue are lost. If only the channel was reopened, or the queue is not exclusive, there is no
    notice, because no messages are lost.
    """
    channel = broker.channel()
    deliveries = channel.consume(Queue("q", exclusive=exclusive))
    channel.reopening.lost()
    channel.reopening.open(connection_is_new=is_new)
    assert [each.partition(":")[0] for each in broker.notices] == [
        "the temporary queue was deleted with the connection"
    ] * said
    deliveries.close()


def test_the_caller_learns_the_new_name_of_its_queue_after_a_reconnection(broker: ScriptedBroker, clock: Clock) -> None:
    """A queue that was named by the broker gets another name after a reconnection. Before the consumer yields the next
    delivery, it passes the new name to the function after_reopening, which the caller has set.
    """
    channel = broker.channel()
    queue = channel.declare(Queue("", exclusive=True))
    names: list[str] = []
    deliveries = channel.consume(queue, Receiving(auto_ack=True, after_reopening=names.append))
    assert broker.of(spec.Basic.Consume)[-1].no_ack is True
    reconnect(channel)
    assert broker.of(spec.Basic.Consume)[-1].no_ack is True
    assert names == []
    deliver(broker, 1, 2)
    next(deliveries)
    assert names == ["amq.gen-2"]
    assert tags([next(deliveries)]) == [2]
    assert names == ["amq.gen-2"]
    assert clock.waits == []


def test_a_consumer_whose_queue_was_deleted_raises_unavailable(broker: ScriptedBroker, clock: Clock) -> None:
    """If the broker cancels a consumer, and its queue no longer exists, the consumer yields the deliveries that have
    arrived, and then raises Unavailable. The error names the queue and the possible reasons for the cancellation. A
    basic.cancel for another consumer tag has no effect.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q)
    deliver(broker, 1)
    broker.send(spec.Basic.Cancel("another", True))
    assert channel.reopening.failure is None
    broker.send(spec.Basic.Cancel(broker.of(spec.Basic.Consume)[-1].consumer_tag, True))
    broker.refused[spec.Queue.Declare] = 404, "NOT_FOUND - no queue 'q' in vhost '/'"
    assert tags([next(deliveries)]) == [1]
    with pytest.raises(Unavailable) as error:
        next(deliveries)
    assert str(error.value) == "the broker cancelled the consumer: queue 'q' was deleted, or its node is down"
    assert error.value.hint == "if it was deleted, messages that were not acknowledged yet are lost with it"
    assert clock.waits == []


def test_a_consumer_that_the_broker_cancels_consumes_again(broker: ScriptedBroker) -> None:
    """If the broker cancels a consumer whose queue exists, as after RabbitMQ 4.3's consumer timeout, deliveries that
    have arrived are no longer current, but are acknowledged. The consumer consumes again, and says so only once.
    """
    channel = broker.channel()
    receiver = channel.consumer(Q, Receiving(acknowledge=False))
    deliveries = receiver.deliveries()
    for number in (1, 2):
        deliver(broker, number)
        late = next(deliveries)
        assert channel.is_current(late)
        broker.send(spec.Basic.Cancel(broker.of(spec.Basic.Consume)[-1].consumer_tag, True))
        assert not channel.is_current(late)
        channel.acknowledge(late)
        assert not receiver.arrives(0)
    assert len(broker.of(spec.Basic.Consume)) == 3
    assert [tag for tag, _ in broker.acks] == [1, 2]
    assert sum("the broker cancelled the consumer of queue 'q'" in notice for notice in broker.notices) == 1


def test_a_consumer_whose_channel_has_failed_sends_nothing_when_it_is_stopped(broker: ScriptedBroker) -> None:
    """If a consumer's channel has failed, stopping the consumer sends neither basic.cancel nor basic.nack. With
    auto_ack, the consumer yields the deliveries that have arrived, and then raises the channel's error.
    """
    channel = broker.channel()
    receiver = channel.consumer(Q, Receiving(acknowledge=False))
    deliveries = receiver.deliveries()
    deliver(broker, 1)
    taken = next(deliveries)
    others = channel.consume(Q, Receiving(auto_ack=True))
    deliver(broker, 2, 3)
    channel.reopening.fail(Unavailable("gone"))
    channel.stop()
    assert tags(deliveries) == []
    receiver.give_back([taken])
    assert tags(islice(others, 2)) == [2, 3]
    with pytest.raises(Unavailable, match="gone"):
        next(others)
    assert broker.of(spec.Basic.Cancel) == broker.of(spec.Basic.Nack) == []


@pytest.mark.parametrize(
    ("offset", "failure", "hint"),
    [
        (
            FIRST,
            InternalError("INTERNAL_ERROR"),
            "RabbitMQ cannot deliver a stream's messages of bare bytes over AMQP; "
            "read them with: mqtool receive-stream --queue=q",
        ),
        (
            None,
            InternalError("INTERNAL_ERROR"),
            "if RabbitMQ cannot deliver a message over AMQP 0-9-1, take it out: "
            "mqtool receive --protocol amqp1.0 --json --queue=q",
        ),
        (FIRST, InternalError("INTERNAL_ERROR", "known"), "known"),
        (FIRST, Unavailable("NOT_FOUND"), None),
    ],
)
def test_the_hint_for_an_internal_error_names_the_protocol_that_delivers_the_message(
    broker: ScriptedBroker, offset: Any, failure: Unavailable, hint: str | None
) -> None:
    """If the broker closes the channel with INTERNAL_ERROR while a consumer reads a stream over AMQP, the error's
    hint names `mqtool receive-stream`, which reads the stream over the stream protocol. While it reads another queue,
    the hint names AMQP 1.0. If the error already has a hint, it keeps that one. Other errors get neither hint.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(offset=offset))
    channel.reopening.fail(failure)
    with pytest.raises(Unavailable) as error:
        next(deliveries)
    assert error.value.hint == hint


def test_a_cancelled_consumer_still_yields_the_deliveries_that_have_arrived(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """After a consumer is cancelled, it still yields the deliveries that have arrived. Its method arrives() waits up
    to the given time for the next delivery, and returns whether there is one. Once the channel is stopped, arrives()
    returns True immediately, so that its caller does not wait, but asks for the next delivery and learns that there
    is none.
    """
    channel = broker.channel()
    receiver = channel.consumer(Q, Receiving(acknowledge=False))
    deliveries = receiver.deliveries()
    deliver(broker, 1, 2)
    receiver.cancel()
    assert len(broker.of(spec.Basic.Cancel)) == 1
    assert receiver.received == 2
    for tag in (1, 2):
        assert receiver.arrives(0)
        assert tags([next(deliveries)]) == [tag]
    assert not receiver.arrives(0)
    assert clock.waits == []
    assert not receiver.arrives(1.5)
    assert clock.waits == [1.5]
    channel.stop()
    assert receiver.arrives(0)
    assert receiver.arrives(1.5)
    assert tags(deliveries) == []


def test_a_consumer_that_had_just_started_when_its_connection_was_lost_is_started_again_once(
    broker: ScriptedBroker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection is lost just after the broker has started a consumer, mqtool starts the consumer again on the
    next connection, exactly once.
    """
    channel = broker.channel()
    checked, losses = channel.reopening.checked, [1]

    def lose_it_once(request: Any) -> Any:
        answer = checked(request)
        if losses and broker.of(spec.Basic.Consume):
            losses.pop()
            reconnect(channel)
        return answer

    monkeypatch.setattr(channel.reopening, "checked", lose_it_once)
    deliveries = channel.consume(Q)
    assert len(broker.of(spec.Basic.Consume)) == 2
    deliver(broker, 1)
    assert next(deliveries).epoch == 2
    assert clock.waits == []


@pytest.mark.parametrize("decoder", ["mqtool", "pika"])
def test_a_delivery_is_the_same_whether_mqtool_or_pika_decodes_it(
    broker: ScriptedBroker, clock: Clock, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    """mqtool decodes deliveries itself, and leaves this to pika only if it does not know the installed version of pika.
    In both cases, the caller gets the same delivery.
    """
    if decoder == "mqtool":
        monkeypatch.setattr(subscription, "delivery_from", lambda *_: pytest.fail("pika has decoded a delivery"))
    else:
        monkeypatch.setattr(pika_private, "take_deliveries", lambda *_: None)
    channel = broker.channel()
    deliveries = channel.consume(Q)
    broker.send(
        spec.Basic.Deliver(broker.of(spec.Basic.Consume)[-1].consumer_tag, 7, True, "x", "key"),
        content=Message(b"body", properties={"headers": {"n": 1}}, message_id="id"),
    )
    got = next(deliveries)
    assert (got.body, got.exchange, got.routing_key, got.queue) == (b"body", "x", "key", "q")
    assert (got.redelivered, got.delivery_tag, got.epoch) == (True, 7, channel.reopening.requests.epoch)
    assert (got.headers, got.message_id) == ({"n": 1}, "id")
    assert clock.waits == []


def test_give_back_requeues_unacknowledged_messages_batch_by_batch(broker: ScriptedBroker) -> None:
    """give_back() cancels a consumer. It then requeues each batch of deliveries with one basic.nack, which applies to
    all deliveries up to the last one of the batch. If this delivery is from an earlier connection, no basic.nack is
    sent, since the broker has already requeued the messages.
    """
    channel = broker.channel()
    receiver = channel.consumer(Q, Receiving(acknowledge=False))
    deliveries = receiver.deliveries()
    deliver(broker, 1)
    old = next(deliveries)
    reconnect(channel)
    deliver(broker, 1, 2, 3)
    taken = [*islice(deliveries, 3)]
    broker.silent = {spec.Basic.Nack}
    broker.methods.clear()
    receiver.give_back([old, taken[1], taken[2]])
    assert [method.NAME for method in broker.methods][-3:] == ["Basic.Cancel", "Basic.Nack", "Basic.Nack"]
    nacks = [(nack.delivery_tag, nack.multiple, nack.requeue) for nack in broker.of(spec.Basic.Nack)]
    assert nacks == [(2, True, True), (3, True, True)]


@pytest.mark.parametrize("end", ["give back", "stop", "acknowledge", "close"])
@pytest.mark.parametrize(
    ("ready", "arrived", "patience"), [([9, 9, 9], 3, 0), ([9, 0, 9, 9], 3, 0), ([9, 0, 0], 2, 0), ([9] * 2000, 2, 1.5)]
)
def test_a_consumer_is_cancelled_once_no_message_is_in_transit(
    broker: ScriptedBroker, clock: Clock, ready: list[int], arrived: int, patience: float, end: str
) -> None:
    """When an AMQP 0-9-1 consumer ends, for example because it is stopped or closed, it first sends its
    acknowledgements. It then waits until its prefetch is used up or the queue is empty, but no longer than 1.5 seconds.
    Only then is it cancelled. If it were cancelled earlier, the broker would requeue messages in transit out of order.
    """
    channel = broker.channel()
    receiver = channel.consumer(Q, Receiving(2, acknowledge=end != "give back"))
    deliveries = receiver.deliveries()
    deliver(broker, 1, 2)
    acked: list[int] = []
    received: list[int] = []
    counts = [*ready]

    def count() -> None:
        acked[:] = [tag for tag, _ in broker.acks]
        broker.depth = counts.pop(0)
        if not counts and arrived == 3:
            deliver(broker, 3)

    broker.before = {spec.Queue.Declare: count, spec.Basic.Cancel: lambda: received.append(receiver.received)}
    first = next(deliveries)
    if end == "give back":
        channel.acknowledge(first)
        receiver.give_back(())
    else:
        if end == "acknowledge":  # as the tutorial's worker does
            channel.acknowledge(first)
        second = next(deliveries)  # acknowledges the first one
        if end != "close":
            channel.stop()
            if end == "acknowledge":
                channel.acknowledge(second)
            assert [*deliveries] == []
        else:
            deliveries.close()
        channel.close()
    assert acked == [1]
    assert received == [arrived]
    assert patience <= clock.now - 100 < patience + 0.01


@pytest.mark.parametrize(
    ("received", "headers", "waits"),
    [(0, {}, False), (2, {"x-stream-offset": 1}, False), (2, {}, True)],
    ids=["none", "stream", "all"],
)
def test_a_consumer_that_has_acknowledged_all_messages_waits_for_others_in_transit(
    broker: ScriptedBroker, clock: Clock, received: int, headers: dict[str, Any], waits: bool
) -> None:
    """When a consumer is stopped after it has acknowledged everything that it received, it waits for messages in
    transit before it ends. A consumer of a stream does not wait, because a stream requeues no messages. Nor does a
    consumer that has received nothing: it would wait in vain if another consumer were the queue's single active
    consumer.
    """
    channel = broker.channel()
    broker.depth = 9
    deliveries = channel.consume(Q)
    tag = broker.of(spec.Basic.Consume)[-1].consumer_tag
    broker.deliver(tag, 1, *[Message(b"x", properties={"headers": headers})] * received)
    clock.events = [(101, channel.stop)]
    assert len([*deliveries]) == received
    assert bool(broker.of(spec.Queue.Declare)) is waits


def test_a_later_consumer_of_a_channel_does_not_wait_for_messages_in_transit_if_its_prefetch_is_used_up(
    broker: ScriptedBroker, clock: Clock
) -> None:
    """If a consumer has received as many messages as its prefetch allows, no more can be in transit to it, and it
    ends without waiting. It counts only its own deliveries, not those of an earlier consumer of the same channel.
    """
    channel = broker.channel()
    broker.depth = 9
    for tag in (1, 3, 5):
        deliveries = channel.consume(Q, Receiving(count=2))
        deliver(broker, tag)
        next(deliveries)
        deliver(broker, tag + 1)
        assert tags(deliveries) == [tag + 1]
    assert clock.now == 100


def test_a_message_whose_output_cannot_be_written_is_not_acknowledged(broker: ScriptedBroker, clock: Clock) -> None:
    """Before a consumer acknowledges messages or waits for more, it calls the caller's function before_acknowledging,
    which writes the output. If writing fails, the consumer does not acknowledge the messages, not even when the channel
    is closed.
    """
    channel = broker.channel()
    written: list[list[tuple[int, bool]]] = []

    def write() -> None:
        written.append([*broker.acks])
        if len(written) == 3:
            raise OSError("disk full")

    deliveries = channel.consume(Q, Receiving(before_acknowledging=write))
    deliver(broker, 1)
    clock.events = [(101, lambda: deliver(broker, 2))]
    assert tags(islice(deliveries, 2)) == [1, 2]
    assert written == [[], [(1, True)]]
    with pytest.raises(OSError, match="disk full"):
        next(deliveries)
    channel.close()
    assert written == [[], [(1, True)], [(1, True)]]
    assert broker.acks == [(1, True)]


@pytest.mark.parametrize("auto_ack", [True, False])
def test_a_connection_has_made_progress_once_a_delivery_is_acknowledged(
    broker: ScriptedBroker, clock: Clock, *, auto_ack: bool
) -> None:
    """If a connection has made progress (has_progressed), the backoff of later reconnections starts again. It has
    made progress once a message that it delivered has been acknowledged or, with auto_ack, once the caller has asked
    for the next message. A message from an earlier connection can no longer be acknowledged, and does not count as
    progress.
    """
    channel = broker.channel()
    deliveries = channel.consume(Q, Receiving(auto_ack=auto_ack, idle_timeout=1))
    deliver(broker, 1)
    next(deliveries)
    assert not broker.has_progressed
    reconnect(channel)
    assert tags(deliveries) == []
    assert broker.has_progressed is auto_ack
    assert broker.acks == []
    again = channel.consume(Q, Receiving(auto_ack=auto_ack, idle_timeout=1))
    deliver(broker, 1)
    assert tags(again) == [1]
    assert broker.has_progressed
    assert clock.now == 102
