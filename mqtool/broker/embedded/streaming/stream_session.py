"""Session, the base class of stream connections, used by publishers, subscriptions and requests; and the handshake."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from mqtool.broker.embedded.model.amqp_errors import ChannelException, ConnectionException
from mqtool.broker.embedded.model.broker import Broker, check_connections
from mqtool.broker.embedded.model.profile import identity
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_queue import StreamQueue
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.sockets.client_socket import ClientSocket, keep_properties
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.broker.embedded.streaming.stream_frames import (
    FRAME_MAX,
    HEAD,
    RESPONSE,
    Code,
    Fields,
    Key,
    MalformedFrame,
    answer,
    frame,
    strings,
    table,
    u16,
    u32,
)


class BrokerStreamSession(ClientSocket):
    """A connection without its publishers and subscriptions, which `StreamConnection` adds.

    Attributes:
        deliver_version: the version of the deliver command that the client understands.
    """

    protocol = "stream"
    enough_out = 512 * 1024
    heartbeat_frame = frame(Key.HEARTBEAT)

    def __init__(self, broker: Broker, connections: Connections[Any]) -> None:
        super().__init__(broker, connections, "start", HEAD.size)
        self.deliver_version = 1

    def answer(self, key: Key, correlation: int, code: Code = Code.OK, rest: bytes = b"") -> None:
        """Send the response to a request."""
        self.write(answer(key, correlation, code, rest))

    @abstractmethod
    def force_close(self, reason: str) -> None:
        """Close the connection without sending Close, as RabbitMQ does for this protocol."""

    @abstractmethod
    def watch(self, stream: str, log: StreamLog) -> None:
        """Start sending a stream's new chunks to its subscribers; notify the client if the stream is deleted."""


class StreamRefused(Exception):
    """The broker refuses a request.

    Attributes:
        code: the response code.
        rest: the encoded fields after the code in the response.
    """

    def __init__(self, code: Code, rest: bytes = b"") -> None:
        super().__init__(code.name)
        self.code = code
        self.rest = rest


def check(session: BrokerStreamSession, what: str, kind: str, name: str, rest: bytes = b"") -> None:
    """Raise Refused unless the user has a permission (`configure`, `write` or `read`) on a `queue` or an `exchange`."""
    try:
        session.rights.check(what, kind, name)
    except ChannelException as error:
        raise StreamRefused(Code.ACCESS_REFUSED, rest) from error


def check_use(session: BrokerStreamSession, kind: str, name: str, rest: bytes = b"") -> None:
    """Raise Refused if the user may neither read nor write a queue or an exchange, and this version checks that."""
    if session.vhost.profile.hides_streams:
        try:
            check(session, "read", kind, name, rest)
        except StreamRefused:
            check(session, "write", kind, name, rest)


def check_name(name: str) -> None:
    """Raise Refused if the name of a producer or a consumer is longer than 255 bytes."""
    if len(name.encode(errors="surrogateescape")) > 255:
        raise StreamRefused(Code.PRECONDITION_FAILED)


def find_log(session: BrokerStreamSession, stream: str, rest: bytes = b"") -> StreamLog:
    """Return the log of a stream; raise Refused if the stream does not exist."""
    queue = session.vhost.queues.get(stream)
    if not isinstance(queue, StreamQueue):
        raise StreamRefused(Code.STREAM_DOES_NOT_EXIST, rest)
    return queue.log


#: The heartbeat interval that the broker proposes, in seconds.
HEARTBEAT = 60

_MECHANISM = "PLAIN"
_TUNE_ANSWER = Key.TUNE | RESPONSE


def receive_handshake(connection: BrokerStreamSession, key: int, fields: Fields) -> None:
    """Handle the next frame of a handshake; raise MalformedFrame if it is malformed or out of sequence."""
    if key in (Key.TUNE, _TUNE_ANSWER):
        _tune(connection, fields)
        return
    correlation = fields.number(4)
    match connection.state, key:
        case "start", Key.PEER_PROPERTIES:
            keep_properties(connection, {**fields.table()})
            broker = connection.broker
            version = broker.profile.stream_version or broker.profile.version
            properties = {**identity(broker.profile, broker.cluster_name), "version": version}
            connection.answer(Key.PEER_PROPERTIES, correlation, rest=table(properties))
        case "start", Key.SASL_HANDSHAKE:
            connection.answer(Key.SASL_HANDSHAKE, correlation, rest=strings([_MECHANISM]))
            connection.state = "login"
        case "login", Key.SASL_AUTHENTICATE:
            _authenticate(connection, fields, correlation)
        case "opening", Key.OPEN:
            _open_vhost(connection, fields, correlation)
        case _:
            raise MalformedFrame
    fields.end()


