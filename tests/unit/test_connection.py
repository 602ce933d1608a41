"""A connection over AMQP 0-9-1 that is reopened after a loss, with an embedded broker in this process."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from pika import PlainCredentials, exceptions

from mqtool import silence
from mqtool.amqp import (
    Address,
    Backoff,
    Connection,
    Receiving,
    TlsFiles,
    basic_frames,
    connection,
    parse_addresses,
    pika_errors,
    reopening_channel,
)
from mqtool.amqp.channel import Channel
from mqtool.amqp.connection import parameters_for
from mqtool.amqp.pika_private import CertificateFirst
from mqtool.amqp.reopening_channel import ChannelListener
from mqtool.errors import DeclaredDifferently, MqtoolError, NotConfirmed, NoVirtualHost, StoppedWaiting, Unavailable
from mqtool.message import Message
from mqtool.testing import EmbeddedBroker, Vhost
from mqtool.topology import Queue

#: What the operating system says about a connection that was cut: while it is read from, or written to.
CUT = "(connection reset by peer|broken pipe)"

AT_ONCE = Backoff(first=0.001, longest=0.001)
Q = Queue("q")


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(recording=True) as broker:
        yield broker


@pytest.fixture
def vhost(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vhost]:
    monkeypatch.setattr(connection, "_ELECTION", 3600.0)  # only after a failover
    with broker.fresh_vhost() as vhost:
        yield vhost


class Told(list[str]):
    """The notices of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def __call__(self, notice: str) -> None:
        with self._changed:
            self.append(notice)
            self._changed.notify_all()

    def wait_for(self, words: str, count: int = 1) -> None:
        """Wait until this many notices contain the words."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(words in each for each in self) >= count, 10), [*self]


Connect = Callable[..., Connection]


@pytest.fixture
def connect(vhost: Vhost) -> Iterator[Connect]:
    """Open a connection. At the end of the test, it is closed, and its threads have ended."""
    before, connections = {*threading.enumerate()}, list[Connection]()

    def open_one(url: str = vhost.url, **options: Any) -> Connection:
        connections.append(Connection(parse_addresses(url), **options))
        return connections[-1]

    yield open_one
    for each in connections:
        each.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "mqtool-amqp" and thread not in before]


class Log(ChannelListener):
    """Records the events of a channel."""

    def __init__(self, channel: Channel) -> None:
        self.events: list[object] = []
        channel.reopening.listen(self)

    def opened(self, *, connection_is_new: bool) -> None:
        self.events.append(("opened", connection_is_new))

    def paused(self) -> None:
        self.events.append("paused")

    def resumed(self) -> None:
        self.events.append("resumed")

    def failed(self, failure: MqtoolError) -> None:
        self.events.append(failure)

    def closing(self) -> None:
        self.events.append("closing")


def failure_of(channel: Channel) -> MqtoolError:
    """Use a channel that cannot be used any more; return the error."""
    with pytest.raises(MqtoolError) as caught:
        channel.declare(Queue("another"))
    return caught.value


def publish(channel: Channel, *bodies: bytes) -> list[str]:
    return [each.confirmation for each in channel.publish([Message(body) for body in bodies], routing_key="q")]


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_parameters_of_a_connection_are_those_of_its_url() -> None:
    """A connection uses the host, port, virtual host, user and connection timeout of its URL. The time limit for
    opening the connection, including TLS and the AMQP handshake, is twice this timeout. If the URL sets no heartbeat,
    the broker's heartbeat is used. The broker sees the connection's name.
    """
    address = Address("one", 5673, "v", "ann", "secret", connection_timeout=7)
    context = ssl.create_default_context()
    found = parameters_for(address, context, "nightly", by_certificate=False)
    assert (found.host, found.port, found.virtual_host) == ("one", 5673, "v")
    assert (found.socket_timeout, found.stack_timeout, found.connection_attempts) == (7, 14, 1)
    assert (found.heartbeat, found.ssl_options) == (None, None)
    assert found.client_properties == {"product": "mqtool", "connection_name": "nightly"}
    assert type(found.credentials) is PlainCredentials
    assert (found.credentials.username, found.credentials.password) == ("ann", "secret")
    found = parameters_for(address._replace(heartbeat=0, tls=True), context, "nightly", by_certificate=True)
    assert found.heartbeat == 0
    assert (found.ssl_options.context, found.ssl_options.server_hostname) == (context, "one")
    assert type(found.credentials) is CertificateFirst
    assert parameters_for(address._replace(tls=True), None, "", by_certificate=False).ssl_options is None


def test_a_connection_knows_its_broker(connect: Connect, vhost: Vhost) -> None:
    """A Connection object has the broker's name and version, the name of the cluster and virtual host, and the
    maximum size of a frame. The embedded broker calls itself RabbitMQ, but mqtool shows it to the user as "the
    embedded broker".
    """
    opened = connect()
    assert opened.broker.startswith("RabbitMQ 4.")
    assert opened.broker_to_show == "the embedded broker"
    assert opened.cluster.startswith("embedded-")
    assert opened.cluster.endswith(f"@localhost {vhost.url.partition('@')[2].replace('/', ' ')}")
    assert opened.frame_max == 131_072
    assert (opened.comes_back, opened.lacks_a_node, opened.hopeless) == (False, False, None)
    opened.stop()
    assert opened.hopeless is None


def test_a_second_connection_has_the_name_of_the_first(connect: Connect, vhost: Vhost) -> None:
    """Connection.beside() opens a second connection to the same broker, with the name of the first connection. If the
    first connection was opened without a name, both are named "mqtool". If the second connection is lost, it is not
    reopened.
    """
    with connect(name="nightly", backoff=AT_ONCE).beside() as beside:
        assert not beside.comes_back
        with connect().beside():
            assert vhost.faults.cut_connections("mqtool") == 2
        assert vhost.faults.cut_connections("nightly") == 2


def test_a_stopped_command_also_stops_waiting_on_second_connections(connect: Connect) -> None:
    """When a connection is told that its command must stop, its second connections, which Connection.beside() opens,
    are told as well, even those that are opened later. Otherwise, Ctrl-C would not end a request on one of them.
    """
    opened = connect()
    with opened.beside() as earlier:
        assert not earlier.must_stop
        opened.stop()
        assert earlier.must_stop
    with opened.beside() as later:
        assert later.must_stop


def test_a_second_connection_uses_the_certificates_of_the_first(connect: Connect, vhost: Vhost) -> None:
    """A second connection that Connection.beside() opens uses the same certificates as the first one, such as those of
    --tls-ca.
    """
    read = list[str]()

    class Recorded(TlsFiles):
        def context(self) -> ssl.SSLContext:
            read.append(str(self.ca))
            return CONTEXT

    with connect(f"{vhost.url},amqps://one", tls=Recorded(ca="ours.pem")).beside():
        assert read == ["ours.pem", "ours.pem"]


def test_a_connection_uses_the_first_node_that_accepts_it(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is opened to the first of its nodes that can be reached. If this connection is lost, mqtool tries
    the same node first, and then the others. Connection.lacks_a_node says whether a node could not be reached when
    the connection was last opened.
    """
    monkeypatch.setattr(connection, "_ELECTION", 0.05)
    told, missing = Told(), f"amqp://127.0.0.1:{unused_port()}"
    opened = connect(f"{missing},{vhost.url}", notice=told, backoff=AT_ONCE)
    assert opened.lacks_a_node
    channel = opened.channel()
    vhost.faults.cut_connections()
    told.wait_for("connected again to ")
    assert told[0].startswith(f"lost the connection to {parse_addresses(vhost.url)[0]}: ")
    assert re.fullmatch(rf"connected again to {parse_addresses(vhost.url)[0]} after \d\.\d s", told[-1])
    assert not opened.lacks_a_node
    told.clear()
    with EmbeddedBroker() as other:
        both = connect(f"{other.url},{vhost.url}", notice=told, backoff=AT_ONCE)
        both.channel()
        assert not both.lacks_a_node
    told.wait_for("connected again to ")
    assert told[0].startswith(f"lost the connection to {parse_addresses(other.url)[0]}: ")
    assert told[-1].startswith(f"connected again to {parse_addresses(vhost.url)[0]} ")
    assert both.lacks_a_node
    assert channel.is_open


