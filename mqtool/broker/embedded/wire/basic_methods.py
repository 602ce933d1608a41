"""Handlers for the methods of the basic class, publisher confirms (confirm.select) and transactions (tx.*)."""

import re
import secrets
from collections.abc import Generator, Iterator, Mapping
from itertools import islice

from pamqp.commands import Basic, Confirm, Tx

from mqtool.broker.embedded.model.amqp_errors import (
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    RESOURCE_ERROR,
    ChannelException,
    ConnectionException,
    access_refused,
    precondition_failed,
)
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.broker import DIRECT_REPLY_TO
from mqtool.broker.embedded.model.declarations import check_consumer
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.firehose import trace_published
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue import BrokerQueue, Why
from mqtool.broker.embedded.model.queue_arguments import check_expiry
from mqtool.broker.embedded.model.totals import AMQP091
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import Publication, Routing, enqueue_in_steps
from mqtool.broker.embedded.wire.amqp_channel import (
    BrokerChannel,
    ChannelReplyConsumer,
    PublishRoute,
    Transaction,
    UncommittedPublish,
)
from mqtool.broker.embedded.wire.amqp_frames import RETRIES, table
from mqtool.broker.embedded.wire.deliveries import ChannelDelivery, ChannelSubscription
from mqtool.broker.embedded.wire.incoming_publishes import Confirms
from mqtool.codecs.field_tables import type_name

#: How many messages are acknowledged, or dead-lettered, in one step. Dead-lettering can mean many publishes.
_ACKED_AT_ONCE, _REJECTED_AT_ONCE = 500, 10

_INTEGER = re.compile(r"[+-]?[0-9]+")


def publish(channel: BrokerChannel, message: BrokerMessage) -> Iterator[None] | None:
    """Publish a complete message, or return steps that do; or add the message to the channel's transaction."""
    content, route = channel.content, channel.route
    if content.immediate:
        raise ConnectionException(NOT_IMPLEMENTED, "immediate=true")
    mandatory = content.mandatory
    if (
        route is not None
        and route.turn == channel.session.turn
        and route.address is message.address
        and message.header.properties.plain
    ):
        _count(channel, route.exchange)
        routing: Routing | None = Routing(message, route.queues)
    else:
        routing = _checked_routing(channel, message)
    if channel.transaction is not None:
        channel.session.add_held_bytes(channel.transaction.add(UncommittedPublish(message, routing, mandatory)))
        return None
    if routing is not None and routing.takes_turns:
        return _publish_in_steps(channel, UncommittedPublish(message, routing, mandatory))
    _settle(channel, _perform(channel, message, routing, mandatory=mandatory))
    return None


def _publish_in_steps(channel: BrokerChannel, publish: UncommittedPublish) -> Iterator[None]:
    _settle(channel, (yield from _perform_in_steps(channel, publish)))


def _settle(channel: BrokerChannel, publication: Publication) -> None:
    if channel.confirms is not None:
        channel.settle_publish(channel.confirms, accepted=publication.accepted, stored=publication.stored)


def _count(channel: BrokerChannel, exchange: BrokerExchange) -> None:
    channel.published[exchange.name] = channel.published.get(exchange.name, 0) + 1
    exchange.published_in += 1


