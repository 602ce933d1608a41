"""Move messages from one queue to another, with at-least-once delivery.

    [a] ── up to 100 unacknowledged ──> chosen? ── yes ──> published to [b], confirmed ──> acknowledged in [a]
                                           │
                                           └─ no ──> held until the end, then requeued in order

A message is removed from the first queue only after the second has confirmed it. So a transfer that is killed loses
nothing, but may leave the messages that were not yet acknowledged in both queues.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mqtool.amqp import Channel, Receiving, administration, pika_errors
from mqtool.amqp.consumer import Consumer
from mqtool.amqp.getter import Getter
from mqtool.channels import AmqpChannel
from mqtool.codecs.field_tables import header_size, largest_payload
from mqtool.errors import MqtoolError, NotConfirmed, Unavailable
from mqtool.message import COPIES, PERSISTENT, QUEUE_HEADERS, Confirmation, Delivery, Message, Receipt, to_publish_again
from mqtool.topology import Queue
from mqtool.work import history

if TYPE_CHECKING:
    from mqtool.work.peeking import OverLimit

#: The maximum number of messages being moved at a time; if the process is killed, they may be in both queues.
AT_ONCE = 100
#: The hint if messages may have been published whose originals are still in the source queue.
RUN_AGAIN = f"run it again to move the rest; up to {AT_ONCE} messages may be in both queues"
#: Seconds without a delivery after which a queue that has messages is considered blocked.
_STALLED = 10.0
#: Seconds to wait for a sign of life from a broker that has not confirmed in time.
_LIFE = 4.0
#: Seconds between checks of a queue that delivers nothing.
_LOOK = 0.1
#: The longest pause for the rate limit, in seconds, so that acknowledgements are sent in between; and the shortest, as
#: shorter pauses are added to the next one.
_PAUSE, _SHORTEST_PAUSE = 0.05, 0.002
#: The number of messages to requeue together: a quorum queue shuffles more than 32, if they were received with
#: basic.get or, on RabbitMQ 3.10, if it has a delivery limit. The number of such batches of a consumer to requeue at
#: once, and seconds to wait until the queue reports them as ready.
_TOGETHER, _BATCHES, _REQUEUED = 25, 16, 1.0
#: Headers that the broker adds to a dead letter. It drops a message whose x-death shows a cycle.
ADDED_BY_BROKER = {"x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
            "x-last-death-exchange", "x-last-death-queue", "x-last-death-reason"}  # fmt: skip
#: CC and BCC are removed because the broker made the copies when the message was first published.
_LEFT_OUT = {*QUEUE_HEADERS, *COPIES}
_OURS = {history.ATTEMPTS, history.LAST_ERROR, history.REASON, history.FIRST_FAILURE, history.QUEUE, history.RETURNS}


class NotMoved(NotConfirmed):
    """The broker returned or rejected a message for the destination queue."""


class Until(NamedTuple):
    """When a transfer ends. By default, it ends when the queue is empty.

    Attributes:
        moved: end after moving this many messages.
        seen: end after receiving this many messages, moved or not.
        idle: end after this many seconds without a message, instead of when the queue is empty.
    """

    moved: int | None = None
    seen: int | None = None
    idle: float | None = None


def move(channel: AmqpChannel, delivery: Delivery, message: Message) -> None:
    """Publish a message that replaces a delivery. The caller then acknowledges the delivery.

    Raises NotMoved if the message is not confirmed; the delivery must then not be acknowledged.
    """
    for receipt in channel.publish([message], mandatory=True):
        if receipt.confirmation is not Confirmation.CONFIRMED:
            raise not_taken(delivery, receipt)


def not_taken(delivery: Delivery, receipt: Receipt) -> NotMoved:
    return NotMoved(
        f"{receipt.message.routing_key!r} did not take {name_of(delivery)}: {receipt.reason}",
        f"it is still in {delivery.queue}",
    )


def failed(delivery: Delivery, error: str, to: str, reason: str | None = None) -> Message:
    """Return the message to publish to the queue `to` after a failure, with its history in its headers.

    Args:
        error: why handling the message failed, in one line.
        reason: why the message is dead-lettered; None for a retry.
    """
    origin = history.origin_of(delivery)
    headers = _without(history.headers_with_origin(delivery, to), ADDED_BY_BROKER | _LEFT_OUT)
    headers |= {
        history.ATTEMPTS: history.attempt_of(delivery),
        history.LAST_ERROR: error,
        history.QUEUE: delivery.queue,
        history.EXCHANGE: origin.exchange,
        history.ROUTING_KEY: origin.routing_key,
    }
    headers.setdefault(history.FIRST_FAILURE, datetime.now(UTC).replace(microsecond=0))
    if reason is not None:
        headers[history.REASON] = reason
        headers.pop(history.RETURNS, None)
        if returns := history.returns_of(delivery):
            headers[history.RETURNS] = returns
    message = _moved(delivery, headers, to)
    return replace(message, properties={**message.properties, "delivery_mode": PERSISTENT})  # survives a restart


def redriven(delivery: Delivery, to: str) -> Message:
    """Return the message to publish to the queue `to` as if it had never failed: attempts are counted from 1 again.

    A header counts how many times it has been moved back.
    """
    headers = _without(history.headers_with_origin(delivery, to), _OURS | ADDED_BY_BROKER | _LEFT_OUT)
    headers[history.RETURNS] = history.next_return(delivery)
    return _moved(delivery, headers, to)


def elsewhere(delivery: Delivery, to: str, user: str, frame_max: int = 0) -> Message:
    """Return the message to publish to the queue `to` of a broker where mqtool is logged in as `user`.

    Headers that name its origin are left out if they do not fit: what a publisher has forged may be shorter.
    """
    properties = to_publish_again(delivery.properties, "message_id")
    if properties.get("user_id") != user:
        properties["user_id"] = None
    message = Message(delivery.body, to, "", properties, delivery.message_id)
    if delivery.headers:
        properties["headers"] = _without(history.headers_with_origin(delivery, to), _LEFT_OUT)
        if history.EXCHANGE in properties["headers"] and not fits(message, frame_max):
            properties["headers"] = _without(properties["headers"], {history.EXCHANGE, history.ROUTING_KEY})
    return message


def fits(message: Message, frame_max: int) -> bool:
    """True if the headers and properties of a message fit into one frame; 0 for AMQP's largest."""
    return size_of_headers(message) <= largest_payload(frame_max)


