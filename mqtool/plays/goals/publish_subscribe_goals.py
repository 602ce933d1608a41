"""Goals of the publish-subscribe tutorial."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen

_LOGS = "logs"


def _first_was_lost(seen: Seen) -> str:
    lost = [each for each in seen.published_to(_LOGS) if each.lost]
    got = [each for each in seen.published_to(_LOGS) if each.receivers]
    if not lost or not got or got[-1].at < lost[0].at:
        return ""
    return f"No queue was bound to 'logs' when {lost[0]} was published, so no queue got it. {got[-1]} was received."


def _nothing_lost(seen: Seen) -> str:
    got = [each for each in seen.published_to(_LOGS) if each.queues]
    if not got or any(each.lost for each in seen.published_to(_LOGS)):
        return ""
    return (
        f"A queue was already bound when {got[0]} was published. Stop all receivers, and begin with a message that no "
        "queue gets."
    )


def _only_lost(seen: Seen) -> str:
    lost = [each for each in seen.published_to(_LOGS) if each.lost]
    if not lost:
        return ""
    return f"{lost[-1]} reached no queue: no queue is bound to 'logs'. Start a receiver, then publish another message."


def _not_read(seen: Seen) -> str:
    unread = [each for each in seen.published_to(_LOGS) if each.queues and not each.receivers]
    return f"{unread[-1]} is in a queue, but nobody has received it." if unread else ""


_NOBODY_LISTENS = Goal(
    "nobody-listens",
    "Publish a message to the fanout exchange 'logs' while no queue is bound to it. Then start a receiver, and publish "
    "another message. Will the receiver get both?",
    _first_was_lost,
    (mistakes.not_published_to(_LOGS), _nothing_lost, _not_read, _only_lost),
    (
        "Where could the exchange keep a message until somebody wants it?",
        "Exchanges do not store messages: if no queue is bound, the message is lost.",
        "in one terminal:\n  mqtool emit-log fanout one\nthen, in another one:\n  mqtool receive-log fanout\n"
        "then, in the first one again:\n  mqtool emit-log fanout two",
    ),
)


def _two_copies(seen: Seen) -> str:
    for message in seen.published_to(_LOGS):
        if len({*message.receivers}) >= 2:
            receivers = " and ".join(seen.called(each) for each in dict.fromkeys(message.receivers))
            unread = sorted(copy.queue for copy in message.copies if not copy.received)
            left = f" Nobody has received the copy in {', '.join(map(repr, unread))}." if unread else ""
            return f"{message} was copied to {len(message.queues)} queues: {receivers} got it.{left}"
    return ""


def _share_a_queue(seen: Seen) -> str:
    queues = {copy.queue for each in seen.published_to(_LOGS) for copy in each.copies}
    for queue in queues:
        copies = [copy for each in seen.published_to(_LOGS) for copy in each.copies if copy.queue == queue]
        if len({copy.receiver for copy in copies if copy.received}) > 1:
            return f"The receivers share the queue {queue!r}: each message reaches only one of them."
    return ""


def _one_receiver(seen: Seen) -> str:
    got = [each for each in seen.published_to(_LOGS) if each.receivers]
    return f"{got[-1]} reached one receiver. Start another receiver, and publish again." if got else ""


_TWO_COPIES = Goal(
    "two-copies",
    "Start two receivers, and publish a message to 'logs' that both of them get. One of them may write to a file; the "
    "broker does not see the file.",
    _two_copies,
    (mistakes.not_published_to(_LOGS), _share_a_queue, _one_receiver, _not_read, _only_lost),
    (
        "In the last tutorial, two workers shared a queue, and each task reached one of them. How many queues do you "
        "need now?",
        "Temporary queues: each receiver binds a queue of its own to the exchange, and gets a copy of each message.",
        "in two terminals:\n  mqtool receive-log fanout > logs.log\n  mqtool receive-log fanout\n"
        "in a third one:\n  mqtool emit-log fanout hi",
    ),
)

GOALS = (_NOBODY_LISTENS, _TWO_COPIES)
