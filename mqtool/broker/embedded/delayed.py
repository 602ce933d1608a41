"""Messages that an `x-delayed-message` exchange holds back (as RabbitMQ's delayed message plugin does)."""

from collections.abc import Callable
from heapq import heappop, heappush

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.clock import Clock, Timer
from mqtool.broker.embedded.message import Message
from mqtool.routing.field_table import Int8, Int16, Int32, Int64, Value

MAX_DELAY = 2**32 - 1
"""The longest delay, in milliseconds."""


def delay_of(message: Message) -> int:
    """For how many milliseconds to hold a message back; 0 for not at all."""
    value: Value = message.headers.get("x-delay")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    delay = int(value)
    return delay if 0 < delay <= MAX_DELAY else 0


def released(message: Message) -> Message:
    """The message as its consumers see it: the delay is negative once it is over."""
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
        self._timer: Timer | None = None
        self._turn = 0

    def __len__(self) -> int:
        return len(self._heap)

    def hold(self, entry: Entry) -> None:
        """Hold a message until its `expires_at`; of two with the same time the first to come goes first."""
        assert entry.expires_at is not None
        self._turn += 1
        heappush(self._heap, (entry.expires_at, self._turn, entry))
        if self._heap[0][2] is entry:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._heap:
            self._timer = self._clock.call_later(max(self._heap[0][0] - self._clock.now(), 0), self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now:
            self._release(heappop(self._heap)[2])
        self._arm()

    def clear(self) -> list[Entry]:
        """Let go of all messages without releasing them."""
        entries = [entry for _, _, entry in self._heap]
        self._heap.clear()
        self._arm()
        return entries
