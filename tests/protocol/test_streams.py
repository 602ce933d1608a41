"""Queues of type stream over AMQP 0-9-1: many consumers of one stream, each at its own offset."""

from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from tests.protocol.conftest import Api, Take

STREAM = {"x-queue-type": "stream"}

Connect = Callable[..., pika.BlockingConnection]


@pytest.fixture(autouse=True)
def stream(channel: BlockingChannel) -> str:
    """Declare a stream, and put the channel into confirm mode, so that published messages are in the stream before it
    is read.
    """
    channel.confirm_delivery()
    channel.queue_declare("s", durable=True, arguments=STREAM)
    return "s"


def publish(channel: BlockingChannel, *bodies: str) -> None:
    for body in bodies:
        channel.basic_publish("", "s", body.encode())


class Reader:
    """A consumer of the stream on its own channel. It acknowledges messages only if the test does."""

    def __init__(self, connection: pika.BlockingConnection, prefetch: int = 100, **arguments: Any) -> None:
        self.channel = connection.channel()
        self.channel.basic_qos(prefetch_count=prefetch)
        self.got: list[Any] = []
        self.channel.basic_consume("s", self._take, arguments={f"x-stream-{k}": v for k, v in arguments.items()})

    def _take(self, _channel: object, method: Any, properties: BasicProperties, body: bytes) -> None:
        self.got.append((method, properties, body))

    @property
    def bodies(self) -> list[str]:
        return [body.decode() for _, _, body in self.got]

    @property
    def offsets(self) -> list[int]:
        return [properties.headers["x-stream-offset"] for _, properties, _ in self.got]


def test_each_stream_consumer_gets_every_message(channel: BlockingChannel, take: Take) -> None:
    """Each consumer of a stream receives all messages in order, with their original properties and with the
    additional header x-stream-offset.
    """
    channel.queue_bind("s", "amq.topic", "a.#")
    properties = BasicProperties(
        content_type="text/plain", headers={"h": 1}, priority=3, message_id="m", timestamp=5, delivery_mode=1
    )
    channel.basic_publish("amq.topic", "a.b", b"\x00", properties)
    channel.basic_publish("", "s", b"")
    channel.basic_publish("", "s", bytes(200_000))
    for reader in [Reader(channel.connection, offset="first"), Reader(channel.connection, offset="first")]:
        take.until(lambda reader=reader: len(reader.got) == 3)
        method, got, body = reader.got[0]
        assert (method.exchange, method.routing_key, method.redelivered, body) == ("amq.topic", "a.b", False, b"\x00")
        assert got.headers == {"h": 1, "x-stream-offset": 0}
        for name in ("content_type", "priority", "message_id", "timestamp", "delivery_mode"):
            assert getattr(got, name) == getattr(properties, name)
        assert (reader.offsets, [len(each[2]) for each in reader.got]) == ([0, 1, 2], [1, 0, 200_000])


def test_the_oldest_segments_of_a_full_stream_are_deleted(channel: BlockingChannel, take: Take) -> None:
    """If a stream exceeds its x-max-length-bytes, the broker deletes its oldest segments. The messages in the other
    segments are kept without gaps.
    """
    channel.queue_delete("s")
    limits = {"x-max-length-bytes": 20_000, "x-stream-max-segment-size-bytes": 5_000}
    channel.queue_declare("s", durable=True, arguments={**STREAM, **limits})
    publish(channel, *(f"{number:02}".ljust(1_000) for number in range(60)))

    readers: list[Reader] = []

    def kept() -> list[list[int]]:
        """What a new reader, and those before it, found if they came to the end after the segments had been deleted.

        RabbitMQ deletes them a little later. A reader of RabbitMQ 4.0 gets no more messages if the segment that it
        would read next is deleted meanwhile.
        """
        readers.append(Reader(channel.connection, offset="first"))
        found = [[int(body) for body in reader.bodies] for reader in readers if reader.bodies]
        return [numbers for numbers in found if numbers[0] > 30 and numbers[-1] == 59]

    take.until(kept)
    numbers = kept()[0]
    assert numbers == list(range(numbers[0], 60))
    assert len(numbers) > 10


def test_a_policy_overrides_a_lower_limit_of_a_stream(
    channel: BlockingChannel, take: Take, api: Api, vhost: str
) -> None:
    """A stream keeps all messages within a policy's max-length-bytes, even if its own x-max-length-bytes is lower. Once
    the policy is deleted, the stream's own limit applies, and the broker deletes the oldest segments.
    """
    channel.queue_delete("s")
    policy = {"pattern": "^s$", "definition": {"max-length-bytes": 10**8}}
    assert api("PUT", f"policies/{vhost}/high", policy)[0] == 201
    limits = {"x-max-length-bytes": 20_000, "x-stream-max-segment-size-bytes": 5_000}
    channel.queue_declare("s", durable=True, arguments={**STREAM, **limits})
    publish(channel, *["x" * 1_000] * 60)
    reader = Reader(channel.connection, offset="first")
    take.until(lambda: len(reader.got) == 60)

    assert api("DELETE", f"policies/{vhost}/high")[0] == 204

    def is_shorter() -> bool:
        publish(channel, "x" * 1_000)
        # When a channel is closed, pika rejects messages that it still has, which RabbitMQ refuses for streams.
        found = Reader(channel.connection, prefetch=1, offset="first")
        take.until(lambda: found.got)
        found.channel.close()
        return bool(found.offsets[0] > 0)

    take.until(is_shorter)


def test_the_management_api_counts_all_messages_of_a_stream_as_ready(
    channel: BlockingChannel, take: Take, api: Api, vhost: str
) -> None:
    """The management API counts all messages of a stream as ready, even those that a consumer has received but not
    acknowledged.
    """
    publish(channel, *"abc")
    reader = Reader(channel.connection, offset="first")
    take.until(lambda: len(reader.got) == 3)

    def listed() -> dict[str, Any]:
        return dict(api("GET", f"queues/{vhost}/s")[1])

    take.until(lambda: listed().get("messages") == 3)
    queue = listed()
    assert (queue["type"], queue["messages_ready"], queue["messages_unacknowledged"]) == ("stream", 3, 0)


def test_a_stream_age_of_5000_digits_is_accepted(channel: BlockingChannel, take: Take) -> None:
    """A stream can have an x-max-age of 5,000 digits, which is more than Python converts to an integer by default.
    The x-stream-offset of a consumer can also be an age of 5,000 digits. All messages are younger, so the consumer
    starts at the first one.
    """
    for_ever = "9" * 5000 + "D"
    channel.queue_declare("old", durable=True, arguments={**STREAM, "x-max-age": for_ever})
    channel.basic_publish("", "old", b"x")
    channel.basic_qos(prefetch_count=1)
    got: list[bytes] = []
    channel.basic_consume("old", lambda *delivery: got.append(delivery[3]), arguments={"x-stream-offset": for_ever})
    take.until(lambda: got == [b"x"])
