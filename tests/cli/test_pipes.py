"""Commands in pipelines: bytes arrive unchanged, readers may exit early, and input is sent as it arrives."""

import gzip
import json
import math
import os
import random
import re
import struct
import sys
import zlib
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from pamqp import commands

from mqtool.amqp import Connection, administration, parse_addresses
from mqtool.broker.embedded.in_process import Vhost
from mqtool.topology import Binding, Queue
from tests.brokers import TestBroker, depth, large, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.corpus.frames import messages_091, recorded
from tests.hostile import VALUES, short, sized
from tests.protocol.raw_client import RawClient, raw_frame


def test_receive_piped_into_head_leaves_the_other_messages_in_the_queue(shell: Shell) -> None:
    """`receive | head -n 3` ends after three lines. All other messages stay in the queue, though a quorum queue may
    change their order.
    """
    shell.run("mqtool", "send", "-l", stdin="".join(f"line {number}\n" for number in range(10)))

    result = shell.script("mqtool receive --raw | head -n 3")

    assert result.stdout.splitlines() == ["line 0", "line 1", "line 2"]
    assert result.code == 141
    rest = shell.run("mqtool", "receive", "--raw", "--idle-timeout", IDLE).stdout.splitlines()
    assert sorted(rest) == [f"line {number}" for number in range(3, 10)]


@pytest.mark.parametrize("count", ["", "-c 300"])
@pytest.mark.parametrize("limit", ["argument 2", "policy 2", "policy 1"])
@pytest.mark.sampled(2)
def test_receive_piped_into_head_loses_no_message_to_a_low_delivery_limit(
    shell: Shell, broker: TestBroker, limit: str, count: str
) -> None:
    """`receive | head -n 1` requeues the messages that `head` has not read, and a quorum queue counts how often it
    redelivers a message. Even if an argument or a policy sets a delivery limit of 1 or 2, the queue drops no message
    when the command is run again and again. A message may be printed twice if `head` ended before mqtool saw that
    `head` had read it.
    """
    kind, times = limit.split()
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    few = ["--argument", f"x-delivery-limit:={times}"] if kind == "argument" else []
    assert shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", "quorum", *few).code == 0
    if kind == "policy":
        definition = {"pattern": "^jobs$", "definition": {"delivery-limit": int(times)}, "apply-to": "queues"}
        broker.api("PUT", f"policies/{broker.vhost}/few", definition)
        wait_until(lambda: "few" in shell.run("mqtool", "queue", "show", "jobs").stdout, "the policy applies")
    shell.run("mqtool", "send", "-l", "-r", "jobs", stdin="".join(f"{number}\n" for number in range(310)))
    came = []
    for left in 309, 308, 307, 306:
        came += shell.script(f"mqtool receive -q jobs --raw {count} | head -n 1").stdout.split()
        wait_until(lambda left=left: depth(broker, "jobs") >= left, "the other messages requeued")
    came += shell.run("mqtool", "receive", "-q", "jobs", "--raw", "--idle-timeout", IDLE).stdout.split()
    assert sorted(map(int, {*came})) == [*range(310)]


@on_any_broker
def test_receive_keeps_an_auto_delete_queue_while_it_consumes(shell: Shell, broker: TestBroker) -> None:
    """`receive -q QUEUE` prints all messages of an auto-delete queue: the broker does not delete the queue before the
    command has consumed them. When the command ends, the broker deletes the queue.
    """
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", "classic", "--auto-delete")
    shell.run("mqtool", "send", "-l", "-r", "jobs", stdin="1\n2\n3\n")
    came = shell.run("mqtool", "receive", "-q", "jobs", "--raw", "--idle-timeout", IDLE)
    assert (came.stdout, came.code) == ("1\n2\n3\n", 0), came.stderr
    with Connection(parse_addresses(broker.url)) as connection:
        wait_until(lambda: not administration.exists(connection.channel(), Queue("jobs")), "the queue is deleted")


