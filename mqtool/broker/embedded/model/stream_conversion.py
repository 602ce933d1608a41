"""Conversion of AMQP 0-9-1 messages to the AMQP 1.0 sections that a stream stores, and back, as in RabbitMQ 3.10.

Messages from and to AMQP 1.0 clients are converted by protocol_conversion.py.
Clients of the stream protocol encode the sections themselves, so an entry can contain anything. Header values are
converted if AMQP 0-9-1 has their type; lists, maps, tables and arrays are dropped.
"""

import base64
import struct
import uuid
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from mqtool.broker.embedded.model.amqp_message import MessageProperties, encode_short
from mqtool.broker.embedded.model.protocol_conversion import DROPPED, Dropped
from mqtool.codecs.amqp10_message import (
    APPLICATION_PROPERTIES,
    DATA,
    HEADER,
    MESSAGE_ANNOTATIONS,
    PROPERTIES,
    SEQUENCE,
    VALUE,
    BareProperties,
    encode_header,
    section_at,
)
from mqtool.codecs.amqp10_spans import find
from mqtool.codecs.amqp10_values import (
    NULL,
    UINT64,
    Any10,
    Char,
    Described,
    Map,
    Milliseconds,
    RawDecimal,
    ULong,
    compound,
    section,
    variable,
)
from mqtool.codecs.amqp10_values import decode as decode_value
from mqtool.codecs.field_tables import ByteArray, Int64, Table, Timestamp, UInt8, UInt32, Value, encode_table, text


class Decoded(NamedTuple):
    """A stored message.

    Attributes:
        exchange: the exchange that the message was published to; "" if it was published with the stream protocol.
        routing_key: None if the message was published with the stream protocol. It is then delivered with the stream's
            name as its routing key, as in RabbitMQ.
    """

    properties: MessageProperties
    body: bytes
    exchange: str
    routing_key: str | None


_STRINGS = {"message_id": 0xA1, "user_id": 0xA0, "reply_to": 0xA1, "correlation_id": 0xA1}
_SYMBOLS = {"content_type": 0xA3, "content_encoding": 0xA3}

#: Encoded headers shorter than this are cached. Strings shorter than this fit into an AMQP 0-9-1 short string.
_SHORT = 256


def encode(properties: MessageProperties, body: bytes, exchange: str, routing_key: str) -> bytes:
    """Encode a message in the form in which RabbitMQ 3.10 stores it in a stream."""
    raw = properties.encode()
    if len(raw) >= _SHORT:
        head = _head(raw, exchange, routing_key)
    elif (span := properties.message_id_span()) is None:
        head = _cached_head(raw, exchange, routing_key)
    else:
        message_id = raw[span.start : span.stop]
        before, after = _around_id(raw[: span.start], raw[span.stop :], len(message_id), exchange, routing_key)
        head = before + message_id + after
    return head + section(DATA, variable(0xA0, body))


def _head(raw: bytes, exchange: str, routing_key: str) -> bytes:
    properties = MessageProperties(raw)
    fields = properties.fields()

    def string(name: str, code: int) -> bytes:
        return variable(code, fields[name][1:])

    annotations: dict[str, bytes] = {
        "x-routing-key": variable(0xA1, routing_key.encode(errors="surrogateescape")),
        "x-exchange": variable(0xA1, exchange.encode(errors="surrogateescape")),
    }
    for name in ("priority", "delivery_mode"):
        if name in fields:
            annotations[f"x-basic-{name.replace('_', '-')}"] = b"\x50" + fields[name]
    if "expiration" in fields:
        annotations["x-basic-expiration"] = string("expiration", 0xA1)
    listed = {name: string(name, code) for name, code in (_STRINGS | _SYMBOLS).items() if name in fields}
    if "timestamp" in fields:
        milliseconds = int.from_bytes(fields["timestamp"]) * 1000 & UINT64
        listed["creation_time"] = b"\x83" + struct.pack(">Q", milliseconds)
    application = [
        part
        for name, code in (("type", "x-basic-type"), ("app_id", "x-basic-app-id"))
        if name in fields
        for part in (variable(0xA1, code.encode()), string(name, 0xA1))
    ]
    for key, value in properties.headers.items():
        encoded = _encode(value)
        if encoded is not None:
            application += [variable(0xA1, key.encode(errors="surrogateescape")), encoded]
    symbols = [part for key, value in annotations.items() for part in (variable(0xA3, key.encode()), value)]
    head = section(MESSAGE_ANNOTATIONS, compound(0xC1, symbols))
    if listed:
        head += section(PROPERTIES, compound(0xC0, [listed.get(name, NULL) for name in BareProperties._fields]))
    if application:
        head += section(APPLICATION_PROPERTIES, compound(0xC1, application))
    return head


