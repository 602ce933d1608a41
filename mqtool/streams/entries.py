"""Encode and decode the messages of a stream, and decode its chunks.

Messages are in AMQP 1.0 format, with RabbitMQ's mapping of properties and headers. A message consists of sections:
annotations (exchange and routing key, if it was published over AMQP 0-9-1), properties, application properties
(headers), and the body. Data that does not consist of such sections is treated as a body.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from mqtool.codecs.amqp10_message import (
    APPLICATION_PROPERTIES,
    DATA,
    FOOTER,
    MESSAGE_ANNOTATIONS,
    PROPERTIES,
    SEQUENCE,
    VALUE,
    encode_header,
    plain_list,
    plain_map,
    read_section,
    section_at,
)
from mqtool.codecs.amqp10_spans import find
from mqtool.codecs.amqp10_values import NULL, compound, section, variable
from mqtool.codecs.field_tables import UInt8
from mqtool.errors import BadData
from mqtool.message import UNREADABLE, Message

#: The fields of the properties section, in order; "" for a field that does not exist in AMQP 0-9-1.
_FIELDS = (
    *("message_id", "user_id", "", "", "reply_to", "correlation_id"),
    *("content_type", "content_encoding", "", "timestamp"),
)
_SYMBOLS = ("content_type", "content_encoding")
#: Properties that do not exist in AMQP 1.0, and the header or annotation in which RabbitMQ stores each.
_IN_HEADERS = {"type": "x-basic-type", "app_id": "x-basic-app-id"}
_IN_ANNOTATIONS = {
    "priority": "x-basic-priority",
    "delivery_mode": "x-basic-delivery-mode",
    "expiration": "x-basic-expiration",
}
_SHORT = 256
_SIZE = struct.Struct(">I")
_DATA_START = bytes((0, 0x53, DATA, 0xA0))
_LONG_DATA_START = bytes((0, 0x53, DATA, 0xB0))


class StreamEntry(NamedTuple):
    """A decoded message of a stream. If it was published over the stream protocol, it has no routing key."""

    body: bytes
    properties: dict[str, Any]
    exchange: str = ""
    routing_key: str | None = None


def encode(message: Message, exchange: str = "") -> bytes:
    """Encode a message. Headers that are tables or arrays are left out, as in RabbitMQ.

    Args:
        exchange: the super stream's exchange, to be stored with the routing key as if it had routed the message.
    """
    body = message.body
    size = len(body)
    data = _DATA_START + bytes((size,)) + body if size < _SHORT else _LONG_DATA_START + _SIZE.pack(size) + body
    routed = {"x-exchange": exchange, "x-routing-key": message.routing_key} if exchange and message.routing_key else {}
    if not message.properties and message.message_id is None and not routed:
        return data
    return _before_body(message, routed) + data


def _before_body(message: Message, routed: Mapping[str, str]) -> bytes:
    properties = {name: value for name, value in message.properties.items() if value is not None}
    if message.message_id is not None:
        properties["message_id"] = message.message_id
    annotations = {
        _IN_ANNOTATIONS[name]: UInt8(value) if isinstance(value, int) else value
        for name, value in properties.items()
        if name in _IN_ANNOTATIONS
    }
    annotations |= routed
    headers = {_IN_HEADERS[name]: value for name, value in properties.items() if name in _IN_HEADERS}
    headers |= properties.get("headers") or {}
    fields = [_field(name, properties.get(name)) for name in _FIELDS]
    sections = []
    if annotations:
        sections.append(section(MESSAGE_ANNOTATIONS, _map(annotations, key=0xA3)))
    if any(field != NULL for field in fields):
        sections.append(section(PROPERTIES, compound(0xC0, fields)))
    if headers:
        sections.append(section(APPLICATION_PROPERTIES, _map(headers, key=0xA1)))
    return b"".join(sections)


def _field(name: str, value: Any) -> bytes:
    if value is None:
        return NULL
    if name == "timestamp":
        return b"\x83" + struct.pack(">q", int(value) * 1000)
    code = 0xA0 if name == "user_id" else 0xA3 if name in _SYMBOLS else 0xA1
    return variable(code, _utf8(value))


def _map(values: Mapping[str, Any], *, key: int) -> bytes:
    items = []
    for name, value in values.items():
        encoded = encode_header(value)
        if encoded is not None:
            items += [variable(key, _utf8(name)), encoded]
    return compound(0xC1, items)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> StreamEntry:
    """Decode a message. A body that is an AMQP 1.0 value or sequence instead of bytes stays encoded.

    A section before the body that cannot be decoded is added to the header UNREADABLE.
    """
    body = body_alone(data)
    if body is not None:
        return StreamEntry(body, {})
    try:
        return _decode(data)
    except (ValueError, IndexError, struct.error, RecursionError):
        return StreamEntry(data, {})


def body_alone(data: bytes) -> bytes | None:
    """Return the body of an encoded message that consists only of a body; None for other messages."""
    if data[:1] != b"\0":
        return data
    return data[5:] if data[:4] == _DATA_START and len(data) > 4 and len(data) == 5 + data[4] else None


def _decode(data: bytes) -> StreamEntry:
    sections: dict[int, bytes] = {}
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        kind, value = section_at(data, at)
        if kind in (SEQUENCE, VALUE):
            parts, at = [data[at:]], len(data)
            break
        if kind == FOOTER:
            break
        span = find(data, value)
        if kind == DATA:
            parts.append(data[span.start : span.end])
        else:
            sections.setdefault(kind, data[value : span.end])
        at = span.end
    if not parts:
        raise ValueError("no body")
    unreadable: list[bytes] = []
    annotations: dict[str, Any] = read_section(plain_map, sections, MESSAGE_ANNOTATIONS, {}, unreadable)
    properties = _properties(sections, annotations, unreadable)
    exchange = _short(annotations.get("x-exchange")) or ""
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return StreamEntry(body, properties, exchange, _short(annotations.get("x-routing-key")))


# A publisher can write any value. A message with a priority of -1, or with a name of 256 bytes, could not be published
# again over AMQP 0-9-1, and would stop whoever tries. So the message is received without it.
def _properties(
    sections: Mapping[int, bytes], annotations: Mapping[str, Any], unreadable: list[bytes]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fields: list[Any] = read_section(plain_list, sections, PROPERTIES, [], unreadable)
    for name, value in zip(_FIELDS, fields, strict=False):
        if name and value is not None and (known := _property(name, value)) is not None:
            found[name] = known
    for name, where in _IN_ANNOTATIONS.items():
        if (value := annotations.get(where)) is None:
            continue
        if _is_milliseconds(value) if name == "expiration" else _is_byte(value):
            found[name] = value
    headers: dict[str, Any] = read_section(plain_map, sections, APPLICATION_PROPERTIES, {}, unreadable)
    for name, where in _IN_HEADERS.items():
        if (known := _short(headers.pop(where, None))) is not None:
            found[name] = known
    headers = {name: value for name, value in headers.items() if _short(name) is not None}
    if unreadable:
        headers[UNREADABLE] = b"".join(unreadable)
    if headers:
        found["headers"] = headers
    return found


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_milliseconds(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) is not None and int(value) < 1 << 32


def _property(name: str, value: Any) -> int | str | None:
    if name == "timestamp":
        return int(value.timestamp()) if isinstance(value, datetime) else None
    return _short(value)


def _short(value: Any) -> str | None:
    """Return a value as text; None if there is none, or if it is too long for a short string of AMQP 0-9-1."""
    if value is None:
        return None
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    return text if len(_utf8(text)) < _SHORT else None


#: The start of a Deliver frame: key, version, subscription; then the chunk's magic, type, number of entries and of
#: records, timestamp, epoch, first offset, CRC, lengths, reserved.
_HEAD = struct.Struct(">HHBbbHIqQQIIII")
_BATCH = struct.Struct(">BHII")
_IS_BATCH = 0x80
#: The maximum size of a decompressed batch in bytes: RabbitMQ's default limit for a message.
_LARGEST_BATCH = 128 << 20
#: Bytes to decompress at a time, for a library that cannot limit its output.
_PIECE = 1 << 12


class Chunk(NamedTuple):
    """A chunk of a stream: a block of messages that are stored and sent together.

    Attributes:
        first_offset: the offset of the first message.
        records: the number of messages.
        entries: the number of entries, each of which is a message or a sub-entry batch.
        data: the encoded entries.
    """

    first_offset: int
    records: int
    entries: int
    data: bytes


def parse_chunk(frame: bytes) -> Chunk:
    """Decode the chunk in a Deliver frame; raise BadData if its length, checksum or type is wrong."""
    *_, kind, entries, records, _time, _epoch, first, crc, length, _trailer, _reserved = _HEAD.unpack_from(frame)
    data = frame[_HEAD.size :]
    if kind or length != len(data) or zlib.crc32(data) != crc:
        raise BadData(f"the chunk at offset {first:,} is damaged: its checksum does not match")
    return Chunk(first, records, entries, data)


class Skipped(NamedTuple):
    """Messages in a chunk that cannot be read.

    Attributes:
        messages: how many they are.
        reason: why, as a clause for a warning.
        package: the Python package with which they could perhaps be read; "" if they are damaged.
    """

    messages: int
    reason: str
    package: str = ""


def chunk_entries(chunk: Chunk) -> Iterator[bytes | Skipped]:
    """Yield the encoded messages of a chunk, and a Skipped for messages that cannot be read."""
    data, at, seen = chunk.data, 0, 0
    size_at = _SIZE.unpack_from
    for _ in range(chunk.entries):
        try:
            if data[at] & _IS_BATCH:
                kind, count, size, length = _BATCH.unpack_from(data, at)
                at += _BATCH.size + length
                if at > len(data):
                    break
                seen += count
                yield from _of_batch(data[at - length : at], (kind >> 4) & 7, count, size)
                continue
            (size,) = size_at(data, at)
        except (struct.error, IndexError):
            break
        start = at + 4
        at = start + size
        seen += 1
        yield data[start:at]
    if seen < chunk.records:
        yield Skipped(chunk.records - seen, "the rest of the chunk is damaged")


def _of_batch(data: bytes, compression: int, count: int, size: int) -> Iterator[bytes | Skipped]:
    """Yield the encoded messages of a sub-entry batch, which may be compressed; or one Skipped for all of them."""
    if compression >= len(_COMPRESSIONS):
        yield Skipped(count, f"the batch has an unknown compression ({compression})")
        return
    name, decompress = _COMPRESSIONS[compression]
    if size > _LARGEST_BATCH:
        yield Skipped(count, f"the batch says that it has {size:,} bytes, more than {_LARGEST_BATCH:,}")
        return
    try:
        data = decompress(data, size + 1)
    except ImportError:
        package, start = _PACKAGES[name]
        if start.match(data):
            yield Skipped(count, f"the batch is compressed with {name}, for which a Python package is missing", package)
        else:
            yield Skipped(count, f"the batch cannot be decompressed ({name}): it does not begin like {name} data")
        return
    except Exception as error:  # each compression library has its own errors
        yield Skipped(count, f"the batch cannot be decompressed ({name}): {error}")
        return
    if len(data) != size:
        yield Skipped(count, f"the batch has more or less than the {size:,} bytes that it says")
        return
    at = 0
    for _ in range(count):
        (length,) = _SIZE.unpack_from(data, at) if at + _SIZE.size <= size else (size,)
        at += _SIZE.size + length
    if at != size:
        yield Skipped(count, f"the batch does not consist of {count:,} messages, as it says")
        return
    at = 0
    for _ in range(count):
        (length,) = _SIZE.unpack_from(data, at)
        at += _SIZE.size + length
        yield data[at - length : at]


def _gunzip(data: bytes, most: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, most)


def _unsnap(data: bytes, most: int) -> bytes:
    import snappy

    decompressor, found = snappy.StreamDecompressor(), bytearray()
    for start in range(0, len(data), _PIECE):
        found += decompressor.decompress(data[start : start + _PIECE])
        if len(found) >= most:
            break
    return bytes(found[:most])


def _unlz4(data: bytes, most: int) -> bytes:
    import lz4.frame

    return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=most))


def _unzstd(data: bytes, most: int) -> bytes:
    import zstandard

    return bytes(zstandard.ZstdDecompressor(max_window_size=_LARGEST_BATCH).stream_reader(data).read(most))


#: Compression methods by protocol number: the name, and a function that returns up to `most` decompressed bytes.
_COMPRESSIONS: tuple[tuple[str, Callable[[bytes, int], bytes]], ...] = (
    ("none", lambda data, most: data[:most]),
    ("gzip", _gunzip),
    ("snappy", _unsnap),
    ("lz4", _unlz4),
    ("zstd", _unzstd),
)
#: The package for a compression method, and how all data begins that the package can decompress. (zstd data can begin
#: with a skippable frame.)
_PACKAGES = {
    "snappy": ("python-snappy", re.compile(rb"\xff\x06\x00\x00sNaPpY")),
    "lz4": ("lz4", re.compile(rb"\x04\x22\x4d\x18")),
    "zstd": ("zstandard", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),
}
