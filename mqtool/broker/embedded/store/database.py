"""The SQLite database of a data directory, which is checked for damage when it is opened, and the disk space alarm."""

import asyncio
import errno
import fcntl
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, HeaderReader, StoredAddress
from mqtool.broker.embedded.model.backlog import BATCH, BacklogEntry
from mqtool.broker.embedded.model.broker import LOW_ON_DISK, Broker
from mqtool.broker.embedded.model.ledger import decode_definition, disk_free
from mqtool.broker.embedded.store.damage import LogCheck, check_header, is_sound, salvage
from mqtool.broker.embedded.store.disk import DISK, Disk
from mqtool.codecs.field_tables import Table

FILE = "broker.sqlite3"
#: The subdirectory of a data directory that contains one directory for each stream, named after its key.
STREAMS = "streams"

SCHEMA = """
CREATE TABLE IF NOT EXISTS definition (kind TEXT, key BLOB, value BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    row INTEGER PRIMARY KEY, holder INTEGER, due INTEGER, delivery_count INTEGER, redelivered INTEGER,
    address BLOB, header BLOB, body BLOB
);
"""

_COLUMNS = "row, holder, due, delivery_count, redelivered, address, header, body"
_ALL = f"SELECT {_COLUMNS} FROM entry ORDER BY row"  # noqa: S608 - our own names
_BY_ROWS = f"SELECT {_COLUMNS} FROM entry WHERE row IN ({', '.join('?' * BATCH)}) ORDER BY row"  # noqa: S608 - our own names

#: When several messages are read at once, reading stops once their bodies exceed this many bytes.
_READ_LIMIT = 1024 * 1024


class DirectoryInUse(OSError):
    """Another broker uses a data directory."""


class Database:
    """An open database.

    Attributes:
        db: the SQLite connection, for use on the event loop. Commits are on disk only after sync().
        damage: a description of the unreadable data; None if everything could be read.
    """

    def __init__(self, directory: Path, lock: int, db: sqlite3.Connection, damage: str | None, disk: Disk) -> None:
        self.db = db
        self.damage = damage
        self._directory = lock
        self._disk = disk
        self._log_path = directory / f"{FILE}-wal"
        self._log = os.open(self._log_path, os.O_RDWR)
        # Checkpoints on the writer thread use a separate connection, so that they do not block the event loop.
        self._checkpoints = _connect(directory / FILE)

    @property
    def is_new(self) -> bool:
        """True if the default definitions of a new broker have not been created yet."""
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        return not version and not self.db.execute("SELECT COUNT(*) FROM definition").fetchone()[0]

    def mark_as_used(self) -> None:
        """Record that the default definitions have been created, so that `is_new` is false from now on."""
        self.db.execute("PRAGMA user_version = 1")

    def sync(self) -> None:
        """Block until everything committed so far is on disk. Safe to call from any thread."""
        self._disk.sync(self._log, self._log_path)

    def checkpoint(self) -> None:
        """Copy the log to the database file, so that SQLite can reuse the log. Safe to call from any thread."""
        self._checkpoints.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Close the files and release the lock on the directory."""
        self._checkpoints.close()
        self.db.close()
        os.close(self._log)
        os.close(self._directory)


def open_database(directory: Path, disk: Disk = DISK) -> Database:
    """Open the database in a directory. If necessary, create both, accessible only to this user.

    Raises:
        OSError: the directory cannot be used, is in use by another process, or contains nothing readable.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = lock_directory(directory)
    try:
        _refuse_links(directory)
        db, damage = _open(directory)
        return Database(directory, lock, db, damage, disk)
    except (OSError, sqlite3.Error) as error:
        os.close(lock)
        raise _explained(error, directory) from error


def _refuse_links(directory: Path) -> None:
    """Raise OSError if one of the broker's files is a symbolic link.

    Anyone who can write to the directory could otherwise have the broker write to, change the mode of, or delete any
    file of its user.
    """
    for path in chain(*map(directory.glob, (f"{FILE}*", STREAMS, f"{STREAMS}/**/*"))):
        if path.is_symlink():
            raise OSError(
                f"cannot use {directory}: {path} is a symbolic link, which the broker does not follow. Nothing was "
                "changed; move the file or directory there, or use another data directory"
            )


