"""One AMQP 1.0 connection: the login, the open and close frames, and the frames for each session."""

import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

from mqtool.broker.embedded.amqp10.amqp10_session import Amqp10Session
from mqtool.broker.embedded.amqp10.amqp10_socket import FRAME_MAX, Amqp10Socket, log_in, offer_mechanisms
from mqtool.broker.embedded.amqp10.errors10 import (
    DECODE_ERROR,
    FRAMING_ERROR,
    INTERNAL_ERROR,
    LIMIT_EXCEEDED,
    NOT_ALLOWED,
    TOO_SMALL,
    UNAUTHORIZED,
    Amqp10Error,
    ConnectionError10,
    condition_of,
)
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.broker import NODE, Broker, check_connections
from mqtool.broker.embedded.model.footprint import DELIVERY
from mqtool.broker.embedded.model.profile import identity
from mqtool.broker.embedded.model.protocol_conversion import table_to_091
from mqtool.broker.embedded.model.queue import Why, feed
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.sockets.client_socket import keep_properties
from mqtool.broker.embedded.sockets.listener import Connections
from mqtool.codecs.amqp10_frames import (
    AMQP,
    AMQP_HEADER,
    FRAME_HEADER,
    HEARTBEAT,
    SASL,
    SASL_HEADER,
    Begin,
    Close,
    Error,
    Open,
    decode_performative,
)
from mqtool.codecs.amqp10_values import Array, Symbol

log = logging.getLogger("mqtool.broker.embedded")

#: The largest frame, in bytes, that the broker accepts before the connection is open.
_FIRST_FRAME_MAX = 8192
_SMALLEST_FRAME_MAX = 512

#: The highest channel number: RabbitMQ allows 64 sessions on a connection.
CHANNEL_MAX = 63

#: A client that sends nothing for this many seconds is disconnected. The broker announces half this time.
_IDLE_SECONDS = 60

_CLOSING_SECONDS = 5.0
_CAPABILITIES = Array(map(Symbol, ("LINK_PAIR_V1_0", "ANONYMOUS-RELAY")))


