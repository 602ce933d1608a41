"""The log files of brokers that we have started, read as `tail -f` does."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

_CHUNK = 65536


def read(paths: Mapping[str, Path], follow: bool) -> Iterator[bytes]:
    """What the files have, as it comes; whole lines, with the name of their file before them where it has one.

    Args:
        paths: files by name.
        follow: go on as they grow. Nothing new is b"": wait a little before asking again.
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
    """A line, with where it comes from before it."""
    return (f"{name} | ".encode() if name else b"") + line + b"\n"
