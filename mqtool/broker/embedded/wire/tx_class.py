"""The methods of the tx class (section 1.9 of the 0-9-1 reference) and RabbitMQ's confirm class."""

from pamqp.commands import Confirm, Tx

from mqtool.broker.embedded.model.errors import RESOURCE_ERROR, ConnectionException, precondition_failed
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.wire.channel import Channel
from mqtool.broker.embedded.wire.confirms import Confirms
from mqtool.broker.embedded.wire.publishing import perform
from mqtool.broker.embedded.wire.transaction import Pending, Transaction


def confirm_select(channel: Channel, method: Confirm.Select) -> None:
    """Confirm each publish from now on."""
    if channel.transaction is not None:
        raise precondition_failed("cannot switch from tx to confirm mode")
    if channel.confirms is None:
        channel.confirms = Confirms()
    if not method.nowait:
        channel.send(Confirm.SelectOk)


def select(channel: Channel, method: Tx.Select) -> None:  # noqa: ARG001
    """Keep publishes and acknowledgements until they are committed."""
    if channel.confirms is not None:
        raise precondition_failed("cannot switch from confirm to tx mode")
    if channel.transaction is None:
        channel.transaction = Transaction()
    channel.send(Tx.SelectOk)


def commit(channel: Channel, method: Tx.Commit) -> None:  # noqa: ARG001
    """Do everything that was kept; answer once it is on disk."""
    transaction = _pending(channel)
    channel.transaction = Transaction()
    stored, lost = False, None
    for publish in transaction.publishes:
        lost = lost or _lost(publish)
        stored |= perform(channel, publish.message, publish.routing, mandatory=publish.mandatory).stored
    deliveries = channel.deliveries
    deliveries.acknowledge(transaction.acked.values())
    deliveries.reject(transaction.rejected.values(), requeue=False)
    deliveries.reject(transaction.requeued.values(), requeue=True)
    if lost is not None:
        _fail(lost, channel.vhost.profile)
    if stored:
        channel.session.broker.ledger.after_commit(lambda: channel.send(Tx.CommitOk))
    else:
        channel.send(Tx.CommitOk)


def _lost(publish: Pending) -> Queue | None:
    """A queue that a publish was to go to, and that has been deleted since; None if there is none."""
    queues = () if publish.routing is None else publish.routing.queues
    return next((queue for queue in queues if queue.deleted), None)


def _fail(lost: Queue, profile: Profile) -> None:
    """Say that a commit has not reached a queue, as this version does."""
    if profile.lost_commit == "channel":
        raise precondition_failed("partial tx completion")
    if profile.lost_commit == "connection":
        resource = f'{{resource,<<"{lost.vhost}">>,queue,<<"{lost.name}">>}}'
        what = f"failed to deliver message: {{not_found,\n{' ' * 31}{resource}}}"
        raise ConnectionException(RESOURCE_ERROR, what)


def rollback(channel: Channel, method: Tx.Rollback) -> None:  # noqa: ARG001
    """Forget everything that was kept; deliveries are unacknowledged again."""
    channel.deliveries.put_back(_pending(channel).deliveries())
    channel.transaction = Transaction()
    channel.send(Tx.RollbackOk)


def _pending(channel: Channel) -> Transaction:
    if channel.transaction is None:
        raise precondition_failed("channel is not transactional")
    return channel.transaction
