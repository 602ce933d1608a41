"""Sends malformed input to an embedded broker for some time: python -m tests.siege, part of make soak.

At the end, the program prints how many connections of each kind it made. It stops at the first problem: a well-behaved
client is not served, the broker logs an internal error, or the broker uses too much memory. `--seed` repeats a run.
"""

import argparse
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pika

from tests.protocol.hostile_amqp10 import Amqp10Inputs
from tests.protocol.hostile_inputs import AmqpInputs, Inputs, StreamInputs
from tests.protocol.raw_stream import OPEN, RawStream, string

MEMORY_LIMIT = 200_000_000
#: The most memory that the broker's process may use: the broker's own limit, and what Python needs.
MOST_MEMORY = MEMORY_LIMIT + 250_000_000
CHECK_AFTER = 200


def throw(port: int, data: bytes, *, reads: bool = True) -> None:
    """Send bytes, read the answers unless `reads` is False, and disconnect."""
    with socket.create_connection(("127.0.0.1", port), timeout=20 if reads else 0.5) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            if not reads:
                time.sleep(0.5)
            while reads and client.recv(65_536):
                pass
        except TimeoutError:
            assert not reads, "the broker neither answers nor closes the connection"
        except OSError:
            # The broker closed the connection first.
            return


class Beside:
    """Well-behaved clients of AMQP 0-9-1 and of the stream protocol.

    Attributes:
        ports: the broker's port for each kind of inputs.
    """

    def __init__(self, url: str, stream_url: str) -> None:
        stream_port = urlsplit(stream_url).port
        assert stream_port is not None
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.queue_declare("well-behaved", exclusive=True)
        self._stream = RawStream("127.0.0.1", stream_port)
        self._stream.log_in(heartbeat=0)
        assert self._stream.request(OPEN, string("/")).code == 1
        assert self._stream.create("well-behaved-stream") == 1
        self._stream.declare_publisher(1, "well-behaved-stream")
        self._published = 0
        port = pika.URLParameters(url).port
        self.ports: dict[type[Inputs], int] = {AmqpInputs: port, Amqp10Inputs: port, StreamInputs: stream_port}

    def check(self) -> None:
        """Publish a message with each client, and wait for its delivery or its confirm."""
        self._published += 1
        self._channel.basic_publish("", "well-behaved", b"%d" % self._published)
        deadline = time.monotonic() + 10
        while (body := self._channel.basic_get("well-behaved", auto_ack=True)[2]) is None:
            assert time.monotonic() < deadline, "no message arrived"
        assert body == b"%d" % self._published
        self._stream.publish(1, self._published, b"x")
        assert self._stream.confirmed(1) == [self._published]

    def close(self) -> None:
        self._connection.close()
        self._stream.close()


def besiege(seconds: float, seed: int, directory: Path) -> Counter[str]:
    """Send inputs to a broker; return the number of each kind. Raises AssertionError if the broker fails."""
    log, counts = directory / "log", Counter[str]()
    command = [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--stream-port", "0", "--print-url"]
    command += ["--memory-limit", str(MEMORY_LIMIT), "--log-file", str(log)]
    command += ["--like", "4.3" if seed % 2 else "3.10"]
    draw, kinds = random.Random(seed), [kind(seed, large=True) for kind in (AmqpInputs, StreamInputs, Amqp10Inputs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker:
        try:
            assert broker.stdout is not None
            beside = Beside(*(broker.stdout.readline().strip() for _ in range(2)))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                inputs = draw.choice(kinds)
                throw(beside.ports[type(inputs)], inputs.next(), reads=draw.random() < 0.98)
                counts[type(inputs).__name__] += 1
                if counts.total() % CHECK_AFTER == 0:
                    beside.check()
                    said = log.read_text()
                    assert "Traceback" not in said, said[-5000:]
                    assert "internal error" not in said.lower(), said[-5000:]
                    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{broker.pid}/status").read_text())
                    assert peak is not None
                    assert int(peak[1]) * 1024 < MOST_MEMORY, peak[0]
            beside.close()
        except BaseException:
            print(f"seed {seed}, after {dict(counts)}", flush=True)
            raise
        finally:
            broker.terminate()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        counts = besiege(arguments.seconds, arguments.seed, Path(directory))
    print(f"seed {arguments.seed}: malformed connections: {dict(counts)}; well-behaved clients were served throughout")


if __name__ == "__main__":
    main()
