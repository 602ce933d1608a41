"""Commands with --protocol amqp1.0, on every broker that speaks AMQP 1.0."""

import base64
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from mqtool.address import parse_addresses
from mqtool.amqp10.link_session import LinkSession
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.amqp10_message import (
    APPLICATION_PROPERTIES,
    MESSAGE_ANNOTATIONS,
    Amqp10Message,
    BareProperties,
    MessageHeader,
    data_section,
    value_section,
)
from mqtool.codecs.amqp10_values import Array, Milliseconds, Symbol, ULong, compound, encode, section
from mqtool.codecs.field_tables import Float32, Int8, Int16, UInt8, UInt16, UInt32
from mqtool.errors import DeclaredDifferently
from mqtool.topology import Queue
from tests.brokers import TestBroker, depth, large, skip_without_amqp10
from tests.cli.shell import IDLE, Shell, wait_until
from tests.cli.test_exec import lose_replies
from tests.corpus.frames import recorded, sections
from tests.protocol.raw_amqp10 import ACCEPTED, TRANSFER, RawAmqp10, described
from tests.proxy import Proxy

OVER_1_0 = ("--protocol", "amqp1.0")


@pytest.fixture(scope="module")
def embedded() -> Iterator[TestBroker]:
    """An embedded broker that behaves like RabbitMQ 4.3, used instead of the one that all tests share."""
    with EmbeddedBroker(like="4.3", management_port=0) as broker:
        yield TestBroker("embedded", broker.url.removesuffix("/%2F"), str(broker.management_url))


@pytest.fixture(autouse=True)
def _amqp10(broker: TestBroker, shell: Shell) -> None:
    skip_without_amqp10(broker)
    shell.environment["MQTOOL_PROTOCOL"] = "amqp1.0"


@pytest.fixture
def proxy(broker: TestBroker) -> Iterator[Proxy]:
    with Proxy(broker.port) as proxy:
        yield proxy


def through(proxy: Proxy, broker: TestBroker) -> str:
    return broker.url.replace(f":{broker.port}", f":{proxy.port}")


def skip_before_4_2(broker: TestBroker, what: str) -> None:
    if broker.differs_since("4.0", what) and not broker.differs_since("4.2", what):
        pytest.skip(f"{what} from RabbitMQ 4.2 on")


def test_messages_of_real_clients_are_copied_over_amqp_1_0(shell: Shell, broker: TestBroker) -> None:
    """tests/corpus has what AMQP 1.0 clients publish. `receive --json | send --json` copies each of these messages: all
    sections have the same values, of the same types.
    """
    messages = recorded("amqp10")
    for name in ("source", "observed"):
        shell.script(f"mqtool queue declare {name} --queue-type classic; mqtool exchange bind amq.fanout {name}")
    with RawAmqp10(broker.url) as client:
        client.attach_sender("/exchanges/amq.fanout/corpus")
        for number, message in enumerate(messages):
            assert client.published(number, message["message"]).descriptor == ACCEPTED

        # To one exchange with one key; with the messages' own, each copy would also have the property `to`.
        copying = f"mqtool receive -q source -c {len(messages)} --json | mqtool send --json -e amq.fanout -r corpus"
        copied = shell.script(copying)

        assert copied.code == 0, copied.stderr
        client.attach_receiver("/queues/observed", handle=1)
        found = [sections(client.expect(TRANSFER).payload) for _ in range(2 * len(messages))]
    pairs = zip(messages, found[: len(messages)], found[len(messages) :], strict=True)
    assert [(message["client"], before, after) for message, before, after in pairs if before != after] == []


def test_send_and_receive_print_the_same_lines_over_amqp_1_0(shell: Shell) -> None:
    """If AMQP 1.0 is chosen with --protocol or MQTOOL_PROTOCOL, `send` and `receive` print the same lines as over AMQP
    0-9-1. `send --every` repeats its text.
    """
    sent = shell.run("mqtool", "send", *OVER_1_0)
    received = shell.run("mqtool", "receive", "-c", "1")
    assert shell.run("mqtool", "send", *OVER_1_0, "--every", "10ms", "--count", "2", "{n}").code == 0
    assert shell.run("mqtool", "receive", "--until-empty", "--raw").stdout == "1\n2\n"
    assert (sent.stdout, sent.stderr, sent.code) == ("", " [x] Sent 'Hello World!'\n", 0)
    assert (received.stdout, received.code) == (" [x] Received Hello World!\n", 0)
    assert received.stderr == " [*] Waiting for messages. To exit press CTRL+C\n"


@pytest.mark.parametrize(("there", "back"), [("amqp0.9.1", "amqp1.0"), ("amqp1.0", "amqp0.9.1"), ("amqp1.0",) * 2])
def test_properties_and_headers_are_the_same_over_both_protocols(
    shell: Shell, broker: TestBroker, there: str, back: str
) -> None:
    """A message keeps its body, properties and headers if it is sent over AMQP 0-9-1 and received over AMQP 1.0, or
    vice versa, or if AMQP 1.0 is used for both.
    """
    if there != back:
        skip_before_4_2(broker, "reply-to is converted between a queue and its address")
    properties = {"content_type": "text/plain", "correlation_id": "c-1", "reply_to": "a queue", "type": "order",
                  "app_id": "me", "expiration": "60000", "timestamp": 1700000000, "delivery_mode": 2}  # fmt: skip
    headers = {"a": "b", "n": 5, "yes": True, "x-list": [1, "two"]}
    given = [f"--property={name}={value}" for name, value in properties.items()]
    given += [f"--header={name}:={json.dumps(value)}" for name, value in headers.items()]
    assert shell.run("mqtool", "send", *given, "häé", "--protocol", there).code == 0
    received = json.loads(shell.run("mqtool", "receive", "-c", "1", "--json", "--protocol", back).stdout)
    assert received["body"] == "häé"
    assert {name: received["headers"][name] for name in headers} == headers
    assert properties.items() <= received["properties"].items()
    assert (received["exchange"], received["routing_key"], received["redelivered"]) == ("", "hello", False)


#: A program that prints what it gets, and whose message is dead-lettered.
PRINTS = 'echo "$MQ_EXCHANGE $MQ_ROUTING_KEY $MQ_HEADER_TENANT $MQ_MESSAGE_ID"; cat; exit 65'


