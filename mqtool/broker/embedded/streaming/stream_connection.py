"""One connection of the stream protocol: calls the handler for each frame, and closes the connection on errors."""

import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from mqtool.broker.embedded.model.amqp_errors import ConnectionException
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.footprint import WATCHED
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.sockets.listener import Connections, caused_by
from mqtool.broker.embedded.streaming import stream_requests
from mqtool.broker.embedded.streaming.publishers import Publishers
from mqtool.broker.embedded.streaming.stream_frames import (
    FRAME_MAX,
    HEAD,
    RESPONSE,
    Code,
    Fields,
    Key,
    MalformedFrame,
    frame,
    string,
    u16,
    u32,
)
from mqtool.broker.embedded.streaming.stream_session import (
    BrokerStreamSession,
    StreamRefused,
    exchange_versions,
    receive_handshake,
)
from mqtool.broker.embedded.streaming.subscriptions import Groups, Subscriptions

log = logging.getLogger("mqtool.broker.embedded")

#: Maximum size in bytes of a frame before the login.
_LARGEST_BEFORE_LOGIN = 64 * 1024

_CLOSING_SECONDS = 5.0
_CONSUMER_UPDATE_ANSWER = Key.CONSUMER_UPDATE | RESPONSE
_CLOSE_ANSWER = Key.CLOSE | RESPONSE


class StreamConnection(BrokerStreamSession):
    """The connection of one stream client.

    Args:
        broker: the broker.
        connections: a set to which this connection belongs while its socket is open.
        groups: the broker's groups of single active consumers.

    Attributes:
        channels, channel_max, frame_max: shown by the management API, as for AMQP connections.
    """

    channels: Mapping[int, Any] = MappingProxyType({})
    channel_max = 0
    frame_max = FRAME_MAX

    def __init__(self, broker: Broker, connections: Connections["StreamConnection"], groups: Groups) -> None:
        super().__init__(broker, connections)
        self.publishers = Publishers(self)
        self.subscriptions = Subscriptions(self, groups)
        # The log of each stream that the client uses, and the function that the log calls when it has new chunks.
        self._watches: dict[str, tuple[StreamLog, Callable[[], None]]] = {}

    def take_bytes(self, data: bytes) -> int:
        position = 0
        self._need = HEAD.size
        while len(data) - position >= HEAD.size:
            if self.state == "closed":
                return len(data)
            size, key, version = HEAD.unpack_from(data, position)
            if size > self._largest(key):
                self._wrong(Code.FRAME_TOO_LARGE, "frame too large")
                return len(data)
            if size < 4:
                raise MalformedFrame
            end = position + 4 + size
            if end > len(data):
                self._need = 4 + size
                break
            start, position = position + HEAD.size, end
            self.receive(key, version, data[start:end])
            if self.must_pause:
                break
        return position

    def _largest(self, key: int) -> int:
        """Return the maximum size in bytes of a frame with this key, in the connection's current state."""
        if self.state != "open":
            return _LARGEST_BEFORE_LOGIN
        return self.broker.profile.largest_publish if key == Key.PUBLISH else FRAME_MAX

    def failed(self, error: Exception) -> None:
        if isinstance(error, MalformedFrame):
            self._wrong(Code.UNKNOWN_FRAME, "unknown frame")
        else:
            log.exception("stream connection %s: internal error", self.name)
            self._wrong(Code.INTERNAL_ERROR, "internal error")

    def receive(self, key: int, version: int, body: bytes) -> None:
        """Handle a frame; raise MalformedFrame if it is malformed, of an unknown kind, or out of sequence."""
        if key == Key.HEARTBEAT:
            return
        if self.state == "open":
            self._receive_open(key, version, body)
        elif self.state == "closing":
            if key == _CLOSE_ANSWER:
                self.hang_up()
        elif version != 1:
            raise MalformedFrame
        else:
            receive_handshake(self, key, Fields(body))
            if self.is_open:
                self.set_deadline(None)

    def _receive_open(self, key: int, version: int, body: bytes) -> None:
        if key == Key.PUBLISH and version in (1, 2):
            if self.broker.alarms:
                self.block()
            self.work(self.publishers.publish(body, version))
            return
        if version != 1:
            raise MalformedFrame
        fields = Fields(body)
        request = _REQUESTS.get(key)
        if request is not None:
            self.work(self._carry_out(request, Key(key), fields))
        elif key == Key.CREDIT:
            self.subscriptions.give_credit(fields)
        elif key == Key.STORE_OFFSET:
            try:
                stream_requests.store_offset(self, fields)
            except StreamRefused as refused:
                extra = caused_by(f"{self.user.name} offsets")
                log.warning("stream connection %s: cannot store an offset: %s", self.name, refused, extra=extra)
        elif key == _CONSUMER_UPDATE_ANSWER:
            self.subscriptions.updated(fields)
        else:
            raise MalformedFrame

    def _carry_out(self, request: "_Request", key: Key, fields: Fields) -> Iterator[None]:
        correlation = fields.number(4)
        try:
            steps = request(self, fields, correlation)
            if steps is not None:
                yield from steps
        except StreamRefused as refused:
            self.answer(key, correlation, refused.code, refused.rest)

    def watch(self, stream: str, log: StreamLog) -> None:
        if stream in self._watches and self._watches[stream][0] is log:
            return
        if stream not in self._watches:
            self.add_held_bytes(WATCHED + len(stream))

        def wake() -> None:
            if log.deleted:
                # Later, so that a client that deletes a stream gets the response to its request first.
                self._loop.call_soon(self._stream_gone, stream, log)
            else:
                self.subscriptions.pump(stream)

        self._watches[stream] = (log, wake)
        log.watch(wake)

    def _stream_gone(self, stream: str, log: StreamLog) -> None:
        if stream not in self._watches or self._watches[stream][0] is not log:
            return
        del self._watches[stream]
        self.add_held_bytes(-WATCHED - len(stream))
        had_publishers = self.publishers.forget_stream(stream)
        if self.subscriptions.forget_stream(stream) or had_publishers:
            self.write(frame(Key.METADATA_UPDATE, u16(Code.STREAM_NOT_AVAILABLE) + string(stream)))

    def may_send(self) -> None:
        self.subscriptions.pump()

    @property
    def may_read(self) -> bool:
        """True if neither an alarm nor messages waiting for the disk stop the broker from reading."""
        return not self.blocked and not self.publishers.is_throttled

    def check_consumers(self, timeout: float) -> None:
        """Do nothing: stream consumers do not acknowledge deliveries, so none can time out."""

    def _wrong(self, code: Code, reason: str) -> None:
        """Close the connection because of an invalid frame. Before the handshake is done, do not send the reason."""
        if self.state == "open":
            self._close(code, reason)
        else:
            self.log_once_a_second(logging.WARNING, code.name, reason)
            self.hang_up()

    def force_close(self, reason: str) -> None:
        """Close the connection without sending Close, as RabbitMQ does for this protocol."""
        log.warning("stream connection %s: %s", self.name, reason)
        self.shut()
        self.hang_up()

    def _close(self, code: int, reason: str) -> None:
        log.warning("stream connection %s: %s", self.name, reason)
        self.shut()
        self.state = "closing"
        self.write(frame(Key.CLOSE, u32(1) + u16(code) + string(reason)))
        self.set_deadline(_CLOSING_SECONDS)

    def close(self, error: ConnectionException) -> None:
        """Close the connection with the code and text that an injected fault specifies."""
        self._close(error.code, error.text)

    def close_asked(self, fields: Fields, correlation: int) -> None:
        """Handle the client's Close: send the response, and close the socket."""
        fields.number(2)
        fields.string()
        fields.end()
        self.shut()
        self.answer(Key.CLOSE, correlation)
        self.hang_up()

    def shut(self) -> None:
        """End the subscriptions, and stop watching streams."""
        self.subscriptions.close()
        for log, wake in self._watches.values():
            log.unwatch(wake)
        self.add_held_bytes(-sum(WATCHED + len(stream) for stream in self._watches))
        self._watches.clear()


