"""Measure the time and memory that `list queues` and `list bindings` take with 5,000 queues and 20,000 bindings.

Creates a virtual host on the broker of MQTOOL_URL, and deletes it at the end. Measures everything with 500 queues and
2,000 bindings as well, to show how time and memory grow. For the aims and results, see
docs/explanation/performance.md.
"""

from urllib.parse import urlsplit

import pika

from benchmarks.pairs import MQTOOL, URL, run
from mqtool.amqp import parse_addresses
from mqtool.broker import state
from mqtool.management import Management, path

VHOST = "benchmark-listing"
QUEUES, BINDINGS = 5_000, 4  # of each queue, besides the one to the default exchange


def management() -> Management:
    address = parse_addresses(URL)[0]
    urls = [
        str(each.details["management"])
        for each in state.load_all()
        if parse_addresses(each.url)[0].port == address.port
    ]
    return Management(urls[0] if urls else f"http://{address.host}:15672", address.user, address.password)


def fill(queues: range) -> None:
    """Declare the queues with numbers in this range, and their bindings."""
    parts = urlsplit(URL)
    with pika.BlockingConnection(pika.URLParameters(f"{parts.scheme}://{parts.netloc}/{VHOST}")) as connection:
        channel = connection.channel()
        for number in queues:
            channel.queue_declare(f"queue-{number:05}", durable=True)
            for binding in range(BINDINGS):
                channel.queue_bind(f"queue-{number:05}", "amq.topic", f"site.{binding}.{number}.#")


def measure(what: str, *command: str) -> None:
    runs = sorted(
        (run([MQTOOL, *command, "-u", URL, "--vhost", VHOST]) for _ in range(5)), key=lambda each: each.seconds
    )
    print(f"{what:<40} {runs[2].seconds:5.2f} s, peak {runs[2].peak * 1.048576:.0f} MB")


def main() -> None:
    api = management()
    api.put(path("vhosts", VHOST), {})
    try:
        for first, last in ((0, QUEUES // 10), (QUEUES // 10, QUEUES)):
            fill(range(first, last))
            print(f"{last:,} queues, {last * BINDINGS:,} bindings; medians of five runs")
            measure("list queues", "list", "queues")
            measure("list queues, three columns", "list", "queues", "name", "messages_ready", "messages_unacknowledged")
            measure("list queues --sort -messages_ready", "list", "queues", "--sort", "-messages_ready")
            measure("list bindings", "list", "bindings")
            measure("list exchanges", "list", "exchanges")
            measure("top --once", "top", "--once")
    finally:
        api.delete(path("vhosts", VHOST))


if __name__ == "__main__":
    main()
