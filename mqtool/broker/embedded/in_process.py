"""Runs the embedded broker inside another Python program: in a separate thread, or on the running event loop."""

import asyncio
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from mqtool.broker.embedded.model.profile import profile
from mqtool.broker.embedded.server import Server, run
from mqtool.broker.embedded.settings import Settings
from mqtool.broker.embedded.testing.questions import Faults, Questions
from mqtool.broker.embedded.testing.under_test import BrokerUnderTest

_STARTING_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
_STOPPING_SECONDS = 60.0
T = TypeVar("T")


class Vhost(Questions):
    """A virtual host for one test; see EmbeddedBroker.fresh_vhost().

    Attributes:
        name: the name of the virtual host.
        url: the AMQP URL of the virtual host.
        tls_url: the AMQP URL with TLS; None without TLS.
        faults: the methods that inject faults; they affect the whole broker, not only this virtual host.
    """

    def __init__(self, broker: "EmbeddedBroker", name: str) -> None:
        self._broker = broker
        self.name = name
        self.url = _in_vhost(broker.url, name)
        self.tls_url = None if broker.tls_url is None else _in_vhost(broker.tls_url, name)
        self.faults = broker.faults

    def now(self, ask: Callable[[BrokerUnderTest, str], T]) -> T:
        return self._broker.under_test(lambda broker: ask(broker, self.name))


class EmbeddedBroker(Questions):
    """An embedded broker that runs until the `with` block ends, in a thread or, with `async with`, on the event loop.

        with EmbeddedBroker() as broker:
            connection = pika.BlockingConnection(pika.URLParameters(broker.url))

    Queries such as `broker.published()` apply to the virtual host `/`.

    Attributes:
        like: the RabbitMQ version that the broker behaves like.

    Args:
        port: the AMQP port; 0 for any free one.
        data_dir: a directory for durable queues and persistent messages; None keeps everything in memory.
        settings: any other attribute of Settings, such as `management_port=0`, `recording=True` or `like="4.3"`.

    Raises:
        TypeError: a setting has an unknown name.
        ValueError: `like` is not a supported RabbitMQ version, or not a string.
    """

    def __init__(self, port: int = 0, data_dir: str | Path | None = None, **settings: Any) -> None:
        for name, value in {"data_dir": data_dir, "definitions": settings.get("definitions")}.items():
            settings[name] = None if value is None else Path(value)
        if not isinstance(settings.get("like", ""), str):
            raise ValueError(f'like must be a string, such as "4.3", not {settings["like"]!r}')
        self._settings = Settings(port=port, **settings)
        self.like = self._settings.like
        profile(self.like)  # raises here rather than in the thread
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._server: Server | None = None

    @property
    def urls(self) -> dict[str, str]:
        """The URLs by protocol: amqp, http and stream; with the setting `tls`, also amqp/ssl, https and stream/ssl."""
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
        """The AMQP URL, with the user guest and the virtual host `/`."""
        return self.urls["amqp"]

    @property
    def tls_url(self) -> str | None:
        """The AMQP URL with TLS; None without TLS."""
        return self.urls.get("amqp/ssl")

    @property
    def management_url(self) -> str | None:
        """The URL of the management API; None without the setting `management_port`."""
        return self.urls.get("http")

    @property
    def stream_port(self) -> int | None:
        """The port of the stream protocol; None without the setting `stream_port`."""
        return urlsplit(self.urls.get("stream", "")).port

    def under_test(self, ask: Callable[[BrokerUnderTest], T]) -> T:
        """Call a function on the broker's event loop, and return its result. Can be called from any thread."""
        server, loop = self._server, self._loop
        assert server is not None, "the broker has not been started"
        assert loop is not None
        if threading.get_ident() == self._loop_thread:
            return ask(server.under_test())
        assert not loop.is_closed(), "the broker has been stopped"
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(ask(server.under_test()))
            except BaseException as error:  # raised in the caller's thread
                future.set_exception(error)

        loop.call_soon_threadsafe(call)
        return future.result(_ANSWER_SECONDS)

    def now(self, ask: Callable[[BrokerUnderTest, str], T]) -> T:
        return self.under_test(lambda broker: ask(broker, "/"))

    @property
    def faults(self) -> Faults:
        """The methods that inject faults into the broker."""
        return Faults(self.under_test)

    @contextmanager
    def fresh_vhost(self) -> Iterator[Vhost]:
        """Create a virtual host for one test. When the block ends, delete it and undo all faults."""
        vhost = Vhost(self, f"test-{uuid.uuid4().hex[:12]}")
        self.under_test(lambda broker: broker.add_vhost(vhost.name))
        try:
            yield vhost
        finally:
            self.under_test(lambda broker: broker.delete_vhost(vhost.name))

    def start(self) -> Self:
        """Start the broker in a thread, and return once it accepts connections.

        Raises:
            OSError: a port is in use, or the data directory cannot be used or is damaged.
            TimeoutError: the broker does not start within 30 seconds.
        """
        self._ready.clear()  # it is set if the broker was stopped before
        self._error = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)
        self._thread.start()
        if not self._ready.wait(_STARTING_SECONDS):
            raise TimeoutError("the embedded broker did not start")
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def stop(self) -> None:
        """Stop the broker. Connections are closed with 320 CONNECTION_FORCED.

        Raises:
            TimeoutError: the broker does not stop within 60 seconds. The error shows what the broker's thread is doing.
        """
        if self._thread is None or self._loop is None or self._stop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOPPING_SECONDS)
        if self._thread.is_alive():
            stack = traceback.format_stack(sys._current_frames().get(self._thread.ident or 0))
            raise TimeoutError("the embedded broker did not stop. Its thread:\n" + "".join(stack))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        server = Server(self._settings)
        await server.start()
        self._started(server)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop()

    def _run(self) -> None:
        async def until_stopped() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await run(self._settings, self._stop, self._started)

        try:
            asyncio.run(until_stopped())
        except BaseException as error:  # raised by start(), in the caller's thread
            self._error = error
        finally:
            self._ready.set()

    def _started(self, server: Server) -> None:
        self._loop, self._loop_thread, self._server = asyncio.get_running_loop(), threading.get_ident(), server
        self._ready.set()


def _in_vhost(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{quote(name, safe='')}"
