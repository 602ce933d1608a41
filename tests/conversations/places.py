"""Where conversations are held: an embedded broker in memory, on a virtual clock; or a live RabbitMQ."""

import asyncio
import select
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any
from urllib.parse import urlsplit

from mqtool.broker.embedded.model.clock import LoopClock
from mqtool.broker.embedded.server import Server
from mqtool.broker.embedded.settings import Settings
from tests.brokers import TestBroker
from tests.conversations.conversation import Conversation, Heard, conversations, held
from tests.conversations.peers import Peer, StreamPeer
from tests.simulation.network import Network, Side
from tests.simulation.virtual_loop import EPOCH, VirtualLoop

#: If nothing arrives for this many seconds, the next step is said.
QUIET_SECONDS = 0.5
#: But a RabbitMQ that is busy may take this long for an answer that must come.
_ANSWER_SECONDS = 10.0


class _Clock(LoopClock):
    """The virtual loop's time. No work takes any."""

    def now(self) -> int:
        return EPOCH + int(self._loop.time() * 1000)

    wall = now

    elapsed = staticmethod(lambda: 0.0)


class _Network(Network):
    """A network without delays, in which writes arrive whole."""

    def latency(self) -> float:
        return 0.0001

    def split(self, data: bytes) -> list[bytes]:
        return [data]


class _Socket(asyncio.Protocol):
    """A client's end of a connection in memory, used like a socket. Reading lets the virtual time pass."""

    side: Side

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._data = b""
        self._is_lost = False
        self._more = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._is_lost = True
        self._more.set()

    def is_readable(self) -> bool:
        return bool(self._data) or self._is_lost

    def recv(self, size: int) -> bytes:
        if not self.is_readable():
            self._more.clear()
            self._loop.run_until_complete(asyncio.wait_for(self._more.wait(), 60))
        data, self._data = self._data[:size], self._data[size:]
        return data

    def sendall(self, data: bytes) -> None:
        self.side.write(data)

    def setsockopt(self, *_: int) -> None:
        pass

    def close(self) -> None:
        self.side.close()


class Memory:
    """A new embedded broker that behaves like a version of RabbitMQ."""

    vhost = "/"

    def __init__(self, version: str) -> None:
        self._loop = VirtualLoop()
        self._network = _Network(self._loop, Random(0))
        settings = Settings(stream_port=5552, like=version, memory_limit=1 << 40)
        self._server = Server(settings, new_clock=_Clock, new_listener=self._network.listener)
        self._loop.run_until_complete(self._server.start())

    def connect(self, _name: str, protocol: type[Peer]) -> Peer:
        if protocol is StreamPeer:
            return StreamPeer("127.0.0.1", 5552, "/", self._connected)
        return protocol("amqp://guest:guest@127.0.0.1:5672/%2F", self._connected)  # type: ignore[call-arg]

    def _connected(self, address: tuple[str, int], **_: Any) -> _Socket:
        made = _Socket(self._loop)
        made.side = self._loop.run_until_complete(self._network.connect(address[1], made))
        return made

    def readable(self, peers: list[Peer]) -> list[Peer]:
        self.wait(QUIET_SECONDS)
        return [peer for peer in peers if peer.socket.is_readable()]

    def wait(self, seconds: float) -> None:
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def close(self) -> None:
        self._loop.run_until_complete(self._server.stop())
        self._loop.close()


class Live:
    """A virtual host of a running RabbitMQ."""

    def __init__(self, broker: TestBroker) -> None:
        self._broker = broker
        self.vhost = broker.vhost

    def connect(self, _name: str, protocol: type[Peer]) -> Peer:
        if protocol is StreamPeer:
            streams = urlsplit(self._broker.streams)
            return StreamPeer(str(streams.hostname), streams.port or 5552, self.vhost, socket.create_connection)
        return protocol(self._broker.url, socket.create_connection)  # type: ignore[call-arg]

    def readable(self, peers: list[Peer]) -> list[Peer]:
        sockets = {peer.socket: peer for peer in peers}
        seconds = _ANSWER_SECONDS if any(peer.is_owed for peer in peers) else QUIET_SECONDS
        return [sockets[each] for each in select.select(list(sockets), [], [], seconds)[0]]

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


@contextmanager
def memory(version: str) -> Iterator[Memory]:
    place = Memory(version)
    try:
        yield place
    finally:
        place.close()


def heard_live(broker: TestBroker, subject: str, version: str) -> list[Heard]:
    """Hold the conversations about a subject with RabbitMQ, several at once, each in its own virtual host."""

    def one(conversation: Conversation) -> list[Heard]:
        own = broker.with_fresh_vhost(f"record-{uuid.uuid4().hex[:8]}")
        try:
            return list(held(conversation, Live(own)))
        finally:
            own.drop_vhost()

    with ThreadPoolExecutor(12) as pool:
        return [heard for each in pool.map(one, conversations(subject, version)) for heard in each]
