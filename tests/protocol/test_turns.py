"""Long work for one client is done step by step, so that the embedded broker serves other clients in between."""

import asyncio
import base64
import gc
import gzip
import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection
from itertools import islice, product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pamqp import commands, frame

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.applied_policies import USER, Policy
from mqtool.broker.embedded.model.message_events import MessageEvents
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.stream_segment import simple_entry
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.testing.authority import Authority
from mqtool.codecs.amqp10_values import Symbol
from tests.brokers import large
from tests.cli.shell import wait_until
from tests.protocol.loop_watch import LoopWatch
from tests.protocol.raw_amqp10 import ACCEPTED, DISPOSITION, MODIFIED, TRANSFER, RawAmqp10, described, message
from tests.protocol.raw_client import RawClient, raw_frame
from tests.protocol.raw_stream import (
    CREATE_SUPER_STREAM,
    DELETE_SUPER_STREAM,
    FIRST,
    METADATA,
    OPEN,
    PUBLISH,
    RawStream,
    since,
    string,
    strings,
    table,
)

pytestmark = large


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(stream_port=0, like="4.3") as broker:
        yield broker


def _connect(broker: EmbeddedBroker) -> RawStream:
    assert broker.stream_port is not None
    client = RawStream("127.0.0.1", broker.stream_port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == 1
    return client


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[RawStream]:
    """A client of the stream protocol."""
    client = _connect(broker)
    yield client
    client.close()


@pytest.fixture
def watch(broker: EmbeddedBroker) -> LoopWatch:
    return LoopWatch(broker)


@pytest.fixture
def managed() -> Iterator[EmbeddedBroker]:
    """A broker with the management API."""
    with EmbeddedBroker(management_port=0, like="4.3") as broker:
        yield broker


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """Python's garbage collector is off: how long it takes depends on all objects of the test process."""
    gc.disable()
    yield
    gc.enable()


def batch(records: int, plain: bytes, *, packed: bool = False) -> bytes:
    """Encode a sub-entry batch."""
    data = gzip.compress(plain) if packed else plain
    return struct.pack(">BHII", 0x90 if packed else 0x80, records, len(plain), len(data)) + data


def publish_batches(client: RawStream, count: int, encoded: bytes) -> None:
    body = b"".join(struct.pack(">Q", number) + encoded for number in range(count))
    client.send(PUBLISH, b"\1" + struct.pack(">I", count) + body)
    client.confirmed(count)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("offset", ["first", "last", "end"])
def test_a_consumer_of_millions_of_empty_messages_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, client: RawStream, watch: LoopWatch, offset: str, *, is_packed: bool
) -> None:
    """While a client consumes from a stream with millions of empty messages in sub-entry batches, the broker never uses
    more than 0.5 s of CPU time before it serves other clients.
    """
    client.create("s")
    client.declare_publisher(1, "s")
    count = 60 if is_packed else 3
    publish_batches(client, count, batch(65_535, bytes(4 * 65_535), packed=is_packed))
    client.publish(1, 1000, b"\x00\x53\x75\xa0\x00")
    client.confirmed(1)
    with RawClient(broker.url) as consumer:
        consumer.send(commands.Basic.Qos(prefetch_count=1))
        consumer.expect(commands.Basic.QosOk)
        arguments = {"x-stream-offset": count * 65_535 - 1 if offset == "end" else offset}
        consumer.send(commands.Basic.Consume(queue="s", consumer_tag="c", arguments=arguments))
        consumer.expect(commands.Basic.ConsumeOk)
        consumer.expect(commands.Basic.Deliver)
    watch.check()


@pytest.mark.timeout(300)
def test_a_message_for_thousands_of_consumers_of_a_stream_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While the broker delivers a new message of a stream to 8,000 consumers on one channel, it never uses more than
    0.5 s of CPU time before it serves other clients. Each consumer receives the message.
    """
    with RawClient(broker.url) as client, RawClient(broker.url) as publisher:
        client.send(commands.Queue.Declare(queue="s", durable=True, arguments={"x-queue-type": "stream"}))
        client.expect(commands.Queue.DeclareOk)
        client.send(commands.Basic.Qos(prefetch_count=1))
        client.expect(commands.Basic.QosOk)
        for number in range(8000):
            client.send(commands.Basic.Consume(queue="s", consumer_tag=f"{number}"))
            client.expect(commands.Basic.ConsumeOk)
        watch.take()
        publisher.send(commands.Basic.Publish(routing_key="s"))
        publisher.socket.sendall(raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)))
        delivered = [client.receive() for _ in range(16_000)][::2]
        watch.check()
    assert {each.consumer_tag for each in delivered} == {f"{number}" for number in range(8000)}


def test_comparing_a_large_header_with_many_bindings_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While a headers exchange with a thousand bindings routes a message whose headers contain a large list, the broker
    never uses more than 0.5 s of CPU time before it serves other clients.
    """
    with RawClient(broker.url) as client:
        client.send(commands.Exchange.Declare(exchange="h", exchange_type="headers"))
        client.expect(commands.Exchange.DeclareOk)
        client.send(commands.Queue.Declare(queue="q", durable=True))
        client.expect(commands.Queue.DeclareOk)
        for number in range(1000):
            client.send(commands.Queue.Bind(queue="q", exchange="h", arguments={"a": [number]}, nowait=True))
        client.send(commands.Queue.Declare(queue="q", passive=True))
        client.expect(commands.Queue.DeclareOk)
        watch.check()
        items = b"t\1" * 60_000
        headers = b"\1aA" + len(items).to_bytes(4) + items
        content = struct.pack(">HHQH", 60, 0, 0, 1 << 13) + len(headers).to_bytes(4) + headers
        client.send(commands.Basic.Publish(exchange="h", routing_key=""))
        client.socket.sendall(raw_frame(2, 1, content))
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == 0
    watch.check()


