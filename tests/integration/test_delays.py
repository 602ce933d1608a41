"""Delayed messages through the plugin and through wait queues: none is early or lost, and each is routed by its own
key and headers.
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from mqtool.amqp import Channel, Connection, Receiving
from mqtool.delays import Via, original
from mqtool.delays.delay_plugin import has_plugin
from mqtool.delays.destinations import Destination
from mqtool.delays.holding import Delaying
from mqtool.errors import BadData, Unavailable
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.topology import DEFAULT_EXCHANGE, PRIVATE_QUEUE, Exchange, Queue
from mqtool.tutorials.dialects import DELAY_EXCHANGE
from tests.brokers import TestBroker

CLASSIC = Queue("c", durable=True)
QUORUM = Queue("q", durable=True, arguments={"x-queue-type": "quorum"})
#: Long enough to never arrive while a test runs.
HOUR = 3600.0

Publish = Callable[..., list[Receipt]]


@pytest.fixture
def channel(connection: Connection) -> Channel:
    return connection.channel()


@pytest.fixture(params=list(Via)[1:], ids=str)
def via(request: pytest.FixtureRequest, channel: Channel) -> Via:
    if request.param is Via.PLUGIN and not has_plugin(channel, DELAY_EXCHANGE):
        pytest.skip("this broker has no delayed message plugin")
    return Via(request.param)


@pytest.fixture
def publish(connection: Connection, via: Via) -> Publish:
    """Publish delayed messages to a queue or an exchange, on another channel."""

    def publish(messages: Iterable[Message], to: Queue | Exchange, routing_key: str = "") -> list[Receipt]:
        channel = connection.channel()
        delaying = Delaying(channel, via, Destination(to), lambda _: None, lambda _: None)
        exchange, key = (to, routing_key) if isinstance(to, Exchange) else (DEFAULT_EXCHANGE, to.name)
        return list(channel.publish(delaying.hold(messages), exchange=exchange, routing_key=key))

    return publish


def received(channel: Channel, queue: Queue, count: int) -> list[Delivery]:
    return list(channel.consume(queue, Receiving(count=count, timeout=60)))


@pytest.mark.parametrize("queue", [CLASSIC, QUORUM], ids=["classic", "quorum"])
@pytest.mark.sampled(4)
def test_all_delayed_messages_arrive_and_none_arrives_early(channel: Channel, publish: Publish, queue: Queue) -> None:
    """If 200 messages with different delays are published in random order, all of them arrive, and none arrives before
    it is due.
    """
    queue = channel.declare(queue)
    delays = [7 * number for number in range(200)]
    random.Random(1).shuffle(delays)
    deliveries = channel.consume(queue, Receiving(count=len(delays), timeout=60))

    receipts = publish((Message(b"%d" % delay, delay=delay / 1000) for delay in delays), queue)

    assert {receipt.confirmation for receipt in receipts} == {Confirmation.CONFIRMED}
    came = []
    for delivery in deliveries:
        assert delivery.lateness is not None
        assert delivery.lateness >= 0, "early"
        came.append(int(delivery.body))
    assert sorted(came) == sorted(delays)


def test_delayed_messages_arrive_in_the_order_in_which_they_are_due(channel: Channel, publish: Publish) -> None:
    """Three delayed messages arrive in the order in which they are due, not in the order in which they were
    published.
    """
    queue = channel.declare(CLASSIC)
    publish([Message(b"third", delay=4), Message(b"second", delay=2), Message(b"first", delay=0.01)], queue)
    assert [delivery.body for delivery in received(channel, queue, 3)] == [b"first", b"second", b"third"]


def test_a_message_with_a_long_delay_does_not_hold_up_one_with_a_short_delay(
    channel: Channel, publish: Publish
) -> None:
    """A message with a delay of 50 ms does not wait for a message with a delay of an hour that was published
    before it.
    """
    queue = channel.declare(CLASSIC)
    publish([Message(b"in an hour", delay=HOUR), Message(b"soon", delay=0.05)], queue)

    assert [delivery.body for delivery in received(channel, queue, 1)] == [b"soon"]
    assert channel.depth_of(queue.name) == 0


def test_a_message_with_a_due_time_does_not_arrive_before_that_time(channel: Channel, publish: Publish) -> None:
    """A message can have a due time instead of a delay. It does not arrive before this time. If the due time has
    already passed, the message is not delayed.
    """
    queue = channel.declare(CLASSIC)
    due = time.time() + 2  # longer than publishing both takes
    publish([Message(b"due", due=due), Message(b"overdue", due=time.time() - 5)], queue)

    first, second = received(channel, queue, 2)
    assert (first.body, second.body) == (b"overdue", b"due")
    assert time.time() >= due
    assert first.lateness is not None
    assert first.lateness >= 5000


def test_a_delayed_message_keeps_its_body_properties_and_headers(channel: Channel, publish: Publish) -> None:
    """A delayed message keeps its body, properties and headers. Only its delivery mode changes: the message becomes
    persistent, because it may wait for a long time.
    """
    queue = channel.declare(CLASSIC)
    headers = {"n": 1, "nested": {"x": [1, 2]}}
    properties = {"content_type": "text/plain", "priority": 3, "correlation_id": "c", "headers": headers}
    publish([Message(b"\xff\0", properties=properties, message_id="m", delay=0.02)], queue)

    [delivery] = received(channel, queue, 1)
    assert delivery.body == b"\xff\0"
    assert {name: value for name, value in delivery.properties.items() if name != "headers" and value is not None} == {
        "content_type": "text/plain",
        "priority": 3,
        "correlation_id": "c",
        "message_id": "m",
        "delivery_mode": 2,
    }
    assert {name: value for name, value in delivery.headers.items() if name in headers} == headers


@pytest.mark.parametrize(
    ("exchange", "binding", "right", "wrong"),
    [
        (Exchange("x", "direct"), ("error", None), Message(b"", "error"), Message(b"", "info")),
        (Exchange("x", "topic"), ("kern.*", None), Message(b"", "kern.info"), Message(b"", "cron.info")),
        (Exchange("x", "fanout"), ("", None), Message(b"", "any"), None),
        (
            Exchange("x", "headers"),
            ("", {"x-match": "all", "format": "pdf", "n": 1}),
            Message(b"", "any", properties={"headers": {"format": "pdf", "n": 1, "more": "x"}}),
            Message(b"", "any", properties={"headers": {"format": "pdf", "n": 2}}),
        ),
    ],
    ids=["direct", "topic", "fanout", "headers"],
)
@pytest.mark.sampled(5)
def test_delayed_messages_are_routed_by_their_own_key_and_headers(
    channel: Channel,
    publish: Publish,
    exchange: Exchange,
    binding: tuple[str, dict[str, object] | None],
    right: Message,
    wrong: Message | None,
) -> None:
    """When a delayed message is due, a direct, topic, fanout or headers exchange routes it by its own routing key and
    headers. The routing key that the caller passes to publish() applies only to messages without a routing key.
    """
    channel.declare(exchange)
    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, exchange, binding[0], binding[1])
    sent = [right] if wrong is None else [wrong, right]
    for message in sent:
        message.delay = 1.03  # with wait queues, in two steps

    publish(sent, exchange, routing_key="not this one")

    [delivery] = received(channel, queue, 1)
    assert delivery.routing_key == right.routing_key
    assert channel.depth_of(queue.name) == 0


def test_a_delayed_messages_own_exchange_and_key_override_those_of_publish(channel: Channel, publish: Publish) -> None:
    """If a Message object that a program passes to publish() has a delay, an exchange and a routing key, mqtool routes
    the message by this exchange and this key when it is due. It ignores the exchange and the routing key that are
    arguments of publish().
    """
    channel.declare(Exchange("other", "direct"))
    queue = channel.declare(CLASSIC)
    elsewhere = channel.declare(Queue("elsewhere", durable=True))
    channel.bind(queue, Exchange("other"), "k")
    publish(
        [
            Message(b"1", "k", "other", delay=0.02),
            Message(b"2", "elsewhere", "", delay=0.02),
            Message(b"3", delay=0.02),
        ],
        queue,
    )

    assert {delivery.body for delivery in received(channel, queue, 2)} == {b"1", b"3"}
    assert [delivery.body for delivery in received(channel, elsewhere, 1)] == [b"2"]


@pytest.mark.parametrize("durable", [False, True], ids=["transient", "durable"])
@pytest.mark.sampled(4)
def test_delayed_messages_are_dropped_if_no_queue_is_bound_when_they_are_due(
    channel: Channel, publish: Publish, durable: bool
) -> None:
    """If no queue is bound to the exchange of a delayed message when the message is due, the message is dropped. If a
    queue is bound after that, delayed messages that are published later reach this queue.
    """
    logs = channel.declare(Exchange("logs", "fanout", durable=durable))
    marker = channel.declare(CLASSIC)
    publish([*(Message(b"before", delay=0.02) for _ in range(100)), Message(b"", "c", "", delay=0.5)], logs)
    received(channel, marker, 1)

    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, logs)
    publish([Message(b"after", delay=0.02)], logs)
    assert [delivery.body for delivery in received(channel, queue, 1)] == [b"after"]
    assert channel.depth_of(queue.name) == 0


def test_messages_to_exchanges_and_queues_whose_names_begin_with_amq_can_be_delayed(
    channel: Channel, publish: Publish
) -> None:
    """Although names that begin with "amq." are reserved, messages to the exchange amq.topic, or to a queue whose
    generated name begins with "amq.gen", can be delayed.
    """
    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, Exchange("amq.topic"), "#")
    publish([Message(b"x", "a.b", delay=0.02)], Exchange("amq.topic", "topic", durable=True))
    publish([Message(b"y", delay=0.02)], queue)
    assert {delivery.body for delivery in received(channel, queue, 2)} == {b"x", b"y"}


@pytest.mark.parametrize(
    "message",
    [Message(b"", "k", "missing", delay=HOUR), Message(b"", "missing", "", delay=HOUR)],
    ids=["exchange", "queue"],
)
@pytest.mark.sampled(4)
def test_publishing_a_delayed_message_to_a_missing_exchange_or_queue_fails_immediately(
    channel: Channel, publish: Publish, message: Message
) -> None:
    """If a message with a delay of an hour is published to an exchange or a queue that does not exist, publishing
    raises Unavailable immediately, not when the message is due.
    """
    with pytest.raises(Unavailable, match=r"no (exchange|queue) 'missing'"):
        publish([message], channel.declare(CLASSIC))


def test_a_message_can_be_delayed_again_each_time_that_it_is_received(channel: Channel, publish: Publish) -> None:
    """A message that has been received from a queue can be published to the same queue again, with a new delay,
    several times. The broker does not mistake this for a dead-letter cycle, and drops nothing.
    """
    queue = channel.declare(CLASSIC)
    message = Message(b"x", delay=0.02)
    for _ in range(3):
        publish([message], queue)
        [delivery] = received(channel, queue, 1)
        message = Message(delivery.body, properties=delivery.properties, delay=0.02)
    assert delivery.body == b"x"


@pytest.mark.parametrize("copies", ["CC", "BCC"])
@pytest.mark.sampled(4)
def test_a_delayed_message_with_a_cc_or_bcc_header_is_refused(channel: Channel, publish: Publish, copies: str) -> None:
    """Publishing a delayed message with a CC or BCC header raises BadData, because the copies would arrive without the
    delay or be lost.
    """
    with pytest.raises(BadData, match="CC"):
        publish([Message(b"", properties={"headers": {copies: ["c"]}}, delay=1)], channel.declare(CLASSIC))


def test_original_returns_the_callers_message_from_the_receipt_of_a_delayed_message(
    channel: Channel, publish: Publish
) -> None:
    """publish() changes a message in order to delay it, and returns a receipt with the changed message. The function
    original() turns this message back into the one that the program passed to publish(), and sets its attribute `due`
    to the time at which the message is due.
    """
    [receipt] = publish([Message(b"x", message_id="m", delay=HOUR)], channel.declare(CLASSIC))
    seen = original(receipt.message)
    assert (seen.body, seen.message_id, seen.routing_key, seen.exchange) == (b"x", "m", None, None)
    assert seen.due == pytest.approx(time.time() + HOUR, abs=60)


def test_wait_queues_outlive_their_messages_and_their_type_depends_on_the_destination(
    broker: TestBroker, connection: Connection
) -> None:
    """mqtool delays messages in wait queues. A wait queue's x-expires exceeds its x-message-ttl, so the queue is not
    deleted before its messages expire. It is a quorum queue if the destination is a quorum queue or a durable
    exchange, and a classic queue if the destination is a non-durable exchange. The exchanges that mqtool declares for
    wait queues are auto-delete.
    """
    channel = connection.channel()
    logs = [Exchange("logs", "fanout"), Exchange("durable", "fanout", durable=True)]
    for destination in (Destination(channel.declare(QUORUM)), *(Destination(channel.declare(each)) for each in logs)):
        delaying = Delaying(channel, Via.TTL, destination, lambda _: None, lambda _: None)
        list(channel.publish(delaying.hold([Message(b"", delay=59.99)]), routing_key="q"))

    for name, to, kind in (
        ("q.delay.1m", "", "quorum"),
        ("logs.exchange.delay.1m.classic", "logs", "classic"),
        ("durable.exchange.delay.1m", "durable.due", "quorum"),
    ):
        queue: Any = broker.api("GET", f"queues/{broker.vhost}/{name}")
        assert queue["arguments"]["x-message-ttl"] == 60_000
        assert queue["arguments"]["x-expires"] > 60_000
        assert queue["arguments"]["x-dead-letter-exchange"] == to
        assert queue["type"] == kind
    for name in ("logs.exchange.delay.1m.classic", "durable.exchange.delay.1m", "durable.due"):
        exchange: Any = broker.api("GET", f"exchanges/{broker.vhost}/{name}")
        assert exchange["auto_delete"]
