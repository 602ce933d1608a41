"""Where a play is played: its terminals, its files and its checks; and who watches."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mqtool.stage.audience import Audience
from mqtool.stage.guard import Guard
from mqtool.stage.terminal import Terminal
from mqtool.stage.waiting import LineCount, NotSo, wait_until

#: What our queues and exchanges are called on a broker that is not ours alone.
APART = "demo."
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Place:
    """Where commands run.

    Attributes:
        directory: where they write their files.
        environment: the broker's URL in it, if it is not one that mqtool finds without.
        apart: the broker is not ours alone, so queues and exchanges need names of their own.
        scratch: a directory for what nobody needs to see.
    """

    directory: Path
    scratch: Path
    environment: Mapping[str, str]
    apart: bool
    guard: Guard

    @property
    def whole_environment(self) -> dict[str, str]:
        """Ours, with the mqtool that runs us on the PATH, as if somebody had activated its environment."""
        inherited = {name: value for name, value in os.environ.items() if name != "MQTOOL_DIALECT"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**inherited, "PATH": path, **self.environment}


class Stage:
    """The terminals of one play, and the checks of what came of it."""

    def __init__(self, audience: Audience, place: Place) -> None:
        self.audience = audience
        self.place = place
        self.checks = 0
        self._terminals: list[Terminal] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with undisturbed():
            for terminal in self._terminals:
                terminal.ask_to_end()
            for terminal in self._terminals:
                terminal.end()

    def terminals(self, *names: str) -> list[Terminal]:
        """Open terminals, in the place of those that there were."""
        self.audience.opened(names)
        place = self.place
        opened = [
            Terminal(self.audience, name, place.directory, place.whole_environment, place.scratch, place.guard)
            for name in names
        ]
        self._terminals += opened
        return opened

    def say(self, text: str) -> None:
        """Explain what comes next."""
        self.audience.say(" ".join(text.split()))

    def queue(self, name: str) -> str:
        """The option that names a queue of the play's own; nothing where the tutorial's own name will do."""
        return f" -q {self.name(name)}" if self.place.apart else ""

    def exchange(self, name: str) -> str:
        """The option that names an exchange, as above."""
        return f" -e {self.name(name)}" if self.place.apart else ""

    def name(self, name: str) -> str:
        """What a queue or an exchange is called on this broker."""
        return APART + name if self.place.apart else name

    def file(self, name: str) -> Path:
        """A file that commands call by its name."""
        return self.place.directory / name

    def expect(self, what: str, got: object, expected: object) -> None:
        """Check something, and say that it is right.

        Args:
            what: a sentence that says how it is.

        Raises:
            NotSo: it is not.
        """
        if got != expected:
            raise NotSo(f"this is not so: {what}\n  expected: {_shown(expected)}\n  got:      {_shown(got)}")
        self.checks += 1
        self.audience.right(what)

    def wait_for_lines(self, path: Path, count: int) -> None:
        """Wait until a receiver's file has this many lines.

        Raises:
            NotSo: they do not come.
        """
        lines = LineCount(path)
        wait_until(lambda: lines() >= count, lambda: f"{count:,} lines in {path}; there are {lines():,}")


@dataclass(frozen=True)
class Play:
    """A tutorial to be played.

    Attributes:
        story: in a sentence, what it shows.
        play: types the commands and checks what comes of them.
        queues, exchanges: those that its commands declare, by the tutorial's names.
    """

    title: str
    story: str
    play: Callable[[Stage], None]
    queues: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = ()


def lines_of(path: Path) -> list[str]:
    """What a receiver wrote."""
    return path.read_text("utf-8", "replace").splitlines()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block, which tidies up and takes seconds at most, no signal ends us."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown(value: object) -> str:
    """A value, short enough to read."""
    text = f"{value:,}" if isinstance(value, int) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
