"""Metrics for Prometheus: the embedded broker's, compared with those of RabbitMQ's plugin rabbitmq_prometheus."""

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pika
import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import rabbitmq_plugins
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Started, Wanted
from tests.brokers import free_port, large, own_broker, rabbitmqctl
from tests.cli.shell import wait_until
from tests.protocol.loop_watch import LoopWatch
from tests.protocol.raw_amqp10 import ACCEPTED, TRANSFER, RawAmqp10, described
from tests.protocol.raw_client import RawClient
from tests.protocol.raw_stream import OPEN, RawStream, string

MANY = 10_000


#: The name of a metric without the prefix `rabbitmq_`, and its labels.
Sample = tuple[str, frozenset[tuple[str, str]]]


class Scraped(NamedTuple):
    """The metrics of an endpoint: their types, and the values of their samples. Erlang's own metrics are left out."""

    types: dict[str, str]
    samples: dict[Sample, float]

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    def labels(self) -> set[tuple[str, frozenset[str]]]:
        """Return the metrics that have samples, each with the names of its labels."""
        return {(name, frozenset(label for label, _ in labels)) for name, labels in self.samples}


def asked(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """The status, the content type and the text of a response from a metrics port."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type") or "", answer.read().decode()


def scraped(url: str) -> Scraped:
    """Return RabbitMQ's own metrics, without those of Erlang."""
    status, kind, text = asked(url, urlsplit(url).path)
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    found = Scraped({}, {})
    for line in text.splitlines():
        if line.startswith("# TYPE rabbitmq_"):
            name, kind = line.removeprefix("# TYPE rabbitmq_").split()
            found.types[name] = kind
        elif sample := re.fullmatch(r"rabbitmq_(\w+)(?:\{(.*)\})? (\S+)", line):
            labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', sample[2] or "")
            found.samples[sample[1], frozenset(labels)] = float(sample[3])
    return found


def metrics_url(broker: EmbeddedBroker) -> str:
    return broker.urls["http/prometheus"]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(prometheus_port=0, stream_port=0) as broker:
        yield broker


def act(connection: pika.BlockingConnection) -> None:
    """Publish to queues of each type, get, consume, acknowledge, reject, and leave something unacknowledged."""
    channel = connection.channel()
    for kind in ("classic", "quorum", "stream"):
        channel.queue_declare(kind, durable=True, arguments={"x-queue-type": kind})
        for _ in range(5):
            channel.basic_publish("", kind, b"12345", pika.BasicProperties(delivery_mode=2))
    channel.queue_declare("empty", durable=True)
    channel.basic_publish("", "none", b"x")
    channel.basic_publish("", "none", b"x", mandatory=True)
    channel.basic_get("classic")
    channel.basic_get("classic", auto_ack=True)
    channel.basic_get("empty")
    consuming = connection.channel()
    consuming.basic_qos(prefetch_count=2)
    consuming.confirm_delivery()
    consuming.basic_publish("amq.fanout", "x", b"x")
    tags: list[int] = []
    consuming.basic_consume("quorum", lambda _channel, method, *_rest: tags.append(method.delivery_tag))
    while len(tags) < 2:
        connection.process_data_events(0.01)
    consuming.basic_ack(tags[0])
    consuming.basic_reject(tags[1], requeue=False)
    while len(tags) < 4:
        connection.process_data_events(0.01)


#: Metrics whose values depend on the machine, the process, or on how busy a consumer has been.
OF_PROCESS = (
    "queue_consumer_capacity",
    "queue_consumer_utilisation",
    "process_",
    "disk_space_available_bytes",
    "resident_memory",
    "erlang_",
    "auth_",
    "connection_",
    "identity_",
    "build_",
)


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Started, str]]:
    """A private RabbitMQ node with rabbitmq_prometheus on a port of its own, and the URL of its metrics."""
    own_broker(BrokerKind.NODE)
    starter, port = STARTERS[BrokerKind.NODE], free_port()
    started = starter.start(Wanted(f"metrics-{port}", free_port()))
    try:
        connect_within(90, lambda: Connection(parse_addresses(started.url))).close()
        setting = f"application:set_env(rabbitmq_prometheus, tcp_config, [{{port, {port}}}])."
        rabbitmqctl(started, "eval", setting)
        rabbitmq_plugins.change(started, "enable", ["rabbitmq_prometheus"])
        yield started, f"http://127.0.0.1:{port}/metrics"
    finally:
        starter.stop(started)
        starter.discard(started)


