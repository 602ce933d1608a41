"""A channel: declare, bind, publish, consume, acknowledge, as plain blocking calls that outlive their connection.

What was declared is written down, so that a channel opened anew finds its exchanges, queues, bindings and consumers
again. AMQP 0-9-1, section 1.3.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pika import exceptions, frame, spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import declaring, failures
from mqtool.amqp.acknowledgements import Acknowledgements
from mqtool.amqp.consumer import STREAMING, Consumer, DeliveryCallback, Receiving, delivery_from
from mqtool.amqp.declaring import Request
from mqtool.amqp.frames import Route, addressed
from mqtool.amqp.publisher import WINDOW, Publisher
from mqtool.amqp.requests import CONNECTION_LOST, Requests
from mqtool.errors import MqtoolError
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Binding, Exchange, Queue

if TYPE_CHECKING:
    from mqtool.amqp.connection import Connection

Thing = TypeVar("Thing", bound=Exchange | Queue)

#: Seconds. A cluster that has lost a node may take ten until it has noticed, and the queue has another leader.
CONFIRM_TIMEOUT = 20.0

_END = Message(b"")


class Channel:
    """One channel of a connection, for one thread at a time.

    Attributes:
        failure: what has closed the channel for good, or None.
        stopping: stop() was called.
        refused: the broker has closed the channel, for what was asked of it; the connection is well.
    """

    def __init__(self, connection: "Connection", strict: bool, mandatory: bool, confirm_timeout: float) -> None:
        self.failure: MqtoolError | None = None
        self.stopping = False
        self.refused = False
        self._connection = connection
        self._strict = strict
        self._mandatory = mandatory
        self._confirm_timeout = confirm_timeout
        self._requests = Requests(connection, self._refused_by, self._cancelled_by_broker)
        self._journal: list[Exchange | Queue | Binding] = []
        self._names: dict[str, str] = {}
        #: What the broker holds differently from how we declare it, and is used all the same.
        self._as_found: set[tuple[type, str]] = set()
        self._consumers: list[Consumer] = []
        self._publisher = Publisher(connection.run, self._open_another)
        self._acks = Acknowledgements(connection, self._acknowledge)
        self._confirming = False
        self._route = Route()

    @property
    def is_open(self) -> bool:
        """Whether there is a broker at the other end right now."""
        return self._requests.pika is not None

    @property
    def epoch(self) -> int:
        """Counts the openings; delivery tags of an earlier one mean nothing to the broker any more."""
        return self._requests.epoch

    @property
    def connection(self) -> "Connection":
        """The connection that it is a channel of."""
        return self._connection

    # Topology.

    def declare(self, thing: Thing, *, remember: bool = True) -> Thing:
        """Make sure that an exchange or a queue is there; return it with the name it has on the broker.

        One that is there already but differs harmlessly (durability, arguments) is used as it is, with a notice,
        unless the channel is strict.

        Args:
            remember: declare it again after a reconnection.

        Raises:
            DeclaredDifferently: it is there with another meaning (or differs at all, and the channel is strict).
            AccessRefused: the user may not, or the name is reserved.
        """
        declared: Thing = self._retrying(lambda: self._declare(thing))
        if remember:
            self._journal.append(declared)
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
            Unavailable: one of them does not exist.
        """
        binding = Binding(exchange.name, to.name, routing_key, arguments or {}, isinstance(to, Exchange))
        self._retrying(lambda: self._bind(binding))
        if remember:
            self._journal.append(binding)

    def expect(self, thing: Exchange | Queue) -> None:
        """Check that an exchange or a queue exists, whoever has declared it.

        Raises:
            Unavailable: it does not.
        """
        self._retrying(lambda: self._checked(declaring.declaration(thing, passive=True)))

    def consumers_of(self, queue: Queue) -> int:
        """How many consumers a queue has.

        Raises:
            Unavailable: there is no such queue.
        """
        return int(self._look_at(queue.name).consumer_count)

    def depth_of(self, queue: str) -> int:
        """How many messages of a queue are ready to be delivered.

        Raises:
            Unavailable: there is no such queue.
        """
        return int(self._look_at(queue).message_count)

    def _look_at(self, queue: str) -> Any:
        return self.ask(lambda pika, done: pika.queue_declare(queue, passive=True, callback=done)).method

    def ask(self, request: Request) -> Any:
        """Make a request of any kind, and return the broker's answer; nothing of it is remembered.

        Raises:
            MqtoolError: the broker refuses it.
        """
        return self._retrying(lambda: self._checked(request))

    # Publishing.

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

        Publishing goes on while confirms are awaited. Unconfirmed messages are published again after a reconnection.

        Args:
            messages: None among them says that there is none right now: time to look what has been confirmed.
            exchange: for messages that name none; None is the default exchange.
            routing_key: for messages that have none.
            persistent: delivery mode 2, for messages that state no other.
            mandatory: have the broker return a message that no queue gets; None as the channel was told.
            window: how many may be unconfirmed; 1 waits for each before the next is sent.

        Raises:
            NotConfirmed: the broker did not answer in time.
            MqtoolError: the channel was closed for good.
        """
        mandatory = self._mandatory if mandatory is None else mandatory
        self._route = Route(exchange.name if exchange else "", routing_key, mandatory, persistent)
        self._confirm_select()
        try:
            yield from self._publish(iter(messages), self._route, window)
        except MqtoolError:
            yield from self._publisher.collect()  # what was answered for before
            raise

    def _publish(self, source: Iterator[Message | None], route: Route, window: int) -> Generator[Receipt]:
        publisher, bad_input, sequence = self._publisher, None, 0
        while True:
            try:
                message = next(source, _END)
                if message is _END:
                    break
                if message is not None:
                    sequence += 1
                    publisher.add(message, route, sequence)
            except MqtoolError as error:
                bad_input = error  # what was read before it is still to be confirmed
                break
            if message is None:
                publisher.wait(1, self._confirm_timeout, at_most=0.05)
            elif publisher.is_full(window):
                publisher.wait(max(1, window // 2), self._confirm_timeout)
            if publisher.has_answers:
                yield from publisher.collect()
        while publisher.is_waiting:
            publisher.wait(1, self._confirm_timeout, at_most=0.25)
            yield from publisher.collect()
        if bad_input:
            raise bad_input

    @property
    def unconfirmed(self) -> list[Message]:
        """What was published and not answered for, oldest first."""
        return self._publisher.unconfirmed

    @property
    def in_flight(self) -> int:
        """How many messages were published and not answered for."""
        return self._publisher.in_flight

    def addressed(self, message: Message) -> Message:
        """A message, with the exchange and the routing key that the latest publish() would have given it."""
        return addressed(message, self._route)

    # Consuming.

    def consume(self, queue: Queue, receiving: Receiving = STREAMING) -> Generator[Delivery]:
        """Start to consume, at once; the generator returned yields the deliveries.

        Each is acknowledged when the next is asked for, unless acknowledge() did so before.

        Raises:
            Unavailable: there is no such queue.
            DeclaredDifferently: the queue is exclusive to another connection.
        """
        consumer = Consumer(self, queue, receiving)
        self._retrying(consumer.subscribe)
        self._consumers.append(consumer)
        return consumer.deliveries()

    def get(self, queue: str) -> Delivery | None:
        """basic.get: take one message, unacknowledged; None if the queue is empty.

        Raises:
            Unavailable: there is no such queue.
        """
        return self._retrying(lambda: self._get(queue))  # type: ignore[no-any-return]

    def acknowledge(self, delivery: Delivery) -> None:
        """basic.ack of one delivery, at once or grouped with others. From any thread; safe to repeat."""
        if delivery.settled:
            return
        delivery.settled = True
        for consumer in list(self._consumers):
            consumer.on_settling(delivery)
        self._acks.add(delivery)

    def is_current(self, delivery: Delivery) -> bool:
        """Whether the broker still counts it as in our hands; if not, it delivers it again."""
        return self.is_open and delivery.epoch == self.epoch

    def stop(self) -> None:
        """End all consumers after the delivery in hand. May be called from any thread, and from a signal handler."""
        self.stopping = True
        for consumer in self._consumers:
            consumer.stop()

    def take_in_advance(self, extra: int) -> None:
        """From here on, have so many deliveries more than the prefetch at a time, where there is no count to keep to.

        Acknowledgements then wait a moment for others. 0 ends that. From any thread.
        """
        self._acks.together = extra > 0 and all(consumer.is_endless for consumer in self._consumers)
        for consumer in list(self._consumers):
            self._retrying(lambda consumer=consumer: consumer.take_in_advance(extra))  # type: ignore[misc]

    # For the consumers of this channel.

    def current_name(self, queue: str) -> str:
        """What a queue that the broker named is called now: after a reconnection it has another name."""
        return self._names.get(queue, queue)

    def start_consuming(self, queue: str, prefetch: int, auto_ack: bool, on_message: DeliveryCallback) -> str:
        """basic.qos and basic.consume; returns the consumer tag."""
        self._checked(lambda pika, done: pika.basic_qos(prefetch_count=prefetch, callback=done))
        answer = self._checked(
            lambda pika, done: pika.basic_consume(queue, on_message, auto_ack=auto_ack, callback=done)
        )
        return str(answer.method.consumer_tag)

    def stop_consuming(self, tag: str) -> None:
        """basic.cancel; a connection that is lost meanwhile has cancelled it too."""

        def cancel(pika: PikaChannel, done: Callable[[Any], None]) -> None:
            if tag in pika.consumer_tags:
                pika.basic_cancel(tag, callback=done)
            else:  # it is of an earlier opening, and pika would never answer
                done(None)

        try:
            self._requests.make(cancel)
        except CONNECTION_LOST:
            if self.is_open:
                raise

    def resubscribe(self, consumer: Consumer) -> None:
        """Let a consumer that has cancelled itself consume again."""
        self._retrying(consumer.subscribe)

    def forget(self, consumer: Consumer) -> None:
        """A consumer has ended."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def acknowledge_up_to(self, delivery: Delivery) -> None:
        """basic.ack, of this delivery and all before it."""
        self._send(delivery, lambda pika: pika.basic_ack(delivery.delivery_tag, multiple=True))

    def fail(self, failure: MqtoolError) -> None:
        """The channel is closed for good: let everybody who waits on it know."""
        self.failure = failure
        self._publisher.fail(failure)
        for consumer in self._consumers:
            consumer.wake()

    # For the connection.

    def flush(self) -> None:
        """Send the acknowledgements that wait for others: whoever took the deliveries has broken off in between."""
        self._acks.flush()
        for consumer in self._consumers:
            consumer.flush(leaving=True)

    def open(self, *, connection_is_new: bool = False, set_up_topology: bool = True) -> None:
        """Open the channel on the connection's present state, and set up again whatever was set up before.

        Args:
            set_up_topology: declare and bind, too.

        Raises:
            pika.exceptions.AMQPError: the connection was lost meanwhile.
            MqtoolError: the broker refuses something.
        """
        self._requests.open()
        if set_up_topology:
            self._set_up_topology()
        if self._confirming:
            self._start_confirming(connection_is_new)
        for consumer in self._consumers:
            consumer.subscribe()

    def _set_up_topology(self) -> None:
        for entry in self._journal:
            if isinstance(entry, Binding):
                self._bind(entry)
            elif isinstance(entry, Queue) and entry.exclusive and entry.name.startswith("amq."):
                self._names[entry.name] = self._declare(replace(entry, name="")).name
            else:
                self._declare(entry)

    def lost(self) -> None:
        """The connection is gone; what is unconfirmed waits for the next one."""
        self._requests.pika = None
        self._publisher.pause(True)

    def blocked(self, is_blocked: bool) -> None:
        """The broker blocks publishers (memory or disk alarm), or lets them go on."""
        self._publisher.pause(is_blocked)

    # Inside.

    def _declare(self, thing: Thing) -> Thing:
        identity = (type(thing), thing.name)
        if identity in self._as_found:  # to declare it would close the channel once more
            try:
                self._requests.make(declaring.declaration(thing, passive=True))
            except exceptions.ChannelClosedByBroker:  # it is gone
                self._as_found.discard(identity)
                self._open_after_refusal()
            else:
                return thing
        try:
            answer = self._requests.make(declaring.declaration(thing, passive=False))
        except exceptions.ChannelClosedByBroker as error:
            if self._strict or not failures.is_harmless_difference(error):
                self._open_after_refusal()
                raise failures.closed_by_broker(error) from error
            self._connection.notice(f"using the one that is there: {failures.closed_by_broker(error)}")
            self._as_found.add(identity)
            self._open_after_refusal()
            answer = self._checked(declaring.declaration(thing, passive=True))
        return replace(thing, name=answer.method.queue) if isinstance(thing, Queue) else thing

    def _bind(self, binding: Binding) -> None:
        self._checked(declaring.binding(replace(binding, queue=self.current_name(binding.queue))))

    def _get(self, queue: str) -> Delivery | None:
        epoch = self.epoch

        got = self._checked(lambda pika, done: pika.basic_get(queue, lambda _channel, *got: done(got)))
        if got is None:
            return None
        method, properties, body = got
        return delivery_from(method, properties, body, queue, epoch)

    def _confirm_select(self) -> None:
        if not self._confirming:
            self._retrying(lambda: self._start_confirming(connection_is_new=False))
            self._confirming = True

    def _start_confirming(self, connection_is_new: bool) -> None:
        opened = self._requests.pika

        def on_confirm(confirm: frame.Method[spec.Basic.Ack | spec.Basic.Nack]) -> None:
            if self._requests.pika is opened:  # one that was left may still have something to say
                self._publisher.on_confirm(confirm)

        self._checked(lambda pika, done: pika.confirm_delivery(on_confirm, callback=done))
        pika, restarted = self._requests.pika, threading.Event()
        if pika is None:
            raise exceptions.ConnectionWrongStateError

        def restart() -> None:
            self._publisher.restart(pika, self._connection.frame_max, connection_is_new)
            restarted.set()

        pika.add_on_return_callback(self._publisher.on_return)
        self._connection.run(restart)
        restarted.wait()

    def _retrying(self, request: Callable[[], Any]) -> Any:
        """Make a request; if the connection is lost meanwhile, make it again on the next one."""
        while True:
            if self.failure:
                raise self.failure
            try:
                return request()
            except CONNECTION_LOST as error:
                self._connection.wait_until_open(error)

    def _checked(self, request: Request) -> Any:
        """Make a request that the broker may refuse by closing the channel: then open it again, and say why."""
        try:
            return self._requests.make(request)
        except exceptions.ChannelClosedByBroker as error:
            self._open_after_refusal()
            raise failures.closed_by_broker(error) from error

    def _open_after_refusal(self) -> None:
        """The broker has refused something and closed the channel for it. What was declared is still there, except what
        goes with its last consumer."""
        self.open(set_up_topology=bool(self._consumers))

    def _acknowledge(self, delivery: Delivery) -> None:
        self._requests.tell(delivery.epoch, lambda pika: pika.basic_ack(delivery.delivery_tag))

    def _send(self, delivery: Delivery, method: Callable[[PikaChannel], None]) -> None:
        """A method without an answer about a delivery."""
        self._connection.run(lambda: self._requests.tell(delivery.epoch, method))

    def _refused_by(self, reason: exceptions.ChannelClosedByBroker) -> None:
        """The broker has closed the channel, and not as the answer to a request. On the I/O thread."""
        failure = failures.closed_by_broker(reason)
        exchanges = [entry.name for entry in self._journal if isinstance(entry, Exchange)]
        if self._connection.comes_back and failures.is_mended_by_reopening(reason, exchanges):
            self.lost()
            threading.Thread(target=self._reopen, args=(failure,), daemon=True).start()
        else:
            self.refused = True
            self.fail(failure)

    def _reopen(self, why: MqtoolError) -> None:
        """Open the channel again on the same connection. On a thread of its own."""
        self._connection.notice(f"the broker closed the channel: {why}" + (f" ({why.hint})" if why.hint else ""))
        try:
            self.open()
        except exceptions.AMQPError:
            return  # the connection is lost as well, and whoever opens that again opens us too
        except MqtoolError as failure:
            self.fail(failure)
            return
        self._connection.notice("opened the channel again")

    def _open_another(self) -> None:
        """Start to open another channel in place of this one, from any thread."""
        threading.Thread(target=self._leave_for_another, daemon=True).start()

    def _leave_for_another(self) -> None:
        left = self._requests.leave()
        if left is None:
            return  # the connection is lost, and with it the channel: there will be another
        self.lost()
        self._connection.run(lambda: left.close() if left.is_open else None)
        try:
            self.open()
        except exceptions.AMQPError:
            return
        except MqtoolError as failure:
            self.fail(failure)

    def _cancelled_by_broker(self, tag: str) -> None:
        for consumer in list(self._consumers):
            if consumer.is_consumer(tag):
                consumer.on_cancelled_by_broker()
