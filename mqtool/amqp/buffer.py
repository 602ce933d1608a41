"""Deliveries that have come and that nobody has taken yet."""

import queue as queues

from mqtool.message import Delivery

#: Octets of bodies that are kept at most, so that a few large messages do not fill the memory.
_MAX_SIZE = 128 << 20


class Buffer:
    """Keeps deliveries until they are taken, in lots. Beyond a limit it drops the oldest lots, and counts them.

    One thread puts lots in and another takes them out. Each changes numbers of its own only, so no lock is needed.

    Attributes:
        dropped: how many deliveries were dropped.

    Args:
        limit: how many deliveries to keep, besides the latest lot.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self.limit = limit
        self._lots: queues.SimpleQueue[list[Delivery] | None] = queues.SimpleQueue()
        self._in = self._in_size = 0
        self._out = self._out_size = self._dropped_size = 0

    def put(self, lot: list[Delivery] | None) -> None:
        """Add a lot; None wakes whoever waits for one."""
        if lot is not None:
            self._in += len(lot)
            self._in_size += _size(lot)
        self._lots.put(lot)
        while self._lots.qsize() > 1 and self._is_full:
            try:
                oldest = self._lots.get_nowait()
            except queues.Empty:  # the other thread has just taken it
                return
            if oldest is None:
                self._lots.put(None)
            else:
                self.dropped += len(oldest)
                self._dropped_size += _size(oldest)

    @property
    def _is_full(self) -> bool:
        kept, size = self._in - self._out - self.dropped, self._in_size - self._out_size - self._dropped_size
        return kept > self.limit or size > _MAX_SIZE

    def get(self, timeout: float | None = None) -> list[Delivery] | None:
        """The oldest lot.

        Raises:
            queue.Empty: there is none in time.
        """
        return self._taken(self._lots.get(timeout=timeout))

    def get_nowait(self) -> list[Delivery] | None:
        """The same, without waiting."""
        return self._taken(self._lots.get_nowait())

    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._lots.empty()

    def _taken(self, lot: list[Delivery] | None) -> list[Delivery] | None:
        if lot is not None:
            self._out += len(lot)
            self._out_size += _size(lot)
        return lot


def _size(lot: list[Delivery]) -> int:
    return sum(len(delivery.body) for delivery in lot)
