"""AMQP 1.0 connections: the login, the open and close frames, malformed frames, channels and heartbeats."""

import asyncio
import logging
import math
import struct
from typing import Any

import pytest

from mqtool.broker.embedded.model.amqp_errors import access_refused
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.users import Permissions, User
from mqtool.codecs.amqp10_values import Array, Symbol, encode
from mqtool.codecs.field_tables import UInt16, UInt32
from tests.protocol.raw_amqp10 import (
    AMQP_HEADER,
    ATTACH,
    BEGIN,
    CLOSE,
    DISPOSITION,
    END,
    FLOW,
    INIT,
    MECHANISMS,
    OPEN,
    OUTCOME,
    RELEASED,
    SASL_HEADER,
    SENDER,
    TRANSFER,
    Frame,
    described,
    raw_frame,
)
from tests.unit.embedded.memory_client10 import MemoryClient10, encoded, fill, frames

FRAMING, NOT_ALLOWED = "amqp:connection:framing-error", "amqp:not-allowed"
HEARTBEAT = b"\0\0\0\x08\x02\0\0\0"


@pytest.fixture
def stranger(loop: asyncio.AbstractEventLoop, broker: Broker) -> MemoryClient10:
    """A client that has connected, but sent nothing yet."""
    return MemoryClient10(loop, broker, opened=False)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop) -> list[float]:
    """The time of the event loop, as the only item of a list."""
    now = [float(math.ceil(loop.time()))]  # clients may have connected already
    monkeypatch.setattr(loop, "time", lambda: now[0])
    return now


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the broker logs, including repeated ones."""
    lines: list[str] = []
    logger = logging.getLogger("mqtool.broker.embedded")
    monkeypatch.setattr(logger, "handle", lambda record: lines.append(record.getMessage()))
    return lines


def log_in(client: MemoryClient10, mechanism: str = "PLAIN", response: bytes | None = b"\0guest\0guest") -> list[Frame]:
    """Begin with the SASL header, and choose a mechanism; return the frames of the broker after that."""
    client.write_frames(SASL_HEADER)
    return frames(b"".join(client.write_frames(encoded(INIT, Symbol(mechanism), response, kind=1))))


def reach(client: MemoryClient10, state: str) -> None:
    """Connect until the broker is in a state: login, opening (it expects the open frame), or open (any frame)."""
    if state == "login":
        client.write_frames(SASL_HEADER)
        return
    log_in(client)
    client.write_frames(AMQP_HEADER)
    if state == "open":
        client.send(OPEN, "me")


def closed(found: list[Frame]) -> tuple[str, str | None] | None:
    """The error of the close frame, which has to be the only frame."""
    assert [(frame.channel, frame.code) for frame in found] == [(0, CLOSE)]
    return found[0].error


# The login


def test_the_broker_offers_its_sasl_mechanisms(stranger: MemoryClient10) -> None:
    """When an AMQP 1.0 client sends the SASL header, the broker answers with the SASL header and a SASL frame that
    offers the mechanisms PLAIN and ANONYMOUS. The outcome of the login is also sent in a SASL frame.
    """
    [answer] = stranger.write_frames(SASL_HEADER)
    assert answer[:8] == SASL_HEADER
    assert answer[13] == 1  # a SASL frame
    [offer] = frames(answer[8:])
    assert (offer.channel, offer.code, offer.fields[0]) == (0, MECHANISMS, [Symbol("PLAIN"), Symbol("ANONYMOUS")])
    [outcome] = stranger.write_frames(encoded(INIT, Symbol("ANONYMOUS"), kind=1))
    assert (outcome[5], frames(outcome)) == (1, [Frame(0, OUTCOME, [0])])


@pytest.mark.parametrize(
    ("mechanism", "response", "succeeds"),
    [
        ("PLAIN", b"\0guest\0guest", True),
        ("PLAIN", b"ignored\0guest\0guest", True),
        ("PLAIN", b"\0ann\0\xff", True),
        ("PLAIN", b"\0guest\0wrong", False),
        ("PLAIN", b"\0nobody\0guest", False),
        ("ANONYMOUS", None, True),
    ],
)
def test_a_login_with_a_wrong_user_or_password_closes_the_socket(
    stranger: MemoryClient10, broker: Broker, logged: list[str], mechanism: str, response: bytes | None, succeeds: bool
) -> None:
    """If an AMQP 1.0 client logs in with a correct user name and password, the SASL outcome is 0. If the user name or
    the password is wrong, the outcome is 1, and the broker closes the socket, and logs that the login was refused.
    The broker counts successful and failed logins.
    """
    broker.users["ann"] = User.with_password("ann", "\udcff", [])
    [outcome] = log_in(stranger, mechanism, response)
    assert (outcome.code, outcome.fields) == (OUTCOME, [0 if succeeds else 1])
    assert stranger.closed is not succeeds
    log_in(MemoryClient10(stranger.loop, broker, opened=False), mechanism, response)
    assert broker.logins == {("amqp10", succeeds): 2}
    if not succeeds:
        assert logged[0].endswith(f": {mechanism} login refused")


def test_anonymous_clients_are_refused_once_the_password_of_guest_is_changed(
    stranger: MemoryClient10, broker: Broker
) -> None:
    """An AMQP 1.0 client that chooses the SASL mechanism ANONYMOUS is logged in as guest with the password `guest`.
    Once guest has another password, such a login fails.
    """
    earlier = MemoryClient10(stranger.loop, broker, opened=False)
    assert [frame.fields for frame in log_in(earlier, "ANONYMOUS", None)] == [[0]]
    assert earlier.connection.user is broker.users["guest"]
    broker.users["guest"] = User.with_password("guest", "secret", [])
    assert [frame.fields for frame in log_in(stranger, "ANONYMOUS", None)] == [[1]]


@pytest.mark.parametrize(
    ("mechanism", "response", "text"),
    [
        ("PLAIN", b"guest", "response to PLAIN is not two strings behind zero octets"),
        ("PLAIN", b"\0guest\0guest\0", "response to PLAIN is not two strings behind zero octets"),
        ("PLAIN", None, "response to PLAIN is not two strings behind zero octets"),
        ("EXTERNAL", b"", "unknown authentication mechanism 'EXTERNAL'"),
        ("CRAM-MD5", b"", "unknown authentication mechanism 'CRAM-MD5'"),
    ],
)
def test_a_malformed_login_closes_the_socket(
    stranger: MemoryClient10, broker: Broker, logged: list[str], mechanism: str, response: bytes | None, text: str
) -> None:
    """If an AMQP 1.0 client chooses a SASL mechanism that the broker does not offer, or sends a malformed response for
    PLAIN, the broker closes the socket without an answer, and logs the reason.
    """
    assert log_in(stranger, mechanism, response) == []
    assert (stranger.closed, broker.logins) == (True, {})
    assert logged[0].endswith(f": {text}")


SUBJECT = ((("countryName", "DE"),), (("organizationName", "A, B"), ("mail", "x")), (("commonName", "orders"),))


@pytest.mark.parametrize(("user", "outcome"), [(r"CN=orders,O=A\, B,mail=x,C=DE", 0), ("orders", 1)])
def test_a_client_can_log_in_as_the_subject_of_its_certificate(
    loop: asyncio.AbstractEventLoop, broker: Broker, user: str, outcome: int
) -> None:
    """An AMQP 1.0 client with a TLS certificate can use the SASL mechanism EXTERNAL. Its user name is then the
    subject of the certificate, with the parts in reverse order, such as `CN=orders,O=shop,C=DE`. If there is no such
    user, the login fails.
    """
    broker.users[user] = User(user, None)
    client = MemoryClient10(loop, broker, opened=False, extra={"peercert": {"subject": SUBJECT}})
    [answer] = client.write_frames(SASL_HEADER)
    assert frames(answer[8:])[0].fields[0] == ["PLAIN", "ANONYMOUS", "EXTERNAL"]
    [found] = frames(b"".join(client.write_frames(encoded(INIT, Symbol("EXTERNAL"), kind=1))))
    assert found.fields == [outcome]
    if not outcome:
        assert client.connection.user.name == user


@pytest.mark.parametrize("header", [AMQP_HEADER, b"AMQP\x02\x01\x00\x00", b"GET / HT"])
@pytest.mark.parametrize("logged_in", [False, True])
def test_a_wrong_protocol_header_is_answered_with_the_sasl_header(
    stranger: MemoryClient10, header: bytes, logged_in: bool
) -> None:
    """If an AMQP 1.0 client does not begin with the SASL header, or does not send the AMQP header after its login, the
    broker sends the SASL header, and closes the socket.
    """
    if logged_in:
        log_in(stranger)
        header = SASL_HEADER if header == AMQP_HEADER else header
    assert stranger.write_frames(header + encoded(CLOSE)) == [SASL_HEADER]
    assert stranger.closed
    assert stranger.write_frames(AMQP_HEADER) == []


# The open frame


@pytest.mark.parametrize(("channel_max", "agreed"), [(None, 63), (UInt16(3), 3), (UInt16(63), 63), (UInt16(64), 63)])
def test_the_answer_to_an_open_frame_contains_the_brokers_limits_and_properties(
    stranger: MemoryClient10, broker: Broker, time: list[float], channel_max: UInt16 | None, agreed: int
) -> None:
    """The broker's answer to an AMQP 1.0 client's open frame contains the name of the cluster, the broker's
    capabilities, and properties that identify RabbitMQ. The max-frame-size is 128 KiB, the channel-max is 63 (or the
    client's, if that is lower), and the idle timeout is 30 seconds. After this answer, the time limit for the
    handshake no longer applies.
    """
    log_in(stranger)
    assert stranger.write_frames(AMQP_HEADER) == [AMQP_HEADER]
    properties = {Symbol("product"): "tests"}
    [answer] = stranger.send(OPEN, "me", None, UInt32(512), channel_max, None, None, None, None, None, properties)
    assert (answer.channel, answer.code) == (0, OPEN)
    capabilities = Array(map(Symbol, ("LINK_PAIR_V1_0", "ANONYMOUS-RELAY")))
    assert answer.fields[:9] == [broker.cluster_name, None, 131_072, agreed, 30_000, None, None, capabilities, None]
    found = answer.fields[9]
    assert {type(name) for name in found} == {Symbol}
    assert {"product": "RabbitMQ", "node": "embedded@localhost", "cluster_name": broker.cluster_name}.items() <= {
        *found.items()
    }
    connection = stranger.connection
    assert (connection.container, connection.frame_max, connection.is_open) == ("me", 512, True)
    assert connection.client_properties == {"product": "tests"}
    time[0] += 11
    assert stranger.answers() == []
    assert not stranger.closed


def test_a_client_without_a_max_frame_size_gets_frames_of_up_to_128_kib(client: MemoryClient10, q: BrokerQueue) -> None:
    """If an AMQP 1.0 client's open frame has no max-frame-size, the broker sends frames of up to 128 KiB."""
    fill(q, b"x" * 200_000)
    client.attach_receiver("/queues/q")
    client.loop.run_until_complete(asyncio.sleep(0))
    client.connection.data_received(
        encoded(FLOW, UInt32(0), UInt32(99), UInt32(0), UInt32(99), UInt32(0), UInt32(0), UInt32(1))
    )
    data = b"".join(client.answers())
    assert struct.unpack_from(">I", data)[0] == 131_072


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("me", "vhost:none"), "AMQP 1.0 connection failed: virtual host 'none' does not exist"),
        (("me", "vhost:other"), "access to vhost 'other' refused for user 'guest'"),
        (("me", None, UInt32(511)), "max_frame_size (511) < minimum maximum frame size (512)"),
        (("me", None, None, None, UInt32(1)), "idle-time-out (1 ms) < minimum idle-time-out (1000 ms)"),
        (("me", None, None, None, UInt32(999)), "idle-time-out (999 ms) < minimum idle-time-out (1000 ms)"),
    ],
)
def test_an_invalid_open_frame_closes_the_socket(
    stranger: MemoryClient10, broker: Broker, logged: list[str], fields: tuple[Any, ...], text: str
) -> None:
    """If an AMQP 1.0 client's open frame is invalid, the broker closes the socket without a close frame, and logs the
    reason. The open frame is invalid if the virtual host does not exist, if the user has no access to it, or if the
    max-frame-size or the idle timeout is too low.
    """
    broker.add_vhost("other")
    reach(stranger, "opening")
    assert stranger.send(OPEN, *fields) == []
    assert (stranger.closed, stranger.connection.is_open) == (True, False)
    assert logged[0].endswith(f": {text}")


