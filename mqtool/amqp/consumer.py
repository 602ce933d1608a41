"""Consuming: a delivery is acknowledged when the next one is asked for.

Whoever takes deliveries prints one, flushes it, and asks for the next; only that acknowledges it. A reader that dies or
walks away in between leaves it with the broker, which gives it to somebody else.
https://www.rabbitmq.com/docs/confirms#consumer-acknowledgements
"""

import queue as queues
import re
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pika import spec
from pika.channel import Channel as PikaChannel

from mqtool.errors import TimedOut, Unavailable
from mqtool.message import Delivery
from mqtool.topology import Queue

if TYPE_CHECKING:
    from mqtool.amqp.channel import Channel

#: Deliveries on their way or waiting to be taken, where nobody says otherwise: enough to stream at full speed.
PREFETCH = 250
#: Seconds for which an acknowledgement may wait for others, to be sent with them as one, while deliveries come fast.
_ACK_TOGETHER = 0.05
#: Seconds of silence after which nothing more should be on its way: what is, when a consumer is cancelled, the broker
#: gives back to the queue, where it may come behind later messages.
_SILENCE = 2.0
#: From RabbitMQ 4.0 on, a quorum queue drops what has come back 20 times, be it only because somebody had it in advance
#: and left. What has come back so often is taken one by one, although it then comes back behind the others.
_OFTEN = 15


@dataclass(frozen=True, slots=True)
class Receiving:
    """How to consume, and when to stop.

    Attributes:
        prefetch: deliveries that may be unacknowledged at a time; 0 for no limit.
        auto_ack: the broker counts a delivery as acknowledged once it is sent; what we hold is lost with us.
        acknowledge: False leaves it to the caller to settle each delivery, from any thread and in any order; or to
            forget it, for whoever wants to see what happens then.
        count: deliveries after which to stop; exactly so many are taken from the queue.
        idle_timeout: seconds without a delivery. Fewer than count by then is a time-out, else a normal end.
        timeout: seconds in all, after which consuming has timed out.
    """

    prefetch: int = PREFETCH
    auto_ack: bool = False
    acknowledge: bool = True
    count: int | None = None
    idle_timeout: float | None = None
    timeout: float | None = None


STREAMING = Receiving()


