"""AMQP 1.0 values and messages: decoding returns what was encoded, and damaged data is an error, not a crash."""

import random
import uuid

import pytest

from mqtool.codecs import sections
from mqtool.codecs.amqp10_message import (
    Amqp10Message,
    BareProperties,
    MessageHeader,
    body_bytes,
    data_section,
    value_section,
)
from mqtool.codecs.amqp10_values import (
    MOST_VALUES,
    NULL,
    Array,
    Char,
    Described,
    Milliseconds,
    RawDecimal,
    Symbol,
    ULong,
    compound,
    decode,
    encode,
    section,
)
from mqtool.codecs.field_tables import Float32, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32
from tests.brokers import IN_CI

VALUES = [
    *(None, True, False, UInt8(3), UInt16(500), UInt32(0), UInt32(7), UInt32(1 << 31), ULong(0), ULong(5)),
    *(ULong(1 << 63), Int8(-3), Int16(-300), Int32(-5), Int32(1 << 30), Int64(5), Int64(-(1 << 40)), 1.5, Float32(0.5)),
    *(Char("é"), Milliseconds(12345), uuid.UUID(int=7), b"x" * 300, "hé", Symbol("abc"), RawDecimal(b"1234")),
    *([], [Int64(1), ["x", [None]]], {Symbol("a"): Int64(1)}, {}, Described(Symbol("x:y"), [UInt8(1)])),
    *(Array([Symbol("a"), Symbol("b" * 300)]), Array([True, False]), Array([]), Array([Int32(1)] * 300)),
    *(Array([[Int32(1)], []]), Array([Described(ULong(3), "x")]), Array([{"a": UInt8(1)}])),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_decoding_an_encoded_amqp_1_0_value_returns_the_same_value(value):
    """If an AMQP 1.0 value is encoded, decoding it returns a value that is equal and of the same type. Encoding the
    returned value results in the same bytes.
    """
    encoded = encode(value)
    decoded, end = decode(encoded)
    assert (decoded, type(decoded), end) == (value, type(value), len(encoded))
    assert encode(decoded) == encoded


def test_damaged_amqp_1_0_values_raise_only_value_error():
    """Decoding any of thousands of randomly damaged AMQP 1.0 values either returns a value or raises ValueError. It
    raises no other exception.
    """
    chosen = random.Random(26)
    for _ in range(20_000 if IN_CI else 2_000):
        damaged = bytearray(encode(chosen.choice(VALUES)))
        for _ in range(chosen.randint(1, 4)):
            damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        try:
            decode(bytes(damaged))
        except ValueError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xd0\xff\xff\xff\xff\x00\x00\x00\x01",
        b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x41",  # four billion times true
        b"\xf0\x00\x00\x00\x05\x00\x00\x10\x00\x45",  # 4096 lists in 10 bytes: a frame of them would be gigabytes
        b"\xc1\x02\x01\x40",
        b"\xc1\x03\x02\x45\x40",
        b"\x00" * 1000,
        b"\xc0\xff\x01" * 1000,
        b"\x73\xff\xff\xff\xff",
    ],
)
def test_truncated_or_deeply_nested_amqp_1_0_values_raise_value_error(data):
    """Decoding an AMQP 1.0 value raises ValueError if the value is cut off, is deeply nested, or claims to contain
    billions of elements.
    """
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def map_of(*keys):
    """An encoded map with these keys, whose values are null."""
    return compound(0xC1, [part for key in keys for part in (encode(key), NULL)])


@pytest.mark.parametrize(
    "key",
    [Described(ULong(1), ULong(2)), [Int64(1)], {"a": Int64(1)}, uuid.UUID(int=1), 1.5, Float32(0.5), None],
    ids=repr,
)
def test_an_amqp_1_0_map_with_keys_whose_hash_values_can_collide_is_refused(key):
    """Decoding an AMQP 1.0 map with a list, map, UUID, float, described value or null as a key raises ValueError. A
    client could choose such keys so that their hash values collide, which would make decoding very slow.
    """
    with pytest.raises(ValueError, match="a key of a map"):
        decode(map_of("x", key))


def test_an_amqp_1_0_map_can_have_text_integers_and_binary_values_as_keys():
    """mqtool decodes an AMQP 1.0 map whose keys are strings, symbols, integers or binary values."""
    keys = ["text", Symbol("x-symbol"), ULong(7), Int64(1 << 40), Int32(-5), UInt8(9), b"binary"]
    assert list(decode(map_of(*keys))[0]) == keys


def nested(count):
    """Twenty lists in a list, with this many values in total."""
    return compound(0xC0, [compound(0xC0, [NULL] * (count // 20 - 1)) for _ in range(20)])


def test_an_amqp_1_0_value_with_too_many_elements_is_refused():
    """Decoding an AMQP 1.0 value that contains more than 32,768 elements raises ValueError, even if the elements are
    spread over nested lists.
    """
    assert len(decode(nested(MOST_VALUES // 20 * 20))[0]) == 20
    with pytest.raises(ValueError, match="too many values"):
        decode(nested(MOST_VALUES + 40))


def test_the_number_of_elements_in_an_amqp_1_0_body_is_not_limited():
    """The body of an AMQP 1.0 message can contain any number of elements, because decoding the message does not
    decode its body.
    """
    body = section(0x77, nested(2 * MOST_VALUES))
    assert Amqp10Message.decode(body).body == body


def test_a_client_gets_the_body_of_a_message_whose_other_sections_it_cannot_decode():
    """If mqtool receives an AMQP 1.0 message with a section that it cannot decode, such as the application properties,
    it raises no error. The delivery contains the body of the message.
    """
    for code, value in [
        (0x72, map_of(Described(ULong(1), ULong(2)))),
        (0x74, nested(MOST_VALUES * 2)),
        (0x70, nested(40)),
    ]:
        sent = section(code, value) + data_section(b"hello")
        assert sections.decode(sent, "q", 1, 1).body == b"hello"


@pytest.mark.parametrize("value", [RawDecimal(4), [True], {"a": 1}, b"\xff", 1.5], ids=repr)
def test_a_client_ignores_a_type_and_a_routing_key_that_are_not_text(value):
    """If the AMQP 1.0 message annotations x-basic-type and x-routing-key are not text, mqtool ignores them: the
    delivery has no type, and its routing key is empty.
    """
    annotations = {Symbol("x-basic-type"): value, Symbol("x-routing-key"): value}
    sent = Amqp10Message(message_annotations=annotations, body=data_section(b"x")).encode()
    delivery = sections.decode(sent, "q", 1, 1)
    assert (delivery.body, delivery.routing_key, delivery.properties) == (b"x", "", {})


def test_decoding_an_encoded_amqp_1_0_message_returns_the_same_message():
    """If an AMQP 1.0 message is encoded, decoding it returns a message with the same sections."""
    message = Amqp10Message(
        MessageHeader(durable=True, ttl=UInt32(5)),
        {Symbol("x-opt-d"): Int64(1)},
        {Symbol("x-opt-m"): "m"},
        BareProperties(message_id=uuid.UUID(int=3), reply_to_group_id="g"),
        {"a": Int64(1)},
        data_section(b"one ") + data_section(b"two" * 100),
        {Symbol("x-opt-f"): True},
    )
    assert Amqp10Message.decode(message.encode()) == message
    assert body_bytes(message.body) == b"one " + b"two" * 100
    assert body_bytes(value_section("text")) is None
