"""Replay of recordings: read and change messages, compute when each is due, and compare sent with received messages."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from mqtool import ndjson
from mqtool.duration import parse_duration
from mqtool.errors import BadData
from mqtool.message import Message, prepare_copy
from mqtool.where import Where


@dataclass(frozen=True)
class Changes:
    """Changes to recorded messages before they are published again.

    Attributes:
        exchange, routing_key: replace the message's exchange and routing key; None keeps its own.
        dropped_headers: names of headers to remove, before `headers` are added.
        trusts_streams: see ndjson.message_of(), which is applied first.
        keeps_queue_headers: see prepare_copy(), which is applied second.
    """

    exchange: str | None = None
    routing_key: str | None = None
    dropped_headers: Sequence[str] = ()
    headers: Mapping[str, Any] = field(default_factory=dict)
    trusts_streams: bool = False
    keeps_queue_headers: bool = False

    def apply(self, message: Message) -> None:
        """Change a message in place."""
        if self.exchange is not None:
            message.exchange = self.exchange
        if self.routing_key is not None:
            message.routing_key = self.routing_key
        headers = message.properties.get("headers") or {}
        if self.headers or not headers.keys().isdisjoint(self.dropped_headers):
            left = {name: value for name, value in headers.items() if name not in self.dropped_headers}
            message.properties = {**message.properties, "headers": {**left, **self.headers}}


@dataclass(slots=True)
class RecordedMessage(Message):
    """A message in a recording.

    Attributes:
        moment: when the message was recorded, in seconds since 1970; None if no timestamp has been read so far.
        opens: True for the first message in its file.
        place: the name of its line in errors, such as "line 3".
        leads_elsewhere: True if it was read from a stream, and says that it is to be published anywhere else.
    """

    moment: float | None = None
    opens: bool = False
    place: str = ""
    leads_elsewhere: bool = False


class Moment(NamedTuple):
    """A point in time, in seconds since the recording's first message if `is_offset`, otherwise since 1970."""

    seconds: float
    is_offset: bool

    def after(self, start: float) -> float:
        """Convert to seconds since 1970. `start` is when the recording starts, in the same unit."""
        return start + self.seconds if self.is_offset else self.seconds


def parse_moment(text: str) -> Moment:
    """Parse a duration since the recording's start, or a time (local by default). Raises ValueError otherwise."""
    try:
        return Moment(parse_duration(text), is_offset=True)
    except ValueError:
        try:
            return Moment(datetime.fromisoformat(text).timestamp(), is_offset=False)
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"{text!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration") from error


@dataclass
class Selection:
    """Selects messages of a recording: recorded at `since` or later, before `until`, and matching `where`."""

    since: Moment | None = None
    until: Moment | None = None
    where: Where | None = None
    _start: float | None = None

    def takes(self, line: Mapping[str, Any], moment: float | None, place: str) -> bool:
        """True if a line is selected. Raises BadData if its time is unknown, and `since` or `until` is set."""
        if self._start is None:
            self._start = moment
        if self.since is not None or self.until is not None:
            if moment is None or self._start is None:
                raise BadData(f'{place} has no "timestamp"', "--since and --until need one")
            if self.since is not None and moment < self.since.after(self._start):
                return False
            if self.until is not None and moment >= self.until.after(self._start):
                return False
        return self.where is None or self.where.matches(line)

    def between(self, first: float | None, last: float | None) -> tuple[float | None, float | None]:
        """Return the start and the end of the selected part of a file, whose messages span `first` to `last`."""
        start = self._start if self._start is not None else first
        if first is None or last is None or start is None:
            return first, last
        since = first if self.since is None else max(first, self.since.after(start))
        until = last if self.until is None else min(last, self.until.after(start))
        return since, max(since, until)


def recorded(
    lines: Iterable[bytes | None], selection: Selection, changes: Changes, name: str | None = None
) -> Iterator[RecordedMessage | None]:
    """Yield the selected messages of one file, with `changes` applied.

    A message without an exchange goes to its original queue, and so does one that was read from a stream. A line
    without a timestamp gets the timestamp of the previous line.

    Args:
        lines: lines of the file. None means that no line is available right now; a None is then yielded.
        name: the file's name, for errors; None if it is the only file.

    Raises:
        BadData: a line is not a message, or names neither an exchange nor a queue. The error names the line.
    """
    moment, opens, number = None, True, 0
    for line in lines:
        if line is None:
            yield None
            continue
        number += 1
        if not line.strip():
            continue
        place = f"line {number}" if name is None else f"{name}: line {number}"
        said = ndjson.to_object(line, place)
        message = ndjson.message_of(said, place, trusts_streams=changes.trusts_streams)
        moment = _moment(said, place, moment)
        if not selection.takes(said, moment, place):
            continue
        if message.exchange is None or not (message.exchange or message.routing_key):
            queue = said.get("queue")
            if isinstance(queue, str) and queue:
                message.exchange, message.routing_key = "", queue
        prepare_copy(message, keeps_queue_headers=changes.keeps_queue_headers)
        changes.apply(message)
        if message.exchange is None or not (message.exchange or message.routing_key):
            raise BadData(f"{place} names neither an exchange nor a queue", "--to-exchange or --to-queue names one")
        yield RecordedMessage(
            message.body, message.routing_key, message.exchange, message.properties, message.message_id,
            message.delay, message.due, message.received, moment=moment, opens=opens, place=place,
            leads_elsewhere=ndjson.leads_elsewhere(said),
        )  # fmt: skip
        opens = False


