"""Where messages come from, what they carry, and what to make of the broker's answers."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from typer import Argument, Option

from mqtool.cli.groups import in_panel
from mqtool.cli.options.connection import Broker
from mqtool.cli.options.delays import DelayOptions
from mqtool.cli.options.values import CONFIRM_TIMEOUT, ConfirmTimeout, header_option
from mqtool.duration import parse_duration
from mqtool.message import PROPERTIES


def _property(text: str) -> tuple[str, Any]:
    """An AMQP property, from name=value; names as in the specification, with - or _."""
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
        if not value.isdecimal() or not lowest <= int(value) <= highest:
            raise ValueError(f"{name.replace('_', '-')} must be a number from {lowest} to {highest}, not {value!r}")
        return int(value)

    return parse


def _expiration(_name: str, value: str) -> str:
    return value if value.isdecimal() else str(round(parse_duration(value) * 1000))


def _timestamp(_name: str, value: str) -> int:
    try:
        return int(value) if value.isdecimal() else int(datetime.fromisoformat(value).timestamp())
    except ValueError as error:
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


@in_panel("Messages")
class MessageOptions(NamedTuple):
    """Where messages come from, what they carry, and what to make of the broker's answers."""

    file: Annotated[Path | None, Option("-f", help="Read from FILE; - is stdin")] = None
    lines: Annotated[bool, Option("-l", help="Send each line as a message, as it arrives")] = False
    null: Annotated[bool, Option("-0", help="Messages end with a zero byte, as from find -print0")] = False
    delimiter: Annotated[str | None, Option("-D", metavar="CHAR", help="Messages end with CHAR")] = None
    as_json: Annotated[bool, Option("--json", help="Each line is a message as NDJSON")] = False
    key_pattern: Annotated[
        Any | None,
        Option(parser=_key_pattern, metavar="REGEX", help="Fill {group} places in the routing key from the line"),
    ] = None
    headers: Annotated[list[Any] | None, header_option("Header; KEY:=JSON for a typed value")] = None
    properties: Annotated[
        list[Any] | None,
        Option("--property", parser=_property, metavar="NAME=VALUE", help="Property, such as content-type=text/plain"),
    ] = None
    persistent: Annotated[bool, Option(help="Delivery mode 2: kept on disk in a durable queue")] = False
    mandatory: Annotated[bool, Option(help="Fail if a message is unroutable")] = False
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT
    failed_to: Annotated[Path | None, Option(metavar="FILE", help="Keep unconfirmed messages in FILE, as NDJSON")] = (
        None
    )

    @property
    def is_stream(self) -> bool:
        """Whether the input is many messages rather than one."""
        return self.lines or self.null or self.as_json or self.delimiter is not None


Words = Annotated[list[str] | None, Argument(help="Message words (default: stdin, or 'Hello World!')")]


class Publishing(NamedTuple):
    """What to publish, when it is to arrive, and which broker to publish to."""

    options: MessageOptions
    delays: DelayOptions
    broker: Broker
    words: Words = None
