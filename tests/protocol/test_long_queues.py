"""Messages that wait on disk behave like those in memory: order, expiry, limits and restarts."""

import itertools
import time
from typing import Any

import pika
import pytest
from pamqp import commands
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import large
from tests.cli.shell import wait_until
from tests.processes import resident
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Take
from tests.protocol.raw_client import RawClient, raw_frame

MANY = 1200
pytestmark = large
KINDS = [{}, {"x-queue-type": "quorum"}, {"x-max-priority": 2}]


def connect(process: BrokerProcess) -> BlockingChannel:
    return pika.BlockingConnection(pika.URLParameters(process.url)).channel()


@pytest.fixture
def channel(process: BrokerProcess) -> BlockingChannel:
    """A channel with confirms, on a broker whose memory is full, so that messages are paged out to disk."""
    channel = connect(process)
    channel.confirm_delivery()
    channel.queue_declare("filler", durable=True)
    # Small messages fill the memory that the large ones leave free.
    for size in [1_000_000] * 33 + [10_000] * 60:
        channel.basic_publish("", "filler", bytes(size), BasicProperties(delivery_mode=2))
    return channel


def publish(channel: BlockingChannel, numbers: range = range(MANY), **properties: Any) -> None:
    """Publish persistent messages to the queue `q`; they are on disk when it returns."""
    publisher = channel.connection.channel()
    publisher.tx_select()
    for number in numbers:
        headers = {"number": number}
        persistent = BasicProperties(delivery_mode=2, headers=headers, **properties)
        publisher.basic_publish("", "q", b"%d" % number, persistent)
    publisher.tx_commit()


def depth(channel: BlockingChannel, queue: str = "q") -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def take_all(channel: BlockingChannel, queue: str = "q") -> list[tuple[int, bool]]:
    """Return number and redelivered flag of all messages, and assert that they are unchanged."""
    taken = []
    count = depth(channel, queue)
    for method, properties, body in itertools.islice(channel.consume(queue, auto_ack=True), count):
        number = int(body)
        assert properties.headers is not None
        assert properties.headers["number"] == number
        assert properties.delivery_mode == 2
        taken.append((number, bool(method.redelivered)))
    channel.cancel()
    assert depth(channel, queue) == 0
    return taken


def numbers(taken: list[tuple[int, bool]]) -> list[int]:
    return [number for number, _ in taken]


@pytest.mark.parametrize("arguments", KINDS, ids=["classic", "quorum", "priority"])
def test_paged_out_messages_keep_their_order(channel: BlockingChannel, arguments: dict[str, Any]) -> None:
    """If 1,200 messages were paged out to disk, they are delivered in order, even if some of them were requeued because
    a channel was closed.
    """
    channel.queue_declare("q", durable=True, arguments=arguments)
    publish(channel)
    tags = [channel.basic_get("q")[0].delivery_tag for _ in range(700)]
    for tag in (*tags[:3], tags[-1]):
        channel.basic_ack(tag)
    channel.close()
    again = channel.connection.channel()
    assert depth(again) == MANY - 4
    taken = take_all(again)
    assert numbers(taken) == [*range(3, 699), *range(700, MANY)]
    assert [redelivered for _, redelivered in taken] == [True] * 696 + [False] * 500


def test_transient_and_persistent_messages_keep_their_order(channel: BlockingChannel) -> None:
    """If transient messages, which stay in memory, and persistent messages are published alternately, they are
    delivered in the order in which they were published.
    """
    channel.queue_declare("q", durable=True)
    for number in range(40):
        channel.basic_publish("", "q", b"%d" % number, BasicProperties(delivery_mode=1 + number % 2))
    assert [int(channel.basic_get("q", auto_ack=True)[2]) for _ in range(40)] == list(range(40))


def test_paged_out_messages_are_delivered_by_priority(channel: BlockingChannel) -> None:
    """If 1,200 messages were paged out to disk, those with the higher priority are delivered first."""
    channel.queue_declare("q", durable=True, arguments={"x-max-priority": 2})
    publish(channel, range(600))
    publish(channel, range(600, MANY), priority=1)
    assert numbers(take_all(channel)) == [*range(600, MANY), *range(600)]


