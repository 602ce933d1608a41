"""Segments of streams in files: one directory per stream, one file per segment, named after its first offset."""

import errno
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mqtool.broker.embedded.model.ledger import SegmentData
from mqtool.broker.embedded.store.damage import new_directory, unused
from mqtool.broker.embedded.store.disk import DISK, Disk

_SUFFIX = ".segment"
_NAME = re.compile(r"[0-9]{20}\.segment")


class _SpareDescriptor:
    """Reserves a file descriptor, so that a file can be read even if clients use up all other descriptors."""

    def __init__(self) -> None:
        self._reserve: int | None = None
        self._renew()

    def _renew(self) -> None:
        if self._reserve is None:
            with suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)

    def open(self, path: Path) -> int:
        """Open a file for reading. The caller must close the file with close()."""
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or self._reserve is None:
                raise
        os.close(self._reserve)
        self._reserve = None
        return os.open(path, os.O_RDONLY)

    def close(self, file: int) -> None:
        """Close a file, and reserve a descriptor again if necessary."""
        os.close(file)
        self._renew()


_spare = _SpareDescriptor()


class SegmentFile:
    """A segment in a file. A stream may have thousands of files, so only the one being written to is kept open."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self._file: int | None = None
        self._is_new = not path.exists()

    def size(self) -> int:
        return 0 if self._is_new else self._path.stat().st_size

    def write(self, position: int, data: bytes) -> None:
        """Write bytes at this position, overwriting any that a failed attempt has left there."""
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        with memoryview(data) as rest:
            written = 0
            while written < len(data):
                written += self._disk.write(self._file, self._path, rest[written:], position + written)

    def sync(self) -> None:
        """Block until all bytes are on disk."""
        if self._file is None:
            return
        self._disk.sync(self._file, self._path)
        if self._is_new:
            # The directories above a new file may be new too.
            for directory in list(self._path.parents)[:3]:
                self._disk.sync_directory(directory)
            self._is_new = False

    def read(self, position: int, size: int) -> bytes:
        """Return `size` bytes starting at `position`, or fewer at the end."""
        if self._file is not None:
            return os.pread(self._file, size, position)
        file = _spare.open(self._path)
        try:
            return os.pread(file, size, position)
        finally:
            _spare.close(file)

    def cut(self, size: int) -> None:
        """Truncate to `size` bytes, and move the rest to a directory for damaged files."""
        kept = unused(new_directory(self._path.parents[2]) / f"stream-{self._path.parent.name}-{self._path.name}")
        kept.touch(mode=0o600)
        with self._path.open("rb") as whole, kept.open("wb") as tail:
            whole.seek(size)
            shutil.copyfileobj(whole, tail)
        os.truncate(self._path, size)

    def close(self) -> None:
        """Close the file until the next write."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def delete(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)


class SegmentDirectory:
    """The directory that contains the segment files of one stream. The first write to a segment creates it."""

    are_lasting = True

    def __init__(self, directory: Path, disk: Disk = DISK) -> None:
        self._directory = directory
        self._disk = disk

    def existing(self) -> Iterable[tuple[int, SegmentData]]:
        """Return the segments that exist when the broker starts, in order, each with its first offset."""
        found = sorted(path for path in self._directory.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.name))
        return [(int(path.stem), SegmentFile(path, self._disk)) for path in found]

    def foreign(self) -> list[Path]:
        """Return the paths in the directory that are not segment files."""
        return sorted(path for path in self._directory.glob("*") if not _NAME.fullmatch(path.name))

    def new(self, offset: int) -> SegmentData:
        """Return an empty segment with this first offset. The first write creates the file."""
        return SegmentFile(self._directory / f"{offset:020}{_SUFFIX}", self._disk)

    def delete(self) -> None:
        """Delete the directory and all files in it."""
        shutil.rmtree(self._directory, ignore_errors=True)
