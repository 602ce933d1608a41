"""Reading a stream: a message counts as read when the next one is asked for."""

import queue as queues
import time
from collections import deque
from collections.abc import Iterator, Sequence

from mqtool.amqp import Receiving
from mqtool.errors import Unavailable
from mqtool.message import Delivery
from mqtool.offsets import Offset, Start
from mqtool.streams import chunks
from mqtool.streams.reading import Reading
from mqtool.streams.session import Owner, Session
from mqtool.streams.wire import CONSUMER_UPDATE, DELIVER, METADATA_UPDATE

#: Messages between two stored offsets: as many come twice after a kill -9 at most.
TRACK_EVERY = 1000
#: Seconds of silence after which the offset is stored anyway, and signals are handled: Python runs their handlers only
#: between two steps of the main thread.
_QUIET = 0.2


class Consumer:
    """Reads one stream, or the partitions of one.

    Args:
        streams: one, or the partitions in their order.
        super_stream: that of the partitions; "" if it is one stream.
        track, single_active: as of StreamChannel.consume() and StreamChannel.
    """

    def __init__(
        self,
        channel: Owner,
        streams: Sequence[str],
        receiving: Receiving,
        *,
        super_stream: str,
        track: str | None,
        filters: Sequence[str],
        single_active: bool,
    ) -> None:
        self._channel = channel
        self._limits = receiving
        self._track = track
        self._has_filters = bool(filters)
        self._is_single_active = single_active
        properties = {f"filter.{number}": value for number, value in enumerate(filters)}
        if track is not None:
            properties["name"] = track  # which the management API shows
        if single_active:
            properties["single-active-consumer"] = "true"
            properties |= {"super-stream": super_stream} if super_stream else {}
        self._readings = [Reading(stream, number, properties) for number, stream in enumerate(streams)]
        self._reading = self._readings[0]  # the one that the lot is of
        self._is_stuck = False
        self._lot: deque[Delivery] = deque()

    def start(self, offset: Offset) -> None:
        """Subscribe.

        Raises:
            MqtoolError: the broker refuses.
        """
        sessions = self._sessions()
        if self._has_filters:
            sessions[0].check_version((3, 13), "filters for streams")
        if self._is_single_active:
            sessions[0].check_version((3, 11), "single active consumers for streams")
        # All places before the first subscription: what it brings must not be mixed up with what is looked for here.
        places = [self._place(each, session, offset) for each, session in zip(self._readings, sessions, strict=True)]
        for reading, session, place in zip(self._readings, sessions, places, strict=True):
            reading.begin(session, place)

    def _sessions(self) -> list[Session]:
        return self._channel.sessions_for([each.stream for each in self._readings], to_publish=False)

    def _place(self, reading: Reading, session: Session, offset: Offset) -> Offset:
        """Where to start: behind what is stored, if there is that; says so if it is beyond the end."""
        stream = reading.stream
        stored = None if self._track is None else session.stored_offset(stream, self._track)
        place = offset if stored is None else Offset(Start.OFFSET, stored + 1)
        if place.start is Start.OFFSET and place.value and place.value > (end := session.end_of(stream)):
            what = f"ends at offset {end - 1:,}" if end else "is empty"
            self._channel.notice(f"stream {stream!r} {what}; waiting for offset {place.value:,}")
        return place

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
                reading = self._reading
                reading.printed = delivery.delivery_tag
                if tracks:
                    reading.since_stored += 1
                    if reading.since_stored >= TRACK_EVERY:
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
        if self._track is None or self._channel.is_lost:
            return
        for reading in self._readings:
            if not reading.is_stored:
                assert reading.printed is not None
                reading.session.store_offset(reading.stream, self._track, reading.printed)
                reading.stored, reading.since_stored = reading.printed, 0

    def _next_chunk(self, taken: int, started: float) -> bool:
        """Take a chunk out of the inbox; False at the end."""
        idle_since = time.monotonic()
        is_flushed = False
        while not self._lot:
            if self._channel.stopping:
                return False
            try:
                frame = self._channel.inbox.get_nowait()
            except queues.Empty:
                if not is_flushed:
                    self._channel.before_acknowledging()
                    is_flushed = True
                now = time.monotonic()
                left = self._limits.left(taken, now - started, now - idle_since)
                if left == 0:
                    return False
                try:
                    frame = self._channel.inbox.get(timeout=_QUIET if left is None else min(left, _QUIET))
                except queues.Empty:
                    self._store()
                    continue
            self._take(frame)
            if frame is None:
                idle_since = time.monotonic()
        return True

    def _take(self, frame: bytes | None) -> None:
        if frame is None:
            if self._channel.is_lost:
                self._channel.reopen(self._go_on)
            return
        key = int.from_bytes(frame[:2])
        if key == METADATA_UPDATE:
            stream = frame[8:].decode()
            if not self._reading.session.exists(stream):
                raise Unavailable(f"stream {stream!r} was deleted")
            self._channel.reopen(self._go_on)
        elif key == DELIVER:
            self._reading = self._readings[frame[4]]
            self._lot.extend(self._reading.take(chunks.parse(frame)))
        elif key == CONSUMER_UPDATE:
            self._change(self._readings[frame[8]], frame[4:8], is_active=bool(frame[9]))

    def _go_on(self) -> None:
        for reading, session in zip(self._readings, self._sessions(), strict=True):
            reading.begin(session)

    def _change(self, reading: Reading, correlation: bytes, *, is_active: bool) -> None:
        """Begin, or finish: the broker has chosen who is active. All that came before is printed."""
        assert self._track is not None
        if is_active:
            at = reading.go_on(correlation, reading.session.stored_offset(reading.stream, self._track))
            where = "" if at is None else f", from offset {at:,}"
            self._channel.notice(f"active: reading stream {reading.stream!r}{where}")
        else:
            self._store()
            reading.session.stored_offset(reading.stream, self._track)  # answered once it is stored: the next one asks
            reading.stand_by(correlation)
            self._channel.notice(f"standing by: another consumer reads stream {reading.stream!r}")
