"""`top` shows what a broker is doing, and `doctor` what is wrong with it."""

import contextlib
import json
import re
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.address import TlsFiles
from mqtool.amqp import parse_addresses
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.testing.authority import Authority
from mqtool.cli.access import Access
from mqtool.cli.commands import doctor
from mqtool.codecs.field_tables import CLIENT, Int8, Int64, Int64L, encode_short_string
from mqtool.errors import MqtoolError
from mqtool.inspection.findings import Unchecked
from tests.brokers import LIKE, TestBroker, on_any_broker
from tests.cli.shell import Running, Shell, wait_until
from tests.cli.terminal import closable_terminal, on_terminal
from tests.cli.test_wrong_answers import serving

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.own_vhost("statistics of what an earlier test has deleted may linger")


@pytest.fixture
def watcher(shell: Shell, broker: TestBroker) -> Shell:
    """A shell with the address of the management API in its environment."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell


def findings(shell: Shell, broker: TestBroker) -> dict[str, dict[str, Any]]:
    """Return doctor's findings in the test's own virtual host, by check."""
    looked = shell.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "500ms", "--json")
    found = {finding["check"]: finding for finding in map(json.loads, looked.stdout.splitlines())}
    assert looked.code == (3 if found else 0), looked.stderr
    return found


def test_doctor_reports_no_problem_on_a_healthy_broker(watcher: Shell, broker: TestBroker) -> None:
    """If each queue has a working consumer or is a dead-letter queue, `doctor` says that it found no problems, and
    exits with 0.
    """
    watcher.run("mqtool", "queue", "declare", "task_queue.dlq")
    watcher.run("mqtool", "new-task", "--dead-letter-exchange", "", "x")
    watcher.start("mqtool", "worker", "--dead-letter-exchange", "").wait_until_ready().wait_for_stderr("Done")
    wait_until(lambda: not findings(watcher, broker), f"no findings: {findings(watcher, broker)}")
    looked = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "100ms")
    assert looked.stdout == ""
    assert "no problems found" in looked.stderr


def test_doctor_reports_several_kinds_of_problem(watcher: Shell, broker: TestBroker) -> None:
    """`doctor` reports problems such as queues without consumers, transient queues, missing dead-letter exchanges, and
    consumers that do not acknowledge their messages.
    """
    watcher.run("mqtool", "send", "-q", "left", "x")
    watcher.run("mqtool", "queue", "declare", "old", "--transient", "--queue-type", "classic")
    watcher.run("mqtool", "queue", "declare", "dead-end", "--dead-letter-exchange", "nowhere")
    watcher.run("mqtool", "new-task", "-l", stdin="1\n2\n3\n")
    watcher.start("mqtool", "worker", "--forget-ack", "--prefetch", "0").wait_until_ready().wait_for_stdout(
        "Received 3"
    )
    broker.api("PUT", f"queues/{broker.vhost}/short", {"arguments": {"x-max-length": 1}, "durable": True})
    wanted = {"no-consumer", "dead-letter-exchange", "leads-nowhere", "no-acks", "no-dead-letter-exchange"}
    if not broker.differs_since("4.3", "4.3.6 accepts transient queues again"):
        wanted.add("transient")

    found: dict[str, dict[str, Any]] = {}

    def all_found() -> bool:
        # Publish again each time: RabbitMQ may lose the statistics of such a short connection.
        watcher.run("mqtool", "emit-log", "fanout", "lost")
        watcher.run("mqtool", "send", "-q", "short", "--max-length", "1", "-l", stdin="a\nb\nc\n")
        found.clear()
        found.update(findings(watcher, broker))
        return wanted <= found.keys() and "may have lost" in found["no-dead-letter-exchange"]["what"]

    wait_until(all_found, lambda: f"{wanted}; found {found}")

    assert found["no-acks"]["thing"] == "queue 'task_queue'"
    assert "transient" not in wanted or found["transient"]["thing"] == "queue 'old'"
    assert found["leads-nowhere"]["thing"] == "exchange 'logs'"
    said = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "100ms")
    assert "queue 'dead-end'" in said.stdout
    assert "findings at amqp://guest@" in said.stderr


def test_doctor_does_not_call_refused_messages_lost(watcher: Shell, broker: TestBroker) -> None:
    """`doctor` cannot tell whether a full queue with the overflow setting reject-publish has lost messages or refused
    them. It names both possibilities, and says that refused messages are not lost, because their publishers receive a
    nack.
    """
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    broker.api("PUT", f"queues/{broker.vhost}/full", {"arguments": arguments, "durable": True})

    def said() -> str:
        sent = watcher.run("mqtool", "send", "-q", "full", "--no-declare", "-l", stdin="a\nb\nc\n")
        assert (sent.code in (3, 75), "nacked: 'c'" in sent.stderr) == (True, True), sent.stderr
        found = findings(watcher, broker).get("no-dead-letter-exchange", {})
        return f"{found.get('what')}: {found.get('hint')}"

    wanted = "or refused them because it was full: refused messages are not lost: their publishers get a nack"
    wait_until(lambda: wanted in said(), said)


def test_doctor_reports_messages_that_a_restart_would_drop(watcher: Shell, broker: TestBroker) -> None:
    """If a policy lowers the maximum length of a classic queue with the overflow setting reject-publish to less than
    the queue's number of messages, `doctor` says that RabbitMQ drops the surplus when it restarts. The hint is to
    receive or move the surplus, or to raise the limit, before a restart.
    """
    full = ("--queue-type", "classic", "--argument", "x-overflow=reject-publish")
    watcher.run("mqtool", "send", "-q", "full", *full, "-l", stdin="a\nb\nc\n")
    limit = ("--pattern", "^full", "--definition", '{"max-length": 1}')
    assert watcher.run("mqtool", "policy", "set", "limit", *limit, "--yes").code == 0
    found: dict[str, Any] = {}

    def is_found() -> bool:
        found.update(findings(watcher, broker).get("surplus", {}))
        return str(found.get("what")).startswith("has 3 messages")

    wait_until(is_found, lambda: f"the surplus; found {found}")
    assert found["thing"] == "queue 'full'"
    assert found["what"] == "has 3 messages, and max-length is 1: RabbitMQ drops the surplus when it restarts"
    assert found["hint"] == "before a restart, receive or move the surplus, or raise the limit"


def test_doctor_says_that_missing_messages_may_have_been_purged(watcher: Shell, broker: TestBroker) -> None:
    """RabbitMQ does not count purged messages. If a queue without a dead-letter exchange was purged, `doctor`
    therefore says that the queue may have lost messages, and names the possible causes: the messages were rejected,
    expired, dropped or purged.
    """

    def said() -> str:
        watcher.run("mqtool", "send", "-q", "jobs", "-l", stdin="a\nb\nc\n")
        watcher.run("mqtool", "queue", "purge", "--yes", "jobs")
        return str(findings(watcher, broker).get("no-dead-letter-exchange", {}).get("what"))

    wanted = "may have lost .* messages: they were rejected, expired, dropped or purged$"
    wait_until(lambda: re.search(wanted, said()), said)


def test_doctor_and_top_report_a_forgotten_acknowledgement(watcher: Shell, broker: TestBroker) -> None:
    """If a consumer has not acknowledged its message while other messages wait in the queue, `doctor` and `top` report
    that nothing moves in this queue. `doctor` names a forgotten acknowledgement as a possible cause.
    """
    watcher.run("mqtool", "new-task", "-l", stdin="1\n2\n3\n")
    watcher.start("mqtool", "worker", "--forget-ack").wait_until_ready().wait_for_stdout("Received 1")
    found: dict[str, Any] = {}

    def is_found() -> bool:
        found.update(findings(watcher, broker).get("stands-still", {}))
        return bool(found)

    wait_until(is_found, "the queue in which nothing moves")
    assert found["thing"] == "queue 'task_queue'"
    assert found["what"] == "has 2 messages waiting, and nothing moves: a long task, or a forgotten basic.ack"

    def row() -> list[str]:
        return watcher.run("mqtool", "top").stdout.splitlines()[0].split("\t")

    wait_until(lambda: row()[-1] == "nothing moves?", lambda: f"the warning: {row()}")
    assert row()[0] == "task_queue"


def test_top_and_list_queues_say_what_rabbitmq_counts_for_a_stream(watcher: Shell) -> None:
    """RabbitMQ counts each offset that a reader stores as one more message of the stream. `top` and `list queues` say
    so if they show a stream, and only then.
    """
    note = "RabbitMQ also counts stored offsets of readers"
    watcher.run("mqtool", "queue", "declare", "jobs")
    looks = (("mqtool", "top", "--once"), ("mqtool", "list", "queues", "name", "messages"))
    for look in looks:
        wait_until(lambda look=look: "jobs\t" in watcher.run(*look).stdout, "the queue")
        assert note not in watcher.run(*look).stderr
    watcher.run("mqtool", "queue", "declare", "events", "--queue-type", "stream")
    for look in looks:
        wait_until(lambda look=look: "events\t" in watcher.run(*look).stdout, "the stream")
        assert watcher.run(*look).stderr.count(note) == 1
    assert note in on_terminal(watcher, "mqtool", "top", keys=["q"], cue="events").stdout


def test_doctor_reports_cycles_and_dead_ends(watcher: Shell, broker: TestBroker) -> None:
    """`doctor` reports a queue that dead-letters to itself, but not a pair of queues for retries, which dead-letter to
    each other. It also reports exchanges bound to each other in a cycle, and alternate exchanges that have no bindings
    or do not exist.
    """
    to, key, ttl = "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-message-ttl"
    for name, arguments in {
        "round": {to: "", ttl: 3_600_000},
        "retry": {to: "", key: "jobs", ttl: 3_600_000},
        "jobs": {to: "", key: "retry"},
    }.items():
        broker.api("PUT", f"queues/{broker.vhost}/{name}", {"durable": True, "arguments": arguments})
    made = watcher.script(
        """
        set -e
        for name in one two missed; do mqtool exchange declare $name fanout; done
        mqtool exchange bind --to-exchange one two
        mqtool exchange bind --to-exchange two one
        mqtool exchange declare orders direct --argument alternate-exchange=missed
        mqtool exchange declare bills direct --argument alternate-exchange=nowhere
        """
    )
    assert made.code == 0, made.stderr
    looked = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms")
    text = " ".join(looked.stdout.split())
    assert f"queue 'round' in vhost {broker.vhost!r} gets its expired messages back: RabbitMQ drops" in text
    assert "'retry'" not in text, "a retry queue whose messages return to jobs is intended"
    assert "'one' → 'two' → 'one'" in text or "'two' → 'one' → 'two'" in text
    assert "the alternate exchange 'missed', which has no bindings: what it cannot route is lost" in text
    assert "the alternate exchange 'nowhere', which does not exist" in text


def test_queue_declare_and_doctor_say_that_dead_letters_would_be_lost(watcher: Shell, broker: TestBroker) -> None:
    """If a queue dead-letters to a queue that does not exist, `queue declare` and `doctor` warn that the dead letters
    are lost, and print the command that declares the missing queue.
    """
    declare = ("mqtool", "queue", "declare", "orders", "--dead-letter-exchange", "")
    said = " ".join(watcher.run(*declare).stderr.split())
    assert "dead letters of queue 'orders' are lost: queue 'orders.dlq' does not exist" in said
    assert said.endswith("to declare it: mqtool queue declare orders.dlq")
    found = findings(watcher, broker)["dead-letter-exchange"]
    assert found["what"] == "dead-letters to the queue 'orders.dlq', which does not exist: its dead letters are lost"
    assert found["hint"] == f"mqtool queue declare --vhost={broker.vhost} orders.dlq"
    assert watcher.run(*found["hint"].split()).code == 0
    assert findings(watcher, broker) == {}
    assert "are lost" not in watcher.run(*declare).stderr


def test_doctor_names_the_virtual_host_of_each_finding_if_the_url_names_another_one(lonely_shell: Shell) -> None:
    """`doctor` checks all virtual hosts. If the URL names one, `doctor` also says which findings are about "/", and the
    commands in hints name the virtual host. A hint that several findings share is printed once.
    """
    with EmbeddedBroker(management_port=0) as started:
        at = f"amqp://guest:guest@127.0.0.1:{started.port}"
        broker = TestBroker("embedded", at, str(started.management_url))
        shop = broker.with_fresh_vhost("shop")
        lonely_shell.environment |= {"MQTOOL_URL": shop.url, "MQTOOL_MANAGEMENT_URL": broker.management}
        lost = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "gone", "x-queue-type": "classic"}
        for vhost in ("%2F", "shop"):
            broker.api("PUT", f"queues/{vhost}/jobs", {"durable": True, "arguments": lost})
            sent = {"properties": {}, "routing_key": "jobs", "payload": "x", "payload_encoding": "string"}
            broker.api("POST", f"exchanges/{vhost}/amq.default/publish", sent)
        look = ("mqtool", "doctor", "--between", "10ms")
        said = lonely_shell.run(*look).stdout
        assert said.count("start a consumer, or delete the queue") == 1, said
        assert "queue 'jobs' in vhost '/' has 1 message and no consumer\n" in said
        assert "queue 'jobs' in vhost 'shop' has 1 message and no consumer\n" in said
        commands = re.findall(r"^  (mqtool queue declare .*)$", said, re.MULTILINE)
        assert sorted(commands) == [f"mqtool queue declare --vhost={name} gone" for name in ("/", "shop")]
        for command in commands:
            assert lonely_shell.run(*command.split()).code == 0
        assert "dead-letters to" not in lonely_shell.run(*look).stdout


@on_any_broker
def test_a_command_in_a_finding_can_be_copied(watcher: Shell, broker: TestBroker) -> None:
    """On a terminal, `doctor` prints each command on one line, even if a name in it has spaces and the line is too long
    for the terminal, so that a user can copy the command. It wraps other text to the terminal's width.
    """
    missing = "a queue that " + "does not exist " * 6
    arguments = ("-a", "x-dead-letter-exchange=", "-a", f"x-dead-letter-routing-key={missing}")
    assert watcher.run("mqtool", "queue", "declare", "jobs", *arguments).code == 0
    looked = ("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms")
    lines = re.sub(r"\x1b\[\d+m", "", on_terminal(watcher, *looked).stdout).split("\r\n")
    command = f"mqtool queue declare --vhost={broker.vhost} '{missing}'"
    assert f"  {command}" in lines
    assert max(len(line) for line in lines if command not in line) <= 80


@on_any_broker
def test_doctor_reports_unlimited_streams_missed_messages_and_queues_left_by_bench(
    watcher: Shell, broker: TestBroker
) -> None:
    """`doctor` reports a stream without a size or age limit, a consumer that has missed messages because the stream
    deleted them to stay within its limit, and a queue that a killed `bench` has left behind.
    """
    for name in ("endless", "mqtool-bench-1"):
        watcher.run("mqtool", "queue", "declare", name, "--queue-type", "stream")
    small = ("--argument", "max-length-bytes=2000", "--argument", "stream-max-segment-size-bytes=1000")
    send = ("mqtool", "send-stream", "-l", "-q", "short", *small)
    watcher.run(*send, stdin="one\n")
    reader = watcher.start("mqtool", "receive-stream", "-q", "short", "--track", "me", "--raw").wait_for_stdout("one")
    wait_until(lambda: watcher.run("mqtool", "offset", "show", "short", "me").code == 0, "the offset to be stored")
    reader.process.send_signal(signal.SIGSTOP)
    for _ in range(2):  # with one more segment, RabbitMQ forgets the offset
        watcher.run(*send, stdin="x" * 1000 + "\n")
    found = findings(watcher, broker)
    reader.process.send_signal(signal.SIGCONT)
    assert found["stream-limit"]["thing"] == "queue 'endless'"
    assert found["left-over"]["thing"] == "queue 'mqtool-bench-1'"
    assert found["reader-misses"]["thing"] == "stream 'short'"
    assert "reader 'me' had not read" in found["reader-misses"]["what"]


@on_any_broker
def test_doctor_says_how_to_resume_an_interrupted_conversion(watcher: Shell, broker: TestBroker) -> None:
    """If an interrupted `queue convert` has left messages in its temporary queue, `doctor` reports these messages and
    suggests resuming the conversion.
    """
    watcher.run("mqtool", "send", "-q", "jobs.mqtool-convert", "x")
    found = findings(watcher, broker)
    assert found["left-over"]["what"] == "has 1 message of 'jobs', whose conversion has not ended"
    assert "mqtool queue convert --resume" in found["left-over"]["hint"]
    assert "no-consumer" not in found


def test_doctor_reports_a_user_who_can_write_to_orders_dlq_but_not_to_orders(
    watcher: Shell, broker: TestBroker
) -> None:
    """`dlq redrive` moves messages from the queue `orders.dlq` to `orders`. A user with write permission for
    `orders.dlq`, but not for `orders`, can therefore get messages into `orders` as soon as somebody else redrives
    them. `doctor` reports such a user, but not a user with write permission for both queues.
    """
    for queue in ("orders", "orders.dlq", "jobs"):
        watcher.run("mqtool", "queue", "declare", queue)
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    broker.api("PUT", f"users/{name}", {"password": name, "tags": ""})
    try:
        for pattern, example in (
            (r"^orders\.", "orders"),
            (r"\.dlq$", "jobs"),
            (r"^orders([.]|$)", ""),
            ("^order", ""),
        ):
            rights = {"configure": "^$", "write": pattern, "read": ".*"}
            broker.api("PUT", f"permissions/{broker.vhost}/{name}", rights)
            found = findings(watcher, broker)
            assert list(found) == (["permission"] if example else []), pattern
            if example:
                assert found["permission"]["thing"] == f"user {name!r}"
                assert found["permission"]["what"].startswith(f"may write to '{example}.dlq', but not '{example}'")
    finally:
        broker.api("DELETE", f"users/{name}")


@on_any_broker
def test_doctor_prints_equal_findings_one_a_line(watcher: Shell, broker: TestBroker) -> None:
    """If many queues have the same problem, `doctor` prints one line for each of the first 20, how many more there are,
    and one hint. With --json, `doctor` prints one finding for each queue.
    """
    many = [f"q{number:02}" for number in range(40)]
    for name in many:
        broker.api(
            "PUT", f"queues/{broker.vhost}/{name}", {"durable": True, "arguments": {"x-dead-letter-exchange": "gone"}}
        )
    looked = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms")
    *lines, more, hint = looked.stdout.splitlines()
    assert [line.split("'")[1] for line in lines] == many[:20]
    assert (more, hint[:2]) == ("… and 20 more like these; --json lists them", "  ")
    assert "40 findings" in looked.stderr
    each = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms", "--json").stdout.splitlines()
    assert sorted(json.loads(line)["thing"] for line in each) == [f"queue {name!r}" for name in many]


@pytest.mark.parametrize(
    ("like", "checks"), [("4.2", ["transient"]), ("4.3", []), (None, None)], ids=["4.2", "4.3", "this broker"]
)
@on_any_broker
def test_doctor_reports_transient_queues_unless_the_broker_is_one_that_accepts_them_for_good(
    lonely_shell: Shell, broker: TestBroker, like: str | None, checks: list[str] | None
) -> None:
    """RabbitMQ 4.3.6 accepts transient queues, so `doctor` does not report them there. An older RabbitMQ may be
    upgraded to a version that refuses them, so `doctor` reports them there.
    """
    with contextlib.ExitStack() as stack:
        url, management = broker.url, broker.management
        if like is not None:
            own = stack.enter_context(EmbeddedBroker(like=like, management_port=0))
            url, management = own.url, str(own.management_url)
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            connection.channel().queue_declare("old")
            vhost = broker.vhost if like is None else "/"
            looked = lonely_shell.run(
                *("mqtool", "doctor", "-u", url, "--management", management),
                *("--vhost", vhost, "--between", "10ms", "--json"),
            )
    found = [json.loads(line)["check"] for line in looked.stdout.splitlines()]
    assert found == (checks if checks is not None else [] if LIKE == "4.3" else ["transient"]), looked.stderr
    assert looked.code == (3 if found else 0)


def test_doctor_reports_policies_for_mirrored_queues(watcher: Shell, broker: TestBroker) -> None:
    """`doctor` reports policies with ha-mode, which RabbitMQ 4.0 no longer supports."""
    policy = {"pattern": "^ha-", "definition": {"ha-mode": "all"}, "apply-to": "queues"}
    try:
        broker.api("PUT", f"policies/{broker.vhost}/mirror", policy)
    except OSError:
        pytest.skip("this RabbitMQ refuses such a policy")
    assert findings(watcher, broker)["mirrored"]["thing"] == "policy 'mirror'"


@pytest.mark.differs_since("4.0", "it is 4.0 already")
def test_doctor_upgrade_reports_what_a_newer_rabbitmq_refuses(watcher: Shell, broker: TestBroker) -> None:
    """`doctor --upgrade 4.3` reports queues, exchanges and clients that RabbitMQ 4.3 refuses or treats differently,
    such as transient queues and clients with a global prefetch. `doctor --upgrade 4.0` reports only those that RabbitMQ
    4.0 already refuses or treats differently, such as lazy queues.
    """
    queues: dict[str, Any] = {
        "old": {"durable": False},
        "lazy": {"arguments": {"x-queue-mode": "lazy"}},
        "placed": {"arguments": {"x-queue-master-locator": "client-local"}},
        "quorum": {"arguments": {"x-queue-type": "quorum"}},
        "limited": {"arguments": {"x-queue-type": "quorum", "x-delivery-limit": 3}},
        "plain": {},
    }
    for name, settings in queues.items():
        broker.api("PUT", f"queues/{broker.vhost}/{name}", {"durable": True, **settings})
    delayed = watcher.run(
        "mqtool", "exchange", "declare", "later", "x-delayed-message", "--argument", "x-delayed-type=fanout"
    )

    def upgrading(version: str) -> set[tuple[str, str]]:
        told = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", version, "--json")
        assert told.code == 3, told.stderr
        assert "RabbitMQ 4.0: messages of more than 16 MiB" in told.stderr
        return {(finding["check"], finding["thing"]) for finding in map(json.loads, told.stdout.splitlines())}

    since_4_0 = {("lazy", "queue 'lazy'"), ("delivery-limit", "queue 'quorum'")}
    since_4_3 = {("transient", "queue 'old'"), ("queue-argument", "queue 'placed'"), ("global-prefetch", "client")}
    if delayed.code == 0:
        since_4_3.add(("delayed-exchange", "exchange 'later'"))
    since_4_3 |= {("transient-consumer", "client"), ("small-frames", "client")}
    assert upgrading("4.0") == since_4_0
    with held_connection(broker) as channel:
        channel.basic_qos(prefetch_count=5, global_qos=True)
        channel.basic_consume("old", lambda *_: None)

        def found() -> set[tuple[str, str]]:
            return {(check, "client" if thing.startswith("client") else thing) for check, thing in upgrading("4.3")}

        wait_until(lambda: found() == since_4_0 | since_4_3, lambda: f"found: {found()}")
        said = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", "4.3").stdout
    assert re.search(r"client 'billing' of user 'guest' at [\d.]+:\d+ \(amqplib 0.10.3\) in vhost", said)
    assert "upgrade amqplib to 0.10.7 or later" in said


@pytest.mark.parametrize(("version", "is_told"), [("4.3", False), ("4.4", True)], ids=["4.3", "4.4"])
def test_doctor_upgrade_lists_general_changes_in_version_4_4(
    watcher: Shell, broker: TestBroker, version: str, *, is_told: bool
) -> None:
    """`doctor --upgrade 4.4` lists changes in RabbitMQ 4.4 that do not depend on the broker's queues, exchanges and
    clients; for example, that OpenID Connect requires https. `doctor --upgrade 4.3` does not list these changes.
    """
    told = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", version).stderr
    for what in (
        "RabbitMQ 4.4: delivery mode, priority and expiration of messages that a stream stored before 4.0 are lost",
        "x-amqp-1.0-… headers",
        "RabbitMQ 4.4: OpenID Connect providers must use https",
        "RabbitMQ 4.4: definitions leave out bindings of exclusive queues; bindings of amq.* queues are not imported",
    ):
        assert (what in told) is is_told, told
    assert "knows only the changes up to" not in told


class RawHeaders(pika.BasicProperties):
    """Headers in AMQP's encoding, with duplicates and in any order, and other properties."""

    def __init__(self, *headers: tuple[str, object], **properties: Any) -> None:
        super().__init__(**properties)
        self.fields = [encode_short_string(name) + CLIENT.encode_value(value) for name, value in headers]

    def encode(self) -> list[bytes]:
        table = b"".join(self.fields)
        self.headers = {}
        flags, (number, *others) = 1 << 13, super().encode()
        del others[0]  # the empty table
        return [
            (int.from_bytes(number, "big") | flags).to_bytes(2, "big"),
            len(table).to_bytes(4, "big") + table,
            *others,
        ]


