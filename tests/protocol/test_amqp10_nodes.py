"""AMQP 1.0: dynamic sources, and links whose queues and consumers change, frame by frame."""

import contextlib
import time

import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, value_section
from mqtool.codecs.amqp10_values import Array, Described, Milliseconds, Symbol, ULong
from mqtool.codecs.field_tables import UInt32
from tests.brokers import TestBroker
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    ATTACH,
    CLOSE,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    MODIFIED,
    RECEIVER,
    RELEASED,
    SENDER,
    SETTLED,
    SOURCE,
    TARGET,
    TRANSFER,
    Frame,
    RawAmqp10,
    described,
    message,
)
from tests.protocol.test_amqp10_frames import broker, client, embedded, ends_session, queue, quorum

__all__ = ["broker", "client", "embedded", "queue", "quorum"]

DETACHES = Symbol("link-detach")
#: In milliseconds. RabbitMQ may run in a container, and rounds times.
CLOCKS_MAY_DIFFER = 1_000


def attach_dynamic(client: RawAmqp10, capability: str, *, handle: int = 0) -> Frame:
    """Attach a receiver with a dynamic source; return the broker's attach frame."""
    fields = (None, DETACHES, UInt32(0), True, None, None, None, None, None, Array([Symbol(capability)]))
    source = described(SOURCE, None, *fields)
    client.receiving.add(handle)
    client.send(ATTACH, f"dynamic-{handle}", UInt32(handle), RECEIVER, SETTLED, None, source, described(TARGET))
    return client.expect(ATTACH)


@pytest.fixture(autouse=True)
def _is_there(broker: TestBroker) -> None:
    if ends_session(broker):
        pytest.skip("RabbitMQ has dynamic sources from 4.2 on")


def test_the_temporary_queue_of_a_dynamic_source_lives_as_long_as_its_link(client: RawAmqp10) -> None:
    """When an AMQP 1.0 receiver attaches with a dynamic source, the broker declares a temporary queue, to which
    messages can be sent. It deletes the queue when the receiver's link is detached.
    """
    source = attach_dynamic(client, "temporary-queue").field(5).value
    address = source[0]
    assert address.startswith("/queues/amq.dyn-raw-dynamic-0")
    assert (source[2], source[4]) == (DETACHES, True)
    client.flow(0, 10)
    client.attach_sender(address, handle=1)
    client.publish(0, handle=1)
    frames = {frame.code: frame for frame in (client.receive(), client.receive())}
    assert frames[TRANSFER].body == b"hello"
    assert frames[DISPOSITION].field(4).descriptor == ACCEPTED
    client.send(DETACH, UInt32(0), True)
    errors = {frame.field(0): frame.error for frame in (client.expect(DETACH), client.expect(DETACH))}
    assert errors == {0: None, 1: ("amqp:resource-deleted", None)}
    client.attach(RECEIVER, address, handle=2)
    client.expect(ATTACH)
    condition, _ = client.detached() or ("", "")
    assert condition == "amqp:not-found"


def test_a_direct_reply_reaches_the_requester_over_amqp_1_0(amqp_url: str, client: RawAmqp10) -> None:
    """An AMQP 1.0 receiver with a volatile dynamic source (direct reply-to) gets an address from the broker. The
    receiver gets the replies that another client sends to this address, on a link to it or to none. A reply is accepted
    even if the receiver is gone.
    """
    source = attach_dynamic(client, "rabbitmq:volatile-queue").field(5).value
    address = source[0]
    assert address.startswith("/queues/amq.rabbitmq.reply-to.")
    assert (source[2], source[4]) == (DETACHES, True)
    client.flow(0, 10, echo=True)
    client.expect(FLOW)
    other = RawAmqp10(amqp_url)
    for number, (target, to) in enumerate([(None, address), (address, None)]):
        other.attach_sender(target, handle=number)
        assert other.published(number, message(b"reply", to=to), handle=number).descriptor == ACCEPTED
        got = client.expect(TRANSFER)
        assert (got.body, got.field(4)) == (b"reply", True)
    client.socket.close()
    assert other.published(2, handle=1).descriptor == ACCEPTED


