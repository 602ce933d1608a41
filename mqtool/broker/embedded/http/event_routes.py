"""GET /api/mqtool/events: what happens to individual messages, for `mqtool ui`. See docs/reference/events.md.

Nothing is recorded for a virtual host that nobody watches: its `watcher` is None. The first request sets it; a few
seconds after the last request, it is reset to None. At high rates, only some messages are shown, each from its
exchange until it leaves the broker; the others are only counted.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from itertools import islice, takewhile

from mqtool import ndjson
from mqtool.broker.embedded.http.http_server import Answer, bad_request
from mqtool.broker.embedded.http.message_routes import plain
from mqtool.broker.embedded.http.queue_routes import moved
from mqtool.broker.embedded.http.route_table import AnyConnection, Call, Json, administrator, route
from mqtool.broker.embedded.model.amqp_message import Message, carbon_copies
from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.consumers import Consumer
from mqtool.broker.embedded.model.dead_lettering import DeadLettered
from mqtool.broker.embedded.model.exchange import Destination, Exchange
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Released, Routing, VirtualHost
from mqtool.broker.embedded.sockets.client_socket import ClientSocket
from mqtool.broker.embedded.wire.amqp_channel import Channel
from mqtool.broker.embedded.wire.deliveries import Subscription

#: The maximum number of events kept for slow readers, and of messages shown at the same time.
_MAX_EVENTS, _MAX_SHOWN = 4_000, 2_000
#: The maximum number of new messages shown per second, between two requests, and per second for one exchange and key.
_PER_SECOND, _AT_ONCE, _PER_SECOND_ON_ARROW = 100, 50, 20
#: The maximum number of queues whose messages are counted.
_COUNTED = 1_000
#: The maximum number of messages in a snapshot: per queue, consumer or delayed exchange, and in total.
_LISTED, _ALL_LISTED = 20, 1_000
_UNWATCHED_MILLISECONDS = 10_000
#: How many seconds a request waits for an event by default, and at most.
_TIMEOUT, _MAX_TIMEOUT = 10.0, 30.0


class MessageEvents:
    """Records what happens to the messages of a virtual host. Implements consumers.Watcher.

    Attributes:
        number: incremented with each event and change. Numbers are never reused, even after a restart of the broker.
        changes: incremented each time an exchange, queue, binding or consumer is added or removed.
        asked: the time of the latest request, in seconds.
        shown: the queue (or delayed exchange) of each message that is shown, and whether it is ready there.
        publishing: the messages that were published since the latest request, and their numbers.
        readers: the offset of the latest message that each stream consumer received.
    """

    def __init__(self, vhost: VirtualHost) -> None:
        self.number = time.monotonic_ns() // 1000
        self.changes = 0
        self.asked = time.monotonic()
        self.shown: dict[int, tuple[str, bool]] = {}
        self.publishing: dict[int, tuple[Message, int]] = {}
        self.readers: dict[str | None, int] = {}
        self._vhost = vhost
        self._events: deque[tuple[int, float, Json, Message | None]] = deque()
        #: The number of the latest event that has been dropped.
        self._forgotten = self.number
        #: The latest messages in streams, as pairs of stream and offset.
        self._in_streams: deque[tuple[str, int]] = deque(maxlen=_LISTED * 10)
        self._messages = 0
        self._held: tuple[str, Entry] | None = None
        #: Messages that are being dead-lettered.
        self._dead: deque[Message] = deque(maxlen=_LISTED)
        #: How many more messages may be shown until the next request.
        self._left = float(_AT_ONCE)
        #: How many have been shown in this second, by exchange and routing key.
        self._in_second: Counter[bytes] = Counter()
        self._second = 0

    def published(self, routing: Routing) -> None:
        message, source = routing.message, routing.source
        held, self._held = self._held, None
        if isinstance(source, DeadLettered):
            may_show = any(each is source.message for each in self._dead)
        elif isinstance(source, Released):
            may_show = self.shown.pop(source.position, None) is not None
        else:
            may_show = False
        if not may_show:
            # On a busy broker, most messages are not shown.
            if not self._may_show(message.address):
                return
            self._take(message.address)
        self._messages += 1
        self.publishing[id(message)] = message, self._messages
        paths = [*_paths(self._vhost, message, routing.queues)]
        self._add({"what": "published", "message": self._messages, "from": _origin(source), "paths": paths}, message)
        if held is not None and held[1].message.address == message.address:
            del self.publishing[id(message)]  # not lost, although no queue receives it
            exchange, entry = held
            self._show(entry, exchange)
            fields = {"exchange": exchange, "copy": entry.position, "until": entry.expires_at}
            self._add({"what": "delayed", "message": self._messages, **fields})

    def _may_show(self, address: bytes) -> bool:
        """Return True if another new message may be shown."""
        return self._left >= 1 and self._in_second[address] < _PER_SECOND_ON_ARROW and len(self.shown) < _MAX_SHOWN

    def _take(self, address: bytes) -> None:
        self._left -= 1
        self._in_second[address] += 1

    def unroutable(self, message: Message, *, returned: bool) -> None:
        if (found := self.publishing.get(id(message))) is not None:
            self._add({"what": "returned" if returned else "dropped", "message": found[1]})

    def refused(self, queue: Queue, message: Message) -> None:
        if (found := self.publishing.get(id(message))) is not None:
            self._add({"what": "refused", "message": found[1], "queue": queue.name})

    def entered(self, queue: Queue, message: Message, position: int) -> None:
        if queue.kind == "stream":
            self._in_streams.append((queue.name, position))
            what = "appended"
        else:
            self.shown[position] = queue.name, True
            what = "ready"
        number = self.publishing[id(message)][1]
        self._add({"what": what, "message": number, "queue": queue.name, "copy": position})

    def delivered(self, queue: Queue, entry: Entry, consumer: Consumer | None, *, no_ack: bool) -> None:
        fields = {"queue": queue.name, "copy": entry.position, "consumer": _name(consumer, queue), "no_ack": no_ack}
        if queue.kind == "stream":
            self.readers[_name(consumer, queue)] = entry.position
            if (queue.name, entry.position) in self._in_streams:
                self._add({"what": "read", **fields})
            return
        self._add({"what": "delivered", **fields, "redelivered": entry.redelivered})
        if no_ack:
            del self.shown[entry.position]
        else:
            self.shown[entry.position] = queue.name, False

    def acknowledged(self, queue: Queue, entry: Entry) -> None:
        del self.shown[entry.position]
        self._add({"what": "acknowledged", "queue": queue.name, "copy": entry.position})

    def requeued(self, queue: Queue, entry: Entry, why: str) -> None:
        if queue.deleted:
            del self.shown[entry.position]
            return
        self.shown[entry.position] = queue.name, True
        self._add({"what": "requeued", "queue": queue.name, "copy": entry.position, "why": why})

    def ended(self, queue: Queue, entry: Entry, reason: str, exchange: str | None) -> None:
        del self.shown[entry.position]
        self._dead.append(entry.message)
        fields = {"queue": queue.name, "copy": entry.position, "reason": reason}
        if exchange is None:
            self._add({"what": "discarded", **fields})
        else:
            self._add({"what": "dead-lettered", **fields, "exchange": exchange})

    def emptied(self, queue: Queue) -> None:
        gone = queue.name, True
        self.shown = {position: place for position, place in self.shown.items() if place != gone}
        self._add({"what": "purged", "queue": queue.name})

    def delayed(self, exchange: Exchange, entry: Entry) -> None:
        self._held = exchange.name, entry

    def streamed(self, source: object, stream: str, messages: Iterator[tuple[int, Message]]) -> None:
        address = stream.encode(errors="surrogateescape")
        while self._may_show(address) and (found := next(messages, None)) is not None:
            self._take(address)
            self._messages += 1
            position, message = found
            self._add(
                {"what": "published", "message": self._messages, "from": _origin(source), "paths": [[stream]]}, message
            )
            self._in_streams.append((stream, position))
            self._add({"what": "appended", "message": self._messages, "queue": stream, "copy": position})

    def read(self, stream: str, offsets: range, consumer: str) -> None:
        for position in sorted(at for name, at in self._in_streams if name == stream and at in offsets):
            fields = {"queue": stream, "copy": position, "consumer": consumer, "no_ack": True}
            self._add({"what": "read", **fields, "offset": offsets[-1]})

    def replied(self, source: object, message: Message, to: object) -> None:
        if self._left >= 1:
            self._left -= 1
            self._messages += 1
            ends = {"from": _origin(source), "to": _origin(to)}
            self._add({"what": "replied", "message": self._messages, **ends}, message)

    def changed(self) -> None:
        self.readers.clear()  # some consumers may be gone
        self.number += 1
        self.changes += 1

    # The following methods are called by requests.

    def refill(self) -> None:
        """Allow more messages to be shown, in proportion to the time since the latest request."""
        now = time.monotonic()
        self._left = min(self._left + (now - self.asked) * _PER_SECOND, _AT_ONCE)
        self.asked = now
        self.publishing.clear()
        if int(now) != self._second:
            self._second = int(now)
            self._in_second.clear()

    def since(self, number: int) -> list[Json] | None:
        """Return the events after this one; None if some of them have been dropped."""
        if not self._forgotten <= number <= self.number:
            return None
        later = takewhile(lambda event: event[0] > number, reversed(self._events))
        found = [
            {"t": round(at * 1000), **fields, **({} if message is None else {"details": details(message)})}
            for _, at, fields, message in later
        ]
        return found[::-1]

    def waiting(self, connections: Iterable[AnyConnection]) -> list[Json]:
        """Return messages in queues, with consumers and in delayed exchanges. Later events report them as well."""
        return [*islice(self._waiting(connections), _ALL_LISTED)]

    def _waiting(self, connections: Iterable[AnyConnection]) -> Iterator[Json]:
        for exchange, entry in self._vhost.first_held(_LISTED):
            self._show(entry, exchange)
            yield _listed(entry, {"exchange": exchange, "until": entry.expires_at})
        for connection in connections:
            for channel in connection.channels.values():
                for each in islice(channel.deliveries.unacked.values(), _LISTED):
                    if each.queue.kind != "stream":
                        self._show(each.entry, each.queue.name, is_ready=False)
                        yield _listed(
                            each.entry, {"queue": each.queue.name, "consumer": _name(each.subscription, each.queue)}
                        )
        for queue in self._vhost.queues.values():
            if queue.kind != "stream":
                for entry in islice(queue.backlog.in_memory(), _LISTED):
                    self._show(entry, queue.name)
                    yield _listed(entry, {"queue": queue.name})

    def _add(self, fields: Json, message: Message | None = None) -> None:
        self.number += 1
        self._events.append((self.number, time.time(), fields, message))
        if len(self._events) > _MAX_EVENTS:
            self._forgotten = self._events.popleft()[0]

    def _show(self, entry: Entry, place: str, *, is_ready: bool = True) -> None:
        self.shown[entry.position] = place, is_ready


def _name(consumer: Consumer | None, queue: Queue) -> str | None:
    """Return a consumer's name, made from its channel (in AMQP 1.0, its queue) and its tag; None for basic.get."""
    if consumer is None:
        return None
    # In AMQP 1.0, consumers have no channels.
    return consumer.name if isinstance(consumer, Subscription) else f"{queue.name}/{consumer.tag}"


