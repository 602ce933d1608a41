"""What quorum queues hold back for a while after it was returned, since RabbitMQ 4.3 (`x-delayed-retry-type`)."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from mqtool.broker.embedded.model.backlog import Backlog, Entry
from mqtool.broker.embedded.model.clock import Alarm, Clock


class Retry(NamedTuple):
    """Which messages are held back, and for how many milliseconds.

    Attributes:
        which: `all`, `failed` (those that count against the delivery limit), or `returned` (the others).
        least, most: the first delay, and the longest.
    """

    which: str
    least: int
    most: int

    def delay(self, entry: Entry, *, failed: bool) -> int | None:
        """Return the delay of a message that comes back; None for none."""
        if self.which not in ("all", "failed" if failed else "returned"):
            return None
        return min(self.least * max(entry.delivery_count, 1), self.most)


class Retries:
    """The messages of a queue that are held back.

    Args:
        backlog: where those that are due are put back.
        due: called once some have been.
    """

    def __init__(self, clock: Clock, backlog: Backlog, due: Callable[[], None]) -> None:
        self._clock = clock
        self._backlog = backlog
        self._due = due
        self._held: list[tuple[int, int, Entry]] = []
        self._turn = 0
        self._alarm = Alarm(clock, self._ring)

    def hold(self, entry: Entry, delay: int) -> None:
        """Hold a message back for this many milliseconds."""
        self._turn += 1
        heappush(self._held, (self._clock.now() + delay, self._turn, entry))
        self._alarm.set_by(self._clock.now() + delay)

    def clear(self) -> list[Entry]:
        """Let go of all, and return them."""
        self._alarm.cancel()
        held, self._held = self._held, []
        return [entry for _, _, entry in held]

    def _ring(self) -> None:
        while self._held and self._held[0][0] <= self._clock.now():
            self._backlog.put_back(heappop(self._held)[2])
        if self._held:
            self._alarm.set_by(self._held[0][0])
        self._due()
