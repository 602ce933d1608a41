"""Publishing on a channel: confirms, returns, reopened channels, and replies in one write with acknowledgements."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from pika import spec

from mqtool.amqp import publisher
from mqtool.amqp.channel import Channel
from mqtool.amqp.publisher import _batches
from mqtool.amqp.unconfirmed import LEADERLESS, WINDOW, Unconfirmed
from mqtool.errors import BadData, NotConfirmed, Unavailable, UsageError
from mqtool.message import Delivery, InBatches, Message, Receipt
from mqtool.topology import Exchange, Queue
from tests.unit.scripted_broker import ScriptedBroker, scripted_broker


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker() as broker:
        yield broker


class Waits:
    """The steps to run when the publisher waits for confirms, one for each wait, and how it waited.

    Attributes:
        calls: the arguments of each wait: the number of unconfirmed messages, the confirm timeout, the longest time.
    """

    def __init__(self, broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Callable[[], None]] = []
        self.calls: list[tuple[int, float, float | None]] = []
        waits = self

        def wait(_: Unconfirmed, until_below: int, confirm_timeout: float, at_most: float | None = None) -> None:
            waits.calls.append((until_below, confirm_timeout, at_most))
            broker.io.run_due()
            if not waits.steps:
                raise NotConfirmed("no confirm arrives")
            waits.steps.pop(0)()

        monkeypatch.setattr(Unconfirmed, "wait", wait)


@pytest.fixture
def waits(broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(broker, monkeypatch)


def told(receipts: list[Receipt]) -> list[tuple[bytes, str, str, int]]:
    return [(each.message.body, each.confirmation, each.reason, each.sequence) for each in receipts]


def bodies(broker: ScriptedBroker) -> list[bytes]:
    return [message.body for _, message in broker.published]


def test_a_channel_is_put_into_confirm_mode_before_its_first_message(broker: ScriptedBroker) -> None:
    """A channel is put into confirm mode once, before its first message is published. A channel on which no message is
    published is never put into confirm mode.
    """
    channel = broker.channel()
    channel.declare(Queue("q"))
    assert broker.of(spec.Confirm.Select) == []
    for body in (b"1", b"2"):
        assert [each.message.body for each in channel.publish([Message(body)], routing_key="q")] == [body]
    assert [write[0] for write in broker.writes[-3:]] == ["Confirm.Select", "Basic.Publish", "Basic.Publish"]
    assert len(broker.of(spec.Confirm.Select)) == 1
    assert broker.has_progressed


def test_receipts_say_what_the_broker_did_with_each_message(broker: ScriptedBroker, waits: Waits) -> None:
    """The receipt of a message says whether the broker confirmed, nacked or returned the message, and gives a reason
    if it was not confirmed. basic.ack and basic.nack with `multiple` also apply to all earlier messages that the
    broker has neither confirmed nor nacked yet.
    """
    broker.confirms = False
    given = [
        Message(b"same", properties={"app_id": "a", "headers": {"n": 1}}, message_id="id-1"),
        Message(b"same", properties={"app_id": "b", "headers": {"n": 1}}, message_id="id-1"),
        Message(b"same", properties={"app_id": "b", "headers": {"n": 1}}, message_id="id-2"),
        Message(b"4"), Message(b"5"), Message(b"6"), Message(b"7"),
    ]  # fmt: skip

    def answer() -> None:
        broker.send(spec.Basic.Return(312, "NO_ROUTE", "x", "k"), content=given[1])
        broker.send(spec.Basic.Ack(4, multiple=True))
        broker.send(spec.Basic.Nack(5))
        broker.send(spec.Basic.Nack(7, multiple=True))

    waits.steps = [answer]
    receipts = [*broker.channel().publish(given, exchange=Exchange("x"), routing_key="k")]
    assert [(each.confirmation, each.reason) for each in receipts] == [
        ("confirmed", ""), ("returned", "NO_ROUTE (312)"), ("confirmed", ""), ("confirmed", ""),
        ("nacked", "the broker refused it"), ("nacked", "the broker refused it"), ("nacked", "the broker refused it"),
    ]  # fmt: skip
    assert [each.sequence for each in receipts] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (Message(b"m", properties={"priority": 4}), 0),
        (Message(b"m", properties={"priority": 5}), 1),
        (Message(b"m", message_id="id"), 2),
        (Message(b"other"), 3),
    ],
    ids=["priority", "other priority", "id", "body"],
)
def test_only_the_receipt_of_the_returned_message_says_that_it_was_returned(
    broker: ScriptedBroker, waits: Waits, returned: Message, expected: int
) -> None:
    """If the broker returns one of several similar messages, only the receipt of this message says that it was
    returned. The message is recognized by its exchange, routing key, body, id and properties.
    """
    broker.confirms = False
    given = [
        Message(b"m", properties={"priority": 4}), Message(b"m", properties={"priority": 5}),
        Message(b"m", message_id="id"), Message(b"other"), Message(b"m", "other-key"), Message(b"m", None, "other"),
    ]  # fmt: skip

    def answer() -> None:
        broker.send(spec.Basic.Return(312, "NO_ROUTE", "", "q"), content=returned)
        broker.send(spec.Basic.Ack(len(given), multiple=True))

    waits.steps = [answer]
    receipts = [*broker.channel().publish(given, routing_key="q")]
    assert [each.confirmation for each in receipts] == [
        "returned" if number == expected else "confirmed" for number in range(len(given))
    ]


def test_a_large_message_is_published_in_frames_that_the_broker_accepts(broker: ScriptedBroker) -> None:
    """A message that is larger than the broker's frame-max is published in several frames, none of which is larger than
    frame-max.
    """
    body = bytes(200_000)
    assert len([*broker.channel().publish([Message(body)])]) == 1
    assert bodies(broker) == [body]
    assert broker.largest_frame == broker.frame_max


def test_messages_are_published_until_the_window_of_unconfirmed_messages_is_full(
    broker: ScriptedBroker, waits: Waits
) -> None:
    """A publisher publishes messages until its window of unconfirmed messages is full. It continues once half of the
    window is confirmed. While it waits, it reports each confirmed message.
    """
    broker.confirms = False
    sent = list[int]()

    def confirm(tag: int) -> None:
        sent.append(len(broker.published))
        broker.send(spec.Basic.Ack(tag, multiple=True))

    waits.steps = [partial(confirm, tag) for tag in (4, 5, 7)]
    receipts = broker.channel(confirm_timeout=7.0).publish((Message(b"%d" % n) for n in range(7)), window=5)
    assert next(receipts).message.body == b"0"
    assert len([*receipts]) == 6
    assert sent == [5, 7, 7]
    assert waits.calls == [(2, 7.0, None), (1, 7.0, 0.25), (1, 7.0, 0.25)]


def test_with_a_window_of_one_each_message_is_confirmed_before_the_next(broker: ScriptedBroker, waits: Waits) -> None:
    """With a window of 1, each message is published only once the previous message has been confirmed."""
    broker.confirms = False

    def confirm() -> None:
        sent.append(len(broker.published))
        broker.send(spec.Basic.Ack(len(sent)))

    sent, waits.steps = list[int](), [confirm] * 3
    receipts = broker.channel().publish((Message(b"%d" % n) for n in range(3)), window=1)
    assert told([*receipts]) == [(b"%d" % n, "confirmed", "", n + 1) for n in range(3)]
    assert [until for until, *_ in waits.calls] == [1, 1, 1]
    assert sent == [1, 2, 3]


def test_confirmed_messages_are_reported_while_there_is_no_message_to_publish(
    broker: ScriptedBroker, waits: Waits
) -> None:
    """While there is no message to publish, a publisher waits for confirms: at first for 0.1 ms, because the next
    message may arrive at any moment, and then for up to 50 ms at a time. It reports confirmed messages before it asks
    its caller for more messages.
    """
    broker.confirms = False
    asked = list[int]()

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        for number in range(3):
            asked.append(number)
            yield None
        yield Message(b"2")

    waits.steps = [lambda: None, lambda: broker.send(spec.Basic.Ack(1))]
    receipts = broker.channel(confirm_timeout=7.0).publish(source(), routing_key="q")
    assert next(receipts).message.body == b"1"
    assert asked == [0, 1]
    assert waits.calls == [(1, 7.0, 0.0001), (1, 7.0, 0.05)]
    waits.steps = [lambda: None, lambda: broker.send(spec.Basic.Ack(2))]
    assert told([*receipts]) == [(b"2", "confirmed", "", 2)]
    assert waits.calls[2:] == [(1, 7.0, 0.05), (1, 7.0, 0.25)]


def test_confirmed_messages_are_reported_before_a_missing_confirm_raises_an_error(
    broker: ScriptedBroker, waits: Waits
) -> None:
    """If a confirm does not arrive in time, publish() first reports each message that the broker has confirmed, even if
    an earlier message is unconfirmed, and then raises NotConfirmed. All other messages still count as unconfirmed.
    """
    broker.confirms = False

    def confirm_two() -> None:
        broker.send(spec.Basic.Ack(1))
        broker.send(spec.Basic.Ack(3))
        raise NotConfirmed("the broker did not confirm 1 message")

    waits.steps = [confirm_two]
    channel = broker.channel()
    receipts = channel.publish(map(Message, (b"1", b"2", b"3")), exchange=Exchange("x"), routing_key="k")
    assert [next(receipts).message.body, next(receipts).message.body] == [b"1", b"3"]
    with pytest.raises(NotConfirmed, match="did not confirm 1 message"):
        next(receipts)
    assert channel.unconfirmed == [Message(b"2", "k", "x")]


def test_an_error_in_the_input_is_raised_once_earlier_messages_are_confirmed(
    broker: ScriptedBroker, waits: Waits
) -> None:
    """If reading the input raises an error, publish() raises this error only after the broker has confirmed all earlier
    messages.
    """

    def source() -> Iterator[Message]:
        yield Message(b"1")
        yield Message(b"2")
        raise BadData("line 3 is not JSON")

    broker.confirms = False
    waits.steps = [lambda: broker.send(spec.Basic.Ack(1)), lambda: broker.send(spec.Basic.Ack(2))]
    receipts = broker.channel().publish(source(), routing_key="q")
    assert [next(receipts).message.body for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(BadData, match="line 3 is not JSON"):
        next(receipts)
    assert waits.steps == []


class Batches(InBatches):
    """A source of batches."""

    def __init__(self, *batches: list[Message]) -> None:
        self.given = batches

    def batches(self) -> Iterator[list[Message]]:
        return iter(self.given)

    def __iter__(self) -> Iterator[Message]:
        return (message for batch in self.given for message in batch)


def test_the_messages_before_one_that_cannot_be_encoded_are_published(broker: ScriptedBroker) -> None:
    """If a caller gives publish() a batch of messages, one of which cannot be encoded, publish() publishes the messages
    before this one, reports each of them with its number, and raises an error. The invalid message and all later ones
    stay in the caller's batch.
    """
    long = Message(b"bad", "k" * 300)
    first, batch = [Message(b"1"), Message(b"2")], [Message(b"3"), Message(b"4"), long, Message(b"6")]
    source: Any = Batches(first, batch)
    receipts = broker.channel().publish(source, routing_key="q")
    assert told([next(receipts) for _ in range(4)]) == [(b"%d" % n, "confirmed", "", n) for n in (1, 2, 3, 4)]
    with pytest.raises(UsageError, match="the routing key is 300 bytes long"):
        next(receipts)
    assert (first, batch) == ([], [long, Message(b"6")])
    assert bodies(broker) == [b"1", b"2", b"3", b"4"]
    last = [Message(b"7"), long]
    receipts = broker.channel().publish(Batches(last), routing_key="q")
    assert next(receipts).message.body == b"7"
    with pytest.raises(UsageError, match="300 bytes"):
        next(receipts)
    assert last == [long]
    only = [long]
    with pytest.raises(UsageError, match="300 bytes"):
        next(broker.channel().publish(Batches(only), routing_key="q"))
    assert only == [long]


def test_a_list_is_published_in_batches_of_256() -> None:
    """publish() publishes a list of messages in batches of 256 if its window, the maximum number of unconfirmed
    messages, has the default size. If the window is only 5, or if the messages come from an iterator, publish()
    publishes them one by one. A `None` in the input stands for a pause, and is skipped.
    """
    listed: list[Message | None] = [Message(b"%d" % number) for number in range(600)]
    listed[5] = None
    assert [len(batch) for batch in _batches(listed, WINDOW)] == [255, 256, 88]
    assert [message for batch in _batches(listed, WINDOW) for message in batch] == [each for each in listed if each]
    for few in (_batches(listed[:7], 5), _batches(iter(listed[:7]), WINDOW)):
        assert [[message.body for message in batch] for batch in few] == [
            [b"0"], [b"1"], [b"2"], [b"3"], [b"4"], [], [b"6"],
        ]  # fmt: skip
    source: Any = Batches([Message(b"a"), Message(b"b")], [])
    assert [len(batch) for batch in _batches(source, WINDOW)] == [2, 0]
    assert [len(batch) for batch in _batches(source, 5)] == [1, 1]


def test_unconfirmed_messages_are_published_again_on_the_next_channel(broker: ScriptedBroker, waits: Waits) -> None:
    """After a reconnection, unconfirmed messages are published again, once, on the new channel, which is in confirm
    mode. A basic.ack or basic.nack that still arrives on the old channel has no effect.
    """
    broker.confirms = False
    channel = broker.channel()

    def reconnect() -> None:
        channel.reopening.lost()
        channel.reopening.open(connection_is_new=True)
        broker.has_progressed = False
        broker.send(spec.Basic.Ack(2, multiple=True), 1)
        broker.send(spec.Basic.Nack(1), 1)
        assert not broker.has_progressed
        assert channel.in_flight == 2
        broker.send(spec.Basic.Ack(1))
        assert broker.has_progressed

    waits.steps = [reconnect, lambda: broker.send(spec.Basic.Ack(2))]
    receipts = [*channel.publish([Message(b"1"), Message(b"2")], routing_key="q")]
    assert told(receipts) == [(b"1", "confirmed", "", 1), (b"2", "confirmed", "", 2)]
    assert bodies(broker) == [b"1", b"2"] * 2
    assert len(broker.of(spec.Confirm.Select)) == 2
    broker.confirms = True
    assert len([*channel.publish([Message(b"3")], routing_key="q")]) == 1
    assert bodies(broker)[4:] == [b"3"]
    assert len(broker.of(spec.Confirm.Select)) == 2


@pytest.mark.parametrize("when", ["new connection", "lacks a node", "reopened channel"])
def test_a_nack_is_not_final_while_queues_may_lack_a_leader(broker: ScriptedBroker, waits: Waits, when: str) -> None:
    """Soon after a reconnection, or if a node could not be reached when the connection was opened, a queue may have
    no leader yet. If the broker nacks a message in this situation, the message stays unconfirmed, so that the
    publisher publishes it again. At any other time, a nack is final.
    """
    broker.confirms = False
    broker.lacks_a_node = when == "lacks a node"
    channel = broker.channel()

    def nack() -> None:
        if when != "lacks a node":
            channel.reopening.lost()
            channel.reopening.open(connection_is_new=when == "new connection")
        broker.send(spec.Basic.Nack(1))

    waits.steps = [nack]
    receipts = channel.publish([Message(b"1")], routing_key="q")
    if when == "reopened channel":
        assert told([*receipts]) == [(b"1", "nacked", "the broker refused it", 1)]
    else:
        with pytest.raises(NotConfirmed):
            next(receipts)
        assert [message.body for message in channel.unconfirmed] == [b"1"]
    assert LEADERLESS == 20


def test_the_confirm_timeout_does_not_pass_while_the_broker_blocks_publishers(broker: ScriptedBroker) -> None:
    """Time during which the broker blocks publishers, or during which there is no connection, does not count towards
    the confirm timeout.
    """
    broker.confirms = False
    channel, steps = broker.channel(confirm_timeout=0.01), list[str]()

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        channel.reopening.tell(lambda listener: listener.paused())
        yield from [None] * 3
        steps.append("still waiting")
        channel.reopening.tell(lambda listener: listener.resumed())
        yield from [None] * 1000

    with pytest.raises(NotConfirmed, match=r"did not confirm 1 message within 0\.01 s"):
        [*channel.publish(source())]
    assert steps == ["still waiting"]


def test_a_channel_that_is_closed_for_good_ends_publishing(broker: ScriptedBroker) -> None:
    """If the channel is closed for good, publish() raises the channel's error instead of waiting for confirms."""
    broker.confirms = False
    channel = broker.channel()

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        channel.reopening.fail(Unavailable("gone"))
        yield None

    with pytest.raises(Unavailable, match="gone"):
        [*channel.publish(source())]


