"""Publishing: mqtool's encoding of basic.publish, and publisher confirms."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from typing import Any

import pika
import pytest
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from mqtool.amqp import Connection, parse_addresses
from mqtool.errors import BadData, Unavailable, UsageError
from mqtool.message import Confirmation, InBatches, Message
from mqtool.topology import Exchange, Queue
from tests.brokers import TestBroker
from tests.integration import fast_path

QUEUE = Queue("bodies", durable=True)

EVERY_PROPERTY: dict[str, Any] = {
    "content_type": "text/plain",
    "content_encoding": "identity",
    "headers": {
        "text": "grün",
        "number": -5,
        "big": 2**40,
        "truth": True,
        "nothing": None,
        "bytes": b"\x00\xff",
        "decimal": Decimal("1.25"),
        "moment": datetime(2026, 1, 31, 12, 0, 0),
        "table": {"list": [1, "two", {"three": 3}]},
    },
    "delivery_mode": 2,
    "priority": 7,
    "correlation_id": "c-1",
    "reply_to": "r",
    "expiration": "600000",
    "timestamp": 1_700_000_000,
    "type": "t",
    "user_id": "guest",
    "app_id": "a",
    "cluster_id": "cl",
}


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 1_000_000])
@pytest.mark.parametrize("properties", [{}, EVERY_PROPERTY], ids=["bare", "every-property"])
@pytest.mark.sampled(6)
def test_messages_published_by_mqtool_equal_those_published_by_pika(
    broker: TestBroker, size: int, properties: dict[str, Any]
) -> None:
    """A message that mqtool publishes arrives with the same body, properties and headers, and the same types of values,
    as the same message published by pika.
    """
    body = bytes(number % 251 for number in range(size))
    bare = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = bare.channel()
    channel.queue_declare(QUEUE.name, durable=True)
    channel.basic_publish("", QUEUE.name, body, pika.BasicProperties(**properties, message_id="id-1"))
    with Connection(parse_addresses(broker.url)) as connection:
        [receipt] = connection.channel().publish(
            [Message(body, properties=properties, message_id="id-1")], routing_key=QUEUE.name
        )
    assert receipt.confirmation is Confirmation.CONFIRMED

    theirs, ours = (channel.basic_get(QUEUE.name, auto_ack=True) for _ in range(2))
    bare.close()

    assert ours[2] == theirs[2] == body
    assert vars(ours[1]) == vars(theirs[1])
    assert (ours[0].exchange, ours[0].routing_key) == (theirs[0].exchange, theirs[0].routing_key)


def test_a_floating_point_header_arrives_unchanged(connection: Connection) -> None:
    """If mqtool publishes a message with a floating-point header, which pika itself cannot encode and decodes to an
    integer, the header arrives unchanged, with basic.get as well; and so it does if the broker returns the message.
    """
    channel = connection.channel()
    channel.declare(QUEUE)
    headers = {"price": 1.5, "nested": [{"tiny": 5e-324}], "far": datetime(9999, 12, 31, tzinfo=UTC)}
    message = Message(b"", properties={"headers": headers}, message_id="1")

    list(channel.publish([message, message], routing_key=QUEUE.name))
    [returned] = channel.publish([message], routing_key="no-queue", mandatory=True)

    got = channel.get(QUEUE.name)
    assert got is not None
    assert (got.headers, got.message_id) == (headers, "1")
    assert next(channel.consume(QUEUE)).headers == headers
    assert returned.confirmation is Confirmation.RETURNED
    assert returned.message.properties["headers"] == headers


def test_receipts_arrive_in_the_order_of_publishing(connection: Connection) -> None:
    """For each message, publish() returns a receipt, which says whether the broker has confirmed the message. For
    10,000 messages, these receipts are in the order in which the messages were published.
    """
    channel = connection.channel()
    channel.declare(QUEUE)
    messages = [Message(str(number).encode()) for number in range(10_000)]

    receipts = list(channel.publish(messages, routing_key=QUEUE.name))

    assert [receipt.message.body for receipt in receipts] == [message.body for message in messages]
    assert {receipt.confirmation for receipt in receipts} == {Confirmation.CONFIRMED}


def test_publishing_continues_while_messages_are_unconfirmed(connection: Connection) -> None:
    """publish() does not wait for each confirm: it sends further messages while more than ten are unconfirmed. It
    does so both with the default limit of unconfirmed messages and with a limit of 1,000.
    """
    channel = connection.channel()
    channel.declare(QUEUE)
    in_flight = []

    class Source(InBatches):
        def batches(self) -> Iterator[list[Message]]:
            for _ in range(50):
                in_flight.append(channel.in_flight)
                yield [Message(b"x" * 10_000)] * 10

        def __iter__(self) -> Iterator[Message]:
            return chain.from_iterable(self.batches())

    assert len(list(channel.publish(Source(), routing_key=QUEUE.name))) == 500
    assert max(in_flight) > 10
    in_flight.clear()
    assert len(list(channel.publish(Source(), routing_key=QUEUE.name, window=1000))) == 500
    assert max(in_flight) > 10


@fast_path
def test_mqtool_writes_messages_and_decodes_confirms_itself(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For speed, mqtool writes messages to the socket and decodes publisher confirms itself, instead of leaving this to
    pika. If this test fails, pika has changed, and publishing has become slow.
    """
    done_by_pika = []
    for kind, name in ((_AsyncPlaintextTransport, "_on_socket_writable"), (pika.spec.Basic.Ack, "decode")):
        monkeypatch.setattr(kind, name, lambda *_, name=name: done_by_pika.append(name))
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(QUEUE)
        assert len(list(channel.publish([Message(b"")] * 100, routing_key=QUEUE.name))) == 100
    assert done_by_pika == []