#: A dead letter's header, as RabbitMQ 3.10 writes it.
DEATH = [{"count": Int64(3), "exchange": "orders", "queue": "work", "reason": "rejected", "routing-keys": ["work"]}]
#: Messages that RabbitMQ 4.3 treats differently: the check that finds each, its routing key, and its properties.
PLANTED: list[tuple[str, str, pika.BasicProperties]] = [
    ("integer-type", "plain", RawHeaders(("x-id", [{"n": Int64L(5)}]))),
    ("header-order", "plain", RawHeaders(("b", 1), ("a", 2))),
    ("duplicate-header", "plain", RawHeaders(("a", 1), ("a", 2))),
    ("message-priority", "fast", pika.BasicProperties(priority=7)),
    ("priority-limit", "fast", pika.BasicProperties(priority=200)),
    ("no-priority", "fast", pika.BasicProperties()),
    ("copies", "work", RawHeaders(("CC", ["plain"]))),
    ("x-death", "work", RawHeaders(("x-death", DEATH))),
    ("message-expiration", "short", pika.BasicProperties(expiration="60000")),
    ("mqtt-header", "plain", RawHeaders(("x-mqtt-dup", False), ("x-mqtt-publish-qos", Int8(1)))),
    ("amqp10-header", "plain", RawHeaders(("price", Decimal("1.50")))),
    ("message-size", "plain", pika.BasicProperties()),
]
#: Messages that resemble those, and that RabbitMQ 4.3 treats in the same way.
HARMLESS: list[tuple[str, pika.BasicProperties]] = [
    ("plain", RawHeaders(("id", Int64(1 << 40)), ("n", Int8(5)), ("x", 1.5))),
    ("plain", RawHeaders(("a", None), ("b", True), ("c", "text"))),
    ("plain", pika.BasicProperties(priority=200)),
    ("quorum", pika.BasicProperties(content_type="text/plain")),
    ("plain", RawHeaders(("CC", ["plain"]))),
    ("work", RawHeaders(("BCC", ["plain"]))),
    ("plain", RawHeaders(("x-list", [1, 2]), ("x-table", {"z": 1, "a": 2}))),
    ("work", pika.BasicProperties(expiration="60000")),
    ("plain", pika.BasicProperties(content_type="text/plain", delivery_mode=2, message_id="1", reply_to="plain")),
    ("dead", RawHeaders(("x-death", [{**DEATH[0], "queue": "dying"}]))),
]


