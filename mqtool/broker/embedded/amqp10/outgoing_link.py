"""A link on which a client receives: a consumer of a queue with link credit."""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from mqtool.broker.embedded.amqp10.addresses import queue_address
from mqtool.broker.embedded.amqp10.errors10 import (
    DELETED,
    INTERNAL_ERROR,
    LIMIT_EXCEEDED,
    TOO_LARGE,
    ConnectionError10,
    LinkError,
    SessionError,
)
from mqtool.broker.embedded.amqp10.filtered_message import TooMuchWork
from mqtool.broker.embedded.amqp10.filters import LinkFilters
from mqtool.broker.embedded.amqp10.session_state import LinkDelivery, SessionState
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.broker import DIRECT_REPLY_TO
from mqtool.broker.embedded.model.consumers import delivery_counts
from mqtool.broker.embedded.model.firehose import trace_delivered
from mqtool.broker.embedded.model.queue import BrokerQueue, feed
from mqtool.broker.embedded.model.sectioned import Sections, encode
from mqtool.broker.embedded.model.totals import AMQP10
from mqtool.codecs.amqp10_frames import Attach, Flow, add, after, transfer_frames
from mqtool.codecs.amqp10_values import Map, Symbol
from mqtool.codecs.field_tables import Int64, Table

# Stands in for an unsettled message from a stream, so that the message need not stay in memory.
_FORGOTTEN = BacklogEntry(
    BrokerMessage(encode_address("", ""), ContentHeader.of(MessageProperties(b"\0\0"), 0), b""), 0
)


class Credit:
    """The flow state of a link on which the broker sends.

    Attributes:
        credit: how many messages the client accepts now.
        largest_credit: the most credit that the client has granted so far.
        delivery_count: the number of messages sent, as a serial number. Draining advances it without sending messages.
        draining: True if the client has asked the broker to use up its credit now and to take back the rest.
    """

    def __init__(self, session: SessionState, handle: int) -> None:
        self.session = session
        self.handle = handle
        self.credit = self.largest_credit = 0
        self.delivery_count = 0
        self.draining = False

    def receive(self, flow: Flow) -> None:
        """Set the credit from the client's flow frame."""
        seen = 0 if flow.delivery_count is None else int(flow.delivery_count)
        self.credit = max(after(add(seen, flow.link_credit or 0), self.delivery_count), 0)
        self.largest_credit = max(self.largest_credit, self.credit)
        self.draining = bool(flow.drain)

    def use(self) -> None:
        """Count a message that has been sent."""
        self.credit -= 1
        self.delivery_count = add(self.delivery_count, 1)

    def send(self, available: int, properties: Map | None = None) -> None:
        """Send the flow state to the client."""
        self.session.flow(
            handle=self.handle,
            delivery_count=self.delivery_count,
            link_credit=self.credit,
            available=available,
            drain=self.draining,
            echo=False,
            properties=properties,
        )

    def finish_drain(self, available: int, properties: Map | None = None) -> None:
        """Take back the rest of the credit, and tell the client."""
        self.delivery_count = add(self.delivery_count, self.credit)
        self.credit = 0
        self.send(available, properties)
        self.draining = False


