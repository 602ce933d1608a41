"""Commands need bounded memory, however long the input is. benchmarks/throughput.py measures a million lines."""

import json
import sys
from pathlib import Path

from tests.brokers import large, on_any_broker
from tests.cli.shell import Shell

LINES = 80_000
LIMIT = 80 * 1024  # KiB
pytestmark = large

#: Runs a command with our stdin and stdout, and writes its peak memory, in KiB, to a file.
MEASURE = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
json.dump([os.waitstatus_to_exitcode(status), usage.ru_maxrss], open(sys.argv[1], "w"))
"""


def peak(report: Path) -> int:
    """Return the peak memory in KiB of a command that has succeeded."""
    code, kibibytes = json.loads(report.read_text())
    assert code == 0
    return int(kibibytes)


@on_any_broker
def test_send_and_receive_need_less_than_80_mib_for_80000_lines(shell: Shell) -> None:
    """`send -l` and `receive` each need less than 80 MiB of memory for 80,000 lines, which arrive unchanged."""
    lines = b"".join(b"%08d %s\n" % (number, b"x" * 90) for number in range(LINES))
    (shell.directory / "in").write_bytes(lines)
    (shell.directory / "measure.py").write_text(MEASURE)

    done = shell.script(
        f"{sys.executable} measure.py sent.json mqtool send --quiet -l --persistent < in &&"
        f" {sys.executable} measure.py received.json mqtool receive --quiet --raw -c {LINES} > out"
    )

    assert done.code == 0, done.stderr
    assert (shell.directory / "out").read_bytes() == lines
    assert peak(shell.directory / "sent.json") < LIMIT
    assert peak(shell.directory / "received.json") < LIMIT


@on_any_broker
def test_send_needs_less_than_272_mib_for_a_file_of_64_mib(shell: Shell) -> None:
    """`send -f` needs less than 272 MiB of memory for a 64 MiB file: three times the size of the file, plus 80 MiB. To
    report the message as sent, the command prints only the first line of the body, and the body's size.
    """
    size = 64 << 20
    (shell.directory / "in").write_bytes(b"first line\n" + b"x" * size)
    (shell.directory / "measure.py").write_text(MEASURE)

    done = shell.script(f"{sys.executable} measure.py sent.json mqtool send -f in")

    assert done.stderr == f" [x] Sent 'first line'… ({size + 11:,} bytes)\n"
    assert peak(shell.directory / "sent.json") < 3 * (size >> 10) + LIMIT
