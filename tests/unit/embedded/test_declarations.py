"""Declarations of queues, exchanges, bindings and consumers: which ones each version refuses, and with which error."""

from collections.abc import Callable
from typing import Any

import pytest

from mqtool.broker.embedded.model.amqp_errors import AmqpException, ConnectionException
from mqtool.broker.embedded.model.declarations import FILTER_SIZE, check_consumer
from mqtool.broker.embedded.model.exchange import ExchangeDeclaration
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Like
from mqtool.broker.embedded.model.queue_arguments import MAX_EXPIRY, MAX_INITIAL_OFFSET, OFFSET, QueueDeclaration
from mqtool.broker.embedded.model.topology_operations import declare_exchange, declare_queue, exchange_of, queue_of
from mqtool.broker.embedded.model.virtual_host import VhostLabels, VirtualHost
from mqtool.codecs.field_tables import ByteArray, Float32, Int8, Int32, Int64, Table, Timestamp
from tests.unit.embedded.test_queue import FakeClock

QUORUM: Table = {"x-queue-type": "quorum"}
STREAM: Table = {"x-queue-type": "stream"}
INTEGER = '"expected integer, got longstr"'
#: The arguments that only quorum queues have, and those that only streams have.
OF_QUORUM = ("x-dead-letter-strategy", "x-max-in-memory-length", "x-max-in-memory-bytes", "x-quorum-initial-group-size")
OF_STREAMS = ("x-max-age", "x-stream-max-segment-size-bytes", "x-initial-cluster-size")


def vhost_like(like: Like) -> VirtualHost:
    return VirtualHost("v", FakeClock(), Ledger(), PROFILES[like])


def refusal(action: Callable[[], object]) -> str | None:
    """Return the code and the text with which the broker refuses an operation; None if it does not."""
    try:
        action()
    except AmqpException as error:
        what = "connection" if isinstance(error, ConnectionException) else "channel"
        return f"{what} {error.code}: {error.what}"
    return None


def declared(vhost: VirtualHost, arguments: Table, **properties: Any) -> str | None:
    """Declare the durable queue `q`; return the error, or None if the broker accepts it."""
    return refusal(lambda: declare_queue(vhost, QueueDeclaration("q", arguments, **properties)))


def of_type(name: str) -> Table:
    return QUORUM if name in OF_QUORUM else STREAM if name in OF_STREAMS else {}


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("x-queue-type", "round", "\"unsupported queue type 'round'\""),
        ("x-queue-type", Int32(1), "{unacceptable_type,signedint}"),
        ("x-expires", 0, "{value_zero,0}"),
        ("x-expires", -1, "{value_negative,-1}"),
        ("x-expires", MAX_EXPIRY + 1, f"{{value_too_large,{MAX_EXPIRY + 1}}}"),
        ("x-message-ttl", "1", INTEGER),
        ("x-message-ttl", True, '"expected integer, got bool"'),
        ("x-message-ttl", -1, "{value_negative,-1}"),
        ("x-message-ttl", MAX_EXPIRY + 1, f"{{value_too_large,{MAX_EXPIRY + 1}}}"),
        ("x-dead-letter-routing-key", "k", "routing_key_but_no_dlx_defined"),
        ("x-dead-letter-routing-key", Int32(1), "{unacceptable_type,signedint}"),
        ("x-dead-letter-strategy", "never", "invalid_dlx_strategy"),
        ("x-max-priority", 256, "{max_value_exceeded,256}"),
        ("x-overflow", "spill", "invalid_overflow"),
        ("x-queue-mode", "eager", "\"unsupported queue mode 'eager'\""),
        ("x-queue-version", 3, "\"unsupported queue version '3'\""),
        ("x-queue-version", 0, "\"unsupported queue version '0'\""),
        ("x-single-active-consumer", "true", "{unacceptable_type,longstr}"),
        ("x-quorum-initial-group-size", 0, "{value_zero,0}"),
        ("x-max-age", "5x", "invalid_max_age"),
        ("x-max-age", Int32(5), "{unacceptable_type,signedint}"),
        ("x-initial-cluster-size", 0, "{value_zero,0}"),
        ("x-queue-leader-locator", "here", "invalid_queue_locator_arg"),
        *((name, "1", INTEGER) for name in (
            "x-max-length", "x-max-length-bytes", "x-max-in-memory-length", "x-max-in-memory-bytes",
            "x-stream-max-segment-size-bytes",
        )),
    ],
)  # fmt: skip
def test_a_queue_whose_argument_has_an_invalid_value_is_refused(name: str, value: Any, wrong: str) -> None:
    """If an argument of a new queue has a value of the wrong type or out of range, the broker refuses the declaration
    with error 406. The error names the argument and the queue, and gives RabbitMQ's reason.
    """
    vhost = vhost_like(DEFAULT)
    expected = f"channel 406: invalid arg '{name}' for queue 'q' in vhost 'v': {wrong}"
    assert declared(vhost, {**of_type(name), name: value}) == expected
    assert vhost.queues == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("x-queue-type", kind) for kind in ("classic", "quorum", "stream")),
        *(("x-expires", value) for value in (1, MAX_EXPIRY)),
        *(("x-message-ttl", value) for value in (0, Int8(1), MAX_EXPIRY)),
        *(("x-dead-letter-strategy", value) for value in ("at-most-once", "at-least-once")),
        *(("x-max-priority", value) for value in (0, 255)),
        *(("x-overflow", value) for value in ("drop-head", "reject-publish", "reject-publish-dlx")),
        *(("x-queue-mode", value) for value in ("default", "lazy")),
        *(("x-queue-version", value) for value in (1, 2)),
        *(("x-single-active-consumer", value) for value in (True, False)),
        ("x-quorum-initial-group-size", 1),
        ("x-max-age", "7D"),
        ("x-initial-cluster-size", 1),
        ("x-stream-max-segment-size-bytes", 3_000_000_000),
        *(("x-queue-leader-locator", each) for each in ("client-local", "balanced", "random", "least-leaders")),
        *((name, 0) for name in ("x-max-length", "x-max-length-bytes", "x-max-in-memory-length")),
        ("x-dead-letter-exchange", "x"),
        ("x-of-my-own", ["anything"]),
    ],
)
def test_a_queue_whose_arguments_are_valid_is_declared(name: str, value: Any) -> None:
    """For each argument of a queue, the broker accepts the values that RabbitMQ accepts. An argument that RabbitMQ does
    not know can have any value.
    """
    vhost = vhost_like(DEFAULT)
    arguments = {**of_type(name), name: value}
    assert declared(vhost, arguments) is None
    assert vhost.queues["q"].arguments == {"x-queue-type": "classic", **arguments}


