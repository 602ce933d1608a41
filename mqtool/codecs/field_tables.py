"""Field tables, which hold a message's headers and the arguments of declarations; and the properties of a message.

AMQP 0-9-1, section 4.2.5.5, with RabbitMQ's types: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3

There are two codecs. `EXACT`, the embedded broker's, keeps the wire type of every value and rejects damaged tables, as
RabbitMQ does. `CLIENT` decodes to the types that Python programs use (str, int, datetime, decimal.Decimal), and accepts
everything that a broker delivers: a damaged part stays encoded, and is sent again unchanged.
"""

import calendar
import decimal
import math
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from mqtool.message import END_OF_TIME, MAX_DEPTH, ONLY_10, PROPERTIES, UNREADABLE, Undecoded
from mqtool.message import Timestamp as Timestamp

Value: TypeAlias = "bool | int | float | str | bytes | Decimal | list[Value] | dict[str, Value] | None"
Table: TypeAlias = dict[str, Value]


class NameTooLong(ValueError):
    """A name or a string property is longer than 255 bytes. The exception's argument is the encoded name."""


class NoFieldType(TypeError):
    """AMQP has no type for a value. The exception's arguments are the value, and the name of its header, if known."""


class UnknownValue(ValueError):
    """A value that no RabbitMQ can decode: of an unknown type, or a number that is not finite."""


class Int8(int):
    """`b`, a signed byte."""

    wire_type = "int8"


class UInt8(int):
    """`B`, an unsigned byte."""

    wire_type = "uint8"


class Int16(int):
    """`s`, a signed 16-bit integer."""

    wire_type = "int16"


class UInt16(int):
    """`u`, an unsigned 16-bit integer."""

    wire_type = "uint16"


class Int32(int):
    """`I`, a signed 32-bit integer."""

    wire_type = "int32"


class UInt32(int):
    """`i`, an unsigned 32-bit integer."""

    wire_type = "uint32"


class Int64(int):
    """`l`, a signed 64-bit integer."""

    wire_type = "int64"


class Int64L(Int64):
    """`L`, which py-amqp and kombu write for a signed 64-bit integer."""

    wire_type = "int64L"


class Float32(float):
    """`f`, a single-precision float."""

    wire_type = "float32"


class ByteArray(bytes):
    """`x`, bytes that are not text."""


class Decimal(NamedTuple):
    """`D`, value / 10**scale."""

    scale: int
    value: int


_Fixed = Mapping[int, tuple[struct.Struct, Callable[[Any], Any]]]
_FIXED: _Fixed = {
    ord("b"): (struct.Struct(">b"), Int8),
    ord("B"): (struct.Struct(">B"), UInt8),
    ord("s"): (struct.Struct(">h"), Int16),
    ord("u"): (struct.Struct(">H"), UInt16),
    ord("I"): (struct.Struct(">i"), Int32),
    ord("i"): (struct.Struct(">I"), UInt32),
    ord("L"): (struct.Struct(">q"), Int64),  # the broker encodes it as `l`
    ord("l"): (struct.Struct(">q"), Int64),
    ord("T"): (struct.Struct(">Q"), Timestamp),
    ord("f"): (struct.Struct(">f"), Float32),
    ord("d"): (struct.Struct(">d"), float),
}
_LETTERS: dict[Any, tuple[bytes, struct.Struct]] = {
    kind: (bytes([letter]), packing) for letter, (packing, kind) in _FIXED.items()
}


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UnknownValue(f"a number that is not finite: {value}")
    return value


_SIZE = struct.Struct(">I")
_VOID, _BOOL, _DECIMAL, _TEXT, _BYTES, _ARRAY, _TABLE = b"VtDSxAF"

#: RabbitMQ's names for the types, as its error messages print them.
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


def is_integer(value: object) -> bool:
    """True if the wire type is one of the integer types (a bool or a timestamp is not)."""
    return isinstance(value, int) and not isinstance(value, bool | Timestamp)


