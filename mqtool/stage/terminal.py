"""Terminals for the commands of tutorials and drills, the Audience that shows them, and the Guard that kills them."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mqtool.errors import MqtoolError

if TYPE_CHECKING:
    from mqtool.management import Management


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the values measured so far, ten per second, and their unit ("" for counts)."""

    title: str
    unit: str
    values: Sequence[float]


class QueueDepth(NamedTuple):
    """The number of messages in a queue."""

    name: str
    ready: int
    unacknowledged: int


class Audience(Protocol):
    """Shows a tutorial or a drill to the user. Terminals call its methods from their own threads."""

    def on_broker(
        self, find: "Callable[[], Management] | None", environment: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        """Context manager: the commands use this broker.

        Args:
            find: returns its management API; None if it is unknown.
            environment: the variables of commands on this broker; None if only the play may change it.
        """

    def opened(self, names: Sequence[str]) -> None:
        """New terminals were opened, which replace the previous ones."""

    def typed(self, terminal: str, command: str) -> None:
        """A command was typed into a terminal."""

    def put_first(self, terminal: str | None) -> None:
        """Show this terminal's lines before those that others print meanwhile, until another call says None.

        A message may be received before its sender prints that it was sent.
        """

    def printed(self, terminal: str, line: str) -> None:
        """A command printed a line."""

    def finished(self, terminal: str) -> None:
        """A command has ended, and its last line was printed."""

    def counted(self, queues: Sequence[QueueDepth]) -> None:
        """The messages in all of the broker's queues were counted, a few times a second."""

    def say(self, text: str, question: str = "") -> None:
        """Show an explanation, and a question about what will happen; return when the next command may run."""

    def answered(self, answer: str) -> None:
        """The commands have shown the answer to the latest question."""

    def right(self, what: str) -> None:
        """A check passed; `what` describes it."""

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        """Show charts; `over` is True when the measurement has ended."""


class SeparateTerminals:
    """The part of an Audience that shows each terminal by itself."""

    def put_first(self, terminal: str | None) -> None:
        """Do nothing: lines of different terminals have no order."""

    def finished(self, terminal: str) -> None:
        """Do nothing: the terminal's lines stay."""


#: Seconds to wait for a condition; generous, for busy machines.
PATIENCE = 30.0
_BETWEEN_LOOKS = 0.01
_CHUNK = 1024 * 1024


class CheckFailed(MqtoolError):
    """A command did not do what was expected. The message says what was expected and what happened."""


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], patience: float = PATIENCE) -> None:
    """Wait for a condition; raise CheckFailed after `patience` seconds. `what` describes the condition in the error."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise CheckFailed(f"waited {patience:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(_BETWEEN_LOOKS)


class LineCount:
    """Counts the lines of a growing file. Each call reads only what was appended since the previous call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._lines = 0

    def __call__(self) -> int:
        with self._path.open("rb") as file:
            file.seek(self._read)
            while chunk := file.read(_CHUNK):
                self._read += len(chunk)
                self._lines += chunk.count(b"\n")
        return self._lines


class Guard:
    """A child process that kills the commands in terminals if mqtool itself is killed, even with kill -9.

    The guard reads a pipe from mqtool. When mqtool ends, the system closes the pipe, and the guard kills the registered
    process groups. Create the guard before any thread starts, since it is forked.
    """

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        if os.fork() == 0:
            os.close(self._writing)
            try:
                _watch(reading)
            finally:
                os._exit(0)
        os.close(reading)

    def started(self, group: int) -> None:
        self._tell(b"+%d\n" % group)

    def ended(self, group: int) -> None:
        """Unregister a process group that has ended, since its number may be reused."""
        self._tell(b"-%d\n" % group)

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the guard was killed
            os.write(self._writing, line)


