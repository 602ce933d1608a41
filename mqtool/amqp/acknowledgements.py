"""Sending acknowledgements: at once, or a moment later with others.

Where each message takes a millisecond, one acknowledgement at a time costs both sides more than the work: a packet, a
thread to wake, and a packet with the next delivery.
"""

from collections import deque
from collections.abc import Callable

from mqtool.amqp.io_thread import IoThread
from mqtool.message import Delivery

#: Seconds for which one waits for others, and how many do not wait for more: the broker sends as many new deliveries.
_MOMENT, _ENOUGH = 0.005, 8


class Acknowledgements:
    """The acknowledgements of one channel, each of its own delivery.

    Args:
        send: sends one, on the I/O thread.
        before: is called there before some are sent.
        together: whether to let each wait a moment for others.
    """

    def __init__(
        self, io: IoThread, send: Callable[[Delivery], None], before: Callable[[], None], together: Callable[[], bool]
    ) -> None:
        self._io = io
        self._send = send
        self._before = before
        self._together = together
        self._waiting: deque[Delivery] = deque()
        self._is_due = self._is_due_now = False

    def add(self, delivery: Delivery) -> None:
        """Acknowledge a delivery. From any thread."""
        self._waiting.append(delivery)
        if not self._together() or len(self._waiting) >= _ENOUGH:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._io.run_later(_MOMENT, self._send_all)

    def flush(self) -> None:
        """Send those that wait. From any thread."""
        if self._waiting and not self._is_due_now:
            self._is_due_now = True
            self._io.run(self._send_all)

    def _send_all(self) -> None:
        self._is_due = self._is_due_now = False  # before the last look: whatever is added from here on sees to itself
        self._before()
        while self._waiting:
            self._send(self._waiting.popleft())