def _explained(error: Exception, directory: Path) -> OSError:
    """Convert an error to an OSError with a full sentence. If the disk is full, give the free and required space."""
    code = error.errno if isinstance(error, OSError) else None
    is_full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, sqlite3.Error):
        is_full = "full" in str(error) or (
            "disk I/O error" in str(error) and disk_free(directory) < _room_needed(directory)
        )
    if not is_full:
        return error if isinstance(error, OSError) else OSError(f"cannot use {directory}: {error}")
    room = f"{disk_free(directory)} bytes are free, and about {_room_needed(directory)} are needed"
    return OSError(errno.ENOSPC, f"the disk is full: {room} to open the data directory {directory}")


def _room_needed(directory: Path) -> int:
    """Estimate the bytes needed to open a data directory: the log is copied, then moved into the database."""
    log = directory / f"{FILE}-wal"
    return (2 * log.stat().st_size if log.exists() else 0) + 1_000_000


def lock_directory(directory: Path) -> int:
    """Lock a directory against other brokers. Closing the returned file descriptor releases the lock.

    Raises:
        DirectoryInUse: another broker has locked it.
        OSError: it cannot be opened.
    """
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise DirectoryInUse(f"cannot use {directory}: another broker is using it") from error
    return lock


def _open(directory: Path) -> tuple[sqlite3.Connection, str | None]:
    path = directory / FILE
    check = LogCheck(path)
    was_empty = path.exists() and not path.stat().st_size
    path.touch(mode=0o600)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    try:
        check_header(path)
        db = _connect(path)
        damage = check.damage(db)
        if is_sound(db):
            return db, _was_empty(path) if was_empty else damage
        db.close()
    except sqlite3.OperationalError:
        check.discard()
        raise
    except sqlite3.DatabaseError:
        check.discard()
    damage = salvage(path, SCHEMA)
    return _connect(path), damage


def _was_empty(path: Path) -> str:
    """Describe a file without content. Except for a broker that is killed as it creates the file, none leaves one."""
    return (
        f"{path} was empty, so the broker starts like a new one, without queues, messages or users of its own: if this "
        "is not the first start, something else has truncated the file; stop the broker and restore the file"
    )


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
    # In a damaged database, text may not be valid UTF-8.
    db.text_factory = bytes
    try:
        # In this mode SQLite itself syncs only at checkpoints: see Database.sync().
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "fullfsync=1", "wal_autocheckpoint=0"):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def write_definitions(db: sqlite3.Connection, definitions: Mapping[tuple[str, bytes], bytes | None]) -> None:
    """Write encoded definitions, given by kind and key. A value of None deletes the definition."""
    for (kind, key), value in definitions.items():
        if value is None:
            db.execute("DELETE FROM definition WHERE kind = ? AND key = ?", (kind, key))
        else:
            db.execute("INSERT OR REPLACE INTO definition VALUES (?, ?, ?)", (kind, key, value))


def definitions_of(db: sqlite3.Connection, kind: str) -> Iterator[tuple[bytes, Table | None]]:
    """Yield the key and the decoded value of each definition of this kind. The value is None if it cannot be read."""
    for key, value in db.execute("SELECT key, value FROM definition WHERE kind = ?", (kind,)).fetchall():
        try:
            yield key, decode_definition(value)
        except (ValueError, TypeError, RecursionError):
            yield key, None


def keys_with(db: sqlite3.Connection, prefix: bytes) -> list[tuple[str, bytes]]:
    """Return the kind and the key of each definition whose key begins with this prefix."""
    query = "SELECT kind, key FROM definition WHERE substr(key, 1, ?) = ?"
    return [(kind.decode(), key) for kind, key in db.execute(query, (len(prefix), prefix))]


class StoredEntry(NamedTuple):
    """A row of the table of messages.

    Attributes:
        holder: the key of the queue or delayed exchange that the message is in.
        due: when the message expires or its delay ends, in milliseconds since 1970; None for never.
        redelivered: 0 if the message was never delivered; otherwise 1, plus the number of times that a quorum queue
            has requeued it. Earlier versions wrote 1 for all, so delivery_count is the least that is known.
    """

    row: int
    holder: int
    due: int | None
    delivery_count: int
    redelivered: int
    address: bytes
    header: bytes
    body: bytes

    def entry(self, headers: HeaderReader) -> BacklogEntry:
        """Decode the stored message. Raises ValueError or TypeError if the row is damaged."""
        header = headers.read(self.header)
        address, is_sectioned, is_dead, copies = StoredAddress.of(self.address)
        if is_sectioned:
            from mqtool.broker.embedded.model.sectioned import restored

            message: BrokerMessage = restored(address, header, self.body)
        else:
            message = BrokerMessage(address, header, self.body)
        message.is_dead, message.copies = is_dead, copies
        entry = BacklogEntry(message, self.row, self.due)
        entry.row = self.row
        entry.delivery_count = self.delivery_count
        entry.acquired_count = max(self.delivery_count, self.redelivered - 1)
        entry.redelivered = bool(self.redelivered)
        return entry


