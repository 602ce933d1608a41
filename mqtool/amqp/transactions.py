"""Move messages from one queue to another, in batches.

InTransactions moves each batch completely or not at all: the broker publishes the messages of a transaction
(tx.select), and acknowledges the deliveries in it, when it handles tx.commit. So if the client is killed at any moment,
no message is lost and none is in both queues. If the broker itself is killed, messages may be in both: those of the
batch that it was committing and, in RabbitMQ's classic queues, those of earlier batches, because such a queue writes
acknowledgements to disk later than it accepts them. https://www.rabbitmq.com/docs/semantics#tx

In a transaction, the broker does not report messages that the other queue rejects because it is full: they would be
lost. WithConfirms is for such a queue. It acknowledges each message once the broker has confirmed it in the other
queue. So if the client is killed, no message is lost, but those of one batch may be in both queues.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from pika import spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import administration, pika_private
from mqtool.amqp.channel import Channel
from mqtool.amqp.consumer import Consumer
from mqtool.amqp.publisher import returned_message
from mqtool.amqp.receive_settings import Receiving
from mqtool.amqp.unconfirmed import Route, most_similar
from mqtool.errors import HeadersTooLarge, NotConfirmed, Unavailable
from mqtool.message import CONFIRM_TIMEOUT, Confirmation, Delivery, Message
from mqtool.spelling import counted
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


class Moving(Protocol):
    """A way to move a batch of messages."""

    def move(self, batch: Sequence[Delivery]) -> list[Delivery]:
        """Publish a batch to the other queue, and acknowledge it. Return the deliveries that this queue rejected.

        Raises:
            NotConfirmed: no queue took a message of the batch. These messages are still in their queue. Or the broker
                did not reply in time: then it has moved the whole batch, or will move nothing of it.
            HeadersTooLarge: a message of the batch cannot be published. It and those after it are still in their queue.
        """


class InTransactions:
    """Moves each batch in a transaction. Needs a channel that publishes nothing else.

    Args:
        message_for: returns the message to publish for a delivery.
        restored: returns the message with which to put a delivery back into its queue, if no queue takes a message of
            its batch. For a moment, the messages of this batch are then only in memory. So publish messages to an
            exchange whose alternate exchange leads to a queue.
    """

    def __init__(
        self, channel: Channel, message_for: Callable[[Delivery], Message], restored: Callable[[Delivery], Message]
    ) -> None:
        self._channel = channel
        self._message_for = message_for
        self._restored = restored
        self._returned: list[tuple[Message, str]] = []
        channel.ask(self._select)
        pika = channel.reopening.requests.pika
        if pika is None:
            raise Unavailable("the connection was lost")
        self._writer = pika_private.writer(pika, channel.connection.frame_max)

    def move(self, batch: Sequence[Delivery]) -> list[Delivery]:
        messages, error = _messages_for(batch, self._message_for)
        if messages:
            self._commit(messages, batch[len(messages) - 1])
        if self._returned:
            (_, reason), queue = self._returned[0], batch[0].queue
            left = [batch[number] for number in self._numbers_of_returned(messages)]
            self._returned.clear()
            self._commit([self._restored(delivery) for delivery in left])
            if self._returned:
                raise NotConfirmed(f"{counted(len(left))} of {queue!r} lost: no queue takes them ({reason})")
            raise NotConfirmed(
                f"no queue took messages from {queue!r}: {reason}",
                f"{counted(len(left))} went back to the end of {queue!r}",
            )
        if error is not None:
            raise error
        return []

    def _numbers_of_returned(self, messages: Sequence[Message]) -> list[int]:
        """Return the numbers of the returned messages in a batch; those of all if one cannot be found.

        The others went to an alternate exchange. To put these back as well would double them.
        """
        left = dict(enumerate(messages))
        for message, _ in self._returned:
            found = most_similar(message, ((number, each, Route()) for number, each in left.items()))
            if found is None:
                return list(range(len(messages)))
            del left[found]
        return [number for number in range(len(messages)) if number not in left]

    def _commit(self, messages: Sequence[Message], through: Delivery | None = None) -> None:
        encoded = self._writer.encode(messages, Route(mandatory=True))

        def commit(pika: PikaChannel, done: Callable[[object], None]) -> None:
            self._writer.write([encoded], [] if through is None else [(through.delivery_tag, True)])
            pika.tx_commit(done)

        # RabbitMQ 3.10 never replies if a quorum queue that took a message of the batch is deleted meanwhile.
        self._channel.ask(commit, within=CONFIRM_TIMEOUT)

    def _select(self, pika: PikaChannel, done: Callable[[object], None]) -> None:
        def on_return(
            _channel: PikaChannel, method: spec.Basic.Return, properties: spec.BasicProperties, body: bytes
        ) -> None:
            self._returned.append((returned_message(method, properties, body), str(method.reply_text)))

        pika.add_on_return_callback(on_return)
        pika.tx_select(done)


class WithConfirms:
    """Moves messages to a queue that may reject some of them, and acknowledges those that it confirms."""

    def __init__(self, channel: Channel, message_for: Callable[[Delivery], Message]) -> None:
        self._channel = channel
        self._message_for = message_for

    def move(self, batch: Sequence[Delivery]) -> list[Delivery]:
        rejected, returned = list[Delivery](), ""
        messages, error = _messages_for(batch, self._message_for)
        for receipt in self._channel.publish(messages, mandatory=True):
            delivery = batch[receipt.sequence - 1]
            if receipt.confirmation is Confirmation.CONFIRMED:
                self._channel.acknowledge(delivery)
            elif receipt.confirmation is Confirmation.NACKED:
                rejected.append(delivery)
            else:
                returned = receipt.reason
        if returned:
            queue = batch[0].queue
            raise NotConfirmed(f"no queue took messages from {queue!r}: {returned}", f"they are still in {queue!r}")
        if error is not None:
            raise error
        return rejected


def _messages_for(
    batch: Sequence[Delivery], message_for: Callable[[Delivery], Message]
) -> tuple[list[Message], HeadersTooLarge | None]:
    """Return the messages to publish for a batch, up to one that cannot be published, and the error for this one."""
    messages: list[Message] = []
    for delivery in batch:
        try:
            messages.append(message_for(delivery))
        except HeadersTooLarge as error:
            return messages, error
    return messages, None


class Mover:
    """Moves a queue's messages, in order, until the queue is empty. Needs a channel that nothing else uses.

    Args:
        at_once: the most messages in one batch, and half of the prefetch.
        moving: moves each batch.
        room: returns how many messages fit into the queue that they go to; called before each batch. If others publish
            to this queue meanwhile, it may reject messages; they are published again. None if any number fits.
    """

    def __init__(
        self, channel: Channel, queue: str, at_once: int, moving: Moving, room: Callable[[], int] | None = None
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._at_once = at_once
        self._moving = moving
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
            NotConfirmed: no queue took a message of a batch. The messages of this batch are still in their queue.
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
        rejected = self._moving.move(batch)
        moved = len(batch) - len(rejected)
        self._moved += moved
        self._rejected = [*rejected, *self._rejected]
        self._rejects_since = math.inf if moved else min(self._rejects_since, time.monotonic())
        if time.monotonic() > self._rejects_since + _STALLED:
            raise NoRoom
        return moved