def test_an_amqp_1_0_client_can_reply_to_an_amqp_0_9_1_client(client: RawAmqp10, channel: BlockingChannel) -> None:
    """An AMQP 1.0 client can reply to a request that was sent over AMQP 0-9-1 with direct reply-to."""
    replies = []
    channel.basic_consume("amq.rabbitmq.reply-to", lambda *given: replies.append(given[3]), auto_ack=True)
    channel.queue_declare("rpc")
    channel.basic_publish("", "rpc", b"q", channel_properties())
    client.attach_receiver("/queues/rpc")
    asked = client.expect(TRANSFER).message.properties
    client.attach_sender(asked.reply_to, handle=1)
    assert client.published(0, message(b"answer"), handle=1).descriptor == ACCEPTED
    channel.connection.process_data_events(time_limit=60)
    assert replies == [b"answer"]


def channel_properties() -> object:
    from pika import BasicProperties

    return BasicProperties(reply_to="amq.rabbitmq.reply-to")


def test_each_receiver_of_a_single_active_consumer_queue_learns_whether_it_is_active(
    broker: TestBroker, client: RawAmqp10, channel: BlockingChannel
) -> None:
    """From RabbitMQ 4.3 on, an AMQP 1.0 receiver of a quorum queue with x-single-active-consumer gets a flow frame
    whose property rabbitmq:active says whether this receiver is the active one. When the active receiver detaches,
    another receiver becomes active, and gets a flow frame with rabbitmq:active set to true.
    """
    if not broker.differs_since("4.3", "consumers of quorum queues are told"):
        pytest.skip("from 4.3 on")
    channel.queue_declare("sac", durable=True, arguments={"x-queue-type": "quorum", "x-single-active-consumer": True})
    client.attach_receiver("/queues/sac")
    assert client.receive().field(10) == {"rabbitmq:active": True}
    client.attach_receiver("/queues/sac", handle=1, credit=0)
    client.flow(1, 5)
    assert client.receive().field(10) == {"rabbitmq:active": False}
    client.send(DETACH, UInt32(0), True)
    frames = [client.receive(), client.receive()]
    assert {frame.code for frame in frames} == {DETACH, FLOW}
    assert next(frame for frame in frames if frame.code == FLOW).field(10) == {"rabbitmq:active": True}


