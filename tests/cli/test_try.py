"""`tutorial try`: goals that a learner reaches by typing commands."""

import json
import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqtool.broker import ports
from mqtool.plays import PLAYS
from mqtool.plays.goals import GOALS
from mqtool.testing import EmbeddedBroker
from tests.brokers import TestBroker, free_port, large, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.test_tutorial import Watched, processes_with

_WAITS = "waited in the queue 'hello'"


@pytest.fixture(autouse=True)
def _own_state(lonely_shell: Shell, tmp_path: Path) -> None:
    """Each learner begins with no goal reached."""
    lonely_shell.environment["XDG_STATE_HOME"] = str(tmp_path / "state")


def follow(shell: Shell, said: str) -> None:
    """Type what `tutorial try` says into another terminal."""
    if found := re.search(r"export AMQP_URL=(\S+)", said):
        shell.environment["AMQP_URL"] = found[1]


def reach_first(shell: Shell) -> None:
    """Reach the first goal of hello-world."""
    assert shell.script("mqtool send 'Hello World!' && sleep 0.3 && mqtool receive -c 1").code == 0


@large
def test_tutorial_try_continues_after_the_goals_already_reached(lonely_shell: Shell) -> None:
    """`tutorial try` marks a reached goal in its list of goals, and the next run begins with the goal after it. With
    --again, a run begins with the first goal, and the marks in the list stay the same.
    """
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
    running.wait_for_stdout("Goal 1 of 3")
    follow(lonely_shell, running.stdout)
    reach_first(lonely_shell)
    running.wait_for_stdout(_WAITS)
    running.wait_for_stdout("Goal 2 of 3")
    lonely_shell.environment.pop("AMQP_URL", None)
    ended = running.interrupt().wait()
    stopped = "Stopped. 1 of 3 goals reached. To continue: mqtool tutorial try hello-world"
    assert (ended.code, ended.stderr.splitlines()[0]) == (0, stopped)

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
    assert lonely_shell.run("mqtool", "tutorial", "try").stdout.splitlines() == listed


def test_enter_prints_the_next_of_three_hints(lonely_shell: Shell) -> None:
    """In `tutorial try`, each press of Enter prints the next of three hints: a question, the concept, and the commands.
    The key s skips a goal, and q quits.
    """
    watched = Watched(lonely_shell, 80, 40, "mqtool", "tutorial", "try", "hello-world", "--no-color")
    watched.wait_for("Goal 1 of 3")
    for name, hint in zip(("think", "concept", "commands"), GOALS["hello-world"][0].hints, strict=True):
        assert f"{name}: " not in watched.seen
        watched.press("\n")
        watched.wait_for(f"{name}: {hint}")
    watched.press("s")
    watched.wait_for("Goal 2 of 3")
    watched.press("q")
    assert watched.end() == 0
    assert "To continue: mqtool tutorial try hello-world" in watched.seen


def test_a_command_typed_into_the_terminal_of_tutorial_try_does_not_count_as_keys(lonely_shell: Shell) -> None:
    """If a user types a whole command into the terminal of `tutorial try`, the letters s and q in the command neither
    skip the goal nor quit `tutorial try`.
    """
    watched = Watched(lonely_shell, 80, 40, "mqtool", "tutorial", "try", "hello-world", "--no-color")
    watched.wait_for("Goal 1 of 3")
    watched.press("mqtool send -q hello\n")
    while "think: " not in watched.seen:
        watched.press("h")  # until it counts as a key of its own, some time after the command
        for _ in range(20):
            watched.read()
    watched.wait_for(f"think: {GOALS['hello-world'][0].hints[0]}")
    assert "Goal 2 of 3" not in watched.seen
    assert watched.process.poll() is None
    watched.press("q")
    assert watched.end() == 0


