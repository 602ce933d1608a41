"""Measure how fast the embedded broker starts, and how its speed depends on the numbers of messages and bindings.

    python -m benchmarks.embedded

To measure the broker and not the client, the client sends frames encoded beforehand, and decodes as little as
possible.
"""

import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pamqp import body, commands, frame, header

BODY = b"x" * 100
WINDOW = 10_000


class Client:
    """A blocking AMQP client that decodes as little as possible."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.socket.sendall(b"AMQP\x00\x00\x09\x01")
        self.wait(commands.Connection.Start)
        login = f"\0{parts.username}\0{parts.password}"
        self.call(commands.Connection.StartOk(mechanism="PLAIN", response=login), commands.Connection.Tune, 0)
        self.send(commands.Connection.TuneOk(2047, 131072, 0), 0)
        vhost = unquote(parts.path[1:]) or "/"
        self.call(commands.Connection.Open(virtual_host=vhost), commands.Connection.OpenOk, 0)
        self.call(commands.Channel.Open(), commands.Channel.OpenOk)

    def send(self, method, channel=1) -> None:
        self.socket.sendall(frame.marshal(method, channel))

    def call(self, method, answer, channel=1):
        self.send(method, channel)
        return self.wait(answer)

    def wait(self, kind):
        while True:
            while len(self.buffer) < 7 or len(self.buffer) < 8 + struct.unpack_from(">I", self.buffer, 3)[0]:
                self.read()
            size, _, got = frame.unmarshal(self.buffer)
            self.buffer = self.buffer[size:]
            if isinstance(got, kind):
                return got
            if isinstance(got, commands.Basic.Deliver | header.ContentHeader | body.ContentBody):
                continue
            raise RuntimeError(f"expected {kind.name}, got {got}{f': {dict(got)}' if hasattr(got, '__iter__') else ''}")

    def read(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the broker closed the connection")
        self.buffer += data


def publish_frames(exchange: str, key: str, *, persistent: bool) -> bytes:
    properties = commands.Basic.Properties(delivery_mode=2 if persistent else 1)
    return b"".join(
        (
            frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=key), 1),
            frame.marshal(header.ContentHeader(body_size=len(BODY), properties=properties), 1),
            struct.pack(">BHI", 3, 1, len(BODY)) + BODY + b"\xce",
        )
    )


def publish_confirmed(client: Client, exchange: str, key: str, count: int) -> float:
    """Publish persistent messages, with at most WINDOW unconfirmed at a time; return how many seconds it took."""
    client.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    one = publish_frames(exchange, key, persistent=True)
    lot = 500
    block = one * lot
    started = time.perf_counter()
    sent = confirmed = 0
    while confirmed < count:
        while sent < count and sent - confirmed <= WINDOW - lot:
            client.socket.sendall(block)
            sent += lot
        client.read()
        whole = len(client.buffer) // 21
        for start in range(0, whole * 21, 21):
            tag, bits = struct.unpack_from(">QB", client.buffer, start + 11)
            confirmed = max(confirmed, tag) if bits & 1 else confirmed + (tag > confirmed)
        client.buffer = client.buffer[whole * 21 :]
    return time.perf_counter() - started


def consume(client: Client, queue: str, count: int, window: int = WINDOW) -> float:
    """Consume `count` messages with a prefetch of `window`, and acknowledge them in batches; return how many seconds it
    took.
    """
    client.call(commands.Basic.Qos(prefetch_count=window), commands.Basic.QosOk)
    started = time.perf_counter()
    client.call(commands.Basic.Consume(queue=queue, consumer_tag="c"), commands.Basic.ConsumeOk)
    got = acked = 0
    bodies = 0
    while got < count:
        offset, data = 0, client.buffer
        while len(data) - offset >= 7:
            kind, _, size = struct.unpack_from(">BHI", data, offset)
            if len(data) - offset < size + 8:
                break
            bodies += kind == 3
            offset += size + 8
        client.buffer = data[offset:]
        got = bodies
        if got - acked >= window // 2 or got >= count:
            client.send(commands.Basic.Ack(delivery_tag=got, multiple=True))
            acked = got
        if got < count:
            client.read()
    elapsed = time.perf_counter() - started
    client.call(commands.Basic.Cancel(consumer_tag="c"), commands.Basic.CancelOk)
    return elapsed


class Throughput(NamedTuple):
    """Numbers of messages published and consumed per second."""

    published: float
    consumed: float


def throughput(url: str, count: int) -> Throughput:
    """Publish messages to a durable classic queue, and then consume them; return both rates in messages per second."""
    client = Client(url)
    queue = "embedded-benchmark"
    client.call(commands.Queue.Declare(queue=queue, durable=True), commands.Queue.DeclareOk)
    client.call(commands.Queue.Purge(queue=queue), commands.Queue.PurgeOk)
    publishing = publish_confirmed(client, "", queue, count)
    consuming = consume(client, queue, count)
    client.call(commands.Queue.Delete(queue=queue), commands.Queue.DeleteOk)
    client.socket.close()
    return Throughput(count / publishing, count / consuming)


def by_length(url: str, ready: int, count: int) -> float:
    """Return how many microseconds it takes to publish and consume a message while `ready` others are in the queue."""
    client = Client(url)
    queue = f"embedded-benchmark-{ready}"
    client.call(commands.Queue.Declare(queue=queue), commands.Queue.DeclareOk)
    block = publish_frames("", queue, persistent=False)
    client.socket.sendall(block * ready)
    client.call(commands.Queue.Declare(queue=queue, passive=True), commands.Queue.DeclareOk)
    started = time.perf_counter()
    client.socket.sendall(block * count)
    client.call(commands.Queue.Declare(queue=queue, passive=True), commands.Queue.DeclareOk)
    consume(client, queue, count, window=500)
    elapsed = time.perf_counter() - started
    client.call(commands.Queue.Delete(queue=queue), commands.Queue.DeleteOk)
    client.socket.close()
    return elapsed / count * 1e6


def by_bindings(url: str, kind: str, bindings: int, count: int) -> float:
    """Return how many microseconds it takes to route a message if the exchange has `bindings` bindings, of which one
    matches.
    """
    client = Client(url)
    exchange = f"embedded-benchmark-{kind}-{bindings}"
    queue = client.call(commands.Queue.Declare(exclusive=True), commands.Queue.DeclareOk).queue
    client.call(commands.Exchange.Declare(exchange=exchange, exchange_type=kind), commands.Exchange.DeclareOk)
    for number in range(bindings):
        key = f"a.{number}.*" if kind == "topic" else f"a.{number}.c"
        client.send(commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=key, nowait=True))
    client.call(commands.Queue.Purge(queue=queue), commands.Queue.PurgeOk)
    started = time.perf_counter()
    client.socket.sendall(publish_frames(exchange, "a.7.c", persistent=False) * count)
    client.call(commands.Queue.Declare(queue=queue, passive=True), commands.Queue.DeclareOk)
    elapsed = time.perf_counter() - started
    client.call(commands.Exchange.Delete(exchange=exchange), commands.Exchange.DeleteOk)
    client.socket.close()
    return elapsed / count * 1e6


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes. On Linux only."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


class Process:
    """The embedded broker in a separate process, with its data in a directory or in memory."""

    def __init__(self, *where: str) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.ready = Path(self.directory.name, "ready")
        started = time.perf_counter()
        command = [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--ready-file", str(self.ready)]
        self.process = subprocess.Popen(
            [*command, *(part.format(self.directory.name) for part in where)], stderr=subprocess.DEVNULL
        )
        while not self.ready.exists():
            if self.process.poll() is not None:
                raise RuntimeError("the embedded broker did not start")
            time.sleep(0.002)
        self.started_in = time.perf_counter() - started

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()

    @property
    def url(self) -> str:
        return self.ready.read_text().splitlines()[0]


def main() -> None:
    with Process("--in-memory") as broker:
        print(f"the broker accepts connections {broker.started_in * 1000:.0f} ms after its start")
        for ready in (100, 100_000):
            print(
                f"queue of {ready:,} messages: {by_length(broker.url, ready, 10_000):.1f} µs to publish and consume one"
            )
        for kind in ("direct", "topic"):
            for bindings in (10, 10_000):
                cost = by_bindings(broker.url, kind, bindings, 10_000)
                print(f"{kind} exchange with {bindings:,} bindings: {cost:.1f} µs to route a message")


if __name__ == "__main__":
    main()
