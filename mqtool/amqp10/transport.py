"""Transport: one AMQP 1.0 connection, from the login until it is lost. Reads and writes frames, and sends heartbeats.

One thread reads; any thread may write. Sockets do not block, and one lock guards each call on them, since TLS does not
allow a read and a write at the same time.

The frames of messages, transfer and disposition, are decoded by hand: the library takes fifty microseconds for each. It
does all others.
"""

import contextlib
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from rabbitmq_amqp_python_client import wire
from rabbitmq_amqp_python_client.exceptions import ProtocolError

from mqtool.amqp import Address, pika_errors
from mqtool.amqp10.refusals import ClosedByBroker, not_amqp10, vhost_refused
from mqtool.codecs.amqp10_values import find
from mqtool.errors import AccessRefused, MqtoolError, Unavailable

#: The maximum size of the frames that the broker may send, in bytes; the minimum of what a peer must accept.
_FRAME_MAX, _FRAME_MIN = 1 << 17, 512
_READ = 1 << 18
_HEARTBEAT = 60
_HEADER = struct.Struct(">IBBH")
#: Seconds to wait for the broker's answer to Close.
_GOODBYE = 1.0
_LIBRARY_ERRORS = (ProtocolError, ValueError, struct.error, IndexError)
TRANSFER, DISPOSITION = 0x14, 0x15
IDS = 0xFFFF_FFFF
_LIST8, _NULL, _TRUE, _FALSE, _ZERO = 0xC0, 0x40, 0x41, 0x42, 0x43
#: A transfer as RabbitMQ encodes it: handle, delivery id, tag, message format 0, settled, more; nothing follows.
_USUAL = re.compile(
    rb"\x00S\x14\xc0.\x06(C|R.)(C|R.|p....)\xa0(?:\x04....|\x00|\x01.|\x02..|\x03...)C(A|B)(A|B)", re.DOTALL
)
_ACCEPTED = b"\x00\x53\x24\x45"


class Transfer(NamedTuple):
    """A decoded transfer. The delivery id is None in later frames of a message."""

    handle: int
    delivery_id: int | None
    settled: bool
    more: bool
    is_aborted: bool
    payload: bytes


def parse_transfer(body: bytes) -> Transfer:
    """Decode the body of a transfer frame.

    Raises:
        ValueError, IndexError: it is damaged.
    """
    if (found := _USUAL.match(body)) is not None:
        handle, delivery_id, settled, more = found.groups()
        number = int.from_bytes(delivery_id[1:])  # also of b"C", which is 0
        is_more = more == b"A"
        return Transfer(int.from_bytes(handle[1:]), number, settled == b"A", is_more, False, body[5 + body[4] :])
    fields = find(body, 3)
    at = fields.start + (1 if fields.code < 0xD0 else 4)
    values: list[int | None] = []
    while at < fields.end:
        span = find(body, at)
        code = span.code
        if code == _TRUE:
            values.append(1)
        elif code in (_FALSE, _ZERO):
            values.append(0)
        elif code == _NULL:
            values.append(None)
        else:
            values.append(int.from_bytes(body[span.start : span.end]))
        at = span.end
    values += [None] * (10 - len(values))
    handle, delivery_id, _, _, settled, more, _, _, _, aborted = values[:10]
    return Transfer(handle or 0, delivery_id, bool(settled), bool(more), bool(aborted), body[fields.end :])


class Disposition(NamedTuple):
    """The outcome of the deliveries from `first` to `last`. `by_receiver`: of messages that were sent to the broker."""

    by_receiver: bool
    first: int
    last: int
    state: Any


def parse_disposition(body: bytes) -> Disposition:
    """Decode the body of a disposition frame."""
    if body.endswith(_ACCEPTED) and body[3] == _LIST8:
        role = find(body, 6)
        first = find(body, role.end)
        last = find(body, first.end)
        low = int.from_bytes(body[first.start : first.end])
        high = low if last.code == _NULL else int.from_bytes(body[last.start : last.end])
        return Disposition(role.code == _TRUE, low, high, wire.Accepted())
    told = wire.decode_performative(body)
    assert isinstance(told, wire.Disposition)
    return Disposition(told.role, told.first, told.first if told.last is None else told.last, told.state)


def disposition(first: int, last: int, state: Any) -> bytes:
    """Encode the frame that settles deliveries."""
    return frame(wire.Disposition(True, first & IDS, last & IDS, settled=True, state=state))


def frame(performative: Any) -> bytes:
    """Encode any other frame."""
    return bytes(wire.build_frame(wire.FRAME_TYPE_AMQP, 0, performative.encode()))


