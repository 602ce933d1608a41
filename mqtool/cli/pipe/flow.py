"""A steady flow of messages made from one text: --count, --every and --jitter."""

import math
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from mqtool.cli import stopping
from mqtool.errors import UsageError
from mqtool.message import new_message_id
from mqtool.recordings.recording import RecordedMessage, ReplayPace

_PLACE = re.compile(r"\{(n|time|uuid|random|pick)(?::([^{}]*))?\}")
_RANGE = re.compile(r"(-?\d{1,18})-(-?\d{1,18})")


def numbers(count: int | None, every: float | None, jitter: float) -> Iterator[int | None]:
    """Yield 1, 2, 3 and so on, each when it is due, up to `count` or a signal to stop. Yields None while none is due.

    Raises:
        UsageError: there is jitter, but no interval.
    """
    if jitter and every is None:
        raise UsageError("--jitter needs --every", "such as --every 500ms --jitter 100ms")
    return _numbers(math.inf if count is None else count, every, jitter)


def _numbers(count: float, every: float | None, jitter: float) -> Iterator[int | None]:
    pace = ReplayPace(rate=1 / every) if every else None
    number = 0
    while number < count:
        if pace is not None:
            yield from stopping.until_due(pace.due(RecordedMessage(b"")) + random.uniform(-jitter, jitter))
        number += 1
        yield number


class Places:
    """The places of texts, such as {n} and {pick:a,b}. The same place has the same value throughout one message.

    Raises:
        UsageError: a place is not valid, such as {random:6}.
    """

    def __init__(self, *texts: str) -> None:
        self._makers = {found[0]: _maker(*found.group(0, 1, 2)) for text in texts for found in _PLACE.finditer(text)}

    def filling(self, number: int) -> Callable[[str], str]:
        """Return a function that fills the places of the message with this number."""
        values = {place: make(number) for place, make in self._makers.items()}
        return lambda text: _PLACE.sub(lambda found: values[found[0]], text)


def _maker(place: str, name: str, argument: str | None) -> Callable[[int], str]:
    if name == "random" and (ends := _RANGE.fullmatch(argument or "")) and int(ends[1]) <= int(ends[2]):
        return lambda _: str(random.randint(int(ends[1]), int(ends[2])))
    if name == "pick" and argument:
        return lambda _: random.choice(argument.split(","))
    if argument is None and name in _PLAIN:
        return _PLAIN[name]
    raise UsageError(
        f"{place} is not a place to fill in", "places are {n}, {time}, {uuid}, {random:1-6} and {pick:info,error}"
    )


_PLAIN: dict[str, Callable[[int], str]] = {
    "n": str,
    "time": lambda _: datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    "uuid": lambda _: new_message_id(),
}