class OutgoingLink:
    """A link on which a client receives, as a consumer of its queue.

    Attributes:
        name: the name of the link.
        queue: the queue.
        tag: the consumer tag, which is the link's handle.
        no_ack: True if messages are sent settled.
        dynamic: True if the queue was created for this link and is deleted with it.
        selector: returns True for the messages of a stream that are to be sent.
        filters: the filters in effect, by name, as the client sent them.
        flow: the link's credit.
        largest: the maximum size of a message, in bytes, that the client accepts; 0 for no limit.
    """

    def __init__(
        self, session: SessionState, attach: Attach, queue: BrokerQueue, *, settled: bool, arguments: Table
    ) -> None:
        self.session = session
        self.handle: int = attach.handle
        self.name = attach.name
        self.queue = queue
        self.tag = str(int(attach.handle))
        self.no_ack = settled
        self.exclusive = False
        self.arguments = arguments
        priority = arguments.get("x-priority", 0)
        self.priority = priority if isinstance(priority, int) else 0
        self.dynamic = False
        self.selector: Callable[[Any], bool] | None = self._selects
        self.filters: Map = {}
        self._select: Callable[[Sections], bool] = lambda _: True
        # The client may be told that this is the active consumer: once it has given credit, or at once if only one can
        # be active.
        self._may_tell = queue.kind == "quorum" and session.vhost.profile.tells_active
        self._owes_news = False
        self._stands_by = False
        self.flow = Credit(session, attach.handle)
        self.largest = attach.max_message_size or 0
        self._sent = 0
        self._totals = session.connection.broker.totals.delivered[AMQP10, queue.kind]
        #: The client's flow frames that came before the broker's attach frame was sent; None once it has been sent.
        self._early: list[Flow] | None = []
        self._is_stopped = False

    @property
    def queue_name(self) -> str:
        return self.queue.name

    @property
    def client(self) -> object:
        return self.session.connection

    @property
    def address(self) -> str:
        """The address of the queue."""
        return queue_address(self.queue.name)

    def start(self) -> None:
        """Add the consumer to its queue. Messages are sent after the answer to the attach frame, in another write.

        A client can send its attach frame and the first credit in one write. Some clients lose messages that arrive
        together with the answer, because they set up what handles messages only then. RabbitMQ sends them later, too.
        """
        self.queue.add_consumer(self)
        self.session.connection.call_soon(self._attached)

    def _attached(self) -> None:
        if self._may_tell and self.queue.options.single_active and self.queue.consumers.is_active(self):
            self._owes_news, self._may_tell = True, False
            self._tell_active()
        early, self._early = self._early, None
        for flow in early or ():
            self.receive_flow(flow)

    def filter_with(self, filters: LinkFilters) -> None:
        """Send only the messages that these filters select."""
        self._select, self.filters = filters.selector, filters.effective or {}

    def _selects(self, sections: Sections) -> bool:
        """Return True if a message of a stream is to be sent. If the filters take too long, detach the link."""
        try:
            return self._select(sections)
        except TooMuchWork as error:
            refused = LinkError(LIMIT_EXCEEDED, f"the filters take too long: {error}").error
            self._select, self.flow.credit = lambda _: False, 0
            self.session.detach_soon(self.handle, refused)
            return False

    def ready(self) -> bool:
        """True if the client accepts a message now. If output must wait, delivery from the queue resumes later."""
        if self._stands_by:
            self._tell_active()
        if self.flow.credit <= 0:
            return False
        session = self.session
        if not session.connection.writable:
            session.connection.starving[self] = None
            return False
        if not session.may_transfer:
            session.starving[self] = None
            return False
        return True

    def take(self, entry: BacklogEntry) -> None:
        """Send a message to the client."""
        self._totals.delivered += 1
        self._totals.redelivered += entry.redelivered
        self._totals.delivered_no_ack += self.no_ack
        session, hooks = self.session, self.session.connection.broker.hooks
        profile, added, payload = session.vhost.profile, _annotations(self.queue, entry), None
        with suppress(AmqpException):
            payload = encode(entry.message, profile, added, entry.delivery_count, redelivered=entry.redelivered)
        delivery_id, session.delivered = session.delivered, add(session.delivered, 1)
        if not self.no_ack:
            # A stream keeps its messages, so unsettled ones need not be held in memory as well.
            is_kept = self.queue.kind == "stream" and hooks is None
            session.unsettled[delivery_id] = LinkDelivery(
                self, self.queue, _FORGOTTEN if is_kept else entry, session.connection.now()
            )
        elif hooks is not None:
            hooks.acknowledge(self.queue, entry)
        watcher = self.queue.watcher
        if watcher is not None and (entry.position in watcher.shown or self.queue.kind == "stream"):
            watcher.delivered(self.queue, entry, self, no_ack=self.no_ack)
        self.flow.use()
        if payload is None:
            _fail(session)
            return
        if self.largest and len(payload) > self.largest:
            wrong = f"message size ({len(payload)} bytes) > maximum message size ({self.largest} bytes)"
            session.fail(SessionError(TOO_LARGE, wrong))
            return
        self.send(delivery_id, payload)
        if session.vhost.tracing:
            connection, redelivered = session.connection, entry.redelivered
            trace_delivered(connection, session.number, self.queue, entry.message, redelivered=redelivered)

    def send(self, delivery_id: int, payload: bytes) -> None:
        """Send an encoded message."""
        send_delivery(self.session, self.handle, delivery_id, self._sent, payload, settled=self.no_ack)
        self._sent = add(self._sent, 1)

    def receive_flow(self, flow: Flow) -> None:
        """Handle the client's flow frame for this link: deliver as many messages as it now accepts."""
        if self._early is not None:
            self._early.append(flow)
            return
        self.flow.receive(flow)
        self._owes_news, self._may_tell = self._owes_news or self._may_tell, False
        feed([self])
        told = not self.flow.draining and self._tell_active()
        if self.flow.draining:
            self.finish_drain()
        elif flow.echo and not told:
            self.flow.send(len(self.queue))

    def finish_drain(self) -> None:
        """End a drain, unless messages wait for the client, its window, or a turn, or to be put back into the queue."""
        if not self.flow.draining:
            return
        session = self.session
        is_held_up = not session.connection.writable or not session.may_transfer
        if self.flow.credit and is_held_up and len(self.queue):
            return
        if session.backlog:
            return
        if self.queue.line.waiting or self in self.queue.due:
            self.queue.clock.take_turn(self.finish_drain)
            return
        self.flow.finish_drain(len(self.queue) if self.queue.kind != "stream" else 0, self._news())

    def _tell_active(self) -> bool:
        """Tell the client whether this is the active consumer of its queue; return False if it already knows."""
        if (news := self._news()) is not None:
            self.flow.send(0 if self._stands_by else len(self.queue), news)
        return news is not None

    def _news(self) -> Map | None:
        """Return the flow frame properties that say if this is the active consumer; None if the client knows it."""
        is_active = self.queue.consumers.is_active(self)
        if not self._owes_news or not self.session.is_open or (self._stands_by and not is_active):
            return None
        self._owes_news, self._stands_by = not is_active, not is_active
        return {Symbol("rabbitmq:active"): is_active}

    def stop(self) -> None:
        """End the consumer, and delete the queue if it was created for this link."""
        self._early, self._is_stopped = None, True
        self.flow.draining = False
        self.queue.remove_consumer(self)
        if self.dynamic:
            self.session.vhost.deletions.soon(self.queue)

    def demoted(self) -> None:
        """Tell the client that it is no longer the active consumer, if it was told that it is."""
        if self.session.vhost.profile.tells_active and not self._may_tell:
            self._owes_news, self._stands_by = True, False
            self.session.connection.call_soon(self._tell_active)

    def cancelled(self) -> None:
        """Detach the link because its queue was deleted, unless the client has detached it meanwhile."""
        if not self._is_stopped:
            self.session.detach_soon(self.handle, LinkError(DELETED).error)