def test_a_stopped_command_does_not_wait_for_confirms_that_cannot_arrive(broker: ScriptedBroker) -> None:
    """If a command is stopped while the broker cannot confirm its messages, publish() raises NotConfirmed. The error
    says why no confirm can arrive, for example because the connection is lost.
    """
    broker.confirms = False
    channel = broker.channel()
    broker.silent = {spec.Confirm.Select}

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        broker.hopeless = "the connection is lost"
        yield None

    with pytest.raises(NotConfirmed, match="stopped with 1 message unconfirmed: the connection is lost"):
        [*channel.publish(source())]


def test_a_message_nacked_while_its_queue_may_lack_a_leader_is_published_again(broker: ScriptedBroker) -> None:
    """If a node of the cluster cannot be reached when mqtool connects, a queue whose leader was on this node may not
    have a new leader yet. If the broker nacks a message soon afterwards, the publisher assumes that this is why. It
    publishes the message again on another channel, and reports it only once, as confirmed.
    """
    broker.confirms = False
    broker.lacks_a_node = True
    channel = broker.channel()

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        broker.send(spec.Basic.Nack(1))
        broker.confirms = True
        while len(broker.published) < 2:
            yield None

    assert told([*channel.publish(source(), routing_key="q")]) == [(b"1", "confirmed", "", 1)]
    assert bodies(broker) == [b"1", b"1"]
    assert len(broker.of(spec.Channel.Open)) == 2