#: Handles a request, at once or in the steps that it returns.
_Request: TypeAlias = Callable[[StreamConnection, Fields, int], Iterator[None] | None]

_REQUESTS: dict[int, _Request] = {
    Key.DECLARE_PUBLISHER: lambda connection, *rest: connection.publishers.declare(*rest),
    Key.QUERY_PUBLISHER_SEQUENCE: lambda connection, *rest: connection.publishers.sequence(*rest),
    Key.DELETE_PUBLISHER: lambda connection, *rest: connection.publishers.delete(*rest),
    Key.SUBSCRIBE: lambda connection, *rest: connection.subscriptions.subscribe(*rest),
    Key.UNSUBSCRIBE: lambda connection, *rest: connection.subscriptions.unsubscribe(*rest),
    Key.QUERY_OFFSET: stream_requests.query_offset,
    Key.CREATE: stream_requests.create,
    Key.DELETE: stream_requests.delete,
    Key.METADATA: stream_requests.metadata,
    Key.STREAM_STATS: stream_requests.stats,
    Key.ROUTE: stream_requests.route,
    Key.PARTITIONS: stream_requests.partitions,
    Key.CREATE_SUPER_STREAM: stream_requests.create_super_stream,
    Key.DELETE_SUPER_STREAM: stream_requests.delete_super_stream,
    Key.EXCHANGE_COMMAND_VERSIONS: exchange_versions,
    Key.CLOSE: StreamConnection.close_asked,
}
