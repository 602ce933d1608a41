"""RabbitMQ with its default settings, and as `mqtool broker up` starts it, with detailed and recent statistics."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.broker.node import PrivateNodes
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Started, Wanted
from tests.brokers import free_port, own_broker, weekly
from tests.cli.shell import Shell, wait_until

ROOT = Path(__file__).parents[2]
DIFFERENCES = ROOT / "docs" / "how-to" / "docker-and-clusters.md"

#: The defaults of the settings with which mqtool starts RabbitMQ.
AS_INSTALLED = (
    "collect_statistics_interval = 5000",
    "management.rates_mode = basic",
    *(
        f"management.sample_retention_policies.{section}.{kept} = {seconds}"
        for section in ("global", "basic", "detailed")
        for kept, seconds in (("minute", 5), ("hour", 60))
    ),
)


@pytest.fixture(scope="module", params=[AS_INSTALLED, ()], ids=["default settings", "broker up"])
def started(request: pytest.FixtureRequest) -> Iterator[Started]:
    own_broker(BrokerKind.NODE)
    nodes = PrivateNodes("RabbitMQ", request.param)
    started = nodes.start(Wanted(f"settings-{uuid.uuid4().hex[:8]}", free_port(), stream_port=0))
    connect_within(180, lambda: Connection(parse_addresses(started.url))).close()
    yield started
    nodes.stop(started)


@pytest.fixture
def shell(lonely_shell: Shell, started: Started) -> Shell:
    lonely_shell.environment |= {"MQTOOL_URL": started.url, "MQTOOL_MANAGEMENT_URL": started.details["management"]}
    return lonely_shell


@pytest.fixture
def channel(started: Started) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(started.url))
    yield connection.channel()
    connection.close()


def is_detailed(request: pytest.FixtureRequest) -> bool:
    return "broker up" in request.node.callspec.id


def test_topology_shows_the_exchange_of_a_publisher_only_with_detailed_rates(
    shell: Shell, channel: Any, request: pytest.FixtureRequest
) -> None:
    """If management.rates_mode is detailed, `topology` shows a publisher below the exchange to which it publishes.
    Otherwise, it lists all publishers together and names the missing setting.
    """
    channel.exchange_declare("logs", "fanout")
    channel.queue_declare("lines", durable=True)
    channel.queue_bind("lines", "logs")
    channel.basic_publish("logs", "", b"")
    channel.connection.process_data_events(0)
    wait_until(lambda: "<── " in shell.run("mqtool", "topology").stdout, "the publisher")
    lines = [line.strip("├─└│ ") for line in shell.run("mqtool", "topology").stdout.splitlines()]
    above = next(lines[number - 1] for number, line in enumerate(lines) if line.startswith("<── "))
    if is_detailed(request):
        assert above.startswith("logs  fanout"), lines
    else:
        assert above == "publishers (to see their exchanges, set management.rates_mode = detailed)", lines


@weekly
def test_queue_convert_refuses_a_queue_with_unacknowledged_messages(shell: Shell, channel: Any) -> None:
    """`queue convert` refuses a queue with unacknowledged messages, which would be lost, and exits with 69. It also
    finds messages that were delivered less than 5 s ago, even if the management API does not count them yet.
    """
    channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "classic"})
    channel.confirm_delivery()
    for _ in range(10):
        channel.basic_publish("", "jobs", b"x", pika.BasicProperties(delivery_mode=2))
    wait_until(lambda: "jobs\t10" in shell.run("mqtool", "list", "queues").stdout, "the count of ready messages")
    for _ in range(10):
        assert channel.basic_get("jobs")[0] is not None
    convert = ("mqtool", "queue", "convert", "--yes", "--force")  # the publisher has only just stopped
    refused = shell.run(*convert, "jobs")
    assert refused.code == 69, refused.stderr
    assert "unacknowledged, and would be lost" in refused.stderr
    channel.basic_nack(0, multiple=True)
    words = ("--resume", "jobs") if "--resume" in refused.stderr else ("jobs",)

    def is_converted() -> bool:
        return shell.run(*convert, *words).code == 0

    wait_until(is_converted, "the conversion", 60)
    assert "jobs\t10\n" in shell.run("mqtool", "list", "queues").stdout


def test_list_queues_counts_a_message_as_soon_as_it_is_confirmed(shell: Shell, channel: Any) -> None:
    """As soon as the broker has confirmed a message to a classic or quorum queue, `list queues` counts the message as
    ready.
    """
    channel.confirm_delivery()
    for kind in ("classic", "quorum"):
        channel.queue_declare(kind, durable=True, arguments={"x-queue-type": kind})
        channel.basic_publish("", kind, b"x")
    listed = shell.run("mqtool", "list", "queues").stdout
    assert "classic\t1\n" in listed
    assert "quorum\t1\n" in listed


def test_every_broker_setting_that_mqtool_changes_is_documented() -> None:
    """docs/how-to/docker-and-clusters.md names each setting that mqtool changes in the RabbitMQ nodes that it starts
    without Docker, and each setting that it changes in its Docker image of RabbitMQ. On this page, `a.*` stands for
    all settings whose names begin with `a.`.
    """
    node = (ROOT / "mqtool" / "broker" / "node.py").read_text()
    image = (ROOT / "mqtool" / "broker" / "image" / "rabbitmq.conf").read_text()
    start = (ROOT / "mqtool" / "broker" / "image" / "start").read_text()
    setting = r"\b([a-z_]+(?:\.[a-z_]+)*)(?:\.\d|\.\{\w+\})* = "
    names = {
        *re.findall(r"^" + setting, image, re.MULTILINE),
        *re.findall(r'"' + setting, start),
        *re.findall(r'f?"' + setting, node),
    }
    assert {"management.rates_mode", "collect_statistics_interval", "vm_memory_high_watermark.absolute"} <= names
    documented = DIFFERENCES.read_text()
    groups = tuple(re.findall(r"`([a-z_.]+\.)\*`", documented))
    alone = {name for name in names if not name.startswith(groups)}
    missing = sorted(name for name in alone if not re.search(rf"`{re.escape(name)}[`.]", documented))
    assert not missing, f"{DIFFERENCES.name} does not name {missing}"
