"""Delayed messages: `send-delayed`, `receive-delayed`, and --delay and --at of the other commands."""

import json
import re
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from subprocess import PIPE
from typing import Any

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.delays.delay_plugin import has_plugin
from mqtool.tutorials.dialects import DELAY_EXCHANGE
from tests.brokers import Restartable, TestBroker, depth, large, on_any_broker, own_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal

WAITING = " [*] Waiting for messages. To exit press CTRL+C\n"
BY_EXCHANGE = "messages wait in exchange "
IN_QUEUES = "messages wait in queues: "
QUORUM = "messages wait in mqtool's wait queues, because the delay plugin can lose messages to a quorum queue"


@pytest.fixture
def plugin(connection: Connection) -> bool:
    """True if the broker has the delayed message plugin."""
    return has_plugin(connection.channel(), DELAY_EXCHANGE._replace(name="has-plugin"))


@pytest.fixture(params=["plugin", "ttl"])
def via(request: pytest.FixtureRequest, plugin: bool) -> str:
    if request.param == "plugin" and not plugin:
        pytest.skip("this broker has no delayed message plugin")
    return str(request.param)


def test_send_delayed_and_receive_delayed_print_the_tutorials_lines(shell: Shell, plugin: bool) -> None:
    """As in the tutorial on delayed messages, `send-delayed` prints when the message is due, and `receive-delayed`
    prints how late the message arrived.
    """
    receiver = shell.start("mqtool", "receive-delayed", "-c", "1").wait_until_ready()
    sent = shell.run("mqtool", "send-delayed", "--delay", "100ms", "Hello", "later")
    received = receiver.wait()

    *notices, line = sent.stderr.splitlines()
    assert [notice[: len(IN_QUEUES)] for notice in notices] == ([] if plugin else [IN_QUEUES])
    assert re.fullmatch(r" \[x\] Sent 'Hello later', due at \d\d:\d\d:\d\d", line)
    assert re.fullmatch(r" \[x\] Received, [\d,]+ ms late: Hello later\n", received.stdout)
    assert (received.stderr, received.code, sent.code) == (WAITING, 0, 0)


@on_any_broker
def test_send_delayed_warns_if_no_queue_is_bound_with_its_routing_key(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `send-delayed` warns if no queue is bound to the exchange with the message's routing key, because
    the broker would drop the message. So does `send --json` for a delayed message in its input. `receive-delayed`
    prints the routing key with which it binds its queue.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    receiver = shell.start("mqtool", "receive-delayed", "-e", "reminders", "-c", "1").wait_until_ready()
    assert (
        "queue 'delay_queue' is bound to exchange 'reminders' with key 'delay_queue'; to use another key: -r"
        in receiver.stderr
    )
    send = ("mqtool", "send-delayed", "-e", "reminders", "--delay", "50ms", "x")
    unbound = " ".join(on_terminal(shell, *send, "-r", "key").stdout.split())
    assert "no queue is bound to exchange 'reminders' by 'key' now: the broker drops messages" in unbound
    assert "no queue" not in on_terminal(shell, *send).stdout
    line = {"body": "x", "exchange": "amq.direct", "routing_key": "nobody", "delay": "1m"}
    (shell.directory / "saved").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"exchange": "", "routing_key": "delay_queue"})
    )
    saved = " ".join(on_terminal(shell, "mqtool", "send", "--json", "-f", "saved").stdout.split())
    assert saved.count("no queue is bound to exchange") == saved.count("to exchange 'amq.direct' by 'nobody' now") == 1
    assert receiver.wait().code == 0


def test_send_delayed_can_start_before_receive_delayed(shell: Shell, via: str) -> None:
    """If `send-delayed` sends a message before `receive-delayed` starts, the message waits in the queue until
    `receive-delayed` prints it.
    """
    sent = shell.run("mqtool", "send-delayed", "--delay", "20ms", "--via", via, "--quiet", "x")
    assert (sent.stderr, sent.code) == ("", 0)
    assert shell.run("mqtool", "receive-delayed", "-c", "1", "--raw").stdout == "x\n"