def test_each_metric_of_the_embedded_broker_is_one_of_rabbitmqs_metrics(node: tuple[Started, str]) -> None:
    """Each metric of the embedded broker has the name, type and labels of a metric of RabbitMQ 3.10. After the same
    operations, both brokers report the same value, unless the metric depends on the machine or belongs to one channel.
    """
    started, url = node
    with (
        EmbeddedBroker(prometheus_port=0, stream_port=0, like="3.10") as broker,
        pika.BlockingConnection(pika.URLParameters(broker.url)) as ours,
        pika.BlockingConnection(pika.URLParameters(started.url)) as theirs,
    ):
        act(ours)
        act(theirs)
        for path in ("", "/per-object"):
            here = scraped(metrics_url(broker) + path)
            assert len(comparable(here)) > 40

            def differences(path: str = path, here: Scraped = here) -> dict[Sample, tuple[float, float | None]]:
                theirs.process_data_events(0.1)
                ours.process_data_events(0)
                there = scraped(url + path).samples
                return {
                    each: (value, there.get(each))
                    for each, value in comparable(here).items()
                    if there.get(each) != value
                }

            # RabbitMQ's queues and channels report their figures every few seconds.
            wait_until(lambda: not differences(), lambda: f"ours and theirs: {differences()}")
            there = scraped(url + path)
            assert here.types.items() <= there.types.items()
            assert here.labels() <= there.labels()


def comparable(found: Scraped) -> dict[Sample, float]:
    """Return the samples whose values do not depend on the machine, and whose labels name no process of Erlang."""
    return {
        (name, labels): value
        for (name, labels), value in found.samples.items()
        if not name.startswith(OF_PROCESS) and "channel" not in dict(labels)
    }


def test_metrics_have_totals_and_the_values_of_each_queue_and_channel(broker: EmbeddedBroker) -> None:
    """The embedded broker's /metrics contains totals over all queues and channels, and its /metrics/per-object
    contains the values of each queue and channel.
    """
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        act(connection)
        sums, each = (scraped(metrics_url(broker) + path) for path in ("", "/per-object"))
    totals = {"connections": 1, "channels": 2, "consumers": 1, "queues": 4}
    totals |= {"queue_messages_ready": 9, "queue_messages_unacked": 3, "queue_messages": 12}
    totals |= {"channel_consumers": 1, "channel_messages_unacked": 3, "consumer_prefetch": 2}
    assert {name: sums.value(name) for name in totals} == totals
    assert each.value("queue_messages_ready", vhost="/", queue="stream") == 5
    assert each.value("queue_messages_unacked", vhost="/", queue="quorum") == 2
    assert each.value("queue_consumers", vhost="/", queue="quorum") == 1
    where = {"vhost": "/", "queue": "classic", "queue_type": "rabbit_classic_queue", "membership": "leader"}
    assert each.value("queue_info", **where) == 1
    published = [
        value
        for (name, labels), value in each.samples.items()
        if name == "channel_messages_published_total" and ("exchange", "amq.fanout") in labels
    ]
    assert published == [1]
    named = dict(next(labels for name, labels in sums.samples if name == "identity_info"))
    assert (named["rabbitmq_node"], named["rabbitmq_endpoint"]) == ("embedded@localhost", "aggregated")
    assert ("rabbitmq_version", "4.2.9") in next(labels for name, labels in sums.samples if name == "build_info")


def protocol(found: Scraped, name: str, of: str, kind: str | None = None) -> float | None:
    """Return the value of a metric of the whole broker for a protocol and, if given, a queue type."""
    labels = {"protocol": of} | ({} if kind is None else {"queue_type": f"rabbit_{kind}_queue"})
    return found.value(f"global_{name}", **labels)


