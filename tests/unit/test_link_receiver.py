"""The AMQP 1.0 receiver: its link, credit, deliveries and filters, with plain callables in place of a connection."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mqtool.amqp import Receiving
from mqtool.amqp10 import link_receiver
from mqtool.amqp10.link_receiver import Receiver, offset_filter, ranges, stream_filters
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import SETTLED, Accepted, Attach, Flow, Source, Target
from mqtool.codecs.amqp10_values import Array, Described, Milliseconds, Symbol, ULong
from mqtool.errors import MqtoolError, TimedOut, Unavailable
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST, LAST, NEXT, Offset, Start, StreamPosition

QUEUE = "/queues/q"
OFFSET = Symbol("rabbitmq:stream-offset-spec")
VALUES = Symbol("rabbitmq:stream-filter")


class Broker:
    """A connection to a broker that delivers as many messages as the receiver gives credit for.

    Attributes:
        now: the time in seconds.
        bodies: the bodies of the messages that are still in the queue.
        credits: each credit that the receiver has given.
        settled: the tags of settled deliveries, as they were settled together.
        steps: what happens when the receiver waits, one step for each time.
        waits: how long the receiver waited, each time.
        ended: how the receiver was ended.
        settling: the receivers whose deliveries are settled by the broker.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.epoch = 3
        self.stopping = self.is_lost = self.has_crashed = False
        self.failure: MqtoolError | None = None
        self.unsettled: dict[int, Receiver] = {}
        self.now = 1000.0
        self.bodies: list[bytes] = []
        self.credits: list[int] = []
        self.settled: list[list[int]] = []
        self.steps: list[Callable[[], None]] = []
        self.waits: list[float] = []
        self.ended: list[bool] = []
        self.settling: list[Receiver] = []
        self.next_tag = 1

    def monotonic(self) -> float:
        return self.now

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        assert timeout is not None
        if done():
            return
        self.waits.append(timeout)
        if self.steps:
            self.steps.pop(0)()
        else:
            self.now += timeout

    def give_credit(self, receiver: Receiver) -> None:
        if (credit := receiver.wanted_credit()) is not None:
            self.credits.append(credit)
            for body in self.bodies[:credit]:
                self.deliver(receiver, body)
            del self.bodies[:credit]

    def deliver(self, receiver: Receiver, body: bytes, **headers: object) -> None:
        payload = sections.encode(Message(body, properties={"headers": headers} if headers else {}))
        receiver.take(self.next_tag, payload, settled=receiver in self.settling, more=False)
        self.next_tag += 1

    def settle(self, deliveries: Sequence[Delivery], state: Any) -> None:
        assert state == Accepted()
        self.settled.append([each.delivery_tag for each in deliveries])
        for each in deliveries:
            each.settled = True
            self.unsettled.pop(each.delivery_tag).settled(1)

    def end_receiver(self, receiver: Receiver, *, stays: bool) -> None:
        assert isinstance(receiver, Receiver)
        self.ended.append(stays)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(link_receiver, "time", broker)
    return broker


def attached(
    broker: Broker, address: str | None = QUEUE, *, filters: dict[str, Any] | None = None, **receiving: Any
) -> Receiver:
    """A receiver whose link the broker has attached."""
    receiver = Receiver(broker, "name", address, Receiving(**receiving), filters or {})
    if receiver.attach(5).snd_settle_mode == SETTLED:
        broker.settling.append(receiver)
    assert receiver.attached(Attach("name", 0, False, source=Source("/queues/reply" if address is None else address)))
    return receiver


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (FIRST, "first"),
        (LAST, "last"),
        (NEXT, "next"),
        (Offset(Start.OFFSET, 17), 17),
        (Offset(Start.OFFSET, 0), 0),
        (Offset(Start.TIMESTAMP, 86_400_000), Milliseconds(86_400_000)),
        (Offset(Start.TIMESTAMP, 0), Milliseconds(0)),
        ("12s", "12s"),
    ],
)
def test_an_offset_is_sent_as_a_filter_of_a_stream(offset: Offset | str, expected: object) -> None:
    """To choose the offset at which it starts to read a stream, an AMQP 1.0 receiver sends the filter
    rabbitmq:stream-offset-spec. The filter's value is a number, a timestamp, an age, or one of first, last and next.
    """
    found = offset_filter(offset)
    assert found == Described(OFFSET, expected)
    assert (type(found.descriptor), type(found.value)) == (Symbol, type(expected))


