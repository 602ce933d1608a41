"""`list` prints the same rows as rabbitmqctl, from any machine."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import state
from mqtool.inspection.listing import LISTINGS
from mqtool.message import Message
from mqtool.topology import Queue
from tests.brokers import IN_CI, TestBroker, large, on_any_broker, rabbitmqctl
from tests.cli.shell import Running, Shell, wait_until
from tests.cli.terminal import on_terminal

pytestmark = pytest.mark.own_vhost("statistics of what an earlier test has deleted may linger")

KINDS = list(LISTINGS)
NOWHERE = ("--management", "http://127.0.0.1:1")


@pytest.fixture
def listing(shell: Shell, broker: TestBroker) -> Callable[..., list[dict[str, Any]]]:
    """Run `mqtool list --json` and return the decoded rows."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management

    def run(*words: str) -> list[dict[str, Any]]:
        result = shell.run("mqtool", "list", *words, "--json")
        assert result.code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


@pytest.fixture
def busy(shell: Shell, listing: object) -> Iterator[Running]:
    """Tutorial 2 after a forgotten ack: a worker with two tasks, one task left in the queue, and a log receiver."""
    shell.run("mqtool", "new-task", "-l", stdin="one\ntwo\nthree\n")
    worker = shell.start("mqtool", "worker", "--forget-ack", "--prefetch", "2").wait_until_ready()
    shell.start("mqtool", "receive-log", "topic", "kern.*", "*.critical").wait_until_ready()
    worker.wait_for_stdout("two")
    return worker


