"""The firehose of the embedded broker: the copies of published and delivered messages."""

from dataclasses import dataclass
from typing import Any

import pytest

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.broker import NODE
from mqtool.broker.embedded.model.exchange import TRACE_EXCHANGE
from mqtool.broker.embedded.model.firehose import trace_delivered, trace_published
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.field_tables import MAX_DEPTH, Int32, Table, decode_table, encode_table
from tests.unit.embedded.test_queue import add_queue

FIELDS = {"message_id": b"\x02id", "priority": b"\x03", "delivery_mode": b"\x02", "timestamp": (2**32 + 5).to_bytes(8)}


@dataclass
class Client:
    """The connection of a user."""

    vhost: VirtualHost
    user: User
    name: str = "127.0.0.1:1 -> 127.0.0.1:2"


@pytest.fixture
def client(vhost: VirtualHost) -> Client:
    return Client(vhost, User("ann", None))


@pytest.fixture
def copies(vhost: VirtualHost) -> BrokerQueue:
    """A queue that gets all copies."""
    queue = add_queue(vhost, "copies")
    vhost.bind(vhost.exchanges[TRACE_EXCHANGE], queue, "#", {})
    return queue


def message(exchange: str, key: str, headers: Table | None = None, **fields: bytes) -> BrokerMessage:
    encoded = {**fields, **({} if headers is None else {"headers": encode_table(headers)})}
    return BrokerMessage(encode_address(exchange, key), ContentHeader.of(MessageProperties.of(encoded), 4), b"body")


def copied(copies: BrokerQueue) -> tuple[str, bytes, dict[str, Any]]:
    """Return the routing key, the body and the headers of the only copy."""
    entry = copies.get(no_ack=True)
    assert entry is not None
    assert len(copies) == 0
    copy = entry.message
    assert copy.exchange == TRACE_EXCHANGE
    assert {*copy.properties.fields()} == {"headers"}
    assert copy.header.body_size == len(copy.body)
    return copy.routing_key, copy.body, copy.headers


@pytest.mark.parametrize(
    ("exchange", "headers", "keys", "routed"),
    [
        ("amq.direct", {}, ["jobs"], ["one", "two"]),
        ("amq.direct", {"CC": ["other"]}, ["jobs", "other"], ["one", "three", "two"]),
        ("amq.direct", {"BCC": ["none"]}, ["jobs", "none"], ["one", "two"]),
        ("amq.topic", {}, ["jobs"], []),
        ("", {"CC": ["b", "a"]}, ["jobs", "b", "a"], ["a", "b", "jobs"]),
    ],
)
def test_the_copy_of_a_published_message_lists_the_queues_that_received_it(
    client: Client, vhost: VirtualHost, copies: BrokerQueue, exchange: str, headers: Table, keys: list[str],
    routed: list[str],
) -> None:  # fmt: skip
    """The firehose copy of a published message has the routing key `publish.` with the name of the exchange. Its
    headers contain the publisher's connection, channel and user, the message's routing keys and properties (without
    the header BCC), and the queues that received the message. The copy of a message to the default exchange lists
    each routing key as a queue, even if no such queue exists.
    """
    for name, key in (("two", "jobs"), ("one", "jobs"), ("three", "other")):
        vhost.bind(vhost.exchanges["amq.direct"], add_queue(vhost, name), key, {})
    sent = message(exchange, "jobs", headers, **FIELDS)
    trace_published(client, 7, sent, vhost.route(vhost.exchanges[exchange], sent))
    key, body, found = copied(copies)
    kept = {name: value for name, value in headers.items() if name != "BCC"}
    properties = {"timestamp": 5, "message_id": "id", "priority": 3, "delivery_mode": 2, "headers": kept}
    assert (key, body) == (f"publish.{exchange}", b"body")
    assert found == {
        "exchange_name": exchange, "routing_keys": keys, "properties": properties, "node": NODE, "vhost": "/",
        "connection": client.name, "channel": 7, "user": "ann", "routed_queues": routed,
    }  # fmt: skip
    assert [*found] == [
        "exchange_name", "routing_keys", "properties", "node", "vhost", "connection", "channel", "user",
        "routed_queues",
    ]  # fmt: skip
    assert [*found["properties"]] == [*properties]


