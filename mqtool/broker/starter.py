"""What every kind of broker has in common: it can be started, stopped, restarted and discarded."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

from mqtool.broker.state import Started, Wanted
from mqtool.errors import UsageError


class Starter(ABC):
    """Starts, stops and inspects brokers of one kind.

    Any method may raise:
        Unavailable: the port is taken, or what it runs on (Docker, rabbitmq-server) is missing or does not answer.
        AccessRefused: no permission to use the Docker daemon.
        UsageError: an option that this kind does not support.
        MqtoolError: a node does not start, or does not stop.

    Args:
        describe: the name of the kind in a sentence, such as "the embedded broker".

    Attributes:
        kind: the value of a choice.Kind.
        is_quick: prepare() has nothing to do.
    """

    kind: ClassVar[str]
    is_quick = True

    def __init__(self, describe: str) -> None:
        self.describe = describe

    def is_available(self) -> bool:
        """Tell whether this machine can run such a broker."""
        return True

    def prepare(self, wanted: Wanted, say: Callable[[str], None]) -> None:  # noqa: B027  # most kinds have nothing to do
        """Download or build what start() needs, and report progress; may be interrupted."""

    @abstractmethod
    def start(self, wanted: Wanted) -> Started:
        """Start a broker. It may not be ready when this returns."""

    def is_ready(self, started: Started) -> bool:  # noqa: ARG002
        """Tell whether it makes sense to connect already."""
        return True

    @abstractmethod
    def running(self, started: Started) -> int:
        """The number of nodes that are running."""

    def is_running(self, started: Started) -> bool:
        """Tell whether all nodes are running."""
        return self.running(started) == started.nodes

    @abstractmethod
    def stop(self, started: Started) -> None:
        """Stop a broker. Its messages and logs are kept."""

    @abstractmethod
    def restart(self, started: Started) -> Started:
        """Stop a broker and start it again. It may not be ready when this returns."""

    def discard(self, started: Started) -> None:
        """Remove the messages and logs of a stopped broker."""
        shutil.rmtree(started.directory, ignore_errors=True)

    @abstractmethod
    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        """Yield the lines of the log, and b"" when there is nothing new; see background.read_logs()."""

    def kill(self, started: Started, number: int) -> None:  # noqa: ARG002
        """Kill a node of a cluster with SIGKILL; 0 is the first."""
        raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")

    def revive(self, started: Started) -> Started:  # noqa: ARG002
        """Start the nodes of a cluster that are not running."""
        raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")
