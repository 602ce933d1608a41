"""Drills: each ends with "lost 0" and reports what it has counted."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.message import Message
from tests.brokers import TestBroker, large, on_any_broker, own_broker
from tests.cli.shell import Result, Shell, wait_until
from tests.processes import is_alive


def _verdict(result: Result) -> dict[str, int]:
    assert result.code == 0, result.stderr
    [line] = result.stdout.splitlines()
    assert line.endswith("lost 0")
    # The output is a lesson: its title, what to watch, the commands, the totals, a verdict.
    steps = ("drill ", " Watch ", "│ $ mqtool send", "Totals: ", "✓ nothing lost: ")
    positions = [result.stderr.find(step) for step in steps]
    assert positions == sorted(positions), result.stderr
    assert positions[0] >= 0
    return {name: int(count.replace(",", "")) for name, count in re.findall(r"(\w+) ([\d,]+)", line)}


def _drill(shell: Shell, broker: TestBroker, name: str) -> dict[str, int]:
    return _verdict(shell.run("mqtool", "drill", name, "-u", broker.url))


@large
def test_drill_kill_worker_loses_nothing(lonely_shell: Shell, broker: TestBroker) -> None:
    """In the drill `kill-worker`, a worker is killed while it is handling messages. All 200 messages are handled, and
    none is handled twice. The messages that the killed worker had not acknowledged are redelivered.
    """
    verdict = _drill(lonely_shell, broker, "kill-worker")
    assert (verdict["sent"], verdict["done"]) == (200, 200)
    assert verdict["redelivered"] > 0
    assert "twice" not in verdict


@large
def test_drill_drop_connection_loses_nothing(lonely_shell: Shell, broker: TestBroker) -> None:
    """In the drill `drop-connection`, the connections of a sender and a receiver are cut three times while 10,000
    messages are flowing. Both reconnect before the next cut, and all messages are confirmed and handled.
    """
    result = lonely_shell.run("mqtool", "drill", "drop-connection", "-u", broker.url)
    verdict = _verdict(result)
    rounds = re.split(r"Cut \d of 3: a proxy cuts the connections of both programs\.", result.stderr)[1:]
    assert [(each.count("lost the connection"), each.count("connected again")) for each in rounds] == [(2, 2)] * 3
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 10_000
    assert verdict["redelivered"] > 0


@on_any_broker
def test_drill_drop_connection_accepts_a_url_whose_password_is_the_same_number_as_its_port(
    lonely_shell: Shell, broker: TestBroker
) -> None:
    """`drill drop-connection` replaces the port in the broker's URL with that of a proxy, which cuts connections. Even
    if the URL has no scheme and its password is the same number as the port, the drill replaces only the port. It can
    still log in, the connections of its sender and its receiver are cut, and all messages are handled.
    """
    address = parse_addresses(broker.url)[0]
    user = f"drill-{address.port}"
    broker.api("PUT", f"users/{user}", {"password": str(address.port), "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.api("PUT", f"permissions/{broker.vhost}/{user}", everything)
    url = f"{user}:{address.port}@127.0.0.1:{address.port}/{broker.vhost}"
    result = lonely_shell.run("mqtool", "drill", "drop-connection", "-c", "400", "-u", url)
    broker.api("DELETE", f"users/{user}")
    assert _verdict(result)["done"] == 400
    assert result.stderr.count("connected again") >= 6  # both programs, after each cut


@on_any_broker
def test_drill_poison_dead_letters_only_messages_that_can_never_be_handled(
    lonely_shell: Shell, broker: TestBroker
) -> None:
    """In the drill `poison`, two of 200 messages can never be handled, and are dead-lettered. The other 198 are handled
    once. No queue is left behind, except wait queues.
    """
    result = lonely_shell.run("mqtool", "drill", "poison", "-u", broker.url)
    verdict = _verdict(result)
    assert (verdict["done"], verdict["dead"], verdict["redelivered"]) == (198, 2, 0), result.stderr
    left = broker.api("GET", f"queues/{broker.vhost}")
    assert [queue["name"] for queue in left if ".wait." not in queue["name"]] == []


@on_any_broker
def test_drill_quiet_prints_only_the_totals(lonely_shell: Shell, broker: TestBroker) -> None:
    """`drill duplicate --quiet` prints one line with its totals on stdout, and nothing on stderr."""
    result = lonely_shell.run("mqtool", "drill", "duplicate", "-c", "20", "--quiet", "-u", broker.url)
    assert (result.stderr, result.code) == ("", 0)
    assert re.fullmatch(r"duplicate: sent 20, .*, lost 0\n", result.stdout)


@on_any_broker
@large
def test_drill_duplicate_handles_each_message_once(lonely_shell: Shell, broker: TestBroker) -> None:
    """In the drill `duplicate`, 20 of 200 messages are sent twice, and each of the 200 is handled once."""
    verdict = _drill(lonely_shell, broker, "duplicate")
    assert (verdict["confirmed"], verdict["done"], verdict["suppressed"]) == (220, 200, 20)
    assert "twice" not in verdict


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@large
def test_drill_restart_broker_loses_nothing(lonely_shell: Shell, kind: BrokerKind) -> None:
    """In the drill `restart-broker`, the broker restarts while 10,000 messages are flowing. All messages are confirmed
    and handled.
    """
    own_broker(kind)
    verdict = _verdict(lonely_shell.run("mqtool", "drill", "restart-broker", "--kind", kind, timeout=180))
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 10_000


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@large
def test_the_broker_of_a_killed_drill_ends(tmp_path: Path, kind: BrokerKind) -> None:
    """If `drill` is killed, the broker that it has started ends, and the broker's messages and logs are removed."""
    own_broker(kind)
    with Shell(tmp_path, {"XDG_STATE_HOME": str(tmp_path / "state")}) as shell:
        drill = shell.start("mqtool", "drill", "restart-broker", "--kind", kind)
        drill.wait_for_stderr("mqtool receive")
        [saved] = tmp_path.glob("state/mqtool/brokers/*/broker.json")
        broker = json.loads(saved.read_text())["pid"]
        drill.process.send_signal(signal.SIGKILL)
        drill.process.wait()
        wait_until(lambda: not is_alive(broker), "the broker to end")
        wait_until(lambda: not saved.parent.exists(), "its directory to be removed")


