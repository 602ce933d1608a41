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
    DELETE_PUBLISHER,
    DELIVER,
    FIRST,
    HEARTBEAT,
    LAST,
    METADATA,
    METADATA_UPDATE,
    NEXT,
    OPEN,
    PEER_PROPERTIES,
    PUBLISH,
    PUBLISH_ERROR,
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
def test_a_login_that_fails_ends_the_connection(
    connect_stream: Opener, mechanism: str, secret: bytes, code: int
) -> None:
    client = connect_stream()
    client.request(PEER_PROPERTIES, table({}))
    client.request(SASL_HANDSHAKE)

    answer = client.request(SASL_AUTHENTICATE, string(mechanism) + struct.pack(">I", len(secret)) + secret)

    assert answer.code == code
    assert client.at_end()


def test_a_virtual_host_that_is_not_there(connect_stream: Opener) -> None:
    client = connect_stream()
    client.log_in()

    assert client.request(OPEN, string("none")).code == 12
    assert client.at_end()


def test_nothing_is_done_before_the_login(connect_stream: Opener) -> None:
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
def test_a_frame_that_makes_no_sense_closes_the_connection(
    client: RawStream, key: int, body: bytes, version: int
) -> None:
    client.send(key, body, version)

    assert client.expect(CLOSE) == struct.pack(">IH", 1, 13) + string("unknown frame")
    client.send(CLOSE | 0x8000, struct.pack(">IH", 1, OK))
    assert client.at_end()


@on_any_broker
def test_heartbeats_are_sent_as_agreed(open_stream: Opener) -> None:
    client = open_stream(heartbeat=1)

    assert client.expect(HEARTBEAT) == b""


def test_a_client_takes_its_leave(client: RawStream) -> None:
    assert client.request(CLOSE, struct.pack(">H", OK) + string("bye")).code == OK
    assert client.at_end()


# -- streams


def test_streams_are_created_once(client: RawStream) -> None:
    assert client.create("s", max_length_bytes="5000000000", max_age="1h") == OK
    assert client.create("s", max_length_bytes="5000000000", max_age="1h") == EXISTS
    assert client.create("s", max_length_bytes="1000") == PRECONDITION_FAILED


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("", {}), ("amq.s", {}), ("s", {"queue_leader_locator": "nowhere"}), ("s", {"initial_cluster_size": "0"})],
)
def test_streams_that_cannot_be(client: RawStream, name: str, arguments: dict[str, str]) -> None:
    assert client.create(name, **arguments) == PRECONDITION_FAILED


def test_a_stream_is_a_queue(client: RawStream, stream: str, channel: BlockingChannel) -> None:
    arguments = {"x-queue-type": "stream"}

    channel.queue_declare(stream, durable=True, arguments=arguments)
    channel.queue_declare("other", durable=True, arguments=arguments)
    assert client.create("other") == EXISTS


def test_metadata_say_where_streams_are(client: RawStream, stream: str) -> None:
    client.send(METADATA, struct.pack(">II", 7, 2) + string(stream) + string("none"))

    answer = client.expect(METADATA | 0x8000)
    assert answer.startswith(struct.pack(">IIH", 7, 1, 0))  # one broker
    assert string(stream) + struct.pack(">HHI", OK, 0, 0) in answer
    assert string("none") + struct.pack(">HHI", NO_STREAM, 0xFFFF, 0) in answer


def test_who_uses_a_stream_learns_that_it_is_gone(open_stream: Opener, client: RawStream, stream: str) -> None:
    reader = open_stream()
    reader.subscribe(1, stream)
    client.declare_publisher(1, stream)

    assert client.request(DELETE, string(stream)).code == OK

    gone = struct.pack(">H", NOT_AVAILABLE) + string(stream)
    assert client.expect(METADATA_UPDATE) == reader.expect(METADATA_UPDATE) == gone
    client.publish(1, 5, b"late")
    assert client.expect(PUBLISH_ERROR) == struct.pack(">BIQH", 1, 1, 5, NO_PUBLISHER)
    reader.send(CREDIT, struct.pack(">BH", 1, 1))
    assert reader.expect(CREDIT | 0x8000) == struct.pack(">HB", NOT_SUBSCRIBED, 1)
    assert client.request(DELETE, string(stream)).code == NO_STREAM


# -- publishing


def test_publishers_have_numbers_and_names(client: RawStream, stream: str) -> None:
    assert client.declare_publisher(1, "none") == NO_STREAM
    assert client.declare_publisher(1, stream) == OK
    assert client.declare_publisher(1, stream) == PRECONDITION_FAILED
    assert client.declare_publisher(2, stream, "ann") == OK
    assert client.declare_publisher(3, stream, "ann") == PRECONDITION_FAILED
    assert client.request(DELETE_PUBLISHER, b"\2").code == OK
    assert client.request(DELETE_PUBLISHER, b"\2").code == NO_PUBLISHER
    assert client.declare_publisher(3, stream, "ann") == OK


