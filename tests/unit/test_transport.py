"""A single AMQP 1.0 connection: login, frames and heartbeats. The tests send the broker's bytes before mqtool reads."""

import os
import select
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from mqtool.amqp import Address
from mqtool.amqp10 import transport
from mqtool.amqp10.reopening_transport import LOST
from mqtool.amqp10.transport import Transport
from mqtool.codecs.amqp10_frames import (
    AMQP_HEADER,
    HEARTBEAT,
    SASL,
    SASL_HEADER,
    Close,
    Error,
    Flow,
    Open,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    decode_performative,
    frame,
)
from mqtool.codecs.amqp10_values import Array, Symbol
from mqtool.errors import AccessRefused, MqtoolError, Unavailable

ADDRESS = Address("127.0.0.1", 5672, "my vhost", "ann", "secret\udcff", names_user=True)
MECHANISMS = frame(0, SaslMechanisms(Array([Symbol("PLAIN"), Symbol("EXTERNAL")])), SASL)
LOGGED_IN = SASL_HEADER + MECHANISMS + frame(0, SaslOutcome(0), SASL)
FLOW = frame(0, Flow(0, 1, 2, 3))


def opened(**settings: Any) -> bytes:
    """What a broker sends until the connection is open."""
    return LOGGED_IN + AMQP_HEADER + frame(0, Open("broker", **settings))


class Broker:
    """The broker's end of a connection.

    Attributes:
        now: the time in seconds.
        asked: the host, the port and the time limit of each connection that was opened.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[tuple[tuple[str, int], float]] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.socket = listener.accept()[0]
        self.transport: Transport | None = None

    def create_connection(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.asked.append((address, timeout))
        self.client.settimeout(10)
        return self.client

    def monotonic(self) -> float:
        return self.now

    def connect(self, data: bytes, address: Address = ADDRESS, **options: Any) -> Transport:
        """Send these bytes as the broker, and then connect mqtool, which finds them in its socket."""
        self.socket.sendall(data)
        self.transport = Transport(address, None, "name", **options)
        return self.transport

    def shrink_buffers(self) -> None:
        """Shrink the socket buffers, so that the operating system keeps less than 1 MB of unread data."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def received(self) -> bytes:
        """The bytes that have arrived from mqtool, so far."""
        data = b""
        while select.select([self.socket], [], [], 0)[0] and (piece := self.socket.recv(1 << 20)):
            data += piece
        return data

    def arrives(self, data: bytes) -> None:
        """Send bytes, and wait until mqtool can read them."""
        self.socket.sendall(data)
        assert select.select([self.client], [], [], 10)[0]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    broker = Broker()
    monkeypatch.setattr(transport.socket, "create_connection", broker.create_connection)
    monkeypatch.setattr(transport, "time", broker)
    yield broker
    broker.socket.close()
    broker.client.close()
    if broker.transport is not None:
        broker.transport.close(politely=False)


def split(data: bytes) -> list[bytes]:
    """The bodies of frames."""
    bodies = []
    while data:
        size = int.from_bytes(data[:4], "big")
        assert data[6:8] == b"\0\0", "channel 0"
        bodies.append(data[8:size])
        data = data[size:]
    return bodies


def performatives(data: bytes) -> list[Any]:
    return [decode_performative(body)[0] for body in split(data)]


def test_a_connection_logs_in_and_opens_the_virtual_host(broker: Broker) -> None:
    """An AMQP 1.0 connection logs in with the user's name and password (SASL PLAIN), and opens the virtual host of the
    URL. Its open frame contains the name that the caller has chosen, a max-frame-size of 128 KiB, and an idle timeout
    of 60 seconds.
    """
    connected = broker.connect(opened(properties={Symbol("version"): "4.1.0", Symbol("product"): "RabbitMQ"}))
    assert connected.properties == {"version": "4.1.0", "product": "RabbitMQ"}
    assert {type(name) for name in connected.properties} == {str}
    assert broker.asked == [(("127.0.0.1", 5672), 5.0)]
    data = broker.received()
    assert data.startswith(SASL_HEADER)
    login, separator, rest = data.removeprefix(SASL_HEADER).partition(AMQP_HEADER)
    assert separator
    assert login[5] == SASL
    assert performatives(login) == [SaslInit("PLAIN", b"\0ann\0secret\xff")]
    [answer] = performatives(rest)
    prefix, pid, unique = answer.container_id.rsplit("-", 2)
    assert (prefix, pid, len(unique)) == ("name", str(os.getpid()), 8)
    assert answer._replace(container_id="") == Open(
        "",
        hostname="vhost:my vhost",
        max_frame_size=131_072,
        channel_max=1,
        idle_time_out=60_000,
        properties={Symbol("product"): "mqtool", Symbol("connection_name"): "name"},
    )
    assert connected.fileno() == broker.client.fileno()


