"""Super streams: partitions, and single active consumers."""

import json
import signal
import subprocess
from collections import defaultdict
from contextlib import closing
from urllib.parse import urlsplit

import pika
import pytest

from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.proxy import Proxy

CREATED = ("-q", "orders", "--partitions", "3")
READ = ("mqtool", "receive-stream", "-q", "orders", "--idle-timeout", IDLE)


@pytest.fixture
def shell(shell: Shell, broker: TestBroker) -> Shell:
    """A shell with the broker's stream port in its environment."""
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    shell.environment["MQTOOL_STREAM_PORT"] = str(urlsplit(broker.streams).port)
    return shell


def by_partition(ndjson: str) -> dict[str, list[str]]:
    """Return the received bodies by partition."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in ndjson.splitlines():
        message = json.loads(line)
        found[message["queue"]].append(message["body"])
    return found


def test_a_routing_key_always_selects_the_same_partition(shell: Shell, broker: TestBroker) -> None:
    """`send-stream` sends messages with the same routing key to the same partition of a super stream, as RabbitMQ's own
    clients do. `receive-stream --json` prints the partition and the key.
    """
    lines = "".join(f"hello{number} {each}\n" for each in ("a", "b") for number in range(1, 7))
    send = ("mqtool", "send-stream", *CREATED, "-l", "--key-pattern", r"(?P<who>\w+)", "-r", "{who}")
    assert "12 confirmed" in shell.run(*send, stdin=lines).stderr
    read = shell.run(*READ, "--json")
    partitions = {"orders-0": (2, 5), "orders-1": (1, 3), "orders-2": (4, 6)}  # as in the tests of RabbitMQ's clients
    assert by_partition(read.stdout) == {
        name: [f"hello{number} {each}" for each in ("a", "b") for number in numbers]
        for name, numbers in partitions.items()
    }
    first = json.loads(read.stdout.splitlines()[0])
    assert (first["exchange"], first["routing_key"]) == ("orders", first["body"][:6])
    assert shell.run(*READ, "-c", "4", "-q", "orders-1", "--raw").stdout == "hello1 a\nhello3 a\nhello1 b\nhello3 b\n"
    if broker.kind == "rabbitmq":
        shell.run("mqtool", "send", "-e", "orders", "-r", "2", "by AMQP 0-9-1")
        last = shell.run(*READ, "--json", "--offset", "last").stdout
        assert by_partition(last)["orders-2"][-1] == "by AMQP 0-9-1"


def test_partitions_get_messages_in_turn_and_each_has_its_own_stored_offset(shell: Shell) -> None:
    """Without a routing key, `send-stream` sends messages to the partitions of a super stream one after the other
    (round robin). `receive-stream --track` stores an offset for each partition, and its next run resumes at these
    offsets.
    """
    shell.run("mqtool", "send-stream", *CREATED, "-l", stdin="".join(f"{number}\n" for number in range(1, 10)))
    assert by_partition(shell.run(*READ, "--json").stdout) == {
        "orders-0": ["3", "6", "9"],
        "orders-1": ["1", "4", "7"],
        "orders-2": ["2", "5", "8"],
    }
    track = (*READ, "--raw", "--track", "me")
    some = shell.run(*track, "-c", "4").stdout.split()
    rest = shell.run(*track).stdout.split()
    assert sorted(map(int, some + rest)) == list(range(1, 10))
    assert shell.run(*track).stdout == ""
    assert shell.run("mqtool", "offset", "show", "orders-1", "me").stdout == "2\n"
    assert shell.run("mqtool", "offset", "show", "orders", "me").stdout == "orders-0\t2\norders-1\t2\norders-2\t2\n"
    assert "such as orders-0" in shell.run("mqtool", "offset", "set", "orders", "me", "1").stderr
    shell.run("mqtool", "offset", "set", "orders-1", "me", "1")
    assert shell.run(*track).stdout == "7\n"
    shell.run("mqtool", "offset", "reset", "orders", "me")
    assert len(shell.run(*track, "-c", "9").stdout.split()) == 9


@on_any_broker
def test_an_existing_super_stream_is_used_with_its_partitions(shell: Shell) -> None:
    """If a super stream exists with a different number of partitions than --partitions says, `receive-stream` uses the
    existing partitions and prints their number. With --strict, `receive-stream` exits with 78.
    """
    shell.run("mqtool", "send-stream", *CREATED, "-r", "hello1", "x")
    other = ("mqtool", "receive-stream", "-q", "orders", "--partitions", "5", "-c", "1", "--raw")
    read = shell.run(*other)
    assert (read.stdout, read.code) == ("x\n", 0)
    assert "super stream 'orders' has 3 partitions; using what is there" in read.stderr
    assert shell.run(*other, "--strict").code == 78
    shell.run("mqtool", "exchange", "declare", "logs", "fanout")
    taken = shell.run("mqtool", "send-stream", "-q", "logs", "--partitions", "2", "x")
    assert (taken.code, "exchange 'logs'" in taken.stderr) == (78, True)
    shell.run("mqtool", "queue", "declare", "jobs-1", "--queue-type", "classic")
    taken = shell.run("mqtool", "send-stream", "-q", "jobs", "--partitions", "2", "x")
    assert (taken.code, "queue 'jobs-1'" in taken.stderr) == (78, True)


@on_any_broker
def test_super_stream_commands_reconnect_and_lose_no_message(shell: Shell, broker: TestBroker) -> None:
    """Each time the connection is lost, `send-stream` and `receive-stream` on a super stream reconnect. Every message
    arrives, though some may arrive twice.
    """
    with Proxy(urlsplit(broker.streams).port or 0) as proxy:
        shell.environment["MQTOOL_STREAM_PORT"] = str(proxy.port)
        sender = shell.start("mqtool", "send-stream", *CREATED, "-l", stdin=subprocess.PIPE)
        wait_until(lambda: shell.run("mqtool", "queue", "show", "orders-2").code == 0, sender.stderr)
        reader = shell.start("mqtool", "receive-stream", "-q", "orders", "--raw").wait_until_ready()
        assert sender.process.stdin is not None
        for number in range(1, 5):
            sender.write(f"{number}\n".encode())
            reader.wait_for_stdout(f"{number}\n").wait_until_connected_again(number - 1)
            proxy.cut()
        sender.process.stdin.close()
        assert sender.wait().code == 0
        reader.wait_until_connected_again(4)
        # A message that was not confirmed before the cut may arrive twice.
        assert set(reader.interrupt().wait().stdout.split()) == {"1", "2", "3", "4"}


def test_a_waiting_consumer_takes_over_when_the_single_active_one_is_killed(shell: Shell, broker: TestBroker) -> None:
    """If the active one of two `receive-stream --single-active` commands is killed, the other command becomes active
    and continues at the stored offset.
    """
    shell.run("mqtool", "send-stream", "-l", "-q", "s", stdin="1\n2\n")
    one = ("mqtool", "receive-stream", "-q", "s", "--single-active", "--raw", "--track", "me")
    if broker.kind == "rabbitmq" and broker.version.startswith("3.10"):
        refused = shell.run(*one)
        assert (refused.code, "has no single active consumers" in refused.stderr) == (2, True)
        return
    assert "--track" in shell.run(*one[:-2]).stderr
    first = shell.start(*one).wait_for_stdout("2\n")
    wait_until(lambda: shell.run("mqtool", "offset", "show", "s", "me").stdout == "1\n", "the stored offset")
    second = shell.start(*one).wait_until_ready()
    shell.run("mqtool", "send-stream", "-q", "s", "3")
    first.wait_for_stdout("3\n")
    wait_until(lambda: shell.run("mqtool", "offset", "show", "s", "me").stdout > "1\n", "the stored offset")
    first.process.send_signal(signal.SIGKILL)
    second.wait_for_stderr("active: reading stream 's', from offset ")
    shell.run("mqtool", "send-stream", "-q", "s", "4")
    assert second.wait_for_stdout("4\n").interrupt().wait().stdout == "4\n"


def test_single_active_consumers_share_the_partitions(shell: Shell, broker: TestBroker) -> None:
    """Two `receive-stream --single-active` commands share the partitions of a super stream, so that each message goes
    to only one of them. When one ends, the other reads all partitions.
    """
    if broker.kind == "rabbitmq" and broker.version.startswith("3.10"):
        pytest.skip("RabbitMQ has single active consumers since 3.11")
    shell.run("mqtool", "send-stream", *CREATED, "-l", stdin="1\n2\n3\n")
    one = ("mqtool", "receive-stream", "-q", "orders", "--single-active", "--raw", "--track", "me")
    first = shell.start(*one)
    wait_until(lambda: sorted(first.stdout.split()) == ["1", "2", "3"], "all messages")
    second = shell.start(*one).wait_for_stderr("active: reading stream 'orders-1', from offset 1")
    first.wait_for_stderr("standing by: another consumer reads stream 'orders-1'")
    shell.run("mqtool", "send-stream", "-q", "orders", "-l", stdin="4\n5\n6\n")
    second.wait_for_stdout("4\n")
    wait_until(lambda: sorted(first.stdout.split()) == ["1", "2", "3", "5", "6"], "the other partitions")
    assert first.interrupt().wait().code == 0
    shell.run("mqtool", "send-stream", "-q", "orders", "-l", stdin="7\n8\n9\n")
    wait_until(lambda: sorted(second.stdout.split()) == ["4", "7", "8", "9"], second.stdout)
    assert second.interrupt().wait().code == 0


@on_any_broker
def test_offset_show_prints_a_partition_on_one_line(shell: Shell, broker: TestBroker) -> None:
    """`offset show` prints the name and the offset of each partition on one line, with a tab between them. If the name
    itself contains a tab or another control character, this character is printed as an escape sequence, so the line
    still has two columns.
    """
    name, stream = "orders-0\t\x1b", {"x-queue-type": "stream"}
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.exchange_declare("orders", durable=True, arguments={"x-super-stream": True})
        for number, each in enumerate((name, "orders-1")):
            channel.queue_declare(each, durable=True, arguments=stream)
            channel.queue_bind(each, "orders", f"{number}", {"x-stream-partition-order": number})
    assert shell.run("mqtool", "offset", "set", name, "app", "3").code == 0
    shown = shell.run("mqtool", "offset", "show", "orders", "app")
    assert shown.stdout == "orders-0\\t\\x1b\t3\n", shown.stderr


def test_a_partition_of_a_super_stream_need_not_have_an_ascii_name(shell: Shell, broker: TestBroker) -> None:
    """If a stream whose name is not ASCII is bound to a super stream, `receive-stream` reads it as a partition of the
    super stream.
    """
    shell.run("mqtool", "send-stream", *CREATED, "one")
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("orders-é", durable=True, arguments={"x-queue-type": "stream"})
        channel.queue_bind("orders-é", "orders", "3", {"x-stream-partition-order": 3})
        channel.basic_publish("orders", "3", b"two")
    read = shell.run(*READ, "--json", "--track", "me")
    assert by_partition(read.stdout)["orders-é"] == ["two"], read.stderr
    assert "orders-é\t0\n" in shell.run("mqtool", "offset", "show", "orders", "me").stdout
