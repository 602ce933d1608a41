"""Compare two installations of mqtool: how much CPU time their commands and their embedded brokers use.

    python -m benchmarks.felt BASE [CHANGE] [--instructions] [--rows WORD] [--runs N]

An installation is a Python interpreter that has mqtool installed, or a checkout of mqtool. A checkout is run by the
Python in its .venv, or by the current Python if it has no .venv. CHANGE is this checkout by default.

The table has a row for each command, and two rows, for publishing and for consuming, for each kind of embedded broker:
with a classic queue in memory, with a quorum queue, and with a data directory. A row shows medians and minima of the
CPU time with BASE and with CHANGE, in alternating runs. --rows WORD measures only commands and brokers with a row whose
name contains WORD. --runs N measures each command N times, by default 7.

With --instructions, valgrind counts the instructions that each command executes, because their number hardly depends on
the load of the machine; --runs then has no effect. Brokers are still measured by their CPU time. With --instructions,
the exit code is 1 if a command executes over 5% more instructions with CHANGE than with BASE, or if a broker of CHANGE
uses over 10% more CPU time per message than the same kind of broker of BASE.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from pamqp import commands

from benchmarks.embedded import Client, consume, publish_confirmed

HERE = Path(__file__).parents[1]
#: The cost of a row (instructions; CPU time of brokers) has grown if it is more than this many times that of the base.
TOLERANCE, BROKER_TOLERANCE = 1.05, 1.1
#: The brokers that are measured: the type of their queue, and their options.
BROKERS = {
    "memory": ("classic", ["--in-memory"]),
    "quorum": ("quorum", ["--in-memory"]),
    "--data-dir": ("classic", ["--data-dir", "{}/data"]),
}
#: The number of rounds in which brokers are measured.
ROUNDS = 30
#: How many more times a row is measured if its cost seems to have grown. Chance can only add instructions.
AGAIN = 4
#: Ends the line of a row whose cost has grown.
GREW = "  GREW"

#: Returns the cost of a row for one installation, in milliseconds or in millions of instructions.
Measure = Callable[["Installation"], float]


@dataclass(frozen=True)
class Installation:
    """A Python interpreter, and the environment variables that let it find mqtool."""

    python: str
    environment: Mapping[str, str]

    @classmethod
    def at(cls, path: Path) -> "Installation":
        """Return the mqtool installation at a path.

        Raises:
            SystemExit: the path is neither a Python interpreter nor a checkout of mqtool.
        """
        # Fixed hashes of strings, because random ones change the number of instructions from run to run. The bytecode
        # cache is on, even in containers that turn it off, because otherwise each start would compile mqtool.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": ""}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        path = path.absolute()
        if path.is_file():
            return cls(str(path), environment)
        if not (path / "mqtool/__main__.py").is_file():
            raise SystemExit(f"{path} is neither a checkout of mqtool nor a Python interpreter")
        if (own := path / ".venv/bin/python").exists():
            return cls(str(own), environment)
        return cls(sys.executable, environment | {"PYTHONPATH": str(path)})


def grown(base: Mapping[str, float], change: Mapping[str, float], tolerance: float = TOLERANCE) -> list[str]:
    """Return the names of the table's rows whose cost in `change` is more than `tolerance` times that in `base`."""
    return [name for name, before in base.items() if change[name] > before * tolerance]


def row_of(name: str, base: Sequence[float], change: Sequence[float]) -> str:
    """Return a row of the table as a line of text: the median and the minimum cost with each installation of mqtool,
    and the ratio of the minima (change / base).
    """
    before, after = statistics.median(base), statistics.median(change)
    figures = f"{before:9.1f} {after:9.1f} {min(base):9.1f} {min(change):9.1f}"
    return f"{name:<38} {figures} {min(change) / min(base):8.2f}x"


HEADING = (
    f"{'':<38} {'median':>9} {'median':>9} {'minimum':>9} {'minimum':>9} {'change /':>9}\n"
    f"{'':<38} {'base':>9} {'change':>9} {'base':>9} {'change':>9} {'base':>9}"
)


def instructions_in(report: str) -> float:
    """Return how many million instructions were executed, according to a file that cachegrind has written.

    Raises:
        ValueError: the file has no summary.
    """
    for line in report.splitlines():
        if line.startswith("summary:"):
            return int(line.split()[1]) / 1e6
    raise ValueError("cachegrind has written no summary")


