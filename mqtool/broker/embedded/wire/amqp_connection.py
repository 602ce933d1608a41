"""One AMQP 0-9-1 connection: dispatches frames to its channels, and closes a channel or the connection on errors."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from weakref import WeakSet

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.model.amqp_errors import (
    CHANNEL_ERROR,
    COMMAND_INVALID,
    CONNECTION_FORCED,
    FRAME_ERROR,
    INTERNAL_ERROR,
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    UNEXPECTED_FRAME,
    ChannelException,
    ConnectionException,
    precondition_failed,
)
from mqtool.broker.embedded.model.broker import Broker, check_channels
from mqtool.broker.embedded.model.footprint import CHANNEL, DELIVERY, PUBLISHED_TO
from mqtool.broker.embedded.model.queue import Why
from mqtool.broker.embedded.sockets.client_socket import UNSENT_LIMIT, ClientSocket
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire import basic_methods, topology_methods
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.broker.embedded.wire.amqp_frames import decode_method, malformed
from mqtool.broker.embedded.wire.amqp_session import CHANNEL_MAX, AmqpSession, receive_handshake, send_start
from mqtool.broker.embedded.wire.basic_methods import publish

log = logging.getLogger("mqtool.broker.embedded")

_CLOSING_SECONDS = 5.0
_CLOSED_SECONDS = 30.0

#: Bytes of a frame's type, channel and size: enough to reject a frame that is too large before the rest has arrived.
_FRAME_HEAD = 7


Others = Mapping[bytes, Callable[[], ClientSocket]]


class BrokerConnection(AmqpSession):
    """The connection of one AMQP 0-9-1 client.

    Args:
        others: functions that create connections of other protocols, by the first bytes that their clients send.

    Attributes:
        publishers, subscriptions: always empty. Stream connections have some, which the management API lists.
    """

    protocol = "AMQP 0-9-1"
    publishers: Collection[Any] = ()
    subscriptions: Collection[Any] = ()

    def __init__(self, broker: Broker, connections: Connections["BrokerConnection"], others: Others) -> None:
        super().__init__(broker, connections)
        self._others = others
        self.channel_max = CHANNEL_MAX
        self.channels: dict[int, BrokerChannel] = {}

    def take_bytes(self, data: bytes) -> int:
        self.turn += 1
        size = len(data)
        offset = self._take_protocol_header(data) if self.state == "header" else 0
        unpack, elapsed = frames.FRAME_HEADER.unpack_from, self._clock.elapsed
        while size - offset >= _FRAME_HEAD:
            kind, number, length = unpack(data, offset)
            # Like RabbitMQ, compare only the payload's size, without the frame header and end mark.
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
            is_publish = kind == frames.METHOD and data.startswith(frames.BASIC_PUBLISH, start)
            if is_publish and (after := self._receive_publish(number, data, start, end)):
                offset = after
            else:
                self.turn += 1
                self._receive(kind, number, data[start:end])
                offset = end + 1
            # As `must_pause`, which would take two calls for each frame.
            if self.blocked or self._steps is not None or self._out_bytes > UNSENT_LIMIT or elapsed() > self._turn_ends:
                break
        self._need = _FRAME_HEAD
        return offset

    @property
    def must_pause(self) -> bool:
        # Like RabbitMQ, which does not handle the rest of a publish either, even if all of it has arrived.
        return self.blocked or super().must_pause

    def _take_protocol_header(self, data: bytes) -> int:
        """Start the handshake, or switch protocols. On an unknown header, send a supported one and close the socket.

        See section 4.2.2 of the specification. Returns the number of bytes handled.
        """
        if data[:8] in self._others:
            self.hand_over(self._others[data[:8]](), data)
            return len(data)
        if data[:8] not in frames.PROTOCOL_HEADERS:
            is_later_version = frames.PROTOCOL_HEADER[:7] <= data[:7] < b"AMQP\x00\x01"
            self.write(frames.PROTOCOL_HEADER if is_later_version else self.broker.profile.first_choice)
            self.hang_up()
            return len(data)
        self.state = "start"
        send_start(self)
        return 8

    def failed(self, error: Exception) -> None:
        if not isinstance(error, ConnectionException):
            log.exception("connection %s: internal error", self.name)
            error = ConnectionException(INTERNAL_ERROR)
        self.close(error)

    @property
    def kept_bytes(self) -> int:
        deliveries = names = 0
        for channel in self.channels.values():
            deliveries += channel.deliveries.kept
            names += max(len(channel.published) - 1, 0)
        return DELIVERY * deliveries + PUBLISHED_TO * names + CHANNEL * len(self.channels)

    def _receive(self, kind: int, number: int, payload: bytes) -> None:
        """Handle a frame. On an error, close the channel or the connection."""
        if kind == frames.HEARTBEAT and not number and not payload:
            return
        channel = self.channels.get(number)
        try:
            if self.state != "open":
                self._frame_before_open(kind, number, payload)
            elif channel is None:
                self._frame_outside_channels(kind, number, payload)
            elif channel.state != "open":
                _take_frame_while_closing(channel, kind, payload)
            elif (steps := _take_frame(channel, kind, payload)) is not None:
                self.work(self._reporting(steps, channel, kind, payload))
        except (ChannelException, ConnectionException) as error:
            self._report(error, channel, kind, payload)

    def _reporting(self, steps: Iterator[None], channel: BrokerChannel, kind: int, payload: bytes) -> Iterator[None]:
        """Carry out the steps of a method. On an error, close the channel or the connection."""
        try:
            yield from steps
        except (ChannelException, ConnectionException) as error:
            if channel.state == "open":
                self._report(error, channel, kind, payload)

    def _report(
        self, error: ChannelException | ConnectionException, channel: BrokerChannel | None, kind: int, payload: bytes
    ) -> None:
        """Close the channel or the connection because of an error in a frame."""
        if isinstance(error, ChannelException):
            assert channel is not None
            channel.close(error, int.from_bytes(payload[:4]) if kind == frames.METHOD else commands.Basic.Publish.index)
        else:
            # An error during an incomplete publish is reported as caused by basic.publish.
            if channel is not None and channel.content.due:
                index = commands.Basic.Publish.index
            elif kind == frames.METHOD:
                index = int.from_bytes(payload[:4]) if len(payload) >= 4 else 0
            else:
                index = _publish_index(error)
            self.close(error, index)

    def _receive_publish(self, number: int, data: bytes, start: int, end: int) -> int:
        """Handle a basic.publish, in `data[start:end]`, together with its header and body if these have arrived.

        Without this shortcut, publishing would take 1.5 times as long.

        Returns:
            The offset after the body; 0 if the publish must be handled frame by frame.
        """
        channel = self.channels.get(number)
        if channel is None or channel.state != "open" or self.broker.alarms:
            return 0
        whole = channel.content.whole(data, start, end, number, self.frame_max)
        if whole is None:
            return 0
        message, after = whole
        try:
            if (steps := publish(channel, message)) is not None:
                self.work(steps)
        except ChannelException as error:
            channel.close(error, commands.Basic.Publish.index)
        except ConnectionException as error:
            self.close(error, _publish_index(error))
        return after

    def _frame_before_open(self, kind: int, number: int, payload: bytes) -> None:
        if self.state == "closing":
            # The client sent these frames before it received connection.close; only connection.close-ok matters now.
            if kind == frames.METHOD and payload.startswith(frames.CONNECTION_CLOSE_OK):
                self.hang_up()
            return
        if kind != frames.METHOD or number:
            raise ConnectionException(UNEXPECTED_FRAME, "expected a method frame of the connection class")
        method = decode_method(payload)
        if isinstance(method, commands.Connection.Close):
            self._close_received()
        else:
            receive_handshake(self, method)
        if self.state == "open":
            self.set_deadline(None)

    def _frame_outside_channels(self, kind: int, number: int, payload: bytes) -> None:
        if kind not in (frames.METHOD, frames.HEADER, frames.BODY):
            raise _unknown_frame(kind, number, payload)
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
        self.channels[number] = channel = BrokerChannel(number, self)
        self.broker.announce(
            "channel.created",
            name=f"{self.name} ({number})",
            number=number,
            pid=channel.deliveries.pid,
            connection=self.pid,
            vhost=self.vhost.name,
            user=self.user.name,
            user_who_performed_action=self.user.name,
        )
        channel.send(commands.Channel.OpenOk)

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

    def block(self) -> None:
        """Until the alarm is over, stop reading from a client that publishes. Send connection.blocked if supported."""
        if self.blocked:
            return
        if self.capability("connection.blocked"):
            self.send(commands.Connection.Blocked, reason=self.broker.alarm_reason)
        super().block()

    def unblock(self) -> None:
        """Resume reading: the last alarm is over. Send connection.unblocked if supported."""
        if not self.blocked:
            return
        if self.state == "open" and self.capability("connection.blocked"):
            self.send(commands.Connection.Unblocked)
        super().unblock()

    def check_consumers(self, timeout: float) -> None:
        """Apply the consumer timeouts; `timeout` is the broker's, in seconds (see Deliveries.time_out)."""
        for channel in list(self.channels.values()):
            used = channel.deliveries.time_out(timeout)
            if used is not None:
                channel.close(
                    precondition_failed(
                        f"delivery acknowledgement on channel {channel.number} timed out. Timeout value used: "
                        f"{used} ms. This timeout value can be configured, see consumers doc guide to "
                        "learn more"
                    ),
                    0,
                )

    def _close_received(self) -> None:
        """Delete the exclusive queues, then send connection.close-ok: many clients expect that order.

        Let the client close the socket: otherwise, some clients report a failure.
        """
        self._shut_channels(Why.CLOSED)
        self.work(self._answer_close())

    def _answer_close(self) -> Iterator[None]:
        while self.exclusive_queues:
            yield from self.vhost.deletions.steps(self.exclusive_queues.pop())
            yield
        if self.state == "closed":  # the socket has closed meanwhile
            return
        self.send(commands.Connection.CloseOk)
        self.state = "closed"
        self.set_deadline(_CLOSED_SECONDS)

    def force_close(self, reason: str) -> None:
        """Close the connection with 320 CONNECTION_FORCED."""
        self.close(ConnectionException(CONNECTION_FORCED, reason))

    def close(self, error: ConnectionException, index: int = 0) -> None:
        """Send connection.close, and give the client a few seconds to send connection.close-ok.

        Args:
            error: the reply code and text.
            index: the method that caused the error, as class id << 16 | method id; 0 if none did.
        """
        if self.state in ("closing", "closed"):
            return
        self.log_once_a_second(logging.WARNING, str(error.code), error.text)
        if self.is_open and (hooks := self.broker.hooks) is not None:
            hooks.closed(self.vhost, "connection", f"{error.code} {error.reply_text}")
        self.shut()
        self.state = "closing"
        self.send(
            commands.Connection.Close,
            reply_code=error.code,
            reply_text=error.reply_text,
            class_id=index >> 16,
            method_id=index & 0xFFFF,
        )
        self.set_deadline(_CLOSING_SECONDS)

    def shut(self, why: Why = Why.LOST) -> None:
        """Close the channels and delete the exclusive queues, in turns if they are many."""
        self._shut_channels(why)
        queues, self.exclusive_queues = self.exclusive_queues, WeakSet()
        for queue in queues:
            self.vhost.deletions.soon(queue)

    def _shut_channels(self, why: Why) -> None:
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            if channel.state == "open":
                channel.shut(why)


