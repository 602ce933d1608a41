"""pika's private methods, and its public ones in their place: both with an embedded broker in this process."""

import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pika import spec
from pika.adapters.select_connection import IOLoop, SelectConnection

from mqtool.address import TlsFiles
from mqtool.amqp import parse_addresses, pika_private
from mqtool.amqp.pika_private import CertificateFirst, FastConnection, run_for
from mqtool.amqp.single_thread import SingleThreadConnection
from mqtool.amqp.unconfirmed import Route
from mqtool.errors import BadData, MqtoolError, UsageError
from mqtool.message import Delivery, Message
from mqtool.testing import EmbeddedBroker, Vhost

BOTH = pytest.mark.parametrize("kind", [FastConnection, pika_private._PublicConnection], ids=["fast", "public"])


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(recording=True) as broker:
        yield broker


@pytest.fixture
def vhost(broker: EmbeddedBroker) -> Iterator[Vhost]:
    with broker.fresh_vhost() as vhost:
        yield vhost


Connect = Callable[[type[SelectConnection]], SingleThreadConnection]


@pytest.fixture
def connect(vhost: Vhost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Open a connection with one of pika's classes. It has the queue `q`, and is closed at the end of the test."""
    connections = list[SingleThreadConnection]()

    def open_one(kind: type[SelectConnection]) -> SingleThreadConnection:
        monkeypatch.setattr(pika_private, "CONNECTION", kind)
        connections.append(SingleThreadConnection(parse_addresses(vhost.url)[0], TlsFiles()))
        connections[-1].ask(lambda pika, done: pika.queue_declare("q", callback=done))
        return connections[-1]

    yield open_one
    vhost.faults.clear()
    for each in connections:
        each.close()


class Consumer(list[Delivery]):
    """The deliveries of `q`."""

    def __init__(self, connection: SingleThreadConnection, *, auto_ack: bool = True) -> None:
        super().__init__()
        self._connection = connection
        connection.consume("q", self.extend, prefetch=0, auto_ack=auto_ack)

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self) < count and time.monotonic() < deadline:
            self._connection.wait(1)
        assert len(self) == count


@BOTH
def test_messages_are_sent_with_their_properties(connect: Connect, kind: type[SelectConnection]) -> None:
    """Whether mqtool or pika encodes a message, it is published with its own exchange, routing key, properties and
    message id. If the message has no exchange or no routing key, the one that the caller gives is used instead. With
    persistent=True, a message without a delivery mode is persistent. A property whose value is None is not sent.
    """
    connection = connect(kind)
    connection.ask(lambda pika, done: pika.queue_bind("q", "amq.fanout", callback=done))
    consumer = Consumer(connection)
    ours = Message(b"1", properties={"headers": {"n": 1}, "app_id": None, "content_type": "text/plain"}, message_id="i")
    connection.publish([ours, Message(b"2", properties={"delivery_mode": 1})], Route("", "q", persistent=True))
    connection.publish([Message(b"3", "", "amq.fanout")], Route("missing", "missing"))
    connection.publish([Message(b"4", "q"), Message(b"x" * 300_000, "q", "")], Route("", "missing"))
    consumer.wait_for(5)
    assert [each.body for each in consumer] == [b"1", b"2", b"3", b"4", b"x" * 300_000]
    where = [(each.exchange, each.routing_key) for each in consumer]
    assert where == [("", "q"), ("", "q"), ("amq.fanout", ""), ("", "q"), ("", "q")]
    given = [{name: value for name, value in each.properties.items() if value is not None} for each in consumer[:3]]
    assert given == [
        {"headers": {"n": 1}, "content_type": "text/plain", "message_id": "i", "delivery_mode": 2},
        {"delivery_mode": 1},
        {},
    ]


@BOTH
def test_an_acknowledgement_with_multiple_applies_to_all_deliveries_up_to_it(
    connect: Connect, vhost: Vhost, kind: type[SelectConnection]
) -> None:
    """An acknowledgement that mqtool sends applies to one delivery or, with `multiple`, to all deliveries up to this
    one, whether mqtool or pika encodes the acknowledgement.
    """
    connection = connect(kind)
    consumer = Consumer(connection, auto_ack=False)
    connection.publish([Message(b"%d" % number) for number in range(5)], Route("", "q"))
    consumer.wait_for(5)
    connection.acknowledge([(consumer[2].delivery_tag, True), (consumer[4].delivery_tag, False)])
    queue = vhost.queue("q")
    while len(queue.acked) < 4:
        connection.wait(0.01)
    connection.close()
    assert [each.body for each in queue.messages()] == [b"3"]


