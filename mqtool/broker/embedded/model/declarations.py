"""Checks of declarations and of basic.consume, with RabbitMQ's rules and error messages."""

import re

from mqtool.broker.embedded.model.amqp_errors import (
    COMMAND_INVALID,
    INTERNAL_ERROR,
    NOT_IMPLEMENTED,
    ConnectionException,
    precondition_failed,
)
from mqtool.broker.embedded.model.exchange import (
    CONSISTENT_HASH,
    DELAYED,
    HASHED_PROPERTIES,
    HISTORY_LENGTH,
    RECENT_HISTORY,
    BrokerDestination,
    BrokerExchange,
    ExchangeDeclaration,
    types_of,
)
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import (
    INITIAL_OFFSET,
    OFFSET,
    QUEUE_ARGUMENTS,
    SUPPORTED,
    Check,
    QueueDeclaration,
    anything,
    boolean,
    initial_offset,
    integer,
)
from mqtool.codecs.field_tables import Table, Timestamp, Value, is_integer, type_name
from mqtool.duration import parse_interval

_LOCATOR = "x-queue-master-locator"
_INTEGER = re.compile(r"[+-]?[0-9]+")
#: The greatest weight of a binding to an x-consistent-hash exchange.
_MOST_WEIGHT = 10_000


def check_deprecated(profile: Profile, arguments: Table, *, durable: bool, exclusive: bool) -> None:
    """Raise ConnectionException 541 if a new queue uses a deprecated feature that this version of RabbitMQ refuses."""
    refused = None
    if not (durable or exclusive or profile.transient_queues):
        refused = "transient_nonexcl_queues"
    elif _LOCATOR in arguments and not profile.master_locator:
        refused = "queue_master_locator"
    if refused is not None:
        raise ConnectionException(
            INTERNAL_ERROR,
            f"Feature `{refused}` is deprecated.\nBy default, this feature is not permitted anymore.\nThe feature will "
            "be removed from a future major RabbitMQ version, regardless of the configuration; actual version to be "
            "determined.\nTo continue using this feature when it is not permitted by default, set the following "
            "parameter in your configuration:",
        )


#: The properties that quorum queues and streams cannot have, in the order of RabbitMQ's checks.
_REFUSED_IN_ORDER = {
    "quorum": ("non-durable", "auto-delete", "exclusive-owner"),
    "stream": ("auto-delete", "exclusive-owner", "non-durable"),
}

_MAX_SEGMENT_BYTES = 3_000_000_000


def check_queue(declared: QueueDeclaration, vhost: str, profile: Profile) -> None:
    """Check the declaration of a new queue, in the order of RabbitMQ's checks.

    Raises:
        ChannelException: 406, the declaration is not valid.
        ConnectionException: 541, the queue uses a deprecated feature that this version refuses.
    """
    where, arguments = f"queue '{declared.name}' in vhost '{vhost}'", declared.arguments
    exchange = arguments.get("x-dead-letter-exchange")
    if exchange is not None and not isinstance(exchange, str):
        kind = type_name(exchange)
        raise precondition_failed(f"invalid type '{kind}' for arg 'x-dead-letter-exchange' in {where}")
    kind = str(arguments.get("x-queue-type", "classic"))
    supported = SUPPORTED.get(kind, ("x-queue-type",))
    if profile.classic_locator:
        supported = (*supported, "x-queue-leader-locator")
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
    """Check the arguments that only some versions of RabbitMQ check."""
    version = arguments.get("x-queue-version")
    if isinstance(version, int) and version < profile.oldest_queue_version:
        what = f"unsupported queue version '{version}'"
        raise precondition_failed(f"invalid arg 'x-queue-version' for {where}: \"{what}\"")
    if profile.mirrors and arguments.get(_LOCATOR, "random") not in ("min-masters", "client-local", "random"):
        raise ConnectionException(INTERNAL_ERROR)  # RabbitMQ fails in the same way
    if profile.initial_offsets:
        _check_known(INITIAL_OFFSET, "stream", initial_offset, kind, where, arguments)
    if profile.delayed_retry:
        for argument in ("x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max"):
            _check_known(argument, "quorum", anything, kind, where, arguments)
        _check_known(TIMEOUT, "quorum", integer, kind, where, arguments)
        _check_known(FILTER_SIZE, "stream", integer, kind, where, arguments)
    if kind == "stream" and profile.speaks_amqp10 and arguments.get(FILTER_SIZE, 16) not in range(16, 256):
        raise precondition_failed(f"Invalid value for {FILTER_SIZE}")


