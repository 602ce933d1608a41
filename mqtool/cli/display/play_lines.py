"""Prints tutorials line by line: explanations and the output of commands, at the reader's pace, and charts."""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer
from pygments.token import Comment, Keyword, Name, Number, String
from rich.console import RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.text import Text

from mqtool.cli.display import output
from mqtool.cli.display.layout import terminal
from mqtool.cli.display.live_screen import single_keys
from mqtool.spelling import pasteable
from mqtool.stage.terminal import Chart, QueueDepth
from mqtool.tutorials.pages import Page

if TYPE_CHECKING:
    from mqtool.management import Management

_BLOCKS = " ▁▂▃▄▅▆▇█"


def chart(values: Sequence[float], width: int, height: int) -> list[str]:
    """Draw a bar chart; return its rows from top to bottom. A column for several values shows the largest one."""
    greatest = max(values, default=0.0)
    # Keep even small values visible.
    eighths = [max(1, round(value / greatest * height * 8)) if value > 0 else 0 for value in _fitted(values, width)]
    return ["".join(_BLOCKS[min(8, max(0, eighth - 8 * row))] for eighth in eighths) for row in reversed(range(height))]


def figures(measured: Chart) -> tuple[str, str]:
    """Return the latest and the largest value as text, with the unit."""
    return _said(measured.values[-1:], measured.unit), _said(measured.values, measured.unit)


