"""Channel: declare, bind, publish, consume and acknowledge with blocking calls that resume after a reconnection.

Exchanges, queues, bindings and consumers are remembered, and set up again when the channel is reopened.

To publish:   Channel.publish ─ publisher ─ unconfirmed ─ basic_frames ─ pika_private ─> socket
To consume:   socket ─> pika_private ─ basic_frames ─ subscription ─ consumer ─ Channel.consume
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from pika import spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import administration
from mqtool.amqp.administration import Reply, Request
from mqtool.amqp.basic_frames import delivery_from
from mqtool.amqp.publisher import AcknowledgedTags, Acknowledgements, Publisher
from mqtool.amqp.receive_settings import STREAMING, Receiving
from mqtool.amqp.reopening_channel import ChannelListener, ReopeningChannel, Thing
from mqtool.amqp.replies import Replies
from mqtool.amqp.unconfirmed import WINDOW, Route, addressed
from mqtool.field_values import FieldValue
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Binding, Exchange, Queue

if TYPE_CHECKING:
    from mqtool.amqp.connection import Connection
    from mqtool.amqp.consumer import Consumer


class Channel(ChannelListener):
    """One channel of a connection, for one thread at a time.

    Attributes:
        connection: the channel's connection.
        reopening: opens the channel again after a loss.
        stopping: True once stop() has been called.
        cluster: identifies the broker and the virtual host.
        replies: publishes the replies of answer(); None before the first.
    """

    def __init__(self, connection: "Connection", *, strict: bool, mandatory: bool, confirm_timeout: float) -> None:
        self.connection = connection
        self.reopening = ReopeningChannel(connection, strict=strict)
        self.stopping = False
        self.cluster = connection.cluster
        self._mandatory = mandatory
        self._consumers: list[Consumer] = []
        self._publisher = Publisher(self.reopening, connection, confirm_timeout)
        self.replies: Replies | None = None
        self._tags = AcknowledgedTags()
        self._acks = Acknowledgements(connection.io, self._acknowledge)
        self.reopening.listen(self)

    @property
    def is_open(self) -> bool:
        """True if the connection and the channel are open right now."""
        return self.reopening.is_ready

    @property
    def refused(self) -> bool:
        """True if the broker closed the channel because of an error, while the connection stayed open."""
        return self.reopening.refused

    # Topology.

    def declare(self, thing: Thing, *, remember: bool = True, exactly: bool = False) -> Thing:
        """Declare an exchange or a queue; return it with the name that it has on the broker.

        If it exists with different settings (durability, arguments), it is used as it is, with a notice, unless the
        channel is strict.

        Args:
            remember: declare it again after a reconnection.
            exactly: reject different settings, as if the channel were strict.

        Raises:
            DeclaredDifferently: it exists with another type; or with different settings, and the channel is strict.
            AccessRefused: the user lacks the permission, or the name is reserved.
        """
        declared: Thing = self.reopening.retrying(lambda: self.reopening.declare(thing, exactly=exactly))
        if remember:
            self.reopening.journal.remember(declared)
        return declared

    def accept_settings(self, thing: Queue | Exchange) -> None:
        """Accept any settings of an existing queue or exchange: declare() uses it as it is, without a notice."""
        self.reopening.journal.set_differs(thing)

    def bind(
        self,
        to: Queue | Exchange,
        exchange: Exchange,
        routing_key: str = "",
        arguments: Mapping[str, FieldValue] | None = None,
        *,
        remember: bool = True,
    ) -> None:
        """Bind a queue or an exchange to an exchange.

        Args:
            remember: bind it again after a reconnection.

        Raises:
            NotFound: the source or the destination does not exist.
        """
        binding = Binding(exchange.name, to.name, routing_key, arguments or {}, to_exchange=isinstance(to, Exchange))
        self.reopening.retrying(lambda: self.reopening.bind(binding))
        if remember:
            self.reopening.journal.remember(binding)

    def depth_of(self, queue: str) -> int:
        """The number of ready messages in a queue.

        Raises:
            NotFound: the queue does not exist.
        """
        return int(self.ask(administration.declare_request(Queue(queue), passive=True)).method.message_count)

    def ask(self, request: Request[Reply], within: float | None = None) -> Reply:
        """Make any request, and return the broker's reply. The request is not repeated after a later reconnection.

        Args:
            within: the number of seconds to wait for the reply; None for no limit.

        Raises:
            NotConfirmed: the broker has not replied in time.
            MqtoolError: the broker refuses the request.
        """
        return self.reopening.retrying(lambda: self.reopening.checked(request, within))

    # Publisher.

    def publish(
        self,
        messages: Iterable[Message | None],
        *,
        exchange: Exchange | None = None,
        routing_key: str = "",
        persistent: bool = False,
        mandatory: bool | None = None,
        window: int = WINDOW,
    ) -> Generator[Receipt]:
        """Publish messages; yield their receipts in order, each once the broker has confirmed or rejected the message.

        Publishing continues while confirms are outstanding. After a reconnection, unconfirmed messages are published
        again. Before that, and before an error is raised, the receipts of messages that the broker has confirmed out of
        order are yielded, without waiting for those of earlier messages.

        Args:
            messages: None means that there is no message right now, so that receipts can be yielded. At a second None
                in a row, the channel waits up to 0.05 s for confirms that are missing.
            exchange: for messages without one; None is the default exchange.
            routing_key: for messages without one.
            persistent: use delivery mode 2 for messages without a delivery mode.
            mandatory: have the broker return unroutable messages; None is the channel's setting.
            window: the number of messages that may be unconfirmed; 1 waits for each before the next is sent.

        Raises:
            NotConfirmed: the broker did not confirm in time.
            MqtoolError: the channel was closed for good.
        """
        mandatory = self._mandatory if mandatory is None else mandatory
        route = Route(exchange.name if exchange else "", routing_key, mandatory=mandatory, persistent=persistent)
        return self._publisher.receipts(messages, route, window)

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages that are published but not confirmed, oldest first."""
        return self._publisher.unconfirmed.messages

    @property
    def in_flight(self) -> int:
        """The number of messages that are published but not confirmed."""
        return self._publisher.unconfirmed.in_flight

    def addressed(self, message: Message) -> Message:
        """Copy a message; if it has no exchange or no routing key, use that of the latest publish()."""
        return addressed(message, self._publisher.route)

    # Consuming.

    def consume(self, queue: Queue, receiving: Receiving = STREAMING) -> Generator[Delivery]:
        """Start consuming immediately; return a generator of the deliveries.

        A delivery is acknowledged when the caller requests the next one, unless the caller has already acknowledged it.

        Raises:
            NotFound: the queue does not exist.
            DeclaredDifferently: the queue is exclusive to another connection.
        """
        deliveries = self.consumer(queue, receiving).deliveries()
        return deliveries if receiving.count is None else _counted(self, deliveries, queue, receiving)

    def consumer(self, queue: Queue, receiving: Receiving = STREAMING) -> "Consumer":
        """Start consuming, as consume() does; return the Consumer, which can also wait with a timeout."""
        from mqtool.amqp.consume_policies import policy_for
        from mqtool.amqp.consumer import Consumer
        from mqtool.offsets import StreamPosition

        is_stream = receiving.offset is not None or queue.arguments.get("x-queue-type") == "stream"
        limit = receiving.delivery_limit
        limit = _delivery_limit(queue, self.connection.broker) if limit is None else limit
        policy = policy_for(receiving, delivery_limit=limit, is_stream=is_stream)
        position = StreamPosition(queue.name, receiving.offset, self.reopening.notice) if is_stream else None
        consumer = Consumer(
            self.reopening, queue, receiving, policy, position, send_answers=self._acks.flush, on_end=self._forget
        )
        self._consumers.append(consumer)
        if self.stopping:  # a signal arrived before there was a consumer to stop
            consumer.stop()
        self.reopening.listen(consumer)
        try:
            consumer.start()
        except BaseException:
            self._forget(consumer)
            raise
        return consumer

    def get(self, queue: str, within: float | None = None) -> Delivery | None:
        """Get one message, unacknowledged, with basic.get; None if the queue is empty.

        Args:
            within: see ask().

        Raises:
            NotFound: the queue does not exist.
        """

        def request(pika: PikaChannel, done: Callable[[Delivery | None], None]) -> None:
            def on_message(
                _pika: PikaChannel, method: spec.Basic.GetOk, properties: spec.BasicProperties, body: bytes
            ) -> None:
                done(delivery_from(method, properties, body, queue, self.reopening.requests.epoch))

            pika.basic_get(queue, on_message)

        return self.ask(request, within)

    def acknowledge(self, *deliveries: Delivery) -> None:
        """Acknowledge deliveries, in one write. Safe to repeat, and to call from any thread."""
        self._acks.add(_settled(deliveries, tuple(self._consumers)))

    def reject(self, delivery: Delivery) -> None:
        """Reject a delivery: the broker dead-letters it, or drops it if its queue has no dead-letter exchange."""
        tag = delivery.delivery_tag

        def reject(pika: PikaChannel) -> None:
            [*self._tags.acknowledge([tag], delivery.epoch)]  # so that later deliveries can share an acknowledgement
            pika.basic_reject(tag, requeue=False)

        if _settled([delivery], tuple(self._consumers)):
            self.reopening.requests.send(delivery.epoch, reject)

    def requeue_all(self) -> None:
        """Stop consuming, and requeue all unacknowledged deliveries with basic.nack.

        From RabbitMQ 4.3 on, a quorum queue counts a delivery that is requeued by the end of its channel, but not this.
        """

        def requeue(pika: PikaChannel) -> None:
            for tag in pika.consumer_tags:
                pika.basic_cancel(tag)
            pika.basic_nack(0, multiple=True)

        for consumer in tuple(self._consumers):
            consumer.give_back(())
        self._acks.flush()
        self.reopening.requests.send(self.reopening.requests.epoch, requeue)

    def answer(self, delivery: Delivery, reply: Message) -> None:
        """Publish the reply to a delivery, then acknowledge the delivery, in one write.

        If more deliveries have arrived, the write waits two milliseconds for their replies. The broker gets the reply
        first, so no delivery is acknowledged without its reply. If no queue accepts the reply, a notice says so; the
        delivery stays acknowledged. Use wait_for_confirms() to wait for the confirms.

        Raises:
            NotConfirmed: the broker did not confirm earlier replies in time.
            MqtoolError: the channel was closed for good.
        """
        if self.replies is None:
            self.replies = Replies(self._publisher, self._acks.send, self.connection.notice)
            self.reopening.mends = self.replies.learn_limit
        self.replies.publish(reply, is_current=self._has_arrived_here(delivery))
        consumers = tuple(self._consumers)
        more_follow = any(consumer.arrives(0) for consumer in consumers)
        self._acks.add(_settled([delivery], consumers), more_follow=more_follow)

    def wait_for_confirms(self) -> None:
        """Wait until the broker has confirmed or rejected all published messages.

        Raises:
            NotConfirmed: the broker did not confirm in time; or the last replies were dropped, and not because of
                stop().
            MqtoolError: the channel was closed for good.
        """
        for _ in self._publisher.receipts([], Route(), WINDOW):
            pass
        if self.replies is not None and not self.stopping:
            self.replies.check()

    def is_current(self, delivery: Delivery) -> bool:
        """True if a delivery can still be acknowledged. If not, the broker redelivers it."""
        return self._has_arrived_here(delivery) and not any(each.has_lost(delivery) for each in tuple(self._consumers))

    def timed_out(self, delivery: Delivery) -> bool:
        """True if the broker has taken an unacknowledged delivery back, which it does after its consumer timeout."""
        is_late = delivery.epoch in self.reopening.timed_out
        return is_late or any(each.has_lost(delivery) for each in tuple(self._consumers))

    def _has_arrived_here(self, delivery: Delivery) -> bool:
        """True if a delivery arrived since the channel was opened, so that the broker knows its delivery tag."""
        return self.reopening.requests.pika is not None and delivery.epoch == self.reopening.requests.epoch

    def stop(self) -> None:
        """End all consumers; stop waiting for a broker that cannot reply. Safe from any thread or signal handler."""
        self.stopping = True
        self.connection.stop()
        for consumer in self._consumers:
            consumer.stop()

    def close(self) -> None:
        """Close the channel after pending acknowledgements are sent. Unacknowledged deliveries are requeued."""

        def leave() -> None:
            left = self.reopening.requests.leave()
            if left is not None and left.is_open:
                left.close()

        self.connection.io.run(leave)

    def closing(self) -> None:
        self._acks.flush()

    def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        acks: Iterable[tuple[int, bool]] = ()
        if tags := [delivery.delivery_tag for delivery in deliveries if self._has_arrived_here(delivery)]:
            acks = self._tags.acknowledge(tags, self.reopening.requests.epoch)
            self.reopening.progress()
        self._publisher.acknowledge(acks)

    def _forget(self, consumer: "Consumer") -> None:
        self.reopening.forget(consumer)
        if consumer in self._consumers:
            self._consumers.remove(consumer)


