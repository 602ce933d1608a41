"""The stream client's session, on the thread of the process, with one publisher or one subscription. See wire.

The event loop runs only when the socket is ready, because its own waiting took 0.1 ms for each message. So a run
measures what a client without an event loop would: at 1,000 messages per second, a median of 0.3 ms to the confirm.
"""

import asyncio
import queue as queues
import select
import struct
import sys
import time
from collections.abc import Callable, Iterable

from mqtool.amqp import Address, TlsFiles
from mqtool.benching.wire import Take, Wire, ignore
from mqtool.codecs.sections import encode
from mqtool.errors import UsageError
from mqtool.message import Delivery, Message
from mqtool.offsets import Offset, Start
from mqtool.streams.entries import parse_chunk
from mqtool.streams.rstream_private import CONFIRM, DELIVER, ERROR, METADATA_UPDATE
from mqtool.streams.session import Inbox, StreamSession, in_words
from mqtool.streams.stream_consumer import Reading
from mqtool.streams.stream_publisher import publish_frame

#: The bytes in a publish frame before the first message, and before each message.
_FRAMING, _ENTRY = 16, 12
#: The ids of the publisher and of the subscription.
_PUBLISHER = _SUBSCRIPTION = 0


class StreamWire(Wire):
    """A connection that uses RabbitMQ's stream protocol. https://www.rabbitmq.com/docs/streams"""

    def __init__(self, address: Address, tls: TlsFiles) -> None:
        self.now = time.monotonic_ns()
        self.credit = sys.maxsize
        self.on_confirm = self.on_nack = ignore
        self._take: Take = ignore
        self._others: dict[int, Callable[[], None]] = {}
        self._inbox: Inbox = queues.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        # No heartbeats are needed: a run has its own time limits. So the loop needs to run only when data can move.
        without = address._replace(heartbeat=0)
        self._session = StreamSession(without, tls.context() if address.tls else None, self._inbox, self._loop)
        try:
            self._session.open()
        except BaseException:
            self._loop.close()
            raise

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self._others[descriptor] = on_readable

    def wait(self, seconds: float) -> None:
        connection = self._session.client.fileno()
        sources = [connection, *self._others]
        patience = seconds if self._inbox.empty() else 0
        readable, writable, _ = select.select(sources, [connection] if self.unsent else [], [], patience)
        self.now = time.monotonic_ns()
        if connection in readable or writable:
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()  # once
        while not self._inbox.empty():
            self._on_frame(self._inbox.get())
        for each in readable:
            if each != connection:
                self._others[each]()

    @property
    def unsent(self) -> int:
        return self._session.client.unsent

    def close(self) -> None:
        self._session.close()
        self._loop.close()

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:  # noqa: ARG002
        self._session.ask(self._session.client.declare_publisher(routing_key, None, _PUBLISHER), routing_key)

    def template(self, message: Message, stamp: int, *, persistent: bool) -> tuple[bytes, bytes, int]:  # noqa: ARG002
        data, frame_max = encode(message), self._session.client.frame_max
        if (size := _ENTRY + len(data)) + _FRAMING > frame_max:
            raise UsageError(
                f"a body of {len(message.body):,} bytes does not fit into a frame of the stream protocol",
                f"the broker's frames have up to {frame_max:,} bytes; choose a smaller --size",
            )
        body = len(data) - len(message.body)
        return len(data).to_bytes(4) + data[:body], data[body + stamp :], size

    def publish(self, messages: Iterable[tuple[int, tuple[bytes, bytes, int], bytes]]) -> None:
        room = self._session.client.frame_max - _FRAMING
        pieces: list[bytes] = []
        count = total = 0
        for tag, (start, end, size), stamp in messages:
            if total + size > room:
                self._session.send(publish_frame(_PUBLISHER, count, pieces))
                pieces, count, total = [], 0, 0
            pieces += (tag.to_bytes(8), start, stamp, end)
            count += 1
            total += size
        self._session.send(publish_frame(_PUBLISHER, count, pieces))

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:  # noqa: ARG002
        self._take = take
        self._reading = Reading(queue, _SUBSCRIPTION, {})
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
