"""A consumer on a channel."""

from typing import TYPE_CHECKING

from pamqp import commands

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.queue import Queue
from mqtool.routing.field_table import Table

if TYPE_CHECKING:
    from mqtool.broker.embedded.wire.channel import Channel


class Subscription:
    """What a basic.consume set up.

    Attributes:
        tag: the consumer tag.
        prefetch: how many messages it may have unacknowledged; 0 for any number.
        unacked: how many it has.
    """

    def __init__(
        self, channel: "Channel", queue: Queue, tag: str, *, no_ack: bool, exclusive: bool, arguments: Table
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        raw = tag.encode(errors="surrogateescape")
        self.encoded_tag = bytes([len(raw)]) + raw
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.arguments = arguments
        priority = arguments.get("x-priority", 0)
        self.priority = priority if isinstance(priority, int) else 0
        self.prefetch = channel.prefetch
        self.unacked = 0
        self._connection = channel.connection

    def ready(self) -> bool:
        """Whether it can take a message now."""
        connection = self._connection
        if not connection.writable:
            connection.starving[self.queue] = None
            return False
        if self.no_ack:
            return True
        channel = self.channel
        return (not self.prefetch or self.unacked < self.prefetch) and (
            not channel.global_prefetch or channel.global_unacked < channel.global_prefetch
        )

    def take(self, entry: Entry) -> None:
        """Send it a message."""
        self.channel.deliver(self, entry)

    def stop(self) -> None:
        """The client wants no more, or is gone."""
        self.queue.remove_consumer(self)

    def cancelled(self) -> None:
        """The queue is gone: say so, if the client can be told."""
        self.channel.subscriptions.pop(self.tag, None)
        if self._connection.capability("consumer_cancel_notify"):
            self.channel.send(commands.Basic.Cancel, consumer_tag=self.tag, nowait=True)
