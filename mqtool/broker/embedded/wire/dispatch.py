"""Which function takes which method on an open channel."""

from collections.abc import Callable
from typing import Any

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.errors import NOT_IMPLEMENTED, ConnectionException
from mqtool.broker.embedded.wire import basic_class, exchange_class, queue_class, tx_class
from mqtool.broker.embedded.wire.channel import Channel


def _flow(channel: Channel, method: commands.Channel.Flow) -> None:
    if not method.active:
        raise ConnectionException(NOT_IMPLEMENTED, "active=false")
    channel.send(commands.Channel.FlowOk, active=True)


def _ack(channel: Channel, method: commands.Basic.Ack) -> None:
    basic_class.ack(channel, method.delivery_tag, multiple=method.multiple)


def _flow_ok(channel: Channel, method: Frame) -> None:
    """We never ask for flow, so this answers nothing; it does no harm either."""


# Any: each handler takes the one method that it is registered for.
HANDLERS: dict[type[Frame], Callable[[Channel, Any], None]] = {
    commands.Channel.Flow: _flow,
    commands.Channel.FlowOk: _flow_ok,
    commands.Exchange.Declare: exchange_class.declare,
    commands.Exchange.Delete: exchange_class.delete,
    commands.Exchange.Bind: exchange_class.bind,
    commands.Exchange.Unbind: exchange_class.unbind,
    commands.Queue.Declare: queue_class.declare,
    commands.Queue.Bind: queue_class.bind,
    commands.Queue.Unbind: queue_class.unbind,
    commands.Queue.Purge: queue_class.purge,
    commands.Queue.Delete: queue_class.delete,
    commands.Basic.Qos: basic_class.qos,
    commands.Basic.Consume: basic_class.consume,
    commands.Basic.Cancel: basic_class.cancel,
    commands.Basic.Get: basic_class.get,
    commands.Basic.Ack: _ack,
    commands.Basic.Nack: basic_class.nack,
    commands.Basic.Reject: basic_class.reject,
    commands.Basic.Recover: basic_class.recover,
    commands.Basic.RecoverAsync: basic_class.recover_async,
    commands.Confirm.Select: tx_class.confirm_select,
    commands.Tx.Select: tx_class.select,
    commands.Tx.Commit: tx_class.commit,
    commands.Tx.Rollback: tx_class.rollback,
}
