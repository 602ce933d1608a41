"""AMQP 1.0 messages: their sections, decoded, except for the body; and header values as Python programs have them.

See section 3.2 of the specification. https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-messaging-v1.0.html
"""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from mqtool.codecs.amqp10_spans import end_of, find
from mqtool.codecs.amqp10_values import (
    Any10,
    Array,
    Described,
    Encoded,
    Map,
    Milliseconds,
    RawDecimal,
    Room,
    Symbol,
    TextMap,
    ULong,
    UuidText,
    decode,
    encode,
    first_values,
    section,
    variable,
)
from mqtool.codecs.field_tables import UInt8, UInt32
from mqtool.message import END_OF_TIME, MAX_DEPTH

HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES = range(0x70, 0x75)
DATA, SEQUENCE, VALUE, FOOTER = range(0x75, 0x79)

_T = TypeVar("_T")
_COMPOUND = (list, dict, Described)
_CODES = {
    "amqp:header:list": HEADER,
    "amqp:delivery-annotations:map": DELIVERY_ANNOTATIONS,
    "amqp:message-annotations:map": MESSAGE_ANNOTATIONS,
    "amqp:properties:list": PROPERTIES,
    "amqp:application-properties:map": APPLICATION_PROPERTIES,
    "amqp:data:binary": DATA,
    "amqp:amqp-sequence:list": SEQUENCE,
    "amqp:amqp-value:*": VALUE,
    "amqp:footer:map": FOOTER,
}


class MessageHeader(NamedTuple):
    """The header section. None stands for a field that is not set. `ttl` is in milliseconds."""

    durable: bool | None = None
    priority: UInt8 | None = None
    ttl: UInt32 | None = None
    first_acquirer: bool | None = None
    delivery_count: UInt32 | None = None


class BareProperties(NamedTuple):
    """The properties section. None stands for a field that is not set.

    `message_id` and `correlation_id` are each a ULong, a UUID, bytes or a str. The times are Milliseconds.
    """

    message_id: Any = None
    user_id: bytes | None = None
    to: str | None = None
    subject: str | None = None
    reply_to: str | None = None
    correlation_id: Any = None
    content_type: Symbol | None = None
    content_encoding: Symbol | None = None
    absolute_expiry_time: Any = None
    creation_time: Any = None
    group_id: str | None = None
    group_sequence: UInt32 | None = None
    reply_to_group_id: str | None = None


_NO_HEADER, _NO_PROPERTIES = MessageHeader(), BareProperties()


@dataclass(slots=True)
class Amqp10Message:
    """A message.

    Attributes:
        body: the encoded body: data, sequence or value sections.
    """

    header: MessageHeader = _NO_HEADER
    delivery_annotations: Map = field(default_factory=dict)
    message_annotations: Map = field(default_factory=dict)
    properties: BareProperties = _NO_PROPERTIES
    application_properties: Map = field(default_factory=dict)
    body: bytes = b""
    footer: Map = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes) -> "Amqp10Message":
        """Decode a message. Raises ValueError if it is malformed."""
        message = cls()
        position = start = end = 0
        while position < len(data):
            code, at = section_at(data, position)
            if code in (DATA, SEQUENCE, VALUE):
                start, position = start if end else position, _skip(data, at)
                end = position
                continue
            value, position = decode(data, at)
            message._take(code, value)
        message.body = data[start:end]
        return message

    def _take(self, code: int, value: Any10) -> None:
        if code in (HEADER, PROPERTIES):
            if not isinstance(value, list):
                raise ValueError("section is not a list")
            if code == HEADER:
                self.header = MessageHeader(*value[:5])
            else:
                self.properties = BareProperties(*value[:13])
            return
        if not isinstance(value, dict):
            raise ValueError("section is not a map")
        match code:
            case 0x71:
                self.delivery_annotations = value
            case 0x72:
                self.message_annotations = value
            case 0x74:
                self.application_properties = value
            case 0x78:
                self.footer = value

    def encode(self) -> bytes:
        """Encode the message. Sections without fields are left out."""
        return b"".join(
            (
                _fields(HEADER, self.header),
                _map(DELIVERY_ANNOTATIONS, self.delivery_annotations),
                _map(MESSAGE_ANNOTATIONS, self.message_annotations),
                _fields(PROPERTIES, self.properties),
                _map(APPLICATION_PROPERTIES, self.application_properties),
                self.body,
                _map(FOOTER, self.footer),
            )
        )


def section_at(data: bytes, position: int) -> tuple[int, int]:
    """Return the code of the section at a position, and the position of its value."""
    if data.startswith(b"\x00\x53", position) and len(data) > position + 3:
        code, position = data[position + 2], position + 3
    elif data[position]:
        raise ValueError("not a section")
    else:
        descriptor, position = decode(data, position + 1)
        code = int(descriptor) if isinstance(descriptor, ULong) else _CODES.get(str(descriptor), 0)
    if not HEADER <= code <= FOOTER:
        raise ValueError("not a section of a message")
    return code, position


def _skip(data: bytes, position: int) -> int:
    """Return the position after a value of the body; raise ValueError if the value is malformed."""
    code = data[position] if position < len(data) else 0
    if code == 0xA0 and position + 1 < len(data):
        end = position + 2 + data[position + 1]
    elif code == 0xB0:
        end = position + 5 + int.from_bytes(data[position + 1 : position + 5])
    else:
        end = decode(data, position, room=Room(math.inf))[1]
    if end > len(data):
        raise ValueError("body cut short")
    return end


