"""The log of a stream: entries are read in order, from any offset, even after a crash."""

import errno
import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mqtool.broker.embedded.model.ledger import Ledger, MemorySegments, Segments
from mqtool.broker.embedded.model.stream_log import Retention, StreamLog
from mqtool.broker.embedded.model.stream_queue import StreamQueueReader
from mqtool.broker.embedded.model.stream_segment import UNFILTERED, ChunkFilters, bits_of, simple_entry
from mqtool.broker.embedded.store.disk import Disk
from mqtool.broker.embedded.store.segment_files import SegmentDirectory


class NoTimer:
    """A timer that is never stopped."""

    def cancel(self) -> None:
        raise AssertionError


class HandClock:
    """A clock that tests set. Calls that are due, at whatever time, are made when a test calls `turn`."""

    def __init__(self) -> None:
        self.time = 1_000
        self.due: list[Callable[[], object]] = []

    def now(self) -> int:
        return self.time

    def elapsed(self) -> float:
        return 0.0

    def take_turn(self, what: Callable[[], object]) -> None:
        self.call_later(0, what)

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> "NoTimer":  # noqa: ARG002
        self.due.append(what)
        return NoTimer()

    def turn(self) -> None:
        due, self.due = self.due, []
        for what in due:
            what()


class Bench:
    """A stream's log with its clock. A test can open the log again, as a restart does."""

    def __init__(self, segments: Callable[[], Segments]) -> None:
        self.clock = HandClock()
        self._segments = segments
        self.log = self.open()

    def open(self, **retention: int) -> StreamLog:
        self.log = StreamLog(self._segments(), self.clock, Ledger(), Retention(**retention))
        return self.log

    def add(self, *bodies: bytes) -> None:
        """Write a chunk."""
        for body in bodies:
            self.log.append(simple_entry(body))
        self.clock.turn()

    def read(self, offset: int = 0) -> list[tuple[int, bytes]]:
        reader, found = StreamQueueReader(self.log, offset), []
        while (chunks := reader.read()) or reader.is_tired:
            found += [message for chunk in chunks for message in chunk.messages()]
        return found

    def start_at(self, timestamp: int) -> int:
        """Return the offset at which a reader from this timestamp starts."""
        reader = StreamQueueReader(self.log, 0, since=timestamp)
        while not (chunks := reader.read()) and reader.is_tired:
            pass
        return chunks[0].offset if chunks else self.log.end


