"""How the broker answers bytes that are not valid AMQP 0-9-1, or that are valid but unusual."""

import socket
import struct
from urllib.parse import quote

import pika
import pytest
from pamqp import commands, frame, header
from pika.adapters.blocking_connection import BlockingChannel

from tests.protocol.conftest import Api, Take
from tests.protocol.raw_client import CAPABILITIES, RawClient, raw_frame

PUBLISH = frame.marshal(commands.Basic.Publish(exchange="", routing_key="q"), 1)
HEADER = frame.marshal(header.ContentHeader(body_size=5, properties=commands.Basic.Properties()), 1)
QOS = frame.marshal(commands.Basic.Qos(), 1)
NO_HEADER = "505 UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"
NO_BODY = "505 UNEXPECTED_FRAME - expected content body, got non content body frame instead"
NO_METHOD = "505 UNEXPECTED_FRAME - expected method frame, got non method frame instead"
NOT_HERE = "504 CHANNEL_ERROR - unexpected method in connection state running"

CASES = {
    "too large": (
        struct.pack(">BHI", 3, 1, 131_073),
        "501 FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}",
    ),
    "bad end": (
        raw_frame(1, 1, b"\x00\x14\x00\x0a\x00", end=0),
        "501 FRAME_ERROR - type 1, all octets = <<0,20,0,10,0>>: {invalid_frame_end_marker,0}",
    ),
    "unknown type": (raw_frame(7, 1, b"abc"), '501 FRAME_ERROR - type 7, all octets = <<"abc">>: unknown_frame'),
    "unknown type, channel 0": (
        raw_frame(7, 0, b"abc"),
        '501 FRAME_ERROR - type 7, all octets = <<"abc">>: unknown_frame',
    ),
    "heartbeat with payload": (raw_frame(8, 0, b"x"), '501 FRAME_ERROR - type 8, all octets = <<"x">>: unknown_frame'),
    "heartbeat on a channel": (raw_frame(8, 1, b""), "505 UNEXPECTED_FRAME - type 8, all octets = <<>>"),
    "method cut short": (raw_frame(1, 1, b"\x00\x32\x00\x0a\x00"), "501 FRAME_ERROR - cannot decode <<0>>"),
    "no method at all": (
        raw_frame(1, 1, b"\x00\x32"),
        "501 FRAME_ERROR - type 1, all octets = <<0,50>>: unknown_frame",
    ),
    "more than a method": (
        raw_frame(1, 1, b"\x00\x55\x00\x0a\x00zzzz"),
        "501 FRAME_ERROR - cannot decode <<0,122,122,122,122>>",
    ),
    "channel not open": (frame.marshal(commands.Basic.Qos(), 9), "504 CHANNEL_ERROR - expected 'channel.open'"),
    "channel opened twice": (
        frame.marshal(commands.Channel.Open(), 1),
        "504 CHANNEL_ERROR - second 'channel.open' seen",
    ),
    "header out of turn": (HEADER, NO_METHOD),
    "body out of turn": (raw_frame(3, 1, b"x"), NO_METHOD),
    "method for header": (PUBLISH + QOS, NO_HEADER),
    "body for header": (PUBLISH + raw_frame(3, 1, b"x"), NO_HEADER),
    "method for body": (PUBLISH + HEADER + QOS, NO_BODY),
    "header for body": (PUBLISH + HEADER + HEADER, NO_BODY),
    "body too long": (PUBLISH + HEADER + raw_frame(3, 1, b"123456789") + QOS, NO_BODY),
    "body on another channel": (PUBLISH + HEADER + raw_frame(3, 9, b"hello"), NO_METHOD),
    "bad end of a body": (
        PUBLISH + HEADER + raw_frame(3, 1, b"hello", end=0),
        '501 FRAME_ERROR - type 3, all octets = <<"hello">>: {invalid_frame_end_marker,0}',
    ),
    "header cut short": (
        PUBLISH + raw_frame(2, 1, b"\x00\x3c"),
        "501 FRAME_ERROR - type 2, all octets = <<0,60>>: unknown_frame",
    ),
    "header of another class": (
        PUBLISH + raw_frame(2, 1, struct.pack(">HHQH", 50, 0, 5, 0)) + raw_frame(3, 1, b"hello"),
        "505 UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead",
    ),
    "method on channel 0": (frame.marshal(commands.Basic.Qos(), 0), NOT_HERE),
    "open twice": (frame.marshal(commands.Connection.Open(virtual_host="x"), 0), NOT_HERE),
    "body on channel 0": (raw_frame(3, 0, b"x"), '505 UNEXPECTED_FRAME - type 3, all octets = <<"x">>'),
    "a broker's method": (
        frame.marshal(commands.Queue.DeclareOk("q", 0, 0), 1),
        "503 COMMAND_INVALID - unimplemented method",
    ),
}

