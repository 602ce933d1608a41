"""Runners: processes that each run one program at a time. A worker has `concurrency` runners.

    worker ── Request ──> runner ── posix_spawn, body ──> program
           <── Ending ───        <── stderr, status ─────

Python stops all its threads while it starts a program, so the worker starts programs in other processes. If the worker
dies, even by kill -9, the socket to its runner closes. The runner then kills the program's process group, since the
broker delivers the message to another worker. A runner never blocks, not even if its stderr is a pipe that nobody
reads, so it always notices when the socket closes.
"""

import array
import contextlib
import errno
import fcntl
import os
import pickle
import select
import signal
import socket
import stat
import termios
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: The exit status for invalid input (sysexits.h).
EX_DATAERR = 65
#: The exit statuses that shells and env(1) use if they cannot run or cannot find a command.
CANNOT_RUN, NOT_FOUND = 126, 127

#: Errors that starting a certain file always causes, unlike EMFILE: it is not a program, or its interpreter is missing.
_NOT_A_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

#: Bytes to keep from the end of a program's stderr. All of its stderr is also written to mqtool's stderr.
_TAIL = 2000
#: How often to check whether a program has exited, in seconds, on systems without pidfd_open().
_LOOK = 0.01
_PIPE_SIZE = 65536
_STDERR = 2
#: Exceptions raised if the process at the other end of a socket has exited, perhaps while sending.
_CLOSED = (EOFError, ConnectionError, pickle.UnpicklingError)
#: Milliseconds to wait for a reader of mqtool's stderr before giving up.
_PATIENCE = 1000


class RunnerRequest(NamedTuple):
    """A program to run.

    Attributes:
        words: the program's arguments, starting with its name.
        environment: variables to add to those of the runner.
        body: the program's standard input.
        timeout: seconds after which the program's process group is killed; None for no limit.
        capture: return the program's stdout, and kill the program if it prints more bytes than this; None lets it write
            to mqtool's stdout.
        is_named_by_message: the program's name contains a placeholder.
    """

    path: str
    words: list[bytes]
    environment: dict[bytes, bytes]
    body: bytes
    timeout: float | None
    capture: int | None
    is_named_by_message: bool = False


class Ending(NamedTuple):
    """How a program ended.

    Attributes:
        status: the exit status; 128 + n if signal n ended the program.
        stderr: the end of the program's stderr.
        stdout: the program's whole stdout, if captured.
        timed_out: the time limit in seconds, if the program exceeded it.
        too_much: the output limit in bytes, if the program exceeded it.
    """

    status: int
    stderr: bytes = b""
    stdout: bytes = b""
    timed_out: float | None = None
    too_much: int | None = None

    @property
    def reason(self) -> str:
        """Why the program failed, in one line: the exit status and the last line of its stderr."""
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


class Runner:
    """Starts a runner process and sends it requests. Start all runners before any threads, since this calls fork().

    Args:
        others: the runners started earlier. The new process inherits their sockets, and closes them.
        environment: the environment that the programs inherit.
    """

    def __init__(self, others: Sequence["Runner"], environment: Mapping[bytes, bytes]) -> None:
        self._socket, theirs = socket.socketpair()
        self._endings = self._socket.makefile("rb")
        if os.fork() == 0:
            for inherited in (self, *others):
                inherited._endings.close()
                inherited._socket.close()
            try:
                _serve(theirs, environment)
            finally:
                os._exit(0)
        theirs.close()

    def run(self, request: RunnerRequest) -> Ending:
        """Run a program, and wait until it ends."""
        try:
            self._socket.sendall(pickle.dumps(request))
            ending: Ending = pickle.load(self._endings)  # noqa: S301 - from a process that this one forked
        except _CLOSED:
            return Ending(CANNOT_RUN, b"the process that runs programs was killed")
        return ending


