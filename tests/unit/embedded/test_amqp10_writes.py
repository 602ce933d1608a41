"""Which frames the broker sends together, in one write, to an AMQP 1.0 client."""

import asyncio

from mqtool.codecs.field_tables import UInt32
from tests.protocol.raw_amqp10 import ATTACH, FLOW, RECEIVER, SOURCE, TARGET, TRANSFER, described
from tests.unit.embedded.memory_client10 import MemoryClient10, broker_like, encoded, fill, frames


def test_messages_are_sent_after_the_reply_to_attach(loop: asyncio.AbstractEventLoop) -> None:
    """If an AMQP 1.0 client attaches a receiver and grants credit in one write, the embedded broker first replies with
    its own attach frame, and sends the messages only in a second write. RabbitMQ does the same.
    """

    broker = broker_like(loop)
    fill(broker.vhosts["/"].queues["q"], b"1", b"2")
    client = MemoryClient10(loop, broker)
    ends = described(SOURCE, "/queues/q"), described(TARGET)
    attach = encoded(ATTACH, "link", UInt32(0), RECEIVER, None, None, *ends)
    windows = (UInt32(0), UInt32(100), UInt32(0), UInt32(100))
    credit = encoded(FLOW, *windows, UInt32(0), UInt32(0), UInt32(1))
    more = encoded(FLOW, *windows, UInt32(0), UInt32(0), UInt32(5), None, True)
    found = [[each.code for each in frames(write)] for write in client.write_frames(attach + credit + more)]
    assert found == [[ATTACH], [TRANSFER, TRANSFER, FLOW]]
