"""The ready messages of a queue, in the order in which they will be delivered."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice, takewhile
from typing import ClassVar, Protocol

from mqtool.broker.embedded.model.amqp_message import BrokerMessage

#: The maximum number of messages read back from disk at once.
BATCH = 500


class BacklogEntry:
    """A message in one queue.

    Attributes:
        position: a number assigned by `Ledger.enter` in order of arrival; older messages have smaller numbers.
        redelivered: True if the message was delivered before.
        acquired_count: how many times a quorum queue has requeued the message.
        delivery_count: how many of these requeues count against the delivery limit.
        expires_at: when the message expires, in milliseconds since 1970; None for never.
        row: `position` if the message is stored on disk, 0 if it is only in memory.
    """

    __slots__ = ("acquired_count", "delivery_count", "expires_at", "message", "position", "redelivered", "row")

    def __init__(self, message: BrokerMessage, position: int, expires_at: int | None = None) -> None:
        self.message = message
        self.position = position
        self.redelivered = False
        self.acquired_count = 0
        self.delivery_count = 0
        self.expires_at = expires_at
        self.row = 0

    def carry(self, deliveries: int) -> None:
        """Add the failed deliveries of the queue that has dead-lettered the message."""
        self.delivery_count = self.acquired_count = deliveries
        self.redelivered = True


class Pages(Protocol):
    """The methods of the ledger that a backlog uses to move the messages of long queues out of memory."""

    def page_out(self, entry: BacklogEntry) -> bool:
        """Page out a stored message if memory is short. If True is returned, the backlog must keep only `entry.row`."""

    def page_in(self, rows: Sequence[int]) -> list[BacklogEntry]:
        """Read stored messages back, in the order of `rows`. If they are large, return only the first few."""


class Backlog:
    """A first-in, first-out backlog. Requeued messages return to their original position.

    Only the row number of a paged-out message stays in memory. Once the message reaches the head, it is read back
    together with those behind it. Requeued messages are kept in a heap, so requeueing is fast even in a long queue.

    Attributes:
        body_bytes: the total size of the message bodies.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._fresh: deque[BacklogEntry | int] = deque()
        self._returned: list[tuple[int, BacklogEntry]] = []
        self.body_bytes = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._returned)

    def append(self, entry: BacklogEntry) -> None:
        """Add a message at the end."""
        # The first message is read often, and a requeued message has counts that are not on disk: keep both in memory.
        if entry.row and not entry.acquired_count and self._fresh and self._pages.page_out(entry):
            self._fresh.append(entry.row)
        else:
            self._fresh.append(entry)
        self.body_bytes += len(entry.message.body)

    def put_back(self, entry: BacklogEntry) -> None:
        """Requeue a message at its original position."""
        heappush(self._returned, (entry.position, entry))
        self.body_bytes += len(entry.message.body)

    def head(self) -> BacklogEntry:
        """Return the next message. Raises IndexError if there is none."""
        if self._returned and not (self._fresh and _position(self._fresh[0]) < self._returned[0][0]):
            return self._returned[0][1]
        return self._first()

    def take(self) -> BacklogEntry:
        """Remove the next message and return it. Raises IndexError if there is none."""
        if self._returned and not (self._fresh and _position(self._fresh[0]) < self._returned[0][0]):
            entry = heappop(self._returned)[1]
        else:
            first = self._fresh[0]
            entry = self._first() if isinstance(first, int) else first
            self._fresh.popleft()
        self.body_bytes -= len(entry.message.body)
        return entry

    def next_expiry(self) -> int | None:
        """Return when the message expires that take_expiring() takes; None for never, or if there is none."""
        return self.head().expires_at if len(self) else None

    def take_expiring(self) -> BacklogEntry:
        """Remove and return the message that expires first, of those that no other message keeps from expiring."""
        return self.take()

    def _first(self) -> BacklogEntry:
        """Return the first message that was not requeued; read it back from disk if it is paged out."""
        first = self._fresh[0]
        if not isinstance(first, int):
            return first
        rows = takewhile(lambda each: isinstance(each, int), self._fresh)
        batch = self._pages.page_in([row for row in islice(rows, BATCH) if isinstance(row, int)])
        for _ in batch:
            self._fresh.popleft()
        self._fresh.extendleft(reversed(batch))
        return batch[0]

    def clear(self) -> list[BacklogEntry | int]:
        """Remove all messages and return them; a paged-out message is represented by its row."""
        removed = [*self._fresh, *(entry for _, entry in self._returned)]
        self._fresh.clear()
        self._returned.clear()
        self.body_bytes = 0
        return removed

    def in_memory(self) -> Iterator[BacklogEntry]:
        """Yield the messages that are not paged out, in no particular order."""
        yield from (entry for entry in self._fresh if not isinstance(entry, int))
        yield from (entry for _, entry in self._returned)


def _position(waiting: BacklogEntry | int) -> int:
    # A paged-out message is represented by its row, which equals its position.
    return waiting if isinstance(waiting, int) else waiting.position


class QuorumBacklog(Backlog):
    """The backlog of a quorum queue: requeued messages come first, in the order in which they were requeued."""

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages)
        self._turn = 0

    def put_back(self, entry: BacklogEntry) -> None:
        """Requeue a message behind those requeued earlier."""
        self._turn += 1
        heappush(self._returned, (self._turn, entry))
        self.body_bytes += len(entry.message.body)

    def head(self) -> BacklogEntry:
        return self._returned[0][1] if self._returned else self._first()

    def take(self) -> BacklogEntry:
        if not self._returned:
            return super().take()
        entry = heappop(self._returned)[1]
        self.body_bytes -= len(entry.message.body)
        return entry


