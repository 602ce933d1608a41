"""Options for publishing and delaying messages."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool.cli.options.broker_options import PublishingBroker
from mqtool.cli.values import DURATION, TIME_LIMIT, header_option, parsed
from mqtool.delays import LONGEST, Via
from mqtool.duration import compact_duration, parse_duration
from mqtool.errors import UsageError
from mqtool.message import CONFIRM_TIMEOUT, LONGEST_EXPIRATION, PROPERTIES


def _delay(text: str) -> float:
    """Parse a delay into seconds. RabbitMQ limits it to 2^32 - 1 ms."""
    if text.startswith("-"):
        raise ValueError(f"{text!r} is negative, but nothing can arrive before it is sent")
    seconds = parse_duration(text)
    if round(seconds * 1000) > LONGEST:
        raise ValueError(f"{text!r} is too long: at most {LONGEST} ms (2^32 - 1), {compact_duration(LONGEST / 1000)}")
    return seconds


def _moment(text: str) -> float:
    """Parse a future time into seconds since 1970. It is local time unless it has a time zone."""
    try:
        moment = datetime.fromisoformat(text if "-" in text else f"{datetime.now():%Y-%m-%d}T{text}").timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is not a time such as 18:30, 2026-01-31T18:30 or 2026-01-31T18:30:00Z") from error
    ahead = moment - time.time()
    if ahead <= 0:
        tomorrow = f"; for tomorrow: {datetime.now() + timedelta(days=1):%Y-%m-%d}T{text}" if "-" not in text else ""
        raise ValueError(f"{text!r} is in the past, by {compact_duration(max(1, round(-ahead)))}{tomorrow}")
    if ahead * 1000 > LONGEST:
        raise ValueError(f"{text!r} is too far away: at most {LONGEST} ms (2^32 - 1), 49 days")
    return moment


def rate(text: str) -> float:
    """Parse a rate such as 500, 500/s or 10/m into messages per second."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", text, re.ASCII)
    if parts is None or not 0 < float(parts[1]) < math.inf:
        raise ValueError(f"{text!r} is not a rate such as 500/s")
    return float(parts[1]) / {"s": 1, "m": 60, "h": 3600}[parts[2] or "s"]


RATE = dict[str, Any](parser=parsed(rate), metavar="RATE")
ConfirmTimeout = Annotated[
    float, typer.Option(rich_help_panel="Messages", help="Give up after this long without confirms", **TIME_LIMIT)
]

#: A steady flow of messages; see pipe/flow.py.
Count = typer.Option(
    "--count",
    "-c",
    "-n",
    min=1,
    help="Publish N messages, with places such as {n}",
    rich_help_panel="Messages",
    metavar="N",
)
Every = Annotated[
    float | None,
    typer.Option(
        help="Publish a message this often, until Ctrl-C or --count", rich_help_panel="Messages", **TIME_LIMIT
    ),
]
Jitter = Annotated[
    float, typer.Option(help="Vary the times of --every by up to this much", rich_help_panel="Messages", **DURATION)
]


@dataclass(kw_only=True, eq=False, repr=False)
class DelayOptions:
    """Options that delay messages."""

    delay: Annotated[
        float | None,
        typer.Option(
            parser=parsed(_delay),
            metavar="DURATION",
            help="Deliver each message this long after it is sent",
            rich_help_panel="Delay",
        ),
    ] = None
    at: Annotated[
        Any | None,
        typer.Option(
            parser=parsed(_moment),
            metavar="TIME",
            help="Deliver at this time, such as 18:30 or 2026-01-31T18:30",
            rich_help_panel="Delay",
        ),
    ] = None
    via: Annotated[
        Via, typer.Option(help="Where delayed messages wait (see mqtool help delays)", rich_help_panel="Delay")
    ] = Via.AUTO

    @property
    def are_given(self) -> bool:
        """True if --delay or --at was given."""
        return self.delay is not None or self.at is not None

    def check(self, *, mandatory: bool | None) -> None:
        """Check that the options can be combined.

        Raises:
            UsageError: the options cannot be combined.
        """
        if self.delay is not None and self.at is not None:
            raise UsageError("--delay and --at cannot be combined", "use only one of them")
        if self.are_given and mandatory:
            raise mandatory_with_delay()


def mandatory_with_delay() -> UsageError:
    """Return the error for using --mandatory with a delay."""
    return UsageError(
        "--mandatory does not work with a delay: such a message is routed only when it is due",
        "leave one of them out; for 'recording replay', add --no-mandatory",
    )


def _property(text: str) -> tuple[str, Any]:
    """Parse a property such as content-type=text/plain. Names are as in the AMQP specification, with - or _."""
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")
    if not equals or name not in PROPERTIES or name == "headers":
        known = ", ".join(known.replace("_", "-") for known in PROPERTIES if known != "headers")
        raise ValueError(f"{text!r} is not a property: write name=value with one of {known}")
    return name, _PROPERTY_VALUES.get(name, _short_text)(name, value)


