"""The scene of a drill: a broker of its own, and mqtool's commands as in several terminals."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mqtool.amqp import parse_addresses
from mqtool.broker import choice, ports
from mqtool.broker.choice import Kind
from mqtool.broker.starting import wait_until_up
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, TimedOut
from mqtool.message import new_message_id

QUEUE = "drill"
#: Seconds for anything to happen.
_PATIENCE = 60.0
_LOOK = 0.02
#: Seconds without progress after which there will be none: a queue needs some to find its leader after a restart.
_STILL = 20.0
CONFIRMED = re.compile(r"([\d,]+) confirmed")
_SUPPRESSED = re.compile(r"([\d,]+) suppressed")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the messages of a drill.

    Attributes:
        sent: different messages given to the publisher.
        confirmed: publishings that the broker confirmed.
        done: different messages that were handled at least once.
        redelivered: deliveries that were marked so.
        suppressed: second deliveries of a message that were recognised by its id, and had no effect.
        twice: messages that had their effect more than once.
        dead: messages that lie in the dead-letter queue.
        pause: seconds for which the receiver got nothing, at the longest; where that is of interest.
    """

    sent: int
    confirmed: int
    done: int
    redelivered: int
    suppressed: int = 0
    twice: int = 0
    dead: int = 0
    pause: float | None = None

    @property
    def lost(self) -> int:
        """Messages that were sent, and are neither done nor dead."""
        return self.sent - self.done - self.dead

    def __str__(self) -> str:
        what = ("sent", "confirmed", "done", "redelivered", "suppressed")
        more = tuple(name for name in ("twice", "dead") if getattr(self, name))
        pause = "" if self.pause is None else f"longest pause {self.pause:.1f} s, "
        counts = [f"{name} {getattr(self, name):,}" for name in (*what, *more)]
        return f"{', '.join(counts)}, {pause}lost {self.lost:,}"