def _authenticate(connection: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    mechanism, secret = fields.string(), fields.binary()
    code, user = _login(connection, mechanism, secret)
    connection.broker.logins["stream", user is not None] += 1
    connection.answer(Key.SASL_AUTHENTICATE, correlation, code)
    if user is None:
        connection.hang_up()
        return
    connection.set_user(user)
    connection.state = "tune"
    connection.write(frame(Key.TUNE, u32(FRAME_MAX) + u32(HEARTBEAT)))


def _login(connection: BrokerStreamSession, mechanism: str, secret: bytes) -> tuple[Code, User | None]:
    if mechanism != _MECHANISM:
        return Code.SASL_MECHANISM_NOT_SUPPORTED, None
    parts = secret.split(b"\0")
    if len(parts) != 3:
        return Code.SASL_ERROR, None
    name, password = (part.decode(errors="surrogateescape") for part in parts[1:])
    # Check the password before the loopback restriction, so that only clients with valid credentials can detect it.
    user = connection.broker.authenticate(name, password, from_loopback=True)
    if user is None:
        return Code.AUTHENTICATION_FAILURE, None
    if name in connection.broker.loopback_users and not connection.from_loopback:
        return Code.AUTHENTICATION_FAILURE_LOOPBACK, None
    return Code.OK, user


def _tune(connection: BrokerStreamSession, fields: Fields) -> None:
    _frame_max, heartbeat = fields.number(4), fields.number(4)
    fields.end()
    if connection.state != "tune":
        raise MalformedFrame
    connection.state = "opening"
    # Like RabbitMQ, ignore the client's maximum frame size: chunks are sent as they were stored.
    connection.start_heartbeats(heartbeat)


def _open_vhost(connection: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    name = fields.string()
    vhost = connection.broker.vhosts.get(name)
    if vhost is None or name not in connection.user.permissions or _is_limit_reached(connection, vhost):
        connection.answer(Key.OPEN, correlation, Code.VHOST_ACCESS_FAILURE)
        connection.hang_up()
        return
    connection.vhost = vhost
    connection.rights = Rights(connection.broker, connection.user.name, name)
    connection.opened()
    host, port = connection.local
    connection.answer(Key.OPEN, correlation, rest=table({"advertised_host": host, "advertised_port": str(port)}))


def _is_limit_reached(connection: BrokerStreamSession, vhost: VirtualHost) -> bool:
    """Return True if the virtual host or the user may have no more connections, and this version checks that."""
    if vhost.profile.limits_stream_clients:
        try:
            check_connections(connection.broker, vhost, connection.user.name)
        except ConnectionException:
            return True
    return False


#: The commands that the broker supports, in RabbitMQ's order, which some clients depend on.
_COMMANDS = (
    Key.DECLARE_PUBLISHER,
    Key.PUBLISH,
    Key.QUERY_PUBLISHER_SEQUENCE,
    Key.DELETE_PUBLISHER,
    Key.SUBSCRIBE,
    Key.CREDIT,
    Key.STORE_OFFSET,
    Key.QUERY_OFFSET,
    Key.UNSUBSCRIBE,
    Key.CREATE,
    Key.DELETE,
    Key.METADATA,
    Key.CLOSE,
    Key.HEARTBEAT,
    Key.ROUTE,
    Key.PARTITIONS,
    Key.STREAM_STATS,
    Key.CREATE_SUPER_STREAM,
    Key.DELETE_SUPER_STREAM,
)


def exchange_versions(session: BrokerStreamSession, fields: Fields, correlation: int) -> Iterator[None]:
    """Handle ExchangeCommandVersions: note the client's Deliver version, and reply with the broker's commands."""
    for _ in range(fields.number(4)):
        key, _lowest, highest = fields.number(2), fields.number(2), fields.number(2)
        if key == Key.DELIVER and highest >= 2:
            session.deliver_version = 2
        yield
    fields.end()
    commands = (u16(key) + u16(1) + u16(2 if key is Key.PUBLISH else 1) for key in _COMMANDS)
    session.answer(Key.EXCHANGE_COMMAND_VERSIONS, correlation, rest=u32(len(_COMMANDS)) + b"".join(commands))
