"""The actions on the page of `mqtool ui`. Each one is an mqtool command, which the page shows and can copy.

The page sends an action's name and the contents of its fields, never a command. The command runs in a process of its
own, without a shell, and is stopped if the page stops reading its output.
"""

import glob
import math
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mqtool.address import without_passwords
from mqtool.errors import UsageError
from mqtool.spelling import quoted
from mqtool.stage.terminal import Guard

Json = dict[str, Any]

#: Limits: commands that run at the same time; lines of output that wait for a slow page; characters of each line.
_AT_ONCE, _KEPT_LINES, _LINE_LENGTH = 8, 500, 2_000
#: Seconds between checks that the page is still open, and from Ctrl-C (SIGINT) until a command is killed.
_PAUSE, _LAST_WORDS = 0.2, 3.0
_LONGEST = 4_000


class Field(NamedTuple):
    """A field of an action's form. `kind` is text, lines, queue, exchange or client (with suggestions), or choice."""

    name: str
    label: str
    kind: str = "text"
    value: str = ""
    choices: tuple[str, ...] = ()


class Action(NamedTuple):
    """An action: its form, and a function that turns the completed form into mqtool's arguments.

    Attributes:
        note: its cost or side effects, to show on the page.
        changes: True if the broker must allow changes; False if any broker will do.
        only: "embedded" if it needs the embedded broker; "own" if it needs one that `broker up` started.
    """

    label: str
    fields: tuple[Field, ...]
    words: Callable[[Mapping[str, str]], list[str]]
    note: str = ""
    changes: bool = True
    only: str = ""


def _words(command: str, options: Iterable[tuple[str, str]], *arguments: str) -> list[str]:
    """Return a command's arguments. Leaves out empty options; text that the user typed is never parsed as an option."""
    given: list[str] = []
    for name, value in options:
        if value.startswith("-"):
            given.append(f"{name}={value}" if name.startswith("--") else f"{name}{value}")
        elif value:
            given += [name, value]
    dashes = ["--"] if any(each.startswith("-") for each in arguments) else []
    return [*command.split(), *given, *dashes, *arguments]


def _headers(given: Mapping[str, str]) -> list[tuple[str, str]]:
    return [("-H", line) for line in given["headers"].split("\n")]


def _publish(given: Mapping[str, str]) -> list[str]:
    headers = _headers(given)
    if given["exchange"]:
        return _words("send --mandatory", [("-e", given["exchange"]), ("-r", given["key"]), *headers], given["body"])
    return _words("send --no-declare", [("-q", given["key"]), *headers], given["body"])


def _declare_exchange(given: Mapping[str, str]) -> list[str]:
    settings = {
        "alternate-exchange": given["alternate"],
        "x-delayed-type": "topic" if given["type"] == "x-delayed-message" else "",
    }
    options = [("--argument", f"{name}={value}") for name, value in settings.items() if value]
    return _words("exchange declare", options, given["name"], given["type"])


def _cut(given: Mapping[str, str]) -> list[str]:
    # Its client chooses a connection's name: the name * must not match all connections.
    names = [f"name={glob.escape(given['client'])}"] if given["client"] else []
    return _words("broker fault cut-connections", [], *names)


_QUEUE = Field("queue", "Queue", "queue")
_BODY = Field("body", "Body", value="hello")
_HEADERS = Field("headers", "Headers: NAME=VALUE, one per line", "lines")

