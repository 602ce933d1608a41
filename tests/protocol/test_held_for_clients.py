"""Unread replies, incomplete messages and open transactions of clients do not fill the embedded broker's memory."""

import base64
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pamqp import commands, frame, header

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import large
from tests.processes import only_on_linux
from tests.protocol.raw_client import RawClient, raw_frame
from tests.protocol.raw_stream import OPEN, RawStream, string

LIMIT = 60_000_000
pytestmark = [large, only_on_linux]


class MeasuredBroker:
    """The embedded broker in a process of its own, with its peak memory."""

    def __init__(self, url: str, stream_port: int, management: str, pid: int) -> None:
        self.url, self.stream_port, self.management, self._pid = url, stream_port, management, pid
        self._at_start = self._peak()

    def _peak(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self._pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    @property
    def growth(self) -> int:
        """The growth of the process's peak memory since its start, in bytes."""
        return self._peak() - self._at_start


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[MeasuredBroker]:
    """A broker with a memory limit of 60 MB."""
    command = [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--stream-port", "0"]
    command += ["--management-port", "0", "--print-url"]
    command += ["--memory-limit", str(LIMIT), "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker, ExitStack() as stack:
        stack.callback(broker.terminate)
        assert broker.stdout is not None
        url, management, streams = (broker.stdout.readline().strip() for _ in range(3))
        yield MeasuredBroker(url, int(streams.rpartition(":")[2]), management, broker.pid)


def content(size: int) -> bytes:
    """The frames of a basic.publish to the queue q, up to the body."""
    properties = commands.Basic.Properties()
    publish = frame.marshal(commands.Basic.Publish(exchange="", routing_key="q"), 1)
    return publish + frame.marshal(header.ContentHeader(body_size=size, properties=properties), 1)


def body(size: int, largest: int = 131_064) -> bytes:
    """Body frames of this many bytes in all."""
    return b"".join(raw_frame(3, 1, bytes(min(largest, size - start))) for start in range(0, size, largest))


def declare_q(client: RawClient) -> None:
    client.send(commands.Queue.Declare(queue="q"))
    client.expect(commands.Queue.DeclareOk)


def send_until_blocked(client: socket.socket, data: bytes) -> None:
    """Send bytes; stop when the broker does not read them for a while, or has closed the connection."""
    client.settimeout(0.3)
    with suppress(OSError):
        client.sendall(data)


def serves(url: str) -> bool:
    """True if a new client can publish a message and get it."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", name, b"x")
    got = channel.basic_get(name, auto_ack=True)[2] == b"x"
    connection.close()
    return got


def test_unread_replies_do_not_fill_the_memory(measured: MeasuredBroker) -> None:
    """If a client requests a 4 MB message 100 times with basic.get, and does not read the replies, the process of a
    broker with a memory limit of 60 MB grows by less than 120 MB. When the client reads, all replies arrive.
    """
    client = RawClient(measured.url)
    client.socket.settimeout(60)
    declare_q(client)
    client.socket.sendall(content(4_000_000) + body(4_000_000))
    requests = b"".join(
        frame.marshal(commands.Basic.Get(queue="q"), 1)
        + frame.marshal(commands.Basic.Nack(delivery_tag=number, requeue=True), 1)
        for number in range(1, 101)
    )
    client.socket.sendall(requests)
    assert all(serves(measured.url) for _ in range(20)), (
        "a new client was not served while another client did not read its replies"
    )
    assert measured.growth < 120_000_000

    for _ in range(100):
        client.expect(commands.Basic.GetOk)
        client.expect(header.ContentHeader)
        size = 0
        while size < 4_000_000:
            size += len(client.receive().value)
    client.socket.close()
    assert measured.growth < 120_000_000


def test_incomplete_messages_do_not_fill_the_memory(measured: MeasuredBroker) -> None:
    """If ten clients each send half of a 40 MB message, 200 MB altogether, the process of a broker with a memory
    limit of 60 MB grows by less than 120 MB, so not all of these bytes are in memory. The broker still serves other
    clients.
    """
    with ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(RawClient(measured.url))
            send_until_blocked(client.socket, content(40_000_000) + body(20_000_000))
        assert measured.growth < LIMIT + 60_000_000
        assert serves(measured.url)


def test_uncommitted_messages_do_not_fill_the_memory(measured: MeasuredBroker) -> None:
    """If four clients each publish 50 MB in a transaction without a commit, 200 MB altogether, the process of a
    broker with a memory limit of 60 MB grows by less than 120 MB, so not all of these messages are in memory. The
    broker still serves other clients.
    """
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(RawClient(measured.url))
            declare_q(client)
            client.send(commands.Tx.Select())
            client.expect(commands.Tx.SelectOk)
            send_until_blocked(client.socket, (content(100_000) + body(100_000)) * 500)
        assert measured.growth < LIMIT + 60_000_000
        assert serves(measured.url)


def test_incomplete_stream_frames_do_not_fill_the_memory(measured: MeasuredBroker) -> None:
    """If ten stream clients each send half of a 40 MB frame, 200 MB altogether, the process of a broker with a memory
    limit of 60 MB grows by less than 140 MB, so not all of these bytes are in memory. The broker still serves other
    clients.
    """
    with ExitStack() as stack:
        for _ in range(10):
            client = log_in(measured.stream_port)
            stack.callback(client.close)
            send_until_blocked(client.socket, struct.pack(">IHH", 40_000_000, 2, 1) + bytes(20_000_000))
        assert measured.growth < LIMIT + 80_000_000
        assert serves(measured.url)


def test_unacknowledged_messages_of_a_stream_stay_on_disk(measured: MeasuredBroker) -> None:
    """If an AMQP 0-9-1 consumer receives 200 MB of messages from a stream and acknowledges none, the messages stay on
    disk: the process of a broker with a memory limit of 60 MB grows by less than 60 MB.
    """
    publisher = log_in(measured.stream_port)
    assert publisher.create("large") == 1
    publisher.declare_publisher(1, "large")
    for number in range(200):
        publisher.publish(1, number, bytes(1_000_000))
        publisher.confirmed(1)
    grown = measured.growth
    with RawClient(measured.url) as client:
        client.send(commands.Basic.Qos(prefetch_count=1000))
        client.expect(commands.Basic.QosOk)
        client.send(commands.Basic.Consume(queue="large", arguments={"x-stream-offset": "first"}))
        client.expect(commands.Basic.ConsumeOk)
        for _ in range(200):
            client.expect(commands.Basic.Deliver)
            size = client.expect(header.ContentHeader).body_size
            while size > 0:
                size -= len(client.receive().value)
    assert measured.growth < grown + 60_000_000
    publisher.close()


def log_in(port: int) -> RawStream:
    client = RawStream("127.0.0.1", port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == 1
    return client


def test_channels_count_towards_memory_use() -> None:
    """Open channels count towards the broker's memory use: 1,000 of them add more than 1 MB. When they are closed, most
    of this memory is freed.
    """
    with EmbeddedBroker() as embedded:
        broker = embedded._server.broker  # type: ignore[attr-defined]
        with RawClient(embedded.url) as client:
            opened = b"".join(frame.marshal(commands.Channel.Open(), number) for number in range(2, 1002))
            client.socket.sendall(opened)
            wait_until(lambda: broker.held_for_clients > 1_000_000)
            closed = (frame.marshal(commands.Channel.Close(200, "", 0, 0), number) for number in range(2, 1002))
            client.socket.sendall(b"".join(closed))
            wait_until(lambda: broker.held_for_clients < 500_000)
        wait_until(lambda: broker.held_for_clients == 0)


def test_memory_held_for_clients_is_freed_when_they_disconnect() -> None:
    """If a client disconnects during a transaction, or before a message or a stream frame is complete, the broker
    frees all memory that it used for this client.
    """
    with EmbeddedBroker(stream_port=0, memory_limit=LIMIT) as embedded:
        broker = embedded._server.broker  # type: ignore[attr-defined]
        assert embedded.stream_port is not None
        with RawClient(embedded.url) as transacting, RawClient(embedded.url) as publishing:
            declare_q(transacting)
            transacting.send(commands.Tx.Select())
            transacting.expect(commands.Tx.SelectOk)
            transacting.socket.sendall(content(1000) + body(1000))
            publishing.socket.sendall(content(100_000) + body(50_000, 10_000) + raw_frame(3, 1, bytes(50_000))[:20_000])
            streaming = log_in(embedded.stream_port)
            streaming.socket.sendall(struct.pack(">IHH", 900_000, 2, 1) + bytes(500_000))
            wait_until(lambda: broker.held_for_clients > 560_000)
            streaming.close()
        wait_until(lambda: broker.held_for_clients == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def http(method: str, path: str, body: dict[str, Any]) -> bytes:
    """A request of guest to the management API."""
    login, sent = base64.b64encode(b"guest:guest").decode(), json.dumps(body)
    head = f"{method} /api/{path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic {login}\r\n"
    return f"{head}content-length: {len(sent)}\r\n\r\n{sent}".encode()


def test_unread_http_responses_do_not_fill_the_memory(measured: MeasuredBroker) -> None:
    """If eighty HTTP clients each request 4 MB of messages, 320 MB altogether, and do not read the responses, the
    process of a broker with a memory limit of 60 MB grows by less than 240 MB, so not all responses are in memory.
    The broker still serves other clients.
    """
    with pika.BlockingConnection(pika.URLParameters(measured.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        for _ in range(4):
            channel.basic_publish("", "q", bytes(1_000_000))
        assert channel.queue_declare("q", passive=True).method.message_count == 4
    where = urlsplit(measured.management)
    get = http("POST", "queues/%2F/q/get", {"count": 4, "ackmode": "ack_requeue_true", "encoding": "base64"})
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=60)) for _ in range(80)
        ]
        for client in clients:
            client.sendall(get)
        for client in clients:  # each response has begun, or the connection is closed
            with suppress(ConnectionError):
                client.recv(1)
        assert measured.growth < 4 * LIMIT
        assert serves(measured.url)


def test_publishing_over_http_is_refused_while_memory_is_low(measured: MeasuredBroker) -> None:
    """While messages take more memory than the broker's memory limit, the management API refuses to publish further
    messages: it responds with status 503.
    """
    where = urlsplit(measured.management)
    message = {"properties": {}, "routing_key": "q", "payload": "x" * 1_000_000, "payload_encoding": "string"}
    statuses = []
    with socket.create_connection((where.hostname, where.port), timeout=60) as client:
        replies = client.makefile("rb")
        requests = [http("PUT", "queues/%2F/q", {}), *[http("POST", "exchanges/%2F/amq.default/publish", message)] * 70]
        for request in requests:
            client.sendall(request)
            statuses.append(replies.readline().split()[1])
            headers = dict(line.lower().split(b":", 1) for line in iter(replies.readline, b"\r\n"))
            replies.read(int(headers[b"content-length"]))
    assert statuses.count(b"503") > 5
