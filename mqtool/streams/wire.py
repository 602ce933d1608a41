"""A stream connection based on rstream's private classes. It reads large blocks, and reports when it is lost.

rstream reads 256 bytes at a time and decodes field by field. It ignores write errors, lets requests wait for ten
seconds on a lost connection, and only logs missing heartbeats. So mqtool itself reads, decodes and encodes frames
with messages, and uses rstream for all others.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from typing import Any

from rstream import schema
from rstream.client import Client
from rstream.connection import Connection
from rstream.encoding import decode_frame

from mqtool.amqp.address import connection_name

#: Keys of the frames that the broker sends without a request.
CONFIRM, ERROR, DELIVER, METADATA_UPDATE, CONSUMER_UPDATE = 3, 4, 8, 16, 26
_UNASKED = frozenset((CONFIRM, ERROR, DELIVER, METADATA_UPDATE, CONSUMER_UPDATE))
_PARTITIONS, _ANSWER_TO_PARTITIONS = b"\x00\x19", b"\x80\x19"
#: The maximum size of a frame, in bytes. A larger size means that the server speaks another protocol.
_LONGEST = 1 << 28
_BUFFER = 1 << 20
#: Seconds to wait for the response to Close.
_GOODBYE = 1.0


class NotStreams(Exception):
    """The server speaks a different protocol."""


class ClosedByBroker(Exception):
    """The broker closed the connection, with a reason."""


class _Wire(Connection):
    """A connection that decodes responses, and passes all other frames to `take`."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, take: Callable[[bytes], None]) -> None:
        super().__init__(host, port, context)
        self._take = take

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            self.host, self.port, ssl=self._ssl_context, limit=_BUFFER
        )

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

    def write(self, data: bytes) -> None:
        """Send bytes. Call it on the event loop's thread."""
        assert self._writer is not None
        self._writer.write(data)


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
        super().__init__(host, port, frame_max=_BUFFER, heartbeat=heartbeat, connection_name=connection_name())
        self._wire = _Wire(host, port, context, self._taken)
        self._take = take
        self._lost = lost

    def _taken(self, data: bytes) -> None:
        self._last_heartbeat = time.monotonic()
        self._take(data)

    async def start(self) -> None:
        self._conn = self._wire
        await self._wire.open()
        self.start_task("listener", self._listener())

    @property
    def node(self) -> tuple[str | None, str | None]:
        """The host and port that the node advertises."""
        properties = self.server_properties or {}
        return properties.get("advertised_host"), properties.get("advertised_port")

    def publish_by_hand(self, data: bytes) -> None:
        """Send an encoded frame. Call it on the event loop's thread."""
        if self.is_connection_alive():
            self._wire.write(data)

    async def _listener(self) -> None:
        try:
            while True:
                frame = await self._wire.read_frame()
                self._last_heartbeat = time.monotonic()
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
            if time.monotonic() - self._last_heartbeat > 2 * self._heartbeat:
                self._end(TimeoutError("no heartbeat"))

    async def close(self) -> None:
        """Close the connection. When this returns, the broker has handled everything that was sent."""
        if self.is_connection_alive() and self.is_started:
            goodbye: Any = schema.Close(self._corr_id_seq.next(), code=1, reason="OK")
            with contextlib.suppress(Exception):  # it is closed anyway
                await asyncio.wait_for(self.sync_request(goodbye, resp_schema=schema.CloseResponse), _GOODBYE)
        self._is_not_closed = False
        for task in self._tasks.values():
            task.cancel()
        if self._wire._writer is not None:
            self._wire._writer.close()
