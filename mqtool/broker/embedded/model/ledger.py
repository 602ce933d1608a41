"""Where queues keep what they hold: in memory (this file), or also on disk (`store`)."""

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from mqtool.broker.embedded.model.amqp_errors import precondition_failed
from mqtool.broker.embedded.model.amqp_message import Dead, Message
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.codecs.field_tables import Table, Value, decode_table, encode_table
from mqtool.message import MAX_DEPTH

#: What a message costs besides its body: bytes of resident memory, measured with 300,000 that have message ids, on
#: CPython 3.11. Without an id, messages share their header, and it is 250.
_ENTRY_OVERHEAD = 500

#: What a message costs that is paged out: an integer, and its place in a deque.
_PAGED_OUT = 40

#: Stored messages are paged out while those in memory take more bytes than this.
_ROOMY = 32 * 1024 * 1024

#: The part of the memory that messages may take by default.
_MEMORY_FRACTION = 0.4

#: Where Linux says how much memory a container may use, in versions 2 and 1 of control groups.
_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

#: A definition is a table around the tables of a client, so it may be nested a little deeper than those.
_DEFINITION_DEPTH = MAX_DEPTH + 8


#: The parts of definitions that stay as a client has sent them, bytes that are not text included.
_CLIENTS_TABLES = ("arguments", "definition")


class SegmentData(Protocol):
    """The bytes of one segment of a stream."""

    def size(self) -> int:
        """Return the number of bytes."""

    def write(self, position: int, data: bytes) -> None:
        """Write bytes at a position, over what a failed attempt has left there.

        Raises:
            OSError: the disk does not take them.
        """

    def sync(self) -> None:
        """Block until all bytes are on the disk.

        Raises:
            OSError: the disk does not take them.
        """

    def read(self, position: int, size: int) -> bytes:
        """Return this many bytes from a position on, fewer at the end.

        Raises:
            OSError: they cannot be read.
        """

    def cut(self, size: int) -> None:
        """Keep only the first bytes, this many: the rest was not written in full."""

    def close(self) -> None:
        """Close the file until the next write."""

    def delete(self) -> None:
        """Delete the bytes."""


class Segments(Protocol):
    """Where the segments of one stream are kept."""

    def existing(self) -> Iterable[tuple[int, SegmentData]]:
        """Return the segments from before a restart with their first offsets, in order."""

    def new(self, offset: int) -> SegmentData:
        """Return an empty segment with this first offset."""

    def delete(self) -> None:
        """Delete all segments, and what they are kept in."""


class MemorySegment:
    """The bytes of a segment in memory.

    Args:
        hold: called with the number of bytes that were added, negative if they were removed.
    """

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold
        self._data = bytearray()

    def size(self) -> int:
        """Return the number of bytes."""
        return len(self._data)

    def write(self, position: int, data: bytes) -> None:
        """Write bytes at a position."""
        before = len(self._data)
        self._data[position:] = data
        self._hold(len(self._data) - before)

    def sync(self) -> None:
        """Do nothing: there is no disk."""

    def read(self, position: int, size: int) -> bytes:
        """Return this many bytes from a position on, fewer at the end."""
        with memoryview(self._data) as view:
            return bytes(view[position : position + size])

    def cut(self, size: int) -> None:
        """Keep only the first bytes, this many."""
        self.write(size, b"")

    def close(self) -> None:
        """Do nothing: there is no file."""

    def delete(self) -> None:
        """Delete the bytes."""
        self.cut(0)


class MemorySegments:
    """The segments of one stream in memory.

    Args:
        hold: called with the number of bytes that were added, negative if they were removed.
    """

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold

    def existing(self) -> Iterable[tuple[int, SegmentData]]:
        """Return nothing: memory does not survive a restart."""
        return ()

    def new(self, offset: int) -> SegmentData:  # noqa: ARG002
        """Return an empty segment."""
        return MemorySegment(self._hold)

    def delete(self) -> None:
        """Do nothing: each segment is deleted by itself."""


class Log(Protocol):
    """What a ledger needs of the log of a stream."""

    @property
    def is_watched(self) -> bool:
        """Whether a reader waits for new messages."""

    def prepare(self) -> None:
        """Decide what to write now, besides what could not be written before."""

    def write(self) -> None:
        """Write what is prepared and wait for the disk; on any thread, again after an error."""

    def commit(self) -> None:
        """Let readers have what has been written."""

    def delete_files(self) -> None:
        """Delete the segments of a deleted stream."""


def definition_key(names: Sequence[str | bytes]) -> bytes:
    """Return a key that no other names have: the bytes of each on the wire, after their number."""
    parts = [name.encode(errors="surrogateescape") if isinstance(name, str) else name for name in names]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def encode_definition(value: Table) -> bytes:
    """Encode a definition, and check that it can be read back at the next start.

    Raises:
        ChannelException: 406, it cannot.
    """
    try:
        data = encode_table(value)
        decode_table(data, max_depth=_DEFINITION_DEPTH)
    except (ValueError, TypeError, struct.error, RecursionError) as error:
        raise precondition_failed(f"a definition cannot be stored: {error}") from error
    return data


def decode_definition(data: bytes) -> Table:
    """Decode a stored definition, with names that are not UTF-8 as text, as the rest of the broker has them.

    Raises:
        ValueError: it is damaged.
    """
    table = decode_table(data, max_depth=_DEFINITION_DEPTH)[0]
    return {name: item if name in _CLIENTS_TABLES else _with_names(item) for name, item in table.items()}