@pytest.mark.parametrize("protocol", ["amqp0.9.1", "amqp1.0"])
def test_workers_program_gets_all_parts_of_a_message_with_a_forged_x_opt_deaths(shell: Shell, protocol: str) -> None:
    """RabbitMQ's annotation x-opt-deaths lists the queues that have dead-lettered a message. Even if a publisher sets
    x-opt-deaths to a number, the program that `worker` runs over AMQP 1.0 gets the message's body, exchange, routing
    key, headers and properties. If the program fails, the dead letter contains them, too.
    """
    shell.run("mqtool", "exchange", "declare", "orders", "topic")
    shell.run("mqtool", "queue", "declare", "all")
    shell.run("mqtool", "exchange", "bind", "orders", "all", "#")
    headers = ("-H", "x-opt-deaths:=5", "-H", "tenant=acme", "--property", "message-id=m1")
    sent = shell.run("mqtool", "send", "-e", "orders", "-r", "a.b", *headers, "body", "--protocol", protocol)
    assert sent.code == 0, sent.stderr
    worker = shell.run("mqtool", "worker", "-q", "all", "-c", "1", "--shell", "--exec", PRINTS)
    assert worker.stdout.splitlines() == ["orders a.b acme m1", "body"]
    dead = json.loads(shell.run("mqtool", "receive", "-q", "all.dlq", "--json", "-c", "1").stdout)
    assert (dead["body"], dead["properties"]["message_id"], dead["headers"]["tenant"]) == ("body", "m1", "acme")
    assert (dead["headers"]["mqtool-exchange"], dead["headers"]["mqtool-routing-key"]) == ("orders", "a.b")


def test_a_publisher_cannot_forge_the_exchange_and_the_routing_key(shell: Shell, broker: TestBroker) -> None:
    """If a publisher adds the annotations x-exchange and x-routing-key to a message, each of them twice and with a
    false value, `receive` over AMQP 1.0 still prints the exchange and the routing key with which the broker routed the
    message.
    """
    shell.run("mqtool", "exchange", "declare", "orders", "topic")
    shell.run("mqtool", "queue", "declare", "all")
    shell.run("mqtool", "exchange", "bind", "orders", "all", "#")
    forged = [encode(part) for part in (Symbol("x-exchange"), "evil", Symbol("x-routing-key"), "all")] * 2
    with RawAmqp10(broker.url) as client:
        client.attach_sender("/exchanges/orders/a.b")
        annotations = section(MESSAGE_ANNOTATIONS, compound(0xC1, forged))
        assert client.published(0, annotations + data_section(b"body")).descriptor == ACCEPTED
    received = json.loads(shell.run("mqtool", "receive", "-q", "all", "--json", "-c", "1").stdout)
    assert (received["body"], received["exchange"], received["routing_key"]) == ("body", "orders", "a.b")


def _published(broker: TestBroker, queue: str, properties: dict[str, Any]) -> None:
    """Publish a message to a queue, with these application properties."""
    values = [encode(part) for pair in properties.items() for part in pair]
    with RawAmqp10(broker.url) as client:
        client.attach_sender(f"/queues/{queue}")
        written = section(APPLICATION_PROPERTIES, compound(0xC1, values))
        assert client.published(0, written + data_section(b"body")).descriptor == ACCEPTED


@pytest.mark.parametrize("retries", ["0", "1"])
def test_worker_publishes_no_copy_to_a_queue_named_in_an_application_property_x_cc(
    shell: Shell, broker: TestBroker, retries: str
) -> None:
    """A message's annotation x-cc lists further routing keys. If a publisher instead names a queue in an application
    property called x-cc, this queue gets no copy of the message when `worker` over AMQP 1.0 retries or dead-letters it.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    shell.run("mqtool", "queue", "declare", "secret")
    _published(broker, "jobs", {"x-cc": ["secret"]})
    worker = ("mqtool", "worker", "-q", "jobs", "--exec", "false", "--retries", retries, "--backoff", "1ms")
    done = shell.run(*worker, "-c", str(int(retries) + 1))
    assert "now in jobs.dlq" in done.stderr
    assert (depth(broker, "jobs"), depth(broker, "jobs.dlq"), depth(broker, "secret")) == (0, 1, 0)


def test_worker_retries_a_message_with_a_list_in_an_application_property(shell: Shell, broker: TestBroker) -> None:
    """AMQP 1.0 does not allow a list in an application property, but a publisher can send one. `worker` over AMQP 1.0
    retries this message like any other, and also passes the message's other application properties to its program on
    the retry.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    _published(broker, "jobs", {"odd": ["a"], "tenant": "acme"})
    program = "echo $MQ_ATTEMPT $MQ_HEADER_TENANT; exit 1"
    worker = ("mqtool", "worker", "-q", "jobs", "--retries", "1", "--backoff", "1ms", "-c", "2")
    done = shell.run(*worker, "--shell", "--exec", program)
    assert done.stdout.splitlines() == ["1 acme", "2 acme"], done.stderr
    assert "dropped" not in done.stderr


def test_a_large_binary_body_arrives_unchanged(shell: Shell, tmp_path: Path) -> None:
    """Over AMQP 1.0, `send -f` sends a binary body of 500 KB, which takes many frames, and `receive --raw` prints the
    same bytes.
    """
    body = bytes(range(256)) * 2000
    (tmp_path / "body").write_bytes(body)
    assert shell.run("mqtool", "send", "-f", str(tmp_path / "body")).code == 0
    assert shell.run("mqtool", "receive", "-c", "1", "--raw").stdout_bytes == body + b"\n"


@pytest.mark.parametrize(
    "prefetch",
    [[], ["--prefetch", "1"], ["--prefetch", "0"], ["--auto-ack"]],
    ids=lambda options: " ".join(options) or "default prefetch",
)
@pytest.mark.sampled(1)
def test_lines_are_received_once_and_in_order(shell: Shell, prefetch: list[str]) -> None:
    """Over AMQP 1.0, `receive` prints each of 1,500 lines once and in order, whether --prefetch is 1, 0 (unlimited) or
    not given, and also with --auto-ack.
    """
    lines = "".join(f"{number}\n" for number in range(1500))
    assert shell.run("mqtool", "send", "-l", stdin=lines).code == 0
    assert shell.run("mqtool", "receive", "--raw", "-c", "1500", *prefetch).stdout == lines


def test_receive_consumes_only_the_messages_that_it_prints(shell: Shell, broker: TestBroker) -> None:
    """Over AMQP 1.0, `receive -c 1` consumes only the first message. With --where, it consumes only the first message
    that matches the condition. The other messages stay in the queue.
    """
    shell.run("mqtool", "send", "-l", stdin="1\n2\n3\n4\n")
    assert shell.run("mqtool", "receive", "-c", "1", "--raw").stdout == "1\n"
    assert shell.run("mqtool", "receive", "-c", "1", "--raw", "--where", "body == '3'").stdout == "3\n"
    rest = shell.run("mqtool", "receive", "--json", "--idle-timeout", IDLE).stdout.splitlines()
    assert sorted(json.loads(line)["body"] for line in rest) == ["2", "4"]
    if broker.differs_since("4.3", "what is released does not count as delivered in vain"):
        assert not any("x-delivery-count" in (json.loads(line)["headers"] or {}) for line in rest)


