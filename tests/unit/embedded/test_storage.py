"""The embedded broker's data directory on disks that fail or are slow."""

import asyncio
import errno
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqtool.broker.embedded.model.amqp_errors import ConnectionException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.clock import LoopClock
from mqtool.broker.embedded.model.stream_log import Retention, StreamLog
from mqtool.broker.embedded.model.stream_queue import StreamQueueReader
from mqtool.broker.embedded.model.stream_segment import simple_entry
from mqtool.broker.embedded.store import change_groups
from mqtool.broker.embedded.store import storage as store
from mqtool.broker.embedded.store.database import STREAMS, definitions_of
from mqtool.broker.embedded.store.disk import Disk
from mqtool.broker.embedded.store.segment_files import SegmentDirectory
from mqtool.broker.embedded.store.storage import Storage
from mqtool.codecs.field_tables import Table
from mqtool.message import MAX_DEPTH

_PATIENCE_SECONDS = 60


def message(body: bytes) -> BrokerMessage:
    return BrokerMessage(encode_address("", "q"), ContentHeader.of(MessageProperties(b"\0\0"), len(body)), body)


class WaitingDisk(Disk):
    """A disk whose syncs, and whose writes to streams, wait until they may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def write(self, file: int, path: Path, data: memoryview, position: int) -> int:
        self.may_go_on.wait(_PATIENCE_SECONDS)
        return super().write(file, path, data, position)

    def sync(self, file: int, path: Path) -> None:
        self.may_go_on.wait(_PATIENCE_SECONDS)
        super().sync(file, path)


class FailingDisk(Disk):
    """A disk that may fail to sync SQLite's log, or to write to streams.

    Attributes:
        may_sync: False if it fails to sync SQLite's log.
        may_write: False if it fails to write to streams.
        writes_to_fail: how many of the next writes to streams fail.
        error: the error that it raises.
    """

    may_sync = may_write = True
    writes_to_fail = 0
    error: BaseException = OSError(errno.EIO, "Input/output error")

    def write(self, file: int, path: Path, data: memoryview, position: int) -> int:
        if self.writes_to_fail:
            self.writes_to_fail -= 1
            raise self.error
        if not self.may_write:
            raise self.error
        return super().write(file, path, data, position)

    def sync(self, file: int, path: Path) -> None:
        if not self.may_sync and path.name.endswith("-wal"):
            raise self.error
        super().sync(file, path)


class CopyingDisk(WaitingDisk):
    """A disk that copies the data directory, as a kill would leave it, each time SQLite's log has been synced."""

    def __init__(self, copies: Path) -> None:
        super().__init__()
        self.copies = copies

    def sync(self, file: int, path: Path) -> None:
        super().sync(file, path)
        if path.name.endswith("-wal"):
            self.copies.mkdir(exist_ok=True)
            shutil.copytree(path.parent, self.copies / str(len([*self.copies.iterdir()])))


def fail(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_paged_out_message_can_be_read_back_while_a_stream_is_written(tmp_path: Path) -> None:
    """A paged-out message can be read back both while the broker is writing a stream to disk and afterwards."""

    async def run() -> None:
        disk = WaitingDisk()
        storage = Storage(tmp_path, disk)
        entries = [storage.enter(message(body), None) for body in (b"first", b"second")]
        storage.added(1, entries[0])
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)

        disk.may_go_on.clear()
        log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
        log.append(b"\0\0\0\1x")
        storage.removed(entries[0].row)
        storage.added(1, entries[1])
        stored = asyncio.create_task(storage.stored())
        await turns()
        assert [entry.message.body for entry in storage.read([entries[1].row])] == [b"second"]

        disk.may_go_on.set()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        assert [entry.message.body for entry in storage.read([entries[1].row])] == [b"second"]
        assert log.end == 1
        storage.close()

    asyncio.run(run())


def test_a_deletion_that_waits_for_the_disk_does_not_remove_a_new_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a queue is deleted and declared again while the deletion is waiting for the disk, the new queue's definition
    is kept.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)

    async def run() -> None:
        disk = WaitingDisk()
        storage = Storage(tmp_path, disk)
        storage.save("queue", ("/", "q"), {"number": 1})
        entry = storage.enter(message(b"x"), None)
        storage.added(1, entry)
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)

        disk.may_go_on.clear()
        log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
        log.append(b"\0\0\0\1x")
        storage.removed(entry.row)
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_definitions", fail)
            storage.forget("queue", ("/", "q"))
        await turns()
        storage.save("queue", ("/", "q"), {"number": 2})
        disk.may_go_on.set()
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        assert [value for _, value in definitions_of(storage.database.db, "queue")] == [{"number": 2}]
        storage.close()

    asyncio.run(run())


