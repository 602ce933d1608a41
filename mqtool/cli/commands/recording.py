"""mqtool recording replay, scrub, reconcile."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool import ndjson
from mqtool.amqp import basic_frames
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import set_up_printing
from mqtool.cli.command_line import command, group
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import RATE, ConfirmTimeout, DelayOptions, MessageOptions, Publishing
from mqtool.cli.options.broker_options import HiddenDialect, HiddenStrict, PublishingBroker
from mqtool.cli.options.receiving_options import WhereOption
from mqtool.cli.pipe.publishing import not_delayed, publishing_channel
from mqtool.cli.pipe.source import STDIN, Addressing, Input, StreamNotice, check, chunks, delimited, opened, whole
from mqtool.cli.values import header, parsed
from mqtool.errors import BadData, MqtoolError, SomeFailed, UsageError
from mqtool.message import CONFIRM_TIMEOUT, COPIES, Message
from mqtool.recordings.pseudonyms import Pseudonyms
from mqtool.recordings.recording import (
    Changes,
    Reconciliation,
    RecordedMessage,
    ReplayPace,
    Selection,
    parse_moment,
    parse_speed,
    recorded,
)
from mqtool.recordings.recording import reconcile as compare
from mqtool.recordings.scrubbing import Scrubber, parse_fields
from mqtool.spelling import counted
from mqtool.topology import Exchange

app = group("recording", "Play back, scrub and compare recordings.", heading="Messages")

#: The exchange for messages that name none. Recorded messages always name their exchange.
_DEFAULT_EXCHANGE = Exchange("")


#: The first message of a file must end within this many bytes, and the last one must begin within as many of the end.
_NEAR = 256 * 1024


class RecordingOptions:
    """The messages of one or more recordings, read one file after another; stdin if there are no files.

    Attributes:
        descriptors: the open files, in this order.
    """

    def __init__(self, paths: Sequence[Path], selection: Selection, changes: Changes, times: int = 1) -> None:
        if not paths and output.is_terminal(STDIN):
            raise UsageError("no recording to replay", "name a file, or pipe one in")
        self._selection = selection
        self._changes = changes
        self._times = times
        self._streams = StreamNotice(
            is_wanted=not changes.trusts_streams and None in (changes.exchange, changes.routing_key)
        )
        self._passes = 0
        self._latest: RecordedMessage | None = None
        self.descriptors = [opened(path) for path in paths] or [opened(None)]
        self._names = [str(path) for path in paths]
        self._sizes = [os.fstat(each).st_size if output.is_file(each) else None for each in self.descriptors]
        if times > 1 and None in self._sizes:
            raise UsageError("--loop needs files, because a pipe can be read only once", "save the recording first")

    def messages(self, *, to_the_end: bool = False) -> Iterator[RecordedMessage | None]:
        """Yield the messages, reading each one only when it is needed.

        Yields None while a pipe is empty. With `to_the_end`, files are read to the end even after a signal to stop.
        """
        for _ in range(self._times):
            for descriptor, size in zip(self.descriptors, self._sizes, strict=True):
                if size is not None and self._times > 1:
                    os.lseek(descriptor, 0, os.SEEK_SET)
            for index, (descriptor, size) in enumerate(zip(self.descriptors, self._sizes, strict=True)):
                is_whole = to_the_end and size is not None
                lines = delimited((whole if is_whole else chunks)(descriptor), b"\n", is_whole=is_whole)
                name = self._names[index] if len(self._names) > 1 else None
                for message in recorded(lines, self._selection, self._changes, name):
                    self._latest = message or self._latest
                    self._streams.see(leads_elsewhere=message is not None and message.leads_elsewhere)
                    yield message
            self._passes += 1

    def check_latest(self, frame_max: int = 0) -> None:
        """Raise BadData if the latest message cannot be published. See check() for `frame_max`."""
        if self._latest is not None:
            check(self._latest, self._latest.place, frame_max)

    def fraction(self, pace: ReplayPace) -> Callable[[], float] | None:
        """Return a function that computes the fraction played so far (0 to 1); None if the total size is unknown."""
        sizes = [size for size in self._sizes if size is not None]
        total = sum(sizes) * self._times
        if len(sizes) < len(self._sizes) or not total:
            return None
        started, seconds = time.monotonic(), self._seconds(pace)

        def fraction() -> float:
            if seconds:
                return min(1.0, (time.monotonic() - started) / seconds)
            position = sum(os.lseek(each, 0, os.SEEK_CUR) for each in self.descriptors)
            return min(1.0, (position + self._passes * sum(sizes)) / total)

        return fraction

    def _seconds(self, pace: ReplayPace) -> float:
        """Estimate how many seconds it will take to replay the files; 0 if unknown or if `pace` has a fixed rate."""
        if pace.rate is not None:
            return 0.0
        played, due = ReplayPace(pace.speed, clock=lambda: 0.0), 0.0
        for descriptor, size in zip(self.descriptors, self._sizes, strict=True):
            try:
                ends = (os.pread(descriptor, _NEAR, 0), os.pread(descriptor, _NEAR, max(0, (size or 0) - _NEAR)))
                first, last = (_moment(end.strip().split(b"\n")[at]) for end, at in zip(ends, (0, -1), strict=True))
            except (MqtoolError, OSError):
                return 0.0  # messages() raises the error again, with the line number
            lowest, highest = self._selection.between(first, last)
            for moment, opens in ((lowest, True), (highest, False)):
                due = played.due(RecordedMessage(b"", moment=moment, opens=opens))
        return due * self._times


def _moment(line: bytes) -> float | None:
    message = next(recorded([line], Selection(), Changes("")), None)
    return message.moment if message else None


class Replayed(Input):
    """Yields each message of a recording when it is due, and stops at a signal."""

    def __init__(self, recording: RecordingOptions, pace: ReplayPace, *, keeps_rest: bool) -> None:
        super().__init__(
            recording.messages(to_the_end=keeps_rest),
            keeps_rest=keeps_rest,
            fraction=recording.fraction(pace),
            check_latest=recording.check_latest,
            descriptors=recording.descriptors,
        )
        self._pace = pace

    def __iter__(self) -> Iterator[Message | None]:
        for message in super().__iter__():
            if isinstance(message, RecordedMessage):
                yield from stopping.until_due(self._pace.due(message))
                if stopping.requested() is not None:
                    return
            yield message


_MOMENT = dict[str, Any](parser=parsed(parse_moment), metavar="TIME")


@dataclass(kw_only=True, eq=False, repr=False)
class Playing:
    """Options that select part of a recording and set its pace."""

    speed: Annotated[
        float | None,
        typer.Option(
            parser=parsed(parse_speed),
            metavar="N",
            help="Publish N times as fast as recorded; max for no pauses",
            show_default="1",
        ),
    ] = None
    rate: Annotated[
        float | None, typer.Option("--rate", help="Constant rate, such as 500/s, instead of the recorded pace", **RATE)
    ] = None
    since: Annotated[
        Any | None, typer.Option(help="Start at this time, or this far into the recording (5m)", **_MOMENT)
    ] = None
    until: Annotated[
        Any | None, typer.Option(help="Stop at this time, or this far into the recording (5m)", **_MOMENT)
    ] = None
    where: WhereOption = None
    loop: Annotated[int, typer.Option(min=1, metavar="N", help="Play everything N times")] = 1

    def pace(self) -> ReplayPace:
        """Return the pace of the replay.

        Raises:
            UsageError: --speed and --rate are both given.
        """
        if self.speed is not None and self.rate is not None:
            raise UsageError("--speed and --rate cannot be combined", "use only one of them")
        return ReplayPace(self.speed or 1.0, self.rate)


@dataclass(kw_only=True, eq=False, repr=False)
class Changing:
    """Options that change the exchange, routing key and headers of each message."""

    to_exchange: Annotated[
        str | None,
        typer.Option(
            help="Publish everything to this exchange", metavar="EXCHANGE", autocompletion=names_of("exchanges")
        ),
    ] = None
    to_key: Annotated[str | None, typer.Option(help="Publish everything with this routing key", metavar="KEY")] = None
    to_queue: Annotated[
        str | None,
        typer.Option(help="Publish everything to this queue", metavar="QUEUE", autocompletion=names_of("queues")),
    ] = None
    set_header: Annotated[
        list[Any] | None,
        typer.Option(
            parser=parsed(header), metavar="KEY=VALUE", help="Header to set; KEY:=JSON for a non-string value"
        ),
    ] = None
    drop_header: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Header to remove")] = None
    trust_streams: Annotated[
        bool, typer.Option("--trust-streams", help="Use the exchange, keys, CC and BCC of messages from streams")
    ] = False
    keep_broker_headers: Annotated[
        bool, typer.Option("--keep-broker-headers", help="Also send headers that the queue has set")
    ] = False

    def changes(self) -> Changes:
        """Return the changes to make to each message.

        Raises:
            UsageError: --to-queue is combined with --to-exchange or --to-key, or a name is not valid.
            BadData: a header cannot be sent.
        """
        exchange, key = self.to_exchange, self.to_key
        if self.to_queue is not None:
            if exchange is not None or key is not None:
                raise UsageError(
                    "--to-queue cannot be combined with --to-exchange or --to-key", "a queue needs neither of them"
                )
            exchange, key = "", self.to_queue
        headers = dict(self.set_header or ())
        basic_frames.check(Message(b"", key, exchange, {"headers": headers}))
        # If the user chooses the destination, the message must not add others.
        copies = () if exchange is None and key is None else COPIES
        dropped = (*copies, *(self.drop_header or ()))
        return Changes(exchange, key, dropped, headers, self.trust_streams, self.keep_broker_headers)


@command(
    app,
    "mqtool recording replay incident.ndjson",
    "mqtool recording replay incident.ndjson --speed max --to-queue jobs",
    "mqtool tap logs --json | mqtool recording replay -u localhost:5673",
    effect=Effect.CHANGES,
    without=("protocol",),
    instead={"dialect": HiddenDialect, "strict": HiddenStrict},
)
def replay(
    playing: Playing,
    changing: Changing,
    broker: PublishingBroker,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings, played in the order given (default: stdin)", metavar="FILE..."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; send nothing")] = False,
    mandatory: Annotated[
        bool, typer.Option("--mandatory/--no-mandatory", help="Count unroutable messages as failed")
    ] = True,
    failed_to: Annotated[Path | None, typer.Option(metavar="FILE", help="Save unconfirmed messages as NDJSON")] = None,
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT,
) -> None:
    """Publish the messages of a recording, at their original pace.

    A recording is NDJSON, as 'receive --json' and 'tap --json' print it. Each message is published to its original
    exchange with its original routing key, and counts as failed if no queue receives it. A message that was read from a
    stream is published to the stream again, unless --trust-streams is given.
    """
    pace = playing.pace()
    chosen = Selection(playing.since, playing.until, playing.where)
    played = RecordingOptions(files or [], chosen, changing.changes(), playing.loop)
    if dry_run:
        set_up_printing(broker)
        _show(played, pace, mandatory=mandatory)
        return
    options = MessageOptions(
        file=Path("-"), as_json=True, mandatory=mandatory, confirm_timeout=confirm_timeout, failed_to=failed_to
    )

    source = Replayed(played, pace, keeps_rest=failed_to is not None)
    if failed_to is not None and source.reads(failed_to):  # it would lose the messages that are not selected
        raise UsageError(f"{failed_to} is also a recording to replay", "save unconfirmed messages to another file")
    asked = Publishing(options=options, delays=DelayOptions(), broker=broker)
    with publishing_channel(asked, _DEFAULT_EXCHANGE, Addressing(), opened=Access.channel, source=source) as (
        channel,
        outgoing,
    ):
        receipts = channel.publish(outgoing.messages, exchange=_DEFAULT_EXCHANGE)
        outgoing.report(receipts, lambda message: f" [x] Replayed {len(message.body):,} bytes to {_place(message)}")


def _place(message: Message) -> str:
    if message.exchange:
        return f"{message.exchange}:{message.routing_key or ''}"
    return f"queue {message.routing_key}"


def _show(recording: RecordingOptions, pace: ReplayPace, *, mandatory: bool) -> None:
    count, seconds, started = 0, 0.0, None
    for message in recording.messages():
        if message is not None:
            recording.check_latest()
            if mandatory:
                not_delayed(message)
            due = pace.due(message)
            started = due if started is None else started
            count, seconds = count + 1, due - started
            output.show(f"{seconds:.3f}s\t{output.one_line(_place(message))}\t{len(message.body):,} bytes")
    output.status(f"{counted(count)} would be sent in {seconds:.1f} s; nothing was sent: --dry-run")


@command(
    app,
    "mqtool tap orders --json | mqtool recording scrub > incident.ndjson",
    "mqtool recording scrub incident.ndjson --keep routing_key,headers.type",
    "mqtool recording scrub incident.ndjson --field body.email --seed 'a secret'",
    effect=Effect.NONE,
)
def scrub(
    file: Annotated[Path | None, typer.Argument(help="Recording (default: stdin)", metavar="FILE")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="FIELDS", help="Keep these fields, such as routing_key,headers.type")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(metavar="FIELDS", help="Replace only these fields, such as body.user.email")
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            "--seed",
            help="Equal seeds give equal replacements; keep SEED secret",
            show_default="random",
            metavar="SEED",
        ),
    ] = None,
) -> None:
    """Replace the values in a recording, so that it can be shared.

    Replaces routing keys, header values, ids and bodies: letters with letters, and digits with digits. Replacements are
    consistent: equal words stay equal. Keeps exchanges, queues, times, content types, header names, JSON keys, and the
    JSON values true, false and null. In headers that RabbitMQ sets, such as x-death, keeps only values that RabbitMQ
    would write there: numbers, times, reasons, and names of queues and exchanges. With --field, text that has no
    fields, such as a body that is not JSON, is replaced as a whole.
    """
    if file is None and output.is_terminal(STDIN):
        raise UsageError("no recording to scrub", "name a file, or pipe one in")
    pseudonyms = Pseudonyms(os.urandom(32) if seed is None else os.fsencode(seed))
    scrubber = Scrubber(pseudonyms, parse_fields(keep or ()), parse_fields(field or ()))
    descriptor = opened(file)
    # Ctrl-C also ends the program that writes to stdin, but the last lines of its output must still be processed.
    with stopping.calling(lambda: None):
        number, done = 0, list[bytes]()
        try:
            for line in delimited(_with_pauses(descriptor), b"\n"):
                if line is None:
                    output.show_json_lines(b"".join(done))
                    done.clear()
                    continue
                number += 1
                if line.strip():
                    done.append(scrubber.line(line, f"line {number}") + b"\n")
        finally:
            output.show_json_lines(b"".join(done))
            _warn_of_fields(scrubber)  # also if a line is invalid, because those before it have been printed


def _warn_of_fields(scrubber: Scrubber) -> None:
    """Say where the fields of --field could not be looked for, and in which of them nothing was replaced."""
    if scrubber.unsearched:
        output.warning(
            f"replaced as a whole in {counted(scrubber.unsearched)}: text or bytes in which fields cannot be found, "
            "such as a body that is not JSON"
        )
    if scrubber.unseen:
        fields = ", ".join(map(output.one_line, sorted(scrubber.unseen)))
        output.warning(
            f"found no value to change in {fields}: names must match exactly, in upper and lower case, and some values "
            "always stay"
        )


def _with_pauses(descriptor: int) -> Iterator[bytes | None]:
    """Yield each chunk of input, followed by None, which tells the caller to write its output before the next one."""
    for chunk in whole(descriptor):
        yield chunk
        yield None


_SHOWN = 10


@command(
    app,
    "mqtool recording reconcile sent.ndjson got.ndjson",
    "mqtool receive --json | mqtool recording reconcile sent.ndjson -",
    effect=Effect.NONE,
)
def reconcile(
    sent: Annotated[Path, typer.Argument(help="Messages that were sent, as NDJSON; - for stdin", metavar="SENT")],
    got: Annotated[Path, typer.Argument(help="Messages that were received, as NDJSON; - for stdin", metavar="GOT")],
    exact: Annotated[
        bool, typer.Option("--exact", help="Also fail on duplicate, unexpected or reordered messages")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON")] = False,
) -> None:
    """Compare two files of messages by message_id.

    Reports messages that are missing, duplicated or out of order. Exits with 3 if any message is missing.
    """
    nameless = 0

    def with_ids() -> Iterator[str]:  # received messages may come from other programs and have no IDs
        nonlocal nameless
        for message_id in _ids(got):
            nameless += message_id is None
            if message_id is not None:
                yield message_id

    result = compare(_all_ids(sent), with_ids())
    if nameless:
        output.warning(f"{nameless:,} of the messages received have no message_id, and are not compared")
    if as_json:
        output.show_json(asdict(result))
    else:
        _show_comparison(result)
    if result.missing:
        verb = "is" if len(result.missing) == 1 else "are"
        raise SomeFailed(f"{len(result.missing):,} of {result.sent:,} messages {verb} missing")
    if exact and (result.doubled or result.unexpected or result.reordered):
        raise SomeFailed("the messages all arrived, but not as they were sent")


def _all_ids(path: Path) -> Iterator[str]:
    for number, message_id in enumerate(_ids(path), 1):
        if message_id is None:
            raise BadData(f"{path}: message {number} has no message_id", "messages are compared by their message_id")
        yield message_id


def _ids(path: Path) -> Iterator[str | None]:
    with open(opened(path), "rb", closefd=str(path) != "-") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield ndjson.to_message(line, f"{path}, line {number},").message_id


def _show_comparison(result: Reconciliation) -> None:
    output.show(f"sent        {result.sent:,}\ngot         {result.got:,}")
    for what in ("missing", "doubled", "unexpected", "reordered"):
        ids: list[str] = getattr(result, what)
        more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
        listed = f": {', '.join(map(output.one_line, ids[:_SHOWN]))}{more}" if ids else ""
        output.show(f"{what:<12}{len(ids):,}{listed}")