def test_send_refuses_a_cc_header_that_is_not_a_list_of_routing_keys(shell: Shell) -> None:
    """If the header CC is not a list of strings, `send` over AMQP 1.0 exits with 65, as over AMQP 0-9-1. The error
    says that the header must be a list of routing keys.
    """
    for value in ("CC=copy", "CC:=[1]"):
        sent = shell.run("mqtool", "send", "-q", "q", "-H", value, "Hello")
        assert (sent.code, sent.stderr) == (
            65,
            "mqtool: the header 'CC' must be a list of routing keys\nhint: write it as JSON: -H 'CC:=[\"KEY\"]'\n",
        )
    assert shell.run("mqtool", "send", "-q", "q", "-H", 'CC:=["copy"]', "Hello").code == 0


def test_send_reports_rejected_and_released_messages(shell: Shell) -> None:
    """If the broker rejects a message, for example because the queue is full, `send` over AMQP 1.0 reports the
    message as nacked. If the broker releases a message because it is unroutable, `send --mandatory` reports the
    message as returned, and gives the reason. In both cases, `send` exits with 75.
    """
    shell.run("mqtool", "queue", "declare", "full", "--max-length", "1", "--argument", "x-overflow=reject-publish",
              "--queue-type", "quorum")  # fmt: skip
    shell.run("mqtool", "send", "-q", "full", "-l", stdin="1\n2\n3\n")  # the queue refuses those that come later
    refused = shell.run("mqtool", "send", "-q", "full", "x")
    assert (refused.code, refused.stderr.startswith("mqtool: the message was nacked: ")) == (75, True)
    unroutable = shell.run("mqtool", "send", "-e", "amq.direct", "-r", "nowhere", "--mandatory", "x")
    assert (unroutable.code, unroutable.stderr.splitlines()[0]) == (
        75,
        "mqtool: the message was returned: no queue is bound for it (released)",
    )
    assert shell.run("mqtool", "send", "-e", "amq.direct", "-r", "nowhere", "x").stderr == (
        " [x] Sent 'x', no queue received it\n"
    )
    kept = shell.run("mqtool", "send", "-q", "full", "-l", "--failed-to", "failed", stdin="6\n7\n")
    assert (kept.code, "warning: nacked: '6': " in kept.stderr) == (75, True)
    assert '"routing_key":"full"' in (shell.directory / "failed").read_text()


def test_send_json_refuses_a_property_that_is_not_utf_8_over_amqp_1_0(shell: Shell) -> None:
    """Over AMQP 1.0, if a property in a line of input is not valid UTF-8, `send --json` sends only the messages before
    this line, prints an error that mentions UTF-8, and exits with 65.
    """
    lines = '{"body": "1"}\n' + r'{"body": "2", "properties": {"type": "\ud800"}}' + '\n{"body": "3"}\n'

    sent = shell.run("mqtool", "send", "-q", "q", "--json", stdin=lines)

    assert (sent.code, "a header is not valid UTF-8" in sent.stderr) == (65, True), sent.stderr
    assert "1 confirmed" in sent.stderr
    assert shell.run("mqtool", "receive", "-q", "q", "--idle-timeout", IDLE, "--raw").stdout == "1\n"


