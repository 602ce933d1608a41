"""`doctor --traffic`: find messages that a newer RabbitMQ refuses, or delivers differently.

docs/reference/changed-messages.md says how each rule was measured.
"""

import decimal
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from mqtool.amqp.basic_frames import Properties
from mqtool.codecs.field_tables import Int64L
from mqtool.errors import BadData
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.findings import Finding
from mqtool.inspection.routes import QueueRoute, Router
from mqtool.inspection.upgrade import V4_0, V4_3, UpgradeChange, Version
from mqtool.message import COPIES, Delivery
from mqtool.spelling import counted

_Key = TypeVar("_Key")
#: The largest message, in bytes, and the highest priority of quorum queues.
_LARGEST, _HIGHEST = 16 << 20, 31


class Passing(NamedTuple):
    """A message, where it is routed to, and the definitions that say so."""

    message: Delivery
    route: QueueRoute | None
    definitions: Definitions

    def queues(self, **arguments: str | None) -> Iterator[str]:
        """Yield the queues that get the message and have these arguments; None accepts any value."""
        for name in self.route.queues if self.route else ():
            of_queue = self.definitions.queues[name].arguments if name in self.definitions.queues else {}
            wanted = {f"x-{argument.replace('_', '-')}": value for argument, value in arguments.items()}
            if all(key in of_queue and value in (None, of_queue[key]) for key, value in wanted.items()):
                yield name


class TrafficRule(NamedTuple):
    """A rule about messages that RabbitMQ treats differently as of version `since`.

    Attributes:
        what: completes the sentence "exchange 'x' gets messages …".
        applies: says which part of a message the rule is about, such as "header 'id'"; None if there is none.
    """

    check: str
    since: Version
    what: str
    hint: str
    applies: Callable[[Passing], str | None]


def _has(value: Any, kinds: tuple[type, ...]) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return isinstance(value, kinds) or any(_has(each, kinds) for each in inside)


def _header(passing: Passing, matches: Callable[[str, Any], bool]) -> str | None:
    found = (name for name, value in passing.message.headers.items() if matches(name, value))
    return next((f"header {name!r}" for name in found), None)


def _long(passing: Passing) -> str | None:
    return _header(passing, lambda _, value: _has(value, (Int64L,)))


def _names(passing: Passing) -> list[str]:
    properties = passing.message.properties
    return properties.sent_headers() if isinstance(properties, Properties) else [*passing.message.headers]


def _unsorted(passing: Passing) -> str | None:
    names = _names(passing)
    return next((f"{after!r} after {name!r}" for name, after in pairwise(names) if after < name), None)


def _duplicate(passing: Passing) -> str | None:
    names = _names(passing)
    return next((f"header {name!r}" for name in names if names.count(name) > 1), None)


def _priority(passing: Passing) -> str | None:
    priority = passing.message.properties.get("priority")
    queue = next(passing.queues(queue_type="quorum"), None)
    return None if queue is None or priority is None or priority > _HIGHEST else f"priority {priority} to {queue!r}"


def _above(passing: Passing) -> str | None:
    priority = passing.message.properties.get("priority") or 0
    queue = next(passing.queues(queue_type="quorum"), None)
    return f"priority {priority} to {queue!r}" if queue is not None and priority > _HIGHEST else None


def _large(passing: Passing) -> str | None:
    size = len(passing.message.body)
    return counted(size, "byte") if size > _LARGEST else None


def _copied(passing: Passing) -> str | None:
    queue = next(passing.queues(dead_letter_exchange=None, dead_letter_routing_key=None), None)
    return f"to {queue!r}" if queue is not None and isinstance(passing.message.headers.get("CC"), list) else None


def _sent_back(passing: Passing) -> str | None:
    """Find an x-death that a client has sent: the broker dead-letters only to the queue's dead-letter exchange."""
    deaths = passing.message.headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
    queue = passing.definitions.queues.get(str(latest.get("queue")))
    if queue is None or queue.arguments.get("x-dead-letter-exchange") == passing.message.exchange:
        return None
    count = latest.get("count")
    return f"count {count if isinstance(count, int) else '?'} of queue {queue.name!r}"


def _mqtt(passing: Passing) -> str | None:
    return _header(passing, lambda name, _: name.startswith("x-mqtt-"))


def _not_in_amqp10(passing: Passing) -> str | None:
    def is_lost(name: str, value: Any) -> bool:
        kinds: tuple[type, ...] = (decimal.Decimal,)
        return _has(value, kinds if name.startswith("x-") or name in COPIES else (*kinds, list, Mapping))

    return _header(passing, is_lost)


def _expiring(passing: Passing) -> str | None:
    expiration = passing.message.properties.get("expiration")
    for death in passing.route.dead_letters if expiration is not None and passing.route else ():
        for name in death.queues or ():
            if passing.definitions.queues[name].arguments.get("x-queue-type") == "stream":
                return f"expiration {expiration} in {death.queue!r}"
    return None