@contextmanager
def watched_exchange(watcher: Shell, broker: TestBroker, count: int) -> Iterator[tuple[BlockingChannel, Running]]:
    """A channel to publish to the exchange orders, while `doctor --traffic` looks at its next `count` messages."""
    queues: dict[str, dict[str, Any]] = {
        "plain": {},
        "fast": {"x-queue-type": "quorum", "x-delivery-limit": 20},
        "quorum": {"x-queue-type": "quorum", "x-delivery-limit": 20},
        "work": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "plain"},
        "dying": {"x-dead-letter-exchange": "orders", "x-dead-letter-routing-key": "dead"},
        "dead": {},
        "short": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "kept"},
        "kept": {"x-queue-type": "stream"},
    }
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare("orders", "direct")
        for name, arguments in queues.items():
            channel.queue_declare(name, durable=True, arguments=arguments)
            channel.queue_bind(name, "orders")
        look = f"mqtool doctor --vhost {broker.vhost} --upgrade 4.3 --traffic orders --for 1m -c {count} --json"
        looking = watcher.start(*look.split(), ready=False).wait_for_stderr("watching")
        yield channel, looking


@pytest.mark.differs_since("4.0", "it does already what 4.0 does")
def test_doctor_traffic_names_messages_that_a_newer_rabbitmq_treats_differently(
    watcher: Shell, broker: TestBroker
) -> None:
    """`doctor --upgrade 4.3 --traffic EXCHANGE` names each kind of message that RabbitMQ 4.3 refuses or delivers
    differently, with an example, and takes no message from a queue.
    """
    with watched_exchange(watcher, broker, len(PLANTED)) as (channel, looking):
        for check, key, properties in PLANTED:
            body = bytes((16 << 20) + 1) if check == "message-size" else b"secret"
            channel.basic_publish("orders", key, body, properties)
        told = looking.wait()
        assert channel.queue_declare("work", passive=True).method.message_count == 2
    assert told.code == 3, told.stderr
    found = {each["check"]: each for each in map(json.loads, told.stdout.splitlines())}
    assert found.keys() == {check for check, _, _ in PLANTED}
    for check, key, _ in PLANTED:
        assert found[check]["thing"] == "exchange 'orders'"
        assert f"(1 of 12; for example routing key '{key}', " in found[check]["what"], found[check]
    assert "header 'x-id'" in found["integer-type"]["what"]
    assert "'a' after 'b'" in found["header-order"]["what"]
    assert "secret" not in told.stdout
    page = (ROOT / "docs" / "reference" / "changed-messages.md").read_text()
    assert set(re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)) == found.keys()