@pytest.mark.parametrize("hostname", [None, "", "localhost", "vhost:/", "vhost:other"])
def test_the_host_name_in_the_open_frame_names_the_virtual_host(
    stranger: MemoryClient10, broker: Broker, hostname: str | None
) -> None:
    """If the host name in an AMQP 1.0 client's open frame begins with `vhost:`, the rest of the host name is the name
    of the virtual host. Otherwise, the client connects to the virtual host `/`.
    """
    broker.add_vhost("other")
    broker.set_permissions("guest", "other", Permissions())
    reach(stranger, "opening")
    assert [frame.code for frame in stranger.send(OPEN, "me", hostname)] == [OPEN]
    assert stranger.connection.vhost.name == ("other" if hostname == "vhost:other" else "/")
    if hostname == "vhost:other":
        broker.set_permissions("guest", "/", None)
        stranger.connection.rights.check("write", "queue", "q")


def test_the_user_guest_cannot_connect_over_amqp_1_0_from_another_machine(
    loop: asyncio.AbstractEventLoop, broker: Broker, logged: list[str]
) -> None:
    """If the user guest connects over AMQP 1.0 from another machine, the broker closes the socket, and logs the
    reason. Other users can connect from anywhere.
    """
    for user in ("guest", "ann"):
        broker.users[user] = User.with_password(user, "guest", [])
        broker.set_permissions(user, "/", Permissions())
        client = MemoryClient10(loop, broker, user=user, begin=False, extra={"peername": ("192.0.2.1", 50_000)})
        assert client.closed is (user == "guest")
    assert logged[0].endswith(": user 'guest' can only connect via localhost")