def _check_known(argument: str, only: str, check: Check, kind: str, where: str, arguments: Table) -> None:
    """Check an argument, if it is given, that only queues of the type `only` and their consumers may have."""
    if argument not in arguments:
        return
    if kind != only:
        raise precondition_failed(f"invalid arg '{argument}' for {where} of queue type rabbit_{kind}_queue")
    if (wrong := check(arguments[argument], arguments)) is not None:
        raise precondition_failed(f"invalid arg '{argument}' for {where}: {wrong}")


def _check_replicated(kind: str, where: str, declared: QueueDeclaration) -> None:
    """Check that a quorum queue or a stream has a name, is durable, and is neither auto-delete nor exclusive."""
    if declared.server_named:
        raise precondition_failed(f"Cannot declare a server-named queue for type rabbit_{kind}_queue")
    refused = {
        "non-durable": not declared.durable,
        "auto-delete": declared.auto_delete,
        "exclusive-owner": declared.owner is not None,
    }
    for what in _REFUSED_IN_ORDER[kind]:
        if refused[what]:
            raise precondition_failed(f"invalid property '{what}' for {where}")


#: The arguments of quorum queues that RabbitMQ knows from 4.3 on.
_LATER_QUORUM = (
    *("x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max"),
    *("x-consumer-timeout", "x-consumer-disconnected-timeout"),
)


def check_equivalent_queue(queue: BrokerQueue, declared: QueueDeclaration) -> None:
    """Raise ChannelException 406, naming the difference, if a repeated declaration does not match the queue."""
    later = _LATER_QUORUM if queue.kind == "quorum" and queue.profile.delayed_retry else ()
    where, arguments = f"queue '{queue.name}' in vhost '{queue.vhost}'", declared.arguments
    _equivalent("durable", where, declared.durable, queue.durable)
    _equivalent("auto_delete", where, declared.auto_delete, queue.auto_delete)
    if queue.profile.lists_type or queue.kind == "classic":
        # `x-queue-type: classic` is the default, so its presence in only one declaration makes no difference.
        arguments = {"x-queue-type": "classic", **arguments}
        if arguments["x-queue-type"] == "classic" and "x-queue-type" not in queue.arguments:
            del arguments["x-queue-type"]
    for argument in (*SUPPORTED[queue.kind], *later):
        equivalent_argument(argument, where, arguments, queue.arguments)
    if queue.kind == "stream":
        is_compared = {INITIAL_OFFSET: queue.profile.initial_offsets, FILTER_SIZE: queue.profile.delayed_retry}
        for argument in filter(is_compared.get, is_compared):
            equivalent_argument(argument, where, arguments, queue.arguments)


def _equivalent(name: str, where: str, received: Value, current: Value) -> None:
    if received != current:
        difference = f"received '{printed(received)}' but current is '{printed(current)}'"
        raise precondition_failed(f"inequivalent arg '{name}' for {where}: {difference}")


