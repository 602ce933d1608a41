"""The pipeline of every command that publishes: read, delay, publish, report; and keep what failed (--failed-to)."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mqtool.amqp import Channel
from mqtool.amqp.administration import check_utf_8
from mqtool.cli import stopping
from mqtool.cli.access import MANAGEMENT_VARIABLE, Access
from mqtool.cli.display import output
from mqtool.cli.display.live_screen import Progress
from mqtool.cli.invocation import current
from mqtool.cli.options import MessageOptions, Publishing
from mqtool.cli.options.message_options import mandatory_with_delay
from mqtool.cli.pipe.source import Addressing, Input, read_messages
from mqtool.delays.via import original
from mqtool.errors import MqtoolError, NotConfirmed, SomeFailed, UsageError
from mqtool.message import Confirmation, Message, Receipt
from mqtool.topology import Exchange, Queue

if TYPE_CHECKING:
    from mqtool.delays.holding import Delaying
    from mqtool.streams import StreamChannel

#: Refused messages that are reported one by one; the rest are counted.
_REPORTED = 10
#: Seconds to wait for the management API, where it only adds a hint: for a connection, and for an answer.
_HINT_PATIENCE = 0.3, 1.0
_HINTS = {Confirmation.RETURNED: "no queue is bound to its exchange for its routing key or headers"}


class Outgoing(Protocol):
    """A channel, or a stream's, to which messages go.

    Attributes:
        refused: the broker closed it over what was asked of it.
    """

    @property
    def refused(self) -> bool: ...
    @property
    def unconfirmed(self) -> list[Message]: ...
    def addressed(self, message: Message) -> Message: ...


#: A lesson's publisher, with its own arguments given.
Publisher = Callable[[Channel, Iterable[Message | None]], Iterator[Receipt]]


def publish(
    asked: Publishing,
    publisher: Publisher,
    line: Callable[[Message], str] | str,
    *,
    to: Exchange | Queue,
    leads_to: Queue | None = None,
    addressing: Addressing,
    default: bytes = b"Hello World!",
    adapt: Callable[[Message], Message] | None = None,
    source: Input | None = None,
) -> None:
    """Publish what the command line asks for, and show what becomes of it.

    Args:
        line: what to print for a message that was sent; may have the places {key} and {body}.
        to: where the publisher sends messages that do not name an exchange or a routing key themselves.
        leads_to: the queue behind that exchange, if the publisher declares it.
        addressing, default, adapt: as of read_messages().
        source: the messages, where the command line does not name them in one of the usual ways.

    Raises:
        NotConfirmed: the broker confirmed none of the messages.
        SomeFailed: it did not take some.
        SystemExit: a signal ended the input early; what was read by then is confirmed.
    """
    options = asked.options
    for name in addressing:
        check_utf_8(name or "")
    source = source or read_messages(asked, addressing, default=default, adapt=adapt)
    access = asked.broker.access(os.environ.get(MANAGEMENT_VARIABLE))
    # What somebody has typed is small enough to come back, and they want to know whether anybody listens. What an
    # exchange delays has not reached a queue yet.
    is_delayed = asked.delays.are_given or any(name == "x-delay" for name, _ in options.headers or ())
    watches = source.is_typed and isinstance(to, Exchange) and not is_delayed
    mandatory = options.mandatory or watches
    with access.channel(mandatory=mandatory, confirm_timeout=options.confirm_timeout) as channel:
        messages = held(source, asked, channel, to, leads_to)
        tally = _Tally(line, options, channel)
        _report(publisher(channel, messages), tally, source)
    if tally.is_unreceived and isinstance(to, Exchange) and output.is_terminal(2) and not current().quiet:
        _show_neighbour(access, to)


def publish_to_stream(
    asked: Publishing,
    publisher: Callable[["StreamChannel", Iterable[Message | None]], Iterator[Receipt]],
    line: str,
    *,
    opened: Callable[[Access], AbstractContextManager["StreamChannel"]],
    routing_key: str | None,
    default: bytes,
) -> None:
    """Publish what the command line asks for to a stream. Raises as publish() does.

    Args:
        line: as of publish().
        opened: gives the channel.
        routing_key: chooses the partition of a super stream.
        default: as of read().
    """
    source = read_messages(asked, Addressing(None, routing_key), default=default, with_ids=False)
    with opened(asked.broker.access()) as channel:
        _report(publisher(channel, source), _Tally(line, asked.options, channel), source)


def _report(receipts: Iterable[Receipt], tally: "_Tally", source: Input) -> None:
    progress = Progress("confirmed", is_wanted=tally.is_stream, fraction=source.fraction)
    try:
        for receipt in progress.of(receipts):
            tally.add(receipt)
    except MqtoolError as error:
        if (not_taken := tally.not_taken(error)) is not None:
            raise not_taken from error
        raise
    finally:
        progress.stop()
        tally.finish(source)
    failed = tally.failed
    if failed and not tally.counts[Confirmation.CONFIRMED]:
        raise NotConfirmed(f"the broker confirmed none of {_messages(failed)}")
    if failed:
        raise SomeFailed(f"{failed:,} of {_messages(tally.total)} failed")
    if (signal := stopping.requested()) is not None:
        raise SystemExit(128 + signal)


def _show_neighbour(access: Access, exchange: Exchange) -> None:
    """Name an exchange that may be meant, if the management API knows one. Without it, all that matters is said."""
    from mqtool.inspection.listing import counted
    from mqtool.inspection.neighbours import bound_neighbour

    with suppress(MqtoolError):
        if (near := bound_neighbour(access.management(_HINT_PATIENCE), access.vhost, exchange)) is not None:
            has = counted(near.bindings, "binding")
            output.notice(f"exchange {near.name!r} has {has}; to publish there: -e {shlex.quote(near.name)}")


class _Tally:
    """Counts receipts, shows each, and in the end their sums.

    Attributes:
        is_unreceived: there was no queue for a message that may go to none.
    """

    def __init__(self, line: Callable[[Message], str] | str, options: MessageOptions, channel: Outgoing) -> None:
        self.counts = dict.fromkeys(Confirmation, 0)
        self.is_unreceived = False
        self.is_stream = options.is_stream and not (output.is_terminal(0) and options.file is None)
        self._line = _filled(line) if isinstance(line, str) else line
        self._is_one = not options.is_stream
        self._is_mandatory = options.mandatory
        self._channel = channel
        self._started = time.monotonic()
        self._kept = None if options.failed_to is None else FailedMessages(options.failed_to, channel.addressed)

    @property
    def total(self) -> int:
        """All that the broker answered for."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """What it did not take."""
        return self.total - self.counts[Confirmation.CONFIRMED]

    def add(self, receipt: Receipt) -> None:
        if receipt.confirmation is Confirmation.RETURNED and not self._is_mandatory:
            self.counts[Confirmation.CONFIRMED] += 1
            self.is_unreceived = True
            output.status(f"{self._line(receipt.message)}, no queue received it")
            return
        self.counts[receipt.confirmation] += 1
        if receipt.confirmation is Confirmation.CONFIRMED:
            if not self.is_stream or current().verbose:
                output.status(self._line(original(receipt.message)))
            return
        if self._kept is not None:
            self._kept.add([original(receipt.message)])
        if self._is_one:
            raise NotConfirmed(
                f"the message was {receipt.confirmation}: {receipt.reason}", _HINTS.get(receipt.confirmation)
            )
        _report_refused(receipt, self.failed)

    def not_taken(self, error: MqtoolError) -> MqtoolError | None:
        """The error for a stream of which the broker refused messages; None if there is more to it, or just one."""
        unconfirmed = len(self._channel.unconfirmed)
        if self._is_one or not self._channel.refused or not unconfirmed:
            return None
        failed = self.failed + unconfirmed
        if not self.counts[Confirmation.CONFIRMED]:
            return NotConfirmed(f"the broker confirmed none of {_messages(failed)}: {error}", error.hint)
        return SomeFailed(f"{failed:,} of the messages sent were not confirmed: {error}", error.hint)

    def finish(self, source: Input) -> None:
        unconfirmed = self._channel.unconfirmed
        nothing_but_an_error = not self.total and not unconfirmed and sys.exc_info()[0] is not None
        if (self.is_stream and not nothing_but_an_error) or self.total > 1:
            output.status(self._sum(len(unconfirmed)))
        if self._kept is not None:
            self._kept.add(map(original, unconfirmed))
            self._kept.add(source.rest())
            self._kept.finish()

    def _sum(self, unconfirmed: int) -> str:
        seconds = time.monotonic() - self._started
        parts = ", ".join(f"{count:,} {confirmation}" for confirmation, count in self.counts.items())
        if unconfirmed:
            parts += f", {unconfirmed:,} unanswered"
        rate = self.total / seconds if seconds > 0 else 0.0
        return f"{parts} in {seconds:.1f} s ({rate:,.0f}/s)"


def _filled(line: str) -> Callable[[Message], str]:
    return lambda message: line.format(key=message.routing_key, body=text(message))


def text(message: Message) -> str:
    """A body, for people; on a terminal, no more of it than they can take in."""
    body, rest = output.excerpt(message.body) if output.is_terminal(2) else (message.body, "")
    return body.decode("utf-8", "backslashreplace") + rest


def _messages(count: int) -> str:
    return f"{count:,} message{'s' * (count != 1)}"


def _report_refused(receipt: Receipt, number: int) -> None:
    if number <= _REPORTED:
        output.warning(f"{receipt.confirmation}: {text(receipt.message)[:60]!r}: {receipt.reason}")
    elif number == _REPORTED + 1:
        output.warning("further failures are only counted")


def held(
    source: Input, asked: Publishing, channel: Channel, to: Exchange | Queue, leads_to: Queue | None = None
) -> Iterable[Message | None]:
    """The messages to publish: those with a delay on their way to where they wait, the others as they are.

    Args:
        to: where messages go that do not name an exchange or a routing key themselves.
        leads_to: the queue behind it, if that is known.

    Raises:
        PluginMissing: the user asked for the plugin, and the broker lacks it.
    """
    delays, options = asked.delays, asked.options
    if not delays.are_given and not options.as_json:
        return source
    if options.mandatory:
        return map(_not_delayed, source)
    from mqtool.delays.holding import Delaying
    from mqtool.delays.ways import Destination

    delaying = Delaying(channel, delays.via, Destination(to, leads_to), output.notice, output.warning)
    if delays.are_given:
        delaying.choose()  # now, rather than when the first line arrives
    return _hold(source, delaying)


def _hold(source: Input, delaying: "Delaying") -> Iterator[Message | None]:
    try:
        yield from delaying.hold(source)
    except MqtoolError:
        if delaying.at_fault is not None:  # it was not published, so --failed-to has to keep it
            source.give_back(delaying.at_fault)
        raise


def _not_delayed(message: Message | None) -> Message | None:
    if message is not None and (message.delay is not None or message.due is not None):
        raise mandatory_with_delay()
    return message


class FailedMessages:
    """The file of --failed-to. It gets its name only when complete, since the input may be a file of the same name.

    Args:
        addressed: a message with the exchange and the routing key that it was published with.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, path: Path, addressed: Callable[[Message], Message]) -> None:
        from mqtool import ndjson

        self._encode = ndjson.from_message
        self._addressed = addressed
        self._path = path
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._count = 0
        try:
            self._file = self._unfinished.open("wb")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def add(self, messages: Iterable[Message]) -> None:
        """Write messages, with the exchange and routing key that they were published with."""
        for message in messages:
            self._file.write(self._encode(self._addressed(message)))
            self._count += 1

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        self._unfinished.replace(self._path)
        if self._count:
            output.warning(
                f"{self._count:,} not confirmed, kept in {self._path}; send them with 'mqtool send --json -f'"
            )
