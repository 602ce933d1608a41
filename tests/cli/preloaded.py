"""A server that imports mqtool once and forks for each command, since starting Python takes longer than most commands.

A run of the suite has one server. It forks a child for each command that a `Process` requests. For scripts, the
directory `where()` comes first on the PATH. It contains another `mqtool`, which asks the server to run the command,
forwards signals to it, and ends with the same exit code or signal. If a client of the server is killed, so is its
command. When pytest ends, it closes the server's standard input; the server then kills the commands that are still
running, and exits. Commands that a preloaded command starts are preloaded, too.

Other things that a process inherits (ignored signals, limits) come from the server. Tests that depend on them use
`Shell.start_cold()`. The server needs Linux. On other systems, each command starts as installed.
"""

import atexit
import contextlib
import gc
import importlib
import marshal
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

#: True on Linux: the server needs pidfd_open() to wait for the end of a process.
IS_POSSIBLE = hasattr(os, "pidfd_open") and hasattr(socket, "SOCK_SEQPACKET")
#: The maximum size of a request, in bytes. A command with a longer one starts as installed.
_MOST = 200_000
#: The commands and what they run; "script" runs the Python file that is its first argument.
_MODULES = {"mqtool": "mqtool.__main__", "embedded-broker": "mqtool.broker.embedded.__main__", "script": ""}
#: The `mqtool` for scripts. It imports only built-in modules, so it starts in 10 ms.
_CLIENT = """#!{python} -IS
import marshal, posix, sys
import _signal, _socket

words = sys.argv[1:]
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
request = marshal.dumps(("mqtool", words, posix.getcwdb(), dict(posix.environ)))
if len(request) > {most}:
    posix.execv({mqtool!r}, [{mqtool!r}, *words])
server.connect({door!r})
# The command may be ready before this process runs again, so keep signals that arrive before its pid is known.
pid, early = 0, []
def forward(number, _):
    if not pid:
        early.append(number)
        return
    try:
        posix.kill(pid, number)
    except ProcessLookupError:
        pass  # the command has just ended
for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
    _signal.signal(number, forward)
server.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
pid = marshal.loads(server.recv(64))
for number in early:
    forward(number, None)
code = marshal.loads(server.recv(64))
if code < 0:
    if -code != _signal.SIGKILL:
        _signal.signal(-code, _signal.SIG_DFL)
    posix.kill(posix.getpid(), -code)
posix._exit(code)
"""


def where() -> Path:
    """Return the directory of the preloaded `mqtool`, which has to come first on the PATH."""
    return Path(os.environ["MQTOOL_SUITE_STATE"]) / "preloaded"


