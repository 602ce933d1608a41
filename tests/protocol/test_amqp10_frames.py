"""AMQP 1.0, frame by frame: on the embedded broker, and on RabbitMQ 4.0 and later."""

import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.amqp10_message import Amqp10Message
from mqtool.codecs.amqp10_values import Array, Char, Symbol, ULong, encode
from mqtool.codecs.field_tables import Int32, UInt8, UInt16, UInt32
from tests.brokers import TestBroker, skip_or_fail
from tests.protocol.conftest import Api, Take
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    AMQP_HEADER,
    ATTACH,
    BEGIN,
    CLOSE,
    COORDINATOR,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    INIT,
    MECHANISMS,
    MODIFIED,
    OPEN,
    OUTCOME,
    RECEIVED,
    RECEIVER,
    REJECTED,
    RELEASED,
    SASL_HEADER,
    SENDER,
    SETTLED,
    SOURCE,
    TARGET,
    TRANSFER,
    UNSETTLED,
    RawAmqp10,
    described,
    message,
    raw_frame,
)

#: Several times the credit that a sender gets at first.
_MORE_THAN_CREDIT = 1000

ACCEPT, RELEASE, REJECT = described(ACCEPTED), described(RELEASED), described(REJECTED)


@pytest.fixture(scope="module")
def embedded() -> Iterator[Callable[[str], TestBroker]]:
    """Return a function that starts an embedded broker for a version, once per version."""
    started: dict[str, EmbeddedBroker] = {}

    def of(like: str) -> TestBroker:
        if like not in started:
            started[like] = EmbeddedBroker(like=like, management_port=0, stream_port=0).start()
        broker = started[like]
        streams = f"rabbitmq-stream://127.0.0.1:{broker.stream_port}"
        return TestBroker("embedded", broker.url.removesuffix("/%2F"), str(broker.management_url), streams=streams)

    yield of
    for each in started.values():
        each.stop()


@pytest.fixture(params=["4.0", "4.3", "rabbitmq"], ids=lambda like: like if like == "rabbitmq" else f"embedded-{like}")
def broker(request: pytest.FixtureRequest, embedded: Callable[[str], TestBroker]) -> Iterator[TestBroker]:
    """Embedded brokers that behave like RabbitMQ 4.0 and 4.3, and RabbitMQ itself if it is 4.0 or later."""
    is_real = request.param == "rabbitmq"
    found = request.getfixturevalue("rabbitmq") if is_real else embedded(request.param)
    if found is None:
        skip_or_fail("no rabbitmq-server is installed, and MQTOOL_TEST_URL names none")
    fresh = found.with_fresh_vhost(f"test-{uuid.uuid4().hex[:12]}")
    try:
        if not fresh.differs_since("4.0", "AMQP 1.0 is part of the broker"):
            pytest.skip("RabbitMQ 3.10 speaks AMQP 1.0 only with a plugin, and differently")
        yield fresh
    finally:
        fresh.drop_vhost()


@pytest.fixture
def client(amqp_url: str) -> Iterator[RawAmqp10]:
    """A client with a session."""
    with RawAmqp10(amqp_url) as client:
        yield client


@pytest.fixture
def queue(channel: BlockingChannel) -> str:
    """A classic queue named `q`."""
    channel.queue_declare("q", durable=True)
    return "/queues/q"


