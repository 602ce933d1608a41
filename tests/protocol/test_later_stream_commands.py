"""Stream commands that RabbitMQ has since 3.11, and that the embedded broker also supports, and their limits."""

import asyncio
import struct
from typing import Any
from urllib.parse import quote

import pytest

from tests.brokers import TestBroker, on_any_broker
from tests.protocol.conftest import Api
from tests.protocol.raw_stream import (
    CLOSE,
    CONSUMER_UPDATE,
    CREATE_SUPER_STREAM,
    DELETE_SUPER_STREAM,
    DELIVER,
    EXCHANGE_COMMAND_VERSIONS,
    FIRST,
    METADATA_UPDATE,
    PARTITIONS,
    PUBLISH,
    ROUTE,
    STREAM_STATS,
    UNSUBSCRIBE,
    Opener,
    RawStream,
    at,
    chunk_of,
    string,
    strings,
    table,
)

pytestmark = on_any_broker

OK, NO_STREAM, EXISTS, PRECONDITION_FAILED = 1, 2, 5, 17


@pytest.fixture
def orders(client: RawStream) -> list[str]:
    """The partitions of a super stream."""
    partitions = ["orders-0", "orders-1"]
    body = string("orders") + strings(*partitions) + strings("eu", "us") + table({"max-age": "1h"})
    assert client.request(CREATE_SUPER_STREAM, body).code == OK
    return partitions


def test_the_commands_partitions_and_route_return_the_streams_of_a_super_stream(
    client: RawStream, orders: list[str]
) -> None:
    """The stream command `partitions` returns all partitions of a super stream, and the command `route` returns the
    partitions for a routing key. If the super stream does not exist, the broker refuses both commands.
    """
    assert client.request(PARTITIONS, string("orders")) == (OK, strings(*orders))
    assert client.request(ROUTE, string("us") + string("orders")) == (OK, strings("orders-1"))
    assert client.request(ROUTE, string("asia") + string("orders")) == (OK, strings())
    assert client.request(PARTITIONS, string("none")).code == NO_STREAM
    assert client.request(ROUTE, string("us") + string("none")).code == NO_STREAM


def test_a_super_stream_is_created_completely_or_not_at_all(client: RawStream, orders: list[str]) -> None:
    """If a partition of a new super stream already exists, or if the super stream has more binding keys than
    partitions, the broker refuses to create the super stream, and creates none of its partitions.
    """
    again = string("more") + strings("more-0", orders[0]) + strings("a", "b") + table({})
    assert client.request(CREATE_SUPER_STREAM, again).code == EXISTS
    assert client.request(PARTITIONS, string("more")).code == NO_STREAM
    unequal = string("more") + strings("more-0") + strings("a", "b") + table({})
    assert client.request(CREATE_SUPER_STREAM, unequal).code == PRECONDITION_FAILED
    assert client.subscribe(1, "more-0") == NO_STREAM


def test_a_super_stream_is_deleted_with_its_partitions(client: RawStream, orders: list[str]) -> None:
    """When a client deletes a super stream, the broker deletes its partitions, and sends metadata-update to the
    clients that are subscribed to them.
    """
    client.subscribe(1, orders[0])

    assert client.request(DELETE_SUPER_STREAM, string("orders")).code == OK

    assert client.expect(METADATA_UPDATE).endswith(string(orders[0]))
    assert client.request(PARTITIONS, string("orders")).code == NO_STREAM
    assert client.request(DELETE_SUPER_STREAM, string("orders")).code == NO_STREAM


def test_a_stream_with_the_name_of_a_bound_exchange_is_not_a_partition(
    client: RawStream, orders: list[str], api: Api, vhost: str
) -> None:
    """The partitions of a super stream are the streams that are bound to its exchange. If an exchange `audit` is also
    bound to this exchange, an unrelated stream with the name `audit` is neither listed as a partition nor deleted with
    the super stream.
    """
    api("PUT", f"exchanges/{vhost}/audit", {"type": "fanout"})
    api("PUT", f"queues/{vhost}/audit", {"durable": True, "arguments": {"x-queue-type": "stream"}})
    api("POST", f"bindings/{vhost}/e/orders/e/audit", {"routing_key": "", "arguments": {}})
    assert client.request(PARTITIONS, string("orders")) == (OK, strings(*orders))
    assert client.request(DELETE_SUPER_STREAM, string("orders")).code == OK
    assert api("GET", f"queues/{vhost}/audit")[0] == 200


# -- a single active consumer


def subscribe(client: RawStream, number: int, stream: str, **more: str) -> None:
    properties = {"single-active-consumer": "true", "name": "group", **more}
    body = bytes((number,)) + string(stream) + FIRST + struct.pack(">H", 10)
    assert client.request(7, body + table(properties)).code == OK


