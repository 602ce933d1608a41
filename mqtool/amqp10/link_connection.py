"""LinkConnection: one session on a connection that reopens, and its links.

After a reconnection, it repeats the declarations, attaches the links again, and republishes the messages that have no
outcome yet. https://www.rabbitmq.com/docs/amqp
"""

import math
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from mqtool.amqp import Address, Backoff
from mqtool.amqp.unconfirmed import LEADERLESS
from mqtool.amqp10.broker_window import BrokerWindow
from mqtool.amqp10.link_receiver import Receiver, ranges
from mqtool.amqp10.link_sender import OutgoingTransfer, SendingLink, is_unavailable
from mqtool.amqp10.refusals import ClosedByBroker, Lost
from mqtool.amqp10.reopening_transport import ReopeningTransport
from mqtool.codecs.amqp10_frames import (
    SENDER,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Released,
    Transfer,
    add,
    decode_performative,
    disposed,
    frame,
)
from mqtool.errors import MqtoolError
from mqtool.message import Confirmation, Delivery

_HANDLES = 256
#: The number of transfer frames that the broker may send before the session's window must be extended.
_WINDOW = 5000
#: Seconds to wait before republishing messages that were rejected by a queue without a leader.
_PAUSE = 0.25
#: Seconds to wait for the broker to give back a receiver's credit.
_STOPPED = 2.0


class Link(Protocol):
    """A link of the session. Its methods are called under the session's lock.

    Attributes:
        is_kept: attach it again after a reconnection.
    """

    name: str
    handle: int
    is_attached: bool

    @property
    def is_kept(self) -> bool: ...
    def is_for(self, role: bool, /) -> bool: ...
    def attach(self, handle: int, /) -> Attach: ...
    def attached(self, answer: Attach, /) -> bool: ...
    def flow(self, flow: Flow, /) -> None: ...
    def take(self, delivery_id: int | None, payload: bytes, /, *, settled: bool, more: bool) -> None: ...