def test_a_connection_beyond_the_limit_of_a_virtual_host_is_refused(
    stranger: MemoryClient10, broker: Broker, logged: list[str]
) -> None:
    """If a client opens an AMQP 1.0 connection to a virtual host that has reached its connection limit, the broker
    closes the socket without a close frame, and logs the reason.
    """
    broker.limit_vhost(broker.vhosts["/"], {"max-connections": 0})
    reach(stranger, "opening")
    assert stranger.send(OPEN, "me") == []
    assert stranger.closed
    text = "access to vhost '/' refused for user 'guest': connection limit (0) is reached"
    assert logged[0].endswith(f": {text}")


# Frames


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_frames_that_arrive_in_pieces_are_read(stranger: MemoryClient10, size: int) -> None:
    """The broker reads AMQP 1.0 frames even if their bytes arrive in pieces of any size, or if one piece contains
    several frames. Empty frames are ignored.
    """
    opened = encoded(OPEN, "me")
    begin = raw_frame(encode(described(BEGIN, None, UInt32(0), UInt32(9), UInt32(9))), channel=5)
    plain = encoded(INIT, Symbol("PLAIN"), b"\0guest\0guest", kind=1)
    data = SASL_HEADER + plain + AMQP_HEADER + raw_frame(b"") + opened + begin + raw_frame(b"")
    answers = b"".join(
        each for start in range(0, len(data), size) for each in stranger.write_frames(data[start : start + size])
    )
    assert [frame.code for frame in frames(answers[answers.index(AMQP_HEADER) + 8 :])] == [OPEN, BEGIN]
    assert [*stranger.connection.sessions] == [5]


