"""The connections of `bench`, over each protocol: each message is confirmed or refused, and each confirm and delivery
has the time at which it arrived.
"""

import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from mqtool.amqp import Address, TlsFiles
from mqtool.amqp.single_thread import SingleThreadConnection
from mqtool.amqp.unconfirmed import Route
from mqtool.benching import amqp10_wire, stream_wire, wire
from mqtool.benching.amqp10_wire import Amqp10Wire
from mqtool.benching.stream_wire import StreamWire
from mqtool.benching.wire import AmqpWire
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import Accepted, Close, Detach, Disposition, Error, Flow, Rejected, Transfer
from mqtool.codecs.amqp10_values import Described, Symbol
from mqtool.codecs.sections import encode
from mqtool.errors import NotFound, Unavailable, UsageError
from mqtool.message import Delivery, Message
from mqtool.streams.rstream_private import CONFIRM, DELIVER, ERROR, METADATA_UPDATE
from tests.unit.test_link_connection import Broker
from tests.unit.test_link_connection import broker as broker  # a fixture

NODE = Address("node", user="u")
PLAIN = TlsFiles()


def delivery(tag: int, **headers: object) -> Delivery:
    return Delivery(b"x", "", "q", "q", redelivered=False, properties={"headers": headers}, delivery_tag=tag)


def noted(into: list[Any], *, clock: Any = None) -> Callable[..., None]:
    """Return a function that appends its argument as a list, together with the clock's time if there is a clock."""
    return lambda tags: into.append(([*tags], clock.now) if clock else [*tags])


