"""From a basic.publish to the queues: checks, direct replies, transactions, returns."""

import re

from pamqp.commands import Confirm, Tx

from mqtool.broker.embedded.model.amqp_errors import (
    NOT_IMPLEMENTED,
    RESOURCE_ERROR,
    ConnectionException,
    access_refused,
    precondition_failed,
)
from mqtool.broker.embedded.model.amqp_message import Message
from mqtool.broker.embedded.model.exchange import Exchange
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.queue_arguments import check_expiry
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import Publication, Routing
from mqtool.broker.embedded.wire.amqp_channel import Channel, Route, Transaction, UncommittedPublish
from mqtool.broker.embedded.wire.deliveries import trace_published
from mqtool.broker.embedded.wire.incoming_publishes import Confirms
from mqtool.codecs.field_tables import type_name

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
"""The pseudo-queue of direct reply-to; a reply goes to this, a dot and a token."""

_INTEGER = re.compile(r"[+-]?[0-9]+")


def publish(channel: Channel, message: Message) -> None:
    """Publish the message that the channel's content has become, at once or when the transaction is committed.

    Raises:
        ChannelException: 403, 404 or 406.
        ConnectionException: 540 for `immediate`, 541 for a delay that cannot be read.
    """
    if channel.content.immediate:
        raise ConnectionException(NOT_IMPLEMENTED, "immediate=true")
    mandatory = channel.content.mandatory
    route = channel.route
    if (
        route is not None
        and route.turn == channel.session.turn
        and route.address is message.address
        and _is_plain(message)
    ):
        _count(channel, route.exchange)
        routing: Routing | None = Routing(message, route.queues)
    else:
        routing = _checked_routing(channel, message)
    if channel.transaction is not None:
        channel.transaction.publishes.append(UncommittedPublish(message, routing, mandatory))
        return
    publication = perform(channel, message, routing, mandatory=mandatory)
    if channel.confirms is not None:
        channel.settle_publish(channel.confirms, accepted=publication.accepted, stored=publication.stored)


def _is_plain(message: Message) -> bool:
    """Whether what may be done with a message, and where it goes, follows from its address alone."""
    properties = message.header.properties
    return not properties.headers and properties.expiration is properties.user_id is properties.reply_to is None


def _count(channel: Channel, exchange: Exchange) -> None:
    channel.published[exchange.name] = channel.published.get(exchange.name, 0) + 1
    exchange.published_in += 1


def _checked_routing(channel: Channel, message: Message) -> Routing | None:
    """Check that a message may be published, and decide where it goes; None for a direct reply.

    That is decided when it is published, also in a transaction.

    Raises:
        ChannelException: 403, 404 or 406.
        ConnectionException: 541 for a delay that cannot be read.
    """
    session = channel.session
    session.rights.check("write", "exchange", message.exchange)
    exchange = channel.exchange(message.exchange)
    if session.rights.has_topics:
        session.rights.check_topic("write", exchange, message.routing_key)
    check_message(message, exchange, channel.vhost.name, session.user)
    if message.properties.reply_to == DIRECT_REPLY_TO:
        if channel.replies is None:
            raise precondition_failed("fast reply consumer does not exist")
        message = message.with_reply_to(f"{DIRECT_REPLY_TO}.{channel.replies.token}")
    if exchange.name == "" and message.routing_key.startswith(DIRECT_REPLY_TO):
        channel.published[""] = channel.published.get("", 0) + 1
        routing = None
    else:
        _count(channel, exchange)
        routing = channel.vhost.route(exchange, message)
        if not channel.vhost.tracing and _is_plain(message):
            channel.route = Route(session.turn, message.address, exchange, routing.queues)
    if channel.vhost.tracing:
        trace_published(channel.session, channel.number, message, routing)
    return routing


def check_message(message: Message, exchange: Exchange, vhost: str, user: User) -> None:
    """Check that a message may be published to an exchange by a user, in RabbitMQ's order.

    Raises:
        ChannelException: 403 or 406.
    """
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
    """Check an expiration; errors are in the words of Erlang's string:to_integer."""
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


