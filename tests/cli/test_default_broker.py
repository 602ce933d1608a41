"""The broker that starts if no version is chosen: every tutorial works on it, in every dialect, without an option."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqtool.broker import docker_daemon
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES
from mqtool.broker.embedded.settings import Settings
from mqtool.tutorials import pages
from mqtool.tutorials.dialects import Dialect
from mqtool.tutorials.stream_dialects import StreamDialect
from tests.brokers import large
from tests.cli import tutorial_scripts
from tests.cli.shell import Result, Shell

ROOT = Path(__file__).parents[2]
#: For each tutorial over AMQP: its receiver, and its sender. publisher-confirms has no receiver.
PAIRS = {
    "hello-world": ("receive -c 1", "send"),
    "work-queues": ("worker -c 1", "new-task A task"),
    "publish-subscribe": ("receive-log fanout -c 1", "emit-log fanout"),
    "routing": ("receive-log direct info error -c 1", "emit-log direct error Hot"),
    "topics": ("receive-log topic # -c 1", "emit-log topic kern.critical Hot"),
    "headers": ("receive-log headers --match any format=pdf -c 1", "emit-log headers -H format=pdf Report"),
    "rpc": ("rpc-server -c 1", "rpc-client 7"),
    "publisher-confirms": ("", "publisher-confirms all -n 100"),
    "delayed-messages": ("receive-delayed -c 1", "send-delayed --delay 10ms Late"),
}
#: For each stream tutorial: its sender, then its reader, since a stream is read from its start.
STREAM_PAIRS = {
    "stream-hello-world": ("send-stream", "receive-stream -c 1"),
    "stream-offset-tracking": ("offset send", "offset receive"),
}
#: Tutorials over AMQP 1.0, and the dialects of their scripts; with any of the others, they speak AMQP 0-9-1.
AMQP_1_0 = (Dialect.JAVA_AMQP, Dialect.GO_AMQP, Dialect.DOTNET_AMQP)
#: The senders of the dialects' own scripts: arguments of tutorial_scripts.py.
SCRIPTS = {
    "hello-world": "send",
    "work-queues": "new-task",
    "publish-subscribe": "emit-fanout",
    "routing": "emit-direct error Hot",
    "topics": "emit-topic kern.critical Hot",
    "rpc": "rpc-client 7",
}
#: The scripts of `tutorial show --plain`: the arguments of the receiver and of the sender, and what one of the two
#: prints. Tutorials over AMQP 1.0 have the same ones. A receiver of a stream starts after the sender.
PLAIN = {
    "hello-world": ("receive", "send Hello", "Received Hello"),
    "work-queues": ("worker", "new-task A task", "Received A task"),
    "publish-subscribe": ("receive", "emit Hello", "[x] Hello"),
    "routing": ("receive info error", "emit error Hot", "error:Hot"),
    "topics": ("receive #", "emit kern.critical Hot", "kern.critical:Hot"),
    "headers": ("receive any format=pdf", "emit Report format=pdf", "Report"),
    "rpc": ("server", "client 7", "Got 13"),
    "publisher-confirms": ("", "100", "100 messages"),
    "delayed-messages": ("receive", "send 10 Late", "Received Late"),
    "stream-hello-world": ("receive", "send", "Hello, World!"),
    "stream-offset-tracking": ("receive", "send", "last_offset 99"),
}


@pytest.fixture(scope="module")
def started() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(management_port=0, stream_port=0) as broker:
        yield broker


@pytest.fixture
def shell(started: EmbeddedBroker, tmp_path: Path) -> Iterator[Shell]:
    """A shell on a virtual host of its own, for broker URLs without options of a version."""
    with started.fresh_vhost() as vhost, Shell(tmp_path, {"MQTOOL_URL": vhost.url}) as shell:
        shell.environment["MQTOOL_STREAM_PORT"] = str(started.stream_port)
        yield shell


def as_is(result: Result) -> str:
    """Assert that a command succeeded, and declared nothing that existed with other arguments; return its output."""
    assert result.code == 0, result.stderr
    assert "already exists" not in result.stderr
    return result.stdout + result.stderr


def test_the_default_version_of_rabbitmq_is_the_same_everywhere() -> None:
    """Docker Compose, `broker up --kind docker`, the embedded broker and the documentation name the same RabbitMQ
    version.
    """
    version = PROFILES[DEFAULT].version
    assert version.startswith(f"{DEFAULT}.")
    assert f"rabbitmq:{version}-management" == docker_daemon.DEFAULT_IMAGE
    assert f"BASE_IMAGE: ${{BASE_IMAGE:-rabbitmq:{version}-management}}" in (ROOT / "docker-compose.yml").read_text()
    dockerfile = (ROOT / "mqtool/broker/image/Dockerfile").read_text()
    assert f"ARG BASE_IMAGE=rabbitmq:{version}-management\n" in dockerfile
    plugin = docker_daemon.build_arguments(docker_daemon.DEFAULT_IMAGE)["PLUGIN_URL"]
    assert f"ARG PLUGIN_URL={plugin}\n" in dockerfile
    assert f"PLUGIN_URL: ${{PLUGIN_URL-{plugin}}}\n" in (ROOT / "docker-compose.yml").read_text()
    assert Settings().like == DEFAULT
    for page in ("docs/explanation/embedded-broker.md", "docs/how-to/testing.md", "mqtool/broker/embedded/__init__.py"):
        text = " ".join((ROOT / page).read_text().split())
        assert re.findall(r"behaves like RabbitMQ (\d+\.\d+)[:.,]", text)[0] == DEFAULT, page


def test_every_tutorial_is_tested_on_the_default_broker() -> None:
    """The tables in test_default_broker.py contain the commands of every tutorial, including the AMQP 1.0 tutorials.
    The other tests in this file run these commands on the default broker.
    """
    over_amqp10 = {name.removeprefix(pages.AMQP10) for name in pages.NAMES if name.startswith(pages.AMQP10)}
    assert {*PAIRS, *STREAM_PAIRS} == set(PLAIN)
    assert set(PLAIN) == {name for name in pages.NAMES if not name.startswith(pages.AMQP10)}
    assert over_amqp10 < set(PAIRS)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dialect", Dialect)
@large
def test_every_tutorial_exchanges_messages_in_every_dialect(shell: Shell, dialect: Dialect) -> None:
    """Each --dialect imitates one version of RabbitMQ's tutorials, such as the one in Go. With every dialect, a
    tutorial's receiver prints the message of mqtool's sender, and both declare the same queue or exchange. With the
    dialects `python`, `go`, `python-classic` and `go-classic`, the receivers of six tutorials also print the message
    of a pika script that publishes in the same way as RabbitMQ's own script for the dialect.
    """
    shell.environment["MQTOOL_DIALECT"] = dialect
    tutorials = list(PAIRS)
    if dialect in AMQP_1_0:
        shell.environment["MQTOOL_PROTOCOL"] = "amqp1.0"
        tutorials = [name for name in PAIRS if pages.AMQP10 + name in pages.NAMES]
    for name in tutorials:
        receiver, sender = (command.split() for command in PAIRS[name])
        if not receiver:
            assert "100" in as_is(shell.run("mqtool", *sender))
            continue
        receiving = shell.start("mqtool", *receiver).wait_until_ready()
        as_is(shell.run("mqtool", *sender))
        printed = [as_is(receiving.wait())]
        if dialect in tutorial_scripts.DIALECTS and name in SCRIPTS:
            receiving = shell.start("mqtool", *receiver).wait_until_ready()
            script = (*SCRIPTS[name].split(), "--dialect", dialect, "--url", shell.environment["MQTOOL_URL"])
            as_is(shell.run("script", tutorial_scripts.__file__, *script))
            printed.append(as_is(receiving.wait()))
        for text in printed:
            assert re.search(r"Hello|hello|Hot|task|Report|Late|fib\(7\)|xcgj", text), (name, text)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dialect", StreamDialect)
def test_every_stream_tutorial_exchanges_messages_in_every_dialect(shell: Shell, dialect: StreamDialect) -> None:
    """Each --dialect imitates the stream tutorials in one programming language. With every dialect, `receive-stream`
    prints the message of `send-stream`, and `offset receive` reaches the last message of `offset send`.
    """
    printed = [
        as_is(shell.run("mqtool", *command.split(), "--dialect", dialect))
        for commands in STREAM_PAIRS.values()
        for command in commands
    ]
    assert re.search(r"(?i)hello|Test message", printed[1])
    assert re.search(r"(?i)last[ _]offset\D*99", printed[3]), printed[3]


@pytest.mark.parametrize("name", [name for name in pages.NAMES if name.startswith(pages.AMQP10)])
@pytest.mark.sampled(2)
def test_amqp_1_0_tutorials_exchange_messages_without_a_dialect(shell: Shell, name: str) -> None:
    """If MQTOOL_PROTOCOL is amqp1.0, the receiver of each AMQP 1.0 tutorial prints the sender's message. The commands
    need no --dialect.
    """
    shell.environment["MQTOOL_PROTOCOL"] = "amqp1.0"
    receiver, sender = (command.split() for command in PAIRS[name.removeprefix(pages.AMQP10)])
    receiving = shell.start("mqtool", *receiver).wait_until_ready()
    as_is(shell.run("mqtool", *sender))
    assert re.search(r"Hello|Hot|task|fib\(7\)", as_is(receiving.wait()))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", pages.NAMES)
def test_the_plain_script_of_every_tutorial_sends_and_receives(shell: Shell, name: str) -> None:
    """`tutorial show --plain` prints a script for pika, rstream or RabbitMQ's library for AMQP 1.0. Every tutorial's
    script sends and receives messages on the default broker, exits with 0, and prints nothing on stderr.
    """
    shell.environment |= {"AMQP_URL": shell.environment["MQTOOL_URL"], "PYTHONUNBUFFERED": "1"}
    receiver, sender, expected = PLAIN[name.removeprefix(pages.AMQP10)]
    (shell.directory / "script.py").write_bytes(shell.run("mqtool", "tutorial", "show", name, "--plain").stdout_bytes)

    def ran(words: str) -> str:
        result = shell.run("script", "script.py", *words.split())
        assert (result.stderr, result.code) == ("", 0)
        return result.stdout

    is_stream = name in STREAM_PAIRS
    printed = ran(sender) if is_stream or not receiver else ""
    if receiver:
        receiving = shell.start("script", "script.py", *receiver.split(), ready=False).wait_for_stdout("\n")
        printed = "" if is_stream else ran(sender)
        if expected not in printed:
            receiving.wait_for_stdout(expected)
        if name == "stream-hello-world":
            # Before Python 3.12, a Ctrl-C just as the broker answers a request of rstream is lost.
            ran("send Good morning!")
            receiving.wait_for_stdout("Good morning!")
        # The reader of the second stream tutorial ends by itself.
        ended = receiving.wait() if "last_offset" in expected else receiving.interrupt().wait()
        assert (ended.stderr, ended.code) == ("", 0)
        printed += ended.stdout
    assert expected in printed
