"""Methods to and from the payload of a method frame.

pamqp knows the methods, their fields and the types of these. The values are decoded here, because pamqp refuses names
that RabbitMQ accepts (a queue called `my queue`) and forgets integer widths.
"""

import struct
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.model.errors import COMMAND_INVALID, FRAME_ERROR, ConnectionException
from mqtool.broker.embedded.wire.frame_errors import frame_error, malformed
from mqtool.routing.field_table import Table, decode_table, encode_table

_FIXED = {
    "octet": struct.Struct(">B"),
    "short": struct.Struct(">H"),
    "long": struct.Struct(">I"),
    "longlong": struct.Struct(">Q"),
}
_SIZE = struct.Struct(">I")
# Any: pamqp annotates the values of its mapping as bare types.
_METHODS: dict[int, Any] = dict(commands.INDEX_MAPPING)
_FIELDS: dict[type[Frame], list[tuple[str, str]]] = {
    method: [(name, method.amqp_type(name)) for name in method.__slots__] for method in _METHODS.values()
}
_DEFAULTS: dict[str, object] = {"bit": False, "shortstr": "", "longstr": "", "table": {}}


def decode_method(payload: bytes) -> Frame:
    """Decode the payload of a method frame.

    Raises:
        ConnectionException: 503 for an unknown method, 501 for one that cannot be decoded.
    """
    if len(payload) < 4:
        raise malformed(FRAME_ERROR, 1, payload, "unknown_frame")
    index = _SIZE.unpack_from(payload)[0]
    kind = _METHODS.get(index)
    if kind is None:
        raise ConnectionException(COMMAND_INVALID, f"unknown method {index >> 16},{index & 0xFFFF}")
    method: Frame = kind.__new__(kind)
    try:
        if _decode_fields(method, payload) != len(payload):
            raise ValueError("octets after the last field")
    except (struct.error, IndexError, ValueError) as error:
        raise frame_error(f"cannot decode <<{','.join(map(str, payload[4:]))}>>") from error
    return method


def _decode_fields(method: Frame, payload: bytes) -> int:
    """Set the fields and return the offset after the last one."""
    offset, bit = 4, 8
    for name, kind in _FIELDS[type(method)]:
        if kind == "bit":
            # Successive bits share an octet (section 4.2.5.2).
            if bit == 8:
                octet, bit, offset = payload[offset], 0, offset + 1
            setattr(method, name, bool(octet >> bit & 1))
            bit += 1
            continue
        bit = 8
        value, offset = _decode_field(kind, payload, offset)
        setattr(method, name, value)
    return offset


def _decode_field(kind: str, payload: bytes, offset: int) -> tuple[Any, int]:
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(payload, offset)[0], offset + fixed.size
    if kind == "table":
        return decode_table(payload, offset)
    if kind == "shortstr":
        start, size = offset + 1, payload[offset]
    else:
        start, size = offset + 4, _SIZE.unpack_from(payload, offset)[0]
    if start + size > len(payload):
        raise ValueError("string cut short")
    raw = payload[start : start + size]
    # connection.start-ok's response may hold any octets; everything else is text.
    return raw.decode(errors="surrogateescape"), start + size


def table(value: object) -> Table:
    """Return a field of a decoded method that is a table; pamqp annotates it with types of its own decoder."""
    return value if isinstance(value, dict) else {}


def encode_method(kind: type[Frame], **fields: str | int | bool | Table) -> bytes:
    """Return the payload of a method frame; fields left out have their empty value."""
    parts = [_SIZE.pack(kind.index)]
    octet, bit = 0, 0
    for name, amqp_type in _FIELDS[kind]:
        value = fields.get(name, _DEFAULTS.get(amqp_type, 0))
        if amqp_type == "bit":
            octet |= bool(value) << bit
            bit += 1
            continue
        if bit:
            parts.append(bytes([octet]))
            octet, bit = 0, 0
        parts.append(_encode_field(amqp_type, value))
    if bit:
        parts.append(bytes([octet]))
    return b"".join(parts)


def _encode_field(kind: str, value: Any) -> bytes:
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.pack(value)
    if kind == "table":
        return encode_table(value)
    if kind == "shortstr":
        return short_string(value)
    raw: bytes = value.encode(errors="surrogateescape")
    return _SIZE.pack(len(raw)) + raw


def short_string(value: str) -> bytes:
    """Encode a short string."""
    raw = value.encode(errors="surrogateescape")
    return bytes([len(raw)]) + raw
