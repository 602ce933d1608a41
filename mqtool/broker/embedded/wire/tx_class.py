"""The methods of the tx class (section 1.9 of the 0-9-1 reference) and RabbitMQ's confirm class."""

from typing import TYPE_CHECKING

from pamqp.commands import Confirm, Tx

from mqtool.broker.embedded.errors import precondition_failed
from mqtool.broker.embedded.wire.publishing import Transaction, perform

if TYPE_CHECKING:
    from mqtool.broker.embedded.wire.channel import Channel


def confirm_select(channel: "Channel", method: Confirm.Select) -> None:
    """Confirm each publish from now on."""
    if channel.transaction is not None:
        raise precondition_failed("cannot switch from tx to confirm mode")
    channel.confirming = True
    if not method.nowait:
        channel.send(Confirm.SelectOk)


def select(channel: "Channel", method: Tx.Select) -> None:  # noqa: ARG001
    """Keep publishes and acknowledgements back until they are committed."""
    if channel.confirming:
        raise precondition_failed("cannot switch from confirm to tx mode")
    if channel.transaction is None:
        channel.transaction = Transaction()
    channel.send(Tx.SelectOk)


def commit(channel: "Channel", method: Tx.Commit) -> None:  # noqa: ARG001
    """Do what was kept back; answer once what has to be on disk is there."""
    transaction = _pending(channel)
    channel.transaction = Transaction()
    stored = False
    for exchange, message, mandatory in transaction.publishes:
        stored |= perform(channel, exchange, message, mandatory=mandatory).stored
    channel.acknowledge(delivery for _, delivery in transaction.acks)
    for requeue in (False, True):
        rejected = [delivery for _, delivery, back in transaction.rejects if back is requeue]
        channel.reject(rejected, requeue=requeue)
    if stored:
        channel.broker.ledger.after_commit(lambda: channel.send(Tx.CommitOk))
    else:
        channel.send(Tx.CommitOk)


def rollback(channel: "Channel", method: Tx.Rollback) -> None:  # noqa: ARG001
    """Forget what was kept back; deliveries are unacknowledged again."""
    transaction = _pending(channel)
    channel.transaction = Transaction()
    again = dict(transaction.acks) | {tag: delivery for tag, delivery, _ in transaction.rejects}
    channel.unacked = dict(sorted((again | channel.unacked).items()))
    channel.send(Tx.RollbackOk)


def _pending(channel: "Channel") -> Transaction:
    if channel.transaction is None:
        raise precondition_failed("channel is not transactional")
    return channel.transaction
