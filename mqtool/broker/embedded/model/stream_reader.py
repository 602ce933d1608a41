"""Reading a stream's log, chunk by chunk, at a place of one's own."""

import logging
from collections.abc import Sequence

from mqtool.broker.embedded.model.stream_chunk import (
    HEADER_SIZE,
    USER,
    Chunk,
    Header,
    is_sound,
    parse_header,
    tracking_in,
)
from mqtool.broker.embedded.model.stream_filter import has_one_of
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_segment import read_block

log = logging.getLogger("mqtool.broker.embedded")


class Reader:
    """A place in a log.

    Args:
        offset: where to begin; in the middle of a chunk, the whole chunk is read; the end at most.
        filters: bits of filter values; chunks that have none of them are passed over. None to read all.

    Attributes:
        offset: that of the next record to be read.
    """

    def __init__(self, stream: StreamLog, offset: int, filters: Sequence[int] | None = None) -> None:
        self._stream = stream
        self._filters = filters
        self.offset = max(min(offset, stream.end), stream.first_offset)
        self._segment = stream.segment_of(self.offset)
        self._position = self._segment.position_of(self.offset)

    def read(self) -> list[Chunk]:
        """Return the next chunks with messages, several if they are small; none at the end."""
        while not self._stream.deleted:
            chunks = self._read_segment()
            if chunks:
                self.offset = chunks[-1].end
                return chunks
            following = self._stream.segment_after(self._segment)
            if following is None:
                return []
            self._segment, self._position = following, 0
        return []

    def _read_segment(self) -> list[Chunk]:
        segment = self._segment
        chunks: list[Chunk] = []
        while not chunks and self._position < segment.size:
            if segment is not self._stream.segment_of(segment.base):
                return []
            start, block = self._position, read_block(segment.octets, self._position, segment.size)
            while (header := parse_header(block, self._position - start)) is not None:
                at = self._position - start
                if at + header.length > len(block):
                    break
                self._position += header.length
                if not is_sound(header, block, at):
                    log.error("a damaged chunk with %d messages is skipped", header.records)
                elif header.kind == USER and self._is_wanted(header, block, at):
                    raw = block[at : at + HEADER_SIZE + header.size]
                    end = header.offset + header.records
                    chunks.append(Chunk(raw, header.offset, end, header.entries, header.timestamp))
            if self._position == start:
                log.error("the rest of a damaged segment is skipped: %d octets", segment.size - start)
                self._position = segment.size
        return chunks

    def _is_wanted(self, header: Header, block: bytes, at: int) -> bool:
        return self._filters is None or has_one_of(tracking_in(header, block, at).filter, self._filters)
