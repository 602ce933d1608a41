"""Streams: `send-stream` appends, `receive-stream` reads from any offset, and --track resumes where it stopped."""

import contextlib
import gzip
import importlib.util
import json
import re
import signal
import socket
import struct
import subprocess
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from mqtool.address import parse_addresses
from mqtool.amqp import Receiving
from mqtool.duration import Backoff
from mqtool.management import Management
from mqtool.message import Message
from mqtool.offsets import FIRST, LAST, Offset
from mqtool.streams.stream_channel import StreamChannel
from mqtool.topology import Stream
from mqtool.tutorials.stream_dialects import HELLO, StreamDialect
from tests.brokers import TestBroker, large, on_any_broker, skip_without_amqp10
from tests.cli.shell import IDLE, Shell, wait_until
from tests.cli.test_tutorial import Watched
from tests.corpus.frames import recorded, sections
from tests.protocol.raw_stream import DECLARE_PUBLISHER, OPEN, PUBLISH, RawStream, string
from tests.proxy import Proxy

#: How annotations of a message start.
ANNOTATED = bytes((0, 0x53, 0x72))


@pytest.fixture
def shell(shell: Shell, broker: TestBroker) -> Shell:
    """A shell whose broker has a port for streams."""
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    return shell


def numbers(first: int, last: int) -> str:
    return "".join(f"{number}\n" for number in range(first, last + 1))


def test_messages_of_real_stream_clients_are_copied(shell: Shell, broker: TestBroker) -> None:
    """tests/corpus has what clients of the stream protocol publish. `receive-stream --json | send-stream --json` copies
    each of these messages: all sections have the same values, of the same types.
    """
    messages = recorded("streams")
    if not broker.differs_since("3.13", "AMQP 0-9-1 clients see annotations"):
        # For older versions, send-stream stores what 0-9-1 clients see as headers in application properties.
        messages = [message for message in messages if ANNOTATED not in message["message"]]
    place = urlsplit(broker.streams)
    client = RawStream(place.hostname or "", place.port or 0)
    client.log_in()
    assert client.request(OPEN, string(broker.vhost)).code == 1
    for name in ("source", "copy"):
        assert client.create(name) == 1
    assert client.declare_publisher(1, "source") == 1
    client.publish(1, 1, *(message["message"] for message in messages))
    client.confirmed(len(messages))

    copied = shell.script(
        f"mqtool receive-stream -q source -c {len(messages)} --json | mqtool send-stream -q copy --json"
    )

    assert copied.code == 0, copied.stderr
    assert client.subscribe(1, "copy") == 1
    pairs = zip(messages, client.entries(len(messages)), strict=True)
    client.close()
    wrong = [(message, after) for message, after in pairs if sections(message["message"]) != sections(after)]
    assert wrong == []


def test_send_stream_and_receive_stream_print_the_tutorials_lines(shell: Shell) -> None:
    """`send-stream` and `receive-stream` print the lines of RabbitMQ's stream tutorial. A reader receives messages
    that were sent before it started, and these messages stay in the stream for the next reader.
    """
    sent = shell.run("mqtool", "send-stream")
    assert (sent.stdout, sent.stderr, sent.code) == ("", " [x] Hello, World! message sent\n", 0)
    shell.run("mqtool", "send-stream", "Good", "morning!")
    for _ in range(2):
        received = shell.run("mqtool", "receive-stream", "--idle-timeout", IDLE)
        assert received.stderr.startswith("Press control + C to close\n")
        assert received.stdout == (
            "Got message: b'Hello, World!' from stream hello-python-stream\n"
            "Got message: b'Good morning!' from stream hello-python-stream\n"
        )
    reader = shell.start("mqtool", "receive-stream", "--offset", "next", "--raw").wait_until_ready()
    shell.run("mqtool", "send-stream", "news")
    assert reader.wait_for_stdout("news\n").interrupt().wait().code == 0


def test_5000_lines_can_be_read_in_order_from_any_offset(shell: Shell) -> None:
    """If `send-stream -l` sends 5,000 lines, the broker confirms all of them, and `receive-stream` reads them in order.
    `receive-stream` can start at the first message, a numeric offset, an age or a time.
    """
    sent = shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin=numbers(0, 4999))
    assert "5,000 confirmed in" in sent.stderr
    assert shell.run("mqtool", "receive-stream", "-q", "s", "--raw", "-c", "5000").stdout == numbers(0, 4999)
    there = shell.run("mqtool", "receive-stream", "-q", "s", "--raw", "--offset", "4990", "--idle-timeout", IDLE)
    assert there.stdout == numbers(4990, 4999)
    for offset in ("1h", "first", "2020-01-01T00:00Z"):
        first = shell.run("mqtool", "receive-stream", "-q", "s", "--offset", offset, "-c", "1", "-F", "%b")
        assert first.stdout == "0\n"


def test_stream_messages_keep_their_headers_and_properties(shell: Shell) -> None:
    """`receive-stream --json` prints the headers and properties of a message in a stream, whether the message was
    published over the stream protocol or over AMQP 0-9-1. If `send-stream --json` publishes the printed line again, the
    copy keeps the headers and properties.
    """
    headers = {"retries": 3, "ratio": 0.5, "is_new": True, "who": "ann"}
    properties = {"content_type": "text/a", "message_id": "m-1", "correlation_id": "c-1", "timestamp": 1769817600}
    given = [word for name, value in headers.items() for word in ("-H", f"{name}:={json.dumps(value)}")]
    given += [word for name, value in properties.items() for word in ("--property", f"{name}={value}")]
    read = ("mqtool", "receive-stream", "-q", "s", "--json", "-c")
    shell.run("mqtool", "send-stream", "-q", "s", *given, "body")
    line = shell.run(*read, "1").stdout
    shell.run("mqtool", "send-stream", "-q", "s", "--json", stdin=line)
    shell.run("mqtool", "send", "-q", "s", "--queue-type", "stream", *given, "body")
    messages = [json.loads(line) for line in shell.run(*read, "3").stdout.splitlines()]
    for offset, message in enumerate(messages):
        assert (message["body"], message["queue"], message["routing_key"]) == ("body", "s", "s")
        assert (message["headers"], message["properties"]) == ({**headers, "x-stream-offset": offset}, properties)


