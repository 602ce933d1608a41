"""Durable things in an SQLite file in WAL mode, written in groups.

Messages are collected while the group before them is on its way to the disk. So one fsync serves all messages that
came in meanwhile, and a message that is consumed before its group is written costs none. Definitions (queues,
exchanges, bindings, users) are rare, and are written at once.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from mqtool.broker.embedded.model.amqp_errors import storage_failed
from mqtool.broker.embedded.model.amqp_message import HeaderReader
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.ledger import Ledger, Log, Shelf
from mqtool.broker.embedded.store.database import StoredEntry, all_entries, entries_in, open_database, write_definitions
from mqtool.codecs.field_tables import Table, decode_table, encode_table

log = logging.getLogger("mqtool.broker.embedded")

STREAMS = "streams"
"""The directory of the streams in a data directory; each has one of its own in it, with its key for a name."""

# How long an acknowledgement, or a message published without confirm, may wait to be written.
_UNHURRIED_SECONDS = 0.02

# How long to wait before a group that the disk did not take is tried again.
_RETRY_SECONDS = 0.5


@dataclass
class Group:
    """What is written in one transaction: messages by row, rows, definitions by kind and key (None to delete).

    Attributes:
        logs: the streams with something to write, each to its own files.
        waiting: what to call once it is on disk.
    """

    # Plain tuples in the order of StoredEntry: they cost half as much.
    added: dict[int, tuple[object, ...]] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    definitions: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    waiting: list[Callable[[], None]] = field(default_factory=list)
    logs: dict[Log, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.definitions or self.waiting or self.logs)

    def then(self, later: "Group") -> "Group":
        """Return a group that is this one and a later one."""
        return Group(
            self.added | later.added,
            self.removed + later.removed,
            self.definitions | later.definitions,
            self.waiting + later.waiting,
            self.logs | later.logs,
        )


class Storage(Ledger):
    """The ledger that is kept on disk.

    A group that the disk does not take is kept in memory, unconfirmed, and tried again until the disk takes it.

    Args:
        directory: where; made if it does not exist.

    Attributes:
        damage: what could not be read, in words; None if nothing.
        when_failed: called with the error each time the disk does not take something.
        when_recovered: called when it has taken everything after that.

    Raises:
        OSError: the directory cannot be used, another process is using it, or nothing in it can be read.
    """

    on_disk = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        database = open_database(directory)
        self._db = database.db
        self.damage = database.damage
        self.when_failed: Callable[[Exception], None] = lambda _: None
        self.when_recovered: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="embedded-broker-commit")
        self._next = Group()
        self._flying = Group()
        self._in_flight: Future[None] | None = None
        self._scheduled: asyncio.Handle | None = None
        self._hurried = self._failing = False
        self._position = self._db.execute("SELECT COALESCE(MAX(row), 0) FROM entry").fetchone()[0]
        self._last_recovered = self._position
        self._seen: set[int] = set()
        self._headers = HeaderReader()
        self._key = 0

    # -- reading, before the broker starts

    def definitions(self, kind: str) -> Iterator[tuple[str, Table]]:
        """Yield the definitions of a kind with their keys."""
        for key, value in self._db.execute("SELECT key, value FROM definition WHERE kind = ?", (kind,)):
            table = decode_table(value)[0]
            yield key, {name: _name(item) if isinstance(item, bytes) else item for name, item in table.items()}

    def entries(self) -> Iterator[StoredEntry]:
        """Yield the stored messages in the order in which they were published."""
        self._seen = {int(key) for key, _ in self.definitions("delivering")}
        yield from map(self._marked, all_entries(self._db))

    def _marked(self, stored: StoredEntry) -> StoredEntry:
        """Mark a message as redelivered if a client may have seen it before the broker was killed."""
        if stored.row > self._last_recovered or stored.holder not in self._seen:
            return stored
        return stored._replace(redelivered=1)

    def forget_rows(self, rows: list[int]) -> None:
        """Delete stored messages whose queue does not exist."""
        self._next.removed += rows
        self._schedule()

    def key_used(self, key: int) -> None:
        """Never give out this key again: it belongs to a recovered queue or exchange."""
        self._key = max(self._key, key)

    # -- definitions

    def new_key(self) -> int:
        """Return a number for a new durable queue or exchange."""
        self._key += 1
        return self._key

    def save(self, kind: str, key: str, value: Table) -> None:
        """Store a definition.

        Raises:
            ConnectionException: 506, the disk does not take it.
        """
        definition = {(kind, key): encode_table(value)}
        try:
            self._wait_for_group()
            write_definitions(self._db, definition)
        except sqlite3.Error as error:
            raise storage_failed(error) from error
        self._next.definitions.pop((kind, key), None)

    def forget(self, kind: str, key: str) -> None:
        """Delete a definition; a disk that does not take that now gets it with the next group."""
        self._now_or_later({(kind, key): None})

    def delivering(self, holder: int) -> None:
        """Note that a client is about to see a message of this queue.

        After a kill nobody knows which messages a client has seen, so all in this queue count as redelivered.
        Noting that once is cheaper than noting every delivery.
        """
        self._now_or_later({("delivering", str(holder)): encode_table({})})

    def _now_or_later(self, definitions: Mapping[tuple[str, str], bytes | None]) -> None:
        try:
            self._wait_for_group()
            write_definitions(self._db, definitions)
        except sqlite3.Error as error:
            self._next.definitions |= definitions
            self._failed(error)

    # -- messages

    def added(self, holder: int, entry: Entry) -> None:
        """Store a message; sets the entry's row."""
        entry.row = row = entry.position
        message = entry.message
        self._next.added[row] = (
            row,
            holder,
            entry.expires_at,
            entry.delivery_count,
            0,
            message.address,
            message.header.raw,
            message.body,
        )
        if self._scheduled is None:
            self._schedule()

    def removed(self, row: int) -> None:
        """Delete a stored message."""
        if self._next.added.pop(row, None) is None:
            self._next.removed.append(row)
            if self._scheduled is None:
                self._schedule()

    def read(self, rows: Sequence[int]) -> list[Entry]:
        """Read stored messages, up to LOT, in this order; not all at once if they are large.

        Raises:
            sqlite3.Error: they cannot be read.
        """
        written = [row for row in rows if row not in self._flying.added and row not in self._next.added]
        if written:
            self._wait_for_group()
            return [self._marked(stored).entry(self._headers) for stored in entries_in(self._db, written)]
        found = [self._flying.added.get(row) or self._next.added[row] for row in rows]
        return [StoredEntry._make(values).entry(self._headers) for values in found]

    # -- streams

    def shelf(self, holder: int) -> Shelf:
        """Return the place for the log of the stream with this key."""
        # Imported here: most brokers have no streams.
        from mqtool.broker.embedded.store.segment_files import FileShelf

        return FileShelf(self.directory / STREAMS / str(holder))

    def write_log(self, log: Log) -> None:
        """Write what a log has to write with the next group."""
        self._next.logs[log] = None
        if log.is_watched:
            self.after_commit(lambda: None)
        else:
            self._schedule()

    # -- groups

    def after_commit(self, what: Callable[[], None]) -> None:
        """Do something once everything added so far is on disk."""
        self._next.waiting.append(what)
        if not self._hurried:
            self._hurried = True
            if self._scheduled is not None and not self._failing:
                self._scheduled.cancel()
                self._scheduled = None
            self._schedule()

    def _schedule(self) -> None:
        """Write the next group: soon, or when the one under way is done."""
        if self._in_flight is not None or self._scheduled is not None:
            return
        if self._hurried:
            self._scheduled = self._loop.call_soon(self._write)
        else:
            self._scheduled = self._loop.call_later(_UNHURRIED_SECONDS, self._write)

    def _write(self) -> None:
        """Give a group to SQLite here, where nobody competes for the interpreter, and wait for the disk elsewhere."""
        self._scheduled = None
        self._hurried = False
        group, self._next = self._next, Group()
        self.group += 1
        try:
            self._begin(group)
        except sqlite3.Error as error:
            self._keep(group, error)
            return
        self._flying = group
        self._in_flight = future = self._committer.submit(_commit, self._db, group)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._written, future))

    def _begin(self, group: Group) -> None:
        """Give a group to SQLite, uncommitted."""
        for log_of_stream in group.logs:
            log_of_stream.prepare()
        self._db.execute("BEGIN")
        if group.added:
            self._db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", group.added.values())
        if group.removed:
            self._db.executemany("DELETE FROM entry WHERE row BETWEEN ? AND ?", _ranges(group.removed))
        write_definitions(self._db, group.definitions)

    def _written(self, future: "Future[None]") -> None:
        if self._in_flight is not future:
            return
        group, self._flying, self._in_flight = self._flying, Group(), None
        error = future.exception()
        if error is not None:
            self._keep(group, error)
            return
        if self._failing:
            self._failing = False
            self.when_recovered()
        for log_of_stream in group.logs:
            log_of_stream.commit()
        for what in group.waiting:
            what()
        if self._next:
            self._schedule()

    def _keep(self, group: Group, error: BaseException) -> None:
        """Keep a group that the disk did not take for the next attempt."""
        _roll_back(self._db)
        self._next = group.then(self._next)
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._failing = True
        self.when_failed(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._scheduled = self._loop.call_later(_RETRY_SECONDS, self._write)

    def _wait_for_group(self) -> None:
        """Block until the group under way is on disk or has failed."""
        if self._in_flight is not None:
            wait([self._in_flight])
            _roll_back(self._db)

    # -- the end

    def close(self, returned: Iterable[Entry] = ()) -> None:
        """Finish what is being written.

        Args:
            returned: the messages that clients have had before, so that after a clean stop nothing needs guessing.
        """
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._wait_for_group()
        failed = self._in_flight is not None and self._in_flight.exception() is not None
        group, self._in_flight = self._flying.then(self._next) if failed else self._next, None
        try:
            self._begin(group)
            self._db.executemany(
                "UPDATE entry SET redelivered = 1, delivery_count = ?, header = ? WHERE row = ?",
                ((entry.delivery_count, entry.message.header.raw, entry.row) for entry in returned),
            )
            self._db.executemany(
                "UPDATE entry SET redelivered = 1 WHERE holder = ? AND row <= ? AND NOT redelivered",
                ((holder, self._last_recovered) for holder in self._seen),
            )
            self._db.execute("DELETE FROM definition WHERE kind = 'delivering'")
            _commit(self._db, group)
            for log_of_stream in group.logs:
                log_of_stream.commit()
        except (sqlite3.Error, OSError) as error:
            log.error(
                "cannot write to the data directory: %s; %d unconfirmed messages are lost", error, len(group.added)
            )
        self._committer.shutdown()
        self._db.close()


def _commit(db: sqlite3.Connection, group: Group) -> None:
    """Wait until the disk has all of a group."""
    for log_of_stream in group.logs:
        log_of_stream.write()
    db.commit()


def _ranges(rows: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of rows that follow each other: deleted together, they cost half as much."""
    rows.sort()
    first = last = rows[0]
    for row in rows:
        if row > last + 1:
            yield first, last
            first = row
        last = row
    yield first, last


def _roll_back(db: sqlite3.Connection) -> None:
    """End the transaction of a group that failed; a commit that worked has left none."""
    if db.in_transaction:
        db.rollback()


def _name(raw: bytes) -> str:
    """Return a name that is not UTF-8 as the rest of the broker has it."""
    return raw.decode(errors="surrogateescape")
