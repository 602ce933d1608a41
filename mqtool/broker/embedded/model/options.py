"""What the arguments of a queue ask for, and the policies that apply to it."""

import re
from dataclasses import dataclass

from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Profile
from mqtool.broker.embedded.model.retries import Retry
from mqtool.codecs.field_tables import Table, Value

OFFSET = "x-stream-offset"
"""Where a consumer of a stream begins, and a header of what it gets."""

NO_POLICY: Table = {}

_INTERVAL = re.compile(r"0*([1-9][0-9]*)([YMDhms])")
_SECONDS = {"Y": 365 * 86_400, "M": 30 * 86_400, "D": 86_400, "h": 3_600, "m": 60, "s": 1}


def interval(text: str) -> int | None:
    """Return the milliseconds in an interval such as 7D or 5m; None if it is not one."""
    found = _INTERVAL.fullmatch(text)
    return None if found is None else int(found[1]) * _SECONDS[found[2]] * 1000


@dataclass
class Options:
    """The settings of a queue; times in milliseconds, sizes in bytes, None for no limit."""

    message_ttl: int | None = None
    expires: int | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: str = "drop-head"
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    max_priority: int | None = None
    single_active: bool = False
    delivery_limit: int | None = None
    max_age: int | None = None
    segment_bytes: int | None = None
    at_least_once: bool = False
    retry: Retry | None = None

    @classmethod
    def of(cls, arguments: Table, policy: Table = NO_POLICY, profile: Profile = PROFILES[DEFAULT]) -> "Options":
        """Read them from arguments and a policy that have been validated.

        Of two limits the smaller one holds; of anything else the argument.
        """

        def integer(name: str) -> int | None:
            values = [value for value in (arguments.get(f"x-{name}"), policy.get(name)) if isinstance(value, int)]
            return min(map(int, values), default=None)

        def string(name: str) -> str | None:
            value = arguments.get(f"x-{name}", policy.get(name))
            return value if isinstance(value, str) else None

        ages = [interval(str(value)) for value in (arguments.get("x-max-age"), policy.get("max-age")) if value]
        return cls(
            message_ttl=integer("message-ttl"),
            expires=integer("expires"),
            max_length=integer("max-length"),
            max_length_bytes=integer("max-length-bytes"),
            overflow=string("overflow") or "drop-head",
            dead_letter_exchange=string("dead-letter-exchange"),
            dead_letter_routing_key=string("dead-letter-routing-key"),
            max_priority=integer("max-priority"),
            single_active=arguments.get("x-single-active-consumer") is True,
            delivery_limit=_delivery_limit(arguments.get("x-delivery-limit"), policy.get("delivery-limit"), profile),
            max_age=min((age for age in ages if age is not None), default=None),
            segment_bytes=integer("stream-max-segment-size-bytes"),
            # RabbitMQ falls back to at-most-once with any other overflow.
            at_least_once=string("dead-letter-strategy") == "at-least-once"
            and string("overflow") == "reject-publish"
            and string("dead-letter-exchange") is not None,
            retry=_retry(
                policy.get("delayed-retry-type", arguments.get("x-delayed-retry-type")),
                integer("delayed-retry-min"),
                integer("delayed-retry-max"),
            )
            if profile.delayed_retry
            else None,
        )

    @property
    def limited(self) -> bool:
        """Whether messages can be too many."""
        return self.max_length is not None or self.max_length_bytes is not None

    def exceeded(self, messages: int, size: int) -> bool:
        """Whether this many ready messages, with bodies of this size together, are too many."""
        return (self.max_length is not None and messages > self.max_length) or (
            self.max_length_bytes is not None and size > self.max_length_bytes
        )

    def time_to_live(self, expiration: str | None) -> int | None:
        """Return the shorter of the queue's time to live and a message's own."""
        if expiration is None:
            return self.message_ttl
        return int(expiration) if self.message_ttl is None else min(self.message_ttl, int(expiration))


def _retry(which: Value, least: int | None, most: int | None) -> Retry | None:
    """What is held back after it was returned; nothing if it does not say for how long, or makes no sense."""
    if which not in ("all", "failed", "returned") or least is None or least <= 0:
        return None
    return Retry(str(which), least, most if most is not None and most > 0 else least)


def _delivery_limit(argument: Value, policy: Value, profile: Profile) -> int | None:
    """Return the smaller limit; where there is a default, what is negative means none, and is preferred."""
    limits = [int(value) for value in (argument, policy) if isinstance(value, int)]
    if not limits:
        return profile.delivery_limit
    if profile.delivery_limit is None or min(limits) >= 0:
        return min(limits)
    return max(limits) if max(limits) >= 0 else None
