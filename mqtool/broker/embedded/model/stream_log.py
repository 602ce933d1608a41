"""The log of a stream. Messages are appended to it, can be read from any offset, and are deleted oldest first.

New messages are collected in a chunk until the ledger writes it (`prepare`, `write`, `commit`). Only then are they
confirmed and available to readers.
"""

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from mqtool.broker.embedded.model.clock import TURN_SECONDS, Clock
from mqtool.broker.embedded.model.ledger import Ledger, Segments
from mqtool.broker.embedded.model.stored_offsets import PublishingIds, StoredOffsets
from mqtool.broker.embedded.model.stream_segment import (
    INDEX_AT_ONCE,
    SNAPSHOT,
    TRACKING,
    UNFILTERED,
    USER,
    ChunkHeader,
    Segment,
    encode_chunk,
    encode_tracking,
    parse_header,
    sound_chunks,
)

log = logging.getLogger(__name__)

#: The default size of a segment, in bytes. RabbitMQ's 500 MB would take seconds to check at startup, and with smaller
#: segments the size of a stream stays closer to its limits.
SEGMENT_BYTES = 32 * 1024 * 1024

# The maximum number of entries and bytes in a chunk.
_CHUNK_ENTRIES = 4096
_CHUNK_BYTES = 256 * 1024

# A snapshot of up to this size does not make a segment larger.
_SMALL_SNAPSHOT = 4096

# The least room for offsets that are stored after the last message, in a stream with small segments.
_LEAST_ROOM = 1024 * 1024

# The number of producers whose publishing ids are kept, as in RabbitMQ. Those that published last are kept.
_PRODUCERS = 255


@dataclass(frozen=True)
class Retention:
    """The limits of a log: its size in bytes and age in milliseconds, or None for no limit.

    Only whole segments are deleted. `segment_bytes` is the size at which a new one is started.
    """

    max_bytes: int | None = None
    max_age: int | None = None
    segment_bytes: int = SEGMENT_BYTES


