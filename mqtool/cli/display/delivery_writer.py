"""Writes deliveries to stdout: in the tutorial's own format, as bodies only, as NDJSON, or with a template."""

import contextlib
import fcntl
import os
import re
import select
import signal
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from mqtool.cli import stopping
from mqtool.cli.display import bodies, output
from mqtool.cli.display.output import STDOUT
from mqtool.errors import BadData, UsageError
from mqtool.message import Delivery
from mqtool.spelling import counted

#: A batch is written once it contains this many bytes.
_BATCH_BYTES = 1 << 16
#: Ends the line of a message that was delivered before.
_REDELIVERED = b" (redelivered)"
#: Styles for lines whose routing key contains one of these words.
_STYLES = dict.fromkeys(("emergency", "emerg", "alert", "critical", "crit", "fatal"), "1;31")
_STYLES |= {"error": "31", "err": "31", "warning": "33", "warn": "33", "debug": "2"}


class BatchedOutput:
    """Collects output for stdout and writes it in batches."""

    def __init__(self) -> None:
        self._batch: list[bytes] = []
        self._size = 0
        self._failure: BaseException | None = None

    def add(self, data: bytes) -> None:
        """Add data to the batch. If the batch is full already, write it first."""
        if self.is_full():
            self.flush()
        self._batch.append(data)
        self._size += len(data)

    @property
    def has_failed(self) -> bool:
        """True if a batch could not be written."""
        return self._failure is not None

    def is_full(self) -> bool:
        """True if the batch must be written now; a consumer then also acknowledges what the batch contains."""
        return self._size >= _BATCH_BYTES

    def flush(self) -> None:
        """Write the batch. Once a write has failed, every later call raises the same error."""
        if self._failure is not None:  # the messages in that batch were not written, and must not be acknowledged
            raise self._failure
        if self._batch:
            batch, self._batch, self._size = self._batch, [], 0
            try:
                output.write(b"".join(batch))
            except BaseException as failure:  # including an interruption by a signal
                self._failure = failure
                raise


