"""Transactions (tx.select): move messages from one queue to another, in batches that move completely or not at all.

The broker publishes the messages of a transaction, and acknowledges the deliveries in it, when it handles tx.commit. So
if the client is killed at any moment, no message is lost and none is in both queues. If the broker itself is killed,
messages may be in both: those of the batch that it was committing and, in RabbitMQ's classic queues, those of earlier
batches, because such a queue writes acknowledgements to disk later than it accepts them.
https://www.rabbitmq.com/docs/semantics#tx
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_private
from mqtool.amqp.channel import Channel
from mqtool.amqp.consumer import Consumer
from mqtool.amqp.receive_settings import Receiving
from mqtool.amqp.unconfirmed import Route
from mqtool.errors import NotConfirmed, Unavailable
from mqtool.message import Delivery, Message
from mqtool.spelling import counted
from mqtool.topology import Queue

#: Seconds to wait for a delivery before asking the broker whether the queue is empty; and to wait for messages that the
#: queue has but does not deliver.
_MOMENT, _STALLED = 0.05, 15.0
#: Messages that keep coming in are moved as long as their number shrinks to this fraction while others are moved; and
#: how often it may fail to, since the broker may be busy for a while.
_SHRINKS, _IN_VAIN = 0.9, 3
#: The maximum size of the bodies in one transaction, in bytes.
_MAX_SIZE = 16 << 20


class NoRoom(Exception):
    """The queue that the messages go to is full, and rejects others."""


class Mover:
    """Moves a queue's messages, in order, until the queue is empty. Needs a channel that nothing else uses.

    Args:
        at_once: the most messages in one transaction, and half of the prefetch.
        room: returns how many messages fit into the queue that they go to; None for any number. A transaction loses
            those that this queue rejects.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        at_once: int,
        message_for: Callable[[Delivery], Message],
        room: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._at_once = at_once
        self._message_for = message_for
        self._room = room
        self._returned: list[str] = []
        self._moved = 0
        channel.ask(self._select)
        pika = channel.reopening.requests.pika
        if pika is None:
            raise Unavailable("the connection was lost")
        self._writer = pika_private.writer(pika, channel.connection.frame_max)

    def batches(self, stop_flow: Callable[[], None] | None = None) -> Iterator[int]:
        """Move the messages; yield the size of each batch once it is moved.

        Ends when the queue is empty. While messages keep coming in, it ends when their number no longer shrinks.

        Args:
            stop_flow: called once, when the queue is empty or the number of messages no longer shrinks. Messages that
                are published later should not reach the queue; those that did are moved by the same consumer. If it
                were cancelled before that, RabbitMQ would put deliveries in transit at the end of a quorum queue.

        Raises:
            NoRoom: there is no room for the next message, and none was made within 15 s.
            NotConfirmed: no queue took a message of a batch. The messages of this batch are at the end of their queue.
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
            self._move(batch)
            yield len(batch)

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
                self._move(batch)
                yield len(batch)
                left -= len(batch)
                if left <= 0:
                    left = self._left(consumer)
                    if fewest and left <= _SHRINKS * fewest:
                        fewest, in_vain = left, 0
                    elif (in_vain := in_vain + 1) == _IN_VAIN:
                        return
            elif not (ready := self._channel.depth_of(self._queue)):  # all earlier deliveries arrived before this reply
                if not consumer.arrives(0):
                    return
            elif (silence := silence + _MOMENT) > _STALLED:
                raise Unavailable(
                    f"{self._queue!r} has {ready:,} more, but the broker delivers none",
                    "another consumer has a higher priority, or is the single active one",
                )

    def _left(self, consumer: Consumer) -> int:
        """Return the number of messages in the queue and of deliveries that are not moved yet."""
        return self._channel.depth_of(self._queue) + consumer.received - self._moved

    def _batch(self, consumer: Consumer, deliveries: Iterator[Delivery], patience: float) -> list[Delivery]:
        batch: list[Delivery] = []
        size = 0
        at_once = self._at_once_now() if consumer.arrives(patience) else 0
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
        while (room := self._room()) is not None and room <= 0:
            if self._channel.stopping:
                return 0
            if time.monotonic() > deadline:
                raise NoRoom
            time.sleep(_MOMENT)
        return self._at_once if room is None else min(room, self._at_once)

    def _move(self, batch: Sequence[Delivery]) -> None:
        self._commit([self._message_for(delivery) for delivery in batch], batch[-1])
        if self._returned:
            reason, self._returned = self._returned[0], []
            self._commit([_as_it_was(delivery) for delivery in batch])
            raise NotConfirmed(
                f"no queue took messages from {self._queue!r}: {reason}",
                f"{counted(len(batch))} went back to the end of {self._queue!r}",
            )
        self._moved += len(batch)

    def _commit(self, messages: Sequence[Message], through: Delivery | None = None) -> None:
        encoded = self._writer.encode(messages, Route(mandatory=True))

        def commit(pika: PikaChannel, done: Callable[[object], None]) -> None:
            self._writer.write([encoded], [] if through is None else [(through.delivery_tag, True)])
            pika.tx_commit(done)

        self._channel.ask(commit)

    def _select(self, pika: PikaChannel, done: Callable[[object], None]) -> None:
        def on_return(_channel: PikaChannel, method: Any, _properties: Any, _body: bytes) -> None:
            self._returned.append(str(method.reply_text))

        pika.add_on_return_callback(on_return)
        pika.tx_select(done)


def _as_it_was(delivery: Delivery) -> Message:
    properties = {name: value for name, value in delivery.properties.items() if name not in ("message_id", "user_id")}
    return Message(delivery.body, delivery.queue, "", properties, delivery.message_id)
