"""Encode and decode messages as AMQP 1.0 sections, with RabbitMQ 4.3's mapping of AMQP 0-9-1's properties and headers.

The clients for AMQP 1.0 and for streams use it. A type that AMQP 0-9-1 does not have is kept as a subclass of the
Python type. https://www.rabbitmq.com/docs/conversions
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from mqtool.codecs.amqp10_message import (
    APPLICATION_PROPERTIES,
    DATA,
    FOOTER,
    HEADER,
    MESSAGE_ANNOTATIONS,
    PROPERTIES,
    SEQUENCE,
    VALUE,
    plain_list,
    plain_map,
    read_section,
    section_at,
)
from mqtool.codecs.amqp10_spans import end_of, find
from mqtool.codecs.amqp10_values import (
    NULL,
    UINT64,
    Array,
    Encoded,
    Milliseconds,
    Room,
    Symbol,
    TextMap,
    ULong,
    UuidText,
    compound,
    section,
    variable,
)
from mqtool.codecs.amqp10_values import encode as encode_any
from mqtool.codecs.field_tables import Int32, Int64, UInt8, UInt32
from mqtool.errors import BadData
from mqtool.message import PERSISTENT, UNREADABLE, Delivery, Message, Undecoded, time_to_live

_T = TypeVar("_T")
#: The fields of the properties section, in order.
_FIELDS = (
    *("message_id", "user_id", "to", "subject", "reply_to", "correlation_id"),
    *("content_type", "content_encoding", "absolute_expiry_time", "timestamp", "app_id"),
    *("group_sequence", "reply_to_group_id"),
)
_TO = 2
_IDS, _TIMES = ("message_id", "correlation_id"), ("timestamp", "absolute_expiry_time")
_SYMBOLS = ("content_type", "content_encoding")
_URN = "urn:uuid:"
_IS_URN = re.compile(rf"{_URN}[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}")
_IN_HEADER = ("delivery_mode", "priority", "expiration")
_EXCHANGE, _KEY, _TYPE = "x-exchange", "x-routing-key", "x-basic-type"
#: How RabbitMQ stored properties in streams before 4.0: as application properties, and as annotations.
_AS_HEADERS = {"x-basic-type": "type", "x-basic-app-id": "app_id"}
_AS_ANNOTATIONS = {f"x-basic-{name.replace('_', '-')}": name for name in _IN_HEADER}
_RECEIVED, _DEATHS, _COPIES = "x-opt-rabbitmq-received-time", "x-opt-deaths", "x-cc"
#: The type of a message whose body is an AMQP 1.0 value instead of bytes; RabbitMQ's name for it.
_TYPE_OF_VALUES = "amqp-1.0"
_QUEUES, _EXCHANGES = _ADDRESSES = "/queues/", "/exchanges/"
_DURABLE = b"\x00\x53\x70\xc0\x02\x01\x41"
_SECTION = b"\x00\x53"
_FOOTER_START = _SECTION + bytes((FOOTER,))
#: How the values of these sections begin: with the constructor of a list, or that of a map.
_CONSTRUCTORS = {SEQUENCE: b"\x45\xc0\xd0", FOOTER: b"\xc1\xd1"}
#: Up to this many sections that are shorter than this many bytes are cached, because publishers repeat them.
_CACHED, _SMALL = 256, 512


class ApplicationProperty(str):
    """The name of a header that arrived as an application property, although its name is that of an annotation.

    Sent again, it must not become an annotation: RabbitMQ would act on x-cc with the rights of whoever sends it again,
    but has not checked it when the publisher sent it.
    """

    __slots__ = ()


class NumberId(str):
    """A message id or correlation id that is an unsigned long."""

    __slots__ = ()
    wire_type = "uint64"


class BinaryId(str):
    """A message id or correlation id that is binary."""

    __slots__ = ()
    wire_type = "binary"


class TextId(str):
    """A message id or correlation id that is a string, although it looks like that of a UUID (urn:uuid:…)."""

    __slots__ = ()
    wire_type = "string"


class Address(str):
    """A reply_to that is neither the address of a queue, which becomes the queue's name, nor that of an exchange."""

    __slots__ = ()
    wire_type = "address"


class TextValue(bytes):
    """A body that is an AMQP 1.0 value of the type string."""

    wire_type = "string"


class BinaryValue(bytes):
    """A body that is an AMQP 1.0 value of the type binary."""

    wire_type = "binary"


