"""Stops a broker when its `mqtool broker up --foreground` process, or its drill, ends, even with kill -9.

`python -m mqtool.broker.lifeline NAME` reads a pipe whose only writer is that process. When the pipe closes, it stops
the broker as `mqtool broker down` does. Not needed for `broker up --foreground --kind embedded`, where the broker runs
in that process itself.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mqtool.broker import state
from mqtool.broker.choice import starter_of
from mqtool.broker.state import Started

#: How many seconds to wait for the broker's state file if the process was killed while it was starting the broker.
_PATIENCE = 5.0


def stop_with_this_process(name: str, *options: str) -> int:
    """Start a process that stops the broker `name` when this process ends. Returns a descriptor to pass to holds()."""
    # The write end of the pipe stays open until this process ends.
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "mqtool.broker.lifeline", name, *options]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(command, stdin=reading, stdout=nowhere, stderr=nowhere, start_new_session=True)
    os.close(reading)
    return writing


def holds(writing: int, started: Started) -> None:
    """Tell the process at the other end of the pipe to stop exactly this broker, not a later one with the same name."""
    os.write(writing, f"{started.pid} {started.born}".encode())


@contextmanager
def discarding_with_this_process(name: str) -> Iterator[None]:
    """If this process is killed within the block, stop and discard the broker `name`."""
    writing = stop_with_this_process(name, "--discard")
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            os.write(writing, b"done")
        os.close(writing)


def _stop(name: str, held: str, *, discards: bool) -> None:
    deadline = time.monotonic() + (0 if held else _PATIENCE)
    while state.load(name) is None:
        if time.monotonic() >= deadline:
            return
        time.sleep(0.05)
    with state.locked(name):
        found = state.load(name)
        if found is not None and held in ("", f"{found.pid} {found.born}"):
            starter_of(found).stop(found)
            if discards:
                starter_of(found).discard(found)


if __name__ == "__main__":
    _stop(sys.argv[1], sys.stdin.read(), discards="--discard" in sys.argv)