@pytest.mark.differs_since("4.0", "it does already what 4.0 does")
def test_doctor_traffic_is_silent_about_messages_that_stay_the_same(watcher: Shell, broker: TestBroker) -> None:
    """`doctor --traffic` reports no message that RabbitMQ 4.3 treats in the same way, for example those with a priority
    for a classic queue.
    """
    with watched_exchange(watcher, broker, len(HARMLESS)) as (channel, looking):
        for key, properties in HARMLESS:
            channel.basic_publish("orders", key, b"x", properties)
        told = looking.wait()
    assert (told.code, told.stdout) == (0, ""), told.stderr
    assert "10 messages passed through 'orders'" in told.stderr


@pytest.mark.parametrize("option", ["--peek", "--traffic"])
def test_doctor_checks_messages_between_the_versions_of_the_upgrade_only(lonely_shell: Shell, option: str) -> None:
    """On RabbitMQ 4.0, `doctor --upgrade 4.3` checks messages by the rules that are new in 4.3: one without a priority,
    in a quorum queue that also gets some with one. `--upgrade 4.2` says that nothing changes for messages.
    """
    with EmbeddedBroker(management_port=0, like="4.0") as started, pika_channel(started.url) as channel:
        lonely_shell.environment |= {"MQTOOL_URL": started.url, "MQTOOL_MANAGEMENT_URL": str(started.management_url)}
        arguments = {"x-queue-type": "quorum", "x-dead-letter-exchange": ""}
        channel.queue_declare("jobs", durable=True, arguments=arguments)
        channel.exchange_declare("orders", "fanout")
        channel.queue_bind("jobs", "orders")
        look = ["mqtool", "doctor", "--json", option, *(["9"] if option == "--peek" else ["orders", "-c", "2"])]
        same = lonely_shell.run(*look, "--upgrade", "4.2")
        assert "messages were not checked: from RabbitMQ 4.0.5 to 4.2, nothing changes for them" in same.stderr
        if option == "--traffic":
            looking = lonely_shell.start(*look, "--upgrade", "4.3", ready=False).wait_for_stderr("watching")
        for properties in (pika.BasicProperties(priority=3), pika.BasicProperties()):
            channel.basic_publish("orders", "", b"x", properties)
        told = looking.wait() if option == "--traffic" else lonely_shell.run(*look, "--upgrade", "4.3")
    assert "no-priority" in [json.loads(line)["check"] for line in told.stdout.splitlines()], told.stderr


