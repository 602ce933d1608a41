"""Ends what a play has started if we are killed, even by kill -9."""

import contextlib
import os
import signal


class Guard:
    """A small process that outlives us by an instant.

    It reads a pipe from us. When we end, the system closes the pipe, and the guard kills the process groups that we
    have named. Make it before any threads start, as it is forked.
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
        """A process group has started."""
        self._tell(b"+%d\n" % group)

    def ended(self, group: int) -> None:
        """A process group has ended; another one may get its number."""
        self._tell(b"-%d\n" % group)

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard was killed
            os.write(self._writing, line)


def _watch(reading: int) -> None:
    os.setsid()  # out of reach of Ctrl-C
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # whoever reads our output must not wait for the guard
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
