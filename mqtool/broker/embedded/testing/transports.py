"""What a fault puts between a connection and its socket."""

import asyncio
from collections import deque
from collections.abc import Callable

from mqtool.broker.embedded.testing.fault import Client


class Between(asyncio.Transport):
    """A transport that passes everything on to another one.

    Args:
        inner: the one that it takes the place of.
    """

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__()
        self.inner = inner

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Something about the socket."""
        return self.inner.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send octets."""
        self.inner.write(data)

    def close(self) -> None:
        """Close the socket once everything has been sent."""
        self.inner.close()

    def abort(self) -> None:
        """Close the socket at once."""
        self.inner.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self.inner.is_closing()

    def pause_reading(self) -> None:
        """Read nothing."""
        self.inner.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self.inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        """How many octets are waiting to be sent."""
        return self.inner.get_write_buffer_size()


class Frozen(Between):
    """Nothing gets through, in either direction, until it thaws."""

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__(inner)
        self._kept: list[bytes] = []
        self._closing: Callable[[], None] | None = None
        inner.pause_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep octets."""
        self._kept.append(bytes(data))

    def close(self) -> None:
        """Close the socket when it thaws."""
        self._closing = self.inner.close

    def abort(self) -> None:
        """Close the socket when it thaws."""
        self._closing = self.inner.abort

    def is_closing(self) -> bool:
        """Whether it is closed, or to be closed when it thaws."""
        return self._closing is not None or self.inner.is_closing()

    def resume_reading(self) -> None:
        """Not before it thaws."""

    def thaw(self) -> None:
        """Send what was kept."""
        self.inner.write(b"".join(self._kept))
        if self._closing is not None:
            self._closing()


class Slow(Between):
    """What is sent leaves this many seconds late."""

    def __init__(self, inner: asyncio.Transport, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._waiting: deque[Callable[[], None]] = deque()

    def _later(self, what: Callable[[], None]) -> None:
        self._waiting.append(what)
        asyncio.get_running_loop().call_later(self._seconds, self._next)

    def _next(self) -> None:
        if self._waiting:
            self._waiting.popleft()()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send octets, late."""
        self._later(lambda: self.inner.write(data))

    def close(self) -> None:
        """Close the socket once everything has been sent."""
        self._later(self.inner.close)

    def catch_up(self) -> None:
        """Send what is late."""
        while self._waiting:
            self._next()


def innermost(connection: Client) -> asyncio.Transport:
    """Return what talks to the socket, whatever is around it."""
    transport = connection.transport
    while isinstance(transport, Between):
        transport = transport.inner
    return transport


def take_out(connection: Client, layer: Between) -> None:
    """Connect what is around a layer with what is in it."""
    if connection.transport is layer:
        connection.transport = layer.inner
        return
    outer = connection.transport
    while isinstance(outer, Between):
        if outer.inner is layer:
            outer.inner = layer.inner
            return
        outer = outer.inner
