"""A client's connection: octets to frames, frames to channels, and everything that can go wrong on the way."""

import asyncio
import ipaddress
import logging
import time
from typing import TYPE_CHECKING

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded import frames, handshake
from mqtool.broker.embedded.basic_class import ack
from mqtool.broker.embedded.channel import Channel
from mqtool.broker.embedded.dispatch import HANDLERS
from mqtool.broker.embedded.errors import (
    CHANNEL_ERROR,
    COMMAND_INVALID,
    CONNECTION_FORCED,
    INTERNAL_ERROR,
    NOT_ALLOWED,
    ChannelException,
    ConnectionException,
    frame_error,
    locked_queue,
    precondition_failed,
)
from mqtool.broker.embedded.field_table import Table
from mqtool.broker.embedded.methods import decode_method, encode_method
from mqtool.broker.embedded.queue import Queue
from mqtool.broker.embedded.users import Permissions, User
from mqtool.broker.embedded.virtual_host import VirtualHost

if TYPE_CHECKING:
    from mqtool.broker.embedded.broker import Broker

log = logging.getLogger("mqtool.broker.embedded")

HANDSHAKE_SECONDS = 10.0
CLOSING_SECONDS = 5.0

# What may wait to be sent before consumers are passed over, and before no more is read from the client.
_ENOUGH_OUT = 256 * 1024
_TOO_MUCH_OUT = 16 * 1024 * 1024