def _fields(code: int, values: Sequence[Any10]) -> bytes:
    size = len(values)
    while size and values[size - 1] is None:
        size -= 1
    return section(code, encode(list(values[:size]))) if size else b""


def _map(code: int, values: Map) -> bytes:
    return section(code, encode(values)) if values else b""


def data_section(body: bytes) -> bytes:
    """Encode a body of bytes as one data section."""
    return section(DATA, variable(0xA0, body))


def value_section(value: Any10) -> bytes:
    """Encode a body that is one value."""
    return section(VALUE, encode(value))


def sections(body: bytes) -> list[Described]:
    """Decode the sections of a body. Each descriptor is DATA, SEQUENCE or VALUE."""
    found, position = [], 0
    while position < len(body):
        code, position = section_at(body, position)
        value, position = decode(body, position, room=Room(math.inf))
        found.append(Described(code, value))
    return found


def body_bytes(body: bytes) -> bytes | None:
    """Return the bytes of a body of data sections; None if it consists of values or sequences."""
    found = sections(body)
    if any(each.descriptor != DATA or not isinstance(each.value, bytes) for each in found):
        return None
    return b"".join(each.value for each in found)


def encode_header(value: Any) -> bytes | None:
    """Encode a header of the broker's; return None for a type that headers cannot have: a list, a map or a decimal."""
    if isinstance(value, list | tuple | Mapping):
        return None
    try:
        return encode(value)
    except ValueError:
        return None


def plain(value: Any10) -> Any:
    """Convert a decoded value to the types of the client: text, numbers, datetime, lists and dictionaries.

    A type of AMQP 1.0's own stays, as a subclass; see `wire_type`. A value for which Python has no type stays encoded.
    """
    convert = _PLAIN.get(type(value))
    return value if convert is None else convert(value)


def read_section(
    decoder: Callable[[bytes], _T], sections: Mapping[int, bytes], code: int, otherwise: _T, unreadable: list[bytes]
) -> _T:
    """Decode the value of a section; return `otherwise` if there is none.

    If that fails, add the value's bytes to `unreadable`, and return `otherwise`: a publisher can write anything.
    """
    raw = sections.get(code)
    if raw is None:
        return otherwise
    try:
        return decoder(raw)
    except (ValueError, IndexError):
        unreadable.append(raw)
        return otherwise


def plain_map(data: bytes, *, is_simple: bool = False) -> dict[str, Any]:
    """Decode a map as plain() does. If a key occurs several times, its first value counts.

    A value that cannot be decoded is returned as its encoded bytes.

    Args:
        is_simple: also return lists, arrays and maps as their encoded bytes: application properties cannot be such.

    Raises:
        ValueError, IndexError: the map is malformed or has too many items; or it is not a map.
    """
    try:
        value = decode(data)[0]
    except ValueError:
        pass
    else:
        if not isinstance(value, dict):
            raise ValueError("not a map")
        if not (is_simple and any(isinstance(each, _COMPOUND) for each in value.values())):
            return _plain_items(value)
    parts = _one_by_one(data, 0xC1, is_simple=is_simple)
    return first_values((str(key), each) for key, each in zip(parts[::2], parts[1::2], strict=True))


def plain_list(data: bytes) -> list[Any]:
    """Decode a list as plain_map() does a map. Raises the same errors."""
    try:
        value = decode(data)[0]
    except ValueError:
        return _one_by_one(data, 0xC0)
    if not isinstance(value, list):
        raise ValueError("not a list")
    return [plain(each) for each in value]


def _one_by_one(data: bytes, kind: int, *, is_simple: bool = False) -> list[Any]:
    """Decode the values in a list (0xc0) or map (0xc1), except for those that cannot be decoded. See plain_map()."""
    code, start, end = find(data, 0)
    if code & 0xEF != kind:
        raise ValueError("neither a list nor a map")
    width = 4 if code & 0x10 else 1
    count, start = int.from_bytes(data[start : start + width]), start + width
    room, for_descriptors = Room(), Room()
    room.take(count)
    values: list[Any] = []
    for _ in range(count):
        after = end_of(data, start, for_descriptors)
        try:
            value = decode(data, start, MAX_DEPTH - 1, room)[0]
        except ValueError:
            value = data[start:after]
        values.append(data[start:after] if is_simple and isinstance(value, _COMPOUND) else plain(value))
        start = after
    if start != end:
        raise ValueError("wrong number of items")
    return values


def _plain_items(value: Map) -> dict[str, Any]:
    pairs = [(str(key), plain(each)) for key, each in value.items()]
    found = dict(pairs)
    return first_values(pairs) if len(found) < len(pairs) else found  # such as 1 and "1"


def _plain_map(value: Map) -> dict[str, Any] | Encoded:
    kinds = {*map(type, value)}
    if not kinds <= {Symbol} and kinds != {str}:
        return Encoded(encode(value))
    return _plain_items(value) if kinds <= {Symbol} else TextMap(_plain_items(value))


def _plain_array(value: Array) -> Array | Encoded:
    found = Array(plain(each) for each in value)
    return Encoded(encode(value)) if any(isinstance(each, Encoded) for each in found) else found


def _plain_time(value: Milliseconds) -> datetime | Milliseconds:
    return datetime.fromtimestamp(value / 1000, UTC) if 0 <= value / 1000 <= END_OF_TIME else value


_PLAIN: dict[type, Callable[[Any], Any]] = {
    dict: _plain_map,
    list: lambda value: [plain(each) for each in value],
    Array: _plain_array,
    Milliseconds: _plain_time,
    uuid.UUID: lambda value: UuidText(value),
    **dict.fromkeys((Described, RawDecimal), lambda value: Encoded(encode(value))),
}
