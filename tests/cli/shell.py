"""Runs commands as a user does in a shell, and waits for conditions."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from mqtool.stage import terminal
from tests.brokers import MAY_PAUSE
from tests.cli import preloaded

#: Seconds to wait. On a busy machine, restarting RabbitMQ takes more than one minute.
PATIENCE = 120.0
#: The --idle-timeout for tests whose messages are already in the queue. A busy RabbitMQ takes a while to deliver them.
IDLE = "3s" if MAY_PAUSE else "1s"


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code: 128 + n if signal n ended it, as in a shell."""

    stdout_bytes: bytes
    stderr: str
    code: int

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode("utf-8", "replace")


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], patience: float = PATIENCE) -> None:
    """Wait until a condition is true. Fails if it is not true within `patience` seconds."""
    terminal.wait_until(condition, what, patience)


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(data)


def _read(pipe: int) -> bytes:
    with os.fdopen(pipe, "rb") as stream:
        return stream.read()


class Running:
    """A command that runs in the background, as in a second terminal."""

    def __init__(
        self, process: "preloaded.Process | subprocess.Popen[bytes]", stdout: Path, stderr: Path, ready: Path | None
    ) -> None:
        self.process = process
        self._stdout = stdout
        self._stderr = stderr
        self._ready = ready

    @property
    def stdout(self) -> str:
        """What the command has printed on stdout so far."""
        return self._stdout.read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What the command has printed on stderr so far."""
        return self._stderr.read_text("utf-8", "replace")

    def wait_until_ready(self) -> Self:
        """Wait until the command consumes. Fails if the command ends first."""
        ready = self._ready
        assert ready is not None, "this command has no --ready-file"
        wait_until(lambda: ready.exists() or self.process.poll() is not None, lambda: f"ready: {self.stderr}")
        assert ready.exists(), f"the command ended before it consumed: {self.stderr}"
        return self

    def wait_for_stdout(self, text: str) -> Self:
        wait_until(lambda: text in self.stdout, lambda: f"{text!r} in {self.stdout!r}; stderr: {self.stderr!r}")
        return self

    def wait_for_stderr(self, text: str) -> Self:
        wait_until(lambda: text in self.stderr, lambda: f"{text!r} in {self.stderr!r}")
        return self

    def wait_until_connected_again(self, times: int) -> Self:
        """Wait until stderr contains this many notices of a reconnection. Messages may arrive a moment before them."""
        said = "connected again to"
        wait_until(lambda: self.stderr.count(said) == times, lambda: f"{said!r} {times} times in {self.stderr!r}")
        return self

    def write(self, data: bytes) -> Self:
        """Write to the command's standard input, which must be a pipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()
        return self

    def interrupt(self) -> Self:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        return self

    def wait(self, patience: float = PATIENCE) -> Result:
        code = self.process.wait(patience)
        return Result(self._stdout.read_bytes(), self.stderr, 128 - code if code < 0 else code)


