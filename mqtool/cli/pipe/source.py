"""Reads the messages to publish: command-line words, or stdin and files, as lines or as NDJSON."""

import fcntl
import math
import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.cli.options import MessageOptions, Publishing
from mqtool.errors import BadData, MqtoolError, UsageError
from mqtool.message import InBatches, Message, new_message_id, new_message_ids, prepare_copy
from mqtool.spelling import counted

Thing = TypeVar("Thing")

STDIN = 0
_CHUNK = 256 * 1024
#: While there is no input, a signal to stop is noticed within this many seconds.
LOOK_UP = 0.25
#: Seconds between the first None and the second one, at which a publisher waits for confirms. If it waited at the first
#: one, it would do so for each line of a program that writes the next line once this one is read, as `receive` does.
_SOON = 0.005
#: The maximum number of pauses of _SOON seconds in the rest of a pipe. A program such as `tail -f` may write a line
#: every tenth of a second for ever.
_PAUSES = 40


def has_input(descriptor: int) -> bool:
    """Return True if the input is a pipe or a file rather than a terminal or /dev/null."""
    try:
        return not stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def opened(path: Path | None) -> int:
    """Open a file and return its descriptor; None and "-" mean stdin.

    Raises:
        UsageError: the file cannot be opened, or stdin is closed.
    """
    if path is None or str(path) == "-":
        if fcntl.fcntl(STDIN, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:  # see output.take_standard_streams()
            raise UsageError("cannot read stdin: it is closed", "pipe the input in, or redirect it from a file")
        return STDIN
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def text_of(path: Path) -> str:
    """Read a text file, or stdin for "-". Raises UsageError if it cannot be read, or is not text."""
    with open(opened(path), encoding="utf-8", closefd=str(path) != "-") as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise UsageError(f"cannot read {path}: it is not text") from error


def fraction(descriptor: int) -> Callable[[], float] | None:
    """Return a function that computes the fraction of a file read so far (0 to 1); None for a pipe or terminal."""
    if not output.is_file(descriptor):
        return None
    size = max(1, os.fstat(descriptor).st_size)

    def fraction() -> float:
        try:
            return min(1.0, os.lseek(descriptor, 0, os.SEEK_CUR) / size)
        except OSError:  # the file was closed after it was read to the end
            return 1.0

    return fraction


def whole(descriptor: int) -> Iterator[bytes | None]:
    """Yield the chunks of a file or pipe up to its end, even after a signal to stop. Waits while there is no input.

    Raises:
        BadData: the input cannot be read.
    """
    while (chunk := _read(descriptor)) != b"":
        if chunk is None:
            select.select([descriptor], [], [])
        else:
            yield chunk


def _read(descriptor: int) -> bytes | None:
    """Read a chunk; return None if there is no input now. Raises BadData if the input cannot be read."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        raise BadData(f"cannot read the input: {error.strerror}") from error


def chunks(descriptor: int) -> Iterator[bytes | None]:
    """Yield chunks of input as they arrive, until the end or a signal to stop.

    While there is no input, yield None: at once, after _SOON, and then every LOOK_UP seconds.

    Raises:
        BadData: the input cannot be read.
    """
    while stopping.requested() is None:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
            patience = _SOON
            while not select.select([descriptor], [], [], patience)[0]:
                if stopping.requested() is not None:
                    return
                yield None
                patience = LOOK_UP
        chunk = _read(descriptor)
        if chunk is None:
            continue
        if not chunk:
            return
        yield chunk


def delimited(chunks: Iterator[bytes | None], delimiter: bytes, *, is_whole: bool = False) -> Iterator[bytes | None]:
    """Yield the pieces between delimiters, as delimited_lots() does."""
    return flat(delimited_lots(chunks, delimiter, is_whole=is_whole))


def flat(batches: Iterable[Sequence[Thing]]) -> Iterator[Thing | None]:
    """Yield the items of all batches one by one, and None for an empty batch."""
    return chain.from_iterable(batch or (None,) for batch in batches)


def delimited_lots(
    chunks: Iterator[bytes | None], delimiter: bytes, *, is_whole: bool = False
) -> Iterator[list[bytes]]:
    """Split chunks at the delimiter. Yields lists of complete pieces, and empty lists while no input is available.

    Args:
        is_whole: the chunks end where the input ends, even after a signal to stop. Otherwise, what follows the last
            delimiter is left out after a signal, because it may be incomplete, and a notice says so.
    """
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        if chunk is None:
            yield []
            continue
        size += len(chunk)
        _check_size(size)
        if len(delimiter) > 1 and rest:  # a delimiter may be split between two chunks
            chunk = b"".join(rest) + chunk
            rest = []
        pieces = chunk.split(delimiter)
        rest.append(pieces[0])
        if len(pieces) == 1:
            continue
        pieces[0] = b"".join(rest)
        rest = [last] if (last := pieces.pop()) else []
        size = len(last)
        yield pieces
    last = b"".join(rest)
    if last and (is_whole or not _is_cut_off(last)):
        yield [last]


def _is_cut_off(last: bytes) -> bool:
    """Return True if a signal ended the input, so that its last message may be incomplete; print a notice then."""
    if stopping.requested() is None:
        return False
    if last:
        output.notice(f"an incomplete message at the end of the input was ignored ({counted(len(last), 'byte')})")
    return True


#: The largest message that RabbitMQ can be configured to accept, in bytes.
LARGEST = 512 << 20
#: Replaces a placeholder in a routing key if its group did not match.
UNKNOWN = "unknown"
_PLACE = r"\{(\w+)\}"
#: Maximum number of lines in a batch. Small batches let the broker process one while the next one is prepared.
_LOT = 256


class Addressing(NamedTuple):
    """The exchange and routing key given by the user, if any. --key-pattern fills in placeholders in the key."""

    exchange: str | None = None
    routing_key: str | None = None


class Input:
    """Messages to publish, and those left unpublished if publishing ends early.

    Attributes:
        error: the error in the input, such as a line that is invalid or cannot be published, after which nothing was
            read; None if there was none.

    Args:
        read: the messages. An item that is None means that no message is available yet.
        keeps_rest: stop reading at a signal, so that rest() yields the messages that were not published.
        is_typed: True for a single message from the command line.
        fraction: returns how much has been read, from 0 to 1; None if the size of the input is unknown.
        check_latest: calls check() for the latest message that was read from a line of NDJSON, if any, with the
            maximum size of a frame.
        descriptors: the open files from which it reads.
    """

    def __init__(
        self,
        read: Iterator[Message | None],
        *,
        keeps_rest: bool = False,
        is_typed: bool = False,
        fraction: Callable[[], float] | None = None,
        check_latest: Callable[[int], None] = lambda _: None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.is_typed = is_typed
        self._descriptors = descriptors
        self.fraction = fraction
        self._check_latest = check_latest
        self.error: MqtoolError | None = None
        self._read = self._noting_error(read)
        self._keeps_rest = keeps_rest
        self._handed_out = 0
        self._latest: Message | None = None

    def __iter__(self) -> Iterator[Message | None]:
        for message in _until_stopped(self._read) if self._keeps_rest else self._read:
            if message is not None:
                self._handed_out += 1
                self._latest = message
            yield message

    def reads(self, path: Path) -> bool:
        """Return True if it reads the file that `path` names."""
        return any(output.is_same_file(each, path) for each in self._descriptors)

    def rest(self, published: int, frame_max: int | None = None) -> Iterator[Message]:
        """Yield the unpublished messages: those in the rest of a file, or those that come from a pipe without a pause.

        Does not wait for the end of a pipe, because it may never come: ends if there is no input for LOOK_UP seconds,
        or often for _SOON seconds. Also ends at a line that is invalid or cannot be published; see `error`.

        Args:
            published: the number of published messages. The latest one that was read may still have been waiting, or
                may have been refused.
            frame_max: see check_latest().
        """
        waiting = [self._latest] if self._latest is not None and self._handed_out > published else []
        pauses, since = 0, math.inf
        with suppress(MqtoolError):
            for message in chain(waiting, self._read):
                if message is not None:
                    if not self.check_latest(frame_max):
                        return
                    yield message
                    since = math.inf
                    continue
                # The time since the last None shows a pause: parts of a long line may come between two.
                pause = time.monotonic() - since
                pauses += pause > _SOON / 2
                if pause > LOOK_UP / 2 or pauses > _PAUSES:
                    return
                since = time.monotonic()

    def check_latest(self, frame_max: int | None) -> bool:
        """Return True if the latest message that was read can be published. Otherwise, set `error`, with its line.

        Call this only after an error: encoding each message twice would take a fifth of the time.

        Args:
            frame_max: the maximum size of a frame; None if the protocol is not AMQP 0-9-1, and nothing is checked.
        """
        if frame_max is not None:
            try:
                self._check_latest(frame_max)
            except MqtoolError as error:
                self.error = self.error or error
                return False
        return True

    def _noting_error(self, read: Iterator[Thing]) -> Iterator[Thing]:
        try:
            yield from read
        except MqtoolError as error:
            self.error = error
            raise


class InputInBatches(Input, InBatches):
    """An Input for files and pipes that can also be read in batches. Takes the same arguments as Input."""

    def __init__(
        self,
        read: Iterator[list[Message]],
        *,
        keeps_rest: bool,
        fraction: Callable[[], float] | None,
        check_latest: Callable[[int], None],
        descriptors: Sequence[int],
    ) -> None:
        read = self._noting_error(read)
        super().__init__(
            flat(read), keeps_rest=keeps_rest, fraction=fraction, check_latest=check_latest, descriptors=descriptors
        )
        self._lots = read
        self._batch: list[Message] = []

    def batches(self) -> Iterator[list[Message]]:
        for batch in _until_stopped(self._lots) if self._keeps_rest else self._lots:
            self._batch = batch  # publish() empties it
            yield batch

    def rest(self, published: int, frame_max: int | None = None) -> Iterator[Message]:
        self._read = chain(self._batch, self._read)
        return super().rest(published, frame_max)


class Repeated(Input):
    """One message, published again and again. Nobody has written those that follow, so rest() leaves them out.

    Args:
        count: the number of messages; None for no end but a signal.
    """

    def __init__(self, read: Iterator[Message | None], count: int | None) -> None:
        super().__init__(read, fraction=None if count is None else lambda: self._handed_out / count)

    def __iter__(self) -> Iterator[Message | None]:
        return _until_stopped(super().__iter__())

    def rest(self, published: int, frame_max: int | None = None) -> Iterator[Message]:
        self._read = iter(())
        return super().rest(published, frame_max)


def _until_stopped(read: Iterator[Thing]) -> Iterator[Thing]:
    while stopping.requested() is None:
        try:
            thing = next(read)
        except StopIteration:
            return
        yield thing


def read_messages(
    asked: Publishing,
    addressing: Addressing,
    *,
    default: bytes | None,
    adapt: Callable[[Message], Message] | None = None,
    with_ids: bool = True,
) -> Input:
    """Read the messages that the command line asks to publish.

    Args:
        addressing: the exchange and the routing key given by the user.
        default: the body if there are no message words and no input; None if the user must give a message.
        adapt: a function applied to each message in the input.
        with_ids: add a message ID to each message that has none.

    Raises:
        UsageError: there is no message, options contradict each other or the message words, or the file cannot be
            opened.
    """
    words, options = asked.words, asked.options
    said = _said(asked, default)
    _check(options, said)
    asked.delays.check(mandatory=options.mandatory)
    making = _Making(asked, addressing, with_ids=with_ids)
    delimiter = _delimiter(options)
    body = None if said is None else os.fsencode(said)
    if said is None and not options.is_stream and options.file is None and not words and not has_input(STDIN):
        if default is None:
            raise UsageError(
                "there is no message: no words, and no input",
                "write the message at the end of the command, or pipe it in; '' is an empty message",
            )
        body = default
    if body is not None:
        if options.is_repeated:
            return making.repeated(body, options)
        return Input(iter(making.messages([body])), is_typed=True)
    descriptor = opened(options.file)
    batches = _from_input(descriptor, options, delimiter, making, may_be_empty=bool(words))
    if options.is_repeated:
        one = next(batches, None)
        return making.repeated(one[0].body, options) if one else Input(iter(()))
    if adapt is not None:
        batches = ([*map(adapt, batch)] for batch in batches)
    return InputInBatches(
        batches,
        keeps_rest=options.failed_to is not None,
        fraction=fraction(descriptor),
        check_latest=making.check_latest,
        descriptors=[descriptor],
    )


def _said(asked: Publishing, default: bytes | None) -> str | None:
    """Return the message given as words, if any. With --dialect, an empty one may stand for the default."""
    words, script = asked.words, asked.broker.script
    if not words or list(words) == ["-"]:
        return None
    if script is not None and default is not None:
        first = words[0] if script.empty_word_is_missing else " ".join(words)
        if script.empty_text_is_missing and not first:
            return os.fsdecode(default)
    return " ".join(words)


def _check(options: MessageOptions, said: str | None) -> None:
    """Raise UsageError if options contradict each other or the message `said` on the command line."""
    if sum([options.lines, options.null, options.as_json, options.delimiter is not None]) > 1:
        raise UsageError("--lines, --null, --delimiter and --json cannot be combined", "use only one of them")
    if options.is_repeated and options.is_stream:
        raise UsageError("--count and --every repeat one message", "leave out the option that reads several")
    if said is not None and (options.is_stream or options.file):
        raise UsageError(
            f"the message {said!r} is on the command line, but an option reads messages from input",
            "use either message words, or input with -l, -0, -D, --json or -f",
        )
    if options.trust_streams and not options.as_json:
        raise UsageError("--trust-streams needs --json", "only an NDJSON line says that its message is from a stream")
    if options.keep_broker_headers and not options.as_json:
        raise UsageError("--keep-broker-headers needs --json", "only an NDJSON line has headers that a broker has set")


def _check_size(size: int) -> None:
    if size > LARGEST:
        hint = "-l splits the input at newlines, -D at other delimiters"
        raise BadData(f"a message in the input is larger than {LARGEST >> 20} MiB, which no broker accepts", hint)


def _from_input(
    descriptor: int, options: MessageOptions, delimiter: bytes, making: "_Making", *, may_be_empty: bool
) -> Iterator[list[Message]]:
    is_whole = options.failed_to is not None and output.is_file(descriptor)
    read = whole if is_whole else chunks
    try:
        if options.as_json:
            yield from making.from_ndjson(delimited(read(descriptor), b"\n", is_whole=is_whole))
        elif options.is_stream:
            for bodies in delimited_lots(read(descriptor), delimiter, is_whole=is_whole):
                for start in range(0, len(bodies) or 1, _LOT):
                    yield making.messages(bodies[start : start + _LOT])
        else:
            parts: list[bytes] = []
            size = 0
            for chunk in filter(None, read(descriptor)):
                parts.append(chunk)
                _check_size(size := size + len(chunk))
            body = b"".join(parts)
            parts.clear()
            if not body and not may_be_empty:
                name = "stdin" if descriptor == STDIN else options.file
                output.notice(f"nothing was sent: {name} is empty; to send an empty message: ''")
            elif is_whole or not _is_cut_off(body):
                yield making.messages([body])
    finally:
        if descriptor != STDIN:
            os.close(descriptor)
    making.report_unmatched()


def check(message: Message, place: str, frame_max: int = 0) -> None:
    """Raise BadData, with the name of a message's line, if the message cannot be published over AMQP 0-9-1.

    Args:
        frame_max: the maximum size of a frame, as negotiated with the broker; 0 for RabbitMQ's default.
    """
    from mqtool.amqp import basic_frames

    try:
        basic_frames.check(message, frame_max)
        if message.delay is not None or message.due is not None:
            from mqtool.delays.holding import check_delay

            check_delay(message)
    except MqtoolError as error:
        raise BadData(f"{place} cannot be sent: {error}", error.hint) from error


class StreamNotice:
    """Says once that messages of streams are not published to the exchange and with the keys that they name."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted

    def see(self, *, leads_elsewhere: bool) -> None:
        """Take note of a message. See ndjson.leads_elsewhere()."""
        if leads_elsewhere and self._is_wanted:
            self._is_wanted = False
            output.notice(
                "the broker does not check the exchange and keys in messages of streams: the default exchange and the "
                "stream's name are used (to trust the messages: --trust-streams)"
            )


class _Making:
    def __init__(self, asked: Publishing, addressing: Addressing, *, with_ids: bool) -> None:
        options = asked.options
        self._delay, self._due = asked.delays.delay, asked.delays.at
        self._pattern: re.Pattern[str] | None = options.key_pattern
        self._exchange = addressing.exchange
        self._routing_key = addressing.routing_key
        self._places = re.findall(_PLACE, addressing.routing_key) if addressing.routing_key else []
        self._unmatched = 0
        self._latest: tuple[Message, bytes, str] | None = None
        self._trusts_streams = options.trust_streams
        self._keeps_queue_headers = options.keep_broker_headers
        is_addressed = None not in addressing
        self._streams = StreamNotice(is_wanted=not (options.trust_streams or is_addressed))
        if options.is_repeated:
            self._places = [name for name in self._places if name not in ("n", "time", "uuid")]
        if self._pattern is None and self._places and options.is_stream and not options.as_json:
            raise UsageError(
                f"the routing key contains {{{self._places[0]}}}, but --key-pattern is missing",
                f"add --key-pattern '(?P<{self._places[0]}>\\w+)'; it is searched for in each line",
            )
        if self._pattern is not None:
            if not self._places:
                raise UsageError(
                    "--key-pattern needs a routing key with {group} placeholders",
                    "such as '{app}.{level}' with --key-pattern '(?P<app>\\w+): (?P<level>\\w+)'",
                )
            if missing := [name for name in self._places if name not in self._pattern.groupindex]:
                raise UsageError(
                    f"the routing key contains {{{missing[0]}}}, but --key-pattern has no group of that name",
                    f"write (?P<{missing[0]}>…) in the pattern",
                )
        properties: dict[str, Any] = dict(options.properties or [])
        own: str | None = properties.pop("message_id", None)
        self._own_id, self._with_ids = own, with_ids and not own
        if options.headers:
            properties["headers"] = dict(options.headers)
        if options.persistent:
            properties.setdefault("delivery_mode", 2)
        if (script := asked.broker.script) and not options.as_json:
            properties = {**script.properties, **properties}
        self._properties = properties

    def messages(self, bodies: list[bytes]) -> list[Message]:
        ids = new_message_ids(len(bodies)) if self._with_ids else repeat(self._own_id)
        alike = map(repeat, (self._routing_key, self._exchange, self._properties))
        messages = [*map(Message, bodies, *alike, ids, repeat(self._delay), repeat(self._due))]
        if self._pattern is not None:
            for message in messages:
                message.routing_key = self._key(message.body)
        return messages

    def repeated(self, body: bytes, options: MessageOptions) -> Repeated:
        """Return messages that are made from this text and the routing key when they are due; see flow.py."""
        from mqtool.cli.pipe import flow

        text, key = os.fsdecode(body), self._routing_key
        places = flow.Places(text, key or "")
        due = flow.numbers(options.count, options.every, options.jitter)

        def made() -> Iterator[Message | None]:
            for number in due:
                if number is None:
                    yield None
                    continue
                filled = places.filling(number)
                self._routing_key = None if key is None else filled(key)
                yield from self.messages([os.fsencode(filled(text))])
            self.report_unmatched()

        return Repeated(made(), options.count)

    def from_ndjson(self, lines: Iterator[bytes | None]) -> Iterator[list[Message]]:
        from mqtool import ndjson

        number = 0
        for line in lines:
            if line is None:
                yield []
                continue
            number += 1
            if not line.strip():
                continue
            place = f"line {number}"
            said = ndjson.to_object(line, place)
            message = ndjson.message_of(said, place, trusts_streams=self._trusts_streams)
            self._streams.see(leads_elsewhere=ndjson.leads_elsewhere(said))
            if self._exchange is not None or self._routing_key is not None:
                message.properties = ndjson.without_copies(message.properties)
            if message.received:
                prepare_copy(message, keeps_queue_headers=self._keeps_queue_headers)
            self._overrule(message, has_properties=b'"properties"' in line)
            self._latest = message, line, place
            yield [message]

    def check_latest(self, frame_max: int) -> None:
        if self._latest is None:
            return
        from mqtool import ndjson

        message, line, place = self._latest
        try:
            check(message, place, frame_max)
        except MqtoolError:
            said = ndjson.to_object(line, place)
            with suppress(MqtoolError):
                check(ndjson.message_of(said, place, trusts_streams=self._trusts_streams), place, frame_max)
                return  # the error is in an option, such as a header that is too large
            raise

    def _overrule(self, message: Message, *, has_properties: bool) -> None:
        if self._pattern is not None:
            message.routing_key = self._key(message.body)
        elif self._routing_key is not None:
            message.routing_key = self._routing_key
        if self._exchange is not None:
            message.exchange = self._exchange
        if self._properties:
            headers = {**(message.properties.get("headers") or {}), **self._properties.get("headers", {})}
            message.properties = {**message.properties, **self._properties}
            if headers:
                message.properties["headers"] = headers
        if self._own_id or (message.message_id is None and not has_properties):
            message.message_id = new_message_id() if self._with_ids else self._own_id
        if self._delay is not None or self._due is not None:
            message.delay, message.due = self._delay, self._due

    def _key(self, body: bytes) -> str:
        """Fill in the routing key's placeholders from the body, with "unknown" where --key-pattern finds nothing."""
        assert self._pattern is not None
        match = self._pattern.search(body.decode("utf-8", "replace"))
        groups = match.groupdict() if match else {}
        if match is None:
            self._unmatched += 1
            if self._unmatched == 1:
                line = body[:60].decode("utf-8", "replace")
                output.warning(f"--key-pattern does not match {line!r}: sent with {UNKNOWN!r} in the key")
        key = re.sub(_PLACE, lambda place: groups.get(place[1]) or UNKNOWN, self._routing_key or "")
        return key.encode()[:255].decode("utf-8", "ignore")

    def report_unmatched(self) -> None:
        if self._unmatched > 1:
            output.warning(f"{self._unmatched:,} of the messages did not match --key-pattern; sent as {UNKNOWN!r}")


def _delimiter(options: MessageOptions) -> bytes:
    if options.null:
        return b"\0"
    if options.delimiter is None:
        return b"\n"
    if not options.delimiter:
        raise UsageError("--delimiter is empty", "leave it out to send the whole input as one message")
    return os.fsencode({r"\n": "\n", r"\t": "\t", r"\0": "\0"}.get(options.delimiter, options.delimiter))
