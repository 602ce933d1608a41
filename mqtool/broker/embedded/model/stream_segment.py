"""The chunks of a stream, in the format of RabbitMQ's osiris library, and the segments that contain the chunks.

A chunk contains entries that were written together. The stream protocol delivers its header and data unchanged. An
entry is either one message, preceded by its size, or a batch of messages packed by a publisher, possibly compressed.
"""

import logging
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from mqtool.broker.embedded.model.ledger import SegmentData

#: The filter bits of messages without a filter value.
UNFILTERED = 1
_BITS = 127


def bits_of(value: bytes) -> int:
    """Return the bits that a filter value sets in a 128-bit Bloom filter."""
    if not value:
        return UNFILTERED
    number = zlib.crc32(value)
    return 2 << number % _BITS | 2 << (number >> 16) % _BITS


class ChunkFilters:
    """The filter values that a reader wants.

    Matching a chunk takes the same short time however many values there are.

    Args:
        wanted: the bits of each filter value, see bits_of().
    """

    def __init__(self, wanted: Iterable[int]) -> None:
        # A filter value sets one or two bits. By the lower bit of all values that set two: their higher bits.
        self._pairs: dict[int, int] = {}
        self._single = 0
        for bits in wanted:
            lower = bits & -bits
            if bits == lower:
                self._single |= bits
            else:
                self._pairs[lower] = self._pairs.get(lower, 0) | bits ^ lower

    def match(self, chunk: int) -> bool:
        """Return True if a chunk with these filter bits may contain one of the wanted values."""
        return bool(chunk & self._single) or any(
            chunk & lower and chunk & higher for lower, higher in self._pairs.items()
        )


log = logging.getLogger("mqtool.broker.embedded")

#: The kinds of chunks. They contain messages; newly stored offsets of consumers; all offsets and publishing ids so far.
USER, TRACKING, SNAPSHOT = 0, 1, 2

_MAGIC = 0x50
_EPOCH = 1
_HEADER = struct.Struct(">BBHIqQQIIII")
HEADER_SIZE = _HEADER.size
_BATCH = struct.Struct(">BHII")
_IS_BATCH = 0x80
_COMPRESSION = 0x70
_PUBLISHING_ID, _OFFSET, _FILTER = 0, 1, 2
_FILTER_SIZE = 16

# Each chunk in the log ends with a checksum of its header and its trailer.
_CHECK_SIZE = 4


class ChunkHeader(NamedTuple):
    """The header of a chunk.

    Attributes:
        kind: USER, TRACKING or SNAPSHOT.
        entries, records: the numbers of entries and messages; a batch is one entry with several messages.
        timestamp: the time of the first message, in milliseconds since 1970.
        offset: the offset of the first message.
        checksum, size: the checksum and the size of the data.
        trailer: the size of the trailer.
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
        """The size of the whole chunk in bytes."""
        return HEADER_SIZE + self.size + self.trailer


class StoredTracking(NamedTuple):
    """The data that a chunk contains besides messages.

    Attributes:
        publishing_ids: the last publishing id of each producer.
        offsets: the stored offset of each consumer, by name.
        filter: the combined bits of the filter values of the messages.
    """

    publishing_ids: dict[str, int]
    offsets: dict[str, int]
    filter: int = UNFILTERED


_NOTHING = StoredTracking({}, {})


class StoredChunk(NamedTuple):
    """A chunk with messages.

    Attributes:
        raw: the header and data, as the stream protocol delivers them.
        offset: the offset of its first message.
        end: the offset after its last message.
        entries: the number of entries.
        timestamp: the time of the first message, in milliseconds since 1970.
    """

    raw: bytes
    offset: int
    end: int
    entries: int
    timestamp: int

    def messages(self, wanted: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield each message with its offset. Like RabbitMQ, skip compressed batches.

        Args:
            wanted: the first offset that is wanted. Batches before it are skipped as a whole.
        """
        return messages_in(self.raw, HEADER_SIZE, self.offset, self.entries, wanted)