@pytest.mark.parametrize(("heartbeat", "expected"), [(0, None), (7, 7000), (None, 60_000)])
def test_the_heartbeat_in_the_url_is_the_idle_timeout_and_0_means_none(
    broker: Broker, heartbeat: int | None, expected: int | None
) -> None:
    """When mqtool opens an AMQP 1.0 connection, it sends the heartbeat of the URL as its idle timeout, in milliseconds.
    Without a heartbeat in the URL, it sends 60,000 ms. With a heartbeat of 0, it sends no idle timeout.
    """
    broker.connect(opened(), ADDRESS._replace(heartbeat=heartbeat))
    [answer] = performatives(broker.received().partition(AMQP_HEADER)[2])
    assert answer.idle_time_out == expected


@pytest.mark.parametrize(
    ("offered", "names_user", "mechanism"),
    [("EXTERNAL", False, "EXTERNAL"), ("EXTERNAL", True, "PLAIN"), ("ANONYMOUS", False, "PLAIN")],
)
def test_sasl_external_is_used_if_the_address_names_no_user_and_the_broker_offers_it(
    broker: Broker, offered: str, *, names_user: bool, mechanism: str
) -> None:
    """An AMQP 1.0 connection logs in with the SASL mechanism EXTERNAL if its address names no user, and the broker
    offers EXTERNAL. In all other cases, it logs in with a user name and a password (PLAIN).
    """
    offer = frame(0, SaslMechanisms(Array([Symbol("PLAIN"), Symbol(offered)])), SASL)
    data = SASL_HEADER + offer + opened().removeprefix(SASL_HEADER + MECHANISMS)
    broker.connect(data, ADDRESS._replace(names_user=names_user))
    [login] = performatives(broker.received().removeprefix(SASL_HEADER).partition(AMQP_HEADER)[0])
    assert login.mechanism == mechanism
    assert (login.initial_response == b"") is (mechanism == "EXTERNAL")


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", Unavailable, "127.0.0.1:5672 closed the connection during the handshake"),
        (SASL_HEADER, Unavailable, "127.0.0.1:5672 closed the connection during the handshake"),
        (SASL_HEADER[:5], Unavailable, "accepted the connection, but is not an AMQP 1.0 broker"),
        (b"HTTP/1.1 400 Bad Request", Unavailable, "accepted the connection, but is not an AMQP 1.0 broker"),
        (b"AMQP\0\0\x09\x01", Unavailable, "127.0.0.1:5672 does not speak AMQP 1.0"),
        (SASL_HEADER + b"\0\0\0\x07\2\1\0\0" + bytes(50), Unavailable, "does not speak AMQP 1.0"),
        (SASL_HEADER + b"\0\2\0\1\2\1\0\0" + bytes(50), Unavailable, "does not speak AMQP 1.0"),
        (SASL_HEADER + b"\0\0\0\x10\1\1\0\0" + bytes(50), Unavailable, "does not speak AMQP 1.0"),
        (SASL_HEADER + b"\0\0\0\x10\5\1\0\0" + bytes(50), Unavailable, "does not speak AMQP 1.0"),
        (SASL_HEADER + MECHANISMS + frame(0, SaslOutcome(1), SASL), AccessRefused, "refused the login of user 'ann'$"),
        (SASL_HEADER + MECHANISMS + frame(0, Close()), AccessRefused, "refused the login of user 'ann'$"),
        (LOGGED_IN, AccessRefused, "cannot open vhost 'my vhost'"),
        (LOGGED_IN + AMQP_HEADER, AccessRefused, "cannot open vhost 'my vhost'"),
        (LOGGED_IN + AMQP_HEADER + frame(0, Close(Error(Symbol("c"), "the reason"))), AccessRefused, "^the reason$"),
        (LOGGED_IN + AMQP_HEADER + frame(0, Close(Error(Symbol("amqp:internal-error"), "vhost is down"))), Unavailable,
         "^vhost is down$"),
        (LOGGED_IN + AMQP_HEADER + FLOW, AccessRefused, "cannot open vhost 'my vhost'"),
    ],
)  # fmt: skip
def test_the_error_of_a_connection_that_cannot_be_opened_gives_the_reason(
    broker: Broker, data: bytes, kind: type[MqtoolError], words: str
) -> None:
    """If an AMQP 1.0 connection cannot be opened, mqtool's error gives the reason: the server closed the socket, does
    not speak AMQP 1.0, refused the login, or refused the virtual host. mqtool closes the socket. If the virtual host
    is only temporarily unavailable, the error is Unavailable, after which mqtool can try to connect again.
    """
    broker.socket.sendall(data)
    broker.end()
    with pytest.raises(kind, match=words) as error:
        Transport(ADDRESS, None, "name")
    assert type(error.value) is kind
    assert broker.client.fileno() == -1


