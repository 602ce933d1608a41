"""Messages that an `x-delayed-message` exchange holds back (as RabbitMQ's delayed message plugin does)."""

from collections.abc import Callable
from heapq import heappop, heappush

from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.clock import Alarm, Clock
from mqtool.broker.embedded.model.message import Message
from mqtool.routing.field_table import Int8, Int16, Int32, Int64, Value

MAX_DELAY = 2**32 - 1
"""The longest delay, in milliseconds."""


def delay_of(message: Message) -> int:
    """Return the number of milliseconds to hold a message back; 0 for none."""
    value: Value = message.headers.get("x-delay")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    # NaN is not between any two numbers.
    return int(value) if 1 <= value <= MAX_DELAY else 0


def released(message: Message) -> Message:
    """Return the message as consumers see it: the delay is negative once it is over."""
    delay = message.headers["x-delay"]
    assert isinstance(delay, int | float)
    negative = -delay
    # The sign must not change the width: a client that sent an int wants to read an int.
    for kind in (Int8, Int16, Int32, Int64):
        if isinstance(delay, kind):
            negative = kind(-delay)
    return message.replace(headers={**message.headers, "x-delay": negative})


class Delayed:
    """The messages of one exchange, in order of their time; one timer, for the first."""

    def __init__(self, clock: Clock, release: Callable[[Entry], None]) -> None:
        self._clock = clock
        self._release = release
        self._heap: list[tuple[int, int, Entry]] = []
        self._alarm = Alarm(clock, self._due)
        self._turn = 0

    def __len__(self) -> int:
        return len(self._heap)

    def hold(self, entry: Entry) -> None:
        """Hold a message until its `expires_at`; of two with the same time the first to come goes first."""
        assert entry.expires_at is not None
        self._turn += 1
        heappush(self._heap, (entry.expires_at, self._turn, entry))
        self._alarm.set_by(entry.expires_at)

    def _due(self) -> None:
        now = self._clock.now()
        while self._heap:
            due, _, entry = self._heap[0]
            if due > now:
                self._alarm.set(due)
                return
            heappop(self._heap)
            self._release(entry)

    def clear(self) -> list[Entry]:
        """Drop all messages without releasing them."""
        entries = [entry for _, _, entry in self._heap]
        self._heap.clear()
        self._alarm.cancel()
        return entries
