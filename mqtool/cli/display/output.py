"""What people and pipes get to see: received data on stdout, byte for byte; everything else on stderr."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import select
import signal
import stat
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mqtool.cli.invocation import current
from mqtool.errors import ExitCode, MqtoolError, UsageError

STDOUT = 1
#: C0 and C1 but for tab and newline; what turns the direction of writing, or starts a line; what is not UTF-8.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Characters of a body that a terminal is shown.
_EXCERPT = 200
#: Surrogates that do not stand for bytes.
_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")

WAITING_FOR_MESSAGES = " [*] Waiting for messages. To exit press CTRL+C"
WAITING_FOR_LOGS = " [*] Waiting for logs. To exit press CTRL+C"

#: Held by the thread that writes to stdout.
_writing = threading.RLock()


class ReaderGone(MqtoolError):
    """Nobody reads our stdout any more, as in `mqtool receive | head`."""

    exit_code = ExitCode.READER_GONE


def take_standard_streams() -> None:
    """Have descriptors 0 to 2 open, even if whoever started us closed them: else our first socket would get the number.

    What is read from one that was closed is at its end, and what is written there fails.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # it gets the lowest number that is free
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # as long as we live


def status(line: str) -> None:
    """A line of the tutorial that is not received data, such as " [*] Waiting for messages."."""
    if not current().quiet:
        _to_stderr(line)


def notice(text: str) -> None:
    """Something a person may want to know while the command goes on."""
    if not current().quiet:
        _to_stderr(text)


def interject(text: str) -> None:
    """A notice from a signal handler, past any buffer: the signal may have come while another line was written."""
    if not current().quiet:
        line = f"\n{text}\n" if is_terminal(2) else f"{text}\n"  # a terminal shows ^C first
        with contextlib.suppress(OSError):  # nobody reads it
            os.write(2, line.encode())


def warning(text: str) -> None:
    """Something a person should look at, although the command goes on."""
    if not current().quiet:
        _to_stderr(text, styled("warning: ", "33"))


class Pointer(NamedTuple):
    """A place in a text: the number of a character, from 1."""

    text: str
    column: int


def error(what: str, hint: str | None = None, pointer: Pointer | None = None) -> None:
    """Why the command failed, where, and what to do about it."""
    _to_stderr(what, styled("mqtool: ", "1;31"))
    if pointer:
        _to_stderr(pointer.text, "  ")
        _to_stderr("^", " " * (2 + len(one_line(pointer.text[: pointer.column - 1]))))
    if hint:
        _to_stderr(hint, styled("hint: ", "36"))


def show(text: str) -> None:
    """A line of data on stdout."""
    write(encoded(text))


def encoded(text: str) -> bytes:
    """The same line, as it is written."""
    return _NO_TEXT.sub("\ufffd", text).encode("utf-8", "surrogateescape") + b"\n"


def is_terminal(descriptor: int) -> bool:
    """Whether a person looks at it."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def is_file(descriptor: int) -> bool:
    """Whether it is a file on a disk."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def visible(text: str) -> str:
    """The text with its control characters shown as escapes: nothing in it can reach the terminal's own controls."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def visible_json(line: str) -> str:
    """Escape control characters in a line of JSON, so that it is still the same JSON."""
    return _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1] if match[0] != "\x7f" else r"\u007f", line)


def one_line(text: str) -> str:
    """The same without newlines and tabs: nothing in it can look like another line, or another column."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def excerpt(body: bytes) -> tuple[bytes, str]:
    """As much of a body as a person can take in, and how large it is if that is not all."""
    start = body[: _EXCERPT * 4]  # no character has more than four bytes
    text = start.decode("utf-8", "surrogateescape")
    if len(text) <= _EXCERPT and start == body:
        return body, ""
    return text[:_EXCERPT].encode("utf-8", "surrogateescape"), f"… ({len(body):,} bytes)"


def write(data: bytes) -> None:
    """Write all of it to stdout, past any buffer: once this returns, the data is out of our hands.

    Of what does not fit onto a disk, nothing stays in the file: what another run appends would continue the fragment.

    Raises:
        ReaderGone: nobody reads it any more.
        MqtoolError: it cannot be written, for instance as the disk is full.
    """
    length = len(data)
    with _writing:
        while data:
            try:
                data = data[os.write(STDOUT, data) :]
            except BlockingIOError:  # another program has set the terminal or pipe that we share to non-blocking
                select.select([], [STDOUT], [])
            except BrokenPipeError as gone:
                raise ReaderGone("nobody reads the output any more") from gone
            except OSError as failure:
                cut = _cut_back(length - len(data))
                raise MqtoolError(
                    f"cannot write to {current().output_name}: {failure.strerror}",
                    "the file was cut back to the end of what was written whole" if cut else None,
                ) from failure


