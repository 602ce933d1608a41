"""Common code of publishing commands: open a channel, delay messages, report receipts, save failures (--failed-to).

commands/X ── read_messages() ──> pipe/source ── messages ──> tutorials/X ── publish() ──> amqp
    └── Outgoing.report() <── receipts, in order, as the broker confirms ────────────────────┘
"""

import fcntl
import math
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from mqtool.amqp import Channel
from mqtool.amqp.administration import check_utf_8
from mqtool.channels import PublishingChannel
from mqtool.cli import stopping
from mqtool.cli.access import HINT_PATIENCE, Access, ChannelOrSession
from mqtool.cli.broker_access import access_to, print_as_script
from mqtool.cli.confirmation import ask
from mqtool.cli.display import output
from mqtool.cli.display.progress import Progress
from mqtool.cli.invocation import current
from mqtool.cli.options import MessageOptions, Publishing
from mqtool.cli.options.message_options import mandatory_with_delay
from mqtool.cli.pipe.source import Addressing, Input, read_messages
from mqtool.delays import original
from mqtool.errors import MqtoolError, NotConfirmed, SomeFailed, Unavailable, UsageError
from mqtool.message import PERSISTENT, Confirmation, Message, Receipt
from mqtool.spelling import counted, in_time, pasteable, quoted
from mqtool.topology import Exchange, Queue

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

#: The number of failures to print one by one; the rest are only counted.
_REPORTED = 10
#: How many exchanges, routing keys and headers of delayed messages to look up, to find out whether a queue is bound.
_ADDRESSES = 1000
#: After this many seconds of keeping the rest of the input, say so.
_LONG = 1.0
#: The maximum number of bytes to print of a confirmed message's body.
_ECHOED = 10_000

ChannelT = TypeVar("ChannelT", bound=ChannelOrSession)
_Opened = TypeVar("_Opened", covariant=True)


class Opened(Protocol[_Opened]):
    """Opens a channel for a `with` block."""

    def __call__(
        self, access: Access, /, *, mandatory: bool, confirm_timeout: float
    ) -> AbstractContextManager[_Opened]: ...


@contextmanager
def publishing_channel(
    asked: Publishing,
    to: Exchange | Queue,
    addressing: Addressing,
    *,
    opened: Opened[ChannelT],
    leads_to: Queue | None = None,
    is_declared: bool = True,
    default: bytes | None = None,
    adapt: Callable[[Message], Message] | None = None,
    source: Input | None = None,
) -> "Iterator[tuple[ChannelT, Outgoing]]":
    """Open a channel, and read the messages to publish. Yields the channel and an Outgoing with the messages.

    Args:
        to: where the command sends messages that do not name an exchange or a routing key themselves.
        addressing: the exchange and routing key given by the user.
        opened: opens the channel: Access.channel, or Access.channel_or_session for commands with --protocol.
        leads_to: the queue that the command declares and binds to `to`, if `to` is an exchange.
        is_declared: True if the command declares `to`.
        default: the body if there are no message words and no input; None if the user must give a message.
        adapt: a function applied to each message in the input.
        source: the messages to publish instead of those given on the command line.
    """
    options = asked.options
    for name in addressing:
        check_utf_8(name or "")
    source = source or read_messages(asked, addressing, default=default, adapt=adapt)
    if not options.is_stream and not options.is_repeated and options.file is None:
        print_as_script(asked.broker)
    access = access_to(asked.broker)
    # By default, the broker returns every unroutable message, and Outgoing decides which of them count as failed. A
    # delayed message is not routed to its queue until it is due.
    is_delayed = asked.delays.are_given or any(name == "x-delay" for name, _ in options.headers or ())
    mandatory = not is_delayed if options.mandatory is None else options.mandatory
    with opened(access, mandatory=mandatory, confirm_timeout=options.confirm_timeout) as channel:
        delayed = _delayed(source, asked, access, channel, to, leads_to, is_declared=is_declared)
        outgoing = Outgoing(options, access, channel, source, delayed)
        is_told = output.is_terminal(2) and not (current().quiet or output.speaks_as_script())
        if is_told and (options.as_json or (is_delayed and leads_to is None)):
            outgoing.delayed = {}
        yield channel, outgoing
    if is_told and outgoing.is_unreceived and isinstance(to, Exchange):
        _show_neighbour(access, to)
    if outgoing.delayed:
        _tell_if_unbound(access, outgoing.delayed.values())
    if isinstance(to, Queue):
        _tell_if_transient(access, to, outgoing)


