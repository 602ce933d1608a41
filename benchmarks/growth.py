"""Measure how time and memory grow with the number of messages, queues, bindings and connections, and with body size.

    python -m benchmarks.growth

Starts embedded brokers, and measures each task at several sizes. A step leads from one size to the next. The time per
additional unit, such as a message, is the time that a step adds, divided by the number of units that it adds, so it
does not include the start of the processes. If this time is over 1.5 times as long in the last step as in the step
before, a line reports this: the growth may be worse than linear, or the machine may have been busy with something else.
"""

import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pika

from benchmarks.embedded import Client, Process
from benchmarks.pairs import MQTOOL, Run, run, write_lines

_BAR = 30


@dataclass(frozen=True)
class Cost:
    """The cost of a task at one size.

    Attributes:
        seconds: the time that the task took.
        ours: mqtool's peak memory in MiB; None if the task does not run mqtool.
        broker: the growth of the broker's peak memory in MiB.
    """

    seconds: float
    ours: float | None
    broker: float


@dataclass(frozen=True)
class Growth:
    """A task that is measured at several sizes.

    Attributes:
        what: a name for the task.
        unit: what the size counts, such as "queue".
        measure: a function that performs the task. It takes the broker, the size and an empty directory. It returns the
            seconds and the memory that mqtool used or, for a task that does not run mqtool, only the seconds.
    """

    what: str
    unit: str
    sizes: tuple[int, ...]
    measure: Callable[[Process, int, Path], Run | float]


def messages_sent(broker: Process, size: int, directory: Path) -> Run:
    write_lines(directory / "lines", size)
    return run([MQTOOL, "send", "-l", "--persistent", "-u", broker.url], stdin=directory / "lines")


def messages_received(broker: Process, size: int, directory: Path) -> Run:
    messages_sent(broker, size, directory)
    return run([MQTOOL, "receive", "--raw", "-c", str(size), "-u", broker.url], stdout=directory / "out")


def queues(broker: Process, size: int, directory: Path) -> Run:
    """Publish a hundred messages, each of which is routed to this many queues."""
    write_lines(directory / "lines", 100)
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("logs", "fanout")
        for number in range(size):
            channel.queue_declare(f"queue-{number}")
            channel.queue_bind(f"queue-{number}", "logs")
    return run([MQTOOL, "emit-log", "fanout", "-l", "-u", broker.url], stdin=directory / "lines")


def bindings(broker: Process, size: int, directory: Path) -> Run:
    """Run `receive-log` with this many binding keys until it has received a message."""
    keys = [f"site.{number}.*" for number in range(size)]
    log = ["emit-log", "topic", f"site.{size - 1}.error", "x", "-u", broker.url]
    ready, done = directory / "ready", directory / "done"
    script = (
        f'"$0" receive-log topic "$@" -u {broker.url} -c 1 --ready-file {ready} & '
        f'until [ -e {ready} ]; do sleep 0.01; done; "$0" {" ".join(log)}; wait; touch {done}'
    )
    result = run(["sh", "-c", script, MQTOOL, *keys])
    assert done.exists()
    return result


def connections(broker: Process, size: int, _directory: Path) -> float:
    """Open this many connections, each with a channel, and keep them open; return how many seconds it took."""
    with ExitStack() as opened:
        started = time.perf_counter()
        for _ in range(size):
            opened.enter_context(Client(broker.url).socket)
        return time.perf_counter() - started


def bodies(broker: Process, size: int, directory: Path) -> Run:
    """Send and receive ten messages with bodies of this size."""
    (directory / "lines").write_text(f"{json.dumps({'body': 'x' * size})}\n" * 10)
    sent = run([MQTOOL, "send", "--json", "-u", broker.url], stdin=directory / "lines")
    received = run([MQTOOL, "receive", "--raw", "-c", "10", "-u", broker.url], stdout=directory / "out")
    return Run(sent.seconds + received.seconds, max(sent.peak, received.peak))


GROWTHS = (
    Growth("send -l", "message", (1, 10_000, 100_000, 1_000_000), messages_sent),
    Growth("send -l, then receive", "message", (1, 10_000, 100_000, 1_000_000), messages_received),
    Growth("emit-log to queues", "queue", (1, 10, 100, 1_000), queues),
    Growth("receive-log with keys", "binding", (1, 100, 1_000, 10_000), bindings),
    Growth("connections", "connection", (1, 10, 100, 1_000), connections),
    Growth("ten bodies", "byte", (100, 10_000, 1_000_000, 10_000_000), bodies),
)


def costs(growth: Growth) -> Iterator[tuple[int, Cost]]:
    """Measure the task at each size, with a new broker for each; yield the size and the cost."""
    for size in growth.sizes:
        with Process("--data-dir", "{}/data") as broker, tempfile.TemporaryDirectory() as directory:
            before = _peak(broker)
            took = growth.measure(broker, size, Path(directory))
            grown = _peak(broker) - before
        yield size, Cost(took, None, grown) if isinstance(took, float) else Cost(took.seconds, took.peak, grown)


def _peak(broker: Process) -> float:
    status = Path(f"/proc/{broker.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def show(growth: Growth, came: list[tuple[int, Cost]]) -> None:
    """Print a table of the costs, with a bar chart of the time for each additional unit, such as a queue."""
    heads = f"{growth.unit + 's':>12} {'seconds':>9} {'mqtool MiB':>10} {'broker MiB':>11}"
    print(f"\n{growth.what}\n{heads}   time per additional {growth.unit}")
    each = [
        max(0.0, (after.seconds - before.seconds) / (more - fewer) * 1e6)
        for (fewer, before), (more, after) in itertools.pairwise(came)
    ]
    for (size, cost), unit in zip(came, [None, *each], strict=True):
        ours = "-" if cost.ours is None else f"{cost.ours:.0f}"
        bar = "" if unit is None else f"{unit:10.3f} µs {'█' * round(_BAR * unit / (max(each) or 1))}"
        print(f"{size:12,} {cost.seconds:9.3f} {ours:>10} {cost.broker:11.1f}   {bar}", flush=True)
    if each[-1] > 1.5 * each[-2] > 0:
        times = each[-1] / each[-2]
        note = f"each additional {growth.unit} takes {times:.1f} times as long as in the step before"
        print(f"             perhaps worse than linear: {note}")


def main() -> None:
    for growth in GROWTHS:
        show(growth, list(costs(growth)))


if __name__ == "__main__":
    main()