class FakeTls:
    """A replacement for an SSLContext that records which sockets it wraps. Wrapping raises the given error, if any."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.wrapped: list[tuple[socket.socket, str]] = []

    def wrap_socket(self, plain: socket.socket, *, server_hostname: str) -> socket.socket:
        self.wrapped.append((plain, server_hostname))
        if self.error is not None:
            raise self.error
        return plain


@pytest.mark.parametrize("tls", [True, False])
def test_tls_is_used_for_amqps_urls_only(broker: Broker, *, tls: bool) -> None:
    """An AMQP 1.0 connection uses TLS only if the URL begins with amqps://. The broker's certificate is then checked
    for the host name of the URL.
    """
    context: Any = FakeTls()
    broker.socket.sendall(opened())
    broker.transport = Transport(ADDRESS._replace(tls=tls), context, "name")
    assert context.wrapped == ([(broker.client, "127.0.0.1")] if tls else [])


def test_a_socket_whose_tls_handshake_fails_is_closed(broker: Broker) -> None:
    """If the TLS handshake of an AMQP 1.0 connection fails, the error gives the reason. mqtool closes the socket."""
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    context: Any = FakeTls(error)
    with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:5672 does not speak TLS: wrong version number$"):
        Transport(ADDRESS._replace(tls=True), context, "name")
    assert broker.client.fileno() == -1


class FailingSocket(socket.socket):
    """A socket whose recv() raises an error."""

    error: Exception

    def recv(self, *_: object) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required"), AccessRefused,
         "^127.0.0.1:5672 does not accept the client certificate: certificate required$"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Unavailable,
         "^127.0.0.1:5672 closed the connection during the handshake$"),
    ],
)  # fmt: skip
def test_a_client_certificate_that_is_refused_after_the_tls_handshake_raises_an_error(
    broker: Broker, error: Exception, kind: type[MqtoolError], words: str
) -> None:
    """With TLS 1.3, a broker refuses a client certificate only after the TLS handshake. If the broker names the
    certificate as the reason for closing the connection, mqtool's error says that the broker does not accept the
    certificate. If the broker gives no reason, the error says only that the broker closed the connection.
    """
    broker.client = FailingSocket(fileno=broker.client.detach())
    broker.client.error = error
    with pytest.raises(kind, match=words) as raised:
        Transport(ADDRESS, None, "name")
    assert type(raised.value) is kind
    assert broker.client.fileno() == -1


class SlowSocket(socket.socket):
    """A socket on which at most three bytes arrive at a time."""

    def recv(self, size: int, *_: object) -> bytes:
        return super().recv(min(size, 3))


def test_a_connection_is_opened_if_the_brokers_answers_arrive_in_pieces(broker: Broker) -> None:
    """mqtool opens an AMQP 1.0 connection even if the broker's answers arrive in small pieces."""
    broker.client = SlowSocket(fileno=broker.client.detach())
    connected = broker.connect(opened(max_frame_size=4096))
    assert connected.frame_max == 4096