def _number(text: str) -> NumberId:
    if re.fullmatch("[0-9]{1,20}", text) is None or int(text) > UINT64:
        raise ValueError("not an unsigned 64-bit integer")
    return NumberId(int(text))


#: Types of properties and bodies by their names in NDJSON.
TYPES_OF_PROPERTIES: dict[str, dict[str, Callable[[str], str]]] = {
    **{name: {"uint64": _number, "binary": BinaryId, "string": TextId} for name in _IDS},
    "reply_to": {"address": Address},
}
TYPES_OF_BODIES: dict[str, type[bytes]] = {"string": TextValue, "binary": BinaryValue}


def queue_address(queue: str) -> str:
    """The address of a queue: /queues/ and its name, percent-encoded."""
    return _QUEUES + quote(queue, safe="", errors="surrogateescape")


def exchange_address(exchange: str, routing_key: str = "") -> str:
    """The address of an exchange, with a routing key; for the default exchange (""), the address of the queue.

    On the default exchange, a routing key that is itself an address (taken from reply-to) is returned unchanged.
    """
    if not exchange:
        return routing_key if routing_key.startswith(_EXCHANGES) else queue_address(routing_key)
    key = f"/{quote(routing_key, safe='', errors='surrogateescape')}" if routing_key else ""
    return f"{_EXCHANGES}{quote(exchange, safe='', errors='surrogateescape')}{key}"


def exchange_and_key(address: str | None) -> tuple[str, str]:
    """The exchange and the routing key that an address refers to."""
    parts = [unquote(part, errors="surrogateescape") for part in (address or "").split("/")[2:]]
    if (address or "").startswith(_QUEUES):
        return "", parts[0]
    return (parts[0], parts[1] if len(parts) > 1 else "") if parts else ("", "")


def encode(message: Message, *, to: str | None = None, persistent: bool = False, exchange: str = "") -> bytes:
    """Encode a message.

    Args:
        to: the message's address, for a link without an address.
        persistent: make the message persistent if it has no delivery mode.
        exchange: for a message of a super stream, its exchange, to be stored as if it had routed the message.

    Raises:
        BadData: AMQP 1.0 has no such property or value.
    """
    body = message.body
    given = message.properties
    if not given and not exchange:
        before = _DURABLE if persistent else b""
        if message.message_id is not None or to is not None:
            before += section(PROPERTIES, compound(0xC0, _fields({}, message.message_id, to)))
        return before + _data(body)
    headers = given.get("headers") or {}
    annotations = [part for name, value in headers.items() if _is_annotation(name) for part in _annotation(name, value)]
    is_encoded = given.get("type") == _TYPE_OF_VALUES and _is_value(body)
    if given.get("type") is not None and not is_encoded:
        annotations += [variable(0xA3, _TYPE.encode()), _text(given["type"])]
    if exchange and message.routing_key:
        for name, value in ((_EXCHANGE, exchange), (_KEY, message.routing_key)):
            annotations += [variable(0xA3, name.encode()), _text(value)]
    application = [part for name, value in headers.items() if not _is_annotation(name) for part in _header(name, value)]
    fields = _fields(given, message.message_id, to)
    footer = given.get("footer")
    return b"".join(
        (
            _header_section(given, persistent=persistent),
            section(MESSAGE_ANNOTATIONS, compound(0xC1, annotations)) if annotations else b"",
            section(PROPERTIES, compound(0xC0, fields)) if fields else b"",
            section(APPLICATION_PROPERTIES, compound(0xC1, application)) if application else b"",
            body if is_encoded else _data(body),
            section(FOOTER, _encoded(footer, "the footer")) if footer else b"",
        )
    )


def _data(body: bytes) -> bytes:
    size, kind, code = len(body), DATA, 0xA0
    if type(body) is not bytes and isinstance(body, TextValue | BinaryValue):
        kind, code = VALUE, 0xA1 if isinstance(body, TextValue) else 0xA0
    return section(kind, bytes((code, size)) if size < 256 else bytes((code + 0x10,)) + struct.pack(">I", size)) + body


