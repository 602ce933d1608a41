"""A connection to a broker for one thread that sends and receives in a loop of its own.

The usual client hands messages from thread to thread and collects them for up to a millisecond, which a benchmark would
measure as the broker's latency. This one has no threads. It uses the same codec for messages; pamqp encodes the rest.
"""

import contextlib
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from pamqp import body, commands, frame, header, heartbeat
from pamqp.base import Frame

from mqtool.amqp import Address, TlsFiles
from mqtool.amqp.basic_frames import ConsumerFrames, FrameReader, PublishEncoder, acknowledgements
from mqtool.amqp.pika_errors import connecting
from mqtool.errors import AccessRefused, MqtoolError, Unavailable
from mqtool.message import Delivery

_CHANNEL = 1
_READ_SIZE, _FRAME_MAX = 1 << 17, 131_072
#: Seconds to wait for the broker's reply to a request, and to the last one.
_PATIENCE, _CLOSE_PATIENCE = 20.0, 2.0
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: Reply codes after which to connect again: the broker shuts down, or has met an error of its own.
_TEMPORARY = (320, 541)
_CAPABILITIES = ("publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked")


class ConnectionLost(Exception):
    """The connection was closed, by the broker or by the network."""


class Wire:
    """One connection with one channel. Methods that send never block; call receive() when the socket is readable.

    Attributes:
        now: when the data that is being processed arrived, in nanoseconds of the monotonic clock.
        on_confirm: called with the delivery tag of each confirm, and `multiple`.
        on_nack: the same for basic.nack.
        encoder: encodes messages to publish on this connection.

    Args:
        addresses: the nodes of the broker, tried in turn.

    Raises:
        MqtoolError: no node accepts the connection.
    """

    def __init__(self, addresses: Sequence[Address], tls: TlsFiles, name: str) -> None:
        self.now = time.monotonic_ns()
        self.on_confirm: Callable[..., None] = _ignore
        self.on_nack: Callable[..., None] = _ignore
        self._reader = FrameReader(self._on_other)
        self._reader.confirmed[_CHANNEL] = lambda tag, *, multiple: self.on_confirm(tag, multiple=multiple)
        self._replies: deque[Frame] = deque()
        self._outbox = bytearray()
        self._partial: tuple[commands.Basic.Deliver | None, int, list[bytes]] = (None, 0, [])
        self._take: Callable[[list[Delivery]], None] = _ignore
        failure: MqtoolError | None = None
        for address in addresses:
            try:
                self._connect(address, tls, name)
            except MqtoolError as error:
                failure = error
            except (OSError, ConnectionLost) as error:
                failure = connecting(error, address)
            else:
                self.encoder = PublishEncoder(_CHANNEL, self._frame_max)
                return
        raise failure or Unavailable("no address to connect to")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Unacknowledged messages return to their queue."""
        goodbye = frame.marshal(commands.Connection.Close(200, "", 0, 0), 0)
        with contextlib.suppress(ConnectionLost, MqtoolError):
            self.send(goodbye)
            self._reply(commands.Connection.CloseOk, _CLOSE_PATIENCE)
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor of the socket, for select()."""
        return self._socket.fileno()

    # Setting up.

    def _connect(self, address: Address, tls: TlsFiles, name: str) -> None:
        plain = socket.create_connection((address.host, address.port), address.connection_timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = tls.context().wrap_socket(plain, server_hostname=address.host) if address.tls else plain
        self._socket.setblocking(False)
        try:
            self._shake_hands(address, name)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, address: Address, name: str) -> None:
        self.send(b"AMQP\x00\x00\x09\x01")
        self._reply(commands.Connection.Start)
        told: dict[str, Any] = {
            "product": "mqtool",
            "connection_name": name,
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
        }
        login = f"\0{address.user}\0{address.password}"
        start_ok = commands.Connection.StartOk(client_properties=told, mechanism="PLAIN", response=login)
        try:
            tune = self.call(start_ok, commands.Connection.Tune, channel=0)
        except ConnectionLost as error:
            raise AccessRefused(f"the broker refuses the login of {address.user!r}") from error
        self._frame_max = min(tune.frame_max or _FRAME_MAX, _FRAME_MAX)
        # Without heartbeats: a run has an end of its own.
        self.send(frame.marshal(commands.Connection.TuneOk(tune.channel_max, self._frame_max, 0), 0))
        self.call(commands.Connection.Open(address.virtual_host), commands.Connection.OpenOk, channel=0)
        self.call(commands.Channel.Open(), commands.Channel.OpenOk)

    def call(self, method: Frame, reply: type[Frame], *, channel: int = _CHANNEL) -> Any:
        """Send a method, and wait for the broker's reply.

        Raises:
            ConnectionLost: the connection was closed.
            MqtoolError: the broker refuses the request.
        """
        self.send(frame.marshal(method, channel))
        return self._reply(reply)

    def _reply(self, kind: type[Frame], patience: float = _PATIENCE) -> Any:
        deadline = time.monotonic() + patience
        while True:
            while self._replies:
                if isinstance(reply := self._replies.popleft(), kind):
                    return reply
            left = deadline - time.monotonic()
            readable, writable, _ = select.select([self], [self] if self._outbox else [], [], max(0.0, left))
            if writable:
                self.flush()
            if readable:
                self.receive()
            elif left <= 0:
                raise ConnectionLost("the broker does not answer")

    def confirm(self) -> None:
        """Have the broker confirm messages."""
        self.call(commands.Confirm.Select(), commands.Confirm.SelectOk)

    def consume(
        self,
        queue: str,
        prefetch: int,
        take: Callable[[list[Delivery]], None],
        arguments: dict[str, Any],
        *,
        auto: bool,
    ) -> None:
        """Start consuming; `take` is called with batches of deliveries. With `auto`, the broker expects no acks."""
        self._take = take
        if not auto:
            self.call(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
        tag = "bench"  # of the only consumer of this connection
        self._reader.add(ConsumerFrames(_CHANNEL, tag, queue, 0, take))
        consume = commands.Basic.Consume(queue=queue, consumer_tag=tag, no_ack=auto, arguments=arguments)
        self.call(consume, commands.Basic.ConsumeOk)

    # Sending and receiving.

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet; call flush() when it is writable."""
        return len(self._outbox)

    def send(self, data: bytes) -> None:
        """Send data, or keep what the socket does not accept now.

        Raises:
            ConnectionLost: the connection was closed.
        """
        if self._outbox:
            self._outbox += data
        elif (sent := self._write(data)) < len(data):
            self._outbox += data[sent:]

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        """Send basic.ack for pairs of delivery tag and `multiple`."""
        self.send(b"".join(acknowledgements(_CHANNEL, tags)))

    def flush(self) -> None:
        """Send what the socket did not accept before."""
        del self._outbox[: self._write(self._outbox)]

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except _NOT_NOW:
            return 0
        except OSError as error:
            raise ConnectionLost(error.strerror or "the connection was lost") from error

    def receive(self) -> None:
        """Read what has arrived, and call the functions for it.

        Raises:
            ConnectionLost: the connection was closed.
            MqtoolError: the broker closed the channel because of an error.
        """
        while True:
            try:
                data = self._socket.recv(_READ_SIZE)
            except _NOT_NOW:
                return
            except OSError as error:
                raise ConnectionLost(error.strerror or "the connection was lost") from error
            if not data:
                raise ConnectionLost("the broker closed the connection")
            self.now = time.monotonic_ns()
            self._reader.receive(data)
            if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
                return

    def _on_other(self, data: bytes) -> None:
        """Handle a frame that is neither a confirm nor a delivery of one frame."""
        if data.startswith(b"AMQP"):
            raise Unavailable("the broker speaks another version of AMQP")
        decoded: Any = frame.unmarshal(data)[2]
        match decoded:
            case heartbeat.Heartbeat():
                pass
            case commands.Basic.Ack():
                self.on_confirm(decoded.delivery_tag, multiple=decoded.multiple)
            case commands.Basic.Nack():
                self.on_nack(decoded.delivery_tag, multiple=decoded.multiple)
            case commands.Basic.Deliver():
                self._partial = (decoded, 0, [])
            case header.ContentHeader():
                self._partial = (self._partial[0], decoded.body_size, [])
            case body.ContentBody():
                self._on_body(decoded.value)
            case commands.Basic.Cancel():
                raise Unavailable("the broker cancelled the consumer: its queue was deleted, or its node is down")
            case commands.Channel.Close() | commands.Connection.Close():
                self._on_close(decoded)
            case _:
                self._replies.append(decoded)

    def _on_body(self, piece: bytes) -> None:
        deliver, size, pieces = self._partial
        pieces.append(piece)
        if deliver is not None and sum(map(len, pieces)) >= size:
            whole, is_again, tag = b"".join(pieces), bool(deliver.redelivered), deliver.delivery_tag or 0
            self._take([Delivery(whole, deliver.exchange, deliver.routing_key or "", "", is_again, {}, tag)])

    def _on_close(self, close: "commands.Channel.Close | commands.Connection.Close") -> None:
        text = f"{close.reply_text} ({close.reply_code})"
        if close.reply_code in _TEMPORARY:
            raise ConnectionLost(f"the broker closed the connection: {text}")
        raise Unavailable(f"the broker closed the {close.name.partition('.')[0].lower()}: {text}")


def _ignore(*_: object, **__: object) -> None:
    """Do nothing: the default of functions that are called for what arrives."""