def test_a_connection_is_opened_if_the_brokers_frames_have_extended_headers(broker: Broker) -> None:
    """mqtool opens an AMQP 1.0 connection even if a frame that the broker sends during the login has an extended
    header. mqtool skips the additional bytes.
    """
    answer = frame(0, SaslOutcome(0), SASL)
    extended = (len(answer) + 72).to_bytes(4, "big") + b"\x14\1\0\0" + b"more" * 18 + answer[8:]
    broker.connect(SASL_HEADER + MECHANISMS + extended + opened().removeprefix(LOGGED_IN))


@pytest.mark.parametrize("data", [b"", SASL_HEADER, LOGGED_IN])
def test_a_socket_that_is_closed_during_a_reconnection_is_a_network_failure(broker: Broker, data: bytes) -> None:
    """If the broker closes the socket during a reconnection over AMQP 1.0, before the connection is open, mqtool raises
    Unavailable. It does not report a refused login, because its first login succeeded.
    """
    broker.socket.sendall(data)
    broker.end()
    with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:5672 closed the connection before it was open$"):
        Transport(ADDRESS, None, "name", logged_in_before=True)
    assert broker.client.fileno() == -1


def test_the_error_of_a_refused_connection_names_the_host_and_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """If mqtool opens an AMQP 1.0 connection, and nothing listens on the broker's port, the error names the host and
    the port.
    """

    def refuse(*_: object) -> socket.socket:
        raise ConnectionRefusedError

    monkeypatch.setattr(transport.socket, "create_connection", refuse)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:5672"):
        Transport(ADDRESS, None, "name")


@pytest.mark.parametrize(
    ("offered", "expected"), [(None, 131_072), (131_073, 131_072), (4096, 4096), (512, 512), (1, 512)]
)
def test_frames_are_at_most_as_large_as_both_ends_accept(broker: Broker, offered: int | None, expected: int) -> None:
    """mqtool sends AMQP 1.0 frames of at most 128 KiB, or of the broker's max-frame-size if this is smaller. A
    max-frame-size of less than 512 bytes counts as 512 bytes.
    """
    assert broker.connect(opened(max_frame_size=offered)).frame_max == expected


def test_frames_are_read_however_the_bytes_are_split(broker: Broker) -> None:
    """An AMQP 1.0 connection's read() returns the bodies of all frames that have arrived completely. It skips
    heartbeats and extended headers. A frame that has arrived in part is returned by a later call.
    """
    connected = broker.connect(opened())
    broker.arrives(FLOW[:3])
    assert connected.read(1) == []
    broker.arrives(FLOW[3:10])
    assert connected.read(1) == []
    broker.arrives(FLOW[10:] + HEARTBEAT + FLOW + FLOW[:8])
    assert connected.read(1) == [FLOW[8:], FLOW[8:]]
    broker.arrives(FLOW[8:])
    assert connected.read(1) == [FLOW[8:]]
    extended = (len(FLOW) + 4).to_bytes(4, "big") + b"\3\0\0\0" + b"more" + FLOW[8:]
    broker.arrives(extended)
    assert connected.read(1) == [FLOW[8:]]
    broker.arrives(b"\0\0\0\x0e\3\0\0\0moreAB")
    assert connected.read(1) == [b"AB"]
    largest = (131_072).to_bytes(4, "big") + b"\2\0\0\0" + bytes(131_064)
    bodies: list[bytes] = []
    broker.socket.sendall(largest)
    while not bodies:
        bodies = connected.read(10)
    assert bodies == [bytes(131_064)]


@pytest.mark.parametrize(("size", "offset"), [(7, 2), (131_073, 2), (8, 1), (8, 3)])
def test_a_frame_with_an_impossible_size_or_data_offset_ends_the_connection(
    broker: Broker, size: int, offset: int
) -> None:
    """If the broker sends an AMQP 1.0 frame with an impossible size or data offset, read() raises ValueError, and the
    connection counts as lost. A size is impossible if it is smaller than a frame header or larger than mqtool accepts.
    A data offset is impossible if the body would begin inside the header or beyond the end of the frame.
    """
    connected = broker.connect(opened())
    broker.arrives(size.to_bytes(4, "big") + bytes((offset, 0, 0, 0)))
    with pytest.raises(ValueError, match="not a frame") as raised:
        connected.read(1)
    assert isinstance(raised.value, LOST)