def test_drill_kill_node_loses_nothing(lonely_shell: Shell) -> None:
    """In the drill `kill-node`, the node that leads the queue in a three-node cluster is killed while messages are
    flowing. All 40,000 messages are confirmed and handled, and the longest time without a delivery is less than 10 s.
    """
    own_broker(BrokerKind.NODE)
    result = lonely_shell.run("mqtool", "drill", "kill-node", "--kind", "node", timeout=240)
    verdict = _verdict(result)
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 40_000
    pause = re.search(r"longest pause ([\d.]+) s", result.stdout)
    assert pause
    assert float(pause[1]) < 10


def _queue_of_drill(broker: TestBroker) -> str:
    names: list[str] = []

    def is_declared() -> bool:
        names[:] = [each["name"] for each in broker.api("GET", f"queues/{broker.vhost}")]
        return bool(names)

    wait_until(is_declared, "the drill's queue")
    return min(names, key=len)


def _intrude(broker: TestBroker, queue: str, place: Path) -> None:
    """Publish messages like a drill's to the drill's queue, as any client that can write to the queue may do."""
    properties: dict[str, Any] = {"delivery_mode": 2}
    ids = (None, "m-0", "m-20000", "evil", f"m-900 {place}", "\\c")
    bodies = ("message 0", "always fails", "bad data")
    messages = [Message(body.encode(), queue, "", properties, each) for each in ids for body in bodies]
    with Connection(parse_addresses(broker.url)) as connection:
        assert len(list(connection.channel().publish(messages))) == len(messages)


@pytest.mark.parametrize(
    ("name", "count"), [("drop-connection", 10_000), ("kill-worker", 200), ("poison", 200), ("duplicate", 200)]
)
@pytest.mark.once_on_rabbitmq
@pytest.mark.sampled(1)
def test_a_drill_counts_other_clients_messages_in_its_queue_separately(
    lonely_shell: Shell, broker: TestBroker, name: str, count: int
) -> None:
    """Another client publishes messages to a drill's queue, with message IDs and bodies like those of the drill. The
    drill counts these messages separately, reports that nothing was lost, and exits with 0. It never runs a message ID
    of another client as part of a shell command.
    """
    drill = lonely_shell.start("mqtool", "drill", name, "-c", str(count), "-u", broker.url)
    trap = lonely_shell.directory / "created"

    _intrude(broker, _queue_of_drill(broker), trap)

    result = drill.wait(120)
    assert result.code == 0, result.stderr
    assert f"nothing lost: {count:,} sent = " in result.stderr
    assert "from other publishers, and not counted: " in result.stderr
    assert not trap.exists()


@large
@on_any_broker
def test_a_drill_ends_even_if_another_client_never_stops_publishing_to_its_queue(
    lonely_shell: Shell, broker: TestBroker
) -> None:
    """If another client keeps publishing to a drill's queue, the queue is never empty. The drill still ends after all
    of its own messages have been handled. It then reports that nothing was lost, and exits with 0.
    """
    drill = lonely_shell.start("mqtool", "drill", "duplicate", "-c", "20", "-u", broker.url)
    queue = _queue_of_drill(broker)

    def go_on() -> bool:
        if drill.process.poll() is None:
            _intrude(broker, queue, lonely_shell.directory / "created")
        return drill.process.poll() is not None

    wait_until(go_on, "the end of the drill", 120)
    result = drill.wait()
    assert result.code == 0, result.stderr
    assert "nothing lost: 20 sent = 20 done" in result.stderr


@pytest.mark.parametrize(
    "name", ["kill-worker", "kill-node", "restart-broker", "drop-connection", "poison", "duplicate"]
)
def test_the_help_of_each_drill_has_an_example(lonely_shell: Shell, name: str) -> None:
    """`drill NAME --help` shows an example that runs this drill."""
    said = lonely_shell.run("mqtool", "drill", name, "--help")
    assert said.code == 0
    assert f"mqtool drill {name}" in said.stdout


@pytest.mark.parametrize("options", [[], ["--ui"]], ids=["lines", "page"])
def test_a_drill_for_a_cluster_refuses_the_embedded_broker_before_it_begins(
    lonely_shell: Shell, options: list[str]
) -> None:
    """`drill kill-node --kind embedded` exits with 2. It prints only the error that the embedded broker cannot be a
    cluster, and a hint that suggests --kind docker or --kind node.
    """
    refused = lonely_shell.run("mqtool", "drill", "kill-node", "--kind", "embedded", *options)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        "mqtool: the embedded broker cannot be a cluster",
        "hint: use --kind docker or --kind node",
    ]
