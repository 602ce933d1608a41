"""Fixtures for tests that speak the protocols directly, on the embedded broker and, if available, on RabbitMQ."""

import base64
import contextlib
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.field_tables import encode_property
from tests.brokers import TestBroker, until_readable
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.raw_stream import OPEN, Opener, RawStream, string


class AnyHeaders(BasicProperties):
    """Headers of any AMQP type, and an expiration. pika itself refuses floats and names that are not UTF-8."""

    def encode(self) -> list[bytes]:
        encoded = [encode_property("headers", self.headers)]
        flags = self.FLAG_HEADERS
        if self.expiration is not None:
            flags |= self.FLAG_EXPIRATION
            encoded.append(encode_property("expiration", self.expiration))
        return [flags.to_bytes(2, "big"), *encoded]


class Api:
    """The management API of the broker under test, for the user guest."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(
        self, method: str, path: str, body: object = None, user: str = "guest", password: str = "guest"
    ) -> tuple[int, Any]:
        """Send a request. Return the status and the decoded body of the response."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
        request.add_header("authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
        if body is not None:
            request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
            request.add_header("content-type", "application/json")

        def call() -> tuple[int, Any]:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    status, content = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            return status, json.loads(content) if content else None

        return until_readable(call)


@pytest.fixture
def api(broker: TestBroker) -> Api:
    """The broker's management API."""
    return Api(broker.management)


@pytest.fixture
def api_of() -> Callable[[EmbeddedBroker], Api]:
    """The management API of a broker that a test has started itself."""

    def of(broker: EmbeddedBroker) -> Api:
        assert broker.management_url is not None
        return Api(broker.management_url)

    return of


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BrokerProcess]:
    """The embedded broker in a separate process, with a data directory."""
    with BrokerProcess(tmp_path) as broker:
        yield broker


@pytest.fixture
def vhost(broker: TestBroker) -> str:
    """The test's own virtual host."""
    return broker.vhost


@pytest.fixture
def ann(api: Api) -> Iterator[str]:
    """A user without permissions, whose password is `secret`."""
    name = f"ann-{uuid.uuid4().hex[:8]}"
    api("PUT", f"users/{name}", {"password": "secret", "tags": ""})
    yield name
    api("DELETE", f"users/{name}")


@pytest.fixture
def amqp_url(broker: TestBroker) -> str:
    """The URL of the test's virtual host."""
    return broker.url


@pytest.fixture
def connect(amqp_url: str) -> Iterator[Callable[..., pika.BlockingConnection]]:
    """Opens connections, which are closed after the test."""
    opened = []

    def opener(url: str = amqp_url, **parameters: object) -> pika.BlockingConnection:
        settings = pika.URLParameters(url)
        for name, value in parameters.items():
            setattr(settings, name, value)
        connection = pika.BlockingConnection(settings)
        opened.append(connection)
        return connection

    yield opener
    for connection in opened:
        # The broker may have closed it by now, because its user or its virtual host was deleted.
        with contextlib.suppress(AMQPError):
            connection.close()


@pytest.fixture
def connection(connect: Callable[..., pika.BlockingConnection]) -> pika.BlockingConnection:
    """A connection."""
    return connect()


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    """A channel."""
    return connection.channel()


class Take:
    """Waits for messages in queues."""

    def __init__(self, channel: BlockingChannel) -> None:
        self.channel = channel

    def one(self, queue: str, *, auto_ack: bool = True, timeout: float = 60.0) -> tuple[Any, Any, bytes]:
        """Return the next message, fetched with basic.get. Fails if none arrives in time."""
        deadline = time.monotonic() + timeout
        while (got := self.channel.basic_get(queue, auto_ack=auto_ack))[0] is None:
            assert time.monotonic() < deadline, f"no message in queue {queue} after {timeout} s"
            self.channel.connection.process_data_events(0.005)
        return got

    def bodies(self, queue: str, count: int) -> list[bytes]:
        """Return the bodies of the next messages."""
        return [self.one(queue)[2] for _ in range(count)]

    def until(self, condition: Callable[[], object], timeout: float = 60.0) -> None:
        """Process the connection's events until a condition is true."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true in time"
            self.channel.connection.process_data_events(0.005)


@pytest.fixture
def take(channel: BlockingChannel) -> Take:
    """Functions that wait for messages on the test's channel."""
    return Take(channel)


# -- streams


@pytest.fixture
def connect_stream(broker: TestBroker) -> Iterator[Opener]:
    """Connects to the stream port without sending anything."""
    if not broker.streams:
        pytest.skip("MQTOOL_TEST_STREAMS, the stream port of this RabbitMQ, is not set")
    where = urlsplit(broker.streams)
    assert where.hostname is not None
    assert where.port is not None
    host, port, connected = where.hostname, where.port, []

    def connect() -> RawStream:
        connected.append(RawStream(host, port))
        return connected[-1]

    yield connect
    for each in connected:
        each.close()


@pytest.fixture
def open_stream(connect_stream: Opener, vhost: str) -> Opener:
    """Opens connections to the test's virtual host."""

    def connect(user: str = "guest", password: str = "guest", heartbeat: int = 60) -> RawStream:
        stream = connect_stream()
        stream.log_in(user, password, heartbeat)
        assert stream.request(OPEN, string(vhost)).code == 1
        return stream

    return connect


@pytest.fixture
def client(open_stream: Opener) -> RawStream:
    """A client of the stream protocol."""
    return open_stream()


@pytest.fixture
def stream(client: RawStream) -> str:
    """A stream."""
    assert client.create("s") == 1
    return "s"
