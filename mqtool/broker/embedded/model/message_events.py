"""What happens to individual messages, as the page of `mqtool ui` shows it.

At high rates, only some messages are shown, each from its exchange until it leaves the broker; the others are only
counted. GET /api/mqtool/events (see http/event_routes.py) returns the events.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice, takewhile
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.consumers import QueueConsumer
from mqtool.broker.embedded.model.dead_lettering import DeadLettered
from mqtool.broker.embedded.model.exchange import BrokerDestination, BrokerExchange
from mqtool.broker.embedded.model.queue import BrokerQueue, in_memory
from mqtool.broker.embedded.model.virtual_host import ReleasedQueue, Routing, VirtualHost

#: The maximum number of events kept for slow readers, of messages shown at the same time, and of skipped addresses.
_MAX_EVENTS, _MAX_SHOWN, _MAX_SKIPPED = 4_000, 2_000, 1_000
#: The maximum number of new messages shown per second, between two requests, and per second for one exchange and key.
_PER_SECOND, _AT_ONCE, _PER_SECOND_ON_ARROW = 100, 50, 20
#: The maximum number of messages in a snapshot: for each queue, each channel and all delayed messages, and in total.
LISTED, _ALL_LISTED = 20, 1_000

#: What is known of an event, by the names in docs/reference/events.md.
EventFields = dict[str, Any]
#: A delivery that its consumer has not acknowledged; the consumer is None for basic.get.
Unacknowledged = tuple[BrokerQueue, BacklogEntry, QueueConsumer | None]


class Event(NamedTuple):
    """An event, its time in seconds since 1970, and the message if the event is the first of its message."""

    number: int
    at: float
    fields: EventFields
    message: BrokerMessage | None


class _Quota:
    """How many more new messages are shown, so that the page of a busy broker shows some and counts the others."""

    def __init__(self) -> None:
        self._left = float(_AT_ONCE)
        #: How many have been shown in this second, by exchange and routing key.
        self._in_second: Counter[bytes] = Counter()
        self._second = 0

    def has(self, address: bytes, shown: int) -> bool:
        """Return True if one more message with this exchange and routing key may be shown, besides those shown now."""
        return shown < _MAX_SHOWN and self._left >= 1 and self._in_second[address] < _PER_SECOND_ON_ARROW

    def use(self, address: bytes) -> None:
        """Count a message that is shown."""
        self._left -= 1
        self._in_second[address] += 1

    def use_if_any(self) -> bool:
        """Count an event that has no address of its own. Return False if it must not be shown."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def refill(self, now: float, passed: float) -> None:
        """Allow more messages, in proportion to the seconds that have passed since the latest request."""
        self._left = min(self._left + passed * _PER_SECOND, _AT_ONCE)
        if int(now) != self._second:
            self._second = int(now)
            self._in_second.clear()


class _Unconfirmed:
    """The publishes of messages that are shown, until the broker has confirmed them."""

    def __init__(self) -> None:
        #: For each channel, the numbers of its publishes, and of their messages. Closed channels are forgotten.
        self._publishes = WeakKeyDictionary[object, deque[tuple[int, int]]]()

    def add(self, channel: object, publish: int, message: int) -> None:
        self._publishes.setdefault(channel, deque(maxlen=_MAX_SHOWN)).append((publish, message))

    def take(self, channel: object, settled: range) -> list[tuple[int, int]]:
        """Remove and return those that are settled."""
        waiting = self._publishes.get(channel)
        found = []
        while waiting and waiting[0][0] < settled.stop:
            found.append(waiting.popleft())
        if found and not waiting:
            del self._publishes[channel]
        return found


