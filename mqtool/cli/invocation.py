"""One run of mqtool: what it may print, and which signal asked it to stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Invocation:
    """What the parts of one run share. `app.run()` makes it; a test can make its own.

    Attributes:
        quiet: print no status lines, notices or warnings.
        verbose: print a line for each message.
        debug: show the traceback of an unexpected error.
        no_color: never use colours, not even on a terminal.
        signal: the number of the signal that asked the command to stop, if one did.
        on_stop: functions that the first signal calls; without any, it raises KeyboardInterrupt.
        is_writing: True while the main thread writes to stdout, or waits until the reader of a pipe has taken it.
        output_name: what standard output is called in errors, such as the file of `--output`.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    no_color: bool = False
    signal: int | None = None
    on_stop: list[Callable[[], None]] = field(default_factory=list)
    is_writing: bool = False
    output_name: str = "standard output"


_current = [Invocation()]


def current() -> Invocation:
    """The run that the process is in."""
    return _current[-1]


@contextmanager
def running(invocation: Invocation) -> Iterator[Invocation]:
    """Make this the current run within the block."""
    _current.append(invocation)
    try:
        yield invocation
    finally:
        _current.remove(invocation)
