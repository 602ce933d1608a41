"""Encode and decode the AMQP 1.0 values that an AMQP 0-9-1 header can have. Other values decode to DROPPED."""

import struct
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from mqtool.codecs.field_tables import (
    ByteArray,
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
    Value,
    text,
)


class ULong(int):
    """An unsigned long, which AMQP 0-9-1 does not have."""


class Symbol(str):
    """A symbol: ASCII text with a type of its own in AMQP 1.0."""

    __slots__ = ()


class Dropped:
    """Stands for a value that AMQP 0-9-1 cannot represent: a list, map, array, decimal or character."""


AnyValue: TypeAlias = "Value | uuid.UUID | Dropped"

DROPPED = Dropped()
NULL = b"\x40"
UINT64 = (1 << 64) - 1


def variable(code: int, raw: bytes) -> bytes:
    """Encode bytes or text; `code` is the type's short form, e.g. 0xa1 for a string."""
    if len(raw) < 255:
        return bytes((code, len(raw))) + raw
    return bytes((code + 0x10,)) + struct.pack(">I", len(raw)) + raw


def compound(code: int, items: list[bytes]) -> bytes:
    """Encode a list (0xc0) or map (0xc1)."""
    data = b"".join(items)
    if len(items) < 255 and len(data) < 255:
        return bytes((code, len(data) + 1, len(items))) + data
    return bytes((code + 0x10,)) + struct.pack(">II", len(data) + 4, len(items)) + data


def section(code: int, value: bytes) -> bytes:
    """Encode a section of a message: the code as its descriptor, and its encoded value."""
    return bytes((0x00, 0x53, code)) + value


_FIXED: dict[int, tuple[struct.Struct, Callable[[Any], AnyValue]]] = {
    0x50: (struct.Struct(">B"), UInt8),
    0x51: (struct.Struct(">b"), Int8),
    0x52: (struct.Struct(">B"), UInt32),
    0x53: (struct.Struct(">B"), ULong),
    0x54: (struct.Struct(">b"), Int32),
    0x55: (struct.Struct(">b"), Int64),
    0x56: (struct.Struct(">?"), bool),
    0x60: (struct.Struct(">H"), UInt16),
    0x61: (struct.Struct(">h"), Int16),
    0x70: (struct.Struct(">I"), UInt32),
    0x71: (struct.Struct(">i"), Int32),
    0x72: (struct.Struct(">f"), Float32),
    0x80: (struct.Struct(">Q"), ULong),
    0x81: (struct.Struct(">q"), Int64),
    0x82: (struct.Struct(">d"), float),
    0x83: (struct.Struct(">q"), lambda milliseconds: Timestamp(milliseconds // 1000 & UINT64)),
}
_CONSTANTS: dict[int, AnyValue] = {0x40: None, 0x41: True, 0x42: False, 0x43: UInt32(0), 0x44: ULong(0)}
# The wide forms come last, so they are the ones used for encoding.
_CODES: dict[object, tuple[int, struct.Struct]] = {kind: (code, packing) for code, (packing, kind) in _FIXED.items()}
_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
_SIZES = {0xA: 1, 0xB: 4, 0xC: 1, 0xD: 4, 0xE: 1, 0xF: 4}


def _short_integer(value: Value) -> bytes | None:
    """Encode a small integer in its short form; None if its type or value has none."""
    if isinstance(value, Int32 | Int64) and -128 <= value <= 127:
        return struct.pack(">Bb", 0x54 if isinstance(value, Int32) else 0x55, value)
    if isinstance(value, UInt32) and value < 256:
        return bytes((0x52, value)) if value else b"\x43"
    return None


def encode_value(value: Value) -> bytes | None:
    """Encode the value of a header; return None for a type that RabbitMQ does not store."""
    if isinstance(value, Timestamp):
        return b"\x83" + struct.pack(">Q", value * 1000 & UINT64)
    if type(value) in _CODES and not isinstance(value, bool):
        code, packing = _CODES[type(value)]
        return _short_integer(value) or bytes((code,)) + packing.pack(value)
    match value:
        case None:
            return NULL
        case bool():
            return b"\x56\x01" if value else b"\x56\x00"
        case int():
            return _short_integer(Int64(value)) or b"\x81" + struct.pack(">q", value)
        case str():
            return variable(0xA1, value.encode(errors="surrogateescape"))
        case ByteArray():
            return variable(0xA0, value)
        case bytes():
            return variable(0xA1, value)
    return None


def encode_header(value: Any) -> bytes | None:
    """Encode the value of a header as Python has it; return None for one that RabbitMQ does not store."""
    match value:
        case bytes():
            return variable(0xA0, value)
        case datetime():
            return b"\x83" + struct.pack(">q", round(value.timestamp() * 1000))
        case int() if not -(1 << 63) <= value < 1 << 63:
            return None
    return encode_value(value)


class Span(NamedTuple):
    """The position of a value's bytes, after its constructor and size. `described` is True if it has a descriptor."""

    code: int
    start: int
    end: int
    described: bool = False


def find(data: bytes, offset: int) -> Span:
    """Find the bytes of the value at an offset. The value must not have a descriptor.

    Raises:
        ValueError: the value is cut short, or its type is unknown.
        IndexError: the data ends at the offset.
    """
    code = data[offset]
    start = offset + 1
    width = _WIDTHS.get(code >> 4)
    if width is None:
        prefix = _SIZES.get(code >> 4)
        if prefix is None:
            raise ValueError("unknown constructor")
        start += prefix
        width = int.from_bytes(data[start - prefix : start])
    if start + width > len(data):
        raise ValueError("value cut short")
    return Span(code, start, start + width)


def decode_value(data: bytes, span: Span) -> AnyValue:
    """Decode a value; return DROPPED for a type that no header can have."""
    code, start, end, _ = span
    fixed = _FIXED.get(code)
    if fixed is not None:
        packing, kind = fixed
        return kind(packing.unpack_from(data, start)[0])
    if code in _CONSTANTS:
        return _CONSTANTS[code]
    raw = data[start:end]
    match code:
        case 0xA0 | 0xB0:
            return ByteArray(raw)
        case 0xA1 | 0xB1:
            return text(raw)
        case 0xA3 | 0xB3:
            return Symbol(raw.decode(errors="surrogateescape"))
        case 0x98:
            return uuid.UUID(bytes=raw)
    return DROPPED


def spans_in(data: bytes, span: Span) -> Iterator[Span]:
    """Yield the positions of the items of a list, or of the keys and values of a map in turn.

    Raises:
        ValueError: the value is neither a list nor a map, or an item is cut short.
        IndexError: an item is cut short.
    """
    if span.code == 0x45:
        return
    if span.code not in (0xC0, 0xC1, 0xD0, 0xD1):
        raise ValueError("neither list nor map")
    position = span.start + (1 if span.code < 0xD0 else 4)
    while position < span.end:
        inner = find(data, position) if data[position] else find(data, find(data, position + 1).end)
        yield inner if data[position] else inner._replace(described=True)
        position = inner.end