@pytest.mark.parametrize("key", ["", "k" * 255, "é" * 127, "k" * 256, "é" * 128])
def test_a_queue_whose_dead_letter_routing_key_is_over_255_bytes_is_refused(key: str) -> None:
    """If a queue's dead-letter routing key is longer than 255 bytes, the limit for any routing key, the broker
    refuses the declaration of the queue with error 406.
    """
    arguments: Table = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": key}
    wrong = "channel 406: invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost 'v': longer than 255 bytes"
    assert declared(vhost_like(DEFAULT), arguments) == (None if len(key.encode()) <= 255 else wrong)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("classic", each) for each in ("x-delivery-limit", *OF_QUORUM, *OF_STREAMS)),
        *(("quorum", each) for each in ("x-max-priority", "x-queue-mode", "x-queue-version", *OF_STREAMS)),
        *(("stream", each) for each in ("x-message-ttl", "x-max-length", "x-dead-letter-exchange", *OF_QUORUM)),
    ],
)
def test_an_argument_of_another_queue_type_is_refused(kind: str, name: str) -> None:
    """If a queue is declared with an argument that only other types of queues have, the broker refuses the
    declaration with error 406. The error text names the argument and the type of the queue. If another argument has
    an invalid value, the error text is about that value instead.
    """
    wrong = f"channel 406: invalid arg '{name}' for queue 'q' in vhost 'v' of queue type rabbit_{kind}_queue"
    assert declared(vhost_like(DEFAULT), {"x-queue-type": kind, name: "x"}) == wrong
    both: Table = {"x-queue-type": kind, name: "x", "x-max-length-bytes": -1}
    assert str(declared(vhost_like(DEFAULT), both)).endswith("{value_negative,-1}")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"x-dead-letter-exchange": Int32(1)},
         "invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'q' in vhost 'v'"),
        ({**STREAM, "x-stream-max-segment-size-bytes": 3_000_000_001},
         "Exceeded max value for x-stream-max-segment-size-bytes"),
    ],
)  # fmt: skip
def test_an_invalid_dead_letter_exchange_or_segment_size_gets_rabbitmqs_error_text(
    arguments: Table, wrong: str
) -> None:
    """If a queue's dead-letter exchange is not a string, or a stream's x-stream-max-segment-size-bytes is too large,
    the broker refuses the declaration with error 406 and the same error text as RabbitMQ. RabbitMQ words these two
    errors differently from those for other invalid arguments.
    """
    assert declared(vhost_like(DEFAULT), arguments) == f"channel 406: {wrong}"


