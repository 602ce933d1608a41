"""Convert messages to and from JSON, one object per line. A delivery's line can be published again unchanged.

Each line names the version of this format; a line without it, such as one written by hand, is of version 1.

Values are plain JSON. A header that JSON cannot express is an object with one key: {"$bytes": base64},
{"$decimal": "1.5"}, {"$double": "NaN", "Infinity" or "-Infinity"}, {"$timestamp": seconds since 1970, UTC},
{"$milliseconds": number} for a time that Python lacks, or {"$encoded": base64} and {"$amqp10": base64} for a value left
in the encoding of AMQP 0-9-1 or 1.0. A table that looks like one of these is written as {"$table": table}. In text,
bytes that are not UTF-8 are written as the escapes \\udc80 to \\udcff. The line's "types" (see wire_types.py) names the
types that the values would not get by themselves.
"""

import base64
import binascii
import codecs
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from mqtool import wire_types
from mqtool.claims import Claimed
from mqtool.codecs.field_tables import EXACT
from mqtool.duration import compact_duration, parse_duration
from mqtool.errors import BadData
from mqtool.message import (
    COPIES,
    END_OF_TIME,
    MAX_DEPTH,
    ONLY_10,
    PROPERTIES,
    Delivery,
    Message,
    Timestamp,
    Undecoded,
    time_to_live,
)

#: The version that is written, and the newest that can be read.
VERSION = 1
#: The keys of a delivery's line.
OF_A_DELIVERY = frozenset(
    {"timestamp", "exchange", "routing_key", "queue", "redelivered", "headers", "properties", "body"}
)
#: With several brokers, 'mqtool tap' adds "broker", which is not part of the message.
_KNOWN = OF_A_DELIVERY | {"version", "broker", "delay", "at", "body_base64", "types", "footer"}
#: RabbitMQ sets this header in each message that it delivers from a stream, whatever the publisher wrote.
_OFFSET = "x-stream-offset"
#: Properties in the order in which they are written.
_PROPERTIES = tuple(name for name in PROPERTIES + ONLY_10 if name not in ("headers", "footer"))
_TIMES = frozenset({"timestamp", "absolute_expiry_time"})
_TEXT = frozenset(_PROPERTIES) - _TIMES - {"delivery_mode", "priority", "group_sequence"}
_SURROGATE = re.compile("[\ud800-\udfff]")
#: The number of bytes of a body that abridged() shows.
_START = 1_000
#: The `$double` of each float that JSON lacks, by Python's name of the float.
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_WHOLE_NUMBERS = {"delivery_mode": 255, "priority": 255, "group_sequence": 2**32 - 1}


def from_delivery(delivery: Delivery, received_at: datetime) -> bytes:
    """Format a delivery as a line that ends with a newline. `received_at` becomes the line's "timestamp"."""
    line: dict[str, Any] = {
        "version": VERSION,
        "timestamp": received_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
        "queue": delivery.queue,
        "redelivered": delivery.redelivered,
    }
    return _line(line, delivery.properties, delivery.body)


def from_message(message: Message) -> bytes:
    """Format a message as a line that ends with a newline; to_message() converts it back to an equal message."""
    properties = {**message.properties, "message_id": message.message_id}
    line: dict[str, Any] = {"version": VERSION, "exchange": message.exchange, "routing_key": message.routing_key}
    if message.delay is not None:
        line["delay"] = compact_duration(message.delay)
    if message.due is not None:
        line["at"] = datetime.fromtimestamp(message.due, UTC).isoformat(timespec="milliseconds")
    return _line(line, properties, message.body)