def text(raw: bytes) -> str | bytes:
    """Decode UTF-8; return bytes that are not valid UTF-8 unchanged."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


_EXACT_FIXED: _Fixed = {
    **_FIXED,
    ord("f"): (struct.Struct(">f"), lambda value: Float32(_finite(value))),
    ord("d"): (struct.Struct(">d"), _finite),
}


class FieldTables:
    """The codec of the embedded broker: every value keeps its wire type, and a damaged table is an error."""

    _fixed = _EXACT_FIXED
    _letters = _LETTERS
    #: True to decode a damaged table inside another one to Undecoded, instead of rejecting the outer table.
    _keeps_damage = False
    #: The maximum depth of a table that is encoded. The broker needs none: it encodes what it has decoded before.
    _deepest: float = math.inf

    def decode_table(self, data: bytes, offset: int = 0, max_depth: int = MAX_DEPTH) -> tuple[dict[str, Any], int]:
        """Decode the table at an offset; return it with the offset after it.

        Raises:
            ValueError: the table is cut short, nested too deeply, or contains a type that RabbitMQ does not know.
        """
        try:
            end = self._end(data, offset, len(data))
            return self._fields(data, offset + 4, end, MAX_DEPTH - max_depth), end
        except (struct.error, IndexError) as error:
            raise ValueError("field table cut short") from error

    def encode_table(self, table: Mapping[str, Any]) -> bytes:
        """Encode a table, preceded by its length.

        Raises:
            NameTooLong, NoFieldType, ValueError, OverflowError, struct.error: the table cannot be encoded.
        """
        return self._table(table, 0)

    def encode_value(self, value: Any, depth: int = 0) -> bytes:  # noqa: C901 - one case per type
        """Encode one value, preceded by the letter of its type. Raises the same errors as encode_table()."""
        fixed = self._letters.get(type(value))
        if fixed is not None:
            letter, packing = fixed
            return letter + packing.pack(value)
        if isinstance(value, str):
            return self._string(value)
        if value is None:
            return b"V"
        if isinstance(value, bool):
            return b"t\x01" if value else b"t\x00"
        if isinstance(value, int):
            # The broker's times of death are a subclass.
            return b"T" + struct.pack(">Q", value) if isinstance(value, Timestamp) else self._integer(value)
        if isinstance(value, Undecoded):
            return bytes(value)
        if isinstance(value, bytes):
            return self._bytes(value)
        if isinstance(value, Decimal):
            return b"D" + struct.pack(">BI", *value)
        if depth > self._deepest:
            raise ValueError(f"a header is nested more than {MAX_DEPTH} deep")
        if isinstance(value, Mapping):
            return b"F" + self._table(value, depth + 1)
        if isinstance(value, list | tuple):
            return b"A" + _sized(b"".join([self.encode_value(item, depth + 1) for item in value]))
        return self._other(value)

    def is_value(self, data: bytes) -> bool:
        """True if data is one complete value, nested to any depth. RabbitMQ closes a connection that sends another."""
        try:
            return self._value(data, 0, len(data), -sys.maxsize)[1] == len(data)
        except RecursionError:
            return True  # too deep to be checked here, but not for RabbitMQ
        except (ValueError, struct.error, IndexError):
            return False

    def _table(self, table: Mapping[str, Any], depth: int) -> bytes:
        parts: list[bytes] = []
        for name, value in table.items():
            parts += (encode_short_string(name), self.encode_value(value, depth))
        return _sized(b"".join(parts))

    def _string(self, value: str) -> bytes:
        return b"S" + _sized(value.encode("utf-8", "surrogateescape"))

    def _integer(self, value: int) -> bytes:
        return b"l" + struct.pack(">q", value)

    def _bytes(self, value: bytes) -> bytes:
        """Encode bytes as a string, unless they are a ByteArray. (Strings that are not UTF-8 are decoded to bytes.)"""
        return (b"x" if isinstance(value, ByteArray) else b"S") + _sized(value)

    def _other(self, value: Any) -> bytes:
        raise NoFieldType(value)

    def _end(self, data: bytes, offset: int, limit: int) -> int:
        """Return the end offset of a value that starts with its size, in four bytes."""
        end: int = offset + 4 + _SIZE.unpack_from(data, offset)[0]
        if end > limit:
            raise ValueError("length exceeds the data")
        return end

    def _fields(self, data: bytes, offset: int, end: int, depth: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        while offset < end:
            name, offset = decode_short_string(data, offset)
            value, offset = self._value(data, offset, end, depth)
            table.setdefault(name, value)  # RabbitMQ, too, uses the first of several values with the same name
        if offset != end:
            raise ValueError("field table overruns its length")
        return table

    def _items(self, data: bytes, offset: int, end: int, depth: int) -> list[Any]:
        items = []
        while offset < end:
            item, offset = self._value(data, offset, end, depth)
            items.append(item)
        if offset != end:
            raise ValueError("field array overruns its length")
        return items

    def _value(self, data: bytes, offset: int, limit: int, depth: int) -> tuple[Any, int]:  # noqa: C901 - one case per type
        letter, start = data[offset], offset + 1
        fixed = self._fixed.get(letter)
        if fixed is not None:
            packing, kind = fixed
            return kind(packing.unpack_from(data, start)[0]), start + packing.size
        if letter == _VOID:
            return None, start
        if letter == _BOOL:
            return data[start] != 0, start + 1
        if letter == _DECIMAL:
            return self._decimal(data, start), start + 5
        if letter not in (_TEXT, _BYTES, _ARRAY, _TABLE):
            raise UnknownValue(f"unknown field type {letter}")
        end = self._end(data, start, limit)
        if letter == _TEXT:
            return self._text(data[start + 4 : end]), end
        if letter == _BYTES:
            return ByteArray(data[start + 4 : end]), end
        try:
            if depth >= MAX_DEPTH:
                raise ValueError("field table nested too deeply")
            decode = self._fields if letter == _TABLE else self._items
            return decode(data, start + 4, end, depth + 1), end
        except (ValueError, struct.error, IndexError):
            if self._keeps_damage:
                return Undecoded(data[offset:end]), end
            raise

    def _text(self, raw: bytes) -> str | bytes:
        return text(raw)

    def _decimal(self, data: bytes, offset: int) -> Any:
        return Decimal(*struct.unpack_from(">BI", data, offset))


def _time(seconds: int) -> datetime | Timestamp:
    return datetime.fromtimestamp(seconds, UTC) if seconds <= END_OF_TIME else Timestamp(seconds)


_CLIENT_FIXED: _Fixed = {
    **_FIXED,
    ord("U"): (struct.Struct(">h"), Int16),  # RabbitMQ has `s` instead
    ord("I"): (struct.Struct(">i"), int),
    ord("L"): (struct.Struct(">q"), Int64L),
    ord("T"): (struct.Struct(">Q"), _time),
}


class _ClientTables(FieldTables):
    """The codec of the client: decodes to Python types, and accepts damaged data.

    A damaged part becomes Undecoded. A damaged table becomes a table with its encoded bytes under the key UNREADABLE.
    """

    _fixed = _CLIENT_FIXED
    _letters = {kind: each for kind, each in _LETTERS.items() if kind not in (float, Float32)} | {
        Int64L: (b"L", struct.Struct(">q"))
    }
    _keeps_damage = True
    _deepest = MAX_DEPTH

    def decode_table(self, data: bytes, offset: int = 0, max_depth: int = MAX_DEPTH) -> tuple[dict[str, Any], int]:
        end = len(data)
        try:
            end = self._end(data, offset, end)
            return self._fields(data, offset + 4, end, MAX_DEPTH - max_depth), end
        except (ValueError, struct.error, IndexError):
            return {UNREADABLE: data[offset:end]}, end

    def _string(self, value: str) -> bytes:
        if getattr(value, "wire_type", "") in ("char", "uuid"):
            raise NoFieldType(value)
        return super()._string(value)

    def _integer(self, value: int) -> bytes:
        kind = getattr(value, "wire_type", None)  # one of AMQP 1.0's types
        if kind == "$milliseconds" or (kind is not None and value >= 1 << 63):
            raise NoFieldType(value)
        is_short = kind is None and -(2**31) <= value < 2**31
        return struct.pack(">ci", b"I", value) if is_short else struct.pack(">cq", b"l", value)

    def _bytes(self, value: bytes) -> bytes:
        if getattr(value, "wire_type", None) is not None:
            raise NoFieldType(value)
        return b"x" + _sized(value)

    def _text(self, raw: bytes) -> str:
        return raw.decode("utf-8", "surrogateescape")

    def _decimal(self, data: bytes, offset: int) -> decimal.Decimal:
        scale, digits = struct.unpack_from(">Bi", data, offset)
        return decimal.Decimal(digits).scaleb(-scale)

    def _other(self, value: Any) -> bytes:
        if isinstance(value, float) and math.isfinite(value):  # RabbitMQ closes the connection for any other
            letter, packing = _LETTERS[Float32 if isinstance(value, Float32) else float]
            return letter + packing.pack(value)
        if isinstance(value, decimal.Decimal):
            return b"D" + _packed_decimal(value)
        if isinstance(value, datetime):
            return struct.pack(">cQ", b"T", calendar.timegm(value.utctimetuple()))
        raise NoFieldType(value)


EXACT, CLIENT = FieldTables(), _ClientTables()
decode_table, encode_table, encode_value = EXACT.decode_table, EXACT.encode_table, EXACT.encode_value


_NONE = b"\0\0\0\0"
_LONG, _SAME_LONG = b"lL"
_SIZES = {letter: packing.size for letter, (packing, _) in _FIXED.items()} | {_VOID: 0, _BOOL: 1, _DECIMAL: 5}


def sorted_table(table: bytes, added: bytes = _NONE, *, unique: bool) -> bytes:
    """Encode a valid table as RabbitMQ does after decoding it: sorted by name, `L` as `l`, and any true boolean as 1.

    Inner tables keep their order. The values of `added` replace all those of the same name.

    Args:
        table: the encoded table, with its length.
        added: another one, without duplicates.
        unique: keep only the first of several values with the same name.

    Returns:
        The encoded table; the same object if nothing changes.
    """
    fields = _encoded_fields(table)
    if added != _NONE:
        replacing = dict(_encoded_fields(added))
        fields = [*(field for field in fields if field[0] not in replacing), *replacing.items()]
    if unique:
        fields = list(dict(reversed(fields)).items())
    fields.sort(key=itemgetter(0))
    encoded = _sized(b"".join([field for _, field in fields]))
    return table if encoded == table else encoded


def header_names(properties: bytes) -> list[str]:
    """Return the names of a message's headers in the order in which they were sent, with duplicates.

    Args:
        properties: the message's flags and properties. If they are damaged, the list is empty.
    """
    try:
        (flags,), position = struct.unpack_from(">H", properties), 2
        for number in range(PROPERTIES.index("headers")):
            if flags & 1 << (15 - number):
                _, position = decode_short_string(properties, position)
        if not flags & 1 << (15 - PROPERTIES.index("headers")):
            return []
        table = properties[position : position + 4 + _SIZE.unpack_from(properties, position)[0]]
        return [name.decode("utf-8", "surrogateescape") for name, _ in _encoded_fields(table)]
    except (ValueError, struct.error, IndexError):
        return []


def _encoded_fields(table: bytes) -> list[tuple[bytes, bytes]]:
    """Return the names of a table with the encoded fields, in the types that RabbitMQ writes."""
    fields, position, end = [], 4, len(table)
    while position < end:
        start, name_end = position, position + 1 + table[position]
        letter, size = table[name_end], _SIZES.get(table[name_end])
        position = name_end + 1 + (4 + _SIZE.unpack_from(table, name_end + 1)[0] if size is None else size)
        field = table[start:position]
        if letter == _SAME_LONG or letter in (_BOOL, _ARRAY, _TABLE):
            written = bytearray(field)
            _write_types(written, 1 + field[0])
            field = bytes(written)
        fields.append((field[1 : name_end - start], field))
    return fields


def _write_types(data: bytearray, position: int) -> int:
    """Change the type of the value at a position, and of those in it, to those that RabbitMQ writes; return its end."""
    letter, position = data[position], position + 1
    end: int
    if letter == _SAME_LONG:
        data[position - 1] = _LONG
    elif letter == _BOOL:
        data[position] = data[position] != 0
    elif letter not in _SIZES:
        end, position = position + 4 + _SIZE.unpack_from(data, position)[0], position + 4
        while letter in (_ARRAY, _TABLE) and position < end:
            position = _write_types(data, position + 1 + data[position] if letter == _TABLE else position)
        return end
    return position + _SIZES[letter]


def _sized(raw: bytes) -> bytes:
    return _SIZE.pack(len(raw)) + raw


def _packed_decimal(value: decimal.Decimal) -> bytes:
    """Encode a decimal as a one-byte scale and a 32-bit integer. Raises an error if it is too large or NaN.

    Zeros at its end are kept if there is room for them.
    """
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"AMQP has no decimal {value}")
    shown = "".join(map(str, digits))
    if -256 < exponent <= 0 and len(shown) <= 10 and (whole := int(shown)) < (1 << 31) + sign:
        return struct.pack(">Bi", -exponent, -whole if sign else whole)
    zeros = min(len(shown) - len(shown.rstrip("0")), max(-exponent, 0))
    shown, exponent = shown[: len(shown) - zeros] or "0", exponent + zeros
    if shown.strip("0") and len(shown) + max(exponent, 0) > 10:
        raise OverflowError(f"the decimal {value} does not fit into 32 bits")
    whole = int(shown[:10]) * 10 ** min(max(exponent, 0), 10)
    return struct.pack(">Bi", max(-exponent, 0), -whole if sign else whole)


def decode_short_string(data: bytes, offset: int) -> tuple[str, int]:
    """Decode the name at an offset; return it with the offset after it. Bytes that are not UTF-8 become surrogates."""
    start = offset + 1
    end = start + data[offset]
    return data[start:end].decode("utf-8", "surrogateescape"), end


def encode_short_string(name: str | bytes) -> bytes:
    """Encode a name or a string property, preceded by its length.

    Raises:
        NameTooLong: the name is longer than 255 bytes.
    """
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    if len(raw) > 255:
        raise NameTooLong(raw)
    return bytes((len(raw),)) + raw


#: The format of each property that is not text. The bits of a message's property flags count down from 15.
_FORMS = {"delivery_mode": ">B", "priority": ">B", "timestamp": ">Q"}


def encode_property(name: str, value: Any) -> bytes:
    """Encode one property of a message with the client's codec. Raises the same errors as encode_table()."""
    if name == "headers":
        return _encode_headers(value)
    if name in _FORMS:
        return struct.pack(_FORMS[name], int(value))  # AMQP 1.0 has fractions of seconds
    if name == "to":
        return b""  # the exchange and the routing key say where the message goes
    if name in ONLY_10:
        raise ValueError(f"only AMQP 1.0 has the property {name}")
    if not isinstance(value, str | bytes):
        raise ValueError(f"the property {name} is not text: {value!r}")
    return encode_short_string(value)


