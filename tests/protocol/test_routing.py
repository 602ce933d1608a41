"""Routing: exchange types, bindings between exchanges, alternate exchanges, CC and BCC."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.compat import long
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from tests.brokers import TestBroker
from tests.protocol.conftest import AnyHeaders, Api, Take


@pytest.fixture(autouse=True)
def confirmed(channel: BlockingChannel) -> None:
    """Put the channel into confirm mode, so that published messages are in their queues before they are counted."""
    channel.confirm_delivery()


def count(channel: BlockingChannel, queue: str) -> int:
    """Return the number of ready messages."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.", True),
        ("*", "", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        pytest.param("#.#.#", "a", True, marks=pytest.mark.differs_since("4.3", "a binding key has at most two #")),
        ("*.#", "", False),
        ("#.*", "a.b", True),
        ("..", "..", True),
        ("*..b", "a..b", True),
        ("", "", True),
        ("", "a", False),
        ("a.*.#", "a.#", True),
        ("#", "#", True),
        ("a.#", "b", False),
    ],
)
def test_wildcards_in_a_binding_key_of_a_topic_exchange_match_words(
    channel: BlockingChannel, pattern: str, key: str, matches: bool
) -> None:
    """As in RabbitMQ, the binding key of a topic exchange matches a routing key word by word. In the binding key, `*`
    matches exactly one word, and `#` matches zero or more words.
    """
    channel.queue_declare("q")
    channel.queue_bind("q", "amq.topic", pattern)
    channel.basic_publish("amq.topic", key, b"x")
    assert count(channel, "q") == matches


_KINDS_OF_NUMBERS = pytest.mark.differs_since("4.0", "a headers exchange tells kinds of numbers apart")


@pytest.mark.parametrize(
    ("arguments", "headers", "matches"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 1}, True),
        ({"x-match": "any", "a": 1}, {"a": 2}, False),
        ({"x-match": "any"}, {"a": 2}, False),
        ({}, {"a": 2}, True),
        ({}, {}, True),
        ({"a": None}, {"a": "whatever"}, True),
        ({"a": None}, {"b": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": 1}, {"a": True}, False),
        ({"x-a": 1}, {}, True),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
        ({"x-match": "all-with-x", "x-a": 1}, {}, False),
        ({"x-match": "all-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"x-match": "any-with-x", "x-a": 1, "b": 1}, {"x-a": 1}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, True),
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": 1}, {"a": 2**40}, False),
        ({"a": 1}, {"a": long(1)}, True),
        pytest.param({"a": 1}, {"a": 1.0}, True, marks=_KINDS_OF_NUMBERS),
        pytest.param({"a": 1}, {"a": datetime.fromtimestamp(1, UTC)}, True, marks=_KINDS_OF_NUMBERS),
        ({"a": "b"}, {"a": b"b"}, True),
        ({"a": [1]}, {"a": [long(1)]}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "b": 1}}, False),
    ],
    ids=str,
)
def test_a_binding_of_a_headers_exchange_matches_all_or_any_of_its_arguments(
    channel: BlockingChannel, arguments: dict[str, Any], headers: dict[str, Any], matches: bool
) -> None:
    """With x-match `all`, the default, a binding of a headers exchange matches a message whose headers contain all of
    the binding's arguments. With `any`, one of the arguments is enough. Arguments whose names begin with x- are
    ignored unless x-match is `all-with-x` or `any-with-x`. An argument without a value matches any value.
    """
    channel.queue_declare("q")
    channel.queue_bind("q", "amq.headers", "", arguments=arguments)
    properties = AnyHeaders if float in map(type, headers.values()) else BasicProperties
    channel.basic_publish("amq.headers", "k", b"x", properties(headers=headers))
    assert count(channel, "q") == matches


def test_a_queue_gets_a_message_once_even_if_several_bindings_match(channel: BlockingChannel) -> None:
    """If a message matches several bindings that lead to the same queue, the queue receives the message only once."""
    channel.queue_declare("q")
    channel.exchange_declare("next", "fanout")
    channel.queue_bind("q", "next")
    channel.exchange_bind("next", "amq.topic", "#")
    for pattern in ("#", "a.*", "*.b"):
        channel.queue_bind("q", "amq.topic", pattern)
    channel.basic_publish("amq.topic", "a.b", b"x")
    assert count(channel, "q") == 1


