"""Chunks of a stream's log: entries that were written together, in the layout of RabbitMQ's osiris.

The stream protocol delivers header and data of a chunk as they are in the log. An entry in the data is a message with
its size before it (`simple_entry`), or a batch of messages that a publisher has packed, and perhaps compressed.
"""

import logging
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mqtool.broker.embedded.model.stream_filter import UNFILTERED

log = logging.getLogger("mqtool.broker.embedded")

USER, TRACKING, SNAPSHOT = 0, 1, 2
"""What is in a chunk: messages; offsets that consumers have stored; all offsets and publishing ids so far."""

_MAGIC = 0x50
_EPOCH = 1
_HEADER = struct.Struct(">BBHIqQQIIII")
HEADER_SIZE = _HEADER.size
_BATCH = struct.Struct(">BHII")
_IS_BATCH = 0x80
_LARGEST_BATCH = 64 * 1024 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_PUBLISHING_ID, _OFFSET, _FILTER = 0, 1, 2
_FILTER_SIZE = 16

# Ends each chunk in the log: a checksum of its header and of what the protocol does not deliver.
_CHECK_SIZE = 4


class Header(NamedTuple):
    """The header of a chunk.

    Attributes:
        kind: USER, TRACKING or SNAPSHOT.
        entries, records: how many are in it; a batch is one entry with several records.
        timestamp: when it was begun, in milliseconds since 1970.
        offset: that of its first record.
        checksum, size: of its data.
        trailer: the size of what follows the data.
    """

    kind: int
    entries: int
    records: int
    timestamp: int
    offset: int
    checksum: int
    size: int
    trailer: int

    @property
    def length(self) -> int:
        """How much room the chunk takes."""
        return HEADER_SIZE + self.size + self.trailer


class Tracking(NamedTuple):
    """What a log knows besides messages.

    Attributes:
        publishing_ids, offsets: the last one by producer, and by consumer.
        filter: which filter values the messages of this chunk have.
    """

    publishing_ids: dict[str, int]
    offsets: dict[str, int]
    filter: int = UNFILTERED


_NOTHING = Tracking({}, {})


class Chunk(NamedTuple):
    """A chunk with messages.

    Attributes:
        raw: header and data, as the stream protocol delivers them.
        offset: that of its first record; the last one is followed by `end`.
        entries: how many entries it has.
        timestamp: when it was begun, in milliseconds since 1970.
    """

    raw: bytes
    offset: int
    end: int
    entries: int
    timestamp: int

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the messages with their offsets; of batches, those that are not compressed or by gzip."""
        data, position, offset = self.raw, HEADER_SIZE, self.offset
        for _ in range(self.entries):
            if not data[position] & _IS_BATCH:
                start = position + 4
                position = start + int.from_bytes(data[position:start])
                yield offset, data[start:position]
                offset += 1
                continue
            kind, records, plain_size, size = _BATCH.unpack_from(data, position)
            start = position + _BATCH.size
            position = start + size
            for number, message in enumerate(_unpacked(kind, records, plain_size, data[start:position])):
                yield offset + number, message
            offset += records


def _unpacked(kind: int, records: int, plain_size: int, data: bytes) -> Iterator[bytes]:
    """Yield the messages of a batch."""
    compression = kind >> 4 & 7
    if compression > 1 or plain_size > _LARGEST_BATCH:
        log.warning("a batch of %d messages is skipped: an AMQP client cannot read its compression", records)
        return
    try:
        # No more than it says that it is: a small batch can be made that fills all memory.
        plain = zlib.decompressobj(_GZIP).decompress(data, plain_size) if compression and plain_size else data
    except zlib.error as error:
        log.warning("a batch of %d messages is skipped: %s", records, error)
        return
    position = 0
    for _ in range(records):
        start = position + 4
        position = start + int.from_bytes(plain[position:start])
        if position > len(plain):
            return
        yield plain[start:position]


def simple_entry(message: bytes) -> bytes:
    """Return an entry that is one message."""
    return len(message).to_bytes(4) + message


def encode_chunk(
    kind: int, offset: int, timestamp: int, data: bytes, *, entries: int, records: int, tracking: bytes = b""
) -> bytes:
    """Return a chunk as it stands in the log."""
    trailer = len(tracking) + _CHECK_SIZE
    header = _HEADER.pack(
        _MAGIC, kind, entries, records, timestamp, _EPOCH, offset, zlib.crc32(data), len(data), trailer, 0
    )
    return b"".join((header, data, tracking, zlib.crc32(tracking, zlib.crc32(header)).to_bytes(_CHECK_SIZE)))


def parse_header(data: bytes | memoryview, position: int = 0) -> Header | None:
    """Return the header at a position; None if there is none, or not all of it."""
    if len(data) - position < HEADER_SIZE:
        return None
    magic, kind, entries, records, timestamp, _, offset, checksum, size, trailer, _ = _HEADER.unpack_from(
        data, position
    )
    if magic != _MAGIC or kind > SNAPSHOT or trailer < _CHECK_SIZE:
        return None
    return Header(kind, entries, records, timestamp, offset, checksum, size, trailer)


def is_sound(header: Header, data: bytes | memoryview, position: int = 0) -> bool:
    """Whether a chunk at a position is there in full and agrees with its checksums."""
    end = position + header.length
    if len(data) < end:
        return False
    with memoryview(data) as view:
        start = position + HEADER_SIZE
        middle, check = start + header.size, end - _CHECK_SIZE
        whole = zlib.crc32(view[middle:check], zlib.crc32(view[position:start]))
        return zlib.crc32(view[start:middle]) == header.checksum and whole == int.from_bytes(view[check:end])


def encode_tracking(
    publishing_ids: Mapping[str, int], offsets: Mapping[str, int], filter_bits: int = UNFILTERED
) -> bytes:
    """Encode names with numbers, for a trailer or a chunk of its own."""
    parts = []
    if filter_bits != UNFILTERED:
        parts.append(bytes([_FILTER, _FILTER_SIZE]) + filter_bits.to_bytes(_FILTER_SIZE) + bytes(8))
    for kind, numbers in ((_PUBLISHING_ID, publishing_ids), (_OFFSET, offsets)):
        for name, number in numbers.items():
            raw = name.encode(errors="surrogateescape")
            parts.append(bytes([kind, len(raw)]) + raw + number.to_bytes(8))
    return b"".join(parts)


def tracking_in(header: Header, data: bytes | memoryview, position: int = 0) -> Tracking:
    """Return the names and numbers in the trailer of a sound chunk, or in its data if it has no messages."""
    start = position + HEADER_SIZE
    end = start + header.size
    if header.kind == USER:
        start, end = end, end + header.trailer - _CHECK_SIZE
    if start == end:
        return _NOTHING
    found = Tracking({}, {})
    while start < end:
        kind, size = data[start], data[start + 1]
        start += 2
        raw = bytes(data[start : start + size])
        number = int.from_bytes(data[start + size : start + size + 8])
        start += size + 8
        if kind == _FILTER:
            found = found._replace(filter=int.from_bytes(raw))
        else:
            names = found.publishing_ids if kind == _PUBLISHING_ID else found.offsets
            names[raw.decode(errors="surrogateescape")] = number
    return found
