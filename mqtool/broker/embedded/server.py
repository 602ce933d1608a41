"""Starts and stops an embedded broker and its listening sockets on an asyncio event loop."""

import asyncio
import errno
import logging
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.broker import LOW_ON_DISK, Broker
from mqtool.broker.embedded.model.clock import Clock, LoopClock
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import profile
from mqtool.broker.embedded.settings import Settings
from mqtool.broker.embedded.sockets.listener import Connections, Listener, TlsHandshakes, caused_by
from mqtool.broker.embedded.wire.amqp_connection import BrokerConnection

if TYPE_CHECKING:
    from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10
    from mqtool.broker.embedded.http.http_server import Handler
    from mqtool.broker.embedded.store.database import DiskSpace
    from mqtool.broker.embedded.store.storage import Storage
    from mqtool.broker.embedded.streaming.stream_connection import StreamConnection
    from mqtool.broker.embedded.testing.under_test import BrokerUnderTest

log = logging.getLogger("mqtool.broker.embedded")

#: The bytes that an AMQP 1.0 client sends first.
AMQP10_HEADER = b"AMQP\x03\x01\x00\x00"

_CHECK_CONSUMERS_SECONDS = 60.0
#: The same from RabbitMQ 3.12 on, where a queue can have a shorter timeout than the broker.
_CHECK_QUEUES_SECONDS = 1.0

#: How long a broker that stops dead-letters messages that are still waiting for it.
_FINISHING_SECONDS = 5.0

_WITH_TLS = {"amqp": "amqp/ssl", "http": "https", "stream": "stream/ssl"}

_URLS = {
    "amqp": "amqp://guest:guest@{}/%2F",
    "http": "http://{}",
    "stream": "rabbitmq-stream://{}",
    "http/prometheus": "http://{}/metrics",
    "amqp/ssl": "amqps://guest:guest@{}/%2F",
    "https": "https://{}",
    "stream/ssl": "rabbitmq-stream+tls://{}",
}