class Consumer:
    """One basic.consume, and what it brings."""

    def __init__(self, channel: "Channel", queue: Queue, receiving: Receiving) -> None:
        self._channel = channel
        self._queue = queue
        self._receiving = receiving
        count = receiving.count
        # A prefetch limit does not hold back what needs no acknowledgement, so with a count even the automatic
        # acknowledgement is made by hand: otherwise the broker would count as delivered what nobody takes.
        self._auto_ack = receiving.auto_ack and count is None
        # With a count, deliveries come one by one; or, where that would be slow, up to a wide prefetch ahead, with as
        # many acknowledgements withheld at the end as would make room for deliveries beyond the count.
        wide = receiving.prefetch or PREFETCH
        self._may_ack = None if count is None else count - wide if wide >= PREFETCH and count > wide else 0
        self._prefetch = 1 if self._may_ack == 0 else receiving.prefetch if count is None else wide
        if count is not None and not receiving.acknowledge:
            # Nothing will make room for more, so the count itself can be the limit.
            self._prefetch = min(receiving.prefetch or count, count)
        is_ours = count is None and receiving.acknowledge and not self._auto_ack and self._prefetch == PREFETCH
        self._cautious = is_ours and _limits_deliveries(queue, channel.connection.broker)
        self._inbox: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()
        self._tag: str | None = None
        self._extra = 0
        self._extra_tag: str | None = None
        self._stopping = False
        self._to_ack: Delivery | None = None
        self._to_ack_count = 0
        self._last_ack = 0.0
        self._subscribing = threading.RLock()
        self._epoch = self._received = self._settled_by_caller = 0

    # The caller's side.

    def subscribe(self) -> None:
        """Start to consume; also after the channel was opened again. Blocks until the broker has agreed.

        Raises:
            MqtoolError: the broker refuses.
        """
        name = self._channel.current_name(self._queue.name)
        epoch = self._channel.epoch
        if epoch != self._epoch:
            self._epoch, self._received = epoch, self._settled_by_caller  # what was in hand comes again

        self._extra_tag = None
        prefetch = 1 if self._cautious else self._prefetch
        self._tag = self._channel.start_consuming(name, prefetch, self._auto_ack, self._on_message(name))
        self._start_extra()

    def _on_message(self, name: str) -> "DeliveryCallback":
        epoch = self._channel.epoch

        def on_message(
            _channel: PikaChannel, method: spec.Basic.Deliver, properties: spec.BasicProperties, body: bytes
        ) -> None:
            self._received += 1
            self._inbox.put(delivery_from(method, properties, body, name, epoch))

        return on_message

    def stop(self) -> None:
        """End the deliveries after the one in hand. May be called from any thread, and from a signal handler."""
        self._stopping = True
        self._inbox.put(None)

    @property
    def is_endless(self) -> bool:
        """Whether there is no count to keep to."""
        return self._receiving.count is None

    def wake(self) -> None:
        """Have the caller look at what has become of the channel. From any thread."""
        self._inbox.put(None)

    def is_consumer(self, tag: str) -> bool:
        """Whether the broker knows this consumer by that tag."""
        return tag in (self._tag, self._extra_tag)

    def on_cancelled_by_broker(self) -> None:
        """Basic.cancel from the broker: the queue was deleted, or its node has gone. On the I/O thread."""
        self._tag = None
        self._channel.fail(
            Unavailable(
                f"the broker cancelled the consumer: queue {self._queue.name!r} was deleted, or is gone with its node",
                "what was not acknowledged yet is gone with it",
            )
        )

    def deliveries(self) -> Generator[Delivery]:
        """Take deliveries, one by one, until a limit, stop(), or the end of the channel.

        Raises:
            TimedOut: a time limit has passed.
            Unavailable: the queue has vanished.
            MqtoolError: whatever else has closed the channel.
        """
        count, taken, started = self._receiving.count, 0, time.monotonic()
        try:
            while taken != count:
                delivery = self._next(taken, started)
                if delivery is None:
                    return
                taken += 1
                if self._cautious and delivery.headers.get("x-delivery-count", 0) < _OFTEN:
                    self._widen()
                if taken == count:
                    self._cancel()  # before its acknowledgement makes room for another
                yield delivery
                self._settled(delivery)
        finally:
            if self._stopping and not self._receiving.acknowledge and self._channel.failure is None:
                self._cancel()  # before the caller settles the last
            # What else has come stays unacknowledged, and goes back to the queue, in order, when the channel closes.
            self.flush(leaving=True)
            self._channel.forget(self)

    def _next(self, taken: int, started: float) -> Delivery | None:
        """The next delivery; None at the end."""
        while True:
            try:
                delivery = self._inbox.get_nowait()
            except queues.Empty:
                self.flush()
                delivery = self._wait(taken, started)
            if self._stopping and not self._auto_ack:
                return None
            if delivery is not None:
                if delivery.epoch == self._channel.epoch or self._auto_ack or self._queue.exclusive:
                    return delivery
                continue  # it came before the connection was lost, so the broker brings it again
            if self._channel.failure:
                raise self._channel.failure
            if self._stopping and self._inbox.empty():
                return None

    def _wait(self, taken: int, started: float) -> Delivery | None:
        limits = self._receiving
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            if self._to_ack is not None and now >= idle_since + _SILENCE:
                self._narrow()
            if limits.timeout is not None and now >= started + limits.timeout:
                raise TimedOut(f"timed out after {limits.timeout:g} s, with {taken:,} received")
            if not self._channel.is_open:
                idle_since = now  # silence while there is no connection says nothing about the queue
            if limits.idle_timeout is not None and now >= idle_since + limits.idle_timeout:
                if limits.count is not None:
                    raise TimedOut(
                        f"nothing came for {limits.idle_timeout:g} s, with {taken:,} of {limits.count:,} received"
                    )
                self._stopping = True
                return None
            ends = [started + limits.timeout] if limits.timeout is not None else []
            ends += [idle_since + limits.idle_timeout] if limits.idle_timeout is not None else []
            ends += [idle_since + _SILENCE] if self._to_ack is not None else []
            try:
                return self._inbox.get(timeout=max(0.0, min(ends) - now) if ends else None)
            except queues.Empty:
                continue

    def on_settling(self, delivery: Delivery) -> None:
        """A delivery is about to be settled: make sure that its place is not given to one that nobody will take."""
        with self._subscribing:
            if self._stopping:
                self._cancel()
            elif self._receiving.count is not None and not self._receiving.acknowledge and self._tag is not None:
                self._settled_by_caller += delivery.epoch == self._channel.epoch
                self._keep_to_count(self._receiving.count)

    def take_in_advance(self, extra: int) -> None:
        """Have so many deliveries more than the prefetch at a time; 0 ends that. From any thread.

        The broker holds a consumer to the prefetch that it began with, and what is on its way to one that is cancelled
        comes again, marked redelivered: so a second consumer takes the extra ones.
        """
        with self._subscribing:
            if self._tag is None or self._stopping or self._receiving.count is not None:
                return  # a count has its own needs
            if self._extra_tag is not None:
                self._channel.stop_consuming(self._extra_tag)
            self._extra, self._extra_tag = extra, None
            self._start_extra()

    def _start_extra(self) -> None:
        if self._extra:
            name = self._channel.current_name(self._queue.name)
            self._extra_tag = self._channel.start_consuming(name, self._extra, False, self._on_message(name))

    def _keep_to_count(self, count: int) -> None:
        """Where the caller settles: never let the broker send more than the count; the last few come one by one."""
        if self._prefetch > 1 and self._settled_by_caller + self._prefetch > count:
            self._cancel()
            if self._received < count:
                self._prefetch = 1
                self._channel.resubscribe(self)
        elif self._received >= count:
            self._cancel()

    def _cancel(self) -> None:
        with self._subscribing:
            tags, self._tag, self._extra_tag = (self._tag, self._extra_tag), None, None
            for tag in tags:
                if tag is not None:
                    self._channel.stop_consuming(tag)

    def _widen(self) -> None:
        """The message in hand, the only one so far, has not come back often: take more in advance."""
        self._cautious = False
        self._cancel()
        if self._tag is None:  # else the channel has been opened again meanwhile
            self._channel.resubscribe(self)

    def _narrow(self) -> None:
        """Nothing more comes for now, and acknowledgements are withheld: send them, and go on one by one."""
        self._cancel()
        self._prefetch = 1
        self.flush()
        self._channel.resubscribe(self)

    def _settled(self, delivery: Delivery) -> None:
        if delivery.settled or self._auto_ack or not self._receiving.acknowledge:
            return
        delivery.settled = True
        self.on_settling(delivery)
        self._to_ack = delivery
        self._to_ack_count += 1
        now = time.monotonic()
        is_all_for_now = self._to_ack_count == self._may_ack
        if is_all_for_now or self._to_ack_count * 4 >= self._prefetch > 0 or now - self._last_ack > _ACK_TOGETHER:
            self._last_ack = now
            self.flush()

    def flush(self, leaving: bool = False) -> None:
        """Send the acknowledgements that wait for others, unless they would bring more deliveries than were asked for.

        Args:
            leaving: nothing more will be taken anyway.
        """
        if self._to_ack is None:
            return
        if self._may_ack is not None and self._prefetch != 1 and self._tag is not None and not leaving:
            if self._to_ack_count > self._may_ack:
                return
            self._may_ack -= self._to_ack_count
        self._channel.acknowledge_up_to(self._to_ack)
        self._to_ack, self._to_ack_count = None, 0


def _limits_deliveries(queue: Queue, broker: str) -> bool:
    """Whether a queue drops what has been delivered too often."""
    is_quorum = queue.arguments.get("x-queue-type") == "quorum"
    return is_quorum and ("x-delivery-limit" in queue.arguments or re.match(r"RabbitMQ (?!3\.)", broker) is not None)


def delivery_from(
    method: spec.Basic.Deliver | spec.Basic.GetOk, properties: spec.BasicProperties, body: bytes, queue: str, epoch: int
) -> Delivery:
    """What pika hands over, in our words."""
    return Delivery(
        body,
        _text(method.exchange),
        _text(method.routing_key),
        queue,
        method.redelivered,
        vars(properties),  # the properties by name as pika has decoded them, without a copy
        method.delivery_tag,
        epoch,
    )


def _text(name: str | bytes) -> str:
    """A name; pika leaves it as bytes where it is not UTF-8."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


DeliveryCallback = Callable[[PikaChannel, spec.Basic.Deliver, spec.BasicProperties, bytes], None]
