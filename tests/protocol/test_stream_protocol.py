"""The stream protocol, frame by frame, as RabbitMQ 3.10 speaks it."""

import itertools
import struct
import zlib

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import on_any_broker
from tests.protocol.conftest import Api
from tests.protocol.raw_stream import (
    CLOSE,
    CREATE,
    CREDIT,
    DELETE,
    DELIVER,
    FIRST,
    HEARTBEAT,
    LAST,
    METADATA,
    NEXT,
    OPEN,
    PEER_PROPERTIES,
    PUBLISH,
    QUERY_OFFSET,
    QUERY_PUBLISHER,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
    STORE_OFFSET,
    UNSUBSCRIBE,
    Opener,
    RawStream,
    at,
    since,
    string,
    table,
)

OK, NO_STREAM, SUBSCRIBED_ALREADY, NOT_SUBSCRIBED, EXISTS, NOT_AVAILABLE = range(1, 7)
ACCESS_REFUSED, PRECONDITION_FAILED, NO_PUBLISHER, NO_OFFSET = range(16, 20)

# -- the beginning and the end


@pytest.mark.parametrize(
    ("mechanism", "secret", "code"),
    [("FOO", b"\0guest\0guest", 7), ("PLAIN", b"\0guest\0wrong", 8), ("PLAIN", b"guest", 9)],
)
def test_a_stream_connection_is_closed_after_a_failed_login(
    connect_stream: Opener, mechanism: str, secret: bytes, code: int
) -> None:
    """A login over the stream protocol fails if the mechanism is unknown, the password is wrong or the response is
    malformed. The client receives the error code for this failure, and the broker closes the connection.
    """
    client = connect_stream()
    client.request(PEER_PROPERTIES, table({}))
    client.request(SASL_HANDSHAKE)

    answer = client.request(SASL_AUTHENTICATE, string(mechanism) + struct.pack(">I", len(secret)) + secret)

    assert answer.code == code
    assert client.at_end()


def test_opening_an_unknown_virtual_host_closes_a_stream_connection(connect_stream: Opener) -> None:
    """If the stream command `open` names an unknown virtual host, the broker answers with code 12 (virtual host
    access failure), and closes the connection.
    """
    client = connect_stream()
    client.log_in()

    assert client.request(OPEN, string("none")).code == 12
    assert client.at_end()


def test_a_command_before_the_login_closes_a_stream_connection(connect_stream: Opener) -> None:
    """If a stream client sends the command `create` before it has logged in, the broker closes the connection."""
    client = connect_stream()
    client.send(CREATE, struct.pack(">I", 1) + string("s") + table({}))

    assert client.at_end()


@pytest.mark.parametrize(
    ("key", "body", "version"),
    [
        (99, b"\0\0\0\1", 1),
        (CREATE, b"\0\0\0\1" + struct.pack(">H", 5) + b"ab", 1),
        (UNSUBSCRIBE, b"\0\0\0\1" + b"\1more", 1),
        (CREATE, b"\0\0\0\1" + string("s") + table({}), 7),
    ],
    ids=["unknown", "too short", "too long", "of another version"],
)
def test_an_invalid_frame_closes_a_stream_connection(client: RawStream, key: int, body: bytes, version: int) -> None:
    """If a frame of the stream protocol has an unknown key, a wrong length or an unsupported version, the broker
    closes the connection with the reason "unknown frame".
    """
    client.send(key, body, version)

    assert client.expect(CLOSE) == struct.pack(">IH", 1, 13) + string("unknown frame")
    client.send(CLOSE | 0x8000, struct.pack(">IH", 1, OK))
    assert client.at_end()


@on_any_broker
def test_a_stream_client_gets_heartbeats_at_the_negotiated_interval(open_stream: Opener) -> None:
    """The broker keeps sending heartbeats to a stream client that has negotiated a heartbeat interval of 1 s."""
    client = open_stream(heartbeat=1)

    for _ in range(2):
        assert client.expect(HEARTBEAT) == b""


def test_the_stream_command_close_is_answered_before_the_connection_ends(client: RawStream) -> None:
    """The broker answers the stream command `close` with OK, and then closes the connection."""
    assert client.request(CLOSE, struct.pack(">H", OK) + string("bye")).code == OK
    assert client.at_end()


# -- streams