@contextmanager
def _counting(command: Sequence[str]) -> Iterator[tuple[list[str], Callable[[], float]]]:
    """Yield a command line that runs the given command under valgrind, and a function. Called after the command has
    ended, the function returns how many million instructions the command executed.
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report")
        counter = ["valgrind", "--quiet", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={report}"]
        yield [*counter, *command], lambda: instructions_in(report.read_text())


@dataclass(frozen=True)
class CommandRow:
    """A row of the table: the cost of an mqtool command from its start to its end.

    Attributes:
        words: the arguments of the command.
        stdin: the input of the command.
        counted: True to count instructions instead of CPU time.
        first: a command to run, without measuring it, before each run of this one.
    """

    words: Sequence[str]
    stdin: bytes = b""
    counted: bool = False
    first: "CommandRow | None" = None

    def __call__(self, installation: Installation) -> float:
        if self.first is not None:
            self.first(installation)
        command = [installation.python, "-m", "mqtool", *self.words]
        if not self.counted:
            return _run(command, self.stdin, installation.environment)
        with _counting(command) as (counting, count):
            _run(counting, self.stdin, installation.environment)
            return count()


def _run(command: Sequence[str], stdin: bytes, environment: Mapping[str, str]) -> float:
    """Run a command, which must succeed; return its CPU time in milliseconds."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as printed:
        source.write(stdin)
        source.seek(0)
        # In a directory of its own, so that Python does not find the mqtool of this checkout.
        with tempfile.TemporaryDirectory() as directory:
            process = subprocess.Popen(
                command, stdin=source, stdout=printed, stderr=printed, env=environment, cwd=directory
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            raise SystemExit(f"{' '.join(command)} failed: {printed.read().decode()}")
    return (usage.ru_utime + usage.ru_stime) * 1000


@contextmanager
def _broker(
    command: Sequence[str], environment: Mapping[str, str], *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """Run an embedded broker; yield its process and its URLs. `{}` in an option stands for an empty directory."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory, "ready")
        process = subprocess.Popen(
            [
                *(*command, "-m", "mqtool.broker.embedded", "--port", "0", "--ready-file", str(ready)),
                *(option.format(directory) for option in options),
            ],
            env=environment,
            cwd=directory,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(f"the embedded broker of {command[-1]} did not start")
                time.sleep(0.01)
            yield process, ready.read_text().splitlines()
        finally:
            process.terminate()
            process.wait()


_QUEUE = "felt"


def broker_rounds(
    base: Installation,
    change: Installation,
    queue_type: str,
    options: Sequence[str],
    rounds: int,
    messages: int = 10_000,
) -> dict[str, tuple[list[float], list[float]]]:
    """Measure the CPU time of two installations' embedded brokers for persistent, confirmed messages of 100 bytes.

    Both brokers run at the same time, and take turns in short rounds: the minimum of many rounds is stable even on a
    busy machine. The number of instructions would not be stable: a broker interrupts work that takes over 10 ms, to
    serve other clients. Under valgrind, all work takes that long, and the load of the machine decides how often the
    broker interrupts it.

    Args:
        queue_type: the type of the queue.
        options: options of the brokers.
        rounds: the number of rounds.
        messages: the number of messages in a round, a multiple of 500.

    Returns:
        A dictionary with the keys "in" (publishing) and "out" (consuming). Each value is a pair of lists, for `base`
        and for `change`, with the CPU time per message in each round, in microseconds.
    """
    figures: dict[str, tuple[list[float], list[float]]] = {"in": ([], []), "out": ([], [])}
    with (
        _broker([base.python], base.environment, *options) as one,
        _broker([change.python], change.environment, *options) as other,
    ):
        for number in range(rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                process, urls = (one, other)[side]
                client = Client(urls[0])
                declare = commands.Queue.Declare(queue=_QUEUE, durable=True, arguments={"x-queue-type": queue_type})
                client.call(declare, commands.Queue.DeclareOk)
                before = _cpu(process.pid)
                publish_confirmed(client, "", _QUEUE, messages)
                between = _cpu(process.pid)
                consume(client, _QUEUE, messages)
                after = _cpu(process.pid)
                client.socket.close()
                figures["in"][side].append((between - before) * 1000 / messages)
                figures["out"][side].append((after - between) * 1000 / messages)
    return figures


def _cpu(pid: int) -> float:
    """Return how many milliseconds of CPU time a process has used. On Linux only."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


def rows(*, counted: bool) -> dict[str, Measure]:
    """Return the rows for mqtool's commands: the name of each row, and the function that measures it."""
    lines = 2_000 if counted else 50_000
    text = b"".join(b"%08d %s\n" % (number, b"x" * 90) for number in range(lines))
    queue = ("-q", _QUEUE, "--queue-type", "quorum")
    sending = CommandRow(["send", "--lines", *queue], text)
    by_name: dict[str, Measure] = {
        " ".join(words): CommandRow(words, counted=counted)
        for words in (["send", "x"], ["help"], ["send", "--help"], ["list", "queues"])
    }
    purging = CommandRow(["queue", "purge", _QUEUE, "--yes", "--if-exists"])
    receiving = ["receive", *queue, "-c", str(lines)]
    by_name[f"send {lines:,} lines"] = replace(sending, counted=counted, first=purging)
    by_name[f"receive {lines:,} lines"] = CommandRow(receiving, counted=counted, first=sending)
    return by_name


def compare(table: Mapping[str, Measure], base: Installation, change: Installation, runs: int) -> Iterator[str]:
    """Measure each row of the table by running both installations of mqtool alternately; yield the row as a line of
    text.
    """
    for name, measure in table.items():
        before, after = [], []
        for number in range(runs):
            order = [(base, before), (change, after)]
            for installation, figures in order if number % 2 else reversed(order):
                figures.append(measure(installation))
        yield row_of(name, before, after)


def check(table: Mapping[str, Measure], base: Installation, change: Installation) -> Iterator[str]:
    """Measure each row of the table, and measure it again if its cost seems higher for `change` than for `base`. Yield
    each row as a line of text, with "GREW" if the cost still seems higher.

    The cost is the number of instructions that a command executes, which hardly depends on the load of the machine.
    Therefore, `base` and `change` can be measured at the same time.
    """
    for name, measure in table.items():
        before: list[float] = []
        after: list[float] = []
        while not before or (len(before) <= AGAIN and grown({name: min(before)}, {name: min(after)})):
            with ThreadPoolExecutor(2) as both:
                for figures, figure in zip((before, after), both.map(measure, (base, change)), strict=True):
                    figures.append(figure)
        mark = GREW if grown({name: min(before)}, {name: min(after)}) else ""
        yield row_of(name, before, after) + mark


def compare_brokers(base: Installation, change: Installation, word: str = "", *, judged: bool) -> Iterator[str]:
    """Measure each kind of embedded broker in BROKERS, with `base` and with `change`, two installations of mqtool.
    Yield two rows of the table for each kind, for publishing and for consuming, as lines of text.

    Args:
        word: measure a kind only if the name of at least one of its two rows contains this text.
        judged: True to measure a kind again if a row's cost seems higher for `change` than for `base`, and to add
            "GREW" to the row's line if the cost still seems higher.
    """
    for kind, (queue_type, options) in BROKERS.items():
        names = {way: f"broker, {kind}, {way} (µs per message)" for way in ("in", "out")}
        if not any(word in name for name in names.values()):
            continue
        figures = broker_rounds(base, change, queue_type, options, ROUNDS)
        for _ in range(AGAIN if judged else 0):
            if not _grown_brokers(figures):
                break
            for way, sides in broker_rounds(base, change, queue_type, options, ROUNDS).items():
                for side, more in zip(figures[way], sides, strict=True):
                    side += more
        for way, (before, after) in figures.items():
            yield row_of(names[way], before, after) + (GREW if judged and way in _grown_brokers(figures) else "")


def _grown_brokers(figures: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[str]:
    least = [{way: min(sides[side]) for way, sides in figures.items()} for side in (0, 1)]
    return grown(*least, BROKER_TOLERANCE)


def _warm_up(installation: Installation) -> None:
    """Run each command once, so that all modules are in the bytecode cache, and the queues exist."""
    for words in (["send", "x"], ["help"], ["send", "--help"], ["list", "queues"], ["receive", "-c", "1"]):
        CommandRow(words)(installation)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.felt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path, metavar="BASE", help="the installation to compare with")
    parser.add_argument(
        "change", type=Path, metavar="CHANGE", nargs="?", default=HERE, help="the changed one (default: this checkout)"
    )
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions; exit with 1 if a cost has grown"
    )
    parser.add_argument("--rows", metavar="WORD", default="", help="measure only rows whose names contain WORD")
    parser.add_argument("--runs", type=int, default=7, help="runs of each row (default: 7)")
    asked = parser.parse_args()
    change = Installation.at(asked.change)
    table = {name: row for name, row in rows(counted=asked.instructions).items() if asked.rows in name}
    with _broker([change.python], change.environment, "--management-port", "0") as (_, urls):
        os.environ["MQTOOL_URL"], os.environ["MQTOOL_MANAGEMENT_URL"] = urls[:2]
        base, change = Installation.at(asked.base), Installation.at(asked.change)
        for installation in (base, change):
            _warm_up(installation)
        unit = "millions of instructions" if asked.instructions else "milliseconds of CPU time"
        print(f"commands: {unit}; brokers: µs of CPU time per message")
        print(HEADING)
        has_grown = False
        lines = check(table, base, change) if asked.instructions else compare(table, base, change, asked.runs)
        brokers = compare_brokers(base, change, asked.rows, judged=asked.instructions)
        for line in chain(lines, brokers):
            print(line, flush=True)
            has_grown |= line.endswith(GREW)
    sys.exit(1 if has_grown else 0)


if __name__ == "__main__":
    main()
