"""Declarations of exchanges, queues, bindings and streams (https://www.rabbitmq.com/tutorials/amqp-concepts)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mqtool.field_values import FieldValue

#: No arguments. Never modified, so all declarations can share this mapping.
_NONE: Mapping[str, FieldValue] = {}


class Exchange(NamedTuple):
    """An exchange to declare. The default exchange, "", routes to the queue named by the routing key."""

    name: str
    type: str = "direct"
    durable: bool = False
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, FieldValue] = _NONE


#: The exchange type of RabbitMQ's delayed message plugin.
DELAYED = "x-delayed-message"

DEFAULT_EXCHANGE = Exchange("", durable=True)


class Queue(NamedTuple):
    """A queue to declare. With the name "", the broker chooses a name."""

    name: str = ""
    durable: bool = False
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, FieldValue] = _NONE


@dataclass(slots=True, eq=False)
class Binding:
    """A binding from an exchange to a queue or, with `to_exchange`, to another exchange. Compared by identity."""

    source: str
    destination: str
    routing_key: str = ""
    arguments: Mapping[str, FieldValue] = field(default_factory=dict)
    to_exchange: bool = False


#: A receiver's private queue, named by the broker, and deleted when the receiver's connection closes.
PRIVATE_QUEUE = Queue(exclusive=True)


class Stream(NamedTuple):
    """A stream or a super stream: keeps messages after they are consumed, up to a size or an age.

    Attributes:
        arguments: the arguments to create the stream with, such as max-length-bytes.
        partitions: the streams of a super stream; empty for a stream.
    """

    name: str
    arguments: Mapping[str, FieldValue] = _NONE
    partitions: Sequence[str] = ()
