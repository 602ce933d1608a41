"""`broker up` and the other broker commands: start, find, change, stop and remove a broker."""

import json
import os
import random
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqtool.broker import ports, state
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.embedded.testing.authority import Authority
from mqtool.broker.ports import is_free, keep
from tests.brokers import TestBroker, free_port, large, own_broker
from tests.cli.page_actions import run_action
from tests.cli.shell import Running, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.epmd import KILL, epmd
from tests.processes import children_of, is_alive, only_on_linux

ORDERS = {"name": "orders", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Shell]:
    """A shell whose user has never started a broker; brokers started in the test are stopped afterwards."""
    yield from _shell(tmp_path, "mine", "default")


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Shell]:
    """A shell of another user; the brokers "one" and "two" that are started in it are stopped afterwards."""
    directory = tmp_path / "neighbour"
    directory.mkdir()
    yield from _shell(directory, "one", "two")


def _shell(directory: Path, *brokers: str) -> Iterator[Shell]:
    with Shell(directory, {"XDG_STATE_HOME": str(directory / "state")}) as shell:
        yield shell
        for name in brokers:
            shell.run("mqtool", "broker", "down", "--name", name)


@pytest.fixture
def at_port() -> str:
    """A --port option with a free port, since another test may use the default one."""
    return f"--port={free_port()}"


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
def test_broker_up_starts_a_broker_and_broker_down_stops_it(home: Shell, kind: BrokerKind) -> None:
    """`broker up` starts a broker, the other `broker` commands find the broker by its name, and `broker down` stops it.
    The broker's log is kept, and persistent messages are still there after the next `broker up`.
    """
    own_broker(kind)
    port = str(free_port())

    management = f"http://127.0.0.1:{free_port()}"
    (home.directory / "topology.json").write_text(json.dumps({"vhosts": [{"name": "/"}], "queues": [ORDERS]}))
    options = ("--port", port, "--management-port", management.rpartition(":")[2], "--definitions", "topology.json")
    up = home.run("mqtool", "broker", "up", "--kind", kind, "--name", "mine", *options)
    assert (up.code, up.stdout.strip()) == (0, f"{STARTERS[kind].describe} is up at amqp://guest@127.0.0.1:{port}")
    again = home.run("mqtool", "broker", "up", "--name", "mine")
    assert again.stdout == f"already running at amqp://guest@127.0.0.1:{port}\n"

    url = home.run("bash", "-c", 'eval "$(mqtool broker env --name mine)"; echo $AMQP_URL').stdout.strip()
    assert url == f"amqp://guest:guest@127.0.0.1:{port}"
    assert home.run("mqtool", "list", "queues", "-u", url).stdout == "orders\t0\n"
    assert home.run("mqtool", "new-task", "kept", "-u", url).code == 0
    status = home.run("mqtool", "broker", "status", "--name", "mine")
    assert "running" in status.stdout
    assert "guest:guest" not in status.stdout, "only `broker env` prints the password"
    log = home.run("mqtool", "broker", "logs", "--name", "mine").stdout

    restarted = home.run("mqtool", "broker", "restart", "--name", "mine")
    assert restarted.stdout == f"{STARTERS[kind].describe} is up again at amqp://guest@127.0.0.1:{port}\n"
    assert home.run("mqtool", "broker", "logs", "--name", "mine").stdout.startswith(log), "the log continues"
    assert log
    for shown in (status, home.run("mqtool", "broker", "status", "--name", "mine")):
        assert management_of(shown.stdout) == [management]

    shown = on_terminal(home, "mqtool", "broker", "down", "--name", "mine").stdout
    assert "stopped the " in shown
    if kind is BrokerKind.NODE:
        assert "stopping the private RabbitMQ node … 1 s" in shown, "RabbitMQ needs some seconds to stop"
    assert "nothing to stop" in home.run("mqtool", "broker", "down", "--name", "mine").stderr
    assert home.run("mqtool", "broker", "status", "--name", "mine").code == 69
    assert home.run("mqtool", "broker", "logs", "--name", "mine").stdout.startswith(log), "the log is kept"

    home.run("mqtool", "broker", "up", "--kind", kind, "--name", "mine", "--port", port)
    assert home.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "-u", url).stdout == " [x] Received kept\n"


def test_the_definitions_given_to_broker_up_are_loaded_at_each_start(home: Shell, at_port: str) -> None:
    """If `broker up` is given --definitions FILE, the broker loads the file at each start. If the broker cannot load
    the file, the command exits with 2 and leaves no broker running.
    """
    exported = {kind: value for kind, value in ORDERS.items() if kind != "vhost"}
    (home.directory / "topology.json").write_text(json.dumps({"queues": [exported]}))
    up = ("mqtool", "broker", "up", "--kind=embedded", "--in-memory", "--name=mine", at_port)
    assert home.run(*up, "--definitions", "topology.json").code == 0
    url = f"amqp://127.0.0.1:{at_port.rpartition('=')[2]}"
    assert home.run("mqtool", "broker", "restart", "--name", "mine").code == 0
    assert home.run("mqtool", "list", "queues", "-u", url).stdout == "orders\t0\n"
    home.run("mqtool", "broker", "down", "--name", "mine")

    (home.directory / "shovels.json").write_text('{"parameters": [{"component": "shovel", "name": "x", "vhost": "/"}]}')
    refused = home.run(*up, "--definitions", "shovels.json")
    assert refused.code == 2
    assert "shovels.json: the broker refuses: the embedded broker does not have shovel 'x'\n" in refused.stderr
    assert home.run("mqtool", "broker", "status", "--name", "mine").code == 69
    assert "No such file" in home.run(*up, "--definitions", "none").stderr
    for levels in (970, 100_000):
        (home.directory / "deep.json").write_text('{"queues":' + "[" * levels + "]" * levels + "}")
        deep = home.run(*up, "--definitions", "deep.json")
        assert (deep.code, deep.stderr.endswith("deep.json: it is nested too deeply\n")) == (2, True), deep.stderr
    (home.directory / "numbers.json").write_text('{"queues": [1]}')
    strange = home.run(*up, "--definitions", "numbers.json")
    assert (strange.code, "cannot load " in strange.stderr) == (2, True), strange.stderr


