"""What a person sees who types `make demo`."""

import sys
from pathlib import Path

from tests.brokers import TestBroker, only_in_ci
from tests.cli.shell import Result, Running, Shell, wait_until

ROOT = Path(__file__).parents[2]
#: The whole takes a quarter of a minute; on a busy machine, several times that.
PATIENCE = 180.0


def play(shell: Shell, *names: str, **environment: str) -> Result:
    """Run the demonstration in the test's own directory."""
    command = (sys.executable, "-m", "demo", *names)
    return shell.run(*command, timeout=PATIENCE, environment={"PYTHONPATH": str(ROOT), **environment})


def start(shell: Shell, *arguments: str) -> Running:
    """Run the demonstration in the background."""
    shell.environment["PYTHONPATH"] = str(ROOT)
    return shell.start(sys.executable, "-m", "demo", *arguments, ready=False)


def left_behind(broker: TestBroker) -> list[str]:
    """The queues, and the exchanges that are not the broker's own, in the test's vhost."""
    listed = [broker.api("GET", f"{kind}/{broker.vhost}") for kind in ("queues", "exchanges")]
    names = [thing["name"] for things in listed if isinstance(things, list) for thing in things]
    return [name for name in names if name and not name.startswith("amq.")]


def test_the_whole_demonstration_is_right_and_leaves_nothing_behind(
    shell: Shell, broker: TestBroker, tmp_path: Path
) -> None:
    """Every tutorial is played and checked, and the log comes out whole, and in parts that make up the whole."""
    if broker.kind == "rabbitmq":
        only_in_ci("it takes half a minute, as it does on the embedded broker")
    log = tmp_path / "dpkg.log"
    actions = [f"{action} package{n}:all" for n in range(300) for action in ("install", "status unpacked", "configure")]
    lines = [f"2026-01-31 12:00:00 {action} 1.0" for action in [*actions, "startup packages", "no-\udcff-match"]]
    log.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))

    result = play(shell, LOG=str(log))

    assert (result.code, result.stderr) == (0, "")
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["#", "demo-output/real-all.log", "902", "902"] in shown
    assert ["install.#", "demo-output/real-install.log", "300", "300"] in shown
    assert ["startup.#", "unknown.#", "demo-output/real-rest.log", "2", "2"] in shown
    assert "300 + 300 + 300 + 2 = 902" in result.stdout
    assert "All is right: 10 demonstrations" in result.stdout
    assert (tmp_path / "demo-output" / "real-all.log").read_bytes() == log.read_bytes()
    assert left_behind(broker) == []


def test_messages_of_an_earlier_use_do_not_disturb_it(shell: Shell) -> None:
    """What lies in the tutorial's queue is left alone; what an earlier demonstration left is not shown."""
    shell.run("mqtool", "send", "mine")
    shell.run("mqtool", "send", "-q", "demo.hello", "stale")

    result = play(shell, "hello-world")

    assert result.code == 0
    assert "stale" not in result.stdout
    assert shell.run("mqtool", "receive", "-c", "1", "--raw").stdout == "mine\n"


def test_a_log_that_is_not_there_is_said_at_once(shell: Shell) -> None:
    """Before anything is played, in a sentence that names it."""
    result = play(shell, LOG="/no/such/log")

    assert result.code == 1
    assert "cannot read the log file /no/such/log: No such file or directory" in result.stderr
    assert result.stdout == ""


def test_a_wrong_result_fails_loudly(shell: Shell, broker: TestBroker, tmp_path: Path) -> None:
    """Here somebody overwrites the log once its receivers are chosen: it says what was expected and what came."""
    log = tmp_path / "app.log"
    log.write_text("INFO one\nWARN two\n")
    running = start(shell, "real-log", "--log", str(log)).wait_for_stdout("receive-log topic -e demo.real_log '#'")

    log.write_text("INFO one\nWARN three\nINFO four\n")

    assert running.wait().code == 1
    assert "app.log has changed while it was read" in running.stderr
    assert "expected 2 lines, 3 were sent" in running.stderr
    assert left_behind(broker) == []


def test_an_unreachable_broker_that_was_named_is_an_error(lonely_shell: Shell) -> None:
    """No other broker is started instead: that would not be what the user asked to be shown."""
    result = play(lonely_shell, "hello-world", MQTOOL_URL="amqp://127.0.0.1:1")

    assert result.code == 1
    assert "no broker answers at 127.0.0.1:1" in result.stderr
    assert "MQTOOL_URL names this broker" in result.stderr


def test_ctrl_c_ends_everything_that_was_started(shell: Shell, broker: TestBroker) -> None:
    """In the middle of a long task: exit 130, no process goes on, and no queue is left."""
    running = start(shell, "work-queues").wait_for_stdout("Received long..")

    running.interrupt()

    assert running.wait().code == 130
    assert "interrupted" in running.stderr
    wait_until(lambda: not broker.api("GET", f"vhosts/{broker.vhost}/connections"), "all connections to be closed")
    assert left_behind(broker) == []


def test_make_tells_its_targets(lonely_shell: Shell) -> None:
    """Each once: of two recipes for one target, make warns on stderr and forgets the first."""
    told = lonely_shell.run("make", "-C", str(ROOT), "help")
    assert (told.code, told.stderr) == (0, "")
    targets = [line.split()[1] for line in told.stdout.splitlines() if line.startswith("  make ")]
    assert {"setup", "demo", "test", "up", "down"} <= set(targets)
    assert len(targets) == len(set(targets))
