"""Everything that uses pika's private methods, with a fallback to its public ones. pika itself is not modified.

FastConnection overrides five methods of pika's connection. They are looked up once, at import; if one of them is
missing or takes other arguments, or MQTOOL_PIKA=public is set, connections use only what pika documents: messages go
through Channel.basic_publish, and pika receives deliveries. Everything still works, with two differences: it is slower,
and pika rejects exchanges and routing keys that are not UTF-8, and some arguments of declarations. Headers and
properties pass pika encoded, in both directions, because pika 1.4.4 decodes floats to integers and sends none.

tests/integration/test_pika_paths.py tests both variants.
"""

import contextlib
import copy
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pika import PlainCredentials, amqp_object, spec
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils import nbio_interface
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_errors
from mqtool.amqp.basic_frames import (
    ConsumerFrames,
    EncodedProperties,
    FrameReader,
    PublishEncoder,
    acknowledgements,
    decode_frame,
    encode_names,
    left_encoded,
)
from mqtool.amqp.unconfirmed import Encoded, MessageWriter, PublishCall, Route, addressed
from mqtool.codecs.field_tables import CLIENT
from mqtool.errors import Unavailable
from mqtool.message import PERSISTENT, Message

#: The methods that FastConnection overrides or calls, with their arguments after `self`.
_EXPECTED = {
    "_on_data_available": ("data_in",),
    "_process_frame": ("frame_value",),
    "_send_method": ("channel_number", "method", "content"),
    "_output_marshaled_frames": ("marshaled_frames",),
    "_adapter_emit_data": ("data",),
    "_proto_connection_made": ("transport",),
}
#: Bytes to read from the socket at once. With pika's 4 KiB, receiving takes 1.4 times the CPU time.
_READ_SIZE = 1 << 17
_WRITE_SIZE = 1 << 18
_EMPTY_TABLE = b"\0\0\0\0"


def is_as_expected() -> bool:
    """True if pika has the private methods that FastConnection needs, with the expected arguments."""
    for name, arguments in _EXPECTED.items():
        code = getattr(getattr(SelectConnection, name, None), "__code__", None)
        if code is None or code.co_varnames[1 : code.co_argcount] != arguments:
            return False
    return True


class FastConnection(SelectConnection):
    """A connection that reads and writes message frames itself, with mqtool's codec.

    Attributes:
        reader: splits received bytes into frames, and decodes deliveries and confirms.
        received_at: when the data being processed arrived, in nanoseconds of the monotonic clock; 0 if none has.
        failure: why received data was refused, which closes the connection; None if it was not.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.reader = FrameReader(self._on_other_frame)
        self.received_at = 0
        self.failure: Unavailable | None = None
        self._socket: socket.socket | None = None
        super().__init__(*arguments, **options)

    def _proto_connection_made(self, transport: Any) -> None:
        if type(getattr(transport, "_sock", None)) is socket.socket:  # without TLS
            self._socket = transport._sock
            transport._MAX_RECV_BYTES, transport._MAX_CONSUME_BYTES = (
                _READ_SIZE,
                1,
            )  # set on this object: one read per call
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        # pika uses bytes_received to detect whether the broker is alive, and also changes it within this call.
        self.received_at = time.monotonic_ns()
        try:
            taken = self.reader.receive(data_in)
        except Unavailable as error:  # pika reports only that the connection is lost
            self.failure = error
            raise
        self.bytes_received += taken

    def _on_other_frame(self, data: bytes) -> None:
        decoded = decode_frame(data)
        if decoded is None:
            super()._on_data_available(data)
        else:
            self.bytes_received += len(data)
            self._process_frame(decoded)

    def _send_method(self, channel_number: int, method: amqp_object.Method, content: Any = None) -> None:
        super()._send_method(channel_number, _exact(method), content)

    def _adapter_emit_data(self, data: bytes) -> None:
        """Send as much as the socket accepts right away. pika polls first, which takes 14% more CPU time."""
        transport: Any = self._transport
        sent = 0
        if self._socket is not None and transport.get_write_buffer_size() == 0:
            with contextlib.suppress(OSError):  # no room; or an error that pika will meet and handle
                sent = self._socket.send(data)
        # In pieces: pika copies all remaining bytes after each write, which takes 30 s for 128 MB.
        for start in range(sent, len(data), _WRITE_SIZE):
            super()._adapter_emit_data(data[start : start + _WRITE_SIZE])


class _ExactMethod:
    """A method whose arguments mqtool's codec encodes, since pika changes number types and drops fractions."""

    def __init__(self, method: Any) -> None:
        self.INDEX = method.INDEX
        self._bare = copy.copy(method)
        self._bare.arguments = {}
        self._arguments = CLIENT.encode_table(method.arguments)

    def encode(self) -> list[bytes]:
        pieces: list[bytes] = self._bare.encode()
        return [*pieces[:-1], pieces[-1].removesuffix(_EMPTY_TABLE) + self._arguments]  # always the last field