def management_of(status: str) -> list[str]:
    """Return the URLs of the management API that `broker status` prints."""
    return re.findall(r"management +(\S+)", status)


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
def test_broker_up_listen_creates_a_user_with_a_generated_password(home: Shell, kind: BrokerKind, at_port: str) -> None:
    """`broker up --listen ADDRESS`, which lets other machines connect, creates a user, prints the generated password
    and stores it in a file that only the file's owner can read. The password is still valid after a restart.
    """
    own_broker(kind)
    up = home.run("mqtool", "broker", "up", f"--kind={kind}", "--name=mine", "--listen=127.0.0.2", at_port)
    assert up.code == 0, up.stderr
    (url,) = re.findall(r"export AMQP_URL=(amqp://remote:\S+@127\.0\.0\.2:\d+)", up.stderr)
    assert home.run("mqtool", "new-task", "from elsewhere", "-u", url).code == 0
    assert home.run("mqtool", "broker", "env", "--name", "mine", "--remote").stdout.startswith(
        f"export AMQP_URL={url}\n"
    )

    status = home.run("mqtool", "broker", "status", "--name", "mine").stdout
    assert "remote:" not in status
    (management,) = management_of(status)
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.2", int(management.rpartition(":")[2])))
    (remembered,) = home.directory.glob("state/**/broker.json")
    assert remembered.stat().st_mode & 0o077 == 0

    assert home.run("mqtool", "broker", "restart", "--name", "mine").code == 0
    received = home.run("mqtool", "receive", "-q", "task_queue", "-c", "1", "-u", url)
    assert received.stdout == " [x] Received from elsewhere\n", "the password is still valid"


def test_a_broker_started_with_a_client_ca_refuses_clients_without_a_certificate(
    home: Shell, amqp_tls: Authority, at_port: str
) -> None:
    """`broker up --tls-cert --tls-key` starts a broker that also accepts TLS, and prints the TLS address. `broker
    status` prints this address, too. If --tls-client-ca is also given, `send` without a client certificate exits with
    69.
    """
    up = ("mqtool", "broker", "up", "--kind=embedded", "--in-memory", "--name=mine", at_port)
    files = ("--tls-cert", str(amqp_tls.cert), "--tls-key", str(amqp_tls.key), "--tls-client-ca", str(amqp_tls.ca))
    assert "give both --tls-cert and --tls-key" in home.run(*up, *files[:2]).stderr
    assert "use --kind embedded" in home.run("mqtool", "broker", "up", "--kind=node", *files).stderr
    started = home.run(*up, *files)
    assert started.code == 0
    status = home.run("mqtool", "broker", "status", "--name", "mine").stdout
    (url,) = re.findall(r"tls +(amqps://\S+)", status)
    assert f"with TLS: {url}\n" in started.stderr
    client = (
        "--tls-ca",
        str(amqp_tls.ca),
        "--tls-cert",
        str(amqp_tls.client_cert),
        "--tls-key",
        str(amqp_tls.client_key),
    )
    assert home.run("mqtool", "send", "over TLS", "-u", url, *client).code == 0
    assert home.run("mqtool", "send", "over TLS", "-u", url, *client[:2]).code == 69


def test_broker_up_refuses_options_that_the_running_broker_was_not_started_with(home: Shell, at_port: str) -> None:
    """If a broker is already running, and `broker up` is given an option with which this broker was not started, such
    as another --port, the command exits with 2 and names the option.
    """
    embedded = ("mqtool", "broker", "up", "--kind=embedded", "--name=mine")
    home.run(*embedded, "--in-memory", "--like=4.0", at_port)
    assert re.search(r"like +4\.0\n", home.run("mqtool", "broker", "status", "--name=mine").stdout)
    assert home.run(*embedded, "--like=4.0").stdout.startswith("already running")
    assert "was not started with the same --like\n" in home.run(*embedded, "--like=4.3").stderr
    assert "use --kind embedded" in home.run("mqtool", "broker", "up", "--kind=node", "--like=4.3").stderr
    assert home.run("mqtool", "broker", "up", "--in-memory", "--name", "mine").stdout.startswith("already running")
    for option in ("--kind=node", "--port=1", "--cluster", "--listen=127.0.0.2", "--data-dir=x", "--management-port=1"):
        refused = home.run("mqtool", "broker", "up", option, "--name", "mine")
        assert refused.code == 2
        assert f"was not started with the same {option.partition('=')[0]}\n" in refused.stderr
    assert home.run("mqtool", "broker", "up", "--foreground", "--name", "mine").code == 2
    assert home.run("mqtool", "broker", "env", "--name", "mine", "--remote").code == 2
    assert home.run("mqtool", "broker", "up", "--listen", "here").code == 2


def test_broker_up_names_the_killed_broker_whose_queues_are_kept(home: Shell, embedded: TestBroker) -> None:
    """If the broker that `broker up` started was killed, and another broker answers at the URL that commands use,
    `broker up` says that it uses the other broker, that the queues of the killed one are kept, and how to start the
    killed one again.
    """
    home.run("mqtool", "broker", "up", "--kind", "embedded", f"--port={free_port()}")
    status = home.run("mqtool", "broker", "status").stdout
    os.kill(int(re.findall(r"process +(\d+)", status)[0]), signal.SIGKILL)
    wait_until(lambda: home.run("mqtool", "broker", "status").code == 69, "the broker to have ended")
    other = home.run("mqtool", "broker", "up", environment={"MQTOOL_URL": embedded.url})
    assert other.stdout.startswith("using the broker at amqp://guest@")
    assert "the last broker here was the embedded broker; its queues are kept" in other.stderr
    assert "come back with: mqtool broker up --kind=embedded\n" in other.stderr


def test_brokers_are_listed_and_removed(home: Shell) -> None:
    """`broker ls` lists running and stopped brokers. `broker rm` removes a stopped broker from the list, but keeps the
    broker's messages and says where they are. Only `broker rm --purge --yes` deletes the messages.
    """
    up, down = (("mqtool", "broker", word, "--name", "mine") for word in ("up", "down"))
    rm = ("mqtool", "broker", "rm", "--name", "mine")
    url = f"amqp://127.0.0.1:{(port := str(free_port()))}"
    home.run(*up, "--kind", "embedded", "--port", port)
    home.run("mqtool", "new-task", "kept", "-u", url)
    assert home.run("mqtool", "broker", "ls").stdout.split()[:3] == ["mine", "running", "embedded"]
    assert home.run(*rm).code == 2, "the broker is running"

    home.run(*down)
    assert home.run("mqtool", "broker", "ls").stdout.split()[:3] == ["mine", "stopped", "embedded"]
    removed = home.run(*rm)
    directory = home.directory / "state" / "mqtool" / "brokers" / "mine"
    assert (removed.code, f"its messages are kept in {directory}/embedded; " in removed.stderr) == (0, True)
    assert "to use them again: mqtool broker up --kind=embedded --name=mine; " in removed.stderr
    assert f"to delete them: rm -r {directory}\n" in removed.stderr
    assert home.run("mqtool", "broker", "ls").stdout == ""
    assert home.run("mqtool", "broker", "logs", "--name", "mine").code == 69
    assert home.run(*rm).code == 69

    home.run(*up, "--kind", "embedded", "--port", port)
    assert home.run("mqtool", "list", "queues", "-u", url).stdout == "task_queue\t1\n"
    home.run(*down)
    assert home.run(*rm, "--purge").code == 2
    assert home.run(*rm, "--purge", "--yes").code == 0
    assert not [*home.directory.glob("state/mqtool/brokers/*")]