class MessageEvents:
    """Records what happens to the messages of a virtual host. Implements consumers.Watcher.

    Attributes:
        number: incremented with each event and change. Numbers are never reused, even after a restart of the broker.
        changes: incremented each time an exchange, queue, binding or consumer is added or removed.
        asked: the time of the latest request, in seconds.
        shown: the queue (or delayed exchange) of each message that is shown, and whether it is ready there.
        publishing: the messages that were published since the latest request, and their numbers.
        skipped: the addresses whose new messages are not shown until the next request.
        readers: the offset of the latest message that each stream consumer received.
        offsets: for each stream, the name of the reader whose offset was stored last, and that offset.

    Args:
        client_of: describes the connection or channel that a message comes from or goes to.
        publish_of: returns the number of the publish that a channel is performing; None if it expects no confirm.
        name_of: returns the name of a queue's consumer; None for basic.get.
    """

    def __init__(
        self,
        vhost: VirtualHost,
        client_of: Callable[[object], EventFields],
        publish_of: Callable[[object], int | None],
        name_of: Callable[[QueueConsumer | None, BrokerQueue], str | None],
    ) -> None:
        self.number = time.monotonic_ns() // 1000
        self.changes = 0
        self.asked = time.monotonic()
        self.shown: dict[int, tuple[str, bool]] = {}
        self.publishing: dict[int, tuple[BrokerMessage, int]] = {}
        self.skipped: set[bytes] = set()
        self.readers: dict[str | None, int] = {}
        self.offsets: dict[str, tuple[str, int]] = {}
        self._vhost = vhost
        self._client_of = client_of
        self._publish_of = publish_of
        self._name_of = name_of
        self._events: deque[Event] = deque()
        #: The number of the latest event that has been dropped.
        self._forgotten = self.number
        #: The latest messages in streams, as pairs of stream and offset.
        self._in_streams: deque[tuple[str, int]] = deque(maxlen=LISTED * 10)
        self._messages = 0
        self._held: tuple[str, BacklogEntry] | None = None
        self._unconfirmed = _Unconfirmed()
        #: Messages that are being dead-lettered.
        self._dead: deque[BrokerMessage] = deque(maxlen=LISTED)
        self._quota = _Quota()

    def published(self, routing: Routing) -> None:
        message, source = routing.message, routing.source
        held, self._held = self._held, None
        if isinstance(source, DeadLettered):
            may_show = any(each is source.message for each in self._dead)
        elif isinstance(source, ReleasedQueue):
            may_show = self.shown.pop(source.position, None) is not None
        else:
            may_show = False
        if not may_show:
            if not self._quota.has(message.address, len(self.shown)):
                # On a busy broker, most messages are not shown. The next ones to this address need no call.
                if len(self.skipped) < _MAX_SKIPPED:
                    self.skipped.add(message.address)
                return
            self._quota.use(message.address)
        self._messages += 1
        self.publishing[id(message)] = message, self._messages
        fields = {"what": "published", "message": self._messages, "from": self._origin(source)}
        self._add({**fields, "paths": [*_paths(self._vhost, message, routing.queues)]}, message)
        if (publish := self._publish_of(source)) is not None:
            self._unconfirmed.add(source, publish, self._messages)
        if held is not None and held[1].message.address == message.address:
            del self.publishing[id(message)]  # not lost, although no queue receives it
            exchange, entry = held
            self.shown[entry.position] = exchange, True
            fields = {"exchange": exchange, "copy": entry.position, "until": entry.expires_at}
            self._add({"what": "delayed", "message": self._messages, **fields})
        elif not routing.queues and _is_dropped(source):
            self.unroutable(message, returned=False)

    def confirmed(self, channel: object, settled: range, nacked: Collection[int]) -> None:
        found = self._unconfirmed.take(channel, settled)
        if not found:
            return
        fields = {"what": "confirmed", "from": self._client_of(channel)}
        for publish, number in found:
            if publish in nacked:
                self._add({**fields, "messages": [number], "count": 1, "nack": True})
        if confirmed := [number for publish, number in found if publish not in nacked]:
            self._add({**fields, "messages": confirmed, "count": len(settled) - len(nacked), "nack": False})

    def unroutable(self, message: BrokerMessage, *, returned: bool) -> None:
        if (found := self.publishing.get(id(message))) is not None:
            self._add({"what": "returned" if returned else "dropped", "message": found[1]})

    def refused(self, queue: BrokerQueue, message: BrokerMessage) -> None:
        if (found := self.publishing.get(id(message))) is not None:
            self._add({"what": "refused", "message": found[1], "queue": queue.name})

    def entered(self, queue: BrokerQueue, message: BrokerMessage, position: int) -> None:
        if queue.kind == "stream":
            self._in_streams.append((queue.name, position))
            what = "appended"
        else:
            self.shown[position] = queue.name, True
            what = "ready"
        number = self.publishing[id(message)][1]
        self._add({"what": what, "message": number, "queue": queue.name, "copy": position})

    def delivered(
        self, queue: BrokerQueue, entry: BacklogEntry, consumer: QueueConsumer | None, *, no_ack: bool
    ) -> None:
        name = self._name_of(consumer, queue)
        fields = {"queue": queue.name, "copy": entry.position, "consumer": name, "no_ack": no_ack}
        fields["to"] = None if consumer is None else self._client_of(consumer.client)
        if queue.kind == "stream":
            self.readers[name] = entry.position
            if (queue.name, entry.position) in self._in_streams:
                self._add({"what": "read", **fields})
            return
        self._add({"what": "delivered", **fields, "redelivered": entry.redelivered})
        if no_ack:
            del self.shown[entry.position]
        else:
            self.shown[entry.position] = queue.name, False

    def acknowledged(self, queue: BrokerQueue, entry: BacklogEntry) -> None:
        del self.shown[entry.position]
        self._add({"what": "acknowledged", "queue": queue.name, "copy": entry.position})

    def requeued(self, queue: BrokerQueue, entry: BacklogEntry, why: str) -> None:
        if queue.deleted:
            del self.shown[entry.position]
            return
        self.shown[entry.position] = queue.name, True
        self._add({"what": "requeued", "queue": queue.name, "copy": entry.position, "why": why})

    def ended(self, queue: BrokerQueue, entry: BacklogEntry, reason: str, exchange: str | None) -> None:
        del self.shown[entry.position]
        self._dead.append(entry.message)
        fields = {"queue": queue.name, "copy": entry.position, "reason": reason}
        if exchange is None:
            self._add({"what": "discarded", **fields})
        else:
            self._add({"what": "dead-lettered", **fields, "exchange": exchange})

    def emptied(self, queue: BrokerQueue) -> None:
        gone = queue.name, True
        self.shown = {position: place for position, place in self.shown.items() if place != gone}
        self._add({"what": "purged", "queue": queue.name})

    def delayed(self, exchange: BrokerExchange, entry: BacklogEntry) -> None:
        self._held = exchange.name, entry
        self.skipped.discard(entry.message.address)  # published() has to be called, to take `_held`

    def streamed(self, source: object, stream: str, messages: Iterator[tuple[int, BrokerMessage]]) -> None:
        address = stream.encode(errors="surrogateescape")
        while self._quota.has(address, len(self.shown)) and (found := next(messages, None)) is not None:
            self._quota.use(address)
            self._messages += 1
            position, message = found
            fields = {"what": "published", "message": self._messages, "from": self._origin(source)}
            self._add({**fields, "paths": [[stream]]}, message)
            self._in_streams.append((stream, position))
            self._add({"what": "appended", "message": self._messages, "queue": stream, "copy": position})

    def read(self, stream: str, offsets: range, consumer: str, client: object) -> None:
        to = self._client_of(client)
        for position in sorted(at for name, at in self._in_streams if name == stream and at in offsets):
            fields = {"queue": stream, "copy": position, "consumer": consumer, "to": to, "no_ack": True}
            self._add({"what": "read", **fields, "offset": offsets[-1]})

    def stored(self, stream: str, name: str, offset: int, client: object) -> None:
        offset = offset if offset < 1 << 63 else -1  # clients reset an offset by storing -1, which is unsigned here
        self.offsets[stream] = name, offset
        if self._quota.use_if_any():
            self._add({"what": "stored", "queue": stream, "name": name, "offset": offset, "from": self._origin(client)})

    def replied(self, source: object, message: BrokerMessage, to: object) -> None:
        if self._quota.use_if_any():
            self._messages += 1
            ends = {"from": self._origin(source), "to": self._origin(to)}
            self._add({"what": "replied", "message": self._messages, **ends}, message)

    def unknown_exchange(self, source: object, message: BrokerMessage) -> None:
        if self._quota.use_if_any():
            self._add({"what": "unknown-exchange", "from": self._origin(source)}, message)

    def unknown_address(self, source: object, address: str) -> None:
        if self._quota.use_if_any():
            self._add({"what": "unknown-address", "from": self._origin(source), "address": address})

    def changed(self) -> None:
        self.readers.clear()  # some consumers may be gone
        self.offsets = {name: stored for name, stored in self.offsets.items() if name in self._vhost.queues}
        self.number += 1
        self.changes += 1

    # The following methods are called by requests.

    def refill(self) -> None:
        """Allow more messages to be shown, in proportion to the time since the latest request."""
        now = time.monotonic()
        self._quota.refill(now, now - self.asked)
        self.asked = now
        self.publishing.clear()
        self.skipped.clear()

    def since(self, number: int) -> list[Event] | None:
        """Return the events after this one; None if some of them have been dropped."""
        if not self._forgotten <= number <= self.number:
            return None
        return [*takewhile(lambda event: event.number > number, reversed(self._events))][::-1]

    def waiting(self, unacknowledged: Iterable[Unacknowledged]) -> list[tuple[BacklogEntry, EventFields]]:
        """Return messages in queues, with consumers and in delayed exchanges. Later events report them as well.

        Args:
            unacknowledged: deliveries of the virtual host's channels, up to LISTED of each.
        """
        return [*islice(self._waiting(unacknowledged), _ALL_LISTED)]

    def _waiting(self, unacknowledged: Iterable[Unacknowledged]) -> Iterator[tuple[BacklogEntry, EventFields]]:
        for exchange, entry in self._vhost.first_held(LISTED):
            self.shown[entry.position] = exchange, True
            yield entry, {"exchange": exchange, "until": entry.expires_at}
        for queue, entry, consumer in unacknowledged:
            if queue.kind != "stream":
                self.shown[entry.position] = queue.name, False
                yield entry, {"queue": queue.name, "consumer": self._name_of(consumer, queue)}
        for queue in self._vhost.queues.values():
            for entry in islice(in_memory(queue), LISTED):
                self.shown[entry.position] = queue.name, True
                yield entry, {"queue": queue.name}

    def _origin(self, source: object) -> dict[str, Any]:
        """Describe where a message comes from: a client, a queue that dead-lettered it, or an exchange that held it."""
        match source:
            case DeadLettered():
                return {"queue": source.queue.name, "reason": source.reason}
            case ReleasedQueue():
                return {"exchange": source.exchange, "copy": source.position}
        return self._client_of(source)

    def _add(self, fields: EventFields, message: BrokerMessage | None = None) -> None:
        self.number += 1
        self._events.append(Event(self.number, time.time(), fields, message))
        if len(self._events) > _MAX_EVENTS:
            self._forgotten = self._events.popleft().number


