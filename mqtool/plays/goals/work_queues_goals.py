"""Goals of the work-queues tutorial."""

from collections import Counter
from itertools import pairwise

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal, TrialFault
from mqtool.plays.goals.seen import Seen, SeenCopy, SeenDelivery, SeenMessage, at_once
from mqtool.spelling import counted

_TASKS = "task_queue"
_MANY = 6
#: A task that takes at least this many milliseconds is a long one.
_LONG = 1000


def _done_copies(seen: Seen) -> list[SeenCopy]:
    """Return the tasks that a consumer or basic.get has received, except those published again for a retry."""
    copies = seen.copies_in(_TASKS)
    return [copy for copy in copies if copy.received and copy.deliveries and copy.republished is None]


def _done(seen: Seen) -> Counter[str]:
    """Return how many tasks each worker has done."""
    return Counter(copy.receiver for copy in _done_copies(seen))


def _shared(seen: Seen) -> str:
    done = at_once(_done_copies(seen), fewest=2)
    if sum(done.values()) < _MANY:
        return ""
    return "; ".join(f"{seen.called(worker)} did {count} tasks" for worker, count in done.items()) + "."


def _one_worker(seen: Seen) -> str:
    done = _done(seen)
    if done.total() < _MANY or len(done) > 1:
        return ""
    return (
        f"{seen.called(next(iter(done)))} did all {done.total()} tasks alone. Start a second worker, and "
        "send six more tasks."
    )


def _in_turn(seen: Seen) -> str:
    tasks = _done_copies(seen)
    if len(tasks) < _MANY or len(_done(seen)) < 2 or at_once(tasks):
        return ""
    last = max(tasks, key=lambda copy: copy.deliveries[-1].at)
    other = next(copy for copy in tasks if copy.receiver != last.receiver)
    return (
        f"{seen.called(other.receiver)} got its last task before {seen.called(last.receiver)} got its first. "
        "Let both run at the same time, and send six more tasks."
    )


def _uneven(seen: Seen) -> str:
    done = _done(seen)
    if done.total() < _MANY or len(done) < 2:
        return ""
    worker, most = done.most_common(1)[0]
    return f"{seen.called(worker)} did {most} of {done.total()} tasks. Let two workers run, and send six more tasks."


def _few_tasks(seen: Seen) -> str:
    sent = len(seen.copies_in(_TASKS))
    return f"Tasks sent so far: {sent} of {_MANY}. Send more." if 0 < sent < _MANY else ""


_SHARED = Goal(
    "shared",
    "Start two workers on the queue 'task_queue', and send six tasks, so that the workers share them.",
    _shared,
    (
        mistakes.thrown_away(_TASKS),
        mistakes.not_sent_to(_TASKS),
        mistakes.nobody_receives(_TASKS),
        mistakes.not_done(_TASKS),
        _few_tasks,
        _one_worker,
        _in_turn,
        _uneven,
    ),
    (
        "If two workers get their tasks from one queue, is each task done once, or twice?",
        "Round-robin dispatching: the broker gives each message of a queue to one of its consumers, in turn.",
        "in two terminals:\n  mqtool worker\nin a third one:\n  seq 6 | mqtool new-task -l",
    ),
    patient=(_few_tasks,),
)


def _deliveries(seen: Seen) -> list[tuple[SeenCopy, SeenDelivery]]:
    """Return all deliveries of tasks, each with its task, in order."""
    found = [(copy, each) for copy in seen.copies_in(_TASKS) for each in copy.deliveries]
    return sorted(found, key=lambda pair: pair[1].at)


def _meanwhile(seen: Seen, long: SeenDelivery) -> list[tuple[SeenCopy, SeenDelivery]]:
    """Return the deliveries that began while `long` had not ended, each with its task."""
    return [(copy, each) for copy, each in _deliveries(seen) if long.at < each.at < (long.ended_at or seen.now + 1)]


def _fair(seen: Seen) -> str:
    for copy, long in _deliveries(seen):
        others = [each for _, each in _meanwhile(seen, long)]
        if long.end == "acknowledged" and len(others) >= 3 and not any(each.no_ack for each in others):
            workers = {each.receiver for each in others}
            if len(workers) == 1 and long.receiver not in workers:
                busy, other = seen.called(long.receiver), seen.called(others[0].receiver)
                return f"While {busy} worked on {copy.message}, {other} got all {len(others)} other tasks."
    return ""


