"""Damage to the files of a data directory: what is reported, what is still read, and which copies are kept."""

import logging
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqtool.broker.embedded.store.damage import is_sound, new_directory
from mqtool.broker.embedded.store.database import (
    FILE,
    Database,
    all_entries,
    keys_with,
    open_database,
    write_definitions,
    write_entries,
)

#: SQLite's page size, and the sizes of the headers of its log and of each page in the log.
PAGE, LOG_HEADER, PAGE_HEADER = 4096, 32, 24


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Database]:
    """A data directory in use, with five definitions, each one page in the write-ahead log, and nothing else."""
    database = open_database(tmp_path / "data")
    database.checkpoint()
    for number in range(5):
        write_definitions(database.db, {("queue", b"%d" % number): b"\0\0\0\0"})
    yield database
    database.close()


@pytest.fixture
def killed(opened: Database, tmp_path: Path) -> Path:
    """The data directory as it is if the broker is killed now."""
    return copy_of(tmp_path)


def copy_of(tmp_path: Path) -> Path:
    copy = tmp_path / "killed"
    copy.mkdir(mode=0o700)
    for name in (FILE, f"{FILE}-wal"):
        shutil.copy(tmp_path / "data" / name, copy)
    return copy


def flip(path: Path, offset: int) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def read(directory: Path) -> tuple[str | None, list[bytes]]:
    """Open a data directory; return what is reported about damage, and the keys of its definitions."""
    database = open_database(directory)
    keys = sorted(key for _, key in keys_with(database.db, b""))
    found = database.damage
    database.close()
    return found, keys


def kept(directory: Path) -> Path:
    (path,) = directory.glob("damaged-*")
    return path


