"""Retry with exponential back-off, in queues alone: no timer lives in a process, so none is lost with one.

                     done
                 ┌──────────────> acknowledged
                 │
    [jobs] ──> worker ── failed ──> [jobs.wait.1s]        after 1, 2, 4 … seconds there its time to live is over, and
       ^         │                  [jobs.wait.2s]        the broker dead-letters it: back to the queue it came from
       │         │                  [jobs.wait.4s]
       │         │                        │
       └─────────│────────────────────────┘
                 │
                 └── failed for the last time, or for good ──> [jobs.dlq]

There is one wait queue for each delay (see wait_queues.py). The message is confirmed in its new place before it is
acknowledged in the old one; a worker that dies in between leaves it in both, which --deduplicate notices, and no worker
can lose it. Where it came from and how often it has failed it says itself, in headers (see history.py).

Wait queues are quorum queues that dead-letter at least once: they keep a message until the queue that it goes back to
has confirmed it. The dead-letter queue is a classic one: nothing leads out of it, and a quorum queue may count each
look at a message as a delivery, and drop it after twenty.

https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mqtool.amqp import Channel
from mqtool.delays.wait_queues import AtLeastOnce, wait_queue
from mqtool.duration import compact_duration
from mqtool.errors import NotConfirmed
from mqtool.message import Confirmation, Delivery, Message, Outcome
from mqtool.topology import Queue
from mqtool.work import history

#: How often to try where a wait queue vanishes between its declaration and the message.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and when, to try a message again.

    Attributes:
        retries: attempts after the first.
        backoff: seconds before the first retry.
        factor: how much longer each wait is than the one before.
        longest: seconds that no wait exceeds.
    """

    retries: int = 5
    backoff: float = 1.0
    factor: float = 2.0
    longest: float = 300.0

    def delay(self, failures: int) -> float | None:
        """Seconds to wait after so many failures, to the millisecond; None when there is no other attempt."""
        if failures > self.retries:
            return None
        try:
            delay = self.backoff * self.factor ** (failures - 1)
        except OverflowError:
            delay = self.longest
        return max(0.001, round(min(delay, self.longest), 3))


def dead_letter_queue(queue: str) -> Queue:
    """Where the dead letters of a queue lie."""
    return Queue(f"{queue}.dlq", durable=True)


def retry_queue(queue: str, delay: float) -> Queue:
    """Where messages wait this long, in seconds, before they go back to their queue."""
    return wait_queue(f"{queue}.wait.{compact_duration(delay)}", round(delay * 1000), "", queue)


class Retrying:
    """Moves failed messages: to wait, or to the dead letters. For several threads.

    Args:
        channel: for its own use: not the one that the messages are consumed on.
        notice: is told of each, in a sentence.
    """

    def __init__(self, channel: Channel, policy: RetryPolicy, notice: Callable[[str], None]) -> None:
        self._channel = channel
        self._policy = policy
        self._notice = notice
        self._lock = threading.Lock()
        self._waiting = AtLeastOnce(channel, notice)

    def is_last(self, delivery: Delivery) -> bool:
        """Whether there is no other attempt after this one."""
        return self._policy.delay(history.attempt_of(delivery)) is None

    def retry(self, delivery: Delivery, error: str) -> Outcome:
        """It has failed: try it again later, or, if that was its last attempt, make it a dead letter.

        Returns:
            ACK: it is safe in another queue, so the one at hand can be acknowledged.

        Raises:
            NotConfirmed: the broker did not take it; the one at hand must not be acknowledged.
        """
        failures = history.attempt_of(delivery)
        delay = self._policy.delay(failures)
        if delay is None:
            return self.bury(delivery, error, history.EXHAUSTED)
        waiting = retry_queue(delivery.queue, delay)
        self._move(
            delivery,
            waiting.name,
            history.failed(delivery, error, waiting.name),
            lambda: self._waiting.declare(waiting),
        )
        self._notice(
            f"{_name(delivery)}: {error}; retry {failures} of {self._policy.retries} in {compact_duration(delay)}"
        )
        return Outcome.ACK

    def bury(self, delivery: Delivery, error: str, reason: str = history.REJECTED) -> Outcome:
        """Make it a dead letter, now. Returns and raises as retry() does."""
        queue = dead_letter_queue(delivery.queue)
        self._move(
            delivery,
            queue.name,
            history.failed(delivery, error, queue.name, reason),
            lambda: self._channel.declare(queue, remember=False),
        )
        times = history.attempt_of(delivery)
        self._notice(f"{_name(delivery)}: {error}; dead after {times} attempt{'s' * (times > 1)}, now in {queue.name}")
        return Outcome.ACK

    def _move(self, delivery: Delivery, to: str, message: Message, declare: Callable[[], Queue]) -> None:
        with self._lock:
            for _ in range(_TRIES):
                declare()
                receipts = list(self._channel.publish([message], mandatory=True))
                if receipts[0].confirmation is Confirmation.CONFIRMED:
                    return
        raise NotConfirmed(
            f"{_name(delivery)} was not taken by {to}: {receipts[0].reason}", f"it is still in {delivery.queue}"
        )


def _name(delivery: Delivery) -> str:
    message_id = delivery.properties.get("message_id")
    return f"message {message_id}" if message_id else f"a message without id ({delivery.text[:30]!r})"
