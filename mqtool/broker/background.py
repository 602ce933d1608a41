"""Functions for background processes: check whether they are running, stop them, and access their logs."""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mqtool.errors import MqtoolError

_PROC = Path("/proc")
_CHUNK = 65536
#: A log of more bytes than this is renamed to log.1 at the next start.
_LONG_LOG = 10_000_000
_STARTING = b"== mqtool:"


class Process(NamedTuple):
    """A process that mqtool started.

    Attributes:
        pid: the process id; 0 if the process was never started.
        born: when the process was started, see birth(). Distinguishes it from a later process with the same id.
    """

    pid: int = 0
    born: str = ""


def birth(pid: int) -> str:
    """Return when a process was started, in the operating system's notation; "" if it is not running."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reap it if it is our child and has ended
    if not (_PROC / "self").exists():
        told = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},  # the same in all terminals
            capture_output=True,
            text=True,
        )
        state, _, born = told.stdout.strip().partition(" ")
        return "" if state.startswith("Z") else born.strip()
    try:
        # The second field is the name in parentheses, which may contain spaces; split the fields after it.
        fields = Path(f"{_PROC}/{pid}/stat").read_text().rpartition(")")[2].split()
    except (ProcessLookupError, FileNotFoundError):
        return ""
    boot = Path(f"{_PROC}/sys/kernel/random/boot_id")
    # While other threads of a killed process have not ended yet, its sockets are still open.
    has_ended = fields[0] == "Z" and int(fields[17]) <= 1
    return "" if has_ended else f"{boot.read_text()[:8] if boot.exists() else 0}-{fields[19]}"


def started(pid: int) -> Process:
    return Process(pid, birth(pid))


def is_running(process: Process) -> bool:
    return bool(process.pid and process.born) and birth(process.pid) == process.born


def terminate(processes: Iterable[Process], patience: float, *, again: float = math.inf) -> None:
    """Send SIGTERM to the running processes; raise MqtoolError if one has not ended after `patience` seconds.

    Args:
        again: send SIGTERM again each time this many seconds have passed.
    """
    running = [each for each in processes if is_running(each)]
    deadline, due = time.monotonic() + patience, -math.inf
    while running:
        now = time.monotonic()
        if now > deadline:
            raise MqtoolError(f"process {running[0].pid} did not end", f"to kill it: kill -9 {running[0].pid}")
        if now >= due:
            due = now + again
            for process in running:
                with contextlib.suppress(ProcessLookupError):  # it ended just now
                    os.kill(process.pid, signal.SIGTERM)
                    os.kill(process.pid, signal.SIGCONT)  # a stopped process would not handle the other signal
        time.sleep(0.01)
        running = [each for each in running if is_running(each)]


def append_to_log(path: Path) -> BinaryIO:
    """Open a broker's log for appending, and add a line that marks its start. A long log is renamed to log.1 first.

    Raises:
        MqtoolError: the log cannot be written.
    """
    try:
        if path.exists() and path.stat().st_size > _LONG_LOG:
            path.replace(path.with_name("log.1"))
        log = path.open("ab", buffering=0)
        log.write(_STARTING + f" {datetime.now(UTC):%F %T}\n".encode())
    except OSError as error:
        raise MqtoolError(f"cannot write {path}: {error.strerror}") from error
    return log


def last_words(log: bytes) -> str:
    """Return the last line logged since the latest start, with a leading ": "; "" if there is none."""
    lines = [line for line in log.rpartition(_STARTING)[2].splitlines()[1:] if line.strip()]
    return f": {lines[-1].decode(errors='replace').strip()}" if lines else ""


def kept_logs(directory: Path) -> dict[str, Path]:
    """Return the log files in a broker's directory, by node name. Stopping a broker does not delete them."""
    found = sorted(directory.glob("log")) or sorted(directory.glob("node-*/log"))
    return {"" if path.parent == directory else path.parent.name: path for path in found}


def read_logs(paths: Mapping[str, Path], follow: bool) -> Iterator[bytes]:
    """Yield whole lines from log files, each line prefixed with the name of its node.

    Args:
        paths: log files by node name. For the name "", lines get no prefix.
        follow: keep reading as the files grow. Yields b"" when there is nothing new; the caller then waits.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(path.open("rb")) for name, path in paths.items()}
        rest = dict.fromkeys(files, b"")
        while True:
            found = b""
            for name, file in files.items():
                *lines, rest[name] = (rest[name] + file.read(_CHUNK)).split(b"\n")
                found += b"".join(prefixed(name, line) for line in lines)
            if not found and not follow:
                yield b"".join(prefixed(name, line) for name, line in rest.items() if line)
                return
            yield found


def prefixed(name: str, line: bytes) -> bytes:
    """Return a log line, prefixed with the name of its node if the node has one."""
    return (f"{name} | ".encode() if name else b"") + line + b"\n"
