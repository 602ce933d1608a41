"""Reading a stream's log, chunk by chunk, at a place of one's own."""

import logging

from mqtool.broker.embedded.model.stream_chunk import HEADER_SIZE, USER, Chunk, is_sound, parse_header
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_segment import read_block

log = logging.getLogger("mqtool.broker.embedded")


class Reader:
    """A place in a log.

    Args:
        offset: where to begin; in the middle of a chunk, the whole chunk is read; the end at most.

    Attributes:
        offset: that of the next record to be read.
    """

    def __init__(self, stream: StreamLog, offset: int) -> None:
        self._stream = stream
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
                elif header.kind == USER:
                    raw = block[at : at + HEADER_SIZE + header.size]
                    end = header.offset + header.records
                    chunks.append(Chunk(raw, header.offset, end, header.entries, header.timestamp))
            if self._position == start:
                log.error("the rest of a damaged segment is skipped: %d octets", segment.size - start)
                self._position = segment.size
        return chunks
