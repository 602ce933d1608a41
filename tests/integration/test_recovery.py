"""The connection breaks while messages flow: nothing confirmed is lost, and duplicates are marked as redelivered."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pika import spec

from mqtool.amqp import Backoff, Channel, Connection, Receiving, administration, parse_addresses
from mqtool.broker.embedded.in_process import Vhost
from mqtool.broker.embedded.testing import replay as replaying
from mqtool.broker.embedded.testing.replay_client import ReplayClient
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import Confirmation, Message
from mqtool.recordings.recording import RecordedMessage
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue
from mqtool.tutorials import rpc
from tests.brokers import IN_CI, TestBroker, on_any_broker
from tests.cli.shell import wait_until
from tests.proxy import Proxy

QUORUM = Queue("q", durable=True, arguments={"x-queue-type": "quorum"})
EAGER = Backoff(first=0.01, longest=0.2)


@pytest.fixture
def proxy(broker: TestBroker) -> Iterator[Proxy]:
    with Proxy(broker.port) as proxy:
        yield proxy


@pytest.fixture
def channel(broker: TestBroker, proxy: Proxy, notices: list[str]) -> Iterator[Channel]:
    """A channel through the proxy that is reopened after a cut."""
    url = broker.url.replace(f":{broker.port}", f":{proxy.port}")
    with Connection(parse_addresses(url), backoff=EAGER, notice=notices.append) as connection:
        yield connection.channel()


@pytest.fixture
def notices() -> list[str]:
    return []


def test_a_publisher_whose_connection_is_cut_loses_no_message(
    broker: TestBroker, proxy: Proxy, channel: Channel, notices: list[str]
) -> None:
    """If a publisher's connection is cut three times while it publishes thousands of messages, every message is
    confirmed and arrives in the queue at least once.
    """
    channel.declare(QUORUM)
    count = 30_000 if IN_CI else 6_000
    cuts: list[int] = []

    def source() -> Iterator[Message]:
        for number in range(count):
            if number in (count // 6, count * 2 // 5, count * 2 // 3):
                wait_until(lambda: len(reconnections()) == len(cuts), "the connection before it is cut")
                cuts.append(proxy.cut())
            yield Message(b"%d" % number, message_id=str(number))

    def reconnections() -> list[str]:
        return [notice for notice in notices if "connected again" in notice]

    receipts = list(channel.publish(source(), routing_key="q"))

    assert len(receipts) == count
    assert {receipt.confirmation for receipt in receipts} == {Confirmation.CONFIRMED}
    arrived: set[tuple[bytes, str]] = set()
    with Connection(parse_addresses(broker.url)) as connection:
        for delivery in connection.channel().consume(QUORUM, Receiving(timeout=60)):
            arrived.add((delivery.body, delivery.properties["message_id"]))
            if len(arrived) == count:  # otherwise some are lost, and the loop times out
                break
    assert (cuts, len(reconnections())) == ([1, 1, 1], 3)
    assert sum("lost the connection" in notice for notice in notices) == 3


def test_replay_in_a_users_test_reconnects_and_loses_no_message(
    broker: TestBroker, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function replay(), which users call in their tests, reconnects each time its connection is cut, and all
    messages arrive in order. Messages that were unconfirmed may arrive twice. The client that replay() uses also
    reconnects if its connection is cut before it asks the broker whether an exchange exists.
    """
    count, recorded = 1_500, replaying.recorded
    lines = ({"body": str(n), "exchange": "", "routing_key": "q", "headers": {"n": n}} for n in range(count))
    (tmp_path / "recording").write_text("\n".join(map(json.dumps, lines)))

    def cutting(*how: Any) -> Iterator[RecordedMessage | None]:
        for number, message in enumerate(recorded(*how)):
            if number in (500, 1_000):
                proxy.break_early = number // 1_000
                proxy.cut()
            yield message

    monkeypatch.setattr(replaying, "recorded", cutting)
    url = broker.url.replace(f":{broker.port}", f":{proxy.port}")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(QUORUM)
        assert replaying.replay(url, tmp_path / "recording") == count
        assert proxy.accepted == 3
        with closing(ReplayClient(url, threading.Event())) as client:
            proxy.cut()
            assert client.has_exchange("amq.topic")
            assert not client.has_exchange("missing")
        arrived: dict[bytes, int] = {}
        for delivery in channel.consume(QUORUM, Receiving(timeout=60)):
            arrived.setdefault(delivery.body, delivery.headers["n"])
            if len(arrived) == count:
                break
    assert list(arrived.values()) == list(range(count))
    assert proxy.accepted == 5


