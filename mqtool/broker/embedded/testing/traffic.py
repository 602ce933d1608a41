"""Records, for tests, which messages were published, acknowledged, rejected and requeued."""

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.codecs.field_tables import Table

MAX_EVENTS = 100_000
MAX_BYTES = 64 * 1024 * 1024

_SHOWN = 10


class Recorded:
    """A message, and what happened to it.

    Attributes:
        what: what happened: `published`, `acked`, `rejected` or `requeued`; `ready` if the message is in a queue.
        vhost: the message's virtual host.
        queues: the queues that a `published` message was routed to; otherwise the queue that the message is or was in.
        exchange: the exchange that the message was published to; empty for the default exchange.
        routing_key, body: as published.
        redelivered: True if the message had been delivered before.
    """

    __slots__ = ("_message", "body", "exchange", "is_nacked", "queues", "redelivered", "routing_key", "vhost", "what")

    def __init__(
        self,
        what: str,
        vhost: str,
        message: BrokerMessage,
        queues: Iterable[str],
        *,
        redelivered: bool = False,
        nacked: bool = False,
    ) -> None:
        self.what = what
        self.vhost = vhost
        self.queues = tuple(queues)
        self.exchange = message.exchange
        self.routing_key = message.routing_key
        self.body = message.body
        self.redelivered = redelivered
        self._message = message
        self.is_nacked = nacked

    @property
    def headers(self) -> Table:
        """The message's headers; empty if it has none."""
        return self._message.headers

    @property
    def properties(self) -> Table:
        """The message's properties, such as `content_type` and `message_id`, without the headers."""
        properties = self._message.properties.named()
        properties.pop("headers", None)
        return properties

    def json(self) -> Any:
        """Decode the body as JSON."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        body = repr(self.body) if len(self.body) <= 60 else f"{self.body[:60]!r}… {len(self.body)} bytes"
        to = f"{self.exchange!r} {self.routing_key!r}" if self.exchange else repr(self.routing_key)
        where = "nacked" if self.is_nacked else ", ".join(self.queues) or "no queue"
        return f"<{self.what} {to} {'→' if self.what == 'published' else 'in'} {where}: {body}>"


class Closed:
    """A channel or a connection that the broker closed because of an error, as an event between those of messages.

    Args:
        closed: `channel` or `connection`.
        why: the reply code and text.
    """

    __slots__ = ("_closed", "_why", "vhost")
    what = "closed"
    body = b""

    def __init__(self, vhost: str, closed: str, why: str) -> None:
        self.vhost = vhost
        self._closed = closed
        self._why = why

    def __repr__(self) -> str:
        return f"<{self._closed} closed: {self._why}>"


class Messages(list[Recorded]):
    """A list of messages. The `repr` of an empty list, as in a failed assertion, shows the latest events."""

    def __init__(self, found: Iterable[Recorded], instead: str = "") -> None:
        super().__init__(found)
        self._instead = instead

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self]

    def one(self) -> Recorded:
        """Return the only message in the list.

        Raises:
            AssertionError: the list is empty or has several messages; the error shows them or the latest events.
        """
        if len(self) != 1:
            raise AssertionError(f"{len(self)} messages instead of one: {self!r}")
        return self[0]

    def __repr__(self) -> str:
        return super().__repr__() if self else f"[] ({self._instead})"


class TrafficRecording:
    """The latest events, oldest first: up to MAX_EVENTS of them, with up to MAX_BYTES of bodies in total."""

    def __init__(self) -> None:
        self._events: deque[Recorded | Closed] = deque()
        self._bytes = 0
        self._forgotten = 0

    def add(self, event: Recorded | Closed) -> None:
        """Append an event; drop the oldest events if a limit is exceeded."""
        self._events.append(event)
        self._bytes += len(event.body)
        while len(self._events) > MAX_EVENTS or self._bytes > MAX_BYTES:
            self._bytes -= len(self._events.popleft().body)
            self._forgotten += 1

    def find(
        self,
        what: str,
        vhost: str | None,
        *,
        queue: str | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
    ) -> Messages:
        """Return the events that match. None matches any virtual host, queue, exchange or routing key.

        Args:
            what: `published`, `acked`, `rejected`, `requeued`, or `unrouted` (published, but routed to no queue).
        """
        kind = "published" if what == "unrouted" else what
        found = [
            event
            for event in self._events
            if isinstance(event, Recorded)
            and event.what == kind
            and vhost in (None, event.vhost)
            and (queue is None or queue in event.queues)
            and exchange in (None, event.exchange)
            and routing_key in (None, event.routing_key)
            and not (what == "unrouted" and (event.queues or event.is_nacked))
        ]
        return Messages(found, self.describe(vhost) if not found else "")

    def describe(self, vhost: str | None) -> str:
        """Describe the latest events in one line, for assertion errors."""
        events = [event for event in self._events if vhost in (None, event.vhost)]
        if not events:
            return "nothing was published"
        shown = ", ".join(repr(event) for event in events[-_SHOWN:])
        more = len(events) - _SHOWN + self._forgotten
        return f"what happened: {f'{more} earlier, ' if more > 0 else ''}{shown}"

    def clear(self, vhost: str | None) -> None:
        """Drop a virtual host's events; None for all virtual hosts."""
        kept = [] if vhost is None else [event for event in self._events if event.vhost != vhost]
        self._events = deque(kept)
        self._bytes = sum(len(event.body) for event in kept)
        self._forgotten = 0