def _encode_headers(headers: Mapping[str, Any]) -> bytes:
    try:
        return CLIENT.encode_table(headers)
    except NoFieldType as error:
        name = next(name for name, value in headers.items() if not _has_type(value))
        raise NoFieldType(error.args[0], name) from error


def _has_type(value: Any) -> bool:
    try:
        CLIENT.encode_value(value)
    except NoFieldType:
        return False
    return True


def largest_payload(frame_max: int | None) -> int:
    """Return the most bytes that fit into one frame, such as a message's headers and properties.

    Args:
        frame_max: the largest frame that the broker accepts, in bytes; 0 or None for 128 KiB.
    """
    return (frame_max or 131072) - 8


def header_size(properties: Mapping[str, Any]) -> int:
    """Return the size of the header frame of a message with these properties, in bytes, without the frame's own 8.

    Properties that are None are left out. Raises the same errors as encode_table().
    """
    return 14 + sum(len(encode_property(name, value)) for name, value in properties.items() if value is not None)


def encoded_fields(properties: Mapping[str, Any]) -> set[tuple[str, bytes]]:
    """Encode each property and each header on its own, to compare messages: in Python, 1, 1.0 and True are equal.

    Properties that are None are left out. Raises the same errors as encode_table().
    """
    fields = {name: value for name, value in properties.items() if value is not None}
    headers = fields.pop("headers", {})
    return {(name, encode_property(name, value)) for name, value in fields.items()} | {
        (f"headers.{name}", CLIENT.encode_value(value)) for name, value in headers.items()
    }


def decode_properties(data: bytes) -> dict[str, Any]:
    """Decode a message's flags and properties with the client's codec. If damaged, return only a header UNREADABLE."""
    properties: dict[str, Any] = {}
    try:
        (flags,) = struct.unpack_from(">H", data)
        position = 2
        for number, name in enumerate(PROPERTIES):
            if not flags & 1 << (15 - number):
                continue
            if name == "headers":
                properties[name], position = CLIENT.decode_table(data, position)
            elif name in _FORMS:
                (properties[name],) = struct.unpack_from(_FORMS[name], data, position)
                position += struct.calcsize(_FORMS[name])
            else:
                properties[name], position = decode_short_string(data, position)
    except (struct.error, IndexError):
        return {"headers": {UNREADABLE: data}}
    return properties if position <= len(data) else {"headers": {UNREADABLE: data}}
