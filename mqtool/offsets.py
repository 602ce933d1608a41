"""Offsets in a stream, and a function to parse them: first, last, next, a number, a time, or an age."""

import re
import time
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