@contextmanager
def pika_channel(url: str) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


@contextmanager
def held_connection(broker: TestBroker) -> Iterator[BlockingChannel]:
    """A channel of a client that claims to be an old amqplib, and negotiates small frames like it."""
    settings = pika.URLParameters(broker.url)
    settings.frame_max = 4096
    settings.client_properties = {"product": "amqplib", "version": "0.10.3", "connection_name": "billing"}
    with pika.BlockingConnection(settings) as connection:
        yield connection.channel()


def reported(watcher: Shell, *doctor: str) -> str:
    """Run `doctor`, which must be able to check the broker; return what it has found."""
    checked = watcher.run(*doctor)
    assert checked.code in (0, 3), checked.stderr
    return checked.stdout


@pytest.mark.differs_since("4.0", "it is 4.0 already")
def test_doctor_upgrade_peek_checks_messages_and_leaves_them_in_the_queue(watcher: Shell, broker: TestBroker) -> None:
    """From RabbitMQ 4.0 on, the count in a message's x-death starts again at 1 if a client publishes the message again.
    `doctor --upgrade 4.0 --peek` therefore reports a message with a high count, and leaves it in its queue. Without
    --peek, `doctor` does not look at messages.
    """
    death = json.dumps([{"count": 57, "queue": "jobs", "reason": "rejected", "exchange": ""}])
    watcher.run("mqtool", "queue", "declare", "jobs", "--queue-type", "classic")
    watcher.run("mqtool", "send", "-q", "jobs", "--no-declare", "-H", f"x-death:={death}", "x")
    look = ("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", "4.0")
    told = "queue 'jobs' in vhost " + repr(broker.vhost) + " has a message whose x-death counts 57"
    wait_until(lambda: told in reported(watcher, *look, "--peek", "3"), "the count of messages")
    assert watcher.run(*look).code == 0
    assert watcher.run("mqtool", "peek", "jobs", "--raw").stdout == "x\n"