@contextmanager
def publishing_stream_channel(
    asked: Publishing,
    opened: Callable[[Access], AbstractContextManager["StreamChannel"]],
    *,
    routing_key: str | None,
    default: bytes | None,
) -> "Iterator[tuple[StreamChannel, Outgoing]]":
    """Open a stream channel, and read the messages to publish. Yields the channel and an Outgoing with the messages."""
    # Nothing routes a message of the named stream: its own routing key selects at most a partition.
    asked = replace(asked, options=replace(asked.options, trust_streams=asked.options.as_json))
    source = read_messages(asked, Addressing(None, routing_key), default=default, with_ids=False)
    access = access_to(asked.broker)
    with opened(access) as channel:
        yield channel, Outgoing(asked.options, access, channel, source, source)


class Outgoing:
    """The messages of a publishing command. Reports the outcome of each one.

    Attributes:
        access: how to reach the broker.
        messages: the messages to publish. An item that is None means that no message is available yet.
        is_unreceived: True if a message given as an argument was unroutable, which does not count as a failure.
        transient: the number of confirmed messages that are not persistent.
        delayed: one of the delayed messages for each exchange, routing key and headers; None if they are not needed.
    """

    def __init__(
        self,
        options: MessageOptions,
        access: Access,
        channel: PublishingChannel,
        source: Input,
        messages: Iterable[Message | None],
    ) -> None:
        self.access = access
        self.messages = messages
        self.is_unreceived = False
        self.transient = 0
        self.delayed: dict[str, Message] | None = None
        self._counts = dict.fromkeys(Confirmation, 0)
        self._unroutable = 0
        self._is_one = not (options.is_stream or options.is_repeated)
        is_typed_in = options.is_stream and output.is_terminal(0) and options.file is None
        self._is_piped = not self._is_one and not is_typed_in
        self._is_paced = options.every is not None
        self._is_endless = self._is_paced and options.count is None
        self._is_mandatory = options.mandatory
        self._channel = channel
        self._source = source
        self._started = time.monotonic()
        self._kept = None
        if options.failed_to is not None:
            self._kept = FailedMessages(options.failed_to, channel.addressed, source)

    def report(self, receipts: Iterable[Receipt], line: Callable[[Message], str] | str) -> None:
        """Print the outcome of each message, then the totals.

        Args:
            line: what to print for a confirmed message; a string may contain the placeholders {key} and {body}.

        Raises:
            NotConfirmed, SomeFailed: the broker confirmed none of the messages, or not all of them.
            BadData: the input is not valid, or cannot be read to its end.
            SystemExit: a signal ended the input early; all messages read until then are confirmed. Not for
                a flow without an end (--every), which only a signal ends.
        """
        try:
            self._report_each(receipts, _filled(line) if isinstance(line, str) else line)
        except MqtoolError as error:
            if (reported := self._error_to_report(error)) is error:
                raise
            raise reported from error
        if (bad_input := self._source.error) is not None:  # in the rest of a file, after a signal
            raise bad_input
        if self.total and self._counts[Confirmation.RETURNED] == self.total:
            which = f"any of the {_messages(self.total)}" if self.total > 1 else "the message"
            raise NotConfirmed(f"no queue received {which}", "'mqtool topology' shows which queues are bound")
        if self._failed and not self._counts[Confirmation.CONFIRMED]:
            raise NotConfirmed(f"the broker confirmed none of {_messages(self._failed)}")
        if self._failed:
            raise SomeFailed(f"{self._failed:,} of {_messages(self.total)} failed")
        if self._kept is not None and self._kept.continued:
            raise SomeFailed(f"still to be sent: {counted(self._kept.continued)} of an earlier run")
        if not self._is_endless:
            stopping.exit_if_requested()

    @property
    def total(self) -> int:
        """The number of messages whose outcome is known."""
        return sum(self._counts.values())

    @property
    def _failed(self) -> int:
        return self.total - self._counts[Confirmation.CONFIRMED]

    def _report_each(self, receipts: Iterable[Receipt], text_of: Callable[[Message], str]) -> None:
        progress = Progress("confirmed", is_wanted=self._is_piped, fraction=self._source.fraction)
        try:
            for receipt in progress.of(receipts):
                self._add(receipt, text_of)
        except MqtoolError:
            self._source.check_latest(self._frame_max)
            raise
        finally:
            progress.stop()
            self._finish()

    @property
    def _frame_max(self) -> int | None:
        return self._channel.connection.frame_max if isinstance(self._channel, Channel) else None

    def _add(self, receipt: Receipt, text_of: Callable[[Message], str]) -> None:
        if receipt.confirmation is Confirmation.RETURNED and not self._must_reach_a_queue(receipt.message):
            self._counts[Confirmation.CONFIRMED] += 1
            self._count_unroutable(receipt.message)
            self.is_unreceived = self._source.is_typed
            if not self._is_piped or current().verbose:
                unreceived = "" if output.speaks_as_script() else ", no queue received it"
                output.say(f"{text_of(receipt.message)}{unreceived}")
            return
        self._counts[receipt.confirmation] += 1
        if receipt.confirmation is Confirmation.CONFIRMED:
            self.transient += receipt.message.properties.get("delivery_mode") != PERSISTENT
            if self.delayed is not None and len(self.delayed) < _ADDRESSES:
                self._note_if_delayed(self.delayed, receipt.message)
            if not self._is_piped or current().verbose:
                output.say(text_of(original(receipt.message)))
            return
        if self._kept is not None:
            self._kept.add([original(receipt.message)])
        if self._is_one:
            raise NotConfirmed(f"the message was {receipt.confirmation}: {receipt.reason}", _hint(receipt))
        _warn_of(receipt, self._failed)

    def _note_if_delayed(self, delayed: dict[str, Message], sent: Message) -> None:
        message = original(sent)
        if message is not sent or "x-delay" in (sent.properties.get("headers") or {}):
            to = self._channel.addressed(message)
            if to.exchange:  # a queue exists, or sending to it fails
                delayed.setdefault(repr((to.exchange, to.routing_key, to.properties.get("headers"))), to)

    def _count_unroutable(self, message: Message) -> None:
        """Count a message that no queue has received. Say so at once for the first of many that are not shown."""
        self._unroutable += (is_routed := original(message) is message)  # a delayed message is not routed yet
        if is_routed and self._unroutable == 1 and self._is_piped and not current().verbose:
            message = self._channel.addressed(message)
            output.notice(
                f"no queue received {_beginning(message)[0][:60]!r}, sent with the key {message.routing_key!r}"
            )

    def _must_reach_a_queue(self, message: Message) -> bool:
        """Return True if an unroutable message counts as failed. By default, one sent to the default exchange does."""
        return not message.exchange if self._is_mandatory is None else self._is_mandatory

    def _error_to_report(self, error: MqtoolError) -> MqtoolError:
        """Choose the error to report after `error` ended the run. If the input is invalid, too, print both errors."""
        bad_input = self._source.error
        if self._kept is not None and self._kept.is_broken:  # `error` says so, and that the input is still needed
            if bad_input is not None:
                output.warning(str(bad_input))
            return error
        if bad_input is None:
            return self._not_taken(error) or error
        if str(error) not in str(bad_input):  # the broker's reason for refusing messages
            output.warning(str(error))
        return bad_input

    def _not_taken(self, error: MqtoolError) -> MqtoolError | None:
        """If an error ended a run that had sent or kept messages, return the error to report; otherwise None.

        So Unavailable always means that nothing was sent, and that --failed-to has kept nothing. SomeFailed and
        NotConfirmed mean that --failed-to has kept everything.
        """
        unconfirmed, confirmed = len(self._channel.unconfirmed), self._counts[Confirmation.CONFIRMED]
        kept = 0 if self._kept is None else self._kept.count
        is_refusal = self._channel.refused and unconfirmed > 0
        is_loss = isinstance(error, Unavailable) and unconfirmed + self.total + kept > 0
        if self._is_one:  # a refusal gives the reason, such as that there is no such exchange, with its own exit code
            return NotConfirmed(str(error), error.hint) if is_loss and (kept or not is_refusal) else None
        # The broker has stopped confirming. After a signal, the exit code is 75, whatever is confirmed.
        is_unanswered = isinstance(error, NotConfirmed) and confirmed > 0 and stopping.requested() is None
        if not is_refusal and not is_loss and not is_unanswered:
            return None
        failed = self._failed + unconfirmed
        if not confirmed:
            return NotConfirmed(f"the broker confirmed none of {_messages(max(failed, kept))}: {error}", error.hint)
        were = "was" if failed == 1 else "were"
        how_many = f"{failed:,} of the messages sent {were} not confirmed: " if failed else ""
        return SomeFailed(f"{how_many}{error}", error.hint)

    def _finish(self) -> None:
        unconfirmed = self._channel.unconfirmed
        nothing_but_an_error = not self.total and not unconfirmed and sys.exc_info()[0] is not None
        if (self._is_piped and not nothing_but_an_error) or self.total > 1:
            output.status(self._sums(len(unconfirmed)))
        if self._unroutable and not self._source.is_typed:
            output.notice(f"no queue received {self._unroutable:,} of them; with --mandatory they count as failed")
        if self._kept is not None:
            self._kept.add(map(original, unconfirmed))
            self._kept.add(self._rest(len(unconfirmed), sys.exc_info()[1]))
            self._kept.finish(is_input_valid=self._source.error is None)

    def _rest(self, unconfirmed: int, why: BaseException | None) -> Iterator[Message]:
        """Yield the rest of the input. If a pipe's writer goes on, say why nothing is sent: it may never pause."""
        is_pipe = self._source.fraction is None and isinstance(why, MqtoolError)
        say_at = time.monotonic() + _LONG if is_pipe else math.inf
        for message in self._source.rest(self.total + unconfirmed, self._frame_max):
            yield message
            if time.monotonic() > say_at:
                say_at = math.inf
                output.notice(f"{why}; --failed-to keeps the rest of the input until it pauses, and Ctrl-C ends this")

    def _sums(self, unconfirmed: int) -> str:
        seconds = time.monotonic() - self._started
        counts = {what: count for what, count in self._counts.items() if count or what is Confirmation.CONFIRMED}
        parts = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        if unconfirmed:
            parts += f", {unconfirmed:,} unanswered"
        # The rate of a flow is that of its intervals, of which there is one less than there are messages.
        return f"{parts} in {in_time(self.total - self._is_paced, seconds)}"


