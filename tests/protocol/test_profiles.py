"""`--like`: each version that the embedded broker imitates, tested beside that version of RabbitMQ
if it is available.
"""

import re
import uuid
from collections.abc import Callable, Iterator

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPChannelError,
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    UnroutableError,
)

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.profile import Like
from tests.brokers import TestBroker, skip_or_fail
from tests.protocol.conftest import Api, Take

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture(scope="module")
def profiles() -> Iterator[Callable[[str], TestBroker]]:
    """Starts one broker for each imitated version, when it is first needed."""
    started: dict[str, EmbeddedBroker] = {}

    def of(like: str) -> TestBroker:
        if like not in started:
            started[like] = EmbeddedBroker(like=like, management_port=0).start()
        broker = started[like]
        return TestBroker("embedded", broker.url.removesuffix("/%2F"), str(broker.management_url))

    yield of
    for each in started.values():
        each.stop()


@pytest.fixture(params=[*Like, "rabbitmq"], ids=lambda like: like if like == "rabbitmq" else f"embedded-{like}")
def broker(request: pytest.FixtureRequest, profiles: Callable[[str], TestBroker]) -> Iterator[TestBroker]:
    """An embedded broker for each version that it imitates, and RabbitMQ if available, in place of the suite's two
    brokers.
    """
    is_real = request.param == "rabbitmq"
    found = request.getfixturevalue("rabbitmq") if is_real else profiles(request.param)
    if found is None:
        skip_or_fail("no rabbitmq-server is installed, and MQTOOL_TEST_URL names none")
    fresh = found.with_fresh_vhost(f"test-{uuid.uuid4().hex[:12]}")
    yield fresh
    fresh.drop_vhost()


@pytest.fixture
def quorum(channel: BlockingChannel) -> Callable[..., str]:
    """Declare a quorum queue with these arguments, and publish a message to it."""

    def declare(*, body: bytes = b"x", **arguments: object) -> str:
        channel.queue_declare("q", durable=True, arguments={**QUORUM, **arguments})
        channel.basic_publish("", "q", body)
        return "q"

    return declare


def closed(what: Callable[[], object]) -> tuple[int, str]:
    """Return code and text with which the broker refuses an operation."""
    with pytest.raises((AMQPChannelError, AMQPConnectionError)) as refused:
        what()
    assert isinstance(refused.value, ChannelClosedByBroker | ConnectionClosedByBroker)
    return refused.value.reply_code, refused.value.reply_text


def test_the_broker_reports_the_version_that_it_imitates(
    broker: TestBroker, connection: pika.BlockingConnection, api: Api
) -> None:
    """An embedded broker that imitates a version of RabbitMQ reports it over AMQP and in the management API."""
    version = connection._impl.server_properties["version"]
    overview = api("GET", "overview")[1]
    assert version == overview["rabbitmq_version"] == overview["product_version"] == broker.version


def test_the_default_queue_type_is_listed_from_rabbitmq_4_0_on(
    broker: TestBroker, channel: BlockingChannel, api: Api, vhost: str
) -> None:
    """If a queue was declared without a type, the management API lists its arguments with x-queue-type classic from
    RabbitMQ 4.0 on, and without x-queue-type up to 3.13. In every version, the broker refuses to declare such a queue
    again as a quorum queue.
    """
    channel.queue_declare("q", durable=True)
    listed = {"x-queue-type": "classic"} if broker.differs_since("4.0", "it is listed") else {}
    assert api("GET", f"queues/{vhost}/q")[1]["arguments"] == listed
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": "classic"})
    _, text = closed(lambda: channel.queue_declare("q", durable=True, arguments=QUORUM))
    received = "received 'quorum' but current is 'classic'" if listed else "current is none"
    assert text.endswith(received)


def test_queues_that_are_neither_durable_nor_exclusive_are_refused_from_rabbitmq_4_3_0_to_4_3_5(
    broker: TestBroker, connect: Callable[..., pika.BlockingConnection]
) -> None:
    """RabbitMQ 4.3.0 to 4.3.5, and an embedded broker that imitates one of these versions, refuse to declare a queue
    that is neither durable nor exclusive, with error 541. All other versions allow such queues.
    """
    connect().channel().queue_declare("mine", exclusive=True)

    def declare() -> None:
        connect().channel().queue_declare("ours")

    if broker.version in (f"4.3.{patch}" for patch in range(6)):
        code, text = closed(declare)
        assert (code, text.partition(".")[0]) == (
            541,
            "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated",
        )
    else:
        declare()


