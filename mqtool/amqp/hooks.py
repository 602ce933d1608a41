"""The places where mqtool reaches into pika, since pika 1.4 has no public way.

1. Finished frames go to pika's transport as they are; see frames.py.
2. Our coding of tables and names takes the place of pika's, which refuses or changes some of them; see tables.py.
3. Properties that cannot be decoded make a delivery without properties, and not the end of the connection.
"""

import struct
from collections.abc import Iterable

from pika import data, spec
from pika.connection import Connection as PikaConnection

from mqtool.amqp import tables
from mqtool.message import UNREADABLE

_decode_properties = spec.BasicProperties.decode


def write(connection: PikaConnection, frames: Iterable[bytes]) -> None:
    """Pass finished frames to pika's transport. On the I/O thread.

    tests/integration/test_publishing.py fails if what arrives differs from what pika's own basic_publish sends.
    """
    connection._output_marshaled_frames([b"".join(frames)])


def mend_coding() -> None:
    """Replace pika's coding of tables, names and properties. tests/unit/test_tables.py tests each."""
    for name in ("table", "value", "short_string"):
        for what in (f"encode_{name}", f"decode_{name}"):
            setattr(data, what, getattr(tables, what))
    spec.BasicProperties.decode = _decoded  # type: ignore[method-assign]


def _decoded(properties: spec.BasicProperties, encoded: bytes, offset: int = 0) -> spec.BasicProperties:
    try:
        _decode_properties(properties, encoded, offset)  # type: ignore[no-untyped-call]
    except (struct.error, IndexError):
        vars(properties).update(dict.fromkeys(vars(properties)), headers={UNREADABLE: encoded[offset:]})
    return properties