class Server:
    """A broker and its listening sockets, on the running event loop.

    Args:
        settings: the broker's settings.
        new_clock, new_listener, open_storage: create the clock, the listeners and, given the data directory, the
            storage. tests/simulation passes virtual ones.

    Attributes:
        damage: a sentence that describes the unreadable data in the data directory; None if everything was read.
        left_out: a sentence for each definition in the definitions file that the embedded broker does not support.
        broker: the broker, once started.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        new_clock: Callable[[], Clock] = LoopClock,
        new_listener: Callable[..., Listener] = Listener,
        open_storage: "Callable[[Path], Storage] | None" = None,
    ) -> None:
        self._settings = settings
        self._new_clock = new_clock
        self._new_listener = new_listener
        self._open_storage = open_storage
        self._listeners: list[Listener] = []
        self._management_listeners: list[Listener] = []
        self._tls: TlsHandshakes | None = None
        self._under_test: BrokerUnderTest | None = None
        self._connections: Connections[BrokerConnection] = Connections()
        self._stream_connections: Connections[StreamConnection] = Connections()
        self._amqp10_connections: Connections[Connection10] = Connections()
        self._checking: asyncio.TimerHandle | None = None
        self._disk_space: DiskSpace | None = None
        self.damage: str | None = None
        self.left_out: list[str] = []
        self.broker: Broker

    async def start(self) -> None:
        """Read the data directory, load the definitions and listen.

        Raises:
            OSError: a port is in use, the data directory cannot be used, or the definitions cannot be loaded.
        """
        self.broker = self._open()
        try:
            self._load_definitions()
            await self._listen()
        except OSError:
            # Release the ports and the data directory, so that this process can try again.
            self._close_listeners()
            self.broker.ledger.close()
            raise

    def _load_definitions(self) -> None:
        if self._settings.definitions is not None:
            # Not imported at the top: most brokers start without definitions.
            from mqtool.broker.embedded.http.definition_routes import load_file

            self.left_out = load_file(self.broker, self._settings.definitions)
            for what in self.left_out:
                log.warning("%s", what)

    async def _listen(self) -> None:
        settings = self._settings
        if settings.tls is not None:
            self._tls = TlsHandshakes(settings.tls.context())
        if settings.recording:
            self.under_test()
        hosts = settings.listen or [settings.host]
        others = {AMQP10_HEADER: self._amqp10} if self.broker.profile.speaks_amqp10 else {}
        await self._listen_on(
            self._listeners,
            "amqp",
            lambda: BrokerConnection(self.broker, self._connections, others),
            hosts,
            settings.port,
        )
        if settings.management_port is not None:
            await self._listen_on(
                self._management_listeners, "http", self._management(), [settings.host], settings.management_port
            )
        if settings.stream_port is not None:
            await self._listen_on(self._listeners, "stream", self._streams(), hosts, settings.stream_port)
        if settings.prometheus_port is not None:
            await self._serve_metrics(settings.prometheus_port)
        self._check_consumers()
        if self._disk_space is not None:
            self._disk_space.check()
        log.info("listening on %s", ", ".join(self.urls().values()))

    async def _listen_on(
        self,
        listeners: list[Listener],
        protocol: str,
        new_connection: Callable[[], asyncio.Protocol],
        hosts: Sequence[str],
        port: int,
    ) -> None:
        """Listen on a port without TLS and, if TLS is on, on the next lower port with TLS (like 5672 and 5671)."""
        added = [(protocol, self._new_listener(new_connection), port)]
        if self._tls is not None:
            added.append((_WITH_TLS[protocol], self._new_listener(new_connection, self._tls), port and port - 1))
        for name, listener, wanted in added:
            listeners.append(listener)
            self.broker.listeners[name] = (self._settings.host, await listener.listen(hosts, wanted))

    async def _serve_metrics(self, port: int) -> None:
        # Not imported at the top: most brokers have no port for metrics.
        from mqtool.broker.embedded.http.prometheus import HOST, PrometheusServer

        handler = PrometheusServer(self.broker, self._connections, self._stream_connections, self._amqp10_connections)
        listener = self._new_listener(_speaking_http(handler))
        self._management_listeners.append(listener)
        self.broker.listeners["http/prometheus"] = (HOST, await listener.listen([HOST], port))

    def urls(self) -> dict[str, str]:
        """Return the URLs of the broker's ports, by the protocol names of the management API."""
        ports = {}
        for protocol, (host, port) in self.broker.listeners.items():
            host = {"::": "localhost"}.get(host, host)
            ports[protocol] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return {name: url.format(ports[name]) for name, url in _URLS.items() if name in ports}

    def _amqp10(self) -> "Connection10":
        # Not imported at the top: most clients speak AMQP 0-9-1.
        from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10

        return Connection10(self.broker, self._amqp10_connections)

    def _management(self) -> Callable[[], asyncio.Protocol]:
        # Not imported at the top: without HTTP and JSON, a broker without a management port starts faster.
        from mqtool.broker.embedded.http import ManagementServer

        return _speaking_http(
            ManagementServer(
                self.broker,
                self._connections,
                self._stream_connections,
                self._amqp10_connections,
                listening_on=self._settings.host,
                under_test=self.under_test,
            )
        )

    def _streams(self) -> Callable[[], asyncio.Protocol]:
        # Not imported at the top: most brokers have no stream port.
        from mqtool.broker.embedded.streaming.stream_connection import StreamConnection
        from mqtool.broker.embedded.streaming.subscriptions import Groups

        connections = self._stream_connections
        groups: Groups = {}
        self.broker.add_clients(connections)
        return lambda: StreamConnection(self.broker, connections, groups)

    def under_test(self) -> "BrokerUnderTest":
        """Return the object that tests use for queries and faults. Call this on the broker's event loop."""
        if self._under_test is None:
            # Not imported at the top: most brokers are used without recording and faults.
            from mqtool.broker.embedded.testing.under_test import BrokerUnderTest

            connections = (self._connections, self._stream_connections, self._amqp10_connections)
            self._under_test = BrokerUnderTest(
                self.broker, connections, self._listeners, recording=self._settings.recording
            )
        return self._under_test

    def _open(self) -> Broker:
        settings = self._settings
        if settings.data_dir is None:
            broker = self._broker(Ledger())
            broker.create_defaults()
            return broker
        # Not imported at the top: without SQLite, a broker in memory starts faster.
        from mqtool.broker.embedded.store.database import DiskSpace
        from mqtool.broker.embedded.store.recovery import recover
        from mqtool.broker.embedded.store.storage import Storage

        storage = (self._open_storage or Storage)(settings.data_dir)
        broker = self._broker(storage)
        storage.when_failed = lambda error: broker.raise_alarm(
            "disk", LOW_ON_DISK, f"cannot write to the data directory: {error}"
        )
        storage.when_recovered = lambda: broker.clear_alarm("disk")
        recover(broker, storage)
        self.damage = storage.damage
        if self.damage is not None:
            log.error("%s", self.damage)
        self._disk_space = DiskSpace(broker)
        return broker

    def _broker(self, ledger: Ledger) -> Broker:
        settings = self._settings
        broker = Broker(
            ledger,
            self._connections,
            memory_limit=settings.memory_limit,
            disk_free_limit=settings.disk_free_limit,
            consumer_timeout=settings.consumer_timeout,
            profile=profile(settings.like),
            clock=self._new_clock(),
        )
        broker.add_clients(self._amqp10_connections)
        if settings.guest_from_anywhere:
            broker.loopback_users.clear()
        return broker

    def _check_consumers(self) -> None:
        self.broker.check_consumers()
        self.broker.clock.take_turn(self._plan_next_check)  # after the turns of all clients

    def _plan_next_check(self) -> None:
        is_same = self.broker.profile.consumer_timeouts == "broker"
        longest = _CHECK_CONSUMERS_SECONDS if is_same else _CHECK_QUEUES_SECONDS
        interval = min(longest, self._settings.consumer_timeout / 2)
        self._checking = asyncio.get_running_loop().call_later(interval, self._check_consumers)

    async def stop(self) -> None:
        """Close all connections and finish writing to disk."""
        self._close_listeners()
        if self._checking is not None:
            self._checking.cancel()
        if self._disk_space is not None:
            self._disk_space.stop()
        self.broker.close_connections("broker forced connection closure with reason 'shutdown'")
        for connection in (*self._connections, *self._amqp10_connections):
            connection.hang_up()
        await asyncio.sleep(0)
        # With TLS, a close waits for the client, so abort instead.
        for each in (self._connections, self._stream_connections, self._amqp10_connections):
            for transport in [connection.transport for connection in each]:
                transport.abort()
        until = self.broker.clock.elapsed() + _FINISHING_SECONDS
        await asyncio.sleep(0)
        # If many connections are lost, they are cleaned up in turns.
        while (
            any(each.is_lost for each in (*self._connections, *self._stream_connections, *self._amqp10_connections))
            and self.broker.clock.elapsed() < until
        ):
            await asyncio.sleep(0)
        for vhost in self.broker.vhosts.values():
            vhost.requeueing.finish(math.inf)
        if left := sum(vhost.dead_letters.finish(until) for vhost in self.broker.vhosts.values()):
            log.warning("stopped while %d messages were still to be dead-lettered", left)
        self.broker.ledger.close(self._redelivered())
        log.info("stopped")

    def _close_listeners(self) -> None:
        for listener in [*self._listeners, *self._management_listeners]:
            listener.close()

    def _redelivered(self) -> list[BacklogEntry]:
        """Return the stored messages that were delivered before, to be marked as redelivered after a restart."""
        return [
            entry
            for vhost in self.broker.vhosts.values()
            for queue in vhost.queues.values()
            for entry in queue.backlog.in_memory()
            if entry.row and entry.redelivered
        ]