def _lines_in(path: Path) -> int:
    """Count the lines of a file; 0 if it cannot be read."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def _own_file(path: Path, failure: str) -> BufferedRandom:
    """Open a file for reading and appending, and create it if it is missing.

    Another user who can write to the directory may have put something else there, such as a link to a file of ours.

    Raises:
        OSError: the file cannot be opened.
        UsageError: it is not a regular file of this user. The text begins with `failure`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:  # some network file systems do not give a new file to the user who creates it
        return os.fdopen(os.open(path, flags | os.O_EXCL, 0o666), "ab+")
    except FileExistsError:
        pass
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "ab+")
    except OSError:
        if path.is_file() and not path.is_symlink():
            raise
    else:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            return file
        file.close()
    raise UsageError(f"{failure}: {path} is not a regular file of this user", "delete it, or name another file")


class FailedMessages:
    """The file given by --failed-to: unconfirmed or unpublished messages, saved so that they can be sent again.

    The file has a temporary name until it is complete, since the input file may have the same name. Each message is
    written at once, and a run that finds the temporary file of a killed one continues it. A symbolic link stays, and
    the file that it names is written.

    Attributes:
        count: the number of messages that this run has saved.
        continued: the number of messages that a killed run had saved.
        is_broken: True if the file could not be written.

    Raises:
        UsageError: the file cannot be written, or it is also the input.
    """

    def __init__(self, path: Path, addressed: Callable[[Message], Message], source: Input) -> None:
        from mqtool import ndjson
        from mqtool.cli.display.delivery_writer import remove_fragment

        self.count = 0
        self._encode = ndjson.from_message
        self._addressed = addressed
        self._path = path
        self._target = Path(os.path.realpath(path))
        self._unfinished = self._target.with_name(self._target.name + ".unfinished")
        self._is_input = source.reads(path)
        self.is_broken = False
        hint = "--failed-to needs the name of a file, such as failed.ndjson"
        if path.exists() and not path.is_file():  # it would be replaced, which a device must not be
            raise UsageError(f"cannot write {path}: it is not a regular file", hint)
        if str(path) == "-" or any(output.is_same_file(each, path) for each in (1, 2)):  # 'send --file=-' reads stdin
            raise UsageError(f"cannot write {path}: it is stdout or stderr", hint)
        if source.reads(self._unfinished):
            raise UsageError(f"{self._unfinished} is also the input", f"rename it, or name another file than {path}")
        try:
            self._file = _own_file(self._unfinished, f"cannot write {path}")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_fragment(self._file)
            self._file.seek(0)
            self.continued = sum(line.endswith(b"\n") for line in self._file)
            if not self.continued:
                self._file.truncate(0)  # it may have a part of a first line
            self._continued_bytes = self._file.seek(0, os.SEEK_END)
        except BlockingIOError:
            raise UsageError(f"another command keeps its failed messages in {path}", "name another file") from None
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        if self.continued:
            had = counted(self.continued)
            output.notice(f"an earlier run did not finish, and left {had} in {self._unfinished}: {path} gets them, too")

    def add(self, messages: Iterable[Message]) -> None:
        """Write messages as NDJSON, each with its exchange and routing key."""
        if self.is_broken:
            return
        with self._checked():
            for message in messages:
                self._file.write(self._encode(self._addressed(message)))
                self._file.flush()  # nothing that is known to have failed is lost if the process is killed
                self.count += 1

    def finish(self, *, is_input_valid: bool = True) -> None:
        """Close the file and rename it to its final name. If it replaces lines that this run has not read, say so.

        If it would replace an input with an invalid message, the input stays, since what follows has not been read.
        """
        if self.is_broken:
            return
        if self._is_input and not is_input_valid:
            with self._checked():
                self._file.truncate(self._continued_bytes)  # what this run has added is still in the input, too
                if not self.continued:
                    self._unfinished.unlink()
                self._file.close()
            output.warning(
                f"{self._path} is left unchanged, so that no message after the invalid one is lost; "
                "those before it will be sent again"
            )
            if self.continued:
                output.notice(f"{self._unfinished} still has the {counted(self.continued)} of the earlier run")
            return
        before = 0 if self._is_input else _lines_in(self._target)
        with self._checked():
            self._file.flush()
            self._unfinished.replace(self._target)
            self._file.close()  # only now, as this unlocks it
        if before:
            output.notice(f"replaced {self._path}, which had {counted(before, 'line')} from before")
        if count := self.count + self.continued:
            again = pasteable("send --json --file=", str(self._path))
            output.warning(f"{count:,} not confirmed, kept in {self._path}; to send them: {again}")

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.is_broken = True
            self._file.raw.close()  # what is still in the buffer cannot be written either
            raise MqtoolError(
                f"cannot write to {self._unfinished}: {error.strerror}",
                "it has the first of the messages that were not confirmed; do not delete the input",
            ) from error


