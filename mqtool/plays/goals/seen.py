"""The history of a broker, by which goals are judged: the records of `mqtool ui` as messages, copies and deliveries.

    publisher ──> SeenMessage ─┬─> SeenCopy (in a queue) ──> SeenDelivery ──> receiver 1
                               │                         └─> SeenDelivery ──> receiver 2 (redelivered)
                               └─> SeenCopy (in another queue)

The embedded broker reports each event. RabbitMQ's firehose shows what is published and delivered, but not what happens
then: a queue's counters of acknowledgements show that all its deliveries were acknowledged, a few seconds later. If a
receiver ends immediately, RabbitMQ may drop its part of the counters; then the queue, which stays empty, shows it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy as shallow_copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: A record of ui/records.py.
Json = dict[str, Any]
#: Longer bodies are cut off in sentences.
_SHOWN = 40
#: Protocols, by their names in the management API.
AMQP_0_9_1, AMQP_1_0 = "AMQP 0-9-1", "AMQP 1-0"
#: A broker delivers to a waiting receiver within this many milliseconds; no program starts as quickly.
_AT_ONCE = 100
#: The topology may be this many milliseconds old.
_TOPOLOGY_LATE = 3000
#: RabbitMQ's statistics are some seconds old: a queue is empty once this many looks in a row have shown it so.
_EMPTY_LOOKS = 8


@dataclass
class SeenDelivery:
    """A delivery of a copy to a receiver.

    Attributes:
        receiver: identifies the consumer (on RabbitMQ, its connection); empty for basic.get.
        protocol: the consumer's protocol; empty on RabbitMQ and for basic.get.
        at, ended_at: the sequence numbers of the events that began and ended the delivery; `ended_at` is 0 until it
            ends.
        milliseconds, ended_milliseconds: the broker's clock at these events, in ms since 1970; 0 if unknown.
        end: "acknowledged", "requeued: " and why, "dead-lettered: " or "discarded: " and the reason; "gone" if RabbitMQ
            does not tell which of these, but the message is not in its queue any more; or empty.
        no_ack: True if the receiver consumes with automatic acknowledgement.
        republished: what the receiver published with the same body while it held the copy, such as a retry.
    """

    receiver: str
    at: int
    milliseconds: int
    redelivered: bool
    no_ack: bool
    protocol: str = ""
    end: str = ""
    ended_at: int = 0
    ended_milliseconds: int = 0
    republished: "SeenMessage | None" = None

    @property
    def held_milliseconds(self) -> int:
        """The milliseconds for which the receiver held it until it was acknowledged or requeued; 0 if unknown."""
        return max(0, self.ended_milliseconds - self.milliseconds)


@dataclass
class SeenCopy:
    """A message in one queue.

    Attributes:
        at: the sequence number of the event at which it entered the queue.
        end: how it left the queue, as in SeenDelivery, "purged", "deleted" or "lost in the restart"; empty if it has
            not.
        look: how often the queues had been read before it was seen.
    """

    message: "SeenMessage"
    queue: str
    at: int
    look: int
    deliveries: list[SeenDelivery] = field(default_factory=list)
    end: str = ""

    def finish(self, record: Json, now: int) -> None:
        """Record the event that ended the latest delivery. Unless the message was requeued, the copy ends, too."""
        why = record.get("why") or record.get("reason")
        end = f"{record['what']}: {why}" if why else str(record["what"])
        if self.deliveries and not self.deliveries[-1].end:
            last = self.deliveries[-1]
            last.end, last.ended_at, last.ended_milliseconds = end, now, record.get("t", 0)
        if record["what"] != "requeued":
            self.end = end

    @property
    def acknowledged(self) -> bool:
        return self.end == "acknowledged"

    @property
    def received(self) -> bool:
        """True if a receiver has acknowledged it, or got it with automatic acknowledgement."""
        return self.end in ("acknowledged", "automatic", "gone")

    @property
    def republished(self) -> "SeenMessage | None":
        """The message that its last receiver published with the same body while it held the copy; None if there is
        none.
        """
        return self.deliveries[-1].republished if self.deliveries else None

    @property
    def receiver(self) -> str:
        """The receiver that got it last; empty if none did."""
        return self.deliveries[-1].receiver if self.deliveries else ""

    @property
    def waited(self) -> bool:
        """True if no receiver was waiting for it when it was published."""
        return bool(self.deliveries) and self.deliveries[0].milliseconds - self.message.milliseconds > _AT_ONCE

    @property
    def is_held(self) -> bool:
        """True if a receiver has it, and has not acknowledged it yet."""
        return bool(self.deliveries) and not self.deliveries[-1].end

    @property
    def is_early(self) -> bool:
        """True if it was acknowledged automatically, before any work was done."""
        return any(each.no_ack for each in self.deliveries)


@dataclass
class SeenMessage:
    """A message that was published.

    Attributes:
        at: the sequence number of the event at which it was published; not a clock time.
        milliseconds: the broker's clock at that event, in ms since 1970.
        connection: the publisher's connection; empty if a queue dead-lettered the message, or it was found in a queue.
        protocol: that connection's protocol; empty on RabbitMQ and for the management API.
        confirms: True if it was published on a channel with publisher confirms; always False on RabbitMQ, which does
            not report it.
        origin, reason: the queue that dead-lettered it, and why, if one did.
        held_by: the exchange that is holding it back for its delay; empty if none does now.
        was_held: True if an exchange held it back for its delay, which is over.
        reply_to: for a direct reply, the connection that receives it; otherwise empty.
        lost: "dropped" or "returned" if no queue got it, "refused" if a full queue refused it; otherwise empty.
    """

    at: int
    milliseconds: int
    connection: str
    origin: str
    exchange: str
    routing_key: str
    headers: Json
    properties: Json
    body: str
    copies: list[SeenCopy] = field(default_factory=list)
    lost: str = ""
    reason: str = ""
    held_by: str = ""
    was_held: bool = False
    reply_to: str = ""
    protocol: str = ""
    confirms: bool = False

    def __str__(self) -> str:
        return repr(self.body if len(self.body) <= _SHOWN else f"{self.body[:_SHOWN]}…")

    @property
    def queues(self) -> set[str]:
        return {copy.queue for copy in self.copies}

    @property
    def receivers(self) -> list[str]:
        """The receivers that got it, one for each copy that was received."""
        return [copy.receiver for copy in self.copies if copy.received]

    @property
    def persistent(self) -> bool:
        return self.properties.get("delivery_mode") == 2

    def copy_in(self, queue: str) -> SeenCopy | None:
        return next((copy for copy in self.copies if copy.queue == queue), None)


class SeenBinding(NamedTuple):
    """A binding; `key` is the routing key, or the arguments as "name=value" words.

    Of many bindings to one destination, only the first few are known; "…" is the key of the others.
    """

    exchange: str
    destination: str
    key: str


class SeenBound(NamedTuple):
    """The bindings of a queue to an exchange, or its last ones if it was unbound or deleted.

    Attributes:
        keys: the keys of its bindings.
        since, until: the broker's times, in milliseconds since 1970, when the first binding was seen, and when it was
            not seen any more; `until` is 0 while they exist. The topology is read only from time to time, so these
            times are late.
    """

    keys: set[str]
    since: int
    until: int

    def covers(self, message: "SeenMessage") -> bool:
        """True if the queue was bound when a message was published."""
        return self.since - _TOPOLOGY_LATE < message.milliseconds and (
            not self.until or message.milliseconds < self.until
        )


class BindingHistory:
    """The current and former bindings of queues to exchanges."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], SeenBound] = {}

    def of(self, queue: str, exchange: str) -> SeenBound | None:
        """Return the current or last bindings of a queue to an exchange; None if there never were any."""
        return self._known.get((queue, exchange))

    def take(self, bindings: Iterable[SeenBinding], milliseconds: int) -> None:
        """Record the bindings that exist at a given time."""
        now: dict[tuple[str, str], set[str]] = {}
        for each in bindings:
            now.setdefault((each.destination, each.exchange), set()).add(each.key)
        for ends, keys in now.items():
            before = self._known.get(ends)
            self._known[ends] = SeenBound(keys, before.since if before and not before.until else milliseconds, 0)
        for ends, before in self._known.items():
            if ends not in now and not before.until:
                self._known[ends] = before._replace(until=milliseconds)


