"""The beginning of a connection: who is there, login, limits, and the virtual host."""

from mqtool.broker.embedded.model.identity import identity
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.streaming.frames import (
    FRAME_MAX,
    Code,
    Fields,
    Key,
    MalformedFrame,
    frame,
    strings,
    table,
    u32,
)
from mqtool.broker.embedded.streaming.session import Session

HEARTBEAT = 60
"""What the broker proposes, in seconds."""

_MECHANISM = "PLAIN"
_TUNE_ANSWER = Key.TUNE | 0x8000


def receive(connection: Session, key: int, fields: Fields) -> None:
    """Take the next frame of a handshake.

    Raises:
        MalformedFrame: it is malformed, or out of turn.
    """
    if key in (Key.TUNE, _TUNE_ANSWER):
        _tune(connection, fields)
        return
    correlation = fields.number(4)
    match connection.state, key:
        case "start", Key.PEER_PROPERTIES:
            connection.client_properties = {**fields.table()}
            profile = connection.broker.profile
            properties = {**identity(profile), "version": profile.stream_version or profile.version}
            connection.answer(Key.PEER_PROPERTIES, correlation, rest=table(properties))
        case "start", Key.SASL_HANDSHAKE:
            connection.answer(Key.SASL_HANDSHAKE, correlation, rest=strings([_MECHANISM]))
            connection.state = "login"
        case "login", Key.SASL_AUTHENTICATE:
            _authenticate(connection, fields, correlation)
        case "opening", Key.OPEN:
            _open(connection, fields, correlation)
        case _:
            raise MalformedFrame
    fields.end()


def _authenticate(connection: Session, fields: Fields, correlation: int) -> None:
    mechanism, secret = fields.string(), fields.octets()
    code, user = _login(connection, mechanism, secret)
    connection.answer(Key.SASL_AUTHENTICATE, correlation, code)
    if user is None:
        connection.hang_up()
        return
    connection.user = user
    connection.state = "tune"
    connection.write(frame(Key.TUNE, u32(FRAME_MAX) + u32(HEARTBEAT)))


def _login(connection: Session, mechanism: str, secret: bytes) -> tuple[Code, User | None]:
    if mechanism != _MECHANISM:
        return Code.SASL_MECHANISM_NOT_SUPPORTED, None
    parts = secret.split(b"\0")
    if len(parts) != 3:
        return Code.SASL_ERROR, None
    name, password = (part.decode(errors="surrogateescape") for part in parts[1:])
    # The password first: who does not know it learns nothing.
    user = connection.broker.authenticate(name, password, from_loopback=True)
    if user is None:
        return Code.AUTHENTICATION_FAILURE, None
    if name in connection.broker.loopback_users and not connection.from_loopback:
        return Code.AUTHENTICATION_FAILURE_LOOPBACK, None
    return Code.OK, user


def _tune(connection: Session, fields: Fields) -> None:
    _frame_max, heartbeat = fields.number(4), fields.number(4)
    fields.end()
    if connection.state != "tune":
        raise MalformedFrame
    connection.state = "opening"
    # Chunks go out as they were written: RabbitMQ does not cut them to the limit of the client either.
    connection.start_heartbeats(heartbeat)


def _open(connection: Session, fields: Fields, correlation: int) -> None:
    name = fields.string()
    vhost = connection.broker.vhosts.get(name)
    if vhost is None or name not in connection.user.permissions:
        connection.answer(Key.OPEN, correlation, Code.VHOST_ACCESS_FAILURE)
        connection.hang_up()
        return
    connection.vhost = vhost
    connection.rights = Rights(connection.broker, connection.user.name, name)
    connection.state = "open"
    host, port = connection.advertised
    connection.answer(Key.OPEN, correlation, rest=table({"advertised_host": host, "advertised_port": str(port)}))
