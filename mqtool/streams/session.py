"""Session: a connection to one node, on an I/O thread, with blocking requests and translated errors."""

import asyncio
import contextlib
import queue as queues
import re
import ssl
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from rstream import exceptions
from rstream.constants import OffsetType
from rstream.schema import Broker, OffsetSpec

from mqtool.amqp import Address
from mqtool.amqp import pika_errors as of_amqp
from mqtool.errors import AccessRefused, MqtoolError, NotConfirmed, NotFound, NothingAnswers, Unavailable, UsageError
from mqtool.streams.entries import Chunk, parse_chunk
from mqtool.streams.rstream_private import DELIVER, NotStreams, StreamClient, StreamClosedByBroker

_ENABLE = (
    "start a broker with 'mqtool broker up --stream-port 5552'; if yours is running, 'rabbitmq-plugins enable "
    "rabbitmq_stream' there; --stream-port names another port"
)
#: Errors of decoding what the broker has sent. rstream asserts that a response is about the stream in its request.
UNREADABLE = (ValueError, LookupError, AssertionError)
#: Errors that mean that the connection is lost.
LOST = (OSError, EOFError, NotStreams, StreamClosedByBroker, asyncio.TimeoutError, *UNREADABLE)
#: Reasons why the broker refuses a message, by their codes.
_REFUSALS = {
    2: "the stream does not exist",
    6: "the stream is not available",
    14: "frame too large",
    16: "access refused",
}


def connecting(error: BaseException, address: Address) -> MqtoolError:
    """Translate the error of a failed attempt to connect. The port in `address` is the stream port."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, MqtoolError):
        return error
    if isinstance(error, ConnectionRefusedError):
        return NothingAnswers(f"nothing answers at {where}, the port for streams: connection refused", _ENABLE)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Unavailable(f"{where} does not answer as a broker for streams", _ENABLE)
    if isinstance(error, OSError | ssl.SSLError | UnicodeError):
        return of_amqp.connecting(error, address)
    if isinstance(error, (EOFError, NotStreams, *UNREADABLE)):
        return Unavailable(f"what answers at {where} does not speak RabbitMQ's stream protocol", _ENABLE)
    if isinstance(error, exceptions.VirtualHostAccessFailure):
        return AccessRefused(f"{where} has no vhost {address.virtual_host!r} that user {address.user!r} may use")
    if isinstance(error, exceptions.AuthenticationFailure | exceptions.SASLAuthenticationFailureLoopback):
        return AccessRefused(f"{where} refused the login of user {address.user!r}", "check the user and the password")
    return answered(error, "connecting")


def unreachable(leader: str, address: Address, error: MqtoolError) -> MqtoolError:
    """Return the error for a stream whose leader's advertised address cannot be reached."""
    return Unavailable(
        f"the stream is on {leader}, as {address.host}:{address.port} says, which cannot be reached from here: {error}",
        "on the broker, set stream.advertised_host and stream.advertised_port to what works from here "
        "(in Docker, usually localhost)",
    )


def answered(error: BaseException, stream: str) -> MqtoolError:
    """Translate an error response of the broker."""
    if isinstance(error, MqtoolError):
        return error
    if isinstance(error, exceptions.StreamDoesNotExist):
        return NotFound(f"stream {stream!r} does not exist", "'mqtool list queues' shows what exists")
    if isinstance(error, exceptions.AccessRefused):
        return AccessRefused(f"the user may not use stream {stream!r}", of_amqp.LACKS_PERMISSION)
    if isinstance(error, exceptions.StreamNotAvailable | exceptions.LeaderNotAvailable):
        return Unavailable(f"stream {stream!r} has no leader right now")
    if isinstance(error, exceptions.PreconditionFailed):
        return Unavailable(
            f"stream {stream!r}: the broker refused; it may be low on memory or disk", "send again later"
        )
    if isinstance(error, LOST):
        return Unavailable(f"the connection was lost: {in_words(error)}")
    return MqtoolError(f"stream {stream!r}: the broker refused: {type(error).__name__}")