def _checked_routing(channel: BrokerChannel, message: BrokerMessage) -> Routing | None:
    """Check that a message may be published, and route it. Even in a transaction, this is done before the commit.

    Returns:
        The message and its queues; None for a direct reply.
    """
    session = channel.session
    session.rights.check("write", "exchange", message.exchange)
    try:
        exchange = channel.exchange(message.exchange)
    except ChannelException:
        if channel.vhost.watcher is not None:
            channel.vhost.watcher.unknown_exchange(channel, message)
        raise
    if session.rights.has_topics:
        session.rights.check_topic("write", exchange, message.routing_key)
    check_message(message, exchange, channel.vhost.name, session.user)
    if session.rights.has_topics:
        session.rights.check_copies(exchange, message.headers)
    if message.properties.reply_to == DIRECT_REPLY_TO:
        if channel.replies is None:
            raise precondition_failed("fast reply consumer does not exist")
        message = message.replace(reply_to=f"{DIRECT_REPLY_TO}.{channel.replies.token}")
    if exchange.name == "" and message.routing_key.startswith(DIRECT_REPLY_TO):
        channel.published[""] = channel.published.get("", 0) + 1
        routing = None
    else:
        _count(channel, exchange)
        routing = channel.vhost.route(exchange, message)
        if not channel.vhost.tracing and message.header.properties.plain:
            channel.route = PublishRoute(session.turn, message.address, exchange, routing.queues)
    if channel.vhost.tracing:
        trace_published(channel.session, channel.number, message, routing)
    return routing


def check_message(message: BrokerMessage, exchange: BrokerExchange, vhost: str, user: User) -> None:
    """Raise 403 or 406 if a user may not publish a message to an exchange. The order of checks is RabbitMQ's."""
    if exchange.internal:
        raise access_refused(f"cannot publish to internal exchange '{exchange.name}' in vhost '{vhost}'")
    properties = message.header.properties
    if properties.user_id is not None and properties.user_id != user.name and "impersonator" not in user.tags:
        raise precondition_failed(
            f"user_id property set to '{properties.user_id}' but authenticated user was '{user.name}'"
        )
    if properties.expiration is not None:
        _check_expiration(properties.expiration)
    if properties.headers:
        for carbon_copy in ("CC", "BCC"):
            keys = properties.headers.get(carbon_copy, [])
            if not isinstance(keys, list):
                kind = type_name(keys)
                raise precondition_failed(f'invalid message: {{unacceptable_type_in_header,"{carbon_copy}",{kind}}}')


def _check_expiration(expiration: str) -> None:
    """Raise 406 if an expiration is not a valid number. As in RabbitMQ, the text is that of Erlang's to_integer."""
    number = _INTEGER.match(expiration)
    wrong: str | None
    if number is None:
        wrong = "no_integer"
    elif number.end() < len(expiration):
        wrong = f'{{leftover_string,"{expiration[number.end() :]}"}}'
    else:
        wrong = check_expiry(int(expiration))
    if wrong is not None:
        raise precondition_failed(f"invalid expiration '{expiration}': {wrong}")


def _perform(
    channel: BrokerChannel, message: BrokerMessage, routing: Routing | None, *, mandatory: bool
) -> Publication:
    """Enqueue a message. If no queue receives it, return it to the publisher if `mandatory`, otherwise drop it."""
    hooks = channel.session.broker.hooks
    _count_routed(channel, routing)
    if routing is None:
        publication = _reply(channel, message)
    elif hooks is None:
        publication = channel.vhost.enqueue(routing)
    else:
        publication = hooks.enqueue(channel.vhost, routing, retries=channel.session.capability(RETRIES))
    if not publication.routed:
        _return_or_drop(channel, message, mandatory=mandatory)
    return publication


def _perform_in_steps(channel: BrokerChannel, publish: UncommittedPublish) -> Generator[None, None, Publication]:
    """Do the same in steps, unless a test's hooks may delay the message."""
    message, routing, mandatory = publish
    if routing is None or channel.session.broker.hooks is not None:
        return _perform(channel, message, routing, mandatory=mandatory)
    _count_routed(channel, routing)
    publication = yield from enqueue_in_steps(channel.vhost, routing)
    if not publication.routed:
        _return_or_drop(channel, message, mandatory=mandatory)
    return publication


def _count_routed(channel: BrokerChannel, routing: Routing | None) -> None:
    if routing is None:
        return
    watcher = channel.vhost.watcher
    if watcher is not None and routing.message.address not in watcher.skipped:
        routing.source = channel
    routing.publisher = channel
    channel.routed += len(routing.queues)