@pytest.mark.parametrize("how", ["broker up", "broker up, stopped", "broker serve", "a private node"])
def test_broker_rm_purge_keeps_messages_that_another_broker_uses(home: Shell, how: str) -> None:
    """If another broker uses the data directory of a stopped broker, or a directory inside it, `broker rm --purge`
    for the stopped broker says that the directory is in use, exits with 2 and deletes nothing. Once the other broker
    has ended or been removed, the command deletes the messages.
    """
    kind = BrokerKind.NODE if how == "a private node" else BrokerKind.EMBEDDED
    own_broker(kind)
    up = ("mqtool", "broker", "up", "--kind", kind, "--port", str(port := free_port()), "--name")
    url = f"amqp://127.0.0.1:{port}"
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--port", str(free_port()), "--name", "mine")
    home.run("mqtool", "broker", "down", "--name", "mine")
    data = home.directory / "state" / "mqtool" / "brokers" / "mine" / "embedded"
    if how == "broker serve":
        serving = home.start("mqtool", "broker", "serve", "--port", str(port), "--data-dir", str(data), ready=False)
        serving.wait_for_stderr("listening on ")
    else:
        started = home.run(*up, "default", "--data-dir", str(data))
        assert started.code == 0, started.stderr
    assert home.run("mqtool", "send", "-q", "kept", "x", "-u", url).code == 0
    down, before = ("mqtool", "broker", "down"), [*data.rglob("*")]
    if how == "broker up, stopped":
        assert home.run(*down).code == 0
        before = [*data.rglob("*")]
    rm = ("mqtool", "broker", "rm", "--yes")
    refused = home.run(*rm, "--purge", "--name", "mine")
    assert refused.code == 2, refused.stderr
    if how == "broker serve":
        assert f"another broker is using {data}\n" in refused.stderr
        assert "hint: stop that broker first\n" in refused.stderr
    else:
        assert f"the broker named 'default' keeps its messages in {data}" in refused.stderr
        assert "hint: remove that broker first: mqtool broker rm --name=default\n" in refused.stderr
    assert {*before} <= {*data.rglob("*")}
    assert "mine" in home.run("mqtool", "broker", "ls").stdout
    if how == "broker serve":
        assert home.run("mqtool", "send", "-q", "kept", "x", "-u", url).code == 0
        assert serving.interrupt().wait().code == 0
    else:
        home.run(*down)
        assert home.run(*rm).code == 0
    assert home.run(*rm, "--purge", "--name", "mine").code == 0
    assert not data.exists()


def test_broker_rm_purge_does_not_need_the_records_of_other_brokers(home: Shell) -> None:
    """If mqtool's record of one broker cannot be read, `broker rm --purge` can still remove another broker."""
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--port", str(free_port()), "--name", "mine")
    home.run("mqtool", "broker", "down", "--name", "mine")
    brokers = home.directory / "state" / "mqtool" / "brokers"
    (brokers / "other").mkdir()
    (brokers / "other" / "stopped.json").write_text("garbage")
    removed = home.run("mqtool", "broker", "rm", "--purge", "--yes", "--name", "mine")
    assert removed.code == 0, removed.stderr
    assert [path.name for path in brokers.iterdir()] == ["other"]


#: Each command of mqtool with the option that names a broker that `broker up` has started.
WITH_NAME = ("up", "down", "status", "rm", "rm --purge --yes", "logs", "env", "restart")


@pytest.mark.parametrize("command", [*(f"broker {each}" for each in WITH_NAME), "plugin enable rabbitmq_shovel"])
@pytest.mark.sampled(3)
def test_commands_refuse_broker_names_that_are_paths(home: Shell, command: str) -> None:
    """The name of a broker may contain only ASCII letters, digits, - and _. If --name is empty or contains anything
    else, every command that has this option exits with 2 and creates no files. If the name is a path such as `../../x`,
    the command does not change the files at this path.
    """
    precious = home.directory / "state" / "mqtool" / "brokers" / ".." / ".." / "precious"
    precious.resolve().mkdir(parents=True)
    (home.directory / "state" / "mqtool" / "brokers").mkdir(parents=True)
    (precious / "lock").write_text("mine")
    before = sorted(home.directory.rglob("*"))
    for name in ("../../precious", "", ".", "..", "a/b", "ä"):
        refused = home.run("mqtool", *command.split(), "--name", name)
        assert refused.code == 2, (name, refused.stderr)
        assert f"{name!r} is not a valid broker name\nhint: use letters, digits, - and _" in refused.stderr
    assert (precious / "lock").read_text() == "mine"
    assert sorted(home.directory.rglob("*")) == before


def test_broker_ls_names_a_state_file_that_cannot_be_read(home: Shell) -> None:
    """If the file in which mqtool keeps a broker's address cannot be read, `broker ls` exits with 1. The error names
    the file once and gives the reason in words, without the system's error number.
    """
    file = home.directory / "state" / "mqtool" / "brokers" / "default" / "broker.json"
    file.mkdir(parents=True)
    result = home.run("mqtool", "broker", "ls")
    assert (result.code, result.stderr.splitlines()[0]) == (1, f"mqtool: cannot read {file}: Is a directory")


def test_broker_status_says_which_broker_is_used_and_why(home: Shell) -> None:
    """`broker status` prints a line that says to which broker mqtool's commands connect, and why. `broker up` prints
    this line only if commands connect to a broker other than the one that it has started, for example because AMQP_URL
    is set.
    """
    status = home.run("mqtool", "broker", "status").stdout
    assert status.startswith("commands use amqp://guest@localhost:5672, the default\n")
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--port", str(port := free_port()))
    status = home.run("mqtool", "broker", "status").stdout
    assert f"  commands use amqp://guest@127.0.0.1:{port}, from 'mqtool broker up'\n" in status
    elsewhere = {"AMQP_URL": "amqp://ann:secret@192.0.2.1"}
    status = home.run("mqtool", "broker", "status", environment=elsewhere).stdout
    assert "  commands use amqp://ann@192.0.2.1:5672, from AMQP_URL\n" in status
    again = home.run("mqtool", "broker", "up", environment=elsewhere)
    assert "commands use amqp://ann@192.0.2.1:5672, from AMQP_URL; for this broker: eval" in again.stderr
    assert "commands use" not in home.run("mqtool", "broker", "up").stderr


