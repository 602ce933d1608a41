"""Which arguments a declaration may have, and when two declarations agree (RabbitMQ's rules and words)."""

from collections.abc import Callable

from mqtool.broker.embedded.model.deprecated import check_deprecated
from mqtool.broker.embedded.model.errors import COMMAND_INVALID, ConnectionException, precondition_failed
from mqtool.broker.embedded.model.exchange import DELAYED, Exchange, ExchangeDeclaration, types_of
from mqtool.broker.embedded.model.options import interval
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue import MAX_PRIORITY, Queue, QueueDeclaration
from mqtool.codecs.field_tables import Table, Value, is_integer, type_name

# Ten years in milliseconds: Erlang's timers, and so RabbitMQ, take no more.
MAX_EXPIRY = 315_360_000_000

# Each check returns what is wrong, as RabbitMQ prints the Erlang term, or None.
Check = Callable[[Value, Table], str | None]


def _integer(value: Value) -> str | None:
    if not is_integer(value):
        return f'"expected integer, got {type_name(value)}"'
    assert isinstance(value, int)
    return f"{{value_negative,{value}}}" if value < 0 else None


def check_expiry(value: int) -> str | None:
    """Return what is wrong with a time to live in milliseconds; None if nothing is."""
    if value < 0:
        return f"{{value_negative,{value}}}"
    return f"{{value_too_large,{value}}}" if value > MAX_EXPIRY else None


def _count(value: Value, _: Table) -> str | None:
    return _integer(value)


def _ttl(value: Value, _: Table) -> str | None:
    if (wrong := _integer(value)) is not None:
        return wrong
    assert isinstance(value, int)
    return check_expiry(value)


def _expires(value: Value, table: Table) -> str | None:
    return "{value_zero,0}" if is_integer(value) and value == 0 else _ttl(value, table)


def _max_priority(value: Value, _: Table) -> str | None:
    if (wrong := _integer(value)) is not None:
        return wrong
    assert isinstance(value, int)
    return f"{{max_value_exceeded,{value}}}" if value > MAX_PRIORITY else None


def boolean(value: Value, _: Table) -> str | None:
    """Return what is wrong with a boolean; None if nothing is."""
    return None if isinstance(value, bool) else f"{{unacceptable_type,{type_name(value)}}}"


def _one_of(*allowed: str, otherwise: str) -> Check:
    def check(value: Value, _: Table) -> str | None:
        if not isinstance(value, str):
            return f"{{unacceptable_type,{type_name(value)}}}"
        return None if value in allowed else otherwise.replace("{}", value)

    return check


def _dead_letter_key(value: Value, table: Table) -> str | None:
    if not isinstance(value, str):
        return f"{{unacceptable_type,{type_name(value)}}}"
    return None if "x-dead-letter-exchange" in table else "routing_key_but_no_dlx_defined"


def _max_age(value: Value, _: Table) -> str | None:
    if not isinstance(value, str):
        return f"{{unacceptable_type,{type_name(value)}}}"
    return "invalid_max_age" if interval(value) is None else None


def _cluster_size(value: Value, _: Table) -> str | None:
    return "{value_zero,0}" if is_integer(value) and value == 0 else _integer(value)


def _queue_version(value: Value, _: Table) -> str | None:
    if (wrong := _integer(value)) is not None:
        return wrong
    assert isinstance(value, int)
    return None if value in (1, 2) else f"\"unsupported queue version '{value}'\""


def _anything(_value: Value, _table: Table) -> None:
    return None


QUEUE_ARGUMENTS: dict[str, Check] = {
    "x-queue-type": _one_of("classic", "quorum", "stream", otherwise="\"unsupported queue type '{}'\""),
    "x-expires": _expires,
    "x-message-ttl": _ttl,
    "x-dead-letter-exchange": _anything,
    "x-dead-letter-routing-key": _dead_letter_key,
    "x-dead-letter-strategy": _one_of("at-most-once", "at-least-once", otherwise="invalid_dlx_strategy"),
    "x-max-length": _count,
    "x-max-length-bytes": _count,
    "x-max-in-memory-length": _count,
    "x-max-in-memory-bytes": _count,
    "x-max-priority": _max_priority,
    "x-overflow": _one_of("drop-head", "reject-publish", "reject-publish-dlx", otherwise="invalid_overflow"),
    "x-queue-mode": _one_of("default", "lazy", otherwise="\"unsupported queue mode '{}'\""),
    "x-queue-version": _queue_version,
    "x-single-active-consumer": boolean,
    "x-quorum-initial-group-size": _cluster_size,
    "x-max-age": _max_age,
    "x-stream-max-segment-size-bytes": _count,
    "x-initial-cluster-size": _cluster_size,
    "x-queue-leader-locator": _one_of(
        "client-local", "balanced", "random", "least-leaders", otherwise="invalid_queue_locator_arg"
    ),
    "x-delivery-limit": _anything,
}
"""The arguments that RabbitMQ knows; it accepts any others unchecked."""

