"""Publishing and receiving: contents, order, acknowledgements, confirms and transactions."""

import struct
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pamqp import commands
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, NackError, UnroutableError

from tests.brokers import TestBroker
from tests.protocol.conftest import Take
from tests.protocol.raw_client import RawClient, raw_frame

ALL_PROPERTIES = BasicProperties(
    content_type="text/plain",
    content_encoding="utf-8",
    headers={
        "text": "ü",
        "int": 1,
        "long": 2**40,
        "negative": -5,
        "yes": True,
        "none": None,
        "list": [1, "a", {"b": False}],
        "table": {"deep": {"er": 1}},
        "bytes": b"\xff\xfe",
    },
    delivery_mode=2,
    priority=3,
    correlation_id="c",
    reply_to="r",
    expiration="60000",
    message_id="m",
    timestamp=1_700_000_000,
    type="t",
    user_id="guest",
    app_id="a",
    cluster_id="x",
)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff\xce", "grüße".encode(), b"x" * 131_064, b"x" * 131_065, b"y" * 400_000],
    ids=lambda body: f"{len(body)} bytes",
)
def test_a_message_body_is_delivered_unchanged(channel: BlockingChannel, take: Take, body: bytes) -> None:
    """A text or binary message body of 0 to 400,000 bytes arrives unchanged, whether it fits into one frame or needs
    several.
    """
    channel.queue_declare("q")
    channel.basic_publish("", "q", body)
    assert take.one("q")[2] == body


def test_message_properties_are_delivered_unchanged(channel: BlockingChannel, take: Take) -> None:
    """A message arrives with all its properties unchanged, including headers with values of many types."""
    channel.queue_declare("q")
    channel.basic_publish("", "q", b"x", ALL_PROPERTIES)
    assert take.one("q")[1] == ALL_PROPERTIES


def test_messages_are_delivered_in_order_with_consecutive_delivery_tags(channel: BlockingChannel, take: Take) -> None:
    """Messages are delivered in the order in which they were published, with delivery tags 1, 2, 3 and so on."""
    channel.queue_declare("q")
    for number in range(10):
        channel.basic_publish("", "q", str(number).encode())
    got = [take.one("q", auto_ack=False) for _ in range(10)]
    assert [int(body) for _, _, body in got] == list(range(10))
    assert [method.delivery_tag for method, _, _ in got] == list(range(1, 11))
    assert [method.message_count for method, _, _ in got] == list(range(9, -1, -1))


def test_basic_get_from_an_empty_queue_is_answered_with_basic_get_empty(channel: BlockingChannel) -> None:
    """If a client sends basic.get for an empty queue, the broker answers with basic.get-empty."""
    channel.queue_declare("q")
    assert channel.basic_get("q") == (None, None, None)


def test_requeued_messages_keep_their_position_and_are_marked_as_redelivered(
    channel: BlockingChannel, take: Take
) -> None:
    """Requeued messages are delivered before later messages, in their original order, and marked as redelivered."""
    channel.queue_declare("q")
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", "q", body)
    first, second = take.one("q", auto_ack=False)[0], take.one("q", auto_ack=False)[0]
    channel.basic_nack(second.delivery_tag)
    channel.basic_reject(first.delivery_tag)
    got = [take.one("q") for _ in range(3)]
    assert [(body, method.redelivered) for method, _, body in got] == [(b"1", True), (b"2", True), (b"3", False)]


def test_basic_nack_with_multiple_requeues_all_messages_up_to_the_delivery_tag(
    channel: BlockingChannel, take: Take
) -> None:
    """basic.nack with `multiple` requeues all unacknowledged messages up to and including the given delivery tag."""
    channel.queue_declare("q")
    for number in range(5):
        channel.basic_publish("", "q", str(number).encode())
    tags = [take.one("q", auto_ack=False)[0].delivery_tag for _ in range(5)]
    channel.basic_nack(tags[2], multiple=True)
    assert take.bodies("q", 3) == [b"0", b"1", b"2"]
    channel.basic_ack(0, multiple=True)
    assert channel.queue_declare("q", passive=True).method.message_count == 0


