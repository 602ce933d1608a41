"""Stops a broker when the process that holds it in the foreground ends, even by kill -9.

`python -m mqtool.broker.lifeline NAME PID` reads a pipe that only that process writes to. When the pipe closes, it does
what `mqtool broker down` does.
"""

import os
import subprocess
import sys

from mqtool.broker.choice import starter_of
from mqtool.broker.state import Started, load


def stop_with_this_process(started: Started) -> None:
    """Stop the broker when this process ends."""
    # The writing end stays open until this process ends.
    reading, _ = os.pipe()
    command = [sys.executable, "-m", "mqtool.broker.lifeline", started.name, str(started.pid)]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(command, stdin=reading, stdout=nowhere, stderr=nowhere, start_new_session=True)
    os.close(reading)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    found = load(sys.argv[1])
    # Another broker may have that name by now.
    if found is not None and found.pid == int(sys.argv[2]):
        starter_of(found).stop(found)
