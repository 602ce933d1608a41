"""The frames of AMQP 1.0, the performatives in them, and the composite values that these contain.

A composite value is a class whose annotations specify how its fields are encoded, and which are optional. A field that
is not set is None. https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-transport-v1.0.html
"""

import re
import struct
from collections.abc import Callable, Collection
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar, get_args, get_origin

from mqtool.codecs.amqp10_values import NULL, Any10, Described, Map, Symbol, ULong, compound, decode, encode, encoder_of
from mqtool.codecs.field_tables import UInt8, UInt16, UInt32

SASL_HEADER, AMQP_HEADER = b"AMQP\x03\x01\x00\x00", b"AMQP\x00\x01\x00\x00"
FRAME_HEADER = struct.Struct(">IBBH")
AMQP, SASL = 0, 1
_SERIAL = 0xFFFF_FFFF

#: The role in attach and disposition frames of the peer that sends messages, or receives them.
SENDER, RECEIVER = False, True

#: Settle modes: snd-settle-mode and rcv-settle-mode.
UNSETTLED, SETTLED, MIXED = UInt8(0), UInt8(1), UInt8(2)
FIRST, SECOND = UInt8(0), UInt8(1)

HEARTBEAT = FRAME_HEADER.pack(8, 2, AMQP, 0)

# The types of fields: what a program sets them to, and what is sent and received.
UByte: TypeAlias = Annotated[int, UInt8]
UShort: TypeAlias = Annotated[int, UInt16]
UInt: TypeAlias = Annotated[int, UInt32]
ULongInt: TypeAlias = Annotated[int, ULong]
SymbolText: TypeAlias = Annotated[str, Symbol]


class _Kind(NamedTuple):
    """A composite type: its class, its encoded descriptor, its fields' types and encoders, and which must be set."""

    cls: Any
    descriptor: bytes
    types: list[type]
    encoders: list[Callable[[Any], bytes]]
    required: list[int]


_KINDS: dict[int, _Kind] = {}
_BY_CLASS: dict[type, _Kind] = {}
_NAMES: dict[str, int] = {}
_Class = TypeVar("_Class", bound=type)


def _composite(code: int) -> Callable[[_Class], _Class]:
    """Register a class as the composite type with this code."""

    def register(cls: Any) -> Any:
        hints = cls.__annotations__.items()
        types = [_type(hint) for _, hint in hints]
        optional = (*cls._field_defaults, *(name for name, hint in hints if NoneType in get_args(hint)))
        required = [index for index, name in enumerate(cls._fields) if name not in optional]
        encoders = [_any_field if kind in (object, dict) or kind in _BY_CLASS else encoder_of(kind) for kind in types]
        kind = _Kind(cls, bytes((0x00, 0x53, code)), types, encoders, required)
        _KINDS[code] = _BY_CLASS[cls] = kind
        _NAMES[f"amqp:{re.sub(r'(?<!^)(?=[A-Z])', '-', cls.__name__).lower()}:list"] = code
        return cls

    return register


def _type(hint: Any) -> type:
    """Return the type of a field on the wire; object for any."""
    is_optional = NoneType in get_args(hint)
    [hint] = [each for each in get_args(hint) if each is not NoneType] if is_optional else [hint]
    if hasattr(hint, "__metadata__"):
        hint = hint.__metadata__[0]
    found: type = object if hint is Any else get_origin(hint) or hint
    return found


def _any_field(value: Any10) -> bytes:
    if type(value) in _BY_CLASS:
        return encode_composite(value)
    if isinstance(value, dict):
        return compound(0xC1, [_any_field(part) for pair in value.items() for part in pair])
    return encode(value)


@_composite(0x10)
class Open(NamedTuple):
    container_id: str
    hostname: str | None = None
    max_frame_size: UInt | None = None
    channel_max: UShort | None = None
    idle_time_out: UInt | None = None
    outgoing_locales: Any10 = None
    incoming_locales: Any10 = None
    offered_capabilities: Any10 = None
    desired_capabilities: Any10 = None
    properties: Map | None = None


@_composite(0x11)
class Begin(NamedTuple):
    remote_channel: UShort | None
    next_outgoing_id: UInt
    incoming_window: UInt
    outgoing_window: UInt
    handle_max: UInt | None = None
    offered_capabilities: Any10 = None
    desired_capabilities: Any10 = None
    properties: Map | None = None


@_composite(0x28)
class Source(NamedTuple):
    address: Any10 = None
    durable: UInt | None = None
    expiry_policy: SymbolText | None = None
    timeout: UInt | None = None
    dynamic: bool | None = None
    dynamic_node_properties: Map | None = None
    distribution_mode: SymbolText | None = None
    filter: Map | None = None
    default_outcome: Any10 = None
    outcomes: Any10 = None
    capabilities: Any10 = None


