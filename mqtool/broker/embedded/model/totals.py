"""Totals of messages since the broker started, by protocol and queue type, for its Prometheus metrics."""

from collections import Counter
from dataclasses import dataclass

from mqtool.broker.embedded.model.consumers import Traffic

#: The names of the protocols in metrics.
AMQP091, AMQP10, STREAM = "amqp091", "amqp10", "stream"

QUEUE_TYPES = ("classic", "quorum", "stream")


@dataclass
class Publishes:
    """How many messages clients have published.

    Attributes:
        received: all messages, including those that the other attributes count.
        with_confirm: messages whose publishers expect a confirm.
        confirmed: messages that have been confirmed.
        routed: how often messages were added to a queue: twice if there are two queues for a message.
        dropped, returned: messages for which there was no queue, without and with word to the publisher.
    """

    received: int = 0
    with_confirm: int = 0
    confirmed: int = 0
    routed: int = 0
    dropped: int = 0
    returned: int = 0

    def add(self, other: "Publishes") -> None:
        """Add the counts of another channel."""
        for name in self.__dict__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Totals:
    """What a broker counts for all of its clients.

    Queues and channels of AMQP 0-9-1 count for themselves, and are added here when they are gone, so that publishing a
    message takes no longer.

    Attributes:
        published: the publishes by protocol; for AMQP 0-9-1, those of closed channels, and those that were unroutable.
        delivered: the deliveries over AMQP 1.0 and the stream protocol, by protocol and queue type.
        deleted: the deliveries of queues that were deleted with their virtual hosts, over all protocols, by queue type.
        found_empty: how often basic.get found no message, by queue type.
    """

    def __init__(self) -> None:
        self.published = {protocol: Publishes() for protocol in (AMQP091, AMQP10, STREAM)}
        self.delivered = {(protocol, kind): Traffic() for protocol in (AMQP10, STREAM) for kind in QUEUE_TYPES}
        self.deleted = no_traffic()
        self.found_empty: Counter[str] = Counter()


def no_traffic() -> dict[str, Traffic]:
    """Return new counts of messages by queue type."""
    return {kind: Traffic() for kind in QUEUE_TYPES}
