"""Messages converted between AMQP 1.0 and AMQP 0-9-1, compared with RabbitMQ 4.3.6."""

import uuid
from dataclasses import replace

import pytest

from mqtool.broker.embedded.model import stream_queue
from mqtool.broker.embedded.model.amqp_message import (
    BrokerMessage,
    ContentHeader,
    HeaderReader,
    MessageProperties,
    encode_address,
    encode_short,
)
from mqtool.broker.embedded.model.dead_lettering import dead_letter
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like, Profile
from mqtool.broker.embedded.model.sectioned import BadCarbonCopies, NotAMessage, Sectioned, encode, parse, parse_stored
from mqtool.broker.embedded.model.stream_queue import Cursor, StreamQueue, StreamQueueReader, wanted_filters
from mqtool.broker.embedded.model.stream_segment import simple_entry
from mqtool.broker.embedded.store.database import StoredEntry
from mqtool.codecs.amqp10_message import (
    Amqp10Message,
    BareProperties,
    MessageHeader,
    data_section,
    section_at,
    value_section,
)
from mqtool.codecs.amqp10_values import Any10, Array, Char, Map, Milliseconds, RawDecimal, Symbol, ULong
from mqtool.codecs.amqp10_values import encode as encode_value
from mqtool.codecs.field_tables import (
    ByteArray,
    Decimal,
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    Table,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
    encode_table,
)
from tests.unit.embedded.test_stream_log import HandClock

_LIKE = PROFILES[Like.V4_3]
_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
_WIDE = BareProperties(
    "mid",
    b"guest",
    "/queues/zz",
    "subject",
    "/queues/r%20q",
    "cid",
    Symbol("text/plain"),
    Symbol("gzip"),
    Milliseconds(1800000000000),
    Milliseconds(1700000000123),
    "group",
    UInt32(7),
    "reply-group",
)


def _published(message: Amqp10Message) -> Sectioned:
    return parse(message.encode()).to("logs", "key", _LIKE)


def _delivered(message: BrokerMessage, **how: Any10) -> Amqp10Message:
    return Amqp10Message.decode(encode(message, _LIKE, **how))


def _from_091(fields: dict[str, bytes], body: bytes = b"body") -> BrokerMessage:
    return BrokerMessage(encode_address("logs", "key"), ContentHeader.of(MessageProperties.of(fields), len(body)), body)


def test_amqp_1_0_properties_become_0_9_1_properties() -> None:
    """The embedded broker converts the header and properties of an AMQP 1.0 message to the same AMQP 0-9-1 properties
    as RabbitMQ does.
    """
    message = _published(
        Amqp10Message(MessageHeader(True, UInt8(5), UInt32(100000)), properties=_WIDE, body=data_section(b"body"))
    )
    assert message.properties.named() == {
        "content_type": "text/plain",
        "content_encoding": "gzip",
        "delivery_mode": 2,
        "priority": 5,
        "correlation_id": "cid",
        "reply_to": "r q",
        "expiration": "100000",
        "message_id": "mid",
        "timestamp": 1700000000,
        "user_id": "guest",
        "app_id": "group",
    }
    assert (message.exchange, message.routing_key, message.body) == ("logs", "key", b"body")


@pytest.mark.parametrize(
    ("sent", "property_", "header"),
    [
        (_ID, "urn:uuid:00112233-4455-6677-8899-aabbccddeeff", None),
        (ULong(2**64 - 1), "18446744073709551615", None),
        (b"\x01\xff", None, ByteArray(b"\x01\xff")),
        ("m" * 255, "m" * 255, None),
        ("m" * 256, None, "m" * 256),
    ],
)
def test_amqp_1_0_ids_of_every_type_are_converted(sent: Any10, property_: str | None, header: object) -> None:
    """If the message id or correlation id of an AMQP 1.0 message is a string of at most 255 bytes, a UUID or a number,
    it becomes an AMQP 0-9-1 property as text. Any other id becomes a header.
    """
    message = _published(Amqp10Message(properties=BareProperties(sent, correlation_id=sent), body=data_section(b"")))
    for name in ("message_id", "correlation_id"):
        assert message.properties.named().get(name) == property_
        assert message.headers.get(f"x-{name.replace('_', '-')}") == header