def test_a_stream_subscription_with_many_filters_does_not_hold_up_other_clients(
    client: RawStream, watch: LoopWatch
) -> None:
    """While a client subscribes to a stream with 45,000 filter values, the broker never uses more than 0.5 s of CPU
    time before it serves other clients. The subscription receives a message with one of these values.
    """
    client.create("s")
    client.declare_publisher(1, "s")
    for number in range(1500):
        client.send(PUBLISH, b"\1" + struct.pack(">IQHsI", 1, number, 1, b"v", 1) + b"x", version=2)
        client.confirmed(1)
    watch.check()
    filters = {f"filter.{number}": "x" * 6 for number in range(45_000)}
    assert client.subscribe(1, "s", FIRST, 1, **filters) == 1
    client.publish(1, 2000, b"wanted")
    client.send(PUBLISH, b"\1" + struct.pack(">IQH6sI", 1, 2001, 6, b"x" * 6, 1) + b"y", version=2)
    while b"y" not in client.chunk().entries:
        pass
    watch.check()


def test_stream_subscriptions_by_timestamp_do_not_hold_up_other_clients(client: RawStream, watch: LoopWatch) -> None:
    """While a client subscribes by timestamp to a stream with thousands of tiny segments, the broker never uses more
    than 0.5 s of CPU time before it serves other clients.
    """
    client.create("s", stream_max_segment_size_bytes="1")
    client.declare_publisher(1, "s")
    for number in range(4000):
        client.publish(1, number, b"x")
        client.confirmed(1)
    watch.check()
    later = since(int(time.time() * 1000) + 1_000_000)
    body = b"".join(
        struct.pack(">IHHIB", 4 + 4 + 1 + 3 + len(later) + 2, 7, 1, number, number) + string("s") + later + b"\0\1"
        for number in range(248)
    )
    client.socket.sendall(body)
    for _ in range(248):
        assert client.expect(0x8007)[4:6] == b"\0\1"
    watch.check()


def test_creating_or_deleting_a_large_super_stream_does_not_hold_up_other_clients(
    client: RawStream, watch: LoopWatch
) -> None:
    """While a client creates or deletes a super stream with thousands of partitions, the broker never uses more than
    0.5 s of CPU time before it serves other clients.
    """
    names = [f"p{number}" for number in range(6000)]
    assert client.request(CREATE_SUPER_STREAM, string("x") + strings(*names) * 2 + table({})).code == 1
    watch.check()
    assert client.request(DELETE_SUPER_STREAM, string("x")).code == 1
    watch.check()


def test_a_metadata_request_for_many_streams_does_not_hold_up_other_clients(
    client: RawStream, watch: LoopWatch
) -> None:
    """While the broker answers a stream client's metadata request with 50,000 names, it never uses more than 0.5 s of
    CPU time before it serves other clients.
    """
    names = [f"p{number}" for number in range(3000)]
    assert client.request(CREATE_SUPER_STREAM, string("x") + strings(*names) * 2 + table({})).code == 1
    watch.longest = 0.0
    client.request(METADATA, strings(*(f"p{number}" for number in range(50_000))))
    watch.check()


def test_a_publish_frame_with_a_million_messages_does_not_hold_up_other_clients() -> None:
    """While the broker handles a stream client's publish frame with a million empty messages, it never uses more than
    0.5 s of CPU time before it serves other clients.
    """
    count = 1_000_000
    with EmbeddedBroker(stream_port=0, like="4.2") as broker:
        client, watch = _connect(broker), LoopWatch(broker)
        client.create("s")
        client.declare_publisher(1, "s")
        client.send(PUBLISH, b"\1" + struct.pack(">I", count) + bytes(12) * count)
        assert len(client.confirmed(count)) == count
        watch.check()
        client.close()


def test_unpacking_large_batches_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, client: RawStream, watch: LoopWatch
) -> None:
    """While an AMQP client consumes from a stream whose compressed batches unpack to 64 MiB each, the broker never uses
    more than 0.5 s of CPU time before it serves other clients.
    """
    client.create("s")
    client.declare_publisher(1, "s")
    size = 64 * 1024 * 1024
    publish_batches(client, 3, batch(1, (size - 4).to_bytes(4) + bytes(size - 4), packed=True))
    client.publish(1, 1000, b"\x00\x53\x75\xa0\x00")
    client.confirmed(1)
    with RawClient(broker.url) as consumer:
        consumer.send(commands.Basic.Qos(prefetch_count=10))
        consumer.expect(commands.Basic.QosOk)
        arguments = {"x-stream-offset": "first"}
        consumer.send(commands.Basic.Consume(queue="s", consumer_tag="c", arguments=arguments))
        consumer.expect(commands.Basic.ConsumeOk)
        consumer.expect(commands.Basic.Deliver)
    watch.check()


