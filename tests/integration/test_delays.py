"""Delayed messages, through the plugin's exchange type and through wait queues: none early, none lost, and to where
they would have gone without a delay."""

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
    """Publishes messages, held back, to a queue or to an exchange; on a channel of its own."""

    def publish(messages: Iterable[Message], to: Queue | Exchange, routing_key: str = "") -> list[Receipt]:
        channel = connection.channel()
        delaying = Delaying(channel, via, Destination(to), lambda _: None, lambda _: None)
        exchange, key = (to, routing_key) if isinstance(to, Exchange) else (DEFAULT_EXCHANGE, to.name)
        return list(channel.publish(delaying.hold(messages), exchange=exchange, routing_key=key))

    return publish


def received(channel: Channel, queue: Queue, count: int) -> list[Delivery]:
    return list(channel.consume(queue, Receiving(count=count, timeout=60)))


@pytest.mark.parametrize("queue", [CLASSIC, QUORUM], ids=["classic", "quorum"])
@pytest.mark.sampled(2)
def test_none_early_and_none_lost(channel: Channel, publish: Publish, queue: Queue) -> None:
    """Many delays, sent in any order, all confirmed."""
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


def test_what_is_due_earlier_comes_earlier(channel: Channel, publish: Publish) -> None:
    """However they were sent."""
    queue = channel.declare(CLASSIC)
    publish([Message(b"third", delay=4), Message(b"second", delay=2), Message(b"first", delay=0.01)], queue)
    assert [delivery.body for delivery in received(channel, queue, 3)] == [b"first", b"second", b"third"]


def test_a_long_delay_in_front_holds_up_nothing(channel: Channel, publish: Publish) -> None:
    """A message for in an hour is sent first; one for at once comes, and the other does not."""
    queue = channel.declare(CLASSIC)
    publish([Message(b"in an hour", delay=HOUR), Message(b"soon", delay=0.05)], queue)

    assert [delivery.body for delivery in received(channel, queue, 1)] == [b"soon"]
    assert channel.depth_of(queue.name) == 0


def test_a_time_of_arrival(channel: Channel, publish: Publish) -> None:
    """None comes before it, however long before it was sent; what is due already is sent at once."""
    queue = channel.declare(CLASSIC)
    due = time.time() + 2  # longer than publishing both takes
    publish([Message(b"due", due=due), Message(b"overdue", due=time.time() - 5)], queue)

    first, second = received(channel, queue, 2)
    assert (first.body, second.body) == (b"overdue", b"due")
    assert time.time() >= due
    assert first.lateness is not None
    assert first.lateness >= 5000


def test_what_a_message_carries_arrives(channel: Channel, publish: Publish) -> None:
    """Body, id, properties and headers; the delivery mode is persistent, as it may wait for long."""
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
def test_exchanges_route_as_they_would_without_a_delay(
    channel: Channel,
    publish: Publish,
    exchange: Exchange,
    binding: tuple[str, dict[str, object] | None],
    right: Message,
    wrong: Message | None,
) -> None:
    """By key, pattern or header, when the time has come; the routing key is the message's own."""
    channel.declare(exchange)
    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, exchange, binding[0], binding[1])
    sent = [right] if wrong is None else [wrong, right]
    for message in sent:
        message.delay = 1.03  # two waits, in wait queues

    publish(sent, exchange, routing_key="not this one")

    [delivery] = received(channel, queue, 1)
    assert delivery.routing_key == right.routing_key
    assert channel.depth_of(queue.name) == 0


def test_each_message_may_have_an_exchange_and_a_queue_of_its_own(channel: Channel, publish: Publish) -> None:
    """As NDJSON says it: what a message names wins over where the command sends."""
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


@pytest.mark.parametrize("durable", [False, True])
def test_what_nobody_waits_for_is_dropped(channel: Channel, publish: Publish, durable: bool) -> None:
    """As without a delay: a receiver gets what is due from now on, and nothing stands in its way."""
    logs = channel.declare(Exchange("logs", "fanout", durable=durable))
    marker = channel.declare(CLASSIC)
    publish([*(Message(b"before", delay=0.02) for _ in range(100)), Message(b"", "c", "", delay=0.5)], logs)
    received(channel, marker, 1)

    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, logs)
    publish([Message(b"after", delay=0.02)], logs)
    assert [delivery.body for delivery in received(channel, queue, 1)] == [b"after"]
    assert channel.depth_of(queue.name) == 0


def test_the_brokers_own_exchanges_can_be_delayed_to(channel: Channel, publish: Publish) -> None:
    """Names of ours do not start with "amq.", which is reserved."""
    queue = channel.declare(PRIVATE_QUEUE)
    channel.bind(queue, Exchange("amq.topic"), "#")
    publish([Message(b"x", "a.b", delay=0.02)], Exchange("amq.topic", "topic", durable=True))
    publish([Message(b"y", delay=0.02)], queue)
    assert {delivery.body for delivery in received(channel, queue, 2)} == {b"x", b"y"}


@pytest.mark.parametrize("message", [Message(b"", "k", "missing", delay=HOUR), Message(b"", "missing", "", delay=HOUR)])
def test_what_leads_nowhere_is_an_error_now(channel: Channel, publish: Publish, message: Message) -> None:
    """An exchange or a queue that is not there: no message waits an hour to be dropped then."""
    with pytest.raises(Unavailable, match=r"no (exchange|queue) 'missing'"):
        publish([message], channel.declare(CLASSIC))


def test_a_message_that_has_been_delayed_before_can_be_delayed_again(channel: Channel, publish: Publish) -> None:
    """Over and over through the same queue: no broker takes it for one that goes in circles."""
    queue = channel.declare(CLASSIC)
    message = Message(b"x", delay=0.02)
    for _ in range(3):
        publish([message], queue)
        [delivery] = received(channel, queue, 1)
        message = Message(delivery.body, properties=delivery.properties, delay=0.02)
    assert delivery.body == b"x"


@pytest.mark.parametrize("copies", ["CC", "BCC"])
def test_copies_to_other_queues_are_refused(channel: Channel, publish: Publish, copies: str) -> None:
    """They would not wait, or get lost."""
    with pytest.raises(BadData, match="CC"):
        publish([Message(b"", properties={"headers": {copies: ["c"]}}, delay=1)], channel.declare(CLASSIC))


def test_a_receipt_leads_back_to_the_message(channel: Channel, publish: Publish) -> None:
    """Not to what was published in its place; and it knows when it is due."""
    [receipt] = publish([Message(b"x", message_id="m", delay=HOUR)], channel.declare(CLASSIC))
    seen = original(receipt.message)
    assert (seen.body, seen.message_id, seen.routing_key, seen.exchange) == (b"x", "m", None, None)
    assert seen.due == pytest.approx(time.time() + HOUR, abs=60)


def test_wait_queues_expire_and_do_not_before_their_messages(broker: TestBroker, connection: Connection) -> None:
    """x-expires is longer than the time to live; the exchange in front goes with its queue. Where it can lead to quorum
    queues, it is one."""
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