def test_send_json_over_amqp_1_0_writes_a_message_with_a_delay_to_the_file_of_failed_messages(shell: Shell) -> None:
    """Over AMQP 1.0, mqtool cannot delay messages. If the input of `send --json --failed-to FILE` contains a line with
    a delay, the command sends the lines before it, writes this line and all later ones to FILE, and exits with 2.
    """
    lines = "".join(json.dumps(line) + "\n" for line in ({"body": "1"}, {"body": "2", "delay": "1m"}, {"body": "3"}))
    sent = shell.run("mqtool", "send", "-q", "q", "--json", "--failed-to", "failed", stdin=lines)
    assert (sent.code, "1 confirmed" in sent.stderr) == (2, True), sent.stderr
    kept = [json.loads(line)["body"] for line in (shell.directory / "failed").read_text().splitlines()]
    assert kept == ["2", "3"]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["send", "--delay", "5s", "x"], 2, "messages cannot be delayed over AMQP 1.0"),
        (["send", "-H", "l:=[1]", "x"], 65, "the header 'l' is a list, which AMQP 1.0 does not allow"),
        (["send", "--property", "cluster-id=a", "x"], 65, "AMQP 1.0 has no property cluster-id"),
        (["send", "-e", "nope", "x"], 69, "no exchange 'nope' in vhost"),
        (["receive", "-q", "jbos", "--no-declare"], 69, "queue 'jbos' does not exist"),
        (["send", "--user", "nobody", "x"], 77, "refused the login of user 'nobody'"),
        (["send", "--vhost", "nope", "x"], 77, "cannot open vhost 'nope'"),
        (["send", "--protocol", "amqp3", "x"], 2, "'amqp3' is not one of 'amqp0.9.1', 'amqp1.0'"),
        # If a server closes the connection at once, its answer may be lost.
        (
            ["send", "--url", "{management}/?connection_timeout=5000", "x"],
            69,
            "accepted the connection, but is not an AMQP 1.0 broker|closed the connection during the handshake",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.sampled(5)
def test_errors_over_amqp_1_0_say_what_is_wrong(
    shell: Shell, broker: TestBroker, command: list[str], code: int, says: str
) -> None:
    """A command that fails over AMQP 1.0 names the cause: for example, an option or a header that is not supported, a
    queue or an exchange that does not exist, or a refused login. It exits with the documented exit code.
    """
    management = broker.management.replace("http:", "amqp:")
    told = shell.run("mqtool", *(each.format(management=management) for each in command))
    assert (told.code, told.stdout) == (code, "")
    assert any(each in told.stderr for each in says.split("|"))
    assert "Traceback" not in told.stderr


def test_send_json_over_amqp_1_0_stops_at_a_message_with_a_delay(shell: Shell) -> None:
    """If the input of `send --json` contains a message with a delay, the command sends the messages before it, says
    that messages cannot be delayed over AMQP 1.0, and exits with 2.
    """
    sent = shell.run("mqtool", "send", "--json", stdin='{"body":"a"}\n{"body":"b","delay":"5s"}\n')
    assert (sent.code, "cannot be delayed over AMQP 1.0" in sent.stderr) == (2, True)
    assert shell.run("mqtool", "receive", "-c", "1", "--raw").stdout == "a\n"


@pytest.mark.parametrize("kind", ["direct", "topic"])
@pytest.mark.sampled(1)
def test_receive_log_gets_only_messages_with_the_given_routing_key(shell: Shell, kind: str) -> None:
    """Over AMQP 1.0, `receive-log direct KEY` and `receive-log topic KEY` print the messages that `emit-log`
    published with this routing key, and no others.
    """
    receiver = shell.start("mqtool", "receive-log", kind, "error", "-c", "2").wait_until_ready()
    for key, text in (("info", "no"), ("error", "one"), ("error.disk", "no"), ("error", "two")):
        assert shell.run("mqtool", "emit-log", kind, key, text).code == 0
    assert receiver.wait().stdout == " [x] error:one\n [x] error:two\n"


def test_receive_log_gets_messages_from_fanout_and_headers_exchanges(shell: Shell) -> None:
    """Over AMQP 1.0, `receive-log fanout` prints the messages that `emit-log fanout` publishes. Of the messages that
    `emit-log headers` publishes, `receive-log headers` prints only those with the headers given on its command line.
    """
    everything = shell.start("mqtool", "receive-log", "fanout", "-c", "1", "--raw").wait_until_ready()
    pdf = shell.start("mqtool", "receive-log", "headers", "format=pdf", "-c", "1", "--raw").wait_until_ready()
    assert shell.run("mqtool", "emit-log", "fanout", "to all").code == 0
    assert shell.run("mqtool", "emit-log", "headers", "-H", "format=zip", "no").code == 0
    assert shell.run("mqtool", "emit-log", "headers", "-H", "format=pdf", "yes").code == 0
    assert (everything.wait().stdout, pdf.wait().stdout) == ("to all\n", "yes\n")


def test_worker_receives_the_tasks_that_new_task_sent(shell: Shell) -> None:
    """Over AMQP 1.0, `worker -c 2` prints the two tasks that `new-task` sent, reports each as done, and then exits with
    0.
    """
    worker = shell.start("mqtool", "worker", "-c", "2").wait_until_ready()
    assert shell.run("mqtool", "new-task", "-l", stdin="a\nb\n").code == 0
    done = worker.wait()
    assert (done.code, done.stdout, done.stderr.count(" [x] Done")) == (0, " [x] Received a\n [x] Received b\n", 2)


def test_a_message_whose_program_fails_is_retried_and_then_dead_lettered(shell: Shell) -> None:
    """Over AMQP 1.0, if the program of `worker` fails for a message, `worker` retries the message up to --retries times
    and then dead-letters it.
    """
    shell.run("mqtool", "send", "-q", "jobs", "-l", stdin="1\n2\n3\n")
    worker = shell.run("mqtool", "worker", "-q", "jobs", "--shell", "--exec", 'read n; test "$n" != 2', "-c", "4",
                       "--retries", "1", "--backoff", "50ms", "--concurrency", "2")  # fmt: skip
    assert (worker.code, "2 done, 1 retry, 1 dead" in worker.stderr) == (3, True)
    dead = json.loads(shell.run("mqtool", "receive", "-q", "jobs.dlq", "-c", "1", "--json", "--declare").stdout)
    assert (dead["body"], dead["headers"]["mqtool-attempts"]) == ("2", 2)


@pytest.mark.parametrize("client", ["amqp1.0", "amqp0.9.1"])
@pytest.mark.parametrize("server", ["amqp1.0", "amqp0.9.1"])
@pytest.mark.sampled(2)
def test_rpc_client_and_server_can_use_different_protocols(
    shell: Shell, broker: TestBroker, client: str, server: str
) -> None:
    """`rpc-client` gets a reply to each request even if it uses AMQP 0-9-1 and `rpc-server` uses AMQP 1.0, or vice
    versa.
    """
    if client != server:
        skip_before_4_2(broker, "reply-to is converted between a queue and its address")
    serving = shell.start("mqtool", "rpc-server", "-c", "2", "--protocol", server).wait_until_ready()
    asked = shell.run("mqtool", "rpc-client", "10", "12", "--raw", "--protocol", client)
    assert (asked.code, asked.stdout) == (0, "55\n144\n")
    assert serving.wait().stdout == " [.] fib(10)\n [.] fib(12)\n"


@pytest.mark.parametrize("protocol", ["amqp0.9.1", "amqp1.0"])
def test_rpc_client_prints_the_replies_behind_a_missing_one(shell: Shell, protocol: str) -> None:
    """If some replies have not arrived when the time is up, `rpc-client` prints all others, in the order of their
    requests. It exits with 124, and the error says which are missing.
    """
    program = 'read -r x; [ "$x" != 2 ] || exec sleep 1000; echo "$x"'
    for _ in range(2):  # one waits, the other answers
        shell.start("mqtool", "rpc-server", "--protocol", protocol, "--shell", "--exec", program).wait_until_ready()
    asked = shell.run("mqtool", "rpc-client", "1", "2", "3", "4", "--raw", "--timeout", "3s", "--protocol", protocol)
    assert (asked.code, asked.stdout) == (124, "1\n3\n4\n"), asked.stderr
    assert "mqtool: 1 of 4 replies did not come in time: request 2\n" in asked.stderr


@pytest.mark.parametrize("direct", [[], ["--direct-reply-to"]])
def test_rpc_client_asks_again_after_a_lost_connection(lonely_shell: Shell, direct: list[str]) -> None:
    """If the connection of `rpc-client` over AMQP 1.0 is lost, and a reply with it, the client sends its requests
    again, with the address at which it now receives.
    """
    with EmbeddedBroker(like="4.3") as broker:
        lonely_shell.environment |= {"MQTOOL_URL": broker.url, "MQTOOL_PROTOCOL": "amqp1.0"}
        lonely_shell.run("mqtool", "queue", "declare", "rpc_queue")
        client = lonely_shell.start("mqtool", "rpc-client", "10", "12", "--raw", *direct)
        taken = lonely_shell.run("mqtool", "receive", "-q", "rpc_queue", "-c", "2", "--raw")  # and never answered
        assert sorted(taken.stdout.split()) == ["10", "12"]
        broker.faults.cut_connections()
        client.wait_for_stderr("connected again")
        lonely_shell.run("mqtool", "rpc-server", "-c", "2")
        asked = client.wait()
    assert (asked.code, asked.stdout) == (0, "55\n144\n")


@pytest.mark.parametrize(("program", "code"), [("echo hi", 0), ("exit 3", 3)])
def test_rpc_client_exits_with_the_exit_status_of_the_servers_program(shell: Shell, program: str, code: int) -> None:
    """Over AMQP 1.0, `rpc-client` exits with the exit status of the program that `rpc-server --exec` ran."""
    serving = shell.start("mqtool", "rpc-server", "-c", "1", "--shell", "--exec", program).wait_until_ready()
    asked = shell.run("mqtool", "rpc-client", "--text", "x", "--raw")
    assert (asked.code, asked.stdout) == (code, "" if code else "hi\n"), asked.stderr
    serving.wait()


def test_rpc_server_drops_replies_to_exchanges(shell: Shell) -> None:
    """If a request's reply-to is the address of an exchange, `rpc-server` over AMQP 1.0 sends no reply, prints a
    notice, and accepts the request. It then answers the next request.
    """
    server = shell.start("mqtool", "rpc-server", "-c", "2").wait_until_ready()
    properties = {"reply_to": "/exchanges/amq.rabbitmq.trace/x", "correlation_id": "1"}
    request = json.dumps({"body": "5", "properties": properties})
    assert shell.run("mqtool", "send", "-q", "rpc_queue", "--json", stdin=request + "\n").code == 0
    assert shell.run("mqtool", "rpc-client", "10", "--raw", "--timeout", "20s").stdout == "55\n"
    ended = server.wait()
    assert ended.code == 0
    assert "dropped a reply to '/exchanges/amq.rabbitmq.trace/x': a reply goes only to a queue" in ended.stderr


def test_rpc_server_says_that_a_reply_is_lost_over_amqp_1_0(shell: Shell, broker: TestBroker) -> None:
    """Over AMQP 1.0, if the queue for a reply does not exist or is full, `rpc-server` says that the reply is lost. It
    nevertheless accepts the request, and continues with the next one.
    """
    lose_replies(shell, broker, "/queues/")


def test_rpc_client_times_out_if_its_amqp_1_0_connection_cannot_be_reopened(shell: Shell, broker: TestBroker) -> None:
    """If the AMQP 1.0 connection of `rpc-client` is lost after the first of two replies has been printed, and the
    connection cannot be reopened, the command exits with 124 once the time given with --timeout is up. The error says
    that 1 of 2 replies is missing.
    """
    program = 'read -r x; [ "$x" = one ] || exec sleep 1000; echo "$x"'
    shell.start("mqtool", "rpc-server", "--shell", "--exec", program).wait_until_ready()
    with Proxy(broker.port) as proxy:
        asked = ("--text", "one", "two", "--timeout", "6s", "--url", through(proxy, broker))
        client = shell.start("mqtool", "rpc-client", *asked, ready=False).wait_for_stdout("one")
    result = client.wait()
    assert (result.code, result.stdout) == (124, " [.] Got one\n"), result.stderr
    assert "mqtool: 1 of 2 replies did not come in time" in result.stderr


def test_rpc_client_uses_direct_reply_to(shell: Shell, broker: TestBroker) -> None:
    """Over AMQP 1.0, `rpc-client --direct-reply-to` prints the reply. The request's reply-to is RabbitMQ's pseudo-queue
    `amq.rabbitmq.reply-to`, not a queue that the client has declared.
    """
    skip_before_4_2(broker, "direct replies work over AMQP 1.0")
    shell.start("mqtool", "rpc-server", "-c", "1").wait_until_ready()
    assert shell.run("mqtool", "rpc-client", "10", "--direct-reply-to", "--raw").stdout == "55\n"
    client = shell.start("mqtool", "rpc-client", "10", "--direct-reply-to")
    wait_until(lambda: depth(broker, "rpc_queue") == 1, "the second request")
    client.interrupt().wait()
    request = json.loads(shell.run("mqtool", "receive", "-q", "rpc_queue", "-c", "1", "--json").stdout)
    assert "amq.rabbitmq.reply-to." in request["properties"]["reply_to"]


def test_rpc_client_without_a_server_exits_with_69(shell: Shell) -> None:
    """Over AMQP 1.0, if no server has declared the request queue, `rpc-client` exits with 69 and says that the queue
    does not exist.
    """
    asked = shell.run("mqtool", "rpc-client", "1", "--timeout", "5s")
    assert (asked.code, "queue 'rpc_queue' does not exist" in asked.stderr) == (69, True)


@pytest.mark.parametrize(
    "options",
    ["", "--queue-type stream", "--size 100-200KiB --exchange topic --ack auto"],
    ids=lambda options: options or "no options",
)
@pytest.mark.sampled(1)
@large
def test_bench_receives_each_message_once(shell: Shell, options: str) -> None:
    """Over AMQP 1.0, each message that `bench` publishes is confirmed and received once, and `bench` deletes its queue
    at the end.
    """
    bench = ("mqtool", "bench", "--yes", "--json", "-c", "300", *options.split())
    done = shell.run(*bench, "--protocol", "amqp1.0")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[name] for name in ("published", "confirmed", "received", "lost", "duplicated")] == [300] * 3 + [0] * 2
    assert shell.run("mqtool", "list", "queues").stdout == ""


