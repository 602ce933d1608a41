"""Encode and decode AMQP 1.0 values. A decoded value keeps its type, so encoding it again does not change it.

The types are those of `field_tables` where AMQP 0-9-1 has them too: `UInt32` is `uint`, `Int64` is `long`, and so on.
Python's own types are encoded as well: `int` as `long`, `float` as `double`, `str` as `string`, `bytes` as `binary`,
`datetime` as `timestamp`. https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-types-v1.0.html
"""

import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from mqtool.codecs.field_tables import ByteArray, Float32, Int8, Int16, Int32, Int64, Timestamp, UInt8, UInt16, UInt32
from mqtool.message import MAX_DEPTH

#: A decoded value. It is Any, because a precise type for nested values would be of no use.
Any10: TypeAlias = Any
Map: TypeAlias = dict[Any10, Any10]


class ULong(int):
    """An unsigned long, which AMQP 0-9-1 does not have."""

    wire_type = "uint64"


class Symbol(str):
    """A symbol: ASCII text with a type of its own."""

    __slots__ = ()
    wire_type = "symbol"


class Milliseconds(int):
    """A timestamp: milliseconds since 1970."""

    wire_type = "$milliseconds"


class Char(str):
    """One character."""

    __slots__ = ()
    wire_type = "char"


class UuidText(str):
    """A UUID as text, in which the client has it."""

    __slots__ = ()
    wire_type = "uuid"


class RawDecimal(bytes):
    """A decimal of 4, 8 or 16 bytes, left encoded."""


class Array(list[Any10]):
    """An array: a list whose items have one type."""

    wire_type = "array"


class TextMap(dict[str, Any10]):
    """A map whose keys are strings. In the client's other maps, they are symbols, as in RabbitMQ's."""

    wire_type = "map"


class Encoded(bytes):
    """A value that is left in the encoding of AMQP 1.0."""

    wire_type = "$amqp10"


class Described(NamedTuple):
    """A value with a descriptor, which is a ULong or a Symbol."""

    descriptor: Any10
    value: Any10


NULL = b"\x40"
UINT64 = (1 << 64) - 1


def _character(point: int) -> Char:
    """Return the character with a code point. Raises ValueError for a surrogate, which UTF-8 cannot encode."""
    if 0xD800 <= point < 0xE000:
        raise ValueError("a character is a surrogate")
    return Char(chr(point))


_Decoder: TypeAlias = Callable[[Any], Any10]
_Encoder: TypeAlias = Callable[[Any], bytes]
_FIXED: dict[int, tuple[struct.Struct, _Decoder]] = {
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
    0x73: (struct.Struct(">I"), _character),
    0x74: (struct.Struct(">4s"), RawDecimal),
    0x80: (struct.Struct(">Q"), ULong),
    0x81: (struct.Struct(">q"), Int64),
    0x82: (struct.Struct(">d"), float),
    0x83: (struct.Struct(">q"), Milliseconds),
    0x84: (struct.Struct(">8s"), RawDecimal),
    0x94: (struct.Struct(">16s"), RawDecimal),
    0x98: (struct.Struct(">16s"), lambda raw: uuid.UUID(bytes=raw)),
}
_CONSTANTS: dict[int, Any10] = {0x40: None, 0x41: True, 0x42: False, 0x43: UInt32(0), 0x44: ULong(0)}
_TEXTS: dict[int, _Decoder] = {
    0xA0: bytes,
    0xA1: lambda raw: raw.decode(errors="surrogateescape"),
    0xA3: lambda raw: Symbol(raw.decode(errors="surrogateescape")),
}
_SIZE = struct.Struct(">I")
_SIZES = struct.Struct(">II")

#: The types of keys that a map may have: strings, symbols, binaries and integers. Python mixes a secret into the hashes
#: of text and bytes, and only a few integers have the same hash. For the other types, a publisher could make up any
#: number of keys with one hash, and decoding such a map takes quadratic time.
_KEYS = (str, int, bytes)

