"""The firehose (message tracing): a copy of each published and each delivered message, for all protocols.

The copies are published to the exchange amq.rabbitmq.trace, with the routing key publish.EXCHANGE or deliver.QUEUE.
https://www.rabbitmq.com/docs/firehose
"""

from typing import Protocol

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.broker import NODE
from mqtool.broker.embedded.model.exchange import TRACE_EXCHANGE
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import Routing, VirtualHost
from mqtool.codecs.field_tables import Int32, Table, Value

_MAX_KEY = 255
_NOTHING = MessageProperties(b"\0\0")


class FirehoseClient(Protocol):
    """The connection on which a message is published or delivered."""

    user: User
    vhost: VirtualHost

    @property
    def name(self) -> str:
        """The connection's name."""


def trace_published(client: FirehoseClient, number: int, message: BrokerMessage, routing: Routing | None) -> None:
    """Publish a copy of a published message to the firehose.

    Args:
        client, number: the publisher's connection and channel number.
        message: the message.
        routing: the queues that get the message; None for a direct reply.
    """
    keys, names = message.keys(), set[str]()
    if routing is not None:
        # For the default exchange RabbitMQ lists the routing keys, whether or not such queues exist.
        names = {queue.name for queue in routing.queues} if message.exchange else {*keys}
        message = routing.message
    _copy(client, number, f"publish.{message.exchange}", message, keys, {}, {"routed_queues": [*sorted(names)]})


def trace_delivered(
    client: FirehoseClient, number: int, queue: BrokerQueue, message: BrokerMessage, *, redelivered: bool
) -> None:
    """Publish a copy of a delivered message to the firehose, unless the message itself came from the firehose."""
    if message.exchange != TRACE_EXCHANGE:
        _copy(client, number, f"deliver.{queue.name}", message, message.keys(), {"redelivered": Int32(redelivered)}, {})


def _copy(
    client: FirehoseClient, number: int, key: str, message: BrokerMessage, keys: list[str], before: Table, after: Table
) -> None:
    if len(key.encode(errors="surrogateescape")) > _MAX_KEY:
        return  # a name of 255 bytes leaves no room for the prefix in a routing key
    headers: Table = {
        "exchange_name": message.exchange,
        "routing_keys": [*keys],
        "properties": {name: _property(value) for name, value in reversed(message.properties.named().items())},
        "node": NODE,
        **before,
        "vhost": client.vhost.name,
        "connection": client.name,
        "channel": Int32(number),
        "user": client.user.name,
        **after,
    }
    header = ContentHeader.of(_NOTHING.replace(headers=headers), len(message.body))
    copy = BrokerMessage(encode_address(TRACE_EXCHANGE, key), header, message.body)
    vhost = client.vhost
    vhost.enqueue(vhost.route(vhost.exchanges[TRACE_EXCHANGE], copy))


def _property(value: Value) -> Value:
    """Convert a property to a header value of the copy. As in RabbitMQ, numbers are truncated to 32 bits."""
    return Int32((value + (1 << 31)) % (1 << 32) - (1 << 31)) if isinstance(value, int) else value