def test_application_properties_become_headers_of_the_corresponding_type() -> None:
    """Each application property of an AMQP 1.0 message becomes an AMQP 0-9-1 header of the corresponding type. It is
    dropped if its name is longer than 255 bytes, or if AMQP 0-9-1 cannot express its value.
    """
    application: Map = {
        "text": "é", "symbol": Symbol("s"), "null": None, "true": True, "ubyte": UInt8(1), "ushort": UInt16(2),
        "uint": UInt32(3), "ulong": ULong(2**63 + 5), "byte": Int8(-1), "short": Int16(-2), "int": Int32(-3),
        "long": Int64(-4), "float": Float32(1.5), "double": 2.5, "time": Milliseconds(1700000000123),
        "bytes": b"\x00\xff", "uuid": _ID, "char": Char("x"), "decimal": RawDecimal(b"1234"), "nan": float("nan"),
        "x-app": "kept", "x" * 256: "too long",
    }  # fmt: skip
    headers = _published(Amqp10Message(application_properties=application, body=data_section(b""))).headers
    assert headers == {
        "text": "é", "symbol": "s", "null": None, "true": True, "ubyte": 1, "ushort": 2, "uint": 3,
        "ulong": -(2**63) + 5, "byte": -1, "short": -2, "int": -3, "long": -4, "float": 1.5, "double": 2.5,
        "time": 1700000000, "bytes": b"\x00\xff", "uuid": str(_ID), "char": "x", "x-app": "kept",
    }  # fmt: skip
    assert [type(headers[name]) for name in ("ubyte", "ulong", "short", "float", "time")] == [
        UInt8, Int64, Int16, Float32, Timestamp,
    ]  # fmt: skip


def test_annotations_become_headers_except_those_that_the_broker_sets() -> None:
    """AMQP 0-9-1 clients get a message annotation as a header if its name begins with x-. There are exceptions: x-cc
    becomes the header CC, x-basic-type becomes the property `type`, and a publisher's x-exchange and x-routing-key are
    dropped. AMQP 1.0 clients get x-exchange and x-routing-key as the broker sets them.
    """
    annotations: Map = {
        Symbol("x-text"): "v", Symbol("x-list"): [Int64(1), "two", Symbol("3"), None, True],
        Symbol("x-map"): {"a": UInt32(1), Symbol("b"): b"z"}, Symbol("x-array"): Array(["p", "q"]),
        Symbol("x-basic-type"): "kind", Symbol("x-exchange"): "forged", Symbol("x-routing-key"): "forged",
        Symbol("x-cc"): ["other"],
    }  # fmt: skip
    sections = parse(Amqp10Message(message_annotations=annotations, body=data_section(b"")).encode())
    message = sections.to("logs", "key", _LIKE)
    assert sections.carbon_copies() == ["other"]
    assert message.properties.named()["type"] == "kind"
    assert message.headers == {
        "CC": ["other"], "x-array": ["p", "q"], "x-list": [1, "two", "3", None, True], "x-map": {"a": 1, "b": "z"},
        "x-text": "v",
    }  # fmt: skip
    kept = {name: value for name, value in annotations.items() if name not in ("x-exchange", "x-routing-key")}
    assert _delivered(message).message_annotations == {"x-routing-key": "key", "x-exchange": "logs"} | kept


@pytest.mark.parametrize("footer", [{}, {Symbol("x-sum"): Int64(1)}])
@pytest.mark.parametrize(
    ("body", "body_091"),
    [
        (data_section(b"one"), b"one"),
        (data_section(b""), b""),
        (data_section(b"l" * 300), b"l" * 300),
        (data_section(b"one") + data_section(b"two"), b"onetwo"),
        (value_section("text"), None),
        (value_section({"a": [Int64(1), None]}), None),
        (b"\x00Sv" + encode_value([1]) + b"\x00Sv" + encode_value([2]), None),
    ],
)
def test_every_kind_of_body_arrives_unchanged_over_amqp_1_0(body: bytes, body_091: bytes | None, footer: Map) -> None:
    """If an AMQP 1.0 client publishes a message whose body consists of data, value or sequence sections, AMQP 1.0
    consumers get the body and the footer unchanged.
    """
    sent = Amqp10Message(
        MessageHeader(True, UInt8(9), UInt32(5)), {Symbol("x-hop"): 1}, {}, _WIDE, {"uuid": _ID}, body, footer
    )
    message = _published(sent)
    encoded = sent.encode()
    bare = encoded[encoded.index(b"\x00Ss") :]
    assert encode(message, _LIKE).endswith(bare)
    assert _delivered(message).header == MessageHeader(True, UInt8(9), UInt32(5), True, UInt32(0))
    if body_091 is None:
        assert (message.properties.named()["type"], message.body) == ("amqp-1.0", bare[bare.index(body) :])
    else:
        assert (message.properties.named().get("type"), message.body) == (None, body_091)


