"""The handshake: start, secure, tune and open (section 1.4 of the 0-9-1 reference)."""

from pamqp.base import Frame
from pamqp.commands import Connection as ConnectionClass

from mqtool.broker.embedded.model.errors import (
    ACCESS_REFUSED,
    COMMAND_INVALID,
    NOT_ALLOWED,
    SYNTAX_ERROR,
    ConnectionException,
)
from mqtool.broker.embedded.model.identity import identity
from mqtool.broker.embedded.model.limits import check_connections
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.wire.methods import table
from mqtool.broker.embedded.wire.session import FRAME_MAX, Session
from mqtool.routing.field_table import Table, decode_table

CHANNEL_MAX = 2047
HEARTBEAT = 60
"""What the broker proposes (channels, seconds)."""


def server_properties(profile: Profile) -> Table:
    """Say who the broker is, and what it can do."""
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
        **identity(profile),
    }


def send_start(connection: Session) -> None:
    """Say who we are and how to log in."""
    connection.send(
        ConnectionClass.Start,
        version_major=0,
        version_minor=9,
        server_properties=server_properties(connection.broker.profile),
        mechanisms="PLAIN AMQPLAIN",
        locales="en_US",
    )


def receive(connection: Session, method: Frame) -> None:
    """Take the next method of a handshake.

    Raises:
        ConnectionException: the login is refused, or the method is out of turn.
    """
    match connection.state, method:
        case "start", ConnectionClass.StartOk():
            _start_ok(connection, method)
        case "tune", ConnectionClass.TuneOk():
            _tune_ok(connection, method)
        case "opening", ConnectionClass.Open():
            _open(connection, method)
        case _:
            raise ConnectionException(COMMAND_INVALID, f"unexpected method in connection state {connection.state}")


def _start_ok(connection: Session, method: ConnectionClass.StartOk) -> None:
    connection.client_properties = table(method.client_properties)
    mechanism = method.mechanism
    if mechanism not in ("PLAIN", "AMQPLAIN"):
        raise ConnectionException(COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
    response = method.response.encode(errors="surrogateescape")
    name, password = _plain(response) if mechanism == "PLAIN" else _amqplain(response)
    user = connection.broker.authenticate(name, password, from_loopback=connection.from_loopback)
    if user is None:
        _refuse(connection, mechanism)
        return
    connection.user = user
    connection.state = "tune"
    connection.send(ConnectionClass.Tune, channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT)


def _refuse(connection: Session, mechanism: str) -> None:
    """Tell clients that understand it why; close the socket of others."""
    if connection.capability("authentication_failure_close"):
        raise ConnectionException(
            ACCESS_REFUSED,
            f"Login was refused using authentication mechanism {mechanism}. For details see the broker logfile.",
        )
    connection.hang_up()


def _plain(response: bytes) -> tuple[str, str]:
    """User and password from RFC 4616's form; an authorization identity in front is allowed and ignored."""
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise ConnectionException(SYNTAX_ERROR, "response to PLAIN is not two strings behind zero octets")
    return _text(parts[1]), _text(parts[2])


def _amqplain(response: bytes) -> tuple[str, str]:
    """User and password from a field table without its length."""
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


def _tune_ok(connection: Session, method: ConnectionClass.TuneOk) -> None:
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


def _open(connection: Session, method: ConnectionClass.Open) -> None:
    name = method.virtual_host
    vhost = connection.broker.vhosts.get(name)
    if vhost is None:
        raise ConnectionException(NOT_ALLOWED, f"vhost {name} not found")
    check_connections(connection.broker, vhost, connection.user.name)
    if name not in connection.user.permissions:
        raise ConnectionException(NOT_ALLOWED, f"access to vhost '{name}' refused for user '{connection.user.name}'")
    connection.vhost = vhost
    connection.rights = Rights(connection.broker, connection.user.name, name)
    connection.state = "open"
    connection.send(ConnectionClass.OpenOk)