@_composite(0x29)
class Target(NamedTuple):
    address: Any10 = None
    durable: UInt | None = None
    expiry_policy: SymbolText | None = None
    timeout: UInt | None = None
    dynamic: bool | None = None
    dynamic_node_properties: Map | None = None
    capabilities: Any10 = None


@_composite(0x30)
class Coordinator(NamedTuple):
    capabilities: Any10 = None


@_composite(0x12)
class Attach(NamedTuple):
    name: str
    handle: UInt
    role: bool
    snd_settle_mode: UByte | None = None
    rcv_settle_mode: UByte | None = None
    source: Any10 = None
    target: Any10 = None
    unsettled: Map | None = None
    incomplete_unsettled: bool | None = None
    initial_delivery_count: UInt | None = None
    max_message_size: ULongInt | None = None
    offered_capabilities: Any10 = None
    desired_capabilities: Any10 = None
    properties: Map | None = None


@_composite(0x13)
class Flow(NamedTuple):
    next_incoming_id: UInt | None
    incoming_window: UInt
    next_outgoing_id: UInt
    outgoing_window: UInt
    handle: UInt | None = None
    delivery_count: UInt | None = None
    link_credit: UInt | None = None
    available: UInt | None = None
    drain: bool | None = None
    echo: bool | None = None
    properties: Map | None = None


@_composite(0x14)
class Transfer(NamedTuple):
    handle: UInt
    delivery_id: UInt | None = None
    delivery_tag: bytes | None = None
    message_format: UInt | None = None
    settled: bool | None = None
    more: bool | None = None
    rcv_settle_mode: UByte | None = None
    state: Any10 = None
    resume: bool | None = None
    aborted: bool | None = None
    batchable: bool | None = None


@_composite(0x15)
class Disposition(NamedTuple):
    role: bool
    first: UInt
    last: UInt | None = None
    settled: bool | None = None
    state: Any10 = None
    batchable: bool | None = None


@_composite(0x1D)
class Error(NamedTuple):
    condition: SymbolText
    description: str | None = None
    info: Map | None = None


@_composite(0x16)
class Detach(NamedTuple):
    handle: UInt
    closed: bool | None = None
    error: Error | None = None


@_composite(0x17)
class End(NamedTuple):
    error: Error | None = None


@_composite(0x18)
class Close(NamedTuple):
    error: Error | None = None


@_composite(0x23)
class Received(NamedTuple):
    section_number: UInt
    section_offset: ULongInt


@_composite(0x24)
class Accepted(NamedTuple):
    pass


@_composite(0x25)
class Rejected(NamedTuple):
    error: Error | None = None


@_composite(0x26)
class Released(NamedTuple):
    pass


@_composite(0x27)
class Modified(NamedTuple):
    delivery_failed: bool | None = None
    undeliverable_here: bool | None = None
    message_annotations: Map | None = None


@_composite(0x2B)
class DeleteOnClose(NamedTuple):
    pass


@_composite(0x40)
class SaslMechanisms(NamedTuple):
    sasl_server_mechanisms: Any10


@_composite(0x41)
class SaslInit(NamedTuple):
    mechanism: SymbolText
    initial_response: bytes | None = None
    hostname: str | None = None


@_composite(0x43)
class SaslResponse(NamedTuple):
    response: bytes


@_composite(0x44)
class SaslOutcome(NamedTuple):
    code: UByte
    additional_data: bytes | None = None


_PERFORMATIVES = (*range(0x10, 0x19), *range(0x40, 0x45))

#: A transfer as most peers encode it: handle, delivery id, tag, message format 0, settled, more; nothing follows.
_TRANSFER = re.compile(
    rb"\x00S\x14\xc0(.)\x06(C|R.|p....)(C|R.|p....)\xa0(\x00|\x01.|\x02..|\x03...|\x04....)C(A|B)(A|B)", re.DOTALL
)
#: A disposition that settles deliveries as accepted: role, first, last, settled, state; nothing follows.
_ACCEPTANCE = re.compile(rb"\x00S\x15\xc0(.)\x05(A|B)(C|R.|p....)(@|C|R.|p....)(A|B)\x00S\x24E", re.DOTALL)
_ACCEPTED = Accepted()


def decode_performative(body: bytes) -> tuple[Any, int]:
    """Decode the performative at the start of a frame's body.

    Returns:
        The performative, and the offset of the payload after it.

    Raises:
        ValueError: it is malformed, or not a performative.
    """
    if (found := _TRANSFER.match(body)) is not None and found.end() == 5 + body[4]:
        _, handle, number, tag, settled, more = found.groups()
        told = Transfer(_uint(handle), _uint(number), tag[1:], 0, settled == b"A", more == b"A")
        return told, found.end()
    if (found := _ACCEPTANCE.fullmatch(body)) is not None and found.end() == 5 + body[4]:
        _, role, first, last, settled = found.groups()
        until = None if last == NULL else _uint(last)
        return Disposition(role == b"A", _uint(first), until, settled == b"A", _ACCEPTED), found.end()
    value, end = decode(body)
    if not isinstance(value, Described) or _code(value) not in _PERFORMATIVES:
        raise ValueError("unknown performative")
    return _composed(value), end