def test_publisher_confirms_runs_all_three_strategies(shell: Shell) -> None:
    """Over AMQP 1.0, `publisher-confirms all -c 300` publishes 300 messages with each of its three strategies:
    individual, batch and async.
    """
    told = shell.run("mqtool", "publisher-confirms", "all", "-c", "300")
    assert (told.code, told.stdout.count("Published 300 messages")) == (0, 3)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [("first", "1\n2\n3\n"), ("2", "3\n4\n5\n"), ("1h", "1\n2\n3\n")],
    ids=["first message", "offset", "age"],
)
@pytest.mark.sampled(1)
def test_receive_reads_a_stream_from_an_offset(shell: Shell, offset: str, expected: str) -> None:
    """Over AMQP 1.0, `receive --offset` reads a stream from the first message (`first`), from an offset (`2`), or from
    the first message of the last hour (`1h`).
    """
    shell.run("mqtool", "queue", "declare", "log", "--queue-type", "stream")
    assert shell.run("mqtool", "send", "-q", "log", "-l", stdin="1\n2\n3\n4\n5\n").code == 0
    read = shell.run("mqtool", "receive", "-q", "log", "--offset", offset, "-c", "3", "--raw")
    assert (read.code, read.stdout) == (0, expected)


def test_the_broker_filters_a_stream_for_receive(shell: Shell, broker: TestBroker) -> None:
    """Over AMQP 1.0, `receive --filter` gets only those messages of a stream that have the given filter value, and
    `receive --sql` gets only those that match an SQL filter. On RabbitMQ before 4.2, which has no SQL filters,
    `receive --sql` exits with 2.
    """
    shell.run("mqtool", "queue", "declare", "log", "--queue-type", "stream")
    for country, level in (("NL", 1), ("NL", 5), ("BE", 7)):
        given = (f"-Hx-stream-filter-value={country}", f"-Hcountry={country}", f"-Hlevel:={level}")
        assert shell.run("mqtool", "send", "-q", "log", *given, f"{country}{level}").code == 0
    read = ("mqtool", "receive", "-q", "log", "--offset", "first", "--raw", "--idle-timeout", IDLE)
    assert shell.run(*read, "--filter", "NL").stdout == "NL1\nNL5\n"
    refused = shell.run(*read, "--filter", "NL", "--protocol", "amqp0.9.1")
    assert (refused.code, "--filter and --sql need AMQP 1.0" in refused.stderr) == (2, True)
    told = shell.run(*read, "--sql", "country = 'NL' AND level > 3")
    if broker.differs_since("4.2", "it has SQL filters"):
        assert told.stdout == "NL5\n"
    else:
        assert (told.code, told.stdout, "has no SQL filters" in told.stderr) == (2, "", True)


