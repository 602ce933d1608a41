"""Parsing of messages published with AMQP 1.0, and encoding of any message for AMQP 1.0 consumers and for streams."""

from functools import lru_cache
from typing import NamedTuple, Self

from mqtool.broker.embedded.model.amqp_message import (
    SECTIONED,
    BrokerMessage,
    ContentHeader,
    MessageProperties,
    encode_address,
)
from mqtool.broker.embedded.model.footprint import of_value
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.protocol_conversion import (
    X_DEATHS,
    annotations_from_091,
    deaths_from_091,
    fits_091,
    header_from_091,
    headers_to_091,
    properties_to_091,
    sections_from_091,
)
from mqtool.codecs.amqp10_message import (
    DATA,
    DELIVERY_ANNOTATIONS,
    FOOTER,
    HEADER,
    MESSAGE_ANNOTATIONS,
    Amqp10Message,
    BareProperties,
    MessageHeader,
    data_section,
    section_at,
)
from mqtool.codecs.amqp10_spans import find
from mqtool.codecs.amqp10_values import Map, Symbol, ULong
from mqtool.codecs.field_tables import UInt32

_EXCHANGE, _KEY, _CC = Symbol("x-exchange"), Symbol("x-routing-key"), Symbol("x-cc")

#: The maximum size of the sections before the body, in bytes: decoding 16 MiB of them would take seconds.
_LONGEST_HEAD = 1024 * 1024
#: The sections before the body are cached if they are shorter than this, because publishers repeat them.
_CACHED = 512
_MOST_CACHED = 1024


class NotAMessage(ValueError):
    """A message cannot be decoded. The text of the error is the reason, as RabbitMQ words it."""


class BadCarbonCopies(ValueError):
    """The annotation x-cc is not a list of strings."""


class Head(NamedTuple):
    """The sections of a message between its header and its body.

    Attributes:
        raw: the encoded sections without the message annotations.
        key: the encoded sections including the message annotations; identifies the head in caches.
        fits: True if AMQP 0-9-1 clients can get the message.
    """

    annotations: Map
    properties: BareProperties
    application: Map
    raw: bytes
    key: bytes
    fits: bool = True


def _name(value: object) -> str | None:
    """Return the value if it can be an exchange name or a routing key; otherwise None."""
    return value if isinstance(value, str) and len(value.encode(errors="surrogateescape")) < 256 else None


class Sections(NamedTuple):
    """The sections of a message as sent by its publisher, without an address.

    Attributes:
        header: the encoded header section; empty if there is none.
        head: the sections between the header and the body.
        opening: the encoding that precedes `body` if the body is a single data section. If there are several data
            sections, all of them and the footer, encoded.
        body: the body for AMQP 0-9-1 consumers: the content of the data sections; or, for a value or a sequence, the
            encoded body and footer.
        closing: the encoded footer after a single data section; None if `opening` contains all body sections.
        encoded: True if the body is a value or a sequence.
    """

    header: bytes
    head: Head
    opening: bytes
    body: bytes
    closing: bytes | None
    encoded: bool

    def carbon_copies(self) -> list[str]:
        """Return the additional routing keys in the annotation x-cc; raise BadCarbonCopies if it is not valid."""
        keys = self.head.annotations.get(_CC, [])
        if not isinstance(keys, list) or any(type(key) is not str for key in keys):
            raise BadCarbonCopies(f"bad value for 'x-cc' message-annotation: {keys}")
        return keys

    def stored_address(self) -> tuple[str, str | None]:
        """Return the exchange and the routing key of a message in a stream; the key is None if it has none."""
        exchange, key = (_name(self.head.annotations.get(name)) for name in (_EXCHANGE, _KEY))
        return exchange or "", key

    def to(self, exchange: str, routing_key: str, profile: Profile, *, of_stream: bool = False) -> "Sectioned":
        """Build a message with these sections and this address. Raises NotAMessage if a field has the wrong type."""
        key = (
            of_stream,
            self.header,
            self.head.key,
            profile.addresses_replies,
            profile.restores_basic,
            profile.assumes_durable,
            self.encoded,
        )
        properties = _known.get(key)
        if properties is None:
            properties = self._for_091(profile, of_stream=of_stream)
            if len(self.header) + len(self.head.key) < _CACHED:
                if len(_known) >= _MOST_CACHED:
                    _known.clear()
                _known[key] = properties
        header = ContentHeader.of(properties, len(self.body))
        return Sectioned(self, encode_address(exchange, routing_key), header, is_changed=False)

    def _for_091(self, profile: Profile, *, of_stream: bool) -> MessageProperties:
        head = self.head
        sections = (head.annotations, head.properties, head.application)
        try:
            header = Amqp10Message.decode(self.header).header
            return properties_to_091(header, *sections, profile, encoded=self.encoded, of_stream=of_stream)
        except (ValueError, TypeError, OverflowError) as error:
            raise NotAMessage("header section is not valid") from error


