"""Headers: receivers choose messages by the values of several headers.

                               ┌─ all: format=pdf, type=report ─> [amq.gen-1]
    emit-log ──> (headers_logs)┤
                               └─ any: format=pdf, type=log ────> [amq.gen-2]

A headers exchange ignores the routing key. It compares a binding's arguments with the message's headers; the argument
x-match determines whether all of them must be equal, or any one is enough.

https://www.rabbitmq.com/tutorials/amqp-concepts#exchange-headers
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from mqtool.amqp import STREAMING, Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def emit(channel: AmqpChannel, exchange: Exchange, messages: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish messages with their headers; yield each one's receipt. None in the input means no message yet."""
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange)


def receive(
    channel: AmqpChannel,
    exchange: Exchange,
    headers: Mapping[str, Any],
    match: Literal["all", "any"] = "all",
    queue: Queue = PRIVATE_QUEUE,
    receiving: Receiving = STREAMING,
) -> Iterator[Delivery]:
    """Consume the messages that have all of these headers, or any one of them."""
    channel.declare(exchange)
    queue = channel.declare(queue)
    channel.bind(queue, exchange, arguments={"x-match": match, **headers})
    return channel.consume(queue, receiving)