def _client(connection: ClientSocket) -> str:
    """Return the name that a client has given to its connection, or the name of its library."""
    properties = connection.client_properties
    return str(properties.get("connection_name") or properties.get("product") or connection.user.name)


def _origin(source: object) -> Json:
    """Describe where a message comes from: a client, a queue that dead-lettered it, or an exchange that delayed it."""
    match source:
        case Channel():
            return _origin(source.session)
        case ClientSocket():
            return {"client": _client(source), "connection": source.name}
        case DeadLettered():
            return {"queue": source.queue.name, "reason": source.reason}
        case Released():
            return {"exchange": source.exchange, "copy": source.position}
    return {"client": "management API", "connection": ""}


def _paths(vhost: VirtualHost, message: Message, queues: Iterable[Queue]) -> Iterator[list[str]]:
    """Yield a path to each queue: the names of the exchanges that the message passes through, then the queue's name."""
    first = vhost.exchanges.get(message.exchange)
    keys = [message.routing_key, *carbon_copies(message.headers)]
    todo, paths = ([] if first is None else [first]), {first: [message.exchange]}
    wanted = set(queues)
    while todo and wanted:
        exchange = todo.pop(0)
        if exchange.name == "":
            found: list[Destination] = [vhost.queues[key] for key in keys if key in vhost.queues]
        else:
            found = [each for key in keys for each in exchange.match(key, message.headers)]
        if not found and exchange.alternate in vhost.exchanges:
            found = [vhost.exchanges[exchange.alternate]]
        for each in found:
            if each in wanted:
                wanted.discard(each)
                yield [*paths[exchange], each.name]
            elif isinstance(each, Exchange) and each not in paths:
                paths[each] = [*paths[exchange], each.name]
                todo.append(each)
    for queue in wanted:  # its binding was removed before the transaction was committed
        yield [message.exchange, queue.name]


