"""The octets of a connection: cut into frames on the way in, collected on the way out, and kept flowing."""

import asyncio
import logging
import struct
from abc import ABC, abstractmethod

from mqtool.broker.embedded.streaming.frames import FRAME_MAX, Code, Key, MalformedFrame, frame

log = logging.getLogger("mqtool.broker.embedded")

# Size, key and version.
_HEAD = struct.Struct(">IHH")

# No more chunks are sent when this many octets wait; and nothing is read when this many do.
_ENOUGH_OUT = 512 * 1024
_TOO_MUCH_OUT = 16 * 1024 * 1024


class OctetStream(asyncio.Protocol, ABC):
    """A socket that carries frames of the stream protocol.

    Attributes:
        state: `start`, `login`, `tune`, `opening`, `open`, `closing` (the client has been told) or `closed`.
        peer, local: host and port of both ends.
        writable: whether the client should be sent more chunks now.
        heartbeat: the interval in seconds, as negotiated; 0 for none.
        received_bytes, sent_bytes: how many octets so far.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.state = "start"
        self.peer: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self.writable = True
        self.received_bytes = self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = _HEAD.size
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_flushing = False
        self._is_paused = False
        self.heartbeat = 0
        self._beat: asyncio.TimerHandle | None = None
        self._heard_at = self._sent_at = 0.0

    @abstractmethod
    def receive(self, key: int, version: int, body: bytes) -> None:
        """Take a frame.

        Raises:
            MalformedFrame: it is malformed, unknown, or out of turn.
        """

    @abstractmethod
    def wrong(self, code: Code, reason: str) -> None:
        """Close the connection because of a frame."""

    @abstractmethod
    def may_send(self) -> None:
        """Send on: the client has caught up."""

    @property
    @abstractmethod
    def should_read(self) -> bool:
        """Whether to read more from the client."""

    @property
    def name(self) -> str:
        """The connection as RabbitMQ names it."""
        return f"{self.peer[0]}:{self.peer[1]} -> {self.local[0]}:{self.local[1]}"

    # -- octets in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_ENOUGH_OUT)
        peer = transport.get_extra_info("peername")
        # A socket that has closed already has no names.
        if peer:
            self.peer = (str(peer[0]), int(peer[1]))
            self.local = transport.get_extra_info("sockname")[:2]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop: the socket is closed."""
        if exc is not None:
            log.info("stream connection %s lost: %s", self.name, exc)
        self.stop_heartbeats()
        self.state = "closed"
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        """Take octets."""
        self.heard()
        self.received_bytes += len(data)
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        data = b"".join(self._chunks) if len(self._chunks) > 1 else data
        rest = b""
        try:
            rest = data[self._receive(data) :]
        except MalformedFrame:
            self.wrong(Code.UNKNOWN_FRAME, "unknown frame")
        except Exception:
            log.exception("stream connection %s: internal error", self.name)
            self.wrong(Code.INTERNAL_ERROR, "internal error")
        self._chunks = [rest] if rest else []
        self._have = len(rest)

    def _receive(self, data: bytes) -> int:
        """Take all complete frames and return the number of octets in them."""
        position = 0
        self._need = _HEAD.size
        while len(data) - position >= _HEAD.size:
            if self.state == "closed":
                return len(data)
            size, key, version = _HEAD.unpack_from(data, position)
            if size > FRAME_MAX:
                self.wrong(Code.FRAME_TOO_LARGE, "frame too large")
                return len(data)
            if size < 4:
                raise MalformedFrame
            end = position + 4 + size
            if end > len(data):
                self._need = 4 + size
                break
            start, position = position + _HEAD.size, end
            self.receive(key, version, data[start:end])
        return position

    # -- octets out

    def write(self, data: bytes) -> None:
        """Send octets at the end of this turn of the loop, together with all others."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > _ENOUGH_OUT:
            self.writable = False
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._out and not self.transport.is_closing():
            self._sent_at = self._loop.time()
            self.sent_bytes += self._out_bytes
            self.transport.write(b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0
        self._writable_again()
        self.pace()

    def pause_writing(self) -> None:
        """Send no more chunks: the client reads too slowly."""
        self._is_paused = True
        self.writable = False

    def resume_writing(self) -> None:
        """Send chunks again."""
        self._is_paused = False
        self._writable_again()

    def _writable_again(self) -> None:
        if not self.writable and not self._is_paused:
            self.writable = True
            self.may_send()

    def pace(self) -> None:
        """Read nothing from a client that must wait, or that does not read its answers."""
        if self.transport.is_closing():
            return
        if self.should_read and self.transport.get_write_buffer_size() <= _TOO_MUCH_OUT:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def hang_up(self) -> None:
        """Close the socket once everything has been sent."""
        self.state = "closed"
        self._flush()
        self.transport.close()

    # -- heartbeats

    def heard(self) -> None:
        """Note that the client is there."""
        self._heard_at = self._loop.time()

    def start_heartbeats(self, seconds: int) -> None:
        """Send and expect heartbeats at this interval; 0 for none."""
        self.heartbeat = seconds
        if seconds:
            self._sent_at = self._loop.time()
            self._beat = self._loop.call_later(seconds / 2, self._check_heartbeat)

    def stop_heartbeats(self) -> None:
        """Neither send nor expect any."""
        if self._beat is not None:
            self._beat.cancel()

    def _check_heartbeat(self) -> None:
        now = self._loop.time()
        if self.should_read and now - self._heard_at > self.heartbeat * 2:
            log.warning("stream connection %s: no heartbeat for %d s", self.name, self.heartbeat * 2)
            self.transport.abort()
            return
        if now - self._sent_at >= self.heartbeat / 2:
            self.write(frame(Key.HEARTBEAT))
        self._beat = self._loop.call_later(self.heartbeat / 2, self._check_heartbeat)
