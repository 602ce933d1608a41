"""The database of the embedded broker's data directory: access, damage, full disks, and the disk space alarm."""

import asyncio
import errno
import logging
import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import ContentHeader, HeaderReader, MessageProperties, encode_address
from mqtool.broker.embedded.model.backlog import BATCH
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.store import database
from mqtool.broker.embedded.store.database import (
    FILE,
    SCHEMA,
    STREAMS,
    DiskSpace,
    StoredEntry,
    all_entries,
    definitions_of,
    entries_in,
    keys_with,
    open_database,
    write_definitions,
    write_entries,
)
from mqtool.broker.embedded.store.disk import Disk
from tests.open_files import open_files


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def memory() -> sqlite3.Connection:
    """Return a database in memory."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    return db


def stored(row: int, body: bytes = b"x") -> StoredEntry:
    return StoredEntry(row, 1, None, 0, 0, b"", b"", body)


@pytest.mark.parametrize("name", [FILE, f"{FILE}-wal.copy", STREAMS, f"{STREAMS}/7", f"{STREAMS}/7/{0:020}.segment"])
def test_a_data_directory_with_a_symbolic_link_is_not_used(tmp_path: Path, name: str) -> None:
    """If a file of the broker in its data directory is a symbolic link, the broker does not start, because anybody
    who can write to the directory could have created the link. The file that the link points to keeps its contents
    and mode.
    """
    target, link = tmp_path / "target", tmp_path / "data" / name
    target.write_bytes(b"not the broker's")
    target.chmod(0o644)
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(OSError, match=f"{link} is a symbolic link"):
        open_database(tmp_path / "data")
    assert (target.read_bytes(), mode_of(target)) == (b"not the broker's", 0o644)


def test_only_one_broker_uses_a_data_directory(tmp_path: Path) -> None:
    """While a broker uses a data directory, no other broker can open it. Once the first broker has closed the
    directory, another broker can open it.
    """
    first = open_database(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="another broker is using it") as error:
            open_database(tmp_path)
        assert str(error.value) == f"cannot use {tmp_path}: another broker is using it"
    first.close()
    open_database(tmp_path).close()


def test_only_the_user_who_runs_the_broker_can_access_its_database(tmp_path: Path) -> None:
    """Only the operating system user who runs the broker can access a new data directory and its database. If other
    users can access an existing database file, the broker removes their access when it starts. It does not change the
    mode of an existing directory.
    """
    directory = tmp_path / "a" / "b"
    open_database(directory).close()
    assert (mode_of(directory), mode_of(directory / FILE)) == (0o700, 0o600)
    for mode in (0o640, 0o604):
        directory.chmod(0o755)
        (directory / FILE).chmod(mode)
        open_database(directory).close()
        assert (mode_of(directory), mode_of(directory / FILE)) == (0o755, 0o600)


_PLENTY, _TOO_LITTLE = 10**12, 999_999


@pytest.mark.parametrize(
    ("error", "free", "is_full"),
    [
        (OSError(errno.ENOSPC, "no"), _PLENTY, True),
        (OSError(errno.EDQUOT, "no"), _PLENTY, True),
        (OSError(errno.EFBIG, "no"), _PLENTY, True),
        (OSError(errno.EACCES, "no"), _TOO_LITTLE, False),
        (sqlite3.OperationalError("database or disk is full"), _PLENTY, True),
        (sqlite3.OperationalError("disk I/O error"), _TOO_LITTLE, True),
        (sqlite3.OperationalError("disk I/O error"), 1_000_000, False),
        (sqlite3.OperationalError("locked"), _TOO_LITTLE, False),
    ],
    ids=[
        "no space",
        "quota exceeded",
        "file too large",
        "no permission",
        "database full",
        "I/O error, little space",
        "I/O error, enough space",
        "locked",
    ],
)
def test_a_full_disk_is_named_as_the_reason_why_a_broker_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int, *, is_full: bool
) -> None:
    """If a data directory cannot be opened because the disk is full, the error says how many bytes are free and how
    many are needed. If it cannot be opened for another reason, the error gives that reason. Once the problem is
    solved, the directory can be opened.
    """

    def fail(_: Path) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(database, "_open", fail)
        patch.setattr(database, "disk_free", lambda directory: free if directory == tmp_path else _PLENTY)
        with pytest.raises(OSError, match=r".") as found:
            open_database(tmp_path)
    if is_full:
        assert found.value.errno == errno.ENOSPC
        assert found.value.strerror == (
            f"the disk is full: {free} bytes are free, and about 1000000 are needed to open the data directory "
            f"{tmp_path}"
        )
    elif isinstance(error, OSError):
        assert found.value is error
    else:
        assert str(found.value) == f"cannot use {tmp_path}: {error}"
    open_database(tmp_path).close()


def test_the_space_needed_to_open_a_data_directory_grows_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open a data directory, the broker needs about 1 MB of free space plus twice the size of SQLite's write-ahead
    log, because it first copies the log, and then moves the contents of the log into the database.
    """

    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "no")

    (tmp_path / f"{FILE}-wal").write_bytes(bytes(5000))
    monkeypatch.setattr(database, "_open", fail)
    with pytest.raises(OSError, match="about 1010000 are needed"):
        open_database(tmp_path)


