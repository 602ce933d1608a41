"""A link on which a client publishes: assembles messages from transfers, routes them, and settles them."""

import re
from collections.abc import Generator, Iterator

from mqtool.broker.embedded.amqp10.addresses import PublishTarget, parse_target
from mqtool.broker.embedded.amqp10.errors10 import (
    DECODE_ERROR,
    DELETED,
    FAILED,
    INVALID_FIELD,
    LIMIT_EXCEEDED,
    MISSING,
    TOO_LARGE,
    TRANSFER_LIMIT,
    UNAUTHORIZED,
    UNSUPPORTED,
    DetachError,
    LinkError,
    SessionError,
)
from mqtool.broker.embedded.amqp10.session_state import SessionState, Settlement
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.broker import DIRECT_REPLY_TO
from mqtool.broker.embedded.model.clock import rest_of
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.firehose import trace_published
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.sectioned import BadCarbonCopies, NotAMessage, Sections, parse
from mqtool.broker.embedded.model.totals import AMQP10
from mqtool.broker.embedded.model.virtual_host import Publication, enqueue_in_steps
from mqtool.codecs.amqp10_frames import (
    SECOND,
    SETTLED,
    UNSETTLED,
    Accepted,
    Attach,
    Disposition,
    Error,
    Rejected,
    Released,
    Transfer,
    add,
)
from mqtool.codecs.amqp10_values import Symbol

#: A publisher's initial credit. It is topped up when half of it is left, unless this many messages are unsettled.
LINK_CREDIT = 170

_ACCEPTED, _RELEASED = Accepted(), Released()

_REPLY_KEY = re.compile(re.escape(DIRECT_REPLY_TO) + r"\.[\w-]{24}", re.ASCII)
_DELIVERED = Publication(routed=True, accepted=True, stored=False)
_UNROUTED = Publication(routed=False, accepted=True, stored=False)


class _Partial:
    """The transfers of a message that have been received so far."""

    def __init__(self, delivery_id: int, *, settled: bool) -> None:
        self.delivery_id = delivery_id
        self.settled = settled
        self.data = bytearray()