def test_broker_status_checks_the_default_broker_if_none_was_started(home: Shell) -> None:
    """If no broker was started with `broker up`, and none is named, `broker status` connects to localhost:5672. If a
    broker answers there, the command says "running" and exits with 0. Otherwise, it says why no broker answers, and
    exits with 69.
    """
    status = home.run("mqtool", "broker", "status")
    if status.stdout.endswith("\n  running\n"):
        assert status.code == 0
    else:
        assert (status.code, "localhost:5672" in status.stderr) == (69, True), status.stderr


def test_commands_use_the_broker_that_broker_up_started(home: Shell, at_port: str) -> None:
    """Without a URL, `send` and `receive` use the broker that `broker up` started, whatever its port."""
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", at_port)
    home.run("mqtool", "send", "here")
    assert home.run("mqtool", "receive", "-c", "1").stdout == " [x] Received here\n"


def test_ctrl_c_stops_a_broker_in_the_foreground(home: Shell, at_port: str) -> None:
    """`broker up --foreground` runs until Ctrl-C, which stops the broker; the command exits with 0."""
    foreground = home.start("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--foreground", at_port)
    foreground.wait_for_stdout(" is up at ")
    assert home.run("mqtool", "send").code == 0
    assert foreground.interrupt().wait().code == 0
    assert home.run("mqtool", "broker", "status").code == 69


