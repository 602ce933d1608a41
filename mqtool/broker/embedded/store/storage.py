"""The data directory: stores durable definitions and messages in SQLite, without blocking the event loop.

Changes are written in groups. The event loop writes each group to SQLite's log (WAL), which takes microseconds; then a
writer thread syncs the log and the files of streams. One fsync covers all messages that arrived during the previous
one. A message that is consumed before its group is written is never written at all. Confirms and other replies about
durable data are sent after the fsync.

A dead letter or a delayed message may go from its row to a stream. So if a group deletes rows and has data of streams,
that data is on disk before its rows are written: a broker that is killed in between has the message in both places.
"""

import asyncio
import logging
import sqlite3
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mqtool.broker.embedded.model.amqp_errors import storage_failed
from mqtool.broker.embedded.model.amqp_message import DEEPEST, HeaderReader
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.ledger import Ledger, Log, Segments, definition_key
from mqtool.broker.embedded.store.change_groups import ROW_BYTES, ChangeGroup, ChangeGroups
from mqtool.broker.embedded.store.database import (
    STREAMS,
    Database,
    StoredEntry,
    all_entries,
    definitions_of,
    entries_in,
    keys_with,
    note_redeliveries,
    open_database,
    write_definitions,
)
from mqtool.broker.embedded.store.disk import DISK, Disk
from mqtool.broker.embedded.store.writer import Writer
from mqtool.codecs.field_tables import encode_table

log = logging.getLogger("mqtool.broker.embedded")

#: The kinds of definitions that belong to a virtual host. Their keys begin with the virtual host's name.
_IN_VHOSTS = ("vhost", "exchange", "queue", "binding", "policy", "operator_policy")

#: How long the write of an acknowledgement, or of a message without a confirm, may be delayed.
_UNHURRIED_SECONDS = 0.02

#: The delay before another attempt to write a group after a failure.
_RETRY_SECONDS = 0.5

#: The approximate size of the log at which the writer thread copies it to the database file.
_CHECKPOINT_BYTES = 8 * 1024 * 1024

#: The approximate size of a transaction in the log, in bytes, apart from its rows.
_TRANSACTION_BYTES = 8 * 1024


