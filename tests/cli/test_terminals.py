"""What mqtool's own sentences and drawings look like on a terminal: 80 columns wide, or with ASCII alone."""

import re
import sys

import pytest

from mqtool.testing import Vhost
from tests.cli.shell import Shell
from tests.cli.terminal import on_terminal

SAY = "import sys; from mqtool.cli.display import output; output.notice(sys.argv[1])"


def seen(shell: Shell, *command: str) -> str:
    """What a command prints on a terminal of 80 columns, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(shell, *command).stdout)


def shown(shell: Shell, sentence: str) -> list[str]:
    """The lines in which a notice is printed."""
    return seen(shell, sys.executable, "-c", SAY, sentence).splitlines()


def test_a_notice_is_broken_between_words(lonely_shell: Shell) -> None:
    """On a terminal, a notice is wrapped between words at 80 columns and loses no word; one that fits stays on one
    line.
    """
    sentence = "word " * 15 + "longer-than-that is what follows here, and 'quoted words' may be broken"
    lines = shown(lonely_shell, sentence)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2
    assert " ".join(line.strip() for line in lines) == sentence
    exactly = "x" * 40 + " " + "y" * 39
    assert shown(lonely_shell, exactly) == [exactly]


def test_a_command_in_a_notice_can_be_copied(lonely_shell: Shell) -> None:
    """On a terminal, a command within a notice is printed on a line without a break, so that it can be copied whole."""
    commands = [
        "'mqtool receive-log topic --exchange orders --queue everything --declare'",
        'eval "$(mqtool broker env --name another-broker)"',
    ]
    for command in commands:
        lines = shown(lonely_shell, f"nobody receives what is published to this exchange; so type {command}, and wait")
        assert any(command in line for line in lines), lines
    long = "mqtool exchange bind orders everything " + "key " * 20 + "last"
    assert long in "".join(shown(lonely_shell, f"to bind it: {long}"))


def test_an_error_is_broken_between_words(lonely_shell: Shell) -> None:
    """On a terminal, an error and its hint are wrapped between words to fit into 80 columns."""
    lonely_shell.environment["MQTOOL_URL"] = "amqp://127.0.0.1:1/" + "v" * 20
    words = ["mqtool", "tutorial", "show", "incident"], ["mqtool", "send", "--timeout", "x" * 30, "y"]
    for command in words:
        shown_there = seen(lonely_shell, *command)
        assert max(map(len, shown_there.splitlines())) <= 80
        assert shown_there.split() == lonely_shell.run(*command).stderr.split()


def test_a_terminal_of_the_locale_c_gets_ascii(lonely_shell: Shell) -> None:
    """Under LC_ALL=C, mqtool draws diagrams and marks on a terminal with ASCII characters only."""
    lonely_shell.environment["LC_ALL"] = "C"
    page = seen(lonely_shell, "mqtool", "tutorial", "show", "routing")
    assert "emit-log --> (direct_logs)+" in page
    assert page.isascii()
    played = seen(lonely_shell, "mqtool", "tutorial", "run", "hello-world", "--no-pause", "--lines")
    assert "receiver |  [x] Received Good morning!" in played
    assert "* the receiver got both messages" in played
    assert played.isascii()
    lonely_shell.environment["LC_ALL"] = "C.UTF-8"
    assert "emit-log ──> (direct_logs)┤" in seen(lonely_shell, "mqtool", "tutorial", "show", "routing")


def test_received_data_stays_as_it_is_under_the_locale_c(lonely_shell: Shell, amqp_vhost: Vhost) -> None:
    """Under LC_ALL=C, `receive --raw` still prints a body on a terminal byte for byte; only mqtool's own drawings
    become ASCII.
    """
    lonely_shell.environment |= {"LC_ALL": "C", "MQTOOL_URL": amqp_vhost.url}
    assert lonely_shell.run("mqtool", "send", "grün ─").code == 0
    assert "grün ─" in seen(lonely_shell, "mqtool", "receive", "-c", "1", "--raw")


@pytest.mark.parametrize("command", ["receive -q task_queue", "worker", "receive-log fanout -q task_queue"])
def test_a_receiver_marks_redelivered_messages_on_a_terminal(
    lonely_shell: Shell, amqp_vhost: Vhost, command: str
) -> None:
    """On a terminal, the line of a message that was delivered before ends with "(redelivered)"; in a pipe, with --raw
    and with --dialect, nothing is added to the line.
    """
    lonely_shell.environment["MQTOOL_URL"] = amqp_vhost.url
    receive = ("mqtool", *command.split(), "-c", "2")
    for words, is_marked in (([], True), (["--raw"], False), (["--dialect", "python"], False)):
        lonely_shell.run("mqtool", "new-task", "-l", stdin="a\nb\n")
        lonely_shell.run("mqtool", "peek", "task_queue", "-c", "1")
        lines = seen(lonely_shell, *receive, *words).splitlines()
        received = [line for line in lines if re.search(r"\b[ab]'?( \(redelivered\))?$", line)]
        assert [line.endswith(" (redelivered)") for line in received] == [is_marked, False], lines
    lonely_shell.run("mqtool", "new-task", "a")
    lonely_shell.run("mqtool", "peek", "task_queue")
    assert "redelivered" not in lonely_shell.run(*receive[:-1], "1").stdout


def test_the_shells_prompt_is_not_on_the_line_of_ctrl_c(lonely_shell: Shell, amqp_vhost: Vhost) -> None:
    """After Ctrl-C on a terminal, `receive` ends the line that shows ^C, so that the shell's prompt starts on a new
    one.
    """
    lonely_shell.environment["MQTOOL_URL"] = amqp_vhost.url
    command = "trap : INT; mqtool receive; echo prompt"
    shown = on_terminal(lonely_shell, "sh", "-c", command, keys=["\x03"], cue="CTRL+C").stdout
    assert shown.splitlines()[1:] == ["^C", "prompt"]
