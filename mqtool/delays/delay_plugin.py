"""Delay messages in exchanges of type x-delayed-message, which RabbitMQ's delayed message plugin adds.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange
"""

import re
from collections.abc import Callable
from weakref import WeakKeyDictionary

from mqtool.amqp import Channel, Connection
from mqtool.delays.destinations import DelayPlace, Destination, Warn, expect, name_for
from mqtool.errors import DeclaredDifferently, UnknownExchangeType
from mqtool.message import Message
from mqtool.spelling import pasteable
from mqtool.topology import DELAYED, Exchange, Queue

#: The plugin's documentation advises against this many delayed messages or more.
_TOO_MANY = 100_000
#: The first version of RabbitMQ for which the plugin has no release.
_ENDED = (4, 3)
_VERSION = re.compile(r"(\d+)\.(\d+)")
#: The warning for messages to a quorum queue.
LOSES = (
    "the plugin loses messages for a quorum queue that fall due while the broker is down or starting: it publishes "
    "them before the queue has a leader; --via ttl keeps them"
)
#: The exchange of type x-delayed-message for messages to queues.
TO_QUEUES = Exchange("mqtool.delayed", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})


#: For each connection, True if its broker knows the type x-delayed-message.
_answers: WeakKeyDictionary[Connection, bool] = WeakKeyDictionary()


class PluginMissing(DeclaredDifferently):
    """The user chose the plugin, but the broker does not have it.

    Args:
        broker: the broker's name and version.
    """

    def __init__(self, broker: str) -> None:
        version = _VERSION.search(broker)
        if version and (int(version[1]), int(version[2])) >= _ENDED:
            super().__init__(
                f"{broker} cannot have the delayed message plugin: its last release, 4.2.0, is for RabbitMQ 4.2",
                "wait queues do the same there: --via ttl",
            )
            return
        super().__init__(
            f"{broker} has no exchanges of type {DELAYED}: the delayed message plugin is not enabled there",
            f"put rabbitmq_delayed_message_exchange, the release for {version[0] if version else 'its version'}, into "
            "its plugins directory and run 'rabbitmq-plugins enable rabbitmq_delayed_message_exchange' (up to RabbitMQ "
            "4.2), or use wait queues: --via ttl",
        )


def has_plugin(channel: Channel, exchange: Exchange) -> bool:
    """Declare an exchange of type x-delayed-message; return False if the broker does not know the type.

    The first declaration uses a separate connection, because RabbitMQ closes the connection if the type is unknown.

    Raises:
        DeclaredDifferently: the exchange exists with another type.
        AccessRefused: the user may not declare the exchange.
    """
    known = _answers.get(channel.connection)
    if known is None:
        known = _answers[channel.connection] = _is_known(channel.connection, exchange)
    if known:
        channel.declare(exchange)  # so that it is declared again after a reconnection
    return known


def _is_known(connection: Connection, exchange: Exchange) -> bool:
    with connection.beside() as beside:
        try:
            beside.channel().declare(exchange)
        except UnknownExchangeType:
            return False
        except DeclaredDifferently as error:
            raise DeclaredDifferently(
                str(error), f"to have it delay, delete it first: {pasteable('exchange delete', exchange.name)}"
            ) from error
    return True


def can_delay(channel: Channel, exchange: Exchange) -> bool:
    """Like has_plugin(), but return False if the exchange exists with a different type."""
    try:
        return has_plugin(channel, exchange)
    except DeclaredDifferently:
        return False


class ThroughPlugin:
    """Delays messages in exchanges of type x-delayed-message, to which it binds the target exchanges and queues.

    Attributes:
        exchange: the x-delayed-message exchange for the command's destination.
    """

    def __init__(self, channel: Channel, destination: Destination, warn: Warn) -> None:
        self.exchange = _in_front_of(destination.to)
        self._channel = channel
        self._destination = destination
        self._warn = warn
        self._bound: set[tuple[str, str | None]] = set()
        self._count = 0
        self._has_warned = False

    def place(self, message: Message, milliseconds: Callable[[], int]) -> DelayPlace:
        """Declare the exchange that delays a message; see ThroughQueues.place()."""
        self._count += 1
        if self._count == _TOO_MANY:
            self._warn(
                f"{_TOO_MANY:,} delayed messages: the plugin keeps them all in one table, not made for that many; "
                "--via ttl is"
            )
        target = self._destination.of(message)
        is_safe = target == self.exchange and self._destination.is_classic
        if not self._has_warned and not is_safe and self._destination.may_lead_to_quorum_queue(target):
            self._has_warned = True
            self._warn(LOSES)
        exchange, key = _in_front_of(target), target.name if isinstance(target, Queue) else None
        if exchange is not target and (exchange.name, key) not in self._bound:
            expect(self._channel, target)
            if exchange != self.exchange:
                self._channel.declare(exchange)
            self._channel.bind(target, exchange, key or "")
            self._bound.add((exchange.name, key))
        headers = {**(message.properties.get("headers") or {}), "x-delay": milliseconds()}
        return DelayPlace(exchange.name, key, {**message.properties, "headers": headers})


def _in_front_of(target: Exchange | Queue) -> Exchange:
    """Return the exchange of type x-delayed-message for a target: the target itself if it has this type."""
    if isinstance(target, Queue) or not target.name:
        return TO_QUEUES
    if target.type == DELAYED:
        return target
    # A fanout, since the target does the routing. Auto-delete, so that it is deleted together with the target.
    name, arguments = name_for(target, "delayed"), {"x-delayed-type": "fanout"}
    return Exchange(name, DELAYED, target.durable, auto_delete=True, arguments=arguments)