def equivalent_argument(name: str, where: str, received: Table, current: Table) -> None:
    """Raise ChannelException 406 if an argument differs in two declarations. Integer types may differ in size."""

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
    """Format a value as in RabbitMQ's error messages."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type_class(value: Value) -> str:
    if is_integer(value):
        return "int"
    return "float" if isinstance(value, float) else type_name(value)


def check_exchange_type(kind: str, profile: Profile) -> None:
    """Raise AmqpException if an exchange type is unknown: 503 in RabbitMQ 3.10, 406 in later versions."""
    if kind not in types_of(profile):
        what = f"{'unknown' if kind else 'invalid'} exchange type '{kind}'"
        is_channels = profile.unknown_type_closes == "channel"
        raise precondition_failed(what) if is_channels else ConnectionException(COMMAND_INVALID, what)


def check_exchange(declared: ExchangeDeclaration, vhost: str, profile: Profile) -> None:
    """Check the arguments of a new exchange. Raises AmqpException if they are not valid."""
    alternate = declared.arguments.get("alternate-exchange")
    if alternate is not None and not isinstance(alternate, str):
        where = f"exchange '{declared.name}' in vhost '{vhost}'"
        raise precondition_failed(f"invalid type '{type_name(alternate)}' for arg 'alternate-exchange' in {where}")
    if CONSISTENT_HASH in (declared.kind, declared.arguments.get("x-delayed-type")):
        _check_hash_arguments(declared.arguments)
    if RECENT_HISTORY in (declared.kind, declared.arguments.get("x-delayed-type")):
        _check_history_length(declared.arguments)
    if declared.kind != DELAYED:
        return
    routed_as = declared.arguments.get("x-delayed-type")
    if not isinstance(routed_as, str):
        raise precondition_failed("Invalid argument, 'x-delayed-type' must be an existing exchange type")
    if routed_as == DELAYED:
        raise precondition_failed("Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'")
    check_exchange_type(routed_as, profile)


def _check_hash_arguments(arguments: Table) -> None:
    """Raise AmqpException if the arguments of an x-consistent-hash exchange do not name one header or property."""
    header, by = arguments.get("hash-header"), arguments.get("hash-property")
    if header is not None and by is not None:
        raise precondition_failed("hash-header and hash-property are mutually exclusive")
    if not all(each is None or isinstance(each, str) for each in (header, by)):
        raise ConnectionException(INTERNAL_ERROR)  # RabbitMQ fails in the same way
    if isinstance(by, str) and by not in HASHED_PROPERTIES:
        raise precondition_failed(f"Unsupported property: {by}")


def _check_history_length(arguments: Table) -> None:
    """Raise ChannelException 406 if the length of an x-recent-history exchange is not a positive integer."""
    length = arguments.get(HISTORY_LENGTH, 1)
    if type_name(length) not in ("byte", "short", "signedint", "long") or int(str(length)) < 1:
        shown = f'<<"{length}">>' if isinstance(length, str) else "undefined" if length is None else printed(length)
        raise precondition_failed(f"Invalid argument {shown}, '{HISTORY_LENGTH}' must be a positive integer")


def check_equivalent_exchange(exchange: BrokerExchange, declared: ExchangeDeclaration, vhost: str) -> None:
    """Raise ChannelException 406, naming the difference, if a repeated declaration does not match the exchange."""
    where = f"exchange '{exchange.name}' in vhost '{vhost}'"
    _equivalent("type", where, declared.kind, exchange.kind)
    _equivalent("durable", where, declared.durable, exchange.durable)
    _equivalent("auto_delete", where, declared.auto_delete, exchange.auto_delete)
    _equivalent("internal", where, declared.internal, exchange.internal)
    equivalent_argument("alternate-exchange", where, declared.arguments, exchange.arguments)


def check_headers_binding(arguments: Table) -> None:
    """Raise ChannelException 406 if the `x-match` of a binding to a headers exchange is not valid."""
    mode = arguments.get("x-match", "all")
    if not isinstance(mode, str):
        raise precondition_failed(
            f"Invalid x-match field type {type_name(mode)} (value {printed(mode)}); expected longstr"
        )
    if mode not in ("all", "any", "all-with-x", "any-with-x"):
        raise precondition_failed(
            f'Invalid x-match field value <<"{mode}">>; expected all, any, all-with-x, or any-with-x'
        )


def check_local_random_binding(routing_key: str, destination: BrokerDestination) -> None:
    """Raise ChannelException 406 if an x-local-random exchange is bound with a key, or not to a classic queue."""
    if routing_key:
        raise precondition_failed(f"Non empty binding '{routing_key}' key not permitted")
    if not isinstance(destination, BrokerQueue):
        raise precondition_failed("Destination not found")
    if destination.kind != "classic":
        raise precondition_failed(f"Queue type rabbit_{destination.kind}_queue not valid for this exchange type")


def check_weight(routing_key: str) -> None:
    """Raise ChannelException 406 if the key of a binding to an x-consistent-hash exchange is not a weight."""
    if not _INTEGER.fullmatch(routing_key):
        shown = f'<<"{routing_key}">>' if routing_key else "<<>>"
        raise precondition_failed(f"The binding key must be an integer: {shown}")
    if int(routing_key) < 1:
        raise precondition_failed("The binding key must be greater than 0")
    if int(routing_key) > _MOST_WEIGHT:
        raise precondition_failed(f"The binding key must not exceed {_MOST_WEIGHT}")


CONSUMER_ARGUMENTS: dict[str, Check] = {
    "x-priority": lambda value, _: None if is_integer(value) else f'"expected integer, got {type_name(value)}"',
    "x-cancel-on-ha-failover": boolean,
}
#: Arguments that RabbitMQ knows from 4.3 on, and accepts for quorum queues or for streams only.
TIMEOUT, FILTER_SIZE = "x-consumer-timeout", "x-stream-filter-size-bytes"

_FILTERS = ("x-stream-filter", "x-stream-match-unfiltered")
_CONSUMERS_HAVE = {
    "classic": ("x-priority", "x-cancel-on-ha-failover"),
    "quorum": ("x-priority",),
    "stream": (OFFSET, *_FILTERS),
}


def check_consumer(queue: BrokerQueue, arguments: Table, *, prefetch: int, no_ack: bool) -> None:
    """Raise AmqpException if basic.consume has arguments, a prefetch count or no-ack that its queue does not allow."""
    where = f"queue '{queue.name}' in vhost '{queue.vhost}'"
    # Up to 3.13, mirrored queues had x-cancel-on-ha-failover.
    checks = CONSUMER_ARGUMENTS if queue.profile.mirrors else {"x-priority": CONSUMER_ARGUMENTS["x-priority"]}
    for argument in (*checks, OFFSET, *(_FILTERS if queue.profile.speaks_amqp10 else ())):
        if argument in arguments and argument not in _CONSUMERS_HAVE[queue.kind]:
            raise precondition_failed(f"invalid arg '{argument}' for {where} of queue type rabbit_{queue.kind}_queue")
    for argument, check in checks.items():
        if argument in arguments and (wrong := check(arguments[argument], arguments)) is not None:
            raise precondition_failed(f"invalid arg '{argument}' for {where}: {wrong}")
    if queue.profile.consumer_timeouts == "quorum":
        _check_known(TIMEOUT, "quorum", integer, queue.kind, where, arguments)
    if queue.kind == "stream":
        _check_stream_consumer(queue, where, arguments, prefetch=prefetch, no_ack=no_ack)


def _check_stream_consumer(queue: BrokerQueue, where: str, arguments: Table, *, prefetch: int, no_ack: bool) -> None:
    unset = unsupported = f"stream {where}"
    if not queue.profile.speaks_amqp10:  # earlier versions of RabbitMQ say it in other words
        unset, unsupported = f"'{where}'", f"stream queues {where}"
    if not prefetch:
        raise precondition_failed(f"consumer prefetch count is not set for {unset}")
    if no_ack:
        raise ConnectionException(NOT_IMPLEMENTED, f"automatic acknowledgement not supported by {unsupported}")
    value = arguments.get(OFFSET, "next")
    if _is_offset(value):
        return
    if not isinstance(value, str) or (queue.profile.api < "4.2" and not value[:1].isdecimal()):
        raise ConnectionException(INTERNAL_ERROR)  # RabbitMQ fails in the same way
    shown = f'"{value}"' if value else ""
    wrong = f"{{invalid_stream_offset_arg,{{longstr,<<{shown}>>}}}}"
    raise precondition_failed(f"invalid arg '{OFFSET}' for {where}: {wrong}")


def _is_offset(value: Value) -> bool:
    if isinstance(value, str):
        return value in ("first", "last", "next") or parse_interval(value) is not None
    return value in (b"first", b"last", b"next") or is_integer(value) or isinstance(value, Timestamp)
