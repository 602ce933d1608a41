"""Live views, which share the keys for scrolling and filtering."""

import errno
import os
import re
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqtool.cli import stopping
from mqtool.cli.display import layout, output
from mqtool.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_QUIT = ("q", "\x04")
#: One key press; arrows and the like are control sequences of ECMA-48.
_KEY = r"(?s)\x1b[\[O][0-9;]*[A-Za-z~]|."
_ENTER, _ERASE, _ESCAPE, _ERASE_ALL = ("\r", "\n"), ("\x7f", "\x08"), "\x1b", "\x15"
#: The distance that each key scrolls: an int counts lines, a float counts pages.
_MOVES = {"\x1b[A": -1, "\x1bOA": -1, "\x1b[B": 1, "\x1bOB": 1, "\x1b[5~": -1.0, "\x1b[6~": 1.0}
_HOME, _END = ("\x1b[H", "\x1bOH", "\x1b[1~", "g"), ("\x1b[F", "\x1bOF", "\x1b[4~", "G")
#: Number of lines to fetch for a terminal without scrolling.
_ALL = 1000
_KEYS = "/ filter  ? keys  q quit"
_HELP = """↑ ↓ PgUp PgDn   scroll
Home g, End G    first, last line
/ TEXT Enter     show only lines that contain TEXT
Ctrl-U           clear the text while typing it
Esc              show all lines again
?                show or hide these keys
q Ctrl-D Ctrl-C  quit"""
#: After a key press, wait up to this many seconds for new data before redrawing the screen.
_PROMPT = 0.5
#: A scroll position beyond the end of any list.
_END_OF_ALL = 1 << 30
#: While no key is pressed, look this often whether the terminal was closed, in seconds.
_LOOK_UP = 0.1
#: Data older than this many seconds (and than two intervals) is marked with its age.
_FRESH = 2.0


@dataclass(frozen=True, slots=True)
class Frame:
    """The contents of a live view at one moment.

    Attributes:
        above: lines that stay at the top.
        body: the content that scrolls, except its first `heads` lines.
        beyond: number of additional lines that were not fetched.
        keys: a description of the keys specific to this view.
        things: what each line that scrolls stands for; arrows then move a cursor, and Enter opens the thing below it.
    """

    body: "RenderableType"
    above: Sequence["Text"] = ()
    heads: int = 0
    beyond: int = 0
    keys: str = ""
    things: Sequence[Hashable] = ()


def head_line(title: str, alarms: str) -> "Text":
    """Return the first line of a live view: the broker, and its alarms in red."""
    from rich.text import Text

    line = Text(output.one_line(title), style="bold", no_wrap=True, overflow="ellipsis")
    return line.append(f"   {output.one_line(alarms)}", style="red") if alarms else line