def test_a_failed_write_of_a_definition_does_not_prevent_confirms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker fails to write a definition while messages are being synced to disk, these messages are still
    confirmed after the sync.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)

    async def run() -> None:
        disk = WaitingDisk()
        storage = Storage(tmp_path, disk)
        disk.may_go_on.clear()
        storage.added(1, storage.enter(message(b"x"), None))
        stored = asyncio.create_task(storage.stored())
        await turns()
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_definitions", fail)
            storage.delivering(1)
        await turns()
        assert not stored.done()
        disk.may_go_on.set()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        assert [each.body for each in storage.entries()] == [b"x"]
        storage.close()

    asyncio.run(run())


def test_a_client_learns_why_a_durable_queue_cannot_be_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker cannot write the definition of a durable queue, it closes the client's connection with error 506.
    The error text contains the reason, such as a full disk.
    """

    async def run() -> None:
        storage = Storage(tmp_path)
        monkeypatch.setattr(store, "write_definitions", fail)
        with pytest.raises(ConnectionException) as raised:
            storage.save("queue", ("/", "q"), {})
        storage.close()
        assert raised.value.code == 506
        assert raised.value.text.endswith("cannot write to the data directory: database or disk is full")

    asyncio.run(run())


def test_each_saved_or_deleted_definition_is_counted_so_that_replies_wait_for_the_disk(tmp_path: Path) -> None:
    """The broker counts each definition that it saves or deletes, but no messages. If a request has changed the count,
    the connection knows that it must not send the reply before the change is on disk.
    """

    async def run() -> None:
        storage = Storage(tmp_path)
        counts = []
        for name in ("q1", "q2", "q3"):
            storage.save("queue", ("/", name), {})
            counts.append(storage.definitions_saved)
        for name in ("q1", "q2"):
            storage.forget("queue", ("/", name))
            counts.append(storage.definitions_saved)
        storage.added(1, storage.enter(message(b"x"), None))
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        assert counts == [1, 2, 3, 4, 5]
        assert storage.definitions_saved == 5
        storage.close()

    asyncio.run(run())


def test_queues_that_are_deleted_while_the_disk_fails_do_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker cannot write the deletions of two queues to disk, it writes both deletions later. Neither queue
    comes back after a restart.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)

    async def run() -> None:
        storage = Storage(tmp_path)
        for name in ("deleted 1", "deleted 2", "kept"):
            storage.save("queue", ("/", name), {"name": name})
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_definitions", fail)
            for name in ("deleted 1", "deleted 2"):
                storage.forget("queue", ("/", name))
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        assert [value for _, value in definitions_of(storage.database.db, "queue")] == [{"name": "kept"}]
        storage.close()

    asyncio.run(run())


def test_a_truncated_database_is_reported_when_the_broker_starts(tmp_path: Path) -> None:
    """If another program has truncated the broker's database file to 0 bytes, the broker starts without its stored
    messages, and reports the damage. If the database is intact, it reports no damage.
    """

    async def run() -> None:
        storage = Storage(tmp_path)
        assert storage.damage is None
        storage.added(1, storage.enter(message(b"x"), None))
        storage.close()
        file = tmp_path / "broker.sqlite3"
        file.write_bytes(b"")
        storage = Storage(tmp_path)
        assert [*storage.entries()] == []
        assert (storage.damage or "").startswith(f"{file} was empty, so the broker starts like a new one")
        storage.close()

    asyncio.run(run())


def entries_in(directory: Path) -> dict[bytes, int | None]:
    """Open a data directory; return the bodies of its messages, with the times at which they expire."""

    async def run() -> dict[bytes, int | None]:
        storage = Storage(directory)
        found = {stored.body: stored.due for stored in storage.entries()}
        storage.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("failing", ["sync", "streams", "rows"])
def test_changes_that_cannot_be_written_are_written_once_the_disk_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """While the disk fails, the broker reports each failure and confirms nothing, but keeps all changes, such as
    added messages, deleted definitions and stream entries. Once the disk works again, the broker reports the
    recovery, and writes and confirms the changes. If the broker is killed after that, no change is lost.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0.01)
    directory, copy = tmp_path / "data", tmp_path / "copy"
    errors: list[Exception] = []
    recovered: list[int] = []

    async def run() -> None:
        disk = FailingDisk()
        storage = Storage(directory, disk)
        storage.when_failed = errors.append
        storage.when_recovered = lambda: recovered.append(len(errors))
        log, *gone = (StreamLog(storage.segments(key), LoopClock(), storage, Retention()) for key in (2, 3, 4))
        for each in gone:
            each.append(simple_entry(b"gone"))
        entries = {}
        for body in (b"removed 0", b"removed 1", b"dated 0", b"dated 1", b"added 0", b"added 1"):
            entries[body] = storage.enter(message(body), 1000)
            if not body.startswith(b"added"):
                storage.added(1, entries[body])
        for name in "01":
            storage.save("queue", ("/", name), {"name": name})
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)

        confirms = []
        with monkeypatch.context() as patch:
            disk.may_sync, disk.may_write = failing != "sync", failing != "streams"
            if failing == "rows":
                patch.setattr(change_groups, "write_entries", fail)
                patch.setattr(store, "write_definitions", fail)
            for number in range(2):
                storage.removed(entries[b"removed %d" % number].row)
                storage.expires_earlier(entries[b"dated %d" % number].row, 500 + number)
                storage.added(1, entries[b"added %d" % number])
                storage.forget("queue", ("/", str(number)))
                log.append(simple_entry(b"%d" % number))
                gone[number].delete()
                confirms.append(asyncio.create_task(storage.stored()))
                before = len(errors)
                while len(errors) < before + 3:
                    await asyncio.sleep(0.001)
                assert not any(confirm.done() for confirm in confirms)
                assert [entry.message.body for entry in storage.read([entries[b"added 0"].row])] == [b"added 0"]
                assert log.end == 0
            assert recovered == []
            disk.may_sync = disk.may_write = True
        for confirm in confirms:
            await asyncio.wait_for(confirm, _PATIENCE_SECONDS)
        assert recovered == [len(errors)]
        assert log.end == 2
        shutil.copytree(directory, copy)
        assert [storage.read([entries[b"dated %d" % number].row])[0].expires_at for number in range(2)] == [500, 501]
        assert [*definitions_of(storage.database.db, "queue")] == []
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        assert recovered == [len(errors)]
        storage.close()

    asyncio.run(run())
    assert {type(error) for error in errors} == {sqlite3.OperationalError if failing == "rows" else OSError}
    assert entries_in(copy) == {b"dated 0": 500, b"dated 1": 501, b"added 0": 1000, b"added 1": 1000}
    assert [path.name for path in (copy / STREAMS).iterdir()] == ["2"]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_rows_of_many_purged_messages_are_deleted_in_several_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_stopped: bool
) -> None:
    """If a queue with many stored messages is purged, the broker deletes their rows in several database transactions,
    and serves its clients in between. When the broker stops, it deletes all remaining rows in one transaction.
    """
    deleted: list[int] = []
    write_entries = change_groups.write_entries

    def write(db: sqlite3.Connection, added: Any, removed: list[int], due: Any) -> None:
        deleted.append(len(removed))
        write_entries(db, added, removed, due)

    monkeypatch.setattr(change_groups, "_PURGED_AT_ONCE", 10)
    monkeypatch.setattr(change_groups, "write_entries", write)

    async def run() -> None:
        storage = Storage(tmp_path)
        entries = [storage.enter(message(b"%d" % number), None) for number in range(25)]
        for entry in entries:
            storage.added(1, entry)
        await storage.stored()
        deleted.clear()
        for entry in entries[1:]:
            storage.drop_purged(entry)
        while not is_stopped and sum(deleted) < 24:
            await storage.stored()
        storage.close()

    asyncio.run(run())
    assert [count for count in deleted if count] == ([24] if is_stopped else [10, 10, 4])
    assert [*entries_in(tmp_path)] == [b"0"]