def test_read_returns_the_last_frames_before_it_reports_that_the_broker_closed_the_socket(broker: Broker) -> None:
    """If the broker closes the socket of an AMQP 1.0 connection, read() first returns the frames that have arrived, and
    then raises EOFError.
    """
    connected = broker.connect(opened())
    broker.arrives(FLOW)
    broker.end()
    assert connected.read(1) == [FLOW[8:]]
    with pytest.raises(EOFError):
        connected.read(1)


def test_wake_makes_read_return_early(broker: Broker) -> None:
    """After wake() has been called, the next read() of an AMQP 1.0 connection returns immediately, without frames.
    Later calls to read() wait again. wake() never blocks, however often it is called.
    """
    connected = broker.connect(opened())
    for _ in range(5000):
        connected.wake()
    assert connected.read(3600) == []
    while select.select([connected._wakes], [], [], 0)[0]:
        assert connected.read(3600) == []
    broker.arrives(FLOW)
    assert connected.read(3600) == [FLOW[8:]]
    assert connected.read(0) == []


def test_a_heartbeat_is_sent_after_a_third_of_the_brokers_idle_timeout(broker: Broker) -> None:
    """If the broker's idle timeout of an AMQP 1.0 connection is 30 seconds, mqtool sends a heartbeat whenever it has
    sent nothing for 10 seconds.
    """
    connected = broker.connect(opened(idle_time_out=30_000))
    broker.received()
    broker.now += 9.9
    connected.read(0)
    assert broker.received() == b""
    assert connected._until_heartbeat(60) == pytest.approx(0.1)
    assert connected._until_heartbeat(0.05) == 0.05
    broker.now += 0.1
    connected.read(60)
    assert broker.received() == HEARTBEAT
    broker.now += 5
    connected.send([FLOW])
    broker.now += 9.9
    connected.read(0)
    assert broker.received() == FLOW
    broker.now += 50
    assert connected._until_heartbeat(60) == 0


def test_no_heartbeats_are_sent_to_a_broker_without_an_idle_timeout(broker: Broker) -> None:
    """If the broker sets no idle timeout for an AMQP 1.0 connection, mqtool sends no heartbeats."""
    connected = broker.connect(opened(), ADDRESS._replace(heartbeat=0))
    broker.received()
    broker.now += 100_000
    assert connected.read(0) == []
    assert broker.received() == b""
    assert connected._until_heartbeat(60) == 60


def test_a_connection_is_lost_if_the_broker_sends_nothing_for_the_heartbeat_interval(broker: Broker) -> None:
    """If the broker sends nothing on an AMQP 1.0 connection, not even a heartbeat, for longer than the heartbeat in the
    URL, read() raises TimeoutError, and the connection counts as lost.
    """
    connected = broker.connect(opened(), ADDRESS._replace(heartbeat=7))
    broker.now += 5
    broker.arrives(HEARTBEAT)
    assert connected.read(1) == []
    broker.now += 7
    assert connected.read(0) == []
    broker.now += 0.1
    with pytest.raises(TimeoutError, match="the broker sent nothing, not even a heartbeat") as raised:
        connected.read(0)
    assert isinstance(raised.value, LOST)
    assert raised.value.strerror == "the broker sent nothing, not even a heartbeat"


def test_frames_that_are_sent_together_arrive_unchanged(broker: Broker) -> None:
    """send() with several AMQP 1.0 frames sends these frames, in order, and nothing else."""
    connected = broker.connect(opened())
    broker.received()
    connected.send([FLOW, HEARTBEAT, FLOW])
    assert broker.received() == FLOW + HEARTBEAT + FLOW