@pytest.mark.parametrize(
    ("accepting", "refusing", "arguments", "wrong"),
    [
        (Like.V4_0, Like.V3_10, {"x-queue-leader-locator": "random"}, " of queue type rabbit_classic_queue"),
        (Like.V4_3, Like.V4_2, {"x-queue-mode": "eager"}, ": \"unsupported queue mode 'eager'\""),
        (Like.V4_2, Like.V4_3, {"x-queue-version": 1}, ": \"unsupported queue version '1'\""),
        (Like.V4_3, Like.V4_4, {"x-stream-initial-offset": 1}, " of queue type rabbit_classic_queue"),
        (Like.V4_3, Like.V4_4, {**QUORUM, "x-stream-initial-offset": 1}, " of queue type rabbit_quorum_queue"),
        (Like.V4_3, Like.V4_4, {**STREAM, "x-stream-initial-offset": "1"}, f": {INTEGER}"),
        (Like.V4_3, Like.V4_4, {**STREAM, "x-stream-initial-offset": MAX_INITIAL_OFFSET + 1},
         f": {{value_too_large,{MAX_INITIAL_OFFSET + 1}}}"),
        *((Like.V4_2, Like.V4_3, {**kind, f"x-delayed-retry-{name}": "x"}, f" of queue type rabbit_{type_}_queue")
          for name in ("type", "min", "max") for type_, kind in (("classic", {}), ("stream", STREAM))),
        (Like.V4_2, Like.V4_3, {"x-consumer-timeout": 1}, " of queue type rabbit_classic_queue"),
        (Like.V4_2, Like.V4_3, {**STREAM, "x-consumer-timeout": 1}, " of queue type rabbit_stream_queue"),
        (Like.V4_2, Like.V4_3, {**QUORUM, "x-consumer-timeout": -1}, ": {value_negative,-1}"),
    ],
    ids=str,
)  # fmt: skip
def test_some_arguments_are_refused_only_by_some_versions(
    accepting: Like, refusing: Like, arguments: Table, wrong: str
) -> None:
    """Some versions of RabbitMQ refuse arguments of queues that others accept. The embedded broker does the same as the
    version that it imitates. For example, x-queue-version 1 is refused from 4.3 on, and x-queue-mode `eager` up to 4.2.
    """
    assert declared(vhost_like(accepting), arguments) is None
    name = [*arguments][-1]
    assert declared(vhost_like(refusing), arguments) == (
        f"channel 406: invalid arg '{name}' for queue 'q' in vhost 'v'{wrong}"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-queue-version": 2},
        {**STREAM, "x-stream-initial-offset": MAX_INITIAL_OFFSET},
        {**QUORUM, "x-delayed-retry-type": "all", "x-delayed-retry-min": "x", "x-consumer-timeout": 0},
    ],
    ids=str,
)
def test_a_broker_that_imitates_4_4_accepts_valid_arguments_of_queues(arguments: Table) -> None:
    """A broker that imitates RabbitMQ 4.4 accepts valid values of the queue arguments x-queue-version,
    x-stream-initial-offset, x-delayed-retry-type and x-consumer-timeout. It does not check x-delayed-retry-min, which
    can even be a string.
    """
    assert declared(vhost_like(Like.V4_4), arguments) is None


@pytest.mark.parametrize(
    ("accepting", "refusing", "arguments", "properties", "feature"),
    [
        (Like.V4_3, Like.V4_3_5, {}, {"durable": False}, "transient_nonexcl_queues"),
        (Like.V4_2, Like.V4_3, {"x-queue-master-locator": "random"}, {}, "queue_master_locator"),
    ],
)
def test_a_deprecated_feature_is_refused_if_the_imitated_version_does_not_permit_it(
    accepting: Like, refusing: Like, arguments: Table, properties: Any, feature: str
) -> None:
    """If a new queue uses a deprecated feature that the imitated version of RabbitMQ does not permit, the broker
    closes the connection with error 541, and the error names the feature. One such feature is a transient queue that
    is not exclusive. A transient queue that is exclusive is accepted.
    """
    assert declared(vhost_like(accepting), arguments, **properties) is None
    assert declared(vhost_like(refusing), arguments, **properties) == (
        f"connection 541: Feature `{feature}` is deprecated.\nBy default, this feature is not permitted anymore.\n"
        "The feature will be removed from a future major RabbitMQ version, regardless of the configuration; actual "
        "version to be determined.\nTo continue using this feature when it is not permitted by default, set the "
        "following parameter in your configuration:"
    )
    assert declared(vhost_like(refusing), {}, durable=False, owner=object()) is None
    assert declared(vhost_like(refusing), {}) is None


