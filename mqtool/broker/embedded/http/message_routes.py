"""Routes that publish and get messages and list consumers, and /api/mqtool: faults and recorded messages for tests."""

import asyncio
import base64
import contextlib
import math
import struct
from collections.abc import Callable, Generator, Iterator
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from mqtool.broker.embedded.http.http_server import HttpAnswer, HttpError, Item, bad_request, in_slices, required, text
from mqtool.broker.embedded.http.route_table import (
    READ,
    AnyConnection,
    Json,
    RouteCall,
    administrator,
    anyone,
    exchange_name,
    member,
    missing,
    observer,
    route,
)
from mqtool.broker.embedded.http.session_routes import link_consumers
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.amqp_message import (
    BrokerMessage,
    ContentHeader,
    MessageProperties,
    encode_address,
    encode_short,
)
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.broker import LOW_ON_MEMORY, NODE, Broker
from mqtool.broker.embedded.model.footprint import of_message
from mqtool.broker.embedded.model.queue import BrokerQueue, Why, consumer_timeout
from mqtool.broker.embedded.model.totals import AMQP091
from mqtool.broker.embedded.model.virtual_host import Publication, enqueue_in_steps
from mqtool.broker.embedded.testing.fault import fault_of
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.broker.embedded.wire.amqp_session import AmqpSession
from mqtool.broker.embedded.wire.basic_methods import check_message
from mqtool.broker.embedded.wire.deliveries import ChannelSubscription, message_got
from mqtool.codecs.field_tables import Int64, Table, Value, decode_table, encode_table

if TYPE_CHECKING:
    # For type checkers only: most brokers serve neither streams nor tests, and start faster without these imports.
    from mqtool.broker.embedded.streaming.subscriptions import StreamSubscription
    from mqtool.broker.embedded.testing.traffic import Recorded

_NUMBERS = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
_TEXTS = "content_type content_encoding correlation_id reply_to expiration message_id type user_id app_id cluster_id"
_MAX_TEXT = 255

#: The largest table of headers or arguments, in bytes: no frame of AMQP 0-9-1 can contain a larger one.
_LARGEST_TABLE = 128 * 1024
_SETTLED = ("acked", "rejected", "requeued")
#: How many seconds a /api/mqtool request waits for messages by default, and at most.
_TIMEOUT, _MAX_TIMEOUT = 2.0, 60.0


def field_table(value: Any) -> Table:
    """Convert a JSON object to an AMQP field table, with 64-bit integers as in RabbitMQ; raise 400 if this fails."""
    if value == []:  # as PHP encodes an empty table
        return {}
    if not isinstance(value, dict):
        raise bad_request("arguments and headers must be objects")
    try:
        found = _Fields().table(value)
        encoded = encode_table(found)
        if len(encoded) > _LARGEST_TABLE:
            raise _too_large()
        decode_table(encoded)
    except (ValueError, RecursionError, struct.error) as error:
        raise bad_request(f"not a field table: {error}") from error
    return found


def _too_large() -> ValueError:
    return ValueError(f"it has more than {_LARGEST_TABLE} bytes")


class _Fields:
    """Converts JSON values to field values, and gives up once these are too large for a table.

    Tables are sorted by name, as RabbitMQ's are.
    """

    def __init__(self) -> None:
        self._room = _LARGEST_TABLE

    def table(self, value: Json) -> Table:
        return {name: self._value(value[name], len(name)) for name in sorted(value)}

    def _value(self, value: Any, size: int = 0) -> Value:
        """Convert a value; `size` is that of its name. Raises ValueError if all values so far are too large."""
        # The type and at least this many bytes.
        self._room -= size + 1 + (len(value) if isinstance(value, str) else 8 if type(value) in (int, float) else 0)
        if self._room < 0:
            raise _too_large()
        if isinstance(value, dict | list):
            return self.table(value) if isinstance(value, dict) else [*map(self._value, value)]
        if isinstance(value, int) and not isinstance(value, bool):
            if not -(1 << 63) <= value < 1 << 63:
                raise ValueError("an integer does not fit into 64 bits")
            return Int64(value)
        if isinstance(value, str | bool | float):
            return value
        if value is None:
            raise bad_request("null_not_allowed")
        raise bad_request(f"not a field value: {value!r}")