def test_values_and_sql_are_sent_as_filters_of_a_stream() -> None:
    """An AMQP 1.0 receiver of a stream sends the user's filter values as the filter rabbitmq:stream-filter, and the
    user's SQL expression as the filter amqp:sql-filter. A filter that the user has not given is not sent.
    """
    values, sql = {VALUES: Described(VALUES, ["a", "b"])}, {"sql-filter": Described(Symbol("amqp:sql-filter"), "x > 1")}
    assert stream_filters(["a", "b"], "x > 1") == values | sql
    assert stream_filters(("a", "b"), None) == values
    assert stream_filters([], "x > 1") == sql
    assert stream_filters([], "") == {"sql-filter": Described(Symbol("amqp:sql-filter"), "")}
    assert stream_filters([], None) == {}
    assert type(stream_filters([], "x")["sql-filter"].descriptor) is Symbol
    assert type(stream_filters(["x"], None)[VALUES].descriptor) is Symbol


def test_the_attach_frame_of_a_receiver_contains_its_queue_filters_and_settle_mode(broker: Broker) -> None:
    """The attach frame of an AMQP 1.0 receiver has the queue's address and the receiver's filters, if any, as its
    source. With automatic acknowledgement, the frame asks the broker for settled deliveries, otherwise for unsettled
    ones.
    """
    receiver = Receiver(broker, "name", QUEUE, Receiving(), {})
    assert not receiver.is_attached
    expected = Attach("name", 7, True, snd_settle_mode=0, source=Source(QUEUE), target=Target())
    assert receiver.attach(7) == expected
    assert (receiver.handle, receiver.is_attached, receiver.is_kept, receiver.name) == (7, False, True, "name")
    filters = {"sql-filter": Described(Symbol("amqp:sql-filter"), "x")}
    filtered = Receiver(broker, "name", QUEUE, Receiving(auto_ack=True), filters).attach(7)
    assert filtered == expected._replace(snd_settle_mode=1, source=Source(QUEUE, filter=filters))
    assert {type(name) for name in filtered.source.filter} == {Symbol}
    assert receiver.is_for(False)
    assert not receiver.is_for(True)


def test_a_receiver_of_replies_asks_the_broker_for_an_address(broker: Broker) -> None:
    """An AMQP 1.0 receiver for replies to requests has no address of its own. It asks the broker for settled deliveries
    from a volatile queue, which the broker deletes when the link is detached. The broker chooses the queue's address,
    and may choose another one after a reconnection.
    """
    receiver = attached(broker, None)
    assert receiver.address == "/queues/reply"
    for _ in range(2):
        attach = receiver.attach(5)
        assert attach.source == Source(
            dynamic=True, expiry_policy="link-detach", capabilities=Array([Symbol("rabbitmq:volatile-queue")])
        )
        assert type(attach.source.capabilities[0]) is Symbol
        assert attach.snd_settle_mode == 1
    receiver.attached(Attach("name", 0, False, source=Source("/queues/other")))
    assert receiver.address == "/queues/other"
    broker.deliver(receiver, b"1")
    [delivery] = receiver.arrived()
    assert (delivery.queue, delivery.settled) == ("other", True)
    assert receiver.rest() == []
    assert broker.unsettled == {}