@pytest.mark.once_on_rabbitmq("via")
@pytest.mark.parametrize(
    ("receive", "send"),
    [
        (["receive"], ["send"]),
        (["receive", "-q", "mine", "--declare"], ["send", "-q", "mine"]),
        (["worker"], ["new-task"]),
        (["receive-log", "fanout"], ["emit-log", "fanout"]),
        (["receive-log", "direct", "error"], ["emit-log", "direct", "error"]),
        (["receive-log", "topic", "kern.*"], ["emit-log", "topic", "kern.info"]),
        (["receive-log", "headers", "a=1"], ["emit-log", "headers", "-H", "a=1"]),
    ],
    ids=lambda words: " ".join(words),
)
@pytest.mark.sampled(4)
def test_each_publishing_command_accepts_a_delay(shell: Shell, via: str, receive: list[str], send: list[str]) -> None:
    """If a publishing command such as `send` or `emit-log` is given --delay, the message reaches the receiver, but
    not before it is due.
    """
    receiver = shell.start("mqtool", *receive, "-c", "1", "-F", "%b %l").wait_until_ready()
    sent = shell.run("mqtool", *send, "later", "--delay", "150ms", "--via", via)
    body, late = receiver.wait().stdout.split()

    assert sent.code == 0, sent.stderr
    assert body == "later"
    assert int(late) >= 0


@pytest.mark.parametrize(
    ("command", "with_plugin", "without"),
    [
        ("send", "quorum", "quorum"),
        ("send -q classic --queue-type classic", "plugin", "classic"),
        ("send -r theirs", "quorum", "quorum"),
        ("emit-log fanout", "plugin", "classic"),
        ("emit-log fanout -e lasting --durable", "quorum", "quorum"),
        ("send-delayed", "plugin", "quorum"),
        ("send-delayed -r theirs", "quorum", "quorum"),
    ],
)
@pytest.mark.sampled(4)
def test_via_auto_chooses_the_plugin_or_wait_queues(
    shell: Shell, broker: TestBroker, plugin: bool, command: str, with_plugin: str, without: str
) -> None:
    """With --delay and the default --via auto, the destination decides where messages wait. For an existing queue or
    a durable exchange, for example, they wait in quorum wait queues, even if the broker has the delayed message
    plugin. For a classic queue that the command declares, or for a non-durable exchange, they wait in the plugin or,
    if the broker lacks it, in classic wait queues.
    """
    broker.api("PUT", f"queues/{broker.vhost}/theirs", {"durable": True})
    sent = shell.run("mqtool", *command.split(), "x", "--delay", "1h")
    queues: Any = broker.api("GET", f"queues/{broker.vhost}")
    waiting = [queue["arguments"].get("x-queue-type", "classic") for queue in queues if ".delay." in queue["name"]]
    expected = with_plugin if plugin else without
    assert (waiting or ["plugin"]) == [expected], sent.stderr
    assert sent.stderr.startswith(BY_EXCHANGE if expected == "plugin" else (IN_QUEUES, QUORUM))
    if broker.kind == "embedded":  # it has the plugin, even if the RabbitMQ that it behaves like does not
        assert "the embedded broker has" in sent.stderr or expected != "plugin"


def test_exchange_declare_without_the_delayed_message_plugin_suggests_delayed_relay(lonely_shell: Shell) -> None:
    """If the broker lacks the delayed message plugin, `exchange declare … x-delayed-message` exits with 78, and the
    hint suggests `delayed relay`.
    """
    with EmbeddedBroker(like="4.3") as broker:
        refused = lonely_shell.run("mqtool", "exchange", "declare", "later", "x-delayed-message", "-u", broker.url)
    assert refused.code == 78
    assert "unknown exchange type 'x-delayed-message': the delayed message plugin is missing\n" in refused.stderr
    assert re.search(r"; without it: mqtool delayed relay --url=\S+ later\n$", refused.stderr)


def test_send_with_a_delay_says_where_messages_wait_and_why(shell: Shell, broker: TestBroker, plugin: bool) -> None:
    """The first `send --delay` on a broker prints one line that says where delayed messages wait, and why. With --via
    or --quiet, `send` does not print this line.
    """
    classic = ["-q", "classic", "--queue-type", "classic", "--durable"]
    said = shell.run("mqtool", "send", "x", *classic, "--delay", "1h").stderr.splitlines()
    name = "the embedded broker" if broker.kind == "embedded" else "RabbitMQ"
    expected = f"{BY_EXCHANGE}'mqtool.delayed': {name}" if plugin else f"{IN_QUEUES}RabbitMQ"
    assert said[0].startswith(expected)
    assert said[1:] == [" [x] Sent 'x'"]
    assert shell.run("mqtool", "send", "x", "--delay", "1h", "--via", "ttl").stderr == " [x] Sent 'x'\n"
    assert shell.run("mqtool", "send", "x", "--delay", "1h", "--quiet").stderr == ""


