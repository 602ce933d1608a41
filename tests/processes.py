"""Processes of this machine, as `ps` reports them on Linux and macOS."""

import subprocess
import sys

import pytest

only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the test reads /proc")


def is_alive(pid: int) -> bool:
    """True if the process is running. A zombie is not."""
    state = _ps("-o", "stat=", "-p", str(pid)).strip()
    return bool(state) and not state.startswith("Z")


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's running children, oldest first."""
    pairs = [tuple(map(int, line.split())) for line in _ps("-A", "-o", "pid=,ppid=").splitlines()]
    return sorted(child for child, parent in pairs if parent == pid and is_alive(child))


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return int(_ps("-o", "rss=", "-p", str(pid))) * 1024


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout
