"""Conversion of messages between AMQP 0-9-1 clients and AMQP 1.0 clients, according to the tables of RabbitMQ 4.

What a stream stores of a message from an AMQP 0-9-1 client is in stream_conversion.py.
See https://www.rabbitmq.com/docs/conversions. A message with a value that RabbitMQ 4 fails to convert is not delivered
over the other protocol, and a stream does not take it.
"""

import math
import re
import uuid
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from mqtool.broker.embedded.model.amqp_errors import INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.amqp_message import MessageProperties, TimeOfDeath, encode_short
from mqtool.broker.embedded.model.profile import Profile
from mqtool.codecs.amqp10_message import BareProperties, MessageHeader
from mqtool.codecs.amqp10_values import (
    UINT64,
    Any10,
    Array,
    Char,
    Described,
    Map,
    Milliseconds,
    RawDecimal,
    Symbol,
    ULong,
)
from mqtool.codecs.field_tables import (
    ByteArray,
    Decimal,
    Int64,
    Table,
    Timestamp,
    UInt8,
    UInt32,
    Value,
    encode_table,
    text,
)

#: The `type` of a message whose body is encoded as AMQP 1.0, because it is a value or a sequence.
ENCODED_BODY = "amqp-1.0"

#: Strings shorter than this many bytes fit into an AMQP 0-9-1 short string.
_SHORT = 256

#: Header values of more bytes than this become binary: RabbitMQ does not check whether they are UTF-8.
_LONGEST_TEXT = 4096

_URN = re.compile(r"urn:uuid:([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})")
_QUEUES = "/queues/"

_DEATHS, X_DEATHS = "x-death", Symbol("x-opt-deaths")
_RECEIVED, _X_RECEIVED = "timestamp_in_ms", Symbol("x-opt-rabbitmq-received-time")
_CC, _X_CC = "CC", Symbol("x-cc")
_X_TYPE = Symbol("x-basic-type")
_DEATH_FIELDS = ("queue", "reason", "count", "time", "exchange", "routing-keys")


class Dropped:
    """A placeholder for a value that has no equivalent in the other protocol."""


DROPPED = Dropped()


def text_of(raw: str | bytes) -> str:
    """Return bytes as text; bytes that are not UTF-8 become surrogates."""
    return raw if isinstance(raw, str) else raw.decode(errors="surrogateescape")


def quoted(name: str) -> str:
    """Percent-encode a name for an address."""
    return quote(name.encode(errors="surrogateescape"), safe="")


def unquoted(name: str) -> str:
    """Decode a percent-encoded name. Raises UnicodeDecodeError if it is not UTF-8."""
    return unquote(name, errors="strict")


def fits_091(annotations: Map, application: Map) -> bool:
    """Return False if one of the values that become headers has a type that RabbitMQ cannot convert."""
    kept = (value for key, value in annotations.items() if isinstance(key, Symbol) and not _is_internal(key))
    return all(map(_fits_091, (*application.values(), *kept)))


def _fits_091(value: Any10, *, in_list: bool = False) -> bool:
    match value:
        case uuid.UUID() | Char():
            return False
        case ULong():
            return not in_list or value < 1 << 63
        case list():
            return all(_fits_091(item, in_list=True) for item in value)
        case dict():
            return all(map(_fits_091, value.values()))
    return True


def value_to_091(value: Any10) -> "Value | Dropped":
    """Convert an AMQP 1.0 value to a header value; return DROPPED if AMQP 0-9-1 has no such type."""
    match value:
        case Milliseconds():
            return Timestamp(_seconds(value))
        case ULong():
            return Int64(_signed(value))
        case Symbol() | Char():
            return str(value)
        case float():
            return value if math.isfinite(value) else DROPPED
        case RawDecimal() | Described():
            return DROPPED
        case bytes():
            return text(value)
        case uuid.UUID():
            return str(value)
        case list():
            return [each for item in value if not isinstance(each := value_to_091(item), Dropped)]
        case dict():
            return table_to_091(value.items())
    return value  # type: ignore[no-any-return]


def _signed(value: int) -> int:
    """Convert an unsigned 64-bit integer to the signed one with the same bits."""
    return value if value < 1 << 63 else value - (1 << 64)


