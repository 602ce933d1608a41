"""One session: attaches and detaches links, and passes frames to them. An error detaches a link or ends the session."""

from collections.abc import Iterable, Iterator
from typing import Any

from mqtool.broker.embedded.amqp10.amqp10_socket import Amqp10Socket
from mqtool.broker.embedded.amqp10.attaching import attach_incoming, attach_outgoing, check_attach
from mqtool.broker.embedded.amqp10.errors10 import (
    FRAMING_ERROR,
    HANDLE_IN_USE,
    INTERNAL_ERROR,
    LIMIT_EXCEEDED,
    MISSING,
    UNATTACHED,
    DetachError,
    LinkError,
    SessionError,
    condition_of,
)
from mqtool.broker.embedded.amqp10.incoming_link import IncomingLink
from mqtool.broker.embedded.amqp10.management_pair import ManagementLinks
from mqtool.broker.embedded.amqp10.outgoing_link import OutgoingLink, ReplyLink
from mqtool.broker.embedded.amqp10.session_state import LinkDelivery, NewAnnotations, SessionState, check_outcome
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.footprint import CONSUMER
from mqtool.broker.embedded.model.queue import BrokerQueue, Why, feed
from mqtool.broker.embedded.model.totals import AMQP10
from mqtool.codecs.amqp10_frames import (
    RECEIVER,
    SENDER,
    Accepted,
    Attach,
    Begin,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Modified,
    Rejected,
    Released,
    Transfer,
    disposed,
)
from mqtool.codecs.amqp10_values import Symbol

#: The highest handle: RabbitMQ allows 256 links on a session.
HANDLE_MAX = 255


def _delivery_time(state: Modified) -> int | None:
    """Return when a client wants a modified message to be delivered again, in milliseconds since 1970."""
    time = (state.message_annotations or {}).get(Symbol("x-opt-delivery-time"))
    return time if isinstance(time, int) and not isinstance(time, bool) else None


def _error_of(error: SessionError | AmqpException) -> Error:
    return error.error if isinstance(error, SessionError) else SessionError(*condition_of(error)).error


def _annotate_and_settle(
    session: "Amqp10Session", added: NewAnnotations, known: list[int], disposition: Disposition
) -> Iterator[None]:
    """Add annotations to messages in steps, then settle them. Meanwhile, some may be settled in another way."""
    try:
        for each in known:
            if "memory" in session.connection.broker.alarms:
                raise SessionError(LIMIT_EXCEEDED, "low on memory: message annotations are not stored")
            if each in session.unsettled:
                added.add_to(session.unsettled[each])
            yield
        if session.is_open:
            session.settle_known([each for each in known if each in session.unsettled], disposition)
    except (SessionError, AmqpException) as error:
        session.end(_error_of(error))


def _answer(session: "Amqp10Session", steps: Iterator[None]) -> Iterator[None]:
    """Handle a request to the management node in steps. On an error, end the session."""
    try:
        yield from steps
    except (SessionError, AmqpException) as error:
        session.end(_error_of(error))


