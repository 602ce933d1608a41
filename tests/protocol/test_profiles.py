"""`--like`: each version that the embedded broker imitates, tested beside that version of RabbitMQ
if it is available.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

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


def test_the_default_delivery_limit_depends_on_the_version(
    broker: TestBroker, channel: BlockingChannel, take: Take, quorum: Callable[..., str]
) -> None:
    """Up to RabbitMQ 3.13, a quorum queue has no default delivery limit. From 4.0 on, the default is 20, so the queue
    drops a message when it is requeued for the 21st time. From 4.3 on, requeues by basic.nack do not count towards
    this limit.
    """
    queue = quorum()
    give_back = channel.basic_reject if broker.differs_since("4.3", "a nack does not count") else channel.basic_nack
    for _ in range(21):
        give_back(take.one(queue, auto_ack=False)[0].delivery_tag)
    if broker.differs_since("4.0", "the limit is 20"):
        take.until(lambda: channel.queue_declare(queue, passive=True).method.message_count == 0)
    else:
        assert take.one(queue)[2] == b"x"


def test_delivery_counts_depend_on_the_version(
    broker: TestBroker, channel: BlockingChannel, take: Take, quorum: Callable[..., str]
) -> None:
    """Up to RabbitMQ 4.2, the x-delivery-count of a quorum queue's message counts every requeue: by basic.nack, by
    basic.reject or by closing the channel. From 4.3 on, x-acquired-count counts every requeue, and x-delivery-count
    counts all but those by basic.nack.
    """
    queue, seen = quorum(), []
    for give_back in (channel.basic_nack, channel.basic_reject, channel.basic_recover):
        method, properties, _ = take.one(queue, auto_ack=False)
        seen.append(properties.headers)
        if give_back == channel.basic_recover:
            channel.close()
        else:
            give_back(method.delivery_tag)
    seen.append(Take(channel.connection.channel()).one(queue)[1].headers)
    if broker.differs_since("4.3", "all are counted, and those that failed"):
        failed = [{}, {"x-delivery-count": 1}, {"x-delivery-count": 2}]
        assert seen == [None, *({"x-acquired-count": number, **failed[number - 1]} for number in (1, 2, 3))]
    else:
        first = None if broker.differs_since("4.0", "a first delivery has no count") else {"x-delivery-count": 0}
        assert seen == [first, *({"x-delivery-count": number} for number in (1, 2, 3))]


@pytest.mark.parametrize("reject", ["basic_nack", "basic_reject"])
def test_a_dead_letter_carries_its_delivery_count_from_4_3_on(
    broker: TestBroker, channel: BlockingChannel, take: Take, quorum: Callable[..., str], reject: str
) -> None:
    """From RabbitMQ 4.3 on, a quorum queue that gets a dead letter continues to count its failed deliveries, including
    one that ended with basic.reject, but not with basic.nack. A dead letter that is over the limit of its new queue is
    dropped if it is requeued in any way. Up to 4.2, the count starts again.
    """
    dead = f"dead-{uuid.uuid4().hex[:8]}"
    channel.queue_declare(dead, durable=True, arguments={**QUORUM, "x-delivery-limit": 1})
    source = quorum(**{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    for requeue in (channel.basic_nack, channel.basic_reject, channel.basic_reject):
        requeue(take.one(source, auto_ack=False)[0].delivery_tag)
    getattr(channel, reject)(take.one(source, auto_ack=False)[0].delivery_tag, requeue=False)
    method, properties, _ = take.one(dead, auto_ack=False)
    counts = {name: value for name, value in properties.headers.items() if name.endswith("-count")}
    if broker.differs_since("4.3", "a dead letter carries its count"):
        count = 3 if reject == "basic_reject" else 2
        assert (method.redelivered, counts) == (True, {"x-acquired-count": count, "x-delivery-count": count})
        channel.basic_nack(method.delivery_tag)
        take.until(lambda: channel.queue_declare(dead, passive=True).method.message_count == 0)
        assert channel.basic_get(dead)[0] is None
    else:
        assert not method.redelivered
        assert set(counts.values()) <= {0}
    channel.queue_delete(dead)


def test_the_position_of_a_requeued_message_depends_on_the_version(
    broker: TestBroker, channel: BlockingChannel, take: Take, quorum: Callable[..., str]
) -> None:
    """Up to RabbitMQ 4.2, a quorum queue without a delivery limit (x-delivery-limit -1) puts a requeued message
    behind its other messages. From 4.3 on, it puts the message in front of them.
    """
    limit = {"x-delivery-limit": -1} if broker.differs_since("4.0", "there is a limit") else {}
    queue = quorum(body=b"1", **limit)
    channel.basic_publish("", queue, b"2")
    channel.basic_nack(take.one(queue, auto_ack=False)[0].delivery_tag)
    take.until(lambda: channel.queue_declare(queue, passive=True).method.message_count == 2)
    is_first = broker.differs_since("4.3", "it comes first")
    assert take.bodies(queue, 2) == ([b"1", b"2"] if is_first else [b"2", b"1"])


def test_priorities_of_quorum_queues_depend_on_the_version(
    broker: TestBroker, channel: BlockingChannel, take: Take
) -> None:
    """In RabbitMQ 3.10, quorum queues ignore priorities. In 4.0 to 4.2, they have two priorities, and deliver two
    messages with the higher priority for each one with the lower. From 4.3 on, they have 32 priorities.
    """
    channel.queue_declare("q", durable=True, arguments=QUORUM)
    for body, priority in ((b"a", None), (b"b", 1), (b"c", 5), (b"d", 9), (b"e", 7), (b"f", 200)):
        channel.basic_publish("", "q", body, BasicProperties(priority=priority))
    take.until(lambda: channel.queue_declare("q", passive=True).method.message_count == 6)
    expected = b"abcdef"
    if broker.differs_since("4.0", "two priorities"):
        expected = b"cdaefb"
    if broker.differs_since("4.3", "32 priorities"):
        expected = b"fdecab"
    assert b"".join(take.bodies("q", 6)) == expected


def test_a_quorum_queue_with_x_max_priority_is_refused(broker: TestBroker, channel: BlockingChannel) -> None:
    """Every version of RabbitMQ refuses to declare a quorum queue with x-max-priority, even 4.3, in which quorum
    queues have priorities.
    """
    arguments = {**QUORUM, "x-max-priority": 5}
    why = f"invalid arg 'x-max-priority' for queue 'q' in vhost '{broker.vhost}' of queue type rabbit_quorum_queue"
    refused = closed(lambda: channel.queue_declare("q", durable=True, arguments=arguments))
    assert refused == (406, f"PRECONDITION_FAILED - {why}")


def test_the_broker_adds_to_a_count_in_a_publishers_x_death_header_only_before_rabbitmq_4_0(
    broker: TestBroker, channel: BlockingChannel, take: Take
) -> None:
    """Up to RabbitMQ 3.13, the broker increases the count in an x-death header that the publisher has set. From 4.0 on,
    the broker counts from 1, and adds x-last-death headers to dead letters.
    """
    channel.queue_declare("dead", durable=True)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("q", durable=True, arguments=arguments)
    counts = []
    headers = None
    for _ in range(2):
        channel.basic_publish("", "q", b"x", BasicProperties(headers=headers))
        channel.basic_reject(take.one("q", auto_ack=False)[0].delivery_tag, requeue=False)
        headers = take.one("dead")[1].headers
        counts.append(headers["x-death"][0]["count"])
    distrusts = broker.differs_since("4.0", "it does not count what a client says")
    assert counts == ([1, 1] if distrusts else [1, 2])
    assert headers.get("x-last-death-reason") == ("rejected" if distrusts else None)


def test_x_death_counts_rise_in_a_dead_letter_cycle_in_every_version(
    broker: TestBroker, channel: BlockingChannel, take: Take
) -> None:
    """If a message goes back and forth between two queues, and each queue dead-letters it twice, its x-death header has
    a count of 2 for each queue. This is the same in every version of RabbitMQ.
    """
    for name, other, ttl in (("a", "b", {}), ("b", "a", {"x-message-ttl": 1})):
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": other, **ttl}
        channel.queue_declare(name, durable=True, arguments=arguments)
    channel.basic_publish("", "a", b"x")
    for _ in range(2):
        channel.basic_reject(take.one("a", auto_ack=False)[0].delivery_tag, requeue=False)
    deaths = take.one("a")[1].headers["x-death"]
    assert [(death["queue"], death["reason"], death["count"]) for death in deaths] == [
        ("b", "expired", 2),
        ("a", "rejected", 2),
    ]


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


def test_arguments_of_classic_queues_depend_on_the_version(
    broker: TestBroker, connection: pika.BlockingConnection, connect: Callable[..., pika.BlockingConnection]
) -> None:
    """Up to RabbitMQ 4.2, the broker refuses a classic queue with an invalid x-queue-mode, but accepts x-queue-version
    1 and x-queue-master-locator. From 4.3 on, it ignores x-queue-mode, and refuses the other two arguments.
    """
    has_gone = broker.differs_since("4.3", "they are gone")

    def declare(argument: str, value: object, connection: pika.BlockingConnection = connection) -> None:
        connection.channel().queue_declare("", durable=True, arguments={argument: value})

    if has_gone:
        declare("x-queue-mode", "eager")
        assert "unsupported queue version '1'" in closed(lambda: declare("x-queue-version", 1))[1]
        code, text = closed(lambda: declare("x-queue-master-locator", "client-local", connect()))
        assert (code, text.partition(".")[0]) == (541, "INTERNAL_ERROR - Feature `queue_master_locator` is deprecated")
    else:
        assert "unsupported queue mode 'eager'" in closed(lambda: declare("x-queue-mode", "eager"))[1]
        declare("x-queue-version", 1)
        declare("x-queue-master-locator", "client-local")


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


@pytest.mark.parametrize(
    ("which", "give_back", "is_held"),
    [
        ("all", "basic_nack", True),
        ("all", "basic_reject", True),
        ("failed", "basic_nack", False),
        ("failed", "basic_reject", True),
        ("returned", "basic_nack", True),
        ("returned", "basic_reject", False),
    ],
)
def test_x_delayed_retry_type_decides_which_requeued_messages_are_delayed(
    broker: TestBroker,
    channel: BlockingChannel,
    take: Take,
    quorum: Callable[..., str],
    which: str,
    give_back: str,
    is_held: bool,
) -> None:
    """From RabbitMQ 4.3 on, the argument x-delayed-retry-type of a quorum queue decides which requeued messages are
    delayed. With `returned`, these are the messages requeued by basic.nack; with `failed`, those requeued by
    basic.reject; with `all`, both.
    """
    queue = quorum(body=b"1", **{"x-delayed-retry-type": which, "x-delayed-retry-min": 60_000})
    getattr(channel, give_back)(take.one(queue, auto_ack=False)[0].delivery_tag)
    channel.basic_publish("", queue, b"2")
    is_held = is_held and broker.differs_since("4.3", "it is held back")
    assert take.one(queue)[2] == (b"2" if is_held else b"1")
    take.until(lambda: is_held or channel.queue_declare(queue, passive=True).method.message_count == 1)
    assert channel.queue_purge(queue).method.message_count == 1


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
    assert channel.queue_delete(queue).method.message_count == 1


def test_the_delay_of_delayed_retries_grows_up_to_the_maximum(
    broker: TestBroker, channel: BlockingChannel, take: Take, api: Api, vhost: str
) -> None:
    """From RabbitMQ 4.3 on, if a consumer of a quorum queue rejects and requeues a message, a policy can delay its
    redelivery. The delay grows each time the same message is rejected, up to the policy's delayed-retry-max.
    """
    if not broker.differs_since("4.3", "it is held back"):
        pytest.skip("RabbitMQ delays no retries before 4.3")
    definition = {"delayed-retry-type": "failed", "delayed-retry-min": 100, "delayed-retry-max": 150}
    api("PUT", f"policies/{vhost}/p", {"pattern": "^q$", "definition": definition})
    channel.queue_declare("q", durable=True, arguments=QUORUM)
    channel.basic_publish("", "q", b"x")
    times: list[float] = []

    def reject_twice(_channel: BlockingChannel, method: Any, _properties: BasicProperties, _body: bytes) -> None:
        times.append(time.monotonic())
        if len(times) < 3:
            channel.basic_reject(method.delivery_tag)

    channel.basic_consume("q", reject_twice)
    take.until(lambda: len(times) == 3)
    # The broker counts whole milliseconds.
    assert times[1] - times[0] >= 0.099
    assert times[2] - times[1] >= 0.149


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
