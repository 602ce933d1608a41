"""Faults that a test injects into the embedded broker: what a client sees while a fault is in force, and afterwards."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from pamqp import commands, frame, header
from pika import BasicProperties, exceptions
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.in_process import Vhost
from mqtool.broker.embedded.testing.questions import Faults
from tests.protocol.conftest import Take
from tests.protocol.raw_client import RawClient
from tests.protocol.raw_stream import CLOSE, DELETE_PUBLISHER, OPEN, RawStream, string

PERSISTENT = BasicProperties(delivery_mode=2)


@pytest.fixture(scope="module")
def whole() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(recording=True, stream_port=0) as broker:
        yield broker


@pytest.fixture
def vhost(whole: EmbeddedBroker) -> Iterator[Vhost]:
    with whole.fresh_vhost() as vhost:
        yield vhost


@pytest.fixture
def raw(vhost: Vhost) -> Iterator[RawClient]:
    with RawClient(vhost.url) as client:
        yield client


@pytest.fixture
def connect(vhost: Vhost) -> Iterator[Callable[..., BlockingChannel]]:
    """Opens a connection, and a channel on it."""
    opened = []

    def opener(name: str = "a test") -> BlockingChannel:
        settings = pika.URLParameters(vhost.url)
        settings.client_properties = {"connection_name": name}
        opened.append(pika.BlockingConnection(settings))
        return opened[-1].channel()

    yield opener
    for connection in opened:
        if connection.is_open:
            connection.close()


@pytest.fixture
def channel(connect: Callable[..., BlockingChannel]) -> BlockingChannel:
    return connect()


def test_the_cut_connections_fault_resets_or_closes_connections(vhost: Vhost) -> None:
    """The embedded broker's fault `cut_connections` resets each client's TCP connection (ECONNRESET). With reset=False,
    the fault closes the TCP connection normally, but without connection.close.
    """
    with RawClient(vhost.url) as client:
        assert vhost.faults.cut_connections() == 1
        with pytest.raises(ConnectionResetError):
            client.read(1)
    with RawClient(vhost.url) as client:
        assert vhost.faults.cut_connections(reset=False) == 1
        assert client.socket.recv(1) == b""


@pytest.fixture
def stream(whole: EmbeddedBroker, vhost: Vhost) -> Iterator[RawStream]:
    """A client of the stream protocol."""
    assert whole.stream_port is not None
    client = RawStream("127.0.0.1", whole.stream_port)
    client.log_in()
    assert client.request(OPEN, string(vhost.name)).code == 1
    yield client
    client.close()


def test_faults_affect_connections_of_the_stream_protocol(vhost: Vhost, stream: RawStream) -> None:
    """The embedded broker's faults affect clients of the stream protocol. `slow_down` delays replies, and `go_silent`
    holds back everything that the broker sends until the fault ends. `refuse_connections` refuses new connections,
    and `close_connections` closes open ones with the text that the test passes.
    """
    assert stream.create("s") == 1
    with vhost.faults.slow_down(0.1):
        began = time.monotonic()
        assert stream.declare_publisher(1, "s") == 1
        assert time.monotonic() - began >= 0.1
    with vhost.faults.go_silent() as silence:
        assert silence.met == 1
        stream.publish(1, 0, b"0")
        stream.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.next()
    stream.socket.settimeout(60)
    assert stream.confirmed(1) == [0]
    with vhost.faults.refuse_connections(), pytest.raises(ConnectionRefusedError):
        RawStream(*stream.socket.getpeername())
    assert vhost.faults.close_connections(text="not today") == 1
    assert stream.expect(CLOSE)[4:] == (320).to_bytes(2) + string("not today")


def test_published_returns_messages_published_over_the_stream_protocol(vhost: Vhost, stream: RawStream) -> None:
    """In a user's test, published() returns messages that were published over the stream protocol. If no message
    matches, the repr of the empty result shows what was published instead.
    """
    assert stream.create("s") == 1
    assert stream.declare_publisher(1, "s") == 1
    stream.publish(1, 0, b"\x00Su\xa0\x01a", b"\x00Su\xa0\x01b")
    messages = vhost.published(queue="s", count=2)
    assert [(each.exchange, each.routing_key, each.queues, each.body) for each in messages] == [
        ("", "s", ("s",), b"a"),
        ("", "s", ("s",), b"b"),
    ]
    assert "what happened: <published 's' → s: b'a'>" in repr(vhost.published(queue="t", timeout=0))
    assert not vhost.unrouted


@pytest.mark.parametrize("reset", [True, False])
def test_the_cut_connections_fault_resets_or_closes_stream_connections(
    vhost: Vhost, stream: RawStream, reset: bool
) -> None:
    """The embedded broker's fault `cut_connections` resets the TCP connection of each client of the stream protocol
    (ECONNRESET). With reset=False, the fault closes the TCP connection normally, but without the command `close`.
    """
    assert vhost.faults.cut_connections(reset=reset) == 1
    with pytest.raises(ConnectionResetError if reset else EOFError):
        stream.next()


def test_the_restart_fault_closes_stream_connections(vhost: Vhost, stream: RawStream) -> None:
    """The embedded broker's fault `restart` closes the connections of the stream protocol. After the restart, stream
    clients can log in again.
    """
    vhost.faults.restart()
    assert stream.at_end()
    RawStream(*stream.socket.getpeername()).log_in()


def test_reset_empties_streams(vhost: Vhost, stream: RawStream, channel: BlockingChannel) -> None:
    """In a user's test, reset() of the embedded broker deletes a stream's messages. Consumers stay subscribed and get
    only messages that are published later. Publishers can use their publishing ids again.
    """
    assert stream.create("s") == 1
    assert stream.declare_publisher(1, "s", "me") == 1
    stream.publish(1, 1, b"\x00Su\xa0\x01a", b"\x00Su\xa0\x01b")
    stream.confirmed(2)
    channel.basic_qos(prefetch_count=1)
    got = []
    channel.basic_consume(
        "s",
        lambda _channel, _method, properties, body: got.append((properties.headers["x-stream-offset"], body)),
        arguments={"x-stream-offset": "first"},
    )
    channel.connection.process_data_events(60)
    vhost.reset()
    assert vhost.queue("s").messages(count=0).bodies == []
    assert stream.request(DELETE_PUBLISHER, b"\x01").code == 1
    assert stream.declare_publisher(1, "s", "me") == 1
    stream.publish(1, 1, b"\x00Su\xa0\x01c")
    assert stream.confirmed(1) == [1]
    assert vhost.queue("s").messages().bodies == [b"c"]
    assert stream.subscribe(1, "s") == 1
    assert stream.chunk().first_offset == 2
    channel.basic_ack(1)
    channel.connection.process_data_events(60)
    assert got == [(0, b"a"), (2, b"c")]


def test_messages_deleted_by_reset_do_not_return_after_a_restart(tmp_path: Path) -> None:
    """If the embedded broker's reset() has deleted the messages of a stream, they do not return after a restart. Later
    messages do not reuse their offsets.
    """

    def publish(broker: EmbeddedBroker, body: bytes) -> None:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
            channel.basic_publish("", "s", body)

    with EmbeddedBroker(data_dir=tmp_path) as broker:
        publish(broker, b"a")
        broker.reset()
        publish(broker, b"b")
        broker.reset()
        broker.reset()
    with EmbeddedBroker(data_dir=tmp_path) as broker:
        publish(broker, b"c")
        (message,) = broker.queue("s").messages()
        assert (message.body, message.headers["x-stream-offset"]) == (b"c", 2)


def test_the_cut_connections_fault_can_select_connections_by_name(
    vhost: Vhost, connect: Callable[..., BlockingChannel]
) -> None:
    """The embedded broker's fault `cut_connections("orders-*")` cuts only the connections whose names begin with
    "orders-".
    """
    orders, mail = connect("orders-1"), connect("mail-1")
    assert vhost.faults.cut_connections("orders-*") == 1
    with pytest.raises(exceptions.AMQPConnectionError):
        orders.queue_declare("q")
    mail.queue_declare("q")


def test_the_refuse_connections_fault_does_not_close_open_connections(vhost: Vhost, raw: RawClient) -> None:
    """While the embedded broker's fault `refuse_connections` is in force, new connections are refused, but open
    connections stay usable. After the fault has ended, clients can connect again.
    """
    with vhost.faults.refuse_connections(), pytest.raises(ConnectionRefusedError):
        RawClient(vhost.url)
    raw.send(commands.Basic.Qos())
    raw.expect(commands.Basic.QosOk)
    RawClient(vhost.url).socket.close()


def test_the_go_silent_fault_holds_back_everything_that_the_broker_sends(vhost: Vhost) -> None:
    """While the embedded broker's fault `go_silent` is in force, neither connected nor new clients get replies or
    heartbeats. When the fault ends, the clients get all replies and heartbeats that were held back.
    """
    with RawClient(vhost.url, heartbeat=3) as client:
        client.socket.settimeout(2.4)  # a heartbeat is due after 1.5 s
        with vhost.faults.go_silent():
            client.send(commands.Basic.Qos())
            client.socket.sendall(b"\x08\x00\x00\x00\x00\x00\x00\xce")
            new = RawClient(vhost.url, opened=False)
            new.socket.sendall(b"AMQP\x00\x00\x09\x01")
            with pytest.raises(TimeoutError):
                client.read(1)
        client.socket.settimeout(60)
        client.expect(commands.Basic.QosOk)
        new.expect(commands.Connection.Start)
        assert client.read(8) == b"\x08\x00\x00\x00\x00\x00\x00\xce"
        new.socket.close()


def test_the_slow_down_fault_delays_replies(vhost: Vhost, raw: RawClient) -> None:
    """While the embedded broker's fault `slow_down(0.1)` is in force, a reply takes at least 0.1 s."""
    with vhost.faults.slow_down(0.1):
        began = time.monotonic()
        raw.send(commands.Basic.Qos())
        raw.expect(commands.Basic.QosOk)
        assert time.monotonic() - began >= 0.1