def test_committing_a_large_transaction_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While the broker commits a transaction of 100,000 messages, it never uses more than 0.5 s of CPU time before it
    serves other clients. It sends tx.commit-ok only when all messages are in the queue.
    """
    count = 100_000
    with RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q", durable=True))
        client.expect(commands.Queue.DeclareOk)
        client.send(commands.Tx.Select())
        client.expect(commands.Tx.SelectOk)
        publish = raw_frame(1, 1, b"\0\x3c\0\x28\0\0\0\1q\0") + raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0))
        client.socket.sendall(publish * count)
        client.send(commands.Tx.Commit())
        client.expect(commands.Tx.CommitOk)
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == count
    watch.check()


def test_amqp_0_9_1_consumers_skip_compressed_batches(broker: EmbeddedBroker, client: RawStream) -> None:
    """As in RabbitMQ 4, an AMQP 0-9-1 consumer of a stream receives the messages in uncompressed sub-entry batches,
    but not those in compressed ones.
    """
    plain = b"".join(simple_entry(b"\x00\x53\x75\xa0\x01" + body) for body in (b"a", b"b"))
    client.create("s")
    client.declare_publisher(1, "s")
    for encoded in (batch(2, plain, packed=True), batch(2, plain)):
        publish_batches(client, 1, encoded)
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=10)
    messages = channel.consume("s", arguments={"x-stream-offset": "first"})
    got = [next(messages) for _ in range(2)]
    assert [(properties.headers["x-stream-offset"], body) for _, properties, body in got] == [(2, b"a"), (3, b"b")]
    connection.close()


def test_routing_a_message_with_many_keys_in_cc_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While the broker routes a message with 10,000 keys in CC to 500 queues, it never uses more than 0.5 s of CPU
    time before it serves other clients. Each queue receives the message once.
    """
    with RawClient(broker.url) as client:
        for number in range(500):
            client.send(commands.Queue.Declare(queue=f"q{number}", nowait=True))
            client.send(commands.Queue.Bind(queue=f"q{number}", exchange="amq.fanout", nowait=True))
        client.send(commands.Queue.Declare(queue="q0", passive=True))
        client.expect(commands.Queue.DeclareOk)
        watch.check()
        copies = b"".join(b"S\0\0\0\4" + b"%04d" % number for number in range(10_000))
        headers = b"\2CCA" + len(copies).to_bytes(4) + copies
        content = struct.pack(">HHQH", 60, 0, 0, 1 << 13) + len(headers).to_bytes(4) + headers
        client.send(commands.Basic.Publish(exchange="amq.fanout", routing_key=""))
        client.socket.sendall(raw_frame(2, 1, content))
        client.send(commands.Queue.Declare(queue="q499", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == 1
    watch.check()


@pytest.mark.parametrize("channels", [1, 2000])
def test_closing_many_busy_consumers_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch, channels: int
) -> None:
    """While the broker closes a connection with 4,000 consumers of one queue, each with an unacknowledged message, it
    never uses more than 0.5 s of CPU time before it serves other clients.
    """
    count = 4000
    with RawClient(broker.url) as other:
        other.send(commands.Queue.Declare(queue="q", durable=True))
        other.expect(commands.Queue.DeclareOk)
        with RawClient(broker.url) as client:
            for number in range(2, channels + 1):
                client.socket.sendall(raw_frame(1, number, b"\0\x14\0\x0a\0"))
            for number in range(1, channels + 1):
                client.socket.sendall(frame.marshal(commands.Basic.Qos(prefetch_count=1), number))
                for tag in range(count // channels):
                    consume = commands.Basic.Consume(queue="q", consumer_tag=f"c{tag}", nowait=True)
                    client.socket.sendall(frame.marshal(consume, number))
            publish = raw_frame(1, 1, b"\0\x3c\0\x28\0\0\0\1q\0") + raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0))
            other.socket.sendall(publish * (count + 5))
            ready = 0
            while ready < 5:
                other.send(commands.Queue.Declare(queue="q", passive=True))
                ready = other.expect(commands.Queue.DeclareOk).message_count
            watch.take()
        while ready < count + 5:
            other.send(commands.Queue.Declare(queue="q", passive=True))
            ready = other.expect(commands.Queue.DeclareOk).message_count
    watch.check()


@pytest.mark.parametrize("is_watched", [False, True])
def test_routing_many_keys_in_cc_by_topic_bindings_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch, *, is_watched: bool
) -> None:
    """While the broker matches the 10,000 routing keys in a message's CC header against 300 topic bindings, it never
    uses more than 0.5 s of CPU time before it serves other clients. If such a message would pass through 60 topic
    exchanges, one after the other, the broker closes the channel with an error instead.
    """
    if is_watched:
        broker.under_test(
            lambda _: _vhost(broker).watch(MessageEvents(_vhost(broker), lambda _: {}, lambda _: None, lambda *_: None))
        )
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number in range(300):
            channel.queue_declare(f"q{number}", durable=True)
            channel.queue_bind(f"q{number}", "amq.topic", "#")
        for number in range(60):
            channel.exchange_declare(f"x{number}", "topic")
            if number:
                channel.exchange_bind(f"x{number}", f"x{number - 1}", "#")
        watch.take()
        properties = pika.BasicProperties(headers={"CC": [f"{number}" for number in range(10_000)]})
        channel.basic_publish("amq.topic", "k", b"", properties)
        assert channel.queue_declare("q299", passive=True).method.message_count == 1
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="too many exchanges on the way"):
            channel.basic_publish("x0", "k", b"", properties)
    watch.check()


