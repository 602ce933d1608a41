"""Everything that uses rstream's internals: a stream connection that reads large blocks, and reports when it is lost.

rstream reads 256 bytes at a time and decodes field by field. It ignores write errors, lets requests wait for ten
seconds on a lost connection, and only logs missing heartbeats. So mqtool itself reads, decodes and encodes frames
with messages, and uses rstream for all others. rstream itself is not modified.

StreamClient uses four attributes of rstream's Client that are not public, and overrides one such method; responses are
decoded with one such function. They are looked up before the first connection; if one is missing, an error names the
versions that mqtool works with.
"""

import asyncio
import contextlib
import io
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

from rstream import schema

from mqtool.address import connection_name
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
    from rstream.constants import Key
    from rstream.encoding import _decode_struct, encode_frame
except ImportError as error:
    raise unsuitable(f"{error.name}") from error

#: Keys of the frames that the broker sends without a request.
CONFIRM, ERROR, DELIVER, METADATA_UPDATE, CONSUMER_UPDATE = 3, 4, 8, 16, 26
_UNASKED = frozenset((CONFIRM, ERROR, DELIVER, METADATA_UPDATE, CONSUMER_UPDATE))
_PARTITIONS, _ANSWER_TO_PARTITIONS = b"\x00\x19", b"\x80\x19"
#: The maximum size of a frame, in bytes. A larger size means that the server speaks another protocol.
_LONGEST = 1 << 28
_BUFFER = 1 << 20
#: Frames with publishing ids: the start, which ends with their count, and the bytes for each of them.
_IDS, _EACH = struct.Struct(">5xI"), {CONFIRM: 8, ERROR: 10}
#: The start of a chunk: the number of its messages, and the offset of the first one, which is less than 2^63.
_CHUNK = struct.Struct(">9xI16xQ16x")
#: The start of a metadata update, which ends with the size of the stream's name; a consumer update.
_METADATA, _CONSUMER_SIZE = struct.Struct(">6xH"), 10
#: Seconds to wait for the response to Close, and the number of that request; rstream counts its own from 1.
_GOODBYE, _LAST_REQUEST = 1.0, 0


class NotStreams(Exception):
    """The server speaks a different protocol, or has sent something that cannot be decoded."""


class StreamClosedByBroker(Exception):
    """The broker closed the connection, with a reason."""


