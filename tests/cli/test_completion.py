"""Completion with the Tab key, in a terminal with bash, zsh and fish, and of names from the broker."""

import os
import pty
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
import typer

from mqtool.cli.commands import whole_tree
from tests.brokers import IN_CI, TestBroker, on_any_broker, skip_or_fail
from tests.cli.shell import Shell

#: How to start each shell without its user's settings, and how it loads mqtool's completion script.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(mqtool completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(mqtool completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "mqtool completion fish | source"),
}
#: Names with characters that are special to a shell, and the part of each that is typed before Tab.
HOSTILE = {
    "back\\$(touch pwned)`touch pwned`;touch pwned": "ba",
    'quote\'d ("grün") * [a]': "quo",
    "colon:one=two": "colon:o",
    "dollar$x two words!": "dol",
    "amp&pipe|<>#~?{a,b}^%": "am",
    "ends with a quote'": "en",
    'finishes with two"': "fin",
    "it's \"": "it",
    "last\\": "la",
}


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, name: str, shell: Shell) -> None:
        command, setup = SHELLS[name]
        if shutil.which(command[0]) is None:
            skip_or_fail(f"{name} is not installed")
        self._master, slave = pty.openpty()
        home = str(shell.directory)
        environment = {**shell.environment, "TERM": "xterm", "LANG": "C.UTF-8", "HOME": home, "COLUMNS": "300"}
        self._process = subprocess.Popen(command, cwd=home, env=environment, preexec_fn=lambda: os.login_tty(slave))
        os.close(slave)
        self._seen = ""
        self._send(f"{setup}\recho rea''dy\r")
        self._wait_for("ready\r\n")

    def complete(self, line: str) -> list[str]:
        """The words of the command line after Tab was pressed at its end."""
        self._seen = ""
        #  Home, a command that shows words as the shell understands them, End, Enter.
        self._send(f"{line}\t\x01printf '<%s>' \x05; echo do''ne\r")
        seen = self._wait_for("done\r\n")
        return seen.rpartition("<mqtool>")[2].partition("done")[0].strip()[1:-1].split("><")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _send(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def _wait_for(self, text: str) -> str:
        deadline = time.monotonic() + 60
        while text not in self._seen:
            assert select.select([self._master], [], [], deadline - time.monotonic())[0], (
                f"no {text!r} in {self._seen!r}"
            )
            self._seen += os.read(self._master, 65536).decode("utf-8", "replace")
        return self._seen


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, shell: Shell) -> Iterator[Terminal]:
    shell.environment["MQTOOL_COMPLETION_TIMEOUT"] = "20s"  # the tests are about the names, not about speed
    opened = Terminal(request.param, shell)
    yield opened
    opened.close()


