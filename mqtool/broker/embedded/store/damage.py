"""Detection of damage to the SQLite database of a data directory, and recovery of the readable parts.

SQLite does not report all damage: it treats the first page of its log (WAL) with a wrong checksum as the end of the
log, and deletes the log of an empty database. So the log is copied and examined before SQLite opens it, to find out
afterwards whether SQLite has read all of it.
"""

import logging
import shutil
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

log = logging.getLogger("mqtool.broker.embedded")

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">4I8x")
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}


class LogCheck:
    """Checks whether SQLite reads all of its log (WAL). Must be created before SQLite opens the database.

    See https://sqlite.org/fileformat.html#walformat.

    Args:
        database: the path of the database file; the log is in the same directory.

    Raises:
        OSError: the log has content, but the database is missing or empty; or the log cannot be copied.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._log = database.with_name(database.name + "-wal")
        self._copy = database.with_name(database.name + "-wal.copy")
        self._readable = True
        self._commits: list[int] = []
        if not self._log.exists() or self._log.stat().st_size <= _HEADER.size:
            return
        if not database.exists() or not database.stat().st_size:
            raise OSError(
                f"{database} is empty, but its log is not: the messages in {self._log} cannot be read without it. "
                "Nothing was changed; restore the file, or move the directory away to start with an empty broker"
            )
        data = self._log.read_bytes()
        self._copy.touch(mode=0o600)
        try:
            self._copy.write_bytes(data)
        except OSError:
            self.discard()
            raise
        self._readable = _has_valid_header(data)
        self._commits = list(_commits(data))

    def damage(self, db: sqlite3.Connection) -> str | None:
        """Describe the damage to the log, after SQLite has opened the database; return None if there is none.

        Copies of a damaged log and of its database are kept in a directory for damaged files.
        """
        if not self._copy.exists():
            return None
        read = db.execute("PRAGMA wal_checkpoint").fetchone()[1]
        lost = [commit for commit in self._commits if commit > read]
        if self._readable and not lost:
            self._copy.unlink()
            return None
        torn = self._readable and len(lost) == 1 and _is_torn(self._copy.read_bytes(), read, lost[0])
        kept = new_directory(self._database.parent)
        self._copy.rename(unused(kept / self._log.name))
        shutil.copy(self._database, unused(kept / self._database.name))
        if torn:
            return (
                "the last group of changes in the log is incomplete: nothing is lost if the broker was killed, or its "
                f"disk was full, as it wrote it; else the disk has damaged it. The files as they were are in {kept}"
            )
        groups = "the last group of changes" if len(lost) == 1 else f"the last {len(lost)} groups of changes"
        gone = groups if self._readable else "all recent changes"
        return f"the log was damaged: {gone} in it could not be read. The files as they were are in {kept}"

    def discard(self) -> None:
        """Delete the copy of the log. Called if the database cannot be opened."""
        self._copy.unlink(missing_ok=True)


def _has_valid_header(data: bytes) -> bool:
    order = _MAGIC.get(int.from_bytes(data[:4]))
    if order is None:
        return False
    return data[24:32] == _checksum(order, bytes(8), data[:24])


def _checksum(order: str, before: bytes, data: bytes) -> bytes:
    """Return the running checksum after `data`, given the checksum `before` it."""
    first, second = struct.unpack(">2I", before)
    for one, two in struct.iter_unpack(f"{order}2I", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return struct.pack(">2I", first, second)


def _is_torn(data: bytes, read: int, commit: int) -> bool:
    """Return True if only the last page of a group of changes has a wrong checksum.

    The usual cause is that the broker was killed, or the disk was full, during the write. In that case, no message in
    the group was confirmed. Later damage to the page looks the same.
    """
    order, page_size = _MAGIC[int.from_bytes(data[:4])], int.from_bytes(data[8:12])
    size = _FRAME.size + page_size
    before = data[_HEADER.size + read * size - size :][16:24] if read else data[24:32]
    for start in range(_HEADER.size + read * size, _HEADER.size + (commit - 1) * size, size):
        page = data[start : start + size]
        before = _checksum(order, before, page[:8] + page[_FRAME.size :])
        if before != page[16:24]:
            return False
    return True


def _commits(data: bytes) -> Iterator[int]:
    """Yield the number of each page of a log that ends a transaction. Pages are numbered from 1."""
    _, _, page_size, _, *salts, _, _ = _HEADER.unpack_from(data)
    size = _FRAME.size + page_size
    for number, start in enumerate(range(_HEADER.size, len(data) - size + 1, size), 1):
        _, pages, *frame_salts = _FRAME.unpack_from(data, start)
        # Pages with other salts were written before the log was last restarted.
        if pages and frame_salts == salts:
            yield number


def new_directory(parent: Path) -> Path:
    """Create a directory for damaged files, named after the current time, and return its path."""
    path = parent / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def unused(path: Path) -> Path:
    """Return a path, with a number behind its name if there is such a file: two starts can be in the same second."""
    paths = chain([path], (path.with_name(f"{path.name}.{number}") for number in count(2)))
    return next(each for each in paths if not each.exists())


def check_header(database: Path) -> None:
    """Raise DatabaseError if a file is not an SQLite database.

    If SQLite opened such a file together with its log, it would copy the log to the file, and then delete the log.
    """
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?immutable=1", uri=True)) as db:
        db.execute("PRAGMA schema_version").fetchone()


def is_sound(db: sqlite3.Connection) -> bool:
    """Return True if SQLite's quick check finds no damage in a database."""
    try:
        return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] == b"ok")
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return False