def test_metrics_count_messages_separately_for_each_protocol(broker: EmbeddedBroker) -> None:
    """The totals in the embedded broker's /metrics count messages of AMQP 0-9-1, AMQP 1.0 and the stream protocol
    separately, even if clients of several protocols use the same queue.
    """
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection, RawAmqp10(broker.url) as client10:
        act(connection)
        for number in range(3):
            client10.attach_sender("/queues/empty", handle=1) if not number else None
            client10.published(number, handle=1)
        client10.attach_receiver("/queues/empty", handle=2)
        client10.expect(TRANSFER)
        client10.settle(0, described(ACCEPTED))
        streams = RawStream("127.0.0.1", broker.stream_port or 0)
        streams.log_in()
        assert streams.request(OPEN, string("/")).code == 1
        streams.declare_publisher(1, "stream")
        streams.publish(1, 1, b"a", b"b")
        assert streams.confirmed(2) == [1, 2]
        streams.subscribe(1, "stream")
        assert len(streams.entries(7)) == 7
        found = scraped(metrics_url(broker))
        while protocol(found, "messages_acknowledged_total", "amqp10", "classic") != 1:
            found = scraped(metrics_url(broker))
        streams.close()
    counts = {
        "messages_received_total": (18, 3, 2),
        "messages_received_confirm_total": (1, 3, 2),
        "messages_confirmed_total": (1, 3, 2),
        "messages_routed_total": (15, 3, 0),
        "messages_unroutable_dropped_total": (2, 0, 0),
        "messages_unroutable_returned_total": (1, 0, 0),
        "publishers": (2, 1, 1),
        "consumers": (1, 1, 1),
    }
    names = ("amqp091", "amqp10", "stream")
    assert {what: tuple(protocol(found, what, each) for each in names) for what in counts} == counts
    assert protocol(found, "messages_delivered_total", "amqp091", "classic") == 2
    assert protocol(found, "messages_delivered_total", "amqp10", "classic") == 3
    assert protocol(found, "messages_delivered_total", "amqp091", "quorum") == 4
    assert protocol(found, "messages_delivered_total", "stream", "stream") == 7
    assert protocol(found, "messages_delivered_get_auto_ack_total", "amqp091", "classic") == 1
    assert protocol(found, "messages_acknowledged_total", "amqp091", "quorum") == 1
    assert protocol(found, "messages_get_empty_total", "amqp091", "classic") == 1


def test_totals_in_metrics_do_not_decrease(broker: EmbeddedBroker) -> None:
    """The totals in the embedded broker's /metrics do not decrease when a virtual host is deleted, or when a channel is
    closed, whether by the client or because of an error.
    """
    broker.under_test(lambda found: found.add_vhost("other"))
    other = broker.url.replace("%2F", "other")
    with pika.BlockingConnection(pika.URLParameters(other)) as connection:
        act(connection)
        failing = connection.channel()
        failing.basic_publish("amq.fanout", "", b"x")
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            failing.queue_declare("none", passive=True)
        before = scraped(metrics_url(broker))
        assert protocol(before, "messages_received_total", "amqp091") == 19
    broker.under_test(lambda found: found.delete_vhost("other"))
    after = scraped(metrics_url(broker))
    assert after.value("connections") == 0
    totals = {name for name in before.samples if name[0].startswith("global_messages_")}
    assert len(totals) > 20
    assert {name: after.samples[name] for name in totals} == {name: before.samples[name] for name in totals}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "ä"])
def test_queue_names_in_metrics_are_escaped(broker: EmbeddedBroker, name: str) -> None:
    """In the embedded broker's metrics, quotes and backslashes in queue names are escaped as Prometheus's text format
    requires.
    """
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_declare(name, durable=True)
        found = scraped(f"{metrics_url(broker)}/per-object")
    escaped = name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    assert found.value("queue_messages", vhost="/", queue=escaped) == 0