def _line(line: dict[str, Any], given: Mapping[str, Any], body: bytes) -> bytes:
    given = dict(given.items())
    properties = {name: value for name in _PROPERTIES if (value := given.get(name)) is not None}
    headers, footer = given.get("headers"), given.get("footer")
    line["headers"] = None if headers is None else _table_to_json(headers)
    line["properties"] = properties
    if footer:
        line["footer"] = _table_to_json(footer)
    if types := wire_types.of_message(headers, properties, footer, body):
        line["types"] = types
    try:
        line["body"] = body.decode()
    except UnicodeDecodeError:
        line["body_base64"] = base64.b64encode(body).decode()
    return _dumped(line).encode() + b"\n"


def abridged(exchange: str, routing_key: str, headers: Any, properties: Any, body: bytes) -> dict[str, Any]:
    """Describe a message for people: its size, and only the start of its body. All other arguments are plain JSON."""
    view = {
        "exchange": exchange,
        "routing_key": routing_key,
        "headers": headers,
        "properties": properties,
        "size": len(body),
    }
    start = body[:_START]
    try:
        # The last character of the start may be cut.
        return {**view, "body": codecs.utf_8_decode(start, "strict", len(start) == len(body))[0]}
    except UnicodeDecodeError:
        return {**view, "body_base64": base64.b64encode(start).decode()}


def as_json(value: Any) -> str:
    """Format a header's value, or all headers, as JSON, in the notation of this module."""
    return _dumped(_table_to_json(value) if isinstance(value, Mapping) else _to_json(value))


def from_json(value: Any) -> Any:
    """Convert the JSON of a header's value to Python; return an invalid value, such as {"$bytes": 1}, unchanged."""
    try:
        return _from_json(value, "", MAX_DEPTH)
    except BadData:
        return value


def _dumped(value: Any) -> str:
    return escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def escaped(text: str) -> str:
    """Escape the surrogates in a JSON text, because UTF-8 cannot encode them."""
    return text if text.isascii() else _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_message(line: bytes, where: str) -> Message:
    """Parse a line as a message. Only a body is required. `where` is the line's name in errors, such as "line 3"."""
    return message_of(to_object(line, where), where)