def test_confirm_mode_is_selected_once_on_a_channel_that_is_reopened_before_its_first_message(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a channel is lost and reopened just before its first message is published, the new channel is put into confirm
    mode only once.
    """
    channel = broker.channel()
    channel.reopening.lost()
    monkeypatch.setattr(channel.reopening, "wait_until_ready", channel.reopening.open)
    assert len([*channel.publish([Message(b"1")])]) == 1
    assert len(broker.of(spec.Confirm.Select)) == 1


def delivery(channel: Channel, tag: int) -> Delivery:
    return Delivery(b"request", "", "q", "q", False, {}, tag, channel.reopening.requests.epoch)


def test_a_reply_and_the_acknowledgement_of_its_request_are_sent_in_one_write(broker: ScriptedBroker) -> None:
    """An RPC server sends a reply and the acknowledgement of its request in one write, the reply first. The reply goes
    to the default exchange as a mandatory message, with the name of the client's reply queue as the routing key.
    """
    channel = broker.channel()
    for tag in (1, 2):
        channel.answer(delivery(channel, tag), Message(b"reply", "reply-to"))
        assert broker.writes[-1] == ["Basic.Publish", "Basic.Ack"]
    assert [(method.exchange, method.routing_key, method.mandatory) for method, _ in broker.published] == [
        ("", "reply-to", True)
    ] * 2
    assert broker.acks == [(1, False), (2, False)]
    channel.wait_for_confirms()
    assert channel.in_flight == 0


def test_a_reply_waits_while_the_window_of_unconfirmed_replies_is_full(
    broker: ScriptedBroker, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If as many replies of an RPC server are unconfirmed as its window allows, the next reply waits until half of the
    window is confirmed.
    """
    monkeypatch.setattr(publisher, "WINDOW", 5)
    broker.confirms = False
    channel = broker.channel(confirm_timeout=7.0)
    for tag in range(1, 6):
        channel.answer(delivery(channel, tag), Message(b"%d" % tag, "reply-to"))
    assert waits.calls == []
    waits.steps = [lambda: broker.send(spec.Basic.Ack(4, multiple=True))]
    channel.answer(delivery(channel, 6), Message(b"6", "reply-to"))
    assert waits.calls == [(2, 7.0, None)]
    channel.answer(delivery(channel, 7), Message(b"7", "reply-to"))
    assert len(waits.calls) == 1
    waits.steps = [lambda: broker.send(spec.Basic.Ack(7, multiple=True))]
    channel.wait_for_confirms()
    assert bodies(broker) == [b"%d" % tag for tag in range(1, 8)]


def test_acknowledgements_are_sent_on_the_channel_of_their_deliveries(broker: ScriptedBroker) -> None:
    """A delivery is acknowledged on the channel on which it arrived, even if messages are also published on that
    channel. After a channel has been lost, its deliveries are not acknowledged, because the broker redelivers them.
    """
    channel = broker.channel()
    old, older = delivery(channel, 1), delivery(channel, 2)
    channel.acknowledge(old)
    channel.reopening.lost()
    channel.acknowledge(older)
    channel.reopening.open(connection_is_new=True)
    channel.acknowledge(delivery(channel, 1))
    [*channel.publish([Message(b"1")])]
    channel.acknowledge(delivery(channel, 2))
    channel.reopening.lost()
    channel.acknowledge(delivery(channel, 3))
    channel.reopening.open()
    channel.acknowledge(delivery(channel, 1))
    assert broker.acks == [(1, False)] * 2 + [(2, False), (1, False)]
    assert broker.acked_on == [1, 2, 2, 3]


def test_a_rejected_delivery_is_neither_requeued_nor_acknowledged(broker: ScriptedBroker) -> None:
    """reject() rejects a delivery without requeuing it, so that the broker dead-letters or drops it. The deliveries
    after it can still be acknowledged together, with one basic.ack. Rejecting a delivery again, or after its channel
    has been lost, has no effect.
    """
    broker.silent = {spec.Basic.Reject}
    channel = broker.channel()
    first, second, third, fourth = (delivery(channel, tag) for tag in range(1, 5))
    channel.acknowledge(first)
    channel.reject(second)
    channel.reject(second)
    channel.acknowledge(third, fourth)
    channel.reopening.lost()
    channel.reopening.open(connection_is_new=True)
    channel.reject(Delivery(b"", "", "q", "q", False, {}, 5, first.epoch))
    assert broker.acks == [(1, False), (4, True)]
    assert [(each.delivery_tag, each.requeue) for each in broker.of(spec.Basic.Reject)] == [(2, False)]
