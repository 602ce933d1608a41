"""One simulation: the broker, its network and its disk, the clients of a plan, and the judge."""

import asyncio
import itertools
import logging
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from mqtool.broker.embedded.server import Server
from mqtool.broker.embedded.settings import Settings
from mqtool.broker.embedded.store.storage import Storage
from tests.simulation import actors
from tests.simulation.calm import settle_down
from tests.simulation.client import Client
from tests.simulation.judge import Judge, Kind, Violation
from tests.simulation.network import Network
from tests.simulation.plan import KINDS, Plan
from tests.simulation.virtual_disk import VirtualDisk
from tests.simulation.virtual_loop import VirtualClock, VirtualLoop, context_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("mqtool.broker.embedded")

#: The time limit for a plan, in virtual seconds. A plan that takes longer hangs.
_LONGEST = 3600.0

#: The less disk space is free, the sooner the broker checks it again. With this limit, that does not depend on the
#: disk of the machine that runs the simulation.
_DISK_FREE_LIMIT = -(1 << 60)


@dataclass
class Result:
    """The outcome of a simulation.

    Attributes:
        digest: equal for equal histories.
        seconds: the virtual time that has passed.
        turns: the number of turns (iterations) of the event loop.
    """

    violation: Violation | None
    digest: str
    history: list[tuple[float, str, str]]
    seconds: float
    turns: int


class _Errors(logging.Handler):
    """Turns an exception that the broker logs into a violation."""

    def __init__(self, world: "World") -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "internal error" in record.getMessage():
            kind = record.exc_info[1] if record.exc_info else None
            self._world.report("the broker has no internal errors", f"{record.getMessage()}: {kind!r}")


