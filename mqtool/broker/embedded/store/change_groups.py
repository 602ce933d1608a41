"""Groups of changes to the data directory: each is written in one transaction."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from mqtool.broker.embedded.model.ledger import Log
from mqtool.broker.embedded.store.database import write_definitions, write_entries

#: The approximate size of a changed row in SQLite's log, in bytes, without its message.
ROW_BYTES = 256

#: How many rows of purged messages are deleted in one transaction. Meanwhile, the event loop serves nobody.
_PURGED_AT_ONCE = 20_000

#: The default of `ChangeGroups.most_bytes`: while a group is written, the event loop serves nobody.
_GROUP_BYTES = 4 * 1024 * 1024


@dataclass
class ChangeGroup:
    """A group of changes, written in one transaction and synced together.

    Attributes:
        added: new messages by row.
        removed: rows of messages to delete.
        due: new times by row, in milliseconds since 1970, at which stored messages expire or their delay ends.
        definitions: definitions that could not be written immediately, by kind and key. None marks one to be deleted.
        logs: streams with new data for their own files.
        discarded: deleted streams whose files are to be removed.
        waiting: functions to call once the group is on disk.
    """

    # Tuples with the fields of StoredEntry, in order: creating them takes half the time.
    added: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    due: dict[int, int] = field(default_factory=dict)
    definitions: dict[tuple[str, bytes], bytes | None] = field(default_factory=dict)
    logs: dict[Log, None] = field(default_factory=dict)
    discarded: list[Log] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.has_rows or bool(self.logs or self.discarded or self.waiting)

    @property
    def has_rows(self) -> bool:
        """True if the group changes rows of the database."""
        return bool(self.added or self.removed or self.due or self.definitions)

    def then(self, later: "ChangeGroup") -> "ChangeGroup":
        """Return a new group that combines this one and a later one."""
        return ChangeGroup(
            self.added | later.added,
            self.removed + later.removed,
            self.due | later.due,
            self.definitions | later.definitions,
            self.logs | later.logs,
            self.discarded + later.discarded,
            self.waiting + later.waiting,
        )

    def write_rows(self, db: sqlite3.Connection) -> None:
        """Write the rows and definitions to SQLite's log, in one transaction."""
        if self.has_rows:
            with db:
                db.execute("BEGIN")
                write_entries(db, self.added.values(), self.removed, self.due)
                write_definitions(db, self.definitions)

    def unsynced(self) -> "ChangeGroup":
        """Return the work that remains once the rows and definitions of this group are in SQLite's log."""
        return ChangeGroup(logs=self.logs, discarded=self.discarded, waiting=self.waiting)


class ChangeGroups:
    """The groups of changes that are not on disk yet.

    While the disk is slow, many changes wait: they are divided into groups of limited size. All changes of one turn of
    the event loop are in the same group, because a dead letter is removed from one queue and added to another.

    Args:
        begins: called whenever a new group begins.

    Attributes:
        next: the group that collects changes now.
        syncing: the group that is being written or synced.
        most_bytes: the approximate size in the log, in bytes, above which another group begins in the next turn.
    """

    def __init__(self, begins: Callable[[], object]) -> None:
        self._begins = begins
        self.next = ChangeGroup()
        self.syncing = ChangeGroup()
        self.most_bytes = _GROUP_BYTES
        self._size = 0
        self._full: deque[ChangeGroup] = deque()
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[ChangeGroup]:
        """Yield all groups, the latest first."""
        yield self.next
        yield from reversed(self._full)
        yield self.syncing

    def __bool__(self) -> bool:
        """True if there is something to write."""
        return bool(self._full or self.next)

    @property
    def are_awaited(self) -> bool:
        """True if the next write must not be delayed."""
        return bool(self._full or self.next.waiting)

    def grew(self, by: int) -> None:
        """Count a change that `next` has collected, of this approximate size in the log, in bytes."""
        self._size += by
        if self._size > self.most_bytes:
            self._size = 0
            self._loop.call_soon(self._complete, self.next)

    def _complete(self, group: ChangeGroup) -> None:
        if group is self.next:  # it has not been taken meanwhile
            self._full.append(group)
            self.next, self._size = ChangeGroup(), 0
            self._begins()

    def take(self, purged: list[int]) -> ChangeGroup:
        """Remove the earliest group, to write it.

        Args:
            purged: rows to delete. The last group takes some of them: a group before it could not delete a row that a
                later one adds.
        """
        if not self._full:
            self._complete(self.next)
        group = self._full.popleft()
        if not self._full:
            group.removed += purged[:_PURGED_AT_ONCE]
            del purged[:_PURGED_AT_ONCE]
        return group

    def put_back(self, group: ChangeGroup) -> None:
        """Keep a group that could not be written as the earliest one."""
        self._full.appendleft(group)
        self.syncing = ChangeGroup()

    def all_waiting(self) -> ChangeGroup:
        """Return one group of all changes that wait to be written."""
        return reduce(ChangeGroup.then, (*self._full, self.next))