def _encode(value: Value) -> bytes | None:
    if isinstance(value, bool):
        return b"\x56\x01" if value else b"\x56\x00"
    return variable(0xA1, value) if type(value) is bytes else encode_header(value)


_cached_head = lru_cache(maxsize=1024)(_head)


@lru_cache(maxsize=1024)
def _around_id(before: bytes, after: bytes, size: int, exchange: str, routing_key: str) -> tuple[bytes, bytes]:
    """Return the encoded sections in two parts: the bytes before the message id, and the bytes after it.

    The parts are cached, because successive messages often differ only in their ids.
    """
    heads = [_head(before + letter * size + after, exchange, routing_key) for letter in (b"a", b"b")]
    start = next((index for index, (one, other) in enumerate(zip(*heads, strict=True)) if one != other), len(heads[0]))
    return heads[0][:start], heads[0][start + size :]


def decode(data: bytes) -> Decoded:
    """Decode a stream entry. If it is not AMQP 1.0, all its bytes become the message's body.

    A body that is an AMQP 1.0 value or sequence is left encoded, and the message's `type` is set to `amqp-1.0`.
    """
    try:
        start = _body_start(data)
        head = (_cached_parts if start < _SHORT else _parts)(data[:start])
        body = _body(data, start)
    except (ValueError, IndexError, struct.error):
        return Decoded(_PLAIN, data, "", None)
    if body is None:
        fields = head.properties.fields() | {"type": encode_short(b"amqp-1.0")}
        return Decoded(MessageProperties.of(fields), data[start:], head.exchange, head.routing_key)
    return Decoded(head.properties, body, head.exchange, head.routing_key)


_PLAIN = MessageProperties(b"\x00\x00")


def _body_start(data: bytes) -> int:
    position = 0
    while True:
        code, value = section_at(data, position)
        if DATA <= code <= VALUE:
            return position
        position = find(data, value).end


def _body(data: bytes, start: int) -> bytes | None:
    """Return the bytes of the data sections; None if the body is a value or a sequence."""
    parts = []
    while start < len(data):
        code, value = section_at(data, start)
        if code in (SEQUENCE, VALUE):
            return None
        span = find(data, value)
        if code == DATA:
            if span.code not in (0xA0, 0xB0):
                raise ValueError("data is not binary")
            parts.append(data[span.start : span.end])
        start = span.end
    return b"".join(parts)


def _parts(head: bytes) -> Decoded:
    """Decode the sections before the body."""
    fields: dict[str, bytes] = {}
    headers: Table = {}
    exchange, routing_key = "", None
    position = 0
    while position < len(head):
        code, value = section_at(head, position)
        found, position = decode_value(head, value)
        if type(found) not in ((list,) if code in (HEADER, PROPERTIES) else (dict,)):
            raise ValueError("section is not a list, or not a map")
        if code == HEADER:
            _take_header(fields, found)
        elif code == MESSAGE_ANNOTATIONS:
            annotations = dict(_pairs(found))
            exchange = _name(annotations.get("x-exchange")) or ""
            routing_key = _name(annotations.get("x-routing-key"))
            for name in ("priority", "delivery_mode"):
                _take_byte(fields, name, annotations.get(f"x-basic-{name.replace('_', '-')}"))
            _take_string(fields, "expiration", annotations.get("x-basic-expiration"))
        elif code == PROPERTIES:
            _take_properties(fields, headers, dict(zip(BareProperties._fields, map(_value, found), strict=False)))
        elif code == APPLICATION_PROPERTIES:
            _take_application(fields, headers, _pairs(found))
    if headers:
        fields["headers"] = encode_table(headers)
    return Decoded(MessageProperties.of(fields), b"", exchange, routing_key)