@pytest.mark.parametrize(
    ("kind", "properties", "wrong"),
    [
        ("quorum", {"durable": False}, "non-durable"),
        ("quorum", {"auto_delete": True}, "auto-delete"),
        ("quorum", {"owner": object()}, "exclusive-owner"),
        ("quorum", {"durable": False, "auto_delete": True, "owner": object()}, "non-durable"),
        ("stream", {"durable": False}, "non-durable"),
        ("stream", {"auto_delete": True}, "auto-delete"),
        ("stream", {"owner": object()}, "exclusive-owner"),
        ("stream", {"durable": False, "auto_delete": True, "owner": object()}, "auto-delete"),
    ],
)
def test_a_transient_auto_delete_exclusive_or_server_named_quorum_queue_or_stream_is_refused(
    kind: str, properties: Any, wrong: str
) -> None:
    """If a quorum queue or a stream is declared as transient, auto-delete, exclusive or server-named, the broker
    refuses the declaration with error 406. The error names the property.
    """
    arguments: Table = {"x-queue-type": kind}
    expected = f"channel 406: invalid property '{wrong}' for queue 'q' in vhost 'v'"
    assert declared(vhost_like(DEFAULT), arguments, **properties) == expected
    unnamed = declared(vhost_like(DEFAULT), arguments, server_named=True, **properties)
    assert unnamed == f"channel 406: Cannot declare a server-named queue for type rabbit_{kind}_queue"
    assert declared(vhost_like(DEFAULT), {}, server_named=True, **properties) is None


TTL: Table = {"x-message-ttl": Int32(5)}


@pytest.mark.parametrize(
    ("like", "first", "again", "difference"),
    [
        (Like.V4_2, TTL, TTL, None),
        (Like.V4_2, TTL, {"x-message-ttl": Int64(5)}, None),
        (Like.V4_2, TTL, {"x-message-ttl": Int32(6)}, "'x-message-ttl': received '6' but current is '5'"),
        (Like.V4_2, TTL, {"x-message-ttl": "5"}, "'x-message-ttl': received '5' but current is '5'"),
        (Like.V4_2, TTL, {"x-message-ttl": Float32(5)}, "'x-message-ttl': received '5.0' but current is '5'"),
        (Like.V4_2, TTL, {},
         "'x-message-ttl': received none but current is the value '5' of type 'signedint'"),
        (Like.V4_2, {}, {"x-single-active-consumer": True},
         "'x-single-active-consumer': received the value 'true' of type 'bool' but current is none"),
        (Like.V4_2, {**STREAM, "x-max-age": "7D"}, {**STREAM, "x-max-age": "1D"},
         "'x-max-age': received '1D' but current is '7D'"),
        (Like.V4_2, {**QUORUM, "x-delivery-limit": 5.0}, {**QUORUM, "x-delivery-limit": Float32(5)}, None),
        (Like.V4_2, {**QUORUM, "x-delivery-limit": True}, {**QUORUM, "x-delivery-limit": Timestamp(1)},
         "'x-delivery-limit': received '1' but current is 'true'"),
        (Like.V4_2, {"x-of-my-own": 1}, {}, None),
        (Like.V4_2, {"x-message-ttl": Int32(5), "x-expires": Int32(5)}, {},
         "'x-expires': received none but current is the value '5' of type 'signedint'"),
        *((like, first, again, None) for like in (Like.V3_10, Like.V4_2)
          for first in ({}, {"x-queue-type": "classic"}) for again in ({}, {"x-queue-type": "classic"})),
        *((like, QUORUM, QUORUM, None) for like in (Like.V3_10, Like.V4_2)),
        (Like.V4_2, {}, QUORUM, "'x-queue-type': received 'quorum' but current is 'classic'"),
        (Like.V4_2, QUORUM, {}, "'x-queue-type': received 'classic' but current is 'quorum'"),
        (Like.V3_10, {}, QUORUM,
         "'x-queue-type': received the value 'quorum' of type 'longstr' but current is none"),
        (Like.V3_10, QUORUM, {},
         "'x-queue-type': received none but current is the value 'quorum' of type 'longstr'"),
        (Like.V3_10, {"x-queue-type": "classic"}, QUORUM,
         "'x-queue-type': received 'quorum' but current is 'classic'"),
        (Like.V3_10, {}, {"x-queue-type": "classic", **TTL},
         "'x-message-ttl': received the value '5' of type 'signedint' but current is none"),
        (Like.V3_10, {"x-queue-type": "classic"}, TTL,
         "'x-message-ttl': received the value '5' of type 'signedint' but current is none"),
        (Like.V4_4, {**STREAM, "x-stream-initial-offset": Int32(5)}, STREAM,
         "'x-stream-initial-offset': received none but current is the value '5' of type 'signedint'"),
        (Like.V4_4, {**STREAM, "x-stream-initial-offset": Int32(5)},
         {**STREAM, "x-stream-initial-offset": Int64(5)}, None),
        (Like.V4_3, {**STREAM, "x-stream-initial-offset": Int32(5)}, STREAM, None),
    ],
    ids=str,
)  # fmt: skip
def test_a_queue_that_is_declared_again_must_have_the_same_arguments(
    like: Like, first: Table, again: Table, difference: str | None
) -> None:
    """If an existing queue is declared again, the arguments that RabbitMQ knows must be the same. Otherwise, the
    broker refuses the declaration with error 406, and the error text names the first difference. Equal integers or
    equal floats count as the same even if their types have different sizes. A missing queue type counts as `classic`.
    """
    vhost = vhost_like(like)
    assert declared(vhost, first) is None
    before = {**vhost.queues["q"].arguments}
    refused = declared(vhost, again)
    assert refused == (
        None if difference is None else "channel 406: inequivalent arg " + difference.replace(
            ":", " for queue 'q' in vhost 'v':", 1
        )
    )  # fmt: skip
    assert vhost.queues["q"].arguments == before


