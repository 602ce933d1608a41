"""Everything that uses rstream's internals: a stream connection that reads large blocks, and reports when it is lost.

rstream reads 256 bytes at a time and decodes field by field. It ignores write errors, lets requests wait for ten
seconds on a lost connection, and only logs missing heartbeats. So mqtool itself reads, decodes and encodes frames
with messages, and uses rstream for all others. rstream itself is not modified.

StreamClient uses four attributes of rstream's Client that are not public, and overrides one such method. They are
looked up before the first connection; if one is missing, an error names the versions that mqtool works with.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from rstream import schema

from mqtool.amqp.address import connection_name
from mqtool.errors import MqtoolError

#: The versions of rstream that mqtool works with, as in pyproject.toml.
VERSIONS = ">=1.1,<2"


def unsuitable(what: str) -> MqtoolError:
    """Return the error for a version of rstream that lacks something that mqtool needs."""
    return MqtoolError(
        f"the installed version of rstream cannot be used: it has no {what}",
        f"install one that mqtool works with: pip install 'rstream{VERSIONS}'",
    )


try:
    from rstream.client import Client
    from rstream.encoding import decode_frame, encode_frame
except ImportError as error:
    raise unsuitable(f"{error.name}") from error

#: Keys of the frames that the broker sends without a request.
CONFIRM, ERROR, DELIVER, METADATA_UPDATE, CONSUMER_UPDATE = 3, 4, 8, 16, 26
_UNASKED = frozenset((CONFIRM, ERROR, DELIVER, METADATA_UPDATE, CONSUMER_UPDATE))
_PARTITIONS, _ANSWER_TO_PARTITIONS = b"\x00\x19", b"\x80\x19"
#: The maximum size of a frame, in bytes. A larger size means that the server speaks another protocol.
_LONGEST = 1 << 28
_BUFFER = 1 << 20
#: Seconds to wait for the response to Close, and the number of that request; rstream counts its own from 1.
_GOODBYE, _LAST_REQUEST = 1.0, 0


class NotStreams(Exception):
    """The server speaks a different protocol."""


class ClosedByBroker(Exception):
    """The broker closed the connection, with a reason."""


#: The attributes of rstream's Client that StreamClient uses, and the methods, with their arguments after `self`.
_ATTRIBUTES = ("_conn", "_heartbeat", "_is_not_closed", "_waiters")
_METHODS = {
    "_heartbeat_sender": (),
    "start_task": ("name", "coro"),
    "stop_task": ("name",),
    "sync_request": ("frame", "resp_schema", "raise_exception"),
}


@cache
def check_rstream() -> None:
    """Check that rstream's Client has what StreamClient needs.

    Raises:
        MqtoolError: something is missing, or takes other arguments.
    """
    client = Client("", 0, frame_max=0, heartbeat=0)  # does not connect
    for name in _ATTRIBUTES:
        if not hasattr(client, name):
            raise unsuitable(f"Client.{name}")
    for name, arguments in _METHODS.items():
        code = getattr(getattr(Client, name, None), "__code__", None)
        if code is None or code.co_varnames[1 : code.co_argcount] != arguments:
            raise unsuitable(f"Client.{name}({', '.join(arguments)})")


class _Wire:
    """A connection that decodes responses, and passes all other frames to `take`. Used in place of rstream's."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, take: Callable[[bytes], None]) -> None:
        self._place = (host, port)
        self._context = context
        self._take = take
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._place, ssl=self._context, limit=_BUFFER)

    async def read_frame(self) -> schema.Frame:
        assert self._reader is not None
        while True:
            size = int.from_bytes(await self._reader.readexactly(4))
            if not 4 <= size < _LONGEST:
                raise NotStreams
            data = await self._reader.readexactly(size)
            if data[:2] == _PARTITIONS:  # RabbitMQ 3.10 omits the bit that marks a response
                data = _ANSWER_TO_PARTITIONS + data[2:]
            if int.from_bytes(data[:2]) not in _UNASKED:
                return decode_frame(data)
            self._take(data)

    async def write_frame(self, frame: schema.Frame, version: int = 1) -> None:
        """Send a frame. rstream's Client calls this."""
        self.write(encode_frame(frame, version))
        assert self._writer is not None
        await self._writer.drain()

    def write(self, data: bytes) -> None:
        """Send bytes. Call it on the event loop's thread."""
        assert self._writer is not None
        self._writer.write(data)

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""
        return self._writer.transport.get_write_buffer_size() if self._writer else 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class StreamClient(Client):
    """A stream protocol connection to one node.

    Args:
        take: called on the event loop's thread with each frame that is not a response.
        lost: called once with the error, when the connection is lost.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        heartbeat: int,
        take: Callable[[bytes], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        check_rstream()
        super().__init__(host, port, frame_max=_BUFFER, heartbeat=heartbeat, connection_name=connection_name())
        self._wire = _Wire(host, port, context, self._taken)
        self._take = take
        self._lost = lost
        self._heard_at = time.monotonic()

    def _taken(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        self._take(data)

    async def start(self) -> None:
        """Connect. authenticate() logs in."""
        wire: Any = self._wire  # has the methods of rstream's Connection that Client calls
        self._conn = wire
        await self._wire.open()
        self.start_task("listener", self._listen())

    @property
    def node(self) -> tuple[str | None, str | None]:
        """The host and port that the node advertises."""
        properties = self.server_properties or {}
        return properties.get("advertised_host"), properties.get("advertised_port")

    def publish_by_hand(self, data: bytes) -> None:
        """Send an encoded frame. Call it on the event loop's thread."""
        if self.is_connection_alive():
            self._wire.write(data)

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""
        return self._wire.unsent

    async def _listen(self) -> None:
        try:
            while True:
                frame = await self._wire.read_frame()
                self._heard_at = time.monotonic()
                if isinstance(frame, schema.Close):
                    raise ClosedByBroker(frame.reason)
                waiter = self._waiters.get((frame.key, frame.corr_id))
                if waiter is not None and not waiter.done():
                    waiter.set_result(frame)
        except (OSError, EOFError, ValueError, KeyError, NotStreams, ClosedByBroker) as error:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if not self._is_not_closed:
            return
        self._is_not_closed = False
        for waiter in list(self._waiters.values()):
            if not waiter.done():
                waiter.set_exception(error)
        self._lost(error)

    async def _heartbeat_sender(self) -> None:
        while self._heartbeat and self.is_connection_alive():
            await self.send_frame(schema.Heartbeat())
            await asyncio.sleep(self._heartbeat)
            if time.monotonic() - self._heard_at > 2 * self._heartbeat:
                self._end(TimeoutError("no heartbeat"))

    async def close(self) -> None:
        """Close the connection. When this returns, the broker has handled everything that was sent."""
        if self.is_connection_alive() and self.is_started:
            goodbye: Any = schema.Close(_LAST_REQUEST, code=1, reason="OK")
            with contextlib.suppress(Exception):  # it is closed anyway
                await asyncio.wait_for(self.sync_request(goodbye, resp_schema=schema.CloseResponse), _GOODBYE)
        self._is_not_closed = False
        for name in ("heartbeat_sender", "listener"):
            with contextlib.suppress(Exception):  # the one that ended the task
                await self.stop_task(name)
        self._wire.close()
