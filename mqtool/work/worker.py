"""A program for each message, and what its exit status means. sysexits.h gives 65 and 75 their meaning.

0         done: acknowledged
65        the message is bad, and always will be: a dead letter
75        not now: retried later (retry.py)
126, 127  the command itself is broken: the worker ends, and the message stays in its queue
other     failed: retried later, also when a signal or --timeout ended the program
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mqtool.amqp import Channel
from mqtool.errors import MqtoolError
from mqtool.message import Delivery
from mqtool.work.endings import CANNOT_RUN, EX_DATAERR, NOT_FOUND, Ending
from mqtool.work.hands import IN_A_LOT
from mqtool.work.programs import Ended, Program
from mqtool.work.retry import Retrying

if TYPE_CHECKING:  # it brings SQLite along
    from mqtool.work.deduplication import HandledMessages


class CommandBroken(MqtoolError):
    """The program of --exec cannot be run at all."""


class ProgramWorker:
    """Handles deliveries with a program, from several threads.

    Attributes:
        counts: how many were "done", are to "retry", are "dead", or were "suppressed" as duplicates.
        in_hand: how many are being handled.
        most: how many to handle one after another at most: duplicates are looked for one by one.

    Args:
        channel: the one that the deliveries come from.
        notice: is told what a person should know.
        handled: what was done before; None does everything.
    """

    def __init__(
        self,
        channel: Channel,
        program: Program,
        retrying: Retrying,
        notice: Callable[[str], None],
        handled: "HandledMessages | None" = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.in_hand = 0
        self.most = IN_A_LOT if handled is None else 1
        self._channel = channel
        self._program = program
        self._retrying = retrying
        self._notice = notice
        self._handled = handled
        self._counting = threading.Lock()

    def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Run the program for each delivery, and acknowledge that.

        Raises:
            CommandBroken: the program cannot be run. The delivery is not acknowledged.
            NotConfirmed: it failed, and could not be moved to wait. Likewise.
        """
        with self._counting:
            self.in_hand += len(deliveries)
        try:
            if self._handled is None:
                self._program.run_each(deliveries, self._settle, still=self._is_to_be_done)
            else:
                for delivery in deliveries:
                    self._do_once(delivery, self._handled)
        finally:
            with self._counting:
                self.in_hand -= len(deliveries)

    def _is_to_be_done(self, delivery: Delivery) -> bool:
        return not self._channel.stopping and self._channel.is_current(delivery)

    def _do_once(self, delivery: Delivery, handled: "HandledMessages") -> None:
        message_id = delivery.properties.get("message_id")
        if not message_id:
            self._settle([Ended(delivery, self._program.run(delivery))])
            return
        if handled.begin(delivery.queue, message_id, lambda: self._channel.stopping) is not None:
            self._notice(f"message {message_id} was done before: acknowledged, not done again")
            self._count("suppressed")
            self._channel.acknowledge(delivery)
            return
        try:
            ending = self._program.run(delivery)
            _check(ending)
        except BaseException:
            handled.failed(delivery.queue, message_id)
            raise
        if ending.status == 0:
            handled.done(delivery.queue, message_id)
        else:
            handled.failed(delivery.queue, message_id)
        self._settle([Ended(delivery, ending)])

    def _settle(self, ended: Iterable[Ended]) -> None:
        settled = []
        try:
            for delivery, ending in ended:
                _check(ending)
                if self._channel.is_current(delivery):
                    self._count(self._moved_on(delivery, ending))
                    settled.append(delivery)
                else:
                    self._notice("the delivery was lost while the program ran: the broker delivers the message again")
        finally:
            self._channel.acknowledge(*settled)

    def _moved_on(self, delivery: Delivery, ending: Ending) -> str:
        """Move a failed message to another queue, where it is safe; return what to count it as."""
        if ending.status == 0:
            return "done"
        if ending.status == EX_DATAERR:
            self._retrying.bury(delivery, ending.reason)
            return "dead"
        return "retry" if self._retrying.retry(delivery, ending.reason) else "dead"

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1


def _check(ending: Ending) -> None:
    if ending.status in (CANNOT_RUN, NOT_FOUND) and ending.timed_out is None:
        raise CommandBroken(
            f"the program cannot be run: {ending.reason}", "the message is still in its queue; correct --exec"
        )
