"""A client's connection: octets to frames, frames to channels, and everything that can go wrong on the way."""

import asyncio
import ipaddress
import logging
import time
from typing import TYPE_CHECKING

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.errors import (
    CHANNEL_ERROR,
    COMMAND_INVALID,
    CONNECTION_FORCED,
    FRAME_ERROR,
    NOT_ALLOWED,
    UNEXPECTED_FRAME,
    ChannelException,
    ConnectionException,
    locked_queue,
    malformed,
    precondition_failed,
)
from mqtool.broker.embedded.queue import Queue
from mqtool.broker.embedded.users import Permissions, User
from mqtool.broker.embedded.virtual_host import VirtualHost
from mqtool.broker.embedded.wire import frames, handshake
from mqtool.broker.embedded.wire.basic_class import ack
from mqtool.broker.embedded.wire.channel import Channel
from mqtool.broker.embedded.wire.dispatch import HANDLERS
from mqtool.broker.embedded.wire.methods import decode_method, encode_method
from mqtool.broker.embedded.wire.stream import ENOUGH_OUT, FrameStream
from mqtool.routing.field_table import Table

if TYPE_CHECKING:
    from mqtool.broker.embedded.broker import Broker

log = logging.getLogger("mqtool.broker.embedded")

HANDSHAKE_SECONDS = 10.0
CLOSING_SECONDS = 5.0


