"""Transport: one AMQP 1.0 connection, from the login until it is lost. Reads and writes frames, and sends heartbeats.

One thread reads; any thread may write. Sockets do not block, and one lock guards each call on them, since TLS does not
allow a read and a write at the same time.

"""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

from mqtool.amqp import Address, pika_errors
from mqtool.amqp10.refusals import ClosedByBroker, not_amqp10, vhost_refused
from mqtool.codecs.amqp10_frames import (
    AMQP_HEADER,
    FRAME_HEADER,
    HEARTBEAT,
    SASL,
    SASL_HEADER,
    Close,
    Open,
    SaslInit,
    SaslOutcome,
    decode_performative,
    frame,
    symbols,
)
from mqtool.codecs.amqp10_values import Symbol
from mqtool.errors import AccessRefused, MqtoolError, Unavailable

#: The maximum size of the frames that the broker may send, in bytes; the minimum of what a peer must accept.
_FRAME_MAX, _FRAME_MIN = 1 << 17, 512
_READ = 1 << 18
_HEARTBEAT = 60
#: The login may take this many connection timeouts in all, as over AMQP 0-9-1.
_LOGIN = 2
#: Seconds to wait for the broker's reply to Close.
_GOODBYE = 1.0


class Transport:
    """An open connection.

    Attributes:
        frame_max: the maximum size of a frame that the broker accepts, in bytes.
        properties: the broker's information about itself, such as its version.
        received_at: the time (`time.monotonic()`) at which something was last received.

    Args:
        logged_in_before: a connection that ends during the login is a network failure, not a refusal.

    Raises:
        Unavailable: the broker cannot be reached, or does not speak AMQP 1.0.
        AccessRefused: the broker rejects the user or the vhost.
    """

    def __init__(
        self, address: Address, context: ssl.SSLContext | None, name: str, *, logged_in_before: bool = False
    ) -> None:
        self._is_past_login = False
        self._heartbeat = _HEARTBEAT if address.heartbeat is None else address.heartbeat
        try:
            self._socket = self._connect(address, context)
        except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
            raise pika_errors.connecting(error, address) from error
        self._login_ends = time.monotonic() + _LOGIN * address.connection_timeout
        try:
            opened = self._log_in(address, name)
        except MqtoolError:
            self._socket.close()
            raise
        except (OSError, EOFError, ValueError) as error:
            self._socket.close()
            if isinstance(error, TimeoutError):
                raise pika_errors.login_too_slow(address, "1.0", _LOGIN * address.connection_timeout) from error
            # With TLS 1.3, a broker refuses a certificate after the handshake.
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                raise pika_errors.connecting(error, address) from error
            if logged_in_before:
                raise Unavailable(f"{address.host}:{address.port} closed the connection before it was open") from error
            if self._is_past_login:
                raise vhost_refused(address) from error
            if isinstance(error, ValueError):
                raise not_amqp10(address) from error
            if isinstance(error, EOFError | ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
                raise pika_errors.closed_early(address) from error
            raise pika_errors.not_amqp(address, "1.0") from error
        self.frame_max = max(_FRAME_MIN, min(opened.max_frame_size or _FRAME_MAX, _FRAME_MAX))
        self.properties = {str(key): value for key, value in (opened.properties or {}).items()}
        self._send_within = (opened.idle_time_out or 0) / 3000  # a third of the broker's limit, in seconds
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._outbox = bytearray()
        self._inbox = b""
        self._wakes, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._wakes, select.POLLIN)
        self._sent_at = self.received_at = time.monotonic()

    @staticmethod
    def _connect(address: Address, context: ssl.SSLContext | None) -> socket.socket:
        plain = socket.create_connection((address.host, address.port), address.connection_timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not address.tls or context is None:
            return plain
        try:
            return context.wrap_socket(plain, server_hostname=address.host)
        except BaseException:
            plain.close()
            raise

    def _log_in(self, address: Address, name: str) -> Open:
        self._exchange_headers(SASL_HEADER)
        offer = self._read_performative()  # every broker with users offers PLAIN
        login = SaslInit("PLAIN", f"\0{address.user}\0{address.password}".encode("utf-8", "surrogateescape"))
        if not address.names_user and "EXTERNAL" in symbols(getattr(offer, "sasl_server_mechanisms", None)):
            login = SaslInit("EXTERNAL", b"")
        self._socket.sendall(frame(0, login, SASL))
        outcome = self._read_performative()
        if not isinstance(outcome, SaslOutcome) or outcome.code:
            raise pika_errors.login_refused(address, "")
        self._is_past_login = True
        self._exchange_headers(AMQP_HEADER)
        self._socket.sendall(frame(0, self._open(address, name)))
        answer = self._read_performative()
        if isinstance(answer, Close):
            refusal = ClosedByBroker.from_error(answer.error)
            raise (Unavailable if refusal.is_temporary else AccessRefused)(str(refusal))
        if not isinstance(answer, Open):
            raise ValueError("open was expected")
        return answer

    def _open(self, address: Address, name: str) -> Open:
        return Open(
            f"{name}-{os.getpid()}-{os.urandom(4).hex()}",
            hostname=f"vhost:{address.virtual_host}",
            max_frame_size=_FRAME_MAX,
            channel_max=1,
            idle_time_out=self._heartbeat * 1000 or None,
            properties={Symbol("product"): "mqtool", Symbol("connection_name"): name},
        )

    def _exchange_headers(self, header: bytes) -> None:
        self._socket.sendall(header)
        if (answer := self._read_exactly(len(header))) != header:
            raise ValueError("another version") if answer.startswith(b"AMQP") else ConnectionError("another protocol")

    def _read_performative(self) -> Any:
        size, offset, _kind, _channel = FRAME_HEADER.unpack(self._read_exactly(FRAME_HEADER.size))
        if not FRAME_HEADER.size <= offset * 4 <= size <= _FRAME_MAX:
            raise ValueError("not a frame")
        return decode_performative(self._read_exactly(size - FRAME_HEADER.size)[offset * 4 - FRAME_HEADER.size :])[0]

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            left = self._login_ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)  # for this recv() alone
            piece = self._socket.recv(size - len(data))
            if not piece:  # in the middle of an answer: a TLS alert is shorter than AMQP's header
                raise ConnectionError("another protocol") if data else EOFError
            data += piece
        return data

    def fileno(self) -> int:
        """The descriptor of the socket, for select()."""
        return self._socket.fileno()

    # Writing.

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""
        return len(self._outbox)

    def send(self, frames: Iterable[bytes]) -> None:
        """Send encoded frames, without waiting. If the connection is lost, read() raises the error."""
        with self._lock:
            was_empty = not self._outbox
            self._outbox += b"".join(frames)
            self._sent_at = time.monotonic()
            self._write()
            waits = bool(self._outbox) and was_empty
        if waits:
            self.wake()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # such as BlockingIOError or ssl.SSLWantWriteError: the socket is full
            while self._outbox:
                with memoryview(self._outbox) as rest:
                    sent = self._socket.send(rest[:_READ])
                del self._outbox[:sent]

    def wake(self) -> None:
        """Make read() return early. Safe to call from any thread or a signal handler."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    # Reading.

    def read(self, timeout: float) -> list[bytes]:
        """Wait for frames, and return their bodies. Only one thread may call this.

        Raises:
            OSError, EOFError: the connection is lost.
            ValueError: the broker sent a malformed frame.
        """
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            timeout = 0.0
        self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        ready = {descriptor for descriptor, _ in self._poll.poll(self._until_heartbeat(timeout) * 1000)}
        if self._wakes.fileno() in ready:
            self._wakes.recv(1 << 12)
        with self._lock:
            if self._outbox:
                self._write()
            data = self._received()
        now = time.monotonic()
        if data:
            self.received_at = now
        elif self._heartbeat and now - self.received_at > self._heartbeat:
            raise TimeoutError(0, "the broker sent nothing, not even a heartbeat")
        if self._send_within and now - self._sent_at >= self._send_within:
            self.send([HEARTBEAT])
        return self._bodies(data) if data else []

    def _until_heartbeat(self, timeout: float) -> float:
        if not self._send_within:
            return timeout
        return max(0.0, min(timeout, self._sent_at + self._send_within - time.monotonic()))

    def _received(self) -> bytes:
        try:
            data = self._socket.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        if not data:
            raise EOFError
        return data

    def _bodies(self, data: bytes) -> list[bytes]:
        if self._inbox:
            data = self._inbox + data
        at, bodies = 0, []
        while len(data) - at >= FRAME_HEADER.size:
            size, offset, _kind, _channel = FRAME_HEADER.unpack_from(data, at)
            if not FRAME_HEADER.size <= offset * 4 <= size <= _FRAME_MAX:
                raise ValueError("not a frame")
            if at + size > len(data):
                break
            if size > offset * 4:
                bodies.append(data[at + offset * 4 : at + size])
            at += size
        self._inbox = data[at:]
        return bodies

    def close(self, *, politely: bool = True) -> None:
        """Close the socket. If `politely`, first send pending frames and Close, and wait for the broker's reply."""
        with contextlib.suppress(OSError, EOFError, ValueError):
            if politely:
                self.send([frame(0, Close())])
                deadline = time.monotonic() + _GOODBYE
                while time.monotonic() < deadline and not any(body[2:3] == b"\x18" for body in self.read(0.1)):
                    pass
        with self._lock:
            for each in (self._socket, self._wakes, self._waker):
                each.close()