def test_sender_and_receiver_resume_after_a_lost_connection(shell: Shell, broker: TestBroker, proxy: Proxy) -> None:
    """Over AMQP 1.0, `send` and `receive` reconnect each time their connections are cut, and every message is received
    at least once.
    """
    url = through(proxy, broker)
    receiver = shell.start("mqtool", "receive", "--raw", "-u", url).wait_until_ready()
    sender = shell.start("mqtool", "send", "-l", "-u", url, stdin=PIPE)
    assert sender.process.stdin is not None
    for cuts, start in enumerate((0, 200, 400)):
        sender.write(b"".join(b"%d\n" % number for number in range(start, start + 200)))
        receiver.wait_for_stdout(f"{start}\n").wait_until_connected_again(cuts)
        sender.wait_until_connected_again(cuts)
        proxy.cut()
    sender.process.stdin.write(b"600\n")  # only after the third reconnection
    sender.process.stdin.close()
    sent = sender.wait()
    wait_until(lambda: len({*receiver.stdout.split()}) == 601, "all 601 messages")
    received = receiver.interrupt().wait()
    assert {*range(601)} == {int(line) for line in received.stdout.split()}
    assert (sent.code, sent.stderr.count("connected again"), received.stderr.count("connected again")) == (0, 3, 3)


def test_receive_log_says_over_amqp_1_0_that_its_temporary_queue_was_deleted(
    shell: Shell, broker: TestBroker, proxy: Proxy
) -> None:
    """When `receive-log` reconnects over AMQP 1.0, it says that its temporary queue was deleted with the connection.
    With --queue, it does not say so, because a named queue is kept.
    """
    temporary, kept = (
        shell.start("mqtool", "receive-log", "fanout", "--raw", *queue, "-u", through(proxy, broker)).wait_until_ready()
        for queue in ((), ("-q", "kept_logs"))
    )
    proxy.cut()
    for receiver in (temporary, kept):
        receiver.wait_until_connected_again(1)
    assert shell.run("mqtool", "emit-log", "fanout", "after").code == 0
    for receiver, said in ((temporary, 1), (kept, 0)):
        receiver.wait_for_stdout("after\n")
        assert receiver.interrupt().wait().stderr.count("the temporary queue was deleted with the connection") == said


def test_receive_log_waits_until_the_temporary_queue_of_its_lost_connection_is_gone(
    shell: Shell, broker: TestBroker, proxy: Proxy
) -> None:
    """If `receive-log` over AMQP 1.0 loses its connection, it reconnects, and declares its temporary queue again. The
    broker refuses the declaration until it has deleted the old queue, which is exclusive to the lost connection.
    `receive-log` retries until the old queue is gone, and then receives the messages that are published later.
    """
    receiver = shell.start("mqtool", "receive-log", "fanout", "--raw", "-u", through(proxy, broker)).wait_until_ready()
    [queue] = (each["name"] for each in broker.api("GET", f"queues/{broker.vhost}") if "mqtool.gen-" in each["name"])
    target, proxy.target = proxy.target, ("127.0.0.1", 1)  # nothing listens there
    proxy.cut()
    with LinkSession(parse_addresses(broker.url)) as other:

        def is_taken() -> bool:
            with suppress(DeclaredDifferently):  # the broker has not noticed the loss yet
                return bool(other.declare(Queue(queue, exclusive=True)))
            return False

        wait_until(is_taken, "another connection has a queue of the same name")
        proxy.target = target
        receiver.wait_for_stderr(f"the broker still has queue {queue!r} of the lost connection")
    receiver.wait_until_connected_again(1)
    assert shell.run("mqtool", "emit-log", "fanout", "after").code == 0
    receiver.wait_for_stdout("after\n").interrupt().wait()


def test_no_confirmed_message_is_lost_when_send_and_receive_are_killed(shell: Shell) -> None:
    """Over AMQP 1.0, `send -v` reports each message as sent once the broker has confirmed it. If first `send -v` and
    then `receive` is killed with kill -9, every message that `send -v` has reported was printed by `receive` or is
    still in the queue.
    """
    sender = shell.start("mqtool", "send", "-l", "-v", stdin=PIPE)
    sender.write(b"".join(b"%d\n" % number for number in range(3000)))
    sender.wait_for_stderr("[x] Sent '500'")
    sender.process.kill()
    sender.process.wait()
    sender.process.stdin.close()
    confirmed = {line.split("'")[1] for line in sender.stderr.splitlines() if line.endswith("'")}
    first = shell.start("mqtool", "receive", "--raw").wait_until_ready().wait_for_stdout("100\n")
    first.process.kill()
    first.process.wait()
    rest = shell.start("mqtool", "receive", "--raw").wait_until_ready()
    wait_until(
        lambda: confirmed <= {*first.stdout.split("\n"), *rest.stdout.split()},
        lambda: f"{sorted(confirmed - {*first.stdout.split(), *rest.stdout.split()})[:9]} to be received",
    )
    assert rest.interrupt().wait().code == 0


def test_a_context_selects_the_protocol(shell: Shell, broker: TestBroker) -> None:
    """A command that uses a context added with `context add --protocol amqp1.0` uses AMQP 1.0, even if MQTOOL_PROTOCOL
    names another protocol. The option --protocol overrides both. MQTOOL_PROTOCOL applies to contexts that name no
    protocol.
    """
    shell.environment["MQTOOL_PROTOCOL"] = "amqp0.9.1"
    shell.environment.pop("MQTOOL_URL")
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    assert shell.run("mqtool", "context", "add", "one", "--url", broker.url, *OVER_1_0).code == 0
    assert "cluster-id" in shell.run("mqtool", "-C", "one", "send", "--property", "cluster-id=a", "x").stderr
    other = ("--protocol", "amqp0.9.1", "x")
    assert shell.run("mqtool", "-C", "one", "send", "--property", "cluster-id=a", *other).code == 0
    shell.environment["MQTOOL_PROTOCOL"] = "amqp1.0"
    assert shell.run("mqtool", "context", "add", "any", "--url", broker.url).code == 0
    assert "cluster-id" in shell.run("mqtool", "-C", "any", "send", "--property", "cluster-id=a", "x").stderr