# What each type of queue supports, in the order in which RabbitMQ compares a second declaration.
_SUPPORTED = {
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

_REFUSED_IN_ORDER = {
    "quorum": ("non-durable", "auto-delete", "exclusive-owner"),
    "stream": ("auto-delete", "exclusive-owner", "non-durable"),
}

_MAX_SEGMENT_BYTES = 3_000_000_000


def check_queue(declared: QueueDeclaration, vhost: str, profile: Profile) -> None:
    """Check the declaration of a new queue.

    Raises:
        ChannelException: 406, with RabbitMQ's words for the first error.
        ConnectionException: 541, this version does not permit it any more.
    """
    where, arguments = f"queue '{declared.name}' in vhost '{vhost}'", declared.arguments
    exchange = arguments.get("x-dead-letter-exchange")
    if exchange is not None and not isinstance(exchange, str):
        kind = type_name(exchange)
        raise precondition_failed(f"invalid type '{kind}' for arg 'x-dead-letter-exchange' in {where}")
    kind = str(arguments.get("x-queue-type", "classic"))
    supported = _SUPPORTED.get(kind, ("x-queue-type",))
    for argument, check in QUEUE_ARGUMENTS.items():
        is_checked = argument != "x-queue-mode" or profile.checks_queue_mode
        if argument not in arguments or argument not in supported or not is_checked:
            continue
        if (wrong := check(arguments[argument], arguments)) is not None:
            raise precondition_failed(f"invalid arg '{argument}' for {where}: {wrong}")
    for argument in QUEUE_ARGUMENTS:
        if argument in arguments and argument not in supported:
            raise precondition_failed(f"invalid arg '{argument}' for {where} of queue type rabbit_{kind}_queue")
    if kind != "classic":
        _check_replicated(kind, where, declared)
    _check_by_version(kind, where, profile, arguments)
    check_deprecated(profile, arguments, durable=declared.durable, exclusive=declared.owner is not None)
    segment = arguments.get("x-stream-max-segment-size-bytes")
    if isinstance(segment, int) and segment > _MAX_SEGMENT_BYTES:
        raise precondition_failed("Exceeded max value for x-stream-max-segment-size-bytes")


def _check_by_version(kind: str, where: str, profile: Profile, arguments: Table) -> None:
    """Check what only some versions look at; in what a delay is worth, none finds an error."""
    version = arguments.get("x-queue-version")
    if isinstance(version, int) and version < profile.oldest_queue_version:
        what = f"unsupported queue version '{version}'"
        raise precondition_failed(f"invalid arg 'x-queue-version' for {where}: \"{what}\"")
    if not profile.delayed_retry:
        return
    for argument in ("x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max", "x-consumer-timeout"):
        if argument in arguments and kind != "quorum":
            raise precondition_failed(f"invalid arg '{argument}' for {where} of queue type rabbit_{kind}_queue")
    if (wrong := _integer(arguments.get("x-consumer-timeout", 0))) is not None:
        raise precondition_failed(f"invalid arg 'x-consumer-timeout' for {where}: {wrong}")


def _check_replicated(kind: str, where: str, declared: QueueDeclaration) -> None:
    """Check that a quorum queue or a stream is to be shared, and to last."""
    if declared.server_named:
        raise precondition_failed(f"Cannot declare a server-named queue for type rabbit_{kind}_queue")
    refused = {
        "non-durable": not declared.durable,
        "auto-delete": declared.auto_delete,
        "exclusive-owner": declared.owner is not None,
    }
    first = next((what for what in _REFUSED_IN_ORDER[kind] if refused[what]), None)
    if first is not None:
        raise precondition_failed(f"invalid property '{first}' for {where}")


def check_equivalent_queue(queue: Queue, declared: QueueDeclaration) -> None:
    """Check that a second declaration agrees with the queue.

    Raises:
        ChannelException: 406, naming the first difference.
    """
    where, arguments = f"queue '{queue.name}' in vhost '{queue.vhost}'", declared.arguments
    _equivalent("durable", where, declared.durable, queue.durable)
    _equivalent("auto_delete", where, declared.auto_delete, queue.auto_delete)
    if queue.profile.lists_type:
        arguments = {"x-queue-type": "classic", **arguments}
    elif queue.kind == "classic":
        # `x-queue-type: classic` is the default, so it makes no difference.
        arguments = {"x-queue-type": "classic", **arguments} if "x-queue-type" in queue.arguments else arguments
        if arguments.get("x-queue-type") == "classic" and "x-queue-type" not in queue.arguments:
            arguments = {name: value for name, value in arguments.items() if name != "x-queue-type"}
    for argument in _SUPPORTED[queue.kind]:
        equivalent_argument(argument, where, arguments, queue.arguments)


def _equivalent(name: str, where: str, received: object, current: object) -> None:
    def shown(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    if received != current:
        raise precondition_failed(
            f"inequivalent arg '{name}' for {where}: received '{shown(received)}' but current is '{shown(current)}'"
        )


def equivalent_argument(name: str, where: str, received: Table, current: Table) -> None:
    """Check that an argument is the same in two declarations; the width of integers does not matter.

    Raises:
        ChannelException: 406.
    """

    def described(value: Value) -> str:
        return f"the value '{printed(value)}' of type '{type_name(value)}'"

    if name not in received and name not in current:
        return
    if name not in current:
        difference = f"received {described(received[name])} but current is none"
    elif name not in received:
        difference = f"received none but current is {described(current[name])}"
    elif _type_class(received[name]) == _type_class(current[name]) and received[name] == current[name]:
        return
    else:
        difference = f"received '{printed(received[name])}' but current is '{printed(current[name])}'"
    raise precondition_failed(f"inequivalent arg '{name}' for {where}: {difference}")


def printed(value: Value) -> str:
    """Return a value as RabbitMQ prints it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type_class(value: Value) -> str:
    if is_integer(value):
        return "int"
    return "float" if isinstance(value, float) else type_name(value)


def check_exchange_type(kind: str, profile: Profile) -> None:
    """Check the type in an exchange.declare.

    Raises:
        ConnectionException: 503, unknown; since RabbitMQ 4.0 it is a ChannelException, 406.
    """
    if kind not in types_of(profile):
        what = f"{'unknown' if kind else 'invalid'} exchange type '{kind}'"
        is_channels = profile.unknown_type_closes == "channel"
        raise precondition_failed(what) if is_channels else ConnectionException(COMMAND_INVALID, what)


def check_exchange(declared: ExchangeDeclaration, vhost: str, profile: Profile) -> None:
    """Check the declaration of a new exchange.

    Raises:
        ChannelException: 406.
        ConnectionException: 503 when `x-delayed-type` names no exchange type.
    """
    alternate = declared.arguments.get("alternate-exchange")
    if alternate is not None and not isinstance(alternate, str):
        where = f"exchange '{declared.name}' in vhost '{vhost}'"
        raise precondition_failed(f"invalid type '{type_name(alternate)}' for arg 'alternate-exchange' in {where}")
    if declared.kind != DELAYED:
        return
    routed_as = declared.arguments.get("x-delayed-type")
    if not isinstance(routed_as, str):
        raise precondition_failed("Invalid argument, 'x-delayed-type' must be an existing exchange type")
    if routed_as == DELAYED:
        raise precondition_failed("Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'")
    check_exchange_type(routed_as, profile)


def check_equivalent_exchange(exchange: Exchange, declared: ExchangeDeclaration, vhost: str) -> None:
    """Check that a second declaration agrees with the exchange.

    Raises:
        ChannelException: 406, naming the first difference.
    """
    where = f"exchange '{exchange.name}' in vhost '{vhost}'"
    _equivalent("type", where, declared.kind, exchange.kind)
    _equivalent("durable", where, declared.durable, exchange.durable)
    _equivalent("auto_delete", where, declared.auto_delete, exchange.auto_delete)
    _equivalent("internal", where, declared.internal, exchange.internal)
    equivalent_argument("alternate-exchange", where, declared.arguments, exchange.arguments)


def check_headers_binding(arguments: Table) -> None:
    """Check the arguments of a binding to a headers exchange.

    Raises:
        ChannelException: 406 for an invalid `x-match`.
    """
    mode = arguments.get("x-match", "all")
    if not isinstance(mode, str):
        raise precondition_failed(
            f"Invalid x-match field type {type_name(mode)} (value {printed(mode)}); expected longstr"
        )
    if mode not in ("all", "any", "all-with-x", "any-with-x"):
        raise precondition_failed(
            f'Invalid x-match field value <<"{mode}">>; expected all, any, all-with-x, or any-with-x'
        )