def test_the_stream_command_metadata_returns_the_leader_of_each_stream(client: RawStream, stream: str) -> None:
    """The stream command `metadata` returns the leader of a stream that exists, and the code stream-does-not-exist
    for a missing stream.
    """
    client.send(METADATA, struct.pack(">II", 7, 2) + string(stream) + string("none"))

    answer = client.expect(METADATA | 0x8000)
    assert answer.startswith(struct.pack(">IIH", 7, 1, 0))  # one broker
    assert string(stream) + struct.pack(">HHI", OK, 0, 0) in answer
    assert string("none") + struct.pack(">HHI", NO_STREAM, 0xFFFF, 0) in answer


# -- publishing


def test_sub_entry_batches_of_a_stream_are_stored_unchanged(client: RawStream, stream: str) -> None:
    """A stream stores and delivers a sub-entry batch (several messages that the publisher has packed together) without
    unpacking it. Each message in the batch takes up one offset.
    """
    batch = struct.pack(">BHII", 0xC0, 3, 100, 7) + b"packed!"
    client.declare_publisher(1, stream, "ann")
    client.send(PUBLISH, struct.pack(">BIQ", 1, 1, 9) + batch)
    assert client.confirmed(1) == [9]
    again = struct.pack(">QI", 8, 4) + b"less", struct.pack(">Q", 9) + batch, struct.pack(">Q", 10) + batch
    client.send(PUBLISH, struct.pack(">BI", 1, 3) + b"".join(again))
    assert sorted(client.confirmed(3)) == [8, 9, 10]

    client.subscribe(1, stream)

    chunk = client.chunk()
    assert (chunk.entries, chunk.records, chunk.crc) == ([batch], 3, zlib.crc32(batch))
    chunk = client.chunk()
    assert (chunk.entries, chunk.records, chunk.first_offset) == ([batch], 3, 3)
    client.publish(1, 11, b"after")
    assert client.chunk().first_offset == 6


@pytest.mark.differs_since("4.3", "a publish frame above the negotiated size closes the connection")
def test_up_to_4_2_a_publish_frame_above_the_negotiated_frame_size_is_accepted(client: RawStream, stream: str) -> None:
    """Up to RabbitMQ 4.2, the broker accepts a stream client's publish frame that is larger than the negotiated
    maximum frame size, because clients send large batches in such frames.
    """
    client.declare_publisher(1, stream)
    client.publish(1, 0, *[bytes(500_000)] * 40)
    assert client.confirmed(40) == list(range(40))
    client.subscribe(1, stream, credit=100)
    assert {len(entry) for entry in client.entries(40)} == {500_000}


def test_a_stream_with_a_max_age_of_5000_digits_can_be_created(client: RawStream) -> None:
    """A stream can be created over the stream protocol with a max-age of 5,000 digits, which is more than Python
    converts to an integer by default.
    """
    assert client.create("old", **{"max-age": "9" * 5000 + "D"}) == OK


# -- reading


@pytest.fixture
def three(client: RawStream, stream: str) -> str:
    """A stream with three chunks."""
    client.declare_publisher(1, stream)
    for number in range(3):
        client.publish(1, number, b"%d" % number)
        client.confirmed(1)
    return stream


def test_a_stream_subscription_gets_a_chunk_for_each_credit(client: RawStream, three: str) -> None:
    """A stream subscription receives one chunk for each credit, and each chunk has a valid checksum."""
    # Of two initial credits, RabbitMQ 4.0 uses the second one only after the client has granted more.
    assert client.subscribe(1, three, credit=1) == OK
    for offset in range(3):
        chunk = client.chunk()
        assert (chunk.first_offset, chunk.kind, chunk.crc) == (offset, 0, zlib.crc32(chunk.data))

        assert client.subscribe(1, three) == SUBSCRIBED_ALREADY  # nothing comes before the answer
        assert not client.kept(DELIVER)
        client.send(CREDIT, struct.pack(">BH", 1, 1))