@pytest.mark.parametrize("tutorial", ["hello-world", "work-queues", "publish-subscribe", "routing", "topics", "rpc"])
@pytest.mark.sampled(1)
def test_a_tutorials_plain_amqp_1_0_script_receives_its_own_messages_and_those_of_mqtool(
    shell: Shell, broker: TestBroker, tutorial: str
) -> None:
    """`tutorial show --plain` prints an AMQP 1.0 script that can be run unchanged, either as a receiver or as a
    sender. The receiver gets a message from the sender, and one from the corresponding mqtool command, such as
    `send`.
    """
    shell.environment |= {"AMQP_URL": broker.url, "PYTHONUNBUFFERED": "1"}
    (shell.directory / "script.py").write_bytes(
        shell.run("mqtool", "tutorial", "show", f"amqp10-{tutorial}", "--plain").stdout_bytes
    )
    receives, sends, received = {
        "hello-world": (["receive"], ["send"], " [x] Received Hello World!"),
        "work-queues": (["worker"], ["new-task"], " [x] Received Hello World!"),
        "publish-subscribe": (["receive"], ["emit"], " [x] info: Hello World!"),
        "routing": (["receive", "info"], ["emit"], " [x] info:Hello World!"),
        "topics": (["receive", "*.info"], ["emit"], " [x] anonymous.info:Hello World!"),
        "rpc": (["server"], ["client", "30"], " [.] fib(30)"),
    }[tutorial]
    script = shell.start(sys.executable, "script.py", *receives, ready=False).wait_for_stdout("\n")
    kind = [] if tutorial not in COMMANDS else [COMMANDS[tutorial]]
    command = {"hello-world": "send", "work-queues": "new-task", "rpc": "rpc-client"}.get(tutorial, "emit-log")
    told = shell.run("mqtool", command, *kind)
    assert (told.code, "already exists" in told.stderr) == (0, False)
    script.wait_for_stdout(received + "\n")
    assert shell.run(sys.executable, "script.py", *sends).code == 0
    wait_until(lambda: script.stdout.count(received) == 2, "the script's own message")
    ended = script.interrupt().wait()
    assert (ended.code, ended.stderr) == (0, "")


@large
def test_messages_with_headers_too_large_for_delayed_relay_do_not_hold_up_other_messages(
    shell: Shell, broker: TestBroker
) -> None:
    """`delayed relay` uses AMQP 0-9-1, and so cannot publish a message whose headers are larger than a frame. An AMQP
    1.0 publisher can send such a message. If the relay receives 201 of these messages, one more than it handles at a
    time, it prints a warning, and dead-letters all of them. It still delays other messages.
    """
    del shell.environment["MQTOOL_PROTOCOL"]
    relay = shell.start("mqtool", "delayed", "relay", "tasks", ready=True).wait_until_ready()
    for words in ("queue declare jobs", "exchange bind tasks.relayed jobs jobs"):
        assert shell.run("mqtool", *words.split()).code == 0
    headers = {"x-delay": 100, "pad": "x" * 140_000}
    large = json.dumps({"exchange": "tasks", "routing_key": "jobs", "headers": headers, "body": ""})
    assert shell.run("mqtool", "send", "--json", *OVER_1_0, stdin=f"{large}\n" * 201).code == 0
    assert shell.run("mqtool", "send", "-e", "tasks", "-r", "jobs", "-H", "x-delay:=100", "other").code == 0
    assert shell.run("mqtool", "receive", "-q", "jobs", "-c", "1", "--raw", "--timeout", "60s").stdout == "other\n"
    wait_until(lambda: depth(broker, "tasks.relay.dlq") == 201, "all large messages in the dead-letter queue")
    ended = relay.interrupt().wait()
    assert "is dead-lettered to 'tasks.relay.dlq': the headers and properties are 140," in ended.stderr
    assert "1 delayed, 0 at once, 0 unroutable" in ended.stderr


COMMANDS = {"publish-subscribe": "fanout", "routing": "direct", "topics": "topic"}


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize(
    "words", ["emit-log fanout -e new x", "publisher-confirms async -c 10 -q new", "receive-log fanout -e new"]
)
@pytest.mark.sampled(1)
def test_a_command_in_a_protected_context_declares_nothing_without_confirmation(
    shell: Shell, broker: TestBroker, words: str
) -> None:
    """Over AMQP 1.0, a command in a protected context asks for confirmation before it declares a missing exchange or
    queue. Without a terminal, the command says what it would declare and exits with 2. If the exchange or queue
    exists, the command does not ask.
    """
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    shell.run("mqtool", "context", "add", "prod", "--url", broker.url, "--protected")
    command = ("mqtool", "-C", "prod", *words.split())
    refused = shell.run(*command)
    assert (refused.code, "would declare" in refused.stderr) == (2, True), refused.stderr
    if "publisher-confirms" in words:
        shell.run("mqtool", "queue", "declare", "new")
    else:
        shell.run("mqtool", "exchange", "declare", "new", "fanout", "--transient")
    allowed = shell.run(*command, *["--idle-timeout", "10ms"] * ("receive" in words))
    assert (allowed.code, "protected" in allowed.stderr) == (0, False), allowed.stderr


