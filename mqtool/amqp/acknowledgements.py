"""Sending acknowledgements: those that come together leave in one write."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from mqtool.amqp.io_thread import IoThread
from mqtool.message import Delivery

#: How many deliveries to remember that were acknowledged before an earlier one.
_EARLY = 1000
#: Seconds for which an acknowledgement waits for those that follow it at once.
_MOMENT = 0.002


class Acknowledgements:
    """The acknowledgements of one channel, each of its own delivery.

    Args:
        send: sends some, on the I/O thread.
    """

    def __init__(self, io: IoThread, send: Callable[[Sequence[Delivery]], None]) -> None:
        self._io = io
        self._send = send
        self._waiting: deque[Delivery] = deque()
        self._is_due = self._is_due_now = False

    def add(self, deliveries: Sequence[Delivery], *, more_follow: bool = False) -> None:
        """Acknowledge deliveries. From any thread.

        Args:
            more_follow: the next ones are at hand, and these may wait for them. A quorum queue writes down each
                acknowledgement, and does that for many as quickly as for one.
        """
        self._waiting.extend(deliveries)
        if not more_follow:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._io.run_later(_MOMENT, self._send_all)

    def flush(self) -> None:
        """Send now what waits. From any thread."""
        if self._waiting and not self._is_due_now:
            self._is_due = self._is_due_now = True
            self._io.run(self._send_all)

    def _send_all(self) -> None:
        # Before the last look: what is added from here on is sent by another call.
        self._is_due = self._is_due_now = False
        self._send([self._waiting.popleft() for _ in range(len(self._waiting))])


class Tags:
    """The delivery tags that one opening of a channel has acknowledged: one may stand for all before it."""

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
