"""Connections for a single thread that sends and receives in its own loop. This module has the one for AMQP 0-9-1.

The usual client passes messages between threads and collects them for up to a millisecond, which a benchmark would
measure as the broker's latency. These connections use no threads. For messages, this one has the usual client's codec;
pamqp encodes the rest. Those for AMQP 1.0 and streams are in separate modules, which are imported only when needed.
"""

import contextlib
import select
import socket
import ssl
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pamqp import body, commands, frame, header, heartbeat
from pamqp.base import Frame

from mqtool.amqp import Address, TlsFiles
from mqtool.amqp.basic_frames import ConsumerFrames, FrameReader, PublishEncoder, acknowledgements
from mqtool.amqp.unconfirmed import Route
from mqtool.errors import AccessRefused, MqtoolError, Unavailable
from mqtool.message import Delivery, Message

_CHANNEL = 1
_READ_SIZE, _FRAME_MAX = 1 << 17, 131_072
#: Seconds to wait for the broker's reply to a request, and for its reply when the connection is closed.
_PATIENCE, _CLOSE_PATIENCE = 20.0, 2.0
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: Reply codes after which to reconnect: the broker is shutting down, or had an internal error.
_TEMPORARY = (320, 541)
Take = Callable[[list[Delivery]], None]
_CAPABILITIES = ("publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked")


def ignore(*_: object, **__: object) -> None:
    """Do nothing. The default for functions that are called when something arrives."""


class Wire(Protocol):
    """A connection to publish or consume on. No methods block except close() and those that set the connection up.

    All methods raise ConnectionError if the connection is lost, and MqtoolError if the broker refuses something.

    Attributes:
        now: the time at which the data being processed arrived, in nanoseconds of the monotonic clock.
        credit: the number of messages that the broker currently accepts.
        on_confirm, on_nack: called with the tags of messages that the broker has confirmed or refused. The same tag may
            be passed more than once.
    """

    now: int
    credit: int
    on_confirm: Callable[[Iterable[int]], None]
    on_nack: Callable[[Iterable[int]], None]

    @abstractmethod
    def fileno(self) -> int:
        """Return the socket's descriptor, for select()."""

    @property
    @abstractmethod
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet; call flush() when it is writable."""

    @abstractmethod
    def flush(self) -> None:
        """Send the data that the socket has not accepted yet."""

    @abstractmethod
    def receive(self) -> None:
        """Read the data that has arrived, and call the functions that handle it. Call when the socket is readable."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection. Unacknowledged messages return to their queue."""

    @abstractmethod
    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:
        """Prepare to publish to an exchange. With `confirms`, ask the broker to confirm messages."""

    @abstractmethod
    def template(self, message: Message, stamp: int, *, persistent: bool) -> Any:
        """Encode a message for publish(), which will replace the first `stamp` bytes of its body."""

    @abstractmethod
    def publish(self, messages: Iterable[tuple[int, Any, bytes]]) -> None:
        """Publish messages, each given as a tag, a template and a stamp. Tags count up from 1."""

    @abstractmethod
    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        """Start consuming. `take` is called with batches of deliveries.

        Args:
            auto: True if the broker expects no acknowledgements.
            offset: where to start in a stream; None for other queues.
        """

    @abstractmethod
    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        """Acknowledge deliveries, given as pairs of delivery tag and `multiple`."""

    @abstractmethod
    def offset_of(self, delivery: Delivery) -> int:
        """Return the offset of a message in a stream."""