def test_exchanges_bound_in_a_cycle_route_a_message_once(channel: BlockingChannel) -> None:
    """If two exchanges are bound to each other, a queue that is bound to one of them gets each message once."""
    channel.queue_declare("q")
    for name in ("one", "two"):
        channel.exchange_declare(name, "fanout")
    channel.exchange_bind("one", "two")
    channel.exchange_bind("two", "one")
    channel.queue_bind("q", "two")
    channel.basic_publish("one", "", b"x")
    assert count(channel, "q") == 1


def test_queue_unbind_removes_only_the_binding_with_the_given_key_and_arguments(channel: BlockingChannel) -> None:
    """queue.unbind removes only the binding that has exactly the given routing key and arguments."""
    channel.queue_declare("q")
    channel.queue_bind("q", "amq.direct", "k", arguments={"a": 1})
    channel.queue_bind("q", "amq.direct", "k")
    channel.queue_unbind("q", "amq.direct", "k")
    channel.basic_publish("amq.direct", "k", b"x")
    assert count(channel, "q") == 1
    channel.queue_unbind("q", "amq.direct", "k", arguments={"a": 1})
    channel.basic_publish("amq.direct", "k", b"x")
    assert count(channel, "q") == 1


def test_an_alternate_exchange_gets_unmatched_messages(channel: BlockingChannel, take: Take) -> None:
    """A message that matches no binding of an exchange goes to the exchange's alternate exchange. If no queue is bound
    to the alternate exchange either, a mandatory message is returned as unroutable.
    """
    channel.exchange_declare("rest", "fanout")
    channel.exchange_declare("x", "direct", arguments={"alternate-exchange": "rest"})
    channel.queue_declare("q")
    channel.queue_bind("q", "rest")
    channel.queue_declare("wanted")
    channel.queue_bind("wanted", "x", "k")
    channel.basic_publish("x", "k", b"1", mandatory=True)
    channel.basic_publish("x", "other", b"2", mandatory=True)
    assert take.bodies("q", 1) == [b"2"]
    assert take.bodies("wanted", 1) == [b"1"]
    channel.queue_unbind("q", "rest")
    with pytest.raises(UnroutableError):
        channel.basic_publish("x", "other", b"3", mandatory=True)


def test_cc_and_bcc_are_additional_routing_keys(channel: BlockingChannel, take: Take) -> None:
    """A message published to the default exchange is added once to each queue whose name is the message's routing key
    or one of the keys in its CC and BCC headers. The broker removes the header BCC, and keeps CC.
    """
    for queue in ("to", "cc", "bcc"):
        channel.queue_declare(queue)
    channel.basic_publish("", "to", b"x", BasicProperties(headers={"CC": ["cc", "to"], "BCC": ["bcc"]}))
    for queue in ("to", "cc", "bcc"):
        method, properties, _ = take.one(queue)
        assert properties.headers == {"CC": ["cc", "to"]}
        assert method.routing_key == "to"
        assert count(channel, queue) == 0


def test_an_auto_delete_exchange_is_deleted_with_its_last_binding(channel: BlockingChannel) -> None:
    """When the last queue that is bound to an auto-delete exchange is deleted, the exchange has no bindings left, so
    the broker deletes the exchange, too.
    """
    channel.exchange_declare("x", "fanout", auto_delete=True)
    channel.queue_declare("q")
    channel.queue_bind("q", "x")
    channel.queue_delete("q")
    with pytest.raises(ChannelClosedByBroker) as closed:
        channel.exchange_declare("x", passive=True)
    assert closed.value.reply_code == 404


def test_deleting_an_exchange_deletes_its_bindings(channel: BlockingChannel) -> None:
    """If an exchange is deleted and declared again, the new exchange has none of the old bindings."""
    channel.exchange_declare("x", "fanout")
    channel.queue_declare("q")
    channel.queue_bind("q", "x")
    channel.exchange_delete("x")
    channel.exchange_declare("x", "fanout")
    channel.basic_publish("x", "", b"x")
    assert count(channel, "q") == 0


def test_an_empty_queue_name_means_the_last_declared_queue(channel: BlockingChannel) -> None:
    """In queue.bind, an empty queue name means the queue that was declared last on the channel. If the routing key is
    also empty, the queue's name becomes the routing key.
    """
    name = channel.queue_declare("", exclusive=True).method.queue
    assert name.startswith("amq.gen-")
    assert len(name) == len("amq.gen-") + 22
    channel._impl.queue_bind("", "amq.direct", "")
    channel.basic_publish("amq.direct", name, b"x")
    assert count(channel, name) == 1