def test_an_amqp_1_0_value_is_unchanged_after_it_is_republished_over_amqp_0_9_1() -> None:
    """If an AMQP 0-9-1 client receives a message whose body is an AMQP 1.0 value, and republishes it, AMQP 1.0
    consumers get the same value as the body of the republished message.
    """
    message = _published(Amqp10Message(body=value_section(["a", None])))
    back = _delivered(_from_091(message.properties.fields(), message.body))
    assert back.body == value_section(["a", None])


def test_amqp_0_9_1_properties_become_1_0_sections() -> None:
    """The embedded broker converts the properties and headers of an AMQP 0-9-1 message to the same AMQP 1.0 sections as
    RabbitMQ does.
    """
    headers: Table = {
        "text": "é", "long text": "l" * 5000, "nul": "a\0b", "bytes": ByteArray(b"b"), "u8": UInt8(1), "i": Int32(2),
        "l": Int64(3), "f": Float32(1.5), "d": 2.5, "t": Timestamp(1700000000), "true": True, "void": None,
        "list": [Decimal(1, 5)], "table": {"dropped": 1},
        "x-text": "a", "x-list": ["a", Int64(1)], "x-table": {"k": Int64(5)}, "CC": ["other"],
    }  # fmt: skip
    message = _from_091(
        {
            "content_type": encode_short(b"text/plain"),
            "content_encoding": encode_short(b"gzip"),
            "headers": encode_table(headers),
            "delivery_mode": b"\x02",
            "priority": b"\x07",
            "correlation_id": encode_short(_ID.urn.encode()),
            "reply_to": encode_short("back to/é".encode()),
            "expiration": encode_short(b"60000"),
            "message_id": encode_short(b"mid"),
            "timestamp": (1700000001).to_bytes(8),
            "type": encode_short(b"kind"),
            "user_id": encode_short(b"guest"),
            "app_id": encode_short(b"app"),
        }
    )
    found = _delivered(message, deliveries=2)
    assert found.header == MessageHeader(True, UInt8(7), UInt32(60000), False, UInt32(2))
    assert found.properties == BareProperties(
        "mid", b"guest", None, None, "/queues/back%20to%2F%C3%A9", _ID, Symbol("text/plain"), Symbol("gzip"), None,
        Milliseconds(1700000001000), "app",
    )  # fmt: skip
    assert found.application_properties == {
        "text": "é", "long text": b"l" * 5000, "nul": b"a\0b", "bytes": b"b", "u8": 1, "i": 2, "l": 3, "f": 1.5,
        "d": 2.5, "t": 1700000000000, "true": True, "void": None,
    }  # fmt: skip
    assert found.message_annotations == {
        "x-routing-key": "key", "x-exchange": "logs", "x-basic-type": "kind", "x-text": "a", "x-list": ["a", 1],
        "x-table": {"k": 5}, "x-cc": ["other"],
    }  # fmt: skip
    assert found.body == data_section(b"body")


def test_with_like_4_0_reply_to_is_not_converted() -> None:
    """With `broker up --like 4.0`, the broker does not convert reply-to between an AMQP 1.0 address and a queue name.
    The property has the same value over AMQP 1.0 and over AMQP 0-9-1.
    """
    old = PROFILES[Like.V4_0]
    sent = Amqp10Message(properties=BareProperties(reply_to="/queues/q"), body=data_section(b""))
    assert parse(sent.encode()).to("", "q", old).properties.reply_to == "/queues/q"
    delivered = Amqp10Message.decode(encode(_from_091({"reply_to": encode_short(b"q")}), old))
    assert delivered.properties.reply_to == "q"


