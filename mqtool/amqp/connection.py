"""Connection: pika's SelectConnection on its own I/O thread, reopened when it is lost.

The I/O thread sends heartbeats while the caller works for minutes, receives confirms while the caller publishes, and
detects a lost connection at once. A third thread, which may block, reopens the connection and then ends.
"""

import math
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, Self

from pika import ConnectionParameters, PlainCredentials, SSLOptions, exceptions
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel as PikaChannel
from pika.connection import Connection as PikaConnection

from mqtool.address import Address, TlsFiles
from mqtool.amqp import pika_errors
from mqtool.amqp.channel import Channel
from mqtool.amqp.io_thread import Answer, IoThread
from mqtool.amqp.pika_private import CONNECTION, CertificateFirst, failure_of, received_at
from mqtool.duration import Backoff, is_news
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import CONFIRM_TIMEOUT
from mqtool.silence import Silence
from mqtool.spelling import counted

_CLOSE_PATIENCE, _HOPELESS_PATIENCE = 2.0, 0.2
#: Reply codes with which a broker closes a connection because of a client error that would occur again.
_OUR_FAULT = range(402, 600)
_INTERNAL_ERROR = 541
#: Seconds to wait while the other nodes of a cluster elect new leaders for their queues. In RabbitMQ 3.10, a client
#: that publishes or consumes earlier may be blocked for half a minute.
_ELECTION = 2.0

#: Seconds after which an idle connection counts as stable, so that the next loss starts with a short delay again.
_STEADY = 60.0


class State(Enum):
    """The state of a connection."""

    OPENING = auto()
    OPEN = auto()
    LOST = auto()  # and being reopened
    FAILED = auto()  # for good
    CLOSING = auto()
    CLOSED = auto()


