"""A client's connection: frames to channels, and everything that can go wrong on the way."""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Collection
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.errors import (
    CHANNEL_ERROR,
    CONNECTION_FORCED,
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    UNEXPECTED_FRAME,
    ChannelException,
    ConnectionException,
    precondition_failed,
)
from mqtool.broker.embedded.model.limits import check_channels
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire import frames, handshake
from mqtool.broker.embedded.wire.channel import Channel
from mqtool.broker.embedded.wire.dispatch import take_frame, take_frame_while_closing, unknown_frame
from mqtool.broker.embedded.wire.frame_errors import malformed
from mqtool.broker.embedded.wire.methods import decode_method, encode_method
from mqtool.broker.embedded.wire.publishing import publish
from mqtool.broker.embedded.wire.stream import ENOUGH_OUT, FrameStream
from mqtool.routing.field_table import Table

log = logging.getLogger("mqtool.broker.embedded")

HANDSHAKE_SECONDS = 10.0
CLOSING_SECONDS = 5.0
CLOSED_SECONDS = 30.0


class Connection(FrameStream):
    """One client.

    Args:
        broker: the broker.
        connections: where to enter it as long as its socket is open.

    Attributes:
        protocol: what the management API calls it.
        user, vhost, rights: who logged in, where, and what they may do; set in the handshake.
        subscriptions: none; those to streams come by another protocol.
        channel_max: the highest channel number, as negotiated.
        channels: by number, the open channels and those that the client has yet to agree are closed.
        exclusive_queues: the queues that go with the connection.
        connected_at: when, in seconds since 1970.
    """

    protocol = "AMQP 0-9-1"
    subscriptions: Collection[Any] = ()
    user: User
    vhost: VirtualHost
    rights: Rights

    def __init__(self, broker: Broker, connections: "set[Connection]") -> None:
        super().__init__()
        self.broker = broker
        self.first_choice = broker.profile.first_choice
        self._connections = connections
        self.channel_max = handshake.CHANNEL_MAX
        self.client_properties: Table = {}
        self.channels: dict[int, Channel] = {}
        self.exclusive_queues: set[Queue] = set()
        self.connected_at = time.time()
        self.peer: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self._deadline: asyncio.TimerHandle | None = None

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake of a new client."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=ENOUGH_OUT)
        peer = transport.get_extra_info("peername")
        # A socket that has closed already has no names.
        if peer:
            self.peer = (str(peer[0]), int(peer[1]))
            self.local = transport.get_extra_info("sockname")[:2]
        self._connections.add(self)
        self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._handshake_timed_out)
        if self.broker.hooks is not None:
            self.broker.hooks.connected(self)

    @property
    def name(self) -> str:
        """The connection as RabbitMQ names it."""
        return f"{self.peer[0]}:{self.peer[1]} -> {self.local[0]}:{self.local[1]}"

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done, and the end has not begun."""
        return self.state == "open"

    @property
    def from_loopback(self) -> bool:
        """Whether the client is on this machine."""
        return ipaddress.ip_address(self.peer[0].partition("%")[0]).is_loopback

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up: the socket is closed."""
        if exc is not None:
            log.info("connection %s lost: %s", self.name, exc)
        for timer in (self._deadline, self._beat):
            if timer is not None:
                timer.cancel()
        self.state = "closed"
        self._shut()
        self._out.clear()
        self._connections.discard(self)

    # -- frames in

    def receive(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame, and close the channel or the connection if it is wrong."""
        if kind == frames.HEARTBEAT and not number and not payload:
            return
        channel = self.channels.get(number)
        try:
            if self.state != "open":
                self._frame_before_open(kind, number, payload)
            elif channel is None:
                self._frame_outside_channels(kind, number, payload)
            elif channel.state == "open":
                take_frame(channel, kind, payload)
            else:
                take_frame_while_closing(channel, kind, payload)
        except ChannelException as error:
            assert channel is not None
            channel.close(error, _index(kind, payload))
        except ConnectionException as error:
            # If content was due, the error is about the publish that announced it.
            if channel is not None and channel.content.due:
                index = commands.Basic.Publish.index
            else:
                index = _method_index(payload) if kind == frames.METHOD else _publish_index(error)
            self.close(error, index)

    def receive_publish(self, number: int, data: bytes, start: int, end: int) -> int:
        """Take a whole publish, the commonest thing by far; returns where it ends, 0 to take it frame by frame."""
        channel = self.channels.get(number)
        if channel is None or channel.state != "open" or channel.content.due or self.broker.alarms:
            return 0
        whole = channel.content.whole(data, start, end, number, self.frame_max)
        if whole is None:
            return 0
        message, after = whole
        try:
            publish(channel, message)
        except ChannelException as error:
            channel.close(error, commands.Basic.Publish.index)
        except ConnectionException as error:
            self.close(error, _publish_index(error))
        return after

    def _frame_before_open(self, kind: int, number: int, payload: bytes) -> None:
        if self.state == "closing":
            # Frames that were under way when we closed: only the agreement counts now.
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
            raise unknown_frame(kind, number, payload)
        if number == 0:
            self._connection_method(kind, payload)
            return
        if kind != frames.METHOD:
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        method = decode_method(payload)
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
        check_channels(self.broker, self.user.name)
        self.channels[number] = channel = Channel(number, self)
        channel.send(commands.Channel.OpenOk)

    def let_go(self, number: int) -> None:
        """Forget a channel."""
        del self.channels[number]

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

    # -- alarms

    def block(self) -> None:
        """Read no more from a client that publishes, as long as there is an alarm."""
        if self.blocked:
            return
        self.blocked = True
        if self.capability("connection.blocked"):
            self.send(commands.Connection.Blocked, reason=self.broker.alarm_reason)
        self._pace_reading()

    def unblock(self) -> None:
        """Read again: the last alarm has ended."""
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

    def capability(self, name: str) -> bool:
        """Whether the client said that it supports something."""
        capabilities = self.client_properties.get("capabilities")
        return isinstance(capabilities, dict) and capabilities.get(name) is True

    # -- the end

    def check_consumers(self, timeout: float) -> None:
        """Close the channels with a delivery unacknowledged for longer than this many seconds."""
        for channel in list(self.channels.values()):
            if channel.deliveries.overdue(timeout):
                channel.close(
                    precondition_failed(
                        f"delivery acknowledgement on channel {channel.number} timed out. Timeout value used: "
                        f"{int(timeout * 1000)} ms. This timeout value can be configured, see consumers doc guide to "
                        "learn more"
                    ),
                    0,
                )

    def _close_received(self) -> None:
        """Agree, and leave the socket to the client to close: who reads an end too early takes it for a failure."""
        self._shut()
        self.send(commands.Connection.CloseOk)
        self.state = "closed"
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(CLOSED_SECONDS, self.transport.abort)

    def force_close(self, reason: str) -> None:
        """Close it with 320 CONNECTION_FORCED."""
        self.close(ConnectionException(CONNECTION_FORCED, reason))

    def close(self, error: ConnectionException, index: int = 0) -> None:
        """Tell the client why, and wait for it to agree; `index` is that of the method that caused it."""
        if self.state in ("closing", "closed"):
            return
        # Names in it are the client's: in ASCII they cannot forge lines of the log, nor reach a terminal's controls.
        log.warning("connection %s: %s", self.name, ascii(error.text)[1:-1])
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
        """Close the channels and delete the exclusive queues."""
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            if channel.state == "open":
                channel.shut()
        queues, self.exclusive_queues = self.exclusive_queues, set()
        for queue in queues:
            self.vhost.delete_queue(queue)


def _index(kind: int, payload: bytes) -> int:
    """Return class and method that an error is about as one number; content belongs to basic.publish."""
    return int.from_bytes(payload[:4]) if kind == frames.METHOD else commands.Basic.Publish.index


def _method_index(payload: bytes) -> int:
    return int.from_bytes(payload[:4]) if len(payload) >= 4 else 0


def _publish_index(error: ConnectionException) -> int:
    """Return what an error about a complete publish is said to be about: what failed inside the broker, nothing."""
    return commands.Basic.Publish.index if error.code == NOT_IMPLEMENTED else 0
