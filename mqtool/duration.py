"""Parse and format durations (300ms, 5s, 2m, 1h30m, 1d); exponential backoff between attempts."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"


def parse_duration(text: str) -> float:
    """Parse a duration such as 1m30s; return seconds. Raises ValueError if that is not possible."""
    parts = re.findall(_PART, text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 300ms, 5s, 2m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def compact_duration(seconds: float) -> str:
    """Format seconds, rounded to milliseconds, as text that parse_duration() accepts: 250ms, 1s, 1m30s."""
    rest, parts = round(seconds * 1000), []
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, milliseconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"


class Backoff(NamedTuple):
    """Exponential backoff with jitter, so that many clients do not reconnect at the same moment.

    Attributes:
        first: seconds before the first attempt.
        factor: each delay is this many times the previous one.
        longest: the maximum delay, in seconds.
        attempts: the number of attempts; None for no limit.
    """

    first: float = 0.25
    factor: float = 2.0
    longest: float = 15.0
    attempts: int | None = None

    def delays(self) -> Iterator[float]:
        """Yield the seconds to wait before each attempt: a random share, 50 to 100%, of the exponential delay."""
        import random

        delay, attempt = self.first, 0
        while self.attempts is None or attempt < self.attempts:
            yield delay * random.uniform(0.5, 1.0)
            delay = min(delay * self.factor, self.longest)
            attempt += 1
