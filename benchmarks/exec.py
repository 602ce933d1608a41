"""`worker --exec true` beside `xargs -n1 -P`: programs started a second, with the same concurrency."""

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.pairs import MQTOOL, QUEUE, URL, Run, compare, fresh_queue, run, write_lines

COUNT = 5_000
#: Seconds without a message after which the worker ends; they are not counted.
IDLE = 2


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory) / "lines"
        write_lines(lines, COUNT)
        for concurrency in ("1", "2", "4"):

            def worker(concurrency: str = concurrency) -> Run:
                fresh_queue()
                run([MQTOOL, "send", "-l", "--persistent", "-q", QUEUE, "-u", URL], stdin=lines)
                options = ["-q", QUEUE, "-u", URL, "--idle-timeout", f"{IDLE}s", "--concurrency", concurrency]
                worked = run([MQTOOL, "worker", "--exec", "true", *options])
                return replace(worked, seconds=worked.seconds - IDLE)

            def xargs(concurrency: str = concurrency) -> Run:
                return run(["xargs", "-n1", "-d", "\n", "-P", concurrency, "true"], stdin=lines)

            compare(f"worker --exec, {concurrency} at once", worker, xargs, f"xargs -n1 -P{concurrency}", pairs=3)


if __name__ == "__main__":
    main()