class Command:
    """One of mqtool's commands, running; what it says on stderr is shown with its name before it."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", say: Callable[[str], None]) -> None:
        self.name = name
        self.said: list[str] = []
        self._process = process
        self._say = say
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.decode("utf-8", "replace").rstrip("\n"))
            self._say(f"{self.name:>9} | {self.said[-1]}")

    def write(self, data: bytes) -> None:
        """To its stdin, at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def close(self) -> None:
        """The end of its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def has_ended(self) -> bool:
        """Whether it has, by itself or not."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """kill -9."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """TERM, which is a clean stop, and wait for its end."""
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self, statuses: Iterable[int] = (0,)) -> None:
        """Wait for its end.

        Raises:
            MqtoolError: it does not end, or not as it should.
        """
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"the {self.name} does not end") from error
        self._listener.join(_PATIENCE)
        if status not in statuses:
            raise MqtoolError(f"the {self.name} has failed with exit code {status}: {' · '.join(self.said[-2:])}")

    def counted(self, pattern: re.Pattern[str]) -> int:
        """The number that it ended with."""
        found = [match[1] for line in self.said if (match := pattern.search(line))]
        return int(found[-1].replace(",", "")) if found else 0


class Scene:
    """A broker, a directory, and commands; all of them end with it.

    Args:
        kind: which broker to start.
        url: use this one instead.
        say: shows a line to the person who watches.
        cluster: three nodes that are one broker.
        image: of RabbitMQ, to build upon, in Docker.
    """

    def __init__(
        self,
        kind: Kind,
        url: str | None,
        say: Callable[[str], None],
        *,
        cluster: bool = False,
        image: str | None = None,
    ) -> None:
        self.say = say
        self.directory = Path(tempfile.mkdtemp(prefix="mqtool-drill-"))
        self.queue = f"{QUEUE}-{new_message_id()[:8]}"
        self._commands: list[Command] = []
        self._starter = choice.choose_quick(Kind.DOCKER if image else kind, cluster=cluster)
        self._cluster, self._image = cluster, image
        self._name = f"drill-{os.getpid()}"
        self._started: Started | None = None
        self.url = url or self._start(ports.free_port())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for command in self._commands:
            if not command.has_ended:
                command.kill()
        if (started := self._started) is not None:
            self.stop_broker()
            self._starter.discard(started)
        shutil.rmtree(self.directory, ignore_errors=True)

    # The broker.

    @property
    def port(self) -> int:
        """The broker's."""
        return parse_addresses(self.url)[0].port

    def through(self, port: int) -> str:
        """The broker's URL, by way of a proxy."""
        return self.url.replace(f":{self.port}", f":{port}")

    def _start(self, port: int) -> str:
        wanted = Wanted(self._name, port, cluster=self._cluster, image=self._image)
        self._starter.prepare(wanted, self.say)
        self.say(f"starting {self._starter.describe} …")
        self._started = self._starter.start(wanted)
        self._started = wait_until_up(self._started)
        return self._started.url

    def stop_broker(self) -> None:
        """Stop it; its messages are kept."""
        if self._started is not None:
            self._starter.stop(self._started)
            self._started = None

    def start_broker(self) -> None:
        """Start it again where it was."""
        self._start(self.port)

    def kill_node(self, number: int) -> None:
        """kill -9 a node of the cluster; 0 is the first."""
        assert self._started is not None
        self._starter.kill(self._started, number)

    def revive_nodes(self) -> None:
        """Start those of the cluster that were killed; they need not be back when this returns."""
        assert self._started is not None
        self._started = self._starter.revive(self._started)

    # The commands.

    def start(self, name: str, *arguments: str, url: str | None = None, stdout: Path | None = None) -> Command:
        """Start one of mqtool's commands, with a pipe to its stdin."""
        environment = {**os.environ, "MQTOOL_URL": url or self.url}
        with (stdout or Path(os.devnull)).open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "mqtool", *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE,
                cwd=self.directory,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the drill
            )
        command = Command(name, process, self.say)
        self._commands.append(command)
        return command

    def start_consumer(self, name: str, *arguments: str, url: str | None = None, stdout: Path | None = None) -> Command:
        """Start one that consumes, and wait until it does."""
        ready = self.directory / f"{name}-{len(self._commands)}.ready"
        command = self.start(name, *arguments, "--ready-file", str(ready), url=url, stdout=stdout)
        self.wait_until(lambda: ready.exists() or command.has_ended, f"{name} consumes")
        return command

    def send(self, messages: Iterable[bytes], *arguments: str) -> int:
        """Publish messages to the drill's queue; returns how many were confirmed."""
        sender = self.start("sender", "send", "--json", "-q", self.queue, "--persistent", *arguments)
        sender.write(b"".join(messages))
        sender.close()
        sender.wait()
        return sender.counted(CONFIRMED)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to happen.

        Raises:
            TimedOut: it does not.
        """
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimedOut(f"this did not happen within {_PATIENCE:g} s: {what}")
            time.sleep(_LOOK)

    def wait_until_still(self, complete: Callable[[], bool], progress: Callable[[], int]) -> None:
        """Wait until it is complete; or, as then something is lost, until nothing has moved for a while."""
        before, still_since = progress(), time.monotonic()
        while not complete():
            if (now := progress()) != before:
                before, still_since = now, time.monotonic()
            elif time.monotonic() > still_since + _STILL:
                return
            time.sleep(_LOOK * 5)

    def suppressed_by(self, *workers: Command) -> int:
        """How many duplicates they have recognised."""
        return sum(worker.counted(_SUPPRESSED) for worker in workers)


def message(number: int, body: str | None = None, message_id: str | None = None) -> bytes:
    """A line for `send --json`."""
    properties = {"message_id": message_id or f"m-{number}"}
    return json.dumps({"body": body or f"message {number}", "properties": properties}).encode() + b"\n"


def lines_of(path: Path) -> list[str]:
    """The whole lines that a file has so far."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().split("\n")[:-1]
    return []


def received(path: Path) -> list[dict[str, Any]]:
    """What `receive --json` has written."""
    return [json.loads(line) for line in lines_of(path)]