def test_commands_in_hints_are_on_lines_of_their_own() -> None:
    """The third hint of each goal of `tutorial try` has its commands on lines of their own, which begin with two spaces
    and fit into 80 columns.
    """
    for name, goals in GOALS.items():
        for goal in goals:
            commands = [line for line in goal.hints[2].splitlines() if line.startswith("  ")]
            assert commands, f"{name}.{goal.name}"
            assert max(map(len, commands)) <= 80, f"{name}.{goal.name}"
            others = [line for line in goal.hints[2].splitlines() if not line.startswith("  ")]
            assert not any("mqtool" in line and ";" in line for line in others), f"{name}.{goal.name}"


def test_the_list_of_goals_fits_on_a_terminal(lonely_shell: Shell) -> None:
    """On a terminal of 80×24, the list of goals that `tutorial try` prints fits on the screen. Its last line says with
    which command to begin.
    """
    watched = Watched(lonely_shell, 80, 24, "mqtool", "tutorial", "try", "--no-color")
    assert watched.end() == 0
    lines = watched.seen.strip().splitlines()
    assert len(lines) < 24
    assert lines[-1] == "To begin: mqtool tutorial try hello-world"


def test_commands_that_find_no_broker_say_how_to_use_the_broker_of_tutorial_try(lonely_shell: Shell) -> None:
    """While `tutorial try` runs, `broker up` and any command that finds no broker say how to use the broker of
    `tutorial try`. Commands for which no broker is named use it, and say so on a terminal; if they use the broker of
    `broker up` instead, they say how to use that of `tutorial try`. After `tutorial try` has ended, commands no longer
    mention its broker, unless AMQP_URL still names it: then they say to unset it.
    """
    closed = "amqp://127.0.0.1:1"  # as if an earlier tutorial had ended
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
    running.wait_for_stdout("Goal 1 of 3")
    refused = lonely_shell.run("mqtool", "send", "x", "--url", closed)
    assert refused.code == 69
    (way,) = re.findall(r"hint: a tutorial runs at amqp://127.0.0.1:\d+; to use it, type: (unset .*)", refused.stderr)
    assert lonely_shell.script(f"{way}; mqtool send x").code == 0
    told = on_terminal(lonely_shell, "mqtool", "send", "x", columns=200).stdout
    assert re.search(r"using amqp://guest@127.0.0.1:\d+, from the running 'mqtool tutorial try'\r\n", told)
    used = on_terminal(lonely_shell, "mqtool", "broker", "up", columns=200).stdout
    assert re.fullmatch(r"using the broker at \S+, which stops with the running 'mqtool tutorial try'\r\n", used)
    started = lonely_shell.run("mqtool", "broker", "up", "--kind", "embedded", "--port", str(free_port()))
    assert started.code == 0
    assert way in started.stderr
    told = on_terminal(lonely_shell, "sh", "-c", "mqtool send x; mqtool send x", columns=200).stdout
    assert (
        told.count(f"from 'mqtool broker up'; a tutorial runs at {way.rpartition('=')[2]}; to use it, type: {way}") == 1
    )
    running.interrupt().wait()
    assert "mqtool broker up" in lonely_shell.run("mqtool", "send", "x", "--url", closed).stderr
    still_set = lonely_shell.script(f"{way}; mqtool send x").stderr
    assert still_set.endswith("hint: the tutorial that ran there has ended: unset AMQP_URL\n")
    assert "a tutorial runs" not in lonely_shell.run("mqtool", "broker", "up", "--kind", "embedded").stderr
    assert lonely_shell.run("mqtool", "broker", "down").code == 0


def test_tutorial_try_uses_the_same_port_as_in_its_last_run(lonely_shell: Shell) -> None:
    """When `tutorial try` is run again, its broker listens on the same port as before, so that URLs exported in other
    terminals stay valid.
    """

    def port() -> str:
        running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
        running.wait_for_stdout("Goal 1 of 3")
        known = json.loads((Path(lonely_shell.environment["XDG_STATE_HOME"]) / "mqtool" / "tutorial.json").read_text())
        assert running.interrupt().wait().code == 0
        return str(known["way"]).rpartition(":")[2]

    with socket.socket() as usual:
        with suppress(OSError):  # a broker has it already
            usual.bind(("127.0.0.1", ports.AMQP))  # which another test could take between the two runs
        assert port() == port()


