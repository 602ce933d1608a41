"""Several deliveries in hand at once, each settled on its own, as soon as it is done."""

import queue as queues
import threading
from collections.abc import Callable
from dataclasses import replace

from mqtool.amqp import Channel, Receiving
from mqtool.message import Delivery
from mqtool.topology import Queue


class Hands:
    """Threads that handle deliveries.

    Args:
        handle: sees to one delivery, and settles it. What it raises ends the work, and comes out of work().
    """

    def __init__(self, channel: Channel, handle: Callable[[Delivery], None], count: int) -> None:
        self._channel = channel
        self._handle = handle
        self._todo: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def start_consuming(self, queue: Queue, receiving: Receiving) -> Callable[[], None]:
        """Start to consume; the function returned does the work, to the end of the deliveries.

        Only as many deliveries are taken as there are threads. A clean end waits for those in hand; a lost channel does
        not, since nobody would hear of them.

        Raises:
            Unavailable: there is no such queue; or, later, it has vanished.
        """
        settings = replace(receiving, acknowledge=False, prefetch=len(self._threads))
        deliveries = self._channel.consume(queue, settings)

        def work() -> None:
            for thread in self._threads:
                thread.start()
            for delivery in deliveries:
                self._todo.put(delivery)
            for _ in self._threads:
                self._todo.put(None)
            for thread in self._threads:
                thread.join()
            if self._error is not None:
                raise self._error

        return work

    def _work(self) -> None:
        while (delivery := self._todo.get()) is not None:
            if delivery.epoch != self._channel.epoch or self._error is not None:
                continue  # it came by a connection that is lost, so it comes again; or it goes back, as we end
            try:
                self._handle(delivery)
            except BaseException as error:  # raised in work(), in the thread of whoever called it
                self._error = self._error or error
                self._channel.stop()
