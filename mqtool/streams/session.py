"""One connection to the node that has a stream: an I/O thread, an inbox for its frames, and errors in plain words."""

import asyncio
import contextlib
import queue as queues
import re
import ssl
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

from rstream import exceptions
from rstream.constants import OffsetType
from rstream.schema import Broker, OffsetSpec

from mqtool.amqp import Address
from mqtool.amqp import pika_errors as of_amqp
from mqtool.errors import AccessRefused, MqtoolError, NotConfirmed, NotFound, Unavailable, UsageError
from mqtool.streams.entries import Chunk, parse_chunk
from mqtool.streams.wire import DELIVER, ClosedByBroker, NotStreams, StreamClient

_ENABLE = (
    "on the broker, 'rabbitmq-plugins enable rabbitmq_stream', or start one: 'mqtool broker up --stream-port 5552'; "
    "--stream-port names another port"
)
#: What a connection may die of.
LOST = (OSError, EOFError, ValueError, NotStreams, ClosedByBroker, asyncio.TimeoutError)
#: Why the broker refuses a message, by its code.
_REFUSALS = {
    2: "the stream does not exist",
    6: "the stream is not available",
    14: "frame too large",
    16: "access refused",
}


def connecting(error: BaseException, address: Address) -> MqtoolError:
    """Translate a failed attempt to open a connection; the port of the address is that of streams."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, MqtoolError):
        return error
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(f"nothing answers at {where}, the port for streams: connection refused", _ENABLE)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Unavailable(f"{where} does not answer as a broker for streams", _ENABLE)
    if isinstance(error, OSError | ssl.SSLError | UnicodeError):
        return of_amqp.connecting(error, address)
    if isinstance(error, EOFError | NotStreams | ValueError | KeyError):
        return Unavailable(f"what answers at {where} does not speak RabbitMQ's stream protocol", _ENABLE)
    if isinstance(error, exceptions.VirtualHostAccessFailure):
        return AccessRefused(f"{where} has no vhost {address.virtual_host!r} that user {address.user!r} may use")
    if isinstance(error, exceptions.AuthenticationFailure | exceptions.SASLAuthenticationFailureLoopback):
        return AccessRefused(f"{where} refused the login of user {address.user!r}", "check the user and the password")
    return answered(error, "connecting")


def unreachable(leader: str, address: Address, error: MqtoolError) -> MqtoolError:
    """The error if a stream is on a node that cannot be reached by the name that the broker gives for it."""
    return Unavailable(
        f"the stream is on {leader}, as {address.host}:{address.port} says, which cannot be reached from here: {error}",
        "on the broker, set stream.advertised_host and stream.advertised_port to what works from here "
        "(in Docker, usually localhost)",
    )


def answered(error: BaseException, stream: str) -> MqtoolError:
    """Translate a refusal of the broker."""
    if isinstance(error, MqtoolError):
        return error
    if isinstance(error, exceptions.StreamDoesNotExist):
        return NotFound(f"there is no stream {stream!r}", "'mqtool list queues' lists what there is")
    if isinstance(error, exceptions.AccessRefused):
        return AccessRefused(f"the user may not use stream {stream!r}", "see 'mqtool list permissions'")
    if isinstance(error, exceptions.StreamNotAvailable | exceptions.LeaderNotAvailable):
        return Unavailable(f"stream {stream!r} has no leader right now")
    if isinstance(error, LOST):
        return Unavailable(f"the connection was lost: {in_words(error)}")
    name = type(error).__name__
    return MqtoolError(f"stream {stream!r}: the broker refused: {name}")


def in_words(error: BaseException) -> str:
    """What a connection died of."""
    if isinstance(error, ClosedByBroker):
        return f"closed by the broker: {error}"
    if isinstance(error, EOFError):
        return "closed by the other end"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def refusal(code: int) -> str:
    """Why the broker did not take a message."""
    return _REFUSALS.get(code, f"the broker refused it (code {code})")


def not_confirmed(count: int, seconds: float) -> NotConfirmed:
    """The error if confirms do not come."""
    return NotConfirmed(
        f"the broker did not confirm {count:,} message{'s' * (count != 1)} within {seconds:g} s",
        "they may or may not be in the stream; --confirm-timeout waits longer",
    )


_T = TypeVar("_T")
#: Frames that came unasked, as octets; None says to look whether a connection is lost, or that somebody asked to stop.
Inbox = queues.SimpleQueue[bytes | None]
#: The offset before the first, in 64 bits.
NOWHERE = (1 << 64) - 1
#: The subscription with which we look for the first chunk and the last.
_LOOK = 255
_DELIVER = DELIVER.to_bytes(2)
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

    Args:
        inbox: where frames go that come unasked; None there says to look at `lost`.

    Attributes:
        lost: what the connection died of.
    """

    def __init__(self, address: Address, context: ssl.SSLContext | None, inbox: Inbox) -> None:
        self._inbox = inbox
        self.lost: BaseException | None = None
        self.address = address
        heartbeat = _HEARTBEAT if address.heartbeat is None else address.heartbeat
        self.client = StreamClient(address.host, address.port, context, heartbeat, self._inbox.put, self._ended)

    def open(self) -> None:
        """Connect and log in.

        Raises:
            Unavailable, AccessRefused: that failed.
        """
        try:
            self._call(self._opened(), 3 * self.address.connection_timeout)
        except Exception as error:
            self.close()
            raise connecting(error, self.address) from error

    async def _opened(self) -> None:
        patience = self.address.connection_timeout
        await asyncio.wait_for(self.client.start(), patience)
        address = self.address
        await asyncio.wait_for(
            self.client.authenticate(address.virtual_host, address.user, address.password), 2 * patience
        )

    def ask(self, request: Coroutine[Any, Any, _T], stream: str) -> _T:
        """Make a request of the client about a stream, and wait for the answer.

        Raises:
            MqtoolError: the broker refuses it, or the connection is lost.
        """
        try:
            return self._call(request, _PATIENCE)
        except Exception as error:
            raise answered(error, stream) from error

    def create(self, stream: str, arguments: Mapping[str, Any]) -> bool:
        """Create a stream, unless there is one with these settings; False if there is something else of that name."""

        async def request() -> bool:
            try:
                await self.client.create_stream(stream, dict(arguments))
            except (exceptions.StreamAlreadyExists, exceptions.PreconditionFailed) as error:
                return isinstance(error, exceptions.StreamAlreadyExists)
            return True

        return self.ask(request(), stream)

    def exists(self, stream: str) -> bool:
        """Whether there is such a stream."""
        return self.ask(self.client.stream_exists(stream), stream)

    def stored_offset(self, stream: str, name: str) -> int | None:
        """The offset that the broker keeps under a name; None if there is none.

        Raises:
            NotFound: there is no such stream.
        """

        async def request() -> int | None:
            try:
                offset = await self.client.query_offset(stream, name)
            except exceptions.OffsetNotFound:
                return None
            return None if offset == NOWHERE else offset

        return self.ask(request(), stream)

    def store_offset(self, stream: str, name: str, offset: int) -> None:
        """Have the broker keep an offset under a name, without waiting until it has. Raises as stored_offset() does."""
        self.ask(self.client.store_offset(stream, name, offset), stream)

    def partitions(self, super_stream: str) -> list[str]:
        """The streams that a super stream consists of; none if there is no such super stream."""
        return self.ask(self.client.partitions(super_stream), super_stream)

    def end_of(self, stream: str) -> int:
        """The offset that the next message will have. Before anything is subscribed to."""
        last = self._chunk_at(OffsetType.LAST, stream)
        return last.first_offset + last.records if last else 0

    def offsets_of(self, stream: str) -> range:
        """The offsets of its messages. Before anything is subscribed to."""
        first = self._chunk_at(OffsetType.FIRST, stream)
        return range(first.first_offset, self.end_of(stream)) if first else range(0)

    def _chunk_at(self, place: OffsetType, stream: str) -> Chunk | None:
        """The first chunk of a stream, or the last; None if it is empty."""

        self.ask(self.client.subscribe(stream, _LOOK, OffsetSpec.from_params(place, None), 1, {}), stream)
        self.ask(self.client.unsubscribe(_LOOK), stream)  # whose answer comes after the chunk, if there is one
        found: Chunk | None = None
        others = []
        with contextlib.suppress(queues.Empty):
            while True:
                frame = self._inbox.get_nowait()
                if frame is not None and frame[:2] == _DELIVER and frame[4] == _LOOK:
                    found = parse_chunk(frame)
                else:
                    others.append(frame)
        for frame in others:
            self._inbox.put(frame)
        return found

    def check_version(self, wanted: tuple[int, int], what: str) -> None:
        """See that the broker is new enough for something.

        Raises:
            UsageError: it is not.
        """
        version = (self.client.server_properties or {}).get("version", "")
        if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < wanted:
            raise UsageError(
                f"the broker (RabbitMQ {version}) has no {what}", "RabbitMQ {}.{} brings them".format(*wanted)
            )

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
        other = Session(self.address._replace(host=node.host, port=node.port), context, self._inbox)
        try:
            other.open()
        except MqtoolError as error:
            raise unreachable(f"{node.host}:{node.port}", self.address, error) from error
        return other

    def close(self) -> None:
        """Close it, once all that was sent is handled."""
        self._call(self.client.close(), _PATIENCE)

    def _ended(self, error: BaseException) -> None:
        self.lost = error
        self._inbox.put(None)

    @staticmethod
    def _call(request: Coroutine[Any, Any, _T], patience: float) -> _T:
        return asyncio.run_coroutine_threadsafe(request, _loop()).result(patience)


class Owner(Protocol):
    """A channel, as its publisher and its consumer see it."""

    inbox: Inbox
    stopping: bool
    notice: Callable[[str], None]

    @property
    def is_lost(self) -> bool: ...
    def sessions_for(self, streams: Sequence[str], *, to_publish: bool) -> list[Session]: ...
    def reopen(self, go_on: Callable[[], None]) -> bool: ...
