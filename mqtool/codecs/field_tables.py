"""AMQP field tables that keep the wire type of every value (section 4.2.5.5, with RabbitMQ's errata).

pamqp's own codec encodes the narrowest integer. A broker must pass on what it got, and some clients insist on widths:
the `count` of an x-death entry must be a long. So integers, timestamps and the like decode to subclasses of Python's
types that remember their letter.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

Value: TypeAlias = "bool | int | float | str | bytes | Decimal | list[Value] | dict[str, Value] | None"
Table: TypeAlias = dict[str, Value]

MAX_DEPTH = 64


class Int8(int):
    """`b`, signed octet."""


class UInt8(int):
    """`B`, unsigned octet."""


class Int16(int):
    """`s`, signed short."""


class UInt16(int):
    """`u`, unsigned short."""


class Int32(int):
    """`I`, signed int."""


class UInt32(int):
    """`i`, unsigned int."""


class Int64(int):
    """`l`, signed long."""


class Timestamp(int):
    """`T`, seconds since 1970 in UTC."""


class Float32(float):
    """`f`, single precision."""


class ByteArray(bytes):
    """`x`, octets that are not text."""


class Decimal(NamedTuple):
    """`D`, value / 10**scale."""

    scale: int
    value: int


_FIXED: dict[int, tuple[struct.Struct, Callable[[Any], Value]]] = {
    ord("b"): (struct.Struct(">b"), Int8),
    ord("B"): (struct.Struct(">B"), UInt8),
    ord("s"): (struct.Struct(">h"), Int16),
    ord("u"): (struct.Struct(">H"), UInt16),
    ord("I"): (struct.Struct(">i"), Int32),
    ord("i"): (struct.Struct(">I"), UInt32),
    ord("L"): (struct.Struct(">q"), Int64),  # as kombu and py-amqp send it; it goes out as `l`, the last one here
    ord("l"): (struct.Struct(">q"), Int64),
    ord("T"): (struct.Struct(">Q"), Timestamp),
    ord("f"): (struct.Struct(">f"), Float32),
    ord("d"): (struct.Struct(">d"), float),
}
_LETTERS: dict[type, tuple[bytes, struct.Struct]] = {
    kind: (bytes([letter]), packing)  # type: ignore[misc]
    for letter, (packing, kind) in _FIXED.items()
}
_SIZE = struct.Struct(">I")
_DECIMAL = struct.Struct(">BI")

# RabbitMQ's names for the types, as its error messages print them.
_TYPE_NAMES: dict[type, str] = {
    Int8: "byte",
    UInt8: "unsignedbyte",
    Int16: "short",
    UInt16: "unsignedshort",
    Int32: "signedint",
    UInt32: "unsignedint",
    Int64: "long",
    int: "long",
    Timestamp: "timestamp",
    Float32: "float",
    float: "double",
    Decimal: "decimal",
    ByteArray: "binary",
    bytes: "longstr",
    str: "longstr",
    bool: "bool",
    list: "array",
    dict: "table",
    type(None): "void",
}


def type_name(value: Value) -> str:
    """Return RabbitMQ's name for the wire type of a value, e.g. `signedint`."""
    return _TYPE_NAMES[type(value)]


def is_integer(value: Value) -> bool:
    """Whether the wire type is one of the integer types (a bool or a timestamp is not)."""
    return isinstance(value, int) and not isinstance(value, bool | Timestamp)


def text(raw: bytes) -> str | bytes:
    """Decode a long string as text if it is UTF-8; leave it as bytes if not."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def decode_table(data: bytes, offset: int = 0) -> tuple[Table, int]:
    """Decode the table that starts with its four-byte length at `offset`.

    Returns:
        The table, and the offset after it.

    Raises:
        ValueError: it is cut short, nested too deeply, or holds a type that RabbitMQ does not know.
    """
    try:
        return _table(data, offset, 0)
    except (struct.error, IndexError) as error:
        raise ValueError("field table cut short") from error


def _block(data: bytes, offset: int) -> tuple[int, int]:
    """Return start and end of something that is preceded by its length."""
    start = offset + 4
    end = start + _SIZE.unpack_from(data, offset)[0]
    if end > len(data):
        raise ValueError("length exceeds the data")
    return start, end


def _table(data: bytes, offset: int, depth: int) -> tuple[Table, int]:
    if depth > MAX_DEPTH:
        raise ValueError("field table nested too deeply")
    position, end = _block(data, offset)
    table: Table = {}
    while position < end:
        key_end = position + 1 + data[position]
        key = data[position + 1 : key_end].decode(errors="surrogateescape")
        table[key], position = _value(data, key_end, depth)
    if position != end:
        raise ValueError("field table overruns its length")
    return table, end


def _value(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    letter = data[offset]
    offset += 1
    fixed = _FIXED.get(letter)
    if fixed is not None:
        packing, kind = fixed
        return kind(packing.unpack_from(data, offset)[0]), offset + packing.size
    match letter:
        case 0x53:  # S
            start, end = _block(data, offset)
            return text(data[start:end]), end
        case 0x74:  # t
            return data[offset] != 0, offset + 1
        case 0x46:  # F
            return _table(data, offset, depth + 1)
        case 0x41:  # A
            return _array(data, offset, depth + 1)
        case 0x78:  # x
            start, end = _block(data, offset)
            return ByteArray(data[start:end]), end
        case 0x44:  # D
            return Decimal(*_DECIMAL.unpack_from(data, offset)), offset + 5
        case 0x56:  # V
            return None, offset
    raise ValueError(f"unknown field type {letter}")


def _array(data: bytes, offset: int, depth: int) -> tuple[list[Value], int]:
    if depth > MAX_DEPTH:
        raise ValueError("field array nested too deeply")
    position, end = _block(data, offset)
    items: list[Value] = []
    while position < end:
        item, position = _value(data, position, depth)
        items.append(item)
    if position != end:
        raise ValueError("field array overruns its length")
    return items, end


def encode_table(table: Mapping[str, Value]) -> bytes:
    """Encode a table, its length in front. A plain int goes out as a long, a plain float as a double."""
    parts = []
    for key, value in table.items():
        raw = key.encode(errors="surrogateescape")
        parts.append(bytes([len(raw)]) + raw + encode_value(value))
    data = b"".join(parts)
    return _SIZE.pack(len(data)) + data


def encode_value(value: Value) -> bytes:
    """Encode one value, its type letter in front."""
    fixed = _LETTERS.get(type(value))
    if fixed is not None:
        letter, packing = fixed
        return letter + packing.pack(value)
    match value:
        case str():
            # Names that are not UTF-8 have surrogates, and get into tables as parts of a message's history.
            raw = value.encode(errors="surrogateescape")
            return b"S" + _SIZE.pack(len(raw)) + raw
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return b"l" + struct.pack(">q", value)
        case bytes():
            letter = b"x" if isinstance(value, ByteArray) else b"S"
            return letter + _SIZE.pack(len(value)) + value
        case Decimal():
            return b"D" + _DECIMAL.pack(*value)
        case list():
            data = b"".join(map(encode_value, value))
            return b"A" + _SIZE.pack(len(data)) + data
        case dict():
            return b"F" + encode_table(value)
    raise TypeError(f"not a field value: {value!r}")
