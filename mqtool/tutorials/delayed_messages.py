"""Delayed messages: messages are sent now and received later.

    plugin      send ─> (delay_exchange) ··5 s··> [delay_queue] ─> receive
    no plugin   send ─> [delay_queue.wait] ··5 s··> [delay_queue] ─> receive

The exchange has the type x-delayed-message, which a RabbitMQ plugin adds. It holds each message for the number of
milliseconds in the header x-delay, then routes it as an exchange of the type in the argument x-delayed-type would.
Messages arrive in the order in which they become due. Up to RabbitMQ 3.12, receivers see x-delay as it was sent; from
3.13 on, and after dead-lettering, it is negative. So a receiver cannot tell from x-delay whether the delay is over.

Without the plugin, dead-lettering does the same: a message expires in a queue that nobody consumes from, and the broker
dead-letters it. `mqtool send-delayed` chooses one of the two; mqtool/delays/ does so for any exchange and queue.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mqtool.amqp import STREAMING, Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Exchange, Queue


def send(
    channel: AmqpChannel,
    exchange: Exchange,
    routing_key: str,
    messages: Iterable[Message | None],
    queue: Queue | None = None,
) -> Iterator[Receipt]:
    """Publish messages that the exchange delays; yield each one's receipt. None in the input means no message yet."""
    channel.declare(exchange)
    if queue is not None:  # a message is lost if no queue is bound when it is due
        channel.bind(channel.declare(queue), exchange, routing_key)
    held = (message and with_x_delay(message) for message in messages)
    return channel.publish(held, exchange=exchange, routing_key=routing_key, persistent=True)


def with_x_delay(message: Message) -> Message:
    """Return a message with its delay in the header x-delay, or the same message if it has no delay."""
    if message.delay is None:
        return message
    headers = {**(message.properties.get("headers") or {}), "x-delay": round(message.delay * 1000)}
    return replace(message, delay=None, properties={**message.properties, "headers": headers})


def send_by_dead_lettering(
    channel: AmqpChannel, queue: Queue, messages: Iterable[Message], delay: float
) -> Iterator[Receipt]:
    """Publish messages to a wait queue; they expire after `delay` seconds and are dead-lettered to `queue`."""
    milliseconds = round(delay * 1000)
    # The exchange "" is the default exchange, which routes to the queue that the routing key names.
    back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue.name}
    # Messages expire only at the head of a queue, so each delay needs a wait queue of its own.
    name = f"{queue.name}.wait.{milliseconds}ms"
    channel.declare(Queue(name, durable=True, arguments={"x-message-ttl": milliseconds, **back}))
    return channel.publish(messages, routing_key=name, persistent=True)


def receive(
    channel: AmqpChannel, exchange: Exchange, routing_key: str, queue: Queue, receiving: Receiving = STREAMING
) -> Iterator[Delivery]:
    """Consume delayed messages, which arrive when they are due."""
    channel.declare(exchange)
    queue = channel.declare(queue)
    channel.bind(queue, exchange, routing_key)
    return channel.consume(queue, receiving)