def test_routing_by_thousands_of_wildcard_bindings_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While the broker handles messages for a topic exchange with thousands of bindings that have wildcards after a
    `#`, it never uses more than 0.5 s of CPU time before it serves other clients. It routes a message whose routing
    key has 14 words. Routing a key of 127 words would take too long, so the broker closes the channel with an error
    instead.
    """
    with RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q", nowait=True))
        for words in product("*a", repeat=13):
            key = f"#.a.{'.'.join(words)}"
            client.send(commands.Queue.Bind(queue="q", exchange="amq.topic", routing_key=key, nowait=True))
        client.send(commands.Basic.Publish(exchange="amq.topic", routing_key=".".join("a" * 14)))
        client.socket.sendall(raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)))
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == 1
        watch.check()
        client.send(commands.Basic.Publish(exchange="amq.topic", routing_key=".".join("a" * 127)))
        client.socket.sendall(raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)))
        assert "has too many bindings with wildcards" in client.expect(commands.Channel.Close).reply_text
    watch.check()


@large
def test_routing_by_large_headers_bindings_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While the broker routes messages through a headers exchange with 60 bindings, each of which has a list of
    60,000 items in its arguments, it never uses more than 0.5 s of CPU time before it serves other clients.
    """
    with RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q", nowait=True))
        marshalled = commands.Queue.Bind(queue="q", exchange="amq.headers", nowait=True).marshal()
        for number in range(60):
            arguments = b"\1nI" + number.to_bytes(4) + b"\1aA" + (120_000).to_bytes(4) + b"t\1" * 60_000
            method = marshalled[:-4] + len(arguments).to_bytes(4) + arguments
            client.socket.sendall(raw_frame(1, 1, struct.pack(">HH", 50, 20) + method))
            client.send(commands.Queue.Declare(queue="q", passive=True))
            client.expect(commands.Queue.DeclareOk)
        for _ in range(2):
            client.send(commands.Basic.Publish(exchange="amq.headers", routing_key=""))
            client.socket.sendall(raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)))
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == 0
    watch.check()


@pytest.mark.parametrize(("count", "is_settled"), [(100, True), (300, False)])
def test_large_annotations_for_many_messages_do_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch, count: int, *, is_settled: bool
) -> None:
    """While the broker handles an AMQP 1.0 client's disposition that adds a list of 12,000 maps to the annotations of
    each of 100 messages, it never uses more than 0.5 s of CPU time before it serves other clients. If the disposition
    is for 300 messages, the broker ends the session with resource-limit-exceeded, and requeues all 300 messages.
    """
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("qq", durable=True, arguments={"x-queue-type": "quorum"})
        for _ in range(count):
            channel.basic_publish("", "qq", b"x")
        client = RawAmqp10(broker.url)
        client.attach_receiver("/queues/qq", credit=count)
        for _ in range(count):
            client.expect(TRANSFER)
        watch.take()
        annotations = {Symbol("x-opt-a"): [{} for _ in range(12_000)]}
        client.settle(0, described(MODIFIED, False, False, annotations), count - 1)
        if not is_settled:
            assert (client.ended() or ("", ""))[0] == "amqp:resource-limit-exceeded"
        ready = 0
        while ready < count:
            ready = channel.queue_declare("qq", passive=True).method.message_count
        watch.check()
        headers = channel.basic_get("qq", auto_ack=True)[1].headers
        assert headers["x-opt-a"] == [{}] * 12_000


