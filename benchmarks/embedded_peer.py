"""Compare the speed of the embedded broker and RabbitMQ; measure the embedded broker's memory and start-up time.

    python -m benchmarks.embedded_peer

RabbitMQ is the broker at MQTOOL_URL, or the one that `mqtool broker up` has started. Queues are durable classic queues.
Messages have 100 bytes, and are persistent and confirmed. For the aims and results, see
docs/explanation/performance.md.
"""

import filecmp
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pika

from benchmarks.embedded import Client, Process, publish_confirmed, resident
from benchmarks.pairs import MQTOOL, QUEUE, URL, Run, compare, run, write_lines

LINES = 20_000
WAITING = 1_000_000


def is_rabbitmq(url: str) -> bool:
    """Return True for RabbitMQ; False for the embedded broker, which reports the same product but another platform."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return str(connection._impl.server_properties["platform"]).startswith("Erlang")


def fresh_classic_queue(url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_delete(QUEUE)
        channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "classic"})


def through(url: str, lines: Path, out: Path) -> Callable[[], Run]:
    """Return a function that sends the lines of a file to a broker with `mqtool send`, receives them with `mqtool
    receive`, and checks that they are unchanged. The function returns the total time of both commands, and the higher
    of their two memory peaks.
    """

    def send_and_receive() -> Run:
        fresh_classic_queue(url)
        sent = run([MQTOOL, "send", "-l", "--persistent", "-q", QUEUE, "-u", url], stdin=lines)
        received = run([MQTOOL, "receive", "--raw", "-c", str(LINES), "-q", QUEUE, "-u", url], stdout=out)
        assert filecmp.cmp(out, lines, shallow=False), "the lines received differ from those sent"
        return Run(sent.seconds + received.seconds, max(sent.peak, received.peak))

    return send_and_receive


def beside_rabbitmq() -> None:
    """Compare the speed of both brokers, with `send` and `receive`, and with `mqtool bench`. Print the results."""
    if not is_rabbitmq(URL):
        print("there is no RabbitMQ at MQTOOL_URL, so the embedded broker's speed is not compared")
        return
    with tempfile.TemporaryDirectory() as directory, Process("--data-dir", "{}/data") as broker:
        lines, out = Path(directory) / "lines", Path(directory) / "out"
        write_lines(lines, LINES)
        ours, theirs = through(broker.url, lines, out), through(URL, lines, out)
        compare("embedded: send, receive", ours, theirs, "through RabbitMQ", pairs=5)
        load = ("--queue-type", "classic", "--ack", "500", "--rounds", "5", "--yes")
        subprocess.run([MQTOOL, "bench", "compare", broker.url, URL, *load], check=True)


def waiting() -> None:
    """Measure how much memory each of a million waiting messages takes, before and after a restart of the broker."""
    with tempfile.TemporaryDirectory() as directory:
        data = ("--data-dir", f"{directory}/data")
        with Process(*data) as broker:
            nothing = resident(broker.process.pid)
            fresh_classic_queue(broker.url)
            publish_confirmed(Client(broker.url), "", QUEUE, WAITING)
            growth = (resident(broker.process.pid) - nothing) / WAITING
            print(f"embedded broker: {WAITING:,} waiting messages take {growth:.0f} bytes each", end="")
        with Process(*data) as broker:
            growth = (resident(broker.process.pid) - nothing) / WAITING
            print(f"; after a restart, which took {broker.started_in:.1f} s, {growth:.0f} bytes")


def main() -> None:
    beside_rabbitmq()
    if Path("/proc/self/status").exists():
        waiting()


if __name__ == "__main__":
    main()