def test_a_direct_reply_is_copied_without_queues(client: Client, copies: BrokerQueue) -> None:
    """The firehose copy of a direct reply lists no queues, because the reply goes to none."""
    trace_published(client, 1, message("", "amq.rabbitmq.reply-to.x", {"BCC": ["b"]}), None)
    key, body, headers = copied(copies)
    assert (key, body, headers["routed_queues"]) == ("publish.", b"body", [])
    assert headers["routing_keys"] == ["amq.rabbitmq.reply-to.x", "b"]
    assert headers["properties"] == {"headers": {"BCC": ["b"]}}


@pytest.mark.parametrize("redelivered", [False, True])
def test_the_copy_of_a_delivered_message_says_whether_it_was_redelivered(
    client: Client, vhost: VirtualHost, copies: BrokerQueue, *, redelivered: bool
) -> None:
    """The firehose copy of a delivered message has the routing key `deliver.` with the name of the queue. Its headers
    say whether the message was redelivered. The delivery of a firehose copy is not copied again.
    """
    queue = add_queue(vhost)
    sent = message("amq.topic", "jobs", {"CC": ["other"]})
    trace_delivered(client, 7, queue, sent, redelivered=redelivered)
    key, body, headers = copied(copies)
    assert (key, body) == ("deliver.q", b"body")
    assert [*headers.items()] == [
        ("exchange_name", "amq.topic"), ("routing_keys", ["jobs", "other"]),
        ("properties", {"headers": {"CC": ["other"]}}), ("node", NODE), ("redelivered", int(redelivered)),
        ("vhost", "/"), ("connection", client.name), ("channel", 7), ("user", "ann"),
    ]  # fmt: skip
    trace_delivered(client, 7, queue, message(TRACE_EXCHANGE, "publish."), redelivered=False)
    assert len(copies) == 0


@pytest.mark.parametrize(("length", "is_copied"), [(247, True), (248, False)])
@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_message_is_not_copied_if_the_copys_routing_key_would_be_too_long(
    client: Client, vhost: VirtualHost, copies: BrokerQueue, letter: str, length: int, *, is_copied: bool
) -> None:
    """The routing key of a firehose copy consists of a prefix and the name of an exchange or a queue. If this routing
    key would be longer than 255 bytes, the broker makes no copy.
    """
    name = ("x" + letter * 248)[:length] if letter == "x" else letter * (length // 2) + "x" * (length % 2)
    trace_delivered(client, 1, add_queue(vhost, name), message("", "k"), redelivered=False)
    assert len(copies) == is_copied


@pytest.mark.parametrize(
    ("seconds", "found"), [(2**31 - 1, 2**31 - 1), (2**31, -(2**31)), (2**32 - 1, -1), (2**32, 0), (2**40 + 7, 7)]
)
def test_numbers_in_the_properties_of_a_copy_have_32_bits(
    client: Client, copies: BrokerQueue, seconds: int, found: int
) -> None:
    """As in RabbitMQ, numbers among the properties in a firehose copy, such as the timestamp, are truncated to signed
    integers of 32 bits.
    """
    trace_published(client, 1, message("", "k", timestamp=seconds.to_bytes(8)), None)
    assert copied(copies)[2]["properties"] == {"timestamp": found}


def test_headers_that_are_nested_as_deeply_as_possible_are_copied(client: Client, copies: BrokerQueue) -> None:
    """A firehose copy contains the headers of a message inside its own headers, so they are nested deeper than in the
    message. A message whose headers are nested as deeply as the broker allows is copied, too, and the encoded headers
    of the copy can be decoded.
    """
    headers: Table = {"n": Int32(1)}
    for _ in range(MAX_DEPTH):
        headers = {"n": headers}
    assert decode_table(encode_table(headers))[0] == headers
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_table(encode_table({"n": headers}))
    trace_published(client, 1, message("", "k", headers), None)
    entry = copies.get(no_ack=True)
    assert entry is not None
    read = ContentHeader(entry.message.header.raw).properties.headers
    assert read == entry.message.headers
    assert read["properties"] == {"headers": headers}