class PriorityBacklog(Backlog):
    """A backlog that returns messages of higher priority first, and messages of equal priority in order."""

    _kind: ClassVar[type[Backlog]] = Backlog
    _default: ClassVar[int] = 0

    def __init__(self, pages: Pages, max_priority: int) -> None:
        super().__init__(pages)
        self._max = max_priority
        self._levels: dict[int, Backlog] = {}
        self._descending: list[int] = []
        self._size = 0

    def _level_of(self, entry: BacklogEntry) -> int:
        priority = entry.message.properties.priority
        return min(self._default if priority is None else priority, self._max)

    def _level(self, number: int) -> Backlog:
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = self._kind(self._pages)
            self._descending = sorted(self._levels, reverse=True)
        return level

    def __len__(self) -> int:
        return self._size

    def append(self, entry: BacklogEntry) -> None:
        """Add a message behind those of the same priority."""
        self._level(self._level_of(entry)).append(entry)
        self._grow(entry, 1)

    def put_back(self, entry: BacklogEntry) -> None:
        """Requeue a message at its original position within its priority."""
        self._level(self._level_of(entry)).put_back(entry)
        self._grow(entry, 1)

    def _grow(self, entry: BacklogEntry, by: int) -> None:
        self._size += by
        self.body_bytes += by * len(entry.message.body)

    def _next(self) -> Backlog:
        """Return the backlog of the highest priority that has messages."""
        for priority in self._descending:
            level = self._levels[priority]
            if level:
                return level
        raise IndexError("no message")

    def head(self) -> BacklogEntry:
        return self._next().head()

    def take(self) -> BacklogEntry:
        entry = self._next().take()
        self._grow(entry, -1)
        return entry

    def clear(self) -> list[BacklogEntry | int]:
        self._size = self.body_bytes = 0
        return [waiting for level in self._levels.values() for waiting in level.clear()]

    def in_memory(self) -> Iterator[BacklogEntry]:
        for level in self._levels.values():
            yield from level.in_memory()


class PriorityQuorumBacklog(PriorityBacklog):
    """The backlog of a quorum queue since RabbitMQ 4.3: 32 priorities; requeued messages come before all others.

    The first message of each priority, and the first that was requeued, can expire.
    """

    _kind = QuorumBacklog
    _default = 4

    def put_back(self, entry: BacklogEntry) -> None:
        """Requeue a message of any priority behind those requeued earlier."""
        self._level(self._max + 1).put_back(entry)
        self._grow(entry, 1)

    def _expiring(self) -> Backlog:
        """Return the level whose first message expires first."""
        levels = (level for level in self._levels.values() if len(level))
        return min(levels, key=lambda level: math.inf if (at := level.next_expiry()) is None else at)

    def next_expiry(self) -> int | None:
        return self._expiring().next_expiry() if self._size else None

    def take_expiring(self) -> BacklogEntry:
        entry = self._expiring().take()
        self._grow(entry, -1)
        return entry


class TwoLevelBacklog(QuorumBacklog):
    """The backlog of a quorum queue from RabbitMQ 4.0 to 4.2, with two priorities.

    Messages of priority 5 or more come first, but every third delivery takes a message of lower priority if that
    message is older. Requeued messages come before all others.
    """

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages)
        # Most queues have no messages of high priority: those of low priority need only what a QuorumBacklog does.
        self._high = Backlog(pages)
        self._taken = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._returned) + len(self._high._fresh)

    def append(self, entry: BacklogEntry) -> None:
        """Add a message behind those of the same priority."""
        if (entry.message.header.properties.priority or 0) > 4:
            self._high.append(entry)
            self.body_bytes += len(entry.message.body)
        else:
            super().append(entry)

    def _is_lows_turn(self) -> bool:
        """Return True if a message of low priority comes before those of high priority, of which there are some."""
        is_third = self._taken % 3 == 2 and self._fresh
        return bool(is_third) and self._first().position < self._high.head().position

    def head(self) -> BacklogEntry:
        if self._returned or not self._high._fresh or self._is_lows_turn():
            return super().head()
        return self._high.head()

    def take(self) -> BacklogEntry:
        if self._returned:
            return super().take()
        is_low = not self._high._fresh or self._is_lows_turn()
        self._taken += 1
        if is_low:
            return super().take()
        entry = self._high.take()
        self.body_bytes -= len(entry.message.body)
        return entry

    def clear(self) -> list[BacklogEntry | int]:
        return [*super().clear(), *self._high.clear()]

    def in_memory(self) -> Iterator[BacklogEntry]:
        yield from super().in_memory()
        yield from self._high.in_memory()


def new_backlog(pages: Pages, kind: str, max_priority: int | None, quorum_priorities: str) -> Backlog:
    """Create the backlog for a queue of type `kind`. `quorum_priorities` is the setting of the same name in Profile."""
    if kind == "quorum":
        if quorum_priorities == "all":
            return PriorityQuorumBacklog(pages, 31)
        return TwoLevelBacklog(pages) if quorum_priorities == "two" else QuorumBacklog(pages)
    return Backlog(pages) if max_priority is None else PriorityBacklog(pages, max_priority)