class DeliveryWriter:
    """Renders deliveries and writes them to stdout: one at a time when called, or in batches with add() and flush().

    Args:
        line: the default format: a function that returns the text before the body; or a whole line with placeholders
            {key}, {queue}, {offset} and {body}; {body!r} quotes text, and {body!b} is a Python bytes literal.
        wait_for_reader: if stdout is a pipe, return from each call only after the pipe's reader has read the delivery,
            so that no unread message is acknowledged.
        decompress: show bodies without their compression; see bodies.py.
        marks_redelivered: on a terminal, end the default line of a redelivered message with a mark, except where only
            the lines of a tutorial's script are printed.
    """

    def __init__(
        self,
        line: Callable[[Delivery], str] | str,
        *,
        raw: bool = False,
        as_json: bool = False,
        template: str | None = None,
        pretty: bool = False,
        decompress: bool = False,
        wait_for_reader: bool = False,
        marks_redelivered: bool = False,
    ) -> None:
        if raw + as_json + (template is not None) > 1:
            raise UsageError("--raw, --json and --format cannot be combined", "use only one of them")
        if as_json and decompress:
            raise UsageError(
                "--json and --decompress cannot be combined: 'send --json' would publish other bytes",
                "to print decompressed bodies: --raw --decompress",
            )
        if as_json and pretty:
            raise UsageError("--json and --pretty cannot be combined", "for indented JSON: --json | jq")
        before, _, after = line.partition("{body") if isinstance(line, str) else ("", "", "")
        self._line = _filled(before) if isinstance(line, str) else line
        self._quote, _, after = after.partition("}")
        self._after = _filled(after) if after else None
        self._escape = output.is_terminal(STDOUT)
        self._has_styles = self._escape and isinstance(line, str) and "{key" in line
        self._marks_redelivered = marks_redelivered and self._escape and not output.speaks_as_script()
        self._pretty = pretty
        self._decompress = decompress
        self._warned: set[str] = set()
        self._wait_for_reader = wait_for_reader and output.is_pipe()
        self.batched = BatchedOutput()
        self.flush = self.batched.flush
        self.render: Callable[[Delivery], bytes] = self._text
        if raw:
            self.render = lambda delivery: self._body(delivery.body) + b"\n"
        elif as_json:
            self.render = self._json
        elif template is not None:
            parts = parse_template(template, escape=self._escape)
            self.render = lambda delivery: self._body(b"".join(part(delivery) for part in parts)) + b"\n"
        if decompress:
            render = self.render
            self.render = lambda delivery: render(self._decompressed(delivery))

    def __call__(self, delivery: Delivery) -> None:
        output.write(self.render(delivery))
        if self._wait_for_reader:
            _wait_until_taken()

    def add(self, delivery: Delivery) -> None:
        """Write a delivery: immediately if the pipe's reader sets the pace, otherwise in a batch."""
        if self._wait_for_reader:
            self(delivery)
            return
        self.batched.add(self.render(delivery))

    def _decompressed(self, delivery: Delivery) -> Delivery:
        try:
            return replace(delivery, body=bodies.decompressed(delivery))
        except BadData as error:
            if (why := str(error)) not in self._warned:
                self._warned.add(why)
                output.warning(f"{why}; such bodies are shown as they are")
            return delivery

    def _json(self, delivery: Delivery) -> bytes:
        from mqtool import ndjson

        line = ndjson.from_delivery(delivery, datetime.now(UTC))
        return output.visible_json(line.decode()).encode() if self._escape else line

    def _text(self, delivery: Delivery) -> bytes:
        line = output.one_line(self._line(delivery)) if self._escape else self._line(delivery)
        cut = self._escape and not self._pretty
        data, rest = bodies.excerpt(delivery, is_decompressed=self._decompress) if cut else (delivery.body, "")
        body = self._in_quotes(data) if self._quote else self._body(data)
        if self._escape:
            body = (
                output.one_line(body.decode()).encode() if rest and bodies.is_binary(data) else output.continued(body)
            )
        text = line.encode("utf-8", "surrogateescape") + body + rest.encode()
        if self._after is not None:
            after = self._after(delivery)
            text += (output.visible(after) if self._escape else after).encode("utf-8", "surrogateescape")
        if self._escape and not output.speaks_as_script() and (headers := bodies.headers_instead(delivery)):
            text += f"{' ' * bool(self._quote)}{headers}".encode()
        if self._marks_redelivered and delivery.redelivered:
            text += _REDELIVERED
        if self._has_styles and output.is_coloured(STDOUT) and (style := _style_of(delivery.routing_key)):
            text = f"\x1b[{style}m".encode() + text + b"\x1b[0m"
        return text + b"\n"

    def _in_quotes(self, data: bytes) -> bytes:
        return repr(data if self._quote == "!b" else data.decode("utf-8", "replace")).encode()

    def _body(self, data: bytes) -> bytes:
        data = _indented(data) if self._pretty else data
        return output.visible(data.decode("utf-8", "backslashreplace")).encode() if self._escape else data


def _style_of(routing_key: str) -> str | None:
    found = [_STYLES[word] for word in routing_key.lower().split(".") if word in _STYLES]
    return found[-1] if found else None


def _indented(body: bytes) -> bytes:
    import json

    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return body


def _filled(text: str) -> Callable[[Delivery], str]:
    if "{" not in text:
        return lambda _: text
    return lambda delivery: text.format(key=delivery.routing_key, queue=delivery.queue, offset=delivery.delivery_tag)


def _json_of(value: object) -> str:
    from mqtool.ndjson import as_json

    return as_json(value)


def _constant(text: bytes) -> Callable[[Delivery], bytes]:
    return lambda _: text


