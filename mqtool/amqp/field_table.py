"""Field tables, which hold headers and arguments. AMQP 0-9-1, section 4.2.5.5, with RabbitMQ's types.

pika 1.4 cannot encode floating-point numbers and decodes them to whole ones; and a timestamp beyond the year 9999, in
milliseconds for instance, breaks its I/O loop. What is received must be what was sent, and be fit to be sent again.
https://www.rabbitmq.com/amqp-0-9-1-errata#section_3
"""

import calendar
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from struct import pack, unpack_from
from typing import Any

from pika import data as pika_data


def encode_table(table: Mapping[str, Any]) -> bytes:
    """A table, with its length in front.

    Raises:
        ValueError: a name is longer than 255 bytes, or a value has no type in AMQP.
    """
    pieces: list[bytes] = []
    for name, value in table.items():
        encoded = name.encode()
        if len(encoded) > 255:
            raise ValueError(f"the name {name[:40]!r}… is {len(encoded)} bytes long; AMQP allows 255")
        pieces += (bytes((len(encoded),)), encoded, _encode_value(name, value))
    return _with_length(b"".join(pieces))


def _encode_value(name: str, value: Any) -> bytes:
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return _encode_integer(name, value)
        case float():
            return b"d" + pack(">d", value)
        case Decimal():
            return _encode_decimal(name, value)
        case datetime():
            return b"T" + pack(">q", calendar.timegm(value.utctimetuple()))
        case _:
            return _encode_container(name, value)


def _encode_container(name: str, value: Any) -> bytes:
    match value:
        case str():
            return b"S" + _with_length(value.encode("utf-8", "surrogateescape"))
        case bytes() | bytearray():
            return b"x" + _with_length(bytes(value))
        case Mapping():
            return b"F" + encode_table(value)
        case Sequence():
            return b"A" + _with_length(b"".join(_encode_value(name, entry) for entry in value))
    raise ValueError(f"the value of {name!r} has no type in AMQP: {value!r}")


def _encode_integer(name: str, value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"I" + pack(">i", value)
    if -(2**63) <= value < 2**63:
        return b"l" + pack(">q", value)
    raise ValueError(f"the value of {name!r} is beyond 64 bits: {value}")


def _encode_decimal(name: str, value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"the value of {name!r} is no number: {value}")
    unscaled = int("".join(map(str, digits))) * 10 ** max(exponent, 0) * (-1 if sign else 1)
    if exponent < -255 or not -(2**31) <= unscaled < 2**31:
        raise ValueError(f"the value of {name!r} has more digits than AMQP's decimals: {value}")
    return b"D" + pack(">Bi", max(-exponent, 0), unscaled)


def _with_length(content: bytes) -> bytes:
    return pack(">I", len(content)) + content


_pika_decode_value = pika_data.decode_value


def _decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
    kind = encoded[offset : offset + 1]
    if kind == b"d":
        return unpack_from(">d", encoded, offset + 1)[0], offset + 9
    if kind == b"f":
        return unpack_from(">f", encoded, offset + 1)[0], offset + 5
    if kind == b"T":
        seconds = unpack_from(">q", encoded, offset + 1)[0]
        try:
            return datetime.fromtimestamp(seconds, UTC), offset + 9
        except (ValueError, OverflowError, OSError):  # a number is better than no delivery
            return seconds, offset + 9
    return _pika_decode_value(encoded, offset)


def mend_pikas_decoder() -> None:
    """Have pika decode floating-point numbers and far timestamps; pika has no public way to.

    tests/unit/test_field_table.py has a test of each.
    """
    pika_data.decode_value = _decode_value
