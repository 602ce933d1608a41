"""Measure how exactly `recording replay` keeps the gaps between messages, at the recorded speed and ten times as fast.

    python -m benchmarks.replay

Starts an embedded broker, and RabbitMQ if it is installed, and stops them at the end. The lateness of a message is the
time from when it was due to when it arrived. Its error is its lateness minus that of the most punctual message.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median

from benchmarks.delay import MQTOOL, started
from mqtool.amqp import Connection, Receiving, parse_addresses
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.topology import Queue

MESSAGES = 1000
QUEUE = Queue("replayed", durable=True)


def recording(path: Path) -> list[float]:
    """Write a recording with irregular gaps of 10 ms on average; return the time of each message in it, in seconds
    after the start of the recording.
    """
    some = random.Random(7)
    moments = [round(moment, 3) for moment in accumulate(some.expovariate(100) for _ in range(MESSAGES))]
    start = datetime(2026, 1, 31, tzinfo=UTC)
    line = {"exchange": "", "routing_key": QUEUE.name, "queue": QUEUE.name, "properties": {"delivery_mode": 2}}
    path.write_text(
        "".join(
            json.dumps({**line, "timestamp": (start + timedelta(seconds=moment)).isoformat(), "body": "x" * 100}) + "\n"
            for moment in moments
        )
    )
    return moments


def lateness(url: str, path: Path, moments: list[float], speed: int) -> list[float]:
    """Replay the recording; return the error of each message, which is its lateness minus that of the most punctual
    message, in milliseconds, in ascending order.
    """
    with Connection(parse_addresses(url)) as connection:
        channel = connection.channel()
        deliveries = channel.consume(channel.declare(QUEUE), Receiving(auto_ack=True))
        replay = [MQTOOL, "recording", "replay", str(path), "--speed", str(speed), "-u", url, "--quiet"]
        playing = subprocess.Popen(replay)
        late = []
        for moment, _ in zip(moments, deliveries, strict=False):
            late.append(time.monotonic() - moment / speed)
        playing.wait()
    return sorted(1000 * (each - min(late)) for each in late)


def main() -> None:
    print("| broker | speed | error: median | p99 | max |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "recording.ndjson"
        moments = recording(path)
        for kind, name in ((BrokerKind.EMBEDDED, "embedded"), (BrokerKind.NODE, "RabbitMQ")):
            if not STARTERS[kind].is_available():
                print(f"{name} is not installed, so it is not measured", file=sys.stderr)
                continue
            with started(kind) as url:
                for speed in (1, 10):
                    found = lateness(url, path, moments, speed)
                    print(
                        f"| {name} | {speed} | {median(found):.2f} ms | {found[len(found) * 99 // 100]:.2f} ms "
                        f"| {found[-1]:.2f} ms |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
