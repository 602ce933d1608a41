"""Connections in memory that delay and split writes, stall and break, as determined by a seed."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from random import Random
from typing import Any

from mqtool.broker.embedded.sockets.listener import Listener
from tests.simulation.virtual_loop import VirtualLoop

_SLOWEST_SECONDS = 0.05

#: Seconds between two writes: timers that are due at the same time run in no particular order.
_BETWEEN_SECONDS = 0.000001


class Side(asyncio.Transport):
    """One end of a connection.

    Attributes:
        peer: the other end.
        is_half_open: True if the other end is gone, and this end has not noticed.
        is_unanswered: True if nothing answers a write on the half-open connection, as if a cable was pulled. Otherwise,
            the first write is answered by a reset.
        silence_limit: the seconds of silence after which this end must have closed the connection; 0 for no limit.
    """

    peer: "Side"

    def __init__(self, network: "Network", context: Context, own: tuple[str, int], other: tuple[str, int]) -> None:
        super().__init__({"peername": other, "sockname": own})
        self._network = network
        self._loop = network.loop
        self.context = context
        self.is_half_open = self.is_unanswered = False
        self.silence_limit = 0.0
        self.stalled_until = 0.0
        self._protocol: Any = None
        self._closing = self._lost = self._reads_paused = self._writes_paused = False
        self._waiting: deque[bytes | None] = deque()
        self._unread = 0
        self._high = 64 * 1024
        self._last = 0.0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high

    def get_write_buffer_size(self) -> int:
        return 0 if self._lost else self._unread

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: Any, *, is_whole: bool = False) -> None:
        """Send bytes to the other end, in one or more pieces; with `is_whole`, in one."""
        if self._closing or not data:
            return
        if self.is_half_open:
            if not self.is_unanswered:
                self._send(lambda: self.lose(ConnectionResetError(104, "reset")), self.context)
            return
        self._unread += len(data)
        for piece in [bytes(data)] if is_whole else self._network.split(bytes(data)):
            self._send(lambda piece=piece: self.peer.arrive(piece), self.peer.context)
        if self._unread > self._high and not self._writes_paused:
            self._writes_paused = True
            self._protocol.pause_writing()

    def _send(self, what: Callable[[], object], context: Context) -> None:
        """Call a function at the other end, after everything that was sent earlier has arrived."""
        due = max(self._loop.time() + self._network.latency(), self._last + _BETWEEN_SECONDS, self.stalled_until)
        self._last = due
        self._loop.call_at(due, what, context=context)

    def arrive(self, data: bytes | None) -> None:
        """Receive bytes, or None for the end."""
        if self._lost:
            return
        self._waiting.append(data)
        if not self._reads_paused:
            self._read()

    def _read(self) -> None:
        while self._waiting and not self._reads_paused and not self._lost:
            data = self._waiting.popleft()
            if data is None:
                if not self._protocol.eof_received():
                    self.close()
                return
            self.peer.read(len(data))
            self._protocol.data_received(data)

    @property
    def is_lost(self) -> bool:
        return self._lost

    def read(self, count: int) -> None:
        """Note that the other end has read some bytes."""
        self._unread -= count
        if self._writes_paused and self._unread <= self._high // 4 and not self._lost:
            self._writes_paused = False
            self._loop.call_soon(self._resume_writing, context=self.context)

    def _resume_writing(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    def pause_reading(self) -> None:
        self._reads_paused = True

    def resume_reading(self) -> None:
        if self._reads_paused:
            self._reads_paused = False
            self._loop.call_soon(self._read, context=self.context)

    def close(self) -> None:
        """Close this end once everything has been sent."""
        if self._closing:
            return
        self._closing = True
        if not self.is_half_open:
            self._send(lambda: self.peer.arrive(None), self.peer.context)
        self._loop.call_soon(lambda: self.lose(None), context=self.context)

    def abort(self) -> None:
        """Close this end immediately, and reset the other end."""
        if self._lost:
            return
        self._closing = True
        if not self.is_half_open:
            self._send(lambda: self.peer.lose(ConnectionResetError(104, "reset")), self.peer.context)
        self._loop.call_soon(lambda: self.lose(None), context=self.context)

    def lose(self, error: Exception | None) -> None:
        """Tell this end that the connection is gone. Runs in its own context."""
        self._closing = True
        if not self._lost:
            self._lost = True
            self._network.sides.pop(self, None)
            self._protocol.connection_lost(error)

    def die(self) -> None:
        """End with the process: nothing more is sent or closed, not even when Python collects garbage."""
        self._closing = self._lost = True

    def break_off(self, *, told: bool) -> None:
        """Break the connection at this end. The other end is reset immediately or, if not `told`, at its next write or
        never.
        """
        self.peer.is_half_open = True
        self.peer.is_unanswered = not told and self._network.is_cable_lost()
        self._loop.call_soon(lambda: self.lose(ConnectionResetError(104, "reset")), context=self.context)
        if told:
            self._loop.call_soon(lambda: self.peer.lose(ConnectionResetError(104, "reset")), context=self.peer.context)


class VirtualListener(Listener):
    """Accepts connections of the virtual network."""

    def __init__(self, network: "Network", new_connection: Callable[[], asyncio.Protocol], tls: Any = None) -> None:
        super().__init__(new_connection, tls)
        self._network = network
        self._new = new_connection
        self._ports: list[int] = []

    async def listen(self, hosts: Sequence[str], port: int) -> int:
        self._ports.append(port)
        self._network.listeners[port] = self._new, copy_context()
        return port

    def close(self) -> None:
        for port in self._ports:
            self._network.listeners.pop(port, None)


class Network:
    """A network between clients and the broker.

    Attributes:
        listeners: by port, what creates the broker's end of a connection, and its context.
        sides: the open ends of all connections, both the clients' and the broker's.
    """

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.loop = loop
        self._random = random
        self.listeners: dict[int, tuple[Callable[[], asyncio.Protocol], Context]] = {}
        self.sides: dict[Side, None] = {}
        self._next_port = 40_000

    def latency(self) -> float:
        return 0.0001 + self._random.random() ** 3 * _SLOWEST_SECONDS

    def split(self, data: bytes) -> list[bytes]:
        """Cut a write into the pieces that arrive."""
        if len(data) < 2 or self._random.random() < 0.6:
            return [data]
        at = self._random.randrange(1, len(data))
        return [data[:at], data[at:]]

    def is_cable_lost(self) -> bool:
        return self._random.random() < 0.5

    def listener(self, new_connection: Callable[[], asyncio.Protocol], tls: Any = None) -> VirtualListener:
        return VirtualListener(self, new_connection, tls)

    async def connect(self, port: int, protocol: asyncio.Protocol) -> Side:
        """Connect a client. Raises ConnectionRefusedError if the broker does not listen."""
        await asyncio.sleep(self.latency())
        if port not in self.listeners:
            raise ConnectionRefusedError
        new_connection, context = self.listeners[port]
        self._next_port += 1
        client_address, server_address = ("127.0.0.1", self._next_port), ("127.0.0.1", port)
        client = Side(self, copy_context(), client_address, server_address)
        server = Side(self, context, server_address, client_address)
        client.peer, server.peer = server, client
        self.sides |= {client: None, server: None}

        def accept() -> None:
            accepted = new_connection()
            server.set_protocol(accepted)
            accepted.connection_made(server)

        client.set_protocol(protocol)
        self.loop.call_soon(accept, context=context)
        protocol.connection_made(client)
        return client

    def broker_gone(self) -> None:
        """Reset all connections, because the broker was killed. The broker's own ends can do nothing more."""
        self.listeners.clear()
        for side in list(self.sides):
            if side.get_extra_info("sockname")[1] < 40_000:
                side.die()
            else:
                self.loop.call_later(
                    self.latency(), side.lose, ConnectionResetError(104, "reset"), context=side.context
                )
                side.is_half_open = True
        self.sides.clear()
