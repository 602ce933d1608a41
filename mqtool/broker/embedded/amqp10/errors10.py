"""The errors of AMQP 1.0: each closes a link, a session or the connection. Conditions and descriptions are RabbitMQ's.

Some descriptions contain values in Erlang's notation, formatted by term() and the functions below it.
"""

import uuid

from mqtool.broker.embedded.model.amqp_errors import (
    ACCESS_REFUSED,
    CONNECTION_FORCED,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    RESOURCE_ERROR,
    RESOURCE_LOCKED,
    AmqpException,
)
from mqtool.codecs.amqp10_frames import Error
from mqtool.codecs.amqp10_values import Any10, Array, Char, Described, Map, Milliseconds, Symbol, ULong
from mqtool.codecs.field_tables import Float32, Int8, Int16, Int32, UInt8, UInt16, UInt32

INTERNAL_ERROR = "amqp:internal-error"
DECODE_ERROR = "amqp:decode-error"
FRAMING_ERROR = "amqp:connection:framing-error"
INVALID_FIELD = "amqp:invalid-field"
NOT_ALLOWED = "amqp:not-allowed"
UNAUTHORIZED = "amqp:unauthorized-access"
MISSING = "amqp:not-found"
LIMIT_EXCEEDED = "amqp:resource-limit-exceeded"
DELETED = "amqp:resource-deleted"
LOCKED = "amqp:resource-locked"
UNSUPPORTED = "amqp:not-implemented"
FAILED = "amqp:precondition-failed"
TOO_SMALL = "amqp:frame-size-too-small"
UNATTACHED = "amqp:session:unattached-handle"
HANDLE_IN_USE = "amqp:session:handle-in-use"
WINDOW_VIOLATION = "amqp:session:window-violation"
TRANSFER_LIMIT = "amqp:link:transfer-limit-exceeded"
TOO_LARGE = "amqp:link:message-size-exceeded"

_CONDITIONS = {
    ACCESS_REFUSED: UNAUTHORIZED,
    NOT_FOUND: MISSING,
    RESOURCE_LOCKED: LOCKED,
    PRECONDITION_FAILED: FAILED,
    NOT_IMPLEMENTED: UNSUPPORTED,
    RESOURCE_ERROR: LIMIT_EXCEEDED,
    CONNECTION_FORCED: INTERNAL_ERROR,
}


class Amqp10Error(Exception):
    """An error to be sent to the client.

    Attributes:
        error: the condition, description and additional information.
    """

    def __init__(self, condition: str, description: str | None = None, info: Map | None = None) -> None:
        super().__init__(description or condition)
        self.error = Error(condition, description, info)


class LinkError(Amqp10Error):
    """An error that detaches a link, or that refuses to attach it. Before RabbitMQ 4.2, it ends the session."""


class DetachError(LinkError):
    """An error that detaches a link in all versions of RabbitMQ."""


class SessionError(Amqp10Error):
    """An error that ends a session."""


class ConnectionError10(Amqp10Error):
    """An error that closes the connection."""


def condition_of(error: AmqpException) -> tuple[str, str]:
    """Return the condition and the description for an error raised by the broker's model."""
    _, _, what = error.text.partition(" - ")
    return _CONDITIONS.get(error.code, INTERNAL_ERROR), what or error.text


_TAGS: dict[type, str] = {
    UInt8: "ubyte",
    UInt16: "ushort",
    UInt32: "uint",
    ULong: "ulong",
    Int8: "byte",
    Int16: "short",
    Int32: "int",
    Float32: "float",
    float: "double",
    Milliseconds: "timestamp",
}


def term(value: Any10) -> str:  # noqa: C901 - one case per type
    """Format a value as an Erlang term, such as `{utf8,<<"text">>}`."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Char():
            return f"{{char,{ord(value)}}}"
        case Symbol():
            return f"{{symbol,{binary(value)}}}"
        case str():
            return f"{{utf8,{binary(value)}}}"
        case bytes():
            return f"{{binary,{binary(value)}}}"
        case uuid.UUID():
            return f"{{uuid,{binary(value.bytes)}}}"
        case Described():
            return f"{{described,{term(value.descriptor)},{term(value.value)}}}"
        case dict():
            return f"{{map,[{','.join(map(pair, value.items()))}]}}"
        case Array():
            kind = term(value[0]).partition(",")[0].removeprefix("{") if value else "null"
            return f"{{array,{kind},[{','.join(map(term, value))}]}}"
        case list():
            return f"{{list,[{','.join(map(term, value))}]}}"
    return f"{{{_TAGS.get(type(value), 'long')},{value}}}"


def pair(item: tuple[Any10, Any10]) -> str:
    """Format a map entry as an Erlang tuple."""
    return f"{{{term(item[0])},{term(item[1])}}}"


def binary(value: str | bytes) -> str:
    """Format a value as an Erlang binary: text in quotes, or numbers if some bytes are not printable ASCII."""
    if isinstance(value, str):
        if not value:
            return "<<>>"
        return f'<<"{value}">>' if value.isascii() else f'<<"{value}"/utf8>>'
    shown = all(32 <= byte < 127 for byte in value)
    return f'<<"{value.decode()}">>' if shown else f"<<{','.join(map(str, value))}>>"
