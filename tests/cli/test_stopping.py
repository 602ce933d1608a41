"""Ctrl-C, SIGTERM, and the exit codes of commands that are stopped."""

import ctypes
import fcntl
import os
import re
import signal
import sys
import termios
from array import array
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, run
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import Connection, Receiving, parse_addresses
from mqtool.message import Message
from mqtool.topology import Queue
from tests.brokers import TestBroker, depth, large, on_any_broker
from tests.cli.shell import Running, Shell, wait_until
from tests.cli.terminal import closable_terminal
from tests.processes import is_alive, only_on_linux
from tests.proxy import Proxy

QUORUM = Queue("stopped", durable=True, arguments={"x-queue-type": "quorum"})


@on_any_broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_receive_exits_with_0_after_sigint_sigterm_or_sighup(shell: Shell, number: int) -> None:
    """After SIGINT, SIGTERM or SIGHUP, `receive` exits with 0 and prints nothing more."""
    receiver = shell.start("mqtool", "receive").wait_until_ready()
    receiver.process.send_signal(number)
    result = receiver.wait()
    assert (result.stdout, result.code) == ("", 0)
    assert result.stderr == " [*] Waiting for messages. To exit press CTRL+C\n"


@only_on_linux
@on_any_broker
def test_a_signal_to_any_thread_ends_receive(shell: Shell) -> None:
    """If the kernel delivers SIGTERM to a thread other than the main one, `receive` still stops and exits with 0."""
    receiver = shell.start("mqtool", "receive").wait_until_ready()
    pid = receiver.process.pid
    [other, *_] = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {pid}
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
    assert receiver.wait().code == 0


@on_any_broker
@large
@pytest.mark.parametrize(
    ("command", "code"), [("worker --exec true", 0), ("move jobs --to done --idle-timeout 1h", 130)]
)
def test_a_signal_ends_a_command_whose_broker_has_fallen_silent(
    shell: Shell, broker: TestBroker, command: str, code: int
) -> None:
    """If the network or the broker has fallen silent, but the connection is not closed, the first Ctrl-C ends a command
    within seconds. It does not wait until missing heartbeats show that the connection is lost, which takes two minutes.
    """
    for queue in ("jobs", "done"):
        shell.run("mqtool", "queue", "declare", queue)
    parts = urlsplit(broker.url)
    with Proxy(parts.port or 0) as proxy:
        url = broker.url.replace(f":{parts.port}", f":{proxy.port}")
        ready = command.startswith("worker")
        running = shell.start("mqtool", *command.split(), "-u", url, ready=ready)
        if ready:
            running.wait_until_ready()
        else:
            wait_until(lambda: shell.run("mqtool", "list", "queues", "consumers").stdout.count("1"), "move to consume")
        proxy.is_silent = True
        stopped = running.interrupt().wait()
    assert (stopped.code, "the broker does not reply" in stopped.stderr) == (code, True), stopped.stderr


def test_ctrl_c_lets_a_worker_finish_its_task(shell: Shell) -> None:
    """After Ctrl-C, `worker` finishes and acknowledges its current task. The next task stays in the queue."""
    for task in ("first...", "second."):
        shell.run("mqtool", "new-task", task)
    worker = shell.start("mqtool", "worker").wait_until_ready()
    worker.wait_for_stdout("first").interrupt()
    result = worker.wait()

    assert (result.stdout, result.code) == (" [x] Received first...\n", 0)
    assert " [x] Done" in result.stderr
    assert shell.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "-F", "%b %R").stdout == "second. 0\n"


@on_any_broker
def test_a_second_ctrl_c_ends_a_worker_immediately(shell: Shell) -> None:
    """A second Ctrl-C during a task ends `worker` immediately with exit code 130, and the broker redelivers the task to
    the next consumer.
    """
    shell.run("mqtool", "new-task", "long" + "." * 600)
    worker = shell.start("mqtool", "worker").wait_until_ready()
    worker.wait_for_stdout("long").interrupt()
    interrupt_until_it_ends(worker)
    assert worker.wait().code == 130
    assert shell.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "-F", "%R").stdout == "1\n"


def interrupt_until_it_ends(running: Running) -> None:
    """Press Ctrl-C again: a signal within a tenth of a second of the first one counts as the same one."""
    while running.process.poll() is None:
        running.interrupt()


