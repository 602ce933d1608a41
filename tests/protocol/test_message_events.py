"""GET /api/mqtool/events reports each thing that can happen to a message, for the page of `mqtool ui`."""

import base64
import gc
import itertools
import json
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pika
import pytest
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.codecs.amqp10_message import data_section
from tests.brokers import large
from tests.cli.shell import wait_until
from tests.protocol.conftest import Api
from tests.protocol.raw_amqp10 import CLOSE, SENDER, TRANSFER, RawAmqp10
from tests.protocol.raw_client import RawClient
from tests.protocol.raw_stream import DELETE, OPEN, STORE_OFFSET, RawStream, at, string

Event = dict[str, Any]


class Events:
    """Reads the events of a broker, as a page does."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.snapshot = self.get()
        self._number = self.snapshot["number"]
        self._seen: list[Event] = []

    def get(self, credentials: str = "guest:guest", **query: object) -> Any:
        text = "&".join(f"{name}={value}" for name, value in query.items())
        encoded = base64.b64encode(credentials.encode()).decode()
        request = urllib.request.Request(
            f"{self._broker.urls['http']}/api/mqtool/events/%2F?{text}", headers={"Authorization": f"Basic {encoded}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def until(self, *wanted: str) -> list[Event]:
        """Return the events since the last call, once the last ones are of these kinds."""

        def arrived() -> bool:
            found = self.get(after=self._number, timeout=0)
            self._number = found["number"]
            self._seen += found["events"]
            return [each["what"] for each in self._seen][-len(wanted) :] == list(wanted)

        wait_until(arrived, lambda: f"{wanted} in {[each['what'] for each in self._seen]}", 60)
        found, self._seen = self._seen, []
        assert [each["what"] for each in found] == list(wanted)
        return found


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(management_port=0, stream_port=0) as broker:
        yield broker


@pytest.fixture
def channel(broker: EmbeddedBroker) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


def test_events_follow_a_message_from_publish_to_acknowledgement(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """In /api/mqtool/events, the events `ready`, `delivered`, `requeued` and `acknowledged` of a message in a queue
    all contain the same number, `copy`, by which a program can follow the message. The event `published` contains the
    message's properties and body.
    """
    channel.queue_declare("q")
    events = Events(broker)
    channel.basic_publish("", "q", b"hello", pika.BasicProperties(message_id="m1", headers={"n": 1}))
    published, ready = events.until("published", "ready")
    assert published["paths"] == [["", "q"]]
    assert published["details"] == {
        "exchange": "", "routing_key": "q", "headers": {"n": 1}, "properties": {"message_id": "m1"}, "size": 5,
        "body": "hello",
    }  # fmt: skip
    assert published["message"] == ready["message"]
    method, _, _ = channel.basic_get("q")
    (delivered,) = events.until("delivered")
    assert (delivered["queue"], delivered["copy"], delivered["consumer"]) == ("q", ready["copy"], None)
    channel.basic_nack(method.delivery_tag)
    (requeued,) = events.until("requeued")
    assert (requeued["copy"], requeued["why"]) == (ready["copy"], "returned")
    method, _, _ = channel.basic_get("q")
    (delivered,) = events.until("delivered")
    assert delivered["redelivered"]
    channel.basic_ack(method.delivery_tag)
    (acknowledged,) = events.until("acknowledged")
    assert acknowledged["copy"] == ready["copy"]


def test_events_name_a_consumer_by_its_channel_and_consumer_tag(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """In /api/mqtool/events, the event `delivered` names the consumer by its channel and its consumer tag."""
    channel.queue_declare("q")
    events = Events(broker)
    channel.basic_consume("q", lambda *_: None, auto_ack=True, consumer_tag="me")
    channel.basic_publish("", "q", b"x")
    *_, delivered = events.until("published", "ready", "delivered")
    assert delivered["no_ack"]
    (listed,) = Api(broker.urls["http"])("GET", "consumers")[1]
    assert delivered["consumer"] == f"{listed['channel_details']['name']}/{listed['consumer_tag']}"


def test_events_name_the_exchanges_that_a_message_passes_through(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """In /api/mqtool/events, the event `published` lists each path of the message from exchange to queue, including the
    exchanges bound in between and an alternate exchange.
    """
    channel.exchange_declare("rest", "fanout")
    channel.exchange_declare("first", "direct", arguments={"alternate-exchange": "rest"})
    channel.exchange_declare("second", "fanout")
    channel.exchange_bind("second", "first", "k")
    for queue, exchange, key in (("a", "first", "k"), ("b", "second", ""), ("c", "rest", "")):
        channel.queue_declare(queue)
        channel.queue_bind(queue, exchange, key)
    events = Events(broker)
    channel.basic_publish("first", "k", b"x")
    published, *_ = events.until("published", "ready", "ready")
    assert sorted(published["paths"]) == [["first", "a"], ["first", "second", "b"]]
    channel.basic_publish("first", "other", b"x")
    published, _ = events.until("published", "ready")
    assert published["paths"] == [["first", "rest", "c"]]


def test_events_report_returned_dropped_and_refused_messages(broker: EmbeddedBroker, channel: BlockingChannel) -> None:
    """In /api/mqtool/events, an unroutable message appears as `dropped` or, if it is mandatory, as `returned`. A
    message that a full queue rejects appears as `refused`.
    """
    channel.queue_declare("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    events = Events(broker)
    channel.basic_publish("", "nowhere", b"x")
    events.until("published", "dropped")
    channel.basic_publish("", "nowhere", b"x", mandatory=True)
    events.until("published", "returned")
    channel.basic_publish("", "full", b"x")
    events.until("published", "refused")


def test_events_report_a_message_to_an_exchange_that_does_not_exist(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """If a message is published to an exchange that does not exist, /api/mqtool/events has only one event for it:
    `unknown-exchange`. This event contains the exchange, the publisher's protocol and the body.
    """
    channel.queue_declare("q")
    events = Events(broker)
    channel.basic_publish("nowhere", "q", b"x")
    (unknown,) = events.until("unknown-exchange")
    assert (unknown["details"]["exchange"], unknown["details"]["body"]) == ("nowhere", "x")
    assert unknown["from"]["protocol"] == "AMQP 0-9-1"


def test_events_say_whether_a_connection_was_closed_or_lost(broker: EmbeddedBroker) -> None:
    """In /api/mqtool/events, the event `requeued` contains the reason `closed` if the client closed its channel or
    connection, and the reason `lost` if the connection was lost.
    """
    with RawAmqp10(broker.url) as client, pika.BlockingConnection(pika.URLParameters(broker.url)) as publisher:
        publisher.channel().queue_declare("q", durable=True)
        events = Events(broker)
        publisher.channel().basic_publish("", "q", b"x")
        events.until("published", "ready")
        for number, (end, why) in enumerate(
            (
                (lambda channel: channel.close(), "closed"),
                (lambda channel: channel.connection.close(), "closed"),
                (lambda channel: channel.connection._impl._transport._sock.shutdown(2), "lost"),
            )
        ):
            opened = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
            assert opened.basic_get("q")[0] is not None
            end(opened)
            assert events.until("delivered", "requeued")[1]["why"] == why, number
        client.attach_receiver("/queues/q", credit=1)
        client.expect(TRANSFER)
        client.send(CLOSE)
        assert events.until("delivered", "requeued")[1]["why"] == "closed"


def test_events_say_whether_a_publisher_uses_confirms(broker: EmbeddedBroker, channel: BlockingChannel) -> None:
    """In /api/mqtool/events, the event `published` says whether the publisher of an AMQP 0-9-1 message uses publisher
    confirms.
    """
    events = Events(broker)
    channel.basic_publish("", "nowhere", b"x")
    assert events.until("published", "dropped")[0]["from"]["confirms"] is False
    channel.confirm_delivery()
    channel.basic_publish("", "nowhere", b"x")
    assert events.until("published", "dropped", "confirmed")[0]["from"]["confirms"] is True


@pytest.mark.parametrize("queue", ["classic", "quorum"])
def test_events_report_the_confirms_that_the_broker_sends(broker: EmbeddedBroker, queue: str) -> None:
    """In /api/mqtool/events, each basic.ack or basic.nack that the broker sends to a publisher appears as the event
    `confirmed`. This event contains the messages concerned and their number, and says whether they were nacked.
    """
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": queue})
        channel.queue_declare("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
        channel.confirm_delivery()
        events = Events(broker)
        channel.basic_publish("", "jobs", b"x")
        published, _, confirmed = events.until("published", "ready", "confirmed")
        assert confirmed["messages"] == [published["message"]]
        assert (confirmed["count"], confirmed["nack"]) == (1, False)
        assert confirmed["from"] == published["from"]
        with pytest.raises(pika.exceptions.NackError):
            channel.basic_publish("", "full", b"x")
        published, _, confirmed = events.until("published", "refused", "confirmed")
        assert confirmed["messages"] == [published["message"]]
        assert (confirmed["count"], confirmed["nack"]) == (1, True)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("", "nowhere", b"x", mandatory=True)
        assert events.until("published", "returned", "confirmed")[2]["nack"] is False


def test_events_report_how_many_messages_a_confirm_covers(broker: EmbeddedBroker) -> None:
    """If a publisher does not wait for confirms, the broker can confirm several messages with one basic.ack. The
    event `confirmed` in /api/mqtool/events then contains the number of these messages, even if some of them have no
    events of their own.
    """
    events = Events(broker)
    with RawClient(broker.url) as client:
        for method, answer in [
            (commands.Queue.Declare(queue="jobs"), commands.Queue.DeclareOk),
            (commands.Confirm.Select(), commands.Confirm.SelectOk),
        ]:
            client.send(method)
            client.expect(answer)
        publish = commands.Basic.Publish(routing_key="jobs")
        one = [publish, ContentHeader(body_size=1), ContentBody(b"x")]
        client.socket.sendall(b"".join(frame.marshal(each, 1) for each in one) * 200)
        confirms = [client.expect(commands.Basic.Ack)]
        while confirms[-1].delivery_tag < 200:
            confirms.append(client.expect(commands.Basic.Ack))
    found = events.get(after=events.snapshot["number"], timeout=0)["events"]
    shown = [each["message"] for each in found if each["what"] == "published"]
    confirmed = [each for each in found if each["what"] == "confirmed"]
    assert [number for each in confirmed for number in each["messages"]] == shown
    assert len(shown) < 200
    tags = [0, *(each.delivery_tag for each in confirms)]
    sizes = [tag - before for before, tag in itertools.pairwise(tags)]
    assert [each["count"] for each in confirmed] == sizes[: len(confirmed)]


def test_events_report_a_delayed_confirm_once_it_is_sent(broker: EmbeddedBroker) -> None:
    """While the embedded broker's fault `delay_confirms` is in force, /api/mqtool/events does not report that a message
    is confirmed. The event `confirmed` appears once the fault has ended and the broker has sent the confirm.
    """
    events = Events(broker)
    with RawClient(broker.url) as client:
        client.send(commands.Confirm.Select())
        client.expect(commands.Confirm.SelectOk)
        with broker.faults.delay_confirms():
            publish = [commands.Basic.Publish(routing_key="nowhere"), ContentHeader(body_size=0), commands.Basic.Qos()]
            client.socket.sendall(b"".join(frame.marshal(each, 1) for each in publish))
            client.expect(commands.Basic.QosOk)
            events.until("published", "dropped")
        client.expect(commands.Basic.Ack)
        events.until("confirmed")


@large
def test_a_channel_that_is_closed_before_its_message_is_confirmed_takes_no_memory(broker: EmbeddedBroker) -> None:
    """If a publisher disconnects before the broker has confirmed its message, the broker frees the memory of the
    publisher's channel, even if a program is reading /api/mqtool/events.
    """

    def channels() -> weakref.WeakSet[BrokerChannel]:
        return weakref.WeakSet(each for each in gc.get_objects() if isinstance(each, BrokerChannel))

    events = Events(broker)
    before = [*channels()]
    with broker.faults.delay_confirms():
        with RawClient(broker.url) as client:
            client.send(commands.Confirm.Select())
            client.expect(commands.Confirm.SelectOk)
            publish = [commands.Basic.Publish(routing_key="nowhere"), ContentHeader(body_size=0)]
            client.socket.sendall(b"".join(frame.marshal(each, 1) for each in publish))
            events.until("published", "dropped")
            opened = weakref.WeakSet(each for each in channels() if each not in before)
            assert len(opened) == 1
        wait_until(lambda: Api(broker.urls["http"])("GET", "connections")[1] == [], "the end of the connection")

    def is_freed() -> bool:
        events.get()  # otherwise, the broker would stop watching
        gc.collect()
        return not opened

    wait_until(is_freed, "the channel's memory to be freed")


def test_events_report_an_unroutable_amqp_1_0_message_as_returned_or_dropped(broker: EmbeddedBroker) -> None:
    """In /api/mqtool/events, an unroutable AMQP 1.0 message appears as `returned` if it was sent unsettled, and as
    `dropped` if it was sent settled.
    """
    events = Events(broker)
    with RawAmqp10(broker.url) as client:
        client.attach_sender("/exchanges/amq.direct/nobody")
        client.published(0)
        events.until("published", "returned")
        client.publish(1, settled=True)
        events.until("published", "dropped")


def test_events_name_the_protocol_of_publishers_and_consumers(broker: EmbeddedBroker, channel: BlockingChannel) -> None:
    """In /api/mqtool/events, the event `published` names the publisher's protocol, and the event `delivered` names the
    consumer's protocol and connection.
    """
    channel.queue_declare("q", durable=True)
    events = Events(broker)
    with RawAmqp10(broker.url) as client:
        client.attach_sender("/queues/q")
        client.published(0)
        channel.basic_consume("q", lambda *_: None, auto_ack=True)
        published, _, delivered = events.until("published", "ready", "delivered")
        assert (published["from"]["protocol"], delivered["to"]["protocol"]) == ("AMQP 1-0", "AMQP 0-9-1")
        channel.cancel()
        assert delivered["consumer"].startswith(delivered["to"]["connection"])


def test_events_report_the_largest_link_credit_of_each_amqp_1_0_consumer(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """A response from /api/mqtool/events contains, for each AMQP 1.0 consumer that has granted link credit, the largest
    credit granted so far. Deliveries do not reduce this number. Consumers that have granted no credit are not listed.
    """
    channel.queue_declare("q", durable=True)
    events = Events(broker)
    with RawAmqp10(broker.url) as client:
        client.attach_receiver("/queues/q", credit=3)
        client.attach_receiver("/queues/q", credit=0, handle=1)
        channel.basic_publish("", "q", b"x")
        *_, delivered = events.until("published", "ready", "delivered")
        counts = events.get(after=events.snapshot["number"], timeout=0)
        assert counts["credit"] == [[delivered["consumer"], 3]]


@pytest.mark.parametrize(
    ("arguments", "reason"), [({"x-message-ttl": 1}, "expired"), ({"x-max-length": 0}, "maxlen")], ids=str
)
def test_events_show_a_dead_letter_and_the_queue_that_it_came_from(
    broker: EmbeddedBroker, channel: BlockingChannel, arguments: dict[str, int], reason: str
) -> None:
    """In /api/mqtool/events, a dead letter appears first as `dead-lettered`, with the reason and the dead-letter
    exchange. It then appears as `published`, with the queue from which it was dead-lettered.
    """
    channel.queue_declare("dead")
    to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("q", arguments={**arguments, **to_dead})
    events = Events(broker)
    channel.basic_publish("", "q", b"x")
    _, ready, died, published, _ = events.until("published", "ready", "dead-lettered", "published", "ready")
    assert (died["copy"], died["reason"], died["exchange"]) == (ready["copy"], reason, "")
    assert published["from"] == {"queue": "q", "reason": reason}
    assert published["paths"] == [["", "dead"]]


def test_events_report_discarded_and_purged_messages(broker: EmbeddedBroker, channel: BlockingChannel) -> None:
    """If a client rejects a message without requeueing it, and the queue has no dead-letter exchange, the message
    appears in /api/mqtool/events as `discarded`. A purge appears as `purged`, with the name of the queue.
    """
    channel.queue_declare("q")
    channel.basic_publish("", "q", b"x")
    channel.basic_publish("", "q", b"y")
    method, _, _ = channel.basic_get("q")
    events = Events(broker)
    # Messages that were in the queue before are listed as well; only the delivered one has a consumer.
    assert [(each["queue"], "consumer" in each, each["details"]["body"]) for each in events.snapshot["waiting"]] == [
        ("q", True, "x"),
        ("q", False, "y"),
    ]
    channel.basic_reject(method.delivery_tag, requeue=False)
    (discarded,) = events.until("discarded")
    assert discarded["reason"] == "rejected"
    channel.queue_purge("q")
    (purged,) = events.until("purged")
    assert purged["queue"] == "q"


def test_events_report_the_time_until_which_a_message_is_delayed(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """In /api/mqtool/events, the event `delayed` contains the time at which the message is due. Until then, the list
    of waiting messages in each response contains the message and its exchange.
    """
    channel.exchange_declare("late", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    channel.queue_declare("q")
    channel.queue_bind("q", "late")
    events = Events(broker)
    channel.basic_publish("late", "", b"x", pika.BasicProperties(headers={"x-delay": 3000}))
    published, delayed = events.until("published", "delayed")
    assert 2_990 <= delayed["until"] - published["t"] <= 10_000
    assert [each["exchange"] for each in events.get()["waiting"]] == ["late"]
    released, _ = events.until("published", "ready")
    assert released["from"] == {"exchange": "late", "copy": delayed["copy"]}


def test_events_report_that_a_delayed_message_or_dead_letter_is_dropped(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """If a dead letter, or a delayed message that is due, reaches no queue, it appears in /api/mqtool/events as
    `published` and then as `dropped`.
    """
    channel.exchange_declare("late", "x-delayed-message", arguments={"x-delayed-type": "direct"})
    dead = {"x-dead-letter-exchange": "amq.direct", "x-message-ttl": 1}
    channel.queue_declare("q", arguments=dead)
    events = Events(broker)
    channel.basic_publish("late", "nowhere", b"x", pika.BasicProperties(headers={"x-delay": 1}))
    _, _, released, dropped = events.until("published", "delayed", "published", "dropped")
    assert dropped["message"] == released["message"]
    channel.basic_publish("", "q", b"x")
    *_, letter, dropped = events.until("published", "ready", "dead-lettered", "published", "dropped")
    assert dropped["message"] == letter["message"]


def test_events_report_appended_and_read_messages_of_a_stream(broker: EmbeddedBroker, channel: BlockingChannel) -> None:
    """In /api/mqtool/events, a message in a stream appears as `appended` when it is published, and as `read` when it is
    delivered, both times with its offset. Acknowledging the message causes no event.
    """
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    channel.basic_qos(prefetch_count=10)
    events = Events(broker)
    channel.basic_consume(
        "s", lambda _, method, *__: channel.basic_ack(method.delivery_tag), arguments={"x-stream-offset": "first"}
    )
    channel.basic_publish("", "s", b"x")
    _, appended, read = events.until("published", "appended", "read")
    assert appended["copy"] == read["copy"] == 0
    channel.connection.process_data_events(10)  # acknowledges the message
    channel.basic_qos(prefetch_count=10)  # answered after the acknowledgement
    assert events.until() == []


def connection_of(broker: EmbeddedBroker, protocol: str) -> str:
    """Return the name that the management API gives to the only connection with this protocol."""
    connections = Api(broker.urls["http"])("GET", "connections")[1]
    (name,) = [each["name"] for each in connections if each["protocol"] == protocol]
    return str(name)


def with_stream(broker: EmbeddedBroker) -> RawStream:
    """Return a client of the stream protocol that has declared the stream `s`."""
    address = urllib.parse.urlsplit(broker.urls["stream"])
    client = RawStream(address.hostname or "", address.port or 0)
    client.log_in()
    client.request(OPEN, string("/"))
    client.create("s")
    return client


def test_stream_protocol_events_name_no_exchange_and_the_response_counts_deliveries(broker: EmbeddedBroker) -> None:
    """If a message is published over the stream protocol, its event `published` in /api/mqtool/events names the
    stream, but no exchange. The response also contains the number of messages that each consumer of the stream has
    received.
    """
    with closing(with_stream(broker)) as client:
        events = Events(broker)
        client.declare_publisher(0, "s")
        client.publish(0, 0, data_section(b"a"), data_section(b"b"))
        client.confirmed(2)
        published, appended, *_ = events.until("published", "appended", "published", "appended")
        assert (published["paths"], published["message"]) == ([["s"]], appended["message"])
        assert (published["details"]["routing_key"], published["details"]["body"]) == ("s", "a")
        assert appended["copy"] == 0
        client.subscribe(0, "s", at(1))  # the chunk that is sent begins at offset 0
        (read,) = events.until("read")
        counts = events.get(after=events.snapshot["number"], timeout=0)
        assert (read["copy"], read["offset"]) == (1, 1)
        assert read["consumer"].endswith("/stream.subid-0")
        assert counts["read"] == [[read["consumer"], 1]]
        assert [count for *_, count in counts["appended"]] == [2]
        client.publish(0, 2, *(data_section(b"x") for _ in range(3000)))

        def counted() -> bool:
            counts.update(events.get(after=counts["number"], timeout=0))
            return counts["queues"] == {"s": [3002, 0, 3002]} and counts["read"] == [[read["consumer"], 3001]]

        wait_until(counted, lambda: str(counts), 60)
        assert len(counts["events"]) < 200


def test_events_report_the_stored_offset_of_a_stream_consumer_and_its_reset(broker: EmbeddedBroker) -> None:
    """If a client stores an offset, the event `stored` in /api/mqtool/events contains the stream, the consumer's
    name, the offset, and the client's protocol and connection. If a client resets the consumer's offset, the event
    contains the offset -1. The response also contains each consumer's last stored offset, until the stream is
    deleted.
    """
    with closing(with_stream(broker)) as client:
        events = Events(broker)
        for offset in (41, 42):
            client.send(STORE_OFFSET, string("reports") + string("s") + offset.to_bytes(8))
        stored = events.until("stored", "stored")
        assert [(each["queue"], each["name"], each["offset"]) for each in stored] == [
            ("s", "reports", 41), ("s", "reports", 42),
        ]  # fmt: skip
        assert stored[0]["from"]["protocol"] == "stream"
        assert stored[0]["from"]["connection"] == connection_of(broker, "stream")
        assert events.get(after=events.snapshot["number"], timeout=0)["stored"] == [["s", "reports", 42]]
        client.send(STORE_OFFSET, string("reports") + string("s") + b"\xff" * 8)
        assert [each["offset"] for each in events.until("stored")] == [-1]
        client.request(DELETE, string("s"))
        assert events.get(after=events.snapshot["number"], timeout=0)["stored"] == []


@pytest.mark.parametrize("address", ["/queues/nowhere", "/exchanges/nowhere/key"])
def test_events_report_an_amqp_1_0_client_that_cannot_publish_to_an_address(
    broker: EmbeddedBroker, address: str
) -> None:
    """If an AMQP 1.0 client attaches a sender to a queue or exchange that does not exist, the event `unknown-address`
    in /api/mqtool/events contains the address, and the client's protocol and connection.
    """
    events = Events(broker)
    with RawAmqp10(broker.url) as client:
        client.attach(SENDER, address)
        (unknown,) = events.until("unknown-address")
        assert unknown["address"] == address
        assert unknown["from"]["protocol"] == "AMQP 1-0"
        assert unknown["from"]["connection"] == connection_of(broker, "AMQP 1-0")


def test_quickly_published_messages_are_all_counted_but_only_some_cause_events(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """If 3,000 messages are published quickly, /api/mqtool/events counts all of them, but returns events for only
    some of them. If a client requests events that the broker no longer stores, the response says that events are
    missing.
    """
    channel.queue_declare("q")
    events = Events(broker)
    number, shown, found = events.snapshot["number"], 0, {}
    for _ in range(10):
        for _ in range(300):
            channel.basic_publish("", "q", b"x")
        channel.queue_purge("q")  # answered after all messages have been published
        found = events.get(after=number, timeout=0)
        number, shown = found["number"], shown + sum(each["what"] == "ready" for each in found["events"])
    assert found["queues"] == {"q": [0, 0, 3000]}
    assert [count for *_, count in found["published"]] == [3000]
    assert 0 < shown < 1000
    assert events.get(after=1, timeout=0)["lost"]


def test_events_report_a_dead_letter_in_a_queue_whose_other_messages_are_only_counted(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """If messages are published to a queue faster than /api/mqtool/events can report them, most of them are only
    counted, and have no events. A dead letter in this queue still has events if the message had events in its
    previous queue.
    """
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    events = Events(broker)
    channel.basic_publish("", "q", b"x")
    for _ in range(60):
        channel.basic_publish("", "dead", b"x")
    method, _, _ = channel.basic_get("q")
    channel.basic_reject(method.delivery_tag, requeue=False)
    channel.queue_declare("q", passive=True)  # answered after the rejection
    found = events.get(after=events.snapshot["number"], timeout=0)["events"]
    assert [each["what"] for each in found[-3:]] == ["dead-lettered", "published", "ready"]
    assert found[-2]["from"] == {"queue": "q", "reason": "rejected"}
    assert len(found) < 60


def test_a_delayed_message_omitted_from_the_events_does_not_affect_later_events(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """If many messages are published quickly, /api/mqtool/events may omit a delayed message. A later message with the
    same exchange and routing key, but without a delay, is not mistaken for the omitted message: it has the events
    `published` and `ready`, and no event `delayed`.
    """
    channel.exchange_declare("late", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    channel.queue_declare("q")
    channel.queue_bind("q", "late")
    events = Events(broker)
    for key in ("a", "b", "c"):
        for _ in range(20):
            channel.basic_publish("late", key, b"x")
    for _ in range(2):
        channel.basic_publish("late", "k", b"x", pika.BasicProperties(headers={"x-delay": 60_000}))
    channel.queue_declare("q", passive=True)  # answered after all messages have been published
    number = events.get(after=events.snapshot["number"], timeout=0)["number"]
    events.get(after=number, timeout=0.1)  # by then, new messages may be shown again
    channel.basic_publish("late", "k", b"x")
    channel.queue_declare("q", passive=True)
    found = events.get(after=number, timeout=0)["events"]
    assert [each["what"] for each in found] == ["published", "ready"]


def test_a_request_for_events_with_a_timeout_waits_for_an_event(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """If a request to /api/mqtool/events sets a timeout, the broker answers it as soon as the next event happens."""
    channel.queue_declare("q")
    events = Events(broker)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(events.get, after=events.get()["number"], timeout=30)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        channel.basic_publish("", "q", b"x")
        found = waiting.result(60)["events"]
    assert [each["what"] for each in found] == ["published", "ready"]


def test_messages_of_a_deleted_queue_are_no_longer_tracked_for_events(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """While a program is reading /api/mqtool/events, the broker keeps data about each message in a queue. If the queue
    is deleted while one of its messages is unacknowledged, all of this data is removed once the channel that received
    the message is closed.
    """
    channel.queue_declare("q")
    events = Events(broker)
    for body in (b"x", b"y"):
        channel.basic_publish("", "q", body)
    channel.basic_get("q")
    events.until("published", "ready", "published", "ready", "delivered")
    assert len(watcher_of(broker).shown) == 2
    channel.queue_delete("q")
    events.until("purged")
    channel.close()
    assert watcher_of(broker).shown == {}


def watcher_of(broker: EmbeddedBroker) -> Any:
    """Return the recorder of events, or None if no client requests events."""
    return broker.under_test(lambda under_test: under_test._scene.broker.vhosts["/"].watcher)


def test_the_broker_stops_recording_events_that_nobody_requests(
    broker: EmbeddedBroker, channel: BlockingChannel
) -> None:
    """The broker starts recording events when a client requests them from /api/mqtool/events, and stops within 30
    seconds of the last request.
    """
    assert channel.is_open
    assert watcher_of(broker) is None
    Events(broker)
    assert watcher_of(broker) is not None
    wait_until(lambda: watcher_of(broker) is None, "no watcher", 30)


def test_only_administrators_may_read_events(broker: EmbeddedBroker) -> None:
    """If a user with the tag `monitoring` requests /api/mqtool/events, the broker responds with status 401, because
    events contain message bodies.
    """
    api = f"{broker.urls['http']}/api/users/looker"
    body = json.dumps({"password": "x", "tags": "monitoring"}).encode()
    login = {"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
    urllib.request.urlopen(urllib.request.Request(api, body, login, method="PUT")).close()
    events = Events(broker)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        events.get("looker:x")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        events.get(after="x")