def _return_or_drop(channel: BrokerChannel, message: BrokerMessage, *, mandatory: bool) -> None:
    totals, watcher = channel.session.broker.totals.published[AMQP091], channel.vhost.watcher
    if watcher is not None:
        watcher.unroutable(message, returned=mandatory)
    if mandatory:
        channel.send_return(message)
        totals.returned += 1
    else:
        channel.session.broker.dropped_unroutable += 1
        totals.dropped += 1


def _reply(channel: BrokerChannel, message: BrokerMessage) -> Publication:
    """Deliver a direct reply to the channel that sent the request."""
    asking = channel.session.broker.reply_consumer(message.routing_key)
    if asking is not None:
        if channel.vhost.watcher is not None:
            channel.vhost.watcher.replied(channel, message, asking)
        asking.deliver_reply(message)
    is_routed = asking is not None or not channel.vhost.profile.returns_replies
    return Publication(routed=is_routed, accepted=True, stored=False)


def confirm_select(channel: BrokerChannel, method: Confirm.Select) -> None:
    """Handle confirm.select: turn on publisher confirms."""
    if channel.transaction is not None:
        raise precondition_failed("cannot switch from tx to confirm mode")
    if channel.confirms is None:
        channel.confirms = Confirms()
    if not method.nowait:
        channel.send(Confirm.SelectOk)


def tx_select(channel: BrokerChannel, method: Tx.Select) -> None:  # noqa: ARG001
    """Handle tx.select: turn on transactions, so that publishes and acknowledgements wait for tx.commit."""
    if channel.confirms is not None:
        raise precondition_failed("cannot switch from confirm to tx mode")
    if channel.transaction is None:
        channel.transaction = Transaction()
    channel.send(Tx.SelectOk)


def tx_commit(channel: BrokerChannel, method: Tx.Commit) -> Iterator[None]:  # noqa: ARG001
    """Carry out the publishes and acknowledgements of the transaction; send tx.commit-ok once they are on disk.

    As in RabbitMQ, the other clients can see a part of a long transaction before the rest, and if a classic queue
    refuses a message, everything else is still carried out.
    """
    transaction = _end_transaction(channel)
    stored, is_partial, lost = False, False, None
    for publish in transaction.publishes:
        lost = lost or _deleted_queue(publish)
        publication = yield from _perform_in_steps(channel, publish)
        stored, is_partial = stored or publication.stored, is_partial or publication.is_partial
        yield
    yield from _acknowledge_in_steps(channel, transaction.acked)
    yield from _reject_in_steps(channel, transaction.rejected)
    yield from channel.deliveries.requeue(transaction.requeued)
    if lost is not None:
        _report_lost(lost, channel.vhost.profile)
    if is_partial:
        raise precondition_failed("partial tx completion")
    if stored or transaction.acked or transaction.rejected:
        channel.session.broker.ledger.after_commit(lambda: channel.send(Tx.CommitOk))
    else:
        channel.send(Tx.CommitOk)


def _in_batches(deliveries: Mapping[int, ChannelDelivery], size: int) -> Iterator[list[ChannelDelivery]]:
    remaining = iter(deliveries.values())
    while batch := list(islice(remaining, size)):
        yield batch


def _reject_in_steps(channel: BrokerChannel, rejected: Mapping[int, ChannelDelivery]) -> Iterator[None]:
    """Dead-letter or drop messages."""
    for batch in _in_batches(rejected, _REJECTED_AT_ONCE):
        channel.deliveries.reject(batch)
        yield


def _deleted_queue(publish: UncommittedPublish) -> BrokerQueue | None:
    """Return the first queue, if any, that was deleted after this publish was routed to it."""
    queues = () if publish.routing is None else publish.routing.queues
    return next((queue for queue in queues if queue.deleted), None)