SINCE = {"body too long": pytest.mark.differs_since("4.2", "a body that is too long is an error of its own, 501")}


@pytest.mark.parametrize(
    ("octets", "reply"), [pytest.param(*case, id=name, marks=SINCE.get(name, ())) for name, case in CASES.items()]
)
def test_a_malformed_frame_closes_only_its_senders_connection(
    amqp_url: str, channel: BlockingChannel, octets: bytes, reply: str
) -> None:
    """If a client sends a malformed frame, the broker closes this client's connection with RabbitMQ's code and error
    text. Other connections stay usable.
    """
    with RawClient(amqp_url) as client:
        client.socket.sendall(octets)
        assert client.closed_with() == reply
    channel.queue_declare("q")


def test_a_client_written_for_amqp_0_9_can_connect(amqp_url: str) -> None:
    """Clients written for AMQP 0-9, such as aioamqp and those built on Perl's Net::AMQP, begin with the header
    `AMQP 1 1 0 9`. The broker offers them AMQP 0-9-1.
    """
    with RawClient(amqp_url, opened=False) as client:
        client.socket.sendall(b"AMQP\x01\x01\x00\x09")
        start = client.expect(commands.Connection.Start)
        assert (start.version_major, start.version_minor) == (0, 9)


@pytest.mark.parametrize("version", [b"\x09\x00", b"\x0a\x00"])
def test_a_client_of_an_unknown_later_version_gets_the_header_of_amqp_0_9_1(amqp_url: str, version: bytes) -> None:
    """A client that asks for a later version of AMQP 0-x, such as 0-10, is told that the broker speaks 0-9-1."""
    with RawClient(amqp_url, opened=False) as client:
        client.socket.sendall(b"AMQP\x00\x00" + version)
        assert client.read(8) == b"AMQP\x00\x00\x09\x01"


@pytest.mark.differs_since("4.0", "the answer is the header of AMQP 1.0 with SASL, which it prefers")
@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"\x00" * 8])
def test_up_to_rabbitmq_3_13_a_client_of_another_protocol_gets_the_header_of_amqp_0_9_1(
    amqp_url: str, octets: bytes
) -> None:
    """Up to RabbitMQ 3.13, if a client begins with something other than the protocol header of AMQP 0-9-1, the broker
    answers with this header, and closes the connection.
    """
    with RawClient(amqp_url, opened=False) as client:
        client.socket.sendall(octets)
        assert client.read(8) == b"AMQP\x00\x00\x09\x01"
        # If the broker has not read all bytes, it may reset the connection instead of closing it.
        try:
            assert client.socket.recv(1) == b""
        except ConnectionResetError:
            return


def test_a_message_whose_frames_arrive_byte_by_byte_is_delivered(amqp_url: str) -> None:
    """A message is stored and delivered even if its frames arrive byte by byte and the body is split into several
    frames.
    """
    with RawClient(amqp_url) as client:
        data = frame.marshal(commands.Queue.Declare(queue="q", exclusive=True), 1)
        data += PUBLISH + HEADER + raw_frame(3, 1, b"he") + raw_frame(3, 1, b"") + raw_frame(3, 1, b"llo")
        data += frame.marshal(commands.Basic.Get(queue="q", no_ack=True), 1)
        for octet in data:
            client.socket.sendall(bytes([octet]))
        client.expect(commands.Queue.DeclareOk)
        client.expect(commands.Basic.GetOk)
        assert client.expect(header.ContentHeader).body_size == 5


def test_messages_and_bindings_sent_in_one_write_take_effect_in_order(amqp_url: str) -> None:
    """If a client sends messages, queue.bind and queue.unbind in one write, the broker handles them in the order in
    which the client sent them. Each bind or unbind affects only the messages after it.
    """
    queue, exchange = "q", "amq.fanout"
    publish = frame.marshal(commands.Basic.Publish(exchange=exchange), 1) + HEADER + raw_frame(3, 1, b"hello")
    bind = frame.marshal(commands.Queue.Bind(queue=queue, exchange=exchange, nowait=True), 1)
    unbind = frame.marshal(commands.Queue.Unbind(queue=queue, exchange=exchange), 1)
    with RawClient(amqp_url) as client:
        client.send(commands.Queue.Declare(queue=queue, exclusive=True))
        client.expect(commands.Queue.DeclareOk)
        client.socket.sendall(publish + bind + publish * 3 + unbind + publish)
        client.expect(commands.Queue.UnbindOk)
        # RabbitMQ may answer a declaration before it enqueues earlier messages; it purges the queue after them.
        client.send(commands.Queue.Purge(queue=queue))
        assert client.expect(commands.Queue.PurgeOk).message_count == 3


