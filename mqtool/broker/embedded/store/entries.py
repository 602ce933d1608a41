"""The table of messages: what is in a row, and how to read some or all of them."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mqtool.broker.embedded.model.backlog import LOT, Entry
from mqtool.broker.embedded.model.message import HeaderReader, Message

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