@pytest.mark.differs_since("4.0", "it is 4.0 already")
def test_doctor_upgrade_finds_messages_near_the_delivery_limit(watcher: Shell, broker: TestBroker) -> None:
    """From RabbitMQ 4.0 on, quorum queues have a default delivery limit of 20. `doctor --upgrade 4.0 --peek` therefore
    reports a quorum queue with a message that was requeued 15 times.
    """
    watcher.run("mqtool", "send", "-q", "jobs", "--queue-type", "quorum", "--durable", "x")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        for _ in range(15):
            method = None
            while method is None:  # a quorum queue has a requeued message a moment later
                method, _, _ = channel.basic_get("jobs")
            channel.basic_nack(method.delivery_tag)
    look = ("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", "4.0", "--peek", "1")
    told = re.compile(
        r"queue 'jobs' in vhost \S+ has a message that was returned 1\d times: since RabbitMQ 4.0, the de"
    )
    wait_until(lambda: told.search(reported(watcher, *look)) is not None, "the number of requeues")


@pytest.mark.differs_since("4.0", "it is 4.0 already")
def test_doctor_upgrade_refuses_an_older_version(watcher: Shell) -> None:
    """`doctor --upgrade VERSION` exits with 2 if VERSION is older than the broker's own version, or is not a version
    number.
    """
    told = watcher.run("mqtool", "doctor", "--upgrade", "3.9")
    assert told.code == 2
    assert "the broker is RabbitMQ 3." in told.stderr
    assert watcher.run("mqtool", "doctor", "--upgrade", "newest").code == 2


