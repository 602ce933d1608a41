"""Random faults for publishers, workers, redrives, delays and streams, on RabbitMQ and the embedded broker: make soak.

    lines ── mqtool send -l ───────────> proxy ──> [soak] ──> mqtool worker --exec, twice ──> done.txt
          ── mqtool send -l --delay … ──> proxy ─────^ ^              └── fails for good ──> [soak.dlq]
                                                        └───────── mqtool dlq redrive <──────────┘
    lines ── mqtool send-stream -l ────> proxy ──> [soak-stream] ── mqtool receive-stream, at the end ──> read.txt

A seed determines when each fault happens, and what it hits. At the end all faults stop, and the queues are emptied.
Each line that the broker confirmed must have been handled by a worker or be in the stream: exits with 1 if one is lost.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from mqtool.amqp import Connection, administration, parse_addresses
from mqtool.broker import ports
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Started, Wanted
from mqtool.drills.scene import Proxy
from mqtool.errors import MqtoolError, NotFound, Unavailable
from tests.brokers import rabbitmqctl

MQTOOL = [sys.executable, "-m", "mqtool"]
QUEUE, STREAM = "soak", "soak-stream"
#: Lines that one publisher process sends; and the most confirmed, unhandled lines with which the next process starts.
BATCH, WAITING = 1000, 3000
#: The first number that is sent with a delay, and the delay. Messages with this delay go through several wait queues.
DELAYED, DELAY = 10_000_000, "1250ms"
#: The line of a confirmed number, as `send -v` and `send-stream -v` print it.
CONFIRMED = re.compile(r" \[x\] (?:Sent ')?(\d+)(?:'| message sent)\n")
#: One number in 7 fails once. One number in 50 fails until there is a file named "mended".
PROGRAM = (
    "read -r n; "
    '[ $((n % 50)) = 0 ] && [ ! -e mended ] && exit 1; [ $((n % 7)) = 0 ] && [ "$MQ_ATTEMPT" = 1 ] && exit 75; '
    'echo "$n" >> done.txt'
)
WORKER = ("worker", "-q", QUEUE, "--retries=1", "--backoff=100ms", "--concurrency=2", "--shell", "--exec", PROGRAM)
#: Seconds within which the queues must become empty once there are no more faults. If RabbitMQ could not dead-letter a
#: message, it tries again after three minutes.
DRAINING = 480.0


class Soak:
    """One run on one broker, in a directory of its own."""

    def __init__(self, kind: BrokerKind, seed: int, directory: Path) -> None:
        self.kind = kind
        self.random = random.Random(f"{kind} {seed}")
        self.directory = directory
        self.faults: Counter[str] = Counter()
        #: Confirmed and sent numbers, by publisher.
        self.confirmed: dict[str, set[int]] = {name: set() for name in ("publisher", "delayed publisher", "stream")}
        self.sent: Counter[str] = Counter()
        self.goes_on = True
        self.running: dict[str, subprocess.Popen[str]] = {}
        port, streams = ports.free_port(), ports.free_port()
        self.wanted = Wanted(f"soak-{kind}", port, data_dir=directory / "data", stream_port=streams)
        self.broker: Started = STARTERS[kind].start(self.wanted)
        connect_within(90, self.connect).close()
        self.proxy, self.stream_proxy = Proxy(port), Proxy(streams)

    def connect(self) -> Connection:
        return Connection(parse_addresses(self.broker.url))

    def start(self, name: str, *words: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """Start mqtool, connected through the proxy."""
        url = f"amqp://guest:guest@127.0.0.1:{self.proxy.port}"
        environment = {**os.environ, "MQTOOL_URL": url, "MQTOOL_STREAM_PORT": str(self.stream_proxy.port)}
        log = subprocess.PIPE if name in self.confirmed else (self.directory / f"{name}.log").open("a")
        started = subprocess.Popen(
            [*MQTOOL, *words, "--wait", "60s"],
            cwd=self.directory, env=environment, stdin=stdin, stdout=subprocess.DEVNULL, stderr=log, text=True,
        )  # fmt: skip
        self.running[name] = started
        return started

    def publish(self, name: str, *words: str, first: int = 0) -> None:
        """Send batches of numbers. Numbers that were not confirmed are sent again in the next batch."""
        confirmed = self.confirmed[name]
        left: list[int] = []
        while self.goes_on or left:
            if self.goes_on and (name == "stream" or len(confirmed - self.done().keys()) < WAITING):
                count = BATCH - len(left)
                left += range(first + self.sent[name], first + self.sent[name] + count)
                self.sent[name] += count
            elif not left:
                time.sleep(0.1)
                continue
            publisher = self.start(name, *words, stdin=subprocess.PIPE)
            _, said = publisher.communicate("".join(f"{number}\n" for number in left))
            confirmed |= {int(number) for number in CONFIRMED.findall(said)}
            left = [number for number in left if number not in confirmed]

    def keep_running(self, name: str, *words: str) -> None:
        """Start a program again whenever it ends."""
        while self.goes_on:
            self.start(name, *words).wait()

    # Faults.

    def hit(self) -> None:
        """Cause one fault at random."""
        faults = [self.cut, self.kill, self.kill, self.stop_for_a_while, self.restart, self.fill]
        fault = self.random.choice(faults)
        self.faults[fault.__name__.replace("_", " ")] += 1
        fault()

    def cut(self) -> None:
        """Cut all connections without closing them."""
        self.proxy.cut()
        self.stream_proxy.cut()

    def kill(self) -> None:
        """kill -9 a random program."""
        victim = self.running[self.random.choice(sorted(self.running))]
        victim.kill()

    def stop_for_a_while(self) -> None:
        """Suspend a random program for a while, as Ctrl-Z does."""
        victim = self.running[self.random.choice(sorted(self.running))]
        victim.send_signal(signal.SIGSTOP)
        time.sleep(self.random.uniform(0.5, 3))
        victim.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Restart the broker: kill the embedded one with SIGKILL; stop and start RabbitMQ with rabbitmqctl."""
        if self.kind is BrokerKind.NODE:
            rabbitmqctl(self.broker, "stop_app")
            rabbitmqctl(self.broker, "start_app")
            return
        os.kill(self.broker.pid, signal.SIGKILL)
        while not self.is_started_again():
            time.sleep(0.1)
        connect_within(90, self.connect).close()

    def is_started_again(self) -> bool:
        """Start the embedded broker again. Return False if its port is not free yet."""
        try:
            self.broker = STARTERS[self.kind].start(self.wanted)
        except Unavailable:
            return False
        return True

    def fill(self) -> None:
        """For a while, fill the embedded broker's disk, or set RabbitMQ's memory high watermark to almost nothing."""
        if self.kind is BrokerKind.NODE:
            rabbitmqctl(self.broker, "set_vm_memory_high_watermark", "0.00001")
            time.sleep(self.random.uniform(0.5, 3))
            rabbitmqctl(self.broker, "set_vm_memory_high_watermark", "0.4")
            return
        filler = self.directory / "data" / "filler"
        with suppress(OSError), filler.open("wb") as file:  # until it is full
            while True:
                file.write(bytes(65536))
        time.sleep(self.random.uniform(0.5, 3))
        filler.unlink()

    # The run and its totals.

    def run(self, seconds: float) -> bool:
        """Run the programs, with faults for this many seconds. Return True if nothing was lost."""
        publishers = {
            "publisher": ("send", "-l", "-v", "-q", QUEUE),
            "delayed publisher": ("send", "-l", "-v", "-q", QUEUE, "--delay", DELAY),
            "stream": ("send-stream", "-l", "-v", "-q", STREAM),
        }
        with self.proxy, self.stream_proxy:
            publishing = [
                Thread(target=self.publish, args=(name, *words), kwargs={"first": first}, daemon=True)
                for (name, words), first in zip(publishers.items(), (0, DELAYED, 0), strict=True)
            ]
            work = [
                *publishing,
                Thread(target=self.keep_running, args=("worker 1", *WORKER), daemon=True),
                Thread(target=self.keep_running, args=("worker 2", *WORKER), daemon=True),
                Thread(target=self.keep_running, args=("redrive", "dlq", "redrive", QUEUE, "--yes"), daemon=True),
            ]
            for thread in work:
                thread.start()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(self.random.uniform(0.5, 3))
                if len(self.running) == len(work):
                    self.hit()
            self.goes_on = False
            (self.directory / "mended").touch()
            for thread in publishing:
                thread.join()
            is_empty = self.drain()
            self.start("reader", "receive-stream", "-q", STREAM, "--raw", "-o", "read.txt", "--idle-timeout=5s").wait()
            for program in self.running.values():
                program.terminate()
            for thread in work:
                thread.join()
        return self.report(is_empty=is_empty)

    def drain(self) -> bool:
        """Wait until all messages, including dead letters, are handled. Return False if that takes too long."""
        end = time.monotonic() + DRAINING
        while time.monotonic() < end:
            self.start("redrive", "dlq", "redrive", QUEUE, "--yes").wait()
            if self.running["worker 1"].poll() is not None:
                self.start("worker 1", *WORKER)
            with suppress(MqtoolError), self.connect() as connection:
                depths = [_depth(connection, name) for name in (QUEUE, f"{QUEUE}.dlq")]
                self.running["worker 1"].send_signal(signal.SIGCONT)
                done = self.done().keys()
                if not any(depths) and self.confirmed["publisher"] | self.confirmed["delayed publisher"] <= done:
                    return True
            time.sleep(0.5)
        return False

    def done(self, file: str = "done.txt") -> Counter[int]:
        """Count how many times each number was handled or, with "read.txt", read from the stream."""
        path = self.directory / file
        return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()

    def report(self, *, is_empty: bool) -> bool:
        print(f"{self.kind}: " + ", ".join(f"{count} × {fault}" for fault, count in sorted(self.faults.items())))
        all_lost = set()
        for name, confirmed in self.confirmed.items():
            arrived = self.done("read.txt" if name == "stream" else "done.txt")
            own = {number: count for number, count in arrived.items() if (number >= DELAYED) == name.startswith("del")}
            lost = confirmed - own.keys()
            all_lost |= lost
            print(
                f"{self.kind}, {name}: sent {self.sent[name]:,}, confirmed {len(confirmed):,}, arrived {len(own):,}, "
                f"lost {len(lost):,}, duplicates {sum(own.values()) - len(own):,}",
                flush=True,
            )
            if lost:
                print("lost:", *sorted(lost)[:20])
        if not is_empty:
            print(f"{self.kind}: the queues did not become empty")
        return is_empty and not all_lost


def _depth(connection: Connection, queue: str) -> int:
    """Return the number of ready messages in a queue; 0 if there is no such queue."""
    try:
        return administration.depth(connection.channel(), queue).ready
    except NotFound:
        return 0


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Give the broker's data its own file system, so that a full disk affects nothing else (Linux, as root)."""
    (directory / "data").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "soak", directory / "data"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory / "data"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="seconds of faults on each broker (default: 300)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--kind", choices=["embedded", "node"], action="append", help="kind of broker (default: both)")
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.seconds:g} s of faults on each broker", flush=True)
    fine = True
    for kind in map(BrokerKind, asked.kind or ["embedded", "node"]):
        directory = Path(tempfile.mkdtemp(prefix="mqtool-soak-"))
        os.environ["XDG_STATE_HOME"] = str(directory / "state")
        with small_disk(directory):
            soak = Soak(kind, asked.seed, directory)
            try:
                fine &= soak.run(asked.seconds)
            finally:
                soak.goes_on = False
                for program in soak.running.values():
                    program.kill()
                STARTERS[kind].stop(soak.broker)
        if fine:
            shutil.rmtree(directory, ignore_errors=True)
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
