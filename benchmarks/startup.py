"""Measure how long `mqtool send` takes from start to exit, compared with a bare pika script that does the same.

For the aims and results of all benchmarks, see docs/explanation/performance.md.
"""

import sys

from benchmarks.pairs import MQTOOL, URL, compare, run


def main() -> None:
    command = [MQTOOL, "send", "Hello World!", "-u", URL]
    peer = [sys.executable, "-m", "benchmarks.peers", "send"]
    run(command)
    run(peer)
    ratio = compare("start-up: send", lambda: run(command), lambda: run(peer), "bare pika script", pairs=15)
    print(f"mqtool takes {1 / ratio:.2f} times as long as the bare pika script")


if __name__ == "__main__":
    main()
