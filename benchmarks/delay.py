"""Delayed messages with random delays: how fast they are sent, and how late they arrive.

    python -m benchmarks.delay

Measures wait queues (`--via ttl`) for classic and quorum queues, and the exchange type of the plugin, with 1,000,
10,000 and 100,000 messages. Uses the embedded broker, and RabbitMQ if it is installed; both are started for this. Takes
about eight minutes, on a machine that must do nothing else. The lateness is the time of arrival less mqtool-due.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import ports
from mqtool.broker.choice import STARTERS, Kind
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Wanted
from mqtool.delays.delay_plugin import has_plugin
from mqtool.tutorials.dialects import DELAY_EXCHANGE

#: The number of messages, and their longest delay in seconds.
DEPTHS = ((1_000, 10), (10_000, 10), (100_000, 60))
#: Seconds for one measurement.
LIMIT = 180
MQTOOL = str(Path(sys.executable).parent / "mqtool")


@contextmanager
def started(kind: Kind) -> Iterator[str]:
    """Start a broker; yield its URL, and stop it at the end."""
    broker = STARTERS[kind].start(Wanted(f"benchmark-{kind}", ports.free_port()))
    try:
        connect_within(90, lambda: Connection(parse_addresses(broker.url))).close()
        yield broker.url
    finally:
        STARTERS[kind].stop(broker)


def messages(count: int, longest: int) -> bytes:
    """Return NDJSON lines with evenly spread delays, in random order."""
    delays = [longest * 1000 * number // (count - 1) for number in range(count)]
    random.Random(7).shuffle(delays)
    return "".join(f'{{"body": "{number}", "delay": "{delay}ms"}}\n' for number, delay in enumerate(delays)).encode()


def measure(url: str, count: int, longest: int, queue_type: str, via: str) -> str:
    """Send and receive the messages at the same time; return the cells of a row."""
    queue = ["-q", f"{queue_type}-{via}-{count}", "--queue-type", queue_type, "--durable", "-u", url, "--quiet"]
    with tempfile.TemporaryDirectory() as directory:
        ready, out, lines = (Path(directory) / name for name in ("ready", "out", "lines"))
        lines.write_bytes(messages(count, longest))
        shown = ["-F", "%l %b", "-c", str(count), "--idle-timeout", "30s", "--ready-file", str(ready)]
        with out.open("wb") as file:
            receiver = subprocess.Popen([MQTOOL, "receive", *queue, *shown], stdout=file)
        try:
            while not ready.exists():
                if receiver.poll() is not None:
                    raise SystemExit("mqtool receive ended before it had started to consume")
                time.sleep(0.01)
            began = time.perf_counter()
            with lines.open("rb") as file:
                subprocess.run([MQTOOL, "send", *queue, "--json", "--via", via], stdin=file, check=True, timeout=LIMIT)
            lasted = time.perf_counter() - began
            receiver.wait(LIMIT)
        finally:
            receiver.kill()
            receiver.wait()
        arrived = [line.split() for line in out.read_text().splitlines()]
    late = sorted(int(lateness) for lateness, _ in arrived)
    lost = count - len({body for _, body in arrived})
    early = sum(lateness < 0 for lateness in late)
    median, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    return f"{count / lasted:,.0f}/s | {early} | {lost} | {median:,} ms | {p99:,} ms | {late[-1]:,} ms"


def main() -> None:
    print("| broker | queue | messages | delays up to | sent | early | lost | late: median | p99 | most |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory  # brokers without wait queues of an earlier run
        for kind, name in ((Kind.EMBEDDED, "embedded"), (Kind.NODE, "RabbitMQ")):
            if not STARTERS[kind].is_available():
                print(f"{name}: not installed, not measured", file=sys.stderr)
                continue
            with started(kind) as url:
                with Connection(parse_addresses(url)) as connection:
                    plugin = ["plugin"] if has_plugin(connection.channel(), DELAY_EXCHANGE) else []
                for count, longest in DEPTHS:
                    for queue_type, via in (("classic", "ttl"), ("quorum", "ttl"), *(("classic", v) for v in plugin)):
                        what = f"{queue_type}, `--via {via}`"
                        cells = measure(url, count, longest, queue_type, via)
                        print(f"| {name} | {what} | {count:,} | {longest} s | {cells} |", flush=True)


if __name__ == "__main__":
    main()
