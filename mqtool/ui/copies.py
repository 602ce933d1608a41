"""Copies of single messages on RabbitMQ for the page of `mqtool ui`, from a private queue like that of `mqtool tap`.

The private queue has the same bindings as all other queues, so a message that no other queue receives is still
returned, or goes to the alternate exchange. This does not work for the default exchange. RabbitMQ's firehose copies
all messages that are published or delivered, but costs the broker more. Neither shows what happens to them afterwards.
"""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from mqtool import ndjson
from mqtool.amqp import Channel, Connection, Receiving
from mqtool.amqp.subscription import Buffer
from mqtool.errors import MqtoolError
from mqtool.inspection import definitions
from mqtool.inspection.routes import Router, routing_type
from mqtool.inspection.wiring import Wiring
from mqtool.management import Management
from mqtool.message import PROPERTIES, Delivery
from mqtool.routing import TABLES
from mqtool.taps import Tap, firehose_copies, firehose_of_exchange, firehose_of_queue, original_of
from mqtool.topology import Binding

Json = dict[str, Any]
Switch = Callable[[Channel], AbstractContextManager[None]]

#: Limits: copies that wait for the page; messages shown per second; and those with the same exchange and key.
_WAITING, _PER_SECOND, _PER_SECOND_ON_ARROW = 2_000, 100, 20
#: If the other queues have more bindings than this, they are not added to the private queue.
_MAX_BINDINGS = 1_000
_DELIVERED = "deliver."