def _exact(method: Any) -> Any:
    """Prepare a method for sending: mqtool's codec encodes its arguments, and its names need not be UTF-8."""
    for name, value in vars(method).items():
        if isinstance(value, str) and not value.isascii():
            setattr(method, name, value.encode("utf-8", "surrogateescape"))
    return _ExactMethod(method) if getattr(method, "arguments", None) else method


class _FrameWriter:
    """Sends messages and acknowledgements as frames encoded by mqtool, in one system call."""

    def __init__(self, pika: PikaChannel, frame_max: int) -> None:
        self._pika = pika
        self._encoder = PublishEncoder(pika.channel_number, frame_max)

    def encode(self, messages: Sequence[Message], route: Route) -> Encoded:
        frames = self._encoder.encode(messages, route)
        return Encoded(len(frames), frames=frames)

    def write(self, encoded: Iterable[Encoded], acks: Iterable[tuple[int, bool]] = ()) -> None:
        frames = [*(each.frames for each in encoded), *acknowledgements(self._pika.channel_number, acks)]
        if self._pika.is_open and frames:
            self._pika.connection._output_marshaled_frames([b"".join(frames)])


class _PublicWriter:
    """Sends messages and acknowledgements one by one, through pika's public methods."""

    def __init__(self, pika: PikaChannel) -> None:
        self._pika = pika

    def encode(self, messages: Sequence[Message], route: Route) -> Encoded:
        calls = [_publish_call(addressed(message, route), route) for message in messages]
        return Encoded(sum(len(message.body) for message in messages), calls=calls)

    def write(self, encoded: Iterable[Encoded], acks: Iterable[tuple[int, bool]] = ()) -> None:
        if not self._pika.is_open:
            return
        for each in encoded:
            for call in each.calls:
                self._pika.basic_publish(*call)
        for tag, multiple in acks:
            self._pika.basic_ack(tag, multiple=multiple)


def _publish_call(message: Message, route: Route) -> PublishCall:
    properties = {**message.properties, "message_id": message.message_id}
    if route.persistent and properties.get("delivery_mode") is None:
        properties["delivery_mode"] = PERSISTENT
    exchange, routing_key = message.exchange or "", message.routing_key or ""
    encode_names(exchange, routing_key)
    try:
        f"{exchange}{routing_key}".encode()  # pika sends only UTF-8
    except UnicodeEncodeError as error:
        raise pika_errors.cannot_encode(error) from error
    return PublishCall(exchange, routing_key, message.body, EncodedProperties(properties), route.mandatory)


class _HeadersLeftEncoded(nbio_interface.AbstractStreamProtocol):
    """Passes received frames on to pika, with the properties of messages left encoded."""

    def __init__(self, pika: nbio_interface.AbstractStreamProtocol, on_failure: Callable[[Unavailable], None]) -> None:
        self.pika = pika
        self._on_failure = on_failure
        self._reader = FrameReader(lambda data: pika.data_received(left_encoded(data)))

    def connection_made(self, transport: Any) -> None:
        self.pika.connection_made(transport)

    def connection_lost(self, error: BaseException | None) -> None:
        self.pika.connection_lost(error)

    def eof_received(self) -> bool | None:
        return self.pika.eof_received()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.receive(data)
        except Unavailable as error:  # pika reports only that the connection is lost
            self._on_failure(error)
            raise


class _Services(SelectorIOServicesAdapter):
    failure: Unavailable | None = None

    def _failed(self, error: Unavailable) -> None:
        self.failure = error

    def create_streaming_connection(
        self, protocol_factory: Callable[[], Any], sock: Any, on_done: Callable[[Any], None], *tls: Any, **options: Any
    ) -> Any:
        def done(result: Any) -> None:
            on_done(result if isinstance(result, BaseException) else (result[0], result[1].pika))

        def protocol() -> _HeadersLeftEncoded:
            return _HeadersLeftEncoded(protocol_factory(), self._failed)

        return super().create_streaming_connection(protocol, sock, done, *tls, **options)