_cached_parts = lru_cache(maxsize=1024)(_parts)


def _value(value: Any10) -> Any10 | Dropped:
    """Convert an AMQP 1.0 value to a header value; return DROPPED if RabbitMQ 3.10 has no equivalent.

    Unsigned longs and UUIDs are returned unchanged.
    """
    match value:
        case Milliseconds():
            return Timestamp(value // 1000 & UINT64)
        case RawDecimal() | Described() | Char() | list() | dict():
            return DROPPED
        case bytes():
            return ByteArray(value)
        case str() if type(value) is str:
            return text(value.encode(errors="surrogateescape"))
    return value


def _pairs(found: Map) -> Iterator[tuple[str, Any10]]:
    pairs = ((_value(key), _value(value)) for key, value in found.items())
    return ((key, value) for key, value in pairs if isinstance(key, str))


def _short(value: Any10) -> bytes | None:
    """Return a string or binary value as bytes; None for other types, and for more bytes than a short string holds."""
    raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    return raw if isinstance(raw, bytes) and len(raw) < _SHORT else None


def _name(value: Any10) -> str | None:
    """Convert a value to an exchange name or a routing key; return None if it cannot be either."""
    raw = _short(value)
    return None if raw is None else raw.decode(errors="surrogateescape")


def _take_header(fields: dict[str, bytes], items: list[Any10]) -> None:
    """Convert the fields `durable`, `priority` and `ttl` of the AMQP 1.0 header section."""
    durable, priority, ttl = (*items[:3], None, None, None)[:3]
    if durable is True:
        fields["delivery_mode"] = b"\x02"
    _take_byte(fields, "priority", priority)
    if isinstance(ttl, UInt32):
        fields["expiration"] = encode_short(str(int(ttl)).encode())


def _take_byte(fields: dict[str, bytes], name: str, value: Any10) -> None:
    if isinstance(value, UInt8):
        fields[name] = bytes((value,))


def _take_string(fields: dict[str, bytes], name: str, value: Any10) -> None:
    """Convert a property to an AMQP 0-9-1 short string, or drop it if it cannot be converted."""
    if (raw := _short(value)) is not None:
        fields[name] = encode_short(raw)


def _take_properties(fields: dict[str, bytes], headers: Table, values: dict[str, Any10]) -> None:
    for name in ("user_id", "reply_to", "content_type", "content_encoding"):
        _take_string(fields, name, values.get(name))
    for name in ("message_id", "correlation_id"):
        _take_id(fields, headers, name, values.get(name))
    created = values.get("creation_time")
    if isinstance(created, Timestamp):
        fields["timestamp"] = created.to_bytes(8)


def _take_id(fields: dict[str, bytes], headers: Table, name: str, value: Any10) -> None:
    """Convert a message id or correlation id to a property. If it is not text, also add a header with its type.

    An id that is too long for a property becomes a header instead.
    """
    header = f"x-{name.replace('_', '-')}"
    match value:
        case uuid.UUID():
            kind, raw = "uuid", str(value).encode()
        case ULong():
            kind, raw = "ulong", str(int(value)).encode()
        case ByteArray():
            kind, raw = "binary", base64.b64encode(value)
        case bytes():
            kind, raw = "", value
        case str():
            kind, raw = "", value.encode(errors="surrogateescape")
        case _:
            return
    if len(raw) >= _SHORT:
        headers[header] = text(raw)
        return
    if kind:
        headers[f"{header}-type"] = kind
    fields[name] = encode_short(raw)


def _take_application(fields: dict[str, bytes], headers: Table, pairs: Iterator[tuple[str, Any10]]) -> None:
    """Convert application properties to headers. `x-basic-type` and `x-basic-app-id` become properties instead."""
    for key, value in pairs:
        if key in ("x-basic-type", "x-basic-app-id"):
            _take_string(fields, key.removeprefix("x-basic-").replace("-", "_"), value)
        elif len(key.encode(errors="surrogateescape")) < _SHORT and not isinstance(value, Dropped | uuid.UUID):
            is_ulong = isinstance(value, ULong)
            headers[key] = (Int64(value) if value < 1 << 63 else str(value)) if is_ulong else value
