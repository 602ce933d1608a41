"""Encode and decode AMQP 0-9-1 frames and methods.

pamqp defines the methods, their fields and the fields' types. The values are encoded and decoded here, because pamqp
rejects names that RabbitMQ accepts (a queue called `my queue`) and loses integer widths. Methods that make up most of
the traffic (basic.deliver, basic.get-ok, basic.ack) have their own encoders; the general one takes three times as long.
"""

import struct
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.model.amqp_errors import COMMAND_INVALID, FRAME_ERROR, INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.codecs.field_tables import Table, UnknownValue, decode_table, encode_table

METHOD = 1
HEADER = 2
BODY = 3
HEARTBEAT = 8
FRAME_END = b"\xce"
#: The number of bytes in a frame in addition to its payload: type, channel, size and end mark.
FRAME_OVERHEAD = 8

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
#: The headers of clients that speak AMQP 0-9-1. Those written for AMQP 0-9, such as Perl's Net::AMQP, send the second.
PROTOCOL_HEADERS = (PROTOCOL_HEADER, b"AMQP\x01\x01\x00\x09")
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

FRAME_HEADER = struct.Struct(">BHI")
#: The end mark of a frame, followed by the head of the next one: type, channel and size.
BETWEEN = struct.Struct(">BBHI")

#: The capability by which a client announces that it publishes a message again until a queue has received it.
RETRIES = "mqtool.retries"

BASIC_PUBLISH = b"\x00\x3c\x00\x28"
BASIC_ACK = b"\x00\x3c\x00\x50"
ACCESS_REQUEST = b"\x00\x1e\x00\x0a"
ACCESS_REQUEST_OK = b"\x00\x1e\x00\x0b\x00\x01"
CONNECTION_CLOSE_OK = b"\x00\x0a\x00\x33"
CHANNEL_CLOSE = b"\x00\x14\x00\x28"
CHANNEL_CLOSE_OK = b"\x00\x14\x00\x29"
ACK_SIZE = 13
#: How many bytes of a frame an error message quotes. Reply texts are limited to 255 bytes anyway.
_QUOTED_BYTES = 260
ACK_FIELDS = struct.Struct(">QB")
_DELIVER = b"\x00\x3c\x00\x3c"
_GET_OK = b"\x00\x3c\x00\x47"
_RETURN = b"\x00\x3c\x00\x32"
_ACK_FRAME = struct.Struct(">BHIHHQBB")
_TAG = struct.Struct(">QB")
#: The size of an encoded basic.deliver without its consumer tag, exchange and routing key.
_DELIVER_SIZE = len(_DELIVER) + _TAG.size


def method_frame(channel: int, payload: bytes) -> bytes:
    """Encode a method frame around an encoded method."""
    return FRAME_HEADER.pack(METHOD, channel, len(payload)) + payload + FRAME_END


def _content(channel: int, method: bytes, message: BrokerMessage, frame_max: int) -> bytes:
    """Encode a method with content: method frame, header frame, and body frames of at most `frame_max` bytes."""
    header, body = message.header.raw, message.body
    parts = [
        FRAME_HEADER.pack(METHOD, channel, len(method)),
        method,
        BETWEEN.pack(0xCE, HEADER, channel, len(header)),
        header,
    ]
    size, most = len(body), frame_max - FRAME_OVERHEAD
    for start in range(0, size, most):
        chunk = body[start : start + most]
        parts += (BETWEEN.pack(0xCE, BODY, channel, len(chunk)), chunk)
    parts.append(FRAME_END)
    return b"".join(parts)


def deliver(
    channel: int, consumer_tag: bytes, delivery_tag: int, message: BrokerMessage, frame_max: int, *, redelivered: bool
) -> bytes:
    """Encode basic.deliver with its content. `consumer_tag` is an encoded short string."""
    header, body, address = message.header.raw, message.body, message.address
    size = len(body)
    if not 0 < size <= frame_max - FRAME_OVERHEAD:
        method = _DELIVER + consumer_tag + _TAG.pack(delivery_tag, redelivered) + address
        return _content(channel, method, message, frame_max)
    # Hot path: the body is a single frame.
    return b"".join(
        (
            FRAME_HEADER.pack(METHOD, channel, _DELIVER_SIZE + len(consumer_tag) + len(address)),
            _DELIVER,
            consumer_tag,
            _TAG.pack(delivery_tag, redelivered),
            address,
            BETWEEN.pack(0xCE, HEADER, channel, len(header)),
            header,
            BETWEEN.pack(0xCE, BODY, channel, size),
            body,
            FRAME_END,
        )
    )