def test_many_connections_that_publish_at_the_same_time_do_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch
) -> None:
    """While 60 connections publish ten messages each at the same time, and each message is routed to a thousand queues,
    the broker never uses more than 0.5 s of CPU time before it serves other clients. The queue that was bound last
    receives every message.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(broker.url)) for _ in range(60)]
        for number in range(1000):
            clients[0].send(commands.Queue.Declare(queue=f"q{number}", nowait=True))
            clients[0].send(commands.Queue.Bind(queue=f"q{number}", exchange="amq.fanout", nowait=True))
        clients[0].send(commands.Queue.Declare(queue="q0", passive=True))
        clients[0].expect(commands.Queue.DeclareOk)
        method = frame.marshal(commands.Basic.Publish(exchange="amq.fanout", routing_key="a"), 1)
        published, have_sent = method + raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)), threading.Event()
        watch.take()
        busy = threading.Thread(target=broker.under_test, args=(lambda _: have_sent.wait(25),))
        busy.start()
        for client in clients:
            client.socket.sendall(published * 10)
        have_sent.set()
        busy.join()
        ready = 0
        while ready < 600:
            clients[0].send(commands.Queue.Declare(queue="q999", passive=True))
            ready = clients[0].expect(commands.Queue.DeclareOk).message_count
    watch.check()


def test_acknowledging_100000_messages_is_done_in_several_turns_of_the_event_loop(broker: EmbeddedBroker) -> None:
    """The broker handles a basic.ack for 100,000 messages in several turns of its event loop, so that other clients can
    be served in between. It handles the client's next method only when all messages are acknowledged.
    """
    count = 100_000
    with RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q"))
        client.expect(commands.Queue.DeclareOk)
        publish = raw_frame(1, 1, b"\0\x3c\0\x28\0\0\0\1q\0") + raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0))
        client.socket.sendall(publish * count)
        client.send(commands.Basic.Consume(queue="q", consumer_tag="t", nowait=True))
        left = count * 48  # the bytes of basic.deliver and of a header without properties
        while left:
            left -= len(client.socket.recv(min(left, 1 << 20)))
        unacked: list[int] = []
        queue = _vhost(broker).queues["q"]

        def look() -> None:
            unacked.append(queue.unacked)
            if queue.unacked:
                asyncio.get_running_loop().call_soon(look)

        broker.under_test(lambda _: look())
        client.send(commands.Basic.Ack(delivery_tag=0, multiple=True))
        client.send(commands.Queue.Declare(queue="q", passive=True))
        client.expect(commands.Queue.DeclareOk)
        assert broker.under_test(lambda _: queue.unacked) == 0
    assert len({*unacked}) > 2


def test_a_message_for_40000_queues_does_not_hold_up_other_clients(tmp_path: Path) -> None:
    """While the broker adds a persistent message to 40,000 queues, it never uses more than 0.5 s of CPU time before
    it serves other clients. This is true for a message that is published over AMQP 0-9-1, AMQP 1.0 or HTTP, for a
    dead letter, and for a delayed message. The publisher receives the confirm or reply only when all queues contain
    the message.
    """
    with EmbeddedBroker(management_port=0, data_dir=tmp_path, like="4.2") as broker:
        vhost, watch, queues = _vhost(broker), LoopWatch(broker), []

        def add(numbers: range) -> None:
            for number in numbers:
                declaration = QueueDeclaration(f"q{number}", {"x-message-ttl": 600_000, "x-max-length": 100})
                queues.append(vhost.add_queue(declaration))
                vhost.bind(vhost.exchanges["amq.fanout"], queues[-1], "", {})

        for first in range(0, 40_000, 1000):
            broker.under_test(lambda _, first=first: add(range(first, first + 1000)))
        bodies = []
        with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
            for way, send, sent in _ways_to_publish(broker, connection):
                bodies.extend(sent)
                assert watch.settle(60)
                watch.take()
                send()
                if way in ("dead letter", "delay"):
                    wait_until(lambda: len(queues[-1]) == len(bodies), f"the {way} is in the last queue")
                assert broker.under_test(lambda _: {len(queue) for queue in queues}) == {len(bodies)}, way
                watch.check(way)
            channel = connection.channel()
            for name in ("q0", "q39999"):
                assert [channel.basic_get(name, auto_ack=True)[2] for _ in bodies] == bodies


def _ways_to_publish(
    broker: EmbeddedBroker, connection: pika.BlockingConnection
) -> Iterator[tuple[str, Callable[[], object], list[bytes]]]:
    """Yield each way to publish to amq.fanout: its name, a function that does it, and the bodies that it publishes."""
    persistent = pika.BasicProperties(delivery_mode=2)
    channel, committing = connection.channel(), connection.channel()
    channel.confirm_delivery()
    yield "confirm", lambda: channel.basic_publish("amq.fanout", "", b"confirm", persistent), [b"confirm"]

    def commit() -> None:
        committing.basic_publish("amq.fanout", "", b"transaction", persistent)
        committing.tx_commit()

    committing.tx_select()
    yield "transaction", commit, [b"transaction"]

    def send_by_amqp10() -> None:
        with RawAmqp10(broker.url) as client:
            client.attach_sender("/exchanges/amq.fanout")
            for number in (0, 1):
                client.publish(number, message(b"%d" % number))
            assert [client.expect(DISPOSITION).field(4) for _ in (0, 1)] == [described(ACCEPTED)] * 2

    yield "AMQP 1.0", send_by_amqp10, [b"0", b"1"]

    def publish_over_http() -> None:
        request = {"routing_key": "", "payload": "HTTP", "payload_encoding": "string", "properties": {}}
        assert _post(broker, "exchanges/%2F/amq.fanout/publish", request) == {"routed": True}

    yield "HTTP", publish_over_http, [b"HTTP"]
    channel.queue_declare("dying", durable=True, arguments={"x-dead-letter-exchange": "amq.fanout"})
    channel.basic_publish("", "dying", b"dead letter", persistent)
    tag = channel.basic_get("dying")[0].delivery_tag
    yield "dead letter", lambda: channel.basic_reject(tag, requeue=False), [b"dead letter"]
    channel.exchange_declare("later", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    channel.exchange_bind("amq.fanout", "later")
    delayed = pika.BasicProperties(headers={"x-delay": 1})
    yield "delay", lambda: channel.basic_publish("later", "", b"delay", delayed), [b"delay"]


@pytest.mark.parametrize("how", ["rejected", "policy"])
def test_dead_lettering_many_messages_does_not_hold_up_other_clients(
    broker: EmbeddedBroker, watch: LoopWatch, how: str
) -> None:
    """While a nack or a new policy with max-length 0 dead-letters 2,000 messages, each to 50 queues, the broker never
    uses more than 0.5 s of CPU time before it serves other clients.
    """
    count = 2000
    with RawClient(broker.url) as client:
        for number in range(50):
            client.send(commands.Queue.Declare(queue=f"q{number}", nowait=True))
            client.send(commands.Queue.Bind(queue=f"q{number}", exchange="amq.fanout", nowait=True))
        client.send(commands.Queue.Declare(queue="q", arguments={"x-dead-letter-exchange": "amq.fanout"}))
        client.expect(commands.Queue.DeclareOk)
        publish = raw_frame(1, 1, b"\0\x3c\0\x28\0\0\0\1q\0") + raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0))
        client.socket.sendall(publish * count)
        if how == "rejected":
            client.send(commands.Basic.Consume(queue="q", nowait=True))
            for _ in range(2 * count):
                client.receive()
            watch.check()
            client.send(commands.Basic.Nack(delivery_tag=0, multiple=True, requeue=False))
        else:
            client.send(commands.Queue.Declare(queue="q", passive=True))
            client.expect(commands.Queue.DeclareOk)
            watch.check()
            policy = Policy("p", "^q$", {"max-length": 0}, 0, "queues")
            broker.under_test(lambda _: _vhost(broker).policies.put(USER, policy))
        ready = 0
        while ready < count:
            client.send(commands.Queue.Declare(queue="q49", passive=True))
            ready = client.expect(commands.Queue.DeclareOk).message_count
    watch.check()


@pytest.mark.parametrize("how", ["expired", "delivery limit", "HTTP"])
def test_dead_lettering_a_whole_queue_does_not_hold_up_other_clients(managed: EmbeddedBroker, how: str) -> None:
    """While the broker dead-letters all 10,000 messages of a queue, it never uses more than 0.5 s of CPU time before
    it serves other clients. The messages are dead-lettered in order, whether they have expired, have exceeded the
    delivery limit, or are rejected by a get request over HTTP.
    """
    count, watch = 10_000, LoopWatch(managed)
    with closing(pika.BlockingConnection(pika.URLParameters(managed.url))) as connection:
        channel = connection.channel()
        arguments: dict[str, Any] = {"x-dead-letter-exchange": "amq.fanout"}
        if how == "delivery limit":
            arguments |= {"x-queue-type": "quorum", "x-delivery-limit": 0}
        channel.queue_declare("q", durable=True, arguments=arguments)
        channel.queue_declare("dead", durable=True)
        channel.queue_bind("dead", "amq.fanout")
        properties = pika.BasicProperties(expiration="1" if how == "expired" else None)
        channel.basic_publish("", "q", b"first")
        for number in range(count):
            channel.basic_publish("", "q", b"%d" % number, properties)
        channel.queue_declare("q", passive=True)
        if how == "delivery limit":
            taker = connection.channel()
            assert len([*islice(taker.consume("q"), count + 1)]) == count + 1
        watch.take()
        if how == "expired":
            assert channel.basic_get("q", auto_ack=True)[2] == b"first"
            assert channel.basic_get("q", auto_ack=True)[0] is None
        elif how == "delivery limit":
            taker.close()
            count += 1
        else:
            assert channel.basic_get("q", auto_ack=True)[2] == b"first"
            request = {"count": count, "ackmode": "reject_requeue_false", "encoding": "auto"}
            assert len(_post(managed, "queues/%2F/q/get", request)) == count
        ready = 0
        while ready < count:
            ready = channel.queue_declare("dead", passive=True).method.message_count
        watch.check()
        bodies = [channel.basic_get("dead", auto_ack=True)[2] for _ in range(3)]
        assert bodies == ([b"first", b"0", b"1"] if how == "delivery limit" else [b"0", b"1", b"2"])


def test_adding_many_policies_does_not_hold_up_other_clients(broker: EmbeddedBroker, watch: LoopWatch) -> None:
    """While a thousand policies are added to a broker with 500 queues, the broker never uses more than 0.5 s of CPU
    time before it serves other clients.
    """
    with RawClient(broker.url) as client:
        for number in range(500):
            client.send(commands.Queue.Declare(queue=f"q{number}", nowait=True))
        client.send(commands.Queue.Declare(queue="q0", passive=True))
        client.expect(commands.Queue.DeclareOk)
    watch.check()

    def put() -> None:
        for number in range(1000):
            _vhost(broker).policies.put(USER, Policy(f"p{number}", f"^{number}$", {"max-length": 9}, 0, "queues"))

    broker.under_test(lambda _: put())
    assert watch.settle(60)
    watch.check()


@large
def test_large_global_parameters_do_not_hold_up_other_clients() -> None:
    """While the management API stores 50 global parameters with large values, lists them, returns one of them, or
    exports them with the definitions, the broker never uses more than 0.5 s of CPU time before it serves other
    clients.
    """
    with EmbeddedBroker(management_port=0, memory_limit=1 << 40) as broker:
        watch = LoopWatch(broker)
        host = urlsplit(broker.management_url or "").netloc
        with closing(HTTPConnection(host, timeout=60)) as client:
            login = {"authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
            value = json.dumps({"value": ["xxxxx"] * 90_000})
            answers = []
            for number in range(50):
                client.request("PUT", f"/api/global-parameters/p{number}", value, login)
                answers.append(client.getresponse().read())
            for path in ("global-parameters", "global-parameters/p7", "definitions"):
                client.request("GET", f"/api/{path}", headers=login)
                answers.append(client.getresponse().read())
        assert [b"xxxxx" in each for each in answers] == [False] * 50 + [True] * 3
        watch.check()


def _vhost(broker: EmbeddedBroker) -> VirtualHost:
    assert broker._server is not None
    return broker._server.broker.vhosts["/"]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open 4,096 files, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_loss_of_many_connections_with_many_channels_does_not_hold_up_other_clients() -> None:
    """If 60 connections with 2,047 idle channels each are lost at the same time, the broker never uses more than 0.5 s
    of CPU time before it serves other clients.
    """
    opened = b"".join(frame.marshal(commands.Channel.Open(), number) for number in range(2, 2048))
    with EmbeddedBroker(like="4.3", memory_limit=1 << 40) as broker, ExitStack() as stack:
        watch, lost = LoopWatch(broker), threading.Event()
        clients = [stack.enter_context(RawClient(broker.url)) for _ in range(60)]
        for client in clients:
            client.socket.sendall(opened)
            for _ in range(2046):
                client.receive()
        watch.take()
        busy = threading.Thread(target=broker.under_test, args=(lambda _: lost.wait(25),))
        busy.start()
        for client in clients:
            client.socket.close()
        lost.set()
        busy.join()
        server = broker._server
        assert server is not None
        while broker.under_test(lambda _: len(server._connections)):
            pass
        watch.check()


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("kind", ["amqp", "amqp/ssl", "stream/ssl", "https"])
def test_a_thousand_handshakes_do_not_hold_up_other_clients(amqp_tls: Authority, kind: str) -> None:
    """If a thousand clients connect at the same time, with or without TLS, and send nothing, the broker never uses more
    than 0.5 s of CPU time before it serves other clients.
    """
    with EmbeddedBroker(stream_port=0, management_port=0, tls=amqp_tls.tls()) as broker, ExitStack() as stack:
        address = urlsplit(broker.urls[kind])
        watch, connected = LoopWatch(broker), threading.Event()
        busy = threading.Thread(target=broker.under_test, args=(lambda _: connected.wait(25),))
        busy.start()
        for _ in range(1000):
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
        connected.set()
        busy.join()
        assert watch.settle(60)
        watch.check()


@pytest.mark.parametrize(("path", "password"), [("/", ""), ("/api/whoami", "wrong"), ("/api/overview", "guest")])
def test_many_http_requests_in_one_write_do_not_hold_up_other_clients(path: str, password: str) -> None:
    """While the management API answers 7,000 requests that one client has sent in one write, with or without a valid
    login, the broker never uses more than 0.5 s of CPU time before it serves other clients.
    """
    credentials = base64.b64encode(f"guest:{password}".encode()).decode()
    request = f"GET {path} HTTP/1.1\r\n" + (f"authorization: Basic {credentials}\r\n" if password else "")
    with EmbeddedBroker(management_port=0) as broker:
        watch, address = LoopWatch(broker), urlsplit(str(broker.management_url))
        with socket.create_connection((address.hostname, address.port), timeout=60) as client:
            sent = f"{request}\r\n" * 7000 + f"{request}connection: close\r\n\r\n"
            sender = threading.Thread(target=client.sendall, args=(sent.encode(),))
            sender.start()
            while client.recv(1 << 20):
                pass
            sender.join()
        watch.check()


def _post(broker: EmbeddedBroker, path: str, body: dict[str, Any]) -> Any:
    status, answer = _request(broker, "POST", path, body)
    assert status in (200, 204)
    return answer


def _request(broker: EmbeddedBroker, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    where = urlsplit(broker.management_url or "")
    client = HTTPConnection(where.hostname or "", where.port, timeout=120)
    login = "Basic " + base64.b64encode(b"guest:guest").decode()
    client.request(method, f"/api/{path}", json.dumps(body), {"authorization": login})
    response = client.getresponse()
    return response.status, json.loads(response.read() or "null")


@pytest.mark.parametrize("path", ["users/new", "vhosts/new"])
@pytest.mark.parametrize("tags", [["a"] * 100_000, ",".join(f"{n}" for n in range(1001))], ids=["list", "text"])
def test_a_user_or_virtual_host_with_more_than_1000_tags_is_refused(
    managed: EmbeddedBroker, path: str, tags: list[str] | str
) -> None:
    """If a request to the management API would create a user or a virtual host with more than 1,000 tags, the API
    answers with status 400.
    """
    status, answer = _request(managed, "PUT", path, {"password": "p", "tags": tags})
    assert status == 400
    assert "tags are more than 1000" in answer["reason"]


@pytest.mark.parametrize("kind", ["permissions", "topic_permissions", "users", "bindings"])
def test_an_import_of_thousands_of_definitions_does_not_hold_up_other_clients(
    managed: EmbeddedBroker, kind: str
) -> None:
    """While the broker imports 6,000 definitions over HTTP, it never uses more than 0.5 s of CPU time before it serves
    other clients.
    """
    rights = {"user": "guest", "vhost": "/", "write": ".*", "read": ".*"}
    bound = {"source": "amq.topic", "vhost": "/", "destination": "amq.fanout", "destination_type": "exchange"}
    items: dict[str, Callable[[int], dict[str, Any]]] = {
        "permissions": lambda n: {**rights, "configure": f"^{n}"},
        "topic_permissions": lambda n: {**rights, "exchange": f"e{n}", "write": f"^{n}"},
        "users": lambda n: {"name": f"u{n}", "password": "p", "tags": ""},
        "bindings": lambda n: {**bound, "routing_key": f"{n}"},
    }
    watch = LoopWatch(managed)
    _post(managed, "definitions", {kind: [items[kind](n) for n in range(6000)]})
    watch.check()


def test_one_get_request_over_http_returns_at_most_10000_messages(managed: EmbeddedBroker) -> None:
    """`POST /api/queues/…/get` with a count of a billion returns 10,000 messages, and leaves the others in
    the queue.
    """
    with closing(pika.BlockingConnection(pika.URLParameters(managed.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        for _ in range(10_005):
            channel.basic_publish("", "q", b"")
        channel.queue_declare("q", passive=True)  # all messages have arrived
        request = {"count": 1_000_000_000, "ackmode": "ack_requeue_false", "encoding": "auto"}
        assert [len(_post(managed, "queues/%2F/q/get", request)) for _ in range(2)] == [10_000, 5]


def test_one_get_request_over_http_stops_after_16_mib(managed: EmbeddedBroker) -> None:
    """`POST /api/queues/…/get` returns messages until their total size exceeds 16 MiB, and leaves the other messages in
    the queue.
    """
    with closing(pika.BlockingConnection(pika.URLParameters(managed.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        for _ in range(6):
            channel.basic_publish("", "q", bytes(4_000_000))
        channel.queue_declare("q", passive=True)
        request = {"count": 1000, "ackmode": "ack_requeue_false", "encoding": "auto", "truncate": 1}
        assert [len(_post(managed, "queues/%2F/q/get", request)) for _ in range(2)] == [5, 1]


_PATHS = ("queues/%2F/q", "consumers", "queues/%2F/q/bindings", "bindings/%2F/e/amq.topic/q/q/none")


def test_long_lists_of_consumers_or_bindings_do_not_hold_up_other_clients(managed: EmbeddedBroker) -> None:
    """While the management API lists 15,000 consumers or 60,000 bindings of one queue, the broker never uses more than
    0.5 s of CPU time before it serves other clients.
    """
    watch = LoopWatch(managed)
    with RawClient(managed.url) as client:
        client.send(commands.Queue.Declare(queue="q", durable=True))
        client.expect(commands.Queue.DeclareOk)
        for number in range(15_000):
            client.send(commands.Basic.Consume(queue="q", consumer_tag=f"{number}", nowait=True))
        for number in range(60_000):
            client.send(commands.Queue.Bind(queue="q", exchange="amq.topic", routing_key=f"{number}", nowait=True))
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).consumer_count == 15_000
        watch.take()
        statuses = {}
        for path in _PATHS:
            statuses[path] = _request(managed, "GET", path, {})[0]
            watch.check()
        assert [*statuses.values()] == [200, 200, 200, 404]


def test_totals_of_many_queues_do_not_hold_up_other_clients(managed: EmbeddedBroker) -> None:
    """While the management API adds up the messages of 30,000 queues, the broker never uses more than 0.5 s of CPU
    time before it serves other clients.
    """
    watch, vhost = LoopWatch(managed), _vhost(managed)
    numbers = iter(range(30_000))
    while some := [QueueDeclaration(f"q{number}", {}) for number in islice(numbers, 1000)]:
        managed.under_test(lambda _, some=some: [*map(vhost.add_queue, some)])
    watch.take()
    assert _request(managed, "GET", "overview", {})[1]["object_totals"]["queues"] == 30_000
    watch.check()
    assert _request(managed, "GET", "vhosts", {})[0] == 200
    watch.check()


def test_listing_or_exporting_many_bindings_does_not_hold_up_other_clients(managed: EmbeddedBroker) -> None:
    """While the management API lists or exports 400,000 bindings, the broker never uses more than 0.5 s of CPU time
    before it serves other clients.
    """
    watch, vhost = LoopWatch(managed), _vhost(managed)
    queue = managed.under_test(lambda _: vhost.add_queue(QueueDeclaration("q", {})))
    bind, keys = partial(vhost.bind, vhost.exchanges["amq.direct"], queue, arguments={}), [*map(str, range(400_000))]
    for at in range(0, len(keys), 10_000):
        managed.under_test(lambda _, at=at: [bind(routing_key=key) for key in keys[at : at + 10_000]])
    watch.take()
    listed = _request(managed, "GET", "bindings", {})[1]
    watch.check()
    assert [each["routing_key"] for each in listed] == ["q", *keys]
    exported = _request(managed, "GET", "definitions", {})[1]["bindings"]
    watch.check()
    assert [each["routing_key"] for each in exported] == keys


def test_arguments_of_a_megabyte_are_refused_without_holding_up_other_clients(managed: EmbeddedBroker) -> None:
    """If a queue is declared over HTTP with arguments of a megabyte, the broker answers with status 400. Meanwhile,
    it never uses more than 0.5 s of CPU time before it serves other clients.
    """
    watch = LoopWatch(managed)
    status, answer = _request(managed, "PUT", "queues/%2F/new", {"arguments": {"a": [{}] * 240_000}})
    assert (status, answer["reason"]) == (400, "not a field table: it has more than 131072 bytes")
    watch.check()
