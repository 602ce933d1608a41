"""The records that the page of `mqtool ui` shows: the topology, the waiting messages, and what happens to them.

The embedded broker reports what happens to single messages. RabbitMQ does not, so its records contain the topology, the
counts and the rates from the management API. docs/reference/events.md describes the records.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from mqtool.errors import AccessRefused, MqtoolError, NotFound, UsageError
from mqtool.inspection.wiring import WiredLink, Wiring, look
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.taps import FIREHOSE_EXCHANGE
from mqtool.topology import Binding
from mqtool.ui.client_names import ClientNames

if TYPE_CHECKING:
    from mqtool.ui.copies import Copies

#: Seconds between requests for events, between requests for RabbitMQ's counts, and after an error.
_BETWEEN_EVENTS, _BETWEEN_COUNTS, _AFTER_ERROR = 0.05, 1.5, 1.0
#: Seconds between records with counts.
_BETWEEN_MOVES = 0.25
#: The minimum pause between reads of the topology: in seconds, and as a multiple of the time that a read takes.
_BETWEEN_LOOKS, _SHARE_OF_LOOKS = 0.3, 5
#: The maximum number of an exchange's destinations and of a queue's consumers to show; and of an arrow's keys.
_KEPT, _KEYS = 40, 4

_COUNTS_ONLY = (
    "RabbitMQ reports counts and rates, not single messages. To see copies of messages: mqtool ui --tap, or --firehose."
)
_COPIES = (
    "The shapes are copies of messages on their way to queues, from a private queue of mqtool (amq.gen-…). For the "
    "default exchange, and inside queues, there are only counts and rates. To see all messages: mqtool ui --firehose."
)
_FIREHOSE = (
    "The shapes are copies of messages on their way to queues and consumers, from RabbitMQ's firehose, which mqtool "
    "has switched on. What happens to messages afterwards is only counted."
)
#: The same for a tutorial or drill, which cannot be asked for the firehose.
_PLAY_COUNTS = (
    "RabbitMQ reports counts and rates, not single messages. To see each message, run this command without --url."
)
_PLAY_COPIES = (
    "The shapes are copies of messages on their way from the tutorial's exchanges to queues, from a private queue of "
    "mqtool (amq.gen-…). Of what happens inside queues, RabbitMQ reports only counts and rates. To see each message, "
    "run this command without --url."
)
_NO_PERMISSION = "Single messages are shown only to users with the tag 'administrator'; these are counts and rates."


def records(
    find: Callable[[], Management],
    vhost: str,
    title: str,
    copying: Callable[[], "Copies"] | None = None,
    *,
    examples: Sequence[str] = (),
    is_play: bool = False,
) -> Iterator[Json]:
    """Yield records until the iterator is closed. If the broker goes away, wait until it is back.

    Args:
        find: finds the management API; called again after an error, since a restarted broker may use another port.
        title: the broker's name and address, for the page's head.
        copying: starts copying single messages on RabbitMQ; None to show only counts and rates.
        examples: first commands to type, for the page to propose if the virtual host is empty.
        is_play: True for the page of a tutorial or drill.
    """
    about = {"kind": "about", "title": title, "vhost": vhost, "examples": [*examples]}
    if title:
        yield {"kind": "problem", "text": f"connecting to {title} …"}
    while True:
        try:
            yield from _of_broker(find(), about, copying, is_play=is_play)
        except MqtoolError as error:
            yield {"kind": "problem", "text": str(error)}
        time.sleep(_AFTER_ERROR)


def _of_broker(
    api: Management, about: Json, copying: Callable[[], "Copies"] | None, *, is_play: bool
) -> Iterator[Json]:
    vhost = about["vhost"]
    events = path("mqtool", "events", vhost)
    try:
        first = api.get(events)
    except (NotFound, AccessRefused, UsageError) as error:  # RabbitMQ answers 400 to a path with the vhost "/"
        note = _NO_PERMISSION if isinstance(error, AccessRefused) else _PLAY_COUNTS if is_play else _COUNTS_ONLY
        with ExitStack() as until_closed:
            copies = None
            if copying is not None:
                copies = until_closed.enter_context(closing(copying()))
                note = _FIREHOSE if copies.is_firehose else _PLAY_COPIES if is_play else _COPIES
            yield {**about, "t": _now(), "note": note}
            yield from _counts(api, vhost, copies)
    else:
        yield {**about, "t": first["t"], "note": ""}
        yield from _events(api, vhost, events, first)


def _events(api: Management, vhost: str, events: str, first: Json) -> Iterator[Json]:
    """Yield the embedded broker's topology, events and counts, starting with a snapshot."""
    topology, counts = _Topology(api, vhost), _Counts()
    number = None
    while True:
        if number is None:
            yield topology.read(first)
            yield {"kind": "snapshot", "t": first["t"], "waiting": first["waiting"]}
            number = first["number"]
        # The first response comes at once, with the counts of messages that the snapshot leaves out.
        found = api.get(events, after=str(number), timeout="1" if counts.is_known else "0")
        yield {"kind": "now", "t": found["t"]}
        if found.get("lost"):
            first, number = api.get(events), None
            continue
        number = found["number"]
        if topology.is_due(found["changes"]):
            yield topology.read(found)
        for event in found["events"]:
            yield {**event, "kind": "event"}
        if not found["events"]:
            # There are no events to show, but the counts may have changed.
            found = {**found, **api.get(events, after=str(number), timeout="0")}
            if found.get("lost") or found["events"]:
                continue  # these counts are of later events, which the next request gets
        counts.touched |= {event["queue"] for event in found["events"] if "queue" in event}
        if "queues" in found and counts.is_due():
            yield counts.moved(found)
        time.sleep(_BETWEEN_EVENTS)