def test_a_frame_header_of_more_than_8_bytes_is_accepted(client: MemoryClient10) -> None:
    """The data offset of an AMQP 1.0 frame says how long its header is. If the header is longer than 8 bytes, the
    broker ignores the additional bytes.
    """
    body = encode(described(BEGIN, None, UInt32(0), UInt32(9), UInt32(9)))
    client.write_frames(raw_frame(b"\xff" * 4 + body, channel=5, words=3))
    assert [*client.connection.sessions] == [0, 5]


@pytest.mark.parametrize(
    ("state", "data", "text"),
    [
        ("open", struct.pack(">IBBH", 131_073, 2, 0, 0),
         "frame size (131073 bytes) > maximum frame size (131072 bytes)"),
        ("login", struct.pack(">IBBH", 8193, 2, 1, 0), "frame size (8193 bytes) > maximum frame size (8192 bytes)"),
        ("opening", struct.pack(">IBBH", 8193, 2, 0, 0), "frame size (8193 bytes) > maximum frame size (8192 bytes)"),
        ("open", struct.pack(">IBBH", 7, 2, 0, 0), "frame size (7 bytes) < minimum frame size (8 bytes)"),
        ("open", struct.pack(">IBBH", 8, 1, 0, 0), "data offset (1) < minimum data offset (2)"),
        ("open", struct.pack(">IBBH", 8, 3, 0, 0), "data offset (12 bytes) > frame size (8 bytes)"),
        ("open", raw_frame(b"", kind=1), "unexpected frame type 1 in amqp mode (expected 0)"),
        ("opening", raw_frame(b"", kind=1), "unexpected frame type 1 in amqp mode (expected 0)"),
        ("login", raw_frame(b"", kind=0), "unexpected frame type 0 in sasl mode (expected 1)"),
    ],
)  # fmt: skip
def test_a_malformed_frame_closes_the_connection(
    stranger: MemoryClient10, logged: list[str], state: str, data: bytes, text: str
) -> None:
    """If an AMQP 1.0 client sends a malformed frame, the broker closes the connection with
    amqp:connection:framing-error. If the connection is not open yet, the broker closes the socket without a close
    frame.
    """
    reach(stranger, state)
    found = frames(b"".join(stranger.write_frames(data)))
    assert logged == [f"AMQP 1-0 connection 127.0.0.1:50000 -> 127.0.0.1:5672: {text}"]
    if state == "open":
        assert closed(found) == (FRAMING, text)
    else:
        assert found == []
    assert stranger.closed is (state != "open")


