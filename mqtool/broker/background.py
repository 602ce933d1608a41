"""Processes that run in the background: whether they run, how they are stopped, and their log files."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mqtool.errors import MqtoolError

_CHUNK = 65536
#: A log of more bytes than this is renamed to log.1 at the next start.
_LONG_LOG = 10_000_000
_STARTING = b"== mqtool:"


def is_running(pid: int, command_has: str) -> bool:
    """Tell whether a process that mqtool started is still running.

    Args:
        pid: its process id; 0 if it was never started.
        command_has: a part of its command line. Another process may have the id by now.
    """
    if not pid:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reap it if it is our child and has ended
    try:
        os.kill(pid, 0)
        if not Path("/proc/self").exists():  # not Linux: trust the process id
            return True
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
    # A process that is just starting has no command line yet.
    return state != "Z" and (not command or command_has.encode() in command)


def terminate(pids: Sequence[int], command_has: str, patience: float) -> None:
    """Send TERM to the processes that are running, and wait until they have ended.

    Args:
        pids: process ids; see is_running().
        command_has: a part of their command lines.
        patience: seconds to wait.

    Raises:
        MqtoolError: a process has not ended in time.
    """
    running = [pid for pid in pids if is_running(pid, command_has)]
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    for pid in running:
        while is_running(pid, command_has):
            if time.monotonic() > deadline:
                raise MqtoolError(f"process {pid} did not end")
            time.sleep(0.01)


def append_to_log(path: Path) -> BinaryIO:
    """Open a log file for appending, and write a line that marks a new start. A long log is renamed to log.1 first."""
    if path.exists() and path.stat().st_size > _LONG_LOG:
        path.replace(path.with_name("log.1"))
    log = path.open("ab", buffering=0)
    log.write(_STARTING + f" {datetime.now(UTC):%F %T}\n".encode())
    return log


def last_words(log: bytes) -> str:
    """The last line that was logged since the latest start, with a leading ": "; empty if there is none."""
    lines = [line for line in log.rpartition(_STARTING)[2].splitlines()[1:] if line.strip()]
    return f": {lines[-1].decode(errors='replace').strip()}" if lines else ""


def kept_logs(directory: Path) -> dict[str, Path]:
    """The log files in a broker's directory, by node name. They stay when the broker is stopped."""
    found = sorted(directory.glob("log")) or sorted(directory.glob("node-*/log"))
    return {"" if path.parent == directory else path.parent.name: path for path in found}


def read_logs(paths: Mapping[str, Path], follow: bool) -> Iterator[bytes]:
    """Yield whole lines from log files, each line prefixed with the name of its node.

    Args:
        paths: files by node name; lines of the name "" get no prefix.
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
    """A log line with the name of its node in front, if the node has a name."""
    return (f"{name} | ".encode() if name else b"") + line + b"\n"