def _serve(worker: socket.socket, environment: Mapping[bytes, bytes]) -> None:
    """Run programs until the worker ends. This function, and all code below it, runs in the runner's process."""
    os.setpgid(0, 0)  # Ctrl-C on the terminal is for the worker alone
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # programs inherit what nohup ignores
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stderr, requests = _Stderr(), worker.makefile("rb")
    while True:
        stderr.write_until_readable(worker.fileno())
        try:
            request = pickle.load(requests)  # noqa: S301 - from the process that forked this one
        except _CLOSED:
            stderr.finish()
            return
        stderr.write_until_readable(worker.fileno(), keep=_PIPE_SIZE)  # else it grows with each program
        try:
            ending = _Run(request, environment, worker, stderr).finish()
        except OSError as error:
            ending = _not_started(error, is_named_by_message=request.is_named_by_message)
        with contextlib.suppress(ConnectionError):  # the worker has ended: the next load() raises EOFError
            worker.sendall(pickle.dumps(ending))


def _not_started(error: OSError, *, is_named_by_message: bool) -> Ending:
    if error.errno == errno.E2BIG:  # this message's headers or routing key are too long
        return Ending(EX_DATAERR, b"its headers do not fit into an environment")
    if is_named_by_message and error.errno in _NOT_A_PROGRAM:
        return Ending(EX_DATAERR, str(error).encode())
    return Ending(NOT_FOUND if error.errno == errno.ENOENT else CANNOT_RUN, str(error).encode())


