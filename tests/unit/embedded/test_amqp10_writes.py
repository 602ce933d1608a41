"""Which frames the broker sends together, in one write, to an AMQP 1.0 client."""

import asyncio
import struct

from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.clock import LoopClock
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.codecs.amqp10_values import Symbol, decode, encode
from mqtool.codecs.field_tables import UInt32
from tests.protocol.raw_amqp10 import (
    AMQP_HEADER,
    ATTACH,
    BEGIN,
    FLOW,
    INIT,
    OPEN,
    RECEIVER,
    SASL_HEADER,
    SOURCE,
    TARGET,
    TRANSFER,
    described,
    raw_frame,
)


class _PatientClock(LoopClock):
    """A clock on which no turn of a client ever ends, so that each read is handled in one turn."""

    elapsed = staticmethod(lambda: 0.0)


class _Client(asyncio.Transport):
    """A transport that records each write of the broker."""

    def __init__(self, connection: Connection10) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 5672)})
        self.connection = connection
        self.writes: list[bytes] = []
        connection.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    async def send(self, data: bytes) -> list[bytes]:
        """Send bytes in one write; return what the broker writes then."""
        self.writes.clear()
        self.connection.data_received(data)
        for _ in range(20):
            await asyncio.sleep(0)
        return self.writes


def _codes(data: bytes) -> list[int]:
    """The codes of the frames in a write."""
    codes = []
    while data:
        (size,) = struct.unpack_from(">I", data)
        codes.append(int(decode(data[8:size])[0].descriptor))
        data = data[size:]
    return codes


def _frame(code: int, *fields: object, kind: int = 0) -> bytes:
    return raw_frame(encode(described(code, *fields)), kind=kind)


def test_messages_are_sent_after_the_reply_to_attach() -> None:
    """If an AMQP 1.0 client sends attach and its first credit in one write, the embedded broker sends the reply to
    attach in one write and the messages in the next, as RabbitMQ does.
    """

    async def writes() -> list[list[int]]:
        broker = Broker(Ledger(), profile=PROFILES[Like.V4_3], clock=_PatientClock())
        broker.create_defaults()
        queue = broker.vhosts["/"].add_queue(QueueDeclaration("q", {}, durable=True))
        for body in (b"1", b"2"):
            header = ContentHeader.of(MessageProperties(b"\0\0"), len(body))
            queue.publish(BrokerMessage(encode_address("", "q"), header, body))
        client = _Client(Connection10(broker, Connections()))
        await client.send(SASL_HEADER)
        await client.send(_frame(INIT, Symbol("PLAIN"), b"\0guest\0guest", kind=1))
        await client.send(AMQP_HEADER)
        await client.send(_frame(OPEN, "raw", "vhost:/"))
        await client.send(_frame(BEGIN, None, UInt32(0), UInt32(100), UInt32(100)))
        ends = described(SOURCE, "/queues/q"), described(TARGET)
        attach = _frame(ATTACH, "link", UInt32(0), RECEIVER, None, None, *ends)
        windows = (UInt32(0), UInt32(100), UInt32(0), UInt32(100))
        credit = _frame(FLOW, *windows, UInt32(0), UInt32(0), UInt32(1))
        more = _frame(FLOW, *windows, UInt32(0), UInt32(0), UInt32(5), None, True)
        found = [_codes(each) for each in await client.send(attach + credit + more)]
        client.connection.connection_lost(None)
        return found

    assert asyncio.run(writes()) == [[ATTACH], [TRANSFER, TRANSFER, FLOW]]
