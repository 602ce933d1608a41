"""The log of a stream: appended to, read from any place, and shortened from its beginning.

What has been appended collects in a chunk until the ledger writes it (`prepare`, `write`, `commit`). Only then can it
be read, and is its publisher told.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mqtool.broker.embedded.model.clock import Clock
from mqtool.broker.embedded.model.ledger import Ledger, Segments
from mqtool.broker.embedded.model.stream_segment import (
    SNAPSHOT,
    TRACKING,
    UNFILTERED,
    USER,
    Header,
    Segment,
    encode_chunk,
    encode_tracking,
    parse_header,
    sound_chunks,
)

SEGMENT_BYTES = 32 * 1024 * 1024
"""The size of a segment, unless the stream says otherwise. RabbitMQ's is 500 MB, which would take seconds to check at a
start if its chunks are small; and a limit is kept to more closely with less."""

# A chunk ends at one of these; the first is far below what its header can count.
_CHUNK_ENTRIES = 4096
_CHUNK_BYTES = 256 * 1024

# As many producers are remembered as RabbitMQ remembers: those who published last.
_PRODUCERS = 255


@dataclass(frozen=True)
class Retention:
    """What a log keeps: bytes at most, milliseconds at most (None for all); whole segments go at a time."""

    max_bytes: int | None = None
    max_age: int | None = None
    segment_bytes: int = SEGMENT_BYTES


@dataclass
class _Draft:
    """The chunk that is being put together."""

    offset: int
    timestamp: int
    parts: list[bytes] = field(default_factory=list)
    entries: int = 0
    records: int = 0
    size: int = 0
    filter: int = 0
    publishing_ids: dict[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return it as it stands in the log."""
        return encode_chunk(
            USER,
            self.offset,
            self.timestamp,
            b"".join(self.parts),
            entries=self.entries,
            records=self.records,
            tracking=encode_tracking(self.publishing_ids, {}, self.filter),
        )


class _Write(NamedTuple):
    """A chunk on its way to a place in a segment."""

    segment: Segment
    position: int
    header: Header
    data: bytes


