"""Peak memory of `send -l` and of `receive --raw` over a million lines of 100 bytes; the aim is below 80 MB each."""

import tempfile
from pathlib import Path

from benchmarks.pairs import MQTOOL, QUEUE, URL, fresh_queue, run, write_lines

LINES = 1_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        lines, out = Path(directory) / "lines", Path(directory) / "out"
        write_lines(lines, LINES)
        fresh_queue()
        sent = run([MQTOOL, "send", "-l", "--persistent", "-q", QUEUE, "-u", URL], stdin=lines)
        print(f"send -l         {LINES:,} lines in {sent.seconds:6.1f} s, peak {sent.peak * 1.048576:.0f} MB")
        received = run([MQTOOL, "receive", "--raw", "-c", str(LINES), "-q", QUEUE, "-u", URL], stdout=out)
        print(f"receive --raw   {LINES:,} lines in {received.seconds:6.1f} s, peak {received.peak * 1.048576:.0f} MB")
        assert out.read_bytes() == lines.read_bytes(), "what came is not what was sent"


if __name__ == "__main__":
    main()
