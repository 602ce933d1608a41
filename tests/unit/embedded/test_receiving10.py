"""Receiving over AMQP 1.0: link credit, drain, deliveries, the active consumer, and direct replies."""

import asyncio
from itertools import count
from typing import Any

import pytest

from mqtool.broker.embedded.amqp10.outgoing_link import OutgoingLink, ReplyLink
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.broker import DIRECT_REPLY_TO, Broker
from mqtool.broker.embedded.model.consumers import Traffic
from mqtool.broker.embedded.model.exchange import TRACE_EXCHANGE
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.sectioned import parse
from mqtool.broker.embedded.model.totals import AMQP10
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, data_section
from mqtool.codecs.amqp10_values import Described, Symbol, ULong
from mqtool.codecs.field_tables import Int32, UInt32
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    ATTACH,
    DETACH,
    END,
    FLOW,
    MODIFIED,
    RELEASED,
    SETTLED,
    TRANSFER,
    Frame,
    described,
)
from tests.unit.embedded.memory_client10 import MemoryClient10, broker_with, encoded, fill, frames

ACCEPT, RELEASE = described(ACCEPTED), described(RELEASED)


def add(broker: Broker, name: str, **arguments: Any) -> BrokerQueue:
    """Declare a queue; `x_queue_type` stands for the argument x-queue-type."""
    named = {each.replace("_", "-"): value for each, value in arguments.items()}
    return broker.vhosts["/"].add_queue(QueueDeclaration(name, named, durable=True))


def stream_with(broker: Broker, *bodies: bytes) -> BrokerQueue:
    """Declare the stream `s`, and publish messages to it."""
    stream = add(broker, "s", x_queue_type="stream")
    fill(stream, *bodies)
    return stream


def bodies(found: list[Frame]) -> list[bytes | None]:
    """The bodies of the messages in transfer frames."""
    return [frame.body for frame in found if frame.code == TRANSFER]


def flows(found: list[Frame]) -> list[tuple[Any, ...]]:
    """From each flow frame of a link: handle, delivery count, credit, available, drain, echo, and properties."""
    return [tuple(frame.field(number) for number in range(4, 11)) for frame in found if frame.code == FLOW]


FIRST: tuple[Any, ...] = (*(None,) * 6, {Symbol("offset"): Described(Symbol("rabbitmq:stream-offset-spec"), "first")})

# Link credit


def test_a_receiver_gets_no_message_before_it_grants_credit(client: MemoryClient10, q: BrokerQueue) -> None:
    """An AMQP 1.0 receiver gets messages only after it has granted link credit, and gets no more messages than its
    credit allows.
    """
    fill(q, b"1", b"2", b"3")
    assert [frame.code for frame in client.attach_receiver("/queues/q")] == [ATTACH]
    assert bodies(client.flow(0, 2)) == [b"1", b"2"]
    assert bodies(client.flow(0, 1, count=2, seen=2)) == [b"3"]


@pytest.mark.parametrize(
    ("count", "credit", "left"), [(2, 5, 5), (0, 5, 3), (None, 5, 3), (0, 2, 0), (0, 1, 0), (2, None, 0)]
)
def test_credit_counts_from_the_delivery_count_that_the_receiver_has_seen(
    client: MemoryClient10, q: BrokerQueue, count: int | None, credit: int | None, left: int
) -> None:
    """The link-credit in an AMQP 1.0 receiver's flow frame counts from the delivery-count in the same frame, or from
    0 if the frame has none. The broker subtracts the messages that it has sent since that delivery-count. A flow
    frame without link-credit withdraws the credit.
    """
    fill(q, b"1", b"2")
    client.attach_receiver("/queues/q", handle=4)
    assert len(client.flow(4, 2)) == 2
    found = client.flow(4, credit, count=count, seen=2, echo=True)
    assert flows(found) == [(4, 2, left, 0, False, False, None)]