#: The default limit of the values in the lists, maps and arrays of one encoded value, at all levels together.
MOST_VALUES = 32_768

#: The maximum number of items in an array whose items take no bytes, such as `true`. A frame can contain many arrays.
_MOST_EMPTY = 16


class Room:
    """How many values the lists, maps and arrays in one or more encoded values may have together."""

    __slots__ = ("left",)

    def __init__(self, left: float = MOST_VALUES) -> None:
        self.left = left

    def take(self, count: int) -> None:
        if count > self.left:
            raise ValueError("too many values")
        self.left -= count


def decode(data: bytes, offset: int = 0, depth: int = MAX_DEPTH, room: Room | None = None) -> tuple[Any10, int]:
    """Decode the value at an offset.

    Args:
        depth: how many levels deep the value may be nested.
        room: for how many values there is room; by default, for MOST_VALUES.

    Returns:
        The value, and the offset after it.

    Raises:
        ValueError: the value is cut short, malformed, nested too deeply, or has too many values.
    """
    try:
        return _decode(data, offset, depth, room or Room())
    except (IndexError, OverflowError, struct.error) as error:
        raise ValueError("value cut short") from error


def _decode(data: bytes, offset: int, depth: int, room: Room) -> tuple[Any10, int]:
    code = data[offset]
    if code:
        return _decode_as(code, data, offset + 1, depth, room)
    if not depth:
        raise ValueError("values are nested too deeply")
    descriptor, offset = _decode(data, offset + 1, depth - 1, room)
    value, offset = _decode(data, offset, depth - 1, room)
    return Described(descriptor, value), offset


def _decode_as(code: int, data: bytes, start: int, depth: int, room: Room) -> tuple[Any10, int]:
    """Decode a value after its constructor."""
    if code in _CONSTANTS:
        return _CONSTANTS[code], start
    if code in _FIXED:
        packing, kind = _FIXED[code]
        return kind(packing.unpack_from(data, start)[0]), start + packing.size
    if code == 0x45:
        return [], start
    kind_code, is_wide = code & 0xEF, code & 0x10
    if is_wide:
        size, start = _SIZE.unpack_from(data, start)[0], start + 4
    else:
        size, start = data[start], start + 1
    end = start + size
    if end > len(data):
        raise ValueError("value cut short")
    if kind_code in _TEXTS:
        return _TEXTS[kind_code](data[start:end]), end
    if kind_code not in (0xC0, 0xC1, 0xE0):
        raise ValueError(f"unknown constructor 0x{code:02x}")
    if not depth:
        raise ValueError("values are nested too deeply")
    if is_wide:
        count, start = _SIZE.unpack_from(data, start)[0], start + 4
    else:
        count, start = data[start], start + 1
    room.take(count)
    items = (_array if kind_code == 0xE0 else _items)(data, start, end, count, depth - 1, room)
    return _map(items) if kind_code == 0xC1 else items, end


def _items(data: bytes, start: int, end: int, count: int, depth: int, room: Room) -> list[Any10]:
    values: list[Any10] = []
    while start < end and len(values) <= count:
        value, start = _decode(data, start, depth, room)
        values.append(value)
    if start != end or len(values) != count:
        raise ValueError("wrong number of items")
    return values


def _map(items: list[Any10]) -> Map:
    if len(items) % 2:
        raise ValueError("a map has a key without a value")
    keys = items[::2]
    for key in keys:
        if not isinstance(key, _KEYS):
            raise ValueError("a key of a map is neither text, binary nor an integer")
    found = dict(zip(keys, items[1::2], strict=True))
    if len(found) < len(keys):  # RabbitMQ reads and replaces the first of several, and delivers the others
        return first_values(zip(keys, items[1::2], strict=True))
    return found


