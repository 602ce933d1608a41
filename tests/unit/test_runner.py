"""Programs that a worker runs: their input and output, how they end, and how their stderr reaches mqtool's stderr."""

import contextlib
import errno
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mqtool.work import runner as runners
from mqtool.work.runner import Ending, Runner, RunnerRequest, _not_started, _Run, _serve, _Stderr
from tests.open_files import open_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these tests use /proc; see test_without_linux.py")

PIPE_SIZE = 65536
PIDFD_OPEN: Any = getattr(os, "pidfd_open", None)
PATH = {b"PATH": os.environb[b"PATH"]}


def shell(script: str, body: bytes = b"", **more: Any) -> RunnerRequest:
    """A request for a script of the shell."""
    given: dict[str, Any] = {"environment": {}, "timeout": None, "capture": 10_000_000, **more}
    return RunnerRequest("/bin/sh", [b"sh", b"-c", script.encode()], body=body, **given)


@pytest.fixture
def worker() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The socket between a worker and its runner: the worker's end and the runner's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def run(worker: tuple[socket.socket, socket.socket]) -> Callable[..., Ending]:
    """Runs a program in this process, as a runner does."""

    def of(request: RunnerRequest, environment: dict[bytes, bytes] = PATH) -> Ending:
        return _Run(request, environment, worker[1], _Stderr()).finish()

    return of


@pytest.fixture(autouse=True)
def _closes_what_it_opens(worker: tuple[socket.socket, socket.socket]) -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() <= before, "file descriptors stayed open"


def wait_for_the_end(pid: int) -> None:
    """Wait until a process that another process has started has ended."""
    with contextlib.suppress(ProcessLookupError):
        ending = PIDFD_OPEN(pid)
        assert select.select([ending], [], [], 30)[0], "the process still runs"
        os.close(ending)


# How a program ends


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (Ending(3), "exit status 3"),
        (Ending(128), "exit status 128"),
        (Ending(129), "ended by signal 1"),
        (Ending(137, b"oops\n"), "ended by signal 9: oops"),
        (Ending(1, b"first\n  last  \n\n \n"), "exit status 1: last"),
        (Ending(1, b" \n"), "exit status 1"),
        (Ending(1, b"\xff" + b"x" * 400), f"exit status 1: \ufffd{'x' * 299}"),
        (Ending(137, b"e", b"", 0.5), "timed out after 0.5 s: e"),
        (Ending(137, b"e", b"", 60.0), "timed out after 60 s: e"),
        (Ending(137, b"e", b"", 60.0, 1000), "printed more than 1,000 bytes"),
        (Ending(137, b"e", b"", None, 0), "printed more than 0 bytes"),
    ],
)
def test_the_reason_for_a_failure_is_the_exit_status_and_the_last_line_of_stderr(ending: Ending, reason: str) -> None:
    """If a program that `worker` runs fails, the reason for the failure says how the program ended: with an exit
    status, by a signal, or because it exceeded a limit. Unless the program printed too much, the reason also quotes
    up to 300 characters of the last line of its stderr that is not blank.
    """
    assert ending.reason == reason


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_the_status_of_a_program_that_a_signal_has_ended_is_128_plus_the_signals_number(
    run: Callable[..., Ending], script: str, status: int
) -> None:
    """The status of a program that `worker` runs is its exit status or, if a signal ended it, 128 plus the signal's
    number.
    """
    assert run(shell(script)) == Ending(status)


def test_a_program_gets_the_message_on_stdin_and_its_output_is_returned(run: Callable[..., Ending]) -> None:
    """A program that `worker` runs gets the body of the message on stdin. The worker gets the program's exit status,
    stdout and stderr.
    """
    assert run(shell("cat; echo problem >&2; exit 4", b"job")) == Ending(4, b"problem\n", b"job")


def test_a_program_has_the_environment_of_mqtool_and_the_variables_of_its_message(run: Callable[..., Ending]) -> None:
    """A program that `worker` runs inherits mqtool's environment variables, and gets additional variables that describe
    its message. If two variables have the same name, the program gets the message's.
    """
    request = shell("echo $A $B $C", environment={b"B": b"2", b"C": b"3"})
    assert run(request, {b"A": b"1", b"B": b"x"}).stdout == b"1 2 3\n"


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 65536, 65537, 1_000_000])
def test_a_program_can_read_and_print_a_body_of_any_size(run: Callable[..., Ending], size: int) -> None:
    """A program that `worker` runs can read the whole body of a message from its stdin until the end of file, whatever
    the size. If the program prints the body, the worker gets all of it.
    """
    body = os.urandom(size)
    assert run(shell("cat", body)) == Ending(0, b"", body)


