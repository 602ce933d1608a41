"""Moving messages to other queues: each is confirmed there before it is acknowledged here, so none can be lost."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mqtool.amqp import Channel
from mqtool.errors import NotConfirmed
from mqtool.message import PERSISTENT, Confirmation, Delivery, Message, Receipt
from mqtool.work import history

#: Headers that the broker adds to a dead letter. With x-death, it drops messages that seem to go in circles.
_BROKERS = {"x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
            "x-last-death-exchange", "x-last-death-queue", "x-last-death-reason"}  # fmt: skip
#: Headers that it adds to a delivery: how often this queue has delivered it.
_COUNTS = {"x-delivery-count", "x-acquired-count"}
#: Headers that ask for copies in further queues, which those have by now.
_COPIES = {"CC", "BCC"}
_OURS = {history.ATTEMPTS, history.LAST_ERROR, history.REASON, history.FIRST_FAILURE, history.QUEUE}


class NotMoved(NotConfirmed):
    """The other queue did not take a message."""


def move(channel: Channel, delivery: Delivery, message: Message) -> None:
    """Publish a message in place of a delivery, which can be acknowledged once this returns.

    Raises:
        NotMoved: the broker returned or refused it.
    """
    for receipt in channel.publish([message], mandatory=True):
        if receipt.confirmation is not Confirmation.CONFIRMED:
            raise not_taken(delivery, receipt)


def not_taken(delivery: Delivery, receipt: Receipt) -> NotMoved:
    """The error for a message that the broker returned or refused."""
    return NotMoved(
        f"{name_of(delivery)} was not taken by {receipt.message.routing_key!r}: {receipt.reason}",
        f"it is still in {delivery.queue}",
    )


def failed(delivery: Delivery, error: str, to: str, reason: str | None = None) -> Message:
    """The message for the queue `to`, with one more failure in its headers.

    Args:
        error: why it failed, in one line.
        reason: why it becomes a dead letter, if it does.
    """
    origin = history.origin_of(delivery)
    headers = _without(delivery.headers, _BROKERS | _COUNTS | _COPIES)
    headers |= {
        history.ATTEMPTS: history.attempt_of(delivery),
        history.LAST_ERROR: error,
        history.QUEUE: delivery.queue,
        history.EXCHANGE: origin.exchange,
        history.ROUTING_KEY: origin.routing_key,
    }
    headers.setdefault(history.FIRST_FAILURE, datetime.now(UTC).replace(microsecond=0))
    if reason is not None:
        headers[history.REASON] = reason
    return _moved(delivery, headers, to)


def redriven(delivery: Delivery, to: str) -> Message:
    """The message for the queue `to`, as it was before it failed: its attempts count from one again."""
    return _moved(delivery, _without(delivery.headers, _OURS | _BROKERS | _COUNTS | _COPIES), to)


def elsewhere(delivery: Delivery, to: str, user: str) -> Message:
    """The same message for the queue `to`, with all that its publisher set, and its deaths.

    Args:
        user: whom the broker there knows us as; it takes a user_id only from that user.
    """
    properties = _without(delivery.properties, {"message_id"})
    if headers := delivery.properties.get("headers"):
        properties["headers"] = _without(headers, _COUNTS | _COPIES)
    if properties.get("user_id") != user:
        properties["user_id"] = None
    return Message(delivery.body, to, "", properties, delivery.message_id)


def _moved(delivery: Delivery, headers: Mapping[str, Any], to: str) -> Message:
    # An expiration would end it where it waits; a user id must be that of the connection. It must survive a restart.
    properties = _without(delivery.properties, {"headers", "message_id", "expiration", "user_id", "delivery_mode"})
    properties |= {"headers": headers or None, "delivery_mode": PERSISTENT}
    return Message(delivery.body, to, "", properties, delivery.message_id)


def _without(table: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def name_of(delivery: Delivery) -> str:
    """How notices and errors call a message."""
    body = delivery.body[:120].decode("utf-8", "replace")[:30]  # the rest may be megabytes
    return f"message {delivery.message_id}" if delivery.message_id else f"a message without id ({body!r})"
