"""Offsets in a stream, and a function to parse them: first, last, next, a number, a time, or an age."""

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from typing import NamedTuple

from mqtool.duration import parse_duration
from mqtool.message import END_OF_TIME


class Start(IntEnum):
    """The kinds of offset, with their numbers in the stream protocol."""

    FIRST = 1
    LAST = 2
    NEXT = 3
    OFFSET = 4
    TIMESTAMP = 5


class Offset(NamedTuple):
    """Where to start in a stream. A stream's messages are numbered from 0.

    Attributes:
        value: the message's number for OFFSET, milliseconds since 1970 for TIMESTAMP; otherwise None.
    """

    start: Start
    value: int | None = None

    def as_argument(self) -> int | str | datetime:
        """Return this offset as the value of AMQP 0-9-1's consumer argument x-stream-offset."""
        if self.value is None:
            return self.start.name.lower()
        return datetime.fromtimestamp(self.value / 1000, UTC) if self.start is Start.TIMESTAMP else self.value


#: Start at the oldest message that the broker still has, at the last chunk, or with the next message published.
FIRST, LAST, NEXT = Offset(Start.FIRST), Offset(Start.LAST), Offset(Start.NEXT)
_NAMED = {"first": FIRST, "last": LAST, "next": NEXT}
#: How long before its first subscription a reader resumes, in seconds, if it resumes by time: an age has whole seconds,
#: and the clocks of a cluster's nodes may differ.
_BEFORE = 5


class StreamPosition:
    """Where an AMQP consumer of a stream starts, and where it resumes after a reconnection.

    The broker does not store this position. A consumer that started at `next` or `last`, and has not received a message
    yet, has no offset to resume at, because AMQP has no query for the end of a stream. It resumes by time: at an age,
    which the broker subtracts from its own clock. So it may get messages that were written up to a few seconds before
    it started, but misses none that were written since.

    Args:
        offset: where to start; None for the broker's default, which is `next`.
        notice: called with a sentence for the user when the consumer resumes by time.
    """

    def __init__(
        self, stream: str, offset: Offset | None = None, notice: Callable[[str], None] = lambda _: None
    ) -> None:
        self._stream = stream
        self._offset = offset
        self._notice = notice
        self._started: tuple[float, float] | None = None

    def advance(self, offset: int) -> None:
        """Move the position to just after the message with this offset."""
        self._offset = Offset(Start.OFFSET, offset + 1)

    def start(self) -> Offset | str | None:
        """Return where the next subscription starts: at an offset, or at an age, such as "12s"."""
        if self._offset not in (None, NEXT, LAST):
            return self._offset
        # The first clock may stand still while the machine is asleep, and the second one may be set back.
        now = time.monotonic(), time.time()
        if self._started is None:
            self._started = now
            return self._offset
        age = math.ceil(max(now[0] - self._started[0], now[1] - self._started[1])) + _BEFORE
        self._notice(
            f"no message of stream {self._stream!r} had arrived: reading the messages of the last {age:,} s, "
            f"{_BEFORE} s more than this consumer is old"
        )
        return f"{age}s"


def parse_offset(text: str) -> Offset:
    """Parse the value of --offset. Raises ValueError if the text is not an offset."""
    if text in _NAMED:
        return _NAMED[text]
    if re.fullmatch(r"\d{1,19}", text, re.ASCII):
        return Offset(Start.OFFSET, int(text))
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except ValueError:
        try:
            seconds = time.time() - parse_duration(text)
        except ValueError:
            wanted = "first, last, next, a number, a time such as 2026-01-31T12:00Z, or an age such as 5m"
            raise ValueError(f"{text!r} is not an offset: write {wanted}") from None
    if not 0 <= seconds <= END_OF_TIME:
        raise ValueError(f"{text!r} is before 1970")
    return Offset(Start.TIMESTAMP, int(seconds * 1000))
