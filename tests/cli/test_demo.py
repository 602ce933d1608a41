"""`make demo`: tutorials, and a real log file sent through an exchange."""

import re
import sys
from pathlib import Path

from mqtool.plays import PLAYS
from tests.brokers import TestBroker, large, on_any_broker
from tests.cli.shell import Result, Shell, wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0
REAL_LOG = (sys.executable, "-m", "demo.real_log")
TUTORIALS = ("mqtool", "tutorial", "run", "--no-pause", "--lines")


def run_real_log(shell: Shell, *log: str, **environment: str) -> Result:
    """Run the real log's demonstration in the test's own directory."""
    return shell.run(*REAL_LOG, *log, timeout=PATIENCE, environment={"PYTHONPATH": str(ROOT), **environment})


def left_behind(broker: TestBroker) -> list[str]:
    """The queues, and the exchanges that are not the broker's own, in the test's vhost."""
    listed = [broker.api("GET", f"{kind}/{broker.vhost}") for kind in ("queues", "exchanges")]
    names = [thing["name"] for things in listed if isinstance(things, list) for thing in things]
    return [name for name in names if name and not name.startswith("amq.")]


def test_make_demo_runs_every_tutorial_except_why_queues() -> None:
    """`make demo` runs all tutorials in the order in which mqtool lists them. The exception is the first one,
    why-queues, which gives reasons to use a queue.
    """
    (names,) = re.findall(r"^TUTORIALS := ([^\\\n]*(?:\\\n[^\\\n]*)*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert ["why-queues", *names.replace("\\", "").split()] == list(PLAYS)


@large
def test_the_log_demonstration_delivers_a_log_whole_and_in_parts(
    shell: Shell, broker: TestBroker, tmp_path: Path
) -> None:
    """In the log demonstration of `make demo`, one receiver gets the whole log unchanged, and the other receivers get
    parts that add up to the whole log. No queue is left on the broker.
    """
    log = tmp_path / "dpkg.log"
    actions = [f"{action} package{n}:all" for n in range(300) for action in ("install", "status unpacked", "configure")]
    lines = [f"2026-01-31 12:00:00 {action} 1.0" for action in [*actions, "startup packages", "no-\udcff-match"]]
    log.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))

    result = run_real_log(shell, str(log))

    assert (result.code, result.stderr) == (0, "")
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["#", "demo-output/real-all.log", "902", "902"] in shown
    assert ["install.#", "demo-output/real-install.log", "300", "300"] in shown
    assert ["startup.#", "unknown.#", "demo-output/real-rest.log", "2", "2"] in shown
    assert "300 + 300 + 300 + 2 = 902" in result.stdout
    assert (tmp_path / "demo-output" / "real-all.log").read_bytes() == log.read_bytes()
    assert left_behind(broker) == []


@on_any_broker
@large
def test_the_tutorial_incident_passes_its_checks_and_leaves_no_queue(shell: Shell, broker: TestBroker) -> None:
    """`tutorial run incident` passes all checks of this tutorial, and leaves no queue on the broker."""
    result = shell.run(*TUTORIALS, "incident", timeout=PATIENCE)

    assert (result.code, result.stderr) == (0, "")
    assert "1 tutorial, 5 checks passed" in result.stdout
    assert left_behind(broker) == []


@on_any_broker
def test_tutorial_run_leaves_existing_queues_and_exchanges_alone(shell: Shell, broker: TestBroker) -> None:
    """`tutorial run` declares queues and exchanges with new names. It does not show, consume or delete the messages in
    a user's own queues, even if a queue is named `hello`, as in the tutorial, or has a name that begins with `demo.`.
    """
    for queue in ("hello", "demo.hello"):
        shell.run("mqtool", "send", "-q", queue, "mine")
    shell.run("mqtool", "exchange", "declare", "demo.logs", "topic")

    result = shell.run(*TUTORIALS, "hello-world", "publish-subscribe", timeout=PATIENCE)

    assert result.code == 0
    assert "2 tutorials, " in result.stdout
    assert "mine" not in result.stdout
    assert sorted(left_behind(broker)) == ["demo.hello", "demo.logs", "hello"]
    for queue in ("hello", "demo.hello"):
        assert shell.run("mqtool", "receive", "-q", queue, "-c", "1", "--raw").stdout == "mine\n"


@on_any_broker
def test_the_log_demonstration_names_a_missing_log_file(shell: Shell) -> None:
    """`make demo` ends with a demonstration that sends the lines of a log file through an exchange. If this file does
    not exist, the demonstration prints only an error that names the file, and exits with 1.
    """
    result = run_real_log(shell, "/no/such/log")

    assert result.code == 1
    assert "cannot read the log file /no/such/log: No such file or directory" in result.stderr
    assert result.stdout == ""


@on_any_broker
@large
def test_the_log_demonstration_fails_if_the_log_changes(shell: Shell, broker: TestBroker, tmp_path: Path) -> None:
    """If the log file changes while the log demonstration of `make demo` reads it, the demonstration says how many
    lines the file had and how many were sent, and exits with 1.
    """
    log = tmp_path / "app.log"
    log.write_text("INFO one\nWARN two\n")
    shell.environment["PYTHONPATH"] = str(ROOT)
    running = shell.start(*REAL_LOG, str(log), ready=False)
    running.wait_for_stdout(".real_log '#'")

    log.write_text("INFO one\nWARN three\nINFO four\n")

    assert running.wait().code == 1
    assert "app.log changed while it was being read" in running.stderr
    assert "it had 2 lines, 3 were sent" in running.stderr
    assert left_behind(broker) == []


def test_tutorial_run_starts_no_broker_if_mqtool_url_names_one(lonely_shell: Shell) -> None:
    """If MQTOOL_URL names a broker that does not answer, `tutorial run` exits with 69 and does not start a broker
    instead.
    """
    result = lonely_shell.run(*TUTORIALS, "hello-world", environment={"MQTOOL_URL": "amqp://127.0.0.1:1"})

    assert result.code == 69
    assert "no broker answers at 127.0.0.1:1" in result.stderr


@on_any_broker
def test_ctrl_c_during_tutorial_run_ends_all_its_commands(shell: Shell, broker: TestBroker) -> None:
    """After Ctrl-C, `tutorial run` exits with 130, closes every connection, and leaves no queue behind."""
    running = shell.start(*TUTORIALS, "work-queues", ready=False).wait_for_stdout("Received long..")

    running.interrupt()

    assert running.wait().code == 130
    assert "interrupted" in running.stderr
    wait_until(lambda: not broker.api("GET", f"vhosts/{broker.vhost}/connections"), "all connections to be closed")
    assert left_behind(broker) == []


def test_make_help_lists_each_target_once(lonely_shell: Shell) -> None:
    """`make help` lists each target once and prints no warning about two recipes for one target."""
    told = lonely_shell.run("make", "-C", str(ROOT), "help")
    assert (told.code, told.stderr) == (0, "")
    targets = [line.split()[1] for line in told.stdout.splitlines() if line.startswith("  make ")]
    assert {"setup", "demo", "test", "up", "down"} <= set(targets)
    assert len(targets) == len(set(targets))