def _speaking_http(handler: "Handler") -> Callable[[], asyncio.Protocol]:
    """Return a function that makes HTTP connections whose requests this handler answers."""
    from mqtool.broker.embedded.http import HttpServer
    from mqtool.broker.embedded.http.http_server import MAX_HEAD

    http = HttpServer(handler)
    return lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=MAX_HEAD), http.talk)


def _log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception of the event loop; "too many open files", which asyncio reports very often, once a minute."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        no_files = "no file descriptors are left: new connections have to wait (see ulimit -n)"
        log.error(no_files, extra=caused_by("file descriptors", 60.0))
    else:
        loop.default_exception_handler(context)


async def run(settings: Settings, stop: asyncio.Event, when_ready: Callable[[Server], None]) -> None:
    """Run a broker until `stop` is set. The event loop must run nothing else: its exception handler is replaced."""
    asyncio.get_running_loop().set_exception_handler(_log_exception)
    server = Server(settings)
    await server.start()
    try:
        when_ready(server)
        await stop.wait()
    finally:
        await server.stop()


def serve(settings: Settings, when_ready: Callable[[Server], None] = lambda _: None) -> None:
    """Run a broker until the process receives SIGTERM, SIGINT or (unless the process ignores it) SIGHUP.

    Args:
        settings: the broker's settings.
        when_ready: called on the event loop once the broker is listening.

    Raises:
        OSError: a port is in use, the data directory cannot be used, or the definitions cannot be loaded.
    """

    async def until_stopped() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends_with_terminal = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        for number in (signal.SIGTERM, signal.SIGINT, *ends_with_terminal):
            loop.add_signal_handler(number, stop.set)
        await run(settings, stop, when_ready)

    asyncio.run(until_stopped())
