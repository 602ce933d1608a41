"""Where the segments of streams are kept: in memory, or (in `store`) in files."""

from collections.abc import Callable, Iterable
from typing import Protocol


class Octets(Protocol):
    """Where the octets of a segment are."""

    def size(self) -> int:
        """Return how many are there."""

    def write(self, position: int, data: bytes) -> None:
        """Put octets at a position, over what an attempt that failed has left there.

        Raises:
            OSError: the disk does not take them.
        """

    def sync(self) -> None:
        """Return once all is on the disk.

        Raises:
            OSError: the disk does not take it.
        """

    def read(self, position: int, size: int) -> bytes:
        """Return octets from a position on, fewer at the end.

        Raises:
            OSError: they cannot be read.
        """

    def cut(self, size: int) -> None:
        """Keep only the first of them, this many, since what follows was not written in full."""

    def close(self) -> None:
        """No more will be written for now."""

    def delete(self) -> None:
        """Delete them."""


class Shelf(Protocol):
    """Where the segments of one log are."""

    def existing(self) -> Iterable[tuple[int, Octets]]:
        """Return the segments from before a restart with their first offsets, in order."""

    def new(self, offset: int) -> Octets:
        """Return the octets of a new segment with this first offset."""

    def delete(self) -> None:
        """Delete what is left when all segments are deleted."""


class MemoryOctets:
    """The octets of a segment in memory.

    Args:
        hold: told how many have come, or gone.
    """

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold
        self._data = bytearray()

    def size(self) -> int:
        """Return how many are there."""
        return len(self._data)

    def write(self, position: int, data: bytes) -> None:
        """Put octets at a position."""
        before = len(self._data)
        self._data[position:] = data
        self._hold(len(self._data) - before)

    def sync(self) -> None:
        """Do nothing: there is no disk."""

    def read(self, position: int, size: int) -> bytes:
        """Return octets from a position on, fewer at the end."""
        with memoryview(self._data) as view:
            return bytes(view[position : position + size])

    def cut(self, size: int) -> None:
        """Keep only the first of them, this many."""
        self.write(size, b"")

    def close(self) -> None:
        """Do nothing: they take what they take."""

    def delete(self) -> None:
        """Delete them."""
        self.cut(0)


class MemoryShelf:
    """The segments of one log in memory.

    Args:
        hold: told how many octets have come, or gone.
    """

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold

    def existing(self) -> Iterable[tuple[int, Octets]]:
        """Return nothing: memory does not survive a restart."""
        return ()

    def new(self, offset: int) -> Octets:  # noqa: ARG002
        """Return the octets of a new segment."""
        return MemoryOctets(self._hold)

    def delete(self) -> None:
        """Do nothing: there are only the segments."""