def test_an_empty_database_file_is_reported(tmp_path: Path) -> None:
    """If the database file of a data directory is empty, the broker starts like a new one, without its earlier
    queues, messages and users, and reports that something may have truncated the file. At the next start, it reports
    nothing about the file.
    """
    (tmp_path / FILE).touch()
    opened = open_database(tmp_path)
    assert opened.is_new
    assert opened.damage == (
        f"{tmp_path / FILE} was empty, so the broker starts like a new one, without queues, messages or users of its "
        "own: if this is not the first start, something else has truncated the file; stop the broker and restore the "
        "file"
    )
    opened.close()
    opened = open_database(tmp_path)
    assert opened.damage is None
    opened.close()


@pytest.mark.parametrize("used_by", ["mark", "definition"])
def test_a_data_directory_is_new_until_something_is_written_to_it(tmp_path: Path, used_by: str) -> None:
    """In a new data directory, the broker creates its defaults, such as the user guest. The directory is no longer
    new once the broker has recorded that the defaults exist, or has written any definition to it.
    """
    opened = open_database(tmp_path)
    assert opened.is_new
    if used_by == "mark":
        opened.mark_as_used()
    else:
        write_definitions(opened.db, {("user", b"a"): b""})
    assert not opened.is_new
    opened.close()
    opened = open_database(tmp_path)
    assert not opened.is_new
    opened.close()


def test_closing_a_data_directory_closes_its_files(tmp_path: Path) -> None:
    """After a data directory is closed, none of its files is open."""
    open_database(tmp_path).close()
    before = open_files()
    opened = open_database(tmp_path)
    assert not open_files() <= before
    opened.close()
    assert open_files() <= before


class RecordingDisk(Disk):
    """A disk that records which files are synced."""

    def __init__(self) -> None:
        self.synced: list[tuple[int, Path]] = []

    def sync(self, file: int, path: Path) -> None:
        self.synced.append((os.fstat(file).st_ino, path))


def test_the_writer_thread_syncs_and_checkpoints_the_database(tmp_path: Path) -> None:
    """Changes are committed to SQLite's write-ahead log. sync() syncs this log to disk, and checkpoint() copies it into
    the database file. The broker's writer thread can call both, although another thread has opened the database.
    """
    disk, log = RecordingDisk(), tmp_path / f"{FILE}-wal"
    opened = open_database(tmp_path, disk)
    assert [opened.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "wal_autocheckpoint")] == [
        1,
        0,
    ]
    write_definitions(opened.db, {("queue", b"written"): b"\0\0\0\0"})
    with ThreadPoolExecutor(1) as thread:
        thread.submit(opened.sync).result()
        assert disk.synced == [(log.stat().st_ino, log)]
        assert b"queuewritten" not in (tmp_path / FILE).read_bytes()
        thread.submit(opened.checkpoint).result()
    assert b"queuewritten" in (tmp_path / FILE).read_bytes()
    opened.close()


def test_a_message_that_is_read_back_has_the_position_and_the_counts_that_were_stored() -> None:
    """A message that is read back from the data directory has the position (its number in the order of arrival), the
    expiration time and the delivery counts that were stored. If it had already been delivered, it is marked as
    redelivered.
    """
    header = ContentHeader.of(MessageProperties(b"\0\0"), 1).raw
    for stored, counts in (((0, 0), (0, 0, False)), ((2, 1), (2, 2, True)), ((2, 6), (2, 5, True))):
        entry = StoredEntry(7, 1, 99, *stored, encode_address("", "q"), header, b"x").entry(HeaderReader())
        assert (entry.position, entry.row, entry.expires_at, entry.message.body) == (7, 7, 99, b"x")
        assert (entry.delivery_count, entry.acquired_count, entry.redelivered) == counts


