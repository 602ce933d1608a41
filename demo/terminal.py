"""One terminal: a person types commands into it, and sees what they print."""

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from demo.failure import Failed
from demo.screen import Screen
from demo.waiting import PATIENCE, wait_until

#: Seconds for a command to finish the message in hand, before it is ended the hard way.
_LAST_WORDS = 5.0


class Terminal:
    """A place to run one command at a time, by a shell, exactly as it is shown.

    Args:
        label: its name, in its colour, as long as those of its neighbours.
        ready_file: where background commands say that they consume.
    """

    def __init__(self, screen: Screen, label: Text, environment: Mapping[str, str], ready_file: Path) -> None:
        self.name = label.plain.strip()
        #: What the command in hand, or the last one, has printed.
        self.lines: list[str] = []
        self._screen = screen
        self._label = label
        self._environment = environment
        self._ready_file = ready_file
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread()
        self._command = ""

    def set_variable(self, name: str, value: str) -> None:
        """In the environment of the commands to come."""
        self._environment = {**self._environment, name: value}

    def run(self, command: str, code: int = 0) -> list[str]:
        """Type a command, and wait for its end; return the lines that it printed.

        Raises:
            Failed: it ended with another exit code, or not at all.
        """
        self._launch(command)
        self._expect_end(code, PATIENCE * 3)
        return self.lines

    def start(self, command: str) -> None:
        """Type a command that goes on until it is interrupted, and wait until it consumes.

        Raises:
            Failed: it ended, or does not come to consume.
        """
        self._ready_file.unlink(missing_ok=True)
        self._launch(command, f" --ready-file {shlex.quote(str(self._ready_file))}")
        wait_until(
            # It says so to the person first; that line shall be seen before anything else is typed.
            lambda: (self._ready_file.exists() and self.lines) or self._has_ended(),
            lambda: f"{self.name} to consume: {command}",
        )
        if self._has_ended():
            self._expect_end(0, PATIENCE)
            raise Failed(f"{self.name}: the command should go on, but has ended: {command}")

    def wait_for(self, text: str, count: int) -> None:
        """Wait until so many lines with that text have been printed.

        Raises:
            Failed: they do not come.
        """
        wait_until(
            lambda: self.count(text) >= count or self._has_ended(),
            lambda: f"{count} lines with {text!r} from {self.name}; there are {self.count(text)}",
        )
        if self.count(text) < count:
            raise Failed(f"{self.name} ended after {self.count(text)} of {count} lines with {text!r}: {self._command}")

    def count(self, text: str) -> int:
        """How many of the lines have that text."""
        return sum(text in line for line in list(self.lines))

    def after(self, text: str) -> list[str]:
        """What follows the text, in those lines that have it."""
        return [line.partition(text)[2] for line in self.lines if text in line]

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the clean end that mqtool promises.

        Raises:
            Failed: it did not end, or not cleanly.
        """
        self._screen.printed(self._label, "^C")
        self._signal(signal.SIGINT)
        self._expect_end(0, PATIENCE)

    def end(self, patience: float = _LAST_WORDS) -> None:
        """End whatever still runs; for when the demonstration ends early."""
        if self._process is None:
            return
        try:
            self._signal(signal.SIGTERM)
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._reader.join()

    def _launch(self, command: str, unseen: str = "") -> None:
        self._screen.typed(self._label, command)
        self._command = command
        self.lines = []
        # A session of its own: Ctrl-C is for us, and we pass it on in good order. `exec`, so that it is the command
        # that gets it, not a shell. One pipe for both streams, as on a terminal: their lines keep their order.
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {command}{unseen}"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process, self.lines), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[bytes]", lines: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for data in output:
                line = data.decode("utf-8", "replace").rstrip("\n")
                self._screen.printed(self._label, line)
                lines.append(line)

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _expect_end(self, code: int, patience: float) -> None:
        process = self._process
        assert process is not None
        wait_until(self._has_ended, lambda: f"the end of {self._command}", patience)
        self._reader.join()
        if process.returncode != code:
            raise Failed(
                f"{self.name}: expected exit code {code}, got {process.returncode}, from: {self._command}"
                + (f"\n  it said: {self.lines[-1]}" if self.lines else "")
            )

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
