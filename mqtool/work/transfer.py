"""Moving the messages of a queue to another one, at least once.

    [a] ── at most 100 unacknowledged ──> chosen? ── yes ──> published to [b], confirmed ──> acknowledged here
                                             │
                                             └─ no ──> kept unacknowledged until the end, and given back in order

The broker delivers no more than that many, and a message leaves the first queue only after the second has confirmed
it. So a transfer that is killed loses nothing, and doubles at most what was on its way.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from mqtool.amqp import Channel, Receiving
from mqtool.errors import Unavailable
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.topology import Queue
from mqtool.work.moving import NotMoved, not_taken

#: Messages on their way at a time: what a kill can double.
AT_ONCE = 100
#: Seconds without a delivery after which a queue that has messages gives us none.
_STALLED = 10.0
#: Seconds between two looks at a queue that gives us none, and for which a rate holds all up at most.
_LOOK, _PAUSE = 0.1, 0.05
#: Lots that are given back at once, and seconds to wait until they are there; others may consume them meanwhile.
_LOTS, _TAKEN_BACK = 16, 1.0
#: A pause that is shorter is made up for by the next one.
_TOO_SHORT = 0.002


class Until(NamedTuple):
    """When a transfer ends; as it stands, when the queue is empty.

    Attributes:
        moved: messages that were moved.
        seen: messages that were looked at.
        idle: seconds without a message, instead of an empty queue.
    """

    moved: int | None = None
    seen: int | None = None
    idle: float | None = None


def _dropped(messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Confirm each message, and forget it."""
    return (Receipt(message, Confirmation.CONFIRMED) for message in messages if message is not None)


def wait_for(channel: Channel, queue: str, ready: int, patience: float = _TAKEN_BACK) -> None:
    """Wait until what was given back is there: a moment only, since others may consume it meanwhile.

    Args:
        ready: messages that the queue has then.
        patience: seconds.
    """
    deadline = time.monotonic() + patience
    while channel.depth_of(queue) < ready and time.monotonic() < deadline:
        time.sleep(_LOOK / 10)