def test_receive_says_that_it_receives_only_new_messages_of_a_stream(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `receive` without --offset on a stream says that it receives only new messages, and names the
    option with which it receives all messages. With --offset, it prints no such notice.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "send-stream", "-q", "s", "old")
    told = "'s' is a stream: only new messages are received; --offset first receives all"

    def is_told() -> bool:
        watched = Watched(shell, 100, 24, "mqtool", "receive", "-q", "s", "--idle-timeout", IDLE)
        assert watched.end() == 0
        return told in watched.seen

    # The command asks the management API for a second at most: a busy RabbitMQ may take longer.
    wait_until(is_told, "the notice")
    watched = Watched(shell, 100, 24, "mqtool", "receive", "-q", "s", "--offset", "first", "-c", "1")
    assert watched.end() == 0
    assert "Received old" in watched.seen
    assert told not in watched.seen


def test_receive_reads_a_stream_from_an_offset(shell: Shell) -> None:
    """`receive --offset` reads a stream from the first message, from an offset such as 42 or from an age such as 1h,
    and shows each message's offset as a header.
    """
    shell.run("mqtool", "send-stream", "-l", "-q", "s", "-H", "who=ann", stdin=numbers(0, 499))
    read = ("mqtool", "receive", "-q", "s", "--queue-type", "stream", "--offset")
    assert shell.run(*read, "first", "--raw", "-c", "500").stdout == numbers(0, 499)
    one = json.loads(shell.run(*read, "42", "--json", "-c", "1").stdout)
    assert (one["body"], one["headers"]) == ("42", {"who": "ann", "x-stream-offset": 42})
    assert shell.run(*read, "1h", "-c", "1", "--raw").stdout == "0\n"
    assert shell.run(*read, "499", "--raw", "--idle-timeout", IDLE).stdout == "499\n"


def test_receive_stream_track_resumes_after_the_last_printed_message(shell: Shell) -> None:
    """If `receive-stream --track` was ended by --count or Ctrl-C, the next run resumes after the last printed message,
    and no message is repeated or skipped. The exception is `receive-stream --track | head`: if `head` has ended the
    run, the next run may skip one message, which `head` had read but not printed.
    """
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin=numbers(0, 2999))
    read = ("mqtool", "receive-stream", "-q", "s", "--raw", "--track", "me")
    assert shell.run(*read, "-c", "1500").stdout == numbers(0, 1499)
    assert shell.run("mqtool", "offset", "show", "s", "me").stdout == "1499\n"
    assert shell.script("mqtool receive-stream -q s --raw --track me | head -3").stdout == numbers(1500, 1502)
    reader = shell.start(*read).wait_for_stdout("2999\n")
    assert reader.interrupt().wait().code == 0
    assert reader.stdout.split()[0] in ("1503", "1504"), "one more line may count as printed: head has read it"
    assert shell.run(*read, "--idle-timeout", IDLE).stdout == ""
    shell.run("mqtool", "offset", "set", "s", "me", "2997")
    assert shell.run(*read, "-c", "2").stdout == numbers(2998, 2999)
    shell.run("mqtool", "offset", "reset", "s", "me")
    assert shell.run(*read, "-c", "1").stdout == "0\n"


def test_a_killed_receive_stream_track_skips_no_message(shell: Shell, broker: TestBroker) -> None:
    """If `receive-stream --track` is killed, the next run skips no message. It repeats only messages whose offset had
    not been stored. On the embedded broker, there are at most 1,100 of these.
    """
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin=numbers(1, 20_000))
    output = shell.directory / "out"
    read = ("mqtool", "receive-stream", "-q", "s", "--raw", "--track", "me", "-o", str(output))
    not_stored = 0

    def lines() -> int:
        return output.read_text().count("\n") if output.exists() else 0

    for _ in range(4):
        before = lines()
        reader = shell.start(*read)
        wait_until(lambda before=before: lines() > before, "a line")
        reader.process.send_signal(signal.SIGKILL)
        reader.process.wait()
        newest = int(output.read_text().rpartition("\n")[0].rpartition("\n")[2])
        stored = int(shell.run("mqtool", "offset", "show", "s", "me").stdout or -1)
        not_stored += newest - (stored + 1)
        assert newest - (stored + 1) <= 1_100 or broker.kind == "rabbitmq"
        if stored == 19_999:  # the reader was killed late, after the end of the stream
            break
    shell.run(*read, "--idle-timeout", IDLE)
    numbers_read = output.read_text().split()
    assert {int(each) for each in numbers_read if each.isdecimal()} >= set(range(1, 20_001))
    assert len(numbers_read) <= 20_000 + not_stored + 4


def test_receive_stream_filter_receives_only_messages_with_that_filter_value(shell: Shell, broker: TestBroker) -> None:
    """`receive-stream --filter VALUE` receives only the messages that were sent with VALUE as their filter value. On
    a RabbitMQ that is too old for stream filters, `send-stream --filter` exits with 2.
    """
    send = ("mqtool", "send-stream", "-q", "s")
    sent = shell.run(*send, "--filter", "eu", "one")
    if broker.kind == "rabbitmq" and not broker.differs_since("3.13", "it has filters"):
        assert (sent.code, "has no filters for streams" in sent.stderr) == (2, True)
        return
    for filtered in (["--filter", "us", "two"], ["three"], ["--filter", "eu", "four"]):
        assert shell.run(*send, *filtered).code == 0
    read = ("mqtool", "receive-stream", "-q", "s", "--raw", "--idle-timeout", IDLE, "--filter")
    assert shell.run(*read, "eu").stdout == "one\nfour\n"
    assert shell.run(*read, "us", "--filter", "asia").stdout == "two\n"


@pytest.mark.parametrize("command", ["offset set NAME me 17", "offset reset NAME me"])
@pytest.mark.sampled(1)
def test_offset_set_and_offset_reset_exit_with_69_if_there_is_no_such_stream(shell: Shell, command: str) -> None:
    """If the stream does not exist, or if its name is that of a queue of another type, `offset set` and `offset reset`
    exit with 69.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    for name in ("nothing", "jobs"):
        refused = shell.run("mqtool", *command.replace("NAME", name).split())
        assert (refused.code, f"stream '{name}' does not exist" in refused.stderr) == (69, True), refused.stderr


@pytest.mark.parametrize("number", [2**64 - 1, 2**64])
@on_any_broker
def test_offset_set_refuses_an_offset_that_no_message_can_have(shell: Shell, number: int) -> None:
    """`offset set` exits with 2 if the offset is 2^64-1, which would reset the stored offset, or larger, which cannot
    be stored. In both cases, the offset that was stored before stays the same. The command accepts 2^64-2, the highest
    offset.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "x")
    assert shell.run("mqtool", "offset", "set", "s", "me", str(2**64 - 2)).code == 0
    refused = shell.run("mqtool", "offset", "set", "s", "me", str(number))
    assert (refused.code, f"{number} is not in the range" in refused.stderr) == (2, True), refused.stderr
    assert shell.run("mqtool", "offset", "show", "s", "me").stdout == f"{2**64 - 2}\n"