def test_from_4_4_on_properties_that_rabbitmq_3_stored_as_annotations_are_lost() -> None:
    """In a stream, RabbitMQ 3 stored a message's priority, delivery mode and expiration as annotations. With `broker
    up --like 4.3`, the broker reads these annotations as properties. With `--like 4.4`, the properties are lost.
    """
    stored = {"x-basic-priority": UInt8(7), "x-basic-delivery-mode": UInt8(2), "x-basic-expiration": "60000"}
    annotations: Map = {Symbol(name): value for name, value in stored.items()}
    sections = parse(Amqp10Message(message_annotations=annotations, body=data_section(b"")).encode())

    def read(like: Like) -> tuple[object, ...]:
        properties = sections.to("", "q", PROFILES[like]).properties
        return properties.priority, properties.delivery_mode, properties.expiration

    assert read(Like.V4_3) == (7, 2, "60000")
    assert read(Like.V4_4) == (None, None, None)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_dead_letter_has_its_history_as_annotations(is_native: bool) -> None:
    """A dead letter that is delivered over AMQP 1.0 has the annotation x-opt-deaths. Further annotations contain the
    reason, the queue and the exchange for the first and the last time that the message was dead-lettered. A message
    that was published over AMQP 0-9-1 still has its ttl.
    """
    annotations: Map = {Symbol("x-a"): Symbol("b")}
    message = (
        _published(Amqp10Message(MessageHeader(ttl=UInt32(5)), {}, annotations, body=data_section(b"d")))
        if is_native
        else _from_091({"expiration": encode_short(b"5"), "headers": encode_table({"x-a": "b"})}, b"d")
    )
    dead = dead_letter(message, "work", "expired", "dlx", "dead", 1700000000123, trusts_deaths=False)
    found = _delivered(dead)
    assert found.header == MessageHeader(False, None, None if is_native else UInt32(5), False, UInt32(0))
    assert found.body == data_section(b"d")
    (death,) = found.message_annotations.pop(Symbol("x-opt-deaths"))
    assert death == {
        "ttl": 5, "queue": "work", "reason": "expired", "count": 1, "first-time": 1700000000123,
        "last-time": 1700000000123, "exchange": "logs", "routing-keys": ["key"],
    }  # fmt: skip
    assert found.message_annotations == {
        "x-routing-key": "dead", "x-exchange": "dlx", "x-a": "b",
        "x-first-death-reason": "expired", "x-first-death-queue": "work", "x-first-death-exchange": "logs",
        "x-last-death-reason": "expired", "x-last-death-queue": "work", "x-last-death-exchange": "logs",
    }  # fmt: skip


@pytest.mark.parametrize("is_native", [True, False])
def test_only_amqp_1_0_shows_both_the_first_and_the_last_time_of_dead_lettering(is_native: bool) -> None:
    """If a message was dead-lettered twice, its annotation x-opt-deaths (AMQP 1.0) contains the times of the first and
    the last dead-lettering, in milliseconds. Its header x-death (AMQP 0-9-1) contains only the time of the first one,
    in seconds.
    """
    # As in the module mc of RabbitMQ 4.3.5.
    dead = _published(Amqp10Message(body=data_section(b"d"))) if is_native else _from_091({}, b"d")
    for now in (1700000000123, 1700000005678):
        dead = dead_letter(dead, "work", "expired", "", "work", now, trusts_deaths=False)
    (death,) = _delivered(dead).message_annotations[Symbol("x-opt-deaths")]
    times = (death[Symbol("first-time")], death[Symbol("last-time")])
    assert (death[Symbol("count")], *times) == (2, 1700000000123, 1700000005678)
    (header,) = MessageProperties(dead.properties.encode()).headers["x-death"]
    assert header["time"] == Timestamp(1700000000)