def test_a_receiver_knows_which_filters_the_broker_ignores(broker: Broker) -> None:
    """An AMQP 1.0 receiver's ignored_filters contains the requested filters that the broker's attach frame does not
    list. An attach frame without a source means that the broker refuses the link: the receiver is then not attached.
    """
    filters = {"sql-filter": Described(Symbol("amqp:sql-filter"), "x"), "f": Described(Symbol("f"), 1)}
    receiver = Receiver(broker, "name", QUEUE, Receiving(), filters)
    assert receiver.ignored_filters == []
    receiver.attach(1)
    assert receiver.attached(Attach("name", 0, False, source=Source(QUEUE, filter={Symbol("f"): filters["f"]})))
    assert receiver.is_attached
    assert receiver.ignored_filters == ["sql-filter"]
    assert receiver.attached(Attach("name", 0, False, source=Source(QUEUE)))
    assert receiver.ignored_filters == ["sql-filter", "f"]
    assert not receiver.attached(Attach("name", 0, False))
    assert not receiver.is_attached
    replies = Receiver(broker, "name", None, Receiving(), {})
    assert not replies.attached(Attach("name", 0, False))
    assert replies.address is None


def test_a_receiver_accepts_each_delivery_after_the_caller_asks_for_the_next_one(broker: Broker) -> None:
    """An AMQP 1.0 receiver yields deliveries in order. A delivery counts as handled when the caller asks for the next
    one. The receiver accepts all handled deliveries together: when more than 50 ms have passed since it last accepted
    any, and in any case before it waits for further deliveries.
    """
    broker.bodies = [b"1", b"2", b"3", b"4"]
    receiver = attached(broker, idle_timeout=1.0)
    deliveries = receiver.deliveries()
    first = next(deliveries)
    assert (first.body, first.queue, first.delivery_tag, first.epoch, first.settled) == (b"1", "q", 1, 3, False)
    assert next(deliveries).body == b"2"
    assert broker.settled == []
    broker.now += 0.05
    assert next(deliveries).body == b"3"
    assert broker.settled == []
    broker.now += 0.01
    assert next(deliveries).body == b"4"
    assert broker.settled == [[1, 2, 3]]
    broker.steps = [lambda: broker.deliver(receiver, b"5")]
    assert next(deliveries).body == b"5"
    assert broker.settled == [[1, 2, 3], [4]]
    assert [*deliveries] == []
    assert broker.settled == [[1, 2, 3], [4], [5]]
    assert broker.ended == [False]


def test_a_quarter_of_the_prefetched_deliveries_are_accepted_together(broker: Broker) -> None:
    """An AMQP 1.0 receiver with a prefetch of 20 accepts handled deliveries together as soon as there are 5, a quarter
    of the prefetch.
    """
    broker.bodies = [b"%d" % number for number in range(20)]
    deliveries = attached(broker, prefetch=20).deliveries()
    for _ in range(13):
        next(deliveries)
    assert broker.settled == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


@pytest.mark.parametrize("acknowledge", [True, False])
def test_deliveries_that_the_caller_settles_are_not_accepted_again(broker: Broker, *, acknowledge: bool) -> None:
    """An AMQP 1.0 receiver does not accept a delivery that the caller has settled. With acknowledge=False, the receiver
    accepts no delivery at all, and its link stays attached when the receiver ends, so that the caller can still settle
    deliveries.
    """
    broker.bodies = [b"1", b"2"]
    for number, delivery in enumerate(attached(broker, count=2, acknowledge=acknowledge).deliveries()):
        if number == 0:
            broker.settle([delivery], Accepted())
    assert broker.settled == ([[1], [2]] if acknowledge else [[1]])
    assert broker.ended == [not acknowledge]


def test_a_receiver_with_a_message_limit_receives_no_more_messages_than_that(broker: Broker) -> None:
    """An AMQP 1.0 receiver with a message limit ends after this number of messages, and never grants credit for more
    messages than it still needs.
    """
    broker.bodies = [b"%d" % number for number in range(9)]
    receiver = attached(broker, count=5, prefetch=3)
    assert [each.body for each in receiver.deliveries()] == [b"0", b"1", b"2", b"3", b"4"]
    assert len(broker.bodies) == 4
    assert sum(len(each) for each in broker.settled) == 5
    assert [*attached(broker, count=0).deliveries()] == []
    assert len(broker.bodies) == 4