def to_object(line: bytes, where: str) -> dict[str, Any]:
    """Parse the JSON of a line, for message_of(). Raises BadData if it is not an object, or of a newer version."""
    example = 'a message looks like {"body": "Hello"}'
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:  # its text would name a second line: the 1st of `line`
        place = f"{where.removesuffix(',')}, column {error.colno},"
        raise BadData(f"{place} is not JSON: {error.msg}", example) from error
    except RecursionError as error:
        raise BadData(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise BadData(f"{where} is not JSON: {error}", example) from error
    if not isinstance(value, dict):
        raise BadData(f"{where} is not a JSON object", example)
    version = value.get("version", VERSION)
    if type(version) is not int or version < 1:
        raise BadData(f'{where} has a "version" that is not a number from 1: {version!r}')
    if version > VERSION:
        raise BadData(
            f"{where} is in version {version} of the NDJSON format, and this mqtool reads up to version {VERSION}",
            "upgrade mqtool",
        )
    return value


def message_of(value: Mapping[str, Any], where: str, *, trusts_streams: bool = False) -> Message:
    """Convert the parsed JSON of a line to a message. Raises BadData if a key or value is not valid.

    Args:
        trusts_streams: publish a message that was read from a stream as it says. Otherwise, it is addressed to its
            stream, through the default exchange, and loses its COPIES: the broker has not checked what it says.
    """
    if unknown := sorted(set(value) - _KNOWN):
        raise BadData(f"{where} has an unknown key {unknown[0]!r}", f"one of {', '.join(sorted(_KNOWN))}")
    properties, body = _properties(value, where), _body(value, where)
    if (types := value.get("types")) is not None:
        body = wire_types.give(types, properties, body, where)
    message_id = properties.pop("message_id", None)
    routing_key, exchange = _text(value, "routing_key", where), _text(value, "exchange", where)
    if (stream := _stream(value)) is not None:
        exchange, routing_key = Claimed((exchange, routing_key)).proven(lambda _: trusts_streams) or ("", stream)
        if not trusts_streams:
            properties = without_copies(properties)
    delay, due = _delay(value, where), _due(value, where)
    return Message(body, routing_key, exchange, properties, message_id, delay, due, "redelivered" in value)


def _stream(value: Mapping[str, Any]) -> str | None:
    """Return the stream that a message was read from; None if it is not from a stream, or the line names no queue.

    A publisher can write the header into a message for another queue, which then goes to that queue only.
    """
    headers, queue = value.get("headers"), value.get("queue")
    is_from_stream = isinstance(headers, dict) and _OFFSET in headers
    return queue if is_from_stream and isinstance(queue, str) and queue else None


def leads_elsewhere(value: Mapping[str, Any]) -> bool:
    """Return True if the message was read from a stream, and says that it is to be published anywhere else."""
    if (stream := _stream(value)) is None:
        return False
    place = value.get("exchange"), value.get("routing_key")
    return place != ("", stream) or not value["headers"].keys().isdisjoint(COPIES)


def without_copies(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's properties without the headers that contain more routing keys."""
    headers = properties.get("headers") or {}
    if headers.keys().isdisjoint(COPIES):
        return dict(properties)
    return {**properties, "headers": {name: value for name, value in headers.items() if name not in COPIES}}


def _body(value: Mapping[str, Any], where: str) -> bytes:
    if ("body" in value) == ("body_base64" in value):
        raise BadData(f'{where} needs either "body" or "body_base64"')
    if "body" in value:
        return (_text(value, "body", where) or "").encode("utf-8", "surrogatepass")
    try:
        return _bytes(_text(value, "body_base64", where) or "")
    except (binascii.Error, ValueError) as error:
        raise BadData(f'{where} has a "body_base64" that is not base64: {error}') from error


def _text(value: Mapping[str, Any], key: str, where: str) -> str | None:
    text = value.get(key)
    if text is None and key not in ("body", "body_base64"):
        return None
    if not isinstance(text, str):
        hint = "write it as a string; 'mqtool send -l' sends lines as they are" if key == "body" else None
        raise BadData(f'{where} has a "{key}" that is not text: {json.dumps(text)}', hint)
    return text


def _delay(value: Mapping[str, Any], where: str) -> float | None:
    text = _text(value, "delay", where)
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadData(f'{where} has a bad "delay": {error}') from error


def _due(value: Mapping[str, Any], where: str) -> float | None:
    text = _text(value, "at", where)
    if text is None:
        return None
    if value.get("delay") is not None:
        raise BadData(f'{where} has both "delay" and "at"', "use only one of them")
    try:
        due = datetime.fromisoformat(text).timestamp()
        datetime.fromtimestamp(due, UTC)  # in UTC, it may be in the year 0 or 10000, which from_message() cannot write
    except (ValueError, OverflowError, OSError) as error:
        raise BadData(f'{where} has an "at" that is not a time such as 2026-01-31T12:00:00Z: {text!r}') from error
    return due


def _properties(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    given, headers, footer = value.get("properties"), value.get("headers"), value.get("footer")
    given = {} if given is None else given
    if not isinstance(given, dict) or not isinstance(headers, dict | None):
        raise BadData(f'{where} has "properties" or "headers" that are not objects')
    if not isinstance(footer, dict | None):
        raise BadData(f'{where} has a "footer" that is not an object')
    for name, raw in given.items():
        if not (name in _TEXT and isinstance(raw, str)):
            _check_property(name, raw, where)
    properties = dict(given)
    if "expiration" in properties:
        try:
            time_to_live(properties["expiration"])
        except ValueError as error:
            raise BadData(f'{where} has an "expiration" that is {error}') from error
    if headers is not None:
        properties["headers"] = _table_from_json(headers, where, MAX_DEPTH)
    if footer:
        properties["footer"] = _table_from_json(footer, where, MAX_DEPTH)
    return properties


def _check_property(name: str, value: Any, where: str) -> None:
    what = f"{where} has a property {name!r} that is not"
    if name in _TEXT:
        if not isinstance(value, str):
            raise BadData(f"{what} text: {value!r}")
    elif name in _WHOLE_NUMBERS:
        most = _WHOLE_NUMBERS[name]
        if type(value) is not int or not 0 <= value <= most:
            raise BadData(f"{what} a number up to {most}: {value!r}")
    elif name in _TIMES:
        if type(value) not in (int, float) or not -(1 << 63) <= value < 1 << 64:
            raise BadData(f"{what} a time in seconds since 1970: {value!r}")
    else:
        raise BadData(f"{where} has an unknown property {name!r}", f"one of {', '.join(_PROPERTIES)}")


def _table_to_json(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _to_json(entry) for key, entry in table.items()}


def _to_json(value: Any) -> Any:
    if type(value) in wire_types.AS_THEY_ARE:
        return value
    if isinstance(value, Mapping):
        table = _table_to_json(value)
        return {"$table": table} if len(table) == 1 and not _TYPES.isdisjoint(table) else table
    if isinstance(value, list | tuple):
        return [_to_json(entry) for entry in value]
    if isinstance(value, bytes | bytearray):
        return {getattr(value, "wire_type", "$bytes"): base64.b64encode(value).decode()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, datetime):
        seconds = value.replace(tzinfo=value.tzinfo or UTC).timestamp()
        return {"$timestamp": round(seconds, 3) if value.microsecond else int(seconds)}
    if isinstance(value, Timestamp):
        return {"$timestamp": int(value)}
    if isinstance(value, int) and getattr(value, "wire_type", "") == "$milliseconds":
        return {"$milliseconds": int(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$double": NOT_FINITE[str(value)]}
    return value


def _table_from_json(table: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
    return {key: _from_json(entry, where, depth) for key, entry in table.items()}


def _from_json(value: Any, where: str, depth: int) -> Any:
    if not isinstance(value, list | dict):
        return value
    if isinstance(value, dict) and len(value) == 1:
        [(key, content)] = value.items()
        try:
            if key in _READ:
                return _READ[key](content)
            if key == "$table":
                value = dict(content)
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, OSError) as error:
            raise BadData(f"{where} has a header with a bad {key}: {content!r}") from error
    if depth == 0:
        raise BadData(f"{where} has headers that are nested too deeply", f"{MAX_DEPTH} is the limit")
    if isinstance(value, list):
        return [_from_json(entry, where, depth - 1) for entry in value]
    return _table_from_json(value, where, depth - 1)


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


def _undecoded(text: Any) -> Undecoded:
    if not EXACT.is_value(encoded := _bytes(text)):
        raise ValueError("not a value in AMQP's encoding")
    return Undecoded(encoded)


def _amqp10(text: Any) -> Any:
    from mqtool.codecs.amqp10_values import Encoded, decode

    encoded = _bytes(text)
    if decode(encoded)[1] != len(encoded):
        raise ValueError("not a value in the encoding of AMQP 1.0")
    return Encoded(encoded)


def _milliseconds(number: Any) -> Any:
    from mqtool.codecs.amqp10_values import Milliseconds

    if type(number) is not int or not -(1 << 63) <= number < 1 << 63:
        raise ValueError("not a 64-bit integer")
    return Milliseconds(number)


def _time(seconds: Any) -> datetime | Timestamp:
    is_beyond = type(seconds) is int and END_OF_TIME < seconds < 2**64
    return Timestamp(seconds) if is_beyond else datetime.fromtimestamp(seconds, UTC)


_READ: dict[str, Callable[[Any], Any]] = {
    "$amqp10": _amqp10,
    "$bytes": _bytes,
    "$decimal": Decimal,
    "$double": {shown: float(name) for name, shown in NOT_FINITE.items()}.__getitem__,
    "$encoded": _undecoded,
    "$milliseconds": _milliseconds,
    "$timestamp": _time,
}
_TYPES = {*_READ, "$table"}
