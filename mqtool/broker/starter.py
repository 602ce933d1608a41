"""The base class of starters. A starter starts, stops, restarts and removes brokers of one kind."""

import os
import shlex
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, UsageError, reason_of


class Starter(ABC):
    """Starts, stops and inspects brokers of one kind.

    Any method may raise:
        Unavailable: a port is in use, or Docker or rabbitmq-server is missing or does not respond.
        AccessRefused: no permission to use the Docker daemon.
        UsageError: this kind of broker does not support an option.
        MqtoolError: a node does not start, or does not stop.

    Args:
        describe: the name of this kind of broker for use in sentences, such as "the embedded broker".

    Attributes:
        kind: the kind of broker: "docker", "node" or "embedded" (a value of choice.Kind).
        is_quick: True if prepare() has nothing to download or build.
    """

    kind: ClassVar[str]
    is_quick = True

    def __init__(self, describe: str) -> None:
        self.describe = describe

    def is_available(self) -> bool:
        """True if this machine can run this kind of broker."""
        return True

    def prepare(self, wanted: Wanted, say: Callable[[str], None]) -> None:  # noqa: B027  # most kinds have nothing to do
        """Download or build what start() needs. Calls `say` with lines of progress. Safe to interrupt."""

    @abstractmethod
    def start(self, wanted: Wanted) -> Started:
        """Start a broker. It may not be ready when this returns."""

    def is_ready(self, started: Started) -> bool:  # noqa: ARG002
        """Return False if the broker cannot accept connections yet. True does not guarantee that it can."""
        return True

    @abstractmethod
    def running(self, started: Started) -> int:
        """Return the number of nodes that are running."""

    def is_running(self, started: Started) -> bool:
        """True if all nodes are running."""
        return self.running(started) == started.nodes

    def runs(self, started: Started, number: int) -> bool:  # noqa: ARG002
        """True if a node is running. The first node of a cluster has number 0."""
        return self.is_running(started)

    @abstractmethod
    def stop(self, started: Started) -> None:
        """Stop a broker, but keep its messages and logs."""

    @abstractmethod
    def restart(self, started: Started) -> Started:
        """Stop a broker and start it again. It may not be ready when this returns."""

    def clear_up(self, killed: Started) -> None:  # noqa: B027  # most kinds leave nothing
        """Stop processes that a killed broker has left."""

    def discard(self, started: Started) -> None:
        """Remove the messages and logs of a stopped broker.

        Raises:
            UsageError: another embedded broker is using the messages.
            MqtoolError: not everything could be removed.
        """
        from mqtool.broker.embedded.store.database import FILE, DirectoryInUse, lock_directory

        directory = Path(started.directory)
        with ExitStack() as locks:
            for database in directory.rglob(FILE):
                try:
                    locks.callback(os.close, lock_directory(database.parent))
                except DirectoryInUse as error:
                    raise UsageError(f"another broker is using {database.parent}", "stop that broker first") from error
                except OSError:
                    pass  # _remove() will say why
            _remove(directory)

    def to_delete_messages(self, started: Started) -> str | None:
        """Return the shell command that deletes the messages of a broker that `broker rm` has removed; None if none."""
        data, own = Path(str(started.details.get("data"))), Path(started.directory)
        kept = own if data.is_relative_to(own) else data
        return f"rm -r {shlex.quote(str(kept))}" if data.is_absolute() and data.exists() else None

    @abstractmethod
    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        """Yield whole lines of the log; b"" when there is nothing new. With `follow`, continue as the log grows."""

    def kill(self, started: Started, number: int) -> None:  # noqa: ARG002
        """Kill a node of a cluster with SIGKILL. The first node has number 0."""
        raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")

    def revive(self, started: Started) -> Started:  # noqa: ARG002
        """Start the nodes of a cluster that are not running."""
        raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")


def _remove(directory: Path) -> None:
    """Remove a directory with everything in it. Raises MqtoolError if something is left, which it names."""
    if directory.is_symlink():  # there may be other things where it leads
        raise MqtoolError(
            f"{directory} is a link to {directory.resolve()}, which may contain more than the messages",
            "delete the messages there and the link yourself",
        )
    # Move it away first: once its lock file is deleted, `broker up` can start a new broker in a directory of this name.
    try:
        away = Path(tempfile.mkdtemp(prefix=".removed-", dir=directory.parent))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _left(directory, error) from error
    moved = away / "broker"
    try:
        directory.rename(moved)
    except OSError as error:
        away.rmdir()
        raise _left(directory, error) from error
    try:
        shutil.rmtree(away)
    except OSError as error:
        shutil.rmtree(away, ignore_errors=True)  # the rest
        raise _left(away, error) from error


def _left(directory: Path, error: OSError) -> MqtoolError:
    left = next((path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()), directory)
    hint = f"delete the rest yourself: rm -r {shlex.quote(str(directory))}"
    return MqtoolError(f"cannot delete {left}: {reason_of(error)}", hint)
