"""An AMQP 1.0 client and a broker in one process, without a socket: each frame is answered immediately."""

import asyncio
import struct
from typing import Any

from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.clock import LoopClock
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like, Profile
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.codecs.amqp10_values import Described, Symbol, decode, encode
from mqtool.codecs.field_tables import UInt8, UInt32
from tests.protocol.raw_amqp10 import (
    AMQP_HEADER,
    ATTACH,
    BEGIN,
    DISPOSITION,
    FLOW,
    INIT,
    OPEN,
    RECEIVER,
    SASL_HEADER,
    SENDER,
    SOURCE,
    TARGET,
    TRANSFER,
    Frame,
    described,
    message,
    raw_frame,
)


class PatientClock(LoopClock):
    """A clock by which no work takes any time, so that the broker handles all that it reads in one step."""

    elapsed = staticmethod(lambda: 0.0)


class MemoryClient10(asyncio.Transport):
    """A client whose transport records each write of the broker.

    Args:
        loop: the event loop, which runs only while the client waits for an answer.
        begin: begin a session on channel 0.
        opened: log in and open the connection.
        extra: more information about the transport, such as the client's certificate.

    Attributes:
        unread: the bytes that the client has not read yet, as the broker sees it.
        closed: True once the broker has closed the socket.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        broker: Broker,
        *,
        user: str = "guest",
        begin: bool = True,
        opened: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 5672), **(extra or {})})
        self.loop = loop
        self.writes: list[bytes] = []
        self.unread = 0
        self.closed = False
        self.connection = loop.run_until_complete(self._connected(broker))
        if not opened:
            return
        self.write_frames(SASL_HEADER)
        self.write_frames(encoded(INIT, Symbol("PLAIN"), f"\0{user}\0guest".encode(), kind=1))
        self.write_frames(AMQP_HEADER)
        self.send(OPEN, "memory", "vhost:/")
        if begin:
            self.send(BEGIN, None, UInt32(0), UInt32(2048), UInt32(2048))

    async def _connected(self, broker: Broker) -> Connection10:
        connection = Connection10(broker, Connections())
        connection.connection_made(self)
        return connection

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing."""

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.closed = True

    def write_frames(self, data: bytes) -> list[bytes]:
        """Send bytes in one write. Return the broker's writes in response."""
        self.connection.data_received(data)
        return self.answers()

    def answers(self) -> list[bytes]:
        """Return what the broker has written, once it has nothing more to do."""
        self.loop.run_until_complete(_iterate())
        found, self.writes = self.writes, []
        return found

    def received(self) -> list[Frame]:
        """Return the frames that the broker has sent, once it has nothing more to do."""
        return frames(b"".join(self.answers()))

    def send(self, code: int, *fields: Any, payload: bytes = b"") -> list[Frame]:
        """Send a performative. Return the frames that the broker sends in response."""
        return frames(b"".join(self.write_frames(encoded(code, *fields, payload=payload))))

    def attach_sender(
        self, address: str | None, *, handle: int = 0, mode: UInt8 | None = None, count: int | None = 0
    ) -> list[Frame]:
        """Attach a link to publish on."""
        initial = None if count is None else UInt32(count)
        ends = described(SOURCE), described(TARGET, address)
        return self.send(ATTACH, f"link-{handle}", UInt32(handle), SENDER, mode, None, *ends, None, None, initial)

    def attach_receiver(
        self, address: str | None, *source: Any, handle: int = 0, mode: UInt8 | None = None, rest: tuple[Any, ...] = ()
    ) -> list[Frame]:
        """Attach a link to receive on.

        Args:
            source: the fields of the source after its address.
            rest: the fields of the attach frame from max-message-size on.
        """
        ends = described(SOURCE, address, *source), described(TARGET)
        fields = f"link-{handle}", UInt32(handle), RECEIVER, mode, None, *ends, None, None, None
        return self.send(ATTACH, *fields, *rest)

    def publish(
        self,
        number: int | None,
        payload: bytes | None = None,
        *,
        handle: int = 0,
        settled: bool | None = False,
        more: bool = False,
        rest: tuple[Any, ...] = (),
    ) -> list[Frame]:
        """Send a transfer.

        Args:
            number: the delivery id and tag.
            rest: the fields from rcv-settle-mode on.
        """
        names = (None, None) if number is None else (UInt32(number), struct.pack(">I", number))
        payload = message() if payload is None else payload
        return self.send(TRANSFER, UInt32(handle), *names, UInt32(0), settled, more, *rest, payload=payload)

    def flow(
        self,
        handle: int | None = None,
        credit: int | None = None,
        *,
        count: int | None = 0,
        drain: bool | None = None,
        echo: bool | None = None,
        seen: int = 0,
        window: int = 2048,
    ) -> list[Frame]:
        """Send a flow frame.

        Args:
            count: the link's delivery-count.
            seen: the session's next-incoming-id.
            window: the session's incoming-window.
        """
        credited = None if credit is None else UInt32(credit)
        counted = None if count is None else UInt32(count)
        link = () if handle is None else (UInt32(handle), counted, credited, None, drain, echo)
        return self.send(FLOW, UInt32(seen), UInt32(window), UInt32(0), UInt32(2048), *link)

    def settle(self, first: int, state: Described) -> list[Frame]:
        """Settle a delivery."""
        return self.send(DISPOSITION, RECEIVER, UInt32(first), None, True, state)


async def _iterate() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def encoded(code: int, *fields: Any, payload: bytes = b"", kind: int = 0) -> bytes:
    """Encode a frame on channel 0."""
    return raw_frame(encode(described(code, *fields)) + payload, kind=kind)


def frames(data: bytes) -> list[Frame]:
    """Decode frames."""
    found = []
    while data:
        size, words, _, channel = struct.unpack_from(">IBBH", data)
        body, data = data[words * 4 : size], data[size:]
        value, end = decode(body)
        found.append(Frame(channel, int(value.descriptor), value.value, body[end:]))
    return found


def broker_like(loop: asyncio.AbstractEventLoop, like: Like = Like.V4_3, ledger: Ledger | None = None) -> Broker:
    """Return a broker that behaves like a version of RabbitMQ."""
    return broker_with(loop, PROFILES[like], ledger)


def broker_with(loop: asyncio.AbstractEventLoop, profile: Profile, ledger: Ledger | None = None) -> Broker:
    """Return a broker with the classic queue `q`."""

    async def started() -> Broker:
        broker = Broker(ledger or Ledger(), profile=profile, clock=PatientClock())
        broker.create_defaults()
        broker.vhosts["/"].add_queue(QueueDeclaration("q", {}, durable=True))
        return broker

    return loop.run_until_complete(started())


def fill(queue: BrokerQueue, *bodies: bytes) -> None:
    """Publish messages to a queue."""
    for body in bodies:
        header = ContentHeader.of(MessageProperties(b"\0\0"), len(body))
        queue.publish(BrokerMessage(encode_address("", queue.name), header, body))