def _publish_index(error: ConnectionException) -> int:
    """Return the `index` for close() after a failed publish: that of basic.publish for error 540, otherwise 0."""
    return commands.Basic.Publish.index if error.code == NOT_IMPLEMENTED else 0


def _take_frame(  # noqa: C901 - one case per kind
    channel: BrokerChannel, kind: int, payload: bytes
) -> Iterator[None] | None:
    """Handle a frame on an open channel, or return steps that do. The most frequent kinds are checked first."""
    if kind == frames.BODY:
        if (message := channel.content.body(payload)) is not None:
            return publish(channel, message)
        if channel.session.broker.alarms:
            channel.session.block()
    elif kind == frames.HEADER:
        if (message := channel.content.header(payload)) is not None:
            return publish(channel, message)
    elif kind != frames.METHOD:
        raise _unknown_frame(kind, channel.number, payload)
    elif payload.startswith(frames.BASIC_PUBLISH):
        channel.content.begin(payload)
        if channel.session.broker.alarms:
            channel.session.block()
    elif len(payload) == frames.ACK_SIZE and payload.startswith(frames.BASIC_ACK):
        channel.content.check_complete()
        tag, bits = frames.ACK_FIELDS.unpack_from(payload, 4)
        return basic_methods.ack(channel, tag, multiple=bool(bits & 1))
    elif payload.startswith(frames.ACCESS_REQUEST):
        # Some clients still request an access ticket, as in AMQP 0-8. They get one, but it is never checked.
        channel.session.write(frames.method_frame(channel.number, frames.ACCESS_REQUEST_OK))
    else:
        method = decode_method(payload)
        channel.content.check_complete()
        handler = _HANDLERS.get(type(method))
        if handler is None:
            raise ConnectionException(COMMAND_INVALID, "unimplemented method")
        return handler(channel, method)
    return None


