# ruff: noqa: E501 - the texts are easier to compare on one line
"""The errors that a client gets when it does something wrong: the same codes and texts as RabbitMQ's."""

from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika import BasicProperties, spec
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

QUORUM = {"x-queue-type": "quorum"}


def refused(action: Callable[[], object]) -> str:
    """The code and text with which the broker closes the channel or the connection."""
    with pytest.raises((ChannelClosedByBroker, ConnectionClosedByBroker)) as closed:
        action()
    return f"{closed.value.reply_code} {closed.value.reply_text}"


def publish(channel: BlockingChannel, exchange: str, key: str, properties: BasicProperties | None = None) -> None:
    """Publish, and wait until the broker has handled the message."""
    channel.basic_publish(exchange, key, b"x", properties)
    channel.queue_declare("", exclusive=True)


@pytest.fixture
def existing(channel: BlockingChannel) -> None:
    channel.queue_declare("q", durable=True)
    channel.queue_declare("ttl", arguments={"x-message-ttl": 1000})
    channel.exchange_declare("x", "direct", durable=True)
    channel.exchange_declare("internal", "direct", internal=True)


LOCKED = (
    "405 RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '{vhost}'. It could be originally "
    "declared on another connection or the exclusive property value does not match that of the original declaration."
)

CASES: list[Any] = [
    (
        lambda c: c.queue_declare("q"),
        "406 PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '{vhost}': received 'false' but "
        "current is 'true'",
    ),
    (
        lambda c: c.queue_declare("q", durable=True, auto_delete=True),
        "406 PRECONDITION_FAILED - inequivalent arg 'auto_delete' for queue 'q' in vhost '{vhost}': received 'true' but "
        "current is 'false'",
    ),
    (lambda c: c.queue_declare("q", durable=True, exclusive=True), LOCKED),
    (
        lambda c: c.queue_declare("q", durable=True, arguments={"x-message-ttl": 1000}),
        "406 PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '{vhost}': received the value "
        "'1000' of type 'signedint' but current is none",
    ),
    (
        lambda c: c.queue_declare("ttl"),
        "406 PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'ttl' in vhost '{vhost}': received none but "
        "current is the value '1000' of type 'signedint'",
    ),
    (
        lambda c: c.queue_declare("ttl", arguments={"x-message-ttl": "1000"}),
        "406 PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'ttl' in vhost '{vhost}': received '1000' "
        "but current is '1000'",
    ),
    pytest.param(
        lambda c: c.queue_declare("q", durable=True, arguments=QUORUM),
        "406 PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '{vhost}': received the value "
        "'quorum' of type 'longstr' but current is none",
        marks=pytest.mark.differs_since("4.0", "every queue has a type, if it is declared without one"),
    ),
    (
        lambda c: c.queue_declare("new", arguments=QUORUM),
        "406 PRECONDITION_FAILED - invalid property 'non-durable' for queue 'new' in vhost '{vhost}'",
    ),
    (
        lambda c: c.queue_declare("new", durable=True, exclusive=True, arguments=QUORUM),
        "406 PRECONDITION_FAILED - invalid property 'exclusive-owner' for queue 'new' in vhost '{vhost}'",
    ),
    (
        lambda c: c.queue_declare("", durable=True, arguments=QUORUM),
        "406 PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_quorum_queue",
    ),
    (
        lambda c: c.queue_declare("new", durable=True, arguments={**QUORUM, "x-max-priority": 5}),
        "406 PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'new' in vhost '{vhost}' of queue type "
        "rabbit_quorum_queue",
    ),
    (lambda c: c.queue_declare("no", passive=True), "404 NOT_FOUND - no queue 'no' in vhost '{vhost}'"),
    (
        lambda c: c.queue_declare("amq.mine"),
        "403 ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'",
    ),
    (lambda c: c.exchange_declare("no", passive=True), "404 NOT_FOUND - no exchange 'no' in vhost '{vhost}'"),
    (
        lambda c: c.exchange_declare("amq.mine"),
        "403 ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'",
    ),
    (
        lambda c: c.exchange_declare("x", "fanout", durable=True),
        "406 PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '{vhost}': received 'fanout' but "
        "current is 'direct'",
    ),
    (
        lambda c: c.exchange_declare("x", "direct", durable=True, arguments={"alternate-exchange": "z"}),
        "406 PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'x' in vhost '{vhost}': received "
        "the value 'z' of type 'longstr' but current is none",
    ),
    pytest.param(
        lambda c: c.exchange_declare("new", "no-such-type"),
        "503 COMMAND_INVALID - unknown exchange type 'no-such-type'",
        marks=pytest.mark.differs_since("4.0", "an unknown exchange type costs the channel, 406, not the connection"),
    ),
    (
        lambda c: c.exchange_delete("amq.direct"),
        "403 ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '{vhost}' not allowed",
    ),
    (
        lambda c: (c.queue_bind("q", "x", "k"), c.exchange_delete("x", if_unused=True)),
        "406 PRECONDITION_FAILED - exchange 'x' in vhost '{vhost}' in use",
    ),
    (lambda c: c.queue_bind("no", "x", "k"), "404 NOT_FOUND - no queue 'no' in vhost '{vhost}'"),
    (lambda c: c.queue_bind("no", "none", "k"), "404 NOT_FOUND - no exchange 'none' in vhost '{vhost}'"),
    (lambda c: c.queue_bind("q", "", "k"), "403 ACCESS_REFUSED - operation not permitted on the default exchange"),
    (
        lambda c: c.queue_bind("q", "amq.headers", "k", arguments={"x-match": "most"}),
        '406 PRECONDITION_FAILED - Invalid x-match field value <<"most">>; expected all, any, all-with-x, or any-with-x',
    ),
    (lambda c: c.exchange_bind("no", "x", "k"), "404 NOT_FOUND - no exchange 'no' in vhost '{vhost}'"),
    (
        lambda c: (c.basic_publish("", "q", b"x"), c.queue_delete("q", if_empty=True)),
        "406 PRECONDITION_FAILED - queue 'q' in vhost '{vhost}' not empty",
    ),
    (
        lambda c: (c.basic_consume("q", print), c.queue_delete("q", if_unused=True)),
        "406 PRECONDITION_FAILED - queue 'q' in vhost '{vhost}' in use",
    ),
    (
        lambda c: (c.basic_consume("q", print), c.basic_consume("q", print, exclusive=True)),
        "403 ACCESS_REFUSED - queue 'q' in vhost '{vhost}' in exclusive use",
    ),
    (lambda c: c.basic_get("no"), "404 NOT_FOUND - no queue 'no' in vhost '{vhost}'"),
    (
        lambda c: c.basic_consume("q", print, arguments={"x-priority": "high"}),
        "406 PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '{vhost}': \"expected integer, got "
        'longstr"',
    ),
    (
        lambda c: (c.basic_ack(5), c.queue_declare("", exclusive=True)),
        "406 PRECONDITION_FAILED - unknown delivery tag 5",
    ),
    (
        lambda c: (c.basic_ack(5, multiple=True), c.queue_declare("", exclusive=True)),
        "406 PRECONDITION_FAILED - unknown delivery tag 5",
    ),
    (lambda c: publish(c, "none", "k"), "404 NOT_FOUND - no exchange 'none' in vhost '{vhost}'"),
    (
        lambda c: publish(c, "internal", "k"),
        "403 ACCESS_REFUSED - cannot publish to internal exchange 'internal' in vhost '{vhost}'",
    ),
    (
        lambda c: publish(c, "", "q", BasicProperties(user_id="other")),
        "406 PRECONDITION_FAILED - user_id property set to 'other' but authenticated user was 'guest'",
    ),
    (
        lambda c: publish(c, "", "q", BasicProperties(headers={"CC": "q"})),
        '406 PRECONDITION_FAILED - invalid message: {{unacceptable_type_in_header,"CC",longstr}}',
    ),
    (lambda c: c.tx_commit(), "406 PRECONDITION_FAILED - channel is not transactional"),
    (
        lambda c: (c.tx_select(), c.confirm_delivery()),
        "406 PRECONDITION_FAILED - cannot switch from tx to confirm mode",
    ),
    (
        lambda c: (c.confirm_delivery(), c.tx_select()),
        "406 PRECONDITION_FAILED - cannot switch from confirm to tx mode",
    ),
    (lambda c: c.basic_qos(prefetch_size=10), "540 NOT_IMPLEMENTED - prefetch_size!=0 (10)"),
    (lambda c: c.flow(False), "540 NOT_IMPLEMENTED - active=false"),
    (lambda c: c.basic_recover(False), "540 NOT_IMPLEMENTED - requeue=false"),
    (
        lambda c: c.basic_consume("amq.rabbitmq.reply-to", print),
        "406 PRECONDITION_FAILED - reply consumer cannot acknowledge",
    ),
    (
        lambda c: publish(c, "", "q", BasicProperties(reply_to="amq.rabbitmq.reply-to")),
        "406 PRECONDITION_FAILED - fast reply consumer does not exist",
    ),
    (lambda c: c.queue_bind("", "x", "k"), "404 NOT_FOUND - no previously declared queue"),
]


