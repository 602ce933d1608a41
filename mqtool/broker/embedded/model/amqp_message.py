"""Messages and their properties. They are kept as received bytes; only the fields that the broker uses are decoded."""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Self

from mqtool.codecs.field_tables import (
    Table,
    Timestamp,
    Value,
    decode_short_string,
    decode_table,
    encode_short_string,
    encode_table,
    sorted_table,
)
from mqtool.message import MAX_DEPTH

BASIC_CLASS = 60

#: The maximum nesting depth of headers, including those that the broker adds.
DEEPEST = MAX_DEPTH + 8
PERSISTENT = 2

_CONTENT_HEADER = struct.Struct(">HHQH")

# The properties in the order of their flags (section 4.2.6.1 of AMQP 0-9-1): the first one has the highest bit.
_NAMES = (
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
_WIDTHS = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
_FLAGS = [(1 << (15 - index), name) for index, name in enumerate(_NAMES)]
_MESSAGE_ID = 1 << 7
_NO_HEADERS: Table = {}


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, int], ...]:
    """Return the name and size of each property set in the flags. The size is 0 if a length precedes the value."""
    if flags & 3:
        raise ValueError("unknown property flags")
    return tuple((name, _WIDTHS.get(name, 0)) for flag, name in _FLAGS if flags & flag)


def _spans(data: bytes, offset: int) -> list[tuple[str, int, int]]:
    """Return the name, start and end of each property; `offset` is the position of the property flags."""
    spans = []
    size = len(data)
    position = offset + 2
    for name, width in _present(int.from_bytes(data[offset:position])):
        if width:
            end = position + width
        elif position >= size:
            raise ValueError("property cut short")
        elif name == "headers":
            end = position + 4 + int.from_bytes(data[position : position + 4])
        else:
            end = position + 1 + data[position]
        spans.append((name, position, end))
        position = end
    if position != size:
        raise ValueError("property cut short" if position > size else "bytes after the properties")
    return spans


def encode_short(raw: bytes) -> bytes:
    """Encode a short string: a length byte, then up to 255 bytes."""
    return bytes([len(raw)]) + raw


def _encode_fields(fields: Mapping[str, bytes]) -> bytes:
    flags = sum(flag for flag, name in _FLAGS if name in fields)
    return flags.to_bytes(2) + b"".join(fields[name] for name in _NAMES if name in fields)


def by_name(headers: Table) -> Table:
    """Return headers sorted by the bytes of their names."""
    return dict(sorted(headers.items(), key=lambda header: header[0].encode(errors="surrogateescape")))