def _hoards(seen: Seen) -> str:
    for copy, long in _deliveries(seen):
        meanwhile = [other for other, each in _meanwhile(seen, long) if each.receiver == long.receiver]
        if meanwhile and not long.no_ack:
            held = ", ".join(str(each.message) for each in meanwhile)
            return (
                f"{seen.called(long.receiver)} was busy with {copy.message}, and also got {held}. Limit each "
                "worker to one unacknowledged message (a prefetch count of 1)."
            )
    return ""


def _automatic(seen: Seen) -> str:
    early = next((copy for copy in seen.copies_in(_TASKS) if copy.is_early), None)
    if early is None:
        return ""
    return f"{early.message} counted as done when it was delivered (automatic acknowledgement), not when it was done."


def _too_quick(seen: Seen) -> str:
    done = _done_copies(seen)
    if len(done) < 4:
        return ""
    task = max(done, key=lambda copy: copy.deliveries[-1].held_milliseconds)
    longest = task.deliveries[-1]
    if longest.held_milliseconds < _LONG:
        return "No worker was busy while another worker did three tasks. Send a long task first, such as 'long.....'."
    meanwhile = len(_meanwhile(seen, longest))
    if meanwhile >= 3 or _hoards(seen):  # enough tasks, but the other worker did not get all
        return ""
    return (
        f"While {seen.called(longest.receiver)} worked on {task.message}, {counted(meanwhile, 'other task')} reached a "
        "worker. Send at least three quick tasks right after the long one, while two workers run."
    )


_FAIR = Goal(
    "fair",
    "Start two workers again. Send a long task, then at least three quick ones. While one worker is busy, the other "
    "has to do all the quick tasks.",
    _fair,
    (mistakes.not_sent_to(_TASKS), _automatic, _hoards, mistakes.nobody_receives(_TASKS), _one_worker, _too_quick),
    (
        "When does the broker know that a worker can take another task?",
        "Fair dispatch: with a prefetch count of 1, a consumer gets no new message until it acknowledges the last one.",
        "in two terminals (the prefetch count of mqtool's worker is 1):\n  mqtool worker\n"
        "in a third one:\n  printf '%s\\n' long..... a b c | mqtool new-task -l",
    ),
    only_embedded="RabbitMQ does not report when a single message is acknowledged",
)


def _survived(seen: Seen) -> str:
    for copy in seen.copies_in(_TASKS):
        for first, second in pairwise(copy.deliveries):
            is_another = first.end == "requeued: lost" and first.receiver != second.receiver
            if is_another and copy.acknowledged and copy.republished is None:
                gone, other = seen.called(first.receiver), seen.called(second.receiver)
                return (
                    f"{gone} was disconnected while it held {copy.message}; the task was redelivered to {other}, which "
                    "did it."
                )
    return ""


def _given_back(seen: Seen) -> str:
    ended = [(copy, each) for copy, each in _deliveries(seen) if each.end.startswith("requeued")]
    if not ended:
        return ""
    copy, latest = max(ended, key=lambda pair: pair[1].ended_at)
    if latest.end == "requeued: closed":
        return (
            f"{seen.called(latest.receiver)} itself closed its channel or connection, so {copy.message} was requeued. "
            "Kill the worker while it works (kill -9)."
        )
    if latest.end != "requeued: lost":
        return f"{seen.called(latest.receiver)} itself requeued {copy.message}. Kill the worker while it works."
    return ""


def _needs_another(seen: Seen) -> str:
    for copy in seen.copies_in(_TASKS):
        if not copy.end and copy.deliveries and copy.deliveries[-1].end == "requeued: lost":
            return f"{copy.message} was requeued: its worker was disconnected. Now another worker must do the task."
    return ""


def _was_done(seen: Seen) -> str:
    done = [
        copy
        for copy in seen.copies_in(_TASKS)
        if copy.acknowledged and len(copy.deliveries) == 1 and copy.republished is None
    ]
    return f"{done[-1].message} was done before its worker ended. Kill the worker while it works." if done else ""