def test_tutorial_try_names_the_next_tutorial_that_has_goals_left(lonely_shell: Shell) -> None:
    """After the last goal of a tutorial, `tutorial try` prints how many of the tutorial's goals the learner has reached
    so far, in this and earlier runs together, and names the next tutorial that has goals left.
    """
    known = Path(lonely_shell.environment["XDG_STATE_HOME"]) / "mqtool" / "goals.json"
    known.parent.mkdir(parents=True)
    reached = {"hello-world": ["waits", "at-once"], "work-queues": [goal.name for goal in GOALS["work-queues"]]}
    known.write_text(json.dumps(reached))
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
    running.wait_for_stdout("Goal 3 of 3")
    follow(lonely_shell, running.stdout)
    lonely_shell.script("mqtool send -e '' -r no-such-queue --no-mandatory 'Hello?'")
    running.wait_for_stdout("3 of 3 goals reached. Next: mqtool tutorial try publish-subscribe")
    assert running.wait().code == 0


def test_tutorial_show_repair_copies_the_programs_and_keeps_edited_ones(lonely_shell: Shell) -> None:
    """`tutorial show repair --copy-to DIRECTORY` copies the six programs to repair into DIRECTORY. It does not replace
    a program that the learner has edited.
    """
    shown = lonely_shell.run("mqtool", "tutorial", "show", "repair")
    assert len(shown.stdout.splitlines()) == len(GOALS["repair"])
    directory = lonely_shell.directory / "programs"
    assert lonely_shell.run("mqtool", "tutorial", "show", "repair", "--copy-to", str(directory)).code == 0
    assert {path.name for path in directory.iterdir()} == {goal.program for goal in GOALS["repair"]}
    mended = directory / GOALS["repair"][0].program
    mended.write_text("mended")
    again = lonely_shell.run("mqtool", "tutorial", "show", "repair", "--copy-to", str(directory))
    assert "not replaced" in again.stderr
    assert mended.read_text() == "mended"


def test_tutorial_show_repair_does_not_write_through_symbolic_links(lonely_shell: Shell) -> None:
    """`tutorial show repair --copy-to DIRECTORY` copies the programs that a learner is to repair. If DIRECTORY contains
    a dangling symbolic link with the name of one of these programs, the command says that it has not replaced the link,
    and does not create the link's target.
    """
    directory, elsewhere = lonely_shell.directory / "programs", lonely_shell.directory / "elsewhere"
    directory.mkdir()
    (directory / GOALS["repair"][0].program).symlink_to(elsewhere)
    copied = lonely_shell.run("mqtool", "tutorial", "show", "repair", "--copy-to", str(directory))
    assert "not replaced" in copied.stderr
    assert not elsewhere.exists()


def test_tutorial_try_stops_its_broker_only_after_enter(lonely_shell: Shell) -> None:
    """After the last goal, `tutorial try` asks the user to end the commands in other terminals, and stops its broker
    only when Enter is pressed.
    """
    watched = Watched(lonely_shell, 200, 40, "mqtool", "tutorial", "try", "hello-world", "--no-color")
    for number in range(1, 4):
        watched.wait_for(f"Goal {number} of 3")
        watched.press("s")
    watched.wait_for("and press Enter here: the broker stops.")
    follow(lonely_shell, watched.seen)
    assert lonely_shell.run("mqtool", "send", "Hello World!").code == 0
    watched.press("\n")
    assert watched.end() == 0


