"""Whoever watches: what happens on a stage, told as it happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Chart:
    """Something that was measured ten times a second or so.

    Attributes:
        unit: of the values; "" for a count.
        values: from the beginning of the scene until now.
    """

    title: str
    unit: str
    values: Sequence[float]


class Audience(Protocol):
    """Whoever watches a play. Terminals print from threads of their own."""

    def opened(self, names: Sequence[str]) -> None:
        """There are terminals of these names now, and no others."""

    def typed(self, terminal: str, command: str) -> None:
        """A person types a command."""

    def printed(self, terminal: str, line: str) -> None:
        """A command prints a line."""

    def say(self, text: str) -> None:
        """The narrator explains what comes next; returns when it may come."""

    def right(self, what: str) -> None:
        """A check has passed."""

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        """The charts of this scene so far; over: for good."""