def _counted(
    channel: Channel, deliveries: Iterable[Delivery], queue: Queue, receiving: Receiving
) -> Generator[Delivery]:
    """Yield deliveries, and one more for each request that was redelivered because its reply was too large."""
    yield from deliveries
    if channel.replies is not None and not channel.stopping and (missing := channel.replies.take_redelivered()):
        yield from channel.consume(queue, receiving._replace(count=missing))


def _settled(deliveries: Sequence[Delivery], consumers: Sequence["Consumer"]) -> list[Delivery]:
    """Mark deliveries as acknowledged, and tell the consumers. Return the deliveries that were not marked before."""
    unsettled = [delivery for delivery in deliveries if not delivery.settled]
    for delivery in unsettled:
        delivery.settled = True
        for consumer in consumers:
            consumer.acknowledging(delivery)
    return unsettled


def _delivery_limit(queue: Queue, broker: str) -> float:
    """How many times a queue requeues a message before dropping it, as far as its declaration tells."""
    from mqtool.amqp.consume_policies import ASSUMED_LIMIT

    if queue.arguments.get("x-queue-type") != "quorum":
        return inf
    limit = queue.arguments.get("x-delivery-limit")
    if not isinstance(limit, int):  # a policy may set one
        limit = ASSUMED_LIMIT if re.match(r"RabbitMQ (?!3\.)", broker) else -1
    if limit < 0:
        return inf
    return 0 if queue.arguments.get("x-single-active-consumer") else limit  # another one would become the active one
