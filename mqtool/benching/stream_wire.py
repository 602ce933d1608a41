"""The stream client's session, on the thread of the process, with one publisher or one subscription. See wire."""

import asyncio
import contextlib
import queue as queues
import selectors
import struct
import sys
import time
from collections.abc import Callable, Iterable

from mqtool.amqp import Address, TlsFiles
from mqtool.benching.wire import Take, Wire, ignore
from mqtool.errors import UsageError
from mqtool.message import Delivery, Message
from mqtool.offsets import Offset, Start
from mqtool.streams.entries import encode, parse_chunk
from mqtool.streams.rstream_private import CONFIRM, DELIVER, ERROR, METADATA_UPDATE
from mqtool.streams.session import Session, in_words
from mqtool.streams.stream_consumer import Reading
from mqtool.streams.stream_publisher import Partition

#: The bytes in a publish frame beside the first message.
_FRAMING = 32


class _Inbox(queues.SimpleQueue[bytes | None]):
    """The frames of a session, and the time of the latest one."""

    def __init__(self, arrived: Callable[[], None]) -> None:
        super().__init__()
        self._arrived = arrived
        self.received_at = time.monotonic_ns()

    def put(self, item: bytes | None, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002
        self.received_at = time.monotonic_ns()
        super().put(item)
        self._arrived()


class StreamWire(Wire):
    """A connection that uses RabbitMQ's stream protocol. https://www.rabbitmq.com/docs/streams"""

    def __init__(self, address: Address, tls: TlsFiles) -> None:
        self.now = time.monotonic_ns()
        self.credit = sys.maxsize
        self.on_confirm = self.on_nack = ignore
        self._take: Take = ignore
        # With select(), which waits for microseconds: epoll() waits for whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._is_waiting = False
        self._inbox = _Inbox(self._stop_waiting)
        self._session = Session(address, tls.context() if address.tls else None, self._inbox, self._loop)
        try:
            self._session.open()
        except BaseException:
            self._loop.close()
            raise

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        def readable() -> None:
            self._stop_waiting()
            on_readable()

        self._loop.add_reader(descriptor, readable)

    def wait(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds if self._inbox.empty() else 0, self._stop_waiting)
        self._is_waiting = True
        self._loop.run_forever()
        timer.cancel()
        self.now = self._inbox.received_at
        with contextlib.suppress(queues.Empty):
            while True:
                self._on_frame(self._inbox.get_nowait())

    def _stop_waiting(self) -> None:
        if self._is_waiting:  # not while the loop runs for a request
            self._is_waiting = False
            self._loop.stop()

    @property
    def unsent(self) -> int:
        return self._session.client.unsent

    def close(self) -> None:
        self._session.close()
        self._loop.close()

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:  # noqa: ARG002
        self._partition = Partition(routing_key, 0, self._session)
        self._partition.declare()

    def template(self, message: Message, stamp: int, *, persistent: bool) -> tuple[bytes, bytes]:  # noqa: ARG002
        data, frame_max = encode(message), self._session.client.frame_max
        if len(data) + _FRAMING > frame_max:
            raise UsageError(
                f"a body of {len(message.body):,} bytes does not fit into a frame of the stream protocol",
                f"the broker's frames have up to {frame_max:,} bytes; choose a smaller --size",
            )
        body = len(data) - len(message.body)
        return data[:body], data[body + stamp :]

    def publish(self, messages: Iterable[tuple[int, tuple[bytes, bytes], bytes]]) -> None:
        partition, room = self._partition, self._session.client.frame_max - _FRAMING
        for tag, (start, end), stamp in messages:
            entry = start + stamp + end
            if partition.size + len(entry) + 12 * len(partition.batch) > room:
                partition.flush(with_filter=False)
            partition.add(tag, entry)
        partition.flush(with_filter=False)

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:  # noqa: ARG002
        self._take = take
        self._reading = Reading(queue, 0, {})
        self._reading.begin(self._session, Offset(Start.OFFSET, offset or 0))

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        """Do nothing: streams have no acknowledgements."""

    def offset_of(self, delivery: Delivery) -> int:
        return delivery.delivery_tag

    def _on_frame(self, frame: bytes | None) -> None:
        if frame is None:
            raise ConnectionError(in_words(self._session.lost or EOFError()))
        key = int.from_bytes(frame[:2])
        if key == CONFIRM:
            self.on_confirm(struct.unpack_from(f">{(len(frame) - 9) // 8}Q", frame, 9))
        elif key == ERROR:
            self.on_nack([number for number, _ in struct.iter_unpack(">QH", frame[9:])])
        elif key == DELIVER:
            if batch := [*self._reading.take(parse_chunk(frame), ignore)]:
                self._take(batch)
        elif key == METADATA_UPDATE:
            raise ConnectionError("the stream has moved, or was deleted")