def test_what_a_producer_has_published_before_is_confirmed_and_not_kept(client: RawStream, stream: str) -> None:
    client.declare_publisher(1, stream, "ann")
    asked = string("ann") + string(stream)
    assert client.request(QUERY_PUBLISHER, asked) == (OK, struct.pack(">Q", 0))
    client.publish(1, 5, b"five", b"six")
    client.confirmed(2)

    client.publish(1, 5, b"five again", b"six again", b"seven")

    assert sorted(client.confirmed(3)) == [5, 6, 7]
    assert client.request(QUERY_PUBLISHER, asked) == (OK, struct.pack(">Q", 7))
    client.subscribe(1, stream)
    assert client.entries(3) == [b"five", b"six", b"seven"]


def test_batches_are_passed_on_as_they_are(client: RawStream, stream: str) -> None:
    """With any compression: the broker need not understand it."""
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
def test_a_publish_far_above_the_negotiated_frame_size_is_taken(client: RawStream, stream: str) -> None:
    """Clients with large batches rely on it."""
    client.declare_publisher(1, stream)
    client.publish(1, 0, *[bytes(500_000)] * 40)
    assert client.confirmed(40) == list(range(40))
    client.subscribe(1, stream, credit=100)
    assert {len(entry) for entry in client.entries(40)} == {500_000}


def test_an_age_of_five_thousand_digits(client: RawStream) -> None:
    assert client.create("old", **{"max-age": "9" * 5000 + "D"}) == OK


def test_nobody_publishes_without_saying_so(client: RawStream) -> None:
    client.publish(9, 5, b"a", b"b")

    refused = struct.pack(">BI", 9, 2) + struct.pack(">QHQH", 5, NO_PUBLISHER, 6, NO_PUBLISHER)
    assert client.expect(PUBLISH_ERROR) == refused


# -- reading


@pytest.fixture
def three(client: RawStream, stream: str) -> str:
    """A stream with three chunks."""
    client.declare_publisher(1, stream)
    for number in range(3):
        client.publish(1, number, b"%d" % number)
        client.confirmed(1)
    return stream


def test_a_client_gets_a_chunk_for_each_credit(client: RawStream, three: str) -> None:
    # Of two credits at the start, RabbitMQ 4.0 keeps one until it has another.
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
def test_a_client_starts_where_it_wants(client: RawStream, three: str, offset: bytes, first: int) -> None:
    client.subscribe(1, three, offset)
    client.publish(1, 3, b"3")
    client.confirmed(1)

    assert client.chunk().first_offset == first


def test_subscriptions_end(client: RawStream, three: str) -> None:
    assert client.subscribe(1, "none") == NO_STREAM
    assert client.request(UNSUBSCRIBE, b"\1").code == NOT_SUBSCRIBED
    client.subscribe(1, three, NEXT)
    assert client.request(UNSUBSCRIBE, b"\1").code == OK
    client.publish(1, 3, b"3")
    client.confirmed(1)
    assert not client.kept(DELIVER)


def test_offsets_are_stored(client: RawStream, stream: str) -> None:
    asked = string("reader") + string(stream)
    assert client.request(QUERY_OFFSET, asked) == (NO_OFFSET, struct.pack(">Q", 0))
    assert client.request(QUERY_OFFSET, string("reader") + string("none")).code == NO_STREAM

    client.send(STORE_OFFSET, asked + struct.pack(">Q", 42))

    while (answer := client.request(QUERY_OFFSET, asked)).code == NO_OFFSET:
        pass
    assert answer == (OK, struct.pack(">Q", 42))


def test_offsets_of_deleted_messages_are_forgotten(client: RawStream) -> None:
    """The stored offset of a reader is gone once its message and all later ones in the segment have been deleted."""
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


def test_what_came_by_amqp_goes_out_by_streams_and_back(
    client: RawStream, stream: str, channel: BlockingChannel
) -> None:
    """With all its properties; the first copy as it came, the second as a client of streams has written it again."""
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


def test_what_a_client_of_streams_has_written_is_a_message(
    client: RawStream, stream: str, channel: BlockingChannel
) -> None:
    """A body and an application property, as the libraries write them."""
    client.declare_publisher(1, stream)
    client.publish(1, 0, b"\x00St\xc1\x07\x02\xa1\x01k\xa1\x01v" + b"\x00Su\xa0\x04body")
    client.confirmed(1)

    channel.basic_qos(prefetch_count=10)
    method, properties, body = next(channel.consume(stream, arguments={"x-stream-offset": "first"}))

    assert (method.exchange, method.routing_key, body) == ("", stream, b"body")
    assert properties.headers == {"k": "v", "x-stream-offset": 0}


# -- rights


@pytest.fixture
def ann(api: Api, vhost: str, ann: str) -> str:
    """A user who may read and write `hers`, and configure nothing."""
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^$", "write": "^hers$", "read": "^hers$"})
    return ann


def test_what_is_not_allowed_is_refused(open_stream: Opener, client: RawStream, stream: str, ann: str) -> None:
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


def test_a_right_is_needed_only_to_subscribe(
    open_stream: Opener, client: RawStream, api: Api, vhost: str, ann: str
) -> None:
    """A subscription gets messages after its user may no longer read the stream."""
    client.create("hers")
    client.declare_publisher(1, "hers")
    hers = open_stream(ann, "secret")
    assert hers.subscribe(1, "hers") == OK
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^$", "write": "^hers$", "read": "^$"})

    client.publish(1, 0, b"later")

    assert hers.chunk().entries == [b"later"]
