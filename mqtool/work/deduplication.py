"""Remembering what has been handled, so that a message that arrives twice is done once.

                   new ──────────> claim ──> do ──> remember ──> acknowledge
    message id ──< being done ──> wait for whoever does it
                   done ─────────> acknowledge, and say so

The store is a SQLite file, which the workers of one machine may share. It survives kill -9. What it cannot know is
whether a worker that was killed between doing and remembering had done the message; then it is done again. Only a
handler that writes its effect and the message id in one transaction can do better.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mqtool.errors import MqtoolError, UsageError

#: Seconds between two looks at another worker's claim, and to wait for SQLite's lock.
_LOOK, _PATIENCE = 0.05, 30.0
#: Seconds between two removals of what is older than the window.
_SWEEP = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS handled (
    queue TEXT NOT NULL,
    message_id TEXT NOT NULL,
    done_at REAL,             -- seconds since 1970; NULL while it is being done
    owner TEXT,               -- who is doing it
    reply TEXT,               -- the answer to an RPC request, as mqtool.ndjson writes it
    PRIMARY KEY (queue, message_id)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that was done before, and its reply, if it had one."""

    reply: bytes | None


class HandledMessages:
    """The store, for several threads and processes.

    Args:
        path: the SQLite file; it is created if missing.
        window: seconds to remember a message.

    Raises:
        UsageError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path, window: float) -> None:
        self._path = path
        self._window = window
        self._owner = _process_name(os.getpid()) or str(os.getpid())
        self._lock = threading.Lock()
        self._ours: set[tuple[str, str]] = set()
        self._swept = 0.0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # It may hold replies. SQLite gives its other files the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._store = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._store.execute("PRAGMA journal_mode = WAL")
            self._store.execute("PRAGMA synchronous = FULL")  # what is acknowledged survives a power cut
            self._store.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"cannot use the store {path}: {error}", "--dedup-store names another file") from error

    def begin(self, queue: str, message_id: str, give_up: Callable[[], bool] = lambda: False) -> Handled | None:
        """Claim a message; None if it is ours to do now. If another worker is doing it, wait for that.

        Args:
            give_up: whether to stop waiting.

        Raises:
            Interrupted: give_up() said so.
            MqtoolError: the store fails.
        """
        key = _key(message_id)
        while True:
            with self._transaction() as store:
                now = time.time()
                self._sweep(now)
                row = store.execute(
                    "SELECT done_at, owner, reply FROM handled WHERE queue = ? AND message_id = ?", (queue, key)
                ).fetchone()
                done_at, owner, reply = row or (None, None, None)
                if done_at is not None and done_at > now - self._window:
                    return Handled(None if reply is None else reply.encode())
                if owner is None or not self._is_alive(owner, (queue, message_id)):
                    store.execute(
                        "INSERT OR REPLACE INTO handled (queue, message_id, owner) VALUES (?, ?, ?)",
                        (queue, key, self._owner),
                    )
                    self._ours.add((queue, message_id))
                    return None
            if give_up():
                raise Interrupted(f"message {message_id} is being done by another worker")
            time.sleep(_LOOK)

    def done(self, queue: str, message_id: str, reply: bytes | None = None) -> None:
        """Remember that a message is done; call this before it is acknowledged."""
        with self._transaction() as store:
            store.execute(
                "UPDATE handled SET done_at = ?, owner = NULL, reply = ? WHERE queue = ? AND message_id = ?",
                (time.time(), None if reply is None else reply.decode(), queue, _key(message_id)),
            )
            self._ours.discard((queue, message_id))

    def failed(self, queue: str, message_id: str) -> None:
        """Give up the claim on a message; whoever gets it next may try."""
        with self._transaction() as store:
            store.execute(
                "DELETE FROM handled WHERE queue = ? AND message_id = ? AND done_at IS NULL", (queue, _key(message_id))
            )
            self._ours.discard((queue, message_id))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._store:  # commits, or rolls back after an exception
                    self._store.execute("BEGIN IMMEDIATE")
                    yield self._store
            except sqlite3.Error as error:
                raise MqtoolError(
                    f"cannot use the store {self._path}: {error}", "the message was not acknowledged"
                ) from error

    def _sweep(self, now: float) -> None:
        if now > self._swept + _SWEEP:
            self._swept = now
            self._store.execute("DELETE FROM handled WHERE done_at <= ?", (now - self._window,))

    def _is_alive(self, owner: str, claim: tuple[str, str]) -> bool:
        if owner == self._owner:
            return claim in self._ours
        pid = int(owner.partition(" ")[0])
        return _process_name(pid) == owner


class Interrupted(MqtoolError):
    """We were asked to stop while we waited for another worker."""


def _key(message_id: str) -> str | bytes:
    """A message id as SQLite can have it: one that is not UTF-8 as its bytes."""
    raw = message_id.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _process_name(pid: int) -> str | None:
    """A process's id and start time, since ids are used again; None if it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another user's
        pass
    with contextlib.suppress(OSError):  # not Linux: the id has to do
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else f"{pid} {fields[18]}"
    return str(pid)
