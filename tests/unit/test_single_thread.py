"""The connection of `bench`, which has no thread of its own, to a broker that does what the test says."""

import os
import ssl
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pika import exceptions, frame, spec

from mqtool.address import Address, TlsFiles
from mqtool.amqp import pika_private, single_thread
from mqtool.amqp.administration import declare_request
from mqtool.amqp.pika_private import CertificateFirst, FastConnection
from mqtool.amqp.single_thread import SingleThreadConnection
from mqtool.amqp.unconfirmed import Route
from mqtool.errors import AccessRefused, NotFound, NothingAnswers, Unavailable
from mqtool.message import Delivery, Message
from mqtool.topology import Queue
from tests.open_files import open_files
from tests.unit.scripted_broker import ScriptedBroker

NODE, PLAIN = Address("node", 4000, user="u"), TlsFiles()
LOOK = declare_request(Queue("q"), passive=True)
MISSING = 404, "NOT_FOUND - no queue 'q' in vhost '/'", 0, 0


class LoopBroker(ScriptedBroker):
    """A broker whose answers arrive while the event loop of the connection runs.

    Attributes:
        parameters: what the connection was opened with.
        unsent: the number of bytes that the socket has not accepted yet.
    """

    def connect(self, parameters: Any, *, custom_ioloop: Any, **callbacks: Any) -> FastConnection:
        self.parameters, self.unsent = parameters, 0
        self.io = SimpleNamespace(run=custom_ioloop.add_callback_threadsafe)
        self._pika = FastConnection(
            parameters, custom_ioloop=custom_ioloop, internal_connection_workflow=False, **callbacks
        )
        transport = SimpleNamespace(write=self._receive, abort=self._abort, get_write_buffer_size=lambda: self.unsent)
        self._pika._proto_connection_made(transport)
        capabilities = {"basic.nack": True, "publisher_confirms": True, "consumer_cancel_notify": True}
        self.send(spec.Connection.Start(0, 9, {"capabilities": capabilities}, b"PLAIN", b"en_US"), 0)
        self.send(spec.Connection.Tune(2047, self.frame_max, 0), 0)
        self.send(spec.Connection.OpenOk(), 0)
        return self._pika

    def _abort(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """Lose the connection."""
        self.io.run(lambda: self._pika._proto_connection_lost(error))

    def _take(self, received: Any) -> None:
        super()._take(received)
        if isinstance(received, frame.Method) and isinstance(received.method, spec.Connection.Close):
            self.methods.append(received.method)
            if spec.Connection.Close not in self.silent:
                self.send(spec.Connection.CloseOk(), 0)

    def _answer(self, method: Any, number: int) -> None:
        super()._answer(method, number)
        if isinstance(method, spec.Confirm.Select):
            self.send(spec.Confirm.SelectOk(), number)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopBroker]:
    broker = LoopBroker()
    monkeypatch.setattr(pika_private, "CONNECTION", broker.connect)
    yield broker
    broker.close()


