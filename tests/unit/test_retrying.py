"""Retries: publishing to the wait queue or the dead-letter queue, with a channel of plain callables."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from mqtool.amqp import Channel
from mqtool.errors import NotConfirmed
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.topology import Queue
from mqtool.work.retry_or_dead_letter import Retrying, RetryPolicy

JOB = Delivery(b"job", "", "jobs", "jobs", redelivered=False, properties={"message_id": "a"}, delivery_tag=1)


class FakeChannel:
    """Declares nothing, and answers each message as told; an error is raised."""

    def __init__(self, *answers: Confirmation | Exception) -> None:
        self.answers = list(answers)
        self.declared: list[str] = []

    def declare(self, queue: Queue, *, remember: bool = True, exactly: bool = False) -> Queue:  # noqa: ARG002
        self.declared.append(queue.name)
        return queue

    def publish(self, messages: Iterable[Message], **_: Any) -> Iterator[Receipt]:
        for sequence, message in enumerate(messages, start=1):
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            yield Receipt(message, answer, "NO_ROUTE", sequence)


def retrying(channel: FakeChannel, retries: int = 1) -> Retrying:
    return Retrying(cast(Channel, channel), RetryPolicy(retries), lambda _: None)


def test_retry_returns_whether_there_is_another_attempt() -> None:
    """retry() publishes a failed message to the wait queue and returns True; after the last attempt, it publishes the
    message to the dead-letter queue and returns False.
    """
    channel = FakeChannel(Confirmation.CONFIRMED, Confirmation.CONFIRMED)
    assert retrying(channel, retries=1).retry(JOB, "failed")
    assert not retrying(channel, retries=0).retry(JOB, "failed")
    assert channel.declared == ["jobs.wait.1s", "jobs.dlq"]


def test_a_wait_queue_that_has_just_expired_is_declared_again() -> None:
    """If the broker returns a message because the wait queue has expired, retry() declares the queue again; after three
    returns, retry() raises NotConfirmed.
    """
    channel = FakeChannel(Confirmation.RETURNED, Confirmation.CONFIRMED)
    assert retrying(channel).retry(JOB, "failed")
    assert channel.declared == ["jobs.wait.1s"] * 2
    with pytest.raises(NotConfirmed, match=r"'jobs\.wait\.1s' did not take message a: NO_ROUTE"):
        retrying(FakeChannel(*[Confirmation.RETURNED] * 3)).retry(JOB, "failed")


def test_after_a_missing_confirm_nothing_more_is_published() -> None:
    """After a confirm has not arrived, each further retry() raises NotConfirmed without publishing, because a late
    confirm would be taken for that of the next message.
    """
    channel = FakeChannel(NotConfirmed("no answer"), Confirmation.CONFIRMED)
    ours = retrying(channel)
    for _ in range(2):
        with pytest.raises(NotConfirmed, match="no answer"):
            ours.retry(JOB, "failed")
    assert channel.answers == [Confirmation.CONFIRMED]
