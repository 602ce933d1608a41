"""Live views: a picture that is drawn anew, scrolled and searched with the same keys everywhere."""

import os
import re
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqtool.cli import stopping
from mqtool.cli.display import output, tables
from mqtool.cli.display.pace import single_keys

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
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

        console, stop = tables.terminal(), threading.Event()
        with stopping.calling(stop.set):
            if os.environ.get("TERM") == "dumb":
                while not stop.is_set():
                    tables.draw(self._frame(_ALL, "").body)
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