def declare(broker: TestBroker, *queues: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    for queue in queues:
        channel.queue_declare(queue, durable=True)
    channel.exchange_declare("orders", "topic", durable=True)
    connection.close()


@on_any_broker
@pytest.mark.sampled(1)
def test_tab_completes_commands_and_queue_names(broker: TestBroker, terminal: Terminal, shell: Shell) -> None:
    """Tab completes commands and queue names. A name with spaces, quotes or shell syntax becomes one quoted word, and
    the shell does not execute anything in it.
    """
    declare(broker, "jobs", *HOSTILE)
    assert terminal.complete("mqtool topo") == ["topology"]
    assert terminal.complete("mqtool send -q jo") == ["send", "-q", "jobs"]
    assert terminal.complete("mqtool dlq show jo") == ["dlq", "show", "jobs"]
    assert terminal.complete(f"mqtool send -u {broker.url} -q jo")[-1] == "jobs"
    for name, start in HOSTILE.items():
        for quote in ("", "'", '"') if IN_CI else ("",):
            assert terminal.complete(f"mqtool send -q {quote}{start}") == ["send", "-q", name]
        assert terminal.complete(f"mqtool send --queue={start}") == ["send", f"--queue={name}"]
    assert terminal.complete('mqtool send --queue="dol') == ["send", "--queue=dollar$x two words!"]
    assert not (shell.directory / "pwned").exists()


@on_any_broker
@pytest.mark.sampled(1)
def test_tab_keeps_what_was_typed_if_nothing_matches(terminal: Terminal, shell: Shell) -> None:
    """If mqtool has no proposals for a word, Tab completes the word to the name of a matching file. If there is no such
    file, the word stays as typed.
    """
    (shell.directory / "messages.ndjson").touch()
    assert terminal.complete("mqtool send -f mess") == ["send", "-f", "messages.ndjson"]
    assert terminal.complete("mqtool send -q no-such-") == ["send", "-q", "no-such-"]
    assert terminal.complete("mqtool nonsen") == ["nonsen"]


def ask(shell: Shell, line: str) -> tuple[str, str, int]:
    """Return what mqtool prints for a shell that asks for completions: stdout, stderr and exit code."""
    done = shell.run("mqtool", environment={"_MQTOOL_COMPLETE": line}, timeout=20)
    return done.stdout.strip("\n"), done.stderr, done.code


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("mqtool dlq sh", "show"),
        ("mqtool -C production send", "send-stream"),
        ("mqtool drill poi", "poison"),
        ("mqtool send --quie", "--quiet"),
        ("mqtool receive --queue-type quo", "quorum"),
        ("mqtool list queues --sort messages_u", "messages_unacknowledged"),
        ("mqtool list bindings source_k", "source_kind"),
        ("mqtool tutorial run hello-w", "hello-world"),
        ("mqtool help recei", "receive"),
        ("mqtool help dur", "durations"),
        ("mqtool help queue dec", "declare"),
        ("mqtool plugin enable rabbitmq_sh", "rabbitmq_shovel"),
        ("mqtool broker fault nack", "nack-publishes"),
    ],
)
@pytest.mark.sampled(5)
def test_commands_options_and_values_complete_without_a_broker(lonely_shell: Shell, line: str, word: str) -> None:
    """Completion proposes commands, options and their values even if no broker is running."""
    proposed = [proposal.partition("\t")[0] for proposal in ask(lonely_shell, line)[0].splitlines()]
    assert word in proposed


