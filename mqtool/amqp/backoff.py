"""How long to wait before trying again."""

from collections.abc import Iterator
from typing import NamedTuple


class Backoff(NamedTuple):
    """Exponential back-off with jitter, so that a hundred clients do not come back in the same instant.

    Attributes:
        first: seconds before the first attempt.
        factor: how much longer each wait is than the one before.
        longest: seconds that no wait exceeds.
        attempts: how many; None for no end.
    """

    first: float = 0.25
    factor: float = 2.0
    longest: float = 15.0
    attempts: int | None = None

    def delays(self) -> Iterator[float]:
        """Seconds to wait before each attempt: between half of the exponential value and all of it."""
        import random  # needed after a loss only

        delay, attempt = self.first, 0
        while self.attempts is None or attempt < self.attempts:
            yield delay * random.uniform(0.5, 1.0)
            delay = min(delay * self.factor, self.longest)
            attempt += 1
