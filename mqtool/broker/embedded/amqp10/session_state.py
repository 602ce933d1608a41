"""The part of a session that its links use: its windows, unsettled deliveries, and outcomes that are to be sent."""

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from mqtool.broker.embedded.amqp10.amqp10_socket import Amqp10Socket
from mqtool.broker.embedded.amqp10.errors10 import INVALID_FIELD, LIMIT_EXCEEDED, WINDOW_VIOLATION, SessionError
from mqtool.broker.embedded.model.amqp_message import ContentHeader
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.consumers import QueueConsumer
from mqtool.broker.embedded.model.protocol_conversion import table_to_091
from mqtool.broker.embedded.model.queue import BrokerQueue, consumer_timeout
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.amqp10_frames import (
    RECEIVER,
    Accepted,
    Begin,
    Disposition,
    Error,
    Flow,
    Modified,
    Rejected,
    Released,
    add,
    after,
    frame,
)
from mqtool.codecs.amqp10_values import Map, Symbol
from mqtool.codecs.field_tables import encode_table

#: How many transfers the client may send at first. The broker reopens the window when half of it is left.
INCOMING_WINDOW = 400

#: Annotations in a client's dispositions may grow the headers of a message up to this many bytes: those that fit into
#: one frame for consumers of AMQP 0-9-1.
_LONGEST_HEADER = 128 * 1024 - 64

#: Annotations in one disposition may grow the headers of all its messages by up to this many bytes.
_MOST_ADDED_BYTES = 16 * 1024 * 1024

#: The outgoing window. It limits nothing: deliveries are limited by the client's incoming window and by link credit.
_UNLIMITED = 0xFFFF_FFFF


class LinkPublisher(Protocol):
    """The link on which a message was published, as the session sees it."""

    def settled(self, count: int) -> None:
        """Note that `count` messages have been settled, so the link may need more credit."""


class LinkDelivery:
    """An unsettled message that was sent to the client.

    Attributes:
        link: the link on which it was sent.
        at: the time of the delivery on the event loop's clock, in seconds.
    """

    __slots__ = ("at", "entry", "link", "queue")

    def __init__(self, link: QueueConsumer, queue: BrokerQueue, entry: BacklogEntry, at: float) -> None:
        self.link = link
        self.queue = queue
        self.entry = entry
        self.at = at

    def is_late(self, default: float, now: float) -> bool:
        """True if the message has been unsettled for longer than the link's, the queue's or the default timeout."""
        timeout = consumer_timeout(self.queue, self.link.arguments, default)
        return timeout is not None and now - self.at > timeout


class NewAnnotations:
    """Annotations in a client's disposition, which the messages that it settles will share.

    Raises:
        SessionError: AMQP 0-9-1 has no headers for them.
    """

    def __init__(self, annotations: Map) -> None:
        try:
            self._headers = table_to_091(annotations.items())
            self._encoded = encode_table(self._headers)
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            raise SessionError(
                INVALID_FIELD, f"message-annotations in DISPOSITION cannot be stored: {error}"
            ) from error
        self._added_bytes = 0

    def add_to(self, delivery: LinkDelivery) -> None:
        """Add the annotations to a message. Only quorum queues keep them.

        Raises:
            SessionError: the message has too many headers, or all messages together have.
        """
        if delivery.queue.kind != "quorum":
            return
        message = delivery.entry.message
        properties = message.properties.with_more_headers(self._headers, self._encoded)
        changed = message.copy(message.address, ContentHeader.of(properties, len(message.body)))
        if len(changed.header.raw) > _LONGEST_HEADER:
            wrong = f"the headers of a message would have more than {_LONGEST_HEADER} bytes"
            raise SessionError(LIMIT_EXCEEDED, wrong)
        self._added_bytes += len(self._encoded)
        if self._added_bytes > _MOST_ADDED_BYTES:
            wrong = f"the annotations of all messages in DISPOSITION would have more than {_MOST_ADDED_BYTES} bytes"
            raise SessionError(LIMIT_EXCEEDED, wrong)
        delivery.queue.ledger.set_aside(delivery.entry)
        delivery.entry.message = changed
        delivery.queue.ledger.hold(delivery.entry)


