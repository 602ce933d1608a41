"""What mqtool uses of pika that is not public."""

import contextlib
import struct
from collections.abc import Iterable
from typing import Any

from pika import ConnectionParameters, data, spec
from pika.adapters.select_connection import SelectConnection
from pika.adapters.utils import io_services_utils
from pika.channel import Channel as PikaChannel
from pika.connection import Connection as PikaConnection

from mqtool.amqp import tables
from mqtool.amqp.basic_frames import Cutter
from mqtool.message import UNREADABLE

_PIECE = 1 << 17
_BASIC_ACK = struct.Struct(">BHIIQBB").pack
_decode_properties = spec.BasicProperties.decode
_write_later = io_services_utils._AsyncPlaintextTransport.write


class CuttingConnection(SelectConnection):
    """A connection whose deliveries are cut by hand.

    Attributes:
        cutter: knows the consumers and publishers for which that is done.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.cutter = Cutter(super()._on_data_available)
        super().__init__(*arguments, **options)

    def _on_data_available(self, data_in: bytes) -> None:
        # pika sees by bytes_received that the broker is alive. It counts what it is given itself, within this call: to
        # add to the number from before would take that back, and drop a connection on which only heartbeats come.
        cut = self.cutter.receive(data_in)
        self.bytes_received += cut


def write(connection: PikaConnection, frames: Iterable[bytes]) -> None:
    """Pass finished frames to pika's transport. On the I/O thread.

    tests/integration/test_publishing.py fails if what arrives differs from what pika's own basic_publish sends.
    """
    connection._output_marshaled_frames([b"".join(frames)])


def acknowledgements(channel: PikaChannel, tags: Iterable[tuple[int, bool]]) -> list[bytes]:
    """The frames that acknowledge deliveries; each tag with whether it stands for all before it."""
    start = (spec.FRAME_METHOD, channel.channel_number, 13, spec.Basic.Ack.INDEX)
    return [_BASIC_ACK(*start, tag, multiple, spec.FRAME_END) for tag, multiple in tags]


def name_host_in_bytes(parameters: ConnectionParameters) -> None:
    """Resolve an ASCII host name without loading Python's Unicode tables."""
    if parameters.host.isascii():
        parameters._host = parameters.host.encode()  # type: ignore[assignment]


def read_large_pieces() -> None:
    """Read a socket once for each time that it has something."""
    io_services_utils._AsyncTransportBase._MAX_RECV_BYTES = _PIECE
    io_services_utils._AsyncPlaintextTransport._MAX_CONSUME_BYTES = 1


def write_at_once() -> None:
    """Have a socket take what it has room for when it is written; the rest waits, as all does in pika."""

    def write(transport: io_services_utils._AsyncPlaintextTransport, octets: bytes) -> None:
        if transport._state == transport._STATE_ACTIVE and not transport._tx_buffers:
            with contextlib.suppress(OSError):  # no room; or else pika meets the error itself, and knows what to do
                octets = octets[transport._sock.send(octets) :]
        if octets:
            _write_later(transport, octets)

    io_services_utils._AsyncPlaintextTransport.write = write  # type: ignore[method-assign, assignment]


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