async def waiting_for_disk(directory: Path) -> tuple[WaitingDisk, Storage, "asyncio.Task[None]"]:
    """Return a storage with small groups, whose disk waits, and the task that waits for its first group."""
    disk = WaitingDisk()
    storage = Storage(directory, disk)
    storage.changes.most_bytes = 9 * 256
    disk.may_go_on.clear()
    first = asyncio.create_task(storage.stored())
    await turns()
    return disk, storage, first


@pytest.mark.parametrize("case", ["the disk works", "a write fails", "the messages are purged", "the broker stops"])
def test_changes_that_wait_for_a_slow_disk_are_written_in_several_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """If many messages are published while the disk is slow, the broker writes them in several database transactions,
    and serves its clients in between. It confirms each message after the transaction that contains it, and repeats a
    transaction that fails. When the broker stops, it writes all remaining messages in one transaction.
    """
    written: list[int] = []
    write_entries = change_groups.write_entries
    failing = iter([case == "a write fails"])

    def write(db: sqlite3.Connection, added: Any, removed: list[int], due: Any) -> None:
        if added and next(failing, False):
            fail()
        written.append(len(added))
        write_entries(db, added, removed, due)

    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)
    monkeypatch.setattr(change_groups, "write_entries", write)

    async def run() -> None:
        disk, storage, first = await waiting_for_disk(tmp_path)
        for number in range(25):
            storage.added(1, storage.enter(message(b"%d" % number), None))
            if number % 5 == 4:
                await turns()
        last = asyncio.create_task(storage.stored())
        await turns()
        storage.removed(1)  # this message waits in an earlier group
        assert [entry.message.body for entry in storage.read([2, 25])] == [b"1", b"24"]
        for row in range(2, 26) if case == "the messages are purged" else ():
            storage.removed(row, purged=True)
        assert not last.done()
        disk.may_go_on.set()
        if case != "the broker stops":
            await asyncio.wait_for(asyncio.gather(first, last, storage.stored()), _PATIENCE_SECONDS)
            await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        storage.close()

    asyncio.run(run())
    expected = {"the broker stops": [25], "the messages are purged": [10, 10]}.get(case, [10, 10, 5])
    assert [count for count in written if count] == expected
    kept = range(1, 25) if case != "the messages are purged" else ()
    assert [*entries_in(tmp_path)] == [b"%d" % number for number in kept]