def test_stream_commands_ask_the_management_api_for_the_stream_port(shell: Shell, broker: TestBroker) -> None:
    """Without --stream-port, `send-stream` and `tutorial run` ask the management API for the broker's stream port."""
    listeners = Management(broker.management, "guest", "guest").get("overview")["listeners"]
    if urlsplit(broker.streams).port not in [each["port"] for each in listeners if each["protocol"] == "stream"]:
        pytest.skip("Docker maps the stream port to another one, which RabbitMQ does not know")
    del shell.environment["MQTOOL_STREAM_PORT"]
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    assert shell.run("mqtool", "send-stream", "x").code == 0
    told = shell.run("mqtool", "tutorial", "run", "stream-hello-world", "--no-pause", "-u", broker.url)
    assert told.code == 0, told.stdout + told.stderr


def test_a_tutorial_that_fails_shows_the_last_line_that_its_command_printed(shell: Shell, broker: TestBroker) -> None:
    """If a command of `tutorial run` fails, the error quotes the last line that the command printed."""
    shell.environment["MQTOOL_STREAM_PORT"] = "1"
    failed = shell.run("mqtool", "tutorial", "run", "stream-hello-world", "--no-pause", "-u", broker.url)
    assert failed.code == 1
    assert re.search(r"expected exit code 0, got 69, from: mqtool send-stream.*; it printed: hint: ", failed.stderr)


def test_offset_receive_resumes_at_the_stored_offset(shell: Shell) -> None:
    """In the tutorial on offset tracking, the second `offset receive` resumes after the 100 messages that the first one
    read.
    """
    sent = shell.run("mqtool", "offset", "send")
    assert sent.stderr == "Publishing 100 messages\nMessages confirmed: true\n"
    received = shell.run("mqtool", "offset", "receive")
    assert received.stdout == "First message received\nDone consuming first_offset: 0 last_offset 99 \n"
    shell.run("mqtool", "offset", "send")
    first, last = re.findall(r"offset:? (\d+)", shell.run("mqtool", "offset", "receive").stdout)
    assert 100 <= int(first) <= 120, "a stored offset may take up an offset of the stream"
    assert int(last) == int(first) + 99


@on_any_broker
@pytest.mark.parametrize("dialect", StreamDialect)
@pytest.mark.sampled(3)
def test_stream_dialects_print_the_lines_of_their_scripts(shell: Shell, dialect: StreamDialect) -> None:
    """Each --dialect of `send-stream` and `receive-stream` stands for RabbitMQ's stream tutorial in one programming
    language. With this option, the commands use the stream and the message of that tutorial, and print the lines of its
    scripts.
    """
    tutorial = HELLO[dialect]
    body = tutorial.body.decode()
    sent = shell.run("mqtool", "send-stream", "--dialect", dialect)
    assert sent.stderr == tutorial.sent.format(body=body) + "\n"
    name = tutorial.stream.name
    received = shell.run("mqtool", "receive-stream", "-c", "1", "--dialect", dialect)
    line = tutorial.received.replace("{body!b}", repr(tutorial.body))
    assert received.stdout == line.format(body=body, queue=name, offset=0) + "\n"


@on_any_broker
def test_the_elixir_dialect_sends_bodies_without_amqp_1_0_encoding(shell: Shell, broker: TestBroker) -> None:
    """With `--dialect elixir`, `send-stream` and `offset send` store bodies without AMQP 1.0 encoding, as the Elixir
    scripts of RabbitMQ's stream tutorials do.
    """
    dialect = "--dialect", "elixir"
    sent = shell.run("mqtool", "offset", "send", *dialect)
    assert sent.stderr == "Publishing 100 messages...\nMessages confirmed.\n"
    received = shell.run("mqtool", "offset", "receive", *dialect)
    assert received.stdout == "First message received.\nDone consuming, first offset 0, last offset 99.\n"
    shell.run("mqtool", "send-stream", *dialect)
    place = urlsplit(broker.streams)
    assert place.hostname is not None
    assert place.port is not None
    client = RawStream(place.hostname, place.port)
    client.log_in()
    assert client.request(OPEN, string(broker.vhost)).code == 1
    stored = {"my_stream": b"Hello, World!", "stream-offset-tracking-elixir": b"hello"}
    for number, (stream, body) in enumerate(stored.items()):
        assert client.subscribe(number, stream) == 1
        assert client.chunk().entries[0] == body
    client.close()


def test_errors_of_stream_commands_name_what_is_wrong(shell: Shell, broker: TestBroker) -> None:
    """If a stream command is given a wrong stream port, virtual host, stream, argument or offset, its error names what
    is wrong. The exit code depends on the error, for example 69 if nothing answers on the stream port, and 78 if the
    queue is not a stream.
    """

    def fails(code: int, *command: str) -> str:
        result = shell.run("mqtool", *command)
        assert (result.stdout, result.code) == ("", code)
        return result.stderr

    nothing = fails(69, "send-stream", "--stream-port", "1", "x")
    assert "nothing answers at" in nothing
    assert "rabbitmq-plugins enable rabbitmq_stream" in nothing
    other = fails(69, "receive-stream", "--stream-port", str(broker.port))
    assert "does not speak RabbitMQ's stream protocol" in other
    assert "stream 'nope' does not exist" in fails(69, "offset", "show", "nope", "me")
    assert "has no vhost 'nope'" in fails(77, "receive-stream", "--vhost", "nope")
    shell.run("mqtool", "queue", "declare", "classic", "--queue-type", "classic")
    no_stream = "queue 'classic' is not a stream\nhint: name another stream with -q\n"
    assert no_stream in fails(78, "send-stream", "-q", "classic", "x")
    shell.run("mqtool", "send-stream", "-q", "s", "x")
    assert "different settings" in fails(78, "send-stream", "-q", "s", "--strict", "--argument", "max-age=1D", "x")
    assert "no offset of 'me' is stored in stream 's'" in fails(1, "offset", "show", "s", "me")
    assert "is not an offset" in fails(2, "receive-stream", "--offset", "soon")


