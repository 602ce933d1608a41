"""`x-stream-initial-offset`, which RabbitMQ has from 4.4 on: the offset of a stream's first message.

What RabbitMQ 4.4 does is known from its release notes alone, so these tests run on the embedded broker.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.queue_arguments import INITIAL_OFFSET, MAX_INITIAL_OFFSET
from tests.protocol.conftest import Api
from tests.protocol.raw_stream import FIRST, NEXT, OPEN, RawStream, at, string

STREAM = {"x-queue-type": "stream"}
EXISTS, PRECONDITION_FAILED = 5, 17
START = 5_000_000_000


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(like="4.4", stream_port=0, management_port=0) as broker:
        yield broker


def declared(channel: BlockingChannel, **arguments: object) -> None:
    """Declare a stream named s with more arguments."""
    channel.queue_declare("s", durable=True, arguments={**STREAM, **arguments})


def offsets(connection: pika.BlockingConnection, count: int, start: object = "first") -> list[int]:
    """Read the offsets of this many messages of the stream."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)
    found: list[int] = []

    def take(*delivery: object) -> None:
        found.append(delivery[2].headers["x-stream-offset"])  # type: ignore[attr-defined]

    channel.basic_consume("s", take, arguments={"x-stream-offset": start})
    while len(found) < count:
        connection.process_data_events(0.01)
    channel.close()
    return found