def test_each_list_command_lists_the_brokers_objects_of_its_kind(
    busy: Running, listing: Callable[..., list[dict[str, Any]]], broker: TestBroker
) -> None:
    """`list queues`, `list connections`, `list plugins` and the other `list` commands print the broker's queues,
    connections, plugins and so on, in their default columns or in the columns named on the command line.
    """
    mine = ("--where", f"vhost={broker.vhost}")
    counts = {"name": "task_queue", "messages_unacknowledged": 2, "messages_ready": 1}
    wait_until(lambda: counts in listing("queues", *counts), "the queue's counts")
    wait_until(lambda: len(listing("connections", *mine)) == 2, "two connections")
    wait_until(lambda: [row for row in listing("channels", *mine) if row["messages_unacknowledged"] == 2], "channels")
    assert {row["queue_name"]: row["prefetch_count"] for row in listing("consumers")}["task_queue"] == 2
    assert {"source_name": "topic_logs", "routing_key": "kern.*"} in listing("bindings", "source_name", "routing_key")
    assert {row["name"]: row["type"] for row in listing("exchanges")}["topic_logs"] == "topic"
    assert {"name": broker.vhost} in listing("vhosts", "name")
    assert {"user": "guest", "tags": ["administrator"]} in listing("users")
    assert listing("permissions") == [{"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}]
    assert {row["name"]: row["enabled"] for row in listing("plugins")}["rabbitmq_management"] is True


def test_list_queues_shows_current_counts_of_ready_messages_and_consumers(shell: Shell, listing: object) -> None:
    """`list queues` shows the current counts of ready messages and consumers. If its counts of unacknowledged
    messages are out of date, it also prints a note that these counts are up to 5 s old.
    """
    shell.run("mqtool", "new-task", "-l", stdin="one\ntwo\nthree\n")
    listed = shell.run("mqtool", "list", "queues")
    assert (listed.stdout, listed.code) == ("task_queue\t3\n", 0)
    worker = shell.start("mqtool", "worker", "--forget-ack", "--prefetch", "2").wait_until_ready()
    worker.wait_for_stdout("two")
    counts = ("messages_ready", "consumers", "messages_unacknowledged")
    listed = shell.run("mqtool", "list", "queues", *counts)
    ready, consumers, unacknowledged = map(int, listed.stdout.split())
    assert (ready, consumers) == (1, 1)
    assert unacknowledged == 2 or listed.stderr == "counts of unacknowledged messages are up to 5 s old\n"
    without = shell.run("mqtool", "list", "queues", "messages_ready", "consumers")
    assert (without.stdout, without.stderr) == ("1\t1\n", ""), "there is no note without that column"


def test_list_queues_shows_the_management_apis_counts_of_exclusive_queues_and_streams(
    shell: Shell, broker: TestBroker, connection: Connection, listing: object
) -> None:
    """For exclusive queues and for streams, `list queues` shows the counts of the management API. Over AMQP, a client
    can count neither the messages of another connection's exclusive queue nor those of a stream.
    """
    channel = connection.channel()
    channel.declare(Queue("mine", exclusive=True))
    expected = "mine\t1\n"
    list(channel.publish([Message(b"x", "mine")]))
    if broker.kind == "rabbitmq":
        channel.declare(Queue("stream", durable=True, arguments={"x-queue-type": "stream"}))
        expected += "stream\t0\n"
    wait_until(lambda: shell.run("mqtool", "list", "queues").stdout == expected, expected)
    assert ("counts of streams" in shell.run("mqtool", "list", "queues").stderr) is (broker.kind == "rabbitmq")


RABBITMQCTL = {
    "list_queues name messages_ready messages_unacknowledged": (
        "queues", "name", "messages_ready", "messages_unacknowledged"),
    "list_queues": ("queues",),
    "list_exchanges": ("exchanges",),
    "list_bindings": ("bindings",),
    "list_consumers queue_name consumer_tag ack_required prefetch_count active arguments": (
        "consumers", "queue_name", "consumer_tag", "ack_required", "prefetch_count", "active", "arguments"),
    "list_permissions": ("permissions",),
    "list_connections name user vhost state channels": ("connections", "name", "user", "vhost", "state", "channels"),
    "list_channels name user vhost consumer_count messages_unacknowledged prefetch_count": (
        "channels", "name", "user", "vhost", "consumer_count", "messages_unacknowledged", "prefetch_count"),
    "list_vhosts name": ("vhosts", "name"),
    "list_users": ("users",),
}  # fmt: skip
_OF_VHOST = ("list_queues", "list_exchanges", "list_bindings", "list_consumers", "list_permissions")


@large
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_list_prints_the_same_rows_as_rabbitmqctl(
    busy: Running, listing: Callable[..., list[dict[str, Any]]], broker: TestBroker
) -> None:
    """On RabbitMQ, each `list` command prints the same rows as the corresponding rabbitmqctl command."""
    started = state.load("suite-node")
    if started is None:
        pytest.skip("rabbitmqctl can only reach the suite's own node")
    counts = {"name": "task_queue", "messages_unacknowledged": 2, "messages_ready": 1}
    wait_until(lambda: counts in listing("queues", *counts), "statistics")
    # Each call of rabbitmqctl takes seconds of processor time.
    several = RABBITMQCTL.items() if IN_CI else [*RABBITMQCTL.items()][:1]
    for theirs, ours in several:
        words = theirs.split()
        of_vhost = ("-p", broker.vhost) if words[0] in _OF_VHOST else ()
        told = json.loads(rabbitmqctl(started, "--quiet", words[0], *of_vhost, *words[1:], "--formatter", "json"))
        # Other tests of this run have connections too.
        mine = [row for row in told if row.get("vhost", broker.vhost) == broker.vhost]
        only = () if of_vhost or "vhost" not in words else ("--where", f"vhost={broker.vhost}")
        if words[0] in ("list_vhosts", "list_users"):
            assert [row for row in mine if row in listing(*ours)], theirs
        else:
            wait_until(lambda: same(mine, listing(*ours, *only)), f"{theirs}: {mine} and {listing(*ours, *only)}")  # noqa: B023


def same(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> bool:
    """True if both have the same rows; rabbitmqctl prints an empty table of arguments as []."""

    def rows(told: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps({name: value or None for name, value in row.items()}) for row in told)

    return rows(theirs) == rows(ours) and bool(ours)


@on_any_broker
def test_columns_in_a_pipe_are_separated_by_tabs(shell: Shell, listing: object) -> None:
    """In a pipe, `list queues` prints one line per queue, with the chosen columns separated by tabs. Tabs and
    backslashes in names are escaped.
    """
    shell.run("mqtool", "queue", "declare", "a\tb\\c", "--queue-type", "classic")
    shell.run("mqtool", "queue", "declare", "[/red]", "--queue-type", "classic")
    listed = shell.run("mqtool", "list", "queues", "durable", "name", "--sort", "name")
    assert listed.stdout.splitlines() == ["true\t[/red]", "true\ta\\tb\\\\c"]


@large
def test_each_of_1100_queues_is_listed_once(
    connection: Connection, listing: Callable[..., list[dict[str, Any]]], shell: Shell
) -> None:
    """If there are more queues than fit on a page of the management API, `list queues` prints each queue once, and
    --where and --sort apply to all queues.
    """
    channel = connection.channel()
    for number in range(1_100):
        channel.declare(Queue(f"q{number:04}", exclusive=True))
    names = [row["name"] for row in listing("queues", "name")]
    assert sorted(names) == [f"q{number:04}" for number in range(1_100)]
    assert [row["name"] for row in listing("queues", "name", "--where", "name~'7$'", "--sort", "-name")][:2] == [
        "q1097", "q1087",
    ]  # fmt: skip
    assert len(listing("bindings", "routing_key")) == 1_100
    assert "counts of messages and consumers can be up to 5 s old" in shell.run("mqtool", "list", "queues").stderr
    lines = on_terminal(shell, "mqtool", "list", "queues", "name", "durable", "--no-color").stdout.splitlines()
    assert lines[0] == "name   durable"
    assert sorted(lines[1:]) == [f"q{number:04}  false" for number in range(1_100)]
    # The reader of the pipe has exited: no traceback, and exit code 141.
    left = shell.script("mkfifo pipe; exec 3<>pipe 4>pipe 3<&-; mqtool list queues >&4")
    assert ("Traceback" in left.stderr, left.code) == (False, 141)


@on_any_broker
def test_where_can_test_columns_that_are_not_shown(shell: Shell, listing: Callable[..., list[dict[str, Any]]]) -> None:
    """`list queues --where` can test any column, even one that is not shown, and any of a queue's arguments."""
    shell.run("mqtool", "queue", "declare", "a", "--queue-type", "quorum")
    shell.run("mqtool", "queue", "declare", "b", "--queue-type", "classic")
    shell.run("mqtool", "send", "-r", "b", "one")
    for condition, names in (
        ("messages=1 or arguments.x-queue-type=quorum", ["a", "b"]),
        ("durable and not messages>0", ["a"]),
        ("name~b", ["b"]),
    ):
        assert listing("queues", "name", "--where", condition, "--sort", "name") == [{"name": name} for name in names]


@on_any_broker
def test_a_table_on_a_terminal_escapes_names_and_fits_into_80_columns(shell: Shell, listing: object) -> None:
    r"""On a terminal, `list queues` prints brackets in names unchanged, as in `[/red]`, prints control characters as
    escapes such as \x1b, and fits its table into 80 columns.
    """
    names = ["[/red]", "a\x1b[31mb", "q" * 60]
    for name in names:
        shell.run("mqtool", "queue", "declare", name, "--queue-type", "classic")
    columns = ("name", "type", "messages_unacknowledged", "consumers")
    shown = on_terminal(shell, "mqtool", "list", "queues", "--sort", "name", *columns).stdout
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["[/red]", r"a\x1b[31mb"]
    assert lines[1].split() == ["name", "type", "unacknowledged", "consumers"]
    assert "\x1b[31m" not in shown
    assert max(map(len, lines)) <= 80
    assert shown.count("q") == 60, "a long name continues on the next line, uncut"


@on_any_broker
def test_a_mistyped_column_gets_a_suggestion(shell: Shell, listing: object) -> None:
    """If a column is mistyped, `list queues` exits with 2 and suggests the column with the most similar name. If
    names of queues are given in place of columns, it suggests --queue.
    """
    for words in (
        ["mesages_ready"],
        ["--sort", "-mesages_ready"],
        ["--where", "mesages_ready>0"],
        ["--where", "mesages_ready"],
    ):
        wrong = shell.run("mqtool", "list", "queues", *words)
        assert (wrong.stdout, wrong.code) == ("", 2)
        assert "did you mean 'messages_ready'?" in wrong.stderr
    names = shell.run("mqtool", "list", "queues", "work", "dead").stderr
    assert (
        "queues have no column 'work'\nhint: to list only these queues: mqtool list queues --queue=work --queue=dea"
        in names
    )


@on_any_broker
def test_list_queues_says_that_there_are_no_queues(shell: Shell, listing: object, broker: TestBroker) -> None:
    """If the virtual host has no queues, `list queues` prints on stderr that there are none in this virtual host. It
    prints nothing on stdout and exits with 0.
    """
    empty = shell.run("mqtool", "list", "queues")
    assert (empty.stdout, empty.stderr, empty.code) == ("", f"no queues in vhost '{broker.vhost}'\n", 0)


@on_any_broker
def test_a_list_that_could_not_be_fetched_is_not_called_empty(shell: Shell) -> None:
    """If the management API does not answer, `list queues` and `list exchanges` print an error and exit with 3. They do
    not claim that there are no queues or exchanges.
    """
    for things in ("queues", "exchanges"):
        unknown = shell.run("mqtool", "list", things, *NOWHERE)
        assert (unknown.code, "no management API answers" in unknown.stderr) == (3, True), unknown.stderr
        assert f"no {things}" not in unknown.stdout + unknown.stderr


def test_list_queues_prints_no_note_about_counts_if_it_prints_no_row(
    shell: Shell, listing: object, broker: TestBroker
) -> None:
    """`list queues` notes how old the counts of streams can be, and that RabbitMQ also counts the offsets that readers
    store: 100 messages and a stored offset are 101. If it prints no row, because none matches --where, it
    omits this note.
    """
    broker.api("PUT", f"queues/{broker.vhost}/s", {"durable": True, "arguments": {"x-queue-type": "stream"}})
    noted = shell.run("mqtool", "list", "queues").stderr
    assert noted == "counts of streams can be up to 5 s old; RabbitMQ also counts stored offsets of readers\n"
    none = shell.run("mqtool", "list", "queues", "--where", "name=other")
    assert (none.code, none.stderr) == (0, f"no such queues in vhost '{broker.vhost}'\n")


@on_any_broker
def test_list_exits_with_69_if_a_named_queue_or_exchange_does_not_exist(
    shell: Shell, listing: object, broker: TestBroker
) -> None:
    """If a queue named with -q does not exist, `list queues` reports this queue as missing, prints the other named
    queues, and exits with 69, with or without the management API. `list exchanges -e` does the same for exchanges. A
    queue that exists but does not match --where does not count as missing.
    """
    shell.run("mqtool", "send", "-q", "jobs", "two")
    missing = shell.run("mqtool", "list", "queues", "-q", "jbos")
    assert (missing.code, missing.stdout) == (69, "")
    assert missing.stderr == (
        f"mqtool: queue 'jbos' does not exist in vhost '{broker.vhost}'\n"
        "hint: did you mean 'jobs'? Otherwise, 'mqtool list queues' shows them\n"
    )
    for way in ((), NOWHERE):
        some = shell.run("mqtool", "list", "queues", "-q", "jobs", "-q", "none", "name", *way)
        assert (some.code, some.stdout, "queue 'none' does not exist" in some.stderr) == (69, "jobs\n", True)
        some = shell.run("mqtool", "list", "exchanges", "-e", "amq.topic", "-e", "none", "name", *way)
        assert (some.code, some.stdout, "exchange 'none' does not exist" in some.stderr) == (69, "amq.topic\n", True)
    other = shell.run("mqtool", "list", "queues", "-q", "jobs", "--where", "name=other")
    assert (other.code, other.stderr) == (0, f"no such queues in vhost '{broker.vhost}'\n")


@on_any_broker
def test_list_watch_keeps_printing_the_list_until_ctrl_c(shell: Shell, listing: object) -> None:
    """`list queues --watch` keeps printing the list, and a new queue appears in it. After Ctrl-C, the command exits
    with 0.
    """
    watching = shell.start("mqtool", "list", "queues", "name", "--watch", "50ms")
    watching.wait_for_stderr("no queues")
    shell.run("mqtool", "queue", "declare", "late")
    watching.wait_for_stdout("late\nlate\n").interrupt()
    assert watching.wait().code == 0


@on_any_broker
def test_list_watch_on_a_terminal_reacts_to_keys(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, keys filter, sort and scroll the list that `list queues --watch` shows, and the key q ends the
    command. A line says how many rows do not fit on the screen. If TERM is "dumb", the output contains no escape
    sequences.
    """
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        for number in range(30):
            channel.declare(Queue(f"{'even' if number % 2 else 'odd'}-{number:02}", durable=True))
    command = ("mqtool", "list", "queues", "name", "--watch", "1h", "--management", broker.management)

    def frames(*keys: str) -> list[str]:
        return on_terminal(shell, *command, keys=keys, cue="q quit").stdout.split("q quit")

    assert "+9 more" in frames("q")[0]
    assert "odd-28" in frames("\x1b[6~", "\x1b[A", "q")[1]
    found = frames("/odd-1\r", "1", "1", "q")
    assert [re.findall(r"(?:odd|even)-\d\d", frame) for frame in found[1:4:2]] == [
        [f"odd-{number}" for number in (10, 12, 14, 16, 18)], [f"odd-{number}" for number in (18, 16, 14, 12, 10)]
    ]  # fmt: skip
    shell.environment["TERM"] = "dumb"
    dumb = shell.start("/usr/bin/script", "-qec", " ".join(command), "/dev/null", ready=False)
    dumb.wait_for_stdout("even-29").interrupt()
    assert "\x1b" not in dumb.wait().stdout


@on_any_broker
def test_bindings_of_the_default_exchange_are_hidden_on_a_terminal(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `list bindings` hides the default exchange's bindings unless --where selects them. In a pipe, it
    prints all bindings.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    shell.run("mqtool", "exchange", "bind", "amq.topic", "jobs", "a.*")
    command = ("mqtool", "list", "bindings", "routing_key", "--management", broker.management)
    assert sorted(shell.run(*command).stdout.split()) == ["a.*", "jobs"]
    assert "jobs" not in on_terminal(shell, *command).stdout
    assert "jobs" in on_terminal(shell, *command, "--where", "source_name=''").stdout


def test_list_queues_uses_amqp_without_the_management_api(shell: Shell, broker: TestBroker) -> None:
    """Without the management API, `list queues` counts ready messages and consumers over AMQP, in the queues that -q
    names or, without -q, in the tutorials' queues. `list bindings` exits with 69, because AMQP cannot list bindings.
    """
    shell.run("mqtool", "send", "one")
    shell.run("mqtool", "send", "-q", "jobs", "two")

    named = shell.run("mqtool", "list", "queues", "-q", "jobs", "name", "messages_ready", *NOWHERE)
    assert (named.stdout, named.code) == ("jobs\t1\n", 0)
    assert "no management API answers at http://127.0.0.1:1: connection refused" in named.stderr

    usual = shell.run("mqtool", "list", "queues", "name", "consumers", "messages_ready", *NOWHERE)
    assert (usual.stdout, usual.code) == ("hello\t0\t1\n", 3)
    hint = {"embedded": "broker serve --management-port=", "rabbitmq": "rabbitmq-plugins enable rabbitmq_management"}
    assert hint[broker.kind] in usual.stderr

    assert shell.run("mqtool", "list", "queues", "-q", "jobs", *NOWHERE).stdout == "jobs\t1\t0\n"
    assert shell.run("mqtool", "list", "exchanges", "-e", "amq.topic", *NOWHERE).stdout == "amq.topic\n"

    bindings = shell.run("mqtool", "list", "bindings", *NOWHERE)
    assert (bindings.stdout, bindings.code) == ("", 69)
    assert "AMQP cannot list bindings" in bindings.stderr


@on_any_broker
@pytest.mark.parametrize("command", ["list connections", "list channels", "list queues", "doctor"])
def test_list_and_doctor_exit_with_69_if_the_vhost_in_the_url_does_not_exist(
    command: str, shell: Shell, broker: TestBroker
) -> None:
    """If the vhost in the URL does not exist, `list` and `doctor` exit with 69 and name the missing vhost. This is also
    true of those commands that look at all vhosts: `doctor`, `list connections` and `list channels`.
    """
    url = broker.url.rpartition("/")[0] + "/nowhere"
    refused = shell.run("mqtool", *command.split(), "--url", url, "--management", broker.management)
    assert (refused.stdout, refused.code) == ("", 69), refused.stderr
    assert refused.stderr.startswith("mqtool: vhost 'nowhere' does not exist")


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sampled(2)
def test_list_exits_with_77_if_the_password_is_wrong(kind: str, shell: Shell, listing: object) -> None:
    """If the password is wrong, each `list` command exits with 77. The error says that the broker refuses the user
    with this password, but does not show the password.
    """
    (shell.directory / "password").write_text("very-wrong\n")
    refused = shell.run("mqtool", "list", kind, "--password-file", "password")
    assert (refused.stdout, refused.code) == ("", 77)
    assert "refuses user 'guest' with this password" in refused.stderr
    assert "very-wrong" not in refused.stderr


@on_any_broker
@pytest.mark.parametrize(
    "command",
    [
        "wait",
        *(f"list {kind}" for kind in KINDS),
        "top --once",
        "route amq.topic key",
        "topology",
        "dlq ls",
        "doctor --between 10ms",
        "permission set guest --read .*",
        "send --json -f saved",
        "worker --exec true --timeout 31m --idle-timeout 10ms",
    ],
)
@pytest.mark.sampled(6)
def test_a_password_from_stdin_is_read_once(command: str, shell: Shell, broker: TestBroker, listing: object) -> None:
    """With `--password-file -`, a command that logs in several times reads the password from stdin only once."""
    (shell.directory / "saved").write_text("")
    shell.environment["MQTOOL_URL"] = broker.url.replace("guest:guest", "guest:wrong")
    result = shell.run("mqtool", *command.split(), "--password-file", "-", stdin="guest\n")
    assert "password" not in result.stderr
    assert result.code in ((0, 3) if command.startswith("doctor") else (0,)), result.stderr


@on_any_broker
def test_wait_queues_share_one_line_on_a_terminal(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `list queues` sums up the wait queues in which mqtool keeps delayed messages: one line gives the
    number of these queues and of their messages. With --all or in a pipe, the command lists each wait queue.
    `top` shows the same queues.
    """
    shell.run("mqtool", "send", "-q", "jobs", "x")
    shell.run("mqtool", "send", "-q", "jobs", "--via", "ttl", "--delay", "1h", "y")
    shell.run("mqtool", "send", "-q", "jobs", "--via", "ttl", "--delay", "2h", "z")
    command = ("mqtool", "list", "queues", "--management", broker.management)
    sums = "+2 wait queues of mqtool with 2 messages (--all lists them)"
    assert on_terminal(shell, *command, "--no-color").stdout.split("\r\n")[1:] == ["jobs         1", sums, ""]
    assert "jobs.delay.1h" in on_terminal(shell, *command, "--all").stdout
    assert shell.run(*command).stdout.count("\n") == 3
    assert sums in on_terminal(shell, *command, "--watch", "50ms", keys=["q"], cue="q quit").stdout
    top = ("mqtool", "top", "--once", "--management", broker.management)
    shown = on_terminal(shell, *top).stdout
    assert ("+2 wait queues of mqtool (--all lists them)" in shown, "jobs.delay" in shown) == (True, False)
    assert "jobs.delay.1h" in on_terminal(shell, *top, "--all").stdout
    assert "jobs.delay.1h" in shell.run(*top).stdout


@on_any_broker
def test_list_bindings_fits_into_80_columns_on_a_terminal(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `list bindings` fits into 80 columns without cutting names. It prints a long name on a line of its
    own.
    """
    name = "invoices-of-the-european-branch-that-wait-to-be-paid"
    shell.run("mqtool", "queue", "declare", name)
    shell.run("mqtool", "exchange", "bind", "amq.topic", name, "orders.europe.invoices.#")
    shell.run("mqtool", "exchange", "bind", "amq.headers", name, "-H", "format=pdf")
    shell.run("mqtool", "exchange", "bind", "amq.topic", "amq.fanout", "a.*", "--to-exchange")
    command = ("mqtool", "list", "bindings", "--no-color", "--management", broker.management)
    assert sorted(line.rstrip() for line in on_terminal(shell, *command).stdout.split("\r\n")) == [
        "",
        *[f"    ──> {name}"] * 2,
        "+1 binding of the default exchange or mqtool's wait queues (--all lists them)",
        "amq.headers ── format=pdf",
        "amq.topic ── 'a.*' ──> exchange amq.fanout",
        "amq.topic ── 'orders.europe.invoices.#'",
    ]
