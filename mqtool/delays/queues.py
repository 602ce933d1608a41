"""Holding messages back in wait queues."""

import time
from typing import Any

from mqtool.amqp import Channel
from mqtool.delays.via import LONGEST
from mqtool.delays.wait_queues import GRACE, AtLeastOnce, declare_exactly, wait_queue
from mqtool.delays.ways import Destination, Place, Warn, expect, name_for
from mqtool.duration import compact_duration
from mqtool.errors import BadData
from mqtool.message import Message
from mqtool.topology import Exchange, Queue

#: The longest delay in milliseconds: wait queues must outlive the messages in them.
LONGEST_IN_QUEUES = LONGEST - GRACE
#: Milliseconds between one wait queue and the next, and the delay up to which they are that close.
SHORTEST_STEP, _STEP_UP_TO = 25, 10_000
_NOT_KEPT = ("x-death", "x-delay")
#: Seconds after which a wait queue is declared again, so that it does not expire.
_LEASE = 60.0


class ThroughQueues:
    """Through wait queues, as mqtool/delays/__init__.py draws them."""

    def __init__(self, channel: Channel, destination: Destination, warn: Warn) -> None:
        self._channel = channel
        self._destination = destination
        self._warn = warn
        self._waiting = AtLeastOnce(channel, warn)
        #: By name: until when a declaration is fresh.
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
            self._warn("messages lose their property expiration in a wait queue")
        target = self._destination.of(message)
        wait = min(wait_of(milliseconds), LONGEST_IN_QUEUES)
        is_exchange = isinstance(target, Exchange)
        is_safe = self._destination.may_lead_to_quorum_queue(target)
        # The name tells what the arguments are, so that no other kind of wait queue has it.
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
        else:
            declare_exactly(self._channel, waiting, remember=remember)
        if isinstance(target, Exchange):
            # Not through the default exchange, since the message keeps its routing key. It goes when the queue does.
            entrance = Exchange(name, "fanout", durable=True, auto_delete=True)
            self._channel.declare(entrance, remember=remember)
            self._channel.bind(waiting, entrance, remember=remember)

    def _due_exchange(self, exchange: Exchange) -> Exchange:
        """Where messages for an exchange go when they are due: on to it, and to a queue that keeps nothing.

        Without that queue, a message that the exchange routes to no queue would never count as arrived.
        """
        due = Exchange(name_for(exchange, "due"), "fanout", durable=True, auto_delete=True)
        if self._is_stale(due.name):
            remember = due.name not in self._leases
            self._channel.declare(due, remember=remember)
            self._channel.bind(exchange, due, remember=remember)
            # It expires when it has not been declared for as long as any message can wait.
            arguments = {"x-max-length": 0, "x-expires": LONGEST}
            nowhere = Queue(name_for(exchange, "nowhere"), durable=True, arguments=arguments)
            self._channel.declare(nowhere, remember=remember)
            self._channel.bind(nowhere, due, remember=remember)
            self._leases[due.name] = time.monotonic() + _LEASE
        return due

    def properties(self, message: Message, milliseconds: int) -> dict[str, Any]:
        # Brokers drop messages whose x-death seems to go in circles; an exchange behind the queue may heed x-delay.
        headers = {key: value for key, value in message.properties["headers"].items() if key not in _NOT_KEPT}
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
