"""A consumer's subscription (basic.consume, basic.cancel), and a buffer for slow callers."""

import contextlib
import queue as queues
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pika import exceptions, spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_private
from mqtool.amqp.administration import prefetch_request
from mqtool.amqp.basic_frames import ConsumerFrames, TakeBatch, delivery_from
from mqtool.amqp.io_thread import CONNECTION_LOST
from mqtool.amqp.reopening_channel import ReopeningChannel
from mqtool.errors import NotConfirmed, StoppedWaiting
from mqtool.message import Delivery
from mqtool.offsets import Offset, StreamPosition
from mqtool.topology import Queue

if TYPE_CHECKING:
    from pika.frame import Method

#: The maximum total size of the bodies in a buffer, in bytes.
_MAX_SIZE = 128 << 20
#: Seconds to wait for the rest of the deliveries. If a network no longer works, waiting longer would be in vain.
_PATIENCE = 2.0


class Subscription:
    """Starts a consumer on the broker, resumes it on a new channel, and cancels it.

    Attributes:
        received: the number of deliveries since the channel was opened.
        last_tag: the delivery tag of the latest delivery.

    Args:
        take: called with batches of deliveries, on the I/O thread.
        position: where to start in a stream; None if the queue is not a stream.
    """

    def __init__(
        self, channel: ReopeningChannel, queue: Queue, take: TakeBatch, position: StreamPosition | None = None
    ) -> None:
        self.received = self.last_tag = 0
        self._channel = channel
        self._queue = queue
        self._take = take
        self._position = position
        self._consumer_tag: str | None = None
        self._is_wanted = False
        self._epoch = 0

    @property
    def is_active(self) -> bool:
        """True if the consumer exists on the broker."""
        return self._consumer_tag is not None

    def has(self, consumer_tag: str) -> bool:
        """True if this subscription has the given consumer tag."""
        return consumer_tag == self._consumer_tag

    def start(self, prefetch: int, *, auto_ack: bool) -> None:
        """Start consuming.

        Raises:
            MqtoolError: the broker refuses to start the consumer.
            pika.exceptions.AMQPError: the connection is lost.
        """
        if not (self._is_wanted and self._epoch == self._channel.requests.epoch):
            self._consume(prefetch, auto_ack=auto_ack)
            self._is_wanted = True  # not earlier: after a refusal, the reopened channel would resume it
        if self._epoch != self._channel.requests.epoch:
            raise exceptions.ConnectionWrongStateError  # the channel was reopened, without this consumer

    def resume(self, prefetch: int, *, auto_ack: bool) -> None:
        """Consume on a new channel, if start() was called on the previous one."""
        self._consumer_tag = None
        self.received = self.last_tag = 0
        if self._is_wanted:
            self._consume(prefetch, auto_ack=auto_ack)
            if not self._is_wanted:  # cancelled in the meantime
                self.cancel()

    def cancel(self, *, takes_rest: bool = False) -> None:
        """Send basic.cancel, and return when no more deliveries can arrive, or a stopped command has waited in vain.

        Args:
            takes_rest: take the deliveries that arrive before the broker has cancelled the consumer, because it regards
                them as acknowledged, and wait at most two seconds for that. Otherwise, they are requeued.
        """
        self._is_wanted = False
        tag, self._consumer_tag = self._consumer_tag, None
        if tag is not None:
            self._cancel(tag, takes_rest=takes_rest)

    def cancelled(self) -> None:
        """Record that the broker has cancelled the consumer; start() starts another. Call it on the I/O thread."""
        tag, self._consumer_tag, self._is_wanted = self._consumer_tag, None, False
        if tag is not None and (pika := self._channel.requests.pika) is not None:
            pika_private.leave_deliveries(pika, tag)
            pika_private.cancel_again(pika, tag)

    def _consume(self, prefetch: int, *, auto_ack: bool) -> None:
        epoch = self._channel.requests.epoch
        self._consumer_tag, self._epoch = self._new_consumer(prefetch, auto_ack=auto_ack), epoch

    def _new_consumer(self, prefetch: int, *, auto_ack: bool) -> str:
        name, epoch = self._channel.journal.current_name(self._queue.name), self._channel.requests.epoch
        self._channel.checked(prefetch_request(prefetch))
        start = None if self._position is None else self._position.start()
        offset = start.as_argument() if isinstance(start, Offset) else start
        arguments = None if offset is None else {"x-stream-offset": offset}

        def on_message(_pika: PikaChannel, method: Any, properties: Any, body: bytes) -> None:
            self._took([delivery_from(method, properties, body, name, epoch)])

        def consume(pika: PikaChannel, done: "Callable[[Method[spec.Basic.ConsumeOk]], None]") -> None:
            tag = pika.basic_consume(name, on_message, auto_ack=auto_ack, arguments=arguments, callback=done)
            pika_private.take_deliveries(pika, ConsumerFrames(pika.channel_number, tag, name, epoch, self._took))

        return str(self._channel.checked(consume).method.consumer_tag)

    def _took(self, batch: list[Delivery]) -> None:
        self.received += len(batch)
        self.last_tag = batch[-1].delivery_tag
        self._take(batch)

    def _cancel(self, consumer_tag: str, *, takes_rest: bool) -> None:
        def cancel(pika: PikaChannel, done: Callable[[object], None]) -> None:
            def cancelled(reply: object) -> None:
                pika_private.leave_deliveries(pika, consumer_tag)
                done(reply)

            if consumer_tag not in pika.consumer_tags:  # it was on an earlier channel, so pika would never reply
                done(None)
            elif takes_rest:
                pika.basic_cancel(consumer_tag, callback=cancelled)
            else:
                pika.basic_cancel(consumer_tag, callback=done)
                pika_private.leave_deliveries(pika, consumer_tag)

        try:
            self._channel.requests.make(cancel, within=_PATIENCE if takes_rest else None)
        except CONNECTION_LOST:
            return  # this has cancelled the consumer, too
        except NotConfirmed:
            return  # the rest has not arrived in time
        except StoppedWaiting as stopped:  # the caller acknowledges what it has handled, and then ends
            if not takes_rest:
                self._channel.notice(f"{stopped}; it may redeliver messages")


