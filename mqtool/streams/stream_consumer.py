"""Consume a stream, or the partitions of a super stream. Requesting a message marks the previous one as handled."""

import math
import queue as queues
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rstream import schema
from rstream.constants import OffsetType

from mqtool.amqp import Receiving
from mqtool.codecs.sections import decode
from mqtool.errors import Unavailable, UsageError
from mqtool.message import Delivery
from mqtool.offsets import FIRST, LAST, NEXT, Offset, Start
from mqtool.spelling import pasteable
from mqtool.streams.entries import Chunk, Skipped, body_alone, chunk_entries, parse_chunk
from mqtool.streams.rstream_private import CONSUMER_UPDATE, DELIVER, METADATA_UPDATE
from mqtool.streams.session import StreamSession
from mqtool.topology import Stream

if TYPE_CHECKING:
    from mqtool.streams.stream_channel import StreamChannel

#: The number of chunks that the broker may send in advance.
_CREDIT = 10
_KEY_CREDIT, _KEY_ANSWER = 9, 0x801A
_CREDIT_FRAME = struct.Struct(">IHHBH")
_ANSWER = struct.Struct(">IHHIHH")
_OK, _NOWHERE = 1, 0


class Reading:
    """The state of one consumed stream. `number` is the id of its subscription.

    Attributes:
        next: the offset after the last message received.
        reached: an offset that the stream has reached: its end was there, or behind it.
        began_empty: True if the broker sent no message when the stream was looked up. Perhaps it did not send them yet.
        printed: the offset of the last message that the caller has handled.
        written: the offset up to which the caller's output is written.
        stored: the offset stored on the broker.
        since_stored: the number of messages handled since `stored` was stored.
    """

    def __init__(self, stream: str, number: int, properties: Mapping[str, str]) -> None:
        self.stream = stream
        self.next = self.reached = 0
        self.printed: int | None = None
        self.written: int | None = None
        self.stored: int | None = None
        self.since_stored = 0
        self.began_empty = False
        self._number = number
        self._properties = dict(properties)
        self._place = FIRST
        self._has_received = False

    def begin(self, session: StreamSession, offset: Offset | None = None) -> None:
        """Subscribe, starting at an offset or, without one, after the last message received."""
        self.session = session
        self._start_at(offset or self._behind())
        place = schema.OffsetSpec.from_params(OffsetType(self._place.start.value), self._place.value)
        session.ask(session.client.subscribe(self.stream, self._number, place, _CREDIT, self._properties), self.stream)

    def start_over(self) -> None:
        """Forget how far the stream was read, since it is another one of the same name. Call begin() afterwards."""
        self.next = self.reached = self.since_stored = 0
        self.printed = self.written = self.stored = None
        self._place, self._has_received = FIRST, False

    def is_of_another(self, chunk: Chunk) -> bool:
        """True if a chunk ends before what was read: it is of another stream of that name, or a replica is behind."""
        return chunk.first_offset + chunk.records <= min(self.next, self.reached)

    def go_on(self, correlation: bytes, stored: int | None) -> int | None:
        """Reply to the broker, which has made this consumer active; return the offset to start at, if known."""
        at = self._behind()
        if stored is not None and (not self._has_received or stored >= self.next):
            at = Offset(Start.OFFSET, stored + 1)
        self._start_at(at)
        self._answer(correlation, at)
        return at.value if at.start is Start.OFFSET else None

    def stand_by(self, correlation: bytes) -> None:
        """Reply to the broker, which has made this consumer inactive. The caller must store the offset first."""
        self._answer(correlation, None)

    def take(self, chunk: Chunk, warn: Callable[[str], None]) -> Iterator[Delivery]:
        """Yield a chunk's messages from the wanted offset on; call `warn` with a sentence about damaged ones.

        Raises:
            UsageError: a Python package is missing to decompress the next messages.
        """
        self.session.send(_CREDIT_FRAME.pack(_CREDIT_FRAME.size - 4, _KEY_CREDIT, 1, self._number, 1))
        wanted, stream, offset = self.next, self.stream, chunk.first_offset - 1
        for record in chunk_entries(chunk):
            offset += 1
            if isinstance(record, Skipped):
                last = offset + record.messages - 1
                if last >= wanted:
                    what = f"{record.messages:,} message{'s' * (record.messages != 1)} of stream {stream!r}"
                    if record.package:
                        hint = f"install it beside mqtool: pip install {record.package}; or {self._how_to_skip(last)}"
                        raise UsageError(f"cannot read {what} from offset {offset:,}: {record.reason}", hint)
                    warn(f"skipped {what} from offset {offset:,}: {record.reason}")
                offset = last
            elif offset < wanted:
                continue
            elif (body := body_alone(record)) is not None:
                yield Delivery(body, "", stream, stream, False, {"headers": {"x-stream-offset": offset}}, offset)
            else:
                delivery = decode(record, stream, offset, 0)
                delivery.properties = {
                    **delivery.properties,
                    "headers": {**delivery.headers, "x-stream-offset": offset},
                }
                delivery.redelivered = False
                yield delivery
        self._has_received = True
        end = chunk.first_offset + chunk.records
        self.reached, self.next = max(self.reached, end), max(wanted, end)

    def _how_to_skip(self, last: int) -> str:
        name = self._properties.get("name")
        if name is None:
            return f"skip the batch: {pasteable('receive-stream --queue=', self.stream)} --offset={last + 1}"
        return f"skip the batch: {pasteable('offset set', self.stream, name, str(last))}"

    def _behind(self) -> Offset:
        if self._has_received:
            return Offset(Start.OFFSET, self.next)
        return FIRST if self.began_empty else self._place

    def _start_at(self, offset: Offset) -> None:
        self._place = offset
        if offset.start is Start.OFFSET:
            self.next = offset.value or 0

    def _answer(self, correlation: bytes, offset: Offset | None) -> None:
        kind = _NOWHERE if offset is None else offset.start.value
        value = b"" if offset is None or offset.value is None else struct.pack(">Q", offset.value)
        number = int.from_bytes(correlation)
        size = _ANSWER.size - 4 + len(value)
        self.session.send(_ANSWER.pack(size, _KEY_ANSWER, 1, number, _OK, kind) + value)


