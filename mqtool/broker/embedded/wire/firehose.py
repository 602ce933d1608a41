"""The firehose: copies of what is published and delivered in a virtual host, for whoever binds to amq.rabbitmq.trace.

    publish.EXCHANGE, deliver.QUEUE ── the routing keys of the copies; what the message was is in their headers

https://www.rabbitmq.com/docs/firehose
"""

from mqtool.broker.embedded.model.broker import NODE
from mqtool.broker.embedded.model.exchange import TRACE_EXCHANGE
from mqtool.broker.embedded.model.message import ContentHeader, Message, Properties, encode_address
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Routing, carbon_copies
from mqtool.broker.embedded.wire.session import Session
from mqtool.routing.field_table import Int32, Table, Value

_MAX_KEY = 255
_NOTHING = Properties(b"\0\0")


def published(session: Session, number: int, message: Message, routing: Routing | None) -> None:
    """Copy a message that a client has published.

    Args:
        number: of the client's channel.
        routing: where it goes; None for a direct reply.
    """
    keys, names = [message.routing_key, *carbon_copies(message.headers)], set[str]()
    if routing is not None:
        # The default exchange routes to names, whether or not there are such queues.
        names = {queue.name for queue in routing.queues} if message.exchange else {*keys}
        message = routing.message
    _copy(session, number, f"publish.{message.exchange}", message, keys, {}, {"routed_queues": [*sorted(names)]})


def delivered(session: Session, number: int, queue: Queue, message: Message, *, redelivered: bool) -> None:
    """Copy a message that a client gets, unless it is such a copy itself."""
    if message.exchange != TRACE_EXCHANGE:
        keys = [message.routing_key, *carbon_copies(message.headers)]
        _copy(session, number, f"deliver.{queue.name}", message, keys, {"redelivered": Int32(redelivered)}, {})


def _copy(
    session: Session, number: int, key: str, message: Message, keys: list[str], before: Table, after: Table
) -> None:
    if len(key.encode(errors="surrogateescape")) > _MAX_KEY:
        return  # no routing key can say where it was
    properties = {name: _property(value) for name, value in reversed(message.properties.named().items())}
    headers: Table = {
        "exchange_name": message.exchange,
        "routing_keys": [*keys],
        "properties": properties,
        "node": NODE,
        **before,
        "vhost": session.vhost.name,
        "connection": session.name,
        "channel": Int32(number),
        "user": session.user.name,
        **after,
    }
    header = ContentHeader.of(_NOTHING.replace(headers=headers), len(message.body))
    copy = Message(encode_address(TRACE_EXCHANGE, key), header, message.body)
    vhost = session.vhost
    vhost.enqueue(vhost.route(vhost.exchanges[TRACE_EXCHANGE], copy))


def _property(value: Value) -> Value:
    """A property as a field value: numbers have 32 bits, as RabbitMQ has it."""
    return Int32((value + (1 << 31)) % (1 << 32) - (1 << 31)) if isinstance(value, int) else value
