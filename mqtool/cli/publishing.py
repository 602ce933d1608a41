"""Showing what becomes of published messages: a line for each, or progress and a sum for a stream of them."""

import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from mqtool.cli import output, stopping
from mqtool.cli.source import MessageOptions
from mqtool.errors import NotConfirmed, SomeFailed
from mqtool.message import Confirmation, Message, Receipt

#: Refused messages that are reported one by one; the rest are counted.
_REPORTED = 10
#: Seconds after which a person may wonder what is going on.
_PATIENCE = 1.0
_HINTS = {Confirmation.RETURNED: "no queue is bound to its exchange for its routing key or headers"}


def report(receipts: Iterable[Receipt], line: Callable[[Message], str], options: MessageOptions) -> None:
    """Take the receipts to their end, and show them.

    Args:
        line: what to print for a message that was sent.

    Raises:
        NotConfirmed: the broker took none of the messages.
        SomeFailed: it did not take some.
        SystemExit: a signal ended the input early; what was read by then is confirmed.
    """
    stream = options.is_stream and not (output.is_terminal(0) and options.file is None)
    counts = dict.fromkeys(Confirmation, 0)
    started = time.monotonic()
    try:
        with _Progress(stream) as progress:
            for receipt in receipts:
                counts[receipt.confirmation] += 1
                if receipt.confirmation is not Confirmation.CONFIRMED:
                    if not options.is_stream:  # it is the only one
                        raise NotConfirmed(
                            f"the message was {receipt.confirmation}: {receipt.reason}",
                            _HINTS.get(receipt.confirmation),
                        )
                    _report_refused(receipt, sum(counts.values()) - counts[Confirmation.CONFIRMED])
                elif not stream or output.verbose:
                    output.status(line(receipt.message))
                if stream:
                    progress.advance()
    finally:
        nothing_but_an_error = not any(counts.values()) and sys.exc_info()[0] is not None
        if (stream and not nothing_but_an_error) or sum(counts.values()) > 1:
            output.status(_sum(counts, time.monotonic() - started))
    failed = counts[Confirmation.NACKED] + counts[Confirmation.RETURNED]
    if failed and not counts[Confirmation.CONFIRMED]:
        raise NotConfirmed(f"the broker took none of {failed:,} message{'s' if failed > 1 else ''}")
    if failed:
        raise SomeFailed(f"{failed:,} of {sum(counts.values()):,} messages failed")
    if (signal := stopping.requested()) is not None:
        raise SystemExit(128 + signal)


def text(message: Message) -> str:
    """A body, for people."""
    return message.body.decode("utf-8", "backslashreplace")


def _report_refused(receipt: Receipt, number: int) -> None:
    if number <= _REPORTED:
        output.notice(f"{receipt.confirmation}: {text(receipt.message)[:60]!r}: {receipt.reason}")
    elif number == _REPORTED + 1:
        output.notice("more messages fail; from here on they are only counted")


def _sum(counts: dict[Confirmation, int], seconds: float) -> str:
    parts = ", ".join(f"{count:,} {confirmation}" for confirmation, count in counts.items())
    rate = sum(counts.values()) / seconds if seconds > 0 else 0.0
    return f"{parts} in {seconds:.1f} s ({rate:,.0f}/s)"


class _Progress:
    """A progress line on stderr, if that is a terminal, once it has taken longer than a moment."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted and output.is_terminal(2) and not output.quiet
        self._started = time.monotonic()
        self._count = 0
        self._next_look = 256
        self._bar: object | None = None

    def __enter__(self) -> Self:
        return self

    def advance(self) -> None:
        self._count += 1
        if self._wanted and self._count >= self._next_look:
            self._next_look = self._count + 256
            if self._bar is not None:
                self._bar.update(self._task, completed=self._count)  # type: ignore[attr-defined]
            elif time.monotonic() - self._started > _PATIENCE:
                self._start()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.completed:,} confirmed"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = bar.add_task("", total=None, completed=self._count)
        bar.start()
        self._bar = bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]