def test_a_receiver_grants_credit_again_when_half_of_the_prefetch_is_free(broker: Broker) -> None:
    """An AMQP 1.0 receiver first grants as much credit as its prefetch. Unused credit and unsettled messages take up
    the prefetch. The receiver grants more credit once at least half of the prefetch is free or, if the broker has
    used all of its credit, once any of the prefetch is free. With a prefetch of 0, which means no limit, the credit
    is 65,535.
    """
    receiver = attached(broker, prefetch=10)
    assert receiver.wanted_credit() == 10
    assert receiver.wanted_credit() is None
    for _ in range(8):
        broker.deliver(receiver, b"")
    assert receiver.wanted_credit() is None
    receiver.settled(4)
    assert receiver.wanted_credit() is None
    receiver.settled(1)
    assert receiver.wanted_credit() == 7
    assert receiver.delivery_count == 8
    for _ in range(7):
        broker.deliver(receiver, b"")
    assert receiver.wanted_credit() is None  # all ten are unsettled
    receiver.settled(1)
    assert receiver.wanted_credit() == 1
    assert attached(broker, prefetch=0).wanted_credit() == 65_535
    receiver.attach(5)
    assert receiver.wanted_credit() is None  # not attached yet
    receiver.attached(Attach("name", 0, False, source=Source(QUEUE)))
    assert receiver.wanted_credit() == 10


def test_the_prefetch_limits_settled_deliveries_that_the_caller_has_not_received(broker: Broker) -> None:
    """If an AMQP 1.0 receiver receives settled deliveries, because of automatic acknowledgement or because they are
    replies to requests, it grants new credit only when the caller receives deliveries. The number of deliveries that
    wait for the caller therefore never exceeds the prefetch.
    """
    for receiver in (attached(broker, prefetch=10, auto_ack=True), attached(broker, None, prefetch=10)):
        assert receiver.wanted_credit() == 10
        for _ in range(10):
            broker.deliver(receiver, b"")
        assert receiver.wanted_credit() is None
        assert len(receiver.arrived()) == 10
        assert receiver._limit - receiver._received == (10 if receiver.address == QUEUE else 0)
        receiver.wanted_credit()
        assert receiver._limit - receiver._received == 10
    assert broker.unsettled == {}


def test_deliveries_that_wait_for_the_caller_count_towards_the_message_limit(broker: Broker) -> None:
    """An AMQP 1.0 receiver with a message limit grants credit only for messages that have not arrived yet. A delivery
    that has arrived counts towards the limit even if the caller has not received it.
    """
    receiver = attached(broker, count=4, prefetch=10)
    assert receiver.wanted_credit() == 4
    for _ in range(3):
        broker.deliver(receiver, b"")
    deliveries = receiver.deliveries()
    next(deliveries)
    assert receiver.wanted_credit() is None
    broker.deliver(receiver, b"")
    assert receiver.wanted_credit() is None


def test_the_delivery_count_of_a_link_starts_at_the_brokers_initial_delivery_count_and_wraps(broker: Broker) -> None:
    """The delivery-count of an AMQP 1.0 receiving link starts at the broker's initial-delivery-count. It is a 32-bit
    number: 0 follows 4,294,967,295.
    """
    receiver = attached(broker)
    assert receiver.delivery_count == 0
    receiver.attached(Attach("name", 0, False, source=Source(QUEUE), initial_delivery_count=0xFFFF_FFFF))
    assert receiver.delivery_count == 0xFFFF_FFFF
    broker.deliver(receiver, b"")
    assert receiver.delivery_count == 0
    broker.deliver(receiver, b"")
    assert receiver.delivery_count == 1


