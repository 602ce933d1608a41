"""The two places where mqtool reaches into pika, since pika 1.4 has no public way.

1. Finished frames go to pika's transport as they are; see frames.py.
2. pika's coding of field tables, which hold headers and arguments, is replaced where it is wrong: it cannot encode a
   floating-point number, and decodes one to a whole number; and a timestamp beyond the year 9999, in milliseconds for
   instance, breaks its I/O loop. What is received must be what was sent, and fit to be sent again.
   AMQP 0-9-1, section 4.2.5.5, with RabbitMQ's types: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from struct import pack, unpack_from
from typing import Any

from pika import data as pika_data
from pika.connection import Connection as PikaConnection

_pika_encode_value = pika_data.encode_value
_pika_decode_value = pika_data.decode_value


def write(connection: PikaConnection, frames: Iterable[bytes]) -> None:
    """Pass finished frames to pika's transport. On the I/O thread.

    tests/integration/test_publishing.py fails if what arrives differs from what pika's own basic_publish sends.
    """
    connection._output_marshaled_frames([b"".join(frames)])


def mend_field_tables() -> None:
    """Replace pika's coding of a field table's values. tests/unit/test_field_table.py tests each."""
    pika_data.encode_value = _encode_value
    pika_data.decode_value = _decode_value


def _encode_value(pieces: list[bytes], value: Any) -> int:
    if isinstance(value, float):
        pieces.append(pack(">cd", b"d", value))
        return 9
    return _pika_encode_value(pieces, value)


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