def _watch(reading: int) -> None:
    os.setsid()  # so that Ctrl-C does not reach the guard
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # so that readers of mqtool's output see its end even while the guard runs
        os.dup2(quiet, descriptor)
    groups: set[int] = set()
    rest = b""
    while data := os.read(reading, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


#: Seconds that a command may take to end after TERM before it is killed.
_LAST_WORDS = 5.0


_NOT_INHERITED = ("MQTOOL_DIALECT", "MQTOOL_PROTOCOL")


@dataclass(frozen=True)
class TerminalPlace:
    """The environment in which commands run.

    Attributes:
        directory: the working directory of the commands.
        scratch: a directory for files that the user does not need to see.
        url: URL of the broker.
        prefix: prefix of the play's queues and exchanges; empty if nobody else uses the broker.
        guard: kills the commands if mqtool is killed.
        stream_port: the broker's stream port; None if the commands find the port themselves.
        protocol: the value of MQTOOL_PROTOCOL; empty for the default.
        management: URL of the management API; empty if the commands find it themselves.
    """

    directory: Path
    scratch: Path
    url: str
    prefix: str
    guard: Guard
    stream_port: int | None = None
    protocol: str = ""
    management: str = ""

    @property
    def apart(self) -> bool:
        """True if others also use the broker."""
        return bool(self.prefix)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for the commands: those of mqtool, with mqtool's own directory first in PATH."""
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        streams = {} if self.stream_port is None else {"MQTOOL_STREAM_PORT": str(self.stream_port)}
        protocol = {"MQTOOL_PROTOCOL": self.protocol} if self.protocol else {}
        management = {"MQTOOL_MANAGEMENT_URL": self.management} if self.management else {}
        return {**inherited, **streams, **protocol, **management, "PATH": path, "MQTOOL_URL": self.url}


class Terminal:
    """Runs one command at a time in a shell, exactly as shown to the audience.

    A method raises CheckFailed if the command ends too early, too late or with an unexpected exit code, or does not
    print what the method waits for.
    """

    def __init__(self, audience: Audience, name: str, place: TerminalPlace) -> None:
        self.name = name
        #: Lines that the current or last command printed, and their arrival times (`time.monotonic()`).
        self.lines: list[str] = []
        self.times: list[float] = []
        self._audience = audience
        self._place = place
        self._ready_file = place.scratch / f"{name.replace(' ', '-')}.ready"
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread()
        self._command = ""

    def run(self, command: str, code: int = 0, *, converses: bool = False) -> list[str]:
        """Type a command, and wait until it ends; return the lines that it printed.

        Args:
            converses: True if the command waits for the answer of another terminal's command.
        """
        self._audience.put_first(None if converses else self.name)
        try:
            self._launch(f"exec {command}", command)
            self.wait(PATIENCE * 3, code)
        finally:
            self._audience.put_first(None)
        return self.lines

    def start(self, command: str) -> None:
        """Type a command that runs until it is interrupted, and wait until it is consuming."""
        self._ready_file.unlink(missing_ok=True)
        self._launch(f"exec {command} --ready-file {shlex.quote(str(self._ready_file))}", command)
        wait_until(
            # Wait for the first line too, so that it is shown before the next command is typed.
            lambda: (self._ready_file.exists() and self.lines) or self.has_ended,
            f"{self.name} to consume: {command}",
        )
        if self.has_ended:
            raise self._ended_early()

    def feed(self, script: str) -> None:
        """Type a command, or a shell loop, that reads lines written with write()."""
        self._launch(script, script, stdin=subprocess.PIPE)

    def write(self, line: str) -> None:
        """Write a line to the command that feed() started."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended_early() from error

    def finish(self, patience: float = PATIENCE) -> None:
        """Close the command's input, and wait until the command ends."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.wait(patience)

    def wait_for(self, text: str, count: int) -> None:
        """Wait until the command has printed this many lines that contain the text."""
        wait_until(
            lambda: self.count(text) >= count or self.has_ended,
            lambda: f"{count} lines with {text!r} from {self.name}; there are {self.count(text)}",
        )
        if self.count(text) < count:
            printed = f"{self.count(text)} of {count} lines with {text!r}"
            raise CheckFailed(f"{self.name} ended after {printed}: {self._command}")

    def count(self, text: str) -> int:
        return sum(text in line for line in list(self.lines))

    def after(self, text: str) -> list[str]:
        """Return the part after the text from each line that contains it."""
        return [line.partition(text)[2] for line in self.lines if text in line]

    def interrupt(self, code: int = 0) -> None:
        """Press Ctrl-C, and wait until the command ends. Raises CheckFailed if its exit code is not `code`."""
        self._audience.printed(self.name, "^C")
        self.signal(signal.SIGINT)
        self.wait(code=code)

    def kill(self) -> None:
        """kill -9 the command."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._audience.printed(self.name, "Killed")  # as a shell says
        self._place.guard.ended(self._process.pid)

    def end(self) -> None:
        """Wait until the command has ended; kill it if that takes too long."""
        if self._process is None:
            return
        try:
            self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()
        self._place.guard.ended(self._process.pid)
        self._reader.join()

    def _launch(self, script: str, shown: str, stdin: int = subprocess.DEVNULL) -> None:
        self._audience.typed(self.name, shown)
        self._command = shown
        self.lines, self.times = [], []
        # In its own session: only mqtool gets Ctrl-C, and interrupts the commands in order. Scripts begin with `exec`,
        # so that the command itself gets the signal, not a shell.
        # One pipe for both streams keeps the order of their lines.
        self._process = subprocess.Popen(
            ["sh", "-c", script],
            env={**self._place.environment, "MQTOOL_CONNECTION_NAME": self.name},
            cwd=self._place.directory,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._place.guard.started(self._process.pid)
        self._reader = threading.Thread(target=self._read, args=(self._process, self.lines, self.times), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[bytes]", lines: list[str], times: list[float]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for data in output:
                line = data.decode("utf-8", "replace").rstrip("\n")
                times.append(time.monotonic())
                self._audience.printed(self.name, line)
                lines.append(line)
        if process is self._process:
            self._audience.finished(self.name)

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait(self, patience: float = PATIENCE, code: int = 0) -> None:
        """Wait until the command ends. Raises CheckFailed if its exit code is not `code`."""
        process = self._process
        assert process is not None
        wait_until(lambda: self.has_ended, f"the end of {self._command}", patience)
        self._place.guard.ended(process.pid)
        self._reader.join()
        if process.returncode != code:
            raise CheckFailed(
                f"{self.name}: expected exit code {code}, got {process.returncode}, from: {self._command}"
                + (f"; it printed: {self.lines[-1]}" if self.lines else "")
            )

    def _ended_early(self) -> CheckFailed:
        self.wait()
        return CheckFailed(f"{self.name}: the command ended too early: {self._command}")

    def signal(self, number: int) -> None:
        """Send a signal to the running command, if any."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