def test_policy_keys_depend_on_the_version(broker: TestBroker, api: Api, vhost: str) -> None:
    """From RabbitMQ 4.0 on, the broker refuses a policy with ha-mode, and accepts one with a delivery-limit of -1.
    From 4.3 on, it refuses a policy with queue-master-locator, and accepts the keys for delayed retries, such as
    delayed-retry-type.
    """

    def put(definition: dict[str, object]) -> bool:
        return api("PUT", f"policies/{vhost}/p", {"pattern": "^none$", "definition": definition})[0] in (201, 204)

    since_4_0 = broker.differs_since("4.0", "other settings")
    since_4_3 = broker.differs_since("4.3", "other settings")
    assert put({"ha-mode": "all"}) is not since_4_0
    assert put({"delivery-limit": -1}) is since_4_0
    assert put({"queue-master-locator": "min-masters"}) is not since_4_3
    assert put({"delayed-retry-type": "all", "delayed-retry-min": 5}) is since_4_3
    assert not put({"delayed-retry-type": "all"})


def test_permission_checks_and_their_errors_depend_on_the_version(
    broker: TestBroker, connect: Callable[..., pika.BlockingConnection], api: Api, vhost: str, amqp_url: str
) -> None:
    """From RabbitMQ 4.0 on, the error for a refused operation names the missing permission. From 4.3 on, a passive
    queue.declare needs the configure permission.
    """
    user = f"ann-{vhost}"
    api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    api("PUT", f"permissions/{vhost}/{user}", {"configure": "", "write": "", "read": ""})
    api("PUT", f"queues/{vhost}/q", {"durable": True})
    connection = connect(amqp_url.replace("guest:guest", f"{user}:secret"))
    what = "read access" if broker.differs_since("4.0", "it says which") else "- access"
    assert what in closed(lambda: connection.channel().basic_get("q"))[1]
    if broker.differs_since("4.3", "the configure permission is needed"):
        assert "configure access" in closed(lambda: connection.channel().queue_declare("q", passive=True))[1]
    else:
        connection.channel().queue_declare("q", passive=True)
    connection.close()
    api("DELETE", f"users/{user}")


def test_a_transaction_commit_to_a_deleted_queue_depends_on_the_version(
    broker: TestBroker, channel: BlockingChannel, connect: Callable[..., pika.BlockingConnection]
) -> None:
    """If a client publishes a message in a transaction and the message's queue is then deleted before tx.commit, the
    commit succeeds up to RabbitMQ 3.13. In 4.0, the broker closes the channel instead, and from 4.2 on, the connection.
    RabbitMQ 4.1 is not tested.
    """
    channel.queue_declare("q", durable=True)
    other = connect().channel()
    other.tx_select()
    other.basic_publish("", "q", b"x")
    other.queue_declare("q", durable=True, passive=True)  # the broker has handled the message
    channel.queue_delete("q")
    if broker.differs_since("4.2", "the connection is closed"):
        code, text = closed(other.tx_commit)
        assert (code, re.sub(r"\s+", " ", text).partition(",")[0]) == (
            506,
            "RESOURCE_ERROR - failed to deliver message: {not_found",
        )
    elif broker.differs_since("4.0", "the channel is closed"):
        assert closed(other.tx_commit) == (406, "PRECONDITION_FAILED - partial tx completion")
    else:
        other.tx_commit()


def test_imitating_an_unknown_version_raises_an_error() -> None:
    """EmbeddedBroker(like="4") raises ValueError, whose text lists the versions of RabbitMQ that the broker can
    imitate.
    """
    with pytest.raises(ValueError, match=r"cannot behave like RabbitMQ 4, only like 3\.10, 4\.0, 4\.2"):
        EmbeddedBroker(like="4")


def test_messages_that_wait_for_a_delayed_retry_count_in_the_api_towards_the_limit_and_in_a_purge(
    broker: TestBroker, channel: BlockingChannel, take: Take, api: Api, vhost: str, quorum: Callable[..., str]
) -> None:
    """From RabbitMQ 4.3 on, messages that wait for a delayed retry count as `messages` and `messages_delayed` in the
    management API, and towards the queue's x-max-length. queue.purge removes and counts them. queue.declare and
    queue.delete do not count them.
    """
    if not broker.differs_since("4.3", "it is held back"):
        pytest.skip("RabbitMQ delays no retries before 4.3")
    queue = quorum(**{"x-delayed-retry-type": "all", "x-delayed-retry-min": 600_000, "x-max-length": 2})

    def there(**wanted: int) -> bool:
        view = api("GET", f"queues/{vhost}/{queue}")[1]
        return {name: view.get(name) for name in wanted} == wanted

    def ready() -> int:
        return int(channel.queue_declare(queue, passive=True).method.message_count)

    channel.basic_nack(take.one(queue, auto_ack=False)[0].delivery_tag)
    take.until(lambda: there(messages=1, messages_ready=0, messages_delayed=1))
    assert ready() == 0
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", queue, body)
    take.until(lambda: there(messages=2, messages_ready=1, messages_delayed=1))
    assert ready() == 1
    assert channel.queue_purge(queue).method.message_count == 2
    channel.basic_publish("", queue, b"4")
    channel.basic_nack(take.one(queue, auto_ack=False)[0].delivery_tag)
    channel.basic_publish("", queue, b"5")
    take.until(lambda: there(messages=2, messages_ready=1, messages_delayed=1))
    # RabbitMQ 4.3.6 once said 0, on a busy machine.
    assert channel.queue_delete(queue).method.message_count in ((1,) if broker.kind == "embedded" else (0, 1))


