"""Holding messages back in wait queues."""

import time
from typing import Any

from mqtool.amqp import Channel
from mqtool.delays.via import LONGEST
from mqtool.delays.ways import Destination, Expecting, Notice, Place, addressed, name_for
from mqtool.duration import compact_duration
from mqtool.errors import BadData
from mqtool.message import Message
from mqtool.topology import Exchange, Queue
from mqtool.wait_queues import GRACE, AtLeastOnce, wait_queue

#: The longest delay, in milliseconds: wait queues must outlive the messages in them.
LONGEST_IN_QUEUES = LONGEST - GRACE
#: Milliseconds between one wait queue and the next, for delays of up to so many milliseconds.
SHORTEST_STEP, _STEP_UP_TO = 25, 10_000
#: Seconds after which a wait queue is declared again, so that its lease does not end.
_LEASE = 60.0


class ThroughQueues:
    """By wait queues: see above."""

    def __init__(self, channel: Channel, destination: Destination, notice: Notice) -> None:
        self._channel = channel
        self._destination = destination
        self._notice = notice
        self._expecting = Expecting(channel)
        self._waiting = AtLeastOnce(channel, notice)
        #: By name: until when the lease of a wait queue is long enough.
        self._leases: dict[str, float] = {}
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
        remember = name not in self._leases
        if remember and exchange != self._destination.exchange.name:
            self._expecting.expect(exchange, "")
        queue = wait_queue(name, wait, exchange, at_least_once=False)
        self._channel.declare(queue, remember=remember)
        # Not through the default exchange, as the routing key must stay that of the message. It goes with the queue.
        entrance = Exchange(name, "fanout", durable=True, auto_delete=True)
        self._channel.declare(entrance, remember=remember)
        self._channel.bind(queue, entrance, remember=remember)

    def _declare_to_queue(self, name: str, wait: int, queue: str) -> None:
        def waiting(at_least_once: bool) -> Queue:
            return wait_queue(name, wait, "", queue, at_least_once=at_least_once)

        remember = name not in self._leases
        if self._needs_care(queue):
            self._waiting.declare(waiting, remember=remember)
        else:
            self._channel.declare(waiting(False), remember=remember)

    def _needs_care(self, queue: str) -> bool:
        """Whether a queue is a quorum queue, or may be one."""
        known = self._destination.queue
        if known is not None and known.name == queue:
            return known.arguments.get("x-queue-type") == "quorum"
        self._expecting.expect("", queue)
        return True

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