@pytest.mark.parametrize(
    "command", ["send-delayed", "send", "send -q c --queue-type classic", "emit-log topic -e lasting --durable a.b"]
)
@pytest.mark.sampled(2)
def test_only_the_first_run_says_where_delayed_messages_wait(shell: Shell, plugin: bool, command: str) -> None:
    """If a command with --delay is run three times, only the first run prints where delayed messages wait."""
    said = [shell.run("mqtool", *command.split(), "x", "--delay", "1h").stderr.splitlines() for _ in range(3)]
    assert said[0][0].startswith("messages wait in ")
    assert [len(lines) for lines in said] == [2, 1, 1], said


def test_send_with_a_delay_uses_the_plugin_for_a_quorum_queue_only_with_via_plugin(shell: Shell, plugin: bool) -> None:
    """For a quorum queue, `send --delay` uses wait queues even if the broker has the delayed message plugin. The
    exception is --via plugin: `send` then uses the plugin, and warns that the plugin may lose messages. If the broker
    has the plugin, `receive-delayed` from a quorum queue prints the same warning.
    """
    said = shell.run("mqtool", "send", "x", "--delay", "1h").stderr.splitlines()
    assert said[0].startswith(QUORUM)
    if plugin:
        warned = shell.run("mqtool", "send", "-l", "--delay", "1h", "--via", "plugin", stdin="x\ny\n").stderr
        assert warned.count("warning: the plugin loses messages for a quorum queue") == 1
        classic = shell.run(
            "mqtool", "send", "x", "-q", "c", "--queue-type", "classic", "--delay", "1h", "--via", "plugin"
        )
        assert "warning" not in classic.stderr
        told = [
            shell.run("mqtool", "receive-delayed", "-q", kind, "--queue-type", kind, "--idle-timeout", "1ms").stderr
            for kind in ("quorum", "classic")
        ]
        assert ["warning: the plugin loses messages for a quorum queue" in text for text in told] == [True, False]


@large
def test_send_warns_once_about_10000_messages_in_wait_queues(shell: Shell) -> None:
    """When `send --via ttl` sends its 10,000th message to wait queues, it prints a warning about the large number of
    messages. It prints no second warning for later messages, and no warning at all if it sends only 100 messages.
    """
    for count, said in ((100, 0), (10_001, 1)):
        sent = shell.run(
            "mqtool", "send", "-l", "--delay=1h", "--via=ttl", "--queue=c", "--queue-type=classic", stdin="x\n" * count
        )
        assert f"{count:,} confirmed" in sent.stderr
        assert sent.stderr.count("many messages for wait queues") == said, count


@pytest.mark.parametrize(
    ("command", "queue"), [("send-delayed", "delay_queue"), ("send -q c --queue-type classic --durable", "c")]
)
def test_a_delayed_message_for_an_existing_quorum_queue_does_not_use_the_plugin(
    shell: Shell, broker: TestBroker, plugin: bool, command: str, queue: str
) -> None:
    """If the destination already exists as a quorum queue, a command with --delay uses quorum wait queues instead of
    the delayed message plugin, even if the command itself would have declared a classic queue.
    """
    broker.api("PUT", f"queues/{broker.vhost}/{queue}", {"durable": True, "arguments": {"x-queue-type": "quorum"}})
    sent = shell.run("mqtool", *command.split(), "-l", "--delay", "1h", stdin="x\ny\n")
    assert sent.stderr.count(QUORUM) == 1
    assert "2 confirmed" in sent.stderr
    queues: Any = broker.api("GET", f"queues/{broker.vhost}")
    [waiting] = [each for each in queues if ".delay." in each["name"]]
    assert waiting["arguments"]["x-queue-type"] == "quorum"
    if plugin:
        warned = shell.run("mqtool", *command.split(), "x", "--delay", "1h", "--via", "plugin")
        assert warned.stderr.count("warning: the plugin loses messages for a quorum queue") == 1