def test_exactly_the_unroutable_messages_are_reported_as_returned(connection: Connection) -> None:
    """If messages are published with the mandatory flag, publish() reports exactly the unroutable ones as returned,
    with the broker's reason.
    """
    channel = connection.channel(mandatory=True)
    channel.declare(QUEUE)
    messages = [Message(b"%d" % number, QUEUE.name if number % 3 else "nowhere") for number in range(9)]

    receipts = list(channel.publish(messages))

    returned = [receipt for receipt in receipts if receipt.confirmation is Confirmation.RETURNED]
    assert [receipt.message.body for receipt in returned] == [b"0", b"3", b"6"]
    assert {receipt.reason for receipt in returned} == {"NO_ROUTE (312)"}


def test_only_unroutable_messages_are_reported_as_returned_even_if_all_have_the_same_id(connection: Connection) -> None:
    """If mandatory messages have the same message id, routing key and body, and differ only in their exchanges or
    headers, publish() reports exactly the unroutable ones as returned.
    """
    channel = connection.channel(mandatory=True)
    channel.declare(QUEUE)
    bound, unbound = (channel.declare(Exchange(name, "headers", durable=True)) for name in ("bound", "unbound"))
    channel.bind(QUEUE, bound, arguments={"x-match": "all", "n": 1})
    messages = [
        Message(b"same", "k", exchange.name, {"headers": {"n": n, "at": datetime(2026, 1, 1, tzinfo=UTC)}}, str(pair))
        for pair in range(50)
        for exchange, n in ((bound, 1), (unbound, 1), (bound, True), (bound, 2), (bound, 1))
    ]

    receipts = list(channel.publish(messages, persistent=True))

    assert [receipt.message for receipt in receipts] == messages
    told = [receipt.confirmation is Confirmation.CONFIRMED for receipt in receipts]
    assert told == [True, False, False, False, True] * 50
    assert channel.depth_of(QUEUE.name) == 100


def test_messages_that_a_full_queue_rejects_are_reported_as_nacked(connection: Connection) -> None:
    """If ten messages are published, one after the other, to a queue with x-max-length 3 and x-overflow
    reject-publish, the broker confirms the first three, and possibly a few more. publish() reports a message as
    nacked if the broker rejects it because the queue is full.
    """
    channel = connection.channel()
    full = channel.declare(Queue("full", durable=True, arguments={"x-max-length": 3, "x-overflow": "reject-publish"}))

    receipts = [
        receipt for number in range(10) for receipt in channel.publish([Message(b"%d" % number)], routing_key=full.name)
    ]

    confirmed = [receipt.message.body for receipt in receipts if receipt.confirmation is Confirmation.CONFIRMED]
    nacked = [receipt for receipt in receipts if receipt.confirmation is Confirmation.NACKED]
    assert len(confirmed) + len(nacked) == 10
    assert confirmed[:3] == [b"0", b"1", b"2"]
    assert nacked


def test_an_error_in_the_input_is_raised_after_earlier_messages_are_confirmed(connection: Connection) -> None:
    """If the iterable of messages that is being published raises an error, publish() first waits until all earlier
    messages are confirmed, and then raises this error.
    """
    channel = connection.channel()
    channel.declare(QUEUE)

    def source() -> Any:
        yield from (Message(b"good") for _ in range(100))
        raise BadData("line 101 is not JSON")

    receipts = channel.publish(source(), routing_key=QUEUE.name)

    assert len([next(receipts) for _ in range(100)]) == 100
    with pytest.raises(BadData, match="line 101"):
        next(receipts)


def test_a_batch_is_published_up_to_an_invalid_message(connection: Connection) -> None:
    """If a batch contains an invalid message, the messages before it are confirmed, and publishing then raises
    UsageError. The invalid message and those after it stay in the batch, so that `send --failed-to` can write them to a
    file.
    """
    channel = connection.channel()
    channel.declare(QUEUE)
    batch = [Message(b"%d" % number, "k" * (number // 5 * 300) or QUEUE.name) for number in range(8)]

    class Source(InBatches):
        def batches(self) -> Iterator[list[Message]]:
            yield [Message(b"first")]
            yield []
            yield batch

        def __iter__(self) -> Iterator[Message]:
            raise NotImplementedError

    receipts = channel.publish(Source(), routing_key=QUEUE.name)

    assert [next(receipts).message.body for _ in range(6)] == [b"first", b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(UsageError, match="routing key is 300 bytes"):
        next(receipts)
    assert [message.body for message in batch] == [b"5", b"6", b"7"]


def test_a_routing_key_of_more_than_255_bytes_is_refused(connection: Connection) -> None:
    """Publishing with a routing key of more than 255 bytes raises UsageError. The next message on the same channel is
    confirmed.
    """
    channel = connection.channel()
    channel.declare(QUEUE)

    with pytest.raises(UsageError, match="routing key is 256 bytes"):
        list(channel.publish([Message(b"")], routing_key="k" * 256))
    [receipt] = channel.publish([Message(b"")], routing_key=QUEUE.name)
    assert receipt.confirmation is Confirmation.CONFIRMED


def test_publishing_to_a_missing_exchange_raises_the_brokers_error(connection: Connection) -> None:
    """If the exchange does not exist, publish() raises the broker's error instead of waiting for confirms."""
    channel = connection.channel()

    with pytest.raises(Unavailable, match="no exchange 'missing' in vhost"):
        list(channel.publish([Message(b"")] * 10, exchange=Exchange("missing")))
