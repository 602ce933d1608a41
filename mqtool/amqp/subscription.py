"""A consumer's subscription: basic.consume and basic.cancel, acknowledgements, and the position in a stream."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pika import exceptions, spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp.basic_frames import Consumed, TakeLot
from mqtool.amqp.io_thread import CONNECTION_LOST, IoThread
from mqtool.amqp.reopening import ReopeningChannel
from mqtool.message import Delivery
from mqtool.offsets import Offset, Start
from mqtool.topology import Queue


class StreamPlace:
    """The place of a consumer in a stream.

    Args:
        offset: where to start; None is what comes next.
    """

    def __init__(self, offset: Offset | None) -> None:
        self._offset = offset

    def behind(self, delivery: Delivery) -> None:
        """The caller takes a delivery."""
        number = delivery.headers.get("x-stream-offset")
        if isinstance(number, int):
            self._offset = Offset(Start.OFFSET, number + 1)

    def arguments(self) -> dict[str, Any]:
        """Arguments of basic.consume."""
        return {} if self._offset is None else {"x-stream-offset": self._offset.as_argument()}


#: How many deliveries to remember that were acknowledged before an earlier one.
_EARLY = 1000
#: Seconds for which an acknowledgement waits for those that follow it at once.
_MOMENT = 0.002


class Acknowledgements:
    """The acknowledgements of one channel, each of its own delivery.

    Args:
        send: sends some, on the I/O thread.
    """

    def __init__(self, io: IoThread, send: Callable[[Sequence[Delivery]], None]) -> None:
        self._io = io
        self._send = send
        self._waiting: deque[Delivery] = deque()
        self._is_due = self._is_due_now = False

    def add(self, deliveries: Sequence[Delivery], *, more_follow: bool = False) -> None:
        """Acknowledge deliveries. From any thread.

        Args:
            more_follow: the next ones are at hand, and these may wait for them. A quorum queue writes down each
                acknowledgement, and does that for many as quickly as for one.
        """
        self._waiting.extend(deliveries)
        if not more_follow:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._io.run_later(_MOMENT, self._send_all)

    def flush(self) -> None:
        """Send now what waits. From any thread."""
        if self._waiting and not self._is_due_now:
            self._is_due = self._is_due_now = True
            self._io.run(self._send_all)

    def _send_all(self) -> None:
        # Before the last look: what is added from here on is sent by another call.
        self._is_due = self._is_due_now = False
        self._send([self._waiting.popleft() for _ in range(len(self._waiting))])


class Tags:
    """The delivery tags that one opening of a channel has acknowledged: one may stand for all before it."""

    def __init__(self) -> None:
        self._through = 0
        self._early: set[int] = set()

    def acknowledge(self, tags: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Yield what to send: tags, and whether each also stands for all before it."""
        self._early.update(tags)
        while self._through + 1 in self._early:
            self._through += 1
            self._early.discard(self._through)
        # Everything before these is acknowledged, or is among them.
        if together := [tag for tag in tags if tag <= self._through]:
            yield max(together), len(together) > 1
        yield from ((tag, False) for tag in tags if tag > self._through)
        if len(self._early) > _EARLY:  # one is held for long: what follows is acknowledged one by one
            self._early.clear()


class Subscription:
    """Has deliveries of a queue come to a callback.

    Attributes:
        received: deliveries since the channel was opened.
        through: the tag of the last of them.

    Args:
        take: is given deliveries in lots, on the I/O thread.
        place: where to start, in a stream.
    """

    def __init__(
        self, channel: ReopeningChannel, queue: Queue, take: TakeLot, place: StreamPlace | None = None
    ) -> None:
        self._place = place
        self.received = self.through = 0
        self._channel = channel
        self._queue = queue
        self._take = take
        self._tag: str | None = None
        self._is_wanted = False
        self._epoch = 0

    @property
    def is_active(self) -> bool:
        """Whether the broker sends deliveries."""
        return self._tag is not None

    def has(self, tag: str) -> bool:
        """Whether the broker knows it by this consumer tag."""
        return tag == self._tag

    def start(self, prefetch: int, *, auto_ack: bool) -> None:
        """Start to consume.

        Raises:
            MqtoolError: the broker refuses.
            pika.exceptions.AMQPError: the connection is lost.
        """
        if not (self._is_wanted and self._epoch == self._channel.requests.epoch):
            self._consume(prefetch, auto_ack=auto_ack)
            self._is_wanted = True  # not before: a refusal opens the channel anew, which resumes what is wanted
        if self._epoch != self._channel.requests.epoch:
            raise exceptions.ConnectionWrongStateError  # it was opened anew in between, and resumed nothing

    def resume(self, prefetch: int, *, auto_ack: bool) -> None:
        """Consume on a new channel, if it was wanted on the one before."""
        self._tag = None
        self.received = self.through = 0
        if self._is_wanted:
            self._consume(prefetch, auto_ack=auto_ack)
            if not self._is_wanted:  # it was cancelled meanwhile
                self.cancel()

    def cancel(self) -> None:
        """basic.cancel; returns once nothing more can come."""
        self._is_wanted = False
        tag, self._tag = self._tag, None
        if tag is not None:
            self._cancel(tag)

    def _consume(self, prefetch: int, *, auto_ack: bool) -> None:
        epoch = self._channel.requests.epoch
        self._tag, self._epoch = self._tag_of(prefetch, auto_ack=auto_ack), epoch

    def _tag_of(self, prefetch: int, *, auto_ack: bool) -> str:
        name, epoch = self._channel.journal.current_name(self._queue.name), self._channel.requests.epoch
        self._channel.checked(lambda pika, done: pika.basic_qos(prefetch_count=prefetch, callback=done))

        def on_message(
            _pika: PikaChannel, method: Any, properties: Any, body: bytes
        ) -> None:  # what is not cut by hand
            self._took([delivery_from(method, properties, body, name, epoch)])

        def consume(pika: PikaChannel, done: Callable[[Any], None]) -> None:
            arguments = self._place.arguments() if self._place else None
            tag = pika.basic_consume(name, on_message, auto_ack=auto_ack, arguments=arguments, callback=done)
            pika.connection.cutter.add(Consumed(pika.channel_number, tag, name, epoch, self._took))

        return str(self._channel.checked(consume).method.consumer_tag)

    def _took(self, lot: list[Delivery]) -> None:
        self.received += len(lot)
        self.through = lot[-1].delivery_tag
        self._take(lot)

    def _cancel(self, tag: str) -> None:
        def cancel(pika: PikaChannel, done: Callable[[object], None]) -> None:
            if tag in pika.consumer_tags:
                pika.basic_cancel(tag, callback=done)
                pika.connection.cutter.remove(pika.channel_number, tag)  # pika returns what still comes
            else:  # it is of an earlier opening, and pika would never answer
                done(None)

        try:
            self._channel.requests.make(cancel)
        except CONNECTION_LOST:
            return  # which has cancelled it, too


def delivery_from(
    method: spec.Basic.Deliver | spec.Basic.GetOk, properties: spec.BasicProperties, body: bytes, queue: str, epoch: int
) -> Delivery:
    """Translate what pika received."""
    return Delivery(
        body,
        method.exchange,
        method.routing_key,
        queue,
        method.redelivered,
        vars(properties),  # the properties by name as pika has decoded them, without a copy
        method.delivery_tag,
        epoch,
    )
