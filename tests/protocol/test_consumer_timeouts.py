"""How long a delivery may stay unacknowledged: by the consumer, the queue, a policy, or the broker."""

import contextlib
from collections.abc import Iterator

import pika
import pytest
from pamqp import commands
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.amqp10_frames import SENDER
from mqtool.codecs.amqp10_values import Symbol
from mqtool.codecs.field_tables import UInt32
from tests.brokers import TestBroker, impatient_node
from tests.protocol.conftest import Api, Take
from tests.protocol.raw_amqp10 import ACCEPTED, DISPOSITION, RELEASED, TRANSFER, RawAmqp10, described
from tests.protocol.raw_client import RawClient

LONG = 600_000
SHORT = 200
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture(params=["4.2", "4.3"])
def like(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def started(like: str) -> Iterator[EmbeddedBroker]:
    """A broker whose own consumer timeout is longer than any test."""
    with EmbeddedBroker(like=like, consumer_timeout=LONG / 1000, management_port=0) as broker:
        yield broker


def since_4_3(broker: TestBroker) -> None:
    if not broker.differs_since("4.3", "queues look for late consumers themselves"):
        pytest.skip("up to 4.2, RabbitMQ looks for late consumers once a minute")


@contextlib.contextmanager
def impatient_broker(kind: str) -> Iterator[str]:
    """The URL of a broker whose own consumer timeout is short: the embedded one, or the RabbitMQ that is installed."""
    if kind == "rabbitmq":
        with impatient_node(SHORT) as url:
            yield f"{url}/%2F"
    else:
        with EmbeddedBroker(like="3.10", consumer_timeout=SHORT / 1000) as broker:
            yield broker.url


def consume(url: str, queue: str, **arguments: int) -> RawClient:
    """Consume a message without acknowledging it."""
    client = RawClient(url)
    client.send(commands.Basic.Qos(prefetch_count=1))
    client.expect(commands.Basic.QosOk)
    client.send(commands.Basic.Consume(queue=queue, consumer_tag="t", arguments=arguments))
    client.expect(commands.Basic.ConsumeOk)
    client.expect(commands.Basic.Deliver)
    client.receive()
    client.receive()
    return client


def closed_after(client: RawClient) -> str:
    """Return the text with which the broker closes the channel."""
    return str(client.expect(commands.Channel.Close).reply_text)


def text_of(timeout: int) -> str:
    return (
        f"PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: {timeout} ms. "
        "This timeout value can be configured, see consumers doc guide to learn more"
    )


@contextlib.contextmanager
def channel_at(url: str) -> Iterator[BlockingChannel]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        yield connection.channel()


def server_version(channel: BlockingChannel) -> str:
    properties = channel.connection._impl.server_properties
    assert properties is not None
    return str(properties["version"])


def declare(url: str, **arguments: object) -> None:
    """A quorum queue `q` with a message."""
    with channel_at(url) as channel:
        channel.queue_declare("q", durable=True, arguments={**QUORUM, **arguments})
        channel.basic_publish("", "q", b"x")


@pytest.mark.parametrize("kind", ["embedded", "rabbitmq"])
def test_in_rabbitmq_3_10_only_the_brokers_own_consumer_timeout_applies(kind: str) -> None:
    """RabbitMQ 3.10, and an embedded broker that behaves like it, apply only the broker's own consumer timeout, even
    if the queue or the consumer has a longer x-consumer-timeout. After this timeout, the broker closes the channel
    with error 406 and requeues the message.
    """
    with impatient_broker(kind) as url, channel_at(url) as channel:
        if not (version := server_version(channel)).startswith("3.10."):
            pytest.skip(f"the RabbitMQ that is installed is {version}")
        channel.queue_declare("classic", durable=True, arguments={"x-consumer-timeout": LONG})
        channel.basic_publish("", "classic", b"x")
        declare(url, **{"x-consumer-timeout": LONG})
        for queue in ("classic", "q"):
            with consume(url, queue, **{"x-consumer-timeout": LONG}) as client:
                closed = client.expect(commands.Channel.Close)
                assert (closed.reply_code, closed.reply_text) == (406, text_of(SHORT))
                assert (closed.class_id, closed.method_id) == (0, 0)
            method, _, _ = next(channel.consume(queue, auto_ack=True))
            assert method is not None
            assert method.redelivered
            channel.cancel()


def test_the_shorter_of_the_consumer_timeouts_set_by_a_queue_argument_and_a_policy_applies(
    started: EmbeddedBroker, like: str
) -> None:
    """If a queue argument and a policy both set a consumer timeout, the shorter one applies. After this timeout, an
    embedded broker that behaves like RabbitMQ 4.2 closes the channel, and one that behaves like 4.3 cancels the
    consumer.
    """
    api, clients = Api(str(started.management_url)), []
    with channel_at(started.url) as channel:
        for queue, argument, policy in (("a", LONG, SHORT), ("b", SHORT, LONG)):
            settings = {"pattern": f"^{queue}$", "definition": {"consumer-timeout": policy}}
            assert api("PUT", f"policies/%2F/{queue}", settings)[0] == 201
            channel.queue_declare(queue, durable=True, arguments={**QUORUM, "x-consumer-timeout": argument})
            channel.basic_publish("", queue, b"x")
            clients.append(consume(started.url, queue))
    for client in clients:
        with client:
            if like == "4.2":
                assert closed_after(client) == text_of(SHORT)
            else:
                assert client.expect(commands.Basic.Cancel).consumer_tag == "t"


def test_a_queues_consumer_timeout_can_be_longer_than_the_brokers(like: str) -> None:
    """In an embedded broker that behaves like RabbitMQ 4.2 or 4.3, a queue's own consumer timeout replaces the
    broker's, even if it is longer. A consumer of such a queue can acknowledge late, while a consumer of another queue
    times out.
    """
    with EmbeddedBroker(like=like, consumer_timeout=SHORT / 1000) as broker:
        declare(broker.url, **{"x-consumer-timeout": LONG})
        with consume(broker.url, "q") as patient, channel_at(broker.url) as channel:
            channel.queue_declare("other", durable=True, arguments=QUORUM)
            channel.basic_publish("", "other", b"x")
            with consume(broker.url, "other") as late:
                late.expect(commands.Channel.Close if like == "4.2" else commands.Basic.Cancel)
            patient.send(commands.Basic.Ack(delivery_tag=1))
            patient.send(commands.Queue.Declare(queue="q", passive=True))
            assert patient.expect(commands.Queue.DeclareOk).consumer_count == 1


def test_from_rabbitmq_4_3_on_a_consumers_own_timeout_takes_precedence() -> None:
    """In an embedded broker that behaves like RabbitMQ 4.3, a consumer's own timeout takes precedence over the timeouts
    of the queue and the broker. After this timeout, the broker cancels the consumer, and another consumer gets the
    unacknowledged message.
    """
    with EmbeddedBroker(like="4.3", consumer_timeout=LONG / 1000) as broker:
        declare(broker.url, **{"x-consumer-timeout": LONG})
        with consume(broker.url, "q", **{"x-consumer-timeout": SHORT}) as client:
            cancelled = client.expect(commands.Basic.Cancel)
            assert (cancelled.consumer_tag, cancelled.nowait) == ("t", True)
            with consume(broker.url, "q") as second:
                client.send(commands.Basic.Ack(delivery_tag=1))
                client.send(commands.Queue.Declare(queue="q", passive=True))
                assert client.expect(commands.Queue.DeclareOk).consumer_count == 1
                second.send(commands.Basic.Ack(delivery_tag=1))


def test_in_rabbitmq_4_2_a_consumers_own_timeout_has_no_effect() -> None:
    """In an embedded broker that behaves like RabbitMQ 4.2, a consumer's own x-consumer-timeout has no effect. If the
    consumer's timeout is long and the queue's is short, the broker closes the channel after the queue's timeout.
    """
    with EmbeddedBroker(like="4.2") as broker:
        declare(broker.url, **{"x-consumer-timeout": SHORT})
        with consume(broker.url, "q", **{"x-consumer-timeout": LONG}) as client:
            assert closed_after(client) == text_of(SHORT)


def test_from_rabbitmq_4_3_on_a_timeout_closes_the_channel_if_no_consumer_can_be_cancelled() -> None:
    """An embedded broker that behaves like RabbitMQ 4.3 closes the channel after the consumer timeout if the
    unacknowledged message was fetched with basic.get, or if the client lacks the capability consumer_cancel_notify.
    """
    with EmbeddedBroker(like="4.3") as broker:
        declare(broker.url, **{"x-consumer-timeout": SHORT})
        with RawClient(broker.url) as client:
            client.send(commands.Basic.Get(queue="q"))
            client.expect(commands.Basic.GetOk)
            client.receive()
            client.receive()
            assert closed_after(client) == text_of(-1)
        parameters = pika.URLParameters(broker.url)
        parameters.client_properties = {"capabilities": {"consumer_cancel_notify": False}}
        with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
            channel = connection.channel()
            channel.basic_consume("q", lambda *_: None)
            with pytest.raises(ChannelClosedByBroker, match=r"Timeout value used: -1 ms"):
                channel.start_consuming()


def test_from_rabbitmq_4_3_on_classic_queues_have_no_consumer_timeout() -> None:
    """From RabbitMQ 4.3 on, classic queues have no consumer timeout. If a consumer of a quorum queue does not
    acknowledge a delivery within the broker's consumer timeout, an embedded broker that behaves like RabbitMQ 4.3
    cancels the consumer. It does not cancel a consumer of a classic queue.
    """
    with EmbeddedBroker(like="4.3", consumer_timeout=SHORT / 1000) as broker, channel_at(broker.url) as channel:
        channel.queue_declare("classic", durable=True)
        channel.basic_publish("", "classic", b"x")
        declare(broker.url)
        with consume(broker.url, "classic") as patient, consume(broker.url, "q") as late:
            late.expect(commands.Basic.Cancel)
            patient.send(commands.Queue.Declare(queue="classic", passive=True))
            assert patient.expect(commands.Queue.DeclareOk).consumer_count == 1


def test_from_rabbitmq_4_3_on_the_timeout_of_an_amqp_1_0_link_releases_the_delivery(broker: TestBroker) -> None:
    """From RabbitMQ 4.3 on, the AMQP 1.0 link property `rabbitmq:consumer-timeout` replaces the queue's consumer
    timeout. After the link's timeout, the broker sends the receiver a disposition with the outcome `released` for the
    unsettled delivery.
    """
    since_4_3(broker)
    declare(broker.url, **{"x-consumer-timeout": LONG})
    client = RawAmqp10(broker.url)
    timeout = {Symbol("rabbitmq:consumer-timeout"): UInt32(SHORT)}
    client.attach_receiver("/queues/q", credit=1, rest=(None, None, None, timeout))
    client.expect(TRANSFER)
    released = client.expect(DISPOSITION)
    assert (released.field(0), released.field(1), released.field(3)) == (SENDER, 0, False)
    assert released.field(4).descriptor == RELEASED
    client.settle(0, described(ACCEPTED))


@pytest.mark.parametrize(
    ("queue", "policy", "consumer"),
    [(SHORT, None, None), (LONG, SHORT, None), (SHORT, LONG, None), (None, SHORT, None), (LONG, LONG, SHORT)],
)
def test_from_rabbitmq_4_3_on_a_consumer_that_exceeds_its_timeout_is_cancelled(
    broker: TestBroker, api: Api, take: Take, queue: int | None, policy: int | None, consumer: int | None
) -> None:
    """From RabbitMQ 4.3 on, the broker cancels a consumer that does not acknowledge a delivery within the consumer's
    own timeout. If the consumer has none, the shorter of the timeouts set by the queue argument and the policy applies.
    The channel stays open. The delivery does not count towards the delivery limit.
    """
    since_4_3(broker)
    if policy is not None:
        settings = {"pattern": "^q$", "definition": {"consumer-timeout": policy}}
        assert api("PUT", f"policies/{broker.vhost}/timeout", settings)[0] == 201
    declare(broker.url, **({} if queue is None else {"x-consumer-timeout": queue}))
    with consume(broker.url, "q", **({} if consumer is None else {"x-consumer-timeout": consumer})) as client:
        cancelled = client.expect(commands.Basic.Cancel)
        assert (cancelled.consumer_tag, cancelled.nowait) == ("t", True)
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).queue == "q"
        assert take.one("q")[1].headers == {"x-acquired-count": 1}


