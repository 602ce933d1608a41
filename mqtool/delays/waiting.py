"""What waits, as the broker lists it: wait queues of delays and of retries, and where their messages go.

Their names and arguments are those of queues.py and of work/retry.py, which declare them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mqtool.delays.wait_queues import GRACE
from mqtool.message import DUE, Delivery, Message

#: What follows the name of the queue or the exchange that the messages are for.
_SUFFIX = re.compile(r"(?P<exchange>\.exchange)?\.(?P<kind>delay|wait)\.\w+(\.classic)?$")
_NOT_KEPT = {"x-delivery-count", "x-acquired-count"}


class WaitQueue(NamedTuple):
    """A wait queue.

    Attributes:
        exchange, routing_key: what its messages are published with when they are due; the routing key None is each
            message's own.
        seconds: how long they wait.
        is_retry: they have failed, and wait for their next attempt.
    """

    name: str
    exchange: str
    routing_key: str | None
    seconds: float
    is_retry: bool

    @property
    def to(self) -> str:
        """The queue, or the exchange, that the messages are for."""
        return self.exchange or self.routing_key or ""

    def due_of(self, delivery: Delivery) -> float | None:
        """When a message is due, in seconds since 1970; None for a retry, which does not tell."""
        due = delivery.headers.get(DUE)
        return None if self.is_retry or not isinstance(due, int) else due / 1000

    def original(self, delivery: Delivery) -> Message:
        """A message as it will arrive."""
        properties = {
            name: value for name, value in delivery.properties.items() if name not in ("expiration", "user_id")
        }
        properties["headers"] = {name: value for name, value in delivery.headers.items() if name not in _NOT_KEPT}
        key = delivery.routing_key if self.routing_key is None else self.routing_key
        return Message(delivery.body, key, self.exchange, properties, properties.pop("message_id", None))


def wait_queue_of(view: Mapping[str, Any]) -> WaitQueue | None:
    """A queue, as the management API shows it, as a wait queue; None if it is none of ours."""
    arguments, suffix = view.get("arguments") or {}, _SUFFIX.search(view["name"])
    wait, exchange = arguments.get("x-message-ttl"), arguments.get("x-dead-letter-exchange")
    if suffix is None or not isinstance(wait, int) or arguments.get("x-expires") != wait + GRACE:
        return None
    key = arguments.get("x-dead-letter-routing-key")
    if exchange:  # it may be one before the exchange that the messages are for; see queues.py
        target = view["name"][: suffix.start()]
        exchange = target.removeprefix("mqtool.") if target.startswith("mqtool.amq.") else target
    return WaitQueue(view["name"], exchange or "", key, wait / 1000, suffix["kind"] == "wait")