@pytest.fixture
def dividing(channel: BlockingChannel, api: Api, broker: TestBroker) -> BlockingChannel:
    """A channel on which queues a, b and c are declared, if the broker has the exchange types that RabbitMQ ships."""
    listed = {each["name"] for each in api("GET", "overview")[1]["exchange_types"]}
    types = {"x-consistent-hash", "x-modulus-hash", "x-random", "x-recent-history"}
    if broker.kind == "rabbitmq" and not types <= listed:
        pytest.skip("the plugins are not enabled")
    for queue in "abc":
        channel.queue_declare(queue)
    return channel


def divided(channel: BlockingChannel, **properties: Any) -> tuple[int, ...]:
    """Publish 600 messages with different keys to exchange x, and return how many each of the queues got."""
    for number in range(600):
        channel.basic_publish("x", f"key.{number}", b"", BasicProperties(**properties), mandatory=True)
    found = tuple(count(channel, queue) for queue in "abc")
    for queue in "abc":
        channel.queue_purge(queue)
    return found


@pytest.mark.parametrize("kind", ["x-consistent-hash", "x-modulus-hash", "x-random"])
def test_an_exchange_divides_messages_among_its_bindings(dividing: BlockingChannel, kind: str) -> None:
    """An exchange of a type that divides messages sends each one to one of the queues and exchanges bound to it, also
    if the message has several routing keys. Without a binding, the message is unroutable, or goes to the alternate
    exchange.
    """
    dividing.exchange_declare("x", kind)
    with pytest.raises(UnroutableError):
        dividing.basic_publish("x", "k", b"", mandatory=True)
    dividing.exchange_declare("f", "fanout")
    dividing.queue_bind("c", "f")
    dividing.queue_bind("a", "x", "1")
    dividing.exchange_bind("f", "x", "1")
    a, b, c = divided(dividing, headers={"CC": ["one", "two"]})
    assert (a + c, b, min(a, c) > 200) == (600, 0, True)
    dividing.exchange_unbind("f", "x", "1")
    assert divided(dividing) == (600, 0, 0)
    dividing.exchange_delete("x")
    dividing.exchange_declare("x", kind, arguments={"alternate-exchange": "f"})
    assert divided(dividing) == (0, 0, 600)


@pytest.mark.parametrize(
    ("kind", "shares"), [("x-modulus-hash", (2, 1)), ("x-random", (2, 1)), ("x-consistent-hash", (1, 2))]
)
def test_bindings_of_the_same_queue_count_as_its_shares_unless_keys_are_weights(
    dividing: BlockingChannel, kind: str, shares: tuple[int, int]
) -> None:
    """Two bindings of a queue to an x-random or x-modulus-hash exchange give it two shares. At an x-consistent-hash
    exchange, the key is the queue's weight, and a second binding of the same queue has no effect; after the first is
    removed, the queue gets no messages at all.
    """
    dividing.exchange_declare("x", kind)
    for queue, key in (("a", "1"), ("b", "2"), ("a", "3")):
        dividing.queue_bind(queue, "x", key)
    found = divided(dividing)[:2]
    assert [round(each / 200) for each in found] == [*shares], found
    dividing.queue_unbind("a", "x", "1")
    left = divided(dividing)[:2]
    assert sum(left) == 600
    assert (left[0] == 0) == (kind == "x-consistent-hash")