def test_from_rabbitmq_4_3_on_a_consumers_long_timeout_replaces_the_queues(broker: TestBroker) -> None:
    """From RabbitMQ 4.3 on, a consumer's own timeout replaces the queue's, even if it is longer. Such a consumer can
    acknowledge a delivery after the queue's timeout, and then gets more messages. Another consumer of the same queue,
    without a timeout of its own, is cancelled if it does not acknowledge a delivery within the queue's timeout.
    """
    since_4_3(broker)
    declare(broker.url, **{"x-consumer-timeout": SHORT})
    with consume(broker.url, "q", **{"x-consumer-timeout": LONG}) as patient, channel_at(broker.url) as channel:
        channel.basic_publish("", "q", b"y")
        with consume(broker.url, "q") as late:
            late.expect(commands.Basic.Cancel)
            patient.send(commands.Basic.Ack(delivery_tag=1))
            patient.expect(commands.Basic.Deliver)


def test_from_rabbitmq_4_3_on_an_unacknowledged_message_from_basic_get_closes_the_channel(broker: TestBroker) -> None:
    """From RabbitMQ 4.3 on, the broker closes the channel with error 406 if a client does not acknowledge a message
    from basic.get within the queue's consumer timeout.
    """
    since_4_3(broker)
    declare(broker.url, **{"x-consumer-timeout": SHORT})
    with RawClient(broker.url) as client:
        client.send(commands.Basic.Get(queue="q"))
        client.expect(commands.Basic.GetOk)
        client.receive()
        client.receive()
        closed = client.expect(commands.Channel.Close)
        assert (closed.reply_code, closed.reply_text) == (406, text_of(-1))


