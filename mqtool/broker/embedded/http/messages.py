"""Messages in and out by requests: one published, or some got from a queue."""

import base64
import binascii
import contextlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mqtool.broker.embedded.http import views
from mqtool.broker.embedded.http.directory import bad_request
from mqtool.broker.embedded.http.field_tables import field_table
from mqtool.broker.embedded.http.server import Answer
from mqtool.broker.embedded.model.amqp_errors import locked_queue
from mqtool.broker.embedded.model.amqp_message import ContentHeader, Message, Properties, encode_address, encode_short
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import Exchange
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire.publishing_methods import check_message
from mqtool.codecs.field_tables import encode_table

_NUMBERS = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
_TEXTS = (
    *("content_type", "content_encoding", "correlation_id", "reply_to", "expiration", "message_id"),
    *("type", "user_id", "app_id", "cluster_id"),
)
_MAX_TEXT = 255


def publish(broker: Broker, vhost: VirtualHost, exchange: Exchange, user: User, body: views.Json) -> Answer:
    """Publish a message, and say whether any queue got it.

    Raises:
        HttpError: 400, the request is not complete or not valid.
        AmqpException: the message may not be published.
    """
    _require(body, "properties", "routing_key", "payload", "payload_encoding")
    payload = _payload(str(body["payload"]), body["payload_encoding"])
    properties = _properties(body["properties"] or {})
    try:
        address = encode_address(exchange.name, str(body["routing_key"]))
    except ValueError as error:
        raise bad_request("routing_key is longer than 255 bytes") from error
    message = Message(address, ContentHeader.of(properties, len(payload)), payload)
    check_message(message, exchange, vhost.name, user)
    exchange.published_in += 1
    routing = vhost.route(exchange, message)
    publication = vhost.enqueue(routing) if broker.hooks is None else broker.hooks.enqueue(vhost, routing)
    if not publication.routed:
        broker.dropped_unroutable += 1
    return Answer(HTTPStatus.OK, {"routed": publication.routed and publication.accepted})


def _require(body: views.Json, *names: str) -> None:
    for name in names:
        if name not in body:
            raise bad_request(f"[{{key_missing,{name}}}]")


def _payload(payload: str, encoding: object) -> bytes:
    if encoding == "string":
        return payload.encode()
    if encoding != "base64":
        raise bad_request(f"unsupported_encoding: {encoding}")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"not_base64: {payload}") from error


def _properties(given: Any) -> Properties:
    """Return properties from an object; what AMQP does not know is ignored."""
    if not isinstance(given, dict):
        raise bad_request("properties must be an object")
    fields = {}
    for name, width in _NUMBERS.items():
        if name in given:
            if type(given[name]) is not int:
                raise bad_request(f"not_int: {name}")
            try:
                fields[name] = given[name].to_bytes(width)
            except OverflowError as error:
                raise bad_request(f"out of range: {name}") from error
    for name in _TEXTS:
        if name in given:
            text = str(given[name]).encode()
            if len(text) > _MAX_TEXT:
                raise bad_request(f"longer than {_MAX_TEXT} bytes: {name}")
            fields[name] = encode_short(text)
    if given.get("headers"):
        fields["headers"] = encode_table(field_table(given["headers"]))
    return Properties.of(fields)


def get(broker: Broker, queue: Queue, body: views.Json) -> Answer:
    """Get messages from a queue, and acknowledge, reject or requeue them.

    Raises:
        HttpError: 400, the request is not complete or not valid.
        ChannelException: 405, the queue is exclusive.
    """
    _require(body, "ackmode", "count", "encoding")
    settle = _SETTLING.get(body["ackmode"])
    if settle is None:
        raise bad_request(f"ackmode must be one of {', '.join(_SETTLING)}")
    if body["encoding"] not in ("auto", "base64"):
        raise bad_request("Unsupported encoding. Please use auto or base64.")
    try:
        count, truncate = int(body["count"]), int(body["truncate"]) if "truncate" in body else None
    except (TypeError, ValueError) as error:
        raise bad_request("count and truncate must be integers") from error
    if queue.owner is not None:
        raise locked_queue(queue.name, queue.vhost)
    views_of: list[views.Json] = []
    entries: list[Entry] = []
    while len(entries) < count and (entry := queue.get(no_ack=False)) is not None:
        entries.append(entry)
        views_of.append(_got(entry, len(queue), truncate, is_base64=body["encoding"] == "base64"))
    settle(broker, queue, entries)
    return Answer(HTTPStatus.OK, views_of)


def _got(entry: Entry, left: int, truncate: int | None, *, is_base64: bool) -> views.Json:
    message = entry.message
    payload = message.body[:truncate]
    shown: views.Json = {"payload": base64.b64encode(payload).decode(), "payload_encoding": "base64"}
    if not is_base64:
        with contextlib.suppress(UnicodeDecodeError):
            shown = {"payload": payload.decode(), "payload_encoding": "string"}
    return {
        "payload_bytes": len(message.body),
        "redelivered": entry.redelivered,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "message_count": left,
        # Erlang has one value for an empty list and an empty object.
        "properties": views.plain(message.properties.named()) or [],
        **shown,
    }


def _acknowledge(broker: Broker, queue: Queue, entries: list[Entry]) -> None:
    for entry in entries:
        if broker.hooks is None or broker.hooks.acknowledge(queue, entry):
            queue.acknowledge(entry)
        else:
            queue.requeue([entry])


def _requeue(broker: Broker, queue: Queue, entries: list[Entry]) -> None:
    if broker.hooks is not None:
        for entry in entries:
            broker.hooks.rejected(queue, entry, requeue=True)
    queue.requeue(entries)


def _reject(broker: Broker, queue: Queue, entries: list[Entry]) -> None:
    for entry in entries:
        if broker.hooks is not None:
            broker.hooks.rejected(queue, entry, requeue=False)
        queue.reject(entry)


_SETTLING: dict[Any, Callable[[Broker, Queue, list[Entry]], None]] = {
    "ack_requeue_false": _acknowledge,
    "ack_requeue_true": _requeue,
    "reject_requeue_true": _requeue,
    "reject_requeue_false": _reject,
}