def test_expiration_times_that_wait_for_a_slow_disk_are_written_when_the_broker_stops(tmp_path: Path) -> None:
    """If the system clock was ahead before a restart, the broker corrects the expiration times of stored messages to
    earlier ones. If it is stopped while the corrected times wait for a slow disk, it writes them before it ends.
    After the next restart, the messages have the corrected times.
    """

    async def run() -> None:
        storage = Storage(tmp_path)
        for body in (b"earlier group", b"last group"):
            storage.added(1, storage.enter(message(body), 1000))
        storage.close()
        disk, storage, _ = await waiting_for_disk(tmp_path)
        storage.expires_earlier(1, 500)
        storage.added(1, storage.enter(message(bytes(storage.changes.most_bytes)), None))
        await turns()
        storage.expires_earlier(2, 600)
        assert len([*storage.changes]) == 3, "the next group, one that waits, and the one being synced"
        disk.may_go_on.set()
        storage.close()

    asyncio.run(run())
    found = entries_in(tmp_path)
    assert (found[b"earlier group"], found[b"last group"]) == (500, 600)


def test_a_message_published_to_a_stream_during_a_write_is_written_afterwards(tmp_path: Path) -> None:
    """If a message is published to a stream while the broker is writing to disk, the broker writes the message
    afterwards, even if there are no further changes and no client waits for a confirm or reads the stream.
    """

    async def run() -> None:
        disk, storage, first = await waiting_for_disk(tmp_path)
        log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
        log.append(simple_entry(b"x"))
        disk.may_go_on.set()
        await first
        while log.end == 0:
            await asyncio.sleep(0.001)
        storage.close()

    asyncio.run(asyncio.wait_for(run(), _PATIENCE_SECONDS))


@pytest.mark.parametrize("size", [1, 1000])
def test_messages_that_are_consumed_while_they_wait_for_a_slow_disk_are_not_written(tmp_path: Path, size: int) -> None:
    """If messages are consumed while they wait for a slow disk, the broker never writes them. A client whose confirm
    or reply depends on the disk therefore does not wait for these messages, whatever their size.
    """

    async def run() -> int:
        disk, storage, first = await waiting_for_disk(tmp_path)
        for _ in range(100):
            entry = storage.enter(message(bytes(size)), None)
            storage.added(1, entry)
            storage.removed(entry.row)
            await turns()
        waiting = len([*storage.changes])
        disk.may_go_on.set()
        await asyncio.wait_for(first, _PATIENCE_SECONDS)
        storage.close()
        return waiting

    assert asyncio.run(run()) == 2, "the group being synced, and the next one"