def _take_frame_while_closing(channel: BrokerChannel, kind: int, payload: bytes) -> None:
    """Handle a frame on a channel that the broker has closed: ignore all but channel.close-ok and channel.close."""
    if kind != frames.METHOD:
        return
    if payload.startswith(frames.CHANNEL_CLOSE_OK):
        del channel.session.channels[channel.number]
    elif payload.startswith(frames.CHANNEL_CLOSE):
        # Both sides closed at once (section 2.2.3).
        channel.send(commands.Channel.CloseOk)


def _unknown_frame(kind: int, number: int, payload: bytes) -> ConnectionException:
    """Return the error for a frame of unknown type, or a heartbeat on a channel."""
    if kind == frames.HEARTBEAT and number and not payload:
        return malformed(UNEXPECTED_FRAME, kind, payload)
    return malformed(FRAME_ERROR, kind, payload, "unknown_frame")


def _open(channel: BrokerChannel, method: commands.Channel.Open) -> None:  # noqa: ARG001
    raise ConnectionException(CHANNEL_ERROR, "second 'channel.open' seen")


def _close(channel: BrokerChannel, method: commands.Channel.Close) -> None:  # noqa: ARG001
    del channel.session.channels[channel.number]
    channel.shut()
    channel.send(commands.Channel.CloseOk)