def all_entries(db: sqlite3.Connection) -> Iterator[StoredEntry]:
    """Yield all messages in the order in which they were published."""
    yield from map(StoredEntry._make, db.execute(_ALL))


def entries_in(db: sqlite3.Connection, rows: Sequence[int]) -> list[StoredEntry]:
    """Return up to BATCH messages in the order of `rows`; if they are large, only the first few."""
    found: list[StoredEntry] = []
    size = 0
    cursor = db.execute(_BY_ROWS, [*rows, *[0] * (BATCH - len(rows))])
    for values in cursor:
        found.append(StoredEntry._make(values))
        size += len(found[-1].body)
        if size > _READ_LIMIT:
            break
    cursor.close()
    if not found or [stored.row for stored in found] != list(rows[: len(found)]):
        raise sqlite3.DatabaseError(f"messages from {rows[0]} to {rows[-1]} are not in the data directory")
    return found


def write_entries(
    db: sqlite3.Connection, added: Collection[tuple[object, ...]], removed: list[int], due: Mapping[int, int]
) -> None:
    """Insert messages (tuples with the fields of StoredEntry, in order), set new times, and delete rows.

    Args:
        db: the database.
        added: the messages.
        removed: the rows to delete.
        due: new values of `due`, by row.
    """
    if added:
        db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", added)
    if due:
        db.executemany("UPDATE entry SET due = ? WHERE row = ?", ((when, row) for row, when in due.items()))
    if removed:
        db.executemany("DELETE FROM entry WHERE row BETWEEN ? AND ?", _ranges(removed))


def note_redeliveries(
    db: sqlite3.Connection, returned: Iterable[BacklogEntry], seen: Collection[int], last_recovered: int
) -> None:
    """Mark the messages that have been delivered before as redelivered. Called when the broker stops normally.

    The records of Storage.delivering(), which are only needed if the broker is killed, are deleted.

    Args:
        db: the database.
        returned: messages that were requeued after a delivery.
        seen: the keys of queues in which all messages up to row `last_recovered` count as delivered.
        last_recovered: the last row that existed when the broker started.
    """
    db.executemany(
        "UPDATE entry SET redelivered = ?, delivery_count = ?, header = ? WHERE row = ?",
        ((1 + entry.acquired_count, entry.delivery_count, entry.message.header.raw, entry.row) for entry in returned),
    )
    db.executemany(
        "UPDATE entry SET redelivered = 1 WHERE holder = ? AND row <= ? AND NOT redelivered",
        ((holder, last_recovered) for holder in seen),
    )
    db.execute("DELETE FROM definition WHERE kind = 'delivering'")


def _ranges(rows: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of consecutive row numbers. Deleting whole runs is twice as fast."""
    rows.sort()
    first = last = rows[0]
    for row in rows:
        if row > last + 1:
            yield first, last
            first = row
        last = row
    yield first, last


#: The limits of the interval between checks of the free space, in seconds. The interval shrinks with the free space.
_SHORTEST, _LONGEST = 0.1, 10.0
_BYTES_PER_SECOND = 250_000_000
_WHILE_ALARMED = 0.5


class DiskSpace:
    """Checks the free space in the data directory, and blocks publishers while there is too little (disk alarm)."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._next: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Check the free space now, and schedule the next check."""
        broker = self._broker
        room = broker.ledger.disk_free() - broker.disk_free_limit
        if room < 0:
            broker.raise_alarm("disk space", LOW_ON_DISK, f"only {broker.ledger.disk_free()} bytes are free")
            seconds = _WHILE_ALARMED
        else:
            broker.clear_alarm("disk space")
            seconds = min(max(room / _BYTES_PER_SECOND, _SHORTEST), _LONGEST)
        self._next = asyncio.get_running_loop().call_later(seconds, self.check)

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