def test_the_block_publishers_fault_sends_connection_blocked_and_unblocked(vhost: Vhost, raw: RawClient) -> None:
    """When the embedded broker's fault `block_publishers` begins, a publisher gets connection.blocked with the reason
    that the test passes. When the fault ends, the publisher gets connection.unblocked.
    """
    with vhost.faults.block_publishers("low on patience"):
        raw.send(commands.Basic.Publish(exchange="", routing_key="q"))
        assert raw.expect(commands.Connection.Blocked).reason == "low on patience"
    raw.expect(commands.Connection.Unblocked)


def test_the_block_publishers_fault_holds_back_all_messages(vhost: Vhost, raw: RawClient) -> None:
    """While the embedded broker's fault `block_publishers` is in force, the broker processes no message that a client
    publishes, not even the first one on a connection. When the fault ends, it processes all of them.
    """
    publish = header.ContentHeader(body_size=1, properties=commands.Basic.Properties())
    message = frame.marshal(commands.Basic.Publish(exchange="", routing_key="q"), 1)
    message += frame.marshal(publish, 1) + b"\x03\x00\x01\x00\x00\x00\x01a\xce"
    with vhost.faults.block_publishers():
        raw.socket.sendall(message * 3)
        raw.expect(commands.Connection.Blocked)
        assert not vhost.published(timeout=0)
    raw.expect(commands.Connection.Unblocked)
    assert vhost.published(count=3).bodies == [b"a"] * 3


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (lambda faults: faults.nack_publishes("jbos"), "queue 'jbos' does not exist: did you mean 'jobs'?"),
        (lambda faults: faults.lose_acks(queue="jobb"), "queue 'jobb' does not exist: did you mean 'jobs'?"),
        (lambda faults: faults.cancel_consumers("jbos"), "queue 'jbos' does not exist: did you mean 'jobs'?"),
        (lambda faults: faults.cancel_consumers("mail"), "queue 'mail' does not exist"),
    ],
)
def test_a_fault_for_a_misspelled_queue_is_refused(
    vhost: Vhost, channel: BlockingChannel, begin: Callable[[Faults], object], message: str
) -> None:
    """If a user's test begins a fault for a queue that does not exist, and an existing queue has a similar name, the
    call raises ValueError and suggests the existing queue. If no queue has a similar name, the fault begins. Only
    `cancel_consumers` raises ValueError for every missing queue, because there are no consumers to cancel.
    """
    channel.queue_declare("jobs")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        begin(vhost.faults)
    assert vhost.faults.in_force() == []
    vhost.faults.nack_publishes("billing")
    assert len(vhost.faults.in_force()) == 1