def _report_lost(lost: BrokerQueue, profile: Profile) -> None:
    """Raise the error that this RabbitMQ version reports for a commit to a deleted queue, if any."""
    if profile.lost_commit == "channel":
        raise precondition_failed("partial tx completion")
    if profile.lost_commit == "connection":
        resource = f'{{resource,<<"{lost.vhost}">>,queue,<<"{lost.name}">>}}'
        what = f"failed to deliver message: {{not_found,\n{' ' * 31}{resource}}}"
        raise ConnectionException(RESOURCE_ERROR, what)


def tx_rollback(channel: BrokerChannel, method: Tx.Rollback) -> None:  # noqa: ARG001
    """Drop the transaction's publishes, and mark its deliveries as unacknowledged again."""
    channel.deliveries.put_back(_end_transaction(channel).deliveries())
    channel.send(Tx.RollbackOk)


def _end_transaction(channel: BrokerChannel) -> Transaction:
    """Return the channel's transaction, and replace it with an empty one."""
    transaction = channel.transaction
    if transaction is None:
        raise precondition_failed("channel is not transactional")
    channel.transaction = Transaction()
    channel.session.add_held_bytes(-transaction.held_bytes)
    return transaction


def qos(channel: BrokerChannel, method: Basic.Qos) -> None:
    """Set the prefetch limit for each new consumer or, with `global`, for the whole channel, as RabbitMQ does."""
    if method.prefetch_size:
        raise ConnectionException(NOT_IMPLEMENTED, f"prefetch_size!=0 ({method.prefetch_size})")
    if method.global_ and channel.vhost.profile.global_prefetch:
        channel.deliveries.global_prefetch = method.prefetch_count
        channel.deliveries.feed_all()
    else:
        channel.deliveries.prefetch = method.prefetch_count
    channel.send(Basic.QosOk)


def consume(channel: BrokerChannel, method: Basic.Consume) -> None:
    """Handle basic.consume: start a consumer."""
    tag = method.consumer_tag
    deliveries = channel.deliveries
    if tag in deliveries.subscriptions or (tag and channel.replies is not None and tag == channel.replies.tag):
        raise ConnectionException(NOT_ALLOWED, f"attempt to reuse consumer tag '{tag}'")
    tag = tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
    if method.queue == DIRECT_REPLY_TO:
        _consume_replies(channel, method, tag)
        return
    name = channel.queue_name(method.queue)
    channel.session.rights.check("read", "queue", name)
    queue = channel.queue(name)
    arguments = table(method.arguments)
    check_consumer(queue, arguments, prefetch=deliveries.prefetch, no_ack=method.no_ack)
    if queue.kind == "quorum" and deliveries.global_prefetch:
        raise ConnectionException(
            NOT_IMPLEMENTED, f"queue '{queue.name}' in vhost '{queue.vhost}' does not support global qos"
        )
    if queue.in_exclusive_use(wanted=method.exclusive):
        raise access_refused(f"queue '{queue.name}' in vhost '{queue.vhost}' in exclusive use")
    subscription = ChannelSubscription(
        deliveries, queue, tag, no_ack=method.no_ack, exclusive=method.exclusive, arguments=arguments
    )
    deliveries.add(subscription)
    queue.add_consumer(subscription)
    if not method.nowait:
        channel.send(Basic.ConsumeOk, consumer_tag=tag)
    queue.pump()


def _consume_replies(channel: BrokerChannel, method: Basic.Consume, tag: str) -> None:
    if channel.replies is not None:
        raise precondition_failed("reply consumer already set")
    if not method.no_ack:
        raise precondition_failed("reply consumer cannot acknowledge")
    channel.replies = ChannelReplyConsumer(tag, secrets.token_urlsafe(18))
    channel.session.broker.reply_consumers[channel.replies.token] = channel
    if not method.nowait:
        channel.send(Basic.ConsumeOk, consumer_tag=tag)


def cancel(channel: BrokerChannel, method: Basic.Cancel) -> None:
    """Handle basic.cancel: end the consumer with this tag, if any."""
    tag = method.consumer_tag or ""
    subscription = channel.deliveries.remove(tag)
    if subscription is not None:
        subscription.stop()
    elif channel.replies is not None and tag == channel.replies.tag:
        channel.stop_replies()
    if not method.nowait:
        channel.send(Basic.CancelOk, consumer_tag=tag)


