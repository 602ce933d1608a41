"""Sending acknowledgements: those that come together leave in one write."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from mqtool.amqp.io_thread import IoThread
from mqtool.message import Delivery

#: How many deliveries to remember that were acknowledged before an earlier one.
_EARLY = 1000


class Acknowledgements:
    """The acknowledgements of one channel, each of its own delivery.

    Args:
        send: sends some, on the I/O thread.
    """

    def __init__(self, io: IoThread, send: Callable[[Sequence[Delivery]], None]) -> None:
        self._io = io
        self._send = send
        self._waiting: deque[Delivery] = deque()
        self._is_due = False

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries. From any thread."""
        self._waiting.extend(deliveries)
        if self._waiting and not self._is_due:
            self._is_due = True
            self._io.run(self._send_all)

    def _send_all(self) -> None:
        self._is_due = False  # before the last look: what is added from here on is sent by another call
        self._send([self._waiting.popleft() for _ in range(len(self._waiting))])


class Tags:
    """The delivery tags that one opening of a channel has acknowledged: from the first on, one may stand for several.

    A quorum queue writes down each acknowledgement, and does that for many as quickly as for one.
    """

    def __init__(self) -> None:
        self._through = 0
        self._early: set[int] = set()

    def acknowledge(self, tags: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Yield what to send: tags, and whether each also stands for all before it."""
        self._early.update(tags)
        while self._through + 1 in self._early:
            self._through += 1
            self._early.discard(self._through)
        # Everything before these is acknowledged, or is among them.
        if together := [tag for tag in tags if tag <= self._through]:
            yield max(together), len(together) > 1
        yield from ((tag, False) for tag in tags if tag > self._through)
        if len(self._early) > _EARLY:  # one is held for long: what follows is acknowledged one by one
            self._early.clear()