@pytest.mark.usefixtures("existing")
@pytest.mark.parametrize(
    ("action", "expected"), CASES, ids=lambda value: value[:120] if isinstance(value, str) else "refused"
)
def test_an_invalid_operation_is_refused_with_rabbitmqs_code_and_text(
    connection: pika.BlockingConnection, vhost: str, action: Callable[[BlockingChannel], object], expected: str
) -> None:
    """The embedded broker refuses an invalid operation with the same reply code and text as RabbitMQ."""
    channel = connection.channel()
    assert refused(lambda: action(channel)) == expected.format(vhost=vhost)


ARGUMENTS: list[Any] = [
    ("x-message-ttl", -1, "{value_negative,-1}"),
    ("x-message-ttl", "a", '"expected integer, got longstr"'),
    ("x-message-ttl", True, '"expected integer, got bool"'),
    ("x-message-ttl", 2**40, f"{{value_too_large,{2**40}}}"),
    ("x-expires", 0, "{value_zero,0}"),
    ("x-max-length", -1, "{value_negative,-1}"),
    ("x-max-priority", 256, "{max_value_exceeded,256}"),
    ("x-overflow", "spill", "invalid_overflow"),
    ("x-overflow", 1, "{unacceptable_type,signedint}"),
    pytest.param(
        "x-queue-mode",
        "eager",
        "\"unsupported queue mode 'eager'\"",
        marks=pytest.mark.differs_since("4.3", "x-queue-mode is not looked at any more"),
    ),
    ("x-queue-type", "round", "\"unsupported queue type 'round'\""),
    ("x-dead-letter-routing-key", "k", "routing_key_but_no_dlx_defined"),
    ("x-single-active-consumer", "a", "{unacceptable_type,longstr}"),
    ("x-queue-version", 3, "\"unsupported queue version '3'\""),
]