def echo(line: str, message: Message, key: str | None = None) -> str:
    """Fill in a line that reports a message. If its body is long, the line has the beginning, and its size at the end.

    Args:
        line: may contain the placeholders {key} and {body}.
        key: the routing key, if it is not the message's own.
    """
    body, rest = _beginning(message)
    return line.format(key=message.routing_key if key is None else key, body=body) + rest


def _beginning(message: Message) -> tuple[str, str]:
    """Return the first line of a message's body (all lines if stderr is a terminal); if it is shortened, its size."""
    if output.is_terminal(2):
        body, rest = output.excerpt(message.body)
        return body.decode("utf-8", "backslashreplace"), rest
    end = message.body.find(b"\n", 0, _ECHOED)
    line = message.body[: _ECHOED if end < 0 else end]
    rest = f"… ({len(message.body):,} bytes)" if len(message.body) > len(line) + 1 else ""
    return line.decode("utf-8", "backslashreplace"), rest


def _filled(line: str) -> Callable[[Message], str]:
    return lambda message: echo(line, message)


def _messages(count: int) -> str:
    return f"{count:,} message{'s' * (count != 1)}"


def _hint(receipt: Receipt) -> str | None:
    if receipt.confirmation is not Confirmation.RETURNED:
        return None
    if receipt.message.exchange:
        return "no queue is bound to its exchange for its routing key or headers"
    key = receipt.message.routing_key or ""
    listed = f"'mqtool list queues' shows whether queue {key!r} exists"
    if not receipt.reason.startswith("NO_ROUTE"):  # over AMQP 1.0, what the broker refuses is released, too
        return listed
    # RabbitMQ's sharding plugin takes the exchange's name for one of its queues, but not as a routing key.
    return f"{listed}; if it is an exchange: {pasteable('send --exchange=', key)}"


