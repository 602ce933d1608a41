"""Queues: expiry, limits, dead-lettering, priorities, and deletion."""

import json
import time
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tests.brokers import TestBroker
from tests.protocol.conftest import Api, Take

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture(autouse=True)
def confirmed(channel: BlockingChannel) -> None:
    """Put the channel into confirm mode, so that published messages are in their queues before they are counted."""
    channel.confirm_delivery()


def count(channel: BlockingChannel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def dead_lettering(**more: object) -> dict[str, Any]:
    """Arguments of a queue whose dead letters go to the queue `dead`."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"} | {
        name.replace("_", "-"): value for name, value in more.items()
    }


def deaths(properties: BasicProperties) -> list[dict[str, Any]]:
    """The x-death header without the times."""
    headers: Any = properties.headers
    return [{name: value for name, value in death.items() if name != "time"} for death in headers["x-death"]]


@pytest.mark.parametrize("kind", [{}, QUORUM], ids=["classic", "quorum"])
def test_a_message_that_exceeds_its_queues_ttl_is_dead_lettered(
    channel: BlockingChannel, take: Take, kind: dict[str, Any]
) -> None:
    """A message that expires because of its queue's x-message-ttl is dead-lettered. Its x-death header contains the
    queue, the reason, the time and the original exchange.
    """
    channel.queue_declare("dead")
    channel.queue_declare("q", durable=True, arguments={**kind, **dead_lettering(x_message_ttl=50)})
    channel.queue_bind("q", "amq.direct", "k")
    channel.basic_publish("amq.direct", "k", b"x", BasicProperties(headers={"mine": 1}))
    method, properties, body = take.one("dead")
    assert body == b"x"
    assert (method.exchange, method.routing_key, method.redelivered) == ("", "dead", False)
    assert properties.headers["mine"] == 1
    assert deaths(properties) == [
        {"count": 1, "reason": "expired", "queue": "q", "exchange": "amq.direct", "routing-keys": ["k"]}
    ]
    assert abs(properties.headers["x-death"][0]["time"].timestamp() - time.time()) < 60
    first = {name: value for name, value in properties.headers.items() if name.startswith("x-first")}
    assert first == {
        "x-first-death-reason": "expired",
        "x-first-death-queue": "q",
        "x-first-death-exchange": "amq.direct",
    }


def test_a_message_that_expires_is_dead_lettered_without_its_expiration_property(
    channel: BlockingChannel, take: Take
) -> None:
    """A message that expires because of its `expiration` property is dead-lettered without this property. The x-death
    header of the dead letter contains the removed value as original-expiration.
    """
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments=dead_lettering(x_message_ttl=60_000))
    channel.basic_publish("", "q", b"x", BasicProperties(expiration="30"))
    _, properties, _ = take.one("dead")
    assert properties.expiration is None
    assert deaths(properties)[0]["original-expiration"] == "30"


def test_a_classic_queue_dead_letters_an_expired_message_only_at_the_head_of_the_queue(
    channel: BlockingChannel, take: Take
) -> None:
    """A classic queue dead-letters an expired message only after all messages before it have been consumed."""
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments=dead_lettering())
    channel.basic_publish("", "q", b"long")
    channel.basic_publish("", "q", b"short", BasicProperties(expiration="0"))
    assert count(channel, "q") == 2
    assert take.one("q")[2] == b"long"
    assert take.one("dead")[2] == b"short"


def test_a_message_with_expiration_0_is_delivered_only_to_a_waiting_consumer(
    channel: BlockingChannel, take: Take
) -> None:
    """A message with an expiration of 0 is delivered if a consumer is waiting for a message. Otherwise, it expires
    immediately.
    """
    got: list[bytes] = []
    channel.queue_declare("q")
    channel.basic_publish("", "q", b"1", BasicProperties(expiration="0"))
    assert count(channel, "q") == 0
    channel.basic_consume("q", lambda _c, _m, _p, body: got.append(body), auto_ack=True)
    channel.basic_publish("", "q", b"2", BasicProperties(expiration="0"))
    take.until(lambda: got)
    assert got == [b"2"]


def test_a_queue_with_x_expires_is_deleted_when_it_is_unused(
    channel: BlockingChannel, connection: pika.BlockingConnection, take: Take, api: Api, vhost: str
) -> None:
    """The broker deletes a queue with an x-expires of 2 s if the queue has lost its last consumer and no client uses it
    after that.
    """
    channel.queue_declare("q", arguments={"x-expires": 2000})

    def gone() -> bool:
        try:
            # Declaring the queue, even passively, would count as use.
            connection.channel().queue_unbind("q", "amq.direct", "k")
            connection.channel().basic_consume("q", print)
        except ChannelClosedByBroker as error:
            return error.reply_code == 404
        return False

    consumer = connection.channel()
    consumer.basic_consume("q", print)
    consumer.close()
    take.until(lambda: api("GET", f"queues/{vhost}/q")[0] == 404)
    assert gone()


@pytest.mark.parametrize("kind", [{}, QUORUM], ids=["classic", "quorum"])
def test_a_full_queue_dead_letters_its_oldest_message(
    channel: BlockingChannel, take: Take, kind: dict[str, Any]
) -> None:
    """When a queue exceeds its x-max-length, it dead-letters its oldest message with the reason `maxlen`."""
    channel.queue_declare("dead")
    channel.queue_declare("q", durable=True, arguments={**kind, **dead_lettering(x_max_length=2)})
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", "q", body)
    _, properties, body = take.one("dead")
    assert (body, deaths(properties)[0]["reason"]) == (b"1", "maxlen")
    assert take.bodies("q", 2) == [b"2", b"3"]


def test_a_queue_that_exceeds_x_max_length_bytes_drops_its_oldest_messages(
    channel: BlockingChannel, take: Take
) -> None:
    """If the bodies of a queue's messages together exceed x-max-length-bytes, the queue drops its oldest messages. A
    single message that is larger than the limit is dropped immediately.
    """
    channel.queue_declare("q", arguments={"x-max-length-bytes": 10})
    for body in (b"1234567", b"123", b"1"):
        channel.basic_publish("", "q", body)
    assert take.bodies("q", 2) == [b"123", b"1"]
    channel.basic_publish("", "q", b"x" * 11)
    assert count(channel, "q") == 0


def test_a_rejected_message_is_dead_lettered_with_its_routing_keys(channel: BlockingChannel, take: Take) -> None:
    """If a message is rejected and its queue has no x-dead-letter-routing-key, the queue dead-letters the message with
    the message's own routing key and CC header.
    """
    channel.exchange_declare("dlx", "fanout")
    channel.queue_declare("dead")
    channel.queue_bind("dead", "dlx")
    channel.queue_declare("q", arguments={"x-dead-letter-exchange": "dlx"})
    channel.basic_publish("", "q", b"x", BasicProperties(headers={"CC": ["cc"], "BCC": ["bcc"]}))
    channel.basic_reject(take.one("q", auto_ack=False)[0].delivery_tag, requeue=False)
    method, properties, _ = take.one("dead")
    assert (method.exchange, method.routing_key) == ("dlx", "q")
    assert properties.headers["CC"] == ["cc"]
    assert deaths(properties) == [
        {"count": 1, "reason": "rejected", "queue": "q", "exchange": "", "routing-keys": ["q", "cc"]}
    ]


@pytest.mark.parametrize("kind", [{}, QUORUM], ids=["classic", "quorum"])
def test_a_dead_letter_with_a_new_routing_key_is_routed_by_this_key_alone(
    broker: TestBroker, channel: BlockingChannel, take: Take, kind: dict[str, Any]
) -> None:
    """If a queue has an x-dead-letter-routing-key, the keys in a message's CC header no longer route it. RabbitMQ 4
    keeps the header, earlier versions remove it.
    """
    channel.queue_declare("dead")
    channel.queue_declare("copy")
    channel.queue_declare("q", durable=True, arguments={**kind, **dead_lettering()})
    channel.basic_publish("", "q", b"x", BasicProperties(headers={"CC": ["copy"]}))
    assert take.one("copy")[2] == b"x"
    channel.basic_reject(take.one("q", auto_ack=False)[0].delivery_tag, requeue=False)
    _, properties, _ = take.one("dead")
    assert ("CC" in properties.headers) is broker.differs_since("4.0", "CC stays")
    assert deaths(properties)[0]["routing-keys"] == ["q", "copy"]
    assert channel.basic_get("copy")[0] is None


@pytest.mark.parametrize("kind", [{}, QUORUM], ids=["classic", "quorum"])
def test_bcc_routes_a_dead_letter_whenever_it_dies_until_a_queue_gives_it_a_new_key(
    channel: BlockingChannel, take: Take, kind: dict[str, Any]
) -> None:
    """A message that was published with BCC is dead-lettered with these keys, too, every time: but its headers and its
    x-death do not show them. If a queue has an x-dead-letter-routing-key, later queues use this key alone, although
    RabbitMQ 4 keeps the header CC.
    """
    channel.exchange_declare("dlx")
    again, renamed = {"x-dead-letter-exchange": "dlx"}, {"x-dead-letter-routing-key": "new"}
    for queue, arguments, key in (("q", again, "q"), ("blind", {**again, **renamed}, "bcc"), ("copy", again, "cc"),
                                  ("new", again, "new")):  # fmt: skip
        channel.queue_declare(queue, durable=True, arguments={**kind, **arguments})
        if queue != "q":
            channel.queue_bind(queue, "dlx", key)
    channel.basic_publish("", "q", b"x", BasicProperties(headers={"CC": ["cc"], "BCC": ["bcc"]}, delivery_mode=2))
    for queue in ("q", "copy"):
        channel.basic_nack(take.one(queue, auto_ack=False)[0].delivery_tag, requeue=False)
    for dead in ("q", "copy"):
        method, properties, _ = take.one("blind", auto_ack=False)
        assert "BCC" not in properties.headers
        assert deaths(properties)[0] == {
            "count": 1, "reason": "rejected", "queue": dead, "exchange": "dlx" if dead == "copy" else "",
            "routing-keys": ["q", "cc"],
        }  # fmt: skip
        channel.basic_nack(method.delivery_tag, requeue=False)
    for name in ("copy", "new", "new"):
        channel.basic_nack(take.one(name, auto_ack=False)[0].delivery_tag, requeue=False)
    assert deaths(take.one("new")[1])[0]["routing-keys"] == ["new"]
    assert take.one("blind")[2] == b"x"


def test_x_death_counts_repeated_deaths(channel: BlockingChannel, take: Take) -> None:
    """The x-death header has one entry for each queue and reason. The entry's count says how many times this queue
    has dead-lettered the message for this reason. The entry of the most recent death comes first.
    """
    channel.queue_declare("dead", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"})
    channel.queue_declare("q", arguments=dead_lettering())
    channel.basic_publish("", "q", b"x")
    for queue in ("q", "dead", "q"):
        channel.basic_nack(take.one(queue, auto_ack=False)[0].delivery_tag, requeue=False)
    _, properties, _ = take.one("dead")
    assert [(death["queue"], death["reason"], death["count"]) for death in deaths(properties)] == [
        ("q", "rejected", 2),
        ("dead", "rejected", 1),
    ]
    assert properties.headers["x-first-death-queue"] == "q"


def test_an_expired_message_that_would_return_to_its_own_queue_is_dropped(channel: BlockingChannel, take: Take) -> None:
    """If an expired message would be dead-lettered to the queue in which it expired, it is dropped instead of
    circulating forever.
    """
    channel.queue_declare(
        "q", arguments={"x-message-ttl": 20, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
    )
    channel.basic_publish("", "q", b"x")
    take.until(lambda: count(channel, "q") == 0)


def test_dead_letters_to_a_missing_exchange_are_dropped(channel: BlockingChannel) -> None:
    """If a queue's dead-letter exchange does not exist, the queue's dead letters are dropped, and the publisher's
    channel stays open.
    """
    channel.queue_declare("q", arguments={"x-dead-letter-exchange": "none"})
    channel.basic_publish("", "q", b"x", BasicProperties(expiration="0"))
    assert count(channel, "q") == 0
    assert channel.is_open


def test_a_classic_queue_delivers_by_priority(channel: BlockingChannel, take: Take) -> None:
    """A classic queue with x-max-priority delivers messages with a higher priority first, and messages with equal
    priorities in the order in which they were published. A priority above x-max-priority is treated as
    x-max-priority, and a missing priority as 0.
    """
    channel.queue_declare("q", arguments={"x-max-priority": 5})
    for body, priority in ((b"a", None), (b"b", 1), (b"c", 5), (b"d", 9), (b"e", 1), (b"f", 0)):
        channel.basic_publish("", "q", body, BasicProperties(priority=priority))
    assert take.bodies("q", 6) == [b"c", b"d", b"b", b"e", b"a", b"f"]


@pytest.mark.differs_since("4.0", "basic.get of a message that never came back has no x-delivery-count")
def test_a_quorum_queue_counts_requeues_up_to_the_delivery_limit(channel: BlockingChannel, take: Take) -> None:
    """Up to RabbitMQ 4.2, each requeue by basic.nack increments the x-delivery-count of a message in a quorum queue.
    When the count exceeds x-delivery-limit, the message is dead-lettered.
    """
    channel.queue_declare("dead")
    channel.queue_declare("q", durable=True, arguments={**QUORUM, **dead_lettering(x_delivery_limit=2)})
    channel.basic_publish("", "q", b"x")
    seen = []
    for _ in range(3):
        method, properties, _ = take.one("q", auto_ack=False)
        seen.append((method.redelivered, properties.headers["x-delivery-count"]))
        channel.basic_nack(method.delivery_tag)
    assert seen == [(False, 0), (True, 1), (True, 2)]
    _, properties, _ = take.one("dead")
    assert deaths(properties)[0]["reason"] == "delivery_limit"
    assert "x-delivery-count" not in properties.headers


@pytest.mark.differs_since("4.3", "what was given back with a nack is counted as x-acquired-count, and not limited")
def test_a_consumer_gets_x_delivery_count_only_after_a_requeue(channel: BlockingChannel, take: Take) -> None:
    """Up to RabbitMQ 4.2, a consumer of a quorum queue receives a new message without x-delivery-count. After the
    message is requeued, the consumer receives it with an x-delivery-count of 1.
    """
    channel.queue_declare("q", durable=True, arguments={**QUORUM, "x-delivery-limit": 5})
    channel.basic_publish("", "q", b"x")
    seen: list[Any] = []

    def give_back_once(_channel: BlockingChannel, method: Any, properties: BasicProperties, _body: bytes) -> None:
        seen.append(properties.headers)
        if len(seen) == 1:
            channel.basic_nack(method.delivery_tag)

    channel.basic_consume("q", give_back_once)
    take.until(lambda: len(seen) == 2)
    assert seen == [None, {"x-delivery-count": 1}]


def test_a_quorum_queue_replaces_a_delivery_count_that_the_publisher_set(channel: BlockingChannel, take: Take) -> None:
    """If a publisher has set the header x-delivery-count, a quorum queue leaves it unchanged at the first delivery.
    After a requeue, the header contains the queue's own count.
    """
    channel.queue_declare("q", durable=True, arguments={**QUORUM, "x-delivery-limit": 5})
    channel.basic_publish("", "q", b"x", BasicProperties(headers={"x-delivery-count": 1000}))
    seen: list[Any] = []

    def give_back_once(_channel: BlockingChannel, method: Any, properties: BasicProperties, _body: bytes) -> None:
        seen.append((properties.headers or {})["x-delivery-count"])
        if len(seen) == 1:
            channel.basic_reject(method.delivery_tag)

    channel.basic_consume("q", give_back_once)
    take.until(lambda: len(seen) == 2)
    assert seen == [1000, 1]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param({}, b"4213", marks=pytest.mark.differs_since("4.0", "the delivery limit is 20 without one")),
        ({"x-delivery-limit": 5}, b"2134"),
    ],
    ids=["no limit", "limit 5"],
)
def test_a_delivery_limit_decides_where_a_quorum_queue_puts_requeued_messages(
    channel: BlockingChannel, take: Take, limit: dict[str, int], expected: bytes
) -> None:
    """A quorum queue with a delivery limit puts requeued messages in front of all others. A quorum queue without a
    delivery limit, which is the default up to RabbitMQ 3.13, puts them behind all others, in the order in which they
    were requeued.
    """
    channel.queue_declare("q", durable=True, arguments={**QUORUM, **limit})
    for number in b"1234":
        channel.basic_publish("", "q", bytes([number]))
    tags = [take.one("q", auto_ack=False)[0].delivery_tag for _ in range(3)]
    for index in (1, 0, 2):
        channel.basic_nack(tags[index])
    take.until(lambda: count(channel, "q") == 4)
    assert b"".join(take.bodies("q", 4)) == expected


@pytest.mark.parametrize("kind", [{}, QUORUM], ids=["classic", "quorum"])
def test_unacknowledged_messages_of_a_closed_channel_are_redelivered_before_newer_ones(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take, kind: dict[str, str]
) -> None:
    """When a channel is closed, its unacknowledged messages are redelivered in their original order, before newer
    messages.
    """
    channel.queue_declare("q", durable=True, arguments=kind)
    for number in b"1234":
        channel.basic_publish("", "q", bytes([number]))
    other = connection.channel()
    for _ in range(3):
        Take(other).one("q", auto_ack=False)
    other.close()
    take.until(lambda: count(channel, "q") == 4)
    assert b"".join(take.bodies("q", 4)) == b"1234"


def test_an_auto_delete_queue_is_deleted_when_its_last_consumer_is_cancelled(channel: BlockingChannel) -> None:
    """An auto-delete queue is deleted when its last consumer is cancelled, and not before."""
    channel.queue_declare("q", auto_delete=True)
    tags = [channel.basic_consume("q", print) for _ in range(2)]
    channel.basic_cancel(tags[0])
    assert count(channel, "q") == 0
    channel.basic_cancel(tags[1])
    with pytest.raises(ChannelClosedByBroker) as closed:
        count(channel, "q")
    assert closed.value.reply_code == 404


def test_an_exclusive_queue_is_deleted_with_its_connection(
    connect: Callable[..., pika.BlockingConnection], connection: pika.BlockingConnection, take: Take
) -> None:
    """When a connection is closed, its exclusive queues are deleted, even those that were declared durable."""
    other = connect()
    other.channel().queue_declare("q", exclusive=True, durable=True)
    other.close()

    def gone() -> bool:
        try:
            count(connection.channel(), "q")
        except ChannelClosedByBroker as error:
            return error.reply_code == 404
        return False

    take.until(gone)


def test_queue_purge_and_queue_delete_return_the_number_of_ready_messages(channel: BlockingChannel, take: Take) -> None:
    """queue.purge and queue.delete return the number of ready messages. They do not count unacknowledged messages."""
    channel.queue_declare("q")
    for _ in range(3):
        channel.basic_publish("", "q", b"x")
    take.one("q", auto_ack=False)
    assert channel.queue_purge("q").method.message_count == 2
    channel.basic_publish("", "q", b"x")
    assert channel.queue_delete("q").method.message_count == 1
    assert channel.queue_delete("q").method.message_count == 0


def test_x_death_can_be_encoded_as_json_except_for_the_time(channel: BlockingChannel, take: Take) -> None:
    """A client that uses pika can encode the entries of a dead letter's x-death header as JSON. The exception is an
    entry's time, which pika decodes as a datetime.
    """
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments=dead_lettering(x_max_length=0))
    channel.basic_publish("", "q", b"x")
    _, properties, _ = take.one("dead")
    assert json.loads(json.dumps(deaths(properties)))[0]["count"] == 1