class Transfer:
    """Moves messages out of a queue; iterating yields each once it is confirmed where it went.

    Attributes:
        kept: messages that were looked at, and not chosen.

    Args:
        source: of the queue's broker, without reconnection: what was taken would come again.
        target: to publish on; None drops what is chosen.
        message_for: the message to publish in place of a delivery; None keeps it.
        goes_on: is told of a message that was not taken, and says whether to go on with the next ones.
        per_second: messages, at most.
        chooses: message_for may return None.
    """

    def __init__(
        self,
        source: Channel,
        target: Channel | None,
        queue: str,
        message_for: Callable[[Delivery], Message | None],
        *,
        until: Until,
        goes_on: Callable[[NotMoved, Message], bool] = lambda _error, _message: False,
        per_second: float | None = None,
        chooses: bool = True,
    ) -> None:
        self.kept = 0
        self._source = source
        self._publish = _dropped if target is None else partial(target.publish, mandatory=True, window=AT_ONCE)
        self._queue = queue
        self._message_for = message_for
        self._until = until
        self._goes_on = goes_on
        self._interval = 0.0 if per_second is None else 1 / per_second
        self._chooses = chooses
        self._is_in_line = False  # the latest delivery had been delivered before
        self._refusal: NotMoved | None = None
        self._on_their_way: deque[Delivery] = deque()
        self._confirmed: list[Delivery] = []
        self._lots: list[Delivery] = []  # the last of each lot that held all places
        self._held = 0  # these, and what was refused
        self._last_held: Delivery | None = None
        # Where the broker counts for us, it never delivers more than are to be moved.
        count = None if chooses else until.moved
        self._consumer = source.consumer(Queue(queue), Receiving(AT_ONCE, acknowledge=False, count=count))

    def __iter__(self) -> Iterator[Delivery]:
        """Move them.

        Raises:
            NotMoved: the other queue did not take one, and goes_on() said no. All others on their way have arrived.
            MqtoolError: a connection is lost, or the queue is gone.
        """
        try:
            for receipt in self._publish(self._messages()):
                delivery = self._on_their_way.popleft()
                if receipt.confirmation is Confirmation.CONFIRMED:
                    self._confirmed.append(delivery)
                    yield delivery
                else:
                    self._refused(delivery, receipt)
        finally:
            self._settle()
            self._source.closing()  # sends what waits, before all else goes back
            self._give_back()
        if self._refusal is not None:
            raise self._refusal

    def _messages(self) -> Iterator[Message | None]:
        arriving = self._arriving()
        yield from self._chosen(arriving)
        # What has come back to a quorum queue before stands in a line of its own, and what comes back now goes to its
        # end. So we have to take all of it.
        if self._is_in_line and (self._chooses or self._refusal is not None):
            self._until = Until()
            for delivery in arriving:
                if delivery is None:
                    yield None
                    self._settle()
                    continue
                self._hold(delivery)
                if not delivery.redelivered:
                    return

    def _chosen(self, arriving: Iterator[Delivery | None]) -> Iterator[Message | None]:
        chosen, due = 0, time.monotonic()
        for delivery in arriving:
            message = None if delivery is None else self._message_for(delivery)
            if delivery is not None:
                self._is_in_line = delivery.redelivered
            if delivery is not None and message is None:
                self.kept += 1
                self._hold(delivery)
            elif delivery is not None:
                while (pause := due - time.monotonic()) > _TOO_SHORT:
                    if self._source.stopping:
                        return
                    self._settle()
                    time.sleep(min(pause, _PAUSE))
                    yield None
                due = max(due, time.monotonic() - _PAUSE) + self._interval
                self._on_their_way.append(delivery)
                chosen += 1
                yield message
            else:
                yield None
            self._settle()
            if self._refusal is not None or chosen == self._until.moved:
                return

    def _arriving(self) -> Iterator[Delivery | None]:
        """The deliveries; None while there is none, and some are on their way to the other queue."""
        deliveries, seen, last = self._consumer.deliveries(), 0, time.monotonic()
        while seen != self._until.seen:
            if self._consumer.arrives(0):
                delivery = next(deliveries, None)
                if delivery is None:
                    return
                seen += 1
                yield delivery
                last = time.monotonic()
            elif self._on_their_way:
                yield None
            elif self._held == (len(self._lots) + 1) * AT_ONCE and self._last_held is not None:
                self._lots.append(self._last_held)
                self._last_held = None
                self._source.take_in_advance(AT_ONCE)  # these hold all places, so nothing is on its way to us
            elif self._is_over(time.monotonic() - last):
                return

    def _is_over(self, silence: float) -> bool:
        """Whether the end has come, after this many seconds without a delivery. Waits a moment for one."""
        if self._until.idle is not None:
            patience = self._until.idle - silence
            return patience <= 0 or not self._consumer.arrives(patience)
        ready = self._source.depth_of(self._queue)  # what was delivered before the answer has arrived by now
        if not ready or self._consumer.arrives(_LOOK):
            return not self._consumer.arrives(0)
        if silence > _STALLED:
            raise Unavailable(
                f"{self._queue!r} has {ready:,} more, but the broker delivers none to us",
                "it is a stream, or another consumer has a higher priority or is the single active one",
            )
        return False

    def _hold(self, delivery: Delivery) -> None:
        self._held += 1
        if self._last_held is None or delivery.delivery_tag > self._last_held.delivery_tag:
            self._last_held = delivery

    def _refused(self, delivery: Delivery, receipt: Receipt) -> None:
        error = not_taken(delivery, receipt)
        self._hold(delivery)
        if self._refusal is None and not self._goes_on(error, receipt.message):
            self._refusal = error

    def _give_back(self) -> None:
        """Return what is held, in order. A quorum queue takes more lots than it can in the order of its choice."""
        for start in range(0, len(self._lots) if self._source.is_open else 0, _LOTS):
            self._consumer.give_back(())
            before, lots = self._source.depth_of(self._queue), self._lots[start : start + _LOTS]
            self._consumer.give_back(lots)
            wait_for(self._source, self._queue, before + len(lots) * AT_ONCE)
        self._consumer.give_back([self._last_held] if self._last_held else ())

    def _settle(self) -> None:
        for delivery in self._confirmed:
            self._source.acknowledge(delivery)
        self._confirmed.clear()