def in_words(error: BaseException) -> str:
    """Describe why a connection was lost."""
    if isinstance(error, StreamClosedByBroker):
        return f"closed by the broker: {error}"
    if isinstance(error, EOFError):
        return "closed by the other end"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, (NotStreams, *UNREADABLE)):
        return "the broker sent something unreadable"
    return str(error) or "the broker does not answer"


def refusal(code: int) -> str:
    return _REFUSALS.get(code, f"the broker refused it (code {code})")


def not_confirmed(count: int, seconds: float) -> NotConfirmed:
    return NotConfirmed(
        f"the broker did not confirm {count:,} message{'s' * (count != 1)} within {seconds:g} s",
        "they may or may not be in the stream; --confirm-timeout waits longer",
    )


_T = TypeVar("_T")
#: A queue of received frames that are not responses. None wakes up the reader after a connection was lost or stop()
#: was called.
Inbox = queues.SimpleQueue[bytes | None]
#: -1 in 64 bits, stored to reset an offset.
NOWHERE = (1 << 64) - 1
#: The id of the temporary subscription that looks up the first or last chunk.
_LOOK = 255
#: How often to look up a last chunk that the broker does not send yet, and the seconds in between.
_LOOKS, _LOOK_AGAIN = 20, 0.1
_DELIVER = DELIVER.to_bytes(2)
_HEARTBEAT = 60
#: Seconds to wait for a response.
_PATIENCE = 20.0


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all sessions, which runs on its own thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mqtool-streams", daemon=True).start()
    return loop


