"""The base class for clients of all protocols: a connection that may be lost, and replies within a time limit."""

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tests.simulation.network import Side
    from tests.simulation.world import World

#: The time limit for a reply, in virtual seconds, if there is no fault.
PATIENCE = 60.0

T = TypeVar("T")


class Gone(Exception):
    """The connection was lost."""


class Client(asyncio.Protocol):
    """A client's connection.

    Args:
        world: the simulation.
        name: the client's name in the history; the number of its connection is added.

    Attributes:
        is_open: True until the connection is lost or closed.
        is_leaving: True once the client has broken the connection itself.
        gives_back: True while the client waits until the broker has requeued all messages delivered to this client.
        random: the generator for the client's decisions.
    """

    port = 0
    side: "Side"

    def __init__(self, world: "World", name: str, random: Random) -> None:
        self.world = world
        self.judge = world.judge
        self.random = random
        world.connected += 1
        self.name = f"{name}#{world.connected}"
        self.is_open = False
        self._buffer = b""
        self._futures: set[asyncio.Future[Any]] = set()
        self.is_leaving = False
        self._held: list[bytes] | None = None
        self.gives_back = False
        self.lost = asyncio.Event()

    async def connect(self) -> None:
        """Open the connection. Raises Gone if the broker does not listen, or the connection is lost."""
        try:
            self.side = await self.world.network.connect(self.port, self)
        except ConnectionRefusedError as error:
            raise Gone from error
        self.is_open = True
        self.world.clients[self] = None
        await self.log_in()

    async def log_in(self) -> None:
        """Log in, so that the connection can be used."""

    def data_received(self, data: bytes) -> None:
        """Handle the complete frames that have arrived."""
        self._buffer += data
        taken = self.take(self._buffer)
        self._buffer = self._buffer[taken:]

    def take(self, data: bytes) -> int:
        """Handle the complete frames in `data`. Return the number of bytes handled."""
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        is_broken = exc is not None and self.is_open and not self.is_leaving
        self.is_open = False
        self.world.clients.pop(self, None)
        for future in list(self._futures):
            if not future.done():
                future.set_exception(Gone())
                future.exception()  # marks the exception as retrieved: not every future is awaited
        self.lost.set()
        restarts = self.judge.restarts
        if is_broken and not (restarts and restarts[-1] > self.world.loop.time() - 1):
            self.judge.fail("no connection is lost without a cause", self.name)

    def future(self) -> "asyncio.Future[Any]":
        """Return a future that fails with Gone if the connection is lost."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.is_open:
            future.set_exception(Gone())
            future.exception()
            return future
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    async def within(self, what: Awaitable[T], about: str) -> T:
        """Wait for a reply. A reply that takes too long breaks a rule."""
        started = self.world.loop.time()
        try:
            return await asyncio.wait_for(what, PATIENCE * 4)
        except TimeoutError:
            self.judge.fail("every reply comes within a time limit", f"{self.name} waited {PATIENCE * 4} s for {about}")
            raise
        finally:
            took = self.world.loop.time() - started
            if took > PATIENCE and self.is_open and not self.world.was_faulty(started):
                self.judge.fail("every reply comes within a time limit", f"{self.name} waited {took:.0f} s for {about}")

    def send(self, data: bytes) -> None:
        """Send bytes. Raises Gone if the connection is lost."""
        if not self.is_open:
            raise Gone
        if self._held is None:
            self.side.write(data)
        else:
            self._held.append(data)

    def hold(self) -> None:
        """Hold back what is sent, until release() sends it in one write."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        if not self.is_open:
            raise Gone
        self.side.write(b"".join(held), is_whole=True)

    def vanish(self, *, told: bool) -> None:
        """Break the connection: if `told`, as when the client is killed; otherwise, as when a cable is pulled out."""
        if self.is_open:
            if not told:
                self.judge.cut_off.add(self.name)
            self.is_leaving = True
            self.side.break_off(told=told)
            other, limit = self.side.peer, self.side.peer.silence_limit
            if other.is_unanswered and limit:
                self.world.loop.call_later(limit, self._must_be_noticed, self.world.loop.time())

    def _must_be_noticed(self, since: float) -> None:
        if not (self.side.peer.is_lost or self.world.was_faulty(since)):
            self.judge.fail("a silent client is noticed", f"{self.name}, silent since {since:.3f}")
