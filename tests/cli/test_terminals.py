"""How mqtool prints sentences and diagrams on a terminal of 80 columns, and on one that only has ASCII."""

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


def test_a_notice_is_wrapped_between_words(lonely_shell: Shell) -> None:
    """On a terminal, mqtool wraps a notice between words so that no line is longer than 80 columns. If a notice fits
    into 80 columns, mqtool does not wrap it.
    """
    sentence = "word " * 15 + "longer-than-that is what follows here, and 'quoted words' may be broken"
    lines = shown(lonely_shell, sentence)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2
    assert " ".join(line.strip() for line in lines) == sentence
    exactly = "x" * 40 + " " + "y" * 39
    assert shown(lonely_shell, exactly) == [exactly]


def test_a_command_in_a_notice_can_be_copied(lonely_shell: Shell) -> None:
    """On a terminal, mqtool prints a command within a notice on one line, so that a user can copy the command, even if
    the line is too long for the terminal.
    """
    commands = [
        "'mqtool receive-log topic --exchange orders --queue everything --declare'",
        'eval "$(mqtool broker env --name another-broker)"',
    ]
    for command in commands:
        lines = shown(lonely_shell, f"nobody receives what is published to this exchange; so type {command}, and wait")
        assert any(command in line for line in lines), lines
    long = "mqtool exchange bind orders everything " + "key " * 20 + "last"
    assert long in "".join(shown(lonely_shell, f"to bind it: {long}"))
    selecting = "unset MQTOOL_URL; export AMQP_URL=amqp://127.0.0.1:5673"
    assert selecting in shown(lonely_shell, f"a tutorial runs at {'x' * 20}; to use it, type: {selecting}")[1]


def test_an_error_is_wrapped_between_words(lonely_shell: Shell) -> None:
    """On a terminal, mqtool wraps an error and its hint between words to fit into 80 columns."""
    lonely_shell.environment["MQTOOL_URL"] = "amqp://127.0.0.1:1/" + "v" * 20
    words = ["mqtool", "tutorial", "show", "incident"], ["mqtool", "send", "--timeout", "x" * 30, "y"]
    for command in words:
        shown_there = seen(lonely_shell, *command)
        assert max(map(len, shown_there.splitlines())) <= 80
        assert shown_there.split() == lonely_shell.run(*command).stderr.split()


def test_diagrams_and_marks_are_ascii_in_the_c_locale(lonely_shell: Shell) -> None:
    """With LC_ALL=C, mqtool uses only ASCII characters for the diagrams and marks that it prints on a terminal."""
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


def test_received_bodies_are_unchanged_in_the_c_locale(lonely_shell: Shell, amqp_vhost: Vhost) -> None:
    """On a terminal with LC_ALL=C, `receive --raw` still prints the non-ASCII characters of a body unchanged."""
    lonely_shell.environment |= {"LC_ALL": "C", "MQTOOL_URL": amqp_vhost.url}
    assert lonely_shell.run("mqtool", "send", "grün ─").code == 0
    assert "grün ─" in seen(lonely_shell, "mqtool", "receive", "-c", "1", "--raw")


@pytest.mark.parametrize("command", ["receive -q task_queue", "worker", "receive-log fanout -q task_queue"])
@pytest.mark.sampled(1)
def test_redelivered_messages_are_marked_on_a_terminal(lonely_shell: Shell, amqp_vhost: Vhost, command: str) -> None:
    """On a terminal, `receive`, `worker` and `receive-log` add "(redelivered)" to the line of a redelivered message.
    They do not add it if stdout is a pipe, or with --raw or --dialect.
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


def test_the_shells_prompt_is_on_a_new_line_after_ctrl_c(lonely_shell: Shell, amqp_vhost: Vhost) -> None:
    """After Ctrl-C, `receive` ends the line on which the terminal shows ^C, so that the shell's prompt is on a new
    line.
    """
    lonely_shell.environment["MQTOOL_URL"] = amqp_vhost.url
    command = "trap : INT; mqtool receive; echo prompt"
    shown = on_terminal(lonely_shell, "sh", "-c", command, keys=["\x03"], cue="CTRL+C").stdout
    assert shown.splitlines()[1:] == ["^C", "prompt"]
