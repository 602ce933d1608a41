"""Starts and stops the embedded broker for `broker up`: in the background, or in this process with `--foreground`."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from mqtool.broker import background, ports, state
from mqtool.broker.background import Process
from mqtool.broker.embedded.model.profile import DEFAULT
from mqtool.broker.embedded.settings import Settings
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, UsageError

_MODULE = "mqtool.broker.embedded"
#: How many seconds a broker may take to start or stop. One is usual; a busy machine needs more.
_PATIENCE = 60.0


class Embedded(Starter):
    kind = "embedded"

    def start(self, wanted: Wanted) -> Started:
        return _run(self._planned(wanted))

    def _planned(self, wanted: Wanted) -> Started:
        """Choose the ports and the directory of a new broker. Does not start it."""
        if wanted.cluster or wanted.image:
            option = "--cluster" if wanted.cluster else "--image"
            raise UsageError(f"the embedded broker does not support {option}", f"use --kind docker with {option}")
        directory = state.made_directory(wanted.name)
        before = state.load_last(wanted.name)
        tls = bool(wanted.tls)
        port = ports.choose(wanted.port, ports.usual_amqp(before), wanted.listen, tls=tls)
        management = ports.choose(wanted.management_port, ports.usual_management(before, port), tls=tls)
        streams = ports.stream_url(wanted.stream_port, before, wanted.listen, tls=tls)
        ports.check_apart(port, management, _port_of(streams["streams"]), tls=tls)
        return Started(
            name=wanted.name,
            kind=self.kind,
            url=f"amqp://guest:guest@{ports.HOST}:{port}",
            pid=0,
            directory=str(directory),
            details={
                "management": f"http://{ports.HOST}:{management}",
                "data": state.IN_MEMORY if wanted.in_memory else str(wanted.data_dir or directory / "embedded"),
                **({"listen": wanted.listen} if wanted.listen else {}),
                **streams,
                **({"like": wanted.like} if wanted.like else {}),
                **({"tls_files": list(map(str, wanted.tls))} if wanted.tls else {}),
            },
        )

    def stay(self, wanted: Wanted, when_up: Callable[[Started], None]) -> None:
        """Run a broker in this process until it is stopped by Ctrl-C, SIGTERM or `broker down`.

        Args:
            when_up: called in a thread once the broker is listening. If it raises an error, the broker is stopped,
                and the error is raised again.
        """
        from mqtool.broker.embedded.__main__ import CannotStart, run
        from mqtool.broker.embedded.server import Server

        started = self._planned(wanted)
        failed: list[BaseException] = []

        def listening(server: Server) -> None:
            ready = _listening(started, os.getpid(), server.urls().get("amqp/ssl"), server.damage)
            state.save(ready)
            threading.Thread(target=up, args=(ready,), daemon=True).start()

        def up(ready: Started) -> None:
            try:
                when_up(ready)
            except BaseException as error:  # raised below, in the caller's thread
                failed.append(error)
                os.kill(os.getpid(), signal.SIGTERM)

        log = Path(started.directory) / "log"
        background.append_to_log(log).close()
        try:
            run(_settings(started), log_file=log, when_ready=listening)
        except CannotStart as error:
            raise MqtoolError(f"the embedded broker does not start: {error}", f"see {log}") from error
        finally:
            state.forget(started.name)
        if failed:
            raise failed[0]

    def restart(self, started: Started) -> Started:
        background.terminate([Process(started.pid, started.born)], _PATIENCE)
        return _run(started)

    def running(self, started: Started) -> int:
        return int(background.is_running(Process(started.pid, started.born)))

    def stop(self, started: Started) -> None:
        background.terminate([Process(started.pid, started.born)], _PATIENCE)
        state.forget(started.name)

    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        return background.read_logs({"": Path(started.directory) / "log"}, follow)


def _settings(started: Started) -> Settings:
    from mqtool.broker.embedded.sockets.listener import Tls

    details = started.details
    listen, files = details.get("listen"), details.get("tls_files")
    return Settings(
        ports.HOST,
        _port_of(started.url) or 0,
        None if details["data"] == state.IN_MEMORY else Path(details["data"]),
        _port_of(details["management"]),
        _port_of(details.get("streams", "")),
        ports.addresses(listen) if listen else (),
        tls=Tls(*files) if files else None,
        like=details.get("like", DEFAULT),
    )


def _run(started: Started) -> Started:
    """Start the process of a broker, save its state, and wait until it is ready."""
    settings, directory = _settings(started), Path(started.directory)
    before = state.load(started.name)
    broker = launch(directory, settings)
    state.save(_listening(started, broker.pid, None, None))  # `broker down` finds it even if this process is killed now
    try:
        lines = wait_until_ready(broker, directory)
    except BaseException:
        broker.kill()
        state.restore(started.name, before)
        raise
    urls = (3 if settings.stream_port else 2) * (2 if settings.tls else 1)
    tls, damage = lines[urls // 2] if settings.tls else None, next(iter(lines[urls:]), None)
    started = _listening(started, broker.pid, tls, damage)
    state.save(started)
    return started


def _listening(started: Started, pid: int, tls: str | None, damage: str | None) -> Started:
    """Return the broker with its process, TLS URL and, if its stored data is damaged, a description of the damage."""
    details = {key: value for key, value in started.details.items() if key not in ("damage", "tls")}
    if tls:
        details["tls"] = f"amqps://{ports.HOST}:{_port_of(tls)}"
    if damage is not None:
        details["damage"] = damage
    return replace(started, **background.started(pid)._asdict(), details=details)


def _port_of(url: str) -> int | None:
    return urlsplit(url).port


def launch(directory: Path, settings: Settings) -> "subprocess.Popen[bytes]":
    """Start a broker's process, which waits for wait_until_ready(): until then, it ends if the caller is killed.

    The log and the ready file are written to the directory.
    """
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    with background.append_to_log(directory / "log") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE, *settings.arguments(), "--ready-file", str(ready), "--await-starter"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_ready(broker: "subprocess.Popen[bytes]", directory: Path) -> list[str]:
    """Let a launched broker start, and wait until it accepts connections; return the lines of its ready file.

    These are its URLs and, if its stored data is damaged, a description of the damage.

    Raises:
        MqtoolError: the broker ends, or does not start in time. The caller kills it.
    """
    assert broker.stdin is not None
    with suppress(BrokenPipeError), broker.stdin:  # if it has ended already, that is reported below
        broker.stdin.write(b"\n")
    ready = directory / "ready"
    deadline = time.monotonic() + _PATIENCE
    while not ready.exists():
        if broker.poll() is not None or time.monotonic() > deadline:
            words = background.last_words((directory / "log").read_bytes()).replace(": embedded broker:", ":", 1)
            raise MqtoolError(f"the embedded broker does not start{words}", f"see {directory}/log")
        time.sleep(0.005)
    return ready.read_text().splitlines()
