"""The worker: runs a program for each message, several at once. The exit status determines what becomes of a message.

0         done: acknowledged
65        the message is invalid, and a retry would not help: dead-lettered
126, 127  the program cannot be run: the worker ends, and the message stays in its queue
other     failed: retried later, or dead-lettered after the last attempt (retry_or_dead_letter.py);
          the same applies if a signal or --timeout ended the program. If the terminal on which the program prints has
          been closed, that may be why it failed: the worker ends, and the message stays in its queue
"""

import os
import queue as queues
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from mqtool.amqp import Receiving
from mqtool.amqp.pika_errors import RAISE_TIMEOUT
from mqtool.channels import AmqpChannel
from mqtool.errors import MqtoolError, StoppedWaiting, Unavailable
from mqtool.message import Delivery
from mqtool.topology import Queue
from mqtool.work.deduplication import HandledMessages, Interrupted, MessageKey
from mqtool.work.exec_command import ExecCommand
from mqtool.work.history import returns_of
from mqtool.work.retry_or_dead_letter import Retrying
from mqtool.work.runner import CANNOT_RUN, NOT_FOUND, Ending
from mqtool.work.transfer import name_of

#: A program prints on the worker's own stdout.
_STDOUT = 1


class CommandBroken(MqtoolError):
    """The program of --exec cannot be run at all, or can no longer print."""


