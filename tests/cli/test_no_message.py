"""What publishing commands do if no message was typed or piped."""

import pytest

from tests.brokers import on_any_broker
from tests.cli.shell import Shell
from tests.cli.terminal import on_terminal

_NAMED = [
    "send -q jobs",
    "send -e amq.topic -r a.b",
    "send -r jobs",
    "new-task -q jobs",
    "emit-log fanout -e amq.fanout",
    "emit-log direct error -e amq.direct",
    "emit-log topic a.b -e amq.topic",
    "emit-log headers -H a=b -e amq.headers",
    "send-delayed -e later",
    "send-stream -q jobs",
    "rpc-client -q jobs",
]


@on_any_broker
@pytest.mark.parametrize("command", _NAMED)
@pytest.mark.sampled(3)
def test_a_publishing_command_with_a_queue_or_exchange_needs_a_message(shell: Shell, command: str) -> None:
    """If a publishing command names a queue or an exchange, but no message is given, it exits with 2. It does not
    publish the default message of its tutorial, and declares nothing.
    """
    unattended = shell.run("mqtool", *command.split())
    assert (unattended.code, unattended.stdout, "there is no " in unattended.stderr) == (2, "", True)
    assert on_terminal(shell, "mqtool", *command.split()).code == 2
    assert shell.run("mqtool", "list", "queues").stdout == ""


@on_any_broker
def test_empty_input_publishes_nothing_and_prints_a_note(shell: Shell) -> None:
    """If `send` or `new-task` is called without a message as an argument, and its input, from stdin or a file, is
    empty, the command publishes nothing and prints a note that the input is empty. With the argument '', `send`
    publishes an empty message. With the argument -, it publishes all of stdin as one message, even if stdin is empty.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    for command in (["send"], ["send", "-q", "jobs"], ["new-task"]):
        empty = shell.run("mqtool", *command, stdin="")
        assert (empty.code, empty.stderr) == (0, "nothing was sent: stdin is empty; to send an empty message: ''\n")
    (shell.directory / "empty").touch()
    for name, said in (("empty", "empty"), ("/dev/null", "/dev/null"), ("-", "stdin")):
        empty = shell.run("mqtool", "send", "-q", "jobs", "-f", name, stdin="")
        assert (empty.code, empty.stdout) == (0, "")
        assert empty.stderr == f"nothing was sent: {said} is empty; to send an empty message: ''\n"
    assert "jobs\t0\n" in shell.run("mqtool", "list", "queues", "name", "messages_ready").stdout
    assert shell.run("mqtool", "send", "-q", "jobs", "", stdin="unread").code == 0
    assert shell.run("mqtool", "send", "-q", "jobs", "-", stdin="").code == 0
    assert shell.run("mqtool", "receive", "-q", "jobs", "-c", "2", "--raw").stdout == "\n\n"
