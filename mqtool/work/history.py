"""Headers that record a failed message's history: how many times it failed, why, and which queue it came from.

mqtool publishes a failed message to another queue, with additional headers. RabbitMQ's x-death has fewer details, and
from version 4.0 on, it starts again when a client republishes a dead letter. So mqtool counts attempts and redrives in
its own headers, and x-death shows only what the broker has done since. https://www.rabbitmq.com/docs/dlx#effects

Do not trust these headers: any publisher can set them, and RabbitMQ before 4.0 delivers a publisher's x-death. Nothing
in a message shows whether the broker has dead-lettered it. So the names in these headers are claims (mqtool/claims.py).
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeGuard

from mqtool.claims import Claimed
from mqtool.delays.destinations import derived_name
from mqtool.delays.wait_queues import is_retry_queue
from mqtool.message import Delivery

#: Number of failed attempts.
ATTEMPTS = "mqtool-attempts"
#: Why the last attempt failed, in one line.
LAST_ERROR = "mqtool-last-error"
#: Why the message was dead-lettered: EXHAUSTED or REJECTED.
REASON = "mqtool-reason"
#: Time of the first failure.
FIRST_FAILURE = "mqtool-first-failure"
#: How many times the message was moved back from a dead-letter queue.
RETURNS = "mqtool-redrives"
#: The queue from which the message was consumed when it failed; the message's original exchange and routing key.
QUEUE, EXCHANGE, ROUTING_KEY = "mqtool-queue", "mqtool-exchange", "mqtool-routing-key"
#: The header of a message that `queue convert` holds (work/held_messages.py); its name once nothing proves it any more.
HELD, ONCE_HELD = "mqtool-convert", "mqtool-claimed"

#: Upper bound for counts in headers.
_MOST = 2**31 - 2
#: The number of values that the count of returns can have.
_RETURNS_MODULUS = _MOST + 1

EXHAUSTED, REJECTED, UNKNOWN = "retries exhausted", "rejected", "unknown"
#: The reasons that a dead letter can have: RabbitMQ's, then mqtool's.
REASONS = (REJECTED, "expired", "maxlen", "delivery_limit", EXHAUSTED, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Origin:
    """The exchange and routing key with which a message was first published."""

    exchange: str
    routing_key: str


def attempt_of(delivery: Delivery) -> int:
    """Return the number of the current attempt, counted from 1."""
    return failures_of(delivery) + 1


def failures_of(delivery: Delivery) -> int:
    """Return the number of failed attempts so far; 0 if the header is missing or not a number."""
    return _count(delivery.headers.get(ATTEMPTS))


def returns_of(delivery: Delivery) -> int:
    """Return how many times the message was moved back from a dead-letter queue.

    A redrive increments a header. `mqtool move` does not, but keeps the header REASON, which adds one to the count.
    After the largest number, the count starts again at 0: a publisher may have set the header.
    """
    return (_count(delivery.headers.get(RETURNS)) + (REASON in delivery.headers)) % _RETURNS_MODULUS


def next_return(delivery: Delivery) -> int:
    """Return the value of the header RETURNS for a dead letter that is moved back."""
    return (death_of(delivery).redrives + 1) % _RETURNS_MODULUS


def is_moved_back_since(returns: int, dead: int) -> bool:
    """True if a message with this count was moved back later than a dead letter that had the count `dead`.

    As the count starts again after the largest number, one that is larger by more than half of this number is earlier.
    """
    return 0 < (returns - dead) % _RETURNS_MODULUS <= _RETURNS_MODULUS // 2


def origin_of(delivery: Delivery) -> Origin:
    """Return the exchange and routing key with which the message was first published, before any retry or redrive.

    Headers name them. Any publisher can set these headers, so they count only if mqtool has published the message to
    its queue: the broker says that it came through the default exchange. Anyone who may write to the default exchange
    can still forge them.
    """
    if not is_published_again(delivery):
        return Origin(delivery.exchange, delivery.routing_key)
    exchange, routing_key = _name(delivery.headers.get(EXCHANGE)), _name(delivery.headers.get(ROUTING_KEY))
    return Origin(
        delivery.exchange if exchange is None else exchange,
        delivery.routing_key if routing_key is None else routing_key,
    )


def headers_with_origin(delivery: Delivery, to: str) -> dict[str, Any]:
    """Return a message's headers, to publish it to the queue `to`, where they would prove where it was first published.

    If they name an exchange and a routing key, these become what origin_of() returns. If the broker has dead-lettered
    the message, they are removed, because nothing then proves them. `queue convert` would believe the header HELD, so
    it gets another name unless it is proven. It is not removed, because it may describe what the body contains.
    """
    headers = dict(delivery.headers)
    if HELD in headers and not _is_held(delivery, to):
        headers[ONCE_HELD] = headers.pop(HELD)
    if EXCHANGE in headers or ROUTING_KEY in headers:
        for name in (EXCHANGE, ROUTING_KEY):
            headers.pop(name, None)
        if not _is_dead_letter(delivery):
            origin = origin_of(delivery)
            headers |= {EXCHANGE: origin.exchange, ROUTING_KEY: origin.routing_key}
    return headers


def _is_held(delivery: Delivery, to: str) -> bool:
    """True if the header HELD is proven, and the queue `to` may rely on it.

    A message in a holding queue may return to that queue, as `peek` makes it do, or go to the queue that is converted.
    For any other queue, it proves nothing: whoever may use the names of a conversion could have written it.
    """
    if not delivery.queue.removesuffix(".meanwhile").endswith(f".{HELD}"):
        return is_published_again(delivery)
    holders = (derived_name(to, HELD), derived_name(to, f"{HELD}.meanwhile"))
    is_ours = delivery.exchange.endswith(f".{HELD}.into") or is_published_again(delivery)
    return is_ours and delivery.queue in (to, *holders)


def is_published_again(delivery: Delivery) -> bool:
    """True if mqtool published the message to its queue: directly, or through a wait queue for a retry."""
    return delivery.exchange == "" and delivery.routing_key == delivery.queue and not _is_dead_letter(delivery)


def _is_dead_letter(delivery: Delivery) -> bool:
    """True if the broker has dead-lettered the message anywhere else than in its queue's own wait queues.

    The broker adds an entry to x-death when it dead-letters a message, so the newest entry shows where. mqtool
    publishes to these wait queues through the default exchange; somebody may have bound another exchange to them.
    """
    deaths = delivery.headers.get("x-death")
    if isinstance(deaths, bytes):  # cannot be decoded
        return True
    newest = deaths[0] if isinstance(deaths, list) and deaths else {}
    last = newest.get("queue", "") if isinstance(newest, dict) else ""
    return bool(last) and not (is_retry_queue(str(last), delivery.queue) and newest.get("exchange") == "")


def _name(value: object) -> str | None:
    """Return a header's value if it is valid as a name or a routing key, otherwise None."""
    return value if is_name(value) else None


