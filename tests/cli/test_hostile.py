"""Messages with hostile bodies, keys and headers: no command crashes on them, and no message can forge a line of
output. Each batch ends with a plain message; RabbitMQ 4.3 delivers by priority, also from quorum queues, so others may
follow it there.
"""

import json
import os
import re
from typing import Any

import pytest

from mqtool import ndjson
from tests import hostile
from tests.brokers import IN_CI, TestBroker, large, on_any_broker, only_in_ci
from tests.cli.shell import Result, Shell
from tests.cli.terminal import on_terminal

#: The messages of the batch that each broker accepts, once they are known: each one that it refuses costs a connection.
TAKEN: dict[str, list[hostile.Hostile]] = {}


def batch() -> list[hostile.Hostile]:
    """Return hostile messages: a fixed corpus, and generated ones."""
    return [*hostile.CORPUS, *hostile.generated()]


@pytest.fixture
def play(broker: TestBroker) -> Any:
    """Declare queues and publish the batch to each; return the number of messages in each queue."""

    def play(*queues: str) -> int:
        TAKEN[broker.kind] = hostile.play(broker.url, TAKEN.get(broker.kind) or batch(), queues)
        return len(TAKEN[broker.kind]) + 1

    return play


def depth(shell: Shell, queue: str) -> int:
    from mqtool.amqp import Connection, parse_addresses

    with Connection(parse_addresses(shell.environment["MQTOOL_URL"])) as connection:
        return connection.channel().depth_of(queue)


def survived(result: Result, *codes: int) -> Result:
    """Assert the exit code, and that no line of the output was forged and there is no traceback."""
    assert result.code in (codes or (0,)), result.stderr[-2000:]
    for sign in ("Traceback", "unexpected error", "bug in mqtool", "connection", "\x1b", "\x9b", "\u202e"):
        assert sign not in result.stderr, result.stderr[-2000:]
    assert not any(line.startswith("mqtool: it is all over") for line in result.stderr.split("\n"))
    return result


LIMITS = ("--timeout", "30s")


@large
def test_receive_prints_hostile_messages(shell: Shell, play: Any) -> None:
    """In each of its formats, `receive` prints every message, whatever the body and headers contain, for example bytes
    that are not UTF-8, or control characters. The NDJSON that `receive` prints is valid input for `send --json`.
    """
    formats = {"json": ["--json"], "places": ["-F", "%r %e %i %c %l %h %s %b"]}
    if IN_CI:
        formats |= {"text": [], "raw": ["--raw"]}
    count = play(*formats)
    results = {
        name: survived(shell.run("mqtool", "receive", "-q", name, "--durable", "-c", str(count), *LIMITS, *options))
        for name, options in formats.items()
    }
    assert all(b"last\n" in result.stdout_bytes for name, result in results.items() if name != "json")
    lines = results["json"].stdout_bytes.splitlines()
    assert len(lines) == count
    for line in lines:
        json.loads(line.decode(), parse_constant=pytest.fail)
        ndjson.to_message(line, "a line")
    assert [depth(shell, name) for name in formats] == [0] * len(formats)

    again = [line for line in lines if len(line) < 150_000]  # short integers take more room in JSON
    survived(shell.run("mqtool", "send", "--json", "-e", "", "-r", "json", stdin=b"\n".join(again)))


@on_any_broker
def test_recording_reconcile_finds_a_message_among_hostile_ones(shell: Shell, play: Any) -> None:
    """`recording reconcile` finds a sent message among the received ones, whatever their headers, properties and bodies
    contain, for example control characters. It says how many of the received messages have no message id.
    """
    count = play("q")
    received = shell.run("mqtool", "receive", "-q", "q", "--durable", "-c", str(count), *LIMITS, "--json")
    (shell.directory / "got").write_bytes(received.stdout_bytes)
    [last] = [line for line in received.stdout_bytes.splitlines() if b'"last"' in line]
    (shell.directory / "sent").write_bytes(last)
    found = survived(shell.run("mqtool", "recording", "reconcile", "sent", "got"))
    assert "missing     0\n" in found.stdout
    assert "have no message_id" in found.stderr
    survived(shell.run("mqtool", "recording", "reconcile", "--json", "sent", "got"))


