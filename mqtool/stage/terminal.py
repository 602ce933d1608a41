"""One terminal: a person types commands into it, and sees what they print."""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from mqtool.stage.audience import Audience
from mqtool.stage.guard import Guard
from mqtool.stage.waiting import PATIENCE, NotSo, wait_until

#: Seconds for a command to finish the message in hand, before it is ended the hard way.
_LAST_WORDS = 5.0


class Terminal:
    """A place to run one command at a time, by a shell, exactly as it is shown.

    Args:
        directory: where commands run.
        scratch: where background commands say that they consume.
        guard: ends what runs here if we are killed.
    """

    def __init__(
        self,
        audience: Audience,
        name: str,
        directory: Path,
        environment: Mapping[str, str],
        scratch: Path,
        guard: Guard,
    ) -> None:
        self.name = name
        #: What the command in hand, or the last one, has printed, and when (time.monotonic).
        self.lines: list[str] = []
        self.times: list[float] = []
        self._audience = audience
        self._directory = directory
        self._environment = environment
        self._ready_file = scratch / f"{name.replace(' ', '-')}.ready"
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread()
        self._command = ""

    def set_variable(self, name: str, value: str) -> None:
        """In the environment of the commands to come."""
        self._environment = {**self._environment, name: value}

    def run(self, command: str, code: int = 0) -> list[str]:
        """Type a command, and wait for its end; return the lines that it printed.

        Raises:
            NotSo: it ended with another exit code, or not at all.
        """
        self._launch(f"exec {command}", command)
        self._expect_end(code, PATIENCE * 3)
        return self.lines

    def start(self, command: str) -> None:
        """Type a command that goes on until it is interrupted, and wait until it consumes.

        Raises:
            NotSo: it ended, or does not come to consume.
        """
        self._ready_file.unlink(missing_ok=True)
        self._launch(f"exec {command} --ready-file {shlex.quote(str(self._ready_file))}", command)
        wait_until(
            # It tells the person first; that line must be seen before anything else is typed.
            lambda: (self._ready_file.exists() and self.lines) or self.has_ended,
            lambda: f"{self.name} to consume: {command}",
        )
        if self.has_ended:
            self._expect_end(0, PATIENCE)
            raise NotSo(f"{self.name}: the command should go on, but has ended: {command}")

    def feed(self, script: str) -> None:
        """Type a command, or a loop of the shell, that will read what is given to write()."""
        self._launch(script, script, stdin=subprocess.PIPE)

    def write(self, line: str) -> None:
        """A line for the command that is fed.

        Raises:
            NotSo: it does not read any more.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            self._expect_end(0, PATIENCE)
            raise NotSo(f"{self.name}: the command should go on, but has ended: {self._command}") from error

    def finish(self, patience: float = PATIENCE) -> None:
        """The end of what the command is fed; wait for its own.

        Raises:
            NotSo: it failed.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._expect_end(0, patience)

    def wait_for(self, text: str, count: int) -> None:
        """Wait until this many lines with that text have been printed.

        Raises:
            NotSo: they do not come.
        """
        wait_until(
            lambda: self.count(text) >= count or self.has_ended,
            lambda: f"{count} lines with {text!r} from {self.name}; there are {self.count(text)}",
        )
        if self.count(text) < count:
            raise NotSo(f"{self.name} ended after {self.count(text)} of {count} lines with {text!r}: {self._command}")

    def count(self, text: str) -> int:
        """How many of the lines have that text."""
        return sum(text in line for line in list(self.lines))

    def after(self, text: str) -> list[str]:
        """What follows the text, in those lines that have it."""
        return [line.partition(text)[2] for line in self.lines if text in line]

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the clean end that mqtool promises.

        Raises:
            NotSo: it did not end, or not cleanly.
        """
        self._audience.printed(self.name, "^C")
        self._signal(signal.SIGINT)
        self._expect_end(0, PATIENCE)

    def kill(self) -> None:
        """kill -9 the command."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._guard.ended(self._process.pid)

    def wait(self, patience: float = PATIENCE, code: int = 0) -> None:
        """Wait for the command's end.

        Raises:
            NotSo: it did not end, or with another exit code.
        """
        self._expect_end(code, patience)

    def ask_to_end(self) -> None:
        """Tell whatever still runs that the play is over; for when it ends early."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait until it has ended, and end it the hard way if it takes its time."""
        if self._process is None:
            return
        try:
            self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._guard.ended(self._process.pid)
        self._reader.join()

    def _launch(self, script: str, shown: str, stdin: int = subprocess.DEVNULL) -> None:
        self._audience.typed(self.name, shown)
        self._command = shown
        self.lines, self.times = [], []
        # A session of its own: Ctrl-C is for us, and we pass it on in good order. `exec`, so that it is the command
        # that gets it, not a shell. One pipe for both streams, as on a terminal: their lines keep their order.
        self._process = subprocess.Popen(
            ["sh", "-c", script],
            env=self._environment,
            cwd=self._directory,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._guard.started(self._process.pid)
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

    @property
    def has_ended(self) -> bool:
        """Whether nothing runs here any more."""
        return self._process is None or self._process.poll() is not None

    def _expect_end(self, code: int, patience: float) -> None:
        process = self._process
        assert process is not None
        wait_until(lambda: self.has_ended, lambda: f"the end of {self._command}", patience)
        self._guard.ended(process.pid)
        self._reader.join()
        if process.returncode != code:
            raise NotSo(
                f"{self.name}: expected exit code {code}, got {process.returncode}, from: {self._command}"
                + (f"\n  it said: {self.lines[-1]}" if self.lines else "")
            )

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
