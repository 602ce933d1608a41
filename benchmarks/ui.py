"""Measure the speed of the embedded broker without and with a page of `mqtool ui` open: python -m benchmarks.ui

Messages are published and consumed as fast as the broker can handle them. In place of a browser, a separate process
reads what the page would read. It runs on the same machine, and slows the broker down if no core is free, so the
broker's CPU time is printed as well.
"""

import statistics
import subprocess
import sys
import time

from benchmarks.embedded import Process, Throughput, throughput
from benchmarks.tap import processor_time
from mqtool.management import Management
from mqtool.ui.records import records

COUNT, PAIRS = 100_000, 7
#: Seconds for which nothing is published.
IDLE = 5.0


def read(management: str) -> None:
    """Read from the management API what an open page of `mqtool ui` would show, until this process is terminated."""
    for record in records(lambda: Management(management, "guest", "guest"), "/", ""):
        if record["kind"] == "snapshot":
            print("reading", flush=True)


def measured(broker: Process) -> tuple[Throughput, float]:
    """Return how many messages per second the broker handles, and its CPU time per message in microseconds."""
    computed = processor_time(broker.process.pid)
    found = throughput(broker.url, COUNT)
    return found, (processor_time(broker.process.pid) - computed) / COUNT * 1e6


def idle(broker: Process) -> float:
    """Return how many milliseconds of CPU time the broker uses per second while no messages are published."""
    computed = processor_time(broker.process.pid)
    time.sleep(IDLE)
    return (processor_time(broker.process.pid) - computed) / IDLE * 1e3


def main() -> None:
    with Process("--management-port", "0") as alone, Process("--management-port", "0") as watched:
        management = watched.ready.read_text().splitlines()[1]
        reader = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ui", "read", management], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        found = [(measured(alone), measured(watched)) for _ in range(PAIRS)]
        at_rest = idle(alone), idle(watched)
        reader.terminate()
        reader.communicate()
    for name in ("published", "consumed"):
        rates = [[getattr(each[0], name) for each in side] for side in zip(*found, strict=True)]
        ratio = statistics.median(with_page / without for without, with_page in zip(*rates, strict=True))
        without, with_page = map(statistics.median, rates)
        print(f"messages {name}: {without:,.0f}/s; with a page open, {with_page:,.0f}/s ({ratio:.0%})")
    costs = [statistics.median(each[1] for each in side) for side in zip(*found, strict=True)]
    print(f"the broker uses {costs[0]:.1f} µs of CPU time per message; with a page open, {costs[1]:.1f} µs")
    print(f"at rest, the broker uses {at_rest[0]:.0f} ms of CPU time per second; with a page open, {at_rest[1]:.0f} ms")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["read", management]:
            read(management)
        case _:
            main()