def test_a_group_of_changes_whose_write_fails_with_an_unexpected_error_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If writing a group of changes to disk fails with an unexpected error, such as TypeError, the broker reports the
    error like any other failed write, and writes the group again later. No message of the group is lost, and all of
    them are confirmed.
    """
    errors: list[Exception] = []
    recovered = asyncio.Event()

    def unforeseen(*_: object) -> None:
        raise TypeError("unforeseen")

    async def run() -> None:
        storage = Storage(tmp_path)
        storage.when_failed, storage.when_recovered = errors.append, recovered.set
        with monkeypatch.context() as patch:
            patch.setattr(store, "_RETRY_SECONDS", 0.001)
            patch.setattr(change_groups, "write_entries", unforeseen)
            storage.added(1, storage.enter(message(b"x"), None))
            stored = asyncio.create_task(storage.stored())
            while not errors:
                await asyncio.sleep(0.001)
            assert not stored.done()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        assert recovered.is_set()
        storage.close()

    asyncio.run(run())
    assert {repr(error) for error in errors} == {"TypeError('unforeseen')"}
    assert [*entries_in(tmp_path)] == [b"x"]


def test_an_internal_error_is_logged_once_with_its_traceback_until_a_write_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If writes to disk keep failing with the same unexpected error, the broker logs an internal error only once,
    with the error's traceback. If writes fail again after a write has succeeded, it logs the new error, too.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)
    errors = [TypeError("first"), TypeError("second")]
    failures: list[Exception] = []

    async def run() -> None:
        disk = FailingDisk()
        storage = Storage(tmp_path, disk)
        storage.when_failed = failures.append
        for error in errors:
            disk.error, disk.may_sync = error, False
            stored = asyncio.create_task(storage.stored())
            while failures.count(error) < 3:
                await asyncio.sleep(0.001)
            disk.may_sync = True
            await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        storage.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(run(), _PATIENCE_SECONDS))
    assert [record.getMessage() for record in caplog.records] == [
        "internal error while writing to the data directory"
    ] * len(errors)
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == errors


def test_a_system_exit_while_writing_to_disk_is_reported_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If SystemExit is raised on the thread that writes to disk, the broker does not end. It writes the changes
    later. Its report contains the name of the exception, because the text of a SystemExit is only an exit code.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)
    reports: list[str] = []

    async def run() -> None:
        disk = FailingDisk()
        storage = Storage(tmp_path, disk)
        storage.when_failed = lambda error: reports.append(str(error))
        disk.error, disk.may_sync = SystemExit(3), False
        storage.added(1, storage.enter(message(b"x"), None))
        stored = asyncio.create_task(storage.stored())
        while not reports:
            await asyncio.sleep(0.001)
        disk.may_sync = True
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        storage.close()

    asyncio.run(asyncio.wait_for(run(), _PATIENCE_SECONDS))
    assert {*reports} == {"SystemExit(3)"}
    assert [*entries_in(tmp_path)] == [b"x"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), TypeError("unforeseen")], ids=repr)
def test_a_group_of_changes_is_retried_if_a_new_segment_of_a_stream_cannot_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """If the broker cannot create the next segment of a stream, it reports the error and confirms nothing. It keeps
    all changes that were to be written together: messages for queues, messages of streams, and stored offsets. Once
    it can create the segment, it writes and confirms all of them in order. An error that the disk did not cause, such
    as TypeError, is logged as an internal error.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0.01)
    directory, copy = tmp_path / "data", tmp_path / "copy"
    errors: list[Exception] = []

    def refuse(*_: object) -> None:
        raise error

    async def run() -> None:
        storage = Storage(directory)
        storage.when_failed = errors.append
        stream = StreamLog(storage.segments(2), LoopClock(), storage, Retention(segment_bytes=1))
        reading = StreamLog(storage.segments(3), LoopClock(), storage, Retention(segment_bytes=1))
        for each in (stream, reading):
            each.append(simple_entry(b"first"))
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        with monkeypatch.context() as patch:
            patch.setattr(SegmentDirectory, "new", refuse)
            reading.store_offset("reader", 1)
            stream.append(b"".join([simple_entry(b"second")] * 4000), entries=4000, records=4000)
            storage.added(1, storage.enter(message(b"x"), None))
            stored = asyncio.create_task(storage.stored())
            while len(errors) < 2:
                await asyncio.sleep(0.001)
            stream.append(b"".join([simple_entry(b"third")] * 4000), entries=4000, records=4000)
            while len(errors) < 4:
                await asyncio.sleep(0.001)
            assert not stored.done()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        assert stream.end == 8001
        shutil.copytree(directory, copy)
        storage.close()

    async def bodies() -> tuple[list[bytes], dict[str, int]]:
        storage = Storage(copy)
        stream, reading = (StreamLog(storage.segments(key), LoopClock(), storage, Retention()) for key in (2, 3))
        reader, found = StreamQueueReader(stream, 0), []
        while chunks := reader.read():
            found += [bytes(body) for chunk in chunks for _, body in chunk.messages()]
        storage.close()
        return found, {**reading.offsets}

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(run(), _PATIENCE_SECONDS))
    assert set(errors) == {error}
    assert ("internal error" in caplog.text) is isinstance(error, TypeError)
    assert [*entries_in(copy)] == [b"x"]
    assert asyncio.run(bodies()) == ([b"first"] + [b"second"] * 4000 + [b"third"] * 4000, {"reader": 1})


def test_unwritten_changes_are_written_when_the_broker_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the broker could not write changes because the disk failed, and the disk works again when the broker stops,
    the broker writes all of these changes before it ends.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 60)

    async def run() -> None:
        disk = FailingDisk()
        storage = Storage(tmp_path, disk)
        failed = asyncio.Event()
        storage.when_failed = lambda _: failed.set()
        disk.may_sync = False
        storage.added(1, storage.enter(message(b"failed"), None))
        storage.after_commit(lambda: None)
        await asyncio.wait_for(failed.wait(), _PATIENCE_SECONDS)
        storage.added(1, storage.enter(message(b"waiting"), None))
        log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
        log.append(simple_entry(b"x"))
        await turns()
        called: list[int] = []
        storage.after_commit(lambda: called.append(log.end))
        disk.may_sync = True
        storage.close()
        assert called == [1]

    asyncio.run(run())
    assert entries_in(tmp_path) == {b"failed": None, b"waiting": None}


