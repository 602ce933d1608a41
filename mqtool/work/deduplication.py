"""A store of handled messages, so that a message that arrives twice is handled once.

                   new ─────────────> claim ──> handle ──> store ──> acknowledge
    message id ──< being handled ──> wait for the other worker
                   handled ─────────> acknowledge, with a notice

A message counts as handled once its program has succeeded, or once it has been dead-lettered. A dead letter that is
moved back to its queue is handled again.

The store is a SQLite file that the workers of one machine can share. It survives kill -9. If a worker is killed
after its program has succeeded but before the store is updated, the program runs again for the same message. Only a
program that writes its result and the message id in one transaction can prevent that.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mqtool.errors import MqtoolError, UsageError, is_full, reason_of
from mqtool.work.history import is_moved_back_since

#: Seconds between checks of another worker's claim, and seconds to wait for SQLite's lock.
_LOOK, _PATIENCE = 0.05, 30.0
#: Only on Linux.
_PROC = Path("/proc")
#: Seconds between removals of messages that are older than the window.
_SWEEP = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS handled_messages (
    broker TEXT NOT NULL,     -- the cluster's name and the virtual host
    queue TEXT NOT NULL,
    client TEXT NOT NULL,     -- of an RPC request: its user and its reply queue
    message_id TEXT NOT NULL,
    handled_at REAL,          -- seconds since 1970; NULL while it is being handled
    owner TEXT,               -- the worker that handles it
    reply TEXT,               -- the reply to an RPC request, as mqtool.ndjson writes it
    returns INTEGER,          -- of a dead letter: how many times it had been moved back before; NULL if it is done
    PRIMARY KEY (broker, queue, client, message_id)
) WITHOUT ROWID
"""
_FIND = """
SELECT handled_at, owner, reply, returns FROM handled_messages
WHERE broker = ? AND queue = ? AND client = ? AND message_id = ?
"""
_RELEASE = """
DELETE FROM handled_messages
WHERE broker = ? AND queue = ? AND client = ? AND message_id = ? AND handled_at IS NULL
"""
_STORE = """
UPDATE handled_messages SET handled_at = ?, owner = NULL, reply = ?, returns = ?
WHERE broker = ? AND queue = ? AND client = ? AND message_id = ?
"""


class MessageKey(NamedTuple):
    """Identifies a message. An id is unique only within a queue; the id of an RPC request, only for one client."""

    broker: str
    queue: str
    message_id: str
    client: str = ""

    @property
    def columns(self) -> tuple[str | bytes, ...]:
        """The values of the primary key. Text that is not UTF-8 is stored as bytes."""
        return tuple(map(_storable, (self.broker, self.queue, self.client, self.message_id)))


@dataclass(frozen=True, slots=True)
class Handled:
    """The stored outcome of a message: dead-lettered (`dead`) or done; `reply` is the reply to an RPC request."""

    reply: bytes | None
    dead: bool


class HandledMessages:
    """Stores handled messages in a SQLite file for `window` seconds. Threads and processes can share the file."""

    def __init__(self, path: Path, window: float) -> None:
        self._path = path
        self._window = window
        self._owner = _process_name(os.getpid()) or str(os.getpid())
        self._lock = threading.Lock()
        self._claims: set[MessageKey] = set()
        self._swept = 0.0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The store may contain replies. SQLite gives its other files the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._store = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._store.execute("PRAGMA journal_mode = WAL")
            self._store.execute("PRAGMA synchronous = FULL")  # a message must be stored even after a power cut
            self._store.execute("PRAGMA fullfsync = 1")  # macOS: the drive writes what it holds, too
            self._store.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            hint = "--dedup-store names another file"
            failure = MqtoolError if is_full(error) else UsageError
            raise failure(f"cannot use the store {path}: {reason_of(error)}", hint) from error

    def begin(
        self, key: MessageKey, give_up: Callable[[], bool] = lambda: False, *, returns: int = 0
    ) -> Handled | None:
        """Claim a message. Waits while another worker handles it.

        Args:
            give_up: returns True to stop waiting.
            returns: history.returns_of() the message. The message is handled again if it was moved back from a
                dead-letter queue since it was last dead-lettered.

        Returns:
            How the message was handled before; None if the caller must handle it now.

        Raises:
            Interrupted: give_up() returned True.
            MqtoolError: the store cannot be read or written.
        """
        while True:
            with self._transaction() as store:
                now = time.time()
                self._sweep(now)
                row = store.execute(_FIND, key.columns).fetchone()
                handled_at, owner, reply, dead_returns = row or (None, None, None, None)
                is_handled = handled_at is not None and handled_at > now - self._window
                if is_handled and (dead_returns is None or not is_moved_back_since(returns, dead_returns)):
                    return Handled(None if reply is None else reply.encode(), dead_returns is not None)
                if owner is None or not self._is_alive(owner, key):
                    store.execute(
                        "INSERT OR REPLACE INTO handled_messages (broker, queue, client, message_id, owner) "
                        "VALUES (?, ?, ?, ?, ?)",
                        (*key.columns, self._owner),
                    )
                    self._claims.add(key)
                    return None
            if give_up():
                raise Interrupted(f"message {key.message_id} is being handled by another worker")
            time.sleep(_LOOK)

    def done(self, key: MessageKey, reply: bytes | None = None) -> None:
        """Record that a message is done. Call this before acknowledging the message."""
        self._store_handled(key, None if reply is None else reply.decode(), None)

    def dead_lettered(self, key: MessageKey, returns: int) -> None:
        """Record that a message was dead-lettered after `returns` redrives. Call this before acknowledging."""
        self._store_handled(key, None, returns)

    def failed(self, key: MessageKey) -> None:
        """Release the claim on a message, so that it can be handled again."""
        with self._transaction() as store:
            store.execute(_RELEASE, key.columns)
            self._claims.discard(key)

    def _store_handled(self, key: MessageKey, reply: str | None, returns: int | None) -> None:
        with self._transaction() as store:
            store.execute(_STORE, (time.time(), reply, returns, *key.columns))
            self._claims.discard(key)

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
            self._store.execute("DELETE FROM handled_messages WHERE handled_at <= ?", (now - self._window,))

    def _is_alive(self, owner: str, key: MessageKey) -> bool:
        if owner == self._owner:
            return key in self._claims
        pid = int(owner.partition(" ")[0])
        return _process_name(pid) == owner


class Interrupted(MqtoolError):
    """The worker was stopped while it waited for another worker to handle a message."""


def _storable(text: str) -> str | bytes:
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _process_name(pid: int) -> str | None:
    """Return text that identifies a process: its id and start time, since ids are reused. None if it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # the process belongs to another user
        pass
    with contextlib.suppress(OSError):  # not Linux: the id alone
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else f"{pid} {fields[18]}"
    return str(pid)