def test_receive_remains_the_single_active_consumer_of_a_queue_with_a_delivery_limit(
    shell: Shell, broker: TestBroker
) -> None:
    """On a quorum queue with a delivery limit, `receive` normally cancels its consumer after the first message and
    starts another one. It does not do so if the queue has a single active consumer, because another client would then
    become the active one. Of two `receive` commands, the first one therefore receives every message.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    limits = ("--argument", "x-single-active-consumer:=true", "--argument", "x-delivery-limit:=5")
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", "quorum", *limits)
    receivers = [shell.start("mqtool", "receive", "-q", "jobs", "--raw").wait_until_ready() for _ in range(2)]
    for number in range(3):
        shell.run("mqtool", "send", "-q", "jobs", str(number))
        receivers[0].wait_for_stdout(f"{number}\n")
    assert receivers[1].stdout == ""


@on_any_broker
def test_receive_ends_when_the_reader_of_its_output_exits(shell: Shell) -> None:
    """`receive | head -n 1` ends as soon as `head` exits, even if no further message arrives."""
    shell.run("mqtool", "send")
    result = shell.script("mqtool receive | head -n 1")
    assert (result.stdout, result.code) == (" [x] Received Hello World!\n", 141)


@on_any_broker
@pytest.mark.parametrize("redirect", [">", ">>", "-o"])
@pytest.mark.sampled(1)
def test_receive_leaves_no_incomplete_line_if_the_disk_becomes_full(shell: Shell, redirect: str) -> None:
    """If the disk becomes full, `receive` removes the incomplete line from the output file and leaves the line's
    message in the queue. A later run appends that message.
    """
    lines = [letter * 400 for letter in "abc"]
    shell.run("mqtool", "send", "-l", stdin="\n".join(lines) + "\n")

    shell.start_cold()  # a process inherits the limit from the shell
    # Python must not write bytecode under that limit: half of it would stay.
    full = shell.script(f"export PYTHONDONTWRITEBYTECODE=1; ulimit -f 1; mqtool receive --raw {redirect} out")

    assert full.code == 1, full.stderr
    where = "out" if redirect == "-o" else "standard output"
    assert f"cannot write to {where}: File too large" in full.stderr
    assert "hint: the incomplete data was removed from the end of the file" in full.stderr
    whole = (shell.directory / "out").read_text()
    assert whole in ("", "".join(f"{line}\n" for line in lines[:1]), "".join(f"{line}\n" for line in lines[:2]))
    assert shell.script(f"mqtool receive --raw -c {3 - len(whole.splitlines())} >> out").code == 0
    assert (shell.directory / "out").read_text().splitlines() == lines


@on_any_broker
@pytest.mark.parametrize("options", ["", "-c 300"])
def test_receive_acknowledges_exactly_the_messages_that_it_has_written_to_a_full_disk(
    shell: Shell, options: str
) -> None:
    """If the disk becomes full, `receive -o FILE` acknowledges exactly the messages that it has written to FILE, with
    and without `-c`. The next run appends all the others, each exactly once.
    """
    lines = [f"{number:0500}" for number in range(300)]
    shell.run("mqtool", "send", "-l", stdin="\n".join(lines) + "\n")

    shell.start_cold()  # a process inherits the limit from the shell
    # Python must not write bytecode under that limit: half of it would stay.
    full = shell.script(f"export PYTHONDONTWRITEBYTECODE=1; ulimit -f 100; mqtool receive --raw -o out {options}")

    assert full.code == 1, full.stderr
    assert 100 < len(written := (shell.directory / "out").read_text().splitlines()) < 300
    assert shell.run("mqtool", "receive", "--raw", "-o", "out", "-c", f"{300 - len(written)}").code == 0
    assert (shell.directory / "out").read_text().splitlines() == lines


def log_lines() -> bytes:
    """Return ten thousand lines, mostly of random bytes; some are empty, very long, or contain markup or escape
    sequences.
    """
    chance = random.Random(5)  # the same lines in every run
    odd = [
        b"",
        b"[/red] [bold]",
        b"\xff\xfe\x00\x01",
        "grün ☃".encode(),
        b"\x1b[2Jcleared?",
        b"\r",
        b" ",
        b"x" * 1_000_000,
    ]
    lines = [
        odd[number % 8] if number % 1250 < 8 else chance.randbytes(60).replace(b"\n", b"-") for number in range(10_000)
    ]
    return b"".join(line + b"\n" for line in lines)


def test_ten_thousand_unusual_lines_arrive_byte_for_byte(shell: Shell) -> None:
    """`receive-log --raw` prints 10,000 lines exactly as `emit-log -l` sent them, byte for byte. Among them are empty
    and binary lines, a line of 1 MB, and lines with markup or escape sequences.
    """
    lines = log_lines()
    (shell.directory / "in.log").write_bytes(lines)
    receiver = shell.start("mqtool", "receive-log", "fanout", "--raw", "-c", "10000").wait_until_ready()

    emitted = shell.script("mqtool emit-log fanout -l < in.log")

    assert emitted.code == 0, emitted.stderr
    assert "10,000 confirmed in " in emitted.stderr
    assert receiver.wait().stdout_bytes == lines


@on_any_broker
@pytest.mark.parametrize(
    ("option", "end"), [(["-0"], b"\0"), (["-D", "::"], b"::"), (["-D", r"\t"], b"\t")], ids=["NUL", "colons", "tab"]
)
@pytest.mark.sampled(1)
def test_send_splits_its_input_at_nul_or_at_another_delimiter(shell: Shell, option: list[str], end: bytes) -> None:
    """`send -0` splits its input at NUL bytes, and `send -D` at the given delimiter. Messages can contain newlines or
    be empty, and the last one needs no delimiter.
    """
    shell.run("mqtool", "send", *option, stdin=b"one\ntwo" + end + b"" + end + b"three")
    result = shell.run("mqtool", "receive", "-c", "3", "--format", r"<%b>")
    assert result.stdout == "<one\ntwo>\n<>\n<three>\n"


@on_any_broker
def test_send_without_a_message_argument_sends_stdin_as_one_message(shell: Shell) -> None:
    """Without a message on the command line, or with `-`, `send` sends all of stdin as one message. With a message on
    the command line, `send` does not read stdin.
    """
    shell.run("mqtool", "send", stdin="two\nlines\n")
    shell.run("mqtool", "send", "-", stdin="dash")
    shell.run("mqtool", "send", "words", "win", stdin="not read")
    result = shell.run("mqtool", "receive", "-c", "3", "-F", "%s:%b")
    assert result.stdout == "10:two\nlines\n\n4:dash\n9:words win\n"


@on_any_broker
def test_send_publishes_each_line_as_soon_as_it_arrives(shell: Shell) -> None:
    """`send -l` publishes each line from a pipe as soon as the line arrives, without waiting for the next one."""
    receiver = shell.start("mqtool", "receive", "--raw").wait_until_ready()
    sender = shell.start("mqtool", "send", "-l", stdin=PIPE)
    assert sender.process.stdin is not None

    for line in (b"first\n", b"second\n"):
        sender.write(line)
        receiver.wait_for_stdout(line.decode())
    sender.process.stdin.close()

    assert sender.wait().code == 0
    assert "2 confirmed" in sender.stderr


def test_receive_json_piped_into_send_json_copies_messages_exactly(shell: Shell) -> None:
    """`receive --json | send --json` copies messages with unchanged bodies and properties. Headers keep their types."""
    # The first has a priority above 4, that of messages without one: since 4.3, quorum queues deliver by priority.
    shell.run("mqtool", "send", "-q", "a", "-H", "n:=1.5", "-H", 'deep:={"list":[1,null,true,"x"]}', "-H", "text=1",
              "--property", "priority=9", "--property", "content-type=text/plain", "--property", "delivery-mode=2",
              "--property", "timestamp=1700000000", "ünïcode\n[/red]")  # fmt: skip
    shell.run("mqtool", "send", "-q", "a", stdin=b"\xff\x00\xfe")
    shell.run("mqtool", "send", "-q", "a", "--json", stdin='{"body": "", "properties": {}}\n')

    copied = shell.script(
        "mqtool receive -q a -c 3 --json | tee a.json | mqtool send --json -q b &&"
        " mqtool receive -q b -c 3 --json > b.json"
    )

    assert copied.code == 0, copied.stderr
    first, second = (_without_place(shell.directory / name) for name in ("a.json", "b.json"))
    assert first == second
    assert [each.get("body", each.get("body_base64")) for each in first] == ["ünïcode\n[/red]", "/wD+", ""]
    given = {"priority": 9, "content_type": "text/plain", "delivery_mode": 2, "timestamp": 1700000000}
    assert given.items() <= first[0]["properties"].items()
    assert first[2]["properties"] == {}, "no property was added"
    assert first[0]["headers"] == {"n": 1.5, "deep": {"list": [1, None, True, "x"]}, "text": "1"}


def _without_place(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("timestamp", "queue", "routing_key")} for line in lines]


def test_messages_of_real_clients_are_copied_byte_for_byte(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """tests/corpus has what clients in several languages publish, with the types that each of them uses in headers.
    `receive --json | send --json` copies each of these messages: properties, headers and bodies have the same bytes.
    """
    messages = recorded("amqp091")
    channel = connection.channel()
    for name in ("source", "observed"):
        queue = channel.declare(Queue(name, durable=True, arguments={"x-queue-type": "classic"}))
        administration.bind(channel, Binding("amq.fanout", queue.name))
    with RawClient(broker.url) as client:
        for message in messages:
            client.send(commands.Basic.Publish(exchange="amq.fanout", routing_key=message["routing_key"]))
            size = struct.pack(">HHQ", 60, 0, len(message["body"]))
            client.socket.sendall(raw_frame(2, 1, size + message["properties"]))
            client.socket.sendall(raw_frame(3, 1, message["body"]) if message["body"] else b"")

        copied = shell.script(f"mqtool receive -q source -c {len(messages)} --json | mqtool send --json")

        assert copied.code == 0, copied.stderr
        client.send(commands.Basic.Consume(queue="observed", no_ack=True))
        data, found = b"", list[dict[str, Any]]()
        while len(found) < 2 * len(messages):
            data += client.socket.recv(65536)
            found = list(messages_091(data))
    pairs = zip(messages, found[: len(messages)], found[len(messages) :], strict=True)
    assert [(message["client"], before, after) for message, before, after in pairs if before != after] == []


@pytest.mark.parametrize("command", ["send --json -q copy", "recording replay --to-queue copy"])
def test_a_copy_has_no_headers_that_the_broker_has_set(shell: Shell, connection: Connection, command: str) -> None:
    """A quorum queue counts in headers how often it has delivered a message. `receive --json` shows these headers. They
    are not part of a copy, in contrast to the publisher's headers, unless --keep-broker-headers is given.
    """
    shell.script(
        "mqtool queue declare jobs; mqtool queue declare copy;"
        "mqtool send -q jobs -H tenant=acme one; mqtool send -q jobs two"
    )
    channel = connection.channel()
    assert channel.get("jobs")
    assert channel.get("jobs")
    channel.close()
    lines = shell.script("mqtool receive -q jobs -c 2 --json").stdout
    counts = [set(json.loads(line)["headers"]) - {"tenant"} for line in lines.splitlines()]
    assert counts[0]
    assert counts[0] <= {"x-delivery-count", "x-acquired-count"}

    copied = shell.run("mqtool", *command.split(), stdin=lines)
    kept = shell.run("mqtool", *command.split(), "--keep-broker-headers", stdin=lines)

    assert (copied.code, kept.code) == (0, 0), copied.stderr + kept.stderr
    first, second, *with_counts = [
        json.loads(line)["headers"] for line in shell.script("mqtool receive -q copy -c 4 --json").stdout.splitlines()
    ]
    assert (first, second) == ({"tenant": "acme"}, None)
    assert all(counts[0] <= set(headers) for headers in with_counts)


@on_any_broker
def test_a_long_body_is_shortened_on_a_terminal(shell: Shell) -> None:
    """On a terminal, `send` and `receive` show only the first 200 characters of a long body, and the body's size. In a
    pipe or with --raw, they print the whole body.
    """
    (shell.directory / "body").write_text("é" * 300)
    start = "é" * 200
    assert f" [x] Sent '{start}'… (600 bytes)\r\n" in on_terminal(shell, "mqtool", "send", "-f", "body").stdout
    assert f" [x] Received {start}… (600 bytes)\r\n" in on_terminal(shell, "mqtool", "receive", "-c", "1").stdout
    assert "é" * 300 in shell.run("mqtool", "send", "-f", "body").stderr
    assert "é" * 300 in on_terminal(shell, "mqtool", "receive", "-c", "1", "--raw").stdout


@on_any_broker
def test_a_terminal_shows_binary_bodies_in_short_and_headers_of_messages_without_a_body(shell: Shell) -> None:
    """On a terminal, `peek` shows the start of a binary body, its size and its type; the headers of a message without a
    body, such as an event of RabbitMQ's event exchange; and with --decompress, what a gzip or zlib body contains. In a
    pipe, bodies are unchanged.
    """
    order = b'{"order": 4711}' * 20
    bodies = [msgpack := b"\x82\xa5order\xcd\x12g\n" + bytes(999), gzip.compress(order), zlib.compress(order)]
    send = ("mqtool", "send", "-q", "q")
    shell.run(*send, "--property", "content-type=application/msgpack", stdin=msgpack)
    shell.run(*send, "--property", "content-encoding=gzip", stdin=bodies[1])
    shell.run(*send, "-H", "compression=application/x-gzip", stdin=bodies[2])  # as kombu does
    shell.run(*send, "-H", "name=jobs", "-H", "durable:=true", "--", "")
    shell.run(*send, "grün\x1b[31m")

    plain, opened = (on_terminal(shell, "mqtool", "peek", "q", *option) for option in ((), ("--decompress",)))
    piped = shell.run("mqtool", "peek", "q", "--format", "%b")

    start = r"q: \x82\xa5order\xcd\x12g\n" + r"\x00" * 37 + "… (1,010 bytes, application/msgpack)"
    lines = plain.stdout.splitlines()
    assert lines[0] == start
    assert [line.rpartition(" (")[2] for line in lines[1:3]] == [
        f"{len(bodies[1])} bytes, gzip)",
        f"{len(bodies[2])} bytes, application/x-gzip)",
    ]
    assert lines[3:5] == ['q: {"name":"jobs","durable":true}', r"q: grün\x1b[31m"]
    assert opened.stdout.splitlines()[1:3] == [f"q: {(order.decode() * 2)[:200]}… (300 bytes)"] * 2
    assert piped.stdout_bytes == b"\n".join([*bodies, b"", "grün\x1b[31m\n".encode()])


@on_any_broker
def test_decompress_leaves_bodies_that_are_too_large_or_not_compressed(shell: Shell) -> None:
    """With --decompress, a body that would have more than 64 MiB is printed as it is, after a warning, and so is one
    that is not what its properties say. --json refuses --decompress, because it would change copies of messages.
    """
    bomb, broken = zlib.compress(bytes((64 << 20) + 1)), gzip.compress(b"hello")[:-4]
    for body in (bomb, broken, b"plain", gzip.compress(b"one ") + gzip.compress(b"two")):
        shell.run("mqtool", "send", "-q", "q", "--property", "content-encoding=gzip", stdin=body)

    refused = shell.run("mqtool", "receive", "-q", "q", "-c", "1", "--json", "--decompress")
    printed = shell.run("mqtool", "receive", "-q", "q", "-c", "4", "--raw", "--decompress")

    assert (refused.code, "cannot be combined" in refused.stderr) == (2, True)
    assert printed.stdout_bytes == b"\n".join([bomb, broken, b"plain", b"one two", b""])
    assert "a body would have more than 64 MiB without its compression (gzip)" in printed.stderr
    assert printed.stderr.count("a body is not gzip, although its properties say so") == 1


@on_any_broker
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--queue-type", "classic"), True),
        (("--queue-type", "classic", "--persistent"), False),
        (("--queue-type", "quorum"), False),
    ],
    ids=["classic", "classic and persistent", "quorum"],
)
@pytest.mark.sampled(1)
def test_send_says_on_a_terminal_that_messages_are_not_persistent(
    shell: Shell, words: tuple[str, ...], said: bool
) -> None:
    """On a terminal, `send -l` to a classic queue without --persistent says that the messages are lost when the broker
    stops. With --persistent, or to a quorum queue, `send -l` does not say that.
    """
    (shell.directory / "lines").write_text("1\n2\n3\n")
    sent = on_terminal(shell, "mqtool", "send", "-q", "jobs", "-l", "-f", "lines", *words)
    assert (sent.code, "3 confirmed" in sent.stdout) == (0, True), sent.stdout
    assert ("3 are not persistent: lost when the broker stops (see --persistent)" in sent.stdout) == said


@on_any_broker
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_notice_about_messages_that_are_not_persistent_depends_on_the_existing_queue(
    shell: Shell, kind: str
) -> None:
    """On a terminal, if the queue already exists as a classic queue, `send -l` says that the messages are not
    persistent. If the queue exists as a quorum queue, `send -l` does not say that. The type that `send` would declare
    if the queue were missing does not matter.
    """
    (shell.directory / "lines").write_text("1\n2\n3\n")
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", kind)
    sent = on_terminal(shell, "mqtool", "send", "-q", "jobs", "-l", "-f", "lines")
    assert (sent.code, "3 confirmed" in sent.stdout) == (0, True), sent.stdout
    assert ("3 are not persistent" in sent.stdout) == (kind == "classic"), sent.stdout


@on_any_broker
def test_logs_are_coloured_by_severity_on_a_terminal(shell: Shell) -> None:
    """On a terminal, `receive-log` prints critical, error and warning logs in colour, unless --no-color is given."""
    keys = ["kern.critical", "app.error", "web.warning.slow", "db.info"]
    for command, shown in (
        (["-c", "4"], ["\x1b[1;31m [x] kern.critical:x\x1b[0m", "\x1b[31m [x] app.error:x\x1b[0m",
                       "\x1b[33m [x] web.warning.slow:x\x1b[0m", " [x] db.info:x"]),
        (["-c", "4", "--no-color"], [f" [x] {key}:x" for key in keys]),
    ):  # fmt: skip
        logs = ("mqtool", "receive-log", "topic", "#", "-q", "logs", "--durable", "--declare")
        shell.run(*logs, "--idle-timeout", "1ms")
        shell.run(
            "mqtool",
            "emit-log",
            "topic",
            "--json",
            stdin="".join(f'{{"body":"x","routing_key":"{k}"}}\n' for k in keys),
        )
        assert on_terminal(shell, *logs, *command).stdout.splitlines()[1:5] == shown


@on_any_broker
def test_pretty_indents_json_bodies(shell: Shell) -> None:
    """`receive --raw --pretty` indents bodies that are JSON, and prints other bodies unchanged."""
    shell.run("mqtool", "send", "-l", stdin='{"a":["ü"]}\nnot {json\n')
    assert shell.run("mqtool", "receive", "-c", "2", "--raw", "--pretty").stdout == (
        '{\n  "a": [\n    "ü"\n  ]\n}\nnot {json\n'
    )


@on_any_broker
def test_receive_into_a_file_counts_messages_on_the_terminal(shell: Shell) -> None:
    """If stdout is a file and stderr is a terminal, `receive` says how many messages it has received. If stderr is not
    a terminal, `receive` does not say that.
    """
    shell.run("mqtool", "send", "-l", stdin="1\n2\n3\n")
    seen = on_terminal(shell, "sh", "-c", "mqtool receive -c 3 --raw > out")
    assert "3 received in " in seen.stdout.splitlines()[-1]
    assert (shell.directory / "out").read_text() == "1\n2\n3\n"
    shell.run("mqtool", "send", "x")
    assert "received in" not in shell.run("sh", "-c", "mqtool receive -c 1 --raw > out").stderr


@on_any_broker
@pytest.mark.parametrize("shell_options", ["-c", "-mc"], ids=["script", "job control"])
@large
def test_a_job_in_the_background_shows_no_progress_line(shell: Shell, shell_options: str) -> None:
    """If a script, or a shell with job control, starts `receive` in the background with `&`, `receive` prints no
    progress line, because this line would overwrite what the terminal shows. At the end, `receive` prints how many
    messages it has received.
    """
    shell.start_cold()
    assert shell.run("mqtool", "send", "-q", "jobs", "x").code == 0
    receive = "mqtool receive -q jobs -c 1 > received"
    shown = on_terminal(shell, "bash", shell_options, receive).stdout
    assert "\x1b[?25l" in shown, "hides the cursor"
    assert shell.run("mqtool", "send", "-q", "jobs", "x").code == 0
    background = on_terminal(shell, "bash", shell_options, f"{receive} & wait").stdout
    assert "\x1b[?25l" not in background
    assert "1 received in" in background


@on_any_broker
def test_the_progress_line_shows_the_percentage_and_the_rate(shell: Shell) -> None:
    """If a command knows how much of its work is done, its progress line on a terminal shows this as a percentage, with
    the number of messages, the elapsed time and the rate.
    """
    script = """