def test_the_payload_of_a_frame_can_have_frame_max_bytes(amqp_url: str) -> None:
    """As in RabbitMQ, the broker accepts a frame with a payload of frame_max bytes. If the payload is one byte longer,
    the broker closes the connection.
    """
    body = b"x" * 8192
    longest = frame.marshal(header.ContentHeader(body_size=8192, properties=commands.Basic.Properties()), 1)
    with RawClient(amqp_url, frame_max=8192) as client:
        client.send(commands.Queue.Declare(queue="q", exclusive=True))
        client.expect(commands.Queue.DeclareOk)
        client.socket.sendall(PUBLISH + longest + raw_frame(3, 1, body))
        client.send(commands.Basic.Get(queue="q", no_ack=True))
        client.expect(commands.Basic.GetOk)
        client.expect(header.ContentHeader)
        assert client.receive().value + client.receive().value == body
        client.socket.sendall(struct.pack(">BHI", 3, 1, 8193))
        assert "frame_too_large,8193,8184" in client.closed_with()


@pytest.mark.parametrize("pieces", [[b"hello"], [b"hel", b"lo"]], ids=["one frame", "two frames"])
def test_the_error_for_the_flag_immediate_names_basic_publish(amqp_url: str, pieces: list[bytes]) -> None:
    """If a message has the flag `immediate`, the broker's connection.close with error 540 contains the class id and
    method id of basic.publish, although the client has also sent the message's content header and body.
    """
    with RawClient(amqp_url) as client:
        client.send(commands.Basic.Publish(exchange="", routing_key="q", immediate=True))
        client.socket.sendall(HEADER + b"".join(raw_frame(3, 1, piece) for piece in pieces))
        close = client.expect(commands.Connection.Close)
        assert (close.reply_code, close.class_id, close.method_id) == (540, 60, 40)


def test_integers_with_the_field_type_l_are_decoded(amqp_url: str) -> None:
    """kombu and py-amqp send integers with the field type `L`. The broker decodes them in arguments and headers."""
    number = (2**40).to_bytes(8)
    arguments = b"\x09x-expiresL" + number
    headers = b"\x04sizeL" + number
    declare = struct.pack(">HHHB1sB", 50, 10, 0, 1, b"q", 0) + struct.pack(">I", len(arguments)) + arguments
    properties = struct.pack(">HHQHI", 60, 0, 5, 1 << 13, len(headers)) + headers
    with RawClient(amqp_url) as client:
        client.socket.sendall(raw_frame(1, 1, declare))
        assert "value_too_large" in client.expect(commands.Channel.Close).reply_text
        client.send(commands.Channel.CloseOk())
        client.send(commands.Channel.Open())
        client.expect(commands.Channel.OpenOk)
        client.send(commands.Queue.Declare(queue="q", exclusive=True))
        client.expect(commands.Queue.DeclareOk)
        client.socket.sendall(PUBLISH + raw_frame(2, 1, properties) + raw_frame(3, 1, b"hello"))
        client.send(commands.Basic.Get(queue="q", no_ack=True))
        client.expect(commands.Basic.GetOk)
        assert client.expect(header.ContentHeader).properties.headers == {"size": 2**40}


def test_frames_for_a_closing_channel_are_ignored(amqp_url: str) -> None:
    """After the broker has sent channel.close, it ignores all frames on this channel until the client sends
    channel.close-ok. The client can then open the channel again.
    """
    with RawClient(amqp_url) as client:
        client.send(commands.Queue.Declare(queue="no", passive=True))
        client.socket.sendall(PUBLISH + HEADER + raw_frame(3, 1, b"hello") + QOS)
        assert client.expect(commands.Channel.Close).reply_code == 404
        client.send(commands.Channel.CloseOk())
        client.send(commands.Channel.Open())
        client.expect(commands.Channel.OpenOk)