@pytest.mark.parametrize(("name", "given"), [("durable", "true"), ("auto_delete", "false")])
def test_a_queue_that_is_declared_again_must_have_the_same_properties(name: str, given: str) -> None:
    """If an existing queue is declared again with another value of durable or auto-delete, the broker refuses the
    declaration with error 406, and the error gives both values.
    """
    vhost = vhost_like(DEFAULT)
    assert declared(vhost, {}) is None
    received = "false" if given == "true" else "true"
    assert declared(vhost, {}, **{name: given != "true"}) == (
        f"channel 406: inequivalent arg '{name}' for queue 'q' in vhost 'v': received '{received}' but current is "
        f"'{given}'"
    )


@pytest.mark.parametrize("owner", [None, object()])
def test_an_exclusive_queue_cannot_be_used_by_another_connection(owner: object) -> None:
    """If a client declares or uses an exclusive queue of another connection, the broker closes the channel with error
    405. It does the same if a client declares an existing queue as exclusive, but the queue is not exclusive. The
    connection that has declared an exclusive queue can use it and declare it again.
    """
    vhost, mine = vhost_like(DEFAULT), object()
    queue, is_new = declare_queue(vhost, QueueDeclaration("q", {}, owner=mine))
    assert is_new
    assert declare_queue(vhost, QueueDeclaration("q", {}, owner=mine)) == (queue, False)
    assert queue_of(vhost, "q", mine) is queue
    locked = (
        "channel 405: cannot obtain exclusive access to locked queue 'q' in vhost 'v'. It could be originally declared "
        "on another connection or the exclusive property value does not match that of the original declaration."
    )
    assert declared(vhost, {}, owner=owner) == locked
    assert refusal(lambda: queue_of(vhost, "q", owner)) == locked
    shared, _ = declare_queue(vhost, QueueDeclaration("shared", {}))
    assert queue_of(vhost, "shared", owner) is shared
    assert refusal(lambda: declare_queue(vhost, QueueDeclaration("shared", {}, owner=mine))) == locked.replace(
        "'q'", "'shared'"
    )


def test_using_a_queue_or_exchange_that_does_not_exist_closes_the_channel() -> None:
    """If a client uses a queue or an exchange that does not exist, the broker closes the channel with error 404. The
    error names what is missing, and the virtual host.
    """
    vhost = vhost_like(DEFAULT)
    assert exchange_of(vhost, "amq.topic") is vhost.exchanges["amq.topic"]
    assert refusal(lambda: exchange_of(vhost, "no")) == "channel 404: no exchange 'no' in vhost 'v'"
    assert refusal(lambda: queue_of(vhost, "no", None)) == "channel 404: no queue 'no' in vhost 'v'"


