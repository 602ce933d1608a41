"""The broker's side of an AMQP 0-9-1 channel: its state, and the checks and replies that its method handlers share."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from pamqp import commands
from pamqp.base import Frame

from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.footprint import of_message
from mqtool.broker.embedded.model.queue import BrokerQueue, Why
from mqtool.broker.embedded.model.topology_operations import check_owner, exchange_of, queue_of
from mqtool.broker.embedded.model.totals import AMQP091, Publishes
from mqtool.broker.embedded.model.virtual_host import Routing, VirtualHost
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire.amqp_frames import encode_method, short_string
from mqtool.broker.embedded.wire.amqp_session import AmqpSession
from mqtool.broker.embedded.wire.deliveries import ChannelDelivery, Deliveries
from mqtool.broker.embedded.wire.incoming_publishes import Confirms, Content
from mqtool.codecs.field_tables import Table

#: Bytes of memory counted for an uncommitted publish, in addition to those of the message.
_UNCOMMITTED_OVERHEAD = 500

#: Bytes of memory for each queue in a Routing.
_ROUTED_TO = 40


# Without this cache, publishing would take 1.3 times as long.
class PublishRoute(NamedTuple):
    """The queues of the latest plain message, cached for messages to the same address until `AmqpSession.turn` changes.

    A message is plain if routing and permissions depend only on its address: its exchange and routing key.
    """

    turn: int
    address: bytes
    exchange: BrokerExchange
    queues: Collection[BrokerQueue]


class ChannelReplyConsumer(NamedTuple):
    """A direct reply-to consumer: its tag, and the token that the broker adds to `reply-to` in requests."""

    tag: str
    token: str


class BrokerChannel:
    """One channel of a connection.

    Attributes:
        number: the channel number.
        vhost: the connection's virtual host.
        content: assembles a message that is being published from its frames.
        deliveries: the channel's consumers and unacknowledged messages.
        published: the number of messages published to each exchange.
        routed: how often they were added to a queue.
        confirms: the unconfirmed publishes; None unless the client selected publisher confirms.
        transaction: publishes and acknowledgements waiting for tx.commit; None unless the client selected transactions.
        state: `open`, `closing` (the broker sent channel.close and waits for channel.close-ok) or `closed`.
        last_queue: the name of the most recently declared queue.
        replies: the channel's direct reply-to consumer, if any.
        route: the cached queues of the latest plain message, if any.
    """

    def __init__(self, number: int, session: AmqpSession) -> None:
        self.number = number
        self.session = session
        self.vhost: VirtualHost = session.vhost
        self.content = Content(session.vhost.profile, session.add_held_bytes)
        self.deliveries = Deliveries(number, session)
        self.published: dict[str, int] = {}
        self.routed = 0
        self.confirms: Confirms | None = None
        self.transaction: Transaction | None = None
        self.state = "open"
        self.last_queue: str | None = None
        self.replies: ChannelReplyConsumer | None = None
        self.route: PublishRoute | None = None
        self._confirms_soon = False

    def counts(self) -> dict[str, int]:
        """Count the messages published, confirmed and delivered on this channel, under the management API's names."""
        confirmed = 0 if self.confirms is None else self.confirms.settled
        return {"publish": sum(self.published.values()), "confirm": confirmed, "deliver_get": self.deliveries.last_tag}

    def publishes(self) -> Publishes:
        """Count the messages published on this channel, without the unroutable ones."""
        found = Publishes(received=sum(self.published.values()), routed=self.routed)
        if self.confirms is not None:
            found.with_confirm = len(self.confirms) + self.confirms.settled
            found.confirmed = self.confirms.settled - self.confirms.refused
        return found

    def send(self, kind: type[Frame], **fields: str | int | bool | Table) -> None:
        """Send a method on this channel."""
        self.session.write(frames.method_frame(self.number, encode_method(kind, **fields)))

    def send_return(self, message: BrokerMessage) -> None:
        """Send basic.return for a mandatory message that was not routed to any queue."""
        self.session.write(frames.returned(self.number, 312, "NO_ROUTE", message, self.session.frame_max))

    def deliver_reply(self, message: BrokerMessage) -> None:
        """Send a message to the direct reply-to consumer; drop the message if the client reads too slowly."""
        if self.replies is not None and self.session.takes_replies:
            self.deliveries.deliver_unlisted(short_string(self.replies.tag), message)

    def settle_publish(self, confirms: Confirms, *, accepted: bool, stored: bool) -> None:
        """Confirm the latest publish, or nack it if not `accepted`; if `stored`, only once the message is on disk."""
        if not stored:
            confirms.published_one(accepted=accepted)
            self._confirm_soon()
            return
        ledger = self.session.broker.ledger
        if confirms.published_one(accepted=accepted, group=ledger.group):
            ledger.after_commit(self._committed)

    def _committed(self) -> None:
        assert self.confirms is not None
        self.confirms.committed_group()
        self._confirm_soon()

    def _confirm_soon(self) -> None:
        if not self._confirms_soon:
            self._confirms_soon = True
            self.session.confirm_soon(self.write_confirms)

    def write_confirms(self) -> None:
        """Send the confirms that are due."""
        self._confirms_soon = False
        confirms = self.confirms
        if self.state != "open" or confirms is None:
            return
        data, settled, nacked = confirms.take(self.number)
        if data:
            hooks = self.session.broker.hooks
            if hooks is None:
                self._send_confirms(data, settled, nacked)
            else:
                hooks.confirm(data, partial(self._send_confirms, settled=settled, nacked=nacked))

    def _send_confirms(self, data: bytes, settled: range, nacked: Sequence[int]) -> None:
        if self.state == "open":
            self.session.write(data)
            if self.vhost.watcher is not None:
                self.vhost.watcher.confirmed(self, settled, nacked)

    def queue(self, name: str) -> BrokerQueue:
        """Return the queue of this name. Raises 404 if it does not exist, 405 if another connection owns it."""
        return queue_of(self.vhost, name, self.session)

    def check_owner(self, queue: BrokerQueue) -> None:
        """Raise 405 if a queue is exclusive to another connection."""
        check_owner(queue, self.session)

    def queue_name(self, name: str) -> str:
        """Return `name` or, if it is empty, the most recently declared queue's name. Raises 404 if there is none."""
        if name:
            return name
        if self.last_queue is None:
            raise ChannelException(404, "no previously declared queue")
        return self.last_queue

    def exchange(self, name: str) -> BrokerExchange:
        """Return the exchange of this name; raise 404 if it does not exist."""
        return exchange_of(self.vhost, name)

    def stop_replies(self) -> None:
        """End the direct reply-to consumer, if any."""
        if self.replies is not None:
            self.session.broker.reply_consumers.pop(self.replies.token, None)
            self.replies = None

    def shut(self, why: Why = Why.CLOSED) -> None:
        """Close the channel on the broker's side: end its consumers and requeue its unacknowledged messages."""
        if self.state == "open":
            self.session.broker.totals.published[AMQP091].add(self.publishes())
        self.state = "closed"
        self.stop_replies()
        self.content.drop()
        uncommitted: Iterable[ChannelDelivery] = ()
        if self.transaction is not None:
            self.session.add_held_bytes(-self.transaction.held_bytes)
            uncommitted = self.transaction.deliveries().values()
        self.deliveries.shut(uncommitted, why)
        self.session.broker.announce(
            "channel.closed", pid=self.deliveries.pid, user_who_performed_action=self.session.user.name
        )

    def close(self, error: ChannelException, index: int) -> None:
        """Send channel.close, and ignore further frames until the client sends channel.close-ok.

        Args:
            error: the reply code and text.
            index: the method that caused the error, as class id << 16 | method id; 0 if none did.
        """
        why = f"{error.code} {error.reply_text}"
        closed = f"channel {self.number} closed: {why}"
        self.session.log_once_a_second(logging.INFO, f"channel {error.code}", closed, often=True)
        if (hooks := self.session.broker.hooks) is not None:
            hooks.closed(self.vhost, "channel", why)
        self.shut()
        self.state = "closing"
        self.send(
            commands.Channel.Close,
            reply_code=error.code,
            reply_text=error.reply_text,
            class_id=index >> 16,
            method_id=index & 0xFFFF,
        )


