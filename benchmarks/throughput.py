"""Publishing and receiving 100,000 lines of 100 bytes, beside amqp-publish (amqp-tools) and bare pika.

Into a quorum queue, persistent; mqtool and the pika loop are confirmed, amqp-publish waits for no confirm.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.pairs import MQTOOL, QUEUE, URL, Run, compare, fresh_queue, run, write_lines

LINES = 100_000
PEERS = [sys.executable, "-m", "benchmarks.peers"]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        lines, some, out = (Path(directory) / name for name in ("lines", "some", "out"))
        write_lines(lines, LINES)
        write_lines(some, LINES // 5)

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
            result = run([MQTOOL, "receive", "--raw", "-c", str(LINES), "-q", QUEUE, "-u", URL], stdout=out)
            assert out.read_bytes() == lines.read_bytes(), "what came is not what was sent"
            return result

        def callback_loop() -> Run:
            send()
            return run([*PEERS, "receive-lines", QUEUE, str(LINES)], stdout=out)

        if shutil.which("amqp-publish"):
            compare("send -l, 100,000 lines", send, amqp_publish, "amqp-publish -l -p", pairs=5)
        else:
            print("amqp-publish is not installed (Debian: amqp-tools): not compared")
        compare("send -l, 20,000 lines", lambda: send(some), confirm_loop, "pika confirm loop", pairs=3)
        compare("receive --raw > file", receive, callback_loop, "pika callback loop", pairs=5)


if __name__ == "__main__":
    main()
