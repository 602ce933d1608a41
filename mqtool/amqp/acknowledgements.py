"""Sending acknowledgements: those that come together leave in one write, together with the answers before them."""

from collections import deque
from collections.abc import Callable, Sequence

from mqtool.amqp.io_thread import IoThread
from mqtool.message import Delivery


class Acknowledgements:
    """The acknowledgements of one channel, each of its own delivery.

    Args:
        send: sends some, on the I/O thread.
        before: is called there before some are sent.
    """

    def __init__(self, io: IoThread, send: Callable[[Sequence[Delivery]], None], before: Callable[[], None]) -> None:
        self._io = io
        self._send = send
        self._before = before
        self._waiting: deque[Delivery] = deque()
        self._is_due = False

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries. From any thread."""
        self._waiting.extend(deliveries)
        if self._waiting and not self._is_due:
            self._is_due = True
            self._io.run(self._send_all)

    def _send_all(self) -> None:
        self._is_due = False  # before the last look: whatever is added from here on sees to itself
        self._before()
        self._send([self._waiting.popleft() for _ in range(len(self._waiting))])
