"""A full disk: messages that cannot be stored are not confirmed, publishers wait for room, and no confirmed message is
lost.
"""

import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pamqp import commands, header
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ConnectionClosed

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.store.storage import Storage
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Api
from tests.protocol.raw_client import RawClient

PERSISTENT = BasicProperties(delivery_mode=2)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path, "--data-dir", str(tmp_path / "data"), "--management-port", "0") as broker:
        yield broker


def body(number: int) -> bytes:
    """Return the body of the message with this number, counted from 0."""
    return b"%010000d" % number


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def open_channel(process: BrokerProcess, kind: str = "classic") -> BlockingChannel:
    channel = pika.BlockingConnection(pika.URLParameters(process.url)).channel()
    channel.confirm_delivery()
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
    return channel


def fill_disk(process: BrokerProcess, room: int) -> None:
    """Let the broker's files grow by at most this many bytes."""
    assert process.process is not None
    largest = max(path.stat().st_size for path in (process.directory / "data").iterdir())
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (largest + room, resource.RLIM_INFINITY))


def free_disk(process: BrokerProcess) -> None:
    assert process.process is not None
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, unlimited)


class Publishing(threading.Thread):
    """Publishes with confirms, one by one, up to a number of messages; keeps the confirmed ones."""

    def __init__(self, process: BrokerProcess, number: int, kind: str = "classic") -> None:
        super().__init__(daemon=True)
        self.channel = open_channel(process, kind)
        self.number = number
        self.confirmed = 0
        self.start()

    def run(self) -> None:
        try:
            for number in range(self.number):
                self.channel.basic_publish("", "q", body(number), PERSISTENT)
                self.confirmed += 1
        except AMQPError:
            return


def disk_alarm(process: BrokerProcess) -> bool:
    nodes: list[dict[str, Any]] = Api(process.management_url)("GET", "nodes")[1]
    return bool(nodes[0]["disk_free_alarm"])


def depth(process: BrokerProcess, kind: str = "classic") -> int:
    return int(open_channel(process, kind).queue_declare("q", passive=True).method.message_count)


@pytest.mark.parametrize("kind", ["classic", "stream"])
def test_publishers_wait_while_the_disk_is_full(process: BrokerProcess, kind: str) -> None:
    """While the disk is full, publishers wait for their publisher confirms. Once the disk has space again, each message
    is confirmed, and is in the queue exactly once.
    """
    open_channel(process, kind)
    fill_disk(process, 300_000)
    publishing = Publishing(process, 100, kind)
    until(lambda: disk_alarm(process))
    assert publishing.confirmed < 50
    free_disk(process)
    publishing.join(60)
    assert publishing.confirmed == 100
    assert not disk_alarm(process)
    assert depth(process, kind) == 100
    process.kill()
    process.start()
    assert depth(process, kind) == 100


