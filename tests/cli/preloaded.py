"""mqtool and pika, loaded once and forked for each command: to start Python takes longer than most commands, and the
suite has thousands of them. What else there is to a process (arguments, environment, streams, signals, exit) is as it
always is; demonstrations and drills start the installed mqtool itself.

    test ── arguments, environment, three descriptors ──> server ── fork ──> command
         <───────────── process id, exit status ────────

A shell can have it, too: `on_path` is a directory with an mqtool that asks the server on behalf of its caller.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import marshal
import os
import pickle
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NoReturn

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
_START_OTHERS = ("broker up", "broker serve", "broker restart", "drill", "tutorial run")


#: A shell's mqtool. It imports what is built in alone, since that is what takes time.
_CLIENT = """#!{python} -IS
import marshal, posix, sys
import _signal, _socket

words = [b"mqtool", *(word.encode("utf-8", "surrogateescape") for word in sys.argv[1:])]
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
server.connect({door!r})
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
asked = marshal.dumps((words, posix.getcwdb(), dict(posix.environ)))
server.sendmsg([asked], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
pid = marshal.loads(server.recv(64))
if not pid:
    posix.execv({mqtool!r}, [{mqtool!r}, *words[1:]])
for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
    if _signal.getsignal(number) is not _signal.SIG_IGN:
        _signal.signal(number, lambda number, _: posix.kill(pid, number))
code = marshal.loads(server.recv(64))
if code < 0:
    _signal.signal(-code, _signal.SIG_DFL)
    posix.kill(posix.getpid(), -code)
posix._exit(code)
"""


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
        self._directory = tempfile.TemporaryDirectory(prefix="mqtool-preloaded-")
        self.on_path = Path(self._directory.name)
        client = self.on_path / "mqtool"
        mqtool = str(Path(sys.executable).with_name("mqtool"))
        client.write_text(_CLIENT.format(python=sys.executable, mqtool=mqtool, door=str(self.on_path / "door")))
        client.chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(self.on_path / "door"))
            door.listen(64)
            ends = theirs.fileno(), door.fileno()
            command = [sys.executable, "-m", "tests.cli.preloaded", *map(str, ends)]
            self._server = subprocess.Popen(command, pass_fds=ends, cwd=Path(__file__).parents[2])
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


def on_path() -> Path:
    """The directory of an mqtool that is preloaded, to come first on a shell's PATH."""
    return _server().on_path


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


class _Callers:
    """Those who asked for the commands that run, to be told how these end."""

    def __init__(self, test: socket.socket, door: socket.socket) -> None:
        self.test, self.door = test, door
        self.woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._commands: dict[int, tuple[socket.socket, int]] = {}
        self._shells: dict[socket.socket, int] = {}

    def sockets(self) -> list[socket.socket]:
        return [self.test, self.door, self.woken, *self._shells]

    def add_shell(self) -> None:
        self._shells[self.door.accept()[0]] = 0

    def ask(self, asking: socket.socket) -> bool:
        """Start what is asked for; whether the test is still there."""
        message, streams, *_ = socket.recv_fds(asking, _MOST, 3)
        if not message:
            if asking is self.test:
                return False
            if pid := self._shells.pop(asking):  # somebody has killed the client
                os.kill(pid, signal.SIGKILL)
            asking.close()
            return True
        number, words, directory, environment = pickle.loads(message) if asking is self.test else _asked(message)
        pid = os.fork() if asking is self.test or _is_ours(words) else -1
        if not pid:
            for mine in (*self.sockets(), self._wake):
                mine.close()
            _become(words, directory, environment, streams)
        for stream in streams:
            os.close(stream)
        if pid < 0:
            asking.send(marshal.dumps(0))  # it has to do it itself
            return True
        self._commands[pid] = asking, number
        if asking is self.test:
            asking.send(pickle.dumps((number, "started", pid)))
        else:
            self._shells[asking] = pid
            asking.send(marshal.dumps(pid))
        return True

    def tell_of_ends(self) -> None:
        while self._commands and (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)) is not None:
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            asked, number = self._commands.pop(ended.si_pid)
            if asked is self.test:
                asked.send(pickle.dumps((number, "ended", code)))
            elif asked in self._shells:
                self._shells[asked] = 0
                asked.send(marshal.dumps(code))


def _asked(message: bytes) -> tuple[int, list[str], str, dict[str, str]]:
    """What a client asks for; its environment is the shell's."""
    words, directory, environment = marshal.loads(message)
    return (
        0,
        list(map(os.fsdecode, words)),
        os.fsdecode(directory),
        {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()},
    )


def _serve(test: socket.socket, door: socket.socket) -> None:
    """Fork for each request, and tell how each child ends, until there is nobody to ask any more."""
    callers = _Callers(test, door)
    while True:
        for each in select.select(callers.sockets(), [], [])[0]:
            if each is callers.woken:
                each.recv(4096)
                callers.tell_of_ends()
            elif each is door:
                callers.add_shell()
            elif not callers.ask(each):
                return


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
        _restore_pika()
        sys.argv = words[1:]
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what it prints must be seen meanwhile
        _run(lambda: runpy.run_path(words[1], run_name="__main__"))
    sys.argv = [str(Path(sys.executable).parent / "mqtool"), *words[1:]]
    sys.modules["__main__"].__package__ = ""  # a script's, from which a command line knows what it is called
    from mqtool.__main__ import main

    _run(main)


def _run(program: Callable[[], object]) -> NoReturn:
    """Exit as Python does, but for its tidying up, which touches, and so copies, all that the server has loaded."""
    code: object = None
    try:
        program()
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):
            raise
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0)


@functools.cache
def _pika() -> list[tuple[Any, dict[str, Any]]]:
    """What of pika mqtool changes (mqtool/amqp/hooks.py), and how that was when this was called first."""
    from pika import data, spec
    from pika.adapters.utils import io_services_utils as transports

    changed = data, spec.BasicProperties, transports._AsyncTransportBase, transports._AsyncPlaintextTransport
    return [(owner, dict(vars(owner))) for owner in changed]


def _restore_pika() -> None:
    """A script in Python has pika as it is."""
    for owner, was in _pika():
        for name in vars(owner).keys() - was.keys():
            delattr(owner, name)
        for name, value in was.items():
            if vars(owner)[name] is not value:
                setattr(owner, name, value)


def _load_all() -> None:
    _pika()
    import typer.main

    import mqtool

    for module in pkgutil.walk_packages(mqtool.__path__, "mqtool."):
        if not module.name.startswith(("mqtool.__main__", "mqtool.tutorials.plain_")):
            importlib.import_module(module.name)
    for name in ("requests", "rich.table", "rich.console", "rich.live", "typer.rich_utils", "sqlite3"):
        importlib.import_module(name)
    app = importlib.import_module("mqtool.cli.app")
    root: Any = typer.main.get_command(app.app)
    for name in app.COMMANDS:  # typer takes longer to make their options than most commands for what they do
        root.get_command(None, name)
    gc.freeze()


if __name__ == "__main__":
    _load_all()
    _serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