class UncommittedPublish(NamedTuple):
    """A publish that is waiting for tx.commit. `routing` is None for a direct reply."""

    message: BrokerMessage
    routing: Routing | None
    mandatory: bool


@dataclass
class Transaction:
    """Publishes and acknowledgements that are waiting for tx.commit. Deliveries are stored by delivery tag."""

    publishes: list[UncommittedPublish] = field(default_factory=list)
    held_bytes: int = 0
    acked: dict[int, ChannelDelivery] = field(default_factory=dict)
    rejected: dict[int, ChannelDelivery] = field(default_factory=dict)
    requeued: dict[int, ChannelDelivery] = field(default_factory=dict)

    def add(self, publish: UncommittedPublish) -> int:
        """Add a publish, and return the bytes of memory counted for it."""
        size = of_message(publish.message) + _UNCOMMITTED_OVERHEAD
        if publish.routing is not None:
            queues, last = publish.routing.queues, self.publishes[-1].routing if self.publishes else None
            if last is None or last.queues is not queues:  # plain messages share the queues of the one before
                size += _ROUTED_TO * len(queues)
        self.publishes.append(publish)
        self.held_bytes += size
        return size

    def deliveries(self) -> dict[int, ChannelDelivery]:
        return {**self.acked, **self.rejected, **self.requeued}
