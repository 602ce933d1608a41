"""Policies for when to acknowledge.

    Streaming       up to `prefetch` deliveries at a time; acknowledgements are grouped
    Cautious        one by one at first, for a queue that may drop messages after too many redeliveries
    ExactCount      exactly N deliveries: the broker never sends more
    CallerSettles   the caller acknowledges, from any thread and in any order

A policy does no I/O: the consumer reports events to the policy, and takes the step that the policy returns.
"""

from enum import Enum, auto
from math import inf

from mqtool.amqp.receive_settings import PREFETCH, Receiving
from mqtool.message import Delivery

#: Without a prefetch, RabbitMQ delivers this many messages of a quorum queue at a time.
_UNLIMITED = 2000
#: Up to a count of _MANY, deliveries are taken one by one. Above it, the prefetch is the count minus _EARLY.
_MANY, _EARLY = 250, 50
#: The longest time, in seconds, for which acknowledgements are collected to be sent as one basic.ack.
_ACK_TOGETHER = 0.05
#: The delivery limit to assume for a quorum queue if it is not known.
ASSUMED_LIMIT = 2


class Step(Enum):
    """What a consumer must do with its subscription."""

    GO_ON = auto()
    CANCEL = auto()
    RESUBSCRIBE = auto()  # cancel; then consume again, if the policy still wants more


class ConsumePolicy:
    """Decides how to consume. This base class never acknowledges, and never stops.

    Attributes:
        prefetch, auto_ack: for the next basic.consume.
        acknowledges: True if the policy decides when to acknowledge, not the caller or the broker.
    """

    acknowledges = False

    def __init__(self, prefetch: int, *, auto_ack: bool = False) -> None:
        self.prefetch = prefetch
        self.auto_ack = auto_ack

    def opened(self) -> None:
        """Called when the channel was reopened; the broker redelivers unacknowledged deliveries."""

    def taken(self, delivery: Delivery) -> Step:  # noqa: ARG002
        """Called before a delivery is yielded. Return what to do with the subscription."""
        return Step.GO_ON

    def done(self, delivery: Delivery, now: float) -> bool:  # noqa: ARG002
        """Called when the caller is done with a delivery. Return True to call release() and acknowledge now."""
        return False

    def acknowledged(self, tag: int, received: int, *, is_current: bool) -> Step:  # noqa: ARG002
        """Called when the caller acknowledges a delivery.

        Args:
            tag: the delivery tag.
            received: the number of deliveries since the channel was opened.
            is_current: True if the delivery arrived since the channel was opened.
        """
        return Step.GO_ON

    def wants_more(self, received: int, through: int) -> bool:  # noqa: ARG002
        """Return True to consume again. Called after Step.RESUBSCRIBE has cancelled the subscription.

        Args:
            received: the number of deliveries since the channel was opened.
            through: the delivery tag of the latest delivery.
        """
        return True

    def may_get_more(self, received: int, acknowledged: int) -> bool:  # noqa: ARG002
        """Return True if some have been received, and the broker may have sent more that will be unacknowledged.

        Args:
            received: the number of deliveries since the channel was opened.
            acknowledged: the number of these that were acknowledged, if that was in order.
        """
        return False

    def release(self, *, leaving: bool = False, is_written: bool = True) -> Delivery | None:  # noqa: ARG002
        """Return the delivery up to which to acknowledge now; None to acknowledge nothing.

        Args:
            leaving: the consumer is about to end.
            is_written: False if the output of the deliveries that were handled since the last call cannot be written.
        """
        return None

    @property
    def withholds(self) -> bool:
        """True if acknowledgements are being held back."""
        return False

    def silence(self) -> Step:
        """Called when no delivery has arrived for a while, and acknowledgements are held back."""
        return Step.GO_ON


def holds_many(receiving: Receiving) -> bool:
    """True if a consumer prefetches many messages by default, which are requeued if the caller stops early."""
    is_default = receiving.acknowledge and receiving.buffer is None and receiving.prefetch == PREFETCH
    return is_default and (not receiving.auto_ack if receiving.count is None else receiving.count > _MANY)


def policy_for(receiving: Receiving, *, delivery_limit: float, is_stream: bool = False) -> ConsumePolicy:
    """Choose a policy.

    Args:
        delivery_limit: how many times the queue requeues a message before it drops it, infinity for no limit.
        is_stream: True for a stream, whose messages stay, so that prefetching more than the count does no harm.
    """
    if not receiving.acknowledge:
        return CallerSettles(receiving)
    if is_stream:
        return Streaming(receiving.prefetch, auto_ack=receiving.auto_ack)
    if receiving.buffer is not None:
        return Streaming(receiving.prefetch, auto_ack=True)
    # Messages that are only prefetched use up to three quarters of the limit; the rest is for messages in hand.
    often = int(delivery_limit * 3 / 4) if holds_many(receiving) and delivery_limit < inf else inf
    if receiving.count is not None:
        return ExactCount(receiving.count, receiving.prefetch, often)
    if often < inf:
        return Cautious(often)
    return Streaming(receiving.prefetch, auto_ack=receiving.auto_ack)


