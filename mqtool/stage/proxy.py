"""A TCP proxy in front of a broker; it can cut the connections that it forwards."""

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Context manager that forwards connections from its own port to another port on this machine."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # already closed
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """Cut all connections without closing them properly; return the number of connections cut."""
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
                self.join(client, server)

    def join(self, client: socket.socket, server: socket.socket) -> None:
        """Forward data between two connections from now on."""
        self._open += [client, server]
        for ends in ((client, server), (server, client)):
            threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