class _PublicConnection(SelectConnection):
    """A connection that uses only pika's public interface. mqtool decodes headers: pika cuts floats to integers."""

    def __init__(self, parameters: Any, *, custom_ioloop: IOLoop, **options: Any) -> None:
        self._services = _Services(custom_ioloop)
        super().__init__(parameters, custom_ioloop=self._services, **options)

    @property
    def failure(self) -> Unavailable | None:
        """Why received data was refused, which closes the connection; None if it was not."""
        return self._services.failure


#: The class of all connections.
CONNECTION: type[SelectConnection] = (
    FastConnection if is_as_expected() and os.environ.get("MQTOOL_PIKA") != "public" else _PublicConnection
)


def writer(pika: PikaChannel, frame_max: int) -> MessageWriter:
    """Create the MessageWriter for a channel: the fast one if possible, else one that uses pika's public methods."""
    return _FrameWriter(pika, frame_max) if isinstance(pika.connection, FastConnection) else _PublicWriter(pika)


def take_confirms(pika: PikaChannel, on_ack: Callable[..., None]) -> None:
    """With a FastConnection, pass confirms directly to `on_ack`; otherwise do nothing. Call it on the I/O thread."""
    if isinstance(pika.connection, FastConnection):
        pika.connection.reader.confirmed[pika.channel_number] = on_ack


def take_deliveries(pika: PikaChannel, frames: ConsumerFrames) -> None:
    """With a FastConnection, let mqtool, not pika, decode deliveries to a consumer. Call it on the I/O thread."""
    if isinstance(pika.connection, FastConnection):
        pika.connection.reader.add(frames)


def failure_of(pika: object) -> Unavailable | None:
    """Why the connection was closed, if it was because of data too large."""
    return pika.failure if isinstance(pika, FastConnection | _PublicConnection) else None


def received_at(pika: SelectConnection) -> int:
    """When the data being processed arrived, in nanoseconds of the monotonic clock; without FastConnection, now."""
    return pika.received_at if isinstance(pika, FastConnection) else time.monotonic_ns()


def unsent(pika: SelectConnection) -> int:
    """The number of bytes that the socket has not accepted yet; without FastConnection, 0."""
    if not isinstance(pika, FastConnection):
        return 0
    transport: Any = pika._transport
    return int(transport.get_write_buffer_size())


def run_for(loop: IOLoop, seconds: float) -> None:
    """Run an event loop that no thread runs, until something happened, or for a number of seconds.

    pika's own time limits are in whole milliseconds, which would be too long for a benchmark; they are used if the
    poller's descriptor cannot be found.
    """
    poller, interval = getattr(loop, "_poller", None), getattr(loop, "_get_remaining_interval", None)
    poll: Any = getattr(poller, "_poll", None) or getattr(poller, "_kqueue", None)
    if interval is None or not hasattr(poll, "fileno"):
        timeout = loop.call_later(seconds, lambda: None)
        loop.poll()
        loop.remove_timeout(timeout)
    else:
        until_timer = interval()  # 0 if a callback is waiting
        if select.select([poll], [], [], seconds if until_timer is None else min(seconds, until_timer))[0]:
            loop.poll()
    loop.process_timeouts()


def leave_deliveries(pika: PikaChannel, consumer_tag: str) -> None:
    """From now on, let pika handle deliveries to a cancelled consumer: it requeues those that still arrive.

    Call it on the I/O thread.
    """
    if isinstance(pika.connection, FastConnection):
        pika.connection.reader.remove(pika.channel_number, consumer_tag)


def cancel_again(pika: PikaChannel, consumer_tag: str) -> None:
    """Cancel a consumer that the broker has cancelled. Call it on the I/O thread.

    After a consumer timeout, RabbitMQ 4.3.6 otherwise delivers to it again as soon as a late acknowledgement arrives.
    pika then rejects these deliveries.
    """
    if isinstance(pika.connection, FastConnection):
        pika.connection._send_method(pika.channel_number, spec.Basic.Cancel(consumer_tag, nowait=True))


class CertificateFirst(PlainCredentials):
    """Log in with the client's certificate if the broker offers EXTERNAL, otherwise with the default user."""

    def response_for(self, start: Any) -> tuple[str | None, bytes | None]:
        if b"EXTERNAL" in start.mechanisms.split():
            return "EXTERNAL", b""
        return super().response_for(start)