def plain(value: Value) -> Any:
    """Convert a field value to a JSON value."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    # The only tuples are AMQP decimals.
    if isinstance(value, tuple):
        return value.value / 10**value.scale
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:  # in RabbitMQ's words
            return f"Not UTF-8, base64 is: {base64.b64encode(value).decode()}"
    return value


@route("POST", "exchanges/VHOST/EXCHANGE/publish", member)
async def publish(call: RouteCall, vhost_name: str, name: str) -> Json:
    """Publish a message. `routed` in the response is true if at least one queue got it; none may refuse it."""
    vhost, body, broker = call.vhost(vhost_name), call.body, call.broker
    exchange = vhost.exchanges.get(exchange_name(name))
    if exchange is None:
        if broker.profile.api >= "4.0":
            missing("exchange_not_found")
        raise bad_request(f"404 NOT_FOUND - no exchange '{name}' in vhost '{vhost_name}'")
    required(body, "properties", "routing_key", "payload", "payload_encoding")
    key = text(body, "routing_key")
    rights = call.rights(vhost_name)
    if broker.ledger.held_bytes > broker.memory_limit:  # RabbitMQ blocks AMQP clients alone, and accepts the message
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "resource_alarm", LOW_ON_MEMORY)
    try:
        rights.check("write", "exchange", exchange.name)
        rights.check_topic("write", exchange, key)
    except AmqpException as error:  # RabbitMQ publishes over AMQP and returns the AMQP error
        raise bad_request(f"{error.code} {error.text}") from error
    payload = _payload(body["payload"], body["payload_encoding"])
    properties = _properties(body["properties"] or {})
    try:
        address = encode_address(exchange.name, key)
    except ValueError as error:
        raise bad_request("routing_key is longer than 255 bytes") from error
    message = BrokerMessage(address, ContentHeader.of(properties, len(payload)), payload)
    try:
        check_message(message, exchange, vhost.name, call.user)
        rights.check_copies(exchange, message.headers)
    except AmqpException as error:
        raise bad_request(f"{error.code} {error.text}") from error
    exchange.published_in += 1
    totals = broker.totals.published[AMQP091]  # as in RabbitMQ, whose management API is a client of AMQP 0-9-1
    totals.received += 1
    routing = vhost.route(exchange, message)
    totals.routed += len(routing.queues)
    if broker.hooks is None:
        [publication] = await in_slices(_with_result(enqueue_in_steps(vhost, routing)))
    else:
        publication = broker.hooks.enqueue(vhost, routing)
    if not publication.routed:
        broker.dropped_unroutable += 1
        totals.dropped += 1
        if vhost.watcher is not None:
            vhost.watcher.unroutable(message, returned=False)
    return _told(publication)


def _told(publication: Publication) -> Json:
    if not publication.accepted:
        raise bad_request("rejected Unable to publish message. Check queue limits.")
    return {"routed": publication.routed}


def _with_result(steps: Generator[None, None, Item]) -> Iterator[Item | None]:
    """Yield what steps return after them."""
    yield (yield from steps)


def _payload(payload: object, encoding: object) -> bytes:
    if not isinstance(payload, str):
        raise bad_request("payload_not_string")
    if encoding == "string":
        return payload.encode()
    if encoding != "base64":
        raise bad_request(["unsupported_encoding", encoding])
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise bad_request(["not_base64", payload]) from error


def _properties(given: Any) -> MessageProperties:
    """Convert a JSON object to message properties. Fields that are not AMQP properties are ignored."""
    if not isinstance(given, dict):
        raise bad_request("properties must be an object")
    fields = {}
    for name, width in _NUMBERS.items():
        if name in given:
            if type(given[name]) is not int:
                raise bad_request(["not_int", name])
            try:
                fields[name] = given[name].to_bytes(width)
            except OverflowError as error:
                raise bad_request(f"out of range: {name}") from error
    for name in _TEXTS.split():
        if name in given:
            fields[name] = _short_text(name, given[name])
    if headers := field_table(given.get("headers") or {}):
        fields["headers"] = encode_table(headers)
    return MessageProperties.of(fields)


def _short_text(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise bad_request(["not_string", name])
    encoded = value.encode()
    if len(encoded) > _MAX_TEXT:
        raise bad_request(f"longer than {_MAX_TEXT} bytes: {name}")
    return encode_short(encoded)


#: The most messages that one request can get, and the memory in bytes after which it gets no more. RabbitMQ has no such
#: limits.
_MOST_GOT, _MOST_GOT_BYTES = 10_000, 16 * 1024 * 1024


class _Got(NamedTuple):
    """A message that a request gets, as it was then; `left` is the number of ready messages after it."""

    message: BrokerMessage
    redelivered: bool
    left: int


@route("POST", "queues/VHOST/QUEUE/get", member)
async def get_messages(call: RouteCall, vhost: str, name: str) -> Iterator[Json]:
    """Get messages from a queue, and acknowledge, reject or requeue them.

    Returns fewer than the `count` in the request if they are too many or too large for one response, or if many
    messages between them have expired.
    """
    call.rights(vhost).check("read", "queue", name)
    if name not in call.vhost(vhost).queues:
        newer = call.broker.profile.api >= "4.0"
        missing("queue_not_found" if newer else f"NOT_FOUND - no queue '{name}' in vhost '{vhost}'")
    queue, body = call.shared_queue(vhost, name), call.body
    required(body, "ackmode", "count", "encoding")
    settle = _SETTLING.get(str(body["ackmode"]))
    if settle is None:
        raise bad_request(f"Invalid ackmode value: {body['ackmode']}. Valid values are: {', '.join(_SETTLING)}")
    if body["encoding"] not in ("auto", "base64"):
        raise bad_request("Unsupported encoding. Please use auto or base64.")
    count, truncate = _integer(body["count"]), _integer(body["truncate"]) if "truncate" in body else None
    got: list[_Got] = []
    entries: list[BacklogEntry] = []
    size, count = 0, min(count, _MOST_GOT)
    while queue.drop_expired():
        await asyncio.sleep(0)
    while len(entries) < count and size < _MOST_GOT_BYTES:
        try:
            if queue.drop_expired() or (entry := queue.get(no_ack=False)) is None:
                break
        except AmqpException as error:  # a stream
            raise bad_request(f"{error.code} {error.text.partition(' - ')[2]}") from error
        entries.append(entry)
        got.append(_Got(message_got(queue, entry), entry.redelivered, len(queue)))
        size += of_message(entry.message)
    settle(call.broker, queue, entries)
    return (_got_view(each, truncate, is_base64=body["encoding"] == "base64") for each in got)


def _integer(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise bad_request(["not_integer", value]) from error


def _got_view(got: _Got, truncate: int | None, *, is_base64: bool) -> Json:
    message = got.message
    payload = message.body[:truncate]
    shown: Json = {}
    if not is_base64:
        with contextlib.suppress(UnicodeDecodeError):
            shown = {"payload": payload.decode(), "payload_encoding": "string"}
    return {
        "payload_bytes": len(message.body),
        "redelivered": got.redelivered,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "message_count": got.left,
        # RabbitMQ returns [] if there are no properties: in Erlang, an empty list and an empty object are the same.
        "properties": plain(message.properties.named()) or [],
        **(shown or {"payload": base64.b64encode(payload).decode(), "payload_encoding": "base64"}),
    }


def _acknowledge(broker: Broker, queue: BrokerQueue, entries: list[BacklogEntry]) -> None:
    for entry in entries:
        if broker.hooks is None or broker.hooks.acknowledge(queue, entry):
            queue.acknowledge(entry)
        else:
            queue.requeue([entry])


def _reject(broker: Broker, queue: BrokerQueue, entries: list[BacklogEntry], *, requeue_as: Why | None = None) -> None:
    for entry in entries:
        if broker.hooks is not None:
            broker.hooks.rejected(queue, entry, requeue=requeue_as is not None)
        if requeue_as is None:
            queue.reject(entry, failed=True)
    if requeue_as is not None:
        queue.requeue(entries, requeue_as)


_SETTLING: dict[str, Callable[[Broker, BrokerQueue, list[BacklogEntry]], None]] = {
    "ack_requeue_true": partial(_reject, requeue_as=Why.RETURNED),
    "ack_requeue_false": _acknowledge,
    "reject_requeue_true": partial(_reject, requeue_as=Why.REJECTED),
    "reject_requeue_false": _reject,
}


@route(READ, "consumers", anyone)
@route(READ, "consumers/VHOST", observer)
def consumers(call: RouteCall, vhost: str | None = None) -> Iterator[Json]:
    """Return the consumers of queues, whatever their protocol."""
    seen = {each.name for each in call.vhosts()} & {each.name for each in call.vhosts(vhost)}
    found: list[Callable[[], Json]] = []
    for connection in call.opened():
        for channel in connection.channels.values():
            subscriptions = channel.deliveries.subscriptions.values()
            found += [partial(_consumer_view, channel, each) for each in subscriptions if each.queue.vhost in seen]
        if connection.vhost.name in seen:
            found += [partial(_stream_consumer_view, connection, each) for each in connection.subscriptions]
            found += link_consumers(connection)
    return (view() for view in found)


def _consumer_view(channel: BrokerChannel, subscription: ChannelSubscription) -> Json:
    queue = subscription.queue
    active = queue.consumers.is_active(subscription)
    return {
        "consumer_tag": subscription.tag,
        "queue": {"name": queue.name, "vhost": queue.vhost},
        "channel_details": channel_details(channel.session, channel),
        "ack_required": not subscription.no_ack,
        "exclusive": subscription.exclusive,
        "prefetch_count": subscription.prefetch,
        "active": active,
        "activity_status": "single_active" if queue.consumers.active is subscription else "up" if active else "waiting",
        "arguments": plain(subscription.arguments),
        **timeout_of(queue, subscription.arguments, channel.session.broker),
    }


def timeout_of(queue: BrokerQueue, arguments: Table, broker: Broker) -> Json:
    """Return the field with the timeout of a consumer, in milliseconds; 0 if it has none."""
    timeout = consumer_timeout(queue, arguments, broker.consumer_timeout)
    return {"consumer_timeout": round((timeout or 0) * 1000)}


def _stream_consumer_view(connection: AnyConnection, subscription: "StreamSubscription") -> Json:
    waits = subscription.group is not None and not subscription.is_active
    return {
        "consumer_tag": subscription.tag,
        "queue": {"name": subscription.stream, "vhost": connection.vhost.name},
        "channel_details": channel_details(connection),
        "ack_required": False,
        "exclusive": False,
        "prefetch_count": 0,
        "active": not waits,
        "activity_status": "waiting" if waits else "up",
        "arguments": dict(subscription.properties),
        "consumer_timeout": 0,
    }


def channel_details(connection: "AnyConnection | AmqpSession", channel: BrokerChannel | None = None) -> Json:
    """Return the `channel_details` of a channel or a consumer; a consumer of the stream protocol has no channel."""
    return {
        "name": "" if channel is None else f"{connection.name} ({channel.number})",
        "number": 0 if channel is None else channel.number,
        "connection_name": connection.name,
        "peer_host": connection.peer[0],
        "peer_port": connection.peer[1],
        "node": NODE,
        "user": connection.user.name,
    }


@route("GET", "mqtool/faults", administrator)
def faults(call: RouteCall) -> list[Json]:
    return call.api.under_test().faults()


@route("POST", "mqtool/faults", administrator)
def begin_fault(call: RouteCall) -> HttpAnswer:
    body = call.body
    if not isinstance(name := body.pop("fault", None), str):
        raise bad_request('the body must have a "fault", such as {"fault": "cut_connections"}')
    try:
        number, met = call.api.under_test().begin(fault_of(name, body))
    except ValueError as error:
        raise bad_request(str(error)) from error
    return HttpAnswer(HTTPStatus.CREATED, {"id": number or None, "met": met})


@route("DELETE", "mqtool/faults", administrator)
def clear_faults(call: RouteCall) -> None:
    call.api.under_test().clear()


@route("DELETE", "mqtool/faults/NUMBER", administrator)
def undo_fault(call: RouteCall, number: str) -> None:
    if not (number.isdecimal() and call.api.under_test().undo(int(number))):
        missing()


@route("POST", "mqtool/reset", administrator)
def reset(call: RouteCall) -> None:
    """Undo all faults. In one virtual host or in all of them, purge the queues and clear the recording."""
    vhost = call.body.get("vhost")
    call.api.under_test().reset(vhost if vhost is None else call.vhost(str(vhost)).name)


@route("GET", "mqtool/published/VHOST", administrator)
@route("GET", "mqtool/unrouted/VHOST", administrator)
def published(call: RouteCall, vhost: str) -> HttpAnswer:
    """Return the published messages or, if the path contains `unrouted`, only those that no queue received."""
    return _recorded(call, call.request.path[2], vhost)


@route("GET", "mqtool/queues/VHOST/QUEUE/WHAT", administrator)
def in_queue(call: RouteCall, vhost: str, queue: str, what: str) -> HttpAnswer:
    """Return a queue's ready messages (if `what` is `messages`), or those `acked`, `rejected` or `requeued` there."""
    if what == "messages":
        _check_query(call)
        answer = _enough(call, list(call.api.under_test().ready(vhost, queue)))
    elif what in _SETTLED:
        answer = _recorded(call, what, vhost, queue=queue)
    else:
        missing()
    # A queue that is deleted or expires after its messages were acknowledged has a recording, but no longer exists.
    if answer.value or queue in call.vhost(vhost).queues:
        return answer
    # The program under test may declare the queue while the request waits.
    return HttpAnswer(
        HTTPStatus.NOT_FOUND, {"error": "Object Not Found", "reason": "Not Found"}, patience=answer.patience
    )