def test_basic_recover_requeues_unacknowledged_messages(channel: BlockingChannel, take: Take) -> None:
    """After basic.recover, the channel's unacknowledged messages are delivered again, marked as redelivered."""
    channel.queue_declare("q")
    channel.basic_publish("", "q", b"x")
    take.one("q", auto_ack=False)
    channel.basic_recover(requeue=True)
    assert take.one("q")[0].redelivered


def test_closing_a_channel_requeues_its_unacknowledged_messages(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take
) -> None:
    """When a channel is closed, its unacknowledged messages are requeued, and are marked as redelivered when they are
    delivered again.
    """
    channel.queue_declare("q")
    other = connection.channel()
    channel.basic_publish("", "q", b"x")
    Take(other).one("q", auto_ack=False)
    other.close()
    method, _, _ = take.one("q")
    assert method.redelivered


def test_an_unroutable_mandatory_message_is_returned(channel: BlockingChannel) -> None:
    """If a mandatory message is unroutable, its publisher gets basic.return with 312 NO_ROUTE and the whole message."""
    channel.confirm_delivery()
    with pytest.raises(UnroutableError) as unroutable:
        channel.basic_publish("amq.direct", "nobody", b"x", ALL_PROPERTIES, mandatory=True)
    (message,) = unroutable.value.messages
    assert (message.method.reply_code, message.method.reply_text) == (312, "NO_ROUTE")
    assert (message.method.exchange, message.method.routing_key) == ("amq.direct", "nobody")
    assert (message.body, message.properties) == (b"x", ALL_PROPERTIES)


def test_an_unroutable_message_that_is_not_mandatory_is_confirmed(channel: BlockingChannel) -> None:
    """The broker confirms an unroutable message that is not mandatory."""
    channel.confirm_delivery()
    channel.basic_publish("amq.direct", "nobody", b"x")


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "quorum"}], ids=["classic", "quorum"])
def test_each_persistent_message_is_confirmed(channel: BlockingChannel, arguments: dict[str, Any]) -> None:
    """Each persistent message published to a durable classic or quorum queue is confirmed."""
    channel.queue_declare("q", durable=True, arguments=arguments)
    channel.confirm_delivery()
    for number in range(20):
        channel.basic_publish("", "q", str(number).encode(), BasicProperties(delivery_mode=2), mandatory=True)
    assert channel.queue_declare("q", durable=True, arguments=arguments).method.message_count == 20


def test_messages_of_a_transaction_reach_the_queue_only_after_tx_commit(channel: BlockingChannel, take: Take) -> None:
    """A message that is published in a transaction reaches its queue only after tx.commit. After tx.rollback, it
    never reaches the queue.
    """
    channel.queue_declare("q")
    channel.tx_select()
    channel.basic_publish("", "q", b"dropped")
    channel.tx_rollback()
    channel.basic_publish("", "q", b"kept")
    assert channel.queue_declare("q", passive=True).method.message_count == 0
    channel.tx_commit()
    assert take.bodies("q", 1) == [b"kept"]
    channel.tx_commit()