# AMQP 0-9-1.


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The connection of the next AmqpWire; Mock records what it is asked to do."""
    made = Mock(SingleThreadConnection, received_at=5, unsent=77)
    monkeypatch.setattr(wire, "SingleThreadConnection", Mock(return_value=made))
    return made


def test_bench_uses_mqtools_own_amqp_connection(connection: Mock) -> None:
    """With AMQP 0-9-1, `bench` uses mqtool's class SingleThreadConnection, which needs no threads. Because AMQP 0-9-1
    has no credit for publishers, a publisher's credit counts as unlimited.
    """
    before = time.monotonic_ns()
    made = AmqpWire(NODE, PLAIN)
    cast(Mock, wire.SingleThreadConnection).assert_called_once_with(NODE, PLAIN)
    assert before <= made.now <= time.monotonic_ns()
    assert (made.credit, made.unsent) == (sys.maxsize, 77)
    made.on_confirm([1])
    made.on_nack([1])
    made.watch(3, print)
    made.wait(0.5)
    made.ask(len)  # type: ignore[arg-type]
    made.acknowledge([(1, True)])
    made.close()
    assert connection.method_calls == [
        ("watch", (3, print)), ("wait", (0.5,)), ("ask", (len,)), ("acknowledge", ([(1, True)],)), ("close", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "confirmed", "nacked"),
    [
        ([("ack", 1, False), ("ack", 2, False)], [[1], [2]], []),
        ([("ack", 3, True)], [[1, 2, 3]], []),
        ([("ack", 3, True), ("ack", 5, True)], [[1, 2, 3], [4, 5]], []),
        ([("ack", 1, False), ("ack", 3, True)], [[1], [2, 3]], []),
        ([("ack", 2, True), ("ack", 3, False), ("ack", 5, True)], [[1, 2], [3], [4, 5]], []),
        ([("ack", 2, False), ("ack", 3, True)], [[2], [1, 2, 3]], []),
        ([("nack", 2, True), ("ack", 3, True)], [[3]], [[1, 2]]),
        ([("ack", 1, False), ("nack", 2, False), ("ack", 4, True)], [[1], [3, 4]], [[2]]),
    ],
    ids=[
        "single",
        "multiple",
        "two multiple",
        "single, then multiple",
        "mixed",
        "out of order",
        "multiple nack",
        "nack",
    ],
)
def test_a_confirm_of_several_messages_confirms_each_of_them(
    connection: Mock, answers: list[tuple[str, int, bool]], confirmed: list[list[int]], nacked: list[list[int]]
) -> None:
    """If the broker confirms or nacks several messages together (with `multiple`), a `bench` publisher gets the
    delivery tag of each of them once. There is one exception: if the broker confirms a message before an earlier one,
    a later confirm with `multiple` includes the tag of this message again.
    """
    made = AmqpWire(NODE, PLAIN)
    acks: list[list[int]] = []
    nacks: list[list[int]] = []
    made.on_confirm, made.on_nack = noted(acks), noted(nacks)
    made.start_publishing("logs", "key", confirms=True)
    ((on_ack, on_nack), _) = connection.confirm.call_args
    for kind, tag, multiple in answers:
        (on_ack if kind == "ack" else on_nack)(tag, multiple=multiple)
    assert (acks, nacks) == (confirmed, nacked)


def test_the_latency_of_a_confirm_is_measured_until_the_confirm_arrives(connection: Mock) -> None:
    """`bench` measures the latency of a confirm up to the time at which the confirm arrived on the connection, even if
    the client handles the confirm only later.
    """
    made = AmqpWire(NODE, PLAIN)
    found: list[Any] = []
    made.on_confirm = noted(found, clock=made)
    made.start_publishing("logs", "key", confirms=True)
    connection.received_at = 99
    connection.confirm.call_args[0][0](1, multiple=False)
    assert found == [([1], 99)]


@pytest.mark.parametrize("persistent", [True, False])
def test_bench_writes_a_sequence_number_and_a_time_into_each_message(connection: Mock, persistent: bool) -> None:
    """`bench` replaces the first bytes of each body with the message's sequence number and the time at which it is
    sent or, with `--rate`, was due. It publishes the message to the given exchange, with the given routing key and
    delivery mode.
    """
    made = AmqpWire(NODE, PLAIN)
    made.start_publishing("logs", "key", confirms=False)
    connection.confirm.assert_not_called()
    template = made.template(Message(b"....body", properties={"expiration": "5"}), 4, persistent=persistent)
    made.publish([(1, template, b"abcd"), (2, template, b"efgh")])
    (messages, route), _ = connection.publish.call_args
    assert [(each.body, each.properties) for each in messages] == [
        (b"abcdbody", {"expiration": "5"}), (b"efghbody", {"expiration": "5"}),
    ]  # fmt: skip
    assert (route.exchange, route.routing_key, route.persistent) == ("logs", "key", persistent)
    reply = Message(b"r", routing_key="answers")
    made.reply([reply])
    connection.publish.assert_called_with([reply], Route())


@pytest.mark.parametrize(("offset", "arguments"), [(None, {}), (7, {"x-stream-offset": 7})], ids=["queue", "stream"])
def test_the_latency_of_a_delivery_is_measured_until_the_delivery_arrives(
    connection: Mock, offset: int | None, arguments: dict[str, int]
) -> None:
    """With AMQP 0-9-1, a `bench` consumer measures each latency up to the time at which the message arrived on the
    connection. It uses the given prefetch and acknowledgement mode and, in a stream, starts at the given offset.
    """
    made = AmqpWire(NODE, PLAIN)
    found: list[Any] = []
    made.consume("q", 30, lambda batch: found.append((batch, made.now)), auto=True, offset=offset)
    (queue, take), options = connection.consume.call_args
    assert (queue, options) == ("q", {"prefetch": 30, "auto_ack": True, "arguments": arguments})
    connection.received_at = 99
    batch = [delivery(1)]
    take(batch)
    assert found == [(batch, 99)]
    assert made.offset_of(delivery(1, **{"x-stream-offset": 12})) == 12


def test_churn_opens_a_channel_and_closes_it(connection: Mock) -> None:
    """With `--churn channels`, a `bench` client opens a channel and then closes it. In between, it calls a function,
    which can measure how long it took to open the channel.
    """
    made = AmqpWire(NODE, PLAIN)
    connection.open_channel.return_value = "channel"
    made.open_and_close_channel(lambda: connection.wait("opened"))
    assert connection.method_calls == [("open_channel", ()), ("wait", ("opened",)), ("close_channel", ("channel",))]


# AMQP 1.0.


class Readable:
    """A replacement for select(), in which the broker of a session is readable if it has sent something."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.readable: set[int] = set()
        self.asked: list[tuple[int, int, float]] = []

    def select(self, readable: list[Any], writable: list[Any], _: list[Any], seconds: float) -> Any:
        self.asked.append((len(readable), len(writable), seconds))
        found = [each for each in readable if each in self.readable or (each is self.broker and self.broker.bodies)]
        return found, writable, []


