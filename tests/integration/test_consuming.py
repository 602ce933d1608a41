"""Consuming: the caller gets only the messages that it asked for, and only those that it got are acknowledged."""

import time
from contextlib import nullcontext
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import Connection, Receiving, parse_addresses, subscription
from mqtool.amqp.basic_frames import FrameReader
from mqtool.errors import TimedOut, Unavailable
from mqtool.message import Message
from mqtool.stage.terminal import wait_until
from mqtool.streams import StreamChannel, stream_consumer
from mqtool.topology import Queue, Stream
from tests.brokers import IN_CI, TestBroker, on_any_broker
from tests.integration import fast_path

QUORUM = Queue("q", durable=True, arguments={"x-queue-type": "quorum"})


def fill(broker: TestBroker, count: int, queue: Queue = QUORUM, *more: bytes) -> list[bytes]:
    bodies = [*(b"%d" % number for number in range(count)), *more]
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(queue)
        for _ in channel.publish([Message(body) for body in bodies], routing_key=queue.name):
            pass
    return bodies


def idle_timeout(broker: TestBroker) -> float:
    """The idle timeout in these tests. On a busy machine, RabbitMQ may pause for more than a second."""
    return 3.0 if IN_CI or broker.kind == "rabbitmq" else 0.3


def drain(broker: TestBroker, count: int) -> list[tuple[bytes, bool]]:
    """Take this many messages, after which the queue must be empty; return bodies and redelivered flags."""
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        deliveries = channel.consume(QUORUM, Receiving(count=count, timeout=60))
        taken = [(delivery.body, delivery.redelivered) for delivery in deliveries]
        assert channel.depth_of(QUORUM.name) == 0
        return taken


#: By default, the prefetch is 250, and messages are acknowledged in batches; the other settings have other limits.
COUNTS = [
    *((count, {}) for count in (1, 250, 251, 600)),
    *((count, {"auto_ack": True}) for count in (1, 251)),
    *((count, {"prefetch": 10}) for count in (10, 11)),
    (251, {"prefetch": 0}),
]


@pytest.mark.parametrize(("count", "settings"), COUNTS, ids=str)
@pytest.mark.sampled(4)
def test_consume_yields_exactly_as_many_messages_as_the_caller_asks_for(
    broker: TestBroker, count: int, settings: dict[str, int]
) -> None:
    """If a program asks consume() for N messages, consume() yields the first N messages of the queue. The others stay
    in the queue and are not marked as redelivered.
    """
    bodies = fill(broker, 700)

    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        taken = [delivery.body for delivery in channel.consume(QUORUM, Receiving(count=count, **settings))]

    assert taken == bodies[:count]
    assert drain(broker, 700 - count) == [(body, False) for body in bodies[count:]]


def test_a_consumer_that_times_out_has_acknowledged_the_messages_it_received(broker: TestBroker) -> None:
    """If consume() waits for 500 messages, but receives only 400 before its idle timeout, it raises TimedOut. The 400
    messages are acknowledged.
    """
    fill(broker, 400)
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        with pytest.raises(TimedOut, match="400 of 500"):
            for _ in channel.consume(QUORUM, Receiving(count=500, idle_timeout=idle_timeout(broker))):
                pass
    with Connection(parse_addresses(broker.url)) as connection:
        assert list(connection.channel().consume(QUORUM, Receiving(idle_timeout=0.3))) == []


def test_a_delivery_is_acknowledged_when_the_caller_asks_for_the_next_one(broker: TestBroker) -> None:
    """If a program iterates over the deliveries of consume(), consume() acknowledges each delivery when the program
    asks for the next one. If the program stops iterating, its last delivery and all later messages stay in the queue,
    in order.
    """
    bodies = fill(broker, 10)
    with Connection(parse_addresses(broker.url)) as connection:
        for delivery in connection.channel().consume(QUORUM):
            if delivery.body == b"3":
                break

    assert [body for body, _ in drain(broker, 7)] == bodies[3:]


def test_a_consumer_raises_an_error_if_its_queue_is_deleted(broker: TestBroker) -> None:
    """If the queue is deleted while a caller iterates over consume(), consume() raises Unavailable, and the error names
    the queue.
    """
    fill(broker, 1)
    with Connection(parse_addresses(broker.url)) as connection:
        deliveries = connection.channel().consume(QUORUM)
        next(deliveries)
        broker.api("DELETE", f"queues/{broker.vhost}/q")
        with pytest.raises(Unavailable, match="queue 'q' was deleted"):
            next(deliveries)