def continue_in(descriptor: int, name: str) -> None:
    """Have an open file be stdout from now on. What is being written still goes whole to the one before."""
    with _writing:
        os.dup2(descriptor, STDOUT)
        current().output_name = name
    os.close(descriptor)


def _cut_back(fragment: int) -> bool:
    """If stdout is a file that ends with a fragment of ours, of this many bytes, remove it; return whether it was."""
    try:
        found = os.fstat(STDOUT)
        if not fragment or not stat.S_ISREG(found.st_mode) or os.lseek(STDOUT, 0, os.SEEK_CUR) != found.st_size:
            return False  # somebody else has written behind it
        os.ftruncate(STDOUT, found.st_size - fragment)
        os.lseek(STDOUT, -fragment, os.SEEK_CUR)
    except OSError:
        return False  # the error that is shown already says that the file is in trouble
    return True


def wait_until_taken() -> None:
    """If stdout is a pipe, wait until its reader has taken all that we wrote.

    Without this, `mqtool receive | head -n 3` would lose messages: those written into the pipe while head was taking
    its third line, acknowledged, and read by nobody.

    Raises:
        ReaderGone: the reader left without taking it.
    """
    if not is_pipe():
        return
    unread = array("i", [0])
    poll = select.poll()
    poll.register(STDOUT, 0)
    pause = 0.0
    while True:
        fcntl.ioctl(STDOUT, termios.FIONREAD, unread)
        if not unread[0]:
            return
        if poll.poll(0):
            fcntl.ioctl(STDOUT, termios.FIONREAD, unread)  # it may have taken it just before
            if unread[0]:
                raise ReaderGone("the reader of the output has left")
            return
        time.sleep(pause)  # at first this only lets the reader run
        pause = min(pause + 0.00001, 0.005)


@functools.cache
def is_pipe() -> bool:
    """Whether stdout is one."""
    try:
        return stat.S_ISFIFO(os.fstat(STDOUT).st_mode)
    except OSError:
        return False


class Reader:
    """Whoever reads our stdout, if that is a pipe. Notices when they go away, even while there is nothing to write.

    Args:
        on_gone: is called then, on another thread.
    """

    def __init__(self, on_gone: Callable[[], None]) -> None:
        self._gone = False
        self._on_gone = on_gone
        if is_pipe():
            threading.Thread(target=self._watch, name="mqtool-reader", daemon=True).start()

    def check(self) -> None:
        """Raise if the reader has gone.

        Raises:
            ReaderGone: it has.
        """
        if self._gone:
            raise ReaderGone("nobody reads the output any more")

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(STDOUT, 0)  # errors are reported unasked
        poll.poll()
        self._gone = True
        self._on_gone()


def create_ready_file(path: Path | None) -> None:
    """Tell whoever waits for the file that we consume now.

    Raises:
        UsageError: it cannot be created.
    """
    if path is not None:
        try:
            # Not through a symbolic link: in a directory that others can write to, it may point anywhere.
            ready = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            os.utime(ready)
            os.close(ready)
        except OSError as failure:
            raise UsageError(f"cannot create the ready file {path}: {failure.strerror}") from failure


def is_coloured(descriptor: int) -> bool:
    """Whether what is written there may have colours."""
    if current().no_color:
        return False
    return is_terminal(descriptor) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, code: str, descriptor: int = 2) -> str:
    """The text in a style (of ECMA-48's SGR), if what is written there may have colours."""
    return f"\x1b[{code}m{text}\x1b[0m" if is_coloured(descriptor) else text


def _to_stderr(text: str, prefix: str = "") -> None:
    """Print a line. What it quotes may come from anywhere, so only the prefix may control a terminal."""
    try:
        sys.stderr.write(f"{prefix}{one_line(text)}\n")
        sys.stderr.flush()
    except OSError as failure:
        if failure.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
            raise
        # Nobody reads our messages any more; the data on stdout is what counts.


def append_to(path: Path) -> None:
    """Have what is written to stdout appended to this file. Call it before any other thread starts.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        _append_in(path)
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from error
    # A thread waits for the signal: threads that start from now on leave it to that one, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where it is ignored (nohup), not every system keeps it for us
    threading.Thread(target=_reopen_on_hup, args=(path, is_terminal(2)), name="mqtool-output", daemon=True).start()


def _append_in(path: Path) -> None:
    continue_in(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), str(path))


def _reopen_on_hup(path: Path, had_terminal: bool) -> None:
    while signal.sigwait({signal.SIGHUP}):
        if had_terminal and not is_terminal(2):  # it was closed, which is the other meaning of HUP
            os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            _append_in(path)
        except OSError as error:
            warning(f"cannot open {path} again, so the old file is still in use: {error.strerror}")