def _uint(encoded: bytes) -> int:
    return int.from_bytes(encoded[1:])  # also of b"C", which is 0


def _code(value: Described) -> int:
    descriptor = value.descriptor
    return int(descriptor) if isinstance(descriptor, ULong) else _NAMES.get(str(descriptor), -1)


def _composed(value: Any10) -> Any10:
    """Return a described list as the composite value that it encodes; other values unchanged."""
    if not isinstance(value, Described):
        return value
    kind = _KINDS.get(_code(value))
    if kind is None or not isinstance(value.value, list):
        return value
    fields = value.value[: len(kind.types)]
    for index, each in enumerate(fields):
        if each is None:
            continue
        if isinstance(each, Described):
            fields[index] = each = _composed(each)
        if not isinstance(each, kind.types[index]):
            raise ValueError(f"field {kind.cls._fields[index]} of {kind.cls.__name__.lower()} has the wrong type")
    for index in kind.required:
        if index >= len(fields) or fields[index] is None:
            raise ValueError(f"field {kind.cls._fields[index]} of {kind.cls.__name__.lower()} is missing")
    return kind.cls._make([*fields, *[None] * (len(kind.types) - len(fields))])


def encode_composite(value: Any10) -> bytes:
    """Encode a performative or another composite value. Fields at the end that are not set are left out."""
    kind, size = _BY_CLASS[type(value)], len(value)
    while size and value[size - 1] is None:
        size -= 1
    if not size:
        return kind.descriptor + b"\x45"
    fields = zip(kind.encoders, value[:size], strict=False)
    return kind.descriptor + compound(0xC0, [NULL if each is None else encoder(each) for encoder, each in fields])


def add(number: int, count: int) -> int:
    """Add to a 32-bit serial number; a negative count subtracts (RFC 1982)."""
    return (number + count) & _SERIAL


def after(one: int, other: int) -> int:
    """Return how far one serial number is ahead of another; negative if it is behind (RFC 1982)."""
    distance = add(one, -other)
    return distance if distance < 1 << 31 else distance - (1 << 32)


def disposed(disposition: Disposition, unsettled: Collection[int]) -> list[int]:
    """Return the ids of the unsettled deliveries in a disposition's range, however long the range is."""
    first = disposition.first
    count = 1 if disposition.last is None else after(disposition.last, first) + 1
    if count > len(unsettled):
        return [each for each in unsettled if 0 <= after(each, first) < count]
    return [each for distance in range(count) if (each := add(first, distance)) in unsettled]


def frame(channel: int, performative: Any, kind: int = AMQP) -> bytes:
    """Encode the frame of a performative without a payload."""
    body = encode_composite(performative)
    return FRAME_HEADER.pack(len(body) + 8, 2, kind, channel) + body


def symbols(value: Any10) -> list[str]:
    """Return the symbols in a field that may have none, one, or an array of them."""
    if isinstance(value, Symbol):
        return [value]
    return [each for each in value if isinstance(each, Symbol)] if isinstance(value, list) else []


#: The start of a transfer frame: size, data offset, type, channel; descriptor; a list of six fields: handle, delivery
#: id, delivery tag, message format 0, settled, more.
_TRANSFER_START = struct.Struct(">IBBH3sBBBBIBIBBIBBB")
_DESCRIPTOR, _LIST8, _UINT, _VBIN8, _TRUE, _FALSE, _ZERO = b"\x00\x53\x14", 0xC0, 0x70, 0xA0, 0x41, 0x42, 0x43


def transfer_frames(
    channel: int, handle: int, delivery_id: int, tag: int, payload: bytes, limit: int, *, settled: bool
) -> list[bytes]:
    """Encode a delivery as transfer frames of up to `limit` bytes."""
    room, mode = limit - _TRANSFER_START.size, _TRUE if settled else _FALSE
    head = (_DESCRIPTOR, _LIST8, 20, 6, _UINT, handle, _UINT, delivery_id, _VBIN8, 4, tag, _ZERO, mode)
    if len(payload) <= room:
        return [_TRANSFER_START.pack(_TRANSFER_START.size + len(payload), 2, 0, channel, *head, _FALSE) + payload]
    frames = []
    for start in range(0, len(payload), room):
        piece = payload[start : start + room]
        more = _TRUE if start + room < len(payload) else _FALSE
        frames.append(_TRANSFER_START.pack(_TRANSFER_START.size + len(piece), 2, 0, channel, *head, more) + piece)
    return frames