def _warn_of(receipt: Receipt, number: int) -> None:
    if number <= _REPORTED:
        output.warning(f"{receipt.confirmation}: {_beginning(receipt.message)[0][:60]!r}: {receipt.reason}")
    elif number == _REPORTED + 1:
        output.warning("further failures are only counted")


def _tell_if_transient(access: Access, queue: Queue, outgoing: Outgoing) -> None:
    """On a terminal, say if a restart of the broker would remove several of the messages from a durable classic queue.

    Quorum queues keep all messages on disk.
    """
    if not output.is_terminal(2) or current().quiet or outgoing.total < 2:
        return
    if outgoing.transient and _is_durable_classic(access, queue):
        output.notice(f"{outgoing.transient:,} are not persistent: lost when the broker stops (see --persistent)")


def _is_durable_classic(access: Access, queue: Queue) -> bool:
    """True if, according to the management API, a queue is durable and classic; without the API, as it was declared.

    A queue that exists already may have another type than the one to declare.
    """
    from mqtool.management import path

    kind, durable = queue.arguments.get("x-queue-type"), queue.durable
    with suppress(MqtoolError):
        view = access.management(HINT_PATIENCE).get(path("queues", access.vhost, queue.name))
        kind, durable = view.get("type"), bool(view.get("durable"))
    return durable and kind == "classic"