@pytest.fixture
def connection(broker: LoopBroker) -> Iterator[SingleThreadConnection]:
    connection = SingleThreadConnection(NODE, PLAIN)
    yield connection
    connection.close()
    assert broker.of(spec.Channel.Open)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each wait, which takes no time if the broker has sent nothing."""
    waits, run_for, clock = list[float](), pika_private.run_for, SimpleNamespace(now=100.0)

    def run_at_once(loop: Any, seconds: float) -> None:
        assert clock.now < 200, "the connection never stops waiting"
        waits.append(seconds)
        run_for(loop, 0.0)
        clock.now += seconds

    monkeypatch.setattr(pika_private, "run_for", run_at_once)
    monkeypatch.setattr(single_thread, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return waits


def wait_for(connection: SingleThreadConnection, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        connection.wait(1)


@pytest.mark.parametrize("by_certificate", [True, False])
def test_a_bench_client_connects_with_the_settings_of_its_address(
    broker: LoopBroker, monkeypatch: pytest.MonkeyPatch, *, by_certificate: bool
) -> None:
    """The connection of a `bench` client uses the host, port, user and TLS settings of its address, and has the name in
    $MQTOOL_CONNECTION_NAME. It logs in with the client certificate if there is one and no user is given.
    """
    monkeypatch.setenv("MQTOOL_CONNECTION_NAME", "mine")
    SingleThreadConnection(NODE, PLAIN).close()
    plain = broker.parameters
    assert (plain.host, plain.port, plain.credentials.username, plain.ssl_options) == ("node", 4000, "u", None)
    assert plain.client_properties["connection_name"] == "mine"
    context = ssl.create_default_context()
    asked: list[Address] = []
    tls: Any = SimpleNamespace(context=lambda: context, logs_in=lambda address: asked.append(address) or by_certificate)
    secure = NODE._replace(tls=True)
    SingleThreadConnection(secure, tls).close()
    assert broker.parameters.ssl_options.context is context
    assert isinstance(broker.parameters.credentials, CertificateFirst) is by_certificate
    assert asked == [secure]


def test_connecting_to_an_address_where_nothing_listens_raises_an_error_with_the_address() -> None:
    """If nothing listens at the broker's address, a `bench` client raises NothingAnswers, which names the address.
    The client leaves no open files.
    """
    before = open_files()
    with pytest.raises(NothingAnswers, match=r"127\.0\.0\.1:1\b"):
        SingleThreadConnection(Address("127.0.0.1", 1), PLAIN)
    assert open_files() <= before


def test_a_closed_connection_leaves_no_open_files(broker: LoopBroker) -> None:
    """When a `bench` client closes its connection, it sends connection.close to the broker, waits for the broker's
    reply, and closes its files.
    """
    before = open_files()
    connection = SingleThreadConnection(NODE, PLAIN)
    assert not open_files() <= before
    connection.close()
    assert len(broker.of(spec.Connection.Close)) == 1
    assert broker._pika.is_closed
    assert open_files() <= before


def test_a_connection_waits_at_most_2_seconds_for_the_reply_when_it_is_closed(
    broker: LoopBroker, connection: SingleThreadConnection, waits: list[float]
) -> None:
    """If the broker does not reply when a `bench` client closes its connection, the client stops waiting after 2
    seconds.
    """
    broker.silent = {spec.Connection.Close}
    connection.close()
    assert waits == [2.0]


def test_a_connection_reports_when_data_last_arrived_and_how_many_bytes_are_unsent(
    broker: LoopBroker, connection: SingleThreadConnection
) -> None:
    """The connection of a `bench` client reports when the latest data arrived, and how many bytes the socket has not
    accepted yet.
    """
    began = time.monotonic_ns()
    assert connection.received_at < began
    connection.ask(LOOK)
    assert began <= connection.received_at <= time.monotonic_ns()
    broker.unsent = 77
    assert connection.unsent == 77


def test_a_request_returns_the_brokers_reply(
    broker: LoopBroker, connection: SingleThreadConnection, waits: list[float]
) -> None:
    """A request of a `bench` client returns the broker's reply. If no reply arrives within 20 seconds, the request
    raises ConnectionError.
    """
    broker.depth = 3
    assert connection.ask(LOOK).method.message_count == 3
    broker.silent = {spec.Queue.Declare}
    waits.clear()
    with pytest.raises(ConnectionError, match=r"^the broker does not answer$"):
        connection.ask(LOOK)
    assert sum(waits) == 20


def test_waiting_ends_when_a_watched_file_descriptor_can_be_read(connection: SingleThreadConnection) -> None:
    """wait() of a `bench` client's connection returns after the given time, or earlier if a file descriptor that the
    connection watches for the caller, such as the read end of a pipe, becomes readable. Before returning early, wait()
    calls the function that the caller has given for this file descriptor.
    """
    reading, writing = os.pipe()
    read: list[bytes] = []
    connection.watch(reading, lambda: read.append(os.read(reading, 9)))
    began = time.monotonic()
    connection.wait(0.01)
    assert time.monotonic() - began >= 0.009
    assert read == []
    os.write(writing, b"x")
    connection.wait(100)
    assert read == [b"x"]
    assert time.monotonic() - began < 50
    os.close(writing)
    os.close(reading)


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (320, ConnectionError, "the broker closed the connection: stopped"),
        (541, ConnectionError, "the broker closed the connection: INTERNAL_ERROR"),
        (403, AccessRefused, "ACCESS_REFUSED"),
    ],
)
def test_a_connection_that_the_broker_closes_raises_its_error(
    broker: LoopBroker, connection: SingleThreadConnection, code: int, error: type[Exception], words: str
) -> None:
    """If the broker closes the connection of a `bench` client because of a shutdown or an internal error, wait()
    raises ConnectionError, so that the caller reconnects. For any other reason, wait() raises the broker's error,
    such as AccessRefused. After that, close() sends nothing to the broker.
    """
    broker.send(spec.Connection.Close(code, words.rpartition(": ")[2], 0, 0), 0)
    with pytest.raises(error, match=words):
        wait_for(connection, lambda: False)
    with pytest.raises(error):
        connection.wait(0)
    connection.close()
    assert broker.of(spec.Connection.Close) == []


def test_a_lost_connection_raises_connection_error(broker: LoopBroker, connection: SingleThreadConnection) -> None:
    """If the connection of a `bench` client is lost, wait() raises ConnectionError, so that the caller reconnects."""
    broker.lose(exceptions.StreamLostError("reset"))
    with pytest.raises(ConnectionError, match=r"^the connection was lost: "):
        wait_for(connection, lambda: False)


def test_the_error_of_a_channel_is_raised_even_if_the_connection_is_then_lost(
    broker: LoopBroker, connection: SingleThreadConnection
) -> None:
    """If the broker closes the channel of a `bench` client because of an error, and the connection is lost afterwards,
    the client's wait() raises the error of the channel, not the loss of the connection.
    """
    broker.send(spec.Channel.Close(*MISSING))
    broker.lose(exceptions.StreamLostError("reset"))
    with pytest.raises(NotFound, match="no queue 'q'"):
        wait_for(connection, lambda: False)


def test_further_channels_are_opened_and_closed(broker: LoopBroker, connection: SingleThreadConnection) -> None:
    """A `bench` client can open and close further channels on its connection, and waits for the broker's replies. If
    the broker closes one of these channels because of an error, wait() raises this error.
    """
    channel = connection.open_channel()
    assert channel.is_open
    assert len(broker.of(spec.Channel.Open)) == 2
    connection.close_channel(channel)
    assert channel.is_closed
    connection.wait(0)
    connection.open_channel()
    broker.send(spec.Channel.Close(*MISSING))
    with pytest.raises(NotFound, match="no queue 'q'"):
        wait_for(connection, lambda: False)


@pytest.mark.parametrize("decoder", ["mqtool", "pika"])
def test_confirms_and_nacks_are_passed_to_the_caller(
    broker: LoopBroker, connection: SingleThreadConnection, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    """A `bench` client publishes several messages in one write, with the exchange and routing key that its caller
    gives. The caller gets each confirm and each nack with its delivery tag and the flag `multiple`, whether mqtool or
    pika decodes it.
    """
    if decoder == "pika":
        monkeypatch.setattr(pika_private, "take_confirms", lambda *_: None)
    answers: list[tuple[str, int, bool]] = []
    connection.confirm(
        lambda tag, *, multiple: answers.append(("ack", tag, multiple)),
        lambda tag, *, multiple: answers.append(("nack", tag, multiple)),
    )
    broker.confirms = False
    large = Message(bytes(70_000))
    connection.publish([Message(b"1"), large], Route("x", "key"))
    assert broker.writes[-1] == ["Basic.Publish"] * 2
    assert [message for _, message in broker.published] == [Message(b"1", "key", "x"), Message(large.body, "key", "x")]
    assert broker.largest_frame == broker.frame_max
    broker.send(spec.Basic.Ack(1, False))
    broker.send(spec.Basic.Nack(3, True))
    broker.send(spec.Basic.Ack(5, True))
    wait_for(connection, lambda: len(answers) == 3)
    assert answers == [("ack", 1, False), ("nack", 3, True), ("ack", 5, True)]


@pytest.mark.parametrize("decoder", ["mqtool", "pika"])
@pytest.mark.parametrize("auto_ack", [True, False])
def test_a_bench_client_receives_and_acknowledges_deliveries(
    broker: LoopBroker,
    connection: SingleThreadConnection,
    monkeypatch: pytest.MonkeyPatch,
    decoder: str,
    *,
    auto_ack: bool,
) -> None:
    """A `bench` client starts a consumer with the arguments and, unless auto_ack is set, the prefetch that `bench`
    gives to the client. `bench` gets each delivery, whether mqtool or pika decodes it. If `bench` acknowledges several
    deliveries in one call, the client sends all acknowledgements in one write.
    """
    if decoder == "mqtool":
        monkeypatch.setattr(single_thread, "delivery_from", lambda *_: pytest.fail("pika has decoded a delivery"))
    else:
        monkeypatch.setattr(pika_private, "take_deliveries", lambda *_: None)
    taken: list[Delivery] = []
    connection.consume("q", taken.extend, prefetch=30, auto_ack=auto_ack, arguments={"x-priority": 5})
    assert [method.prefetch_count for method in broker.of(spec.Basic.Qos)] == ([] if auto_ack else [30])
    [consume] = broker.of(spec.Basic.Consume)
    assert (consume.queue, consume.no_ack, consume.arguments) == ("q", auto_ack, {"x-priority": 5})
    broker.send(
        spec.Basic.Deliver(consume.consumer_tag, 7, True, "x", "key"),
        content=Message(b"body", properties={"headers": {"n": 1}}),
    )
    wait_for(connection, lambda: taken)
    [got] = taken
    assert (got.body, got.exchange, got.routing_key, got.queue) == (b"body", "x", "key", "q")
    assert (got.redelivered, got.delivery_tag, got.epoch, got.headers) == (True, 7, 0, {"n": 1})
    connection.acknowledge([(5, True), (7, False)])
    assert broker.acks == [(5, True), (7, False)]
    assert broker.writes[-1] == ["Basic.Ack"] * 2


def test_a_consumer_that_the_broker_cancels_raises_unavailable(
    broker: LoopBroker, connection: SingleThreadConnection
) -> None:
    """If the broker cancels the consumer of a `bench` client, wait() raises Unavailable, which names the queue and the
    possible reasons.
    """
    connection.consume("q", pytest.fail, prefetch=1, auto_ack=True)
    broker.send(spec.Basic.Cancel(broker.of(spec.Basic.Consume)[0].consumer_tag, True))
    with pytest.raises(Unavailable) as error:
        wait_for(connection, lambda: False)
    assert str(error.value) == (
        "the broker cancelled the consumer: queue 'q' was deleted, its node is down, "
        "or a message was not acknowledged within the consumer timeout (RabbitMQ 4.3)"
    )
