"""The drills, as a person runs them: each ends with lost 0, and says what it has seen."""

import re

import pytest

from mqtool.broker.choice import BrokerKind
from tests.brokers import TestBroker, large, on_any_broker, own_broker
from tests.cli.shell import Result, Shell


def _verdict(result: Result) -> dict[str, int]:
    assert result.code == 0, result.stderr
    [line] = result.stdout.splitlines()
    assert line.endswith("lost 0")
    # As a lesson: its title, what breaks and what to watch, that it breaks, the sums, a verdict.
    steps = ("drill ", " Watch ", "│ $ mqtool send", "The sums: ", "✓ nothing lost: ")
    positions = [result.stderr.find(step) for step in steps]
    assert positions == sorted(positions), result.stderr
    assert positions[0] >= 0
    return {name: int(count.replace(",", "")) for name, count in re.findall(r"(\w+) ([\d,]+)", line)}


def _drill(shell: Shell, broker: TestBroker, name: str) -> dict[str, int]:
    return _verdict(shell.run("mqtool", "drill", name, "-u", broker.url))


def test_kill_worker(lonely_shell: Shell, broker: TestBroker) -> None:
    """What the killed worker had in hand is done by the other one, marked redelivered; nothing twice."""
    verdict = _drill(lonely_shell, broker, "kill-worker")
    assert (verdict["sent"], verdict["done"]) == (200, 200)
    assert verdict["redelivered"] > 0
    assert "twice" not in verdict


@large
def test_drop_connection(lonely_shell: Shell, broker: TestBroker) -> None:
    """Ten thousand messages, three cuts: all confirmed, all there."""
    verdict = _drill(lonely_shell, broker, "drop-connection")
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 10_000
    assert verdict["redelivered"] > 0


@on_any_broker
def test_poison(lonely_shell: Shell, broker: TestBroker) -> None:
    """One that always fails and one that is bad end as dead letters; the others are done, once. None is left."""
    result = lonely_shell.run("mqtool", "drill", "poison", "-u", broker.url)
    verdict = _verdict(result)
    assert (verdict["done"], verdict["dead"], verdict["redelivered"]) == (198, 2, 0), result.stderr
    left = broker.api("GET", f"queues/{broker.vhost}")
    assert [queue["name"] for queue in left if ".wait." not in queue["name"]] == []


@on_any_broker
def test_quiet_prints_the_verdict_only(lonely_shell: Shell, broker: TestBroker) -> None:
    """--quiet: one line on stdout, nothing on stderr."""
    result = lonely_shell.run("mqtool", "drill", "duplicate", "-c", "20", "--quiet", "-u", broker.url)
    assert (result.stderr, result.code) == ("", 0)
    assert re.fullmatch(r"duplicate: sent 20, .*, lost 0\n", result.stdout)


@on_any_broker
def test_duplicate(lonely_shell: Shell, broker: TestBroker) -> None:
    """Twenty come twice; each has its effect once."""
    verdict = _drill(lonely_shell, broker, "duplicate")
    assert (verdict["confirmed"], verdict["done"], verdict["suppressed"]) == (220, 200, 20)
    assert "twice" not in verdict


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@large
def test_restart_broker(lonely_shell: Shell, kind: BrokerKind) -> None:
    """Ten thousand messages on a broker of the drill's own, which is stopped and started again."""
    own_broker(kind)
    verdict = _verdict(lonely_shell.run("mqtool", "drill", "restart-broker", "--kind", kind, timeout=180))
    assert verdict["sent"] == verdict["confirmed"] == verdict["done"] == 10_000


def test_kill_node(lonely_shell: Shell) -> None:
    """A cluster of three loses the node that leads the queue, and gets it back: all confirmed, all there.

    Both sides carry on within ten seconds.
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
def test_each_drill_says_what_it_does(lonely_shell: Shell, name: str) -> None:
    """--help is a sentence and a command line."""
    said = lonely_shell.run("mqtool", "drill", name, "--help")
    assert said.code == 0
    assert f"mqtool drill {name}" in said.stdout
