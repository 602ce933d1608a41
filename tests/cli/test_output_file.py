"""`receive -o FILE`: the number of appended messages that it prints at its end, incomplete last lines in FILE, and
SIGHUP from logrotate, which may rename FILE while messages arrive.
"""

import signal
from pathlib import Path

import pytest

from mqtool.broker.embedded.in_process import Vhost
from tests.brokers import TestBroker, depth, free_port, large, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import closable_terminal


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@on_any_broker
@pytest.mark.parametrize("signals", ["", "trap '' HUP; "], ids=["plain", "under nohup"])
@pytest.mark.sampled(1)
@large
def test_receive_opens_a_new_file_after_logrotate(shell: Shell, broker: TestBroker, signals: str) -> None:
    """After logrotate has renamed the output file and sent SIGHUP, `receive -o` opens a new file immediately, without
    waiting for a message. The old file ends with a complete line.
    """
    log, old = shell.directory / "app.log", shell.directory / "app.log.1"
    log.write_text("from before\n")
    shell.start_cold()  # a process inherits the ignored signals
    running = shell.start("sh", "-c", f"{signals}exec mqtool receive --raw -o app.log --ready-file ready")
    wait_until((shell.directory / "ready").exists, f"consuming: {running.stderr}")
    shell.run("mqtool", "send", "-l", stdin="one\ntwo\n")
    wait_until(lambda: len(lines_of(log)) == 3, "both lines")
    log.rename(old)
    running.process.send_signal(signal.SIGHUP)
    wait_until(log.exists, "a new file")
    shell.run("mqtool", "send", "-l", stdin="three\n")
    wait_until(lambda: lines_of(log) == ["three"], "the third line, in the new file")
    assert running.interrupt().wait().code == 0
    assert running.stdout == ""
    assert lines_of(old) == ["from before", "one", "two"]
    assert depth(broker, "hello") == 0


@on_any_broker
def test_receive_says_how_many_messages_it_has_appended_to_the_file(shell: Shell) -> None:
    """`receive -o FILE` ends with a line on stderr that says how many messages it appended to FILE. A user who typed
    `-o json` to get JSON thus sees that the messages are in a file called json. With --quiet, there is no such line.
    """
    shell.run("mqtool", "send", "-l", stdin="one\ntwo\nthree\n")
    result = shell.run("mqtool", "receive", "-o", "json", "-c", "2")
    assert result.stderr.splitlines()[-1] == "2 messages appended to json"
    assert "appended" not in shell.run("mqtool", "receive", "-o", "json", "-c", "1", "--quiet").stderr
    assert len(lines_of(shell.directory / "json")) == 3