@pytest.mark.parametrize(("state", "size"), [("login", 8192), ("opening", 8192), ("open", 131_072)])
def test_a_frame_of_exactly_the_maximum_size_is_read(stranger: MemoryClient10, state: str, size: int) -> None:
    """The broker reads AMQP 1.0 frames of up to 8 KiB during the handshake, and of up to 128 KiB after it."""
    reach(stranger, state)
    stranger.write_frames(struct.pack(">IBBH", size, 2, int(state == "login"), 0))
    assert stranger.answers() == []
    assert not stranger.closed


@pytest.mark.parametrize(
    ("state", "data", "condition", "text"),
    [
        ("login", encoded(BEGIN, None, UInt32(0), UInt32(9), UInt32(9), kind=1), NOT_ALLOWED, "unexpected begin frame"),
        ("login", encoded(CLOSE, kind=1), NOT_ALLOWED, "unexpected close frame"),
        ("opening", encoded(BEGIN, None, UInt32(0), UInt32(9), UInt32(9)), NOT_ALLOWED, "unexpected begin frame"),
        ("open", encoded(OPEN, "me"), NOT_ALLOWED, "unexpected open frame"),
        ("open", encoded(0x99), "amqp:decode-error", "cannot decode frame: "),
        ("open", raw_frame(b"\0"), "amqp:decode-error", "cannot decode frame: "),
    ],
)
def test_an_undecodable_or_unexpected_frame_closes_the_connection(
    stranger: MemoryClient10, logged: list[str], state: str, data: bytes, condition: str, text: str
) -> None:
    """If the body of an AMQP 1.0 client's frame cannot be decoded, or if a frame is not allowed at this point (for
    example, a second open frame), the broker closes the connection, and logs the reason. If the connection is not open
    yet, the broker closes the socket immediately, without a close frame.
    """
    reach(stranger, state)
    found = frames(b"".join(stranger.write_frames(data)))
    assert text in logged[0]
    if state == "open":
        error = closed(found) or ("", "")
        assert (error[0], str(error[1])[: len(text)]) == (condition, text)
    else:
        assert found == []
    assert stranger.closed is (state != "open")


