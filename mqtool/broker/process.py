"""Processes that mqtool has started and left running in the background."""

import contextlib
import os
import signal
import time
from pathlib import Path

from mqtool.errors import MqtoolError


def is_running(pid: int, command_has: str) -> bool:
    """Whether a process is there, and is the one we started.

    Args:
        command_has: what its command line has; a process that got its number later, after a reboot, has it not.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reap it if it is our child and has ended
    try:
        os.kill(pid, 0)
        if not Path("/proc/self").exists():  # no Linux: the number has to do
            return True
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
    # In the instant of its start a process has no command line yet.
    return state != "Z" and (not command or command_has.encode() in command)


def terminate(pid: int, command_has: str, patience: float) -> None:
    """Ask a process to end (TERM), and wait until it has.

    Args:
        patience: seconds.

    Raises:
        MqtoolError: it does not end.
    """
    if not is_running(pid, command_has):
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while is_running(pid, command_has):
        if time.monotonic() > deadline:
            raise MqtoolError(f"process {pid} did not end")
        time.sleep(0.01)
