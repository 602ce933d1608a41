"""Listening sockets, with or without TLS, and limits for clients that have not logged in."""

import asyncio
import errno
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

log = logging.getLogger("mqtool.broker.embedded")

_BACKLOG = 1024

#: How many connections of one listener are accepted before other clients are served: with TLS, each takes 0.3 ms.
_ACCEPTED_AT_ONCE = 16

#: Like RabbitMQ's ssl_handshake_timeout.
_HANDSHAKE_SECONDS = 5.0

#: "::" stands for all IPv4 addresses, too, as with most servers.
_EVERYWHERE = {"::": ("0.0.0.0", "::")}  # noqa: S104

_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

#: The maximum number of attempts to find a port that is free on all addresses.
_ATTEMPTS = 20


class Listener:
    """Accepts connections on one port of one or more hosts. Can refuse connections for a while without losing the port.

    Args:
        new_connection: creates the asyncio protocol of a new connection.
        handshakes: does the TLS handshake of each connection first; None for plain TCP.
    """

    def __init__(
        self, new_connection: Callable[[], asyncio.Protocol], handshakes: "TlsHandshakes | None" = None
    ) -> None:
        self._new_connection = new_connection
        if handshakes is not None:
            self._new_connection = lambda: handshakes.begin(new_connection)
        self._servers: list[asyncio.Server] = []
        self._bound: list[socket.socket] = []
        self._opening: set[asyncio.Task[asyncio.Server]] = set()
        self._shut = 0

    async def listen(self, hosts: Sequence[str], port: int) -> int:
        """Listen on all IPv4 and IPv6 addresses of these hosts.

        Args:
            hosts: names or addresses.
            port: the port number; 0 for any port that is free on all of the addresses.

        Returns:
            The port number.

        Raises:
            OSError: a host name cannot be resolved, or the port cannot be used, for example because it is in use.
        """
        for each in _bound(hosts, port):
            port = each.getsockname()[1]
            self._servers.append(await self._serve(each))
        return port

    async def _serve(self, bound: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        # asyncio accepts as many connections in one turn as may wait, so the length of the queue is set afterwards.
        server = await loop.create_server(self._new_connection, sock=bound, backlog=_ACCEPTED_AT_ONCE)
        bound.listen(_BACKLOG)
        return server

    def shut(self) -> None:
        """Refuse connections, but keep the port."""
        self._shut += 1
        if self._shut > 1:
            return
        addresses = [(each.family, each.getsockname()) for server in self._servers for each in server.sockets]
        self._close_servers()
        # Sockets that are bound but do not listen keep the port; the system refuses connections to it.
        self._bound = [_bound_socket(family, address) for family, address in addresses]

    def open(self) -> None:
        """Undo one call of shut(). Once all of them are undone, accept connections again."""
        self._shut -= 1
        if self._shut:
            return
        loop = asyncio.get_running_loop()
        for bound in self._bound:
            bound.listen(_BACKLOG)  # clients can connect from here on, and are served a moment later
            task = loop.create_task(self._serve(bound))
            self._opening.add(task)
            task.add_done_callback(self._opened)
        self._bound = []

    def _opened(self, task: "asyncio.Task[asyncio.Server]") -> None:
        self._opening.discard(task)
        self._servers.append(task.result())

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []

    def close(self) -> None:
        """Stop listening and release the port."""
        for task in self._opening:
            task.remove_done_callback(self._opened)
            task.add_done_callback(lambda done: done.result().close())
        self._close_servers()
        for bound in self._bound:
            bound.close()
        self._bound = []


def _bound(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Bind sockets to one port on all addresses of these hosts, and return the sockets."""
    for attempt in range(_ATTEMPTS):
        bound: list[socket.socket] = []
        try:
            for host in hosts:
                bound += _bound_to(host, bound[0].getsockname()[1] if bound else port)
        except OSError as error:
            for each in bound:
                each.close()
            if port or error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                raise
        else:
            return bound
    raise AssertionError


def _bound_to(host: str, port: int) -> list[socket.socket]:
    """Bind sockets to the addresses of a host, and return the sockets. Skips IPv6 or IPv4 if the machine lacks it."""
    found = {}
    for name in _EVERYWHERE.get(host, (host,)):
        try:
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as error:
            raise OSError(error.errno, f"cannot listen on {host}: {error.strerror}") from error
        found.update({(family, address[0]): address for family, _, _, _, address in infos})
    bound: list[socket.socket] = []
    missing = None
    for (family, number), address in found.items():
        try:
            bound.append(_bound_socket(family, (number, bound[0].getsockname()[1] if bound else port, *address[2:])))
        except OSError as error:
            if error.errno not in _NO_SUCH_FAMILY:
                for each in bound:
                    each.close()
                raise OSError(error.errno, f"cannot listen on {number} port {port}: {error.strerror}") from error
            missing = error
    if not bound:
        assert missing is not None
        raise OSError(missing.errno, f"cannot listen on {host}: {missing.strerror}") from missing
    return bound


def _bound_socket(family: int, address: Any) -> socket.socket:
    """Create a non-blocking socket that is bound to an address."""
    # asyncio sets TCP_NODELAY only on connections of a socket that names its protocol.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


#: OpenSSL's names for the errors that a client without TLS causes.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")


@dataclass(frozen=True)
class Tls:
    """PEM files for TLS.

    Attributes:
        cert: the broker's certificate, followed by any intermediate certificates.
        key: the certificate's private key, which must not be encrypted.
        client_ca: the CA certificates for verifying client certificates; None if clients need no certificate.
    """

    cert: str | Path
    key: str | Path
    client_ca: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """Create the broker's TLS context.

        Raises:
            OSError: a file cannot be read or is not PEM, or the key is encrypted or does not match the certificate.
        """
        for path in (self.cert, self.key, *([self.client_ca] if self.client_ca is not None else [])):
            _check(Path(path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _LoggingHandshake
        try:
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise OSError(f"the key {self.key} does not match the certificate {self.cert}") from error
            files = ", ".join(str(path) for path in (self.cert, self.key, self.client_ca) if path is not None)
            raise OSError(f"cannot use the TLS files {files}: one of them is not valid") from error
        return context


def _check(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the TLS file {path}: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise OSError(f"the TLS file {path} is not in PEM form")
    # OpenSSL would prompt for the password on the terminal.
    if b"ENCRYPTED" in content:
        raise OSError(f"the key {path} is encrypted; the broker needs one that is not")


class _LoggingHandshake(ssl.SSLObject):
    """Logs the reason if a TLS handshake fails, because asyncio does not."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            reason = "the client does not speak TLS" if error.reason in _NOT_TLS else _reason(error)
            log.warning("TLS handshake failed: %s", reason, extra=caused_by(f"TLS {reason}"))
            raise


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def stranger_limit() -> int:
    """Return the maximum number of connections from one address that have not logged in.

    This is a quarter of the file descriptors allowed (RLIMIT_NOFILE), but at least 64 and at most 1000.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max(descriptors // 4, 64), 1000)


class Abortable(Protocol):
    """A connection that Connections can close."""

    peer: tuple[str, int]

    def abort(self) -> None:
        """Close the socket immediately. Data that has not been sent yet is lost."""


C = TypeVar("C", bound=Abortable)


class Connections(Collection[C], Generic[C]):
    """The open connections of one protocol, oldest first. Limits how many from one address may lack a login.

    Args:
        limit: the maximum number from one address; stranger_limit() by default.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._open: dict[C, None] = {}
        self._limit = stranger_limit() if limit is None else limit
        self._strangers: dict[str, dict[C, None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[C]:
        return iter(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def add(self, connection: C) -> None:
        """Add a new connection. If its address now has too many without a login, close the oldest of these."""
        self._open[connection] = None
        strangers = self._strangers.setdefault(connection.peer[0], {})
        strangers[connection] = None
        if len(strangers) > self._limit:
            oldest = next(iter(strangers))
            count, extra = len(strangers), caused_by("strangers")
            log.warning("%s has %d connections without a login: one is closed", oldest.peer[0], count, extra=extra)
            del strangers[oldest]
            oldest.abort()

    def allow(self, connection: C) -> None:
        """Stop counting a connection towards the limit of its address, because its client has logged in."""
        address = connection.peer[0]
        strangers = self._strangers.get(address)
        if strangers is not None:
            strangers.pop(connection, None)
            if not strangers:
                del self._strangers[address]

    def remove(self, connection: C) -> None:
        """Remove a closed connection."""
        del self._open[connection]
        self.allow(connection)


class TlsHandshakes:
    """Does the TLS handshakes of all listeners, and limits how many from one address may be unfinished.

    A connection is unknown to its protocol until its handshake is done. Without a limit, clients that never finish it
    could use up the file descriptors.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.unfinished: Connections[_Handshake] = Connections(stranger_limit() // 2)

    def begin(self, new_connection: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """Return the protocol of a new TCP connection, which calls `new_connection` when the handshake is done."""
        return _Handshake(self, new_connection)


class _Handshake(asyncio.Protocol):
    """A connection whose TLS handshake is not done."""

    def __init__(self, handshakes: TlsHandshakes, new_connection: Callable[[], asyncio.Protocol]) -> None:
        self.peer: tuple[str, int] = ("", 0)
        self._handshakes = handshakes
        self._new_connection = new_connection
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # until start_tls() reads
        if peer := transport.get_extra_info("peername"):
            self.peer = (str(peer[0]), int(peer[1]))
        self._transport = transport
        self._handshakes.unfinished.add(self)
        self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    async def _shake_hands(self) -> None:
        context, loop = self._handshakes.context, asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                self._transport, self, context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS
            )
        except (OSError, TimeoutError):
            self._transport.abort()
            return
        finally:
            self._handshakes.unfinished.remove(self)
        if transport is None:  # the client has gone meanwhile
            return
        connection = self._new_connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if self._received:
            connection.data_received(self._received)

    def data_received(self, data: bytes) -> None:
        """Keep what has come in the same packet as the end of the handshake."""
        self._received += data

    def abort(self) -> None:
        """Close the socket immediately."""
        self._transport.abort()


class Repetitions(logging.Filter):
    """A log filter that suppresses repeated records. The next record that passes says how many were suppressed.

    Only records with a cause are filtered: `log.warning("...", extra=caused_by("handshake"))`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        cause = getattr(record, "cause", None)
        if cause is None:
            return True
        now = time.monotonic()
        if now < self._next.get(cause, 0.0):
            self._left_out[cause] = self._left_out.get(cause, 0) + 1
            return False
        self._next[cause] = now + record.__dict__["seconds"]
        if left_out := self._left_out.pop(cause, 0):
            record.msg = f"{record.msg} (and {left_out} more like this)"
        return True


def caused_by(cause: str, seconds: float = 1.0) -> dict[str, Any]:
    """Return an `extra` argument for a log call that limits the log to one line per `cause` in this many seconds."""
    return {"cause": cause, "seconds": seconds}
