"""Wait queues: a message waits in one until it expires, and the broker dead-letters it to its destination.

    publisher ──> [jobs.wait.5s] ···5 s···> [jobs]

Each delay has its own wait queue, as messages expire only at the head of a queue: behind one that waits for five
minutes, one for a second would wait for five minutes too.

An unused wait queue expires. Declaring it counts as use, publishing to it does not. So it is declared again and again
while messages go there, and it lives longer than any message in it.

A quorum queue can dead-letter at least once: it keeps a message until the destination has confirmed it. A classic queue
does not wait for that, and a quorum queue that is electing its leader after a restart drops what it is sent.

https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

from collections.abc import Callable
from typing import Any

from mqtool.amqp import Channel
from mqtool.errors import DeclaredDifferently, UsageError
from mqtool.topology import Queue

#: Milliseconds that a wait queue outlives the wait in it: time for the destination to come back.
GRACE = 60 * 60 * 1000

_AT_LEAST_ONCE = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    # The strategy asks for it: a queue that drops its head could not keep what is not confirmed.
    "x-overflow": "reject-publish",
}


def wait_queue(name: str, milliseconds: int, exchange: str, routing_key: str | None = None) -> Queue:
    """A queue whose messages move on to an exchange after this long.

    Args:
        routing_key: None leaves each message its own.
    """
    arguments: dict[str, Any] = {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": exchange,
        "x-expires": milliseconds + GRACE,
    }
    if routing_key is not None:
        arguments["x-dead-letter-routing-key"] = routing_key
    return Queue(name, durable=True, arguments=arguments)


class AtLeastOnce:
    """Declares wait queues that dead-letter at least once, or plain ones where the broker (before 3.10) cannot.

    Args:
        warn: is told once that the broker cannot.
    """

    def __init__(self, channel: Channel, warn: Callable[[str], None]) -> None:
        self._channel = channel
        self._warn = warn
        self._can = True

    def declare(self, queue: Queue, *, remember: bool = False) -> Queue:
        """Declare a wait queue; `remember` declares it again after a reconnection.

        Raises:
            DeclaredDifferently: it exists with other arguments: messages might never leave it.
        """
        if self._can:
            try:
                safe = queue._replace(arguments={**queue.arguments, **_AT_LEAST_ONCE})
                return declare_exactly(self._channel, safe, remember=remember)
            except UsageError:
                declared = declare_exactly(self._channel, queue, remember=remember)
            self._can = False
            self._warn(
                "this broker's queues cannot dead-letter at least once: a broker restart may lose waiting messages"
            )
            return declared
        return declare_exactly(self._channel, queue, remember=remember)


def declare_exactly(channel: Channel, queue: Queue, *, remember: bool) -> Queue:
    """Declare a wait queue, or fail before anything is published to one that differs."""
    try:
        return channel.declare(queue, remember=remember, exactly=True)
    except DeclaredDifferently as error:
        hint = f"messages might never leave {queue.name}; once it is empty: mqtool queue delete {queue.name}"
        raise DeclaredDifferently(str(error), hint) from error
