"""The base class of AMQP 0-9-1 connections: the handshake, and everything that channels need from their connection."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from pamqp.base import Frame
from pamqp.commands import Connection as ConnectionClass

from mqtool.broker.embedded.model.amqp_errors import (
    ACCESS_REFUSED,
    COMMAND_INVALID,
    NOT_ALLOWED,
    SYNTAX_ERROR,
    ConnectionException,
)
from mqtool.broker.embedded.model.broker import Broker, check_connections
from mqtool.broker.embedded.model.consumers import QueueConsumer
from mqtool.broker.embedded.model.profile import identity
from mqtool.broker.embedded.model.queue import BrokerQueue, feed
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.sockets.client_socket import ClientSocket, keep_properties
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire.amqp_frames import encode_method, table
from mqtool.codecs.field_tables import Table, decode_table

#: The largest frame, in bytes, that the broker agrees to.
FRAME_MAX = 131_072


class AmqpSession(ClientSocket):
    """The part of a connection that its channels use. The subclass `Connection` receives frames.

    Attributes:
        frame_max: the largest frame in bytes, as negotiated.
        channel_max: the highest channel number, as negotiated.
        channels: the channels by number: open ones, and those that are waiting for the client's channel.close-ok.
        starving: the consumers whose deliveries are paused until the client has read more.
        exclusive_queues: the queues that are deleted with the connection. Those deleted earlier are freed.
        turn: a counter of reads and of frames other than publishes. As long as it does not change, neither do bindings.
    """

    enough_out = 256 * 1024
    heartbeat_frame = frames.HEARTBEAT_FRAME
    channel_max: int
    channels: dict[int, Any]

    def __init__(self, broker: Broker, connections: Connections[Any]) -> None:
        super().__init__(broker, connections, "header", len(frames.PROTOCOL_HEADER))
        self.frame_max = FRAME_MAX
        self.starving: dict[QueueConsumer, None] = {}
        self.exclusive_queues: WeakSet[BrokerQueue] = WeakSet()
        self.turn = 0
        self._before_flush: dict[Callable[[], None], None] = {}

    def confirm_soon(self, write_confirms: Callable[[], None]) -> None:
        """Send a channel's publisher confirms at the end of this event loop iteration, in as few frames as possible."""
        self._before_flush[write_confirms] = None
        self.flush_soon()

    def before_flush(self) -> None:
        for write_confirms in self._before_flush:
            write_confirms()
        self._before_flush.clear()

    def may_send(self) -> None:
        starving, self.starving = self.starving, {}
        feed(starving)

    def send(self, kind: type[Frame], **fields: str | int | bool | Table) -> None:
        """Send a method on channel 0."""
        self.write(frames.method_frame(0, encode_method(kind, **fields)))

    def capability(self, name: str) -> bool:
        """True if the client announced this capability."""
        capabilities = self.client_properties.get("capabilities")
        return isinstance(capabilities, dict) and capabilities.get(name) is True


#: The highest channel number that the broker agrees to.
CHANNEL_MAX = 2047
#: The heartbeat interval that the broker proposes, in seconds.
HEARTBEAT = 60


def _server_properties(broker: Broker) -> Table:
    return {
        "capabilities": {
            "publisher_confirms": True,
            "exchange_exchange_bindings": True,
            "basic.nack": True,
            "consumer_cancel_notify": True,
            "connection.blocked": True,
            "consumer_priorities": True,
            "authentication_failure_close": True,
            "per_consumer_qos": True,
            "direct_reply_to": True,
        },
        **identity(broker.profile, broker.cluster_name),
    }


def send_start(connection: AmqpSession) -> None:
    """Send connection.start, with the broker's product, version, capabilities and login mechanisms."""
    connection.send(
        ConnectionClass.Start,
        version_major=0,
        version_minor=9,
        server_properties=_server_properties(connection.broker),
        mechanisms="PLAIN AMQPLAIN",
        locales="en_US",
    )


