"""Brokers' log files: written on and on, and read as `tail -f` does."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

_CHUNK = 65536
_LONG = 10_000_000
_STARTING = b"== mqtool:"


def go_on(path: Path) -> BinaryIO:
    """Open a log to add to it, as the reason for a restart is in what was written before. A long one becomes log.1."""
    if path.exists() and path.stat().st_size > _LONG:
        path.replace(path.with_name("log.1"))
    log = path.open("ab", buffering=0)
    log.write(_STARTING + f" {datetime.now(UTC):%F %T}\n".encode())
    return log


def last_words(log: bytes) -> str:
    """The last line since the broker was started, to be added to a sentence."""
    lines = [line for line in log.rpartition(_STARTING)[2].splitlines()[1:] if line.strip()]
    return f": {lines[-1].decode(errors='replace').strip()}" if lines else ""


def kept(directory: Path) -> dict[str, Path]:
    """The logs in the directory of a broker, which stay when it is stopped, by the names of its nodes."""
    found = sorted(directory.glob("log")) or sorted(directory.glob("node-*/log"))
    return {"" if path.parent == directory else path.parent.name: path for path in found}


def read(paths: Mapping[str, Path], follow: bool) -> Iterator[bytes]:
    """Read whole lines from files, each line prefixed with the name of its file if it has one.

    Args:
        paths: files by name.
        follow: go on as they grow; yields b"" when there is nothing new, and the caller waits.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(path.open("rb")) for name, path in paths.items()}
        rest = dict.fromkeys(files, b"")
        while True:
            found = b""
            for name, file in files.items():
                *lines, rest[name] = (rest[name] + file.read(_CHUNK)).split(b"\n")
                found += b"".join(named(name, line) for line in lines)
            if not found and not follow:
                yield b"".join(named(name, line) for name, line in rest.items() if line)
                return
            yield found


def named(name: str, line: bytes) -> bytes:
    """A line, prefixed with the name of its source."""
    return (f"{name} | ".encode() if name else b"") + line + b"\n"