def test_a_refusal_is_reported_even_if_another_node_cannot_be_reached(vhost: Vhost) -> None:
    """If one of the nodes refuses a connection, for example because the virtual host does not exist, this node's
    error is raised, even if the other nodes cannot be reached. Otherwise, a command would try to reconnect forever.
    """
    [node] = parse_addresses(vhost.url)
    nodes = [Address("127.0.0.1", unused_port()), node._replace(virtual_host="missing")]
    for addresses in (nodes, nodes[::-1]):
        with pytest.raises(NoVirtualHost, match="cannot open vhost 'missing'"):
            Connection(addresses)


def test_opening_a_connection_raises_unavailable_if_no_node_can_be_reached() -> None:
    """If no node can be reached, or no address is given, opening a connection raises Unavailable."""
    for addresses, words in (
        ([Address("127.0.0.1", unused_port())], "no broker answers at"),
        ([], r"^no address to connect to$"),
    ):
        with pytest.raises(Unavailable, match=words):
            Connection(addresses)


def test_an_error_of_the_operating_system_before_connecting_raises_unavailable(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the operating system refuses a connection before it is attempted, for example because too many files are open,
    opening the connection raises Unavailable with the system's reason.
    """

    def refused(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(connection, "CONNECTION", refused)
    [address] = parse_addresses(vhost.url)
    with pytest.raises(Unavailable, match=rf"^cannot connect to {address.host}:{address.port}: too many open files$"):
        Connection([address])


def test_a_connection_that_is_lost_as_soon_as_it_is_open_raises_unavailable(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connection is lost just after the broker has accepted it, opening the connection raises Unavailable. The
    error names the node.
    """
    is_set_up = Connection._is_set_up

    def lost(self: Connection) -> bool:
        vhost.faults.cut_connections()
        vhost.wait_for(lambda: self._pika is None)
        return is_set_up(self)

    monkeypatch.setattr(Connection, "_is_set_up", lost)
    where = re.escape(str(parse_addresses(vhost.url)[0]))
    with pytest.raises(Unavailable, match=f"^the connection to {where} was lost as soon as it was open$"):
        connect()


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"", "closed the connection during the handshake"), (b"HTTP/1.1 400\r\n", "is not an AMQP 0-9-1 broker")],
)
def test_the_error_about_a_server_that_is_not_a_broker_names_the_server(answer: bytes, words: str) -> None:
    """If the server closes a new connection without an answer, or answers in another protocol, opening the connection
    raises Unavailable, which names the server and the reason.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def close_early() -> None:
            with server.accept()[0] as accepted:
                accepted.recv(8)
                accepted.sendall(answer)

        answered = pool.submit(close_early)
        port = server.getsockname()[1]
        with pytest.raises(Unavailable, match=f"^127.0.0.1:{port} .*{words}"):
            Connection([Address("127.0.0.1", port)])
        answered.result()


def test_a_broker_that_is_starting_is_tried_again() -> None:
    """If the server closes a new connection while mqtool is reconnecting, as a broker does while it is starting, mqtool
    tries again.
    """
    told = Told()
    with EmbeddedBroker() as broker:
        opened = Connection(parse_addresses(broker.url), notice=told, backoff=AT_ONCE)
    with opened, socket.create_server(("127.0.0.1", broker.port)) as server:
        server.accept()[0].close()
        told.wait_for(f"127.0.0.1:{broker.port} closed the connection before it was open")
        server.accept()[0].close()


def test_the_channels_of_a_lost_connection_that_is_not_reopened_fail(connect: Connect, vhost: Vhost) -> None:
    """If a connection without automatic reconnection is lost, its channels fail with the reason, and opening another
    channel raises the same error.
    """
    opened = connect()
    channel = opened.channel()
    log = Log(channel)
    vhost.faults.cut_connections()
    failure = failure_of(channel)
    assert type(failure) is Unavailable
    assert re.fullmatch(rf"the connection was lost: {CUT}", str(failure))
    assert log.events == [failure]
    with pytest.raises(Unavailable) as caught:
        opened.channel()
    assert caught.value is failure
    with pytest.raises(exceptions.ConnectionWrongStateError):
        opened.open_pika_channel(lambda _: None)


def test_the_channels_of_a_closed_connection_cannot_be_used(connect: Connect) -> None:
    """Connection.close() first lets the channels send what is pending, such as acknowledgements. After that, using a
    channel raises an error, opening another channel raises Unavailable, and closing the connection again has no
    effect.
    """
    with connect(backoff=AT_ONCE) as opened:
        channel = opened.channel()
        log = Log(channel)
    opened.close()
    assert str(failure_of(channel)) == "the connection is closed"
    assert log.events == ["closing", failure_of(channel)]
    with pytest.raises(Unavailable, match=r"^the connection is closed$"):
        opened.channel()


def test_closing_waits_until_the_broker_has_closed_the_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Connection.close() returns, the broker has confirmed that it has closed the connection, and so has requeued
    unacknowledged deliveries.
    """
    monkeypatch.setattr(connection, "_HOPELESS_PATIENCE", 0.0)
    opened = connect()
    pika = opened._pika
    assert pika is not None
    opened.close()
    assert pika.is_closed
    assert opened._pika is None


