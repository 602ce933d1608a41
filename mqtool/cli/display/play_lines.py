"""A play shown line by line: each line after the name of its terminal."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import RenderableType
from rich.rule import Rule
from rich.text import Text

from mqtool.cli.display import output
from mqtool.cli.display.charts import chart, figures
from mqtool.cli.display.pace import Pace
from mqtool.cli.display.tables import terminal
from mqtool.stage.audience import Chart

#: One for each terminal in turn, readable on light and dark backgrounds.
STYLES = ("cyan", "magenta", "green", "blue", "yellow", "bright_black")
_EDGE = " │ "
#: Before the rest of a long line.
_FURTHER = "    "
_NARROWEST = 20
#: While something is measured, lines come by the dozen: show this many of each command.
_FIRST_FEW = 3
_CHART_WIDTH, _CHART_HEIGHT = 64, 4


class Lines:
    """Standard output, shared by the threads that read the terminals; in colour only on a terminal.

    Args:
        aside: print on stderr instead, where it does not matter if anybody reads it.
        quiet: print nothing.
    """

    def __init__(self, pace: Pace, *, aside: bool = False, quiet: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every locale has a check mark
        self._pace = pace
        self._console = terminal(on_stderr=aside, quiet=quiet)
        self._stream = sys.stderr if aside else sys.stdout
        self._must_be_read = not aside
        self._lock = threading.Lock()
        self._reader_gone = False
        self._labels: dict[str, Text] = {}
        self._shown: dict[str, int] = {}
        self._measuring = False

    @contextmanager
    def watching(self, title: str, story: str, position: tuple[int, int] = (1, 1)) -> Iterator[None]:
        """Show a play within the block."""
        number, count = position
        self.blank()
        self._print(Rule(Text(f"{title}  {number}/{count}" if count > 1 else title, "bold"), align="left", style="dim"))
        self._print(Text(story, "dim"))
        with self._pace.listening():
            yield

    def ended(self, next_step: str) -> None:
        """A play has ended well: say what to do next."""
        self.blank()
        self.note(next_step)

    # The audience; see stage/audience.py.

    def opened(self, names: Sequence[str]) -> None:
        width = max(map(len, names))
        self._labels = {name: Text(name.ljust(width), STYLES[i % len(STYLES)]) for i, name in enumerate(names)}

    def typed(self, terminal: str, command: str) -> None:
        self._shown[terminal] = 0
        self._behind(terminal, Text(f"$ {command}", "bold"))

    def printed(self, terminal: str, line: str) -> None:
        self._shown[terminal] = shown = self._shown.get(terminal, 0) + 1
        if not self._measuring or shown <= _FIRST_FEW or line == "^C":
            self._behind(terminal, Text(line))
        elif shown == _FIRST_FEW + 1:
            self._behind(terminal, Text("…"))

    def say(self, text: str) -> None:
        self._pace.forget_keys()
        self.blank()
        self._print(Text(text, "italic"))
        if self._pace.asks:
            self.note("Enter: continue · q: quit")
        self._pace.wait(text)

    def right(self, what: str) -> None:
        self._print(Text.assemble(("✓ ", "green"), what))

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        """Show charts when they are complete."""
        self._measuring = not over
        if not over:
            return
        for each in charts:
            self.blank()
            _, greatest = figures(each)
            self._print(Text(f"  {each.title}, at most {greatest}", "bold"))
            for row in chart(each.values, min(_CHART_WIDTH, self._console.width - 4), _CHART_HEIGHT):
                self._print(Text(f"  {row}", "cyan"))
        self.blank()

    # What is not from a terminal.

    def blank(self) -> None:
        """An empty line."""
        self._print(Text())

    def note(self, text: str) -> None:
        """A note that is not from a terminal."""
        self._print(Text(text, "dim"))

    def table(self, table: RenderableType) -> None:
        """Anything that rich can show."""
        self.blank()
        self._print(table)
        self.blank()

    def _behind(self, terminal: str, line: Text) -> None:
        """Print a line after its terminal's name, wrapped on a screen, but not in a pipe or file."""
        label = self._labels.get(terminal) or Text(terminal)
        pieces = [line]
        width = max(self._console.width - len(label) - len(_EDGE), _NARROWEST)
        if self._console.is_terminal and len(line) > width:
            first, *rest = line.wrap(self._console, width - len(_FURTHER))
            pieces = [first, *(Text.assemble(_FURTHER, piece) for piece in rest)]
        for piece in pieces:
            self._print(Text.assemble(label, (_EDGE, "dim"), piece))

    def _print(self, what: RenderableType) -> None:
        """Print; if nobody reads the output, end the play from the main thread.

        Raises:
            ReaderGone: nobody reads the output.
        """
        with self._lock:
            if not self._reader_gone:
                try:
                    piped_text = isinstance(what, Text) and not self._console.is_terminal
                    self._console.print(what, soft_wrap=piped_text)
                except (SystemExit, BrokenPipeError):  # rich turns one into the other
                    self._reader_gone = True
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if self._reader_gone and self._must_be_read and threading.current_thread() is threading.main_thread():
            raise output.ReaderGone("nobody reads the output")
