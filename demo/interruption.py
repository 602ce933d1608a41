"""Ctrl-C, TERM, and a terminal that is closed: the first ends the demonstration, none disturbs its tidying up."""

import signal
from types import FrameType
from typing import NoReturn

from mqtool.stage.stage import SIGNALS


class Interrupted(BaseException):
    """A signal asked us to stop.

    Attributes:
        exit_code: 128 + the signal's number, as a shell says it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def install() -> None:
    """Raise Interrupted on the first signal.

    Even if our parent ignores it, as a shell does for its background jobs: what we start would inherit that, and could
    not be interrupted by us.
    """
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def ignore() -> None:
    """From here on we only tidy up, which takes seconds."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    ignore()
    raise Interrupted(number)