class StreamLog:
    """An append-only log.

    Args:
        segments: where its segments are kept; those from before a restart are recovered.
        retention: when old segments are deleted.

    Attributes:
        next_offset: that of the next record to be appended.
        end: that of the first record that cannot be read yet: it is not there, or not on disk.
        last_chunk: that of the last chunk of messages that can be read; `end` if there is none.
        deleted: it is gone; whoever watches it is called for that, too.
        publishing_ids: the last one of each producer.
        offsets: those that consumers have stored.
        subscriptions: how many there are by the stream protocol.
        lost: how many octets at its end could not be read after a restart.
    """

    def __init__(self, segments: Segments, clock: Clock, ledger: Ledger, retention: Retention) -> None:
        self._kept = segments
        self._clock = clock
        self._ledger = ledger
        self.retention = retention
        self.deleted = False
        self.lost = 0
        self.publishing_ids: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        self.subscriptions = 0
        self._changed_offsets: dict[str, int] = {}
        self._watchers: dict[Callable[[], object], None] = {}
        self._sealed: list[_Draft] = []
        self._draft: _Draft | None = None
        self._writes: list[_Write] = []
        self._is_due = False
        self._timestamp = 0
        # What is before this has been cleared.
        self._floor = 0
        self._segments = [Segment(base, data, data.size()) for base, data in segments.existing()]
        if not self._segments:
            self._segments = [Segment(0, segments.new(0))]
        self.end = self._recover(self._segments[-1])
        self.next_offset = self.end
        found = (segment.last_messages() for segment in reversed(self._segments))
        self.last_chunk = next((offset for offset in found if offset is not None), self.end)

    def _recover(self, segment: Segment) -> int:
        """Read the last segment, and cut off what was being written when the broker died; returns the end."""
        size = segment.size
        last = self._segments[-1] = Segment(segment.base, segment.data)
        end = last.base
        for header, tracking in sound_chunks(segment.data) if size else ():
            if header.offset != end:
                break
            last.add(header)
            end = header.offset + header.records
            self.publishing_ids |= tracking.publishing_ids
            self.offsets |= tracking.offsets
        if last.size < size:
            self.lost = size - last.size
            segment.data.cut(last.size)
        self._timestamp = last.last_timestamp
        return end

    # -- what is in it

    @property
    def first_offset(self) -> int:
        """That of the first record."""
        return self._segments[0].base

    @property
    def size(self) -> int:
        """How many octets it takes."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> int:
        """How many segments it has."""
        return len(self._segments)

    def offset_at(self, timestamp: int) -> int:
        """Return the offset of the first chunk that is not older, in milliseconds since 1970; `end` if all are."""
        first = 0
        for index, segment in enumerate(self._segments):
            begun = segment.first_timestamp
            if begun is not None and begun < timestamp:
                first = index
        found = (segment.offset_at(timestamp) for segment in self._segments[first:])
        return next((offset for offset in found if offset is not None), self.end)

    # -- in

    def append(
        self,
        data: bytes,
        *,
        entries: int = 1,
        records: int = 1,
        producer: str | None = None,
        publishing_id: int = 0,
        filter_bits: int = UNFILTERED,
    ) -> int:
        """Append entries, as they stand in a chunk; they are stored and confirmed with `Ledger.after_commit`.

        Args:
            data: the entries one behind another.
            entries, records: how many are in it.
            producer, publishing_id: whose they are, and the last one's id, so that it can be asked for.
            filter_bits: which filter values they have.

        Returns:
            The offset of the first record.
        """
        draft = self._draft
        if draft is None or draft.entries + entries > _CHUNK_ENTRIES or draft.size + len(data) > _CHUNK_BYTES:
            draft = self._new_draft()
        offset = self.next_offset
        draft.parts.append(data)
        draft.entries += entries
        draft.records += records
        draft.size += len(data)
        draft.filter |= filter_bits
        self.next_offset = offset + records
        if producer is not None:
            # The last to publish is the last in order.
            self.publishing_ids.pop(producer, None)
            self.publishing_ids[producer] = draft.publishing_ids[producer] = publishing_id
        return offset

    def _new_draft(self) -> _Draft:
        if self._draft is not None:
            self._sealed.append(self._draft)
        # Time in a log never goes back.
        self._timestamp = max(self._timestamp, self._clock.now())
        self._draft = _Draft(self.next_offset, self._timestamp)
        self._due()
        return self._draft

    def store_offset(self, consumer: str, offset: int) -> None:
        """Remember where a consumer is."""
        self.offsets[consumer] = self._changed_offsets[consumer] = offset
        self._due()

    # -- to where it is kept

    def _due(self) -> None:
        if self._is_due or self.deleted:
            return
        self._is_due = True
        if self._ledger.on_disk:
            self._ledger.write_log(self)
        else:
            self._clock.call_later(0, lambda: _write_at_once(self))

    @property
    def is_watched(self) -> bool:
        """Whether somebody waits for more."""
        return bool(self._watchers)

    def prepare(self) -> None:
        """Say what is to be written now, besides what the disk has not taken before."""
        self._is_due = False
        if self.deleted:
            self._writes.clear()
            return
        drafts, self._sealed = self._sealed, []
        if self._draft is not None:
            drafts.append(self._draft)
            self._draft = None
        for draft in drafts:
            self._plan(draft.encode(), draft.offset)
        if self._floor == self.next_offset:
            self._plan(b"", self.next_offset, anew=True)
        if self._changed_offsets:
            offsets, self._changed_offsets = self._changed_offsets, {}
            self._plan(_tracking_chunk(TRACKING, self.next_offset, self._timestamp, {}, offsets), self.next_offset)

    def _plan(self, data: bytes, offset: int, *, anew: bool = False) -> None:
        last = self._writes[-1] if self._writes else None
        segment = last.segment if last is not None else self._segments[-1]
        position = last.position + len(last.data) if last is not None else segment.size
        if position >= self.retention.segment_bytes or (anew and segment.base < offset):
            segment, position = Segment(offset, self._kept.new(offset)), 0
            self.publishing_ids = dict(list(self.publishing_ids.items())[-_PRODUCERS:])
            snapshot = _tracking_chunk(SNAPSHOT, offset, self._timestamp, self.publishing_ids, self.offsets)
            position = self._write_later(segment, position, snapshot)
        if data:
            self._write_later(segment, position, data)

    def _write_later(self, segment: Segment, position: int, data: bytes) -> int:
        header = parse_header(data)
        assert header is not None
        self._writes.append(_Write(segment, position, header, data))
        return position + len(data)

    def write(self) -> None:
        """Write what is prepared and wait for the disk; from any thread, again after an error.

        Raises:
            OSError: the disk does not take it.
        """
        if self.deleted:
            return
        for segment, writes in _by_segment(self._writes):
            segment.data.write(writes[0].position, b"".join(each.data for each in writes))
            segment.data.sync()

    def commit(self) -> None:
        """Let readers have what has been written, and delete what is no longer to be kept."""
        writes, self._writes = self._writes, []
        if self.deleted:
            return
        before = len(self._segments)
        for segment, _, header, _ in writes:
            if segment is not self._segments[-1]:
                self._segments[-1].data.close()
                self._segments.append(segment)
            segment.add(header)
            if header.kind == USER:
                self.last_chunk, self.end = header.offset, header.offset + header.records
        if len(self._segments) > before:
            self._forget_old()
        self._wake()

    def _forget_old(self) -> None:
        """Delete the oldest segments, as RabbitMQ does when a new one is begun."""
        limits = self.retention
        while len(self._segments) > 1:
            first = self._segments[0]
            too_large = limits.max_bytes is not None and self.size > limits.max_bytes
            too_large = too_large or self._segments[1].base <= self._floor
            # The next one begins after the last chunk of this one.
            if not too_large and limits.max_age is not None:
                first.look()
                too_large = first.last_timestamp < self._clock.now() - limits.max_age
            if not too_large:
                return
            del self._segments[0]
            first.data.delete()
            self.last_chunk = self.end if self.last_chunk < self.first_offset else self.last_chunk

    def clear(self) -> None:
        """Forget all that has been appended, who has published, and where consumers are; offsets go on."""
        self.publishing_ids, self.offsets, self._changed_offsets = {}, {}, {}
        if self._draft is not None:
            self._sealed.append(self._draft)
            self._draft = None
        self._floor = self.next_offset
        if self._ledger.on_disk:
            self._due()
        else:
            _write_at_once(self)

    def delete(self) -> None:
        """End the log, and have its segments deleted."""
        self.deleted = True
        self._ledger.discard_log(self)
        self._wake()

    def delete_files(self) -> None:
        """Delete the segments; on the thread that writes them, if there is one."""
        for segment in self._segments:
            segment.data.delete()
        self._kept.delete()

    # -- out

    def watch(self, what: Callable[[], object]) -> None:
        """Call this whenever there is more to read, and when the log is deleted."""
        self._watchers[what] = None

    def unwatch(self, what: Callable[[], object]) -> None:
        """Do not call this any more."""
        self._watchers.pop(what, None)

    def _wake(self) -> None:
        for what in list(self._watchers):
            what()

    def segment_of(self, offset: int) -> Segment:
        """Return the segment with a record, or the first or last one if the record is before or behind them all."""
        index = bisect_right(self._segments, offset, key=lambda segment: segment.base)
        return self._segments[max(index - 1, 0)]

    def segment_after(self, segment: Segment) -> Segment | None:
        """Return the segment behind one, None behind the last; what has been deleted is skipped."""
        index = bisect_right(self._segments, segment.base, key=lambda each: each.base)
        return self._segments[index] if index < len(self._segments) else None


def _write_at_once(log: StreamLog) -> None:
    log.prepare()
    log.write()
    log.commit()


def _tracking_chunk(
    kind: int, at: int, timestamp: int, publishing_ids: Mapping[str, int], offsets: Mapping[str, int]
) -> bytes:
    return encode_chunk(kind, at, timestamp, encode_tracking(publishing_ids, offsets), entries=0, records=0)


def _by_segment(writes: list[_Write]) -> Iterator[tuple[Segment, list[_Write]]]:
    found: dict[Segment, list[_Write]] = {}
    for each in writes:
        found.setdefault(each.segment, []).append(each)
    yield from found.items()
