"""The chunks of a stream and its segments: their format on disk, damage, and the index of a segment."""

import logging
from collections.abc import Iterator

import pytest

from mqtool.broker.embedded.model import stream_segment
from mqtool.broker.embedded.model.ledger import MemorySegment
from mqtool.broker.embedded.model.stream_segment import (
    HEADER_SIZE,
    SNAPSHOT,
    TRACKING,
    UNFILTERED,
    USER,
    ChunkFilters,
    ChunkHeader,
    Segment,
    StoredChunk,
    StoredTracking,
    bits_of,
    encode_chunk,
    encode_tracking,
    is_sound,
    messages_in,
    parse_header,
    read_block,
    simple_entry,
    sound_chunks,
    tracking_in,
)
from tests.unit.embedded.test_stream_log import batch

_CHUNK = bytes.fromhex(
    "50 00 0001 00000001 0000018bcfe5687b 0000000000000001 0000000000000007 6a4ead07 00000008 00000004 00000000"
    "00000004 626f6479 924b1793"
)
_TRACKED = StoredTracking({"p": 1, "q\udcff": 2**64 - 1}, {"c": 2}, 6)


def chunk(offset: int, size: int = 1, *, kind: int = USER, time: int = 0, records: int = 1) -> bytes:
    """Return a chunk of this many bytes at least."""
    return encode_chunk(kind, offset, time, bytes(size), entries=1, records=records)


class Counted(MemorySegment):
    """A segment in memory that counts the bytes that are read."""

    def __init__(self, *chunks: bytes) -> None:
        super().__init__(lambda _: None)
        self.write(0, b"".join(chunks))
        self.count = 0

    def read(self, position: int, size: int) -> bytes:
        found = super().read(position, size)
        self.count += len(found)
        return found


@pytest.mark.parametrize(
    ("value", "bits"), [(b"", 1), (b"invoices", 0x440), (b"returns", 1 << 121 | 1 << 47), (b"135", 1 << 35)]
)
def test_the_filter_bits_of_a_value_are_always_the_same(value: bytes, bits: int) -> None:
    """Each chunk of a stream is stored with 128 filter bits. An empty filter value sets bit 0, and any other value sets
    one or two of the bits 1 to 127. A value sets the same bits in every release of mqtool, so that stored streams can
    still be filtered.
    """
    assert bits_of(value) == bits


@pytest.mark.parametrize("wanted", [[2], [2, 4], [6], [6, 10], [6, 12], [2, 12, 6], [6, 6, 16], []], ids=str)
def test_a_chunk_matches_if_it_has_all_bits_of_one_wanted_value(wanted: list[int]) -> None:
    """A reader gets a chunk if the chunk's filter bits include all bits of at least one of the filter values that the
    reader wants.
    """
    filters = ChunkFilters(wanted)
    for bits in range(32):
        assert filters.match(bits) is any(bits & each == each for each in wanted)


def test_a_chunk_has_the_format_of_osiris() -> None:
    """A chunk of a stream has the format of osiris, the log library of RabbitMQ's streams: a header of 48 bytes, the
    entries, and a trailer with a checksum.
    """
    data = simple_entry(b"body")
    assert encode_chunk(USER, 7, 1700000000123, data, entries=1, records=1) == _CHUNK
    header = ChunkHeader(USER, 1, 1, 1700000000123, 7, 0x6A4EAD07, 8, 4)
    assert parse_header(b"xx" + _CHUNK, 2) == parse_header(_CHUNK[:HEADER_SIZE]) == header
    assert (header.length, len(_CHUNK)) == (60, 60)
    assert is_sound(header, _CHUNK)
    assert is_sound(header, b"xx" + _CHUNK + b"x", 2)
    assert parse_header(b"xx" + _CHUNK[: HEADER_SIZE - 1], 2) is None


def test_each_damaged_byte_of_a_chunk_is_noticed() -> None:
    """If any byte of a chunk is changed, or its end is missing, the broker notices that the chunk is damaged. It also
    treats chunks of an unknown kind, and those without room for a checksum, as damaged.
    """
    whole = encode_chunk(USER, 7, 0, b"data", entries=1, records=1, tracking=encode_tracking({"p": 1}, {}))
    for position in range(len(whole)):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :]):
            header = parse_header(damaged)
            assert header is None or not is_sound(header, damaged)
    for position, value in ((0, 0x51), (1, SNAPSHOT + 1), (43, 3)):
        assert parse_header(_CHUNK[:position] + bytes([value]) + _CHUNK[position + 1 :]) is None
    for kind in (TRACKING, SNAPSHOT):
        assert parse_header(chunk(0, kind=kind)) is not None


