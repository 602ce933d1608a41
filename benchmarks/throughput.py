"""Measure the speed and memory of publishing and receiving lines of 100 bytes.

mqtool is compared with amqp-publish (amqp-tools) and bare pika. The messages are persistent and go to a quorum queue.
mqtool and pika wait for confirms; amqp-publish does not.
"""

import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.pairs import MQTOOL, QUEUE, URL, Run, compare, fresh_queue, run, write_lines

PEERS = [sys.executable, "-m", "benchmarks.peers"]


def measure(count: int, pairs: int) -> None:
    """Compare mqtool with its peers: sending this many lines, and receiving them.

    Args:
        pairs: the number of runs of each program. If `pairs` is greater than 1, also compare `send` with a pika script
            that waits for each confirm. In this comparison, each program sends 20,000 lines, and runs three times.
    """
    with tempfile.TemporaryDirectory() as directory:
        lines, some, out = (Path(directory) / name for name in ("lines", "some", "out"))
        write_lines(lines, count)
        write_lines(some, 20_000)

        def send(source: Path = lines) -> Run:
            fresh_queue()
            return run([MQTOOL, "send", "-l", "--persistent", "-q", QUEUE, "-u", URL], stdin=source)

        def amqp_publish() -> Run:
            fresh_queue()
            return run(["amqp-publish", f"--url={URL}", "-l", "-p", "-r", QUEUE], stdin=lines)

        def confirm_loop() -> Run:
            fresh_queue()
            return run([*PEERS, "confirm-lines", QUEUE], stdin=some)

        def receive() -> Run:
            send()
            result = run([MQTOOL, "receive", "--raw", "-c", str(count), "-q", QUEUE, "-u", URL], stdout=out)
            assert filecmp.cmp(out, lines, shallow=False), "the lines received differ from those sent"
            return result

        def callback_loop() -> Run:
            send()
            return run([*PEERS, "receive-lines", QUEUE, str(count)], stdout=out)

        if shutil.which("amqp-publish"):
            compare(f"send -l, {count:,} lines", send, amqp_publish, "amqp-publish -l -p", pairs)
        else:
            print("amqp-publish (Debian package: amqp-tools) is not installed, so it is not compared")
        compare(f"receive, {count:,} lines", receive, callback_loop, "pika callback loop", pairs)
        if pairs > 1:
            compare("send -l, 20,000 lines", lambda: send(some), confirm_loop, "pika confirm loop", pairs=3)


def main() -> None:
    measure(100_000, pairs=5)
    measure(1_000_000, pairs=1)


if __name__ == "__main__":
    main()