def test_a_message_nacked_right_after_a_reconnection_is_republished(
    broker: TestBroker, proxy: Proxy, channel: Channel
) -> None:
    """If the broker nacks a message right after a reconnection, mqtool republishes the message, because the queue may
    not have had a leader yet. A nack that arrived before the connection was lost is final. In this test, a full queue
    causes both nacks.
    """
    full = Queue("full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.declare(full)

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        yield Message(b"2")
        while channel.unconfirmed:  # until one is confirmed, and the other nacked
            yield None
        proxy.cut()
        yield from (Message(b"%d" % number) for number in range(3, 8))
        with Connection(parse_addresses(broker.url)) as connection:
            other = connection.channel()
            while len(taken) < 6:
                if (delivery := other.get("full")) is not None:
                    other.acknowledge(delivery)
                    taken.append(delivery.body)
                yield None

    taken: list[bytes] = []
    receipts = list(channel.publish(source(), routing_key="full"))

    nacked = [receipt.message.body for receipt in receipts if receipt.confirmation is Confirmation.NACKED]
    assert nacked == [b"2"]
    assert len(receipts) == 7
    assert set(taken) == {b"%d" % number for number in range(1, 8)} - {b"2"}


def test_a_consumer_whose_connection_is_cut_receives_every_message(proxy: Proxy, channel: Channel) -> None:
    """If a consumer's connection is cut twice, the consumer receives every message at least once. Messages that it
    receives again are marked as redelivered.
    """
    channel.declare(QUORUM)
    for _ in channel.publish([Message(b"%d" % number) for number in range(5_000)], routing_key="q"):
        pass
    seen: dict[bytes, int] = {}
    again = []

    deliveries = channel.consume(QUORUM, Receiving(timeout=60))
    while len(seen) < 5_000:
        delivery = next(deliveries)
        seen[delivery.body] = seen.get(delivery.body, 0) + 1
        if seen[delivery.body] > 1:
            again.append(delivery)
        if len(seen) in (1_000, 3_000) and seen[delivery.body] == 1:
            proxy.cut()
    deliveries.close()

    assert all(delivery.redelivered for delivery in again)
    assert proxy.accepted == 3


def test_an_rpc_server_whose_connection_is_cut_answers_every_request(
    broker: TestBroker, proxy: Proxy, channel: Channel
) -> None:
    """If an RPC server's connection is cut, the server still answers every request, because it publishes a reply before
    it acknowledges the request.
    """
    queue = channel.declare(Queue("requests", durable=True))
    count = 1_000 if IN_CI else 200
    bodies = [b"%d" % number for number in range(count)]

    def serve() -> int:
        answered = 0
        for answered, _ in enumerate(rpc.serve(channel, queue, lambda request: Message(request.body)), 1):
            if answered in (count * 3 // 10, count * 6 // 10):
                proxy.cut()
        return answered

    with Connection(parse_addresses(broker.url)) as connection, ThreadPoolExecutor() as pool:
        server = pool.submit(serve)
        try:
            replies = {
                number: reply.body
                for number, reply in rpc.call(
                    connection.channel(), queue, [*map(Message, bodies)], Receiving(timeout=60)
                )
            }
        finally:
            channel.stop()
        assert server.result(30) >= count
        assert administration.depth(connection.channel(), queue.name).ready == 0

    assert [replies[number] for number in range(count)] == bodies
    assert proxy.accepted == 3


@pytest.mark.parametrize("reply_to", [PRIVATE_QUEUE, rpc.DIRECT_REPLY_TO], ids=["queue", "direct"])
def test_an_rpc_client_whose_connection_is_cut_gets_all_replies(
    broker: TestBroker, proxy: Proxy, channel: Channel, reply_to: Queue
) -> None:
    """If an RPC client's connection is cut, the client sends its requests again and gets all replies, whether it uses
    a private reply queue or direct reply-to.
    """

    def answer(request: Message) -> Message:
        if proxy.accepted == 1:
            proxy.cut()
            wait_until(lambda: proxy.accepted == 2 and channel.is_open, "a new connection of the client")
        return Message(request.body.upper())

    with Connection(parse_addresses(broker.url)) as connection, ThreadPoolExecutor() as pool:
        serving = connection.channel()
        queue = serving.declare(Queue("requests", durable=True))
        server = pool.submit(lambda: sum(1 for _ in rpc.serve(serving, queue, answer)))
        try:
            replies = dict(rpc.call(channel, queue, [Message(b"a"), Message(b"b")], Receiving(timeout=30), reply_to))
        finally:
            serving.stop()
        assert server.result(30) >= 2

    assert {number: reply.body for number, reply in replies.items()} == {0: b"A", 1: b"B"}


@on_any_broker
def test_a_consumer_started_after_ctrl_c_ends_immediately(channel: Channel) -> None:
    """On Ctrl-C, mqtool stops its channels. If a program then calls consume() on a stopped channel, the iteration
    ends immediately, without waiting for a message.
    """
    queue = channel.declare(Queue("q", durable=True))
    channel.stop()
    assert list(channel.consume(queue, Receiving(timeout=30))) == []


def test_a_new_connection_that_the_broker_closes_during_the_handshake_is_retried(
    proxy: Proxy, channel: Channel, notices: list[str]
) -> None:
    """If mqtool reconnects, and the broker closes the new connection during the handshake, mqtool tries again. It
    does not report that the broker refused the login.
    """
    channel.declare(QUORUM)
    proxy.break_early = 2
    proxy.cut()
    assert [receipt.confirmation for receipt in channel.publish([Message(b"x")], routing_key="q")] == ["confirmed"]
    assert proxy.break_early == 0
    assert any("closed the connection before it was open" in notice for notice in notices)


def test_an_exclusive_queue_is_declared_and_bound_again_after_a_reconnection(
    broker: TestBroker, proxy: Proxy, channel: Channel
) -> None:
    """When a connection is lost, the broker deletes the consumer's exclusive queue. After a reconnection, mqtool
    declares the queue again, with its bindings, and the consumer receives the messages that are published later.
    """
    logs = channel.declare(Exchange("logs", "direct"))
    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, logs, "info")
    channel.bind(queue, logs, "error")
    deliveries = channel.consume(queue)

    proxy.cut()
    wait_until(lambda: proxy.accepted == 2 and channel.is_open, "a new connection")
    wait_until(lambda: _bound_keys(broker) == {"info", "error"}, "the bindings")
    with Connection(parse_addresses(broker.url)) as connection:
        for _ in connection.channel().publish([Message(b"after", "error")], exchange=logs):
            pass

    assert next(deliveries).body == b"after"


def _bound_keys(broker: TestBroker) -> set[str]:
    bindings = broker.api("GET", f"exchanges/{broker.vhost}/logs/bindings/source")
    assert isinstance(bindings, list)
    return {binding["routing_key"] for binding in bindings}


@pytest.mark.parametrize(
    ("reset", "said"), [(True, "connection reset by peer"), (False, "closed by the other end")], ids=["RST", "FIN"]
)
def test_a_consumer_with_reconnection_disabled_reports_why_the_connection_was_lost(
    amqp_vhost: Vhost, *, reset: bool, said: str
) -> None:
    """If the connection is lost and reconnection is disabled, consume() raises Unavailable. The error says whether the
    connection was reset or closed.
    """
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        channel = connection.channel()
        queue = channel.declare(PRIVATE_QUEUE)
        deliveries = channel.consume(queue)
        amqp_vhost.faults.cut_connections(reset=reset)
        with pytest.raises(Unavailable, match=f"^the connection was lost: {said}$"):
            next(deliveries)


def test_queues_and_exchanges_with_different_arguments_are_reported_once(
    broker: TestBroker, proxy: Proxy, channel: Channel, notices: list[str]
) -> None:
    """If a queue or an exchange that mqtool declares already exists with different properties or arguments, mqtool
    uses the existing one unchanged. It reports the difference only once, even if it reconnects.
    """
    others = [Queue("a", durable=True, arguments={"x-max-length": 9}), Queue("b", durable=True)]
    with Connection(parse_addresses(broker.url)) as connection:
        for thing in (*others, Exchange("logs", "fanout", durable=True)):
            connection.channel().declare(thing)

    channel.declare(Exchange("logs", "fanout"))
    for name in ("a", "b"):
        channel.declare(Queue(name, durable=True, arguments={"x-max-length": 5}))
    proxy.cut()
    receipts = list(channel.publish([Message(b"x", "a"), Message(b"y", "b")]))

    assert {receipt.confirmation for receipt in receipts} == {Confirmation.CONFIRMED}
    assert [sum(f"'{name}'" in notice for notice in notices) for name in ("logs", "a", "b")] == [1, 1, 1]
    assert (channel.depth_of("a"), channel.depth_of("b")) == (1, 1)


def test_closing_a_connection_during_a_reconnection_ends_the_wait_of_other_threads_with_an_error(
    amqp_vhost: Vhost,
) -> None:
    """If a program closes a connection that mqtool is reopening, another thread that is waiting for this connection
    gets the error "the connection is closed".
    """
    for cuts, pause in ((1, 0.0), (1, 0.01), (2, 0.005), (2, 0.02)):
        connection = Connection(parse_addresses(amqp_vhost.url), backoff=EAGER)
        channel = connection.channel()
        channel.declare(QUORUM)
        ended: list[MqtoolError] = []
        asking = threading.Thread(target=_ask_until_it_fails, args=(channel, ended), daemon=True)
        asking.start()
        for _ in range(cuts):
            amqp_vhost.faults.cut_connections()
            time.sleep(pause)
        connection.close()
        asking.join(30)
        assert [str(error) for error in ended] == ["the connection is closed"]


def _ask_until_it_fails(channel: Channel, ended: list[MqtoolError]) -> None:
    try:
        while True:
            channel.depth_of("q")
    except MqtoolError as error:
        ended.append(error)


def test_a_channel_opened_during_a_reconnection_waits_for_the_connection(proxy: Proxy, channel: Channel) -> None:
    """If a program calls channel() after the connection has been lost, the call waits until the connection is open
    again, and returns a channel that can be used.
    """
    channel.declare(QUORUM)
    proxy.cut()
    assert channel.connection.channel().depth_of("q") == 0


def test_a_consumer_waits_for_a_queue_that_is_missing_after_a_reconnection(
    broker: TestBroker, proxy: Proxy, channel: Channel, notices: list[str]
) -> None:
    """If a consumer's queue no longer exists after a reconnection, mqtool reports that the queue is missing, and
    tries to consume again on the same connection. Once the queue is declared again, the consumer receives messages.
    """
    with Connection(parse_addresses(broker.url)) as connection:
        other = connection.channel()
        other.declare(QUORUM)
        deliveries = channel.consume(QUORUM)
        proxy.break_early = 1_000_000  # deleting the queue may take longer than a reconnection
        proxy.cut()
        administration.delete_queue(other, "q")
        proxy.break_early = 0
        wait_until(lambda: sum("no queue 'q'" in notice for notice in notices) >= 2, "two attempts")
        other.declare(QUORUM)
        for _ in other.publish([Message(b"back")], routing_key="q"):
            pass
        assert next(deliveries).body == b"back"
    assert proxy.accepted <= 3


class Exaggerating(Proxy):
    """A proxy that makes the announced size of 7-byte bodies, or of their header frames, enormous."""

    what = "message"

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        basic, size = struct.pack(">HH", spec.Basic.INDEX, 0), struct.pack(">Q", 7)
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if (at := data.find(basic + size)) >= 0 and self.what == "message":
                    data = data[: at + 4] + struct.pack(">Q", 1 << 62) + data[at + 12 :]
                elif at >= 0:
                    data = data[: at - 4] + struct.pack(">I", 1 << 31) + data[at:]
                target.sendall(data)


@on_any_broker
@pytest.mark.parametrize("what", ["message", "frame"])
def test_mqtool_stops_receiving_if_a_message_or_frame_is_larger_than_rabbitmq_allows(
    broker: TestBroker, what: str
) -> None:
    """If a broker announces a message of 2⁶² bytes, or a frame of 2 GiB, mqtool stops receiving and raises Unavailable
    before the rest arrives. It does not reconnect.
    """
    with Connection(parse_addresses(broker.url)) as connection:
        publisher = connection.channel()
        publisher.declare(QUORUM)
        list(publisher.publish([Message(b"7 bytes")], routing_key="q"))
    with Exaggerating(broker.port) as proxy:
        proxy.what = what
        url = broker.url.replace(f":{broker.port}", f":{proxy.port}")
        with Connection(parse_addresses(url), backoff=Backoff()) as connection:
            deliveries = connection.channel().consume(QUORUM, Receiving(timeout=20))
            with pytest.raises(Unavailable, match="the broker sends a message of more than 512 MiB"):
                next(deliveries)
        assert proxy.accepted == 1