def test_an_error_in_the_broker_closes_the_connection_with_internal_error(
    client: MemoryClient10, logged: list[str]
) -> None:
    """If the broker cannot handle an AMQP 1.0 client's frame because of an error in the broker itself, it logs the
    error, and closes the connection with amqp:internal-error.
    """
    client.connection.failed(KeyError("oops"))
    assert closed(client.received()) == ("amqp:internal-error", "internal error")
    assert logged[0] == "AMQP 1.0 connection 127.0.0.1:50000 -> 127.0.0.1:5672: internal error"


# Channels


@pytest.mark.parametrize(("channel", "is_valid"), [(63, True), (64, False)])
def test_a_session_can_use_the_channels_0_to_63(client: MemoryClient10, channel: int, is_valid: bool) -> None:
    """An AMQP 1.0 client can begin sessions on channels 0 to 63. If it uses a higher channel number, the broker closes
    the connection with framing-error.
    """
    body = encode(described(BEGIN, None, UInt32(0), UInt32(9), UInt32(9)))
    found = frames(b"".join(client.write_frames(raw_frame(body, channel=channel))))
    if is_valid:
        assert [(frame.channel, frame.code, frame.fields[0]) for frame in found] == [(channel, BEGIN, channel)]
    else:
        assert closed(found) == (FRAMING, "channel number (64) exceeds maximum channel number (63)")


def test_frames_for_a_session_that_has_ended_are_ignored(client: MemoryClient10) -> None:
    """After an AMQP 1.0 session has ended, the broker ignores frames on its channel, except one that begins a new
    session.
    """
    assert [frame.code for frame in client.send(END)] == [END]
    assert client.connection.sessions == {}
    assert client.flow(7, 5) == []
    assert client.send(END) == []
    assert [frame.code for frame in client.send(BEGIN, None, UInt32(0), UInt32(9), UInt32(9))] == [BEGIN]


# Closing


def used(client: MemoryClient10, q: BrokerQueue) -> None:
    """Give a client an exclusive queue and an unsettled message."""
    vhost = client.connection.vhost
    queue = vhost.add_queue(QueueDeclaration("mine", {}, owner=client.connection))
    client.connection.exclusive_queues.add(queue)
    fill(q, b"1")
    client.attach_receiver("/queues/q")
    assert [frame.code for frame in client.flow(0, 5)] == [TRANSFER]


def test_closing_a_connection_requeues_its_messages_and_deletes_its_exclusive_queues(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, logged: list[str]
) -> None:
    """When an AMQP 1.0 client closes its connection, the broker requeues the connection's unsettled messages, deletes
    its exclusive queues, answers with a close frame, and closes the socket. It logs nothing. If an operator then
    closes the same connection, nothing happens.
    """
    used(client, q)
    assert closed(client.send(CLOSE)) is None
    assert (client.closed, len(q), len(q.consumers)) == (True, 1, 0)
    assert [*broker.vhosts["/"].queues] == ["q"]
    assert client.connection.sessions == {}
    client.connection.force_close("too late")
    assert (client.received(), logged) == ([], [])


