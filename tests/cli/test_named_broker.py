"""Every command uses the broker that the user names, or says which broker it uses instead."""

import json
import os
import select
import shlex
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from docs.generate import described
from mqtool.broker.background import birth
from mqtool.broker.state import Started, save
from mqtool.cli.contexts import Effect
from mqtool.cli.help.description import leaves
from tests.brokers import free_port, large
from tests.cli.shell import Shell

#: Commands about brokers that `broker up` started, and the one that runs another broker.
OF_STARTED = {f"broker {each}" for each in ("serve", "restart", "down", "ls", "rm", "logs", "env")}
#: Those that are about the broker that -u names, but not about that of the variable.
ABOUT_NAMED = {"-u": set[str](), "MQTOOL_URL": {"broker up", "broker status"}}
#: What the example of a command lacks so that the command uses its broker at once.
ALSO = {
    "wait": "--timeout 10ms",
    "tutorial try": "hello-world --again",
    **{f"drill {each}": "--kind docker" for each in ("kill-worker", "restart-broker", "drop-connection")},
    **{f"drill {each}": "--kind docker" for each in ("kill-node", "poison", "duplicate")},
}


@pytest.fixture
def home(lonely_shell: Shell) -> Shell:
    """A shell with configuration and state of its own, and with the files that examples of commands read."""
    directory = lonely_shell.directory
    lonely_shell.environment |= {each: str(directory) for each in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    (directory / "topology.json").write_text('{"queues": [{"name": "jobs", "vhost": "/"}]}')
    (directory / "incident.ndjson").write_text('{"body": "x"}\n')
    return lonely_shell


@pytest.fixture
def named(home: Shell) -> Iterator[list[str]]:
    """The addresses of a broker for AMQP, its API and streams. It is down: nothing else gets its ports meanwhile."""
    with ExitStack() as kept:
        found = []
        for _ in range(3):
            taken = kept.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            found.append("{}:{}".format(*taken.getsockname()))
        home.environment |= {"MQTOOL_MANAGEMENT_URL": f"http://{found[1]}"}
        home.environment |= {"MQTOOL_STREAM_PORT": found[2].partition(":")[2], "DOCKER_HOST": "unix:///nowhere"}
        yield found


@large
@pytest.mark.parametrize("by", ["MQTOOL_URL", "-u"])
def test_every_command_uses_the_named_broker_and_not_the_one_of_broker_up(
    home: Shell, named: list[str], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If MQTOOL_URL or -u names a broker that does not answer, each command's error names its address, and no command
    connects to the broker that `broker up` started. Drills have no such variable: they say that they use a broker of
    their own.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(home.directory))
    default = home.directory / "mqtool" / "brokers" / "default"
    default.mkdir(parents=True)
    with ExitStack() as listening:
        started = [listening.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        amqp, api, streams = (each.getsockname()[1] for each in started)
        details = {"management": f"http://127.0.0.1:{api}", "streams": f"rabbitmq-stream://127.0.0.1:{streams}"}
        url, pid = f"amqp://127.0.0.1:{amqp}", os.getpid()
        save(Started("default", "embedded", url, pid, str(default), details, born=birth(pid)))
        # Even with -u: some commands take no -u, and the other variables belong to the broker of this one.
        home.environment["MQTOOL_URL"] = f"amqp://{named[0]}"
        for leaf in leaves(described()):
            name, flags = " ".join(leaf.words), {flag for each in leaf.options for flag in each.flags}
            if leaf.effect is Effect.NONE or name in OF_STARTED | ABOUT_NAMED[by]:
                continue
            words = [*shlex.split(leaf.examples[0].partition(" > ")[0]), *shlex.split(ALSO.get(name, ""))]
            words += ["--yes"] * ("--yes" in flags and "--yes" not in words)
            words += ["-u", f"amqp://{named[0]}"] * (by == "-u" and "--context" in flags)
            result = home.run(*words)
            said = result.stdout + result.stderr
            assert any(each in said for each in named), (words, said)
            assert result.code in (1, 69, 78, 124), (words, said)
            connected = select.select(started, [], [], 0)[0]
            assert not connected, f"{words} connected to the broker of 'broker up'"


@large
def test_commands_about_started_brokers_say_if_other_commands_use_another(home: Shell, named: list[str]) -> None:
    """`broker restart`, `logs`, `down` and `rm` are about brokers that `broker up` started. If MQTOOL_URL names another
    broker, they say that other commands use that one. `broker status`, `env` and `up` with -u are about the broker
    that -u names.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--port", str(port := free_port()))
    try:
        assert home.run(*up).code == 0
        status = home.run("mqtool", "broker", "status", "-u", f"amqp://{named[0]}")
        assert (status.code, str(port) in status.stdout, named[0] in status.stderr) == (69, False, True)
        assert named[0] in home.run("mqtool", "broker", "env", "-u", f"amqp://{named[0]}").stdout
        assert home.run("mqtool", "broker", "up", "-u", f"amqp://{named[0]}").code == 69
        assert json.loads(home.run("mqtool", "broker", "ls", "--json").stdout)["state"] == "running"
        home.environment["MQTOOL_URL"] = f"amqp://{named[0]}"
        assert f":{port}" in home.run("mqtool", "broker", "env").stdout
        used = f"use amqp://guest@{named[0]}, from MQTOOL_URL"
        for command in ("status", "restart", "logs", "down", "logs", "rm"):
            result = home.run("mqtool", "broker", command)
            assert result.code == 0, result.stderr
            assert used in result.stdout + result.stderr, command
    finally:
        home.run("mqtool", "broker", "down")
