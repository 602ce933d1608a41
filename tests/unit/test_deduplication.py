"""The store of `worker --deduplicate`: which messages count as handled, and which ones a worker must handle."""

import multiprocessing
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mqtool.errors import MqtoolError, UsageError
from mqtool.message import Delivery
from mqtool.work import deduplication
from mqtool.work.deduplication import Handled, HandledMessages, Interrupted, MessageKey
from mqtool.work.history import returns_of
from mqtool.work.transfer import failed, redriven

KEY = MessageKey("rabbit@host/", "jobs", "a")
DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mqtool" / "handled.db"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the store, as the only item of a list."""
    clock = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    return clock


def test_with_deduplicate_a_worker_handles_a_message_once(path: Path) -> None:
    """With `--deduplicate`, a worker handles each message once. If a copy of a handled message arrives, the worker does
    not handle the copy, but sends the stored reply again, if there is one.
    """
    store = HandledMessages(path, DAY)
    assert store.begin(KEY) is None
    store.done(KEY)
    assert store.begin(KEY) == Handled(None, dead=False)
    other = KEY._replace(message_id="b")
    assert store.begin(other) is None
    store.done(other, b'{"body": "42"}')
    assert store.begin(other) == Handled(b'{"body": "42"}', dead=False)
    assert HandledMessages(path, DAY).begin(other) == Handled(b'{"body": "42"}', dead=False)


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(broker="rabbit@host/other"),
        KEY._replace(queue="other"),
        KEY._replace(message_id="A"),
        KEY._replace(client="guest"),
    ],
    ids=["broker", "queue", "id", "client"],
)
def test_a_message_with_another_broker_queue_client_or_id_is_not_a_duplicate(path: Path, other: MessageKey) -> None:
    """With `--deduplicate`, a message on another broker, in another queue or from another client is not a duplicate of
    a handled message. Nor is a message with another message ID, even if the two IDs differ only in letter case.
    """
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.done(KEY)
    assert store.begin(other) is None


def test_messages_with_different_ids_that_are_not_utf_8_are_not_duplicates(path: Path) -> None:
    """With `--deduplicate`, messages whose IDs are not valid UTF-8 are duplicates only if the bytes of their IDs are
    equal.
    """
    store = HandledMessages(path, DAY)
    one, other = KEY._replace(message_id="\udcff"), KEY._replace(message_id="\udcfe")
    assert store.begin(one) is None
    store.done(one)
    assert store.begin(other) is None
    assert store.begin(one) == Handled(None, dead=False)


def test_a_message_that_failed_is_handled_again(path: Path) -> None:
    """With `--deduplicate`, a worker handles a redelivered message if an earlier attempt to handle it failed. It does
    not handle the message again once an attempt has succeeded.
    """
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.failed(KEY)
    assert store.begin(KEY, lambda: True) is None
    store.done(KEY)
    store.failed(KEY)
    assert store.begin(KEY) == Handled(None, dead=False)


def test_a_dead_letter_is_handled_again_only_after_a_redrive(path: Path) -> None:
    """With `--deduplicate`, once a message has been dead-lettered, a worker does not handle other copies of the
    message. The exception is a copy that has been moved back from the dead-letter queue (redriven) since then. The
    worker recognizes such a copy by its number of redrives, which is higher than the number that the dead-lettered
    message had.
    """
    store = HandledMessages(path, DAY)
    assert store.begin(KEY, returns=1) is None
    store.dead_lettered(KEY, 1)
    assert store.begin(KEY) == Handled(None, dead=True)
    assert store.begin(KEY, returns=1) == Handled(None, dead=True)
    assert store.begin(KEY, returns=2) is None
    store.done(KEY)
    assert store.begin(KEY, returns=3) == Handled(None, dead=False)


@pytest.mark.parametrize("count", [2**31 - 3, 2**31 - 2, 2**40], ids=["almost the largest", "the largest", "larger"])
@pytest.mark.parametrize("how", ["redrive", "move"])
def test_a_redriven_dead_letter_is_handled_whatever_count_its_publisher_has_forged(
    path: Path, count: int, how: str
) -> None:
    """With `--deduplicate`, a worker handles a dead letter each time that `dlq redrive` or `move` has moved it back,
    even if its publisher has set the header with the number of redrives to a very large number. It does not handle a
    copy that was not moved back.
    """
    store = HandledMessages(path, DAY)
    headers = {"mqtool-redrives": count}
    message = Delivery(b"job", "", "jobs", "jobs", redelivered=False, properties={"headers": headers}, delivery_tag=1)
    for _ in range(4):
        returns = returns_of(message)
        assert store.begin(KEY, returns=returns) is None
        store.dead_lettered(KEY, returns)
        assert store.begin(KEY, returns=returns) == Handled(None, dead=True)
        message.properties = failed(message, "exit status 1", "jobs.dlq", "rejected").properties
        if how == "redrive":
            message.properties = redriven(message, "jobs").properties


