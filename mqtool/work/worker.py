"""A worker: runs a program for each message, several at once, and settles each message by the exit status.

0         done: acknowledged
65        the message is bad, and always will be: dead-lettered
126, 127  the command itself is broken: the worker ends, and the message stays in its queue
other     failed: retried later, or dead-lettered after the last attempt (retry_or_dead_letter.py);
          likewise when a signal or --timeout ended the program
"""

import queue as queues
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from mqtool.amqp import Channel, Receiving
from mqtool.errors import MqtoolError
from mqtool.message import Delivery
from mqtool.topology import Queue
from mqtool.work.exec_command import ExecCommand
from mqtool.work.history import returns_of
from mqtool.work.retry_or_dead_letter import Retrying
from mqtool.work.runner import CANNOT_RUN, NOT_FOUND, Ending

if TYPE_CHECKING:  # it imports SQLite
    from mqtool.work.deduplication import HandledMessages

#: One unacknowledged delivery for each program that may run at once.
ONE_EACH = Receiving(prefetch=1)


class CommandBroken(MqtoolError):
    """The program of --exec cannot be run at all."""


class Worker:
    """Runs a program for each message.

    Each thread has one delivery, and acknowledges it when its program has ended. So no message waits behind a long one
    while another worker is idle, and after kill -9 at most the programs that were running run again.

    Attributes:
        counts: messages that were "done", will be tried again ("retry"), were dead-lettered ("dead"), or were
            "suppressed" as duplicates.
        in_hand: programs that run now.

    Args:
        channel: consumes the deliveries.
        concurrency: programs that may run at once.
        notice: prints a line for the user.
        handled: the messages handled before, to suppress duplicates; None handles every message.
    """

    def __init__(
        self,
        channel: Channel,
        command: ExecCommand,
        retrying: Retrying,
        concurrency: int,
        notice: Callable[[str], None],
        handled: "HandledMessages | None" = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.in_hand = 0
        self._channel = channel
        self._cluster = channel.connection.cluster
        self._command = command
        self._retrying = retrying
        self._concurrency = concurrency
        self._notice = notice
        self._handled = handled
        self._counting = threading.Lock()
        self._taking = threading.Lock()
        self._ended: queues.SimpleQueue[BaseException | None] = queues.SimpleQueue()
        self._error: BaseException | None = None

    def start_consuming(self, queue: Queue, receiving: Receiving) -> Callable[[], None]:
        """Start to consume. The function returned does the work, until the deliveries end.

        At a clean end it waits for the programs that run. If the channel is lost it does not: their messages can no
        longer be acknowledged.

        Raises:
            Unavailable: the queue does not exist or, from the function returned, was deleted.
            CommandBroken: from the function returned: the program cannot be run. Its message is not acknowledged.
            NotConfirmed: from the function returned: a message could not be moved to its wait queue or dead-letter
                queue. It is not acknowledged.
        """
        prefetch = self._concurrency * (2 if receiving.count is not None else 1)
        deliveries = self._channel.consume(queue, receiving._replace(acknowledge=False, prefetch=prefetch))

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
        """One thread's work. An error of the channel ends the worker at once, one of a program after the others."""
        lost = None
        try:
            while (delivery := self._take(deliveries)) is not None:
                try:
                    self._handle(delivery)
                except BaseException as error:  # raised by work(), in its caller's thread
                    self._error = self._error or error
                    self._channel.stop()
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

    def _handle_once(self, delivery: Delivery, message_id: str, handled: "HandledMessages") -> None:
        from mqtool.work.deduplication import MessageKey  # it imports SQLite

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

    def _settle(self, delivery: Delivery, ending: Ending) -> None:
        if not self._is_lost(delivery, ending):
            self._count(self._outcome(delivery, ending))
            self._channel.acknowledge(delivery)

    def _is_lost(self, delivery: Delivery, ending: Ending) -> bool:
        """True if the delivery can no longer be acknowledged. Raises CommandBroken if there was nothing to run."""
        if ending.status in (CANNOT_RUN, NOT_FOUND) and ending.timed_out is None:
            raise CommandBroken(
                f"the program cannot be run: {ending.reason}", "the message is still in its queue; correct --exec"
            )
        if self._channel.is_current(delivery):
            return False
        self._notice("the delivery was lost while the program ran: the broker delivers the message again")
        return True

    def _outcome(self, delivery: Delivery, ending: Ending) -> str:
        """Move a failed message to its next queue; return the name under which the message is counted."""
        if ending.status == 0:
            return "done"
        return "retry" if self._retrying.retry_or_dead_letter(delivery, ending) else "dead"

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1


def _next(ended: queues.SimpleQueue[BaseException | None]) -> BaseException | None:
    """Wait for the end of a thread; with a time-out, since Python runs signal handlers only between two waits."""
    while True:
        with suppress(queues.Empty):
            return ended.get(timeout=0.1)