@pytest.mark.parametrize("line", ["mqtool send -q ", "mqtool route ", "mqtool send --vhost ", "mqtool dlq show j"])
@pytest.mark.sampled(2)
def test_completion_of_names_without_a_broker_prints_nothing(lonely_shell: Shell, line: str) -> None:
    """If no broker answers, or the broker's URL is invalid, completion of the name of a queue, exchange or virtual host
    proposes nothing and prints no error.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for variables in (
            {"MQTOOL_URL": "amqp://127.0.0.1:1"},
            {"MQTOOL_URL": "amqp://127.0.0.1:1", "MQTOOL_MANAGEMENT_URL": f"http://127.0.0.1:{port}"},
            {"MQTOOL_URL": "no URL at all"},
        ):
            lonely_shell.environment.update(variables)
            assert ask(lonely_shell, line) == ("", "", 0), variables


def test_completion_uses_the_broker_that_the_command_line_selects(broker: TestBroker, lonely_shell: Shell) -> None:
    """Completion proposes names from the broker and virtual host that are selected by --url, --vhost and --user on the
    unfinished command line.
    """
    declare(broker, "jobs", "jo\x1b[31mbs")
    lonely_shell.environment["MQTOOL_COMPLETION_TIMEOUT"] = "20s"
    url, _, vhost = broker.url.rpartition("/")
    lonely_shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    assert ask(lonely_shell, f"mqtool send -u {broker.url} -q j") == ("jobs", "", 0)
    assert ask(lonely_shell, f"mqtool route -u {broker.url} ord") == ("orders", "", 0)
    assert ask(lonely_shell, f"mqtool send --url={url} --vhost {vhost} --queue=") == ("--queue=jobs", "", 0)
    assert ask(lonely_shell, f"mqtool send -u {url} --vhost {vhost[:9]}")[0].split() == [vhost]
    assert ask(lonely_shell, f"mqtool send -u {broker.url} --user nobody -q j") == ("", "", 0)
    assert ask(lonely_shell, f"mqtool send -u {broker.url} --password-file - -q j") == ("jobs", "", 0)


def test_names_that_would_become_options_are_not_proposed(broker: TestBroker, lonely_shell: Shell) -> None:
    """Completion proposes no queue whose name begins with a dash. Otherwise, a user could declare a queue with such a
    name, and so add an option to a command that an administrator completes with Tab.
    """
    declare(broker, "jobs", "--output=jobs", "-o")
    lonely_shell.environment |= {"MQTOOL_COMPLETION_TIMEOUT": "20s", "MQTOOL_MANAGEMENT_URL": broker.management}
    lonely_shell.environment["MQTOOL_URL"] = broker.url
    for words in ("peek", "move", "queue purge", "send -q", "move jobs --to"):
        assert ask(lonely_shell, f"mqtool {words} ") == ("jobs", "", 0), words


def test_users_policies_and_started_brokers_are_completed(broker: TestBroker, lonely_shell: Shell) -> None:
    """Completion proposes the broker's users and policies and, for `broker rm --name`, the brokers that were started on
    this machine.
    """
    lonely_shell.environment |= {"MQTOOL_COMPLETION_TIMEOUT": "20s", "MQTOOL_MANAGEMENT_URL": broker.management}
    lonely_shell.environment["MQTOOL_URL"] = broker.url
    limits = ("--pattern", "^jobs", "--definition", '{"max-length": 9}')
    assert lonely_shell.run("mqtool", "policy", "set", "limits", *limits).code == 0
    assert ask(lonely_shell, "mqtool user delete gue") == ("guest", "", 0)
    assert ask(lonely_shell, "mqtool policy clear lim") == ("limits", "", 0)
    directory = lonely_shell.directory / "state" / "mqtool" / "brokers" / "mine"
    directory.mkdir(parents=True)
    (directory / "broker.json").touch()
    lonely_shell.environment["XDG_STATE_HOME"] = str(lonely_shell.directory / "state")
    assert ask(lonely_shell, "mqtool broker rm --name mi") == ("mine", "", 0)


LIVE = {"--context", "--queue", "--exchange", "--vhost", "--dead-letter-exchange"}


def test_completion_proposes_names_for_all_arguments_and_options_that_take_one() -> None:
    """If an argument or option of any command takes the name of a queue, stream, exchange, virtual host or context,
    completion proposes names for it.
    """

    def leaves(group: Any) -> Iterator[Any]:
        for command in group.commands.values():
            yield from leaves(command) if hasattr(command, "commands") else [command]

    assert [
        (command.name, parameter.opts[0])
        for command in leaves(typer.main.get_command(whole_tree()))
        for parameter in command.params
        if LIVE.intersection(parameter.opts) or str(parameter.metavar).strip("[].") in ("QUEUE", "STREAM", "EXCHANGE")
        if parameter._custom_shell_complete is None
    ] == []


@pytest.mark.parametrize(
    ("line", "proposal"),
    [
        ("mqtool receive-d", "receive-delayed\tReceive delayed messages; show how late each one arrived"),
        ("mqtool dl", "dlq\tShow dead letters, move them back, or drop them"),
        ("mqtool dlq re", "redrive\tMove dead letters back to where they came from"),
        ("mqtool broker r", "restart\tRestart the broker that 'broker up' started; messages are kept"),
        (
            "mqtool send --mandat",
            "--mandatory\tFail if a message is unroutable (default: only when sending to a queue)",
        ),
    ],
)
@pytest.mark.sampled(2)
def test_completion_does_not_cut_descriptions(lonely_shell: Shell, line: str, proposal: str) -> None:
    """In completion, the description beside a command or an option is never cut off."""
    assert proposal in ask(lonely_shell, line)[0].splitlines()
