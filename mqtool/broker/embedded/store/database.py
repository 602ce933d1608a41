"""Opening the SQLite file of a data directory: privately, alone, and only after a look for damage."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mqtool.broker.embedded.model.amqp_message import HeaderReader, Message
from mqtool.broker.embedded.model.backlog import LOT, Entry
from mqtool.broker.embedded.store.damage import LogCheck, is_sound, salvage

FILE = "broker.sqlite3"

SCHEMA = """
CREATE TABLE IF NOT EXISTS definition (kind TEXT, key TEXT, value BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    row INTEGER PRIMARY KEY, holder INTEGER, due INTEGER, delivery_count INTEGER, redelivered INTEGER,
    address BLOB, header BLOB, body BLOB
);
"""


@dataclass
class Database:
    """An open database; `damage` says what could not be read, None if nothing."""

    db: sqlite3.Connection
    damage: str | None


def open_database(directory: Path) -> Database:
    """Open the database in a directory; both are made if they do not exist, for this user only.

    Raises:
        OSError: the directory cannot be used, another process is using it, or nothing in it can be read.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / FILE
    check = LogCheck(path)
    path.touch(mode=0o600)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    try:
        db = _connect(path)
        damage = check.damage(db)
        if is_sound(db):
            return Database(db, damage)
        db.close()
    except sqlite3.OperationalError as error:
        check.discard()
        raise OSError(f"cannot use {directory}: {error}") from error
    except sqlite3.DatabaseError:
        check.discard()
    damage = salvage(path, SCHEMA)
    return Database(_connect(path), damage)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
    try:
        # The lock is held for good: two brokers on one directory would overwrite each other.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def write_definitions(db: sqlite3.Connection, definitions: Mapping[tuple[str, str], bytes | None]) -> None:
    """Write definitions by kind and key; None deletes one."""
    for (kind, name), value in definitions.items():
        key = name.encode(errors="backslashreplace").decode()
        if value is None:
            db.execute("DELETE FROM definition WHERE kind = ? AND key = ?", (kind, key))
        else:
            db.execute("INSERT OR REPLACE INTO definition VALUES (?, ?, ?)", (kind, key, value))


_COLUMNS = "row, holder, due, delivery_count, redelivered, address, header, body"
_ALL = f"SELECT {_COLUMNS} FROM entry ORDER BY row"  # noqa: S608 - our own names
_SOME = f"SELECT {_COLUMNS} FROM entry WHERE row IN ({', '.join('?' * LOT)}) ORDER BY row"  # noqa: S608 - our own names

# How many bytes of bodies to read at once before no more follow.
_ENOUGH = 1024 * 1024


class StoredEntry(NamedTuple):
    """A row of the table of messages; `holder` is the key of a queue or of a delayed exchange."""

    row: int
    holder: int
    due: int | None
    delivery_count: int
    redelivered: int
    address: bytes
    header: bytes
    body: bytes

    def entry(self, headers: HeaderReader) -> Entry:
        """Return the message.

        Raises:
            ValueError, TypeError: it is damaged.
        """
        entry = Entry(Message(self.address, headers.read(self.header), self.body), self.row, self.due)
        entry.row = self.row
        entry.acquired_count = entry.delivery_count = self.delivery_count
        entry.redelivered = bool(self.redelivered)
        return entry


def all_entries(db: sqlite3.Connection) -> Iterator[StoredEntry]:
    """Yield all messages in the order in which they were published."""
    yield from map(StoredEntry._make, db.execute(_ALL))


def entries_in(db: sqlite3.Connection, rows: Sequence[int]) -> list[StoredEntry]:
    """Return the messages in these rows, up to LOT, in their order; only the first of them if they are large.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    found: list[StoredEntry] = []
    size = 0
    for values in db.execute(_SOME, [*rows, *[0] * (LOT - len(rows))]):
        found.append(StoredEntry._make(values))
        size += len(found[-1].body)
        if size > _ENOUGH:
            break
    if not found or [stored.row for stored in found] != list(rows[: len(found)]):
        raise sqlite3.DatabaseError(f"messages from {rows[0]} to {rows[-1]} are not in the data directory")
    return found