class LinkConnection(ReopeningTransport):
    """A session and its links. Safe to use from any thread.

    Attributes:
        unsettled: the receiver of each unsettled delivery, by delivery id.
        set_up: called on the I/O thread in each attempt to reconnect, to repeat the declarations; returns a notice for
            the user, if there is any, to be shown if the attempt succeeds.
        confirm_timeout: seconds without any outcome after which publishing gives up.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        context: ssl.SSLContext | None,
        *,
        backoff: Backoff | None,
        confirm_timeout: float,
        notice: Callable[[str], None],
        threaded: bool = True,
    ) -> None:
        self.confirm_timeout = confirm_timeout
        self.unsettled: dict[int, Receiver] = {}
        self._taken_back: list[int] = []  # by the broker, after its consumer timeout
        self.set_up: Callable[[], str | None] = lambda: None
        self._links: dict[int, Link] = {}  # by mqtool's handles
        self._incoming: dict[int, Link] = {}  # by the broker's handles
        self._refusals: dict[int, ClosedByBroker] = {}
        self._detached: set[int] = set()  # handles of links that mqtool has detached
        self._senders: dict[str | None, SendingLink] = {}  # by address
        self._sent: dict[int, OutgoingTransfer] = {}  # messages without an outcome, by delivery id
        self._refused: list[OutgoingTransfer] = []  # rejected by a queue that may have no leader yet; to be republished
        self._leaderless_until = 0.0
        self._broker = BrokerWindow(notice)
        self._next_in = self._room = 0
        self._has_begun = False
        self._last_outcome = time.monotonic()
        super().__init__(addresses, context, backoff, notice, threaded=threaded)
        if self.lacks_a_node:
            self._leaderless_until = self._last_outcome + LEADERLESS

    @property
    def hopeless(self) -> str | None:
        """Why a stopping command should not wait for the broker; None if it may wait."""
        if self.must_stop and not self.is_lost and not self._sent:
            lacks_credit = any(link.waiting and link.credit <= 0 for link in self._senders.values())
            if lacks_credit or self._broker.room <= 0:
                return "the broker takes no messages"
        return super().hopeless

    # Links.

    def begin(self) -> None:
        self._next_in, self._room, self._has_begun = 0, _WINDOW, False
        with self.changed:
            for link in self._links.values():  # of an attempt to reconnect that has failed halfway
                link.is_attached = False
            self._links.clear()
            self._incoming.clear()
            self._refusals.clear()
        self.transport.send([frame(0, Begin(None, 0, _WINDOW, _WINDOW, handle_max=_HANDLES - 1))])
        self.until(lambda: self._has_begun, self.epoch)

    def sending_link(self, address: str | None) -> SendingLink:
        """Return the link to an address; attach one if there is none. Raises MqtoolError if the broker refuses it."""
        if (link := self._senders.get(address)) is None:
            link = new = SendingLink(new_name(), address)
            self.retrying(lambda: self.attach(new))
            self._senders[address] = link
        return link

    def attach(self, link: Link) -> None:
        """Attach a link, unless it is attached: a reconnection does so if the reply arrived just before the loss.

        Raises:
            Lost: the connection was lost before the broker replied.
            ClosedByBroker: the broker refuses the link.
        """
        with self.changed:
            if self.is_lost and not self.reads_here:
                raise Lost
            if link.is_attached:
                return
            epoch = self.epoch
            handle = next(number for number in range(_HANDLES) if number not in self._links)
            self._links[handle] = link
            self._detached.discard(handle)
            self.transport.send([frame(0, link.attach(handle))])
        self.until(lambda: link.is_attached or handle in self._refusals, epoch)
        with self.changed:
            if (refusal := self._refusals.pop(handle, None)) is not None:
                raise refusal

    def patience(self) -> float:
        """Seconds left to wait for an outcome. The clock stops when offline or blocked by the broker."""
        if self.is_lost or not self._sent:
            self._last_outcome = time.monotonic()
        return self._last_outcome + self.confirm_timeout - time.monotonic()

    # Sending.

    def transfers(self, handle: int, outgoing: OutgoingTransfer) -> list[bytes] | None:
        """Encode the frames of a message; None if the broker has no room for them. Called under the lock."""
        number = self._broker.next_id
        frames = self._broker.frames(handle, outgoing.data, self.transport.frame_max, settled=False)
        if frames is not None:
            if not self._sent:
                self._last_outcome = time.monotonic()
            self._sent[number] = outgoing
        return frames

    def pump(self) -> None:
        """Send the messages that the broker has given credit for."""
        with self.changed:
            if self.is_lost:
                return
            links = [link for link in self._links.values() if isinstance(link, SendingLink)]
            if frames := [each for link in links for each in link.pump(self)]:
                self.transport.send(frames)
            if any(link.waiting for link in links):
                self._broker.tell()

    def send_request(self, handle: int, data: bytes, epoch: int, patience: float = math.inf) -> None:
        """Send a settled message on a link as soon as the broker has room for it, which it has not during an alarm.

        Args:
            epoch: the value of `epoch` when the link was attached.

        Raises:
            Lost: the connection is lost.
            StoppedWaiting: the command must stop.
            Unavailable: the broker has had no room for `patience` seconds.
        """
        while True:
            with self.changed:
                if self.epoch != epoch or (self.is_lost and not self.reads_here):
                    raise Lost
                frames = self._broker.frames(handle, data, self.transport.frame_max, settled=True)
                if frames is not None:
                    self.transport.send(frames)
                    return
                self._broker.tell()
                room = self._broker.room
            self.until(partial(self._broker.has_more_than, room), epoch, patience)

    # Receiving.

    def give_credit(self, receiver: Receiver) -> None:
        """Give the broker credit for as many deliveries as the receiver can accept.

        RabbitMQ 4.3.6 sends no more until the deliveries that it has taken back are settled.
        """
        with self.changed:
            if self._taken_back and not self.is_lost:
                self._send_settled(self._taken_back, Released())
                self._taken_back.clear()
            if not self.is_lost and (credit := receiver.wanted_credit()) is not None:
                self.send_flow(receiver.handle, receiver.delivery_count, credit)

    def send_flow(
        self,
        handle: int | None = None,
        delivery_count: int | None = None,
        credit: int | None = None,
        *,
        echo: bool = False,
    ) -> None:
        """Tell the broker how much the session, and the link of a handle, can accept. With `echo`, ask for a reply."""
        with self.changed:
            if self.is_lost and not self.reads_here:
                return
            self._room = _WINDOW
            flow = Flow(
                self._next_in, _WINDOW, self._broker.next_out, _WINDOW, handle, delivery_count, credit, echo=echo
            )
            self.transport.send([frame(0, flow)])

    def settle(self, deliveries: Sequence[Delivery], state: Any) -> None:
        """Tell the broker the outcome of deliveries. Skips any that are settled or from an earlier connection epoch."""
        with self.changed:
            ids = [each.delivery_tag for each in deliveries if not each.settled and self.is_current(each)]
            for each in deliveries:
                each.settled = True
            self._settle_ids(ids, state)

    def _settle_ids(self, ids: Sequence[int], state: Any) -> None:
        receivers = {}
        for number in ids:
            receiver = self.unsettled.pop(number)
            receivers[id(receiver)] = receiver
            receiver.settled(1)
        if ids:
            self.has_progressed = True
            self._send_settled(ids, state)
        for receiver in receivers.values():
            self.give_credit(receiver)

    def _send_settled(self, ids: Sequence[int], state: Any) -> None:
        self.transport.send(
            [frame(0, Disposition(True, first, last, settled=True, state=state)) for first, last in ranges(ids)]
        )

    def is_current(self, delivery: Delivery) -> bool:
        """True if a delivery can still be settled. If not, the broker delivers it again."""
        return self._has_arrived_here(delivery) and delivery.delivery_tag in self.unsettled

    def timed_out(self, delivery: Delivery) -> bool:
        """True if the broker has settled an unsettled delivery: it delivers it again."""
        return self._has_arrived_here(delivery) and delivery.delivery_tag not in self.unsettled

    def _has_arrived_here(self, delivery: Delivery) -> bool:
        return not self.is_lost and delivery.epoch == self.epoch

    def end_receiver(self, receiver: Receiver, *, stays: bool) -> None:
        """Withdraw the credit, release the deliveries that the caller has not received, and detach.

        Args:
            stays: only withdraw the credit, so that the caller can settle deliveries; release_all() does the rest.
        """
        with self.changed:
            epoch = self.epoch
            waits = receiver.stop() and not self.is_lost
            if waits:
                self.send_flow(receiver.handle, receiver.delivery_count, 0, echo=True)
        if waits:
            with suppress(Lost, MqtoolError):  # deliveries in transit arrive before the reply
                self.until(lambda: receiver.has_stopped, epoch, _STOPPED)
        with self.changed:
            rest = receiver.rest()
            if receiver.is_attached and not (stays or self.is_lost or self.failure):
                self._settle_ids([number for number in rest if number in self.unsettled], Released())
                self.transport.send([frame(0, Detach(receiver.handle, closed=True))])
                self._detached.add(receiver.handle)
                receiver.is_attached = False

    def release_all(self) -> None:
        """Stop receiving, and release all unsettled deliveries. They do not count as failed."""
        for link in [*self._links.values()]:
            if isinstance(link, Receiver):
                self.end_receiver(link, stays=True)
        with self.changed:
            if not (self.is_lost or self.failure):
                self._settle_ids([*self.unsettled], Released())

    # Frames from the broker.

    def take(self, body: bytes) -> None:
        told, end = decode_performative(body)
        if isinstance(told, Transfer):
            self._take_transfer(told, body[end:])
        elif isinstance(told, Disposition):
            self._take_disposition(told)
        else:
            self._take_other(told)

    def _take_transfer(self, told: Transfer, payload: bytes) -> None:
        self._next_in = add(self._next_in, 1)
        self._room -= 1
        link = self._incoming.get(told.handle)
        if link is not None and not told.aborted:
            link.take(told.delivery_id, payload, settled=bool(told.settled), more=bool(told.more))
        if self._room < _WINDOW // 2:
            self.send_flow()

    def _take_disposition(self, told: Disposition) -> None:
        if told.role == SENDER:  # the consumer timeout: the broker has requeued the deliveries
            for number in disposed(told, self.unsettled):
                self.unsettled.pop(number).settled(1)
                self._taken_back += [] if told.settled else [number]
            return
        now = time.monotonic()
        for number in disposed(told, self._sent):
            outgoing = self._sent[number]
            outcome = self._senders[outgoing.address].outcome(told)
            if outcome is None:
                continue
            self._last_outcome = now
            del self._sent[number]
            if is_unavailable(outcome) and now < self._leaderless_until:
                self._refused.append(outgoing)
                self.due_at = now + _PAUSE
                continue
            outgoing.decide(outcome)
            self.has_progressed |= outgoing.confirmation is Confirmation.CONFIRMED

    def _take_other(self, told: Any) -> None:
        match told:
            case Begin():
                self._has_begun = True
                self._next_in = told.next_outgoing_id
                self._broker.begun(told)
            case Attach():
                link = next(
                    (each for each in self._links.values() if each.name == told.name and each.is_for(told.role)), None
                )
                if link is None:
                    raise ValueError("a link was attached that nobody asked for")
                self._incoming[told.handle] = link
                link.attached(told)
            case Flow():
                self._broker.flow(told)
                if (known := self._incoming.get(told.handle if told.handle is not None else -1)) is not None:
                    known.flow(told)
                if told.echo:
                    self.send_flow()
            case Detach():
                self._take_detach(told)
            case End() | Close():
                raise ClosedByBroker.from_error(told.error)

    def _take_detach(self, told: Detach) -> None:
        link = self._incoming.pop(told.handle, None)
        if link is None:
            return
        was_attached, link.is_attached = link.is_attached, False
        self._links.pop(link.handle, None)
        if told.error is None or link.handle in self._detached:
            return  # the reply to our own frame, or sent before the broker received it
        self.transport.send([frame(0, Detach(link.handle, closed=True))])
        if was_attached:
            raise ClosedByBroker.from_error(told.error)
        self._refusals[link.handle] = ClosedByBroker.from_error(told.error)

    def taken(self) -> None:
        if self.due_at is not None and time.monotonic() >= self.due_at:
            self.due_at = None
            _requeue(self._refused, self._senders)
            self._refused.clear()
        self.pump()

    def reopened(self) -> None:
        self._last_outcome = time.monotonic()
        self._leaderless_until = self._last_outcome + LEADERLESS
        for link in self._links.values():
            if isinstance(link, Receiver) and link.is_kept:
                self.give_credit(link)
            elif isinstance(link, Receiver):  # it has ended while it was being attached, and has no credit
                self.end_receiver(link, stays=False)

    def lost(self) -> Callable[[], None]:
        # A link without the broker's reply is attached by the thread that waits for the reply.
        kept = [link for link in self._links.values() if link.is_attached]
        for link in self._links.values():
            link.is_attached = False
            if isinstance(link, Receiver):
                link.lost()
        self.due_at = None
        _requeue([*self._refused, *self._sent.values()], self._senders)
        self._refused.clear()
        self._sent.clear()
        self.unsettled.clear()
        self._taken_back.clear()

        def resume() -> None:
            notice = self.set_up()
            for link in kept:
                if link.is_kept:
                    self.attach(link)
            if notice is not None:
                self._notice(notice)

        return resume


def new_name() -> str:
    """Make a name for a link."""
    return f"mqtool-{os.urandom(6).hex()}"


def _requeue(sent: Sequence[OutgoingTransfer], senders: Mapping[str | None, SendingLink]) -> None:
    """Put messages that were already sent back at the front of the queues of messages waiting for credit."""
    for each in reversed(sent):
        senders[each.address].waiting.appendleft(each)
