"""Measure how fast `worker --exec true` starts programs, compared with `xargs -n1 -P` with the same concurrency."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.pairs import MQTOOL, QUEUE, URL, Run, compare, fresh_queue, run, write_lines

COUNT = 4_000
#: Seconds without a message after which the worker ends. The measured time does not include them.
IDLE = 2


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory) / "lines"
        write_lines(lines, COUNT)

        def worker(concurrency: str, end: list[str]) -> Run:
            fresh_queue()
            run([MQTOOL, "send", "-l", "--persistent", "-q", QUEUE, "-u", URL], stdin=lines)
            options = ["-q", QUEUE, "-u", URL, "--concurrency", concurrency]
            worked = run([MQTOOL, "worker", "--exec", "true", *options, *end])
            return replace(worked, seconds=worked.seconds - (0 if "-c" in end else IDLE))

        def xargs(concurrency: str) -> Run:
            return run(["xargs", "-n1", "-d", "\n", "-P", concurrency, "true"], stdin=lines)

        for concurrency in ("1", "2", "4"):
            idle, ahead = ["--idle-timeout", f"{IDLE}s"], ["--prefetch", str(2 * int(concurrency))]
            for title, end in (("", idle), (" -c", ["-c", str(COUNT)]), (" --prefetch", [*idle, *ahead])):
                compare(
                    f"worker --exec{title}, {concurrency} at once",
                    partial(worker, concurrency, end),
                    partial(xargs, concurrency),
                    f"xargs -n1 -P{concurrency}",
                    pairs=3,
                )


if __name__ == "__main__":
    main()
