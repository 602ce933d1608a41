"""Wait queues: when a message in a wait queue expires, the broker dead-letters the message to its destination.

    publisher ──> [jobs.wait.5s] ···5 s···> [jobs]

An unused wait queue expires. Declaring a queue counts as use, but publishing to it does not. So a wait queue is
declared repeatedly while messages are published, and all its messages expire before the queue does.

A quorum queue can dead-letter at least once: it keeps a message until the destination has confirmed it. A classic queue
does not wait for that, and a quorum queue that is electing its leader after a restart drops the messages it receives.

https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import count
from typing import Any, Literal, NamedTuple

from mqtool.amqp import Channel
from mqtool.amqp.administration import unbind
from mqtool.channels import AmqpChannel
from mqtool.claims import Claimed
from mqtool.delays import LONGEST, WAIT_SUFFIX
from mqtool.delays.destinations import DelayPlace, Destination, Warn, derived_name, expect, is_there, name_for
from mqtool.duration import compact_duration, parse_duration
from mqtool.errors import BadData, DeclaredDifferently, UsageError
from mqtool.message import COPIES, DUE, END_OF_TIME, QUEUE_HEADERS, Delivery, Message, time_to_live, to_publish_again
from mqtool.spelling import pasteable
from mqtool.topology import Binding, Exchange, Queue

#: Seconds after its declaration in which a quorum queue is lost, with its messages, if RabbitMQ is killed. Up to 4.3,
#: it saves the file with the names of its quorum queues (names.dets, auto_save 500) a second after a change. A queue
#: whose name is missing, mostly the one declared last, never gets a leader (3.10, 4.0), or starts empty (4.3). No reply
#: and no API reports when the file is saved. On 3.10, on a busy machine, it was 0.84 to 1.12 s after the reply.
YOUNG = 1.5
#: Milliseconds that a wait queue outlives its messages, so that its destination has time to become available again.
GRACE = 60 * 60 * 1000

#: Arguments of a quorum queue that dead-letters at least once.
AT_LEAST_ONCE = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    # The strategy requires it: a queue that drops its head could not keep unconfirmed messages.
    "x-overflow": "reject-publish",
}


def is_retry_queue(name: str, queue: str) -> bool:
    """True if mqtool gives this name to a queue in which messages of another queue wait for their next attempt."""
    _, wait, delay = name.rpartition(".wait.")
    return bool(wait) and name == derived_name(queue, f"wait.{delay}")


def is_numbered(name: str) -> bool:
    """True if a wait queue is used instead of another one (ThroughQueues.avoided), as NAME.delay.5s.2 is."""
    suffix = WAIT_SUFFIX.search(name)
    return suffix is not None and suffix["number"] is not None


def wait_queue(name: str, milliseconds: int, exchange: str, routing_key: str | None = None, unused: int = 0) -> Queue:
    """Return a queue that dead-letters its messages to an exchange after this many milliseconds.

    Args:
        routing_key: the routing key of the dead letters; None keeps each message's own.
        unused: keep the unused queue for at least this many milliseconds; it always lasts longer than its messages.
    """
    arguments: dict[str, Any] = {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": exchange,
        "x-expires": max(milliseconds, unused) + GRACE,
    }
    if routing_key is not None:
        arguments["x-dead-letter-routing-key"] = routing_key
    return Queue(name, durable=True, arguments=arguments)


class AtLeastOnce:
    """Declares wait queues that dead-letter at least once, or ordinary ones on RabbitMQ before 3.10.

    Args:
        warn: called once if the broker does not support at-least-once dead-lettering.
    """

    def __init__(self, channel: AmqpChannel, warn: Callable[[str], None]) -> None:
        self._channel = channel
        self._warn = warn
        self._can = True

    def declare(self, queue: Queue, *, remember: bool = False) -> Queue:
        """Declare a wait queue; with `remember`, it is declared again after a reconnection.

        Raises:
            DeclaredDifferently: the queue exists with different arguments, so messages might never leave it.
        """
        safe = queue._replace(arguments={**queue.arguments, **AT_LEAST_ONCE})
        with suppress(UsageError):
            return declare_exactly(self._channel, safe if self._can else queue, remember=remember)
        self._can = False
        declared = declare_exactly(self._channel, queue, remember=remember)
        self._warn("this broker's queues cannot dead-letter at least once: a broker restart may lose waiting messages")
        return declared


def declare_exactly(channel: AmqpChannel, queue: Queue, *, remember: bool) -> Queue:
    """Declare a wait queue. Raises DeclaredDifferently, with a hint, if it exists with different arguments."""
    try:
        return channel.declare(queue, remember=remember, exactly=True)
    except DeclaredDifferently as error:
        hint = f"messages might never leave {queue.name}; once it is empty: {pasteable('queue delete', queue.name)}"
        raise DeclaredDifferently(str(error), hint) from error


#: The longest delay in a wait queue, in milliseconds: the queue must outlive its messages.
LONGEST_IN_QUEUES = LONGEST - GRACE
#: For delays of up to each key, the unit of the first wait. Queues are for delays that are multiples of a step, 40 of
#: which are a unit.
_UNITS = {"1m": "1s", "5m": "5s", "30m": "30s", "2h": "2m", "12h": "10m", "2d": "1h", "8d": "4h", "50d": "1d"}
_RANGES = [[round(parse_duration(text) * 1000) for text in each] for each in _UNITS.items()]
_STEPS = 40
SHORTEST_STEP = 1000 // _STEPS
#: The header that selects the second wait queue.
_THEN = "mqtool-then"
#: Brokers drop messages whose x-death shows a cycle. With x-delay, the target exchange might delay a message again.
_NOT_KEPT = ("x-death", "x-delay")
#: Seconds after which a wait queue is declared again, so that it does not expire: a part of GRACE.
_LEASE = 600.0


#: Milliseconds to add to a message's expiration: the broker may cut off a part of one in each of two queues.
_ROUNDING = 1


class Wait(NamedTuple):
    """A wait in a queue whose name ends with `suffix`. If unused, the queue is kept for at least `unused` ms.

    Attributes:
        instead_of: the suffix of the queue that is avoided, if this one is used instead.
    """

    suffix: str
    milliseconds: int
    unused: int
    instead_of: str | None = None


class ThroughQueues:
    """Delays messages in wait queues (see the diagram in mqtool/delays/__init__.py).

    Attributes:
        avoided: the names of wait queues that have no leader. Others, such as NAME.delay.5s.2, are used instead.
    """

    def __init__(
        self, channel: Channel, destination: Destination, warn: Warn, avoided: AbstractSet[str] = frozenset()
    ) -> None:
        self.avoided = avoided
        self._channel = channel
        self._destination = destination
        self._warn = warn
        self._at_least_once = AtLeastOnce(channel, warn)
        #: For each exchange, and each queue with its number among a message's waits: when it must be declared again.
        self._leases: dict[tuple[str, int], float] = {}
        #: When each queue was first declared here (time.monotonic()).
        self._declared: dict[str, float] = {}
        self._said_expiration = False

    def place(self, message: Message, milliseconds: Callable[[], int], wait: int | None = None) -> DelayPlace:
        """Declare the queues and exchanges that delay a message; return how to publish it.

        Args:
            milliseconds: returns the remaining delay. Called again after declarations, since they take time.
            wait: choose the queues for this delay instead, in milliseconds.

        Raises:
            BadData: the delay is too long for a wait queue.
        """
        if milliseconds() > LONGEST_IN_QUEUES:
            raise BadData(
                f"a delay of {compact_duration(milliseconds() / 1000)} is too long for a wait queue",
                f"at most {compact_duration(LONGEST_IN_QUEUES / 1000)}; --via plugin takes an hour more",
            )
        if message.properties.get("expiration") is not None and not self._said_expiration:
            self._said_expiration = True
            self._warn("messages lose their property expiration in a wait queue")
        target = self._destination.of(message)
        waits = self._usable(target, waits_for(wait or milliseconds()))
        names = [self._name(target, each.suffix) for each in waits]
        missing = [number for number, name in enumerate(names) if self._is_stale(name, number)]
        if missing and target is not self._destination.to:
            expect(self._channel, target)
        for number in missing:
            self._declare(target, names[number], waits[number], number, is_last=number == len(waits) - 1)
        headers = message.properties.get("headers") or {}
        headers = {name: value for name, value in headers.items() if name not in _NOT_KEPT}
        if len(waits) > 1:
            headers[_THEN] = waits[1].suffix
        total = sum(each.milliseconds for each in waits)
        # The first queue's own time is at most a step longer.
        left = max(1, milliseconds() + _ROUNDING - (total - waits[0].milliseconds))
        properties = {**message.properties, "headers": headers, "expiration": str(left)}
        since = max(self._declared[name] for name in names)
        exchange, key = (names[0], None) if isinstance(target, Exchange) else ("", names[0])
        return DelayPlace(exchange, key, properties, tuple(names), total, since)

    def is_new(self, message: Message, milliseconds: int) -> bool:
        """Return True if the broker has no wait queue yet in which place() would put a message."""
        target = self._destination.of(message)
        first = self._usable(target, waits_for(milliseconds))[0]
        return not is_there(self._channel, Queue(self._name(target, first.suffix)))

    def _usable(self, target: Exchange | Queue, waits: list[Wait]) -> list[Wait]:
        """Replace waits in queues that are avoided."""
        if not self.avoided:
            return waits
        # Dead-lettering a message to a queue without a leader blocks a wait queue for half a minute (RabbitMQ 3.10).
        is_blocked = any((name, 1) in self._leases for name in self.avoided)
        usable = []
        for wait in waits:
            numbers = count(2)
            chosen = wait
            if is_blocked and wait is not waits[-1]:
                chosen = _numbered(wait, next(numbers))
            while self._name(target, chosen.suffix) in self.avoided:
                chosen = _numbered(wait, next(numbers))
            usable.append(chosen)
        return usable

    def _name(self, target: Exchange | Queue, *suffix: str) -> str:
        """Return the name of a wait queue or, without a suffix, of the exchange between wait queues.

        Classic and quorum queues have different names, since a queue cannot be declared again with another type.
        """
        kind = [] if self._destination.may_lead_to_quorum_queue(target) else ["classic"]
        return name_for(target, ".".join([*["exchange"] * isinstance(target, Exchange), "delay", *suffix, *kind]))

    def _is_stale(self, name: str, number: int = 0) -> bool:
        return time.monotonic() > self._leases.get((name, number), 0.0)

    def _declare(self, target: Exchange | Queue, name: str, wait: Wait, number: int, *, is_last: bool) -> None:
        """Declare a wait queue and, if it needs one, the exchange in front of it."""
        is_safe, remember = self._destination.may_lead_to_quorum_queue(target), (name, number) not in self._leases
        router = Exchange(self._name(target), "headers", durable=True, auto_delete=True)
        key, exchange = (target.name, "") if isinstance(target, Queue) else (None, target.name)
        if not is_last:
            exchange = router.name
        elif isinstance(target, Exchange) and is_safe:
            exchange = self._due_exchange(target).name
        queue = wait_queue(name, wait.milliseconds, exchange, key, wait.unused)
        if is_safe:
            queue = self._at_least_once.declare(queue, remember=remember)
        else:
            declare_exactly(self._channel, queue, remember=remember)
        if number:
            self._channel.declare(router, remember=remember)
            self._channel.bind(queue, router, arguments=_then(wait.suffix), remember=remember)
            if wait.instead_of is not None and remember:
                # Redirects messages that would block the first queue, because their next queue has no leader.
                self._channel.bind(queue, router, arguments=_then(wait.instead_of), remember=False)
                avoided = self._name(target, wait.instead_of)
                unbind(self._channel, Binding(router.name, avoided, "", _then(wait.instead_of)))
        elif isinstance(target, Exchange):
            # The default exchange would replace the message's routing key. This one is deleted with the queue.
            entrance = Exchange(name, "fanout", durable=True, auto_delete=True)
            self._channel.declare(entrance, remember=remember)
            self._channel.bind(queue, entrance, remember=remember)
        now = time.monotonic()
        self._leases[name, number] = now + _LEASE
        self._declared.setdefault(name, now)

    def _due_exchange(self, exchange: Exchange) -> Exchange:
        """Declare the exchange between a wait queue and its target. It is also bound to a queue of maximum length 0.

        Without that queue, a message that the target cannot route would never be confirmed.
        """
        due = Exchange(name_for(exchange, "due"), "fanout", durable=True, auto_delete=True)
        if self._is_stale(due.name):
            remember = (due.name, 0) not in self._leases
            self._channel.declare(due, remember=remember)
            self._channel.bind(exchange, due, remember=remember)
            # This queue expires if it is not declared again; no message can wait longer than that.
            arguments = {"x-max-length": 0, "x-expires": LONGEST}
            nowhere = Queue(name_for(exchange, "nowhere"), durable=True, arguments=arguments)
            self._channel.declare(nowhere, remember=remember)
            self._channel.bind(nowhere, due, remember=remember)
            self._leases[due.name, 0] = time.monotonic() + _LEASE
        return due


def _numbered(wait: Wait, number: int) -> Wait:
    """Return the wait time of the wait queue that a message with the given wait time is put in."""
    return wait._replace(suffix=f"{wait.suffix}.{number}", instead_of=wait.suffix)


def _then(suffix: str) -> dict[str, str]:
    """Return the arguments of a binding for messages whose second wait queue has a name with this suffix."""
    return {"x-match": "all", _THEN: suffix}


def step_of(milliseconds: int) -> int:
    """Return the step for a delay, both in milliseconds: its queues are for the next multiple of the step."""
    return next(unit // _STEPS for longest, unit in _RANGES if milliseconds <= longest)


def waits_for(milliseconds: int) -> list[Wait]:
    """Divide a delay, rounded up to a step, into one or two waits: 5.31 s is a wait of 5 s and one of 325 ms."""
    step = step_of(milliseconds)
    longest, unit = next(each for each in _RANGES if milliseconds <= each[0])
    delay = min(-(-milliseconds // step) * step, LONGEST_IN_QUEUES)
    rest = delay % unit
    first = delay - rest
    if not rest:
        return [Wait(compact_duration(delay / 1000), delay, delay)]
    # The second queue must outlive all first queues of its range, so each range has its own.
    of_range = "" if step == SHORTEST_STEP else f".{compact_duration(longest / 1000)}"
    last = Wait(compact_duration(rest / 1000) + of_range, rest, min(longest, LONGEST_IN_QUEUES))
    return [Wait(f"{compact_duration(first / 1000)}.more", first, first), last] if first else [last]


#: The argument of a relay's queue (work/delay_relay.py), with the name of the exchange for due messages.
RELAY = "x-mqtool-relay"
#: The latest due time, in milliseconds since 1970, that datetime can convert in each time zone. Anyone who may publish
#: can write any number into the header.
_LATEST = (END_OF_TIME - 86_400) * 1000
#: Headers that the broker or this module has added.
_NOT_THEIRS = {*QUEUE_HEADERS, _THEN}


class WaitQueue(NamedTuple):
    """A wait queue for a delay or a retry, or a relay's queue of messages that it has not taken yet.

    Attributes:
        exchange, routing_key: used to publish due messages; a routing key of None keeps each message's own. The
            exchange is None if nothing proves which one it is.
        seconds: the delay; 0 for a relay's queue.
        kind: "retry" if the messages failed and wait for their next attempt.
        claimed: the target, according to the queue's arguments or a name that proves nothing.
    """

    name: str
    exchange: str | None
    routing_key: str | None
    seconds: float
    kind: Literal["delay", "retry", "relay"]
    claimed: Claimed[Any] | None = None

    @property
    def to(self) -> str:
        """The name of the messages' target queue or exchange, to show to the user."""
        return self.exchange or self.routing_key or (self.claimed.shown() if self.claimed else "")

    def due_of(self, delivery: Delivery) -> float | None:
        """Return a message's due time, in seconds since 1970; None if unknown, as for a retry, or not a time."""
        return _due_of(delivery) if self.kind == "delay" else None

    def with_order(self, deliveries: Iterable[Delivery]) -> Iterator[tuple[Delivery, bool]]:
        """Yield the deliveries of this queue, in order, with True for each that may arrive after it is due.

        The broker removes only the first message when it expires. So a message that `peek` has published again, with
        the rest of its delay as its expiration, arrives only after those ahead of it that leave the queue later.
        Publishers may have forged the due times of those ahead. But no message stays longer than the queue's TTL, so
        they do not hold up a message whose expiration is as long as that.
        """
        # Within a queue, delays differ by up to a step, and the clocks of publishers by some milliseconds.
        usual = max(1.0, step_of(min(round(self.seconds * 1000) + 1, LONGEST)) / 1000)
        last = time.time() + self.seconds
        latest = -math.inf
        for delivery in deliveries:
            due, expiration = self.due_of(delivery), delivery.properties.get("expiration")
            leaves = -math.inf if due is None else min(due - _second_wait(delivery), last)
            is_again = expiration is not None and time_to_live(expiration) / 1000 < self.seconds - usual
            yield delivery, due is not None and is_again and leaves < latest - usual
            latest = max(latest, leaves)

    def original(self, delivery: Delivery) -> Message:
        """Return the message as it will be delivered to its destination, or as it was published if that is unknown.

        The broker drops CC and BCC if it dead-letters to a queue. With them, the message would get into others as well.
        """
        properties = to_publish_again(delivery.properties, "expiration", "user_id")
        dropped = _NOT_THEIRS if self.routing_key is None else _NOT_THEIRS.union(COPIES)
        properties["headers"] = {name: value for name, value in delivery.headers.items() if name not in dropped}
        key = delivery.routing_key if self.routing_key is None else self.routing_key
        exchange = delivery.exchange if self.exchange is None else self.exchange
        return Message(delivery.body, key, exchange, properties, properties.pop("message_id", None))


