"""Ctrl-C and TERM: the first ends the command cleanly, a second one at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")

#: Seconds after which the main thread is told again of a signal.
_AGAIN = 0.05

#: What the first signal does to the command in hand; without one it is a KeyboardInterrupt.
_on_stop: list[Callable[[], None]] = []
_requested: int | None = None


def install() -> None:
    """Take over SIGINT and SIGTERM, unless the parent had them ignored (nohup, a shell's background job)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def end_with_terminal() -> None:
    """Have a closed terminal end us as TERM does."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


def let_children_be_interrupted() -> None:
    """Have a closed terminal end us as TERM does, and let what we start be interrupted.

    A shell has its background jobs ignore Ctrl-C; what we start would inherit that, unless we take the signal.
    """
    end_with_terminal()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def requested() -> int | None:
    """The number of the signal that asked us to stop, if one did."""
    return _requested


def until_requested(things: Iterable[_T]) -> Iterator[_T]:
    """The same, until a signal asks us to stop."""
    for thing in things:
        if _requested is not None:
            return
        yield thing


def exit_if_requested() -> None:
    """Exit as a shell expects it of a program that a signal ended early.

    Raises:
        SystemExit: a signal asked us to stop.
    """
    if _requested is not None:
        raise SystemExit(128 + _requested)


@contextmanager
def calling(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first signal calls stop instead of raising KeyboardInterrupt."""
    _see_that_signals_are_heard()
    _on_stop.append(stop)
    try:
        yield
    finally:
        _on_stop.remove(stop)


@cache
def _see_that_signals_are_heard() -> None:
    """Interrupt the main thread once more after each signal.

    Python runs handlers between two of the main thread's steps, and a wait for a lock is one step. A signal that comes
    in the moment before would be heard only when that wait is over, which may be never. SIGURG means nothing otherwise.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGURG, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    main = threading.get_ident()

    def tell_again() -> None:
        while number := os.read(reader, 1):
            if number[0] != signal.SIGURG:
                time.sleep(_AGAIN)
                signal.pthread_kill(main, signal.SIGURG)

    threading.Thread(target=tell_again, name="mqtool-signals", daemon=True).start()


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
