"""What the broker keeps for a client counts towards its memory use in every protocol, and has a limit."""

import contextlib
import gc
import struct
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pamqp import commands

from mqtool.broker.embedded import EmbeddedBroker, server
from mqtool.codecs.amqp10_message import Amqp10Message, data_section
from mqtool.codecs.amqp10_values import Described, Symbol
from tests.brokers import large
from tests.protocol.conftest import Api
from tests.protocol.raw_amqp10 import ACCEPTED, CLOSE, FLOW, MODIFIED, TRANSFER, RawAmqp10, described, message
from tests.protocol.raw_client import RawClient, raw_frame

LIMIT = 4_000_000

#: The header of a message without a body, with an x-delay of one millisecond.
_DELAYED = raw_frame(2, 1, struct.pack(">HHQHI", 60, 0, 0, 1 << 13, 13) + b"\7x-delayI\0\0\0\1")


@pytest.fixture
def limit() -> int:
    """The memory limit of the broker, which is also that of a connection."""
    return LIMIT


@pytest.fixture
def broker(limit: int) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(like="4.3", management_port=0, memory_limit=limit) as broker:
        yield broker


@pytest.fixture
def channel(broker: EmbeddedBroker) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    parameters = pika.URLParameters(broker.url)
    parameters.blocked_connection_timeout = 60  # else a publish during an alarm waits forever, and so does close()
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def memory(broker: EmbeddedBroker) -> int:
    """Return the broker's memory use in bytes, as the management API shows it."""
    return int(Api(str(broker.management_url))("GET", "nodes")[1][0]["mem_used"])


def test_message_headers_count_towards_the_brokers_memory_use(broker: EmbeddedBroker, channel: Any) -> None:
    """Headers of AMQP 0-9-1 messages and application properties of AMQP 1.0 messages count towards the broker's memory
    use until the messages are removed.
    """
    channel.queue_declare("q", durable=True)
    before = memory(broker)
    for _ in range(50):
        channel.basic_publish("", "q", b"", pika.BasicProperties(headers={"h": "x" * 10_000}))
    between = memory(broker)
    assert between - before > 500_000
    with RawAmqp10(broker.url) as client:
        client.attach_sender("/queues/q")
        for number in range(50):
            sent = Amqp10Message(application_properties={"h": "x" * 10_000}, body=data_section(b"")).encode()
            assert client.published(number, sent).descriptor == ACCEPTED
        assert memory(broker) - between > 500_000
    channel.queue_purge("q")
    assert memory(broker) < before + 100_000