class _Counts:
    """Message counts. Only queues are included whose counts have changed, or whose messages have moved.

    Attributes:
        touched: queues whose messages have moved since the latest record.
    """

    def __init__(self) -> None:
        self.touched: set[str] = set()
        self._queues: dict[str, list[int]] = {}
        self._not_before = 0.0

    @property
    def is_known(self) -> bool:
        """True after the first record."""
        return self._not_before > 0

    def is_due(self) -> bool:
        return time.monotonic() >= self._not_before

    def moved(self, found: Json) -> Json:
        self._not_before = time.monotonic() + _BETWEEN_MOVES
        before, self._queues = self._queues, found["queues"]
        changed = {
            name: counts for name, counts in self._queues.items() if before.get(name) != counts or name in self.touched
        }
        self.touched.clear()
        other = {name: found.get(name, []) for name in ("taken", "published", "appended", "read", "stored", "credit")}
        return {"kind": "moved", "t": found["t"], "queues": changed, **other}


class _Topology:
    """Reads a virtual host's topology when it has changed, with pauses that limit the load on the broker."""

    def __init__(self, api: Management, vhost: str) -> None:
        self._api = api
        self._vhost = vhost
        self._clients = ClientNames(api, vhost, sees_all=True)
        self._changes: int | None = None
        self._not_before = 0.0

    def is_due(self, changes: int) -> bool:
        return changes != self._changes and time.monotonic() >= self._not_before

    def read(self, found: Json) -> Json:
        started = time.monotonic()
        wiring = look(self._api, self._vhost, keep=_KEPT)
        self._clients.read(wiring.consumers)
        self._changes = found["changes"]
        done = time.monotonic()
        self._not_before = done + max(_BETWEEN_LOOKS, _SHARE_OF_LOOKS * (done - started))
        return {"kind": "topology", "t": found["t"], **_as_json(wiring, self._clients)}


