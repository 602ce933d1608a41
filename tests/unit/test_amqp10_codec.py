"""AMQP 1.0 values and messages: what is encoded is decoded as it was, and damaged data is an error, not a crash."""

import random
import uuid

import pytest

from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, Header, body_bytes, data_section, value_section
from mqtool.codecs.amqp10_values import Array, Char, Described, Milliseconds, RawDecimal, Symbol, ULong, decode, encode
from mqtool.codecs.field_tables import Float32, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32

VALUES = [
    *(None, True, False, UInt8(3), UInt16(500), UInt32(0), UInt32(7), UInt32(1 << 31), ULong(0), ULong(5)),
    *(ULong(1 << 63), Int8(-3), Int16(-300), Int32(-5), Int32(1 << 30), Int64(5), Int64(-(1 << 40)), 1.5, Float32(0.5)),
    *(Char("é"), Milliseconds(12345), uuid.UUID(int=7), b"x" * 300, "hé", Symbol("abc"), RawDecimal(b"1234")),
    *([], [Int64(1), ["x", [None]]], {Symbol("a"): Int64(1)}, {}, Described(Symbol("x:y"), [UInt8(1)])),
    *(Array([Symbol("a"), Symbol("b" * 300)]), Array([True, False]), Array([]), Array([Int32(1)] * 300)),
    *(Array([[Int32(1)], []]), Array([Described(ULong(3), "x")]), Array([{"a": UInt8(1)}])),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_decoded_as_it_was_encoded(value):
    encoded = encode(value)
    decoded, end = decode(encoded)
    assert (decoded, type(decoded), end) == (value, type(value), len(encoded))
    assert encode(decoded) == encoded


def test_damaged_values_are_value_errors():
    chosen = random.Random(26)
    for _ in range(20_000):
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
def test_hostile_values_are_value_errors(data):
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_a_message_is_decoded_as_it_was_encoded():
    message = Amqp10Message(
        Header(durable=True, ttl=UInt32(5)),
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