def _moment(line: Mapping[str, Any], place: str, before: float | None) -> float | None:
    text = line.get("timestamp")
    if text is None:
        return before
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise BadData(f'{place} has a "timestamp" that is not a time such as 2026-01-31T12:00:00Z: {text!r}') from error


def parse_speed(text: str) -> float:
    """Parse the speed of a replay: a positive number, or "max", which is infinity. Raises ValueError otherwise."""
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0 or (speed == math.inf and text != "max"):
        raise ValueError(f"{text!r} is not a speed such as 2, 0.5 or max")
    return speed


#: Timestamps may go back by this many seconds within one recording: a clock was adjusted, or lines are out of order.
_JITTER = 1.0
#: A replay at a fixed rate catches up if it is late by up to this many seconds; otherwise it continues at the rate.
_CATCH_UP = 1.0


class ReplayPace:
    """Computes when each message of a replay is due, relative to the first one, so that delays do not add up.

    A message with an earlier timestamp than the one before it is due at once. If time goes back by more than a second,
    or a file starts earlier than the previous one ended, a new recording starts, without a gap.

    Args:
        speed: 2 is twice as fast as recorded; infinity leaves no gaps.
        rate: messages per second, evenly spaced; replaces the recorded gaps.
        clock: returns the time in seconds, like time.monotonic().
    """

    def __init__(
        self, speed: float = 1.0, rate: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.speed = speed
        self.rate = rate
        self._clock = clock
        self._is_first = True
        self._count = 0
        self._start = self._due = 0.0
        self._origin: float | None = None  # the recorded time of the message that is due at _start
        self._latest = 0.0

    def due(self, message: RecordedMessage) -> float:
        """Return the time, on `clock`, at which a message is due. Call it once for each message, in order."""
        if self._is_first:
            self._is_first = False
            self._start = self._due = self._clock()
        if self.rate is not None:
            self._due = self._evenly(self.rate)
        elif message.moment is not None:
            self._due = self._as_recorded(message.moment, opens=message.opens)
        return self._due

    def _evenly(self, rate: float) -> float:
        due = self._start + self._count / rate
        if (late := self._clock() - due) > _CATCH_UP:
            self._start += late
            due += late
        self._count += 1
        return due

    def _as_recorded(self, moment: float, *, opens: bool) -> float:
        if self._origin is None or moment < self._latest - (0.0 if opens else _JITTER):
            self._origin, self._start, self._latest = moment, self._due, moment
        self._latest = max(self._latest, moment)
        return max(self._due, self._start + (moment - self._origin) / self.speed)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result of comparing sent with received messages. Lists contain message ids, in order of sending or arrival.

    Attributes:
        sent: the number of messages sent.
        got: the number of messages received, including duplicates.
        missing: messages that were sent but did not arrive. Contains an id once for each such message. If only some of
            the messages with an id arrived, the order of arrival decides which: see reconcile().
        doubled: ids that arrived more often than they were sent, and more than once.
        unexpected: ids that arrived but were not sent.
        reordered: messages that arrived after a message that was sent later.
    """

    sent: int
    got: int
    missing: list[str]
    doubled: list[str]
    unexpected: list[str]
    reordered: list[str]


def reconcile(sent: Iterable[str], got: Iterable[str]) -> Reconciliation:
    """Compare the ids of sent and received messages. Several messages may have the same id.

    For the order, each arrival counts as the next message with its id that was sent after the latest one that arrived,
    if there is one, and otherwise as an earlier one. Arrivals beyond the number of messages sent do not count.
    """
    ids = list(sent)
    expected, times = Counter(ids), Counter[str]()
    positions: dict[str, list[int]] = {}  # of the messages that have not arrived, the next one last
    for position in reversed(range(len(ids))):
        positions.setdefault(ids[position], []).append(position)
    passed: dict[str, list[int]] = {}  # of the messages that have not arrived, although a later one has
    reordered, latest = [], -1
    for message_id in got:
        times[message_id] += 1
        if times[message_id] > expected[message_id]:
            continue
        ahead = positions[message_id]
        while ahead and ahead[-1] < latest:
            passed.setdefault(message_id, []).append(ahead.pop())
        if ahead:
            latest = ahead.pop()
        else:
            passed[message_id].pop()
            reordered.append(message_id)
    left = sorted(chain(*positions.values(), *passed.values()))
    return Reconciliation(
        sent=len(ids),
        got=times.total(),
        missing=[ids[position] for position in left],
        doubled=[message_id for message_id, count in times.items() if count > max(1, expected[message_id])],
        unexpected=[message_id for message_id in times if message_id not in expected],
        reordered=reordered,
    )