def details(message: Message) -> Json:
    """Describe a message, including the start of its body."""
    properties = message.properties.named()
    properties.pop("headers", None)
    headers = plain(message.headers)
    return ndjson.abridged(message.exchange, message.routing_key, headers, plain(properties), message.body)


def _listed(entry: Entry, place: Json) -> Json:
    return {**place, "copy": entry.position, "redelivered": entry.redelivered, "details": details(entry.message)}


def _watched(broker: Broker, vhost: VirtualHost) -> MessageEvents:
    """Return a virtual host's event recorder, starting it if necessary."""
    found = vhost.watcher
    if not isinstance(found, MessageEvents):
        found = MessageEvents(vhost)
        vhost.watch(found)
        _look_again(broker, vhost, found)
    found.refill()
    return found


def _look_again(broker: Broker, vhost: VirtualHost, found: MessageEvents) -> None:
    """Stop recording events if there has been no request for a while; otherwise check again later."""
    if (time.monotonic() - found.asked) * 1000 > _UNWATCHED_MILLISECONDS:
        vhost.watch(None)
    else:
        broker.clock.call_later(_UNWATCHED_MILLISECONDS, lambda: _look_again(broker, vhost, found))


@route("GET", "mqtool/events/VHOST", administrator)
def events(call: Call, name: str) -> Answer:
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
        return Answer(HTTPStatus.OK, {**view, "events": []}, patience=timeout)
    if after is None:
        return Answer(HTTPStatus.OK, {**view, "waiting": found.waiting(connections)})
    happened = found.since(after)
    if happened is None:
        return Answer(HTTPStatus.OK, {**view, "lost": True})
    return Answer(HTTPStatus.OK, {**view, "events": happened, **_counts(vhost, connections, found.readers)})


def _counts(vhost: VirtualHost, connections: Iterable[AnyConnection], readers: dict[str | None, int]) -> Json:
    """Return how many messages are in queues, how many were published and delivered, and stream readers' offsets."""
    channels = [
        (connection, channel)
        for connection in connections
        for channel in connection.channels.values()
        if isinstance(channel, Channel)
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
