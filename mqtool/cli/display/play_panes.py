"""Shows a play in panes: terminals side by side, charts below them, and an explanation at the bottom."""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from mqtool.cli.display import output
from mqtool.cli.display.layout import shortened, terminal
from mqtool.cli.display.play_lines import STYLES, TypingPace, address_to_tell, chart, figures
from mqtool.stage.terminal import Chart, QueueDepth, SeparateTerminals

if TYPE_CHECKING:
    from rich.console import Console

    from mqtool.management import Management

#: The smallest screen on which panes are used.
SMALLEST = ConsoleDimensions(width=76, height=22)
#: Preferred width of a pane, at which most commands fit on two lines.
_PANE_WIDTH = 38
#: Minimum height of a pane: a line and two borders.
_PANE_HEIGHT = 3
_KEPT = 200
#: Width of the column of queues between two adjacent panes.
_QUEUES_WIDTH = 15
_COMMAND = "bold"
_CHARTS_HEIGHT = 7
_FRAMES_PER_SECOND = 10


class Panes(SeparateTerminals):
    """Shows a play in panes, on the terminal's alternate screen."""

    def __init__(self, pace: TypingPace, screen: "Console | None" = None) -> None:
        self._pace = pace
        self._console = screen or terminal()
        self._lock = threading.RLock()
        self.begin("")

    def begin(self, title: str, position: tuple[int, int] = (1, 1)) -> None:
        """Start with an empty screen."""
        self._title, self._position, self._address = title, position, ""
        self._panes: dict[str, deque[Text]] = {}
        self._narration = ""
        self._answer = ""
        self._checks: list[str] = []
        self._all_checks: list[str] = []
        self._charts: Sequence[Chart] = ()
        self._queues: Sequence[QueueDepth] = ()
        self._waiting = False
        self._footer_height = 0
        self._size = self._console.size

    @contextmanager
    def watching(self, title: str, story: str, position: tuple[int, int] = (1, 1)) -> Iterator[None]:
        """Context manager: show a play until the `with` block ends."""
        with self._lock:
            self.begin(title, position)
            self._narration = story
        before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # after Ctrl-Z, the shell would use the alternate screen
        live = Live(
            get_renderable=self.picture, console=self._console, screen=True, refresh_per_second=_FRAMES_PER_SECOND
        )
        try:
            with self._pace.listening(), live:
                yield
                number, count = position
                self.say(f"That was {title}." + (" The next tutorial follows." if number < count else ""))
        finally:
            signal.signal(signal.SIGTSTP, before)

    def ended(self, next_step: str) -> None:
        """Print the checks and what to do next on the normal screen."""
        self._console.print(Rule(Text(self._title, "bold"), align="left", style="dim"))
        for check in self._all_checks:
            self._console.print(Text.assemble(("✓ ", "green"), check))
        self._console.print(Text(next_step + "\n", "dim"))

    # The methods of an Audience.

    def on_broker(
        self, find: "Callable[[], Management] | None", environment: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        """Show the address of the play's own broker, unless the play does not wait for the user."""
        del find
        with self._lock:
            self._address = address_to_tell(environment, self._pace)
        return nullcontext()

    def opened(self, names: Sequence[str]) -> None:
        with self._lock:
            self._panes = {name: deque(maxlen=_KEPT) for name in names}
            self._charts = self._queues = ()

    def typed(self, terminal: str, command: str) -> None:
        self._add(terminal, Text(f"$ {command}", _COMMAND))

    def printed(self, terminal: str, line: str) -> None:
        self._add(terminal, Text(output.visible(line)))

    def counted(self, queues: Sequence[QueueDepth]) -> None:
        with self._lock:
            self._queues = queues

    def _add(self, terminal: str, line: Text) -> None:
        with self._lock:
            if terminal in self._panes:  # a terminal of an earlier scene may still print
                self._panes[terminal].append(line)

    def narrate(self, text: str) -> None:
        """Show an explanation below the checks."""
        with self._lock:
            self._narration, self._waiting = text, True

    def say(self, text: str, question: str = "") -> None:
        self._pace.forget_keys()
        shown = f"{text}\nWhat will happen? {question}" if question else text
        self.narrate(shown)
        self._pace.wait(" ".join([self._answer, *self._checks, shown]))
        with self._lock:
            self._answer, self._checks, self._waiting = "", [], False

    def answered(self, answer: str) -> None:
        with self._lock:
            self._answer = f"Answer: {answer}"

    def right(self, what: str) -> None:
        with self._lock:
            self._checks.append(what)
            self._all_checks.append(what)

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        del over
        with self._lock:
            self._charts = charts

    # Drawing the screen.

    def picture(self) -> RenderableType:
        """Draw the whole screen."""
        with self._lock:
            width, height = self._console.size
            if self._size != self._console.size:
                self._size, self._footer_height = self._console.size, 0
            footer = self._footer(width - 2)
            self._footer_height = max(self._footer_height, min(len(footer), height // 2))
            rows = self._rows(width)
            room = height - 1 - self._footer_height
            has_charts = bool(self._charts) and room >= _CHARTS_HEIGHT + _PANE_HEIGHT * len(rows)
            if room < _PANE_HEIGHT * len(rows):  # the terminal is now very small
                return Group(*footer[:height])
            terminals_height = room - _CHARTS_HEIGHT * has_charts
            parts = [
                Layout(_header(self._title, self._position, self._address), size=1),
                Layout(self._terminals(rows, width, terminals_height)),
            ]
            if has_charts:
                parts.append(Layout(_drawn_charts(self._charts, width), size=_CHARTS_HEIGHT))
            parts.append(Layout(Group(*footer), size=self._footer_height))
            layout = Layout()
            layout.split_column(*parts)
            return layout

    def _footer(self, width: int) -> list[Text]:
        checks = [Text.assemble(("✓ ", "green"), check) for check in self._checks]
        narration = Text(self._narration, "" if self._waiting else "dim")
        keys = "Enter: continue · q: quit" if self._pace.asks else "Enter: skip ahead · q: quit"
        answer = [Text(self._answer)] * bool(self._answer)
        texts = [*answer, *checks, narration, Text(keys if self._waiting else "…", "dim")]
        return [Text(" ") + line for text in texts for line in _wrapped(text, self._console, width)]

    def _rows(self, width: int) -> list[list[str]]:
        names = list(self._panes)
        columns = max(1, min(len(names), width // _PANE_WIDTH))
        # If the panes do not fill all rows, the first row, with the main terminal, contains fewer of them.
        first = len(names) % columns or columns
        return [names[:first], *(names[i : i + columns] for i in range(first, len(names), columns))] if names else []

    def _terminals(self, rows: list[list[str]], width: int, height: int) -> RenderableType:
        if not rows:
            return Text(" ")  # an empty text would be drawn as a placeholder
        if not self._queues or len(self._panes) == 1:
            parts = self._drawn_rows(rows, width, height)
        elif len(rows) == 1:
            whole = Layout()
            whole.split_row(*self._side_by_side(rows[0], width, height))
            return whole
        else:
            parts = self._drawn_rows(rows, width, height - 1)
            parts.insert(1, Layout(_queue_line(self._queues), size=1))
        whole = Layout()
        whole.split_column(*parts)
        return whole

    def _side_by_side(self, names: list[str], width: int, height: int) -> Iterator[Layout]:
        each = (width - _QUEUES_WIDTH) // len(names)
        for name in names:
            yield Layout(self._pane(name, each - 4, height - 2))
            if name == names[0]:
                yield Layout(_queue_column(self._queues, height), size=_QUEUES_WIDTH)

    def _drawn_rows(self, rows: list[list[str]], width: int, height: int) -> list[Layout]:
        layouts = []
        for row, row_height in zip(rows, self._heights(rows, width, height), strict=True):
            layout = Layout(size=row_height)
            layout.split_row(*(Layout(self._pane(name, width // len(row) - 4, row_height - 2)) for name in row))
            layouts.append(layout)
        return layouts

    def _heights(self, rows: list[list[str]], width: int, height: int) -> list[int]:
        """Divide the height among the rows. Each gets the lines that its latest commands and output need; the rest is
        shared.
        """
        wanted = [2 + max(self._needed(name, width // len(row) - 4, height) for name in row) for row in rows]
        heights = [_PANE_HEIGHT] * len(rows)
        for _ in range(height - sum(heights)):
            heights[min(range(len(rows)), key=lambda row: (heights[row] >= wanted[row], heights[row]))] += 1
        return heights

    def _needed(self, name: str, width: int, most: int) -> int:
        """Return the number of lines that a terminal's last command and its output need, up to `most`."""
        lines = 0
        for line in reversed(self._panes[name]):
            lines += len(_wrapped(line, self._console, width))
            if line.style == _COMMAND or lines >= most:
                break
        return lines

    def _pane(self, name: str, width: int, height: int) -> Panel:
        lines: list[Text] = []
        has_command = False
        for line in reversed(self._panes[name]):
            if has_command and len(lines) >= height:
                break
            pieces = _wrapped(line, self._console, width)
            is_command = line.style == _COMMAND
            if is_command and not has_command and len(pieces) + len(lines) > height:
                lines = [*pieces[:height], *lines[len(lines) - max(0, height - len(pieces)) :]]
                break
            has_command = has_command or is_command
            lines = [*pieces, *lines]
        style = STYLES[list(self._panes).index(name) % len(STYLES)]
        return Panel(Group(*lines[-height:]), title=Text(name, f"bold {style}"), title_align="left", border_style=style)


def _header(title: str, position: tuple[int, int], address: str) -> RenderableType:
    number, count = position
    text = Text(f"{title}  {number}/{count}" if count > 1 else title, "bold")
    if address:
        text.append(f"  its broker: {address}", "not bold dim")
    return Rule(text, align="left", style="dim")


def _queue_column(queues: Sequence[QueueDepth], height: int) -> Text:
    lines = [Text("─" * (_QUEUES_WIDTH - 2) + ">", "dim")]
    for queue in queues:
        name = Text(shortened(output.one_line(queue.name), _QUEUES_WIDTH - 2), "bold")
        counts = [f"{queue.ready:,} ready"] + [f"{queue.unacknowledged:,} unacked"] * bool(queue.unacknowledged)
        lines += [Text(), name, Text(_bar(queue, _QUEUES_WIDTH - 2), "yellow"), *map(Text, counts)]
    return Text("\n").join(Text(" ") + line for line in lines[:height])


def _queue_line(queues: Sequence[QueueDepth]) -> Text:
    line = Text(" ", no_wrap=True, overflow="ellipsis")
    for queue in queues:
        line.append(shortened(output.one_line(queue.name), 24), "bold").append(f" {_bar(queue, 10)}", "yellow")
        line.append(f" {queue.ready:,} ready, {queue.unacknowledged:,} unacked   ")
    return line


def _drawn_charts(charts: Sequence[Chart], width: int) -> RenderableType:
    layout = Layout()
    drawn = []
    each = width // len(charts)
    for measured in charts:
        rows = chart(measured.values, max(1, each - 4), _CHARTS_HEIGHT - 2)
        latest, greatest = figures(measured)
        panel = Panel(
            Text("\n".join(rows), "cyan"),
            title=Text(f"{measured.title}: {latest}", "bold"),
            title_align="left",
            subtitle=Text(f"at most {greatest}"),
            subtitle_align="right",
            border_style="dim",
        )
        drawn.append(Layout(panel))
    layout.split_row(*drawn)
    return layout


def _bar(queue: QueueDepth, width: int) -> str:
    blocks = "■" * queue.ready + "□" * queue.unacknowledged
    return blocks if len(blocks) <= width else f"{blocks[: width - 1]}…"


def _wrapped(text: Text, screen: "Console", width: int) -> list[Text]:
    lines = list(text.wrap(screen, max(width, 1), overflow="fold"))
    for line in lines:
        line.rstrip()  # trailing spaces would wrap onto another line
    return lines
