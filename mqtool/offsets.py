"""Offsets in a stream, and how people write them: first, last, next, a number, a time, or how long ago."""

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime


class Start(IntEnum):
    """What a place is given by; the numbers are the stream protocol's."""

    FIRST = 1
    LAST = 2
    NEXT = 3
    OFFSET = 4
    TIMESTAMP = 5


class Offset(NamedTuple):
    """A place in a stream. Its messages are numbered from 0, and keep their numbers.

    Attributes:
        value: the number of a message, or milliseconds since 1970; None for a place that has a name.
    """

    start: Start
    value: int | None = None

    def as_argument(self) -> "int | str | datetime":
        """The consumer argument x-stream-offset of AMQP 0-9-1."""
        from datetime import UTC, datetime

        if self.value is None:
            return self.start.name.lower()
        return datetime.fromtimestamp(self.value / 1000, UTC) if self.start is Start.TIMESTAMP else self.value


#: The oldest message that the broker keeps; the last lot that was written together; what comes from now on.
FIRST, LAST, NEXT = Offset(Start.FIRST), Offset(Start.LAST), Offset(Start.NEXT)
_NAMED = {"first": FIRST, "last": LAST, "next": NEXT}


def parse_offset(text: str) -> Offset:
    """An offset, from what --offset takes.

    Raises:
        ValueError: it is none of that.
    """
    import re
    import time
    from datetime import datetime

    from mqtool.duration import parse_duration
    from mqtool.message import END_OF_TIME

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
