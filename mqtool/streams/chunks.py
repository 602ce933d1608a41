"""Chunks: messages as a stream stores them, many at a time, and as the broker delivers them.

https://github.com/rabbitmq/rabbitmq-server/blob/main/deps/rabbitmq_stream/docs/PROTOCOL.adoc
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from rstream.compression import CompressionHelper, CompressionType

from mqtool.errors import BadData

#: Key, version, subscription, magic, type, entries, records, timestamp, epoch, first offset, CRC, lengths, reserved.
_HEAD = struct.Struct(">HHBbbHIqQQIIII")
_SIZE = struct.Struct(">I")
_BATCH = struct.Struct(">BHII")
_IS_BATCH = 0x80


class Chunk(NamedTuple):
    """A chunk.

    Attributes:
        first_offset: that of its first record.
        records: how many messages it has.
    """

    first_offset: int
    records: int
    entries: int
    data: bytes


def parse(frame: bytes) -> Chunk:
    """Parse the command Deliver.

    Raises:
        BadData: it was damaged on the way, or is of a kind that we do not know.
    """
    *_, kind, entries, records, _time, _epoch, first, crc, length, _trailer, _reserved = _HEAD.unpack_from(frame)
    data = frame[_HEAD.size :]
    if kind or length != len(data) or zlib.crc32(data) != crc:
        raise BadData(f"the chunk at offset {first:,} is damaged: its checksum does not match")
    return Chunk(first, records, entries, data)


def records(chunk: Chunk) -> Iterator[bytes]:
    """The messages of a chunk, as they are encoded."""
    data, at = chunk.data, 0
    size_at = _SIZE.unpack_from
    for _ in range(chunk.entries):
        if data[at] & _IS_BATCH:
            kind, count, whole, length = _BATCH.unpack_from(data, at)
            at += _BATCH.size + length
            yield from _of_batch(data[at - length : at], (kind >> 4) & 7, count, whole)
            continue
        (size,) = size_at(data, at)
        start = at + 4
        at = start + size
        yield data[start:at]


def _of_batch(data: bytes, compression: int, count: int, size: int) -> Iterator[bytes]:
    """The messages that were published as one entry, perhaps compressed."""
    try:
        data = CompressionHelper.uncompress(data, CompressionType(compression), size)
    except Exception as error:  # whatever the library for it raises
        name = CompressionType(compression).name.lower() if compression < len(CompressionType) else str(compression)
        raise BadData(f"cannot decompress messages of the stream ({name}): {error}") from error
    at = 0
    for _ in range(count):
        (length,) = _SIZE.unpack_from(data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length