def test_send_delayed_uses_an_existing_exchange_that_does_not_delay(shell: Shell, plugin: bool) -> None:
    """If the exchange of `send-delayed` already exists, but is not an x-delayed-message exchange of the plugin,
    `send-delayed` delays messages in wait queues. With --via plugin, it exits with 78 and says how to delete the
    exchange.
    """
    if not plugin:
        pytest.skip("this broker has no delayed message plugin")
    shell.run("mqtool", "exchange", "declare", "early", "direct", "--durable")
    receiver = shell.start("mqtool", "receive-delayed", "-e", "early", "-c", "1", "--raw")
    receiver.wait_until_ready()
    sent = shell.run("mqtool", "send-delayed", "-e", "early", "--delay", "100ms", "x")
    assert (sent.code, receiver.wait().stdout) == (0, "x\n")
    refused = shell.run("mqtool", "send-delayed", "-e", "early", "--delay", "1s", "--via", "plugin", "x")
    assert refused.code == 78
    assert "mqtool exchange delete early" in refused.stderr


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("command", [["send", "x"], ["emit-log", "fanout", "x"], ["send-delayed", "x"]], ids=" ".join)
def test_via_plugin_without_the_plugin_suggests_wait_queues(shell: Shell, plugin: bool, command: list[str]) -> None:
    """If the broker lacks the delayed message plugin, a command with --via plugin exits with 78 and suggests --via
    ttl. If the plugin exists for this version of RabbitMQ, the hint also says how to enable it.
    """
    if plugin:
        pytest.skip("this broker has the delayed message plugin")
    refused = shell.run("mqtool", *command, "--delay", "1s", "--via", "plugin")

    what, hint = refused.stderr.splitlines()
    assert re.match(
        r"mqtool: RabbitMQ [\d.]+ (has no exchanges of type x-delayed-message|cannot have the delayed)", what
    )
    assert "--via ttl" in hint
    assert "rabbitmq-plugins enable rabbitmq_delayed_message_exchange" in hint or "cannot have" in what
    assert refused.code == 78


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--delay", "-5s"], "negative"),
        (["--delay", "5"], "not a duration"),
        (["--delay", "4294967296ms"], "at most 4294967295 ms (2^32 - 1)"),
        (["--delay", "50d"], "at most 4294967295 ms (2^32 - 1)"),
        (["--at", "2020-01-31T12:00"], "is in the past"),
        (["--at", "2020-01-31T12:00:00Z"], "is in the past"),
        (["--at", "9020-01-31"], "too far away"),
        (["--at", "soon"], "not a time such as"),
        (["--delay", "5s", "--at", "9020-01-31"], "too far away"),
        (["--delay", "5s", "--mandatory"], "--mandatory does not work with a delay"),
        (["--delay", "5s", "--via", "magic"], "'magic' is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_delay_or_time_is_a_usage_error(lonely_shell: Shell, options: list[str], says: str) -> None:
    """`send` with an invalid delay or time says what is wrong and exits with 2, without contacting a broker."""
    refused = lonely_shell.run("mqtool", "send", "x", *options, "-u", "amqp://127.0.0.1:1")
    assert says in refused.stderr
    assert refused.code == 2


def test_for_a_time_of_day_that_has_passed_send_suggests_the_same_time_tomorrow(lonely_shell: Shell) -> None:
    """If the value of --at is a time of day that has passed, `send` exits with 2 and suggests the same time with
    tomorrow's date.
    """

    def tomorrow() -> str:
        return f"{datetime.now() + timedelta(days=1):%Y-%m-%d}"

    days = [tomorrow()]
    refused = lonely_shell.run("mqtool", "send", "x", "--at", "00:00", "-u", "amqp://127.0.0.1:1")
    days.append(tomorrow())  # it may have become midnight
    assert refused.code == 2
    assert any(f"; for tomorrow: {day}T00:00\n" in refused.stderr for day in days)


def test_delay_and_at_cannot_be_combined(lonely_shell: Shell) -> None:
    """`send --delay 5s --at TIME` exits with 2 and says that the two options cannot be combined."""
    soon = f"{datetime.now() + timedelta(hours=1):%Y-%m-%dT%H:%M}"
    refused = lonely_shell.run("mqtool", "send", "x", "--delay", "5s", "--at", soon, "-u", "amqp://127.0.0.1:1")
    assert "--delay and --at cannot be combined" in refused.stderr
    assert refused.code == 2


def test_messages_sent_with_at_do_not_arrive_before_the_given_time(shell: Shell, via: str) -> None:
    """If `send -l --at TIME` sends three lines, all of them arrive, and none before TIME."""
    receiver = shell.start("mqtool", "receive", "-c", "3", "-F", "%b %t").wait_until_ready()
    due = datetime.now().astimezone() + timedelta(seconds=5)
    sent = shell.run("mqtool", "send", "-l", "--via", via, "--at", due.isoformat(), stdin="1\n2\n3\n")

    assert sent.code == 0, sent.stderr
    came = dict(line.split() for line in receiver.wait().stdout.splitlines())
    assert sorted(came) == ["1", "2", "3"]
    assert min(map(datetime.fromisoformat, came.values())) >= due.replace(microsecond=due.microsecond // 1000 * 1000)


def test_the_delay_of_each_line_starts_when_the_line_is_sent(shell: Shell, via: str) -> None:
    """With `send -l --delay`, the delay of each line starts when that line is sent. The first line can therefore arrive
    before the second one is typed.
    """
    receiver = shell.start("mqtool", "receive", "-c", "2", "--raw").wait_until_ready()
    sender = shell.start("mqtool", "send", "-l", "--via", via, "--delay", "50ms", stdin=PIPE)
    assert sender.process.stdin is not None
    for line in ("first\n", "second\n"):
        sender.write(line.encode())
        receiver.wait_for_stdout(line)
    sender.process.stdin.close()
    assert sender.wait().code == 0


def test_each_message_in_ndjson_can_have_its_own_delay(shell: Shell, via: str) -> None:
    """`send --json` delays each message by the duration in its key "delay", or until the time in its key "at", and
    immediately sends a message that has neither key. The option --delay overrides both keys.
    """
    receiver = shell.start("mqtool", "receive", "-c", "3", "-F", "%b %l").wait_until_ready()
    lines = [
        {"body": "second", "delay": "1500ms"},
        {"body": "third", "at": (datetime.now().astimezone() + timedelta(seconds=5)).isoformat()},
        {"body": "first"},
        {"body": "never", "delay": "1h"},
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    sent = shell.run("mqtool", "send", "--json", "--via", via, stdin=given)

    late = dict(line.split(" ") for line in receiver.wait().stdout.splitlines())
    assert late.pop("first") == ""
    assert set(late) == {"second", "third"}
    assert min(map(int, late.values())) >= 0
    assert "4 confirmed" in sent.stderr
    shell.run("mqtool", "send", "--json", "--via", via, "--delay", "10ms", stdin=given)
    assert sorted(shell.run("mqtool", "receive", "-c", "4", "--raw").stdout.split()) == [
        "first", "never", "second", "third"
    ]  # fmt: skip


@on_any_broker
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"body": "x", "delay": "soon"}', "line 2 has a bad \"delay\": 'soon' is not a duration"),
        ('{"body": "x", "delay": "-5s"}', 'line 2 has a bad "delay"'),
        ('{"body": "x", "delay": 5}', 'line 2 has a "delay" that is not text'),
        ('{"body": "x", "at": "noon"}', 'line 2 has an "at" that is not a time'),
        ('{"body": "x", "delay": "1s", "at": "2030-01-01"}', 'line 2 has both "delay" and "at"'),
        ('{"body": "x", "delay": "50d"}', "a delay of 50d is too long"),
        ('{"body": "x", "at": "9999-12-31"}', "is too long"),
    ],
)
@pytest.mark.sampled(2)
def test_an_invalid_delay_in_ndjson_is_reported_with_its_line(shell: Shell, line: str, says: str) -> None:
    """If a line has an invalid "delay" or "at", `send --json` sends the lines before this line, says what is wrong with
    it, and exits with 65.
    """
    refused = shell.run("mqtool", "send", "--json", stdin='{"body": "before"}\n' + line + "\n")
    assert says in refused.stderr
    assert refused.code == 65
    assert shell.run("mqtool", "receive", "-c", "1", "--raw").stdout == "before\n"