class World:
    """A running simulation.

    Attributes:
        server: the running broker; None while it is down.
        clients: the open connections of clients.
        connected: the number of connections so far.
        full_until: when the disk last was full, or will be.
    """

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._exception)
        self.random = Random(f"network {plan.seed}")
        self.network = Network(self.loop, self.random)
        self.kinds = {name: KINDS[kind] for name, kind in plan.queues.items()} | {"dead": Kind(is_ordered=False)}
        self.judge = Judge(self.loop.time, self.kinds)
        self.clients: dict[Client, None] = {}
        self.connected = 0
        self.has_delays = plan.like != "4.3"  # the delayed message plugin supports RabbitMQ up to 4.2
        self.server: Server | None = None
        self.up = asyncio.Event()
        self._root = directory
        self._runs = itertools.count(1)
        self._run = 0
        self.directory = directory / "0"
        self.disk = VirtualDisk(self.directory, self.loop, self.random)
        # Kept until the end: Python would run the `finally` blocks of a dead broker whenever it collects garbage.
        self._dead: list[object] = []
        self._failed = self.loop.create_future()
        self._faults: list[tuple[float, float]] = []
        self.full_until = 0.0

    # -- rules that are broken outside of clients

    def report(self, rule: str, what: str) -> None:
        """Record a violation without raising it."""
        try:
            self.judge.fail(rule, what)
        except Violation:
            self._stop()

    def _stop(self) -> None:
        if not self._failed.done():
            self._failed.set_result(None)

    def _exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Violation):
            self._stop()
        elif "was destroyed" not in context["message"]:
            self.report("the broker has no internal errors", f"{context['message']}: {error!r}")

    def was_faulty(self, since: float) -> bool:
        """Return True if there has been a fault since then that may delay replies."""
        return any(end >= since for _, end in self._faults) or self.server is None

    def fault_until(self, end: float) -> None:
        self._faults.append((self.loop.time(), end))

    # -- the broker

    async def start_broker(self) -> None:
        """Start the broker with the data that the disk has kept."""
        self._run = run = next(self._runs)
        self.disk = VirtualDisk(self.directory, self.loop, self.random)
        settings = Settings(
            port=5672,
            management_port=15672,
            stream_port=5552,
            data_dir=self.directory if self.plan.on_disk else None,
            like=self.plan.like,
            memory_limit=1 << 40,
            disk_free_limit=_DISK_FREE_LIMIT,
            consumer_timeout=90.0,
        )
        server = Server(
            settings,
            new_clock=lambda: VirtualClock(self.loop, self.random),
            new_listener=self.network.listener,
            open_storage=self._open_storage,
        )
        await self.loop.create_task(server.start(), context=context_of(run))
        server.broker.requeued_per_step = 1  # clients requeue too few messages at once for a second step
        self.server = server
        self.judge.started()
        self.up.set()
        self.judge.note("BROKER", "up")

    def _open_storage(self, directory: Path) -> Storage:
        storage = Storage(directory, self.disk)
        storage.roomy_bytes = self.plan.room
        if self.plan.seed % 2:
            storage.changes.most_bytes = 600
        return storage

    def kill_broker(self, *, power: bool) -> None:
        """Kill the broker; with `power`, what was not synced may be lost."""
        assert self.server is not None
        server, self.server = self.server, None
        self.up.clear()
        self.judge.kills.append((self.loop.time(), power))
        self.judge.restarts.append(self.loop.time())
        self.judge.note("BROKER", "power cut" if power else "killed")
        self._bury(server)
        old, self.directory = self.directory, self._root / str(self._run)
        (self.disk.copy_synced if power else self.disk.copy)(self.directory)
        self.network.broker_gone()
        ledger = server.broker.ledger
        assert isinstance(ledger, Storage)
        ledger.database.close()
        shutil.rmtree(old)

    def _bury(self, server: Server) -> None:
        self.loop.kill(self._run)
        self._dead += [server, *asyncio.all_tasks(self.loop)]

    async def stop_broker(self) -> None:
        """Stop the broker as SIGTERM does."""
        assert self.server is not None
        server, self.server = self.server, None
        self.up.clear()
        self.judge.restarts.append(self.loop.time())
        if self.disk.is_full or self.disk.is_failing:  # it cannot write what has changed, as if it were killed
            self.judge.kills.append((self.loop.time(), False))
        self.judge.note("BROKER", "stopped")
        await self.loop.create_task(server.stop(), context=context_of(self._run))
        self._bury(server)
        self.network.broker_gone()

    # -- the run

    def run(self) -> Result:
        """Run the plan to its end, or to the first violation."""
        handlers, level, propagate = _log.handlers, _log.level, _log.propagate
        _log.handlers, _log.propagate = [_Errors(self)], False
        _log.setLevel(logging.ERROR)
        try:
            self.loop.run_until_complete(self._until_over())
        except Violation as violation:
            self.report(*violation.args)
        finally:
            self._close()
            _log.handlers, _log.propagate = handlers, propagate
            _log.setLevel(level)
        judge = self.judge
        return Result(judge.failed, judge.digest.hexdigest(), judge.history, self.loop.time(), self.loop.turns)

    def _close(self) -> None:
        _log.setLevel(logging.CRITICAL + 1)
        self.loop.kill(self._run)
        if self.server is not None and isinstance(self.server.broker.ledger, Storage):
            self.server.broker.ledger.database.close()
        self.loop.set_exception_handler(lambda *_: None)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_later(1, self.loop.stop)
        with suppress(Violation):
            self.loop.run_forever()
        self.loop.close()

    async def _until_over(self) -> None:
        work = self.loop.create_task(self._work())
        await asyncio.wait({work, self._failed}, timeout=_LONGEST, return_when=asyncio.FIRST_COMPLETED)
        if work.done() and work.exception() is not None and self.judge.failed is None:
            error = work.exception()
            assert error is not None
            raise error
        if not work.done() and self.judge.failed is None:
            self.report("every reply comes within a time limit", "the simulation does not end")

    async def _work(self) -> None:
        await self.start_broker()
        await actors.declare_queues(self)
        running = [self.loop.create_task(self._act(actor)) for actor in self._actors()]
        for each in running:
            await each
        await settle_down(self)

    def _actors(self) -> "Iterator[tuple[str, Coroutine[Any, Any, None]]]":
        for actor in self.plan.actors:
            yield actor.name, getattr(actors, actor.role)(self, actor).perform()

    async def _act(self, named: tuple[str, Coroutine[Any, Any, None]]) -> None:
        try:
            await named[1]
        except Violation:
            self._stop()


def simulate(plan: Plan) -> Result:
    """Run a plan in a temporary directory."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
        return World(plan, Path(directory)).run()