def first_values(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dictionary of pairs. If a key occurs several times, its first value counts."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found


def _array(data: bytes, start: int, end: int, count: int, depth: int, room: Room) -> Array:
    values = Array()
    if not count and start >= end:
        return values
    code, descriptor, is_described = data[start], None, False
    start += 1
    if not code:
        is_described = True
        descriptor, start = _decode(data, start, depth, room)
        code, start = data[start], start + 1
    if count > max(end - start, _MOST_EMPTY):
        raise ValueError("wrong number of items")
    for _ in range(count):
        value, start = _decode_as(code, data, start, depth, room)
        values.append(Described(descriptor, value) if is_described else value)
    if start != end:
        raise ValueError("wrong number of items")
    return values


#: What the client has of types that AMQP 0-9-1 lacks, by their names in NDJSON: a function that converts a plain value.
#: It raises ValueError or TypeError if the value does not fit.
OF_CLIENT: dict[str, Callable[[Any], Any]] = {
    "uint64": lambda value: ULong(_checked(value, isinstance(value, int) and 0 <= value <= UINT64)),
    "symbol": lambda value: Symbol(_checked(value, isinstance(value, str))),
    "char": lambda value: Char(
        _checked(value, isinstance(value, str) and len(value) == 1 and not "\ud800" <= value <= "\udfff")
    ),
    "uuid": lambda value: UuidText(uuid.UUID(_checked(value, isinstance(value, str)))),
    "array": lambda value: Array(_checked(value, isinstance(value, list))),
    "map": lambda value: TextMap(_checked(value, isinstance(value, dict))),
}


def _checked(value: Any, is_valid: bool) -> Any:
    if not is_valid:
        raise ValueError("a value of another type")
    return value


# Encoding.


def encode(value: Any10) -> bytes:
    """Encode a value in its shortest form. Raises ValueError for a type that AMQP 1.0 does not have."""
    return encoder_of(type(value))(value)


def encoder_of(kind: type) -> _Encoder:
    """Return the function that encodes values of a type, or of its nearest known base. Raises ValueError if none."""
    found = _ENCODERS.get(kind) or next((_ENCODERS[each] for each in kind.__mro__ if each in _ENCODERS), None)
    if found is None:
        raise ValueError(f"AMQP 1.0 has no type for {kind.__name__}")
    return found


def variable(code: int, raw: bytes) -> bytes:
    """Encode bytes or text; `code` is the type's short form, e.g. 0xa1 for a string."""
    if len(raw) < 256:
        return bytes((code, len(raw))) + raw
    return bytes((code + 0x10,)) + _SIZE.pack(len(raw)) + raw


def compound(code: int, items: Sequence[bytes]) -> bytes:
    """Encode a list (0xc0) or map (0xc1)."""
    data = b"".join(items)
    if len(items) < 256 and len(data) < 255:
        return bytes((code, len(data) + 1, len(items))) + data
    return bytes((code + 0x10,)) + _SIZES.pack(len(data) + 4, len(items)) + data


def section(code: int, value: bytes) -> bytes:
    """Encode a section of a message: the code as its descriptor, and its encoded value."""
    return bytes((0x00, 0x53, code)) + value


def _fixed(code: int, packing: struct.Struct) -> _Encoder:
    start = bytes((code,))

    def encoder(value: Any) -> bytes:
        try:
            return start + packing.pack(value)
        except struct.error as error:
            raise ValueError(f"{value} is out of range") from error

    return encoder


# The wide forms come last in _FIXED, so they are the ones used.
_WIDE: dict[type, _Encoder] = {
    kind: _fixed(code, packing) for code, (packing, kind) in _FIXED.items() if isinstance(kind, type)
}
_WIDE[int] = _WIDE[Int64]
_DECIMALS = {4: b"\x74", 8: b"\x84", 16: b"\x94"}


def _unsigned(kind: type, code: int, zero: bytes) -> _Encoder:
    wide = _WIDE[kind]
    return lambda value: (bytes((code, value)) if value else zero) if 0 <= value < 256 else wide(value)


def _signed(kind: type, code: int) -> _Encoder:
    wide = _WIDE[kind]
    return lambda value: bytes((code, value & 0xFF)) if -128 <= value <= 127 else wide(value)


@lru_cache(maxsize=1024)
def _symbol(value: str) -> bytes:
    return variable(0xA3, value.encode(errors="surrogateescape"))


def _encode_list(items: Sequence[Any10]) -> bytes:
    return compound(0xC0, [encode(item) for item in items]) if items else b"\x45"


def _encode_array(items: Array) -> bytes:
    wide = [_encode_wide(item) for item in items]
    prefix = _prefix(items[0], wide[0]) if wide else NULL
    if any(not each.startswith(prefix) for each in wide):
        raise ValueError("the items of an array have different types")
    data = prefix + b"".join(each[len(prefix) :] for each in wide)
    if len(items) < 256 and len(data) < 255:
        return bytes((0xE0, len(data) + 1, len(items))) + data
    return b"\xf0" + _SIZES.pack(len(data) + 4, len(items)) + data


def _prefix(item: Any10, encoded: bytes) -> bytes:
    """Return the constructor of an encoded item of an array."""
    described = len(encode(item.descriptor)) + 1 if isinstance(item, Described) else 0
    return encoded[: described + 1]


def _encode_wide(value: Any10) -> bytes:
    """Encode an item of an array: all items have the same constructor, so the short forms cannot be used."""
    match value:
        case None:
            return NULL
        case bool():
            return b"\x56" + bytes((value,))
        case Described():
            return b"\0" + encode(value.descriptor) + _encode_wide(value.value)
        case Char() | RawDecimal() | uuid.UUID() | UuidText() | Encoded():
            return encode(value)
        case str() | bytes():
            raw = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
            code = 0xB3 if isinstance(value, Symbol) else 0xB0 if isinstance(value, bytes) else 0xB1
            return bytes((code,)) + _SIZE.pack(len(raw)) + raw
        case Array() | list() | tuple() | dict():
            return _widened(encode(value), len(value) * (2 if isinstance(value, dict) else 1))
    return _WIDE.get(type(value), encode)(value)


def _widened(encoded: bytes, count: int) -> bytes:
    """Return the wide form of an encoded list, map or array."""
    code = encoded[0]
    if code == 0x45:
        return b"\xd0" + _SIZES.pack(4, 0)
    if code & 0x10:
        return encoded
    data = encoded[3:]
    return bytes((code + 0x10,)) + _SIZES.pack(len(data) + 4, count) + data


_ENCODERS: dict[type, _Encoder] = {
    **_WIDE,
    type(None): lambda _: NULL,
    bool: lambda value: b"\x41" if value else b"\x42",
    Symbol: _symbol,
    Char: lambda value: b"\x73" + _SIZE.pack(ord(value)),
    str: lambda value: variable(0xA1, value.encode(errors="surrogateescape")),
    RawDecimal: lambda value: _DECIMALS[len(value)] + value,
    **dict.fromkeys((bytes, ByteArray), lambda value: variable(0xA0, value)),
    Described: lambda value: b"\0" + encode(value.descriptor) + encode(value.value),
    Array: _encode_array,
    **dict.fromkeys((list, tuple), _encode_list),
    dict: lambda value: compound(0xC1, [encode(part) for pair in value.items() for part in pair]),
    uuid.UUID: lambda value: b"\x98" + value.bytes,
    UuidText: lambda value: b"\x98" + uuid.UUID(value).bytes,
    Encoded: bytes,
    datetime: lambda value: _WIDE[Milliseconds](round(value.timestamp() * 1000)),
    Timestamp: lambda value: b"\x83" + struct.pack(">Q", value * 1000 & UINT64),
    UInt32: _unsigned(UInt32, 0x52, b"\x43"),
    ULong: _unsigned(ULong, 0x53, b"\x44"),
    Int32: _signed(Int32, 0x54),
    **dict.fromkeys((int, Int64), _signed(Int64, 0x55)),
}
