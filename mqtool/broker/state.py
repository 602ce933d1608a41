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

from mqtool.address import parse_addresses
from mqtool.errors import MqtoolError, UsageError, reason_of

if TYPE_CHECKING:
    from mqtool.management import Management

DEFAULT_NAME = "default"
IN_MEMORY = "in memory"
_STARTED, _STOPPED = "broker.json", "stopped.json"
#: The kinds of brokers, and the lists that the details of each contain.
_LISTS = {"docker": ("containers",), "node": ("members",), "embedded": ()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a broker to start.

    Attributes:
        port: the AMQP port; None for 5672 if it is free, otherwise any free port.
        management_port: the port of the management API; None for the previous port, the AMQP port + 10000, or 15672, if
            free, otherwise any.
        stream_port: the port of the stream protocol (not with a cluster); None for the previous port or 5552 if free,
            otherwise any free port; 0 for any free port.
        data_dir: the directory for messages; None for a directory beside the log.
        in_memory: keep nothing on disk (embedded broker only).
        image: the RabbitMQ image to build on (Docker only); None for the image that mqtool is tested with.
        listen: an address to listen on for AMQP and streams, besides loopback.
        definitions: a file of definitions to load when the broker starts.
        tls: files with the certificate, its key and, to require client certificates, their CA (embedded broker only).
        like: the RabbitMQ version that the embedded broker behaves like.
        login: user and password instead of guest's (Docker only). Without a password, the stopped broker's password
            is used again, or a random one.
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
        """The number of nodes: 3 for a cluster, otherwise 1."""
        return 3 if self.cluster else 1


@dataclass(frozen=True, slots=True)
class Started:
    """A broker that mqtool started.

    Attributes:
        kind: the kind of broker: "docker", "node" or "embedded".
        url: the AMQP URLs of the nodes, separated by commas; may contain a password, so show it only on request.
        pid, born: the broker's process, see background.Process; 0 and empty for a cluster or Docker.
        directory: the directory for data, log and configuration.
        details: further details that depend on the kind: "data" and, if set, "listen", "built_on", "streams" (the URL
            of the stream port), "definitions" (a file), "tls_files" and "like". `broker status` shows all values
            except nested ones.
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
        """A client for the broker's management API, logged in with the user of the AMQP URL."""
        from mqtool.management import Management

        own = parse_addresses(self.url)[0]
        return Management(self.details["management"], own.user, own.password)


def differing(started: Started, kind: str, wanted: Wanted) -> list[str]:
    """Return the names of the options that do not match a running broker. `kind` is the wanted kind, or "auto"."""
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
        "--user": wanted.login is None or wanted.login[0] == unquote(first.username or ""),
        "--tls-cert": list(map(str, wanted.tls)) in ([], details.get("tls_files")),
    }
    return [option for option, as_asked in agrees.items() if not as_asked]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Lock the broker with this name. Other commands that start, stop or remove it wait until the block ends."""
    while True:
        with (made_directory(name) / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(directory(name) / "lock", lock.fileno()):  # else `broker rm` has moved or removed the file
                yield
                return


def _is_at(path: Path, file: int) -> bool:
    """True if a path is that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def home() -> Path:
    """Return the path of mqtool's state directory, which may not exist yet."""
    return Path(os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")) / "mqtool"


def directory(name: str = DEFAULT_NAME) -> Path:
    """Return the path of a broker's directory, which may not exist yet."""
    return home() / "brokers" / name


def made_directory(name: str) -> Path:
    """Create a broker's directory if it does not exist, and return its path.

    Raises:
        MqtoolError: it cannot be created, for example because the home directory is read-only.
    """
    path = directory(name)
    make(path)
    return path


def make(path: Path) -> None:
    """Create a directory for this user only. Raises MqtoolError if that is not possible."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MqtoolError(
            f"cannot create {path}: {error.strerror}", "set XDG_STATE_HOME to a directory that you can write to"
        ) from error


def load(name: str = DEFAULT_NAME) -> Started | None:
    """Return the broker with this name; None if it was never started or has been stopped."""
    return _read(directory(name) / _STARTED)


def load_stopped(name: str) -> Started | None:
    """Return the stopped broker with this name; None if there is none."""
    return _read(directory(name) / _STOPPED)


def load_last(name: str) -> Started | None:
    """Return the broker that had this name last, whether it was stopped or not; None if there is none."""
    return load(name) or load_stopped(name)


def names() -> list[str]:
    """Return the names of all brokers, running and stopped."""
    return sorted(
        {path.parent.name for path in directory().parent.glob("*/*.json") if path.name in (_STARTED, _STOPPED)}
    )


def _read(path: Path) -> Started | None:
    try:
        return _checked(Started(**json.loads(path.read_text())))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError, UsageError) as error:
        hint = "remove it if mqtool has no broker running"
        raise MqtoolError(f"cannot read {path}: {reason_of(error)}", hint) from error


def _checked(started: Started) -> Started:
    """Return a broker that was read from a file.

    Raises:
        ValueError: a field has a value that save() never writes.
        UsageError: the URL is not valid.
    """
    texts = (started.name, started.kind, started.url, started.directory, started.born)
    if (
        not all(isinstance(text, str) for text in texts)
        or started.kind not in _LISTS
        or type(started.pid) is not int
        or type(started.nodes) is not int
        or not isinstance(started.details, dict)
        or not all(isinstance(started.details.get(name, ""), str) for name in ("management", "streams", "data"))
        or not all(isinstance(started.details.get(name), list) for name in _LISTS[started.kind])
    ):
        raise ValueError("it does not describe a broker")
    parse_addresses(started.url)
    return started


def load_all() -> list[Started]:
    """Return all brokers that were started and not stopped."""
    return [started for name in names() if (started := load(name)) is not None]


def save(started: Started) -> None:
    """Save a broker to its state file. Only the file's owner can read it, since the URL may contain a password.

    Other processes see either the old file or the whole new one, even if this process is killed meanwhile.

    Raises:
        MqtoolError: the file cannot be written.
    """
    path = Path(started.directory) / _STARTED
    partial = path.with_suffix(".partial")
    try:
        partial.unlink(missing_ok=True)  # a process that was killed may have left one
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(asdict(started), indent=2) + "\n")
        partial.replace(path)
    except OSError as error:
        raise MqtoolError(f"cannot write {path}: {error.strerror}") from error


def forget(name: str) -> None:
    """Mark a broker as stopped. From then on load() returns None, and load_stopped() returns the broker."""
    with suppress(FileNotFoundError):
        (directory(name) / _STARTED).replace(directory(name) / _STOPPED)


def restore(name: str, before: Started | None) -> None:
    """Undo save() after a failed start: load() returns `before` again."""
    if before is not None:
        save(before)
    else:
        (directory(name) / _STARTED).unlink(missing_ok=True)


def remove_but_data(name: str) -> None:
    """Remove all files of a stopped broker except its messages."""
    home = directory(name)
    for path in home.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name.startswith("node-"):  # the logs of a cluster's nodes
            shutil.rmtree(path)
    if not any(home.iterdir()):
        home.rmdir()