class Storage(Ledger):
    """A ledger that stores definitions and messages in a data directory.

    Changes that cannot be written are kept in memory, unconfirmed, and retried until the write succeeds.

    Args:
        directory: the data directory; created if it does not exist.
        disk: the operations on its files.

    Attributes:
        changes: the changes that are not on disk yet.
        database: the open SQLite database.
        damage: a description of the unreadable data; None if everything could be read.
        last_key: the highest key of any queue or exchange so far.
        when_failed: called with the error each time a write fails.
        when_recovered: called when a write succeeds again after a failure.
    """

    on_disk = True

    def __init__(self, directory: Path, disk: Disk = DISK) -> None:
        super().__init__()
        self.directory = directory
        self.database = open_database(directory, disk)
        self._db = self.database.db
        self.damage = self.database.damage
        self.when_failed: Callable[[Exception], None] = lambda _: None
        self.when_recovered: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._disk = disk
        self._writer = Writer(disk.writer())
        self.changes = ChangeGroups(self._begin_group)
        self._purged: list[int] = []
        self._scheduled: asyncio.Handle | None = None
        self._failing = False
        self._log_bytes = 0
        self._position = self._db.execute("SELECT COALESCE(MAX(row), 0) FROM entry").fetchone()[0]
        self._last_recovered = self._position
        self._seen: set[int] = set()
        self._headers = HeaderReader(DEEPEST)
        self.last_key = 0

    def _begin_group(self) -> None:
        self.group += 1

    def entries(self) -> Iterator[StoredEntry]:
        """Yield the stored messages in the order in which they were published."""
        noted = (value for _, value in definitions_of(self._db, "delivering"))
        self._seen = {holder for value in noted if value and isinstance(holder := value.get("holder"), int)}
        yield from map(self._marked, all_entries(self._db))

    def _marked(self, stored: StoredEntry) -> StoredEntry:
        """Mark a message as redelivered if a client may have seen it before the broker was killed."""
        if stored.redelivered or stored.row > self._last_recovered or stored.holder not in self._seen:
            return stored
        return stored._replace(redelivered=1)

    def new_key(self) -> int:
        self.last_key += 1
        return self.last_key

    def write_definition(self, kind: str, key: bytes, value: bytes) -> None:
        """Write a definition to SQLite's log, to be synced with the next group.

        Raises:
            ConnectionException: 506, the definition cannot be written to the log.
        """
        try:
            write_definitions(self._db, {(kind, key): value})
        except sqlite3.Error as error:
            raise storage_failed(error) from error
        for group in self.changes:  # an earlier deletion may still wait
            group.definitions.pop((kind, key), None)
        self._definitions_written()

    def forget(self, kind: str, names: Sequence[str | bytes]) -> None:
        """Delete a definition; for a virtual host, also all definitions in it.

        If the deletion cannot be written, it is retried with the next group.
        """
        key = definition_key(names)
        if kind == "vhost":
            found = [(each, key) for each, key in keys_with(self._db, key) if each in _IN_VHOSTS]
            self._write_soon(dict.fromkeys(found))
        else:
            self._write_soon({(kind, key): None})
        if not self._failing:
            self._definitions_written()

    def delivering(self, holder: int) -> None:
        """Record that a queue is making its first delivery since the broker started.

        If the broker is killed, all messages in such a queue count as redelivered after the restart. This is cheaper
        than recording each delivery.
        """
        self._write_soon({("delivering", definition_key([str(holder)])): encode_table({"holder": holder})})

    def _write_soon(self, definitions: Mapping[tuple[str, bytes], bytes | None]) -> None:
        try:
            write_definitions(self._db, definitions)
        except sqlite3.Error as error:
            self.changes.next.definitions |= definitions
            self._failed(error)
        else:
            self._schedule()

    def _definitions_written(self) -> None:
        self.definitions_saved += 1
        self._log_bytes += _TRANSACTION_BYTES
        self.after_commit(lambda: None)

    def added(self, holder: int, entry: BacklogEntry) -> None:
        entry.row = row = entry.position
        address, header, body = entry.message.stored()
        changes = self.changes
        redelivered = 1 + entry.acquired_count if entry.redelivered else 0
        counts = (entry.delivery_count, redelivered)
        changes.next.added[row] = (row, holder, entry.expires_at, *counts, address, header, body)
        changes.grew(ROW_BYTES + len(body))
        self._log_bytes += len(body)
        if self._scheduled is None:
            self._schedule()

    def removed(self, row: int, *, purged: bool = False) -> None:
        changes = self.changes
        unwritten = changes.next.added.pop(row, None)
        if unwritten is not None:
            changes.grew(-ROW_BYTES - len(unwritten[-1]))
            return
        if purged:
            self._purged.append(row)
        else:
            changes.next.removed.append(row)
            changes.grew(ROW_BYTES)
        if self._scheduled is None:
            self._schedule()

    def expires_earlier(self, row: int, due: int) -> None:
        """Store another time for a message, for when it is read back: the clock was ahead before a restart."""
        self.changes.next.due[row] = due
        self._schedule()

    def read(self, rows: Sequence[int]) -> list[BacklogEntry]:
        kept = ChainMap(*(group.added for group in self.changes))
        written = [row for row in rows if row not in kept]
        if written:
            due = ChainMap(*(group.due for group in self.changes))
            found = (stored._replace(due=due.get(stored.row, stored.due)) for stored in entries_in(self._db, written))
            return [self._marked(stored).entry(self._headers) for stored in found]
        return [StoredEntry._make(kept[row]).entry(self._headers) for row in rows]

    def segments(self, holder: int) -> Segments:
        from mqtool.broker.embedded.store.segment_files import SegmentDirectory

        return SegmentDirectory(self.directory / STREAMS / str(holder), self._disk)

    def write_log(self, log: Log) -> None:
        self.changes.next.logs[log] = None
        if log.is_watched:
            self.after_commit(lambda: None)
        else:
            self._schedule()

    def discard_log(self, log: Log) -> None:
        """Have the writer thread delete a stream's files, because that thread may be writing to them now."""
        self.changes.next.discarded.append(log)
        self._schedule()

    def after_commit(self, what: Callable[[], None]) -> None:
        waiting = self.changes.next.waiting
        waiting.append(what)
        if len(waiting) == 1:
            if self._scheduled is not None and not self._failing:
                self._scheduled.cancel()
                self._scheduled = None
            self._schedule()

    def _schedule(self) -> None:
        """Schedule the write of the next group, unless a group is already scheduled or being synced."""
        if self._writer.is_busy or self._scheduled is not None:
            return
        if self.changes.are_awaited:
            self._scheduled = self._loop.call_soon(self._write)
        else:
            self._scheduled = self._loop.call_later(_UNHURRIED_SECONDS, self._write)

    def _write(self) -> None:
        """Write the next group: its streams on the writer thread, its rows to SQLite's log, which is then synced."""
        self._scheduled = None
        if self._writer.is_busy:  # this is another attempt after a failure; _synced() schedules the next one
            return
        group = self.changes.take(self._purged)
        try:
            for stream in group.logs:
                stream.prepare()
        except Exception as error:
            self._keep(group, error)
            return
        if group.logs and group.removed:
            # All of its rows wait: a message may also go to a queue, and a kill must not find it there twice.
            self.changes.syncing = group
            self._writer.submit(lambda: _write_streams(group.logs), lambda error: self._write_rows(group, (), error))
        else:
            self._write_rows(group, group.logs)

    def _write_rows(self, group: ChangeGroup, logs: Iterable[Log], error: BaseException | None = None) -> None:
        """Write a group's rows to SQLite's log, then write the streams in `logs`, and sync all to disk.

        Args:
            group: the group.
            logs: the streams that are not on disk yet.
            error: the error with which other streams could not be written, if any.
        """
        try:
            if error is None:
                rows = len(group.added) + len(group.removed) + len(group.due)
                self._log_bytes += _TRANSACTION_BYTES + ROW_BYTES * rows
                group.write_rows(self._db)
        except Exception as failure:
            error = failure
        if error is not None:
            self._keep(group, error)
            return
        self.changes.syncing = group = group.unsynced()
        # A failed fsync may have lost pages of the log, so a checkpoint then writes them to the database file.
        checkpoint = self._failing or self._log_bytes > _CHECKPOINT_BYTES
        if checkpoint:
            self._log_bytes = 0
        self._writer.submit(
            lambda: _sync(self.database, group, logs, checkpoint=checkpoint), lambda error: self._synced(group, error)
        )

    def _synced(self, group: ChangeGroup, error: BaseException | None) -> None:
        if error is not None:
            self._keep(group, error)
            return
        self.changes.syncing = ChangeGroup()
        if self._failing:
            self._failing = False
            self.when_recovered()
        _finish(group)
        if self.changes or self._purged:
            self._schedule()

    def _keep(self, group: ChangeGroup, error: BaseException) -> None:
        """Keep a group that could not be written, report the error, and schedule another attempt."""
        if not self._failing and not isinstance(error, sqlite3.Error | OSError):
            log.error("internal error while writing to the data directory", exc_info=error)
        self.changes.put_back(group)
        self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._failing = True
        self.when_failed(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._scheduled = self._loop.call_later(_RETRY_SECONDS, self._write)

    def close(self, returned: Iterable[BacklogEntry] = ()) -> None:
        """Write all pending changes, mark the messages in `returned` as redelivered, and close the files."""
        if self._scheduled is not None:
            self._scheduled.cancel()
        error = self._writer.stop()
        if error is not None or self.changes.syncing.has_rows:
            self.changes.put_back(self.changes.syncing)
        group = self.changes.all_waiting()
        group.removed += self._purged
        try:
            for stream in group.logs:
                stream.prepare()
            _write_streams(group.logs)
            group.write_rows(self._db)
            with self._db:
                self._db.execute("BEGIN")
                note_redeliveries(self._db, returned, self._seen, self._last_recovered)
            _sync(self.database, group, (), checkpoint=False)
            _finish(group)
        except (sqlite3.Error, OSError) as error:
            log.error("cannot write to the data directory: %s; unconfirmed messages lost: %d", error, len(group.added))
        self.database.close()


def _write_streams(logs: Iterable[Log]) -> None:
    for stream in logs:
        stream.write()


def _sync(database: Database, group: ChangeGroup, logs: Iterable[Log], *, checkpoint: bool) -> None:
    """Write the streams in `logs` and sync the group to disk. Runs on the writer thread."""
    _write_streams(logs)
    for stream in group.discarded:
        stream.delete_files()
    database.sync()
    if checkpoint:
        database.checkpoint()


def _finish(group: ChangeGroup) -> None:
    """Make the stream data that is now on disk available to readers, and call the waiting functions."""
    for stream in group.logs:
        stream.commit()
    for what in group.waiting:
        what()