def test_a_stored_message_is_the_same_when_read_back() -> None:
    """After an AMQP 1.0 message is stored in the data directory and read back, it has the same exchange, routing key,
    properties, annotations and body as before.
    """
    sent = Amqp10Message(
        MessageHeader(True), {}, {Symbol("x-a"): Symbol("b")}, _WIDE, {"u": _ID}, value_section("v"), {Symbol("x-f"): 1}
    )
    for message in (_published(sent), dead_letter(_published(sent), "q", "rejected", "", "k", 0, trusts_deaths=False)):
        row = StoredEntry(1, 1, None, 0, 0, *message.stored())
        restored = row.entry(HeaderReader()).message
        assert (restored.address, restored.header.raw, restored.body) == (
            message.address,
            message.header.raw,
            message.body,
        )
        assert _delivered(restored).message_annotations == _delivered(message).message_annotations
        # Without `redelivered`, the header of a dead letter would differ: it counts as new once it was read back.
        assert encode(restored, _LIKE, redelivered=True) == encode(message, _LIKE, redelivered=True)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "missing_amqp_message_body"),
        (Amqp10Message(properties=_WIDE).encode(), "missing_amqp_message_body"),
        (b"hello", "not a section"),
        (b"\x00Ss\xc0", "value cut short"),
        (b"\x00Su\xa0\xff12", "value cut short"),
        (b"\x00Su\xa1\x01a", "data is not binary"),
        (data_section(b"a")[:-1], "value cut short"),
        (b"\x00Ss\xc0\x01\x00" * 2 + data_section(b"a"), "sections in the wrong order"),
        (b"\x00Sp\xc0\x03\x01\xa1\x00" + data_section(b"a"), "header section is not valid"),
        (b"\x00Sp\xc1\x01\x00" + data_section(b"a"), "header section is not valid"),
        (Amqp10Message(MessageHeader(ttl=UInt32(5)), body=data_section(b"")).encode().replace(b"R\5", b"\xa3\0"),
         "header section is not valid"),
        (Amqp10Message(message_annotations={Symbol("a"): 1}, body=data_section(b"")).encode(),
         '{reserved_annotation_key,{symbol,<<"a">>}}'),
        (Amqp10Message(delivery_annotations={ULong(5): 1}, body=data_section(b"")).encode(),
         "{reserved_annotation_key,{ulong,5}}"),
        (Amqp10Message(message_annotations={"x-a": 1}, body=data_section(b"")).encode(),
         "{reserved_annotation_key,x-a}"),
        (Amqp10Message(application_properties={"a": "x" * (2**20 - 19)}, body=data_section(b"")).encode(),
         "sections before the body are longer than 1048576 bytes"),
    ],
)  # fmt: skip
def test_parsing_a_malformed_amqp_1_0_message_raises_not_a_message(payload: bytes, reason: str) -> None:
    """Parsing a malformed AMQP 1.0 message, for example one without a body or with its sections in the wrong order,
    raises NotAMessage. The error says what is wrong.
    """
    with pytest.raises(NotAMessage) as refused:
        parse(payload).to("", "q", _LIKE)
    assert str(refused.value) == reason


def test_the_sections_before_the_body_of_an_amqp_1_0_message_are_limited_to_1_mib() -> None:
    """The sections before the body of an AMQP 1.0 message can have a total size of up to 1,048,576 bytes. If they are
    one byte longer, parsing the message raises NotAMessage.
    """
    message = _published(Amqp10Message(application_properties={"a": "x" * (2**20 - 20)}, body=data_section(b"")))
    assert len(message.bare()) == 2**20 + len(data_section(b""))
    assert message.section_bytes > 2 * 2**20
    with pytest.raises(NotAMessage, match="sections before the body are longer than 1048576 bytes"):
        _published(Amqp10Message(application_properties={"a": "x" * (2**20 - 19)}, body=data_section(b"")))


def test_short_sections_of_successive_messages_are_converted_once() -> None:
    """If several AMQP 1.0 messages have the same sections before their bodies, the broker decodes and converts these
    sections only once. Long sections, such as a section of 500 bytes, are decoded for each message.
    """
    for size, is_kept in ((200, True), (500, False)):
        sent = Amqp10Message(MessageHeader(ttl=UInt32(5)), application_properties={"a": "x" * size})
        one, other = (_published(replace(sent, body=data_section(body))) for body in (b"1", b"2"))
        assert (one.headers is other.headers) == is_kept
        assert (one.sections.head is other.sections.head) == is_kept
        assert one.annotations() is one.sections.head.annotations
    sent = Amqp10Message(MessageHeader(ttl=UInt32(5)), {}, {Symbol("x-a"): "x" * 480}, body=data_section(b""))
    assert _published(sent).headers is not _published(sent).headers


def test_the_broker_changes_only_the_annotations_whose_headers_it_has_changed() -> None:
    """The broker converts the annotations of an AMQP 1.0 message to headers. If it adds or replaces a header whose name
    begins with x-, AMQP 1.0 consumers get this header as an annotation. All other annotations keep their types,
    including types that AMQP 0-9-1 does not have. The same is true after a restart.
    """
    annotations: Map = {Symbol("x-a"): 1, Symbol("x-b"): _ID, Symbol("x-c"): RawDecimal(b"1234")}
    sent = Amqp10Message(MessageHeader(True), {}, annotations, body=data_section(b"body"))
    message = _published(sent)
    changed = message.replace(headers={**message.headers, "x-a": "new", "x-d": Int64(2), "other": 5})
    row = StoredEntry(1, 1, None, 0, 0, *changed.stored())
    for each in (changed, row.entry(HeaderReader()).message):
        found = _delivered(each)
        assert found.message_annotations == {
            "x-routing-key": "key", "x-exchange": "logs", "x-a": "new", "x-b": _ID, "x-c": b"1234", "x-d": 2,
        }  # fmt: skip
        assert type(found.message_annotations[Symbol("x-c")]) is RawDecimal
        assert found.body == data_section(b"body")
        assert encode(each, _LIKE).count(b"\x00Sp") == encode(each, _LIKE).count(b"\x00Su") == 1