_KILLED = Goal(
    "killed",
    "Kill a worker in the middle of a task (kill -9), so that it cannot even close its connection. Let another worker "
    "do the task.",
    _survived,
    (
        _automatic,
        mistakes.not_done(_TASKS),
        _given_back,
        mistakes.thrown_away(_TASKS),
        _needs_another,
        _was_done,
        mistakes.not_sent_to(_TASKS),
        mistakes.nobody_receives(_TASKS),
    ),
    (
        "What does the broker know about a task whose worker has died?",
        "Message acknowledgement: a message that was not acknowledged is redelivered when its consumer's channel "
        "closes.",
        "in one terminal:\n  mqtool worker\nin another one:\n  mqtool new-task long..........\n"
        "while the worker works, look up its process, kill it, and start a worker again:\n"
        "  pgrep -f 'mqtool worker'\n  kill -9 PID\n  mqtool worker",
    ),
    only_embedded="RabbitMQ does not report why a message is redelivered",
)

_KEPT = "tasks"


def _two_kinds(seen: Seen) -> bool:
    waiting = [copy.message.persistent for copy in seen.copies_in(_KEPT) if not copy.end and not copy.is_held]
    return len({*waiting}) == 2


def _is_received_after(copy: SeenCopy, moment: int) -> bool:
    return copy.received and bool(copy.deliveries) and copy.deliveries[-1].at > moment


def _gone_after(seen: Seen) -> str:
    if not seen.acted or any(not copy.end for copy in seen.copies_in(_KEPT) if copy.message.persistent):
        return ""
    if any(_is_received_after(copy, seen.acted) for copy in seen.copies_in(_KEPT) if copy.at < seen.acted):
        return ""
    return (
        "The persistent message survived the restart, but left the queue before anybody received it. Press r to begin "
        "this goal again."
    )


def _kept_and_lost(seen: Seen) -> str:
    before = [copy for copy in seen.copies_in(_KEPT) if copy.at < seen.acted]
    kept = [copy for copy in before if copy.message.persistent and _is_received_after(copy, seen.acted)]
    lost = [copy for copy in before if copy.end == "lost in the restart" and not copy.deliveries]
    if not seen.acted or not kept or not lost or seen.depth(_KEPT):
        return ""
    return f"{kept[0].message} is persistent, and survived the restart; {lost[0].message} is transient, and was lost."


def _other_type(seen: Seen) -> str:
    kind = seen.queues.get(_KEPT, {}).get("type", "classic")
    if kind == "classic":
        return ""
    return f"'tasks' is a {kind} queue now, and this goal is about a classic queue. Press r to begin this goal again."


def _kind_missing(seen: Seen) -> str:
    if seen.acted:
        return "Now receive what is left in 'tasks'."
    kinds = {copy.message.persistent: copy.message for copy in seen.copies_in(_KEPT) if not copy.end}
    if len(kinds) != 1:
        return ""
    ((is_persistent, message),) = kinds.items()
    if is_persistent:
        return f"{message} is persistent (delivery mode 2), so it would survive a restart. Also send a transient one."
    return f"{message} is transient (delivery mode 1, or none), so a restart would lose it. Also send a persistent one."


def _taken_before(seen: Seen) -> str:
    taken = [copy for copy in seen.copies_in(_KEPT) if copy.received and not seen.acted]
    return f"{taken[-1].message} was received before the restart. Leave the messages in 'tasks'." if taken else ""


_RESTART = Goal(
    "restart",
    "There is a durable classic queue 'tasks'. Send it two messages: one that survives a restart of the broker, and "
    "one that does not. Once both are in the queue, the broker restarts. Then receive the message that is left.",
    _kept_and_lost,
    (_other_type, _gone_after, mistakes.thrown_away(_KEPT), _taken_before, mistakes.not_sent_to(_KEPT), _kind_missing),
    (
        "The queue is durable. Is that enough for its messages?",
        "Message durability: a durable queue survives a restart, and so do its messages that are marked as persistent.",
        "before the restart:\n  mqtool send -q tasks --persistent kept\n  mqtool send -q tasks lost\n"
        "after it:\n  mqtool receive -q tasks",
    ),
    queues={_KEPT: {}},
    fault=TrialFault("restart", _two_kinds, "Both messages are in 'tasks'. The broker has been restarted."),
    only_embedded="mqtool does not restart a broker that others may use",
)

_JOBS, _DEAD = "jobs", "jobs.dlq"


def _dead(seen: Seen) -> list[SeenMessage]:
    """Return the dead letters of jobs: published by the broker, or by a worker before it acknowledged the job."""
    jobs = [(copy.message.body, each) for copy in seen.copies_in(_JOBS) for each in copy.deliveries]
    by_workers = [
        dead
        for dead in seen.published_to("", _DEAD)
        for body, job in jobs
        if dead.connection and job.receiver.startswith(dead.connection)
        if body == dead.body and job.at < dead.at < job.ended_at
    ]
    return [each for each in seen.dead_letters if each.origin == _JOBS] + by_workers


