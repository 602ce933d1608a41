"""Receiver: gets deliveries over a link, with a limited credit, and accepts each one once the caller has handled it.

If the caller dies or stops while handling a delivery, the broker requeues the message for another receiver.
"""

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mqtool.amqp import Receiving, pika_errors
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import SETTLED, UNSETTLED, Accepted, Attach, Flow, Source, Target
from mqtool.codecs.amqp10_values import Array, Described, Milliseconds, Symbol
from mqtool.message import LARGEST_MESSAGE, Delivery
from mqtool.offsets import Offset, Start, StreamPosition

if TYPE_CHECKING:
    from mqtool.amqp10.link_connection import LinkConnection

#: The credit for a prefetch of 0 (no limit): credit in AMQP 1.0 is always limited.
_MANY = 65_535
#: The largest message in AMQP 1.0's encoding. Headers do not count towards RabbitMQ's limit.
_LARGEST = LARGEST_MESSAGE + (1 << 20)
#: The longest time, in seconds, for which acceptances are collected to be sent together.
_TOGETHER = 0.05
OFFSET = "rabbitmq:stream-offset-spec"
_VALUES, _SQL = "rabbitmq:stream-filter", "sql-filter"
#: Requests a source that the broker creates for this link, for replies. https://www.rabbitmq.com/docs/direct-reply-to
_VOLATILE = "rabbitmq:volatile-queue"


def offset_filter(offset: Offset | str) -> Described:
    """Encode a filter for the offset, or the age (such as "12s"), at which to start in a stream."""
    if isinstance(offset, str):
        return Described(Symbol(OFFSET), offset)
    value: Any = offset.start.name.lower()
    if offset.start is Start.OFFSET:
        value = offset.value or 0
    elif offset.start is Start.TIMESTAMP:
        value = Milliseconds(offset.value or 0)
    return Described(Symbol(OFFSET), value)


def stream_filters(values: Sequence[str], sql: str | None) -> dict[str, Described]:
    """Encode the filters of a stream's messages; return them by name."""
    filters = {_VALUES: Described(Symbol(_VALUES), [*values])} if values else {}
    return filters | ({_SQL: Described(Symbol(f"amqp:{_SQL}"), sql)} if sql is not None else {})


