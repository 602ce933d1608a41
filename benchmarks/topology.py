"""Measure the time and memory that `topology` and `route` take on a small virtual host and on a large one.

    python -m benchmarks.topology

The small virtual host has 50 queues and 200 bindings; the large one has 5,000 queues and 20,000 bindings. The benchmark
creates each virtual host before measuring, and deletes it afterwards. Needs the management API. For the aims and
results, see docs/explanation/performance.md.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pika

from benchmarks.pairs import MQTOOL, URL, run
from mqtool.cli.broker_access import access_to
from mqtool.cli.options import BrokerOptions
from mqtool.management import Management, path

QUEUES, BINDINGS, EXCHANGES = 5_000, 20_000, 50
RUNS = 7


@contextmanager
def a_vhost(api: Management, name: str) -> Iterator[str]:
    """Create a virtual host, yield its URL, and delete the virtual host at the end."""
    api.put(path("vhosts", name), {})
    api.put(path("permissions", name, api.user), {"configure": ".*", "write": ".*", "read": ".*"})
    try:
        yield f"{URL.rpartition('/')[0]}/{name}"
    finally:
        api.delete(path("vhosts", name))


def fill(url: str, queues: int, bindings: int) -> None:
    """Declare this many queues, and spread this many bindings evenly over them and over 50 topic exchanges."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for number in range(EXCHANGES):
        channel.exchange_declare(f"logs{number}", "topic")
    for number in range(queues):
        channel.queue_declare(f"queue{number}")
    for number in range(bindings):
        channel.queue_bind(
            f"queue{number % queues}", f"logs{number * 7 % EXCHANGES}", f"app{number}.*.level{number % 5}"
        )
    connection.close()


def measure(title: str, *command: str) -> float:
    """Run the command several times, print the median time and the peak memory in MiB, and return the peak memory."""
    runs = [run([MQTOOL, *command]) for _ in range(RUNS)]
    seconds = [each.seconds for each in runs]
    peak = max(each.peak for each in runs)
    print(
        f"{title:<40} {statistics.median(seconds):5.2f} s  (minimum {min(seconds):.2f} s)   peak {peak:.0f} MiB",
        flush=True,
    )
    return peak


def main() -> None:
    api = access_to(BrokerOptions(url=URL)).management()
    for queues, bindings in ((50, 200), (QUEUES, BINDINGS)):
        with a_vhost(api, "mqtool-benchmark") as url:
            started = time.perf_counter()
            fill(url, queues, bindings)
            print(f"\n{queues:,} queues, {bindings:,} bindings (declared in {time.perf_counter() - started:.0f} s)")
            measure("topology", "topology", "-u", url)
            measure("topology logs7", "topology", "logs7", "-u", url)
            measure("topology --json", "topology", "--json", "-u", url)
            measure("topology --format mermaid --limit 0", "topology", "--format", "mermaid", "--limit", "0", "-u", url)
            measure("route logs7 app1.x.level1", "route", "logs7", "app1.x.level1", "-u", url)


if __name__ == "__main__":
    main()