def test_a_copy_of_a_dead_letter_that_was_never_moved_back_is_not_handled(path: Path) -> None:
    """If a message was dead-lettered and has never been moved back from the dead-letter queue, a worker with
    `--deduplicate` does not handle another copy of this message.
    """
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.dead_lettered(KEY, 0)
    assert store.begin(KEY) == Handled(None, dead=True)


def test_a_copy_is_a_duplicate_only_within_the_deduplication_window(path: Path, now: list[float]) -> None:
    """With `--deduplicate`, a copy of a handled message is a duplicate only if it arrives within the deduplication
    window (a day in this test). A worker handles a copy that arrives later.
    """
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.done(KEY)
    now[0] += DAY - 1
    assert store.begin(KEY) == Handled(None, dead=False)
    now[0] += 1
    assert store.begin(KEY) is None


def test_old_messages_are_removed_from_the_deduplication_store(path: Path, now: list[float]) -> None:
    """The deduplication store of a worker forgets messages that were handled longer ago than the deduplication
    window, so that it does not grow forever. It keeps newer messages, and those that are still being handled.
    """
    store = HandledMessages(path, DAY)
    old, handling, new = (KEY._replace(message_id=name) for name in ("old", "handling", "new"))
    for each in (old, handling):
        store.begin(each)
    store.done(old)
    now[0] += DAY - 61
    store.begin(new)
    store.done(new)
    now[0] += 61
    store.begin(KEY)
    with sqlite3.connect(path) as reader:
        assert {name for (name,) in reader.execute("SELECT message_id FROM handled_messages")} == {
            "a", "handling", "new",
        }  # fmt: skip


def test_old_messages_are_removed_from_the_deduplication_store_at_most_once_a_minute(
    path: Path, now: list[float]
) -> None:
    """When a message arrives, the deduplication store removes old messages, but at most once a minute, because
    searching for them at each arrival would take too long.
    """
    store = HandledMessages(path, 1)

    def removed_after(seconds: float) -> bool:
        now[0] += seconds
        store.begin(KEY._replace(message_id="other"))
        store.failed(KEY._replace(message_id="other"))
        with sqlite3.connect(path) as reader:
            return not reader.execute("SELECT * FROM handled_messages").fetchall()

    assert removed_after(0)
    store.begin(KEY)
    store.done(KEY)
    assert [removed_after(seconds) for seconds in (30, 30, 1)] == [False, False, True]


def test_a_worker_waits_while_another_worker_handles_a_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another worker is handling a copy of a message, a worker with `--deduplicate` waits until the other worker is
    done. The wait also ends if the waiting worker is stopped.
    """
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    with pytest.raises(Interrupted, match="message a is being handled by another worker"):
        store.begin(KEY, lambda: True)
    pauses = list[float]()

    def finish_meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        store.done(KEY, b"{}")

    monkeypatch.setattr(deduplication.time, "sleep", finish_meanwhile)
    assert store.begin(KEY) == Handled(b"{}", dead=False)
    assert pauses == [0.05]


@pytest.fixture
def other_worker(path: Path) -> Iterator[multiprocessing.Process]:
    """A process that handles the message until it is killed."""

    def claim_and_wait(claimed: Connection) -> None:
        HandledMessages(path, DAY).begin(KEY)
        claimed.send(None)
        claimed.recv()

    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=claim_and_wait, args=(there,))
    worker.start()
    here.recv()
    yield worker
    worker.kill()
    worker.join()


def test_the_message_of_a_killed_worker_is_handled_again(path: Path, other_worker: multiprocessing.Process) -> None:
    """With `--deduplicate`, a worker does not handle a message while another worker is handling a message with the same
    ID. If the other worker is killed before it is done, the worker handles the message.
    """
    store = HandledMessages(path, DAY)
    with pytest.raises(Interrupted):
        store.begin(KEY, lambda: True)
    other_worker.kill()
    other_worker.join()
    assert store.begin(KEY, lambda: True) is None


def test_the_message_of_a_worker_that_is_a_zombie_is_handled_again(
    path: Path, other_worker: multiprocessing.Process
) -> None:
    """If a worker is killed while it is handling a message, another worker with `--deduplicate` handles the message,
    even while the killed process is a zombie (its parent process has not collected the exit status).
    """
    other_worker.kill()
    os.waitid(os.P_PID, other_worker.pid or 0, os.WEXITED | os.WNOWAIT)  # it has ended, and is now a zombie
    assert HandledMessages(path, DAY).begin(KEY, lambda: True) is None


def test_without_proc_a_worker_is_identified_by_its_process_id(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On systems without /proc, a worker with `--deduplicate` considers another worker to be running if there is a
    process with that worker's process ID. It then does not handle the message that the other worker is handling.
    """
    monkeypatch.setattr(deduplication, "_PROC", tmp_path)
    other_worker: multiprocessing.Process = request.getfixturevalue("other_worker")
    store = HandledMessages(path, DAY)
    with pytest.raises(Interrupted):
        store.begin(KEY, lambda: True)
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT owner FROM handled_messages").fetchone() == (str(other_worker.pid),)
    other_worker.kill()
    other_worker.join()
    assert store.begin(KEY, lambda: True) is None


