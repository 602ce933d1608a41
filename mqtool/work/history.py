"""What a message has been through, as its headers tell: mqtool's own and the broker's.

A failed message is published again to another queue, so it carries where it came from and how often it has failed.
RabbitMQ's own x-death says less, and differs between versions. https://www.rabbitmq.com/docs/dlx#effects
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mqtool.message import Delivery

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

#: No message has been tried more often.
_MOST = 2**31 - 2

EXHAUSTED, REJECTED = "retries exhausted", "rejected"


@dataclass(frozen=True, slots=True)
class Origin:
    """How a message was published first."""

    exchange: str
    routing_key: str


def attempt_of(delivery: Delivery) -> int:
    """The number of the attempt that this delivery is, from 1."""
    return failures_of(delivery) + 1


def failures_of(delivery: Delivery) -> int:
    """How often it has failed; 0 if the header is not a number."""
    return _count(delivery.headers.get(ATTEMPTS))


def origin_of(delivery: Delivery) -> Origin:
    """How it was published first, even if it came through a wait queue or was brought back."""
    exchange, routing_key = _name(delivery.headers.get(EXCHANGE)), _name(delivery.headers.get(ROUTING_KEY))
    return Origin(
        delivery.exchange if exchange is None else exchange,
        delivery.routing_key if routing_key is None else routing_key,
    )


def _name(value: object) -> str | None:
    """What a header says, if it can be the name of a queue or an exchange, or a routing key: anybody can set it."""
    return value if isinstance(value, str) and len(value.encode("utf-8", "surrogateescape")) <= 255 else None


def _count(value: object) -> int:
    """What a header says, if it can be a number of attempts; else 0."""
    return min(value, _MOST) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def alone(delivery: Delivery) -> Delivery:
    """The delivery with no headers but its history."""
    origin, first = origin_of(delivery), delivery.headers.get(FIRST_FAILURE)
    headers = {ATTEMPTS: failures_of(delivery), EXCHANGE: origin.exchange, ROUTING_KEY: origin.routing_key}
    headers |= {FIRST_FAILURE: first} if isinstance(first, datetime) else {}
    return replace(delivery, properties={**delivery.properties, "headers": headers})


@dataclass(frozen=True, slots=True)
class Death:
    """What is known of a dead letter.

    Attributes:
        reason: ours (EXHAUSTED, REJECTED) or the broker's: rejected, expired, maxlen, delivery_limit.
        queue: where it was before; None if unknown.
        attempts: how often it was tried; 0 if unknown.
        first: when it failed or died for the first time.
        error: why it failed the last time.
    """

    reason: str
    queue: str | None = None
    attempts: int = 0
    first: datetime | None = None
    error: str | None = None


def death_of(delivery: Delivery) -> Death:
    """From mqtool's own headers, else from the broker's."""
    headers = delivery.headers
    if REASON in headers:
        first = headers.get(FIRST_FAILURE)
        return Death(
            str(headers[REASON]),
            _name(headers.get(QUEUE)),
            failures_of(delivery),
            first if isinstance(first, datetime) else None,
            str(headers.get(LAST_ERROR) or "") or None,
        )
    deaths = headers.get("x-death")
    entries = [entry for entry in deaths if isinstance(entry, dict)] if isinstance(deaths, list) else []
    if not entries:
        return Death("unknown")
    latest = entries[0]
    times = [entry["time"] for entry in entries if isinstance(entry.get("time"), datetime)]
    return Death(
        str(latest.get("reason", "unknown")),
        _name(latest.get("queue")),
        sum(_count(entry.get("count", 1)) for entry in entries if entry.get("reason") == "rejected"),
        min((time.replace(tzinfo=time.tzinfo or UTC) for time in times), default=None),
    )
