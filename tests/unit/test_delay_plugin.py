"""Delays by the delayed message plugin, on an embedded broker in this process, and the error if it is missing."""

from collections.abc import Iterator
from typing import Any

import pytest

from mqtool.amqp import Channel, Connection, administration, parse_addresses
from mqtool.delays.delay_plugin import LOSES, PluginMissing, ThroughPlugin, can_delay, has_plugin
from mqtool.delays.destinations import Destination
from mqtool.errors import DeclaredDifferently, NotFound
from mqtool.message import Message
from mqtool.testing import Vhost
from mqtool.topology import DELAYED, Exchange, Queue

_JOBS, _OTHER = Queue("jobs", durable=True), Queue("other", durable=True)
_LOGS, _AUDIT = Exchange("logs", "topic"), Exchange("audit", "topic", durable=True)
_HELD = Exchange("held", DELAYED, durable=True, arguments={"x-delayed-type": "topic"})


@pytest.fixture
def channel(amqp_vhost: Vhost) -> Iterator[Channel]:
    """A channel of mqtool's own client on the broker in this process, with the destinations of the tests."""
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        channel = connection.channel()
        things: list[Any] = [_JOBS, _OTHER, _LOGS, _AUDIT, _HELD]
        for thing in things:
            channel.declare(thing)
        for exchange in (_LOGS, _AUDIT, _HELD):
            channel.bind(_JOBS, exchange, "eu.#")
        yield channel


def through(channel: Channel, destination: Destination) -> tuple[ThroughPlugin, list[str]]:
    """Return the object that delays messages in exchanges of the plugin, with a list of its warnings."""
    warnings: list[str] = []
    found = ThroughPlugin(channel, destination, warnings.append)
    assert has_plugin(channel, found.exchange)
    return found, warnings


def plugins(name: str, kind: str, *, durable: bool = True, auto_delete: bool = True) -> Exchange:
    """Return an exchange of the plugin that routes messages like an exchange of this type when they are due."""
    return Exchange(name, DELAYED, durable, auto_delete, arguments={"x-delayed-type": kind})


_TO_QUEUES = plugins("mqtool.delayed", "direct", auto_delete=False)


@pytest.mark.parametrize(
    ("destination", "message", "arrives_in", "waits_in"),
    [
        (Destination(_JOBS), Message(b"x"), "jobs", _TO_QUEUES),
        (Destination(_JOBS), Message(b"x", "other"), "other", _TO_QUEUES),
        (Destination(_JOBS), Message(b"x", "eu.1", "audit"), "jobs", plugins("audit.delayed", "fanout")),
        (Destination(_LOGS), Message(b"x", "eu.1"), "jobs", plugins("logs.delayed", "fanout", durable=False)),
        (Destination(_LOGS), Message(b"x", "other", ""), "other", _TO_QUEUES),
        (Destination(_HELD), Message(b"x", "eu.1"), "jobs", _HELD),
    ],
    ids=["queue", "another queue", "another exchange", "exchange", "exchange, queue", "exchange of the plugin"],
)
def test_the_plugin_delivers_a_due_message_to_its_destination(
    amqp_vhost: Vhost, channel: Channel, destination: Destination, message: Message, arrives_in: str, waits_in: Exchange
) -> None:
    """With `--via plugin`, a message for a queue waits in the exchange `mqtool.delayed`. A message for an exchange
    waits in an x-delayed-message exchange in front of it, such as `audit.delayed`, or in the exchange itself if it has
    this type. A due message arrives with its own routing key and headers.
    """
    delays, _ = through(channel, destination)
    for headers in (None, {"a": 1}):
        message.properties = {"type": "t", "headers": headers}
        place = delays.place(message, lambda: 1)
        assert place.exchange == waits_in.name
        key = message.routing_key if place.routing_key is None else place.routing_key
        list(channel.publish([Message(b"x", key, place.exchange, place.properties)]))
    channel.declare(waits_in, exactly=True)
    came = amqp_vhost.queue(arrives_in).messages(2)
    assert [each.headers for each in came] == [{"x-delay": 1}, {"x-delay": 1, "a": 1}]
    assert {(each.properties["type"], each.routing_key) for each in came} == {("t", message.routing_key or "jobs")}


def test_the_destination_of_delayed_messages_is_looked_up_and_bound_once(channel: Channel) -> None:
    """With `--via plugin`, delaying a message for a missing queue raises NotFound. mqtool looks up a queue and binds
    it to the plugin's exchange once, before the queue's first message. If the command's own destination is an
    x-delayed-message exchange, mqtool does not look it up.
    """
    delays, _ = through(channel, Destination(_JOBS))
    with pytest.raises(NotFound):
        delays.place(Message(b"x", "missing"), lambda: 5000)
    delays.place(Message(b"x", "other"), lambda: 5000)
    administration.delete_queue(channel, "other")
    assert delays.place(Message(b"x", "other"), lambda: 5000).exchange == "mqtool.delayed"
    delays, _ = through(channel, Destination(_HELD))
    administration.delete_exchange(channel, "held")
    assert delays.place(Message(b"x", "eu.1"), lambda: 5000).exchange == "held"


