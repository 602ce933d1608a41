"""`worker --exec true` beside `xargs -n1 -P`: programs started a second, with the same concurrency."""

import tempfile
from pathlib import Path

from benchmarks.pairs import MQTOOL, QUEUE, URL, Run, compare, fresh_queue, run, write_lines

COUNT = 5_000


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory) / "lines"
        write_lines(lines, COUNT)
        for concurrency in ("1", "2", "4"):

            def worker(concurrency: str = concurrency) -> Run:
                fresh_queue()
                run([MQTOOL, "send", "-l", "--persistent", "-q", QUEUE, "-u", URL], stdin=lines)
                options = ["-q", QUEUE, "-u", URL, "-c", str(COUNT), "--concurrency", concurrency]
                return run([MQTOOL, "worker", "--exec", "true", *options])

            def xargs(concurrency: str = concurrency) -> Run:
                return run(["xargs", "-n1", "-d", "\n", "-P", concurrency, "true"], stdin=lines)

            compare(f"worker --exec, {concurrency} at once", worker, xargs, f"xargs -n1 -P{concurrency}", pairs=3)


if __name__ == "__main__":
    main()