#: The actions by name. The page shows them in this order.
ACTIONS: Mapping[str, Action] = {
    "publish": Action(
        "Publish a message",
        (
            Field("exchange", "Exchange (empty: the default exchange)", "exchange"),
            Field("key", "Routing key (of the default exchange: the queue)", "queue"),
            _BODY,
            _HEADERS,
            Field("publisher", "Publisher (its name in the picture)", "client"),
        ),
        _publish,
    ),
    "delay": Action(
        "Publish later",
        (_QUEUE, _BODY, Field("delay", "Delay", value="10s")),
        lambda given: _words("send --no-declare", [("-q", given["queue"]), ("--delay", given["delay"])], given["body"]),
    ),
    "consume": Action(
        "Consume slowly",
        (_QUEUE, Field("seconds", "Seconds for each message", value="3")),
        lambda given: _words("worker --no-declare", [("-q", given["queue"]), ("--exec", f"sleep {_number(given)}")]),
        "Runs until you stop it, or close the page.",
    ),
    "reject": Action(
        "Take one message and fail",
        (_QUEUE,),
        lambda given: _words("worker --no-declare -c 1 --retries 0 --exec false", [("-q", given["queue"])]),
        "A program that fails: the worker moves the message to the queue's .dlq queue.",
    ),
    "declare-queue": Action(
        "Declare a queue",
        (
            Field("name", "Name"),
            Field("type", "Type", "choice", "quorum", ("quorum", "classic", "stream")),
            Field("dead", "Dead-letter exchange", "exchange"),
            Field("ttl", "Expire messages after"),
            Field("length", "Maximum number of messages"),
        ),
        lambda given: _words(
            "queue declare",
            [
                ("--queue-type", given["type"]),
                ("--dead-letter-exchange", given["dead"]),
                ("--ttl", given["ttl"]),
                ("--max-length", given["length"]),
            ],
            given["name"],
        ),
    ),
    "declare-exchange": Action(
        "Declare an exchange",
        (
            Field("name", "Name"),
            Field("type", "Type", "choice", "topic", ("topic", "direct", "fanout", "headers", "x-delayed-message")),
            Field("alternate", "Alternate exchange", "exchange"),
        ),
        _declare_exchange,
    ),
    "bind": Action(
        "Bind a queue",
        (Field("exchange", "Exchange", "exchange"), _QUEUE, Field("key", "Binding key")),
        lambda given: _words("exchange bind", [], given["exchange"], given["queue"], given["key"]),
    ),
    "unbind": Action(
        "Remove a binding",
        (Field("exchange", "Exchange", "exchange"), _QUEUE, Field("key", "Binding key")),
        lambda given: _words("exchange unbind", [], given["exchange"], given["queue"], given["key"]),
    ),
    "purge": Action(
        "Purge a queue", (_QUEUE,), lambda given: _words("queue purge --yes", [], given["queue"]), "Deletes messages."
    ),
    "cut": Action(
        "Cut a connection", (Field("client", "Name of the connection; empty for all", "client"),), _cut, only="embedded"
    ),
    "restart": Action(
        "Restart the broker", (), lambda _: ["broker", "restart"], "All connections are closed.", only="own"
    ),
    "route": Action(
        "Explain a route",
        (
            Field("exchange", "Exchange (empty: the default exchange)", "exchange"),
            Field("key", "Routing key"),
            _HEADERS,
        ),
        lambda given: _words("route", _headers(given), given["exchange"], given["key"]),
        changes=False,
    ),
    "peek": Action(
        "Peek at a queue",
        (_QUEUE, Field("count", "How many", value="10")),
        lambda given: _words("peek", [("-c", given["count"])], given["queue"]),
        "Takes the messages and puts them back: they are marked as redelivered, and consumers cannot get them "
        "meanwhile. In a quorum queue, this counts as a delivery.",
        changes=False,
    ),
}


def _number(given: Mapping[str, str]) -> str:
    try:
        seconds = float(given["seconds"])
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 600:
        raise UsageError(f"{given['seconds']!r} is not a number of seconds from 0 to 600")
    return f"{seconds:g}"