def test_x_delayed_message_exchanges_exist_up_to_rabbitmq_4_2(
    broker: TestBroker, channel: BlockingChannel, api: Api
) -> None:
    """An embedded broker that imitates RabbitMQ 4.2 or earlier has the exchange type x-delayed-message. One that
    imitates 4.3 or later refuses this type as unknown, because RabbitMQ's delayed message plugin does not exist for
    these versions.
    """
    types = [each["name"] for each in api("GET", "overview")[1]["exchange_types"]]
    if broker.differs_since("4.3", "there is no plugin for it"):
        assert "x-delayed-message" not in types
        code, text = closed(lambda: channel.exchange_declare("x", "x-delayed-message"))
        assert (code, text) == (406, "PRECONDITION_FAILED - unknown exchange type 'x-delayed-message'")
    elif broker.kind == "embedded":
        assert "x-delayed-message" in types
        channel.exchange_declare("x", "x-delayed-message", arguments={"x-delayed-type": "direct"})


def test_a_local_random_exchange_sends_each_message_to_one_queue(
    broker: TestBroker, channel: BlockingChannel, api: Api
) -> None:
    """From RabbitMQ 4.0 on, an x-local-random exchange routes each message to one of its bound queues, whatever the
    routing key. Earlier versions refuse this exchange type.
    """
    # As in rabbit_exchange_type_local_random of RabbitMQ 4.0.5 and 4.3.5.
    is_listed = any(each["name"] == "x-local-random" for each in api("GET", "overview")[1]["exchange_types"])
    assert is_listed == broker.differs_since("4.0", "it is new there")
    if not is_listed:
        with pytest.raises(ConnectionClosedByBroker, match="unknown exchange type 'x-local-random'"):
            channel.exchange_declare("x", "x-local-random")
        return
    channel.exchange_declare("x", "x-local-random", durable=True)
    queues = ("a", "b", "c")
    for queue in queues:
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "x", "")
    channel.confirm_delivery()
    copies = BasicProperties(headers={"CC": ["one", "two"]})
    for number in range(200):
        channel.basic_publish("x", f"key.{number}", b"", copies if number % 2 else None, mandatory=True)
    counts = [channel.queue_declare(queue, passive=True).method.message_count for queue in queues]
    assert sum(counts) == 200
    assert all(counts)
    for queue in queues:
        channel.queue_unbind(queue, "x", "")
    with pytest.raises(UnroutableError):
        channel.basic_publish("x", "", b"", mandatory=True)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (("queue", "q", "key"), "Non empty binding 'key' key not permitted"),
        (("queue", "qq", ""), "Queue type rabbit_quorum_queue not valid for this exchange type"),
        (("exchange", "amq.fanout", ""), "Destination not found"),
    ],
)
def test_a_local_random_exchange_refuses_routing_keys_and_anything_but_classic_queues(
    broker: TestBroker, channel: BlockingChannel, source: tuple[str, str, str], text: str
) -> None:
    """If a binding of an x-local-random exchange has a routing key, or if its destination is not a classic queue, the
    broker refuses the binding with error 406.
    """
    # As in rabbit_exchange_type_local_random of RabbitMQ 4.0.5 and 4.3.5.
    if not broker.differs_since("4.0", "the type is new there"):
        pytest.skip("from 4.0 on")
    kind, name, key = source
    channel.exchange_declare("x", "x-local-random", durable=True)
    channel.queue_declare("q", durable=True)
    channel.queue_declare("qq", durable=True, arguments=QUORUM)
    bind = channel.queue_bind if kind == "queue" else channel.exchange_bind
    assert closed(lambda: bind(name, "x", key)) == (406, f"PRECONDITION_FAILED - {text}")


def test_a_reply_text_longer_than_255_bytes_is_truncated(broker: TestBroker, channel: BlockingChannel) -> None:
    """If the text of an error is longer than 255 bytes, the broker truncates the text, so that it has 255 bytes and
    ends with "...".
    """
    _, text = closed(lambda: channel.queue_declare("x" * 250, passive=True))
    assert (len(text), text[-5:]) == (255, "xx...")