def test_a_quorum_queue_with_an_initial_group_size_of_0_is_refused(channel: BlockingChannel, vhost: str) -> None:
    """If a quorum queue is declared with an x-quorum-initial-group-size of 0, the broker refuses the declaration with
    an error that names this argument.
    """
    arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 0}
    reply = refused(lambda: channel.queue_declare("new", durable=True, arguments=arguments))
    where = f"'x-quorum-initial-group-size' for queue 'new' in vhost '{vhost}'"
    assert reply == f"406 PRECONDITION_FAILED - invalid arg {where}: {{value_zero,0}}"


@pytest.mark.parametrize(("name", "value", "wrong"), ARGUMENTS)
def test_the_error_for_an_invalid_queue_argument_names_the_argument(
    channel: BlockingChannel, vhost: str, name: str, value: object, wrong: str
) -> None:
    """If queue.declare has an invalid argument, the error has the same text as RabbitMQ's: it names the argument and
    says what is wrong with the value.
    """
    reply = refused(lambda: channel.queue_declare("new", arguments={name: value}))
    assert reply == f"406 PRECONDITION_FAILED - invalid arg '{name}' for queue 'new' in vhost '{vhost}': {wrong}"


@pytest.mark.parametrize(
    ("expiration", "wrong"),
    [
        ("abc", "no_integer"),
        ("", "no_integer"),
        ("-1", "{value_negative,-1}"),
        ("1.5", '{leftover_string,".5"}'),
        ("99999999999999", "{value_too_large,99999999999999}"),
    ],
)
def test_a_message_with_an_invalid_expiration_is_refused(channel: BlockingChannel, expiration: str, wrong: str) -> None:
    """If a client publishes a message whose expiration is not a valid number of milliseconds, the broker closes the
    channel with error 406.
    """
    reply = refused(lambda: publish(channel, "", "q", BasicProperties(expiration=expiration)))
    assert reply == f"406 PRECONDITION_FAILED - invalid expiration '{expiration}': {wrong}"


