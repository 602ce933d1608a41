"""Faults that cut, refuse, freeze, delay or close connections, block publishers, or restart the broker."""

import asyncio
import fnmatch
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

from mqtool.broker.embedded.model.amqp_errors import REPLY_NAMES, ChannelException, ConnectionException
from mqtool.broker.embedded.model.broker import LOW_ON_MEMORY
from mqtool.broker.embedded.model.queue import enforce_limits, put_back_all
from mqtool.broker.embedded.testing.fault import Client, Fault, FaultScene

if TYPE_CHECKING:
    from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10

#: SO_LINGER with 0 seconds, which makes closing the socket send an RST.
_SEND_RST = struct.pack("ii", 1, 0)


class Layer(asyncio.Transport):
    """A transport that wraps another and forwards every call to it. Subclasses change what is sent, or when."""

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__()
        self.inner = inner

    def release(self) -> None:
        """Send everything that this layer has held back. Called when the fault ends."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.inner.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.inner.write(data)

    def close(self) -> None:
        self.inner.close()

    def abort(self) -> None:
        self.inner.abort()

    def is_closing(self) -> bool:
        return self.inner.is_closing()

    def pause_reading(self) -> None:
        self.inner.pause_reading()

    def resume_reading(self) -> None:
        self.inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self.inner.get_write_buffer_size()


class Frozen(Layer):
    """A transport that neither sends nor receives anything until release()."""

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__(inner)
        self._kept: list[bytes] = []
        self._closing: Callable[[], None] | None = None
        inner.pause_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._kept.append(bytes(data))

    def close(self) -> None:
        self._closing = self.inner.close

    def abort(self) -> None:
        self._closing = self.inner.abort

    def is_closing(self) -> bool:
        return self._closing is not None or self.inner.is_closing()

    def resume_reading(self) -> None:
        """Do nothing: reading resumes when the layer is removed."""

    def release(self) -> None:
        self.inner.write(b"".join(self._kept))
        if self._closing is not None:
            self._closing()


class Slow(Layer):
    """A transport that delays everything it sends by a number of seconds."""

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
        self._later(lambda: self.inner.write(data))

    def close(self) -> None:
        self._later(self.inner.close)

    def release(self) -> None:
        while self._waiting:
            self._next()


def _innermost(connection: Client) -> asyncio.Transport:
    """Return the transport of a connection's socket, beneath any layers that faults have added."""
    transport = connection.transport
    while isinstance(transport, Layer):
        transport = transport.inner
    return transport


def _remove(layer: Layer, connection: Client) -> None:
    """Remove a layer from a connection's transport, even if other faults have added layers around it."""
    if connection.transport is layer:
        connection.transport = layer.inner
        return
    outer = connection.transport
    while isinstance(outer, Layer):
        if outer.inner is layer:
            outer.inner = layer.inner
            return
        outer = outer.inner


def _named(scene: FaultScene, pattern: str | None) -> Iterator[Client]:
    """Yield the connections with a name that matches a pattern such as `orders-*`; None matches all.

    A connection has two names: the one that the client chose, and `HOST:PORT -> HOST:PORT`.
    """
    for connection in scene.connections:
        names = (connection.name, str(connection.client_properties.get("connection_name", "")))
        if pattern is None or any(fnmatch.fnmatchcase(name, pattern) for name in names):
            yield connection


@dataclass
class CutConnections(Fault):
    """Closes sockets without connection.close, with an RST or a FIN."""

    lasts: ClassVar[bool] = False
    name: str | None = None
    reset: bool = True

    def begin(self, scene: FaultScene) -> int:
        met = list(_named(scene, self.name))
        for connection in met:
            transport = _innermost(connection)
            if self.reset:
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SEND_RST)
                transport.abort()
            else:
                transport.close()
        return len(met)


@dataclass
class CloseConnections(Fault):
    """Closes connections with a reply code and text."""

    lasts: ClassVar[bool] = False
    code: int = 320
    text: str = "CONNECTION_FORCED - Closed by a test"
    name: str | None = None

    def __post_init__(self) -> None:
        _check_code(self.code)

    def begin(self, scene: FaultScene) -> int:
        opened = [each for each in _named(scene, self.name) if each.is_open]
        error = ConnectionException(self.code)
        error.text = self.text
        for connection in opened:
            connection.close(error)
        return len(opened)


