"""A proxy in front of a broker. It can break connections in more ways than the proxy of the drills."""

import contextlib
import socket
from collections.abc import Callable

from mqtool.drills import scene

Change = Callable[[bytes], bytes]


class Proxy(scene.Proxy):
    """A proxy that counts connections and can break them early.

    Attributes:
        accepted: the number of connections forwarded so far.
        break_early: how many of the next connections to close after the broker's first frame.
        is_silent: True to forward nothing more, as if the network had failed, without closing connections.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.accepted = 0
        self.break_early = 0
        self.is_silent = False

    def join(self, client: socket.socket, server: socket.socket) -> None:
        if self.break_early:
            self.break_early -= 1
            with client, server, contextlib.suppress(OSError):  # one side has already closed it
                server.sendall(client.recv(8))
                client.sendall(server.recv(65536))
            return
        self.accepted += 1
        super().join(client, server)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while data := source.recv(65536):
                if not self.is_silent:
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Tampering(Proxy):
    """Changes the frames that a broker sends.

    Args:
        change: called with each frame; returns what to send instead.
        uncounted: how many bytes at the start of a frame its size field does not count; None for AMQP 0-9-1.
    """

    def __init__(self, target_port: int, change: Change, uncounted: int | None) -> None:
        super().__init__(target_port)
        self._change = change
        self._uncounted = uncounted

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        if source.getpeername() != self.target:
            super()._forward(source, target)
            return
        data = b""
        with contextlib.suppress(OSError):  # the connection was cut
            while piece := source.recv(65536):
                data += piece
                while len(data) >= 8 and len(data) >= (size := self._size(data)):
                    target.sendall(self._change(data[:size]))
                    data = data[size:]
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _size(self, data: bytes) -> int:
        if self._uncounted is None:
            return 8 + int.from_bytes(data[3:7])
        return 8 if data.startswith(b"AMQP") else self._uncounted + int.from_bytes(data[:4])
