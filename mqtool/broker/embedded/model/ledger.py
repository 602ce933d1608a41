"""The ledger: counts the memory that messages take, and keeps streams in memory. Its subclass in `store/` uses a disk.

This module also defines the interfaces of a stream's segments and log, and the encoding of definitions.
"""

import asyncio
import contextlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from mqtool.broker.embedded.model.amqp_errors import precondition_failed
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.footprint import of_message
from mqtool.codecs.field_tables import Table, Value, decode_table, encode_table
from mqtool.message import MAX_DEPTH

#: The memory of a message that is paged out, in bytes: an integer in a deque.
_PAGED_OUT = 40

#: The default of `Ledger.roomy_bytes`.
_ROOMY = 32 * 1024 * 1024

#: The default memory limit, as a fraction of the available memory.
_MEMORY_FRACTION = 0.4

#: The files in which Linux reports the memory limit of a container, for control groups version 2 and version 1.
_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

#: How deep definitions may be nested: a little deeper than the clients' tables that they contain.
_DEFINITION_DEPTH = MAX_DEPTH + 8


#: The fields of definitions that are kept exactly as a client sent them, including bytes that are not UTF-8.
_CLIENTS_TABLES = ("arguments", "definition")


class SegmentData(Protocol):
    """The bytes of one segment of a stream. All methods raise OSError if the disk cannot be read or written."""

    def size(self) -> int:
        """Return the number of bytes."""

    def write(self, position: int, data: bytes) -> None:
        """Write bytes at this position, overwriting any that a failed attempt has left there."""

    def sync(self) -> None:
        """Block until all bytes are on disk."""

    def read(self, position: int, size: int) -> bytes:
        """Return `size` bytes starting at `position`, or fewer at the end."""

    def cut(self, size: int) -> None:
        """Truncate to `size` bytes: the rest is incomplete or damaged."""

    def close(self) -> None:
        """Close the file until the next write."""

    def delete(self) -> None:
        """Delete the bytes."""


class Segments(Protocol):
    """The stored segments of one stream.

    Attributes:
        are_lasting: True if they survive a restart.
    """

    @property
    def are_lasting(self) -> bool: ...

    def existing(self) -> Iterable[tuple[int, SegmentData]]:
        """Return the segments that exist when the broker starts, in order, each with its first offset."""

    def new(self, offset: int) -> SegmentData:
        """Return an empty segment with this first offset."""

    def delete(self) -> None:
        """Delete all segments and, if they are files, their directory."""


class MemorySegment:
    """The bytes of a segment in memory. Calls `hold` with the number of bytes added, which is negative for removals."""

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold
        self._data = bytearray()

    def size(self) -> int:
        return len(self._data)

    def write(self, position: int, data: bytes) -> None:
        before = len(self._data)
        self._data[position:] = data
        self._hold(len(self._data) - before)

    def sync(self) -> None:
        """Do nothing: there is no disk."""

    def read(self, position: int, size: int) -> bytes:
        with memoryview(self._data) as view:
            return bytes(view[position : position + size])

    def cut(self, size: int) -> None:
        self.write(size, b"")

    def close(self) -> None:
        """Do nothing: there is no file."""

    def delete(self) -> None:
        self.cut(0)


class MemorySegments:
    """The segments of a stream in memory, which do not survive a restart."""

    are_lasting = False

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold

    def existing(self) -> Iterable[tuple[int, SegmentData]]:
        return ()

    def new(self, offset: int) -> SegmentData:  # noqa: ARG002
        return MemorySegment(self._hold)

    def delete(self) -> None:
        """Do nothing: deleting a MemorySegment frees its memory."""


class Log(Protocol):
    """The log of a stream, as the ledger sees it."""

    @property
    def is_watched(self) -> bool:
        """True if a reader is waiting for new messages."""

    def prepare(self) -> None:
        """Collect the data for the next write(): all new data, and any left over from a failed write()."""

    def write(self) -> None:
        """Write the prepared data and sync it to disk. Can be called on any thread, and again after an error."""

    def commit(self) -> None:
        """Make the written data available to readers."""

    def delete_files(self) -> None:
        """Delete the segments of a deleted stream."""


