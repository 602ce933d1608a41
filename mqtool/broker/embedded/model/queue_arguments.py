"""Queue arguments: the checks of their values, and the settings that result from arguments and policies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mqtool.broker.embedded.model.names import is_too_long
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Profile
from mqtool.codecs.field_tables import Table, Value, is_integer, type_name
from mqtool.duration import parse_interval

#: The name of the consumer argument for the offset to start at, and of the header with a delivered message's offset.
OFFSET = "x-stream-offset"

#: The argument of a stream for the offset of its first message, from RabbitMQ 4.4 on, and its maximum.
INITIAL_OFFSET = "x-stream-initial-offset"
MAX_INITIAL_OFFSET = 2**62 - 1

NO_POLICY: Table = {}


class Retry(NamedTuple):
    """The delayed retries of a quorum queue, from RabbitMQ 4.3 on (`x-delayed-retry-type`).

    Attributes:
        which: which requeued messages are delayed: `all`, `failed` (those counted against the delivery limit), or
            `returned` (the others).
        least, most: the first and the longest delay, in milliseconds.
    """

    which: str
    least: int
    most: int

    def delay(self, delivery_count: int, *, failed: bool) -> int | None:
        """Return the delay of a requeued message in milliseconds; None to requeue it immediately."""
        if self.which not in ("all", "failed" if failed else "returned"):
            return None
        return min(self.least * max(delivery_count, 1), self.most)


@dataclass
class Options:
    """The settings of a queue. Times are in milliseconds, sizes in bytes; None means no limit."""

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
    consumer_timeout: int | None = None

    @classmethod
    def of(cls, arguments: Table, policy: Table = NO_POLICY, profile: Profile = PROFILES[DEFAULT]) -> "Options":
        """Combine the arguments of a queue and the policies that apply, both of which must be valid.

        If both set a number, the smaller one is used. Otherwise arguments win, except for `delayed-retry-type`, and for
        `overflow` and (in 3.10) `expires` of quorum queues. Policies override any argument of a stream.
        """
        if arguments.get("x-queue-type") == "stream":
            arguments = {name: value for name, value in arguments.items() if name.removeprefix("x-") not in policy}
        is_quorum = arguments.get("x-queue-type") == "quorum"
        overflow = _overflow(arguments, policy, is_quorum=is_quorum)

        def integer(name: str) -> int | None:
            values = [value for value in (arguments.get(f"x-{name}"), policy.get(name)) if isinstance(value, int)]
            return min(map(int, values), default=None)

        def string(name: str) -> str | None:
            value = arguments.get(f"x-{name}", policy.get(name))
            return value if isinstance(value, str) else None

        return cls(
            # A policy can set any number, but the time at which a message expires must fit into 64 bits.
            message_ttl=None if (ttl := integer("message-ttl")) is None else min(ttl, MAX_EXPIRY),
            expires=int(expires)
            if is_quorum and profile.policy_expires and isinstance(expires := policy.get("expires"), int)
            else integer("expires"),
            max_length=integer("max-length"),
            max_length_bytes=integer("max-length-bytes"),
            overflow=overflow,
            dead_letter_exchange=string("dead-letter-exchange"),
            dead_letter_routing_key=string("dead-letter-routing-key"),
            max_priority=integer("max-priority"),
            single_active=arguments.get("x-single-active-consumer") is True,
            delivery_limit=_delivery_limit(arguments.get("x-delivery-limit"), policy.get("delivery-limit"), profile),
            max_age=parse_interval(string("max-age") or ""),
            segment_bytes=integer("stream-max-segment-size-bytes"),
            # RabbitMQ falls back to at-most-once with any other overflow.
            at_least_once=string("dead-letter-strategy") == "at-least-once"
            and overflow == "reject-publish"
            and string("dead-letter-exchange") is not None,
            retry=_retry(
                policy.get("delayed-retry-type", arguments.get("x-delayed-retry-type")),
                integer("delayed-retry-min"),
                integer("delayed-retry-max"),
            )
            if profile.delayed_retry
            else None,
            consumer_timeout=None if profile.consumer_timeouts == "broker" else integer("consumer-timeout"),
        )

    @property
    def limited(self) -> bool:
        """True if the queue has a maximum length, in messages or bytes."""
        return self.max_length is not None or self.max_length_bytes is not None

    def exceeded(self, messages: int, size: int) -> bool:
        """Return True if the number of ready messages, or the size of their bodies, exceeds the maximum length."""
        return (self.max_length is not None and messages > self.max_length) or (
            self.max_length_bytes is not None and size > self.max_length_bytes
        )

    def has_room(self, messages: int, size: int) -> bool:
        """Return True if neither exceeds 80 % of its maximum."""
        return not self.exceeded(-(-messages * 5 // 4), -(-size * 5 // 4))

    def time_to_live(self, expiration: str | None) -> int | None:
        """Return the time to live of a message: the shorter of its own expiration and the queue's."""
        if expiration is None:
            return self.message_ttl
        return int(expiration) if self.message_ttl is None else min(self.message_ttl, int(expiration))