@pytest.mark.parametrize("failing", ["sync", "rows"])
def test_a_broker_that_cannot_write_when_it_stops_reports_how_many_messages_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    """If the disk fails when the broker stops, the broker logs an error with the number of unconfirmed messages that
    are lost. Another broker can use the data directory afterwards.
    """

    async def run() -> None:
        disk = FailingDisk()
        storage = Storage(tmp_path, disk)
        disk.may_sync = failing != "sync"
        for body in (b"1", b"2"):
            storage.added(1, storage.enter(message(body), None))
        with caplog.at_level(logging.ERROR), monkeypatch.context() as patch:
            if failing == "rows":
                patch.setattr(change_groups, "write_entries", fail)
            storage.close()

    asyncio.run(run())
    (record,) = caplog.records
    reason = {"sync": "[Errno 5] Input/output error", "rows": "database or disk is full"}[failing]
    assert record.getMessage() == f"cannot write to the data directory: {reason}; unconfirmed messages lost: 2"
    entries_in(tmp_path)


async def writing_a_dead_letter(directory: Path, disk: WaitingDisk) -> tuple[Storage, StreamLog]:
    """Return a storage that waits for the disk while it writes a dead letter to a stream and a copy to a queue."""
    storage = Storage(directory, disk)
    dead = storage.enter(message(b"dead"), None)
    storage.added(1, dead)
    await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
    disk.may_go_on.clear()
    log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
    log.append(simple_entry(b"dead"))
    storage.removed(dead.row)
    storage.added(3, storage.enter(message(b"copy"), None))
    return storage, log


def queues_and_stream(directory: Path) -> tuple[list[tuple[int, bytes]], list[bytes]]:
    """Open a data directory; return each message with its queue's key, and the bodies in the stream with the key 2."""

    async def run() -> tuple[list[tuple[int, bytes]], list[bytes]]:
        storage = Storage(directory)
        in_queues = [(stored.holder, stored.body) for stored in storage.entries()]
        reader = StreamQueueReader(StreamLog(storage.segments(2), LoopClock(), storage, Retention()), 0)
        in_stream = [bytes(body) for chunk in reader.read() for _, body in chunk.messages()]
        storage.close()
        return in_queues, in_stream

    return asyncio.run(run())


def test_a_kill_while_a_dead_letter_is_written_to_a_stream_neither_loses_nor_duplicates_it(tmp_path: Path) -> None:
    """If the broker is killed while it writes a dead letter to a stream and to another queue, the message is in its
    original queue after a restart, and neither the other queue nor the stream has a copy. If both copies are on disk
    before the broker ends, the message is no longer in its original queue after a restart, and its copy in the stream
    can be read.
    """
    directory, copy = tmp_path / "data", tmp_path / "copy"

    async def run() -> None:
        disk = WaitingDisk()
        storage, log = await writing_a_dead_letter(directory, disk)
        stored = asyncio.create_task(storage.stored())
        await turns()
        shutil.copytree(directory, copy)
        assert (stored.done(), log.end) == (False, 0)
        disk.may_go_on.set()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        assert log.end == 1
        storage.close()

    asyncio.run(run())
    assert queues_and_stream(copy) == ([(1, b"dead")], [])
    assert queues_and_stream(directory) == ([(3, b"copy")], [b"dead"])


def test_a_kill_while_dead_letters_wait_for_a_slow_disk_neither_loses_nor_duplicates_them(tmp_path: Path) -> None:
    """While the disk is slow, the broker writes the waiting changes in several database transactions. If a message is
    dead-lettered during this time, its deletion and its dead letter are in the same transaction. Whenever the broker
    is killed, either the message or its dead letter is there after a restart, but never both.
    """

    async def run() -> None:
        disk = CopyingDisk(tmp_path / "copies")
        storage = Storage(tmp_path / "data", disk)
        expired = storage.enter(message(b"expired"), None)
        storage.added(1, expired)
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        storage.changes.most_bytes = 1000
        disk.may_go_on.clear()
        storage.after_commit(lambda: None)
        await turns()
        storage.removed(expired.row)
        storage.added(2, storage.enter(message(b"dead letter" + bytes(1000)), None))
        await turns()
        storage.added(3, storage.enter(message(b"later" + bytes(1000)), None))
        stored = asyncio.create_task(storage.stored())
        await turns()
        disk.may_go_on.set()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        storage.close()

    asyncio.run(run())
    found = [[body.rstrip(b"\0") for body in entries_in(copy)] for copy in sorted((tmp_path / "copies").iterdir())]
    assert found[:4] == [[b"expired"], [b"expired"], [b"dead letter"], [b"dead letter", b"later"]]


