"""Plays, which run a tutorial's commands and check their output, and stages, with the terminals and files they need."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from mqtool.stage.terminal import Audience, CheckFailed, LineCount, Terminal, TerminalPlace, wait_until

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Question(NamedTuple):
    """A question about what a scene will show, and its answer."""

    text: str
    answer: str


class Stage:
    """The terminals and checks of one play or drill."""

    def __init__(self, audience: Audience, place: TerminalPlace) -> None:
        self.audience = audience
        self.place = place
        self.checks = 0
        self._terminals: list[Terminal] = []
        self._asked: Question | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with undisturbed():
            for terminal in self._terminals:
                terminal.signal(signal.SIGTERM)
            for terminal in self._terminals:
                terminal.end()

    def terminals(self, *names: str, url: str | None = None) -> list[Terminal]:
        """Open terminals, which replace the previous ones on the screen. Their commands use the broker at `url`."""
        self.audience.opened(names)
        place = replace(self.place, url=url or self.place.url)
        opened = [Terminal(self.audience, name, place) for name in names]
        self._terminals += opened
        return opened

    def say(self, text: str, question: Question | None = None) -> None:
        """Show an explanation to the user, and ask what will happen. The answer follows before the next check."""
        self._answer()
        self._asked = question
        self.audience.say(" ".join(text.split()), question.text if question else "")

    def _answer(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            self.audience.answered(asked.answer)

    def queue(self, name: str) -> str:
        """The command-line option with a queue's name; "" if the tutorial's default name can be used."""
        return f" -q {self.name(name)}" if self.place.apart else ""

    def declared_queue(self, name: str) -> str:
        """The options to declare a queue and receive from it; "" if the tutorial's default name can be used."""
        return f"{self.queue(name)} --declare" if self.place.apart else ""

    def exchange(self, name: str) -> str:
        """The command-line option that sets an exchange's name; "" if the tutorial's default name can be used."""
        return f" -e {self.name(name)}" if self.place.apart else ""

    def name(self, name: str) -> str:
        """The name of a queue or exchange on this broker, with a prefix if others also use the broker."""
        return self.place.prefix + name

    def file(self, name: str) -> Path:
        """The path of a file in the commands' working directory."""
        return self.place.directory / name

    def expect(self, what: str, got: object, expected: object) -> None:
        """Check that two values are equal; raise CheckFailed if not. `what` states the expectation as a fact."""
        self._answer()
        if got != expected:
            raise CheckFailed(f"check failed: {what}\n  expected: {_shown(expected)}\n  got:      {_shown(got)}")
        self.checks += 1
        self.audience.right(what)

    def wait_for_lines(self, path: Path, count: int) -> None:
        """Wait until a receiver's file has this many lines. Raises CheckFailed if that takes too long."""
        lines = LineCount(path)
        wait_until(lambda: lines() >= count, lambda: f"{count:,} lines in {path}; there are {lines():,}")


@dataclass(frozen=True)
class Play:
    """A tutorial whose commands can be run and checked.

    Attributes:
        story: what the tutorial shows, in a sentence.
        play: runs the commands and checks the results.
        queues, exchanges: the names that its commands declare, without the prefix; `queues` includes streams.
        has_streams: True if the play needs a broker with a stream port.
        protocol: the value of MQTOOL_PROTOCOL for its commands; empty for AMQP 0-9-1.
    """

    title: str
    story: str
    play: Callable[[Stage], None]
    queues: tuple[str, ...] = ()
    exchanges: tuple[str, ...] = ()
    has_streams: bool = False
    protocol: str = ""


def lines_of(path: Path) -> list[str]:
    """The complete lines that a command has written to a file so far."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text("utf-8", "replace").split("\n")[:-1]
    return []


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context manager: ignore signals, so that they cannot interrupt a cleanup."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