class Buffer:
    """A queue of batches of deliveries, for a caller that may be slow. Above a limit, the oldest batches are dropped.

    One thread puts batches in and another gets them. Each thread changes only its own counters, so there is no lock.

    Attributes:
        dropped: the number of deliveries dropped.

    Args:
        limit: the number of deliveries to keep. The latest batch is always kept.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self.limit = limit
        self._batches: queues.SimpleQueue[list[Delivery] | None] = queues.SimpleQueue()
        self._in = self._in_size = 0
        self._out = self._out_size = self._dropped_size = 0

    def put(self, batch: list[Delivery] | None) -> None:
        """Add a batch. None wakes up a waiting get(), which then returns None."""
        if batch is None:
            self._batches.put(None)
            return
        self._in += len(batch)
        self._in_size += _size(batch)
        self._batches.put(batch)
        if self._is_full:
            self._drop_before(batch)

    def _drop_before(self, latest: list[Delivery]) -> None:
        kept: list[list[Delivery] | None] = []
        with contextlib.suppress(queues.Empty):  # the other thread was faster
            while self._is_full:
                oldest = self._batches.get_nowait()
                if oldest is None or oldest is latest:
                    kept.append(oldest)
                else:
                    self.dropped += len(oldest)
                    self._dropped_size += _size(oldest)
        for batch in kept:
            self._batches.put(batch)

    @property
    def _is_full(self) -> bool:
        kept, size = self._in - self._out - self.dropped, self._in_size - self._out_size - self._dropped_size
        return kept > self.limit or size > _MAX_SIZE

    def get(self, timeout: float | None = None) -> list[Delivery] | None:
        """Return and remove the oldest batch.

        Raises:
            queue.Empty: none arrived within the timeout, in seconds.
        """
        return self._taken(self._batches.get(timeout=timeout))

    def get_nowait(self) -> list[Delivery] | None:
        """Return and remove the oldest batch, without waiting. Raises queue.Empty if there is none."""
        return self._taken(self._batches.get_nowait())

    def empty(self) -> bool:
        """True if there is no batch."""
        return self._batches.empty()

    def _taken(self, batch: list[Delivery] | None) -> list[Delivery] | None:
        if batch is not None:
            self._out += len(batch)
            self._out_size += _size(batch)
        return batch


def _size(batch: list[Delivery]) -> int:
    return sum(len(delivery.body) for delivery in batch)
