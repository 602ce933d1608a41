"""Attempts at the goals of work-queues."""

import contextlib
import time

import pika

from tests.goals.attempts import Attempts, Plain, PlainConsumer, Wrong


def _share(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    workers = [plain.consume(queue) for _ in range(2)]
    for number in range(6):
        plain.send(queue, str(number))
    for worker in workers:
        worker.wait(3)
        worker.ack()


def _alone(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    for number in range(6):
        plain.send(queue, str(number))
    plain.receive(queue, 6)


def _in_turn(plain: Plain) -> None:
    """Two workers never run at the same time."""
    queue = plain.queue("task_queue")
    for _ in range(2):
        for number in range(3):
            plain.send(queue, str(number))
        plain.receive(queue, 3)


def _fair(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    busy, other = plain.consume(queue, prefetch=1), plain.consume(queue, prefetch=1)
    for body in ("long", "a", "b", "c"):
        plain.send(queue, body)
    busy.wait(1)
    for number in range(1, 4):
        other.wait(number)
        other.ack()
    busy.ack()
    time.sleep(0.2)


def _too_late(plain: Plain) -> None:
    """There is a long task, but the quick ones are sent only after it is done."""
    queue = plain.queue("task_queue")
    workers = [plain.consume(queue, prefetch=1) for _ in range(2)]
    plain.send(queue, "long")
    workers[0].wait(1)
    time.sleep(1.2)  # the task takes that long
    workers[0].ack()
    for number, body in enumerate("abcd"):
        worker, count = workers[(number + 1) % 2], 1 + (number + 1) // 2
        plain.send(queue, body)
        worker.wait(count)
        worker.ack()


def _hoard(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    busy, other = plain.consume(queue), plain.consume(queue)
    for body in ("long", "a", "b", "c"):
        plain.send(queue, body)
    for each in (busy, other):
        each.wait(2)
        each.ack()


def _automatic(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    busy, other = plain.consume(queue, auto_ack=True), plain.consume(queue, auto_ack=True)
    for body in ("long", "a", "b", "c"):
        plain.send(queue, body)
    busy.wait(2)
    other.wait(2)


def _working(plain: Plain) -> PlainConsumer:
    """Return a worker in the middle of the task "long"."""
    plain.send(plain.queue("task_queue"), "long")
    worker = plain.consume("task_queue")
    worker.next()
    return worker


def _die(plain: Plain) -> None:
    worker = _working(plain)
    worker.die()
    plain.receive("task_queue")


def _leave(plain: Plain) -> None:
    """The worker closes its connection in the middle of a task."""
    worker = _working(plain)
    worker.close()
    plain.receive("task_queue")


def _nack(plain: Plain) -> None:
    worker = _working(plain)
    worker.channel.basic_cancel(worker.channel.consumer_tags[0])
    worker.channel.basic_nack(worker.got[0][0], requeue=True)
    plain.receive("task_queue")


def _die_alone(plain: Plain) -> None:
    worker = _working(plain)
    worker.die()


def _misspelt(plain: Plain) -> None:
    plain.consume(plain.queue("task_queues"))
    plain.send(plain.queue("task_queue"), "long")


def _die_and_purge(plain: Plain) -> None:
    _die_alone(plain)
    time.sleep(0.3)  # the broker requeues it once it notices
    plain.channel().queue_purge("task_queue")


#: A worker whose tasks fail: it retries them.
_FAILS = "mqtool worker --exec false -c 1"


def _die_with_nothing(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    plain.send(queue, "long")
    plain.receive(queue, auto_ack=True)


def _two_kinds(plain: Plain, *, early: str = "", receives: bool = True) -> None:
    """Send a persistent and a transient message; receive what survives. First, send and receive `early`, if given."""
    channel = plain.channel()
    if early:
        channel.basic_publish("", "tasks", early.encode(), pika.BasicProperties(delivery_mode=2))
        channel.basic_get("tasks", auto_ack=True)
    for body, mode in (("kept", 2), ("lost", 1)):
        channel.basic_publish("", "tasks", body.encode(), pika.BasicProperties(delivery_mode=mode))
    with contextlib.suppress(pika.exceptions.AMQPConnectionError):
        while True:  # until the broker is restarted
            channel.connection.process_data_events(0.1)
    if receives:
        plain.receive("tasks")


def received_before_the_restart(plain: Plain) -> None:
    """A persistent message is received before the restart, and another one after it."""
    _two_kinds(plain, early="early")


def purge_after_restart(plain: Plain) -> None:
    _two_kinds(plain, receives=False)
    plain.channel().queue_purge("tasks")


def _redrive(plain: Plain) -> None:
    plain.send("jobs", "x")
    _reject(plain)
    plain.receive("jobs.dlq")
    plain.send("jobs", "x")
    plain.receive("jobs")


def _reject(plain: Plain, *, requeue: bool = False) -> None:
    worker = plain.consume("jobs", prefetch=1)
    worker.next()
    worker.channel.basic_reject(worker.got[0][0], requeue=requeue)
    worker.close()


def _reject_only(plain: Plain) -> None:
    plain.send("jobs", "x")
    _reject(plain)


def _requeue(plain: Plain) -> None:
    plain.send("jobs", "x")
    _reject(plain, requeue=True)


def _do_another(plain: Plain) -> None:
    """Another job with the same text is done, and the dead letter is only received from its queue."""
    _reject_only(plain)
    plain.send("jobs", "x")
    plain.receive("jobs")
    plain.receive("jobs.dlq")


#: The dead letter is redriven behind another job with the same text, and only that job is done.
_ANOTHER_FIRST = (
    "mqtool send -q jobs x; mqtool worker -q jobs --retries 0 --exec false -c 1; mqtool send -q jobs x;"
    "mqtool dlq redrive jobs --yes; mqtool receive -q jobs -c 1"
)


def _pretend(plain: Plain) -> None:
    """The same messages in the same queues, but no dead letter."""
    plain.send("jobs.dlq", "x")
    plain.receive("jobs.dlq")
    plain.send("jobs", "x")
    plain.receive("jobs")


ATTEMPTS = {
    "shared": Attempts(
        "start mqtool worker; start mqtool worker; seq 6 | sed s/$/./ | mqtool new-task -l",  # else one may do them all
        _share,
        (
            Wrong("did all 6 tasks alone", _alone),
            Wrong("before receiver 2 got its first", _in_turn),
            Wrong("Tasks sent so far: 2 of 6", "start mqtool worker; start mqtool worker; seq 2 | mqtool new-task -l"),
            Wrong("which has no consumer", "seq 6 | mqtool new-task -l"),
            Wrong("went to the queue 'jobs'", "mqtool send -q jobs x"),
        ),
    ),
    "fair": Attempts(
        "start mqtool worker; start mqtool worker; printf '%s\\n' long.. a b c d | mqtool new-task -l",
        _fair,
        (
            Wrong("was busy with 'long', and also got 'b'. Limit each worker", _hoard),
            Wrong("automatic acknowledgement", _automatic),
            Wrong("Send at least three quick tasks right after", _too_late),
            Wrong("No worker was busy", "start mqtool worker; seq 4 | mqtool new-task -l"),
        ),
    ),
    "killed": Attempts(
        "start mqtool worker; mqtool new-task long..; pause; kill -9 %1; start mqtool worker",
        _die,
        (
            Wrong("itself requeued 'long'", _nack),
            Wrong("itself closed its channel or connection", _leave),
            Wrong("Now another worker must do the task", _die_alone),
            Wrong("automatic acknowledgement", _die_with_nothing),
            Wrong("was done before its worker ended", "mqtool new-task quick; mqtool worker -c 1"),
            Wrong("receiver 1 published it again to 'task_queue.wait.1s'", f"mqtool new-task x; {_FAILS}"),
            Wrong("'task_queue' was purged", _die_and_purge),
            Wrong("A receiver waits for messages from 'task_queues', which is empty", _misspelt),
        ),
    ),
    "restart": Attempts(
        "mqtool send -q tasks --persistent kept; mqtool send -q tasks lost; sleep 2; mqtool receive -q tasks -c 1",
        _two_kinds,
        (
            Wrong("Also send a transient one", "mqtool send -q tasks --persistent a"),
            Wrong("Also send a persistent one", "mqtool send -q tasks a"),
            Wrong("was received before the restart", "mqtool send -q tasks a; mqtool receive -q tasks -c 1"),
            Wrong("Press r to begin this goal again", purge_after_restart),
            Wrong(
                "'tasks' is a quorum queue now",
                "mqtool queue delete tasks --yes; mqtool queue declare tasks --queue-type quorum;"
                "mqtool send -q tasks --persistent a; mqtool send -q tasks b",
            ),
            Wrong("Now receive what is left", "mqtool send -q tasks --persistent a; mqtool send -q tasks b"),
        ),
    ),
    "dead-letter": Attempts(
        "mqtool send -q jobs x; mqtool worker -q jobs --retries 0 --exec false -c 1; mqtool dlq redrive jobs --yes;"
        "mqtool worker -q jobs -c 1",
        _redrive,
        (
            Wrong("is in 'jobs.dlq', because its worker rejected it", _reject_only),
            Wrong("was requeued in 'jobs'", _requeue),
            Wrong("but not published to 'jobs' again", _do_another),
            Wrong("is back in 'jobs'", _ANOTHER_FIRST),
            Wrong("it is not a dead letter of 'jobs'", _pretend),
            Wrong("To reject immediately: mqtool worker --retries 0", f"mqtool send -q jobs x; {_FAILS} -q jobs"),
            Wrong("let the worker reject it", "mqtool send -q jobs x; mqtool receive -q jobs -c 1"),
        ),
    ),
}
