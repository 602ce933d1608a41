"""A channel: assembles published messages, numbers deliveries, keeps what is unacknowledged, and confirms."""

from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.errors import (
    FRAME_ERROR,
    UNEXPECTED_FRAME,
    ChannelException,
    ConnectionException,
    access_refused,
    frame_error,
    malformed,
    no_such_exchange,
    no_such_queue,
    precondition_failed,
)
from mqtool.broker.embedded.exchange import Exchange
from mqtool.broker.embedded.message import BASIC_CLASS, ContentHeader, Message, parse_content_header
from mqtool.broker.embedded.queue import Queue
from mqtool.broker.embedded.wire import frames
from mqtool.broker.embedded.wire.confirms import Confirms
from mqtool.broker.embedded.wire.methods import encode_method
from mqtool.broker.embedded.wire.publishing import Transaction, check_message, publish
from mqtool.broker.embedded.wire.subscription import Subscription
from mqtool.routing.field_table import Int64, Table

if TYPE_CHECKING:
    from mqtool.broker.embedded.wire.connection import Connection

MAX_MESSAGE_SIZE = 134_217_728
"""The largest body, in bytes, that RabbitMQ takes by default."""

Unacked = tuple[Queue, Entry, Subscription | None, float]
"""A delivery: from where, what, for which consumer (None: basic.get), and when, on the monotonic clock."""