def size_of_headers(message: Message) -> int:
    """Return the bytes that a message's headers and properties take in their frame."""
    return header_size({**message.properties, "message_id": message.message_id})


def stays(delivery: Delivery, message: Message, frame_max: int) -> str | None:
    """Explain why a delivery stays in its queue if the message that replaces it does not fit; None if it fits."""
    if fits(message, frame_max):
        return None
    why = pika_errors.headers_too_large(size_of_headers(message), largest_payload(frame_max))
    return f"{name_of(delivery)} stays in {delivery.queue!r}: {why}"


def _moved(delivery: Delivery, headers: Mapping[str, Any], to: str) -> Message:
    # The message must not expire in the other queue. The broker rejects another user's id.
    properties = to_publish_again(delivery.properties, "message_id", "expiration", "user_id")
    return Message(delivery.body, to, "", {**properties, "headers": headers or None}, delivery.message_id)


def _without(table: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def name_of(delivery: Delivery) -> str:
    """Return a message's id or, without an id, the start of its body, for notices and errors."""
    body = delivery.body[:120].decode("utf-8", "replace")[:30]  # the rest may be megabytes
    return f"message {delivery.message_id}" if delivery.message_id else f"a message without id ({body!r})"


def _dropped(messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Yield receipts for messages that are dropped instead of published."""
    dropped = (message for message in messages if message is not None)
    return (Receipt(message, Confirmation.CONFIRMED, "", sequence) for sequence, message in enumerate(dropped, 1))


def wait_for(channel: Channel, queue: str, ready: int, patience: float = _REQUEUED) -> bool:
    """Wait until a queue has `ready` messages; give up after `patience` seconds, since consumers may take some."""
    deadline = time.monotonic() + patience
    while channel.depth_of(queue) < ready:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK / 10)
    return True


class QueueTransfer:
    """Moves messages out of a queue. Iterating yields each delivery once its message has been confirmed.

    Attributes:
        queue: the queue's name.
        kept: the number of messages received but not chosen.

    Args:
        source: consumes from the queue; must not reconnect, since the held messages would then be delivered again.
        target: publishes the messages; None drops them.
        message_for: returns the message to publish for a delivery, or None to keep the delivery in the queue.
        until: when to end.
        goes_on: called with the error and the message if the broker did not accept it; returns True to continue.
        per_second: the maximum rate, in messages per second.
        chooses: False if message_for returns None only for a message that cannot be moved.
        gets: use basic.get: the queue may be deleted with its last consumer, and its messages with it.
        over_limit: the messages that the queue drops if they are requeued, if any. Those to be kept are published
            again at the end of the queue. As the end of the connection requeues them, too, the messages are received
            one at a time from the first one of them on.
    """

    def __init__(
        self,
        source: Channel,
        target: Channel | None,
        queue: str,
        message_for: Callable[[Delivery], Message | None],
        *,
        until: Until,
        goes_on: Callable[[NotMoved, Message], bool] = lambda _error, _message: False,
        per_second: float | None = None,
        chooses: bool = True,
        gets: bool = False,
        over_limit: "OverLimit | None" = None,
    ) -> None:
        self.kept = 0
        self._source = source
        self._over_limit = over_limit
        self._is_careful = over_limit is not None  # the first message decides
        self._is_sure = False  # True if the queue has messages over the limit
        self._publish = _dropped if target is None else partial(target.publish, mandatory=True, window=AT_ONCE)
        self.queue = queue
        self._gets = gets
        self._message_for = message_for
        self._until = until
        self._goes_on = goes_on
        self._interval = 0.0 if per_second is None else 1 / per_second
        self._was_requeued = False  # True if the latest delivery was redelivered
        self._refusal: NotMoved | None = None
        self._on_their_way: dict[int, Delivery] = {}  # by Receipt.sequence: receipts may be out of order
        self._confirmed: list[Delivery] = []
        # For each batch of held messages, its last one, and the number of messages held up to it.
        self._batches: list[tuple[Delivery, int]] = []
        self._held = 0  # messages not chosen or not accepted
        self._held_before = 0  # by earlier consumers
        self._last_held: Delivery | None = None
        # If every message is moved, limit the consumer, so that the broker delivers no more than that.
        self._is_limited = until.moved is not None and not chooses
        self._arrived = deque[Delivery]()  # at an earlier consumer, but not handled yet
        self._consumer = self._consume(until.moved if self._is_limited else None)

    def __iter__(self) -> Iterator[Delivery]:
        """Move the messages.

        Raises:
            NotMoved: the broker did not accept a message, and goes_on() returned False. Every message
                published after it was either confirmed or left in the queue.
            MqtoolError: a connection was lost, or the queue was deleted.
        """
        replies = True
        try:
            for receipt in self._publish(self._messages()):
                delivery = self._on_their_way.pop(receipt.sequence)
                if receipt.confirmation is Confirmation.CONFIRMED:
                    self._confirmed.append(delivery)
                    yield delivery
                else:
                    self._refused(delivery, receipt)
        except NotConfirmed:
            replies = self._replies()
            raise
        finally:
            self._settle()
            self._keep_fragile()
            self._source.closing()  # sends the pending acknowledgements, before the rest is requeued
            if replies:  # if not, the broker requeues the rest when the connection ends
                self._give_back()
        if self._refusal is not None:
            raise self._refusal

    def _consume(self, count: int | None = None) -> Consumer | Getter:
        self._end_batch()  # one that two consumers have received may be shuffled
        self._prefetch = 1 if self._is_careful else AT_ONCE
        if self._gets or (self._over_limit is not None and self._is_careful and not self._over_limit.is_single):
            return Getter(self._source, self.queue)
        return self._source.consumer(Queue(self.queue), Receiving(self._prefetch, acknowledge=False, count=count))

    def _adapt(self, delivery: Delivery, seen: int) -> None:
        """Go on with a consumer that fits a message: one at a time if it is lost with the channel, else many."""
        self._is_sure = self._is_sure or self._is_fragile(delivery)
        if self._is_careful == self._is_sure:
            return
        self._is_careful = self._is_sure
        self._consumer.give_back(())
        self._arrived.extend(self._consumer.arrived())
        limit = None if self._until.moved is None or not self._is_limited else self._until.moved - seen + self._held
        self._consumer, self._held_before = self._consume(limit), self._held

    def _messages(self) -> Iterator[Message | None]:
        arriving = self._arriving()
        yield from self._chosen(arriving)
        # A quorum queue delivers requeued messages first, and adds newly requeued ones behind them. To keep the order,
        # receive all messages that were requeued earlier.
        if self._was_requeued and (self._held or not self._is_limited):
            self._until = Until()
            for delivery in arriving:
                if delivery is None:
                    yield None
                    self._settle()
                    continue
                self._hold(delivery)
                if not self._returned(delivery):
                    return

    def _chosen(self, arriving: Iterator[Delivery | None]) -> Iterator[Message | None]:
        chosen, due = 0, time.monotonic()
        for delivery in arriving:
            message = None if delivery is None else self._message_for(delivery)
            if delivery is not None:
                self._was_requeued = self._returned(delivery)
            if delivery is not None and message is None:
                self.kept += 1
                self._hold(delivery)
            elif delivery is not None:
                while (pause := due - time.monotonic()) > _SHORTEST_PAUSE:
                    if self._source.stopping:
                        return
                    self._settle()
                    time.sleep(min(pause, _PAUSE))
                    yield None
                due = max(due, time.monotonic() - _PAUSE) + self._interval
                chosen += 1
                self._on_their_way[chosen] = delivery
                yield message
                while self._is_fragile(delivery) and self._on_their_way:  # with this one in hand, take no other
                    yield None
            else:
                yield None
            self._settle()
            if self._refusal is not None or chosen == self._until.moved:
                return

    def _arriving(self) -> Iterator[Delivery | None]:
        """Yield deliveries; yield None while no delivery is available and published messages are unconfirmed."""
        consumer, deliveries, seen, last = self._consumer, self._consumer.deliveries(), 0, time.monotonic()
        while seen != self._until.seen:
            if consumer is not self._consumer:
                consumer, deliveries = self._consumer, self._consumer.deliveries()
            if self._arrived or consumer.arrives(0):
                delivery = self._arrived.popleft() if self._arrived else next(deliveries, None)
                if delivery is None:
                    return
                seen += 1
                yield delivery
                self._adapt(delivery, seen)
                last = time.monotonic()
            elif self._on_their_way:
                yield None
            elif self._is_used_up():
                self._consumer.give_back(())
                if not self._consumer.arrives(0):
                    self._consumer, self._is_limited, self._held_before = self._consume(), False, self._held
            elif self._is_over(time.monotonic() - last):
                return

    def _replies(self) -> bool:
        """True if the broker of the source replies; if not, each request would wait until heartbeats are missed."""
        try:
            administration.depth(self._source, self.queue, _LIFE)
        except MqtoolError:
            return False
        return True

    def _is_used_up(self) -> bool:
        """True if held messages use up the consumer's prefetch, or part of its limit: the broker may send no more."""
        held = self._held - self._held_before
        return held == self._prefetch or (held > 0 and self._is_limited)

    def _is_over(self, silence: float) -> bool:
        """Wait briefly for a delivery, after `silence` seconds without one; return True if the transfer is over.

        Raises Unavailable if the queue has messages, but the broker has delivered none for some time.
        """
        if self._until.idle is not None:
            patience = self._until.idle - silence
            return patience <= 0 or not self._consumer.arrives(patience)
        ready = administration.ready_after_deliveries(self._source, self.queue)
        if not ready or self._consumer.arrives(_LOOK):
            return not self._consumer.arrives(0)
        if silence > _STALLED:
            raise Unavailable(
                f"{self.queue!r} has {ready:,} more, but the broker delivers none",
                "it is a stream, or another consumer has a higher priority or is the single active one",
            )
        return False

    def _returned(self, delivery: Delivery) -> bool:
        """True if the queue may have delivered the message because it was requeued, before all that were not."""
        return delivery.redelivered and not (self._over_limit is not None and self._over_limit.has(delivery))

    def _is_fragile(self, delivery: Delivery) -> bool:
        return self._over_limit is not None and self._over_limit.is_fragile(delivery)

    def _hold(self, delivery: Delivery) -> None:
        if self._over_limit is not None and self._over_limit.stays(delivery):
            return
        self._held += 1
        if self._last_held is None or delivery.delivery_tag > self._last_held.delivery_tag:
            self._last_held = delivery
        if self._held - (self._batches[-1][1] if self._batches else 0) == _TOGETHER:
            self._end_batch()

    def _end_batch(self) -> None:
        last = self._last_held
        if last is not None and (not self._batches or last.delivery_tag > self._batches[-1][0].delivery_tag):
            self._batches.append((last, self._held))

    def _refused(self, delivery: Delivery, receipt: Receipt) -> None:
        error = not_taken(delivery, receipt)
        self._hold(delivery)
        if self._refusal is None and not self._goes_on(error, receipt.message):
            self._refusal = error

    def _keep_fragile(self) -> None:
        """Publish the messages again that are in hand at the end, and lost if they are requeued: at worst, twice."""
        if self._over_limit is None or not self._source.is_open:
            return
        self._consumer.give_back(())
        for delivery in (*self._on_their_way.values(), *self._arrived, *self._consumer.arrived()):
            self._over_limit.stays(delivery)

    def _give_back(self) -> None:
        """Requeue the held messages in order, a few batches at a time: a quorum queue may reorder more at once."""
        self._consumer.give_back(())
        self._end_batch()
        at_once, ready, given_back, others_take = 1 if self._gets or self._is_careful else _BATCHES, 0, 0, False
        for start in range(0, len(self._batches) if self._source.is_open else 0, at_once):
            others_take = others_take or not wait_for(self._source, self.queue, ready)
            batches = self._batches[start : start + at_once]
            ready = self._source.depth_of(self.queue) + batches[-1][1] - given_back
            given_back = batches[-1][1]
            self._consumer.give_back(last for last, _ in batches)

    def _settle(self) -> None:
        for delivery in self._confirmed:
            self._source.acknowledge(delivery)
        self._confirmed.clear()