def for_old_streams(message: Message) -> Message:
    """Convert a message to the form in which RabbitMQ before 4.0 stores messages of AMQP 0-9-1 clients in streams."""
    properties = dict(message.properties)
    headers: dict[str, Any] = {
        ApplicationProperty(name): value for name, value in (properties.get("headers") or {}).items()
    }
    for header, name in _AS_HEADERS.items():
        if (value := properties.pop(name, None)) is not None:
            headers[ApplicationProperty(header)] = value
    for header, name in _AS_ANNOTATIONS.items():
        if (value := properties.pop(name, None)) is not None:
            headers[header] = value if isinstance(value, str) else UInt8(value)
    if properties.get("reply_to") is not None:
        properties["reply_to"] = Address(properties["reply_to"])
    return replace(message, properties={**properties, "headers": headers})


def _is_value(body: bytes) -> bool:
    """True if an encoded body is a value or sequences, as decode() leaves them, perhaps with a footer.

    What a value contains is not decoded: brokers pass on values that this client cannot decode.

    Any publisher can set the type that says so. Other sections in the body would become those of the new message, with
    a user_id or the annotation x-cc, for which the broker would check the permissions of whoever sends it again.
    """
    kinds, at = [], 0
    try:
        while at < len(body):
            kind, at = section_at(body, at)
            if kind in _CONSTRUCTORS and body[at] not in _CONSTRUCTORS[kind]:
                return False
            kinds.append(kind)
            at = end_of(body, at, Room())
    except (ValueError, IndexError):
        return False
    if kinds[-1:] == [FOOTER]:
        kinds.pop()
    return kinds == [VALUE] or {*kinds} == {SEQUENCE}


def _text(value: object) -> bytes:
    return variable(0xA1, str(value).encode("utf-8", "surrogateescape"))


def _is_annotation(name: str) -> bool:
    """True for headers that RabbitMQ keeps as annotations, which may hold lists and maps.

    A header x-cc is not one: no broker has checked it, if it is from AMQP 0-9-1. The annotation x-cc is read as CC.
    """
    is_named_so = name == "CC" or (name.startswith("x-") and name != _COPIES)
    return is_named_so and not isinstance(name, ApplicationProperty)


def _header_section(given: Mapping[str, Any], *, persistent: bool) -> bytes:
    mode, priority, expiration = (given.get(name) for name in _IN_HEADER)
    durable = persistent if mode is None else mode == PERSISTENT
    if not durable and priority is None and expiration is None:
        return b""
    try:
        lasts = NULL if expiration is None else encode_any(UInt32(time_to_live(str(expiration))))
        rank = NULL if priority is None else b"\x50" + struct.pack(">B", priority)
    except (ValueError, struct.error) as error:
        raise BadData(
            f"expiration {expiration!r} or priority {priority!r} is too large, or not a number",
            "an expiration is in milliseconds, up to 4294967295; a priority up to 255",
        ) from error
    return section(HEADER, compound(0xC0, [b"\x41" if durable else b"\x42", rank, lasts]))


def _fields(given: Mapping[str, Any], message_id: str | None, to: str | None) -> list[bytes]:
    if given.get("cluster_id") is not None:
        raise BadData("AMQP 1.0 has no property cluster-id", "send it as a header: -H cluster-id=VALUE")
    fields = [_field(name, given.get(name)) for name in _FIELDS] if given else [NULL] * (_TO + 1)
    if message_id is not None:
        fields[0] = _id(message_id)
    if to is not None:
        fields[_TO] = _text(to)
    while fields and fields[-1] is NULL:
        fields.pop()
    return fields


def _field(name: str, value: Any) -> bytes:
    if value is None:
        return NULL
    if name in _IDS:
        return _id(value)
    if name == "group_sequence":
        return encode_any(UInt32(value))
    if name in _TIMES:
        return _time(name, value)
    text = str(value)
    if name == "reply_to" and not isinstance(value, Address) and not text.startswith(_ADDRESSES):
        text = queue_address(text)
    if name == "user_id" or name in _SYMBOLS:
        return variable(0xA0 if name == "user_id" else 0xA3, text.encode("utf-8", "surrogateescape"))
    return _text(text)


def _id(value: str) -> bytes:
    if isinstance(value, NumberId):
        return encode_any(ULong(value))
    if value.startswith(_URN) and not isinstance(value, TextId) and _IS_URN.fullmatch(value):
        return encode_any(UuidText(value.removeprefix(_URN)))
    return variable(0xA0 if isinstance(value, BinaryId) else 0xA1, value.encode("utf-8", "surrogateescape"))