#: A cache of AMQP 0-9-1 properties, by the short sections that they were converted from (see Sections.to).
_known: dict[tuple[bool, bytes, bytes, bool, bool, bool, bool], MessageProperties] = {}


def parse(payload: bytes, *, strict: bool = True) -> Sections:
    """Parse a message from an AMQP 1.0 publisher, or from a stream.

    Args:
        strict: True if annotations must have names that begin with `x-`.

    Raises:
        NotAMessage: the message is malformed or has no body.
    """
    try:
        return _parse(payload, strict=strict)
    except NotAMessage:
        raise
    except (ValueError, IndexError, TypeError) as error:
        raise NotAMessage(str(error)) from error


_PLAIN = Sections(b"", Head({}, BareProperties(), {}, b"", b""), b"", b"", b"", encoded=False)


def parse_stored(data: bytes, stream: str, profile: Profile) -> "Sectioned":
    """Parse a message in a stream. If the data is not an AMQP 1.0 message, all of it becomes the body.

    A message without a routing key was published with the stream protocol. It gets the stream's name as its key.
    """
    try:
        sections = parse(data, strict=False)
        exchange, key = sections.stored_address()
        return sections.to(exchange, stream if key is None else key, profile, of_stream=True)
    except NotAMessage:
        section = data_section(data)
        return _PLAIN._replace(opening=section.removesuffix(data), body=data).to("", stream, profile)


def _parse(payload: bytes, *, strict: bool) -> Sections:
    position, last, header = 0, 0, b""
    starts: dict[int, int] = {}
    while position < len(payload):
        code, value = section_at(payload, position)
        if code <= last:
            raise NotAMessage("sections in the wrong order")
        last = code
        if code in range(DATA, FOOTER):
            break
        starts[code] = position
        position = find(payload, value).end
        if position > _LONGEST_HEAD:
            raise NotAMessage(f"sections before the body are longer than {_LONGEST_HEAD} bytes")
        if code == HEADER:
            header = payload[starts[code] : position]
        elif code == DELIVERY_ANNOTATIONS and strict:
            _check(Amqp10Message.decode(payload[starts[code] : position]).delivery_annotations)
    else:
        raise NotAMessage("missing_amqp_message_body")
    start = min((at for code, at in starts.items() if code >= MESSAGE_ANNOTATIONS), default=position)
    raw = payload[start:position]
    head = (_cached_head if len(raw) < _CACHED else _head)(raw)
    if strict:
        _check(head.annotations)
    return Sections(header, head, *_body(payload, position))


def _head(raw: bytes) -> Head:
    """Decode the sections between the header and the body."""
    decoded = Amqp10Message.decode(raw)
    bare = raw
    if raw and section_at(raw, 0)[0] == MESSAGE_ANNOTATIONS:
        bare = raw[find(raw, section_at(raw, 0)[1]).end :]
    annotations, application = decoded.message_annotations, decoded.application_properties
    return Head(annotations, decoded.properties, application, bare, raw, fits_091(annotations, application))


_cached_head = lru_cache(maxsize=_MOST_CACHED)(_head)


def _check(annotations: Map) -> None:
    """Raise NotAMessage if the name of an annotation does not begin with `x-`: other names are reserved."""
    for key in annotations:
        if not (isinstance(key, Symbol) and key.startswith("x-")):
            shown = f'{{symbol,<<"{key}">>}}' if isinstance(key, Symbol) else f"{{ulong,{key}}}"
            raise NotAMessage(f"{{reserved_annotation_key,{shown if isinstance(key, Symbol | ULong) else key}}}")


def _body(payload: bytes, start: int) -> tuple[bytes, bytes, bytes | None, bool]:
    """Return the last four fields of Sections; the body starts at this position."""
    parts, position = [], start
    while position < len(payload):
        code, value = section_at(payload, position)
        if code == FOOTER:
            break
        if code != DATA:
            return b"", payload[start:], b"", True
        span = find(payload, value)
        if span.code not in (0xA0, 0xB0):
            raise NotAMessage("data is not binary")
        parts.append(payload[span.start : span.end])
        position = span.end
    if len(parts) == 1:
        return payload[start : span.start], parts[0], payload[span.end :], False
    return payload[start:], b"".join(parts), None, False


