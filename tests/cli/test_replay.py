"""`recording replay` publishes each message to its exchange when it is due, and reports each loss."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties
from mqtool.codecs.amqp10_values import Symbol
from mqtool.message import Message
from mqtool.topology import Exchange, Queue
from tests.brokers import TestBroker, depth, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.protocol.raw_stream import OPEN, RawStream, string


def recording(shell: Shell, *messages: dict[str, object], name: str = "recording") -> str:
    """Write a recording of messages for queue jobs, a tenth of a second apart by default."""
    lines = [
        {
            "timestamp": f"2026-01-31T12:00:{number / 10:06.3f}Z",
            "exchange": "",
            "routing_key": "jobs",
            "queue": "jobs",
            "redelivered": False,
            "headers": {"n": number},
            "properties": {"delivery_mode": 2},
            "body": f"body {number}",
            **message,
        }
        for number, message in enumerate(messages)
    ]
    (shell.directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def received(shell: Shell, *options: str) -> list[dict[str, object]]:
    """Return the messages in queue jobs, without fields that differ each time they are received."""
    printed = shell.run("mqtool", "receive", "-q", "jobs", "--json", "--idle-timeout", IDLE, *options).stdout
    lines = [json.loads(line) for line in printed.splitlines()]
    return [{key: value for key, value in line.items() if key != "timestamp"} for line in lines]


def test_replay_publishes_the_recorded_messages_unchanged(shell: Shell, connection: Connection) -> None:
    """`recording replay` publishes the recorded messages in order, to their own exchanges, with the same routing keys,
    bodies, headers and properties.
    """
    channel = connection.channel()
    queue = channel.declare(Queue("jobs", durable=True, arguments={"x-queue-type": "quorum"}))
    exchange = channel.declare(Exchange("logs", "topic", durable=True))
    channel.bind(queue, exchange, "kern.#")
    properties = {"content_type": "text/plain", "headers": {"n": 1, "raw": b"\xff", "path": [{"hop": 3}]}}
    messages: Iterable[Message] = [
        Message(bytes([number, 255]), f"kern.{number}", "logs", properties, f"id-{number}") for number in range(200)
    ]
    assert len(list(channel.publish(messages))) == 200
    printed = shell.run("mqtool", "receive", "-q", "jobs", "--json", "-c", "200").stdout
    (shell.directory / "recording").write_text(printed)
    before = [{**json.loads(line), "timestamp": ""} for line in printed.splitlines()]

    result = shell.run("mqtool", "recording", "replay", "recording", "--speed", "max")

    assert result.code == 0, result.stderr
    assert "200 confirmed in " in result.stderr
    assert [{**line, "timestamp": ""} for line in received(shell)] == before


#: Written by tap and receive of an early mqtool, when lines had no version.
UNVERSIONED = Path(__file__).parents[1] / "recordings" / "unversioned.ndjson"


def test_a_recording_of_an_early_version_of_mqtool_is_replayed(shell: Shell, connection: Connection) -> None:
    """In recordings of early versions of mqtool, the lines do not name the version of the format. Such a recording can
    be replayed, scrubbed and sent, and keeps its bodies, headers and properties.
    """
    channel = connection.channel()
    queue = channel.declare(Queue("jobs"))
    channel.bind(queue, channel.declare(Exchange("shop", "topic", durable=True)), "#")
    lines = UNVERSIONED.read_text()
    recorded = [json.loads(line) for line in lines.splitlines()]
    kept = ("exchange", "routing_key", "headers", "properties", "body", "body_base64")

    assert shell.run("mqtool", "recording", "replay", "--speed", "max", stdin=lines).code == 0

    got = {line["routing_key"]: line for line in received(shell)}
    for line in recorded:
        assert [got[line["routing_key"]].get(key) for key in kept] == [line.get(key) for key in kept]
    assert {line["version"] for line in got.values()} == {1}
    everything = "body,headers,properties,routing_key"
    assert shell.run("mqtool", "recording", "scrub", "--keep", everything, stdin=lines).stdout == lines
    assert shell.run("mqtool", "send", "--json", stdin=lines).code == 0
    assert len(received(shell)) == 4


@pytest.mark.parametrize(
    "command",
    [
        "mqtool recording replay newer.ndjson",
        "mqtool recording scrub newer.ndjson",
        "mqtool recording reconcile newer.ndjson newer.ndjson",
        "mqtool send --json -f newer.ndjson",
    ],
)
@on_any_broker
@pytest.mark.sampled(1)
def test_a_recording_in_a_newer_format_is_refused(shell: Shell, command: str) -> None:
    """If a recording is in a newer version of the recording format than mqtool knows, each command that reads
    recordings exits with 65, and the hint says to upgrade mqtool.
    """
    (shell.directory / "newer.ndjson").write_text('{"version": 2, "content": ["Hello"], "route": "jobs"}\n')
    result = shell.script(command)
    assert (result.code, result.stdout) == (65, "")
    assert "is in version 2 of the NDJSON format, and this mqtool reads up to version 1" in result.stderr
    assert result.stderr.splitlines()[-1] == "hint: upgrade mqtool"


def test_replay_counts_and_keeps_unroutable_messages(shell: Shell) -> None:
    """If some messages are unroutable, `recording replay --failed-to FILE` counts them as returned, writes them to
    FILE, and exits with 3. If the exchange given with --to-exchange does not exist, `recording replay` names this
    exchange and exits with 75.
    """
    name = recording(shell, {}, {"routing_key": "nobody"}, {})
    shell.run("mqtool", "queue", "declare", "jobs")

    result = shell.run("mqtool", "recording", "replay", name, "--speed", "max", "--failed-to", "failed")

    assert result.code == 3, result.stderr
    assert "2 confirmed, 1 returned" in result.stderr
    assert "1 of 3 messages failed" in result.stderr
    assert json.loads((shell.directory / "failed").read_text())["body"] == "body 1"
    assert shell.run("mqtool", "recording", "replay", name, "--speed", "max", "--no-mandatory").code == 0
    nowhere = shell.run("mqtool", "recording", "replay", name, "--speed", "max", "--to-exchange", "nope")
    assert (nowhere.code, "no exchange 'nope'" in nowhere.stderr) == (75, True), nowhere.stderr


def forged(broker: TestBroker, stream: str, headers: dict[str, Any], reply_to: str | None = None) -> None:
    """Publish a message to a stream over the stream protocol, as every client that can write to the stream may do. The
    message has these headers, and its annotations claim that it was published to the queue payroll.
    """
    place = urlsplit(broker.streams)
    client = RawStream(place.hostname or "", place.port or 0)
    client.log_in()
    assert client.request(OPEN, string(broker.vhost)).code == 1
    assert client.create(stream) in (1, 5)
    client.declare_publisher(1, stream)
    claims: dict[Any, Any] = {Symbol("x-exchange"): "", Symbol("x-routing-key"): "payroll"}
    message = Amqp10Message(
        message_annotations=claims,
        properties=BareProperties(reply_to=reply_to) if reply_to else (),
        application_properties=headers,
        body=b"\0Su\xa0\6forged",
    )
    client.publish(1, 1, message.encode())
    client.confirmed(1)
    client.close()


@pytest.mark.parametrize("command", ["mqtool recording replay", "mqtool send --json"])
@pytest.mark.parametrize(
    "read", ["receive-stream -q news -c 1", "receive -q news --offset first -c 1", "peek news -c 1", "tap --firehose"]
)
@pytest.mark.sampled(3)
def test_a_message_read_from_a_stream_is_published_to_the_stream_and_not_to_a_forged_destination(
    shell: Shell, broker: TestBroker, connection: Connection, read: str, command: str
) -> None:
    """In a stream, a publisher can forge a message's exchange, routing key and offset. If a message was read from a
    stream, `recording replay` and `send --json` therefore publish it to the same stream, and print a warning. With
    --trust-streams, they use the exchange and the routing key that the message contains.
    """
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    channel = connection.channel()
    channel.declare(Queue("payroll", durable=True))
    forged(broker, "news", {"x-stream-offset": "none"})
    if "firehose" in read:
        tap = shell.start("mqtool", "tap", "--firehose", "-q", "news", "--json", "-c", "1").wait_until_ready()
        shell.script("mqtool receive -q news --offset first -c 1")
        lines = tap.wait().stdout
    else:
        lines = shell.script(f"mqtool {read} --json").stdout
    assert json.loads(lines)["routing_key"] == "payroll"

    result = shell.run(*command.split(), stdin=lines)

    assert (result.code, depth(broker, "payroll")) == (0, 0), result.stderr
    assert "the broker does not check the exchange and keys in messages of streams" in result.stderr
    assert shell.run("mqtool", "receive-stream", "-q", "news", "--raw", "-c", "2").stdout == "forged\nforged\n"
    trusting = shell.run(*command.split(), "--trust-streams", stdin=lines)
    assert (trusting.code, "the broker does not" in trusting.stderr) == (0, False), trusting.stderr
    assert depth(broker, "payroll") == 1


@pytest.mark.parametrize(
    "command",
    [
        "send --json -q copies",
        "send --json -e audit",
        "send --json -r copies",
        "new-task --json -q copies",
        "emit-log direct --json -e audit",
        "send-delayed --json --delay 0s -e audit -r copies",
        "recording replay --to-queue copies",
        "recording replay --to-exchange audit",
        "recording replay --to-key copies",
    ],
)
@pytest.mark.once_on_rabbitmq
@pytest.mark.sampled(3)
def test_cc_and_bcc_of_an_input_message_have_no_effect_if_the_command_line_names_the_destination(
    shell: Shell, broker: TestBroker, connection: Connection, command: str
) -> None:
    """If the command line of a publishing command names the exchange, the routing key or the queue, the headers CC and
    BCC in the input have no effect: the broker sends no copies. This is true of messages received from a queue and of
    messages received from a stream. If a CC header is given on the command line, the broker does send a copy.
    """
    channel = connection.channel()
    exchange = channel.declare(Exchange("audit", "direct", durable=True))
    for name in ("payroll", "copies"):
        channel.bind(channel.declare(Queue(name, durable=name == "payroll")), exchange, name)
    copies_to = {"CC": ["payroll"], "BCC": ["payroll"]}
    line = {"exchange": "", "routing_key": "copies", "queue": "copies", "redelivered": False, "headers": copies_to}
    lines = json.dumps({**line, "body": "forged"}) + "\n"
    lines += json.dumps({**line, "headers": {**copies_to, "x-stream-offset": 5}, "body": "from a stream"}) + "\n"

    result = shell.run("mqtool", *command.split(), stdin=lines)

    assert (result.code, depth(broker, "copies"), depth(broker, "payroll")) == (0, 2, 0), result.stderr
    option = "--set-header" if "replay" in command else "-H"
    shell.run("mqtool", *command.split(), option, 'CC:=["payroll"]', stdin=lines)
    assert depth(broker, "payroll") == 2


def test_a_copy_of_a_message_does_not_have_the_user_id_of_the_original(shell: Shell, broker: TestBroker) -> None:
    """The property user_id of a received message names the user who published the original. `send --json` therefore
    sends a copy of this message without its user_id, even if the same user sends the copy. A user_id given on the
    command line is kept.
    """
    user = parse_addresses(broker.url)[0].user
    line = {"exchange": "", "routing_key": "jobs", "queue": "s", "redelivered": False, "headers": None, "body": "x"}
    lines = "".join(json.dumps({**line, "properties": {"user_id": name}}) + "\n" for name in (user, "mallory"))

    result = shell.run("mqtool", "send", "--json", "-q", "jobs", stdin=lines)

    assert result.code == 0, result.stderr
    given = shell.run("mqtool", "send", "--json", "-q", "jobs", "--property", f"user-id={user}", stdin=lines)
    assert given.code == 0, given.stderr
    assert [message["properties"] for message in received(shell)] == [{}, {}, *[{"user_id": user}] * 2]


@pytest.mark.parametrize("command", ["recording replay", "send --json"])
def test_replay_and_send_json_remove_the_address_for_direct_replies_from_a_streams_messages(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """The broker refuses a message with the reply_to amq.rabbitmq.reply-to unless the client consumes direct replies,
    but a client that writes to a stream can store this reply_to there. `recording replay` and `send --json` publish
    such a message without its reply_to, and then publish the following messages.
    """
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    forged(broker, "news", {}, "amq.rabbitmq.reply-to")
    forged(broker, "news", {})
    lines = shell.run("mqtool", "receive", "-q", "news", "--offset", "first", "-c", "2", "--json").stdout
    assert json.loads(lines.splitlines()[0])["properties"]["reply_to"] == "amq.rabbitmq.reply-to"

    result = shell.run("mqtool", *command.split(), stdin=lines)

    assert result.code == 0, result.stderr
    found = shell.run("mqtool", "receive", "-q", "news", "--offset", "first", "-c", "4", "--json").stdout.splitlines()
    assert ["reply_to" in json.loads(line)["properties"] for line in found] == [True, False, False, False]


@on_any_broker
def test_the_docs_recipe_for_copying_a_stream_ignores_cc_and_bcc(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """If messages of a stream are copied with `receive-stream --json` and `send --json -q`, as the documentation shows,
    a message with the headers CC and BCC is copied only to the queue that -q names.
    """
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    connection.channel().declare(Queue("payroll", durable=True))
    forged(broker, "news", {"CC": ["payroll"], "BCC": ["payroll"]})

    result = shell.script("mqtool receive-stream -q news --json -c 1 | mqtool send --json -q copies")

    assert (result.code, depth(broker, "copies"), depth(broker, "payroll")) == (0, 1, 0), result.stderr


@on_any_broker
def test_replay_selects_messages_and_keeps_the_time_between_them(shell: Shell, connection: Connection) -> None:
    """`recording replay` publishes only the messages that --since, --until and --where select, and keeps the recorded
    time between them. With --to-queue, the messages go to another queue. With --set-header and --drop-header, their
    headers change.
    """
    connection.channel().declare(Queue("jobs", durable=True))
    name = recording(shell, *[{"routing_key": "elsewhere"}] * 9)

    started = time.monotonic()
    result = shell.run(
        "mqtool", "recording", "replay", name, "--since", "200ms", "--until", "2026-01-31T12:00:00.700Z",
        "--where", "headers.n!=4",
        "--to-queue", "jobs", "--set-header", "again:=true", "--drop-header", "n", "--loop", "2",
    )  # fmt: skip

    assert result.code == 0, result.stderr
    assert time.monotonic() - started >= 0.8
    came = received(shell, "--no-declare")
    assert [message["body"] for message in came] == [f"body {number}" for number in (2, 3, 5, 6)] * 2
    assert came[0]["headers"] == {"again": True}


@on_any_broker
def test_replay_keeps_the_unsent_messages_after_ctrl_c(shell: Shell, connection: Connection) -> None:
    """After Ctrl-C, `recording replay --failed-to FILE` says how many messages were confirmed, writes all others to
    FILE, and exits with 130, even if the recording's last line does not end with a newline.
    """
    connection.channel().declare(Queue("jobs", durable=True))
    name = recording(shell, {}, {"timestamp": "2026-01-31T18:00:00Z"}, {"timestamp": "2026-01-31T18:00:01Z"})
    file = shell.directory / name
    file.write_text(file.read_text().removesuffix("\n"))

    running = shell.start("mqtool", "recording", "replay", name, "-v", "--failed-to", "rest")
    result = running.wait_for_stderr("[x] Replayed 6 bytes to queue jobs").interrupt().wait()

    assert result.code == 130
    assert "1 confirmed in " in result.stderr
    kept = (shell.directory / "rest").read_text().splitlines()
    assert [json.loads(line)["body"] for line in kept] == ["body 1", "body 2"]


@on_any_broker
def test_replay_publishes_each_line_from_a_pipe_as_it_arrives(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """`recording replay` publishes each message from a pipe as soon as its line arrives, while the pipe is
    still open.
    """
    connection.channel().declare(Queue("jobs", durable=True))
    lines = (shell.directory / recording(shell, {}, {})).read_bytes().splitlines(keepends=True)
    running = shell.start("mqtool", "recording", "replay", stdin=PIPE)
    assert running.process.stdin is not None
    for count, line in enumerate(lines, 1):
        running.write(line)
        wait_until(lambda count=count: depth(broker, "jobs") == count, "the line has arrived")  # type: ignore[misc]
    running.process.stdin.close()
    assert running.wait().code == 0


def test_replay_dry_run_prints_times_and_destinations(lonely_shell: Shell) -> None:
    """`recording replay --dry-run` prints when and where each message would be published, and needs no broker."""
    first = recording(lonely_shell, {}, {"exchange": "logs", "routing_key": "a\tb"}, name="first")
    second = recording(lonely_shell, {"timestamp": "2026-01-31T12:00:05Z"}, name="second")
    result = lonely_shell.run("mqtool", "recording", "replay", first, second, "--dry-run", "--speed", "2")
    assert result.stdout == (
        "0.000s\tqueue jobs\t6 bytes\n0.050s\tlogs:a\\tb\t6 bytes\n2.500s\tqueue jobs\t6 bytes\n"
    )  # fmt: skip
    assert result.stderr == "3 messages would be sent in 2.5 s; nothing was sent: --dry-run\n"


BAD_LINES: dict[str, dict[str, Any]] = {
    "expiration": {"properties": {"expiration": "99999999999999999999"}},
    "encoded": {"headers": {"a": {"$encoded": "Rv////8="}}},
    "property": {"properties": {"type": "\ud800"}},
    "exchange": {"exchange": "\ud800"},
    "number": {"headers": {"a": 123456789012345678901234567890}},
    "decimal": {"headers": {"a": {"$decimal": "1E999999999"}}},
    "time": {"headers": {"a": {"$timestamp": -1}}},
    "delay": {"delay": "60d"},
    "large": {"headers": {"a": "x" * 131_072}},
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
@pytest.mark.sampled(2)
def test_replay_and_its_dry_run_end_at_a_line_that_cannot_be_sent(shell: Shell, bad: dict[str, Any]) -> None:
    """If a line of the recording cannot be sent, for example because its headers are larger than a frame of RabbitMQ's
    default size, `recording replay` sends the messages before it, names the line, and exits with 65. With --dry-run, it
    prints the same error, and exits with the same code.
    """
    name = recording(shell, {}, bad, {})
    shell.run("mqtool", "queue", "declare", "jobs")

    real, dry = (shell.run("mqtool", "recording", "replay", name, *more) for more in ([], ["--dry-run"]))

    assert (real.code, dry.code) == (65, 65), real.stderr + dry.stderr
    [error] = [line for line in dry.stderr.splitlines() if line.startswith("mqtool: ")]
    assert error.startswith("mqtool: line 2 ")
    assert error in real.stderr
    assert [line["body"] for line in received(shell)] == ["body 0"]


def test_replay_dry_run_refuses_a_delayed_message_unless_no_mandatory_is_given(lonely_shell: Shell) -> None:
    """`recording replay` publishes with the mandatory flag, which does not work for a delayed message: such a message
    is routed only when it is due. If a line of the recording has a delay, `recording replay --dry-run` therefore exits
    with 2, and the hint is to add --no-mandatory. With --no-mandatory, it exits with 0.
    """
    name = recording(lonely_shell, {"delay": "49d"})

    result = lonely_shell.run("mqtool", "recording", "replay", name, "--dry-run")

    assert (result.code, "add --no-mandatory" in result.stderr) == (2, True), result.stderr
    assert lonely_shell.run("mqtool", "recording", "replay", name, "--dry-run", "--no-mandatory").code == 0


def test_replay_exits_with_2_if_a_header_on_the_command_line_is_invalid(lonely_shell: Shell) -> None:
    """If a header given with --set-header is not valid UTF-8, `recording replay` exits with 2, and the error does not
    blame a line of the recording.
    """
    name = recording(lonely_shell, {})

    result = lonely_shell.run("mqtool", "recording", "replay", name, "--dry-run", "--set-header", r'a:="\ud800"')

    assert (result.code, "line 1" in result.stderr) == (2, False), result.stderr


@on_any_broker
def test_replay_names_an_invalid_line_or_option(shell: Shell, broker: TestBroker) -> None:
    """If a line of the recording is invalid, `recording replay` prints the line's number and exits with 65. If options
    contradict each other or a value is invalid, the command names the options, exits with 2, and publishes nothing.
    With --dry-run, errors and exit codes are the same.
    """
    good = recording(shell, {})
    shell.run("mqtool", "queue", "declare", "jobs")
    (shell.directory / "bad").write_text('{"exchange": "", "body": "x"}\n')
    for words, code, said in (
        (["bad"], 65, "mqtool: line 1 names neither an exchange nor a queue\nhint: --to-exchange or --to-queue"),
        ([good, "bad"], 65, "mqtool: bad: line 1 names neither"),
        ([good, "missing"], 2, "mqtool: cannot read missing: No such file or directory"),
        ([good, "--speed", "2", "--rate", "5/s"], 2, "--speed and --rate cannot be combined"),
        ([good, "--speed", "0"], 2, "'0' is not a speed such as 2, 0.5 or max"),
        ([good, "--since", "soon"], 2, "'soon' is neither a time such as"),
        ([good, "--to-queue", "a", "--to-key", "b"], 2, "--to-queue cannot be combined with --to-exchange"),
        (["--loop", "2"], 2, "--loop needs files"),
    ):
        for more in (["--dry-run"], []):
            before = depth(broker, "jobs")
            result = shell.run("mqtool", "recording", "replay", *words, *more, stdin="")
            assert (result.code, said in result.stderr) == (code, True), result.stderr
            # A real run publishes the messages before an invalid line.
            assert depth(broker, "jobs") - before == (words == [good, "bad"] and not more), words