def is_name(value: object) -> TypeGuard[str]:
    """True if a header's value is valid as a name or a routing key."""
    return isinstance(value, str) and len(value.encode("utf-8", "surrogateescape")) <= 255


def _claimed(value: object) -> Claimed[str] | None:
    name = _name(value)
    return None if name is None else Claimed(name)


def _count(value: object) -> int:
    """Return a header's value if it is a positive number, otherwise 0."""
    return min(value, _MOST) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def without_headers(delivery: Delivery) -> Delivery:
    """Return a copy of the delivery with only the headers for attempts, returns, the origin and the first failure."""
    origin, first = origin_of(delivery), delivery.headers.get(FIRST_FAILURE)
    headers = {ATTEMPTS: failures_of(delivery), EXCHANGE: origin.exchange, ROUTING_KEY: origin.routing_key}
    headers |= {FIRST_FAILURE: first} if isinstance(first, datetime) else {}
    # Without this count, `worker --deduplicate` would take the dead letter for a duplicate after the next redrive.
    headers |= {RETURNS: returns} if (returns := returns_of(delivery)) else {}
    return replace(delivery, properties={**delivery.properties, "headers": headers})


@dataclass(frozen=True, slots=True)
class Death:
    """Why and where a message was dead-lettered.

    Attributes:
        reason: one of REASONS, unless a publisher has written another into the headers.
        queue: the queue from which the message is said to have been dead-lettered; None if unknown.
        attempts: number of failed attempts; 0 if unknown.
        redrives: how many times the message had been moved back from a dead-letter queue before.
        first: time of the first failure or dead-lettering.
        error: why the last attempt failed.
    """

    reason: str
    queue: Claimed[str] | None = None
    attempts: int = 0
    first: datetime | None = None
    error: str | None = None
    redrives: int = 0


def death_of(delivery: Delivery) -> Death:
    """Read the reason and the queue from the newest entry of x-death; without x-death, from mqtool's headers."""
    headers = delivery.headers
    deaths = headers.get("x-death")
    entries = [entry for entry in deaths if isinstance(entry, dict)] if isinstance(deaths, list) else []
    if entries:
        newest = entries[0]
        times = [entry["time"] for entry in entries if isinstance(entry.get("time"), datetime)]
        first = min((time.replace(tzinfo=time.tzinfo or UTC) for time in times), default=None)
        rejected = sum(_count(entry.get("count", 1)) for entry in entries if entry.get("reason") == "rejected")
        reason, queue = str(newest.get("reason", UNKNOWN)), _claimed(newest.get("queue"))
        attempts = failures_of(delivery) + rejected
        return Death(reason, queue, attempts, first, redrives=returns_of(delivery))
    redrives = _count(headers.get(RETURNS))
    if REASON not in headers:
        return Death(UNKNOWN, redrives=redrives)
    first, error = headers.get(FIRST_FAILURE), str(headers.get(LAST_ERROR) or "") or None
    first = first if isinstance(first, datetime) else None
    return Death(str(headers[REASON]), _claimed(headers.get(QUEUE)), failures_of(delivery), first, error, redrives)