@given(st.sets(st.integers(1, 40), min_size=1), st.data())
def test_exactly_the_removed_messages_are_deleted(rows: set[int], data: st.DataObject) -> None:
    """Whichever messages are removed from a data directory, and in whatever order, all others stay in it, in order."""
    removed = data.draw(st.permutations(sorted(rows)))[: data.draw(st.integers(1, len(rows)))]
    db = memory()
    write_entries(db, [stored(row) for row in rows], [], {})
    write_entries(db, [], list(removed), {})
    assert [entry.row for entry in all_entries(db)] == sorted(rows - set(removed))
    db.close()


def test_messages_are_read_from_a_data_directory_in_batches() -> None:
    """The embedded broker reads messages from its data directory in batches, in order. If messages are large, a batch
    contains fewer messages than requested: it ends with the first message that makes the bodies in the batch exceed 1
    MiB in total.
    """
    db = memory()
    rows = range(1, BATCH + 10)
    write_entries(db, [stored(row, b"%d" % row) for row in rows], [], {3: 17})
    assert [entry.row for entry in entries_in(db, rows[:BATCH])] == [*rows[:BATCH]]
    assert entries_in(db, [2, 3]) == [stored(2, b"2"), stored(3, b"3")._replace(due=17)]
    large = bytes(1024 * 512)
    write_entries(db, [stored(row, large) for row in range(1001, 1010)], [], {})
    assert [entry.row for entry in entries_in(db, range(1001, 1010))] == [1001, 1002, 1003]
    db.close()


@pytest.mark.parametrize("rows", [[5], [4, 5], [1, 4, 6]], ids=["missing", "two missing", "missing between others"])
def test_reading_a_message_that_is_not_in_the_data_directory_raises_database_error(rows: list[int]) -> None:
    """Reading a message that is not in the data directory raises DatabaseError, instead of returning
    another message.
    """
    db = memory()
    write_entries(db, [stored(1), stored(2), stored(6)], [], {})
    expected = f"messages from {rows[0]} to {rows[-1]} are not in the data directory"
    with pytest.raises(sqlite3.DatabaseError, match=expected):
        entries_in(db, rows)
    db.close()


def test_a_definition_is_identified_by_its_kind_and_its_name() -> None:
    """A definition in a data directory is identified by its kind, such as "queue", and its name. Writing or deleting
    a definition does not change definitions of another kind or name.
    """
    db = memory()
    db.text_factory = bytes
    for value in (b"\0\0\0\0", b"\0\0\0\5\1aI\0\0"):
        write_definitions(db, {("queue", b"ab"): value, ("queue", b"b"): b"\0\0\0\0", ("user", b"ab"): b"\0\0\0\0"})
    assert [*definitions_of(db, "queue")] == [(b"ab", None), (b"b", {})]
    assert sorted(keys_with(db, b"a")) == [("queue", b"ab"), ("user", b"ab")]
    write_definitions(db, {("queue", b"ab"): None, ("queue", b"missing"): None})
    assert [*definitions_of(db, "queue")] == [(b"b", {})]
    assert [*definitions_of(db, "user")] == [(b"ab", {})]
    db.close()


@pytest.mark.parametrize(
    ("free", "alarms", "seconds"),
    [
        (49_999_999, {"disk space": "low on disk"}, 0.5),
        (50_000_000, {}, 0.1),
        (300_000_000, {}, 1.0),
        (10**12, {}, 10.0),
    ],
    ids=["below the limit", "at the limit", "little space", "much space"],
)
def test_publishers_are_blocked_while_the_disk_has_too_little_space(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, alarms: dict[str, str], seconds: float
) -> None:
    """While the free disk space is below the limit, a disk alarm blocks publishers, and the log says how many bytes are
    free. The broker checks the free space every 0.1 to 10 s: the closer it is to the limit, the more often. When the
    broker stops, these checks end.
    """
    caplog.set_level(logging.WARNING)
    later: list[float] = []
    cancelled: list[bool] = []

    def call_later(after: float, what: object) -> Any:
        later.append(after)
        assert what == space.check
        return SimpleNamespace(cancel=lambda: cancelled.append(True))

    monkeypatch.setattr(asyncio, "get_running_loop", lambda: SimpleNamespace(call_later=call_later))
    ledger = Ledger()
    broker = Broker(ledger, clock=cast(Any, SimpleNamespace(now=lambda: 0)))
    space = DiskSpace(broker)
    space.stop()
    for before in (0, 10**12):
        monkeypatch.setattr(ledger, "disk_free", lambda before=before: before)
        space.check()
        monkeypatch.setattr(ledger, "disk_free", lambda: free)
        space.check()
        assert broker.alarms == alarms
        assert later[-1] == seconds
    space.stop()
    assert cancelled == [True]
    warned = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith("disk space alarm set")
    ]
    assert warned[-1] == f"disk space alarm set: only {free if alarms else 0} bytes are free"
