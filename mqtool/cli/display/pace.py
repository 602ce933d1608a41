"""The pace of a play: on Enter, at reading pace, or without pauses."""

import os
import select
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import typer

from mqtool.cli.display import output

#: Reading speed in characters, with time to look at the terminals.
_READ_PER_SECOND = 22.0
_SHORTEST = 1.5
_ENOUGH = (b"\n", b"\r", b" ")


class Pace:
    """Waits between the steps of a play.

    Args:
        auto: go on without Enter, leaving time to read if somebody watches.
        watched: whether somebody watches; by default, if we print to a terminal.
    """

    def __init__(self, *, auto: bool, watched: bool | None = None) -> None:
        self._watched = output.is_terminal(1) if watched is None else watched
        self.asks = not auto and self._watched and output.is_terminal(0)
        self._keys = self._watched and output.is_terminal(0)

    def forget_keys(self) -> None:
        """Ignore the keys pressed so far, before a text is shown.

        Raises:
            typer.Exit: the person quits.
        """
        while self._key(0):
            pass

    def wait(self, text: str) -> None:
        """Return on Enter, or when there was time to read a text.

        Raises:
            typer.Exit: the person quits.
        """
        if not self._watched:
            return
        limit = None if self.asks else time.monotonic() + max(_SHORTEST, len(text) / _READ_PER_SECOND)
        while limit is None or limit > time.monotonic():
            rest = None if limit is None else max(0.0, limit - time.monotonic())
            if not self._keys:
                time.sleep(rest or 0.0)
            elif self._key(rest) in _ENOUGH or not self._keys:
                return

    def _key(self, seconds: float | None) -> bytes:
        """Wait this many seconds for a key; return b"" if none is pressed.

        Raises:
            typer.Exit: it is q.
        """
        if not self._keys or not select.select([0], [], [], seconds)[0]:
            return b""
        key = os.read(0, 1)
        if not key:  # end of input
            self.asks = self._keys = False
        if key in (b"q", b"Q"):
            raise typer.Exit
        return key

    def listening(self) -> AbstractContextManager[None]:
        """Read single keys within the block, without showing them."""
        return single_keys() if self._keys else nullcontext()


@contextmanager
def single_keys() -> Iterator[None]:
    """Within the block, keys come one by one from the terminal at stdin, and are not shown."""
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)
