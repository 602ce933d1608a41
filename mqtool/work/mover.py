"""Mover moves messages from one queue to another, in batches.

Each message is acknowledged once the broker has confirmed it in the other queue. So if the client or the broker is
killed, no message is lost, but those of one batch may be in both queues. A transaction would not prevent this: if its
client ends just after tx.commit, RabbitMQ 3.10 acknowledges messages of a quorum queue that it does not publish to
another quorum queue. https://www.rabbitmq.com/docs/semantics#tx
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from mqtool.amqp import Channel, Receiving, administration
from mqtool.amqp.consumer import Consumer
from mqtool.errors import NotConfirmed, Unavailable
from mqtool.message import Confirmation, Delivery, Message
from mqtool.topology import Queue

#: Seconds to wait for a delivery before asking the broker whether the queue is empty; and to wait for messages that the
#: queue has but does not deliver.
_MOMENT, _STALLED = 0.05, 15.0
#: Messages that keep coming in are moved as long as their number shrinks to this fraction while others are moved; and
#: how often it may fail to, since the broker may be busy for a while.
_SHRINKS, _IN_VAIN = 0.9, 3
#: The maximum size of the bodies in one batch, in bytes.
_MAX_SIZE = 16 << 20


class NoRoom(Exception):
    """The queue that the messages go to is full, and rejects others."""


class Mover:
    """Moves a queue's messages, in order, until the queue is empty. Needs a channel that nothing else uses.

    Args:
        at_once: the most messages in one batch, and half of the prefetch.
        message_for: returns the message to publish for a delivery, or raises HeadersTooLarge.
        room: returns how many messages fit into the queue that they go to; called before each batch. If others publish
            to this queue meanwhile, it may reject messages; they are published again. None if any number fits.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        at_once: int,
        message_for: Callable[[Delivery], Message],
        room: Callable[[], int] | None = None,
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._at_once = at_once
        self._message_for = message_for
        self._room = room
        self._rejected: list[Delivery] = []
        self._moved = 0
        self._rejects_since = math.inf  # since when the queue that the messages go to has rejected all of them

    def batches(self, stop_flow: Callable[[], None] | None = None) -> Iterator[int]:
        """Move the messages; yield the size of each batch once it is moved.

        Ends when the queue is empty. While messages keep coming in, it ends when their number no longer shrinks.

        Args:
            stop_flow: called once, when the queue is empty or the number of messages no longer shrinks. Messages that
                are published later should not reach the queue; those that did are moved by the same consumer. If it
                were cancelled before that, RabbitMQ would put deliveries in transit at the end of a quorum queue.

        Raises:
            NoRoom: there is no room for the next message, and none was made within 15 s.
            NotConfirmed: no queue took a message, which is still in its queue; or the broker did not confirm in time.
            HeadersTooLarge: a message cannot be published. All messages before it are moved.
            MqtoolError: the connection was lost, or a queue was deleted.
        """
        ready = self._channel.depth_of(self._queue)
        consumer = self._channel.consumer(Queue(self._queue), Receiving(2 * self._at_once, acknowledge=False))
        deliveries = consumer.deliveries()
        yield from self._until_few_are_left(consumer, deliveries, ready)
        if stop_flow is not None and not self._channel.stopping:
            stop_flow()
            yield from self._until_few_are_left(consumer, deliveries, self._left(consumer))
        consumer.cancel()
        while batch := self._batch(consumer, deliveries, 0.0):
            yield self._move(batch)

    def _until_few_are_left(self, consumer: Consumer, deliveries: Iterator[Delivery], left: int) -> Iterator[int]:
        """Move messages until the queue is empty, or until as many keep coming in as are moved.

        Args:
            left: the number of messages in the queue.
        """
        fewest, in_vain, silence = left, 0, 0.0
        while not self._channel.stopping:
            batch = self._batch(consumer, deliveries, _MOMENT)
            if batch:
                silence = 0.0
                moved = self._move(batch)
                yield moved
                left -= moved
                if left <= 0:
                    left = self._left(consumer)
                    if fewest and left <= _SHRINKS * fewest:
                        fewest, in_vain = left, 0
                    elif (in_vain := in_vain + 1) == _IN_VAIN:
                        return
            elif not (ready := administration.ready_after_deliveries(self._channel, self._queue)):
                if not consumer.arrives(0):
                    return
            elif (silence := silence + _MOMENT) > _STALLED:
                raise Unavailable(
                    f"{self._queue!r} has {ready:,} more, but the broker delivers none",
                    "another consumer has a higher priority, or is the single active one",
                )

    def _left(self, consumer: Consumer) -> int:
        """Return the number of messages in the queue and of deliveries that are not moved yet."""
        return administration.ready_after_deliveries(self._channel, self._queue) + consumer.received - self._moved

    def _batch(self, consumer: Consumer, deliveries: Iterator[Delivery], patience: float) -> list[Delivery]:
        at_once = self._at_once_now() if self._rejected or consumer.arrives(patience) else 0
        batch, self._rejected = self._rejected[:at_once], self._rejected[at_once:]
        size = sum(len(delivery.body) for delivery in batch)
        while len(batch) < at_once and size < _MAX_SIZE and consumer.arrives(0):
            delivery = next(deliveries, None)
            if delivery is None:
                break
            batch.append(delivery)
            size += len(delivery.body)
        return batch

    def _at_once_now(self) -> int:
        """Wait for room, and return how many messages to move at once; 0 if the command must stop."""
        deadline = time.monotonic() + _STALLED
        while (room := self._at_once if self._room is None else self._room()) <= 0:
            if self._channel.stopping:
                return 0
            if time.monotonic() > deadline:
                raise NoRoom
            time.sleep(_MOMENT)
        return min(room, self._at_once)

    def _move(self, batch: Sequence[Delivery]) -> int:
        """Move a batch; return how many of its messages were moved."""
        rejected, returned = list[Delivery](), ""
        for receipt in self._channel.publish(map(self._message_for, batch), mandatory=True):
            delivery = batch[receipt.sequence - 1]
            if receipt.confirmation is Confirmation.CONFIRMED:
                self._channel.acknowledge(delivery)
            elif receipt.confirmation is Confirmation.NACKED:
                rejected.append(delivery)
            else:
                returned = receipt.reason
        if returned:
            raise NotConfirmed(
                f"no queue took messages from {self._queue!r}: {returned}", f"they are still in {self._queue!r}"
            )
        moved = len(batch) - len(rejected)
        self._moved += moved
        self._rejected = [*rejected, *self._rejected]
        self._rejects_since = math.inf if moved else min(self._rejects_since, time.monotonic())
        if time.monotonic() > self._rejects_since + _STALLED:
            raise NoRoom
        return moved