def start_server() -> "subprocess.Popen[bytes]":
    """Start the server; it ends once its standard input is closed."""
    directory = where()
    directory.mkdir()
    mqtool = str(Path(sys.executable).with_name("mqtool"))
    client = directory / "mqtool"
    client.write_text(_CLIENT.format(python=sys.executable, most=_MOST, mqtool=mqtool, door=str(directory / "door")))
    python = directory / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for each in (client, python):
        each.chmod(0o755)
    started = subprocess.Popen([sys.executable, __file__, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()  # the server is listening
    return started


def takes(command: Sequence[str | bytes]) -> bool:
    """Return True if the server can run this command, and its arguments are not too long."""
    return IS_POSSIBLE and command[0] in _MODULES and sum(map(len, command)) < _MOST // 2


def as_installed(command: Sequence[str | bytes]) -> list[str | bytes]:
    """Return the command line that runs a command without the server."""
    match command[0]:
        case "embedded-broker":
            return [sys.executable, "-m", "mqtool.broker.embedded", *command[1:]]
        case "script":
            return [sys.executable, *command[1:]]
    return [*command]


class Process:
    """A command that the server runs, with those parts of subprocess.Popen's interface that tests use.

    Args:
        stdin: PIPE, DEVNULL, or a file descriptor.
    """

    def __init__(
        self,
        command: Sequence[str | bytes],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        words = [os.fsencode(word) for word in command]
        variables = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        request = marshal.dumps((words[0].decode(), words[1:], str(cwd), variables))
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        given = stdin
        if stdin == subprocess.PIPE:
            given, feed = os.pipe()
            self.stdin = os.fdopen(feed, "wb")
        elif stdin == subprocess.DEVNULL:
            given = os.open(os.devnull, os.O_RDONLY)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(str(where() / "door"))
        socket.send_fds(self._server, [request], [given, stdout, stderr])
        if given != stdin:
            os.close(given)
        self.pid: int = marshal.loads(self._server.recv(64))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._server.settimeout(timeout)
            try:
                self.returncode = marshal.loads(self._server.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("the command", timeout or 0) from None
            self._server.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """Forks a child for each request, until its standard input is closed."""

    def __init__(self, directory: Path) -> None:
        self._running: set[int] = set()
        self._events = selectors.DefaultSelector()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind(str(directory / "door"))
        self._door.listen(128)
        self._events.register(self._door, selectors.EVENT_READ, self._fork)
        self._events.register(0, selectors.EVENT_READ, self._leave)

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._events.select():
                key.data()

    def _fork(self) -> None:
        caller, _ = self._door.accept()
        message, streams, *_ = socket.recv_fds(caller, _MOST, 3)
        if not message:
            return
        _load_all()
        pid = os.fork()
        if not pid:
            _become(message, streams)
        for stream in streams:
            os.close(stream)
        self._running.add(pid)
        with contextlib.suppress(OSError):  # the caller was killed; its closed socket makes _kill() end the command
            caller.send(marshal.dumps(pid))
        end = os.pidfd_open(pid)
        self._events.register(caller, selectors.EVENT_READ, partial(self._kill, pid))
        self._events.register(end, selectors.EVENT_READ, partial(self._end, pid, end, caller))

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended just when its caller was killed
            os.kill(pid, signal.SIGKILL)

    def _end(self, pid: int, end: int, caller: socket.socket) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._running.remove(pid)
        with contextlib.suppress(OSError):  # the caller was killed
            caller.send(marshal.dumps(code))
        for ended in (end, caller):
            self._events.unregister(ended)
        os.close(end)
        caller.close()

    def _leave(self) -> NoReturn:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        sys.exit()


def _load_all() -> None:
    """Import all of mqtool once, and the modules that it imports lazily."""
    if "mqtool" in sys.modules:
        return
    import mqtool

    for module in pkgutil.walk_packages(mqtool.__path__, "mqtool."):
        if not module.name.startswith(("mqtool.__main__", "mqtool.tutorials.plain_")):
            importlib.import_module(module.name)
    for name in (
        "urllib3",
        "rich.table",
        "rich.console",
        "rich.live",
        "typer.completion",
        "sqlite3",
        *filter(None, _MODULES.values()),
    ):
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy all of it


def _become(message: bytes, streams: list[int]) -> NoReturn:
    """Run the command in the child, and exit."""
    name, words, directory, environment = marshal.loads(message)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(directory)
    os.environ.clear()
    os.environ.update({os.fsdecode(key): os.fsdecode(value) for key, value in environment.items()})
    buffering = 1 if "PYTHONUNBUFFERED" in os.environ else -1
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", buffering, closefd=False)  # noqa: SIM115
    words = [os.fsdecode(word) for word in words]
    sys.executable = str(Path(sys.argv[1]) / "python3")  # plays and drills run the mqtool in its directory
    sys.argv = words if name == "script" else [name, *words]
    code: object = None
    try:
        if name == "script":
            runpy.run_path(words[0], run_name="__main__")
        else:
            code = importlib.import_module(_MODULES[name]).main()
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            raise
    atexit._run_exitfuncs()
    sys.stdout.flush()
    # Python's own cleanup would touch, and so copy, all that the server has imported: half of the suite's time.
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest handles Ctrl-C, and then closes our standard input
    server = _Server(Path(sys.argv[1]))
    print(flush=True)
    server.serve()
