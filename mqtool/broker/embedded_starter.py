"""The embedded broker as a background process of `broker up`."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from mqtool.broker import background, ports, state
from mqtool.broker.embedded.model.profile import DEFAULT
from mqtool.broker.embedded.settings import Settings
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, UsageError

_MODULE = "mqtool.broker.embedded"
_PATIENCE = 15.0


class Embedded(Starter):
    """Starts and stops embedded brokers."""

    kind = "embedded"

    def start(self, wanted: Wanted) -> Started:
        if wanted.cluster or wanted.image:
            option = "--cluster" if wanted.cluster else "--image"
            raise UsageError(f"the embedded broker does not support {option}", f"use --kind docker with {option}")
        directory = state.directory(wanted.name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _run(
            Started(
                name=wanted.name,
                kind=self.kind,
                url=f"amqp://guest:guest@{ports.HOST}:{ports.choose(wanted.port, ports.AMQP, wanted.listen)}",
                pid=0,
                directory=str(directory),
                details={
                    "management": f"http://{ports.HOST}:{ports.choose(wanted.management_port)}",
                    "data": state.IN_MEMORY if wanted.in_memory else str(wanted.data_dir or directory / "embedded"),
                    **({"listen": wanted.listen} if wanted.listen else {}),
                    **ports.stream_url(wanted.stream_port, wanted.listen),
                    **({"like": wanted.like} if wanted.like else {}),
                    **({"tls_files": list(map(str, wanted.tls))} if wanted.tls else {}),
                },
            )
        )

    def restart(self, started: Started) -> Started:
        background.terminate([started.pid], _MODULE, _PATIENCE)
        return _run(started)

    def running(self, started: Started) -> int:
        return int(background.is_running(started.pid, _MODULE))

    def stop(self, started: Started) -> None:
        background.terminate([started.pid], _MODULE, _PATIENCE)
        state.forget(started.name)

    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        return background.read_logs({"": Path(started.directory) / "log"}, follow)


def _run(started: Started) -> Started:
    """Start the process of a broker, and remember its id."""
    from mqtool.broker.embedded.sockets.listener import Tls  # here: it needs asyncio, which is slow to import

    details = started.details
    listen, files = details.get("listen"), details.get("tls_files")
    settings = Settings(
        ports.HOST,
        _port_of(started.url) or 0,
        None if details["data"] == state.IN_MEMORY else Path(details["data"]),
        _port_of(details["management"]),
        _port_of(details.get("streams", "")),
        ports.addresses(listen) if listen else (),
        tls=Tls(*files) if files else None,
        like=details.get("like", DEFAULT),
    )
    broker = launch(Path(started.directory), settings)
    lines = wait_until_ready(broker, Path(started.directory))
    urls = (3 if settings.stream_port else 2) * (2 if files else 1)
    kept = {key: value for key, value in details.items() if key not in ("damage", "tls")}
    if files:
        kept["tls"] = f"amqps://{ports.HOST}:{_port_of(lines[urls // 2])}"
    if damage := lines[urls:]:
        kept["damage"] = damage[0]
    started = replace(started, pid=broker.pid, details=kept)
    state.save(started)
    return started


def _port_of(url: str) -> int | None:
    return urlsplit(url).port


def launch(directory: Path, settings: Settings) -> "subprocess.Popen[bytes]":
    """Start a broker's process, with its log in a directory."""
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    with background.append_to_log(directory / "log") as log:
        return subprocess.Popen(
            [sys.executable, "-m", _MODULE, *settings.arguments(), "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_ready(broker: "subprocess.Popen[bytes]", directory: Path) -> list[str]:
    """Wait until a launched broker accepts connections, and return the lines of its ready file: URLs, and any damage.

    Raises:
        MqtoolError: it does not start in time.
    """
    ready = directory / "ready"
    deadline = time.monotonic() + _PATIENCE
    while not ready.exists():
        if broker.poll() is not None or time.monotonic() > deadline:
            broker.kill()
            words = background.last_words((directory / "log").read_bytes()).replace(": embedded broker:", ":", 1)
            raise MqtoolError(f"the embedded broker does not start{words}", f"see {directory}/log")
        time.sleep(0.005)
    return ready.read_text().splitlines()
