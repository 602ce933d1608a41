"""Messages as a stream stores them: recorded from RabbitMQ 3.10.8, and anything that a client may write."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import MessageProperties, encode_short
from mqtool.broker.embedded.model.stream_conversion import decode, encode
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
    encode_table,
)

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


def test_a_stream_stores_a_message_as_the_same_bytes_as_rabbitmq() -> None:
    """If a message is published to a stream over AMQP 0-9-1, the embedded broker stores it as the same bytes as
    RabbitMQ 3.10.8.
    """
    assert encode(MessageProperties.of(_FIELDS), b"hello", "", "s1") == _STORED


def test_a_message_read_from_a_stream_has_all_its_properties() -> None:
    """A message that is read from a stream has the body, exchange, routing key and properties that it had when it was
    published.
    """
    found = decode(_STORED)

    assert (found.body, found.exchange, found.routing_key) == (b"hello", "", "s1")
    assert found.properties.fields() == _FIELDS


def test_tables_and_arrays_are_removed_from_the_headers_of_a_message_in_a_stream() -> None:
    """When the embedded broker stores a message in a stream, it removes headers that are tables or arrays, as RabbitMQ
    does.
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
    """If the message id of an AMQP 1.0 message in a stream is a uuid, ulong or binary, it is delivered over AMQP 0-9-1
    as text. The header x-message-id-type then contains its type.
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


def test_an_amqp_1_0_value_as_a_body_is_delivered_encoded() -> None:
    """If the body of a message is an AMQP 1.0 value, the message is delivered over AMQP 0-9-1 with the encoded value as
    its body. Its property `type` is then `amqp-1.0`.
    """
    found = decode(b"\x00Sw\xa1\x02hi")

    assert (found.body, found.properties.fields()["type"]) == (b"\x00Sw\xa1\x02hi", encode_short(b"amqp-1.0"))


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x00Ss\xc0" + data))
def test_any_bytes_in_a_stream_are_decoded_as_a_message(data: bytes) -> None:
    """Whatever bytes a client stores as an entry of a stream, the embedded broker reads them as a message and raises no
    error.
    """
    assert isinstance(decode(data).body, bytes)


def test_a_stream_entry_that_is_not_amqp_1_0_is_delivered_as_the_body() -> None:
    """If a stream entry is not an AMQP 1.0 message, the message that is delivered has all bytes of the entry as its
    body.
    """
    assert decode(b"Hello, World!").body == b"Hello, World!"


def test_a_stream_entry_of_deeply_nested_values_is_delivered_as_the_body() -> None:
    """If a stream entry consists of 100,000 nested AMQP 1.0 values, the broker raises no error, and delivers a message
    whose body is the whole entry.
    """
    nested = b"\x00" * 100_000

    assert decode(nested).body == nested
