"""Goals of the tutorials amqp10-hello-world and amqp10-work-queues."""

from collections import Counter

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal, Said
from mqtool.plays.goals.seen import AMQP_0_9_1, AMQP_1_0, Seen, SeenCopy, SeenDelivery
from mqtool.spelling import counted

_HELLO, _TASKS, _JOBS, _DEAD = "hello", "task_queue", "jobs", "jobs.dlq"
_FEW = 4
_NO_PROTOCOLS = "RabbitMQ does not report the protocol of a single message"
_NO_OUTCOMES = "RabbitMQ does not report the outcome of a single message"


def _named(protocol: str) -> str:
    """Return a name for a protocol, for use in a sentence. "" stands for the management API."""
    return {AMQP_1_0: "AMQP 1.0", "": "the management API"}.get(protocol, protocol)


def _received(seen: Seen, queue: str) -> list[tuple[SeenCopy, SeenDelivery]]:
    """Return the copies that were received from a queue, each with its last delivery; empty if there are none."""
    return [(copy, copy.deliveries[-1]) for copy in seen.copies_in(queue) if copy.received and copy.deliveries]


def _sent_otherwise(queue: str) -> Said:
    """Return a function that reports the latest message to this queue, if it was not sent over AMQP 1.0."""

    def said(seen: Seen) -> str:
        copies = seen.copies_in(queue)
        if not copies or copies[-1].message.protocol == AMQP_1_0:
            return ""
        message = copies[-1].message
        return f"{message} was sent over {_named(message.protocol)}. Send it over AMQP 1.0."

    return said


def _fetched(queue: str) -> Said:
    """Return a function that reports a message that was fetched from this queue (basic.get)."""

    def said(seen: Seen) -> str:
        fetched = [copy.message for copy, delivery in _received(seen, queue) if not delivery.protocol]
        return f"{fetched[-1]} was fetched (basic.get). Let a consumer receive it." if fetched else ""

    return said


def _crossed(seen: Seen) -> str:
    for copy, delivery in _received(seen, _HELLO):
        if (copy.message.protocol, delivery.protocol) == (AMQP_1_0, AMQP_0_9_1):
            return f"{copy.message} was sent over AMQP 1.0, and {seen.called(copy.receiver)} got it over AMQP 0-9-1."
    return ""


def _received_over_1_0(seen: Seen) -> str:
    got = [copy.message for copy, delivery in _received(seen, _HELLO) if delivery.protocol == AMQP_1_0]
    return f"{got[-1]} was sent and received over AMQP 1.0. Receive it over AMQP 0-9-1." if got else ""


_TWO_PROTOCOLS = Goal(
    "two-protocols",
    "Send 'Hello World!' over AMQP 1.0 to the queue 'hello', and receive it over AMQP 0-9-1.",
    _crossed,
    (
        mistakes.thrown_away(_HELLO),
        mistakes.given_back(_HELLO),
        _sent_otherwise(_HELLO),
        _fetched(_HELLO),
        _received_over_1_0,
        mistakes.not_sent_to(_HELLO),
        mistakes.not_acknowledged(_HELLO),
        mistakes.nobody_receives(_HELLO),
    ),
    (
        "Does a queue know over which protocol its messages were published?",
        "The AMQP 1.0 address /queues/hello names the queue that AMQP 0-9-1 clients call 'hello'. RabbitMQ converts "
        "messages between the two protocols.",
        "one after the other:\n  mqtool send --protocol amqp1.0 'Hello World!'\n  mqtool receive",
    ),
    only_embedded=_NO_PROTOCOLS,
    over_amqp10=True,
)


def _released(seen: Seen) -> str:
    released = [each for each in seen.lost("returned") if each.protocol == AMQP_1_0]
    return f"No queue got {released[0]}. Its publisher knows, because the outcome was 'released'." if released else ""


def _published_otherwise(seen: Seen) -> str:
    if not seen.messages or seen.messages[-1].protocol == AMQP_1_0:
        return ""
    message = seen.messages[-1]
    return f"{message} was published over {_named(message.protocol)}. Use AMQP 1.0."


def _settled(seen: Seen) -> str:
    dropped = seen.lost("dropped")
    return f"{dropped[-1]} was sent settled, so the broker reported no outcome to its publisher." if dropped else ""


def _rejected(seen: Seen) -> str:
    refused = seen.lost("refused")
    return f"{refused[-1]} was refused by a full queue: the outcome was 'rejected', not 'released'." if refused else ""


def _accepted(seen: Seen) -> str:
    got = [each for each in seen.messages if each.queues]
    if not got:
        return ""
    return f"{got[-1]} reached the queue {sorted(got[-1].queues)[0]!r}. Use a routing key that matches no binding."


_RELEASED = Goal(
    "released",
    "Publish a message over AMQP 1.0 to an exchange, with a routing key that matches no binding, so that its publisher "
    "gets the outcome 'released'.",
    _released,
    (_published_otherwise, _settled, _rejected, _accepted),
    (
        "Over AMQP 0-9-1, the broker returns an unroutable message to its publisher only if the message has the flag "
        "mandatory. Does AMQP 1.0 have such a flag?",
        "Outcomes: the broker settles each message of a publisher as accepted, rejected, or, if no queue gets it, "
        "released.",
        "  mqtool send --protocol amqp1.0 -e amq.direct -r helo 'Hello?'",
    ),
    only_embedded=_NO_OUTCOMES,
    over_amqp10=True,
)