def test_a_receiver_that_ends_withdraws_its_credit(broker: Broker) -> None:
    """When an AMQP 1.0 receiver ends, it withdraws the credit that the broker has left, and grants no more. It counts
    as stopped (has_stopped) once the broker reports a credit of 0. If the broker has no credit left, or the link is not
    attached, the receiver sends nothing.
    """
    receiver = attached(broker, prefetch=1)
    receiver.flow(Flow(0, 0, 0, 0, 0, 0, 0))
    assert not receiver.has_stopped
    assert receiver.wanted_credit() == 1
    assert receiver.stop()
    receiver.flow(Flow(0, 0, 0, 0, 0, 0, 1))
    assert receiver.stop()
    receiver.flow(Flow(0, 0, 0, 0, 0, 0, 0))
    assert receiver.has_stopped
    receiver.flow(Flow(0, 0, 0, 0, 0, 0, 1))
    assert receiver.has_stopped
    assert not receiver.stop()
    receiver = attached(broker, prefetch=1)
    receiver.wanted_credit()
    broker.deliver(receiver, b"")
    assert not receiver.stop()
    receiver.settled(1)
    assert receiver.wanted_credit() is None
    unattached = Receiver(broker, "name", QUEUE, Receiving(), {})
    assert not unattached.stop()
    lost = attached(broker)
    lost.wanted_credit()
    lost.is_attached = False
    assert not lost.stop()


def test_a_message_in_several_frames_is_one_delivery(broker: Broker) -> None:
    """If the broker sends an AMQP 1.0 message in several transfer frames, the message is one delivery, with the
    delivery id of the first frame. If the connection is lost in the middle of a message, its first frames are dropped.
    """
    receiver = attached(broker)
    payload = sections.encode(Message(b"abcdef"))
    receiver.take(8, payload[:4], settled=False, more=True)
    receiver.take(None, payload[4:6], settled=False, more=True)
    assert receiver.arrived() == []
    assert (receiver.delivery_count, broker.unsettled) == (0, {})
    receiver.take(None, payload[6:], settled=False, more=False)
    receiver.take(9, payload, settled=False, more=False)
    assert [(each.body, each.delivery_tag) for each in receiver.arrived()] == [(b"abcdef", 8), (b"abcdef", 9)]
    assert (receiver.delivery_count, broker.unsettled) == (2, {8: receiver, 9: receiver})
    receiver.take(10, payload[:4], settled=False, more=True)
    receiver.attach(5)  # after a reconnection, the broker sends the whole message again
    receiver.take(1, payload, settled=True, more=False)
    assert [(each.body, each.delivery_tag) for each in receiver.arrived()] == [(b"abcdef", 1)]


def test_deliveries_from_before_a_reconnection_are_dropped_if_the_broker_delivers_them_again(broker: Broker) -> None:
    """After a reconnection, an AMQP 1.0 receiver drops deliveries that the caller has not received yet, because the
    broker delivers them again. The exception is a receiver with automatic acknowledgement: the broker does not deliver
    its messages again, so the receiver keeps them for the caller.
    """
    for auto_ack in (False, True):
        receiver = attached(broker, auto_ack=auto_ack, idle_timeout=1.0)
        for body in (b"1", b"2"):
            broker.deliver(receiver, body)
        broker.epoch += 1
        if auto_ack:
            receiver.attach(5)
        broker.deliver(receiver, b"3")
        assert [each.body for each in receiver.deliveries()] == ([b"1", b"2", b"3"] if auto_ack else [b"3"])
        broker.deliver(receiver, b"4")
        receiver.attach(5)
        assert len(receiver.arrived()) == auto_ack
        assert receiver.delivery_count == 0


