"""The embedded broker in a separate process, which tests can kill and start again."""

import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cli import preloaded


class BrokerProcess:
    """`python -m mqtool.broker.embedded` on a directory, preloaded because starting Python takes most of the time.

    Attributes:
        url: its AMQP URL.
        log: what it has logged.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options or ("--data-dir", str(directory / "data"))
        self.ready_file = directory / "ready"
        self.log_file = directory / "log"
        self.process: preloaded.Process | subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the broker, and wait until it listens."""
        command = ["embedded-broker", "--port", "0", *self.options]
        files = ("--ready-file", str(self.ready_file), "--log-file", str(self.log_file))
        self.ready_file.unlink(missing_ok=True)
        command += files
        if preloaded.takes(command):
            self.process = preloaded.Process(command, cwd=self.directory, env={}, stdin=subprocess.DEVNULL)
        else:
            words = preloaded.as_installed(command)
            self.process = subprocess.Popen(words, cwd=self.directory, env={}, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60  # only a busy machine needs that long
        while not self.ready_file.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, "the broker did not start"
            self._a_moment()
        return self

    def _a_moment(self) -> None:
        assert self.process is not None
        try:
            self.process.wait(0.005)
        except subprocess.TimeoutExpired:
            return

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        return self.ready_file.read_text().splitlines()[0]

    @property
    def management_url(self) -> str:
        return self.ready_file.read_text().splitlines()[1]

    @property
    def stream_url(self) -> str:
        return next(line for line in self.ready_file.read_text().splitlines() if "stream" in line)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def kill(self) -> None:
        """Kill the broker with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop the broker with SIGTERM. Return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def other_address() -> str | None:
    """Return an address of this machine that is not loopback; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])