class _Undeliverable(Exception):
    """A message that cannot be published: its exchange does not exist, or its address is not valid."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.error = Error(condition, description)


class IncomingLink:
    """A link on which a client publishes.

    Attributes:
        handle, name: the link's number and name.
        target: where messages go; None if each message has its own address.
        unsettled: the number of messages whose outcome is not known yet.
        mode: the settle mode that the client has chosen, if any.
        delivery_count: the number of messages received, as a serial number.
        credit: how many messages the client may send now.
    """

    def __init__(self, session: SessionState, attach: Attach, target: PublishTarget | None) -> None:
        self.session = session
        self.handle: int = attach.handle
        self.name = attach.name
        self.target = target
        self.unsettled = 0
        self.mode = attach.snd_settle_mode
        self.delivery_count: int = attach.initial_delivery_count or 0
        self.credit = LINK_CREDIT
        self._partial: _Partial | None = None
        self._queue: BrokerQueue | None = None

    def start(self) -> None:
        """Give the client its initial credit."""
        if self.target is not None and self.target.queue is not None:
            self._queue = self.session.vhost.queues.get(self.target.queue)
        if self._queue is not None:  # not for direct replies
            self._queue.publishers.add(self._queue_deleted)
        self._send_credit()

    def stop(self) -> None:
        """Discard an incomplete message, and stop watching the queue."""
        self._drop()
        if self._queue is not None:
            self._queue.publishers.discard(self._queue_deleted)

    def _queue_deleted(self) -> None:
        self.session.detach_soon(self.handle, DetachError(DELETED).error)

    def _send_credit(self) -> None:
        self.session.flow(handle=self.handle, delivery_count=self.delivery_count, link_credit=self.credit)

    def settled(self, count: int) -> None:
        """Note that the outcomes of `count` messages have been sent; top up the credit if it is low."""
        self.unsettled -= count
        self._top_up()

    def _top_up(self) -> None:
        if self.credit <= LINK_CREDIT // 2 and self.unsettled < LINK_CREDIT and self.session.is_open:
            self.credit = LINK_CREDIT
            self._send_credit()

    def transfer(self, transfer: Transfer, payload: bytes) -> Iterator[None] | None:
        """Handle a transfer, or return steps that do.

        Raises LinkError or SessionError if it is not valid or its message cannot be published.
        """
        partial = self._partial
        if partial is None:
            if transfer.delivery_id is None:
                raise LinkError(INVALID_FIELD, "the first transfer of a delivery has no delivery-id")
            partial = self._partial = _Partial(transfer.delivery_id, settled=bool(transfer.settled))
        else:
            _check_continuation(transfer, partial)
        size, limit = len(partial.data) + len(payload), self.session.vhost.profile.largest_message
        if size > limit:
            self._drop()
            raise SessionError(TOO_LARGE, f"message size ({size} bytes) > maximum message size ({limit} bytes)")
        if transfer.aborted:
            self._drop()
            return None
        if transfer.more:
            partial.data += payload
            self.session.connection.add_held_bytes(len(payload))
            return None
        if self.credit <= 0:
            raise DetachError(TRANSFER_LIMIT)
        whole = bytes(partial.data + payload) if partial.data else payload
        self._drop()
        self._check_modes(transfer, settled=partial.settled)
        return self._publish(partial, whole, transfer.delivery_tag or b"")

    def _drop(self) -> None:
        """Discard an incomplete message, if any."""
        if self._partial is not None:
            self.session.connection.add_held_bytes(-len(self._partial.data))
            self._partial = None

    def _check_modes(self, transfer: Transfer, *, settled: bool) -> None:
        if (self.mode, settled) in ((UNSETTLED, True), (SETTLED, False)):
            mode = "settled" if self.mode else "unsettled"
            raise LinkError(
                INVALID_FIELD,
                f"sender settle mode is '{mode}' but transfer settled flag is interpreted as being "
                f"'{str(settled).lower()}'",
            )
        if transfer.rcv_settle_mode == SECOND and not settled:
            raise LinkError(UNSUPPORTED, "rcv-settle-mode second not supported")

    def _publish(self, partial: _Partial, payload: bytes, tag: bytes) -> Iterator[None] | None:
        try:
            sections = parse(payload)
        except NotAMessage as error:
            raise LinkError(DECODE_ERROR, f"failed to parse message: {error}") from error
        self.delivery_count = add(self.delivery_count, 1)
        self.credit -= 1
        try:
            message, exchange = self._message(sections)
        except _Undeliverable as refused:
            self._refuse(refused.error, partial, tag)
            return None
        steps = self._steps(message, exchange, partial)
        # Only for messages that go to very many queues, there is more than one step.
        return steps if rest_of(steps) else None

    def _steps(self, message: BrokerMessage, exchange: BrokerExchange, partial: _Partial) -> Iterator[None]:
        publication = yield from self._enqueue(message, exchange, settled=partial.settled)
        self._count(publication, settled=partial.settled)
        state = _RELEASED if not publication.routed else _ACCEPTED if publication.accepted else self._rejected(message)
        self.unsettled += 1
        settlement = Settlement(self, partial.delivery_id, None if partial.settled else state)
        self.session.settle(settlement, stored=publication.stored)
        self._top_up()

    def _count(self, publication: Publication, *, settled: bool) -> None:
        broker = self.session.connection.broker
        totals = broker.totals.published[AMQP10]
        totals.received += 1
        totals.with_confirm += not settled
        if publication.routed:
            totals.confirmed += publication.accepted and not settled
            return
        broker.dropped_unroutable += 1
        totals.dropped += settled
        totals.returned += not settled

    def _refuse(self, error: Error, partial: _Partial, tag: bytes) -> None:
        """Reject or release an undeliverable message. Detach the link if it has a target or the message is settled."""
        is_anonymous = self.target is None
        if not partial.settled:
            state = Rejected(error) if is_anonymous else _RELEASED
            number = partial.delivery_id
            self.session.send(Disposition(True, number, settled=True, state=state))
        if not is_anonymous:
            raise DetachError(error.condition, error.description)
        if partial.settled:
            raise DetachError(error.condition, error.description, {Symbol("delivery-tag"): tag})
        self._top_up()

    def _message(self, sections: Sections) -> tuple[BrokerMessage, BrokerExchange]:
        """Return a message with its address set, and its exchange; check that the user may publish it."""
        name, key = self._address(sections)
        session = self.session
        rights, vhost = session.connection.rights, session.vhost
        rights.check("write", "exchange", name)
        exchange = vhost.exchanges.get(name)
        if exchange is None:
            raise _Undeliverable(MISSING, f"no exchange '{name}' in vhost '{vhost.name}'")
        check_internal(exchange, vhost.name)
        try:
            keys = [key, *sections.carbon_copies()]
        except BadCarbonCopies as error:
            raise _Undeliverable(INVALID_FIELD, str(error)) from error
        try:
            message = sections.to(name, key, vhost.profile)
        except NotAMessage as error:
            raise LinkError(DECODE_ERROR, f"failed to parse message: {error}") from error
        self._check_user(message)
        if rights.has_topics:
            for each in keys:
                rights.check_topic("write", exchange, each)
        return message, exchange

    def _address(self, sections: Sections) -> tuple[str, str]:
        """Return a message's exchange and routing key."""
        if self.target is not None:
            return self.target.exchange, self.target.routing_key
        to = sections.head.properties.to
        if not isinstance(to, str):
            raise _Undeliverable(FAILED, "anonymous terminus requires 'to' address to be set")
        try:
            target = parse_target(to)
        except ValueError as error:
            raise _Undeliverable(FAILED, f"bad 'to' address string: {to}") from error
        return target.exchange, target.routing_key

    def _check_user(self, message: BrokerMessage) -> None:
        claimed, user = message.properties.user_id, self.session.connection.user
        if claimed is not None and claimed != user.name and "impersonator" not in user.tags:
            raise LinkError(
                UNAUTHORIZED, f"user_id property set to '{claimed}' but authenticated user was '{user.name}'"
            )

    def _enqueue(
        self, message: BrokerMessage, exchange: BrokerExchange, *, settled: bool
    ) -> Generator[None, None, Publication]:
        session = self.session
        broker, vhost = session.connection.broker, session.vhost
        exchange.published_in += 1
        if not exchange.name and message.routing_key.startswith(DIRECT_REPLY_TO):
            asking = broker.reply_consumer(message.routing_key)
            if asking is not None:
                asking.deliver_reply(message)
            # As in RabbitMQ, a reply counts as delivered if the address can be that of a client, even if it is gone.
            return _DELIVERED if _REPLY_KEY.fullmatch(message.routing_key) else _UNROUTED
        routing = vhost.route(exchange, message)
        if vhost.tracing:
            trace_published(session.connection, session.number, message, routing)
        routing.source, routing.publisher = session.connection, session
        broker.totals.published[AMQP10].routed += len(routing.queues)
        if broker.hooks is None:
            publication = yield from enqueue_in_steps(vhost, routing)
        else:
            publication = broker.hooks.enqueue(vhost, routing)
        if not publication.routed and vhost.watcher is not None:
            vhost.watcher.unroutable(message, returned=not settled)
        return publication

    def _rejected(self, message: BrokerMessage) -> Rejected:
        """Return the outcome for a message that a queue rejected because it was full."""
        if not self.session.vhost.profile.explains_rejections:
            return Rejected()
        queue = (self.target and self.target.queue) or message.routing_key
        info = {Symbol("queue"): queue, Symbol("reason"): Symbol("maxlen")}
        return Rejected(Error(LIMIT_EXCEEDED, f"queue '{queue}' exceeded maximum length", info))


def check_internal(exchange: BrokerExchange, vhost: str) -> None:
    """Raise LinkError if an exchange is internal."""
    if exchange.internal:
        raise LinkError(UNAUTHORIZED, f"forbidden to publish to internal exchange '{exchange.name}' in vhost '{vhost}'")


def _check_continuation(transfer: Transfer, partial: _Partial) -> None:
    if transfer.delivery_id not in (None, partial.delivery_id):
        raise LinkError(
            INVALID_FIELD,
            f"delivery-id of continuation transfer ({{uint,{transfer.delivery_id}}}) differs from delivery-id on first "
            f"transfer ({partial.delivery_id})",
        )
    if transfer.settled not in (None, partial.settled):
        raise LinkError(
            INVALID_FIELD,
            f"field 'settled' of continuation transfer ({str(transfer.settled).lower()}) differs from (interpreted) "
            f"field 'settled' on first transfer ({str(partial.settled).lower()})",
        )
