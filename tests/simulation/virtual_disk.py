"""A disk that keeps what was synced, and may lose all or part of the rest. Its syncs take time and can fail."""

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from random import Random
from typing import Any

from mqtool.broker.embedded.store.database import FILE
from mqtool.broker.embedded.store.disk import Disk
from tests.simulation.virtual_loop import VirtualLoop

_SECTOR = 512
_LOG = f"{FILE}-wal"


class VirtualWriter(Executor):
    """Replaces the broker's writer thread: makes each call a little later, on the event loop."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self._loop = loop
        self._random = random
        self._waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def call() -> None:
            self._waiting.remove(call)
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._waiting.append(call)
        self._loop.call_later(0.0002 + self._random.random() ** 4 * 0.03, lambda: call in self._waiting and call())
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for call in list(self._waiting):
            call()


class VirtualDisk(Disk):
    """The files of one run of the broker.

    Args:
        directory: where the files are.

    Attributes:
        is_failing: True while syncs fail with EIO.
        is_full: True while writes of streams fail with ENOSPC.
    """

    def __init__(self, directory: Path, loop: VirtualLoop, random: Random) -> None:
        self.directory = directory
        self._loop = loop
        self._random = random
        self._synced: dict[Path, bytes] = {}
        self.is_failing = self.is_full = False
        for path in self._written_to():
            self._synced[path] = path.read_bytes()

    def _written_to(self) -> list[Path]:
        """Return the files that the broker syncs."""
        log = self.directory / _LOG
        return [*([log] if log.exists() else []), *sorted(self.directory.glob("streams/*/*.segment"))]

    def writer(self) -> Executor:
        return VirtualWriter(self._loop, self._random)

    def write(self, file: int, path: Path, data: memoryview, position: int) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(file, path, data, position)

    def sync(self, file: int, path: Path) -> None:
        if self.is_failing:
            raise OSError(errno.EIO, "input/output error")
        if path.is_dir():
            return
        self._synced[path] = os.pread(file, os.fstat(file).st_size, 0)

    def copy(self, to: Path) -> None:
        """Copy what a kill of the broker leaves: everything that was written."""
        shutil.copytree(self.directory, to, ignore=shutil.ignore_patterns("*-shm"))

    def copy_synced(self, to: Path) -> None:
        """Copy what a power cut leaves: everything synced, and any part of the rest."""
        self.copy(to)
        for path in self._written_to():
            written, synced = path.read_bytes(), self._synced.get(path, b"")
            kept = to / path.relative_to(self.directory)
            if written != synced:
                kept.write_bytes(self._survivors(synced, written))

    def _survivors(self, synced: bytes, written: bytes) -> bytes:
        how = self._random.randrange(3)
        if how == 0:
            return synced
        size = max(len(synced), len(written))
        last = self._random.randrange(size + 1)
        kept = []
        for start in range(0, size, _SECTOR):
            old = synced[start : start + _SECTOR].ljust(min(_SECTOR, size - start), b"\0")
            new = written[start : start + _SECTOR]
            is_kept = start < last if how == 1 else self._random.random() < 0.7
            kept.append(new if is_kept else old)
        return b"".join(kept)
