"""Measure the speed and memory of sending, receiving and RPC over AMQP 1.0, compared with a Python library.

    python -m benchmarks.amqp10 [COUNT [PAIRS]]

Each run sends or receives COUNT messages, by default 10,000, or makes 500 RPC requests. mqtool and the library run
alternately, PAIRS times each, by default 5.

Uses the broker of MQTOOL_URL: RabbitMQ 4, or the embedded broker with --like 4.3. The library,
rabbitmq-amqp-python-client, waits for the outcome of each message before it sends the next one.
"""

import filecmp
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rabbitmq_amqp_python_client import Connection, ConnectionParameters, ConsumerSettleStrategy
from rabbitmq_amqp_python_client.wire import Message, Properties

from benchmarks.pairs import MQTOOL, QUEUE, QUIET, URL, Run, compare, fresh_queue, run, write_lines

_PEER = [sys.executable, "-m", "benchmarks.amqp10"]
_OURS = ["--protocol", "amqp1.0", "-q", QUEUE]
_REQUESTS = 500


@contextmanager
def connected() -> Iterator[Connection]:
    """Yield a connection of rabbitmq-amqp-python-client, and close it at the end."""
    where = urlsplit(URL)
    connection = Connection(
        ConnectionParameters(
            host=where.hostname or "localhost",
            port=where.port or 5672,
            virtual_host=unquote(where.path[1:]) or "/",
            user=unquote(where.username or "guest"),
            password=unquote(where.password or "guest"),
        )
    )
    yield connection
    connection.close()


def publish() -> None:
    """Publish stdin line by line, and wait until each message is accepted before publishing the next one."""
    with connected() as connection:
        publisher = connection.publisher_builder().queue(QUEUE).build()
        for line in sys.stdin.buffer:
            publisher.publish(Message(line.rstrip(b"\n")))


def consume(count: int) -> None:
    """Consume and accept `count` messages, and write each body to stdout as a line."""
    received, done, out = 0, threading.Event(), sys.stdout.buffer

    def on_message(context: Any, message: Message) -> None:
        nonlocal received
        received += 1
        if received <= count:
            out.write(message.body_as_bytes() + b"\n")
            context.accept()
        if received == count:
            done.set()

    with connected() as connection:
        connection.consumer_builder().queue(QUEUE).message_handler(on_message).initial_credits(200).build()
        done.wait()
    out.flush()


def request(count: int) -> None:
    """Send `count` requests to an RPC server, each after the reply to the previous one."""
    answered = threading.Event()
    with connected() as connection:
        replies = (
            connection.consumer_builder()
            .settle_strategy(ConsumerSettleStrategy.DIRECT_REPLY_TO)
            .message_handler(lambda _context, _message: answered.set())
            .build()
        )
        publisher = connection.publisher_builder().queue(QUEUE).build()
        for number in range(count):
            answered.clear()
            properties = Properties(message_id=str(number), correlation_id=str(number), reply_to=replies.address)
            publisher.publish(Message("1", properties=properties))
            answered.wait()


def measure(count: int, pairs: int) -> None:
    """Compare mqtool with the library: sending lines, receiving them, and getting replies to RPC requests.

    Args:
        count: the number of lines.
        pairs: the number of runs of each of the two programs.
    """
    with tempfile.TemporaryDirectory() as directory:
        lines, out = Path(directory) / "lines", Path(directory) / "out"
        write_lines(lines, count)

        def send() -> Run:
            fresh_queue()
            return run([MQTOOL, "send", "-l", *_OURS], stdin=lines)

        def library_sends() -> Run:
            fresh_queue()
            return run([*_PEER, "publish"], stdin=lines)

        def receive() -> Run:
            send()
            result = run([MQTOOL, "receive", "--raw", "-c", str(count), *_OURS], stdout=out)
            assert filecmp.cmp(out, lines, shallow=False), "the lines received differ from those sent"
            return result

        def library_receives() -> Run:
            send()
            return run([*_PEER, "consume", str(count)], stdout=out)

        compare(f"send -l, {count:,} lines", send, library_sends, "library", pairs)
        compare(f"receive, {count:,} lines", receive, library_receives, "library", pairs)
    fresh_queue()
    with subprocess.Popen([MQTOOL, "rpc-server", *_OURS, "--quiet"], stdout=QUIET, stderr=QUIET) as server:
        compare(
            f"rpc-client, {_REQUESTS:,} requests",
            lambda: run([MQTOOL, "rpc-client", "--raw", *_OURS, *["1"] * _REQUESTS]),
            lambda: run([*_PEER, "request", str(_REQUESTS)]),
            "library",
            pairs,
        )
        server.terminate()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish"]:
            publish()
        case ["consume", count]:
            consume(int(count))
        case ["request", count]:
            request(int(count))
        case [*given]:
            numbers = [int(each) for each in given]
            measure(*[*numbers, *[10_000, 5][len(numbers) :]])
