"""Wait queues: a message waits in one until it expires, and the broker dead-letters it to its destination.

    publisher ──> [jobs.wait.5s] ···5 s···> [jobs]

Each delay has its own wait queue, because messages expire only at the head of a queue: behind a message with a TTL of
five minutes, a message with a TTL of one second would also wait for five minutes.

An unused wait queue expires. Declaring a queue counts as use, but publishing to it does not. So a wait queue is
declared repeatedly while messages are published, and it expires later than any message in it.

A quorum queue can dead-letter at least once: it keeps a message until the destination has confirmed it. A classic queue
does not wait for that, and a quorum queue that is electing its leader after a restart drops the messages it receives.

https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mqtool.amqp import Channel
from mqtool.delays import LONGEST
from mqtool.delays.destinations import Destination, Place, Warn, expect, name_for
from mqtool.duration import compact_duration
from mqtool.errors import BadData, DeclaredDifferently, UsageError
from mqtool.message import DUE, Delivery, Message
from mqtool.spelling import pasteable
from mqtool.topology import Exchange, Queue

#: Milliseconds that a wait queue outlives its messages, so that its destination has time to become available again.
GRACE = 60 * 60 * 1000

_AT_LEAST_ONCE = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    # The strategy requires it: a queue that drops its head could not keep unconfirmed messages.
    "x-overflow": "reject-publish",
}


#: Names of wait queues: NAME.wait.5s, NAME.delay.5s, NAME.exchange.delay.5s.classic; and of the queue of length 0.
_HELPER = re.compile(r"\.(?:wait|delay)\.(?:\d+(?:ms|[dhms]))+(?:\.classic)?$|\.nowhere$")


def is_wait_queue(name: str) -> bool:
    """True if mqtool gives such a name to wait queues, their exchanges, and the queue of length 0 beside them."""
    return _HELPER.search(name) is not None


def wait_queue(name: str, milliseconds: int, exchange: str, routing_key: str | None = None) -> Queue:
    """Return a queue that dead-letters its messages to an exchange after this many milliseconds.

    Args:
        routing_key: the routing key of the dead letters; None keeps each message's own.
    """
    arguments: dict[str, Any] = {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": exchange,
        "x-expires": milliseconds + GRACE,
    }
    if routing_key is not None:
        arguments["x-dead-letter-routing-key"] = routing_key
    return Queue(name, durable=True, arguments=arguments)


class AtLeastOnce:
    """Declares wait queues that dead-letter at least once, or plain ones if the broker (before 3.10) cannot.

    Args:
        warn: called once if the broker does not support at-least-once dead-lettering.
    """

    def __init__(self, channel: Channel, warn: Callable[[str], None]) -> None:
        self._channel = channel
        self._warn = warn
        self._can = True

    def declare(self, queue: Queue, *, remember: bool = False) -> Queue:
        """Declare a wait queue; `remember` declares it again after a reconnection.

        Raises:
            DeclaredDifferently: the queue exists with other arguments, so messages might never leave it.
        """
        if self._can:
            try:
                safe = queue._replace(arguments={**queue.arguments, **_AT_LEAST_ONCE})
                return declare_exactly(self._channel, safe, remember=remember)
            except UsageError:
                declared = declare_exactly(self._channel, queue, remember=remember)
            self._can = False
            self._warn(
                "this broker's queues cannot dead-letter at least once: a broker restart may lose waiting messages"
            )
            return declared
        return declare_exactly(self._channel, queue, remember=remember)


def declare_exactly(channel: Channel, queue: Queue, *, remember: bool) -> Queue:
    """Declare a wait queue; raise an error if it exists with other arguments, since messages might never leave it."""
    try:
        return channel.declare(queue, remember=remember, exactly=True)
    except DeclaredDifferently as error:
        hint = f"messages might never leave {queue.name}; once it is empty: {pasteable('queue delete', queue.name)}"
        raise DeclaredDifferently(str(error), hint) from error


#: The longest delay in a wait queue, in milliseconds: the queue must outlive its messages.
LONGEST_IN_QUEUES = LONGEST - GRACE
#: The difference between the delays of two wait queues in milliseconds, and the longest delay that uses this step.
SHORTEST_STEP, _STEP_UP_TO = 25, 10_000
_NOT_KEPT = ("x-death", "x-delay")
#: The number of quorum wait queues after which a command warns: RabbitMQ needs about 20 ms to declare each.
_MANY_QUORUM = 200
#: Seconds after which a wait queue is declared again, so that it does not expire.
_LEASE = 60.0


class ThroughQueues:
    """Delays messages in wait queues (see the diagram in mqtool/delays/__init__.py)."""

    def __init__(self, channel: Channel, destination: Destination, warn: Warn) -> None:
        self._channel = channel
        self._destination = destination
        self._warn = warn
        self._waiting = AtLeastOnce(channel, warn)
        #: For each queue or exchange name, the time when it must be declared again.
        self._leases: dict[str, float] = {}
        self._said_expiration = False
        self._quorum_queues = 0

    def place(self, message: Message, milliseconds: int) -> Place:
        if milliseconds > LONGEST_IN_QUEUES:
            raise BadData(
                f"a delay of {compact_duration(milliseconds / 1000)} is too long for a wait queue",
                f"at most {compact_duration(LONGEST_IN_QUEUES / 1000)}; --via plugin takes an hour more",
            )
        if message.properties.get("expiration") is not None and not self._said_expiration:
            self._said_expiration = True
            self._warn("messages lose their property expiration in a wait queue")
        target = self._destination.of(message)
        wait = min(wait_of(milliseconds), LONGEST_IN_QUEUES)
        is_exchange = isinstance(target, Exchange)
        is_safe = self._destination.may_lead_to_quorum_queue(target)
        # The name depends on the arguments, so that queues with other arguments have other names.
        kind = f"{'exchange.' if is_exchange else ''}delay.{compact_duration(wait / 1000)}"
        name = name_for(target, kind if is_safe else f"{kind}.classic")
        if self._is_stale(name):
            self._declare(name, wait, target, is_safe=is_safe)
            self._leases[name] = time.monotonic() + _LEASE
        return Place(name, None) if is_exchange else Place("", name)

    def _is_stale(self, name: str) -> bool:
        return time.monotonic() > self._leases.get(name, 0.0)

    def _declare(self, name: str, wait: int, target: Exchange | Queue, *, is_safe: bool) -> None:
        remember = name not in self._leases
        if target is not self._destination.to:
            expect(self._channel, target)
        if isinstance(target, Queue):
            waiting = wait_queue(name, wait, "", target.name)
        else:
            waiting = wait_queue(name, wait, (self._due_exchange(target) if is_safe else target).name)
        if is_safe:
            waiting = self._waiting.declare(waiting, remember=remember)
            self._quorum_queues += remember
            if remember and self._quorum_queues == _MANY_QUORUM:
                self._warn(
                    f"{_MANY_QUORUM} quorum wait queues so far, one for each step of the delays: RabbitMQ takes long "
                    "to declare them, so messages may be seconds late; rounded delays, or a classic queue, avoid that"
                )
        else:
            declare_exactly(self._channel, waiting, remember=remember)
        if isinstance(target, Exchange):
            # The default exchange would replace the message's routing key. This one is deleted with the queue.
            entrance = Exchange(name, "fanout", durable=True, auto_delete=True)
            self._channel.declare(entrance, remember=remember)
            self._channel.bind(waiting, entrance, remember=remember)

    def _due_exchange(self, exchange: Exchange) -> Exchange:
        """Declare the exchange between a wait queue and its target, which is also bound to a queue of length 0.

        Without that queue, a message that the target routes to no queue would never be confirmed.
        """
        due = Exchange(name_for(exchange, "due"), "fanout", durable=True, auto_delete=True)
        if self._is_stale(due.name):
            remember = due.name not in self._leases
            self._channel.declare(due, remember=remember)
            self._channel.bind(exchange, due, remember=remember)
            # This queue expires if it is not declared again; no message can wait longer than that.
            arguments = {"x-max-length": 0, "x-expires": LONGEST}
            nowhere = Queue(name_for(exchange, "nowhere"), durable=True, arguments=arguments)
            self._channel.declare(nowhere, remember=remember)
            self._channel.bind(nowhere, due, remember=remember)
            self._leases[due.name] = time.monotonic() + _LEASE
        return due

    def properties(self, message: Message, milliseconds: int) -> dict[str, Any]:
        # Brokers drop messages whose x-death shows a cycle. With x-delay, the target exchange might delay it again.
        headers = {key: value for key, value in message.properties["headers"].items() if key not in _NOT_KEPT}
        return {**message.properties, "headers": headers, "expiration": str(milliseconds)}


def step_of(milliseconds: int) -> int:
    """Return the step between the wait queues for delays of this length, in milliseconds."""
    step, up_to = SHORTEST_STEP, _STEP_UP_TO
    while milliseconds > up_to:
        step, up_to = step * 2, up_to * 2
    return step


def wait_of(milliseconds: int) -> int:
    """Round a delay up to the delay of a wait queue, in milliseconds."""
    step = step_of(milliseconds)
    return -(-milliseconds // step) * step


#: The end of a wait queue's name, after the name of the target queue or exchange.
_SUFFIX = re.compile(r"(?P<exchange>\.exchange)?\.(?P<kind>delay|wait)\.\w+(\.classic)?$")
_COUNTS = {"x-delivery-count", "x-acquired-count"}


class WaitQueue(NamedTuple):
    """A wait queue for a delay or a retry.

    Attributes:
        exchange, routing_key: used to publish due messages; the routing key None keeps each message's own.
        seconds: the delay.
        is_retry: True if the messages failed and wait for their next attempt.
    """

    name: str
    exchange: str
    routing_key: str | None
    seconds: float
    is_retry: bool

    @property
    def to(self) -> str:
        """The name of the target queue or exchange of the messages."""
        return self.exchange or self.routing_key or ""

    def due_of(self, delivery: Delivery) -> float | None:
        """Return a message's due time, in seconds since 1970; None for a retry, since it is unknown."""
        due = delivery.headers.get(DUE)
        return None if self.is_retry or not isinstance(due, int) else due / 1000

    def original(self, delivery: Delivery) -> Message:
        """Return the message as it will arrive at its destination."""
        properties = {
            name: value for name, value in delivery.properties.items() if name not in ("expiration", "user_id")
        }
        properties["headers"] = {name: value for name, value in delivery.headers.items() if name not in _COUNTS}
        key = delivery.routing_key if self.routing_key is None else self.routing_key
        return Message(delivery.body, key, self.exchange, properties, properties.pop("message_id", None))


def wait_queue_of(view: Mapping[str, Any]) -> WaitQueue | None:
    """Convert the management API's description of a queue; return None if it is not a wait queue."""
    arguments, suffix = view.get("arguments") or {}, _SUFFIX.search(view["name"])
    wait, exchange = arguments.get("x-message-ttl"), arguments.get("x-dead-letter-exchange")
    if suffix is None or not isinstance(wait, int) or arguments.get("x-expires") != wait + GRACE:
        return None
    key = arguments.get("x-dead-letter-routing-key")
    if exchange:  # this may be the exchange NAME.due in front of the target
        target = view["name"][: suffix.start()]
        exchange = target.removeprefix("mqtool.") if target.startswith("mqtool.amq.") else target
    return WaitQueue(view["name"], exchange or "", key, wait / 1000, suffix["kind"] == "wait")
