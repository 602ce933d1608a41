"""Limits that keep a client from filling the embedded broker's memory and buffers, or waiting forever."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pamqp import commands, frame, header

from mqtool.broker.embedded import EmbeddedBroker
from tests.protocol.conftest import Take
from tests.protocol.raw_client import RawClient
from tests.protocol.raw_stream import OPEN, RawStream, string


def connect(broker: EmbeddedBroker) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(broker.url))


@pytest.fixture
def small() -> Iterator[EmbeddedBroker]:
    """A broker with a memory limit of 1 MB."""
    with EmbeddedBroker(memory_limit=1_000_000, management_port=0) as broker:
        yield broker


def test_publishers_are_blocked_while_the_broker_is_low_on_memory(small: EmbeddedBroker) -> None:
    """A publisher gets connection.blocked when the embedded broker's memory limit is exceeded, and connection.unblocked
    when enough messages have been consumed.
    """
    publishing = connect(small)
    heard: list[str] = []
    publishing.add_on_connection_blocked_callback(lambda _c, method: heard.append(method.method.reason))
    publishing.add_on_connection_unblocked_callback(lambda _c, _m: heard.append("unblocked"))
    channel = publishing.channel()
    channel.queue_declare("q")
    take, consuming = Take(channel), connect(small)
    counting = consuming.channel()

    def depth() -> int:
        return int(counting.queue_declare("q", passive=True).method.message_count)

    def publish_until_blocked() -> int:
        count = 0
        while not heard:
            channel.basic_publish("", "q", b"x" * 10_000)
            count += 1
            # The sockets do not fill up before connection.blocked arrives.
            take.until(lambda count=count: heard or depth() == count)
        return count

    count = publish_until_blocked()
    assert heard == ["low on memory"]
    assert 1_000_000 / 11_000 < count < 2_000_000 / 10_000

    assert len(Take(consuming.channel()).bodies("q", count)) == count
    # Messages that were still in the sockets may block the publisher a second time.
    take.until(lambda: heard[-1] == "unblocked")
    channel.basic_publish("", "q", b"after")
    channel.queue_declare("q", passive=True)
    for connection in (publishing, consuming):
        connection.close()


def test_global_parameters_are_limited_by_memory(
    small: EmbeddedBroker, api_of: Callable[[EmbeddedBroker], Any]
) -> None:
    """Global parameters, queues, exchanges and bindings share a limited part of the broker's memory. Once this part
    is full, the management API refuses further global parameters with status 400 until an existing one is deleted.
    """
    api = api_of(small)
    answers = [api("PUT", f"global-parameters/p{number}", {"value": "x" * 400_000})[0] for number in range(5)]
    assert answers == [201, 201, 201, 400, 400]
    assert api("DELETE", "global-parameters/p0")[0] == 204
    assert api("PUT", "global-parameters/p1", {"value": 1})[0] == 204
    assert api("PUT", "global-parameters/p3", {"value": "x"})[0] == 201
    assert [each["name"] for each in api("GET", "global-parameters")[1]][-3:] == ["p1", "p2", "p3"]


def test_consumers_are_served_while_the_broker_is_low_on_memory(small: EmbeddedBroker) -> None:
    """While a publisher is blocked because the broker is low on memory, another client can connect and consume
    messages.
    """
    flood = RawClient(small.url)
    flood.send(commands.Queue.Declare(queue="q"))
    flood.expect(commands.Queue.DeclareOk)
    body = b"x" * 100_000
    publish = frame.marshal(commands.Basic.Publish(exchange="", routing_key="q"), 1)
    publish += frame.marshal(header.ContentHeader(body_size=len(body), properties=commands.Basic.Properties()), 1)
    publish += b"\x03\x00\x01" + len(body).to_bytes(4) + body + b"\xce"
    flood.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        flood.socket.sendall(publish * 1000)
    connection = connect(small)
    channel = connection.channel()
    take = Take(channel)
    take.until(lambda: channel.queue_declare("q", passive=True).method.message_count > 5)
    assert channel.queue_declare("q", passive=True).method.message_count < 200
    assert take.one("q")[2] == body
    connection.close()
    flood.socket.close()


def test_other_clients_can_get_the_messages_that_a_consumer_does_not_read(small: EmbeddedBroker) -> None:
    """If a consumer does not read from its socket, the broker sends only as many messages as fit into the socket's
    buffers. The other messages stay in the queue, and other clients can get them.
    """
    connection = connect(small)
    channel = connection.channel()
    channel.queue_declare("q")
    lazy = RawClient(small.url)
    lazy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.send(commands.Basic.Consume(queue="q", consumer_tag="t", no_ack=True))
    lazy.expect(commands.Basic.ConsumeOk)
    total = 3000
    for _ in range(total):
        channel.basic_publish("", "q", b"x" * 10_000)
        if channel.queue_declare("q", passive=True).method.message_count > 20:
            break
    else:
        pytest.fail("the broker sent or buffered all messages for a client that does not read")
    assert Take(channel).one("q")[2]
    lazy.socket.close()
    connection.close()


def test_up_to_rabbitmq_4_2_the_consumer_timeout_closes_the_channel() -> None:
    """If a consumer does not acknowledge a delivery within the broker's consumer timeout, an embedded broker that
    behaves like RabbitMQ 4.2 or earlier closes the consumer's channel and requeues the message.
    """
    with EmbeddedBroker(consumer_timeout=0.2) as broker, RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q"))
        client.expect(commands.Queue.DeclareOk)
        connection = connect(broker)
        channel = connection.channel()
        channel.basic_publish("", "q", b"x")
        client.send(commands.Basic.Consume(queue="q", consumer_tag="t"))
        client.expect(commands.Basic.ConsumeOk)
        client.expect(commands.Basic.Deliver)
        client.expect(header.ContentHeader)
        client.receive()
        close = client.expect(commands.Channel.Close)
        assert f"{close.reply_code} {close.reply_text}" == (
            "406 PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 200 ms. "
            "This timeout value can be configured, see consumers doc guide to learn more"
        )
        assert Take(channel).one("q")[0].redelivered
        connection.close()


def test_closed_connections_are_no_longer_counted(
    small: EmbeddedBroker, api_of: Callable[[EmbeddedBroker], Any]
) -> None:
    """After many clients have connected, declared exclusive queues and disconnected, the management API's overview
    counts 0 connections, 0 channels and 0 queues.
    """

    declared = list[str]()

    def come_and_go() -> None:
        for _ in range(20):
            with RawClient(small.url) as client:
                client.send(commands.Queue.Declare(exclusive=True))
                declared.append(client.expect(commands.Queue.DeclareOk).queue)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*declared}) == 4 * 20
    api = api_of(small)
    deadline = time.monotonic() + 60
    while True:
        totals = api("GET", "overview")[1]["object_totals"]
        if totals["connections"] == totals["channels"] == totals["queues"] == 0:
            return
        assert time.monotonic() < deadline, totals


def test_new_clients_wait_while_the_broker_has_no_file_descriptors_left(tmp_path: Path) -> None:
    """While the broker has no file descriptors left, new clients wait until other clients disconnect. The broker logs
    the shortage only once.
    """
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); "
    program = limited + "from mqtool.broker.embedded.__main__ import main; main()"
    command = [sys.executable, "-c", program, "--port", "0", "--print-url", "--log-file", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker, ExitStack() as stack:
        stack.callback(broker.terminate)
        assert broker.stdout is not None
        port = urlsplit(broker.stdout.readline()).port
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        deadline = time.monotonic() + 60
        while "no file descriptors are left" not in (said := (tmp_path / "log").read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        clients[-1].settimeout(60)
        clients[-1].sendall(b"AMQP\x00\x00\x09\x01")
        for client in clients[:-1]:
            client.close()
        assert clients[-1].recv(1) == b"\x01"
        clients[-1].close()
        assert (tmp_path / "log").read_text().count("file descriptors") == 1


def test_connected_clients_can_read_streams_while_no_file_descriptors_are_left(tmp_path: Path) -> None:
    """While the broker has no file descriptors left, a client that is already connected can still read a stream of
    several segments from the beginning.
    """
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
    program = limited + "from mqtool.broker.embedded.__main__ import main; main()"
    command = [sys.executable, "-c", program, "--port", "0", "--stream-port", "0", "--print-url"]
    command += ["--data-dir", str(tmp_path / "data"), "--log-file", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker, ExitStack() as stack:
        stack.callback(broker.terminate)
        assert broker.stdout is not None
        port = [urlsplit(broker.stdout.readline().strip()).port for _ in range(2)][1]
        assert port is not None
        reader = RawStream("127.0.0.1", port)
        reader.log_in()
        assert reader.request(OPEN, string("/")).code == 1
        assert reader.create("s", **{"stream-max-segment-size-bytes": "1000000"}) == 1
        reader.declare_publisher(1, "s")
        for number in range(12):
            reader.publish(1, number, bytes(500_000))
            reader.confirmed(1)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        deadline = time.monotonic() + 60
        while "no file descriptors are left" not in (said := (tmp_path / "log").read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        assert reader.subscribe(1, "s", credit=20) == 1
        assert len(reader.entries(12)) == 12
        for client in [*clients, reader]:
            client.close()


def test_starting_the_embedded_broker_on_a_port_in_use_raises_an_error() -> None:
    """If the embedded broker's port is in use, EmbeddedBroker.start() raises OSError in the thread that called it."""
    with EmbeddedBroker() as broker, pytest.raises(OSError, match="in use"):
        EmbeddedBroker(port=broker.port).start()
