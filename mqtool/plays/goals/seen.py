"""The history of a broker: messages, their copies in queues, and the deliveries of these copies.

The history is built from the records that `mqtool ui` shows. A goal's functions use this history to decide
whether the goal is reached.

    publisher ──> SeenMessage ─┬─> SeenCopy (in a queue) ──> SeenDelivery ──> receiver 1
                               │                         └─> SeenDelivery ──> receiver 2 (redelivered)
                               └─> SeenCopy (in another queue)

The embedded broker reports each event. RabbitMQ's firehose shows what is published and delivered, but not what is
acknowledged. After a few seconds, a queue's counters show whether all its deliveries were acknowledged. If a receiver
exits right after it has acknowledged a message, RabbitMQ may not count the acknowledgement. In this case, a queue that
stays empty shows that all its messages were acknowledged.
"""

import re
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
#: A broker delivers a message to a waiting receiver within this many milliseconds. No receiver starts this quickly.
_AT_ONCE = 100
#: On a busy machine, a delivery may take this many milliseconds. A learner needs more time to start a receiver.
_AT_ONCE_ON_A_BUSY_MACHINE = 1000
#: The topology may be this many milliseconds old.
_TOPOLOGY_LATE = 3000
#: RabbitMQ's statistics are some seconds old: a queue counts as empty once this many reports in a row say that it is.
_EMPTY_LOOKS = 8
#: The embedded broker's name for an AMQP 0-9-1 consumer: its connection and channel, followed by its consumer tag.
_CONSUMER = re.compile(r"(\S+ -> \S+ \(\d+\))/")


@dataclass
class SeenDelivery:
    """A delivery of a message to a receiver.

    Attributes:
        receiver: a name for the consumer's channel or, on RabbitMQ, for its connection; empty for basic.get. A program
            that consumes again on its channel, as `receive -c 3` does, is still the same receiver.
        protocol: the consumer's protocol; empty on RabbitMQ and for basic.get.
        at, ended_at: the sequence numbers of the events that began and ended the delivery; `ended_at` is 0 before
            the end.
        milliseconds, ended_milliseconds: the broker's clock at these events, in ms since 1970; 0 if unknown.
        end: how the delivery ended: "acknowledged", or "automatic"; "requeued: ", "dead-lettered: " or "discarded: "
            with the reason; "read" from a stream; "gone" if the message has left the queue, and RabbitMQ does not
            report how. Empty until the delivery ends.
        no_ack: True if the receiver consumes with automatic acknowledgement.
        republished: the message that the receiver published with the same body during the delivery, such as a retry.
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
        """How many milliseconds it took until the delivery was acknowledged or requeued; 0 if unknown."""
        return max(0, self.ended_milliseconds - self.milliseconds)


@dataclass
class SeenCopy:
    """A message in one queue.

    Attributes:
        at: the sequence number of the event at which the message entered the queue.
        end: how the message left the queue: as in SeenDelivery, or "purged", "deleted" or "lost in the restart"; empty
            while the message is in the queue.
        look: how many times the queues had been read when the message was first seen in this queue.
    """

    message: "SeenMessage"
    queue: str
    at: int
    look: int
    deliveries: list[SeenDelivery] = field(default_factory=list)
    end: str = ""

    def finish(self, record: Json, now: int) -> None:
        """Record the event that ended the latest delivery. Unless the message was requeued, it has left the queue."""
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
        """True if a receiver has acknowledged the message, or got it with automatic acknowledgement."""
        return self.end in ("acknowledged", "automatic", "gone")

    @property
    def republished(self) -> "SeenMessage | None":
        """The message with the same body that the last receiver published before it settled this message, if any."""
        return self.deliveries[-1].republished if self.deliveries else None

    @property
    def receiver(self) -> str:
        """The receiver that got the message last; empty if none did."""
        return self.deliveries[-1].receiver if self.deliveries else ""

    @property
    def waited(self) -> bool:
        """True if no receiver seems to have been waiting when the message was published."""
        return self._milliseconds_until_delivered > _AT_ONCE

    @property
    def surely_waited(self) -> bool:
        """True if no receiver was waiting when the message was published, however busy the machine may have been."""
        return self._milliseconds_until_delivered > _AT_ONCE_ON_A_BUSY_MACHINE

    @property
    def _milliseconds_until_delivered(self) -> int:
        return self.deliveries[0].milliseconds - self.message.milliseconds if self.deliveries else 0

    @property
    def is_held(self) -> bool:
        """True if a receiver has the message, and has not acknowledged it yet."""
        return bool(self.deliveries) and not self.deliveries[-1].end

    @property
    def is_early(self) -> bool:
        """True if the message was acknowledged automatically, before any work was done."""
        return any(each.no_ack for each in self.deliveries)


@dataclass
class SeenMessage:
    """A message that was published.

    Attributes:
        at: the sequence number of the event at which the message was published; not a clock time.
        milliseconds: the broker's clock at that event, in ms since 1970.
        connection: the publisher's connection; empty if a queue dead-lettered the message, or it was found in a queue.
        protocol: that connection's protocol; empty on RabbitMQ and for the management API.
        confirms: True if the message was published on a channel with publisher confirms; always False on RabbitMQ,
            which does not report this.
        origin, reason: the queue that dead-lettered the message, and why; empty if no queue did.
        held_by: the exchange that is holding back the message until its delay is over; empty if none is.
        was_held: True if an exchange held back the message, and its delay is over.
        reply_to: for a direct reply, the connection that receives the reply; otherwise empty.
        lost: "dropped" or "returned" if no queue got the message, "refused" if a full queue refused it; otherwise
            empty.
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
        """The receivers of the message, with one entry for each copy that was received."""
        return [copy.receiver for copy in self.copies if copy.received]

    @property
    def persistent(self) -> bool:
        return self.properties.get("delivery_mode") == 2

    def copy_in(self, queue: str) -> SeenCopy | None:
        return next((copy for copy in self.copies if copy.queue == queue), None)


