"""Ends what a play has started, should we be killed: nothing is left running, even after kill -9."""

import contextlib
import os
import signal


class Guard:
    """A small process that outlives us by an instant.

    It holds the other end of a pipe, which the system closes for us however we die, and then kills the process groups
    that it was told of. To be made before there are any threads, as it is forked.
    """

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        if os.fork() == 0:
            os.close(self._writing)
            try:
                _watch(reading)
            finally:
                os._exit(0)
        os.close(reading)

    def started(self, group: int) -> None:
        """A process group has begun."""
        self._tell(b"+%d\n" % group)

    def ended(self, group: int) -> None:
        """It has ended; its number may be somebody else's now."""
        self._tell(b"-%d\n" % group)

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._writing, line)


def _watch(reading: int) -> None:
    os.setsid()  # Ctrl-C is not for us
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # whoever reads our output must not wait for this process
        os.dup2(quiet, descriptor)
    groups: set[int] = set()
    rest = b""
    while data := os.read(reading, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
