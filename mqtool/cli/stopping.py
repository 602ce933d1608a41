"""Ctrl-C and TERM: the first ends the command cleanly, a second one at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: What the first signal does to the command in hand; without one it is a KeyboardInterrupt.
_on_stop: list[Callable[[], None]] = []
_requested: int | None = None


def install() -> None:
    """Take over SIGINT and SIGTERM, unless the parent had them ignored (nohup, a shell's background job)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def requested() -> int | None:
    """The number of the signal that asked us to stop, if one did."""
    return _requested


@contextmanager
def calling(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first signal calls stop instead of raising KeyboardInterrupt."""
    _on_stop.append(stop)
    try:
        yield
    finally:
        _on_stop.remove(stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    global _requested
    if _requested is not None:  # a second signal: die of it, so that the shell sees 128 + n
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _requested = number
    if not _on_stop:
        raise KeyboardInterrupt
    for stop in _on_stop:
        stop()
