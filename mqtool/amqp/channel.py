"""A channel: declare, bind, publish, consume, acknowledge, as plain blocking calls that outlive their connection.

What was declared is written down, so that a channel opened anew finds its exchanges, queues, bindings and consumers
again. AMQP 0-9-1, section 1.3.
"""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mqtool.amqp import administration
from mqtool.amqp.administration import Request
from mqtool.amqp.consume_policies import STREAMING, Receiving, policy_for
from mqtool.amqp.consumer import Consumer
from mqtool.amqp.publisher import Publisher
from mqtool.amqp.reopening import ChannelConnection, ChannelListener, ReopeningChannel, Thing
from mqtool.amqp.subscription import AcknowledgedTags, Acknowledgements, StreamPosition, delivery_from
from mqtool.amqp.unconfirmed import WINDOW, Route, addressed
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Binding, Exchange, Queue

#: Seconds. A cluster that has lost a node may take ten until it has noticed, and the queue has another leader.
CONFIRM_TIMEOUT = 20.0


class Owner(ChannelConnection, Protocol):
    """A channel's connection."""

    stopping: bool
    cluster: str

    @property
    def broker(self) -> str: ...
    def channel(self) -> "Channel": ...
    def beside(self) -> AbstractContextManager["Owner"]: ...


class Channel(ChannelListener):
    """One channel of a connection, for one thread at a time.

    Attributes:
        connection: the connection that it is a channel of.
        link: for the connection.
        stopping: stop() was called.
    """

    def __init__(self, connection: Owner, *, strict: bool, mandatory: bool, confirm_timeout: float) -> None:
        self.connection = connection
        self.reopening = ReopeningChannel(connection, strict=strict)
        self.stopping = False
        self._mandatory = mandatory
        self._consumers: list[Consumer] = []
        self._publisher = Publisher(self.reopening, connection, confirm_timeout)
        self._tags, self._tags_of = AcknowledgedTags(), 0
        self._acks = Acknowledgements(connection.io, self._acknowledge)
        self.reopening.listen(self)

    @property
    def is_open(self) -> bool:
        """Whether there is a broker at the other end right now."""
        return self.reopening.is_ready

    @property
    def refused(self) -> bool:
        """Whether the broker closed the channel over what was asked of it; the connection is open."""
        return self.reopening.refused

    # Topology.

    def declare(self, thing: Thing, *, remember: bool = True, exactly: bool = False) -> Thing:
        """Make sure that an exchange or a queue exists; return it with the name it has on the broker.

        One that exists but differs harmlessly (durability, arguments) is used as it is, with a notice, unless the
        channel is strict.

        Args:
            remember: declare it again after a reconnection.
            exactly: reject any difference, whatever the channel does: messages could get stuck in it.

        Raises:
            DeclaredDifferently: it exists with another meaning (or differs at all, and the channel is strict).
            AccessRefused: the user lacks the permission, or the name is reserved.
        """
        declared: Thing = self.reopening.retrying(lambda: self.reopening.declare(thing, exactly=exactly))
        if remember:
            self.reopening.journal.remember(declared)
        return declared

    def bind(
        self,
        to: Queue | Exchange,
        exchange: Exchange,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        *,
        remember: bool = True,
    ) -> None:
        """Have an exchange route to a queue, or to another exchange.

        Args:
            remember: bind it again after a reconnection.

        Raises:
            NotFound: one of them does not exist.
        """
        binding = Binding(exchange.name, to.name, routing_key, arguments or {}, to_exchange=isinstance(to, Exchange))
        self.reopening.retrying(lambda: self.reopening.bind(binding))
        if remember:
            self.reopening.journal.remember(binding)

    def depth_of(self, queue: str) -> int:
        """How many messages of a queue are ready to be delivered.

        Raises:
            NotFound: the queue does not exist.
        """
        return int(self.ask(administration.declare_request(Queue(queue), passive=True)).method.message_count)

    def ask(self, request: Request) -> Any:
        """Make a request of any kind, and return the broker's answer. It is not repeated after a reconnection.

        Raises:
            MqtoolError: the broker refuses it.
        """
        return self.reopening.retrying(lambda: self.reopening.checked(request))

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
        """Publish messages; yield each one's receipt, in order, once the broker has answered for it.

        Publisher goes on while confirms are awaited. Unconfirmed messages are published again after a reconnection.

        Args:
            messages: None means that there is none right now: receipts that have come are yielded meanwhile.
            exchange: for messages that name none; None is the default exchange.
            routing_key: for messages that have none.
            persistent: delivery mode 2, for messages that have none.
            mandatory: have the broker return a message that no queue gets; None is the channel's setting.
            window: how many may be unconfirmed; 1 waits for each before the next is sent.

        Raises:
            NotConfirmed: the broker did not answer in time.
            MqtoolError: the channel was closed for good.
        """
        mandatory = self._mandatory if mandatory is None else mandatory
        route = Route(exchange.name if exchange else "", routing_key, mandatory=mandatory, persistent=persistent)
        return self._publisher.receipts(messages, route, window)

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages published but not answered for, oldest first."""
        return self._publisher.unconfirmed.messages

    @property
    def in_flight(self) -> int:
        """How many messages were published but not answered for."""
        return self._publisher.unconfirmed.in_flight

    def addressed(self, message: Message) -> Message:
        """A message with the exchange and the routing key that the latest publish() would have given it."""
        return addressed(message, self._publisher.route)

    # Consuming.

    def consume(self, queue: Queue, receiving: Receiving = STREAMING) -> Generator[Delivery]:
        """Start to consume, at once; the generator returned yields the deliveries.

        Each is acknowledged when the next is asked for, unless acknowledge() did so before.

        Raises:
            NotFound: the queue does not exist.
            DeclaredDifferently: the queue is exclusive to another connection.
        """
        return self.consumer(queue, receiving).deliveries()

    def consumer(self, queue: Queue, receiving: Receiving = STREAMING) -> Consumer:
        """What consume() takes its deliveries from, for whoever has something else to do until there are some."""
        is_stream = receiving.offset is not None or queue.arguments.get("x-queue-type") == "stream"
        limits = _limits_deliveries(queue, self.connection.broker)
        policy = policy_for(receiving, limits_deliveries=limits, is_stream=is_stream)
        place = StreamPosition(receiving.offset) if is_stream else None
        consumer = Consumer(self.reopening, queue, receiving, policy, place, on_end=self._forget)
        self._consumers.append(consumer)
        self.reopening.listen(consumer)
        try:
            consumer.start()
        except BaseException:
            self._forget(consumer)
            raise
        return consumer

    def get(self, queue: str) -> Delivery | None:
        """basic.get: take one message, unacknowledged; None if the queue is empty.

        Raises:
            NotFound: the queue does not exist.
        """
        got = self.ask(lambda pika, done: pika.basic_get(queue, lambda _channel, *got: done((self._epoch, *got))))
        if got is None:
            return None
        epoch, method, properties, body = got
        return delivery_from(method, properties, body, queue, epoch)

    def acknowledge(self, *deliveries: Delivery) -> None:
        """basic.ack of each delivery, in one write. From any thread; safe to repeat."""
        self._acks.add(_settled(deliveries, tuple(self._consumers)))

    def answer(self, delivery: Delivery, reply: Message) -> None:
        """Publish a message to its own exchange and routing key, and acknowledge the delivery that it answers.

        Both leave in one write, a moment later if more deliveries are at hand: with their answers. A broker handles a
        channel's methods in order, so a delivery that is gone has its answer in a queue; wait_for_confirms() says
        whether it is safe there. Until it is confirmed, a reconnection publishes it again.

        Raises:
            NotConfirmed: the broker has not confirmed the answers before it for too long.
            MqtoolError: the channel was closed for good.
        """
        self._publisher.add(reply)
        consumers = tuple(self._consumers)
        more_follow = any(consumer.arrives(0) for consumer in consumers)
        self._acks.add(_settled([delivery], consumers), more_follow=more_follow)

    def wait_for_confirms(self) -> None:
        """Wait until the broker has confirmed, or refused, all that was published. Raises as publish() does."""
        for _ in self._publisher.receipts([], Route(), WINDOW):
            pass

    def is_current(self, delivery: Delivery) -> bool:
        """Whether a delivery can still be acknowledged; if not, the broker delivers it again."""
        return self.reopening.requests.pika is not None and delivery.epoch == self._epoch

    def stop(self) -> None:
        """End all consumers after the delivery in hand. From any thread, and from a signal handler."""
        self.stopping = self.connection.stopping = True
        for consumer in self._consumers:
            consumer.stop()

    def close(self) -> None:
        """Close the channel after the acknowledgements that wait; unacknowledged deliveries are requeued."""

        def leave() -> None:
            left = self.reopening.requests.leave()
            if left is not None and left.is_open:
                left.close()

        self.connection.io.run(leave)

    def closing(self) -> None:
        self._acks.flush()

    @property
    def _epoch(self) -> int:
        return self.reopening.requests.epoch

    def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        acks: Iterable[tuple[int, bool]] = ()
        if tags := [delivery.delivery_tag for delivery in deliveries if self.is_current(delivery)]:
            if self._tags_of != self._epoch:
                self._tags, self._tags_of = AcknowledgedTags(), self._epoch
            acks = self._tags.acknowledge(tags)
            self.reopening.progress()
        self._publisher.acknowledge(acks)

    def _forget(self, consumer: Consumer) -> None:
        self.reopening.forget(consumer)
        if consumer in self._consumers:
            self._consumers.remove(consumer)


def _settled(deliveries: Sequence[Delivery], consumers: Sequence[Consumer]) -> list[Delivery]:
    """Those that were not acknowledged before, and are from now on."""
    unsettled = [delivery for delivery in deliveries if not delivery.settled]
    for delivery in unsettled:
        delivery.settled = True
        for consumer in consumers:
            consumer.acknowledging(delivery)
    return unsettled


def _limits_deliveries(queue: Queue, broker: str) -> bool:
    """Whether a queue drops what has been delivered too often."""
    is_quorum = queue.arguments.get("x-queue-type") == "quorum"
    return is_quorum and ("x-delivery-limit" in queue.arguments or re.match(r"RabbitMQ (?!3\.)", broker) is not None)
