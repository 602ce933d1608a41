"""Delayed messages: sent now, received later.

    send-delayed --delay 5s ──> (delay_exchange) ···5 s···> [delay_queue] ──> receive-delayed

The exchange's type, x-delayed-message, comes with a plugin of RabbitMQ. It holds each message back for as many
milliseconds as its header x-delay says, and only then routes it, as an exchange of the type that its own argument
x-delayed-type names would: by routing key, here. Messages come in the order of their times, however they were sent.

A receiver sees the header with a negative number: the delay is over, and another such exchange would not repeat it.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mqtool.amqp import STREAMING, Channel, Receiving
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Exchange, Queue


def delayed(message: Message, milliseconds: int) -> Message:
    """The message with the header that has an x-delayed-message exchange hold it back."""
    headers = {**(message.properties.get("headers") or {}), "x-delay": milliseconds}
    return replace(message, properties={**message.properties, "headers": headers})


def send(
    channel: Channel, exchange: Exchange, routing_key: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    """Publish delayed messages, persistently, as they may wait for long; yield each one's receipt.

    Raises:
        UnknownExchangeType: the broker lacks the plugin.
        NotConfirmed: the broker did not answer in time.
    """
    channel.declare(exchange)
    return channel.publish(messages, exchange=exchange, routing_key=routing_key, persistent=True)


def receive(
    channel: Channel, exchange: Exchange, routing_key: str, queue: Queue, receiving: Receiving = STREAMING
) -> Iterator[Delivery]:
    """Take messages when their time has come.

    Raises:
        UnknownExchangeType: the broker lacks the plugin.
        Unavailable: the queue has vanished.
    """
    channel.declare(exchange)
    queue = channel.declare(queue)
    channel.bind(queue, exchange, routing_key)
    return channel.consume(queue, receiving)