@on_any_broker
@pytest.mark.parametrize("command", ["receive", "tap amq.topic", "peek hello"])
@pytest.mark.parametrize("redirected", ["", " > elsewhere"])
def test_commands_with_an_output_file_count_the_messages_once(
    shell: Shell, broker: TestBroker, command: str, redirected: str
) -> None:
    """When `receive`, `tap` or `peek` with -o FILE ends, it prints one line that says how many messages it has
    appended to FILE. If stdout is redirected to another file, the command does not print a second count for stdout.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "send", "one")
    running = shell.start("sh", "-c", f"exec mqtool {command} -o out -c 1{redirected}", ready=False)
    if command.startswith("tap"):
        running.wait_for_stderr("Waiting")
        shell.run("mqtool", "emit-log", "topic", "-e", "amq.topic", "key", "two")
    ended = running.wait()
    assert (ended.code, len(lines_of(shell.directory / "out"))) == (0, 1)
    assert [line for line in ended.stderr.splitlines() if "appended" in line or "received" in line] == [
        "1 message appended to out"
    ]


@on_any_broker
def test_receive_does_not_say_that_it_appended_messages_that_it_could_not_write(shell: Shell) -> None:
    """If FILE cannot be written, `receive -o FILE` exits with 1, and does not say that it appended messages to FILE."""
    shell.run("mqtool", "send", "x")
    full = shell.run("mqtool", "receive", "-o", "/dev/full", "-c", "1")
    assert (full.code, "cannot write" in full.stderr, "appended" in full.stderr) == (1, True, False), full.stderr


@on_any_broker
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see when the signal is blocked")
@pytest.mark.parametrize("option", ["-o", "--output=app.log"])
@pytest.mark.sampled(1)
def test_sighup_does_not_end_receive_while_it_starts(shell: Shell, option: str) -> None:
    """If logrotate sends SIGHUP while `receive -o` is starting and has not opened its file yet, `receive` continues."""
    shell.start_cold()
    words = [option] if "=" in option else [option, "app.log"]
    running = shell.start("mqtool", "receive", "--raw", *words)
    status = Path(f"/proc/{running.process.pid}/status")

    def blocks_hup() -> bool:
        blocked = status.read_text().partition("SigBlk:")[2].split()[0]
        return bool(int(blocked, 16) & 1 << signal.SIGHUP - 1)

    wait_until(blocks_hup, "mqtool blocks SIGHUP")
    running.process.send_signal(signal.SIGHUP)
    running.wait_until_ready()
    shell.run("mqtool", "send", "hi")
    wait_until(lambda: lines_of(shell.directory / "app.log") == ["hi"], "the message")
    assert running.interrupt().wait().code == 0


def test_receive_removes_an_incomplete_last_line_of_a_killed_run(shell: Shell) -> None:
    """If the output file has several lines and the last one is incomplete, as after a killed run, `receive -o`
    removes this line from the file, and prints the line's size and beginning.
    """
    log = shell.directory / "app.log"
    log.write_bytes(b"whole\n" + b"half" * 50_000)
    shell.run("mqtool", "send", "again")
    result = shell.run("mqtool", "receive", "--raw", "-c", "1", "-o", "app.log")
    assert lines_of(log) == ["whole", "again"]
    assert "app.log ended with an incomplete line; removed its 200,000 bytes: halfhalf" in result.stderr
    log.write_bytes(b"whole\nof another \x1bprogram")
    shell.run("mqtool", "send", "again")
    result = shell.run("mqtool", "receive", "--raw", "-c", "1", "-o", "app.log")
    assert "removed its 19 bytes: of another \\x1bprogram\n" in result.stderr


@on_any_broker
def test_receive_removes_nothing_from_a_file_to_which_another_receive_appends(shell: Shell) -> None:
    """While one `receive -o` has its output file open, an incomplete last line may be a line that it is still writing.
    A second `receive -o` with the same file therefore does not remove this line.
    """
    log = shell.directory / "app.log"
    shell.start("mqtool", "receive", "-q", "other", "--raw", "-o", "app.log").wait_until_ready()
    log.write_text("whole\nhalf of ")
    shell.run("mqtool", "send", "body")
    result = shell.run("mqtool", "receive", "--raw", "-c", "1", "-o", "app.log")
    assert log.read_text() == "whole\nhalf of body\n"
    assert "incomplete line" not in result.stderr


def test_receive_keeps_a_file_that_is_a_single_line_without_a_newline(shell: Shell) -> None:
    """The first line of a file may be a header that somebody has written without a newline. If the output file is such
    a single line, `receive -o` keeps that line, and appends the message on a line of its own.
    """
    log = shell.directory / "app.log"
    log.write_text("header")
    shell.run("mqtool", "send", "body")
    shell.run("mqtool", "receive", "--raw", "-c", "1", "-o", "app.log")
    assert lines_of(log) == ["header", "body"]


def test_receive_redirected_to_the_end_of_a_file_starts_on_a_new_line(shell: Shell) -> None:
    """If FILE ends with an incomplete line, `receive >> FILE` keeps that line and prints the first message on a new
    line.
    """
    log = shell.directory / "app.log"
    log.write_text("whole\nhalf")
    shell.run("mqtool", "send", "again")
    for limit in "-c 1", "--idle-timeout 10ms":
        shell.run("sh", "-c", f"mqtool receive --raw {limit} >> app.log")
    assert lines_of(log) == ["whole", "half", "again"]


@on_any_broker
def test_rotating_the_output_file_again_and_again_loses_no_message(shell: Shell) -> None:
    """While the output file of `receive-log -o` is rotated again and again, each message is written once, in order, as
    a complete line in one of the files.
    """
    log = shell.directory / "app.log"
    lines = "n=0; until [ -e enough ]; do seq $((n + 1)) $((n + 1000)); n=$((n + 1000)); done"
    running = shell.start("mqtool", "receive-log", "fanout", "--raw", "-o", "app.log").wait_until_ready()
    emitting = shell.start("sh", "-c", f"{{ {lines}; echo $n > count; }} | mqtool emit-log fanout -l")
    files = []
    for number in range(10):
        wait_until(lambda: log.exists() and log.stat().st_size, "lines in the new file")
        files.append(log.rename(shell.directory / f"app.log.{number}"))
        running.process.send_signal(signal.SIGHUP)
        wait_until(log.exists, "a new file")
    (shell.directory / "enough").touch()
    assert emitting.wait().code == 0
    count = int((shell.directory / "count").read_text())
    files.append(log)
    wait_until(lambda: sum(len(lines_of(each)) for each in files) >= count, "all lines")
    assert running.interrupt().wait().code == 0
    assert all(each.read_text().endswith("\n") for each in files if each.stat().st_size)
    assert [line for each in files for line in lines_of(each)] == [str(number) for number in range(1, count + 1)]


@on_any_broker
def test_receive_fails_if_it_cannot_create_its_file_but_not_if_it_cannot_reopen_it(
    shell: Shell, broker: TestBroker
) -> None:
    """If the output file cannot be created, `receive -o` exits with 2. If the file cannot be reopened after SIGHUP,
    `receive -o` prints a warning and keeps writing to the old file.
    """
    refused = shell.run("mqtool", "receive", "-o", "no/such/app.log")
    assert refused.code == 2
    assert "cannot write to no/such/app.log: No such file or directory" in refused.stderr
    (shell.directory / "logs").mkdir()
    running = shell.start("mqtool", "receive", "--raw", "-o", "logs/app.log").wait_until_ready()
    (shell.directory / "logs").rename(shell.directory / "moved")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_stderr("warning: cannot reopen logs/app.log, so the old file is still in use")
    shell.run("mqtool", "send", "kept")
    wait_until(lambda: lines_of(shell.directory / "moved" / "app.log") == ["kept"], "the message")
    assert running.interrupt().wait().code == 0


@on_any_broker
@pytest.mark.parametrize("keeps_stderr", [True, False], ids=["stderr", "stderr in a file"])
@pytest.mark.sampled(1)
def test_receive_to_a_file_ends_when_its_terminal_is_closed(
    shell: Shell, broker: TestBroker, *, keeps_stderr: bool
) -> None:
    """When its terminal is closed, `receive -o` exits with 0, even if stderr goes to a file. `receive` does not mistake
    the SIGHUP of the terminal for the SIGHUP with which logrotate asks it to reopen the file.
    """
    words = "receive -o app.log --ready-file ready" + " 2> errors" * (not keeps_stderr)
    with closable_terminal(shell, "sh", "-c", f"exec mqtool {words}") as terminal:
        wait_until((shell.directory / "ready").exists, "consuming")
        terminal.close()
        assert terminal.wait() == 0


def test_closing_the_terminal_after_ctrl_c_does_not_kill_receive_to_a_file(
    lonely_shell: Shell, amqp_vhost: Vhost
) -> None:
    """If the terminal is closed after Ctrl-C, while the broker does not respond, `receive -o` still exits with 0.
    Closing the terminal does not count as a second signal, which would kill the command.
    """
    lonely_shell.environment["MQTOOL_URL"] = amqp_vhost.url
    with closable_terminal(lonely_shell, "mqtool", "receive", "-o", "app.log", "--ready-file", "ready") as terminal:
        wait_until((lonely_shell.directory / "ready").exists, "consuming")
        amqp_vhost.faults.go_silent()
        terminal.type("\x03")
        terminal.wait_for("^C\r\n")
        terminal.close()
        assert terminal.wait() == 0


@on_any_broker
@pytest.mark.parametrize(
    ("limit", "command", "names"),
    [
        (0, "worker --exec true --deduplicate --dedup-store handled -c 1", "cannot use the store handled: "),
        (0, "tutorial show repair --copy-to repair", "cannot write to repair: "),
        (0, "context add staging --url amqp://ann@staging", "config.toml: "),
        (1, "bench -c 100 --plot chart.svg", "cannot write chart.svg: "),
    ],
)
def test_a_command_that_cannot_write_its_file_names_the_file_and_exits_with_1(
    shell: Shell, limit: int, command: str, names: str
) -> None:
    """If a file cannot grow, as on a full disk, the command that writes the file exits with 1, and the error names
    the file or its directory. If `bench` cannot write its chart, or `tutorial show repair` cannot write its programs,
    no incomplete file is left behind.
    """
    shell.start_cold()
    # Python would write truncated .pyc files.
    shell.environment |= {"XDG_CONFIG_HOME": str(shell.directory), "PYTHONDONTWRITEBYTECODE": "1"}
    full = shell.script(f"ulimit -f {limit}; mqtool {command}")  # in blocks
    assert (full.code, names in full.stderr) == (1, True), full.stderr
    assert not (shell.directory / "chart.svg").exists()
    assert not list((shell.directory / "repair").glob("*"))


def test_broker_up_names_the_log_that_it_cannot_write(lonely_shell: Shell) -> None:
    """If `broker up` cannot write the broker's log, it exits with 1, and names the log."""
    lonely_shell.environment["XDG_STATE_HOME"] = str(lonely_shell.directory)
    log = lonely_shell.directory / "mqtool" / "brokers" / "full" / "log"
    log.mkdir(parents=True)
    ports = [word for name in ("port", "management-port", "stream-port") for word in (f"--{name}", str(free_port()))]
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--name", "full", *ports)
    failed = lonely_shell.run(*up)
    assert (failed.code, f"cannot write {log}: Is a directory" in failed.stderr) == (1, True), failed.stderr
