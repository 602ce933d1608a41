"""Background processes that mqtool started."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from mqtool.errors import MqtoolError


def is_running(pid: int, command_has: str) -> bool:
    """Whether the process that we started still runs; 0 was never started.

    Args:
        command_has: part of its command line, since another process may have its number by now.
    """
    if not pid:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reap it if it is our child and has ended
    try:
        os.kill(pid, 0)
        if not Path("/proc/self").exists():  # not Linux: trust the number
            return True
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
    # A process that is just starting has no command line yet.
    return state != "Z" and (not command or command_has.encode() in command)


def terminate(pids: Sequence[int], command_has: str, patience: float) -> None:
    """Send TERM to those processes that run, and wait until they have ended.

    Args:
        patience: seconds.

    Raises:
        MqtoolError: one does not end.
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
