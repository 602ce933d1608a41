"""Where clients connect: the listening sockets, which can be shut for a while without losing their port."""

import asyncio
import socket
from collections.abc import Callable, Sequence

_BACKLOG = 1024


class Door:
    """Listens for clients.

    Args:
        new_connection: makes the protocol of a client.
    """

    def __init__(self, new_connection: Callable[[], asyncio.Protocol]) -> None:
        self._new_connection = new_connection
        self._server: asyncio.Server | None = None
        self._places: list[socket.socket] = []
        self._opening: set[asyncio.Task[asyncio.Server]] = set()
        self._reopened: list[asyncio.Server] = []
        self._shut = 0

    async def listen(self, hosts: str | Sequence[str], port: int) -> int:
        """Listen, and return the port.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._new_connection, hosts, port, backlog=_BACKLOG)
        return int(self._server.sockets[0].getsockname()[1])

    def shut(self) -> None:
        """Refuse connections, and keep the port."""
        self._shut += 1
        if self._shut > 1:
            return
        servers = [self._server, *self._reopened] if self._server is not None else self._reopened
        addresses = [(each.family, each.getsockname()) for server in servers for each in server.sockets]
        self._close_servers()
        for family, address in addresses:
            # A socket that is bound and does not listen: nobody else gets the port, and who connects is refused.
            place = socket.socket(family, socket.SOCK_STREAM)
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            place.setblocking(False)
            place.bind(address)
            self._places.append(place)

    def open(self) -> None:
        """Accept connections again, if it was shut as often as it is opened."""
        self._shut -= 1
        if self._shut:
            return
        loop = asyncio.get_running_loop()
        for place in self._places:
            place.listen(_BACKLOG)  # from here on clients connect; they are served a moment later
            task = loop.create_task(loop.create_server(self._new_connection, sock=place, backlog=_BACKLOG))
            self._opening.add(task)
            task.add_done_callback(self._opened)
        self._places = []

    def _opened(self, task: "asyncio.Task[asyncio.Server]") -> None:
        self._opening.discard(task)
        self._reopened.append(task.result())

    def _close_servers(self) -> None:
        for server in [self._server, *self._reopened]:
            if server is not None:
                server.close()
        self._server, self._reopened = None, []

    def close(self) -> None:
        """Listen no more."""
        for task in self._opening:
            task.remove_done_callback(self._opened)
            task.add_done_callback(lambda done: done.result().close())
        self._close_servers()
        for place in self._places:
            place.close()
        self._places = []
