"""Delayed messages: they wait at the broker until they are due, in one of two ways. No process keeps a timer.

    plugin   publisher ──> (logs.delayed) ···5 s···> (logs) ──> …      an exchange of type x-delayed-message holds them
    ttl      publisher ──> [hello.delay.5s] ···5 s···> [hello]         a wait queue for each delay (wait_queues.py)
             publisher ──> (logs.exchange.delay.5s) ──> [the same] ···5 s···> (logs) ──> …

Either way a message reaches its exchange with its own routing key and headers, and is routed as if it were published
then. The header mqtool-due contains the time when it is due, so receivers can compute how late it is. A message that is
published again after a lost connection waits its whole delay again: it may be late, but never early.

There is one wait queue for every 25 ms of delay, up to 10 s; beyond, the step doubles whenever the delay does. A
message's own TTL is exact. It is late, by one step at most, only if a message with a longer delay is in front of it.

Messages for a quorum queue, or for a durable exchange, which may route to one, wait in quorum queues, which keep them
until the target has confirmed them. (After a restart some may arrive twice. If the target was not there yet, RabbitMQ
tries again after three minutes.) A message that its exchange cannot route would never be confirmed. So it goes through
another exchange, (logs.due), which is also bound to a queue of length 0. All other messages wait in classic queues,
which cost the broker far less.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange, https://www.rabbitmq.com/docs/ttl
"""

from enum import StrEnum

from mqtool.message import Message

#: The longest delay in milliseconds, 49 days and 17 hours: what fits into the 32 bits of the broker's timers.
LONGEST = 2**32 - 1


class Via(StrEnum):
    """What delays messages: the plugin, wait queues (ttl), or whichever suits (auto)."""

    AUTO = "auto"
    PLUGIN = "plugin"
    TTL = "ttl"


def original(message: Message) -> Message:
    """The message as its publisher knows it, without the changes that delay it."""
    seen: Message = getattr(message, "original", message)
    return seen
