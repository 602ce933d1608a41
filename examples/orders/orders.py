"""A small order service: `Orders` announces orders, and `Billing` bills each order once."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPConnectionError, NackError, UnroutableError

EXCHANGE = "orders"
QUEUE = "billing"
FAILED = "billing.failed"
ATTEMPTS = 3


class OrderFailed(Exception):
    """The order may not have reached the billing queue, so it might never be billed."""


def connect(url: str) -> BlockingChannel:
    """Connect to the broker, open a channel, and declare the exchange, queues and binding that the service needs."""
    parameters = pika.URLParameters(url)
    parameters.client_properties = {"connection_name": "orders"}
    channel = pika.BlockingConnection(parameters).channel()
    channel.exchange_declare(EXCHANGE, "topic", durable=True)
    channel.queue_declare(FAILED, durable=True)
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": FAILED}
    channel.queue_declare(QUEUE, durable=True, arguments=dead_letters)
    channel.queue_bind(QUEUE, EXCHANGE, "order.placed")
    channel.confirm_delivery()
    return channel


class Orders:
    """Announces orders. When place() returns, the broker has confirmed the order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel = connect(url)

    def place(self, **order: Any) -> None:
        """Announce an order.

        Raises:
            OrderFailed: the broker refuses the order, cannot route it, or cannot be reached.
        """
        # Each attempt has the same message ID, so that billing recognizes a duplicate.
        properties = pika.BasicProperties("application/json", delivery_mode=2, message_id=str(uuid.uuid4()))
        body = json.dumps(order).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._channel.is_closed:
                    self._channel = connect(self._url)
                self._channel.basic_publish(EXCHANGE, "order.placed", body, properties, mandatory=True)
            except (NackError, UnroutableError) as error:
                raise OrderFailed("refused") from error
            except AMQPConnectionError as error:
                if attempt == ATTEMPTS:
                    raise OrderFailed("no broker") from error
            else:
                return

    def close(self) -> None:
        """Close the connection."""
        if self._channel.is_open:
            self._channel.connection.close()


class Billing:
    """Bills each order once, even if its message is delivered several times."""

    def __init__(self, url: str, bill: Callable[[Any], None]) -> None:
        self._channel = connect(url)
        self._bill = bill
        self._billed: set[str | None] = set()
        self._channel.basic_consume(QUEUE, self._on_order)

    def run(self) -> None:
        """Bill orders until stop() is called."""
        self._channel.start_consuming()
        self._channel.connection.close()

    def stop(self) -> None:
        """Make run() return. Any thread may call this method."""
        self._channel.connection.add_callback_threadsafe(self._channel.stop_consuming)

    def _on_order(self, channel: BlockingChannel, method: Any, properties: Any, body: bytes) -> None:
        if properties.message_id not in self._billed:
            try:
                self._bill(json.loads(body))
            except ValueError:
                channel.basic_reject(method.delivery_tag, requeue=False)
                return
            self._billed.add(properties.message_id)
        channel.basic_ack(method.delivery_tag)
