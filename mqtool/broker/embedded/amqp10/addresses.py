"""AMQP 1.0 addresses, version 2: https://www.rabbitmq.com/docs/amqp#address-v2. Version 1 is refused, as in RabbitMQ 4.

Names in addresses are percent-encoded UTF-8.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote

from mqtool.broker.embedded.model.names import is_too_long
from mqtool.broker.embedded.model.protocol_conversion import quoted

_QUEUES, _EXCHANGES = "/queues/", "/exchanges/"
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


class PublishTarget(NamedTuple):
    """Where a message goes.

    Attributes:
        queue: the name of the queue; None if the address is an exchange's.
    """

    exchange: str
    routing_key: str
    queue: str | None = None

    @property
    def address(self) -> str:
        """The address of the target."""
        if self.queue is not None:
            return queue_address(self.queue)
        key = f"/{quoted(self.routing_key)}" if self.routing_key else ""
        return f"{_EXCHANGES}{quoted(self.exchange)}{key}"


def decoded(name: str) -> str:
    """Decode a name in an address. Raises ValueError if an escape is malformed or the result is not UTF-8."""
    if _BAD_ESCAPE.search(name):
        raise ValueError("a percent sign does not start an escape")
    return unquote(name, errors="strict")


def is_version_2(address: str) -> bool:
    """Return True if an address is a version 2 address of a queue or an exchange."""
    return address.startswith((_QUEUES, _EXCHANGES))


def parse_target(address: str) -> PublishTarget:
    """Parse a queue's address, or an exchange's with or without a routing key. Raises ValueError if it is not valid."""
    if address.startswith(_QUEUES):
        name = decoded(address.removeprefix(_QUEUES))
        if not name:
            raise ValueError("the name of the queue is empty")
        return _checked(PublishTarget("", name, name))
    if not address.startswith(_EXCHANGES):
        raise ValueError("not an address")
    exchange, *key = address.removeprefix(_EXCHANGES).split("/")
    if exchange in ("", "amq.default") or len(key) > 1:
        raise ValueError("not the address of an exchange")
    return _checked(PublishTarget(decoded(exchange), decoded(key[0]) if key else ""))


def _checked(target: PublishTarget) -> PublishTarget:
    if is_too_long(target.exchange) or is_too_long(target.routing_key):
        raise ValueError("a name or a routing key is longer than 255 bytes")
    return target


def parse_source(address: str) -> str:
    """Return the name of the queue in an address. Raises ValueError if it is not the address of a queue."""
    if not address.startswith(_QUEUES):
        raise ValueError("not the address of a queue")
    return decoded(address.removeprefix(_QUEUES))


def queue_address(name: str) -> str:
    """Return the address of a queue."""
    return _QUEUES + quoted(name)