@on_any_broker
def test_receive_log_and_receive_delayed_print_hostile_messages(shell: Shell, play: Any) -> None:
    """`receive-log` and `receive-delayed` print every message without an error, whatever the routing key, properties
    and body contain, for example control characters. No message can forge a line on stderr.
    """
    count = play("logs", "late")
    limits = ("--durable", "-c", str(count), *LIMITS)
    logs = survived(shell.run("mqtool", "receive-log", "topic", "#", "-q", "logs", *limits))
    late = survived(shell.run("mqtool", "receive-delayed", "-q", "late", *limits))
    assert b"last\n" in logs.stdout_bytes
    assert b"last\n" in late.stdout_bytes


@on_any_broker
def test_worker_receives_hostile_messages(shell: Shell, play: Any) -> None:
    """`worker` without --exec receives every message and exits with 0, whatever the headers, properties and body
    contain, for example control characters. No message can forge a line on stderr.
    """
    result = survived(shell.run("mqtool", "worker", "-q", "q", "-c", str(play("q")), *LIMITS))
    assert b"Received last\n" in result.stdout_bytes


@on_any_broker
@pytest.mark.parametrize("how", ["exec", "shell", "deduplicate"])
@pytest.mark.sampled(1)
def test_worker_passes_hostile_messages_to_programs(shell: Shell, play: Any, how: str) -> None:
    """`worker` passes every message to its program, in arguments and environment variables, whatever the message
    contains, for example control characters in headers. No message is retried or dead-lettered.
    """
    count = play("q")
    options = {
        "exec": ["--exec", "echo '{routing_key}{message_id}{attempt}'"],
        "shell": ["--shell", "--exec", 'env | grep -a ^MQ_; echo "$MQ_ROUTING_KEY"'],
        "deduplicate": ["--exec", "true", "--deduplicate", "--dedup-store", "store"],
    }[how]
    result = survived(shell.run("mqtool", "worker", "-q", "q", "-c", str(count), *LIMITS, *options))
    assert " done, 0 retries, 0 dead" in result.stderr
    assert depth(shell, "q") == 0
    assert f"{count} done" in result.stderr or how == "deduplicate"


@on_any_broker
def test_a_message_that_names_a_missing_program_is_dead_lettered(shell: Shell) -> None:
    """`worker --exec '{message_id}'` runs the program that a message's id names. If there is no such program, `worker`
    dead-letters the message and continues with the next one.
    """
    shell.run("mqtool", "new-task", "--json", stdin=b'{"body":"","properties":{"message_id":"no such program"}}\n')
    shell.run("mqtool", "new-task", "--json", stdin=b'{"body":"","properties":{"message_id":"true"}}\n')
    result = survived(shell.run("mqtool", "worker", "-c", "2", *LIMITS, "--exec", "{message_id}"), 3)
    assert "1 done, 0 retries, 1 dead" in result.stderr


@on_any_broker
def test_control_characters_are_escaped_on_a_terminal(shell: Shell) -> None:
    """On a terminal, `receive` and `receive-log` print control characters in routing keys, message ids and bodies as
    escapes. Line breaks are kept only in bodies, where every line but the first is indented.
    """
    line = {"body": "a\nb\x1b[31m", "routing_key": "k\nmqtool: \u202e", "properties": {"message_id": "\x9b\n"}}
    shell.run("mqtool", "queue", "declare", "q", "--durable")
    assert shell.run("mqtool", "exchange", "bind", "amq.topic", "q", "#").code == 0
    for _ in range(2):
        sent = shell.run("mqtool", "send", "--json", "-e", "amq.topic", stdin=json.dumps(line))
        assert sent.code == 0, sent.stderr
    limits = ("-q", "q", "--durable", "-c", "1", *LIMITS)
    logs = on_terminal(shell, "mqtool", "receive-log", "topic", "#", "-e", "amq.topic", *limits)
    template = on_terminal(shell, "mqtool", "receive", *limits, "-F", "%i %r|%b")
    assert r" [x] k\nmqtool: \u202e:a" in logs.stdout.splitlines()
    assert r"\x9b\n k\nmqtool: \u202e|a" in template.stdout.splitlines()
    for shown in (logs.stdout, template.stdout):
        assert r"    b\x1b[31m" in shown.splitlines(), shown