def test_a_paged_out_message_with_deeply_nested_headers_is_read_back(tmp_path: Path) -> None:
    """A message with large, deeply nested headers can be paged out. When the broker reads it back, it has the same
    headers as before.
    """
    headers: Table = {"text": "x" * 300}
    for _ in range(MAX_DEPTH - 1):
        headers = {"nested": headers}

    async def run() -> None:
        storage = Storage(tmp_path)
        properties = MessageProperties.of({}).replace(headers=headers)
        sent = BrokerMessage(encode_address("", "q"), ContentHeader.of(properties, 1), b"x")
        entry = storage.enter(sent, None)
        storage.added(1, entry)
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        (found,) = storage.read([entry.row])
        assert found.message.header.properties.headers == headers
        storage.close()

    asyncio.run(run())


def test_a_new_expiration_time_of_a_message_is_read_back(tmp_path: Path) -> None:
    """After the broker has changed the time at which a message expires, it reads the message back with the new time. It
    does not matter whether this time is already on disk, is being written, or is waiting to be written.
    """

    async def run() -> None:
        disk = WaitingDisk()
        storage = Storage(tmp_path, disk)
        entries = [storage.enter(message(b"x"), 1000) for _ in range(4)]
        for entry in entries:
            storage.added(1, entry)
        storage.expires_earlier(entries[0].row, 500)
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        disk.may_go_on.clear()
        log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
        log.append(simple_entry(b"x"))
        storage.removed(entries[3].row)
        storage.expires_earlier(entries[1].row, 600)
        stored = asyncio.create_task(storage.stored())
        await turns()
        storage.expires_earlier(entries[2].row, 700)
        rows = [entry.row for entry in entries]
        assert [entry.expires_at for entry in storage.read(rows)] == [500, 600, 700, 1000]
        disk.may_go_on.set()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        storage.close()

    asyncio.run(run())


def test_a_message_is_written_and_deleted_without_further_changes(tmp_path: Path) -> None:
    """The broker writes a message to disk, and deletes it once it is acknowledged, even if no client waits for a
    confirm and nothing else changes.
    """

    async def run() -> None:
        storage = Storage(tmp_path)
        entry = storage.enter(message(b"x"), None)
        with sqlite3.connect(tmp_path / "broker.sqlite3") as db:
            for change, rows in ((lambda: storage.added(1, entry), 1), (lambda: storage.removed(entry.row), 0)):
                for _ in range(2):
                    await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
                change()
                while db.execute("SELECT COUNT(*) FROM entry").fetchone()[0] != rows:
                    await asyncio.sleep(0.001)
        db.close()
        storage.close()

    asyncio.run(asyncio.wait_for(run(), _PATIENCE_SECONDS))


def test_a_message_that_is_acknowledged_before_it_is_written_is_never_written(tmp_path: Path) -> None:
    """If a message is acknowledged before the broker has written it to disk, the broker does not write it at all."""

    async def run() -> None:
        storage = Storage(tmp_path)
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        before = storage.database.db.total_changes
        entry = storage.enter(message(b"x"), None)
        storage.added(1, entry)
        storage.removed(entry.row)
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        assert storage.database.db.total_changes == before
        storage.close()

    asyncio.run(run())


def test_a_message_published_during_a_write_is_not_confirmed_by_that_write(tmp_path: Path) -> None:
    """The broker writes changes to disk in groups. A message that is published after the broker has begun to write a
    group belongs to the next group, and is confirmed only once that next group is on disk.
    """

    async def run() -> None:
        disk = WaitingDisk()
        storage = Storage(tmp_path, disk)
        groups, confirmed = list[int](), list[int]()

        def publish(number: int) -> None:
            groups.append(storage.group)
            storage.added(1, storage.enter(message(b"x"), None))
            storage.after_commit(lambda: confirm(number))

        def confirm(number: int) -> None:
            confirmed.append(number)
            disk.may_go_on.clear()  # before the next group can be synced

        disk.may_go_on.clear()
        publish(0)
        for number in range(3):
            await turns()  # the group of this message is being written now
            publish(number + 1)
            await turns()
            assert confirmed == [*range(number)]
            disk.may_go_on.set()
            while len(confirmed) == number:
                await asyncio.sleep(0.001)
            await turns()
            assert confirmed == [*range(number + 1)]
        assert len(set(groups)) == 4
        disk.may_go_on.set()
        storage.close()

    asyncio.run(run())