class OtherNode(Proxy):
    """Makes the broker say that streams are on another node: at a port where nothing listens."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self._true = struct.pack(">I", target_port)  # metadata of a stream has the port in this form

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the connection was cut
            while data := source.recv(65536):
                target.sendall(data.replace(self._true, struct.pack(">I", 1)))


@on_any_broker
def test_the_error_about_an_unreachable_stream_node_names_stream_advertised_host(
    shell: Shell, broker: TestBroker
) -> None:
    """If the broker says that a stream is on a node that cannot be reached, as can happen in Docker, `send-stream` and
    `receive-stream` exit with 69 and name the setting stream.advertised_host.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "x")
    with OtherNode(urlsplit(broker.streams).port or 0) as proxy:
        for command in (("send-stream", "-q", "s", "x"), ("receive-stream", "-q", "s", "-c", "1")):
            failed = shell.run("mqtool", *command, "--stream-port", str(proxy.port))
            assert (failed.stdout, failed.code) == ("", 69)
            assert re.search(r"the stream is on \S+:1, as \S+ says, which cannot be reached from here", failed.stderr)
            assert "stream.advertised_host" in failed.stderr


def test_send_stream_saves_a_message_that_is_too_large(shell: Shell) -> None:
    """If a line is too large for a frame, `send-stream --failed-to FILE` writes it to FILE and exits with 3. The
    other lines are confirmed.
    """
    large = "x" * (2 << 20)
    sent = shell.run("mqtool", "send-stream", "-l", "-q", "s", "--failed-to", "failed", stdin=f"one\n{large}\nthree\n")
    assert sent.code == 3
    assert "2 confirmed, 1 nacked" in sent.stderr
    assert json.loads((shell.directory / "failed").read_text())["body"] == large
    assert shell.run("mqtool", "receive-stream", "-q", "s", "--raw", "-c", "2").stdout == "one\nthree\n"


def test_send_stream_and_receive_stream_resume_after_a_lost_connection(shell: Shell, broker: TestBroker) -> None:
    """Each time the connection is lost, `send-stream` and `receive-stream --track` reconnect. Every message arrives, in
    order, though some may be printed twice.
    """
    target = urlsplit(broker.streams)
    with Proxy(target.port or 0) as proxy:
        shell.environment["MQTOOL_STREAM_PORT"] = str(proxy.port)
        reader = shell.start(
            "mqtool", "receive-stream", "-q", "s", "--declare", "--raw", "--track", "me"
        ).wait_until_ready()
        sender = shell.start("mqtool", "send-stream", "-l", "-q", "s", stdin=subprocess.PIPE)
        assert sender.process.stdin is not None
        for number in range(4):
            sender.write(f"{number}\n".encode())
            reader.wait_for_stdout(f"{number}\n").wait_until_connected_again(number)
            proxy.cut()
        sender.process.stdin.close()
        assert sender.wait().code == 0
        assert "4 confirmed" in sender.stderr
        assert "lost the connection to" in sender.stderr
        reader.wait_until_connected_again(4)
        assert reader.interrupt().wait().code == 0
        assert list(dict.fromkeys(reader.stdout.split())) == ["0", "1", "2", "3"]
        assert shell.run("mqtool", "offset", "show", "s", "me").code == 0


@on_any_broker
def test_receive_stream_times_out_if_its_connection_is_lost_for_good(shell: Shell, broker: TestBroker) -> None:
    """If the connection is lost for good, `receive-stream --timeout` exits with 124 when the time is up."""
    with Proxy(urlsplit(broker.streams).port or 0) as proxy:
        shell.environment["MQTOOL_STREAM_PORT"] = str(proxy.port)
        reader = shell.start("mqtool", "receive-stream", "-q", "s", "--declare", "--timeout", "4s").wait_until_ready()
    result = reader.wait()
    assert result.code == 124, result.stderr
    assert "mqtool: timed out after 4 s, with 0 received\n" in result.stderr


def test_receive_stream_stores_no_offset_if_stdout_cannot_be_written(shell: Shell) -> None:
    """If stdout cannot be written, `receive-stream --track` exits with 1 and stores no offset."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin=numbers(0, 9))
    failed = shell.script("mqtool receive-stream -q s --raw --track me -c 10 > /dev/full")
    assert (failed.code, "cannot write" in failed.stderr) == (1, True)
    assert shell.run("mqtool", "offset", "show", "s", "me").code == 1


@large
def test_receive_stream_resumes_after_the_last_message_that_a_full_disk_had_room_for(shell: Shell) -> None:
    """If the disk becomes full, `receive-stream --track -o FILE` stores the offset of the last message that it has
    written to FILE. The next run thus appends all other messages, and none twice.
    """
    lines = [f"{number:0500}" for number in range(300)]
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin="\n".join(lines) + "\n")
    read = "mqtool receive-stream -q s --raw --track me -o out"
    shell.start_cold()  # a process inherits the limit from the shell
    full = shell.script(f"export PYTHONDONTWRITEBYTECODE=1; ulimit -f 100; {read}")
    assert full.code == 1, full.stderr
    assert 0 < len(written := (shell.directory / "out").read_text().splitlines()) < 300
    assert shell.script(f"{read} -c {300 - len(written)}").code == 0
    assert (shell.directory / "out").read_text().splitlines() == lines


def test_receive_resumes_a_stream_after_a_lost_connection(shell: Shell, broker: TestBroker) -> None:
    """Each time the connection is lost, `receive` on a stream resumes after the last printed message. No message is
    missing or repeated.
    """
    sent = ("mqtool", "send-stream", "-l", "-q", "s")
    shell.run(*sent, stdin=numbers(0, 4))
    with Proxy(broker.port) as proxy:
        through = ("--url", broker.url.replace(f":{broker.port}/", f":{proxy.port}/"))
        reader = shell.start(
            *("mqtool", "receive", "-q", "s", "--queue-type", "stream", "--offset", "1", "--raw", *through)
        )
        for cut in range(1, 4):
            reader.wait_for_stdout(f"{5 * cut - 1}\n").wait_until_connected_again(cut - 1)
            proxy.cut()
            shell.run(*sent, stdin=numbers(5 * cut, 5 * cut + 4))
        reader.wait_for_stdout("19\n").wait_until_connected_again(3)
    assert reader.interrupt().wait().stdout == numbers(1, 19)


class PublishesNothing(Proxy):
    """Drops what clients publish to streams.

    Attributes:
        dropped: how many times it has done so.
        publishers: how many publishers clients have declared.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.dropped = self.publishers = 0

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):  # the connection was cut
            while more := source.recv(65536):
                data += more
                while len(data) >= 4 and len(data) >= (size := 4 + int.from_bytes(data[:4])):
                    frame, data = data[:size], data[size:]
                    key = int.from_bytes(frame[4:6])
                    self.dropped += key == PUBLISH
                    if key != PUBLISH:
                        target.sendall(frame)
                    self.publishers += key == DECLARE_PUBLISHER | 0x8000  # the broker's answer