def test_a_chunk_contains_publishing_ids_offsets_and_filter_bits() -> None:
    """A chunk of a stream can contain filter bits, publishing ids with the names of their publishers, and stored
    offsets with the names of their readers. In a chunk of messages, all of these are in the trailer. In a chunk of
    another kind, they are in the data. Names that are not UTF-8 are kept.
    """
    assert encode_tracking({"p": 1}, {"c": 2}, 6) == bytes.fromhex(
        "02 10 00000000000000000000000000000006 0000000000000000 00 01 70 0000000000000001 01 01 63 0000000000000002"
    )
    assert encode_tracking({}, {}, UNFILTERED) == b""
    raw = encode_tracking(*_TRACKED)
    for kind, data, trailer, expected in [
        (USER, b"data", raw, _TRACKED), (USER, b"", raw, _TRACKED), (TRACKING, raw, b"", _TRACKED),
        (SNAPSHOT, raw, b"", _TRACKED), (USER, b"data", b"", StoredTracking({}, {})),
        (TRACKING, b"", b"", StoredTracking({}, {}, UNFILTERED)),
    ]:  # fmt: skip
        whole = encode_chunk(kind, 0, 0, data, entries=0, records=0, tracking=trailer)
        header = parse_header(whole)
        assert header is not None
        assert tracking_in(header, whole) == tracking_in(header, b"xx" + whole + b"xx", 2) == expected