class Connection(asyncio.Protocol):
    """One socket.

    Attributes:
        state: `header`, `start`, `tune`, `opening`, `open`, `closing` (a connection.close has been sent) or `closed`.
        user, vhost: who logged in, and where; set in the handshake.
        frame_max, channel_max: as negotiated, in bytes and channels.
        writable: whether consumers should be sent more now.
        starving: queues to look at again when it is.
    """

    user: User
    vhost: VirtualHost
    transport: asyncio.Transport

    def __init__(self, broker: "Broker") -> None:
        self.broker = broker
        self.state = "header"
        self.frame_max = handshake.FRAME_MAX
        self.channel_max = handshake.CHANNEL_MAX
        self.heartbeat = 0
        self.client_properties: Table = {}
        self.channels: dict[int, Channel] = {}
        self.exclusive_queues: set[Queue] = set()
        self.starving: dict[Queue, None] = {}
        self.writable = True
        self.blocked = False
        self.connected_at = time.time()
        self.peer: tuple[str, int] = ("", 0)
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
        self._confirming: dict[Channel, None] = {}
        self._permissions: dict[tuple[str, str], bool] = {}
        self._permissions_version = -1
        self._deadline: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._sent_at = 0.0

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_ENOUGH_OUT)
        peer = transport.get_extra_info("peername")
        self.peer = (str(peer[0]), int(peer[1])) if peer else ("", 0)
        self.local: tuple[str, int] = transport.get_extra_info("sockname")[:2]
        self.broker.connections.add(self)
        self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._handshake_timed_out)

    @property
    def name(self) -> str:
        """The connection as RabbitMQ names it."""
        return f"{self.peer[0]}:{self.peer[1]} -> {self.local[0]}:{self.local[1]}"

    @property
    def from_loopback(self) -> bool:
        """Whether the client is on this machine."""
        return ipaddress.ip_address(self.peer[0].partition("%")[0]).is_loopback

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone, however that happened."""
        if exc is not None:
            log.info("connection %s lost: %s", self.name, exc)
        for timer in (self._deadline, self._beat):
            if timer is not None:
                timer.cancel()
        self.state = "closed"
        self._shut()
        self._out.clear()
        self.broker.connections.discard(self)

    def eof_received(self) -> bool:
        """The client sends no more: there is nothing left to talk about."""
        return False

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._paused = True
        self.writable = False

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._paused = False
        self._writable_again()

    def data_received(self, data: bytes) -> None:
        """Octets have come in."""
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
            self.close(error, None)
        except Exception:
            log.exception("connection %s: internal error", self.name)
            self.close(ConnectionException(INTERNAL_ERROR), None)

    def _keep(self, rest: bytes) -> None:
        """Keep the beginning of a frame until the rest of it has come."""
        self._chunks = [rest] if rest else []
        self._have = len(rest)

    def _receive(self, data: bytes) -> int:
        """Take as many frames as have come in whole; returns how many octets they were."""
        offset = 0
        if self.state == "header":
            if data[:8] != frames.PROTOCOL_HEADER:
                self._refuse_protocol()
                return len(data)
            offset = 8
            self.state = "start"
            self._need = 8
            handshake.send_start(self)
        size = len(data)
        unpack = frames.FRAME_HEADER.unpack_from
        while size - offset >= 8:
            kind, number, length = unpack(data, offset)
            if length > self.frame_max - frames.FRAME_OVERHEAD:
                raise self._malformed(
                    kind, data[offset + 7 :], f"{{frame_too_large,{length},{self.frame_max - frames.FRAME_OVERHEAD}}}"
                )
            start = offset + 7
            end = start + length
            if end >= size:
                self._need = length + frames.FRAME_OVERHEAD
                return offset
            if data[end] != 0xCE:
                raise self._malformed(kind, data[start:end], f"{{invalid_frame_end_marker,{data[end]}}}")
            if self.state == "closed":
                return size
            self._frame(kind, number, data[start:end])
            offset = end + 1
        self._need = 8
        return offset

    @staticmethod
    def _malformed(kind: int, payload: bytes, what: str) -> ConnectionException:
        head = payload[:16]
        octets = ",".join(map(str, head))
        shown = "all octets" if len(payload) <= 16 else "first 16 octets"
        return frame_error(f"type {kind}, {shown} = <<{octets}>>: {what}")

    def _refuse_protocol(self) -> None:
        """What is not AMQP 0-9-1 is told what would be, and the socket is closed (section 4.2.2)."""
        self.write(frames.PROTOCOL_HEADER)
        self.hang_up()

    # -- frames in

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == frames.HEARTBEAT:
            return
        if self.state != "open":
            self._frame_before_open(kind, number, payload)
            return
        channel = self.channels.get(number)
        method: Frame | None = None
        try:
            if channel is None or channel.closing:
                self._frame_outside_channels(kind, number, payload, channel)
            elif kind == frames.METHOD:
                index = payload[:4]
                if index == frames.BASIC_PUBLISH:
                    channel.receive_publish(payload)
                    if self.broker.alarm:
                        self._block()
                elif index == frames.BASIC_ACK and len(payload) == 13:
                    channel.receive_method()
                    tag, bits = frames.ACK_FIELDS.unpack_from(payload, 4)
                    method = commands.Basic.Ack
                    ack(channel, tag, multiple=bool(bits & 1))
                else:
                    method = decode_method(payload)
                    channel.receive_method()
                    self._channel_method(channel, method)
            elif kind == frames.BODY:
                channel.receive_body(payload)
            elif kind == frames.HEADER:
                channel.receive_header(payload)
            else:
                raise self._malformed(kind, payload, f"unknown_frame_type {kind}")
        except ChannelException as error:
            assert channel is not None
            channel.close(error, method)
        except ConnectionException as error:
            self.close(error, method)

    def _frame_before_open(self, kind: int, number: int, payload: bytes) -> None:
        if self.state == "closing":
            # Whatever was under way when we closed: only the agreement counts now.
            if kind == frames.METHOD and payload[:4] == b"\x00\x0a\x00\x33":
                self.hang_up()
            return
        if kind != frames.METHOD or number:
            raise ConnectionException(
                505 if kind != frames.METHOD else COMMAND_INVALID, "expected method frame of the connection class"
            )
        method = decode_method(payload)
        try:
            if isinstance(method, commands.Connection.Close):
                self._close_received()
            else:
                handshake.receive(self, method)
        except ConnectionException as error:
            self.close(error, method)
            return
        if self.state == "open" and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _frame_outside_channels(self, kind: int, number: int, payload: bytes, channel: Channel | None) -> None:
        if channel is not None:
            # We closed it: until the client has seen that, its frames go nowhere.
            if kind == frames.METHOD:
                self._method_while_closing(number, payload)
            return
        if kind not in (frames.METHOD, frames.HEADER, frames.BODY):
            raise self._malformed(kind, payload, f"unknown_frame_type {kind}")
        method = decode_method(payload) if kind == frames.METHOD else None
        if number == 0:
            self._connection_method(method)
        elif isinstance(method, commands.Channel.Open):
            if number > self.channel_max:
                raise ConnectionException(
                    NOT_ALLOWED,
                    f"channel ID {number} is greater than the negotiated channel_max ({self.channel_max})",
                )
            self.channels[number] = opened = Channel(number, self)
            opened.send(commands.Channel.OpenOk)
        elif isinstance(method, commands.Channel.Close):
            self.write(frames.method_frame(number, encode_method(commands.Channel.CloseOk)))
        elif not isinstance(method, commands.Channel.CloseOk):
            raise ConnectionException(CHANNEL_ERROR, "expected 'channel.open'")

    def _method_while_closing(self, number: int, payload: bytes) -> None:
        if payload[:4] == b"\x00\x14\x00\x29":
            del self.channels[number]
        elif payload[:4] == b"\x00\x14\x00\x28":
            # Both sides closed at once (section 2.2.3).
            self.write(frames.method_frame(number, encode_method(commands.Channel.CloseOk)))

    def _channel_method(self, channel: Channel, method: Frame) -> None:
        handler = HANDLERS.get(type(method))
        if handler is not None:
            handler(channel, method)
        elif isinstance(method, commands.Channel.Close):
            del self.channels[channel.number]
            channel.shut()
            channel.send(commands.Channel.CloseOk)
        elif isinstance(method, commands.Channel.Open):
            raise ConnectionException(CHANNEL_ERROR, "second 'channel.open' seen")
        else:
            raise ConnectionException(COMMAND_INVALID, "unimplemented method")

    def _connection_method(self, method: Frame | None) -> None:
        if isinstance(method, commands.Connection.Close):
            self._close_received()
        elif isinstance(method, commands.Connection.UpdateSecret):
            self.send(commands.Connection.UpdateSecretOk)
        elif method is None:
            raise ConnectionException(505, "expected method frame, got non method frame instead")
        else:
            raise ConnectionException(COMMAND_INVALID, "unexpected method on channel 0")

    # -- frames out

    def send(self, kind: type[Frame], **fields: str | int | bool | Table) -> None:
        """Send a method of the connection class."""
        self.write(frames.method_frame(0, encode_method(kind, **fields)))

    def write(self, data: bytes) -> None:
        """Send octets, together with all others of this turn of the loop."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif self._out_bytes > _ENOUGH_OUT:
            self.writable = False

    def confirm_soon(self, channel: Channel) -> None:
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
        """Read nothing from a client that is blocked, or that asks for more and more and reads none of it."""
        if self.transport.is_closing():
            return
        if self.blocked or self.transport.get_write_buffer_size() > _TOO_MUCH_OUT:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # -- memory

    def _block(self) -> None:
        """It publishes, and there is no room: read no more from it until there is."""
        if self.blocked:
            return
        self.blocked = True
        if self.capability("connection.blocked"):
            self.send(commands.Connection.Blocked, reason="low on memory")
        self._pace_reading()

    def unblock(self) -> None:
        """There is room again."""
        if not self.blocked:
            return
        self.blocked = False
        self._heard_at = self._loop.time()
        if self.state == "open" and self.capability("connection.blocked"):
            self.send(commands.Connection.Unblocked)
        self._pace_reading()

    # -- heartbeats

    def start_heartbeats(self, seconds: int) -> None:
        """Send and expect a sign of life at this interval; 0 for none (section 4.2.7)."""
        self.heartbeat = seconds
        if seconds:
            self._heard_at = self._sent_at = self._loop.time()
            self._beat = self._loop.call_later(seconds / 2, self._check_heartbeat)

    def _check_heartbeat(self) -> None:
        now = self._loop.time()
        if not self.blocked and now - self._heard_at > self.heartbeat * 2:
            log.warning("connection %s: missed heartbeats from client, timeout: %ds", self.name, self.heartbeat)
            self.transport.abort()
            return
        if now - self._sent_at >= self.heartbeat / 2:
            self.write(frames.HEARTBEAT_FRAME)
        self._beat = self._loop.call_later(self.heartbeat / 2, self._check_heartbeat)

    def _handshake_timed_out(self) -> None:
        log.warning("connection %s: handshake timed out", self.name)
        self.transport.abort()

    # -- rights

    def capability(self, name: str) -> bool:
        """Whether the client said that it can do something."""
        capabilities = self.client_properties.get("capabilities")
        return isinstance(capabilities, dict) and capabilities.get(name) is True

    def may(self, what: str, name: str) -> bool:
        """Whether the user may `configure`, `write` or `read` something of this name."""
        if self._permissions_version != self.broker.permissions_version:
            self._permissions.clear()
            self._permissions_version = self.broker.permissions_version
        allowed = self._permissions.get((what, name))
        if allowed is None:
            permissions: Permissions | None = self.user.permissions.get(self.vhost.name)
            allowed = permissions is not None and permissions.allow(what, name)
            self._permissions[what, name] = allowed
        return allowed

    def check_access(self, queue: Queue) -> None:
        """Check that a queue is not exclusive to another connection.

        Raises:
            ChannelException: 405.
        """
        if queue.owner is not None and queue.owner is not self:
            raise locked_queue(queue.name, queue.vhost)

    # -- the end

    def consumer_timed_out(self, channel: Channel, timeout: float) -> None:
        """Close a channel that has kept a delivery for longer than this many seconds."""
        milliseconds = int(timeout * 1000)
        channel.close(
            precondition_failed(
                f"delivery acknowledgement on channel {channel.number} timed out. Timeout value used: {milliseconds} "
                "ms. This timeout value can be configured, see consumers doc guide to learn more"
            ),
            None,
        )

    def _close_received(self) -> None:
        self._shut()
        self.send(commands.Connection.CloseOk)
        self.hang_up()

    def force_close(self, reason: str) -> None:
        """Close it because an operator wants that."""
        self.close(ConnectionException(CONNECTION_FORCED, reason), None)

    def close(self, error: ConnectionException, method: Frame | type[Frame] | None) -> None:
        """Say why, and give the client a while to agree."""
        if self.state in ("closing", "closed"):
            return
        log.warning("connection %s: %s", self.name, error.text)
        self._shut()
        self.state = "closing"
        index = 0 if method is None else method.index
        self.send(
            commands.Connection.Close,
            reply_code=error.code,
            reply_text=error.text.encode()[:255].decode(errors="ignore"),
            class_id=index >> 16,
            method_id=index & 0xFFFF,
        )
        self._flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(CLOSING_SECONDS, self.transport.abort)

    def hang_up(self) -> None:
        """Close the socket once what is to be sent has been."""
        self.state = "closed"
        self._flush()
        self.transport.close()

    def _shut(self) -> None:
        """Give everything back."""
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            if not channel.closed:
                channel.shut()
        queues, self.exclusive_queues = self.exclusive_queues, set()
        for queue in queues:
            self.vhost.delete_queue(queue)
