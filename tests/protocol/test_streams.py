"""Queues of type stream over AMQP 0-9-1: many consumers of one stream, each at its own offset."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

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


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("first", [0, 1, 2, 3, 4]),
        ("last", [4]),
        ("next", []),
        (None, []),
        (3, [3, 4]),
        (-1, [0, 1, 2, 3, 4]),
        ("1h", [0, 1, 2, 3, 4]),
        (datetime(2020, 1, 1, tzinfo=UTC), [0, 1, 2, 3, 4]),
        (datetime(2100, 1, 1, tzinfo=UTC), []),
    ],
    ids=str,
)
def test_a_stream_consumer_starts_at_x_stream_offset(
    channel: BlockingChannel, take: Take, offset: object, expected: list[int]
) -> None:
    """A consumer of a stream starts at its x-stream-offset: first, last, next, a number, a time or an age. Without
    x-stream-offset, the consumer starts at the next message.
    """
    publish(channel, *"abcde")
    reader = Reader(channel.connection, **({} if offset is None else {"offset": offset}))
    publish(channel, "f")
    take.until(lambda: 5 in reader.offsets)
    assert reader.offsets == [*expected, 5]


def test_a_stream_consumer_with_an_offset_beyond_the_end_waits_for_this_offset(
    channel: BlockingChannel, take: Take
) -> None:
    """If the x-stream-offset of a consumer is beyond the end of the stream, the consumer receives no message until
    the message at this offset is published.
    """
    publish(channel, "a")
    reader = Reader(channel.connection, offset=3)
    publish(channel, *"bcde")
    take.until(lambda: len(reader.got) == 2)
    assert reader.bodies == ["d", "e"]


def test_a_stream_consumer_gets_one_more_message_for_each_acknowledgement(channel: BlockingChannel, take: Take) -> None:
    """A consumer of a stream first receives as many messages as its prefetch allows. For each message that it
    acknowledges, it then receives one more.
    """
    publish(channel, *"abcdef")
    reader = Reader(channel.connection, prefetch=2, offset="first")
    take.until(lambda: len(reader.got) == 2)
    reader.channel.basic_ack(2)
    take.until(lambda: len(reader.got) == 3)
    reader.channel.basic_ack(0, multiple=True)
    take.until(lambda: len(reader.got) == 5)
    assert reader.bodies == [*"abcde"]


def test_unacknowledged_messages_of_a_stream_are_not_redelivered(
    channel: BlockingChannel, connect: Connect, take: Take
) -> None:
    """When a consumer of a stream disconnects, its unacknowledged messages are not redelivered to other consumers."""
    publish(channel, *"abc")
    gone = Reader(connect(), offset="first")
    stays = Reader(channel.connection, offset="first")
    take.until(lambda: len(stays.got) == 3)
    # pika nacks messages that it has buffered when it closes a channel, and a stream refuses that.
    Take(gone.channel).until(lambda: len(gone.got) == 3)
    gone.channel.connection.close()
    publish(channel, "d")
    take.until(lambda: len(stays.got) == 4)
    assert stays.bodies == [*"abcd"]
    assert not any(method.redelivered for method, _, _ in stays.got)


def test_deleting_a_stream_cancels_its_consumers(channel: BlockingChannel, take: Take) -> None:
    """When a stream is deleted, its consumers receive basic.cancel. A new stream with the same name starts at offset
    0.
    """
    publish(channel, "a")
    reader = Reader(channel.connection)
    cancelled: list[object] = []
    reader.channel.add_on_cancel_callback(cancelled.append)
    channel.queue_delete("s")
    take.until(lambda: cancelled)
    channel.queue_declare("s", durable=True, arguments=STREAM)
    again = Reader(channel.connection, offset="first")
    publish(channel, "b")
    take.until(lambda: again.got)
    assert (again.bodies, again.offsets) == (["b"], [0])


def test_deleting_a_stream_ignores_the_flags_if_empty_and_if_unused(channel: BlockingChannel) -> None:
    """As in RabbitMQ, queue.delete deletes a stream that has messages and consumers, even with the flags `if-empty`
    and `if-unused`.
    """
    publish(channel, "a")
    Reader(channel.connection)
    channel.queue_delete("s", if_unused=True, if_empty=True)
    channel.queue_declare("s", durable=True)


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


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda channel: channel.basic_get("s"), "basic.get not supported by stream queues queue 's' in vhost"),
        (lambda channel: channel.queue_purge("s"), "queue.purge not supported by stream queues queue 's' in vhost"),
    ],
    ids=["get", "purge"],
)
def test_basic_get_and_queue_purge_of_a_stream_are_refused(
    channel: BlockingChannel, what: Callable[[BlockingChannel], None], words: str
) -> None:
    """If a client sends basic.get or queue.purge for a stream, the broker closes the connection with error 540 and
    RabbitMQ's error text.
    """
    with pytest.raises(ConnectionClosedByBroker, match=f"NOT_IMPLEMENTED - {words}") as caught:
        what(channel)
    assert caught.value.reply_code == 540


@pytest.mark.parametrize("requeue", [True, False])
@pytest.mark.differs_since("4.0", "it is taken, and the reader gets no credit for it")
def test_nacking_a_message_of_a_stream_closes_the_connection_up_to_3_13(
    channel: BlockingChannel, take: Take, *, requeue: bool
) -> None:
    """Up to RabbitMQ 3.13, if a client nacks a message of a stream, the broker closes the connection, because a stream
    can neither requeue nor dead-letter a message.
    """
    publish(channel, "a")
    reader = Reader(channel.connection, offset="first")
    take.until(lambda: reader.got)
    reader.channel.basic_nack(1, requeue=requeue)
    words = "basic.nack and basic.reject not supported by stream queues"
    with pytest.raises(ConnectionClosedByBroker, match=words):
        reader.channel.basic_qos(prefetch_count=2)  # the reply to anything that follows


@pytest.mark.parametrize(
    ("prefetch", "options", "code", "words"),
    [
        (0, {}, 406, "consumer prefetch count is not set for "),
        (1, {"auto_ack": True}, 540, "automatic acknowledgement not supported by stream queue"),
        (1, {"arguments": {"x-priority": 1}}, 406, "invalid arg 'x-priority' for queue 's' in vhost "),
        (1, {"arguments": {"x-stream-offset": "5x"}}, 406, "invalid arg 'x-stream-offset' for queue 's' in vhost "),
    ],
    ids=["prefetch", "auto_ack", "priority", "offset"],
)
def test_a_stream_consumer_needs_a_prefetch_count_and_manual_acknowledgements(
    channel: BlockingChannel, prefetch: int, options: dict[str, Any], code: int, words: str
) -> None:
    """The broker refuses a consumer of a stream if the consumer has no prefetch count, or uses automatic
    acknowledgement. It also refuses a consumer with the argument x-priority or with an invalid x-stream-offset.
    """
    channel.basic_qos(prefetch_count=prefetch)
    with pytest.raises((ChannelClosedByBroker, ConnectionClosedByBroker)) as caught:
        channel.basic_consume("s", lambda *_: None, **options)
    assert caught.value.reply_code == code
    assert words in caught.value.reply_text


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ({"x-max-age": "5x"}, {}, "invalid arg 'x-max-age' for .*: invalid_max_age"),
        ({"x-max-age": 5}, {}, "invalid arg 'x-max-age' for .*: {unacceptable_type,signedint}"),
        ({"x-max-length-bytes": -1}, {}, "invalid arg 'x-max-length-bytes' for .*: {value_negative,-1}"),
        (
            {"x-stream-max-segment-size-bytes": 5_000_000_000},
            {},
            "Exceeded max value for x-stream-max-segment-size-bytes",
        ),
        ({"x-dead-letter-exchange": "x"}, {}, "'x-dead-letter-exchange' .* of queue type rabbit_stream_queue"),
        ({"x-message-ttl": 1}, {}, "'x-message-ttl' .* of queue type rabbit_stream_queue"),
        ({"x-max-length": 1}, {}, "'x-max-length' .* of queue type rabbit_stream_queue"),
        ({"x-initial-cluster-size": 0}, {}, "invalid arg 'x-initial-cluster-size' for .*: {value_zero,0}"),
        ({"x-queue-leader-locator": "x"}, {}, "'x-queue-leader-locator' for .*: invalid_queue_locator_arg"),
        ({}, {"durable": False}, "invalid property 'non-durable'"),
        ({}, {"exclusive": True}, "invalid property 'exclusive-owner'"),
        ({}, {"auto_delete": True}, "invalid property 'auto-delete'"),
        ({}, {"queue": ""}, "Cannot declare a server-named queue for type rabbit_stream_queue"),
    ],
    ids=str,
)
def test_an_invalid_stream_declaration_is_refused(
    channel: BlockingChannel, arguments: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    """If a client declares a stream as transient, exclusive, auto-delete or server-named, or with invalid arguments,
    the broker refuses the declaration with RabbitMQ's error text.
    """
    with pytest.raises(ChannelClosedByBroker, match=words):
        channel.queue_declare(**{"queue": "other", "durable": True, **options}, arguments={**STREAM, **arguments})


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "quorum"}, {**STREAM, "x-max-age": "1h"}], ids=str)
def test_declaring_a_stream_with_other_arguments_is_refused(
    channel: BlockingChannel, arguments: dict[str, Any]
) -> None:
    """If an existing stream is declared again with another type or limit, the broker refuses the declaration with
    "inequivalent arg".
    """
    channel.queue_declare("s", durable=True, arguments=STREAM)
    with pytest.raises(
        ChannelClosedByBroker, match=r"inequivalent arg 'x-(queue-type|max-age)' for queue 's' in vhost"
    ):
        channel.queue_declare("s", durable=True, arguments=arguments)


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
