"""Consumer: receives a queue's deliveries, and acknowledges each when the caller requests the next one.

If the caller dies or stops while handling a delivery, the delivery is unacknowledged, and the broker requeues it for
another consumer.
https://www.rabbitmq.com/docs/confirms#consumer-acknowledgements
"""

import contextlib
import queue as queues
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

from pika import exceptions

from mqtool.amqp import pika_errors
from mqtool.amqp.administration import declare_request
from mqtool.amqp.consume_policies import ConsumePolicy, Step
from mqtool.amqp.io_thread import CHECK_INTERVAL
from mqtool.amqp.receive_settings import Receiving
from mqtool.amqp.reopening_channel import ChannelListener, ReopeningChannel
from mqtool.amqp.subscription import Buffer, Subscription
from mqtool.errors import InternalError, MqtoolError, StoppedWaiting, TimedOut, Unavailable
from mqtool.message import Delivery
from mqtool.offsets import StreamPosition
from mqtool.spelling import pasteable
from mqtool.topology import Queue

#: What a command says after a reconnection if its queue was exclusive.
TEMPORARY_QUEUE_LOST = (
    "the temporary queue was deleted with the connection: messages that waited in it, or were published since then, "
    "are lost"
)
#: Seconds without a delivery after which none should be in transit.
_SILENCE = 2.0
#: Seconds to wait for deliveries in transit.
_PATIENCE = 1.5
#: Seconds between two checks whether deliveries are in transit.
_LOOK = 0.002