def test_paged_out_messages_expire_in_order(channel: BlockingChannel) -> None:
    """When messages that were paged out to disk expire, they are dead-lettered in the order in which they were
    published.
    """
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("q", durable=True, arguments=arguments)
    channel.queue_declare("dead", durable=True)
    publish(channel, expiration="1")
    Take(channel).until(lambda: depth(channel, "dead") == MANY)
    assert numbers(take_all(channel, "dead")) == list(range(MANY))
    assert depth(channel) == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_full_queue_dead_letters_its_oldest_messages_from_disk(channel: BlockingChannel, kind: str) -> None:
    """If a queue with x-max-length 700 gets 1,200 messages, which are paged out to disk, it dead-letters the oldest 500
    messages in order.
    """
    arguments = {"x-queue-type": kind, "x-max-length": 700}
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("q", durable=True, arguments=arguments | dead)
    channel.queue_declare("dead", durable=True)
    publish(channel)
    assert numbers(take_all(channel)) == list(range(500, MANY))
    assert numbers(take_all(channel, "dead")) == list(range(500))


@pytest.mark.parametrize(
    ("how", "arguments"),
    [*zip(["stop", "kill", "kill, then stop"], KINDS, strict=True), ("stop", KINDS[1]), ("kill", KINDS[0])],
    ids=str,
)
def test_paged_out_messages_survive_a_restart(
    process: BrokerProcess, channel: BlockingChannel, arguments: dict[str, Any], how: str
) -> None:
    """After the broker has been stopped or killed and then started again, all messages that were paged out to disk are
    in the queue, in order. After a kill, all of them are marked as redelivered, because they may have been delivered
    before.
    """
    channel.queue_declare("q", durable=True, arguments=arguments)
    publish(channel)
    assert channel.basic_get("q")[2] == b"0"
    if how != "stop":
        process.kill()
        process.start()
        publish(connect(process), range(MANY, MANY + 5))
    if how != "kill":
        assert process.stop() == 0
        process.start()
    taken = take_all(connect(process))
    if how != "stop":
        assert taken == [(number, number < MANY) for number in range(MANY + 5)]
    else:
        assert taken == [(number, number == 0) for number in range(MANY)]


@pytest.mark.parametrize("arguments", KINDS, ids=["classic", "quorum", "priority"])
def test_purged_messages_do_not_return_after_a_kill(
    process: BrokerProcess, channel: BlockingChannel, arguments: dict[str, Any]
) -> None:
    """A queue of 1,200 messages is purged, and then one more message is published. If the broker is then killed and
    restarted, the queue contains only this last message.
    """
    channel.queue_declare("q", durable=True, arguments=arguments)
    publish(channel)
    assert channel.queue_purge("q").method.message_count == MANY
    channel.basic_publish("", "q", b"after", BasicProperties(delivery_mode=2))
    process.kill()
    process.start()
    channel = connect(process)
    assert channel.basic_get("q")[2] == b"after"
    assert depth(channel) == 0


def test_60000_waiting_messages_take_less_than_60_mb_of_memory(process: BrokerProcess) -> None:
    """If 60,000 messages of 1,000 bytes wait in a queue, they take less than 60 MB of the broker's memory, even after a
    restart.
    """
    nothing = resident(process.pid)
    with RawClient(process.url) as client:
        client.send(commands.Queue.Declare(queue="q", durable=True))
        client.expect(commands.Queue.DeclareOk)
        header = b"\x00\x3c\0\0" + (1000).to_bytes(8) + b"\x10\x00\x02"
        method = raw_frame(1, 1, b"\x00\x3c\x00\x28\0\0\0\x01q\0")
        client.socket.settimeout(30)
        client.socket.sendall((method + raw_frame(2, 1, header) + raw_frame(3, 1, bytes(1000))) * 60_000)
        client.send(commands.Queue.Declare(queue="q", passive=True))
        assert client.expect(commands.Queue.DeclareOk).message_count == 60_000
    wait_until(lambda: resident(process.pid) - nothing < 60_000_000, "the disk, which may be behind")
    assert process.stop() == 0
    process.start()
    assert resident(process.pid) - nothing < 60_000_000
    assert connect(process).queue_purge("q").method.message_count == 60_000


def test_a_purge_returns_memory_to_the_operating_system(process: BrokerProcess) -> None:
    """After 100 MB of messages are purged, the broker's process returns at least 20 MB to the operating system."""
    nothing = resident(process.pid)
    channel = connect(process)
    channel.queue_declare("q")
    for _ in range(5000):
        channel.basic_publish("", "q", bytes(20_000))
    assert depth(channel) == 5000
    assert resident(process.pid) - nothing > 90_000_000
    channel.queue_purge("q")
    deadline = time.monotonic() + 60
    while resident(process.pid) - nothing > 70_000_000:
        assert time.monotonic() < deadline
        channel.connection.process_data_events(0.1)
