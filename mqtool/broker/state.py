"""The brokers that `mqtool broker up` has started, as saved in the XDG state directory.

https://specifications.freedesktop.org/basedir-spec/latest/
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mqtool.errors import MqtoolError

if TYPE_CHECKING:
    from mqtool.management import Management

DEFAULT_NAME = "default"
IN_MEMORY = "in memory"
_STARTED, _STOPPED = "broker.json", "stopped.json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A broker to start.

    Attributes:
        port: for AMQP; None for 5672 if that is free, else any free port.
        management_port: for its management API; None for where it was before, 15672 if that is free, or any free port.
        stream_port: for streams (not with a cluster); None for where they were before, 5552 if that is free, or any
            free port; 0 for any free port.
        data_dir: for its messages; None for a directory beside its log.
        in_memory: keep nothing on disk (embedded broker only).
        image: RabbitMQ image to build on (Docker only); None for the one that mqtool is tested with.
        listen: one more address to listen on for AMQP connections, besides loopback.
        definitions: file to load when it starts.
        tls: files with its certificate and key, and with the authority of its clients if they need a certificate
            (embedded broker only).
        like: the RabbitMQ that the embedded broker is to behave like.
        login: user and password instead of guest's (Docker only); without a password it is the one of the stopped
            broker, or a random one.
    """

    name: str = DEFAULT_NAME
    port: int | None = None
    data_dir: Path | None = None
    in_memory: bool = False
    cluster: bool = False
    image: str | None = None
    listen: str | None = None
    management_port: int | None = None
    stream_port: int | None = None
    tls: tuple[Path, ...] = ()
    like: str | None = None
    definitions: Path | None = None
    login: tuple[str, str | None] | None = None

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return 3 if self.cluster else 1


@dataclass(frozen=True, slots=True)
class Started:
    """A broker that mqtool started.

    Attributes:
        kind: the value of a choice.Kind.
        url: for AMQP connections, with commas between the nodes of a cluster. It may hold a password: show it only on
            request.
        pid, born: the process to stop, see background.Process; 0 and empty if there is more than one, or none.
        directory: for its data, log and configuration.
        details: what else its kind needs to know, with "data" and, where they were asked for, "listen", "built_on",
            "streams" (the URL of the stream port), "definitions" (a file), "tls_files" and "like".
            `broker status` shows what is not nested.
    """

    name: str
    kind: str
    url: str
    pid: int
    directory: str
    details: Mapping[str, Any]
    nodes: int = 1
    born: str = ""

    @property
    def management(self) -> "Management":
        """Its management API, with the user of its URL."""
        from mqtool.amqp import parse_addresses  # here: most commands only look whether there is a broker
        from mqtool.management import Management

        own = parse_addresses(self.url)[0]
        return Management(self.details["management"], own.user, own.password)


def differing(started: Started, kind: str, wanted: Wanted) -> list[str]:
    """The options that do not agree with a running broker.

    Args:
        started: the running broker.
        kind: the value of a choice.Kind.
        wanted: what the options say.
    """
    details, first = started.details, urlsplit(started.url.partition(",")[0])
    agrees = {
        "--kind": kind in ("auto", started.kind),
        "--port": wanted.port in (None, first.port),
        "--management-port": wanted.management_port in (None, urlsplit(details.get("management", "")).port),
        "--stream-port": wanted.stream_port in (None, 0, urlsplit(details.get("streams", "")).port),
        "--data-dir": wanted.data_dir is None or details.get("data") == str(wanted.data_dir),
        "--in-memory": not wanted.in_memory or details.get("data") == IN_MEMORY,
        "--cluster": not wanted.cluster or started.nodes == wanted.nodes,
        "--image": wanted.image in (None, details.get("built_on")),
        "--listen": wanted.listen in (None, details.get("listen")),
        "--like": wanted.like in (None, details.get("like")),
        "--definitions": wanted.definitions is None or details.get("definitions") == str(wanted.definitions),
        "--user": wanted.login is None
        or wanted.login[0] == unquote(urlsplit(started.url.partition(",")[0]).username or ""),
        "--tls-cert": list(map(str, wanted.tls)) in ([], details.get("tls_files")),
    }
    return [option for option, as_asked in agrees.items() if not as_asked]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let no other command start or stop the broker with this name meanwhile."""
    where = directory(name)
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (where / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def home() -> Path:
    """mqtool's state directory. It may not exist yet."""
    return Path(os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")) / "mqtool"


def directory(name: str = DEFAULT_NAME) -> Path:
    """The directory of a broker. It may not exist yet."""
    return home() / "brokers" / name


def load(name: str = DEFAULT_NAME) -> Started | None:
    """The broker with this name; None if it was never started or has been stopped.

    Raises:
        MqtoolError: its file is damaged.
    """
    return _read(directory(name) / _STARTED)


def load_stopped(name: str) -> Started | None:
    """The stopped broker with this name; None if there is none. See load() for errors."""
    return _read(directory(name) / _STOPPED)


def names() -> list[str]:
    """The names of all brokers, running and stopped."""
    return sorted(
        {path.parent.name for path in directory().parent.glob("*/*.json") if path.name in (_STARTED, _STOPPED)}
    )


def _read(path: Path) -> Started | None:
    try:
        return Started(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise MqtoolError(f"cannot read {path}: {error}", "remove it if mqtool has no broker running") from error


def load_all() -> list[Started]:
    """All brokers that were started and not stopped. See load() for errors."""
    return [started for name in names() if (started := load(name)) is not None]


def save(started: Started) -> None:
    """Save a broker, in a file that only its owner can read, since the URL may hold a password."""
    path = Path(started.directory) / _STARTED
    path.touch(mode=0o600)
    path.chmod(0o600)  # in case it existed
    path.write_text(json.dumps(asdict(started), indent=2) + "\n")


def forget(name: str) -> None:
    """Mark a broker as stopped. From then on only `broker ls` and `broker rm` know it."""
    with suppress(FileNotFoundError):
        (directory(name) / _STARTED).replace(directory(name) / _STOPPED)


def remove_but_data(name: str) -> None:
    """Remove everything of a stopped broker but its messages."""
    home = directory(name)
    for path in home.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name.startswith("node-"):  # the logs of a cluster's nodes
            shutil.rmtree(path)
    if not any(home.iterdir()):
        home.rmdir()
