"""The broker of a running `tutorial try`, as saved in the state directory for commands in other terminals."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mqtool.broker import background, state
from mqtool.errors import MqtoolError

_FILE = "tutorial.json"


@dataclass(frozen=True)
class AnnouncedBroker:
    """The broker that `tutorial try` started last.

    Attributes:
        port, management_port, stream_port: where it listens. The next `tutorial try` uses them again if they are free,
            so that other terminals need not be told anew.
        way: the command that leads another terminal to the broker.
        pid, born: the process of `tutorial try`, see background.Process.
    """

    port: int
    management_port: int
    stream_port: int
    way: str
    pid: int
    born: str

    @property
    def url(self) -> str:
        return f"amqp://127.0.0.1:{self.port}"

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def hint(self) -> str:
        """Say where the tutorial runs, and how commands get there."""
        return f"a tutorial runs at {self.url}; to use it, type: {self.way}"


def last() -> AnnouncedBroker | None:
    """Return the broker of the `tutorial try` that ran last. An unreadable file counts as none."""
    try:
        known: dict[str, Any] = json.loads(_path().read_text())
        return AnnouncedBroker(**known)
    except (OSError, ValueError, TypeError):
        return None


def running() -> AnnouncedBroker | None:
    """Return the broker of the `tutorial try` that is running on this machine; None if there is none."""
    known = last()
    return known if known and background.is_running(background.Process(known.pid, known.born)) else None


@contextmanager
def announced(broker: AnnouncedBroker) -> Iterator[None]:
    """Context manager: let other commands know that this process runs a tutorial on a broker."""
    try:
        _save(broker)
        yield
    finally:
        if last() == broker:
            with suppress(MqtoolError):  # the process ends anyway, and then counts as not running
                _save(AnnouncedBroker(**{**asdict(broker), "pid": 0, "born": ""}))


def _save(broker: AnnouncedBroker) -> None:
    state.make(state.home())
    try:
        _path().write_text(json.dumps(asdict(broker)) + "\n")
    except OSError as error:
        raise MqtoolError(f"cannot write {_path()}: {error.strerror}") from error


def _path() -> Path:
    return state.home() / _FILE