class Sectioned(BrokerMessage):
    """A message published with AMQP 1.0. AMQP 0-9-1 consumers get its address, header and body.

    Attributes:
        sections: the message as sent by its publisher.
        is_changed: True if the broker may have changed the headers, so that they no longer match the sections.
    """

    __slots__ = ("_section_bytes", "fits", "is_changed", "sections")

    def __init__(self, sections: Sections, address: bytes, header: ContentHeader, *, is_changed: bool = True) -> None:
        super().__init__(address, header, sections.body)
        self.sections = sections
        self.is_changed = is_changed
        self.fits = sections.head.fits and not sections.closing  # nor can RabbitMQ convert a footer
        self._section_bytes: int | None = None

    def _copy(self, address: bytes, header: ContentHeader) -> Self:
        return type(self)(self.sections, address, header)

    def stored(self) -> tuple[bytes, bytes, bytes]:
        annotations = Amqp10Message(message_annotations=self.sections.head.annotations).encode()
        return self.address + SECTIONED + self._marks(), self.header.raw, annotations + self.bare()

    @property
    def section_bytes(self) -> int:
        if self._section_bytes is None:  # counted once, even if the message is routed to many queues
            head = self.sections.head
            # Besides their bytes, the sections are kept decoded, which takes about as much memory as the headers do.
            decoded = of_value(head.annotations) + of_value(head.application)
            self._section_bytes = len(head.key) + len(head.raw) + decoded
        return self._section_bytes

    def annotations(self) -> Map:
        """Return the publisher's annotations, updated with the headers that the broker has added or changed."""
        head = self.sections.head
        if not self.is_changed:
            return head.annotations
        sent = headers_to_091(head.annotations, head.properties, head.application)
        changed = {name: value for name, value in self.headers.items() if name not in sent or sent[name] != value}
        return {**head.annotations, **annotations_from_091(changed, is_dead=self.is_dead)}

    def bare(self) -> bytes:
        """Return the bare message and the footer, both as encoded by the publisher."""
        head, sections = self.sections.head, self.sections
        if sections.closing is None:
            return head.raw + sections.opening
        return b"".join((head.raw, sections.opening, sections.body, sections.closing))


def restored(address: bytes, header: ContentHeader, body: bytes) -> Sectioned:
    """Rebuild a message from the parts that Sectioned.stored() has returned. Raises ValueError if they are damaged."""
    return Sectioned(parse(body, strict=False), address, header)


def encode(
    message: BrokerMessage,
    profile: Profile,
    added: Map | None = None,
    deliveries: int = 0,
    *,
    redelivered: bool = False,
) -> bytes:
    """Encode a message for an AMQP 1.0 consumer, or for a stream.

    Args:
        added: annotations for this delivery only, such as x-stream-offset.
        deliveries: the number of earlier deliveries that failed.
        redelivered: True if the message was delivered before.

    Raises:
        ConnectionException: 541, a header cannot be converted (see sections_from_091).
    """
    header = header_from_091(message.properties)
    first = not (redelivered or deliveries or message.is_dead)
    header = header._replace(first_acquirer=first, delivery_count=UInt32(deliveries))
    if isinstance(message, Sectioned):
        annotations, bare = message.annotations(), message.bare()
    else:
        annotations, bare = _bare_from_091(message, profile)
        if message.is_dead and (deaths := deaths_from_091(message.headers["x-death"])) is not None:
            annotations = {
                **annotations,
                X_DEATHS: deaths,
            }  # with the milliseconds, which are not in the encoded header
            annotations.pop(Symbol("x-death"), None)
            # Queues take no account of the expiration any more, but it is still a part of the message.
            header = header._replace(ttl=next((death["ttl"] for death in deaths if "ttl" in death), None))
    if added or annotations:
        own = {**(added or {}), _KEY: message.routing_key, _EXCHANGE: message.exchange}
        kept = {name: value for name, value in annotations.items() if name not in own}
        address = Amqp10Message(message_annotations=own | kept).encode()
    else:
        address = _address(message.exchange, message.routing_key)
    return b"".join((_header(header), address, bare))


@lru_cache(maxsize=_MOST_CACHED)
def _address(exchange: str, routing_key: str) -> bytes:
    """Encode the annotations x-exchange and x-routing-key, for a message that has no other annotations."""
    return Amqp10Message(message_annotations={_KEY: routing_key, _EXCHANGE: exchange}).encode()


@lru_cache(maxsize=_MOST_CACHED)
def _header(header: MessageHeader) -> bytes:
    return Amqp10Message(header=header).encode()


def _bare_from_091(message: BrokerMessage, profile: Profile) -> tuple[Map, bytes]:
    raw = message.properties.encode()
    head = (_cached_from_091 if len(raw) < _CACHED else _from_091)(raw, profile)
    body = message.body if head.encoded and _is_body(message.body) else data_section(message.body)
    return head.annotations, head.bare + body


class _Converted(NamedTuple):
    """A converted AMQP 0-9-1 message, without its body.

    Attributes:
        annotations: the message annotations.
        bare: the other sections before the body, encoded.
        encoded: True if the body should be an encoded AMQP 1.0 body, according to the message's `type`.
    """

    annotations: Map
    bare: bytes
    encoded: bool


def _from_091(raw: bytes, profile: Profile) -> _Converted:
    annotations, properties, application, encoded = sections_from_091(MessageProperties(raw), profile)
    bare = Amqp10Message(properties=properties, application_properties=application).encode()
    return _Converted(annotations, bare, encoded)


_cached_from_091 = lru_cache(maxsize=_MOST_CACHED)(_from_091)


def _is_body(body: bytes) -> bool:
    """Return True if the bytes begin with a body section."""
    try:
        return DATA <= section_at(body, 0)[0] < FOOTER
    except (ValueError, IndexError):
        return False