def check_outcome(state: Any) -> None:
    """Raise SessionError if the state in a client's disposition is not an outcome, or has reserved annotations."""
    if not isinstance(state, Accepted | Rejected | Released | Modified):
        shown = "undefined" if state is None else type(state).__name__.lower()
        raise SessionError(INVALID_FIELD, f"Unrecognised state: {shown} in DISPOSITION")
    for key in (isinstance(state, Modified) and state.message_annotations) or ():
        if not (isinstance(key, Symbol) and key.startswith("x-")):
            raise SessionError(INVALID_FIELD, f"reserved annotation key in DISPOSITION: {key}")


class Settlement(NamedTuple):
    """The outcome of a published message. `state` is None if the client sent the message settled."""

    link: LinkPublisher
    delivery_id: int
    state: Any


class SessionState(ABC):
    """A session without its links, which the subclass `Session` adds.

    Attributes:
        number: the channel number, used in both directions.
        unsettled: the unsettled deliveries by delivery id, oldest first.
        starving: the consumers whose deliveries are paused until the client opens its window.
        backlog: encoded transfers that wait until the client opens its window.
        delivered: the number of deliveries, settled or not.
        is_open: True until either side ends the session.
    """

    def __init__(self, connection: Amqp10Socket, number: int, begin: Begin) -> None:
        self.connection = connection
        self.number = number
        self.vhost: VirtualHost = connection.vhost
        self.unsettled: dict[int, LinkDelivery] = {}
        self.starving: dict[QueueConsumer, None] = {}
        self.backlog: deque[bytes] = deque()
        self.delivered = 0
        self.is_open = True
        self._next_incoming: int = begin.next_outgoing_id
        self._next_outgoing = 0
        self._remote_window: int = begin.incoming_window
        self._remote_outgoing_window: int = begin.outgoing_window
        self._is_shut = bool(connection.broker.alarms)
        self._window = 0 if self._is_shut else INCOMING_WINDOW
        self._margin = 0
        # Outcomes that can be sent now; and those whose messages are not on disk yet, one list per commit group.
        self._settled: list[Settlement] = []
        self._stored: deque[list[Settlement]] = deque()
        self._group = 0

    @abstractmethod
    def detach_soon(self, handle: int, error: Error) -> None:
        """Detach a link because of an error, once the current event has been handled and answered."""

    @abstractmethod
    def fail(self, error: SessionError) -> None:
        """End the session because of an error, once the current event has been handled."""

    @property
    def may_transfer(self) -> bool:
        """True if the client's window is open."""
        return self._remote_window > 0 and not self.backlog

    @property
    def windows(self) -> dict[str, int]:
        """The windows and the ids of the next transfers, named as in the management API."""
        return {
            "next_incoming_id": self._next_incoming,
            "incoming_window": max(self._window, 0),
            "next_outgoing_id": self._next_outgoing,
            "remote_incoming_window": self._remote_window,
            "remote_outgoing_window": self._remote_outgoing_window,
        }

    def send(self, performative: Any) -> None:
        """Send a performative on this session's channel."""
        self.connection.send(self.number, performative)

    def send_begin(self, handle_max: int) -> None:
        """Answer the client's begin frame."""
        self.send(Begin(self.number, 0, self._window, _UNLIMITED, handle_max))

    def flow(self, **fields: Any) -> None:
        """Send a flow frame with the session's windows and, if given in `fields`, the state of a link."""
        self.send(Flow(self._next_incoming, max(self._window, 0), self._next_outgoing, _UNLIMITED, **fields))

    def count_transfer(self) -> None:
        """Count a transfer from the client, and reopen the window once half of it has been used.

        Raises:
            SessionError: the client has sent more than its window allows.
        """
        if self.connection.broker.alarms and not self._is_shut:
            # Tolerate transfers that the client sent before it learned of this: up to another full window.
            self._is_shut, self._window, self._margin = True, 0, INCOMING_WINDOW
            self.flow()
        self._window -= 1
        self._next_incoming = add(self._next_incoming, 1)
        if self._window < -self._margin:
            misspelt = f"incoming window violation (tolerated excess tranfers: {self._margin})"  # as RabbitMQ spells it
            raise SessionError(WINDOW_VIOLATION, misspelt)
        if self._window <= INCOMING_WINDOW // 2 and not self._is_shut:
            self._window = INCOMING_WINDOW
            self.flow()

    def reopen_window(self) -> None:
        """Reopen the window after an alarm."""
        if self._is_shut:
            self._is_shut, self._window, self._margin = False, INCOMING_WINDOW, 0
            self.flow()

    def receive_windows(self, flow: Flow) -> None:
        """Set the client's windows from its flow frame, and send the transfers that were waiting for them.

        Raises:
            SessionError: the client claims to have received more transfers than were sent.
        """
        seen = 0 if flow.next_incoming_id is None else int(flow.next_incoming_id)
        if after(seen, self._next_outgoing) > 0:
            raise SessionError(
                WINDOW_VIOLATION, f"next-incoming-id from FLOW ({seen}) leads next-outgoing-id ({self._next_outgoing})"
            )
        self._next_incoming, self._remote_outgoing_window = flow.next_outgoing_id, flow.outgoing_window
        self._remote_window = max(after(add(seen, flow.incoming_window), self._next_outgoing), 0)
        while self.backlog and self._remote_window:
            waiting = self.backlog.popleft()
            self.connection.add_held_bytes(-len(waiting))
            self._write_transfer(waiting)

    def transfer(self, frames: Iterable[bytes]) -> None:
        """Send transfer frames, or keep them until the client opens its window."""
        for each in frames:
            if self.may_transfer:
                self._write_transfer(each)
            else:
                self.connection.add_held_bytes(len(each))
                self.backlog.append(each)

    def _write_transfer(self, data: bytes) -> None:
        self._remote_window -= 1
        self._next_outgoing = add(self._next_outgoing, 1)
        self.connection.write(data)

    def settle(self, settlement: Settlement, *, stored: bool) -> None:
        """Send the outcome of a published message; if `stored`, wait until the message is on disk."""
        if not stored:
            self._settled.append(settlement)
            self.connection.settle_soon(self.write_dispositions)
            return
        ledger = self.connection.broker.ledger
        if ledger.group == self._group and self._stored:
            self._stored[-1].append(settlement)
            return
        self._group = ledger.group
        self._stored.append([settlement])
        ledger.after_commit(self._committed)

    def _committed(self) -> None:
        self._settled += self._stored.popleft()
        self.connection.settle_soon(self.write_dispositions)

    def write_dispositions(self) -> None:
        """Send the outcomes that are due. Consecutive messages with the same outcome share a frame."""
        settled, self._settled = self._settled, []
        if not settled or not self.is_open:
            return
        counts: dict[LinkPublisher, int] = {}
        frames: list[bytes] = []
        first = last = None
        state: Any = None
        for each in settled:
            counts[each.link] = counts.get(each.link, 0) + 1
            if each.state is None:
                continue
            is_same = type(each.state) is type(state) and each.state == state  # Accepted() == Released(): both are ()
            if last is not None and each.delivery_id == add(last, 1) and is_same:
                last = each.delivery_id
                continue
            if first is not None and last is not None:
                frames.append(self._disposition(first, last, state))
            first = last = each.delivery_id
            state = each.state
        if first is not None and last is not None:
            frames.append(self._disposition(first, last, state))
        hooks = self.connection.broker.hooks
        if hooks is None or not frames:
            self.connection.write(b"".join(frames))
        else:
            hooks.confirm(b"".join(frames), self._send_late)
        for link, count in counts.items():
            link.settled(count)

    def _send_late(self, frames: bytes) -> None:
        if self.is_open:
            self.connection.write(frames)

    def _disposition(self, first: int, last: int, state: Any) -> bytes:
        until = None if first == last else last
        return frame(self.number, Disposition(RECEIVER, first, until, settled=True, state=state))