FAILS_TO_CLEAN_UP = """
import signal
from mqtool.cli import app
from mqtool.errors import MqtoolError
def command(**_):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        raise MqtoolError("the queue could not be deleted")
app.command_tree = lambda _: command
app.run()
"""


def test_a_command_that_cannot_clean_up_after_ctrl_c_exits_with_130() -> None:
    """If a command fails to clean up after Ctrl-C, it prints the error and still exits with 130."""
    done = run((sys.executable, "-c", FAILS_TO_CLEAN_UP), capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (130, "mqtool: the queue could not be deleted\n")


BLOCKS_WHILE_IT_CLEANS_UP = """
import threading
from mqtool.cli import app, stopping
from mqtool.errors import MqtoolError
def command(**_):
    stopping.limit_time(0.0)
    try:
        raise MqtoolError("the queue is gone")
    finally:
        threading.Event().wait()
app.command_tree = lambda _: command
app.run()
"""


def test_a_time_limit_that_interrupts_cleaning_up_does_not_hide_the_error() -> None:
    """If a command fails, and its cleanup then blocks until the command's time limit is reached, the command still
    prints the error, and exits with 1.
    """
    done = run((sys.executable, "-c", BLOCKS_WHILE_IT_CLEANS_UP), capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (1, "mqtool: the queue is gone\n")


ENDS_WHILE_IT_LOADS = """
import signal
from mqtool.cli import app
app.command_tree = lambda _: signal.raise_signal(signal.SIGTERM)
app.run()
"""


ENDS_BEFORE_IT_LOADS = """
import signal
from mqtool.cli import app, stopping
install = stopping.install
stopping.install = lambda: install() or signal.raise_signal(signal.SIGTERM)
app.run()
"""
ENDS_AFTER_THE_COMMAND = """
import signal
from mqtool.cli import app
app._exit_code = lambda: signal.raise_signal(signal.SIGTERM)
app.run()
"""


@pytest.mark.parametrize(
    "script",
    [ENDS_BEFORE_IT_LOADS, ENDS_WHILE_IT_LOADS, ENDS_AFTER_THE_COMMAND],
    ids=["before it is imported", "while it is imported", "after it has ended"],
)
def test_sigterm_before_or_after_a_command_ends_mqtool_without_a_traceback(script: str) -> None:
    """If SIGTERM arrives before a command has been imported, or after it has ended, mqtool exits with 143 and prints
    nothing on stderr.
    """
    done = run((sys.executable, "-c", script), capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (143, "")


HAS_A_BUG = """
import sys
from mqtool.cli import app
from mqtool.cli.invocation import current
def command(**_):
    current().debug = {"None": None, "False": False}[sys.argv[1]]
    return 1 / 0
app.command_tree = lambda _: command
app.run()
"""


@pytest.mark.parametrize(
    ("debug", "hint"),
    [("None", "it is at <string>:7"), ("False", "--debug shows where")],
    ids=["without --debug", "with --debug"],
)
def test_an_unexpected_error_says_how_to_find_the_bug(debug: str, hint: str) -> None:
    """If a bug in mqtool raises an exception, the command exits with 1. If the command supports --debug, but was
    started without it, the hint says that --debug shows where the bug is. If the command does not support --debug, the
    hint names the line of code with the bug.
    """
    done = run((sys.executable, "-c", HAS_A_BUG, debug), capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"mqtool: unexpected error: ZeroDivisionError: division by zero\nhint: this is a bug in mqtool; {hint}\n"
    )


TWO_SIGNALS = """
import signal
from mqtool.cli import stopping
stopping.install()
with stopping.calling(lambda: print("stopping")):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
"""


def test_two_sigterms_at_the_same_moment_count_as_one() -> None:
    """If two SIGTERMs arrive at the same moment, mqtool treats them as one request to stop, and exits with 0, as after
    a single one.
    """
    result = run([sys.executable, "-c", TWO_SIGNALS], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("stopping\n", "", 0)


HANGS_UP_LATER = """
import signal, sys
from mqtool.cli import stopping
from mqtool.cli.invocation import current
stopping.install()
with stopping.calling(lambda: print("stopping")):
    signal.raise_signal(signal.Signals[sys.argv[1]])
    current().signalled_at -= 1.0
    signal.raise_signal(signal.SIGHUP)
"""


@pytest.mark.parametrize("first", ["SIGHUP", "SIGTERM"])
def test_sighup_never_counts_as_the_second_signal(first: str) -> None:
    """The first signal asks a command to stop, and a second one usually kills it. A SIGHUP after a SIGTERM or another
    SIGHUP does not kill it, and does not change its exit code. When a terminal is closed, SIGHUP may arrive twice:
    from the shell, and from the kernel when the shell ends.
    """
    result = run([sys.executable, "-c", HANGS_UP_LATER, first], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("stopping\n", "", 0)


TOGETHER = """
import signal, sys
from mqtool.cli import stopping
stopping.install()
both = {signal.SIGHUP, signal.Signals[sys.argv[1]]}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    signal.raise_signal(number)
with stopping.calling(lambda: print("stopping")):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
"""


@pytest.mark.parametrize("other", ["SIGTERM", "SIGINT"])
def test_sighup_and_another_signal_at_the_same_moment_count_as_one_signal(other: str) -> None:
    """If SIGHUP and SIGTERM or SIGINT arrive together, as from systemd with SendSIGHUP=yes, mqtool treats them as one
    request to stop, and exits with 0.
    """
    result = run([sys.executable, "-c", TOGETHER, other], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("stopping\n", "", 0)


KILLS_LATER = """
import signal
from mqtool.cli import stopping
from mqtool.cli.invocation import current
stopping.install()
with stopping.calling(lambda: None):
    signal.raise_signal(signal.SIGHUP)
    current().signalled_at -= 1.0
    signal.raise_signal(signal.SIGTERM)
"""


def test_sigterm_kills_a_command_that_has_not_ended_after_sighup() -> None:
    """If SIGHUP has asked a command to stop, and the command has not ended a second later, a SIGTERM that then arrives
    kills it.
    """
    result = run([sys.executable, "-c", KILLS_LATER], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", -signal.SIGTERM)


HANGS_UP_AT_EXIT = """
import signal
from mqtool.cli import stopping
stopping.install()
with stopping.calling(lambda: None):
    signal.raise_signal(signal.SIGHUP)
stopping.uninstall()
if callable(signal.getsignal(signal.SIGHUP)):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does Python as it exits
signal.raise_signal(signal.SIGHUP)
raise SystemExit(75)
"""


def test_sighup_while_python_exits_does_not_change_the_exit_code() -> None:
    """If SIGHUP arrives while Python is exiting, mqtool still exits with the command's exit code, not with 129."""
    result = run([sys.executable, "-c", HANGS_UP_AT_EXIT], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 75)


IGNORES_HUP = """
import signal
from mqtool.cli import stopping
signal.signal(signal.SIGHUP, signal.SIG_IGN)
stopping.install()
with stopping.calling(lambda: print("stopping")):
    signal.raise_signal(signal.SIGHUP)
"""


def test_a_command_under_nohup_ignores_sighup() -> None:
    """A command that was started with SIGHUP ignored, as by nohup, continues after SIGHUP."""
    result = run([sys.executable, "-c", IGNORES_HUP], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


@on_any_broker
def test_receive_acknowledges_what_it_has_written_when_the_terminal_is_closed(shell: Shell, broker: TestBroker) -> None:
    """When the terminal is closed, `receive > FILE` acknowledges the messages that it has written to FILE, and exits
    with 0.
    """
    shell.run("mqtool", "send", "-l", stdin="one\ntwo\n")
    with closable_terminal(shell, "sh", "-c", "exec mqtool receive --raw > got") as terminal:
        got = shell.directory / "got"
        wait_until(lambda: got.exists() and got.read_text() == "one\ntwo\n", "both messages")
        terminal.close()
        assert terminal.wait() == 0
    assert depth(broker, "hello") == 0


@on_any_broker
def test_a_worker_lets_its_program_finish_when_the_terminal_is_closed(shell: Shell, broker: TestBroker) -> None:
    """When the terminal is closed, `worker --exec` lets the running program finish, acknowledges the program's
    message, and exits with 0.
    """
    shell.run("mqtool", "new-task", "task")
    program = "sh -c 'touch began; until test -e go; do sleep 0.02; done; touch done'"
    with closable_terminal(shell, "mqtool", "worker", "--exec", program) as terminal:
        wait_until((shell.directory / "began").exists, "the program runs")
        terminal.close()
        (shell.directory / "go").touch()
        assert terminal.wait() == 0
    assert (shell.directory / "done").exists()
    assert depth(broker, "task_queue") == 0


@on_any_broker
@pytest.mark.parametrize("signals", ["", "trap '' HUP; "], ids=["plain", "under nohup"])
@pytest.mark.sampled(1)
def test_worker_leaves_a_message_in_its_queue_if_the_program_fails_after_the_terminal_was_closed(
    shell: Shell, broker: TestBroker, signals: str
) -> None:
    """If the program that `worker --exec` runs fails after the terminal has been closed, the reason may be that the
    program could not print. `worker` therefore leaves the message in its queue instead of dead-lettering it, and exits
    with 1.
    """
    shell.run("mqtool", "new-task", "task")
    program = "sh -c 'touch began; until test -e go; do sleep 0.02; done; echo done'"
    worker = f'{signals}exec mqtool worker --retries 0 --exec "{program}"'
    with closable_terminal(shell, "sh", "-c", worker) as terminal:
        wait_until((shell.directory / "began").exists, "the program runs")
        terminal.close()
        (shell.directory / "go").touch()
        assert terminal.wait() == 1
    assert depth(broker, "task_queue") == 1


@on_any_broker
@pytest.mark.parametrize("signals", ["", 'trap "" HUP; '], ids=["SIGHUP", "SIGHUP ignored"])
@pytest.mark.parametrize(("keys", "shown"), [("", "jobs"), ("/job", "/job_")], ids=["no keys", "filter"])
def test_top_ends_without_an_error_when_the_terminal_is_closed(
    shell: Shell, signals: str, keys: str, shown: str
) -> None:
    """When the terminal is closed, `top 2> FILE` ends with exit code 0 and reports no error in FILE. It does so even
    if the user is typing a filter, or if `top` was started with SIGHUP ignored, so that the signal cannot end it.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    with closable_terminal(shell, "sh", "-c", f"{signals}exec mqtool top 2> errors") as terminal:
        terminal.wait_for("jobs")
        terminal.type(keys)
        terminal.wait_for(shown)
        terminal.close()
        code = terminal.wait()
    assert (code, (shell.directory / "errors").read_text()) == (0, "")


@on_any_broker
@pytest.mark.parametrize("is_reached", [True, False], ids=["broker up", "broker away"])
def test_top_on_a_dumb_terminal_ends_when_the_terminal_is_closed(
    shell: Shell, broker: TestBroker, *, is_reached: bool
) -> None:
    """If TERM is dumb and SIGHUP is ignored, `top` still ends when the terminal is closed, even if its next update is
    an hour away, or if it is reconnecting to the management API. It does not report this as a bug in mqtool.
    """
    shell.environment["TERM"] = "dumb"
    shell.run("mqtool", "queue", "declare", "jobs")
    errors = shell.directory / "errors"
    with ExitStack() as reachable:
        management = reachable.enter_context(Proxy(urlsplit(broker.management).port or 0))
        shell.environment["MQTOOL_MANAGEMENT_URL"] = f"http://127.0.0.1:{management.port}"
        top = f"mqtool top --interval {'1h' if is_reached else '1s'} 2> errors"
        with closable_terminal(shell, "sh", "-c", f'trap "" HUP; exec {top}') as terminal:
            terminal.wait_for("jobs")
            if not is_reached:
                reachable.close()
                wait_until(lambda: "reconnecting: " in errors.read_text(), "top to reconnect")
            terminal.close()
            terminal.wait()
    end = "mqtool: cannot write to standard output: Input/output error\n"
    said = [line for line in errors.read_text().splitlines(keepends=True) if not line.startswith("warning: ")]
    assert said in ([], [end])


@on_any_broker
def test_top_reads_single_keys_again_after_it_was_suspended(shell: Shell) -> None:
    """After the user has suspended and continued `top`, a single "q" ends it, even if the shell has changed the
    terminal's settings in between, as bash does.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    with closable_terminal(shell, "mqtool", "top", "--interval", "1h") as terminal:
        terminal.wait_for("jobs")
        terminal.suspend()
        terminal.resume()
        wait_until(terminal.passes_on_single_keys, "top to read single keys")
        terminal.type("q")
        assert terminal.wait() == 0


@on_any_broker
def test_gnu_timeout_lets_a_worker_finish_its_task(shell: Shell) -> None:
    """If GNU `timeout` stops `worker` with SIGTERM, `worker` still finishes its current task. The exit code is 124,
    that of `timeout`.
    """
    shell.run("mqtool", "new-task", "a.")
    worker = shell.start("timeout", "600", "mqtool", "worker").wait_for_stdout("a.")
    worker.process.send_signal(signal.SIGALRM)  # makes timeout act as if the time were up
    result = worker.wait()
    assert " [x] Done" in result.stderr
    assert result.code == 124


@on_any_broker
@pytest.mark.parametrize("doing", [(), ("--exec", "sh -c 'echo $$ > pid; exec sleep 600'")], ids=["task", "program"])
@pytest.mark.sampled(1)
def test_a_busy_worker_says_after_ctrl_c_that_it_is_finishing_its_task(shell: Shell, doing: tuple[str, ...]) -> None:
    """After the first Ctrl-C, a busy `worker` says that it is finishing its task. A second Ctrl-C immediately ends
    `worker` and its program, with exit code 130.
    """
    shell.run("mqtool", "new-task", "long" + "." * 600)
    worker = shell.start("mqtool", "worker", *doing).wait_until_ready()
    pid = shell.directory / "pid"
    wait_until(lambda: (pid.exists() and pid.read_text()) if doing else "long" in worker.stdout, "the task has begun")
    worker.interrupt().wait_for_stderr("finishing this one; Ctrl-C again stops now\n")
    interrupt_until_it_ends(worker)
    assert worker.wait().code == 130
    if doing:
        wait_until(lambda: not is_alive(int(pid.read_text())), "the end of the program")
    assert shell.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "-F", "%R").stdout == "1\n"


def test_send_waits_for_confirms_of_the_lines_read_before_ctrl_c(shell: Shell) -> None:
    """After Ctrl-C, `send -l` waits until the lines that it has read are confirmed, says how many were confirmed, and
    exits with 130.
    """
    sender = shell.start("mqtool", "send", "-l", "-v", stdin=PIPE)
    sender.write(b"read\n")
    sender.wait_for_stderr(" [x] Sent 'read'").interrupt()
    result = sender.wait()
    assert result.code == 130
    assert "1 confirmed in " in result.stderr


@pytest.mark.parametrize("way", ["individual", "batch", "async"])
@pytest.mark.sampled(1)
def test_publisher_confirms_stops_at_the_first_ctrl_c(shell: Shell, way: str) -> None:
    """After the first Ctrl-C, `publisher-confirms` says how many messages were confirmed, and exits with 130."""
    count = ("-c", "10000000")
    publisher = shell.start("mqtool", "publisher-confirms", way, *count, "-q", "confirmed", "--durable")
    look = ("mqtool", "receive", "-q", "confirmed", "--no-declare", "-c", "1")
    wait_until(lambda: shell.run(*look).code == 0, "messages are published")
    result = publisher.interrupt().wait()
    assert result.code == 130
    assert re.search(r"stopped: [\d,]+ of 10,000,000 messages confirmed", result.stderr)


@pytest.mark.parametrize("options", ["--raw", "--raw --auto-ack"], ids=["one at a time", "in batches"])
@pytest.mark.sampled(1)
def test_sigterm_ends_receive_while_its_pipe_is_full(shell: Shell, broker: TestBroker, options: str) -> None:
    """If `receive` is blocked because nothing reads from the pipe to which it prints, the first SIGTERM ends `receive`
    with exit code 143.
    """
    shell.run("mqtool", "send", "-l", stdin=("x" * 10_000 + "\n") * 100)
    shell.start_cold()
    receiver = f"mqtool receive {options} --ready-file ready"
    script = f"{{ {receiver} & echo $! > pid; wait $!; echo $? > code; }} | sh -c 'echo $$ > reader; exec sleep 600'"
    pipeline = shell.start("sh", "-c", script)
    wait_until((shell.directory / "ready").exists, "receive consumes")
    pid = int((shell.directory / "pid").read_text())
    wait_until(lambda: _unread(pid) > 10_000, lambda: f"a full pipe: {pipeline.stderr}")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: (shell.directory / "code").exists() and (shell.directory / "code").read_text(), "its end")
    assert (shell.directory / "code").read_text() == "143\n"
    os.kill(int((shell.directory / "reader").read_text()), signal.SIGKILL)
    pipeline.wait()


@pytest.mark.parametrize(
    "command", ["receive --raw", "worker --raw --prefetch 100", "worker --exec cat --concurrency 4"]
)
def test_messages_that_a_stopped_command_leaves_in_a_quorum_queue_stay_in_order(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """After Ctrl-C, the messages that `receive` or `worker` has not handled, including those that it had already
    received, are in their quorum queue in the original order. No message that was handled is left in the queue.
    """
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(QUORUM)
        numbers = [Message(b"%d\n" % number) for number in range(3000)]
        assert len([*channel.publish(numbers, routing_key=QUORUM.name)]) == 3000
        receiver = shell.start("mqtool", *command.split(), "-q", QUORUM.name).wait_for_stdout("\n50\n")
        stopped = receiver.interrupt().wait()
        assert stopped.code in (0, 130), stopped.stderr
        handled = {int(each) for each in re.findall(r"\d+", stopped.stdout)}
        wait_until(lambda: channel.depth_of(QUORUM.name) == 3000 - len(handled), "all others are requeued")
        left = [*channel.consume(QUORUM, Receiving(count=3000 - len(handled)))] if len(handled) < 3000 else []
    assert [int(each.body) for each in left] == sorted({*range(3000)} - handled)


def _unread(pid: int) -> int:
    """Bytes in the pipe that is a process's stdout."""
    pipe, count = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY | os.O_NONBLOCK), array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    os.close(pipe)
    return count[0]


def test_a_killed_worker_loses_no_task(shell: Shell) -> None:
    """If `worker` is killed during a task, the broker redelivers the task."""
    shell.run("mqtool", "new-task", "precious" + "." * 600)
    worker = shell.start("mqtool", "worker").wait_until_ready()
    worker.wait_for_stdout("precious")
    worker.process.kill()
    worker.wait()
    assert shell.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "-F", "%R").stdout == "1\n"


def test_receive_exits_with_69_if_its_queue_is_deleted(shell: Shell, broker: TestBroker) -> None:
    """If the queue is deleted while `receive` runs, the command names the queue and exits with 69."""
    receiver = shell.start("mqtool", "receive", "--declare", "-q", "gone").wait_until_ready()
    broker.api("DELETE", f"queues/{broker.vhost}/gone")
    result = receiver.wait()
    assert result.code == 69
    assert "queue 'gone' was deleted" in result.stderr


def test_wait_exits_with_0_once_a_broker_accepts_connections(shell: Shell, lonely_shell: Shell) -> None:
    """`wait` exits with 0 once a broker accepts connections, and with 124 if no broker does so within --timeout."""
    assert shell.run("mqtool", "wait", "--timeout", "10s").code == 0
    late = lonely_shell.run("mqtool", "wait", "--timeout", "300ms", "-u", "amqp://localhost:1")
    assert late.code == 124
    assert "no broker within 0.3 s" in late.stderr


def test_the_tasks_of_worker_forget_ack_are_redelivered_to_the_next_worker(shell: Shell) -> None:
    """`worker --forget-ack` handles tasks without acknowledging them. When the command ends, the broker redelivers all
    of these tasks to the next worker.
    """
    for number in range(3):
        shell.run("mqtool", "new-task", str(number))
    worker = shell.start("mqtool", "worker", "--forget-ack", "--prefetch", "0").wait_until_ready()
    wait_until(lambda: worker.stderr.count("Done") == 3, "three tasks done")
    result = worker.interrupt().wait()
    assert result.code == 0
    assert "3 done, none acknowledged" in result.stderr

    again = shell.run("mqtool", "worker", "-c", "3", "-F", "%b %R")
    assert again.stdout == "0 1\n1 1\n2 1\n"
