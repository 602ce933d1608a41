"""Publish to a stream, or to the partitions of a super stream: many messages per frame, confirmed by publishing id."""

import queue as queues
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import mmh3

from mqtool.amqp import Channel
from mqtool.errors import DeclaredDifferently, MqtoolError, Unavailable
from mqtool.message import Confirmation, Message, Receipt
from mqtool.streams.rstream_private import CONFIRM, ERROR, METADATA_UPDATE
from mqtool.streams.session import StreamSession, not_confirmed, refusal
from mqtool.topology import Exchange, Queue, Stream

if TYPE_CHECKING:
    from mqtool.streams.stream_channel import StreamChannel

#: The seed of the hash. All clients use the same one, so that a key maps to the same partition in each.
_SEED = 104_729


def is_super_stream(name: str, streams: Sequence[str]) -> bool:
    """True if an exchange's streams are named like those of a super stream. The protocol has no query for this."""
    return bool(streams) and all(stream.startswith(f"{name}-") for stream in streams)


def partition_of(key: str, partitions: int) -> int:
    """Map a routing key to the index of a partition, as RabbitMQ's clients for Java, Go, .NET and Node.js do."""
    return mmh3.hash(key.encode("utf-8", "surrogateescape"), _SEED, signed=False) % partitions


def create_super_stream(channel: Channel, stream: Stream) -> None:
    """Create a super stream over AMQP 0-9-1, which all versions of RabbitMQ support."""
    exchange = Exchange(stream.name, durable=True, arguments={"x-super-stream": True})
    arguments = {"x-queue-type": "stream", **{f"x-{name}": value for name, value in stream.arguments.items()}}
    # Declare the queues first: if one fails, there must be no exchange that looks like a smaller super stream.
    queues = [_partition(channel, Queue(name, durable=True, arguments=arguments)) for name in stream.partitions]
    channel.declare(exchange)
    for order, queue in enumerate(queues):
        channel.bind(queue, exchange, str(order), {"x-stream-partition-order": order})


def _partition(channel: Channel, queue: Queue) -> Queue:
    try:
        return channel.declare(queue, exactly=True)
    except DeclaredDifferently as error:
        raise DeclaredDifferently(
            f"queue {queue.name!r} cannot be a partition: {error}", "name another super stream with -q"
        ) from error


_PUBLISH = 2
_HEAD = struct.Struct(">IHHBI")
_ENTRY = struct.Struct(">QI")
_UNDER_FILTER = struct.Struct(">QH")
_REFUSED = struct.Struct(">QH")
#: The maximum number of messages, and of bytes, in one frame; and the maximum that may be unconfirmed.
_BATCH, _BATCH_SIZE = 500, 1 << 16
_WINDOW, _WINDOW_SIZE = 20_000, 1 << 25


def publish_frame(publisher: int, count: int, entries: Iterable[bytes], version: int = 1) -> bytes:
    """Encode a frame that publishes a number of messages; `entries` are the parts of their encoding."""
    data = b"".join(entries)
    return _HEAD.pack(len(data) + _HEAD.size - 4, _PUBLISH, version, publisher, count) + data