class Copies:
    """Receives copies of messages on its own thread. Must be closed.

    Args:
        firehose: switches the firehose on within a `with` block; None to use bindings instead.
        taps: the taps of all Copies objects in this process, which ignore each other's queues.
        exchanges: the names of the exchanges to copy from; None for all.
        report: gets a sentence for the user about messages that are ignored, on another thread.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        vhost: str,
        firehose: Switch | None = None,
        taps: set[Tap] | None = None,
        exchanges: Collection[str] | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._vhost = vhost
        self._firehose = firehose
        self._connection = connect()
        self._channel: Channel | None = None
        self._switched = ExitStack()
        self._events: deque[Json] = deque(maxlen=_WAITING)
        self._tap: Tap | None = None
        self._taps = set() if taps is None else taps
        self._exchanges = exchanges
        self._report = report
        #: The bindings of the private queue: exchange, key and arguments of each.
        self._bound: set[tuple[str, str, str]] | None = None
        self._router = Router(definitions.Definitions.of([], [], []))
        self._wiring = Wiring(vhost, {})
        self._names: Mapping[str, str] = {}
        self._messages = 0
        self._second, self._in_second = 0, Counter[tuple[str, str]]()

    def follow(self, api: Management, wiring: Wiring, names: Mapping[str, str]) -> None:
        """Read the current bindings, and copy the messages that they route from now on.

        Args:
            names: the names that clients gave their connections, by the broker's own names for the connections.
        """
        found = definitions.read(api, self._vhost)
        bindings = [firehose_of_exchange("#"), firehose_of_queue("#")] if self._firehose else self._all_of(found)
        self._router, self._wiring, self._names = Router(found), wiring, names
        bound = {(each.source, each.routing_key, ndjson.as_json(each.arguments)) for each in bindings}
        if bound != self._bound and len(bound) <= _MAX_BINDINGS:
            self._bound = bound
            self._start(bindings)

    def _all_of(self, found: definitions.Definitions) -> list[Binding]:
        """Return the exchanges' bindings to queues, except those of exchanges of a type that mqtool does not know."""
        private = self.private
        return [
            binding
            for name, bindings in found.bindings.items()
            if (self._exchanges is None or name in self._exchanges)
            if name in found.exchanges and routing_type(found.exchanges[name]) in TABLES
            for binding in bindings
            if not binding.to_exchange and binding.destination not in private
        ]

    @property
    def is_firehose(self) -> bool:
        """True if the copies come from the firehose."""
        return self._firehose is not None

    @property
    def private(self) -> frozenset[str]:
        """The names of private queues, which are not shown on the page."""
        return frozenset(tap.queue for tap in [*self._taps])

    def events(self) -> Iterator[Json]:
        """Yield the events since the last call."""
        while self._events:
            yield self._events.popleft()

    def close(self) -> None:
        """Delete the private queue, and switch the firehose off."""
        self._switched.close()
        self._connection.close()
        self._forget()

    def _forget(self) -> None:
        if self._tap is not None:
            self._taps.discard(self._tap)

    def _start(self, bindings: Iterable[Binding]) -> None:
        if self._channel is not None:
            self._channel.stop()
            self._channel.close()
            self._forget()
        self._channel = self._connection.channel()
        settings = Receiving(auto_ack=True, buffer=Buffer(_WAITING))
        tap = self._tap = Tap(self._channel, bindings, settings)
        self._taps.add(tap)
        if self._firehose is not None:
            tap.deliveries = firehose_copies(tap.deliveries, self._report)
            self._switched.enter_context(self._firehose(self._channel))
        threading.Thread(target=self._read, args=(tap.deliveries,), name="mqtool-copies", daemon=True).start()

    def _read(self, copies: Iterator[Delivery]) -> None:
        try:
            for copy in copies:
                if self._is_shown(copy):
                    self._events += self._delivered(copy) if self._is_delivery(copy) else self._published(copy)
        except MqtoolError:
            self._bound = None  # the next call of follow() tries again, and reports the error

    def _is_delivery(self, copy: Delivery) -> bool:
        return self._firehose is not None and copy.routing_key.startswith(_DELIVERED)

    def _is_shown(self, copy: Delivery) -> bool:
        if int(time.monotonic()) != self._second:
            self._second = int(time.monotonic())
            self._in_second.clear()
        key = copy.exchange, copy.routing_key
        self._in_second[key] += 1
        return self._in_second[key] <= _PER_SECOND_ON_ARROW and self._in_second.total() <= _PER_SECOND

    def _published(self, copy: Delivery) -> list[Json]:
        message = copy if self._firehose is None else original_of(copy)
        now = round(time.time() * 1000)
        self._messages += 1
        private = self.private
        try:
            ways = self._router.route(message.exchange, message.routing_key, message.headers, near_misses=0).queues
        except (KeyError, MqtoolError):  # the exchange is newer than the definitions
            ways = {}
        paths = {
            queue: [message.exchange, *(hop.destination for hop in way[0])]
            for queue, way in ways.items()
            if queue not in private
        }
        if self._firehose is not None and "routed_queues" in copy.headers:  # the broker knows better
            routed = map(str, copy.headers["routed_queues"])
            paths = {queue: paths.get(queue, [message.exchange, queue]) for queue in routed if queue not in private}
        event = {
            "what": "published",
            "t": now,
            "message": self._messages,
            "from": {
                "client": self._publisher(copy, message.exchange),
                "connection": str(copy.headers.get("connection", "")) if self._firehose else "",
            },
            "paths": [*paths.values()],
            "details": details(message),
        }
        ends = [{"what": "routed", "t": now, "message": self._messages, "queue": queue} for queue in paths]
        return [event, *(ends or [{"what": "dropped", "t": now, "message": self._messages}])]

    def _publisher(self, copy: Delivery, exchange: str) -> str:
        """Return the name of the client that published a message, or its user, or "unknown publisher"."""
        if self._firehose is not None:
            connection = str(copy.headers.get("connection", ""))
            return self._names.get(connection, str(copy.headers.get("user", "")))
        node = self._wiring.exchanges.get(exchange)
        known = {
            self._names.get(each.channel.rpartition(" (")[0], each.user) for each in (node.publishers if node else ())
        }
        return known.pop() if len(known) == 1 else "unknown publisher"

    def _delivered(self, copy: Delivery) -> list[Json]:
        message, connection = original_of(copy), str(copy.headers.get("connection", ""))
        if message.queue in self.private:
            return []
        consumers = [
            f"{each.channel}/{each.tag}"
            for each in self._wiring.consumers.get(message.queue, ())
            if each.channel.startswith(f"{connection} (")
        ]
        return [
            {
                "what": "taken",
                "t": round(time.time() * 1000),
                "queue": message.queue,
                "consumer": consumers[0] if consumers else None,
                "connection": connection,
                "redelivered": message.redelivered,
                "details": details(message),
            }
        ]


def details(message: Delivery) -> Json:
    """Describe a message in the same format as the embedded broker's events, with the start of its body."""
    given = message.properties
    properties = {name: given[name] for name in PROPERTIES if name != "headers" and given.get(name) is not None}
    headers, properties = (json.loads(ndjson.as_json(each)) for each in (message.headers, properties))
    return ndjson.abridged(message.exchange, message.routing_key, headers, properties, message.body)