def get_ok(
    channel: int, delivery_tag: int, message: BrokerMessage, message_count: int, frame_max: int, *, redelivered: bool
) -> bytes:
    """Encode basic.get-ok with its content. `message_count` is the number of messages left in the queue."""
    method = _GET_OK + _TAG.pack(delivery_tag, redelivered) + message.address + message_count.to_bytes(4)
    return _content(channel, method, message, frame_max)


def returned(channel: int, code: int, text: str, message: BrokerMessage, frame_max: int) -> bytes:
    """Encode basic.return with its content."""
    raw = text.encode()
    method = _RETURN + code.to_bytes(2) + bytes([len(raw)]) + raw + message.address
    return _content(channel, method, message, frame_max)


def ack(channel: int, delivery_tag: int, *, multiple: bool) -> bytes:
    """Encode basic.ack as a publisher confirm."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 60, 80, delivery_tag, multiple, 0xCE)


def nack(channel: int, delivery_tag: int) -> bytes:
    """Encode basic.nack for one publish that the broker rejects."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 60, 120, delivery_tag, 0, 0xCE)


def frame_error(what: str) -> ConnectionException:
    """Return error 501 for an invalid frame or method. `what` is the error text."""
    return ConnectionException(FRAME_ERROR, what)


def malformed(code: int, kind: int, payload: bytes, what: str = "") -> ConnectionException:
    """Return the error for an invalid frame, with the same text as RabbitMQ's, which contains Erlang terms.

    Args:
        code: the reply code.
        kind: the type of the frame.
        payload: the payload of the frame; the error quotes the first 16 bytes.
        what: a description to append, if any.
    """
    shown = "all octets" if len(payload) <= 16 else "first 16 octets"
    text = f"type {kind}, {shown} = {_erlang(payload[:16])}"
    return ConnectionException(code, f"{text}: {what}" if what else text)


def _erlang(data: bytes) -> str:
    """Format bytes the way Erlang prints a binary: as text if all bytes are printable, otherwise as numbers."""
    text = data.decode("latin-1")
    if data and all(letter.isprintable() for letter in text) and '"' not in text:
        return f'<<"{text}">>'
    return f"<<{','.join(map(str, data))}>>"


_FIXED = {
    "octet": struct.Struct(">B"),
    "short": struct.Struct(">H"),
    "long": struct.Struct(">I"),
    "longlong": struct.Struct(">Q"),
}
_SIZE = struct.Struct(">I")
# `Any`, because pamqp annotates the values of its mapping as bare types.
_METHODS: dict[int, Any] = dict(commands.INDEX_MAPPING)
_FIELDS: dict[type[Frame], list[tuple[str, str]]] = {
    method: [(name, method.amqp_type(name)) for name in method.__slots__] for method in _METHODS.values()
}
_DEFAULTS: dict[str, object] = {"bit": False, "shortstr": "", "longstr": "", "table": {}}


def decode_method(payload: bytes) -> Frame:
    """Decode the payload of a method frame.

    Raises:
        ConnectionException: 503 for an unknown method, 501 for one that cannot be decoded; 541 for an unknown value.
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
    except UnknownValue as error:
        raise ConnectionException(INTERNAL_ERROR) from error
    except (struct.error, IndexError, ValueError) as error:
        raise frame_error(f"cannot decode <<{','.join(map(str, payload[4:_QUOTED_BYTES]))}>>") from error
    return method


def _decode_fields(method: Frame, payload: bytes) -> int:
    """Decode the fields of a method into its attributes; return the offset after the last one."""
    offset, bit = 4, 8
    for name, kind in _FIELDS[type(method)]:
        if kind == "bit":
            # Successive bits share a byte (section 4.2.5.2 of the specification).
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
    # The `response` field of connection.start-ok may contain any bytes; all other strings are text.
    return raw.decode(errors="surrogateescape"), start + size


def table(value: object) -> Table:
    """Return a table field of a decoded method, typed as Table: pamqp declares a different type for it."""
    return value if isinstance(value, dict) else {}


def encode_method(kind: type[Frame], **fields: str | int | bool | Table) -> bytes:
    """Encode the payload of a method frame. Fields that are not given are empty, 0 or false."""
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
    """Encode a short string: text of up to 255 bytes."""
    raw = value.encode(errors="surrogateescape")
    return bytes([len(raw)]) + raw