class SocketWire(Wire):
    """A connection that itself reads from and writes to its socket.

    Raises:
        ConnectionError, OSError, MqtoolError: connecting or logging in has failed.
    """

    def __init__(self, address: Address, tls: TlsFiles, name: str) -> None:
        self.now = time.monotonic_ns()
        self.credit = sys.maxsize
        self.on_confirm = self.on_nack = ignore
        self._take: Take = ignore
        self._outbox = bytearray()
        plain = socket.create_connection((address.host, address.port), address.connection_timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = tls.context().wrap_socket(plain, server_hostname=address.host) if address.tls else plain
        self._socket.setblocking(False)
        try:
            self._shake_hands(address, name)
        except BaseException:
            self._socket.close()
            raise

    @abstractmethod
    def _shake_hands(self, address: Address, name: str) -> None:
        """Log in."""

    @abstractmethod
    def _received(self, data: bytes) -> None:
        """Handle data from the socket."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> int:
        return len(self._outbox)

    def send(self, data: bytes) -> None:
        """Send data. Whatever the socket cannot take yet is buffered for flush().

        Raises:
            ConnectionError: the connection was closed.
        """
        if self._outbox:
            self._outbox += data
        elif (sent := self._write(data)) < len(data):
            self._outbox += data[sent:]

    def flush(self) -> None:
        del self._outbox[: self._write(self._outbox)]

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except _NOT_NOW:
            return 0
        except OSError as error:
            raise ConnectionError(error.strerror or "the connection was lost") from error

    def receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(_READ_SIZE)
            except _NOT_NOW:
                return
            except OSError as error:
                raise ConnectionError(error.strerror or "the connection was lost") from error
            if not data:
                raise ConnectionError("the broker closed the connection")
            self.now = time.monotonic_ns()
            self._received(data)
            if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
                return

    def _reply(self, expected: Callable[[], Any], patience: float = _PATIENCE) -> Any:
        """Read until `expected` returns something other than None; return that."""
        deadline = time.monotonic() + patience
        while (reply := expected()) is None:
            left = deadline - time.monotonic()
            readable, writable, _ = select.select([self], [self] if self._outbox else [], [], max(0.0, left))
            if writable:
                self.flush()
            if readable:
                self.receive()
            elif left <= 0:
                raise ConnectionError("the broker does not answer")
        return reply

    def close(self) -> None:
        with contextlib.suppress(ConnectionError, MqtoolError):
            self._say_goodbye(_CLOSE_PATIENCE)
        self._socket.close()

    @abstractmethod
    def _say_goodbye(self, patience: float) -> None:
        """Send all remaining data, and close the connection; wait up to this long for the broker's reply."""


class AmqpWire(SocketWire):
    """An AMQP 0-9-1 connection with one channel."""

    def _shake_hands(self, address: Address, name: str) -> None:
        self._reader = FrameReader(self._on_other)
        self._reader.confirmed[_CHANNEL] = self._on_confirmed
        self._replies: deque[Frame] = deque()
        self._partial: tuple[commands.Basic.Deliver | None, header.ContentHeader | None, list[bytes]] = (None, None, [])
        self._settled = 0  # all messages up to this tag have been confirmed or refused
        self.send(b"AMQP\x00\x00\x09\x01")
        self._reply(lambda: self._next_reply(commands.Connection.Start))
        told: dict[str, Any] = {
            "product": "mqtool",
            "connection_name": name,
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
        }
        login = f"\0{address.user}\0{address.password}"
        start_ok = commands.Connection.StartOk(client_properties=told, mechanism="PLAIN", response=login)
        try:
            tune = self.call(start_ok, commands.Connection.Tune, channel=0)
        except ConnectionError as error:
            raise AccessRefused(f"the broker refuses the login of {address.user!r}") from error
        frame_max = min(tune.frame_max or _FRAME_MAX, _FRAME_MAX)
        # No heartbeats are needed: a run has its own time limits.
        self.send(frame.marshal(commands.Connection.TuneOk(tune.channel_max, frame_max, 0), 0))
        self.call(commands.Connection.Open(address.virtual_host), commands.Connection.OpenOk, channel=0)
        self.call(commands.Channel.Open(), commands.Channel.OpenOk)
        self._encoder = PublishEncoder(_CHANNEL, frame_max)

    def call(self, method: Frame, reply: type[Frame], *, channel: int = _CHANNEL) -> Any:
        """Send a method, and wait for the broker's reply.

        Raises:
            ConnectionError: the connection was closed.
            MqtoolError: the broker refuses the request.
        """
        self.send(frame.marshal(method, channel))
        return self._reply(lambda: self._next_reply(reply))

    def _next_reply(self, kind: type[Frame]) -> Frame | None:
        while self._replies:
            if isinstance(reply := self._replies.popleft(), kind):
                return reply
        return None

    def _say_goodbye(self, patience: float) -> None:
        self.send(frame.marshal(commands.Connection.Close(200, "", 0, 0), 0))
        self._reply(lambda: self._next_reply(commands.Connection.CloseOk), patience)

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:
        self._route = Route(exchange, routing_key)
        if confirms:
            self.call(commands.Confirm.Select(), commands.Confirm.SelectOk)

    def template(self, message: Message, stamp: int, *, persistent: bool) -> tuple[bytes, bytes]:
        frames = self._encoder.encode([message], self._route._replace(persistent=persistent))
        position = 0
        for _ in ("method", "header"):
            position += 8 + int.from_bytes(frames[position + 3 : position + 7], "big")
        return frames[: position + 7], frames[position + 7 + stamp :]

    def publish(self, messages: Iterable[tuple[int, tuple[bytes, bytes], bytes]]) -> None:
        self.send(b"".join([piece for _, (start, end), stamp in messages for piece in (start, stamp, end)]))

    def reply(self, messages: Iterable[Message]) -> None:
        """Publish messages to the queues named by their routing keys."""
        self.send(self._encoder.encode(messages, Route()))

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        self._take = take
        if not auto:
            self.call(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
        tag = "bench"  # the tag of this connection's only consumer
        self._reader.add(ConsumerFrames(_CHANNEL, tag, queue, 0, take))
        arguments: dict[str, Any] = {} if offset is None else {"x-stream-offset": offset}
        consume = commands.Basic.Consume(queue=queue, consumer_tag=tag, no_ack=auto, arguments=arguments)
        self.call(consume, commands.Basic.ConsumeOk)

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        self.send(b"".join(acknowledgements(_CHANNEL, tags)))

    def offset_of(self, delivery: Delivery) -> int:
        return int(delivery.properties["headers"]["x-stream-offset"])

    def _received(self, data: bytes) -> None:
        self._reader.receive(data)

    def _on_confirmed(self, tag: int, *, multiple: bool) -> None:
        self.on_confirm(self._tags(tag, multiple=multiple))

    def _tags(self, tag: int, *, multiple: bool) -> Iterable[int]:
        tags = range(self._settled + 1, tag + 1) if multiple else (tag,)
        if multiple or tag == self._settled + 1:
            self._settled = tag
        return tags

    def _on_other(self, data: bytes) -> None:
        """Handle a frame that is neither a confirm nor part of a single-frame delivery."""
        if data.startswith(b"AMQP"):
            raise Unavailable("the broker speaks another version of AMQP")
        decoded: Any = frame.unmarshal(data)[2]
        match decoded:
            case heartbeat.Heartbeat():
                pass
            case commands.Basic.Ack():
                self.on_confirm(self._tags(decoded.delivery_tag, multiple=decoded.multiple))
            case commands.Basic.Nack():
                self.on_nack(self._tags(decoded.delivery_tag, multiple=decoded.multiple))
            case commands.Basic.Deliver():
                self._partial = (decoded, None, [])
            case header.ContentHeader():
                self._partial = (self._partial[0], decoded, [])
            case body.ContentBody():
                self._on_body(decoded.value)
            case commands.Basic.Cancel():
                raise Unavailable("the broker cancelled the consumer: its queue was deleted, or its node is down")
            case commands.Channel.Close() | commands.Connection.Close():
                self._on_close(decoded)
            case _:
                self._replies.append(decoded)

    def _on_body(self, piece: bytes) -> None:
        deliver, head, pieces = self._partial
        pieces.append(piece)
        if deliver is not None and head is not None and sum(map(len, pieces)) >= head.body_size:
            whole, is_again, tag = b"".join(pieces), bool(deliver.redelivered), deliver.delivery_tag or 0
            properties = {"reply_to": head.properties.reply_to, "headers": head.properties.headers}
            self._take([Delivery(whole, deliver.exchange, deliver.routing_key or "", "", is_again, properties, tag)])

    def _on_close(self, close: "commands.Channel.Close | commands.Connection.Close") -> None:
        text = f"{close.reply_text} ({close.reply_code})"
        if close.reply_code in _TEMPORARY:
            raise ConnectionError(f"the broker closed the connection: {text}")
        raise Unavailable(f"the broker closed the {close.name.partition('.')[0].lower()}: {text}")
