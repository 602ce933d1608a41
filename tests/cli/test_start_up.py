"""Start-up: a command loads only the modules that it needs."""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.testing.authority import Authority, new_authority
from mqtool.cli.commands import command_tree
from mqtool.cli.help.index import SENTENCES
from tests.brokers import large, on_any_broker
from tests.cli.shell import Shell

HEAVY = {
    *("requests", "urllib3", "rich", "sqlite3", "hashlib", "tomllib", "docker", "rstream"),
    "rabbitmq_amqp_python_client",
    *("json", "random"),
    *("mqtool.cli.display.live_screen", "mqtool.tutorials.stream_dialects"),
}

#: Starts as mqtool does, and forks for the --help of each command: its exit code, and what it prints on either stream.
_EACH_BY_ITSELF = """
import json, os, sys, tempfile
from mqtool import __main__
import mqtool.cli.app
shown = {}
for name in sys.argv[1:]:
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if not child:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.argv = ["mqtool", name, "--help"]
            __main__.main()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        shown[name] = code, printed.read().decode()
print(json.dumps(shown))
"""


@on_any_broker
@pytest.mark.parametrize(
    "command", [["send", "-q", "q", "hello"], ["receive", "-q", "q", "-c", "1"]], ids=lambda words: words[0]
)
@pytest.mark.sampled(1)
def test_send_and_receive_import_no_slow_module(shell: Shell, command: list[str]) -> None:
    """`send` and `receive` do not import slow modules that they do not need, such as `rich` or `requests`, so that they
    start quickly.
    """
    shell.run("mqtool", "send", "-q", "q", "waiting")
    result = shell.run(sys.executable, "-X", "importtime", "-m", "mqtool", *command)
    assert result.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "mqtool.amqp.channel" in loaded
    assert loaded & HEAVY == set()
    assert not {name for name in loaded if name.startswith("mqtool.broker.embedded.")}
    if command[0] == "send":
        assert not {name for name in loaded if "receiving" in name}


@on_any_broker
@large
def test_list_queues_connects_over_amqp_only_if_counts_may_be_old(shell: Shell) -> None:
    """`list queues` connects over AMQP to count the messages of quorum queues and the consumers of classic queues. It
    does not connect to count the messages of classic queues, because the count of the management API is current.
    """

    def loads_client(*words: str) -> bool:
        listed = shell.run(sys.executable, "-X", "importtime", "-m", "mqtool", "list", "queues", *words)
        assert listed.code == 0, listed.stderr
        return "mqtool.amqp.channel" in listed.stderr

    assert not loads_client(), "there are no queues"
    shell.run("mqtool", "queue", "declare", "old", "--queue-type", "classic")
    assert not loads_client()
    assert loads_client("name", "consumers")
    shell.run("mqtool", "queue", "declare", "new", "--queue-type", "quorum")
    assert loads_client()


def test_tutorial_list_imports_no_tutorial_and_no_client(lonely_shell: Shell) -> None:
    """`tutorial list`, which beginners type first, prints a fixed list, and imports neither tutorials nor clients."""
    listed = lonely_shell.run(sys.executable, "-X", "importtime", "-m", "mqtool", "tutorial", "list")
    assert listed.stdout.splitlines()[1].startswith("hello-world\t")
    loaded = {line.rpartition("|")[2].strip() for line in listed.stderr.splitlines()}
    assert "mqtool.cli.command_line" in loaded
    assert not loaded & {"mqtool.amqp", "mqtool.plays", "mqtool.tutorials", "pika", "ssl"}


def test_mqtool_builds_only_the_parser_of_the_command_that_it_runs() -> None:
    """To start quickly, mqtool builds only the parser of the command that the command line names, such as `queue
    purge`. The exception is a command line that names only a group, such as `queue`, or an unknown command of the
    group: mqtool then builds the parsers of all the group's commands, because help, hints and completion need them.
    """

    def built(*words: str) -> set[str]:
        root: Any = typer.main.get_command(command_tree(words))
        return {*root.commands["queue"].commands}

    assert built("queue", "purge", "jobs", "--yes") == {"purge"}
    assert built("-C", "queue", "queue", "purge") >= {"purge"}
    whole = built("queue")
    assert whole >= {"declare", "delete", "purge", "convert"}
    assert built("queue", "convert") >= {"convert"}
    assert built("queue", "--help", "purge") == built("queue", "purged") == whole


@large
def test_each_command_can_be_imported_alone(lonely_shell: Shell) -> None:
    """Each command prints its help even if it is the only command that its process imports. It therefore needs no
    module that only another command imports.
    """
    told = lonely_shell.run(sys.executable, "-c", _EACH_BY_ITSELF, *SENTENCES)
    assert told.code == 0, told.stderr
    shown = json.loads(told.stdout)
    assert len(shown) > 15
    for name, (code, page) in shown.items():
        assert (name, code) == (name, 0), page
        assert page.startswith(f"Usage: mqtool {name}")


def test_ctrl_c_while_python_imports_mqtool_exits_with_130(lonely_shell: Shell) -> None:
    """If Ctrl-C is pressed while Python is still importing mqtool, the command exits with 130 and prints no traceback.
    If the shell that started mqtool ignores SIGINT (`trap '' INT`), the command continues.
    """
    stand_in = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('it went on')\n"
    (lonely_shell.directory / "typer.py").write_text(stand_in)
    lonely_shell.start_cold()
    lonely_shell.environment["PYTHONPATH"] = str(lonely_shell.directory)
    interrupted = lonely_shell.run("mqtool", "list", "queues")
    assert (interrupted.stdout, interrupted.stderr, interrupted.code) == ("", "", 130)
    ignoring = lonely_shell.script("trap '' INT; mqtool list queues")
    assert (ignoring.stderr, ignoring.code) == ("it went on\n", 1)


@large
def test_send_accepts_only_a_certificate_signed_by_the_authority_in_tls_ca(
    lonely_shell: Shell, amqp_tls: Authority, tmp_path: Path
) -> None:
    """If a private authority signed the broker's certificate, `send` accepts the certificate only if --tls-ca gives the
    certificate of that authority. Otherwise, `send` exits with 69.
    """
    other = new_authority(tmp_path)
    shell = lonely_shell
    with EmbeddedBroker(tls=amqp_tls.tls()) as broker:
        assert broker.tls_url is not None
        port = urlsplit(broker.tls_url).port
        url = f"amqps://localhost:{port}"
        mqtool = sys.executable, "-m", "mqtool"
        trusting = "-u", url, "--tls-ca", str(amqp_tls.ca)
        assert shell.run(*mqtool, "send", "-q", "q", "over TLS", *trusting).code == 0
        assert shell.run(*mqtool, "receive", "-q", "q", "-c", "1", "--raw", *trusting).stdout == "over TLS\n"
        for mistrusting in (("-u", url), ("-u", url, "--tls-ca", str(other.ca))):
            refused = shell.run(*mqtool, "send", "-q", "q", "x", *mistrusting)
            assert refused.code == 69
            assert f"the certificate of localhost:{port} cannot be trusted" in refused.stderr
