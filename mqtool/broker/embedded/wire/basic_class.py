"""The methods of the basic class (section 1.8 of the 0-9-1 reference); basic.publish is in `publishing`."""

import secrets
from typing import TYPE_CHECKING

from pamqp.commands import Basic

from mqtool.broker.embedded.arguments import check_consumer
from mqtool.broker.embedded.errors import (
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    ConnectionException,
    access_refused,
    precondition_failed,
)
from mqtool.broker.embedded.wire.methods import table
from mqtool.broker.embedded.wire.publishing import DIRECT_REPLY_TO
from mqtool.broker.embedded.wire.subscription import Subscription

if TYPE_CHECKING:
    from mqtool.broker.embedded.wire.channel import Channel


def qos(channel: "Channel", method: Basic.Qos) -> None:
    """Limit what is unacknowledged: for each new consumer, or with `global` for the channel (RabbitMQ's reading)."""
    if method.prefetch_size:
        raise ConnectionException(NOT_IMPLEMENTED, f"prefetch_size!=0 ({method.prefetch_size})")
    if method.global_:
        channel.global_prefetch = method.prefetch_count
        channel.feed_all()
    else:
        channel.prefetch = method.prefetch_count
    channel.send(Basic.QosOk)


def consume(channel: "Channel", method: Basic.Consume) -> None:
    """Start a consumer."""
    tag = method.consumer_tag
    if tag in channel.subscriptions or (tag and channel.reply_token and tag.encode() == channel.reply_tag[1:]):
        raise ConnectionException(NOT_ALLOWED, f"attempt to reuse consumer tag '{tag}'")
    tag = tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
    if method.queue == DIRECT_REPLY_TO:
        _consume_replies(channel, method, tag)
        return
    name = channel.queue_name(method.queue)
    channel.check_permission("read", "queue", name)
    queue = channel.queue(name)
    arguments = table(method.arguments)
    check_consumer(queue, arguments)
    if queue.kind == "quorum" and channel.global_prefetch:
        raise ConnectionException(
            NOT_IMPLEMENTED, f"queue '{queue.name}' in vhost '{queue.vhost}' does not support global qos"
        )
    if queue.consumers.exclusive or (method.exclusive and len(queue.consumers)):
        raise access_refused(f"queue '{queue.name}' in vhost '{queue.vhost}' in exclusive use")
    subscription = Subscription(
        channel, queue, tag, no_ack=method.no_ack, exclusive=method.exclusive, arguments=arguments
    )
    channel.subscriptions[tag] = subscription
    queue.add_consumer(subscription)
    if not method.nowait:
        channel.send(Basic.ConsumeOk, consumer_tag=tag)
    queue.pump()


def _consume_replies(channel: "Channel", method: Basic.Consume, tag: str) -> None:
    if channel.reply_token is not None:
        raise precondition_failed("reply consumer already set")
    if not method.no_ack:
        raise precondition_failed("reply consumer cannot acknowledge")
    channel.reply_token = secrets.token_urlsafe(18)
    raw = tag.encode(errors="surrogateescape")
    channel.reply_tag = bytes([len(raw)]) + raw
    channel.broker.reply_channels[channel.reply_token] = channel
    if not method.nowait:
        channel.send(Basic.ConsumeOk, consumer_tag=tag)


def cancel(channel: "Channel", method: Basic.Cancel) -> None:
    """End a consumer; there being none of this tag is fine."""
    tag = method.consumer_tag or ""
    subscription = channel.subscriptions.pop(tag, None)
    if subscription is not None:
        subscription.stop()
    elif channel.reply_token is not None and tag.encode() == channel.reply_tag[1:]:
        del channel.broker.reply_channels[channel.reply_token]
        channel.reply_token = None
    if not method.nowait:
        channel.send(Basic.CancelOk, consumer_tag=tag)


def get(channel: "Channel", method: Basic.Get) -> None:
    """Take one message."""
    name = channel.queue_name(method.queue)
    channel.check_permission("read", "queue", name)
    queue = channel.queue(name)
    entry = queue.get(no_ack=method.no_ack)
    if entry is None:
        channel.send(Basic.GetEmpty)
    else:
        channel.send_got(queue, entry, no_ack=method.no_ack)


def ack(channel: "Channel", delivery_tag: int, *, multiple: bool) -> None:
    """Messages are done with; in a transaction, once it is committed."""
    if channel.transaction is None:
        channel.acknowledge(channel.take_unacked(delivery_tag, multiple=multiple))
        return
    tags = dict.fromkeys(channel.unacked)
    taken = channel.take_unacked(delivery_tag, multiple=multiple)
    gone = [tag for tag in tags if tag not in channel.unacked]
    channel.transaction.acks += zip(gone, taken, strict=True)


def nack(channel: "Channel", method: Basic.Nack) -> None:
    """Messages are not wanted here (RabbitMQ's basic.nack)."""
    _reject(channel, method.delivery_tag, multiple=method.multiple, requeue=method.requeue)


def reject(channel: "Channel", method: Basic.Reject) -> None:
    """A message is not wanted here."""
    _reject(channel, method.delivery_tag or 0, multiple=False, requeue=method.requeue)


def _reject(channel: "Channel", delivery_tag: int, *, multiple: bool, requeue: bool) -> None:
    if channel.transaction is None:
        channel.reject(channel.take_unacked(delivery_tag, multiple=multiple), requeue=requeue)
        return
    tags = dict.fromkeys(channel.unacked)
    taken = channel.take_unacked(delivery_tag, multiple=multiple)
    gone = [tag for tag in tags if tag not in channel.unacked]
    channel.transaction.rejects += [(tag, delivery, requeue) for tag, delivery in zip(gone, taken, strict=True)]


def recover(channel: "Channel", method: Basic.Recover) -> None:
    """Put everything unacknowledged back."""
    recover_async(channel, method)
    channel.send(Basic.RecoverOk)


def recover_async(channel: "Channel", method: Basic.Recover | Basic.RecoverAsync) -> None:
    """Put everything unacknowledged back, and do not answer."""
    if not method.requeue:
        raise ConnectionException(NOT_IMPLEMENTED, "requeue=false")
    channel.reject(channel.take_unacked(0, multiple=True), requeue=True)
