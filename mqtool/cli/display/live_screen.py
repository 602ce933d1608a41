"""Live views: a picture that is drawn anew, scrolled and searched with the same keys everywhere; and progress."""

import os
import re
import select
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mqtool.cli import stopping
from mqtool.cli.display import layout, output
from mqtool.cli.invocation import current

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bar
    from rich.text import Text

_QUIT = ("q", "\x1b", "\x04")
#: One key; ECMA-48's control sequences are those of arrows and the like.
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_ENTER, _ERASE = ("\r", "\n"), ("\x7f", "\x08")
#: Lines, or pages where that is a float, to go down.
_MOVES = {"\x1b[A": -1, "\x1bOA": -1, "\x1b[B": 1, "\x1bOB": 1, "\x1b[5~": -1.0, "\x1b[6~": 1.0}
#: Lines, where there is nothing to scroll.
_ALL = 1000
_KEYS = "↑↓ scroll  / filter  q quit"


@dataclass(frozen=True, slots=True)
class Frame:
    """What there is to see.

    Attributes:
        above: stays on top.
        body: scrolls, but for its first `heads` lines.
        beyond: how many lines there are after the body's.
        keys: the view's own.
    """

    body: "RenderableType"
    above: Sequence["Text"] = ()
    heads: int = 0
    beyond: int = 0
    keys: str = ""


class Live:
    """Shows frames until somebody wants no more.

    Args:
        frame: makes one, given how many lines will be seen, and a text that they must have.
        interval: seconds between two.
        press: is told of keys that are not ours.
    """

    def __init__(
        self, frame: Callable[[int, str], Frame], interval: float, press: Callable[[str], None] = lambda _: None
    ) -> None:
        self._frame = frame
        self._interval = interval
        self._press = press
        self._top = 0
        self._filter = ""
        self._is_typing = False
        self._page = 1

    def run(self) -> None:
        """Show them in place; on a terminal that cannot do that, one after the other."""
        from rich.live import Live as Screen

        console, stop = layout.terminal(), threading.Event()
        with stopping.calling(stop.set):
            if os.environ.get("TERM") == "dumb":
                while not stop.is_set():
                    layout.draw(self._frame(_ALL, "").body)
                    stop.wait(self._interval)
                return
            keys = single_keys() if output.is_terminal(0) else nullcontext()
            with keys, Screen(console=console, screen=True, auto_refresh=False) as screen:
                while not stop.is_set():
                    screen.update(self._picture(console), refresh=True)
                    if self._heed(_keys_within(self._interval, stop)):
                        return

    def _heed(self, keys: str) -> bool:
        """Do what keys say; return whether that is to end."""
        for key in _KEY.findall(keys):
            if self._is_typing:
                self._type(key)
            elif key in _QUIT:
                return True
            elif key == "/":
                self._is_typing, self._filter, self._top = True, "", 0
            elif key in _MOVES:
                move = _MOVES[key]
                self._top = max(0, self._top + (round(move * self._page) if isinstance(move, float) else move))
            else:
                self._press(key)
        return False

    def _type(self, key: str) -> None:
        if key in _ENTER:
            self._is_typing = False
        elif key.startswith("\x1b"):
            self._is_typing, self._filter = False, ""
        else:
            self._filter = self._filter[:-1] if key in _ERASE else self._filter + key

    def _picture(self, console: "Console") -> "RenderableType":
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.text import Text

        frame = self._frame(self._top + console.height, self._filter)
        lines = console.render_lines(frame.body, pad=False)
        heads, rows = lines[: frame.heads], lines[frame.heads :]
        self._page = max(1, console.height - len(frame.above) - len(heads) - 1)
        self._top = max(0, min(self._top, len(rows) - self._page))
        seen = rows[self._top : self._top + self._page]
        more = len(rows) - self._top - len(seen) + frame.beyond
        parts = [f"+{more:,} more"] if more else []
        parts += [f"/{self._filter}{'_' * self._is_typing}"] if self._filter or self._is_typing else []
        shown = Segments([segment for line in [*heads, *seen] for segment in [*line, Segment.line()]])
        below = Text("  ".join([*parts, _KEYS, frame.keys]), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(*frame.above, shown, below)


def _keys_within(seconds: float, stop: threading.Event) -> str:
    """The keys that were pressed, as soon as there are some; none when the time is over, or stop is set."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        if not output.is_terminal(0):
            stop.wait(left)
        elif select.select([0], [], [], min(left, 0.1))[0]:
            return os.read(0, 64).decode(errors="replace") or "q"  # or the terminal has gone
    return ""


@contextmanager
def single_keys() -> Iterator[None]:
    """Within the block, keys come one by one from the terminal at stdin, and are not shown."""
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)


Thing = TypeVar("Thing")

#: Seconds after which a person may wonder what is going on, and between two updates.
PATIENCE, _BETWEEN_UPDATES = 1.0, 0.1


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
        self._is_wanted = is_wanted and output.is_terminal(2) and not current().quiet
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
                self._due = now + _BETWEEN_UPDATES
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
