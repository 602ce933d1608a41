"""The command of `worker --exec`: its words, its placeholders, the variables of a message, and what is refused."""

import os
import shlex
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.work.exec_command import ExecCommand, environment_of
from mqtool.work.runner import Ending

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs run in another way on other systems")

#: The variables of a message without properties.
PLAIN = {
    "MQ_ROUTING_KEY": "eu", "MQ_EXCHANGE": "logs", "MQ_ORIGINAL_ROUTING_KEY": "eu", "MQ_ORIGINAL_EXCHANGE": "logs",
    "MQ_QUEUE": "jobs", "MQ_REDELIVERED": "0", "MQ_ATTEMPT": "1", "MQ_MESSAGE_ID": "",
}  # fmt: skip
LONG = 120_000
LONG_NAME = "x" * 256


def delivery(key: str = "eu", exchange: str = "logs", *, redelivered: bool = False, **properties: Any) -> Delivery:
    return Delivery(b"body", exchange, key, "jobs", redelivered, properties, 1)


def run(command: str, message: Delivery | None = None, **options: Any) -> Ending:
    return ExecCommand(command, capture=1_000_000, **options).run(message or delivery())


# What describes a message


@pytest.mark.parametrize(
    ("message", "more"),
    [
        (delivery(), {}),
        (delivery(redelivered=True), {"MQ_REDELIVERED": "1"}),
        (delivery(message_id="m-1", type=None), {"MQ_MESSAGE_ID": "m-1"}),
        (delivery(priority=3, type="t"), {"MQ_PRIORITY": "3", "MQ_TYPE": "t"}),
        (delivery(timestamp=datetime(1970, 1, 2, tzinfo=UTC)), {"MQ_TIMESTAMP": '{"$timestamp":86400}'}),
        (delivery(headers={"tenant": "a", "x-retry": 5}), {"MQ_HEADER_TENANT": "a", "MQ_HEADER_X_RETRY": "5"}),
        (delivery(headers={"é.a b": "é"}), {"MQ_HEADER___A_B": "é"}),
        (delivery(headers={"a": True, "b": {"c": [1]}}), {"MQ_HEADER_A": "true", "MQ_HEADER_B": '{"c":[1]}'}),
        (delivery("a\0b", "e\0"), dict.fromkeys(("MQ_ROUTING_KEY", "MQ_ORIGINAL_ROUTING_KEY"), "ab")
            | dict.fromkeys(("MQ_EXCHANGE", "MQ_ORIGINAL_EXCHANGE"), "e")),
        (delivery(headers={"long": "x" * (LONG + 1)}), {"MQ_HEADER_LONG": "x" * LONG}),
        (
            delivery("jobs", "", headers={"mqtool-exchange": "ab", "mqtool-routing-key": "c", "mqtool-attempts": 2}),
            {
                "MQ_ROUTING_KEY": "jobs", "MQ_EXCHANGE": "",
                "MQ_ORIGINAL_EXCHANGE": "ab", "MQ_ORIGINAL_ROUTING_KEY": "c", "MQ_ATTEMPT": "3",
                "MQ_HEADER_MQTOOL_EXCHANGE": "ab", "MQ_HEADER_MQTOOL_ROUTING_KEY": "c",
                "MQ_HEADER_MQTOOL_ATTEMPTS": "2",
            },
        ),
    ],
)  # fmt: skip
def test_a_programs_variables_describe_its_message(message: Delivery, more: dict[str, str]) -> None:
    """The environment variables of a program that `worker --exec` runs contain the routing key, the exchange, the
    properties and the headers of its message. Values that are not text are written as JSON. Long values are cut, and
    NUL characters are removed.
    """
    assert environment_of(message) == PLAIN | more


