"""What a broker can be asked to hold: exchanges, queues and the bindings between them.

The words and their meaning are those of AMQP 0-9-1, section 2.1 (https://www.rabbitmq.com/tutorials/amqp-concepts).
Nothing here does any I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: No arguments. Everything here is frozen, so that one does for all.
_NONE: Mapping[str, Any] = {}


class Exchange(NamedTuple):
    """Takes messages in and routes them to queues. The one named "" routes to the queue that the routing key names."""

    name: str
    type: str = "direct"
    durable: bool = False
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] = _NONE


#: The exchange type of RabbitMQ's delayed message plugin.
DELAYED = "x-delayed-message"

DEFAULT_EXCHANGE = Exchange("", durable=True)


class Queue(NamedTuple):
    """Keeps messages until they are acknowledged. With the name "" the broker makes one up when it is declared."""

    name: str = ""
    durable: bool = False
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = _NONE


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """A rule at a source exchange that leads to a queue or to another exchange. Each is itself: two never are equal.

    Attributes:
        to_exchange: the destination is an exchange (RabbitMQ's exchange.bind).
    """

    source: str
    destination: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    to_exchange: bool = False


#: A queue of the receiver's own: named by the broker, and gone when its connection is.
PRIVATE_QUEUE = Queue(exclusive=True)


class Stream(NamedTuple):
    """A log that keeps messages after they were read, until it is too long or they are too old.

    Attributes:
        arguments: such as max-length-bytes, for when it is created.
        partitions: of a super stream, the streams that it consists of.
    """

    name: str
    arguments: Mapping[str, Any] = _NONE
    partitions: Sequence[str] = ()