def test_the_broker_closes_a_connection_and_waits_for_the_clients_close_frame(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, time: list[float]
) -> None:
    """When an operator closes an AMQP 1.0 connection, the broker sends a close frame with an error, and ignores all
    frames until the client's close frame arrives. Then it closes the socket. If no close frame arrives within 5
    seconds, the broker closes the socket anyway.
    """
    other = MemoryClient10(client.loop, broker)
    used(client, q)
    for each in (client, other):
        each.connection.force_close("enough")
        assert closed(each.received()) == ("amqp:internal-error", 'Connection forced: "enough"')
        each.connection.force_close("again")
        assert each.send(ATTACH, "x", UInt32(5), True) == []
        assert each.send(OPEN, "me") == []
        assert not each.closed
    assert ([*broker.vhosts["/"].queues], len(q)) == (["q"], 1)
    assert client.write_frames(encoded(OPEN, "me") + encoded(CLOSE)) == []
    assert client.closed
    time[0] += 4.9
    other.answers()
    assert not other.connection.is_lost
    closing: list[bool] = []
    other.abort = lambda: closing.append(True)  # type: ignore[method-assign]
    time[0] += 0.2
    assert other.answers() == []
    assert closing or other.closed


def test_a_close_frame_contains_the_error_with_which_the_broker_closes_a_connection(client: MemoryClient10) -> None:
    """If the broker closes an AMQP 1.0 connection with an error, for example because of an injected fault, its close
    frame contains the condition and the text of this error.
    """
    client.connection.close(access_refused("not today"))
    assert closed(client.received()) == ("amqp:unauthorized-access", "not today")


# Heartbeats, flow control and memory


@pytest.mark.parametrize("idle", [UInt32(10_000), UInt32(10_999)])
def test_a_client_with_an_idle_timeout_gets_heartbeats(
    stranger: MemoryClient10, time: list[float], idle: UInt32
) -> None:
    """If an AMQP 1.0 client's open frame has an idle timeout of 10 seconds, the broker sends an empty frame every 5
    seconds, unless it has sent another frame in these 5 seconds.
    """
    reach(stranger, "opening")
    stranger.send(OPEN, "me", None, None, None, idle)
    assert stranger.connection.heartbeat == 10
    found = []
    for second in range(1, 18):
        time[0] += 1
        if b"".join(stranger.answers()) == HEARTBEAT:
            found.append(second)
    assert found == [5, 10, 15]
    stranger.send(BEGIN, None, UInt32(0), UInt32(9), UInt32(9))
    time[0] += 3.5
    assert stranger.answers() == []


@pytest.mark.parametrize("idle", [None, UInt32(0), UInt32(1000)])
def test_a_client_that_sends_nothing_for_a_minute_is_disconnected(
    stranger: MemoryClient10, time: list[float], idle: UInt32 | None
) -> None:
    """If an AMQP 1.0 client sends nothing for more than 60 seconds, the broker closes its connection, whether or not
    the client's open frame has an idle timeout. Heartbeats from the client keep its connection open.
    """
    reach(stranger, "opening")
    stranger.send(OPEN, "me", None, None, None, idle)
    for _ in range(6):
        time[0] += 30
        assert b"".join(stranger.answers()).replace(HEARTBEAT, b"") == b""
        stranger.write_frames(HEARTBEAT)
    time[0] += 60
    assert b"".join(stranger.answers()).replace(HEARTBEAT, b"") == b""
    time[0] += 30
    text = "no frame received from client within idle timeout threshold"
    assert closed(frames(b"".join(stranger.answers()))) == ("amqp:resource-limit-exceeded", text)
    time[0] += 4
    assert stranger.answers() == []


