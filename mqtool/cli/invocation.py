"""The state of one run of mqtool: its call, its output options, and the signal that asked it to stop, if any."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import typer


class Call(NamedTuple):
    """How a command was called. A field of this type in a group of options is set to the current call.

    Attributes:
        command: the command's name, such as "queue purge".
        typed: names of the parameters given on the command line, not by a default or the environment.
        must_ask: True if the command changes the broker and does not ask for confirmation itself.
        options: names of all parameters that the command accepts.
    """

    command: str = ""
    typed: frozenset[str] = frozenset()
    must_ask: bool = False
    options: Collection[str] = ()


#: The Call for options that do not come from a command line, for example in tests.
NOT_CALLED = Call()


class Invocation:
    """State shared within one run of mqtool. `app.run()` creates it; a test can create its own.

    Attributes:
        quiet: print no status lines, notices or warnings.
        verbose: print a line for each message.
        debug: show the traceback of an unexpected error; None if the command has no option for that.
        no_color: never use colours, not even on a terminal.
        signal: the number of the signal that asked the command to stop, if one did.
        signalled_at: when that signal arrived (`time.monotonic()`).
        time_limit: the command's time limit in seconds, which SIGALRM enforces; None if it has none.
        on_stop: functions that the first signal calls; if there are none, the signal raises KeyboardInterrupt.
        parsing: the context of the command whose arguments typer parsed last, for explaining a usage error.
        is_writing: True while the main thread writes to stdout, or waits until a pipe's reader has read the output.
        script_output: the descriptor that the lines of a dialect's script go to; None without --dialect.
        url_source: where the broker's URL comes from, such as "from MQTOOL_URL", if not from an option or a default.
        output_name: what error messages call standard output, such as the file given with `--output`.
    """

    def __init__(self, *, quiet: bool = False, output_name: str = "standard output") -> None:
        self.quiet = quiet
        self.verbose = self.no_color = False
        self.debug: bool | None = None
        self.signal: int | None = None
        self.signalled_at = 0.0
        self.time_limit: float | None = None
        self.on_stop: list[Callable[[], None]] = []
        self.parsing: typer.Context | None = None
        self.is_writing = False
        self.script_output: int | None = None
        self.url_source: str | None = None
        self.output_name = output_name


_current = [Invocation()]


def current() -> Invocation:
    """Return the state of the current run."""
    return _current[-1]


@contextmanager
def running(invocation: Invocation) -> Iterator[Invocation]:
    """Context manager: make this the state of the current run until the `with` block ends."""
    _current.append(invocation)
    try:
        yield invocation
    finally:
        _current.remove(invocation)