class Streaming(ConsumePolicy):
    """Takes up to `prefetch` deliveries at a time; one basic.ack acknowledges a group of deliveries."""

    def __init__(self, prefetch: int = PREFETCH, *, auto_ack: bool = False) -> None:
        super().__init__(prefetch, auto_ack=auto_ack)
        self.acknowledges = not auto_ack
        self._group = prefetch
        self._newest: Delivery | None = None
        self._waiting = 0
        self._last_ack = 0.0

    def may_get_more(self, received: int, acknowledged: int) -> bool:
        return self.acknowledges and 0 < received < acknowledged + (self.prefetch or _UNLIMITED)

    def done(self, delivery: Delivery, now: float) -> bool:
        self._newest = delivery
        self._waiting += 1
        is_due = self._waiting * 4 >= self._group > 0 or now - self._last_ack > _ACK_TOGETHER
        if is_due:
            self._last_ack = now
        return is_due

    def release(self, *, leaving: bool = False, is_written: bool = True) -> Delivery | None:  # noqa: ARG002
        newest, self._newest, self._waiting = self._newest, None, 0
        return newest if is_written else None


class Cautious(Streaming):
    """Takes deliveries one by one until one has been requeued fewer than `often` times; then works like Streaming."""

    def __init__(self, often: float) -> None:
        super().__init__()
        self.prefetch = 1
        self._often = often

    def taken(self, delivery: Delivery) -> Step:
        if self.prefetch == 1 and delivery.times_requeued < self._often:
            self.prefetch = PREFETCH
            return Step.RESUBSCRIBE
        return Step.GO_ON


class ExactCount(Streaming):
    """Takes exactly N deliveries: one by one for small counts, otherwise with a large prefetch.

    With a large prefetch, the last acknowledgements are held back, so that the broker does not send more than N. If the
    queue has a delivery limit, deliveries are taken one at a time until one has been requeued fewer than `often` times.
    auto_ack is off, because it disables the prefetch limit.
    """

    def __init__(self, count: int, prefetch: int = PREFETCH, often: float = inf) -> None:
        super().__init__(1)
        self._most = prefetch or PREFETCH
        self._often = often
        self._left = count
        self._may_ack = 0
        self._is_cancelled = False
        self._held_back: Delivery | None = None
        if often == inf:
            self._widen(in_hand=0)

    def _widen(self, in_hand: int) -> Step:
        """Use a large prefetch for the rest of the count, if that is worth it.

        Args:
            in_hand: deliveries taken, but not acknowledged yet.
        """
        self._often = 0
        if self._most < PREFETCH or self._left <= _MANY:
            return Step.GO_ON
        self.prefetch = self._group = min(self._most, self._left - _EARLY)
        self._may_ack = in_hand + self._left - self.prefetch
        return Step.RESUBSCRIBE

    def taken(self, delivery: Delivery) -> Step:
        self._left -= 1
        if not self._left:
            self._is_cancelled = True  # before the last acknowledgement lets the broker send another
            return Step.CANCEL
        is_due = self._often and delivery.times_requeued < self._often
        return self._widen(in_hand=1) if is_due else Step.GO_ON

    def done(self, delivery: Delivery, now: float) -> bool:
        return super().done(delivery, now) or self._waiting == self._may_ack

    def release(self, *, leaving: bool = False, is_written: bool = True) -> Delivery | None:
        if self.prefetch != 1 and not self._is_cancelled and not leaving and is_written:
            if self._waiting > self._may_ack:
                self._held_back = self._newest
                return None
            self._may_ack -= self._waiting
        held_back, self._held_back = self._held_back, None
        return super().release(is_written=is_written) or held_back

    @property
    def withholds(self) -> bool:
        return self._newest is not None

    def silence(self) -> Step:
        """Acknowledge the deliveries held back, and continue one by one."""
        self.prefetch = self._group = 1
        return Step.RESUBSCRIBE


class CallerSettles(ConsumePolicy):
    """Lets the caller acknowledge. With a count, lowers the prefetch towards the end, so as not to exceed it."""

    def __init__(self, receiving: Receiving) -> None:
        count, prefetch = receiving.count, receiving.prefetch
        if count is not None:  # the prefetch itself can be the limit
            prefetch = min(prefetch or count, count)
        super().__init__(prefetch, auto_ack=receiving.auto_ack and count is None)
        self._count = self._limit = count  # the limit: the rest of the count when the channel was last opened
        self._left = count
        self._acknowledged = 0
        self._most = prefetch  # deliveries that the broker may have sent since the channel was opened
        self._through = 0  # an earlier subscription's last tag: acknowledging up to it brings no deliveries

    def opened(self) -> None:
        if self._count is not None:
            self._limit = self._count - self._acknowledged
        self._most, self._through = self.prefetch, 0

    def taken(self, delivery: Delivery) -> Step:  # noqa: ARG002
        if self._left is None:
            return Step.GO_ON
        self._left -= 1
        return Step.GO_ON if self._left else Step.CANCEL

    def acknowledged(self, tag: int, received: int, *, is_current: bool) -> Step:
        self._acknowledged += is_current
        if self._limit is None:
            self._most += is_current
            return Step.GO_ON
        if received >= self._limit:
            return Step.CANCEL
        if is_current and tag > self._through:
            if self._most == self._limit:
                return Step.RESUBSCRIBE
            self._most += 1
        return Step.GO_ON

    def wants_more(self, received: int, through: int) -> bool:
        if self._limit is None:
            return True
        missing = self._limit - received
        # From the second time on, only half of the rest; otherwise each acknowledgement would subscribe again.
        self.prefetch = max(1, missing // 2) if self._through else missing
        self._through = through
        self._most = received + self.prefetch
        return missing > 0

    def may_get_more(self, received: int, acknowledged: int) -> bool:  # noqa: ARG002
        return 0 < received < self._most