def keys(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def test_the_write_ahead_log_of_a_killed_broker_is_read_and_no_copy_of_it_is_left(killed: Path) -> None:
    """At its next start after a kill, the broker reads SQLite's write-ahead log to the end, reports no damage, and
    leaves no copy of this log.
    """
    assert read(killed) == (None, keys(5))
    assert [path.name for path in killed.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("page", "offset", "reported", "count"),
    [
        (0, 0, "the log was damaged: all recent changes in it could not be read", 0),
        (0, 9, "the log was damaged: all recent changes in it could not be read", 0),
        (0, 24, "the log was damaged: all recent changes in it could not be read", 0),
        (0, 31, "the log was damaged: all recent changes in it could not be read", 0),
        (1, 100, "the log was damaged: the last 5 groups of changes in it could not be read", 0),
        (3, 100, "the log was damaged: the last 3 groups of changes in it could not be read", 2),
        (4, 2000, "the log was damaged: the last 2 groups of changes in it could not be read", 3),
        (5, 2000, "the last group of changes in the log is incomplete: nothing is lost if the broker was killed, or "
         "its disk was full, as it wrote it; else the disk has damaged it", 4),
    ],
)  # fmt: skip
def test_damage_to_the_write_ahead_log_is_reported_with_the_number_of_lost_transactions(
    killed: Path, page: int, offset: int, reported: str, count: int
) -> None:
    """If a bit of SQLite's write-ahead log is flipped, the broker reads the changes before the damage. It reports how
    many groups of changes (SQLite transactions) are lost, or that all are lost. It keeps a copy of the database, and
    an unchanged copy of the damaged log. The latter copy has the file mode 0600.
    """
    log = killed / f"{FILE}-wal"
    flip(log, offset + (LOG_HEADER + (page - 1) * (PAGE_HEADER + PAGE) if page else 0))
    before = log.read_bytes()
    assert read(killed) == (f"{reported}. The files as they were are in {kept(killed)}", keys(count))
    assert (kept(killed) / log.name).read_bytes() == before
    assert {path.name for path in kept(killed).iterdir()} == {FILE, log.name}
    assert {path.name for path in killed.iterdir()} == {FILE, kept(killed).name}
    assert stat.S_IMODE((kept(killed) / log.name).stat().st_mode) == 0o600
    assert read(killed) == (None, keys(count))


@pytest.mark.parametrize(("page", "is_torn"), [(6, False), (8, False), (9, True)])
def test_only_damage_to_the_last_page_is_reported_as_an_incomplete_transaction(
    opened: Database, tmp_path: Path, page: int, *, is_torn: bool
) -> None:
    """The last group of changes (one SQLite transaction) in the write-ahead log may fill several pages. If only the
    last of these pages is damaged, the broker reports an incomplete group, because a kill may have interrupted the
    write of that page. If an earlier page is damaged, the broker reports that the log was damaged.
    """
    opened.db.execute("BEGIN")
    write_definitions(opened.db, {("queue", b"large"): bytes(2 * PAGE)})
    opened.db.execute("COMMIT")
    killed = copy_of(tmp_path)
    log = killed / f"{FILE}-wal"
    assert (log.stat().st_size - LOG_HEADER) // (PAGE_HEADER + PAGE) == 9
    flip(log, LOG_HEADER + (page - 1) * (PAGE_HEADER + PAGE) + 2000)
    found, left = read(killed)
    group = "the last group of changes"
    assert str(found).startswith(
        f"{group} in the log is incomplete: " if is_torn else f"the log was damaged: {group} in it could not be read. "
    )
    assert left == keys(5)


def test_older_pages_in_the_write_ahead_log_are_not_reported_as_damage(opened: Database, tmp_path: Path) -> None:
    """After a checkpoint, SQLite overwrites its write-ahead log from the start, so older pages can follow the new
    ones. If the broker is killed in this state, it does not report the older pages as damage at its next start.
    """
    opened.checkpoint()
    write_definitions(opened.db, {("queue", b"5"): b"\0\0\0\0"})
    killed = copy_of(tmp_path)
    assert (killed / f"{FILE}-wal").stat().st_size >= LOG_HEADER + 5 * (PAGE_HEADER + PAGE)
    assert read(killed) == (None, keys(6))


@pytest.mark.parametrize("database", ["missing", "empty"])
def test_a_write_ahead_log_without_its_database_is_not_changed(killed: Path, database: str) -> None:
    """If SQLite's write-ahead log contains pages, but the database is missing or empty, the broker does not open the
    data directory, because SQLite would delete the log. If the log contains no pages, the broker opens the data
    directory.
    """
    path, log = killed / FILE, killed / f"{FILE}-wal"
    path.unlink()
    if database == "empty":
        path.touch()
    before = log.read_bytes()
    with pytest.raises(OSError, match="is empty, but its log is not") as error:
        open_database(killed)
    assert str(error.value) == (
        f"{path} is empty, but its log is not: the messages in {log} cannot be read without it. Nothing was changed; "
        "restore the file, or move the directory away to start with an empty broker"
    )
    assert log.read_bytes() == before
    assert path.exists() == (database == "empty")
    log.write_bytes(before[:LOG_HEADER])
    assert read(killed)[1] == []


@pytest.mark.parametrize("why", ["full", "locked", "garbage"])
def test_a_start_that_fails_leaves_no_copy_of_the_write_ahead_log(
    killed: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The broker cannot open a data directory if the disk is full, if another program locks the database, or if nothing
    in the database can be read. It then leaves the database and SQLite's write-ahead log unchanged, and leaves no copy
    of the log.
    """
    database, log = killed / FILE, killed / f"{FILE}-wal"
    other = sqlite3.connect(database, isolation_level=None)
    if why == "full":

        def write_bytes(path: Path, data: bytes) -> int:
            with path.open("wb") as file:
                file.write(data[:10])
            raise OSError(28, "no space left on device")

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
    elif why == "locked":
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
    else:
        database.write_bytes(b"not a database" * 1000)
    before = log.read_bytes(), database.read_bytes()
    with pytest.raises(OSError, match=r"full|locked|nothing in it can be read") as error:
        open_database(killed)
    if why == "garbage":
        assert str(error.value) == (
            f"{database} is damaged, and nothing in it can be read. Nothing was changed; restore the file, or move the "
            "directory away to start with an empty broker"
        )
    assert (log.read_bytes(), database.read_bytes()) == before
    assert {path.name for path in killed.iterdir()} <= {FILE, f"{FILE}-wal", f"{FILE}-shm"}
    other.close()


def body(row: int) -> bytes:
    return b"body %03d " % row * 200


def test_a_file_that_is_not_a_database_counts_as_damaged(tmp_path: Path) -> None:
    """A database file counts as damaged if SQLite cannot read anything in the file, but not if the file is empty."""
    for content, sound in ((b"not a database" * 1000, False), (b"", True)):
        (tmp_path / FILE).write_bytes(content)
        db = sqlite3.connect(tmp_path / FILE)
        db.text_factory = bytes
        assert is_sound(db) == sound
        db.close()


@pytest.fixture
def stopped(opened: Database, tmp_path: Path) -> Path:
    """The database of a stopped broker, with 100 messages, two in a page, and a table that the broker does not need."""
    write_entries(opened.db, [(row, 1, None, 0, 0, b"", b"", body(row)) for row in range(1, 101)], [], {})
    opened.db.execute("CREATE TABLE other (a BLOB)")
    opened.db.execute("INSERT INTO other VALUES (?)", (b"other" * 100,))
    copy = tmp_path / "stopped"
    copy.mkdir()
    opened.checkpoint()
    shutil.copy(tmp_path / "data" / FILE, copy)
    return copy / FILE


def overwrite(database: Path, *contents: bytes) -> None:
    """Overwrite each page that contains one of these byte strings."""
    data = bytearray(database.read_bytes())
    for start in [data.index(content) // PAGE * PAGE for content in contents]:
        data[start : start + PAGE] = b"\xff" * PAGE
    database.write_bytes(data)


@pytest.mark.parametrize(
    ("contents", "lost"),
    [
        ([body(50)], "some of its messages"),
        ([body(30), body(60)], "some of its messages"),
        ([b"other" * 9], "parts that the broker does not need"),
    ],
)
def test_the_messages_before_and_after_a_damaged_part_of_the_database_are_read(
    stopped: Path, contents: list[bytes], lost: str
) -> None:
    """If pages of the database are damaged, the broker copies the definitions and messages before and after the
    damage to a new database file, which only the file's owner can read. It reports the loss once, and keeps the
    damaged file unchanged in another directory. It does not treat the new file as that of a new broker, so it does
    not create the default user again.
    """
    overwrite(stopped, *contents)
    before = stopped.read_bytes()
    damaged = [row for row in range(1, 101) if body(row) not in before] or [101]
    rows = [row for row in range(1, 101) if not damaged[0] <= row <= damaged[-1]]
    opened = open_database(stopped.parent)
    assert opened.damage == (
        f"the database was damaged: {lost} could not be read; {len(rows)} messages could. The files as they were are "
        f"in {kept(stopped.parent)}"
    )
    assert {entry.row: entry.body for entry in all_entries(opened.db)} == {row: body(row) for row in rows}
    assert len(keys_with(opened.db, b"")) == 5
    write_definitions(opened.db, dict.fromkeys(keys_with(opened.db, b"")))
    assert not opened.is_new
    opened.close()
    assert stat.S_IMODE(stopped.stat().st_mode) == 0o600
    assert (kept(stopped.parent) / FILE).read_bytes() == before
    assert {path.name for path in stopped.parent.iterdir()} == {FILE, kept(stopped.parent).name}
    assert read(stopped.parent)[0] is None


def test_messages_without_bodies_are_left_out_when_a_damaged_database_is_copied(
    stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If its database is damaged, the broker copies what is still readable to a new database file, but leaves out
    messages that have lost their bodies. It logs which table is damaged. If an earlier attempt was interrupted and left
    an unfinished copy, the broker overwrites this copy.
    """
    db = sqlite3.connect(stopped)
    db.execute("UPDATE entry SET body = NULL WHERE row IN (1, 99)")
    db.commit()
    db.close()
    (stopped.parent / f"{FILE}.salvaged").write_bytes(b"an earlier attempt")
    overwrite(stopped, body(50))
    missing = {row for row in range(1, 101) if body(row) not in stopped.read_bytes()}
    assert {1, 50, 99} < missing
    with caplog.at_level(logging.WARNING):
        opened = open_database(stopped.parent)
    assert [entry.row for entry in all_entries(opened.db)] == sorted({*range(1, 101)} - missing)
    assert f"; {100 - len(missing)} messages could. " in str(opened.damage)
    opened.close()
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        "table entry, by row",
        "table entry, by row DESC",
    ]


def test_lost_definitions_are_reported(opened: Database, tmp_path: Path) -> None:
    """If damage to the database has destroyed definitions, the broker reports that some of its queues, exchanges,
    bindings or users could not be read. It does so even if all messages could be read.
    """
    write_definitions(opened.db, {("queue", b"%03d" % number): bytes(900) for number in range(100)})
    write_entries(opened.db, [(1, 1, None, 0, 0, b"", b"", body(1))], [], {})
    opened.checkpoint()
    shutil.copy(tmp_path / "data" / FILE, tmp_path)
    overwrite(tmp_path / FILE, b"queue050")
    found, left = read(tmp_path)
    assert str(found).startswith(
        "the database was damaged: some of its queues, exchanges, bindings or users could not be read; "
    )
    assert 90 < len(left) < 105


def test_damaged_files_are_kept_in_a_directory_that_is_named_after_the_time(tmp_path: Path) -> None:
    """The broker keeps damaged files in a directory whose name contains the local time to the second. Only the
    operating system user who runs the broker can access this directory.
    """
    for _ in range(2):
        path = new_directory(tmp_path)
        assert path.parent == tmp_path
        assert re.fullmatch(r"damaged-20\d\d[01]\d[0-3]\d-[0-2]\d[0-5]\d[0-5]\d", path.name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
