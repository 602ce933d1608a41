"""The files of streams: segments are read, written and synced, and damaged ends are kept."""

import errno
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mqtool.broker.embedded.store.disk import Disk
from mqtool.broker.embedded.store.segment_files import SegmentDirectory, SegmentFile

FIRST = "00000000000000000000.segment"


class SlowDisk(Disk):
    """A disk that writes up to 3 bytes at once, and records what it syncs."""

    def __init__(self) -> None:
        self.synced: list[Path] = []

    def write(self, file: int, path: Path, data: memoryview, position: int) -> int:
        assert os.path.samestat(os.fstat(file), path.stat())
        return super().write(file, path, data[:3], position)

    def sync(self, file: int, path: Path) -> None:
        assert os.path.samestat(os.fstat(file), path.stat())
        super().sync(file, path)
        self.synced.append(path)


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a stream's first segment, whose directories do not exist yet."""
    return tmp_path / "streams" / "1" / FIRST


def _descriptor() -> int | None:
    """Open a file. Returns None if there are no file descriptors left."""
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return None


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Use up all file descriptors of the process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.disable()  # it may close files
    used = [_descriptor() or 0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 10, limits[1]))
    try:
        used += iter(_descriptor, None)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in used:
            os.close(each)
        gc.enable()


def test_a_segment_is_read_at_any_position_while_it_is_open_and_after_it_is_closed(path: Path, disk: SlowDisk) -> None:
    """A segment of a stream can be read at any position while its file is open, after it is closed, and after a
    restart. A read that extends beyond the end of the segment returns only the bytes before the end. A write at an
    earlier position overwrites the bytes there.
    """
    segment = SegmentFile(path, disk)
    assert segment.size() == 0
    segment.write(0, b"0123456xx")
    segment.write(7, b"789")
    for _ in range(2):
        assert [segment.read(0, 4), segment.read(8, 9), segment.read(10, 1)] == [b"0123", b"89", b""]
        segment.close()
    again = SegmentFile(path, disk)
    assert (again.size(), again.read(3, 4)) == (10, b"3456")
    again.write(10, b"ab")
    again.close()
    assert path.read_bytes() == b"0123456789ab"


def test_only_the_owner_can_read_the_files_of_a_stream(path: Path) -> None:
    """The files of a stream can be read only by the user who runs the broker."""
    segment = SegmentFile(path)
    segment.write(0, b"secret")
    segment.cut(2)
    [damaged] = (path.parents[2]).glob("damaged-*")
    modes = {each.name: each.stat().st_mode & 0o777 for each in (path, path.parent, *damaged.iterdir())}
    assert modes == {FIRST: 0o600, "1": 0o700, f"stream-1-{FIRST}": 0o600}
    segment.close()


def test_the_first_sync_of_a_new_segment_also_syncs_its_directories(path: Path, disk: SlowDisk) -> None:
    """When the broker syncs a new segment of a stream to disk for the first time, it also syncs the segment's directory
    and the two directories above it, so that the segment still exists after a power cut. Later, it syncs only the
    segment's file. If nothing was written, it syncs nothing.
    """
    segment = SegmentFile(path, disk)
    segment.sync()
    assert disk.synced == []
    segment.write(0, b"a")
    segment.sync()
    assert disk.synced == [path, *list(path.parents)[:3]]
    segment.sync()
    again = SegmentFile(path, disk)
    again.write(1, b"b")
    again.sync()
    assert disk.synced[4:] == [path, path]
    for each in (segment, again):
        each.close()
        each.sync()
    assert len(disk.synced) == 6


def test_a_segment_can_be_read_when_clients_use_up_all_file_descriptors(path: Path) -> None:
    """While clients use up all file descriptors, the broker can still read a segment of a stream, even several times.
    If the segment's file is missing, reading the segment raises FileNotFoundError.
    """
    with pytest.raises(FileNotFoundError):
        SegmentFile(path).read(0, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    segment = SegmentFile(path)
    for _ in range(2):
        with no_descriptors():
            for _ in range(3):
                assert segment.read(1, 2) == b"bc"
            assert _descriptor() is None


def test_the_damaged_end_of_a_segment_is_kept_in_another_directory(path: Path) -> None:
    """When the broker cuts off the damaged end of a segment of a stream, it keeps this end in a new directory next to
    the directory of the streams. If the same segment is damaged and cut off again, the broker keeps both damaged
    ends.
    """
    segment = SegmentFile(path)
    segment.write(0, b"sound, damaged")
    segment.close()
    segment.cut(9)
    segment.cut(5)
    assert path.read_bytes() == b"sound"
    kept = [*path.parents[2].glob("damaged-*/*")]  # in two directories if the second has changed between the cuts
    assert sorted(each.read_bytes() for each in kept) == [b", da", b"maged"]
    assert {each.name.removesuffix(".2") for each in kept} == {f"stream-1-{FIRST}"}


def test_a_segment_is_deleted_with_its_file(path: Path) -> None:
    """Deleting a segment of a stream removes its file. Deleting a segment that has no file is not an error."""
    segment = SegmentFile(path)
    segment.delete()
    segment.write(0, b"a")
    segment.delete()
    assert not path.exists()
    segment.write(0, b"b")  # to a new file
    assert path.read_bytes() == b"b"
    segment.delete()


def test_the_segments_of_a_stream_are_found_in_order(tmp_path: Path, disk: SlowDisk) -> None:
    """When the broker starts, it finds the segments of a stream in the order of their first offsets, and ignores files
    with other names. Deleting a stream deletes its directory.
    """
    streams = SegmentDirectory(tmp_path / "streams" / "1", disk)
    assert [*streams.existing()] == []
    for offset in (1000, 0, 30, (1 << 63) - 1):
        segment = streams.new(offset)
        segment.write(0, b"%d" % offset)
        segment.sync()
        segment.close()
    assert (tmp_path / "streams" / "1" / f"{30:020}.segment").exists()
    assert len(disk.synced) == 16
    others = ["1.segment", "a.segment", f"{5:020}.segment.old", f"{5:021}.segment", "x"]
    for name in others:
        (tmp_path / "streams" / "1" / name).touch()
    found = [(offset, segment.read(0, 99), segment.size()) for offset, segment in streams.existing()]
    largest = (1 << 63) - 1
    assert found == [(0, b"0", 1), (30, b"30", 2), (1000, b"1000", 4), (largest, b"%d" % largest, 19)]
    assert [each.name for each in streams.foreign()] == sorted(others)
    segment = next(segment for _, segment in streams.existing())
    disk.synced.clear()
    segment.write(0, b"a")
    segment.sync()
    segment.close()
    assert len(disk.synced) == 1
    streams.delete()
    assert not (tmp_path / "streams" / "1").exists()
    streams.delete()