@pytest.mark.parametrize(
    ("default", "arguments", "properties", "kind"),
    [
        ("", {}, {}, "classic"),
        ("quorum", {}, {}, "quorum"),
        ("stream", {"x-max-age": "1D"}, {}, "stream"),
        ("quorum", {"x-queue-type": "classic"}, {}, "classic"),
        ("quorum", {}, {"durable": False}, "classic"),
        ("quorum", {}, {"auto_delete": True}, "classic"),
        ("quorum", {}, {"owner": object()}, "classic"),
        ("classic", {}, {"durable": False, "auto_delete": True, "owner": object()}, "classic"),
        ("classic", {"x-queue-type": "quorum"}, {}, "quorum"),
    ],
)
@pytest.mark.parametrize("like", [Like.V3_10, Like.V4_2])
def test_a_queue_without_a_type_gets_the_virtual_hosts_default_type(
    like: Like, default: str, arguments: Table, properties: Any, kind: str
) -> None:
    """A queue that is declared without a type gets the default type of its virtual host. If the queue is transient,
    auto-delete or exclusive, and the default type does not allow that, it becomes a classic queue. The queue can be
    declared again with the type that it got.
    """
    vhost = vhost_like(like)
    vhost.labels = VhostLabels(default_queue_type=default)
    for given in (arguments, {**arguments, "x-queue-type": kind}):
        assert declared(vhost, given, **properties) is None
        assert vhost.queues["q"].kind == kind
    is_listed = like != Like.V3_10 or kind != "classic" or default == "classic" or "x-queue-type" in arguments
    assert vhost.queues["q"].arguments == {**arguments, **({"x-queue-type": kind} if is_listed else {})}


def test_a_virtual_host_with_a_queue_limit_refuses_more_queues() -> None:
    """If a virtual host has reached its queue limit, the broker refuses a new queue with error 406. A queue that
    exists can still be declared again.
    """
    vhost = vhost_like(DEFAULT)
    vhost.limits["max-queues"] = 1
    assert [declared(vhost, {}) for _ in range(2)] == [None, None]
    refused = refusal(lambda: declare_queue(vhost, QueueDeclaration("r", {})))
    assert refused == "channel 406: cannot declare queue 'r': queue limit in vhost 'v' (1) is reached"


def exchange(
    vhost: VirtualHost, kind: str = "direct", arguments: Table | None = None, **properties: bool
) -> str | None:
    """Declare the durable exchange `x`; return the error, or None if the broker accepts it."""
    flags = {"durable": True, "auto_delete": False, "internal": False, **properties}
    return refusal(lambda: declare_exchange(vhost, ExchangeDeclaration("x", kind, arguments=arguments or {}, **flags)))