def _returned(seen: Seen, dead: SeenMessage) -> list[SeenCopy]:
    """Return the messages in 'jobs' that may be this dead letter, published again; empty if there are none.

    If the receiver of the dead letter published its body again before acknowledging it, only that message is returned.
    Otherwise, all messages with the same body are returned that were published after the dead letter was delivered.
    """
    taken = dead.copy_in(_DEAD)
    if taken is None or not taken.deliveries:
        return []
    if (republished := taken.republished) is not None and (copy := republished.copy_in(_JOBS)) is not None:
        return [copy]
    since = taken.deliveries[-1].at
    return [copy for copy in seen.copies_in(_JOBS) if copy.message.body == dead.body and copy.at > since]


def _redriven(seen: Seen) -> str:
    for dead in _dead(seen):
        taken, jobs = dead.copy_in(_DEAD), _returned(seen, dead)
        is_taken = taken is not None and taken.received
        if is_taken and jobs and all(copy.acknowledged and copy.republished is None for copy in jobs):
            return f"{dead} was rejected, dead-lettered to 'jobs.dlq', published to 'jobs' again, and then done."
    return ""


def _not_back(seen: Seen) -> str:
    for dead in _dead(seen):
        taken = dead.copy_in(_DEAD)
        if taken is not None and taken.received and not _returned(seen, dead):
            return f"{dead} was received from 'jobs.dlq', but not published to 'jobs' again."
    return ""


def _still_dead(seen: Seen) -> str:
    for dead in _dead(seen):
        if any(not copy.end for copy in dead.copies):
            return (
                f"{dead} is in 'jobs.dlq', because its worker rejected it. Move it back to 'jobs'. With mqtool, run:\n"
                "  mqtool dlq redrive jobs"
            )
    return ""


def _back(seen: Seen) -> str:
    for dead in _dead(seen):
        if any(not copy.end for copy in _returned(seen, dead)):
            return f"{dead} is back in 'jobs'. Now a worker must do the job."
    return ""


def _requeued(seen: Seen) -> str:
    for copy in seen.copies_in(_JOBS):
        if any(each.end.startswith("requeued") for each in copy.deliveries):
            return (
                f"{copy.message} was requeued in 'jobs'. A message is dead-lettered only if it is rejected with "
                "requeue=false."
            )
    return ""


def _thrown_into(seen: Seen) -> str:
    direct = [each for each in seen.published_to("", _DEAD) if each not in _dead(seen)]
    return f"{direct[-1]} was published directly to 'jobs.dlq', so it is not a dead letter of 'jobs'." if direct else ""


def _just_done(seen: Seen) -> str:
    done = [copy for copy in seen.copies_in(_JOBS) if copy.acknowledged and copy.republished is None]
    if _dead(seen):  # other functions report where the rejected job is
        return ""
    return f"{done[-1].message} was done. Send another job, and let the worker reject it." if done else ""


_DEAD_LETTER = Goal(
    "dead-letter",
    "The queue 'jobs' sends its dead letters to 'jobs.dlq'. Send a job, and let a worker reject it. Then move the "
    "dead letter back to 'jobs', and do the job.",
    _redriven,
    (
        _still_dead,
        _back,
        _not_back,
        _requeued,
        _thrown_into,
        mistakes.not_sent_to(_JOBS),
        mistakes.not_done(_JOBS, "To reject immediately: mqtool worker --retries 0"),
        mistakes.thrown_away(_JOBS),
        _just_done,
    ),
    (
        "A worker cannot do a job, now or later. Where should the job go, so that it is neither lost nor redelivered?",
        "Dead lettering: a message that is rejected with requeue=false goes to the queue's dead-letter exchange.",
        "one after the other:\n  mqtool send -q jobs x\n  mqtool worker -q jobs --retries 0 --exec false -c 1\n"
        "  mqtool dlq redrive jobs\n  mqtool worker -q jobs",
    ),
    queues={_DEAD: {}, _JOBS: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": _DEAD}},
    only_embedded="RabbitMQ does not report dead letters one by one",
)

GOALS = (_SHARED, _FAIR, _KILLED, _RESTART, _DEAD_LETTER)
