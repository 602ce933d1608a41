"""How values are written on the command line: durations, headers, arguments. A ValueError says what is wrong."""

import json
import re
from typing import Annotated, Any, Literal

from typer import Option

from mqtool.duration import parse_duration


def time_limit(text: str) -> float:
    """Seconds, from a duration other than 0."""
    seconds = duration_or_seconds(text)
    if not seconds:
        raise ValueError(f"{text!r} must be longer than 0")
    return seconds


def duration_or_seconds(text: str) -> float:
    """Seconds, from a duration or a plain number. Not for delays and TTLs: RabbitMQ counts them in milliseconds."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else parse_duration(text)


def rate(text: str) -> float:
    """Messages per second, from a number, or a number per s, m or h."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", text, re.ASCII)
    if parts is None or not float(parts[1]):
        raise ValueError(f"{text!r} is not a rate such as 500/s")
    return float(parts[1]) / {"s": 1, "m": 60, "h": 3600}[parts[2] or "s"]


def size(text: str) -> int:
    """Bytes, from a number with a unit, such as 64KiB or 128MiB."""
    parts = re.fullmatch(r"(\d+)\s*(?:([KMG])(?:iB)?|B)?", text, re.IGNORECASE)
    if parts is None or not int(parts[1]):
        raise ValueError(f"{text!r} is not a size such as 64KiB or 128MiB")
    return int(parts[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[(parts[2] or "").upper()]


def header(text: str) -> tuple[str, Any]:
    """A header, from key=text or key:=json."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise ValueError(f"{text!r} is not a header: write key=text, or key:=json for a typed value")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError as error:
        raise ValueError(f"the value of {key[:-1]!r} is not JSON: {error}") from error


def argument(text: str) -> tuple[str, Any]:
    """An AMQP argument, written as a header is; a whole number is a number."""
    key, value = header(text)
    return key, int(value) if isinstance(value, str) and value.isdecimal() else value


#: How many of the headers a message must have.
Match = Annotated[Literal["all", "any"], Option(help="Match all of the headers, or any of them")]


def header_option(about: str) -> Any:
    """--header, for headers as a list of names and values."""
    return Option("--header", "-H", parser=header, metavar="KEY=VALUE", help=about)


def argument_option(about: str) -> Any:
    """--argument, likewise."""
    return Option("--argument", parser=argument, metavar="KEY=VALUE", help=about)


def _offset(text: str) -> Any:
    from mqtool.offsets import parse_offset

    return parse_offset(text)


def _condition(text: str) -> Any:
    from mqtool.where import parse  # only where there is one: it takes a few milliseconds to import

    return parse(text)


#: A mqtool.where.Where.
Where = Annotated[
    Any | None,
    Option("--where", parser=_condition, metavar="CONDITION", help="Only messages that match (mqtool help where)"),
]
#: For an option that takes a place in a stream.
OFFSET = dict[str, Any](parser=_offset, metavar="OFFSET")
#: For an option that takes a duration, and for one that takes a duration other than 0.
DURATION = dict[str, Any](parser=duration_or_seconds, metavar="DURATION")
TIME_LIMIT = dict[str, Any](parser=time_limit, metavar="DURATION")
RATE = dict[str, Any](parser=rate, metavar="RATE")

ConfirmTimeout = Annotated[
    float, Option(rich_help_panel="Messages", help="Give up (exit 75) after this long without confirms", **TIME_LIMIT)
]
#: Its default, as typer wants it: to be parsed.
CONFIRM_TIMEOUT: Any = "20s"