@pytest.mark.parametrize("kind", ["fanout", "x-delayed-message"])
@large
def test_a_dead_letter_cycle_does_not_exhaust_the_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten queues that dead-letter each expired message to all ten queues would turn one message into millions. The
    broker's memory use nevertheless stays below one and a half times its memory limit, and the broker can still be
    stopped.
    """
    monkeypatch.setattr(server, "_FINISHING_SECONDS", 0.1)
    with EmbeddedBroker(like="4.2", management_port=0, memory_limit=LIMIT) as broker:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
            channel = connection.channel()
            channel.exchange_declare("x", kind, arguments={"x-delayed-type": "fanout"})
            for number in range(10):
                channel.queue_declare(f"q{number}", arguments={"x-message-ttl": 0, "x-dead-letter-exchange": "x"})
                channel.queue_bind(f"q{number}", "x")
            channel.basic_publish("", "q0", b"", pika.BasicProperties(headers={"x-delay": 1}))
        while memory(broker) < 1.2 * LIMIT:
            pass
        assert max(memory(broker) for _ in range(50)) < 1.5 * LIMIT


@pytest.fixture
def quorum(broker: EmbeddedBroker, channel: Any) -> RawAmqp10:
    """A client that has 50 unsettled messages of a quorum queue."""
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    client = RawAmqp10(broker.url)
    client.attach_sender("/queues/q")
    for number in range(50):
        assert client.published(number, message(b"x")).descriptor == ACCEPTED
    client.attach_receiver("/queues/q", credit=50, handle=1)
    for _ in range(50):
        client.expect(TRANSFER)
    return client


def annotated(size: int, name: str = "x-opt-a") -> Any:
    """The outcome `modified` with an annotation of this size."""
    return described(MODIFIED, False, False, {Symbol(name): "x" * size})


def test_annotations_added_by_the_outcome_modified_count_towards_memory_use(
    broker: EmbeddedBroker, quorum: RawAmqp10, channel: Any
) -> None:
    """If an AMQP 1.0 receiver adds annotations to messages with the outcome `modified`, the annotations count towards
    the broker's memory use until the messages are removed.
    """
    before = memory(broker)
    quorum.settle(0, annotated(20_000), 49, settled=False)
    while quorum.receive().code == FLOW:
        pass
    assert memory(broker) - before > 1_000_000
    quorum.socket.close()
    while channel.queue_declare("q", passive=True).method.message_count < 50:
        channel.connection.process_data_events(0.01)
    channel.queue_purge("q")
    assert memory(broker) < before


@pytest.mark.parametrize("case", ["more than a frame", "during an alarm"])
def test_too_many_annotations_added_by_the_outcome_modified_end_the_session(
    broker: EmbeddedBroker, quorum: RawAmqp10, channel: Any, case: str
) -> None:
    """If an AMQP 1.0 receiver adds annotations to a message with the outcome `modified` until they no longer fit into
    a frame, the broker ends the session with resource-limit-exceeded, and requeues the session's deliveries. During a
    memory alarm, the broker stores no annotations, and ends the session in the same way, even if they would fit.
    """
    if case == "during an alarm":
        channel.queue_declare("large")
        assert broker._server is not None
        alarms = broker._server.broker.alarms
        while not broker.under_test(lambda _: alarms):  # a publish during an alarm would wait for its end
            channel.basic_publish("", "large", bytes(100_000))
    quorum.settle(0, annotated(70_000), 0)
    if case == "more than a frame":
        quorum.flow(1, 1, count=50, seen=50)
        quorum.expect(TRANSFER)
        quorum.settle(50, annotated(70_000, "x-opt-b"))
    condition, _ = quorum.ended() or ("", "")
    assert condition == "amqp:resource-limit-exceeded"
    while channel.queue_declare("q", passive=True).method.message_count < 50:
        channel.connection.process_data_events(0.01)


def read_by_amqp10(broker: EmbeddedBroker) -> str:
    """Read a stream over AMQP 1.0, settle nothing, and return why the broker closed the connection."""
    client = RawAmqp10(broker.url)
    client.flow(window=1_000_000)
    client.attach_receiver("/queues/s", credit=0, source=offset())
    client.flow(0, 1_000_000, window=1_000_000)
    while (got := client.receive()).code != CLOSE:
        assert got.code in (TRANSFER, FLOW)
    return str((got.error or ("", ""))[1])


def offset() -> tuple[Any, ...]:
    """The fields of a source that begins with the first message."""
    spec = Symbol("rabbitmq:stream-offset-spec")
    return (None, None, None, None, None, None, {spec: Described(spec, "first")})


def read_by_amqp_091(broker: EmbeddedBroker) -> str:
    """Consume a stream over AMQP 0-9-1, acknowledge nothing, and return why the broker closed the connection."""
    client = RawClient(broker.url)
    client.send(commands.Basic.Qos(prefetch_count=65535))
    client.expect(commands.Basic.QosOk)
    for number in range(4):
        client.send(
            commands.Basic.Consume(queue="s", consumer_tag=f"c{number}", arguments={"x-stream-offset": "first"})
        )
    while True:
        got = client.receive()
        if isinstance(got, commands.Connection.Close):
            return str(got.reply_text)


@pytest.mark.parametrize("limit", [300_000])
@pytest.mark.parametrize("read", [read_by_amqp10, read_by_amqp_091])
def test_a_connection_with_too_many_unacknowledged_stream_deliveries_is_closed(
    broker: EmbeddedBroker, channel: Any, read: Callable[[EmbeddedBroker], str]
) -> None:
    """If a client's unacknowledged deliveries from a stream take more memory than the limit for one connection, the
    broker closes the connection.
    """
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    publishing = channel.connection.channel()
    for _ in range(2_000):
        publishing.basic_publish("", "s", b"x")
    publishing.close()
    assert "held for this connection" in read(broker)
    assert channel.queue_declare("s", passive=True).method.consumer_count == 0


def test_the_list_of_queues_of_each_uncommitted_message_counts_towards_memory_use(
    broker: EmbeddedBroker, channel: Any
) -> None:
    """For each message in an open transaction, the broker stores a list of the queues to which the message is routed.
    These lists count towards the broker's memory use. If the channel is closed before tx.commit, the memory is freed.
    """
    for number in range(200):
        channel.queue_declare(f"q{number}")
        channel.queue_bind(f"q{number}", "amq.fanout")
    with RawClient(broker.url) as client:
        client.send(commands.Tx.Select())
        client.expect(commands.Tx.SelectOk)
        before = memory(broker)
        for number in range(200):
            client.send(commands.Basic.Publish(exchange="amq.fanout", routing_key=f"{number}"))
            client.socket.sendall(raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)))
        client.send(commands.Queue.Declare(queue="q0", passive=True))
        client.expect(commands.Queue.DeclareOk)
        assert memory(broker) - before > 1_500_000
        client.send(commands.Channel.Close(200, "", 0, 0))
        client.expect(commands.Channel.CloseOk)
        while memory(broker) > before:
            pass


def test_too_many_consumers_with_large_arguments_close_the_connection(broker: EmbeddedBroker, channel: Any) -> None:
    """If the arguments of a client's consumers take more memory than the limit for one connection, the broker closes
    the connection and frees the memory.
    """
    channel.queue_declare("q")
    with RawClient(broker.url) as client:
        for number in range(60):
            arguments = {"x-large": "x" * 100_000}
            client.send(commands.Basic.Consume(queue="q", consumer_tag=f"c{number}", arguments=arguments, nowait=True))
        closed = client.expect(commands.Connection.Close)
        assert "held for this connection" in closed.reply_text
    while memory(broker) > 100_000:
        channel.connection.process_data_events(0.01)


@pytest.mark.parametrize("kind", ["queue", "exchange", "binding"])
def test_a_client_cannot_fill_the_memory_with_declarations(broker: EmbeddedBroker, kind: str) -> None:
    """Once queues, exchanges and bindings take half of the broker's memory limit, the broker refuses further
    declarations with error 406. After some of them are deleted, declarations succeed again.
    """

    def declare(name: str) -> None:
        if kind == "queue":
            client.send(commands.Queue.Declare(queue=name, nowait=True))
        elif kind == "exchange":
            client.send(commands.Exchange.Declare(exchange=name, nowait=True))
        else:
            key = ".".join(name * 30)
            client.send(commands.Queue.Bind(queue="q", exchange="amq.topic", routing_key=key, nowait=True))

    with RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q"))
        client.expect(commands.Queue.DeclareOk)
        for number in range(LIMIT // 2 // 900):
            declare(f"{number:04}")
        closed = client.expect(commands.Channel.Close)
        assert closed.reply_code == 406
        assert f"bytes, which is more than {LIMIT // 2}" in closed.reply_text
        client.send(commands.Channel.CloseOk())
        client.send(commands.Channel.Open())
        client.expect(commands.Channel.OpenOk)
        assert LIMIT // 2 < memory(broker) < LIMIT
        for number in range(10):
            client.send(commands.Queue.Delete(queue=f"{number:04}", nowait=True))
            client.send(commands.Exchange.Delete(exchange=f"{number:04}", nowait=True))
        client.send(commands.Queue.Delete(queue="q", nowait=True))
        client.send(commands.Queue.Declare(queue="another"))
        client.expect(commands.Queue.DeclareOk)


_LARGE = {"a": [{"k": number} for number in range(1000)]}


@pytest.mark.parametrize("kind", ["queue", "exchange", "binding", "client properties"])
def test_large_arguments_and_client_properties_count_towards_memory_use(
    broker: EmbeddedBroker, channel: Any, kind: str
) -> None:
    """Large arguments count towards the broker's memory use until their queue, exchange or binding is deleted. Large
    client properties count towards it until the client disconnects.
    """
    channel.queue_declare("q", durable=True)
    before = memory(broker)
    if kind == "queue":
        channel.queue_declare("large", durable=True, arguments=_LARGE)
    elif kind == "exchange":
        channel.exchange_declare("large", arguments=_LARGE)
    elif kind == "binding":
        channel.queue_bind("q", "amq.topic", "k", _LARGE)
    else:
        parameters = pika.URLParameters(broker.url)
        parameters.client_properties = _LARGE
        other = pika.BlockingConnection(parameters)
    assert memory(broker) - before > 200_000
    if kind == "queue":
        channel.queue_delete("large")
    elif kind == "exchange":
        channel.exchange_delete("large")
    elif kind == "binding":
        channel.queue_unbind("q", "amq.topic", "k", _LARGE)
    else:
        other.close()
    while memory(broker) - before > 1000:
        pass


def test_deleting_a_virtual_host_frees_the_memory_of_exchange_and_binding_arguments(broker: EmbeddedBroker) -> None:
    """After a virtual host is deleted, the arguments of its exchanges, and of the bindings between them, no longer
    count towards the broker's memory use.
    """
    api, before = Api(str(broker.management_url)), memory(broker)
    api("PUT", "vhosts/v")
    for name in ("x", "y"):
        assert api("PUT", f"exchanges/v/{name}", {"type": "topic", "arguments": _LARGE})[0] == 201
    assert api("POST", "bindings/v/e/x/e/y", {"routing_key": "k", "arguments": _LARGE})[0] == 201
    assert memory(broker) - before > 600_000
    api("DELETE", "vhosts/v")
    assert memory(broker) == before


def test_the_names_of_deleted_exchanges_that_a_channel_has_used_count_towards_memory_use() -> None:
    """If a channel publishes a delayed message to each of 500 x-delayed-message exchanges, and these exchanges are
    then deleted, their names still count towards the broker's memory use. Once the channel is closed and the last
    delayed message has become due, the broker uses no more memory than before the exchanges were declared.
    """
    with EmbeddedBroker(like="4.2", management_port=0) as delaying, RawClient(delaying.url) as client:
        before = memory(delaying)
        declared: Any = {"exchange_type": "x-delayed-message", "arguments": {"x-delayed-type": "fanout"}}
        for number in range(500):
            name = f"{number:0120}"
            client.send(commands.Exchange.Declare(**declared, exchange=name))
            client.expect(commands.Exchange.DeclareOk)
            client.send(commands.Basic.Publish(exchange=name))
            client.socket.sendall(_DELAYED)
            client.send(commands.Exchange.Delete(exchange=name))
            client.expect(commands.Exchange.DeleteOk)
        assert memory(delaying) - before > 100_000
        client.send(commands.Channel.Close(200, "", 0, 0))
        client.expect(commands.Channel.CloseOk)
        assert delaying._server is not None
        vhost = delaying._server.broker.vhosts["/"]
        while delaying.under_test(lambda _: len(vhost._delayed.first(1))):
            pass
        assert not delaying.under_test(lambda _: [*vhost._delayed._counts])
        while memory(delaying) > before:
            pass


def test_the_memory_of_a_deleted_exclusive_queue_is_freed_immediately(broker: EmbeddedBroker, channel: Any) -> None:
    """If a client deletes an exclusive queue, the broker frees the queue's memory immediately, without waiting until
    the client disconnects.
    """
    channel.queue_declare("mine", exclusive=True)
    queue = broker.under_test(lambda under_test: weakref.ref(under_test._scene.broker.vhosts["/"].queues["mine"]))
    channel.queue_delete("mine")
    gc.collect()
    assert broker.under_test(lambda _: queue()) is None
