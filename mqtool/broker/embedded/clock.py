"""Time as queues see it."""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that has been scheduled."""

    def cancel(self) -> None:
        """Do not do it."""


class Clock(Protocol):
    """Time, so that tests can have their own."""

    def now(self) -> int:
        """Milliseconds since 1970."""

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Do something after a while."""
