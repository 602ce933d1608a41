"""A channel's consumers and unacknowledged deliveries."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any

from pamqp import commands

from mqtool.broker.embedded.model.amqp_errors import INTERNAL_ERROR, ConnectionException, precondition_failed
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.consumers import delivery_counts
from mqtool.broker.embedded.model.firehose import trace_delivered
from mqtool.broker.embedded.model.footprint import CONSUMER, of_value
from mqtool.broker.embedded.model.queue import BrokerQueue, Why, consumer_timeout, feed
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire.amqp_frames import encode_method, short_string
from mqtool.broker.embedded.wire.amqp_session import AmqpSession
from mqtool.codecs.field_tables import Table, Value

#: 10,000 unacknowledged deliveries are checked for the consumer timeout at most once a second.
_CHECK_SECONDS_PER_DELIVERY = 0.0001


class ChannelSubscription:
    """A consumer, started by basic.consume.

    Attributes:
        tag: the consumer tag.
        prefetch: the maximum number of unacknowledged messages; 0 for no limit.
        unacked: the number of unacknowledged messages.
        footprint: the memory that the consumer takes, in bytes.
        selector: see `Consumer`.
    """

    selector: Callable[[Any], bool] | None = None

    def __init__(
        self, deliveries: "Deliveries", queue: BrokerQueue, tag: str, *, no_ack: bool, exclusive: bool, arguments: Table
    ) -> None:
        self.queue = queue
        self.tag = tag
        self.encoded_tag = short_string(tag)
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.arguments = arguments
        priority = arguments.get("x-priority", 0)
        self.priority = priority if isinstance(priority, int) else 0
        self.footprint = CONSUMER + len(tag) + of_value(arguments)
        self.prefetch = deliveries.prefetch
        self.unacked = 0
        self._deliveries = deliveries
        self._session = deliveries.session
        self._is_of_stream = queue.kind == "stream"

    @property
    def name(self) -> str:
        """A name that is unique among all consumers: the connection's name, the channel number and the consumer tag."""
        return f"{self._session.name} ({self._deliveries.number})/{self.tag}"

    @property
    def client(self) -> object:
        return self._session

    def ready(self) -> bool:
        """True if the consumer can take a message now. Adds itself to `starving` if output must wait."""
        session = self._session
        if not session.writable:
            session.starving[self] = None
            return False
        if self.no_ack:
            return True
        channel = self._deliveries
        return (not self.prefetch or self.unacked < self.prefetch) and (
            not channel.global_prefetch or channel.global_unacked < channel.global_prefetch
        )

    def take(self, entry: BacklogEntry) -> None:
        """Send a message to the consumer."""
        channel, session = self._deliveries, self._session
        tag = channel.last_tag = channel.last_tag + 1
        if not self.no_ack:
            # A stream keeps its messages, so unacknowledged ones need not be held in memory as well.
            is_kept = self._is_of_stream and session.broker.hooks is None
            channel.unacked[tag] = ChannelDelivery(self.queue, _FORGOTTEN if is_kept else entry, self, session.now())
            self.unacked += 1
            channel.global_unacked += 1
        elif session.broker.hooks is not None:
            session.broker.hooks.acknowledge(self.queue, entry)
        watcher = self.queue.watcher
        if watcher is not None and (entry.position in watcher.shown or self._is_of_stream):
            watcher.delivered(self.queue, entry, self, no_ack=self.no_ack)
        is_counted = entry.acquired_count and self.queue.kind == "quorum"
        message = _counted(self.queue, entry) if is_counted else entry.message
        if not message.fits:
            _fail(session, self.queue)
            return
        session.write(
            frames.deliver(
                channel.number, self.encoded_tag, tag, message, session.frame_max, redelivered=entry.redelivered
            )
        )
        if session.vhost.tracing:
            trace_delivered(session, channel.number, self.queue, message, redelivered=entry.redelivered)

    def stop(self) -> None:
        """End the consumer: the client has cancelled it, or its channel is closed."""
        self.queue.remove_consumer(self)

    def demoted(self) -> None:
        """Nothing to do: AMQP 0-9-1 has no way to tell the client."""

    def cancelled(self) -> None:
        """End the consumer because its queue was deleted; send basic.cancel if the client supports that."""
        self._deliveries.queue_gone(self)


