"""The command for --exec gets a message's body on stdin, and its other fields in environment variables.

The exit status of the command is the result.

    message ──> MQ_ROUTING_KEY=… MQ_HEADER_TENANT=… program < body ──> 0, 65, 75, …

Each program runs in its own process group. So Ctrl-C reaches only the worker, which finishes its current messages, and
--timeout also kills the processes that the program has started.
"""

import functools
import os
import queue as queues
import re
import shlex
import shutil
from typing import Any

from mqtool.address import without_passwords
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.ndjson import as_json
from mqtool.work.history import attempt_of, origin_of
from mqtool.work.runner import EX_DATAERR, Ending, Runner, RunnerRequest

#: Maximum bytes of an environment variable's value: Linux's MAX_ARG_STRLEN, less room for its name.
_LONGEST_VALUE = 120_000

#: The {…} placeholders that a command may contain. Each is replaced with the value of the matching MQ_… variable.
_PLACEHOLDERS = (
    "routing_key",
    "exchange",
    "original_routing_key",
    "original_exchange",
    "queue",
    "message_id",
    "attempt",
    "redelivered",
)
#: Environment variables that contain the URL of a broker.
_URLS = (b"MQTOOL_URL", b"AMQP_URL", b"MQTOOL_MANAGEMENT_URL")
_PLACEHOLDER = re.compile(r"(?<!\$)\{(" + "|".join(_PLACEHOLDERS) + r")\}")
_UNKNOWN_PLACEHOLDER = re.compile(rf"(?<!\$)\{{(?!(?:{'|'.join(_PLACEHOLDERS)})\}})[a-z_]+\}}")
#: Matches, as a group, an operator such as && or a variable such as $NAME or "${NAME}", which only a shell understands.
#: Also matches other quotes, without a group: they may contain a script, as in sh -c "echo $NAME".
_NAME = r"\$(?:[A-Za-z_]\w*|{[A-Za-z_]\w*})"
_SHELL_SYNTAX = re.compile(rf"""\\.|'[^']*'|"({_NAME})"|"(?:\\.|[^"\\])*"|({_NAME}|[|&;<>()]+)""", re.DOTALL)


class ExecCommand:
    """A command to run for each message. Thread-safe.

    Args:
        command: words as in a shell, with placeholders such as {routing_key}; or, if `shell`, a script for sh.
        shell: run the command with sh. Placeholders are then an error: a routing key must never be run as shell code.
        timeout: seconds after which the program's process group is killed; None for no limit.
        capture: return the program's stdout, limited to this many bytes; None lets it write to mqtool's stdout.
        concurrency: the maximum number of programs that run at once.
        pass_url: keep passwords in URLs that the program inherits in its environment.

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
        if shell and (found := _PLACEHOLDER.search(command)):
            raise UsageError(f"sh would run the value of {found[0]} as code", f'write "$MQ_{found[1].upper()}" instead')
        self._has_placeholders = not shell and any(_PLACEHOLDER.search(word) for word in self._words)
        self._path = "" if _PLACEHOLDER.search(self._words[0]) else _find(self._words[0])
        self._idle: queues.SimpleQueue[Runner] = queues.SimpleQueue()
        runners: list[Runner] = []
        inherited = _inherited(pass_url=pass_url)
        for _ in range(concurrency):
            runners.append(Runner(runners, inherited))
            self._idle.put(runners[-1])

    def run(self, delivery: Delivery) -> Ending:
        """Run the command for a message, and wait until it ends."""
        request = self._request(delivery)
        if isinstance(request, Ending):
            return request
        runner = self._idle.get()
        try:
            return runner.run(request)
        finally:
            self._idle.put(runner)

    def _request(self, delivery: Delivery) -> RunnerRequest | Ending:
        variables = environment_of(delivery)
        words = self._words
        if self._has_placeholders:
            words = [_PLACEHOLDER.sub(lambda found: variables[f"MQ_{found[1].upper()}"], word) for word in words]
        try:
            path = self._path or _find(words[0])
        except UsageError as error:  # the program's name comes from a placeholder: the message is at fault
            return Ending(EX_DATAERR, str(error).encode())
        environment = {name.encode(): _encoded(value) for name, value in variables.items()}
        arguments, is_named_by_message = [*map(_encoded, words)], not self._path
        return RunnerRequest(
            path, arguments, environment, delivery.body, self._timeout, self._capture, is_named_by_message
        )


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--exec {command!r} is not a valid command: {str(error).lower()}") from error
    if not words:
        raise UsageError("--exec is empty", "name the program to run for each message")
    if syntax := [found[1] or found[2] for found in _SHELL_SYNTAX.finditer(command) if found.lastindex]:
        raise UsageError(f"--exec runs no shell, so {syntax[0]!r} would be an argument", "--shell runs it with sh")
    if unknown := _UNKNOWN_PLACEHOLDER.search(command):
        known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
        raise UsageError(f"--exec has an unknown placeholder {unknown[0]}", f"use {known}, or --shell and $MQ_…")
    return words


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.path.isfile(name):  # noqa: PTH113 - Path.is_file() raises an error if the name is too long
            raise UsageError(f"{name!r} is not executable", f"chmod +x {shlex.quote(name)}")
        raise UsageError(f"program {name!r} not found")
    return found


def _inherited(*, pass_url: bool) -> dict[bytes, bytes]:
    """Return mqtool's environment without the passwords in URLs, since crash reports and `ps e` would show them."""
    inherited = dict(os.environb)
    for name in () if pass_url else _URLS:
        if name in inherited:
            inherited[name] = os.fsencode(without_passwords(os.fsdecode(inherited[name])))
    return inherited


def environment_of(delivery: Delivery) -> dict[str, str]:
    """Return the variables for a message: MQ_ROUTING_KEY, MQ_HEADER_… and so on. Non-text values are in JSON."""
    origin = origin_of(delivery)
    environment = {
        "MQ_ROUTING_KEY": _as_text(delivery.routing_key),
        "MQ_EXCHANGE": _as_text(delivery.exchange),
        "MQ_ORIGINAL_ROUTING_KEY": _as_text(origin.routing_key),
        "MQ_ORIGINAL_EXCHANGE": _as_text(origin.exchange),
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
    """Format a value for an environment variable or an argument: without NULs, cut to the length that Linux allows."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else as_json(value)
    return text.replace("\0", "")[:_LONGEST_VALUE]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")[:_LONGEST_VALUE]
