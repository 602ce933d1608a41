"""The audience: what happens on a stage, as it happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Chart:
    """Something that is measured ten times a second.

    Attributes:
        unit: of the values; "" for a count.
        values: since the beginning of the scene.
    """

    title: str
    unit: str
    values: Sequence[float]


class Audience(Protocol):
    """Shows a play. Terminals print from their own threads."""

    def opened(self, names: Sequence[str]) -> None:
        """These terminals replace those that there were."""

    def typed(self, terminal: str, command: str) -> None:
        """A person types a command."""

    def printed(self, terminal: str, line: str) -> None:
        """A command prints a line."""

    def say(self, text: str) -> None:
        """Explain what comes next; return when the play may go on."""

    def right(self, what: str) -> None:
        """A check has passed."""

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        """The charts of this scene so far, or its final ones if it is over."""
