"""Field tables, which hold headers and arguments, and the short strings of names and properties.

Whatever a broker delivers can be decoded, and encodes to what it was. Text that is not UTF-8 keeps its octets as
surrogates. What is nested too deeply, or damaged, stays encoded (Undecoded): nothing may break the I/O thread.
AMQP 0-9-1, section 4.2.5.5, with RabbitMQ's types: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3
"""

import calendar
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct, error, pack, unpack_from
from typing import Any

from pika.compat import long
from pika.exceptions import ShortStringTooLong, UnsupportedAMQPFieldException

from mqtool.message import END_OF_TIME, MAX_DEPTH, UNREADABLE, Timestamp, Undecoded

_SIZE = Struct(">I")


class _Float32(float):
    """What has the letter f; a number of any other type is a double."""


#: Numbers that remember their letter, since what is sent again must not be larger. Without one they are I, l or d.
_KINDS: dict[int, tuple[Callable[[Any], Any], Struct]] = {
    ord(letter): (type(f"_Int_{letter}", (int,), {}), Struct(f">{form}"))
    for letter, form in zip("bBsUuilL", "bBhhHIqq", strict=True)
}
_KINDS |= {ord("I"): (int, Struct(">i")), ord("d"): (float, Struct(">d")), ord("f"): (_Float32, Struct(">f"))}
_LETTERS = {kind: (bytes((letter,)), form) for letter, (kind, form) in _KINDS.items() if kind is not int}
_LETTERS[long] = (b"l", Struct(">q"))  # pika's own word for it, which its other users in this process may use
_VOID, _BOOL, _TIME, _DECIMAL = b"VtTD"
_TEXT, _OCTETS, _ARRAY, _TABLE = b"SxAF"


class _Damaged(Exception):
    """A value that ends before its time, or whose type does not exist."""


def decode_table(encoded: bytes, offset: int) -> tuple[dict[str, Any], int]:
    """The table at an offset, and the offset after it. A damaged one has its octets in the field UNREADABLE."""
    end = len(encoded)
    try:
        end = _end(encoded, offset, len(encoded))
        return _fields(encoded, offset + 4, end, 0), end
    except (_Damaged, error, IndexError):
        return {UNREADABLE: encoded[offset:end]}, end


def decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
    """The value at an offset, and the offset after it."""
    return _value(encoded, offset, len(encoded), 0)


def decode_short_string(encoded: bytes, offset: int) -> tuple[str, int]:
    """The name or text at an offset, and the offset after it."""
    start = offset + 1
    end = start + encoded[offset]
    return encoded[start:end].decode("utf-8", "surrogateescape"), end


def _end(encoded: bytes, offset: int, limit: int) -> int:
    """The end of something that is preceded by its size."""
    end: int = offset + 4 + _SIZE.unpack_from(encoded, offset)[0]
    if end > limit:
        raise _Damaged
    return end


def _fields(encoded: bytes, offset: int, end: int, depth: int) -> dict[str, Any]:
    table = {}
    while offset < end:
        name, offset = decode_short_string(encoded, offset)
        table[name], offset = _value(encoded, offset, end, depth)
    if offset != end:
        raise _Damaged
    return table


def _items(encoded: bytes, offset: int, end: int, depth: int) -> list[Any]:
    items = []
    while offset < end:
        item, offset = _value(encoded, offset, end, depth)
        items.append(item)
    if offset != end:
        raise _Damaged
    return items


def _value(encoded: bytes, offset: int, limit: int, depth: int) -> tuple[Any, int]:  # noqa: C901 - one case per type
    letter, start = encoded[offset], offset + 1
    if letter in _KINDS:
        kind, form = _KINDS[letter]
        return kind(form.unpack_from(encoded, start)[0]), start + form.size
    if letter == _VOID:
        return None, start
    if letter == _BOOL:
        return encoded[start] != 0, start + 1
    if letter == _TIME:
        seconds = unpack_from(">Q", encoded, start)[0]
        return datetime.fromtimestamp(seconds, UTC) if seconds <= END_OF_TIME else Timestamp(seconds), start + 8
    if letter == _DECIMAL:
        scale, digits = unpack_from(">Bi", encoded, start)
        return Decimal(digits).scaleb(-scale), start + 5
    end = _end(encoded, start, limit)
    if letter == _TEXT:
        return encoded[start + 4 : end].decode("utf-8", "surrogateescape"), end
    if letter == _OCTETS:
        return encoded[start + 4 : end], end
    if letter not in (_ARRAY, _TABLE):
        raise _Damaged
    decode = _fields if letter == _TABLE else _items
    try:
        if depth < MAX_DEPTH:
            return decode(encoded, start + 4, end, depth + 1), end
    except (_Damaged, error, IndexError):
        pass  # only this table is damaged; where it ends is known
    return Undecoded(encoded[offset:end]), end


def encode_table(pieces: list[bytes], table: Mapping[str, Any] | None) -> int:
    """Append a table, and return its size.

    Raises:
        ShortStringTooLong, UnsupportedAMQPFieldException, ValueError, struct.error: it cannot be encoded.
    """
    pieces.append(_sized(_encoded(table or {}, 0)))
    return len(pieces[-1])


def encode_value(pieces: list[bytes], value: Any) -> int:
    """Append a value, its type in front, and return its size. Raises as encode_table() does."""
    pieces.append(_encoded_value(value, 0))
    return len(pieces[-1])


def encode_short_string(pieces: list[bytes], text: str | bytes) -> int:
    """Append a name or a property, and return its size. Raises as encode_table() does."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    if len(raw) > 255:
        raise ShortStringTooLong(raw)
    pieces.append(bytes((len(raw),)) + raw)
    return 1 + len(raw)


def _sized(raw: bytes) -> bytes:
    return _SIZE.pack(len(raw)) + raw


def _encoded(table: Mapping[str, Any], depth: int) -> bytes:
    pieces: list[bytes] = []
    for name, value in table.items():
        encode_short_string(pieces, name)
        pieces.append(_encoded_value(value, depth))
    return b"".join(pieces)


def _encoded_value(value: Any, depth: int) -> bytes:  # noqa: C901 - one case per type
    if type(value) in _LETTERS:
        letter, form = _LETTERS[type(value)]
        return letter + form.pack(value)
    if isinstance(value, str):
        return b"S" + _sized(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, Undecoded):
        return bytes(value)
    if isinstance(value, bytes):
        return b"x" + _sized(value)
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t\1" if value else b"t\0"
    if isinstance(value, Timestamp):
        return pack(">cQ", b"T", value)
    if isinstance(value, int):
        return pack(">ci", b"I", value) if -(2**31) <= value < 2**31 else pack(">cq", b"l", value)
    if isinstance(value, Decimal):
        sign, digits, exponent = value.normalize().as_tuple()
        if not isinstance(exponent, int):
            raise ValueError(f"AMQP has no decimal {value}")
        whole = int("".join(map(str, digits))) * 10 ** min(max(exponent, 0), 10)
        return pack(">cBi", b"D", max(-exponent, 0), -whole if sign else whole)
    if isinstance(value, datetime):
        return pack(">cQ", b"T", calendar.timegm(value.utctimetuple()))
    if depth > MAX_DEPTH:
        raise ValueError(f"a header is nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return b"F" + _sized(_encoded(value, depth + 1))
    if isinstance(value, list | tuple):
        return b"A" + _sized(b"".join(_encoded_value(item, depth + 1) for item in value))
    raise UnsupportedAMQPFieldException(value)
