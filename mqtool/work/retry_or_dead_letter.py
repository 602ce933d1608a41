"""Handle a message for which the program failed: retry it with exponential backoff, or dead-letter it.

                     done
                 ┌──────────────> acknowledged
                 │
    [jobs] ──> worker ── failed ──> [jobs.wait.1s]        after 1, 2, 4 … seconds the message expires there, and the
       ^         │                  [jobs.wait.2s]        broker dead-letters it to its work queue
       │         │                  [jobs.wait.4s]
       │         │                        │
       └─────────│────────────────────────┘
                 │
                 └── failed for the last time, or exit status 65 ──> [jobs.dlq]

Messages wait on the broker, so no retry is lost if a worker dies. There is one wait queue for each delay
(wait_queues.py); it keeps a message until the work queue has confirmed it. If a worker dies after moving a message but
before acknowledging the delivery, the message is in both queues; --deduplicate suppresses the duplicate.

The dead-letter queue is a classic queue, because a quorum queue may count each `peek` as a delivery, and drop a message
after twenty.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mqtool.channels import AmqpChannel
from mqtool.delays.destinations import derived_name
from mqtool.delays.wait_queues import AtLeastOnce, wait_queue
from mqtool.duration import compact_duration
from mqtool.errors import BadData, NotConfirmed, StoppedWaiting, UsageError
from mqtool.message import Delivery, Message
from mqtool.topology import Queue
from mqtool.work import history
from mqtool.work.dead_letter_declaration import declare_dead_letter_queue
from mqtool.work.runner import EX_DATAERR, Ending
from mqtool.work.transfer import NotMoved, failed, move, name_of

#: Attempts to move a message, since its wait queue may expire after it is declared and before the message arrives.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How many times, and after what delays, to retry a message.

    Attributes:
        retries: the number of attempts after the first.
        backoff: seconds before the first retry; each later delay is twice as long.
        longest: the maximum delay in seconds.
    """

    retries: int = 5
    backoff: float = 1.0
    longest: float = 300.0

    def delay(self, failures: int) -> float | None:
        """Return the seconds to wait after this many failures, rounded to milliseconds; None after the last attempt."""
        if failures > self.retries:
            return None
        try:
            delay = self.backoff * 2.0 ** (failures - 1)
        except OverflowError:
            delay = self.longest
        return max(0.001, round(min(delay, self.longest), 3))


def dead_letter_queue(queue: str) -> Queue:
    """Return the dead-letter queue of a work queue."""
    return Queue(derived_name(queue, "dlq"), durable=True)


def retry_queue(queue: str, delay: float) -> Queue:
    """Return the wait queue in which messages wait for `delay` seconds before they return to the work queue."""
    return wait_queue(derived_name(queue, f"wait.{compact_duration(delay)}"), round(delay * 1000), "", queue)


class _TooLarge(Exception):
    """A message cannot be encoded together with its history."""


class Retrying:
    """Moves failed messages to a wait queue or to the dead-letter queue. Thread-safe.

    The caller acknowledges a delivery once its message has been moved. If the broker does not accept the message,
    methods raise NotConfirmed, and the caller must not acknowledge.

    Args:
        channel: publishes the messages; the caller must not use this channel for anything else, such as consuming.
        notice: prints a line for the user about each message.
    """

    def __init__(self, channel: AmqpChannel, policy: RetryPolicy, notice: Callable[[str], None]) -> None:
        self._channel = channel
        self._policy = policy
        self._notice = notice
        self._lock = threading.Lock()
        self._wait_queues = AtLeastOnce(channel, notice)
        self._failure: NotConfirmed | None = None
        #: The dead-letter queues as they are on the broker, by name.
        self._existing: dict[str, Queue] = {}

    def retry_or_dead_letter(self, delivery: Delivery, ending: Ending) -> bool:
        """Dead-letter a message if the exit status is 65; otherwise call retry(). Return True if it will be retried."""
        if ending.status == EX_DATAERR:
            self.dead_letter(delivery, ending.reason)
            return False
        return self.retry(delivery, ending.reason)

    def retry(self, delivery: Delivery, error: str) -> bool:
        """Move a message to the wait queue for its next attempt. Returns False if it was dead-lettered instead.

        That happens after the last attempt, and if the message is too large for a history to be added.
        """
        failures = history.attempt_of(delivery)
        delay = self._policy.delay(failures)
        if delay is None:
            self.dead_letter(delivery, error, history.EXHAUSTED)
            return False
        queue = retry_queue(delivery.queue, delay)
        try:
            self._move(delivery, failed(delivery, error, queue.name), lambda: self._wait_queues.declare(queue))
        except _TooLarge:
            self.dead_letter(delivery, error)
            return False
        self._notice(
            f"{name_of(delivery)}: {error}; retry {failures} of {self._policy.retries} in {compact_duration(delay)}"
        )
        return True

    def dead_letter(self, delivery: Delivery, error: str, reason: str = history.REJECTED) -> None:
        """Move a message to the dead-letter queue. Drop its headers if they leave no room for the history.

        Raises BadData if there is still no room: the broker would drop a rejected message that has no dead-letter
        exchange, and a requeued one would be delivered again at once.
        """
        queue = dead_letter_queue(delivery.queue)

        def publish(dead: Delivery) -> None:
            message = failed(dead, error, queue.name, reason)
            self._move(delivery, message, lambda: self._declare_dead_letter_queue(queue))

        try:
            publish(delivery)
        except _TooLarge as too_large:
            error = f"{error}; its headers were dropped: {too_large}"
            try:
                publish(history.without_headers(delivery))
            except _TooLarge as still:  # AMQP 1.0 limits the body and the headers together
                raise BadData(
                    f"{name_of(delivery)} cannot be dead-lettered: {still}",
                    f"it is still in {delivery.queue}; a worker with --protocol amqp0.9.1 can dead-letter it",
                ) from still
        attempts = history.attempt_of(delivery)
        self._notice(
            f"{name_of(delivery)}: {error}; dead after {attempts} attempt{'s' * (attempts > 1)}, now in {queue.name}"
        )

    def _declare_dead_letter_queue(self, queue: Queue) -> None:
        known = self._existing.get(queue.name)
        self._existing[queue.name] = declare_dead_letter_queue(self._channel, queue, known)

    def _move(self, delivery: Delivery, message: Message, declare: Callable[[], object]) -> None:
        with self._lock:
            if self._failure is not None:  # a late confirm would be mistaken for this message's
                raise self._failure
            try:
                self._move_or_declare_again(delivery, message, declare)
            except StoppedWaiting as error:
                # The broker reads nothing from a connection that it blocks, so it does not declare the queue either.
                what, hint = f"{name_of(delivery)} was not moved: {error}", f"it is still in {delivery.queue}"
                raise NotConfirmed(what, hint) from error

    def _move_or_declare_again(self, delivery: Delivery, message: Message, declare: Callable[[], object]) -> None:
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
                raise _TooLarge(str(error)) from error
            else:
                return