def test_publishers_are_blocked_while_free_disk_space_is_below_disk_free_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If free disk space falls below disk_free_limit, a publisher receives connection.blocked with the reason "low on
    disk". Once the disk has space again, the publisher receives connection.unblocked and the publisher confirm for
    its message.
    """
    free = [2_000_000]
    monkeypatch.setattr(Storage, "disk_free", lambda _: free[0])
    with (
        EmbeddedBroker(data_dir=tmp_path, management_port=0, disk_free_limit=1_000_000) as broker,
        RawClient(broker.url) as client,
    ):
        assert broker.management_url is not None
        api = Api(broker.management_url)
        client.send(commands.Confirm.Select())
        client.expect(commands.Confirm.SelectOk)
        node = api("GET", "nodes")[1][0]
        assert (node["disk_free"], node["disk_free_limit"], node["disk_free_alarm"]) == (2_000_000, 1_000_000, False)
        assert node["io_write_count"] >= 0
        free[0] = 999_999
        until(lambda: bool(api("GET", "nodes")[1][0]["disk_free_alarm"]))
        status, health = api("GET", "health/checks/alarms")
        assert (status, [each["resource"] for each in health["alarms"]]) == (503, ["disk"])
        client.send(commands.Basic.Publish(exchange="", routing_key="q"))
        client.send(header.ContentHeader(body_size=0, properties=commands.Basic.Properties()))  # type: ignore[arg-type]
        assert client.expect(commands.Connection.Blocked).reason == "low on disk"
        free[0] = 1_000_000
        told = {type(client.receive()) for _ in range(2)}  # in either order
        assert told == {commands.Connection.Unblocked, commands.Basic.Ack}


@pytest.mark.parametrize(("reason", "shown"), [("low on memory", "mem_alarm"), ("low on disk", "disk_free_alarm")])
def test_the_reason_of_the_fault_block_publishers_decides_which_alarm_is_shown(reason: str, shown: str) -> None:
    """While the embedded broker's fault `block_publishers` is in force, /api/nodes shows mem_alarm if the fault's
    reason is "low on memory", and disk_free_alarm if the reason is "low on disk".
    """
    with EmbeddedBroker(management_port=0) as broker:
        assert broker.management_url is not None
        api = Api(broker.management_url)
        with broker.faults.block_publishers(reason):
            node = api("GET", "nodes")[1][0]
            assert [name for name in ("mem_alarm", "disk_free_alarm") if node[name]] == [shown]
        assert not api("GET", "nodes")[1][0][shown]


def test_a_kill_while_the_disk_is_full_loses_no_confirmed_message(process: BrokerProcess) -> None:
    """If the broker is killed while its disk is full, and is then restarted, the queue contains exactly the confirmed
    messages, in the order in which they were published.
    """
    open_channel(process)
    fill_disk(process, 300_000)
    publishing = Publishing(process, 100)
    until(lambda: disk_alarm(process))
    process.kill()
    publishing.join(60)
    process.start()
    channel = open_channel(process)
    bodies = [channel.basic_get("q", auto_ack=True)[2] for _ in range(depth(process))]
    assert bodies == [body(number) for number in range(publishing.confirmed)]


def test_acknowledgements_while_the_disk_is_full_survive_a_restart(process: BrokerProcess) -> None:
    """If a client acknowledges messages while the disk is full, and the broker is later killed and restarted, these
    messages are gone, and the queue contains exactly the others.
    """
    open_channel(process)
    fill_disk(process, 300_000)
    publishing = Publishing(process, 100)
    until(lambda: disk_alarm(process))
    consuming = open_channel(process)
    acknowledged = publishing.confirmed
    for _ in range(acknowledged):
        method, _, _ = consuming.basic_get("q")
        consuming.basic_ack(method.delivery_tag)
    consuming.queue_declare("q", passive=True)
    free_disk(process)
    publishing.join(60)
    process.kill()
    process.start()
    channel = open_channel(process)
    bodies = [channel.basic_get("q", auto_ack=True)[2] for _ in range(depth(process))]
    assert acknowledged > 10
    assert bodies == [body(number) for number in range(acknowledged, 100)]


def test_a_declaration_that_cannot_be_stored_creates_nothing(process: BrokerProcess) -> None:
    """If the disk is too full to store a declaration, the broker creates nothing. Over AMQP, it closes the connection
    with RESOURCE_ERROR. Over HTTP, it responds with status 503.
    """
    open_channel(process)
    fill_disk(process, 0)
    many = {f"argument-{number}": "x" * 1000 for number in range(100)}
    for declare in (
        lambda channel: channel.queue_declare("new", durable=True, arguments=many),
        lambda channel: channel.exchange_declare("new", "fanout", durable=True, arguments=many),
        lambda channel: channel.queue_bind("q", "amq.direct", "new", many),
    ):
        with pytest.raises(ConnectionClosed, match="RESOURCE_ERROR - cannot write to the data directory"):
            declare(pika.BlockingConnection(pika.URLParameters(process.url)).channel())
    api = Api(process.management_url)
    assert api("GET", "queues/%2F/new")[0] == 404
    assert api("GET", "exchanges/%2F/new")[0] == 404
    assert len(api("GET", "queues/%2F/q/bindings")[1]) == 1
    assert api("PUT", "queues/%2F/new", {"durable": True, "arguments": many})[0] == 503
