"""mqtool and pika, loaded once and forked for each command: to start Python takes longer than most commands, and the
suite has thousands of them. What else there is to a process (arguments, environment, streams, signals, exit) is as it
always is; shells, terminals, demonstrations and drills start the installed mqtool itself.

    test ── arguments, environment, three descriptors ──> server ── fork ──> command
         <───────────── process id, exit status ────────
"""

import contextlib
import functools
import gc
import importlib
import os
import pickle
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NoReturn

#: Bytes that one message surely may have; who wants more gets a process of the usual kind.
_MOST = 60_000
#: What tests set in the environment and our commands look at as they run; anything else might count on their start.
_KNOWN = {
    *("HOME", "LANG", "PATH", "COLUMNS", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "CI", "TUTORIAL_MARK"),
    *("AMQP_URL", "MQTOOL_URL", "MQTOOL_CONTEXT", "MQTOOL_MANAGEMENT_URL", "MQTOOL_DIALECT", "EDITOR"),
    "MQTOOL_STREAM_PORT",
    *("_MQTOOL_COMPLETE", "MQTOOL_COMPLETION_TIMEOUT", "COMP_WORDS", "COMP_CWORD"),
    *("_TYPER_COMPLETE_FISH_ACTION", "_TYPER_COMPLETE_ARGS"),
}

#: They start mqtool themselves, and tests look at the processes.
_START_OTHERS = ("broker", "drill", "tutorial run")


class Command:
    """A command that runs: as much of subprocess.Popen as the tests use."""

    def __init__(self, stdin: IO[bytes] | None) -> None:
        self.stdin = stdin
        self.pid = 0
        self.returncode: int | None = None
        self._started, self._ended = threading.Event(), threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("mqtool", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def told(self, what: str, number: int) -> None:
        """The server tells of it."""
        if what == "started":
            self.pid = number
            self._started.set()
        else:
            self.returncode = number
            self._ended.set()

    def wait_for_start(self) -> None:
        assert self._started.wait(60), "the server of preloaded commands does not answer"


class Preloaded:
    """A server of our own, and the commands that it runs for us."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.cli.preloaded", str(theirs.fileno())]
        self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[2])
        theirs.close()
        self._commands: dict[int, Command] = {}
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self,
        arguments: Sequence[str | bytes],
        directory: Path,
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        stdin: IO[bytes] | None = None,
    ) -> Command | None:
        """Start a command with these descriptors as its stdin, stdout and stderr; None if it is none for us."""
        words = [word.decode("utf-8", "surrogateescape") if isinstance(word, bytes) else word for word in arguments]
        if not _is_ours(words) or not environment.keys() <= _KNOWN:
            return None
        command = Command(stdin)
        with self._sending:
            number = len(self._commands)
            message = pickle.dumps((number, words, str(directory), dict(environment)))
            if len(message) > _MOST:
                return None
            self._commands[number] = command
            socket.send_fds(self._socket, [message], list(streams))
        command.wait_for_start()
        return command

    def _listen(self) -> None:
        while message := self._socket.recv(_MOST):
            number, what, value = pickle.loads(message)
            self._commands[number].told(what, value)


@functools.cache
def _server() -> Preloaded:
    return Preloaded()


def start(
    arguments: Sequence[str | bytes],
    directory: Path,
    environment: Mapping[str, str],
    stdin: int | None,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> Command | None:
    """Start a command in the background, as subprocess.Popen does; None if it is none for us."""
    if stdin == subprocess.PIPE:
        theirs, ours = os.pipe()
    else:
        theirs, ours = os.open(os.devnull, os.O_RDONLY), None
    file = None if ours is None else os.fdopen(ours, "wb", buffering=0)
    try:
        return _server().start(arguments, directory, environment, (theirs, stdout.fileno(), stderr.fileno()), file)
    finally:
        os.close(theirs)


def run(
    arguments: Sequence[str | bytes],
    directory: Path,
    environment: Mapping[str, str],
    written: bytes | None,
    timeout: float,
) -> "subprocess.CompletedProcess[bytes] | None":
    """Run a command to its end, as subprocess.run does with pipes; None if it is none for us."""
    (stdin, feed), (read_out, stdout), (read_err, stderr) = (os.pipe() for _ in range(3))
    if written is None:  # no input, which is not the same as an empty pipe
        os.dup2(nothing := os.open(os.devnull, os.O_RDONLY), stdin)
        os.close(nothing)
    command = _server().start(arguments, directory, environment, (stdin, stdout, stderr))
    for end in (stdin, stdout, stderr):
        os.close(end)
    with os.fdopen(feed, "wb") as to, os.fdopen(read_out, "rb") as out, os.fdopen(read_err, "rb") as err:
        if command is None:
            return None
        with ThreadPoolExecutor(3) as pool:
            pool.submit(_feed, to, written or b"")
            said = pool.submit(out.read), pool.submit(err.read)
            try:
                code = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.kill()
                raise
            return subprocess.CompletedProcess(arguments, code, said[0].result(), said[1].result())


def _is_ours(words: Sequence[str]) -> bool:
    """Whether it is mqtool by itself, or a script in Python."""
    if words[0] == sys.executable:
        return words[1].endswith(".py")
    return words[0] == "mqtool" and not " ".join(words[1:3]).startswith(_START_OTHERS)


def _feed(to: IO[bytes], written: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), to:
        to.write(written)


def _serve(ours: socket.socket) -> None:
    """Fork for each request, and tell how each child ends, until there is nobody to ask any more."""
    ends: dict[int, int] = {}
    pipe_end, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([ours, pipe_end], [], [])[0]
        if pipe_end in ready:
            os.read(pipe_end, 4096)
        while ends and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)) is not None:
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            ours.send(pickle.dumps((ends.pop(ended.si_pid), "ended", code)))
        if ours not in ready:
            continue
        message, streams, *_ = socket.recv_fds(ours, _MOST, 3)
        if not message:
            return
        number, words, directory, environment = pickle.loads(message)
        pid = os.fork()
        if not pid:
            for mine in (pipe_end, wake):
                os.close(mine)
            ours.close()
            _become(words, directory, environment, streams)
        for stream in streams:
            os.close(stream)
        ends[pid] = number
        ours.send(pickle.dumps((number, "started", pid)))


def _become(words: list[str], directory: str, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """In the child: be the command."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    if words[0] != "mqtool":
        sys.argv = words[1:]
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what it prints must be seen meanwhile
        runpy.run_path(words[1], run_name="__main__")
        sys.exit()
    sys.argv = [str(Path(sys.executable).parent / "mqtool"), *words[1:]]
    sys.modules["__main__"].__package__ = ""  # a script's, from which a command line knows what it is called
    from mqtool.__main__ import main

    main()
    sys.exit()


def _load_all() -> None:
    import mqtool

    for module in pkgutil.walk_packages(mqtool.__path__, "mqtool."):
        if not module.name.startswith(("mqtool.__main__", "mqtool.tutorials.plain_")):
            importlib.import_module(module.name)
    for name in ("requests", "rich.table", "rich.console", "rich.live", "typer.rich_utils", "sqlite3"):
        importlib.import_module(name)
    gc.freeze()


if __name__ == "__main__":
    _load_all()
    _serve(socket.socket(fileno=int(sys.argv[1])))