def _due_of(delivery: Delivery) -> float | None:
    due = delivery.headers.get(DUE)
    return due / 1000 if isinstance(due, int) and 0 <= due <= _LATEST else None


def _second_wait(delivery: Delivery) -> float:
    """Return the seconds that a delayed message waits in a second queue after this one, according to its headers."""
    suffix = WAIT_SUFFIX.search(delivery.queue)
    if suffix is not None and suffix["more"]:
        with suppress(ValueError):
            return parse_duration(str(delivery.headers.get(_THEN)).partition(".")[0])
    return 0.0


def expiration_until_due(delivery: Delivery) -> int | None:
    """Return the expiration, in milliseconds, that a delayed message needs if it is published to its wait queue again,
    so that it is still due at the same time. Return None if its own is shorter, or its due time is unknown.

    Any publisher can write the headers that this relies on. But the message's own expiration limits the result, and the
    broker also applies the queue's TTL. So false headers harm only their own message: it expires early, as it would
    with a short expiration, or its whole wait starts again, as it would without the headers.
    """
    suffix, due = WAIT_SUFFIX.search(delivery.queue), _due_of(delivery)
    own, now = delivery.properties.get("expiration"), time.time()
    # A message that was delivered still has the header, but no expiration. Its queue may have the name of a wait queue.
    if suffix is None or suffix["kind"] != "delay" or due is None or (due <= now and own is None):
        return None
    left = due - _second_wait(delivery) - now
    milliseconds = int(min(max(left, 0.0) * 1000 + _ROUNDING, LONGEST))
    return milliseconds if own is None or milliseconds < time_to_live(own) else None


