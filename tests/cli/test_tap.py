"""mqtool tap: a copy of what passes, and nothing taken."""

import json
import signal
import time
import uuid

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.ndjson import to_message
from mqtool.topology import Exchange, Queue
from tests.brokers import Restartable, TestBroker, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.test_exec import depth


@pytest.fixture
def api(shell: Shell, broker: TestBroker) -> None:
    """Says where the management API is."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management


def publish(
    broker: TestBroker | Restartable,
    exchange: str,
    *keys: str,
    headers: dict[str, str] | None = None,
    body: str | None = None,
) -> None:
    """A message for each key, whose body is the key unless another is given."""
    lines = [{"exchange": exchange, "routing_key": key, "headers": headers or {}, "body": body or key} for key in keys]
    with Connection(parse_addresses(broker.url)) as connection:
        list(connection.channel().publish(to_message(json.dumps(line).encode(), "") for line in lines))


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
def test_all_that_passes_through_an_exchange(
    shell: Shell, broker: TestBroker, connection: Connection, kind: str
) -> None:
    """Whatever its type; and the queues that are bound get what they always got."""
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
def test_by_keys_of_several_exchanges_and_by_headers(shell: Shell, broker: TestBroker) -> None:
    """Keys are those of each exchange; headers match as receive-log's do."""
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
def test_what_a_queue_gets(shell: Shell, broker: TestBroker, connection: Connection) -> None:
    """By a private queue with the same bindings, whatever consumes that one; the default exchange's are not shown."""
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


@pytest.mark.usefixtures("api")
def test_what_cannot_be_tapped(shell: Shell, broker: TestBroker) -> None:
    """A sentence, and the exit code that other commands have for it."""
    for words, code, said in (
        (["nowhere", "key"], 69, "exchange 'nowhere' or vhost "),
        (["-q", "nowhere"], 69, "queue 'nowhere' or vhost "),
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


@on_any_broker
@pytest.mark.usefixtures("api")
def test_what_came_can_be_sent_again(shell: Shell, broker: TestBroker) -> None:
    """`tap --json` prints what `send --json` takes, and names its broker only where there are several."""
    tap = shell.start("mqtool", "tap", "amq.topic", "--json", "-c", "1").wait_until_ready()
    other = f"{broker.url.partition('//')[0]}//{broker.url.partition('@')[2]}"
    both = shell.start("mqtool", "tap", "amq.topic", "-u", broker.url, "-u", other, "--json", "-c", "2")
    both.wait_until_ready()
    publish(broker, "amq.topic", "order.new", headers={"format": "pdf"})
    line, lines = tap.wait().stdout, both.wait().stdout
    assert "broker" not in json.loads(line)
    named = [json.loads(each).pop("broker") for each in lines.splitlines()]
    assert named == [str(parse_addresses(broker.url)[0])] * 2
    assert {**json.loads(lines.splitlines()[0]), "queue": "", "timestamp": ""} == {
        **json.loads(line),
        "queue": "",
        "timestamp": "",
        "broker": named[0],
    }
    again = shell.start("mqtool", "tap", "amq.topic", "-F", "%r %h", "-c", "3").wait_until_ready()
    assert shell.run("mqtool", "send", "--json", stdin=line + lines).code == 0
    again.wait()
    assert again.stdout == 'order.new {"format":"pdf"}\n' * 3


@pytest.mark.usefixtures("api")
def test_a_slow_reader_misses_some_and_is_told_how_many(shell: Shell, broker: TestBroker) -> None:
    """What is printed and what is dropped are all; nobody else waits for it."""
    count, body = 6_000, "x" * 500
    tap = "mqtool tap amq.fanout --raw --buffer 50 --idle-timeout 3s --ready-file ready 2> said"
    slow = shell.start("bash", "-c", f"{tap} | {{ while [ ! -e go ]; do sleep 0.1; done; cat; }}")
    wait_until((shell.directory / "ready").exists, "the tap")
    publish(broker, "amq.fanout", *[""] * count, body=body)
    said = shell.directory / "said"
    wait_until(lambda: "dropped so far" in said.read_text(), "a word while it happens")
    (shell.directory / "go").touch()
    slow.wait()
    *_, last = said.read_text().splitlines()
    assert last.startswith("warning: ")
    dropped = int(last.split()[1].replace(",", ""))
    assert dropped > 0
    assert len(slow.stdout.splitlines()) + dropped == count


@on_any_broker
def test_a_tap_that_stands_still(shell: Shell) -> None:
    """The broker keeps only a part of what comes meanwhile, and nobody counts the rest; the tap says so."""
    tap = shell.start("mqtool", "tap", "amq.fanout", "#").wait_until_ready()
    tap.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped + 2.5, "longer than a busy machine would make it wait")
    tap.process.send_signal(signal.SIGCONT)
    tap.wait_for_stderr("warning: this tap was too slow: the broker may have dropped copies")


def test_the_firehose_of_a_broker_that_restarts(lonely_shell: Shell) -> None:
    """A broker forgets that it was on, so the tap switches it on again."""
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
