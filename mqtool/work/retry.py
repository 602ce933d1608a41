"""Retry with exponential back-off, in queues alone: no process keeps a timer, so none is lost with one.

                     done
                 ┌──────────────> acknowledged
                 │
    [jobs] ──> worker ── failed ──> [jobs.wait.1s]        after 1, 2, 4 … seconds it expires there, and the broker
       ^         │                  [jobs.wait.2s]        dead-letters it: back to the queue it came from
       │         │                  [jobs.wait.4s]
       │         │                        │
       └─────────│────────────────────────┘
                 │
                 └── failed for the last time, or for good ──> [jobs.dlq]

There is one wait queue for each delay (wait_queues.py), which keeps a message until its queue has confirmed it. A
worker that dies between moving a message and acknowledging it leaves it in both queues; --deduplicate notices that.

The dead-letter queue is a classic queue: nothing leads out of it, and a quorum queue may count each look at a message
as a delivery, and drop it after twenty.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mqtool.amqp import Channel
from mqtool.delays.wait_queues import AtLeastOnce, wait_queue
from mqtool.duration import compact_duration
from mqtool.errors import BadData, NotConfirmed, UsageError
from mqtool.message import Delivery, Message
from mqtool.topology import Queue
from mqtool.work import history
from mqtool.work.moving import NotMoved, failed, move, name_of

#: A wait queue may expire between its declaration and the message.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and when, to try a message again.

    Attributes:
        retries: attempts after the first.
        backoff: seconds before the first retry.
        factor: each wait is this many times the one before.
        longest: the longest wait in seconds.
    """

    retries: int = 5
    backoff: float = 1.0
    factor: float = 2.0
    longest: float = 300.0

    def delay(self, failures: int) -> float | None:
        """Seconds to wait after N failures, to the millisecond; None if there is no other attempt."""
        if failures > self.retries:
            return None
        try:
            delay = self.backoff * self.factor ** (failures - 1)
        except OverflowError:
            delay = self.longest
        return max(0.001, round(min(delay, self.longest), 3))


def dead_letter_queue(queue: str) -> Queue:
    """Where the dead letters of a queue are."""
    return Queue(f"{queue}.dlq", durable=True)


def retry_queue(queue: str, delay: float) -> Queue:
    """Where messages wait this long, in seconds, before they go back to their queue."""
    return wait_queue(f"{queue}.wait.{compact_duration(delay)}", round(delay * 1000), "", queue)


class _TooMuch(Exception):
    """A message cannot be encoded together with its history."""


class Retrying:
    """Moves failed messages to wait, or to the dead letters. For several threads.

    The caller acknowledges a delivery when it has been moved.

    Args:
        channel: for its own use, not the one that messages are consumed on.
        notice: is told of each message.
    """

    def __init__(self, channel: Channel, policy: RetryPolicy, notice: Callable[[str], None]) -> None:
        self._channel = channel
        self._policy = policy
        self._notice = notice
        self._lock = threading.Lock()
        self._waiting = AtLeastOnce(channel, notice)
        self._failure: NotConfirmed | None = None

    def retry(self, delivery: Delivery, error: str) -> bool:
        """Move a failed message to wait for its next attempt; after the last one, to the dead letters.

        Returns:
            Whether there will be another attempt.

        Raises:
            NotConfirmed: the broker did not take it, so the delivery must not be acknowledged.
        """
        failures = history.attempt_of(delivery)
        delay = self._policy.delay(failures)
        if delay is None:
            self.bury(delivery, error, history.EXHAUSTED)
            return False
        queue = retry_queue(delivery.queue, delay)
        try:
            self._move(delivery, failed(delivery, error, queue.name), lambda: self._waiting.declare(queue))
        except _TooMuch:
            self.bury(delivery, error)
            return False
        self._notice(
            f"{name_of(delivery)}: {error}; retry {failures} of {self._policy.retries} in {compact_duration(delay)}"
        )
        return True

    def bury(self, delivery: Delivery, error: str, reason: str = history.REJECTED) -> None:
        """Move a message to the dead letters, if need be without its headers. Raises NotConfirmed as retry() does."""
        queue = dead_letter_queue(delivery.queue)

        def to_dead_letters(dead: Delivery) -> None:
            message = failed(dead, error, queue.name, reason)
            self._move(delivery, message, lambda: self._channel.declare(queue, remember=False))

        try:
            to_dead_letters(delivery)
        except _TooMuch as too_much:
            error = f"{error}; its headers were dropped: {too_much}"
            to_dead_letters(history.alone(delivery))
        times = history.attempt_of(delivery)
        self._notice(
            f"{name_of(delivery)}: {error}; dead after {times} attempt{'s' * (times > 1)}, now in {queue.name}"
        )

    def _move(self, delivery: Delivery, message: Message, declare: Callable[[], Queue]) -> None:
        with self._lock:
            if self._failure is not None:  # a late confirm would be taken for that of the next message
                raise self._failure
            for tries_left in reversed(range(_TRIES)):
                declare()
                try:
                    move(self._channel, delivery, message)
                except NotMoved:
                    if not tries_left:
                        raise
                except NotConfirmed as error:
                    self._failure = error
                    raise
                except (BadData, UsageError) as error:
                    raise _TooMuch(str(error)) from error
                else:
                    return
