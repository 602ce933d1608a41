"""Messages to publish, the broker's confirmations, and deliveries received."""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

#: The properties of a message (AMQP 0-9-1, class basic), with underscores.
PROPERTIES = (
    *("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to"),
    *("expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id"),
)

#: The properties that only AMQP 1.0 has. Times are in seconds since 1970. The footer is a section of its own.
ONLY_10 = ("to", "subject", "absolute_expiry_time", "group_sequence", "reply_to_group_id", "footer")

PERSISTENT = 2

#: The largest message that RabbitMQ accepts, in bytes, whatever its max_message_size is.
LARGEST_MESSAGE = 512 << 20

#: The longest expiration that RabbitMQ accepts, in milliseconds: ten years.
LONGEST_EXPIRATION = 315_360_000_000

#: The headers with more routing keys. Over AMQP 1.0, mqtool reads the annotation x-cc as CC, and writes CC as x-cc.
COPIES = ("CC", "BCC")

#: Headers that the broker sets in a delivery, and that belong to the queue from which it was read: how often a quorum
#: queue has delivered the message (x-acquired-count: from RabbitMQ 4.3 on), and its offset in a stream.
QUEUE_HEADERS = ("x-delivery-count", "x-acquired-count", "x-stream-offset")

#: As reply_to of a request, it asks for direct replies to the channel that publishes the request.
#: https://www.rabbitmq.com/docs/direct-reply-to
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

#: The header of a delayed message with its due time, in milliseconds since 1970.
DUE = "mqtool-due"

#: The header that holds the bytes of headers or properties that could not be decoded.
UNREADABLE = "mqtool-unreadable"
#: The maximum nesting of tables and arrays to decode; deeper ones stay Undecoded.
MAX_DEPTH = 64

#: Seconds to wait for confirms. A cluster may need ten to detect a lost node and elect a new leader for a queue.
CONFIRM_TIMEOUT = 20.0

#: The last second of the year 9999, in seconds since 1970: the end of what datetime can represent.
END_OF_TIME = 253_402_300_799


class Undecoded(bytes):
    """A header's value left in AMQP's encoding: a type byte, then the value."""

    wire_type = "$encoded"


class Timestamp(int):
    """A time that is too late for datetime (after END_OF_TIME), in seconds since 1970."""


@dataclass(slots=True)
class Message:
    """A message to publish.

    Attributes:
        routing_key: None uses the routing key passed to publish().
        exchange: None uses the exchange passed to publish(); "" is the default exchange.
        properties: AMQP properties by name (see PROPERTIES), including the headers. Messages may share one mapping.
        message_id: the property message_id, which is separate because it differs from message to message.
        delay: seconds to delay the message after it is published.
        due: instead of `delay`, the time at which to deliver the message, in seconds since 1970.
        received: True if the message was read from the NDJSON of a delivery.
    """

    body: bytes
    routing_key: str | None = None
    exchange: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    message_id: str | None = None
    delay: float | None = None
    due: float | None = None
    received: bool = False


def time_to_live(expiration: str) -> int:
    """Convert the property expiration to milliseconds. Raises ValueError if RabbitMQ would refuse it."""
    if re.fullmatch("[+-]?[0-9]+", expiration) is None or not 0 <= int(expiration) <= LONGEST_EXPIRATION:
        raise ValueError(f"not a number of milliseconds up to {LONGEST_EXPIRATION}: {expiration!r}")
    return int(expiration)


def expiring(seconds: float | None) -> dict[str, str]:
    """Return the property expiration of a message that is of no use after this time; nothing for None.

    It is at most 49 days, the longest time to live in AMQP 1.0.
    """
    return {} if seconds is None else {"expiration": str(min(math.ceil(seconds * 1000), (1 << 32) - 1))}


#: The type property of an RPC server's reply that is an error.
ERROR_REPLY = "error"


def error_reply(reply: Message, why: str) -> Message:
    """Copy the reply of an RPC server; its body says why the actual reply cannot be sent."""
    properties = {"type": ERROR_REPLY, "correlation_id": reply.properties.get("correlation_id")}
    return replace(reply, body=why.encode(), properties=properties)


class InBatches:
    """A source of messages that publish() reads in batches instead of one by one."""

    def batches(self) -> Iterator[list[Message]]:
        """Yield the available messages in batches; an empty batch if no message is available right now.

        publish() removes each message that it has published from its batch.
        """
        raise NotImplementedError