class ReplyLink:
    """A link on which a client receives direct replies, which are never queued and are sent settled.

    Attributes:
        tag: the routing key of replies, used in place of a queue name.
    """

    no_ack, largest = True, 0
    filters: Mapping[Any, Any] = MappingProxyType({})

    def __init__(self, session: SessionState, attach: Attach) -> None:
        self.session = session
        self.name = attach.name
        self.flow = Credit(session, attach.handle)
        self._token = secrets.token_urlsafe(18)
        self.tag = self.queue_name = f"{DIRECT_REPLY_TO}.{self._token}"
        self.address = queue_address(self.tag)

    def start(self) -> None:
        """Start receiving replies."""
        self.session.connection.broker.reply_consumers[self._token] = self

    def deliver_reply(self, message: BrokerMessage) -> None:
        """Send a reply. As in RabbitMQ, it is dropped if the client has given no credit."""
        session = self.session
        if self.flow.credit > 0 and session.connection.takes_replies:
            delivery_id, session.delivered = session.delivered, add(session.delivered, 1)
            try:
                payload = encode(message, session.vhost.profile)
            except AmqpException:
                _fail(session)
                return
            number = self.flow.delivery_count
            self.flow.use()
            send_delivery(session, self.flow.handle, delivery_id, number, payload, settled=True)

    def receive_flow(self, flow: Flow) -> None:
        """Handle the client's flow frame for this link."""
        self.flow.receive(flow)
        self.finish_drain()
        if flow.echo and not flow.drain:
            self.flow.send(0)

    def finish_drain(self) -> None:
        """End a drain, if the client has asked for one. Replies are never queued, so there is nothing to send first."""
        if self.flow.draining:
            self.flow.finish_drain(0)

    def stop(self) -> None:
        """Stop receiving replies."""
        self.session.connection.broker.reply_consumers.pop(self._token, None)


def _annotations(queue: BrokerQueue, entry: BacklogEntry) -> Map:
    """Return a delivery's annotations: its offset in a stream, or how often the message was delivered before."""
    if queue.kind == "stream":
        return {Symbol("x-stream-offset"): Int64(entry.position)}
    if queue.kind != "quorum" or not entry.acquired_count:
        return {}
    return {Symbol(name): count for name, count in delivery_counts(entry, queue.profile).items()}


def _fail(session: SessionState) -> None:
    """Close the connection, soon, because RabbitMQ fails to convert a message for it."""
    error = ConnectionError10(INTERNAL_ERROR, "Session error: a header of the message cannot be converted to AMQP 1.0")
    session.connection.call_soon(session.connection.failed, error)


def send_delivery(
    session: SessionState, handle: int, delivery_id: int, tag: int, payload: bytes, *, settled: bool
) -> None:
    """Send a message in as many transfers as it needs."""
    limit = session.connection.frame_max
    session.transfer(transfer_frames(session.number, handle, delivery_id, tag, payload, limit, settled=settled))