_PLACES: dict[str, tuple[str, Callable[[Delivery], object]]] = {
    "b": ("body", lambda delivery: delivery.body),
    "s": ("size of the body in bytes", lambda delivery: len(delivery.body)),
    "r": ("routing key", lambda delivery: delivery.routing_key),
    "e": ("exchange", lambda delivery: delivery.exchange),
    "q": ("queue", lambda delivery: delivery.queue),
    "h": ("headers, as JSON", lambda delivery: _json_of(delivery.headers)),
    "i": ("message id", lambda delivery: delivery.message_id),
    "c": ("correlation id", lambda delivery: delivery.properties.get("correlation_id")),
    "l": ("lateness of a delayed message, in milliseconds", lambda delivery: delivery.lateness),
    "t": ("time received, RFC 3339", lambda _: datetime.now(UTC).isoformat(timespec="milliseconds")),
    "R": ("redelivered: 0 or 1", lambda delivery: int(delivery.redelivered)),
    "%": ("a percent sign", lambda _: "%"),
}


def _place(value: Callable[[Delivery], object], *, escape: bool) -> Callable[[Delivery], bytes]:
    def part(delivery: Delivery) -> bytes:
        found = value(delivery)
        if isinstance(found, bytes):
            return output.continued(found) if escape else found
        text = "" if found is None else str(found)
        return (output.one_line(text) if escape else text).encode("utf-8", "surrogateescape")

    return part


#: The placeholders of a --format template: each letter and its meaning.
TEMPLATE_PLACES = {letter: meaning for letter, (meaning, _) in _PLACES.items()}


def parse_template(template: str, *, escape: bool = False) -> list[Callable[[Delivery], bytes]]:
    """Convert a --format template to a list of functions, one per part.

    Raises:
        UsageError: a placeholder is unknown, or the template is only a word, which names a format in other commands.
    """
    if template.isalnum():
        hint = "for JSON: --json" if "json" in template.lower() else "'mqtool help output' lists them"
        raise UsageError(f"--format {template!r} has no placeholders, such as %s for the body", hint)
    parts: list[Callable[[Delivery], bytes]] = []
    for piece in re.findall(r"%.?|\\[nt\\]|[^%\\]+|\\", template, re.DOTALL):
        if piece.startswith("%"):
            if piece[1:] not in _PLACES:
                raise UsageError(f"unknown placeholder {piece!r} in --format", "'mqtool help output' lists them")
            _, value = _PLACES[piece[1:]]
            parts.append(_place(value, escape=escape))
        else:
            text = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}.get(piece, piece).encode()
            parts.append(_constant(text))
    return parts


#: Bytes to read at once when looking for the last newline of a file.
_CHUNK = 1 << 16
#: Bytes of a removed line to show.
_SHOWN = 200


def redirect(path: Path | None) -> None:
    """Append output to the file of --output, if there is one. If stdout is a file, start on a new line.

    Raises:
        UsageError: the file cannot be opened.
    """
    if path is None:
        _start_new_line()
    else:
        _append_to(path)


def say_appended(count: int, path: Path | None) -> None:
    """Say how many messages were appended to the file of --output, if there is one, as the command ends."""
    if path is not None:
        output.status(f"{counted(count)} appended to {path}")


def _append_to(path: Path) -> None:
    """Redirect stdout to the end of this file (--output). Call this before any thread starts.

    On SIGHUP the file is reopened, so logrotate can rename it:

        mqtool receive -o app.log ── mv app.log app.log.1; kill -HUP ──> app.log.1 ends with a whole line
    """
    # One thread waits for the signal; threads that start later inherit the mask, so none of them gets it. __main__.py
    # has blocked it already, and if it has arrived since, the thread reopens the file that is opened here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        fragment = _without_fragment(path)
        _append_in(path)
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from error
    cut_off, beginning = fragment or (0, b"")
    if cut_off:
        # It may be somebody else's, although a killed receiver's is likelier.
        text = output.one_line(beginning.decode("utf-8", "replace")) + ("…" if cut_off > len(beginning) else "")
        output.notice(f"{path} ended with an incomplete line; removed its {cut_off:,} bytes: {text}")
    if fragment is not None:
        _start_new_line()
    # nohup ignores the signal: then the command outlives its terminal.
    terminal = None if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else _controlling_terminal()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # sigwait() may miss an ignored signal
    threading.Thread(target=_reopen_on_hup, args=(path, terminal), name="mqtool-output", daemon=True).start()


