"""Wait queues: a message waits in one until its time to live is over, and the broker dead-letters it to where it goes.

    publisher ──> [jobs.wait.5s] ···5 s···> [jobs]

There is one wait queue for each delay, as messages expire only at the head of a queue: behind one that waits for five
minutes, one for a second would wait for five minutes too.

A wait queue that nobody uses expires. To be declared is to be used; to be published to is not. So it is declared before
messages, again and again, and lives longer than any message in it.

A quorum queue dead-letters at least once: it keeps a message until the queue that it goes to has confirmed it. A
classic queue does not wait for that, and a quorum queue that is still electing its leader after a restart drops what it
is sent.

https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

from collections.abc import Callable
from typing import Any

from mqtool.amqp import Channel
from mqtool.errors import UsageError
from mqtool.topology import Queue

#: Milliseconds that a wait queue outlives the wait in it: time for the queue where its messages go to be there again.
GRACE = 60 * 60 * 1000

_AT_LEAST_ONCE = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    # The strategy asks for it: a queue that drops its head could not keep what is not confirmed.
    "x-overflow": "reject-publish",
}


def wait_queue(
    name: str, milliseconds: int, exchange: str, routing_key: str | None = None, *, at_least_once: bool
) -> Queue:
    """Where messages wait for so long before they go to an exchange.

    Args:
        routing_key: with which they go there; None is each one's own.
        at_least_once: as said above.
    """
    arguments: dict[str, Any] = {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": exchange,
        "x-expires": milliseconds + GRACE,
    }
    if routing_key is not None:
        arguments["x-dead-letter-routing-key"] = routing_key
    if at_least_once:
        arguments |= _AT_LEAST_ONCE
    return Queue(name, durable=True, arguments=arguments)


class AtLeastOnce:
    """Declares wait queues that dead-letter at least once; on brokers that cannot (RabbitMQ before 3.10), others.

    Args:
        notice: is told, once, if they cannot.
    """

    def __init__(self, channel: Channel, notice: Callable[[str], None]) -> None:
        self._channel = channel
        self._notice = notice
        self._can = True

    def declare(self, queue: Callable[[bool], Queue], *, remember: bool = False) -> Queue:
        """Declare a queue.

        Args:
            queue: makes it, with at_least_once or without.
            remember: declare it again after a reconnection.
        """
        if self._can:
            try:
                return self._channel.declare(queue(True), remember=remember)
            except UsageError:
                declared = self._channel.declare(queue(False), remember=remember)
            self._can = False
            self._notice(
                "this broker's queues cannot dead-letter at least once: what waits may be lost in a broker restart"
            )
            return declared
        return self._channel.declare(queue(False), remember=remember)
