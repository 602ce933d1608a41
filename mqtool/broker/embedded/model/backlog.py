"""The ready messages of a queue, in the order in which they will be delivered."""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from mqtool.broker.embedded.model.message import Message


class Entry:
    """A message in one queue.

    Attributes:
        position: its place in the queue; an older message has a smaller one.
        redelivered: whether it was delivered before.
        delivery_count: how many times it has been returned (quorum queues).
        expires_at: when its time to live ends, in milliseconds since 1970; None for never.
        row: its number in the storage; 0 while it is only in memory.
    """

    __slots__ = ("delivery_count", "expires_at", "message", "position", "redelivered", "row")

    def __init__(self, message: Message, position: int, expires_at: int | None = None) -> None:
        self.message = message
        self.position = position
        self.redelivered = False
        self.delivery_count = 0
        self.expires_at = expires_at
        self.row = 0


class Backlog:
    """First in, first out; a message that is put back gets its old place.

    Messages that are put back are kept in a heap of their own, so the length of the queue does not matter.

    Attributes:
        body_bytes: the total size of the bodies.
    """

    def __init__(self) -> None:
        self._fresh: deque[Entry] = deque()
        self._returned: list[tuple[int, Entry]] = []
        self.body_bytes = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._returned)

    def append(self, entry: Entry) -> None:
        """Put a new message at the end."""
        self._fresh.append(entry)
        self.body_bytes += len(entry.message.body)

    def put_back(self, entry: Entry) -> None:
        """Put a message back in its old place."""
        heappush(self._returned, (entry.position, entry))
        self.body_bytes += len(entry.message.body)

    def head(self) -> Entry:
        """The next message.

        Raises:
            IndexError: there is none.
        """
        if self._returned and not (self._fresh and self._fresh[0].position < self._returned[0][0]):
            return self._returned[0][1]
        return self._fresh[0]

    def take(self) -> Entry:
        """Remove the next message.

        Raises:
            IndexError: there is none.
        """
        if self._returned and not (self._fresh and self._fresh[0].position < self._returned[0][0]):
            entry = heappop(self._returned)[1]
        else:
            entry = self._fresh.popleft()
        self.body_bytes -= len(entry.message.body)
        return entry

    def __iter__(self) -> Iterator[Entry]:
        """All messages, oldest first."""
        return iter(sorted([*self._fresh, *(entry for _, entry in self._returned)], key=lambda entry: entry.position))


class QuorumBacklog(Backlog):
    """A quorum queue's: returned messages come before all new ones, in the order in which they were returned."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def put_back(self, entry: Entry) -> None:
        """Put a message back, behind those returned before it."""
        self._turn += 1
        heappush(self._returned, (self._turn, entry))
        self.body_bytes += len(entry.message.body)

    def head(self) -> Entry:
        """The next message: a returned one if there is any."""
        return self._returned[0][1] if self._returned else self._fresh[0]

    def take(self) -> Entry:
        """Remove the next message."""
        entry = heappop(self._returned)[1] if self._returned else self._fresh.popleft()
        self.body_bytes -= len(entry.message.body)
        return entry


class PriorityBacklog(Backlog):
    """Messages of a higher priority first, and in order within a priority."""

    def __init__(self, max_priority: int) -> None:
        super().__init__()
        self._max = max_priority
        self._levels: dict[int, Backlog] = {}
        self._descending: list[int] = []
        self._size = 0

    def _level(self, entry: Entry) -> Backlog:
        priority = min(entry.message.properties.priority or 0, self._max)
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = Backlog()
            self._descending = sorted(self._levels, reverse=True)
        return level

    def __len__(self) -> int:
        return self._size

    def append(self, entry: Entry) -> None:
        """Put a new message at the end of its priority."""
        self._level(entry).append(entry)
        self._grow(entry, 1)

    def put_back(self, entry: Entry) -> None:
        """Put a message back in its old place."""
        self._level(entry).put_back(entry)
        self._grow(entry, 1)

    def _grow(self, entry: Entry, by: int) -> None:
        self._size += by
        self.body_bytes += by * len(entry.message.body)

    def _highest(self) -> Backlog:
        for priority in self._descending:
            level = self._levels[priority]
            if level:
                return level
        raise IndexError("no message")

    def head(self) -> Entry:
        """The oldest message of the highest priority."""
        return self._highest().head()

    def take(self) -> Entry:
        """Remove the oldest message of the highest priority."""
        entry = self._highest().take()
        self._grow(entry, -1)
        return entry

    def __iter__(self) -> Iterator[Entry]:
        """All messages in the order of delivery."""
        for priority in self._descending:
            yield from self._levels[priority]


def new_backlog(kind: str, max_priority: int | None) -> Backlog:
    """Return an empty backlog for a queue of this type, with this `x-max-priority`."""
    if kind == "quorum":
        return QuorumBacklog()
    return Backlog() if max_priority is None else PriorityBacklog(max_priority)