class _Run:
    """Runs one program, from its start to its end.

    Output pipes do not show when a program ends: it may close them early, and processes that it leaves behind may keep
    them open. So the runner keeps both ends of these pipes open, and waits for the program's exit instead.
    """

    def __init__(
        self, request: RunnerRequest, environment: Mapping[bytes, bytes], worker: socket.socket, our_stderr: "_Stderr"
    ) -> None:
        self._request = request
        self._worker = worker
        self._our_stderr = our_stderr
        self._stdout = bytearray()
        self._tail = b""  # of its stderr
        self._too_much: int | None = None
        self._status: int | None = None  # as from waitpid(), once it has exited
        self._body = memoryview(request.body)
        self._open: list[int] = []
        try:
            stdin, self._stdin = self._pipe()
            self._stderr_end, stderr = self._pipe()
            actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stderr, 2)]
            if request.capture is not None:
                self._stdout_end, stdout = self._pipe()
                actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
            if len(self._body) <= select.PIPE_BUF:
                self._feed()  # an empty pipe always has room for this
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

    def finish(self) -> Ending:
        """Write the program's stdin, read its output, and wait until it exits."""
        timeout = self._request.timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        timed_out = None
        try:
            process = _pidfd(self._pid)
            if process is not None:
                self._open.append(process)
            while not self._has_ended(process, deadline):
                if deadline is not None and time.monotonic() >= deadline:
                    timed_out, deadline = timeout, None
                    self._kill()
            status = self._status if self._status is not None else os.waitpid(self._pid, 0)[1]
            self._read_rest()
        finally:
            self._close_all()
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        return Ending(code, self._tail, bytes(self._stdout), timed_out, self._too_much)

    def _has_ended(self, process: int | None, deadline: float | None) -> bool:
        """Wait for input, output or the program's exit, and handle it; return True if the program has exited."""
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if process is None:
            patience = _LOOK
        ended = False
        for end, _ in self._watched(process).poll(None if patience is None else patience * 1000):
            if end == process:
                ended = True
            elif end == self._stderr_end:
                self._read_stderr()
            elif end == self._worker.fileno():  # the worker sends nothing while a program runs, so it has died
                self._kill()
                raise SystemExit
            elif end == self._our_stderr.descriptor:
                self._our_stderr.write()
            elif end == self._stdin:
                self._feed()
            else:
                self._read_stdout()
        return ended or (process is None and self._has_exited())

    def _has_exited(self) -> bool:
        """Without a pidfd: collect the program's status if it has exited."""
        # Not waitid(), which would leave the status for later: macOS has it only from Python 3.13 on.
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._status = status
        return pid != 0

    def _watched(self, process: int | None) -> select.poll:
        poll = select.poll()
        poll.register(self._worker.fileno(), select.POLLIN)
        if process is not None:
            poll.register(process, select.POLLIN)
        if not self._our_stderr.is_full:
            poll.register(self._stderr_end, select.POLLIN)
        if self._our_stderr.waiting:
            poll.register(self._our_stderr.descriptor, select.POLLOUT)
        if self._request.capture is not None:
            poll.register(self._stdout_end, select.POLLIN)
        if self._body:
            poll.register(self._stdin, select.POLLOUT)
        return poll

    def _feed(self) -> None:
        """Write as much as possible to the program's stdin. Close it if all is written or the program has closed it."""
        try:
            self._body = self._body[os.write(self._stdin, self._body) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # many programs do not read their stdin
            self._body = self._body[:0]
        if not self._body:
            self._close(self._stdin)

    def _read_stderr(self, most: int = _PIPE_SIZE) -> int:
        data = os.read(self._stderr_end, min(most, _PIPE_SIZE))
        self._our_stderr.write(data)
        self._tail = (self._tail + data)[-_TAIL:]
        return len(data)

    def _read_stdout(self, most: int = _PIPE_SIZE) -> int:
        data = os.read(self._stdout_end, min(most, _PIPE_SIZE))
        self._stdout += data
        if self._request.capture is not None and len(self._stdout) > self._request.capture:
            self._too_much = self._request.capture
            self._stdout.clear()
            self._kill()
        return len(data)

    def _read_rest(self) -> None:
        """Read what the pipes contain now. Later output can only come from processes that the program left behind."""
        rest = _readable(self._stderr_end)
        while rest > 0:
            rest -= self._read_stderr(rest)
        rest = _readable(self._stdout_end) if self._request.capture is not None else 0
        while rest > 0:
            rest -= self._read_stdout(rest)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open += ends
        return ends

    def _close(self, end: int) -> None:
        self._open.remove(end)
        os.close(end)

    def _close_all(self) -> None:
        for end in self._open:
            os.close(end)


class _Stderr:
    """Writes to mqtool's stderr without blocking. Data that cannot be written at once is kept and written later."""

    def __init__(self) -> None:
        self.descriptor = _STDERR
        self.waiting = bytearray()
        mode = os.fstat(_STDERR).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            # Open it again: O_NONBLOCK on our descriptor would affect all processes that share it.
            with contextlib.suppress(OSError):
                self.descriptor = os.open(f"/dev/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        # systemd's journal is a socket.
        self._socket = socket.socket(fileno=os.dup(_STDERR)) if stat.S_ISSOCK(mode) else None

    @property
    def is_full(self) -> bool:
        """True if so much data is waiting that no more of the program's stderr should be read yet."""
        return len(self.waiting) >= _PIPE_SIZE

    def write(self, data: bytes = b"") -> None:
        """Write as much as possible of the waiting data, then of `data`, without blocking; keep the rest."""
        self.waiting += data
        try:
            if self._socket is not None:
                taken = self._socket.send(self.waiting, socket.MSG_DONTWAIT)
            else:
                taken = os.write(self.descriptor, self.waiting)
            del self.waiting[:taken]
        except BlockingIOError:
            return
        except OSError:  # nobody reads stderr; the program continues
            self.waiting.clear()

    def finish(self) -> None:
        """Write the waiting data; give up if nobody reads it."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        while self.waiting and poll.poll(_PATIENCE):
            self.write()

    def write_until_readable(self, end: int, keep: int = 0) -> None:
        """Write the waiting data, except `keep` bytes; stop as soon as `end` is readable."""
        while len(self.waiting) > keep:
            poll = select.poll()
            poll.register(end, select.POLLIN)
            poll.register(self.descriptor, select.POLLOUT)
            if end in [ready for ready, _ in poll.poll()]:
                return
            self.write()


def _readable(end: int) -> int:
    """Return the number of bytes that can be read from a pipe now."""
    count = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, count)
    return count[0]


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old kernel
        return None