class Connection:
    """A connection to a broker, kept open until it is closed, and reopened after broker restarts and network failures.

    Attributes:
        notice: called with a sentence for the user, for example when the connection is lost.
        io: the I/O thread.
        comes_back: True if the connection is reopened after a loss.
        has_progressed: True if a message was confirmed or a delivery acknowledged since the connection was opened.
        lacks_a_node: True if a node could not be reached when the connection was opened.
        cluster: identifies the broker and the virtual host.
        silence: how long the broker has not replied.
        stopping: True if the command must stop, and must not wait for a broker that cannot reply.
        deadline: the time (`time.monotonic()`) from which on it must not wait for such a broker.

    Args:
        addresses: the nodes of one broker, tried in turn.
        tls: files for amqps addresses.
        name: the connection's name in the broker's own lists.
        backoff: the delays between attempts to reconnect. They start over after a confirm, an acknowledgement or a
            stable minute. None never reconnects.
        first: the command's first connection, which is told when the command must stop.

    Raises:
        Unavailable: no node can be reached.
        AccessRefused: the broker rejects the user or the vhost.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        tls: TlsFiles | None = None,
        name: str = "mqtool",
        backoff: Backoff | None = None,
        notice: Callable[[str], None] = lambda _: None,
        first: "Connection | None" = None,
    ) -> None:
        self.notice = notice
        self._first = first
        self._addresses = list(addresses)
        self._tls = tls or TlsFiles()
        self._tls_context = self._tls.context() if any(address.tls for address in addresses) else None
        self._name = name
        self.comes_back = backoff is not None
        self._backoff = backoff
        self._attempts: Iterator[tuple[int, float]] = iter(())
        self._lost_by = _INTERNAL_ERROR  # the first connection counts as one that follows such an error
        self.has_progressed = True
        self.lacks_a_node = False
        self._opened_at = time.monotonic()
        self.stopping = False
        self.deadline = math.inf
        self.silence = Silence()
        self.cluster = ""
        self._is_blocked = False
        self._channels: list[Channel] = []
        self._pika: SelectConnection | None = None
        self._state = State.OPENING
        self._changed = threading.Condition()
        self._failure: MqtoolError | None = None
        self._recovery: threading.Thread | None = None
        self.io = IoThread(self._broke_down)
        try:
            self._open()
            if not self._is_set_up():
                raise Unavailable(f"the connection to {self._addresses[0]} was lost as soon as it was open")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def channel(
        self, *, strict: bool = False, mandatory: bool = False, confirm_timeout: float = CONFIRM_TIMEOUT
    ) -> Channel:
        """Open a channel.

        Args:
            strict: reject any difference between what is declared and what exists.
            mandatory: have the broker return unroutable messages.
            confirm_timeout: publishing gives up after this many seconds without any confirm. Time without a
                connection, or while the broker blocks publishers, does not count.

        Raises:
            MqtoolError: the connection was lost for good.
        """
        channel = Channel(self, strict=strict, mandatory=mandatory, confirm_timeout=confirm_timeout)
        with self._changed:
            state = self._state
            if state not in (State.OPEN, State.LOST):
                raise self._failure or Unavailable("the connection is closed")
            self._channels.append(channel)
        try:
            if state is State.OPEN:
                channel.reopening.open()
        except exceptions.AMQPError:
            pass  # the connection was lost; its recovery opens the channel, too
        channel.reopening.wait_until_ready()
        return channel

    def beside(self) -> "Connection":
        """Open a separate connection, without reconnection, for requests that may make the broker close it."""
        return Connection(self._addresses, tls=self._tls, name=self._name, first=self)

    @property
    def broker(self) -> str:
        """The broker's product name and version, such as "RabbitMQ 4.2.1"."""
        told = (self._pika.server_properties if self._pika else None) or {}
        return f"{told.get('product', 'the broker')} {told.get('version', '')}".strip()

    @property
    def broker_to_show(self) -> str:
        """The broker's name to show to users. The embedded broker claims to be RabbitMQ, since clients rely on that."""
        told = (self._pika.server_properties if self._pika else None) or {}
        return "the embedded broker" if "embedded broker" in str(told.get("information", "")) else self.broker

    def stop(self) -> None:
        """Stop waiting for a broker that cannot reply. Safe from any thread or signal handler."""
        self.stopping = True

    def close(self) -> None:
        """Close the connection. Unacknowledged deliveries are requeued."""

        def close_pika() -> None:
            if self._pika is not None and self._pika.is_open:
                self._pika.close()

        with self._changed:
            if self._state is State.CLOSED:
                return
        for channel in self._channels:
            channel.reopening.tell(lambda listener: listener.closing())
        is_silent = any(channel.reopening.requests.is_unanswered for channel in self._channels)
        patience = _HOPELESS_PATIENCE if self.hopeless or is_silent else _CLOSE_PATIENCE
        with self._changed:
            self._become(State.CLOSING)
            recovery = self._recovery
        if recovery is not None:
            recovery.join(patience)
        if self._pika is not None:
            self.io.run(close_pika)
            with self._changed:
                self._changed.wait_for(lambda: self._pika is None, patience)
        self.io.stop()
        with self._changed:
            self._become(State.CLOSED)
        for channel in self._channels:
            channel.reopening.fail(Unavailable("the connection is closed"))

    # For channels.

    @property
    def frame_max(self) -> int:
        """The maximum size of a frame in bytes, as negotiated with the broker."""
        pika = self._pika  # the I/O thread may lose it at any time
        return int(pika.params.frame_max) if pika else 0

    @property
    def must_stop(self) -> bool:
        """True if the command must stop, because of a signal or its own time limit."""
        is_told = self.stopping or time.monotonic() >= self.deadline
        return is_told or (self._first is not None and self._first.must_stop)

    @property
    def hopeless(self) -> str | None:
        """Why the command must stop without waiting for the broker ("the connection is lost"); None if it need not.

        Ask repeatedly while waiting for the broker: if it is frozen, or the network is gone, this is how it shows.
        """
        if not self.must_stop:
            return None
        if self._state is State.LOST:
            return "the connection is lost"
        if self._is_blocked:
            return "the broker blocks publishers"
        pika = self._pika
        return "the broker does not reply" if self.silence.lasts(pika.bytes_received if pika else 0) else None

    def open_pika_channel(self, on_open: Callable[[PikaChannel], None]) -> PikaChannel:
        """Start opening a channel. Call it on the I/O thread.

        Raises:
            pika.exceptions.AMQPError: the connection is not open.
        """
        if self._pika is None or not self._pika.is_open:
            raise exceptions.ConnectionWrongStateError
        return self._pika.channel(on_open_callback=on_open)

    # Opening.

    def _open(self) -> None:
        """Connect to the first node that accepts, and try it first from then on. If none does, raise one's error."""
        failure: MqtoolError | None = None
        for address in self._addresses:
            try:
                self._open_to(address)
            except MqtoolError as error:
                if failure is None or isinstance(failure, Unavailable):  # a refusal says more than a node that is down
                    failure = error
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                self.lacks_a_node = failure is not None
                return
        raise failure or Unavailable("no address to connect to")

    def _open_to(self, address: Address) -> None:
        by_certificate = self._tls.logs_in(address)
        parameters = parameters_for(address, self._tls_context, self._name, by_certificate=by_certificate)
        opened: Answer[None] = Answer()
        tried: list[SelectConnection] = []

        def on_open(pika: SelectConnection) -> None:
            self._pika = pika
            self.cluster = address.cluster((pika.server_properties or {}).get("cluster_name"))
            opened.give(None)

        def start() -> None:
            try:
                pika = CONNECTION(
                    parameters,
                    on_open_callback=on_open,
                    on_open_error_callback=lambda _, error: opened.refuse(error),
                    on_close_callback=self._on_close,
                    custom_ioloop=self.io.loop,
                )
                tried.append(pika)
                pika.add_on_connection_blocked_callback(self._on_blocked)
                pika.add_on_connection_unblocked_callback(self._on_unblocked)
            except Exception as error:  # raised below, in the thread that opens
                opened.refuse(error)

        self.io.run(start)
        try:
            for _ in self.silence.until(lambda: self.io.has_given(opened), lambda: self.must_stop):
                pass
            opened.result()
        except MqtoolError:
            raise
        except Exception as error:
            if self._failure is not None:  # the I/O thread has died
                raise self._failure from error
            # Without pika's private methods, this is unknown, and taken to be true.
            has_answered = any(map(received_at, tried))
            if pika_errors.is_cut_off(error, has_answered=has_answered):
                if self._state is not State.OPENING:
                    raise Unavailable(
                        f"{address.host}:{address.port} closed the connection before it was open"
                    ) from error
                raise pika_errors.closed_early(address) from error
            raise pika_errors.connecting(error, address) from error

    # States.

    def _become(self, state: State) -> None:
        """Change the state, unless the connection is being closed. The caller holds the lock."""
        if self._state is not State.CLOSING or state is State.CLOSED:
            self._state = state
            self._changed.notify_all()

    def _is_set_up(self) -> bool:
        """Set the state to OPEN if the connection and all channels are open; return True if so."""
        with self._changed:
            if self._pika is None or _unopened(self._channels):
                return False
            self._become(State.OPEN)
            return True

    def _on_close(self, pika: PikaConnection, error: BaseException) -> None:
        """Handle the end of an open connection. Runs on the I/O thread."""
        with self._changed:
            if pika is not self._pika:
                return
            self._pika = None
            self._is_blocked = False
            self._changed.notify_all()
            state = self._state
        if state in (State.CLOSING, State.FAILED):
            return
        if (failure := failure_of(pika)) is not None:
            self._fail(failure)
            return
        code = getattr(error, "reply_code", 0)
        # An internal error would occur again if the cause was a message that is published again, or what a command does
        # first on a new connection, which is not set up yet if the last one is still lost.
        is_young = state is State.LOST or time.monotonic() - self._opened_at < _STEADY
        is_new = is_young and self._lost_by == _INTERNAL_ERROR
        is_ours = is_new or any(channel.in_flight for channel in self._channels)
        recurs = code in _OUR_FAULT and not (code == _INTERNAL_ERROR and (_drop_replies(self._channels) or not is_ours))
        self._lost_by = code
        if state is not State.OPENING and (self._backoff is None or recurs):
            self._fail(pika_errors.closed_by_broker(error))
            return
        unconfirmed = sum(channel.in_flight for channel in self._channels)
        for channel in self._channels:
            channel.reopening.lost()
        with self._changed:
            if self._state is State.OPEN and self._backoff is not None:
                self._become(State.LOST)
                how = (error, self._backoff, unconfirmed)
                self._recovery = threading.Thread(target=self._recover, args=how, daemon=True)
                self._recovery.start()  # within the lock: close() may join it

    def _recover(self, error: BaseException, backoff: Backoff, unconfirmed: int) -> None:
        """Try to reopen the connection and its channels until the attempts run out. Runs on its own thread.

        Args:
            unconfirmed: the number of unconfirmed messages when the connection was lost, which are republished.
        """
        lost_at = time.monotonic()
        where, lost = str(self._addresses[0]), self._addresses[0]
        why = str(pika_errors.closed_by_broker(error)).removeprefix("the connection was lost: ")
        self.notice(f"lost the connection to {where}: {why}")
        if self.has_progressed or lost_at - self._opened_at > _STEADY:
            self._attempts, self.has_progressed = enumerate(backoff.delays(), 1), False
        said = ""
        for attempt, delay in self._attempts:
            if self._is_over_within(delay):
                return
            try:
                if self._pika is None:
                    self._open()
                    if self._addresses[0] != lost and self._is_over_within(_ELECTION):
                        return
                self._set_up_again()
            except (Unavailable, exceptions.AMQPError) as failure:
                if is_news(attempt, words := pika_errors.in_words(failure), said):
                    self.notice(f"attempt {attempt} to reconnect failed: {words}")
                said = words
            except MqtoolError as failure:
                self._fail(failure)
                return
            else:
                self._opened_at = time.monotonic()
                again = f"; {counted(unconfirmed)} republished, which may be stored twice" if unconfirmed else ""
                self.notice(f"connected again to {self._addresses[0]} after {self._opened_at - lost_at:.1f} s{again}")
                return
        self._fail(Unavailable(f"gave up reconnecting to {where} after {backoff.attempts} attempts"))

    def _set_up_again(self) -> None:
        while not self._is_set_up():
            if self._pika is None:
                raise exceptions.ConnectionWrongStateError  # it was lost again
            for channel in _unopened(self._channels):
                channel.reopening.open(connection_is_new=True)

    def _is_over_within(self, seconds: float) -> bool:
        """Wait for a number of seconds; return True early if the connection is closed in the meantime."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state is not State.LOST, seconds)

    def _fail(self, failure: MqtoolError) -> None:
        with self._changed:
            self._failure = failure
            self._become(State.FAILED)
        for channel in self._channels:
            channel.reopening.fail(failure)

    def _broke_down(self, error: Exception) -> None:
        """Handle the failure of a callback, which has ended the I/O thread."""
        self._pika = None
        self._fail(MqtoolError(f"the connection broke down: {error!r}", "this is a bug in mqtool; please report it"))

    def _on_blocked(self, _pika: SelectConnection, frame: Any) -> None:
        self._is_blocked = True
        self.notice(f"the broker blocks publishers ({frame.method.reason}); waiting until it unblocks them")
        for channel in self._channels:
            channel.reopening.tell(lambda listener: listener.paused())

    def _on_unblocked(self, _pika: SelectConnection, _frame: Any) -> None:
        self._is_blocked = False
        self.notice("the broker has unblocked publishers")
        for channel in self._channels:
            channel.reopening.tell(lambda listener: listener.resumed())


def parameters_for(
    address: Address, tls: "ssl.SSLContext | None", name: str, *, by_certificate: bool
) -> ConnectionParameters:
    """Return pika's parameters for a connection. With `by_certificate`, log in with the client's certificate."""
    options: dict[str, Any] = {}
    if address.heartbeat is not None:
        options["heartbeat"] = address.heartbeat
    if address.tls and tls is not None:
        options["ssl_options"] = SSLOptions(tls, address.host)
    return ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.virtual_host,
        credentials=(CertificateFirst if by_certificate else PlainCredentials)(address.user, address.password),
        connection_attempts=1,
        socket_timeout=address.connection_timeout,
        stack_timeout=address.connection_timeout * 2,
        client_properties={"product": "mqtool", "connection_name": name},
        **options,
    )


def _unopened(channels: Iterable[Channel]) -> list[Channel]:
    return [channel for channel in channels if not (channel.reopening.is_ready or channel.reopening.failure)]


def _drop_replies(channels: Iterable[Channel]) -> bool:
    """Drop unconfirmed replies, which may have caused an internal error. Return False if there are none."""
    have_dropped = [channel.replies.drop() for channel in channels if channel.replies is not None]
    return any(have_dropped)