def test_the_broker_lets_the_client_close_the_socket_after_connection_close_ok(amqp_url: str) -> None:
    """After the broker has sent connection.close-ok, it keeps the socket open until the client closes it."""
    with RawClient(amqp_url) as client:
        client.send(commands.Connection.Close(reply_code=200, class_id=0, method_id=0), 0)
        client.expect(commands.Connection.CloseOk)
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.socket.recv(1)


def test_a_client_can_log_in_with_amqplain(amqp_url: str) -> None:
    """If a client logs in with the SASL mechanism AMQPLAIN and the correct password, the broker answers with
    connection.tune.
    """
    with RawClient(amqp_url, opened=False) as client:
        client.socket.sendall(b"AMQP\x00\x00\x09\x01")
        client.expect(commands.Connection.Start)
        response = "\x05LOGINS\x00\x00\x00\x05guest\x08PASSWORDS\x00\x00\x00\x05guest"
        client.send(commands.Connection.StartOk(mechanism="AMQPLAIN", response=response), 0)
        client.expect(commands.Connection.Tune)


def test_the_server_properties_are_those_of_rabbitmq(connection: pika.BlockingConnection) -> None:
    """The broker's server properties name RabbitMQ as the product, and list the capabilities that client libraries look
    for before they use an extension.
    """
    properties = connection._impl.server_properties
    assert properties["product"] == "RabbitMQ"
    assert all(
        properties["capabilities"][name]
        for name in (
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "consumer_priorities",
            "authentication_failure_close",
            "per_consumer_qos",
            "direct_reply_to",
        )
    )


def test_a_wrong_password_is_refused_with_403(amqp_url: str) -> None:
    """If a client with the capability authentication_failure_close tries to log in with a wrong password, the broker
    closes the connection with 403 ACCESS_REFUSED, and the error text refers to the broker's log.
    """
    with RawClient(amqp_url.replace("guest:guest", "guest:wrong"), opened=False) as client:
        client.socket.sendall(b"AMQP\x00\x00\x09\x01")
        client.expect(commands.Connection.Start)
        properties = {"capabilities": CAPABILITIES}
        method = commands.Connection.StartOk(mechanism="PLAIN", response=client.login, client_properties=properties)
        client.send(method, 0)
        text = "Login was refused using authentication mechanism PLAIN. For details see the broker logfile."
        assert client.closed_with() == f"403 ACCESS_REFUSED - {text}"


def test_the_unacknowledged_messages_of_a_reset_connection_are_requeued(
    amqp_url: str, channel: BlockingChannel, take: Take
) -> None:
    """If a client's connection is reset, the messages that the client has not acknowledged are requeued in order, and
    marked as redelivered.
    """
    channel.queue_declare("q")
    for body in (b"1", b"2"):
        channel.basic_publish("", "q", body)
    client = RawClient(amqp_url)
    client.send(commands.Basic.Consume(queue="q", consumer_tag="t"))
    client.expect(commands.Basic.ConsumeOk)
    for _ in range(2):
        client.expect(commands.Basic.Deliver)
        client.expect(header.ContentHeader)
        client.receive()
    # With a linger time of 0, close() resets the connection.
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()
    got = [take.one("q") for _ in range(2)]
    assert [(body, method.redelivered) for method, _, body in got] == [(b"1", True), (b"2", True)]


def test_a_client_that_sends_neither_heartbeats_nor_other_frames_is_disconnected(amqp_url: str) -> None:
    """If a client has negotiated heartbeats, the broker sends heartbeats. If the client sends no frames at all, not
    even heartbeats, the broker closes the connection after a few heartbeat intervals.
    """
    with RawClient(amqp_url, heartbeat=2) as client:
        assert client.read(8) == b"\x08\x00\x00\x00\x00\x00\x00\xce"
        with pytest.raises((EOFError, ConnectionResetError)):
            client.read(8 * 20)


def test_the_management_api_can_close_a_connection(channel: BlockingChannel, api: Api, vhost: str, take: Take) -> None:
    """If a connection is closed through the management API, its client gets connection.close with 320
    CONNECTION_FORCED and the text `Closed via management plugin`.
    """

    def close_all() -> None:
        # Under the names that the API lists: for a broker in a container, this client's address is another one.
        for listed in api("GET", f"vhosts/{vhost}/connections")[1]:
            api("DELETE", f"connections/{quote(listed['name'], safe='')}")
        channel.queue_declare("")

    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
        # RabbitMQ's management API lists a connection a little after it was opened.
        take.until(close_all)
    text = "CONNECTION_FORCED - Closed via management plugin"
    assert (closed.value.reply_code, closed.value.reply_text) == (320, text)