def perform(channel: Channel, message: Message, routing: Routing | None, *, mandatory: bool) -> Publication:
    """Put a message into its queues; return it to the client if it is mandatory and there are none."""
    hooks = channel.session.broker.hooks
    if routing is None:
        publication = _reply(channel, message)
    elif hooks is None:
        publication = channel.vhost.enqueue(routing)
    else:
        publication = hooks.enqueue(channel.vhost, routing)
    if not publication.routed:
        if mandatory:
            channel.send_return(message)
        else:
            channel.session.broker.dropped_unroutable += 1
    return publication


def _reply(channel: Channel, message: Message) -> Publication:
    """Deliver a reply straight to the channel that asked."""
    token = message.routing_key.removeprefix(DIRECT_REPLY_TO + ".")
    asking = channel.session.broker.reply_consumers.get(token)
    if asking is not None:
        asking.deliver_reply(message)
    is_routed = asking is not None or not channel.vhost.profile.returns_replies
    return Publication(routed=is_routed, accepted=True, stored=False)


def confirm_select(channel: Channel, method: Confirm.Select) -> None:
    """Confirm each publish from now on."""
    if channel.transaction is not None:
        raise precondition_failed("cannot switch from tx to confirm mode")
    if channel.confirms is None:
        channel.confirms = Confirms()
    if not method.nowait:
        channel.send(Confirm.SelectOk)


def tx_select(channel: Channel, method: Tx.Select) -> None:  # noqa: ARG001
    """Keep publishes and acknowledgements until they are committed."""
    if channel.confirms is not None:
        raise precondition_failed("cannot switch from confirm to tx mode")
    if channel.transaction is None:
        channel.transaction = Transaction()
    channel.send(Tx.SelectOk)


def tx_commit(channel: Channel, method: Tx.Commit) -> None:  # noqa: ARG001
    """Do everything that was kept; answer once it is on disk."""
    transaction = _transaction(channel)
    channel.transaction = Transaction()
    stored, lost = False, None
    for publish in transaction.publishes:
        lost = lost or _deleted_queue(publish)
        stored |= perform(channel, publish.message, publish.routing, mandatory=publish.mandatory).stored
    deliveries = channel.deliveries
    deliveries.acknowledge(transaction.acked.values())
    deliveries.reject(transaction.rejected.values(), requeue=False)
    deliveries.reject(transaction.requeued.values(), requeue=True)
    if lost is not None:
        _report_lost(lost, channel.vhost.profile)
    if stored:
        channel.session.broker.ledger.after_commit(lambda: channel.send(Tx.CommitOk))
    else:
        channel.send(Tx.CommitOk)


def _deleted_queue(publish: UncommittedPublish) -> Queue | None:
    """A queue that a publish was to go to, and that has been deleted since; None if there is none."""
    queues = () if publish.routing is None else publish.routing.queues
    return next((queue for queue in queues if queue.deleted), None)


def _report_lost(lost: Queue, profile: Profile) -> None:
    """Say that a commit has not reached a queue, as this version does."""
    if profile.lost_commit == "channel":
        raise precondition_failed("partial tx completion")
    if profile.lost_commit == "connection":
        resource = f'{{resource,<<"{lost.vhost}">>,queue,<<"{lost.name}">>}}'
        what = f"failed to deliver message: {{not_found,\n{' ' * 31}{resource}}}"
        raise ConnectionException(RESOURCE_ERROR, what)


def tx_rollback(channel: Channel, method: Tx.Rollback) -> None:  # noqa: ARG001
    """Forget everything that was kept; deliveries are unacknowledged again."""
    channel.deliveries.put_back(_transaction(channel).deliveries())
    channel.transaction = Transaction()
    channel.send(Tx.RollbackOk)


def _transaction(channel: Channel) -> Transaction:
    if channel.transaction is None:
        raise precondition_failed("channel is not transactional")
    return channel.transaction