class Confirmation(StrEnum):
    """How the broker responded to a published message: basic.ack, basic.nack or basic.return."""

    CONFIRMED = "confirmed"
    NACKED = "nacked"
    RETURNED = "returned"


class Receipt(NamedTuple):
    """A published message and the broker's response.

    Attributes:
        reason: why the broker rejected or returned the message.
        sequence: the message's number within one call to publish(), from 1.
    """

    message: Message
    confirmation: Confirmation
    reason: str = ""
    sequence: int = 0


def to_publish_again(properties: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """Return the properties of a delivery without those that are left out, and without a reply_to for direct replies.

    The broker replaces DIRECT_REPLY_TO with an address when a client publishes a request, so nobody waits for replies
    to it. But a message of a stream, or one published over AMQP 1.0, may have it. The broker would close our channel.
    """
    if properties.get("reply_to") == DIRECT_REPLY_TO:
        left_out = (*left_out, "reply_to")
    return {name: value for name, value in properties.items() if name not in left_out}


def prepare_copy(message: Message, *, keeps_queue_headers: bool = False) -> None:
    """Remove from a message that was read from NDJSON what a publisher must not set, in place.

    That is the user_id, since the broker accepts only the name of the user who publishes, a reply_to for direct
    replies, and, unless they are to be kept, QUEUE_HEADERS.
    """
    if not message.properties.keys().isdisjoint({"user_id", "reply_to"}):
        message.properties = to_publish_again(message.properties, "user_id")
    headers = message.properties.get("headers")
    if headers and not keeps_queue_headers and not headers.keys().isdisjoint(QUEUE_HEADERS):
        left = {name: value for name, value in headers.items() if name not in QUEUE_HEADERS}
        message.properties = {**message.properties, "headers": left or None}


@dataclass(slots=True)
class Delivery:
    """A message as a consumer receives it.

    Attributes:
        queue: the queue that the message was consumed from.
        redelivered: True if the message was delivered before, and not acknowledged.
        properties: AMQP properties by name (see PROPERTIES). A property that is not set is None or missing.
        delivery_tag: the broker's number for this delivery on its channel.
        epoch: how many times the channel had been opened when this message arrived. A delivery tag is valid only in its
            epoch.
        settled: True if this delivery has been acknowledged.
    """

    body: bytes
    exchange: str
    routing_key: str
    queue: str
    redelivered: bool
    properties: Mapping[str, Any]
    delivery_tag: int
    epoch: int = 0
    settled: bool = False

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers; an empty mapping if there are none."""
        return self.properties.get("headers") or {}

    @property
    def message_id(self) -> str | None:
        return self.properties.get("message_id")

    @property
    def text(self) -> str:
        """The body decoded as UTF-8; invalid bytes become replacement characters."""
        return self.body.decode("utf-8", "replace")

    @property
    def times_requeued(self) -> int:
        """How many times a quorum queue has requeued the message: `x-delivery-count`.

        On a first delivery, and in a classic queue, that header can only be the publisher's.
        """
        count = self.headers.get("x-delivery-count")
        return count if self.redelivered and isinstance(count, int) else 0

    @property
    def lateness(self) -> int | None:
        """Milliseconds since a delayed message was due, by this machine's clock; None for other messages."""
        due = self.headers.get(DUE)
        return int(time.time() * 1000) - due if isinstance(due, int) else None


def new_message_ids(count: int) -> list[str]:
    """Make random UUIDs (RFC 9562, version 4). With uuid.uuid4(), `send -l` needs a tenth more CPU time."""
    digits = os.urandom(16 * count).hex()
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-4{digits[at + 13 : at + 16]}"
        f"-a{digits[at + 17 : at + 20]}-{digits[at + 20 : at + 32]}"
        for at in range(0, 32 * count, 32)
    ]


def new_message_id() -> str:
    """Make a random UUID."""
    return new_message_ids(1)[0]


class LostReplies:
    """Tells the user that a queue has not accepted the reply of an RPC server, once for each of up to 1,000 queues."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._told: set[str | None] = set()

    def add(self, receipt: Receipt) -> None:
        """Tell the user that the reply with this receipt is lost."""
        queue = receipt.message.routing_key
        if queue in self._told:
            return
        if len(self._told) == 1000:
            self._told.clear()
        self._told.add(queue)
        if receipt.confirmation is Confirmation.RETURNED:
            self._notice(f"lost a reply: its queue {queue!r} does not exist; the client may have ended")
        else:
            self._notice(f"lost a reply to queue {queue!r}: {receipt.reason}; the queue may be full")
