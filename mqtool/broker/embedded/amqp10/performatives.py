"""The frames of AMQP 1.0, the performatives in them, and the composite values that these contain.

Every field is None if it is not set, also those that must be set when they are sent: `decode` checks these.
"""

import struct
from typing import Any, NamedTuple, TypeAlias

from mqtool.codecs.amqp10_types import Any10, Described, Map, decode, encode
from mqtool.codecs.amqp10_values import Symbol, ULong, compound
from mqtool.codecs.field_tables import UInt8, UInt16, UInt32

FRAME_HEADER = struct.Struct(">IBBH")
AMQP, SASL = 0, 1

#: The role in attach and disposition frames of the peer that sends messages, or receives them.
SENDER, RECEIVER = False, True

#: Settle modes: snd-settle-mode and rcv-settle-mode.
UNSETTLED, SETTLED, MIXED = UInt8(0), UInt8(1), UInt8(2)
FIRST, SECOND = UInt8(0), UInt8(1)

HEARTBEAT = FRAME_HEADER.pack(8, 2, AMQP, 0)


class Open(NamedTuple):
    container_id: str
    hostname: str | None = None
    max_frame_size: UInt32 | None = None
    channel_max: UInt16 | None = None
    idle_time_out: UInt32 | None = None
    outgoing_locales: Any10 = None
    incoming_locales: Any10 = None
    offered_capabilities: Any10 = None
    desired_capabilities: Any10 = None
    properties: Map | None = None


class Begin(NamedTuple):
    remote_channel: UInt16 | None
    next_outgoing_id: UInt32
    incoming_window: UInt32
    outgoing_window: UInt32
    handle_max: UInt32 | None = None
    offered_capabilities: Any10 = None
    desired_capabilities: Any10 = None
    properties: Map | None = None


class Source(NamedTuple):
    address: Any10 = None
    durable: UInt32 | None = None
    expiry_policy: Symbol | None = None
    timeout: UInt32 | None = None
    dynamic: bool | None = None
    dynamic_node_properties: Map | None = None
    distribution_mode: Symbol | None = None
    filter: Map | None = None
    default_outcome: Any10 = None
    outcomes: Any10 = None
    capabilities: Any10 = None


class Target(NamedTuple):
    address: Any10 = None
    durable: UInt32 | None = None
    expiry_policy: Symbol | None = None
    timeout: UInt32 | None = None
    dynamic: bool | None = None
    dynamic_node_properties: Map | None = None
    capabilities: Any10 = None


class Coordinator(NamedTuple):
    capabilities: Any10 = None


class Attach(NamedTuple):
    name: str
    handle: UInt32
    role: bool
    snd_settle_mode: UInt8 | None = None
    rcv_settle_mode: UInt8 | None = None
    source: Any10 = None
    target: Any10 = None
    unsettled: Map | None = None
    incomplete_unsettled: bool | None = None
    initial_delivery_count: UInt32 | None = None
    max_message_size: ULong | None = None
    offered_capabilities: Any10 = None
    desired_capabilities: Any10 = None
    properties: Map | None = None


class Flow(NamedTuple):
    next_incoming_id: UInt32 | None
    incoming_window: UInt32
    next_outgoing_id: UInt32
    outgoing_window: UInt32
    handle: UInt32 | None = None
    delivery_count: UInt32 | None = None
    link_credit: UInt32 | None = None
    available: UInt32 | None = None
    drain: bool | None = None
    echo: bool | None = None
    properties: Map | None = None


class Transfer(NamedTuple):
    handle: UInt32
    delivery_id: UInt32 | None = None
    delivery_tag: bytes | None = None
    message_format: UInt32 | None = None
    settled: bool | None = None
    more: bool | None = None
    rcv_settle_mode: UInt8 | None = None
    state: Any10 = None
    resume: bool | None = None
    aborted: bool | None = None
    batchable: bool | None = None


class Disposition(NamedTuple):
    role: bool
    first: UInt32
    last: UInt32 | None = None
    settled: bool | None = None
    state: Any10 = None
    batchable: bool | None = None


class Error(NamedTuple):
    condition: Symbol
    description: str | None = None
    info: Map | None = None


class Detach(NamedTuple):
    handle: UInt32
    closed: bool | None = None
    error: Error | None = None


class End(NamedTuple):
    error: Error | None = None


class Close(NamedTuple):
    error: Error | None = None


class Received(NamedTuple):
    section_number: UInt32
    section_offset: ULong


class Accepted(NamedTuple):
    pass


class Rejected(NamedTuple):
    error: Error | None = None


class Released(NamedTuple):
    pass


class Modified(NamedTuple):
    delivery_failed: bool | None = None
    undeliverable_here: bool | None = None
    message_annotations: Map | None = None


class DeleteOnClose(NamedTuple):
    pass


class SaslMechanisms(NamedTuple):
    sasl_server_mechanisms: Any10


class SaslInit(NamedTuple):
    mechanism: Symbol
    initial_response: bytes | None = None
    hostname: str | None = None


class SaslResponse(NamedTuple):
    response: bytes


class SaslOutcome(NamedTuple):
    code: UInt8
    additional_data: bytes | None = None