@pytest.mark.differs_since("4.0", "a transaction that cannot reach a queue fails")
def test_messages_of_a_transaction_are_routed_when_they_are_published(
    channel: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    """A message in a transaction is routed when it is published, not at tx.commit, so a queue that is bound in
    between does not get it. Up to RabbitMQ 3.13, if one of the queues to which the message was routed is deleted
    before tx.commit, the other queues still get the message.
    """
    for queue in ("early", "late", "deleted"):
        channel.queue_declare(queue)
    for queue in ("early", "deleted"):
        channel.queue_bind(queue, "amq.fanout")
    other = connection.channel()
    other.tx_select()
    other.basic_publish("amq.fanout", "", b"x")
    other.queue_declare("early", passive=True)  # the broker has handled the message
    channel.queue_bind("late", "amq.fanout")
    channel.queue_delete("deleted")
    other.tx_commit()
    assert channel.basic_get("early", auto_ack=True)[2] == b"x"
    assert channel.basic_get("late")[0] is None


def test_a_message_can_be_acknowledged_again_after_tx_rollback(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take
) -> None:
    """After tx.rollback, a message that was acknowledged in the transaction is unacknowledged again, and can be
    acknowledged in a later transaction.
    """
    channel.queue_declare("q")
    channel.basic_publish("", "q", b"1")
    channel.basic_publish("", "q", b"2")
    other = connection.channel()
    other.tx_select()
    tags = [Take(other).one("q", auto_ack=False)[0].delivery_tag for _ in range(2)]
    other.basic_ack(tags[0])
    other.tx_rollback()
    other.basic_ack(tags[0])
    other.tx_commit()
    other.close()
    assert take.bodies("q", 1) == [b"2"]
    assert channel.queue_declare("q", passive=True).method.message_count == 0


@pytest.mark.parametrize("overflow", ["reject-publish", "reject-publish-dlx"])
def test_tx_commit_fails_if_a_full_classic_queue_refuses_a_message(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take, overflow: str
) -> None:
    """If a full classic queue with x-overflow reject-publish or reject-publish-dlx refuses a message of a transaction,
    the broker answers tx.commit by closing the channel with 406. The rest of the transaction takes effect.
    """
    channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": overflow})
    channel.queue_declare("q")
    channel.basic_publish("", "q", b"acknowledged")
    other = connection.channel()
    other.tx_select()
    other.basic_ack(Take(other).one("q", auto_ack=False)[0].delivery_tag)
    for queue, body in (("full", b"1"), ("full", b"2"), ("q", b"last")):
        other.basic_publish("", queue, body)
    with pytest.raises(ChannelClosedByBroker, match="PRECONDITION_FAILED - partial tx completion") as refused:
        other.tx_commit()
    assert refused.value.reply_code == 406
    assert take.bodies("full", 1) + take.bodies("q", 1) == [b"1", b"last"]
    assert [channel.basic_get(queue)[0] for queue in ("full", "q")] == [None, None]


def test_tx_commit_succeeds_if_a_full_quorum_queue_refuses_a_message(channel: BlockingChannel) -> None:
    """The broker answers tx.commit with commit-ok although a full quorum queue refuses a message of the transaction."""
    arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare("full", durable=True, arguments=arguments)
    channel.tx_select()
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", "full", body)
        channel.tx_commit()


@pytest.mark.parametrize("overflow", ["reject-publish", "reject-publish-dlx"])
def test_a_message_to_a_full_queue_that_rejects_publishes_is_nacked(
    channel: BlockingChannel, take: Take, overflow: str
) -> None:
    """If a queue with x-overflow reject-publish or reject-publish-dlx is full, the broker answers a new message to this
    queue with basic.nack. With reject-publish-dlx, the message is also dead-lettered.
    """
    channel.queue_declare("dead")
    channel.queue_declare(
        "q",
        arguments={
            "x-max-length": 1,
            "x-overflow": overflow,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        },
    )
    channel.confirm_delivery()
    channel.basic_publish("", "q", b"1")
    with pytest.raises(NackError):
        channel.basic_publish("", "q", b"2")
    assert take.bodies("q", 1) == [b"1"]
    dead = channel.queue_declare("dead", passive=True).method.message_count
    assert dead == (1 if overflow == "reject-publish-dlx" else 0)


def headers_table(*headers: tuple[bytes, bytes]) -> bytes:
    """Encode headers: their names, and their values as they are on the wire."""
    encoded = b"".join(bytes([len(name)]) + name + value for name, value in headers)
    return struct.pack(">I", len(encoded)) + encoded


def delivered_headers(url: str, kind: str, table: bytes) -> bytes:
    """Publish a message with these encoded headers to a queue; return the headers of its second delivery."""
    with RawClient(url) as client:
        client.send(commands.Queue.Declare(queue="q", durable=True, arguments={"x-queue-type": kind}))
        client.expect(commands.Queue.DeclareOk)
        client.send(commands.Confirm.Select())
        client.expect(commands.Confirm.SelectOk)
        client.send(commands.Basic.Publish(exchange="", routing_key="q"))
        content = struct.pack(">HHQH", 60, 0, 1, 0x2000) + table
        client.socket.sendall(raw_frame(2, 1, content) + raw_frame(3, 1, b"x"))
        client.expect(commands.Basic.Ack)
        client.send(commands.Basic.Consume(queue="q", consumer_tag="c"))
        client.expect(commands.Basic.ConsumeOk)
        for number in (1, 2):
            client.expect(commands.Basic.Deliver)
            _, _, size = struct.unpack(">BHI", client.read(7))
            content = client.read(size + 1)[:-1]
            client.receive()
            if number == 1:
                client.send(commands.Basic.Nack(delivery_tag=1, requeue=True))
    return content[14:]


_INT = [b"I" + struct.pack(">i", number) for number in range(4)]
_NESTED = headers_table((b"y", _INT[1]), (b"c", _INT[2]), (b"c", _INT[3]))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_headers_are_sorted_and_encoded_again(broker: TestBroker, kind: str) -> None:
    """RabbitMQ 4 sorts a message's headers by name, keeps the first of several of the same name, and writes a number of
    type `L` as `l`, and each true boolean as 1. Nested tables keep their order. Up to RabbitMQ 3.13, headers stay as
    they are; but if a quorum queue adds its counts, all are sorted and encoded again, with all those of the same name.
    """
    number = struct.pack(">q", 2**40)
    sent = headers_table(
        (b"z", b"t\x02"), (b"b", b"L" + number), (b"b", _INT[3]), (b"a", b"F" + _NESTED), (b"B", _INT[1])
    )
    is_new = broker.differs_since("4.0", "headers are sorted")
    again = [] if is_new else [(b"b", _INT[3])]
    counted = b"x-acquired-count" if broker.differs_since("4.3", "nacks do not count") else b"x-delivery-count"
    counts = [(counted, b"l" + struct.pack(">q", 1))] if kind == "quorum" else []
    expected = headers_table(
        (b"B", _INT[1]), (b"a", b"F" + _NESTED), (b"b", b"l" + number), *again, *counts, (b"z", b"t\x01")
    )
    assert delivered_headers(broker.url, kind, sent) == (expected if is_new or counts else sent)


def test_the_headers_of_a_dead_letter_are_sorted(channel: BlockingChannel, take: Take) -> None:
    """When a message is dead-lettered, its headers are sorted by name, together with those that the broker adds."""
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    channel.basic_publish("", "q", b"x", BasicProperties(headers={"z": 1, "x-a": 2, "B": 3}, expiration="0"))
    names = list(take.one("dead")[1].headers)
    assert names == sorted(names)
    assert {"z", "x-a", "B", "x-death"} <= {*names}


@pytest.mark.parametrize("limit", ["x-max-length", "x-max-length-bytes"])
def test_a_full_quorum_queue_rejects_publishes_until_it_is_at_80_percent_of_its_limit(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take, limit: str
) -> None:
    """A quorum queue with x-overflow reject-publish takes one message more than its limit allows. It then rejects what
    the channels publish that know it, until it is at 80 % of the limit; and what a new channel publishes only as long
    as it exceeds the limit.
    """
    most, body = (10, b"x") if limit == "x-max-length" else (10_000, b"x" * 990)
    arguments = {"x-queue-type": "quorum", limit: most, "x-overflow": "reject-publish"}
    channel.queue_declare("full", durable=True, arguments=arguments)

    def is_accepted(on: BlockingChannel) -> bool:
        try:
            on.basic_publish("", "full", body)
        except NackError:
            return False
        return True

    def confirming() -> BlockingChannel:
        opened = connection.channel()
        opened.confirm_delivery()
        return opened

    first, second = confirming(), confirming()
    assert [is_accepted(first) for _ in range(12)] == [True] * 11 + [False]
    assert not is_accepted(second)
    take.bodies("full", 2)
    assert [is_accepted(each) for each in (first, second, confirming())] == [False, False, True]
    take.bodies("full", 2)
    assert is_accepted(first)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_full_quorum_queue_that_rejects_publishes_takes_all_dead_letters(
    channel: BlockingChannel, take: Take, kind: str
) -> None:
    """A quorum queue with x-overflow reject-publish takes dead letters even if it is full."""
    arguments = {"x-queue-type": "quorum", "x-max-length": 2, "x-overflow": "reject-publish"}
    channel.queue_declare("dead", durable=True, arguments=arguments)
    dead_lettering = {"x-queue-type": kind, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("q", durable=True, arguments=dead_lettering)
    for number in range(6):
        channel.basic_publish("", "q", str(number).encode())
        channel.basic_reject(take.one("q", auto_ack=False)[0].delivery_tag, requeue=False)
    take.until(lambda: channel.queue_declare("dead", passive=True).method.message_count == 6)
    channel.confirm_delivery()
    with pytest.raises(NackError):
        channel.basic_publish("", "dead", b"new")


def test_direct_reply_to_delivers_a_reply_without_a_queue(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take
) -> None:
    """If a client uses direct reply-to, its request arrives with a generated reply_to. A reply that a server publishes
    to this address reaches the client, although the client has declared no queue.
    """
    replies: list[tuple[str, bytes]] = []
    channel.queue_declare("requests")
    channel.basic_consume(
        "amq.rabbitmq.reply-to", lambda _c, m, _p, body: replies.append((m.exchange, body)), auto_ack=True
    )
    channel.basic_publish("", "requests", b"2+2", BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="1"))
    server = connection.channel()
    _, properties, _ = Take(server).one("requests")
    assert properties.reply_to.startswith("amq.rabbitmq.reply-to.")
    assert properties.correlation_id == "1"
    server.queue_declare(properties.reply_to, passive=True)
    server.basic_publish("", properties.reply_to, b"4", mandatory=True)
    take.until(lambda: replies)
    assert replies == [("", b"4")]


@pytest.mark.differs_since("4.2", "a reply to a disconnected client is dropped, even a mandatory one")
def test_up_to_rabbitmq_4_1_a_mandatory_reply_to_a_disconnected_rpc_client_is_returned(
    connect: Callable[..., pika.BlockingConnection], channel: BlockingChannel
) -> None:
    """Up to RabbitMQ 4.1, if an RPC client that uses direct reply-to has closed its connection, and the RPC server
    publishes a mandatory reply for this client, the broker returns the reply to the server as unroutable.
    """
    channel.queue_declare("requests")
    client = connect()
    asking = client.channel()
    asking.basic_consume("amq.rabbitmq.reply-to", print, auto_ack=True)
    asking.basic_publish("", "requests", b"?", BasicProperties(reply_to="amq.rabbitmq.reply-to"))
    _, properties, _ = Take(channel).one("requests")
    client.close()
    channel.confirm_delivery()
    with pytest.raises(UnroutableError):
        channel.basic_publish("", properties.reply_to, b"!", mandatory=True)


def test_a_large_message_is_delivered_with_the_smallest_frame_size(
    connect: Callable[..., pika.BlockingConnection], broker: TestBroker
) -> None:
    """If a client negotiates the smallest frame_max that the broker allows, a message body larger than this frame_max
    is delivered whole.
    """
    smallest = 8192 if broker.differs_since("4.1", "a frame has at least 8,192 octets") else 4096
    channel = connect(frame_max=smallest).channel()
    channel.queue_declare("q")
    body = bytes(range(256)) * 100
    channel.basic_publish("", "q", body)
    assert Take(channel).one("q")[2] == body


def test_names_can_contain_spaces_umlauts_and_wildcards(channel: BlockingChannel, take: Take) -> None:
    """Names of queues and exchanges, and routing keys, can contain spaces, umlauts and the characters `*` and `#`."""
    name = "my queue: grün/2.5 #*"
    channel.queue_declare(name)
    channel.exchange_declare(name, "direct")
    channel.queue_bind(name, name, name)
    channel.basic_publish(name, name, b"x")
    method, _, _ = take.one(name)
    assert (method.exchange, method.routing_key) == (name, name)