def test_the_faults_close_channels_and_close_connections_send_the_given_code(vhost: Vhost, raw: RawClient) -> None:
    """The embedded broker's methods `faults.close_channels()` and `faults.close_connections()` close channels or
    connections with the code and text that they are called with. If the code is not one of AMQP's reply codes,
    `faults.close_channels()` raises ValueError.
    """
    assert vhost.faults.close_channels(404, "NOT_FOUND - it was here") == 1
    close = raw.expect(commands.Channel.Close)
    assert (close.reply_code, close.reply_text) == (404, "NOT_FOUND - it was here")
    assert vhost.faults.close_connections(541, "INTERNAL_ERROR") == 1
    assert raw.closed_with() == "541 INTERNAL_ERROR"
    with pytest.raises(ValueError, match="code must be one of"):
        vhost.faults.close_channels(1000)


@pytest.mark.parametrize("keep_transient", [False, True])
def test_the_restart_fault_keeps_durable_queues_and_their_messages(
    vhost: Vhost, connect: Callable[..., BlockingChannel], keep_transient: bool
) -> None:
    """The embedded broker's fault `restart` keeps durable queues with their persistent messages, and quorum queues
    with all their messages. It keeps transient queues, exchanges and messages only if its argument `keep_transient`
    is true.
    """
    channel = connect()
    channel.queue_declare("durable", durable=True)
    channel.queue_declare("quorum", durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_declare("transient")
    channel.exchange_declare("transient")
    channel.confirm_delivery()
    for queue in ("durable", "quorum"):
        channel.basic_publish("", queue, b"transient")
        channel.basic_publish("", queue, b"persistent", PERSISTENT)
    vhost.faults.restart(keep_transient=keep_transient)
    with pytest.raises(exceptions.ConnectionClosedByBroker, match="shutdown"):
        channel.queue_declare("durable", passive=True)
    channel = connect()
    lost = 0 if keep_transient else 1
    assert channel.queue_declare("durable", passive=True).method.message_count == 2 - lost
    assert channel.queue_declare("quorum", passive=True).method.message_count == 2
    if lost:
        with pytest.raises(exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
            channel.queue_declare("transient", passive=True)
    else:
        channel.queue_declare("transient", passive=True)
        channel.exchange_declare("transient", passive=True)


def test_a_classic_queue_does_not_exceed_its_maximum_length_after_the_restart_fault(
    vhost: Vhost, connect: Callable[..., BlockingChannel]
) -> None:
    """The embedded broker's fault `restart` makes unacknowledged messages ready again. If a classic queue then has more
    ready messages than its x-max-length, the broker drops its oldest messages, even with the overflow behaviour
    reject-publish.
    """
    channel = connect()
    channel.queue_declare("q", durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    channel.confirm_delivery()
    channel.basic_publish("", "q", b"1", PERSISTENT)
    Take(channel).one("q", auto_ack=False)
    for body in (b"2", b"3"):
        channel.basic_publish("", "q", body, PERSISTENT)
    vhost.faults.restart()
    with pytest.raises(exceptions.ConnectionClosedByBroker, match="shutdown"):
        channel.queue_declare("q", passive=True)
    channel = connect()
    assert Take(channel).bodies("q", 2) == [b"2", b"3"]
    assert channel.queue_declare("q", passive=True).method.message_count == 0


def test_the_nack_publishes_fault_nacks_the_given_number_of_messages(vhost: Vhost, channel: BlockingChannel) -> None:
    """The embedded broker's fault `nack_publishes("jobs", 2)` nacks the next two messages to the queue `jobs`, and no
    others. These two messages do not reach the queue.
    """
    channel.confirm_delivery()
    for queue in ("jobs", "mail"):
        channel.queue_declare(queue)
    vhost.faults.nack_publishes("jobs", 2)
    channel.basic_publish("", "mail", b"0")
    for body in (b"1", b"2"):
        with pytest.raises(exceptions.NackError):
            channel.basic_publish("", "jobs", body)
    channel.basic_publish("", "jobs", b"3")
    assert vhost.queue("jobs").messages().bodies == [b"3"]
    assert vhost.faults.in_force() == []


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (lambda faults: faults.nack_publishes("q", 0), "count must be at least 1, not 0"),
        (lambda faults: faults.return_unroutable(-1), "count must be at least 1, not -1"),
        (lambda faults: faults.restart(-1), "seconds must be at least 0, not -1"),
        (lambda faults: faults.slow_down(-1), "seconds must be at least 0, not -1"),
        (lambda faults: faults.go_silent(-5), "seconds must be at least 0, not -5"),
    ],
)
def test_a_fault_with_an_argument_out_of_range_is_refused(
    vhost: Vhost, begin: Callable[[Faults], object], message: str
) -> None:
    """If a user's test begins a fault with an argument out of range, such as a negative number of seconds, the call
    raises ValueError with an explanation, and the fault does not begin.
    """
    with pytest.raises(ValueError, match=f"^{message}$"):
        begin(vhost.faults)
    assert vhost.faults.in_force() == []


def test_the_return_unroutable_fault_returns_the_next_message(vhost: Vhost, channel: BlockingChannel) -> None:
    """The embedded broker's fault `return_unroutable()` makes the broker return the next mandatory message as
    unroutable, although its queue exists. Later mandatory messages are routed to the queue as usual.
    """
    channel.confirm_delivery()
    channel.queue_declare("jobs")
    vhost.faults.return_unroutable()
    with pytest.raises(exceptions.UnroutableError):
        channel.basic_publish("", "jobs", b"1", mandatory=True)
    channel.basic_publish("", "jobs", b"2", mandatory=True)
    assert vhost.unrouted.bodies == [b"1"]


def test_the_delay_confirms_fault_holds_back_publisher_confirms(vhost: Vhost, raw: RawClient) -> None:
    """While the embedded broker's fault `delay_confirms` is in force, publisher confirms arrive only after the delay
    that the test passes or, without a delay, when the fault ends.
    """
    raw.send(commands.Confirm.Select())
    raw.expect(commands.Confirm.SelectOk)
    publish = header.ContentHeader(body_size=0, properties=commands.Basic.Properties())

    def confirm() -> None:
        raw.send(commands.Basic.Publish(exchange="", routing_key="q"))
        raw.send(publish)  # type: ignore[arg-type]

    with vhost.faults.delay_confirms(0.1):
        began = time.monotonic()
        confirm()
        assert raw.expect(commands.Basic.Ack).delivery_tag == 1
        assert time.monotonic() - began >= 0.1
    with vhost.faults.delay_confirms():
        confirm()
        raw.send(commands.Basic.Qos())
        raw.expect(commands.Basic.QosOk)
        assert vhost.published(count=2)
    assert raw.expect(commands.Basic.Ack).delivery_tag == 2


def test_the_lose_acks_fault_loses_the_next_acknowledgement(vhost: Vhost, channel: BlockingChannel) -> None:
    """The embedded broker's fault `lose_acks()` makes the broker ignore the next acknowledgement. The broker delivers
    the unacknowledged message again, marked as redelivered.
    """
    channel.queue_declare("jobs")
    channel.basic_publish("", "jobs", b"1")
    vhost.faults.lose_acks()
    seen = []
    for method, _, _ in channel.consume("jobs", inactivity_timeout=60):
        seen.append(method.redelivered)
        channel.basic_ack(method.delivery_tag)
        if len(seen) == 2:
            break
    assert seen == [False, True]
    assert vhost.wait_for(lambda: vhost.queue("jobs").acked).bodies == [b"1"]


def test_the_cancel_consumers_fault_sends_basic_cancel(vhost: Vhost, channel: BlockingChannel) -> None:
    """The embedded broker's fault `cancel_consumers("jobs")` sends a consumer of the queue `jobs` a basic.cancel with
    its consumer tag.
    """
    channel.queue_declare("jobs")
    channel.basic_consume("jobs", lambda *_: None, consumer_tag="mine")
    cancelled = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    assert vhost.faults.cancel_consumers("jobs") == 1
    channel.connection.process_data_events(time_limit=60)
    assert cancelled == ["mine"]


def test_a_fault_ends_with_its_virtual_host_or_after_its_duration(whole: EmbeddedBroker) -> None:
    """When a virtual host of the embedded broker is deleted, all faults that were injected into this virtual host
    end. A fault that was injected with a duration ends after this time.
    """
    with whole.fresh_vhost() as vhost:
        vhost.faults.refuse_connections()
        vhost.faults.block_publishers()
        vhost.faults.go_silent(30)
        assert [each["fault"] for each in whole.faults.in_force()] == [
            "refuse_connections",
            "block_publishers",
            "go_silent",
        ]
        vhost.faults.slow_down()
        vhost.faults.go_silent(0.01)
        vhost.wait_for(lambda: len(whole.faults.in_force()) == 4)
    assert whole.faults.in_force() == []
    with RawClient(whole.url) as client:
        client.send(commands.Basic.Qos())
        client.expect(commands.Basic.QosOk)
