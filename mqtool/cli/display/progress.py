"""A progress line on stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from mqtool.cli.display import ascii_terminal, output
from mqtool.cli.invocation import current
from mqtool.spelling import in_time

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Thing = TypeVar("Thing")

#: Seconds before progress is first shown, and seconds between two updates.
PATIENCE, _BETWEEN_UPDATES = 1.0, 0.1


class Progress:
    """Counts items, and shows the count on stderr if that is a terminal and the work takes longer than `patience`.

    A job in the background shows nothing, because it would overwrite what is typed or printed in the foreground.

    Args:
        done: the word after the count, such as "confirmed".
        is_wanted: False to count without showing anything.
        patience: seconds before the count is first shown.
        fraction: returns the fraction done so far, from 0 to 1; None if the total is unknown.
    """

    def __init__(
        self,
        done: str,
        *,
        is_wanted: bool = True,
        patience: float = PATIENCE,
        fraction: Callable[[], float] | None = None,
    ) -> None:
        self.count = 0
        self._done = done
        self._is_wanted = is_wanted and output.is_terminal(2) and not current().quiet
        self._fraction = fraction
        self._started = time.monotonic()
        self._due = self._started + patience
        self._bar: Bar | None = None

    def of(self, things: Iterable[Thing]) -> Iterable[Thing]:
        """Yield each item, and count it."""
        return self._counted(things) if self._is_wanted else things

    def _counted(self, things: Iterable[Thing]) -> Iterable[Thing]:
        for thing in things:
            self.count += 1
            if (now := time.monotonic()) >= self._due:
                self._due = now + _BETWEEN_UPDATES
                self._show()
            yield thing

    def show(self, count: int) -> None:
        """Show a new count."""
        self.count = count
        if self._is_wanted and (now := time.monotonic()) >= self._due:
            self._due = now + _BETWEEN_UPDATES
            self._show()

    @property
    def sum(self) -> str:
        """The count, the time and the rate, as text."""
        seconds = time.monotonic() - self._started
        return f"{self.count:,} {self._done} in {in_time(self.count, seconds)}"

    def stop(self) -> None:
        """Remove the line from the terminal."""
        if self._bar is not None:
            with suppress(OSError):  # the terminal was closed; what the command does matters more
                self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        if not self._is_wanted or output.is_in_background():
            self.stop()
            return
        if self._bar is None:
            try:
                self._bar = self._opened()
            except OSError:  # the terminal was closed
                self._is_wanted = False
                return
        if self._fraction is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._fraction())

    def _opened(self) -> "Bar":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TaskProgressColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar
        from rich.text import Text

        progress = self

        class Sum(ProgressColumn):
            def render(self, task: Task) -> Text:  # noqa: ARG002
                return Text(progress.sum)

        known = self._fraction is not None
        columns = (
            [BarColumn(20), TaskProgressColumn(), TimeRemainingColumn()]
            if known
            else [SpinnerColumn("line" if ascii_terminal.is_ascii(sys.stderr) else "dots")]
        )
        bar = Bar(*columns, Sum(), console=Console(stderr=True), transient=True)
        bar.add_task("", total=1.0 if known else None)
        bar.start()
        return bar


class _Working(Progress):
    @property
    def sum(self) -> str:
        return f"{self._done} … {time.monotonic() - self._started:.0f} s"


@contextmanager
def working(what: str) -> Iterator[None]:
    """Context manager: if work takes more than a second, show on a terminal what it is, and the seconds so far."""
    progress = _Working(what)
    timer = threading.Timer(PATIENCE, progress.show, (0,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        progress.stop()
