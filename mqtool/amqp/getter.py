"""Receives the messages of a queue with basic.get, in the same way as a Consumer, but without consuming.

This is slower. It is for queues that the broker deletes, with all their messages, when their last consumer ends.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mqtool.message import Delivery

if TYPE_CHECKING:
    from mqtool.amqp.channel import Channel

#: Seconds between checks of an empty queue.
_LOOK = 0.1


class Getter:
    """Receives messages one at a time. The caller acknowledges them."""

    def __init__(self, channel: "Channel", queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._next: Delivery | None = None

    def arrives(self, within: float) -> bool:
        """Wait up to `within` seconds; return True as soon as deliveries() would yield, or end because of a stop."""
        deadline = time.monotonic() + within
        while self._next is None and not self._channel.stopping:
            self._next = self._channel.get(self._queue)
            left = deadline - time.monotonic()
            if self._next is None and left <= 0:
                return False
            if self._next is None:
                time.sleep(min(left, _LOOK))
        return True

    def deliveries(self) -> Iterator[Delivery]:
        """Yield the deliveries. Call arrives() before each."""
        while not self._channel.stopping and self._next is not None:
            delivery, self._next = self._next, None
            yield delivery

    def arrived(self) -> Iterator[Delivery]:
        """Yield the delivery that has arrived but was not yielded, if any, even after a stop."""
        if self._next is not None:
            delivery, self._next = self._next, None
            yield delivery

    def give_back(self, through: Iterable[Delivery]) -> None:
        """Requeue unacknowledged deliveries batch by batch.

        Args:
            through: the last delivery of each batch, in order.
        """
        for last in through:
            self._channel.reopening.requests.requeue(last.epoch, last.delivery_tag)
