"""Messages that `x-delayed-message` exchanges hold back, as the delayed message plugin of RabbitMQ 3.10 does."""

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush

from mqtool import routing
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.clock import Alarm, Clock
from mqtool.broker.embedded.model.errors import INTERNAL_ERROR, ConnectionException
from mqtool.broker.embedded.model.message import Message
from mqtool.codecs.field_tables import Int32, Int64


def delay_of(message: Message) -> int:
    """Return the number of milliseconds to hold a message back; 0 for none.

    Raises:
        ConnectionException: 541, as the plugin fails at what it cannot convert.
    """
    try:
        return routing.delay_of(message.headers.get("x-delay"))
    except ValueError:
        raise ConnectionException(INTERNAL_ERROR) from None


def over(message: Message, milliseconds: int) -> Message:
    """Return the message with a negative delay: it is over."""
    kind = Int32 if milliseconds <= 2**31 else Int64
    return message.replace(headers={**message.headers, "x-delay": kind(-milliseconds)})


class Delayed:
    """The delayed messages of a virtual host, in order of their time; one timer, for the first.

    They are for whatever exchange has the name when they are due.

    Args:
        release: is given the name of the exchange, and the message.
    """

    def __init__(self, clock: Clock, release: Callable[[str, Entry], None]) -> None:
        self._release = release
        self._heap: list[tuple[int, int, str, Entry]] = []
        self._clock = clock
        self._alarm = Alarm(clock, self._due)
        self._turn = 0
        self._counts: Counter[str] = Counter()

    def count(self, exchange: str) -> int:
        """Return the number of messages that wait for an exchange."""
        return self._counts[exchange]

    def hold(self, exchange: str, entry: Entry) -> None:
        """Hold a message until its `expires_at`; of two with the same time the first to come goes first."""
        assert entry.expires_at is not None
        self._turn += 1
        self._counts[exchange] += 1
        heappush(self._heap, (entry.expires_at, self._turn, exchange, entry))
        self._alarm.set_by(entry.expires_at)

    def _due(self) -> None:
        now = self._clock.now()
        while self._heap:
            due, _, exchange, entry = self._heap[0]
            if due > now:
                self._alarm.set(due)
                return
            heappop(self._heap)
            self._counts[exchange] -= 1
            self._release(exchange, entry)

    def clear(self) -> list[Entry]:
        """Drop all messages without releasing them."""
        entries = [entry for _, _, _, entry in self._heap]
        self._heap.clear()
        self._counts.clear()
        self._alarm.cancel()
        return entries