def salvage(database: Path, schema: str) -> str:
    """Replace a damaged database with a new one that contains its readable rows.

    The damaged files are moved to a directory for damaged files.

    Returns:
        A sentence that describes the damage.

    Raises:
        OSError: no definition can be read; the files are unchanged.
    """
    new = database.with_name(database.name + ".salvaged")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    with TemporaryDirectory(dir=database.parent) as directory:
        # Work on a copy: SQLite may change the files that it opens.
        scratch = Path(directory)
        for path in database.parent.glob(f"{database.name}*"):
            shutil.copy(path, scratch)
        with closing(sqlite3.connect(scratch / database.name)) as old, closing(sqlite3.connect(new)) as into:
            # With this setting, SQLite can read a truncated file.
            old.execute("PRAGMA writable_schema=ON")
            into.executescript(schema)
            definitions, all_definitions = _copy(old, into, "definition", "kind, key", 3)
            messages, all_messages = _copy(old, into, "entry", "row", 8)
            into.execute("PRAGMA user_version = 1")  # as in Database.mark_as_used(): do not create the default user
            into.commit()
    if not definitions:
        new.unlink()
        raise OSError(
            f"{database} is damaged, and nothing in it can be read. Nothing was changed; restore the file, or move the "
            "directory away to start with an empty broker"
        )
    kept = new_directory(database.parent)
    for path in [*database.parent.glob(f"{database.name}*")]:
        if path != new:
            path.rename(unused(kept / path.name))
    new.rename(database)
    gone = "some of its messages" if all_definitions else "some of its queues, exchanges, bindings or users"
    if all_definitions and all_messages:
        gone = "parts that the broker does not need"
    return (
        f"the database was damaged: {gone} could not be read; {messages} messages could. The files as they were are in "
        f"{kept}"
    )


def _copy(old: sqlite3.Connection, into: sqlite3.Connection, table: str, order: str, columns: int) -> tuple[int, bool]:
    """Copy the readable rows of a table: if part of it is damaged, those before and after that part.

    Returns:
        The number of rows copied, and whether the table is undamaged.
    """
    insert = f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * columns)})"  # noqa: S608 - our own names
    descending = ", ".join(f"{column} DESC" for column in order.split(", "))
    for ordered in (order, descending):
        try:
            for row in _rows(old, f"SELECT * FROM {table} ORDER BY {ordered}"):  # noqa: S608 - our own names
                # Next to damage, rows may be incomplete.
                if isinstance(row[-1], bytes):
                    into.execute(insert, row)
        except sqlite3.DatabaseError as error:
            log.warning("table %s, by %s: %s", table, ordered, error)
        else:
            break
    whole = ordered == order
    return into.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0], whole  # noqa: S608 - our own names


def _rows(db: sqlite3.Connection, query: str) -> Iterator[tuple[bytes, ...]]:
    """Yield all rows up to the first that cannot be read; then raise DatabaseError."""
    number = 0
    try:
        for row in db.execute(query):
            number += 1
            yield row
    except sqlite3.DatabaseError:
        # Python's cursor reads one row ahead, so it fails before it returns the last readable row.
        yield from db.execute(f"{query} LIMIT 1 OFFSET {number}")
        raise
