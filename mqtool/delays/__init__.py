"""Messages that wait at the broker until they are due, in one of two ways. No process keeps a timer.

    plugin   publisher ──> (logs.delayed) ···5 s···> (logs) ──> …      an exchange of type x-delayed-message holds them
    ttl      publisher ──> [hello.delay.5s] ···5 s···> [hello]         a wait queue for each delay (wait_queues.py)
             publisher ──> (logs.exchange.delay.5s) ──> [the same] ···5 s···> (logs) ──> …

Either way a message goes on to its own exchange, with its own routing key and headers, and is routed as if it had been
published then. The header mqtool-due says when it is due, so receivers can tell how late it is. A message published
again after a lost connection waits its whole delay again: late, but never early.

Delays are rounded up to 25 ms steps, up to 10 s; beyond, the step doubles whenever the delay does. Each step has one
wait queue. A message's own time to live is exact. It is late, by one step at most, only if a message with a longer
delay is in front of it in the same queue.

Messages for a quorum queue, or for a durable exchange, which may lead to one, wait in quorum queues, which keep them
until they have arrived. (After a restart some may arrive twice. If the target was not there yet, RabbitMQ tries again
after three minutes.) A message that its exchange routes to no queue would never arrive; so it goes through another
exchange, (logs.due), which is also bound to a queue that keeps nothing. All other messages wait in classic queues,
which are far lighter.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange, https://www.rabbitmq.com/docs/ttl
"""

from enum import StrEnum

from mqtool.message import Message

#: The longest delay in milliseconds, 49 days and 17 hours: what fits into the 32 bits of the broker's timers.
LONGEST = 2**32 - 1


class Via(StrEnum):
    """What holds messages back."""

    AUTO = "auto"
    PLUGIN = "plugin"
    TTL = "ttl"


def original(message: Message) -> Message:
    """The message as its publisher knows it, whether it was held back or not."""
    seen: Message = getattr(message, "original", message)
    return seen
