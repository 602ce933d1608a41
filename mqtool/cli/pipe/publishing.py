"""Showing what becomes of published messages: a line for each, or progress and a sum for a stream of them."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from mqtool.amqp import Channel
from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.cli.options import MessageOptions
from mqtool.cli.pipe.failed_messages import FailedMessages
from mqtool.delays.via import original
from mqtool.errors import MqtoolError, NotConfirmed, SomeFailed
from mqtool.message import Confirmation, Message, Receipt

#: Refused messages that are reported one by one; the rest are counted.
_REPORTED = 10
#: Seconds after which a person may wonder what is going on.
_PATIENCE = 1.0
_HINTS = {Confirmation.RETURNED: "no queue is bound to its exchange for its routing key or headers"}


def report(
    receipts: Iterable[Receipt],
    line: Callable[[Message], str],
    options: MessageOptions,
    channel: Channel,
    messages: Iterator[Message | None],
) -> None:
    """Take the receipts to their end, and show them.

    Args:
        line: what to print for a message that was sent.
        channel: by which they are published; it knows what was not answered for.
        messages: where they come from; what is left there when it fails was not published at all.

    Raises:
        NotConfirmed: the broker took none of the messages.
        SomeFailed: it did not take some.
        SystemExit: a signal ended the input early; what was read by then is confirmed.
    """
    tally = _Tally(line, options, channel)
    try:
        with _Progress(tally.is_stream) as progress:
            for receipt in receipts:
                tally.add(receipt)
                if tally.is_stream:
                    progress.advance()
    except MqtoolError as error:
        # The connection is well, but messages of a stream were not taken; of a single one, the error says it all.
        if options.is_stream and channel.refused and channel.unconfirmed:
            raise _not_taken(tally.counts, len(channel.unconfirmed), error) from error
        raise
    finally:
        tally.finish(messages)
    counts = tally.counts
    failed = counts[Confirmation.NACKED] + counts[Confirmation.RETURNED]
    if failed and not counts[Confirmation.CONFIRMED]:
        raise NotConfirmed(f"the broker took none of {failed:,} message{'s' if failed > 1 else ''}")
    if failed:
        raise SomeFailed(f"{failed:,} of {sum(counts.values()):,} messages failed")
    if (signal := stopping.requested()) is not None:
        raise SystemExit(128 + signal)


class _Tally:
    """Counts receipts, shows each, and in the end their sums."""

    def __init__(self, line: Callable[[Message], str], options: MessageOptions, channel: Channel) -> None:
        self.counts = dict.fromkeys(Confirmation, 0)
        self.is_stream = options.is_stream and not (output.is_terminal(0) and options.file is None)
        self._line = line
        self._is_one = not options.is_stream
        self._channel = channel
        self._started = time.monotonic()
        self._failed = FailedMessages(options.failed_to) if options.failed_to is not None else None

    def add(self, receipt: Receipt) -> None:
        self.counts[receipt.confirmation] += 1
        if receipt.confirmation is Confirmation.CONFIRMED:
            if not self.is_stream or output.verbose:
                output.status(self._line(original(receipt.message)))
            return
        if self._failed is not None:
            self._failed.add(self._channel.addressed(original(receipt.message)))
        if self._is_one:
            raise NotConfirmed(
                f"the message was {receipt.confirmation}: {receipt.reason}", _HINTS.get(receipt.confirmation)
            )
        _report_refused(receipt, sum(self.counts.values()) - self.counts[Confirmation.CONFIRMED])

    def finish(self, messages: Iterator[Message | None]) -> None:
        unconfirmed, total = self._channel.unconfirmed, sum(self.counts.values())
        nothing_but_an_error = not total and not unconfirmed and sys.exc_info()[0] is not None
        if (self.is_stream and not nothing_but_an_error) or total > 1:
            output.status(_sum(self.counts, len(unconfirmed), time.monotonic() - self._started))
        if self._failed is not None:
            self._failed.finish(map(original, unconfirmed), messages, self._channel)


def text(message: Message) -> str:
    """A body, for people."""
    return message.body.decode("utf-8", "backslashreplace")


def _report_refused(receipt: Receipt, number: int) -> None:
    if number <= _REPORTED:
        output.notice(f"{receipt.confirmation}: {text(receipt.message)[:60]!r}: {receipt.reason}")
    elif number == _REPORTED + 1:
        output.notice("more messages fail; from here on they are only counted")


def _not_taken(counts: dict[Confirmation, int], unconfirmed: int, error: MqtoolError) -> MqtoolError:
    failed = unconfirmed + counts[Confirmation.NACKED] + counts[Confirmation.RETURNED]
    if not counts[Confirmation.CONFIRMED]:
        return NotConfirmed(f"the broker took none of {failed:,} message{'s' * (failed > 1)}: {error}", error.hint)
    return SomeFailed(f"{failed:,} of the messages sent were not confirmed: {error}", error.hint)


def _sum(counts: dict[Confirmation, int], unconfirmed: int, seconds: float) -> str:
    parts = ", ".join(f"{count:,} {confirmation}" for confirmation, count in counts.items())
    if unconfirmed:
        parts += f", {unconfirmed:,} not answered for"
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
