"""What a message has been through: headers that mqtool writes when it fails, and those that the broker does.

A message that has failed is published again, under the name of a queue and with its time to live spent; where it came
from, and how often it has failed, it carries itself. RabbitMQ's own x-death tells less of it, and differs from version
to version. https://www.rabbitmq.com/docs/dlx#effects
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mqtool.message import PERSISTENT, Delivery, Message

#: How often it has been tried, and failed.
ATTEMPTS = "mqtool-attempts"
#: Why it failed the last time, in one line.
LAST_ERROR = "mqtool-last-error"
#: Why it is a dead letter: EXHAUSTED or REJECTED.
REASON = "mqtool-reason"
#: When it failed for the first time.
FIRST_FAILURE = "mqtool-first-failure"
#: The queue whose consumer it failed, and how it was published first.
QUEUE, EXCHANGE, ROUTING_KEY = "mqtool-queue", "mqtool-exchange", "mqtool-routing-key"

EXHAUSTED, REJECTED = "retries exhausted", "rejected"

_OURS = (ATTEMPTS, LAST_ERROR, REASON, FIRST_FAILURE, QUEUE)
#: Headers that the broker writes on a dead letter.
_BROKERS = ("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
            "x-last-death-exchange", "x-last-death-queue", "x-last-death-reason", "x-delivery-count",
            "x-acquired-count")  # fmt: skip
#: Headers by which a publisher has a message copied to further queues: those have had theirs. (RabbitMQ's
#: sender-selected distribution.)
_COPIES = ("CC", "BCC")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a message was published first."""

    exchange: str
    routing_key: str


def attempt_of(delivery: Delivery) -> int:
    """The number of the attempt that this delivery is, from 1."""
    return failures_of(delivery) + 1


def failures_of(delivery: Delivery) -> int:
    """How often it has failed; what is no number in the header counts as never."""
    failures = delivery.headers.get(ATTEMPTS)
    return failures if isinstance(failures, int) and failures > 0 else 0


def origin_of(delivery: Delivery) -> Origin:
    """How it was published first, if it came by way of a wait queue or was brought back."""
    exchange, routing_key = delivery.headers.get(EXCHANGE), delivery.headers.get(ROUTING_KEY)
    return Origin(
        exchange if isinstance(exchange, str) else delivery.exchange,
        routing_key if isinstance(routing_key, str) else delivery.routing_key,
    )


def failed(delivery: Delivery, error: str, to: str, reason: str | None = None) -> Message:
    """The message that tells of one more failure, for the queue `to`.

    Args:
        error: why, in one line.
        reason: why it becomes a dead letter, if it does.
    """
    origin = origin_of(delivery)
    # Without x-death: brokers drop what they believe to go in circles.
    headers = _without(delivery.headers, (*_BROKERS, *_COPIES))
    headers |= {
        ATTEMPTS: failures_of(delivery) + 1,
        LAST_ERROR: error,
        QUEUE: delivery.queue,
        EXCHANGE: origin.exchange,
        ROUTING_KEY: origin.routing_key,
    }
    headers.setdefault(FIRST_FAILURE, datetime.now(UTC).replace(microsecond=0))
    if reason is not None:
        headers[REASON] = reason
    return _again(delivery, headers, to)


def redriven(delivery: Delivery, to: str) -> Message:
    """The message as it was before it failed, for the queue `to`: its attempts count from one again."""
    return _again(delivery, _without(delivery.headers, (*_OURS, *_BROKERS, *_COPIES)), to)


def _again(delivery: Delivery, headers: Mapping[str, Any], to: str) -> Message:
    # An expiration would end it in the queue where it waits; the broker drops it from dead letters too. A user id must
    # be that of the connection. And what waits shall survive a restart.
    left_out = ("headers", "message_id", "expiration", "user_id", "delivery_mode")
    properties = {name: value for name, value in delivery.properties.items() if name not in left_out}
    properties |= {"headers": headers or None, "delivery_mode": PERSISTENT}
    return Message(delivery.body, to, "", properties, delivery.properties.get("message_id"))


def _without(headers: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name not in names}


@dataclass(frozen=True, slots=True)
class Death:
    """What is known of a dead letter.

    Attributes:
        reason: ours (EXHAUSTED, REJECTED) or the broker's: rejected, expired, maxlen, delivery_limit.
        queue: where it lay before, None where nothing tells.
        attempts: how often it was tried; 0 where nothing tells.
        first: when it failed or died for the first time.
        error: why it failed the last time.
    """

    reason: str
    queue: str | None
    attempts: int
    first: datetime | None
    error: str | None


def death_of(delivery: Delivery) -> Death:
    """From our own headers, else from the broker's."""
    headers = delivery.headers
    if REASON in headers:
        first, queue = headers.get(FIRST_FAILURE), headers.get(QUEUE)
        return Death(
            str(headers[REASON]),
            queue if isinstance(queue, str) else None,
            failures_of(delivery),
            first if isinstance(first, datetime) else None,
            str(headers.get(LAST_ERROR) or "") or None,
        )
    deaths = headers.get("x-death")
    entries = [entry for entry in deaths if isinstance(entry, dict)] if isinstance(deaths, list) else []
    if not entries:
        return Death("unknown", None, 0, None, None)
    latest = entries[0]
    times = [entry["time"] for entry in entries if isinstance(entry.get("time"), datetime)]
    return Death(
        str(latest.get("reason", "unknown")),
        latest.get("queue"),
        sum(int(entry.get("count", 1)) for entry in entries if entry.get("reason") == "rejected"),
        min((time.replace(tzinfo=time.tzinfo or UTC) for time in times), default=None),
        None,
    )