@pytest.mark.parametrize("script", ["exit 0", "exec <&-; sleep 0.05", "head -c 5"])
def test_a_program_need_not_read_its_input(run: Callable[..., Ending], script: str) -> None:
    """If a program that `worker` runs does not read a large body to the end, or closes its stdin, the worker still gets
    the program's exit status and output.
    """
    ending = run(shell(script, b"x" * 1_000_000))
    assert (ending.status, ending.stderr) == (0, b"")
    assert ending.stdout == (b"xxxxx" if "head" in script else b"")


def test_the_end_of_stderr_is_returned_and_all_of_it_is_shown(
    run: Callable[..., Ending], capfd: pytest.CaptureFixture[str]
) -> None:
    """The result of a program that `worker` runs contains the last 2,000 bytes of the program's stderr. All of its
    stderr is written to mqtool's stderr.
    """
    ending = run(shell("printf '%070000d' 1 >&2; printf end >&2"))
    assert ending.stderr == b"0" * 1996 + b"1end"
    assert capfd.readouterr().err == "0" * 69_999 + "1end"


def test_a_program_whose_output_is_not_captured_writes_to_mqtools_stdout(
    run: Callable[..., Ending], capfd: pytest.CaptureFixture[str]
) -> None:
    """If `worker` does not capture the stdout of a program, the program writes directly to mqtool's stdout, and the
    program's result contains no stdout.
    """
    assert run(shell("echo out; echo err >&2", capture=None)) == Ending(0, b"err\n")
    assert capfd.readouterr() == ("out\n", "err\n")


@pytest.mark.parametrize("limit", [99_999, 100_000, 0])
def test_a_program_that_prints_too_much_is_killed(run: Callable[..., Ending], limit: int) -> None:
    """If a program that `worker` runs prints more bytes than its limit allows, the program is killed and its stdout is
    discarded. A program that prints exactly as many bytes as its limit allows is not killed.
    """
    began = time.monotonic()
    ending = run(shell(f"printf '%0100000d' 1{'; exec sleep 60' if limit < 100_000 else ''}", capture=limit))
    if limit == 100_000:
        assert (ending.status, len(ending.stdout), ending.too_much) == (0, 100_000, None)
        return
    assert ending == Ending(137, b"", b"", None, limit)
    assert time.monotonic() - began < 50


def test_a_program_that_exits_right_after_it_has_printed_too_much_has_exceeded_the_limit(
    run: Callable[..., Ending],
) -> None:
    """If a program that `worker` runs prints more bytes than its limit allows, and exits immediately after that, the
    result says that the program exceeded the limit. The program's stdout is discarded.
    """
    ending = run(shell("printf 12345", capture=4))
    assert (ending.stdout, ending.too_much) == (b"", 4)


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_program_and_its_child_processes_are_killed_at_the_timeout(
    run: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, has_pidfd: bool
) -> None:
    """When a program that `worker` runs reaches its timeout, all processes of its process group are killed. The
    worker gets the output that the program printed before the timeout.
    """
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    printed, start = tmp_path / "printed", iter([0.0])
    monkeypatch.setattr(runners, "time", SimpleNamespace(monotonic=lambda: next(start, 60.0 * printed.exists())))
    # The last echo wakes the runner after the time has passed.
    ending = run(shell(f"sleep 60 & echo err >&2; echo $!; : > {printed}; echo; wait", timeout=30.0))
    assert ending[:2] == (137, b"err\n")
    assert (ending.timed_out, ending.too_much) == (30.0, None)
    wait_for_the_end(int(ending.stdout))


def test_a_timeout_that_is_not_reached_has_no_effect(run: Callable[..., Ending]) -> None:
    """A program that `worker` runs does not count as timed out if it exits before its timeout."""
    assert run(shell("exit 3", timeout=60.0)) == Ending(3)