@pytest.mark.parametrize(
    "typed",
    [
        "worker -q jobs -c 2 --retries 0 --protocol amqp0.9.1 --exec false",
        "move jobs --to jobs.dlq --yes",
        "dlq redrive jobs --from jobs --to jobs.dlq --yes",
        "queue convert jobs --to classic --yes --force",  # its publisher has only just stopped
        "peek jobs",
    ],
)
def test_commands_omit_a_reply_to_that_the_broker_refuses_over_amqp_0_9_1(
    shell: Shell, broker: TestBroker, typed: str
) -> None:
    """Over AMQP 0-9-1, the broker refuses a message with the reply_to amq.rabbitmq.reply-to unless the client
    consumes from amq.rabbitmq.reply-to. Over AMQP 1.0, it accepts such a message. If a command such as `move`
    republishes this message over AMQP 0-9-1, it omits the reply_to, and continues with the next message. A command
    that only reads the message keeps the reply_to.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for queue in ("jobs", "jobs.dlq"):
        shell.run("mqtool", "queue", "declare", queue)
    shell.run("mqtool", "send", *OVER_1_0, "-q", "jobs", "--property", "reply-to=amq.rabbitmq.reply-to", "request")
    shell.run("mqtool", "send", *OVER_1_0, "-q", "jobs", "next")
    del shell.environment["MQTOOL_PROTOCOL"]

    result = shell.run("mqtool", *typed.split())

    assert result.code == (1 if "worker" in typed else 0), result.stderr
    is_refused = broker.differs_since("4.3", "4.0 delivers an address, /queues/amq.rabbitmq.reply-to")
    assert ("1 message lost the property reply_to" in result.stderr) is (is_refused and "convert" in typed)
    queue = "jobs" if re.match("peek|queue", typed) else "jobs.dlq"
    found = shell.run("mqtool", "receive", "-q", queue, "-c", "2", "--json").stdout.splitlines()
    kept = "peek" in typed or not is_refused
    assert [(json.loads(line)["body"], "reply_to" in json.loads(line)["properties"]) for line in found] == [
        ("request", kept),
        ("next", False),
    ]


def test_republishing_a_message_with_a_forged_type_amqp_1_0_sends_no_copy_to_another_queue(
    shell: Shell, broker: TestBroker
) -> None:
    """Over AMQP 0-9-1, any publisher can set the type amqp-1.0, which says that the body is encoded in AMQP 1.0. If
    the body contains the annotation x-cc, or cannot be decoded, `send --json` and `worker` republish the body over
    AMQP 1.0 as bytes. No copy goes to the queue that x-cc names, and `worker` continues with the next message.
    """
    for queue in ("inbox", "copies", "payroll"):
        shell.run("mqtool", "queue", "declare", queue)
    annotations = {Symbol("x-cc"): ["payroll"]}
    evil = Amqp10Message(message_annotations=annotations, body=data_section(b"pay")).encode()
    lines = []
    for body, properties in ((evil, {"type": "amqp-1.0"}), (b"honest", {}), (b"x", {"type": "amqp-1.0"})):
        encoded = base64.b64encode(body).decode()
        line = {"body_base64": encoded, "exchange": "", "routing_key": "inbox", "properties": properties}
        lines.append(json.dumps(line) + "\n")
    # RabbitMQ 4 ends the session of each AMQP 1.0 consumer to which it would deliver the undecodable body.
    for_worker = lines[:2] if broker.kind == "rabbitmq" else lines
    shell.run("mqtool", "send", "--json", "--protocol", "amqp0.9.1", stdin="".join(for_worker))
    worker = ("mqtool", "worker", "-q", "inbox", *OVER_1_0, "-c", str(len(for_worker)), "--retries", "0")

    sent = shell.run("mqtool", "send", "--json", "-q", "copies", *OVER_1_0, stdin="".join(lines))
    worked = shell.run(*worker, "--exec", "false")

    assert (sent.code, worked.code) == (0, 1), sent.stderr + worked.stderr
    depths = [depth(broker, queue) for queue in ("inbox", "copies", "inbox.dlq", "payroll")]
    assert depths == [0, 3, len(for_worker), 0]


def test_receive_ends_if_rabbitmq_cannot_convert_a_message_to_amqp_1_0(shell: Shell, broker: TestBroker) -> None:
    """In RabbitMQ 4, an AMQP 1.0 session crashes when RabbitMQ cannot convert a message to AMQP 1.0, such as one of
    the type amqp-1.0 with an undecodable body. `receive` prints the messages before it once, and exits with 69. Its
    hint suggests AMQP 0-9-1, over which `receive` gets the message. The embedded broker delivers it over AMQP 1.0.
    """
    shell.run("mqtool", "queue", "declare", "inbox")
    if broker.kind == "rabbitmq":
        shell.run("mqtool", "send", "-q", "inbox", "--lines", "--protocol", "amqp0.9.1", stdin="good\nfine\n")
    line = {"body": "x", "exchange": "", "routing_key": "inbox", "properties": {"type": "amqp-1.0"}}
    shell.run("mqtool", "send", "--json", "--protocol", "amqp0.9.1", stdin=json.dumps(line) + "\n")

    if broker.kind == "rabbitmq":
        result = shell.run("mqtool", "receive", "-q", "inbox", *OVER_1_0)
        assert (result.code, result.stdout) == (69, " [x] Received good\n [x] Received fine\n")
        assert "Session error" not in result.stderr
        assert "the broker ended the session because of an internal error, several times in a row" in result.stderr
        assert result.stderr.endswith("or for a stream, mqtool receive-stream\n")
    over = ("--protocol", "amqp0.9.1") if broker.kind == "rabbitmq" else OVER_1_0
    assert shell.run("mqtool", "receive", "-q", "inbox", "-c", "1", *over).stdout == " [x] Received x\n"


#: A message with values of the types that AMQP 1.0 has, in all of its sections.
TYPED = Amqp10Message(
    message_annotations={
        Symbol("x-map"): {Symbol("a"): UInt8(1)},
        Symbol("x-array"): Array([Int16(1), Int16(2)]),
        Symbol("x-text-map"): {"b": 1.0},
    },
    properties=BareProperties(
        message_id=ULong((1 << 63) + 5), subject="s", reply_to="/queues/rq", correlation_id=b"\xff",
        content_type=Symbol("text/plain"), absolute_expiry_time=Milliseconds(1_900_000_000_001),
        creation_time=Milliseconds(1_700_000_000_123), group_id="g", group_sequence=UInt32(7), reply_to_group_id="r",
    ),
    application_properties={
        "ulong": ULong((1 << 63) + 5), "small": ULong(1), "byte": Int8(-1), "float": Float32(0.5), "one": 1.0,
        "symbol": Symbol("s"), "binary": b"\xff", "time": Milliseconds(1_700_000_000_123), "x-own": "no annotation",
    },
    body=value_section("text"),
    footer={Symbol("x-sum"): UInt16(3)},
)  # fmt: skip


def test_an_amqp_1_0_message_is_the_same_after_receive_json_and_send_json(shell: Shell, broker: TestBroker) -> None:
    """A message with values of all types of AMQP 1.0 has the same bytes after `receive --json | send --json`. Over AMQP
    0-9-1, `send` exits with 65, and names what AMQP 0-9-1 cannot carry.
    """
    for queue in ("src", "copy"):
        assert shell.run("mqtool", "queue", "declare", queue).code == 0
    with RawAmqp10(broker.url) as client:
        client.attach_sender("/queues/src")
        assert client.published(0, TYPED.encode()).descriptor == ACCEPTED
    copied = shell.script("mqtool receive -q src -c 1 --json > line; mqtool send --json -q copy < line")
    assert copied.code == 0, copied.stderr
    with RawAmqp10(broker.url) as client:
        client.attach_receiver("/queues/copy")
        found = client.expect(TRANSFER).message
        client.settle(0, described(ACCEPTED))
    own = {name: value for name, value in found.message_annotations.items() if name in TYPED.message_annotations}
    assert Amqp10Message(message_annotations=own) == Amqp10Message(message_annotations=TYPED.message_annotations)
    bare = [
        replace(each, header=MessageHeader(), message_annotations={}, delivery_annotations={}).encode()
        for each in (found, TYPED)
    ]
    assert bare[0] == bare[1]
    refused = shell.script("mqtool send --json -q copy --protocol amqp0.9.1 < line")
    assert (refused.code, depth(broker, "copy")) == (65, 0)
    assert re.search("only AMQP 1.0 has the property (subject|group_sequence|absolute_expiry_time)", refused.stderr)