class ChannelDelivery:
    """An unacknowledged message.

    Attributes:
        subscription: the consumer that received the message; None for basic.get.
        at: the time of the delivery on the event loop's clock, in seconds.
        fails: True if the client has rejected it with basic.reject, and False if with basic.nack.
    """

    __slots__ = ("at", "entry", "fails", "queue", "subscription")

    def __init__(
        self, queue: BrokerQueue, entry: BacklogEntry, subscription: ChannelSubscription | None, at: float
    ) -> None:
        self.queue = queue
        self.entry = entry
        self.subscription = subscription
        self.at = at
        self.fails = False

    def timeout(self, default: float) -> float | None:
        """Return how long the message may stay unacknowledged, in seconds; None for any time."""
        arguments = self.subscription.arguments if self.subscription is not None else {}
        return consumer_timeout(self.queue, arguments, default)


class Deliveries:
    """The consumers and deliveries of a channel.

    Attributes:
        subscriptions: the consumers by consumer tag.
        unacked: the unacknowledged deliveries by delivery tag, oldest first.
        last_tag: the tag of the latest delivery, which is also the number of deliveries.
        prefetch: the prefetch limit of each consumer started from now on; 0 for no limit.
        global_prefetch: the prefetch limit of all consumers together; 0 for no limit.
        global_unacked: the number of unacknowledged deliveries that count towards `global_prefetch`.
    """

    def __init__(self, number: int, session: AmqpSession) -> None:
        self.number = number
        self.session = session
        self.subscriptions: dict[str, ChannelSubscription] = {}
        self.unacked: dict[int, ChannelDelivery] = {}
        self._consumer_bytes = 0
        self.prefetch = 0
        self.global_prefetch = self.global_unacked = 0
        self.last_tag = 0
        self._next_check = 0.0
        self._held_cancels: list[bytes] | None = None
        # Tags of deliveries that were requeued after the consumer timeout: a late acknowledgement has no effect.
        self._timed_out: set[int] = set()
        # The deliveries that requeue() is about to requeue.
        self._requeuing: Mapping[int, ChannelDelivery] = {}

    @property
    def kept(self) -> int:
        """The number of deliveries that are kept in memory: until their acknowledgement, even if that is too late."""
        return len(self.unacked) + len(self._timed_out)

    def deliver_unlisted(self, encoded_tag: bytes, message: BrokerMessage) -> None:
        """Send a direct reply: a message that was never in a queue and needs no acknowledgement."""
        self.last_tag += 1
        session = self.session
        session.write(
            frames.deliver(self.number, encoded_tag, self.last_tag, message, session.frame_max, redelivered=False)
        )

    def answer_get(self, queue: BrokerQueue, entry: BacklogEntry, *, no_ack: bool) -> None:
        """Send basic.get-ok with a message."""
        self.last_tag = tag = self.last_tag + 1
        if not no_ack:
            self.unacked[tag] = ChannelDelivery(queue, entry, None, self.session.now())
        elif self.session.broker.hooks is not None:
            self.session.broker.hooks.acknowledge(queue, entry)
        session, message = self.session, message_got(queue, entry)
        if not message.fits:
            _fail(session, queue)
            return
        session.write(
            frames.get_ok(self.number, tag, message, len(queue), session.frame_max, redelivered=entry.redelivered)
        )
        if session.vhost.tracing:
            trace_delivered(session, self.number, queue, message, redelivered=entry.redelivered)

    def add(self, subscription: ChannelSubscription) -> None:
        """Add a consumer, and count its memory."""
        self.subscriptions[subscription.tag] = subscription
        self._announce(
            "consumer.created",
            subscription,
            ack_required=not subscription.no_ack,
            exclusive=subscription.exclusive,
            prefetch_count=subscription.prefetch,
            arguments=subscription.arguments,
        )
        self.session.add_held_bytes(subscription.footprint)
        self._consumer_bytes += subscription.footprint

    @property
    def pid(self) -> str:
        """A name for the channel that looks like that of an Erlang process, for events."""
        return f"{self.session.pid.removesuffix('.0>')}.{self.number}>"

    def _announce(self, key: str, subscription: ChannelSubscription, **fields: Value) -> None:
        self.session.broker.announce(
            key,
            consumer_tag=subscription.tag,
            queue=subscription.queue.name,
            vhost=subscription.queue.vhost,
            channel=self.pid,
            user_who_performed_action=self.session.user.name,
            **fields,
        )

    def remove(self, tag: str) -> ChannelSubscription | None:
        """Remove the consumer with this tag, and return it; None if there is none."""
        subscription = self.subscriptions.pop(tag, None)
        if subscription is not None:
            self._announce("consumer.deleted", subscription)
            self.session.add_held_bytes(-subscription.footprint)
            self._consumer_bytes -= subscription.footprint
        return subscription

    def queue_gone(self, subscription: ChannelSubscription) -> None:
        """End a consumer whose queue was deleted, unless the client has cancelled it meanwhile."""
        if self.subscriptions.get(subscription.tag) is not subscription:
            return
        self.remove(subscription.tag)
        if self.session.capability("consumer_cancel_notify"):
            cancel = encode_method(commands.Basic.Cancel, consumer_tag=subscription.tag, nowait=True)
            frame = frames.method_frame(self.number, cancel)
            if self._held_cancels is None:
                self.session.write(frame)
            else:
                self._held_cancels.append(frame)

    @contextmanager
    def cancels_last(self) -> Iterator[None]:
        """Send the basic.cancel frames of this block at its end.

        A channel that deletes a queue receives the reply first, and then learns that its own consumers are gone.
        py-amqp raises an exception for a basic.cancel that arrives while it waits for a reply.
        """
        held: list[bytes] = []
        self._held_cancels = held
        try:
            yield
        finally:
            self._held_cancels = None
            for frame in held:
                self.session.write(frame)

    def take(self, tag: int, *, multiple: bool) -> dict[int, ChannelDelivery]:
        """Remove deliveries from `unacked`.

        Args:
            tag: the delivery tag; 0 with `multiple` means all deliveries.
            multiple: also remove all earlier deliveries.

        Returns:
            The removed deliveries by tag.

        Raises:
            ChannelException: 406 for an unknown tag.
        """
        if multiple and (not tag or tag == next(reversed(self.unacked), None)):
            taken, self.unacked = self.unacked, {}
            return taken
        if tag in self._timed_out:
            self._timed_out.remove(tag)
            if not multiple:
                return {}
        elif tag not in self.unacked:
            raise precondition_failed(f"unknown delivery tag {tag}")
        elif not multiple:
            return {tag: self.unacked.pop(tag)}
        tags = [*takewhile(tag.__ge__, self.unacked)]
        if len(tags) <= len(self.unacked) // 2:
            return {each: self.unacked.pop(each) for each in tags}
        taken, self.unacked = self.unacked, {each: self.unacked[each] for each in islice(self.unacked, len(tags), None)}
        for each in self.unacked:
            del taken[each]
        return taken

    def put_back(self, taken: Mapping[int, ChannelDelivery]) -> None:
        """Undo take(): mark deliveries as unacknowledged again."""
        self.unacked = dict(sorted({**self.unacked, **taken}.items()))

    def acknowledge(self, deliveries: Iterable[ChannelDelivery]) -> None:
        """Remove acknowledged messages from their queues, and send more messages to the consumers."""
        hungry: dict[ChannelSubscription, None] = {}
        hooks = self.session.broker.hooks
        if hooks is not None:
            arrived = {each: hooks.acknowledge(each.queue, each.entry) for each in deliveries}
            deliveries = [each for each in arrived if arrived[each]]
            for _ in self.requeue(dict(enumerate(each for each in arrived if not arrived[each]))):
                pass
        for delivery in deliveries:
            subscription = delivery.subscription
            delivery.queue.acknowledge(delivery.entry)
            if subscription is not None and self._release(subscription):
                hungry[subscription] = None
        if hungry:
            self._feed(hungry)

    def reject(self, deliveries: Iterable[ChannelDelivery]) -> None:
        """Dead-letter or drop messages; then send more messages to the consumers."""
        hungry: dict[ChannelSubscription, None] = {}
        for delivery in self._rejectable(deliveries, requeue=False):
            subscription = delivery.subscription
            if subscription is not None and self._release(subscription):
                hungry[subscription] = None
            delivery.queue.reject(delivery.entry, failed=delivery.fails)
        self._feed(hungry)

    def requeue(self, taken: Mapping[int, ChannelDelivery], why: Why = Why.RETURNED) -> Iterator[None]:
        """Requeue messages; then send more messages to the consumers. Many messages take several steps.

        Nothing changes before the last step, which requeues all of them, so they keep their order. If the channel ends
        before, it requeues them with its other deliveries.
        """
        self._requeuing = taken
        requeued: dict[BrokerQueue, list[BacklogEntry]] = {}
        released: dict[ChannelSubscription, int] = {}
        remaining, step = self._rejectable(taken.values(), requeue=True), self.session.broker.requeued_per_step
        while some := [*islice(remaining, step)]:
            for delivery in some:
                requeued.setdefault(delivery.queue, []).append(delivery.entry)
                if (subscription := delivery.subscription) is not None:
                    released[subscription] = released.get(subscription, 0) + 1
            if len(some) == step:
                yield
            if self._requeuing is not taken:
                return
        self._requeuing = {}
        hungry = [each for each, count in released.items() if self._release(each, count)]
        for queue, entries in requeued.items():
            queue.requeue(entries, why)
        self._feed(hungry)

    def _rejectable(self, deliveries: Iterable[ChannelDelivery], *, requeue: bool) -> Iterator[ChannelDelivery]:
        """Yield the deliveries that a rejection affects: those from streams may stay unacknowledged."""
        hooks = self.session.broker.hooks
        lets_pass = self.session.vhost.profile.streams_take_nacks
        for delivery in deliveries:
            if lets_pass and delivery.queue.kind == "stream":
                continue
            if hooks is not None:
                hooks.rejected(delivery.queue, delivery.entry, requeue=requeue)
            yield delivery

    def _release(self, subscription: ChannelSubscription, count: int = 1) -> bool:
        """Subtract deliveries from the prefetch counts; return True if a limit had been reached."""
        freed = subscription.unacked == subscription.prefetch or self.global_unacked == self.global_prefetch
        subscription.unacked -= count
        self.global_unacked -= count
        return freed

    def _feed(self, subscriptions: Iterable[ChannelSubscription]) -> None:
        feed(subscriptions)
        if self.global_prefetch:
            self.feed_all()

    def feed_all(self) -> None:
        """Send more messages to all consumers, after the shared prefetch limit has changed or is no longer reached."""
        feed(self.subscriptions.values())

    def time_out(self, default: float) -> int | None:
        """Apply the consumer timeout to the unacknowledged deliveries.

        Up to RabbitMQ 4.2, only the channel's oldest delivery counts, and the channel is to be closed. From 4.3 on,
        consumers are cancelled and their late messages requeued, if the client supports basic.cancel.

        Args:
            default: the broker's consumer timeout, in seconds.

        Returns:
            The timeout to name when the channel is closed, in milliseconds; None if the channel may stay open.
        """
        now = self.session.now()
        if self.session.vhost.profile.consumer_timeouts != "quorum":
            oldest = next(iter(self.unacked.values()), None)
            timeout = None if oldest is None else oldest.timeout(default)
            is_late = oldest is not None and timeout is not None and now - oldest.at > timeout
            return round(timeout * 1000) if is_late and timeout is not None else None
        if now < self._next_check:
            return None
        # Deliveries by the hundred thousand are checked less often, because the check looks at each of them.
        self._next_check = now + len(self.unacked) * _CHECK_SECONDS_PER_DELIVERY
        late = self._late(default, now)
        consumers = {each.subscription for each in late.values()}
        can_cancel = self.session.capability("consumer_cancel_notify")
        if late and not (can_cancel and consumers <= set(self.subscriptions.values())):
            return -1
        for subscription in consumers:
            if subscription is not None:
                subscription.stop()
                self.queue_gone(subscription)
        for tag in late:
            del self.unacked[tag]
        self._timed_out |= late.keys()
        self._requeue(late.values(), Why.TIMED_OUT)
        return None

    def _late(self, default: float, now: float) -> dict[int, ChannelDelivery]:
        """Return the deliveries that have been unacknowledged for longer than their consumer timeout, by tag."""
        timeouts: dict[ChannelSubscription | BrokerQueue, float | None] = {}
        late = {}
        for tag, each in self.unacked.items():
            by = each.subscription or each.queue
            if by not in timeouts:
                timeouts[by] = each.timeout(default)
            timeout = timeouts[by]
            if timeout is not None and now - each.at > timeout:
                late[tag] = each
        return late

    def shut(self, uncommitted: Iterable[ChannelDelivery], why: Why) -> None:
        """End the consumers, and requeue the unacknowledged and the `uncommitted` deliveries."""
        for subscription in list(self.subscriptions.values()):
            subscription.stop()
            self._announce("consumer.deleted", subscription)
        self.subscriptions.clear()
        self.session.add_held_bytes(-self._consumer_bytes)
        self._consumer_bytes = 0
        unacked, self.unacked = self.unacked, {}
        requeuing, self._requeuing = self._requeuing, {}
        self._requeue([*requeuing.values(), *uncommitted, *unacked.values()], why)

    def _requeue(self, deliveries: Iterable[ChannelDelivery], why: Why) -> None:
        """Requeue deliveries whose consumer is gone."""
        returned: dict[BrokerQueue, list[BacklogEntry]] = {}
        for delivery in deliveries:
            returned.setdefault(delivery.queue, []).append(delivery.entry)
        for queue, entries in returned.items():
            queue.requeue(entries, why)