class MessageProperties:
    """The properties of a message, kept in encoded form. Changing one in a copy leaves the bytes of the others intact.

    Args:
        data: contains the property flags and list, as in a content header.
        offset: the position of the property flags in `data`.
        max_depth: how deep the headers may be nested.

    Attributes:
        headers: the headers, empty if there are none. Do not change them in place.
        delivery_mode, priority, expiration, user_id, reply_to: as sent; None if absent.
        plain: True if the permission check and the routing of a message depend only on its exchange and routing key.

    Raises:
        ValueError: the properties are cut short, or the headers are not a table.
    """

    __slots__ = (
        *("_data", "_offset", "delivery_mode", "expiration", "headers", "plain", "priority", "reply_to", "user_id"),
    )

    def __init__(self, data: bytes, offset: int = 0, max_depth: int = DEEPEST) -> None:
        self._data = data
        self._offset = offset
        self.headers = _NO_HEADERS
        self.delivery_mode: int | None = None
        self.priority: int | None = None
        self.expiration: str | None = None
        self.user_id: str | None = None
        self.reply_to: str | None = None
        for name, start, end in _spans(data, offset):
            if name == "delivery_mode":
                self.delivery_mode = data[start]
            elif name == "headers":
                self.headers = decode_table(data[start:end], max_depth=max_depth)[0]
            elif name == "priority":
                self.priority = data[start]
            elif name in ("expiration", "user_id", "reply_to"):
                setattr(self, name, data[start + 1 : end].decode(errors="surrogateescape"))
        self._set_plain()

    def _set_plain(self) -> None:
        self.plain = not self.headers and self.expiration is self.user_id is self.reply_to is None

    def of_another(self, data: bytes, offset: int) -> "MessageProperties":
        """Return the properties at `offset` in `data`, which must differ from these only in the message id."""
        other = MessageProperties.__new__(MessageProperties)
        other._data, other._offset = data, offset
        other.headers, other.expiration = self.headers, self.expiration
        other.delivery_mode, other.priority = self.delivery_mode, self.priority
        other.user_id, other.reply_to = self.user_id, self.reply_to
        other.plain = self.plain
        return other

    def encode(self) -> bytes:
        """Return the property flags and list, as in a content header."""
        return self._data[self._offset :]

    def fields(self) -> dict[str, bytes]:
        """Return the wire encoding of each property that is set, by name (`content_type`, …)."""
        return {name: self._data[start:end] for name, start, end in _spans(self._data, self._offset)}

    def message_id_span(self) -> range | None:
        """Return the position of the message id in the encoded properties; None if there is no message id."""
        if not self._data[self._offset + 1] & _MESSAGE_ID:
            return None
        spans = _spans(self._data, self._offset)
        return next(
            range(start + 1 - self._offset, end - self._offset) for name, start, end in spans if name == "message_id"
        )

    @classmethod
    def of(cls, fields: Mapping[str, bytes]) -> Self:
        """Build properties from encoded fields, as fields() returns them."""
        return cls(_encode_fields(fields))

    def named(self) -> Table:
        """Return the decoded value of each property that is set, by name, in the order of the flags."""
        data, values = self._data, dict[str, Value]()
        for name, start, end in _spans(data, self._offset):
            if name == "headers":
                values[name] = self.headers
            elif name in _WIDTHS:
                values[name] = int.from_bytes(data[start:end])
            else:
                values[name] = data[start + 1 : end].decode(errors="surrogateescape")
        return values

    def replace(
        self, *, headers: Table | None = None, reply_to: str | None = None, expires: bool = True
    ) -> "MessageProperties":
        """Return a copy with new headers or reply-to, or without its expiration (`expires=False`)."""
        fields = self.fields()
        if headers is not None:
            fields["headers"] = encode_table(headers)
        if reply_to is not None:
            fields["reply_to"] = encode_short(reply_to.encode(errors="surrogateescape"))
        if not expires:
            fields.pop("expiration", None)
        # Copying the decoded values instead of decoding them again makes dead-lettering take a third of the time.
        copy = self.of_another(_encode_fields(fields), 0)
        copy.headers = self.headers if headers is None else headers
        copy.reply_to = self.reply_to if reply_to is None else reply_to
        copy.expiration = self.expiration if expires else None
        copy._set_plain()
        return copy

    def with_sorted_headers(self, added: Table | None = None, *, unique: bool = True) -> "MessageProperties":
        """Return a copy with more headers, all sorted and encoded as sorted_table() does; `self` if nothing changes."""
        data, offset = self._data, self._offset
        if not added:
            start, end = next((start, end) for name, start, end in _spans(data, offset) if name == "headers")
            table = data[start:end]
            encoded = sorted_table(table, unique=unique)
            if encoded is table:
                return self
            copy = self.of_another(b"".join((data[offset:start], encoded, data[end:])), 0)
            copy.headers = by_name(self.headers)
        else:
            fields = self.fields()
            table = fields.get("headers", encode_table({}))
            encoded = sorted_table(table, encode_table(added), unique=unique)
            copy = self.of_another(_encode_fields({**fields, "headers": encoded}), 0)
            copy.headers = by_name(self.headers | added)
            copy._set_plain()
        return copy

    def with_more_headers(self, added: Table, encoded: bytes) -> "MessageProperties":
        """Return a copy with more headers. A header of the same name is replaced.

        Args:
            added: the headers to add.
            encoded: `added` as encode_table() encodes it. Many messages can get the same headers.
        """
        headers = {name: value for name, value in self.headers.items() if name not in added}
        items = encode_table(headers)[4:] + encoded[4:]
        copy = self.of_another(_encode_fields({**self.fields(), "headers": len(items).to_bytes(4) + items}), 0)
        copy.headers = headers | added
        copy._set_plain()
        return copy


class ContentHeader:
    """The payload of a content header frame: the size of the body in bytes, and the properties.

    Args:
        raw: the payload as sent on the wire.
        like: decoded properties that differ only in the message id; they are copied instead of decoding `raw`.
        max_depth: how deep the headers may be nested.

    Attributes:
        headers_bytes: the memory that the decoded headers take; set when it is first needed.

    Raises:
        ValueError: the payload is malformed.
    """

    __slots__ = ("body_size", "class_id", "headers_bytes", "properties", "raw")
    headers_bytes: int

    def __init__(self, raw: bytes, like: MessageProperties | None = None, max_depth: int = DEEPEST) -> None:
        if len(raw) < 14:
            raise ValueError("content header cut short")
        self.class_id, _weight, self.body_size, _flags = _CONTENT_HEADER.unpack_from(raw)
        self.properties = MessageProperties(raw, 12, max_depth) if like is None else like.of_another(raw, 12)
        self.raw = raw

    @classmethod
    def of(cls, properties: MessageProperties, body_size: int) -> Self:
        """Return a content header with these properties, for a body of `body_size` bytes."""
        return cls(struct.pack(">HHQ", BASIC_CLASS, 0, body_size) + properties.encode(), properties)

    @classmethod
    def unread(cls, properties: bytes, body_size: int) -> Self:
        """Return a content header with these encoded properties, which are decoded lazily."""
        header = cls.__new__(cls)
        header.raw = struct.pack(">HHQ", BASIC_CLASS, 0, body_size) + properties
        header.class_id, header.body_size = BASIC_CLASS, body_size
        return header

    def __getattr__(self, name: str) -> MessageProperties:
        if name != "properties":
            raise AttributeError(name)
        self.properties = MessageProperties(self.raw, 12)
        return self.properties