def receive_handshake(connection: AmqpSession, method: Frame) -> None:
    """Handle the next method of a handshake. Raises ConnectionException if it is refused or out of sequence."""
    match connection.state, method:
        case "start", ConnectionClass.StartOk():
            _start_ok(connection, method)
        case "tune", ConnectionClass.TuneOk():
            _tune_ok(connection, method)
        case "opening", ConnectionClass.Open():
            _open_vhost(connection, method)
        case _:
            raise ConnectionException(COMMAND_INVALID, f"unexpected method in connection state {connection.state}")


def _start_ok(connection: AmqpSession, method: ConnectionClass.StartOk) -> None:
    keep_properties(connection, table(method.client_properties))
    mechanism = method.mechanism
    if mechanism not in ("PLAIN", "AMQPLAIN"):
        raise ConnectionException(COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
    response = method.response.encode(errors="surrogateescape")
    name, password = _plain(response) if mechanism == "PLAIN" else _amqplain(response)
    user = connection.broker.authenticate(name, password, from_loopback=connection.from_loopback)
    connection.broker.logins["amqp091", user is not None] += 1
    if user is None:
        _refuse(connection, mechanism)
        return
    connection.set_user(user)
    connection.state = "tune"
    connection.send(ConnectionClass.Tune, channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT)


def _refuse(connection: AmqpSession, mechanism: str) -> None:
    """Refuse a login: raise ConnectionException if the client's capabilities allow it, otherwise close the socket."""
    if connection.capability("authentication_failure_close"):
        raise ConnectionException(
            ACCESS_REFUSED,
            f"Login was refused using authentication mechanism {mechanism}. For details see the broker logfile.",
        )
    connection.hang_up()


def _plain(response: bytes) -> tuple[str, str]:
    """Decode the user name and password of a PLAIN login (RFC 4616). An authorization identity is ignored."""
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise ConnectionException(SYNTAX_ERROR, "response to PLAIN is not two strings behind zero octets")
    return _text(parts[1]), _text(parts[2])


def _amqplain(response: bytes) -> tuple[str, str]:
    """Decode the user name and password of an AMQPLAIN login, which is a field table without its length."""
    try:
        table = decode_table(len(response).to_bytes(4) + response)[0]
    except ValueError as error:
        raise ConnectionException(SYNTAX_ERROR, f"response to AMQPLAIN is not a field table: {error}") from error
    login, password = table.get("LOGIN"), table.get("PASSWORD")
    if not isinstance(login, str) or not isinstance(password, str):
        raise ConnectionException(SYNTAX_ERROR, "AMQPLAIN auth info is missing LOGIN or PASSWORD field")
    return login, password


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _tune_ok(connection: AmqpSession, method: ConnectionClass.TuneOk) -> None:
    frame_max = method.frame_max
    _check_limit("channel_max", method.channel_max, CHANNEL_MAX, 1)
    _check_limit("frame_max", frame_max, FRAME_MAX, connection.broker.profile.smallest_frame)
    connection.frame_max = frame_max
    connection.channel_max = method.channel_max
    connection.state = "opening"
    connection.start_heartbeats(method.heartbeat)


def _check_limit(name: str, wanted: int, highest: int, lowest: int) -> None:
    shown = str(wanted) if wanted else "no limit (0)"
    if wanted > highest or not wanted:
        text = f"negotiated {name} = {shown} is higher than the maximum allowed value ({highest})"
    elif wanted < lowest:
        text = f"negotiated {name} = {shown} is lower than the minimum allowed value ({lowest})"
    else:
        return
    raise ConnectionException(NOT_ALLOWED, text)


def _open_vhost(connection: AmqpSession, method: ConnectionClass.Open) -> None:
    name = method.virtual_host
    vhost = connection.broker.vhosts.get(name)
    if vhost is None:
        raise ConnectionException(NOT_ALLOWED, f"vhost {name} not found")
    check_connections(connection.broker, vhost, connection.user.name)
    if name not in connection.user.permissions:
        raise ConnectionException(NOT_ALLOWED, f"access to vhost '{name}' refused for user '{connection.user.name}'")
    connection.vhost = vhost
    connection.rights = Rights(connection.broker, connection.user.name, name)
    connection.opened()
    connection.send(ConnectionClass.OpenOk)