@pytest.fixture
def selected(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Readable:
    made = Readable(broker)
    monkeypatch.setattr(amqp10_wire, "select", made)
    monkeypatch.setattr(broker, "unsent", 0, raising=False)
    return made


def publishing10(broker: Broker, selected: Readable) -> tuple[Amqp10Wire, list[Any], list[Any]]:
    made = Amqp10Wire(NODE, PLAIN)
    confirmed: list[Any] = []
    refused: list[Any] = []
    made.on_confirm, made.on_nack = noted(confirmed, clock=made), noted(refused)
    made.start_publishing("logs", "key", confirms=True)
    return made, confirmed, refused


def test_a_publisher_of_bench_keeps_to_its_credit_and_counts_each_outcome(
    broker: Broker, selected: Readable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AMQP 1.0, a `bench` publisher sends only as many messages as the broker has granted credit for. Further
    messages wait, and the publisher counts its credit as negative: -1 if one message waits. Each message that the
    broker accepts is counted once as confirmed, and each that it rejects once as refused.
    """
    made, confirmed, refused = publishing10(broker, selected)
    assert broker.attached[0].target.address == "/exchanges/logs/key"
    assert made.credit == 0
    broker.credit(0, 0, 4)
    made.wait(0.5)
    assert (made.credit, selected.asked[-1]) == (4, (1, 0, 0.5))
    template = made.template(Message(b"....body", properties={"message_id": "m"}), 4, persistent=True)
    made.publish([(tag, template, b"%04d" % tag) for tag in (1, 2, 3)])
    assert (made.credit, len(broker.of(Transfer))) == (1, 3)
    expected = [Message(b"%04dbody" % tag, properties={"message_id": "m"}) for tag in (1, 2, 3)]
    assert broker.payloads == [sections.encode(each, persistent=True) for each in expected]
    made.publish([(tag, template, b"%04d" % tag) for tag in (4, 5)])
    assert (made.credit, len(broker.of(Transfer))) == (-1, 1)
    assert (confirmed, refused) == ([], [])
    broker.tell(Disposition(True, 0, 1, True, Accepted()))
    broker.tell(Disposition(True, 2, 2, True, Rejected(Error(Symbol("amqp:x"), "no", {}))))
    monkeypatch.setattr(amqp10_wire, "time", SimpleNamespace(monotonic_ns=lambda: 99))
    made.wait(0.5)
    assert (confirmed, refused, made.credit) == ([([1, 2], 99)], [[3]], -1)
    broker.tell(Disposition(True, 3, 3, True, Accepted()))
    made.wait(0.5)
    assert (confirmed, refused) == ([([1, 2], 99), ([4], 99)], [[3]])
    assert broker.now == 1000.0  # nothing but wait() waits


def test_transient_messages_of_bench_are_not_durable(broker: Broker, selected: Readable) -> None:
    """With `--transient` and AMQP 1.0, the messages that `bench` sends are not durable. Without `--transient`, they
    are.
    """
    made, _, _ = publishing10(broker, selected)
    broker.credit(0, 0, 4)
    made.wait(0.5)
    for persistent in (True, False):
        template = made.template(Message(b"....body"), 4, persistent=persistent)
        made.publish([(1, template, b"abcd")])
    message = Message(b"abcdbody")
    assert broker.payloads == [sections.encode(message, persistent=persistent) for persistent in (True, False)]


def test_a_consumer_of_bench_acknowledges_all_messages_that_have_arrived(
    broker: Broker, selected: Readable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AMQP 1.0, a `bench` consumer gets each message once, with the time at which it arrived. Each time the
    consumer acknowledges, it acknowledges all messages that have arrived since its previous acknowledgement.
    """
    made = Amqp10Wire(NODE, PLAIN)
    found: list[Any] = []
    made.consume("q", 30, lambda batch: found.append(([each.body for each in batch], made.now)), auto=False, offset=7)
    source = broker.attached[0].source
    assert source.address == "/queues/q"
    assert [*source.filter.values()] == [Described(Symbol("rabbitmq:stream-offset-spec"), 7)]
    assert [flow.link_credit for flow in broker.of(Flow)] == [30]
    monkeypatch.setattr(amqp10_wire, "time", SimpleNamespace(monotonic_ns=lambda: 99))
    broker.deliver(0, 0, 1)
    made.wait(0.5)
    broker.deliver(0, 2)
    made.wait(0.5)
    assert [body for bodies, _ in found for body in bodies] == [b"0", b"1", b"2"]
    assert {at for _, at in found} == {99}
    made.acknowledge([])
    settled = [(each.first, each.last, type(each.state)) for each in broker.of(Disposition)]
    assert settled == [(0, 2, Accepted)]
    broker.deliver(0, 3)
    made.wait(0.5)
    made.acknowledge([])
    assert [each.first for each in broker.of(Disposition)] == [3]
    made.acknowledge([])
    assert broker.of(Disposition) == []
    assert made.offset_of(delivery(1, **{"x-stream-offset": 12})) == 12


def test_a_consumer_of_bench_without_acknowledgements_asks_for_settled_messages(
    broker: Broker, selected: Readable
) -> None:
    """With `--ack auto` and AMQP 1.0, a `bench` consumer asks the broker to send settled messages, and grants new
    credit when messages arrive.
    """
    made = Amqp10Wire(NODE, PLAIN)
    made.consume("q", 30, lambda _: None, auto=True, offset=None)
    (attach,) = broker.attached
    assert (attach.snd_settle_mode, attach.source.filter or {}) == (1, {})
    broker.deliver(0, *range(20))
    made.wait(0.5)
    assert broker.of(Flow)[-1].link_credit == 30


def test_a_bench_client_can_be_told_to_stop_while_it_waits_for_amqp_1_0_frames(
    broker: Broker, selected: Readable
) -> None:
    """While a `bench` client waits for AMQP 1.0 frames from the broker, it can also read the orders that `bench`
    sends it, such as the order to stop. If some of its own frames are not sent yet, it also waits until the socket
    accepts more data.
    """
    made = Amqp10Wire(NODE, PLAIN)
    read: list[str] = []
    made.watch(3, lambda: read.append("order"))
    made.wait(0.5)
    assert (read, selected.asked[-1]) == ([], (2, 0, 0.5))
    selected.readable.add(3)
    broker.unsent = 5  # type: ignore[attr-defined]
    made.wait(0.25)
    assert (read, selected.asked[-1], made.unsent) == (["order"], (2, 1, 0.25), 5)


@pytest.mark.parametrize(
    ("condition", "error"),
    [("amqp:connection:forced", ConnectionError), ("amqp:not-found", NotFound)],
    ids=["broker shuts down", "another error"],
)
def test_bench_reconnects_over_amqp_1_0_if_the_broker_shuts_down_but_not_after_other_errors(
    broker: Broker, selected: Readable, condition: str, error: type[Exception]
) -> None:
    """If the broker closes an AMQP 1.0 connection because it is shutting down, ConnectionError is raised, so that the
    `bench` client reconnects. If the broker closes the connection for another reason, the corresponding error is
    raised, such as NotFound.
    """
    made, *_ = publishing10(broker, selected)
    broker.tell(Close(Error(Symbol(condition), "gone", {})))
    with pytest.raises(error, match="gone"):
        made.wait(0.5)


def test_a_broken_amqp_1_0_connection_raises_connection_error(
    broker: Broker, selected: Readable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an AMQP 1.0 connection is lost, ConnectionError is raised, so that the `bench` client reconnects."""
    made, *_ = publishing10(broker, selected)
    broker.tell(Flow(0, 1, 1, 1))
    monkeypatch.setattr(broker, "read", Mock(side_effect=EOFError))
    with pytest.raises(ConnectionError, match=r"^the connection was lost$"):
        made.wait(0.5)


def test_a_bench_client_with_amqp_1_0_fails_if_its_exchange_or_queue_does_not_exist(
    broker: Broker, selected: Readable
) -> None:
    """If the exchange or the queue of a `bench` client with AMQP 1.0 does not exist, NotFound is raised with the
    broker's error text.
    """
    broker.refuses = {"/exchanges/logs/key", "/queues/q"}
    made = Amqp10Wire(NODE, PLAIN)
    with pytest.raises(NotFound, match="no queue /exchanges/logs/key"):
        made.start_publishing("logs", "key", confirms=True)
    with pytest.raises(NotFound, match="no queue /queues/q"):
        made.consume("q", 30, lambda _: None, auto=False, offset=None)
    assert [each.closed for each in broker.of(Detach)] == [True, True]


# Streams.


class StreamBroker:
    """A session with a broker's streams, in place of a StreamSession. It records what it is asked and sent."""

    def __init__(self) -> None:
        self.kind = Mock(side_effect=self._made)
        self.client = self
        self.lost: BaseException | None = None
        self.frame_max = 200
        self.unsent = 0
        self.frames: list[bytes] = []
        self.asked: list[Any] = []
        self.closed = 0
        self.failure: Exception | None = None
        self.readable: list[int] = []
        self.selected: list[Any] = []
        self.socket_runs = 0

    def _made(self, address: Address, context: object, inbox: Any, loop: Any) -> "StreamBroker":
        self.address, self.context, self.inbox, self.loop = address, context, inbox, loop
        return self

    def open(self) -> None:
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        assert not self.loop.is_closed()
        self.closed += 1

    def fileno(self) -> int:
        return 9

    def declare_publisher(self, *arguments: object) -> Any:
        return ("declare_publisher", *arguments)

    def subscribe(self, *arguments: Any) -> Any:
        stream, number, place, *_ = arguments
        return "subscribe", stream, number, place.value

    def ask(self, request: Any, stream: str) -> None:
        self.asked.append((request, stream))

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)

    def select(self, readable: list[Any], writable: list[Any], _: list[Any], seconds: float) -> Any:
        self.selected.append(([*readable], [*writable], seconds))
        return [each for each in readable if each in self.readable], writable, []


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamBroker]:
    made = StreamBroker()
    monkeypatch.setattr(stream_wire, "StreamSession", made.kind)
    monkeypatch.setattr(stream_wire, "select", made)
    yield made
    made.loop.close()


def confirm(*numbers: int) -> bytes:
    return struct.pack(f">HHBI{len(numbers)}Q", CONFIRM, 1, 0, len(numbers), *numbers)


def chunk(first: int, *bodies: bytes) -> bytes:
    """Return a Deliver frame with messages from an offset on."""
    entries = b"".join(struct.pack(">I", len(data)) + data for data in (encode(Message(body)) for body in bodies))
    head = struct.pack(">bBHIqQQIIII", 0x50, 0, len(bodies), len(bodies), 0, 1, first, zlib.crc32(entries), len(entries), 0, 0)  # noqa: E501  # fmt: skip
    return struct.pack(">HHB", DELIVER, 1, 0) + head + entries


def test_a_stream_connection_of_bench_counts_confirmed_and_refused_messages(
    streams: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stream protocol, `bench` counts each message that the broker confirms or refuses, and records when each
    confirm arrived.
    """
    made = StreamWire(NODE, PLAIN)
    assert (streams.address, streams.context) == (NODE._replace(heartbeat=0), None)
    assert made.credit == sys.maxsize
    made.start_publishing("", "s", confirms=True)
    assert streams.asked == [(("declare_publisher", "s", None, 0), "s")]
    confirmed: list[Any] = []
    refused: list[Any] = []
    made.on_confirm, made.on_nack = noted(confirmed, clock=made), noted(refused)
    monkeypatch.setattr(stream_wire, "time", SimpleNamespace(monotonic_ns=lambda: 99))
    streams.inbox.put(confirm(1, 2))
    streams.inbox.put(struct.pack(">HHBIQHQH", ERROR, 1, 0, 2, 3, 18, 4, 18))
    streams.inbox.put(confirm(5))
    made.wait(0.5)
    assert (confirmed, refused) == ([([1, 2], 99), ([5], 99)], [[3, 4]])
    assert streams.selected == [([9], [], 0)]
    made.wait(0.5)
    assert streams.selected[1:] == [([9], [], 0.5)]


def test_a_stream_connection_of_bench_fills_frames_up_to_their_limit(streams: StreamBroker) -> None:
    """With the stream protocol, `bench` sends as many messages in one frame as the broker allows, each of them once
    and with its sequence number and time. A message that is too large for a frame raises UsageError, whose hint asks
    for a smaller --size.
    """
    made = StreamWire(NODE, PLAIN)
    message = Message(b"...." + b"x" * 26)  # 35 bytes encoded
    template = made.template(message, 4, persistent=True)
    made.publish([(tag, template, b"%04d" % tag) for tag in range(1, 6)])
    sent = []
    for frame in streams.frames:
        size, key, version, publisher, count = struct.unpack_from(">IHHBI", frame)
        assert (size, key, version, publisher) == (len(frame) - 4, 2, 1, 0)
        assert len(frame) <= 200 + 4
        entries, rest = [], frame[13:]
        while rest:
            number, length = struct.unpack_from(">QI", rest)
            entries.append((number, rest[12 : 12 + length]))
            rest = rest[12 + length :]
        assert len(entries) == count
        sent.append(entries)
    assert [len(entries) for entries in sent] == [3, 2]
    assert [entry for entries in sent for entry in entries] == [
        (tag, encode(Message(b"%04d" % tag + message.body[4:]))) for tag in range(1, 6)
    ]
    largest = 200 - 16 - 12 - 5
    made.template(Message(b"x" * largest), 4, persistent=True)
    with pytest.raises(UsageError, match=f"a body of {largest + 1} bytes does not fit into a frame") as raised:
        made.template(Message(b"x" * (largest + 1)), 4, persistent=True)
    assert raised.value.hint == "the broker's frames have up to 200 bytes; choose a smaller --size"


def test_a_bench_consumer_of_a_stream_starts_at_an_offset(streams: StreamBroker) -> None:
    """With the stream protocol, a `bench` consumer that starts at an offset gets each message from this offset on
    exactly once, although the broker sends whole chunks, which may begin earlier. Each message has its own offset.
    """
    made = StreamWire(NODE, PLAIN)
    found: list[Delivery] = []
    made.consume("s", 30, found.extend, auto=False, offset=11)
    assert streams.asked == [(("subscribe", "s", 0, 11), "s")]
    streams.inbox.put(chunk(10, b"a", b"b"))
    streams.inbox.put(chunk(12, b"c"))
    made.wait(0.5)
    assert [(made.offset_of(each), each.body) for each in found] == [(11, b"b"), (12, b"c")]
    made.acknowledge([(1, True)])
    assert len(streams.frames) == 2  # credit for each chunk


def test_a_bench_consumer_ignores_a_chunk_that_ends_before_its_offset(streams: StreamBroker) -> None:
    """If a `bench` consumer reads a stream from an offset, and a chunk contains only messages before this offset, the
    consumer gets none of them.
    """
    made = StreamWire(NODE, PLAIN)
    found: list[Any] = []
    made.consume("s", 30, found.append, auto=False, offset=11)
    streams.inbox.put(chunk(9, b"a", b"b"))
    made.wait(0.5)
    assert found == []
    made.consume("s", 30, found.append, auto=False, offset=None)
    assert streams.asked[-1] == (("subscribe", "s", 0, 0), "s")


def test_a_lost_stream_connection_raises_connection_error_with_the_reason(streams: StreamBroker) -> None:
    """If a stream connection is lost, or the broker has moved or deleted the stream, ConnectionError is raised with
    the reason, so that the `bench` client reconnects.
    """
    made = StreamWire(NODE, PLAIN)
    streams.inbox.put(struct.pack(">HHHH", METADATA_UPDATE, 1, 6, 0))
    with pytest.raises(ConnectionError, match=r"^the stream has moved, or was deleted$"):
        made.wait(0.5)
    for lost, message in ((None, "closed by the other end"), (OSError(104, "reset"), "reset")):
        streams.lost = lost
        streams.inbox.put(None)
        with pytest.raises(ConnectionError, match=message):
            made.wait(0.5)


def test_a_bench_client_reads_orders_while_it_waits_for_stream_frames(streams: StreamBroker) -> None:
    """While a `bench` client waits for frames of the stream protocol, it also reads the orders that `bench` sends it,
    such as the order to stop. Reading an order does not run the connection's event loop, whose overhead would be part
    of the measured latencies. The loop runs only when the connection can receive or send data.
    """
    made = StreamWire(NODE, PLAIN)
    read: list[str] = []
    made.watch(3, lambda: read.append("order"))
    runs: list[str] = []
    streams.loop.call_soon(lambda: runs.append("run"))
    streams.readable = [3]
    made.wait(0.25)
    assert (read, runs, streams.selected) == (["order"], [], [([9, 3], [], 0.25)])
    streams.readable = [9]
    made.wait(0.25)
    assert (read, runs) == (["order"], ["run"])
    streams.readable, streams.unsent = [], 5
    streams.loop.call_soon(lambda: runs.append("run"))
    made.wait(0.25)
    assert (runs, streams.selected[-1], made.unsent) == (["run", "run"], ([9, 3], [9], 0.25), 5)


def test_a_stream_connection_of_bench_closes_its_event_loop(streams: StreamBroker) -> None:
    """Closing a stream connection of `bench` also closes its event loop. If the connection cannot be opened, its
    event loop is closed, too.
    """
    made = StreamWire(NODE, PLAIN)
    made.close()
    assert (streams.closed, streams.loop.is_closed()) == (1, True)
    streams.failure = Unavailable("no broker")
    with pytest.raises(Unavailable, match="no broker"):
        StreamWire(NODE, PLAIN)
    assert streams.loop.is_closed()


@pytest.mark.parametrize("protocol", ["amqp1.0", "stream"])
def test_connections_of_bench_use_tls_if_the_url_begins_with_amqps(
    protocol: str, streams: StreamBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the URL of the broker begins with amqps://, the connections of `bench` use TLS, with the given certificates.
    With a client certificate and no user in the URL, they log in with this certificate.
    """
    files = Mock(TlsFiles)
    files.context.return_value = "context"
    files.logs_in.side_effect = lambda address: not address.names_user
    links = Mock()
    monkeypatch.setattr(amqp10_wire, "LinkConnection", links)
    for address in (NODE._replace(tls=True), NODE, NODE._replace(names_user=True)):
        if protocol == "stream":
            StreamWire(address, files).close()
            assert streams.context == ("context" if address.tls else None)
        else:
            Amqp10Wire(address, files)
            (addresses, context), options = links.call_args
            assert addresses == [address]
            assert context == ("context" if address.tls else None)
            assert options == {"backoff": None, "confirm_timeout": 0, "notice": wire.ignore, "threaded": False}
    if protocol == "amqp1.0":
        StreamWire(NODE, PLAIN)