def _retry(which: Value, least: int | None, most: int | None) -> Retry | None:
    """Return the settings for delayed retries. None (no delay) if they are incomplete or not valid."""
    if which not in ("all", "failed", "returned") or least is None or least <= 0:
        return None
    return Retry(str(which), least, most if most is not None and most > 0 else least)


def _overflow(arguments: Table, policy: Table, *, is_quorum: bool) -> str:
    """Return the overflow behaviour. Quorum queues prefer the policy's, and drop messages with `reject-publish-dlx`."""
    found = [arguments.get("x-overflow"), policy.get("overflow")]
    chosen = next((each for each in (reversed(found) if is_quorum else found) if isinstance(each, str)), "drop-head")
    return "drop-head" if is_quorum and chosen == "reject-publish-dlx" else chosen


def _delivery_limit(argument: Value, policy: Value, profile: Profile) -> int | None:
    """Return the lower of two delivery limits, or the profile's default if neither is set; None for no limit.

    In profiles with a default limit, a negative limit means unlimited.
    """
    limits = [int(value) for value in (argument, policy) if isinstance(value, int)]
    if not limits:
        return profile.delivery_limit
    if profile.delivery_limit is None or min(limits) >= 0:
        return min(limits)
    return max(limits) if max(limits) >= 0 else None


# Ten years in milliseconds, the maximum in RabbitMQ because of Erlang's timers.
MAX_EXPIRY = 315_360_000_000

MAX_PRIORITY = 255

#: Checks an argument, given its value and all arguments; returns an error in RabbitMQ's format, or None.
Check = Callable[[Value, Table], str | None]


def check_expiry(value: int) -> str | None:
    """Return an error if a time to live, in milliseconds, is not valid; otherwise None."""
    if value < 0:
        return f"{{value_negative,{value}}}"
    return f"{{value_too_large,{value}}}" if value > MAX_EXPIRY else None


def _number(wrong: Callable[[int], str | None] = lambda _: None) -> Check:
    """Return a check for non-negative integers. `wrong` gets the integer, and returns an error or None."""

    def check(value: Value, _: Table) -> str | None:
        if not is_integer(value):
            return f'"expected integer, got {type_name(value)}"'
        assert isinstance(value, int)
        return f"{{value_negative,{value}}}" if value < 0 else wrong(value)

    return check


def _text(wrong: Callable[[str, Table], str | None]) -> Check:
    """Return a check for strings. `wrong` gets the string and all arguments, and returns an error or None."""

    def check(value: Value, table: Table) -> str | None:
        return wrong(value, table) if isinstance(value, str) else f"{{unacceptable_type,{type_name(value)}}}"

    return check


def _one_of(*allowed: str, otherwise: str) -> Check:
    return _text(lambda value, _: None if value in allowed else otherwise.replace("{}", value))


def boolean(value: Value, _: Table) -> str | None:
    """Return an error if a value is not a boolean; otherwise None."""
    return None if isinstance(value, bool) else f"{{unacceptable_type,{type_name(value)}}}"