def test_send_delayed_uses_the_x_delay_header(shell: Shell, via: str) -> None:
    """`send-delayed --json` delays a message by its x-delay header, in milliseconds, and sends a message with a
    negative x-delay immediately.
    """
    shell.run("mqtool", "receive-delayed", "--idle-timeout", "1ms")
    given = '{"body": "x", "headers": {"x-delay": 30, "mine": 1}}\n{"body": "y", "headers": {"x-delay": 3600000}}\n'
    sent = shell.run("mqtool", "send-delayed", "--json", "--via", via, stdin=given)
    assert "2 confirmed" in sent.stderr
    line = shell.run("mqtool", "receive-delayed", "-c", "1", "--json").stdout
    assert json.loads(line)["headers"]["mine"] == 1

    shell.run("mqtool", "send-delayed", "--json", "--via", via, stdin='{"body":"z","headers":{"x-delay":-3600000}}\n')
    assert shell.run("mqtool", "receive-delayed", "-c", "1", "--raw").stdout == "z\n"


def test_a_received_message_that_is_sent_again_is_not_delayed_again(shell: Shell, via: str) -> None:
    """In `receive-delayed --json | send-delayed --json`, the header x-delay has no effect, because a received message
    has already been delayed: it is sent again without a delay.
    """
    shell.run("mqtool", "send-delayed", "--delay", "20ms", "--via", via, "x")
    line = shell.run("mqtool", "receive-delayed", "-c", "1", "--json").stdout
    shell.run("mqtool", "send-delayed", "--json", "--via", via, stdin=line)
    assert json.loads(shell.run("mqtool", "receive-delayed", "-c", "1", "--json").stdout)["body"] == "x"

    for sign in (1, -1):
        received = json.loads(line)
        received["headers"]["x-delay"] = sign * 60_000
        shell.run("mqtool", "send-delayed", "--json", "--via", via, stdin=json.dumps(received))
        assert shell.run("mqtool", "receive-delayed", "-c", "1", "--raw", "--timeout", "30s").stdout == "x\n"


