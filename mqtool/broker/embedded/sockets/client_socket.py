"""Base classes of client connections for all protocols: reading, writing, flow control, heartbeats and timeouts."""

import asyncio
import ipaddress
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from mqtool.broker.embedded.model.broker import NODE, Broker
from mqtool.broker.embedded.model.clock import TURN_SECONDS, Clock
from mqtool.broker.embedded.model.footprint import of_properties
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.sockets.listener import Connections, Repetitions, caused_by
from mqtool.codecs.field_tables import Table

log = logging.getLogger("mqtool.broker.embedded")
log.addFilter(Repetitions())

_HANDSHAKE_SECONDS = 10.0
_LOGGED_CHARACTERS = 500

#: If more bytes than this are unsent, the broker stops reading from a client, and stops handling frames already read.
UNSENT_LIMIT = 16 * 1024 * 1024

#: An incomplete frame of up to this many bytes does not count towards the memory limit.
_FEW_BYTES = 4096

#: An incomplete frame larger than this can only be part of a publish, so its client is blocked during an alarm.
_LARGE_FRAME = 1024 * 1024


class PacedSocket(asyncio.Protocol, ABC):
    """Splits incoming bytes into frames, combines outgoing bytes into one write, and applies flow control to both.

    Frames that take long are handled in turns: after a while, the broker serves other clients before it goes on.

    Args:
        clock: measures how long a turn takes, and gives the next one.
        state: the initial state.
        need: the minimum size of the first frame, in bytes.

    Attributes:
        enough_out: deliveries pause while more than this many bytes wait to be sent.
        state: the frame that the handshake waits for; later `open`, `closing` (close was sent) or `closed`.
        blocked: True while the broker does not read from the client because of an alarm.
        writable: True if more deliveries can be sent to the client.
        received_bytes, sent_bytes: total bytes in each direction.
        now: returns the time on the event loop's clock, in seconds.
    """

    enough_out: ClassVar[int]
    transport: asyncio.Transport

    def __init__(self, clock: Clock, state: str, need: int) -> None:
        self.state = state
        self.blocked = False
        self.writable = True
        self.received_bytes = self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._clock = clock
        self._turn_ends = 0.0
        self._waits = False
        self._steps: Iterator[object] | None = None
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = need
        self._has_whole_frames = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._paused = False
        self._output_pauses = 0
        self._hanging_up = False
        self._heard_at = self._sent_at = 0.0

    @abstractmethod
    def take_bytes(self, data: bytes) -> int:
        """Handle the complete frames in `data` until `must_pause` is true; set `_need` to the size of the next frame.

        Returns:
            The number of bytes handled.
        """

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Close the connection because a frame could not be handled."""

    @abstractmethod
    def may_send(self) -> None:
        """Resume deliveries: the client has read enough of the output."""

    @abstractmethod
    def count_held(self) -> None:
        """Update the count of input and output bytes that are kept in memory for the client."""

    def data_received(self, data: bytes) -> None:
        """Receive bytes from the client, and handle them once a frame is complete."""
        self.heard()
        self.received_bytes += len(data)
        if self._chunks or self._waits:
            self._chunks.append(data)
            self._have += len(data)
            self._has_whole_frames |= self._waits
            if self._have < self._need or self._has_whole_frames:
                self.count_held()
                return
            data = b"".join(self._chunks)
        self.handle(data)

    def handle(self, data: bytes) -> None:
        """Handle complete frames until `must_pause` becomes true, and keep the rest of the data for later."""
        clock = self._clock
        if clock.is_late and len(data) >= self._need:
            # Many clients can send at once: one that has had no turn yet gets the next one.
            self._chunks, self._have, self._has_whole_frames = [data], len(data), True
            self._wait()
            return
        began = clock.elapsed()
        self._turn_ends = began + TURN_SECONDS
        if len(data) >= self._need:
            try:
                data = data[self.take_bytes(data) :]
            except Exception as error:
                data = b""
                self.failed(error)
            clock.spend(clock.elapsed() - began)
        self._has_whole_frames = bool(data) and self.must_pause
        self._chunks = [data] if data else []
        self._have = len(data)
        if self._have > _FEW_BYTES:
            self.count_held()
        if self._steps is not None or (self._has_whole_frames and self._out_bytes <= UNSENT_LIMIT):
            self._wait()

    @property
    def must_pause(self) -> bool:
        """True if no further frame may be handled now.

        The current frame takes more than one turn, the turn is over, or more than 16 MiB of output wait for the flush.
        """
        return self._steps is not None or self._out_bytes > UNSENT_LIMIT or self._clock.elapsed() > self._turn_ends

    def work(self, steps: Iterator[object]) -> None:
        """Handle a frame that may take long, in as many turns as necessary. The frames after it wait.

        If the socket closes meanwhile, the work is still completed.

        Args:
            steps: does the work. Each step must be short.
        """
        try:
            for _ in steps:
                if self._clock.elapsed() > self._turn_ends:
                    self._steps = steps
                    return
        except Exception as error:
            self._steps = None
            self.failed(error)
        self._steps = None

    def _wait(self) -> None:
        """Wait for the next turn. Do not read from the client meanwhile."""
        if not self._waits:
            self._waits = True
            self.pace()
            self._clock.take_turn(self.go_on)

    def go_on(self) -> None:
        """Take the next turn: continue with the current frame or, after it, with the next ones."""
        self._waits = False
        self.heard()
        if self._steps is not None:
            self._turn_ends = self._clock.elapsed() + TURN_SECONDS
            self.work(self._steps)
        if self._steps is not None:
            self._wait()
        else:
            self.pace()

    @property
    def may_read(self) -> bool:
        """False while the broker does not read from this client because of an alarm."""
        return not self.blocked

    def pace(self) -> None:
        """Pause reading if the client is blocked or has too much unread output; otherwise resume reading."""
        if self.transport.is_closing():
            return
        if self._waits or not self.may_read or self.transport.get_write_buffer_size() > UNSENT_LIMIT:
            self.transport.pause_reading()
            return
        self.transport.resume_reading()
        if self._has_whole_frames:
            self._has_whole_frames = False
            self.handle(b"".join(self._chunks))

    def write(self, data: bytes) -> None:
        """Send bytes at the end of this event loop iteration, in a single write with all other output."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > self.enough_out:
            self.writable = False
        if not self._flushing:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Send all written bytes at the end of this event loop iteration."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def before_flush(self) -> None:
        """Write data that was deferred until the next flush. Called before each flush."""

    def _flush(self) -> None:
        if self._output_pauses:
            self._flushing = False
            return
        self.before_flush()
        self._flushing = False  # only now, so that before_flush() does not schedule another flush
        if self._out and not self.transport.is_closing():
            self._sent_at = self._loop.time()
            self.sent_bytes += self._out_bytes
            self.transport.write(b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0
        self.count_held()
        self._writable_again()
        self.pace()
        if self._hanging_up:
            self.transport.close()

    def pause_output(self) -> None:
        """Hold all output back until resume_output() has been called as often as pause_output()."""
        self._output_pauses += 1

    def resume_output(self) -> None:
        """Undo one call of pause_output(). Once all of them are undone, send the output held back."""
        self._output_pauses -= 1
        if not self._output_pauses:
            self.flush_soon()

    def pause_writing(self) -> None:
        """Stop deliveries: the client reads its output too slowly."""
        self._paused = True
        self.writable = False

    def resume_writing(self) -> None:
        """Resume deliveries: the client has read enough of the output."""
        self._paused = False
        self.count_held()
        self._writable_again()
        self.pace()

    def _writable_again(self) -> None:
        if not self.writable and not self._paused:
            self.writable = True
            self.may_send()

    def heard(self) -> None:
        """Record the time at which the client sent something, for the heartbeat check."""
        self._heard_at = self._loop.time()

    def hang_up(self) -> None:
        """Close the socket once all output has been sent."""
        self.state = "closed"
        self._hanging_up = True
        self._flush()


def keep_properties(connection: "ClientSocket", properties: Table) -> None:
    """Set the properties that a client has sent about itself, and count their memory."""
    connection.add_held_bytes(of_properties(properties) - of_properties(connection.client_properties))
    connection.client_properties = properties


class ClientSocket(PacedSocket):
    """The base class of client connections, from the handshake until the socket closes.

    Args:
        broker: the broker.
        connections: the open connections of this protocol, including this one while its socket is open.

    Attributes:
        protocol: the protocol's name in the management API.
        heartbeat_frame: the bytes of a heartbeat.
        user, vhost, rights: the logged-in user, the virtual host and the user's permissions; set by the handshake.
        peer, local: the host and port of the client, and those of the broker.
        held_bytes: bytes kept in memory for the client: unread output, incomplete messages, uncommitted transactions,
            unacknowledged deliveries, consumers and links.
        connected_at: when the client connected, in seconds since 1970.
        heartbeat: the negotiated heartbeat interval in seconds; 0 for no heartbeats.
        is_lost: True once the socket has closed, although cleaning up may take more turns.
    """

    protocol: ClassVar[str]
    heartbeat_frame: ClassVar[bytes]
    user: User
    vhost: VirtualHost
    rights: Rights

    # Any: each subclass has a set of its own type.
    def __init__(self, broker: Broker, connections: Connections[Any], state: str, need: int) -> None:
        super().__init__(broker.clock, state, need)
        self.broker = broker
        self.is_lost = self._was_open = False
        self.peer: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self.client_properties: Table = {}
        self.held_bytes = 0
        self._held_by_socket = self._counted_bytes = 0
        self.connected_at = broker.clock.wall() / 1000
        self.heartbeat = 0
        self._connections = connections
        self._beat: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @abstractmethod
    def shut(self) -> None:
        """Release everything that belongs to the connection, such as channels and consumers."""

    @property
    def kept_bytes(self) -> int:
        """The memory of what clients may have many of, such as unacknowledged deliveries. Part of `held_bytes`."""
        return 0

    def add_held_bytes(self, count: int) -> None:
        """Add `count`, negative for freed memory, to `held_bytes` and to the bytes that the limits apply to."""
        self.held_bytes += count
        self.broker.hold_for_client(count)

    def count_held(self) -> None:
        if (kept := self.kept_bytes) != self._counted_bytes:
            more, self._counted_bytes = kept - self._counted_bytes, kept
            self.add_held_bytes(more)
        held = self.transport.get_write_buffer_size()
        if self._have > _FEW_BYTES:
            held += self._have
        if held != self._held_by_socket:
            more, self._held_by_socket = held - self._held_by_socket, held
            self.add_held_bytes(more)
        if self._have > _LARGE_FRAME and self.broker.alarms:
            self.block()

    def block(self) -> None:
        """Stop reading from the client, a publisher, until the last alarm is over."""
        self.blocked = True
        self.pace()

    def unblock(self) -> None:
        """Resume reading: the last alarm is over."""
        self.blocked = False
        self.heard()
        self.pace()

    @property
    def takes_replies(self) -> bool:
        """True if at most 16 MiB of unsent output and incomplete input are held for the client."""
        return self._out_bytes + self._held_by_socket <= UNSENT_LIMIT

    @property
    def name(self) -> str:
        """The connection's name as in RabbitMQ: `HOST:PORT -> HOST:PORT`."""
        return f"{self.peer[0]}:{self.peer[1]} -> {self.local[0]}:{self.local[1]}"

    @property
    def pid(self) -> str:
        """A name for the connection that looks like that of an Erlang process, for events."""
        return f"<{NODE}.{int(self.connected_at)}.{self.peer[1]}.0>"

    def opened(self) -> None:
        """Serve the client: the handshake is done."""
        self.state = "open"
        self._was_open = True
        protocol = {"AMQP 0-9-1": "{0,9,1}", "AMQP 1-0": "{1,0}"}.get(self.protocol, self.protocol)
        self.broker.announce(
            "connection.created",
            **self._identity(),
            vhost=self.vhost.name,
            user=self.user.name,
            user_who_performed_action=self.user.name,
            protocol=protocol,
            type="network",
            ssl=self.transport.get_extra_info("cipher") is not None,
            port=self.local[1],
            peer_port=self.peer[1],
            timeout=self.heartbeat,
            connected_at=int(self.connected_at * 1000),
        )

    def _identity(self) -> Table:
        """Return the fields that the events of a connection share."""
        name = self.client_properties.get("connection_name")
        return {
            "name": self.name,
            "node": NODE,
            "pid": self.pid,
            "client_properties": self.client_properties,
            **({"user_provided_name": name} if isinstance(name, str) else {}),
        }

    @property
    def is_open(self) -> bool:
        """True from the end of the handshake until either side starts to close the connection."""
        return self.state == "open"

    @property
    def from_loopback(self) -> bool:
        """True if the client is on this machine."""
        return ipaddress.ip_address(self.peer[0].partition("%")[0]).is_loopback

    def set_user(self, user: User) -> None:
        """Set the logged-in user. The connection no longer counts towards the limit of connections without a login."""
        self.user = user
        self._connections.allow(self)

    def log_once_a_second(self, level: int, cause: str, text: str, *, often: bool = False) -> None:
        """Log a message about the connection. Unless it is open, log only one line a second for each cause.

        Args:
            level: the level, such as logging.WARNING.
            cause: one of a few fixed strings, which identifies messages of the same kind.
            text: the message, which is cut to 500 characters. All characters except printable ASCII are escaped, so
                that names chosen by clients can neither forge log lines nor control a terminal.
            often: True if an open connection may cause it again and again; it is then limited, too.
        """
        shown = ascii(text[:_LOGGED_CHARACTERS])[1:-1]
        extra = None if self.is_open and not often else caused_by(f"{self.protocol} {cause}")
        log.log(level, "%s connection %s: %s", self.protocol, self.name, shown, extra=extra)

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set up a new connection, and start the time limit for its handshake."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = self._socket = transport
        transport.set_write_buffer_limits(high=self.enough_out)
        peer = transport.get_extra_info("peername")
        # A socket that is already closed has no addresses.
        if peer:
            self.peer = (str(peer[0]), int(peer[1]))
            self.local = transport.get_extra_info("sockname")[:2]
        self._connections.add(self)
        self.set_deadline(_HANDSHAKE_SECONDS)
        if self.broker.hooks is not None:
            self.broker.hooks.connected(self)

    def hand_over(self, successor: "ClientSocket", data: bytes) -> None:
        """Transfer the socket to a connection of another protocol: the one used in `data`, the client's first bytes."""
        self.set_deadline(None)
        self.state = "closed"
        self._connections.remove(self)
        self.add_held_bytes(-self.held_bytes)
        self._socket.set_protocol(successor)
        successor.connection_made(self._socket)
        successor.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the socket has closed. If many are lost at once, each with many channels, they take turns."""

        def clean_up() -> None:
            self.shut()
            if self._was_open:
                self.broker.announce("connection.closed", **self._identity())
            self._out.clear()
            self._connections.remove(self)
            self._chunks, self._have, self._held_by_socket, self._counted_bytes = [], 0, 0, 0
            self.add_held_bytes(-self.held_bytes)

        if exc is not None:
            self.log_once_a_second(logging.INFO, "lost", f"connection lost: {exc}")
        self.set_deadline(None)
        self.stop_heartbeats()
        self.state = "closed"
        self.is_lost = True
        self.pause_writing()  # until it is cleaned up, its consumers take no message
        if self._clock.is_late:
            self._clock.take_turn(clean_up)
        else:
            began = self._clock.elapsed()
            clean_up()
            self._clock.spend(self._clock.elapsed() - began)

    def handle(self, data: bytes) -> None:
        """Handle complete frames. If they change durable definitions, send the replies once the changes are on disk."""
        saved = self.broker.ledger.definitions_saved
        super().handle(data)
        self.count_held()
        self._hold_replies_back(saved)

    def go_on(self) -> None:
        saved = self.broker.ledger.definitions_saved
        super().go_on()
        self.count_held()
        self._hold_replies_back(saved)

    def _hold_replies_back(self, saved: int) -> None:
        """Hold output back until the definitions that were saved since there were `saved` ones are on disk."""
        ledger = self.broker.ledger
        if ledger.definitions_saved != saved:
            self.pause_output()
            ledger.after_commit(self.resume_output)

    def set_deadline(self, seconds: float | None) -> None:
        """Close the socket after this many seconds, or never (None). Replaces any previous deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self._loop.call_later(seconds, self._out_of_time)

    def _out_of_time(self) -> None:
        if self.state not in ("closing", "closed"):
            self.log_once_a_second(logging.WARNING, "timeout", "handshake timed out")
        self.transport.abort()

    def start_heartbeats(self, seconds: int) -> None:
        """Start to send and expect heartbeats, at this interval; 0 for no heartbeats."""
        self.heartbeat = seconds
        if seconds:
            self._heard_at = self._sent_at = self._loop.time()
            self._beat = self._loop.call_later(seconds / 2, self._check_heartbeat)

    def stop_heartbeats(self) -> None:
        """Stop sending and expecting heartbeats."""
        if self._beat is not None:
            self._beat.cancel()

    def _check_heartbeat(self) -> None:
        now = self._loop.time()
        if self.may_read and not self._waits and now - self._heard_at > self.heartbeat * 2:
            log.warning("%s connection %s: missed heartbeats from client", self.protocol, self.name)
            self.transport.abort()
            return
        if now - self._sent_at >= self.heartbeat / 2:
            self.write(self.heartbeat_frame)
        self._beat = self._loop.call_later(self.heartbeat / 2, self._check_heartbeat)