def definition_key(names: Sequence[str | bytes]) -> bytes:
    """Return a unique key for these names: the bytes of each name, preceded by its length."""
    parts = [name.encode(errors="surrogateescape") if isinstance(name, str) else name for name in names]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def encode_definition(value: Table) -> bytes:
    """Encode a definition. Raises ChannelException 406 if a restarted broker would be unable to read it back."""
    try:
        data = encode_table(value)
        decode_table(data, max_depth=_DEFINITION_DEPTH)
    except (ValueError, TypeError, struct.error, RecursionError) as error:
        raise precondition_failed(f"a definition cannot be stored: {error}") from error
    return data


def decode_definition(data: bytes) -> Table:
    """Decode a stored definition; raise ValueError if it is damaged. Bytes that are not UTF-8 become surrogates."""
    table = decode_table(data, max_depth=_DEFINITION_DEPTH)[0]
    return {name: item if name in _CLIENTS_TABLES else _with_names(item) for name, item in table.items()}


def _with_names(value: Value) -> Value:
    if isinstance(value, dict):
        return {name: _with_names(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_names(item) for item in value]
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def default_memory_limit(control_groups: Sequence[str] = _CONTROL_GROUPS) -> int:
    """Return RabbitMQ's default memory limit: 40% of the machine's or container's memory, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in control_groups:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
            memory = min(memory, int(Path(path).read_text()))
    return int(memory * _MEMORY_FRACTION)


def disk_free(directory: Path) -> int:
    """Return the free bytes on the disk that contains a directory."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class Ledger:
    """Counts the memory that messages take. A subclass also stores durable definitions and messages on disk.

    Attributes:
        held_bytes: the memory that messages and clients take, in bytes.
        quiet_bytes: while held_bytes is not above this, changes are not reported.
        definition_bytes: the part of held_bytes that queues (without messages), exchanges, bindings and global
            parameters take.
        most_definition_bytes: while definition_bytes is above this, clients cannot declare any more.
        most_bytes: while held_bytes is above this, the broker makes no further copies of messages.
        when_changed: called with held_bytes after each other change.
        group: the number of the next group of changes. All changes in a group are written to disk together.
        definitions_saved: the number of definitions saved or deleted so far, including those in the next group.
        on_disk: True if the ledger writes to disk.
        directory: the data directory; if there is none, the directory whose free disk space is checked.
        roomy_bytes: stored messages are paged out while more bytes than this are held in memory.
    """

    on_disk: ClassVar[bool] = False
    directory = Path("/")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.roomy_bytes = _ROOMY
        self.group = 1
        self.definitions_saved = 0
        self.quiet_bytes = -1
        self.definition_bytes = 0
        self.most_definition_bytes = self.most_bytes = math.inf
        self.when_changed: Callable[[int], None] = lambda _: None
        self._paged_out_bytes = 0
        self._position = 0

    def disk_free(self) -> int:
        return disk_free(self.directory)

    def enter(self, message: BrokerMessage, expires_at: int | None) -> BacklogEntry:
        """Create the entry for a new message in a queue or a delayed exchange, and count its memory."""
        self._position = position = self._position + 1
        self.held_bytes = held = self.held_bytes + of_message(message)
        if held > self.quiet_bytes:
            self.when_changed(held)
        return BacklogEntry(message, position, expires_at)

    def hold(self, entry: BacklogEntry) -> None:
        """Count the memory of a message that was read from disk when the broker started, or that has been changed."""
        self.hold_bytes(of_message(entry.message))

    def drop(self, entry: BacklogEntry) -> None:
        """Stop counting the memory of a message that has left its queue, and delete any copy of it on disk."""
        self.held_bytes = held = self.held_bytes - of_message(entry.message)
        if entry.row:
            self.removed(entry.row)
        if held > self.quiet_bytes:
            self.when_changed(held)

    def set_aside(self, entry: BacklogEntry) -> None:
        """Stop counting the memory of a message, but keep any copy on disk. It cannot be processed, or changes."""
        self.hold_bytes(-of_message(entry.message))

    def drop_purged(self, purged: BacklogEntry | int) -> None:
        """Drop a message of a queue that was purged or deleted; a paged-out message is represented by its row."""
        if isinstance(purged, int):
            self._page(-_PAGED_OUT)
            row = purged
        else:
            self.hold_bytes(-of_message(purged.message))
            row = purged.row
        if row:
            self.removed(row, purged=True)

    def page_out(self, entry: BacklogEntry) -> bool:
        """Page out a stored message if memory is short. If True is returned, the caller must keep only `entry.row`."""
        # A dead letter would be read back without the milliseconds of its deaths.
        if self.held_bytes - self._paged_out_bytes <= self.roomy_bytes or entry.message.is_dead:
            return False
        self.held_bytes -= of_message(entry.message)
        self._page(_PAGED_OUT)
        return True

    def page_in(self, rows: Sequence[int]) -> list[BacklogEntry]:
        """Read paged-out messages back, in the order of `rows`. If they are large, return only the first few."""
        entries = self.read(rows)
        self.held_bytes += sum(of_message(entry.message) for entry in entries)
        self._page(-_PAGED_OUT * len(entries))
        return entries

    def _page(self, by: int) -> None:
        self._paged_out_bytes += by
        self.hold_bytes(by)

    def hold_bytes(self, by: int, *, definition: bool = False) -> None:
        """Count memory that holds messages or other data of clients; `by` is negative for freed memory.

        Args:
            definition: True for a queue, exchange or binding.
        """
        self.held_bytes += by
        if definition:
            self.definition_bytes += by
        if self.held_bytes > self.quiet_bytes:
            self.when_changed(self.held_bytes)

    def save(self, kind: str, names: Sequence[str | bytes], value: Table) -> None:
        """Store a definition.

        Args:
            kind: the kind of definition, such as `queue`.
            names: the names that identify the definition among those of its kind, starting with its virtual host, if
                any.
            value: the content, as decode_definition() will return it when the broker is restarted.

        Raises:
            AmqpException: 406, the definition could not be read back; 506, it cannot be written.
        """
        self.write_definition(kind, definition_key(names), encode_definition(value))

    def segments(self, holder: int) -> Segments:  # noqa: ARG002
        """Return the stored segments of the stream with this key."""
        return MemorySegments(self.hold_bytes)

    def discard_log(self, log: Log) -> None:
        log.delete_files()

    async def stored(self) -> None:
        """Wait until everything added so far is on disk."""
        done = asyncio.Event()
        self.after_commit(done.set)
        await done.wait()

    def after_commit(self, what: Callable[[], None]) -> None:
        """Call a function once everything added so far is on disk."""
        what()

    # A ledger with a disk overrides the following methods.

    def close(self, returned: Iterable[BacklogEntry] = ()) -> None:
        """Finish writing. `returned` are requeued messages, to be marked as redelivered after a restart."""

    def write_log(self, log: Log) -> None:
        """Write the new data of a stream with the next group of changes."""

    def added(self, holder: int, entry: BacklogEntry) -> None:
        """Store a message of the queue or delayed exchange with the key `holder`, and set the entry's row."""

    def removed(self, row: int, *, purged: bool = False) -> None:
        """Delete a stored message; if it was `purged`, not necessarily with the next group."""

    def read(self, rows: Sequence[int]) -> list[BacklogEntry]:  # noqa: ARG002
        """Read up to BATCH messages, in the order of `rows`. If they are large, return only the first few."""
        return []

    def delivering(self, holder: int) -> None:
        """Record that the queue with this key is making its first delivery since the broker started."""

    def new_key(self) -> int:
        """Return an unused key for a new durable queue or exchange."""
        return 0

    def write_definition(self, kind: str, key: bytes, value: bytes) -> None:
        """Store an encoded definition. Raises ConnectionException 506 if it cannot be written."""

    def forget(self, kind: str, names: Sequence[str | bytes]) -> None:
        """Delete a stored definition, if any. Deleting a virtual host deletes all definitions in it."""