@BOTH
def test_the_size_of_encoded_messages_is_that_of_their_frames_or_bodies(
    connect: Connect, kind: type[SelectConnection]
) -> None:
    """mqtool writes several messages together once their total size reaches a limit. If mqtool encodes the messages,
    the size of their frames counts. If pika encodes them, the size of their bodies counts.
    """
    writer = pika_private.writer(connect(kind)._channel, 4096)
    size = writer.encode([Message(b"x" * 10_000), Message(b"y")], Route("", "q")).size
    assert (size == 10_001) is (kind is not FastConnection)
    assert 10_001 <= size < 10_200


@BOTH
def test_unroutable_messages_are_returned_only_if_they_are_mandatory(
    connect: Connect, kind: type[SelectConnection]
) -> None:
    """If a message that mqtool publishes is unroutable, the broker returns it only if mqtool has set the flag
    `mandatory`. In both cases, the broker confirms the message. This is true whether mqtool or pika encodes the
    message.
    """
    connection = connect(kind)
    log = list[object]()
    connection._channel.add_on_return_callback(lambda *told: log.append(told[3]))
    connection.confirm(lambda tag, *, multiple: log.append((tag, multiple)), pytest.fail)
    connection.publish([Message(b"1", "missing", "")], Route(mandatory=True))
    connection.publish([Message(b"2", "missing", "")], Route())
    while log[-1:] not in ([(2, False)], [(2, True)]):
        connection.wait(10)
    assert [each for each in log if isinstance(each, bytes)] == [b"1"]


@BOTH
@pytest.mark.parametrize(
    ("message", "kind_of_error"),
    [
        (Message(b"", "q", "", {"headers": {"x": 1j}}), BadData),
        (Message(b"", "q" * 300, ""), UsageError),
        (Message(b"", "q", "x" * 300), UsageError),
    ],
    ids=["header", "routing key", "exchange"],
)
def test_an_error_about_a_message_that_cannot_be_encoded_leaves_the_connection_usable(
    connect: Connect, kind: type[SelectConnection], message: Message, kind_of_error: type[MqtoolError]
) -> None:
    """Publishing a message raises an error if the message has a header that AMQP cannot express, or if its exchange
    name or routing key is too long. The connection can be used afterwards.
    """
    connection = connect(kind)
    with pytest.raises(kind_of_error):
        connection.publish([message], Route())
    consumer = Consumer(connection)
    connection.publish([Message(b"1")], Route("", "q"))
    consumer.wait_for(1)


def test_names_and_arguments_are_unchanged_when_mqtool_encodes_them(connect: Connect) -> None:
    """When mqtool's own encoder is used, names stay as they are, even if they are not UTF-8. Numbers in arguments keep
    their exact value: a binding whose argument `n` is 1.5 matches only messages whose header `n` is 1.5. When pika
    encodes a message, a routing key that is not UTF-8 raises UsageError.
    """
    connection = connect(FastConnection)
    for exchange, key, arguments in (
        ("amq.direct", "kéy\udcff", None),
        ("amq.headers", "", {"x-match": "all", "n": 1.5}),
    ):
        connection.ask(lambda pika, done: pika.queue_bind("q", exchange, key, arguments=arguments, callback=done))  # noqa: B023
    consumer = Consumer(connection)
    connection.publish([Message(b"1", "kéy\udcff", "amq.direct")], Route())
    for number in (1, 1.25, 1.5):
        connection.publish([Message(b"%g" % number, "", "amq.headers", {"headers": {"n": number}})], Route())
    consumer.wait_for(2)
    assert [(each.body, each.routing_key) for each in consumer] == [(b"1", "kéy\udcff"), (b"1.5", "")]
    with pytest.raises(UsageError):
        connect(SelectConnection).publish([Message(b"", "\udcff", "")], Route())


class Counting(FastConnection):
    """Counts the bytes that pika receives."""

    counted = 0

    def _on_data_available(self, data_in: bytes) -> None:
        self.counted += len(data_in)
        super()._on_data_available(data_in)


