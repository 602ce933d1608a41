"""Delayed messages wait on the broker until they are due, in one of two ways. No client process keeps a timer.

    plugin   publisher ──> (logs.delayed) ···5 s···> (logs) ──> …      an exchange of type x-delayed-message holds them
    ttl      publisher ──> [hello.delay.5s] ···5 s···> [hello]         wait queues hold them (wait_queues.py)
             publisher ──> (logs.exchange.delay.5s) ──> [the same] ···5 s···> (logs) ──> …

In both ways, a due message reaches its exchange with its own routing key and headers, and is routed like a newly
published message. Its header mqtool-due contains the due time, so receivers can compute how late the message is. After
a lost connection, a message that is published again waits its whole delay again: it may be late, but never early.

All messages in a wait queue have nearly the same delay, so none waits long behind one with a longer delay. A delay that
is not round is divided into two waits. This needs fewer queues than one for each possible delay. For 5.31 s:

    publisher ──> [hello.delay.5s.more] ···4.985 s···> (hello.delay) ──> [hello.delay.325ms] ···325 ms···> [hello]

The header mqtool-then selects the second queue. For delays of up to a minute, the time in the last queue is a multiple
of 25 ms, and a message's expiration makes the time in the first one up to 25 ms shorter than the queue's TTL.

Messages for a quorum queue, or for a durable exchange, which may route to a quorum queue, wait in quorum queues, which
keep a message until its target has confirmed it. (After a restart, messages may arrive twice. If the target was not yet
available, RabbitMQ tries again after three minutes.) A message that its exchange cannot route would never be confirmed.
So messages go through another exchange, (logs.due), which is also bound to a queue of maximum length 0, which drops its
copies.
All other messages wait in classic queues, which cost the broker less.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange, https://www.rabbitmq.com/docs/ttl
"""

import re
from enum import StrEnum

from mqtool.message import Message

#: The longest delay in milliseconds, 49 days and 17 hours: the limit of the broker's 32-bit timers.
LONGEST = 2**32 - 1

#: The end of the names of wait queues: NAME.wait.5s, NAME.delay.5s.more.2, NAME.exchange.delay.325ms.classic.
WAIT_SUFFIX = re.compile(
    r"(?P<exchange>\.exchange)?\.(?P<kind>delay|wait)(\.(\d+(ms|[dhms]))+){1,2}(?P<more>\.more)?(?P<number>\.\d+)?(\.classic)?$"
)


def is_wait_queue(name: str) -> bool:
    """True if mqtool gives names like this to wait queues, their exchanges, or queues that drop unroutable messages."""
    return name.endswith(".nowhere") or WAIT_SUFFIX.search(name) is not None


class Via(StrEnum):
    """How to delay messages: with the plugin, with wait queues (ttl), or with either, chosen by mqtool (auto)."""

    AUTO = "auto"
    PLUGIN = "plugin"
    TTL = "ttl"


def original(message: Message) -> Message:
    """Return the message as the publisher wrote it, without the changes that delay it."""
    seen: Message = getattr(message, "original", message)
    return seen