def test_a_receiver_of_a_stream_continues_after_the_last_received_offset(broker: Broker) -> None:
    """After a reconnection, an AMQP 1.0 receiver of a stream continues after the offset of the last message that the
    caller has received. If the caller has not received a message with an offset, the receiver starts where it started
    before. The other filters stay the same.
    """
    filters = {str(OFFSET): offset_filter(FIRST), "f": Described(Symbol("f"), 1)}
    receiver = attached(broker, filters=filters)
    assert receiver.attach(5).source.filter == filters
    broker.deliver(receiver, b"", **{"x-stream-offset": 41})
    broker.deliver(receiver, b"", **{"x-stream-offset": "no number"})
    broker.deliver(receiver, b"")
    assert receiver.attach(5).source.filter == filters  # they were not received by the caller
    broker.deliver(receiver, b"", **{"x-stream-offset": 41})
    broker.deliver(receiver, b"", **{"x-stream-offset": "no number"})
    assert len(receiver.arrived()) == 2
    found = receiver.attach(5).source.filter
    assert found == filters | {OFFSET: offset_filter(Offset(Start.OFFSET, 42))}
    assert {type(name) for name in found} == {Symbol}
    for value in (ULong((1 << 64) - 1), -2):  # a publisher's, in another queue
        broker.deliver(receiver, b"", **{"x-stream-offset": value})
        assert len(receiver.arrived()) == 1
        assert receiver.attach(5).source.filter == found
    broker.deliver(receiver, b"", **{"x-stream-offset": 0})
    assert len(receiver.arrived()) == 1
    assert receiver.attach(5).source.filter[OFFSET] == offset_filter(Offset(Start.OFFSET, 1))


def test_a_receiver_of_a_stream_starts_at_its_position(broker: Broker) -> None:
    """The attach frame of an AMQP 1.0 receiver of a stream contains the position at which the caller wants to start."""
    position = StreamPosition("q", Offset(Start.OFFSET, 7))
    receiver = Receiver(broker, "name", QUEUE, Receiving(), {}, position)
    assert receiver.attach(5).source.filter == {OFFSET: offset_filter(Offset(Start.OFFSET, 7))}


def test_rest_returns_the_unsettled_deliveries_that_the_caller_has_not_received(broker: Broker) -> None:
    """When an AMQP 1.0 receiver ends, rest() returns the ids of the deliveries that the caller has not received, so
    that they can be released. It leaves out deliveries from before a reconnection and settled deliveries.
    """
    receiver = attached(broker)
    broker.deliver(receiver, b"1")
    broker.epoch += 1
    broker.deliver(receiver, b"2")
    broker.deliver(receiver, b"3")
    assert receiver.rest() == [2, 3]
    assert receiver.rest() == []
    settled = attached(broker, auto_ack=True)
    broker.deliver(settled, b"4")
    assert settled.rest() == []
    assert settled.arrived() == []


def test_a_stopped_receiver_ends_after_the_current_delivery(broker: Broker) -> None:
    """If a command that receives over AMQP 1.0 is stopped, its receiver accepts the current delivery and ends. A
    receiver with automatic acknowledgement first yields all other deliveries that have arrived, because they would
    otherwise be lost.
    """
    for auto_ack, expected in ((False, [b"1"]), (True, [b"1", b"2", b"3"])):
        broker.stopping = False
        broker.bodies = [b"1", b"2", b"3"]
        bodies = list[bytes]()
        for delivery in attached(broker, auto_ack=auto_ack).deliveries():
            bodies.append(delivery.body)
            broker.stopping = True
        assert bodies == expected
    assert broker.settled == [[1]]
    assert broker.waits == []
    broker.stopping = False
    broker.steps = [lambda: setattr(broker, "stopping", True)]
    assert [*attached(broker).deliveries()] == []
    assert broker.waits == [1.0]