class SeenConsumer(NamedTuple):
    """A current consumer. A prefetch of 0 means no limit."""

    name: str
    queue: str
    prefetch: int


def at_once(copies: Iterable[SeenCopy], fewest: int = 1) -> dict[str, int]:
    """Return the receivers that were active at the same time as another, and how many copies each got; {} if none.

    Args:
        copies: copies that were received.
        fewest: leave out receivers that got fewer copies than this.
    """
    moments: dict[str, list[int]] = {}
    for copy in copies:
        if copy.receiver:
            moments.setdefault(copy.receiver, []).append(copy.deliveries[-1].at)
    moments = {receiver: each for receiver, each in moments.items() if len(each) >= fewest}
    return {
        one: len(its)
        for one, its in moments.items()
        if any(one != other and min(its) < max(each) and min(each) < max(its) for other, each in moments.items())
    }


class Seen:
    """The history of a virtual host since it was first looked at, and its topology now.

    Attributes:
        queues: the queues that exist now, by name, each with "type", "arguments", "ready" and "unacked".
        exchanges: the types of the exchanges that exist now, by name.
        bindings, consumers: the bindings and consumers that exist now.
        astray: the messages that were published to an exchange that did not exist, including those before the goal
            began.
        is_complete: False until the first records have been taken.
        acted: the sequence number of the fault that `try` brought about for the goal; 0 before that.
        note: the target of that fault, for the sentences of the goal.
        bound_before: the current and former bindings of queues to exchanges.
        looks: how often RabbitMQ's queues have been read; 0 on the embedded broker, which reports when they change.
        topologies: how often the topology has been read.
        topology_at: the sequence number of the latest event when the topology was last read.
        milliseconds: the broker's time at the latest record, in milliseconds since 1970.
    """

    def __init__(self) -> None:
        self.queues: dict[str, Json] = {}
        self.exchanges: dict[str, str] = {}
        self.bindings: list[SeenBinding] = []
        self.consumers: list[SeenConsumer] = []
        self.astray: list[SeenMessage] = []
        self.is_complete = False
        self.acted = 0
        self.note = ""
        self.begun = 0
        self.now = 0
        self._all: list[SeenMessage] = []
        self._published: dict[int, SeenMessage] = {}
        self._copies: dict[tuple[str, int], SeenCopy] = {}
        self._held: dict[tuple[str, int], SeenMessage] = {}
        self._delivered: dict[str, dict[str, list[SeenCopy]]] = {}
        self._receivers: list[str] = []
        self._depths: dict[str, int] = {}
        #: How often RabbitMQ's queues were empty, one look after the other.
        self._empty = Counter[str]()
        self.bound_before = BindingHistory()
        self.looks = self.topologies = self.topology_at = self.milliseconds = 0

    def begin(self) -> None:
        """Begin a goal: `messages` and `receivers` contain only what is new from now on."""
        self.begun, self.acted, self.note = self.now, 0, ""
        self._receivers.clear()

    def act(self, note: str) -> None:
        """Remember that `try` has brought about the fault of the goal, and its target."""
        self.now += 1
        self.acted, self.note = self.now, note

    @property
    def messages(self) -> list[SeenMessage]:
        """The messages that clients published since the goal began, oldest first."""
        return [each for each in self._all if each.at > self.begun and not each.origin]

    def lost(self, how: str) -> list[SeenMessage]:
        """The messages since the goal began that were lost in this way: "dropped", "returned" or "refused"."""
        return [each for each in self.messages if each.lost == how]

    @property
    def dead_letters(self) -> list[SeenMessage]:
        """The messages that queues have dead-lettered since the goal began."""
        return [each for each in self._all if each.at > self.begun and each.origin]

    def published_to(self, exchange: str, *keys: str) -> list[SeenMessage]:
        """The messages published to an exchange since the goal began, with one of these keys if any are named."""
        return [each for each in self.messages if each.exchange == exchange and (not keys or each.routing_key in keys)]

    def copies_in(self, queue: str) -> list[SeenCopy]:
        """The copies that clients published to a queue since the goal began, oldest first."""
        return [copy for each in self.messages for copy in each.copies if copy.queue == queue]

    def bound(self, exchange: str) -> list[SeenBinding]:
        return [each for each in self.bindings if each.exchange == exchange]

    def depth(self, queue: str) -> int:
        """Return the number of messages in a queue, ready or unacknowledged."""
        return self._depths.get(queue, 0)

    def keys_of(self, queue: str, exchange: str) -> set[str]:
        """Return the keys with which a queue is bound to an exchange now."""
        return {each.key for each in self.bindings if each.exchange == exchange and each.destination == queue}

    def is_without_queue(self, copy: SeenCopy) -> bool:
        """True if the copy's queue does not exist any more."""
        is_current = self.looks > copy.look + 1 if self.looks else self.topologies > copy.look
        return not copy.end and copy.queue not in self.queues and is_current

    def called(self, receiver: str) -> str:
        """Return a name for a receiver, such as "receiver 2": they are numbered as they appear."""
        if receiver not in self._receivers:
            self._receivers.append(receiver)
        return f"receiver {self._receivers.index(receiver) + 1}"

    def take(self, record: Json) -> bool:
        """Process a record; return True if it changed something."""
        self.milliseconds = max(self.milliseconds, record.get("t", 0))
        match record["kind"]:
            case "topology":
                self._take_topology(record)
            case "snapshot":
                self._take_snapshot(record["waiting"])
                self.is_complete = True
            case "event":
                self.now += 1
                self._take_event(record)
            case "moved":
                self._depths |= {name: ready + unacked for name, (ready, unacked, *_) in record["queues"].items()}
                if "settled" not in record:
                    return bool(record["queues"])
                self.looks += 1  # at RabbitMQ
                self._settle(record["settled"], record["queues"])
                self.is_complete = True
            case _:
                return False
        return True

    def _take_topology(self, record: Json) -> None:
        self.topologies += 1
        self.topology_at = self.now
        for queue in self.queues.keys() - {each["name"] for each in record["queues"]}:
            for copy in self._open(queue):
                copy.end = "deleted"
        self.queues = {each["name"]: each for each in record["queues"]}
        self.exchanges = {each["name"]: each["type"] for each in record["exchanges"]}
        self.bindings = [
            SeenBinding(link["from"], link["to"], key)
            for link in record["links"]
            for key in [*(link["keys"] or [""]), *(["…"] if link["more"] else [])]
        ]
        self.consumers = [SeenConsumer(each["name"], each["queue"], each["prefetch"]) for each in record["consumers"]]
        self.bound_before.take(self.bindings, record.get("t", 0))

    def _take_snapshot(self, waiting: list[Json]) -> None:
        """Record the messages that are in queues, at the start, after a restart, or after events were lost."""
        for each in waiting:
            if "queue" in each and (each["queue"], each["copy"]) not in self._copies:
                self._enter(self._message(each, "", ""), each["queue"], each["copy"])

    def _take_event(self, record: Json) -> None:
        match record["what"]:
            case "published":
                self._published[record["message"]] = self._take_published(record)
            case "replied":
                self._take_published(record).reply_to = record["to"]["connection"]
            case "ready" | "appended" | "routed":
                self._enter(self._published[record["message"]], record["queue"], record.get("copy"))
            case "unknown-exchange":
                self.astray.append(_message(record, self.now, record["from"].get("connection", ""), ""))
            case "returned" | "dropped" | "refused" as end:
                self._published[record["message"]].lost = end
            case "delayed":
                message = self._published[record["message"]]
                self._held[record["exchange"], record["copy"]] = message
                message.held_by = record["exchange"]
            case _:
                self._take_event_in_queue(record)

    def _take_event_in_queue(self, record: Json) -> None:
        match record["what"]:
            case "delivered" | "read":
                self._deliver(self._copies.get((record["queue"], record["copy"])), record)
            case "taken":
                self._deliver(self._taken(record), record)
            case "purged":
                for copy in self._open(record["queue"]):
                    if not copy.is_held:
                        copy.end = "purged"
            case "acknowledged" | "requeued" | "dead-lettered" | "discarded":
                if (found := self._copies.get((record["queue"], record["copy"]))) is not None:
                    found.finish(record, self.now)

    def _take_published(self, record: Json) -> SeenMessage:
        source = record["from"]
        if "copy" in source and (held := self._held.pop((source["exchange"], source["copy"]), None)) is not None:
            held.was_held, held.held_by = True, ""
            return held
        origin = source.get("queue", "")
        message = self._message(record, "" if origin else source.get("connection") or source.get("client", ""), origin)
        message.reason, message.protocol = source.get("reason", ""), source.get("protocol", "")
        message.confirms = bool(source.get("confirms"))
        for receiver, bodies in self._delivered.items() if message.connection else ():
            for copy in bodies.get(message.body, ()) if receiver.startswith(message.connection) else ():
                if copy.is_held and copy.receiver == receiver:
                    copy.deliveries[-1].republished = message
        return message

    def _message(self, record: Json, connection: str, origin: str) -> SeenMessage:
        message = _message(record, self.now, connection, origin)
        self._all.append(message)
        return message

    def _enter(self, message: SeenMessage, queue: str, number: int | None) -> SeenCopy:
        copy = SeenCopy(message, queue, self.now, self.looks or self.topologies)
        message.copies.append(copy)
        self._empty[queue] = 0
        if number is not None:
            self._copies[queue, number] = copy
        return copy

    def _open(self, queue: str) -> list[SeenCopy]:
        """The copies that are in a queue, oldest first."""
        return [copy for each in self._all for copy in each.copies if copy.queue == queue and not copy.end]

    def _taken(self, record: Json) -> SeenCopy:
        """Return the copy that RabbitMQ has delivered, by its contents, because the firehose shows nothing else."""
        details = record["details"]
        for copy in self._open(record["queue"]):
            same = copy.message.body == details.get("body", "") and copy.message.routing_key == details["routing_key"]
            if same and bool(copy.deliveries) == record["redelivered"]:
                return copy
        return self._enter(self._message(record, "", ""), record["queue"], None)

    def _deliver(self, copy: SeenCopy | None, record: Json) -> None:
        if copy is None:
            return
        receiver, no_ack = record.get("connection") or record["consumer"] or "", bool(record.get("no_ack"))
        to = record.get("to") or {}
        protocol = to.get("protocol", "")
        if protocol == AMQP_1_0:  # the consumer's name does not contain the connection
            receiver = f"{to['connection']}/{receiver}"
        if copy.is_held:
            copy.deliveries[-1].end, copy.deliveries[-1].ended_at = "requeued: lost", self.now
        self._empty[copy.queue] = 0
        redelivered = bool(record.get("redelivered"))
        copy.deliveries.append(SeenDelivery(receiver, self.now, record["t"], redelivered, no_ack, protocol))
        self._delivered.setdefault(receiver, {}).setdefault(copy.message.body, []).append(copy)
        if record["what"] == "read":  # of a stream, where it stays
            copy.deliveries[-1].end = "read"
        elif no_ack:
            copy.finish({"what": "automatic"}, self.now)

    def _settle(self, counters: Mapping[str, list[int]], depths: Mapping[str, list[int]]) -> None:
        """Process RabbitMQ's counters of each queue: how many deliveries were, or did not have to be, acknowledged.

        Which deliveries they were is known only when all were acknowledged, or when the queue stays empty.
        """
        for queue, (acknowledged, automatic) in counters.items():
            copies = [copy for each in self._all for copy in each.copies if copy.queue == queue and copy.deliveries]
            self._empty[queue] = 0 if any(depths[queue][:2]) else self._empty[queue] + 1
            if len(copies) == acknowledged + automatic:
                end = "automatic" if automatic else "acknowledged"
            elif self._empty[queue] >= _EMPTY_LOOKS:
                end = "gone"
            else:
                continue
            for copy in copies:
                if not copy.end:
                    copy.finish({"what": end}, self.now)


def _message(record: Json, now: int, connection: str, origin: str) -> SeenMessage:
    details = record["details"]
    return SeenMessage(
        *(now, record.get("t", 0), connection, origin, details["exchange"], details["routing_key"]),
        *(details.get("headers") or {}, details.get("properties") or {}, details.get("body", "")),
    )


def since(seen: Seen, moment: int) -> Seen:
    """Return the same history with a later beginning, so that `messages` contains only what is new since a moment."""
    later = shallow_copy(seen)
    later.begun = moment
    return later


def lose_transient(seen: Seen) -> None:
    """Note that the broker has been restarted: classic queues have lost their transient messages."""
    for message in seen.messages:
        for copy in message.copies:
            kind = seen.queues.get(copy.queue, {}).get("type")
            if kind == "classic" and not copy.end and not message.persistent:
                copy.end = "lost in the restart"


def is_topology_known(seen: Seen, copy: SeenCopy) -> bool:
    """True if the topology that was seen is not older than the end of a copy's last delivery."""
    ended = copy.deliveries[-1].ended_milliseconds if copy.deliveries else 0
    return seen.milliseconds - ended > _TOPOLOGY_LATE
