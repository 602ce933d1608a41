"""`tap` prints copies of the messages that pass through an exchange; the queues keep the messages."""

import json
import signal
import time
import uuid
from urllib.parse import quote

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.ndjson import to_message
from mqtool.topology import Exchange, Queue
from tests.brokers import Restartable, TestBroker, depth, on_any_broker
from tests.cli.shell import Shell, wait_until


@pytest.fixture
def api(shell: Shell, broker: TestBroker) -> None:
    """Name the management API in the environment."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management


def publish(
    broker: TestBroker | Restartable,
    exchange: str,
    *keys: str,
    headers: dict[str, str] | None = None,
    body: str | None = None,
) -> None:
    """Publish a message for each key, with the key as the body by default."""
    lines = [{"exchange": exchange, "routing_key": key, "headers": headers or {}, "body": body or key} for key in keys]
    with Connection(parse_addresses(broker.url)) as connection:
        list(connection.channel().publish(to_message(json.dumps(line).encode(), "") for line in lines))


@pytest.mark.usefixtures("api")
def test_tap_copies_from_several_exchanges_each_with_its_own_keys(shell: Shell, broker: TestBroker) -> None:
    """`tap EXCHANGE:KEY …` prints what each exchange routes by its own keys; `EXCHANGE:` prints all of its messages. An
    exchange whose name has a colon is named in the hint.
    """
    words = ("amq.topic:kern.*", "amq.topic:*.error", "amq.direct:x:y", "amq.fanout:")
    tap = shell.start("mqtool", "tap", *words, "-c", "4", "--format", "%e %r").wait_until_ready()
    publish(broker, "amq.topic", "kern.info", "cron.error", "cron.info")
    publish(broker, "amq.direct", "x", "x:y")
    publish(broker, "amq.fanout", "any")
    assert tap.wait().code == 0
    assert tap.stdout.splitlines() == [
        *("amq.topic kern.info", "amq.topic cron.error", "amq.direct x:y", "amq.fanout any")
    ]
    assert "mqtool tap --exchange=Company:Order" in shell.run("mqtool", "tap", "Company:Order").stderr
    assert "write 'logs:'" in shell.run("mqtool", "tap", "amq.topic:x", "logs").stderr


@pytest.mark.usefixtures("api")
def test_tap_until_empty_ends_once_the_queue_has_been_worked_off(shell: Shell, broker: TestBroker) -> None:
    """`tap -q QUEUE --until-empty` prints the copies of all messages, and ends when the queue has no ready messages."""
    shell.script("mqtool queue declare jobs && mqtool exchange bind amq.topic jobs '#' && mqtool send -q jobs waits")
    tap = shell.start("mqtool", "tap", "-q", "jobs", "--until-empty", "--raw").wait_until_ready()
    publish(broker, "amq.topic", *map(str, range(300)))
    tap.wait_for_stdout("299\n")
    assert tap.process.poll() is None
    shell.run("mqtool", "queue", "purge", "jobs", "--yes")
    assert tap.wait().code == 0
    assert tap.stdout.split() == [*map(str, range(300))]


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
@pytest.mark.sampled(2)
def test_tap_prints_every_message_that_passes_through_an_exchange(
    shell: Shell, broker: TestBroker, connection: Connection, kind: str
) -> None:
    """`tap EXCHANGE` prints each message published to a topic, fanout or headers exchange. From a direct exchange, it
    prints the messages whose routing keys are bound when `tap` starts. The bound queues still receive every message.
    """
    channel, exchange = connection.channel(), Exchange("orders", kind, auto_delete=True)
    channel.declare(exchange)
    channel.bind(channel.declare(Queue("jobs", durable=True)), exchange, "new")
    tap = shell.start("mqtool", "tap", "orders", "-c", "2").wait_until_ready()
    if kind == "direct":
        assert "tapping the keys that are bound to it now: 'new'" in tap.stderr
    publish(broker, "orders", "new", headers={"format": "pdf"})
    tap.wait_for_stdout(" [x] new:new\n")
    publish(broker, "orders", "new", headers={"format": "pdf"})
    assert tap.wait().code == 0
    assert tap.stdout == " [x] new:new\n" * 2
    assert depth(broker, "jobs") == 2


@pytest.mark.usefixtures("api")
def test_tap_prints_only_messages_with_matching_keys_or_headers(shell: Shell, broker: TestBroker) -> None:
    """With binding keys or headers on its command line, `tap` prints only the matching messages. With -e, it also
    prints the matching messages of a second exchange.
    """
    by_key = shell.start("mqtool", "tap", "amq.topic", "kern.*", "-e", "amq.direct", "-c", "2").wait_until_ready()
    by_header = shell.start(
        "mqtool", "tap", "amq.headers", "-H", "format=pdf", "-H", "type=log", "--match", "any", "-c", "1"
    ).wait_until_ready()
    publish(broker, "amq.topic", "app.info", "kern.info")
    publish(broker, "amq.direct", "kern.*")
    publish(broker, "amq.headers", "text", headers={"format": "txt"})
    publish(broker, "amq.headers", "report", headers={"format": "pdf"})
    assert by_key.wait().code == 0
    assert by_key.stdout == " [x] amq.topic kern.info:kern.info\n [x] amq.direct kern.*:kern.*\n"
    by_header.wait()
    assert by_header.stdout == " [x] report:report\n"


@pytest.mark.usefixtures("api")
def test_tap_of_a_queue_prints_the_messages_that_its_bindings_route_to_it(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """`tap -q` prints the messages that a queue's bindings route to the queue, and says that it does not show messages
    that reach the queue through the default exchange.
    """
    channel = connection.channel()
    jobs = channel.declare(Queue("jobs", durable=True))
    channel.bind(jobs, Exchange("amq.topic"), "order.*")
    channel.bind(jobs, Exchange("amq.headers"), arguments={"x-match": "all", "format": "pdf"})
    tap = shell.start("mqtool", "tap", "-q", "jobs", "--where", "body!=order.no", "-F", "%e %r", "-c", "2")
    tap.wait_until_ready().wait_for_stderr("not shown: messages that reach 'jobs' through the default exchange")
    publish(broker, "amq.topic", "order.no", "order.new", "kern.info")
    publish(broker, "", "jobs")
    publish(broker, "amq.headers", "report", headers={"format": "pdf"})
    assert tap.wait().code == 0
    assert tap.stdout == "amq.topic order.new\namq.headers report\n"
    assert depth(broker, "jobs") == 4

    channel.declare(Queue("alone", durable=True))
    alone = shell.run("mqtool", "tap", "-q", "alone")
    assert alone.code == 2
    assert "only the default exchange routes to queue 'alone'" in alone.stderr
    assert """mqtool tap '' --firehose --where='routing_key="alone"'\n""" in alone.stderr


@pytest.mark.usefixtures("api")
def test_tap_says_what_cannot_be_tapped(shell: Shell, broker: TestBroker) -> None:
    """If the exchange or the queue does not exist, `tap` names it and exits with 69. If a direct exchange has no
    bindings, if the command line names neither an exchange nor a queue, or if it names both, `tap` exits with 2, and
    the error says what is wrong.
    """
    for words, code, said in (
        (["nowhere", "key"], 69, "exchange 'nowhere' does not exist in vhost "),
        (["-q", "nowhere"], 69, "queue 'nowhere' does not exist in vhost "),
        (["amq.direct"], 2, "nothing is bound to the direct exchange 'amq.direct'"),
        ([], 2, "name either an exchange or a queue"),
        (["amq.topic", "-q", "jobs"], 2, "name either an exchange or a queue"),
    ):
        refused = shell.run("mqtool", "tap", *words)
        assert (refused.code, refused.stdout) == (code, ""), refused.stderr
        assert said in refused.stderr
    without = shell.run("mqtool", "tap", "nowhere", "--management", "http://localhost:1")
    assert without.code == 69
    assert "no exchange 'nowhere'" in without.stderr


def test_tap_without_the_management_api_takes_no_messages_from_queues(lonely_shell: Shell) -> None:
    """If the management API is not available, `tap` asks the broker for the type of the exchange. If the exchange
    divides messages among its queues, `tap` refuses, also if keys are given, and the queue gets all messages. A user
    who may not ask is told that the tap may take messages.
    """
    shell = lonely_shell
    with EmbeddedBroker(like="4.3") as broker, Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        shell.environment["MQTOOL_URL"] = broker.url
        channel.declare(Exchange("divided", "x-modulus-hash", durable=True))
        for keys in ((), ("key",)):
            refused = shell.run("mqtool", "tap", "divided", *keys, "--idle-timeout", "1s")
            assert (refused.code, refused.stdout) == (2, "")
            assert "'divided' is of type x-modulus-hash, which divides messages among its queues" in refused.stderr


@pytest.mark.parametrize("keys", [(), ("key",)])
def test_tap_warns_a_user_who_may_not_know_the_type_of_an_exchange(
    shell: Shell, broker: TestBroker, connection: Connection, keys: tuple[str, ...]
) -> None:
    """If neither the management API nor the broker tells the type of an exchange, `tap` says what that may mean."""
    connection.channel().declare(Exchange("logs", "headers"))
    user = f"ann-{uuid.uuid4().hex[:8]}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    try:
        rights = {"configure": "^amq.gen", "write": "^amq.gen", "read": ".*"}
        broker.api("PUT", f"permissions/{quote(broker.vhost, safe='')}/{user}", rights)
        url = broker.url.replace("guest:guest", f"{user}:secret")
        tap = shell.run("mqtool", "tap", "logs", *keys, "--url", url, "--idle-timeout", "100ms")
    finally:
        broker.api("DELETE", f"users/{user}")
    assert tap.code == 0
    assert "if it divides messages among its queues, this tap takes some" in tap.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["logs"], "exchange 'logs' is direct, and which keys are bound to it is not known"),
        (["news", "a"], "fanout, which ignores binding keys"),
        (["divided"], "divides messages among its queues"),
    ],
)
def test_tap_without_the_management_api_refuses_what_it_cannot_copy(
    shell: Shell, broker: TestBroker, connection: Connection, words: list[str], said: str
) -> None:
    """Without the management API, too, `tap` knows the type of an exchange, and refuses what it cannot copy."""
    if words == ["divided"] and not broker.differs_since("4.3", "before, x-modulus-hash needs a plugin"):
        pytest.skip("the broker has no exchange that divides messages")
    kind = {"logs": "direct", "news": "fanout", "divided": "x-modulus-hash"}[words[0]]
    connection.channel().declare(Exchange(words[0], kind))
    refused = shell.run("mqtool", "tap", *words, "--management", "http://localhost:1", "--idle-timeout", "1s")
    assert (refused.code, refused.stdout) == (2, "")
    assert said in refused.stderr


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("words", "ignored", "hint"),
    [
        ("amq.topic -H a=b", "topic, which ignores headers", "mqtool tap --where=headers.a=b amq.topic"),
        (
            "amq.direct -H a=b -H n:=1 --match any",
            "direct, which ignores headers",
            "mqtool tap --where='headers.a=b or headers.n=1' amq.direct",
        ),
        ("logs -H a:=true", "fanout, which ignores headers", "mqtool tap --where=headers.NAME=VALUE logs"),
        ("logs a b", "fanout, which ignores binding keys", "mqtool tap --where='routing_key=a or routing_key=b' logs"),
        ("amq.topic -e amq.fanout a.*", "fanout, which ignores binding keys", "mqtool tap --where='routing_key~REGEX'"),
        ("amq.headers -H a=b foo", "headers, which ignores binding keys", "to select by headers, use -H; by routing"),
    ],
)
def test_tap_refuses_keys_and_headers_that_the_exchange_ignores(
    shell: Shell, connection: Connection, words: str, ignored: str, hint: str
) -> None:
    """`tap` exits with 2 if its command line gives headers for an exchange that is not a headers exchange, or binding
    keys for a fanout or headers exchange. The exchange would ignore them, and also route other messages to `tap`. The
    hint says how to select the messages instead, in most cases with --where.
    """
    connection.channel().declare(Exchange("logs", "fanout", auto_delete=True))
    refused = shell.run("mqtool", "tap", *words.split(), "--idle-timeout", "10ms")
    assert (refused.code, refused.stdout) == (2, "")
    assert f" is of type {ignored}\nhint: {hint}" in refused.stderr


@on_any_broker
@pytest.mark.usefixtures("api")
def test_the_output_of_tap_json_can_be_sent_again(shell: Shell, broker: TestBroker) -> None:
    """`tap --json` prints each message as a line that `send --json` publishes to the tapped exchange. If a message
    has the header x-stream-offset, `send --json` does not mistake it for a message from a stream, and copies the header
    only with --keep-broker-headers. If `tap` watches several brokers, each line names its broker.
    """
    tap = shell.start("mqtool", "tap", "amq.topic", "--json", "-c", "1").wait_until_ready()
    other = f"{broker.url.partition('//')[0]}//{broker.url.partition('@')[2]}"
    both = shell.start("mqtool", "tap", "amq.topic", "-u", broker.url, "-u", other, "--json", "-c", "2")
    both.wait_until_ready()
    publish(broker, "amq.topic", "order.new", headers={"x-stream-offset": "7", "h": "v"})
    line, lines = tap.wait().stdout, both.wait().stdout
    assert "broker" not in json.loads(line)
    named = [json.loads(each).pop("broker") for each in lines.splitlines()]
    assert named == [str(parse_addresses(broker.url)[0])] * 2
    assert json.loads(line)["queue"] == ""
    assert {**json.loads(lines.splitlines()[0]), "timestamp": ""} == {
        **json.loads(line),
        "timestamp": "",
        "broker": named[0],
    }
    for options, headers in ([], '{"h":"v"}'), (["--keep-broker-headers"], '{"x-stream-offset":"7","h":"v"}'):
        again = shell.start("mqtool", "tap", "amq.topic", "-F", "%r %h", "-c", "3").wait_until_ready()
        assert shell.run("mqtool", "send", "--json", *options, stdin=line + lines).code == 0
        again.wait()
        assert {text.partition(" ")[0] for text in again.stdout.splitlines()} == {"order.new"}
        found = [json.loads(text.partition(" ")[2]) for text in again.stdout.splitlines()]
        assert found == [json.loads(headers)] * 3


@pytest.mark.usefixtures("api")
def test_tap_counts_the_copies_that_it_drops_for_a_slow_reader(shell: Shell, broker: TestBroker) -> None:
    """If the process that reads the output of `tap` is slow, `tap` drops copies and says how many. The numbers of
    printed and dropped copies add up to the number of published messages.
    """
    count, body = 6_000, "x" * 500
    tap = "mqtool tap amq.fanout --raw --buffer 50 --idle-timeout 6s --ready-file ready 2> said"
    slow = shell.start("bash", "-c", f"{tap} | {{ while [ ! -e go ]; do sleep 0.1; done; cat; }}")
    wait_until((shell.directory / "ready").exists, "the tap")
    publish(broker, "amq.fanout", *[""] * count, body=body)
    said = shell.directory / "said"
    wait_until(lambda: "dropped so far" in said.read_text(), "a warning while copies are dropped")
    (shell.directory / "go").touch()
    slow.wait()
    *_, last = said.read_text().splitlines()
    assert last.startswith("warning: ")
    dropped = int(last.split()[1].replace(",", ""))
    assert dropped > 0
    assert len(slow.stdout.splitlines()) + dropped == count


@on_any_broker
def test_tap_warns_of_missing_copies_after_it_was_suspended(shell: Shell) -> None:
    """If `tap` was suspended by SIGSTOP for a few seconds, `tap` warns after SIGCONT that the broker may have dropped
    copies.
    """
    tap = shell.start("mqtool", "tap", "amq.fanout", "#").wait_until_ready()
    tap.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped + 2.5, "longer than a delay on a busy machine")
    tap.process.send_signal(signal.SIGCONT)
    tap.wait_for_stderr("warning: this tap was too slow: the broker may have dropped copies")


def test_tap_firehose_continues_after_a_restart_of_the_broker(lonely_shell: Shell) -> None:
    """After a restart of the broker, a running `tap --firehose` switches the firehose on again and prints new
    messages.
    """
    broker, shell = Restartable(BrokerKind.EMBEDDED, f"tap-{uuid.uuid4().hex[:8]}"), lonely_shell
    try:
        shell.environment["MQTOOL_URL"] = broker.url
        tap = shell.start("mqtool", "tap", "--all", "--firehose", "--raw").wait_until_ready()
        broker.kill()
        broker.start()

        def is_seen() -> bool:
            publish(broker, "amq.topic", "seen")
            return "seen" in tap.stdout

        wait_until(is_seen, "a message after the restart")
        assert tap.interrupt().wait().code == 0
    finally:
        broker.stop()