class Live:
    """Shows frames on a terminal, fetching a new one at each interval, until the user quits.

    While the broker cannot be reached, the last frame stays on the screen, with its age and the reason.

    Args:
        frame: fetches a frame. Called with the number of lines wanted, and a string that each line must contain.
        interval: seconds between two frames.
        press: called with each key that Live does not handle itself.
        show: called with one of Frame.things when the user presses Enter; prints on the terminal.
    """

    def __init__(
        self,
        frame: Callable[[int, str], Frame],
        interval: float,
        press: Callable[[str], None] = lambda _: None,
        show: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self._fetch = frame
        self._interval = interval
        self._press = press
        self._show = show
        self._at = 0  # the line of the cursor
        self._chosen: Hashable = None  # the thing below it, which the cursor follows
        self._top = 0
        self._filter = ""
        self._is_typing = False
        self._shows_help = False
        self._page = 1
        self._height = _ALL
        # Shared with the thread that fetches frames.
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._fetched = time.monotonic()
        self._problem: Unavailable | None = None
        self._failure: BaseException | None = None
        self._wanted, self._got = 1, 0

    def run(self) -> None:
        """Show each frame in place of the last one, or below it on a terminal that cannot redraw."""
        stop = threading.Event()
        try:
            with stopping.calling(stop.set):
                self._show_until(stop)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed
                raise
        finally:
            stop.set()

    def _show_until(self, stop: threading.Event) -> None:
        from rich.live import Live as Screen

        console, can_redraw = layout.terminal(), os.environ.get("TERM") != "dumb"
        self._height = console.height if can_redraw else _ALL
        self._keep(self._fetch(self._height, ""))
        threading.Thread(target=self._fetch_until, args=(stop,), name="mqtool-live", daemon=True).start()
        if not can_redraw:
            self._print_until(stop)
            return
        keys = single_keys() if output.is_terminal(0) else nullcontext()
        with keys, Screen(console=console, screen=True, auto_refresh=False) as screen:
            while not stop.is_set():
                screen.update(self._picture(console), refresh=True)
                pressed = _keys_within(self._interval, stop)
                opens = pressed.endswith(_ENTER) and not self._is_typing
                if self._obey(pressed):
                    break
                if opens and self._chosen is not None:
                    screen.stop()
                    self._show(self._chosen)
                    output.status("any key goes back")
                    while not stop.is_set() and not _keys_within(self._interval, stop):
                        pass
                    screen.start()
                if self._failure is not None:
                    raise self._failure

    def _print_until(self, stop: threading.Event) -> None:
        printed = reported = None
        while True:
            with self._changed:
                frame, problem = self._frame, self._problem
            if problem not in (None, reported):
                output.warning(f"reconnecting: {problem}")
            elif problem is None and frame is not None and frame is not printed:
                layout.draw(frame.body)
                printed = frame
            reported = problem
            if self._failure is not None:
                raise self._failure
            _check_terminal()
            if stop.wait(_LOOK_UP):
                return

    def _fetch_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            wanted = self._wanted
            try:
                frame = self._fetch(self._top + self._height, self._filter)
            except Unavailable as problem:
                with self._changed:
                    self._problem, self._got = problem, wanted
                    self._changed.notify_all()
            except BaseException as failure:  # raised again by run()
                with self._changed:
                    self._failure, self._got = failure, wanted
                    self._changed.notify_all()
                return
            else:
                self._keep(frame, wanted)
            with self._changed:
                self._changed.wait_for(lambda wanted=wanted: self._wanted > wanted, self._interval)  # type: ignore[misc]

    def _keep(self, frame: Frame, wanted: int = 0) -> None:
        with self._changed:
            self._frame, self._got = frame, wanted
            self._fetched, self._problem = time.monotonic(), None
            self._changed.notify_all()

    def _fetch_now(self) -> None:
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._got >= self._wanted, _PROMPT)

    def _obey(self, keys: str) -> bool:
        """Handle key presses; return True to quit."""
        needs_data = False
        for key in re.findall(_KEY, keys):
            if self._is_typing:
                self._type(key)
            elif key in _QUIT:
                return True
            elif key == "/":
                self._is_typing, self._filter, self._top, self._at = True, "", 0, 0
            elif key == "?":
                self._shows_help = not self._shows_help
                continue
            elif key == _ESCAPE:
                self._filter, self._top, self._shows_help = "", 0, False
            elif key in (*_MOVES, *_HOME, *_END):
                self._move(_MOVES.get(key, _END_OF_ALL if key in _END else -_END_OF_ALL))
            else:
                self._press(key)
            needs_data = True
        if needs_data:
            self._fetch_now()
        return False

    def _move(self, by: float) -> None:
        by = round(by * self._page) if isinstance(by, float) else by
        if self._chosen is None:
            self._top = max(0, self._top + by)
            return
        self._at, things = max(0, self._at + by), self._frame.things if self._frame else ()
        self._chosen = things[self._at] if self._at < len(things) else None
        self._top = max(self._top, self._at - self._page + 1)  # which decides how many lines are fetched

    def _type(self, key: str) -> None:
        if key in _ENTER:
            self._is_typing = False
        elif key.startswith(_ESCAPE):
            self._is_typing, self._filter = False, ""
        elif key == _ERASE_ALL:
            self._filter = ""
        else:
            self._filter = self._filter[:-1] if key in _ERASE else self._filter + key

    def _picture(self, console: "Console") -> "RenderableType":
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.style import Style
        from rich.text import Text

        with self._changed:
            frame, state = self._frame or Frame(""), self._state()
        self._height = console.height
        above = [*frame.above, *([Text(state, style="bold red", no_wrap=True, overflow="ellipsis")] if state else [])]
        # The last line of a narrow screen does not show all keys of the view.
        help_text = Text(f"{_HELP}\n{frame.keys}" if frame.keys else _HELP)
        lines = layout.escaped_lines(console, help_text if self._shows_help else frame.body)
        heads, rows = (0, lines) if self._shows_help else (frame.heads, lines)
        first, rows = rows[:heads], rows[heads:]
        self._page = max(1, console.height - len(above) - len(first) - 1)
        at = None if self._shows_help else self._follow(frame.things)
        self._top = max(0, min(self._top, len(rows) - self._page))
        seen = rows[self._top : self._top + self._page]
        more = len(rows) - self._top - len(seen) + frame.beyond
        parts = [f"+{more:,} more"] if more and not self._shows_help else []
        parts += [f"/{self._filter}{'_' * self._is_typing}"] if self._filter or self._is_typing else []
        if at is not None:
            seen[at - self._top] = [*Segment.apply_style(seen[at - self._top], post_style=Style(reverse=True))]
        shown = Segments([segment for line in [*first, *seen] for segment in [*line, Segment.line()]])
        below = Text("  ".join([*parts, _KEYS, frame.keys]), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(*above, shown, below)

    def _follow(self, things: Sequence[Hashable]) -> int | None:
        """Move the cursor to where its thing is now, and scroll to it. Return its line; None if there is no cursor."""
        if not things:
            self._chosen = None
            return None
        self._at = things.index(self._chosen) if self._chosen in things else min(self._at, len(things) - 1)
        self._chosen = things[self._at]
        self._top = max(min(self._top, self._at), self._at - self._page + 1)
        return self._at

    def _state(self) -> str:
        age = time.monotonic() - self._fetched
        if self._problem is not None:
            state = "" if isinstance(self._problem, NotFound) else "reconnecting; "
            return f"{state}this is {age:.0f} s old: {self._problem}"  # narrow terminals cut off the end
        return f"waiting for the broker; this is {age:.0f} s old" if age > max(_FRESH, 2 * self._interval) else ""


def _check_terminal() -> None:
    """Raise OSError (EIO) if the terminal was closed.

    Rich would not notice: it writes nothing to a closed terminal, as if the output were a file.
    """
    if not output.is_terminal(1):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _keys_within(seconds: float, stop: threading.Event) -> str:
    """Wait for keys; return "" if none is pressed in time. Raises OSError (EIO) if the terminal was closed."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        _check_terminal()
        if not output.is_terminal(0):
            stop.wait(min(left, _LOOK_UP))
        elif select.select([0], [], [], min(left, _LOOK_UP))[0] and (keys := os.read(0, 64)):
            return keys.decode(errors="replace")
    return ""


@contextmanager
def single_keys() -> Iterator[None]:
    """Context manager: read single keys from the terminal on stdin without echoing them, also after Ctrl-Z and `fg`."""
    before = termios.tcgetattr(0)

    def continued(*_: object) -> None:
        with suppress(OSError, termios.error):  # the terminal is not the controlling one, or was closed
            if os.tcgetpgrp(0) == os.getpgrp():  # in the background, it would stop this process again
                tty.setcbreak(0)

    tty.setcbreak(0)
    previous = signal.signal(signal.SIGCONT, continued)  # some shells restore their own settings
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(0, termios.TCSAFLUSH, before)
