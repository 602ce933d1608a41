"""Reading a stream: a message counts as read when the next one is asked for."""

import queue as queues
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence

from rstream import schema
from rstream.constants import OffsetType

from mqtool.amqp import Receiving
from mqtool.errors import TimedOut, Unavailable
from mqtool.message import Delivery
from mqtool.offsets import FIRST, Offset, Start
from mqtool.streams import chunks
from mqtool.streams.entries import body_alone, decode
from mqtool.streams.session import Owner
from mqtool.streams.wire import DELIVER, METADATA_UPDATE, StreamClient

_ID = 1
#: Chunks that the broker may send in advance.
_CREDIT = 10
_KEY_CREDIT = 9
_CREDIT_FRAME = struct.Struct(">IHHBH")
#: Messages between two stored offsets: as many come twice after a kill -9 at most.
TRACK_EVERY = 1000
#: Seconds of silence after which the offset is stored anyway.
_QUIET = 0.2


class Consumer:
    """Reads one stream.

    Args:
        track: as of StreamChannel.consume().
    """

    def __init__(
        self, channel: Owner, stream: str, receiving: Receiving, *, track: str | None, filters: Sequence[str]
    ) -> None:
        self._channel = channel
        self._stream = stream
        self._limits = receiving
        self._track = track
        self._filters = filters
        self._place = FIRST
        self._next = 0  # the first offset that we do not have yet
        self._has_received = False
        self._printed: int | None = None
        self._stored: int | None = None
        self._since_stored = 0
        self._is_stuck = False
        self._lot: deque[Delivery] = deque()

    def start(self, offset: Offset) -> None:
        """Subscribe.

        Raises:
            MqtoolError: the broker refuses.
        """
        self._channel.go_to(self._stream, to_publish=False)
        if self._track is not None:
            stored = self._channel.session.stored_offset(self._stream, self._track)
            if stored is not None:
                offset = Offset(Start.OFFSET, stored + 1)
        self._subscribe(offset)

    def _subscribe(self, offset: Offset) -> None:
        self._place = offset
        if offset.start is Start.OFFSET:
            self._next = offset.value or 0
        session = self._channel.session
        if self._filters:
            session.check_filters()
        properties = {f"filter.{number}": value for number, value in enumerate(self._filters)}
        place = schema.OffsetSpec.from_params(OffsetType(offset.start.value), offset.value)

        async def request(client: StreamClient) -> None:
            await client.subscribe(self._stream, _ID, place, _CREDIT, properties)

        session.ask(request, self._stream)

    def deliveries(self) -> Iterator[Delivery]:
        """Yield messages, until a limit, or stop().

        Raises:
            TimedOut: a time limit has passed.
            NotFound: the stream was deleted.
        """
        count, taken, started = self._limits.count, 0, time.monotonic()
        lot, channel, tracks = self._lot, self._channel, self._track is not None
        try:
            while taken != count:
                if not lot and not self._next_chunk(taken, started):
                    return
                if channel.stopping:
                    return
                delivery = lot.popleft()
                taken += 1
                yield delivery
                self._printed = delivery.delivery_tag
                if tracks:
                    self._since_stored += 1
                    if self._since_stored >= TRACK_EVERY:
                        self._store()
        finally:
            self.leave()

    def leave(self) -> None:
        """Store the offset of what was printed. Safe to repeat."""
        if not self._is_stuck:
            self._store()

    def _store(self) -> None:
        self._is_stuck = True  # what could not be printed is never stored
        self._channel.before_acknowledging()
        self._is_stuck = False
        if self._track is None or self._printed in (None, self._stored) or self._channel.session.lost is not None:
            return
        assert self._printed is not None
        self._channel.session.store_offset(self._stream, self._track, self._printed)
        self._stored, self._since_stored = self._printed, 0

    def _next_chunk(self, taken: int, started: float) -> bool:
        """Take a chunk out of the inbox; False at the end."""
        idle_since = time.monotonic()
        is_flushed = False
        while not self._lot:
            if self._channel.stopping:
                return False
            try:
                frame = self._channel.session.inbox.get_nowait()
            except queues.Empty:
                if not is_flushed:
                    self._channel.before_acknowledging()
                    is_flushed = True
                left = self._left(taken, started, idle_since)
                if left is not None and left <= 0:
                    return False
                try:
                    frame = self._channel.session.inbox.get(timeout=self._until_stored(left))
                except queues.Empty:
                    self._store()
                    continue
            self._take(frame)
            if frame is None:
                idle_since = time.monotonic()
        return True

    def _until_stored(self, left: float | None) -> float | None:
        """Seconds to wait: not for long, while there is an offset to store."""
        if self._track is None or self._printed in (None, self._stored):
            return left
        return _QUIET if left is None else min(left, _QUIET)

    def _left(self, taken: int, started: float, idle_since: float) -> float | None:
        """Seconds until a limit; None if there is none, 0 if silence has lasted long enough."""
        limits, now = self._limits, time.monotonic()
        if limits.timeout is not None and now >= started + limits.timeout:
            raise TimedOut(f"timed out after {limits.timeout:g} s, with {taken:,} received")
        if limits.idle_timeout is not None and now >= idle_since + limits.idle_timeout:
            if limits.count is not None:
                raise TimedOut(
                    f"nothing came for {limits.idle_timeout:g} s, with {taken:,} of {limits.count:,} received"
                )
            return 0.0
        ends = [started + limits.timeout] if limits.timeout is not None else []
        ends += [idle_since + limits.idle_timeout] if limits.idle_timeout is not None else []
        return max(0.001, min(ends) - now) if ends else None

    def _take(self, frame: bytes | None) -> None:
        if frame is None:
            if self._channel.session.lost is not None:
                self._channel.reopen(self._go_on)
            return
        key = int.from_bytes(frame[:2])
        if key == METADATA_UPDATE:
            if not self._channel.session.exists(self._stream):
                raise Unavailable(f"stream {self._stream!r} was deleted")
            self._channel.reopen(self._go_on)
        elif key == DELIVER:
            chunk = chunks.parse(frame)
            self._channel.session.send(_CREDIT_FRAME.pack(_CREDIT_FRAME.size - 4, _KEY_CREDIT, 1, _ID, 1))
            self._add(chunk)

    def _go_on(self) -> None:
        self._channel.go_to(self._stream, to_publish=False)
        self._subscribe(Offset(Start.OFFSET, self._next) if self._has_received else self._place)

    def _add(self, chunk: chunks.Chunk) -> None:
        """The messages of a chunk, but for those before the wanted offset: chunks come whole."""
        wanted, stream, add = self._next, self._stream, self._lot.append
        for offset, record in enumerate(chunks.records(chunk), chunk.first_offset):
            if offset < wanted:
                continue
            if (octets := body_alone(record)) is not None:
                add(Delivery(octets, "", stream, stream, False, {"headers": {"x-stream-offset": offset}}, offset))
            else:
                body, properties, exchange, routing_key = decode(record)
                properties["headers"] = {**properties.get("headers", {}), "x-stream-offset": offset}
                key = stream if routing_key is None else routing_key
                add(Delivery(body, exchange, key, stream, False, properties, offset))
        self._has_received = True
        self._next = max(wanted, chunk.first_offset + chunk.records)