def test_received_bytes_are_counted_and_returned_messages_are_decoded(connect: Connect) -> None:
    """A connection counts all bytes that it receives, whether mqtool or pika decodes them, because pika's heartbeats
    rely on this number. It also knows when the latest byte arrived. It decodes a returned message even if the routing
    key is not UTF-8.
    """
    began, returned = time.monotonic_ns(), list[str]()
    connection = connect(Counting)
    connection._channel.add_on_return_callback(lambda *told: returned.append(told[1].routing_key))
    connection.publish([Message(b"1", "k\udcff", "amq.direct")], Route(mandatory=True))
    consumer = Consumer(connection)
    connection.publish([Message(b"1")] * 3, Route("", "q"))
    consumer.wait_for(3)
    assert returned == ["k\udcff"]
    pika: Any = connection._pika
    assert pika.bytes_received == pika.counted > 0
    assert began < connection.received_at < time.monotonic_ns()


@pytest.mark.parametrize("external", [True, False])
def test_a_client_with_a_certificate_logs_in_with_external_if_the_broker_offers_it(*, external: bool) -> None:
    """A client with a certificate logs in with SASL EXTERNAL if the broker offers this mechanism, and otherwise with
    PLAIN.
    """
    start = spec.Connection.Start(mechanisms=b"PLAIN EXTERNAL" if external else b"PLAIN EXTERNALLY")
    found = CertificateFirst("ann", "secret").response_for(start)
    assert found == (("EXTERNAL", b"") if external else ("PLAIN", b"\0ann\0secret"))


@BOTH
def test_unsent_bytes_and_the_time_of_the_latest_arrival_are_known_only_with_pikas_private_methods(
    connect: Connect, vhost: Vhost, kind: type[SelectConnection]
) -> None:
    """With pika's private methods, a connection of mqtool knows how many bytes the socket has not accepted yet, for
    example because the broker does not read. It also knows when the latest data from the broker arrived. If mqtool
    cannot use these methods, it reports 0 unsent bytes, and the current time as the time of the latest arrival.
    """
    connection = connect(kind)
    assert connection.unsent == 0
    with vhost.faults.go_silent():
        for _ in range(10):
            connection.publish([Message(b"x" * 4_000_000)], Route("", "q"))
        assert (connection.unsent > 1_000_000) is (kind is FastConnection)
    arrived = connection.received_at
    assert (connection.received_at > arrived) is (kind is not FastConnection)


class Loop:
    """An event loop of pika whose private names are these."""

    def __init__(self, loop: IOLoop, *private: str) -> None:
        self.poll, self.process_timeouts = loop.poll, loop.process_timeouts
        if private:
            self._poller = SimpleNamespace(**{private[0]: loop._poller._poll})
            self._get_remaining_interval = loop._get_remaining_interval
        else:
            self.call_later, self.remove_timeout = loop.call_later, loop.remove_timeout


@pytest.mark.parametrize("private", [("_poll",), ("_kqueue",), ()], ids=["epoll", "kqueue", "public"])
def test_run_for_returns_when_the_event_loop_has_processed_an_event_or_its_time_is_over(
    private: tuple[str, ...],
) -> None:
    """run_for() runs pika's event loop for up to the given time. It returns earlier once the loop has processed a
    readable socket, a due timer or a waiting callback. This is true whether or not mqtool can use pika's private names.
    """
    loop, log = IOLoop(), list[str]()
    loop.activate_poller()
    run: Any = Loop(loop, *private)
    ours, theirs = socket.socketpair()

    def readable(*_: object) -> None:
        log.append(ours.recv(9).decode())

    loop.add_handler(ours.fileno(), readable, IOLoop.READ)
    began = time.monotonic()
    run_for(run, 0.02)
    assert time.monotonic() - began >= 0.02
    assert log == []
    theirs.send(b"data")
    run_for(run, 60)
    loop.call_later(0.01, lambda: log.append("timer"))
    while "timer" not in log:
        run_for(run, 60)
    timer = loop.call_later(60, lambda: None)
    run_for(run, 0.001)
    loop.remove_timeout(timer)
    loop.add_callback_threadsafe(lambda: log.append("callback"))
    run_for(run, 60)
    assert log == ["data", "timer", "callback"]
    assert time.monotonic() - began < 30
    loop.deactivate_poller()
    loop.close()
    ours.close()
    theirs.close()