HELLO_WORLD_GOALS = (_TWO_PROTOCOLS, _RELEASED)


def _shared(seen: Seen) -> str:
    done = Counter(delivery.protocol for _, delivery in _received(seen, _TASKS))
    over_1_0, over_0_9_1 = done[AMQP_1_0], done[AMQP_0_9_1]
    if over_1_0 + over_0_9_1 < _FEW or not over_1_0 or not over_0_9_1:
        return ""
    return (
        f"{counted(over_1_0, 'task')} over AMQP 1.0, and {counted(over_0_9_1, 'task')} over AMQP 0-9-1: all are done."
    )


def _few_tasks(seen: Seen) -> str:
    sent = len(seen.copies_in(_TASKS))
    return f"Tasks sent so far: {sent} of {_FEW}. Send more." if 0 < sent < _FEW else ""


def _one_protocol(seen: Seen) -> str:
    done = _received(seen, _TASKS)
    if len(done) < _FEW:
        return ""
    protocol = done[-1][1].protocol
    other = AMQP_0_9_1 if protocol == AMQP_1_0 else AMQP_1_0
    return f"All {len(done)} tasks were done over {_named(protocol)}. Let another worker use {_named(other)}."


_SHARED = Goal(
    "shared",
    "Let two workers share the queue 'task_queue': one over AMQP 1.0, the other over AMQP 0-9-1. Send four tasks, so "
    "that each worker does some of them.",
    _shared,
    (
        mistakes.thrown_away(_TASKS),
        mistakes.not_sent_to(_TASKS),
        mistakes.nobody_receives(_TASKS),
        _few_tasks,
        _fetched(_TASKS),
        _one_protocol,
    ),
    (
        "How could you move the workers of a queue to AMQP 1.0, one after the other, while the others keep working?",
        "A queue delivers its messages to all its consumers in turn, whatever protocol they use. Link credit limits a "
        "consumer in AMQP 1.0, as the prefetch count does in AMQP 0-9-1.",
        "in two terminals:\n  mqtool worker --protocol amqp1.0\n  mqtool worker\n"
        "in a third one:\n  printf '%s\\n' a. b. c. d. | mqtool new-task -l",
    ),
    patient=(_few_tasks,),
    only_embedded=_NO_PROTOCOLS,
    over_amqp10=True,
)


def _came_again(seen: Seen) -> str:
    for copy in seen.copies_in(_JOBS):
        ends = [each.end for each in copy.deliveries if each.protocol == AMQP_1_0]
        if "requeued: released" in ends and "dead-lettered: rejected" in ends:
            return f"{copy.message} was released and redelivered. Then it was rejected and dead-lettered."
    return ""


def _ends(seen: Seen) -> tuple[SeenCopy | None, list[str]]:
    """Return the latest job that was delivered, and how its deliveries ended; (None, []) if there is no such job."""
    delivered = [copy for copy in seen.copies_in(_JOBS) if copy.deliveries]
    return (delivered[-1], [each.end for each in delivered[-1].deliveries]) if delivered else (None, [])


def _not_over_1_0(seen: Seen) -> str:
    job, _ = _ends(seen)
    if job is None or all(each.protocol == AMQP_1_0 for each in job.deliveries):
        return ""
    return f"A delivery of {job.message} was not over AMQP 1.0. Send another job, and receive it over AMQP 1.0."


def _not_released(seen: Seen) -> str:
    job, ends = _ends(seen)
    if job is None or "requeued: released" in ends:
        return ""
    if job.acknowledged:
        return (
            f"{job.message} was accepted, so it is not redelivered. Send another job: first release it, then reject it."
        )
    if {"requeued: detached", "requeued: closed", "requeued: lost"} & {*ends}:
        return f"{job.message} is redelivered because its receiver ended, not because the receiver released it."
    if "dead-lettered: rejected" in ends:
        return (
            f"{job.message} was rejected, so it is not redelivered. Send another job: first release it, then reject it."
        )
    return ""


def _not_rejected(seen: Seen) -> str:
    job, ends = _ends(seen)
    if job is None or "requeued: released" not in ends:
        return ""
    if job.acknowledged:
        return (
            f"{job.message} was released, redelivered and then accepted. Send another job: release it, then reject it."
        )
    return f"{job.message} was released, and is redelivered. Now reject it."


_OUTCOMES = Goal(
    "outcomes",
    "The queue 'jobs' sends its dead letters to 'jobs.dlq'. Send a job. Write a program that receives the job over "
    "AMQP 1.0 and releases it. When the job is redelivered, the program has to reject it.",
    _came_again,
    (mistakes.not_sent_to(_JOBS), _not_over_1_0, _not_released, _not_rejected, mistakes.nobody_receives(_JOBS)),
    (
        "A receiver cannot do a job. When should the broker redeliver the job, and when should it not?",
        "Outcomes: accepted removes a message; released requeues it; rejected drops or dead-letters it; modified "
        "requeues, drops or dead-letters it.",
        "any AMQP 1.0 client will do. RabbitMQ's client for Python, and a worker that uses it:\n"
        "  pip install --pre rabbitmq-amqp-python-client\n"
        "  mqtool tutorial show amqp10-work-queues --plain > worker.py\n"
        "in the worker, call context.requeue() to release, and context.discard() to reject",
    ),
    queues={_DEAD: {}, _JOBS: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": _DEAD}},
    only_embedded=_NO_OUTCOMES,
    over_amqp10=True,
)

WORK_QUEUES_GOALS = (_SHARED, _OUTCOMES)