def test_stream_commands_end_if_their_stream_is_deleted(shell: Shell, broker: TestBroker) -> None:
    """If the stream is deleted, `receive-stream` exits with 69, and so does `send-stream` if it has sent no message. If
    it has sent messages, `send-stream` exits with 3 if at least one was confirmed before the deletion, and with 75 if
    none was. Neither command declares the stream again.
    """
    send = ("mqtool", "send-stream", "-l", "-v", "-q", "s")
    reader = shell.start("mqtool", "receive-stream", "-q", "s", "--declare", "--raw").wait_until_ready()
    with PublishesNothing(urlsplit(broker.streams).port or 0) as proxy:
        confirmed = shell.start(*send, stdin=subprocess.PIPE)
        through = ("--stream-port", str(proxy.port))
        unconfirmed, idle = (shell.start(*send, *through, stdin=subprocess.PIPE) for _ in range(2))
        for sender in confirmed, unconfirmed:
            sender.write(b"one\n")
        confirmed.wait_for_stderr("one message sent")
        reader.wait_for_stdout("one\n")
        wait_until(lambda: proxy.publishers >= 2 and proxy.dropped >= 1, "a message that is not published")
        shell.run("mqtool", "queue", "delete", "s", "--yes")
        for running, code in (reader, 69), (confirmed, 3), (unconfirmed, 75), (idle, 69):
            ended = running.wait()
            assert ended.code == code, ended.stderr
            assert "stream 's'" in ended.stderr
    assert reader.stdout == "one\n"
    assert shell.run("mqtool", "list", "queues", "name").stdout == ""


def test_queue_delete_if_empty_and_if_unused_refuse_a_stream(shell: Shell, broker: TestBroker) -> None:
    """`queue delete --if-empty` and `queue delete --if-unused` exit with 1 for a stream, because RabbitMQ would delete
    the stream without checking the condition.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "x")
    delete = ("mqtool", "queue", "delete", "s", "--yes")
    for condition in ("--if-empty", "--if-unused"):
        refused = shell.run(*delete, condition)
        assert (refused.code, "RabbitMQ does not check" in refused.stderr) == (1, True)
    purged = shell.run("mqtool", "queue", "purge", "s", "--yes")
    assert (purged.code, "streams cannot be purged" in purged.stderr) == (1, True)
    assert shell.run(*delete).stderr == "deleted queue 's', with the messages of the stream\n"
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", "classic", "--max-length", "9")
    emptied = shell.run("mqtool", "queue", "delete", "jobs", "--if-empty", "--yes")
    assert emptied.stderr == "deleted queue 'jobs', with 0 messages\n"


def test_receive_stream_refuses_to_declare_a_stream_with_a_line_break_in_its_name(shell: Shell) -> None:
    """RabbitMQ removes line breaks from names. If the stream's name contains a line break, `receive-stream --declare`
    exits with 2 and creates no stream.
    """
    refused = shell.run("mqtool", "receive-stream", "-q", "a\nb", "--declare", "--timeout", "20s")
    assert (refused.code, "the name 'a\\nb' contains a line break" in refused.stderr) == (2, True)
    assert "does not exist" in shell.run("mqtool", "queue", "delete", "ab", "--yes").stderr


def publish_batches(broker: TestBroker, stream: str, *batches: bytes) -> None:
    """Publish sub-entry batches to a stream in one frame, so that the broker stores them in one chunk."""
    place = urlsplit(broker.streams)
    client = RawStream(place.hostname or "", place.port or 0)
    client.log_in()
    assert client.request(OPEN, string(broker.vhost)).code == 1
    client.declare_publisher(1, stream)
    numbered = b"".join(struct.pack(">Q", number) + batch for number, batch in enumerate(batches))
    client.send(PUBLISH, struct.pack(">BI", 1, len(batches)) + numbered)
    client.confirmed(len(batches))
    client.close()


def batch(kind: int, data: bytes, count: int = 1) -> bytes:
    """Encode a sub-entry batch with this compression method, which claims an uncompressed size of 7 bytes."""
    return struct.pack(">BHII", 0x80 | kind << 4, count, 7, len(data)) + data


@on_any_broker
def test_receive_stream_skips_a_damaged_batch_with_a_warning(shell: Shell, broker: TestBroker) -> None:
    """`receive-stream` skips a damaged batch of messages and reads those after it. A warning gives the batch's offset
    and what is wrong.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "before")
    publish_batches(broker, "s", batch(0, struct.pack(">I", 3) + b"one", 2))
    shell.run("mqtool", "send-stream", "-q", "s", "after")
    read = shell.run("mqtool", "receive-stream", "-q", "s", "--raw", "-c", "2", "--track", "me")
    assert read.stdout == "before\nafter\n"
    assert "skipped 2 messages of stream 's' from offset 1: the batch does not consist of 2 messages" in read.stderr


@large
@on_any_broker
def test_receive_stream_needs_little_memory_for_compressed_batches(shell: Shell, broker: TestBroker) -> None:
    """Even if its address space is limited to 600 MB, `receive-stream` can read compressed batches of 65,535 messages
    each, because it decompresses only one batch at a time.
    """
    place = urlsplit(broker.streams)
    client = RawStream(place.hostname or "", place.port or 0)
    client.log_in()
    assert client.request(OPEN, string(broker.vhost)).code == 1
    assert client.create("s") in (1, 5)
    client.declare_publisher(1, "s")
    records, count = 65_535, 100
    packed = gzip.compress(bytes(4 * records))
    batch = struct.pack(">BHII", 0x90, records, 4 * records, len(packed)) + packed
    body = b"".join(struct.pack(">Q", number) + batch for number in range(count))
    client.send(PUBLISH, struct.pack(">BI", 1, count) + body)
    client.confirmed(count)
    client.close()
    read = shell.script("ulimit -v 600000; mqtool receive-stream -q s --raw -c 70000 | wc -l")
    assert (read.code, read.stdout.strip()) == (0, "70000")


