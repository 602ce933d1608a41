"""Drills: each ends with "lost 0" and reports what it has counted."""

import re

import pytest

from mqtool.broker.choice import BrokerKind
from tests.brokers import TestBroker, large, on_any_broker, own_broker
from tests.cli.shell import Result, Shell


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


def test_drill_kill_worker_loses_nothing(lonely_shell: Shell, broker: TestBroker) -> None:
    """In the drill `kill-worker`, all 200 messages are handled, and none twice. The messages that the killed worker had
    not acknowledged are redelivered.
    """
    verdict = _drill(lonely_shell, broker, "kill-worker")
    assert (verdict["sent"], verdict["done"]) == (200, 200)
    assert verdict["redelivered"] > 0
    assert "twice" not in verdict


@large
def test_drill_drop_connection_loses_nothing(lonely_shell: Shell, broker: TestBroker) -> None:
    """In the drill `drop-connection`, connections are cut while 10,000 messages flow. All messages are confirmed and
    handled.
    """
    verdict = _drill(lonely_shell, broker, "drop-connection")
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 10_000
    assert verdict["redelivered"] > 0


@on_any_broker
def test_drill_poison_dead_letters_only_messages_that_can_never_be_handled(
    lonely_shell: Shell, broker: TestBroker
) -> None:
    """In the drill `poison`, the two messages that can never be handled are dead-lettered, the other 198 are handled
    once, and no queue is left behind.
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
def test_drill_duplicate_handles_each_message_once(lonely_shell: Shell, broker: TestBroker) -> None:
    """In the drill `duplicate`, 20 of 200 messages are sent twice, and each of the 200 is handled once."""
    verdict = _drill(lonely_shell, broker, "duplicate")
    assert (verdict["confirmed"], verdict["done"], verdict["suppressed"]) == (220, 200, 20)
    assert "twice" not in verdict


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@large
def test_drill_restart_broker_loses_nothing(lonely_shell: Shell, kind: BrokerKind) -> None:
    """In the drill `restart-broker`, the broker restarts while 10,000 messages flow. All messages are confirmed and
    handled.
    """
    own_broker(kind)
    verdict = _verdict(lonely_shell.run("mqtool", "drill", "restart-broker", "--kind", kind, timeout=180))
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 10_000


def test_drill_kill_node_loses_nothing(lonely_shell: Shell) -> None:
    """In the drill `kill-node`, the node that leads the queue is killed in a cluster of three. All messages are
    confirmed and handled, and the longest pause is shorter than ten seconds.
    """
    own_broker(BrokerKind.NODE)
    result = lonely_shell.run("mqtool", "drill", "kill-node", "--kind", "node", timeout=240)
    verdict = _verdict(result)
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 40_000
    pause = re.search(r"longest pause ([\d.]+) s", result.stdout)
    assert pause
    assert float(pause[1]) < 10


@pytest.mark.parametrize(
    "name", ["kill-worker", "kill-node", "restart-broker", "drop-connection", "poison", "duplicate"]
)
def test_the_help_of_each_drill_has_an_example(lonely_shell: Shell, name: str) -> None:
    """`drill NAME --help` shows an example that runs this drill."""
    said = lonely_shell.run("mqtool", "drill", name, "--help")
    assert said.code == 0
    assert f"mqtool drill {name}" in said.stdout