def _show_neighbour(access: Access, exchange: Exchange) -> None:
    """Suggest an exchange with a similar name that has bindings, if the management API lists one."""
    from mqtool.inspection.near_misses import bound_neighbour

    with suppress(MqtoolError):
        if (near := bound_neighbour(access.management(HINT_PATIENCE), access.vhost, exchange)) is not None:
            has = counted(near.bindings, "binding")
            output.notice(f"exchange {near.name!r} has {has}; to publish there: --exchange={quoted(near.name)}")


def _tell_if_unbound(access: Access, messages: Iterable[Message]) -> None:
    """Warn if, according to the management API, delayed messages would be dropped if they were due now."""
    from mqtool.inspection.definitions import read
    from mqtool.inspection.routes import Router

    told = 0
    with suppress(MqtoolError):
        router = Router(read(access.management(HINT_PATIENCE), access.vhost))
        for message in messages:
            exchange, key = message.exchange or "", message.routing_key or ""
            with suppress(MqtoolError, KeyError):
                found = router.route(exchange, key, message.properties.get("headers"))
                if told < _REPORTED and not found.queues and not found.unknown:
                    told += 1
                    output.notice(
                        f"no queue is bound to exchange {exchange!r} by {key!r} now: the broker drops messages that "
                        "are due before one is"
                    )


def _delayed(
    source: Input,
    asked: Publishing,
    access: Access,
    channel: ChannelOrSession,
    to: Exchange | Queue,
    leads_to: Queue | None,
    *,
    is_declared: bool,
) -> Iterable[Message | None]:
    """Redirect delayed messages to a queue or exchange that holds them until they are due; leave others unchanged."""
    delays, options = asked.delays, asked.options
    if not delays.are_given and not options.as_json:
        return source
    if not isinstance(channel, Channel):
        if delays.are_given:
            raise _not_over_amqp10()
        return map(_not_delayed_by_amqp10, source)
    if options.mandatory:
        return map(not_delayed, source)
    from mqtool.delays.destinations import Destination
    from mqtool.delays.holding import Delaying

    destination = Destination(to, leads_to, is_declared)
    delaying = Delaying(channel, delays.via, destination, output.notice, output.warning)
    if delays.are_given:
        _ask_to_delay(access)
        delaying.choose()  # choose now, not only when the first line arrives
        return delaying.hold(source)
    return delaying.hold(_asked(source, access) if access.is_guarded else source)


def _asked(source: Input, access: Access) -> Iterator[Message | None]:
    """In a protected context, ask before the first delayed message in the input is held."""
    is_asked = False
    for message in source:
        if not is_asked and message is not None and (message.delay is not None or message.due is not None):
            is_asked = True
            _ask_to_delay(access)
        yield message


def _ask_to_delay(access: Access) -> None:
    if access.is_guarded:
        ask("declare queues or exchanges in which delayed messages wait", access, is_safe=True)


def _not_delayed_by_amqp10(message: Message | None) -> Message | None:
    if message is not None and (message.delay is not None or message.due is not None):
        raise _not_over_amqp10()
    return message


def _not_over_amqp10() -> UsageError:
    return UsageError("messages cannot be delayed over AMQP 1.0", "leave out the delay, or use --protocol amqp0.9.1")


def not_delayed(message: Message | None) -> Message | None:
    if message is not None and (message.delay is not None or message.due is not None):
        raise mandatory_with_delay()
    return message
