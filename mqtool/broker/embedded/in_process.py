"""The embedded broker within another program: in a thread of its own, or on the running event loop."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

from mqtool.broker.embedded.model.broker import CONSUMER_TIMEOUT, DISK_FREE_LIMIT
from mqtool.broker.embedded.model.profile import DEFAULT, profile
from mqtool.broker.embedded.server import Server, Settings, run
from mqtool.broker.embedded.sockets.listener import Tls
from mqtool.broker.embedded.testing.bench import Bench
from mqtool.broker.embedded.testing.calls import Calls
from mqtool.broker.embedded.testing.front import Faults
from mqtool.broker.embedded.testing.questions import Questions

_STARTING_SECONDS = 30.0
T = TypeVar("T")


class Vhost(Questions):
    """A virtual host of a test's own; see EmbeddedBroker.fresh_vhost().

    Attributes:
        name: its name.
        url: its AMQP URL.
        tls_url: its AMQP URL with TLS; None without.
        faults: what can go wrong with the broker.
    """

    def __init__(self, broker: "EmbeddedBroker", name: str) -> None:
        self._broker = broker
        self.name = name
        self.url = _in_vhost(broker.url, name)
        self.tls_url = None if broker.tls_url is None else _in_vhost(broker.tls_url, name)
        self.faults = broker.faults

    def now(self, ask: Callable[[Bench, str], T]) -> T:
        """Ask the broker."""
        return self._broker.on_bench(lambda bench: ask(bench, self.name))


class EmbeddedBroker(Questions):
    """A broker in this process, until the `with` block ends: in a thread, or with `async with` on the running loop.

        with EmbeddedBroker() as broker:
            connection = pika.BlockingConnection(pika.URLParameters(broker.url))

    What it is asked, such as `broker.published()`, is about the virtual host /.

    Args:
        port: the port to listen on, 0 for any free one.
        data_dir: a directory to keep durable queues and persistent messages in; None keeps everything in memory.
        management_port: the port for the management API, 0 for any free one; None for none.
        memory_limit: publishers are blocked when messages take more bytes; None for RabbitMQ's default.
        stream_port: the port for the stream protocol, 0 for any free one; None for none.
        consumer_timeout: how long a delivery may stay unacknowledged, in seconds.
        recording: whether to record what happens to messages, so that it can be asked.
        definitions: a file of definitions, as RabbitMQ exports them, to load at the start.
        disk_free_limit: publishers are blocked when fewer bytes are free in the data directory.
        tls: PEM files to listen with TLS as well, on ports of their own; None for plain TCP only.
        like: the RabbitMQ to behave like: 3.10, 4.0, 4.2, 4.3, or 4.3.5, which takes no transient queues.

    Attributes:
        url: the AMQP URL, once it is started.
        tls_url: the AMQP URL with TLS, once it is started; None without `tls`.
        urls: the URLs by protocol, once it is started: amqp, http, stream; with `tls` amqp/ssl, https, stream/ssl too.
        stream_port: the port of the stream protocol, once it is started; None without one.
        management_url: the HTTP URL of the management API, once it is started; None without one.
    """

    def __init__(
        self,
        port: int = 0,
        data_dir: str | Path | None = None,
        *,
        host: str = "127.0.0.1",
        management_port: int | None = None,
        memory_limit: int | None = None,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        stream_port: int | None = None,
        recording: bool = False,
        definitions: str | Path | None = None,
        tls: Tls | None = None,
        disk_free_limit: int = DISK_FREE_LIMIT,
        like: str = DEFAULT,
    ) -> None:
        profile(like)  # now, rather than in a thread
        self._settings = Settings(
            host,
            port,
            None if data_dir is None else Path(data_dir),
            management_port,
            memory_limit,
            consumer_timeout,
            stream_port=stream_port,
            recording=recording,
            definitions=None if definitions is None else Path(definitions),
            tls=tls,
            disk_free_limit=disk_free_limit,
            like=like,
        )
        self._calls: Calls | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._server: Server | None = None

    @property
    def urls(self) -> dict[str, str]:
        """Where it listens: by protocol, as the management API names it."""
        assert self._server is not None, "the broker has not been started"
        return self._server.urls()

    @property
    def port(self) -> int:
        """The AMQP port."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def url(self) -> str:
        """The AMQP URL, of user guest and virtual host /."""
        return self.urls["amqp"]

    @property
    def tls_url(self) -> str | None:
        """The AMQP URL with TLS, None without `tls`."""
        return self.urls.get("amqp/ssl")

    @property
    def management_url(self) -> str | None:
        """The URL of the management API, None if there is none."""
        return self.urls.get("http")

    @property
    def stream_port(self) -> int | None:
        """The port of the stream protocol, None if there is none."""
        return urlsplit(self.urls.get("stream", "")).port

    # -- tests

    def on_bench(self, ask: Callable[[Bench], T]) -> T:
        """Ask the broker itself, on its loop."""
        server, calls = self._server, self._calls
        assert server is not None and calls is not None, "the broker has not been started"  # noqa: PT018
        return calls(lambda: ask(server.bench()))

    def now(self, ask: Callable[[Bench, str], T]) -> T:
        """Ask about the virtual host /."""
        return self.on_bench(lambda bench: ask(bench, "/"))

    @property
    def faults(self) -> Faults:
        """What can go wrong with it."""
        return Faults(self.on_bench)

    @contextmanager
    def fresh_vhost(self) -> Iterator[Vhost]:
        """Make a virtual host for one test, and delete it afterwards; faults are undone."""
        vhost = Vhost(self, f"test-{uuid.uuid4().hex[:12]}")
        self.on_bench(lambda bench: bench.add_vhost(vhost.name))
        try:
            yield vhost
        finally:
            self.on_bench(lambda bench: bench.delete_vhost(vhost.name))

    # -- start and end

    def start(self) -> Self:
        """Start it; returns once it listens.

        Raises:
            OSError: a port is taken, or the directory cannot be used or is damaged.
        """
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)
        self._thread.start()
        if not self._ready.wait(_STARTING_SECONDS):
            raise TimeoutError("the embedded broker did not start")
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def stop(self) -> None:
        """Stop it; connections are closed with 320 CONNECTION_FORCED."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        server = Server(self._settings)
        await server.start()
        self._calls, self._server = Calls(), server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await self._server.stop()

    def _run(self) -> None:
        async def until_stopped() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            await run(self._settings, self._stop, self._started)

        try:
            asyncio.run(until_stopped())
        # The thread that waits in start() raises it.
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def _started(self, server: Server) -> None:
        self._calls, self._server = Calls(), server
        self._ready.set()


def _in_vhost(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{quote(name, safe='')}"