def get(channel: BrokerChannel, method: Basic.Get) -> Iterator[None] | None:
    """Handle basic.get: send one message from a queue, or basic.get-empty."""
    name = channel.queue_name(method.queue)
    channel.session.rights.check("read", "queue", name)
    queue = channel.queue(name)
    if queue.drop_expired():
        return _get_behind_expired(channel, queue, no_ack=method.no_ack)
    _get(channel, queue, no_ack=method.no_ack)
    return None


def _get_behind_expired(channel: BrokerChannel, queue: BrokerQueue, *, no_ack: bool) -> Iterator[None]:
    while queue.drop_expired():
        yield
    if channel.state == "open":
        _get(channel, queue, no_ack=no_ack)


def _get(channel: BrokerChannel, queue: BrokerQueue, *, no_ack: bool) -> None:
    entry = queue.get(no_ack=no_ack)
    if entry is None:
        channel.session.broker.totals.found_empty[queue.kind] += 1
        channel.send(Basic.GetEmpty)
    else:
        channel.deliveries.answer_get(queue, entry, no_ack=no_ack)


def ack(channel: BrokerChannel, delivery_tag: int, *, multiple: bool) -> Iterator[None] | None:
    """Acknowledge messages, or add the acknowledgement to the channel's transaction."""
    taken = channel.deliveries.take(delivery_tag, multiple=multiple)
    if channel.transaction is not None:
        channel.transaction.acked |= taken
    elif len(taken) > _ACKED_AT_ONCE:
        return _acknowledge_in_steps(channel, taken)
    else:
        channel.deliveries.acknowledge(taken.values())
    return None


def _acknowledge_in_steps(channel: BrokerChannel, acked: Mapping[int, ChannelDelivery]) -> Iterator[None]:
    for batch in _in_batches(acked, _ACKED_AT_ONCE):
        channel.deliveries.acknowledge(batch)
        yield


def nack(channel: BrokerChannel, method: Basic.Nack) -> Iterator[None] | None:
    """Handle basic.nack: requeue messages, or dead-letter or drop them."""
    return _reject(channel, method.delivery_tag, Why.RETURNED, multiple=method.multiple, requeue=method.requeue)


def reject(channel: BrokerChannel, method: Basic.Reject) -> Iterator[None] | None:
    """Handle basic.reject: requeue a message, or dead-letter or drop it."""
    return _reject(channel, method.delivery_tag or 0, Why.REJECTED, multiple=False, requeue=method.requeue)


def _reject(
    channel: BrokerChannel, delivery_tag: int, why: Why, *, multiple: bool, requeue: bool
) -> Iterator[None] | None:
    taken, transaction = channel.deliveries.take(delivery_tag, multiple=multiple), channel.transaction
    for delivery in taken.values():
        delivery.fails = why is Why.REJECTED
    if transaction is None:
        if requeue:
            return channel.deliveries.requeue(taken, why)
        if len(taken) > _REJECTED_AT_ONCE:
            return _reject_in_steps(channel, taken)
        channel.deliveries.reject(taken.values())
    elif requeue:
        transaction.requeued |= taken
    else:
        transaction.rejected |= taken
    return None


def recover(channel: BrokerChannel, method: Basic.Recover) -> Iterator[None]:
    """Send basic.recover-ok, and requeue all of the channel's unacknowledged messages."""
    steps = recover_async(channel, method)
    channel.send(Basic.RecoverOk)
    return steps


def recover_async(channel: BrokerChannel, method: Basic.Recover | Basic.RecoverAsync) -> Iterator[None]:
    """Requeue all of the channel's unacknowledged messages, without a reply."""
    if not method.requeue:
        raise ConnectionException(NOT_IMPLEMENTED, "requeue=false")
    return channel.deliveries.requeue(channel.deliveries.take(0, multiple=True))
