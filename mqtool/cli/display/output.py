"""Standard output and standard error. Received data goes to stdout, byte for byte; everything else to stderr."""

import contextlib
import functools
import os
import re
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mqtool.cli.display import ascii_terminal
from mqtool.cli.invocation import current
from mqtool.errors import ExitCode, MqtoolError, UsageError

STDOUT, STDERR = 1, 2
#: Control characters except tab and newline; characters that change the text direction or start a line; invisible
#: characters (zero-width, byte order mark, tags); bytes that are not UTF-8.
_CONTROL = (
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
#: The number of characters of a body that are shown on a terminal.
_EXCERPT = 200
#: Surrogates that `surrogateescape` cannot turn into bytes.
_NO_TEXT = "[\ud800-\udc7f\udd00-\udfff]"

#: A word, or a command, with the space before it.
_UNBROKEN = r"""^\s*mqtool .*|\s*(?:'mqtool [^']*'|eval "[^"]*"|(?<=: )(?:mqtool|unset) .*|\S)+"""
_STYLE = r"\x1b\[[0-9;]*m"

#: The lock held by the thread that writes to stdout.
_writing = threading.RLock()


class ReaderGone(MqtoolError):
    """The program that reads stdout has ended, as in `mqtool receive | head`."""

    exit_code = ExitCode.READER_GONE


def take_standard_streams() -> None:
    """Open /dev/null as each descriptor from 0 to 2 that the parent closed, so that no socket gets its number.

    Reading from such a stdin, or writing to such a stdout or stderr, fails, as it does for a closed descriptor.
    """
    closed = [descriptor for descriptor in range(3) if not _is_open(descriptor)]
    for descriptor in closed:
        os.open(os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY)  # gets the lowest free number
    for descriptor in closed:
        name, mode = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[descriptor]
        setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # stays open until exit


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def status(line: str) -> None:
    """Print a status line on stderr, such as " [*] Waiting for messages."."""
    if not current().quiet:
        _to_stderr(line, is_sentence=not line.startswith(" "))


def say(line: str) -> None:
    """Print a line that a tutorial's script also prints: with --dialect where the script does, otherwise on stderr."""
    if current().script_output == STDOUT and not current().quiet:
        write(encoded(one_line(line)))
    else:
        status(line)


def speaks_as_script() -> bool:
    """Return True if the command prints only what the tutorial's script prints, as with --dialect."""
    return current().script_output is not None


def join_stderr() -> None:
    """Redirect stdout to stderr, for a dialect whose script prints received messages on stderr."""
    continue_in(os.dup(STDERR), "standard error")


def notice(text: str) -> None:
    """Print information on stderr while the command continues."""
    if not current().quiet:
        _to_stderr(text)


def interject(text: str) -> None:
    """Print a notice in a signal handler, without a buffer, since the signal may have interrupted another write."""
    if not current().quiet:
        with contextlib.suppress(OSError):  # stderr is closed
            os.write(STDERR, f"{text}\n".encode())


def warning(text: str) -> None:
    """Print a warning on stderr while the command continues."""
    if not current().quiet:
        _to_stderr(text, styled("warning: ", "33"))


def error(what: str, hint: str | None = None, *, text: str = "", column: int = 1) -> None:
    """Print an error and a hint; if `text` is given, also print the text, with a mark below its column `column`."""
    _to_stderr(what, styled("mqtool: ", "1;31"))
    if text:
        _to_stderr(text, "  ", is_sentence=False)
        _to_stderr("^", " " * (2 + len(one_line(text[: column - 1]))))
    if hint:
        _to_stderr(hint, styled("hint: ", "36"))


def show(text: str, *, style: str = "") -> None:
    """Print lines of data on stdout in a style (SGR); on a terminal, with control characters escaped."""
    text = drawn(visible(text)) if is_terminal(STDOUT) else text
    write(encoded(styled(text, style, STDOUT) if style else text))


def drawn(text: str) -> str:
    """Replace drawn characters, such as lines, by similar ASCII if stdout is a terminal that shows only ASCII."""
    return text.translate(ascii_terminal.ASCII) if ascii_terminal.is_ascii(sys.stdout) else text


def show_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON on stdout; on a terminal, with control characters escaped as JSON."""
    import json

    line = json.dumps(value, indent=indent, ensure_ascii=False)
    write(encoded(visible_json(line) if is_terminal(STDOUT) else line))


def show_json_lines(lines: bytes) -> None:
    """Write lines of NDJSON to stdout; on a terminal, with control characters escaped as JSON."""
    write(visible_json(lines.decode()).encode() if is_terminal(STDOUT) else lines)


def show_bytes(data: bytes) -> None:
    """Write data to stdout unchanged; on a terminal, with control characters escaped."""
    write(visible(data.decode("utf-8", "backslashreplace")).encode() if is_terminal(STDOUT) else data)


def encoded(text: str) -> bytes:
    """Encode a line of text for stdout, and add a newline."""
    try:
        return text.encode("utf-8", "surrogateescape") + b"\n"
    except UnicodeEncodeError:
        return re.sub(_NO_TEXT, "\ufffd", text).encode("utf-8", "surrogateescape") + b"\n"


def is_terminal(descriptor: int) -> bool:
    """Return True if the descriptor is a terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def is_in_background() -> bool:
    """Return True for a job that was started with `&`.

    An interactive shell runs it in a process group of its own. In scripts and make, the shell makes it ignore Ctrl-C.
    """
    with contextlib.suppress(OSError):
        if os.tcgetpgrp(2) != os.getpgrp():
            return True
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def is_file(descriptor: int) -> bool:
    """Return True if the descriptor is a regular file."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return True if the descriptor is open on the file that `path` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def visible(text: str) -> str:
    """Replace control characters with escapes such as \\x1b, so that a terminal does not interpret them."""
    if text.isprintable():
        return text
    return re.sub(_CONTROL, lambda match: match[0].encode("unicode_escape").decode(), text)


def visible_json(line: str) -> str:
    """Escape control characters in a line of JSON without changing its value."""
    import json

    return re.sub(_CONTROL, lambda match: json.dumps(match[0])[1:-1] if match[0] != "\x7f" else r"\u007f", line)


def one_line(text: str) -> str:
    """Escape control characters, including newlines and tabs, to keep the text on one line and in one column."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def continued(body: bytes) -> bytes:
    """Indent a body's lines after the first, so that they cannot be mistaken for other messages."""
    return body.replace(b"\n", b"\n    ")


def excerpt(body: bytes, most: int = _EXCERPT) -> tuple[bytes, str]:
    """Shorten a body for display. Return at most its first `most` characters, and if it was shortened, its size."""
    start = body[: most * 4]  # a character takes up to four bytes
    text = start.decode("utf-8", "surrogateescape")
    if len(text) <= most and start == body:
        return body, ""
    return text[:most].encode("utf-8", "surrogateescape"), f"… ({len(body):,} bytes)"


def write(data: bytes) -> None:
    """Write data to stdout, unbuffered. When this returns, the operating system has all the data.

    If a file cannot hold all the data, the file is truncated to its former size, so the next run does not append to an
    incomplete line.

    Raises:
        ReaderGone: the program that reads stdout has ended.
        MqtoolError: the data cannot be written, for example because the disk is full.
    """
    length = len(data)
    with _writing, interruptible():
        while data:
            try:
                data = data[os.write(STDOUT, data) :]
            except BlockingIOError:  # another program made the shared terminal or pipe non-blocking
                select.select([], [STDOUT], [])
            except BrokenPipeError as gone:
                raise ReaderGone("nobody reads the output any more") from gone
            except OSError as failure:
                cut = _cut_back(length - len(data))
                raise MqtoolError(
                    f"cannot write to {current().output_name}: {failure.strerror}",
                    "the incomplete data was removed from the end of the file" if cut else None,
                ) from failure


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Context manager: interrupt a blocked write to stdout soon after a signal to stop (see stopping.py)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    invocation = current()
    invocation.is_writing = True
    try:
        yield
    finally:
        invocation.is_writing = False


def continue_in(descriptor: int, name: str) -> None:
    """Redirect stdout to an open file. A write in progress is completed on the old stdout."""
    with _writing:
        os.dup2(descriptor, STDOUT)
        current().output_name = name
    os.close(descriptor)


def _cut_back(fragment: int) -> bool:
    try:
        found = os.fstat(STDOUT)
        if not fragment or not stat.S_ISREG(found.st_mode) or os.lseek(STDOUT, 0, os.SEEK_CUR) != found.st_size:
            return False  # another process has appended to the file
        os.ftruncate(STDOUT, found.st_size - fragment)
        os.lseek(STDOUT, -fragment, os.SEEK_CUR)
    except OSError:
        return False  # the write error is reported in any case
    return True


@functools.cache
def is_pipe() -> bool:
    """Return True if stdout is a pipe."""
    try:
        return stat.S_ISFIFO(os.fstat(STDOUT).st_mode)
    except OSError:
        return False


class PipeReader:
    """Calls a function, on another thread, when the program that reads stdout ends."""

    def __init__(self, on_gone: Callable[[], None]) -> None:
        self._gone = False
        self._on_gone = on_gone
        if is_pipe():
            threading.Thread(target=self._watch, name="mqtool-reader", daemon=True).start()

    def check(self) -> None:
        """Raise ReaderGone if the reader has exited."""
        if self._gone:
            raise ReaderGone("nobody reads the output any more")

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(STDOUT, 0)  # poll() always reports errors
        poll.poll()
        self._gone = True
        self._on_gone()


def remove_ready_file(path: Path | None) -> None:
    """Remove the file given by --ready-file, if an earlier command has left it behind.

    Raises:
        UsageError: the file cannot be removed, or is not empty, so mqtool did not create it.
    """
    if path is not None and path.is_file() and not path.is_symlink():
        if path.stat().st_size:
            raise UsageError(f"cannot create the ready file {path}: it exists and is not empty", "name another file")
        try:
            path.unlink()
        except OSError as failure:
            raise UsageError(f"cannot remove the ready file {path}: {failure.strerror}") from failure


def create_ready_file(path: Path | None) -> None:
    """Create the file given by --ready-file, if any, to signal that the command is consuming.

    Raises:
        UsageError: the file cannot be created.
    """
    if path is not None:
        try:
            # Symbolic links are not followed: in a directory that others can write to, a link may point anywhere.
            ready = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            os.utime(ready)
            os.close(ready)
        except OSError as failure:
            raise UsageError(f"cannot create the ready file {path}: {failure.strerror}") from failure


def is_coloured(descriptor: int) -> bool:
    """Return True if text written to the descriptor may be coloured."""
    if current().no_color:
        return False
    return is_terminal(descriptor) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, code: str, descriptor: int = 2) -> str:
    """Add a style (an SGR code of ECMA-48) to text, if output to the descriptor is coloured."""
    return f"\x1b[{code}m{text}\x1b[0m" if is_coloured(descriptor) else text


def _to_stderr(text: str, prefix: str = "", *, is_sentence: bool = True) -> None:
    """Print a line on stderr. Control characters are escaped, except in the prefix.

    Args:
        is_sentence: True to break the line between words on a terminal, instead of where the terminal ends.
    """
    text = one_line(text)
    # Nobody reads stderr, its disk is full, or its terminal was closed; only what the command does matters.
    with contextlib.suppress(OSError):
        if is_sentence and is_terminal(STDERR):
            text = broken(text, len(re.sub(_STYLE, "", prefix)), os.get_terminal_size(STDERR).columns)
        sys.stderr.write(f"{prefix}{text}\n")
        sys.stderr.flush()


def broken(text: str, used: int, width: int, indent: str = "") -> str:
    """Break a sentence into lines of up to `width` columns. On the first line, `used` columns are already taken.

    A command is never broken, so that it can be copied.

    Args:
        indent: the beginning of all lines but the first.
    """
    lines = [""]
    for unit in re.findall(_UNBROKEN, text):
        if width and used + len(unit) > width and lines[-1]:
            lines.append(indent + unit.lstrip())
            used = len(lines[-1])
        else:
            lines[-1] += unit
            used += len(unit)
    return "\n".join(lines)