@pytest.fixture(params=["memory", "files"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    files = request.param == "files"
    return Bench(lambda: SegmentDirectory(tmp_path / "streams" / "1") if files else MemorySegments(lambda _: None))


@pytest.fixture
def in_memory() -> Bench:
    return Bench(lambda: MemorySegments(lambda _: None))


@pytest.fixture
def on_disk(tmp_path: Path) -> Bench:
    return Bench(lambda: SegmentDirectory(tmp_path / "streams" / "1"))


class QuickDisk(Disk):
    """A disk that does not wait."""

    def sync(self, file: int, path: Path) -> None:
        pass


@pytest.fixture
def quick_disk(tmp_path: Path) -> Bench:
    return Bench(lambda: SegmentDirectory(tmp_path / "streams" / "1", QuickDisk()))


def segment_files(path: Path) -> list[Path]:
    return sorted(path.glob("streams/1/*.segment"))


def test_a_stream_is_read_from_any_offset(bench: Bench) -> None:
    """Reading a stream from an offset returns all messages of the chunk that contains the offset, and all later
    messages, each once.
    """
    bench.add(b"a", b"b", b"c")
    bench.add(b"d")
    everything = [(0, b"a"), (1, b"b"), (2, b"c"), (3, b"d")]
    assert bench.read(0) == bench.read(2) == everything
    assert bench.read(3) == everything[3:]
    assert bench.read(4) == bench.read(9) == []
    assert bench.log.last_chunk == 3


def test_the_index_of_a_segment_is_built_step_by_step_after_a_restart(on_disk: Bench) -> None:
    """If a reader starts in the middle of an old segment of a stream after a restart, the broker first builds the
    index of this segment, 256 KiB in each turn of its event loop. The reader therefore gets its first chunk only
    after several turns. A later reader of the segment needs only one turn.
    """
    on_disk.open(segment_bytes=600_000)
    for number in range(400):
        on_disk.add(b"%03d" % number * 700)
    log = on_disk.open(segment_bytes=600_000)
    assert log.segments == 2
    reader, turns = StreamQueueReader(log, 250), 0
    while not (chunks := reader.read()):
        assert reader.is_tired
        turns += 1
    assert turns == 3
    assert chunks[0].offset == 250
    assert StreamQueueReader(log, 260).read()[0].offset == 260
    assert [offset for offset, _ in on_disk.read(270)] == [*range(270, 400)]


def test_the_index_of_a_segment_is_built_step_by_step_for_a_start_by_timestamp(on_disk: Bench) -> None:
    """If a reader starts at a timestamp in an old segment of a stream after a restart, the broker first builds the
    index of this segment, 256 KiB in each turn of its event loop. The reader therefore gets its first chunk only
    after several turns. A later reader of the segment needs only one turn.
    """
    on_disk.open(segment_bytes=600_000)
    for number in range(400):
        on_disk.clock.time = 1_000 + number
        on_disk.add(b"%03d" % number * 700)
    on_disk.open(segment_bytes=600_000)
    reader, turns = StreamQueueReader(on_disk.log, 0, since=1_250), 0
    while not (chunks := reader.read()):
        assert reader.is_tired
        turns += 1
    assert turns == 3
    assert chunks[0].offset == 250
    assert StreamQueueReader(on_disk.log, 0, since=1_260).read()[0].offset == 260


def test_a_timestamp_in_a_stream_with_many_segments_is_looked_up_step_by_step(in_memory: Bench) -> None:
    """When a reader of a stream starts at a timestamp, the broker looks at up to 256 segments in each turn of its event
    loop until it has found the right one.
    """
    in_memory.open(segment_bytes=1)
    for number in range(1_000):
        in_memory.clock.time = 1_000 + number
        in_memory.add(b"%d" % number)
    reader, turns = StreamQueueReader(in_memory.log, 0, since=1_001), 0
    while not (chunks := reader.read()):
        turns += 1
    assert (chunks[0].offset, turns) == (1, 2)


def test_the_age_of_an_old_segment_is_looked_up_step_by_step(on_disk: Bench) -> None:
    """If the oldest segment of a stream may exceed the maximum age, but has no index yet, the broker indexes 256 KiB of
    this segment in each turn of its event loop. It then deletes the segment if it is too old.
    """
    on_disk.open(segment_bytes=600_000)
    for _ in range(4):
        on_disk.add(bytes(200_000))
    log = on_disk.open(segment_bytes=150_000, max_age=1_000)
    on_disk.clock.time += 10_000
    on_disk.add(b"a")
    turns = 0
    while not log.first_offset:
        on_disk.clock.turn()
        turns += 1
    assert turns == 2


def test_many_chunks_without_messages_do_not_slow_down_the_search_for_the_last_message(quick_disk: Bench) -> None:
    """If a segment of a stream ends with 4,000 chunks that contain stored offsets but no messages, the broker reads
    less than three times the size of the segment to find the segment's last message.
    """
    quick_disk.add(b"a")
    for number in range(4_000):
        quick_disk.log.store_offset("c" * 250, number)
        quick_disk.clock.turn()
    segment, read = quick_disk.log.segment_of(0), 0
    data = segment.data.read

    def count(position: int, size: int) -> bytes:
        nonlocal read
        read += size
        return data(position, size)

    segment.data.read = count  # type: ignore[method-assign]
    assert segment.last_messages() == 0
    assert read < 3 * segment.size


def test_storing_an_offset_5000_times_loses_no_messages_and_takes_limited_space(
    quick_disk: Bench, in_memory: Bench, tmp_path: Path
) -> None:
    """If a consumer stores its offset 5,000 times in a stream with a size limit, messages that are published
    afterwards are not lost, either before or after a restart. On disk, the stored offsets take at most about 1 MiB.
    Without a data directory, they take less than 100 bytes of memory.
    """
    limits = {"segment_bytes": 600, "max_bytes": 3_000}
    in_memory.open(**limits)
    quick_disk.open(**limits)
    for bench in (in_memory, quick_disk):
        bench.add(b"a")
        for number in range(5_000):
            bench.log.store_offset("c" * 200, number)
            bench.clock.turn()
    assert sum(each.stat().st_size for each in segment_files(tmp_path)) < 1024 * 1024 + 2_000
    assert in_memory.log.size < 100
    for bench in (in_memory, quick_disk):
        for body in (b"b", b"c", b"d"):
            bench.add(body)
        bench.log.store_offset("c" * 200, 2)
        bench.clock.turn()
        assert bench.read(3) == [(3, b"d")]
    log = quick_disk.open(**limits)
    assert (log.lost, log.end, log.offsets) == (0, 4, {"c" * 200: 2})
    assert quick_disk.read(3) == [(3, b"d")]


def test_many_readers_that_wait_for_a_stream_are_notified_step_by_step() -> None:
    """If many readers wait for new messages of a stream, the broker notifies some of them immediately, and the others
    in later turns of its event loop. Each reader is notified once. A reader that has stopped waiting in the meantime is
    not notified.
    """
    bench = Bench(lambda: MemorySegments(lambda _: None))
    seconds, called = 0.0, list[int]()

    def watcher(number: int) -> Callable[[], object]:
        def call() -> None:
            nonlocal seconds
            seconds += 0.004
            called.append(number)

        return call

    watchers = [watcher(number) for number in range(9)]
    bench.clock.elapsed = lambda: seconds  # type: ignore[method-assign]
    for each in watchers:
        bench.log.watch(each)
    bench.add(b"a")
    assert called == [0, 1, 2]
    bench.log.unwatch(watchers[4])
    bench.clock.turn()
    assert called == [0, 1, 2, 3, 5, 6]
    bench.clock.turn()
    assert called == [0, 1, 2, 3, 5, 6, 7, 8]
    assert not bench.clock.due


def batch(compression: int, plain: bytes, packed: bytes, *, records: int) -> bytes:
    """An entry with several messages, as a publisher of the stream protocol packs them."""
    head = bytes([0x80 | compression << 4]) + records.to_bytes(2)
    return head + len(plain).to_bytes(4) + len(packed).to_bytes(4) + packed


def test_each_message_of_a_sub_entry_batch_takes_one_offset(bench: Bench) -> None:
    """Each message of a sub-entry batch takes one offset. A consumer that reads the stream over AMQP gets only the
    messages of uncompressed batches. If the end of an uncompressed batch is missing, the consumer gets the batch's
    complete messages, and then the messages after the batch.
    """
    plain = simple_entry(b"a") + simple_entry(b"b")
    bench.log.append(batch(0, plain, plain, records=2), records=2)
    bench.log.append(batch(1, plain, gzip.compress(plain), records=2), records=2)
    bench.log.append(batch(2, plain, b"snappy", records=2), records=2)
    bench.log.append(batch(0, plain, plain[:-1], records=2), records=2)
    bench.log.append(batch(0, b"", b"", records=2), records=2)
    bench.add(b"c")
    assert bench.read() == [(0, b"a"), (1, b"b"), (6, b"a"), (10, b"c")]


def test_unwritten_stream_entries_cannot_be_read(bench: Bench) -> None:
    """A new entry of a stream cannot be read until the broker has written it to the stream's log. As soon as it is
    written, the stream's readers are notified.
    """
    reader, told = StreamQueueReader(bench.log, 0), []
    bench.log.watch(lambda: told.append(bench.log.end))
    assert bench.log.append(simple_entry(b"a")) == 0
    assert (bench.log.next_offset, bench.log.end, reader.read()) == (1, 0, [])
    bench.clock.turn()
    assert (told, len(reader.read())) == ([1], 1)


def test_new_chunks_have_the_current_time_even_if_the_clock_was_set_back(bench: Bench) -> None:
    """If the system clock was set back, a new chunk of a stream has the current time as its timestamp, even if the
    timestamp of the previous chunk is later. RabbitMQ does the same.
    """
    for time in (9_000_000, 1_000):
        bench.clock.time = time
        bench.add(b"a")
    chunks = StreamQueueReader(bench.log, 0).read()
    assert [chunk.timestamp for chunk in chunks] == [9_000_000, 1_000]


def test_reading_from_a_timestamp_starts_at_the_first_chunk_that_is_not_older(bench: Bench) -> None:
    """Reading a stream from a timestamp starts at the first chunk that is not older than the timestamp, or at the end
    if there is none.
    """
    for time in (1_000, 2_000, 3_000):
        bench.clock.time = time
        bench.add(b"a", b"b")
    assert [bench.start_at(time) for time in (0, 1_000, 1_001, 3_000, 3_001)] == [0, 0, 2, 4, 6]


def test_a_timestamp_offset_after_the_last_chunk_means_the_end_of_the_stream(bench: Bench) -> None:
    """If the system clock was set back, an earlier chunk of a stream may have a later timestamp than the last chunk. As
    in RabbitMQ, a consumer that is to start at a timestamp later than that of the last chunk still starts at the end of
    the stream.
    """
    for time in (9_000, 1_000, 2_000):
        bench.clock.time = time
        bench.add(b"a", b"b")
    assert [bench.start_at(time) for time in (500, 1_500, 2_000, 2_001, 8_000)] == [0, 0, 0, 6, 6]


def test_a_timestamp_is_looked_up_in_the_last_segment_that_begins_before_it(bench: Bench) -> None:
    """If the system clock was set back, a reader that starts at a timestamp looks in the last segment that begins
    before the timestamp. It starts at the first chunk, in this segment or a later one, that is not older than the
    timestamp.
    """
    bench.open(segment_bytes=70_000)
    for time in (1_000, 9_000, 2_000, 3_000, 8_000, 4_000):
        bench.clock.time = time
        bench.add(bytes(40_000))
    assert bench.log.segments == 3
    assert [bench.start_at(time) for time in (500, 1_500, 2_500, 3_500, 4_000, 5_000)] == [0, 1, 3, 4, 4, 6]


def test_old_segments_are_deleted_by_size_and_age(bench: Bench) -> None:
    """Retention by size or by age deletes whole old segments of a stream. A reader whose segment was deleted continues
    with the first message that is left.
    """
    log = bench.open(segment_bytes=1_000, max_bytes=2_500)
    bench.add(b"first")
    reader = StreamQueueReader(log, 0)
    for _ in range(20):
        bench.add(bytes(300))
    assert log.size <= 2_500 + 1_000
    assert 0 < log.first_offset < log.end == 21
    assert reader.read()[0].offset == log.first_offset == bench.read()[0][0]
    before = log.first_offset
    log.retention = Retention(max_age=5_000, segment_bytes=1_000)
    bench.clock.time += 10_000
    for _ in range(4):
        bench.add(bytes(300))
    assert before < log.first_offset < log.end


def test_messages_are_stored_although_the_oldest_segment_cannot_be_deleted(
    on_disk: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a disk error prevents the broker from deleting a stream's oldest segment, the broker logs the error. New
    messages are still stored, and all messages can be read. Once the disk works again, the segment is deleted when the
    next segment begins.
    """
    log = on_disk.open(segment_bytes=1_000, max_bytes=1_000)
    on_disk.add(bytes(600))
    with monkeypatch.context() as failing, caplog.at_level(logging.ERROR):
        failing.setattr(Path, "unlink", raises(OSError(errno.EIO, "Input/output error")))
        for _ in range(4):
            on_disk.add(bytes(600))
    assert (log.first_offset, [offset for offset, _ in on_disk.read()]) == (0, [0, 1, 2, 3, 4])
    assert "cannot delete the oldest messages of a stream" in caplog.text
    on_disk.add(bytes(600))
    on_disk.add(bytes(600))
    assert log.first_offset > 2
    assert [offset for offset, _ in on_disk.read()] == [*range(log.first_offset, 7)]


def raises(error: Exception) -> Callable[..., None]:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_publishing_ids_and_stored_offsets_survive_a_restart_and_the_deletion_of_a_segment(on_disk: Bench) -> None:
    """A stream keeps its publishing ids and stored offsets after a restart, even if the segment in which they were
    written is deleted. As in RabbitMQ, there is one exception: if the message at a stored offset is deleted, the stored
    offset is lost.
    """
    log = on_disk.open(segment_bytes=500, max_bytes=500)
    log.append(simple_entry(b"a"), producer="p", publishing_id=7)
    log.store_offset("c", 1000)
    log.store_offset("behind", 0)
    on_disk.clock.turn()
    for _ in range(10):
        on_disk.add(bytes(300))
    assert log.first_offset > 0
    for each in (log, on_disk.open()):
        assert (each.publishing_ids, each.offsets) == ({"p": 7}, {"c": 1000})


def test_an_incomplete_chunk_at_the_end_of_a_stream_is_moved_to_another_file(on_disk: Bench, tmp_path: Path) -> None:
    """If the broker is killed while it writes a chunk of a stream, the stream ends with an incomplete chunk. The next
    time the broker starts, it moves the incomplete chunk to another file, and writes the next chunk in place of the
    incomplete one.
    """
    on_disk.add(b"a", b"b")
    sound = segment_files(tmp_path)[0].stat().st_size
    on_disk.add(b"c" * 1000)
    whole = segment_files(tmp_path)[0].read_bytes()
    for size in (sound + 1, sound + 48, len(whole) - 1):
        segment_files(tmp_path)[0].write_bytes(whole[:size])
        log = on_disk.open()
        assert (log.end, log.lost) == (2, size - sound)
        assert whole[sound:size] in [path.read_bytes() for path in tmp_path.glob("damaged-*/*")]
        on_disk.add(b"d")
        assert on_disk.read() == [(0, b"a"), (1, b"b"), (2, b"d")]
    # Even those that were found in the same second.
    kept = {path.read_bytes() for path in tmp_path.glob("damaged-*/*")}
    assert kept == {whole[sound : sound + 1], whole[sound : sound + 48], whole[sound:-1]}


@pytest.mark.parametrize("written", [0, 30])
def test_a_kill_at_the_start_of_a_segment_loses_no_publishing_ids_or_offsets(
    on_disk: Bench, tmp_path: Path, written: int
) -> None:
    """If the broker is killed while it starts a new segment of a stream, the stream keeps its publishing ids and stored
    offsets.
    """
    log = on_disk.open(segment_bytes=600)
    log.append(simple_entry(b"a"), producer="p", publishing_id=7)
    log.store_offset("c", 0)
    on_disk.clock.turn()
    on_disk.add(b"b" * 600)
    on_disk.add(b"c")
    last = segment_files(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:written])
    for body in (b"d", b"e"):
        log = on_disk.open(segment_bytes=600)
        assert (log.publishing_ids, log.offsets) == ({"p": 7}, {"c": 0})
        on_disk.add(body)
    assert on_disk.read() == [(0, b"a"), (1, b"b" * 600), (2, b"d"), (3, b"e")]


def test_damage_to_an_older_segment_of_a_stream_loses_at_most_the_rest_of_the_segment(
    on_disk: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the messages of a chunk in an older segment of a stream are damaged, only this chunk is lost. If the header
    of a chunk is damaged, the rest of the segment is lost. Later segments can be read, and the broker logs how much
    was lost.
    """
    on_disk.open(segment_bytes=600)
    for body in (b"a", b"b" * 300, b"c" * 300, b"d"):
        on_disk.add(body)
    first = segment_files(tmp_path)[0]
    first.write_bytes(first.read_bytes().replace(b"bbbb", b"bxbb", 1))
    log = on_disk.open()
    with caplog.at_level(logging.ERROR):
        assert (log.lost, [offset for offset, _ in on_disk.read()]) == (0, [0, 2, 3])
        assert caplog.messages == ["a damaged chunk with 1 message is skipped"]
        whole = first.read_bytes()
        at = whole.index(b"bxbb")
        header = whole.rindex(whole[:2], 0, at)
        first.write_bytes(whole[:header] + b"x" + whole[header + 1 :])
        caplog.clear()
        on_disk.open()
        assert [offset for offset, _ in on_disk.read()] == [0, 3]
        assert caplog.messages == [f"the rest of a damaged segment is skipped: {len(whole) - header:,} bytes"]


def test_stream_entries_whose_write_failed_are_written_again_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker fails to write entries of a stream, it writes them again before it writes later entries."""
    log = bench.log
    log.append(simple_entry(b"a"))
    log.prepare()
    with monkeypatch.context() as patched:
        patched.setattr(log._segments[-1].data, "sync", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log.write()
    bench.add(b"b")
    assert bench.read() == [(0, b"a"), (1, b"b")]


def test_deleting_a_stream_notifies_readers_and_removes_files(bench: Bench, tmp_path: Path) -> None:
    """When a stream is deleted, the broker notifies the stream's readers, and removes the stream's files."""
    bench.add(b"a")
    told: list[bool] = []
    bench.log.watch(lambda: told.append(bench.log.deleted))
    bench.log.append(simple_entry(b"b"))
    bench.log.delete()
    bench.clock.turn()
    assert told == [True]
    assert not list(tmp_path.glob("streams/*"))


def test_a_stream_that_is_emptied_keeps_nothing_and_reuses_no_offset(bench: Bench, tmp_path: Path) -> None:
    """If a program's tests empty the embedded broker's streams between two tests, a stream loses its publishing ids,
    its stored offsets and all messages, even those that have not been written yet. The offset of the next message
    follows that of the last deleted message. After a restart of the broker, the stream is still empty.
    """
    log = bench.log
    log.append(simple_entry(b"a"), producer="p", publishing_id=7)
    log.store_offset("c", 0)
    bench.add(b"b")
    log.append(simple_entry(b"c"), producer="p", publishing_id=8)
    log.store_offset("c", 1)
    log.clear()
    bench.clock.turn()
    for again in (False, True):
        if again and not segment_files(tmp_path):  # in memory
            break
        log = bench.open() if again else log
        assert (log.first_offset, log.last_chunk, log.end, log.next_offset) == (3, 3, 3, 3)
        assert (bench.read(), log.publishing_ids, log.offsets, log.segments) == ([], {}, {}, 1)
        assert len(segment_files(tmp_path)) in (0, 1)
    bench.add(b"d")
    log.store_offset("c", 3)
    bench.clock.turn()
    assert (bench.read(), log.last_chunk, log.end, log.offsets) == ([(3, b"d")], 3, 4, {"c": 3})
    log.clear()
    bench.clock.turn()
    bench.add(b"e")
    assert (bench.read(), log.offsets) == ([(4, b"e")], {})


def test_a_chunk_has_at_most_4096_messages_and_256_kib(bench: Bench) -> None:
    """Messages that reach a stream together are stored in one chunk, up to 4,096 messages or 256 KiB. The exception is
    a message of more than 256 KiB, which has a chunk of its own.
    """
    for _ in range(4096 + 1):
        bench.log.append(simple_entry(b"a"))
    for size in (100 * 1024, 100 * 1024, 56 * 1024 - 12, 1, 300 * 1024):
        bench.log.append(simple_entry(bytes(size)))
    bench.clock.turn()
    reader, chunks = StreamQueueReader(bench.log, 0), []
    while found := reader.read():
        chunks += [(chunk.offset, chunk.end) for chunk in found]
    assert chunks == [(0, 4096), (4096, 4099), (4099, 4101), (4101, 4102)]
    assert bench.log.last_chunk == 4101


def test_messages_that_arrive_together_are_written_together(bench: Bench) -> None:
    """Messages that reach a stream together are written to disk together, and so are offsets that are stored at the
    same time. After a stream is deleted, the broker writes nothing more for it.
    """
    for number in range(3):
        bench.log.append(simple_entry(b"a"))
        bench.log.store_offset("c", number)
    assert len(bench.clock.due) == 1
    bench.clock.turn()
    bench.log.append(simple_entry(b"b"))
    assert len(bench.clock.due) == 1
    bench.clock.turn()
    bench.log.delete()
    bench.log.append(simple_entry(b"c"))
    assert bench.clock.due == []


def test_a_segment_ends_when_it_is_full_even_if_its_chunks_are_written_together(bench: Bench, tmp_path: Path) -> None:
    """A segment of a stream ends with the chunk that fills it, even if the broker writes this chunk together with
    later ones. All messages can be read, before and after a restart.
    """
    log = bench.open(segment_bytes=300 * 1024)
    for number in range(7):
        log.append(simple_entry(b"%d" % number * 200 * 1024))
    bench.clock.turn()
    assert [segment.base for segment in log.newest_first()] == [6, 4, 2, 0]
    expected = [(number, b"%d" % number * 200 * 1024) for number in range(7)]
    assert bench.read() == expected
    if segment_files(tmp_path):
        log = bench.open()
        assert (log.lost, bench.read() == expected, log.last_chunk) == (0, True, 6)


def test_segments_have_room_for_messages_after_the_publishing_ids_of_many_producers(bench: Bench) -> None:
    """Each segment of a stream begins with the publishing ids of the stream's producers. If these ids need more space
    than the segment size allows, the segment grows to about twice the size of the ids before a new one begins.
    Otherwise, every message would begin a new segment.
    """
    log = bench.open(segment_bytes=1)
    for number in range(3):
        bench.add(b"%d" % number)
    assert log.segments == 3
    for number in range(100):
        log.append(simple_entry(b"x"), producer=f"{number:0>100}", publishing_id=number)
    bench.clock.turn()
    bench.add(b"first")
    segment = log.segment_of(log.end)
    begins, snapshot = log.segments, segment.size
    assert 100 * 100 < snapshot < 100 * 130
    while log.segments == begins:
        size = segment.size
        bench.add(bytes(1000))
    assert 2 * snapshot - 1500 < size < 2 * snapshot + 1500
    assert (log.publishing_ids["0" * 98 + "42"], len(bench.read())) == (42, log.end)


def test_the_filter_of_a_chunk_has_the_filter_values_of_all_its_messages(bench: Bench, tmp_path: Path) -> None:
    """If the messages of a chunk have several filter values, the chunk is found by each of these values, before and
    after a restart. A reader with a filter therefore misses none of its messages.
    """
    values = [bits_of(each) for each in (b"invoices", b"orders", b"returns")]
    for bits in values:
        bench.log.append(simple_entry(b"x"), filter_bits=bits)
    bench.clock.turn()
    bench.add(b"without")
    for again in (False, True):
        if again and segment_files(tmp_path):
            bench.open()
        for wanted, found in [*((each, [0]) for each in values), (bits_of(b"other"), []), (UNFILTERED, [3])]:
            chunks = StreamQueueReader(bench.log, 0, ChunkFilters([wanted])).read()
            assert [chunk.offset for chunk in chunks] == found


@pytest.mark.parametrize(("age", "left"), [(999, 3), (1000, 3), (1001, 2), (1999, 2), (2001, 1), (9999, 1)])
def test_segments_are_deleted_when_all_of_their_messages_are_too_old(bench: Bench, age: int, left: int) -> None:
    """When a new segment of a stream begins, the broker deletes segments whose last message is older than the maximum
    age. It never deletes the last segment.
    """
    log = bench.open(segment_bytes=1)
    bench.add(b"a")
    bench.clock.time += 1000
    bench.add(b"a")
    bench.clock.time += age - 1000
    log.retention = Retention(max_age=1000, segment_bytes=1)
    bench.add(b"a")
    bench.clock.turn()
    assert log.segments == left


@pytest.mark.parametrize(("less", "left"), [(0, 4), (1, 3), (10**6, 1)], ids=["exactly", "more", "much more"])
def test_segments_are_deleted_only_if_the_stream_is_larger_than_its_limit(bench: Bench, less: int, left: int) -> None:
    """A stream whose size is exactly its maximum keeps all segments. If a stream is larger, its oldest segments are
    deleted, but never the last one.
    """
    log = bench.open(segment_bytes=1)
    for _ in range(3):
        bench.add(b"a")
    size = log.size + log.segment_of(2).size
    log.retention = Retention(max_bytes=max(size - less, 0), segment_bytes=1)
    bench.add(b"a")
    assert log.segments == left
    assert (log.first_offset, log.last_chunk) == (4 - left, 3)


def test_a_reader_that_has_stopped_is_not_notified(bench: Bench) -> None:
    """When new messages reach a stream, the broker does not notify a reader that has stopped reading the stream.
    Stopping a reader a second time has no effect.
    """
    told: list[str] = []

    def reader() -> None:
        told.append("new")

    bench.log.watch(reader)
    assert bench.log.is_watched
    bench.add(b"a")
    bench.log.unwatch(reader)
    bench.log.unwatch(reader)
    assert not bench.log.is_watched
    bench.add(b"b")
    assert told == ["new"]


def test_a_reader_at_the_last_chunk_gets_the_same_chunk_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    """A reader that starts at the last chunk of a stream gets the same chunk after a restart, even if the last segment
    contains no message yet. In a stream without messages, it starts at the end.
    """
    log = bench.open(segment_bytes=1)
    assert (log.last_chunk, log.subscriptions, log.deleted) == (0, 0, False)
    bench.add(b"a")
    bench.add(b"b", b"c")
    for number in range(3):
        log.store_offset("c", number)
        bench.clock.turn()
    assert log.last_chunk == 1
    if segment_files(tmp_path):
        for offsets in ({"c": 2}, {"c": 2, "d": 1}):
            log = bench.open(segment_bytes=1)
            assert (log.last_chunk, log.end, log.offsets) == (1, 3, offsets)
            log.store_offset("d", 1)
            bench.clock.turn()
