"""Ten thousand messages with delays from 0 to 10 s, each way: none early, none lost, and how late they come.

    python -m benchmarks.delay

On the embedded broker, and on RabbitMQ where it is installed, both started for this and stopped again; so it needs a
machine that does nothing else. The commands are those of the tutorial; lateness is by the header mqtool-due, which is
exact as sender and receiver share a clock.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import ports
from mqtool.broker.choice import STARTERS, Kind
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Wanted
from mqtool.delays.delay_plugin import has_plugin
from mqtool.tutorials.dialects import DELAY_EXCHANGE

MESSAGES = 10_000
LONGEST = 10_000
MQTOOL = str(Path(sys.executable).parent / "mqtool")


@dataclass(frozen=True)
class Arrivals:
    """What came of one run.

    Attributes:
        late: milliseconds for each message, in order of size; negative would be early.
        lost: how many did not come.
        out_of_order: the most milliseconds by which a message that was due earlier came behind one due later.
        publishing: seconds.
    """

    late: list[int]
    lost: int
    out_of_order: int
    publishing: float

    def percentile(self, percent: float) -> int:
        return self.late[min(len(self.late) - 1, int(len(self.late) * percent / 100))]


@contextmanager
def started(kind: Kind) -> Iterator[str]:
    """A broker of our own; its URL."""
    broker = STARTERS[kind].start(Wanted(f"benchmark-{kind}", ports.free_port()))
    try:
        connect_within(90, lambda: Connection(parse_addresses(broker.url))).close()
        yield broker.url
    finally:
        STARTERS[kind].stop(broker)


def messages() -> str:
    """NDJSON, in an order that has nothing to do with the delays."""
    some = random.Random(7)
    delays = [LONGEST * number // (MESSAGES - 1) for number in range(MESSAGES)]
    some.shuffle(delays)
    return "".join(json.dumps({"body": f"{delay}", "delay": f"{delay}ms"}) + "\n" for delay in delays)


def measure(url: str, send: list[str], receive: list[str]) -> Arrivals:
    """Send them all and receive them all, meanwhile."""
    with tempfile.TemporaryDirectory() as directory:
        ready, out = Path(directory) / "ready", Path(directory) / "out"
        with out.open("wb") as file:
            shown = ["-F", "%l %b %h", "-c", str(MESSAGES), "--idle-timeout", "30s", "--quiet"]
            receiver = subprocess.Popen([MQTOOL, *receive, "-u", url, *shown, "--ready-file", str(ready)], stdout=file)
            while not ready.exists():
                time.sleep(0.01)
            began = time.perf_counter()
            sent = subprocess.run(
                [MQTOOL, *send, "--json", "--quiet", "-u", url], input=messages().encode(), check=False
            )
            publishing = time.perf_counter() - began
            receiver.wait()
        if sent.returncode:
            raise SystemExit("publishing has failed")
        late, out_of_order, latest = [], 0, 0
        bodies = set()
        for line in out.read_text().splitlines():
            lateness, body, headers = line.split(" ", 2)
            bodies.add(body)
            due = json.loads(headers)["mqtool-due"]
            late.append(int(lateness))
            latest = max(latest, due)
            out_of_order = max(out_of_order, latest - due)
    return Arrivals(sorted(late), MESSAGES - len(bodies), out_of_order, publishing)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory  # brokers without wait queues of an earlier run
        measure_all()


def measure_all() -> None:
    print("| broker | | early | lost | late: median | p99 | most | out of order by | published in |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, name in ((Kind.EMBEDDED, "embedded"), (Kind.NODE, "RabbitMQ")):
        if not STARTERS[kind].is_available():
            print(f"{name}: not installed, not measured", file=sys.stderr)
            continue
        with started(kind) as url:
            with Connection(parse_addresses(url)) as connection:
                plugin = has_plugin(connection.channel(), DELAY_EXCHANGE)
            for via in ["plugin"] * plugin + ["ttl"]:
                show(
                    f"{name} | `send-delayed --via {via}`",
                    measure(url, ["send-delayed", "--via", via], ["receive-delayed"]),
                )
            show(f"{name} | `send --via ttl`, quorum queue", measure(url, ["send", "--via", "ttl"], ["receive"]))


def show(what: str, came: Arrivals) -> None:
    early = sum(late < 0 for late in came.late)
    print(
        f"| {what} | {early} | {came.lost} | {came.percentile(50)} ms | {came.percentile(99)} ms | {came.late[-1]} ms "
        f"| {came.out_of_order} ms | {came.publishing:.1f} s |",
        flush=True,
    )


if __name__ == "__main__":
    main()