def _flow(channel: BrokerChannel, method: commands.Channel.Flow) -> None:
    if not method.active:
        raise ConnectionException(NOT_IMPLEMENTED, "active=false")
    channel.send(commands.Channel.FlowOk, active=True)


def _ack(channel: BrokerChannel, method: commands.Basic.Ack) -> Iterator[None] | None:
    return basic_methods.ack(channel, method.delivery_tag, multiple=method.multiple)


def _flow_ok(channel: BrokerChannel, method: Frame) -> None:
    """Ignore channel.flow-ok: the broker never sends channel.flow."""


# `Any`, because each handler takes only methods of its own class. A handler may return steps that do the rest.
_HANDLERS: dict[type[Frame], Callable[[BrokerChannel, Any], Iterator[None] | None]] = {
    commands.Channel.Open: _open,
    commands.Channel.Close: _close,
    commands.Channel.Flow: _flow,
    commands.Channel.FlowOk: _flow_ok,
    commands.Exchange.Declare: topology_methods.exchange_declare,
    commands.Exchange.Delete: topology_methods.exchange_delete,
    commands.Exchange.Bind: topology_methods.exchange_bind,
    commands.Exchange.Unbind: topology_methods.exchange_unbind,
    commands.Queue.Declare: topology_methods.queue_declare,
    commands.Queue.Bind: topology_methods.queue_bind,
    commands.Queue.Unbind: topology_methods.queue_unbind,
    commands.Queue.Purge: topology_methods.queue_purge,
    commands.Queue.Delete: topology_methods.queue_delete,
    commands.Basic.Qos: basic_methods.qos,
    commands.Basic.Consume: basic_methods.consume,
    commands.Basic.Cancel: basic_methods.cancel,
    commands.Basic.Get: basic_methods.get,
    commands.Basic.Ack: _ack,
    commands.Basic.Nack: basic_methods.nack,
    commands.Basic.Reject: basic_methods.reject,
    commands.Basic.Recover: basic_methods.recover,
    commands.Basic.RecoverAsync: basic_methods.recover_async,
    commands.Confirm.Select: basic_methods.confirm_select,
    commands.Tx.Select: basic_methods.tx_select,
    commands.Tx.Commit: basic_methods.tx_commit,
    commands.Tx.Rollback: basic_methods.tx_rollback,
}
