"""What `mqtool broker up` has started, remembered under the XDG state directory.

https://specifications.freedesktop.org/basedir-spec/latest/
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mqtool.errors import MqtoolError

DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A broker to start.

    Attributes:
        port: for AMQP; None takes 5672 if that is free, else any free one.
        data_dir: where its messages are kept; None is a place beside its log.
        in_memory: keep nothing, which only the embedded broker can.
        cluster: three nodes rather than one.
        image: the image of RabbitMQ to build upon, for Docker; None is the one that we have tried.
    """

    name: str = DEFAULT_NAME
    port: int | None = None
    data_dir: Path | None = None
    in_memory: bool = False
    cluster: bool = False
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A broker that mqtool started.

    Attributes:
        kind: how it was started; see choice.py.
        url: where it takes AMQP connections; of a cluster, all its nodes, with commas. It may hold a password: show it
            only where it was asked for.
        pid: the process to stop, where there is one.
        directory: its data, log and configuration.
        details: what its kind needs to know besides; what is not nested in there is shown to people.
        nodes: how many it has.
    """

    name: str
    kind: str
    url: str
    pid: int
    directory: str
    details: Mapping[str, Any]
    nodes: int = 1


def directory(name: str = DEFAULT_NAME) -> Path:
    """Where a broker of that name keeps everything; it may not exist yet."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "mqtool" / "brokers" / name


def load(name: str = DEFAULT_NAME) -> Started | None:
    """The broker of that name, or None if none was started.

    Raises:
        MqtoolError: the file that remembers it is damaged.
    """
    path = directory(name) / "broker.json"
    try:
        return Started(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise MqtoolError(f"cannot read {path}: {error}", "remove it if mqtool has no broker running") from error


def load_all() -> list[Started]:
    """All brokers that were started, by whatever name. Raises as load() does."""
    home = directory().parent
    names = sorted(path.parent.name for path in home.glob("*/broker.json"))
    return [started for name in names if (started := load(name)) is not None]


def save(started: Started) -> None:
    """Remember a broker; only its owner may read it, as the URL may hold a password."""
    path = Path(started.directory) / "broker.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(started), indent=2) + "\n")


def forget(name: str) -> None:
    """Forget a broker."""
    (directory(name) / "broker.json").unlink(missing_ok=True)