class _Partition:
    """A stream to publish to. `batch` has the encoded parts of the messages for its next frame, `size` bytes."""

    def __init__(self, stream: str, number: int, session: StreamSession) -> None:
        self.stream = stream
        self.number = number
        self.session = session
        self.batch: list[bytes] = []
        self.size = 0

    def flush(self, *, with_filter: bool) -> None:
        """Send the collected messages in one frame."""
        if not self.batch:
            return
        version, pieces = (2, 4) if with_filter else (1, 2)
        data = publish_frame(self.number, len(self.batch) // pieces, self.batch, version)
        self.batch.clear()
        self.size = 0
        self.session.send(data)


class StreamPublisher:
    """Publishes to one stream, or to the partitions of a super stream, chosen by routing key or in turn.

    Args:
        streams: one stream, or the partitions in order.
        patience: seconds to wait for the next confirm.
    """

    def __init__(
        self,
        channel: "StreamChannel",
        streams: Sequence[str],
        patience: float,
        encode: Callable[[Message], bytes],
        filter_value: str | None,
    ) -> None:
        self._channel = channel
        self._streams = streams
        self._patience = patience
        self._encode = encode
        self._filter = None if filter_value is None else filter_value.encode()
        self._outstanding: dict[int, Message] = {}
        self._size = 0
        self._answers: dict[int, str] = {}
        self._sent = self._answered = 0
        self._partitions: list[_Partition] = []
        self._inbox = channel.inbox
        self._is_due = False  # True when it is time to check for confirms
        self._last_answer = time.monotonic()
        self._start()

    @property
    def unconfirmed(self) -> list[Message]:
        return [message for number, message in self._outstanding.items() if self._answers.get(number) != ""]

    def publish(self, messages: Iterable[Message | None]) -> Iterator[Receipt]:
        """Publish messages; see StreamChannel.publish()."""
        try:
            yield from self._published(messages)
        except MqtoolError:
            self._take_late_confirms()
            yield from self._receipts(out_of_order=True)
            raise

    def _published(self, messages: Iterable[Message | None]) -> Iterator[Receipt]:
        for message in messages:
            if message is None:
                self._flush()
                self._look()
            else:
                self._add(message)
                if self._is_due:
                    self._look()
                while self._sent - self._answered >= _WINDOW or self._size >= _WINDOW_SIZE:
                    self._flush()
                    self._wait()
                    yield from self._receipts()
            if self._answers:
                yield from self._receipts()
        self._flush()
        while self._outstanding:
            self._wait()
            yield from self._receipts()

    def _start(self) -> None:
        self._inbox = self._channel.inbox
        sessions = self._channel.sessions_for(self._streams, to_publish=True)
        self._partitions = list(map(_Partition, self._streams, count(), sessions))
        for each in self._partitions:
            each.session.ask(each.session.client.declare_publisher(each.stream, None, each.number), each.stream)
        if self._filter is not None:
            sessions[0].check_version((3, 13), "filters for streams")
        self._last_answer = time.monotonic()

    def _add(self, message: Message) -> None:
        self._sent += 1
        if not self._outstanding:
            self._last_answer = time.monotonic()
        self._outstanding[self._sent] = message
        self._put(self._sent, message)

    def _put(self, number: int, message: Message) -> None:
        partitions = self._partitions
        partition = partitions[0] if len(partitions) == 1 else partitions[self._place(number, message)]
        entry = self._encode(message)
        size = len(entry)
        in_frame = size if self._filter is None else size + len(self._filter)
        frame_max = partition.session.client.frame_max
        if in_frame + 64 > frame_max:
            self._answers[number] = f"it is larger than a frame may be ({frame_max:,} bytes)"
            return
        batch = partition.batch
        if self._filter is None:
            batch.append(_ENTRY.pack(number, size))
        else:
            batch += (_UNDER_FILTER.pack(number, len(self._filter)), self._filter, struct.pack(">I", size))
        batch.append(entry)
        partition.size += in_frame
        self._size += len(message.body)
        if partition.size >= _BATCH_SIZE or len(batch) >= 2 * _BATCH:
            partition.flush(with_filter=self._filter is not None)
            self._is_due = True

    def _place(self, number: int, message: Message) -> int:
        """Return the index of the partition for a message, which stays the same if the message is published again."""
        key = message.routing_key
        return partition_of(key, len(self._partitions)) if key else number % len(self._partitions)

    def _flush(self) -> None:
        for partition in self._partitions:
            partition.flush(with_filter=self._filter is not None)

    def _look(self) -> None:
        """Handle the confirms that have arrived."""
        self._is_due = False
        inbox = self._channel.inbox
        while True:
            try:
                self._take(inbox.get_nowait())
            except queues.Empty:
                return
            if self._channel.inbox is not inbox:
                return

    def _wait(self) -> None:
        if self._answered + 1 in self._answers:
            return
        left = self._last_answer + self._patience - time.monotonic()
        try:
            self._take(self._channel.inbox.get(timeout=max(0.0, left)))
        except queues.Empty:
            raise not_confirmed(len(self._outstanding), self._patience) from None
        self._look()

    def _take(self, frame: bytes | None) -> None:
        if frame is None:
            if self._channel.is_lost:
                self._recover()
            return
        key = int.from_bytes(frame[:2])
        if key == CONFIRM:
            self._confirm(frame)
            self._last_answer = time.monotonic()
        elif key == ERROR:
            self._answer({number: refusal(code) for number, code in _REFUSED.iter_unpack(frame[9:])})
            self._last_answer = time.monotonic()
        elif key == METADATA_UPDATE:
            self._recover()

    def _confirm(self, frame: bytes) -> None:
        self._answer(dict.fromkeys(struct.unpack_from(f">{(len(frame) - 9) // 8}Q", frame, 9), ""))

    def _answer(self, answers: dict[int, str]) -> None:
        if max(answers, default=0) > self._sent:
            self._partitions[0].session.end(ValueError("the answer to a message that was not sent"))
        else:
            self._channel.has_progressed = True
            self._answers.update(answers)

    def _take_late_confirms(self) -> None:
        """Handle the confirms that have arrived after the frame that told that a connection or a stream is lost.

        Errors that follow it are about the loss, and not about the messages.
        """
        with suppress(queues.Empty):
            while True:
                frame = self._inbox.get_nowait()
                if frame is not None and int.from_bytes(frame[:2]) == CONFIRM:
                    self._confirm(frame)

    def _recover(self) -> None:

        def go_on() -> None:
            self._take_late_confirms()
            self._start()
            self._size = 0
            for number, message in self._outstanding.items():
                if number not in self._answers:
                    self._put(number, message)
            self._flush()

        if not self._channel.reopen(go_on):
            raise Unavailable("the connection was lost, and not all messages are confirmed")

    def _receipts(self, *, out_of_order: bool = False) -> Iterator[Receipt]:
        """Yield the receipts of confirmed and rejected messages, in order.

        Args:
            out_of_order: also yield those that wait for the receipt of an earlier message.
        """
        while self._answered + 1 in self._answers:
            self._answered += 1
            yield self._receipt(self._answered)
        if out_of_order:
            for number in [each for each in self._outstanding if each in self._answers]:
                yield self._receipt(number)
        if not self._outstanding:
            self._size = 0

    def _receipt(self, number: int) -> Receipt:
        reason, message = self._answers.pop(number), self._outstanding.pop(number)
        self._size -= len(message.body)
        return Receipt(message, Confirmation.NACKED if reason else Confirmation.CONFIRMED, reason, number)
