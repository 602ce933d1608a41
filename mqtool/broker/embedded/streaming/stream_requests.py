"""Handlers for requests about streams and super streams: create, delete, metadata, stats, offsets, partitions.

A super stream is a direct exchange to which its partitions, which are streams, are bound.
"""

from collections.abc import Iterator, Mapping, Sequence

from mqtool.broker.embedded.model.amqp_errors import AmqpException, ChannelException, ConnectionException
from mqtool.broker.embedded.model.declarations import check_equivalent_queue, check_queue
from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerExchange
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.stream_queue import StreamQueue
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.streaming.stream_frames import (
    RESPONSE,
    Code,
    Fields,
    Key,
    frame,
    i64,
    string,
    strings,
    u16,
    u32,
    u64,
)
from mqtool.broker.embedded.streaming.stream_session import (
    BrokerStreamSession,
    StreamRefused,
    check,
    check_name,
    check_use,
    find_log,
)
from mqtool.codecs.field_tables import Int64, Table

_NO_LEADER = 0xFFFF
_NUMBERS = ("max-length-bytes", "stream-max-segment-size-bytes", "initial-cluster-size")
#: The number of readers whose offsets a stream stores: all of them are written at once. RabbitMQ has no such limit.
_MOST_READERS = 100_000
_MAX_NUMBER = 2**63 - 1
_TEXTS = ("max-age", "queue-leader-locator")
_LOCATORS = ("client-local", "balanced", "random", "least-leaders")


def _correct_name(name: str) -> str:
    """Remove line breaks from a name, as RabbitMQ does. Raises Refused if it is empty, reserved or too long."""
    name = name.replace("\r", "").replace("\n", "")
    if not name or name.startswith("amq.") or len(name.encode(errors="surrogateescape")) > 255:
        raise StreamRefused(Code.PRECONDITION_FAILED)
    return name


def _queue_arguments(arguments: Mapping[str, str], profile: Profile) -> Table:
    """Convert the arguments of a Create request to queue arguments. Unknown arguments are ignored."""
    numbers = (*_NUMBERS, "stream-initial-offset") if profile.initial_offsets else _NUMBERS
    if arguments.get("queue-leader-locator", _LOCATORS[0]) not in _LOCATORS:
        raise StreamRefused(Code.PRECONDITION_FAILED)
    if arguments.get("initial-cluster-size", "1").strip("0") == "":
        raise StreamRefused(Code.PRECONDITION_FAILED)
    found: Table = {"x-queue-type": "stream"}
    for name, value in arguments.items():
        if name in numbers:
            if not value.isascii() or not value.isdigit() or len(value) > 19 or int(value) > _MAX_NUMBER:
                raise StreamRefused(Code.PRECONDITION_FAILED)
            found[f"x-{name}"] = Int64(value)
        elif name in _TEXTS:
            found[f"x-{name}"] = value
    return found


def _add_stream(vhost: VirtualHost, name: str, arguments: Table) -> None:
    """Create a stream. Raises Refused if the name is taken, an argument is invalid, or the stream cannot be stored."""
    queue, declared = vhost.queues.get(name), QueueDeclaration(name, arguments)
    try:
        if queue is not None:
            check_equivalent_queue(queue, declared)
            raise StreamRefused(Code.STREAM_ALREADY_EXISTS)
        if vhost.profile.limits_streams:
            vhost.check_queue_limit(name)
        check_queue(declared, vhost.name, vhost.profile)
        vhost.add_queue(declared)
    except ChannelException as error:
        raise StreamRefused(Code.PRECONDITION_FAILED) from error
    except AmqpException as error:
        raise StreamRefused(Code.INTERNAL_ERROR) from error