def update(client: RawStream) -> tuple[int, int, int]:
    """Return the correlation id and the subscription id of the next consumer-update, and whether it is active."""
    correlation, subscription, active = struct.unpack(">IBB", client.expect(CONSUMER_UPDATE))
    return correlation, subscription, active


def answer(client: RawStream, correlation: int, place: bytes = struct.pack(">H", 0)) -> None:
    client.send(CONSUMER_UPDATE | 0x8000, struct.pack(">IH", correlation, OK) + place)


def test_if_the_single_active_consumer_of_a_stream_disconnects_the_next_one_becomes_active(
    open_stream: Opener, client: RawStream, stream: str
) -> None:
    """Of several single active consumers of a stream that have the same name, only one is active. If its client
    disconnects, the next consumer becomes active, and starts at the offset that it requests.
    """
    client.declare_publisher(1, stream)
    for number in range(2):
        client.publish(1, number, b"%d" % number)
        client.confirmed(1)
    first, second = open_stream(), open_stream()
    subscribe(first, 1, stream)
    subscribe(second, 2, stream)
    correlation, *told = update(first)
    assert told == [1, True]
    answer(first, correlation)
    assert first.entries(2) == [b"0", b"1"]
    assert not second.kept(CONSUMER_UPDATE)

    first.close()

    correlation, *told = update(second)
    assert told == [2, True]
    answer(second, correlation, at(1))
    assert second.chunk().first_offset == 1


def test_single_active_consumers_with_the_same_name_share_the_partitions_of_a_super_stream(
    open_stream: Opener, client: RawStream, orders: list[str]
) -> None:
    """If two clients subscribe to both partitions of a super stream as single active consumers with the same name, each
    client is active on one partition. If one of the clients unsubscribes from the partition on which it is active, the
    other client becomes active there, too.
    """
    first, second = open_stream(), open_stream()
    for number, partition in enumerate(orders):
        subscribe(first, number, partition, **{"super-stream": "orders"})
        answer(first, update(first)[0])
    subscribe(second, 0, orders[0], **{"super-stream": "orders"})
    subscribe(second, 1, orders[1], **{"super-stream": "orders"})

    correlation, *told = update(first)
    assert told == [1, False]  # no longer active on one of them
    assert not second.kept(CONSUMER_UPDATE)  # not active before the first has answered
    answer(first, correlation)
    correlation, *told = update(second)
    assert told == [1, True]

    first.request(UNSUBSCRIBE, b"\0")
    assert update(second)[1:] == (0, True)


def test_a_single_active_consumer_of_a_stream_needs_a_name(client: RawStream, stream: str) -> None:
    """If a client subscribes to a stream with single-active-consumer but without a name, the broker answers with
    PRECONDITION_FAILED.
    """
    assert client.subscribe(1, stream, **{"single-active-consumer": "true"}) == PRECONDITION_FAILED


# -- versions


def test_version_2_of_the_stream_command_deliver_contains_the_last_committed_chunk_id(
    client: RawStream, stream: str
) -> None:
    """If a client accepts version 2 of the stream command `deliver`, each chunk is delivered with the id of the last
    committed chunk.
    """
    versions = client.request(EXCHANGE_COMMAND_VERSIONS, struct.pack(">IHHH", 1, DELIVER, 1, 2))
    assert versions.code == OK
    assert struct.pack(">HHH", PUBLISH, 1, 2) in versions.rest
    client.declare_publisher(1, stream)
    client.publish(1, 0, b"0")
    client.confirmed(1)
    client.publish(1, 1, b"1")
    client.confirmed(1)

    client.subscribe(1, stream)

    body = client.expect(DELIVER)
    assert body[1:9] == struct.pack(">Q", 1)
    assert chunk_of(body[:1] + body[9:]).first_offset == 0


def test_a_stream_filter_skips_chunks_without_its_values(client: RawStream, stream: str) -> None:
    """A stream subscription with filters gets each chunk that contains one of the filters' values. A chunk whose Bloom
    filter contains none of these values is skipped. With match-unfiltered, the subscription also gets chunks that
    contain messages without a filter value.
    """
    client.declare_publisher(1, stream)

    def publish(number: int, *values: bytes) -> None:
        messages = (struct.pack(">Q", number) + value + struct.pack(">I", 1) + b"%d" % number for value in values)
        client.send(PUBLISH, struct.pack(">BI", 1, len(values)) + b"".join(messages), version=2)
        assert client.confirmed(len(values)) == [number] * len(values)

    nothing = b"\xff\xff"
    for number, values in enumerate(([string("eu")], [string("us")], [nothing], [string("eu"), nothing])):
        publish(number, *values)

    client.subscribe(1, stream, **{"filter.0": "eu"})
    assert client.entries(3) == [b"0", b"3", b"3"]
    client.subscribe(2, stream, **{"filter.0": "us", "match-unfiltered": "true"})
    assert client.entries(4) == [b"1", b"2", b"3", b"3"]
    client.subscribe(3, stream, **{"filter.0": "asia", "filter.1": "us"})
    assert client.entries(1) == [b"1"]


