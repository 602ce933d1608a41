"""Finds the function for each frame on a channel."""

from collections.abc import Callable
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.model.amqp_errors import (
    CHANNEL_ERROR,
    COMMAND_INVALID,
    FRAME_ERROR,
    NOT_IMPLEMENTED,
    UNEXPECTED_FRAME,
    ConnectionException,
)
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire import basic_methods, topology_methods
from mqtool.broker.embedded.wire.amqp_channel import Channel
from mqtool.broker.embedded.wire.amqp_frames import decode_method, malformed
from mqtool.broker.embedded.wire.basic_methods import publish


def take_frame(channel: Channel, kind: int, payload: bytes) -> None:  # noqa: C901 - one case per kind
    """Handle a frame on an open channel. The most frequent frames are tested for first.

    Raises:
        ChannelException: the channel must be closed.
        ConnectionException: the connection must be closed.
    """
    if kind == frames.BODY:
        if (message := channel.content.body(payload)) is not None:
            publish(channel, message)
        elif channel.session.broker.alarms:
            channel.session.block()
    elif kind == frames.HEADER:
        if (message := channel.content.header(payload)) is not None:
            publish(channel, message)
    elif kind != frames.METHOD:
        raise unknown_frame(kind, channel.number, payload)
    elif payload.startswith(frames.BASIC_PUBLISH):
        channel.content.begin(payload)
        if channel.session.broker.alarms:
            channel.session.block()
    elif len(payload) == frames.ACK_SIZE and payload.startswith(frames.BASIC_ACK):
        channel.content.check_complete()
        tag, bits = frames.ACK_FIELDS.unpack_from(payload, 4)
        basic_methods.ack(channel, tag, multiple=bool(bits & 1))
    elif payload.startswith(frames.ACCESS_REQUEST):
        # Some clients still ask for a ticket of AMQP 0-8. They get one, which is never checked.
        channel.session.write(frames.method_frame(channel.number, frames.ACCESS_REQUEST_OK))
    else:
        method = decode_method(payload)
        channel.content.check_complete()
        handler = _HANDLERS.get(type(method))
        if handler is None:
            raise ConnectionException(COMMAND_INVALID, "unimplemented method")
        handler(channel, method)


def take_frame_while_closing(channel: Channel, kind: int, payload: bytes) -> None:
    """Handle a frame on a channel that the broker has closed: ignore it, unless the client agrees to the closing."""
    if kind != frames.METHOD:
        return
    if payload.startswith(frames.CHANNEL_CLOSE_OK):
        channel.session.remove_channel(channel.number)
    elif payload.startswith(frames.CHANNEL_CLOSE):
        # Both sides closed at once (section 2.2.3).
        channel.send(commands.Channel.CloseOk)


def unknown_frame(kind: int, number: int, payload: bytes) -> ConnectionException:
    """The error for a frame of unknown type, or a heartbeat on a channel."""
    if kind == frames.HEARTBEAT and number and not payload:
        return malformed(UNEXPECTED_FRAME, kind, payload)
    return malformed(FRAME_ERROR, kind, payload, "unknown_frame")


def _open(channel: Channel, method: commands.Channel.Open) -> None:  # noqa: ARG001
    raise ConnectionException(CHANNEL_ERROR, "second 'channel.open' seen")


def _close(channel: Channel, method: commands.Channel.Close) -> None:  # noqa: ARG001
    channel.session.remove_channel(channel.number)
    channel.shut()
    channel.send(commands.Channel.CloseOk)


def _flow(channel: Channel, method: commands.Channel.Flow) -> None:
    if not method.active:
        raise ConnectionException(NOT_IMPLEMENTED, "active=false")
    channel.send(commands.Channel.FlowOk, active=True)


def _ack(channel: Channel, method: commands.Basic.Ack) -> None:
    basic_methods.ack(channel, method.delivery_tag, multiple=method.multiple)


def _flow_ok(channel: Channel, method: Frame) -> None:
    """Ignore the answer: the broker never sends channel.flow."""


# Any: each handler takes the one method that it is listed for.
_HANDLERS: dict[type[Frame], Callable[[Channel, Any], None]] = {
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