def test_frames_that_the_socket_does_not_accept_are_sent_later(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker does not read from an AMQP 1.0 connection, mqtool's frames wait, and send() does not block.
    send() wakes read(), which sends the waiting frames in order once the broker reads again.
    """
    connected = broker.connect(opened())
    broker.received()
    wakes = list[None]()
    monkeypatch.setattr(connected, "wake", lambda: wakes.append(None))
    connected.send([FLOW])
    assert (connected.unsent, wakes, broker.received()) == (0, [], FLOW)
    broker.shrink_buffers()
    large = [frame(0, Close(Error(Symbol("c"), f"{number}" + "x" * 20_000))) for number in range(100)]
    for each in large:
        connected.send([each])
    assert 0 < connected.unsent < len(b"".join(large))
    assert len(wakes) == 1
    data = b""
    while connected.unsent:
        data += broker.received()
        connected.read(10)
    while len(data) < len(b"".join(large)):
        data += broker.socket.recv(1 << 20)
    assert data == b"".join(large)


def test_pending_frames_and_a_close_frame_are_sent_before_a_connection_is_closed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing an AMQP 1.0 connection sends the pending frames and a close frame, waits for the broker's close frame,
    and closes the socket.
    """
    connected = broker.connect(opened())
    broker.received()
    broker.shrink_buffers()
    pending = frame(0, Close(Error(Symbol("c"), "x" * 100_000))) * 20
    connected.send([pending])
    assert connected.unsent
    sent, answers, read = bytearray(), [FLOW, FLOW, frame(0, Close())], connected.read

    def answered(seconds: float) -> list[bytes]:
        """Read like the connection; the broker answers once everything has arrived, in several steps."""
        sent.extend(broker.received())
        if sent == pending + frame(0, Close()):
            broker.arrives(answers.pop(0))
        broker.now += 0.01
        return read(seconds)

    monkeypatch.setattr(connected, "read", answered)
    connected.close()
    assert answers == []
    assert sent == pending + frame(0, Close())
    assert broker.client.fileno() == -1


def test_a_lost_connection_is_closed_without_a_close_frame(broker: Broker) -> None:
    """Closing an AMQP 1.0 connection that has been lost closes the socket immediately, and sends no close frame. After
    that, send() and wake() do nothing.
    """
    connected = broker.connect(opened())
    broker.received()
    connected.close(politely=False)
    assert broker.received() == b""
    assert broker.client.fileno() == -1
    connected.wake()
    connected.send([FLOW])


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, ValueError])
def test_a_connection_that_is_lost_while_it_is_being_closed_raises_no_error(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """If an AMQP 1.0 connection is lost while mqtool is closing it, or if the broker sends a malformed frame at that
    time, mqtool closes the socket and raises no error.
    """

    def read(_: float) -> list[bytes]:
        raise error

    connected = broker.connect(opened())
    monkeypatch.setattr(connected, "read", read)
    connected.close()
    assert broker.client.fileno() == -1


class RecordingPoll:
    """A replacement for select.poll() that records what read() waits for. Nothing is ever ready."""

    def __init__(self) -> None:
        self.registered: dict[object, int] = {}
        self.waits: list[float] = []

    def register(self, what: object, events: int) -> None:
        self.registered[what] = events

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        self.waits.append(milliseconds)
        return []


def test_read_waits_until_the_socket_accepts_data_only_if_frames_are_unsent(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """read() of an AMQP 1.0 connection waits, up to its timeout, until the broker has sent something. While frames are
    unsent, and only then, the wait also ends as soon as the socket accepts more data.
    """
    poll = RecordingPoll()
    monkeypatch.setattr(transport.select, "poll", lambda: poll)
    connected = broker.connect(opened())
    assert poll.registered == {connected._wakes: select.POLLIN}
    assert connected.read(2.5) == []
    assert poll.registered[broker.client] == select.POLLIN
    broker.shrink_buffers()
    connected.send([b"x" * 2_000_000])
    assert connected.unsent
    assert connected.read(0.5) == []
    assert poll.registered[broker.client] == select.POLLIN | select.POLLOUT
    assert poll.waits == [2500, 500]


def test_close_waits_at_most_one_second_for_the_brokers_close_frame(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When mqtool closes an AMQP 1.0 connection, and the broker does not answer with a close frame, mqtool closes the
    socket after one second.
    """
    connected = broker.connect(opened())
    waits = list[float]()

    def read(seconds: float) -> list[bytes]:
        waits.append(seconds)
        broker.now += seconds
        return [FLOW[8:]]

    monkeypatch.setattr(connected, "read", read)
    connected.close()
    assert sum(waits) == pytest.approx(1.0, abs=0.11)
    assert broker.client.fileno() == -1