class Shell:
    """Runs commands, and a preloaded mqtool, in one directory and with one environment.

    Args:
        directory: the working directory of commands.
        environment: variables for commands, in addition to those that every command has.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        kept = ("HOME", "LANG", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
        inherited = {name: os.environ[name] for name in kept if name in os.environ}
        path = f"{preloaded.where()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**inherited, "PATH": path, "COLUMNS": "100", **environment}
        self._is_cold = False
        self._started: list[Running] = []

    def start_cold(self) -> None:
        """From now on, start commands without the server of preloaded.py: they inherit limits and ignored signals."""
        self._is_cold = True
        self.environment["PATH"] = self.environment["PATH"].removeprefix(f"{preloaded.where()}:")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for running in self._started:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()

    def run(
        self,
        *command: str | bytes,
        stdin: str | bytes | None = None,
        timeout: float = PATIENCE,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command, and wait until it ends. Without `stdin`, its input is /dev/null."""
        written = stdin.encode() if isinstance(stdin, str) else stdin
        if not self._is_cold and preloaded.takes(command):
            return self._run_preloaded(command, written, timeout, {**self.environment, **(environment or {})})
        done = subprocess.run(
            preloaded.as_installed(command),
            input=written,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            cwd=self.directory,
            env={**self.environment, **(environment or {})},
            check=False,
        )
        code = 128 - done.returncode if done.returncode < 0 else done.returncode
        return Result(done.stdout, done.stderr.decode("utf-8", "replace"), code)

    def run_for_hint(self, hint: str, *command: str) -> Result:
        """Run a command, several times if its hint is missing, and return the last result.

        A command omits its hint if the management API does not answer in a second. A busy RabbitMQ may take longer.
        """
        for _ in range(5):
            result = self.run(*command)
            if hint in result.stderr:
                break
        return result

    def _run_preloaded(
        self, command: Sequence[str | bytes], written: bytes | None, timeout: float, environment: Mapping[str, str]
    ) -> Result:
        stdin = subprocess.DEVNULL if written is None else subprocess.PIPE
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        process = preloaded.Process(
            command, stdin=stdin, stdout=to_out, stderr=to_err, cwd=self.directory, env=environment
        )
        os.close(to_out)
        os.close(to_err)
        with ThreadPoolExecutor(3) as threads:
            if process.stdin is not None and written is not None:
                threads.submit(_feed, process.stdin, written)
            stdout, stderr = threads.submit(_read, out), threads.submit(_read, err)
            try:
                code = process.wait(timeout)
            except BaseException:
                process.kill()
                raise
        return Result(stdout.result(), stderr.result().decode("utf-8", "replace"), 128 - code if code < 0 else code)

    def start(self, *command: str, stdin: int = subprocess.DEVNULL, ready: bool | None = None) -> Running:
        """Start a command in the background. Commands that consume get a --ready-file to wait for."""
        number = len(self._started)
        stdout, stderr = self.directory / f"{number}.out", self.directory / f"{number}.err"
        consumes = (
            command[1] in ("receive", "receive-delayed", "receive-log", "receive-stream", "worker", "rpc-server", "tap")
            if ready is None
            else ready
        )
        ready_file = self.directory / f"{number}.ready" if consumes else None
        arguments = [*command, "--ready-file", str(ready_file)] if ready_file else list(command)
        with stdout.open("wb") as out, stderr.open("wb") as err:
            places = {"cwd": self.directory, "env": self.environment}
            process: preloaded.Process | subprocess.Popen[bytes]
            if not self._is_cold and preloaded.takes(arguments):
                process = preloaded.Process(arguments, stdin=stdin, stdout=out.fileno(), stderr=err.fileno(), **places)
            else:
                words = preloaded.as_installed(arguments)
                process = subprocess.Popen(words, stdin=stdin, stdout=out, stderr=err, **places)
        running = Running(process, stdout, stderr, ready_file)
        self._started.append(running)
        return running

    def run_until(self, text: str, number: signal.Signals, command: str) -> Result:
        """Run a command that prints many lines on stderr, and send it a signal once it has printed this text.

        The command cannot end before the signal: its stderr is a pipe that nothing reads, with room for few lines.
        """
        log = self.directory / "log"
        os.mkfifo(log)
        running = self.start("sh", "-c", f"exec {command} 2> log")
        with log.open() as lines:
            if sys.platform == "linux":
                fcntl.fcntl(lines, fcntl.F_SETPIPE_SZ, 4096)
            assert any(text in line for line in lines), f"no {text!r} on stderr"
            running.process.send_signal(number)
            rest = lines.read()
        log.unlink()
        return Result(b"", rest, running.wait().code)

    def script(self, text: str, timeout: float = PATIENCE) -> Result:
        """Run a bash script with `pipefail`: a pipeline fails if any of its commands fails."""
        return self.run("bash", "-c", f"set -o pipefail\n{text}", timeout=timeout)
