"""The store of `--deduplicate`: which messages it calls handled, and which ones a worker must handle."""

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
from mqtool.work import deduplication
from mqtool.work.deduplication import Handled, HandledMessages, Interrupted, MessageKey

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


def test_a_message_is_handled_once(path: Path) -> None:
    """A new message is to be handled; once it is done, a copy of it is not, and gets the stored reply."""
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
)
def test_a_message_with_another_broker_queue_client_or_id_is_no_duplicate(path: Path, other: MessageKey) -> None:
    """A message is not a duplicate of a handled message, and is handled, if it is on another broker, in another queue
    or from another client, or if its id differs in upper and lower case.
    """
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.done(KEY)
    assert store.begin(other) is None


def test_ids_that_are_not_utf_8_are_distinct(path: Path) -> None:
    """Messages whose ids are not valid UTF-8 are told from each other by their bytes."""
    store = HandledMessages(path, DAY)
    one, other = KEY._replace(message_id="\udcff"), KEY._replace(message_id="\udcfe")
    assert store.begin(one) is None
    store.done(one)
    assert store.begin(other) is None
    assert store.begin(one) == Handled(None, dead=False)


def test_a_message_that_failed_is_handled_again(path: Path) -> None:
    """A message whose handling failed is handled when it is delivered again. What was done stays done."""
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.failed(KEY)
    assert store.begin(KEY, lambda: True) is None
    store.done(KEY)
    store.failed(KEY)
    assert store.begin(KEY) == Handled(None, dead=False)


def test_a_dead_letter_is_handled_again_only_after_a_redrive(path: Path) -> None:
    """A copy of a dead-lettered message is not handled. After it was moved back from the dead-letter queue more often
    than before, it is.
    """
    store = HandledMessages(path, DAY)
    assert store.begin(KEY, returns=1) is None
    store.dead_lettered(KEY, 1)
    assert store.begin(KEY) == Handled(None, dead=True)
    assert store.begin(KEY, returns=1) == Handled(None, dead=True)
    assert store.begin(KEY, returns=2) is None
    store.done(KEY)
    assert store.begin(KEY, returns=3) == Handled(None, dead=False)


def test_a_dead_letter_that_was_never_moved_back_is_not_handled_again(path: Path) -> None:
    """A copy of a message that was dead-lettered, and never redriven, is not handled."""
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.dead_lettered(KEY, 0)
    assert store.begin(KEY) == Handled(None, dead=True)


def test_a_message_is_remembered_for_the_window(path: Path, now: list[float]) -> None:
    """A copy that arrives within the window is not handled, and one that arrives later is."""
    store = HandledMessages(path, DAY)
    store.begin(KEY)
    store.done(KEY)
    now[0] += DAY - 1
    assert store.begin(KEY) == Handled(None, dead=False)
    now[0] += 1
    assert store.begin(KEY) is None


def test_old_messages_are_removed_from_the_store(path: Path, now: list[float]) -> None:
    """Messages older than the window are removed, so that the store does not grow for ever. Newer ones, and those that
    are being handled, stay.
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


def test_old_messages_are_removed_once_a_minute(path: Path, now: list[float]) -> None:
    """Old messages are removed no more than once a minute, since looking for them takes time for each message."""
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


def test_a_message_that_another_worker_handles_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another worker handles a copy at the moment, the worker waits until that one is done, or until it is
    stopped.
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
    """While another worker's process runs, its message is not handled by this one. Once it was killed, it is."""
    store = HandledMessages(path, DAY)
    with pytest.raises(Interrupted):
        store.begin(KEY, lambda: True)
    other_worker.kill()
    other_worker.join()
    assert store.begin(KEY, lambda: True) is None


def test_the_message_of_a_worker_that_nobody_has_waited_for_is_handled_again(
    path: Path, other_worker: multiprocessing.Process
) -> None:
    """A worker that was killed, but whose parent has not yet asked for its exit status, holds no claim."""
    other_worker.kill()
    os.waitid(os.P_PID, other_worker.pid or 0, os.WEXITED | os.WNOWAIT)  # it has ended, and is now a zombie
    assert HandledMessages(path, DAY).begin(KEY, lambda: True) is None


def test_without_proc_a_worker_is_known_by_its_process_id(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On systems without /proc, a message is not handled while the process with the id of its worker runs."""
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
def test_a_worker_whose_name_looks_like_a_state_is_recognized(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, *, is_alive: bool
) -> None:
    """Whether a worker runs does not depend on its program's name, which may contain parentheses."""
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
    """If a worker has died, and a process started later has its id, another worker handles the message."""
    with sqlite3.connect(path) as store:
        store.execute("UPDATE handled_messages SET owner = owner || '0'")  # it ends with the time of the start
    assert other_worker.is_alive()
    assert HandledMessages(path, DAY).begin(KEY, lambda: True) is None


def test_a_claim_of_this_worker_from_an_earlier_run_is_taken_over(path: Path) -> None:
    """If an earlier run of this worker claimed a message but did not finish it, the worker takes over the claim and
    handles the message.
    """
    HandledMessages(path, DAY).begin(KEY)
    assert HandledMessages(path, DAY).begin(KEY, lambda: True) is None


def test_a_store_is_shared_by_threads(path: Path) -> None:
    """The threads of a worker share one store, and another worker waits for its lock for up to 30 seconds."""
    store = HandledMessages(path, DAY)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(store.begin, KEY).result() is None
        other.submit(store.done, KEY).result()
    assert store.begin(KEY) == Handled(None, dead=False)
    assert store._store.execute("PRAGMA busy_timeout").fetchone() == (30_000,)


def test_a_worker_that_handles_many_messages_keeps_no_claims(path: Path) -> None:
    """Once a message is done or has failed, the worker no longer remembers its claim, so that a long run needs little
    memory.
    """
    store = HandledMessages(path, DAY)
    for number in range(10):
        key = KEY._replace(message_id=str(number))
        store.begin(key)
        store.done(key) if number % 2 else store.failed(key)
    assert store._claims == set()


def test_the_store_is_for_its_user_only(path: Path) -> None:
    """The store and its directory are readable only by their owner, because it may contain replies."""
    HandledMessages(path, DAY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_deduplication_store_is_synced_at_each_commit(path: Path) -> None:
    """The deduplication store is synced to disk at each commit, so that it survives a power cut."""
    store = HandledMessages(path, DAY)
    assert store._store.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._store.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_store_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    """If the file is not a store, the error names the file and the option that names another."""
    path = tmp_path / "notes"
    path.write_text("these are notes, and long enough not to be taken for an empty database" * 20)
    with pytest.raises(UsageError, match=f"^cannot use the store {path}: ") as error:
        HandledMessages(path, DAY)
    assert error.value.hint == "--dedup-store names another file"
    with pytest.raises(UsageError, match="cannot use the store"):
        HandledMessages(path / "in a file", DAY)


def test_a_failure_of_the_store_says_that_the_message_was_not_acknowledged(path: Path) -> None:
    """If the store fails while a worker runs, the error says so, and that the message was not acknowledged. The claim
    is not kept.
    """
    store = HandledMessages(path, DAY)
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE handled_messages")
    with pytest.raises(MqtoolError, match=f"^cannot use the store {path}: no such table") as error:
        store.begin(KEY)
    assert error.value.hint == "the message was not acknowledged"