@pytest.fixture
def quorum(channel: BlockingChannel) -> str:
    """A quorum queue named `qq`, with a queue `dead` for its dead letters."""
    channel.queue_declare("dead", durable=True)
    arguments = {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("qq", durable=True, arguments=arguments)
    return "/queues/qq"


def test_an_amqp_1_0_connection_is_opened_and_closed_as_in_rabbitmq(amqp_url: str) -> None:
    """An AMQP 1.0 client logs in, opens a connection and a session, and closes both. The broker's answers contain the
    same limits and capabilities as RabbitMQ's.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.log_in()
    assert {"PLAIN", "ANONYMOUS"} <= set(client.mechanisms)
    client.send(OPEN, "me", f"vhost:{client.vhost}")
    opened = client.expect(OPEN)
    assert [opened.field(number) for number in (2, 3, 4)] == [131_072, 63, 30_000]
    assert {"LINK_PAIR_V1_0", "ANONYMOUS-RELAY"} <= set(opened.field(7))
    assert opened.field(9)["product"] == "RabbitMQ"
    begun = client.begin(channel=5)
    assert (begun.channel, begun.field(0), begun.field(4)) == (5, 5, 255)
    client.send(END, channel=5)
    assert client.ended() is None
    client.send(CLOSE)
    assert client.expect(CLOSE).error is None


@pytest.mark.parametrize("header", [AMQP_HEADER, b"AMQP\x02\x01\x00\x00", b"AMQP\x00\x02\x00\x00"])
def test_a_client_that_does_not_begin_with_the_sasl_header_is_disconnected(amqp_url: str, header: bytes) -> None:
    """If an AMQP 1.0 client begins with a header other than the SASL header, the broker answers with the SASL header,
    and closes the connection.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.socket.sendall(header)
    assert client.read(8) == SASL_HEADER
    assert client.closed()


def test_a_client_that_logs_in_with_sasl_anonymous_is_the_user_guest(amqp_url: str, vhost: str) -> None:
    """An AMQP 1.0 client that logs in with the SASL mechanism ANONYMOUS is the user guest. It can open a virtual host
    to which guest has access.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.socket.sendall(SASL_HEADER)
    client.read(8)
    client.expect(MECHANISMS)
    client.send(INIT, Symbol("ANONYMOUS"), kind=1)
    assert client.expect(OUTCOME).fields[0] == 0
    client.socket.sendall(AMQP_HEADER)
    client.read(8)
    client.send(OPEN, "me", f"vhost:{vhost}")
    client.expect(OPEN)


@pytest.mark.parametrize(("mechanism", "response"), [("PLAIN", b"\0guest\0wrong"), ("PLAIN", b"\0nobody\0guest")])
def test_a_login_with_a_wrong_user_or_password_is_refused_over_amqp_1_0(
    amqp_url: str, mechanism: str, response: bytes
) -> None:
    """If an AMQP 1.0 client logs in with a wrong user name or password, the broker answers with the SASL outcome
    `auth`, and closes the connection.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.socket.sendall(SASL_HEADER)
    client.read(8)
    client.expect(MECHANISMS)
    client.send(INIT, Symbol(mechanism), response, kind=1)
    assert client.expect(OUTCOME).fields[0] == 1
    assert client.closed()


@pytest.mark.parametrize(
    ("mechanism", "response"), [("PLAIN", b"guest"), ("PLAIN", b""), ("CRAM-MD5", b"x"), ("", b"")]
)
def test_a_malformed_amqp_1_0_login_closes_the_connection(amqp_url: str, mechanism: str, response: bytes) -> None:
    """The broker closes an AMQP 1.0 connection if the client's SASL response is malformed or its SASL mechanism is
    unknown.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.socket.sendall(SASL_HEADER)
    client.read(8)
    client.expect(MECHANISMS)
    client.send(INIT, Symbol(mechanism), response, kind=1)
    assert client.closed()


@pytest.mark.parametrize(
    "fields",
    [("me", "vhost:none-of-this-name"), ("me", None, UInt32(511)), ("me", None, None, None, UInt32(999))],
    ids=["vhost", "frame size", "idle time-out"],
)
def test_an_invalid_open_frame_closes_the_amqp_1_0_connection(amqp_url: str, fields: tuple[Any, ...]) -> None:
    """If an AMQP 1.0 client's open frame is invalid, the broker closes the connection without a close frame. An open
    frame is invalid if it names an unknown virtual host, if its max-frame-size is below 512 bytes, or if its
    idle-time-out is below one second.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.log_in()
    client.send(OPEN, *fields)
    assert client.closed()


def test_an_open_frame_from_a_user_without_permissions_closes_the_connection(broker: TestBroker, ann: str) -> None:
    """If an AMQP 1.0 client opens a virtual host in which its user has no permissions, the broker closes the
    connection.
    """
    parts = broker.url.split("@")[-1]
    client = RawAmqp10(f"amqp://{ann}:secret@{parts}", opened=False)
    client.log_in()
    client.send(OPEN, "me", f"vhost:{client.vhost}")
    assert client.closed()


def test_a_channel_number_above_the_clients_own_maximum_closes_the_connection(amqp_url: str) -> None:
    """If an AMQP 1.0 client begins a session on a channel above the maximum that the client itself has set, the broker
    closes the connection with a framing error.
    """
    client = RawAmqp10(amqp_url, opening=(UInt32(512), UInt16(3), UInt32(0)))
    assert client.opened.field(3) == 3
    client.send(BEGIN, None, UInt32(0), UInt32(1), UInt32(1), channel=4)
    assert client.expect(CLOSE).error == (
        "amqp:connection:framing-error",
        "channel number (4) exceeds maximum channel number (3)",
    )


def test_an_amqp_1_0_client_that_sets_an_idle_time_out_gets_heartbeats(amqp_url: str) -> None:
    """If an AMQP 1.0 client's open frame sets an idle-time-out, the broker sends empty frames as heartbeats."""
    client = RawAmqp10(amqp_url, opening=(None, None, UInt32(1000)))
    assert client.read(8) == b"\0\0\0\x08\x02\0\0\0"


FRAMES = {
    "too large": (
        struct.pack(">IBBH", 131_073, 2, 0, 0),
        "frame size (131073 bytes) > maximum frame size (131072 bytes)",
    ),
    "too small": (struct.pack(">IBBH", 7, 2, 0, 0), "frame size (7 bytes) < minimum frame size (8 bytes)"),
    "offset too small": (struct.pack(">IBBH", 8, 1, 0, 0), "data offset (1) < minimum data offset (2)"),
    "offset too large": (struct.pack(">IBBH", 8, 3, 0, 0), "data offset (12 bytes) > frame size (8 bytes)"),
    "of another type": (raw_frame(b"", kind=1), "unexpected frame type 1 in amqp mode (expected 0)"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_malformed_amqp_1_0_frame_closes_the_connection(broker: TestBroker, client: RawAmqp10, case: str) -> None:
    """After a malformed AMQP 1.0 frame, the broker closes the connection with the error amqp:connection:framing-error,
    whose text says what is wrong with the frame.
    """
    if broker.kind == "rabbitmq" and not broker.differs_since("4.2", "the error is sent"):
        pytest.skip("closes the socket")
    data, text = FRAMES[case]
    client.socket.sendall(data)
    assert client.expect(CLOSE).error == ("amqp:connection:framing-error", text)


@pytest.mark.parametrize("body", [b"\x00", b"\x00\x53\x99\x45"])
def test_an_unknown_amqp_1_0_performative_closes_the_connection(amqp_url: str, body: bytes) -> None:
    """After a frame with an unknown performative, the broker closes the AMQP 1.0 connection with a close frame that
    contains an error.
    """
    # RabbitMQ's error text is an Erlang term, so it is not compared.
    client = RawAmqp10(amqp_url)
    client.send(END)
    client.expect(END)
    client.socket.sendall(raw_frame(body, channel=7))
    error = client.expect(CLOSE).error
    assert error is not None


# Sessions


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        ((FLOW, None, UInt32(9), UInt32(0), UInt32(9), UInt32(7)),
         ("amqp:session:unattached-handle", "Unattached link handle: 7")),
        ((ATTACH, "x", UInt32(256), SENDER),
         ("amqp:connection:framing-error", "link handle value (256) exceeds maximum link handle value (255)")),
        ((TRANSFER, UInt32(3), UInt32(0), b"", None, True),
         ("amqp:session:unattached-handle", "Unknown link handle: 3")),
    ],
    ids=["flow", "attach", "transfer"],
)  # fmt: skip
def test_a_frame_with_an_invalid_link_handle_ends_the_session(
    broker: TestBroker, client: RawAmqp10, frame: tuple[Any, ...], error: tuple[str, str]
) -> None:
    """If the link handle in an AMQP 1.0 frame is unknown or above the maximum, the broker ends the session with an
    error that names the handle.
    """
    client.send(*frame)
    assert client.ended() == error
    if broker.kind != "rabbitmq" or broker.differs_since("4.2", "until then, its channel may not be free yet"):
        client.begin()


def test_a_flow_for_transfers_that_were_never_sent_ends_the_session(client: RawAmqp10) -> None:
    """If an AMQP 1.0 client's flow frame acknowledges transfers that the broker has not sent, the broker ends the
    session with amqp:session:window-violation.
    """
    client.flow(seen=1)
    assert (client.ended() or ("",))[0] == "amqp:session:window-violation"


def test_attaching_a_link_with_a_handle_that_is_in_use_ends_the_session(
    broker: TestBroker, client: RawAmqp10, queue: str
) -> None:
    """If an AMQP 1.0 client attaches a link with a handle that another link uses, the broker ends the session with
    amqp:session:handle-in-use.
    """
    if broker.kind == "rabbitmq" and not broker.differs_since("4.2", "it is checked"):
        pytest.skip("replaces the link")
    client.attach_sender(queue)
    client.attach(SENDER, queue, name="other")
    assert client.ended() == ("amqp:session:handle-in-use", "handle 0 is already associated with a link")


def test_the_incoming_window_opens_again_once_half_of_it_is_used(client: RawAmqp10, queue: str) -> None:
    """In an AMQP 1.0 session, the broker's incoming window is 400 transfers. After a client has sent 200 transfers, the
    broker sets the window to 400 again, and grants the sender new link credit.
    """
    client.attach_sender(queue)
    for number in range(200):
        client.publish(number, settled=True)
    flows = []
    while not any(flow.field(4) is None for flow in flows):
        flows.append(client.expect(FLOW))
    assert (flows[-1].fields[:2], flows[0].field(6)) == ([200, 400], 170)


def test_a_second_begin_on_the_channel_of_a_session_ends_the_session(client: RawAmqp10) -> None:
    """If an AMQP 1.0 client sends a begin frame on a channel that already has a session, the broker ends this session
    with amqp:internal-error.
    """
    client.send(BEGIN, None, UInt32(0), UInt32(1), UInt32(1))
    condition, _ = client.ended() or ("", "")
    assert condition == "amqp:internal-error"


# Attaching


def ends_session(broker: TestBroker) -> bool:
    """Whether an error of a link ends the session, and not just the link."""
    return not broker.differs_since("4.2", "links are refused and detached one by one")


def link_error(broker: TestBroker, client: RawAmqp10) -> tuple[str, str | None] | None:
    """The error with which a link is detached, or the session ended, depending on the version."""
    return client.ended() if ends_session(broker) else client.detached()


REFUSED = {
    "no queue": (SENDER, "/queues/none", "amqp:not-found", "no queue 'none' in vhost '{vhost}'"),
    "no exchange": (SENDER, "/exchanges/none", "amqp:not-found", "no exchange 'none' in vhost '{vhost}'"),
    "no source": (RECEIVER, "/queues/none", "amqp:not-found", "no queue 'none' in vhost '{vhost}'"),
    "default exchange": (SENDER, "/exchanges/amq.default/k", "amqp:invalid-field", "bad_address_string"),
    "empty exchange": (SENDER, "/exchanges/", "amqp:invalid-field", "bad_address_string"),
    "empty queue": (SENDER, "/queues/", "amqp:invalid-field", "bad_address_string"),
    "three segments": (SENDER, "/exchanges/a/b/c", "amqp:invalid-field", "bad_address_string"),
    "bad percent": (SENDER, "/queues/%zz", "amqp:invalid-field", "bad_address_string"),
    "internal": (SENDER, "/exchanges/amq.rabbitmq.trace/k", "amqp:unauthorized-access",
                 "forbidden to publish to internal exchange 'amq.rabbitmq.trace' in vhost '{vhost}'"),
    "null source": (RECEIVER, None, "amqp:invalid-field", "{{bad_address,undefined}}"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_link_is_detached_with_an_error(broker: TestBroker, client: RawAmqp10, vhost: str, case: str) -> None:
    """If an AMQP 1.0 client attaches a link that the broker refuses, for example to a missing queue, the broker sends
    an attach frame without a terminus, and then a detach frame with an error. The session stays open. Before RabbitMQ
    4.2, the broker ends the session with the error instead.
    """
    role, address, condition, text = REFUSED[case]
    client.attach(role, address)
    if ends_session(broker):
        found = client.ended()
        assert found is not None
        assert (found[0], text.format(vhost=vhost) in str(found[1])) == (condition, True), found
        return
    answer = client.expect(ATTACH)
    assert answer.fields[:3] == ["link-0", 0, not role]
    assert answer.field(6 if role is SENDER else 5) is None
    detach = client.expect(DETACH)
    assert detach.fields[:2] == [0, True]
    found = detach.error
    assert found is not None
    assert (found[0], text.format(vhost=vhost) in str(found[1])) == (condition, True), found
    client.attach(role, address)
    client.expect(ATTACH)


V1 = ["q", "/queue/q", "/topic/t", "/amq/queue/q"]


@pytest.mark.parametrize("address", V1)
@pytest.mark.parametrize("role", [SENDER, RECEIVER], ids=["target", "source"])
def test_amqp_1_0_addresses_in_the_old_format_are_refused(
    request: pytest.FixtureRequest, broker: TestBroker, client: RawAmqp10, address: str, role: bool
) -> None:
    """The embedded broker refuses AMQP 1.0 addresses in RabbitMQ's old format (version 1), even if it behaves like
    RabbitMQ 4.0. RabbitMQ itself refuses them from 4.3 on.
    """
    if broker.kind == "rabbitmq" and not broker.differs_since("4.3", ""):
        pytest.skip("permitted here")
    client.attach(role, address)
    if not ends_session(broker):
        client.expect(ATTACH)
    condition, text = link_error(broker, client) or ("", "")
    assert condition == "amqp:invalid-field"
    assert f'{{amqp_address_v1_not_permitted,{{utf8,<<"{address}">>}}}}' in str(text)


UNSUPPORTED = {
    "transactions": ((None, None), {"target": described(COORDINATOR)}, "Transactions not supported"),
    "resumption": ((None, None), {"unsettled": {b"1": ACCEPT}}, "Link recovery not supported"),
    "second": ((UNSETTLED, UInt8(1)), {}, "rcv-settle-mode second not supported"),
    "outcomes": ((None, None), {"outcomes": Array([Symbol("amqp:other:list")])},
                 'Outcomes not supported: [{symbol,<<"amqp:other:list">>}]'),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_link_with_an_unsupported_setting_is_refused(
    broker: TestBroker, client: RawAmqp10, queue: str, case: str
) -> None:
    """RabbitMQ does not support AMQP 1.0 transactions, link recovery, unknown outcomes, or the receiver settle mode
    `second` for unsettled messages. If a client attaches a link that requests one of these, the broker refuses the link
    with the error amqp:not-implemented.
    """
    (sending, receiving), given, text = UNSUPPORTED[case]
    source = described(SOURCE, *[None] * 9, given["outcomes"]) if "outcomes" in given else described(SOURCE)
    target = given.get("target", described(TARGET, queue))
    unsettled = given.get("unsettled")
    client.send(ATTACH, "x", UInt32(0), SENDER, sending, receiving, source, target, unsettled, None, UInt32(0))
    if not ends_session(broker):
        client.expect(ATTACH)
    assert link_error(broker, client) == ("amqp:not-implemented", text)


def test_a_link_can_be_detached_and_attached_again(client: RawAmqp10, queue: str) -> None:
    """After an AMQP 1.0 client has detached a link, it can attach a link with the same name and handle again."""
    for closed in (True, False):
        client.attach_sender(queue)
        client.send(DETACH, UInt32(0), closed)
        assert client.expect(DETACH).fields[:2] == [0, closed]


# Publishing


def test_a_message_published_over_amqp_1_0_is_accepted(
    client: RawAmqp10, queue: str, channel: BlockingChannel, take: Any
) -> None:
    """The broker grants an AMQP 1.0 sender a link credit of 170. A message that the client sends arrives in the queue,
    and gets the outcome `accepted`.
    """
    flow = client.attach_sender(queue)
    assert (flow.field(5), flow.field(6)) == (0, 170)
    assert client.published(0) == ACCEPT
    assert take.one("q")[2] == b"hello"


def test_each_of_80_messages_sent_without_waiting_is_accepted_over_amqp_1_0(client: RawAmqp10, queue: str) -> None:
    """If an AMQP 1.0 client sends 80 messages without waiting for their outcomes, each message gets the outcome
    `accepted`. The broker may send a disposition for each message, or one for several messages.
    """
    client.attach_sender(queue)
    for number in range(80):
        client.publish(number)
    settled: set[int] = set()
    while len(settled) < 80:
        outcome = client.expect(DISPOSITION)
        last = outcome.field(1) if outcome.field(2) is None else outcome.field(2)
        settled |= set(range(outcome.field(1), last + 1))
        assert outcome.field(4) == ACCEPT
    assert settled == set(range(80))


def test_each_message_sent_in_one_write_gets_its_own_outcome_over_amqp_1_0(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """If an AMQP 1.0 client sends twenty messages in one write, each routable message gets the outcome `accepted`,
    and each unroutable message gets the outcome `released`.
    """
    client.attach_sender(None)
    frames = []
    for number in range(20):
        start = described(TRANSFER, UInt32(0), UInt32(number), bytes((number,)), UInt32(0), False, False)
        to = queue if number % 2 else "/exchanges/amq.direct/nowhere"
        frames.append(raw_frame(encode(start) + message(to=to)))
    client.socket.sendall(b"".join(frames))
    told: dict[int, int] = {}
    while len(told) < 20:
        outcome = client.expect(DISPOSITION)
        last = outcome.field(1) if outcome.field(2) is None else outcome.field(2)
        told |= dict.fromkeys(range(outcome.field(1), last + 1), outcome.field(4).descriptor)
    assert told == {number: ACCEPTED if number % 2 else RELEASED for number in range(20)}
    assert channel.queue_declare("q", passive=True).method.message_count == 10


def test_an_unroutable_message_gets_the_outcome_released_over_amqp_1_0(client: RawAmqp10) -> None:
    """An AMQP 1.0 message to an exchange without a matching binding gets the outcome `released`."""
    client.attach_sender("/exchanges/amq.direct/nowhere")
    assert client.published(0) == RELEASE


def test_a_message_to_a_full_queue_gets_the_outcome_rejected_over_amqp_1_0(
    client: RawAmqp10, channel: BlockingChannel, broker: TestBroker
) -> None:
    """An AMQP 1.0 message to a full queue whose x-overflow is reject-publish gets the outcome `rejected`. From RabbitMQ
    4.3 on, the outcome contains an error, which names the queue and the reason `maxlen`.
    """
    channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}, durable=True)
    client.attach_sender("/queues/full")
    assert client.published(0) == ACCEPT
    state = client.published(1)
    assert state.descriptor == REJECTED
    assert any(state.value) is broker.differs_since("4.3", "the outcome contains an error")
    if any(state.value):
        condition, text, info = state.value[0].value
        assert (condition, text) == ("amqp:resource-limit-exceeded", "queue 'full' exceeded maximum length")
        assert info == {"queue": "full", "reason": "maxlen"}


def test_a_message_split_into_several_transfers_is_delivered_whole(client: RawAmqp10, queue: str, take: Any) -> None:
    """If an AMQP 1.0 client sends a message with a body of 200 kB in several transfers, the message is accepted and
    delivered whole.
    """
    client.attach_sender(queue)
    payload = message(b"0123456789" * 20_000)
    parts = [payload[at : at + 60_000] for at in range(0, len(payload), 60_000)]
    for part in parts:
        client.publish(0, part, more=part is not parts[-1])
    assert client.expect(DISPOSITION).field(4) == ACCEPT
    assert take.one("q")[2] == b"0123456789" * 20_000


def test_a_message_whose_last_transfer_is_empty_is_accepted(client: RawAmqp10, queue: str, take: Any) -> None:
    """An AMQP 1.0 message whose last transfer has no payload is accepted."""
    client.attach_sender(queue)
    client.publish(0, more=True)
    client.send(TRANSFER, UInt32(0))
    assert client.expect(DISPOSITION).field(4) == ACCEPT
    assert take.one("q")[2] == b"hello"


#: The fields of a transfer, from the handle on.
START, ON_ZERO = (UInt32(0), UInt32(0), b"", None), (UInt32(0), None, None, None)
LINK_ERRORS: dict[str, tuple[UInt8 | None, list[tuple[Any, ...]], str, str]] = {
    "another id": (
        None,
        [(*START, False, True), (UInt32(0), UInt32(1), b"", None, False, False)],
        "amqp:invalid-field",
        "delivery-id of continuation transfer ({uint,1}) differs from delivery-id on first transfer (0)",
    ),
    "settled later": (
        None,
        [(*START, False, True), (*ON_ZERO, True, False)],
        "amqp:invalid-field",
        "field 'settled' of continuation transfer (true) differs from (interpreted) field 'settled' on first transfer "
        "(false)",
    ),
    "settled on an unsettled link": (
        UNSETTLED,
        [(*START, True)],
        "amqp:invalid-field",
        "sender settle mode is 'unsettled' but transfer settled flag is interpreted as being 'true'",
    ),
    "unsettled on a settled link": (
        SETTLED,
        [(*START, False)],
        "amqp:invalid-field",
        "sender settle mode is 'settled' but transfer settled flag is interpreted as being 'false'",
    ),
    "second": (
        None,
        [(*START, False, False, UInt8(1))],
        "amqp:not-implemented",
        "rcv-settle-mode second not supported",
    ),
}


@pytest.mark.parametrize("case", LINK_ERRORS)
def test_an_invalid_transfer_detaches_the_link(broker: TestBroker, client: RawAmqp10, queue: str, case: str) -> None:
    """After an invalid transfer, such as one whose settled flag contradicts the link's settle mode, the broker
    detaches the AMQP 1.0 link. Before RabbitMQ 4.2, it ends the session instead.
    """
    mode, transfers, condition, text = LINK_ERRORS[case]
    client.attach_sender(queue, mode=mode)
    for fields in transfers:
        client.send(TRANSFER, *fields, payload=message())
    found = link_error(broker, client)
    assert found is not None
    assert found[1] == text
    assert found[0] == condition or ends_session(broker)


def test_a_sender_that_exceeds_its_credit_is_detached(client: RawAmqp10, channel: BlockingChannel, queue: str) -> None:
    """If an AMQP 1.0 sender exceeds its link credit, the broker detaches the link with transfer-limit-exceeded, unless
    the broker has granted more credit in the meantime.
    """
    # tests/simulation has a case in which the embedded broker cannot give more.
    first = client.attach_sender(queue)
    taken, limit = 0, int(first.fields[5]) + int(first.fields[6])
    frames = b"".join(
        raw_frame(b"\x00\x53\x14\xc0\x0b\x05\x43\x70" + struct.pack(">I", number) + b"\xa0\x00\x43\x42" + message())
        for number in range(_MORE_THAN_CREDIT)
    )
    client.socket.sendall(frames)
    got = client.receive()
    while got.code in (DISPOSITION, FLOW):
        if got.code == FLOW and got.field(6) is not None:
            taken = int(got.fields[5])
            assert taken <= limit, "the broker took more than it had given credit for"
            limit = taken + int(got.fields[6])
        elif got.code == DISPOSITION and (got.field(2) or got.field(1)) == _MORE_THAN_CREDIT - 1:
            assert taken > 0, "the broker gave no more credit"
            return
        got = client.receive()
    assert got.error == ("amqp:link:transfer-limit-exceeded", None)


@pytest.mark.parametrize("payload", [b"", b"\x00", b"garbage", b"\x00\x53\x70\xc0\x01", b"\x00\x53\x99\x40"])
def test_a_malformed_message_detaches_the_link_or_ends_the_session(
    broker: TestBroker, client: RawAmqp10, queue: str, payload: bytes
) -> None:
    """If the payload of a transfer is not a valid AMQP 1.0 message, an embedded broker that behaves like RabbitMQ 4.2
    or later detaches the link with the error decode-error. One that behaves like an earlier version ends the session
    with this error. RabbitMQ itself either detaches the link or ends the session, possibly with another error.
    """
    client.attach_sender(queue)
    client.publish(0, payload)
    if broker.kind == "embedded":
        condition, _ = link_error(broker, client) or ("", "")
        assert condition == "amqp:decode-error"
    else:
        got = client.receive()
        assert got.code in (DETACH, END)
        assert got.error is not None


def test_messages_on_a_link_without_a_target_are_routed_by_their_to_property(
    client: RawAmqp10, queue: str, channel: BlockingChannel, vhost: str
) -> None:
    """On an AMQP 1.0 link whose target address is null (the anonymous terminus), the broker routes each message by its
    property `to`. If `to` is missing or invalid, the broker rejects the message, and the link stays attached.
    """
    channel.queue_bind("q", "amq.direct", "a/b ä")
    client.attach_sender(None)
    key = quote("a/b ä", safe="")
    assert client.published(0, message(to="/queues/q")) == ACCEPT
    assert client.published(1, message(to=f"/exchanges/amq.direct/{key}")) == ACCEPT
    assert client.published(2, message(to="/exchanges/amq.direct/x")) == RELEASE
    assert client.published(3, message(to="/queues/none")) == RELEASE
    refused = {
        4: (message(), "amqp:precondition-failed", "anonymous terminus requires 'to' address to be set"),
        5: (message(to="/what"), "amqp:precondition-failed", "bad 'to' address string: /what"),
        6: (message(to="/exchanges/none/k"), "amqp:not-found", f"no exchange 'none' in vhost '{vhost}'"),
    }
    for number, (payload, condition, text) in refused.items():
        state = client.published(number, payload)
        assert state.descriptor == REJECTED
        assert state.value[0].value[:2] == [condition, text]
    assert client.published(7, message(to="/queues/q")) == ACCEPT


def test_a_settled_message_with_a_bad_address_detaches_the_link(client: RawAmqp10) -> None:
    """If an AMQP 1.0 client sends a settled message with an invalid address in `to` on a link whose target address is
    null, the broker detaches the link, because it cannot reject a settled message.
    """
    client.attach_sender(None)
    client.publish(0, message(to="/what"), settled=True)
    assert client.detached() == ("amqp:precondition-failed", "bad 'to' address string: /what")


def test_deleting_an_exchange_detaches_a_sender_at_the_next_message(
    client: RawAmqp10, channel: BlockingChannel, vhost: str
) -> None:
    """If an exchange is deleted while an AMQP 1.0 sender's link to it is attached, the sender's next message gets the
    outcome `released`, and the broker then detaches the link with the error not-found.
    """
    channel.exchange_declare("x", "fanout")
    client.attach_sender("/exchanges/x")
    channel.exchange_delete("x")
    client.publish(0)
    assert client.expect(DISPOSITION).field(4) == RELEASE
    assert client.detached() == ("amqp:not-found", f"no exchange 'x' in vhost '{vhost}'")


# Receiving


def test_an_amqp_1_0_receiver_gets_as_many_messages_as_its_credit_allows(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """An AMQP 1.0 receiver with a link credit of 2 gets two of three messages. The receiver gets the third message
    after it has settled the first two and granted new credit.
    """
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", "q", body)
    answer = client.attach_receiver(queue, credit=2)
    assert (answer.field(2), answer.field(3), answer.field(9)) == (SENDER, UNSETTLED, 0)
    source = answer.field(5).value
    assert (source[0], source[8], list(source[9])) == (
        queue,
        RELEASE,
        [f"amqp:{name}:list" for name in ("accepted", "rejected", "released", "modified")],
    )
    first, second = client.expect(TRANSFER), client.expect(TRANSFER)
    assert [first.body, second.body] == [b"1", b"2"]
    assert [first.field(1), second.field(1), first.field(4)] == [0, 1, False]
    assert first.field(2) != second.field(2)
    client.settle(0, ACCEPT, 1)
    client.flow(0, 1, count=2, seen=2)
    assert client.expect(TRANSFER).body == b"3"


def test_a_message_that_the_broker_sends_settled_leaves_the_queue_immediately(
    client: RawAmqp10, queue: str, channel: BlockingChannel, api: Api, vhost: str
) -> None:
    """If an AMQP 1.0 receiver attaches with the snd-settle-mode `settled`, the broker sends each message settled, and
    removes it from the queue immediately.
    """
    channel.basic_publish("", "q", b"1")
    assert client.attach_receiver(queue, mode=SETTLED).field(3) == SETTLED
    got = client.expect(TRANSFER)
    assert (got.field(4), got.body) == (True, b"1")
    assert channel.queue_declare("q", passive=True).method.message_count == 0


def test_an_unsettled_disposition_is_settled_by_the_broker(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """If an AMQP 1.0 receiver sends an unsettled disposition, the broker answers with a settled disposition for the
    same delivery.
    """
    channel.basic_publish("", "q", b"1")
    client.attach_receiver(queue)
    client.expect(TRANSFER)
    client.settle(0, ACCEPT, settled=False)
    answer = client.expect(DISPOSITION)
    assert (answer.field(0), answer.field(1), answer.field(3), answer.field(4)) == (SENDER, 0, True, ACCEPT)


def test_a_message_that_an_amqp_1_0_receiver_releases_is_redelivered(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """A message that an AMQP 1.0 receiver releases is redelivered with the header field first-acquirer set to false."""
    channel.basic_publish("", "q", b"1")
    client.attach_receiver(queue)
    first = client.expect(TRANSFER).message.header
    client.settle(0, RELEASE)
    second = client.expect(TRANSFER).message.header
    assert (first.first_acquirer, second.first_acquirer) == (True, False)


@pytest.mark.parametrize(
    ("state", "dead"),
    [
        (REJECT, True),
        (described(MODIFIED, False, True), True),
        (described(MODIFIED, True, True), True),
        (RELEASE, False),
        (described(MODIFIED), False),
    ],
    ids=["rejected", "undeliverable here", "failed and undeliverable", "released", "modified"],
)
def test_an_amqp_1_0_outcome_decides_whether_a_message_is_dead_lettered_or_requeued(
    client: RawAmqp10, quorum: str, state: Any, dead: bool
) -> None:
    """After the AMQP 1.0 outcome `rejected`, or `modified` with undeliverable-here, the message is dead-lettered. After
    the outcome `released`, or `modified` without undeliverable-here, the message is requeued.
    """
    client.attach_sender(quorum, handle=1)
    assert client.published(0, handle=1) == ACCEPT
    client.attach_receiver(quorum, credit=1)
    client.expect(TRANSFER)
    client.settle(0, state)
    client.attach_receiver("/queues/dead" if dead else quorum, handle=2)
    if not dead:
        client.flow(0, 0, count=1, seen=1)
    assert client.expect(TRANSFER).body == b"hello"


def counts(client: RawAmqp10, quorum: str, state: Any) -> list[Any]:
    """The delivery counts of a message that is settled twice with a state, and of its third delivery."""
    client.attach_sender(quorum, handle=1)
    client.published(0, handle=1)
    client.attach_receiver(quorum)
    found = []
    for number in range(3):
        got = client.expect(TRANSFER).message
        found.append((got.header.delivery_count, got.header.first_acquirer))
        if number < 2:
            client.settle(number, state)
    return found


@pytest.mark.parametrize("case", ["released", "failed", "not failed"])
def test_only_the_outcome_modified_with_delivery_failed_raises_the_delivery_count(
    client: RawAmqp10, quorum: str, case: str
) -> None:
    """In a quorum queue, a message's delivery count rises after the AMQP 1.0 outcome `modified` with delivery-failed.
    It does not rise after `released`, or after `modified` without delivery-failed.
    """
    state = {"released": RELEASE, "failed": described(MODIFIED, True), "not failed": described(MODIFIED, False)}[case]
    expected = [(0, True), (1, False), (2, False)] if case == "failed" else [(0, True), (0, False), (0, False)]
    assert counts(client, quorum, state) == expected


def test_annotations_added_by_the_outcome_modified_arrive_with_the_redelivered_message(
    client: RawAmqp10, quorum: str
) -> None:
    """If an AMQP 1.0 receiver settles a message of a quorum queue with the outcome `modified` and adds annotations, the
    queue redelivers the message with these annotations.
    """
    client.attach_sender(quorum, handle=1)
    client.published(0, handle=1)
    client.attach_receiver(quorum)
    client.expect(TRANSFER)
    client.settle(0, described(MODIFIED, True, False, {Symbol("x-opt-why"): "busy"}))
    assert client.expect(TRANSFER).message.message_annotations[Symbol("x-opt-why")] == "busy"


NOT_OUTCOMES = {
    "none": None,
    "received": described(RECEIVED, UInt32(0), ULong(0)),
    "unknown": described(0x99),
    "not a state": Symbol("accepted"),
}


@pytest.mark.parametrize("state", NOT_OUTCOMES.values(), ids=NOT_OUTCOMES)
def test_a_disposition_without_an_outcome_ends_the_session_and_requeues_its_deliveries(
    broker: TestBroker, client: RawAmqp10, queue: str, channel: BlockingChannel, take: Any, state: Any
) -> None:
    """If an AMQP 1.0 receiver settles five deliveries with a state that is not an outcome, such as `received`, the
    broker ends the session and requeues all five messages in order. If the state is of an unknown type, RabbitMQ closes
    the connection, while the embedded broker only ends the session.
    """
    for number in range(5):
        channel.basic_publish("", "q", b"%d" % number)
    client.attach_receiver(queue)
    for _ in range(5):
        client.expect(TRANSFER)
    client.settle(0, state, 4)
    if broker.kind == "rabbitmq" and state == NOT_OUTCOMES["unknown"]:  # RabbitMQ cannot decode the descriptor
        condition, text = client.expect(CLOSE).error or ("", "")
        assert condition == "amqp:internal-error"
    else:
        condition, text = client.ended() or ("", "")
        assert condition == "amqp:invalid-field"
        assert str(text).startswith("Unrecognised state: ")
    assert take.bodies("q", 5) == [b"0", b"1", b"2", b"3", b"4"]


BAD_ANNOTATIONS = {
    "a key without x-": {Symbol("why"): "busy"},
    "a key that is a string": {"x-opt-why": "busy"},
    "a character that is a surrogate": {Symbol("x-opt-why"): Char("\ud800")},
}


@pytest.mark.parametrize("annotations", BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_no_message_is_lost_if_the_outcome_modified_has_invalid_annotations(
    broker: TestBroker, client: RawAmqp10, channel: BlockingChannel, quorum: str, take: Any, annotations: Any
) -> None:
    """If an AMQP 1.0 receiver settles deliveries with the outcome `modified` and invalid annotations, the embedded
    broker requeues all these messages in order. It ends the session or, if it cannot decode the annotations, closes the
    connection.
    """
    if broker.kind != "embedded":
        pytest.skip("RabbitMQ keeps values that AMQP 0-9-1 does not have")
    client.attach_sender(quorum, handle=1)
    for number in range(5):
        client.published(number, message(b"%d" % number), handle=1)
    client.attach_receiver(quorum, credit=5)
    for _ in range(5):
        client.expect(TRANSFER)
    client.settle(0, described(MODIFIED, True, False, annotations), 4)
    while (code := client.receive().code) == FLOW:
        pass
    assert code in (END, CLOSE)
    assert take.bodies("qq", 5) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_flow_with_drain_uses_up_the_credit_of_an_amqp_1_0_link(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """After an AMQP 1.0 receiver's flow frame with drain, the broker sends the messages that are ready, and then a flow
    frame with a credit of 0. A later message is delivered once the receiver grants new credit.
    """
    channel.confirm_delivery()
    channel.basic_publish("", "q", b"1")
    client.attach_receiver(queue, credit=0)
    client.flow(0, 5, drain=True)
    assert client.expect(TRANSFER).body == b"1"
    flow = client.expect(FLOW)
    assert [flow.field(number) for number in (4, 5, 6, 7, 8)] == [0, 5, 0, 0, True]
    channel.basic_publish("", "q", b"2")
    client.flow(0, 1, count=5, seen=1)
    assert client.expect(TRANSFER).body == b"2"


def test_a_flow_frame_with_echo_is_answered(client: RawAmqp10, queue: str) -> None:
    """If an AMQP 1.0 receiver's flow frame sets echo, the broker answers with a flow frame that contains the link's
    delivery count, its credit and the number of available messages.
    """
    client.attach_receiver(queue, credit=0)
    client.flow(0, 7, echo=True)
    flow = client.expect(FLOW)
    assert [flow.field(number) for number in (4, 5, 6, 7)] == [0, 0, 7, 0]


def test_the_broker_sends_no_more_transfers_than_the_clients_window_allows(
    amqp_url: str, queue: str, channel: BlockingChannel
) -> None:
    """If an AMQP 1.0 client's incoming window is 2, the broker sends two transfers, and sends the next ones only after
    the client opens the window.
    """
    client = RawAmqp10(amqp_url, opened=False)
    client.log_in()
    client.send(OPEN, "me", f"vhost:{client.vhost}", UInt32(600))
    client.expect(OPEN)
    client.begin(window=2)
    channel.basic_publish("", "q", b"x" * 1500)
    channel.basic_publish("", "q", b"last")
    client.attach(RECEIVER, queue)
    client.expect(ATTACH)
    client.flow(0, 10, window=2)
    parts = [client.expect(TRANSFER), client.expect(TRANSFER)]
    client.flow(seen=2, window=1)
    parts.append(client.expect(TRANSFER))
    client.flow(seen=3, window=100)
    while parts[-1].field(5):
        parts.append(client.expect(TRANSFER))
    whole = Amqp10Message.decode(b"".join(part.payload for part in parts))
    assert len(whole.body) > 1500
    assert client.expect(TRANSFER).body == b"last"


def test_a_message_larger_than_the_receivers_maximum_ends_the_session(
    client: RawAmqp10, queue: str, channel: BlockingChannel, take: Take
) -> None:
    """If a message is larger than an AMQP 1.0 receiver's max-message-size, the broker does not deliver it, but ends the
    session with amqp:link:message-size-exceeded and requeues the message.
    """
    channel.basic_publish("", "q", b"x" * 1000)
    client.attach_receiver(queue, rest=(ULong(500),))
    condition, text = client.ended() or ("", "")
    assert condition == "amqp:link:message-size-exceeded"
    assert str(text).endswith("> maximum message size (500 bytes)")
    assert take.one("q")[2] == b"x" * 1000


def test_deleting_a_queue_detaches_its_amqp_1_0_receivers(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """When a queue is deleted, the broker detaches the links of the queue's AMQP 1.0 receivers with the error
    resource-deleted.
    """
    client.attach_receiver(queue)
    client.flow(echo=True)
    channel.queue_delete("q")
    assert client.detached() == ("amqp:resource-deleted", None)


def test_unsettled_messages_are_requeued_when_the_link_is_detached(
    client: RawAmqp10, queue: str, channel: BlockingChannel, take: Any
) -> None:
    """When an AMQP 1.0 receiver's link is detached, the receiver's unsettled message is requeued, and is delivered to
    another client, marked as redelivered.
    """
    channel.basic_publish("", "q", b"1")
    client.attach_receiver(queue)
    client.expect(TRANSFER)
    client.send(DETACH, UInt32(0), True)
    client.expect(DETACH)
    method, _, body = take.one("q")
    assert (body, method.redelivered) == (b"1", True)


@pytest.mark.parametrize("how", ["end", "close", "cut"])
def test_unsettled_messages_are_requeued_when_the_session_or_connection_ends(
    client: RawAmqp10, queue: str, channel: BlockingChannel, take: Any, how: str
) -> None:
    """When an AMQP 1.0 receiver ends its session or closes its connection, or when the connection is cut, the
    receiver's unsettled message is requeued and delivered to another client.
    """
    channel.basic_publish("", "q", b"1")
    client.attach_receiver(queue)
    client.expect(TRANSFER)
    if how == "cut":
        client.socket.close()
    else:
        client.send(END if how == "end" else CLOSE)
        client.receive()
        if how == "close":
            client.socket.close()
    assert take.one("q")[2] == b"1"


def test_an_amqp_1_0_receiver_with_a_higher_priority_is_served_first(
    client: RawAmqp10, queue: str, channel: BlockingChannel
) -> None:
    """Of two AMQP 1.0 receivers, the one whose link has the higher rabbitmq:priority gets all messages as long as
    this link has credit.
    """
    client.attach_receiver(queue)
    client.attach_receiver(queue, handle=1, rest=(None, None, None, {Symbol("rabbitmq:priority"): Int32(5)}))
    client.flow(1, 100, echo=True)
    client.expect(FLOW)  # the queue knows the credit of both links
    for body in (b"1", b"2"):
        channel.basic_publish("", "q", body)
    assert [client.expect(TRANSFER).field(0) for _ in range(2)] == [1, 1]


# Permissions


@pytest.fixture
def restricted(broker: TestBroker, api: Api, ann: str) -> Iterator[RawAmqp10]:
    """A client of a user who may write to `amq.direct` and read `r`."""
    vhost = quote(broker.vhost, safe="")
    permissions = {"configure": "", "write": "^(amq.direct|amq.topic)$", "read": "^r$"}
    api("PUT", f"permissions/{vhost}/{ann}", permissions)
    with RawAmqp10(f"amqp://{ann}:secret@{broker.url.split('@')[-1]}") as client:
        yield client


@pytest.mark.parametrize(
    ("role", "address", "text"),
    [
        (SENDER, "/exchanges/amq.fanout", "write access to exchange 'amq.fanout'"),
        (SENDER, "/queues/q", "write access to exchange 'amq.default'"),
        (RECEIVER, "/queues/q", "read access to queue 'q'"),
    ],
)
def test_permissions_are_checked_when_an_amqp_1_0_link_is_attached(
    restricted: RawAmqp10, queue: str, vhost: str, ann: str, role: bool, address: str, text: str
) -> None:
    """If a user attaches an AMQP 1.0 link without permission to write to its target or to read from its source, the
    broker ends the session with amqp:unauthorized-access and RabbitMQ's error text.
    """
    restricted.attach(role, address)
    refused = f"{text} in vhost '{vhost}' refused for user '{ann}'"
    assert restricted.ended() == ("amqp:unauthorized-access", refused)


def test_a_message_with_the_user_id_of_another_user_detaches_the_link(
    broker: TestBroker, client: RawAmqp10, queue: str
) -> None:
    """If the user-id of an AMQP 1.0 message is not the name of the logged-in user, the broker detaches the sender's
    link with unauthorized-access. Before RabbitMQ 4.2, it ends the session with this error instead.
    """
    client.attach_sender(queue)
    client.publish(0, message(user_id=b"somebody"))
    assert link_error(broker, client) == (
        "amqp:unauthorized-access",
        "user_id property set to 'somebody' but authenticated user was 'guest'",
    )
