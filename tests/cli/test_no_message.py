"""What publishing commands do if nobody has typed or piped in a message."""

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
def test_the_tutorials_text_goes_to_no_queue_or_exchange_that_the_user_names(shell: Shell, command: str) -> None:
    """On a terminal and in a cron job, it is a usage error, and nothing is declared."""
    unattended = shell.run("mqtool", *command.split())
    assert (unattended.code, unattended.stdout, "there is no " in unattended.stderr) == (2, "", True)
    assert on_terminal(shell, "mqtool", *command.split()).code == 2
    assert shell.run("mqtool", "list", "queues").stdout == ""


@on_any_broker
def test_an_empty_pipe_publishes_nothing_and_says_so(shell: Shell) -> None:
    """With '' or -, an empty message is published."""
    shell.run("mqtool", "queue", "declare", "jobs")
    for command in (["send"], ["send", "-q", "jobs"], ["new-task"]):
        empty = shell.run("mqtool", *command, stdin="")
        assert (empty.code, empty.stderr) == (0, "nothing was sent: stdin is empty; to send an empty message: ''\n")
    assert "jobs\t0\n" in shell.run("mqtool", "list", "queues", "name", "messages_ready").stdout
    assert shell.run("mqtool", "send", "-q", "jobs", "", stdin="unread").code == 0
    assert shell.run("mqtool", "send", "-q", "jobs", "-", stdin="").code == 0
    assert shell.run("mqtool", "receive", "-q", "jobs", "-c", "2", "--raw").stdout == "\n\n"
