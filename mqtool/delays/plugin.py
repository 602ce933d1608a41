"""Holding messages back by exchanges of type x-delayed-message.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange
"""

import re
from typing import Any

from mqtool.amqp import Channel
from mqtool.delays.ways import Destination, Expecting, Notice, Place, addressed, name_for
from mqtool.errors import DeclaredDifferently, UnknownExchangeType
from mqtool.message import Message
from mqtool.topology import DELAYED, Exchange, Queue

#: Messages from which on the plugin is the wrong tool, by its own account.
_TOO_MANY = 100_000
#: The first version of RabbitMQ that cannot load the plugin.
_ENDED = (4, 3)
_VERSION = re.compile(r"(\d+)\.(\d+)")
#: The exchange of type x-delayed-message that leads to queues.
TO_QUEUES = Exchange("mqtool.delayed", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})


class PluginMissing(DeclaredDifferently):
    """The plugin is asked for, and the broker has none.

    Args:
        broker: what it calls itself.
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
            "its plugins directory, and 'rabbitmq-plugins enable rabbitmq_delayed_message_exchange'; RabbitMQ up to "
            "4.2 can have it, 4.3 cannot. Or leave it to wait queues: --via ttl",
        )


def has_plugin(channel: Channel, exchange: Exchange) -> bool:
    """Declare an exchange of type x-delayed-message, and tell whether the broker knows the type.

    That is asked on a connection of its own: RabbitMQ closes the connection for a type that it does not know.

    Raises:
        DeclaredDifferently: there is an exchange of another type by that name.
        AccessRefused: the user may not declare it.
    """
    with channel.connection.beside() as beside:
        try:
            beside.channel().declare(exchange)
        except UnknownExchangeType:
            return False
    channel.declare(exchange)  # to be there again after a reconnection
    return True


class ThroughPlugin:
    """By exchanges of type x-delayed-message, which lead to the exchanges and queues that messages are for.

    Attributes:
        exchange: the one that leads to the destination.
    """

    def __init__(self, channel: Channel, destination: Destination, notice: Notice) -> None:
        self._channel = channel
        self._destination = destination
        self._notice = notice
        self._expecting = Expecting(channel)
        self._leading: set[tuple[str, str]] = set()
        self._count = 0
        self.exchange = _leading_to(destination.exchange)

    def place(self, message: Message, milliseconds: int) -> Place:  # noqa: ARG002
        self._count += 1
        if self._count == _TOO_MANY:
            self._notice(
                f"{_TOO_MANY:,} delayed messages: the plugin keeps all in one table, and is not made for so many; "
                "--via ttl is"
            )
        to, key = addressed(message, self._destination)
        is_default = to == self._destination.exchange.name
        exchange = self.exchange if is_default else _leading_to(Exchange(to, durable=True))
        if exchange.name != to and (to, "" if to else key) not in self._leading:
            self._lead(exchange, to, "" if to else key)
        return Place(exchange.name, None if to else key)

    def _lead(self, exchange: Exchange, to: str, key: str) -> None:
        """Have an exchange lead on: to another exchange, or to the queue that the key names."""
        self._expecting.expect(to, key)
        if exchange != self.exchange:
            self._channel.declare(exchange)
        self._channel.bind(Exchange(to) if to else Queue(key), exchange, key)
        self._leading.add((to, key))

    def properties(self, message: Message, milliseconds: int) -> dict[str, Any]:
        return {**message.properties, "headers": {**message.properties["headers"], "x-delay": milliseconds}}


def _leading_to(exchange: Exchange) -> Exchange:
    """The exchange of type x-delayed-message in front of another."""
    if exchange.type == DELAYED:
        return exchange
    if not exchange.name:
        return TO_QUEUES
    # It knows no keys: the exchange behind it routes. It goes when that one does.
    name, arguments = name_for(exchange.name, "delayed"), {"x-delayed-type": "fanout"}
    return Exchange(name, DELAYED, exchange.durable, auto_delete=True, arguments=arguments)