def _start_new_line() -> None:
    """Write a newline if stdout appends to a file that ends mid-line, for example because a command was killed."""
    with contextlib.suppress(OSError):  # the file cannot be read
        if output.is_file(STDOUT) and fcntl.fcntl(STDOUT, fcntl.F_GETFL) & os.O_APPEND:
            with Path(f"/dev/fd/{STDOUT}").open("rb") as file:
                if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                    output.write(b"\n")


def _without_fragment(path: Path) -> tuple[int, bytes] | None:
    """Remove the incomplete line at the end of a file, unless another receiver may be writing it: then, return None."""
    if not path.is_file():
        return 0, b""
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        return remove_fragment(file)


def remove_fragment(file: IO[bytes]) -> tuple[int, bytes]:
    """Remove everything after the last newline of a file; return the number of removed bytes, and the first of them.

    Args:
        file: open for reading and writing, and locked: a line that another process appends meanwhile would be lost.
    """
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _CHUNK)
        if (newline := os.pread(file.fileno(), end - start, start).rfind(b"\n")) >= 0:
            kept = start + newline + 1
            beginning = os.pread(file.fileno(), _SHOWN, kept)
            file.truncate(kept)
            return size - kept, beginning
        end = start
    return 0, b""


def _append_in(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    # Held until the file is closed. Some file systems have no locks, and `flock app.log mqtool …` holds this one.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    output.continue_in(descriptor, str(path))


def _controlling_terminal() -> int | None:
    """Open the controlling terminal, if this process has one, wherever its output goes."""
    try:
        return os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None


def _reopen_on_hup(path: Path, terminal: int | None) -> None:
    while signal.sigwait({signal.SIGHUP}):
        if terminal is not None and not output.is_terminal(terminal):  # closing the terminal also sends HUP
            if stopping.requested() is None:  # a second signal would kill
                os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            _append_in(path)
        except OSError as error:
            output.warning(f"cannot reopen {path}, so the old file is still in use: {error.strerror}")


#: True if poll() must name POLLHUP to learn that the reader has left, and a pipe without a reader counts as read, as on
#: macOS.
_FORGETS = sys.platform == "darwin"


def _wait_until_taken() -> None:
    """If stdout is a pipe, wait until its reader has read everything, or raise ReaderGone.

    Without this wait, `mqtool receive | head -n 3` would lose the messages that are written to the pipe and
    acknowledged after head has read its third line.
    """
    if not output.is_pipe():
        return
    poll = select.poll()
    poll.register(STDOUT, select.POLLHUP)
    pause = 0.0
    with output.interruptible():
        while True:
            unread = _unread()
            if not unread and not (_FORGETS and poll.poll(0)):
                return
            if poll.poll(0):
                if _FORGETS or _unread():  # the reader may have read everything before it exited
                    raise output.ReaderGone("the reader of the output has left")
                return
            time.sleep(pause)  # the first pause, of 0 s, only lets the reader run
            pause = min(pause + 0.00001, 0.005)


def _unread() -> int:
    """Return the number of bytes in the pipe at stdout that its reader has not read yet."""
    count = array("i", [0])
    fcntl.ioctl(STDOUT, termios.FIONREAD, count)
    # At the writing end on macOS, FIONREAD counts what could be read there, which is nothing; fstat() counts what the
    # reader has left in the pipe. On Linux, fstat() says 0.
    return count[0] or os.fstat(STDOUT).st_size