def test_messages_keep_their_offsets_when_batches_of_a_chunk_are_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The messages of a chunk, including those in batches, have successive offsets, even if some batches are skipped.
    For an AMQP client, the broker skips each compressed batch, with a warning, because only stream clients can read
    it. It also skips each uncompressed batch that ends before the client's first offset.
    """
    monkeypatch.setattr(stream_segment.log, "filters", [])  # another test may have had the warning of this second
    caplog.set_level(logging.WARNING)
    plain, empty = simple_entry(b"b") + simple_entry(b"c"), simple_entry(b"")
    entries = [
        simple_entry(b"a"), batch(0, plain, plain, records=2), batch(1, plain, b"packed", records=300),
        batch(0, plain, plain[:-1], records=2), batch(0, plain, plain[:-4], records=2), batch(0, b"", empty, records=1),
        simple_entry(b"l" * 300),
    ]  # fmt: skip
    data = b"".join(entries)
    expected = [(5, b"a"), (6, b"b"), (7, b"c"), (308, b"b"), (310, b"b"), (312, b""), (313, b"l" * 300)]
    stored = StoredChunk(bytes(HEADER_SIZE) + data, 5, 314, len(entries), 0)
    assert [*stored.messages()] == [*messages_in(b"xx" + data, 2, 5, len(entries))] == expected
    assert [*stored.messages(7)] == expected
    assert [*stored.messages(8)] == [*messages_in(data, 0, 5, len(entries), 8)] == expected[:1] + expected[3:]
    single = batch(0, plain, plain, records=1)
    assert [*messages_in(single, 0, 0, 1)] == [(0, b"b")]
    assert [*StoredChunk(bytes(HEADER_SIZE) + single, 0, 1, 1, 0).messages()] == [(0, b"b")]
    warning = "a batch of 300 messages is skipped: only stream clients can read compressed batches"
    assert [(each.message, each.levelno) for each in caplog.records] == [(warning, logging.WARNING)] * 5
    assert {(vars(each)["cause"], vars(each)["seconds"]) for each in caplog.records} == {("compressed batches", 1.0)}


def segments(data: Counted, parts: list[bytes], base: int) -> Iterator[Segment]:
    """Yield a segment whose chunks were written one by one, and one that existed before the broker started."""
    written = Segment(base, data)
    assert (written.size, written.is_indexed) == (0, True)
    assert (written.first_timestamp, written.last_timestamp, written.last_messages()) == (None, 0, None)
    for part in parts:
        header = parse_header(part)
        assert header is not None
        written.add(header)
        assert written.last_timestamp == header.timestamp
    assert written.first_timestamp is not None
    assert data.count == 0
    yield written
    existing = Segment(base, data, data.size())
    assert not existing.is_indexed
    yield existing


def test_an_offset_or_a_timestamp_is_found_in_a_segment_without_reading_all_of_it() -> None:
    """In a segment of a stream, the broker finds the chunk with a given offset, the first chunk that is not older
    than a timestamp, and the last chunk with messages. For each, it reads only the headers of a few chunks. It also
    finds the right chunk if the clock was once ahead, so that an earlier chunk has a later timestamp.
    """
    times = [5, 7, 900, 20, 21, 30, *range(40, 80), 80, 80]
    parts = [chunk(100 + 2 * number, 20_000, time=time, records=2) for number, time in enumerate(times)]
    parts += [chunk(196, 5000, kind=TRACKING, time=90, records=0) for _ in range(14)]
    data, starts = Counted(*parts), [sum(map(len, parts[:number])) for number in range(len(parts) + 1)]
    chunks = [(position, parse_header(part)) for position, part in zip(starts, parts, strict=False)]
    for segment in segments(data, parts, 100):
        segment.build_index()
        assert (segment.is_indexed, segment.size, segment.first_timestamp) == (True, data.size(), 5)
        assert segment.last_timestamp == 90
        data.count = 0
        found = [segment.position_of(offset) for offset in range(98, 202)]
        assert found == [0, 0] + [starts[(offset - 100) // 2] for offset in range(100, 196)] + [data.size()] * 6
        assert data.count < 104 * 4 * 64 * 1024
        for time in [0, 5, 6, 7, 8, *range(15, 95), 899, 900, 901]:
            late = [position for position, header in chunks if header is not None and header.timestamp >= time]
            assert segment.position_at(time) == (late[0] if late else data.size())
        data.count = 0
        assert (segment.position_of(190), segment.position_at(901)) == (starts[45], data.size())
        assert data.count <= 4 * 64 * 1024
        data.count = 0
        assert segment.last_messages() == 194
        assert data.count <= 3 * 64 * 1024


def test_a_reader_that_starts_at_the_first_offset_of_a_segment_needs_no_index() -> None:
    """If a reader starts at the first offset of a stream's segment, or has come from an earlier segment, the broker
    reads this segment from its beginning, without building an index.
    """
    existing = Segment(100, Counted(chunk(100)), len(chunk(100)))
    assert existing.position_of(99) == existing.position_of(100) == 0
    assert not existing.is_indexed


@pytest.mark.parametrize("kinds", [[], [TRACKING], [TRACKING] * 30, [USER], [USER, USER], [TRACKING, USER, SNAPSHOT]])
def test_the_last_chunk_with_messages_in_a_segment_is_found(kinds: list[int]) -> None:
    """The broker finds the last chunk with messages in a segment of a stream, no matter how many chunks without
    messages follow it. If the segment has no messages, the broker finds no such chunk.
    """
    parts = [chunk(number, 10_000, kind=kind) for number, kind in enumerate(kinds)]
    users = [number for number, kind in enumerate(kinds) if kind == USER]
    for segment in segments(Counted(*parts), parts, 0) if parts else [Segment(0, Counted())]:
        assert segment.last_messages() == (users[-1] if users else None)


def test_the_index_of_a_segment_is_built_piece_by_piece_up_to_a_damaged_header() -> None:
    """The broker can build the index of an existing segment of a stream in steps. The index ends at the first damaged
    header of a chunk, and the broker does not find any chunks after it.
    """
    parts = [chunk(number, 1000, time=number) for number in range(100)]
    size = len(parts[0])
    existing = Segment(0, Counted(*parts), 100 * size)
    for step in range(1, 10):
        existing.index_some(10 * size)
        assert (existing.is_indexed, existing.last_timestamp) == (False, 10 * step - 1)
    for segment in (existing, Segment(0, existing.data, existing.size)):
        segment.index_some(10**9)
        assert (segment.is_indexed, segment.last_timestamp) == (True, 99)
    damaged = Segment(0, Counted(*parts[:50], b"damaged", *parts[51:]), 100 * size)
    damaged.build_index()
    assert (damaged.is_indexed, damaged.last_timestamp) == (True, 49)
    assert (damaged.position_of(49), damaged.position_of(51)) == (49 * size, 100 * size)
    assert Segment(0, Counted(b"damaged"), 7).first_timestamp is None


def test_one_read_of_a_stream_takes_256_kib_or_one_larger_chunk() -> None:
    """read_block() reads 256 KiB of a stream's segment from a position on, or the whole chunk at this position if the
    chunk is larger. If an end position is passed to read_block(), it reads nothing beyond this position.
    """
    small, large = chunk(0, 1000), chunk(1, 400_000)
    parts = Counted(small, small, large, small)
    assert read_block(parts, 0) == parts.read(0, 256 * 1024)
    assert read_block(parts, 2 * len(small)) == large
    assert read_block(parts, len(small), 2 * len(small)) == small
    assert read_block(parts, 2 * len(small), parts.size() - len(small)) == large
    assert read_block(parts, parts.size() - 10) == small[-10:]
    parts.count = 0
    read_block(Counted(large), 0)
    exact = Counted(chunk(0, 256 * 1024 - len(chunk(0, 0))), small)
    assert len(read_block(exact, 0)) == exact.count == 256 * 1024


@pytest.mark.parametrize("size", [1000, 100_000, 300_000])
def test_chunks_are_checked_when_a_stream_is_opened_up_to_the_first_damaged_one(size: int) -> None:
    """When the embedded broker opens a stream, it checks the chunks of the last segment in order, and reads their
    stored consumer offsets and filter bits. It stops at the first chunk that is damaged or cut off, and uses neither
    this chunk nor any later one. In total, it reads less than 2.5 times the size of the segment.
    """
    found = [StoredTracking({}, {"c": number}, 2 + number) for number in range(max(9, 600_000 // size))]
    parts = [
        encode_chunk(USER, number, 0, bytes(size), entries=1, records=1, tracking=encode_tracking(*tracking))
        for number, tracking in enumerate(found)
    ]
    data = Counted(*parts)
    assert [(header.offset, tracking) for header, tracking in sound_chunks(data)] == [*enumerate(found)]
    assert data.count < 2.5 * data.size()
    for position in (4 * len(parts[0]), 5 * len(parts[0]) - 5, 5 * len(parts[0]) - 1):
        damaged = Counted(*parts)
        damaged.write(position, b"?" + b"".join(parts)[position + 1 :])
        assert [header.offset for header, _ in sound_chunks(damaged)] == [0, 1, 2, 3]
        damaged.cut(position)
        assert [header.offset for header, _ in sound_chunks(damaged)] == [0, 1, 2, 3]