def create(session: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    """Create a stream."""
    name, given = _correct_name(fields.string()), fields.table()
    fields.end()
    check(session, "configure", "queue", name)
    _add_stream(session.vhost, name, _queue_arguments(given, session.vhost.profile))
    session.answer(Key.CREATE, correlation)


def delete(session: BrokerStreamSession, fields: Fields, correlation: int) -> Iterator[None]:
    """Delete a stream. Its publishers and consumers get a metadata update."""
    name = fields.string()
    fields.end()
    check(session, "configure", "queue", name)
    find_log(session, name)
    yield from _delete_stream(session.vhost, name)
    session.answer(Key.DELETE, correlation)


def _delete_stream(vhost: VirtualHost, name: str) -> Iterator[None]:
    """Delete an existing stream. Raises Refused if the deletion cannot be written to disk."""
    try:
        yield from vhost.deletions.steps(vhost.queues[name])
    except ConnectionException as error:
        raise StreamRefused(Code.INTERNAL_ERROR) from error


def metadata(session: BrokerStreamSession, fields: Fields, correlation: int) -> Iterator[None]:
    """Handle Metadata: reply with the leader of each stream, which is always this broker."""
    wanted: set[str] = set()
    for name in fields.each_string():
        wanted.add(name)
        yield
    fields.end()
    names = sorted(wanted, reverse=True)
    yield
    located, found = bytearray(), False
    for name in names:
        code = _code_of(session, name)
        found = found or code is Code.OK
        located += string(name) + u16(code) + u16(0 if code is Code.OK else _NO_LEADER) + u32(0)
        yield
    host, port = session.local
    # RabbitMQ lists only brokers that host one of the requested streams.
    brokers = u32(1) + u16(0) + string(host) + u32(port) if found else u32(0)
    body = brokers + u32(len(names)) + bytes(located)
    session.write(frame(Key.METADATA | RESPONSE, u32(correlation) + body))  # without a response code


def _code_of(session: BrokerStreamSession, name: str) -> Code:
    """Return what Metadata says of a stream."""
    try:
        check_use(session, "queue", name)
    except StreamRefused as refused:
        return refused.code
    return Code.OK if isinstance(session.vhost.queues.get(name), StreamQueue) else Code.STREAM_DOES_NOT_EXIST


def stats(session: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    """Handle StreamStats: reply with the offsets of the first and last chunk, or -1 if the stream is empty."""
    name = fields.string()
    fields.end()
    nothing = u32(0)
    check(session, "read", "queue", name, nothing)
    log = find_log(session, name, nothing)
    first, last = (-1, -1) if log.first_offset == log.end else (log.first_offset, log.last_chunk)
    numbers = {"first_chunk_id": first, "last_chunk_id": last, "committed_chunk_id": last}
    body = u32(len(numbers)) + b"".join(string(key) + i64(value) for key, value in numbers.items())
    session.answer(Key.STREAM_STATS, correlation, rest=body)


def store_offset(session: BrokerStreamSession, fields: Fields) -> None:
    """Store a consumer's offset. StoreOffset has no response, not even for an error."""
    name, stream, offset = fields.string(), fields.string(), fields.number(8)
    fields.end()
    check(session, "read" if session.vhost.profile.reads_offsets else "write", "queue", stream)
    check_name(name)
    log = find_log(session, stream)
    if name not in log.offsets and ("memory" in session.broker.alarms or len(log.offsets) >= _MOST_READERS):
        raise StreamRefused(Code.PRECONDITION_FAILED)
    log.store_offset(name, offset)
    if session.vhost.watcher is not None:
        session.vhost.watcher.stored(stream, name, offset, session)


def query_offset(session: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    """Handle QueryOffset: reply with a consumer's stored offset."""
    name, stream = fields.string(), fields.string()
    fields.end()
    check(session, "read", "queue", stream, u64(0))
    offset = find_log(session, stream, u64(0)).offsets.get(name)
    if offset is None:
        raise StreamRefused(Code.NO_OFFSET, u64(0))
    session.answer(Key.QUERY_OFFSET, correlation, rest=u64(offset))


_ORDER = "x-stream-partition-order"


def _order(binding: BrokerBinding) -> int:
    order = binding.arguments.get(_ORDER)
    return order if isinstance(order, int) else 1 << 62


def _partitions(vhost: VirtualHost, super_stream: str) -> list[str]:
    """Return the names of a super stream's partitions, in order. Raises Refused if the exchange does not exist."""
    exchange = vhost.exchanges.get(super_stream)
    if exchange is None:
        raise StreamRefused(Code.STREAM_DOES_NOT_EXIST, u32(0))
    destinations = (binding.destination for binding in sorted(exchange.bindings, key=_order))
    return [*dict.fromkeys(each.name for each in destinations if isinstance(each, StreamQueue))]


def partition_of(vhost: VirtualHost, super_stream: str, stream: str) -> int | None:
    """Return a stream's index among the partitions of a super stream; None if it is not one of them."""
    if super_stream not in vhost.exchanges or not super_stream:
        return None
    partitions = _partitions(vhost, super_stream)
    return partitions.index(stream) if stream in partitions else None


def partitions(session: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    """Handle Partitions: reply with the names of a super stream's partitions."""
    name = fields.string()
    fields.end()
    check_use(session, "exchange", name, u32(0))
    streams = _partitions(session.vhost, name)
    for stream in streams:
        check_use(session, "queue", stream, u32(0))
    session.answer(Key.PARTITIONS, correlation, rest=strings(streams))


def route(session: BrokerStreamSession, fields: Fields, correlation: int) -> None:
    """Handle Route: reply with the partitions of a super stream that are bound with a routing key."""
    key, name = fields.string(), fields.string()
    fields.end()
    vhost = session.vhost
    if vhost.profile.hides_streams:
        check(session, "write", "exchange", name, u32(0))
    exchange = vhost.exchanges.get(name)
    if exchange is None or not name:
        raise StreamRefused(Code.STREAM_DOES_NOT_EXIST, u32(0))
    streams = [queue.name for queue in exchange.match([key], {}) if isinstance(queue, StreamQueue)]
    for stream in streams if vhost.profile.hides_streams else ():
        check(session, "write", "queue", stream, u32(0))
    session.answer(Key.ROUTE, correlation, rest=strings(streams))


def _check_management(session: BrokerStreamSession, name: str, streams: Sequence[str]) -> Iterator[None]:
    """Check the rights to create or delete a super stream, one partition a step."""
    check(session, "configure", "exchange", name)
    check(session, "read", "exchange", name)
    for stream in streams:
        check(session, "configure", "queue", stream)
        check(session, "write", "queue", stream)
        yield


def create_super_stream(session: BrokerStreamSession, fields: Fields, correlation: int) -> Iterator[None]:
    """Create the exchange, streams and bindings of a super stream, one partition a step.

    If another client meanwhile declares a queue with the name of a partition, or on another error, delete them again.
    """
    name, names, keys, given = _correct_name(fields.string()), fields.strings(), fields.strings(), fields.table()
    fields.end()
    vhost, arguments = session.vhost, _queue_arguments(given, session.vhost.profile)
    yield
    streams = [_correct_name(each) for each in names]
    yield
    if not streams or len(streams) != len(keys) or len(set(streams)) != len(streams):
        raise StreamRefused(Code.PRECONDITION_FAILED)
    yield from _check_management(session, name, streams)
    try:
        # In all profiles: every RabbitMQ that has this command checks the limit.
        vhost.check_queue_limit(name, len(streams))
    except ChannelException as error:
        raise StreamRefused(Code.PRECONDITION_FAILED) from error
    if name in vhost.exchanges or any(stream in vhost.queues for stream in streams):
        raise StreamRefused(Code.STREAM_ALREADY_EXISTS)
    done: list[str] = []
    try:
        exchange = BrokerExchange(name, "direct", arguments={"x-super-stream": True})
        vhost.add_exchange(exchange)
        for order, (stream, key) in enumerate(zip(streams, keys, strict=True)):
            _add_stream(vhost, stream, arguments)
            done.append(stream)
            vhost.bind(exchange, vhost.queues[stream], key, {_ORDER: Int64(order)})
            yield
    except (AmqpException, StreamRefused) as error:
        yield from _delete_parts(vhost, name, done)
        raise StreamRefused(error.code if isinstance(error, StreamRefused) else Code.INTERNAL_ERROR) from error
    session.answer(Key.CREATE_SUPER_STREAM, correlation)


def _delete_parts(vhost: VirtualHost, name: str, streams: Sequence[str]) -> Iterator[None]:
    for stream in streams:
        if stream in vhost.queues:
            yield from _delete_stream(vhost, stream)
        yield
    exchange = vhost.exchanges.get(name)
    if exchange is not None:
        yield from vhost.deletions.steps(exchange)


def delete_super_stream(session: BrokerStreamSession, fields: Fields, correlation: int) -> Iterator[None]:
    """Delete the exchange and the streams of a super stream, one stream a step."""
    name = fields.string()
    fields.end()
    vhost = session.vhost
    check(session, "configure", "exchange", name)
    exchange = vhost.exchanges.get(name)
    if exchange is None or exchange.predeclared:
        raise StreamRefused(Code.STREAM_DOES_NOT_EXIST)
    streams = _partitions(vhost, name)
    yield
    yield from _check_management(session, name, streams)
    yield from _delete_parts(vhost, name, streams)
    session.answer(Key.DELETE_SUPER_STREAM, correlation)