def test_the_command_that_selects_the_broker_of_tutorial_try_overrides_mqtool_url(lonely_shell: Shell) -> None:
    """The command that `tutorial try` prints for other terminals selects the broker and virtual host of `tutorial try`,
    even if MQTOOL_URL names another broker in those terminals.
    """
    with EmbeddedBroker(management_port=0) as used, EmbeddedBroker() as other:
        lonely_shell.environment |= {"MQTOOL_URL": used.url, "MQTOOL_MANAGEMENT_URL": str(used.management_url)}
        running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world", "--url", used.url)
        running.wait_for_stdout("Goal 1 of 3")
        (way,) = re.findall(r"unset MQTOOL_URL.*", running.stdout)
        lonely_shell.environment["MQTOOL_URL"] = other.url
        assert lonely_shell.script(f"{way}; mqtool send 'Hello World!'").code == 0
        running.wait_for_stdout("which has no consumer")
        running.interrupt().wait()


def test_a_narrow_terminal_does_not_break_the_commands_that_tutorial_try_prints(lonely_shell: Shell) -> None:
    """On a terminal of 40 columns, `tutorial try` prints each command for other terminals on one line, so that it can
    be copied. This includes the command that selects its broker and the commands of a hint. Sentences are broken
    between words.
    """
    with EmbeddedBroker(management_port=0) as used:
        lonely_shell.environment |= {"MQTOOL_URL": used.url, "MQTOOL_MANAGEMENT_URL": str(used.management_url)}
        watched = Watched(lonely_shell, 40, 24, "mqtool", "tutorial", "try", "1", "--no-color", "--url", used.url)
        watched.wait_for("Goal 1 of 3")
        for said in ("think: ", "concept: ", GOALS["hello-world"][0].hints[2]):
            watched.press("h")
            watched.wait_for(said)
        watched.press("q")
        assert watched.end() == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", watched.seen).splitlines()
    assert any(re.fullmatch(r"  unset MQTOOL_URL; export AMQP_URL=\S+", line) for line in lines), lines
    assert any(line.endswith("unset AMQP_URL") for line in lines)
    for command in GOALS["hello-world"][0].hints[2].splitlines():
        assert not command.startswith("  ") or command in lines
    assert any(line.endswith("mqtool tutorial try hello-world") for line in lines)
    others = [line for line in lines if "mqtool" not in line and "unset" not in line and "─" not in line]
    assert max(map(len, others)) <= 40


def test_tutorial_try_prints_a_complete_url_for_a_broker_that_was_given_as_host_and_port(lonely_shell: Shell) -> None:
    """If the --url of `tutorial try` is HOST:PORT with options such as ?heartbeat=9, but without a scheme, the
    command that `tutorial try` prints for other terminals sets a URL with the scheme, the host, the port and all
    options. The URL is quoted, so that a shell does not change the options.
    """
    with EmbeddedBroker(management_port=0) as used:
        lonely_shell.environment |= {"MQTOOL_URL": used.url, "MQTOOL_MANAGEMENT_URL": str(used.management_url)}
        host_and_port = f"127.0.0.1:{urlsplit(used.url).port}"
        given = f"{host_and_port}?heartbeat=9&connection_timeout=4000"
        running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world", "--url", given)
        running.wait_for_stdout("Goal 1 of 3")
        (way,) = re.findall(r"unset MQTOOL_URL.*", running.stdout)
        exported = lonely_shell.script(f"{way}; echo $AMQP_URL").stdout
        running.interrupt().wait()
    assert re.fullmatch(rf"amqp://{host_and_port}/mqtool-try-\w+\?heartbeat=9&connection_timeout=4000\n", exported)


def test_the_key_r_deletes_the_learners_queue_and_restarts_the_goal(lonely_shell: Shell) -> None:
    """In `tutorial try`, the key r deletes the queue that the learner has declared, and restarts the goal."""
    watched = Watched(lonely_shell, 120, 40, "mqtool", "tutorial", "try", "hello-world", "--no-color")
    watched.wait_for("Goal 1 of 3")
    follow(lonely_shell, watched.seen)
    assert lonely_shell.run("mqtool", "send", "Hello World!").code == 0
    watched.wait_for("which has no consumer")
    watched.press("r")
    watched.wait_for("This goal begins again. Deleted: 'hello'.")
    assert lonely_shell.run("mqtool", "list", "queues").stdout == ""
    reach_first(lonely_shell)
    watched.wait_for(_WAITS)
    watched.press("q")
    assert watched.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.sampled(1)
