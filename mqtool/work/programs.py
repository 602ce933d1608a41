"""Programs that are run for messages: the body on stdin, the rest in the environment, the answer in the exit status.

    delivery ──> MQ_ROUTING_KEY=… MQ_HEADER_TENANT=… program < body ──> 0, 65, 75, …

A program runs in a process group of its own: so Ctrl-C reaches only the worker, which then finishes the message in
hand, and --timeout reaches everything that the program has started. A killed worker's programs end with it (runner.py).
"""

import functools
import os
import queue as queues
import re
import shlex
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mqtool.amqp.address import without_passwords
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.ndjson import as_json
from mqtool.work.endings import EX_DATAERR, Ending, Request
from mqtool.work.history import attempt_of, origin_of
from mqtool.work.runner import Runner

#: Longest value of an environment variable on Linux in bytes (MAX_ARG_STRLEN), less room for its name.
_LONGEST_VALUE = 120_000

#: The {…} places that a command may have, for the variables of the same names.
_PLACES = ("routing_key", "exchange", "queue", "message_id", "attempt", "redelivered")
#: Variables that say where a broker is.
_URLS = (b"MQTOOL_URL", b"AMQP_URL", b"MQTOOL_MANAGEMENT_URL")
_PLACE = re.compile(r"(?<!\$)\{(" + "|".join(_PLACES) + r")\}")
_ANY_PLACE = re.compile(rf"(?<!\$)\{{(?!(?:{'|'.join(_PLACES)})\}})[a-z_]+\}}")
#: What a shell would do something with.
_OPERATOR = re.compile(r"[|&;<>()]+")


class Ended(NamedTuple):
    """A delivery whose program has ended."""

    delivery: Delivery
    ending: Ending