def test_a_large_write_ahead_log_is_copied_to_the_database_file(tmp_path: Path) -> None:
    """After about 8 MiB of changes, and not before, the broker copies SQLite's write-ahead log to the database file."""

    async def run() -> None:
        storage = Storage(tmp_path)
        file = tmp_path / "broker.sqlite3"
        sizes = []
        for megabytes in (7, 2, 7, 2):
            for _ in range(megabytes):
                storage.added(1, storage.enter(message(bytes(1024 * 1024)), None))
            for _ in range(2):
                await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
            sizes.append(file.stat().st_size >> 20)
        assert sizes == [0, 9, 9, 18]
        storage.close()

    asyncio.run(run())


@pytest.mark.parametrize("what", ["declarations", "empty messages", "acknowledgements", "expiration times"])
def test_many_small_changes_do_not_let_the_write_ahead_log_grow_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """From time to time, the broker copies SQLite's write-ahead log to the database file and starts again at the
    log's beginning, so that the log does not fill the disk. This also happens if all changes are small: declarations
    of durable queues, messages without bodies, acknowledgements, or new expiration times.
    """
    monkeypatch.setattr(store, "_CHECKPOINT_BYTES", 128 * 1024)
    changes: dict[str, Callable[[Storage, int], object]] = {
        "declarations": lambda storage, row: storage.save("queue", ("/", str(row)), {}) if row % 50 == 0 else None,
        "empty messages": lambda storage, _: storage.added(1, storage.enter(message(b""), None)),
        "acknowledgements": lambda storage, row: storage.removed(row),
        "expiration times": lambda storage, row: storage.expires_earlier(row, row),
    }

    async def run() -> None:
        storage = Storage(tmp_path)
        for _ in range(5000):
            storage.added(1, storage.enter(message(b""), None))
        storage.close()
        storage = Storage(tmp_path)
        for row in range(1, 5001):
            changes[what](storage, row)
            if row % 100 == 0:
                await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        size = (tmp_path / "broker.sqlite3-wal").stat().st_size
        storage.close()
        assert 0 < size < 2 * 128 * 1024

    asyncio.run(run())


def test_deleting_a_virtual_host_keeps_the_user_with_the_same_name(tmp_path: Path) -> None:
    """When a virtual host is deleted, the broker also deletes all definitions in it from disk. It keeps a user with the
    same name, and a virtual host whose name begins with this name.
    """

    async def run() -> None:
        storage = Storage(tmp_path / "data")
        for name in ("a", "ab"):
            for kind in ("vhost", "user", "global_parameter"):
                storage.save(kind, (name,), {"name": name})
            for kind in ("exchange", "queue", "binding", "policy", "operator_policy"):
                storage.save(kind, (name, "x"), {"name": name})
        storage.forget("vhost", ("a",))
        await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
        storage.close()
        storage = Storage(tmp_path / "copy")
        left = storage.database.db.execute("SELECT kind, key FROM definition").fetchall()
        of_a = sorted(kind for kind, key in left if key[:5] == b"\0\0\0\1a")
        assert of_a == [b"global_parameter", b"user"]
        assert len(left) == 2 + 8
        storage.close()

    asyncio.run(run())


def test_stopping_the_broker_during_a_write_loses_no_message_for_a_stream(tmp_path: Path) -> None:
    """If the broker is stopped while it is writing a message of a stream to disk, it finishes this write, and also
    writes the messages that were published during the write.
    """

    async def run() -> None:
        disk = WaitingDisk()
        storage, log = await writing_a_dead_letter(tmp_path, disk)
        storage.after_commit(lambda: None)
        await turns()
        storage.added(3, storage.enter(message(b"later"), None))
        threading.Timer(0.05, disk.may_go_on.set).start()
        storage.close()
        assert log.end == 1

    asyncio.run(run())
    assert entries_in(tmp_path) == {b"copy": None, b"later": None}


def test_a_failed_write_of_a_stream_message_is_repeated_before_the_broker_ends(tmp_path: Path) -> None:
    """If the broker is stopped while it writes a message of a stream to disk, and this write fails, the broker writes
    the message again before it ends.
    """

    async def run() -> None:
        disk = FailingDisk()
        storage = Storage(tmp_path, disk)
        log = StreamLog(storage.segments(2), LoopClock(), storage, Retention())
        disk.writes_to_fail = 1
        log.append(simple_entry(b"x"))
        confirms: list[int] = []
        storage.after_commit(lambda: confirms.append(log.end))
        await turns(1)  # the write has begun, and the event loop has not heard of its end yet
        storage.close()
        assert (disk.writes_to_fail, confirms) == (0, [1])

    asyncio.run(run())
    assert queues_and_stream(tmp_path) == ([], [b"x"])
