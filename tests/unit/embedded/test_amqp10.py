"""Messages as a stream stores them: recorded from RabbitMQ 3.10.8, and anything that a client may write."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import MessageProperties, encode_short
from mqtool.broker.embedded.model.stream_conversion import Decoded, decode, encode
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, MessageHeader, data_section
from mqtool.codecs.amqp10_values import Any10, Array, Char, Described, Map, Milliseconds, RawDecimal, Symbol, ULong
from mqtool.codecs.field_tables import (
    ByteArray,
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
    Value,
    encode_table,
)
from tests.unit.embedded.test_field_table import typed

_HEADERS: Table = {
    "s": "text",
    "b8": Int8(-3),
    "u8": UInt8(200),
    "i16": Int16(-300),
    "u16": UInt16(60000),
    "i32": Int32(5),
    "I32": Int32(-70000),
    "u32": UInt32(7),
    "U32": UInt32(4_000_000_000),
    "l": Int64(5),
    "L": Int64(1 << 40),
    "t": Timestamp(1700000000),
    "f": Float32(1.5),
    "d": 2.5,
    "true": True,
    "void": None,
    "bin": ByteArray(b"\0\xff"),
}
_FIELDS = {
    "content_type": encode_short(b"text/plain"),
    "content_encoding": encode_short(b"utf-8"),
    "headers": encode_table(_HEADERS),
    "delivery_mode": b"\x02",
    "priority": b"\x07",
    "correlation_id": encode_short(b"corr"),
    "reply_to": encode_short(b"rt"),
    "expiration": encode_short(b"60000"),
    "message_id": encode_short(b"mid"),
    "timestamp": (1700000001).to_bytes(8),
    "type": encode_short(b"ty"),
    "user_id": encode_short(b"guest"),
    "app_id": encode_short(b"app"),
}
_STORED = (
    b"\x00Sr\xc1j\n\xa3\rx-routing-key\xa1\x02s1\xa3\nx-exchange\xa1\x00\xa3\x10x-basic-priorityP\x07"
    b"\xa3\x15x-basic-delivery-modeP\x02\xa3\x12x-basic-expiration\xa1\x0560000"
    b"\x00Ss\xc09\r\xa1\x03mid\xa0\x05guest@@\xa1\x02rt\xa1\x04corr\xa3\ntext/plain\xa3\x05utf-8@"
    b"\x83\x00\x00\x01\x8b\xcf\xe5k\xe8@@@"
    b"\x00St\xc1\xb8\x26\xa1\x0cx-basic-type\xa1\x02ty\xa1\x0ex-basic-app-id\xa1\x03app\xa1\x01s\xa1\x04text"
    b"\xa1\x02b8Q\xfd\xa1\x02u8P\xc8\xa1\x03i16a\xfe\xd4\xa1\x03u16`\xea`\xa1\x03i32T\x05\xa1\x03I32q\xff\xfe\xee\x90"
    b"\xa1\x03u32R\x07\xa1\x03U32p\xeek(\x00\xa1\x01lU\x05\xa1\x01L\x81\x00\x00\x01\x00\x00\x00\x00\x00"
    b"\xa1\x01t\x83\x00\x00\x01\x8b\xcf\xe5h\x00\xa1\x01fr?\xc0\x00\x00\xa1\x01d\x82@\x04\x00\x00\x00\x00\x00\x00"
    b"\xa1\x04trueV\x01\xa1\x04void@\xa1\x03bin\xa0\x02\x00\xff"
    b"\x00Su\xa0\x05hello"
)


def _decoded(message: Amqp10Message) -> Decoded:
    """Return a message with an empty body as an AMQP 0-9-1 client reads it from a stream."""
    message.body = data_section(b"")
    return decode(message.encode())


def test_a_stream_stores_a_message_as_the_same_bytes_as_rabbitmq() -> None:
    """For a message that is published to a stream over AMQP 0-9-1, the embedded broker stores the same bytes as
    RabbitMQ 3.10.8.
    """
    assert encode(MessageProperties.of(_FIELDS), b"hello", "", "s1") == _STORED


def test_a_message_read_from_a_stream_has_all_its_properties() -> None:
    """If the embedded broker decodes the bytes that RabbitMQ 3.10.8 stores for a message in a stream, it gets the
    message's original body, exchange, routing key and properties.
    """
    found = decode(_STORED)

    assert (found.body, found.exchange, found.routing_key) == (b"hello", "", "s1")
    assert found.properties.fields() == _FIELDS


def test_tables_and_arrays_are_removed_from_the_headers_of_a_message_in_a_stream() -> None:
    """When the embedded broker stores a message in a stream, it removes headers whose values are tables or arrays, as
    RabbitMQ does.
    """
    headers = encode_table({"x-death": [{"count": 1}], "t": {"a": 1}, "kept": "yes"})

    found = decode(encode(MessageProperties.of({"headers": headers}), b"", "e", "k"))

    assert found.properties.headers == {"kept": "yes"}


@pytest.mark.parametrize(
    ("identifier", "message_id", "kind"),
    [
        (b"\x98" + uuid.UUID(int=7).bytes, str(uuid.UUID(int=7)), "uuid"),
        (b"\x53\x07", "7", "ulong"),
        (b"\xa0\x02\x00\xff", "AP8=", "binary"),
    ],
)
def test_an_id_that_is_not_a_string_has_its_type_in_a_header(identifier: bytes, message_id: str, kind: str) -> None:
    """If the message id of an AMQP 1.0 message in a stream is a uuid, ulong or binary, AMQP 0-9-1 clients receive the
    id as text in the property message-id (a binary as Base64), and the name of its original type in the header
    x-message-id-type.
    """
    found = decode(b"\x00Ss\xc0" + bytes((len(identifier) + 1, 1)) + identifier + b"\x00Su\xa0\x01x")

    assert found.properties.fields()["message_id"] == encode_short(message_id.encode())
    assert found.properties.headers == {"x-message-id-type": kind}


def test_an_amqp_1_0_header_becomes_delivery_mode_priority_and_expiration() -> None:
    """If an AMQP 1.0 message in a stream has the header fields `durable`, `priority` and `ttl`, the message is
    delivered over AMQP 0-9-1 with a delivery mode, a priority and an expiration.
    """
    found = decode(b"\x00Sp\xc0\x06\x03AP\x05R\x64" + b"\x00Su\xa0\x01x")

    properties = found.properties
    assert (properties.delivery_mode, properties.priority, properties.expiration) == (2, 5, "100")


def test_several_data_sections_are_joined_into_one_body() -> None:
    """If an AMQP 1.0 message has two data sections, the message is delivered over AMQP 0-9-1 with one body that
    contains both.
    """
    assert decode(b"\x00Su\xa0\x01a\x00Su\xa0\x01b").body == b"ab"


def test_a_body_that_is_not_a_data_section_is_delivered_encoded() -> None:
    """If the body of a message in a stream is an amqp-value or amqp-sequence section, AMQP 0-9-1 clients receive the
    encoded section as the body, and the property `type` with the value `amqp-1.0`.
    """
    for body in (b"\x00Sw\xa1\x02hi", b"\x00Sv\x45"):
        stored = encode(MessageProperties.of(_FIELDS), b"", "logs", "s1")

        found = decode(stored.removesuffix(data_section(b"")) + body)

        assert (found.body, found.exchange, found.routing_key) == (body, "logs", "s1")
        assert found.properties.fields() == _FIELDS | {"type": encode_short(b"amqp-1.0")}


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x00Ss\xc0" + data))
def test_any_bytes_in_a_stream_are_decoded_as_a_message(data: bytes) -> None:
    """Whatever bytes a client stores as an entry in a stream, the embedded broker can decode the entry as a message."""
    assert isinstance(decode(data).body, bytes)


def test_a_stream_entry_that_is_not_amqp_1_0_becomes_the_body_of_a_message() -> None:
    """If a stream entry is not an AMQP 1.0 message, consumers receive a message whose body is the whole entry."""
    for entry in (b"Hello, World!", b"", b"\x00Su\xa1\x01a", b"\x00Ss\xc1\x01\x00\x00Su\xa0\x01x"):
        found = decode(entry)
        assert (found.body, found.exchange, found.routing_key, found.properties.fields()) == (entry, "", None, {})


def test_a_stream_entry_of_deeply_nested_values_becomes_the_body_of_a_message() -> None:
    """If a stream entry consists of 100,000 nested AMQP 1.0 values, consumers receive a message whose body is the
    whole entry.
    """
    nested = b"\x00" * 100_000

    assert decode(nested).body == nested


@pytest.mark.parametrize("size", [1, 300])
def test_a_message_in_a_stream_keeps_values_that_are_not_utf_8(size: int) -> None:
    """A message that an AMQP 0-9-1 client publishes to a stream is read with the same exchange, routing key, header
    values, message id and body, even if some of these are long, or contain bytes that are not UTF-8. Only a header
    whose name is not UTF-8 is missing: the broker drops it.
    """
    headers: Table = {"a": "x" * size, "raw": b"\xff", "no": False, "yes": True, "\u00e9": 2.5, "\udcff": "dropped"}
    fields = {"headers": encode_table(headers), "message_id": b"\x01\xff", "timestamp": (2**63 // 1000 + 1).to_bytes(8)}

    found = decode(encode(MessageProperties.of(fields), b"x" * size, "e\udcff", "k\udcff"))

    del headers["\udcff"]

    assert (found.exchange, found.routing_key, found.body) == ("e\udcff", "k\udcff", b"x" * size)
    assert typed(found.properties.headers) == typed(headers)
    assert found.properties.fields()["message_id"] == b"\x01\xff"


def test_equal_short_properties_of_messages_in_a_stream_are_decoded_once() -> None:
    """To save time, the broker decodes the properties of successive messages in a stream only once if they are equal
    and short. It decodes long properties, such as a message id of 300 characters, for each message.
    """
    for size, is_kept in ((10, True), (300, False)):
        first, second = (_decoded(Amqp10Message(properties=BareProperties("m" * size))).properties for _ in range(2))
        assert (first is second) == is_kept


def test_application_properties_of_a_message_in_a_stream_become_headers_or_are_dropped() -> None:
    """Over AMQP 0-9-1, the application properties of an AMQP 1.0 message in a stream become headers if they are
    strings, binaries, integers or timestamps. Values of types such as list, map, decimal and uuid are dropped. A
    property is also dropped if its name is longer than 255 bytes, or if its name is a string that is not UTF-8.
    """
    application: Map = {
        "text": "\u00e9", "raw": "\udcff", Symbol("s\udcff"): Symbol("s\udcff"), "bytes": b"b",
        "small": ULong(2**63 - 1), "large": ULong(2**63), "time": Milliseconds(1999), "k" * 255: 1, "k" * 256: 2,
        "l" * 256: ULong(3), "\udcff": 4, 5: 6, "list": [1], "map": {"a": 1}, "array": Array(["a"]), "char": Char("c"),
        "uuid": uuid.UUID(int=7), "decimal": RawDecimal(b"1234"), "described": Described(ULong(1), "a"),
        "x-basic-type": "ty", "x-basic-app-id": "a" * 256,
    }  # fmt: skip

    message = _decoded(Amqp10Message(application_properties=application))

    found = message.properties
    assert (message.exchange, message.routing_key) == ("", None)
    assert typed(found.headers) == typed({
        "text": "\u00e9", "raw": b"\xff", "s\udcff": b"s\xff", "bytes": ByteArray(b"b"), "small": Int64(2**63 - 1),
        "large": "9223372036854775808", "time": Timestamp(1), "k" * 255: Int64(1),
    })  # fmt: skip
    assert {name: raw for name, raw in found.fields().items() if name != "headers"} == {"type": b"\x02ty"}


@pytest.mark.parametrize(
    ("identifier", "message_id", "header"),
    [
        ("m" * 255, "m" * 255, None),
        (Symbol("m\udcff"), "m\udcff", None),
        ("m" * 256, None, "m" * 256),
        ("\udcff" * 256, None, b"\xff" * 256),
        (b"\xff" * 192, None, "/" * 256),
        (True, None, None),
    ],
    ids=["longest", "symbol", "too long", "not UTF-8", "binary", "not an id"],
)
def test_an_id_that_is_too_long_for_a_property_becomes_a_header(
    identifier: Any10, message_id: str | None, header: Value
) -> None:
    """If the message id or correlation id of an AMQP 1.0 message in a stream is longer than 255 bytes as text, AMQP
    0-9-1 clients receive it as the header x-message-id or x-correlation-id. A value that cannot be an id, such as a
    boolean, is dropped.
    """
    properties = BareProperties(identifier, correlation_id=identifier, content_type=Symbol("c\udcff"))

    found = _decoded(Amqp10Message(properties=properties)).properties

    assert found.named()["content_type"] == "c\udcff"
    for name in ("message-id", "correlation-id"):
        assert found.named().get(name.replace("-", "_")) == message_id
        assert found.headers.get(f"x-{name}") == header
        assert f"x-{name}-type" not in found.headers


@pytest.mark.parametrize("value", [5, ["a"], None, "a" * 256], ids=["number", "list", "null", "long"])
def test_annotations_and_properties_of_the_wrong_type_are_ignored(value: Any10) -> None:
    """If the exchange, the routing key or a property (such as the priority) of an AMQP 1.0 message in a stream has a
    type that AMQP 0-9-1 does not allow, or is too long, AMQP 0-9-1 consumers receive the message without this value.
    """
    names = ("x-exchange", "x-routing-key", "x-basic-priority", "x-basic-delivery-mode", "x-basic-expiration")
    others = BareProperties(
        user_id=value, reply_to=value, content_type=value, content_encoding=value, creation_time=value
    )

    found = _decoded(
        Amqp10Message(MessageHeader(value, value, value), {}, {Symbol(each): value for each in names}, others)
    )

    assert (found.exchange, found.routing_key, found.properties.fields()) == ("", None, {})
