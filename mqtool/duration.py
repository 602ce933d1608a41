"""Parse and format durations (300ms, 5s, 2m, 1h30m, 1d) and RabbitMQ's intervals (7D); exponential backoff."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: A hundred years, in seconds. Python's timers refuse more than 292 years.
_LONGEST = 100 * 365 * 86400.0
_PART = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"

#: The maximum number of digits in an interval. A number with more digits is treated as 10 to the power of this.
_DIGITS = 18
_INTERVAL = re.compile(r"0*([1-9][0-9]*)([YMDhms])")
_SECONDS_OF_INTERVAL = {"Y": 365 * 86_400, "M": 30 * 86_400, "D": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """Parse a duration such as 1m30s; return seconds. Raises ValueError if that is not possible."""
    parts = re.findall(_PART, text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        why = ": it has no unit" if re.fullmatch(r"[0-9.]+", text) else ""
        raise ValueError(f"{text!r} is not a duration such as 300ms, 5s, 2m or 1h30m{why}")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _LONGEST:
        raise ValueError(f"{text!r} is too long: at most {compact_duration(_LONGEST)}")
    return seconds


def parse_duration_or_seconds(text: str) -> float:
    """Parse a duration, or a number of seconds without a unit; return seconds. Raises ValueError otherwise."""
    return parse_duration(f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else text)


def parse_interval(text: str) -> int | None:
    """Return a RabbitMQ interval, such as a stream's max-age of 7D or 5m, in milliseconds; None if it is not one."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        return None
    # Python does not convert numbers of more than 4300 digits.
    count = int(found[1]) if len(found[1]) <= _DIGITS else 10**_DIGITS
    return count * _SECONDS_OF_INTERVAL[found[2]] * 1000


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
    factor: float = 2.5
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


def is_news(attempt: int, why: str, before: str) -> bool:
    """True if a failed attempt to reconnect is worth a notice: the first of several with this reason, or each fifth."""
    return why != before or attempt % 5 == 0
