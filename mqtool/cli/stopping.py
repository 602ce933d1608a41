"""Ctrl-C, TERM and HUP: the first one ends the command cleanly, a second one kills it. A time limit ends it, too.

Python runs signal handlers on the main thread, between two instructions. Waiting for a lock is one instruction and may
delay a handler, so the main thread uses a timeout wherever it may have to wait for long.
"""

import os
import signal
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from mqtool.cli.invocation import current
from mqtool.errors import TimedOut

_T = TypeVar("_T")


#: How many seconds after a signal a blocked write to stdout is interrupted.
_PATIENCE = 1.0
#: The same signal within this many seconds counts once: timeout(1) sends it to the process, and then to its group. So
#: does any signal after SIGHUP: systemd may send SIGTERM and SIGHUP together, and Python handles SIGHUP first.
_SAME = 0.1
#: Seconds after its time limit at which a consuming command is interrupted: if the broker answers, and its output is
#: read, it has ended by itself. Then seconds between interruptions, since cleaning up may block as well.
_OVERTIME, _AGAIN = 1.0, 0.5


#: until_due() looks for a signal every _LOOK seconds. If more than _LONG are left, it yields a second None.
_LOOK, _LONG = 0.25, 0.1


class OutOfTime(TimedOut):
    """The command's time limit has passed while it waited, for example for the broker's reply."""


def install() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP, which closing the terminal sends.

    A signal that the parent process set to be ignored stays ignored (nohup, shell background jobs).
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    signal.signal(signal.SIGALRM, _interrupt)


def uninstall() -> None:
    """Stop the timer, and ignore SIGHUP. Call this before Python exits and removes the signal handlers.

    Without a handler, either signal would kill the process, and so replace its exit code.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def unblock_hangup() -> None:
    """Let SIGHUP end the command. __main__.py may block it until the command is known to have no --output."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def let_children_be_interrupted() -> None:
    """Let Ctrl-C interrupt the programs that this command starts.

    A shell makes its background jobs ignore Ctrl-C. Programs inherit this unless this process handles the signal.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def requested() -> int | None:
    """Return the number of the signal that asked the command to stop, if any."""
    return current().signal


def until_requested(things: Iterable[_T]) -> Iterator[_T]:
    """Yield things until a signal asks the command to stop."""
    for thing in things:
        if requested() is not None:
            return
        yield thing


def until_due(due: float) -> Iterator[None]:
    """Wait until time.monotonic() is `due`, or a signal asks the command to stop.

    Yields None for a publisher, which takes confirms at the first one, and at a second one waits for them, for 0.05 s.
    """
    while requested() is None and (left := due - time.monotonic()) > 0:
        yield None
        if left > _LONG:
            yield None
        time.sleep(max(0.0, min(due - time.monotonic(), _LOOK)))


def exit_if_requested() -> None:
    """Exit with 128 + n if signal n asked the command to stop.

    Raises:
        SystemExit: a signal asked the command to stop.
    """
    if (number := requested()) is not None:
        raise SystemExit(128 + number)


@contextmanager
def calling(stop: Callable[[], None]) -> Iterator[None]:
    """Context manager: make the first signal call `stop` instead of raising KeyboardInterrupt."""
    on_stop = current().on_stop
    on_stop.append(stop)
    try:
        yield
    finally:
        on_stop.remove(stop)


@contextmanager
def interrupting() -> Iterator[None]:
    """Context manager: make the first signal raise KeyboardInterrupt even while channels are open, as at a question."""
    invocation = current()
    on_stop, limit = invocation.on_stop, invocation.time_limit
    functions, on_stop[:], invocation.time_limit = on_stop[:], [], None  # the user may take any time to answer
    # A signal that arrives just before input() begins to wait has its handler called only when the wait is interrupted.
    timer = signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)
    try:
        yield
    finally:
        on_stop[:], invocation.time_limit = functions, limit
        if requested() is None:
            signal.setitimer(signal.ITIMER_REAL, *timer)


def limit_time(seconds: float | None) -> None:
    """Interrupt the command with OutOfTime after this many seconds, whatever it waits for; None for no limit.

    A command that consumes watches its limit itself. This is for all other waits, such as that for the broker's reply
    to a request. With a shorter limit, it still has a second to connect.
    """
    current().time_limit = seconds
    _interrupt_after(0.0 if seconds is None else max(seconds, _OVERTIME))


def restart_time_limit() -> None:
    """Let the time limit, if any, count from now on: the command begins to consume."""
    if (limit := current().time_limit) is not None:
        _interrupt_after(limit + _OVERTIME)


def _interrupt_after(seconds: float) -> None:
    """Start the timer; 0 stops it. After a signal, the timer belongs to the signal."""
    if requested() is None:
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)


def _stop(number: int, _frame: FrameType | None) -> None:
    invocation, now = current(), time.monotonic()
    if invocation.signal is not None:  # a second signal kills the process, so that the shell sees 128 + n
        if number == signal.SIGHUP:  # when a terminal is closed, its shell and then the kernel send it
            return
        is_same = number == invocation.signal or invocation.signal == signal.SIGHUP
        if not is_same or now - invocation.signalled_at > _SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    invocation.signal, invocation.signalled_at = number, now
    if number == signal.SIGINT:
        _end_echoed_line()
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)
    if not invocation.on_stop:
        raise KeyboardInterrupt
    for stop in invocation.on_stop:
        stop()


def _end_echoed_line() -> None:
    """End the line on which a terminal shows ^C, so that nothing else is on it, such as the shell's prompt."""
    with suppress(OSError, termios.error):  # stderr is not a terminal, or is closed
        if termios.tcgetattr(2)[3] & termios.ECHO:
            os.write(2, b"\n")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Interrupt a command whose time is up; after a signal, only a write that may block forever.

    A write blocks on a pipe that nobody reads, or on a terminal after Ctrl-S.
    """
    invocation = current()
    if invocation.signal is None and invocation.time_limit is not None:
        raise OutOfTime(f"timed out after {invocation.time_limit:g} s")
    if invocation.signal is not None and invocation.is_writing:
        raise KeyboardInterrupt
