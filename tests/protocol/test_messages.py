"""Messages of any size, and names with any characters."""

from collections.abc import Callable

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import TestBroker
from tests.protocol.conftest import Take


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
