"""Decode the chunks of a stream. Their messages are in AMQP 1.0 format (see codecs/sections.py).

Data that does not consist of the sections of such a message is treated as a body.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mqtool.codecs.amqp10_message import DATA
from mqtool.errors import BadData

_DATA_START = bytes((0, 0x53, DATA, 0xA0))
_SIZE = struct.Struct(">I")


def body_alone(data: bytes) -> bytes | None:
    """Return the body of an encoded message that consists only of a body; None for other messages."""
    if data[:1] != b"\0":
        return data
    return data[5:] if data[:4] == _DATA_START and len(data) > 4 and len(data) == 5 + data[4] else None


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