def test_closing_does_not_wait_long_for_a_broker_that_has_not_replied(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker has not replied to a request in time, Connection.close() waits for the broker for a shorter time
    than usual, so that a time limit such as that of `rpc-client --timeout` is kept.
    """
    monkeypatch.setattr(connection, "_CLOSE_PATIENCE", 3600.0)
    opened = connect()
    channel = opened.channel()
    opened.channel()
    with vhost.faults.go_silent():
        with pytest.raises(NotConfirmed):
            channel.ask(lambda pika, done: pika.queue_declare("q", passive=False, callback=done), within=0.01)
        opened.close()


def test_a_lost_connection_and_its_channels_are_reopened(connect: Connect, vhost: Vhost) -> None:
    """When a connection is lost, mqtool reopens it and its channels. Notices report the loss, the first and each fifth
    of the attempts that fail for the same reason, and how long reconnecting took. A caller that opens another channel
    waits until the connection is open again.
    """
    told = Told()
    opened = connect(notice=told, backoff=AT_ONCE)
    channel, where = opened.channel(), parse_addresses(vhost.url)[0]
    log = Log(channel)
    with vhost.faults.refuse_connections():
        vhost.faults.cut_connections()
        told.wait_for("attempt 5")
        assert opened.hopeless is None
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(opened.channel)
            told.wait_for("attempt 10")
            vhost.faults.clear()
            assert publish(other.result()) == []
    assert channel.declare(Q) == Q
    assert re.fullmatch(rf"lost the connection to {re.escape(str(where))}: {CUT}", told[0])
    assert told[1].startswith(f"attempt 1 to reconnect failed: no broker answers at {where.host}:{where.port}")
    numbers = [each.split()[1] for each in told if each.startswith("attempt ")]
    assert numbers[:3] == ["1", "5", "10"]
    assert re.fullmatch(rf"connected again to {where} after \d\.\d s", told[-1])
    assert log.events[0] == "paused"
    assert log.events[-1] == ("opened", True)
    assert publish(channel, b"1") == ["confirmed"]


@pytest.mark.parametrize(
    ("code", "text", "is_reopened", "words"),
    [
        (320, "CONNECTION_FORCED - shutdown", True, "the broker closed the connection: connection forced: shutdown"),
        (501, "FRAME_ERROR - odd", False, "the broker closed the connection: odd"),
        (541, "INTERNAL_ERROR - odd", False, "the broker closed the connection: odd"),
    ],
)
def test_a_connection_that_the_broker_closes_is_reopened_unless_the_cause_would_recur(
    connect: Connect, vhost: Vhost, code: int, text: str, words: str, *, is_reopened: bool
) -> None:
    """If the broker closes a connection because it is shutting down (320), mqtool reopens the connection. After an
    error that would probably recur, mqtool does not reopen it, and the channels fail with the broker's reason. Such
    errors are 501 (FRAME_ERROR), and 541 (INTERNAL_ERROR) in the first 60 s of a connection that has never been lost.
    """
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    vhost.faults.close_connections(code, text)
    if is_reopened:
        told.wait_for("connected again to ")
        assert channel.declare(Q) == Q
    else:
        assert str(failure_of(channel)) == words
        assert told == []


def test_a_connection_is_not_reopened_after_a_message_whose_headers_are_too_large(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mqtool accepts no delivery whose headers are larger than the largest message that RabbitMQ allows. If the
    server sends such a delivery, the connection's channels fail with an error that says that the message is too
    large. The connection is not reopened, since the server would send the same message again.
    """
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    channel.declare(Q)
    list(channel.publish([Message(b"", properties={"headers": {"h": "x" * 2000}})], routing_key="q"))
    monkeypatch.setattr(basic_frames, "LARGEST_MESSAGE", 1000)
    with pytest.raises(Unavailable) as caught:
        next(channel.consume(Q, Receiving(count=1)))
    assert str(caught.value) == str(pika_errors.message_too_large())
    assert failure_of(channel) is caught.value
    assert told == []


@pytest.mark.parametrize(("bodies", "how_many"), [((b"1",), "1 message"), ((b"1", b"2", b"3"), "3 messages")])
def test_the_notice_about_a_reconnection_says_how_many_messages_may_be_stored_twice(
    connect: Connect, vhost: Vhost, bodies: tuple[bytes, ...], how_many: str
) -> None:
    """If messages are unconfirmed when a connection is lost, the notice about the reconnection says how many messages
    were republished, and that they may be stored twice. If all messages were confirmed, the notice mentions none.
    """
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    channel.declare(Q)
    with ThreadPoolExecutor() as pool:
        with vhost.faults.delay_confirms():
            publishing = pool.submit(publish, channel, *bodies)
            vhost.wait_for(lambda: len(vhost.published(routing_key="q")) == len(bodies))
            vhost.faults.cut_connections()
            told.wait_for("connected again to ")
        assert publishing.result() == ["confirmed"] * len(bodies)
    assert told[-1].endswith(f" s; {how_many} republished, which may be stored twice")
    assert len(vhost.queue("q").messages(count=2 * len(bodies))) == 2 * len(bodies)
    vhost.faults.cut_connections()
    told.wait_for("connected again to ", 2)
    assert re.search(r" after \d\.\d s$", told[-1])


def test_a_connection_that_was_lost_before_is_reopened_after_its_first_internal_error(
    connect: Connect, vhost: Vhost
) -> None:
    """If a connection was lost and reopened, and the broker then closes it with 541 (INTERNAL_ERROR), mqtool reopens
    the connection. If the broker closes it with 541 a second time within a minute, the connection's channels fail,
    even if a message was confirmed between the two errors.
    """
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    vhost.faults.cut_connections()
    told.wait_for("connected again to ", 1)
    vhost.faults.close_connections(541, "INTERNAL_ERROR - odd")
    told.wait_for("connected again to ", 2)
    channel.declare(Q)
    publish(channel, b"1")
    vhost.faults.close_connections(541, "INTERNAL_ERROR - odd")
    assert str(failure_of(channel)) == "the broker closed the connection: odd"


def test_a_stable_connection_is_reopened_after_each_internal_error(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a connection has been open for more than a minute, no messages are unconfirmed, and the broker closes it
    with 541 (INTERNAL_ERROR), mqtool reopens the connection, however often this happens.
    """
    monkeypatch.setattr(connection, "_STEADY", 0.0)
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    for count in (1, 2):
        vhost.faults.close_connections(541, "INTERNAL_ERROR - odd")
        told.wait_for("connected again to ", count)
        assert channel.declare(Q) == Q


def test_a_stable_connection_fails_if_each_reconnection_ends_with_an_internal_error(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a connection that has been open for more than a minute is lost, and the broker closes each new connection
    with 541 (INTERNAL_ERROR) before the channels are open again, mqtool does not try to reconnect forever: the
    channels fail.
    """
    monkeypatch.setattr(connection, "_STEADY", 0.0)
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()

    def refused(*_: Any, **__: Any) -> None:
        vhost.faults.close_connections(541, "INTERNAL_ERROR - odd")
        vhost.wait_for(lambda: opened._pika is None)
        raise Unavailable("lost again")

    opened = channel.connection
    monkeypatch.setattr(channel.reopening, "open", refused)
    vhost.faults.cut_connections()
    assert str(failure_of(channel)) == "the broker closed the connection: odd"


def test_a_connection_fails_after_an_internal_error_while_messages_are_unconfirmed(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker closes a connection with 541 (INTERNAL_ERROR) while messages are unconfirmed, the connection is
    not reopened, and its channels fail. If mqtool published the messages again, they could cause the same error, or
    be stored twice.
    """
    monkeypatch.setattr(connection, "_STEADY", 0.0)
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    channel.declare(Q)
    with vhost.faults.delay_confirms(), ThreadPoolExecutor() as pool:
        publishing = pool.submit(publish, channel, b"1")
        vhost.wait_for(lambda: vhost.published(routing_key="q"))
        vhost.faults.close_connections(541, "INTERNAL_ERROR - odd")
        with pytest.raises(Unavailable, match="odd"):
            publishing.result()
    assert told == []


@pytest.mark.parametrize("code", [541, 501])
def test_a_connection_is_reopened_after_an_internal_error_that_a_reply_may_have_caused(
    connect: Connect, vhost: Vhost, code: int
) -> None:
    """If the broker closes an RPC server's connection with 541 (INTERNAL_ERROR) while a reply is unconfirmed, mqtool
    drops the reply, because it may have caused the error, and reopens the connection. After 501 (FRAME_ERROR), mqtool
    does not reopen the connection, and the connection's channels fail.
    """
    told = Told()
    channel = connect(notice=told, backoff=AT_ONCE).channel()
    channel.declare(Q)
    publish(channel, b"1")
    with vhost.faults.delay_confirms():
        [delivery] = channel.consume(Q, Receiving(count=1, acknowledge=False))
        channel.answer(delivery, Message(b"done", "replies", ""))
        vhost.wait_for(lambda: vhost.published(routing_key="replies"))
        vhost.faults.close_connections(code, "ERROR - odd")
        if code == 541:
            told.wait_for("connected again to ")
            assert channel.is_open
        else:
            assert str(failure_of(channel)) == "the broker closed the connection: odd"


def test_mqtool_gives_up_reconnecting_when_the_attempts_run_out(connect: Connect, vhost: Vhost) -> None:
    """If each new connection is lost within 60 s, before a message was confirmed or acknowledged, mqtool does not
    count its attempts to reconnect from 1 again after each loss, but adds them up. Once their number reaches the
    limit that the caller has set, mqtool gives up, and the connection's channels fail.
    """
    told = Told()
    opened = connect(notice=told, backoff=Backoff(first=0, attempts=2))
    channel = opened.channel()
    for count in (1, 2):
        vhost.faults.cut_connections()
        told.wait_for("connected again to ", count)
        assert channel.declare(Q) == Q
    vhost.faults.cut_connections()
    told.wait_for("lost the connection", 3)
    where = parse_addresses(vhost.url)[0]
    assert str(failure_of(channel)) == f"gave up reconnecting to {where} after 2 attempts"


@pytest.mark.parametrize("progresses", [True, False])
def test_attempts_to_reconnect_are_counted_from_1_after_a_stable_connection(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch, *, progresses: bool
) -> None:
    """If a message was confirmed on a connection, or the connection has been open for more than 60 s, the attempts to
    reconnect are counted from 1 again after the next loss.
    """
    told = Told()
    if not progresses:
        monkeypatch.setattr(connection, "_STEADY", 0.0)
    channel = connect(notice=told, backoff=Backoff(first=0, attempts=1)).channel()
    for count in (1, 2, 3):
        vhost.faults.cut_connections()
        told.wait_for("connected again to ", count)
        channel.declare(Q)
        if progresses:
            publish(channel, b"1")


def test_reconnecting_ends_if_the_broker_refuses_the_connection(connect: Connect, broker: EmbeddedBroker) -> None:
    """If a lost connection cannot be reopened because its virtual host has been deleted, mqtool makes no further
    attempt, and the connection's channels fail with the broker's reason.
    """
    told = Told()
    with broker.fresh_vhost() as vhost:
        channel = connect(vhost.url, notice=told, backoff=AT_ONCE).channel()
    told.wait_for("lost the connection")
    failure = failure_of(channel)
    assert type(failure) is NoVirtualHost
    assert str(failure).startswith(f"cannot open vhost '{vhost.name}': ")
    assert len(told) == 1


def test_neither_closing_nor_a_stopped_command_waits_for_the_next_attempt_to_reconnect(
    connect: Connect, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While mqtool is trying to reconnect, a request raises StoppedWaiting if the command has been told to stop.
    Connection.close() does not wait for the next attempt to reconnect, but ends the attempts.
    """
    monkeypatch.setattr(reopening_channel, "CHECK_INTERVAL", 0.001)
    told = Told()
    opened = connect(notice=told, backoff=Backoff(first=3600))
    channel = opened.channel()
    before = {*threading.enumerate()}
    vhost.faults.cut_connections()
    told.wait_for("lost the connection")
    [recovery] = {*threading.enumerate()} - before
    assert recovery.daemon
    assert opened.hopeless is None
    opened.stop()
    with pytest.raises(StoppedWaiting, match=r"^stopped: the connection is lost$"):
        channel.declare(Q)
    opened.close()
    assert not recovery.is_alive()
    assert len(told) == 1


def test_closing_does_not_wait_for_a_broker_that_does_not_answer_an_attempt_to_reconnect(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If mqtool is trying to reconnect, and the broker accepts the connection but does not answer, Connection.close()
    waits only for a moment, not until the attempt has failed.
    """
    monkeypatch.setattr(connection, "_CLOSE_PATIENCE", 0.01)
    told = Told()
    with EmbeddedBroker() as broker:
        url = f"{broker.url}?connection_timeout=3600000"
        opened = Connection(parse_addresses(url), notice=told, backoff=AT_ONCE)
    with opened, socket.create_server(("127.0.0.1", broker.port)) as server:
        accepted, _ = server.accept()
        opened.close()
        accepted.close()
    with pytest.raises(Unavailable, match=r"^the connection is closed$"):
        opened.channel()


def test_a_command_that_was_told_to_stop_waits_at_most_8_seconds_for_a_silent_broker(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a command has been told to stop, and waits for a broker that is frozen or cannot be reached, it gives up
    after 8 s in which the broker has sent nothing. Only the time in which the command waits is counted.
    """
    opened, now = connect(), [1000.0]
    channel = opened.channel()
    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def asked(seconds: float) -> list[str | None]:
        """Ask every half second for this long; return the different answers."""
        answers = []
        for _ in range(int(seconds * 2)):
            now[0] += 0.5
            answers.append(opened.hopeless)
        return [*dict.fromkeys(answers)]

    assert asked(60) == [None]
    opened.stop()
    assert asked(8) == [None]
    channel.declare(Q)
    assert asked(8) == [None]
    assert asked(1) == [None, "the broker does not reply"]
    now[0] += 60
    assert asked(8) == [None]
    assert asked(1) == [None, "the broker does not reply"]


def test_a_blocked_publisher_waits_until_the_broker_unblocks_it(connect: Connect, vhost: Vhost) -> None:
    """While the broker blocks publishers, a publisher waits. If the command has been told to stop, the publisher raises
    NotConfirmed instead. One notice says that the broker blocks publishers, and another that it has unblocked them.
    """
    told = Told()
    opened = connect(notice=told)
    channel = opened.channel()
    channel.declare(Q)
    log = Log(channel)
    with vhost.faults.block_publishers("low on memory"), ThreadPoolExecutor(1) as pool:
        sent = pool.submit(publish, channel, b"1")
        told.wait_for("the broker blocks publishers (low on memory); waiting until it unblocks them")
        assert opened.hopeless is None
        vhost.faults.clear()
        assert sent.result() == ["confirmed"]
    told.wait_for("the broker has unblocked publishers")
    assert told[1:] == ["the broker has unblocked publishers"]
    assert [each for each in log.events if each in ("paused", "resumed")] == ["paused", "resumed"]
    opened.stop()
    assert publish(channel, b"2") == ["confirmed"]
    with ThreadPoolExecutor(1) as pool, vhost.faults.block_publishers():
        stopped = pool.submit(publish, channel, b"3").exception(10)
    assert isinstance(stopped, NotConfirmed)
    assert str(stopped) == "stopped with 1 message unconfirmed: the broker blocks publishers"


def test_a_publisher_continues_if_the_broker_unblocked_it_while_the_connection_was_down(
    connect: Connect, vhost: Vhost
) -> None:
    """If a connection is lost while the broker blocks publishers, and the broker unblocks them before the connection
    is open again, a waiting publisher continues on the new connection.
    """
    told = Told()
    opened = connect(notice=told, backoff=AT_ONCE)
    channel = opened.channel()
    channel.declare(Q)
    with vhost.faults.block_publishers() as blocked, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(publish, channel, b"1")
        told.wait_for("the broker blocks publishers")
        with vhost.faults.refuse_connections():
            vhost.faults.cut_connections()
            told.wait_for("attempt 1")
            blocked.undo()
        assert sent.result() == ["confirmed"]
    told.wait_for("connected again")  # the confirm may come a moment before the connection knows that it is open
    opened.stop()
    assert opened.hopeless is None


BUG = "the connection broke down: IndexError('list index out of range')"


def test_a_bug_in_a_callback_makes_the_channels_fail(connect: Connect) -> None:
    """If a callback on the I/O thread raises an error, which is a bug in mqtool, the connection's channels fail with
    an error that asks the user to report the bug. A call that is waiting for the broker's reply raises the same
    error, and so does opening another channel.
    """
    opened = connect(backoff=AT_ONCE)
    channel = opened.channel()
    log, reopening, asked = Log(channel), channel.reopening, threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reopening.retrying, lambda: reopening.checked(lambda *_: asked.set()))
        assert asked.wait(10)
        opened.io.run(lambda: [][0])
        failure = failure_of(channel)
        assert waiting.exception(10) is failure
    assert (str(failure), failure.hint) == (BUG, "this is a bug in mqtool; please report it")
    assert failure_of(channel) is failure
    assert log.events == [failure]
    with pytest.raises(MqtoolError) as caught:
        opened.channel()
    assert caught.value is failure


class OddAddress(Address):
    def cluster(self, _: str | None) -> str:
        raise IndexError("list index out of range")


def test_a_bug_in_a_callback_ends_the_opening_of_a_connection(vhost: Vhost) -> None:
    """If a callback on the I/O thread raises an error while a connection is being opened, the attempt fails with an
    error that says that the connection broke down, and asks the user to report the bug.
    """
    [address] = parse_addresses(vhost.url)
    with pytest.raises(MqtoolError) as caught:
        Connection([OddAddress(*address)._replace(connection_timeout=0.5)])
    assert str(caught.value).startswith("the connection broke down: ")
    assert caught.value.hint == "this is a bug in mqtool; please report it"


def test_connection_channel_passes_its_options_to_the_channel(connect: Connect, vhost: Vhost) -> None:
    """Connection.channel() passes its options to the channel. With strict=True, declaring a queue that exists with
    other properties or arguments raises DeclaredDifferently. With mandatory=True, the broker returns unroutable
    messages. With confirm_timeout=0.1, publishing raises NotConfirmed after 0.1 s without a confirm.
    """
    told = Told()
    opened = connect(notice=told)
    opened.channel().declare(Q)
    other = Q._replace(auto_delete=True)
    opened.channel().declare(other)
    assert len(told) == 1
    with pytest.raises(DeclaredDifferently):
        opened.channel(strict=True).declare(other)
    lost = [Message(b"1", "missing", "")]
    assert [each.confirmation for each in opened.channel().publish(lost)] == ["confirmed"]
    assert [each.confirmation for each in opened.channel(mandatory=True).publish(lost)] == ["returned"]
    with vhost.faults.delay_confirms(), pytest.raises(NotConfirmed, match=r"within 0\.1 s"):
        publish(opened.channel(confirm_timeout=0.1), b"1")


class Files(TlsFiles):
    def context(self) -> ssl.SSLContext:
        return CONTEXT


CONTEXT = ssl.create_default_context()


@pytest.mark.parametrize(("url", "uses_tls"), [("amqps://one", True), ("amqps://ann:x@one", False)])
def test_a_connection_logs_in_with_the_client_certificate_if_the_url_names_no_user(
    monkeypatch: pytest.MonkeyPatch, url: str, *, uses_tls: bool
) -> None:
    """If there is a client certificate, and the broker's URL is an amqps URL that names no user, a connection logs in
    with the certificate.
    """
    asked = list[tuple[object, ...]]()

    def refuse(address: Address, context: object, name: str, *, by_certificate: bool) -> None:
        asked.append((context, name, by_certificate))
        raise Unavailable("no route")

    monkeypatch.setattr(connection, "parameters_for", refuse)
    with pytest.raises(Unavailable):
        Connection(parse_addresses(url), tls=Files(cert="file"), name="nightly")  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        Connection(parse_addresses("amqp://one"), tls=Files(cert="file"))  # type: ignore[arg-type]
    assert asked == [(CONTEXT, "nightly", uses_tls), (None, "mqtool", False)]
