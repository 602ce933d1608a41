"""Processes that run programs, one after another, each for one of the worker's hands.

    worker ── requests ──> runner ── posix_spawn, body ──> program
           <── endings ───        <── stderr, status ─────

Starting a program blocks Python, with all its threads, until the program runs; so each hand has a process of its own
for it. A runner is also a guard: its pipe closes when the worker ends, even by kill -9, and it kills the program then.
The broker gives the worker's messages to another worker, and they must not be done twice. So a runner never blocks, not
even where nobody reads its stderr.
"""

import array
import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

from mqtool.work.stderr import PIPE_SIZE, Stderr

#: sysexits.h: the input is bad.
EX_DATAERR = 65
#: The status that a shell, or env(1), gives to a command that it cannot run, or cannot find.
CANNOT_RUN, NOT_FOUND = 126, 127
#: Bytes to keep of the end of a program's stderr; all of it goes to our stderr.
_KEPT = 2000
#: Seconds for which an ending may wait for others, and after which a program holds up those that come after it.
_MOMENT, _LONG = 0.01, 0.02
#: Seconds between two looks, where the system cannot report the end of a process.
_LOOK = 0.01


class Ending(NamedTuple):
    """How a program ended.

    Attributes:
        status: its exit status; 128 + n if signal n ended it.
        stderr: the end of it.
        stdout: all of it, if it was to be captured.
        timed_out: the time limit in seconds, if we ended it for that.
        too_much: the most it might print, if we ended it for that.
    """

    status: int
    stderr: bytes = b""
    stdout: bytes = b""
    timed_out: float | None = None
    too_much: int | None = None

    @property
    def reason(self) -> str:
        """Why it counts as a failure, in one line."""
        if self.too_much is not None:
            return f"printed more than {self.too_much:,} bytes"
        if self.timed_out is not None:
            what = f"timed out after {self.timed_out:g} s"
        elif self.status > 128:
            what = f"ended by signal {self.status - 128}"
        else:
            what = f"exit status {self.status}"
        lines = [line.strip() for line in self.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"{what}: {lines[-1][:300]}" if lines else what


class Request(NamedTuple):
    """A program to run.

    Attributes:
        words: its arguments, its name first.
        environment: added to the runner's.
        body: its standard input.
        timeout: seconds after which its process group is killed; None for no limit.
        capture: keep its stdout, and kill it if that is more than this many bytes; None passes it to ours.
    """

    path: str
    words: list[bytes]
    environment: dict[bytes, bytes]
    body: bytes
    timeout: float | None
    capture: int | None


class Answer(NamedTuple):
    """What became of some requests.

    Attributes:
        endings: of the next ones, in order.
        given_back: how many will not be begun, all that are left: the one before them takes long, or cannot be run.
    """

    endings: list[Ending]
    given_back: int = 0


class Runner:
    """A process that runs programs; start it before any threads.

    Args:
        others: the runners started before it, whose pipes it must not keep open.
        environment: of its programs, before what their requests add.
    """

    def __init__(self, others: Sequence["Runner"], environment: Mapping[bytes, bytes]) -> None:
        self._pipe, theirs = Pipe()
        if os.fork() == 0:
            for inherited in (self._pipe, *(other._pipe for other in others)):
                inherited.close()
            try:
                _serve(theirs, environment)
            finally:
                os._exit(0)
        theirs.close()

    def run(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Run programs one after another, and say what became of them, until that is known of all."""
        left = len(requests)
        try:
            if left:
                self._pipe.send(requests)
            while left:
                answer: Answer = self._pipe.recv()
                left -= len(answer.endings) + answer.given_back
                yield answer
        except (EOFError, ConnectionError):
            yield Answer([Ending(CANNOT_RUN, b"the process that runs programs was killed")], left - 1)


def _serve(requests: Connection, environment: Mapping[bytes, bytes]) -> None:
    os.setpgid(0, 0)  # Ctrl-C on the terminal is for the worker alone
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    stderr = Stderr()
    while True:
        stderr.write_until_readable(requests.fileno())
        try:
            lot = _Lot(requests)
        except (EOFError, ConnectionError):
            stderr.finish()
            return
        while lot.left:
            stderr.write_until_readable(requests.fileno(), keep=PIPE_SIZE)  # else it could grow with each program
            try:
                ending = _Run(lot, environment, stderr).finish()
            except OSError as error:
                ending = _not_started(error)
            lot.ended(ending)


class _Lot:
    """Requests that came together, and what there is to tell of them.

    Attributes:
        worker: where they come from.
        left: those not begun, the next one last.
    """

    def __init__(self, worker: Connection) -> None:
        self.worker = worker
        self.left: list[Request] = worker.recv()[::-1]
        self._endings: list[Ending] = []
        self._since = 0.0

    @property
    def is_held_up(self) -> bool:
        """Whether anybody waits for the end of the program that runs."""
        return bool(self.left or self._endings)

    def ended(self, ending: Ending) -> None:
        """Tell how a program ended, with others if they end soon."""
        now = time.monotonic()
        if not self._endings:
            self._since = now
        self._endings.append(ending)
        if ending.status in (CANNOT_RUN, NOT_FOUND):
            self.give_back()
        elif not self.left or now - self._since > _MOMENT:
            self._tell(0)

    def give_back(self) -> None:
        """Begin no more of them."""
        count = len(self.left)
        self.left.clear()
        self._tell(count)

    def _tell(self, given_back: int) -> None:
        endings, self._endings = self._endings, []
        with contextlib.suppress(ConnectionError):  # the worker has ended, as the next look at it shows
            self.worker.send(Answer(endings, given_back))


def _not_started(error: OSError) -> Ending:
    if error.errno == errno.E2BIG:  # this message's headers or routing key are too long
        return Ending(EX_DATAERR, b"its headers do not fit into an environment")
    return Ending(NOT_FOUND if error.errno == errno.ENOENT else CANNOT_RUN, str(error).encode())


class _Run:
    """One program, from its start to its end."""

    def __init__(self, lot: _Lot, environment: Mapping[bytes, bytes], our_stderr: Stderr) -> None:
        self._lot = lot
        self._request = request = lot.left.pop()
        self._worker = lot.worker.fileno()
        self._our_stderr = our_stderr
        self._stdout = bytearray()
        self._stderr = b""
        self._too_much: int | None = None
        self._ends: list[int] = []
        self._pipes: dict[int, str] = {}
        try:
            stdin, self._stdin = self._pipe()
            stderr_end, stderr = self._pipe()
            self._pipes[stderr_end] = "stderr"
            actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stderr, 2)]
            theirs = [stdin, stderr]
            if request.capture is not None:
                stdout_end, stdout = self._pipe()
                self._pipes[stdout_end] = "stdout"
                actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
                theirs.append(stdout)
            # Python ignores SIGPIPE; programs expect it to end them.
            self._pid = os.posix_spawn(
                request.path,
                request.words,
                {**environment, **request.environment},
                file_actions=actions,
                setpgroup=0,
                setsigdef=[signal.SIGPIPE],
            )
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

    def finish(self) -> Ending:
        """Write its stdin, read its output, and wait for its end."""
        body, timeout = memoryview(self._request.body), self._request.timeout
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        timed_out = None
        process = _pidfd(self._pid)
        try:
            rest = self._feed(body) if len(body) <= select.PIPE_BUF else body
            if rest:
                os.set_blocking(self._stdin, False)
            while not self._has_ended(process, rest, deadline):
                if self._stdin in self._ends and rest:
                    rest = self._feed(rest)
                if self._lot.is_held_up and time.monotonic() >= started + _LONG:
                    self._lot.give_back()
                if deadline is not None and time.monotonic() >= deadline:
                    timed_out, deadline = timeout, None
                    self._kill()
            _, status = os.waitpid(self._pid, 0)
            self._drain()
        finally:
            self._close_all()
            if process is not None:
                os.close(process)
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        return Ending(code, self._stderr, bytes(self._stdout), timed_out, self._too_much)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def _feed(self, body: memoryview) -> memoryview:
        """Write what the pipe takes; close it at the end, or when the program has closed it."""
        try:
            body = body[os.write(self._stdin, body) :] if body else body
        except BlockingIOError:
            return body
        except BrokenPipeError:  # many programs do not read their stdin
            body = body[:0]
        if not body:
            self._close(self._stdin)
        return body

    def _watched(self, process: int | None, rest: memoryview) -> select.poll:
        """What may happen while the program runs."""
        poll = select.poll()
        poll.register(self._worker, select.POLLIN)
        for end, name in self._pipes.items():
            if end in self._ends and not (name == "stderr" and self._our_stderr.is_full):
                poll.register(end, select.POLLIN)
        if self._our_stderr.waiting:
            poll.register(self._our_stderr.descriptor, select.POLLOUT)
        if rest:
            poll.register(self._stdin, select.POLLOUT)
        if process is not None:
            poll.register(process, select.POLLIN)
        return poll

    def _has_ended(self, process: int | None, rest: memoryview, deadline: float | None) -> bool:
        """Wait for something to happen; return whether it was the end."""
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._lot.is_held_up:
            patience = _LONG if patience is None else min(patience, _LONG)
        if process is None:
            patience = _LOOK
        ended = False
        for end, _ in self._watched(process, rest).poll(None if patience is None else patience * 1000):
            if end == self._worker:  # it sends nothing while a program runs, so it has ended
                self._kill()
                os._exit(0)
            elif end == process:
                ended = True
            elif end in self._pipes:
                self._hear(end)
            elif end == self._our_stderr.descriptor:
                self._our_stderr.write()
        return ended or (process is None and _is_zombie(self._pid))

    def _hear(self, end: int, most: int = PIPE_SIZE) -> int:
        data = os.read(end, min(most, PIPE_SIZE))
        if not data:
            self._close(end)
        elif self._pipes[end] == "stdout":
            self._stdout += data
            if self._request.capture is not None and len(self._stdout) > self._request.capture:
                self._too_much = self._request.capture
                self._stdout.clear()
                self._kill()
        else:
            self._our_stderr.write(data)
            self._stderr = (self._stderr + data)[-_KEPT:]
        return len(data)

    def _drain(self) -> None:
        """Read the rest of its output, but not what processes that it left behind go on to write."""
        for end in self._pipes:
            rest = _readable(end) if end in self._ends else 0
            while rest > 0:
                rest -= self._hear(end, rest)


def _readable(end: int) -> int:
    """Bytes that can be read from a pipe now."""
    count = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, count)
    return count[0]


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old one
        return None


def _is_zombie(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