def test_a_program_gets_its_message_on_stdin_and_its_variables_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that `worker --exec` runs gets its message's body on stdin. It inherits mqtool's environment variables,
    and gets additional ones that describe its message. In these additional variables, text that is not UTF-8 keeps its
    bytes, and a value is cut at 120,000 bytes, because Linux limits the length of a variable.
    """
    monkeypatch.setenv("INHERITED", "yes")
    message = delivery("\udcffé", headers={"long": "é" * LONG})
    ending = run("sh -c 'cat; env -0; exit 3'", message)
    assert (ending.status, ending.stderr, ending.stdout[:4]) == (3, b"", b"body")
    variables = dict(line.split(b"=", 1) for line in ending.stdout[4:].split(b"\0") if line)
    assert variables[b"INHERITED"] == b"yes"
    assert variables[b"MQ_ROUTING_KEY"] == b"\xff\xc3\xa9"
    assert variables[b"MQ_HEADER_LONG"] == ("é" * (LONG // 2)).encode()


# The words of a command


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("a  'b c' \"d e\" f\\ g", ["a", "b c", "d e", "f g"]),
        ("{routing_key}-{exchange} x{queue}x", ["eu-logs", "xjobsx"]),
        ("{original_routing_key} {original_exchange}", ["eu", "logs"]),
        ("{message_id} '{attempt} {redelivered}' {}", ["m", "1 0", "{}"]),
        ("'${queue}' '{Queue}' {1}", ["${queue}", "{Queue}", "{1}"]),
        ("'a|b' \"a>b\" # x", ["a|b", "a>b", "#", "x"]),
        ("--regexp='a|b' a\\;b \\; c\"&\"", ["--regexp=a|b", "a;b", ";", "c&"]),
        ("'$A' '${A}' $1 a$ $ \\$A \"a $A b\" \"a\\\"$A\"", ["$A", "${A}", "$1", "a$", "$", "$A", "a $A b", 'a"$A']),
    ],
)  # fmt: skip
def test_a_command_is_split_into_words_in_which_placeholders_are_replaced(command: str, words: list[str]) -> None:
    """`worker --exec` splits its command into words as a shell would, but runs no shell. It replaces placeholders
    such as {routing_key} with the message's values.
    """
    ending = run(f"printf '%s\\n' {command}", delivery(message_id="m"))
    assert ending == Ending(0, b"", "".join(f"{word}\n" for word in words).encode())


def test_a_long_value_is_cut_in_an_argument() -> None:
    """`worker --exec` replaces placeholders such as {routing_key} in the arguments of its program with the message's
    values. Each value is cut at 120,000 bytes, because Linux limits the length of an argument.
    """
    assert run("printf %s {routing_key}", delivery("é" * LONG)).stdout == ("é" * (LONG // 2)).encode()


@pytest.mark.parametrize(
    ("command", "error", "hint"),
    [
        ("", "--exec is empty", "name the program to run for each message"),
        ("echo 'a", "--exec \"echo 'a\" is not a valid command: no closing quotation", None),
        ("grep 'a|b' | wc", "--exec runs no shell, so '|' would be an argument", "--shell runs it with sh"),
        ("a && b", "--exec runs no shell, so '&&' would be an argument", "--shell runs it with sh"),
        ("a # b ; c", "--exec runs no shell, so ';' would be an argument", "--shell runs it with sh"),
        ("a >b", "--exec runs no shell, so '>' would be an argument", "--shell runs it with sh"),
        ("echo a-${A}", "--exec runs no shell, so '${A}' would be an argument", "--shell runs it with sh"),
        ('echo "$HOME" $A', "--exec runs no shell, so '$HOME' would be an argument", "--shell runs it with sh"),
        (
            "echo {queue} {nosuch}",
            "--exec has an unknown placeholder {nosuch}",
            "use {routing_key}, {exchange}, {original_routing_key}, {original_exchange}, {queue}, {message_id}, "
            "{attempt}, {redelivered}, or --shell and $MQ_…",
        ),
        ("no-such-program", "program 'no-such-program' not found", None),
        ("./a directory", "program './a' not found", None),
        (f"./{LONG_NAME}", f"program './{LONG_NAME}' not found", None),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_run_is_refused(command: str, error: str, hint: str | None) -> None:
    """`worker --exec` refuses a command before it handles any message if the command is empty, contains shell syntax or
    an unknown placeholder, or names a program that does not exist.
    """
    with pytest.raises(UsageError) as refused:
        ExecCommand(command)
    assert (str(refused.value), refused.value.hint) == (error, hint)


def test_a_file_that_is_not_executable_is_refused(tmp_path: Path) -> None:
    """If the program that `worker --exec` names is a file that is not executable, mqtool refuses the command, with a
    hint that says how to make the file executable.
    """
    script = tmp_path / "a script"
    script.touch()
    with pytest.raises(UsageError) as refused:
        ExecCommand(shlex.quote(str(script)))
    assert (str(refused.value), refused.value.hint) == (f"'{script}' is not executable", f"chmod +x '{script}'")


def test_a_placeholder_can_name_the_program() -> None:
    """If the program in `worker --exec` is a placeholder such as {routing_key}, each message supplies the name of the
    program that handles it. If no program has that name, the message counts as failed, as if its program had exited
    with 65.
    """
    command = ExecCommand("{routing_key} {exchange}", capture=1000)
    for _ in range(2):
        assert command.run(delivery("echo")) == Ending(0, b"", b"logs\n")
    assert command.run(delivery("no-such-program\udcff")) == Ending(65, b"program 'no-such-program\\udcff' not found")
    assert command.run(delivery("\udcff")).status == 65


@pytest.mark.parametrize("name", ["x" * 250, "no-interpreter", "not-a-program"])
def test_a_message_that_names_a_file_that_cannot_be_run_counts_as_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The program's name in `worker --exec` can contain a placeholder such as {message_id}. If the message's value
    makes the name too long, or if the file with this name cannot be run, the message counts as failed, as if its
    program had exited with 65.
    """
    monkeypatch.chdir(tmp_path)
    for file, content in (("on-no-interpreter.sh", b"#!/no/such\n"), ("on-not-a-program.sh", b"\0")):
        (tmp_path / file).write_bytes(content)
        (tmp_path / file).chmod(0o755)
    assert ExecCommand("./on-{message_id}.sh").run(delivery(message_id=name)).status == 65