@dataclass
class _Draft:
    """A chunk that has not been written yet; new messages are added to it."""

    offset: int
    timestamp: int
    parts: list[bytes] = field(default_factory=list)
    entries: int = 0
    records: int = 0
    size: int = 0
    filter: int = 0
    publishing_ids: dict[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
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
    """A chunk to be written, and its position in a segment."""

    segment: Segment
    position: int
    header: ChunkHeader
    data: bytes


class _Watchers:
    """The functions that are called whenever a log has changed: at once while that is quick, the others in turns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: dict[Callable[[], object], None] = {}
        # Those that have not been called since the last change.
        self._unaware: OrderedDict[Callable[[], object], None] = OrderedDict()
        self._has_turn = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, what: Callable[[], object]) -> None:
        self._all[what] = None

    def discard(self, what: Callable[[], object]) -> None:
        self._all.pop(what, None)
        self._unaware.pop(what, None)

    def wake(self) -> None:
        self._unaware.update(self._all)
        if not self._has_turn:
            self._wake_some()

    def _wake_some(self) -> None:
        self._has_turn = False
        until = self._clock.elapsed() + TURN_SECONDS
        while self._unaware:
            what, _ = self._unaware.popitem(last=False)
            what()
            if self._unaware and self._clock.elapsed() > until:
                self._has_turn = True
                self._clock.take_turn(self._wake_some)
                return


class StreamLog:
    """The append-only log of a stream.

    Args:
        segments: the stored segments, from which the log is recovered.
        retention: the limits on size and age.
        initial: the offset of the first message, if there are no stored segments.

    Attributes:
        next_offset: the offset of the next message to be appended.
        end: the offset after the last message that can be read.
        last_chunk: the offset of the last readable chunk of messages; `end` if there is none.
        deleted: True if the stream has been deleted.
        publishing_ids: the last publishing id of each producer.
        offsets: the stored offset of each consumer, by name.
        subscriptions: the number of subscriptions over the stream protocol.
        lost: the number of bytes at the end of the log that could not be read after a restart.
    """

    def __init__(
        self, segments: Segments, clock: Clock, ledger: Ledger, retention: Retention, initial: int = 0
    ) -> None:
        self._kept = segments
        self._clock = clock
        self._ledger = ledger
        self.retention = retention
        self.deleted = False
        self.lost = 0
        self.publishing_ids = PublishingIds(ledger)
        self.offsets = StoredOffsets(ledger)
        self.subscriptions = 0
        self._changed_offsets: dict[str, int] = {}
        self._watchers = _Watchers(clock)
        self._sealed: list[_Draft] = []
        self._draft: _Draft | None = None
        self._writes: list[_Write] = []
        self._is_due = False
        self._timestamp = 0
        # clear() has deleted the messages before this offset.
        self._floor = 0
        self._smallest_segment = 0
        self._segments = [Segment(base, data, data.size()) for base, data in segments.existing()]
        if not self._segments:
            self._segments = [Segment(initial, segments.new(initial))]
        self.end = self._recover(self._segments[-1])
        if len(self._segments) > 1 and not self._segments[-1].size:
            # The broker was killed before it wrote the tracking data with which this segment begins.
            empty = self._segments.pop()
            if self._recover(self._segments[-1]) == empty.base:
                empty.data.delete()
            else:  # the end of the segment before is damaged, and its offsets must not be used again
                self._segments.append(empty)
        self.next_offset = self.end
        found = (segment.last_messages() for segment in reversed(self._segments))
        self.last_chunk = next((offset for offset in found if offset is not None), self.end)

    def _recover(self, segment: Segment) -> int:
        """Read the last segment, and truncate it after the last undamaged chunk. Return the offset after this chunk."""
        size = segment.size
        last = self._segments[-1] = Segment(segment.base, segment.data)
        end = last.base
        for header, tracking in sound_chunks(segment.data) if size else ():
            if header.offset != end:
                break
            last.add(header)
            end = header.offset + header.records
            for producer, publishing_id in tracking.publishing_ids.items():
                self.publishing_ids.publish(producer, publishing_id)
            for consumer, offset in tracking.offsets.items():
                self.offsets.store(consumer, offset)
        if last.size < size:
            self.lost += size - last.size
            segment.data.cut(last.size)
        self._timestamp = last.last_timestamp
        return end

    @property
    def first_offset(self) -> int:
        """The offset of the first message."""
        return self._segments[0].base

    @property
    def size(self) -> int:
        """The size of all chunks in bytes."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> int:
        """The number of segments."""
        return len(self._segments)

    def newest_first(self) -> Iterator[Segment]:
        """Yield the segments that are not empty, the last one first. Those added meanwhile are left out."""
        return (segment for segment in self._segments[::-1] if segment.size)

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
        """Append encoded entries. They must not be confirmed until Ledger.after_commit() calls back.

        Args:
            data: the concatenated entries, encoded as in a chunk.
            entries, records: the numbers of entries and messages in `data`.
            producer, publishing_id: the name of the producer, if any, and the publishing id of the last message.
            filter_bits: the combined bits of the filter values of the messages.

        Returns:
            The offset of the first message.
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
            self.publishing_ids.publish(producer, publishing_id)
            draft.publishing_ids[producer] = publishing_id
        return offset

    def _new_draft(self) -> _Draft:
        if self._draft is not None:
            self._sealed.append(self._draft)
        # As in RabbitMQ, even if the clock was ahead when the last chunk was written.
        self._timestamp = self._clock.now()
        self._draft = _Draft(self.next_offset, self._timestamp)
        self._due()
        return self._draft

    def store_offset(self, consumer: str, offset: int) -> None:
        """Store the offset of a consumer."""
        self.offsets.store(consumer, offset)
        if self._kept.are_lasting:
            self._changed_offsets[consumer] = offset
            self._due()

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
        return len(self._watchers) > 0

    def prepare(self) -> None:
        """Collect the chunks for the next write(): all new ones, and any left over from a failed write()."""
        self._is_due = False
        if self.deleted:
            self._writes.clear()
            return
        if self._draft is not None:
            self._sealed.append(self._draft)
            self._draft = None
        while self._sealed:
            self._plan(self._sealed[0].encode(), self._sealed[0].offset)
            del self._sealed[0]  # only now: if a new segment cannot be created, the next attempt needs the draft
        if self._floor == self.next_offset:
            self._plan(b"", self.next_offset, anew=True)
        # Offsets stored since the last message fill at most one segment, or a reader could fill the disk. The next
        # message makes room: a new segment begins with all offsets.
        segment, position = self._tail()
        has_room = segment.base < self.next_offset or position < max(self.retention.segment_bytes, _LEAST_ROOM)
        if self._changed_offsets and has_room:
            chunk = _tracking_chunk(TRACKING, self.next_offset, self._timestamp, {}, self._changed_offsets)
            self._plan(chunk, self.next_offset)
            self._changed_offsets = {}

    def _tail(self) -> tuple[Segment, int]:
        """Return the segment and the position of the next chunk to be planned."""
        if not self._writes:
            return self._segments[-1], self._segments[-1].size
        last = self._writes[-1]
        return last.segment, last.position + len(last.data)

    def _plan(self, data: bytes, offset: int, *, anew: bool = False) -> None:
        segment, position = self._tail()
        largest = max(self.retention.segment_bytes, self._smallest_segment)
        # A segment that still has no messages is continued, because its successor would have the same name.
        if (anew or position >= largest) and segment.base < offset:
            segment, position = Segment(offset, self._kept.new(offset)), 0
            self.publishing_ids.keep_last(_PRODUCERS)
            self.offsets.forget_before(self.first_offset)
            snapshot = _tracking_chunk(SNAPSHOT, offset, self._timestamp, self.publishing_ids, self.offsets)
            # Otherwise, each message in a stream with tiny segments would write a large snapshot as well.
            self._smallest_segment = 2 * len(snapshot) if len(snapshot) > _SMALL_SNAPSHOT else 0
            position = self._write_later(segment, position, snapshot)
        if data:
            self._write_later(segment, position, data)

    def _write_later(self, segment: Segment, position: int, data: bytes) -> int:
        header = parse_header(data)
        assert header is not None
        self._writes.append(_Write(segment, position, header, data))
        return position + len(data)

    def write(self) -> None:
        """Write the prepared chunks and sync them to disk, or raise OSError. See Log.write() in ledger.py."""
        if self.deleted:
            return
        for segment, group in groupby(self._writes, key=lambda each: each.segment):
            writes = list(group)
            segment.data.write(writes[0].position, b"".join(each.data for each in writes))
            segment.data.sync()

    def commit(self) -> None:
        """Make the written chunks available to readers, and delete old segments."""
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
        self._watchers.wake()

    def _forget_old(self) -> None:
        """Delete the oldest segments beyond the retention limits. Called only after adding one, as in RabbitMQ."""
        limits = self.retention
        try:
            while len(self._segments) > 1 and not self.deleted:
                first = self._segments[0]
                too_large = limits.max_bytes is not None and self.size > limits.max_bytes
                too_large = too_large or self._segments[1].base <= self._floor
                # All messages of this segment are before the base of the next one.
                if not too_large and limits.max_age is not None:
                    if not first.is_indexed:
                        first.index_some(INDEX_AT_ONCE)
                        self._clock.take_turn(self._forget_old)
                        return
                    too_large = first.last_timestamp < self._clock.now() - limits.max_age
                if not too_large:
                    return
                first.data.delete()
                del self._segments[0]
                self.last_chunk = self.end if self.last_chunk < self.first_offset else self.last_chunk
        except OSError as error:  # the messages that have just been written must be confirmed all the same
            log.error("cannot delete the oldest messages of a stream, until its next segment begins: %s", error)

    def clear(self) -> None:
        """Delete all messages, publishing ids and stored offsets. Later messages do not reuse offsets."""
        self._changed_offsets = {}
        self.publishing_ids.forget_all()
        self.offsets.forget_all()
        if self._draft is not None:
            self._sealed.append(self._draft)
            self._draft = None
        self._floor = self.next_offset
        if self._ledger.on_disk:
            self._due()
        else:
            _write_at_once(self)

    def delete(self) -> None:
        """Mark the log as deleted, and have the ledger delete its segments."""
        self.deleted = True
        self.publishing_ids.forget_all()
        self.offsets.forget_all()
        self._ledger.discard_log(self)
        self._watchers.wake()

    def delete_files(self) -> None:
        """Delete the segments. Runs on the writer thread, if there is one."""
        for segment in self._segments:
            segment.data.delete()
        self._kept.delete()

    def watch(self, what: Callable[[], object]) -> None:
        """Call a function whenever there are new messages, and when the log is deleted."""
        self._watchers.add(what)

    def unwatch(self, what: Callable[[], object]) -> None:
        """Stop calling a function passed to watch()."""
        self._watchers.discard(what)

    def segment_of(self, offset: int) -> Segment:
        """Return the segment that contains an offset; the first or the last one if the offset is out of range."""
        index = bisect_right(self._segments, offset, key=lambda segment: segment.base)
        return self._segments[max(index - 1, 0)]

    def segment_after(self, segment: Segment) -> Segment | None:
        """Return the segment that follows `segment`, even if `segment` has been deleted; None after the last one."""
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