@on_any_broker
def test_a_body_forges_no_line_on_a_terminal(shell: Shell) -> None:
    """On a terminal, `peek`, `receive`, `worker` and `rpc-client` indent all lines of a body but the first, so that no
    line of a body can be mistaken for another message. With --raw, and in a pipe, the body is unchanged.
    """
    body = "one\nq: forged\n [x] Received forged\n [.] Got forged"
    indented = body.replace("\n", "\n    ")
    for _ in range(4):
        shell.run("mqtool", "send", "-q", "q", body)
    peek, once = ("mqtool", "peek", "q", "-c", "1"), ("-q", "q", "-c", "1", *LIMITS)
    assert f"q: {indented}\n" in terminal_lines(shell, *peek)
    assert f"{indented}\n" in terminal_lines(shell, *peek, "-F", "%b")
    assert f"{body}\n" in terminal_lines(shell, *peek, "--raw")
    assert shell.run(*peek).stdout == f"q: {body}\n"
    assert f" [x] Received {indented} (redelivered)\n" in terminal_lines(shell, "mqtool", "receive", *once)
    assert f" [x] Received {indented}" in terminal_lines(shell, "mqtool", "worker", *once)
    assert shell.run("mqtool", "receive", *once).stdout == f" [x] Received {body}\n"
    server = shell.start("mqtool", "rpc-server", "-c", "1", "--exec", "cat").wait_until_ready()
    assert f" [.] Got {indented}\n" in terminal_lines(shell, "mqtool", "rpc-client", "--text", body)
    assert server.wait().code == 0


def terminal_lines(shell: Shell, *command: str) -> str:
    return on_terminal(shell, *command).stdout.replace("\r\n", "\n")


@large
def test_hostile_messages_are_retried_dead_lettered_and_redriven(shell: Shell, play: Any) -> None:
    """If the program of `worker` fails for messages with unusual bodies and headers, for example with very large
    headers, `worker` retries and dead-letters all of these messages, and `dlq redrive` moves all of them back.
    """
    count = left = play("q")
    worker = ("mqtool", "worker", "-q", "q", *LIMITS, "--exec", "false", "--backoff", "1ms", "--retries", "1")
    store, said = ["--deduplicate", "--dedup-store", "store"], ""
    while left:  # twice; on RabbitMQ 4.0 and later, retries with a priority above 4 overtake messages never tried
        result = survived(shell.run(*worker, "-c", str(left), *store), 1, 3)
        sums = re.search(r"^0 done, \d+ retries, (\d+) dead", result.stderr, re.MULTILINE)
        assert sums, result.stderr
        left, store, said = left - int(sums[1]), [], said + result.stderr
    assert "its headers were dropped: the headers and properties are" in said
    assert (depth(shell, "q"), depth(shell, "q.dlq")) == (0, count)
    survived(shell.run("mqtool", "dlq", "redrive", "q", "-v"))
    assert depth(shell, "q") == count


def test_dlq_commands_do_not_crash_on_dead_letters_with_forged_headers(
    shell: Shell, play: Any, broker: TestBroker
) -> None:
    """If headers of dead letters, such as x-death, are forged, `dlq ls`, `dlq show` and `dlq drop` succeed. `dlq
    redrive` exits with 3 and leaves these dead letters where they are.
    """
    count = play("q.dlq")
    survived(shell.run("mqtool", "dlq", "ls", "--management", broker.management))
    shown = survived(shell.run("mqtool", "dlq", "show", "q"))
    assert "\x1b" not in re.sub("^  body: .*\n(.*m\n)?", "", shown.stdout, flags=re.MULTILINE)
    survived(shell.run("mqtool", "dlq", "show", "q", "--json", "--older", "1s"))
    survived(shell.run("mqtool", "dlq", "redrive", "q", "--to", "q.dlq"))
    survived(shell.run("mqtool", "dlq", "redrive", "q"), 3)
    assert depth(shell, "q.dlq") == count
    survived(shell.run("mqtool", "dlq", "drop", "q", "--yes"))
    assert depth(shell, "q.dlq") == 0


