"""What can be done with a broker, whatever kind it is; a class for each kind knows how."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

from mqtool.broker.state import Started, Wanted
from mqtool.errors import UsageError


class Starter(ABC):
    """Starts, stops and looks after brokers of one kind.

    Any method may raise:
        Unavailable: the port is taken, or what it runs on (Docker, rabbitmq-server) is missing or does not answer.
        AccessRefused: no permission to use the Docker daemon.
        UsageError: an option that this kind does not support.
        MqtoolError: a node does not start, or does not stop.

    Args:
        describe: its name in a sentence.

    Attributes:
        kind: a choice.Kind.
        is_quick: prepare() has nothing to do.
    """

    kind: ClassVar[str]
    is_quick = True

    def __init__(self, describe: str) -> None:
        self.describe = describe

    def is_available(self) -> bool:
        """Whether this machine can run it."""
        return True

    def prepare(self, wanted: Wanted, say: Callable[[str], None]) -> None:  # noqa: B027  # most kinds have nothing to do
        """Download or build what start() needs, and report progress; may be interrupted."""

    @abstractmethod
    def start(self, wanted: Wanted) -> Started:
        """Start it; it may not be ready when this returns."""

    def is_ready(self, started: Started) -> bool:  # noqa: ARG002
        """Whether to try to connect."""
        return True

    @abstractmethod
    def running(self, started: Started) -> int:
        """How many of its nodes run."""

    def is_running(self, started: Started) -> bool:
        """Whether all its nodes run."""
        return self.running(started) == started.nodes

    @abstractmethod
    def stop(self, started: Started) -> None:
        """Stop it and forget it; its data stay."""

    @abstractmethod
    def restart(self, started: Started) -> Started:
        """Stop it, and start it again as it was; it may not be ready when this returns."""

    def discard(self, started: Started) -> None:
        """Remove the data of a stopped broker."""
        shutil.rmtree(started.directory, ignore_errors=True)

    @abstractmethod
    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        """Its log, with b"" when there is nothing new; see background.read_logs()."""

    def kill(self, started: Started, number: int) -> None:  # noqa: ARG002
        """kill -9 a node of a cluster; 0 is the first."""
        raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")

    def revive(self, started: Started) -> Started:  # noqa: ARG002
        """Start those nodes of a cluster that do not run."""
        raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")