def messages_in(data: bytes, position: int, offset: int, entries: int, wanted: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield each message of the entries that start at `position` in `data`, with its offset (see StoredChunk)."""
    for _ in range(entries):
        if not data[position] & _IS_BATCH:
            start = position + 4
            position = start + int.from_bytes(data[position:start])
            yield offset, data[start:position]
            offset += 1
            continue
        kind, records, _, size = _BATCH.unpack_from(data, position)
        start = position + _BATCH.size
        position = start + size
        if kind & _COMPRESSION:
            skipped = "a batch of %d messages is skipped: only stream clients can read compressed batches"
            log.warning(skipped, records, extra={"cause": "compressed batches", "seconds": 1.0})
        elif offset + records > wanted:
            for number, message in enumerate(_unpacked(records, data[start:position])):
                yield offset + number, message
        offset += records


def _unpacked(records: int, data: bytes) -> Iterator[bytes]:
    """Yield the messages of an uncompressed batch, as far as it is complete."""
    position = 0
    for _ in range(records):
        start = position + 4
        position = start + int.from_bytes(data[start - 4 : start])
        if start > len(data) or position > len(data):
            return
        yield data[start:position]


def simple_entry(message: bytes) -> bytes:
    """Encode one message as an entry."""
    return len(message).to_bytes(4) + message


def encode_chunk(
    kind: int, offset: int, timestamp: int, data: bytes, *, entries: int, records: int, tracking: bytes = b""
) -> bytes:
    """Encode a chunk as it is written to the log."""
    trailer = len(tracking) + _CHECK_SIZE
    header = _HEADER.pack(
        _MAGIC, kind, entries, records, timestamp, _EPOCH, offset, zlib.crc32(data), len(data), trailer, 0
    )
    return b"".join((header, data, tracking, zlib.crc32(tracking, zlib.crc32(header)).to_bytes(_CHECK_SIZE)))


def parse_header(data: bytes | memoryview, position: int = 0) -> ChunkHeader | None:
    """Decode the header of the chunk at this position; return None if it is incomplete or not a header."""
    if len(data) - position < HEADER_SIZE:
        return None
    magic, kind, entries, records, timestamp, _, offset, checksum, size, trailer, _ = _HEADER.unpack_from(
        data, position
    )
    if magic != _MAGIC or kind > SNAPSHOT or trailer < _CHECK_SIZE:
        return None
    return ChunkHeader(kind, entries, records, timestamp, offset, checksum, size, trailer)


def is_sound(header: ChunkHeader, data: bytes | memoryview, position: int = 0) -> bool:
    """Return True if the chunk at this position is complete and its checksums are correct."""
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
    """Encode publishing ids, offsets and filter bits, for a trailer or for the data of a tracking chunk."""
    parts = []
    if filter_bits != UNFILTERED:
        parts.append(bytes([_FILTER, _FILTER_SIZE]) + filter_bits.to_bytes(_FILTER_SIZE) + bytes(8))
    for kind, numbers in ((_PUBLISHING_ID, publishing_ids), (_OFFSET, offsets)):
        for name, number in numbers.items():
            raw = name.encode(errors="surrogateescape")
            parts.append(bytes([kind, len(raw)]) + raw + number.to_bytes(8))
    return b"".join(parts)


def tracking_in(header: ChunkHeader, data: bytes | memoryview, position: int = 0) -> StoredTracking:
    """Decode the tracking data of an undamaged chunk: from its trailer, or from its data if it has no messages."""
    start = position + HEADER_SIZE
    end = start + header.size
    if header.kind == USER:
        start, end = end, end + header.trailer - _CHECK_SIZE
    if start == end:
        return _NOTHING
    found = StoredTracking({}, {})
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


# The index has an entry for at most one chunk in this many bytes, so that small chunks do not make it large.
_INDEX_STEP = 64 * 1024

#: The number of bytes that are added to the index of an existing segment in one turn.
INDEX_AT_ONCE = 256 * 1024

# The number of bytes read at once, unless a chunk is larger.
_BLOCK = 256 * 1024


class Segment:
    """A sequence of chunks with an index. A segment is only deleted as a whole.

    Args:
        base: the offset of its first message.
        data: the bytes of its chunks.
        size: the size of the chunks that already exist, in bytes.

    Attributes:
        size: the position of the next chunk to be written. The chunks before this position can be read.
        last_timestamp: the timestamp of the last chunk.
        is_indexed: True if the index has all chunks.
    """

    def __init__(self, base: int, data: SegmentData, size: int = 0) -> None:
        self.base = base
        self.data = data
        self.size = size
        self.last_timestamp = 0
        self._first_timestamp: int | None = None
        # The index: offset and position of the first chunk and of some others, and the latest timestamp up to there: if
        # the clock was ahead for a while, timestamps are out of order.
        self._offsets: list[int] = []
        self._positions: list[int] = []
        self._timestamps: list[int] = []
        self._latest_timestamp = 0
        # The index of an existing segment is built when it is first needed. It has the chunks before this position.
        self._indexed = 0
        self.is_indexed = not size

    def add(self, header: ChunkHeader) -> None:
        """Count and index a chunk that has been written at the end."""
        if not self.size:
            self._first_timestamp = header.timestamp
        self._note(self.size, header)
        self.size += header.length

    def _note(self, position: int, header: ChunkHeader) -> None:
        self._latest_timestamp = max(self._latest_timestamp, header.timestamp)
        if not self._positions or position - self._positions[-1] >= _INDEX_STEP:
            self._offsets.append(header.offset)
            self._positions.append(position)
            self._timestamps.append(self._latest_timestamp)
        self.last_timestamp = header.timestamp

    def build_index(self) -> None:
        """Build the index of a segment that existed when the broker started, unless it is already built."""
        while not self.is_indexed:
            self.index_some(self.size)

    def index_some(self, size: int) -> None:
        """Add the chunks in the next `size` bytes to the index."""
        start = self._indexed
        for position, header in _headers(self.data, start, min(start + size, self.size)):
            self._note(position, header)
            self._indexed = position + header.length
        self.is_indexed = self._indexed in (start, self.size)  # it ends at a damaged header

    @property
    def first_timestamp(self) -> int | None:
        """The timestamp of the first chunk; None if the segment is empty."""
        if self._first_timestamp is None and self.size:
            header = parse_header(self.data.read(0, HEADER_SIZE))
            self._first_timestamp = None if header is None else header.timestamp
        return self._first_timestamp

    def position_of(self, offset: int) -> int:
        """Return the position of the chunk that contains an offset, or of the next chunk; `size` if there is none."""
        if offset <= self.base:
            return 0
        self.build_index()
        return self._find(bisect_right(self._offsets, offset), lambda header: header.offset + header.records > offset)

    def position_at(self, timestamp: int) -> int:
        """Return the position of the first chunk at or after a timestamp; `size` if every chunk is older.

        The chunk may be one without messages, because a segment may have very many of them in succession.
        """
        self.build_index()
        return self._find(bisect_left(self._timestamps, timestamp), lambda header: header.timestamp >= timestamp)

    def _find(self, noted: int, wanted: Callable[[ChunkHeader], bool]) -> int:
        """Return the position of the first wanted chunk after `noted` index entries; `size` if there is none."""
        start = self._positions[noted - 1] if noted else 0
        headers = _headers(self.data, start, self.size)
        return next((position for position, header in headers if wanted(header)), self.size)

    def last_messages(self) -> int | None:
        """Return the offset of the last chunk of messages; None if the segment has no messages."""
        self.build_index()
        ends = [*self._positions, self.size][1:]
        for start, end in zip(reversed(self._positions), reversed(ends), strict=True):
            found = [header.offset for _, header in _headers(self.data, start, end) if header.kind == USER]
            if found:
                return found[-1]
        return None


def _headers(data: SegmentData, position: int, end: int) -> Iterator[tuple[int, ChunkHeader]]:
    """Yield the position and header of each chunk between `position` and `end`. Stop at a damaged header."""
    start, block = position, b""
    while position < end:
        if len(block) - (position - start) < HEADER_SIZE:
            start, block = position, data.read(position, _INDEX_STEP)
        header = parse_header(block, position - start)
        if header is None:
            return
        yield position, header
        position += header.length


def read_block(data: SegmentData, position: int, end: int | None = None) -> bytes:
    """Read the whole chunk at this position, along with the bytes after it if the chunk is small."""
    block = data.read(position, _BLOCK if end is None else min(_BLOCK, end - position))
    header = parse_header(block)
    return block if header is None or header.length <= len(block) else data.read(position, header.length)


def sound_chunks(data: SegmentData) -> Iterator[tuple[ChunkHeader, StoredTracking]]:
    """Yield the header and tracking data of each chunk in order. Stops at an incomplete or damaged chunk."""
    position = start = 0
    block = b""
    while True:
        header = parse_header(block, position - start)
        if header is None or len(block) < position - start + header.length:
            start, block = position, read_block(data, position)
            header = parse_header(block)
        if header is None or not is_sound(header, block, position - start):
            return
        yield header, tracking_in(header, block, position - start)
        position += header.length
