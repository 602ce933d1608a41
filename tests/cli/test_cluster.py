"""Several URLs for the nodes of a cluster: a client whose node dies connects to the next one."""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from mqtool.broker.choice import BrokerKind
from tests.brokers import Restartable, large, own_broker
from tests.cli.shell import Shell, wait_until


@pytest.fixture
def nodes() -> Iterator[list[Restartable]]:
    """Two brokers that are not clustered: a message is only on the one that accepted it."""
    started = [Restartable(BrokerKind.EMBEDDED, f"several-{uuid.uuid4().hex[:8]}") for _ in range(2)]
    yield started
    for node in started:
        node.stop()


@pytest.fixture
def shell(tmp_path: Path, nodes: list[Restartable]) -> Iterator[Shell]:
    """Runs mqtool with the URLs of both nodes."""
    with Shell(tmp_path, {"MQTOOL_URL": ",".join(node.url for node in nodes)}) as shell:
        yield shell


@large
def test_send_moves_to_the_next_node_if_its_node_is_killed(shell: Shell, nodes: list[Restartable]) -> None:
    """If the node to which `send -l` is connected is killed, `send` connects to the next node, and all later lines are
    confirmed there.
    """
    sender = shell.start("mqtool", "send", "-l", "-v", stdin=PIPE)
    sender.write(b"one\n")
    sender.wait_for_stderr("[x] Sent 'one'")
    nodes[0].kill()
    sender.wait_for_stderr("connected again to")
    sender.process.stdin.write(b"two\nthree\n")
    sender.process.stdin.close()

    ended = sender.wait()
    assert (ended.code, "3 confirmed" in ended.stderr) == (0, True), ended.stderr
    assert shell.run("mqtool", "receive", "--raw", "-c", "2").stdout == "two\nthree\n"


def test_receive_and_worker_move_to_the_next_node_if_their_node_is_killed(
    shell: Shell, nodes: list[Restartable]
) -> None:
    """If the node to which `receive` and `worker` are connected is killed, they connect to the next node, and receive
    the messages that are then published to that node.
    """
    receiver = shell.start("mqtool", "receive", "--declare", "--raw", "-q", "lines").wait_until_ready()
    worker = shell.start(
        "mqtool", "worker", "--declare", "--shell", "--exec", "cat >> done", "-q", "tasks"
    ).wait_until_ready()
    nodes[0].kill()
    for consumer in (receiver, worker):
        consumer.wait_for_stderr("connected again to")
    shell.run("mqtool", "send", "-q", "lines", "hello")
    shell.run("mqtool", "send", "-q", "tasks", "done by the worker")

    receiver.wait_for_stdout("hello")
    done = shell.directory / "done"
    wait_until(lambda: done.exists() and done.read_text() == "done by the worker", "the task to be done")
    assert receiver.interrupt().wait().code == 0
    assert worker.interrupt().wait().code == 0


def test_send_skips_a_node_that_is_down(shell: Shell, nodes: list[Restartable]) -> None:
    """If the first node in the list of URLs is down, `send` uses the next one, without printing a warning."""
    nodes[0].kill()
    sent = shell.run("mqtool", "send", "hello")
    assert (sent.code, sent.stderr) == (0, " [x] Sent 'hello'\n")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Shell]:
    """A shell whose user has never started a broker; brokers started in the test are stopped afterwards."""
    with Shell(tmp_path, {"XDG_STATE_HOME": str(tmp_path / "state")}) as shell:
        yield shell
        shell.run("mqtool", "broker", "down")


def test_a_cluster_of_private_nodes_keeps_messages_if_one_node_is_killed(home: Shell, tmp_path: Path) -> None:
    """`broker up --kind node --cluster` starts three private nodes: RabbitMQ nodes that only this machine can reach. If
    one of them is killed, `broker status` says "2 of 3 nodes running" and persistent messages are kept. The next
    `broker up` starts the killed node again.
    """
    own_broker(BrokerKind.NODE)
    up = home.run("mqtool", "broker", "up", "--kind", "node", "--cluster", timeout=300)
    assert up.code == 0, up.stderr
    urls = up.stdout.split(" is up at ")[1].strip().split(",")
    assert len(urls) == 3
    environment = home.run("mqtool", "broker", "env").stdout
    assert environment.count("amqp://guest:guest@127.0.0.1:") == 4
    assert "export AMQP_URL=amqp://guest:guest@127.0.0.1:" in environment, "one URL, for clients that accept only one"

    home.run("mqtool", "send", "--persistent", "kept")
    remembered = json.loads((tmp_path / "state" / "mqtool" / "brokers" / "default" / "broker.json").read_text())
    os.killpg(remembered["details"]["members"][0]["process"][0], signal.SIGKILL)
    wait_until(lambda: home.run("mqtool", "broker", "status").code == 69, "`broker status` to exit with 69")
    assert "2 of 3 nodes running" in home.run("mqtool", "broker", "status").stdout
    assert home.run("mqtool", "receive", "-c", "1", "--raw").stdout == "kept\n"

    again = home.run("mqtool", "broker", "up", timeout=120)
    assert again.stdout.startswith("running again at "), again.stderr
    assert home.run("mqtool", "broker", "status").code == 0
    logs = home.run("mqtool", "broker", "logs").stdout
    assert {line.partition(" | ")[0] for line in logs.splitlines()} == {"node-1", "node-2", "node-3"}
