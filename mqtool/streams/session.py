"""One connection to the node that has a stream, on an I/O thread, with an inbox for what comes."""

import asyncio
import queue as queues
import re
import ssl
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

from rstream import exceptions
from rstream.schema import Broker

from mqtool.amqp import Address
from mqtool.errors import MqtoolError, UsageError
from mqtool.streams import failures
from mqtool.streams.wire import StreamClient

_T = TypeVar("_T")
#: The offset before the first, in 64 bits.
NOWHERE = (1 << 64) - 1
_HEARTBEAT = 60
#: Seconds to wait for the answer to a request.
_PATIENCE = 20.0


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop of all sessions, on a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mqtool-streams", daemon=True).start()
    return loop


class Session:
    """A connection, until it is lost.

    Attributes:
        inbox: frames that came unasked, as octets; None says to look at `lost`, or that somebody asked to stop.
        lost: what the connection died of.
    """

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        self.inbox: queues.SimpleQueue[bytes | None] = queues.SimpleQueue()
        self.lost: BaseException | None = None
        self.address = address
        heartbeat = _HEARTBEAT if address.heartbeat is None else address.heartbeat
        self.client = StreamClient(address.host, address.port, context, heartbeat, self.inbox.put, self._ended)

    def open(self) -> None:
        """Connect and log in.

        Raises:
            Unavailable, AccessRefused: that failed.
        """
        try:
            self._call(self._opened(), 3 * self.address.connection_timeout)
        except Exception as error:
            self.close()
            raise failures.connecting(error, self.address) from error

    async def _opened(self) -> None:
        patience = self.address.connection_timeout
        await asyncio.wait_for(self.client.start(), patience)
        address = self.address
        await asyncio.wait_for(
            self.client.authenticate(address.virtual_host, address.user, address.password), 2 * patience
        )

    def ask(self, request: Callable[[StreamClient], Coroutine[Any, Any, _T]], stream: str) -> _T:
        """Make a request about a stream, and wait for the answer.

        Raises:
            MqtoolError: the broker refuses it, or the connection is lost.
        """
        try:
            return self._call(request(self.client), _PATIENCE)
        except Exception as error:
            raise failures.answered(error, stream) from error

    def create(self, stream: str, arguments: Mapping[str, Any]) -> bool:
        """Create a stream, unless there is one with these settings; False if there is something else of that name."""
        try:
            self._call(self.client.create_stream(stream, dict(arguments)), _PATIENCE)
        except exceptions.StreamAlreadyExists:
            return True
        except exceptions.PreconditionFailed:
            return False
        except Exception as error:
            raise failures.answered(error, stream) from error
        return True

    def exists(self, stream: str) -> bool:
        """Whether there is such a stream."""
        return self.ask(lambda client: client.stream_exists(stream), stream)

    def stored_offset(self, stream: str, name: str) -> int | None:
        """The offset that the broker keeps under a name; None if there is none.

        Raises:
            NotFound: there is no such stream.
        """

        async def request(client: StreamClient) -> int | None:
            try:
                offset = await client.query_offset(stream, name)
            except exceptions.OffsetNotFound:
                return None
            return None if offset == NOWHERE else offset

        return self.ask(request, stream)

    def store_offset(self, stream: str, name: str, offset: int) -> None:
        """Have the broker keep an offset under a name, without waiting until it has. Raises as stored_offset() does."""
        self.ask(lambda client: client.store_offset(stream, name, offset), stream)

    def check_filters(self) -> None:
        """See that the broker knows filters.

        Raises:
            UsageError: it does not.
        """
        version = (self.client.server_properties or {}).get("version", "")
        if [int(number) for number in re.findall(r"\d+", version)[:2]] < [3, 13]:
            raise UsageError(f"the broker (RabbitMQ {version}) has no filters for streams", "RabbitMQ 3.13 brings them")

    def send(self, data: bytes) -> None:
        """Send a frame, without waiting."""
        _loop().call_soon_threadsafe(self.client.publish_by_hand, data)

    def has(self, nodes: Sequence[Broker]) -> bool:
        """Whether it leads to one of the nodes: the one that it is connected to says by which name it goes."""
        return self.client.node in [(node.host, str(node.port)) for node in nodes]

    def beside(self, node: Broker, context: ssl.SSLContext | None) -> "Session":
        """A session with another node, by the name that the broker gives for it.

        Raises:
            Unavailable: the name leads nowhere from here.
        """
        other = Session(self.address._replace(host=node.host, port=node.port), context)
        try:
            other.open()
        except MqtoolError as error:
            raise failures.unreachable(f"{node.host}:{node.port}", self.address, error) from error
        return other

    def close(self) -> None:
        """Close it, once all that was sent is handled."""
        self._call(self.client.close(), _PATIENCE)

    def _ended(self, error: BaseException) -> None:
        self.lost = error
        self.inbox.put(None)

    @staticmethod
    def _call(request: Coroutine[Any, Any, _T], patience: float) -> _T:
        return asyncio.run_coroutine_threadsafe(request, _loop()).result(patience)


class Owner(Protocol):
    """A channel, as its publisher and its consumer see it."""

    session: Session
    stopping: bool
    before_acknowledging: Callable[[], None]

    def go_to(self, stream: str, *, to_publish: bool) -> None: ...
    def reopen(self, go_on: Callable[[], None]) -> bool: ...