@on_any_broker
def test_receive_stream_ends_before_a_batch_for_which_a_package_is_missing(shell: Shell, broker: TestBroker) -> None:
    """If the Python package that decompresses a batch is missing, `receive-stream --track` prints the messages before
    the batch, stores the offset of the last one, names the package, and exits with 2. The next run ends at the same
    batch, so no message is skipped. The hint gives a command that continues reading after the batch.
    """
    if importlib.util.find_spec("lz4") is not None:
        pytest.skip("lz4 is installed")
    shell.run("mqtool", "send-stream", "-q", "s", "before")
    publish_batches(broker, "s", batch(3, b"\x04\x22\x4d\x18?", 2), batch(0, struct.pack(">I", 3) + b"one"))
    read = ("mqtool", "receive-stream", "-q", "s", "--raw", "--idle-timeout", IDLE)
    skipping = {("--track", "me"): "mqtool offset set s me 2", (): "mqtool receive-stream --queue=s --offset=3"}
    for options, hint in skipping.items():
        ended = shell.run(*read, *options, *(() if options else ("--offset", "first")))
        assert (ended.code, ended.stdout) == (2, "before\n")
        assert "cannot read 2 messages of stream 's' from offset 1: the batch is compressed with lz4" in ended.stderr
        assert f"install it beside mqtool: pip install lz4; or skip the batch: {hint}\n" in ended.stderr
    again = shell.run(*read, "--track", "me")
    assert (again.code, again.stdout) == (2, "")
    assert shell.run("mqtool", "offset", "show", "s", "me").stdout == "0\n"
    shell.script(skipping["--track", "me"])
    assert shell.run(*read, "--track", "me").stdout == "one\n"
    assert shell.script(f"{skipping[()]} --raw --idle-timeout {IDLE}").stdout == "one\n"


@on_any_broker
@pytest.mark.parametrize("kind", [2, 3, 4], ids=["snappy", "lz4", "zstd"])
@pytest.mark.sampled(1)
def test_receive_stream_skips_junk_that_claims_to_be_compressed(shell: Shell, broker: TestBroker, kind: int) -> None:
    """If a publisher has marked junk as a compressed batch, `receive-stream` skips it with a warning like any damaged
    batch, whether or not the Python package for the compression method is installed.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "before")
    publish_batches(broker, "s", batch(kind, b"junk, really", 2))
    shell.run("mqtool", "send-stream", "-q", "s", "after")
    read = shell.run("mqtool", "receive-stream", "-q", "s", "--raw", "-c", "2", "--track", "me")
    assert (read.code, read.stdout) == (0, "before\nafter\n")
    assert "skipped 2 messages of stream 's' from offset 1: the batch " in read.stderr


def test_receive_suggests_receive_stream_for_messages_without_amqp_1_0_encoding(
    shell: Shell, broker: TestBroker
) -> None:
    """RabbitMQ cannot deliver messages of a stream over AMQP 0-9-1 if they have no AMQP 1.0 encoding. When `receive` or
    `peek` reaches such a message on RabbitMQ, it exits with 69 and suggests `receive-stream`. The embedded broker can
    deliver such a message, and the commands print it.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "first")
    place = urlsplit(broker.streams)
    client = RawStream(place.hostname or "", place.port or 0)
    client.log_in()
    assert client.request(OPEN, string(broker.vhost)).code == 1
    client.declare_publisher(1, "s", "ann")
    client.publish(1, 1, b"bare bytes")
    client.confirmed(1)
    client.close()
    for command in (("receive", "-q", "s", "--offset", "first", "--raw", "-c", "2"), ("peek", "s", "--raw")):
        ended = [shell.run("mqtool", *command)]
        if broker.kind == "rabbitmq":
            # A peek at a stream ends after a second without a message: a busy RabbitMQ may take longer.
            wait_until(lambda: ended[-1].code == 69 or ended.append(shell.run("mqtool", *command)), "the error")  # noqa: B023
            assert "read them with: mqtool receive-stream --queue=s" in ended[-1].stderr
        else:
            assert ended[-1].stdout.splitlines()[-1] == "bare bytes"


@on_any_broker
def test_an_existing_stream_with_other_arguments_is_used(shell: Shell) -> None:
    """`send-stream` uses an existing stream even if its arguments differ from those that the command would declare. The
    command prints a notice only if an option asks for a different value.
    """
    assert shell.run("mqtool", "send-stream", "-q", "s", "--argument", "max-age=1D", "x").code == 0
    assert shell.run("mqtool", "send-stream", "-q", "s", "y").stderr == " [x] y message sent\n"
    other = shell.run("mqtool", "send-stream", "-q", "s", "--argument", "max-age=2D", "z")
    assert other.stderr.splitlines()[0] == "stream 's' exists with different settings, and is used as it is"


class Gate(Proxy):
    """A proxy that refuses connections while it is closed."""

    is_closed = False

    def close(self) -> None:
        """Cut all connections, and refuse others until open()."""
        self.is_closed = True
        self.cut()

    def open(self) -> None:
        self.is_closed = False

    def join(self, client: socket.socket, server: socket.socket) -> None:
        if self.is_closed:
            client.close()
            server.close()
        else:
            super().join(client, server)


@pytest.mark.parametrize("offset", ["next", "last"])
@pytest.mark.parametrize("track", [(), ("--track", "me")], ids=["untracked", "tracked"])
def test_receive_stream_skips_nothing_if_its_connection_is_lost_before_the_first_message(
    shell: Shell, broker: TestBroker, offset: str, track: tuple[str, ...]
) -> None:
    """If `receive-stream` starts at the offset `next`, or at `last` in an empty stream, and loses its connection
    before it has received a message, it reconnects. It then prints all messages that were published in the meantime,
    and none from before its start.
    """
    if offset == "next":
        shell.run("mqtool", "send-stream", "-q", "s", "old")
    with Gate(urlsplit(broker.streams).port or 0) as gate:
        through = ("--stream-port", str(gate.port))
        read = ("mqtool", "receive-stream", "-q", "s", "--declare", "--raw", "--offset", offset, *track)
        reader = shell.start(*read, *through).wait_until_ready()
        gate.close()
        for body in ("one", "two"):  # in two chunks
            assert shell.run("mqtool", "send-stream", "-q", "s", body).code == 0
        gate.open()
        reader.wait_until_connected_again(1)
        shell.run("mqtool", "send-stream", "-q", "s", "three")
        assert reader.wait_for_stdout("three\n").interrupt().wait().stdout == "one\ntwo\nthree\n"