def _fitted(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [len(values) * column // width for column in range(width + 1)]
    return [max(values[start:end]) for start, end in pairwise(edges)]


def _said(values: Sequence[float], unit: str) -> str:
    value = max(values, default=0.0)
    number = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:,.1f}"
    return f"{number} {unit}".strip()


#: Reading speed in characters per second, which leaves time to look at the terminals.
_READ_PER_SECOND = 22.0
_SHORTEST = 1.5
_ENOUGH = (b"\n", b"\r", b" ")
#: Between two keys of a word, in seconds, somebody who types it rarely waits longer.
_TYPING = 0.4


class TypingPace:
    """Waits between the steps of a play, for Enter or until a text can be read. Raises Exit if the user quits."""

    def __init__(self, *, auto: bool, watched: bool | None = None) -> None:
        self._watched = output.is_terminal(1) if watched is None else watched
        self.asks = not auto and self._watched and output.is_terminal(0)
        self._keys = self._watched and output.is_terminal(0)

    def forget_keys(self) -> None:
        """Discard the keys pressed so far. Called before text is shown."""
        while self.key(0):
            pass

    def wait(self, text: str) -> None:
        """Wait for Enter or, if the play does not ask the user, for the time it takes to read the text."""
        if not self._watched:
            return
        limit = None if self.asks else time.monotonic() + max(_SHORTEST, len(text) / _READ_PER_SECOND)
        while limit is None or limit > time.monotonic():
            rest = None if limit is None else max(0.0, limit - time.monotonic())
            if not self._keys:
                time.sleep(rest or 0.0)
            elif self.key(rest) in _ENOUGH or not self._keys:
                return

    def key(self, seconds: float | None) -> bytes:
        """Wait up to this many seconds for a key press; return b"" if there is none. Raises Exit on q."""
        if not self._keys or not select.select([0], [], [], seconds)[0]:
            return b""
        key = os.read(0, 1)
        if not key:  # end of input
            self.asks = self._keys = False
        if key in (b"q", b"Q"):
            raise typer.Exit
        return key

    def lone_key(self) -> bytes:
        """Return the key that was pressed; b"" if there was none, or if others were pressed right before or after it.

        A command that is typed or pasted into the wrong terminal is thus ignored. Does not raise Exit on q.
        """
        pressed = set[bytes]()
        while self._keys and select.select([0], [], [], _TYPING if pressed else 0)[0]:
            keys = os.read(0, 1024)
            if not keys:  # end of input
                self.asks = self._keys = False
            pressed |= {keys[number : number + 1] for number in range(len(keys))}
        return pressed.pop() if len(pressed) == 1 else b""

    def listening(self) -> AbstractContextManager[None]:
        """Return a context manager that reads single keys without echoing them."""
        return single_keys() if self._keys else nullcontext()


def address_to_tell(environment: Mapping[str, str] | None, pace: TypingPace) -> str:
    """Return the address of a play's own broker, with which the user can connect from other terminals.

    Returns "" if the play has no broker of its own, or does not wait for Enter, so that its broker ends too soon.
    """
    if environment is None or not pace.asks:
        return ""
    return f"amqp://127.0.0.1:{urlsplit(environment['MQTOOL_URL']).port}"


#: Colours of the terminals in turn, readable on light and dark backgrounds.
STYLES = ("cyan", "magenta", "green", "blue", "yellow", "bright_black")
_EDGE = " │ "
#: Indent of the continuation lines of a long line.
_FURTHER = "    "
_NARROWEST = 20
#: During a measurement, show only this many lines of each command.
_FIRST_FEW = 3
_CHART_WIDTH, _CHART_HEIGHT = 64, 4


class PlayLines:
    """Shows a play or drill line by line. The terminals call its methods from their own threads."""

    def __init__(self, pace: TypingPace, *, aside: bool = False, quiet: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream.errors == "strict":
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every locale has a check mark
        self._pace = pace
        self._console = terminal(on_stderr=aside, quiet=quiet)
        self._stream = sys.stderr if aside else sys.stdout
        self._must_be_read = not aside
        self._lock = threading.RLock()
        self._reader_gone = False
        self._labels: dict[str, Text] = {}
        self._shown: dict[str, int] = {}
        self._measuring = False
        self._first: str | None = None
        self._held: list[tuple[str, Text]] = []

    @contextmanager
    def watching(self, title: str, story: str, position: tuple[int, int] = (1, 1)) -> Iterator[None]:
        """Context manager: show a play until the `with` block ends."""
        number, count = position
        self.blank()
        self._print(Rule(Text(f"{title}  {number}/{count}" if count > 1 else title, "bold"), align="left", style="dim"))
        self._print(Text(story, "dim"))
        with self._pace.listening():
            yield

    def ended(self, next_step: str) -> None:
        """Print what to do next, after all checks of a play have passed."""
        self.blank()
        self.note(next_step)

    # The methods of an Audience.

    def on_broker(
        self, find: "Callable[[], Management] | None", environment: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        """Print the address of the play's own broker, unless the play does not wait for the user."""
        del find
        if address := address_to_tell(environment, self._pace):
            look = pasteable("list queues --url=", address)
            self.note(
                f"While this tutorial runs, its broker is at {address}\nTo see its queues from another terminal: {look}"
            )
        return nullcontext()

    def opened(self, names: Sequence[str]) -> None:
        width = max(map(len, names))
        self._labels = {name: Text(name.ljust(width), STYLES[i % len(STYLES)]) for i, name in enumerate(names)}

    def typed(self, terminal: str, command: str) -> None:
        self._shown[terminal] = 0
        self._behind(terminal, Text(f"$ {command}", "bold"))

    def put_first(self, terminal: str | None) -> None:
        with self._lock:
            self._first = terminal
            held, self._held = self._held, []
            for each, line in held:
                self._show_behind(each, line)

    def printed(self, terminal: str, line: str) -> None:
        self._shown[terminal] = shown = self._shown.get(terminal, 0) + 1
        if not self._measuring or shown <= _FIRST_FEW or line == "^C":
            self._behind(terminal, Text(output.visible(line)))
        elif shown == _FIRST_FEW + 1:
            self._behind(terminal, Text("…"))

    def finished(self, terminal: str) -> None:
        """Print nothing."""

    def counted(self, queues: Sequence[QueueDepth]) -> None:
        """Print nothing: message counts change too often to print a line for each change."""

    def say(self, text: str, question: str = "") -> None:
        self._pace.forget_keys()
        self.blank()
        self._print(Text(text, "italic"))
        if question:
            self._print(Text.assemble(("What will happen? ", "bold"), (question, "italic")))
        if self._pace.asks:
            self.note("Enter: continue · q: quit")
        self._pace.wait(text + question)

    def answered(self, answer: str) -> None:
        self._print(Text.assemble(("Answer: ", "bold"), answer))

    def right(self, what: str) -> None:
        self._print(Text.assemble(("✓ ", "green"), what))

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        """Print the charts once the measurement is over."""
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

    # Lines that belong to no terminal.

    def blank(self) -> None:
        """Print an empty line."""
        self._print(Text())

    def note(self, text: str) -> None:
        """Print a note. Commands in it are never broken, so that they can be copied."""
        if self._console.is_terminal:
            width = self._console.width
            lines = [each if each.startswith("  ") else output.broken(each, 0, width) for each in text.split("\n")]
            text = "\n".join(lines)
        self._print(Text(text, "dim"), is_broken=True)

    def goal(self, text: str) -> None:
        """Print the goal that the learner has to reach."""
        self._print(Text(text, "bold"))

    def table(self, table: RenderableType) -> None:
        """Print a rich renderable."""
        self.blank()
        self._print(table)
        self.blank()

    def _behind(self, terminal: str, line: Text) -> None:
        with self._lock:
            if self._first in (None, terminal):
                self._show_behind(terminal, line)
            else:
                self._held.append((terminal, line))

    def _show_behind(self, terminal: str, line: Text) -> None:
        label = self._labels.get(terminal) or Text(terminal)
        pieces = [line]
        width = max(self._console.width - len(label) - len(_EDGE), _NARROWEST)
        if self._console.is_terminal and len(line) > width:
            first, *rest = line.wrap(self._console, width - len(_FURTHER))
            pieces = [first, *(Text.assemble(_FURTHER, piece) for piece in rest)]
        for piece in pieces:
            self._print(Text.assemble(label, (_EDGE, "dim"), piece))

    def _print(self, what: RenderableType, *, is_broken: bool = False) -> None:
        """Print a renderable. If nobody reads stdout any more, the next call from the main thread raises ReaderGone.

        Args:
            is_broken: True for a text that is already broken into lines.
        """
        with self._lock:
            if not self._reader_gone:
                try:
                    piped_text = isinstance(what, Text) and not self._console.is_terminal
                    self._console.print(what, soft_wrap=piped_text or is_broken)
                except (SystemExit, BrokenPipeError):  # rich turns BrokenPipeError into SystemExit
                    self._reader_gone = True
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if self._reader_gone and self._must_be_read and threading.current_thread() is threading.main_thread():
            raise output.ReaderGone("nobody reads the output")


#: Lines longer than this are hard to read.
_PAGE_WIDTH = 100


def show_page(page: Page) -> None:
    """Print a tutorial's page: its diagram, explanation, commands and source."""
    if not output.is_terminal(1):
        output.show(_as_text(page))
        return
    screen = terminal()
    screen.width = min(screen.width, _PAGE_WIDTH)
    screen.print(Rule(Text(page.title, "bold"), align="left", style="dim"))
    screen.print(Text(page.summary[0].upper() + page.summary[1:] + "\n"))
    screen.print(Text(page.picture + "\n", "cyan"), no_wrap=True, crop=True)
    for paragraph in page.story:
        screen.print(Text(paragraph + "\n"))
    screen.print(Rule(Text("Type this", "bold"), align="left", style="dim"))
    width = max(len(name) for name, _ in page.terminals)
    for name, command in page.terminals:
        line = Text.assemble((name.ljust(width), "cyan"), "   ", (f"$ {command}", "bold"))
        screen.print(Padding(line, (0, 0, 0, 4)))
    screen.print(Padding(Text(f"\n{_more(page)}", "dim"), (0, 0, 1, 4)))
    screen.print(Rule(Text(page.file, "bold"), align="left", style="dim"))
    screen.print(_highlighted(page.source), soft_wrap=True)
    screen.print(Text(f"\n{page.link}", "dim"))


def show_source(source: str) -> None:
    """Print a program, in colour if stdout is a terminal."""
    if not output.is_terminal(1):
        output.write(source.encode())
        return
    # Do not add line breaks, so that a program copied from the screen runs.
    terminal().print(_highlighted(source), soft_wrap=True, end="")


def _highlighted(source: str) -> "Text":
    # Only colours of the terminal's own palette that are readable on both black and white.
    theme = ANSISyntaxTheme(
        {
            Comment: Style(dim=True),
            Keyword: Style(color="magenta"),
            Name.Class: Style(color="cyan", bold=True),
            Name.Function: Style(color="cyan", bold=True),
            Number: Style(color="cyan"),
            String: Style(color="green"),
        }
    )
    return Syntax(source, "python", theme=theme, background_color="default").highlight(source)


def _more(page: Page) -> str:
    return (
        f"Run each command in its own terminal; 'mqtool broker up' starts a broker. 'mqtool tutorial run {page.name}' "
        f"plays the tutorial here, and 'mqtool tutorial show {page.name} --plain' prints a script that does the same "
        f"with only {page.library}, on the broker that AMQP_URL names."
    )


def _as_text(page: Page) -> str:
    width = max(len(name) for name, _ in page.terminals)
    commands = "\n".join(f"    {name.ljust(width)}   $ {command}" for name, command in page.terminals)
    parts = [f"{page.title}: {page.summary}", page.picture, *page.story, commands, f"# {page.file}", page.source]
    return "\n\n".join([*parts, page.link])
