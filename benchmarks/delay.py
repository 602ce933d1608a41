"""Measure delayed messages with random delays: how fast they are sent, and how late they arrive.

    python -m benchmarks.delay

Measures wait queues (`--via ttl`) for messages to a classic queue and to a quorum queue, the delayed message exchange
plugin, and `delayed relay`, with 1,000, 10,000 and 100,000 messages. Starts the embedded broker, and RabbitMQ if it is
installed. Takes about twelve minutes on an otherwise idle machine.

The lateness of a message is the difference between the time when it arrived and the time when it was due. A message is
due at the time in its header mqtool-due or, with the relay, at the time of publication plus its delay. The relay
declares a queue for each delay when the first message with this delay arrives. To leave this out of the measurement,
the relay gets one message with each delay beforehand.

To measure only the relay, on the broker at URL:

    python -m benchmarks.delay relay URL 10000 60      10,000 messages with delays of up to 60 s, published as fast as
                                                       possible
    python -m benchmarks.delay relay URL 10000 30 500  10,000 messages with delays of 20 to 30 s, published at 500 a
                                                       second, which takes 20 s

If a rate such as 500 is given, the shortest delay is two thirds of the longest. In the second example, no message is
due before the last one is published, so all 10,000 are delayed at the same time.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import ports
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Wanted
from mqtool.delays.delay_plugin import has_plugin
from mqtool.message import Message
from mqtool.topology import Exchange, Queue
from mqtool.tutorials.dialects import DELAY_EXCHANGE

#: The number of messages, and their longest delay in seconds.
DEPTHS = ((1_000, 10), (10_000, 10), (100_000, 60))
#: Time limit for one measurement, in seconds.
LIMIT = 180
MQTOOL = str(Path(sys.executable).parent / "mqtool")


@contextmanager
def started(kind: BrokerKind) -> Iterator[str]:
    """Start a broker; yield its URL, and stop it at the end."""
    broker = STARTERS[kind].start(Wanted(f"benchmark-{kind}", ports.free_port()))
    try:
        connect_within(90, lambda: Connection(parse_addresses(broker.url))).close()
        yield broker.url
    finally:
        STARTERS[kind].stop(broker)


def messages(count: int, longest: int) -> bytes:
    """Return input for `send --json`: a line for each message, with evenly spread delays in random order."""
    delays = [longest * 1000 * number // (count - 1) for number in range(count)]
    random.Random(7).shuffle(delays)
    return "".join(f'{{"body": "{number}", "delay": "{delay}ms"}}\n' for number, delay in enumerate(delays)).encode()


def measure(url: str, count: int, longest: int, queue_type: str, via: str) -> str:
    """Send delayed messages, and receive them at the same time; return the cells of a table row."""
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
    return cells(count, lasted, [(int(lateness), body) for lateness, body in arrived])


def cells(count: int, lasted: float, arrived: list[tuple[int, str]]) -> str:
    """Return the cells of a table row, given the lateness (in milliseconds) and the body of each received message."""
    late = sorted(lateness for lateness, _ in arrived)
    lost = count - len({body for _, body in arrived})
    early = sum(lateness < 0 for lateness in late)
    median, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    return f"{count / lasted:,.0f}/s | {early} | {lost} | {median:,} ms | {p99:,} ms | {late[-1]:,} ms"


def measure_relay(url: str, count: int, longest: int, rate: int = 0) -> str:
    """Publish messages to a relay, and receive them at the same time; return the cells of a table row.

    Args:
        longest: the longest delay, in seconds.
        rate: messages to publish per second, with delays of at least two thirds of `longest`. With 0, messages with any
            delay up to `longest` are published as fast as possible.
    """
    name = f"relayed-{uuid.uuid4().hex[:8]}"  # so that messages of an earlier run do not count
    due = Exchange(f"{name}.relayed", "direct", durable=True)
    queue = Queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    least = longest * 1000 * 2 // 3 if rate else 0
    delays = [max(1, least + (longest * 1000 - least) * number // (count - 1)) for number in range(count)]
    random.Random(7).shuffle(delays)
    dues: dict[str, float] = {}

    def outgoing() -> Iterator[Message | None]:
        began = time.time()
        for number, delay in enumerate(delays):
            while rate and time.time() < began + number / rate:
                yield None
                time.sleep(0.001)  # a publisher that does not sleep takes CPU time from the broker
            dues[str(number)] = time.time() * 1000 + delay
            yield Message(str(number).encode(), name, name, {"headers": {"x-delay": delay}}, str(number))

    with tempfile.TemporaryDirectory() as directory, Connection(parse_addresses(url)) as connection:
        out, channel = Path(directory) / "out", connection.channel()
        channel.declare(due)
        channel.declare(queue)
        channel.bind(queue, due, name)
        words = {"relay": ["delayed", "relay", name], "receive": ["receive", "-q", name, "-c", str(count), "--json"]}
        running = []
        with out.open("wb") as file:
            for what, command in words.items():
                ready = Path(directory) / what
                process = [MQTOOL, *command, "-u", url, "--quiet", "--ready-file", str(ready)]
                running.append(subprocess.Popen(process, stdout=file))
                while not ready.exists():
                    time.sleep(0.01)
        try:
            steps = sorted({-(-delay // 25) * 25 for delay in delays})
            warm = [Message(b"", "this key matches no binding", name, {"headers": {"x-delay": step}}) for step in steps]
            assert all(receipt.confirmation == "confirmed" for receipt in channel.publish(warm))
            time.sleep(longest + 10)
            began = time.perf_counter()
            assert all(receipt.confirmation == "confirmed" for receipt in channel.publish(outgoing()))
            lasted = time.perf_counter() - began
            running[1].wait(LIMIT)
        finally:
            for process in running:
                process.terminate()
                process.wait()
        lines = map(json.loads, out.read_text().splitlines())
        arrived = [(line["body"], datetime.fromisoformat(line["timestamp"]).timestamp() * 1000) for line in lines]
        return cells(count, lasted, [(round(came - dues[body]), body) for body, came in arrived])


def main() -> None:
    print("| broker | queue | messages | delays up to | sent | early | lost | late: median | p99 | max |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory  # so that brokers have no wait queues of an earlier run
        for kind, name in ((BrokerKind.EMBEDDED, "embedded"), (BrokerKind.NODE, "RabbitMQ")):
            if not STARTERS[kind].is_available():
                print(f"{name} is not installed, so it is not measured", file=sys.stderr)
                continue
            with started(kind) as url:
                with Connection(parse_addresses(url)) as connection:
                    plugin = ["plugin"] if has_plugin(connection.channel(), DELAY_EXCHANGE) else []
                for count, longest in DEPTHS:
                    for queue_type, via in (("classic", "ttl"), ("quorum", "ttl"), *(("classic", v) for v in plugin)):
                        what = f"{queue_type}, `--via {via}`"
                        row = measure(url, count, longest, queue_type, via)
                        print(f"| {name} | {what} | {count:,} | {longest} s | {row} |", flush=True)
                    row = measure_relay(url, count, longest)
                    print(f"| {name} | quorum, `delayed relay` | {count:,} | {longest} s | {row} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        print(measure_relay(sys.argv[2], *map(int, sys.argv[3:])))
    else:
        main()