@pytest.mark.parametrize(
    ("kind", "timeout", "why"),
    [
        ("quorum", -1, ": {value_negative,-1}"),
        ("quorum", "a", ': "expected integer, got longstr"'),
        ("classic", 1, " of queue type rabbit_classic_queue"),
        ("stream", 1, " of queue type rabbit_stream_queue"),
    ],
)
def test_an_invalid_consumer_timeout_is_refused_from_rabbitmq_4_3_on(
    broker: TestBroker, connection: pika.BlockingConnection, kind: str, timeout: object, why: str
) -> None:
    """From RabbitMQ 4.3 on, the broker refuses the argument x-consumer-timeout of a queue or a consumer if its value
    is negative or not an integer. It also refuses the argument if the queue is a classic queue or a stream. Before
    RabbitMQ 4.3, the broker ignores the argument.
    """
    channel = connection.channel()
    arguments = {"x-queue-type": kind, "x-consumer-timeout": timeout}
    channel.queue_declare("c", durable=True, arguments={"x-queue-type": kind})
    channel.basic_qos(prefetch_count=1)
    if broker.differs_since("4.3", "it is checked"):
        with pytest.raises(ChannelClosedByBroker) as declared:
            channel.queue_declare("q", durable=True, arguments=arguments)
        wrong, where = "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout'", f"in vhost '{broker.vhost}'{why}"
        assert declared.value.reply_text == f"{wrong} for queue 'q' {where}"
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        with pytest.raises(ChannelClosedByBroker) as consumed:
            channel.basic_consume("c", lambda *_: None, arguments={"x-consumer-timeout": timeout})
        assert consumed.value.reply_text == f"{wrong} for queue 'c' {where}"
    else:
        channel.queue_declare("q", durable=True, arguments=arguments)
        channel.basic_consume("c", lambda *_: None, arguments={"x-consumer-timeout": timeout})
