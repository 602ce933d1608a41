"""The octets of a connection: cut into frames on the way in, collected on the way out, and kept flowing."""

import asyncio
import logging
from abc import ABC, abstractmethod

from mqtool.broker.embedded.model.errors import FRAME_ERROR, INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.wire import frames
from mqtool.broker.embedded.wire.frame_errors import malformed
from mqtool.broker.embedded.wire.session import Confirming

log = logging.getLogger("mqtool.broker.embedded")

FRAME_MAX = 131_072
"""The largest frame, in bytes, that the broker agrees to."""

ENOUGH_OUT = 256 * 1024
"""Consumers are skipped when this many bytes wait to be sent."""

# And this many stop reading from the client.
_TOO_MUCH_OUT = 16 * 1024 * 1024

# Type, channel and size: enough to see that a frame is too large before the rest has come.
_FRAME_HEAD = 7


class FrameStream(asyncio.Protocol, ABC):
    """A socket that carries AMQP frames.

    Attributes:
        first_choice: the protocol header that answers another protocol's.
        state: `header`, `start`, `tune`, `opening`, `open`, `closing` (a connection.close has been sent) or `closed`.
        frame_max: the largest frame, in bytes, as negotiated.
        heartbeat: the interval in seconds, as negotiated; 0 for none.
        writable: whether consumers should be sent more now.
        starving: queues to pump when it is.
        blocked: whether nothing is read from it, because of an alarm.
        turn: counts what may have changed where messages go: each read, and each frame that is not of a publish.
    """

    transport: asyncio.Transport
    first_choice: bytes

    def __init__(self) -> None:
        self.state = "header"
        self.frame_max = FRAME_MAX
        self.heartbeat = 0
        self.starving: dict[Queue, None] = {}
        self.writable = True
        self.blocked = False
        self.turn = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 8
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._paused = False
        self._confirming: dict[Confirming, None] = {}
        self._beat: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._sent_at = 0.0

    @property
    @abstractmethod
    def name(self) -> str:
        """The connection as RabbitMQ names it."""

    @abstractmethod
    def greet(self) -> None:
        """Begin the handshake: the client speaks AMQP 0-9-1."""

    @abstractmethod
    def receive(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame.

        Raises:
            ConnectionException: the connection must be closed.
        """

    @abstractmethod
    def receive_publish(self, number: int, data: bytes, start: int, end: int) -> int:
        """Take a whole publish whose method is in `data[start:end]`; returns where it ends, 0 if it is not whole."""

    @abstractmethod
    def close(self, error: ConnectionException) -> None:
        """Close the connection because of an error."""

    # -- octets in

    def eof_received(self) -> bool:
        """Close the socket: the client sends no more."""
        return False

    def pause_writing(self) -> None:
        """Stop sending to consumers: the client reads too slowly."""
        self._paused = True
        self.writable = False

    def resume_writing(self) -> None:
        """Send again: the client has caught up."""
        self._paused = False
        self._writable_again()

    def data_received(self, data: bytes) -> None:
        """Take octets."""
        self._heard_at = self._loop.time()
        self.received_bytes += len(data)
        if self._chunks:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._chunks)
            self._chunks = []
        elif len(data) < self._need:
            self._keep(data)
            return
        try:
            self._keep(data[self._receive(data) :])
        except ConnectionException as error:
            self.close(error)
        except Exception:
            log.exception("connection %s: internal error", self.name)
            self.close(ConnectionException(INTERNAL_ERROR))

    def _keep(self, rest: bytes) -> None:
        """Keep the beginning of a frame until the rest of it has come."""
        self._chunks = [rest] if rest else []
        self._have = len(rest)

    def _receive(self, data: bytes) -> int:
        """Take all complete frames and return the number of octets in them."""
        offset = 0
        self.turn += 1
        if self.state == "header":
            if data[:8] != frames.PROTOCOL_HEADER:
                self._refuse_protocol()
                return len(data)
            offset = 8
            self.state = "start"
            self.greet()
        size = len(data)
        unpack = frames.FRAME_HEADER.unpack_from
        while size - offset >= _FRAME_HEAD:
            kind, number, length = unpack(data, offset)
            # RabbitMQ puts up with a payload that leaves no room for the frame around it.
            if length > self.frame_max:
                limit = self.frame_max - frames.FRAME_OVERHEAD
                raise malformed(FRAME_ERROR, kind, b"", f"{{frame_too_large,{length},{limit}}}")
            start = offset + 7
            end = start + length
            if end >= size:
                self._need = length + frames.FRAME_OVERHEAD
                return offset
            if data[end] != 0xCE:
                raise malformed(FRAME_ERROR, kind, data[start:end], f"{{invalid_frame_end_marker,{data[end]}}}")
            if self.state == "closed":
                return size
            if kind == frames.METHOD and data.startswith(frames.BASIC_PUBLISH, start):
                after = self.receive_publish(number, data, start, end)
                if after:
                    offset = after
                    continue
            self.turn += 1
            self.receive(kind, number, data[start:end])
            offset = end + 1
        self._need = _FRAME_HEAD
        return offset

    def _refuse_protocol(self) -> None:
        """Tell a client that does not speak AMQP 0-9-1 that this is required, and hang up (section 4.2.2)."""
        self.write(self.first_choice)
        self.hang_up()

    # -- octets out

    def write(self, data: bytes) -> None:
        """Send octets at the end of this turn of the loop, together with all others."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif self._out_bytes > ENOUGH_OUT:
            self.writable = False

    def confirm_soon(self, channel: Confirming) -> None:
        """Send a channel's confirms at the end of this turn of the loop."""
        self._confirming[channel] = None
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        for channel in self._confirming:
            channel.write_confirms()
        self._confirming.clear()
        self._flushing = False
        if self._out and not self.transport.is_closing():
            self._sent_at = self._loop.time()
            self.sent_bytes += self._out_bytes
            self.transport.write(b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0
        if not self._paused and not self.writable:
            self._writable_again()
        self._pace_reading()

    def _writable_again(self) -> None:
        self.writable = True
        self._pace_reading()
        starving, self.starving = self.starving, {}
        for queue in starving:
            if not queue.deleted:
                queue.pump()

    def _pace_reading(self) -> None:
        """Read nothing from a client that is blocked, or that does not read its answers."""
        if self.transport.is_closing():
            return
        if self.blocked or self.transport.get_write_buffer_size() > _TOO_MUCH_OUT:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def hang_up(self) -> None:
        """Close the socket once everything has been sent."""
        self.state = "closed"
        self._flush()
        self.transport.close()

    # -- heartbeats

    def start_heartbeats(self, seconds: int) -> None:
        """Send and expect heartbeats at this interval; 0 for none (section 4.2.7)."""
        self.heartbeat = seconds
        if seconds:
            self._heard_at = self._sent_at = self._loop.time()
            self._beat = self._loop.call_later(seconds / 2, self._check_heartbeat)

    def stop_heartbeats(self) -> None:
        """Neither send nor expect any."""
        if self._beat is not None:
            self._beat.cancel()

    def _check_heartbeat(self) -> None:
        now = self._loop.time()
        if not self.blocked and now - self._heard_at > self.heartbeat * 2:
            log.warning("connection %s: missed heartbeats from client, timeout: %ds", self.name, self.heartbeat)
            self.transport.abort()
            return
        if now - self._sent_at >= self.heartbeat / 2:
            self.write(frames.HEARTBEAT_FRAME)
        self._beat = self._loop.call_later(self.heartbeat / 2, self._check_heartbeat)