def test_a_receiver_keeps_its_time_limits(broker: Broker) -> None:
    """An AMQP 1.0 receiver ends if no delivery arrives within the time limit `idle_timeout`. This limit starts again
    with each delivery, and time without a connection does not count towards it. Once the total time limit `timeout` is
    over, the receiver raises TimedOut. It never waits for a delivery beyond either limit.
    """
    receiver = attached(broker, idle_timeout=2.0)
    broker.steps = [lambda: broker.deliver(receiver, b"1")]
    for _ in receiver.deliveries():
        broker.now += 5
    assert broker.waits == [2.0, 2.0]
    assert broker.now == 1007

    def lose() -> None:
        broker.now += 9
        broker.is_lost = True

    def find() -> None:
        broker.now += 9
        broker.is_lost = False

    broker.steps, broker.waits, broker.now = [lose, find], [], 1000.0
    with pytest.raises(TimedOut):
        [*attached(broker, idle_timeout=10.0, timeout=30.0, count=1).deliveries()]
    assert broker.waits == [10.0, 10.0, 1.0]
    assert broker.now == 1019
    broker.steps, broker.waits = [], []
    with pytest.raises(TimedOut, match="timed out after 30 s, with 0 received"):
        [*attached(broker, timeout=30.0).deliveries()]
    assert broker.waits == [30.0]
    receiver = attached(broker, timeout=30.0)
    broker.bodies = [b"1"]
    deliveries = receiver.deliveries()
    next(deliveries)
    broker.now += 29
    with pytest.raises(TimedOut, match="timed out after 30 s, with 1 received"):
        next(deliveries)
    assert broker.waits == [30.0, 1.0]
    receiver = attached(broker, timeout=30.0)
    broker.bodies = [b"1", b"2"]
    deliveries = receiver.deliveries()
    next(deliveries)
    broker.now += 30
    with pytest.raises(TimedOut, match="timed out after 30 s, with 1 received"):
        next(deliveries)


def test_a_connection_that_is_lost_for_good_ends_a_receiver(broker: Broker) -> None:
    """If the connection of an AMQP 1.0 receiver is lost for good, the receiver raises the connection's error when the
    caller asks for the next delivery. It first accepts the previous delivery, as it always does, although the broker
    no longer learns of this.
    """
    broker.bodies = [b"1"]
    deliveries = attached(broker).deliveries()
    next(deliveries)
    broker.failure = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        next(deliveries)
    assert broker.settled == [[1]]
    assert broker.ended == [False]


def test_deliveries_are_accepted_only_after_their_output_is_written(broker: Broker) -> None:
    """Before an AMQP 1.0 receiver accepts deliveries, and before it waits for more, it calls the function that writes
    the command's pending output. If this function raises an error, the receiver accepts no deliveries, and ends with
    the error.
    """
    log = list[str]()

    def write() -> None:
        log.append(f"written after {len(broker.settled)}")
        if len(log) == 2:
            raise OSError("no space left on device")

    broker.bodies = [b"1", b"2"]
    receiver = attached(broker, before_acknowledging=write)
    broker.steps = [lambda: broker.deliver(receiver, b"3")]
    deliveries = receiver.deliveries()
    for _ in range(2):
        next(deliveries)
    assert log == ["written after 0"]  # when the receiver had to ask for more
    with pytest.raises(OSError, match="no space left"):
        next(deliveries)
    assert log[1:] == ["written after 0"]
    assert broker.settled == []
    assert broker.ended == [False]


def test_output_is_written_once_before_a_receiver_waits(broker: Broker) -> None:
    """Before an AMQP 1.0 receiver waits for a delivery, it calls the function that writes the command's pending output.
    It calls this function only once, even if it checks for a delivery several times while it waits.
    """
    written = list[int]()
    receiver = attached(broker, auto_ack=True, before_acknowledging=lambda: written.append(1))
    broker.steps = [lambda: None, lambda: None, lambda: broker.deliver(receiver, b"1")]
    deliveries = receiver.deliveries()
    next(deliveries)
    assert broker.waits == [1.0, 1.0, 1.0]
    assert written == [1]


def test_consecutive_delivery_ids_are_settled_as_one_range() -> None:
    """An AMQP 1.0 receiver settles consecutive delivery ids as one range, whatever the order in which the deliveries
    were handled.
    """
    assert ranges([]) == []
    assert ranges([4]) == [(4, 4)]
    assert ranges([3, 1, 2, 7, 9, 8, 5]) == [(1, 3), (5, 5), (7, 9)]