def _is_dropped(source: object) -> bool:
    """Return True if the broker drops an unroutable message from this source without telling any client."""
    match source:
        case ReleasedQueue():
            return True
        case DeadLettered():
            return not source.queue.options.at_least_once
    return False


def _paths(vhost: VirtualHost, message: BrokerMessage, queues: Iterable[BrokerQueue]) -> Iterator[list[str]]:
    """Yield a path to each queue: the names of the exchanges that the message passes through, then the queue's name."""
    first = vhost.exchanges.get(message.exchange)
    keys = message.keys()
    todo, paths = ([] if first is None else [first]), {first: [message.exchange]}
    wanted = dict.fromkeys(queues)
    while todo and wanted:
        exchange = todo.pop(0)
        found: Collection[BrokerDestination] = exchange.match(keys, message.headers, message.properties)
        if not found and exchange.alternate in vhost.exchanges:
            found = [vhost.exchanges[exchange.alternate]]
        for each in found:
            if each in wanted:
                del wanted[each]
                yield [*paths[exchange], each.name]
            elif isinstance(each, BrokerExchange) and each not in paths:
                paths[each] = [*paths[exchange], each.name]
                todo.append(each)
    # The default exchange has no bindings, and others may have been removed before a transaction was committed.
    for queue in wanted:
        yield [message.exchange, queue.name]