RULES = (
    TrafficRule(
        "message-size",
        V4_0,
        "larger than 16 MiB, which RabbitMQ 4.0 refuses",
        "set max_message_size, or send large data another way",
        _large,
    ),
    TrafficRule(
        "duplicate-header",
        V4_0,
        "with two headers of the same name: RabbitMQ 4.0 keeps only the first",
        "give each header a name of its own, or send a list",
        _duplicate,
    ),
    TrafficRule(
        "x-death",
        V4_0,
        "with an x-death header that a client sent: RabbitMQ 4.0 starts to count again at 1",
        "count retries in a header of your own, or reject messages instead of publishing them again",
        _sent_back,
    ),
    TrafficRule(
        "message-priority",
        V4_0,
        "with a priority to quorum queues: RabbitMQ 4.0 delivers those above 4 first, 4.3 has 32 priorities",
        "leave the priority out if consumers rely on the order",
        _priority,
    ),
    TrafficRule(
        "priority-limit",
        V4_0,
        "with a priority above 31 to quorum queues: RabbitMQ 4.3 treats it as 31, 4.0 as any above 4",
        "use priorities from 0 to 31",
        _above,
    ),
    TrafficRule(
        "copies",
        V4_0,
        "with a CC header to queues with a dead-letter routing key: from RabbitMQ 4.0 on, dead letters keep CC",
        "programs that publish dead letters again must remove CC, or they send copies",
        _copied,
    ),
    TrafficRule(
        "message-expiration",
        V4_0,
        "that expire and are dead-lettered to a stream: RabbitMQ 4.0 stores them, with their expiration; 3.10 does not",
        "readers of the stream get messages that they did not get before",
        _expiring,
    ),
    TrafficRule(
        "mqtt-header",
        V4_3,
        "with a header of the MQTT plugin of RabbitMQ 3.10: 4.3 does not add it",
        "use the delivery mode: 2 for QoS 1, 1 for QoS 0",
        _mqtt,
    ),
    TrafficRule(
        "integer-type",
        V4_0,
        "with integers of type L in a header: RabbitMQ 4.0 delivers them as l",
        "readers that could not read L now can; those that compare the bytes see a change",
        _long,
    ),
    TrafficRule(
        "header-order",
        V4_0,
        "whose headers are not sorted: RabbitMQ 4.0 delivers them sorted by name",
        "read headers by name, and send one list where the order matters",
        _unsorted,
    ),
    TrafficRule(
        "amqp10-header",
        V4_0,
        "with a header that AMQP 1.0 cannot carry: readers over AMQP 1.0 do not get it, or not the message",
        "send tables and lists as JSON, or in headers whose names begin with x-; send decimals as text",
        _not_in_amqp10,
    ),
)
#: About several messages: Traffic applies it.
_NO_PRIORITY = TrafficRule(
    "no-priority",
    V4_3,
    "without a priority to a quorum queue that also gets messages with one: RabbitMQ 4.3 treats them as of priority 4",
    "give each message a priority, or none",
    lambda _: None,
)


def changes_messages(present: Version, wanted: Version) -> bool:
    """True if any rule is about an upgrade between these versions."""
    return any(present < rule.since <= wanted for rule in (*RULES, _NO_PRIORITY))


class Traffic:
    """Counts the messages that each rule applies to, and keeps an example for each rule.

    Args:
        exchange, key: where the messages are routed from; a key of None means that of each message.
    """

    def __init__(self, thing: str, vhost: str, definitions: Definitions, exchange: str, key: str | None) -> None:
        self.count = 0
        self._thing, self._vhost = thing, vhost
        self._definitions, self._router = definitions, Router(definitions)
        self._exchange, self._key = exchange, key
        self._found: dict[TrafficRule, tuple[int, str]] = {}
        #: The quorum queues that get messages with a priority, and those that get some without: how many, and one.
        self._prioritized: set[str] = set()
        self._others: dict[str, tuple[int, str]] = {}

    def add(self, message: Delivery) -> None:
        """Apply the rules to a message."""
        self.count += 1
        key = message.routing_key if self._key is None else self._key
        try:
            route = self._router.route(self._exchange, key, message.headers, near_misses=0)
        except BadData:  # a bad x-delay, which the broker treats as none
            route = None
        passing = Passing(message, route, self._definitions)
        where = f"routing key {message.routing_key!r}"
        for rule in RULES:
            if (part := rule.applies(passing)) is not None:
                _count(self._found, rule, f"{where}, {part}")
        for queue in passing.queues(queue_type="quorum"):
            if message.properties.get("priority") is None:
                _count(self._others, queue, f"{where}, to {queue!r}")
            else:
                self._prioritized.add(queue)

    def findings(self, present: Version, wanted: Version) -> Iterator[Finding]:
        """Yield a finding for each rule that applies to a message, and to an upgrade between these versions."""
        found = dict(self._found)
        if mixed := sorted(self._prioritized & self._others.keys()):
            found[_NO_PRIORITY] = self._others[mixed[0]]
        for rule, (count, example) in found.items():
            what = f"gets messages {rule.what} ({count:,} of {self.count:,}; for example {example})"
            change = UpgradeChange(rule.since, Finding(rule.check, self._thing, what, rule.hint, self._vhost))
            if present < change.since and change.concerns(wanted):
                yield change.finding


def _count(found: dict[_Key, tuple[int, str]], key: _Key, example: str) -> None:
    """Count one more for a key, and keep its first example."""
    count, first = found.get(key, (0, example))
    found[key] = count + 1, first
