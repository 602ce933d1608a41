"""Consuming: a delivery is acknowledged when the next one is asked for.

Whoever takes deliveries prints one, flushes it, and asks for the next; only that acknowledges it. A reader that dies or
walks away in between leaves it with the broker, which gives it to another consumer.
https://www.rabbitmq.com/docs/confirms#consumer-acknowledgements
"""

import queue as queues
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable

from mqtool.amqp.consume_policies import Buffer, Policy, Receiving, Step
from mqtool.amqp.io_thread import LOOK_UP
from mqtool.amqp.reopening import ChannelListener, ReopeningChannel
from mqtool.amqp.subscription import StreamPosition, Subscription
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import Delivery
from mqtool.topology import Queue

#: Seconds of silence after which nothing more should be on its way. What is on its way to a consumer that is cancelled
#: goes back to the queue, where it may come behind later messages.
_SILENCE = 2.0


class Consumer(ChannelListener):
    """Takes deliveries of a queue, as its policy says.

    Args:
        position: where to start, in a stream.
        on_end: called when no more deliveries will be taken.
    """

    consumes = True

    def __init__(
        self,
        channel: ReopeningChannel,
        queue: Queue,
        receiving: Receiving,
        policy: Policy,
        position: StreamPosition | None,
        *,
        on_end: Callable[["Consumer"], None],
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._receiving = receiving
        self._policy = policy
        self._on_end = on_end
        self._inbox: Buffer | queues.SimpleQueue[list[Delivery] | None] = receiving.buffer or queues.SimpleQueue()
        self._lot: deque[Delivery] = deque()  # of the inbox, and not taken yet
        self._is_stuck = False
        # What is lost with us is yielded before the end.
        self._yields_all = policy.auto_ack and receiving.buffer is None
        self._position = position
        self._subscription = Subscription(channel, queue, self._inbox.put, position)
        self._stopping = False
        self._subscribing = threading.RLock()

    # The caller's side.

    def start(self) -> None:
        """Start to consume. Blocks until the broker has agreed.

        Raises:
            MqtoolError: the broker refuses.
        """
        self._channel.retrying(lambda: self._subscription.start(self._policy.prefetch, auto_ack=self._policy.auto_ack))

    def stop(self) -> None:
        """End the deliveries after the one in hand. From any thread, and from a signal handler."""
        self._stopping = True
        self._inbox.put(None)

    def deliveries(self) -> Generator[Delivery]:
        """Take deliveries, one by one, until a limit, stop(), or the end of the channel.

        Raises:
            TimedOut: a time limit has passed.
            Unavailable: the queue has vanished.
            MqtoolError: the channel was closed for another reason.
        """
        count, taken, started = self._receiving.count, 0, time.monotonic()
        try:
            while taken != count:
                delivery = self._next(taken, started)
                if delivery is None:
                    return
                taken += 1
                if self._position is not None:
                    self._position.advance(delivery)
                step = self._policy.taken(delivery)
                if step is not Step.GO_ON:
                    self._do(step)
                yield delivery
                self._done(delivery)
        finally:
            if self._stopping and not self._receiving.acknowledge and self._channel.failure is None:
                self._do(Step.CANCEL)  # before the caller acknowledges the last
            # What else has come stays unacknowledged, and goes back to the queue, in order, when the channel closes.
            try:
                self.closing()
            finally:
                self._on_end(self)

    def acknowledging(self, delivery: Delivery) -> None:
        """The caller is about to acknowledge a delivery: give its place to no other that nobody would take."""
        with self._subscribing:
            if self._stopping:
                self._subscription.cancel()
            elif self._subscription.is_active:
                is_current = delivery.epoch == self._channel.requests.epoch
                tag, received = delivery.delivery_tag, self._subscription.received
                self._do(self._policy.acknowledged(tag, received, is_current=is_current))

    def arrives(self, within: float) -> bool:
        """Whether deliveries() can go on at once, with a delivery or to its end, or can within this many seconds."""
        if not self._lot:
            try:
                lot = self._inbox.get(timeout=within) if within else self._inbox.get_nowait()
            except queues.Empty:
                return False
            if lot is None:
                self._inbox.put(None)  # deliveries() knows what it means
                return True
            self._lot.extend(lot)
        return True

    def give_back(self, through: Iterable[Delivery]) -> None:
        """Consume no more, and requeue what is unacknowledged, lot by lot: a quorum queue keeps the order of that.

        Args:
            through: the last delivery of each lot, in order.
        """
        if self._channel.failure is not None:
            return
        self._do(Step.CANCEL)
        for last in through:
            self._requeue(last.epoch, last.delivery_tag)

    # The channel's side.

    def opened(self, *, connection_is_new: bool) -> None:  # noqa: ARG002
        self._policy.opened()
        self._subscription.resume(self._policy.prefetch, auto_ack=self._policy.auto_ack)

    def cancelled(self, tag: str) -> None:
        if self._subscription.has(tag):
            self._channel.fail(
                Unavailable(
                    f"the broker cancelled the consumer: queue {self._queue.name!r} was deleted, or its node is down",
                    "what was not acknowledged yet is gone with it",
                )
            )

    def failed(self, failure: MqtoolError) -> None:  # noqa: ARG002
        self._inbox.put(None)

    def closing(self) -> None:
        self._flush(leaving=True)

    # Inside.

    def _next(self, taken: int, started: float) -> Delivery | None:
        """The next delivery; None at the end."""
        while True:
            if not self._lot and not self._next_lot(taken, started):
                return None
            if self._stopping and not self._yields_all:
                return None
            delivery = self._lot.popleft()
            if delivery.epoch == self._channel.requests.epoch or self._policy.auto_ack or self._queue.exclusive:
                return delivery
            # else it came before the connection was lost, so the broker sends it again

    def _next_lot(self, taken: int, started: float) -> bool:
        """Take deliveries out of the inbox; return False at the end."""
        while not self._lot:
            try:
                lot = self._inbox.get_nowait()
            except queues.Empty:
                self._flush()
                lot = self._wait(taken, started)
            if self._stopping and not self._yields_all:
                return False
            if lot is not None:
                self._lot.extend(lot)
            elif self._channel.failure:
                raise self._channel.failure
            elif self._stopping and self._inbox.empty():
                return False
        return True

    def _wait(self, taken: int, started: float) -> list[Delivery] | None:
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            if self._policy.withholds and now >= idle_since + _SILENCE:
                self._do(self._policy.silence())
            if not self._channel.is_ready:
                idle_since = now  # silence while there is no connection says nothing about the queue
            left = self._receiving.left(taken, now - started, now - idle_since)
            if left == 0:
                self._stopping = True
                return None
            if self._policy.withholds:
                until_release = max(0.0, idle_since + _SILENCE - now)
                left = until_release if left is None else min(left, until_release)
            try:
                # Never without a time-out: Python runs signal handlers only between two steps of the main thread.
                return self._inbox.get(timeout=LOOK_UP if left is None else min(left, LOOK_UP))
            except queues.Empty:
                continue

    def _done(self, delivery: Delivery) -> None:
        if delivery.settled or not self._policy.acknowledges:
            return
        delivery.settled = True
        if self._stopping:
            self._do(Step.CANCEL)
        if self._policy.done(delivery, time.monotonic()):
            self._flush()

    def _do(self, step: Step) -> None:
        if step is Step.GO_ON:
            return
        with self._subscribing:
            self._subscription.cancel()
            if step is Step.RESUBSCRIBE and self._policy.wants_more(
                self._subscription.received, self._subscription.last_tag
            ):
                self._flush()
                self.start()

    def _requeue(self, epoch: int, tag: int) -> None:
        self._channel.requests.send(epoch, lambda pika: pika.basic_nack(tag, multiple=True, requeue=True))

    def _flush(self, *, leaving: bool = False) -> None:
        """Acknowledge what waits to be acknowledged with others, if that brings no more deliveries than asked for."""
        if self._is_stuck:
            return
        self._is_stuck = True  # what could not be handed over is never acknowledged
        self._receiving.before_acknowledging()
        self._is_stuck = False
        if self._policy.auto_ack:
            self._channel.progress()
        delivery = self._policy.release(leaving=leaving)
        if delivery is not None:
            tag = delivery.delivery_tag
            if delivery.epoch == self._channel.requests.epoch and self._channel.is_ready:
                self._channel.progress()
            self._channel.requests.send(delivery.epoch, lambda pika: pika.basic_ack(tag, multiple=True))
