"""Where the segments of streams are kept: in memory, or (in `store`) in files."""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from mqtool.broker.embedded.model.amqp_message import Dead, Message
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.codecs.field_tables import Table


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


# What an entry costs besides its body: bytes of resident memory, among 300,000 with message ids on CPython 3.11.
# Without an id, messages share their header, and it is 250.
_ENTRY_OVERHEAD = 500

_MEMORY_FRACTION = 0.4
# What a container may have: in version 2 and in version 1.
_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# What a message costs that is paged out: an integer, and its place in a queue.
_PAGED_OUT = 40

# Stored messages are paged out as long as those in memory take more than this.
_ROOMY = 32 * 1024 * 1024


class Log(Protocol):
    """What a ledger needs of the log of a stream."""

    @property
    def is_watched(self) -> bool:
        """Whether somebody waits for what is to be written."""

    def prepare(self) -> None:
        """Say what is to be written now, besides what the disk has not taken before."""

    def write(self) -> None:
        """Write what is prepared and wait for the disk; from any thread, again after an error."""

    def commit(self) -> None:
        """Let readers have what has been written."""


def default_memory_limit(control_groups: Sequence[str] = _CONTROL_GROUPS) -> int:
    """Return RabbitMQ's default high-water mark: 0.4 of the memory that the machine or container has, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in control_groups:
        with contextlib.suppress(OSError, ValueError):  # there is none, or "max": no limit
            memory = min(memory, int(Path(path).read_text()))
    return int(memory * _MEMORY_FRACTION)


class Ledger:
    """Adds up the memory that messages take; a subclass writes down what must survive the process.

    Attributes:
        held_bytes: what the messages in all queues take.
        when_changed: called with held_bytes after each change.
        group: the number of the group that goes to the disk next; all in it get there together.
        on_disk: whether there is a disk.
        directory: where it writes; where it would, if there is none.
    """

    on_disk: ClassVar[bool] = False
    directory = Path("/")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.group = 1
        self.when_changed: Callable[[int], None] = lambda _: None
        self._paged_out_bytes = 0
        self._position = 0

    def disk_free(self) -> int:
        """Return how many bytes are free where it writes."""
        found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    def enter(self, message: Message, expires_at: int | None) -> Entry:
        """A queue or a delayed exchange takes a new message in: return its entry there."""
        self._position = position = self._position + 1
        self.held_bytes = held = self.held_bytes + len(message.body) + _ENTRY_OVERHEAD
        self.when_changed(held)
        return Entry(message, position, expires_at)

    def hold(self, entry: Entry) -> None:
        """A queue or a delayed exchange has a message again that it had before a restart."""
        self.held_bytes += len(entry.message.body) + _ENTRY_OVERHEAD
        self.when_changed(self.held_bytes)

    def drop(self, entry: Entry) -> None:
        """A message has left for good."""
        self.held_bytes -= len(entry.message.body) + _ENTRY_OVERHEAD
        if entry.row:
            self.removed(entry.row)
        self.when_changed(self.held_bytes)

    def drop_paged_out(self, row: int) -> None:
        """A message that is paged out has left for good."""
        self._page(-_PAGED_OUT)
        self.removed(row)

    # -- long queues

    def page_out(self, entry: Entry) -> bool:
        """Whether to forget a stored message until it is read back; it must be as it was stored."""
        # Of what has died it would be forgotten.
        if self.held_bytes - self._paged_out_bytes <= _ROOMY or isinstance(entry.message, Dead):
            return False
        self.held_bytes -= len(entry.message.body) + _ENTRY_OVERHEAD
        self._page(_PAGED_OUT)
        return True

    def page_in(self, rows: Sequence[int]) -> list[Entry]:
        """Read messages back: those in the first of these rows, and more of them if they are not large."""
        entries = self.read(rows)
        self.held_bytes += sum(len(entry.message.body) + _ENTRY_OVERHEAD for entry in entries)
        self._page(-_PAGED_OUT * len(entries))
        return entries

    def _page(self, by: int) -> None:
        self._paged_out_bytes += by
        self.held_bytes += by
        self.when_changed(self.held_bytes)

    # -- streams

    def shelf(self, holder: int) -> Shelf:  # noqa: ARG002
        """Return the place for the log of the stream with this key."""
        return MemoryShelf(self._hold_octets)

    def _hold_octets(self, by: int) -> None:
        self.held_bytes += by
        self.when_changed(self.held_bytes)

    def write_log(self, log: Log) -> None:
        """Write what a log has to write with the next group."""

    # -- the end

    def after_commit(self, what: Callable[[], None]) -> None:
        """Do something once everything added so far is on disk."""
        what()

    def close(self, returned: Iterable[Entry] = ()) -> None:
        """Finish what is being written; `returned` are the messages that clients have had before."""

    # In memory there is nothing to do for these.

    def added(self, holder: int, entry: Entry) -> None:
        """Store a message of the queue or delayed exchange with this key; sets the entry's row."""

    def removed(self, row: int) -> None:
        """Delete a stored message."""

    def read(self, rows: Sequence[int]) -> list[Entry]:  # noqa: ARG002
        """Read stored messages, up to LOT, in this order; not all at once if they are large."""
        return []

    def delivering(self, holder: int) -> None:
        """Note that a client is about to see a message of this queue for the first time since the start."""

    def new_key(self) -> int:
        """Return a number for a new durable queue or exchange."""
        return 0

    def save(self, kind: str, key: str, value: Table) -> None:
        """Store a definition.

        Raises:
            ConnectionException: 506, the disk does not take it.
        """

    def forget(self, kind: str, key: str) -> None:
        """Delete a stored definition."""
