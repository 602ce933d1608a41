"""Publisher publishes messages with confirms, across reconnections; Acknowledgements collects acknowledgements."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pika import frame, spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_private
from mqtool.amqp.basic_frames import returned_message
from mqtool.amqp.io_thread import IoThread
from mqtool.amqp.reopening_channel import ChannelListener, ReopeningChannel
from mqtool.amqp.unconfirmed import WINDOW, MessageWriter, Route, Unconfirmed
from mqtool.errors import MqtoolError
from mqtool.message import Delivery, InBatches, Message, Receipt

if TYPE_CHECKING:
    from mqtool.amqp.connection import Connection

#: The number of a list's messages to publish together: the broker handles them while the next ones are encoded.
_BATCH_SIZE = 256
#: The maximum number of out-of-order acknowledgements to remember.
_EARLY = 1000
#: Seconds that an acknowledgement waits for others that follow immediately.
_MOMENT = 0.002
#: The maximum number of seconds to wait for the I/O thread.
_PATIENCE = 2.0
#: Seconds to wait for confirms if the next message may arrive at any moment: enough to notice that one is overdue.
_GLANCE = 0.0001


class Publisher(ChannelListener):
    """Publishes the messages of one channel, and acknowledges deliveries in the same writes.

    Attributes:
        unconfirmed: the messages that the broker has not confirmed or rejected yet.
        route: the route passed to the latest receipts().
    """

    def __init__(self, channel: ReopeningChannel, connection: "Connection", confirm_timeout: float) -> None:
        self.unconfirmed = Unconfirmed(
            connection.io.run, connection.io.run_later, channel.open_another, lambda: connection.hopeless
        )
        self.route = Route()
        self._channel = channel
        self._connection = connection
        self._confirm_timeout = confirm_timeout
        self._confirming: PikaChannel | None = None
        self._writer: MessageWriter | None = None
        self._writes_on: PikaChannel | None = None

    def receipts(self, messages: Iterable[Message | None], route: Route, window: int) -> Generator[Receipt]:
        """Publish messages, and yield their receipts as Channel.publish() does."""
        self.route = route
        self._start()
        try:
            yield from self._receipts(_batches(messages, window), route, window)
        except MqtoolError:
            yield from self.unconfirmed.collect(out_of_order=True)  # for messages confirmed before the error
            raise

    def add(self, message: Message, *, mandatory: bool = False, waits: bool = True) -> None:
        """Publish a message: if it waits, in the same write as the next acknowledgement."""
        self._start()
        self.unconfirmed.collect()
        if self.unconfirmed.is_full(WINDOW):
            self.unconfirmed.wait(WINDOW // 2, self._confirm_timeout)
        self.unconfirmed.add([message], Route(mandatory=mandatory), waits=waits)

    def _start(self) -> None:
        if self._confirming is None:
            self._channel.listen(self)
            self._channel.retrying(lambda: self._confirm(may_lack_leaders=self._connection.lacks_a_node))

    def _receipts(self, source: Iterator[list[Message]], route: Route, window: int) -> Generator[Receipt]:
        unconfirmed, bad_input, sequence = self.unconfirmed, None, 1
        is_idle = False  # True if there was no message last time, either
        while True:
            try:
                if (batch := next(source, None)) is None:
                    break
                count = self._add(batch, route, sequence)
                sequence += count
            except MqtoolError as error:
                bad_input = error  # the messages before it are still to be confirmed
                break
            if not count:
                unconfirmed.wait(1, self._confirm_timeout, at_most=0.05 if is_idle else _GLANCE)
            elif unconfirmed.is_full(window):
                unconfirmed.wait(max(1, window // 2), self._confirm_timeout)
            is_idle = not count
            if unconfirmed.has_answers:
                yield from unconfirmed.collect()
        while unconfirmed.is_waiting:
            unconfirmed.wait(1, self._confirm_timeout, at_most=0.25)
            yield from unconfirmed.collect()
        if bad_input:
            raise bad_input

    def _add(self, batch: list[Message], route: Route, sequence: int) -> int:
        """Publish a batch, and return its size. If a message cannot be encoded, it and later ones stay in the batch."""
        count = len(batch)
        try:
            if batch:
                self.unconfirmed.add(batch, route, sequence)
        except MqtoolError:
            while len(batch) > 1:
                self.unconfirmed.add(batch[:1], route, sequence + count - len(batch))
                del batch[0]
            raise
        batch.clear()
        return count

    def acknowledge(self, acks: Iterable[tuple[int, bool]]) -> None:
        """Send the messages passed to add(), then basic.ack for (tag, multiple) pairs. Call it on the I/O thread."""
        pika = self._channel.requests.pika
        if pika is not None and pika is self._confirming:
            self.unconfirmed.drain(acks)
            return
        self.unconfirmed.drain()
        if pika is not None:
            self._writer_of(pika).write((), acks)

    # For the channel.

    def opened(self, *, connection_is_new: bool) -> None:
        self._confirm(may_lack_leaders=connection_is_new)

    def paused(self) -> None:
        self.unconfirmed.set_paused(is_paused=True)

    def resumed(self) -> None:
        self.unconfirmed.set_paused(is_paused=False)

    def failed(self, failure: MqtoolError) -> None:
        self.unconfirmed.fail(failure)

    def _writer_of(self, pika: PikaChannel) -> MessageWriter:
        if self._writer is None or pika is not self._writes_on:
            self._writer, self._writes_on = pika_private.writer(pika, self._connection.frame_max), pika
        return self._writer

    def _confirm(self, *, may_lack_leaders: bool) -> None:
        """Put the channel into confirm mode, and publish again the messages unconfirmed on the previous channel."""

        def start(pika: PikaChannel, done: Callable[[None], None]) -> None:
            self._select(pika, may_lack_leaders=may_lack_leaders)
            done(None)

        if self._confirming is None or self._confirming is not self._channel.requests.pika:
            self._channel.checked(start)

    def _select(self, pika: PikaChannel, *, may_lack_leaders: bool) -> None:
        def heard(answer: Callable[..., None], tag: int, *, multiple: bool) -> None:
            if self._channel.requests.pika is pika:  # not if it has been replaced in the meantime
                self._channel.progress()
                try:
                    answer(tag, multiple=multiple)
                except MqtoolError as failure:
                    self._channel.fail(failure)

        on_ack, on_nack = (partial(heard, answer) for answer in (self.unconfirmed.on_ack, self.unconfirmed.on_nack))

        def on_answer(answer: "frame.Method[spec.Basic.Ack | spec.Basic.Nack]") -> None:
            on = on_ack if isinstance(answer.method, spec.Basic.Ack) else on_nack
            on(answer.method.delivery_tag, multiple=answer.method.multiple)

        pika.confirm_delivery(on_answer)  # without a callback, the broker sends no reply to wait for
        pika.add_on_return_callback(self._on_return)
        pika_private.take_confirms(pika, on_ack)
        self.unconfirmed.restart(self._writer_of(pika), may_lack_leaders=may_lack_leaders)
        self._confirming = pika

    def _on_return(
        self, _channel: PikaChannel, method: spec.Basic.Return, properties: spec.BasicProperties, body: bytes
    ) -> None:
        reason = f"{method.reply_text} ({method.reply_code})"
        self.unconfirmed.on_return(returned_message(method, properties, body), reason)


def _batches(messages: Iterable[Message | None], window: int) -> Iterator[list[Message]]:
    """Split messages into batches. If the window is small or the input is an iterator, a batch is one message."""
    if isinstance(messages, InBatches) and window == WINDOW:
        return messages.batches()
    if isinstance(messages, list) and window == WINDOW:
        batches = (messages[start : start + _BATCH_SIZE] for start in range(0, len(messages), _BATCH_SIZE))
        return ([message for message in batch if message is not None] for batch in batches)
    return ([] if message is None else [message] for message in messages)


class Acknowledgements:
    """Collects the acknowledgements of one channel, to send many in one write.

    Args:
        send: called with deliveries on the I/O thread, to send their acknowledgements.
    """

    def __init__(self, io: IoThread, send: Callable[[Sequence[Delivery]], None]) -> None:
        self._io = io
        self._send = send
        self._waiting: deque[Delivery] = deque()
        self._is_due = self._is_due_now = False

    def add(self, deliveries: Sequence[Delivery], *, more_follow: bool = False) -> None:
        """Acknowledge deliveries. Safe to call from any thread.

        Args:
            more_follow: wait two milliseconds for more acknowledgements, since more deliveries have arrived.
                A quorum queue writes each basic.ack to disk, so one for many deliveries saves time.
        """
        self._waiting.extend(deliveries)
        if not more_follow:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._io.run_later(_MOMENT, self._send_all)

    def flush(self) -> None:
        """Send pending acknowledgements now. Safe to call from any thread."""
        if self._waiting and not self._is_due_now:
            self._is_due = self._is_due_now = True
            self._io.run(self._send_all)

    def send(self) -> None:
        """Send pending acknowledgements, and return once they are written."""
        self.flush()
        written = threading.Event()
        self._io.run(written.set)
        written.wait(_PATIENCE)

    def _send_all(self) -> None:
        # Before the deque is read: a delivery that is added from here on is sent by another call.
        self._is_due = self._is_due_now = False
        self._send([self._waiting.popleft() for _ in range(len(self._waiting))])


class AcknowledgedTags:
    """Tracks the acknowledged delivery tags of one channel, so that one basic.ack can acknowledge many of them."""

    def __init__(self) -> None:
        self._epoch = self._through = 0
        self._early: set[int] = set()

    def acknowledge(self, tags: Sequence[int], epoch: int = 0) -> Iterator[tuple[int, bool]]:
        """Record acknowledged tags; yield the tags for basic.ack, each with its `multiple` flag.

        Args:
            epoch: the number of times the channel was opened, which restarts its tags.
        """
        if epoch != self._epoch:
            self._epoch, self._through = epoch, 0
            self._early.clear()
        self._early.update(tags)
        while self._through + 1 in self._early:
            self._through += 1
            self._early.discard(self._through)
        # Every tag up to self._through was acknowledged before, or is among `tags`.
        if together := [tag for tag in tags if tag <= self._through]:
            yield max(together), len(together) > 1
        yield from ((tag, False) for tag in tags if tag > self._through)
        if len(self._early) > _EARLY:  # an early delivery is still unacknowledged: send each tag from now on
            self._early.clear()