class Actions:
    """Runs the commands of actions.

    Args:
        chosen: the options with which the user chose the broker; added to each command.
        url: the broker's URL without passwords, if no context names the broker; shown in each command.
        environment: variables for the commands, such as MQTOOL_URL.
        kinds: which of "change", "embedded" and "own" the broker allows.
        name: the broker's name in `broker restart`.
        management: the URL of the management API, if the user typed it; added to the commands that use the API.
        is_still: asked before each action: True if the broker is still the same. None if there is no need to ask.
    """

    def __init__(
        self,
        chosen: Sequence[str],
        kinds: Collection[str],
        *,
        url: str = "",
        environment: Mapping[str, str],
        name: str = "",
        management: str = "",
        is_still: Callable[[Action], bool] | None = None,
    ) -> None:
        self._is_still = is_still
        self._chosen = chosen
        self._management = management
        self._url = ["--url", url] if url else []
        self._environment = {**os.environ, **environment, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        self._name = name
        self._allowed = {
            key: action
            for key, action in ACTIONS.items()
            if (not action.changes or "change" in kinds) and (not action.only or action.only in kinds)
        }
        self._guard = Guard()
        self._free = threading.Semaphore(_AT_ONCE)
        self._over = threading.Event()

    def move(self, environment: Mapping[str, str]) -> None:
        """Stop the running commands; run later ones with these variables."""
        self._over.set()
        self._over = threading.Event()
        self._environment |= environment

    def listed(self, _: Json) -> Iterator[Json | None]:
        """Yield the actions that are allowed."""
        for key, action in self._allowed.items():
            fields = [each._asdict() for each in action.fields]
            yield {
                "name": key, "label": action.label, "fields": fields, "note": action.note, "changes": action.changes
            }  # fmt: skip

    def preview(self, wanted: Json) -> Iterator[Json | None]:
        """Yield the command that an action would run."""
        yield {"command": self.shown(self._words_of(wanted), _named(wanted))}

    def run(self, wanted: Json) -> Iterator[Json | None]:
        """Run an action; yield its command, its output and its exit code. Close the iterator to stop the command."""
        words, named = self._words_of(wanted), _named(wanted)
        if self._is_still is not None and not self._is_still(ACTIONS[wanted["action"]]):
            raise UsageError("the page was started for another broker than this one", "start 'mqtool ui' again")
        if not self._free.acquire(blocking=False):
            raise UsageError(f"{_AT_ONCE} commands are running", "stop one of them")
        try:
            yield {"command": self.shown(words, named)}
            yield from self._output(words, named)
        finally:
            self._free.release()

    def _output(self, words: list[str], named: Mapping[str, str]) -> Iterator[Json | None]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mqtool", *self._complete(words, self._chosen, self._management)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**self._environment, **named},
            start_new_session=True,
        )
        self._guard.started(process.pid)
        over = self._over
        lines: deque[str] = deque(maxlen=_KEPT_LINES)
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            while (process.poll() is None or reader.is_alive() or lines) and not over.is_set():
                while lines:
                    yield {"line": lines.popleft()}
                reader.join(_PAUSE)
                yield None
            yield {"line": "stopped"} if over.is_set() else {"code": process.returncode}
        finally:
            _end(process)
            self._guard.ended(process.pid)

    def _words_of(self, wanted: Json) -> list[str]:
        action = self._allowed.get(str(wanted.get("action")))
        given = wanted.get("fields")
        if action is None or not isinstance(given, dict):
            raise UsageError("unknown action, or not allowed on this broker")
        fields = {each.name: str(given.get(each.name, "")) for each in action.fields}
        for each in action.fields:
            text = fields[each.name]
            if len(text) > _LONGEST or "\0" in text or (each.choices and text not in each.choices):
                raise UsageError(f"{each.label}: this value is not possible")
        words = action.words(fields)
        return [*words, "--name", self._name] if words[:2] == ["broker", "restart"] else words

    def _complete(self, words: list[str], options: Sequence[str], management: str) -> list[str]:
        """Return a command's arguments with the options that choose the broker."""
        if words[:2] == ["broker", "restart"]:
            return words
        if management and words[0] in ("broker", "route"):
            options = [*options, "--management", management]
        at = words.index("--") if "--" in words else len(words)
        return [*words[:at], *options, *words[at:]]

    def shown(self, words: list[str], named: Mapping[str, str]) -> str:
        """Return a command as the page shows it: with the options that choose the broker, and after variables."""
        variables = [f"{name}={quoted(value)}" for name, value in named.items()]
        shown = self._complete(words, [*self._url, *self._chosen], without_passwords(self._management))
        return " ".join([*variables, "mqtool", *map(quoted, shown)])


def _named(wanted: Json) -> dict[str, str]:
    """Return the variable that gives the connection of a checked action the name of the publisher that was chosen."""
    publisher = str(wanted["fields"].get("publisher", ""))
    return {"MQTOOL_CONNECTION_NAME": publisher} if publisher else {}


def _read(stream: Any, lines: deque[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.decode(errors="replace").rstrip("\n")[:_LINE_LENGTH])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a command and its child processes, as Ctrl-C does; kill them if they do not exit."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            continue