class Channel:
    """One channel of a connection.

    Attributes:
        number: its number on the connection.
        subscriptions: its consumers by tag.
        unacked: its unacknowledged deliveries by delivery tag, oldest first.
        prefetch: the limit for each consumer that starts from now on; 0 for none.
        global_prefetch: the limit for all consumers together; 0 for none.
        global_unacked: the deliveries to its consumers that count against that.
        published: how many messages to each exchange.
        confirming: whether the client selected publisher confirms.
        confirms: what has been published and not confirmed.
        transaction: what is pending, if the client selected tx.
        closing: a channel.close has been sent and not answered.
        closed: it consumes, delivers and confirms no more.
    """

    def __init__(self, number: int, connection: "Connection") -> None:
        self.number = number
        self.connection = connection
        self.broker = connection.broker
        self.vhost = connection.vhost
        self.subscriptions: dict[str, Subscription] = {}
        self.unacked: dict[int, Unacked] = {}
        self.prefetch = 0
        self.global_prefetch = self.global_unacked = 0
        self.published: dict[str, int] = {}
        self.confirming = False
        self.transaction: Transaction | None = None
        self.closing = self.closed = False
        self.last_queue: str | None = None
        self.reply_token: str | None = None
        self.reply_tag = b""
        self._delivery_tag = 0
        # The publish whose content is coming in: its bare method frame, then its header, then its body.
        self._publishing: bytes | None = None
        self._header: ContentHeader | None = None
        self._body: list[bytes] = []
        self._missing = 0
        self.confirms = Confirms()

    def counts(self) -> dict[str, int]:
        """What was published on it so far."""
        return {"publish": sum(self.published.values())}

    # -- frames in

    def receive_publish(self, payload: bytes) -> None:
        """The method frame of a basic.publish; its content follows."""
        if self._publishing is not None:
            raise self._unexpected()
        self._publishing = payload

    @property
    def publishing(self) -> bool:
        """Whether the content of a basic.publish is due."""
        return self._publishing is not None

    def receive_method(self) -> None:
        """Any other method frame came in: make sure that no content was due.

        Raises:
            ConnectionException: 505.
        """
        if self._publishing is not None:
            raise self._unexpected()

    def _unexpected(self) -> ConnectionException:
        if self._header is None:
            what = "expected content header for class 60, got non content header frame instead"
        else:
            what = "expected content body, got non content body frame instead"
        return ConnectionException(UNEXPECTED_FRAME, what)

    def receive_header(self, payload: bytes) -> None:
        """A content header frame.

        Raises:
            ConnectionException: 505 if no content was due, 501 if it makes no sense.
        """
        if self._publishing is None:
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        if self._header is not None:
            raise self._unexpected()
        if len(payload) < 14:
            raise malformed(FRAME_ERROR, 2, payload, "unknown_frame")
        try:
            header = parse_content_header(payload)
        except ValueError as error:
            raise frame_error(f"cannot decode content header: {error}") from error
        if header.class_id != BASIC_CLASS:
            raise ConnectionException(
                UNEXPECTED_FRAME,
                f"expected content header for class 60, got one for class {header.class_id} instead",
            )
        if header.body_size > MAX_MESSAGE_SIZE:
            self._publishing = None
            raise precondition_failed(
                f"message size {header.body_size} is larger than configured max size {MAX_MESSAGE_SIZE}"
            )
        self._header = header
        self._missing = header.body_size
        if not self._missing:
            self._complete(b"")

    def receive_body(self, payload: bytes) -> None:
        """A content body frame.

        Raises:
            ConnectionException: 505 if no body was due, 501 if it is longer than was announced.
        """
        if self._header is None:
            if self._publishing is not None:
                raise self._unexpected()
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        self._missing -= len(payload)
        if self._missing < 0:
            raise self._unexpected()
        if self._body:
            self._body.append(payload)
            if not self._missing:
                body, self._body = b"".join(self._body), []
                self._complete(body)
        elif self._missing:
            self._body.append(payload)
        else:
            self._complete(payload)

    def _complete(self, body: bytes) -> None:
        method, header = self._publishing, self._header
        assert method is not None
        assert header is not None
        self._publishing = self._header = None
        try:
            message = Message(method[6:-1], header, body)
        except ValueError as error:
            raise frame_error("cannot decode basic.publish") from error
        exchange = check_message(self, message, method[-1])
        publish(self, exchange, message, mandatory=bool(method[-1] & 1))

    # -- frames out

    def send(self, kind: type[Frame], **fields: str | int | bool | Table) -> None:
        """Send a method."""
        self.connection.write(frames.method_frame(self.number, encode_method(kind, **fields)))

    def deliver(self, subscription: Subscription, entry: Entry) -> None:
        """Send a message to one of the consumers."""
        self._delivery_tag = tag = self._delivery_tag + 1
        if not subscription.no_ack:
            self.unacked[tag] = (subscription.queue, entry, subscription, monotonic())
            subscription.unacked += 1
            self.global_unacked += 1
        self.connection.write(
            frames.deliver(
                self.number,
                subscription.encoded_tag,
                tag,
                entry.redelivered,
                _counted(entry) if entry.delivery_count else entry.message,
                self.connection.frame_max,
            )
        )

    def deliver_reply(self, message: Message) -> None:
        """Send a message to the direct reply-to consumer."""
        self._delivery_tag = tag = self._delivery_tag + 1
        frame_max = self.connection.frame_max
        self.connection.write(frames.deliver(self.number, self.reply_tag, tag, False, message, frame_max))

    def send_got(self, queue: Queue, entry: Entry, *, no_ack: bool) -> None:
        """Send the answer to a basic.get that found a message."""
        self._delivery_tag = tag = self._delivery_tag + 1
        if not no_ack:
            self.unacked[tag] = (queue, entry, None, monotonic())
        # A quorum queue tells the count to basic.get even if it is 0, and to consumers only if it is not.
        message = _counted(entry) if queue.kind == "quorum" else entry.message
        self.connection.write(
            frames.get_ok(self.number, tag, entry.redelivered, message, len(queue), self.connection.frame_max)
        )

    def send_return(self, message: Message) -> None:
        """Give a mandatory message back that no queue is to have."""
        self.connection.write(frames.returned(self.number, 312, "NO_ROUTE", message, self.connection.frame_max))

    # -- settling deliveries

    def take_unacked(self, delivery_tag: int, *, multiple: bool) -> list[Unacked]:
        """Take deliveries out of `unacked`; with `multiple`, up to this tag, or all of them for 0.

        Raises:
            ChannelException: 406 for a tag that is not there.
        """
        if not multiple:
            delivery = self.unacked.pop(delivery_tag, None)
            if delivery is None:
                raise precondition_failed(f"unknown delivery tag {delivery_tag}")
            return [delivery]
        if delivery_tag and delivery_tag not in self.unacked:
            raise precondition_failed(f"unknown delivery tag {delivery_tag}")
        taken = []
        for tag in list(self.unacked):
            if delivery_tag and tag > delivery_tag:
                break
            taken.append(self.unacked.pop(tag))
        return taken

    def acknowledge(self, deliveries: Iterable[Unacked]) -> None:
        """Tell the queues that messages are done with, and let the consumers have more."""
        hungry: dict[Queue, None] = {}
        for queue, entry, subscription, _ in deliveries:
            queue.acknowledge(entry)
            if subscription is not None and self._release(subscription):
                hungry[queue] = None
        self._feed(hungry)

    def reject(self, deliveries: list[Unacked], *, requeue: bool) -> None:
        """Give messages back to their queues, or dead-letter them."""
        hungry: dict[Queue, list[Entry]] = {}
        for queue, entry, subscription, _ in deliveries:
            returned = hungry.setdefault(queue, [])
            if subscription is not None:
                self._release(subscription)
            if requeue:
                returned.append(entry)
            else:
                queue.reject(entry)
        for queue, entries in hungry.items():
            if entries:
                queue.requeue(entries)
        self._feed(hungry)

    def _release(self, subscription: Subscription) -> bool:
        """One delivery less against the prefetch limits; returns whether more may be delivered because of it."""
        freed = subscription.unacked == subscription.prefetch or self.global_unacked == self.global_prefetch
        subscription.unacked -= 1
        self.global_unacked -= 1
        return freed

    def _feed(self, queues: Iterable[Queue]) -> None:
        for queue in queues:
            if not queue.deleted:
                queue.pump()
        if self.global_prefetch:
            self.feed_all()

    def feed_all(self) -> None:
        """Let the queues of all consumers deliver: a limit that they share has moved."""
        for queue in {subscription.queue: None for subscription in self.subscriptions.values()}:
            queue.pump()

    def overdue(self, timeout: float) -> bool:
        """Whether the oldest delivery has been unacknowledged for longer than this many seconds."""
        oldest = next(iter(self.unacked.values()), None)
        return oldest is not None and monotonic() - oldest[3] > timeout

    # -- publisher confirms

    def settle_publish(self, *, accepted: bool, stored: bool) -> None:
        """Confirm or refuse the publish just performed, once what is to be stored is."""
        self.confirms.published_one(accepted=accepted, stored=stored)
        if stored:
            self.broker.ledger.after_commit(self._committed)
        else:
            self.connection.confirm_soon(self)

    def _committed(self) -> None:
        self.confirms.committed_one()
        self.connection.confirm_soon(self)

    def write_confirms(self) -> None:
        """Send the confirms that are due."""
        if not self.closed and (data := self.confirms.take(self.number)):
            self.connection.write(data)

    # -- names

    def queue(self, name: str) -> Queue:
        """The queue of this name that this connection may use; the empty name is the last one declared here.

        Raises:
            ChannelException: 404 or 405.
        """
        found = self.vhost.queues.get(name)
        if found is None:
            raise no_such_queue(name, self.vhost.name)
        self.connection.check_access(found)
        return found

    def queue_name(self, name: str) -> str:
        """The name itself, or for the empty one that of the queue declared last on this channel.

        Raises:
            ChannelException: 404 if there was none.
        """
        if name:
            return name
        if self.last_queue is None:
            raise ChannelException(404, "no previously declared queue")
        return self.last_queue

    def exchange(self, name: str) -> Exchange:
        """The exchange of this name.

        Raises:
            ChannelException: 404.
        """
        found = self.vhost.exchanges.get(name)
        if found is None:
            raise no_such_exchange(name, self.vhost.name)
        return found

    def check_permission(self, what: str, kind: str, name: str) -> None:
        """Check that the user may `configure`, `write` or `read` a `queue` or an `exchange`.

        Raises:
            ChannelException: 403.
        """
        if not self.connection.may(what, name):
            raise access_refused(
                f"access to {kind} '{name or 'amq.default'}' in vhost '{self.vhost.name}' refused for user "
                f"'{self.connection.user.name}'"
            )

    # -- the end

    def shut(self) -> None:
        """Stop consuming and give back what is unacknowledged."""
        self.closed = True
        if self.reply_token is not None:
            self.broker.reply_channels.pop(self.reply_token, None)
        for subscription in list(self.subscriptions.values()):
            subscription.stop()
        self.subscriptions.clear()
        self._publishing = self._header = None
        self._body = []
        unacked, self.unacked = list(self.unacked.values()), {}
        if self.transaction is not None:
            unacked = [*self.transaction.unsettled(), *unacked]
        returned: dict[Queue, list[Entry]] = {}
        for queue, entry, _, _ in unacked:
            returned.setdefault(queue, []).append(entry)
        for queue, entries in returned.items():
            queue.requeue(entries, lost=True)

    def close(self, error: ChannelException, index: int) -> None:
        """Close it because of an error in the method of this index; frames are ignored until the client has agreed."""
        self.shut()
        self.closing = True
        self.send(
            commands.Channel.Close,
            reply_code=error.code,
            reply_text=error.reply_text,
            class_id=index >> 16,
            method_id=index & 0xFFFF,
        )


def _counted(entry: Entry) -> Message:
    """A message of a quorum queue, with how often it came back."""
    message = entry.message
    return message.replace(headers={"x-delivery-count": Int64(entry.delivery_count), **message.headers})