class Amqp10Session(SessionState):
    """A session of a connection.

    Attributes:
        incoming, outgoing: the links on which the client publishes and receives, by handle.
        management: the links to the management node.
        handle_max: the highest handle that a link may have.
    """

    def __init__(self, connection: Amqp10Socket, number: int, begin: Begin) -> None:
        super().__init__(connection, number, begin)
        self.incoming: dict[int, IncomingLink] = {}
        self.outgoing: dict[int, OutgoingLink | ReplyLink] = {}
        self.management = ManagementLinks(self)
        self._sizes: dict[int, int] = {}
        self.handle_max = HANDLE_MAX if begin.handle_max is None else min(begin.handle_max, HANDLE_MAX)
        self.send_begin(self.handle_max)

    def receive(self, performative: Any, payload: bytes, size: int) -> None:
        """Handle a frame. On an error, detach the link or end the session.

        Args:
            size: the size of the encoded performative, in bytes.
        """
        try:
            self._receive(performative, payload, size)
        except LinkError as error:
            if isinstance(error, DetachError) or self.vhost.profile.detaches_links:
                self.detach(performative.handle, error.error)
            else:
                self.end(error.error)
        except (SessionError, AmqpException) as error:
            self.end(_error_of(error))

    def _receive(self, performative: Any, payload: bytes, size: int) -> None:
        match performative:
            case Transfer():
                self._transfer(performative, payload)
            case Disposition():
                self._dispose(performative)
            case Flow():
                self._flow(performative)
            case Attach():
                self._attach(performative, size)
            case Detach():
                self._detach(performative)
            case End():
                self.end(None)
            case _:
                raise SessionError(INTERNAL_ERROR, f"Unexpected frame {type(performative).__name__.lower()}")

    def _transfer(self, transfer: Transfer, payload: bytes) -> None:
        self.count_transfer()
        link = self.incoming.get(transfer.handle)
        if link is None:
            self.connection.work(_answer(self, self.management.transfer(transfer, payload)))
            return
        if (steps := link.transfer(transfer, payload)) is not None:
            self.connection.work(steps)

    def _flow(self, flow: Flow) -> None:
        was_open = self.may_transfer
        self.receive_windows(flow)
        if not was_open and self.may_transfer:
            starving, self.starving = self.starving, {}
            feed(starving)
            self.finish_drains()
        if flow.handle is None:
            if flow.echo:
                self.flow()
        elif flow.handle in self.outgoing:
            self.outgoing[flow.handle].receive_flow(flow)
        elif not self.management.flow(flow) and flow.handle not in self.incoming:
            raise SessionError(UNATTACHED, f"Unattached link handle: {flow.handle}")

    def finish_drains(self) -> None:
        """End the drain of each link that has sent all the messages that the client asked for."""
        for link in self.outgoing.values():
            link.finish_drain()

    def _dispose(self, disposition: Disposition) -> None:
        """Settle deliveries with the outcome that the client sent."""
        if disposition.role != RECEIVER:
            raise SessionError(INTERNAL_ERROR, "Unexpected frame disposition")
        if not self.unsettled:
            return
        check_outcome(disposition.state)
        known = disposed(disposition, self.unsettled)
        if isinstance(disposition.state, Modified) and disposition.state.message_annotations:
            added = NewAnnotations(disposition.state.message_annotations)
            self.connection.work(_annotate_and_settle(self, added, known, disposition))
        else:
            self.settle_known(known, disposition)

    def settle_known(self, known: list[int], disposition: Disposition) -> None:
        """Settle unsettled deliveries with the outcome that the client sent, and answer if it asks for that."""
        # A delivery stays in `unsettled` until it is its turn, so that the end of the session requeues the rest.
        self._settle((self.unsettled.pop(each) for each in known), disposition.state)
        if not disposition.settled:
            self.send(disposition._replace(role=SENDER, settled=True))

    def _settle(self, deliveries: Iterable[LinkDelivery], state: Any) -> None:
        match state:
            case Accepted():
                self._accept(deliveries)
            case Rejected():
                self._reject(deliveries, failed=True)
            case Released():
                self._requeue(deliveries, Why.RELEASED)
            case Modified(undeliverable_here=True):
                self._reject(deliveries, failed=bool(state.delivery_failed))
            case Modified():
                why = Why.FAILED if state.delivery_failed else Why.RELEASED
                self._requeue(deliveries, why, _delivery_time(state))

    def _accept(self, deliveries: Iterable[LinkDelivery]) -> None:
        hooks = self.connection.broker.hooks
        lost = []
        for each in deliveries:
            if hooks is None or hooks.acknowledge(each.queue, each.entry):
                each.queue.acknowledge(each.entry)
                self.connection.broker.totals.delivered[AMQP10, each.queue.kind].acknowledged += 1
            else:
                lost.append(each)
        self._requeue(lost, Why.RELEASED)

    def _reject(self, deliveries: Iterable[LinkDelivery], *, failed: bool) -> None:
        hooks = self.connection.broker.hooks
        for each in deliveries:
            if hooks is not None:
                hooks.rejected(each.queue, each.entry, requeue=False)
            # A stream keeps its messages, whatever the outcome of a delivery.
            if each.queue.kind != "stream":
                each.queue.reject(each.entry, failed=failed)

    def _requeue(self, deliveries: Iterable[LinkDelivery], why: Why, not_before: int | None = None) -> None:
        hooks = self.connection.broker.hooks
        returned: dict[BrokerQueue, list[BacklogEntry]] = {}
        for each in deliveries:
            if hooks is not None and not why.is_end:
                hooks.rejected(each.queue, each.entry, requeue=True)
            if each.queue.kind != "stream":
                returned.setdefault(each.queue, []).append(each.entry)
        for queue, entries in returned.items():
            queue.requeue(entries, why, not_before)

    def _attach(self, attach: Attach, size: int) -> None:
        """Attach a link. Count the size of its frame as memory, since the link keeps its name and filters."""
        handle = attach.handle
        if handle > self.handle_max:
            raise SessionError(
                FRAMING_ERROR, f"link handle value ({handle}) exceeds maximum link handle value ({self.handle_max})"
            )
        if handle in self.incoming or handle in self.outgoing or handle in self.management:
            raise SessionError(HANDLE_IN_USE, f"handle {handle} is already associated with a link")
        try:
            check_attach(attach)
            self._sizes[handle] = size + CONSUMER
            self.connection.add_held_bytes(size + CONSUMER)
            if self.management.attach(attach):
                return
            if attach.role == SENDER:
                incoming, answer = attach_incoming(self, attach)
                self.incoming[handle] = incoming
                self.send(answer)
                incoming.start()
            else:
                outgoing, answer = attach_outgoing(self, attach)
                self.outgoing[handle] = outgoing
                self.send(answer)
                outgoing.start()
        except LinkError as error:
            self._release(handle)
            if attach.role == SENDER and error.error.condition == MISSING and self.vhost.watcher is not None:
                self.vhost.watcher.unknown_address(self.connection, attach.target.address)
            if not self.vhost.profile.detaches_links:
                raise
            self._refuse(attach, error.error)

    def _release(self, handle: int) -> None:
        self.connection.add_held_bytes(-self._sizes.pop(handle, 0))

    def _refuse(self, attach: Attach, error: Error) -> None:
        """Answer with an attach frame without a terminus, then detach the link with the error."""
        is_publisher = attach.role == SENDER
        answer = Attach(
            attach.name,
            attach.handle,
            not attach.role,
            attach.snd_settle_mode,
            attach.rcv_settle_mode,
            source=attach.source if is_publisher else None,
            target=None if is_publisher else attach.target,
            initial_delivery_count=None if is_publisher else 0,
        )
        self.send(answer)
        self.send(Detach(attach.handle, closed=True, error=error))

    def _detach(self, detach: Detach) -> None:
        """Handle the client's detach frame."""
        is_known = self._remove(detach.handle)
        if is_known:
            self.send(Detach(detach.handle, closed=detach.closed))

    def detach(self, handle: int, error: Error) -> None:
        """Detach a link because of an error."""
        if self._remove(handle):
            self.send(Detach(handle, closed=True, error=error))

    def detach_soon(self, handle: int, error: Error) -> None:
        link = self._link(handle)

        def detach() -> None:
            if link is not None and self._link(handle) is link:  # the client may have detached it meanwhile
                self.detach(handle, error)

        self.connection.call_soon(detach)

    def _link(self, handle: int) -> IncomingLink | OutgoingLink | ReplyLink | None:
        return self.incoming.get(handle) or self.outgoing.get(handle)

    def _remove(self, handle: int) -> bool:
        """Remove a link, and requeue its unsettled deliveries. Returns False if there is no such link."""
        self._release(handle)
        incoming = self.incoming.pop(handle, None)
        if incoming is not None:
            incoming.stop()
            return True
        outgoing = self.outgoing.pop(handle, None)
        if outgoing is None:
            return self.management.detach(handle)
        outgoing.stop()
        ids = [number for number, each in self.unsettled.items() if each.link is outgoing]
        deliveries = [self.unsettled.pop(number) for number in ids]
        self._requeue(deliveries, Why.DETACHED)
        return True

    def check_overdue(self, timeout: float) -> None:
        """Release deliveries that have been unsettled for longer than their consumer timeout.

        RabbitMQ versions before 4.3 have no such limit for AMQP 1.0.

        Args:
            timeout: the broker's consumer timeout, in seconds. A link's property or the queue may say otherwise.
        """
        if self.vhost.profile.consumer_timeouts != "quorum":
            return
        now = self.connection.now()
        overdue = {number: each for number, each in self.unsettled.items() if each.is_late(timeout, now)}
        for number in overdue:
            del self.unsettled[number]
            self.send(Disposition(SENDER, number, settled=False, state=Released()))
        self._requeue(overdue.values(), Why.TIMED_OUT)

    def fail(self, error: SessionError) -> None:
        self.connection.call_soon(self.end, error.error)

    def close(self, error: AmqpException) -> None:
        """End the session with the error that an injected fault specifies."""
        self.end(SessionError(*condition_of(error)).error)

    def end(self, error: Error | None) -> None:
        """End the session, and tell the client."""
        if self.is_open:
            self.write_dispositions()
            self.shut()
            self.send(End(error))
            self.connection.forget_session(self.number)

    def shut(self, why: Why = Why.CLOSED) -> None:
        """End all links and requeue the unsettled deliveries."""
        self.is_open = False
        outgoing, self.outgoing = list(self.outgoing.values()), {}
        for each in outgoing:
            each.stop()
        for link in self.incoming.values():
            link.stop()
        self.incoming.clear()
        deliveries, self.unsettled = self.unsettled, {}
        self._requeue(deliveries.values(), why)
        self.connection.add_held_bytes(-sum(map(len, self.backlog)) - sum(self._sizes.values()))
        self.backlog.clear()
        self._sizes.clear()
