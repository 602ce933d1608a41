"""Several deliveries in hand at once, each settled on its own as soon as it is done."""

import queue as queues
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from mqtool.amqp import Channel, Receiving
from mqtool.message import Delivery
from mqtool.topology import Queue

#: How many deliveries a thread has at a time.
ONE_EACH = Receiving(prefetch=1)
#: Seconds for one delivery: below, the round trip to the broker matters; above, it does not.
_QUICK, _SLOW = 0.02, 0.2
#: After this many quick deliveries in a row, this many more are taken in advance.
_IN_A_ROW, _IN_ADVANCE = 50, 16


class Pace:
    """Has more deliveries taken in advance while all are quick, so that nobody waits for the broker.

    Args:
        hands: how many deliveries are handled at a time.
    """

    def __init__(self, channel: Channel, hands: int = 1) -> None:
        self._channel = channel
        self._extra = hands + _IN_ADVANCE
        self._lock = threading.Lock()
        self._quick_in_a_row = 0

    def took(self, seconds: float) -> None:
        """A delivery was handled in this time. From any thread."""
        with self._lock:
            before = self._quick_in_a_row
            if seconds > _SLOW:
                self._quick_in_a_row = 0
                if before >= _IN_A_ROW:
                    self._channel.take_in_advance(0)
            elif seconds < _QUICK and before < _IN_A_ROW:
                self._quick_in_a_row += 1
                if self._quick_in_a_row == _IN_A_ROW:
                    self._channel.take_in_advance(self._extra)


class Hands:
    """Threads that handle deliveries.

    Each thread takes one delivery at a time, so that none waits behind a long one while another worker is idle. While
    all are quick, more are taken in advance, and acknowledgements are grouped.

    Args:
        handle: handles and settles one delivery. An exception ends the work, which raises it.
    """

    def __init__(self, channel: Channel, handle: Callable[[Delivery], None], count: int) -> None:
        self._channel = channel
        self._handle = handle
        self._deliveries: Iterator[Delivery] = iter(())
        self._taking = threading.Lock()
        self._ended: queues.SimpleQueue[BaseException | None] = queues.SimpleQueue()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        self._pace = Pace(channel, count)

    def start_consuming(self, queue: Queue, receiving: Receiving) -> Callable[[], None]:
        """Start to consume; the function returned does the work, until deliveries end.

        A clean end waits for the deliveries in hand. After the channel is lost nobody would hear of them.

        Raises:
            Unavailable: the queue does not exist, or, later, was deleted.
        """
        prefetch = len(self._threads) * (2 if receiving.count is not None else 1)
        self._deliveries = self._channel.consume(queue, replace(receiving, acknowledge=False, prefetch=prefetch))

        def work() -> None:
            for thread in self._threads:
                thread.start()
            for _ in self._threads:
                if (lost := self._ended.get()) is not None:
                    raise lost
            if self._error is not None:
                raise self._error

        return work

    def _work(self) -> None:
        lost = None
        try:
            while (delivery := self._take()) is not None:
                self._do(delivery)
        except BaseException as error:  # raised by work(), in its caller's thread
            lost = error
        self._ended.put(lost)

    def _take(self) -> Delivery | None:
        with self._taking:
            return next(self._deliveries, None)

    def _do(self, delivery: Delivery) -> None:
        started = time.monotonic()
        try:
            self._handle(delivery)
            self._pace.took(time.monotonic() - started)
        except BaseException as error:  # raised by work() once the others have ended
            self._error = self._error or error
            self._channel.stop()
