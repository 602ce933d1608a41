"""A program for each message: what its exit status means for the message. sysexits.h gives 65 and 75 their meaning.

0         done: acknowledged
65        the message is bad, and would be bad again: a dead letter
75        not now: again later (retry.py)
126, 127  the command is broken, whatever the message: the worker ends, and the message goes back
other     failed: again later, as with 75; likewise if a signal or --timeout has ended it
"""

import threading
from collections import Counter
from collections.abc import Callable

from mqtool.amqp import Channel
from mqtool.errors import MqtoolError
from mqtool.message import Delivery, Outcome
from mqtool.programs import CANNOT_RUN, EX_DATAERR, NOT_FOUND, Ending, Program
from mqtool.retry import Retrying


class CommandBroken(MqtoolError):
    """The program of --exec cannot be run at all."""


class ProgramWorker:
    """Handles deliveries with a program, from several threads.

    Attributes:
        counts: how many were "done", are to "retry" or are "dead".

    Args:
        channel: the one that the deliveries come by.
        notice: is told what a person should know, in a sentence.
    """

    def __init__(self, channel: Channel, program: Program, retrying: Retrying, notice: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._channel = channel
        self._program = program
        self._retrying = retrying
        self._notice = notice
        self._counting = threading.Lock()

    def handle(self, delivery: Delivery) -> None:
        """Run the program for a delivery, and settle that.

        Raises:
            CommandBroken: the program cannot be run; the delivery is left as it is.
            NotConfirmed: it failed, and the broker does not take it for another time; likewise.
        """
        ending = self._program.run(delivery)
        if ending.status in (CANNOT_RUN, NOT_FOUND) and ending.timed_out is None:
            raise CommandBroken(
                f"the program cannot be run: {ending.reason}", "the message is still in its queue; mend --exec"
            )
        if not self._channel.is_current(delivery):
            self._notice("the connection was lost while the program ran: the broker delivers the message again")
            return
        self._channel.settle(delivery, self._outcome(delivery, ending))

    def _outcome(self, delivery: Delivery, ending: Ending) -> Outcome:
        if ending.status == 0:
            what, outcome = "done", Outcome.ACK
        elif ending.status == EX_DATAERR:
            what, outcome = "dead", self._retrying.bury(delivery, ending.reason)
        else:
            is_last, outcome = self._retrying.is_last(delivery), self._retrying.retry(delivery, ending.reason)
            what = "dead" if is_last else "retry"
        with self._counting:
            self.counts[what] += 1
        return outcome