def test_the_answer_to_a_flow_frame_with_echo_contains_credit_and_available_messages(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 receiver sends a flow frame with echo, the broker's answer contains the link's delivery count, its
    remaining credit and the number of ready messages. A flow frame without echo gets no answer.
    """
    fill(q, b"1", b"2", b"3")
    client.attach_receiver("/queues/q")
    found = client.flow(0, 1, echo=True)
    assert (bodies(found), flows(found)) == ([b"1"], [(0, 1, 0, 2, False, False, None)])
    assert flows(client.flow(0, 1, count=1, seen=1)) == []


def test_flow_frames_sent_together_with_attach_take_effect_in_order(client: MemoryClient10, q: BrokerQueue) -> None:
    """If an AMQP 1.0 receiver sends attach and flow frames in one write, the broker answers the attach frame first, and
    then applies the flow frames in order.
    """
    fill(q, b"1", b"2", b"3")
    ends = described(0x28, "/queues/q"), described(0x29)
    attach = encoded(ATTACH, "link", UInt32(0), True, None, None, *ends)
    windows = (UInt32(0), UInt32(100), UInt32(0), UInt32(100))
    given = [encoded(FLOW, *windows, UInt32(0), UInt32(0), UInt32(credit)) for credit in (3, 1)]
    first, *rest = client.write_frames(attach + b"".join(given))
    assert [frame.code for frame in frames(first)] == [ATTACH]
    assert bodies(frames(b"".join(rest))) == [b"1", b"2", b"3"]


def test_credit_of_a_link_that_is_detached_in_the_same_write_has_no_effect(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 receiver attaches a link, grants credit and detaches the link in one write, it gets no message."""
    fill(q, b"1")
    ends = described(0x28, "/queues/q"), described(0x29)
    attach = encoded(ATTACH, "link", UInt32(0), True, None, None, *ends)
    credit = encoded(FLOW, UInt32(0), UInt32(100), UInt32(0), UInt32(100), UInt32(0), UInt32(0), UInt32(5))
    found = client.write_frames(attach + credit + encoded(DETACH, UInt32(0), True))
    assert [frame.code for frame in frames(b"".join(found))] == [ATTACH, DETACH]
    assert len(q) == 1
    assert len(q.consumers) == 0


# Drain


def test_a_drain_sends_the_ready_messages_and_uses_up_the_remaining_credit(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 receiver sends a flow frame with drain, the broker sends the ready messages, advances the delivery
    count by the remaining credit, and answers with a credit of 0. The drain flag is not set in later flow frames of the
    broker.
    """
    fill(q, b"1", b"2")
    client.attach_receiver("/queues/q")
    found = client.flow(0, 10, drain=True)
    assert (bodies(found), flows(found)) == ([b"1", b"2"], [(0, 10, 0, 0, True, False, None)])
    assert flows(client.flow(0, 4, count=10, seen=2, echo=True)) == [(0, 10, 4, 0, False, False, None)]


def test_the_answer_to_a_drain_contains_the_number_of_messages_left_in_the_queue(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 receiver drains its link, and its credit is too low for all messages in the queue, the broker's
    answer contains the number of messages left in the queue.
    """
    fill(q, b"1", b"2", b"3")
    client.attach_receiver("/queues/q")
    found = client.flow(0, 2, drain=True, echo=True)
    assert (bodies(found), flows(found)) == ([b"1", b"2"], [(0, 2, 0, 1, True, False, None)])


@pytest.mark.parametrize("waiting", [True, False])
def test_a_drain_completes_only_after_the_ready_messages_were_sent_to_a_slow_receiver(
    client: MemoryClient10, q: BrokerQueue, *, waiting: bool
) -> None:
    """While an AMQP 1.0 client reads too slowly, the broker holds back messages for the client's receivers. If such a
    receiver drains its link and the queue contains messages, the broker completes the drain only after it has sent
    these messages. If the queue is empty, the drain completes immediately.
    """
    if waiting:
        fill(q, b"1")
    client.attach_receiver("/queues/q")
    client.connection.pause_writing()
    found = client.flow(0, 5, drain=True)
    if not waiting:
        assert flows(found) == [(0, 5, 0, 0, True, False, None)]
        return
    assert found == []
    for expected in ([(0, 5, 0, 0, True, False, None)], []):
        client.connection.resume_writing()
        assert flows(client.received()) == expected
        client.connection.pause_writing()


@pytest.mark.parametrize("waiting", [True, False])
def test_a_drain_completes_only_after_the_clients_incoming_window_opens(
    client: MemoryClient10, q: BrokerQueue, *, waiting: bool
) -> None:
    """If an AMQP 1.0 client's incoming window is closed and the queue contains messages, the drain of a link waits:
    once the client opens the window, the broker sends the messages and completes the drain. If the queue is empty, the
    drain completes immediately.
    """
    if waiting:
        fill(q, b"1")
    client.attach_receiver("/queues/q")
    found = client.flow(0, 5, drain=True, window=0)
    if not waiting:
        assert flows(found) == [(0, 5, 0, 0, True, False, None)]
        return
    assert found == []
    found = client.flow(window=9)
    assert (bodies(found), flows(found)) == ([b"1"], [(0, 5, 0, 0, True, False, None)])


def test_a_drain_completes_only_after_the_last_transfer_of_a_large_message(
    loop: asyncio.AbstractEventLoop, broker: Broker, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 client's incoming window closes in the middle of a large message, the drain of the link completes
    only after the rest of the message has been sent.
    """
    client = MemoryClient10(loop, broker)
    client.connection.frame_max = 512
    fill(q, b"x" * 1000)
    client.attach_receiver("/queues/q")
    client.flow(window=1)
    found = client.flow(0, 5, drain=True, window=1)
    assert [(frame.code, frame.field(5)) for frame in found] == [(TRANSFER, True)]
    found = client.flow(seen=1, window=9)
    assert [frame.code for frame in found] == [TRANSFER, TRANSFER, FLOW]
    assert [frame.field(5) for frame in found[:2]] == [True, False]
    assert flows(found) == [(0, 5, 0, 0, True, False, None)]


@pytest.mark.parametrize("detaches", [False, True])
def test_a_drain_waits_for_messages_that_are_being_requeued(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, monkeypatch: pytest.MonkeyPatch, *, detaches: bool
) -> None:
    """If an AMQP 1.0 client detaches a link that has many unsettled messages, and drains a second link to the same
    queue, the broker first requeues the messages, then sends them over the second link, and only then answers the
    drain. If the client detaches the second link before that, the broker does not answer the drain.
    """
    fill(q, *[b"%d" % number for number in range(100)])
    client.attach_receiver("/queues/q")
    client.attach_receiver("/queues/q", handle=1)
    client.flow(0, 100)
    monkeypatch.setattr(broker.clock, "elapsed", count().__next__)
    client.connection.data_received(encoded(DETACH, UInt32(0), True))
    windows = (UInt32(100), UInt32(2048), UInt32(0), UInt32(2048))
    client.connection.data_received(encoded(FLOW, *windows, UInt32(1), UInt32(0), UInt32(101), None, True))
    if detaches:
        client.connection.data_received(encoded(DETACH, UInt32(1), True))
    found = client.received()
    if not detaches:
        assert (len(bodies(found)), flows(found)) == (100, [(1, 101, 0, 0, True, False, None)])
        assert found[-1].code == FLOW
        return
    assert [frame.code for frame in found if frame.code != TRANSFER] == [DETACH, DETACH]


def test_a_drain_whose_credit_is_used_up_completes_although_the_window_is_closed(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If a message uses up both the drained credit of an AMQP 1.0 link and the client's incoming window, the drain
    completes immediately, although the window is closed.
    """
    fill(q, b"1", b"2")
    client.attach_receiver("/queues/q")
    found = client.flow(0, 1, drain=True, window=1)
    assert (bodies(found), flows(found)) == ([b"1"], [(0, 1, 0, 1, True, False, None)])


def test_the_drain_of_a_stream_completes_once_all_messages_have_been_sent(
    client: MemoryClient10, broker: Broker
) -> None:
    """The drain of an AMQP 1.0 link to a stream completes once the broker has sent all messages in the stream. The
    broker's answer says that 0 messages are available, because the broker does not count the available messages of a
    stream.
    """
    stream_with(broker, b"1", b"2", b"3")
    client.attach_receiver("/queues/s", *FIRST)
    found = client.flow(0, 10, drain=True)
    assert (bodies(found), flows(found)) == ([b"1", b"2", b"3"], [(0, 10, 0, 0, True, False, None)])


def test_the_answer_to_a_drain_of_a_stream_always_says_that_no_messages_are_available(
    client: MemoryClient10, broker: Broker
) -> None:
    """If an AMQP 1.0 receiver drains its link to a stream, the number of available messages in the broker's answer is
    always 0, even if the receiver's credit is too low for all messages in the stream.
    """
    stream_with(broker, b"1", b"2", b"3")
    client.attach_receiver("/queues/s", *FIRST)
    found = client.flow(0, 2, drain=True)
    assert (bodies(found), flows(found)) == ([b"1", b"2"], [(0, 2, 0, 0, True, False, None)])


# Deliveries


def test_deliveries_have_successive_ids_on_a_session_and_successive_tags_on_a_link(
    client: MemoryClient10, q: BrokerQueue, broker: Broker
) -> None:
    """The broker numbers the deliveries of an AMQP 1.0 session with successive delivery ids, and the deliveries of each
    link with successive delivery tags.
    """
    fill(q, b"1", b"2")
    fill(add(broker, "other"), b"3")
    for handle, queue in enumerate(("q", "other")):
        client.attach_receiver(f"/queues/{queue}", handle=handle)
    found = [*client.flow(0, 1), *client.flow(1, 1, seen=1), *client.flow(0, 1, count=1, seen=2)]
    got = [(frame.fields[0], frame.fields[1], int.from_bytes(frame.fields[2])) for frame in found]
    assert got == [(0, 0, 0), (1, 1, 0), (0, 2, 1)]
    assert [frame.body for frame in found] == [b"1", b"3", b"2"]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("settled", [False, True])
def test_deliveries_are_counted_by_queue_type(
    client: MemoryClient10, broker: Broker, kind: str, *, settled: bool
) -> None:
    """The broker's metrics count AMQP 1.0 deliveries separately for each queue type: all deliveries, those of
    redelivered messages, and those sent settled. A message that is sent settled is not among the session's unsettled
    deliveries.
    """
    queue = add(broker, "qq", x_queue_type=kind)
    fill(queue, b"1", b"2")
    client.attach_receiver("/queues/qq", mode=SETTLED if settled else None)
    assert [frame.field(4) for frame in client.flow(0, 2) if frame.code == TRANSFER] == [settled] * 2
    totals = broker.totals.delivered[AMQP10, kind]
    assert vars(totals) == vars(Traffic(delivered=2, delivered_no_ack=2 * settled))
    assert [each for each, found in broker.totals.delivered.items() if found.delivered] == [(AMQP10, kind)]
    session = client.connection.sessions[0]
    assert [*session.unsettled] == ([] if settled else [0, 1])
    if not settled:
        assert session.unsettled[0].at <= client.connection.now()
        client.settle(0, RELEASE)
        client.flow(0, 1, count=2, seen=2)
        assert (totals.delivered, totals.redelivered) == (3, 1)


def test_a_redelivered_message_has_first_acquirer_false_and_delivery_counts(
    client: MemoryClient10, broker: Broker
) -> None:
    """In a message that is redelivered over AMQP 1.0, first-acquirer is false. If the message comes from a quorum
    queue, its delivery-count is the number of failed deliveries, and its annotation x-acquired-count is the number of
    all earlier deliveries.
    """
    queue = add(broker, "qq", x_queue_type="quorum")
    fill(queue, b"1")
    client.attach_receiver("/queues/qq")
    [first] = [frame.message for frame in client.flow(0, 1) if frame.code == TRANSFER]
    assert (first.header.first_acquirer, first.header.delivery_count) == (True, 0)
    assert Symbol("x-acquired-count") not in first.message_annotations
    client.settle(0, described(MODIFIED, True))
    [second] = [frame.message for frame in client.flow(0, 1, count=1, seen=1) if frame.code == TRANSFER]
    assert (second.header.first_acquirer, second.header.delivery_count) == (False, 1)
    assert second.message_annotations[Symbol("x-acquired-count")] == 1
    assert [type(key) for key in second.message_annotations] == [Symbol] * len(second.message_annotations)


def test_a_message_from_a_stream_is_annotated_with_its_offset(client: MemoryClient10, broker: Broker) -> None:
    """A message that the broker delivers from a stream over AMQP 1.0 has its offset in the annotation x-stream-offset.
    The message stays in the stream, so the broker does not keep its body in memory while the delivery is unsettled.
    """
    stream_with(broker, b"1", b"2")
    client.attach_receiver("/queues/s", *FIRST)
    found = [frame.message for frame in client.flow(0, 2) if frame.code == TRANSFER]
    assert [message.message_annotations[Symbol("x-stream-offset")] for message in found] == [0, 1]
    assert [each.entry.message.body for each in client.connection.sessions[0].unsettled.values()] == [b"", b""]


def test_an_unsettled_message_of_a_queue_is_requeued_when_the_link_is_detached(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """When an AMQP 1.0 receiver detaches its link, the broker requeues the link's unsettled messages, marked as
    redelivered, and removes the link's consumer from the queue.
    """
    fill(q, b"1")
    client.attach_receiver("/queues/q")
    client.flow(0, 5)
    assert (len(q), len(q.consumers)) == (0, 1)
    client.send(DETACH, UInt32(0), True)
    assert (len(q), len(q.consumers)) == (1, 0)
    client.attach_receiver("/queues/q", handle=1)
    [again] = client.flow(1, 1, seen=1)
    assert (again.message.header.first_acquirer, again.body) == (False, b"1")


@pytest.mark.parametrize("limit", ["exact", "less", "none"])
def test_a_message_larger_than_the_receivers_max_message_size_ends_the_session(
    client: MemoryClient10, q: BrokerQueue, limit: str
) -> None:
    """An AMQP 1.0 receiver gets a message whose size is exactly the receiver's max-message-size. If a message is
    larger, the broker ends the session with message-size-exceeded and requeues the message. A max-message-size of 0, or
    none, means no limit.
    """
    fill(q, b"x" * 100)
    client.attach_receiver("/queues/q", handle=1)
    [whole] = client.flow(1, 1)
    size = len(whole.payload)
    client.settle(0, RELEASE)
    client.send(DETACH, UInt32(1), True)
    # The delivery that is marked as redelivered is as large as the first one.
    largest = {"exact": size, "less": size - 2, "none": 0}[limit]
    client.attach_receiver("/queues/q", rest=(ULong(largest),))
    found = client.flow(0, 1, seen=1)
    if limit != "less":
        assert bodies(found) == [b"x" * 100]
        return
    assert bodies(found) == []
    assert found[-1].code == END
    condition, text = found[-1].error or ("", "")
    assert condition == "amqp:link:message-size-exceeded"
    assert str(text).endswith(f" bytes) > maximum message size ({largest} bytes)")
    assert str(text).startswith("message size (")
    assert len(q) == 1


def test_a_receiver_is_paused_while_it_reads_too_slowly(client: MemoryClient10, q: BrokerQueue) -> None:
    """While an AMQP 1.0 client does not read what the broker has sent, the broker holds back the messages of the
    client's receivers. The broker sends these messages once the client reads again.
    """
    fill(q, b"1")
    client.attach_receiver("/queues/q")
    client.connection.pause_writing()
    assert client.flow(0, 1) == []
    client.connection.resume_writing()
    assert bodies(client.received()) == [b"1"]


def test_a_receiver_is_paused_while_the_clients_incoming_window_is_closed(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """While an AMQP 1.0 client's incoming window is closed, the broker holds back the messages of the session's
    receivers. The broker sends these messages once the client opens the window.
    """
    fill(q, b"1")
    client.attach_receiver("/queues/q")
    assert client.flow(0, 1, window=0) == []
    assert bodies(client.flow(window=1)) == [b"1"]


def test_the_tag_of_an_amqp_1_0_consumer_is_the_handle_of_its_link(client: MemoryClient10, q: BrokerQueue) -> None:
    """The consumer of an AMQP 1.0 link has the link's handle as its consumer tag. Its priority is the link's property
    rabbitmq:priority, or 0 if the link does not have this property. The consumer is not exclusive.
    """
    client.attach_receiver("/queues/q", handle=3)
    client.attach_receiver("/queues/q", handle=4, rest=(None, None, None, {Symbol("rabbitmq:priority"): Int32(5)}))
    found: Any = [*q.consumers]
    assert [(each.tag, each.priority, each.exclusive, each.no_ack) for each in found] == [
        ("3", 0, False, False),
        ("4", 5, False, False),
    ]
    assert [each.arguments for each in found] == [{}, {"x-priority": 5}]
    assert [(each.name, each.address, each.queue_name) for each in found] == [
        ("link-3", "/queues/q", "q"),
        ("link-4", "/queues/q", "q"),
    ]
    assert {each.client for each in found} == {client.connection}
    assert [(each.filters, each.dynamic, each.largest) for each in found] == [({}, False, 0)] * 2


def test_a_temporary_queue_is_deleted_with_its_link(client: MemoryClient10, broker: Broker) -> None:
    """If attaching an AMQP 1.0 link has created a temporary queue, this queue is deleted when the client detaches the
    link. Any other queue is not deleted when a link to it is detached.
    """
    client.attach_receiver("/queues/q", handle=1)
    source = (None, None, None, True, None, None, None, None, None, Symbol("temporary-queue"))
    [answer] = client.attach_receiver(None, *source)
    name = str(answer.fields[5].value[0]).removeprefix("/queues/")
    [link] = broker.vhosts["/"].queues[name].consumers
    assert isinstance(link, OutgoingLink)
    assert (link.filters, link.dynamic) == ({}, True)
    client.send(DETACH, UInt32(0), True)
    client.send(DETACH, UInt32(1), True)
    assert [*broker.vhosts["/"].queues] == ["q"]


def test_deleting_a_queue_detaches_its_receivers(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, loop: asyncio.AbstractEventLoop
) -> None:
    """When a queue is deleted, the broker detaches the links of its AMQP 1.0 receivers with resource-deleted. It sends
    no detach frame for a link that the client has already detached.
    """
    client.attach_receiver("/queues/q", handle=2)
    client.attach_receiver("/queues/q", handle=3)
    client.send(DETACH, UInt32(3), True)
    loop.call_soon(broker.vhosts["/"].deletions.soon, q)
    found = client.received()
    assert [(frame.code, frame.fields[0], frame.error) for frame in found] == [
        (DETACH, 2, ("amqp:resource-deleted", None))
    ]


def test_a_link_that_the_client_has_detached_is_not_detached_again_when_its_queue_is_deleted(
    client: MemoryClient10, q: BrokerQueue, loop: asyncio.AbstractEventLoop
) -> None:
    """If an AMQP 1.0 client detaches a receiver's link while the link's queue is being deleted, the broker does not
    detach the link again. This is also the case if the client has attached a new link with the same handle.
    """
    client.attach_receiver("/queues/q")
    [link] = q.consumers
    client.send(DETACH, UInt32(0), True)
    client.attach_receiver("/queues/q")
    loop.call_soon(link.cancelled)
    assert client.received() == []


# Observers


@pytest.mark.parametrize("tracing", [True, False])
def test_the_firehose_copies_each_delivery(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, *, tracing: bool
) -> None:
    """While message tracing is on, the firehose gets a copy of each delivery over AMQP 1.0. The copy names the
    delivery's connection, channel and user, and says whether the message was redelivered. While tracing is off, there
    are no copies.
    """
    vhost = broker.vhosts["/"]
    copies = add(broker, "copies")
    vhost.bind(vhost.exchanges[TRACE_EXCHANGE], copies, "deliver.#", {})
    fill(q, b"1")
    vhost.tracing = tracing
    client.attach_receiver("/queues/q")
    client.flow(0, 2)
    client.settle(0, RELEASE)
    found = [entry.message for entry in copies.backlog.in_memory()]
    if not tracing:
        assert found == []
        return
    assert [(copy.routing_key, copy.body) for copy in found] == [("deliver.q", b"1")] * 2
    names = ("connection", "channel", "user", "redelivered")
    shown = [[copy.properties.headers[name] for name in names] for copy in found]
    assert shown == [[client.connection.name, 0, "guest", flag] for flag in (0, 1)]


class Watcher:
    """A live display that shows the messages at some positions."""

    def __init__(self, *positions: int) -> None:
        self.shown: dict[int, Any] = dict.fromkeys(positions)
        self.publishing: dict[int, Any] = {}
        self.skipped: set[bytes] = set()
        self.events: list[tuple[Any, ...]] = []

    def delivered(self, queue: Any, entry: Any, consumer: Any, *, no_ack: bool) -> None:
        self.events.append((queue.name, entry.position, consumer.tag, no_ack))

    def acknowledged(self, *_: object) -> None:
        """Do nothing."""

    def changed(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("settled", [False, True])
def test_each_delivery_of_a_shown_message_is_reported_to_a_live_display(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, *, settled: bool
) -> None:
    """The broker reports AMQP 1.0 deliveries to a live display, such as `mqtool ui`. It reports all deliveries from a
    stream. Of the deliveries from a queue, it reports only those of messages that the display shows.
    """
    stream = stream_with(broker, b"1")
    fill(q, b"1", b"2")
    [first, _] = q.backlog.in_memory()
    watcher: Any = Watcher(first.position)
    q.watcher = stream.watcher = watcher
    mode = SETTLED if settled else None
    client.attach_receiver("/queues/q", mode=mode)
    client.attach_receiver("/queues/s", *FIRST, handle=1, mode=mode)
    client.flow(0, 2)
    client.flow(1, 1, seen=2)
    assert watcher.events == [("q", first.position, "0", settled), ("s", 0, "1", settled)]


class Hooks:
    """Test support that records acknowledgements."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[str, bytes]] = []

    def acknowledge(self, queue: Any, entry: Any) -> bool:
        self.acknowledged.append((queue.name, entry.message.body))
        return True


@pytest.mark.parametrize("settled", [False, True])
def test_a_message_that_is_sent_settled_is_recorded_as_acknowledged_when_it_is_sent(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, *, settled: bool
) -> None:
    """While a test records what the embedded broker does, an AMQP 1.0 message from a queue or a stream is recorded as
    acknowledged when the broker sends it settled. A message that is sent unsettled is recorded as acknowledged when the
    client accepts it.
    """
    hooks: Any = Hooks()
    broker.hooks = hooks
    stream_with(broker, b"1")
    fill(q, b"2")
    mode = SETTLED if settled else None
    client.attach_receiver("/queues/s", *FIRST, mode=mode)
    client.attach_receiver("/queues/q", handle=1, mode=mode)
    client.flow(0, 1)
    client.flow(1, 1, seen=1)
    assert hooks.acknowledged == ([("s", b"1"), ("q", b"2")] if settled else [])
    if not settled:
        client.settle(0, ACCEPT)
        client.settle(1, ACCEPT)
        assert hooks.acknowledged == [("s", b"1"), ("q", b"2")]


# Filters of streams


def sql(text: str) -> tuple[Any, ...]:
    """The fields of a source with an SQL filter."""
    wanted = {**FIRST[6], Symbol("sql-filter"): Described(Symbol("amqp:sql-filter"), text)}
    return (*(None,) * 6, wanted)


def fill_with_subjects(stream: BrokerQueue, *subjects: str) -> None:
    """Publish a message for each of these values of the application property `a`."""
    for subject in subjects:
        whole = Amqp10Message(
            properties=BareProperties(), application_properties={"a": subject}, body=data_section(subject[:9].encode())
        )
        stream.publish(parse(whole.encode()).to("", stream.name, stream.profile))


def test_a_receiver_with_an_sql_filter_gets_only_the_messages_that_match(
    client: MemoryClient10, broker: Broker
) -> None:
    """If an AMQP 1.0 receiver sets an SQL filter when it attaches to a stream, it gets only the messages that match the
    filter. The broker's answer to attach contains the filters in effect.
    """
    stream = stream_with(broker)
    fill_with_subjects(stream, "x", "y", "x")
    [answer] = client.attach_receiver("/queues/s", *sql("a = 'x'"))
    assert {*answer.fields[5].value[7]} == {"offset", "sql-filter"}
    assert bodies(client.flow(0, 10)) == [b"x", b"x"]
    [link] = broker.vhosts["/"].queues["s"].consumers
    assert isinstance(link, OutgoingLink)
    assert {*link.filters} == {"offset", "sql-filter"}


def test_a_link_whose_filters_take_too_long_is_detached(client: MemoryClient10, broker: Broker) -> None:
    """If evaluating the filters of an AMQP 1.0 link takes too long for one message, the broker detaches the link with
    resource-limit-exceeded, and sends neither this message nor later messages over it.
    """
    stream = stream_with(broker)
    fill_with_subjects(stream, "a" * 100_000, "b")
    client.attach_receiver("/queues/s", *sql(f"a = 'b' OR a LIKE '%{'a_' * 1900}b%'"), handle=2)
    found = client.flow(2, 10)
    assert [(frame.code, frame.fields[0]) for frame in found] == [(DETACH, 2)]
    condition, text = found[0].error or ("", "")
    assert condition == "amqp:resource-limit-exceeded"
    assert str(text).startswith("the filters take too long: more than ")


# Single active consumers


@pytest.fixture
def sac(broker: Broker) -> BrokerQueue:
    """The quorum queue `sac` with a single active consumer."""
    return add(broker, "sac", x_queue_type="quorum", x_single_active_consumer=True)


def news(active: bool) -> dict[str, bool]:
    return {"rabbitmq:active": active}


def test_a_receiver_of_a_quorum_queue_is_told_whether_it_is_active(client: MemoryClient10, sac: BrokerQueue) -> None:
    """The broker tells an AMQP 1.0 receiver of a quorum queue with a single active consumer at once that it is the
    active one; and the others, when they first grant credit, that they are not. After that, the broker informs the
    receiver only if it becomes the active one, before it gets a message.
    """
    fill(sac, b"1")
    assert flows(client.attach_receiver("/queues/sac")) == [(0, 0, 0, 1, False, False, news(True))]
    assert [frame.code for frame in client.attach_receiver("/queues/sac", handle=1)] == [ATTACH]
    found = client.flow(1, 3)
    assert flows(found) == [(1, 0, 3, 0, False, False, news(False))]
    assert flows(client.flow(1, 3)) == []
    found = client.flow(0, 5, echo=True)
    assert (bodies(found), flows(found)) == ([b"1"], [(0, 1, 4, 0, False, False, None)])
    assert flows(client.flow(0, 4, count=1, seen=1, echo=True)) == [(0, 1, 4, 0, False, False, None)]
    found = client.send(DETACH, UInt32(0), True)
    assert (bodies(found), flows(found)) == ([b"1"], [(1, 0, 3, 0, False, False, news(True))])
    assert flows(client.flow(1, 5, count=1, seen=2)) == []


def test_the_answer_to_a_drain_says_whether_the_receiver_is_active(client: MemoryClient10, sac: BrokerQueue) -> None:
    """If an AMQP 1.0 receiver of a quorum queue with a single active consumer drains its first credit, the answer to
    the drain says that the receiver is not the active one.
    """
    client.attach_receiver("/queues/sac")
    client.attach_receiver("/queues/sac", handle=1)
    assert flows(client.flow(0, 3, drain=True)) == [(0, 3, 0, 0, True, False, None)]
    assert flows(client.flow(1, 3, drain=True)) == [(1, 3, 0, 0, True, False, news(False))]
    assert len(sac.consumers) == 2


def test_receivers_of_a_quorum_queue_without_x_single_active_consumer_are_active(
    client: MemoryClient10, broker: Broker
) -> None:
    """If a quorum queue is declared without x-single-active-consumer, the broker tells an AMQP 1.0 receiver of the
    queue that the receiver is active.
    """
    add(broker, "qq", x_queue_type="quorum")
    client.attach_receiver("/queues/qq")
    assert flows(client.flow(0, 3)) == [(0, 0, 3, 0, False, False, news(True))]


@pytest.mark.parametrize(("like", "kind"), [(Like.V4_2, "quorum"), (Like.V4_3, "classic")])
def test_only_receivers_of_quorum_queues_from_4_3_on_are_told_whether_they_are_active(
    loop: asyncio.AbstractEventLoop, like: Like, kind: str
) -> None:
    """If a classic queue has a single active consumer, the broker does not tell the queue's AMQP 1.0 receivers whether
    they are active. A broker that imitates a version of RabbitMQ before 4.3 does not tell receivers of a quorum queue
    either.
    """
    broker = broker_with(loop, PROFILES[like])
    add(broker, "sac", x_queue_type=kind, x_single_active_consumer=True)
    client = MemoryClient10(loop, broker)
    client.attach_receiver("/queues/sac")
    assert client.flow(0, 3) == []


def test_no_receiver_of_a_session_that_ends_is_told_that_it_becomes_active(
    client: MemoryClient10, sac: BrokerQueue
) -> None:
    """If an AMQP 1.0 session has two receivers of a queue with a single active consumer, and the client ends the
    session, the broker does not tell the second receiver that it has become active.
    """
    for handle in range(2):
        client.attach_receiver("/queues/sac", handle=handle)
        client.flow(handle, 3)
    assert [frame.code for frame in client.send(END)] == [END]
    assert len(sac.consumers) == 0


# Direct replies

_REPLIES = (
    None,
    None,
    Symbol("link-detach"),
    None,
    True,
    None,
    None,
    None,
    None,
    None,
    Symbol("rabbitmq:volatile-queue"),
)


@pytest.fixture
def replies(client: MemoryClient10) -> str:
    """The routing key of replies to a requester whose link has the handle 0."""
    [answer] = client.attach_receiver(*_REPLIES, mode=SETTLED)
    return str(answer.fields[5].value[0]).removeprefix("/queues/")


def reply(broker: Broker, key: str, body: bytes) -> None:
    """Send a direct reply."""
    header = ContentHeader.of(MessageProperties(b"\0\0"), len(body))
    asking = broker.reply_consumers[key.removeprefix(f"{DIRECT_REPLY_TO}.")]
    asking.deliver_reply(BrokerMessage(encode_address("", key), header, body))


def test_direct_replies_are_sent_settled_while_the_requester_has_credit(
    client: MemoryClient10, broker: Broker, replies: str
) -> None:
    """While the link of an AMQP 1.0 requester has credit, the broker sends direct replies over it, already settled. If
    the link has no credit, the broker drops direct replies.
    """
    reply(broker, replies, b"early")
    assert client.received() == []
    assert client.flow(0, 2) == []
    for body in (b"1", b"2", b"3"):
        reply(broker, replies, body)
    found = client.received()
    shown = [(frame.code, *frame.fields[:2], int.from_bytes(frame.fields[2]), frame.field(4)) for frame in found]
    assert shown == [(TRANSFER, 0, 0, 0, True), (TRANSFER, 0, 1, 1, True)]
    assert bodies(found) == [b"1", b"2"]
    assert client.connection.sessions[0].unsettled == {}


def test_a_requester_that_reads_slowly_gets_no_replies(client: MemoryClient10, broker: Broker, replies: str) -> None:
    """If an AMQP 1.0 requester reads so slowly that more than 16 MiB of data is waiting for it in the broker's send
    buffer, the broker drops direct replies to this requester. Once the buffer is empty again, the broker delivers
    further replies.
    """
    client.flow(0, 5)
    client.connection.write(b"x" * (16 * 1024 * 1024 + 1))
    reply(broker, replies, b"1")
    client.loop.run_until_complete(asyncio.sleep(0))
    client.writes.clear()
    assert client.received() == []
    reply(broker, replies, b"2")
    assert bodies(client.received()) == [b"2"]


def test_a_requester_can_drain_its_credit_and_ask_for_an_echo(
    client: MemoryClient10, broker: Broker, replies: str
) -> None:
    """If an AMQP 1.0 client drains the link on which it receives direct replies, the drain completes immediately, since
    direct replies are never queued. If the client sends a flow frame with echo=true on this link, the broker answers
    with a flow frame.
    """
    assert flows(client.flow(0, 3, echo=True)) == [(0, 0, 3, 0, False, False, None)]
    assert flows(client.flow(0, 3)) == []
    assert flows(client.flow(0, 3, drain=True, echo=True)) == [(0, 3, 0, 0, True, False, None)]
    assert flows(client.flow(0, 1, count=3, echo=True)) == [(0, 3, 1, 0, False, False, None)]
    assert flows(client.flow(window=0)) == []
    reply(broker, replies, b"1")
    assert client.received() == []


def test_a_requester_gets_no_replies_after_its_link_is_detached(
    client: MemoryClient10, broker: Broker, replies: str
) -> None:
    """When an AMQP 1.0 requester detaches the link on which it receives direct replies, the broker no longer delivers
    replies to the link's address. A new requester gets another address.
    """
    assert [f"{DIRECT_REPLY_TO}.{token}" for token in broker.reply_consumers] == [replies]
    [link] = broker.reply_consumers.values()
    assert isinstance(link, ReplyLink)
    assert (link.name, link.tag, link.queue_name) == ("link-0", replies, replies)
    assert (link.no_ack, link.largest, dict(link.filters)) == (True, 0, {})
    assert link.address == f"/queues/{replies}"
    client.send(DETACH, UInt32(0), True)
    assert broker.reply_consumers == {}
    other = MemoryClient10(client.loop, broker)
    [answer] = other.attach_receiver(*_REPLIES, mode=SETTLED)
    assert str(answer.fields[5].value[0]) != link.address
    assert len(replies) == len(DIRECT_REPLY_TO) + 1 + 24