def _recorded(call: RouteCall, what: str, vhost: str, **names: str) -> HttpAnswer:
    call.vhost(vhost)
    selecting = [each for each in ("exchange", "routing_key", "queue") if each not in names]
    _check_query(call, *selecting)
    query = call.request.query
    names |= {each: query[each] for each in selecting if each in query}
    try:
        return _enough(call, list(call.api.under_test().recording.find(what, vhost, **names)))
    except LookupError as error:
        raise HttpError(HTTPStatus.CONFLICT, "not_recording", "start the broker with --recording") from error


def _check_query(call: RouteCall, *selecting: str) -> None:
    """Refuse unknown query parameters: a misspelled one would select other messages than the test means."""
    known = (*selecting, "count", "timeout")
    for each in call.request.query:
        if each not in known:
            raise bad_request(f"unknown query parameter {each!r}: one of {', '.join(known)}")


def _enough(call: RouteCall, messages: "list[Recorded]") -> HttpAnswer:
    """Return these messages. If there are fewer than the query's `count`, the server tries again until `timeout`.

    With a timeout and no count, the request waits for one message, as the queries in Python do.
    """
    query = call.request.query
    try:
        count, timeout = int(query.get("count", "timeout" in query)), float(query.get("timeout", _TIMEOUT))
    except ValueError as error:
        raise bad_request("count and timeout must be numbers") from error
    if not (count >= 0 and timeout >= 0):  # a timeout can be NaN
        raise bad_request("count and timeout must be at least 0")
    timeout = min(timeout, _MAX_TIMEOUT)
    patience = timeout if len(messages) < count else 0
    return HttpAnswer(HTTPStatus.OK, [_recorded_view(each) for each in messages], patience=patience)


def _recorded_view(message: "Recorded") -> Json:
    view = {
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "queues": message.queues,
        "redelivered": message.redelivered,
        "headers": plain(message.headers),
        "properties": plain(message.properties),
    }
    try:
        return {**view, "body": message.body.decode()}
    except UnicodeDecodeError:
        return {**view, "body_base64": base64.b64encode(message.body).decode()}