def _short_text(name: str, value: str) -> str:
    if len(value.encode()) > 255:
        raise ValueError(f"{name.replace('_', '-')} is longer than 255 bytes")
    return value


def _number(lowest: int, highest: int) -> Callable[[str, str], int]:
    def parse(name: str, value: str) -> int:
        if not value.isdecimal() or len(value) > 20 or not lowest <= int(value) <= highest:
            raise ValueError(f"{name.replace('_', '-')} must be a number from {lowest} to {highest}, not {value!r}")
        return int(value)

    return parse


def _expiration(_name: str, value: str) -> str:
    if not value.isdecimal():
        return str(round(parse_duration(value) * 1000))
    if len(value) > len(str(LONGEST_EXPIRATION)) or int(value) > LONGEST_EXPIRATION:
        raise ValueError(f"{value!r} is not a number of milliseconds up to {LONGEST_EXPIRATION}")
    return value


def _timestamp(name: str, value: str) -> int:
    try:
        if value.isdecimal():
            return _number(0, 2**64 - 1)(name, value)
        return int(datetime.fromisoformat(value).timestamp())
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"timestamp must be seconds since 1970 or RFC 3339, not {value!r}") from error


_PROPERTY_VALUES: dict[str, Callable[[str, str], Any]] = {
    "delivery_mode": _number(1, 2),
    "priority": _number(0, 255),
    "expiration": _expiration,
    "timestamp": _timestamp,
}


def _key_pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"not a valid regular expression: {error}") from error


@dataclass(kw_only=True, eq=False, repr=False)
class MessageOptions:
    """Options of publishing commands: where messages come from, their properties, and confirms."""

    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read from FILE; - for stdin", rich_help_panel="Messages", metavar="FILE"),
    ] = None
    lines: Annotated[
        bool,
        typer.Option("--lines", "-l", help="Send each line as a message, as it arrives", rich_help_panel="Messages"),
    ] = False
    null: Annotated[
        bool,
        typer.Option(
            "--null", "-0", help="Messages end with a NUL byte, as from find -print0", rich_help_panel="Messages"
        ),
    ] = False
    delimiter: Annotated[
        str | None,
        typer.Option("--delimiter", "-D", metavar="CHAR", help="Messages end with CHAR", rich_help_panel="Messages"),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Read messages as NDJSON, one per line", rich_help_panel="Messages")
    ] = False
    trust_streams: Annotated[
        bool,
        typer.Option(
            "--trust-streams",
            help="Use the exchange, keys, CC and BCC of messages from streams",
            rich_help_panel="Messages",
        ),
    ] = False
    keep_broker_headers: Annotated[
        bool,
        typer.Option(
            "--keep-broker-headers", help="Also send headers that the queue has set", rich_help_panel="Messages"
        ),
    ] = False
    key_pattern: Annotated[
        Any | None,
        typer.Option(
            parser=parsed(_key_pattern),
            metavar="REGEX",
            help="Match each line; named groups fill {group} in the key",
            rich_help_panel="Messages",
        ),
    ] = None
    headers: Annotated[
        list[Any] | None, header_option("Header; KEY:=JSON for a non-string value", rich_help_panel="Messages")
    ] = None
    properties: Annotated[
        list[Any] | None,
        typer.Option(
            "--property",
            parser=parsed(_property),
            metavar="NAME=VALUE",
            help="Property, such as content-type=text/plain or expiration=5s",
            rich_help_panel="Messages",
        ),
    ] = None
    count: Annotated[int | None, Count] = None
    every: Every = None
    jitter: Jitter = 0.0
    persistent: Annotated[
        bool,
        typer.Option("--persistent", help="Send persistent messages (delivery mode 2)", rich_help_panel="Messages"),
    ] = False
    mandatory: Annotated[
        bool | None,
        typer.Option(
            "--mandatory/--no-mandatory",
            help="Fail if a message is unroutable (default: only when sending to a queue)",
            rich_help_panel="Messages",
        ),
    ] = None
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT
    failed_to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save unconfirmed messages to FILE, as NDJSON", rich_help_panel="Messages"),
    ] = None

    @property
    def is_stream(self) -> bool:
        """True if the input may contain several messages."""
        return self.lines or self.null or self.as_json or self.delimiter is not None

    @property
    def is_repeated(self) -> bool:
        """True if one message is published several times."""
        return self.count is not None or self.every is not None or self.jitter > 0


Words = Annotated[
    list[str] | None, typer.Argument(metavar="WORD...", help="Words of the message (default: stdin, or 'Hello World!')")
]


@dataclass(kw_only=True, eq=False, repr=False)
class Publishing:
    """All options of a publishing command."""

    options: MessageOptions
    delays: DelayOptions
    broker: PublishingBroker
    words: Words = None
