"""What the spectator sees: all terminals on one screen, each line behind the name of its terminal."""

import os
import sys
import threading

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.text import Text

from demo.failure import Failed

#: One for each terminal in turn: calm, and readable on light and dark.
STYLES = ("cyan", "magenta", "blue", "green", "yellow", "bright_black")
_EDGE = " │ "
#: Before what goes on from the line above.
_FURTHER = "    "
_NARROWEST = 20


class Screen:
    """Standard output, shared by the threads that read the terminals; colours only where a person looks."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every locale has a check mark
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._errors = Console(highlight=False, markup=False, emoji=False, stderr=True)
        self._lock = threading.Lock()
        self._reader_gone = False

    def heading(self, title: str, story: str) -> None:
        """The beginning of a demonstration."""
        self.blank()
        self._print(Rule(Text(title, "bold"), align="left", style="dim"))
        self._print(Text(story, "dim"))
        self.blank()

    def blank(self) -> None:
        self._print(Text())

    def note(self, text: str) -> None:
        """Something that no terminal said."""
        self._print(Text(text, "dim"))

    def typed(self, terminal: Text, command: str) -> None:
        """A command that a person types."""
        self._behind(terminal, Text(f"$ {command}", "bold"))

    def printed(self, terminal: Text, line: str) -> None:
        """A line that a command prints."""
        self._behind(terminal, Text(line))

    def right(self, what: str) -> None:
        """A check that has passed."""
        self._print(Text.assemble(("✓ ", "green"), what))

    def wrong(self, what: str) -> None:
        """Why we fail, for the person and for whoever keeps only the errors."""
        self._errors.print(Text.assemble(("✗ ", "bold red"), (what, "red")), soft_wrap=not self._errors.is_terminal)

    def table(self, table: RenderableType) -> None:
        self.blank()
        self._print(table)
        self.blank()

    def _behind(self, terminal: Text, line: Text) -> None:
        """A long line goes on under itself on a screen, and stays one line in a pipe or file."""
        pieces = [line]
        width = max(self._console.width - len(terminal) - len(_EDGE), _NARROWEST)
        if self._console.is_terminal and len(line) > width:
            first, *rest = line.wrap(self._console, width - len(_FURTHER))
            pieces = [first, *(Text.assemble(_FURTHER, piece) for piece in rest)]
        for piece in pieces:
            self._print(Text.assemble(terminal, (_EDGE, "dim"), piece))

    def _print(self, what: RenderableType) -> None:
        """Print; where nobody reads any more, the next to print from the main thread ends the demonstration.

        Raises:
            Failed: nobody reads what we print.
        """
        with self._lock:
            if not self._reader_gone:
                try:
                    piped_text = isinstance(what, Text) and not self._console.is_terminal
                    self._console.print(what, soft_wrap=piped_text)
                except (SystemExit, BrokenPipeError):  # rich makes the one of the other
                    self._reader_gone = True
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if self._reader_gone and threading.current_thread() is threading.main_thread():
            raise Failed("nobody reads the output any more")