@on_any_broker
def test_doctor_prints_a_nagios_check(watcher: Shell, broker: TestBroker) -> None:
    """`doctor --format nagios` prints a summary line and uses Nagios's exit codes. If the broker or its management API
    does not answer, the state is CRITICAL. If the virtual host does not exist, the state is UNKNOWN.
    """
    check = ("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms", "--format", "nagios")
    fine = watcher.run(*check)
    assert fine.code == 0
    assert fine.stdout.startswith("RABBITMQ OK - no problems at amqp://")
    assert fine.stdout.endswith(" | critical=0 warning=0\n")
    broker.api(
        "PUT", f"queues/{broker.vhost}/old%7Cqueue", {"durable": True, "arguments": {"x-dead-letter-exchange": "gone"}}
    )
    bad = watcher.run(*check)
    assert bad.code == 1
    first, *rest = bad.stdout.splitlines()
    assert first.startswith("RABBITMQ WARNING - 1 problem at amqp://")
    assert first.endswith(
        "'old¦queue' in vhost " + f"{broker.vhost!r} has the dead-letter exchange 'gone', "
        "which does not exist: its dead letters are lost | critical=0 warning=1"
    )
    assert len(rest) == 1
    gone = watcher.run(*check, "--management", "http://127.0.0.1:1")
    assert (gone.code, gone.stdout.partition(" - ")[0]) == (2, "RABBITMQ CRITICAL"), gone.stderr
    deaf = watcher.run(*check, "-u", "amqp://guest:guest@127.0.0.1:1", "--management", broker.management)
    assert (deaf.code, deaf.stdout.partition(" - ")[0]) == (2, "RABBITMQ CRITICAL"), deaf.stdout
    refused = watcher.run(*check[:3], "no-such-vhost", *check[4:])
    assert (refused.code, refused.stdout.partition(" - ")[0]) == (3, "RABBITMQ UNKNOWN"), refused.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--format nagios --between xx", "'xx' is not a duration"),
        ("--betwen 1s --format=nagios", "unknown option --betwen"),
        ("--format nagios --stream-port abc", "'abc' is not a number"),
        ("--format nagios --peek 1", "--peek needs --upgrade"),
        ("--format nagios --upgrade 4.3 no-such-file", "no-such-file"),
    ],
)
def test_a_nagios_check_with_a_wrong_command_line_reports_unknown(lonely_shell: Shell, words: str, said: str) -> None:
    """If the command line of `doctor --format nagios` is wrong, or names a file that does not exist, stdout has one
    line for Nagios with the reason, and the exit code is 3 (UNKNOWN).
    """
    checked = lonely_shell.run("mqtool", "doctor", *words.split())
    assert (checked.code, checked.stderr) == (3, "")
    assert checked.stdout.startswith("RABBITMQ UNKNOWN - ")
    assert said in checked.stdout
    assert len(checked.stdout.splitlines()) == 1


@pytest.mark.parametrize("words", ["--between xx", "--format json --between xx", "--format nagios --json --between xx"])
def test_doctor_exits_with_2_if_its_command_line_is_wrong_and_its_format_is_not_nagios(
    lonely_shell: Shell, words: str
) -> None:
    """If the command line of `doctor` is wrong, and the output format is not nagios, the error is on stderr, and the
    exit code is 2.
    """
    refused = lonely_shell.run("mqtool", "doctor", *words.split())
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("mqtool: ")


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param("exec 4> /dev/full", id="full disk"),
        pytest.param("mkfifo pipe; (exec 3< pipe) & exec 4> pipe; wait; rm pipe", id="pipe whose reader has ended"),
    ],
)
def test_a_nagios_check_that_cannot_print_is_unknown(watcher: Shell, broker: TestBroker, opening: str) -> None:
    """If `doctor --format nagios` cannot write to stdout, it prints an error on stderr, and its exit code is 3
    (UNKNOWN), even if no broker answers.
    """
    if "/dev/full" in opening and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    check = f"mqtool doctor --vhost {broker.vhost} --between 10ms --format nagios"
    for url in ("", "-u amqp://guest@127.0.0.1:1"):
        failed = watcher.script(f"{opening}; {check} {url} >&4")
        assert failed.code == 3, failed.stderr
        assert failed.stderr.startswith("mqtool: ")


@pytest.mark.parametrize("silent_part", ["the management API", "all nodes"])
def test_doctor_format_nagios_reports_a_silent_broker_as_critical_in_time(
    watcher: Shell, broker: TestBroker, silent_part: str
) -> None:
    """If the management API, or each of the three nodes given with -u, accepts connections but never replies, `doctor
    --format nagios` reports CRITICAL and exits with 2 within 25 seconds, so that the monitoring system does not end
    the check first.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        is_api = silent_part == "the management API"
        where = ("--management", f"http://{at}") if is_api else ("-u", ",".join([f"amqp://{at}"] * 3))
        check = ("mqtool", "doctor", "--vhost", broker.vhost, "--format", "nagios", *where)
        checked = watcher.run(*check, timeout=25)  # far more than it takes
    assert checked.code == 2, checked.stderr
    assert checked.stdout.startswith("RABBITMQ CRITICAL - ")
    assert at in checked.stdout


@on_any_broker
def test_doctor_prints_prometheus_metrics(watcher: Shell, broker: TestBroker) -> None:
    """`doctor --format prometheus` prints the number of findings of each check, and exits with 0 even if there are
    findings.
    """
    for name in ("a", "b"):
        broker.api("PUT", f"queues/{broker.vhost}/{name}", {"durable": False})
    said = watcher.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms", "--format", "prometheus")
    assert said.code == 0
    labels = f'check="transient",severity="warning",vhost="{broker.vhost}"'
    assert f"mqtool_doctor_findings{{{labels}}} 2" in said.stdout.splitlines()
    assert "mqtool_doctor_last_run_timestamp_seconds" in said.stdout


def test_top_prints_once_in_a_pipe(watcher: Shell, broker: TestBroker) -> None:
    """In a pipe, `top` prints all queues once, sorted by the column that --sort names, with the warning "no consumer"
    for each queue that has messages but no consumer. The message rates of streams are left empty.
    """
    broker.api("PUT", f"queues/{broker.vhost}/a", {"durable": True, "arguments": {"x-queue-type": "stream"}})
    watcher.run("mqtool", "send", "-q", "few", "x")
    watcher.run("mqtool", "send", "-q", "many", "-l", stdin="x\n" * 20)

    def rows() -> list[list[str]]:
        return [line.split("\t") for line in watcher.run("mqtool", "top", "--sort", "ready").stdout.splitlines()]

    for name in ("z", "y"):
        broker.api("PUT", f"queues/{broker.vhost}/{name}", {"durable": True})
    wanted = [["many", "20", "0", "0"], ["few", "1", "0", "0"], *([name, "0", "0", "0"] for name in "ayz")]
    wait_until(lambda: [row[:4] for row in rows()] == wanted, "statistics")
    assert [row[-1] for row in rows()] == ["no consumer", "no consumer", "", "", ""]
    assert rows()[2][4:7] == ["", "", ""]
    assert watcher.run("mqtool", "top", "--sort", "size").code == 2


@on_any_broker
def test_keys_sort_and_quit_top_on_a_terminal(watcher: Shell) -> None:
    """On a terminal, the key u sorts the queues in `top` by unacknowledged messages, and the key n sorts them by name.
    The key q quits with exit code 0 and restores the screen. Other keys do nothing.
    """
    watcher.run("mqtool", "send", "-q", "few", "x")
    keys = ["u", "n", "\x1b[A", "x", "q"]
    played = on_terminal(watcher, "mqtool", "top", "--interval", "100ms", keys=keys, cue="sorted by")
    assert played.code == 0, played.stdout
    for order in ("sorted by ready ↓", "sorted by unacked ↓", "sorted by name ↑"):
        assert order in played.stdout
    assert "\x1b[?1049l" in played.stdout, "the alternate screen was not left"


@on_any_broker
def test_enter_peeks_at_the_queue_below_the_cursor_of_top(watcher: Shell) -> None:
    """In `top`, the down arrow moves the cursor to the next queue. Enter shows the messages of that queue, which
    stay there.
    """
    watcher.run("mqtool", "send", "-q", "a-queue", "not shown")
    watcher.run("mqtool", "send", "-q", "b-queue", "shown by Enter")
    with closable_terminal(watcher, "mqtool", "top", "--sort", "name", "--interval", "100ms") as terminal:
        terminal.wait_for("b-queue")
        terminal.type("\x1b[B\r")
        terminal.wait_for("b-queue: shown by Enter")
        terminal.wait_for("any key goes back")
    assert watcher.run("mqtool", "receive", "-q", "b-queue", "--raw", "--until-empty").stdout == "shown by Enter\n"


def test_doctor_reports_that_guest_can_log_in_over_tls(amqp_tls: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user guest can log in over TLS from another machine, `doctor` reports this. If `doctor` lacks the TLS
    files that it needs for this check, it says what it could not check.
    """
    monkeypatch.setattr(doctor, "_LOOPBACK", ())  # treat localhost, which the certificate names, as another machine
    with EmbeddedBroker(management_port=0, tls=amqp_tls.tls()) as broker:
        assert broker.tls_url is not None
        access = Access(parse_addresses(broker.tls_url), TlsFiles(amqp_tls.ca), broker.urls["https"])
        assert [each.check for each in doctor._guest(access.management(), access)] == ["guest"]
        unchecked: list[Unchecked] = []
        guest = doctor._guest(access.management(), access._replace(tls=TlsFiles()))
        assert not [*doctor._tried("guest", guest, unchecked, MqtoolError)]
    assert [str(each).partition(": ")[0] for each in unchecked] == ["logins as guest from the network were not checked"]
    assert unchecked[0].why.startswith("the certificate")