def wait_queue_of(view: Mapping[str, Any], onward: Callable[[str], AbstractSet[str]]) -> WaitQueue | None:
    """Convert the management API's description of a queue to a WaitQueue; return None if it is not one.

    Anyone who may declare a queue can claim in its arguments that its messages are for any other queue or exchange. The
    name proves it: mqtool makes it from the name of the target, so the same users may declare both. With the prefix of
    name_for(), it does not begin with the target's name. Then the proof is that the broker itself brings messages from
    this queue to the target, on mqtool's way: for each step, it has checked that whoever set it up may write there.

    Args:
        onward: returns the exchanges to which the broker brings messages from an exchange: those that it is bound to,
            and the dead-letter exchanges of the queues that are bound to it.
    """
    name, arguments = view["name"], view.get("arguments") or {}
    if RELAY in arguments:
        return _relay_queue(name, Claimed(arguments[RELAY]))
    suffix = WAIT_SUFFIX.search(name)
    wait, expires = arguments.get("x-message-ttl"), arguments.get("x-expires")
    if suffix is None or not isinstance(wait, int) or not isinstance(expires, int) or expires < wait + GRACE:
        return None
    kind: Literal["delay", "retry"] = "retry" if suffix["kind"] == "wait" else "delay"
    dead_letters_to = arguments.get("x-dead-letter-exchange")
    if "x-dead-letter-routing-key" in arguments:
        claimed = Claimed(arguments["x-dead-letter-routing-key"])
        key = claimed.proven(
            lambda key: isinstance(key, str) and name == name_for(Queue(key), suffix[0].removeprefix(".exchange")[1:])
        )
        if key is None:
            return None
        if key.startswith("amq.") and dead_letters_to != "":
            return WaitQueue(name, None, None, wait / 1000, kind, claimed)
        return WaitQueue(name, "", key, wait / 1000, kind)
    target = name[: suffix.start()]
    if not suffix["exchange"] or not target:  # a message for the default exchange waits in a queue's wait queue
        return None
    if not target.startswith("mqtool.amq."):
        return WaitQueue(name, target, None, wait / 1000, kind)
    claimed = Claimed(target.removeprefix("mqtool."))
    due, router = f"{target}.due", f"{target}.exchange.delay"
    # Whoever may use these names may have declared the router, so it counts only if queues lead from it to the target.
    then = onward(dead_letters_to) if dead_letters_to in (router, f"{router}.classic") else {dead_letters_to}
    exchange = claimed.proven(lambda to: to in then or (due in then and to in onward(due)))
    return WaitQueue(name, exchange, None, wait / 1000, kind, claimed)


def _relay_queue(name: str, claimed: Claimed[Any]) -> WaitQueue | None:
    """Return a relay's queue, NAME.relay. The name proves only an exchange NAME.relayed, which the relay declares."""
    if not name.endswith(".relay"):
        return None
    return WaitQueue(name, claimed.proven(lambda out: out == f"{name}ed"), None, 0.0, "relay", claimed)
