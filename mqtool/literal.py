"""Values as people write them in conditions, and how those of messages compare with them."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from mqtool import ndjson
from mqtool.duration import parse_duration

_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d{0,40})(?:\.\d{1,40})?", re.ASCII)
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)(?:([kKMGT])(i?))?B", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?", re.ASCII | re.DOTALL)


class Literal(NamedTuple):
    """A value in a condition.

    Attributes:
        number: what it counts as; octets of a size, seconds of a duration, or since 1970 of a time.
        is_text: it was quoted, so it compares with text alone.
    """

    text: str
    number: float | None = None
    is_time: bool = False
    is_text: bool = False


def bare(text: str) -> Literal:
    """A value without quotes: text, or what it may count as."""
    if _NUMBER.fullmatch(text):
        return Literal(text, _parsed(text))
    if size := _SIZE.fullmatch(text):
        base = 1024 if size[3] else 1000
        return Literal(text, float(size[1]) * base ** " KMGT".index((size[2] or " ").upper()))
    if _TIME.fullmatch(text):
        return Literal(text, _seconds(text), is_time=True)
    try:
        return Literal(text, parse_duration(text))
    except (ValueError, OverflowError):
        return Literal(text)


def _parsed(text: str) -> float:
    return float(text) if "." in text else int(text)


def _seconds(text: str) -> float | None:
    """Since 1970; None if it is not a time. One without an offset is local."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def number_of(value: Any, literal: Literal) -> float | None:
    """What a value counts as, beside a literal that is a number."""
    if isinstance(value, str):
        if literal.is_time:
            return _seconds(value)
        return _parsed(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).timestamp()
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    return value if isinstance(value, int | float) else None


def text_of(value: Any) -> str:
    """A value as it stands in our NDJSON; text alone without its quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    try:
        return ndjson.as_json(value)
    except (TypeError, ValueError, RecursionError):
        return ""
