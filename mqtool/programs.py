"""Programs that are run for messages: the body on stdin, the rest in the environment, the answer in the exit status.

    delivery ──> MQ_ROUTING_KEY=… MQ_HEADER_TENANT=… program < body ──> 0, 65, 75, …

A program runs in a process group of its own, so that Ctrl-C reaches the worker alone, which then finishes the message
in hand, and so that --timeout reaches whatever the program has started. A worker that is killed takes its programs with
it (see Guard): what it had in hand goes to another worker, and must not be done by both.
"""

import contextlib
import errno
import functools
import json
import os
import re
import select
import shlex
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mqtool.errors import UsageError
from mqtool.history import attempt_of, origin_of
from mqtool.message import PROPERTIES, Delivery

#: sysexits.h
EX_DATAERR, EX_TEMPFAIL = 65, 75
#: What a shell, or env(1), answers for a command that cannot be run, or is not there.
CANNOT_RUN, NOT_FOUND = 126, 127
#: Bytes of a program's stderr that are kept, its end; all of it goes to our stderr as it comes.
_KEPT = 2000
#: Bytes that an environment variable may have on Linux (MAX_ARG_STRLEN), less room for its name.
_LONGEST_VALUE = 120_000
_PIPE_SIZE = 65536
#: Where the system cannot tell us of a process's end, seconds between two looks.
_LOOK = 0.01