class Receiver:
    """A link that receives from a queue, and its deliveries.

    Attributes:
        address: the queue's address; for replies, the address chosen by the broker.
        has_stopped: True once the broker has given back the credit.
        ignored_filters: the names of the requested filters that are missing from the broker's answer.

    Args:
        address: the queue's address; None asks the broker for a reply address.
        filters: encoded filters of a stream, by the broker's names for them.
        position: where to start in a stream; None if that is not known, or the queue is not a stream.
    """

    def __init__(
        self,
        session: "LinkConnection",
        name: str,
        address: str | None,
        receiving: Receiving,
        filters: Mapping[str, Any],
        position: StreamPosition | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.handle = 0
        self.is_attached = False
        self.ignored_filters: list[str] = []
        self._is_dynamic = address is None
        self._session = session
        self._limits = receiving
        self._filters = filters
        self._queue = sections.exchange_and_key(address)[1]
        self._prefetch = receiving.prefetch or _MANY
        self._settles = receiving.acknowledge and not receiving.auto_ack
        # Received but not yet passed to the caller: payload, delivery id, epoch.
        self._inbox: deque[tuple[bytes, int, int]] = deque()
        self._partial = bytearray()
        self._partial_id = 0
        self._received = self._limit = 0  # deliveries received on this link, and the most it may send
        self._unsettled = self._taken = self._initial_count = 0
        self._handled: list[Delivery] = []
        self._settled_at = 0.0
        self._position = position
        self._asked: list[str] = []  # the names of the requested filters
        self._is_stuck = self._is_over = self.has_stopped = False
        self._known_epoch = session.epoch

    # For the session, under its lock.

    def attach(self, handle: int) -> Attach:
        """Reset the link's state, and return the performative that attaches it."""
        self.handle, self.is_attached = handle, False
        self._received = self._limit = self._unsettled = 0
        self._partial.clear()
        if not self._limits.auto_ack:
            self._inbox.clear()  # the broker sends them again
        filters = {Symbol(name): value for name, value in self._filters.items()}
        if self._position is not None and (start := self._position.start()) is not None:
            filters[Symbol(OFFSET)] = offset_filter(start)
        self._asked = [str(name) for name in filters]
        source = Source(self.address, filter=filters or None)
        if self._is_dynamic:
            source = Source(dynamic=True, expiry_policy="link-detach", capabilities=Array([Symbol(_VOLATILE)]))
        is_settled = self._limits.auto_ack or self._is_dynamic
        mode = SETTLED if is_settled else UNSETTLED
        return Attach(self.name, handle, True, snd_settle_mode=mode, source=source, target=Target())

    def attached(self, answer: Attach) -> bool:
        """Process the broker's reply to attach; return False if the broker refuses the link."""
        self.is_attached = answer.source is not None
        self._initial_count = answer.initial_delivery_count or 0
        known = {str(name) for name in (answer.source.filter or {})} if answer.source else set()
        self.ignored_filters = [name for name in self._asked if name not in known]
        if self._is_dynamic and answer.source is not None:
            self.address = answer.source.address
            self._queue = sections.exchange_and_key(self.address)[1]
        return self.is_attached

    @property
    def is_kept(self) -> bool:
        """True until the receiver ends: after a reconnection, it is attached again."""
        return not self._is_over

    def is_for(self, role: bool) -> bool:
        """True if `role` is the role of the broker's end of the link: sender."""
        return not role

    def flow(self, flow: Flow) -> None:
        """Process a flow frame, which contains the broker's view of the link."""
        self.has_stopped |= self._is_over and flow.link_credit == 0

    def stop(self) -> bool:
        """Give no more credit; return True if the broker still has some."""
        self._is_over = True
        return self.is_attached and not self.has_stopped and self._limit > self._received

    def take(self, delivery_id: int | None, payload: bytes, *, settled: bool, more: bool) -> None:
        """Process the payload of a transfer frame. Raises ValueError if its delivery id is in use."""
        if delivery_id is not None:
            self._partial_id = delivery_id
        if more or self._partial:
            self._partial += payload
            if len(self._partial) > _LARGEST:
                raise pika_errors.message_too_large()
            if more:
                return
            payload = bytes(self._partial)
            self._partial.clear()
        self._received += 1
        if not settled:
            if self._partial_id in self._session.unsettled:
                raise ValueError("two unsettled deliveries have the same delivery id")
            self._session.unsettled[self._partial_id] = self
            self._unsettled += 1
        self._inbox.append((payload, self._partial_id, self._session.epoch))

    def lost(self) -> None:
        """Drop the deliveries that the caller has not received; the broker sends them again."""
        if not self._limits.auto_ack:
            self._inbox.clear()

    def settled(self, count: int) -> None:
        """Record that this many deliveries have been settled, which makes room for more."""
        self._unsettled -= count

    def wanted_credit(self) -> int | None:
        """The credit to give now; None if the broker still has enough."""
        held = len(self._inbox) if self._limits.auto_ack or self._is_dynamic else self._unsettled
        prefetch = 1 if self._session.has_crashed else self._prefetch
        credit = prefetch - held
        if self._limits.count is not None:
            credit = min(credit, self._limits.count - self._taken - len(self._inbox))
        has = self._limit - self._received
        credit = max(0, credit)
        if self._is_over or not self.is_attached or credit <= has or (has and credit - has < prefetch // 2):
            return None
        self._limit = self._received + credit
        return credit

    @property
    def delivery_count(self) -> int:
        """The link's delivery count, which starts from the broker's initial value."""
        return (self._initial_count + self._received) & 0xFFFF_FFFF

    # For the caller.

    def deliveries(self) -> Generator[Delivery]:
        """Yield deliveries until a limit is reached or stop() is called. Asking for the next one accepts the last one.

        Raises:
            TimedOut: a time limit has passed.
            MqtoolError: the broker has detached the link, or the connection is lost for good.
        """
        session, count, started = self._session, self._limits.count, time.monotonic()
        try:
            while self._taken != count:
                if (delivery := self._next(started)) is None:
                    return
                self._taken += 1
                yield delivery
                if self._settles and not delivery.settled:
                    self._handled.append(delivery)
                    is_due = (
                        session.has_crashed or len(self._handled) * 4 >= self._prefetch or self._limits.is_output_full()
                    )
                    if is_due or time.monotonic() - self._settled_at > _TOGETHER:
                        self._settle()
        finally:
            try:
                self._settle()
            finally:
                session.end_receiver(self, stays=not self._limits.acknowledge)

    def arrived(self) -> list[Delivery]:
        """Return the deliveries that have arrived, without waiting. The caller settles them."""
        found = [self._decoded(*each) for each in self._inbox]
        self._inbox.clear()
        if self._limits.auto_ack:
            self._session.give_credit(self)
        return found

    def rest(self) -> list[int]:
        """Drop the deliveries that the caller has not received; return their ids."""
        rest = [delivery_id for _, delivery_id, epoch in self._inbox if epoch == self._session.epoch]
        self._inbox.clear()
        return [] if self._limits.auto_ack or self._is_dynamic else rest

    def _next(self, started: float) -> Delivery | None:
        session, idle_since = self._session, time.monotonic()
        is_flushed = False
        while True:
            if session.stopping and not self._limits.auto_ack:
                return None
            if not self._limits.auto_ack and self._limits.is_over(time.monotonic() - started):
                raise self._limits.timed_out(self._taken)
            with session.changed:
                first = self._inbox.popleft() if self._inbox else None
            if first is not None:
                payload, delivery_id, epoch = first
                if epoch == session.epoch or self._limits.auto_ack:
                    return self._decoded(payload, delivery_id, epoch)
                continue
            if session.stopping:
                return None
            session.check()
            self._tell_if_reopened()
            if not is_flushed:
                self._settle()
                is_flushed = True
            session.give_credit(self)
            now = time.monotonic()
            if session.is_lost:
                idle_since = now
            left = self._limits.left(self._taken, now - started, now - idle_since)
            if left == 0 or (not session.is_lost and self._limits.is_finished() and not self._inbox):
                return None
            session.wait(
                lambda: bool(self._inbox) or session.stopping or self._was_reopened, 1.0 if left is None else left
            )

    def _tell_if_reopened(self) -> None:
        if self._was_reopened:
            self._known_epoch = self._session.epoch
            if self._limits.after_reopening is not None:
                self._limits.after_reopening(self.address or "")

    @property
    def _was_reopened(self) -> bool:
        return not self._session.is_lost and self.is_attached and self._session.epoch != self._known_epoch

    def _decoded(self, payload: bytes, delivery_id: int, epoch: int) -> Delivery:
        is_settled = self._limits.auto_ack or self._is_dynamic
        delivery = sections.decode(payload, self._queue, delivery_id, epoch, settled=is_settled)
        offset = delivery.headers.get("x-stream-offset")  # a publisher's, if the queue is no stream
        if isinstance(offset, int) and 0 <= offset < 1 << 62:
            self._position = self._position or StreamPosition(self._queue)
            self._position.advance(offset)
        return delivery

    def _settle(self) -> None:
        """Flush the output, then accept the deliveries that were handled."""
        if self._is_stuck:
            return
        self._is_stuck = True  # if the output cannot be written, the deliveries are never accepted
        self._limits.before_acknowledging()
        self._is_stuck = False
        handled, self._handled = self._handled, []
        self._settled_at = time.monotonic()
        if handled:
            self._session.settle(handled, Accepted())


def ranges(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Merge delivery ids into ranges, each a pair of first and last id."""
    found: list[tuple[int, int]] = []
    for number in sorted(ids):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
