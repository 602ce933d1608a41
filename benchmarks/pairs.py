"""Compare the speed of mqtool with that of a peer, a comparable program, in pairs of runs."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pika

from mqtool.broker import state
from mqtool.spelling import counted

_started = state.load()
URL = os.environ.get("MQTOOL_URL") or (_started.url if _started else "amqp://guest:guest@localhost:5672") + "/%2F"
os.environ["MQTOOL_URL"] = URL  # for the peers
# Many containers turn off Python's bytecode cache. mqtool would then be compiled at each start, but the peer's pika
# would not, because pip has already compiled it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
QUEUE = "mqtool-benchmark"
MQTOOL = str(Path(sys.executable).parent / "mqtool")
QUIET = subprocess.DEVNULL


@dataclass(frozen=True)
class Run:
    """One run of a command, from start to exit: wall-clock seconds, and peak memory in MiB."""

    seconds: float
    peak: float


def run(command: Sequence[str], stdin: Path | None = None, stdout: Path | None = None) -> Run:
    """Run a command, which must succeed; return the time that it took, and its peak memory."""
    with (stdin or Path(os.devnull)).open("rb") as source, (stdout or Path(os.devnull)).open("wb") as target:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=target, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed: {said.decode()}")
    return Run(seconds, _mebibytes(usage))


def _mebibytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)


def compare(title: str, ours: Callable[[], Run], peer: Callable[[], Run], peer_name: str, pairs: int) -> float:
    """Run mqtool (`ours`) and what it is compared with (`peer`) in pairs, one run of each. mqtool is first in every
    other pair. Print the median times, and return the median, over the pairs, of the ratio of times (peer / mqtool).
    """
    our_runs, peer_runs = [], []
    for number in range(pairs):
        order = [(ours, our_runs), (peer, peer_runs)]
        for measured, runs in order if number % 2 else reversed(order):
            runs.append(measured())
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(our_runs, peer_runs, strict=True))
    print(
        f"{title:<24} mqtool {_median(our_runs):6.2f} s   {peer_name} {_median(peer_runs):6.2f} s   "
        f"speed {ratio:4.2f} (mqtool / {peer_name})   "
        f"(peak memory {_peak(our_runs)} and {_peak(peer_runs)}, {counted(pairs, 'pair')})",
        flush=True,  # the next pairs may take minutes
    )
    return ratio


def _peak(runs: Sequence[Run]) -> str:
    return f"{max(run.peak for run in runs) * 1.048576:.0f} MB"


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def fresh_queue() -> None:
    """Delete the benchmarks' queue, and declare it again as a durable quorum queue, like those of the tutorials."""
    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    channel.queue_delete(QUEUE)
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    connection.close()


def write_lines(path: Path, count: int) -> None:
    """Write a file with lines of 100 bytes, including the newline."""
    with path.open("w") as file:
        file.writelines(f"{number:08d} {'x' * 90}\n" for number in range(count))