class Transport:
    """An open connection.

    Attributes:
        frame_max: the maximum size of a frame that the broker accepts, in bytes.
        properties: what the broker says about itself, such as its version.

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
        except OSError as error:
            raise pika_errors.connecting(error, address) from error
        try:
            opened = self._log_in(address, name)
        except MqtoolError:
            self._socket.close()
            raise
        except (OSError, *_LIBRARY_ERRORS) as error:
            self._socket.close()
            if isinstance(error, ssl.SSLError):  # with TLS 1.3, a broker refuses a certificate after the handshake
                raise pika_errors.connecting(error, address) from error
            if logged_in_before:
                raise Unavailable(f"{address.host}:{address.port} broke off before the connection was open") from error
            raise (vhost_refused if self._is_past_login else not_amqp10)(address) from error
        self.frame_max = max(_FRAME_MIN, min(opened.max_frame_size, _FRAME_MAX))
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
        self._sent_at = self._received_at = time.monotonic()

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

    def _log_in(self, address: Address, name: str) -> wire.Open:
        self._exchange_headers(wire.AMQP_SASL_HEADER)
        self._read_body()  # the mechanisms; every broker that has users has PLAIN
        login = wire.SaslInit("PLAIN", wire.build_plain_initial_response(address.user, address.password))
        wire.write_frame(self._socket, wire.FRAME_TYPE_SASL, 0, login.encode())
        outcome = self._read_body()
        if not isinstance(outcome, wire.SaslOutcome) or not outcome.succeeded:
            raise pika_errors.login_refused(address, "")
        self._is_past_login = True
        self._exchange_headers(wire.AMQP_PROTOCOL_HEADER)
        wire.write_frame(self._socket, wire.FRAME_TYPE_AMQP, 0, self._open(address, name).encode())
        answer = self._read_body()
        if isinstance(answer, wire.Close):
            raise AccessRefused(str(ClosedByBroker.from_error(answer.error)))
        if not isinstance(answer, wire.Open):
            raise ProtocolError("open was expected")
        return answer

    def _open(self, address: Address, name: str) -> wire.Open:
        return wire.Open(
            f"{name}-{os.getpid()}-{os.urandom(4).hex()}",
            hostname=f"vhost:{address.virtual_host}",
            max_frame_size=_FRAME_MAX,
            channel_max=1,
            idle_time_out=self._heartbeat * 1000 or None,
            properties={"product": "mqtool", "connection_name": name},
        )

    def _exchange_headers(self, header: bytes) -> None:
        wire.write_protocol_header(self._socket, header)
        if wire.read_protocol_header(self._socket) != header:
            raise ProtocolError("another protocol")

    def _read_body(self) -> Any:
        kind, _, body = wire.read_frame(self._socket)
        return wire.decode_frame_body(kind, body)[0]

    # Writing.

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
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError, OSError):
            while self._outbox:
                with memoryview(self._outbox) as rest:
                    sent = self._socket.send(rest[:_READ])
                del self._outbox[:sent]

    def wake(self) -> None:
        """Have read() return early. Safe to call from any thread or a signal handler."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    # Reading.

    def read(self, timeout: float) -> list[bytes]:
        """Wait for frames, and return their bodies. Call it on one thread only.

        Raises:
            OSError, EOFError: the connection is lost.
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
            self._received_at = now
        elif self._heartbeat and now - self._received_at > self._heartbeat:
            raise TimeoutError(0, "the broker sent nothing, not even a heartbeat")
        if self._send_within and now - self._sent_at >= self._send_within:
            self.send([wire.EMPTY_FRAME])
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
        while len(data) - at >= _HEADER.size:
            size, offset, _kind, _channel = _HEADER.unpack_from(data, at)
            if not _HEADER.size <= size <= _FRAME_MAX:
                raise EOFError
            if at + size > len(data):
                break
            if size > offset * 4:
                bodies.append(data[at + offset * 4 : at + size])
            at += size
        self._inbox = data[at:]
        return bodies

    def close(self, *, politely: bool = True) -> None:
        """Send what is left and Close, if `politely`, wait for the broker's answer, and close the socket."""
        with contextlib.suppress(OSError, EOFError):
            if politely:
                self.send([wire.build_frame(wire.FRAME_TYPE_AMQP, 0, wire.Close().encode())])
                deadline = time.monotonic() + _GOODBYE
                while time.monotonic() < deadline and not any(body[2:3] == b"\x18" for body in self.read(0.1)):
                    pass
        for each in (self._socket, self._wakes, self._waker):
            each.close()
