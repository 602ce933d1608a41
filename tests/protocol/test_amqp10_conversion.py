"""Messages between AMQP 0-9-1, AMQP 1.0 and the stream protocol: on the embedded broker and on RabbitMQ."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.amqp10_message import (
    Amqp10Message,
    BareProperties,
    MessageHeader,
    body_bytes,
    data_section,
    value_section,
)
from mqtool.codecs.amqp10_values import Described, Milliseconds, Symbol, ULong
from mqtool.codecs.amqp10_values import encode as encode_value
from mqtool.codecs.field_tables import Int32, Int64, UInt8, UInt32
from tests.brokers import TestBroker
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import AnyHeaders, Api, Take
from tests.protocol.raw_amqp10 import ACCEPTED, ATTACH, CLOSE, RECEIVER, SOURCE, TARGET, RawAmqp10, described
from tests.protocol.raw_stream import RawStream, string
from tests.protocol.test_amqp10_frames import broker, client, embedded

__all__ = ["broker", "client", "embedded"]

_ACCEPT = described(ACCEPTED)
_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
_TIME = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
_HEADERS: dict[str, Any] = {"text": "é", "number": Int32(5), "big": Int64(1 << 40), "true": True, "void": None}
_ANNOTATIONS: dict[str, Any] = {"x-mine": "kept", "x-list": ["a", Int32(1)]}

#: The content of a message, the same in every protocol.
_SAID: dict[str, Any] = {
    "message_id": _ID.urn,
    "correlation_id": "cid",
    "content_type": "text/plain",
    "content_encoding": "gzip",
    "user_id": "guest",
    "reply_to": "back to",
    "time": int(_TIME.timestamp()),
    "app_id": "app",
    "type": "kind",
    "durable": True,
    "priority": 3,
    "ttl": 100_000,
    "headers": _HEADERS,
    "annotations": _ANNOTATIONS,
    "body": b"body",
}


@pytest.fixture
def stream(broker: TestBroker) -> Iterator[RawStream]:
    """A client of the stream protocol."""
    if not broker.streams:
        pytest.skip("MQTOOL_TEST_STREAMS names no stream port of this RabbitMQ")
    where = urlsplit(broker.streams)
    client = RawStream(str(where.hostname), int(where.port or 0))
    client.log_in()
    assert client.request(21, string(broker.vhost)).code == 1
    yield client
    client.close()


def _sections() -> Amqp10Message:
    """The message in AMQP 1.0."""
    return Amqp10Message(
        MessageHeader(True, UInt8(3), UInt32(100_000)),
        message_annotations={Symbol(name): value for name, value in (_ANNOTATIONS | {"x-basic-type": "kind"}).items()},
        properties=BareProperties(
            message_id=_ID,
            user_id=b"guest",
            reply_to="/queues/back%20to",
            correlation_id="cid",
            content_type=Symbol("text/plain"),
            content_encoding=Symbol("gzip"),
            creation_time=Milliseconds(int(_TIME.timestamp()) * 1000),
            group_id="app",
        ),
        application_properties=_HEADERS,
        body=data_section(b"body"),
    )


def _publish_091(channel: BlockingChannel, queue: str) -> None:
    properties = pika.BasicProperties(
        content_type="text/plain",
        content_encoding="gzip",
        headers=_HEADERS | _ANNOTATIONS,
        delivery_mode=2,
        priority=3,
        correlation_id="cid",
        reply_to="back to",
        expiration="100000",
        message_id=_ID.urn,
        timestamp=int(_TIME.timestamp()),
        type="kind",
        user_id="guest",
        app_id="app",
    )
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"body", properties, mandatory=True)


def _publish_10(client: RawAmqp10, queue: str, message: Amqp10Message) -> None:
    client.attach_sender(f"/queues/{queue}", handle=5)
    assert client.published(0, message.encode(), handle=5) == _ACCEPT


def _publish_stream(stream: RawStream, queue: str) -> None:
    assert stream.declare_publisher(1, queue) == 1
    stream.publish(1, 0, _sections().encode())
    assert stream.confirmed(1) == [0]


def _read_091(take: Take, channel: BlockingChannel, queue: str, *, is_stream: bool) -> tuple[Any, bytes]:
    """The properties and the body of the first message in a queue."""
    if not is_stream:
        _, properties, body = take.one(queue)
        return properties, body
    got: list[Any] = []
    channel.basic_qos(prefetch_count=10)
    channel.basic_consume(queue, lambda *given: got.append(given[2:]), arguments={"x-stream-offset": "first"})
    take.until(lambda: got)
    return got[0]  # type: ignore[no-any-return]


def _said_091(properties: Any, body: bytes) -> dict[str, Any]:
    headers = dict(properties.headers or {})
    headers.pop("x-stream-offset", None)
    return {
        "message_id": properties.message_id,
        "correlation_id": properties.correlation_id,
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "user_id": properties.user_id,
        "reply_to": None if properties.reply_to is None else unquote(properties.reply_to.removeprefix("/queues/")),
        "time": properties.timestamp,
        "app_id": properties.app_id,
        "type": properties.type,
        "durable": properties.delivery_mode == 2,
        "priority": properties.priority,
        "ttl": int(properties.expiration),
        "headers": {name: value for name, value in headers.items() if not name.startswith("x-")},
        "annotations": {name: value for name, value in headers.items() if name.startswith("x-")},
        "body": body,
    }


def _read_10(client: RawAmqp10, queue: str, *, is_stream: bool) -> Amqp10Message:
    """The first message in a queue."""
    spec = Symbol("rabbitmq:stream-offset-spec")
    source = (None, None, None, None, None, None, {spec: Described(spec, "first")}) if is_stream else ()
    client.attach(RECEIVER, f"/queues/{queue}", handle=6, source=source)
    client.expect(0x12)
    client.flow(6, 10)
    return client.expect(0x14).message


def _said_10(message: Amqp10Message) -> dict[str, Any]:
    bare, annotations = message.properties, {str(name): each for name, each in message.message_annotations.items()}
    for name in ("x-exchange", "x-routing-key", "x-stream-offset"):
        annotations.pop(name, None)
    return {
        "message_id": bare.message_id.urn if isinstance(bare.message_id, uuid.UUID) else bare.message_id,
        "correlation_id": bare.correlation_id,
        "content_type": bare.content_type,
        "content_encoding": bare.content_encoding,
        "user_id": None if bare.user_id is None else bare.user_id.decode(),
        "reply_to": None if bare.reply_to is None else unquote(bare.reply_to.removeprefix("/queues/")),
        "time": None if bare.creation_time is None else bare.creation_time // 1000,
        "app_id": bare.group_id,
        "type": annotations.pop("x-basic-type", None),
        "durable": message.header.durable,
        "priority": message.header.priority,
        "ttl": message.header.ttl,
        "headers": message.application_properties,
        "annotations": annotations,
        "body": body_bytes(message.body),
    }


_PATHS = [
    (sender, kind, reader)
    for kind in ("classic", "quorum", "stream")
    for sender in ("0-9-1", "1.0", *(["stream"] if kind == "stream" else []))
    for reader in ("0-9-1", "1.0", *(["stream"] if kind == "stream" else []))
]


@pytest.mark.parametrize(("sender", "kind", "reader"), _PATHS)
def test_a_message_keeps_its_content_across_protocols(
    channel: BlockingChannel,
    take: Take,
    client: RawAmqp10,
    request: pytest.FixtureRequest,
    sender: str,
    kind: str,
    reader: str,
) -> None:
    """A message with a binary body can be published over AMQP 0-9-1, AMQP 1.0 or the stream protocol and read over any
    of the three. Its properties, headers, annotations and body are unchanged.
    """
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
    match sender:
        case "0-9-1":
            _publish_091(channel, "q")
        case "1.0":
            _publish_10(client, "q", _sections())
        case _:
            _publish_stream(request.getfixturevalue("stream"), "q")
    match reader:
        case "0-9-1":
            said = _said_091(*_read_091(take, channel, "q", is_stream=kind == "stream"))
        case "1.0":
            said = _said_10(_read_10(client, "q", is_stream=kind == "stream"))
        case _:
            subscriber = request.getfixturevalue("stream")
            assert subscriber.subscribe(1, "q") == 1
            said = _said_10(Amqp10Message.decode(subscriber.entries(1)[0]))
    assert said == _SAID


@pytest.mark.parametrize("like", ["4.0", "4.3"])
def test_a_message_that_cannot_be_converted_ends_the_receivers_connection_and_stays(like: str) -> None:
    """If RabbitMQ 4 cannot convert a value in a message for the receiver's protocol, the embedded broker ends the
    receiver's connection with an internal error, too. The message is not lost: the other protocol still delivers it. A
    stream takes no such message from a publisher.
    """
    with EmbeddedBroker(like=like) as broker:
        for kind in ("classic", "stream"):
            with RawAmqp10(broker.url) as sender:
                channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
                channel.basic_qos(prefetch_count=1)
                channel.queue_declare(kind, durable=True, arguments={"x-queue-type": kind})
                _publish_10(sender, kind, Amqp10Message(application_properties={"u": _ID}, body=data_section(b"10")))
                offset = {"x-stream-offset": "first"} if kind == "stream" else {}
                with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="541"):  # with the first delivery
                    next(channel.consume(kind, arguments=offset, inactivity_timeout=60))
                assert _read_10(sender, kind, is_stream=kind == "stream").application_properties == {"u": _ID}
        channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
        channel.queue_purge("classic")
        channel.confirm_delivery()
        channel.basic_publish("", "classic", b"091", AnyHeaders(headers={"d": Decimal("1.5")}))
        with RawAmqp10(broker.url) as receiver:
            receiver.attach_receiver("/queues/classic")
            assert str(receiver.expect(CLOSE).error).startswith("('amqp:internal-error', 'Session error: ")
        assert Take(channel).one("classic")[1].headers == {"d": Decimal("1.5")}
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="541"):
            channel.basic_publish("", "stream", b"091", AnyHeaders(headers={"d": Decimal("1.5")}))


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
@pytest.mark.parametrize(
    "body",
    [
        data_section(b"one") + data_section(b"two"),
        value_section("text"),
        value_section({"a": [Int64(1), None]}),
        b"\x00Sv" + encode_value([Int64(1)]) + b"\x00Sv" + encode_value(["b"]),
    ],
    ids=["data", "value", "map", "sequences"],
)
def test_an_amqp_1_0_message_keeps_what_amqp_0_9_1_cannot_express(
    channel: BlockingChannel, client: RawAmqp10, kind: str, body: bytes
) -> None:
    """A message that is sent and received over AMQP 1.0 keeps its properties, application properties and footer,
    including everything that AMQP 0-9-1 cannot express. Its body is unchanged, whether it consists of data sections,
    sequences or a value.
    """
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
    sent = Amqp10Message(
        MessageHeader(True),
        properties=BareProperties(
            ULong(5), to="/queues/elsewhere", subject="subject", reply_to="anything", correlation_id=b"\0\xff",
            absolute_expiry_time=Milliseconds(1), group_sequence=UInt32(7), reply_to_group_id="group",
        ),
        application_properties={"id": _ID},
        body=body,
        footer={Symbol("x-sum"): Int64(1)},
    )  # fmt: skip
    _publish_10(client, "q", sent)
    got = _read_10(client, "q", is_stream=kind == "stream")
    assert (got.properties, got.application_properties) == (sent.properties, sent.application_properties)
    assert (got.body, got.footer) == (sent.body, sent.footer)


def test_a_value_body_arrives_encoded_over_amqp_0_9_1(channel: BlockingChannel, take: Take, client: RawAmqp10) -> None:
    """If the body of an AMQP 1.0 message is a value, the message arrives over AMQP 0-9-1 with the encoded value as its
    body, and `amqp-1.0` as its property `type`. If an AMQP 0-9-1 client publishes this message again, an AMQP 1.0
    receiver gets the original value.
    """
    channel.queue_declare("q", durable=True)
    _publish_10(client, "q", Amqp10Message(body=value_section(["a", True])))
    _, properties, body = take.one("q")
    assert (properties.type, body) == ("amqp-1.0", value_section(["a", True]))
    channel.basic_publish("", "q", body, properties)
    assert _read_10(client, "q", is_stream=False).body == body


@pytest.mark.parametrize("reader", ["0-9-1", "1.0"])
@pytest.mark.parametrize("sender", ["0-9-1", "1.0"])
def test_a_dead_letter_carries_its_death_history_over_each_protocol(
    channel: BlockingChannel, take: Take, client: RawAmqp10, sender: str, reader: str
) -> None:
    """Whichever protocol a message was published over, its dead letter has the header x-death over AMQP 0-9-1 and the
    annotation x-opt-deaths over AMQP 1.0.
    """
    channel.queue_declare("dead", durable=True)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", "x-message-ttl": 1}
    channel.queue_declare("q", durable=True, arguments=arguments)
    before = int(time.time())
    if sender == "1.0":
        _publish_10(client, "q", Amqp10Message(body=data_section(b"body")))
    else:
        channel.basic_publish("", "q", b"body")
    marks = {f"x-{which}-death-{name}": value for which in ("first", "last")
             for name, value in (("reason", "expired"), ("queue", "q"), ("exchange", ""))}  # fmt: skip
    if reader == "0-9-1":
        headers = take.one("dead")[1].headers
        (death,) = headers.pop("x-death")
        assert (death["queue"], death["reason"], death["count"], death["routing-keys"]) == ("q", "expired", 1, ["q"])
        assert headers == marks
        return
    got = _read_10(client, "dead", is_stream=False)
    annotations = {str(name): value for name, value in got.message_annotations.items()}
    (death,) = annotations.pop("x-opt-deaths")
    assert {str(name): value for name, value in death.items() if not name.endswith("-time")} == {
        "queue": "q", "reason": "expired", "count": 1, "exchange": "", "routing-keys": ["q"],
    }  # fmt: skip
    assert before - 5 <= death[Symbol("first-time")] // 1000
    assert annotations == {"x-exchange": "", "x-routing-key": "dead"} | marks
    assert got.header.first_acquirer is False
    assert got.body == data_section(b"body")


def test_a_dead_letter_keeps_its_expiration_for_streams_and_amqp_1_0(
    channel: BlockingChannel, take: Take, client: RawAmqp10
) -> None:
    """Queues take no account of a dead letter's expiration, and AMQP 0-9-1 consumers do not see it. But AMQP 1.0
    receivers get it as the ttl, and a stream stores it, with the header CC.
    """
    channel.exchange_declare("dlx", "fanout")
    for queue, kind in (("dead", "classic"), ("log", "stream")):
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        channel.queue_bind(queue, "dlx")
    channel.queue_declare("q", durable=True, arguments={"x-dead-letter-exchange": "dlx"})
    properties = pika.BasicProperties(headers={"zz": 1, "CC": ["copy"]}, expiration="100000")
    for _ in range(2):
        channel.basic_publish("", "q", b"", properties)
        channel.basic_nack(take.one("q", auto_ack=False)[0].delivery_tag, requeue=False)
    assert take.one("dead")[1].expiration is None
    assert _read_10(client, "dead", is_stream=False).header.ttl == 100_000
    kept, _ = _read_091(take, channel, "log", is_stream=True)
    assert (kept.expiration, kept.headers["CC"]) == ("100000", ["copy"])
    assert [*kept.headers] == sorted(kept.headers)  # including x-stream-offset


def test_a_publishers_own_x_death_and_durable_false_are_no_more_than_that(
    channel: BlockingChannel, take: Take, client: RawAmqp10
) -> None:
    """An x-death header that an AMQP 0-9-1 publisher has set becomes an ordinary annotation. If an AMQP 1.0 publisher
    says that a message is not durable, the message has no delivery mode over AMQP 0-9-1.
    """
    channel.queue_declare("q", durable=True)
    death = {"count": 1, "reason": "expired", "queue": "q", "exchange": "", "routing-keys": ["q"], "time": _TIME}
    channel.basic_publish("", "q", b"", pika.BasicProperties(headers={"x-death": [death]}))
    annotations = _read_10(client, "q", is_stream=False).message_annotations
    assert "x-opt-deaths" not in annotations
    assert [death["queue"] for death in annotations["x-death"]] == ["q"]
    channel.queue_declare("other", durable=True)
    _publish_10(client, "other", Amqp10Message(MessageHeader(False), body=data_section(b"")))
    assert take.one("other")[1].delivery_mode is None


def test_the_header_cc_and_the_annotation_x_cc_are_converted_into_each_other(
    broker: TestBroker, channel: BlockingChannel, take: Take, client: RawAmqp10
) -> None:
    """From RabbitMQ 4.2 on, both the header CC (AMQP 0-9-1) and the annotation x-cc (AMQP 1.0) add routing keys to a
    message. CC arrives as x-cc over AMQP 1.0, and x-cc arrives as CC over AMQP 0-9-1.
    """
    if not broker.differs_since("4.2", "x-cc is a list of routing keys"):
        pytest.skip("RabbitMQ 4.0 does not route by x-cc")
    for queue in ("q", "copy"):
        channel.queue_declare(queue, durable=True)
    _publish_10(client, "q", Amqp10Message(message_annotations={Symbol("x-cc"): ["copy"]}, body=data_section(b"")))
    for queue in ("q", "copy"):
        method, properties, _ = take.one(queue)
        assert (method.routing_key, properties.headers) == ("q", {"CC": ["copy"]})
    channel.basic_publish("", "q", b"", pika.BasicProperties(headers={"CC": ["copy"], "BCC": ["none"]}))
    got = _read_10(client, "copy", is_stream=False)
    assert got.message_annotations == {"x-exchange": "", "x-routing-key": "q", "x-cc": ["copy"]}


@pytest.mark.parametrize(
    ("filter_", "chosen"),
    [
        (Described(Symbol("amqp:sql-filter"), "colour = 'red' AND size > 2"), [b"3"]),
        (Described(Symbol("amqp:properties-filter"), {Symbol("subject"): "&p:ord"}), [b"1", b"3"]),
        (Described(Symbol("amqp:application-properties-filter"), {"colour": "red", "size": 1}), [b"1"]),
    ],
    ids=["sql", "properties", "application-properties"],
)
def test_a_stream_receiver_with_an_sql_or_property_filter_gets_only_matching_messages(
    broker: TestBroker, channel: BlockingChannel, client: RawAmqp10, filter_: Described, chosen: list[bytes]
) -> None:
    """From RabbitMQ 4.2 on, an AMQP 1.0 receiver of a stream can attach with an SQL filter, or with a filter for
    properties or application properties. The receiver then gets only the matching messages.
    """
    if not broker.differs_since("4.2", "messages are filtered"):
        pytest.skip("RabbitMQ 4.0 filters no messages")
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    client.attach_sender("/queues/s", handle=5)
    for number, colour in enumerate(("none", "red", "blue", "red")):
        properties = BareProperties(subject="orders" if colour == "red" else "others")
        message = Amqp10Message(
            properties=properties,
            application_properties={"colour": colour, "size": Int32(number)},
            body=data_section(str(number).encode()),
        )
        assert client.published(number, message.encode(), handle=5) == _ACCEPT
    spec = Symbol("rabbitmq:stream-offset-spec")
    name = Symbol("sql-filter")
    wanted = {spec: Described(spec, "first"), name: filter_}
    if filter_.descriptor != "amqp:sql-filter":
        wanted = {spec: Described(spec, "first"), Symbol("any"): filter_}
    client.attach(RECEIVER, "/queues/s", handle=6, source=(None, None, None, None, None, None, wanted))
    answer = client.expect(0x12)
    assert answer.field(5).value[7] == wanted
    client.flow(6, 10)
    assert [client.expect(0x14).body for _ in chosen] == chosen


def test_the_management_api_lists_and_closes_amqp_1_0_connections(
    broker: TestBroker, api: Api, channel: BlockingChannel, take: Take, client: RawAmqp10
) -> None:
    """As in RabbitMQ, the management API lists the connections, sessions, links and consumers of AMQP 1.0 clients. A
    DELETE request for such a connection closes it.
    """
    channel.queue_declare("q", durable=True)
    client.attach_sender("/queues/q", handle=5)
    client.attach_receiver("/queues/q", handle=6, credit=3)
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    offset = "rabbitmq:stream-offset-spec"
    source = (*[None] * 6, {Symbol(offset): Described(Symbol(offset), "first")})
    client.attach_receiver("/queues/s", handle=7, credit=0, source=source)
    ends = described(SOURCE, "/management"), described(TARGET, "/management")
    paired = (*[None] * 6, {Symbol("paired"): True})
    client.send(ATTACH, "pair", UInt32(8), RECEIVER, UInt8(1), None, *ends, *paired)
    client.expect(ATTACH)

    def views(path: str) -> Any:
        return api("GET", f"vhosts/{broker.vhost}/{path}")[1]

    shows_sessions = broker.differs_since("4.2", "sessions are shown")

    def shown() -> list[Any]:
        found = [each for each in views("connections") if each.get("protocol") == "AMQP 1-0"]
        return [each for each in found if each.get("channels") or not shows_sessions]

    take.until(shown)
    (found,) = shown()
    assert (found["user"], found["vhost"]) == ("guest", broker.vhost)
    if not shows_sessions:
        return
    assert (found["state"], found["container_id"], found["channels"]) == ("running", "raw", 1)
    (session,) = api("GET", f"connections/{quote(found['name'], safe='')}/sessions")[1]
    assert session["channel_number"] == 0
    (sender,) = session["incoming_links"]
    links = {each["handle"]: each for each in session["outgoing_links"]}
    receiver = links[6]
    assert receiver["filter"] == []
    assert links[7]["filter"] == [{"name": offset, "descriptor": offset, "value": "first"}]
    assert (links[8]["source_address"], links[8]["queue_name"], links[8]["send_settled"]) == ("/management", "", True)
    assert (sender["handle"], sender["link_name"], sender["target_address"]) == (5, "link-5", "/queues/q")
    assert (receiver["handle"], receiver["source_address"], receiver["queue_name"]) == (6, "/queues/q", "q")
    assert (receiver["credit"], receiver["send_settled"]) == (3, False)
    assert (session["handle_max"], sender["delivery_count"], receiver["delivery_count"]) == (255, 0, 0)
    assert {"incoming_window", "next_incoming_id", "next_outgoing_id", "remote_incoming_window"} <= {*session}
    assert {"snd_settle_mode", "max_message_size", "credit"} <= {*sender}
    there = {"name": "q", "vhost": broker.vhost}

    def consumers() -> list[Any]:
        return [each for each in api("GET", "consumers")[1] if each["queue"] == there]

    take.until(consumers)
    (consumer,) = consumers()
    assert (consumer["queue"]["name"], consumer["channel_details"], consumer["ack_required"]) == ("q", {}, True)
    api("DELETE", f"connections/{quote(found['name'], safe='')}")
    error = client.expect(CLOSE).error
    assert error is not None
    assert error[0] in ("amqp:internal-error", "amqp:connection:forced")


def test_all_sections_of_an_amqp_1_0_message_survive_a_crash(tmp_path: Path) -> None:
    """After the broker is killed and restarted, a stored AMQP 1.0 message still has its header, annotations,
    properties, body and footer.
    """
    sent = Amqp10Message(
        MessageHeader(True, UInt8(3)),
        message_annotations={Symbol("x-a"): Symbol("b")},
        properties=BareProperties(_ID, subject="subject", group_sequence=UInt32(7)),
        application_properties={"id": _ID},
        body=value_section(["a", None]),
        footer={Symbol("x-f"): Int64(1)},
    )
    with BrokerProcess(tmp_path, "--data-dir", str(tmp_path / "data"), "--like", "4.3") as process:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(process.url))) as connection:
            connection.channel().queue_declare("q", durable=True)
        with RawAmqp10(process.url) as client:
            _publish_10(client, "q", sent)
            before = _read_10(client, "q", is_stream=False)
        process.kill()
        process.start()
        with RawAmqp10(process.url) as client:
            after = _read_10(client, "q", is_stream=False)
        assert (before.properties, before.application_properties) == (sent.properties, sent.application_properties)
        assert (after.header.durable, after.header.priority) == (True, 3)
        assert (after.message_annotations, after.properties) == (before.message_annotations, before.properties)
        assert (after.application_properties, after.body) == (before.application_properties, before.body)
        assert after.footer == sent.footer