class Connection(FrameStream):
    """One client.

    Attributes:
        user, vhost: who logged in, and where; set in the handshake.
        channel_max: the highest channel number, as negotiated.
        channels: the open channels, and those that have been closed and not yet let go, by number.
        exclusive_queues: the queues that go with the connection.
        connected_at: when, in seconds since 1970.
    """

    user: User
    vhost: VirtualHost

    def __init__(self, broker: "Broker") -> None:
        super().__init__()
        self.broker = broker
        self.channel_max = handshake.CHANNEL_MAX
        self.client_properties: Table = {}
        self.channels: dict[int, Channel] = {}
        self.exclusive_queues: set[Queue] = set()
        self.connected_at = time.time()
        self.peer: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self._permissions: dict[tuple[str, str], bool] = {}
        self._permissions_version = -1
        self._deadline: asyncio.TimerHandle | None = None

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=ENOUGH_OUT)
        peer = transport.get_extra_info("peername")
        # A socket that is gone already has no names.
        if peer:
            self.peer = (str(peer[0]), int(peer[1]))
            self.local = transport.get_extra_info("sockname")[:2]
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

    # -- frames in

    def receive(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame, and close what has to be closed because of it."""
        if kind == frames.HEARTBEAT and not number and not payload:
            return
        channel = self.channels.get(number)
        try:
            if self.state != "open":
                self._frame_before_open(kind, number, payload)
            elif channel is None:
                self._frame_outside_channels(kind, number, payload)
            elif channel.closing:
                self._frame_while_closing(kind, number, payload)
            else:
                self._channel_frame(channel, kind, payload)
        except ChannelException as error:
            assert channel is not None
            channel.close(error, _index(kind, payload))
        except ConnectionException as error:
            # Where content was due, the error is about the publish that announced it.
            publishing = channel is not None and channel.publishing
            self.close(error, commands.Basic.Publish.index if publishing else _method_index(kind, payload))

    def _channel_frame(self, channel: Channel, kind: int, payload: bytes) -> None:
        """The few frames that make up most of the traffic come first."""
        if kind == frames.BODY:
            channel.receive_body(payload)
        elif kind == frames.HEADER:
            channel.receive_header(payload)
        elif kind != frames.METHOD:
            raise _unknown(kind, channel.number, payload)
        elif payload.startswith(frames.BASIC_PUBLISH):
            channel.receive_publish(payload)
            if self.broker.alarm:
                self._block()
        elif len(payload) == frames.ACK_SIZE and payload.startswith(frames.BASIC_ACK):
            channel.receive_method()
            tag, bits = frames.ACK_FIELDS.unpack_from(payload, 4)
            ack(channel, tag, multiple=bool(bits & 1))
        elif payload.startswith(frames.ACCESS_REQUEST):
            # AMQP 0-8's tickets: clients that still ask for one get one, which means nothing.
            self.write(frames.method_frame(channel.number, frames.ACCESS_REQUEST_OK))
        else:
            method = decode_method(payload)
            channel.receive_method()
            self._channel_method(channel, method)

    def _frame_before_open(self, kind: int, number: int, payload: bytes) -> None:
        if self.state == "closing":
            # Whatever was under way when we closed: only the agreement counts now.
            if kind == frames.METHOD and payload.startswith(frames.CONNECTION_CLOSE_OK):
                self.hang_up()
            return
        if kind != frames.METHOD or number:
            raise ConnectionException(UNEXPECTED_FRAME, "expected a method frame of the connection class")
        method = decode_method(payload)
        if isinstance(method, commands.Connection.Close):
            self._close_received()
        else:
            handshake.receive(self, method)
        if self.state == "open" and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _frame_outside_channels(self, kind: int, number: int, payload: bytes) -> None:
        if kind not in (frames.METHOD, frames.HEADER, frames.BODY):
            raise _unknown(kind, number, payload)
        if number == 0:
            self._connection_method(kind, payload)
            return
        method = decode_method(payload) if kind == frames.METHOD else None
        if isinstance(method, commands.Channel.Open):
            self._open_channel(number)
        elif not isinstance(method, commands.Channel.CloseOk):
            raise ConnectionException(CHANNEL_ERROR, "expected 'channel.open'")

    def _open_channel(self, number: int) -> None:
        if len(self.channels) >= self.channel_max:
            opened = f"number of channels opened ({len(self.channels)})"
            raise ConnectionException(
                NOT_ALLOWED, f"{opened} has reached the negotiated channel_max ({self.channel_max})"
            )
        self.channels[number] = channel = Channel(number, self)
        channel.send(commands.Channel.OpenOk)

    def _frame_while_closing(self, kind: int, number: int, payload: bytes) -> None:
        """We closed this channel: until the client has seen that, its frames go nowhere."""
        if kind != frames.METHOD:
            return
        if payload.startswith(frames.CHANNEL_CLOSE_OK):
            del self.channels[number]
        elif payload.startswith(frames.CHANNEL_CLOSE):
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

    def _connection_method(self, kind: int, payload: bytes) -> None:
        if kind != frames.METHOD:
            raise malformed(UNEXPECTED_FRAME, kind, payload)
        method = decode_method(payload)
        if isinstance(method, commands.Connection.Close):
            self._close_received()
        elif isinstance(method, commands.Connection.UpdateSecret):
            self.send(commands.Connection.UpdateSecretOk)
        else:
            raise ConnectionException(CHANNEL_ERROR, "unexpected method in connection state running")

    def greet(self) -> None:
        """Begin the handshake."""
        handshake.send_start(self)

    def send(self, kind: type[Frame], **fields: str | int | bool | Table) -> None:
        """Send a method of the connection class."""
        self.write(frames.method_frame(0, encode_method(kind, **fields)))

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
            0,
        )

    def _close_received(self) -> None:
        self._shut()
        self.send(commands.Connection.CloseOk)
        self.hang_up()

    def force_close(self, reason: str) -> None:
        """Close it because an operator wants that."""
        self.close(ConnectionException(CONNECTION_FORCED, reason))

    def close(self, error: ConnectionException, index: int = 0) -> None:
        """Say why, and give the client a while to agree; `index` is that of the method that caused it."""
        if self.state in ("closing", "closed"):
            return
        log.warning("connection %s: %s", self.name, error.text)
        self._shut()
        self.state = "closing"
        self.send(
            commands.Connection.Close,
            reply_code=error.code,
            reply_text=error.reply_text,
            class_id=index >> 16,
            method_id=index & 0xFFFF,
        )
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(CLOSING_SECONDS, self.transport.abort)

    def _shut(self) -> None:
        """Give everything back."""
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            if not channel.closed:
                channel.shut()
        queues, self.exclusive_queues = self.exclusive_queues, set()
        for queue in queues:
            self.vhost.delete_queue(queue)


def _index(kind: int, payload: bytes) -> int:
    """The class and method that an error is about, as one number; content is that of basic.publish."""
    return int.from_bytes(payload[:4]) if kind == frames.METHOD else commands.Basic.Publish.index


def _method_index(kind: int, payload: bytes) -> int:
    return int.from_bytes(payload[:4]) if kind == frames.METHOD and len(payload) >= 4 else 0


def _unknown(kind: int, number: int, payload: bytes) -> ConnectionException:
    if kind == frames.HEARTBEAT and number and not payload:
        return malformed(UNEXPECTED_FRAME, kind, payload)
    return malformed(FRAME_ERROR, kind, payload, "unknown_frame")