def _with_names(value: Value) -> Value:
    if isinstance(value, dict):
        return {name: _with_names(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_names(item) for item in value]
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def default_memory_limit(control_groups: Sequence[str] = _CONTROL_GROUPS) -> int:
    """Return RabbitMQ's default high-water mark: 0.4 of the memory that the machine or container has, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in control_groups:
        with contextlib.suppress(OSError, ValueError):  # there is none, or "max": no limit
            memory = min(memory, int(Path(path).read_text()))
    return int(memory * _MEMORY_FRACTION)


def disk_free(directory: Path) -> int:
    """Return the number of bytes that are free on the disk of a directory."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class Ledger:
    """Adds up the memory that messages take; a subclass also writes to disk what must survive the process.

    Attributes:
        held_bytes: what the messages in all queues take.
        when_changed: called with held_bytes after each change.
        group: the number of the group that is written next; all in it get to the disk together.
        definitions_saved: how many definitions have been saved or deleted; on disk only after the next group.
        on_disk: whether there is a disk.
        directory: the data directory; without one, a directory on the disk where it would be.
    """

    on_disk: ClassVar[bool] = False
    directory = Path("/")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.group = 1
        self.definitions_saved = 0
        self.when_changed: Callable[[int], None] = lambda _: None
        self._paged_out_bytes = 0
        self._position = 0

    def disk_free(self) -> int:
        """Return the number of bytes that are free on the disk."""
        return disk_free(self.directory)

    def enter(self, message: Message, expires_at: int | None) -> Entry:
        """Return the entry of a new message in a queue or a delayed exchange."""
        self._position = position = self._position + 1
        self.held_bytes = held = self.held_bytes + len(message.body) + _ENTRY_OVERHEAD
        self.when_changed(held)
        return Entry(message, position, expires_at)

    def hold(self, entry: Entry) -> None:
        """Count a message that was stored before a restart."""
        self._hold(len(entry.message.body) + _ENTRY_OVERHEAD)

    def drop(self, entry: Entry) -> None:
        """Delete a message that has left its queue."""
        self.held_bytes -= len(entry.message.body) + _ENTRY_OVERHEAD
        if entry.row:
            self.removed(entry.row)
        self.when_changed(self.held_bytes)

    def set_aside(self, entry: Entry) -> None:
        """Let go of a message that cannot be handled. If it is stored, it stays on disk until the next start."""
        self._hold(-len(entry.message.body) - _ENTRY_OVERHEAD)

    def drop_paged_out(self, row: int) -> None:
        """Delete a message that is paged out."""
        self._page(-_PAGED_OUT)
        self.removed(row)

    def page_out(self, entry: Entry) -> bool:
        """Decide whether to forget a stored message until it is read back. It must be as it was stored."""
        # What is known of a dead letter is not stored.
        if self.held_bytes - self._paged_out_bytes <= _ROOMY or isinstance(entry.message, Dead):
            return False
        self.held_bytes -= len(entry.message.body) + _ENTRY_OVERHEAD
        self._page(_PAGED_OUT)
        return True

    def page_in(self, rows: Sequence[int]) -> list[Entry]:
        """Read messages back: at least the first of these rows, and more of them if they are not large."""
        entries = self.read(rows)
        self.held_bytes += sum(len(entry.message.body) + _ENTRY_OVERHEAD for entry in entries)
        self._page(-_PAGED_OUT * len(entries))
        return entries

    def _page(self, by: int) -> None:
        self._paged_out_bytes += by
        self._hold(by)

    def _hold(self, by: int) -> None:
        self.held_bytes += by
        self.when_changed(self.held_bytes)

    def save(self, kind: str, names: Sequence[str | bytes], value: Table) -> None:
        """Store a definition.

        Args:
            kind: such as `queue`.
            names: what identifies it among those of its kind, the virtual host first.
            value: what decode_definition() returns at the next start.

        Raises:
            ChannelException: 406, it could not be read back.
            ConnectionException: 506, it cannot be written.
        """
        self.write_definition(kind, definition_key(names), encode_definition(value))

    def segments(self, holder: int) -> Segments:  # noqa: ARG002
        """Return where the segments of the stream with this key are kept."""
        return MemorySegments(self._hold)

    def discard_log(self, log: Log) -> None:
        """Delete the segments of a deleted stream."""
        log.delete_files()

    async def stored(self) -> None:
        """Wait until everything added so far is on disk."""
        done = asyncio.Event()
        self.after_commit(done.set)
        await done.wait()

    def after_commit(self, what: Callable[[], None]) -> None:
        """Call a function once everything added so far is on disk."""
        what()

    # A ledger in memory has nothing to do for the following.

    def close(self, returned: Iterable[Entry] = ()) -> None:
        """Finish writing; `returned` are the messages that clients have had before."""

    def write_log(self, log: Log) -> None:
        """Write what a stream has to write with the next group."""

    def added(self, holder: int, entry: Entry) -> None:
        """Store a message of the queue or delayed exchange with this key; sets the entry's row."""

    def removed(self, row: int) -> None:
        """Delete a stored message."""

    def read(self, rows: Sequence[int]) -> list[Entry]:  # noqa: ARG002
        """Read stored messages, up to BATCH, in this order; not all at once if they are large."""
        return []

    def delivering(self, holder: int) -> None:
        """Note that a client is about to see a message of this queue for the first time since the start."""

    def new_key(self) -> int:
        """Return a number for a new durable queue or exchange."""
        return 0

    def write_definition(self, kind: str, key: bytes, value: bytes) -> None:
        """Store an encoded definition.

        Raises:
            ConnectionException: 506, it cannot be written.
        """

    def forget(self, kind: str, names: Sequence[str | bytes]) -> None:
        """Delete a stored definition, if there is one; with a virtual host, all definitions in it."""