def test_receive_stream_starts_at_the_first_message_of_a_stream_that_was_created_again(
    shell: Shell, broker: TestBroker
) -> None:
    """If the stream of `receive-stream` is deleted and created again while the command has no connection,
    `receive-stream` says after reconnecting that the stream was created again, and reads the new stream from its first
    message. With --track, it then stores its offset in the new stream.
    """
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin=numbers(0, 9))
    with Gate(urlsplit(broker.streams).port or 0) as gate:
        read = ("mqtool", "receive-stream", "-q", "s", "--raw", "--track", "me")
        reader = shell.start(*read, "--stream-port", str(gate.port)).wait_for_stdout("9\n")
        gate.close()
        assert shell.run("mqtool", "queue", "delete", "s", "--yes").code == 0
        assert shell.run("mqtool", "send-stream", "-q", "s", "new").code == 0
        gate.open()
        reader.wait_for_stdout("new\n")
        assert "stream 's' was created again: reading it from its first message\n" in reader.stderr
        assert reader.interrupt().wait().stdout == numbers(0, 9) + "new\n"
    assert shell.run("mqtool", "offset", "show", "s", "me").stdout == "0\n"


@pytest.mark.parametrize("start", ["--track=me", "--offset=10", "--offset=next"])
@pytest.mark.parametrize("is_empty", [False, True], ids=["with a message", "empty"])
def test_receive_stream_that_has_received_nothing_notices_that_a_stream_was_created_again(
    shell: Shell, broker: TestBroker, start: str, is_empty: bool
) -> None:
    """If a stream is deleted and created again while `receive-stream` has no connection, the command notices this even
    if it had started at the end of the old stream and received no message. It says that the stream was created again,
    and reads the new stream from its first message, even if this message is published only after the command has
    reconnected.
    """
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin=numbers(0, 9))
    shell.run("mqtool", "receive-stream", "-q", "s", "--track", "me", "-c", "10")
    with Gate(urlsplit(broker.streams).port or 0) as gate:
        read = ("mqtool", "receive-stream", "-q", "s", "--raw", start, "--stream-port", str(gate.port))
        reader = shell.start(*read).wait_until_ready()
        gate.close()
        assert shell.run("mqtool", "queue", "delete", "s", "--yes").code == 0
        assert shell.run("mqtool", "queue", "declare", "s", "--queue-type", "stream").code == 0
        if is_empty:
            gate.open()
            reader.wait_until_connected_again(1)
        assert shell.run("mqtool", "send-stream", "-q", "s", "new").code == 0
        gate.open()
        reader.wait_for_stdout("new\n")
        assert "stream 's' was created again: reading it from its first message\n" in reader.stderr
        assert reader.interrupt().wait().stdout == "new\n"


@pytest.mark.parametrize("place", [FIRST, LAST], ids=["reader that reconnects", "reader that starts at last"])
def test_a_stream_whose_messages_the_broker_does_not_send_yet_is_not_treated_as_empty(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, place: Offset
) -> None:
    """After a stream's leader has changed, the broker sends no messages of the stream until it knows which messages a
    majority of nodes have stored. If mqtool reconnects during this time, it resumes after the last message that it
    received. If it starts at the offset `last` during this time, it begins with the last message, not with the first
    one.
    """
    notices = list[str]()
    nodes, stream = [parse_addresses(broker.url)[0]._replace(port=urlsplit(broker.streams).port)], Stream("s")

    def publish(body: bytes) -> None:
        with StreamChannel(nodes, backoff=None, by_amqp=None, notice=notices.append) as channel:
            channel.declare(stream)
            assert len([*channel.publish([Message(body)], stream)]) == 1

    def hide() -> None:
        monkeypatch.setattr("mqtool.streams.session.StreamSession._chunk_at", lambda *_: None)

    publish(b"0")
    publish(b"1")
    with StreamChannel(nodes, backoff=Backoff(), by_amqp=None, notice=notices.append) as channel:
        if place == LAST:
            hide()
        reader = channel.consume(stream, place, Receiving(count=3, timeout=60))
        if place == FIRST:
            assert [next(reader).body, next(reader).body] == [b"0", b"1"]
            hide()
            channel.session.end(ConnectionError("the leader has moved"))
            publish(b"2")
        assert next(reader).body == {FIRST: b"2", LAST: b"1"}[place]
    assert not [each for each in notices if "created again" in each]


@pytest.mark.parametrize("offset", [("--offset", "next"), ("--offset", "last"), ()], ids=["next", "last", "default"])
@pytest.mark.parametrize("protocol", ["amqp0.9.1", "amqp1.0"])
def test_receive_skips_nothing_of_a_stream_if_its_connection_is_lost_before_the_first_message(
    shell: Shell, broker: TestBroker, protocol: str, offset: tuple[str, ...]
) -> None:
    """If `receive` waits for the next message of a stream over AMQP, and loses its connection before one arrives, it
    reconnects. It then prints all messages that were published in the meantime, and says that it may also print
    messages from up to 5 s before its start.
    """
    if protocol == "amqp1.0":
        skip_without_amqp10(broker)
    with Gate(broker.port) as gate:
        url = broker.url.replace(f":{broker.port}/", f":{gate.port}/")
        read = ("mqtool", "receive", "-q", "s", "--queue-type", "stream", "--raw", "--protocol", protocol, *offset)
        reader = shell.start(*read, "--url", url).wait_until_ready()
        gate.close()
        for body in ("one", "two"):
            assert shell.run("mqtool", "send", "-q", "s", body).code == 0
        gate.open()
        reader.wait_until_connected_again(1).wait_for_stdout("two\n")
        assert "no message of stream 's' had arrived: reading the messages of the last " in reader.stderr
        gate.cut()
        reader.wait_until_connected_again(2)
        shell.run("mqtool", "send", "-q", "s", "three")
        assert reader.wait_for_stdout("three\n").interrupt().wait().stdout == "one\ntwo\nthree\n"


