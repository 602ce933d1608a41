"""mqtool tutorial try, as a learner meets it."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from mqtool.plays import PLAYS
from mqtool.plays.goals import GOALS
from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.test_tutorial import Watched, processes_with

_WAITS = "waited in the queue 'hello'"


@pytest.fixture(autouse=True)
def _own_state(lonely_shell: Shell, tmp_path: Path) -> None:
    """Each learner begins with no goal reached."""
    lonely_shell.environment["XDG_STATE_HOME"] = str(tmp_path / "state")


def follow(shell: Shell, said: str) -> None:
    """Do in the other terminals what `try` says."""
    if found := re.search(r"export AMQP_URL=(\S+)", said):
        shell.environment["AMQP_URL"] = found[1]


def reach_first(shell: Shell) -> None:
    """Reach the first goal of hello-world."""
    assert shell.script("mqtool send 'Hello World!' && sleep 0.3 && mqtool receive -c 1").code == 0


def test_goals_are_tried_and_remembered(lonely_shell: Shell) -> None:
    """`try` starts a broker, says where it is, and sees what is done there; the list shows what was reached."""
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
    running.wait_for_stdout("Goal 1 of 3")
    follow(lonely_shell, running.stdout)
    reach_first(lonely_shell)
    running.wait_for_stdout(_WAITS)
    running.wait_for_stdout("Goal 2 of 3")
    lonely_shell.environment.pop("AMQP_URL", None)
    ended = running.interrupt().wait()
    assert (ended.code, ended.stderr) == (0, "Stopped. To continue: mqtool tutorial try hello-world\n")

    listed = lonely_shell.run("mqtool", "tutorial", "try").stdout.splitlines()
    assert listed[:2] == ["hello-world\twaits\t✓", "hello-world\tat-once\t"]
    assert len(listed) == sum(map(len, GOALS.values()))

    running = lonely_shell.start("mqtool", "tutorial", "try", "1")
    running.wait_for_stdout("Goal 2 of 3")
    assert "Goal 1 of 3" not in running.stdout
    running.interrupt().wait()
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world", "--again")
    running.wait_for_stdout("Goal 1 of 3")
    running.interrupt().wait()


def test_hints_come_in_three_steps(lonely_shell: Shell) -> None:
    """Enter gives a question, then the concept, then the command, and the command again; s skips; q quits."""
    watched = Watched(lonely_shell, 80, 40, "mqtool", "tutorial", "try", "hello-world", "--no-color")
    watched.wait_for("Goal 1 of 3")
    for name, hint in zip(("think", "concept", "command"), GOALS["hello-world"][0].hints, strict=True):
        assert f"{name}: " not in watched.seen
        watched.press("\n")
        watched.wait_for(f"{name}: {hint}")
    watched.press("s")
    watched.wait_for("Goal 2 of 3")
    watched.press("q")
    assert watched.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_however_try_is_ended_no_process_remains(lonely_shell: Shell, number: signal.Signals) -> None:
    """Its broker ends with it."""
    lonely_shell.start_cold()
    lonely_shell.environment["TRY_MARK"] = mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
    running.wait_for_stdout("Goal 1 of 3")
    running.process.send_signal(number)
    running.wait()
    wait_until(lambda: not processes_with(mark), "all that was started to be gone")


def test_on_a_broker_of_others_it_has_a_virtual_host_of_its_own(shell: Shell, broker: TestBroker) -> None:
    """With --url, nothing that is there is seen or changed, and Ctrl-C deletes the virtual host with all its queues."""

    def vhosts() -> set[str]:
        listed = broker.api("GET", "vhosts")
        assert isinstance(listed, list)
        return {each["name"] for each in listed if each["name"].startswith("mqtool-try-")}

    before = vhosts()
    shell.environment |= {"XDG_STATE_HOME": str(shell.directory), "MQTOOL_MANAGEMENT_URL": broker.management}
    del shell.environment["MQTOOL_URL"]
    running = shell.start("mqtool", "tutorial", "try", "hello-world", "--url", broker.url)
    running.wait_for_stdout("Goal 1 of 3")
    assert len(vhosts() - before) == 1
    shell.environment["AMQP_URL"] = broker.url
    shell.script("mqtool send elsewhere; mqtool receive -c 1")
    follow(shell, running.stdout.replace("guest@", "guest:guest@"))
    reach_first(shell)
    running.wait_for_stdout(_WAITS)
    assert "elsewhere" not in running.stdout
    assert running.interrupt().wait().code == 0
    assert vhosts() - before == set()


def test_a_tutorial_without_goals_is_a_usage_error(lonely_shell: Shell) -> None:
    """The nearest name is proposed."""
    refused = lonely_shell.run("mqtool", "tutorial", "try", "helo-world")
    assert (refused.code, refused.stderr.splitlines()[-1]) == (2, "hint: did you mean 'hello-world'?")


def test_every_goal_belongs_to_a_tutorial() -> None:
    """`tutorial run` ends by naming `try`, so each set of goals has the name of a play."""
    assert GOALS.keys() <= PLAYS.keys()


@on_any_broker
def test_run_points_to_try(shell: Shell, broker: TestBroker) -> None:
    """After having seen a tutorial, one is invited to do it."""
    watched = Watched(shell, 80, 24, "mqtool", "tutorial", "run", "hello-world", "--auto", "--lines")
    watched.wait_for("mqtool tutorial try hello-world")
    assert watched.end() == 0