def _counts(api: Management, vhost: str, copies: "Copies | None") -> Iterator[Json]:
    """Yield the topology and the management API's counts every few seconds, and copies of messages in between."""
    clients = ClientNames(api, vhost, sees_all=False)
    while True:
        wiring = look(api, vhost, keep=_KEPT, rates=True)
        now = _now()
        yield {"kind": "now", "t": now}
        clients.read(wiring.consumers)
        if copies is not None:
            copies.follow(api, wiring, clients.names)
            for queue in copies.private:
                _leave_out(wiring, queue)
        publishers = [
            {
                "client": clients.names.get(_connection(each.channel), each.user),
                "exchange": name,
                "count": each.published.count,
            }
            for name, node in wiring.exchanges.items()
            for each in node.publishers
        ]
        yield {"kind": "topology", "t": now, **_as_json(wiring, clients), "publishers": publishers}
        yield {"kind": "moved", "t": now, **_moved(wiring, publishers)}
        until = time.monotonic() + _BETWEEN_COUNTS
        while time.monotonic() < until:
            time.sleep(_BETWEEN_COUNTS if copies is None else _BETWEEN_EVENTS)
            for event in () if copies is None else copies.events():
                yield {**event, "kind": "event"}
            yield {"kind": "now", "t": _now()}


def _leave_out(wiring: Wiring, queue: str) -> None:
    """Remove one of mqtool's private queues from a topology."""
    wiring.queues.pop(queue, None)
    wiring.consumers.pop(queue, None)
    for name, node in [*wiring.exchanges.items()]:
        if node.links.pop((queue, False), None) is not None and name == FIREHOSE_EXCHANGE and not node.links:
            del wiring.exchanges[name]


def _moved(wiring: Wiring, publishers: list[Json]) -> Json:
    """Return the counts of queues, publishers and consumers; of consumers, only for queues that have exactly one."""
    consumers = {name: each[0] for name, each in wiring.consumers.items() if len(each) == 1}
    return {
        "queues": {name: [queue.ready, queue.unacked, queue.published.count] for name, queue in wiring.queues.items()},
        "taken": [
            [f"{consumer.channel}/{consumer.tag}", wiring.queues[name].delivered.count]
            for name, consumer in consumers.items()
            if name in wiring.queues
        ],
        "published": [[each["client"], each["exchange"], each["count"]] for each in publishers],
        "settled": {name: [queue.acknowledged, queue.automatic] for name, queue in wiring.queues.items()},
    }


def _as_json(wiring: Wiring, clients: ClientNames) -> Json:
    return {
        "exchanges": [
            {
                "name": name,
                "type": node.exchange.type,
                "alternate": _text(node.exchange.arguments, "alternate-exchange"),
            }
            for name, node in wiring.exchanges.items()
        ],
        "links": [
            {"from": name, "to": link.destination, "toExchange": link.to_exchange, **_keys(name, link)}
            for name, node in wiring.exchanges.items()
            for link in node.links.values()
        ],
        "queues": [
            {
                "name": name,
                "type": queue.type,
                "ready": queue.ready,
                "unacked": queue.unacked,
                "deadLetterExchange": _text(queue.arguments, "x-dead-letter-exchange"),
                "deadLetterKey": _text(queue.arguments, "x-dead-letter-routing-key"),
                "arguments": dict(queue.arguments),
            }
            for name, queue in wiring.queues.items()
        ],
        "consumers": [
            {
                "name": known[0],
                "label": known[1],
                "queue": queue,
                # Other protocols have credit instead. The embedded broker reports it in `moved`.
                "prefetch": consumer.prefetch if consumer.channel else None,
                "isAutomatic": not consumer.acknowledges,
            }
            for queue, consumers in wiring.consumers.items()
            for consumer in consumers
            if (known := clients.of(queue, consumer)) is not None
        ],
    }


def _keys(source: str, link: WiredLink) -> Json:
    """Return an arrow's keys; no keys for the default exchange, which routes by queue name."""
    keys = [] if source == "" else [_key(binding) for binding in link.bindings]
    return {"keys": keys[:_KEYS], "more": max(0, len(keys) - _KEYS) + link.more}


def _key(binding: Binding) -> str:
    return ", ".join(f"{name}={value!s}" for name, value in binding.arguments.items()) or binding.routing_key


def _text(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    return value if isinstance(value, str) else None


def _connection(channel: str) -> str:
    """Return the name of a channel's connection."""
    return channel.rpartition(" (")[0]


def _now() -> int:
    return round(time.time() * 1000)
