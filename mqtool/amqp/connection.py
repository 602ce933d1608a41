"""A connection: pika's SelectConnection on an I/O thread of its own, reopened when it is lost.

The I/O thread answers heartbeats while the caller works for minutes, hears confirms while it publishes, and notices a
lost connection at once. Reopening happens on a third thread, which lives only that long, so that it may simply wait.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from pika import ConnectionParameters, PlainCredentials, SSLOptions, exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel as PikaChannel
from pika.connection import Connection as PikaConnection

from mqtool.amqp import failures
from mqtool.amqp.address import Address, TlsFiles
from mqtool.amqp.answer import Answer
from mqtool.amqp.backoff import Backoff
from mqtool.amqp.channel import CONFIRM_TIMEOUT, Channel
from mqtool.amqp.field_table import mend_pika
from mqtool.errors import AccessRefused, MqtoolError, Unavailable

_CLOSE_PATIENCE = 2.0
#: Reply codes with which a broker closes a connection for what we did; opening it again would end the same way.
_OUR_FAULT = range(402, 600)
_FORCED_BY_OPERATOR = 320
#: Seconds that the nodes left of a cluster get to choose other leaders for their queues. In RabbitMQ 3.10, who
#: publishes or consumes meanwhile may have to wait for half a minute.
_ELECTION = 2.0

mend_pika()
# pika logs what it also raises; whoever wants to read both asks for it (--debug).
logging.getLogger("pika").addHandler(logging.NullHandler())


class Connection:
    """A connection to a broker, open until it is closed, through broker restarts and network failures.

    Args:
        addresses: the nodes of one broker, tried in turn.
        tls: files for amqps addresses.
        name: how the broker's own listings show this connection.
        backoff: when to try again after a loss; None never does.
        notice: is told, in a sentence, what a person at a terminal should know.

    Raises:
        Unavailable, AccessRefused: there is no way in, said at once.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        tls: TlsFiles | None = None,
        name: str = "mqtool",
        backoff: Backoff | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.notice = notice
        self._addresses = list(addresses)
        self._tls_files = tls
        self._tls = (tls or TlsFiles()).context() if any(address.tls for address in addresses) else None
        self._name = name
        self._backoff = backoff
        self._channels: list[Channel] = []
        self._pika: SelectConnection | None = None
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._steady = threading.Event()
        self._failure: MqtoolError | None = None
        self._recovery: threading.Thread | None = None
        self._is_recovering = False
        self._losing = threading.Lock()
        self._was_let_in = False
        self._ioloop = IOLoop()
        self._thread = threading.Thread(target=self._run_loop, name="mqtool-amqp", daemon=True)
        self._thread.start()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._was_let_in = True
        self._steady.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def channel(
        self, *, strict: bool = False, mandatory: bool = False, confirm_timeout: float = CONFIRM_TIMEOUT
    ) -> Channel:
        """Open a channel.

        Args:
            strict: take nothing that is declared differently, not even harmlessly.
            mandatory: have the broker return messages that no queue gets.
            confirm_timeout: seconds without any confirm after which publishing gives up. The time when there is no
                connection, or when the broker blocks publishers, does not count.
        """
        channel = Channel(self, strict, mandatory, confirm_timeout)
        channel.open()
        self._channels.append(channel)
        return channel

    def beside(self) -> "Connection":
        """Another connection to the same broker, which does not come back: for a question that may cost it.

        Raises:
            Unavailable, AccessRefused: there is no way in.
        """
        return Connection(self._addresses, tls=self._tls_files, name=self._name)

    @property
    def broker(self) -> str:
        """What the broker calls itself, such as "RabbitMQ 4.2.1"."""
        told = (self._pika.server_properties if self._pika else None) or {}
        return f"{told.get('product', 'the broker')} {told.get('version', '')}".strip()

    def close(self) -> None:
        """Close the connection; what was not acknowledged goes back to its queue."""
        for channel in self._channels:
            channel.flush()
        self._closing.set()
        if self._recovery is not None:
            self._recovery.join(_CLOSE_PATIENCE)
        if self._pika is not None:
            self.run(self._close_pika)
            self._closed.wait(_CLOSE_PATIENCE)
        self.run(self._ioloop.stop)
        self._thread.join(_CLOSE_PATIENCE)
        if not self._thread.is_alive():
            self._ioloop.close()

    # For channels.

    @property
    def frame_max(self) -> int:
        """Bytes that a frame may have, as negotiated with the broker."""
        return int(self._pika.params.frame_max) if self._pika else 0

    @property
    def comes_back(self) -> bool:
        """Whether what is lost is opened again."""
        return self._backoff is not None

    def run(self, callback: Callable[[], None]) -> None:
        """Run a function on the I/O thread, soon."""
        self._ioloop.add_callback_threadsafe(callback)

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run a function on the I/O thread, in so many seconds."""

        def start() -> None:
            self._ioloop.call_later(seconds, callback)

        self.run(start)

    def open_pika_channel(self, on_open: Callable[[PikaChannel], None]) -> PikaChannel:
        """On the I/O thread: start to open a channel.

        Raises:
            pika.exceptions.AMQPError: there is no open connection.
        """
        if self._pika is None or not self._pika.is_open:
            raise exceptions.ConnectionWrongStateError
        return self._pika.channel(on_open_callback=on_open)

    def wait_until_open(self, error: Exception) -> None:
        """A request has failed because the connection was lost: wait until it is open again.

        Raises:
            MqtoolError: it will not be.
        """
        if threading.current_thread() is self._recovery:
            raise error
        # The I/O thread may not have told us yet; a request that fails again comes back here.
        time.sleep(0.01)
        self._steady.wait()
        if self._failure:
            raise self._failure

    # Opening and reopening.

    def _run_loop(self) -> None:
        try:
            self._ioloop.start()
        except Exception as error:  # a callback has failed: nobody would ever be woken again
            logging.getLogger("pika").exception("the I/O thread has died")
            self._fail(
                MqtoolError(f"the connection broke down: {error!r}", "this is a bug in mqtool; please report it")
            )
            self._closed.set()

    def _open(self) -> None:
        """Open a connection to the first node that lets us in; raise what the last one said otherwise."""
        failure: MqtoolError | None = None
        for address in self._addresses:
            try:
                self._pika = self._open_to(address)
            except MqtoolError as error:
                failure = error
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return
        raise failure or Unavailable("no address to connect to")

    def _open_to(self, address: Address) -> SelectConnection:
        try:
            parameters = self._parameters(address)
        except ValueError as error:
            raise failures.connecting(OverflowError(str(error)), address) from error
        opened: Answer[SelectConnection] = Answer()

        def start() -> None:
            try:
                pika = SelectConnection(
                    parameters,
                    on_open_callback=opened.give,
                    on_open_error_callback=lambda _, error: opened.refuse(error),
                    on_close_callback=self._on_close,
                    custom_ioloop=self._ioloop,
                )
                pika.add_on_connection_blocked_callback(self._on_blocked)
                pika.add_on_connection_unblocked_callback(self._on_unblocked)
            except Exception as error:  # raised below, in the thread that opens
                opened.refuse(error)

        self.run(start)
        try:
            return opened.result()
        except MqtoolError:
            raise
        except Exception as error:
            if self._was_let_in and failures.is_cut_off(error):
                raise Unavailable(f"{address.host}:{address.port} broke off before the connection was open") from error
            raise failures.connecting(error, address) from error

    def _parameters(self, address: Address) -> ConnectionParameters:
        options: dict[str, Any] = {}
        if address.heartbeat is not None:
            options["heartbeat"] = address.heartbeat
        if address.tls and self._tls is not None:
            options["ssl_options"] = SSLOptions(self._tls, address.host)
        return ConnectionParameters(
            host=address.host,
            port=address.port,
            virtual_host=address.virtual_host,
            credentials=PlainCredentials(address.user, address.password),
            connection_attempts=1,
            socket_timeout=address.connection_timeout,
            stack_timeout=address.connection_timeout * 2,
            client_properties={"product": "mqtool", "connection_name": self._name},
            **options,
        )

    def _on_close(self, pika: PikaConnection, error: BaseException) -> None:
        """An open connection has closed. On the I/O thread."""
        if self._closing.is_set() or pika is not self._pika:
            self._closed.set()
            return
        code = getattr(error, "reply_code", _FORCED_BY_OPERATOR)
        if self._backoff is None or code in _OUR_FAULT:
            self._pika = None
            self._fail(failures.closed_by_broker(error))
            self._closed.set()
            return
        with self._losing:
            self._pika = None
            self._steady.clear()
            is_recovering, self._is_recovering = self._is_recovering, True
        for channel in self._channels:
            channel.lost()
        if not is_recovering:
            self._recovery = threading.Thread(target=self._recover, args=(error, self._backoff), daemon=True)
            self._recovery.start()

    def _recover(self, error: BaseException, backoff: Backoff) -> None:
        """Open the connection and its channels again, trying until it works. On a thread of its own."""
        lost_at = time.monotonic()
        where, lost = str(self._addresses[0]), self._addresses[0]
        why = str(failures.closed_by_broker(error)).removeprefix("the connection was lost: ")
        self.notice(f"lost the connection to {where}: {why}")
        for attempt, delay in enumerate(backoff.delays(), 1):
            if self._closing.wait(delay):
                return
            try:
                self._open()
                if self._addresses[0] != lost and self._closing.wait(_ELECTION):
                    return
                for channel in self._channels:
                    channel.open(connection_is_new=True)
            except (Unavailable, exceptions.AMQPError) as failure:
                self.notice(f"attempt {attempt} to reconnect failed: {failure or type(failure).__name__}")
            except AccessRefused as failure:
                self._fail(failure)
                return
            except MqtoolError as failure:
                self._fail(failure)
                return
            else:
                with self._losing:
                    if self._pika is None:
                        continue  # it was lost again in this very moment
                    self._is_recovering = False
                    self._steady.set()
                self.notice(f"connected again to {self._addresses[0]} after {time.monotonic() - lost_at:.1f} s")
                return
        self._fail(Unavailable(f"gave up reconnecting to {where} after {backoff.attempts} attempts"))

    def _fail(self, failure: MqtoolError) -> None:
        self._failure = failure
        self._steady.set()
        for channel in self._channels:
            channel.fail(failure)

    def _on_blocked(self, _pika: SelectConnection, frame: Any) -> None:
        self.notice(f"the broker blocks publishers ({frame.method.reason}); waiting until it lets them go on")
        for channel in self._channels:
            channel.blocked(True)

    def _on_unblocked(self, _pika: SelectConnection, _frame: Any) -> None:
        self.notice("the broker lets publishers go on")
        for channel in self._channels:
            channel.blocked(False)

    def _close_pika(self) -> None:
        if self._pika is not None and self._pika.is_open:
            self._pika.close()
        else:
            self._closed.set()