@pytest.mark.parametrize(
    ("destination", "key", "warns"),
    [
        (Destination(_JOBS, is_classic=True), None, False),
        (Destination(_JOBS, is_classic=False), None, True),
        (Destination(_JOBS, is_classic=True), "other", True),
        (Destination(_AUDIT), None, True),
        (Destination(_AUDIT, leads_to=_JOBS, is_classic=True), None, True),
        (Destination(_LOGS), None, False),
        (Destination(_HELD, leads_to=_JOBS, is_classic=True), None, False),
        (Destination(_HELD, leads_to=_JOBS, is_classic=False), None, True),
    ],
    ids=[
        "classic queue", "quorum queue", "another queue", "durable exchange", "durable exchange, classic queue",
        "transient exchange", "exchange of the plugin, classic queue", "exchange of the plugin, quorum queue",
    ],
)  # fmt: skip
def test_one_warning_says_that_the_plugin_may_lose_messages_for_quorum_queues(
    channel: Channel, destination: Destination, key: str | None, warns: bool
) -> None:
    """With `--via plugin`, mqtool warns once that messages for a quorum queue may be lost. It does not warn if the
    messages are for a queue that it knows to be classic, for an x-delayed-message exchange that leads to such a queue,
    or for a non-durable exchange.
    """
    delays, warnings = through(channel, destination)
    for _ in range(2):
        delays.place(Message(b"x", key), lambda: 5000)
    assert warnings == [LOSES] * warns


def test_a_warning_says_that_the_plugin_is_not_made_for_a_hundred_thousand_messages(channel: Channel) -> None:
    """When mqtool delays the 100,000th message with the plugin, it warns once that the plugin is not made for this
    number of messages.
    """
    delays, warnings = through(channel, Destination(_JOBS, is_classic=True))
    message = Message(b"x")
    for _ in range(99_999):
        delays.place(message, int)
    assert warnings == []
    for _ in range(2):
        delays.place(message, int)
    assert warnings == [
        "100,000 delayed messages: the plugin keeps them all in one table, not made for that many; --via ttl is"
    ]


def test_an_exchange_of_another_type_is_not_used_for_delays(amqp_vhost: Vhost, channel: Channel) -> None:
    """If the exchange that is to delay messages exists with a type other than x-delayed-message, mqtool raises
    DeclaredDifferently, with a hint that contains the command that deletes the exchange. To check whether the broker
    has the delayed message plugin, mqtool opens a separate connection. Once it has found the plugin, it opens no
    further connection.
    """
    wanted = plugins("audit", "fanout", auto_delete=False)
    with pytest.raises(DeclaredDifferently, match="'type' for exchange 'audit'") as error:
        has_plugin(channel, wanted)
    assert error.value.hint == "to have it delay, delete it first: mqtool exchange delete audit"
    assert can_delay(channel, wanted) is False
    assert can_delay(channel, _TO_QUEUES) is True
    with amqp_vhost.faults.refuse_connections():
        assert can_delay(channel, _HELD) is True, "the broker was asked again, on another connection"
        assert can_delay(channel, wanted) is False


_MISSING = "has no exchanges of type x-delayed-message: the delayed message plugin is not enabled there"
_ENABLE = (
    "put rabbitmq_delayed_message_exchange, the release for {}, into its plugins directory and run 'rabbitmq-plugins "
    "enable rabbitmq_delayed_message_exchange' (up to RabbitMQ 4.2), or use wait queues: --via ttl"
)
_ENDED = "cannot have the delayed message plugin: its last release, 4.2.0, is for RabbitMQ 4.2"


@pytest.mark.parametrize(
    ("broker", "says", "hint"),
    [
        ("RabbitMQ 3.10.8", _MISSING, _ENABLE.format("3.10")),
        ("RabbitMQ 4.2.7", _MISSING, _ENABLE.format("4.2")),
        ("LavinMQ", _MISSING, _ENABLE.format("its version")),
        ("RabbitMQ 4.3.0", _ENDED, "wait queues do the same there: --via ttl"),
        ("RabbitMQ 4.10.1", _ENDED, "wait queues do the same there: --via ttl"),
        ("RabbitMQ 5.0.0", _ENDED, "wait queues do the same there: --via ttl"),
    ],
)
def test_the_error_about_a_missing_plugin_says_how_to_delay_messages_without_it(
    broker: str, says: str, hint: str
) -> None:
    """If the delayed message plugin is missing on RabbitMQ 4.2 or earlier, the error's hint names the plugin's release
    for this version, the command that enables the plugin, and `--via ttl`. The plugin has no release for RabbitMQ 4.3
    or later: there, the hint names only `--via ttl`.
    """
    error = PluginMissing(broker)
    assert (str(error), error.hint, error.exit_code) == (f"{broker} {says}", hint, 78)