@pytest.mark.parametrize(
    ("exchange", "key", "address"),
    [("e", "k", ("e", "k")), ("e" * 255, "k" * 255, ("e" * 255, "k" * 255)), (None, "", ("", "")),
     ("e" * 256, "k" * 256, ("", "s")), ("é" * 128, "é" * 128, ("", "s")), (5, ["k"], ("", "s")),
     (None, None, ("", "s"))],
    ids=["names", "longest", "default exchange", "too long", "too many bytes", "not strings", "stream protocol"],
)  # fmt: skip
def test_a_stream_message_without_a_routing_key_gets_the_name_of_the_stream(
    exchange: Any10, key: Any10, address: tuple[str, str]
) -> None:
    """A message that is read from a stream gets its exchange and its routing key from the annotations x-exchange and
    x-routing-key. If x-exchange is missing or invalid, the message has the default exchange. If x-routing-key is
    missing or invalid, its routing key is the name of the stream.
    """
    given: Map = {Symbol("x-exchange"): exchange, Symbol("x-routing-key"): key, Symbol("a"): 1}
    annotations: Map = {name: value for name, value in given.items() if value is not None}
    sent = Amqp10Message(delivery_annotations={"b": 2}, message_annotations=annotations, body=data_section(b"body"))
    message = parse_stored(sent.encode(), "s", _LIKE)
    assert (message.exchange, message.routing_key, message.body) == (*address, b"body")
    broken = parse_stored(b"hello", "s", _LIKE)
    assert (broken.exchange, broken.routing_key, broken.body) == ("", "s", b"hello")


def test_x_cc_must_be_a_list_of_strings() -> None:
    """carbon_copies() returns the additional routing keys of an AMQP 1.0 message, which are in its annotation x-cc.
    If the annotation is not a list of strings, carbon_copies() raises BadCarbonCopies with the same error text as
    RabbitMQ. If a message has no x-cc, carbon_copies() returns an empty list.
    """
    sections = parse(
        Amqp10Message(message_annotations={Symbol("x-cc"): [Symbol("a")]}, body=data_section(b"")).encode()
    )
    with pytest.raises(BadCarbonCopies, match="bad value for 'x-cc' message-annotation"):
        sections.carbon_copies()
    assert parse(data_section(b"")).carbon_copies() == []


def _stream(like: Profile = _LIKE) -> tuple[StreamQueue, HandClock]:
    clock = HandClock()
    arguments: Table = {"x-queue-type": "stream"}
    return StreamQueue(
        "s", "/", clock, Ledger(), lambda *_: None, lambda _: None, lambda _: None, arguments=arguments, profile=like
    ), clock


def test_a_stream_converts_messages_between_amqp_1_0_and_amqp_0_9_1() -> None:
    """A message that is published to a stream over AMQP 1.0 or AMQP 0-9-1 can be read over either protocol, with its
    properties and annotations.
    """
    stream, clock = _stream()
    sent = Amqp10Message(MessageHeader(True, UInt8(3)), {}, {Symbol("x-a"): 1}, _WIDE, {"u": "v"}, data_section(b"10"))
    fields = {"message_id": encode_short(_ID.urn.encode()), "headers": encode_table({"h": Int32(5), "x-h": "a"})}
    for message in (_published(sent), _from_091(fields, b"091")):
        stream.publish(message)
    clock.turn()
    by_091, by_10 = Cursor(stream, 0), Cursor(stream, 0, selector=lambda _: True)
    for offset, body in enumerate((b"10", b"091")):
        entry = by_091.next_entry()
        assert entry is not None
        assert (entry.message.exchange, entry.message.routing_key, entry.message.body) == ("logs", "key", body)
        assert entry.message.headers["x-stream-offset"] == offset
        if offset:
            assert entry.message.headers == {"h": 5, "x-h": "a", "x-stream-offset": 1}
            assert entry.message.properties.named()["message_id"] == _ID.urn
        else:
            assert entry.message.headers == {"u": "v", "x-a": 1, "x-stream-offset": 0}
            assert entry.message.properties.named()["app_id"] == "group"
    for offset, properties in enumerate((_WIDE, BareProperties(_ID))):
        entry = by_10.next_entry()
        assert entry is not None
        found = _delivered(entry.message, added={Symbol("x-stream-offset"): Int64(entry.position)})
        assert found.properties == properties
        assert found.message_annotations == {
            "x-stream-offset": offset,
            "x-routing-key": "key",
            "x-exchange": "logs",
            **({"x-h": "a"} if offset else {"x-a": 1}),
        }
    assert by_10.next_entry() is None


