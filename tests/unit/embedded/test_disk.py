"""How the embedded broker syncs files to disk before it confirms messages."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from mqtool.broker.embedded.store import disk

_FULL = 51


def next_descriptor() -> int:
    """Return the lowest number of a file descriptor that is not used."""
    found = os.open(os.devnull, os.O_RDONLY)
    os.close(found)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The syncs of files on a system that has F_FULLFSYNC, as macOS has."""
    asked: list[str] = []

    def full_sync(file: int, command: int) -> None:
        os.fstat(file)
        asked.append({_FULL: "drive"}[command])

    monkeypatch.setattr(disk, "_FULL_SYNC", _FULL)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", lambda _: asked.append("fsync"))
    return asked


def test_on_macos_a_sync_waits_for_the_drive(asked: list[str], tmp_path: Path) -> None:
    """On macOS, the broker syncs files and directories with F_FULLFSYNC, because after an fsync() alone, data may still
    be in the drive's memory.
    """
    with (tmp_path / "log").open("wb") as file:
        disk.DISK.sync(file.fileno(), tmp_path / "log")
    disk.DISK.sync_directory(tmp_path)
    assert asked == ["drive", "drive"]


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY])
def test_a_file_system_without_f_fullfsync_is_synced_with_fsync(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    """On macOS, if a file system does not support F_FULLFSYNC, the broker uses fsync() instead. If F_FULLFSYNC fails
    for another reason, the broker raises OSError.
    """

    def refuse(number: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "fcntl", fail)

    refuse(number)
    disk.DISK.sync_directory(tmp_path)
    assert asked == ["fsync"]
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        disk.DISK.sync_directory(tmp_path)


def test_on_linux_files_and_directories_are_synced_with_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux, the broker syncs files and directories with fsync(), and does not leave directories open afterwards."""
    synced: list[os.stat_result] = []
    monkeypatch.setattr(disk, "_FULL_SYNC", None)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file)))
    path = tmp_path / "log"
    with path.open("wb") as file:
        disk.DISK.sync(file.fileno(), path)
    unused = next_descriptor()
    disk.DISK.sync_directory(tmp_path)
    assert [each.st_ino for each in synced] == [path.stat().st_ino, tmp_path.stat().st_ino]
    assert next_descriptor() == unused


def test_bytes_are_written_at_the_given_position(tmp_path: Path) -> None:
    """When the embedded broker writes bytes to a file at a given position, they replace what was written there
    earlier. The write returns how many bytes it has written.
    """
    with (tmp_path / "log").open("w+b") as file:
        for position in (3, 0):
            assert disk.DISK.write(file.fileno(), tmp_path / "log", memoryview(b"abcd"), position) == 4
        assert file.read() == b"abcdbcd"
