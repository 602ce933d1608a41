"""Moving messages to other queues: each is confirmed there before it is acknowledged here, so none can be lost."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mqtool.amqp import Channel
from mqtool.errors import NotConfirmed
from mqtool.message import PERSISTENT, Confirmation, Delivery, Message
from mqtool.work import history

#: Moved messages that may wait for their confirms: what a kill can double. Most of the time goes into taking messages
#: one by one, so more would not be faster.
_WINDOW = 50
#: Headers that the broker adds to a dead letter. With x-death, it drops messages that seem to go in circles.
_BROKERS = {"x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
            "x-last-death-exchange", "x-last-death-queue", "x-last-death-reason", "x-delivery-count",
            "x-acquired-count"}  # fmt: skip
#: Headers that ask for copies in further queues, which those have by now.
_COPIES = {"CC", "BCC"}
_OURS = {history.ATTEMPTS, history.LAST_ERROR, history.REASON, history.FIRST_FAILURE, history.QUEUE}


class Move(NamedTuple):
    """A delivery, and the message to publish in its place."""

    delivery: Delivery
    message: Message


class NotMoved(NotConfirmed):
    """The other queue did not take a message."""


def _raise(error: NotMoved, _: Message) -> None:
    raise error


def move(
    channel: Channel, moves: Iterable[Move], hint: str = "", refused: Callable[[NotMoved, Message], None] = _raise
) -> Iterator[Delivery]:
    """Publish each message; once it is confirmed, yield its delivery, which can then be acknowledged.

    Args:
        refused: is given what the broker returned or refused: its delivery is still in its queue.

    Raises:
        NotMoved: as refused() raises it, which by default it does.
    """
    in_hand: dict[int, Delivery] = {}

    def messages() -> Iterator[Message]:
        for sequence, each in enumerate(moves, start=1):
            in_hand[sequence] = each.delivery
            yield each.message

    for receipt in channel.publish(messages(), mandatory=True, window=_WINDOW):
        delivery = in_hand.pop(receipt.sequence)
        if receipt.confirmation is not Confirmation.CONFIRMED:
            to = receipt.message.routing_key
            refused(
                NotMoved(
                    f"{name_of(delivery)} was not taken by {to!r}: {receipt.reason}",
                    f"it is still in {delivery.queue}{hint}",
                ),
                receipt.message,
            )
        else:
            yield delivery


def failed(delivery: Delivery, error: str, to: str, reason: str | None = None) -> Move:
    """Move a message to the queue `to`, with one more failure in its headers.

    Args:
        error: why it failed, in one line.
        reason: why it becomes a dead letter, if it does.
    """
    origin = history.origin_of(delivery)
    headers = _without(delivery.headers, _BROKERS | _COPIES)
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


def redriven(delivery: Delivery, to: str) -> Move:
    """Move a message to the queue `to` as it was before it failed: its attempts count from one again."""
    return _moved(delivery, _without(delivery.headers, _OURS | _BROKERS | _COPIES), to)


def _moved(delivery: Delivery, headers: Mapping[str, Any], to: str) -> Move:
    # An expiration would end it where it waits; a user id must be that of the connection. It must survive a restart.
    properties = _without(delivery.properties, {"headers", "message_id", "expiration", "user_id", "delivery_mode"})
    properties |= {"headers": headers or None, "delivery_mode": PERSISTENT}
    return Move(delivery, Message(delivery.body, to, "", properties, delivery.properties.get("message_id")))


def _without(table: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def name_of(delivery: Delivery) -> str:
    """How notices and errors call a message."""
    message_id = delivery.properties.get("message_id")
    body = delivery.body[:120].decode("utf-8", "replace")[:30]  # the rest may be megabytes
    return f"message {message_id}" if message_id else f"a message without id ({body!r})"