class Consumer(ChannelListener):
    """Receives the deliveries of one queue. Its policy decides how many at a time, and when to acknowledge them.

    Args:
        position: where to start in a stream; None if the queue is not a stream.
        send_answers: sends the replies and acknowledgements of Channel.answer() that still wait for others.
        on_end: called when deliveries() ends.
    """

    consumes = True

    def __init__(
        self,
        channel: ReopeningChannel,
        queue: Queue,
        receiving: Receiving,
        policy: ConsumePolicy,
        position: StreamPosition | None,
        *,
        send_answers: Callable[[], None],
        on_end: Callable[["Consumer"], None],
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._receiving = receiving
        self._policy = policy
        self._send_answers = send_answers
        self._on_end = on_end
        self._inbox: Buffer | queues.SimpleQueue[list[Delivery] | None] = receiving.buffer or queues.SimpleQueue()
        self._batch: deque[Delivery] = deque()  # taken from the inbox, but not yielded yet
        self._is_stuck = False
        self._latest: Delivery | None = None  # of those that were yielded
        # Since the channel was opened. The policy counts those that are acknowledged out of order.
        self._yielded = self._acknowledged = 0
        # Acknowledged on delivery: what is not yielded before the end is lost.
        self._yields_all = policy.auto_ack and receiving.buffer is None
        self._position = position
        self._subscription = Subscription(channel, queue, self._inbox.put, position)
        self._stopping = self._is_late = self._is_cancelled = self._has_told_timeout = False
        self._taken_back = (0, 0)  # the epoch and last delivery tag of the latest consumer that the broker cancelled
        self._subscribing = threading.RLock()

    # For the caller.

    def start(self) -> None:
        """Start consuming. Blocks until the broker replies with basic.consume-ok.

        Raises:
            MqtoolError: the broker refuses to start the consumer.
        """
        self._channel.retrying(lambda: self._subscription.start(self._policy.prefetch, auto_ack=self._policy.auto_ack))

    def stop(self) -> None:
        """End deliveries() early. Safe to call from any thread or a signal handler."""
        self._stopping = True
        self._inbox.put(None)

    def deliveries(self) -> Generator[Delivery]:
        """Yield deliveries until a limit is reached, stop() is called, or the channel is closed.

        With auto_ack and without a buffer, deliveries that arrived before stop() took effect, or the time was up, are
        still yielded.

        Raises:
            TimedOut: a time limit has passed.
            Unavailable: the queue was deleted.
            MqtoolError: the channel was closed for another reason.
        """
        count, taken, started = self._receiving.count, 0, time.monotonic()
        try:
            while taken != count:
                delivery = self._next(taken, started)
                if delivery is None and self._is_late:
                    raise self._receiving.timed_out(taken)
                if delivery is None:
                    return
                taken += 1
                self._latest = delivery
                self._yielded += 1
                if self._position is not None and isinstance(at := delivery.headers.get("x-stream-offset"), int):
                    self._position.advance(at)
                step = self._policy.taken(delivery)
                if step is not Step.GO_ON:
                    self._do(step)
                yield delivery
                self._done(delivery)
        except TimedOut:
            self._stopping = True
            raise
        finally:
            if self._stopping and not self._receiving.acknowledge and self._channel.failure is None:
                self._do(Step.CANCEL)  # before the caller acknowledges the last delivery
            # Deliveries that were not yielded are requeued when the channel closes.
            try:
                self.closing()
            finally:
                self._on_end(self)

    def acknowledging(self, delivery: Delivery) -> None:
        """Called before an acknowledgement: stop consuming if the broker would otherwise send too many deliveries."""
        with self._subscribing:
            if self._stopping:
                self._do(Step.CANCEL)
            elif self._subscription.is_active:
                is_current = delivery.epoch == self._channel.requests.epoch
                tag, received = delivery.delivery_tag, self._subscription.received
                self._do(self._policy.acknowledged(tag, received, is_current=is_current))
            if delivery is self._latest:  # it may belong to another consumer of the channel
                self._acknowledged = self._yielded

    def arrives(self, within: float) -> bool:
        """Wait up to `within` seconds; return True as soon as deliveries() would yield, or end, without waiting."""
        if not self._batch:
            self._consume_again()
            try:
                batch = self._inbox.get(timeout=within) if within else self._inbox.get_nowait()
            except queues.Empty:
                return False
            if batch is None:
                self._inbox.put(None)  # makes deliveries() end
                return True
            self._batch.extend(batch)
        return True

    def arrived(self) -> Iterator[Delivery]:
        """Yield the deliveries that have arrived but were not yielded, even after stop()."""
        while self._batch or not self._inbox.empty():
            if not self._batch:
                self._batch.extend(self._inbox.get_nowait() or ())
                continue
            delivery = self._batch.popleft()
            if delivery.epoch == self._channel.requests.epoch:
                yield delivery

    def has_lost(self, delivery: Delivery) -> bool:
        """True if the broker has cancelled the consumer since this delivery, and may deliver the message again."""
        epoch, through = self._taken_back
        is_own = delivery.queue == self._channel.journal.current_name(self._queue.name)
        return is_own and delivery.epoch == epoch and delivery.delivery_tag <= through

    @property
    def received(self) -> int:
        """The number of deliveries since the channel was opened."""
        return self._subscription.received

    def cancel(self) -> None:
        """Stop consuming. Deliveries that arrived earlier are still yielded: ask arrives() before each."""
        self._do(Step.CANCEL)

    def give_back(self, through: Iterable[Delivery]) -> None:
        """Stop consuming, and requeue unacknowledged deliveries batch by batch, so that a quorum queue keeps the order.

        Args:
            through: the last delivery of each batch, in order.
        """
        if self._channel.failure is not None:
            return
        self._do(Step.CANCEL)
        for last in through:
            self._channel.requests.requeue(last.epoch, last.delivery_tag)

    # The channel's side.

    def opened(self, *, connection_is_new: bool) -> None:
        self._policy.opened()
        self._yielded = self._acknowledged = 0
        self._subscription.resume(self._policy.prefetch, auto_ack=self._policy.auto_ack)
        if self._receiving.after_reopening is not None:
            self._inbox.put([])  # wakes the caller's thread, which may block, unlike this one
        elif connection_is_new and self._queue.exclusive:
            self._channel.notice(TEMPORARY_QUEUE_LOST)

    def cancelled(self, tag: str) -> None:
        if self._subscription.has(tag):
            self._taken_back = self._channel.requests.epoch, self._subscription.last_tag
            self._subscription.cancelled()
            self._is_cancelled = True  # the caller's thread consumes again, unlike this one it may block

    def failed(self, failure: MqtoolError) -> None:  # noqa: ARG002
        self._inbox.put(None)

    def closing(self) -> None:
        self._flush(leaving=True)
        self._wait_for_transit()

    def _next(self, taken: int, started: float) -> Delivery | None:
        if self._receiving.timeout is not None:
            self._check_time(taken, started)
        while True:
            if not self._batch and not self._next_batch(taken, started):
                return None
            if self._stopping and not self._yields_all:
                return None
            delivery = self._batch.popleft()
            if delivery.epoch == self._channel.requests.epoch or self._policy.auto_ack or self._queue.exclusive:
                return delivery
            # else it arrived before the connection was lost, and the broker redelivers it

    def _check_time(self, taken: int, started: float) -> None:
        """Raise TimedOut if the time is up, even if more has arrived, unless that would be lost."""
        if self._stopping or not self._receiving.is_over(time.monotonic() - started):
            return
        if not self._yields_all:
            raise self._receiving.timed_out(taken)
        self._stopping = self._is_late = True

    def _next_batch(self, taken: int, started: float) -> bool:
        """Wait for deliveries, and move them from the inbox to `_batch`; return False when consuming ends."""
        while not self._batch:
            try:
                batch = self._inbox.get_nowait()
            except queues.Empty:
                if self._takes_rest():
                    continue
                if self._stopping:
                    return False
                self._flush()
                batch = self._wait(taken, started)
            if self._stopping and not self._yields_all:
                return False
            self._takes_rest()
            if batch == [] and self._receiving.after_reopening is not None:
                self._receiving.after_reopening(self._channel.journal.current_name(self._queue.name))
            elif batch is not None:
                self._batch.extend(batch)
            elif (failure := self._channel.failure) is not None:
                raise self._explained(failure)
        return True

    def _takes_rest(self) -> bool:
        """Cancel a consumer that must stop but has to yield all that the broker sends; return True if it did so."""
        is_due = self._stopping and self._yields_all and self._subscription.is_active and self._channel.failure is None
        if is_due:
            with self._subscribing:
                self._subscription.cancel(takes_rest=True)
        return is_due

    def _explained(self, failure: MqtoolError) -> MqtoolError:
        if failure.hint is None and isinstance(failure, InternalError):
            failure.hint = pika_errors.undeliverable(self._queue.name)
            if self._position is not None:
                failure.hint = (
                    "RabbitMQ cannot deliver a stream's messages of bare bytes over AMQP; "
                    f"read them with: {pasteable('receive-stream --queue=', self._queue.name)}"
                )
        return failure

    def _wait(self, taken: int, started: float) -> list[Delivery] | None:
        idle_since = time.monotonic()
        while True:
            self._consume_again()
            now = time.monotonic()
            if self._policy.withholds and now >= idle_since + _SILENCE:
                self._do(self._policy.silence())
            if not self._channel.is_ready:
                idle_since = now  # without a connection, nothing can arrive
            left = self._receiving.left(taken, now - started, now - idle_since)
            # A delivery may arrive while the broker is asked.
            if self._channel.is_ready and self._receiving.is_finished() and self._inbox.empty():
                left = 0
            if left == 0:
                self._stopping = True
                return None
            try:
                # Never without a time-out: Python runs signal handlers only between two steps of the main thread.
                return self._inbox.get(timeout=CHECK_INTERVAL if left is None else min(left, CHECK_INTERVAL))
            except queues.Empty:
                continue

    def _consume_again(self) -> None:
        """If the broker has cancelled the consumer, consume again, unless the queue is gone.

        Only once the caller wants more, so that it does not get a message again while it still handles it. RabbitMQ 4.3
        has requeued what was not acknowledged within the consumer timeout, and ignores late acknowledgements.

        Raises:
            Unavailable: the queue was deleted, or its node is down.
        """
        if not self._is_cancelled or self._stopping:
            return
        name = self._channel.journal.current_name(self._queue.name)
        try:
            self._channel.requests.make(declare_request(Queue(name), passive=True))  # would not declare it again
        except exceptions.ChannelClosedByBroker as error:
            failure = Unavailable(
                f"the broker cancelled the consumer: queue {name!r} was deleted, or its node is down",
                "if it was deleted, messages that were not acknowledged yet are lost with it",
            )
            self._channel.fail(failure)
            raise failure from error
        except exceptions.AMQPError:
            return  # the connection is lost as well: try again once it is open
        if not self._has_told_timeout:
            self._has_told_timeout = True
            self._channel.notice(
                f"the broker cancelled the consumer of queue {name!r}, as RabbitMQ 4.3 does if a message is not "
                "acknowledged within the consumer timeout: it delivers the message again, even if it is acknowledged "
                "later, so its work is done twice; raise x-consumer-timeout, or consumer-timeout in a policy"
            )
        with self._subscribing:
            self.start()
        self._is_cancelled = False

    def _done(self, delivery: Delivery) -> None:
        if delivery.settled or not self._policy.acknowledges:
            return
        delivery.settled = True
        if self._stopping:
            self._do(Step.CANCEL)
        if self._policy.done(delivery, time.monotonic()) or self._receiving.is_output_full():
            self._flush()

    def _do(self, step: Step) -> None:
        if step is Step.GO_ON:
            return
        with self._subscribing:
            if step is Step.CANCEL or not self._policy.acknowledges:  # the others resubscribe with nothing in transit
                self._wait_for_transit()
            self._subscription.cancel()
            if step is not Step.RESUBSCRIBE or self._stopping:
                return
            if self._policy.wants_more(self._subscription.received, self._subscription.last_tag):
                self._flush()
                with contextlib.suppress(StoppedWaiting):  # the caller's acknowledgement comes next
                    self.start()

    def _wait_for_transit(self) -> None:
        """Wait until no delivery is in transit. Acknowledgements bring more deliveries until they are processed.

        When a consumer is cancelled, or its channel is closed (pika cancels it first), RabbitMQ requeues deliveries in
        transit at once, and the others only later. A quorum queue delivers requeued messages in the order in which they
        were requeued, so those in transit would be before earlier messages.
        """
        if not (self._subscription.is_active and self._may_get_more()):
            return
        self._send_answers()
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(MqtoolError, exceptions.AMQPError):
            while (left := deadline - time.monotonic()) > 0 and self._is_ready(left) and self._may_get_more():
                time.sleep(_LOOK)

    def _may_get_more(self) -> bool:
        """True unless the prefetch is used up, nothing was received, or the queue is a stream."""
        if self._latest is not None and "x-stream-offset" in self._latest.headers:  # a stream requeues nothing
            return False
        return self._policy.may_get_more(self._subscription.received, self._acknowledged)

    def _is_ready(self, within: float) -> bool:
        """True if the queue has ready messages. See administration.ready_after_deliveries()."""
        request = declare_request(Queue(self._channel.journal.current_name(self._queue.name)), passive=True)
        return any(self._channel.requests.make(request, within).method.message_count for _ in range(2))

    def _flush(self, *, leaving: bool = False) -> None:
        """Flush the output, then acknowledge handled deliveries, except those that the policy holds back."""
        if not self._is_stuck:
            self._is_stuck = True  # if the output cannot be written, its deliveries are never acknowledged
            self._receiving.before_acknowledging()
            self._is_stuck = False
        if self._policy.auto_ack:
            self._channel.progress()
        delivery = self._policy.release(leaving=leaving, is_written=not self._is_stuck)
        if delivery is not None:
            tag = delivery.delivery_tag
            self._acknowledged = self._yielded - (delivery is not self._latest)
            if delivery.epoch == self._channel.requests.epoch and self._channel.is_ready:
                self._channel.progress()
            self._send_answers()  # a second acknowledgement of their requests, after this one, would close the channel
            self._channel.requests.send(delivery.epoch, lambda pika: pika.basic_ack(tag, multiple=True))
