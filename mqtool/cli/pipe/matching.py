"""--where of commands that receive: what does not match is not taken.

A private queue goes when the command ends, and a stream keeps its messages; so what does not match there is passed
over. In any other queue it is held, unacknowledged, until the command ends, and then returns. It cannot return sooner,
as it would come again at once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mqtool.amqp import Channel
from mqtool.amqp import Receiving as Settings
from mqtool.cli.display import output
from mqtool.cli.options import Receiving
from mqtool.errors import TimedOut, UsageError
from mqtool.message import Delivery

if TYPE_CHECKING:
    from mqtool.where import Where

#: Messages that one consumer can hold: AMQP's greatest prefetch.
_MOST = 65_535


class Matching(NamedTuple):
    """What to receive.

    Attributes:
        where: None for all.
        passes_over: what does not match need not be kept.
    """

    receiving: Receiving
    where: "Where | None"
    passes_over: bool = False

    def settings(self) -> Settings:
        """How the channel is to consume.

        Raises:
            UsageError: messages would be acknowledged before anybody looked at them.
        """
        settings = self.receiving.settings()
        if self.where is None:
            return settings
        if self.passes_over:
            return settings._replace(count=None)
        if settings.auto_ack:
            raise UsageError("--auto-ack would lose what does not match --where", "leave out --auto-ack")
        return settings._replace(count=None, acknowledge=False, prefetch=self.receiving.prefetch or _MOST)

    def of(self, channel: Channel, deliveries: Iterator[Delivery]) -> Iterator[Delivery]:
        """Those that match, up to the count; each is acknowledged when the next one is asked for."""
        if self.where is None:
            return deliveries
        return self._chosen(channel, deliveries, self.where)

    def _chosen(self, channel: Channel, deliveries: Iterator[Delivery], where: "Where") -> Iterator[Delivery]:
        from mqtool.where import of_delivery

        found, held, limit = 0, 0, self.receiving.limit
        most = self.receiving.prefetch or _MOST
        for delivery in deliveries:
            if where.matches(of_delivery(delivery)):
                found += 1
                yield delivery
                if not self.passes_over:
                    channel.before_acknowledging()
                    channel.acknowledge(delivery)
                if found == limit:
                    return
            elif not self.passes_over:
                held += 1
                if held == most:
                    output.warning(
                        f"{held:,} messages that do not match are held: that is the prefetch, so no more come"
                    )
        if limit is not None and self.receiving.idle_timeout is not None and not channel.stopping:
            raise TimedOut(f"nothing came for {self.receiving.idle_timeout:g} s, with {found:,} of {limit:,} received")
