"""Where a demonstration is played: its terminals, its output files and its checks."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.text import Text

from demo.failure import Failed
from demo.screen import STYLES, Screen
from demo.terminal import Terminal
from demo.waiting import LineCount, wait_until

#: Where receivers write; a path to type, so it is relative.
OUTPUT = Path("demo-output")


def environment() -> dict[str, str]:
    """Ours, with the mqtool of this virtual environment on the PATH, as if somebody had activated it."""
    inherited = {name: value for name, value in os.environ.items() if name != "MQTOOL_DIALECT"}
    return {**inherited, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


class Stage:
    """The terminals of one demonstration, and the checks of what came of it.

    Args:
        scratch: a directory for what nobody needs to see.
        log: the log file that the user named, if any.
    """

    def __init__(self, screen: Screen, scratch: Path, log: Path | None = None) -> None:
        self.screen = screen
        self.log = log
        self.checks = 0
        self._scratch = scratch
        self._terminals: list[Terminal] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for terminal in self._terminals:
            terminal.end()

    def terminals(self, *names: str) -> list[Terminal]:
        """Open terminals."""
        width = max(map(len, names))
        opened = [
            Terminal(
                self.screen,
                Text(name.ljust(width), STYLES[number % len(STYLES)]),
                environment(),
                self._scratch / f"{name}.ready",
            )
            for number, name in enumerate(names)
        ]
        self._terminals += opened
        return opened

    def expect(self, what: str, got: object, expected: object) -> None:
        """Check something, and say that it is right.

        Args:
            what: a sentence that says how it is.

        Raises:
            Failed: it is not.
        """
        if got != expected:
            raise Failed(f"this is not so: {what}\n  expected: {_shown(expected)}\n  got:      {_shown(got)}")
        self.checks += 1
        self.screen.right(what)

    def wait_for_lines(self, path: Path, count: int) -> None:
        """Wait until a receiver's file has so many lines.

        Raises:
            Failed: they do not come.
        """
        lines = LineCount(path)
        wait_until(lambda: lines() >= count, lambda: f"{count:,} lines in {path}; there are {lines():,}")


@dataclass(frozen=True)
class Demonstration:
    """A tutorial to be played.

    Attributes:
        story: in a sentence, what it shows.
        play: types the commands and checks what comes of them.
        queues, exchanges: those that its commands declare, all its own: removed before and after.
    """

    title: str
    story: str
    play: Callable[[Stage], None]
    queues: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = ()


def lines_of(path: Path) -> list[str]:
    """What a receiver wrote."""
    return path.read_text("utf-8", "replace").splitlines()


def _shown(value: object) -> str:
    """A value, short enough to read."""
    text = f"{value:,}" if isinstance(value, int) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