def _sorted(raw: bytes, max_depth: int = DEEPEST) -> ContentHeader:
    """Decode a content header, and sort its headers."""
    header = ContentHeader(raw, max_depth=max_depth)
    properties = header.properties
    if properties.headers and (changed := properties.with_sorted_headers()) is not properties:
        return ContentHeader(raw[:12] + changed.encode(), changed)
    return header


# Publishers repeat the same headers, and a cache lookup takes a tenth of the time of decoding one.
_parse_small_header = lru_cache(maxsize=2048)(ContentHeader)
_parse_small_header_sorted = lru_cache(maxsize=2048)(_sorted)


class HeaderReader:
    """Decodes content headers. Ten times as fast if a header differs from an earlier one only in the message id.

    Args:
        max_depth: how deep the headers may be nested.
        sorts: sort the headers, and change their types to those that RabbitMQ writes.
    """

    def __init__(self, max_depth: int = MAX_DEPTH, *, sorts: bool = False) -> None:
        self._max_depth = max_depth
        self._parse_small = _parse_small_header_sorted if sorts else _parse_small_header
        self._parse = _sorted if sorts else ContentHeader
        self._latest: MessageProperties | None = None
        # The bytes before and after the message id in the latest header; and those before it after sorting.
        self._before = self._after = self._sorted_before = b""
        self._size = 0

    def read(self, raw: bytes) -> ContentHeader:
        """Decode the content header in a frame's payload. Raises ValueError if it is malformed."""
        if len(raw) <= 256 and not (len(raw) > 13 and raw[13] & _MESSAGE_ID):
            return self._parse_small(raw)
        if len(raw) == self._size and raw.startswith(self._before, 12) and raw.endswith(self._after):
            if self._before is not self._sorted_before:
                raw = b"".join((raw[:12], self._sorted_before, raw[12 + len(self._before) :]))
            return ContentHeader(raw, self._latest)
        header = self._parse(raw, max_depth=self._max_depth)
        if (span := header.properties.message_id_span()) is not None:
            self._latest, self._size = header.properties, len(raw)
            shorter = len(raw) - len(header.raw)  # by duplicates
            self._before, self._after = raw[12 : 12 + span.start + shorter], header.raw[12 + span.stop :]
            self._sorted_before = self._before if header.raw is raw else header.raw[12 : 12 + span.start]
        return header


@lru_cache(maxsize=4096)
def parse_address(address: bytes) -> tuple[bytes, str, str]:
    """Decode an address: an exchange and a routing key as two short strings, as in basic.publish and basic.deliver.

    Returns:
        The address as bytes (a shared object for equal addresses), the exchange and the routing key.

    Raises:
        ValueError: the address is cut short.
    """
    if len(address) < 2:
        raise ValueError("address cut short")
    split = 1 + address[0]
    if split >= len(address) or split + 1 + address[split] != len(address):
        raise ValueError("address cut short")
    exchange, key = address[1:split], address[split + 1 :]
    return address, exchange.decode(errors="surrogateescape"), key.decode(errors="surrogateescape")


def encode_address(exchange: str, routing_key: str) -> bytes:
    """Encode an exchange and a routing key as an address (see parse_address)."""
    return b"".join(encode_short(part.encode(errors="surrogateescape")) for part in (exchange, routing_key))


#: These follow the address in the data directory, in this order: a mark for a message whose body is a whole AMQP 1.0
#: message, one for a dead letter, and one before the routing keys in `copies`.
SECTIONED, _DEAD, _COPIES = b"\x0a", b"\x0b", b"\x0c"


class Copies(tuple[str, ...]):
    """The further routing keys of a message.

    Attributes:
        held_bytes: the memory that they take; set when it is first needed.
    """

    held_bytes: int


