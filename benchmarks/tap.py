"""Measure whether two consumers keep up with 20,000 messages a second, without and with a tap.

    python -m benchmarks.tap [URL PID]

Uses the broker at URL, whose process has the id PID, or else starts an embedded broker. To measure the broker and not
its clients, the publisher sends frames encoded beforehand, and the consumers decode as little as possible. The tap
runs on the same machine, and slows the broker down if no core is free, so the broker's CPU time is printed, too.
"""

import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pamqp import commands, frame, header

from benchmarks.embedded import Client, Process
from benchmarks.pairs import MQTOOL, QUIET, write_lines
from mqtool.stage.terminal import wait_until

RATE, COUNT, PAIRS = 20_000, 100_000, 5
EXCHANGE = "tap-benchmark"
#: Messages that are published together; a consumer's prefetch; and messages per acknowledgement.
_LOT, _PREFETCH, _TOGETHER = 200, 5_000, 500


@dataclass(frozen=True)
class Taken:
    """Seconds from the first publish until both consumers had received all messages, and the broker's CPU seconds."""

    seconds: float
    broker: float


def publish(url: str, lines: list[bytes]) -> None:
    """Publish lines at a steady rate; print the time at which the first line was due."""
    method = frame.marshal(commands.Basic.Publish(exchange=EXCHANGE, routing_key=""), 1)
    about = frame.marshal(header.ContentHeader(body_size=len(lines[0]), properties=commands.Basic.Properties()), 1)
    start = method + about + struct.pack(">BHI", 3, 1, len(lines[0]))
    lots = [b"".join(start + line + b"\xce" for line in lines[at : at + _LOT]) for at in range(0, len(lines), _LOT)]
    client = Client(url)
    began = time.monotonic()
    for number, lot in enumerate(lots):
        time.sleep(max(0.0, began + number * _LOT / RATE - time.monotonic()))
        client.socket.sendall(lot)
    client.call(commands.Channel.Close(0, "", 0, 0), commands.Channel.CloseOk)
    print(began)


def consume(url: str, lines: list[bytes], ready: Path) -> None:
    """Consume all lines, check that they are unchanged and in order, and print the time at which the last line
    arrived.
    """
    client = Client(url)
    queue = client.call(commands.Queue.Declare(exclusive=True), commands.Queue.DeclareOk).queue
    client.call(commands.Queue.Bind(queue=queue, exchange=EXCHANGE), commands.Queue.BindOk)
    client.call(commands.Basic.Qos(prefetch_count=_PREFETCH), commands.Basic.QosOk)
    client.call(commands.Basic.Consume(queue=queue, consumer_tag="c"), commands.Basic.ConsumeOk)
    ready.touch()
    size = 0
    while len(client.buffer) < (at := 7) or not size:
        client.read()
        for _ in range(3):  # the frames of the first message, which is as large as every other one
            at += struct.unpack_from(">I", client.buffer, at - 4)[0] + 8
            if at > len(client.buffer) + 7:
                break
        else:
            size = at - 7
    pieces, received, acknowledged = [client.buffer], len(client.buffer), 0
    while received < size * len(lines):
        piece = client.socket.recv(1 << 18)
        assert piece, "the broker closed the connection"
        pieces.append(piece)
        received += len(piece)
        if (got := received // size) - acknowledged >= _TOGETHER:
            client.send(commands.Basic.Ack(delivery_tag=got, multiple=True))
            acknowledged = got
    print(time.monotonic())
    data = b"".join(pieces)
    bodies = [data[end - len(lines[0]) - 1 : end - 1] for end in range(size, len(data) + 1, size)]
    assert bodies == lines, "the messages received differ from those published"


def processor_time(pid: int) -> float:
    """Return how many seconds of CPU time a process has used. On Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started(role: str, *words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.tap", role, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measured(url: str, pid: int, directory: Path, *, tapped: bool) -> Taken:
    """Publish messages to two consumers. Return the time until both consumers have received all messages, and the CPU
    time that the broker used.

    Raises:
        AssertionError: a consumer or the tap missed a message.
    """
    lines, seen, ready = (directory / name for name in ("lines", "seen", "ready"))
    consumers = []
    for number in range(2):
        consumers.append(started("consume", url, lines, directory / str(number)))
        wait_until((directory / str(number)).exists, "a consumer")
    tap = [MQTOOL, "tap", EXCHANGE, "--raw", "-o", str(seen), "--ready-file", str(ready), "--idle-timeout", "2s"]
    tapping = subprocess.Popen([*tap, "-u", url], stderr=QUIET) if tapped else None
    wait_until(lambda: not tapped or ready.exists(), "the tap")
    computed = processor_time(pid)
    publisher = started("publish", url, lines)
    ends = [float(consumer.communicate()[0]) for consumer in consumers]
    computed = processor_time(pid) - computed
    began = float(publisher.communicate()[0])
    assert not any(process.wait() for process in [*consumers, publisher, *([tapping] if tapping else [])])
    assert not tapped or seen.read_bytes() == lines.read_bytes(), "the tap has missed messages"
    for path in directory.iterdir():
        if path != lines:
            path.unlink()
    return Taken(max(ends) - began, computed)


def main(url: str, pid: int) -> None:
    client = Client(url)
    client.call(commands.Exchange.Declare(exchange=EXCHANGE, exchange_type="fanout"), commands.Exchange.DeclareOk)
    with tempfile.TemporaryDirectory() as name:
        write_lines(Path(name) / "lines", COUNT)
        without, beside = [], []
        for number in range(PAIRS):
            for tapped in (False, True) if number % 2 else (True, False):
                (beside if tapped else without).append(measured(url, pid, Path(name), tapped=tapped))
    client.call(commands.Exchange.Delete(exchange=EXCHANGE), commands.Exchange.DeleteOk)
    rates = [COUNT / statistics.median(each.seconds for each in taken) for taken in (without, beside)]
    ratio = statistics.median(a.seconds / b.seconds for a, b in zip(without, beside, strict=True))
    costs = [statistics.median(each.broker for each in taken) / COUNT * 1e6 for taken in (without, beside)]
    print(f"{RATE:,} messages/s are published to the queues of two consumers")
    print(f"each consumer receives {rates[0]:,.0f} messages/s; with a tap, {rates[1]:,.0f} messages/s ({ratio:.0%})")
    print(f"the broker uses {costs[0]:.1f} µs of CPU time per message; with a tap, {costs[1]:.1f} µs")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish", url, lines]:
            publish(url, Path(lines).read_bytes().splitlines())
        case ["consume", url, lines, ready]:
            consume(url, Path(lines).read_bytes().splitlines(), Path(ready))
        case [url, pid]:
            main(url, int(pid))
        case _:
            with Process() as broker:
                main(broker.url, broker.process.pid)
