"""GET /api/mqtool/events: what happens to individual messages, for `mqtool ui`. See docs/reference/events.md.

Nothing is recorded for a virtual host that nobody watches: its `watcher` is None. The first request sets it; a few
seconds after the last request, it is reset to None. What is recorded is in model/message_events.py.
"""

import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from itertools import islice
from typing import Any

from mqtool import ndjson
from mqtool.broker.embedded.http.http_server import HttpAnswer, bad_request
from mqtool.broker.embedded.http.message_routes import plain
from mqtool.broker.embedded.http.queue_routes import moved
from mqtool.broker.embedded.http.route_table import AnyConnection, Json, RouteCall, administrator, route
from mqtool.broker.embedded.http.session_routes import links_of
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.consumers import QueueConsumer
from mqtool.broker.embedded.model.message_events import LISTED, Event, MessageEvents, Unacknowledged
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.sockets.client_socket import ClientSocket
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.broker.embedded.wire.deliveries import ChannelSubscription

#: The maximum number of queues whose messages are counted.
_COUNTED = 1_000
_UNWATCHED_MILLISECONDS = 10_000
#: How many seconds a request waits for an event by default, and at most.
_TIMEOUT, _MAX_TIMEOUT = 10.0, 30.0


def _name(consumer: QueueConsumer | None, queue: BrokerQueue) -> str | None:
    """Return a consumer's name, made from its channel (in AMQP 1.0, its connection) and its tag; None for basic.get."""
    if consumer is None:
        return None
    if isinstance(consumer, ChannelSubscription):
        return consumer.name
    client = consumer.client
    return f"{client.name if isinstance(client, ClientSocket) else queue.name}/{consumer.tag}"


def _client(connection: ClientSocket) -> str:
    """Return the name that a client has given to its connection, or the name of its library, or its address."""
    properties = connection.client_properties
    return str(properties.get("connection_name") or properties.get("product") or connection.name.partition(" -> ")[0])


def _client_of(source: object) -> dict[str, Any]:
    """Describe the client that a message comes from or goes to."""
    session = source.session if isinstance(source, BrokerChannel) else source
    if isinstance(session, ClientSocket):
        named = {"client": _client(session), "connection": session.name, "protocol": session.protocol}
        return {**named, "confirms": source.confirms is not None} if isinstance(source, BrokerChannel) else named
    return {"client": "management API", "connection": "", "protocol": ""}


def _publish_of(source: object) -> int | None:
    """Return the number, among a channel's publishes, of the current publish; None if no confirm is expected."""
    if not isinstance(source, BrokerChannel) or source.confirms is None:
        return None
    return source.confirms.settled + len(source.confirms) + 1


def details(message: BrokerMessage) -> Json:
    """Describe a message, including the start of its body."""
    properties = message.properties.named()
    properties.pop("headers", None)
    headers = plain(message.headers)
    return ndjson.abridged(message.exchange, message.routing_key, headers, plain(properties), message.body)


def _reported(event: Event) -> Json:
    described = {} if event.message is None else {"details": details(event.message)}
    return {"t": round(event.at * 1000), **event.fields, **described}


def _unacknowledged(connections: Iterable[AnyConnection]) -> Iterator[Unacknowledged]:
    for connection in connections:
        for channel in connection.channels.values():
            for each in islice(channel.deliveries.unacked.values(), LISTED):
                yield each.queue, each.entry, each.subscription


def _listed(entry: BacklogEntry, place: Json) -> Json:
    return {**place, "copy": entry.position, "redelivered": entry.redelivered, "details": details(entry.message)}


def _watched(broker: Broker, vhost: VirtualHost) -> MessageEvents:
    """Return a virtual host's event recorder, starting it if necessary."""
    found = vhost.watcher
    if not isinstance(found, MessageEvents):
        found = MessageEvents(vhost, _client_of, _publish_of, _name)
        vhost.watch(found)
        _look_again(broker, vhost, found)
    found.refill()
    return found


def _is_news(found: MessageEvents, after: int) -> bool:
    """Return True if there has been an event or change after this one. Called while a request waits."""
    found.refill()
    return found.number != after


def _look_again(broker: Broker, vhost: VirtualHost, found: MessageEvents) -> None:
    """Stop recording events if there has been no request for a while; otherwise check again later."""
    if (time.monotonic() - found.asked) * 1000 > _UNWATCHED_MILLISECONDS:
        vhost.watch(None)
    else:
        broker.clock.call_later(_UNWATCHED_MILLISECONDS, lambda: _look_again(broker, vhost, found))


@route("GET", "mqtool/events/VHOST", administrator)
def events(call: RouteCall, name: str) -> HttpAnswer:
    """Return the events that follow number `after`; without `after`, the messages that are in the broker now.

    If there are none yet, the server waits up to `timeout` seconds for one; if none comes, the response has no counts.
    """
    query, vhost = call.request.query, call.vhost(name)
    found = _watched(call.broker, vhost)
    try:
        after = int(query["after"]) if "after" in query else None
        timeout = min(float(query.get("timeout", _TIMEOUT)), _MAX_TIMEOUT)
    except ValueError as error:
        raise bad_request("after and timeout must be numbers") from error
    connections = [each for each in call.opened() if each.vhost is vhost]
    view: Json = {"number": found.number, "changes": found.changes, "t": round(time.time() * 1000)}
    if after == found.number and timeout > 0:
        nothing = {**view, "events": []}
        return HttpAnswer(HTTPStatus.OK, nothing, patience=timeout, is_outdated=lambda: _is_news(found, after))
    if after is None:
        waiting = [_listed(entry, place) for entry, place in found.waiting(_unacknowledged(connections))]
        return HttpAnswer(HTTPStatus.OK, {**view, "waiting": waiting})
    happened = found.since(after)
    if happened is None:
        return HttpAnswer(HTTPStatus.OK, {**view, "lost": True})
    view["events"] = [_reported(event) for event in happened]
    stored = [[stream, *latest] for stream, latest in found.offsets.items()]
    return HttpAnswer(HTTPStatus.OK, {**view, **_counts(vhost, connections, found.readers), "stored": stored})


def _counts(vhost: VirtualHost, connections: Iterable[AnyConnection], readers: dict[str | None, int]) -> Json:
    """Return the counts of queues, publishers and consumers, stream readers' offsets, and consumers' link credit."""
    channels = [
        (connection, channel)
        for connection in connections
        for channel in connection.channels.values()
        if isinstance(channel, BrokerChannel)
    ]
    streaming = [each for each in connections if each.protocol == "stream"]
    return {
        "queues": {queue.name: moved(queue) for queue in islice(vhost.queues.values(), _COUNTED)},
        "taken": [
            [subscription.name, channel.deliveries.last_tag]
            for _, channel in channels
            for subscription in channel.deliveries.subscriptions.values()
            if len(channel.deliveries.subscriptions) == 1
        ],
        "read": [
            [subscription.name, readers[subscription.name]]
            for _, channel in channels
            for subscription in channel.deliveries.subscriptions.values()
            if subscription.name in readers
        ]
        + [
            [reader.name, reader.sent] for each in streaming for reader in each.subscriptions if reader.sent is not None
        ],
        "credit": [
            [_name(link, queue), link.flow.largest_credit]
            for connection in connections
            for link, queue in links_of(connection)
            if link.flow.largest_credit
        ],
        "published": [
            [_client(connection), exchange, count]
            for connection, channel in channels
            for exchange, count in channel.published.items()
        ],
        "appended": [
            [_client(each), publisher.stream, publisher.published]
            for each in streaming
            for publisher in each.publishers
        ],
    }