class StoredAddress(NamedTuple):
    """An address as the data directory stores it, with what is kept besides (see BrokerMessage)."""

    address: bytes
    is_sectioned: bool
    is_dead: bool
    copies: Copies | None

    @classmethod
    def of(cls, stored: bytes) -> Self:
        """Decode a stored address. Raises ValueError if it is damaged."""
        try:
            split = 1 + stored[0]
            end = split + 1 + stored[split]
            marks = stored[end:]
            is_sectioned, marks = marks.startswith(SECTIONED), marks.removeprefix(SECTIONED)
            is_dead, marks = marks.startswith(_DEAD), marks.removeprefix(_DEAD)
            copies: list[str] | None = [] if marks.startswith(_COPIES) else None
            at = 0 if copies is None else 1
            while copies is not None and at < len(marks):
                key, at = decode_short_string(marks, at)
                copies.append(key)
        except IndexError as error:
            raise ValueError("address cut short") from error
        if at != len(marks):
            raise ValueError("bytes after the address")
        return cls(stored[:end], is_sectioned, is_dead, None if copies is None else Copies(copies))


class BrokerMessage:
    """A published message: immutable, and shared by the queues that it was routed to.

    Attributes:
        address: the exchange and the routing key, encoded as two short strings as on the wire.
        exchange, routing_key: the decoded address.
        copies: the further routing keys, if they are not those in the header CC: BCC is removed before a message gets
            into a queue, and a new key that a queue gives its dead letters replaces all others. Otherwise None.
        is_dead: True if the message is a dead letter, so that the broker has written its `x-death` header.
        fits: False if RabbitMQ fails to deliver the message to AMQP 0-9-1 clients.
    """

    fits = True

    __slots__ = ("address", "body", "copies", "exchange", "header", "is_dead", "routing_key")

    def __init__(self, address: bytes, header: ContentHeader, body: bytes) -> None:
        self.address, self.exchange, self.routing_key = parse_address(address)
        self.header = header
        self.body = body
        self.copies: Copies | None = None
        self.is_dead = False

    @property
    def properties(self) -> MessageProperties:
        return self.header.properties

    @property
    def section_bytes(self) -> int:
        """The size of the AMQP 1.0 sections that are kept besides the headers; 0 if there are none."""
        return 0

    @property
    def persistent(self) -> bool:
        """True if the delivery mode is 2: the message survives a restart in a durable queue."""
        return self.header.properties.delivery_mode == PERSISTENT

    @property
    def headers(self) -> Table:
        """The headers, empty if there are none."""
        return self.header.properties.headers

    def keys(self) -> list[str]:
        """Return all routing keys, without duplicates."""
        copies = carbon_copies(self.headers) if self.copies is None else self.copies
        return list(dict.fromkeys([self.routing_key, *copies]))

    def replace(
        self,
        *,
        headers: Table | None = None,
        reply_to: str | None = None,
        address: tuple[str, str] | None = None,
        expires: bool = True,
    ) -> Self:
        """Return a copy with new headers, reply-to or address, or without its expiration (`expires=False`)."""
        properties = self.properties.replace(headers=headers, reply_to=reply_to, expires=expires)
        return self.copy(
            self.address if address is None else encode_address(*address), ContentHeader.of(properties, len(self.body))
        )

    def copy(self, address: bytes, header: ContentHeader) -> Self:
        """Return a copy with another address and header."""
        copy = self._copy(address, header)
        copy.copies, copy.is_dead = self.copies, self.is_dead
        return copy

    def _copy(self, address: bytes, header: ContentHeader) -> Self:
        return type(self)(address, header, self.body)

    def stored(self) -> tuple[bytes, bytes, bytes]:
        """Return the address, the header and the body as the data directory stores them."""
        return self.address + self._marks(), self.header.raw, self.body

    def _marks(self) -> bytes:
        """Return what follows the address in the data directory."""
        marks = _DEAD if self.is_dead else b""
        return marks if self.copies is None else marks + b"".join([_COPIES, *map(encode_short_string, self.copies)])


def carbon_copies(headers: Table) -> list[str]:
    """Return the additional routing keys from the headers CC and BCC."""
    lists = [headers.get(name) for name in ("CC", "BCC")]
    return [key for keys in lists if isinstance(keys, list) for key in keys if isinstance(key, str)]


class TimeOfDeath(Timestamp):
    """The `time` of an entry of an `x-death` header: the first death in seconds, as AMQP 0-9-1 has it.

    Attributes:
        first, last: the first and the last death in milliseconds since 1970, as AMQP 1.0 has them.
    """

    first: int
    last: int

    def __new__(cls, first: int, last: int) -> Self:
        self = super().__new__(cls, first // 1000)
        self.first, self.last = first, last
        return self