class Connection10(Amqp10Socket):
    """The connection of one AMQP 1.0 client.

    Attributes:
        sessions: the open sessions by channel number.
        channels, publishers, subscriptions: always empty. Only connections of other protocols have them.
    """

    channels: Mapping[int, Any] = MappingProxyType({})
    publishers: Collection[Any] = ()
    subscriptions: Collection[Any] = ()

    def __init__(self, broker: Broker, connections: Connections["Connection10"]) -> None:
        super().__init__(broker, connections)
        self.sessions: dict[int, Amqp10Session] = {}
        self.channel_max = CHANNEL_MAX

    def take_bytes(self, data: bytes) -> int:
        offset, size = 0, len(data)
        self._need = FRAME_HEADER.size
        while size - offset >= FRAME_HEADER.size:
            if self.state == "closed":
                return size
            if self.state in ("header", "waiting"):
                self._take_protocol_header(data[offset : offset + 8])
                offset += 8
                continue
            length, words, kind, channel = FRAME_HEADER.unpack_from(data, offset)
            self._check_frame(length, words * 4, kind)
            end = offset + length
            if end > size:
                self._need = length
                return offset
            if length > words * 4:
                self._receive(channel, data[offset + words * 4 : end])
            offset = end
            if self.must_pause:
                break
        return offset

    def _take_protocol_header(self, header: bytes) -> None:
        """Answer the SASL header or, after a successful login, the AMQP header. On any other, close the socket."""
        if self.state == "header" and header == SASL_HEADER:
            offer_mechanisms(self)
        elif self.state == "waiting" and header == AMQP_HEADER:
            self.write(AMQP_HEADER)
            self.state = "opening"
        else:
            self.write(SASL_HEADER)
            self.hang_up()

    def _check_frame(self, size: int, head: int, kind: int) -> None:
        """Check a frame header as RabbitMQ does. Raises ConnectionError10 if it is malformed."""
        limit = _FIRST_FRAME_MAX if self.state in ("login", "opening") else FRAME_MAX
        expected, mode = (SASL, "sasl") if self.state == "login" else (AMQP, "amqp")
        wrong = None
        if size < FRAME_HEADER.size:
            wrong = f"frame size ({size} bytes) < minimum frame size (8 bytes)"
        elif size > limit:
            wrong = f"frame size ({size} bytes) > maximum frame size ({limit} bytes)"
        elif head < FRAME_HEADER.size:
            wrong = f"data offset ({head // 4}) < minimum data offset (2)"
        elif head > size:
            wrong = f"data offset ({head} bytes) > frame size ({size} bytes)"
        elif kind != expected:
            wrong = f"unexpected frame type {kind} in {mode} mode (expected {expected})"
        if wrong is not None:
            raise ConnectionError10(FRAMING_ERROR, wrong)

    def _receive(self, channel: int, body: bytes) -> None:
        """Handle a frame with a performative. On an error, close the connection."""
        try:
            performative, end = decode_performative(body)
        except ValueError as error:
            raise ConnectionError10(DECODE_ERROR, f"cannot decode frame: {error}") from error
        session = self.sessions.get(channel)
        if self.state == "open" and session is not None and not isinstance(performative, Open | Close):
            session.receive(performative, body[end:], end)
        elif isinstance(performative, Close) and self.state != "login":
            self._close_received()
        elif self.state == "open" and not isinstance(performative, Open):
            self._receive_outside_sessions(channel, performative)
        elif self.state == "login":
            log_in(self, performative)
        elif self.state == "opening" and isinstance(performative, Open):
            self._open(performative)
        elif self.state != "closing":
            raise ConnectionError10(NOT_ALLOWED, f"unexpected {type(performative).__name__.lower()} frame")

    def _receive_outside_sessions(self, channel: int, performative: Any) -> None:
        """Begin a session. Ignore other frames: the client may have sent them before it knew that its session ended."""
        if channel > self.channel_max:
            raise ConnectionError10(
                FRAMING_ERROR, f"channel number ({channel}) exceeds maximum channel number ({self.channel_max})"
            )
        if isinstance(performative, Begin):
            self.sessions[channel] = Amqp10Session(self, channel, performative)

    def _open(self, opening: Open) -> None:
        """Handle the client's open frame. On an error, the socket is closed without a reason, as in RabbitMQ."""
        self._open_vhost(opening.hostname)
        if opening.max_frame_size is not None and opening.max_frame_size < _SMALLEST_FRAME_MAX:
            raise ConnectionError10(
                TOO_SMALL,
                f"max_frame_size ({opening.max_frame_size}) < minimum maximum frame size ({_SMALLEST_FRAME_MAX})",
            )
        idle = opening.idle_time_out or 0
        if 0 < idle < 1000:
            raise ConnectionError10(NOT_ALLOWED, f"idle-time-out ({idle} ms) < minimum idle-time-out (1000 ms)")
        self.container = opening.container_id
        keep_properties(self, table_to_091((opening.properties or {}).items()))
        if opening.max_frame_size is not None:
            self.frame_max = opening.max_frame_size
        if opening.channel_max is not None:
            self.channel_max = min(opening.channel_max, CHANNEL_MAX)
        self.opened()
        self.set_deadline(None)
        self.start_heartbeats(idle // 1000)
        answer = Open(
            self.broker.cluster_name,
            max_frame_size=FRAME_MAX,
            channel_max=self.channel_max,
            idle_time_out=_IDLE_SECONDS * 500,
            offered_capabilities=_CAPABILITIES,
            properties={
                Symbol(name): value
                for name, value in {**identity(self.broker.profile, self.broker.cluster_name), "node": NODE}.items()
            },
        )
        self.send(0, answer)

    def _open_vhost(self, hostname: str | None) -> None:
        name = hostname.removeprefix("vhost:") if hostname and hostname.startswith("vhost:") else "/"
        vhost, user = self.broker.vhosts.get(name), self.user.name
        if user in self.broker.loopback_users and not self.from_loopback:
            raise ConnectionError10(UNAUTHORIZED, f"user '{user}' can only connect via localhost")
        if vhost is None:
            raise ConnectionError10(UNAUTHORIZED, f"AMQP 1.0 connection failed: virtual host '{name}' does not exist")
        if name not in self.user.permissions:
            raise ConnectionError10(UNAUTHORIZED, f"access to vhost '{name}' refused for user '{user}'")
        try:
            check_connections(self.broker, vhost, user)
        except AmqpException as error:
            raise ConnectionError10(LIMIT_EXCEEDED, condition_of(error)[1]) from error
        self.vhost = vhost
        self.rights = Rights(self.broker, user, name)

    @property
    def kept_bytes(self) -> int:
        return DELIVERY * sum(len(session.unsettled) for session in self.sessions.values())

    def forget_session(self, number: int) -> None:
        self.sessions.pop(number, None)

    def may_send(self) -> None:
        starving, self.starving = self.starving, {}
        feed(starving)
        for session in self.sessions.values():
            session.finish_drains()

    def start_heartbeats(self, seconds: int) -> None:
        """Send heartbeats at this interval (0 for none), and expect frames from the client at the broker's interval."""
        self.heartbeat = seconds
        self._heard_at = self._sent_at = self._loop.time()
        self._check_heartbeat()

    def _check_heartbeat(self) -> None:
        now = self._loop.time()
        if self.may_read and now - self._heard_at > _IDLE_SECONDS:
            error = "no frame received from client within idle timeout threshold"
            self.close_with(Error(LIMIT_EXCEEDED, error))
            return
        if self.heartbeat and now - self._sent_at >= self.heartbeat / 2:
            self.write(HEARTBEAT)
        self._beat = self._loop.call_later((self.heartbeat or _IDLE_SECONDS) / 2, self._check_heartbeat)

    def block(self) -> None:
        """Do nothing: during an alarm, sessions close their windows instead, and acknowledgements are still read."""

    def unblock(self) -> None:
        """Reopen the sessions' windows: the last alarm is over."""
        super().unblock()
        for session in self.sessions.values():
            session.reopen_window()

    def check_consumers(self, timeout: float) -> None:
        """Release deliveries unsettled for longer than `timeout` seconds (see Amqp10Session.check_overdue)."""
        for session in list(self.sessions.values()):
            session.check_overdue(timeout)

    def failed(self, error: Exception) -> None:
        if not isinstance(error, Amqp10Error):
            log.exception("AMQP 1.0 connection %s: internal error", self.name)
            error = ConnectionError10(INTERNAL_ERROR, "internal error")
        self.close_with(error.error)

    def force_close(self, reason: str) -> None:
        """Close the connection on behalf of an operator."""
        self.close_with(Error(INTERNAL_ERROR, f'Connection forced: "{reason}"'))

    def close(self, error: AmqpException) -> None:
        """Close the connection with the error that an injected fault specifies."""
        condition, description = condition_of(error)
        self.close_with(Error(condition, description))

    def close_with(self, error: Error) -> None:
        """Send a close frame and wait for the client's. Before the connection is open, close the socket without one."""
        if self.state in ("closing", "closed"):
            return
        self.log_once_a_second(logging.WARNING, error.condition, error.description or error.condition)
        if self.state != "open":
            self.hang_up()
            return
        self.shut()
        self.state = "closing"
        self.send(0, Close(error))
        self.set_deadline(_CLOSING_SECONDS)

    def _close_received(self) -> None:
        if self.state != "closing":
            self.shut(Why.CLOSED)
            self.send(0, Close())
        self.hang_up()

    def shut(self, why: Why = Why.LOST) -> None:
        """End the sessions and delete the exclusive queues."""
        self.stop_heartbeats()
        sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            session.shut(why)
        queues, self.exclusive_queues = self.exclusive_queues, WeakSet()
        for queue in queues:
            self.vhost.deletions.soon(queue)
