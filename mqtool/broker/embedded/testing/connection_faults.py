"""Faults of connections: cut, refused, silent, slow, closed by the broker."""

import fnmatch
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from mqtool.broker.embedded.model.amqp_errors import REPLY_NAMES, ChannelException, ConnectionException
from mqtool.broker.embedded.model.broker import LOW_ON_MEMORY
from mqtool.broker.embedded.testing.fault import Client, Fault, Scene
from mqtool.broker.embedded.testing.transports import Frozen, Slow, innermost, take_out

_NO_FAREWELL = struct.pack("ii", 1, 0)


def _named(scene: Scene, pattern: str | None) -> Iterator[Client]:
    """The connections whose own name, or RabbitMQ's for them, matches a pattern such as `orders-*`; None for all."""
    for connection in scene.connections:
        names = (connection.name, str(connection.client_properties.get("connection_name", "")))
        if pattern is None or any(fnmatch.fnmatchcase(name, pattern) for name in names):
            yield connection


@dataclass
class CutConnections(Fault):
    """Connections break off without a word: with a RST, or with a FIN."""

    lasts: ClassVar[bool] = False
    name: str | None = None
    reset: bool = True

    def begin(self, scene: Scene) -> int:
        """Cut them."""
        met = list(_named(scene, self.name))
        for connection in met:
            transport = innermost(connection)
            if self.reset:
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_FAREWELL)
                transport.abort()
            else:
                transport.close()
        return len(met)


@dataclass
class CloseConnections(Fault):
    """The broker closes connections, with a code and a text."""

    lasts: ClassVar[bool] = False
    code: int = 320
    text: str = "CONNECTION_FORCED - Closed by a test"
    name: str | None = None

    def __post_init__(self) -> None:
        _check_code(self.code)

    def begin(self, scene: Scene) -> int:
        """Close them."""
        opened = [each for each in _named(scene, self.name) if each.is_open]
        for connection in opened:
            error = ConnectionException(self.code)
            error.text = self.text
            connection.close(error)
        return len(opened)


@dataclass
class CloseChannels(Fault):
    """The broker closes all channels, with a code and a text."""

    lasts: ClassVar[bool] = False
    code: int = 406
    text: str = "PRECONDITION_FAILED - Closed by a test"
    name: str | None = None

    def __post_init__(self) -> None:
        _check_code(self.code)

    def begin(self, scene: Scene) -> int:
        """Close them."""
        opened = [
            channel
            for connection in _named(scene, self.name)
            for channel in connection.channels.values()
            if channel.state == "open"
        ]
        for channel in opened:
            error = ChannelException(self.code)
            error.text = self.text
            channel.close(error, 0)
        return len(opened)


def _check_code(code: int) -> None:
    if code not in REPLY_NAMES:
        raise ValueError(f"code must be one of AMQP's: {', '.join(map(str, REPLY_NAMES))}")


@dataclass
class RefuseConnections(Fault):
    """Nobody listens: who connects is refused. Open connections stay open."""

    seconds: float | None = None

    def duration(self) -> float | None:
        """As long as asked for."""
        return self.seconds

    def begin(self, scene: Scene) -> int:
        """Stop listening."""
        scene.shut()
        return 0

    def end(self, scene: Scene) -> None:
        """Listen again."""
        scene.open()


@dataclass
class GoSilent(Fault):
    """The broker hangs: it reads nothing and sends nothing, not even heartbeats."""

    seconds: float | None = None
    _frozen: list[Client] = field(default_factory=list, init=False, repr=False)
    _layers: list[Frozen] = field(default_factory=list, init=False, repr=False)

    def duration(self) -> float | None:
        """As long as asked for."""
        return self.seconds

    def begin(self, scene: Scene) -> int:
        """Freeze what is open."""
        for connection in scene.connections:
            self.connected(connection)
        return len(self._frozen)

    def connected(self, connection: Client) -> None:
        """Freeze a new connection as well."""
        connection.stop_heartbeats()
        layer = Frozen(connection.transport)
        connection.transport = layer
        self._frozen.append(connection)
        self._layers.append(layer)

    def end(self, scene: Scene) -> None:  # noqa: ARG002
        """Go on as if nothing had been."""
        for connection, layer in zip(self._frozen, self._layers, strict=True):
            take_out(connection, layer)
            layer.thaw()
            connection.start_heartbeats(connection.heartbeat)
            connection.write(b"")  # which also reads again


@dataclass
class SlowDown(Fault):
    """What the broker sends leaves it late."""

    seconds: float = 0.1
    _layers: list[Slow] = field(default_factory=list, init=False, repr=False)
    _slow: list[Client] = field(default_factory=list, init=False, repr=False)

    def begin(self, scene: Scene) -> int:
        """Slow down what is open."""
        for connection in scene.connections:
            self.connected(connection)
        return len(self._slow)

    def connected(self, connection: Client) -> None:
        """Slow down a new connection as well."""
        layer = Slow(connection.transport, self.seconds)
        connection.transport = layer
        self._slow.append(connection)
        self._layers.append(layer)

    def end(self, scene: Scene) -> None:  # noqa: ARG002
        """Send what is late."""
        for connection, layer in zip(self._slow, self._layers, strict=True):
            take_out(connection, layer)
            layer.catch_up()


@dataclass
class BlockPublishers(Fault):
    """The broker runs short of something: it blocks every connection that publishes."""

    reason: str = LOW_ON_MEMORY
    seconds: float | None = None

    def duration(self) -> float | None:
        """As long as asked for."""
        return self.seconds

    def begin(self, scene: Scene) -> int:
        """Raise the alarm."""
        scene.broker.raise_alarm(f"fault {id(self)}", self.reason, self.reason)
        return 0

    def end(self, scene: Scene) -> None:
        """Let publishers go on."""
        scene.broker.clear_alarm(f"fault {id(self)}")


@dataclass
class Restart(Fault):
    """The broker stops, and comes back on the same port after this many seconds.

    Connections are closed as at a shutdown. What does not survive a restart is gone, unless `keep_transient`.
    """

    seconds: float = 0.0
    keep_transient: bool = False

    def duration(self) -> float | None:
        """As long as asked for."""
        return self.seconds

    def begin(self, scene: Scene) -> int:
        """Stop."""
        scene.shut()
        met = scene.connections
        scene.broker.close_connections("broker forced connection closure with reason 'shutdown'")
        for connection in met:
            connection.hang_up()
        if not self.keep_transient:
            _lose_transient(scene)
        return len(met)

    def end(self, scene: Scene) -> None:
        """Come back."""
        scene.open()


def _lose_transient(scene: Scene) -> None:
    """Drop what RabbitMQ does not keep over a restart."""
    for vhost in scene.broker.vhosts.values():
        for queue in list(vhost.queues.values()):
            if not queue.durable:
                vhost.delete_queue(queue)
            elif queue.kind == "classic":
                entries = [queue.backlog.take() for _ in range(len(queue))]
                for entry in entries:
                    if entry.message.persistent:
                        queue.backlog.append(entry)
                    else:
                        queue.ledger.drop(entry)
        for exchange in list(vhost.exchanges.values()):
            if not exchange.durable and exchange.name in vhost.exchanges and not exchange.predeclared:
                vhost.delete_exchange(exchange)
