"""How the embedded broker syncs files to disk before it confirms messages."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from mqtool.broker.embedded.store import disk

_FULL = 51


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The syncs of files on a system that has F_FULLFSYNC, as macOS has."""
    asked: list[str] = []
    monkeypatch.setattr(disk, "_FULL_SYNC", _FULL)
    monkeypatch.setattr(fcntl, "fcntl", lambda _, command: asked.append({_FULL: "drive"}[command]))
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


def test_a_file_system_without_a_full_sync_is_synced_with_fsync(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On macOS, if a file system does not support F_FULLFSYNC, the broker uses fsync() instead. If F_FULLFSYNC fails
    for another reason, the broker raises OSError.
    """

    def refuse(number: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "fcntl", fail)

    refuse(errno.ENOTSUP)
    disk.DISK.sync_directory(tmp_path)
    assert asked == ["fsync"]
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        disk.DISK.sync_directory(tmp_path)