def test_names_and_filter_values_of_streams_need_not_be_ascii(shell: Shell, broker: TestBroker) -> None:
    """`send-stream` and `receive-stream` accept characters that are not ASCII in the names of streams, readers and
    connections, and in filter values.
    """
    shell.environment["MQTOOL_CONNECTION_NAME"] = "é"
    send = ("mqtool", "send-stream", "-q", "strömé")
    assert shell.run(*send, "one").code == 0
    read = ("mqtool", "receive-stream", "-q", "strömé", "--raw", "--idle-timeout", IDLE)
    assert shell.run(*read, "--track", "läser").stdout == "one\n"
    assert shell.run("mqtool", "offset", "show", "strömé", "läser").stdout == "0\n"
    shell.environment["MQTOOL_CONNECTION_NAME"] = "\udcff"  # not UTF-8
    assert shell.run(*read).stdout == "one\n"
    if broker.kind == "rabbitmq" and not broker.differs_since("3.13", "it has filters"):
        return
    assert shell.run(*send, "--filter", "é", "two").code == 0
    assert shell.run(*send, "--filter", "us", "three").code == 0
    assert shell.run(*read, "--filter", "é").stdout == "two\n"
    assert shell.run(*read, "--filter", "é", "--filter", "us").stdout == "two\nthree\n"


@on_any_broker
def test_stream_commands_accept_a_virtual_host_whose_name_is_not_ascii(shell: Shell, broker: TestBroker) -> None:
    """`send-stream` and `receive-stream` exchange messages in a virtual host whose name is not ASCII."""
    vhost, url = f"é-{broker.url[-6:]}", urlsplit(broker.url)
    there = ("--url", url._replace(path=f"/{quote(vhost)}").geturl(), "-q", "s")
    assert shell.run("mqtool", "vhost", "add", vhost).code == 0
    try:
        assert shell.run("mqtool", "send-stream", *there, "hi").code == 0
        assert shell.run("mqtool", "receive-stream", *there, "--raw", "-c", "1").stdout == "hi\n"
    finally:
        shell.run("mqtool", "vhost", "delete", vhost, "--yes")


@pytest.mark.parametrize("name", ["é" * 128, "\udcff"], ids=["256 bytes", "not UTF-8"])
def test_receive_stream_refuses_a_reader_name_that_cannot_be_stored(shell: Shell, name: str) -> None:
    """If no offset can be stored under a reader's name, because the name is longer than 255 bytes or is not UTF-8,
    `receive-stream --track` and `offset show` exit with 2.
    """
    shell.run("mqtool", "send-stream", "-q", "s", "one")
    for command in (("receive-stream", "-q", "s", "--track", name), ("offset", "show", "s", name)):
        refused = shell.run("mqtool", *command)
        assert (refused.code, refused.stdout) == (2, "")
        assert "cannot be used\nhint: use 1 to 255 bytes of UTF-8\n" in refused.stderr


@on_any_broker
@pytest.mark.parametrize(
    ("value", "why"),
    [("é" * 16_384, "can have up to 32,767 bytes, but this one has 32,768"), ("\udcff", "must be valid UTF-8")],
    ids=["too long", "not UTF-8"],
)
@pytest.mark.parametrize("command", ["send-stream", "receive-stream", "receive"])
def test_a_filter_value_that_cannot_be_sent_is_refused(shell: Shell, command: str, value: str, why: str) -> None:
    """If the value of --filter is longer than 32,767 bytes (the limit of the stream protocol) or is not UTF-8,
    `send-stream`, `receive-stream` and `receive` exit with 2.
    """
    refused = shell.run("mqtool", command, "-q", "s", "--filter", value)
    assert (refused.code, f"--filter: a filter value {why}\n" in refused.stderr) == (2, True)


def test_the_longest_filter_value_counts_towards_the_size_of_a_frame(shell: Shell, broker: TestBroker) -> None:
    """With the longest possible --filter value, `send-stream` splits many messages into frames that the broker accepts.
    A message that does not fit into a frame together with the filter value is not sent, and the exit code is 75.
    """
    if broker.kind == "rabbitmq" and not broker.differs_since("3.13", "it has filters"):
        pytest.skip("this broker has no filters")
    value = "é" * 16_383
    send = ("mqtool", "send-stream", "-l", "-q", "s", "--filter", value)
    assert "200 confirmed" in shell.run(*send, stdin=numbers(0, 199)).stderr
    read = ("mqtool", "receive-stream", "-q", "s", "--raw", "--idle-timeout", IDLE, "--filter", value)
    assert shell.run(*read).stdout == numbers(0, 199)
    large = shell.run(*send, stdin="x" * ((1 << 20) - 20_000) + "\n")
    assert (large.code, "it is larger than a frame may be" in large.stderr) == (75, True)


def test_a_stream_message_keeps_its_properties_and_types(shell: Shell, broker: TestBroker) -> None:
    """A message sent with `send-stream --json` is received over the stream protocol, and over AMQP 0-9-1, with the same
    properties, headers and types. Sent again with `receive-stream --json | send-stream --json`, it is the same.
    """
    properties = {"content_type": "text/plain", "delivery_mode": 2, "priority": 3, "correlation_id": "c",
                  "reply_to": "rq", "expiration": "60000", "message_id": "m", "timestamp": 1700000000, "type": "order",
                  "app_id": "me"}  # fmt: skip
    headers = {"n": 5, "big": 2**40, "one": 1.0, "x-text": "t"}
    types = {"headers": {"n": "int8", "one": "float64"}}
    line = json.dumps({"body": "b", "properties": properties, "headers": headers, "types": types})
    assert shell.run("mqtool", "send-stream", "-q", "s", "--json", stdin=line).code == 0
    copied = shell.script(
        "mqtool receive-stream -q s -c 1 --json | mqtool send-stream --json -q copy && "
        "mqtool receive-stream -q s -c 1 --json && mqtool receive-stream -q copy -c 1 --json && "
        "mqtool receive -q copy --queue-type stream --offset first -c 1 --json"
    )
    assert copied.code == 0, copied.stderr
    for each in map(json.loads, copied.stdout.splitlines()):
        assert each["properties"].items() >= properties.items()
        assert {name: each["headers"][name] for name in headers} == headers
        assert each["types"]["headers"].items() >= types["headers"].items()


def test_send_stream_refuses_headers_that_amqp_1_0_cannot_carry(shell: Shell) -> None:
    """A stream stores AMQP 1.0 messages. `send-stream` refuses a header that AMQP 1.0 cannot carry, such as a list, and
    exits with 65.
    """
    refused = shell.run("mqtool", "send-stream", "-q", "s", "-H", "h:=[1]", "body")
    assert refused.code == 65
    assert "the header 'h' is a list, which AMQP 1.0 does not allow" in refused.stderr
