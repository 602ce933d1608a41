"""Several deliveries in hand at once, each settled on its own as soon as it is done."""

import itertools
import queue as queues
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from mqtool.amqp import Channel, Receiving
from mqtool.amqp.consumer import Consumer
from mqtool.message import Delivery
from mqtool.topology import Queue

#: How many deliveries a thread has at a time.
ONE_EACH = Receiving(prefetch=1)
#: Seconds for one delivery: below, the round trip to the broker matters; above, or above twice that for a lot, it does
#: not.
_QUICK, _SLOW = 0.02, 0.2
#: After this many quick deliveries in a row, more are taken in advance: as many as take these seconds, up to a limit,
#: and two lots for each hand at least, up to another.
_IN_A_ROW, _AHEAD, _MOST, _MOST_LOTS = 20, 0.02, 250, 10_000
#: They are handled in lots, which take about these seconds, with this many at most, unless their bodies have this many
#: bytes together. RabbitMQ's work is mostly for acknowledgements, and there is one for each lot.
_LOT, IN_A_LOT, _LARGE = 0.05, 50, 1 << 16
#: How much the latest lot counts in the seconds that each delivery takes.
_LATEST = 1 / 8


class Pace:
    """Has more deliveries taken in advance while all are quick, so that nobody waits for the broker.

    Args:
        hands: how many deliveries are handled at a time.
    """

    def __init__(self, channel: Channel, hands: int = 1) -> None:
        self._channel = channel
        self._hands = hands
        self._lock = threading.Lock()
        self._quick_in_a_row = 0
        self._each = 0.0  # seconds, of these

    @property
    def lot(self) -> int:
        """How many to handle one after another."""
        if self._quick_in_a_row < _IN_A_ROW:
            return 1
        return max(1, min(IN_A_LOT, int(_LOT / max(self._each, _LOT / IN_A_LOT))))

    def took(self, seconds: float, count: int = 1) -> None:
        """A delivery was handled in this time, or some one after another. From any thread."""
        with self._lock:
            was_quick = self._quick_in_a_row == _IN_A_ROW
            if seconds > _SLOW * min(count, 2):
                self._quick_in_a_row = 0
                if was_quick:
                    self._channel.take_in_advance(0)
            elif was_quick:
                self._each += (seconds / count - self._each) * _LATEST
            elif seconds < _QUICK:
                self._quick_in_a_row += 1
                self._each += (seconds - self._each) / self._quick_in_a_row
                if self._quick_in_a_row == _IN_A_ROW:
                    ahead = int(_AHEAD / max(self._each, _AHEAD / _MOST))
                    self._channel.take_in_advance(max(min(2 * self._hands * self.lot, _MOST_LOTS), ahead))


class Hands:
    """Threads that handle deliveries.

    Each thread takes one delivery at a time, so that none waits behind a long one while another worker is idle. While
    all are quick, more are taken in advance, and handled in lots.

    Args:
        handle: handles and settles deliveries. An exception ends the work, which raises it.
        most: how many to give it at a time.
    """

    def __init__(
        self, channel: Channel, handle: Callable[[Sequence[Delivery]], None], count: int, most: int = IN_A_LOT
    ) -> None:
        self._channel = channel
        self._handle = handle
        self._most = most
        self._taking = threading.Lock()
        self._ended: queues.SimpleQueue[BaseException | None] = queues.SimpleQueue()
        self._error: BaseException | None = None
        self._count = count
        self._pace = Pace(channel, count)

    def start_consuming(self, queue: Queue, receiving: Receiving) -> Callable[[], None]:
        """Start to consume; the function returned does the work, until deliveries end.

        A clean end waits for the deliveries in hand. After the channel is lost nobody would hear of them.

        Raises:
            Unavailable: the queue does not exist, or, later, was deleted.
        """
        prefetch = self._count * (2 if receiving.count is not None else 1)
        consumer = self._channel.consumer(queue, receiving._replace(acknowledge=False, prefetch=prefetch))
        deliveries = consumer.deliveries()

        def work() -> None:
            for _ in range(self._count):
                threading.Thread(target=self._work, args=(consumer, deliveries), daemon=True).start()
            for _ in range(self._count):
                if (lost := self._ended.get()) is not None:
                    raise lost
            if self._error is not None:
                raise self._error

        return work

    def _work(self, consumer: Consumer, deliveries: Iterator[Delivery]) -> None:
        lost = None
        try:
            while lot := self._take(consumer, deliveries):
                self._do(lot)
        except BaseException as error:  # raised by work(), in its caller's thread
            lost = error
        self._ended.put(lost)

    def _take(self, consumer: Consumer, deliveries: Iterator[Delivery]) -> list[Delivery]:
        """The next delivery, with others that have come if all are quick; none at the end."""
        with self._taking:
            lot = list(itertools.islice(deliveries, 1))
            most, size = min(self._most, self._pace.lot), sum(len(delivery.body) for delivery in lot)
            while 0 < len(lot) < most and size < _LARGE and consumer.arrives(0):
                if (delivery := next(deliveries, None)) is None:
                    break
                lot.append(delivery)
                size += len(delivery.body)
            return lot

    def _do(self, lot: Sequence[Delivery]) -> None:
        started = time.monotonic()
        try:
            self._handle(lot)
            self._pace.took(time.monotonic() - started, len(lot))
        except BaseException as error:  # raised by work() once the others have ended
            self._error = self._error or error
            self._channel.stop()