@large
def test_tutorial_try_leaves_no_process_after_a_signal(lonely_shell: Shell, number: signal.Signals) -> None:
    """After SIGINT, SIGTERM or SIGKILL, no process that `tutorial try` has started is left running, not even its
    broker.
    """
    lonely_shell.start_cold()
    lonely_shell.environment["TRY_MARK"] = mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    running = lonely_shell.start("mqtool", "tutorial", "try", "hello-world")
    running.wait_for_stdout("Goal 1 of 3")
    running.process.send_signal(number)
    running.wait()
    wait_until(lambda: not processes_with(mark), "no process that the command has started")


def test_tutorial_try_on_an_existing_broker_uses_a_new_virtual_host(shell: Shell, broker: TestBroker) -> None:
    """With --url, `tutorial try` creates a virtual host and ignores messages outside it. After Ctrl-C, `tutorial try`
    deletes this virtual host.
    """

    def vhosts() -> set[str]:
        listed = broker.api("GET", "vhosts")
        assert isinstance(listed, list)
        return {each["name"] for each in listed}

    shell.environment |= {"XDG_STATE_HOME": str(shell.directory), "MQTOOL_MANAGEMENT_URL": broker.management}
    del shell.environment["MQTOOL_URL"]
    running = shell.start("mqtool", "tutorial", "try", "hello-world", "--url", broker.url)
    running.wait_for_stdout("Goal 1 of 3")
    [vhost] = {*re.findall(r"mqtool-try-\w+", running.stdout)}
    assert vhost in vhosts()
    shell.environment["AMQP_URL"] = broker.url
    shell.script("mqtool send elsewhere; mqtool receive -c 1")
    follow(shell, running.stdout.replace("guest@", "guest:guest@"))
    reach_first(shell)
    running.wait_for_stdout(_WAITS)
    assert "elsewhere" not in running.stdout
    assert running.interrupt().wait().code == 0
    assert vhost not in vhosts()


def test_tutorial_try_skips_amqp_1_0_goals_if_the_broker_does_not_support_amqp_1_0(lonely_shell: Shell) -> None:
    """If the broker does not support AMQP 1.0, `tutorial try` skips the goals that need AMQP 1.0, says why, and does
    not count these goals as reached.
    """
    with EmbeddedBroker(like="3.10", management_port=0) as old:
        lonely_shell.environment |= {"MQTOOL_URL": old.url, "MQTOOL_MANAGEMENT_URL": str(old.management_url)}
        ended = lonely_shell.run("mqtool", "tutorial", "try", "amqp10-hello-world", "--url", old.url)
    assert ended.code == 0
    assert ended.stdout.count("it behaves like RabbitMQ 3.10.8, and does not speak AMQP 1.0") == 2
    assert "0 of 2 goals reached" in ended.stdout


def test_tutorial_try_suggests_a_name_for_an_unknown_tutorial(lonely_shell: Shell) -> None:
    """If the tutorial's name is unknown, `tutorial try` exits with 2, and the hint suggests the most similar name."""
    refused = lonely_shell.run("mqtool", "tutorial", "try", "helo-world")
    assert (refused.code, refused.stderr.splitlines()[-1]) == (2, "hint: did you mean 'hello-world'?")


def test_every_tutorial_with_goals_except_repair_can_be_run() -> None:
    """Every tutorial that has goals for `tutorial try`, except `repair`, can be run with `tutorial run`."""
    assert GOALS.keys() - {"repair"} <= PLAYS.keys()


@on_any_broker
def test_tutorial_run_ends_with_the_command_for_the_tutorials_goals(shell: Shell, broker: TestBroker) -> None:
    """After a tutorial that has goals, `tutorial run` prints the `tutorial try` command for that tutorial."""
    watched = Watched(shell, 80, 24, "mqtool", "tutorial", "run", "hello-world", "--auto", "--lines")
    watched.wait_for("mqtool tutorial try hello-world")
    assert watched.end() == 0
