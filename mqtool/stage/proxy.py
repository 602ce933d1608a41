"""A TCP proxy in front of a broker, to cut its connections."""

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Forwards connections from its own port to another port of this machine, within its block.

    Attributes:
        accepted: connections forwarded so far.
        break_early: how many of the next connections break after the broker's first frame.
        bytes_forwarded: in both directions.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.accepted = 0
        self.break_early = 0
        self.bytes_forwarded = 0
        self._goes_on = threading.Event()
        self._goes_on.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections, and accept no new ones."""
        with contextlib.suppress(OSError):  # already closed
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def hold(self, frame: bytes) -> None:
        """Send a frame to each client whose broker is silent now, and forward nothing more that a client sends."""
        self._goes_on.clear()
        for client in self._open[::2]:
            client.sendall(frame)

    def cut(self) -> int:
        """Cut all connections without closing them properly; return how many."""
        ends, self._open = self._open, []
        for end in ends:
            with contextlib.suppress(OSError):  # already closed
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return len(ends) // 2

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:  # the broker is down
                    client.close()
                    continue
                if self.break_early:
                    self.break_early -= 1
                    server.sendall(client.recv(8))
                    client.sendall(server.recv(65536))
                    client.close()
                    server.close()
                    continue
                self._open += [client, server]
                self.accepted += 1
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while data := source.recv(65536):
                if source in self._open[::2]:
                    self._goes_on.wait()
                target.sendall(data)
                self.bytes_forwarded += len(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