@pytest.mark.parametrize(
    ("arguments", "same", "other"),
    [
        ({"hash-header": "user"}, {"headers": {"user": "ann"}}, {"headers": {"user": 7}}),
        ({"hash-property": "message_id"}, {"message_id": "1"}, {"correlation_id": "1"}),
        ({"hash-property": "timestamp"}, {"timestamp": 3}, {}),
    ],
)
def test_a_consistent_hash_exchange_hashes_a_header_or_a_property(
    dividing: BlockingChannel, arguments: dict[str, str], same: dict[str, Any], other: dict[str, Any]
) -> None:
    """With the argument `hash-header` or `hash-property`, all messages with the same value go to the same queue,
    whatever their routing keys; so do those without any.
    """
    dividing.exchange_declare("x", "x-consistent-hash", arguments=arguments)
    for queue in "abc":
        dividing.queue_bind(queue, "x", "10")
    for properties in (same, other):
        assert sorted(divided(dividing, **properties)) == [0, 0, 600]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("0", "The binding key must be greater than 0"),
        ("-1", "The binding key must be greater than 0"),
        ("x", 'The binding key must be an integer: <<"x">>'),
        (" 3", 'The binding key must be an integer: <<" 3">>'),
        ("", "The binding key must be an integer: <<>>"),
        ("10001", "The binding key must not exceed 10000"),
    ],
)
def test_the_binding_key_of_a_consistent_hash_exchange_is_a_weight(
    dividing: BlockingChannel, key: str, text: str
) -> None:
    """A binding to an x-consistent-hash exchange is refused with 406 unless its key is a positive integer."""
    dividing.exchange_declare("x", "x-consistent-hash")
    with pytest.raises(ChannelClosedByBroker) as refused:
        dividing.queue_bind("a", "x", key)
    assert (refused.value.reply_code, refused.value.reply_text) == (406, f"PRECONDITION_FAILED - {text}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"hash-property": "app_id"}, "Unsupported property: app_id"),
        ({"hash-header": "h", "hash-property": "x"}, "hash-header and hash-property are mutually exclusive"),
    ],
)
def test_the_arguments_of_a_consistent_hash_exchange_name_one_header_or_property(
    dividing: BlockingChannel, arguments: dict[str, str], text: str
) -> None:
    """An x-consistent-hash exchange with both arguments, or with a property that cannot be hashed, is refused."""
    with pytest.raises(ChannelClosedByBroker) as refused:
        dividing.exchange_declare("x", "x-consistent-hash", arguments=arguments)
    assert (refused.value.reply_code, refused.value.reply_text) == (406, f"PRECONDITION_FAILED - {text}")


def test_an_exchange_with_a_recent_history_sends_its_last_messages_to_each_new_binding(
    dividing: BlockingChannel, take: Take
) -> None:
    """An x-recent-history exchange routes like a fanout exchange. It also sends its last messages to each queue that is
    bound, oldest first, and to each exchange, newest first, but only once for the same binding. A message with the
    header x-recent-history-no-store is not kept. The history ends with the exchange.
    """
    with pytest.raises(ChannelClosedByBroker, match="Invalid argument 0, 'x-recent-history-length' must be a positive"):
        dividing.connection.channel().exchange_declare(
            "x", "x-recent-history", arguments={"x-recent-history-length": 0}
        )

    def declare(**arguments: int) -> None:
        dividing.exchange_delete("x")
        dividing.exchange_declare("x", "x-recent-history", arguments=arguments)

    def bound(queue: str, exchange: str = "x", key: str = "") -> list[bytes]:
        dividing.queue_bind(queue, exchange, key)
        return take.bodies(queue, count(dividing, queue))

    declare(**{"x-recent-history-length": 3})
    for number in range(5):
        dividing.basic_publish("x", "k", b"%d" % number)
    assert [bound("a"), bound("a"), bound("a", key="other")] == [[b"2", b"3", b"4"], [], [b"2", b"3", b"4"]]
    dividing.basic_publish("x", "", b"unkept", BasicProperties(headers={"x-recent-history-no-store": True}))
    dividing.exchange_declare("f", "fanout")
    assert [bound("b", "f"), bound("a")] == [[], [b"unkept"]]
    dividing.exchange_bind("f", "x")
    assert bound("b", "f") == [b"4", b"3", b"2"]
    declare()
    assert bound("c") == []


def test_an_x_modulus_hash_exchange_chooses_the_queue_that_rabbitmq_4_3_chooses(
    dividing: BlockingChannel, take: Take, broker: TestBroker
) -> None:
    """An x-modulus-hash exchange hashes all routing keys of a message, and numbers the sorted destinations."""
    if broker.kind == "rabbitmq" and not broker.differs_since("4.3", "it has another hash"):
        pytest.skip("the plugin for earlier versions has another hash")
    dividing.exchange_declare("x", "x-modulus-hash")
    for queue in "bca":
        dividing.queue_bind(queue, "x", "")
    for number in range(12):
        headers = {"CC": ["cc"]} if number > 8 else {}
        dividing.basic_publish("x", f"key.{number}", b"%d" % number, BasicProperties(headers=headers))
    found = [b" ".join(take.bodies(queue, count(dividing, queue))).decode() for queue in "abc"]
    assert found == ["7 9 10", "0 1 3 5 6 8 11", "2 4"]