class Worker:
    """Runs a program for each message.

    Each thread takes one delivery, and acknowledges it when its program has ended. So after kill -9 only the messages
    whose programs were running are handled again. With a prefetch of `concurrency`, which the command uses by default,
    no message waits behind a long one while another worker is idle.

    Attributes:
        counts: the number of messages that are "done", will be retried ("retry"), were dead-lettered ("dead"), were
            "suppressed" as duplicates, or whose delivery was "lost" while the program ran.
        in_hand: the number of programs that are running.

    Args:
        channel: consumes the deliveries.
        concurrency: the maximum number of programs that run at once.
        notice: prints a line for the user.
        handled: the store of handled messages, to suppress duplicates; None handles every message.
    """

    def __init__(
        self,
        channel: AmqpChannel,
        command: ExecCommand,
        retrying: Retrying,
        concurrency: int,
        notice: Callable[[str], None],
        handled: HandledMessages | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.in_hand = 0
        self._channel = channel
        self._cluster = channel.cluster
        self._command = command
        self._retrying = retrying
        self._concurrency = concurrency
        self._notice = notice
        self._handled = handled
        self._prints_on_terminal = os.isatty(_STDOUT)
        self._counting = threading.Lock()
        self._taking = threading.Lock()
        self._ended: queues.SimpleQueue[BaseException | None] = queues.SimpleQueue()
        self._error: BaseException | None = None

    def start_consuming(self, queue: Queue, receiving: Receiving) -> Callable[[], None]:
        """Start consuming; return a function that runs the programs until there are no more deliveries.

        Before the returned function returns, it waits for the running programs. If the channel is lost, it does not
        wait but raises an error, because the messages of these programs can no longer be acknowledged.

        Raises:
            Unavailable: the queue does not exist. The returned function raises this if the queue is deleted.
            CommandBroken: raised by the returned function if the program cannot be run, or failed after the terminal
                on which it prints was closed. The message is not acknowledged.
            Unavailable: raised by the returned function if a program took longer than the consumer timeout for a
                message that was redelivered.
            NotConfirmed: raised by the returned function if a message could not be moved to its wait queue or
                dead-letter queue. The message is not acknowledged.
        """
        deliveries = self._channel.consume(queue, receiving._replace(acknowledge=False))

        def work() -> None:
            for _ in range(self._concurrency):
                threading.Thread(target=self._work, args=(deliveries,), daemon=True).start()
            for _ in range(self._concurrency):
                if (lost := _next(self._ended)) is not None:
                    raise lost
            if self._error is not None:
                raise self._error

        return work

    def _work(self, deliveries: Iterator[Delivery]) -> None:
        """The loop of one thread. If receiving fails, the worker stops at once.

        After any other error, programs that are already running finish first.
        """
        lost = None
        try:
            while (delivery := self._take(deliveries)) is not None:
                try:
                    self._handle(delivery)
                except Interrupted:  # the channel is stopping, and this thread has not claimed the message
                    pass
                except BaseException as error:  # raised by work(), in its caller's thread
                    self._error = self._error or error
                    self._channel.stop()
        except StoppedWaiting:  # the broker cannot reply, and redelivers what is in hand
            pass
        except BaseException as error:  # likewise
            lost = error
        self._ended.put(lost)

    def _take(self, deliveries: Iterator[Delivery]) -> Delivery | None:
        with self._taking:
            return next(deliveries, None)

    def _handle(self, delivery: Delivery) -> None:
        with self._counting:
            self.in_hand += 1
        try:
            if self._handled is None or not delivery.message_id:
                self._settle(delivery, self._command.run(delivery))
            else:
                self._handle_once(delivery, delivery.message_id, self._handled)
        finally:
            with self._counting:
                self.in_hand -= 1

    def _handle_once(self, delivery: Delivery, message_id: str, handled: HandledMessages) -> None:
        key, returns = MessageKey(self._cluster, delivery.queue, message_id), returns_of(delivery)
        before = handled.begin(key, lambda: self._channel.stopping, returns=returns)
        if before is not None:
            was = "dead-lettered" if before.dead else "done"
            self._notice(f"message {message_id} was {was} before: acknowledged, not done again")
            self._count("suppressed")
            self._channel.acknowledge(delivery)
            return
        stored = False
        try:
            ending = self._command.run(delivery)
            outcome = "" if self._is_lost(delivery, ending) else self._outcome(delivery, ending)
            if ending.status == 0:
                handled.done(key)
            elif outcome == "dead":
                handled.dead_lettered(key, returns)
            stored = ending.status == 0 or outcome == "dead"
        finally:
            if not stored:
                handled.failed(key)
        if outcome:
            self._count(outcome)
            self._channel.acknowledge(delivery)
        elif not stored:
            check_in_time(self._channel, delivery)

    def _settle(self, delivery: Delivery, ending: Ending) -> None:
        if not self._is_lost(delivery, ending):
            self._count(self._outcome(delivery, ending))
            self._channel.acknowledge(delivery)
        else:
            check_in_time(self._channel, delivery)

    def _is_lost(self, delivery: Delivery, ending: Ending) -> bool:
        """If the broker may deliver the message again, whatever its outcome, count it, and return True.

        Raises CommandBroken if the program cannot be run, or failed after its terminal was closed.
        """
        if ending.status in (CANNOT_RUN, NOT_FOUND) and ending.timed_out is None:
            raise CommandBroken(
                f"the program cannot be run: {ending.reason}", "the message is still in its queue; correct --exec"
            )
        if ending.status and self._prints_on_terminal and not os.isatty(_STDOUT):  # printing fails, not the task
            raise CommandBroken(
                "the terminal on which the program prints was closed", "the message is still in its queue"
            )
        if self._channel.is_current(delivery):
            return False
        if not self.counts["lost"]:
            self._notice("the delivery was lost while the program ran: the broker delivers the message again")
        self._count("lost")
        if not ending.status:
            self._channel.acknowledge(delivery)  # which counts if only another delivery was late for the broker
        return True

    def _outcome(self, delivery: Delivery, ending: Ending) -> str:
        """Retry or dead-letter the message if its program failed; return the key of `counts` for this outcome."""
        if ending.status == 0:
            return "done"
        return "retry" if self._retrying.retry_or_dead_letter(delivery, ending) else "dead"

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1


def check_in_time(channel: AmqpChannel, delivery: Delivery) -> None:
    """Raise Unavailable if a message that was redelivered took too long again: it would do so without end."""
    if delivery.redelivered and channel.timed_out(delivery):
        raise Unavailable(
            f"{name_of(delivery)} was redelivered, and again not done within the consumer timeout of queue "
            f"{delivery.queue!r}: the broker would deliver it again and again",
            RAISE_TIMEOUT,
        )


def _next(ended: queues.SimpleQueue[BaseException | None]) -> BaseException | None:
    """Wait until a thread ends; return its error, if any. Waits with a timeout, so that signal handlers can run."""
    while True:
        with suppress(queues.Empty):
            return ended.get(timeout=0.1)
