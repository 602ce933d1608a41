"""The scene of a drill: a broker of its own, commands in terminals, and the count of what became of the messages."""

import contextlib
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mqtool.amqp import parse_addresses
from mqtool.broker import choice, ports
from mqtool.broker.choice import Kind
from mqtool.broker.starting import wait_until_up
from mqtool.broker.state import Started, Wanted
from mqtool.message import new_message_id
from mqtool.stage import waiting
from mqtool.stage.audience import Audience
from mqtool.stage.guard import Guard
from mqtool.stage.stage import Place, Stage
from mqtool.stage.terminal import Terminal

#: Seconds for anything to happen.
PATIENCE = 60.0
_LOOK = 0.1
#: Seconds without progress after which there will be none: a queue needs some to find its leader after a restart.
_STILL = 20.0
_CONFIRMED = re.compile(r"([\d,]+) confirmed")
_SUPPRESSED = re.compile(r"([\d,]+) suppressed")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the messages of a drill.

    Attributes:
        sent: different messages given to the publisher.
        confirmed: publishings that the broker confirmed.
        done: different messages that were handled at least once.
        redelivered: deliveries that were marked so.
        suppressed: deliveries recognised as duplicates by their message_id.
        twice: messages that were handled more than once.
        dead: messages in the dead-letter queue.
        pause: the longest time without a delivery, in seconds, where it matters.
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


class Scene:
    """A broker, a directory, and terminals; all of them end with it.

    Args:
        kind: which broker to start.
        url: use this one instead.
        cluster: three nodes that are one broker.
        image: RabbitMQ image to build on, in Docker.
    """

    def __init__(
        self, kind: Kind, url: str | None, audience: Audience, *, cluster: bool = False, image: str | None = None
    ) -> None:
        self._audience = audience
        self._guard = Guard()
        self._end = ExitStack()
        self.directory = Path(self._end.enter_context(tempfile.TemporaryDirectory(prefix="mqtool-drill-")))
        self.queue = f"drill-{new_message_id()[:8]}"
        self._starter = choice.choose_quick(Kind.DOCKER if image else kind, cluster=cluster)
        self._wanted = Wanted(f"drill-{os.getpid()}", ports.free_port(), cluster=cluster, image=image)
        self._started: Started | None = None
        self.url = url or self._start_broker()
        place = Place(self.directory, self.directory, {"MQTOOL_URL": self.url}, apart=False, guard=self._guard)
        self._end.callback(self._discard_broker)
        self._stage = self._end.enter_context(Stage(audience, place))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.close()

    def say(self, text: str) -> None:
        """Tell what happens next."""
        self._audience.say(text)

    # The broker.

    @property
    def port(self) -> int:
        """The broker's."""
        return parse_addresses(self.url)[0].port

    def through(self, port: int) -> str:
        """The broker's URL, by way of a proxy."""
        return self.url.replace(f":{self.port}", f":{port}")

    def _start_broker(self) -> str:
        self._starter.prepare(self._wanted, self.say)
        self.say(f"starting {self._starter.describe} …")
        self._started = self._starter.start(self._wanted)
        self._started = wait_until_up(self._started)
        return self._started.url

    def _discard_broker(self) -> None:
        if (started := self._started) is not None:
            self._starter.stop(started)
            self._starter.discard(started)

    def restart_broker(self) -> None:
        """Stop the broker and start it again; its messages are kept."""
        assert self._started is not None
        self._starter.stop(self._started)
        self._start_broker()

    def kill_node(self, number: int) -> None:
        """kill -9 a node of the cluster; 0 is the first."""
        assert self._started is not None
        self._starter.kill(self._started, number)

    def revive_nodes(self) -> None:
        """Start killed nodes again; they need not be back when this returns."""
        assert self._started is not None
        self._started = self._starter.revive(self._started)

    # The commands.

    def terminals(self, *names: str, url: str | None = None) -> list[Terminal]:
        """Open terminals, whose commands use this URL."""
        opened = self._stage.terminals(*names)
        for terminal in opened:
            terminal.set_variable("MQTOOL_URL", url or self.url)
        return opened

    @property
    def sending(self) -> str:
        """The command that publishes what it is fed."""
        return f"mqtool send --json -q {self.queue} --persistent"

    def send(self, terminal: Terminal, messages: Iterable[str]) -> int:
        """Publish messages to the drill's queue; return how many were confirmed."""
        terminal.feed(self.sending)
        terminal.write("\n".join(messages))
        terminal.finish()
        return confirmed_by(terminal)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition.

        Raises:
            NotSo: it does not come to hold.
        """
        waiting.wait_until(condition, lambda: what, PATIENCE)

    def wait_until_still(self, complete: Callable[[], bool], progress: Callable[[], int]) -> None:
        """Wait until it is complete; or, where something is lost, until nothing has moved for a while."""
        before, still_since = progress(), time.monotonic()
        while not complete():
            if (now := progress()) != before:
                before, still_since = now, time.monotonic()
            elif time.monotonic() > still_since + _STILL:
                return
            time.sleep(_LOOK)


def confirmed_by(terminal: Terminal) -> int:
    """How many messages its publisher says were confirmed."""
    return _counted(terminal, _CONFIRMED)


def suppressed_by(terminal: Terminal) -> int:
    """How many duplicates its worker has recognised."""
    return _counted(terminal, _SUPPRESSED)


def _counted(terminal: Terminal, pattern: re.Pattern[str]) -> int:
    found = [match[1] for line in terminal.lines if (match := pattern.search(line))]
    return int(found[-1].replace(",", "")) if found else 0


def command(*words: str) -> str:
    """A command as one types it."""
    return shlex.join(words)


def message(number: int, body: str | None = None) -> str:
    """A line for `send --json`."""
    return json.dumps({"body": body or f"message {number}", "properties": {"message_id": f"m-{number}"}})


def lines_of(path: Path) -> list[str]:
    """The whole lines that a file has so far."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().split("\n")[:-1]
    return []


def received(path: Path) -> list[dict[str, Any]]:
    """What `receive --json` has written."""
    return [json.loads(line) for line in lines_of(path)]
