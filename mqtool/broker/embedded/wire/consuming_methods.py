"""The methods for consuming: basic.qos, consume, cancel, get, ack, nack, reject and recover."""

import secrets

from pamqp.commands import Basic

from mqtool.broker.embedded.model.amqp_errors import (
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    ConnectionException,
    access_refused,
    precondition_failed,
)
from mqtool.broker.embedded.model.declarations import check_consumer
from mqtool.broker.embedded.model.queue import Why
from mqtool.broker.embedded.wire.amqp_channel import Channel, ReplyConsumer
from mqtool.broker.embedded.wire.amqp_frames import table
from mqtool.broker.embedded.wire.deliveries import Subscription
from mqtool.broker.embedded.wire.publishing_methods import DIRECT_REPLY_TO


def qos(channel: Channel, method: Basic.Qos) -> None:
    """Set the prefetch limit: for each new consumer, or with `global` for all of the channel, as in RabbitMQ."""
    if method.prefetch_size:
        raise ConnectionException(NOT_IMPLEMENTED, f"prefetch_size!=0 ({method.prefetch_size})")
    if method.global_ and channel.vhost.profile.global_prefetch:
        channel.deliveries.global_prefetch = method.prefetch_count
        channel.deliveries.feed_all()
    else:
        channel.deliveries.prefetch = method.prefetch_count
    channel.send(Basic.QosOk)


def consume(channel: Channel, method: Basic.Consume) -> None:
    """Start a consumer."""
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
    in_use = queue.consumers.exclusive or (method.exclusive and len(queue.consumers))
    # Each consumer of a stream reads at its own offset, so an exclusive one takes nothing from others.
    if in_use and queue.kind != "stream":
        raise access_refused(f"queue '{queue.name}' in vhost '{queue.vhost}' in exclusive use")
    subscription = Subscription(
        deliveries, queue, tag, no_ack=method.no_ack, exclusive=method.exclusive, arguments=arguments
    )
    deliveries.subscriptions[tag] = subscription
    queue.add_consumer(subscription)
    if not method.nowait:
        channel.send(Basic.ConsumeOk, consumer_tag=tag)
    queue.pump()


def _consume_replies(channel: Channel, method: Basic.Consume, tag: str) -> None:
    if channel.replies is not None:
        raise precondition_failed("reply consumer already set")
    if not method.no_ack:
        raise precondition_failed("reply consumer cannot acknowledge")
    channel.replies = ReplyConsumer(tag, secrets.token_urlsafe(18))
    channel.session.broker.reply_consumers[channel.replies.token] = channel
    if not method.nowait:
        channel.send(Basic.ConsumeOk, consumer_tag=tag)


def cancel(channel: Channel, method: Basic.Cancel) -> None:
    """End the consumer with this tag, if any."""
    tag = method.consumer_tag or ""
    subscription = channel.deliveries.subscriptions.pop(tag, None)
    if subscription is not None:
        subscription.stop()
    elif channel.replies is not None and tag == channel.replies.tag:
        channel.stop_replies()
    if not method.nowait:
        channel.send(Basic.CancelOk, consumer_tag=tag)


def get(channel: Channel, method: Basic.Get) -> None:
    """Send one message of a queue, or basic.get-empty."""
    name = channel.queue_name(method.queue)
    channel.session.rights.check("read", "queue", name)
    queue = channel.queue(name)
    entry = queue.get(no_ack=method.no_ack)
    if entry is None:
        channel.send(Basic.GetEmpty)
    else:
        channel.deliveries.answer_get(queue, entry, no_ack=method.no_ack)


def ack(channel: Channel, delivery_tag: int, *, multiple: bool) -> None:
    """Acknowledge messages; in a transaction, once it is committed."""
    taken = channel.deliveries.take(delivery_tag, multiple=multiple)
    if channel.transaction is None:
        channel.deliveries.acknowledge(taken.values())
    else:
        channel.transaction.acked |= taken


def nack(channel: Channel, method: Basic.Nack) -> None:
    """Requeue or dead-letter messages."""
    _reject(channel, method.delivery_tag, Why.RETURNED, multiple=method.multiple, requeue=method.requeue)


def reject(channel: Channel, method: Basic.Reject) -> None:
    """Requeue or dead-letter a message."""
    _reject(channel, method.delivery_tag or 0, Why.REJECTED, multiple=False, requeue=method.requeue)


def _reject(channel: Channel, delivery_tag: int, why: Why, *, multiple: bool, requeue: bool) -> None:
    taken, transaction = channel.deliveries.take(delivery_tag, multiple=multiple), channel.transaction
    if transaction is None:
        channel.deliveries.reject(taken.values(), requeue=requeue, why=why)
    elif requeue:
        transaction.requeued |= taken
    else:
        transaction.rejected |= taken


def recover(channel: Channel, method: Basic.Recover) -> None:
    """Requeue all unacknowledged messages of the channel."""
    recover_async(channel, method)
    channel.send(Basic.RecoverOk)


def recover_async(channel: Channel, method: Basic.Recover | Basic.RecoverAsync) -> None:
    """Requeue all unacknowledged messages of the channel, without an answer."""
    if not method.requeue:
        raise ConnectionException(NOT_IMPLEMENTED, "requeue=false")
    channel.deliveries.reject(channel.deliveries.take(0, multiple=True).values(), requeue=True)