#: The attributes of rstream's Client that StreamClient uses, and the methods, with their arguments after `self`.
_ATTRIBUTES = ("_conn", "_heartbeat", "_is_not_closed", "_waiters")
_METHODS = {
    "_heartbeat_sender": (),
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


class _Body(io.BytesIO):
    """The bytes of a response. Reading past the end is an error, so that a count in it is not trusted.

    But RabbitMQ leaves out the last field of some responses, for example if it refuses the request.
    """

    is_over = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size is not None and size > len(data):
            if data or self.is_over:
                raise ValueError("the frame is shorter than it says")
            self.is_over = True
        return data


def _decoded(frame: bytes) -> schema.Frame:
    """Decode a response. Raises ValueError if it is malformed."""
    key, version = struct.unpack_from(">HH", frame)
    if version != 1 or len(frame) > _BUFFER:
        raise ValueError("not a response")
    body = _Body(frame[4:])
    try:
        found = _decode_struct(body, schema.registry[bool(key >> 15), Key(key & 0x7FFF)])
    except Exception as error:  # rstream has no errors of its own for that
        raise ValueError("not a response") from error
    if body.read():
        raise ValueError("the frame is longer than it says")
    assert isinstance(found, schema.Frame)
    return found


def _check_unasked(frame: bytes) -> None:
    """Raise ValueError or struct.error if a frame that is not a response is malformed, apart from a chunk's data."""
    key, size = int.from_bytes(frame[:2]), len(frame)
    if key == DELIVER:
        records, first = _CHUNK.unpack_from(frame)
        is_right = first + records < 1 << 63
    elif key == METADATA_UPDATE:
        frame[_METADATA.size :].decode()
        is_right = size == _METADATA.size + _METADATA.unpack_from(frame)[0]
    elif key == CONSUMER_UPDATE:
        is_right = size == _CONSUMER_SIZE
    else:
        is_right = size == _IDS.size + _IDS.unpack_from(frame)[0] * _EACH[key]
    if not is_right:
        raise ValueError("the frame has the wrong size")


class _Text(str):
    """A string whose length is that of its bytes. rstream sends the length of a string, followed by its bytes."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.encode())


def _measured(value: Any) -> Any:
    """Return a frame, or a field of one, with each string that is not ASCII replaced by a _Text."""
    if isinstance(value, str) and not value.isascii():
        return _Text(value)
    if isinstance(value, list):
        return [_measured(each) for each in value]
    if isinstance(value, schema.Struct):
        return replace(value, **{each.name: _measured(getattr(value, each.name)) for each in fields(value)})
    return value


class _Wire(asyncio.Protocol):
    """A connection that calls a function with each frame that arrives. Used in place of rstream's.

    Args:
        take: called with the frames that are not responses, encoded.
        respond: called with the others, decoded.
        lost: called with the error when the connection is lost.
    """

    def __init__(
        self,
        take: Callable[[bytes], None],
        respond: Callable[[schema.Frame], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        self._take = take
        self._respond = respond
        self._lost = lost
        self._data = bytearray()  # received, but not handled yet
        self._transport: asyncio.Transport | None = None

    async def open(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, host, port, ssl=context)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc or EOFError())

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            self._take_frames()
        except (ValueError, struct.error, NotStreams, StreamClosedByBroker) as error:
            self._lost(error if isinstance(error, StreamClosedByBroker) else NotStreams())
            self.close()

    def _take_frames(self) -> None:
        data, at = self._data, 0
        while len(data) - at >= 4:
            end = at + 4 + int.from_bytes(data[at : at + 4])
            if not 4 <= end - at - 4 < _LONGEST:
                raise NotStreams
            if end > len(data):
                break
            frame, at = bytes(data[at + 4 : end]), end
            if frame[:2] == _PARTITIONS:  # RabbitMQ 3.10 omits the bit that marks a response
                frame = _ANSWER_TO_PARTITIONS + frame[2:]
            if int.from_bytes(frame[:2]) in _UNASKED:
                _check_unasked(frame)
                self._take(frame)
            else:
                self._respond(_decoded(frame))
        del data[:at]

    async def write_frame(self, frame: schema.Frame, version: int = 1) -> None:
        """Send a frame. rstream's Client calls this."""
        self.write(encode_frame(_measured(frame), version))

    def write(self, data: bytes) -> None:
        """Send bytes. Call it on the event loop's thread."""
        assert self._transport is not None
        self._transport.write(data)

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


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
        self._wire = _Wire(self._taken, self._responded, self._end)
        self._context = context
        self._take = take
        self._lost = lost
        self._heard_at = time.monotonic()

    def _taken(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        self._take(data)

    def _responded(self, frame: schema.Frame) -> None:
        self._heard_at = time.monotonic()
        if isinstance(frame, schema.Close):
            raise StreamClosedByBroker(frame.reason)
        waiter = self._waiters.get((frame.key, frame.corr_id))
        if waiter is not None and not waiter.done():
            waiter.set_result(frame)

    async def start(self) -> None:
        """Connect. authenticate() logs in."""
        wire: Any = self._wire  # has the methods of rstream's Connection that Client calls
        self._conn = wire
        await self._wire.open(self.host, self.port, self._context)

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

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1 if it is closed."""
        return self._wire.fileno()

    def _end(self, error: BaseException) -> None:
        if not self._is_not_closed:
            return
        self._is_not_closed = False
        for waiter in list(self._waiters.values()):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # for asyncio, it counts as retrieved: during the login, rstream awaits one of two
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
        with contextlib.suppress(Exception):  # the one that ended the task
            await self.stop_task("heartbeat_sender")
        self._wire.close()