@large
def test_metrics_of_many_queues_do_not_hold_up_other_clients() -> None:
    """While the broker generates the metrics of 10,000 queues, it never uses more than 0.5 s of CPU time before it
    serves other clients. The response contains the metrics of all queues.
    """
    with EmbeddedBroker(prometheus_port=0) as broker:
        assert broker._server is not None
        vhost = broker._server.broker.vhosts["/"]
        for number in range(MANY):
            declared = QueueDeclaration(f"q{number}", {})
            broker.under_test(lambda _, declared=declared: vhost.add_queue(declared))
        watch = LoopWatch(broker)
        watch.take()
        found = scraped(f"{metrics_url(broker)}/per-object")
        watch.check()
        assert sum(name == "queue_messages" for name, _ in found.samples) == MANY
        assert scraped(metrics_url(broker)).value("queues") == MANY
        watch.check()


@large
def test_metrics_of_many_channels_do_not_hold_up_other_clients() -> None:
    """While the broker generates the metrics of 100,000 channels, it never uses more than 0.5 s of CPU time before it
    serves other clients.
    """
    with EmbeddedBroker(prometheus_port=0) as broker, RawClient(broker.url):

        def open_channels() -> None:
            assert broker._server is not None
            (session,) = broker._server._connections
            session.channels |= {number: BrokerChannel(number, session) for number in range(2, 10 * MANY)}

        broker.under_test(lambda _: open_channels())
        watch = LoopWatch(broker)
        watch.take()
        assert scraped(metrics_url(broker)).value("channels") == 10 * MANY - 1
        watch.check()


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/metrics", {}, 200),
        ("HEAD", "/metrics/per-object", {}, 200),
        ("GET", "/metrics", {"authorization": "Basic bm9uZTpub25l"}, 200),
        ("POST", "/metrics", {}, 405),
        ("GET", "/api/overview", {}, 404),
        ("GET", "/", {}, 404),
        ("GET", "/metrics", {"origin": "https://example.com"}, 403),
        ("GET", "/metrics", {"host": "example.com"}, 421),
    ],
    ids=str,
)
def test_the_metrics_port_serves_only_metrics_and_refuses_requests_from_pages_of_another_site(
    broker: EmbeddedBroker, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """The metrics port answers GET and HEAD requests for metrics without a login. It answers any other method with
    status 405, and any other path with 404. To keep web pages of other sites out, it refuses a request whose Origin
    header names another site (403) or whose Host header names another host (421).
    """
    assert asked(metrics_url(broker), path, method, **headers)[0] == status


def test_metrics_are_served_on_the_loopback_address_only() -> None:
    """The embedded broker serves metrics only on 127.0.0.1, even if it listens on all addresses."""
    with EmbeddedBroker(host="0.0.0.0", prometheus_port=0) as broker:
        url = metrics_url(broker)
        assert urlsplit(url).hostname == "127.0.0.1"
        assert scraped(url).value("connections") == 0
        # The whole of 127.0.0.0/8 is this machine, on Linux.
        with pytest.raises(OSError, match=r".+"):
            socket.create_connection(("127.0.0.2", urlsplit(url).port or 0), 5)


@large
def test_broker_serve_offers_metrics_only_with_prometheus_port() -> None:
    """`broker serve --prometheus-port` serves metrics and prints their URL. Without the option, `broker serve` prints
    no such URL.
    """
    command = [sys.executable, "-m", "mqtool", "broker", "serve", "--port", "0", "--print-url"]
    found: dict[str, str] = {}
    for option in ((), ("--prometheus-port", "0")):
        with subprocess.Popen([*command, *option], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as serving:
            assert serving.stdout is not None
            lines = [serving.stdout.readline().decode().strip() for _ in range(1 + bool(option))]
            if option:
                assert scraped(lines[1]).value("queues") == 0
            serving.terminate()
            found[str(option)] = lines[-1] + serving.stdout.read().decode()
    assert ["/metrics" in each for each in found.values()] == [False, True]


def test_starting_the_embedded_broker_with_a_metrics_port_in_use_raises_an_error(broker: EmbeddedBroker) -> None:
    """If the metrics port is in use, EmbeddedBroker.start() raises an OSError that names the port."""
    taken = urlsplit(metrics_url(broker)).port
    with pytest.raises(OSError, match=str(taken)):
        EmbeddedBroker(prometheus_port=taken).start()
