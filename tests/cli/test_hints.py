"""Hints about usage errors: each leads to a command that exists."""

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import on_any_broker
from tests.cli.shell import Shell
from tests.cli.terminal import on_terminal


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["emit-log", "x-delayed-message", "x"], "mqtool send-delayed"),
        (["emit-log", "default", "x"], "mqtool send -q QUEUE"),
        (["list", "queue"], "did you mean 'mqtool list queues'?"),
        (["move", "a", "--to", "b", "--declare"], "hint: 'mqtool queue declare NAME' declares a queue"),
        (["send-log", "x"], "did you mean 'mqtool emit-log'?"),
        (["redrive", "jobs"], "did you mean 'mqtool dlq redrive'?"),
        (["delete", "jobs"], "did you mean 'mqtool queue delete'?"),
        (["purge", "jobs"], "did you mean 'mqtool queue purge'?"),
        (["bind", "logs", "jobs"], "did you mean 'mqtool exchange bind'?"),
        (["receive", "hello"], "to name a queue: mqtool receive -q hello"),
        (["tutorial", "1"], "to read it: mqtool tutorial show 1; to run it: mqtool tutorial run 1"),
        (["worker", "--exec", "sleep", "1"], "quote the program and its arguments: --exec 'sleep …'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.sampled(5)
def test_a_usage_error_names_what_was_probably_meant(lonely_shell: Shell, command: list[str], hint: str) -> None:
    """If a command line is wrong, mqtool exits with 2. The hint suggests what the user probably meant: a similar
    command, a command of a group such as `dlq`, an option, or an argument in quotes.
    """
    refused = lonely_shell.run("mqtool", *command)
    assert (refused.code, hint in refused.stderr) == (2, True), refused.stderr


def test_the_hint_for_a_queue_name_with_a_dash_contains_no_command_line_if_a_url_was_given(lonely_shell: Shell) -> None:
    """A queue name such as -5 needs `--` before it. The hint for `queue delete -5` therefore contains the command
    line with `--`. The hint for `queue delete -5 --url URL` does not contain a command line, because a command line
    without the URL would delete queue `-5` of another broker.
    """
    refused = lonely_shell.run("mqtool", "queue", "delete", "-5", "--url", "localhost:1")
    assert refused.stderr.splitlines()[1] == "hint: if it is not an option, put -- before it"
    refused = lonely_shell.run("mqtool", "queue", "delete", "-5")
    assert refused.stderr.splitlines()[1] == "hint: if it is not an option, put -- before it: mqtool queue delete -- -5"


def test_a_tutorial_can_be_named_like_its_file(lonely_shell: Shell) -> None:
    """`tutorial show hello_world`, with an underscore as in the name of the tutorial's file, shows `hello-world`."""
    shown = lonely_shell.run("mqtool", "tutorial", "show", "hello_world")
    assert (shown.code, "mqtool send" in shown.stdout) == (0, True)


@pytest.mark.parametrize(
    ("typed", "name"), [("pubsub", "publish_subscribe"), ("streams", "stream_hello_world"), ("7", "publisher_confirms")]
)
def test_a_tutorial_can_be_named_by_its_number_or_a_common_short_name(
    lonely_shell: Shell, typed: str, name: str
) -> None:
    """`tutorial show` accepts a tutorial's number, or a common short name such as `pubsub` or `streams`, instead of the
    tutorial's full name.
    """
    assert f"{name}.py" in lonely_shell.run("mqtool", "tutorial", "show", typed).stdout


@pytest.mark.parametrize("command", ["show", "run", "try"])
def test_the_error_about_an_unknown_tutorial_number_names_the_valid_numbers(lonely_shell: Shell, command: str) -> None:
    """`tutorial show 8`, `tutorial run 8` and `tutorial try 8` exit with 2 and say that RabbitMQ's tutorials are
    numbered 1 to 7.
    """
    refused = lonely_shell.run("mqtool", "tutorial", command, "8")
    assert (refused.code, refused.stderr.splitlines()) == (
        2,
        [
            "mqtool: there is no tutorial 8: RabbitMQ's are numbered 1 to 7",
            "hint: the others have names: mqtool tutorial list",
        ],
    )


def test_broker_up_says_how_to_start_a_broker_at_the_port_in_mqtool_url(lonely_shell: Shell) -> None:
    """If nothing listens on the port in MQTOOL_URL, `broker up` exits with 69, and its hint is the command that starts
    a broker on that port.
    """
    lonely_shell.environment["MQTOOL_URL"] = "amqp://localhost:1"
    refused = lonely_shell.run("mqtool", "broker", "up")
    assert (refused.code, "hint: start one at its port: mqtool broker up --port=1" in refused.stderr) == (69, True)


@on_any_broker
def test_receive_log_warns_if_unquoted_patterns_became_file_names(shell: Shell) -> None:
    """If every pattern of `receive-log topic` is the name of a file in the current directory, the shell has probably
    replaced an unquoted `*` with file names. The command therefore suggests putting patterns in quotes.
    """
    for name in ("notes.txt", "todo"):
        (shell.directory / name).touch()
    receive = ("mqtool", "receive-log", "topic", "--idle-timeout", "10ms")
    assert (
        "put patterns in quotes, such as 'kern.*', or '#' for all topics"
        in shell.run(*receive, "notes.txt", "todo").stderr
    )
    assert "is the name of a file" not in shell.run(*receive, "kern.*", "todo").stderr


@on_any_broker
def test_emit_log_headers_says_how_to_send_a_header(shell: Shell) -> None:
    """The words of `receive-log headers` are headers, but those of `emit-log headers` are text. If the first one looks
    like a header, a terminal is told so.
    """
    told = on_terminal(shell, "mqtool", "emit-log", "headers", "type=log", "up").stdout
    assert "'type=log' was sent as text; to send it as a header: -H type=log" in told
    assert "as text" not in on_terminal(shell, "mqtool", "emit-log", "headers", "-H", "type=log", "up=1").stdout


@on_any_broker
def test_emit_log_warns_if_an_unquoted_star_became_file_names(shell: Shell) -> None:
    """If the shell replaces the unquoted `*` in `mqtool emit-log topic * hi` with the names of all files in the current
    directory, the command prints a notice with the question "was it a * without quotes?". If the arguments contain the
    name of only one of the files, it prints no such notice.
    """
    for name in ("notes.txt", "todo"):
        (shell.directory / name).touch()
    asked = "was it a * without quotes?"
    assert asked in " ".join(shell.script("mqtool emit-log topic * hi").stderr.split())
    assert asked not in " ".join(shell.script("mqtool emit-log topic todo hi").stderr.split())


def test_an_option_before_the_command_gets_a_hint_about_the_order(lonely_shell: Shell) -> None:
    """If an option comes before the command, as in `mqtool -u URL receive`, mqtool exits with 2, and the hint says that
    options follow the command.
    """
    refused = lonely_shell.run("mqtool", "-u", "localhost", "receive")
    assert (refused.code, "hint: options follow the command: mqtool COMMAND -u …\n" in refused.stderr) == (2, True)


def test_a_queue_given_as_an_option_gets_a_hint_about_the_argument(lonely_shell: Shell) -> None:
    """`peek -q hello` exits with 2, and the hint shows the command with the queue as an argument."""
    refused = lonely_shell.run("mqtool", "peek", "-q", "hello")
    assert (refused.code, "hint: it is an argument: mqtool peek hello\n" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("programs", "exits with 1 if every attempt failed, with 3 if some succeeded"),
        ("messages", "Routing key; in a super stream, chooses the partition"),
        ("messages", "If stdin is an empty pipe or file, or FILE is empty, nothing is sent."),
        ("messages", "If a line is not valid NDJSON, that line and all later ones are not saved"),
    ],
)
@pytest.mark.sampled(2)
def test_help_topics_describe_exit_codes_empty_input_unsaved_lines_and_partitions(
    lonely_shell: Shell, topic: str, says: str
) -> None:
    """`mqtool help programs` says when `worker` exits with 1 or 3. `mqtool help messages` says that empty input sends
    nothing, and that --failed-to saves neither an invalid line nor any later one. It also says that the routing key
    determines the partition of a super stream.
    """
    assert says in " ".join(lonely_shell.run("mqtool", "help", topic).stdout.split())


@pytest.mark.parametrize(
    "words", [["list", "users"], ["list", "users", "--management", "http://localhost:1"]], ids=" ".join
)
def test_the_hint_for_an_embedded_broker_without_a_management_api_names_broker_serve(
    lonely_shell: Shell, words: list[str]
) -> None:
    """If a command needs the management API and the embedded broker has none, the hint is `broker serve
    --management-port=PORT`, where PORT is the first port on which the command looks for the management API. The hint
    does not mention `rabbitmq-plugins`.
    """
    with EmbeddedBroker() as broker:
        refused = lonely_shell.run("mqtool", *words, "-u", broker.url)
        port = int(broker.url.rpartition(":")[2].partition("/")[0])
    beside = port + 10000 if port + 10000 < 65536 else 15672
    assert f"'mqtool broker serve --management-port={beside}'; or name it with --management\n" in refused.stderr
    assert (refused.code, "rabbitmq-plugins" in refused.stderr) == (69, False)