@pytest.mark.once_on_rabbitmq("via")
@pytest.mark.parametrize("sign", [1, -1], ids=["positive x-delay", "negative x-delay"])
@pytest.mark.sampled(3)
def test_keep_delay_delays_a_received_message_again(shell: Shell, via: str, sign: int) -> None:
    """`send-delayed --json --keep-delay` reads received messages as lines of JSON, and delays each message again by
    its x-delay header. If the value is negative, as after a delivery by the delayed message plugin, its absolute
    value is the delay. If the line also has the key "delay", this key overrides the header.
    """
    shell.run("mqtool", "receive-delayed", "--idle-timeout", "1ms")
    lines = [
        {"body": "kept", "redelivered": False, "headers": {"x-delay": sign * 400}},
        {"body": "overruled", "redelivered": False, "headers": {"x-delay": sign * 3_600_000}, "delay": "1ms"},
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    started = time.monotonic()
    sent = shell.run("mqtool", "send-delayed", "--json", "--keep-delay", "--via", via, stdin=given)
    assert sent.code == 0, sent.stderr
    came = shell.run("mqtool", "receive-delayed", "-c", "2", "--raw").stdout
    assert sorted(came.split()) == ["kept", "overruled"]
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("options", [["x"], ["--json", "--delay", "1s"]], ids=" ".join)
def test_keep_delay_needs_json_and_cannot_be_combined_with_delay(lonely_shell: Shell, options: list[str]) -> None:
    """`send-delayed --keep-delay` exits with 2 if --json is missing, or if --delay is given. The error says that
    --keep-delay needs --json, and cannot be combined with --delay or --at.
    """
    refused = lonely_shell.run("mqtool", "send-delayed", "--keep-delay", *options, "-u", "amqp://127.0.0.1:1")
    assert "--keep-delay needs --json, and cannot be combined with --delay or --at" in refused.stderr
    assert refused.code == 2


def test_send_delayed_declares_the_tutorials_queue(shell: Shell, via: str) -> None:
    """`send-delayed` declares the default queue of the tutorial on delayed messages, so that a message that is due
    stays in this queue until a receiver starts.
    """
    shell.run("mqtool", "send-delayed", "--delay", "1ms", "--via", via, "early")
    assert shell.run("mqtool", "receive-delayed", "-c", "1", "--raw", "--timeout", "30s").stdout == "early\n"


@on_any_broker
def test_send_mandatory_stops_at_a_message_with_a_delay(shell: Shell) -> None:
    """If the input of `send --json --mandatory` contains a message with a delay, the messages before it are sent; then
    the command says that --mandatory does not work with a delay, and exits with 2.
    """
    shell.run("mqtool", "receive", "--idle-timeout", "1ms")
    refused = shell.run(
        "mqtool", "send", "--json", "--mandatory", stdin='{"body": "a"}\n{"body": "b", "delay": "1s"}\n'
    )
    assert "--mandatory does not work with a delay" in refused.stderr
    assert refused.code == 2
    assert shell.run("mqtool", "receive", "-c", "1", "--raw").stdout == "a\n"


def test_send_warns_once_that_a_delay_replaces_the_expiration(shell: Shell) -> None:
    """With `send --delay --via ttl`, the delay replaces the expiration of a message. `send` prints one warning about
    this, however many messages it sends, and no message arrives early.
    """
    shell.run("mqtool", "receive", "--idle-timeout", "1ms")
    sent = shell.run("mqtool", "send", "-l", "--delay", "200ms", "--via", "ttl", "--property", "expiration=10",
                     stdin="a\nb\n")  # fmt: skip
    assert sent.stderr.count("lose their property expiration") == 1
    got = shell.run("mqtool", "receive", "-c", "2", "-F", "%b %l").stdout.split()
    assert (got[0], got[2]) == ("a", "b")
    assert min(int(got[1]), int(got[3])) >= 0


def test_a_delayed_message_for_a_missing_exchange_declares_no_exchange(shell: Shell, via: str) -> None:
    """`send --delay` to an exchange that does not exist exits with 69, and declares no exchange."""
    exchanges = shell.run("mqtool", "list", "exchanges", "name").stdout
    (shell.directory / "given").write_text('{"body": "x", "exchange": "nowhere", "delay": "1s"}\n')
    for words in (["-e", "nowhere", "--delay", "1s", "x"], ["--json", "-f", "given"]):
        refused = shell.run("mqtool", "send", *words, "--via", via)
        assert (refused.code, "no exchange 'nowhere'" in refused.stderr) == (69, True)
    assert shell.run("mqtool", "list", "exchanges", "name").stdout == exchanges


def test_the_option_failed_to_keeps_delayed_messages_for_a_missing_queue(shell: Shell, via: str) -> None:
    """If a line of input names a queue that does not exist, `send --json --failed-to FILE` writes this message and all
    later ones to FILE, with their delays, and exits with 3. Once the queue exists, a second run sends them from FILE.
    """
    shell.run("mqtool", "receive", "--idle-timeout", "1ms")
    missing = {"body": "b", "exchange": "", "routing_key": "missing", "delay": "200ms"}
    lines = [{"body": "a", "delay": "300ms"}, missing, {"body": "c", "delay": "500ms"}]
    (shell.directory / "given").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = shell.run("mqtool", "send", "--json", "-f", "given", "--via", via, "--failed-to", "failed")
    assert (first.code, "no queue 'missing'" in first.stderr) == (3, True)
    assert "1 confirmed" in first.stderr
    kept = [json.loads(line) for line in (shell.directory / "failed").read_text().splitlines()]
    assert [(line["body"], line["routing_key"], line["delay"]) for line in kept] == [
        ("b", "missing", "200ms"),
        ("c", "hello", "500ms"),
    ]

    shell.run("mqtool", "receive", "-q", "missing", "--declare", "--idle-timeout", "1ms")
    assert shell.run("mqtool", "send", "--json", "-f", "failed", "--via", via).code == 0
    assert shell.run("mqtool", "receive", "-c", "2", "--raw").stdout == "a\nc\n"
    assert shell.run("mqtool", "receive", "-q", "missing", "-c", "1", "--raw").stdout == "b\n"


@on_any_broker
def test_the_option_failed_to_keeps_the_delay_of_each_unsent_line(shell: Shell) -> None:
    """A message with a delay cannot be published with --mandatory. `send-delayed --mandatory --failed-to FILE`
    therefore exits with 2, and writes all lines to FILE, each with its exchange, its routing key and its own delay.
    """
    lines = [{"body": "x", "delay": "40d"}, {"body": "y"}, {"body": "z", "headers": {"x-delay": 70}}]
    (shell.directory / "given").write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed = shell.run("mqtool", "send-delayed", "--json", "-f", "given", "--failed-to", "failed", "--mandatory")
    assert failed.code == 2
    kept = [json.loads(line) for line in (shell.directory / "failed").read_text().splitlines()]
    assert [(line["body"], line["delay"], line["exchange"], line["routing_key"]) for line in kept] == [
        (body, delay, "delay_exchange", "delay_queue") for body, delay in (("x", "40d"), ("y", "5s"), ("z", "70ms"))
    ]


def test_a_wait_queue_without_a_ttl_gets_no_message(shell: Shell, broker: TestBroker) -> None:
    """`send --delay --via ttl` publishes messages to a wait queue with a TTL. If a queue with this name exists without
    a TTL, the command exits with 78 and publishes nothing to this queue, because messages might never leave it. With
    --failed-to FILE, it writes the message to FILE.
    """
    broker.api("PUT", f"queues/{broker.vhost}/hello.delay.1m", {"durable": True})
    refused = shell.run("mqtool", "send", "-l", "--delay", "1m", "--via", "ttl", "--failed-to", "failed", stdin="x\n")
    assert refused.code == 78
    assert "messages might never leave hello.delay.1m" in refused.stderr
    assert [json.loads(line)["body"] for line in (shell.directory / "failed").read_text().splitlines()] == ["x"]
    assert shell.run("mqtool", "receive", "-q", "hello.delay.1m", "--idle-timeout", "1ms", "--raw").stdout == ""


@pytest.fixture(params=[BrokerKind.EMBEDDED, BrokerKind.NODE])
def restartable(request: pytest.FixtureRequest) -> Iterator[Restartable]:
    own_broker(request.param)
    broker = Restartable(request.param, f"delayed-{uuid.uuid4().hex[:8]}")
    yield broker
    broker.stop()


_LOGS = ["-e", "lasting", "--durable"]


@pytest.mark.parametrize(
    ("via", "send", "receive"),
    [
        ("plugin", ["send-delayed"], ["receive-delayed"]),
        ("ttl", ["send"], ["receive"]),
        ("plugin", ["emit-log", "topic", *_LOGS], ["receive-log", "topic", *_LOGS, "-q", "kept", "--declare", "#"]),
        ("ttl", ["emit-log", "topic", *_LOGS], ["receive-log", "topic", *_LOGS, "-q", "kept", "--declare", "#"]),
    ],
    ids=["plugin-send-delayed", "ttl-send", "plugin-emit-log", "ttl-emit-log"],
)
@pytest.mark.sampled(1)
@large
def test_delayed_messages_arrive_after_a_restart_of_the_broker(
    restartable: Restartable, lonely_shell: Shell, via: str, send: list[str], receive: list[str]
) -> None:
    """If delayed messages for durable queues are sent and the broker is then restarted, all of them arrive, and none
    arrives early. Some may arrive twice. On RabbitMQ, messages that are due while the broker is starting may arrive a
    few minutes late.
    """
    shell = lonely_shell
    first = 20 if restartable.kind is BrokerKind.EMBEDDED else 20_000
    shell.environment["MQTOOL_URL"] = restartable.url
    if via == "plugin":
        with Connection(parse_addresses(restartable.url)) as connection:
            if not has_plugin(connection.channel(), DELAY_EXCHANGE):
                pytest.skip("this broker has no delayed message plugin")
    shell.run("mqtool", *receive, "--idle-timeout", "1ms")
    given = "".join(json.dumps({"body": f"{n}", "delay": f"{first + 15 * n}ms"}) + "\n" for n in range(200))
    due_last = time.time() + first / 1000 + 3
    sent = shell.run("mqtool", *send, "--json", "--via", via, stdin=given)
    assert sent.code == 0, sent.stderr

    restartable.stop()
    restartable.start()

    receiver = shell.start("mqtool", *receive, "-F", "%b %l", ready=True)
    # Some may arrive twice.
    wait_until(lambda: len(set(receiver.stdout.split()[::2])) == 200, "all 200 messages", patience=300)
    assert time.time() >= due_last
    got = receiver.interrupt().wait().stdout.split()
    assert set(map(int, got[::2])) == set(range(200))
    assert min(map(int, got[1::2])) >= 0


@large
def test_thousands_of_delayed_messages_arrive_once_and_not_early(shell: Shell, broker: TestBroker, via: str) -> None:
    """`send-delayed --json` sends thousands of messages with delays from 0 to 2 s. Each of them arrives once, and none
    arrives early.
    """
    count = 4_000 if broker.kind == "embedded" else 2_000  # which take RabbitMQ two seconds of computing
    given = "".join(json.dumps({"body": f"{n}", "delay": f"{n * 7919 % 2000}ms"}) + "\n" for n in range(count))
    receiver = shell.start("mqtool", "receive-delayed", "-c", str(count), "-F", "%b %l").wait_until_ready()
    sent = shell.run("mqtool", "send-delayed", "--json", "--via", via, stdin=given)
    assert f"{count:,} confirmed in " in sent.stderr
    got = receiver.wait().stdout.split()
    assert sorted(map(int, got[::2])) == list(range(count))
    assert min(map(int, got[1::2])) >= 0
    wait_until(lambda: depth(broker, "delay_queue") == 0, "an empty queue")


def test_the_option_failed_to_keeps_a_message_that_cannot_be_delayed(shell: Shell) -> None:
    """mqtool cannot delay a message to a queue if the message has a CC header. `send --delay` therefore exits with 65
    for such a message. With --failed-to FILE, it writes the message to FILE.
    """
    copies = ("-H", 'CC:=["elsewhere"]')
    refused = shell.run("mqtool", "send", "-q", "q", "--delay", "5s", *copies, "--failed-to", "failed", "not me")
    assert refused.code == 65
    assert "cannot be delayed" in refused.stderr
    assert json.loads((shell.directory / "failed").read_text())["body"] == "not me"