@on_any_broker
@large
def test_rpc_server_consumes_hostile_requests(shell: Shell, play: Any) -> None:
    """With `--count N`, `rpc-server` consumes N requests and then exits with 0, whatever the bodies and headers
    contain, for example control characters or the name of a missing reply queue. Its queue is empty afterwards.
    """
    count = play("fib", "add", "cat")
    limits = ("-c", str(count), *LIMITS)
    for queue, options in (("fib", []), ("add", ["--function", "fib", "--json"]), ("cat", ["--exec", "cat"])):
        survived(shell.run("mqtool", "rpc-server", "-q", queue, "--durable", *limits, *options))
        assert depth(shell, queue) == 0


@on_any_broker
def test_rpc_client_prints_no_escape_sequences_of_hostile_replies_on_stderr(shell: Shell, broker: TestBroker) -> None:
    """Whatever a reply contains, `rpc-client` prints no traceback, and its stderr contains no escape sequence."""
    replies = [message for message in batch() if len(message.body) < 10_000]
    shell.run("mqtool", "queue", "declare", "rpc", "--durable")
    for options in ([], ["--raw"]):
        client = shell.start("mqtool", "rpc-client", "-q", "rpc", *options, *map(str, range(30)), ready=False)
        hostile.reply(broker.url, "rpc", replies, 30)
        result = client.wait()
        assert result.code != 1
        survived(result, result.code)


@pytest.mark.own_vhost("some of these names cannot be deleted by the management API")
def test_listing_commands_succeed_and_escape_hostile_names(shell: Shell, broker: TestBroker) -> None:
    """Commands that show queues, exchanges and bindings, such as `list`, `top` and `topology`, succeed, whatever the
    names and arguments contain. No name can forge a line of output.
    """
    hostile.name_everything(broker.url)
    api = ("--management", broker.management)
    for command in (
        ["list", "queues"], ["list", "queues", "--json"], ["list", "exchanges"], ["list", "bindings"],
        ["top", "--once"], ["list", "bindings", "--json"], ["list", "consumers"], ["topology"], ["topology", "--json"],
        ["topology", "--format", "mermaid"], ["topology", "--format", "dot"], ["route", "amq.topic", "a"],
        ["route", "amq.headers", "", "-H", "h=x", "--json"], ["dlq", "ls"], ["doctor", "--json"],
    ):  # fmt: skip
        result = shell.run("mqtool", *command, *api)
        survived(result, result.code)
        assert result.code == 0 or command[0] == "doctor", (command, result.stderr)
        assert not re.search("^mqtool: it is all over", result.stdout, re.MULTILINE), (command, result.stdout)


def test_a_body_of_100_mb_is_passed_on_completely(shell: Shell, broker: TestBroker) -> None:
    """A 100 MB body keeps its size at each step: `worker` passes the body to a program and dead-letters the message
    when the program fails, `dlq redrive` moves the message back, and `receive` prints the body. `rpc-server` can send a
    reply of the same size. If the test runs against RabbitMQ in Docker, the size is 15 MB instead.
    """
    only_in_ci("it moves a gigabyte")
    # A container has too little memory for that many copies, and RabbitMQ 4.0 takes 16 MiB at most.
    size = 15_000_000 if broker.kind == "rabbitmq" and "MQTOOL_TEST_IMAGE" in os.environ else 100_000_000
    (shell.directory / "body").write_bytes(b"y" * size)
    survived(shell.run("mqtool", "send", "-q", "q", "-f", "body"))
    worker = ("mqtool", "worker", "-q", "q", "-c", "1", "--retries", "0", "--shell", *LIMITS, "--exec")
    survived(shell.run(*worker, "wc -c > counted; exit 1"), 1)
    assert int((shell.directory / "counted").read_text()) == size
    survived(shell.run("mqtool", "dlq", "show", "q"))
    survived(shell.run("mqtool", "dlq", "redrive", "q"))
    received = survived(shell.run("mqtool", "receive", "-q", "q", "-c", "1", "--raw", *LIMITS))
    assert len(received.stdout_bytes) == size + 1
    server = shell.start("mqtool", "rpc-server", "-c", "1", "--exec", f"head -c {size} /dev/zero").wait_until_ready()
    assert len(survived(shell.run("mqtool", "rpc-client", "--text", "x", "--raw")).stdout_bytes) == size + 1
    assert server.wait().code == 0
