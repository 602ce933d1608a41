"""Runs a command on its own terminal, of 24 lines and 80 or fewer columns, and types keys, or closes the terminal."""

import json
import os
import re
import select
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tests.cli.shell import Result, Shell, wait_until

_PLAY = """
import fcntl, json, os, pty, struct, sys, termios
keys, cue = json.loads(sys.argv[1]), sys.argv[2].encode()
child, terminal = pty.fork()
if not child:
    os.environ["TERM"] = "xterm"
    del os.environ["COLUMNS"]
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[3]), 0, 0))
    os.execvp(sys.argv[4], sys.argv[4:])
seen, answered = b"", 0
while True:
    try:
        data = os.read(terminal, 65536)
    except OSError:
        break
    if not data:
        break
    seen += data
    if keys and seen.count(cue) > answered:
        answered = seen.count(cue)
        os.write(terminal, keys.pop(0).encode())
sys.stdout.buffer.write(seen)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


#: What a command shows after a second if the broker has not answered yet, as on a busy machine.
_WAITING = re.compile(rb"waiting for an answer from \S+\r\n")


def on_terminal(
    shell: Shell, *command: str, keys: Sequence[str] = (), cue: str = "", columns: int = 80, is_silent: bool = False
) -> Result:
    """Run a command on a terminal until it ends. The result's stdout is everything that the terminal showed.

    Args:
        keys: the keys to type, each after the cue has appeared once more.
        is_silent: True if the broker does not answer. Otherwise, the result omits the line "waiting for an answer…".
    """
    result = shell.run(sys.executable, "-IS", "-c", _PLAY, json.dumps(list(keys)), cue, str(columns), *command)
    return result if is_silent else replace(result, stdout_bytes=_WAITING.sub(b"", result.stdout_bytes))


class ClosableTerminal:
    """A terminal whose command is a session leader, and so gets SIGHUP when the terminal is closed.

    Args:
        terminal: the file descriptor of the terminal's other end, with which a test types and reads.
    """

    def __init__(self, pid: int, terminal: int) -> None:
        self._pid = pid
        self._terminal = terminal
        self._seen = b""
        self._is_closed = False
        self._code: int | None = None

    def wait_for(self, text: str) -> None:
        """Wait until the terminal shows this text."""

        def is_shown() -> bool:
            while select.select([self._terminal], [], [], 0)[0]:
                self._seen += os.read(self._terminal, 65536)
            return text.encode() in self._seen

        wait_until(is_shown, lambda: f"{text!r} on the terminal: {self._seen!r}")

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def suspend(self) -> None:
        """Suspend the command and set the terminal to pass on only whole lines, as a shell does after Ctrl-Z."""
        os.kill(self._pid, signal.SIGSTOP)
        os.waitpid(self._pid, os.WUNTRACED)
        settings = termios.tcgetattr(self._terminal)
        settings[3] |= termios.ICANON
        termios.tcsetattr(self._terminal, termios.TCSANOW, settings)

    def resume(self) -> None:
        """Continue the command, as `fg` does."""
        os.kill(self._pid, signal.SIGCONT)

    def passes_on_single_keys(self) -> bool:
        return not termios.tcgetattr(self._terminal)[3] & termios.ICANON

    def close(self) -> None:
        """Close the terminal, as at the end of an ssh session."""
        if not self._is_closed:
            os.close(self._terminal)
        self._is_closed = True

    def wait(self) -> int:
        """Wait for the end of the command, and return its exit code; -n if signal n ended it."""
        wait_until(self._has_ended, "the end of the command")
        assert self._code is not None
        return self._code

    def end(self) -> None:
        """Kill the command if it is still running."""
        self.close()
        if not self._has_ended():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def _has_ended(self) -> bool:
        if self._code is None:
            reaped, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if reaped else None
        return self._code is not None


@contextmanager
def closable_terminal(shell: Shell, *command: str) -> Iterator[ClosableTerminal]:
    """Context manager: run a command on a terminal that can be closed."""
    shell.start_cold()  # the process itself needs the terminal
    pid, terminal = os.forkpty()
    if not pid:
        os.chdir(shell.directory)
        os.execvpe(command[0], command, shell.environment)
    running = ClosableTerminal(pid, terminal)
    try:
        yield running
    finally:
        running.end()