class StreamSession:
    """A connection to one node, until it is lost.

    Args:
        inbox: the queue for received frames that are not responses; gets None when the connection is lost.
        loop: an event loop that the caller runs, on its own thread; None for the one that runs on a thread of its own.

    Attributes:
        lost: the error that ended the connection; None while it is open.
    """

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        inbox: Inbox,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._inbox = inbox
        self._own_loop = loop
        self.lost: BaseException | None = None
        self.address = address
        heartbeat = _HEARTBEAT if address.heartbeat is None else address.heartbeat
        self.client = StreamClient(address.host, address.port, context, heartbeat, self._inbox.put, self.end)

    def open(self) -> None:
        """Connect and log in; raise Unavailable or AccessRefused if that fails."""
        try:
            self._call(self._opened(), 3 * self.address.connection_timeout)
        except Exception as error:
            self.close()
            raise connecting(error, self.address) from error

    async def _opened(self) -> None:
        address, patience = self.address, self.address.connection_timeout
        await asyncio.wait_for(self.client.start(), patience)
        login = self.client.authenticate(address.virtual_host, address.user, address.password)
        await asyncio.wait_for(login, 2 * patience)

    def ask(self, request: Coroutine[Any, Any, _T], stream: str) -> _T:
        """Send a request about a stream; return the response. Raises MqtoolError on an error or a timeout."""
        try:
            return self._call(request, _PATIENCE)
        except Exception as error:
            raise answered(error, stream) from error

    def create(self, stream: str, arguments: Mapping[str, Any]) -> bool:
        """Create a stream; return False if its name belongs to a different stream or queue."""

        async def request() -> bool:
            try:
                await self.client.create_stream(stream, dict(arguments))
            except (exceptions.StreamAlreadyExists, exceptions.PreconditionFailed) as error:
                return isinstance(error, exceptions.StreamAlreadyExists)
            return True

        return self.ask(request(), stream)

    def exists(self, stream: str) -> bool:
        return self.ask(self.client.stream_exists(stream), stream)

    def stored_offset(self, stream: str, name: str) -> int | None:
        """The offset stored under a reader's name; None if there is none."""

        async def request() -> int | None:
            try:
                offset = await self.client.query_offset(stream, name)
            except exceptions.OffsetNotFound:
                return None
            return None if offset == NOWHERE else offset

        return self.ask(request(), stream)

    def store_offset(self, stream: str, name: str, offset: int) -> None:
        """Store an offset under a reader's name, without waiting for the broker."""
        self.ask(self.client.store_offset(stream, name, offset), stream)

    def partitions(self, super_stream: str) -> list[str]:
        """Return the partitions of a super stream; an empty list if it does not exist."""
        return self.ask(self.client.partitions(super_stream), super_stream)

    def end_of(self, stream: str) -> int:
        """Return the offset that the next message will get. Call this before any subscription.

        Raises:
            Unavailable: see last_chunk().
        """
        return self.last_chunk(stream).stop

    def last_chunk(self, stream: str) -> range:
        """Return the offsets of the last chunk; range(0) if there is none. Call this before any subscription.

        Raises:
            Unavailable: the broker does not send it, because it is not on a majority of the stream's nodes.
        """
        for _ in range(_LOOKS):
            if (last := self._chunk_at(OffsetType.LAST, stream)) is not None:
                return range(last.first_offset, last.first_offset + last.records)
            if self._chunk_at(OffsetType.FIRST, stream) is None:
                return range(0)
            time.sleep(_LOOK_AGAIN)  # the last chunk is sent once it is on a majority of the stream's nodes
        raise Unavailable(f"stream {stream!r} has messages that are not on a majority of its nodes yet")

    def offsets_of(self, stream: str) -> range:
        """Return the offsets of a stream's messages. Call this before any subscription."""
        first = self._chunk_at(OffsetType.FIRST, stream)
        return range(first.first_offset, self.end_of(stream)) if first else range(0)

    def _chunk_at(self, place: OffsetType, stream: str) -> Chunk | None:
        """Fetch the first or last chunk of a stream; return None if the stream is empty."""
        self.ask(self.client.subscribe(stream, _LOOK, OffsetSpec.from_params(place, None), 1, {}), stream)
        self.ask(self.client.unsubscribe(_LOOK), stream)  # its response arrives after the chunk, if any
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

    def is_before(self, version: tuple[int, int]) -> bool:
        """True if the broker's version of RabbitMQ is older."""
        return tuple(int(number) for number in re.findall(r"\d+", self._version)[:2]) < version

    @property
    def _version(self) -> str:
        return str((self.client.server_properties or {}).get("version", ""))

    def check_version(self, wanted: tuple[int, int], what: str) -> None:
        """Raise UsageError if the broker is too old for a feature. `what` names the feature in the plural."""
        version = self._version
        if self.is_before(wanted):
            raise UsageError(
                f"the broker (RabbitMQ {version}) has no {what}", "they need RabbitMQ {}.{}".format(*wanted)
            )

    def send(self, data: bytes) -> None:
        """Send an encoded frame, without waiting."""
        if self._own_loop is None:
            _loop().call_soon_threadsafe(self.client.publish_by_hand, data)
        else:
            self.client.publish_by_hand(data)

    def has(self, nodes: Sequence[Broker]) -> bool:
        """True if this session's node advertises the host and port of one of these nodes."""
        return self.client.node in [(node.host, str(node.port)) for node in nodes]

    def beside(self, node: Broker, context: ssl.SSLContext | None) -> "StreamSession":
        """Open a session with another node, at its advertised host and port."""
        other = StreamSession(self.address._replace(host=node.host, port=node.port), context, self._inbox)
        try:
            other.open()
        except MqtoolError as error:
            raise unreachable(f"{node.host}:{node.port}", self.address, error) from error
        return other

    def close(self) -> None:
        """Close the connection, once the broker has handled everything that was sent."""
        self._call(self.client.close(), _PATIENCE)

    def end(self, error: BaseException) -> None:
        """Treat the connection as lost because of an error."""
        self.lost = self.lost or error
        self._inbox.put(None)

    def _call(self, request: Coroutine[Any, Any, _T], patience: float) -> _T:
        if self._own_loop is not None:
            return self._own_loop.run_until_complete(asyncio.wait_for(request, patience))
        return asyncio.run_coroutine_threadsafe(request, _loop()).result(patience)