class Program:
    """A command to run for each message.

    Args:
        command: words as in a shell, with places such as {routing_key}; or, with shell, a script for sh.
        shell: run it with sh. Places are refused then: a routing key must never be read as shell code.
        timeout: seconds after which its process group is killed; None for no limit.
        capture: keep its stdout, up to this many bytes, instead of passing it to ours.
        concurrency: run up to this many at once.
        pass_url: leave the passwords in the URLs that it inherits.

    Raises:
        UsageError: the command is not valid, or the program does not exist.
    """

    def __init__(
        self,
        command: str,
        *,
        shell: bool = False,
        timeout: float | None = None,
        capture: int | None = None,
        concurrency: int = 1,
        pass_url: bool = False,
    ) -> None:
        self._timeout = timeout
        self._capture = capture
        self._words = ["/bin/sh", "-c", command] if shell else _words(command)
        if shell and (place := _PLACE.search(command)):
            raise UsageError(f"sh would run the value of {place[0]} as code", f'write "$MQ_{place[1].upper()}" instead')
        self._has_places = not shell and any(_PLACE.search(word) for word in self._words)
        self._path = "" if _PLACE.search(self._words[0]) else _find(self._words[0])
        self._idle: queues.SimpleQueue[Runner] = queues.SimpleQueue()
        runners: list[Runner] = []
        inherited = _inherited(pass_url=pass_url)
        for _ in range(concurrency):
            runners.append(Runner(runners, inherited))
            self._idle.put(runners[-1])

    def run(self, delivery: Delivery) -> Ending:
        """Run it for a message, to its end. Thread-safe."""
        ended: list[Ended] = []
        self.run_each([delivery], ended.extend)
        return ended[0].ending

    def run_each(
        self,
        deliveries: Sequence[Delivery],
        settle: Callable[[Sequence[Ended]], None],
        still: Callable[[Delivery], bool] = lambda _: True,
    ) -> None:
        """Run it for messages, one after another; behind one that takes long none waits if another runner is idle.

        Args:
            settle: is told which have ended, from several threads. What it raises is raised here once all have ended.
            still: whether to run it for one at all, when its turn comes.
        """
        errors: list[BaseException] = []

        def attempt(function: Callable[..., None], *arguments: Any) -> None:
            try:
                function(*arguments)
            except BaseException as error:  # raised below, in the caller's thread
                errors.append(error)

        others: threading.Thread | None = None
        runner = self._idle.get()
        try:
            begun = [*filter(still, deliveries)]
            asked = [self._request(delivery) for delivery in begun]
            requests = [request for request in asked if isinstance(request, Request)]
            waiting = deque(each for each, request in zip(begun, asked, strict=True) if isinstance(request, Request))
            if impossible := [Ended(each, no) for each, no in zip(begun, asked, strict=True) if isinstance(no, Ending)]:
                attempt(settle, impossible)
            for answer in runner.run(requests):
                attempt(settle, [Ended(waiting.popleft(), ending) for ending in answer.endings])
                if answer.given_back and not errors:
                    held_up = [waiting.pop() for _ in range(answer.given_back)][::-1]
                    others = threading.Thread(target=attempt, args=(self.run_each, held_up, settle, still), daemon=True)
                    others.start()
        finally:
            self._idle.put(runner)
        if others is not None:
            others.join()
        if errors:
            raise errors[0]

    def _request(self, delivery: Delivery) -> Request | Ending:
        ours = environment_of(delivery)
        words = self._words
        if self._has_places:
            words = [_PLACE.sub(lambda place: ours[f"MQ_{place[1].upper()}"], word) for word in words]
        try:
            path = self._path or _find(words[0])
        except UsageError as error:  # the message has named it
            return Ending(EX_DATAERR, str(error).encode("utf-8", "replace"))
        environment = {_octets(name): _octets(value) for name, value in ours.items()}
        return Request(path, [*map(_octets, words)], environment, delivery.body, self._timeout, self._capture)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
        shell = shlex.shlex(command, posix=False, punctuation_chars=True)
        shell.commenters = ""
        operators = [word for word in shell if _OPERATOR.fullmatch(word)]
    except ValueError as error:
        raise UsageError(f"--exec {command!r} is not a valid command: {str(error).lower()}") from error
    if not words:
        raise UsageError("--exec is empty", "name the program to run for each message")
    if operators:
        raise UsageError(f"--exec runs no shell, so {operators[0]!r} would be an argument", "--shell runs it with sh")
    if unknown := _ANY_PLACE.search(command):
        places = ", ".join(f"{{{name}}}" for name in _PLACES)
        raise UsageError(f"--exec has an unknown place {unknown[0]}", f"there are {places}; --shell has variables")
    return words


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if Path(name).is_file():
            raise UsageError(f"{name!r} is not executable", f"chmod +x {shlex.quote(name)}")
        raise UsageError(f"program {name!r} not found")
    return found


def _inherited(*, pass_url: bool) -> dict[bytes, bytes]:
    """Our environment, in which a program needs no password: a crash report or `ps e` may show it."""
    inherited = dict(os.environb)
    for name in () if pass_url else _URLS:
        if name in inherited:
            inherited[name] = os.fsencode(without_passwords(os.fsdecode(inherited[name])))
    return inherited


def environment_of(delivery: Delivery) -> dict[str, str]:
    """MQ_ROUTING_KEY, MQ_HEADER_… and so on; values other than text as JSON."""
    origin = origin_of(delivery)
    environment = {
        "MQ_ROUTING_KEY": _as_text(origin.routing_key),
        "MQ_EXCHANGE": _as_text(origin.exchange),
        "MQ_QUEUE": delivery.queue,
        "MQ_REDELIVERED": "1" if delivery.redelivered else "0",
        "MQ_ATTEMPT": str(attempt_of(delivery)),
        "MQ_MESSAGE_ID": "",
    }
    for name, value in delivery.properties.items():
        if value is not None and name != "headers":
            environment[_variable(name)] = _as_text(value)
    for name, value in delivery.headers.items():
        environment[_variable(f"header_{name}")] = _as_text(value)
    return environment


@functools.lru_cache(1024)
def _variable(name: str) -> str:
    return "MQ_" + re.sub(r"\W", "_", name, flags=re.ASCII).upper()


def _as_text(value: Any) -> str:
    """A value as an environment or a command line can have it: without NUL, and not too long."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else as_json(value)
    return text.replace("\0", "")[:_LONGEST_VALUE]


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")[:_LONGEST_VALUE]
