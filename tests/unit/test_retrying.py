"""Retries: publishing to the wait queue or the dead-letter queue, with a channel of plain callables."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import pytest

from mqtool.amqp import Channel
from mqtool.delays.wait_queues import GRACE
from mqtool.errors import BadData, NotConfirmed, StoppedWaiting, UsageError
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.topology import Queue
from mqtool.work.retry_or_dead_letter import Retrying, RetryPolicy, dead_letter_queue, retry_queue
from mqtool.work.runner import Ending

JOB = Delivery(b"job", "", "jobs", "jobs", redelivered=False, properties={"message_id": "a"}, delivery_tag=1)
AGAIN = replace(JOB, properties={"message_id": "a", "headers": {"mqtool-attempts": 1, "x": 1}})
CONFIRMED = Confirmation.CONFIRMED


class FakeChannel:
    """Declares nothing, and answers each message with the next of the given answers; one that is an error is raised.

    Args:
        is_old: the broker refuses queues that dead-letter at least once, as RabbitMQ before 3.10 does.

    Attributes:
        declared, published: the names of the queues and the messages, in order.
    """

    def __init__(self, *answers: Confirmation | Exception, is_old: bool = False) -> None:
        self.answers = list(answers)
        self._is_old = is_old
        self.declared: list[str] = []
        self.published: list[Message] = []

    def declare(self, queue: Queue, *, remember: bool = True, exactly: bool = False) -> Queue:
        assert not remember, "the queue would be declared again after each reconnection, for ever"
        assert exactly, "the queue of somebody else might not keep the message"
        if self._is_old and "x-dead-letter-strategy" in queue.arguments:
            raise UsageError("no")
        self.declared.append(queue.name)
        return queue

    def publish(self, messages: Iterable[Message], *, mandatory: bool = False) -> Iterator[Receipt]:
        assert mandatory, "the broker would drop a message without a queue, and confirm it"
        for sequence, message in enumerate(messages, start=1):
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            self.published.append(message)
            yield Receipt(message, answer, "NO_ROUTE", sequence)


def retrying(channel: FakeChannel, retries: int = 1, notice: Callable[[str], None] = lambda _: None) -> Retrying:
    return Retrying(cast(Channel, channel), RetryPolicy(retries), notice)


def test_a_failed_message_is_retried_unless_it_was_the_last_attempt() -> None:
    """After a failed attempt, `worker` publishes the message to a wait queue if the message has retries left, and
    otherwise to the dead-letter queue.
    """
    channel = FakeChannel(CONFIRMED, CONFIRMED)
    assert retrying(channel, retries=1).retry(JOB, "failed")
    assert not retrying(channel, retries=0).retry(JOB, "failed")
    assert channel.declared == ["jobs.wait.1s", "jobs.dlq"]


def test_a_worker_that_is_stopped_before_it_can_publish_a_retry_raises_not_confirmed() -> None:
    """If the broker blocks the connection of `worker`, and a signal stops `worker` before it can publish a retry,
    `worker` raises NotConfirmed. The hint names the queue that still contains the message.
    """
    blocked = FakeChannel(StoppedWaiting("stopped: the broker blocks publishers"))
    with pytest.raises(NotConfirmed, match="message a was not moved: stopped: the broker blocks publishers") as error:
        retrying(blocked).retry(JOB, "failed")
    assert error.value.hint == "it is still in jobs"


def test_a_wait_queue_that_has_just_expired_is_declared_again() -> None:
    """If the wait queue for a retry has just expired, the broker returns the message as unroutable. `worker` then
    declares the wait queue again, and publishes the message again. If the broker returns the message three times,
    `worker` raises NotConfirmed.
    """
    channel = FakeChannel(Confirmation.RETURNED, Confirmation.CONFIRMED)
    assert retrying(channel).retry(JOB, "failed")
    assert channel.declared == ["jobs.wait.1s"] * 2
    with pytest.raises(NotConfirmed, match=r"'jobs\.wait\.1s' did not take message a: NO_ROUTE"):
        retrying(FakeChannel(*[Confirmation.RETURNED] * 3)).retry(JOB, "failed")


def test_worker_publishes_no_further_retries_after_a_missing_confirm() -> None:
    """If the confirm of a retry does not arrive, `worker` publishes no further retries: each of them raises
    NotConfirmed. A late confirm could otherwise be mistaken for that of the next retry.
    """
    channel = FakeChannel(NotConfirmed("no answer"), Confirmation.CONFIRMED)
    ours = retrying(channel)
    for _ in range(2):
        with pytest.raises(NotConfirmed, match="no answer"):
            ours.retry(JOB, "failed")
    assert channel.answers == [Confirmation.CONFIRMED]


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (RetryPolicy(), [1, 2, 4, 8, 16, None]),
        (RetryPolicy(retries=3, backoff=0.25), [0.25, 0.5, 1, None]),
        (RetryPolicy(retries=4, backoff=30, longest=100), [30, 60, 100, 100, None]),
        (RetryPolicy(retries=3, backoff=0.1004), [0.1, 0.201, 0.402, None]),
        (RetryPolicy(retries=2, backoff=0), [0.001, 0.001, None]),
        (RetryPolicy(retries=0), [None]),
    ],
    ids=["default", "short", "limited", "rounded", "no backoff", "no retries"],
)
def test_the_delay_before_each_retry_doubles_up_to_the_maximum(
    policy: RetryPolicy, seconds: list[float | None]
) -> None:
    """The delay before each retry by `worker` is twice the previous one, up to the maximum, rounded to milliseconds,
    and at least 1 ms. After the last attempt, there is no further delay.
    """
    assert [policy.delay(failures) for failures in range(1, len(seconds) + 1)] == seconds


def test_after_thousands_of_retries_the_delay_is_still_the_maximum() -> None:
    """Before each retry of a message that has failed thousands of times, `worker` waits for the maximum delay.
    Computing the doubled delay does not overflow.
    """
    assert RetryPolicy(retries=10_000).delay(5_000) == 300


@pytest.mark.parametrize(
    ("delay", "name", "milliseconds"), [(1, "1s", 1000), (90, "1m30s", 90_000), (0.25, "250ms", 250)]
)
def test_messages_return_from_a_wait_queue_to_their_work_queue(delay: float, name: str, milliseconds: int) -> None:
    """The wait queue that `worker` declares for a retry is durable, and does not expire before its messages do. After
    the delay, it dead-letters them to the work queue, through the default exchange. The dead-letter queue that `worker`
    declares is a durable classic queue.
    """
    queue = retry_queue("jobs", delay)
    assert (queue.name, queue.durable) == (f"jobs.wait.{name}", True)
    assert queue.arguments == {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "jobs",
        "x-expires": milliseconds + GRACE,
    }
    assert dead_letter_queue("jobs") == Queue("jobs.dlq", durable=True)


def test_a_message_that_waits_for_a_retry_contains_its_history() -> None:
    """When `worker` publishes a failed message to a wait queue, the message's headers contain the number of failed
    attempts, the last error, the queue, and the original exchange and routing key. A notice says when the message will
    be retried.
    """
    channel, notices = FakeChannel(CONFIRMED), list[str]()
    assert retrying(channel, retries=3, notice=notices.append).retry(AGAIN, "exit status 1")
    [message] = channel.published
    assert (message.body, message.exchange, message.routing_key) == (b"job", "", "jobs.wait.2s")
    assert message.properties["headers"].items() >= {
        "mqtool-attempts": 2, "mqtool-last-error": "exit status 1", "mqtool-queue": "jobs",
        "mqtool-exchange": "", "mqtool-routing-key": "jobs", "x": 1,
    }.items()  # fmt: skip
    assert "mqtool-reason" not in message.properties["headers"]
    assert notices == ["message a: exit status 1; retry 2 of 3 in 2s"]


@pytest.mark.parametrize(
    ("job", "attempts"), [(JOB, "1 attempt"), (AGAIN, "2 attempts")], ids=["first attempt", "second attempt"]
)
def test_a_message_that_failed_for_the_last_time_is_dead_lettered_with_the_reason(job: Delivery, attempts: str) -> None:
    """After the last failed attempt, `worker` publishes a message to the dead-letter queue with the reason "retries
    exhausted", and prints a notice that says how many attempts there were.
    """
    channel, notices = FakeChannel(CONFIRMED), list[str]()
    assert retrying(channel, retries=0, notice=notices.append).retry(job, "exit status 1") is False
    [message] = channel.published
    assert (message.exchange, message.routing_key) == ("", "jobs.dlq")
    headers = message.properties["headers"]
    assert (headers["mqtool-reason"], headers["mqtool-last-error"]) == ("retries exhausted", "exit status 1")
    assert notices == [f"message a: exit status 1; dead after {attempts}, now in jobs.dlq"]


def test_a_program_that_exits_with_65_rejects_its_message() -> None:
    """If a worker's program exits with 65, the message is dead-lettered without a retry. After any other failure, the
    message is retried.
    """
    channel = FakeChannel(CONFIRMED, CONFIRMED)
    ours = retrying(channel)
    assert ours.retry_or_dead_letter(JOB, Ending(65, b"no such user\n")) is False
    assert ours.retry_or_dead_letter(JOB, Ending(64, b"down\n")) is True
    assert channel.declared == ["jobs.dlq", "jobs.wait.1s"]
    rejected, failed = (message.properties["headers"] for message in channel.published)
    assert rejected["mqtool-reason"] == "rejected"
    assert "no such user" in rejected["mqtool-last-error"]
    assert "down" in failed["mqtool-last-error"]


@pytest.mark.parametrize(
    "error",
    [BadData("its headers are too large"), UsageError("its headers are too large")],
    ids=["bad data", "usage error"],
)
def test_headers_that_are_too_large_even_for_the_dead_letter_queue_are_dropped(error: Exception) -> None:
    """If a failed message's headers are so large that `worker` cannot add its own headers, in which it records the
    attempts, `worker` dead-letters the message instead of retrying it. If the headers are too large even for
    dead-lettering, `worker` drops them, and says so in a notice and in the header mqtool-last-error.
    """
    channel, notices = FakeChannel(error, error, CONFIRMED), list[str]()
    assert retrying(channel, retries=2, notice=notices.append).retry(AGAIN, "exit status 1") is False
    assert channel.declared == ["jobs.wait.2s", "jobs.dlq", "jobs.dlq"]
    [message] = channel.published
    headers = message.properties["headers"]
    assert "x" not in headers
    assert (headers["mqtool-attempts"], headers["mqtool-reason"]) == (2, "rejected")
    why = "exit status 1; its headers were dropped: its headers are too large"
    assert headers["mqtool-last-error"] == why
    assert notices == [f"message a: {why}; dead after 2 attempts, now in jobs.dlq"]


def test_a_message_that_fits_into_the_dead_letter_queue_keeps_its_headers() -> None:
    """If a failed message's headers are too large for a retry, but not for the dead-letter queue, `worker`
    dead-letters the message and keeps the message's headers.
    """
    channel, notices = FakeChannel(BadData("too large"), CONFIRMED), list[str]()
    assert retrying(channel, retries=2, notice=notices.append).retry(AGAIN, "exit status 1") is False
    assert channel.published[0].properties["headers"]["x"] == 1
    assert notices == ["message a: exit status 1; dead after 2 attempts, now in jobs.dlq"]


def test_a_message_that_cannot_be_dead_lettered_stays_in_its_queue() -> None:
    """If the dead-letter queue does not accept a message from `worker`, the error names the message, and the hint names
    the queue that still contains it.
    """
    with pytest.raises(NotConfirmed, match=r"'jobs\.dlq' did not take message a: NO_ROUTE") as error:
        retrying(FakeChannel(*[Confirmation.NACKED] * 3)).dead_letter(JOB, "failed")
    assert error.value.hint == "it is still in jobs"


def test_a_notice_warns_once_if_a_restart_may_lose_waiting_messages() -> None:
    """If the broker does not support at-least-once dead-lettering, `worker` keeps messages that wait for a retry in
    classic queues. One notice warns that a restart of the broker may lose them.
    """
    channel, notices = FakeChannel(CONFIRMED, CONFIRMED, is_old=True), list[str]()
    ours = retrying(channel, notice=notices.append)
    for _ in range(2):
        assert ours.retry(JOB, "failed")
    assert channel.declared == ["jobs.wait.1s"] * 2
    assert len([notice for notice in notices if "may lose waiting messages" in notice]) == 1


def test_a_message_too_large_even_without_its_headers_stays_in_its_queue() -> None:
    """If a failed message is too large for the dead-letter queue even without its headers, `worker` raises BadData. The
    hint names the queue that still contains the message, and the protocol over which `worker` can dead-letter it.
    """
    channel = FakeChannel(BadData("too large"), BadData("too large"))
    with pytest.raises(BadData, match=r"^message a cannot be dead-lettered: too large$") as error:
        retrying(channel).dead_letter(JOB, "failed")
    assert error.value.hint == "it is still in jobs; a worker with --protocol amqp0.9.1 can dead-letter it"
    assert channel.published == []
