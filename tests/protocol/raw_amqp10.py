"""An AMQP 1.0 client for tests that sends and reads single frames."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, body_bytes, data_section
from mqtool.codecs.amqp10_values import Described, Symbol, ULong, decode, encode
from mqtool.codecs.field_tables import UInt8, UInt32
from tests.protocol.raw_client import read_exactly

SASL_HEADER, AMQP_HEADER = b"AMQP\x03\x01\x00\x00", b"AMQP\x00\x01\x00\x00"

OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
ERROR, RECEIVED, ACCEPTED, REJECTED, RELEASED, MODIFIED = 0x1D, 0x23, 0x24, 0x25, 0x26, 0x27
SOURCE, TARGET, COORDINATOR = 0x28, 0x29, 0x30
MECHANISMS, INIT, CHALLENGE, RESPONSE, OUTCOME = range(0x40, 0x45)

SENDER, RECEIVER = False, True
UNSETTLED, SETTLED, MIXED = UInt8(0), UInt8(1), UInt8(2)


class Frame(NamedTuple):
    """A frame: its channel, the code and the fields of its performative, and the payload after that."""

    channel: int
    code: int
    fields: list[Any]
    payload: bytes = b""

    def field(self, number: int) -> Any:
        """Return a field; None if it is not set."""
        return self.fields[number] if number < len(self.fields) else None

    @property
    def error(self) -> tuple[str, str | None] | None:
        """The condition and the description of the error in a detach, end or close frame."""
        found = next((each for each in self.fields if isinstance(each, Described)), None)
        return None if found is None else (str(found.value[0]), found.value[1] if len(found.value) > 1 else None)

    @property
    def message(self) -> Amqp10Message:
        return Amqp10Message.decode(self.payload)

    @property
    def body(self) -> bytes | None:
        return body_bytes(self.message.body)


def described(code: int, *fields: Any) -> Described:
    """Return a composite value."""
    return Described(ULong(code), list(fields))


def raw_frame(body: bytes, channel: int = 0, kind: int = 0, words: int = 2) -> bytes:
    """Encode a frame with any content."""
    return struct.pack(">IBBH", 8 + len(body), words, kind, channel) + body


def message(body: bytes = b"hello", **properties: Any) -> bytes:
    """Return an encoded message."""
    return Amqp10Message(properties=BareProperties(**properties), body=data_section(body)).encode()


class RawAmqp10:
    """A socket, and helpers to send valid or invalid AMQP 1.0 on it.

    Args:
        url: the broker's address, the user and the virtual host.
        opened: log in, open the connection, and begin a session on channel 0.
        opening: further fields of the open frame, from max-frame-size on.

    RabbitMQ up to 4.1 starts to number transfers and deliveries just before the largest number. In the arguments of the
    methods and in received frames, these numbers start at 0.
    """

    def __init__(
        self,
        url: str,
        *,
        opened: bool = True,
        opening: tuple[Any, ...] = (),
        connect: Callable[..., Any] = socket.create_connection,
    ) -> None:
        parts = urlsplit(url)
        self.first_transfer = self.first_count = 0
        self.receiving: set[int] = set()
        self._held: bytearray | None = None
        self.socket = connect((str(parts.hostname), parts.port or 5672), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see raw_client.py
        self.login = f"\0{unquote(str(parts.username))}\0{unquote(str(parts.password))}".encode()
        self.vhost = unquote(parts.path[1:]) or "/"
        if opened:
            self.log_in()
            self.send(OPEN, "raw", f"vhost:{self.vhost}", *opening)
            self.opened = self.expect(OPEN)
            self.begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def log_in(self) -> None:
        """Log in as a well-behaved client does."""
        self.socket.sendall(SASL_HEADER)
        assert self.read(8) == SASL_HEADER
        self.mechanisms = self.expect(MECHANISMS).fields[0]
        self.send(INIT, Symbol("PLAIN"), self.login, kind=1)
        assert self.expect(OUTCOME).fields[0] == 0
        self.socket.sendall(AMQP_HEADER)
        assert self.read(8) == AMQP_HEADER

    def begin(self, channel: int = 0, window: int = 2048) -> Frame:
        """Begin a session."""
        self.send(BEGIN, None, UInt32(0), UInt32(window), UInt32(2048), channel=channel)
        begun = self.expect(BEGIN)
        self.first_transfer = begun.fields[1]
        return begun

    def send(self, code: int, *fields: Any, channel: int = 0, kind: int = 0, payload: bytes = b"") -> None:
        """Send a performative."""
        frame = raw_frame(encode(described(code, *fields)) + payload, channel, kind)
        if self._held is None:
            self.socket.sendall(frame)
        else:
            self._held += frame

    @contextlib.contextmanager
    def in_one_write(self) -> Iterator[None]:
        """Send the performatives of the `with` block together, at its end."""
        self._held = bytearray()
        yield
        held, self._held = self._held, None
        self.socket.sendall(held)

    def read(self, size: int) -> bytes:
        """Return exactly this many bytes. Raises EOFError if the broker closes the connection."""
        return read_exactly(self.socket, size)

    def receive(self) -> Frame:
        """Return the next frame that is not empty."""
        while True:
            size, words, _, channel = struct.unpack(">IBBH", self.read(8))
            body = self.read(size - 8)[words * 4 - 8 :]
            if body:
                value, end = decode(body)
                frame = Frame(channel, int(value.descriptor), value.value, body[end:])
                self._count_from_zero(frame)
                return frame

    def _count_from_zero(self, frame: Frame) -> None:
        fields = frame.fields
        if frame.code == ATTACH and fields[2] is SENDER:
            self.first_count = fields[9]
            fields[9] = UInt32(0)
        elif frame.code == FLOW and fields[2] is not None:
            fields[2] = UInt32((fields[2] - self.first_transfer) % (1 << 32))
            if frame.field(5) is not None and frame.field(4) in self.receiving:
                fields[5] = UInt32((fields[5] - self.first_count) % (1 << 32))

    def expect(self, code: int) -> Frame:
        """Return the next frame, which must be of this kind. Skips flow frames that report whether a link is active."""
        got = self.receive()
        while got.code == FLOW and got.field(10):
            got = self.receive()
        assert got.code == code, f"expected {code:#x}, got {got.code:#x} {got.fields}"
        return got

    def closed(self) -> bool:
        """Return True if the broker closes the socket without sending anything else."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def attach(
        self,
        role: bool,
        address: Any,
        *,
        handle: int = 0,
        name: str | None = None,
        mode: UInt8 | None = None,
        source: tuple[Any, ...] = (),
        target: tuple[Any, ...] = (),
        rest: tuple[Any, ...] = (),
    ) -> None:
        """Send an attach frame.

        Args:
            source, target: the fields after the address.
            rest: the fields after initial-delivery-count.
        """
        (self.receiving.add if role is RECEIVER else self.receiving.discard)(handle)
        ours = described(SOURCE, address if role is RECEIVER else None, *source)
        theirs = described(TARGET, address if role is SENDER else None, *target)
        count = UInt32(0) if role is SENDER else None
        fields = (name or f"link-{handle}", UInt32(handle), role, mode, None, ours, theirs, None, None, count, *rest)
        self.send(ATTACH, *fields)

    def attach_sender(self, address: str | None, **given: Any) -> Frame:
        """Attach a link to publish on; return the flow frame with the first credit."""
        self.attach(SENDER, address, **given)
        self.expect(ATTACH)
        return self.expect(FLOW)

    def attach_receiver(self, address: str, credit: int = 100, **given: Any) -> Frame:
        """Attach a link to receive on, and give credit; return the broker's attach frame."""
        self.attach(RECEIVER, address, **given)
        answer = self.expect(ATTACH)
        if credit:
            self.flow(given.get("handle", 0), credit)
        return answer

    def flow(
        self,
        handle: int | None = None,
        credit: int | None = None,
        *,
        count: int = 0,
        drain: bool | None = None,
        echo: bool | None = None,
        seen: int = 0,
        window: int = 2048,
        sent: int = 0,
    ) -> None:
        """Send a flow frame."""
        count, seen = (count + self.first_count) % (1 << 32), (seen + self.first_transfer) % (1 << 32)
        link = () if handle is None else (UInt32(handle), UInt32(count), UInt32(credit or 0), None, drain, echo)
        self.send(FLOW, UInt32(seen), UInt32(window), UInt32(sent), UInt32(2048), *link)

    def publish(
        self, number: int, payload: bytes | None = None, *, handle: int = 0, settled: bool = False, more: bool = False
    ) -> None:
        """Send a transfer; `number` is its delivery id and tag."""
        fields = (UInt32(handle), UInt32(number), struct.pack(">I", number), UInt32(0), settled, more)
        self.send(TRANSFER, *fields, payload=message() if payload is None else payload)

    def published(self, number: int, payload: bytes | None = None, *, handle: int = 0) -> Described:
        """Publish a message, and return its outcome."""
        self.publish(number, payload, handle=handle)
        outcome = self.expect(DISPOSITION)
        assert (outcome.field(0), outcome.field(1), outcome.field(3)) == (RECEIVER, number, True)
        state: Described = outcome.field(4)
        return state

    def settle(
        self,
        first: int,
        state: Described | None,
        last: int | None = None,
        *,
        settled: bool = True,
        role: bool = RECEIVER,
    ) -> None:
        """Send a disposition for deliveries."""
        until = None if last is None else UInt32(last)
        self.send(DISPOSITION, role, UInt32(first), until, settled, state)

    def ended(self) -> tuple[str, str | None] | None:
        """Return the error of the end frame that must come next."""
        return self.expect(END).error

    def detached(self) -> tuple[str, str | None] | None:
        """Return the error of the detach frame that must come next."""
        return self.expect(DETACH).error