def _seconds(milliseconds: int) -> int:
    """Convert a time to seconds, rounding towards zero. Negative times wrap around to unsigned 64-bit integers."""
    return (milliseconds // 1000 if milliseconds >= 0 else -(-milliseconds // 1000)) & UINT64


def table_to_091(pairs: Iterable[tuple[Any10, Any10]]) -> Table:
    """Convert a map to a table. Entries whose key is too long, or whose value has no equivalent, are dropped."""
    table: Table = {}
    for key, value in pairs:
        name = str(key)
        if len(name.encode(errors="surrogateescape")) < _SHORT and not isinstance(each := value_to_091(value), Dropped):
            table[name] = each
    return table


def value_from_091(value: Value) -> Any10 | Dropped:
    """Convert a header value to an AMQP 1.0 value; return DROPPED for a decimal."""
    match value:
        case Timestamp():
            return _milliseconds(value)
        case str():
            raw = value.encode(errors="surrogateescape")
            is_text = len(raw) <= _LONGEST_TEXT and b"\0" not in raw and isinstance(text(raw), str)
            return value if is_text else raw
        case Decimal():
            return DROPPED
        case ByteArray():
            return bytes(value)
        case list():
            return [each for item in value if not isinstance(each := value_from_091(item), Dropped)]
        case dict():
            return map_from_091(value, Symbol)
    return value


def map_from_091(table: Mapping[str, Value], key: type[str] = str) -> Map:
    """Convert a table to a map with keys of type `key`. Decimals are dropped."""
    pairs = ((key(name), value_from_091(value)) for name, value in table.items())
    return {name: value for name, value in pairs if not isinstance(value, Dropped)}


def _short(value: Any10) -> bytes | None:
    """Return a string or binary value as bytes; None for other types, and for more bytes than a short string holds."""
    raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    return raw if isinstance(raw, bytes) and len(raw) < _SHORT else None


def properties_to_091(
    header: MessageHeader,
    annotations: Map,
    properties: BareProperties,
    application: Map,
    profile: Profile,
    *,
    encoded: bool,
    of_stream: bool = False,
) -> MessageProperties:
    """Convert the AMQP 1.0 sections of a message to AMQP 0-9-1 properties.

    Args:
        encoded: True if the body is an AMQP 1.0 value or sequence, which is kept encoded.
        of_stream: True if the message is read from a stream. Only such messages can have the delivery mode 1.
    """
    of_3_13 = annotations if profile.restores_basic else {}
    found: dict[str, bytes | None] = {
        "content_type": _short(properties.content_type),
        "content_encoding": _short(properties.content_encoding),
        "reply_to": _reply_to_091(properties.reply_to, profile),
        "expiration": _short(of_3_13.get(Symbol("x-basic-expiration"))),
        "type": ENCODED_BODY.encode() if encoded else _short(annotations.get(_X_TYPE)),
        "user_id": _user_id(properties.user_id),
        "app_id": _short(properties.group_id),
    }
    ids, _ = _ids_to_091(properties)
    headers = headers_to_091(annotations, properties, application)
    if header.ttl is not None:
        found["expiration"] = str(int(header.ttl)).encode()
    fields = {name: encode_short(raw) for name, raw in (found | ids).items() if raw is not None}
    mode = 1 + (profile.assumes_durable if header.durable is None else header.durable)
    is_said = mode != 1 or (of_stream and header.durable is not None)
    fields |= _numbers_to_091(header, of_3_13, properties, mode if is_said else None)
    if headers:
        fields["headers"] = encode_table(headers)
    return MessageProperties.of(fields)


def headers_to_091(annotations: Map, properties: BareProperties, application: Map) -> Table:
    """Convert application properties, annotations, and ids that cannot be properties, to headers sorted by name."""
    headers = _ids_to_091(properties)[1]
    headers |= table_to_091((key, value) for key, value in application.items() if isinstance(key, str))
    headers |= _annotations_to_091(annotations)
    return dict(sorted(headers.items()))


def _ids_to_091(properties: BareProperties) -> tuple[dict[str, bytes], Table]:
    """Convert the message id and the correlation id: to properties if possible, otherwise to headers.

    Returns:
        The properties as bytes by name, and the headers.
    """
    found: dict[str, bytes] = {}
    headers: Table = {}
    for name, value in (("message_id", properties.message_id), ("correlation_id", properties.correlation_id)):
        match value:
            case uuid.UUID():
                found[name] = value.urn.encode()
            case ULong():
                found[name] = str(int(value)).encode()
            case bytes():
                headers[f"x-{name.replace('_', '-')}"] = ByteArray(value)
            case str():
                if (raw := _short(value)) is not None:
                    found[name] = raw
                else:
                    headers[f"x-{name.replace('_', '-')}"] = str(value)
    return found, headers


def _numbers_to_091(
    header: MessageHeader, annotations: Map, properties: BareProperties, mode: int | None
) -> dict[str, bytes]:
    fields = {}
    if header.durable is None:
        mode = annotations.get(Symbol("x-basic-delivery-mode"), mode)
    priority = annotations.get(Symbol("x-basic-priority")) if header.priority is None else header.priority
    for name, value in (("delivery_mode", mode), ("priority", priority)):
        if isinstance(value, int) and 0 <= value < 256:
            fields[name] = bytes((value,))
    if isinstance(properties.creation_time, int):
        fields["timestamp"] = _seconds(properties.creation_time).to_bytes(8)
    return fields


def _reply_to_091(value: Any10, profile: Profile) -> bytes | None:
    """Convert a reply-to to bytes. From RabbitMQ 4.2 on, the address of a queue becomes the queue's name."""
    raw = _short(value)
    if raw is not None and profile.addresses_replies and raw.startswith(_QUEUES.encode()):
        return _short(unquote(text_of(raw).removeprefix(_QUEUES), errors="surrogateescape"))
    return raw


def _user_id(value: Any10) -> bytes | None:
    raw = _short(value)
    return raw if raw is not None and b"\0" not in raw and isinstance(text(raw), str) else None


def _annotations_to_091(annotations: Map) -> Table:
    headers: Table = {}
    for key, value in annotations.items():
        if key == _X_CC:
            headers |= table_to_091([(_CC, value)])
        elif key == _X_RECEIVED:
            if isinstance(value, Milliseconds):
                headers[_RECEIVED] = Int64(value)
        elif key == X_DEATHS:
            if (deaths := _deaths_to_091(value)) is not None:
                headers[_DEATHS] = deaths
        elif isinstance(key, Symbol) and key.startswith("x-") and not _is_internal(key):
            headers |= table_to_091([(key, value)])
    return headers


def _is_internal(name: str) -> bool:
    return name.startswith("x-basic-") or name in ("x-routing-key", "x-exchange", _DEATHS)


def _deaths_to_091(value: Any10) -> list[Value] | None:
    """Convert the annotation x-opt-deaths to an x-death header; return None if no broker has written it."""
    deaths: list[Value] = []
    for death in value if isinstance(value, list) else ():
        match death:
            case {
                "queue": str() as queue,
                "reason": str() as reason,
                "count": ULong() as count,
                "first-time": Milliseconds() as time,
                "exchange": str() as exchange,
                "routing-keys": list() as keys,
            }:
                ttl = death.get("ttl")
                table: Table = {"original-expiration": str(int(ttl))} if isinstance(ttl, UInt32) else {}
                table |= {
                    "count": Int64(_signed(count)),
                    "reason": str(reason),
                    "queue": queue,
                    "time": Timestamp(_seconds(time)),
                    "exchange": exchange,
                    "routing-keys": [str(key) for key in keys],
                }
                deaths.append(table)
            case _:
                return None
    return deaths or None


def deaths_from_091(value: Value) -> Array | None:
    """Convert an x-death header to the annotation x-opt-deaths; return None if no broker has written the header.

    The annotation contains the times of the first and the last death. The header of a message that the broker has read
    from disk contains only the first time, in seconds, which is used for both.
    """
    deaths = Array()
    for death in value if isinstance(value, list) else ():
        if not isinstance(death, dict) or any(name not in death for name in _DEATH_FIELDS):
            return None
        queue, reason, count, time, exchange, keys = (death[name] for name in _DEATH_FIELDS)
        if not (isinstance(count, int) and count >= 0 and isinstance(time, int) and isinstance(keys, list)):
            return None
        ttl = _ttl(death.get("original-expiration"))
        first, last = (time.first, time.last) if isinstance(time, TimeOfDeath) else (_milliseconds(time),) * 2
        deaths.append(
            ({} if ttl is None else {Symbol("ttl"): ttl})
            | {
                Symbol("queue"): queue,
                Symbol("reason"): Symbol(reason),
                Symbol("count"): ULong(count),
                Symbol("first-time"): Milliseconds(first),
                Symbol("last-time"): Milliseconds(last),
                Symbol("exchange"): exchange,
                Symbol("routing-keys"): Array(text_of(key) for key in keys if isinstance(key, str | bytes)),
            }
        )
    return deaths or None


def header_from_091(properties: MessageProperties) -> MessageHeader:
    """Build the AMQP 1.0 header section of a message from its AMQP 0-9-1 properties."""
    return MessageHeader(
        durable=properties.delivery_mode == 2,
        priority=None if properties.priority is None else UInt8(properties.priority),
        ttl=_ttl(properties.expiration),
    )


def _ttl(expiration: Value) -> UInt32 | None:
    """Convert an expiration to a time to live; return None if it is not a number, or too large."""
    if not isinstance(expiration, str) or not expiration.isdecimal() or len(expiration) >= _SHORT:
        return None
    return UInt32(expiration) if int(expiration) < 1 << 32 else None


def annotations_from_091(headers: Table, *, is_dead: bool = False) -> Map:
    """Convert the header CC, and the headers whose names start with `x-`, to message annotations.

    Args:
        is_dead: True if the broker has written the header x-death, rather than a client.
    """
    annotations: Map = {}
    for name, value in headers.items():
        if is_dead and name == _DEATHS and (deaths := deaths_from_091(value)) is not None:
            annotations[X_DEATHS] = deaths
        elif name.startswith("x-") or (name == _CC and isinstance(value, list)):
            converted = value_from_091(value)
            if not isinstance(converted, Dropped):
                annotations[_X_CC if name == _CC else Symbol(name)] = converted
    return annotations


def sections_from_091(properties: MessageProperties, profile: Profile) -> tuple[Map, BareProperties, Map, bool]:
    """Convert AMQP 0-9-1 properties to AMQP 1.0 sections.

    Returns:
        The message annotations, the properties, the application properties, and whether the body is an encoded
        AMQP 1.0 body (see ENCODED_BODY).

    Raises:
        ConnectionException: 541, a header that would be converted is a decimal, or contains one.
    """
    for name, value in properties.headers.items():
        if (name.startswith("x-") or not isinstance(value, list | dict)) and _has_decimal(value):
            raise ConnectionException(INTERNAL_ERROR)  # RabbitMQ fails in the same way
    named = {name: value for name, value in properties.named().items() if isinstance(value, str)}
    annotations = annotations_from_091(properties.headers)
    if "type" in named:
        annotations = {_X_TYPE: named["type"]} | annotations
    stamp = properties.fields().get("timestamp")
    bare = BareProperties(
        message_id=_id_from_091(named.get("message_id")),
        user_id=named["user_id"].encode(errors="surrogateescape") if "user_id" in named else None,
        reply_to=_reply_to_from_091(named.get("reply_to"), profile),
        correlation_id=_id_from_091(named.get("correlation_id")),
        content_type=Symbol(named["content_type"]) if "content_type" in named else None,
        content_encoding=Symbol(named["content_encoding"]) if "content_encoding" in named else None,
        creation_time=None if stamp is None else _milliseconds(int.from_bytes(stamp)),
        group_id=named.get("app_id"),
    )
    plain = {
        name: value
        for name, value in properties.headers.items()
        if not name.startswith("x-") and not isinstance(value, list | dict)
    }
    return annotations, bare, map_from_091(plain), named.get("type") == ENCODED_BODY


def _has_decimal(value: Value) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Decimal) or any(map(_has_decimal, inner))


def _milliseconds(seconds: int) -> Milliseconds:
    """Convert a time to milliseconds, keeping the lowest 64 bits of a larger number."""
    return Milliseconds(_signed(seconds * 1000 & UINT64))


def _reply_to_from_091(value: str | None, profile: Profile) -> str | None:
    return value if value is None or not profile.addresses_replies else _QUEUES + quoted(value)


def _id_from_091(value: str | None) -> uuid.UUID | str | None:
    if value is not None and (found := _URN.fullmatch(value)) is not None:
        return uuid.UUID(found[1])
    return value