def test_session_windows_are_closed_during_an_alarm_and_reopened_after_it(
    client: MemoryClient10, broker: Broker
) -> None:
    """During a resource alarm, the broker closes the incoming windows of new AMQP 1.0 sessions and of those in which
    the client publishes, but still reads all other frames. When the alarm ends, it opens these windows again.
    """
    broker.alarms["disk"] = "low on disk"
    client.connection.block()
    assert client.connection.may_read
    assert ATTACH in [frame.code for frame in client.attach_sender("/queues/q")]
    assert [frame.fields[:2] for frame in client.publish(0) if frame.code == FLOW] == [[0, 0]]
    begin = raw_frame(encode(described(BEGIN, None, UInt32(0), UInt32(9), UInt32(9))), channel=5)
    [begun] = frames(b"".join(client.write_frames(begin)))
    assert (begun.code, begun.fields[2]) == (BEGIN, 0)
    broker.alarms.clear()
    client.connection.unblock()
    opened = [(frame.channel, *frame.fields[:2]) for frame in client.received() if frame.code == FLOW]
    assert opened == [(0, 1, 400), (5, 0, 400)]


def test_deliveries_resume_when_a_client_has_read_enough(client: MemoryClient10, q: BrokerQueue) -> None:
    """While an AMQP 1.0 client reads too slowly from its socket, the broker sends no messages to this client. Once the
    client has read enough, the broker sends the waiting messages, and completes a drain if the client has asked for
    one.
    """
    fill(q, b"1")
    client.attach_receiver("/queues/q")
    client.connection.pause_writing()
    assert client.flow(0, 5, drain=True) == []
    client.connection.resume_writing()
    assert [frame.code for frame in client.received()] == [TRANSFER, FLOW]
    assert client.connection.starving == {}


def test_unsettled_deliveries_count_towards_the_memory_use_of_the_connection(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """Each unsettled delivery of an AMQP 1.0 connection counts as 200 bytes of the connection's memory use."""
    client.attach_receiver("/queues/q")
    client.connection.count_held()
    before = client.connection.held_bytes
    fill(q, b"1", b"2")
    client.flow(0, 5)
    client.connection.count_held()
    assert client.connection.held_bytes - before == 400


@pytest.mark.parametrize("waited", [10.0, 10.5])
def test_deliveries_that_stay_unsettled_too_long_are_released(
    client: MemoryClient10, broker: Broker, monkeypatch: pytest.MonkeyPatch, waited: float
) -> None:
    """If an AMQP 1.0 delivery from a quorum queue stays unsettled for longer than the consumer timeout, the broker
    requeues the message, and sends the client a disposition with the outcome `released`.
    """
    queue = broker.vhosts["/"].add_queue(QueueDeclaration("qq", {"x-queue-type": "quorum"}, durable=True))
    now = client.connection.now()
    monkeypatch.setattr(client.connection, "now", lambda: now)
    fill(queue, b"1")
    client.attach_receiver("/queues/qq")
    client.flow(0, 1)
    now += waited
    client.connection.check_consumers(10.0)
    assert len(queue) == int(waited > 10)
    released = [(each.code, each.field(0), each.field(1), each.field(4)) for each in client.received()]
    assert released == ([(DISPOSITION, SENDER, 0, described(RELEASED))] if waited > 10 else [])


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_delivery_that_is_unsettled_at_the_end_of_a_connection_counts_as_failed(
    client: MemoryClient10, broker: Broker, is_lost: bool
) -> None:
    """If an AMQP 1.0 client closes its connection, or the connection is lost, each unsettled delivery from a quorum
    queue counts as a failed delivery towards the queue's delivery limit.
    """
    queue = broker.vhosts["/"].add_queue(QueueDeclaration("qq", {"x-queue-type": "quorum"}, durable=True))
    fill(queue, b"1")
    client.attach_receiver("/queues/qq")
    client.flow(0, 1)
    if is_lost:
        client.connection.connection_lost(None)
    else:
        client.send(CLOSE)
    assert [entry.delivery_count for entry in queue.backlog.in_memory()] == [1]