def opened(broker: EmbeddedBroker) -> RawStream:
    """Log in to the stream port."""
    assert broker.stream_port is not None
    client = RawStream("127.0.0.1", broker.stream_port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == 1
    return client


def refusal(broker: EmbeddedBroker, arguments: dict[str, object]) -> str:
    """Return the text with which the broker refuses to declare a queue named s."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        with pytest.raises(ChannelClosedByBroker) as refused:
            connection.channel().queue_declare("s", durable=True, arguments=arguments)
        assert refused.value.reply_code == 406
        return str(refused.value.reply_text)


@pytest.mark.parametrize("start", ["first", "next"])
def test_the_first_message_of_a_stream_has_the_initial_offset(broker: EmbeddedBroker, start: str) -> None:
    """If the embedded broker imitates RabbitMQ 4.4, the first message that is published to a stream with
    `x-stream-initial-offset` has this offset. A consumer that started at `first` or `next` while the stream was empty
    gets this message first.
    """
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        declared(channel, **{INITIAL_OFFSET: START})
        reader = connection.channel()
        reader.basic_qos(prefetch_count=10)
        found: list[int] = []
        reader.basic_consume(
            "s", lambda *each: found.append(each[2].headers["x-stream-offset"]), arguments={"x-stream-offset": start}
        )
        for body in (b"a", b"b"):
            channel.basic_publish("", "s", body)
        while len(found) < 2:
            connection.process_data_events(0.01)
        assert found == [START, START + 1]
        assert offsets(connection, 1, START + 1) == [START + 1]
        assert offsets(connection, 2, 0) == [START, START + 1]


def test_the_initial_offset_survives_a_restart(tmp_path: Path, api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """If the broker is restarted while a stream with `x-stream-initial-offset` is empty, the first message published
    afterwards still gets this offset. The management API reports 0 messages while the stream is empty, and 1 after
    the first message.
    """
    for count in range(2):
        with (
            EmbeddedBroker(like="4.4", data_dir=tmp_path, management_port=0) as broker,
            pika.BlockingConnection(pika.URLParameters(broker.url)) as connection,
        ):
            channel = connection.channel()
            declared(channel, **{INITIAL_OFFSET: START})
            channel.confirm_delivery()
            if count:
                channel.basic_publish("", "s", b"x")
                assert offsets(connection, 1) == [START]
            assert api_of(broker)("GET", "queues/%2F/s")[1]["messages"] == count


@pytest.mark.parametrize("initial", [0, MAX_INITIAL_OFFSET])
def test_a_stream_created_over_the_stream_protocol_can_have_an_initial_offset(
    broker: EmbeddedBroker, initial: int
) -> None:
    """A stream that is created over the stream protocol with `stream-initial-offset` begins at this offset. A
    consumer that starts at `next` while the stream is empty gets the first message. So does a consumer that starts
    later, at `first` or at offset 0.
    """
    client = opened(broker)
    assert client.create("s", stream_initial_offset=str(initial)) == 1
    client.subscribe(1, "s", NEXT)
    client.declare_publisher(1, "s")
    client.publish(1, 1, b"a", b"b")
    assert client.confirmed(2) == [1, 2]
    assert client.chunk().first_offset == initial
    for number, start in ((2, FIRST), (3, at(0)), (4, at(initial))):
        client.subscribe(number, "s", start)
        assert client.chunk().first_offset == initial
    client.close()


def test_declaring_a_stream_again_with_another_initial_offset_is_refused(broker: EmbeddedBroker) -> None:
    """If a stream is declared again with another `x-stream-initial-offset`, over AMQP 0-9-1 or the stream protocol,
    the broker refuses the declaration. Over AMQP 0-9-1, it also refuses a declaration without
    `x-stream-initial-offset`.
    """
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        for _ in range(2):
            declared(connection.channel(), **{INITIAL_OFFSET: 7})
    assert f"inequivalent arg '{INITIAL_OFFSET}'" in refusal(broker, {**STREAM, INITIAL_OFFSET: 8})
    assert f"inequivalent arg '{INITIAL_OFFSET}'" in refusal(broker, {**STREAM})
    client = opened(broker)
    assert client.create("s", stream_initial_offset="7") == EXISTS
    assert client.create("s", stream_initial_offset="8") == PRECONDITION_FAILED
    client.close()


@pytest.mark.parametrize(
    "arguments",
    [
        *({**STREAM, INITIAL_OFFSET: value} for value in (-1, MAX_INITIAL_OFFSET + 1, "7")),
        {"x-queue-type": "classic", INITIAL_OFFSET: 7},
        {"x-queue-type": "quorum", INITIAL_OFFSET: 7},
    ],
    ids=str,
)
def test_an_invalid_initial_offset_is_refused(broker: EmbeddedBroker, arguments: dict[str, object]) -> None:
    """The broker refuses `x-stream-initial-offset` with error 406 if the value is negative, larger than 2^62-1 or not
    an integer, or if the queue is not a stream.
    """
    assert f"invalid arg '{INITIAL_OFFSET}' for queue 's' in vhost '/'" in refusal(broker, arguments)


@pytest.mark.parametrize(
    "value", ["-1", "x", "", str(MAX_INITIAL_OFFSET + 1), str(2**63), "9" * 5000], ids=lambda value: value[:30]
)
def test_an_invalid_initial_offset_is_refused_over_the_stream_protocol(broker: EmbeddedBroker, value: str) -> None:
    """The broker answers the stream command `create` with PRECONDITION_FAILED if `stream-initial-offset` is not an
    integer from 0 to 2^62-1.
    """
    client = opened(broker)
    assert client.create("s", stream_initial_offset=value) == PRECONDITION_FAILED
    client.close()


@pytest.mark.parametrize("like", ["3.10", "4.2", "4.3"])
def test_brokers_that_imitate_rabbitmq_4_3_or_earlier_ignore_the_initial_offset(like: str) -> None:
    """An embedded broker that imitates RabbitMQ 3.10, 4.2 or 4.3 ignores `x-stream-initial-offset`, so that a stream's
    first message has the offset 0.
    """
    with (
        EmbeddedBroker(like=like, stream_port=0) as broker,
        pika.BlockingConnection(pika.URLParameters(broker.url)) as connection,
    ):
        channel = connection.channel()
        declared(channel, **{INITIAL_OFFSET: START})
        declared(channel, **{INITIAL_OFFSET: START + 1})
        channel.basic_publish("", "s", b"x")
        assert offsets(connection, 1) == [0]
        client = opened(broker)
        assert client.create("t", stream_initial_offset="x") == 1
        client.close()