@dataclass
class CloseChannels(Fault):
    """Closes all channels of the matching connections with a reply code and text.

    AMQP 1.0 sessions are ended with the corresponding error.
    """

    lasts: ClassVar[bool] = False
    code: int = 406
    text: str = "PRECONDITION_FAILED - Closed by a test"
    name: str | None = None

    def __post_init__(self) -> None:
        _check_code(self.code)

    def begin(self, scene: FaultScene) -> int:
        opened = [
            channel
            for connection in _named(scene, self.name)
            for channel in connection.channels.values()
            if channel.state == "open"
        ]
        error = ChannelException(self.code)
        error.text = self.text
        for channel in opened:
            channel.close(error, 0)
        sessions = [
            session
            for connection in _named(scene, self.name)
            if connection.protocol == "AMQP 1-0"
            for session in list(cast("Connection10", connection).sessions.values())
        ]
        for session in sessions:
            session.close(error)
        return len(opened) + len(sessions)


def _check_code(code: int) -> None:
    if code not in REPLY_NAMES:
        raise ValueError(f"code must be one of AMQP's: {', '.join(map(str, REPLY_NAMES))}")


@dataclass
class RefuseConnections(Fault):
    """Refuses new connections. Open connections stay open."""

    seconds: float | None = None

    def duration(self) -> float | None:
        return self.seconds

    def begin(self, scene: FaultScene) -> int:
        scene.shut()
        return 0

    def end(self, scene: FaultScene) -> None:
        scene.open()


@dataclass
class _LayerFault(Fault):
    """The base class of faults that add a layer to the transport of each connection."""

    _layers: list[tuple[Client, Layer]] = field(default_factory=list, init=False, repr=False)

    def begin(self, scene: FaultScene) -> int:
        for connection in scene.connections:
            self.connected(connection)
        return len(self._layers)

    def add(self, connection: Client, layer: Layer) -> None:
        connection.transport = layer
        self._layers.append((connection, layer))

    def end(self, scene: FaultScene) -> None:  # noqa: ARG002
        for connection, layer in self._layers:
            _remove(layer, connection)
            layer.release()


@dataclass
class GoSilent(_LayerFault):
    """Makes the broker hang: it reads nothing and sends nothing, not even heartbeats."""

    seconds: float | None = None

    def duration(self) -> float | None:
        return self.seconds

    def connected(self, connection: Client) -> None:
        connection.stop_heartbeats()
        self.add(connection, Frozen(connection.transport))

    def end(self, scene: FaultScene) -> None:
        super().end(scene)
        for connection, _ in self._layers:
            connection.start_heartbeats(connection.heartbeat)
            connection.write(b"")  # flushing also resumes reading


@dataclass
class SlowDown(_LayerFault):
    """Delays everything that the broker sends."""

    seconds: float = 0.1

    def connected(self, connection: Client) -> None:
        self.add(connection, Slow(connection.transport, self.seconds))


@dataclass
class BlockPublishers(Fault):
    """Raises an alarm, which makes the broker block every connection that publishes."""

    reason: str = LOW_ON_MEMORY
    seconds: float | None = None

    def duration(self) -> float | None:
        return self.seconds

    def begin(self, scene: FaultScene) -> int:
        scene.broker.raise_alarm(f"fault {id(self)}", self.reason, self.reason)
        return 0

    def end(self, scene: FaultScene) -> None:
        scene.broker.clear_alarm(f"fault {id(self)}")


@dataclass
class Restart(Fault):
    """Simulates a restart: after a number of seconds, the broker listens on the same ports again.

    Closes connections as if the broker were shutting down. Transient queues, exchanges and messages are lost unless
    `keep_transient` is set.
    """

    seconds: float = 0.0
    keep_transient: bool = False

    def duration(self) -> float | None:
        return self.seconds

    def begin(self, scene: FaultScene) -> int:
        scene.shut()
        met = scene.connections
        scene.broker.close_connections("broker forced connection closure with reason 'shutdown'")
        for connection in met:
            connection.hang_up()
        if not self.keep_transient:
            _lose_transient(scene)
        for vhost in scene.broker.vhosts.values():
            for queue in vhost.queues.values():
                if queue.kind != "stream":
                    put_back_all(queue)  # what was unacknowledged counts again
                    enforce_limits(queue)
        return len(met)

    def end(self, scene: FaultScene) -> None:
        scene.open()


def _lose_transient(scene: FaultScene) -> None:
    """Delete the queues, exchanges and messages that do not survive a restart."""
    for vhost in scene.broker.vhosts.values():
        for queue in list(vhost.queues.values()):
            if not queue.durable:
                vhost.delete_queue(queue)
            elif queue.kind == "classic":
                put_back_all(queue)
                entries = [queue.backlog.take() for _ in range(len(queue))]
                for entry in entries:
                    if entry.message.persistent:
                        queue.backlog.append(entry)
                    else:
                        queue.ledger.drop(entry)
        for exchange in list(vhost.exchanges.values()):
            if not exchange.durable and exchange.name in vhost.exchanges and not exchange.predeclared:
                vhost.delete_exchange(exchange)