class SeenBinding(NamedTuple):
    """A binding; `key` is the routing key, or the arguments as "name=value" words.

    If a destination has many bindings, only the first few are known; the key "…" stands for the others.
    """

    exchange: str
    destination: str
    key: str


class SeenBound(NamedTuple):
    """The bindings of a queue to an exchange or, if the queue was unbound or deleted, its last bindings.

    Attributes:
        keys: the keys of the bindings.
        since: the time at which the first binding was seen, by the broker's clock, in milliseconds since 1970.
        until: the time at which the last binding was found to be gone, in the same unit; 0 while the queue is bound.

    Both times are somewhat late, because the topology is read only from time to time.
    """

    keys: set[str]
    since: int
    until: int

    def covers(self, message: "SeenMessage") -> bool:
        """Return True if the queue was bound when a message was published."""
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
    """Find receivers that were active at the same time; return how many copies each of them got, or {} if none were.

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
    """The history of a virtual host since the first record, and the current topology.

    Attributes:
        queues: the current queues, by name, each with "type", "arguments", "ready" and "unacked".
        exchanges: the types of the current exchanges, by name.
        bindings, consumers: the current bindings and consumers.
        astray: the messages that were published to an exchange that did not exist, including those before the goal
            began.
        is_complete: False until the first complete set of records has been processed.
        acted: the sequence number of the fault that `try` has caused for the goal; 0 before that.
        note: the target of that fault, which the sentences of the goal can name.
        bound_before: the current and former bindings of queues to exchanges.
        looks: how many times RabbitMQ's queues have been read; 0 on the embedded broker, which reports each change.
        topologies: how many times the topology has been read.
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
        #: For each queue of RabbitMQ, how many times in a row it was reported as empty.
        self._empty = Counter[str]()
        self.bound_before = BindingHistory()
        self.looks = self.topologies = self.topology_at = self.milliseconds = 0

    def begin(self) -> None:
        """Begin a goal: from now on, `messages` contains only new messages, and receivers are numbered from 1 again."""
        self.begun, self.acted, self.note = self.now, 0, ""
        self._receivers.clear()

    def act(self, note: str) -> None:
        """Record that `try` has caused the fault of the goal; `note` is the target of the fault."""
        self.now += 1
        self.acted, self.note = self.now, note

    @property
    def messages(self) -> list[SeenMessage]:
        """The messages that clients published since the goal began, oldest first."""
        return [each for each in self._all if each.at > self.begun and not each.origin]

    def lost(self, how: str) -> list[SeenMessage]:
        """Return the messages since the goal began with this value of `lost`: "dropped", "returned" or "refused"."""
        return [each for each in self.messages if each.lost == how]

    @property
    def dead_letters(self) -> list[SeenMessage]:
        """The messages that queues have dead-lettered since the goal began."""
        return [each for each in self._all if each.at > self.begun and each.origin]

    def published_to(self, exchange: str, *keys: str) -> list[SeenMessage]:
        """Return the messages published to an exchange since the goal began; with `keys`, only with these keys."""
        return [each for each in self.messages if each.exchange == exchange and (not keys or each.routing_key in keys)]

    def copies_in(self, queue: str) -> list[SeenCopy]:
        """Return the copies that a queue got of the messages published since the goal began, oldest first."""
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
        """Return True if the copy's queue no longer exists."""
        is_current = self.looks > copy.look + 1 if self.looks else self.topologies > copy.look
        return not copy.end and copy.queue not in self.queues and is_current

    def called(self, receiver: str) -> str:
        """Return a name for a receiver, such as "receiver 2". Receivers are numbered in order of appearance."""
        if receiver not in self._receivers:
            self._receivers.append(receiver)
        return f"receiver {self._receivers.index(receiver) + 1}"

    def take(self, record: Json) -> bool:
        """Process a record; return True if it may have changed the history or the topology."""
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
        """Record the messages that wait in queues: at the start, after a restart, or after events were lost."""
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
        """Return the copies that are in a queue, oldest first."""
        return [copy for each in self._all for copy in each.copies if copy.queue == queue and not copy.end]

    def _taken(self, record: Json) -> SeenCopy:
        """Return the copy that RabbitMQ has delivered, found by body and routing key. If none matches, add a copy."""
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
        if (consumer := _CONSUMER.match(receiver)) is not None:
            receiver = consumer[1]
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
        if record["what"] == "read":  # from a stream, which keeps the message
            copy.deliveries[-1].end = "read"
        elif no_ack:
            copy.finish({"what": "automatic"}, self.now)

    def _settle(self, counters: Mapping[str, list[int]], depths: Mapping[str, list[int]]) -> None:
        """Process RabbitMQ's counters.

        The counters do not show which deliveries were acknowledged. So the deliveries of a queue are recorded as ended
        only once the counters include all of them, or once the queue stays empty.

        Args:
            counters: for each queue, the deliveries that were acknowledged, and those that need no acknowledgement.
            depths: for each queue, its ready and its unacknowledged messages.
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
    """Return a copy of the history whose `messages` contains only what was published after the event `moment`."""
    later = shallow_copy(seen)
    later.begun = moment
    return later


def lose_transient(seen: Seen) -> None:
    """Record that the broker has been restarted: classic queues have lost their transient messages."""
    for message in seen.messages:
        for copy in message.copies:
            kind = seen.queues.get(copy.queue, {}).get("type")
            if kind == "classic" and not copy.end and not message.persistent:
                copy.end = "lost in the restart"


def is_topology_known(seen: Seen, copy: SeenCopy) -> bool:
    """Return True if the topology has certainly been read since the last delivery of a copy ended."""
    ended = copy.deliveries[-1].ended_milliseconds if copy.deliveries else 0
    return seen.milliseconds - ended > _TOPOLOGY_LATE
