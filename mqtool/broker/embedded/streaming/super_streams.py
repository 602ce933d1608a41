"""Super streams: an exchange, and a stream for each partition."""

from mqtool.broker.embedded.model.errors import AmqpException
from mqtool.broker.embedded.model.exchange import Exchange, Link
from mqtool.broker.embedded.model.stream_queue import Stream
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.streaming.frames import Code, Fields, Key, strings, u32
from mqtool.broker.embedded.streaming.session import Refused, Session, check
from mqtool.broker.embedded.streaming.streams import add_stream, correct_name, delete_stream, queue_arguments
from mqtool.routing.field_table import Int64

_ORDER = "x-stream-partition-order"


def _order(link: Link) -> int:
    order = link.arguments.get(_ORDER)
    return order if isinstance(order, int) else 1 << 62


def _partitions(vhost: VirtualHost, super_stream: str) -> list[str]:
    """Return the streams of a super stream, in order.

    Raises:
        Refused: there is no such exchange.
    """
    exchange = vhost.exchanges.get(super_stream)
    if exchange is None:
        raise Refused(Code.STREAM_DOES_NOT_EXIST, u32(0))
    names = [link.destination.name for link in sorted(exchange.links, key=_order)]
    return [name for name in dict.fromkeys(names) if isinstance(vhost.queues.get(name), Stream)]


def partition_of(vhost: VirtualHost, super_stream: str, stream: str) -> int | None:
    """Return the place of a stream in a super stream; None if it is in none."""
    if super_stream not in vhost.exchanges or not super_stream:
        return None
    partitions = _partitions(vhost, super_stream)
    return partitions.index(stream) if stream in partitions else None


def partitions(session: Session, fields: Fields, correlation: int) -> None:
    """Say which streams a super stream has."""
    name = fields.string()
    fields.end()
    session.answer(Key.PARTITIONS, correlation, rest=strings(_partitions(session.vhost, name)))


def route(session: Session, fields: Fields, correlation: int) -> None:
    """Say to which streams of a super stream a routing key leads."""
    key, name = fields.string(), fields.string()
    fields.end()
    vhost = session.vhost
    exchange = vhost.exchanges.get(name)
    if exchange is None or not name:
        raise Refused(Code.STREAM_DOES_NOT_EXIST, u32(0))
    streams = [queue.name for queue in exchange.match(key, {}) if isinstance(queue, Stream)]
    session.answer(Key.ROUTE, correlation, rest=strings(streams))


def create(session: Session, fields: Fields, correlation: int) -> None:
    """Make the exchange, the streams, and the bindings between them."""
    name, names, keys, given = correct_name(fields.string()), fields.strings(), fields.strings(), fields.table()
    fields.end()
    vhost, arguments = session.vhost, queue_arguments(given)
    streams = [correct_name(each) for each in names]
    if not streams or len(streams) != len(keys) or len(set(streams)) != len(streams):
        raise Refused(Code.PRECONDITION_FAILED)
    check(session, "configure", "exchange", name)
    check(session, "read", "exchange", name)
    for stream in streams:
        check(session, "configure", "queue", stream)
        check(session, "write", "queue", stream)
    if name in vhost.exchanges or any(stream in vhost.queues for stream in streams):
        raise Refused(Code.STREAM_ALREADY_EXISTS)
    done: list[str] = []
    try:
        exchange = Exchange(name, "direct", arguments={"x-super-stream": True})
        vhost.add_exchange(exchange)
        for order, (stream, key) in enumerate(zip(streams, keys, strict=True)):
            add_stream(vhost, stream, arguments)
            done.append(stream)
            vhost.bind(exchange, vhost.queues[stream], key, {_ORDER: Int64(order)})
    except (AmqpException, Refused) as error:
        _undo(vhost, name, done)
        raise Refused(error.code if isinstance(error, Refused) else Code.INTERNAL_ERROR) from error
    session.answer(Key.CREATE_SUPER_STREAM, correlation)


def _undo(vhost: VirtualHost, name: str, streams: list[str]) -> None:
    for stream in streams:
        delete_stream(vhost, stream)
    exchange = vhost.exchanges.get(name)
    if exchange is not None:
        vhost.delete_exchange(exchange)


def delete(session: Session, fields: Fields, correlation: int) -> None:
    """Delete the exchange and the streams."""
    name = fields.string()
    fields.end()
    vhost = session.vhost
    streams = _partitions(vhost, name) if name else []
    exchange = vhost.exchanges.get(name)
    if exchange is None or exchange.predeclared:
        raise Refused(Code.STREAM_DOES_NOT_EXIST)
    check(session, "configure", "exchange", name)
    for stream in streams:
        check(session, "configure", "queue", stream)
    _undo(vhost, name, streams)
    session.answer(Key.DELETE_SUPER_STREAM, correlation)
