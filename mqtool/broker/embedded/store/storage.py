"""What outlives the process: an SQLite file in WAL mode, written in groups.

Messages are collected for as long as the group before them takes to reach the disk; so one fsync serves however many
messages came in meanwhile, and a message that is consumed before its group is written never costs one. Definitions
(queues, exchanges, bindings, users) are rare, and are written at once.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.exchange import Binding, Exchange
from mqtool.broker.embedded.queue import Queue
from mqtool.broker.embedded.store.ledger import MemoryLedger
from mqtool.routing.field_table import Table, decode_table, encode_table
from mqtool.routing.tables import canonical

FILE = "broker.sqlite3"

# How long something may wait that nobody waits for: an acknowledgement, or a message published without confirm.
_UNHURRIED_SECONDS = 0.02

_SCHEMA = """
CREATE TABLE IF NOT EXISTS definition (kind TEXT, key TEXT, value BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    row INTEGER PRIMARY KEY, holder INTEGER, due INTEGER, delivery_count INTEGER, redelivered INTEGER,
    address BLOB, header BLOB, body BLOB
);
"""

StoredEntry = tuple[int, int, int | None, int, int, bytes, bytes, bytes]
"""Row, holder (a queue's or a delayed exchange's key), due, delivery count, redelivered, address, header, body."""


class Storage(MemoryLedger):
    """The ledger that is kept on disk.

    Args:
        directory: where; made if it is not there.

    Attributes:
        when_failed: called with the error when the disk does not take a group; nothing in it is confirmed.

    Raises:
        OSError: the directory cannot be used, or another process is using it.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(directory / FILE, isolation_level=None, check_same_thread=False, timeout=0.5)
            # The lock is held for good: two brokers on one directory would overwrite each other.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise OSError(f"cannot use {directory}: {error}") from error
        self.when_failed: Callable[[Exception], None] = lambda _: None
        self._loop = asyncio.get_running_loop()
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="embedded-broker-commit")
        self._added: dict[int, StoredEntry] = {}
        self._removed: list[int] = []
        self._waiting: list[Callable[[], None]] = []
        self._in_flight: Future[None] | None = None
        self._scheduled: asyncio.Handle | None = None
        self._hurried = False
        self._row: int = self._db.execute("SELECT COALESCE(MAX(row), 0) FROM entry").fetchone()[0]
        self._key = 0

    # -- reading, before the broker starts

    def definitions(self, kind: str) -> Iterator[tuple[str, Table]]:
        """The definitions of a kind with their keys."""
        for key, value in self._db.execute("SELECT key, value FROM definition WHERE kind = ?", (kind,)):
            yield key, decode_table(value)[0]

    def entries(self) -> Iterator[StoredEntry]:
        """The stored messages in the order in which they were published."""
        yield from self._db.execute(
            "SELECT row, holder, due, delivery_count, redelivered, address, header, body FROM entry ORDER BY row"
        )

    def forget_rows(self, rows: list[int]) -> None:
        """Drop stored messages that belong to nothing."""
        self._removed += rows
        self._schedule()

    def key_used(self, key: int) -> None:
        """A queue or exchange has been given this key by an earlier process."""
        self._key = max(self._key, key)

    # -- definitions

    def save(self, kind: str, key: str, value: Table) -> None:
        """Remember a definition."""
        self._at_once("INSERT OR REPLACE INTO definition VALUES (?, ?, ?)", (kind, key, encode_table(value)))

    def forget(self, kind: str, key: str) -> None:
        """Forget a definition."""
        self._at_once("DELETE FROM definition WHERE kind = ? AND key = ?", (kind, key))

    def _at_once(self, statement: str, values: tuple[object, ...]) -> None:
        if self._in_flight is not None:
            self._in_flight.exception()
        self._db.execute(statement, values)

    def exchange_declared(self, vhost: str, exchange: Exchange) -> None:
        """There is a new durable exchange."""
        self._key += 1
        exchange.key = self._key
        self.save(
            "exchange",
            f"{vhost}\0{exchange.name}",
            {
                "vhost": vhost,
                "name": exchange.name,
                "kind": exchange.kind,
                "auto_delete": exchange.auto_delete,
                "internal": exchange.internal,
                "arguments": exchange.arguments,
                "key": exchange.key,
            },
        )

    def exchange_deleted(self, vhost: str, exchange: Exchange) -> None:
        """A durable exchange is gone."""
        self.forget("exchange", f"{vhost}\0{exchange.name}")

    def queue_declared(self, queue: Queue) -> None:
        """There is a new durable queue; gives it its key."""
        self._key += 1
        queue.key = self._key
        self.save(
            "queue",
            f"{queue.vhost}\0{queue.name}",
            {
                "vhost": queue.vhost,
                "name": queue.name,
                "auto_delete": queue.auto_delete,
                "arguments": queue.arguments,
                "key": queue.key,
            },
        )

    def queue_deleted(self, queue: Queue) -> None:
        """A durable queue is gone."""
        self.forget("queue", f"{queue.vhost}\0{queue.name}")
        self.forget("delivering", str(queue.key))

    def bound(self, vhost: str, binding: Binding) -> None:
        """There is a new durable binding."""
        self.save(
            "binding",
            _binding_key(vhost, binding),
            {
                "vhost": vhost,
                "source": binding.source.name,
                "destination": binding.destination.name,
                "to_queue": isinstance(binding.destination, Queue),
                "routing_key": binding.routing_key,
                "arguments": binding.arguments,
            },
        )

    def unbound(self, vhost: str, binding: Binding) -> None:
        """A durable binding is gone."""
        self.forget("binding", _binding_key(vhost, binding))

    # -- messages

    def added(self, queue: Queue, entry: Entry) -> None:
        """A persistent message came into a durable queue."""
        self._add(queue.key, entry)

    def held(self, vhost: str, exchange: Exchange, entry: Entry) -> None:  # noqa: ARG002
        """A delayed exchange holds a persistent message."""
        self._add(exchange.key, entry)

    def _add(self, holder: int, entry: Entry) -> None:
        self._row = entry.row = row = self._row + 1
        message = entry.message
        self._added[row] = (
            row,
            holder,
            entry.expires_at,
            entry.delivery_count,
            0,
            message.address,
            message.header.raw,
            message.body,
        )
        if self._scheduled is None:
            self._schedule()

    def removed(self, entry: Entry) -> None:
        """A stored message left its queue."""
        if self._added.pop(entry.row, None) is None:
            self._removed.append(entry.row)
            if self._scheduled is None:
                self._schedule()

    def delivering(self, queue: Queue) -> None:
        """A client is about to see a message of this queue.

        If the process is killed, nobody knows which messages a client has seen: then all in this queue count as
        redelivered. Writing that down once is cheaper than writing down every delivery.
        """
        self.save("delivering", str(queue.key), {})

    # -- groups

    def after_commit(self, what: Callable[[], None]) -> None:
        """Do something once all that has been added so far is on disk."""
        self._waiting.append(what)
        if not self._hurried:
            self._hurried = True
            if self._scheduled is not None:
                self._scheduled.cancel()
                self._scheduled = None
            self._schedule()

    def _schedule(self) -> None:
        """Write the next group: soon, or when the one under way is done."""
        if self._in_flight is not None or self._scheduled is not None:
            return
        if self._hurried:
            self._scheduled = self._loop.call_soon(self._write)
        else:
            self._scheduled = self._loop.call_later(_UNHURRIED_SECONDS, self._write)

    def _insert_and_delete(self) -> None:
        added, self._added = self._added, {}
        removed, self._removed = self._removed, []
        self._db.execute("BEGIN")
        if added:
            self._db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", added.values())
        if removed:
            self._db.executemany("DELETE FROM entry WHERE row = ?", zip(removed, strict=True))

    def _write(self) -> None:
        """Hand a group to SQLite here, where nobody competes for the interpreter, and wait for the disk elsewhere."""
        self._scheduled = None
        self._hurried = False
        waiting, self._waiting = self._waiting, []
        try:
            self._insert_and_delete()
        except sqlite3.Error as error:
            self.when_failed(error)
            return
        self._in_flight = future = self._committer.submit(self._db.commit)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._written, future, waiting))

    def _written(self, future: "Future[None]", waiting: list[Callable[[], None]]) -> None:
        self._in_flight = None
        error = future.exception()
        if error is not None:
            self.when_failed(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            return
        for what in waiting:
            what()
        if self._added or self._removed or self._waiting:
            self._schedule()

    # -- the end

    def seen(self, entries: list[Entry]) -> None:
        """Write down, before a clean stop, which messages clients have had, and that nothing else needs guessing."""
        self._finish()
        self._db.execute("BEGIN")
        self._db.executemany(
            "UPDATE entry SET redelivered = 1, delivery_count = ?, header = ? WHERE row = ?",
            ((entry.delivery_count, entry.message.header.raw, entry.row) for entry in entries),
        )
        self._db.execute("DELETE FROM definition WHERE kind = 'delivering'")
        self._db.commit()

    def _finish(self) -> None:
        if self._in_flight is not None:
            self._in_flight.exception()
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        self._insert_and_delete()
        self._db.commit()

    def close(self) -> None:
        """Finish what is being written."""
        self._finish()
        self._committer.shutdown()
        self._db.close()


def _binding_key(vhost: str, binding: Binding) -> str:
    kind = "queue" if isinstance(binding.destination, Queue) else "exchange"
    names = (vhost, binding.source.name, kind, binding.destination.name, binding.routing_key)
    return "\0".join((*names, canonical(binding.arguments).hex()))
