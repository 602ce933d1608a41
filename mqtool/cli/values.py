"""Values on the command line, and how they are parsed: durations, sizes, headers, arguments.

`parsed` turns a function that raises ValueError into a parser for typer.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import typer

from mqtool.duration import parse_duration_or_seconds

#: The maximum length of a stream's filter value, in bytes: its size is a signed 16-bit integer in the stream protocol.
_LONGEST_FILTER_VALUE = (1 << 15) - 1
#: A number of more digits does not fit into 64 bits. Python does not convert those of more than 4300 digits.
_MOST_DIGITS = 20


def parsed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a parser for typer, which reports a ValueError of `parse` as a usage error with its message."""

    @functools.wraps(parse)
    def parser(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value  # typer also passes defaults
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser


def valid_filter(text: str) -> str:
    """Check a filter value of a stream's messages."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("a filter value must be valid UTF-8") from None
    if size > _LONGEST_FILTER_VALUE:
        raise ValueError(f"a filter value can have up to {_LONGEST_FILTER_VALUE:,} bytes, but this one has {size:,}")
    return text


def time_limit(text: str) -> float:
    """Parse a duration greater than 0 into seconds."""
    if seconds := parse_duration_or_seconds(text):
        return seconds
    raise ValueError(f"{text!r} is not greater than 0")


def size(text: str) -> int:
    """Parse a size such as 64KiB or 1kB into bytes; the units are those of --where. K, M, G and T alone are KiB etc."""
    parts = re.fullmatch(r"(\d+)\s*(?:([KMGT])(iB|B)?|B)?", text, re.IGNORECASE)
    if parts is None or not int(parts[1]):
        raise ValueError(f"{text!r} is not a size such as 64KiB or 1kB")
    base = 1000 if (parts[3] or "").upper() == "B" else 1024
    return int(parts[1]) * int(base ** " KMGT".index((parts[2] or " ").upper()))


def header(text: str) -> tuple[str, Any]:
    """Parse a header, written as key=text or key:=json, into its name and value."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise ValueError(f"{text!r} is not a header: write key=text, or key:=json if the value is not a string")
    if not key.endswith(":"):
        return key, value
    import json

    try:
        return key[:-1], json.loads(value)
    except RecursionError as error:
        raise ValueError(f"the value of {key[:-1]!r} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"the value of {key[:-1]!r} is not JSON: {error}") from error


def argument(text: str) -> tuple[str, Any]:
    """Parse an AMQP argument. It is written like a header, but text that is a whole number becomes an integer."""
    key, value = header(text)
    return key, _integer(key, value) if isinstance(value, str) and value.isdecimal() else value


def _integer(key: str, digits: str) -> int:
    if len(digits) > _MOST_DIGITS or int(digits) >= 1 << 63:
        raise ValueError(f"the value of {key!r} is larger than a signed 64-bit integer")
    return int(digits)


def header_option(about: str, **settings: Any) -> Any:
    """Build the option --header for a parameter that is a list."""
    return typer.Option("--header", "-H", parser=parsed(header), metavar="KEY=VALUE", help=about, **settings)


def argument_option(about: str, **settings: Any) -> Any:
    """Build the option --argument for a parameter that is a list."""
    return typer.Option("--argument", "-a", parser=parsed(argument), metavar="KEY=VALUE", help=about, **settings)


#: Settings of an option that takes a duration; TIME_LIMIT does not allow 0. Not for delays and TTLs, where a number
#: without a unit could be meant as milliseconds, as in RabbitMQ.
DURATION = dict[str, Any](parser=parsed(parse_duration_or_seconds), metavar="DURATION")
TIME_LIMIT = dict[str, Any](parser=parsed(time_limit), metavar="DURATION")
