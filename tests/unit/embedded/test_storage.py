"""The embedded broker's data directory on disks that fail or are slow."""

import asyncio
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.clock import LoopClock
from mqtool.broker.embedded.model.stream_log import Retention, StreamLog
from mqtool.broker.embedded.store import storage as store
from mqtool.broker.embedded.store.database import definitions_of
from mqtool.broker.embedded.store.disk import Disk
from mqtool.broker.embedded.store.storage import Storage

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


def fail(db: sqlite3.Connection, definitions: Mapping[tuple[str, bytes], bytes | None]) -> None:
    raise sqlite3.OperationalError("database or disk is full")


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_paged_out_message_can_be_read_back_while_a_stream_is_written(tmp_path: Path) -> None:
    """A paged-out message can be read back while the broker writes a stream to disk, and afterwards."""

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
    """If a definition cannot be written while messages are being synced to disk, the messages are still confirmed after
    the sync.
    """
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0)

    async def run() -> None:
        disk = WaitingDisk()
        storage = Storage(tmp_path, disk)
        disk.may_go_on.clear()
        stored = asyncio.create_task(storage.stored())
        await turns()
        with monkeypatch.context() as patch:
            patch.setattr(store, "write_definitions", fail)
            storage.delivering(1)
        await turns()
        disk.may_go_on.set()
        await asyncio.wait_for(stored, _PATIENCE_SECONDS)
        storage.close()

    asyncio.run(run())