#: Store the offset after this many messages. After kill -9, at most this many are delivered again.
TRACK_EVERY = 1000
#: Store the offset after this many seconds without a message. The main thread also wakes up then to handle signals:
#: Python runs signal handlers only between two of its instructions.
_QUIET = 0.2


class StreamConsumer:
    """Consumes one stream, or the partitions of a super stream.

    Args:
        track: see StreamChannel.consume().
        filters, single_active: see StreamChannel.
    """

    def __init__(
        self,
        channel: "StreamChannel",
        stream: Stream,
        receiving: Receiving,
        track: str | None,
        filters: Sequence[str],
        *,
        single_active: bool,
    ) -> None:
        self._channel = channel
        self._limits = receiving
        self._track = track
        self._has_filters = bool(filters)
        self._is_single_active = single_active
        properties = {f"filter.{number}": value for number, value in enumerate(filters)}
        if track is not None:
            properties["name"] = track  # the management API shows it
        if single_active:
            properties["single-active-consumer"] = "true"
            properties |= {"super-stream": stream.name} if stream.partitions else {}
        streams = stream.partitions or [stream.name]
        self._readings = [Reading(name, number, properties) for number, name in enumerate(streams)]
        self._reading = self._readings[0]  # the stream of the current batch
        self._is_stuck = False
        self._deadline = math.inf
        # The rest of the current chunk, decoded as it is requested: a few kilobytes can unpack to millions of messages.
        self._chunk: Iterator[Delivery] = iter(())

    def start(self, offset: Offset) -> None:
        """Subscribe to the streams."""
        sessions = self._sessions()
        if self._has_filters:
            sessions[0].check_version((3, 13), "filters for streams")
        if self._is_single_active:
            sessions[0].check_version((3, 11), "single active consumers for streams")
        # Look up all offsets before the first subscription, whose frames would mix with those of the lookups.
        places = [self._place(each, session, offset) for each, session in zip(self._readings, sessions, strict=True)]
        for reading, session, place in zip(self._readings, sessions, places, strict=True):
            reading.begin(session, place)

    def _sessions(self) -> list[StreamSession]:
        return self._channel.sessions_for([each.stream for each in self._readings], to_publish=False)

    def _place(self, reading: Reading, session: StreamSession, offset: Offset) -> Offset:
        """Return where to start: after the stored offset, if any, else at `offset`. Warn of a start past the end.

        Where `next` and `last` are, is looked up: a reconnection must not start at later ones. If the broker does not
        say where they are, they are the broker's.
        """
        stream = reading.stream
        stored = None if self._track is None else session.stored_offset(stream, self._track)
        place = offset if stored is None else Offset(Start.OFFSET, stored + 1)
        number = place.value if place.start is Start.OFFSET else None
        if place not in (NEXT, LAST) and not number:
            return place
        try:
            last = session.last_chunk(stream)
        except Unavailable as error:
            self._channel.notice(str(error))
            return place
        if number is None and not last:  # the broker knows better than 0: it may not send the messages yet
            reading.began_empty = True
            return place
        if number is None:
            number = last.stop if place == NEXT else last.start
        elif number > last.stop:
            what = f"ends at offset {last.stop - 1:,}" if last else "is empty"
            self._channel.notice(f"stream {stream!r} {what}; waiting for offset {number:,}")
        reading.reached = min(number, last.stop)
        return Offset(Start.OFFSET, number)

    def deliveries(self) -> Iterator[Delivery]:
        """Yield messages until a limit is reached or stop() is called. Raises TimedOut after a time limit."""
        count, taken, started = self._limits.count, 0, time.monotonic()
        if self._limits.timeout is not None:
            self._deadline = started + self._limits.timeout
        channel, tracks = self._channel, self._track is not None
        try:
            while taken != count:
                if self._limits.is_over(time.monotonic() - started):
                    raise self._limits.timed_out(taken)
                delivery = next(self._chunk, None) or self._of_next_chunk(taken, started)
                if delivery is None or channel.stopping:
                    return
                taken += 1
                yield delivery
                reading = self._reading
                reading.printed = delivery.delivery_tag
                if tracks:
                    reading.since_stored += 1
                    if reading.since_stored >= TRACK_EVERY or self._limits.is_output_full():
                        self._store()
        finally:
            self.leave()

    def leave(self) -> None:
        """Store the offset of the last message handled, if tracking is on. Safe to repeat."""
        self._store()

    def _flush(self) -> None:
        if self._is_stuck:
            return
        self._is_stuck = True  # messages that were not printed never count as handled
        self._limits.before_acknowledging()
        self._is_stuck = False
        for reading in self._readings:
            reading.written = reading.printed

    def _store(self) -> None:
        self._flush()
        if self._track is None or self._channel.is_lost:
            return
        for reading in self._readings:
            if reading.written is not None and reading.written != reading.stored:
                reading.session.store_offset(reading.stream, self._track, reading.written)
                reading.stored, reading.since_stored = reading.written, 0

    def _of_next_chunk(self, taken: int, started: float) -> Delivery | None:
        """Wait for the first message of the next chunk; return None if a limit is reached or stop() is called."""
        idle_since = time.monotonic()
        is_flushed = False
        while (delivery := next(self._chunk, None)) is None:
            if self._channel.stopping:
                return None
            try:
                frame = self._channel.inbox.get_nowait()
            except queues.Empty:
                if not is_flushed:
                    self._flush()
                    is_flushed = True
                now = time.monotonic()
                left = self._limits.left(taken, now - started, now - idle_since)
                if left == 0:
                    return None
                try:
                    frame = self._channel.inbox.get(timeout=_QUIET if left is None else min(left, _QUIET))
                except queues.Empty:
                    self._store()
                    continue
            self._take(frame)
            if frame is None:
                idle_since = time.monotonic()
        return delivery

    def _take(self, frame: bytes | None) -> None:
        if frame is None:
            if self._channel.is_lost:
                self._channel.reopen(self._go_on, self._deadline)
            return
        key = int.from_bytes(frame[:2])
        if key == METADATA_UPDATE:
            stream = frame[8:].decode()
            if not self._reading.session.exists(stream):
                raise Unavailable(f"stream {stream!r} was deleted")
            self._channel.reopen(self._go_on, self._deadline)
        elif key in (DELIVER, CONSUMER_UPDATE):
            number = frame[4 if key == DELIVER else 8]
            if number >= len(self._readings) or (key == CONSUMER_UPDATE and self._track is None):
                self._reading.session.end(ValueError("a frame for another subscription"))
            elif key == DELIVER:
                self._channel.has_progressed = True
                self._reading, chunk = self._readings[number], parse_chunk(frame)
                if self._reading.is_of_another(chunk):
                    self._channel.reopen(self._go_on, self._deadline)
                else:
                    self._chunk = self._reading.take(chunk, self._channel.notice)
            else:
                self._change(self._readings[number], frame[4:8], is_active=bool(frame[9]))

    def _go_on(self) -> None:
        sessions = self._sessions()
        if self._shorter(sessions):  # perhaps only because a replica is behind, so ask the leaders
            sessions = self._channel.sessions_for([each.stream for each in self._readings], to_publish=True)
            for reading in self._shorter(sessions):
                self._channel.notice(f"stream {reading.stream!r} was created again: reading it from its first message")
                reading.start_over()
        for reading, session in zip(self._readings, sessions, strict=True):
            reading.begin(session)

    def _shorter(self, sessions: Sequence[StreamSession]) -> list[Reading]:
        """Return the streams that end before an offset that they had reached."""
        found = []
        for reading, session in zip(self._readings, sessions, strict=True):
            if not reading.reached:
                continue
            with suppress(Unavailable):  # the broker does not say yet where it ends
                # 0: the stream is empty, or its messages are not sent yet
                if 0 < session.end_of(reading.stream) < reading.reached:
                    found.append(reading)
        return found

    def _change(self, reading: Reading, correlation: bytes, *, is_active: bool) -> None:
        """Become the active consumer or stand by, as the broker requests. All earlier messages have been handled."""
        assert self._track is not None
        if is_active:
            at = reading.go_on(correlation, reading.session.stored_offset(reading.stream, self._track))
            where = "" if at is None else f", from offset {at:,}"
            self._channel.notice(f"active: reading stream {reading.stream!r}{where}")
        else:
            self._store()
            reading.session.stored_offset(reading.stream, self._track)  # its response comes after storing
            reading.stand_by(correlation)
            self._channel.notice(f"standing by: another consumer reads stream {reading.stream!r}")