def anything(_value: Value, _table: Table) -> None:
    return None


integer = _number()
_positive = _number(lambda value: None if value else "{value_zero,0}")
_ttl = _number(check_expiry)
_expires = _number(lambda value: check_expiry(value) if value else "{value_zero,0}")
_priority = _number(lambda value: f"{{max_value_exceeded,{value}}}" if value > MAX_PRIORITY else None)
#: RabbitMQ's error text for an offset that is too large is not known.
initial_offset = _number(lambda value: f"{{value_too_large,{value}}}" if value > MAX_INITIAL_OFFSET else None)
_version = _number(lambda value: None if value in (1, 2) else f"\"unsupported queue version '{value}'\"")
_max_age = _text(lambda value, _: "invalid_max_age" if parse_interval(value) is None else None)


def _wrong_dead_letter_key(value: str, table: Table) -> str | None:
    if "x-dead-letter-exchange" not in table:
        return "routing_key_but_no_dlx_defined"
    # RabbitMQ accepts such a key, but then no client can be sent the messages that are dead-lettered with it.
    return "longer than 255 bytes" if is_too_long(value) else None


_dead_letter_key = _text(_wrong_dead_letter_key)

#: The checks of the arguments that RabbitMQ knows. RabbitMQ accepts any other argument without a check.
QUEUE_ARGUMENTS: dict[str, Check] = {
    "x-queue-type": _one_of("classic", "quorum", "stream", otherwise="\"unsupported queue type '{}'\""),
    "x-expires": _expires,
    "x-message-ttl": _ttl,
    "x-dead-letter-exchange": anything,
    "x-dead-letter-routing-key": _dead_letter_key,
    "x-dead-letter-strategy": _one_of("at-most-once", "at-least-once", otherwise="invalid_dlx_strategy"),
    "x-max-length": integer,
    "x-max-length-bytes": integer,
    "x-max-in-memory-length": integer,
    "x-max-in-memory-bytes": integer,
    "x-max-priority": _priority,
    "x-overflow": _one_of("drop-head", "reject-publish", "reject-publish-dlx", otherwise="invalid_overflow"),
    "x-queue-mode": _one_of("default", "lazy", otherwise="\"unsupported queue mode '{}'\""),
    "x-queue-version": _version,
    "x-single-active-consumer": boolean,
    "x-quorum-initial-group-size": _positive,
    "x-max-age": _max_age,
    "x-stream-max-segment-size-bytes": integer,
    "x-initial-cluster-size": _positive,
    "x-queue-leader-locator": _one_of(
        "client-local", "balanced", "random", "least-leaders", otherwise="invalid_queue_locator_arg"
    ),
    "x-delivery-limit": anything,
    "x-queue-master-locator": anything,
}

# The arguments of each queue type, in the order in which RabbitMQ compares a redeclaration.
SUPPORTED = {
    "classic": (
        "x-expires",
        "x-message-ttl",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-overflow",
        "x-queue-mode",
        "x-queue-version",
        "x-single-active-consumer",
        "x-queue-type",
        "x-queue-master-locator",
    ),
    "quorum": (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-expires",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-in-memory-length",
        "x-max-in-memory-bytes",
        "x-overflow",
        "x-single-active-consumer",
        "x-queue-type",
        "x-quorum-initial-group-size",
        "x-delivery-limit",
        "x-message-ttl",
        "x-queue-leader-locator",
    ),
    "stream": (
        "x-max-length-bytes",
        "x-queue-type",
        "x-max-age",
        "x-stream-max-segment-size-bytes",
        "x-initial-cluster-size",
        "x-queue-leader-locator",
    ),
}


class QueueDeclaration(NamedTuple):
    """The properties of a queue in a declaration. They may be invalid.

    Attributes:
        owner: the connection that declares an exclusive queue; None for a shared queue.
        server_named: True if the broker chose the name.
    """

    name: str
    arguments: Table
    durable: bool = True
    auto_delete: bool = False
    owner: object | None = None
    server_named: bool = False
