"""A message as the broker keeps it: the octets as they came in, and decoded what routing needs."""

import struct
from functools import lru_cache
from typing import Self

from mqtool.routing.field_table import Table, decode_table, encode_table

BASIC_CLASS = 60
PERSISTENT = 2

_CONTENT_HEADER = struct.Struct(">HHQH")

# The property flags (section 4.2.6.1), first property at the highest bit.
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
_HEADERS_FLAG = 1 << 13
_EXPIRATION_FLAG = 1 << 8
_REPLY_TO_FLAG = 1 << 9


class Properties:
    """The basic-class properties of a message. Each field keeps its octets, so that editing one keeps the others.

    Attributes:
        headers: the headers table, empty if there is none. Do not change it in place.
        delivery_mode, priority: as sent; None if absent.
        expiration, user_id, reply_to: as sent; None if absent.
    """

    __slots__ = ("_fields", "delivery_mode", "expiration", "headers", "priority", "reply_to", "user_id")

    def __init__(self, fields: dict[str, bytes]) -> None:
        self._fields = fields
        self.headers: Table = decode_table(fields["headers"])[0] if "headers" in fields else {}
        mode, priority = fields.get("delivery_mode"), fields.get("priority")
        self.delivery_mode = mode[0] if mode else None
        self.priority = priority[0] if priority else None
        self.expiration = self._text("expiration")
        self.user_id = self._text("user_id")
        self.reply_to = self._text("reply_to")

    @classmethod
    def decode(cls, data: bytes, offset: int = 0) -> Self:
        """Decode flags and list, as in a content header from `offset` on.

        Raises:
            ValueError: they are cut short, or the headers are not a table.
        """
        flags = int.from_bytes(data[offset : offset + 2])
        if flags & 3:
            raise ValueError("unknown property flags")
        position = offset + 2
        fields: dict[str, bytes] = {}
        for flag, name in _FLAGS:
            if flags & flag:
                end = _property_end(data, position, name)
                if end > len(data):
                    raise ValueError("property cut short")
                fields[name] = data[position:end]
                position = end
        if position != len(data):
            raise ValueError("octets after the properties")
        return cls(fields)

    def encode(self) -> bytes:
        """Encode flags and list, as in a content header."""
        flags = sum(flag for flag, name in _FLAGS if name in self._fields)
        return flags.to_bytes(2) + b"".join(self._fields[name] for name in _NAMES if name in self._fields)

    def replace(
        self, *, headers: Table | None = None, reply_to: str | None = None, expires: bool = True
    ) -> "Properties":
        """Return a copy with other headers or reply-to, or (`expires=False`) without its expiration."""
        fields = dict(self._fields)
        if headers is not None:
            fields["headers"] = encode_table(headers)
        if reply_to is not None:
            raw = reply_to.encode(errors="surrogateescape")
            fields["reply_to"] = bytes([len(raw)]) + raw
        if not expires:
            fields.pop("expiration", None)
        return Properties(fields)

    def _text(self, name: str) -> str | None:
        raw = self._fields.get(name)
        return None if raw is None else raw[1:].decode(errors="surrogateescape")


def _property_end(data: bytes, position: int, name: str) -> int:
    width = _WIDTHS.get(name)
    if width is not None:
        return position + width
    if position >= len(data):
        raise ValueError("property cut short")
    if name == "headers":
        return position + 4 + int.from_bytes(data[position : position + 4])
    return position + 1 + data[position]


class ContentHeader:
    """The payload of a content header frame: body size in bytes, and properties.

    Attributes:
        raw: the payload as it goes on the wire.
    """

    __slots__ = ("body_size", "class_id", "properties", "raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) < 14:
            raise ValueError("content header cut short")
        self.class_id, _weight, self.body_size, _flags = _CONTENT_HEADER.unpack_from(raw)
        self.properties = Properties.decode(raw, 12)
        self.raw = raw

    @classmethod
    def of(cls, properties: Properties, body_size: int) -> Self:
        """Return the header for a body of this many bytes."""
        return cls(struct.pack(">HHQ", BASIC_CLASS, 0, body_size) + properties.encode())


# Publishers repeat the same few headers and addresses: parsing one costs ten times as much as looking it up.
_parse_small_header = lru_cache(maxsize=2048)(ContentHeader)


def parse_content_header(raw: bytes) -> ContentHeader:
    """Decode the content header in a frame's payload.

    Raises:
        ValueError: it is malformed.
    """
    return _parse_small_header(raw) if len(raw) <= 256 else ContentHeader(raw)


@lru_cache(maxsize=4096)
def parse_address(address: bytes) -> tuple[bytes, str, str]:
    """Decode exchange and routing key, two short strings that basic.publish and basic.deliver share.

    Returns:
        The octets, the same object for the same address, and what they say.

    Raises:
        ValueError: they are cut short.
    """
    if len(address) < 2:
        raise ValueError("address cut short")
    split = 1 + address[0]
    if split >= len(address) or split + 1 + address[split] != len(address):
        raise ValueError("address cut short")
    exchange, key = address[1:split], address[split + 1 :]
    return address, exchange.decode(errors="surrogateescape"), key.decode(errors="surrogateescape")


def encode_address(exchange: str, routing_key: str) -> bytes:
    """Encode exchange and routing key."""
    first, second = exchange.encode(errors="surrogateescape"), routing_key.encode(errors="surrogateescape")
    return bytes([len(first)]) + first + bytes([len(second)]) + second


class Message:
    """A published message: immutable, and shared by the queues it was routed to.

    Attributes:
        address: exchange and routing key as two short strings, as they go on the wire.
        header: its content header.
        body: its body.
        exchange, routing_key: the address, decoded.
    """

    __slots__ = ("address", "body", "exchange", "header", "routing_key")

    def __init__(self, address: bytes, header: ContentHeader, body: bytes) -> None:
        self.address, self.exchange, self.routing_key = parse_address(address)
        self.header = header
        self.body = body

    @property
    def properties(self) -> Properties:
        """Its basic-class properties."""
        return self.header.properties

    @property
    def persistent(self) -> bool:
        """Whether it survives a restart in a durable queue."""
        return self.header.properties.delivery_mode == PERSISTENT

    @property
    def headers(self) -> Table:
        """Its headers table, empty if there is none."""
        return self.header.properties.headers

    def replace(
        self, *, headers: Table | None = None, address: tuple[str, str] | None = None, expires: bool = True
    ) -> "Message":
        """Return a copy with other headers or another address, or (`expires=False`) without its expiration."""
        properties = self.properties.replace(headers=headers, expires=expires)
        return Message(
            self.address if address is None else encode_address(*address),
            ContentHeader.of(properties, len(self.body)),
            self.body,
        )

    def with_reply_to(self, reply_to: str) -> "Message":
        """Return a copy with another reply-to."""
        return Message(
            self.address, ContentHeader.of(self.properties.replace(reply_to=reply_to), len(self.body)), self.body
        )