def test_a_consumer_ends_after_its_idle_timeout_and_fails_after_its_total_timeout(broker: TestBroker) -> None:
    """If a program does not tell consume() how many messages to yield, consume() ends without an error once no
    message has arrived for the idle timeout. When the total timeout expires, consume() raises TimedOut.
    """
    fill(broker, 1)
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        assert len(list(channel.consume(QUORUM, Receiving(idle_timeout=idle_timeout(broker))))) == 1
        with pytest.raises(TimedOut, match=r"timed out after 0\.3 s"):
            list(channel.consume(QUORUM, Receiving(timeout=0.3)))


@on_any_broker
def test_a_stream_consumer_times_out_although_messages_have_arrived(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the timeout of a stream consumer expires, the consumer raises TimedOut, even if it has received further
    messages that it has not yielded yet.
    """
    [address] = parse_addresses(broker.url)
    node = address._replace(port=urlsplit(broker.streams).port or 0)
    with (
        Connection([address]) as connection,
        StreamChannel([node], by_amqp=lambda: nullcontext(connection.channel())) as channel,
    ):
        stream = channel.declare(Stream("s"))
        assert len(list(channel.publish([Message(b"1"), Message(b"2")], stream))) == 2
        deliveries = channel.consume(stream, receiving=Receiving(timeout=60))
        assert next(deliveries).body == b"1"
        late = time.monotonic() + 61
        monkeypatch.setattr(stream_consumer, "time", SimpleNamespace(monotonic=lambda: late))
        with pytest.raises(TimedOut, match="timed out after 60 s, with 1 received"):
            next(deliveries)


def test_prefetched_messages_do_not_count_towards_the_delivery_limit(broker: TestBroker) -> None:
    """A quorum queue with a delivery limit of 20 has thirty messages. Thirty consumers, one after the other, prefetch
    messages, but each consumes only one, as `receive | head -n 1` does. Together, they receive all thirty messages,
    because prefetching a message does not count towards the delivery limit.
    """
    queue = Queue("q", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 20})
    bodies = fill(broker, 30, queue)
    taken = []
    for _ in bodies:
        with Connection(parse_addresses(broker.url)) as connection:
            count = None if len(taken) < len(bodies) - 1 else 1  # the last consumer must not wait for another message
            deliveries = connection.channel().consume(queue, Receiving(count=count, timeout=60))
            taken.append(next(deliveries).body)
            next(deliveries, None)  # asking for another one acknowledges the first
            deliveries.close()
    assert sorted(taken) == sorted(bodies)


@fast_path
def test_mqtool_decodes_deliveries_itself_and_reads_them_in_large_pieces(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For speed, mqtool decodes deliveries itself instead of leaving this to pika, and reads more than 4,096 bytes from
    the socket at a time. If this test fails, pika has changed, and receiving has become slow.
    """
    pieces, receive = [], FrameReader.receive
    monkeypatch.setattr(
        FrameReader, "receive", lambda reader, data: (pieces.append(len(data)), receive(reader, data))[1]
    )
    monkeypatch.setattr(subscription, "delivery_from", lambda *_: pytest.fail("pika has decoded a delivery"))
    # How many small deliveries arrive in one read depends on the broker's pace; a large one arrives in large pieces.
    bodies = fill(broker, 1000, QUORUM, b"x" * 100_000)

    with Connection(parse_addresses(broker.url)) as connection:
        taken = [delivery.body for delivery in connection.channel().consume(QUORUM, Receiving(count=1001))]

    assert taken == bodies
    assert max(pieces) > 4096  # what pika reads at a time


def test_pika_counts_heartbeats_as_received_bytes(broker: TestBroker) -> None:
    """pika counts the broker's heartbeats as received bytes, so pika does not close a connection on which only
    heartbeats arrive.
    """
    with Connection(parse_addresses(f"{broker.url}?heartbeat=3")) as connection:
        pika = connection._pika
        assert pika is not None
        heard = pika.bytes_received
        wait_until(lambda: pika.bytes_received > heard, "a heartbeat, counted")
