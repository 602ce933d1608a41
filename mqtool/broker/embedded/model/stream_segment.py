"""Segments of a stream's log: a run of chunks that is deleted as a whole, and how to find one in it."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from mqtool.broker.embedded.model.shelf import Octets
from mqtool.broker.embedded.model.stream_chunk import (
    HEADER_SIZE,
    USER,
    Header,
    Tracking,
    is_sound,
    parse_header,
    tracking_in,
)

# One chunk in each of these many bytes has its place noted, so an index is small however small the chunks are.
_INDEX_STEP = 64 * 1024

# How much is read at once, unless a chunk is larger.
_BLOCK = 256 * 1024


class Segment:
    """A run of chunks.

    Args:
        base: the offset of the first record in it.
        octets: where its chunks are.
        size: how many octets of chunks are there already.

    Attributes:
        size: where the next chunk is to be written; what is before that can be read.
        last_timestamp: that of the last chunk.
    """

    def __init__(self, base: int, octets: Octets, size: int = 0) -> None:
        self.base = base
        self.octets = octets
        self.size = size
        self.last_timestamp = 0
        # The offset, place and timestamp of some chunks, and of the first.
        self._offsets: list[int] = []
        self._positions: list[int] = []
        self._timestamps: list[int] = []
        # An old segment may be large, and nobody may ever ask for a place in it.
        self._is_known = not size

    def add(self, header: Header) -> None:
        """Count a chunk that has been written."""
        self._note(self.size, header)
        self.size += header.length

    def _note(self, position: int, header: Header) -> None:
        if not self._positions or position - self._positions[-1] >= _INDEX_STEP:
            self._offsets.append(header.offset)
            self._positions.append(position)
            self._timestamps.append(header.timestamp)
        self.last_timestamp = header.timestamp

    def look(self) -> None:
        """Find the chunks that were there before a restart."""
        if not self._is_known:
            self._is_known = True
            for position, header in _headers(self.octets, 0, self.size):
                self._note(position, header)

    @property
    def first_timestamp(self) -> int | None:
        """That of its first chunk; None if it is empty."""
        header = parse_header(self.octets.read(0, HEADER_SIZE)) if self.size else None
        return None if header is None else header.timestamp

    def position_of(self, offset: int) -> int:
        """Return the place of the chunk with a record, or of the first behind it; the size if it is not here."""
        if offset <= self.base:
            return 0
        self.look()
        return self._find(bisect_right(self._offsets, offset), lambda header: header.offset + header.records > offset)

    def offset_at(self, timestamp: int) -> int | None:
        """Return the offset of the first chunk of messages that is not older; None if there is none."""
        self.look()
        position = self._find(
            bisect_left(self._timestamps, timestamp),
            lambda header: header.kind == USER and header.timestamp >= timestamp,
        )
        return next((header.offset for _, header in _headers(self.octets, position, self.size)), None)

    def _find(self, noted: int, wanted: Callable[[Header], bool]) -> int:
        """Look from the last noted place of so few on."""
        start = self._positions[noted - 1] if noted else 0
        headers = _headers(self.octets, start, self.size)
        return next((position for position, header in headers if wanted(header)), self.size)

    def last_messages(self) -> int | None:
        """Return the offset of the last chunk of messages; None if there is none."""
        self.look()
        for start in reversed(self._positions):
            found = [header.offset for _, header in _headers(self.octets, start, self.size) if header.kind == USER]
            if found:
                return found[-1]
        return None


def _headers(octets: Octets, position: int, end: int) -> Iterator[tuple[int, Header]]:
    """Yield the chunks from a place on with their places, up to one that is damaged."""
    start, block = position, b""
    while position < end:
        if len(block) - (position - start) < HEADER_SIZE:
            start, block = position, octets.read(position, _INDEX_STEP)
        header = parse_header(block, position - start)
        if header is None:
            return
        yield position, header
        position += header.length


def read_block(octets: Octets, position: int, end: int | None = None) -> bytes:
    """Read the chunk at a position, and what is behind it if it is small; up to `end` at most."""
    block = octets.read(position, _BLOCK if end is None else min(_BLOCK, end - position))
    header = parse_header(block)
    return block if header is None or header.length <= len(block) else octets.read(position, header.length)


def sound_chunks(octets: Octets) -> Iterator[tuple[Header, Tracking]]:
    """Yield the chunks from the beginning on, up to one that is not there in full, or damaged."""
    position = start = 0
    block = b""
    while True:
        header = parse_header(block, position - start)
        if header is None or len(block) < position - start + header.length:
            start, block = position, read_block(octets, position)
            header = parse_header(block)
        if header is None or not is_sound(header, block, position - start):
            return
        yield header, tracking_in(header, block, position - start)
        position += header.length
