"""How far long work has come: a line on stderr, for whoever looks at a terminal."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from mqtool.cli.display import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Thing = TypeVar("Thing")

#: Seconds after which a person may wonder what is going on, and between two updates.
PATIENCE, _PAUSE = 1.0, 0.1


class Progress:
    """Counts, and shows it on a terminal.

    Args:
        done: the word for what is counted, such as "confirmed".
        is_wanted: whether a person would miss it.
        patience: seconds to stay silent.
        fraction: how much of all is done, from 0 to 1; None if nobody knows.
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
        self._is_wanted = is_wanted and output.is_terminal(2) and not output.quiet
        self._fraction = fraction
        self._started = time.monotonic()
        self._due = self._started + patience
        self._bar: Bar | None = None

    def of(self, things: Iterable[Thing]) -> Iterable[Thing]:
        """The same, counted as they are asked for."""
        return self._counted(things) if self._is_wanted else things

    def _counted(self, things: Iterable[Thing]) -> Iterable[Thing]:
        for thing in things:
            self.count += 1
            if (now := time.monotonic()) >= self._due:
                self._due = now + _PAUSE
                self._show()
            yield thing

    @property
    def sum(self) -> str:
        """What was counted, in how long."""
        seconds = time.monotonic() - self._started
        return f"{self.count:,} {self._done} in {seconds:.1f} s ({self.count / max(seconds, 0.001):,.0f}/s)"

    def stop(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        if self._bar is None:
            self._bar = self._opened()
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
        columns = [BarColumn(20), TaskProgressColumn(), TimeRemainingColumn()] if known else [SpinnerColumn()]
        bar = Bar(*columns, Sum(), console=Console(stderr=True), transient=True)
        bar.add_task("", total=1.0 if known else None)
        bar.start()
        return bar
