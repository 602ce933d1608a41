"""What a runner does in its own process: it starts a program, hears what it says, and waits for its end."""

import array
import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

from mqtool.work.endings import CANNOT_RUN, EX_DATAERR, NOT_FOUND, Answer, Ending, Request
from mqtool.work.stderr import PIPE_SIZE, Stderr

#: Bytes to keep of the end of a program's stderr; all of it goes to our stderr.
_KEPT = 2000
#: Seconds for which an ending may wait for others, and after which a program holds up those that come after it.
_MOMENT, _LONG = 0.05, 0.02
#: Seconds between two looks, where the system cannot report the end of a process.
_LOOK = 0.01


def serve(requests: Connection, environment: Mapping[bytes, bytes]) -> None:
    """Run what is requested, until the worker ends."""
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
    """One program, from its start to its end.

    We keep the ends of its output pipes open ourselves: so it is only its end that ends it, not that it says no more.
    """

    def __init__(self, lot: _Lot, environment: Mapping[bytes, bytes], our_stderr: Stderr) -> None:
        self._lot = lot
        self._request = request = lot.left.pop()
        self._our_stderr = our_stderr
        self._stdout = bytearray()
        self._stderr = b""
        self._too_much: int | None = None
        self._body = memoryview(request.body)
        self._ends: list[int] = []
        try:
            stdin, self._stdin = self._pipe()
            self._hears, stderr = self._pipe()
            actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stderr, 2)]
            if request.capture is not None:
                self._captures, stdout = self._pipe()
                actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
            if len(self._body) <= select.PIPE_BUF:
                self._feed()  # a pipe always takes that
            # Python ignores SIGPIPE; programs expect it to end them.
            self._pid = os.posix_spawn(
                request.path,
                request.words,
                {**environment, **request.environment},
                file_actions=actions,
                setpgroup=0,
                setsigdef=(signal.SIGPIPE,),
            )
            if self._body:
                self._close(stdin)
                os.set_blocking(self._stdin, False)
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
        for end in self._ends:
            os.close(end)

    def finish(self) -> Ending:
        """Write its stdin, read its output, and wait for its end."""
        timeout = self._request.timeout
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        timed_out = None
        try:
            process = _pidfd(self._pid)
            if process is not None:
                self._ends.append(process)
            while not self._has_ended(process, deadline):
                now = time.monotonic()
                if self._lot.is_held_up and now >= started + _LONG:
                    self._lot.give_back()
                if deadline is not None and now >= deadline:
                    timed_out, deadline = timeout, None
                    self._kill()
            _, status = os.waitpid(self._pid, 0)
            self._drain()
        finally:
            self._close_all()
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        return Ending(code, self._stderr, bytes(self._stdout), timed_out, self._too_much)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def _feed(self) -> None:
        """Write what its stdin takes; close that at the end, or when the program has closed it."""
        try:
            self._body = self._body[os.write(self._stdin, self._body) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # many programs do not read their stdin
            self._body = self._body[:0]
        if not self._body:
            self._close(self._stdin)

    def _watched(self, process: int | None) -> select.poll:
        """What may happen while the program runs."""
        poll = select.poll()
        poll.register(self._lot.worker.fileno(), select.POLLIN)
        if process is not None:
            poll.register(process, select.POLLIN)
        if not self._our_stderr.is_full:
            poll.register(self._hears, select.POLLIN)
        if self._our_stderr.waiting:
            poll.register(self._our_stderr.descriptor, select.POLLOUT)
        if self._request.capture is not None:
            poll.register(self._captures, select.POLLIN)
        if self._body:
            poll.register(self._stdin, select.POLLOUT)
        return poll

    def _has_ended(self, process: int | None, deadline: float | None) -> bool:
        """Wait for something to happen; return whether it was the end."""
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._lot.is_held_up:
            patience = _LONG if patience is None else min(patience, _LONG)
        if process is None:
            patience = _LOOK
        ended = False
        for end, _ in self._watched(process).poll(None if patience is None else patience * 1000):
            if end == process:
                ended = True
            elif end == self._hears:
                self._hear()
            elif end == self._lot.worker.fileno():  # it sends nothing while a program runs, so it has ended
                self._kill()
                os._exit(0)
            elif end == self._our_stderr.descriptor:
                self._our_stderr.write()
            elif end == self._stdin:
                self._feed()
            else:
                self._capture()
        return ended or (process is None and _is_zombie(self._pid))

    def _hear(self, most: int = PIPE_SIZE) -> int:
        data = os.read(self._hears, min(most, PIPE_SIZE))
        self._our_stderr.write(data)
        self._stderr = (self._stderr + data)[-_KEPT:]
        return len(data)

    def _capture(self, most: int = PIPE_SIZE) -> int:
        data = os.read(self._captures, min(most, PIPE_SIZE))
        self._stdout += data
        if self._request.capture is not None and len(self._stdout) > self._request.capture:
            self._too_much = self._request.capture
            self._stdout.clear()
            self._kill()
        return len(data)

    def _drain(self) -> None:
        """Read the rest of its output, but not what processes that it left behind go on to write."""
        rest = _readable(self._hears)
        while rest > 0:
            rest -= self._hear(rest)
        rest = _readable(self._captures) if self._request.capture is not None else 0
        while rest > 0:
            rest -= self._capture(rest)


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