@pytest.mark.parametrize("entry", [b"hello", b"\x00Sp\xc0\x03\x01\xa1\x00" + data_section(b"a"), b"\x00Su\xa0\xff"])
def test_a_stream_entry_that_is_not_a_message_is_delivered_as_a_body(entry: bytes) -> None:
    """If a stream entry is not a valid AMQP 1.0 message, it is delivered over both AMQP 1.0 and AMQP 0-9-1 with all its
    bytes as the body.
    """
    stream, clock = _stream()
    stream.log.append(simple_entry(entry))
    clock.turn()
    for cursor in (Cursor(stream, 0), Cursor(stream, 0, selector=lambda _: True)):
        delivered = cursor.next_entry()
        assert delivered is not None
        assert (delivered.message.body, delivered.message.routing_key) == (entry, "s")
        assert _delivered(delivered.message).body == data_section(entry)


@pytest.mark.parametrize("seconds", [-1, 60])
def test_the_broker_serves_other_clients_while_a_filter_skips_many_messages(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """If a stream consumer's filter selects none of many messages, the broker interrupts the search after some time to
    serve other clients. It later continues the search with the next message.
    """
    monkeypatch.setattr(stream_queue, "TURN_SECONDS", seconds)
    stream, clock = _stream()
    for _ in range(3):
        stream.publish(_from_091({}))
    clock.turn()
    cursor = Cursor(stream, 0, selector=lambda _: False)
    turns = 0
    while cursor.next_entry() is None and cursor.is_tired:
        turns += 1
    assert turns == (3 if seconds < 0 else 0)


def test_x_stream_filter_selects_chunks_by_their_filter_values() -> None:
    """A stream consumer with x-stream-filter skips chunks that contain none of the given filter values. With
    x-stream-match-unfiltered, it also gets chunks without a filter value.
    """
    stream, clock = _stream()
    for value in ("a", "b", None):
        annotations: Map = {} if value is None else {Symbol("x-stream-filter-value"): value}
        stream.publish(_published(Amqp10Message(message_annotations=annotations, body=data_section(b"body"))))
        clock.turn()

    def offsets(**arguments: Any10) -> list[int]:
        wanted: Table = {f"x-stream-{name.replace('_', '-')}": value for name, value in arguments.items()}
        cursor = Cursor(stream, 0, StreamQueueReader(stream.log, 0, wanted_filters(wanted)))
        return [entry.position for entry in iter(cursor.next_entry, None) if entry is not None]

    assert offsets() == [0, 1, 2]
    assert offsets(filter="a") == [0]
    assert offsets(filter=["a", "b"]) == [0, 1]
    assert offsets(filter="b", match_unfiltered=True) == [1, 2]


def test_a_message_delivered_over_amqp_1_0_has_the_same_bytes_as_in_rabbitmq() -> None:
    """The embedded broker encodes a message that it delivers over AMQP 1.0 as the same bytes as RabbitMQ does."""
    message = _published(Amqp10Message(properties=BareProperties("x"), body=data_section(b"hi")))
    assert encode(message, _LIKE) == (
        b"\x00Sp\xc0\x06\x05B@@AC\x00Sr\xc1'\x04\xa3\rx-routing-key\xa1\x03key\xa3\nx-exchange\xa1\x04logs"
        b"\x00Ss\xc0\x04\x01\xa1\x01x\x00Su\xa0\x02hi"
    )
    assert section_at(encode(message, _LIKE), 0)[0] == 0x70
    only_header = _published(Amqp10Message(MessageHeader(True), body=data_section(b"hi")))
    assert only_header.bare() == data_section(b"hi")
