"""An AMQP 0-9-1 client for tests that sends and reads single frames and bytes."""

import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.heartbeat import Heartbeat

CAPABILITIES = {"authentication_failure_close": True, "connection.blocked": True, "consumer_cancel_notify": True}


def read_exactly(connected: socket.socket, size: int) -> bytes:
    """Return exactly this many bytes. Raises EOFError if the broker closes the connection."""
    data = b""
    while len(data) < size:
        more = connected.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class RawClient:
    """A socket, and helpers to send valid or invalid AMQP on it.

    Args:
        url: the broker's address, the user and the virtual host.
        opened: go through the handshake, and open channel 1.
        connect: makes the connection; conversations in memory pass another one than that of `socket`.
    """

    def __init__(
        self,
        url: str,
        *,
        opened: bool = True,
        frame_max: int = 131_072,
        heartbeat: int = 0,
        connect: Callable[..., Any] = socket.create_connection,
    ) -> None:
        parts = urlsplit(url)
        self.socket = connect((str(parts.hostname), parts.port or 5672), timeout=60)
        # Without this, a small frame that follows another one waits 40 ms for TCP's acknowledgement.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.login = f"\0{parts.username}\0{parts.password}"
        self.vhost = unquote(parts.path[1:])
        if opened:
            self.shake_hands(frame_max, heartbeat)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def shake_hands(self, frame_max: int = 131_072, heartbeat: int = 0) -> None:
        """Go through the handshake as a well-behaved client does."""
        self.socket.sendall(b"AMQP\x00\x00\x09\x01")
        self.expect(commands.Connection.Start)
        properties = {"capabilities": CAPABILITIES}
        self.send(commands.Connection.StartOk(mechanism="PLAIN", response=self.login, client_properties=properties), 0)
        self.expect(commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(2047, frame_max, heartbeat), 0)
        self.send(commands.Connection.Open(virtual_host=self.vhost), 0)
        self.expect(commands.Connection.OpenOk)
        self.send(commands.Channel.Open())
        self.expect(commands.Channel.OpenOk)

    def send(self, method: Frame, channel: int = 1) -> None:
        """Send a method."""
        self.socket.sendall(frame.marshal(method, channel))

    def read(self, size: int) -> bytes:
        """Return exactly this many bytes. Raises EOFError if the broker closes the connection."""
        return read_exactly(self.socket, size)

    def receive(self) -> Any:
        """Return the next frame, decoded."""
        head = self.read(7)
        return frame.unmarshal(head + self.read(struct.unpack(">I", head[3:])[0] + 1))[2]

    def expect(self, kind: type) -> Any:
        """Return the next frame that is not a heartbeat. It must be of this kind."""
        while isinstance(got := self.receive(), Heartbeat):
            pass
        assert isinstance(got, kind), f"expected {kind}, got {got}"
        return got

    def closed_with(self) -> str:
        """Return the code and the text of the connection.close that must come next, and reply to it."""
        close = self.expect(commands.Connection.Close)
        self.send(commands.Connection.CloseOk(), 0)
        return f"{close.reply_code} {close.reply_text}"


def raw_frame(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    """Encode a frame with any content."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])