from itertools import count, takewhile
from mqtool.cli.display.progress import Progress
progress = Progress("confirmed", patience=0, fraction=lambda: 0.5)
for number in progress.of(takewhile(lambda _: "(" not in progress.sum, count())):
    pass
progress.stop()
"""
    seen = on_terminal(shell, sys.executable, "-c", script).stdout
    assert re.search(r" 50%.* [\d,]+ confirmed in \d+\.\d s \(", seen)


def test_publisher_confirms_shows_progress_on_a_terminal(lonely_shell: Shell, amqp_vhost: Vhost) -> None:
    """If the broker's confirms are slow, `publisher-confirms` shows a progress line on a terminal before it prints its
    result.
    """
    lonely_shell.environment["MQTOOL_URL"] = amqp_vhost.url
    amqp_vhost.faults.delay_confirms(0.25)
    watched = on_terminal(lonely_shell, "mqtool", "publisher-confirms", "individual", "-c", "8")
    assert re.search(r"\d%.*\d confirmed in \d+\.\d s \(", watched.stdout)
    assert "Published 8 messages individually in" in watched.stdout


@on_any_broker
def test_control_characters_are_escaped_only_on_a_terminal(shell: Shell) -> None:
    """On a terminal, `receive --raw` prints the control characters of a body as escapes. In a pipe, it prints the body
    unchanged.
    """
    body = b"\x1b[2J[/red]\x07"
    for _ in range(2):
        shell.run("mqtool", "send", stdin=body)

    piped = shell.run("mqtool", "receive", "-c", "1", "--raw")
    shown = shell.script("script -qec 'mqtool receive -c 1 --raw' /dev/null")

    assert piped.stdout_bytes == body + b"\n"
    assert r"\x1b[2J[/red]\x07" in shown.stdout
    assert "\x1b[2J" not in shown.stdout


@on_any_broker
def test_key_pattern_takes_the_routing_key_from_each_line(shell: Shell) -> None:
    """With the routing key `{app}.{level}`, `emit-log --key-pattern REGEX` replaces the two placeholders, for each
    line, with the parts of the line that the groups `app` and `level` of REGEX match. If a line does not match REGEX,
    both placeholders become 'unknown', and the command says so.
    """
    all_lines = shell.start("mqtool", "receive-log", "topic", "#", "-c", "3").wait_until_ready()
    errors = shell.start("mqtool", "receive-log", "topic", "*.error", "-c", "1").wait_until_ready()

    result = shell.run(
        "mqtool", "emit-log", "topic", "{app}.{level}", "-l", "--key-pattern", r"(?P<app>\w+)\[\d+\]: (?P<level>\w+)",
        stdin="web[1]: info up\nno log line\ndb[22]: error down\n",
    )  # fmt: skip

    assert "--key-pattern does not match 'no log line': sent with 'unknown' in the key" in result.stderr
    assert all_lines.wait().stdout.splitlines() == [
        " [x] web.info:web[1]: info up",
        " [x] unknown.unknown:no log line",
        " [x] db.error:db[22]: error down",
    ]
    assert errors.wait().stdout == " [x] db.error:db[22]: error down\n"


@on_any_broker
def test_a_line_that_does_not_match_or_reach_a_queue_is_reported_at_once(shell: Shell) -> None:
    """While its input is still open, `emit-log -l` names the first line that --key-pattern does not match, and the
    first one that no queue has received.
    """
    emit = ("mqtool", "emit-log", "topic", "log.{level}", "-l", "--key-pattern", r": (?P<level>\w+)")
    emitting = shell.start(*emit, stdin=PIPE, ready=False).write(b"web: info\nno log line\n")
    emitting.wait_for_stderr("--key-pattern does not match 'no log line'")
    emitting.wait_for_stderr("no queue received 'web: info', sent with the key 'log.info'")
    assert emitting.process.poll() is None


@on_any_broker
def test_receive_exits_with_1_if_stdout_is_on_a_full_disk(shell: Shell) -> None:
    """If stdout is a file on a full disk, `receive` exits with 1, and the message that it could not write stays in the
    queue.
    """
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    shell.run("mqtool", "send")
    result = shell.script("mqtool receive > /dev/full")
    assert result.code == 1
    assert "cannot write to standard output: No space left on device" in result.stderr
    assert shell.run("mqtool", "receive", "-c", "1").stdout == " [x] Received Hello World!\n"


@on_any_broker
def test_a_full_disk_is_ignored_for_stderr_and_reported_for_stdout(shell: Shell) -> None:
    """If stderr is a file on a full disk, `send` exits with 0 once the broker has confirmed the message, and `receive`
    prints the message. If stdout is a file on a full disk, `mqtool --help` says on stderr why it cannot write, and
    exits with 1.
    """
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    assert shell.script("mqtool send 2> /dev/full").code == 0
    assert shell.script("mqtool receive -c 1 2> /dev/full").stdout == " [x] Received Hello World!\n"
    helped = shell.script("mqtool --help > /dev/full")
    assert (helped.stderr, helped.code) == ("mqtool: cannot write: No space left on device\n", 1)


def test_receivers_that_share_a_queue_lose_no_message_when_one_is_killed(shell: Shell) -> None:
    """If one of three `receive` commands on the same queue is killed, the other two receive the messages that the
    killed one had not acknowledged, and every message is printed at least once.
    """
    receivers = [shell.start("mqtool", "receive", "--raw", "--prefetch", "20").wait_until_ready() for _ in range(3)]
    sender = shell.start("mqtool", "send", "-l", stdin=PIPE)
    assert sender.process.stdin is not None
    for number in range(2_000):
        sender.process.stdin.write(b"%d\n" % number)
        if number == 1_000:
            sender.process.stdin.flush()
            wait_until(lambda: any(each.stdout.count("\n") > 50 for each in receivers), "messages at the receivers")
            max(receivers, key=lambda each: each.stdout.count("\n")).process.kill()
    sender.process.stdin.close()
    assert sender.wait().code == 0

    def got() -> set[str]:
        # A killed receiver may have been in the middle of a line.
        return {line for receiver in receivers for line in receiver.stdout.split("\n")[:-1]}

    wait_until(lambda: len(got()) == 2_000, "every line")


@on_any_broker
@large
def test_commands_report_a_closed_stdin_or_stdout_that_they_need_but_not_a_closed_stderr(shell: Shell) -> None:
    """With a closed stdin, every command that reads messages from stdin exits with 2, but `send` still sends a
    message that is given on the command line. With a closed stdout, `receive` exits with 1, and the message stays in
    the queue. With a closed stderr, `receive` prints its message.
    """
    shell.start_cold()
    for command in ("send -l", "send --json --failed-to failed", "send -", "recording replay", "recording scrub"):
        closed = shell.script(f"mqtool {command} <&-", timeout=30)
        assert (closed.code, closed.stderr.splitlines()[0]) == (2, "mqtool: cannot read stdin: it is closed"), command
    assert shell.script("mqtool send kept <&-", timeout=30).code == 0
    closed = shell.script("mqtool receive -c 1 --raw >&-", timeout=30)
    assert closed.code == 1
    assert "cannot write to standard output: Bad file descriptor" in closed.stderr
    assert shell.script("mqtool receive -c 1 --raw 2>&-", timeout=30).stdout == "kept\n"


@pytest.mark.parametrize("closed", ["<&- 2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
@on_any_broker
def test_send_and_receive_succeed_with_several_closed_standard_descriptors(shell: Shell, closed: str) -> None:
    """If two or all of stdin, stdout and stderr are closed, as in some daemons, `send` exits with 0, and `receive
    --output` writes the message to its file. If only stderr is open, `send` prints no error there.
    """
    shell.start_cold()
    sent = shell.script(f"mqtool send kept {closed}", timeout=30)
    assert (sent.code, "Error" in sent.stderr) == (0, False), sent.stderr
    assert shell.script(f"mqtool receive -c 1 --raw -o kept.out {closed}", timeout=30).code == 0
    assert (shell.directory / "kept.out").read_text() == "kept\n"


def is_finite(value: bytes) -> bool:
    return value[:1] not in b"fd" or math.isfinite(struct.unpack(">" + value[:1].decode(), value[1:])[0])


#: Headers of all field types, alone, in a list and in a table.
TYPED = [value for value in VALUES if is_finite(value) and len(value) < 1000]
HEADERS = b"".join(short(b"h%03d" % number) + value for number, value in enumerate(TYPED))
HEADERS += short(b"list") + b"A" + sized(b"".join(TYPED)) + short(b"table") + b"F" + sized(HEADERS)


def publish_raw(client: RawClient, queue: str, headers: bytes) -> None:
    client.send(commands.Basic.Publish(routing_key=queue))
    properties = struct.pack(">H", 1 << 13) + sized(headers)
    client.socket.sendall(raw_frame(2, 1, struct.pack(">HHQ", 60, 0, 1) + properties) + raw_frame(3, 1, b"x"))


def got_raw(client: RawClient, queue: str) -> bytes:
    """Get a message, and return its encoded properties."""
    client.send(commands.Basic.Get(queue=queue, no_ack=True))
    client.expect(commands.Basic.GetOk)
    head = client.read(7)
    header = client.read(struct.unpack(">I", head[3:])[0] + 1)[:-1]
    client.receive()
    return header[12:]


@pytest.mark.parametrize("reader", ["receive -q", "peek"])
def test_headers_of_all_types_are_the_same_after_receive_json_and_send_json(
    shell: Shell, broker: TestBroker, reader: str
) -> None:
    """A message with headers of all of AMQP's types, also in lists and tables, has the same bytes after
    `receive --json | send --json`. If a header no longer fits its type, `send` exits with 65, and sends nothing.
    """
    assert shell.run("mqtool", "queue", "declare", "src").code == 0
    with RawClient(broker.url) as client:
        for _ in range(2):
            publish_raw(client, "src", HEADERS)
        wait_until(lambda: depth(broker, "src") == 2, "both messages are in the queue")
        expected = got_raw(client, "src")
        copied = shell.script(f"mqtool {reader} src -c 1 --json > line; mqtool send --json -q copy < line")
        assert copied.code == 0, copied.stderr
        assert got_raw(client, "copy") == expected
    line = json.loads(shell.script("cat line").stdout)
    name = next(name for name, kind in line["types"]["headers"].items() if kind == "int8")
    line["headers"][name] = 1000
    refused = shell.run("mqtool", "send", "--json", "-q", "copy", stdin=json.dumps(line))
    assert (refused.code, depth(broker, "copy")) == (65, 0)
    assert f"a header {name!r} that does not fit its type int8: 1000" in refused.stderr


def test_rabbitmq_closes_the_connection_for_a_number_that_is_not_finite_and_send_refuses_it(
    shell: Shell, broker: TestBroker
) -> None:
    """The broker closes a connection that publishes a header with an infinite number. `send --json` refuses such a
    header, and exits with 65.
    """
    with RawClient(broker.url) as client:
        publish_raw(client, "nowhere", short(b"h") + b"d" + struct.pack(">d", math.inf))
        assert client.closed_with().startswith("541 INTERNAL_ERROR")
    line = {"body": "", "headers": {"a": [{"$double": "Infinity"}]}}
    refused = shell.run("mqtool", "send", "--json", "-q", "q", stdin=json.dumps(line))
    assert refused.code == 65
    assert "the header 'a' has a value that is not a finite number" in refused.stderr


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize(
    "command",
    ["receive --raw", "receive --raw -c 999", "receive --raw --auto-ack", "worker --exec cat --concurrency 2"],
)
@pytest.mark.sampled(3)
def test_a_receiver_ends_once_its_queue_is_empty(shell: Shell, broker: TestBroker, command: str, kind: str) -> None:
    """With --until-empty, `receive` and `worker` handle all messages of a queue, and end without waiting for more. If
    --count is larger than the number of messages, this is no error.
    """
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", kind)
    shell.run("mqtool", "send", "-q", "jobs", "--count", "300", "[{n}]")
    ended = shell.run("mqtool", *command.split(), "-q", "jobs", "--until-empty")
    assert ended.code == 0, ended.stderr
    assert sorted(re.findall(r"\d+", ended.stdout)) == sorted(map(str, range(1, 301)))
    assert depth(broker, "jobs") == 0
    assert shell.run("mqtool", "receive", "-q", "jobs", "--until-empty", "--raw").stdout == ""


@on_any_broker
def test_until_empty_leaves_what_does_not_match_and_refuses_a_stream(shell: Shell, broker: TestBroker) -> None:
    """`receive --where … --until-empty` takes what matches, even with a small --prefetch, and requeues the rest. A
    stream never becomes empty: that is a usage error.
    """
    shell.run("mqtool", "send", "-q", "jobs", "--count", "9", "{n}")
    for prefetch, taken in (("9", ["7", "8", "9"]), ("2", [])):
        where = ("--where", "body>6", "--prefetch", prefetch)
        assert shell.run("mqtool", "receive", "-q", "jobs", *where, "--until-empty", "--raw").stdout.split() == taken
    assert depth(broker, "jobs") == 6
    shell.run("mqtool", "queue", "declare", "log", "--queue-type", "stream")
    assert shell.run("mqtool", "receive", "-q", "log", "--until-empty").code == 2