# A script for the shell


def test_a_script_is_run_by_the_shell() -> None:
    """With `worker --shell`, the command of `--exec` is a script for sh. The script gets the message's values in
    variables such as $MQ_QUEUE.
    """
    assert run('echo "$MQ_QUEUE" | tr j J; exit 3 # {nosuch}', shell=True) == Ending(3, b"", b"Jobs\n")
    assert run("echo ${queue}", shell=True) == Ending(0, b"", b"\n")


def test_a_placeholder_in_a_script_is_refused() -> None:
    """With `worker --shell`, a placeholder such as {routing_key} in the script is refused, since the shell would run
    the message's value as code.
    """
    with pytest.raises(UsageError) as refused:
        ExecCommand("echo {routing_key}", shell=True)
    assert str(refused.value) == "sh would run the value of {routing_key} as code"
    assert refused.value.hint == 'write "$MQ_ROUTING_KEY" instead'


# How programs are run


@pytest.mark.parametrize("name", ["MQTOOL_URL", "AMQP_URL", "MQTOOL_MANAGEMENT_URL"])
def test_a_program_does_not_inherit_the_passwords_of_brokers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A program that `worker --exec` runs inherits mqtool's environment variables with broker URLs, such as MQTOOL_URL,
    without the passwords. With `--pass-url`, it inherits them with the passwords.
    """
    monkeypatch.setenv(name, "amqp://me:secret\udcff@a,amqp://you@b")
    script = f'printf %s "${name}"'
    assert run(script, shell=True).stdout == b"amqp://me@a,amqp://you@b"
    assert run(script, shell=True, pass_url=True).stdout == b"amqp://me:secret\xff@a,amqp://you@b"
    assert os.environ[name] == "amqp://me:secret\udcff@a,amqp://you@b"


def test_a_programs_time_and_output_are_limited() -> None:
    """A program that `worker --exec` runs is killed once it has run for longer than its time limit, or has printed more
    than the output limit.
    """
    assert run("sleep 60", timeout=0.01).timed_out == 0.01
    assert ExecCommand("echo 12", capture=2).run(delivery()).too_much == 2


def test_a_programs_output_goes_to_stdout_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    """The program that `worker --exec` runs writes its output to mqtool's stdout, unless mqtool captures the output,
    for example to send it as a reply.
    """
    assert ExecCommand("echo hello").run(delivery()) == Ending(0)
    assert capfd.readouterr().out == "hello\n"


def test_as_many_programs_run_at_once_as_the_concurrency_allows(tmp_path: Path) -> None:
    """With `worker --concurrency 2`, two programs run at the same time."""
    os.mkfifo(tmp_path / "fifo")
    command = ExecCommand('eval "$MQ_ROUTING_KEY"', shell=True, capture=100, concurrency=2, timeout=30)
    endings: list[Ending] = []
    threads = [
        threading.Thread(target=lambda script=script: endings.append(command.run(delivery(script))))
        for script in (f"cat {tmp_path}/fifo", f"echo go > {tmp_path}/fifo")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(endings) == [Ending(0), Ending(0, b"", b"go\n")]
