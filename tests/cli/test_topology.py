"""`topology` and `route` show where messages go, and why."""

import json
import re
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal

HOSTILE = "[red]x[/red]\x1b[31m"


@pytest.fixture(autouse=True)
def _management(shell: Shell, broker: TestBroker) -> None:
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management


@pytest.fixture
def channel(broker: TestBroker) -> Iterator[BlockingChannel]:
    """A channel in a virtual host with an exchange `logs`, two queues bound to it, and a third for
    unmatched messages.
    """
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.exchange_declare("rest", "fanout")
    channel.exchange_declare("logs", "topic", arguments={"alternate-exchange": "rest"})
    channel.exchange_declare("idle", "direct")
    channel.queue_declare("kern", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    for queue in ("audit", "other", "dead", HOSTILE):
        channel.queue_declare(queue)
    for queue, key in (("kern", "kern.*"), ("kern", "*.panic"), ("audit", "#.critical"), (HOSTILE, HOSTILE)):
        channel.queue_bind(queue, "logs", key)
    channel.queue_bind("other", "rest", "")
    yield channel
    connection.close()


@pytest.mark.own_vhost("statistics of what an earlier test has published may linger")
def test_topology_shows_publishers_bindings_and_consumers(
    shell: Shell, broker: TestBroker, channel: BlockingChannel
) -> None:
    """`topology` prints each exchange with its publishers and bindings, and each queue with its consumers. Control
    characters in names are escaped.
    """
    channel.basic_consume("kern", lambda *_: None, auto_ack=True, consumer_tag="eater")
    channel.basic_publish("logs", "kern.info", b"")
    channel.connection.process_data_events(0)

    tree = ""

    def complete() -> object:  # statistics come late, and in parts
        nonlocal tree
        tree = shell.run("mqtool", "topology").stdout
        return re.search(r"<── [\d.]+:\d+", tree) and re.search(r"> eater  [\d.]+:\d+ .*guest  auto-ack\n", tree)

    wait_until(complete, lambda: f"the publisher and the consumer in:\n{tree}")
    lines = [line.strip("├─└│ ") for line in tree.splitlines()]
    assert lines[0] == f"vhost {broker.vhost}"
    assert "logs  topic" in lines
    assert any(
        line.startswith("'*.panic', 'kern.*' ──> kern") or "'kern.*', '*.panic' ──> kern" in line for line in lines
    )
    assert "dies ──> (default exchange)  'dead'" in lines
    assert "otherwise ──> exchange rest" in lines
    assert "no bindings: messages published here are dropped" in lines
    assert any(line.startswith("> dead  ") for line in lines), "a queue that only the default exchange routes to"
    assert "amq.topic" not in tree
    assert "\x1b" not in tree
    assert repr(HOSTILE) in tree


@pytest.mark.own_vhost("its streams have counts only in statistics")
def test_topology_counts_the_messages_of_streams(shell: Shell) -> None:
    """`topology` prints how many messages a stream contains, as `list queues` does. Both the tree that it prints by
    default and `--format json` contain this number.
    """
    assert shell.run("mqtool", "send", "-q", "events", "--queue-type", "stream", "x").code == 0
    tree = ""

    def counted() -> bool:  # statistics come late
        nonlocal tree
        tree = shell.run("mqtool", "topology").stdout
        return "events  stream  1 ready" in tree

    wait_until(counted, lambda: f"one message in:\n{tree}")
    found = map(json.loads, shell.run("mqtool", "topology", "--format", "json").stdout.splitlines())
    assert [each["ready"] for each in found if each["kind"] == "queue" and each["name"] == "events"] == [1]


@on_any_broker
def test_topology_shows_ten_bindings_and_counts_the_rest(shell: Shell, channel: BlockingChannel) -> None:
    """If an exchange has 14 bindings, `topology EXCHANGE` prints ten bindings and "… and 4 more bindings". With --limit
    0, the command prints all 14.
    """
    for number in range(14):
        channel.queue_declare(f"many{number}")
        channel.queue_bind(f"many{number}", "idle", "k")
    tree = shell.run("mqtool", "topology", "idle").stdout
    assert tree.count("many") == 10
    assert "… and 4 more bindings" in tree
    assert shell.run("mqtool", "topology", "idle", "--limit", "0").stdout.count("many") == 14


def test_topology_of_an_exchange_shows_only_where_the_exchange_routes(shell: Shell, channel: BlockingChannel) -> None:
    """`topology EXCHANGE` shows only the exchanges and queues to which EXCHANGE routes messages, including the
    alternate exchange of EXCHANGE. If EXCHANGE does not exist, the command exits with 69.
    """
    tree = shell.run("mqtool", "topology", "logs").stdout
    assert "rest  fanout" in tree
    assert "idle" not in tree
    gone = shell.run("mqtool", "topology", "lost")
    assert (gone.code, gone.stderr) == (69, "mqtool: exchange 'lost' does not exist\n")


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("form", ["mermaid", "dot", "json"])
@pytest.mark.sampled(1)
def test_each_format_of_topology_contains_every_exchange_and_queue(
    shell: Shell, channel: BlockingChannel, form: str
) -> None:
    """Each --format of `topology` (mermaid, dot and json) contains the exchanges and queues of the virtual host. The
    JSON format also contains each binding.
    """
    text = shell.run("mqtool", "topology", "--format", form).stdout
    for name in ("kern", "audit", "other", "idle"):
        assert name in text
    if form == "json":
        records = [json.loads(line) for line in text.splitlines()]
        bindings = {(record["source"], record["destination"]) for record in records if record["kind"] == "binding"}
        assert bindings == {("logs", "kern"), ("logs", "audit"), ("logs", HOSTILE), ("rest", "other")}
        assert {record["name"] for record in records if record["kind"] == "queue"} >= {"dead", HOSTILE}
        assert text == shell.run("mqtool", "topology", "--json").stdout


@on_any_broker
def test_topology_live_needs_a_terminal(shell: Shell) -> None:
    """If stdout is not a terminal, `topology --live` exits with 2 and prints nothing on stdout."""
    refused = shell.run("mqtool", "topology", "--live")
    assert (refused.code, refused.stdout) == (2, "")


def test_route_names_the_matching_queues_and_almost_matching_keys(shell: Shell, channel: BlockingChannel) -> None:
    """`route` prints the queues that a message would reach. If a binding key almost matches, the command says which
    word differs.
    """
    told = shell.run("mqtool", "route", "logs", "kern.critical")
    assert told.stdout.splitlines()[:3] == [
        "logs  'kern.critical': 2 queues",
        "  audit  logs ── '#.critical' ──> audit",
        "  kern   logs ── 'kern.*' ──> kern",
    ]
    assert "kern ──> (default exchange)  'dead' ──> dead" in told.stdout
    missed = shell.run("mqtool", "route", "logs", "kren.info").stdout
    assert "logs ── nothing matches: alternate ──> rest ── '' ──> other" in missed
    assert "word 1 is 'kren', not 'kern'" in missed
    assert "the broker drops the message" in shell.run("mqtool", "route", "idle", "x").stdout
    assert json.loads(shell.run("mqtool", "route", "amq.default", "kern", "--json").stdout)["queues"] == ["kern"]


def test_route_tests_a_file_of_expected_routes(shell: Shell, channel: BlockingChannel) -> None:
    """`route --test FILE` exits with 0 if each routing key in FILE reaches the expected queues. Otherwise, the command
    prints the differences and exits with 3.
    """
    table = shell.directory / "routes.txt"
    table.write_text(
        "# logs\n\nlogs kern.info -> kern\nlogs kern.critical -> audit kern\nlogs '' -> other\nidle x ->\n"
    )
    good = shell.run("mqtool", "route", "--test", "routes.txt")
    assert (good.code, good.stdout.count("ok    "), good.stderr) == (0, 4, "4 routes, all as expected\n")
    bad = shell.run("mqtool", "route", "--test", "-", stdin="logs cron.info -> kern\nlogs a -H k:=1\n")
    assert (bad.code, bad.stderr) == (3, "mqtool: 1 of 2 routes are not as expected\n")
    assert "FAIL  logs  'cron.info' -> other\n        missing: kern\n        unexpected: other\n" in bad.stdout
    assert "word 1 is 'cron', not 'kern'" in bad.stdout
    wrong = shell.run("mqtool", "route", "--test", "-", stdin="logs a b c\n")
    assert (wrong.code, wrong.stdout) == (65, "")


@on_any_broker
def test_route_of_a_missing_exchange_exits_with_69(shell: Shell, channel: BlockingChannel) -> None:
    """If the exchange does not exist, `route` exits with 69, and the hint suggests the exchange with the most similar
    name.
    """
    gone = shell.run("mqtool", "route", "lgos", "x")
    assert (gone.code, gone.stdout) == (69, "")
    assert "hint: did you mean 'logs'?" in gone.stderr


@on_any_broker
def test_long_names_are_shortened_in_the_middle_on_a_terminal(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `topology` and `route` shorten long names in the middle so that lines fit into 80 columns. In a
    pipe, they print the whole names.
    """
    exchange, queue = "exchange-" + "e" * 60 + "-end", "queue-" + "q" * 80 + "-last"
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    channel.queue_declare(queue, durable=True, arguments={"x-dead-letter-exchange": exchange})
    for number in range(9):
        channel.queue_bind(queue, exchange, f"key.{number}.{'k' * 30}")
    connection.close()

    tree = on_terminal(shell, "mqtool", "topology", exchange, "--no-color").stdout.splitlines()
    route = on_terminal(shell, "mqtool", "route", exchange, f"key.0.{'k' * 30}", "--no-color").stdout.splitlines()
    assert max(map(len, [*tree, *route])) <= 80
    [bound] = [number for number, line in enumerate(tree) if "and 8 more ──>" in line]
    assert re.fullmatch(r"      │  queue-q+…q+-last  classic  0 ready, 0 unacked", tree[bound + 1])
    assert any(re.search(r"dies ──> exchange exchange-e+…e+-end$", line) for line in tree)
    assert any(re.fullmatch(r" +queue-q+…q+-last", line) for line in route)
    whole = shell.run("mqtool", "topology", exchange).stdout + shell.run("mqtool", "route", exchange, "x").stdout
    assert "…" not in whole
    assert whole.count(exchange) > 2
