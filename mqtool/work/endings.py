"""What a runner is asked to run, and what it tells of it."""

from typing import NamedTuple

#: sysexits.h: the input is bad.
EX_DATAERR = 65
#: The status that a shell, or env(1), gives to a command that it cannot run, or cannot find.
CANNOT_RUN, NOT_FOUND = 126, 127


class Ending(NamedTuple):
    """How a program ended.

    Attributes:
        status: its exit status; 128 + n if signal n ended it.
        stderr: the end of it.
        stdout: all of it, if it was to be captured.
        timed_out: the time limit in seconds, if we ended it for that.
        too_much: the most it might print, if we ended it for that.
    """

    status: int
    stderr: bytes = b""
    stdout: bytes = b""
    timed_out: float | None = None
    too_much: int | None = None

    @property
    def reason(self) -> str:
        """Why it counts as a failure, in one line."""
        if self.too_much is not None:
            return f"printed more than {self.too_much:,} bytes"
        if self.timed_out is not None:
            what = f"timed out after {self.timed_out:g} s"
        elif self.status > 128:
            what = f"ended by signal {self.status - 128}"
        else:
            what = f"exit status {self.status}"
        lines = [line.strip() for line in self.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"{what}: {lines[-1][:300]}" if lines else what


class Request(NamedTuple):
    """A program to run.

    Attributes:
        words: its arguments, its name first.
        environment: added to the runner's.
        body: its standard input.
        timeout: seconds after which its process group is killed; None for no limit.
        capture: keep its stdout, and kill it if that is more than this many bytes; None passes it to ours.
    """

    path: str
    words: list[bytes]
    environment: dict[bytes, bytes]
    body: bytes
    timeout: float | None
    capture: int | None


class Answer(NamedTuple):
    """What became of some requests.

    Attributes:
        endings: of the next ones, in order.
        given_back: how many will not be begun, all that are left: the one before them takes long, or cannot be run.
    """

    endings: list[Ending]
    given_back: int = 0