def test_a_consumer_tag_cannot_be_used_twice(channel: BlockingChannel) -> None:
    """If a client starts a second consumer with a consumer tag that is in use on the channel, the broker closes the
    connection with error 530.
    """
    channel.queue_declare("q")
    channel.basic_consume("q", print, consumer_tag="t")

    def again() -> None:
        channel._impl._send_method(spec.Basic.Consume(queue="q", consumer_tag="t"))
        channel.queue_declare("q")

    assert refused(again) == "530 NOT_ALLOWED - attempt to reuse consumer tag 't'"


def test_publishing_with_the_flag_immediate_closes_the_connection(channel: BlockingChannel) -> None:
    """If a client publishes a message with the flag `immediate`, the broker closes the connection with error 540, as
    RabbitMQ has done since 3.0.
    """

    def publish_immediately() -> None:
        method = spec.Basic.Publish(exchange="", routing_key="q", immediate=True)
        channel._impl._send_method(method, (BasicProperties(), b"x"))
        channel.queue_declare("", exclusive=True)

    assert refused(publish_immediately) == "540 NOT_IMPLEMENTED - immediate=true"


@pytest.mark.parametrize("ready", [0, 1])
def test_basic_get_is_refused_by_a_quorum_queue_with_a_single_active_consumer(
    channel: BlockingChannel, connect: Callable[..., pika.BlockingConnection], vhost: str, ready: int
) -> None:
    """If a client sends basic.get for a quorum queue with x-single-active-consumer, the broker closes the channel
    with 405 RESOURCE_LOCKED, even if the queue is empty. If the queue is a classic queue, basic.get succeeds.
    """
    single = {"x-single-active-consumer": True}
    channel.queue_declare("q", durable=True, arguments={**QUORUM, **single})
    channel.queue_declare("classic", durable=True, arguments=single)
    for queue in ("q", "classic") * ready:
        publish(channel, "", queue)
    assert (channel.basic_get("classic")[2] == b"x") is bool(ready)
    assert refused(lambda: channel.basic_get("q")).replace('<<"quorum">>', "quorum") == (  # as RabbitMQ 4.3 quotes it
        f"405 RESOURCE_LOCKED - cannot obtain access to locked queue 'q' in vhost '{vhost}'. basic.get operations are "
        "not supported by quorum queues with single active consumer"
    )
    assert connect().channel().queue_declare("q", passive=True).method.message_count == ready


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.queue_declare("q"),
        lambda c: c.queue_declare("q", passive=True),
        lambda c: c.queue_declare("q", exclusive=True),
        lambda c: c.basic_get("q"),
        lambda c: c.basic_consume("q", print),
        lambda c: c.queue_purge("q"),
        lambda c: c.queue_bind("q", "amq.direct", "k"),
        lambda c: c.queue_delete("q"),
    ],
    ids=["declare", "declare passively", "declare exclusively", "get", "consume", "purge", "bind", "delete"],
)
def test_an_exclusive_queue_cannot_be_used_by_other_connections(
    channel: BlockingChannel, connect: Callable[..., pika.BlockingConnection], vhost: str, use: Callable[..., object]
) -> None:
    """If a client tries to use an exclusive queue of another connection, the broker closes the channel with 405
    RESOURCE_LOCKED, whatever the operation.
    """
    channel.queue_declare("q", exclusive=True)
    assert refused(lambda: use(connect().channel())) == LOCKED.format(vhost=vhost)