@pytest.mark.parametrize(("state", "is_alive"), [("S", True), ("Z", False)])
def test_a_running_worker_is_recognized_even_if_its_name_looks_like_a_process_state(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, *, is_alive: bool
) -> None:
    """A worker with `--deduplicate` checks in /proc whether another worker is running. If the other worker's process
    name looks like a process state, such as `a) Z 1`, the name is not mistaken for the state, which follows the name on
    the same line.
    """
    monkeypatch.setattr(deduplication, "_PROC", tmp_path)
    stat_file = tmp_path / str(os.getpid()) / "stat"
    stat_file.parent.mkdir()
    stat_file.write_text(f"{os.getpid()} (a) Z 1) S 1 {'0 ' * 17}77 0\n")
    HandledMessages(path, DAY).begin(KEY)
    with sqlite3.connect(path) as store:
        assert store.execute("SELECT owner FROM handled_messages").fetchone() == (f"{os.getpid()} 77",)
    other = HandledMessages(path, DAY)
    other._owner = "another process"
    stat_file.write_text(f"{os.getpid()} (a) Z 1) {state} 1 {'0 ' * 17}77 0\n")
    if is_alive:
        with pytest.raises(Interrupted):
            other.begin(KEY, lambda: True)
    else:
        assert other.begin(KEY, lambda: True) is None


def test_a_reused_process_id_is_not_taken_for_the_worker(path: Path, other_worker: multiprocessing.Process) -> None:
    """If a worker is killed while it is handling a message, a process that starts later may get the same process ID.
    Another worker with `--deduplicate` does not take this process for the killed worker, and handles the message.
    """
    with sqlite3.connect(path) as store:
        store.execute("UPDATE handled_messages SET owner = owner || '0'")  # it ends with the time of the start
    assert other_worker.is_alive()
    assert HandledMessages(path, DAY).begin(KEY, lambda: True) is None


def test_a_message_that_an_earlier_run_did_not_finish_is_handled(path: Path) -> None:
    """If a worker is killed while it is handling a message, an entry in the deduplication store still says that this
    worker is handling the message. If a new worker happens to have the same process ID and start time, the entry seems
    to be the new worker's. Since the new worker has not begun to handle the message, it ignores the entry and handles
    the message.
    """
    HandledMessages(path, DAY).begin(KEY)
    assert HandledMessages(path, DAY).begin(KEY, lambda: True) is None


def test_the_threads_of_a_worker_share_one_deduplication_store(path: Path) -> None:
    """A message that one thread of a worker has handled is a duplicate for the worker's other threads. If another
    worker has locked the deduplication store, a worker waits for up to 30 seconds for the lock to be released.
    """
    store = HandledMessages(path, DAY)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(store.begin, KEY).result() is None
        other.submit(store.done, KEY).result()
    assert store.begin(KEY) == Handled(None, dead=False)
    assert store._store.execute("PRAGMA busy_timeout").fetchone() == (30_000,)


def test_a_worker_does_not_keep_the_ids_of_handled_messages_in_memory(path: Path) -> None:
    """With `--deduplicate`, a worker keeps a message's ID in memory only until handling the message has succeeded or
    failed, so that a long run needs little memory.
    """
    store = HandledMessages(path, DAY)
    for number in range(10):
        key = KEY._replace(message_id=str(number))
        store.begin(key)
        store.done(key) if number % 2 else store.failed(key)
    assert store._claims == set()


def test_only_its_owner_can_read_the_deduplication_store(path: Path) -> None:
    """Only the owner of the deduplication store can read the store and its directory, because the store may contain
    replies.
    """
    HandledMessages(path, DAY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_deduplication_store_is_synced_at_each_commit(path: Path) -> None:
    """The deduplication store is synced to disk at each commit, so that it survives a power cut."""
    store = HandledMessages(path, DAY)
    assert store._store.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._store.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_not_a_deduplication_store_is_a_usage_error(tmp_path: Path) -> None:
    """If the file that is to be the deduplication store contains something else, or cannot be created, UsageError is
    raised. The error names the file, and the hint names the option that chooses another file.
    """
    path = tmp_path / "notes"
    path.write_text("these are notes, and long enough not to be taken for an empty database" * 20)
    with pytest.raises(UsageError, match=f"^cannot use the store {path}: ") as error:
        HandledMessages(path, DAY)
    assert error.value.hint == "--dedup-store names another file"
    with pytest.raises(UsageError, match=f"^cannot use the store {path}/in a file: File exists$"):
        HandledMessages(path / "in a file", DAY)


def test_if_the_deduplication_store_fails_the_error_says_that_the_message_was_not_acknowledged(path: Path) -> None:
    """If the deduplication store fails while a worker is running, the error gives the reason, and the hint says that
    the message was not acknowledged.
    """
    store = HandledMessages(path, DAY)
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE handled_messages")
    with pytest.raises(MqtoolError, match=f"^cannot use the store {path}: no such table") as error:
        store.begin(KEY)
    assert error.value.hint == "the message was not acknowledged"