def test_broker_up_reports_a_damaged_database(home: Shell, at_port: str) -> None:
    """If the embedded broker's database was truncated, the broker still starts, and `broker up` warns that some
    messages could not be read and names the damaged files.
    """
    home.run("mqtool", "broker", "up", "--kind", "embedded", at_port)
    home.run("mqtool", "new-task", *["x" * 50_000] * 10)
    home.run("mqtool", "broker", "down")
    (database,) = home.directory.glob("state/**/broker.sqlite3")
    os.truncate(database, database.stat().st_size // 2)
    up = home.run("mqtool", "broker", "up", "--kind", "embedded", at_port)
    assert up.code == 0
    assert "the database was damaged: some of its messages could not be read" in up.stderr
    assert "damaged-" in up.stderr


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@pytest.mark.parametrize("moment", ["before the process starts", "while the process boots"])
def test_no_broker_is_left_if_broker_up_foreground_is_killed_while_it_starts(
    home: Shell, kind: BrokerKind, moment: str, at_port: str
) -> None:
    """If `broker up --foreground` is killed while the broker is starting, the broker's processes end as well."""
    own_broker(kind)
    foreground = home.start("mqtool", "broker", "up", "--kind", kind, "--foreground", at_port)
    foreground.wait_for_stderr("starting ")
    if moment == "while the process boots":
        wait_until(lambda: list(home.directory.glob("state/**/log")), "the broker's log to begin")
    pid = foreground.process.pid
    foreground.process.send_signal(signal.SIGSTOP)  # so that it starts no further process
    started = children_of(pid)
    foreground.process.send_signal(signal.SIGKILL)
    foreground.process.wait()
    port = int(at_port.partition("=")[2])
    wait_until(lambda: not any(map(is_alive, started)), "the processes that it started to end")
    ours = ("mqtool", "broker", "status", "--name=default")  # without --name, it may ask another broker at port 5672
    wait_until(lambda: is_free(port) and home.run(*ours).code == 69, "the broker to end")


@pytest.mark.parametrize("is_saved", [False, True])
def test_broker_down_finds_a_broker_whose_broker_up_was_killed(home: Shell, at_port: str, *, is_saved: bool) -> None:
    """If `broker up` is killed while the broker is starting, either the broker ends as well, or `broker ls` lists it
    and `broker down` stops it.
    """
    up = home.start("mqtool", "broker", "up", "--kind", "embedded", at_port)
    wait_until(lambda: children_of(up.process.pid), "the broker's process")
    [broker] = children_of(up.process.pid)
    if is_saved:
        os.kill(broker, signal.SIGSTOP)  # so that `broker up` waits for it
        wait_until(lambda: list(home.directory.glob("state/**/broker.json")), "the broker's state to be saved")
    up.process.send_signal(signal.SIGKILL)
    up.process.wait()
    if is_saved:
        os.kill(broker, signal.SIGCONT)
    listed = home.run("mqtool", "broker", "ls")
    assert ("running" in listed.stdout) >= is_saved, listed.stderr
    home.run("mqtool", "broker", "down")
    wait_until(lambda: not is_alive(broker), "the broker to end")


@large
def test_broker_ls_does_not_show_a_broker_that_did_not_start(home: Shell, at_port: str) -> None:
    """If the broker does not start, for example because its data cannot be read, `broker up` exits with an error. The
    output of `broker ls` is then the same as before: it lists no broker or, if an earlier one was killed, only the
    killed one.
    """
    (home.directory / "data").write_text("a file, not a directory")
    up = ("mqtool", "broker", "up", "--kind", "embedded", at_port)
    for is_first in (True, False):
        if not is_first:
            assert home.run(*up).code == 0
            status = home.run("mqtool", "broker", "status").stdout
            os.kill(int(re.findall(r"process +(\d+)", status)[0]), signal.SIGKILL)
        before = home.run("mqtool", "broker", "ls").stdout
        assert (before == "") is is_first
        failed = home.run(*up, "--data-dir", "data")
        assert failed.code != 0
        assert "the embedded broker does not start" in failed.stderr
        assert home.run("mqtool", "broker", "ls").stdout == before


def test_the_embedded_broker_in_the_foreground_is_one_process(home: Shell, at_port: str) -> None:
    """`broker up --foreground --kind embedded` runs the broker in the process of `broker up` itself, without a child
    process. After `broker down`, this process exits with 0.
    """
    foreground = home.start("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--foreground", at_port)
    foreground.wait_for_stdout(" is up at ")
    pid = int(re.findall(r"process +(\d+)", home.run("mqtool", "broker", "status").stdout)[0])
    assert not children_of(pid)
    assert home.run("mqtool", "broker", "down").code == 0
    assert foreground.wait().code == 0


def test_commands_recognize_that_another_broker_listens_at_the_address_of_a_killed_one(
    home: Shell, neighbour: Shell, at_port: str
) -> None:
    """If the broker that `broker up` started is killed, and another user's broker then listens at its address, commands
    use the management API of this other broker, even if a third broker has the management port of the killed one.
    Without --yes, `bench` puts no load on the other broker, and exits with 2. No password is sent to the killed
    broker's management port.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory")
    management = f"--management-port={free_port()}"
    home.run(*up, at_port, management)
    pid = int(re.findall(r"process +(\d+)", home.run("mqtool", "broker", "status").stdout)[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the broker to end")
    url = ("-u", f"amqp://ann:secret@127.0.0.1:{at_port.partition('=')[2]}")
    with socket.create_server(("127.0.0.1", int(management.partition("=")[2]))) as listener:
        listener.setblocking(False)
        assert home.run("mqtool", "list", "queues", *url).code != 0
        with pytest.raises(BlockingIOError):
            listener.accept()
    neighbour.run(*up, "--name", "one", at_port)
    neighbour.run(*up, "--name", "two", f"--port={free_port()}", management)
    url = ("-u", f"amqp://127.0.0.1:{at_port.partition('=')[2]}")
    assert home.run("mqtool", "queue", "declare", "jobs", *url).code == 0
    assert home.run("mqtool", "list", "queues", *url).stdout.startswith("jobs\t")
    asked = home.run("mqtool", "bench", *url, "--duration", "1s")
    assert (asked.code, "this would put load on" in asked.stderr) == (2, True), asked.stderr


def test_commands_find_the_management_api_in_docker_if_the_docker_daemon_does_not_answer(
    home: Shell, neighbour: Shell, at_port: str, tmp_path: Path
) -> None:
    """If the Docker daemon does not answer, commands cannot know whether the broker that `broker up` started in
    Docker is still running. They then use the management API at the URL that `broker up` recorded, but only if this
    API belongs to the broker at the recorded AMQP address.
    """
    port, management = int(at_port.partition("=")[2]), free_port()
    # The first broker stands in for the one in Docker. The API of the second one is where mqtool looks first.
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory")
    neighbour.run(*up, "--name", "one", at_port, f"--management-port={management}")
    neighbour.run(*up, "--name", "two", f"--port={free_port()}", f"--management-port={port + 10_000}")
    directory = tmp_path / "state/mqtool/brokers/default"
    directory.mkdir(parents=True)
    details = {"management": f"http://127.0.0.1:{management}", "containers": ["none"]}
    url = f"amqp://guest:guest@127.0.0.1:{port}"
    state.save(state.Started("default", "docker", url, 0, str(directory), details))
    environment = {"DOCKER_HOST": "unix:///nonexistent"}
    assert home.run("mqtool", "queue", "declare", "jobs", environment=environment).code == 0
    assert home.run("mqtool", "list", "queues", environment=environment).stdout.startswith("jobs\t")


def declare_in_page(ui: Running, queue: str) -> dict[str, Any]:
    """Declare a queue in the page of `mqtool ui`; return the last line of the answer."""
    return run_action(ui, "declare-queue", name=queue, type="classic")[-1]


def test_the_page_of_ui_does_not_use_another_broker_at_the_same_address(
    home: Shell, neighbour: Shell, at_port: str
) -> None:
    """If the broker for which `mqtool ui` was started is killed, and another user's broker then listens at its
    address, the page neither changes that other broker nor reads from it.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", at_port)
    home.run(*up)
    ui = home.start("mqtool", "ui", ready=False).wait_for_stdout("\n")
    assert declare_in_page(ui, "own") == {"code": 0}
    pid = int(re.findall(r"process +(\d+)", home.run("mqtool", "broker", "status").stdout)[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the broker to end")
    neighbour.run(*up, "--name", "one")
    for refused in (declare_in_page(ui, "foreign"), run_action(ui, "peek", queue="own", count="1")[-1]):
        assert str(refused["error"]).startswith("the page was started for another broker than this one")
    assert neighbour.run("mqtool", "list", "queues", "-u", f"localhost:{at_port.partition('=')[2]}").stdout == ""
    ui.interrupt().wait()


@pytest.mark.parametrize("first", ["broker up", "context use", "url option"])
def test_the_page_of_ui_changes_the_broker_for_which_it_was_started(
    home: Shell, neighbour: Shell, at_port: str, first: str
) -> None:
    """Actions on the page of `mqtool ui` apply to the broker that the page shows, even if `mqtool ui` was started with
    both --url and a context, or the user has since switched to another context. The commands that the page shows name
    this broker, so they can be pasted into any terminal. If the context of this broker is changed while `mqtool ui` is
    running, the page neither changes a broker nor reads from one.
    """
    home.environment["XDG_CONFIG_HOME"] = str(home.directory)
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory")
    home.run(*up, at_port)
    own = f"amqp://127.0.0.1:{at_port.partition('=')[2]}"
    other = f"amqp://127.0.0.1:{free_port()}"
    neighbour.run(*up, "--name", "one", f"--port={other.rpartition(':')[2]}")
    home.run("mqtool", "context", "add", "mine", "--url", own)
    home.run("mqtool", "context", "add", "other", "--url", other)
    if first == "context use":
        home.run("mqtool", "context", "use", "mine")
    words = ("-u", own, "-C", "other") if first == "url option" else ()
    ui = home.start("mqtool", "ui", *words, ready=False).wait_for_stdout("\n")
    home.run("mqtool", "context", "use", "other")
    assert declare_in_page(ui, "jobs") == {"code": 0}
    assert home.run("mqtool", "list", "queues", "name", "-u", own).stdout == "jobs\n"
    named = {
        "broker up": f"--url {own.replace('//', '//guest@')}",
        "context use": "--context mine",
        "url option": f"--url {own}",
    }[first]
    assert run_action(ui, "peek", queue="jobs", count="1")[0] == {"command": f"mqtool peek -c 1 jobs {named}"}
    if first == "context use":
        for changed in (["--url", other], ["--url", own, "--management", "http://127.0.0.1:1"]):
            home.run("mqtool", "context", "rm", "mine")
            home.run("mqtool", "context", "add", "mine", *changed)
            for answer in (declare_in_page(ui, "jobs"), run_action(ui, "peek", queue="jobs", count="1")[-1]):
                assert str(answer["error"]).startswith("the page was started for another broker")
    assert home.run("mqtool", "list", "queues", "name", "-u", other).stdout == ""
    ui.interrupt().wait()


def test_the_page_of_ui_does_not_restart_another_broker_of_the_same_name(home: Shell, at_port: str) -> None:
    """If the broker for which `mqtool ui` was started is stopped, and another broker of the same name is started on
    another port, the page does not restart that other broker.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory")
    home.run(*up, at_port)
    ui = home.start("mqtool", "ui", ready=False).wait_for_stdout("\n")
    home.run("mqtool", "broker", "down")
    home.run(*up, f"--port={free_port()}")
    before = home.run("mqtool", "broker", "status").stdout
    refused = run_action(ui, "restart")[-1]
    assert str(refused["error"]).startswith("the page was started for another broker than this one")
    assert home.run("mqtool", "broker", "status").stdout == before
    ui.interrupt().wait()


def test_broker_status_and_down_recognize_that_a_process_id_was_reused(home: Shell) -> None:
    """If a broker has died and its process id now belongs to another broker, `broker status` says that the first broker
    is not running, and `broker down` does not stop the second one.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--port", str(free_port()))
    home.run(*up, "--name", "a")
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--port", str(free_port()), "--name", "b")
    [a], [b] = (list(home.directory.glob(f"state/**/{name}/broker.json")) for name in "ab")
    saved, other = json.loads(a.read_text()), json.loads(b.read_text())
    os.kill(saved["pid"], signal.SIGKILL)
    a.write_text(json.dumps({**saved, "pid": other["pid"]}))
    assert home.run("mqtool", "broker", "status", "--name", "a").code == 69
    assert home.run("mqtool", "broker", "down", "--name", "a").code == 0
    assert home.run("mqtool", "broker", "status", "--name", "b").code == 0
    assert home.run("mqtool", "broker", "down", "--name", "b").code == 0


def test_broker_up_run_twice_at_the_same_time_starts_one_broker(home: Shell, at_port: str) -> None:
    """If two `broker up` commands run at the same time, one of them starts the broker, and the other says that the
    broker is already running.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", at_port)
    both = [home.start(*up), home.start(*up)]
    said = sorted(each.wait().stdout.partition(" at ")[0] for each in both)
    assert said == ["already running", "the embedded broker is up"]


def waiting_for_a_lock() -> set[int]:
    """Return the ids of the processes that wait until another one releases a lock on a file."""
    return {int(pid) for pid in re.findall(r"-> FLOCK +ADVISORY +WRITE (\d+)", Path("/proc/locks").read_text())}


@only_on_linux
@pytest.mark.parametrize("command", ["restart", "down", "rm"])
@pytest.mark.sampled(1)
def test_a_second_broker_restart_down_or_rm_waits_for_the_first(
    home: Shell, at_port: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `broker restart`, `broker down` or `broker rm` is run twice at the same time, the second run waits for the
    first. The second `broker down` then says that there is nothing to stop. The second `broker rm` exits with 69 and
    says that there is no such broker, because the first one has removed it from the list.
    """
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", at_port)
    if command == "rm":
        home.run("mqtool", "broker", "down")
    monkeypatch.setenv("XDG_STATE_HOME", str(home.directory / "state"))
    with state.locked("default"):
        both = [home.start("mqtool", "broker", command), home.start("mqtool", "broker", command)]
        wait_until(lambda: {each.process.pid for each in both} <= waiting_for_a_lock(), "both to wait for the lock")
    ended = [each.wait() for each in both]
    assert sorted(each.code for each in ended) == ([0, 69] if command == "rm" else [0, 0]), ended
    said = {"restart": "is up again at", "down": "nothing to stop", "rm": "no broker named 'default' was started here"}
    assert said[command] in "".join(each.stdout + each.stderr for each in ended)


@pytest.mark.parametrize("command", ["up --kind embedded --in-memory", "restart"])
def test_broker_up_and_restart_release_the_reserved_ports_even_if_the_command_cannot_end(
    home: Shell, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`broker up` and `broker restart` reserve the broker's ports until the broker has started. They then release the
    ports, even if they cannot exit yet because no process reads their output. Otherwise, a later `broker restart`
    could not reserve the ports, and another broker could take them during that restart.
    """
    if command == "restart":
        home.run("mqtool", "broker", "up", "--kind", "embedded", "--in-memory")
    os.mkfifo(home.directory / "full")
    full = os.open(home.directory / "full", os.O_RDWR)
    os.write(full, b" " * 65536)
    home.start("bash", "-c", f"mqtool broker {command} >full").wait_for_stderr("starting the embedded broker")
    monkeypatch.setenv("XDG_STATE_HOME", str(home.directory / "state"))
    with state.locked("default"):
        started = state.load("default")
        assert started is not None

        def can_be_reserved() -> bool:
            with ports.reserving():
                return ports.keep(started)

        wait_until(can_be_reserved, "the ports to be released")
    os.close(full)


def test_broker_commands_say_how_to_start_a_broker_that_does_not_exist(home: Shell) -> None:
    """If no broker was started with the name given with --name, `broker status`, `env`, `logs`, `restart` and `rm` exit
    with 69. The hint says how to start a broker with this name or, for `broker rm`, how to list the brokers.
    """
    for command in ("status", "env", "logs", "restart", "rm"):
        missing = home.run("mqtool", "broker", command, "--name", "mine")
        hint = "'mqtool broker ls' lists them" if command == "rm" else "start one with 'mqtool broker up --name=mine'"
        assert (missing.code, missing.stderr) == (
            69,
            f"mqtool: no broker named 'mine' was started here\nhint: {hint}\n",
        )


def test_broker_up_does_not_take_a_port_of_a_broker_that_is_being_restarted(home: Shell) -> None:
    """If `broker up` runs during a `broker restart`, it does not choose a port of the broker that is being restarted,
    although for a moment no process listens on this port.
    """
    port = free_port()
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--name", "mine", f"--port={port}")
    home.run("mqtool", "broker", "down", "--name", "mine")
    keep(state.Started("mine", "embedded", f"amqp://localhost:{port}", 0, "", {}))
    again = home.run("mqtool", "broker", "up", "--name", "mine").stdout
    assert "is up at amqp://" in again
    assert f":{port}" not in again


@pytest.mark.parametrize("ended", ["stopped", "killed"])
@pytest.mark.sampled(1)
def test_broker_up_restores_a_stopped_brokers_kind_port_and_messages(home: Shell, at_port: str, ended: str) -> None:
    """After the embedded broker has been stopped with `broker down` or killed with kill -9, `broker up --name NAME`
    starts it again, without --kind or --port. The broker has the same port and still has the persistent messages.
    """
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--name", "mine", at_port)
    url = f"localhost:{at_port.partition('=')[2]}"
    home.run("mqtool", "send", "-u", url, "--persistent", "kept")
    if ended == "stopped":
        home.run("mqtool", "broker", "down", "--name", "mine")
    else:
        (saved,) = home.directory.glob("state/**/mine/broker.json")
        pid = json.loads(saved.read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the broker's process to end")
    assert "the embedded broker" in home.run("mqtool", "broker", "up", "--name", "mine").stdout
    assert home.run("mqtool", "receive", "-u", url, "-c", "1").stdout == " [x] Received kept\n"
    home.run("mqtool", "broker", "down", "--name", "mine")


def test_broker_commands_say_that_a_broker_is_stopped(home: Shell, at_port: str) -> None:
    """Once `broker down` has stopped a broker, `broker status`, `broker restart` and a second `broker down` say that
    the broker is stopped. `broker status` and `broker restart` exit with 69, and their hint is the command that starts
    the broker again.
    """
    home.run("mqtool", "broker", "up", "--kind", "embedded", "--in-memory", "--name", "mine", at_port)
    home.run("mqtool", "broker", "down", "--name", "mine")
    for command in ("status", "restart"):
        said = home.run("mqtool", "broker", command, "--name", "mine")
        assert (said.code, "broker 'mine' is stopped" in said.stderr) == (69, True)
        assert "hint: start it again: mqtool broker up --kind=embedded --name=mine\n" in said.stderr
    said = home.run("mqtool", "broker", "down", "--name", "mine")
    assert (said.code, said.stderr) == (0, "nothing to stop: broker 'mine' is stopped\n")


def test_a_broker_keeps_its_ports_after_broker_down_and_broker_up(home: Shell, at_port: str) -> None:
    """After `broker down` and `broker up`, the broker's stream protocol and management API have the same ports as
    before.
    """
    up = ("mqtool", "broker", "up", "--kind", "embedded", at_port)
    ports = []
    # Neither the usual ports nor any that free_port() returns: another test could take them in between.
    management, streams = random.sample([port for port in range(32_010, 32_700, 10) if is_free(port)], 2)
    for chosen in ((f"--management-port={management}", f"--stream-port={streams}"), ()):
        assert home.run(*up, *chosen).code == 0
        details = json.loads(next(home.directory.glob("state/**/default/broker.json")).read_text())["details"]
        ports.append((details["management"], details["streams"]))
        home.run("mqtool", "broker", "down")
    assert ports[0] == ports[1]


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
def test_no_broker_is_left_if_broker_up_foreground_is_killed(home: Shell, kind: BrokerKind, at_port: str) -> None:
    """If `broker up --foreground` is killed, the broker ends as well, and `broker status` exits with 69."""
    own_broker(kind)
    foreground = home.start("mqtool", "broker", "up", "--kind", kind, "--foreground", at_port)
    foreground.wait_for_stdout(" is up at ")
    pid = int(re.findall(r"process +(\d+)", home.run("mqtool", "broker", "status").stdout)[0])
    foreground.process.send_signal(signal.SIGKILL)
    foreground.process.wait()
    wait_until(lambda: not is_alive(pid), "the broker to end")
    wait_until(lambda: home.run("mqtool", "broker", "status").code == 69, "`broker status` to exit with 69")


def test_broker_up_names_a_port_that_is_in_use(home: Shell) -> None:
    """If the port given with --port is in use, `broker up` exits with 69, names the port, and suggests choosing another
    one with --port.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = home.run("mqtool", "broker", "up", "--kind", "embedded", "--port", str(port))
    assert result.code == 69
    assert f"port {port} on 127.0.0.1 is taken" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize("option", ["--port", "--management-port", "--stream-port"])
def test_broker_serve_names_a_port_that_is_in_use(home: Shell, option: str) -> None:
    """If another program listens on the port given with --port, --management-port or --stream-port, `broker serve`
    exits with 69 and names the port. The hint says that with port 0, `broker serve` chooses a free port.
    """
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = home.run("mqtool", "broker", "serve", "--port", "0", option, str(port))
    assert result.code == 69
    assert result.stderr.startswith(f"mqtool: cannot listen on 127.0.0.1 port {port}: ")
    assert "hint: with port 0, it takes a free one" in result.stderr


def test_broker_up_with_tls_uses_the_port_below_each_plain_port(home: Shell, amqp_tls: Authority, at_port: str) -> None:
    """With TLS, `broker up` uses two ports for each protocol: a plain port and, for TLS, the port below it, such as
    5672 and 5671. If the port below --port is in use, the command exits with 69. If the port below the management
    API's default port is in use, however, `broker up` chooses other ports for the management API.
    """
    up = ("mqtool", "broker", "up", "--kind=embedded", "--in-memory", f"--tls-cert={amqp_tls.cert}")
    port = free_port()
    with socket.create_server(("127.0.0.1", port - 1)):
        refused = home.run(*up, f"--tls-key={amqp_tls.key}", f"--port={port}")
    assert (refused.code, f"port {port - 1} on 127.0.0.1 is taken" in refused.stderr) == (69, True)

    usual_management = int(at_port.partition("=")[2]) + 10_000
    with socket.create_server(("127.0.0.1", usual_management - 1)):
        assert home.run(*up, f"--tls-key={amqp_tls.key}", at_port).code == 0
    assert f":{usual_management}" not in home.run("mqtool", "broker", "status").stdout


@pytest.mark.parametrize("command", ["up --kind=embedded --in-memory", "serve"])
def test_broker_up_and_serve_refuse_conflicting_ports(home: Shell, amqp_tls: Authority, command: str) -> None:
    """If two port options of `broker up` or `broker serve` need the same port, the command exits with 2 and names the
    options and the port. With TLS, each option also needs the port below the given one, so neighbouring ports
    conflict as well.
    """
    port = free_port()
    start = ("mqtool", "broker", *command.split(), f"--port={port}")
    files = (f"--tls-cert={amqp_tls.cert}", f"--tls-key={amqp_tls.key}")
    same = home.run(*start, f"--stream-port={port}")
    assert (same.code, same.stderr.splitlines()[0]) == (2, f"mqtool: --port and --stream-port both need port {port}")
    beside = home.run(*start, f"--management-port={port + 1}", *files)
    assert beside.code == 2
    assert beside.stderr.splitlines() == [
        f"mqtool: --port and --management-port both need port {port}",
        "hint: with TLS, the broker also uses the port below each: leave a port free between them",
    ]


def test_broker_up_refuses_a_tls_port_that_is_the_default_port_of_the_management_api(
    home: Shell, amqp_tls: Authority, at_port: str
) -> None:
    """With TLS, the broker uses two ports for each port option: the given one and, for TLS, the one below it. If the
    port below --stream-port is the default port of the management API, `broker up` exits with 2, and says that
    --management-port and --stream-port both need this port.
    """
    port = int(at_port.partition("=")[2])
    up = ("mqtool", "broker", "up", "--kind=embedded", "--in-memory", at_port)
    files = (f"--tls-cert={amqp_tls.cert}", f"--tls-key={amqp_tls.key}")
    refused = home.run(*up, f"--stream-port={port + 10_001}", *files)
    assert (refused.code, f"--management-port and --stream-port both need port {port + 10_000}" in refused.stderr) == (
        2,
        True,
    )


def test_broker_up_starts_no_broker_if_mqtool_url_names_another(home: Shell) -> None:
    """If MQTOOL_URL names a broker that does not answer, `broker up` exits with 69 and starts no broker, because
    commands would not use the new broker, but the one in MQTOOL_URL.
    """
    result = home.run("mqtool", "broker", "up", environment={"MQTOOL_URL": "amqp://127.0.0.1:1"})
    assert result.code == 69
    assert "no broker answers at amqp://guest@127.0.0.1:1" in result.stderr


@large
def test_modules_in_the_current_directory_are_not_run(home: Shell, at_port: str) -> None:
    """If the current directory contains a file json.py, commands that start further processes of mqtool, such as
    `broker up` and `bench`, import Python's own module instead. In a directory such as /tmp, another user could have
    written the file.
    """
    (home.directory / "json.py").write_text("open('was-run', 'w').close()\nraise SystemExit(1)\n")
    up = home.run("mqtool", "broker", "up", "--kind", "embedded", at_port)
    measured = home.run("mqtool", "bench", "--yes", "-n", "1")
    assert not (home.directory / "was-run").exists()
    assert (up.code, measured.code) == (0, 0), (up.stderr, measured.stderr)


def test_broker_env_names_a_management_api_that_is_not_at_its_usual_port(home: Shell) -> None:
    """Commands look for the management API on the port whose number is the AMQP port plus 10,000. If the broker's API
    is on another port, `broker env` exports MQTOOL_MANAGEMENT_URL. `broker env --remote`, which prints variables for
    other machines, does not export it, because the API accepts no connections from other machines.
    """
    port, api = free_port(), free_port()
    up = ("mqtool", "broker", "up", "--kind=embedded", "--name=mine", "--listen=127.0.0.2", f"--port={port}")
    assert home.run(*up, f"--management-port={api}").code == 0
    exported = home.run("mqtool", "broker", "env", "--name=mine").stdout
    assert f"export MQTOOL_MANAGEMENT_URL=http://127.0.0.1:{api}\n" in exported
    assert "MANAGEMENT" not in home.run("mqtool", "broker", "env", "--name=mine", "--remote").stdout
    assert home.run("mqtool", "broker", "down", "--name=mine").code == 0
    assert home.run(*up, f"--management-port={port + 10_000}").code == 0
    assert "MANAGEMENT" not in home.run("mqtool", "broker", "env", "--name=mine").stdout


@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
def test_a_killed_broker_can_be_started_again(home: Shell, kind: BrokerKind, at_port: str) -> None:
    """After kill -9 of the broker, `broker status` exits with 69, and its hint is the command that starts this broker
    again. `broker up` with the same options as before then starts the broker again.
    """
    own_broker(kind)
    up = ("mqtool", "broker", "up", "--kind", kind, "--name", "mine", at_port)
    home.run(*up)
    status = home.run("mqtool", "broker", "status", "--name", "mine").stdout
    pid = int(next(line.split()[1] for line in status.splitlines() if line.strip().startswith("process")))
    os.kill(pid, 9)
    wait_until(
        lambda: home.run("mqtool", "broker", "status", "--name", "mine").code == 69, "`broker status` to exit with 69"
    )
    stopped = home.run("mqtool", "broker", "status", "--name", "mine").stderr
    assert f"hint: start it again: mqtool broker up --kind={kind} --name=mine\n" in stopped
    assert home.run(*up).code == 0


@pytest.mark.parametrize("command", [("up", "--kind=embedded", "--in-memory"), ("rm", "--purge", "--yes")])
def test_the_epmd_of_a_killed_node_is_stopped(
    home: Shell, at_port: str, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """If a private RabbitMQ node is killed, its epmd (Erlang's port mapper) keeps running. `broker up` stops this
    epmd, even if it then starts a broker of another kind. `broker rm` also stops it.
    """
    monkeypatch.setenv("XDG_STATE_HOME", home.environment["XDG_STATE_HOME"])
    with epmd([b"OK"]) as (port, asked):
        details = {"epmd_port": port, "members": [], "data": str(home.directory / "data"), "management": ""}
        state.save(
            state.Started("default", "node", "amqp://localhost:1", 0, str(state.made_directory("default")), details)
        )
        ran = home.run("mqtool", "broker", *command, *([at_port] if command[0] == "up" else []))
        assert is_free(port)
    assert ran.code == 0
    assert asked == [KILL]


def test_broker_down_does_not_claim_to_have_stopped_a_killed_broker(home: Shell, at_port: str) -> None:
    """After kill -9 of the broker, `broker down` exits with 0, and says that there is nothing to stop, because the
    broker had already ended, and which broker commands use now. A terminal is told once that it is one that nobody has
    named.
    """
    home.run("mqtool", "broker", "up", "--kind=embedded", at_port)
    status = home.run("mqtool", "broker", "status").stdout
    os.kill(int(next(line.split()[1] for line in status.splitlines() if line.strip().startswith("process"))), 9)
    wait_until(lambda: home.run("mqtool", "broker", "status").code == 69, "`broker status` to exit with 69")
    down = home.run("mqtool", "broker", "down")
    ended, now_used = down.stderr.splitlines()
    assert (down.code, ended) == (0, "nothing to stop: the embedded broker had ended")
    assert now_used.startswith("commands now use amqp://guest@localhost:5672, the default")
    wait = "mqtool wait --timeout 50ms"
    assert on_terminal(home, "sh", "-c", f"{wait}; {wait}").stdout.count("using amqp://guest@localhost:5672, the") == 1
