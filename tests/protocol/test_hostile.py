"""Messages that no well-behaved client sends: the embedded broker delivers and dead-letters them like all others.

RabbitMQ 3.10 accepts most of them; it refuses NaN and infinity, and its queues fail on an `x-death` that is not a list.
"""

import struct
from collections.abc import Callable, Iterator
from itertools import product

import pytest
from pamqp import commands

from mqtool.broker.embedded import EmbeddedBroker
from tests.protocol.conftest import Api
from tests.protocol.raw_client import RawClient, raw_frame

NAMES = [b"a\0b", b"\xff\xfe", b"a\nb", b"\xed\xa0\x80", b"x" * 255]


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def sized(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"F" + sized(short(b"n") + value)
    return value


X_DEATH = b"A" + sized(
    b"F"
    + sized(
        short(b"queue") + b"S" + sized(b"dying") + short(b"reason") + b"S" + sized(b"expired")
        + short(b"count") + b"l" + b"\x7f" + b"\xff" * 7
    )
)  # fmt: skip

HEADERS = [
    *[short(name) + b"S" + sized(name) for name in NAMES],
    short(b"h") + nested(60),
    *[
        short(name) + value
        for name, value in product(
            (b"x-delay", b"x-death", b"CC", b"h", b"x-first-death-queue"),
            (
                b"T" + b"\xff" * 8,
                b"l\x80" + b"\0" * 7,
                b"D\xff\xff\xff\xff\xff",
                b"V",
                b"S" + sized(b"\xff"),
                b"x" + sized(b"\0"),
                b"A" + sized(b"V"),
            ),
        )
        # Any other CC is refused.
        if name != b"CC" or value.startswith(b"A")
    ],
    short(b"x-death") + X_DEATH,
]
NOT_FINITE = [
    short(name) + value
    for name, value in product(
        (b"x-delay", b"x-death", b"h", b"x-first-death-queue"),
        (
            b"d\x7f\xf8\0\0\0\0\0\0",  # NaN
            b"d\x7f\xf0\0\0\0\0\0\0",  # infinity
            b"f\x7f\x80\0\0",
        ),
    )
]


def publish(
    client: RawClient, exchange: bytes, key: bytes, headers: bytes, properties: bytes = b"", flags: int = 0
) -> None:
    method = b"\x00\x3c\x00\x28\0\0" + short(exchange) + short(key) + b"\0"
    header = struct.pack(">HHQH", 60, 0, 1, 0x2000 | flags) + sized(headers) + properties
    client.socket.sendall(raw_frame(1, 1, method) + raw_frame(2, 1, header) + raw_frame(3, 1, b"x"))


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def client(broker: EmbeddedBroker) -> RawClient:
    """A channel with a queue whose messages expire at once, one whose messages can be rejected, and one for dead
    letters.
    """
    client = RawClient(broker.url)
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "buried"}
    for name, arguments in (("dying", {**dead, "x-message-ttl": 0}), ("rejecting", dead), ("buried", {})):
        client.send(commands.Queue.Declare(queue=name, exclusive=True, arguments=arguments))
        client.expect(commands.Queue.DeclareOk)
        client.send(commands.Queue.Bind(queue=name, exchange="amq.fanout"))
        client.expect(commands.Queue.BindOk)
    client.send(commands.Basic.Consume(queue="buried", no_ack=True))
    client.expect(commands.Basic.ConsumeOk)
    return client


def buried(client: RawClient) -> bytes:
    """Return the delivery and header of the next dead letter as bytes."""
    frames = []
    for _ in range(3):
        head = client.read(7)
        frames.append(head + client.read(struct.unpack(">I", head[3:])[0] + 1))
    assert frames[0][7:11] == b"\x00\x3c\x00\x3c", frames[0]
    return frames[0] + frames[1]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: headers[:40].hex())
def test_messages_with_unusual_headers_are_routed_and_dead_lettered(client: RawClient, headers: bytes) -> None:
    """If a message has an unusual header, such as one with a timestamp out of range or a forged x-death, the broker
    routes the message to its queues. When the message expires, it is dead-lettered with the header x-first-death-queue.
    """
    publish(client, b"amq.fanout", b"k", headers)
    found = [buried(client) for _ in range(2)]
    assert sum(b"x-first-death-queue" in one for one in found) >= 1
    client.send(commands.Queue.Purge(queue="rejecting"))
    assert client.expect(commands.Queue.PurgeOk).message_count == 1


@pytest.mark.parametrize("headers", NOT_FINITE, ids=lambda headers: headers.hex())
def test_a_header_whose_value_is_not_finite_closes_the_connection(client: RawClient, headers: bytes) -> None:
    """If a header of a message is NaN or infinite, the broker closes the connection with 541, as RabbitMQ does."""
    publish(client, b"amq.fanout", b"k", headers)
    assert client.closed_with().startswith("541 INTERNAL_ERROR")


@pytest.mark.parametrize("key", NAMES)
def test_x_death_contains_an_invalid_routing_key_unchanged(client: RawClient, key: bytes) -> None:
    """A dead letter's x-death header contains the message's routing key unchanged, even if the key is not valid UTF-8
    or contains NUL.
    """
    publish(client, b"amq.fanout", key, b"")
    found = b"".join(buried(client) for _ in range(2))
    assert found.count(key) >= 2
    assert b"routing-keys" in found


@pytest.mark.parametrize("name", NAMES)
def test_text_properties_that_are_not_valid_utf_8_are_delivered_unchanged(client: RawClient, name: bytes) -> None:
    """A message's text properties, such as its correlation id, are delivered unchanged, even if they are not valid
    UTF-8 or contain NUL.
    """
    publish(client, b"amq.fanout", b"k", b"", short(name) * 5, flags=0x0400 | 0x0200 | 0x0080 | 0x0020 | 0x0008)
    for _ in range(2):
        assert short(name) * 5 in buried(client)


@pytest.mark.parametrize("depth", [60, 61, 62, 63, 64])
@pytest.mark.parametrize("name", [b"h", b"CC"])
def test_the_firehose_copies_messages_with_deeply_nested_headers(
    name: bytes, depth: int, api_of: Callable[[EmbeddedBroker], Api]
) -> None:
    """While tracing is on, a message with deeply nested headers is delivered and, after a nack, redelivered. The
    firehose copies the published message and both deliveries.
    """
    value = nested(depth) if name == b"h" else b"A" + sized(nested(depth - 1))
    with EmbeddedBroker(management_port=0) as broker:
        assert api_of(broker)("PUT", "vhosts/%2F", {"tracing": True})[0] == 204
        client = RawClient(broker.url)
        client.send(commands.Queue.Declare(queue="traced", exclusive=True))
        client.expect(commands.Queue.DeclareOk)
        client.send(commands.Queue.Bind(queue="traced", exchange="amq.rabbitmq.trace", routing_key="#"))
        client.expect(commands.Queue.BindOk)
        client.send(commands.Queue.Declare(queue="q", durable=True, arguments={"x-queue-type": "quorum"}))
        client.expect(commands.Queue.DeclareOk)
        publish(client, b"", b"q", short(name) + value)
        client.send(commands.Basic.Consume(queue="q", consumer_tag="t"))
        client.expect(commands.Basic.ConsumeOk)
        assert b"\1t" in buried(client)
        client.send(commands.Basic.Nack(delivery_tag=1, requeue=True))
        assert b"x-delivery-count" in buried(client)
        client.send(commands.Queue.Declare(queue="traced", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == 3
