"""Compare mqtool's RPC server and RPC client with bare pika scripts.

Measures how long a round trip takes with each server. Then measures how long each client takes to send 2,000 requests
without waiting in between, and to receive the replies.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pika

from benchmarks.pairs import MQTOOL, QUEUE, QUIET, URL, Run, compare, fresh_queue, run

ROUND_TRIPS = 1_000
AT_ONCE = 2_000
PEERS = [sys.executable, "-m", "benchmarks.peers"]
OURS = [MQTOOL, "rpc-server", "-q", QUEUE, "-u", URL, "--quiet"]
BARE = [*PEERS, "rpc-server", QUEUE]


@contextmanager
def served_by(command: list[str]) -> Iterator[None]:
    """Start a server, and wait until it consumes from the queue."""
    fresh_queue()
    server = subprocess.Popen(command, stdout=QUIET, stderr=QUIET)
    try:
        with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
            channel = connection.channel()
            while channel.queue_declare(QUEUE, passive=True).method.consumer_count == 0:
                if server.poll() is not None:
                    raise SystemExit(f"{command[0]} has ended")
                time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait()


def round_trip() -> float:
    """Make RPC round trips, one after another; return their median time in milliseconds."""
    with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
        channel = connection.channel()
        replies = channel.queue_declare("", exclusive=True).method.queue
        came: list[str] = []
        channel.basic_consume(replies, lambda _channel, _method, reply, _body: came.append(reply.correlation_id), True)
        took = []
        for number in range(ROUND_TRIPS):
            started = time.perf_counter()
            properties = pika.BasicProperties(reply_to=replies, correlation_id=str(number))
            channel.basic_publish("", QUEUE, b"1", properties)
            while str(number) not in came:
                connection.process_data_events(time_limit=None)
            came.clear()
            took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def main() -> None:
    pairs = []
    for _ in range(5):
        with served_by(OURS):
            ours = round_trip()
        with served_by(BARE):
            pairs.append((ours, round_trip()))
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    ours, bare = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(
        f"RPC round trip           mqtool {ours:6.2f} ms   pika server {bare:6.2f} ms   "
        f"ratio {ratio:4.2f} (mqtool / pika server)"
    )

    def clients(count: int) -> Run:
        return run([MQTOOL, "rpc-client", "--raw", "-q", QUEUE, "-u", URL, *["1"] * count])

    with served_by(OURS):
        compare(
            f"rpc-client, {AT_ONCE:,} at once",
            lambda: clients(AT_ONCE),
            lambda: run([*PEERS, "rpc-client", QUEUE, str(AT_ONCE)]),
            "pika client",
            pairs=5,
        )
        beyond_one = statistics.median(clients(AT_ONCE).seconds - clients(1).seconds for _ in range(5))
        print(f"mqtool, not counting the first request: {(AT_ONCE - 1) / beyond_one:,.0f} replies per second")


if __name__ == "__main__":
    main()
