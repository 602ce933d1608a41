"""Measure the speed and memory of publishing to a stream and reading from it, compared with a bare rstream script.

    python -m benchmarks.streams [COUNT [PAIRS]]

Each run publishes or reads COUNT messages, by default 100,000. mqtool and the script run alternately, PAIRS times each,
by default 5.

mqtool itself uses the library rstream for streams. The script publishes in batches of 500, rstream's fastest method,
and waits for all confirms after the last batch. Uses the broker of MQTOOL_URL, with its stream port in
MQTOOL_STREAM_PORT.
"""

import asyncio
import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rstream import Consumer, ConsumerOffsetSpecification, OffsetType, Producer

from benchmarks.pairs import MQTOOL, URL, Run, compare, run, write_lines

STREAM = "mqtool-benchmark-stream"
_BATCH = 500
_url = urlsplit(URL)
_BROKER: dict[str, Any] = {
    "host": _url.hostname,
    "port": int(os.environ.get("MQTOOL_STREAM_PORT", "5552")),
    "username": unquote(_url.username or "guest"),
    "password": unquote(_url.password or "guest"),
}


async def publish() -> None:
    """Publish each line of stdin as a message, in batches of 500. After the last batch, wait until the broker has
    confirmed all messages.
    """
    sent = confirmed = 0
    all_sent, done = False, asyncio.Event()

    async def on_confirm(status: Any) -> None:
        nonlocal confirmed
        confirmed += status.is_confirmed
        if all_sent and confirmed == sent:
            done.set()

    async with Producer(**_BROKER) as producer:
        batch: list[bytes] = []
        for line in sys.stdin.buffer:
            batch.append(line.rstrip(b"\n"))
            if len(batch) == _BATCH:
                sent += len(batch)
                await producer.send_batch(STREAM, batch, on_publish_confirm=on_confirm)
                batch = []
        if batch:
            sent += len(batch)
            await producer.send_batch(STREAM, batch, on_publish_confirm=on_confirm)
        all_sent = True
        if confirmed < sent:
            await done.wait()


async def consume(count: int) -> None:
    """Consume the first `count` messages of the stream, and write each body to stdout as a line."""
    received, done = 0, asyncio.Event()
    out = sys.stdout.buffer

    def on_message(message: Any, _context: Any) -> None:
        nonlocal received
        received += 1
        if received <= count:
            out.write(message + b"\n")
        if received == count:
            done.set()

    async with Consumer(**_BROKER) as consumer:
        first = ConsumerOffsetSpecification(OffsetType.FIRST, None)
        await consumer.subscribe(STREAM, on_message, offset_specification=first)
        await done.wait()
    out.flush()


def measure(count: int, pairs: int) -> None:
    """Compare mqtool with a script that uses the library rstream: sending lines to a stream, and receiving them.

    Args:
        count: the number of lines in each run.
        pairs: the number of runs of each of the two programs.
    """
    peer = [sys.executable, "-m", "benchmarks.streams"]
    with tempfile.TemporaryDirectory() as directory:
        lines, out = Path(directory) / "lines", Path(directory) / "out"
        write_lines(lines, count)

        def fresh() -> None:
            subprocess.run([MQTOOL, "queue", "delete", STREAM, "--if-exists", "--yes"], capture_output=True, check=True)
            declare = [MQTOOL, "queue", "declare", STREAM, "--queue-type", "stream"]
            subprocess.run(declare, capture_output=True, check=True)

        def send() -> Run:
            fresh()
            return run([MQTOOL, "send-stream", "-l", "-q", STREAM], stdin=lines)

        def rstream_sends() -> Run:
            fresh()
            return run([*peer, "publish"], stdin=lines)

        def receive() -> Run:
            result = run([MQTOOL, "receive-stream", "--raw", "-q", STREAM, "-c", str(count)], stdout=out)
            assert filecmp.cmp(out, lines, shallow=False), "the lines received differ from those sent"
            return result

        compare(f"send-stream -l, {count:,} lines", send, rstream_sends, "rstream send_batch", pairs)
        fresh()
        run([*peer, "publish"], stdin=lines)  # bodies alone, as rstream's loop writes them

        def rstream_reads() -> Run:
            return run([*peer, "consume", str(count)], stdout=out)

        compare(f"receive-stream, {count:,} lines", receive, rstream_reads, "rstream callback", pairs)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish"]:
            asyncio.run(publish())
        case ["consume", count]:
            asyncio.run(consume(int(count)))
        case [*given]:
            measure(*([int(each) for each in given] + [100_000, 5][len(given) :]))
