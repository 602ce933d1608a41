"""The base class of AMQP 1.0 connections, with everything that their sessions use; and the login.

Clients log in with PLAIN, ANONYMOUS or, with the certificate of a TLS client, EXTERNAL.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from mqtool.broker.embedded.amqp10.errors10 import DECODE_ERROR, MISSING, NOT_ALLOWED, UNAUTHORIZED, ConnectionError10
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.consumers import QueueConsumer
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.users import DEFAULT_USER, User
from mqtool.broker.embedded.sockets.client_socket import ClientSocket
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.codecs.amqp10_frames import HEARTBEAT, SASL, SASL_HEADER, SaslInit, SaslMechanisms, SaslOutcome, frame
from mqtool.codecs.amqp10_values import Array, Symbol

#: The largest frame, in bytes, that the broker accepts.
FRAME_MAX = 131_072


class Amqp10Socket(ClientSocket):
    """The part of a connection that its sessions use. The subclass `Connection10` receives frames.

    Attributes:
        container: the client's container id.
        frame_max: the largest frame, in bytes, that the client accepts.
        starving: the consumers whose deliveries are paused until the client has read more.
        exclusive_queues: the queues that are deleted with the connection. Those deleted earlier are freed.
    """

    protocol = "AMQP 1-0"
    enough_out = 256 * 1024
    heartbeat_frame = HEARTBEAT

    def __init__(self, broker: Broker, connections: Connections[Any]) -> None:
        super().__init__(broker, connections, "header", len(SASL_HEADER))
        self.container = ""
        self.frame_max = FRAME_MAX
        self.starving: dict[QueueConsumer, None] = {}
        self.exclusive_queues: WeakSet[BrokerQueue] = WeakSet()
        self._before_flush: dict[Callable[[], None], None] = {}

    def send(self, channel: int, performative: Any) -> None:
        """Send a performative without a payload."""
        self.write(frame(channel, performative))

    @abstractmethod
    def forget_session(self, number: int) -> None:
        """Forget the session on a channel, which has ended."""

    def call_soon(self, what: Callable[..., object], *arguments: object) -> None:
        """Call a function once the current event has been handled."""
        self._loop.call_soon(what, *arguments)

    def settle_soon(self, write: Callable[[], None]) -> None:
        """At the end of this event loop iteration, call a function that sends dispositions."""
        self._before_flush[write] = None
        self.flush_soon()

    def before_flush(self) -> None:
        for write in self._before_flush:
            write()
        self._before_flush.clear()


_OK, _AUTHENTICATION_FAILED = 0, 1
#: The characters that are escaped in the subject of a certificate.
_SPECIAL = '"+,;<>\\'

_SHORT_NAMES = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "countryName": "C",
    "domainComponent": "DC",
    "userId": "UID",
}


def offer_mechanisms(connection: ClientSocket) -> None:
    """Send the list of SASL mechanisms with which a client may log in."""
    names = ["PLAIN", "ANONYMOUS", *(["EXTERNAL"] if _subject(connection) else [])]
    offer = SaslMechanisms(Array(map(Symbol, names)))
    connection.write(SASL_HEADER + frame(0, offer, SASL))
    connection.state = "login"


def log_in(connection: ClientSocket, performative: Any) -> None:
    """Handle the client's choice of mechanism: log in and wait for the AMQP header, or raise ConnectionError10."""
    if not isinstance(performative, SaslInit):
        raise ConnectionError10(NOT_ALLOWED, f"unexpected {type(performative).__name__.lower()} frame")
    user = _user(connection, performative.mechanism, performative.initial_response or b"")
    connection.broker.logins["amqp10", user is not None] += 1
    outcome = SaslOutcome(_AUTHENTICATION_FAILED if user is None else _OK)
    connection.write(frame(0, outcome, SASL))
    if user is None:
        raise ConnectionError10(UNAUTHORIZED, f"{performative.mechanism} login refused")
    connection.set_user(user)
    connection.state = "waiting"


def _user(connection: ClientSocket, mechanism: str, response: bytes) -> User | None:
    users = connection.broker.users
    if mechanism == "PLAIN":
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise ConnectionError10(DECODE_ERROR, "response to PLAIN is not two strings behind zero octets")
        name, password = (part.decode(errors="surrogateescape") for part in parts[1:])
        # Whether the user may log in from another machine is checked when the connection is opened.
        return connection.broker.authenticate(name, password, from_loopback=True)
    if mechanism == "ANONYMOUS":
        # As in RabbitMQ, a login with the default user's initial password: refused once that has been changed.
        return connection.broker.authenticate(DEFAULT_USER, DEFAULT_USER, from_loopback=True)
    if mechanism == "EXTERNAL" and (subject := _subject(connection)):
        return users.get(subject)
    raise ConnectionError10(MISSING, f"unknown authentication mechanism '{mechanism}'")


def _subject(connection: ClientSocket) -> str:
    """Return the subject of the client's certificate, such as `CN=orders,O=Example`; empty if there is none."""
    certificate = connection.transport.get_extra_info("peercert") or {}
    parts = [part for parts in reversed(certificate.get("subject", ())) for part in parts]
    return ",".join(f"{_SHORT_NAMES.get(name, name)}={escape_name(value)}" for name, value in parts)


def escape_name(value: str) -> str:
    """Escape a value of a certificate's subject as RabbitMQ does (RFC 4514): else, one value could look like two."""
    escaped = "".join(
        f"\\{byte:02X}" if byte < 32 or byte >= 126 else f"\\{chr(byte)}" if chr(byte) in _SPECIAL else chr(byte)
        for byte in value.encode(errors="surrogateescape")
    )
    if len(value) > 1 and value.endswith(" "):
        escaped = escaped[:-1] + "\\ "
    return "\\" + escaped if value.startswith((" ", "#")) else escaped