#: What {…} may stand for in a command: the variables of the same names.
_PLACES = ("routing_key", "exchange", "queue", "message_id", "attempt", "redelivered")
_PLACE = re.compile(r"(?<!\$)\{(" + "|".join(_PLACES) + r")\}")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended.

    Attributes:
        status: its exit status; 128 + n if signal n ended it.
        stderr: the end of what it said there.
        stdout: all that it said there, where that was asked for.
        timed_out: we ended it, as it took too long.
    """

    status: int
    stderr: bytes = b""
    stdout: bytes = b""
    timed_out: float | None = None

    @property
    def reason(self) -> str:
        """Why it counts as a failure, in one line."""
        if self.timed_out is not None:
            what = f"timed out after {self.timed_out:g} s"
        elif self.status > 128:
            what = f"ended by signal {self.status - 128}"
        else:
            what = f"exit status {self.status}"
        lines = [line.strip() for line in self.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"{what}: {lines[-1][:300]}" if lines else what


class Program:
    """A command to run for each message.

    Args:
        command: words as in a shell, with places such as {routing_key} in them; or, with shell, a script for sh.
        shell: have sh read it. Places are refused then: a routing key must never be read as shell code.
        timeout: seconds after which its process group is killed; None for no limit.
        capture: keep its stdout instead of letting it through to ours.

    Raises:
        UsageError: it cannot be a command, or there is no such program.
    """

    def __init__(
        self, command: str, *, shell: bool = False, timeout: float | None = None, capture: bool = False
    ) -> None:
        self._timeout = timeout
        self._capture = capture
        self._words = ["/bin/sh", "-c", command] if shell else _words(command)
        if shell and (place := _PLACE.search(command)):
            raise UsageError(
                f"a shell would read what stands for {place[0]} as code", f'write "$MQ_{place[1].upper()}" instead'
            )
        self._has_places = not shell and any(_PLACE.search(word) for word in self._words)
        self._path = "" if _PLACE.search(self._words[0]) else _find(self._words[0])
        self._environment = dict(os.environ)
        self._guard = Guard()

    def run(self, delivery: Delivery) -> Ending:
        """Run it for a message, to its end. May be called from several threads at once."""
        ours = environment_of(delivery)
        words = self._words
        if self._has_places:
            words = [_PLACE.sub(lambda place: ours[f"MQ_{place[1].upper()}"].replace("\0", ""), word) for word in words]
        try:
            path = self._path or _find(words[0])
            return _Run(path, words, {**self._environment, **ours}, self._capture, self._guard).finish(
                delivery.body, self._timeout
            )
        except UsageError as error:
            return Ending(NOT_FOUND, str(error).encode())
        except OSError as error:
            if error.errno == errno.E2BIG:  # it is this message's headers or routing key that are too much
                return Ending(EX_DATAERR, b"its headers do not fit into an environment")
            return Ending(NOT_FOUND if error.errno == errno.ENOENT else CANNOT_RUN, str(error).encode())


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--exec {command!r} is no command: {str(error).lower()}") from error
    if not words:
        raise UsageError("--exec is empty", "name the program to run for each message")
    return words


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UsageError(
            f"there is no program {name!r} that could be run",
            "a pipe, a variable or another shell construct needs --shell" if re.search(r"[|;&$<>]", name) else None,
        )
    return found


def environment_of(delivery: Delivery) -> dict[str, str]:
    """MQ_ROUTING_KEY, MQ_HEADER_…, and so on. Values that are no text are JSON."""
    origin = origin_of(delivery)
    environment = {
        "MQ_ROUTING_KEY": origin.routing_key,
        "MQ_EXCHANGE": origin.exchange,
        "MQ_QUEUE": delivery.queue,
        "MQ_REDELIVERED": "1" if delivery.redelivered else "0",
        "MQ_ATTEMPT": str(attempt_of(delivery)),
        "MQ_MESSAGE_ID": "",
    }
    for name in PROPERTIES:
        value = delivery.properties.get(name)
        if value is not None and name != "headers":
            environment[f"MQ_{name.upper()}"] = _as_text(value)
    for name, value in delivery.headers.items():
        environment[_header_variable(name)] = _as_text(value)
    return environment


@functools.lru_cache(1024)
def _header_variable(name: str) -> str:
    return "MQ_HEADER_" + re.sub(r"\W", "_", name, flags=re.ASCII).upper()


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return str(value).replace("\0", "")[:_LONGEST_VALUE]


class _Run:
    """One process, from its start to its end."""

    def __init__(
        self, path: str, words: list[str], environment: Mapping[str, str], capture: bool, guard: "Guard"
    ) -> None:
        self._guard = guard
        self._kept = {"stdout": b"", "stderr": b""}
        self._ends: list[int] = []
        self._pipes: dict[int, str] = {}
        try:
            stdin, self._stdin = self._pipe()
            stderr_end, stderr = self._pipe()
            self._pipes[stderr_end] = "stderr"
            actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stderr, 2)]
            theirs = [stdin, stderr]
            if capture:
                stdout_end, stdout = self._pipe()
                self._pipes[stdout_end] = "stdout"
                actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
                theirs.append(stdout)
            # Python ignores SIGPIPE; a program expects to die of it.
            self._pid = os.posix_spawn(
                path, words, environment, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGPIPE]
            )
            guard.started(self._pid)
            for end in theirs:
                self._close(end)
        except BaseException:
            self._close_all()
            raise

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._ends += ends
        return ends

    def _close(self, end: int) -> None:
        self._ends.remove(end)
        os.close(end)

    def _close_all(self) -> None:
        for end in list(self._ends):
            self._close(end)

    def finish(self, body: bytes, timeout: float | None) -> Ending:
        """Feed it, hear it, and wait for its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        timed_out = None
        process = _pidfd(self._pid)
        try:
            rest = self._feed(memoryview(body)) if len(body) <= select.PIPE_BUF else memoryview(body)
            if rest:
                os.set_blocking(self._stdin, False)
            while not self._has_ended(process, rest, deadline):
                if self._stdin in self._ends and rest:
                    rest = self._feed(rest)
                if deadline is not None and time.monotonic() >= deadline:
                    timed_out, deadline = timeout, None
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._pid, signal.SIGKILL)
            self._guard.ended(self._pid)
            _, status = os.waitpid(self._pid, 0)
            self._drain()
        finally:
            self._close_all()
            if process is not None:
                os.close(process)
        code = os.waitstatus_to_exitcode(status)
        return Ending(128 - code if code < 0 else code, self._kept["stderr"], self._kept["stdout"], timed_out)

    def _feed(self, body: memoryview) -> memoryview:
        """Write what the pipe takes; close it at the end, or where the program does not want more."""
        try:
            body = body[os.write(self._stdin, body) :] if body else body
        except BlockingIOError:
            return body
        except BrokenPipeError:  # many programs do not read their stdin
            body = body[:0]
        if not body:
            self._close(self._stdin)
        return body

    def _has_ended(self, process: int | None, rest: memoryview, deadline: float | None) -> bool:
        """Wait for something to happen; whether it was the end."""
        poll = select.poll()
        for end in self._pipes:
            if end in self._ends:
                poll.register(end, select.POLLIN)
        if rest:
            poll.register(self._stdin, select.POLLOUT)
        if process is not None:
            poll.register(process, select.POLLIN)
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if process is None:
            patience = _LOOK
        ended = False
        for end, _ in poll.poll(None if patience is None else patience * 1000):
            if end == process:
                ended = True
            elif end in self._pipes:
                self._hear(end)
        return ended or (process is None and _is_zombie(self._pid))

    def _hear(self, end: int) -> None:
        data = os.read(end, _PIPE_SIZE)
        if not data:
            self._close(end)
        elif self._pipes[end] == "stdout":
            self._kept["stdout"] += data
        else:
            with contextlib.suppress(OSError):  # nobody reads our stderr: the program goes on all the same
                os.write(2, data)
            self._kept["stderr"] = (self._kept["stderr"] + data)[-_KEPT:]

    def _drain(self) -> None:
        """What it said last; not what a process that it left behind may still say."""
        for end in self._pipes:
            while end in self._ends and select.select([end], [], [], 0)[0]:
                self._hear(end)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # no Linux, or an old one
        return None


def _is_zombie(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Guard:
    """A small process that outlives us by an instant: when we die, however that is, it kills the programs we ran.

    It holds the other end of a pipe, which the system closes for us even after kill -9. It is forked before there are
    any threads.
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
        """A process group has begun."""
        self._tell(b"+%d\n" % group)

    def ended(self, group: int) -> None:
        """Its leader has ended. To be told before it is reaped: after that its number may be somebody else's."""
        self._tell(b"-%d\n" % group)

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._writing, line)


def _watch(reading: int) -> None:
    os.setsid()  # Ctrl-C is not for us
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # whoever reads the worker's output shall not wait for us
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