def test_the_command_stream_stats_returns_the_first_and_the_last_committed_chunk(
    client: RawStream, stream: str
) -> None:
    """The stream command `stream_stats` returns the ids of a stream's first chunk and its last committed chunk. If
    the stream does not exist, the broker refuses the command.
    """

    def statistics() -> dict[str, int]:
        rest = client.request(STREAM_STATS, string(stream)).rest
        names = ("first_chunk_id", "committed_chunk_id")
        return {name: struct.unpack_from(">q", rest, rest.index(string(name)) + 2 + len(name))[0] for name in names}

    assert statistics() == {"first_chunk_id": -1, "committed_chunk_id": -1}
    client.declare_publisher(1, stream)
    for number in range(3):
        client.publish(1, number, b"x")
        client.confirmed(1)
    assert statistics() == {"first_chunk_id": 0, "committed_chunk_id": 2}
    assert client.request(STREAM_STATS, string("none")).code == NO_STREAM


# -- the management API


def test_the_management_api_lists_and_closes_stream_connections(client: RawStream, api: Api, vhost: str) -> None:
    """The management API lists connections of the stream protocol. A DELETE request for such a connection closes it."""
    (found,) = api("GET", f"vhosts/{vhost}/connections")[1]
    assert (found["protocol"], found["user"], found["channels"]) == ("stream", "guest", 0)
    assert found["client_properties"] == {"product": "raw"}
    assert {each["protocol"] for each in api("GET", "overview")[1]["listeners"]} == {"amqp", "http", "stream"}

    assert api("DELETE", f"connections/{quote(found['name'])}")[0] == 204

    assert client.at_end()


# -- bounds


def test_a_stream_frame_that_is_too_large_closes_the_connection(client: RawStream) -> None:
    """If a stream client sends a frame of 1 GiB, which is far larger than the negotiated maximum, the broker closes the
    connection with "frame too large".
    """
    client.socket.sendall(struct.pack(">I", 1 << 30))
    client.socket.sendall(struct.pack(">HH", PUBLISH, 1))

    assert client.expect(CLOSE) == struct.pack(">IH", 1, 14) + string("frame too large")


def test_70000_messages_published_in_one_frame_are_split_into_chunks(client: RawStream, stream: str) -> None:
    """If a client publishes 70,000 messages to a stream in one frame, the broker stores them in several chunks,
    because a chunk contains at most 65,535 messages. All of them are confirmed and delivered.
    """
    count = 70_000
    client.declare_publisher(1, stream)
    client.publish(1, 0, *[b""] * count)
    assert len(client.confirmed(count)) == count

    client.subscribe(1, stream, credit=1000)

    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(len(client.chunk().entries))
    assert sum(sizes) == count
    assert max(sizes) <= 65_535


def test_rstream_can_publish_consume_and_store_an_offset_on_the_embedded_broker(broker: TestBroker) -> None:
    """A program that uses the Python library rstream can publish with publisher confirms, publish in compressed
    batches, consume, and store an offset, on the embedded broker as on RabbitMQ.
    """
    rstream = pytest.importorskip("rstream")
    port = int(broker.streams.rpartition(":")[2])
    where: dict[str, Any] = {"host": "127.0.0.1", "port": port, "username": "guest", "password": "guest"}

    async def talk() -> list[bytes]:
        found: list[bytes] = []
        confirmed, received = asyncio.Event(), asyncio.Event()
        async with rstream.Producer(vhost=broker.vhost, **where) as producer:
            await producer.create_stream("r", arguments={"max-length-bytes": 1_000_000})
            await producer.send("r", rstream.AMQPMessage(body=b"one"), on_publish_confirm=lambda _: confirmed.set())
            await asyncio.wait_for(confirmed.wait(), 10)
            batch = [rstream.AMQPMessage(body=body) for body in (b"two", b"three")]
            await producer.send_sub_entry("r", batch, compression_type=rstream.CompressionType.Gzip)
            await producer.send_wait("r", rstream.AMQPMessage(body=b"four"))

        def keep(message: Any, _: Any) -> None:
            found.append(message.body)
            if len(found) == 4:
                received.set()

        async with rstream.Consumer(vhost=broker.vhost, **where) as consumer:
            await consumer.subscribe("r", keep, decoder=rstream.amqp_decoder)
            await asyncio.wait_for(received.wait(), 10)
            await consumer.store_offset("r", "reader", 2)
            while True:
                try:
                    assert await consumer.query_offset("r", "reader") == 2
                except rstream.exceptions.OffsetNotFound:
                    continue
                return found

    assert sorted(asyncio.run(talk())) == [b"four", b"one", b"three", b"two"]