@on_any_broker
def test_top_once_leaves_out_columns_on_a_narrow_terminal_rather_than_break_a_name(watcher: Shell) -> None:
    """If a terminal has no room for all columns, `top --once` leaves out the rates and, if that is not enough, the
    number of consumers. It never breaks the names of queues.
    """
    watcher.run("mqtool", "send", "-q", "invoices.dead-letters", "x")
    rows, rates = {}, []
    for width in (100, 80, 60):
        printed = on_terminal(watcher, "mqtool", "top", "--once", columns=width).stdout
        rates.append([name for name in ("in/s", "out/s", "ack/s") if name in printed])
        [rows[width]] = [line.split() for line in printed.splitlines() if "invoices.dead-letters" in line]
    counts = ["invoices.dead-letters", "1", "0"]
    assert rows[100][:4] == rows[80][:4] == [*counts, "0"]
    assert rows[100][-2:] == rows[80][4:] == rows[60][3:] == ["no", "consumer"]
    assert rows[60][:3] == counts
    assert rates == [["in/s", "out/s", "ack/s"], [], []]


def test_doctor_and_list_show_what_stopped_and_what_is_deprecated(lonely_shell: Shell) -> None:
    """`doctor` reports shovels that are terminated and federation links that do not work, with the broker's reason but
    without passwords, and deprecated features that are in use. `list` shows all of these. The answers are those of
    RabbitMQ 4.3.6.
    """
    shovels = [
        {"name": "dead", "vhost": "/", "type": "dynamic", "state": "terminated", "reason": '"failed to connect"'},
        {"name": "alive", "vhost": "/", "type": "dynamic", "state": "running", "src_uri": "amqp://ann:s3cr3t@a"},
    ]
    link = {"vhost": "/", "upstream": "up", "status": "error", "error": "cannot open amqp://ann:s3cr3t@b"}
    links = [
        {**link, "type": "queue", "queue": "q"},
        {**link, "type": "exchange", "exchange": "e", "status": "running"},
    ]
    parameters = [{"vhost": "/", "component": "shovel", "name": "dead", "value": {"src-uri": "amqp://ann:s3cr3t@a"}}]
    overview = {"rabbitmq_version": "4.3.6", "listeners": []}
    bodies = {"shovels": shovels, "federation-links": links, "parameters": parameters, "overview": overview}
    bodies |= {"deprecated-features": [{"name": "global_qos", "state": "permitted", "doc_url": "https://a"}]}
    with serving(bodies) as (url, _):
        broker = ("--management", url, "-u", "amqp://127.0.0.1:1")
        looked = lonely_shell.run("mqtool", "doctor", "--between", "10ms", "--json", *broker)
        found = {each["thing"]: each["what"] for each in map(json.loads, looked.stdout.splitlines())}
        listed = {
            kind: lonely_shell.run("mqtool", "list", kind, *broker).stdout
            for kind in ("shovels", "federation", "parameters", "deprecated")
        }
        uris = lonely_shell.run("mqtool", "list", "shovels", "name", "src_uri", *broker).stdout
    assert found == {
        "shovel 'dead'": "is terminated: failed to connect",
        "federation link of queue 'q' to upstream 'up'": "does not work: cannot open amqp://ann@b",
        "feature 'global_qos'": "is in use and deprecated, and a later RabbitMQ refuses it",
    }
    assert listed["deprecated"].startswith("global_qos\tpermitted\ttrue\t")
    assert listed["shovels"].startswith("dead\tdynamic\tterminated\t")
    assert listed["federation"].splitlines()[0] == "up\tqueue\t\tq\terror\tcannot open amqp://ann@b"
    assert listed["parameters"] == 'shovel\tdead\t{"src-uri":"amqp://ann@a"}\n'
    assert "s3cr3t" not in uris
