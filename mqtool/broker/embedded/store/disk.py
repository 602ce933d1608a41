"""The operations on files whose durability matters. tests/simulation replaces them with a disk that loses data."""

import errno
import fcntl
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

#: On macOS, fsync() leaves data in the drive's own memory, which a power cut empties; this waits for the drive as well.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


class Disk:
    """The disk of the machine."""

    def writer(self) -> Executor:
        """Return an executor with one thread, for calls that wait for the disk."""
        return ThreadPoolExecutor(1, thread_name_prefix="embedded-broker-writer")

    def write(self, file: int, path: Path, data: memoryview, position: int) -> int:  # noqa: ARG002
        """Write to an open file. Returns the number of bytes written, which may be fewer than given."""
        return os.pwrite(file, data, position)

    def sync(self, file: int, path: Path) -> None:  # noqa: ARG002
        """Block until an open file or directory is on disk."""
        if _FULL_SYNC is not None:
            try:
                fcntl.fcntl(file, _FULL_SYNC)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):  # else: not a local file system
                    raise
        os.fsync(file)

    def sync_directory(self, path: Path) -> None:
        """Block until the names in a directory are on disk."""
        directory = os.open(path, os.O_RDONLY)
        try:
            self.sync(directory, path)
        finally:
            os.close(directory)


DISK = Disk()
