"""Goals of the delayed-messages tutorial."""

from collections.abc import Iterator

from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen, SeenCopy, SeenMessage

_SECOND = 1000


def _arrived(seen: Seen) -> Iterator[tuple[SeenMessage, SeenCopy]]:
    """Yield each delayed message that was received: the message as sent, and the copy that was delivered."""
    for message in seen.messages:
        if message.was_held:
            yield from ((message, copy) for copy in message.copies if copy.deliveries)
    for dead in seen.dead_letters:
        if dead.reason == "expired":
            sent = [copy.message for copy in seen.copies_in(dead.origin) if copy.message.body == dead.body]
            yield from ((sent[0], copy) for copy in dead.copies[:1] if sent and copy.deliveries)


def _is_pending(seen: Seen) -> bool:
    """Return True if an exchange or a wait queue still holds back a message, so that it is too early to judge."""
    waits = {name for name, queue in seen.queues.items() if "x-dead-letter-exchange" in queue["arguments"]}
    # An exchange or a queue that was declared just now is not known yet. The queue may be a wait queue.
    held = (each for each in seen.messages if each.held_by)
    is_held = any(each.held_by in seen.exchanges or each.at > seen.topology_at for each in held)
    in_queues = (copy for each in seen.messages for copy in each.copies if not copy.end)
    return is_held or any(copy.queue in waits or copy.queue not in seen.queues for copy in in_queues)


def _overtaken(seen: Seen) -> str:
    arrived = [*_arrived(seen)]
    for first, late in arrived:
        for second, early in arrived:
            if first.at < second.at and early.deliveries[0].at < late.deliveries[0].at:
                waited = (late.deliveries[0].milliseconds - first.milliseconds) / _SECOND
                return f"{second} was sent after {first}, and arrived before it. {first} took {waited:.0f} s."
    return ""


def _not_delayed(seen: Seen) -> str:
    plain = [each for each in seen.messages if each.receivers and not each.was_held]
    return f"{plain[-1]} was delivered without a delay." if plain and not [*_arrived(seen)] else ""


def _in_order(seen: Seen) -> str:
    arrived = [*_arrived(seen)]
    if len(arrived) < 2 or _is_pending(seen):
        return ""
    return f"{arrived[-1][0]} was sent last, and also arrived last. Give the first message the longer delay."


def _one(seen: Seen) -> str:
    arrived = [*_arrived(seen)]
    if not arrived or _is_pending(seen):
        return ""
    return f"{arrived[-1][0]} arrived after its delay. Now send two messages, the first with the longer delay."


def _nobody(seen: Seen) -> str:
    sent = [each for each in seen.messages if not each.receivers]
    return f"{sent[-1]} was sent. Nobody has received it yet." if sent and not _is_pending(seen) else ""


_OVERTAKEN = Goal(
    "overtaken",
    "Send two delayed messages. The second one has to arrive before the first.",
    _overtaken,
    (_not_delayed, _in_order, _one, _nobody),
    (
        "A queue is first in, first out. Where can a message wait so that later ones overtake it?",
        "An x-delayed-message exchange holds messages back until they are due. Without one, each delay needs its own "
        "wait queue.",
        "in one terminal:\n  mqtool receive-delayed\nin another one:\n  mqtool send-delayed --delay 6s first\n"
        "  mqtool send-delayed --delay 2s second",
    ),
    only_embedded="RabbitMQ does not report when a message is held back, or dead-lettered",
)

GOALS = (_OVERTAKEN,)