@pytest.mark.parametrize(
    ("offset", "first"),
    [(FIRST, 0), (LAST, 2), (NEXT, 3), (at(1), 1), (at(1000), 3), (since(0), 0), (since(1 << 50), 3)],
    ids=["first", "last", "next", "an offset", "beyond the end", "long ago", "in the future"],
)
def test_a_stream_subscription_starts_at_the_requested_offset(
    client: RawStream, three: str, offset: bytes, first: int
) -> None:
    """A stream subscription starts at the requested offset: first, last, next, a number or a timestamp."""
    client.subscribe(1, three, offset)
    client.publish(1, 3, b"3")
    client.confirmed(1)

    assert client.chunk().first_offset == first


def test_a_stored_offset_is_deleted_with_its_segment(client: RawStream) -> None:
    """When a stream deletes its oldest segment, it also deletes each stored offset that points to a message in this
    segment.
    """
    client.create("short", max_length_bytes="2000", stream_max_segment_size_bytes="1000")
    client.declare_publisher(1, "short")
    asked = string("reader") + string("short")
    client.publish(1, 0, b"x")
    client.confirmed(1)
    client.send(STORE_OFFSET, asked + struct.pack(">Q", 0))
    while client.request(QUERY_OFFSET, asked).code == NO_OFFSET:
        pass

    for number in range(1, 100):
        client.publish(1, number, bytes(900))
        client.confirmed(1)
        if client.request(QUERY_OFFSET, asked).code == NO_OFFSET:
            break

    assert client.request(QUERY_OFFSET, asked).code == NO_OFFSET


# -- both protocols

_PROPERTIES = pika.BasicProperties(
    content_type="text/plain",
    headers={"text": "a", "number": 5, "yes": True},
    delivery_mode=2,
    priority=3,
    correlation_id="c",
    message_id="m",
    timestamp=1700000000,
    type="t",
    app_id="a",
)


def test_a_message_keeps_its_properties_from_amqp_to_the_stream_protocol_and_back(
    client: RawStream, stream: str, channel: BlockingChannel
) -> None:
    """If a stream client reads a message that was published over AMQP 0-9-1, and publishes it again, both messages
    have the original properties when they are consumed over AMQP 0-9-1.
    """
    channel.confirm_delivery()
    channel.queue_bind(stream, "amq.topic", "a.*")
    channel.basic_publish("amq.topic", "a.b", b"body", _PROPERTIES)
    client.subscribe(1, stream)
    entries = client.entries(1)
    client.declare_publisher(1, stream)
    client.publish(1, 0, *entries)
    client.confirmed(1)

    channel.basic_qos(prefetch_count=10)
    messages = channel.consume(stream, arguments={"x-stream-offset": "first"})
    for offset, (method, properties, body) in enumerate(itertools.islice(messages, 2)):
        assert (method.exchange, method.routing_key, body) == ("amq.topic", "a.b", b"body")
        assert properties.headers.pop("x-stream-offset") == offset
        assert properties == _PROPERTIES


# -- rights


@pytest.fixture
def ann(api: Api, vhost: str, ann: str) -> str:
    """A user who may read and write `hers`, and configure nothing."""
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^$", "write": "^hers$", "read": "^hers$"})
    return ann


def test_stream_commands_without_permission_are_refused(
    open_stream: Opener, client: RawStream, stream: str, ann: str
) -> None:
    """If a command of the stream protocol needs a permission for a stream, and the user does not have it, the broker
    refuses the command with access-refused.
    """
    client.create("hers")
    hers = open_stream(ann, "secret")

    codes = [
        hers.create("new"),
        hers.request(DELETE, string("hers")).code,
        hers.declare_publisher(1, stream),
        hers.subscribe(1, stream),
        hers.request(QUERY_OFFSET, string("reader") + string(stream)).code,
        hers.request(QUERY_PUBLISHER, string("ann") + string(stream)).code,
    ]

    assert codes == [ACCESS_REFUSED] * 6
    assert hers.declare_publisher(1, "hers") == OK
    assert hers.subscribe(1, "hers") == OK


def test_the_read_permission_for_a_stream_is_checked_only_when_subscribing(
    open_stream: Opener, client: RawStream, api: Api, vhost: str, ann: str
) -> None:
    """A user who loses the read permission for a stream still receives messages through an existing subscription."""
    client.create("hers")
    client.declare_publisher(1, "hers")
    hers = open_stream(ann, "secret")
    assert hers.subscribe(1, "hers") == OK
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^$", "write": "^hers$", "read": "^$"})

    client.publish(1, 0, b"later")

    assert hers.chunk().entries == [b"later"]
