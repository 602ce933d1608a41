"""The account of what queues hold. In this simplest form nothing is written down (`--in-memory`)."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.message import Dead, Message
from mqtool.broker.embedded.model.shelf import MemoryShelf, Shelf
from mqtool.codecs.field_tables import Table

# What an entry costs besides its body: bytes of resident memory, among 300,000 with message ids on CPython 3.11.
# Without an id, messages share their header, and it is 250.
_ENTRY_OVERHEAD = 500

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
