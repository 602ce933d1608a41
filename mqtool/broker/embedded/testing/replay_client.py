"""A blocking AMQP client that only publishes. It lets replay() work without a client library in the tested project."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from pamqp import commands
from pamqp.base import Frame

from mqtool import __version__
from mqtool.broker.embedded.wire import amqp_frames
from mqtool.codecs.field_tables import encode_property, encode_short_string
from mqtool.duration import Backoff
from mqtool.errors import BadData, NotConfirmed, Unavailable
from mqtool.message import PROPERTIES, Message
from mqtool.spelling import counted

_ANSWER_SECONDS = 30.0
_RECONNECTING = Backoff(first=0.05, longest=1.0, attempts=10)
#: How many messages, and how many bytes in their bodies, may be published before their confirms are read.
_WINDOW, _WINDOW_BYTES = 64, 1 << 16
_FRAME_MAX = 131_072
_CONTENT_HEADER = struct.Struct(">HHQH")
_MANDATORY = b"\1"
_BASIC = 60
_PUBLISHING, _ASKING = 1, 2
_NOT_FOUND, _CONNECTION_FORCED = 404, 320


class _ChannelClosed(Exception):
    """The broker closed a channel. The arguments of the exception are the reply code and text."""


class ReplayClient:
    """Publishes messages and waits for confirms. After a lost connection, reconnects and republishes unconfirmed ones.

    Args:
        url: an AMQP URL.
        stopped: once it is set, the client does not reconnect.

    Raises:
        Unavailable: the broker cannot be reached or refuses the connection.
    """

    def __init__(self, url: str, stopped: threading.Event) -> None:
        self._url = urlsplit(url)
        self._stopped = stopped
        self._unconfirmed: dict[int, Message] = {}
        self._returned: set[int] = set()
        self._tag = 0
        try:
            self._connect()
        except OSError as error:
            raise self._unavailable(str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, Unavailable, _ChannelClosed):  # the broker may have closed it
            self._send(0, commands.Connection.Close, reply_code=200, reply_text="Goodbye")
            self._take(commands.Connection.CloseOk)
        self._socket.close()

    def has_exchange(self, name: str) -> bool:
        """Return True if an exchange exists.

        Raises:
            Unavailable: the connection was lost, and the client could not reconnect; or access was refused.
        """
        try:
            self._send(_ASKING, commands.Channel.Open)
            self._take(commands.Channel.OpenOk)
            self._send(_ASKING, commands.Exchange.Declare, exchange=name, passive=True)
            self._take(commands.Exchange.DeclareOk)
            self._send(_ASKING, commands.Channel.Close, reply_code=200, reply_text="Goodbye")
            self._take(commands.Channel.CloseOk)
        except _ChannelClosed as closed:
            code, text = closed.args
            if code != _NOT_FOUND:
                raise self._unavailable(text) from closed
            return False
        except OSError as error:
            self._reconnect(error)
            return self.has_exchange(name)
        return True

    def publish(self, messages: Iterable[Message]) -> list[Message]:
        """Publish messages in order, with the mandatory flag. Return those that the broker nacked or could not route.

        Raises:
            BadData: a message cannot be encoded.
            NotConfirmed: the broker did not confirm a message in time.
            Unavailable: the connection was lost, and the client could not reconnect; or the broker closed the channel.
        """
        refused: list[Message] = []

        def take_answer() -> None:
            refused.extend(self._take_answer())

        for message in messages:
            self._tag += 1
            self._unconfirmed[self._tag] = message
            self._resuming(partial(self._write, self._encoded(message)))
            while len(self._unconfirmed) >= _WINDOW or self._size() > _WINDOW_BYTES:
                self._resuming(take_answer)
        while self._unconfirmed:
            self._resuming(take_answer)
        return refused

    def _write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _size(self) -> int:
        return sum(len(message.body) for message in self._unconfirmed.values())

    def _resuming(self, action: Callable[[], None]) -> None:
        """Call this function. If the connection is lost, reconnect and republish all unconfirmed messages."""
        try:
            action()
        except TimeoutError as error:
            count = len(self._unconfirmed)
            raise NotConfirmed(
                f"the broker did not confirm {counted(count, 'message')} within {_ANSWER_SECONDS:g} s"
            ) from error
        except _ChannelClosed as closed:
            raise self._unavailable(closed.args[1]) from closed
        except OSError as error:
            self._reconnect(error)

    def _reconnect(self, lost: OSError) -> None:
        for delay in _RECONNECTING.delays():
            if self._stopped.wait(delay):
                break
            try:
                self._connect()
                again = list(self._unconfirmed.values())
                self._unconfirmed = dict(enumerate(again, 1))
                self._tag = len(again)
                self._socket.sendall(b"".join(map(self._encoded, again)))
            except OSError as error:
                lost = error
            else:
                return
        raise self._unavailable(str(lost)) from lost

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"cannot replay to the broker at {self._url.hostname}:{self._port}: {why}")

    @property
    def _port(self) -> int:
        return self._url.port or (5671 if self._url.scheme == "amqps" else 5672)

    def _connect(self) -> None:
        host, user, password = (
            unquote(part or instead)
            for part, instead in (
                (self._url.hostname, "localhost"), (self._url.username, "guest"), (self._url.password, "guest")
            )
        )  # fmt: skip
        vhost = unquote(self._url.path[1:]) or "/"
        self._socket = socket.create_connection((host, self._port), _ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._url.scheme == "amqps":
            self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=host)
        self._reading = self._socket.makefile("rb")
        self._returned.clear()
        self._socket.sendall(amqp_frames.PROTOCOL_HEADER)
        self._take(commands.Connection.Start)
        self._send(
            0, commands.Connection.StartOk, mechanism="PLAIN", response=f"\0{user}\0{password}", locale="en_US",
            client_properties={
                "product": "mqtool", "version": __version__, "connection_name": "replay",
                "capabilities": {"publisher_confirms": True, "basic.nack": True, amqp_frames.RETRIES: True},
            },
        )  # fmt: skip
        tune = self._take(commands.Connection.Tune)
        self._frame_max = tune.frame_max or _FRAME_MAX
        self._send(0, commands.Connection.TuneOk, channel_max=tune.channel_max, frame_max=self._frame_max)
        self._send(0, commands.Connection.Open, virtual_host=vhost)
        self._take(commands.Connection.OpenOk)
        self._send(_PUBLISHING, commands.Channel.Open)
        self._take(commands.Channel.OpenOk)
        self._send(_PUBLISHING, commands.Confirm.Select)
        self._take(commands.Confirm.SelectOk)

    def _send(self, channel: int, kind: type[Frame], **fields: Any) -> None:
        self._socket.sendall(amqp_frames.method_frame(channel, amqp_frames.encode_method(kind, **fields)))

    def _frame(self) -> tuple[int, int, bytes]:
        """Read a frame; return its type, channel and payload. Raises OSError if the connection is lost."""
        head = self._read(amqp_frames.FRAME_HEADER.size)
        kind, channel, size = amqp_frames.FRAME_HEADER.unpack(head)
        return kind, channel, self._read(size + 1)[:-1]

    def _read(self, size: int) -> bytes:
        data = self._reading.read(size)
        if len(data) < size:
            raise ConnectionResetError("the broker closed the connection")
        return data

    def _take(self, *expected: type[Frame]) -> Any:
        """Read frames until one of these methods arrives, and return it."""
        while True:
            kind, channel, payload = self._frame()
            if kind != amqp_frames.METHOD:
                continue
            method = amqp_frames.decode_method(payload)
            if isinstance(method, expected):
                return method
            if isinstance(method, commands.Connection.Close):
                self._send(0, commands.Connection.CloseOk)
                if method.reply_code == _CONNECTION_FORCED:
                    raise ConnectionResetError(method.reply_text)
                raise self._unavailable(method.reply_text)
            if isinstance(method, commands.Channel.Close):
                self._send(channel, commands.Channel.CloseOk)
                raise _ChannelClosed(method.reply_code, method.reply_text)

    def _take_answer(self) -> list[Message]:
        """Wait for the broker's next answer. Return the messages that it settles as nacked or returned."""
        method = self._take(commands.Basic.Ack, commands.Basic.Nack, commands.Basic.Return)
        if isinstance(method, commands.Basic.Return):
            self._mark_returned(method, self._body())
            return []
        last = method.delivery_tag
        tags = [tag for tag in self._unconfirmed if tag == last or (method.multiple and tag < last)]
        nacked = isinstance(method, commands.Basic.Nack)
        answered = {tag: self._unconfirmed.pop(tag) for tag in tags}
        return [message for tag, message in answered.items() if nacked or tag in self._returned]

    def _mark_returned(self, method: commands.Basic.Return, body: bytes) -> None:
        """Mark the oldest unconfirmed message that equals the returned one, since basic.return has no delivery tag."""
        for tag, message in self._unconfirmed.items():
            address = (message.exchange or "", message.routing_key or "")
            if tag not in self._returned and address == (method.exchange, method.routing_key) and message.body == body:
                self._returned.add(tag)
                return

    def _body(self) -> bytes:
        _, _, header = self._frame()
        left = int.from_bytes(header[4:12])
        parts = []
        while left:
            _, _, part = self._frame()
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _encoded(self, message: Message) -> bytes:
        """Encode basic.publish with its header and body."""
        given = {**message.properties, "message_id": message.message_id}
        names = [name for name in PROPERTIES if given.get(name) is not None]
        flags = sum(1 << (15 - PROPERTIES.index(name)) for name in names)
        try:
            method = (
                amqp_frames.BASIC_PUBLISH + b"\0\0" + encode_short_string(message.exchange or "")
                + encode_short_string(message.routing_key or "") + _MANDATORY
            )  # fmt: skip
            properties = b"".join(encode_property(name, given[name]) for name in names)
        except (ValueError, TypeError, ArithmeticError, AttributeError, struct.error) as error:
            raise BadData(f"a message cannot be encoded in AMQP: {error}") from error
        header = _CONTENT_HEADER.pack(_BASIC, 0, len(message.body), flags) + properties
        parts = [(amqp_frames.METHOD, method), (amqp_frames.HEADER, header)]
        most = self._frame_max - amqp_frames.FRAME_OVERHEAD
        parts += [(amqp_frames.BODY, message.body[start : start + most]) for start in range(0, len(message.body), most)]
        return b"".join(
            amqp_frames.FRAME_HEADER.pack(kind, _PUBLISHING, len(payload)) + payload + amqp_frames.FRAME_END
            for kind, payload in parts
        )
