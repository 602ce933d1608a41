"""Holding messages back in wait queues."""

import time
from typing import Any

from mqtool.amqp import Channel
from mqtool.delays.via import LONGEST
from mqtool.delays.wait_queues import GRACE, AtLeastOnce, wait_queue
from mqtool.delays.ways import Destination, Expecting, Notice, Place, addressed, name_for
from mqtool.duration import compact_duration
from mqtool.errors import BadData
from mqtool.message import Message
from mqtool.topology import Exchange, Queue

#: The longest delay, in milliseconds: wait queues must outlive the messages in them.
LONGEST_IN_QUEUES = LONGEST - GRACE
#: Milliseconds between one wait queue and the next, for delays of up to so many milliseconds.
SHORTEST_STEP, _STEP_UP_TO = 25, 10_000
#: Seconds after which a wait queue is declared again, so that its lease does not end.
_LEASE = 60.0


class ThroughQueues:
    """By wait queues, as mqtool/delays/__init__.py draws them."""

    def __init__(self, channel: Channel, destination: Destination, notice: Notice) -> None:
        self._channel = channel
        self._destination = destination
        self._notice = notice
        self._expecting = Expecting(channel)
        self._waiting = AtLeastOnce(channel, notice)
        #: By name: until when the lease of a wait queue is long enough.
        self._leases: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._said_expiration = False

    def place(self, message: Message, milliseconds: int) -> Place:
        if milliseconds > LONGEST_IN_QUEUES:
            raise BadData(
                f"a delay of {compact_duration(milliseconds / 1000)} is too long for a wait queue",
                f"at most {compact_duration(LONGEST_IN_QUEUES / 1000)}; --via plugin takes an hour more",
            )
        if message.properties.get("expiration") is not None and not self._said_expiration:
            self._said_expiration = True
            self._notice("a message that comes out of a wait queue has no expiration any more: the property is lost")
        to, key = addressed(message, self._destination)
        wait = min(wait_of(milliseconds), LONGEST_IN_QUEUES)
        shown = compact_duration(wait / 1000)
        name = name_for(to, f"exchange.delay.{shown}") if to else name_for(key, f"delay.{shown}")
        if time.monotonic() > self._leases.get(name, 0.0):
            if to:
                self._declare_to_exchange(name, wait, to)
            else:
                self._declare_to_queue(name, wait, key)
            self._leases[name] = time.monotonic() + _LEASE
        return Place(name, None) if to else Place("", name)

    def _declare_to_exchange(self, name: str, wait: int, exchange: str) -> None:
        known = self._destination.exchange
        is_known = known.name == exchange
        if not is_known:
            self._expecting.expect(exchange, "")
        remember = name not in self._leases
        if is_known and not known.durable:  # nothing survives a restart anyway
            queue = self._channel.declare(wait_queue(name, wait, exchange, at_least_once=False), remember=remember)
        else:
            due = self._due_exchange(exchange)
            queue = self._waiting.declare(
                lambda at_least_once: wait_queue(name, wait, due.name, at_least_once=at_least_once), remember=remember
            )
        # Not through the default exchange, as the routing key must stay that of the message. It goes with the queue.
        entrance = Exchange(name, "fanout", durable=True, auto_delete=True)
        self._channel.declare(entrance, remember=remember)
        self._channel.bind(queue, entrance, remember=remember)

    def _due_exchange(self, exchange: str) -> Exchange:
        """Where messages for an exchange go when they are due: to that, and to a queue that keeps nothing.

        Without the latter, what an exchange has no queue for would never have arrived, and would be tried for ever.
        """
        due = Exchange(name_for(exchange, "due"), "fanout", durable=True, auto_delete=True)
        if time.monotonic() <= self._due.get(due.name, 0.0):
            return due
        remember = due.name not in self._due
        self._channel.declare(due, remember=remember)
        self._channel.bind(Exchange(exchange), due, remember=remember)
        # It expires when it has not been declared for as long as any message can wait.
        nowhere = Queue(
            name_for(exchange, "nowhere"), durable=True, arguments={"x-max-length": 0, "x-expires": LONGEST}
        )
        self._channel.declare(nowhere, remember=remember)
        self._channel.bind(nowhere, due, remember=remember)
        self._due[due.name] = time.monotonic() + _LEASE
        return due

    def _declare_to_queue(self, name: str, wait: int, queue: str) -> None:
        def waiting(at_least_once: bool) -> Queue:
            return wait_queue(name, wait, "", queue, at_least_once=at_least_once)

        known = self._destination.queue
        is_known = known is not None and known.name == queue
        if not is_known:
            self._expecting.expect("", queue)
        remember = name not in self._leases
        if known is not None and is_known and known.arguments.get("x-queue-type") != "quorum":
            self._channel.declare(waiting(False), remember=remember)
        else:
            self._waiting.declare(waiting, remember=remember)

    def properties(self, message: Message, milliseconds: int) -> dict[str, Any]:
        # Without x-death: brokers drop what they believe to go in circles.
        headers = {key: value for key, value in message.properties["headers"].items() if key != "x-death"}
        return {**message.properties, "headers": headers, "expiration": str(milliseconds)}


def step_of(milliseconds: int) -> int:
    """How far apart the wait queues for such delays are, in milliseconds."""
    step, up_to = SHORTEST_STEP, _STEP_UP_TO
    while milliseconds > up_to:
        step, up_to = step * 2, up_to * 2
    return step


def wait_of(milliseconds: int) -> int:
    """The delay of the wait queue that takes a delay."""
    step = step_of(milliseconds)
    return -(-milliseconds // step) * step
