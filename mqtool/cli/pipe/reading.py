"""Reading what comes in: from files and pipes, in chunks, and cut into pieces."""

import os
import select
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.errors import BadData, UsageError

Thing = TypeVar("Thing")

STDIN = 0
_CHUNK = 256 * 1024
#: Seconds between two looks at whether we were asked to stop, while nothing comes.
LOOK_UP = 0.25


def has_input(descriptor: int) -> bool:
    """Whether something is piped or redirected in: not a terminal, and not /dev/null."""
    try:
        return not stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def opened(path: Path | None) -> int:
    """A file to read, as a descriptor; stdin without one, and for "-".

    Raises:
        UsageError: it cannot be read.
    """
    if path is None or str(path) == "-":
        return STDIN
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def text_of(path: Path) -> str:
    """A text file, or stdin for "-". Raises as opened() does, also if it is not text."""
    with open(opened(path), encoding="utf-8", closefd=str(path) != "-") as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise UsageError(f"cannot read {path}: it is not text") from error


def fraction(descriptor: int) -> Callable[[], float] | None:
    """How much of a file was read, from 0 to 1; None for what is not a file."""
    if not output.is_file(descriptor):
        return None
    size = max(1, os.fstat(descriptor).st_size)

    def fraction() -> float:
        try:
            return min(1.0, os.lseek(descriptor, 0, os.SEEK_CUR) / size)
        except OSError:  # it was closed at its end
            return 1.0

    return fraction


def whole(descriptor: int) -> Iterator[bytes | None]:
    """A file to its end, even when asked to stop, which Input heeds."""
    while chunk := os.read(descriptor, _CHUNK):
        yield chunk


def chunks(descriptor: int) -> Iterator[bytes | None]:
    """What can be read, as it comes; None while nothing does. Ends at the end of the input, or when asked to stop."""
    while stopping.requested() is None:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
            while not select.select([descriptor], [], [], LOOK_UP)[0]:
                if stopping.requested() is not None:
                    return
                yield None
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            continue
        except OSError as error:
            raise BadData(f"cannot read the input: {error.strerror}") from error
        if not chunk:
            return
        yield chunk


def delimited(chunks: Iterator[bytes | None], delimiter: bytes) -> Iterator[bytes | None]:
    """The pieces between delimiters; a last one without counts too, unless we were asked to stop in its middle."""
    return flat(delimited_lots(chunks, delimiter))


def flat(lots: Iterable[Sequence[Thing]]) -> Iterator[Thing | None]:
    """What is in lots, one after another; None for an empty one."""
    return chain.from_iterable(lot or (None,) for lot in lots)


def delimited_lots(chunks: Iterator[bytes | None], delimiter: bytes) -> Iterator[list[bytes]]:
    """The pieces between delimiters, those of a chunk together; none where nothing comes right now."""
    rest: list[bytes] = []
    for chunk in chunks:
        if chunk is None:
            yield []
            continue
        if len(delimiter) > 1 and rest:  # the delimiter may have been cut in two
            chunk = b"".join(rest) + chunk
            rest = []
        pieces = chunk.split(delimiter)
        rest.append(pieces[0])
        if len(pieces) == 1:
            continue
        pieces[0] = b"".join(rest)
        rest = [last] if (last := pieces.pop()) else []
        yield pieces
    last = b"".join(rest)
    if last and stopping.requested() is None:
        yield [last]
