"""What happens to a message between basic.publish and the queues: checks, direct replies, transactions, returns."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mqtool.broker.embedded.arguments import check_expiry
from mqtool.broker.embedded.errors import NOT_IMPLEMENTED, ConnectionException, access_refused, precondition_failed
from mqtool.broker.embedded.exchange import Exchange
from mqtool.broker.embedded.message import Message
from mqtool.broker.embedded.virtual_host import Publication
from mqtool.routing.field_table import type_name

if TYPE_CHECKING:
    from mqtool.broker.embedded.wire.channel import Channel, Unacked

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
"""The pseudo-queue of direct reply-to; a reply goes to this, a dot and a token."""

_IMMEDIATE = 2
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass
class Transaction:
    """What a channel in tx mode has done since the last commit or rollback."""

    publishes: list[tuple[Exchange, Message, bool]] = field(default_factory=list)
    acks: list[tuple[int, "Unacked"]] = field(default_factory=list)
    rejects: list[tuple[int, "Unacked", bool]] = field(default_factory=list)

    def unsettled(self) -> list["Unacked"]:
        """The deliveries whose acknowledgement has not been committed."""
        return [delivery for _, delivery in self.acks] + [delivery for _, delivery, _ in self.rejects]


def check_message(channel: "Channel", message: Message, bits: int) -> Exchange:
    """Check that a message may be published, in RabbitMQ's order.

    Returns:
        The exchange it goes to.

    Raises:
        ChannelException: 403, 404 or 406.
        ConnectionException: 540 for `immediate`.
    """
    if bits & _IMMEDIATE:
        raise ConnectionException(NOT_IMPLEMENTED, "immediate=true")
    name = message.exchange
    channel.check_permission("write", "exchange", name)
    exchange = channel.exchange(name)
    if exchange.internal:
        raise access_refused(f"cannot publish to internal exchange '{name}' in vhost '{channel.vhost.name}'")
    properties = message.header.properties
    user = channel.connection.user
    if properties.user_id is not None and properties.user_id != user.name and "impersonator" not in user.tags:
        raise precondition_failed(
            f"user_id property set to '{properties.user_id}' but authenticated user was '{user.name}'"
        )
    if properties.expiration is not None:
        _check_expiration(properties.expiration)
    if properties.headers:
        for carbon_copy in ("CC", "BCC"):
            keys = properties.headers.get(carbon_copy, [])
            if not isinstance(keys, list):
                kind = type_name(keys)
                raise precondition_failed(f'invalid message: {{unacceptable_type_in_header,"{carbon_copy}",{kind}}}')
    return exchange


def _check_expiration(expiration: str) -> None:
    """Raises: ChannelException 406, in the words of Erlang's string:to_integer."""
    number = _INTEGER.match(expiration)
    wrong: str | None
    if number is None:
        wrong = "no_integer"
    elif number.end() < len(expiration):
        wrong = f'{{leftover_string,"{expiration[number.end() :]}"}}'
    else:
        wrong = check_expiry(int(expiration))
    if wrong is not None:
        raise precondition_failed(f"invalid expiration '{expiration}': {wrong}")


def publish(channel: "Channel", exchange: Exchange, message: Message, *, mandatory: bool) -> None:
    """Publish a message that has been checked, at once or when the transaction is committed."""
    if message.properties.reply_to == DIRECT_REPLY_TO:
        if channel.reply_token is None:
            raise precondition_failed("fast reply consumer does not exist")
        message = message.with_reply_to(f"{DIRECT_REPLY_TO}.{channel.reply_token}")
    if channel.transaction is not None:
        channel.transaction.publishes.append((exchange, message, mandatory))
        return
    publication = perform(channel, exchange, message, mandatory=mandatory)
    if channel.confirming:
        channel.settle_publish(accepted=publication.accepted, stored=publication.stored)


def perform(channel: "Channel", exchange: Exchange, message: Message, *, mandatory: bool) -> Publication:
    """Put a message in its queues, or give it back if it is mandatory and there are none."""
    channel.published[exchange.name] = channel.published.get(exchange.name, 0) + 1
    if exchange.name == "" and message.routing_key.startswith(DIRECT_REPLY_TO):
        publication = _reply(channel, message)
    else:
        publication = channel.vhost.publish(exchange, message)
    if not publication.routed:
        if mandatory:
            channel.send_return(message)
        else:
            channel.broker.dropped_unroutable += 1
    return publication


def _reply(channel: "Channel", message: Message) -> Publication:
    """Hand a reply straight to the channel that asked."""
    token = message.routing_key.removeprefix(DIRECT_REPLY_TO + ".")
    asking = channel.broker.reply_channels.get(token)
    if asking is not None:
        asking.deliver_reply(message)
    return Publication(routed=asking is not None, accepted=True, stored=False)
