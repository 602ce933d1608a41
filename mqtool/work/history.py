"""The headers of failed messages: how often they failed, why, and where they came from.

mqtool publishes a failed message again to another queue, and adds headers of its own. RabbitMQ's x-death has fewer
details, and differs between versions. https://www.rabbitmq.com/docs/dlx#effects

Any publisher can set these headers. Only the newest entry of x-death is the broker's own, once it has dead-lettered the
message.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mqtool.message import Delivery

#: Failed attempts.
ATTEMPTS = "mqtool-attempts"
#: Why the last attempt failed, in one line.
LAST_ERROR = "mqtool-last-error"
#: Why it was dead-lettered: EXHAUSTED or REJECTED.
REASON = "mqtool-reason"
#: Time of the first failure.
FIRST_FAILURE = "mqtool-first-failure"
#: How often it was brought back from a dead-letter queue.
RETURNS = "mqtool-redrives"
#: The queue from which it was consumed when it failed; the exchange and routing key it was first published with.
QUEUE, EXCHANGE, ROUTING_KEY = "mqtool-queue", "mqtool-exchange", "mqtool-routing-key"

#: Upper bound for counts in headers.
_MOST = 2**31 - 2

EXHAUSTED, REJECTED = "retries exhausted", "rejected"


@dataclass(frozen=True, slots=True)
class Origin:
    """The exchange and routing key that a message was first published with."""

    exchange: str
    routing_key: str


def attempt_of(delivery: Delivery) -> int:
    """The number of this attempt, from 1."""
    return failures_of(delivery) + 1


def failures_of(delivery: Delivery) -> int:
    """Failed attempts so far; 0 if the header is missing or not a number."""
    return _count(delivery.headers.get(ATTEMPTS))


def returns_of(delivery: Delivery) -> int:
    """How often the message was brought back from a dead-letter queue.

    A message that was brought back with its headers, for example by `mqtool move`, still says why it was dead-lettered.
    """
    return _count(delivery.headers.get(RETURNS)) + (REASON in delivery.headers)


def origin_of(delivery: Delivery) -> Origin:
    """The exchange and routing key that the message was first published with, before any retry or redrive."""
    exchange, routing_key = _name(delivery.headers.get(EXCHANGE)), _name(delivery.headers.get(ROUTING_KEY))
    return Origin(
        delivery.exchange if exchange is None else exchange,
        delivery.routing_key if routing_key is None else routing_key,
    )


def _name(value: object) -> str | None:
    """A header's value if it can be a name or a routing key, else None."""
    return value if isinstance(value, str) and len(value.encode("utf-8", "surrogateescape")) <= 255 else None


def _count(value: object) -> int:
    """A header's value if it is a positive number, else 0."""
    return min(value, _MOST) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def alone(delivery: Delivery) -> Delivery:
    """The delivery without any headers but its history."""
    origin, first = origin_of(delivery), delivery.headers.get(FIRST_FAILURE)
    headers = {ATTEMPTS: failures_of(delivery), EXCHANGE: origin.exchange, ROUTING_KEY: origin.routing_key}
    headers |= {FIRST_FAILURE: first} if isinstance(first, datetime) else {}
    return replace(delivery, properties={**delivery.properties, "headers": headers})


@dataclass(frozen=True, slots=True)
class Death:
    """Why and where a message was dead-lettered.

    Attributes:
        reason: EXHAUSTED, REJECTED or the broker's: rejected, expired, maxlen, delivery_limit.
        queue: the queue that it was in before; None if unknown.
        attempts: failed attempts; 0 if unknown.
        first: time of the first failure or dead-lettering.
        error: why the last attempt failed.
        by_broker: the broker has written it, in x-death.
    """

    reason: str
    queue: str | None = None
    attempts: int = 0
    first: datetime | None = None
    error: str | None = None
    by_broker: bool = False


def death_of(delivery: Delivery) -> Death:
    """Read the newest entry of x-death, which is the broker's own; without x-death, read mqtool's headers."""
    headers = delivery.headers
    deaths = headers.get("x-death")
    entries = [entry for entry in deaths if isinstance(entry, dict)] if isinstance(deaths, list) else []
    if entries:
        times = [entry["time"] for entry in entries if isinstance(entry.get("time"), datetime)]
        return Death(
            str(entries[0].get("reason", "unknown")),
            _name(entries[0].get("queue")),
            sum(_count(entry.get("count", 1)) for entry in entries if entry.get("reason") == "rejected"),
            min((time.replace(tzinfo=time.tzinfo or UTC) for time in times), default=None),
            by_broker=True,
        )
    if REASON not in headers:
        return Death("unknown")
    first = headers.get(FIRST_FAILURE)
    return Death(
        str(headers[REASON]),
        _name(headers.get(QUEUE)),
        failures_of(delivery),
        first if isinstance(first, datetime) else None,
        str(headers.get(LAST_ERROR) or "") or None,
    )