def _fail(session: AmqpSession, queue: BrokerQueue) -> None:
    """Close a connection, soon, because RabbitMQ fails to deliver a message to it."""
    queue.clock.take_turn(lambda: session.failed(ConnectionException(INTERNAL_ERROR)))


def message_got(queue: BrokerQueue, entry: BacklogEntry) -> BrokerMessage:
    """Return a message as basic.get delivers it.

    Up to 3.13, it has the header x-delivery-count in a quorum queue even if it is 0, unlike with basic.deliver.
    """
    is_counted = queue.kind == "quorum" and (entry.acquired_count or queue.profile.first_count)
    return _counted(queue, entry) if is_counted else entry.message


def _counted(queue: BrokerQueue, entry: BacklogEntry) -> BrokerMessage:
    """Return a copy of a quorum queue's message with headers that say how often it has been delivered."""
    counts, message = delivery_counts(entry, queue.profile), entry.message
    properties = message.properties.with_sorted_headers(counts, unique=False)  # not what the publisher says
    return message.copy(message.address, ContentHeader.of(properties, len(message.body)))


# Stands in for an unacknowledged message from a stream, so that the message need not stay in memory.
_FORGOTTEN = BacklogEntry(
    BrokerMessage(encode_address("", ""), ContentHeader.of(MessageProperties(b"\0\0"), 0), b""), 0
)