def test_deleting_a_queue_detaches_its_amqp_1_0_senders(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """When a queue is deleted, the broker detaches the links of the queue's AMQP 1.0 senders with the error
    resource-deleted.
    """
    client.attach_sender(queue)
    assert client.published(0).descriptor == ACCEPTED
    channel.queue_delete("q")
    assert client.detached() == ("amqp:resource-deleted", None)


def test_the_reply_to_a_queue_deletion_comes_before_the_detach_frames(client: RawAmqp10, queue: str) -> None:
    """If a client deletes a queue over the AMQP 1.0 management node, the broker sends the reply before it detaches the
    client's links to this queue.
    """
    # As in rabbit_amqp_session of RabbitMQ 4.3.5, where links learn of the deletion by a later event.
    client.attach_sender(queue, handle=1)
    client.attach_receiver(queue, handle=2)
    ends, paired = (described(SOURCE, "/management"), described(TARGET, "/management")), {Symbol("paired"): True}
    for handle, role, count in ((3, SENDER, UInt32(0)), (4, RECEIVER, None)):
        fields = (SETTLED, None, *ends, None, None, count, None, None, None, paired)
        client.send(ATTACH, "pair", UInt32(handle), role, *fields)
        client.expect(ATTACH)
        if role is SENDER:
            client.expect(FLOW)
    client.flow(4, 5)
    deletion = BareProperties(message_id="1", to="/queues/q", subject="DELETE", reply_to="$me")
    client.publish(0, Amqp10Message(properties=deletion, body=value_section(None)).encode(), handle=3, settled=True)
    assert client.expect(TRANSFER).message.properties.subject == "200"
    assert {client.expect(DETACH).field(0) for _ in range(2)} == {1, 2}


def test_a_message_that_an_amqp_1_0_receiver_rejects_is_dead_lettered_with_its_history(
    client: RawAmqp10, quorum: str
) -> None:
    """A message that an AMQP 1.0 receiver rejects is dead-lettered with the annotation x-opt-deaths. The annotation
    contains the queue, the reason, the count, and the times of the first and the last death in milliseconds.
    """
    before = int(time.time() * 1000)
    client.attach_sender(quorum, handle=1)
    client.published(0, handle=1)
    client.attach_receiver(quorum)
    client.expect(TRANSFER)
    client.settle(0, described(0x25))
    client.attach_receiver("/queues/dead", handle=2)
    got = client.expect(TRANSFER).message
    assert got.message_annotations[Symbol("x-last-death-queue")] == "qq"
    (death,) = got.message_annotations[Symbol("x-opt-deaths")]
    assert (death["queue"], death["reason"], death["count"]) == ("qq", "rejected", 1)
    times = [death["first-time"], death["last-time"]]
    assert [type(each) for each in times] == [Milliseconds] * 2
    assert before - CLOCKS_MAY_DIFFER <= times[0] == times[1] <= time.time() * 1000 + CLOCKS_MAY_DIFFER


def test_the_broker_ignores_unknown_delivery_ids_in_a_disposition(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """If an AMQP 1.0 receiver's disposition covers delivery ids that do not exist, the broker ignores these ids, and
    settles the deliveries that exist.
    """
    channel.basic_publish("", "q", b"1")
    client.attach_receiver(queue)
    first = client.expect(TRANSFER).field(1)
    client.settle(first + 5, described(ACCEPTED), first + 9)
    client.settle(first, described(ACCEPTED), first + 100)
    client.settle(first, described(ACCEPTED), settled=False)
    channel.basic_publish("", "q", b"2")
    got = client.receive()
    if got.code == DISPOSITION:
        got = client.receive()
    assert got.body == b"2"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_outcome_modified_with_delivery_failed_raises_the_delivery_count(
    broker: TestBroker, client: RawAmqp10, channel: BlockingChannel, kind: str
) -> None:
    """The AMQP 1.0 outcome `modified` with delivery-failed raises a message's delivery count in quorum queues and, from
    RabbitMQ 4.3 on, also in classic queues.
    """
    channel.queue_declare("failing", durable=True, arguments={"x-queue-type": kind})
    channel.basic_publish("", "failing", b"x")
    client.attach_receiver("/queues/failing")
    counts = []
    for number, has_failed in enumerate((True, False, True)):
        counts.append(client.expect(TRANSFER).message.header.delivery_count)
        client.settle(number, described(MODIFIED, has_failed))
    counts.append(client.expect(TRANSFER).message.header.delivery_count)
    does_count = kind == "quorum" or broker.differs_since("4.3", "classic queues count, too")
    assert counts == ([0, 1, 1, 2] if does_count else [0, 0, 0, 0])


def test_a_modified_message_is_not_redelivered_before_its_x_opt_delivery_time(
    broker: TestBroker, client: RawAmqp10, channel: BlockingChannel
) -> None:
    """From RabbitMQ 4.3 on, if an AMQP 1.0 receiver settles a message of a quorum queue with the outcome `modified`
    and the annotation x-opt-delivery-time, in milliseconds since 1970, the queue does not redeliver the message
    before this time.
    """
    # As in rabbit_fifo of RabbitMQ 4.3.0 and 4.3.5, and its test modified_quorum_queue_delivery_time.
    channel.queue_declare("later", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish("", "later", b"1")
    client.attach_receiver("/queues/later")
    client.expect(TRANSFER)
    due = int(time.time() * 1000) + 300
    client.settle(0, described(MODIFIED, False, False, {Symbol("x-opt-delivery-time"): Milliseconds(due)}))
    assert client.expect(TRANSFER).message.header.delivery_count == 0
    if broker.differs_since("4.3", "delayed retry"):
        assert time.time() * 1000 >= due - 5
    client.settle(1, described(MODIFIED, False, False, {Symbol("x-opt-delivery-time"): 1}))
    assert client.expect(TRANSFER).body == b"1"


def test_x_opt_delivery_time_takes_precedence_over_a_queues_x_delayed_retry_max(
    broker: TestBroker, client: RawAmqp10, channel: BlockingChannel
) -> None:
    """From RabbitMQ 4.3 on, if an AMQP 1.0 receiver settles a message of a quorum queue with the outcome `modified`
    and an x-opt-delivery-time of tomorrow, the queue keeps the message until tomorrow, even if the queue's
    x-delayed-retry-max is 1 ms. The queue still delivers later messages.
    """
    # As in rabbit_fifo of RabbitMQ 4.3.0 and 4.3.5.
    if not broker.differs_since("4.3", "delayed retry"):
        pytest.skip("from 4.3 on")
    arguments = {"x-queue-type": "quorum", "x-delayed-retry-type": "all", "x-delayed-retry-min": 1}
    channel.queue_declare("later", durable=True, arguments={**arguments, "x-delayed-retry-max": 1})
    channel.basic_publish("", "later", b"tomorrow")
    client.attach_receiver("/queues/later")
    client.expect(TRANSFER)
    tomorrow = ULong(int(time.time() + 86_400) * 1000)
    client.settle(0, described(MODIFIED, False, False, {Symbol("x-opt-delivery-time"): tomorrow}))
    for number, body in enumerate((b"1", b"2", b"3")):
        channel.basic_publish("", "later", body)
        assert client.expect(TRANSFER).body == body
        client.settle(1 + number, described(ACCEPTED))


def acquired(frame: Frame) -> int:
    """Return how many times a message was requeued, by its annotation x-acquired-count; 0 if it has none."""
    return int(frame.message.message_annotations.get(Symbol("x-acquired-count"), 0))


@pytest.mark.parametrize("state", [described(RELEASED), described(MODIFIED, False)], ids=["released", "modified"])
@pytest.mark.parametrize("pipelined", [True, False], ids=["detach at once", "detach later"])
@pytest.mark.parametrize("ending", [DETACH, END, CLOSE], ids=["detach", "end", "close"])
def test_a_message_released_on_a_link_with_credit_is_requeued_twice_if_the_link_then_ends(
    broker: TestBroker, channel: BlockingChannel, state: Described, ending: int, *, pipelined: bool
) -> None:
    """If an AMQP 1.0 receiver releases or modifies a message of a quorum queue while its link has credit left, the
    queue delivers the message on this link again. From RabbitMQ 4.3 on, if the link, its session or its connection
    then ends, the broker requeues the message a second time, so x-acquired-count rises by 2. If the link has no
    credit left, x-acquired-count rises only by 1.
    """
    if not broker.differs_since("4.3", "x-acquired-count"):
        pytest.skip("from 4.3 on")
    channel.queue_declare("again", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish("", "again", b"x")
    counts = []
    for credit in (1, 1, 10, 10, 10):
        with RawAmqp10(broker.url) as client:
            client.attach_receiver("/queues/again", credit=credit)
            counts.append(acquired(client.expect(TRANSFER)))
            with client.in_one_write() if pipelined else contextlib.nullcontext():
                client.settle(0, state)
                if credit > 1 and not pipelined:
                    assert acquired(client.expect(TRANSFER)) == counts[-1] + 1
                client.send(ending, *((UInt32(0), True) if ending == DETACH else ()))
            while client.receive().code != ending:
                pass
    assert counts == [0, 1, 2, 4, 6]


def test_classic_queues_accept_only_valid_values_of_x_queue_leader_locator(
    client: RawAmqp10, channel: BlockingChannel
) -> None:
    """The broker accepts the argument `x-queue-leader-locator` of a classic queue if its value is valid, such as
    `balanced`. If the value is invalid, the broker refuses queue.declare and closes the channel.
    """
    locator = {"x-queue-type": "classic", "x-queue-leader-locator": "balanced"}
    channel.queue_declare("located", durable=True, arguments=locator)
    with pytest.raises(ChannelClosedByBroker, match="invalid_queue_locator_arg"):
        channel.queue_declare("misplaced", durable=True, arguments={**locator, "x-queue-leader-locator": "odd"})
    channel.connection.channel().queue_delete("located")