@pytest.mark.parametrize(
    ("kind", "arguments", "wrong"),
    [
        ("direct", {"alternate-exchange": Int32(1)},
         "invalid type 'signedint' for arg 'alternate-exchange' in exchange 'x' in vhost 'v'"),
        ("direct", {"alternate-exchange": "y", "x-delayed-type": "round"}, None),
        ("x-delayed-message", {}, "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ("x-delayed-message", {"x-delayed-type": Int32(1)},
         "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ("x-delayed-message", {"x-delayed-type": "x-delayed-message"},
         "Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'"),
        ("x-delayed-message", {"x-delayed-type": "round"}, "unknown exchange type 'round'"),
        ("x-delayed-message", {"x-delayed-type": ""}, "invalid exchange type ''"),
        ("x-delayed-message", {"x-delayed-type": "topic", "alternate-exchange": "y"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_an_exchange_whose_argument_is_invalid_is_refused(kind: str, arguments: Table, wrong: str | None) -> None:
    """The broker refuses an exchange with error 406 if its alternate exchange is not a string. It also refuses an
    x-delayed-message exchange whose x-delayed-type is missing, unknown or x-delayed-message itself. A broker that
    imitates RabbitMQ 3.10 closes the connection with error 503 if the x-delayed-type is unknown.
    """
    assert exchange(vhost_like(DEFAULT), kind, arguments) == (wrong and f"channel 406: {wrong}")
    if wrong is not None and "exchange type '" in wrong:
        assert exchange(vhost_like(Like.V3_10), kind, arguments) == f"connection 503: {wrong}"


@pytest.mark.parametrize(
    ("kind", "arguments", "properties", "difference"),
    [
        ("direct", {"alternate-exchange": "y", "own": 1}, {}, None),
        ("fanout", {}, {}, "'type': received 'fanout' but current is 'direct'"),
        ("direct", {}, {"durable": False}, "'durable': received 'false' but current is 'true'"),
        ("direct", {}, {"auto_delete": True}, "'auto_delete': received 'true' but current is 'false'"),
        ("direct", {}, {"internal": True}, "'internal': received 'true' but current is 'false'"),
        ("direct", {}, {},
         "'alternate-exchange': received none but current is the value 'y' of type 'longstr'"),
        ("direct", {"alternate-exchange": "z"}, {}, "'alternate-exchange': received 'z' but current is 'y'"),
    ],
    ids=str,
)  # fmt: skip
def test_an_exchange_that_is_declared_again_must_have_the_same_properties(
    kind: str, arguments: Table, properties: Any, difference: str | None
) -> None:
    """If an existing exchange is declared again with another type, another alternate exchange, or another value of a
    property such as durable, the broker refuses the declaration with error 406 and names the difference.
    """
    vhost = vhost_like(DEFAULT)
    assert exchange(vhost, arguments={"alternate-exchange": "y"}) is None
    expected = difference and difference.replace(":", " for exchange 'x' in vhost 'v':", 1)
    assert exchange(vhost, kind, arguments, **properties) == (expected and f"channel 406: inequivalent arg {expected}")


@pytest.mark.parametrize(
    ("mode", "wrong"),
    [
        *((mode, None) for mode in ("all", "any", "all-with-x", "any-with-x")),
        ("most", 'value <<"most">>; expected all, any, all-with-x, or any-with-x'),
        (True, "type bool (value true); expected longstr"),
        (Int32(1), "type signedint (value 1); expected longstr"),
    ],
)
def test_a_binding_to_a_headers_exchange_with_an_invalid_x_match_is_refused(mode: Any, wrong: str | None) -> None:
    """If a binding to a headers exchange has an x-match other than all, any, all-with-x and any-with-x, the broker
    refuses the binding with error 406. A binding without x-match is accepted.
    """
    vhost = vhost_like(DEFAULT)
    declared(vhost, {})
    source, queue = vhost.exchanges["amq.headers"], vhost.queues["q"]
    assert refusal(lambda: vhost.bind(source, queue, "", {})) is None
    refused = refusal(lambda: vhost.bind(source, queue, "", {"x-match": mode}))
    assert refused == (wrong and f"channel 406: Invalid x-match field {wrong}")


@pytest.mark.parametrize(
    ("key", "destination", "wrong"),
    [
        ("", "classic", None),
        ("k", "classic", "Non empty binding 'k' key not permitted"),
        ("", "quorum", "Queue type rabbit_quorum_queue not valid for this exchange type"),
        ("", "amq.direct", "Destination not found"),
    ],
)
def test_an_x_local_random_exchange_accepts_only_classic_queues_and_empty_routing_keys(
    key: str, destination: str, wrong: str | None
) -> None:
    """If a client binds something other than a classic queue to an x-local-random exchange, or binds a queue with a
    routing key that is not empty, the broker refuses the binding with error 406.
    """
    vhost = vhost_like(DEFAULT)
    exchange(vhost, "x-local-random")
    to: Any = vhost.exchanges.get(destination)
    if to is None:
        declared(vhost, {"x-queue-type": destination})
        to = vhost.queues["q"]
    assert refusal(lambda: vhost.bind(vhost.exchanges["x"], to, key, {})) == (wrong and f"channel 406: {wrong}")


@pytest.mark.parametrize(
    ("like", "kind", "arguments", "wrong"),
    [
        *((like, "stream", {FILTER_SIZE: size}, None) for like in (Like.V4_0, Like.V4_3) for size in (16, 255)),
        *((like, "stream", {FILTER_SIZE: size}, f"channel 406: Invalid value for {FILTER_SIZE}")
          for like in (Like.V4_0, Like.V4_3) for size in (0, 15, 256)),
        (Like.V3_10, "stream", {FILTER_SIZE: 256}, None),
        (Like.V4_0, "classic", {FILTER_SIZE: 256}, None),
        (Like.V4_3, "classic", {FILTER_SIZE: 16},
         f"channel 406: invalid arg '{FILTER_SIZE}' for queue 'q' in vhost 'v' of queue type rabbit_classic_queue"),
        (Like.V3_10, "classic", {"x-queue-master-locator": "random"}, None),
        (Like.V3_10, "classic", {"x-queue-master-locator": "bogus"}, "connection 541: "),
        (Like.V4_0, "classic", {"x-queue-master-locator": "bogus"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_only_some_versions_check(like: Like, kind: str, arguments: Table, wrong: str | None) -> None:
    """The size of a stream's filters is checked from RabbitMQ 4.0 on, and refused for other queues from 4.3 on. The
    master locator of a classic queue is checked up to RabbitMQ 3.13.
    """
    assert declared(vhost_like(like), {"x-queue-type": kind, **arguments}) == wrong


ARG, FILTER = "channel 406: invalid arg '{}' for queue 'q' in vhost 'v'", "x-stream-filter"


@pytest.mark.parametrize(
    ("like", "kind", "arguments", "wrong"),
    [
        (Like.V4_2, "classic", {}, None),
        (Like.V3_10, "classic", {"x-priority": 5, "x-cancel-on-ha-failover": True}, None),
        (Like.V4_2, "classic", {"x-priority": "5"}, f": {INTEGER}"),
        (Like.V3_10, "classic", {"x-cancel-on-ha-failover": "yes"}, ": {unacceptable_type,longstr}"),
        *((Like.V4_2, kind, {name: "first"}, f" of queue type rabbit_{kind}_queue") for kind in ("classic", "quorum")
          for name in (OFFSET, FILTER, "x-stream-match-unfiltered")),
        (Like.V3_10, "classic", {FILTER: "a", "x-stream-match-unfiltered": True}, None),
        (Like.V4_2, "quorum", {"x-priority": 5}, None),
        (Like.V4_0, "quorum", {"x-cancel-on-ha-failover": "yes"}, None),
        (Like.V3_10, "quorum", {"x-cancel-on-ha-failover": True}, " of queue type rabbit_quorum_queue"),
        (Like.V4_2, "stream", {"x-priority": 5}, " of queue type rabbit_stream_queue"),
        (Like.V4_2, "stream", {FILTER: "a", "x-stream-match-unfiltered": True}, None),
        *((Like.V4_2, "stream", {OFFSET: value}, None)
          for value in ("first", "last", "next", "5m", Int64(5), Timestamp(5), ByteArray(b"last"))),
        (Like.V4_2, "stream", {OFFSET: "5x"}, ': {invalid_stream_offset_arg,{longstr,<<"5x">>}}'),
        (Like.V4_2, "stream", {OFFSET: ""}, ": {invalid_stream_offset_arg,{longstr,<<>>}}"),
        (Like.V4_0, "stream", {OFFSET: "5x"}, ': {invalid_stream_offset_arg,{longstr,<<"5x">>}}'),
        (Like.V4_2, "classic", {"x-consumer-timeout": -1}, None),
        (Like.V4_3, "quorum", {"x-consumer-timeout": 5}, None),
        (Like.V4_3, "quorum", {"x-consumer-timeout": -1}, ": {value_negative,-1}"),
        (Like.V4_3, "classic", {"x-consumer-timeout": 5}, " of queue type rabbit_classic_queue"),
        (Like.V4_3, "stream", {"x-consumer-timeout": 5}, " of queue type rabbit_stream_queue"),
    ],
    ids=str,
)  # fmt: skip
def test_a_consumer_whose_argument_is_invalid_is_refused(
    like: Like, kind: str, arguments: Table, wrong: str | None
) -> None:
    """If basic.consume has an argument that the type of the queue does not have, or an argument with an invalid
    value, the broker refuses the request with error 406. The error names the argument, the queue, and the reason.
    """
    vhost = vhost_like(like)
    declared(vhost, {"x-queue-type": kind})
    refused = refusal(lambda: check_consumer(vhost.queues["q"], arguments, prefetch=1, no_ack=False))
    assert refused == (wrong and ARG.format([*arguments][-1]) + wrong)


@pytest.mark.parametrize(
    ("like", "unset", "unsupported"),
    [
        (Like.V3_10, "'queue 'q' in vhost 'v''", "stream queues queue 'q' in vhost 'v'"),
        (Like.V4_0, "stream queue 'q' in vhost 'v'", "stream queue 'q' in vhost 'v'"),
    ],
)
def test_a_consumer_of_a_stream_needs_a_prefetch_count_and_manual_acknowledgements(
    like: Like, unset: str, unsupported: str
) -> None:
    """If a consumer of a stream has no prefetch count, the broker closes the channel with error 406. If the consumer
    uses automatic acknowledgement, the broker closes the connection with error 540. The reply texts are those of the
    imitated RabbitMQ version. A consumer of a quorum queue needs no prefetch count, and can use automatic
    acknowledgement.
    """
    vhost, other = vhost_like(like), vhost_like(like)
    declared(vhost, {"x-queue-type": "stream"})
    declared(other, {"x-queue-type": "quorum"})
    stream = vhost.queues["q"]
    assert refusal(lambda: check_consumer(stream, {}, prefetch=0, no_ack=False)) == (
        f"channel 406: consumer prefetch count is not set for {unset}"
    )
    assert refusal(lambda: check_consumer(stream, {}, prefetch=1, no_ack=True)) == (
        f"connection 540: automatic acknowledgement not supported by {unsupported}"
    )
    check_consumer(other.queues["q"], {}, prefetch=0, no_ack=True)