def _is_utf_8(text: str) -> bool:
    return text.isascii() or re.search("[\ud800-\udfff]", text) is None


def _time(name: str, seconds: Any) -> bytes:
    try:
        return b"\x83" + struct.pack(">q", seconds * 1000 if isinstance(seconds, int) else round(seconds * 1000))
    except struct.error as error:
        raise BadData(f"the {name} is too large for AMQP 1.0: {seconds}", "it is in seconds since 1970") from error


def _annotation(name: str, value: Any) -> tuple[bytes, bytes]:
    if name == "CC" and not _is_texts(value):
        # The broker would release the message before it gives the reason, as if there were no queue for it.
        hint = f"write it as JSON: -H '{name}:=[\"KEY\"]'"
        raise BadData(f"the header {name!r} must be a list of routing keys", hint)
    key = variable(0xA3, (_COPIES if name == "CC" else name).encode("utf-8", "surrogateescape"))
    return key, _encoded(value, f"the header {name!r}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _header(name: str, value: Any) -> tuple[bytes, bytes]:
    if isinstance(value, list | tuple | Mapping):
        what = "an object" if isinstance(value, Mapping) else "a list"
        hint = "put it into the body; headers that start with x- may be lists and objects"
        if name == _COPIES:
            hint = "routing keys for copies are in the header CC"
        raise BadData(f"the header {name!r} is {what}, which AMQP 1.0 does not allow", hint)
    if not _is_utf_8(name):
        raise _not_utf_8(f"the name {name!r}")
    return _text(name), _encoded(value, f"the header {name!r}")


def _encoded(value: Any, what: str) -> bytes:
    try:
        return encode_any(_of_client(value))
    except UnicodeEncodeError as error:
        raise _not_utf_8(what) from error
    except ValueError as error:
        raise BadData(f"{what} cannot be sent over AMQP 1.0: {error}", "write it as text") from error


def _of_client(value: Any) -> Any:
    """Convert a value to one that amqp10_values encodes with the type that RabbitMQ gives it."""
    kind = type(value)
    if kind is int:
        return next((each(value) for each, end in _INTEGERS if -end <= value < end), ULong(value))
    if kind is str:
        return value if _is_utf_8(value) else value.encode("utf-8", "surrogateescape")
    if isinstance(value, Undecoded):
        raise ValueError("it is left in the encoding of AMQP 0-9-1")
    if isinstance(value, list | tuple):
        return (Array if kind is Array else list)(map(_of_client, value))
    if isinstance(value, Mapping):
        key = str if kind is TextMap else Symbol
        return {key(name): _of_client(each) for name, each in value.items()}
    return value


_INTEGERS: tuple[tuple[type[int], int], ...] = ((Int32, 1 << 31), (Int64, 1 << 63))


def _not_utf_8(what: str) -> BadData:
    return BadData(f"{what} is not valid UTF-8", "only a message's body may be any bytes")


# Decoding.

#: Decoded headers and annotations by their bytes, which are usually the same for all messages of a queue.
_headers_cache: dict[bytes, tuple[dict[str, Any], bool]] = {}
_annotations_cache: dict[bytes, dict[str, Any]] = {}
_NOTHING: dict[str, Any] = {}
_NO_HEADER = _NOTHING, True
#: The annotations if they cannot be read. The routing key must not be the queue's name: with the default exchange, this
#: would prove that the headers tell the truth (see work/history.py).
_UNKNOWN: dict[str, Any] = {"exchange": "", "key": "", "type": None, "headers": {}, "properties": {}}
#: Those of a message without any, such as one of a stream: the queue's name becomes its routing key.
_NO_ANNOTATIONS = {**_UNKNOWN, "key": None}
#: Types with a size of one byte, in which almost all sections are encoded.
_SHORT = (0xA0, 0xC0, 0xC1)


def decode(data: bytes, queue: str, tag: int, epoch: int, *, settled: bool = False) -> Delivery:
    """Decode a delivery's message. A body that is an AMQP 1.0 value other than text or bytes stays encoded.

    A section that cannot be decoded is added to the header UNREADABLE. If the body cannot be found, the delivery's body
    consists of all bytes of the message. The exchange and the routing key are "" if the broker's cannot be read.

    The properties include those that AMQP 0-9-1 lacks (message.ONLY_10).
    """
    sections: dict[int, bytes] = {}
    unreadable: list[bytes] = []
    annotations = _UNKNOWN
    try:
        body, body_type = _split(data, sections)
        annotations = _UNKNOWN if MESSAGE_ANNOTATIONS in sections else _NO_ANNOTATIONS
    except (ValueError, IndexError):
        body, body_type = data, None
        sections.pop(FOOTER, None)
    annotations = read_section(_annotations, sections, MESSAGE_ANNOTATIONS, annotations, unreadable)
    from_header, is_first = read_section(_header_fields, sections, HEADER, _NO_HEADER, unreadable)
    properties = from_header | read_section(_properties, sections, PROPERTIES, _NOTHING, unreadable)
    headers = read_section(_application_properties, sections, APPLICATION_PROPERTIES, _NOTHING, unreadable)
    for name in _AS_HEADERS.keys() & headers.keys():
        headers = {**headers}
        properties = {_AS_HEADERS[name]: str(headers.pop(name)), **properties}
    if annotations["properties"]:
        properties = annotations["properties"] | properties
    if own := annotations["headers"]:
        headers = {name: value for name, value in headers.items() if name not in own} | own
    if footer := read_section(plain_map, sections, FOOTER, _NOTHING, []):
        properties["footer"] = footer
    if unreadable:
        headers = {**headers, UNREADABLE: b"".join(unreadable)}
    if headers:
        properties["headers"] = headers
    if (kind := body_type or annotations["type"]) is not None:
        properties["type"] = kind
    exchange, key = annotations["exchange"], annotations["key"]
    return Delivery(body, exchange, queue if key is None else key, queue, not is_first, properties, tag, epoch, settled)


def _split(data: bytes, sections: dict[int, bytes]) -> tuple[bytes, str | None]:
    """Find the sections before the body, the body, and the type of a message whose body is not bytes.

    If a section occurs several times, the first counts: the broker's come before what the publisher has written.
    """
    parts: list[bytes] = []
    at, size = 0, len(data)
    while at < size:
        kind, value = (data[at + 2], at + 3) if data[at : at + 2] == _SECTION else section_at(data, at)
        if kind == FOOTER:
            sections[FOOTER] = data[value:]
            break
        code = data[value]
        if kind == SEQUENCE or (kind == VALUE and code not in (0xA0, 0xB0, 0xA1, 0xB1)):
            return data[at:], _TYPE_OF_VALUES
        if code in _SHORT:
            start = value + 2
            end = start + data[value + 1]
        else:
            _, start, end = find(data, value)
        if end > size:
            raise ValueError("cut short")
        if kind == VALUE:
            if data.startswith(_FOOTER_START, end):
                sections[FOOTER] = data[end + 3 :]
            return (TextValue if code & 0x0F else BinaryValue)(data[start:end]), None
        if kind == DATA:
            parts.append(data[start:end])
        else:
            sections.setdefault(kind, data[value:end])
        at = end
    return parts[0] if len(parts) == 1 else b"".join(parts), None


def _header_fields(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Decode the header, and whether this is the first delivery."""
    if (known := _headers_cache.get(raw)) is not None:
        return known
    values = plain_list(raw)
    durable, priority, ttl, is_first, failures = [*values, None, None, None, None, None][:5]
    properties: dict[str, Any] = {"delivery_mode": PERSISTENT} if durable else {}
    if _is_number(priority, 1 << 8):
        properties["priority"] = int(priority)
    if _is_number(ttl, 1 << 32):
        properties["expiration"] = str(ttl)
    return _kept(_headers_cache, raw, (properties, bool(is_first) or (not failures and is_first is None)))


def _is_number(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _kept(cache: dict[bytes, _T], raw: bytes, decoded: _T) -> _T:
    if len(raw) < _SMALL:
        if len(cache) >= _CACHED:
            cache.clear()
        cache[raw] = decoded
    return decoded


def _annotations(raw: bytes) -> dict[str, Any]:
    if (known := _annotations_cache.get(raw)) is not None:
        return known
    pairs = plain_map(raw)
    # A publisher can write a value of any type. It must not prove anything: see _UNKNOWN.
    are_texts = all(_is_name(pairs.get(where, "")) for where in (_EXCHANGE, _KEY))
    exchange, key, kind = (pairs.pop(where, None) for where in (_EXCHANGE, _KEY, _TYPE))
    older = {name: pairs.pop(where, None) for where, name in _AS_ANNOTATIONS.items()}
    decoded: dict[str, Any] = {
        "exchange": exchange if _is_name(exchange) else "",
        "key": key if are_texts else "",
        "type": kind if isinstance(kind, str) else None,
        "properties": {
            name: value if isinstance(value, str) else int(value)
            for name, value in older.items()
            if _is_property(name, value)
        },
    }
    deaths, received, copies = (pairs.pop(where, None) for where in (_DEATHS, _RECEIVED, _COPIES))
    headers = {name: value for name, value in pairs.items() if name.startswith("x-")}
    if isinstance(deaths, list):
        headers["x-death"] = [_death(each) for each in deaths if isinstance(each, dict)]
    elif isinstance(deaths, bytes):  # left encoded
        headers["x-death"] = deaths
    if isinstance(received, datetime):
        headers["timestamp_in_ms"] = round(received.timestamp() * 1000)
    if _is_texts(copies):
        headers["CC"] = copies
    decoded["headers"] = headers
    return _kept(_annotations_cache, raw, decoded)


def _application_properties(raw: bytes) -> dict[str, Any]:
    # Only with names and values that AMQP 1.0 allows can the message be retried: a publisher can write any.
    return {_property_name(name): value for name, value in plain_map(raw, is_simple=True).items()}


def _property_name(name: str) -> str:
    valid = name if name.isascii() else name.encode("utf-8", "replace").decode()
    return ApplicationProperty(valid) if _is_annotation(valid) else valid


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode("utf-8", "surrogateescape")) < 256


def _is_property(name: str, value: Any) -> bool:
    if name == "expiration":
        return isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) is not None and int(value) < 1 << 32
    return _is_number(value, 1 << 8)


#: The fields of x-opt-deaths with another name or type than in x-death.
_DEATH: dict[str, tuple[str, type]] = {
    "first-time": ("time", datetime),
    "ttl": ("original-expiration", str),
    "count": ("count", Int64),
    "reason": ("reason", str),
    "routing-keys": ("routing-keys", list),
}


def _death(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Convert one entry of x-opt-deaths to one of x-death."""
    found = {}
    for field, value in entry.items():
        name, kind = _DEATH.get(field, (field, object))
        if field != "last-time":
            try:
                found[name] = value if isinstance(value, datetime) or kind is object else kind(value)
            except (TypeError, ValueError):  # written by a publisher
                found[name] = value
    return found


def _properties(raw: bytes) -> dict[str, Any]:
    if raw[0] == 0xC0 and raw[2] == 1 and raw[3] == 0xA1 and not raw.startswith(_URN_START, 5):  # only a message id
        return {"message_id": raw[5:].decode("utf-8", "surrogateescape")}
    values = zip(_FIELDS, plain_list(raw), strict=False)
    found = ((name, None if value is None else _property(name, value)) for name, value in values)
    return {name: value for name, value in found if value is not None}


_URN_START = _URN.encode()


def _property(name: str, value: Any) -> Any:
    """Convert a field of the properties section; return None if its value is of a type that it must not have."""
    if name in _IDS:
        return _id_of(value)
    if name in _TIMES:
        return _seconds_of(value)
    if name == "group_sequence":
        return int(value) if _is_number(value, 1 << 32) else None
    if isinstance(value, bytes) and not isinstance(value, Encoded):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        return None
    if name != "reply_to":
        return str(value)
    if value.startswith(_QUEUES):
        queue = unquote(value.removeprefix(_QUEUES), errors="surrogateescape")
        return value if queue.startswith(_ADDRESSES) else queue
    return str(value) if value.startswith(_EXCHANGES) else Address(value)


def _id_of(value: Any) -> str | None:
    if isinstance(value, bytes) and not isinstance(value, Encoded):
        return BinaryId(value.decode("utf-8", "surrogateescape"))
    if isinstance(value, ULong):
        return NumberId(value)
    if isinstance(value, UuidText):
        return _URN + value
    if not isinstance(value, str):
        return str(value) if isinstance(value, int) else None
    return TextId(value) if _IS_URN.fullmatch(value) else str(value)


def _seconds_of(value: Any) -> int | float | None:
    """Convert a time to seconds since 1970, with a fraction if it has one."""
    if isinstance(value, datetime):
        value = round(value.timestamp() * 1000)
    elif not isinstance(value, Milliseconds):
        return None
    return value / 1000 if value % 1000 else int(value) // 1000
