"""Stops a broker when the process that holds it in the foreground ends, even by kill -9.

`python -m mqtool.broker.lifeline NAME` reads a pipe that only that process writes to. When the pipe closes, it stops
the broker as `mqtool broker down` does. The embedded broker needs none of this: in the foreground it is that process.
"""

import os
import subprocess
import sys
import time

from mqtool.broker import state
from mqtool.broker.choice import starter_of
from mqtool.broker.state import Started

#: Seconds for a broker to be saved by a process that was killed while it started it.
_PATIENCE = 5.0


def stop_with_this_process(name: str) -> int:
    """Stop the broker with this name when this process ends. Call it before the broker is started.

    Returns:
        The file descriptor for holds().
    """
    # The writing end stays open until this process ends.
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "mqtool.broker.lifeline", name]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(command, stdin=reading, stdout=nowhere, stderr=nowhere, start_new_session=True)
    os.close(reading)
    return writing


def holds(writing: int, started: Started) -> None:
    """Say which broker was started, so that no later one with its name is stopped."""
    os.write(writing, f"{started.pid} {started.born}".encode())


def _stop(name: str, held: str) -> None:
    deadline = time.monotonic() + (0 if held else _PATIENCE)
    while (found := state.load(name)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if found is not None and held in ("", f"{found.pid} {found.born}"):
        starter_of(found).stop(found)


if __name__ == "__main__":
    _stop(sys.argv[1], sys.stdin.read())