Performative: TypeAlias = (
    Open | Begin | Attach | Flow | Transfer | Disposition | Detach | End | Close | SaslInit | SaslResponse
)


class _Kind(NamedTuple):
    """A composite type: its class, the types of its fields, and the names of those that must be set."""

    cls: Any
    types: tuple[Any, ...]
    required: tuple[int, ...]


_KINDS: dict[int, _Kind] = {}
_CODES: dict[type, bytes] = {}
_NAMES: dict[str, int] = {}


def _define(code: int, cls: Any, name: str, types: tuple[Any, ...] = (), *required: int) -> None:
    _KINDS[code] = _Kind(cls, types, required)
    _CODES[cls] = bytes((0x00, 0x53, code))
    _NAMES[f"amqp:{name}:list"] = code


_ANY = object
_TERMINUS = (_ANY, UInt32, Symbol, UInt32, bool, dict)
_define(0x10, Open, "open", (str, str, UInt32, UInt16, UInt32, _ANY, _ANY, _ANY, _ANY, dict), 0)
_define(0x11, Begin, "begin", (UInt16, UInt32, UInt32, UInt32, UInt32, _ANY, _ANY, dict), 1, 2, 3)
_define(
    0x12,
    Attach,
    "attach",
    (str, UInt32, bool, UInt8, UInt8, _ANY, _ANY, dict, bool, UInt32, ULong, _ANY, _ANY, dict),
    *(0, 1, 2),
)
_define(
    0x13, Flow, "flow", (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, bool, bool, dict), *(1, 2, 3)
)
_define(0x14, Transfer, "transfer", (UInt32, UInt32, bytes, UInt32, bool, bool, UInt8, _ANY, bool, bool, bool), 0)
_define(0x15, Disposition, "disposition", (bool, UInt32, UInt32, bool, _ANY, bool), 0, 1)
_define(0x16, Detach, "detach", (UInt32, bool, Error), 0)
_define(0x17, End, "end", (Error,))
_define(0x18, Close, "close", (Error,))
_define(0x1D, Error, "error", (Symbol, str, dict), 0)
_define(0x23, Received, "received", (UInt32, ULong), 0, 1)
_define(0x24, Accepted, "accepted")
_define(0x25, Rejected, "rejected", (Error,))
_define(0x26, Released, "released")
_define(0x27, Modified, "modified", (bool, bool, dict))
_define(0x28, Source, "source", (*_TERMINUS, Symbol, dict, _ANY, _ANY, _ANY))
_define(0x29, Target, "target", (*_TERMINUS, _ANY))
_define(0x2B, DeleteOnClose, "delete-on-close")
_define(0x30, Coordinator, "coordinator", (_ANY,))
_define(0x40, SaslMechanisms, "sasl-mechanisms", (_ANY,), 0)
_define(0x41, SaslInit, "sasl-init", (Symbol, bytes, str), 0)
_define(0x43, SaslResponse, "sasl-response", (bytes,), 0)
_define(0x44, SaslOutcome, "sasl-outcome", (UInt8, bytes), 0)

_PERFORMATIVES = (*range(0x10, 0x19), 0x41, 0x43)


def decode_performative(body: bytes) -> tuple[Any, int]:
    """Decode the performative at the start of a frame's body.

    Returns:
        The performative, and the offset of the payload after it.

    Raises:
        ValueError: it is malformed, or not one that a client may send.
    """
    value, end = decode(body)
    if not isinstance(value, Described) or _code(value) not in _PERFORMATIVES:
        raise ValueError("unknown performative")
    return _composite(value), end


def _code(value: Described) -> int:
    descriptor = value.descriptor
    return int(descriptor) if isinstance(descriptor, ULong) else _NAMES.get(str(descriptor), -1)


def _composite(value: Any10) -> Any10:
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
            fields[index] = each = _composite(each)
        if not isinstance(each, kind.types[index]):
            raise ValueError(f"field {kind.cls._fields[index]} of {kind.cls.__name__.lower()} has the wrong type")
    for index in kind.required:
        if index >= len(fields) or fields[index] is None:
            raise ValueError(f"field {kind.cls._fields[index]} of {kind.cls.__name__.lower()} is missing")
    return kind.cls._make([*fields, *[None] * (len(kind.cls._fields) - len(fields))])


def encode_composite(value: Any10) -> bytes:
    """Encode a performative or another composite value. Fields at the end that are not set are left out."""
    size = len(value)
    while size and value[size - 1] is None:
        size -= 1
    if not size:
        return _CODES[type(value)] + b"\x45"
    return _CODES[type(value)] + compound(0xC0, [_field(each) for each in value[:size]])


def _field(value: Any10) -> bytes:
    if type(value) in _CODES:
        return encode_composite(value)
    if isinstance(value, dict):
        return compound(0xC1, [_field(part) for pair in value.items() for part in pair])
    return encode(value)


def frame(channel: int, body: bytes, kind: int = AMQP) -> bytes:
    """Return a frame with this body."""
    return FRAME_HEADER.pack(len(body) + 8, 2, kind, channel) + body


def symbols(value: Any10) -> list[str]:
    """Return the symbols in a field that may have none, one, or an array of them."""
    if isinstance(value, Symbol):
        return [value]
    return [each for each in value if isinstance(each, Symbol)] if isinstance(value, list) else []