@pytest.mark.parametrize("error", ["missing", "fails"])
def test_a_programs_end_is_noticed_on_systems_without_pidfd(
    run: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """If pidfd_open() does not exist or fails, a worker still notices when a program ends, and gets its exit status and
    output.
    """

    def fails(_: int) -> int:
        raise OSError(errno.ENOSYS, "no")

    if error == "missing":
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", fails)
    assert run(shell("cat; echo err >&2; sleep 0.05; exit 3", b"x" * 100_000)) == Ending(3, b"err\n", b"x" * 100_000)
    assert run(shell("kill -9 $$")).status == 137


@pytest.mark.parametrize("size", [0, 1, 50_000])
def test_what_a_program_prints_just_before_it_exits_is_not_lost(
    run: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """`worker` gets all of a program's stdout and the last 2,000 bytes of its stderr, even if the program writes them
    just before it exits.
    """

    def only_the_exit(_self: _Run, process: int) -> select.poll:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return poll

    monkeypatch.setattr(_Run, "_watched", only_the_exit)  # the output comes after the runner has looked for it
    ending = run(shell(f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2"))
    assert (len(ending.stdout), len(ending.stderr)) == (size, min(size, 2000))


def test_a_program_counts_as_ended_even_if_its_child_process_keeps_its_output_open(run: Callable[..., Ending]) -> None:
    """A program that `worker` runs counts as ended when its own process ends, even if a child process of the program is
    still running and keeps the program's stdout open.
    """
    began = time.monotonic()
    ending = run(shell("sleep 60 & echo $!"))
    assert time.monotonic() - began < 50
    os.kill(int(ending.stdout), signal.SIGKILL)


def test_a_program_has_its_own_process_group_and_the_default_for_sigpipe(run: Callable[..., Ending]) -> None:
    """A program that `worker` runs is the leader of a new process group. As in a shell, SIGPIPE ends the program."""
    fields = run(shell("cat /proc/$$/stat")).stdout.decode().rpartition(") ")[2].split()
    own = run(shell("echo $$; cat /proc/$$/stat")).stdout.decode().splitlines()
    assert own[1].rpartition(") ")[2].split()[2] == own[0]
    assert int(fields[2]) != os.getpgid(0)
    ignored = next(
        line for line in run(shell("cat /proc/$$/status")).stdout.decode().splitlines() if line.startswith("SigIgn")
    )
    assert not int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1))


def test_a_program_that_closes_its_output_early_keeps_running(run: Callable[..., Ending]) -> None:
    """If a program that `worker` runs closes its stdout and stderr, the worker waits until the program exits, and gets
    its exit status.
    """
    assert run(shell("exec >&- 2>&-; sleep 0.1; exit 5")).status == 5


def test_a_program_is_killed_if_its_worker_dies() -> None:
    """`worker` starts its programs through a separate process, called a runner. If `worker` is killed, the runner kills
    the running program and exits.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        running = _Run(shell("exec sleep 60"), PATH, theirs, _Stderr())
        ours.close()
        with pytest.raises(SystemExit):
            running.finish()
    assert os.waitstatus_to_exitcode(os.waitpid(running._pid, 0)[1]) == -9


def test_no_pipe_stays_open_if_a_program_cannot_be_started(run: Callable[..., Ending]) -> None:
    """If a program that `worker` runs cannot be started, all pipes that were opened for the program are closed."""
    with pytest.raises(FileNotFoundError):
        run(shell("")._replace(path="/does/not/exist"))


@pytest.mark.parametrize(
    ("number", "is_named_by_message", "ending"),
    [
        (errno.E2BIG, False, Ending(65, b"its headers do not fit into an environment")),
        (errno.ENOENT, False, Ending(127, b"[Errno 2] why")),
        (errno.EACCES, False, Ending(126, b"[Errno 13] why")),
        (errno.ENOENT, True, Ending(65, b"[Errno 2] why")),
        (errno.EACCES, True, Ending(65, b"[Errno 13] why")),
        (errno.EMFILE, True, Ending(126, b"[Errno 24] why")),
    ],
)
def test_a_program_that_cannot_be_started_has_the_exit_status_of_a_shell_or_65(
    number: int, ending: Ending, *, is_named_by_message: bool
) -> None:
    """If `worker` cannot start a program, the exit status is that of a shell: 127 if the program is not found, 126 if
    it cannot be executed. It is 65 if the message is the cause: its headers do not fit into the environment, or the
    name of the program is taken from the message, and there is no such program.
    """
    assert _not_started(OSError(number, "why"), is_named_by_message=is_named_by_message) == ending


# A runner and its worker


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Ending]]]:
    """Serves requests in this process, as a runner does, and returns the endings."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(os, "setpgid", lambda *given: calls.append(("setpgid", *given)))
    monkeypatch.setattr(signal, "signal", lambda *given: calls.append(("signal", *given)))

    def serve(*requests: RunnerRequest, environment: dict[bytes, bytes] = PATH) -> list[Ending]:
        ours, theirs = socket.socketpair()
        endings: list[Ending] = []

        def ask() -> None:
            with ours, ours.makefile("rb") as answers:
                for request in requests:
                    ours.sendall(pickle.dumps(request))
                    endings.append(pickle.load(answers))

        thread = threading.Thread(target=ask)
        thread.start()
        with theirs:
            _serve(theirs, environment)
        thread.join()
        return endings

    yield serve
    signals = [("signal", number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert calls == [("setpgid", 0, 0), *signals]


def test_a_runner_runs_one_program_after_another_until_its_worker_ends(
    served: Callable[..., list[Ending]], capfd: pytest.CaptureFixture[str]
) -> None:
    """A runner is a process that runs programs for `worker`, one after another, until the worker ends. If a program
    cannot be started, the runner continues with the next one. The runner has its own process group, so that Ctrl-C
    reaches only the worker. For SIGINT, SIGTERM and SIGHUP, the runner uses the default handlers.
    """
    missing = shell("")._replace(path="/does/not/exist")
    endings = served(
        shell("cat; echo err >&2", b"1"), missing, shell("exit 3"), shell("echo $A", environment={b"A": b"1"})
    )
    assert endings[0] == Ending(0, b"err\n", b"1")
    assert endings[1].status == 127
    assert b"/does/not/exist" in endings[1].stderr or b"No such file" in endings[1].stderr
    assert endings[2:] == [Ending(3), Ending(0, b"", b"1\n")]
    assert capfd.readouterr().err == "err\n"


class Started:
    """A runner in its own process."""

    def __init__(self, *others: "Started", **environment: str) -> None:
        added = {name.encode(): value.encode() for name, value in environment.items()}
        self.runner = Runner([other.runner for other in others], PATH | added)
        self.pid = int(self.runner.run(shell("echo $PPID")).stdout)

    def close(self) -> None:
        """Close the worker's end of the socket."""
        self.runner._endings.close()
        self.runner._socket.close()

    def has_ended(self) -> bool:
        """True once the process has ended, which may take a moment."""
        wait_for_the_end(self.pid)
        return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid


def test_a_program_has_exit_status_126_if_its_runner_was_killed() -> None:
    """`worker` starts its programs through separate processes, called runners. If a runner was killed, the next program
    that it should have started is not run, and counts as having exited with 126. The other runners are not affected.
    """
    first = Started(A="a")
    second = Started(first)
    assert first.runner.run(shell("echo $A")).stdout == b"a\n"
    assert len({os.getpid(), first.pid, second.pid}) == 3
    os.kill(second.pid, signal.SIGKILL)
    assert second.has_ended()
    assert second.runner.run(shell("exit 0")) == Ending(126, b"the process that runs programs was killed")
    assert first.runner.run(shell("exit 3")) == Ending(3)
    second.close()
    first.close()
    assert first.has_ended()


def test_a_runner_ends_with_its_worker_even_if_a_later_runner_has_inherited_its_socket() -> None:
    """A runner is a process that runs programs for `worker`, and ends when the worker closes its socket to the runner.
    A runner that was started later may have inherited this socket, but does not keep the first runner alive.
    """
    first = Started()
    second = Started(first)
    first.close()
    assert first.has_ended()
    assert second.runner.run(shell("exit 3")) == Ending(3)
    second.close()
    assert second.has_ended()


# mqtool's stderr


@contextlib.contextmanager
def as_stderr(end: int) -> Iterator[None]:
    """Make this file descriptor the process's stderr."""
    kept = os.dup(2)
    os.dup2(end, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@pytest.fixture
def pipe() -> Iterator[tuple[_Stderr, int]]:
    """A stderr that is a pipe, and the other end of the pipe."""
    reading, writing = os.pipe()
    with as_stderr(writing):
        os.close(writing)
        stderr = _Stderr()
        try:
            yield stderr, reading
        finally:
            os.close(stderr.descriptor)
            with contextlib.suppress(OSError):
                os.close(reading)


def test_a_runner_does_not_block_if_mqtools_stderr_is_a_full_pipe(pipe: tuple[_Stderr, int]) -> None:
    """A runner is a process that runs programs for `worker`. If mqtool's stderr is a full pipe, the runner does not
    block: it keeps the program's stderr in memory, and writes it when there is room in the pipe. File descriptor 2
    stays in blocking mode, because other processes share it.
    """
    stderr, reading = pipe
    assert stderr.descriptor != 2
    assert os.get_blocking(2)
    assert not os.get_blocking(stderr.descriptor)
    stderr.write(b"a" * PIPE_SIZE)
    assert (len(stderr.waiting), stderr.is_full) == (0, False)
    stderr.write(b"b" * (PIPE_SIZE - 1))
    assert (len(stderr.waiting), stderr.is_full) == (PIPE_SIZE - 1, False)
    stderr.write(b"c")
    assert (len(stderr.waiting), stderr.is_full) == (PIPE_SIZE, True)
    assert os.read(reading, PIPE_SIZE) == b"a" * PIPE_SIZE
    stderr.write()
    assert (os.read(reading, 2 * PIPE_SIZE), stderr.waiting) == (b"b" * (PIPE_SIZE - 1) + b"c", b"")


def test_a_programs_stderr_is_dropped_once_the_reader_of_mqtools_stderr_has_ended(pipe: tuple[_Stderr, int]) -> None:
    """If the process that reads mqtool's stderr has ended, the stderr of a program that `worker` runs is dropped
    without an error.
    """
    stderr, reading = pipe
    stderr.write(b"a" * (PIPE_SIZE + 10))
    os.close(reading)
    stderr.write(b"more")
    assert stderr.waiting == b""


def test_the_rest_of_stderr_is_written_before_a_runner_ends(pipe: tuple[_Stderr, int]) -> None:
    """A runner is a process that runs programs for `worker`. It does not end before it has written all of its program's
    stderr, as long as the reader of mqtool's stderr continues to read.
    """
    stderr, reading = pipe
    stderr.write(b"a" * (3 * PIPE_SIZE))
    got: list[bytes] = []

    def read() -> None:
        while sum(map(len, got)) < 3 * PIPE_SIZE:
            got.append(os.read(reading, PIPE_SIZE))

    thread = threading.Thread(target=read)
    thread.start()
    stderr.finish()
    thread.join()
    assert (b"".join(got), stderr.waiting) == (b"a" * (3 * PIPE_SIZE), b"")


def test_a_runner_ends_even_if_nobody_reads_mqtools_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner is a process that runs programs for `worker`. If mqtool's stderr is a full pipe that nobody reads, the
    runner still ends within a limited time after its worker, without writing the rest of its program's stderr.
    """
    monkeypatch.setattr(runners, "_PATIENCE", 10)
    reading, writing = os.pipe()
    with as_stderr(writing):
        started = Started()
    os.close(writing)
    assert started.runner.run(shell(f"head -c {2 * PIPE_SIZE} /dev/zero >&2")).status == 0
    started.close()
    assert started.has_ended()
    assert len(os.read(reading, 3 * PIPE_SIZE)) == PIPE_SIZE
    os.close(reading)


def test_a_runner_does_not_wait_for_a_full_pipe_once_its_next_request_arrives(pipe: tuple[_Stderr, int]) -> None:
    """A runner is a process that runs programs for `worker`. Between two programs, it writes the rest of the first
    program's stderr. If mqtool's stderr is a full pipe when the worker requests the second program, the runner does not
    wait until everything is written: it keeps the rest, up to the size of a pipe, in memory, and writes it later.
    """
    stderr, reading = pipe
    stderr.write(b"a" * (2 * PIPE_SIZE))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"x")
        stderr.write_until_readable(theirs.fileno())
        assert len(stderr.waiting) == PIPE_SIZE
        stderr.write_until_readable(theirs.fileno(), keep=PIPE_SIZE)
        theirs.recv(1)
        stderr.write_until_readable(theirs.fileno(), keep=PIPE_SIZE)
        assert len(stderr.waiting) == PIPE_SIZE
        os.read(reading, PIPE_SIZE)
        stderr.write_until_readable(theirs.fileno())
        assert stderr.waiting == b""
    os.read(reading, PIPE_SIZE)


def test_the_last_byte_of_stderr_is_written_before_the_next_request_arrives(pipe: tuple[_Stderr, int]) -> None:
    """A runner is a process that runs programs for `worker`. While it waits for the next request to run a program, it
    writes everything that is left of the previous program's stderr to the stderr of `worker`, even if only one byte is
    left.
    """
    stderr, reading = pipe
    never, ends = os.pipe()
    stderr.waiting += b"x"
    stderr.write_until_readable(never)
    assert not stderr.waiting
    assert os.read(reading, 10) == b"x"
    os.close(never)
    os.close(ends)


def test_none_of_a_programs_stderr_is_lost_if_mqtools_stderr_is_read_slowly(
    pipe: tuple[_Stderr, int], worker: tuple[socket.socket, socket.socket]
) -> None:
    """If a program that `worker` runs writes more to stderr than fits into the pipe of mqtool's stderr, the rest
    waits until there is room in the pipe. In the end, all of it has been written, and the program exits normally.
    """
    stderr, reading = pipe
    running = _Run(shell("printf '%0500000d' 1 >&2"), PATH, worker[1], stderr)
    got: list[bytes] = []

    def read() -> None:
        while sum(map(len, got)) < 500_000:
            got.append(os.read(reading, PIPE_SIZE))

    thread = threading.Thread(target=read)
    thread.start()
    ending = running.finish()
    stderr.finish()
    thread.join()
    assert ending == Ending(0, b"0" * 1999 + b"1")
    assert b"".join(got) == b"0" * 499_999 + b"1"


def test_a_runner_does_not_block_if_mqtools_stderr_is_a_socket() -> None:
    """A runner is a process that runs programs for `worker`. If mqtool's stderr is a socket, as in a systemd service,
    the runner keeps in memory what the socket does not accept, and writes it later.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, as_stderr(theirs.fileno()):
        stderr = _Stderr()
        assert stderr._socket is not None
        with stderr._socket:
            stderr.write(b"hello")
            assert (ours.recv(10), stderr.waiting) == (b"hello", b"")
            stderr.write(b"x" * 10_000_000)
            assert 0 < len(stderr.waiting) < 10_000_000
            before = len(stderr.waiting)
            stderr.write(b"y")
            assert len(stderr.waiting) == before + 1
            got = len(ours.recv(10_000_000))
            while stderr.waiting:
                stderr.write()
                got += len(ours.recv(10_000_000))
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    got += len(ours.recv(10_000_000))
            assert got == 10_000_001
            assert stderr.descriptor == 2


def test_a_programs_stderr_is_written_immediately_if_mqtools_stderr_is_a_file(tmp_path: Path) -> None:
    """If mqtool's stderr is a file, the stderr of a program that `worker` runs is written to it immediately, through
    the same file descriptor.
    """
    end = os.open(tmp_path / "stderr", os.O_CREAT | os.O_WRONLY)
    with as_stderr(end):
        os.close(end)
        stderr = _Stderr()
        assert (stderr.descriptor, stderr._socket) == (2, None)
        stderr.write(b"a" * 1_000_000)
        stderr.finish()
        assert not stderr.waiting
    assert (tmp_path / "stderr").stat().st_size == 1_000_000


def test_a_runner_does_not_block_if_mqtools_stderr_is_a_terminal() -> None:
    """A runner is a process that runs programs for `worker`. If mqtool's stderr is a terminal, the runner writes its
    programs' stderr there in non-blocking mode, so that it does not wait if the terminal accepts no output, for example
    after Ctrl-S.
    """
    leader, follower = os.openpty()
    with as_stderr(follower):
        stderr = _Stderr()
        assert stderr.descriptor != 2
        assert not os.get_blocking(stderr.descriptor)
        stderr.write(b"hello")
        assert os.read(leader, 10) == b"hello"
        os.close(stderr.descriptor)
    os.close(leader)
    os.close(follower)


def test_a_runner_writes_to_a_terminal_that_it_has_no_permission_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner is a process that runs programs for `worker`. If mqtool's stderr is a terminal, the runner opens this
    terminal again to write a program's stderr to it. If the user has no permission to open the terminal, as after `su`,
    the runner instead writes to the file descriptor that it has inherited from mqtool.
    """

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    leader, follower = os.openpty()
    with as_stderr(follower):
        monkeypatch.setattr(os, "open", refuse)
        stderr = _Stderr()
        monkeypatch.undo()
        assert stderr.descriptor == 2
        stderr.write(b"hello")
        assert os.read(leader, 10) == b"hello"
    os.close(leader)
    os.close(follower)
